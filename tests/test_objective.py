"""
What every route climbs: the critics as a function of the actions, and J as a function of the distribution, whatever networks,
hooks and overridden methods there are.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from torch import nn
from torch.nn.modules import module as torch_module

from sb3_pathwise import LikelihoodRatioAC
from sb3_pathwise.distributions import draw_actions
from sb3_pathwise.objective import current_ent_coef, surrogate_of_objective
from sb3_pathwise.routes import likelihood_ratio, measure_valued, mixed, pathwise

MakeModel = Callable[..., Any]
N_STATES = 16


def halve(module: nn.Module, args: Any, output: Any) -> Any:
    return tuple(0.5 * part for part in output) if isinstance(output, tuple) else 0.5 * output


class OwnForward(ContinuousCritic):
    def forward(self, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        return tuple(q_values.tanh() for q_values in super().forward(obs, actions))


class OwnFeatures(ContinuousCritic):
    def extract_features(self, obs: Any, features_extractor: Any) -> th.Tensor:
        return 2 * super().extract_features(obs, features_extractor)


def with_class(cls: type[ContinuousCritic]) -> Callable[[Any], Iterator[None]]:
    def change(critic: Any) -> Iterator[None]:
        critic.__class__ = cls
        yield

    return change


def with_hook(register: Callable[[Any], Any]) -> Callable[[Any], Iterator[None]]:
    def change(critic: Any) -> Iterator[None]:
        handle = register(critic)
        yield
        handle.remove()

    return change


def with_patched_forward(critic: Any) -> Iterator[None]:
    forward = critic.forward
    critic.forward = lambda obs, actions: tuple(3 * q_values for q_values in forward(obs, actions))
    yield


CRITICS: dict[str, Callable[[Any], Iterator[None]]] = {
    "stock": lambda critic: iter([None]),
    "own_forward": with_class(OwnForward),
    "own_features": with_class(OwnFeatures),
    "patched_forward": with_patched_forward,
    "hook": with_hook(lambda critic: critic.register_forward_hook(halve)),
    "pre_hook": with_hook(lambda critic: critic.register_forward_pre_hook(lambda module, args: (args[0], -args[1]))),
    "hook_of_a_network": with_hook(lambda critic: critic.q_networks[1].register_forward_hook(halve)),
    "hook_of_the_features": with_hook(lambda critic: critic.features_extractor.register_forward_hook(halve)),
    "global_hook": with_hook(lambda critic: torch_module.register_module_forward_hook(halve)),
}


@pytest.mark.parametrize("env, policy", [("PointVector-v0", "MlpPolicy"), ("PointImageDict-v0", "MultiInputPolicy")])
@pytest.mark.parametrize("change", CRITICS)
def test_value_is_the_smallest_critic(make_model: MakeModel, change: str, env: str, policy: str) -> None:
    """As SAC evaluates it, one action after the other; its gradient with respect to the actions, too."""
    model = make_model(LikelihoodRatioAC, env, policy)
    critic = model.critic
    model.learn(30)
    obs = model.replay_buffer.sample(N_STATES).observations
    model.policy.set_training_mode(False)
    th.manual_seed(0)
    # Either of the critics is the smallest somewhere: otherwise one would not matter
    with th.no_grad():
        one, other = critic(obs, th.zeros(N_STATES, 2))
        critic.q_networks[0][-1].bias += (other - one).median()
    changed = CRITICS[change](critic)
    next(changed)
    for n_samples in (1, 3):
        actions = th.rand(n_samples, N_STATES, 2).mul(2).sub(1).requires_grad_()
        expected = th.stack([th.cat(critic(obs, a), dim=1).min(dim=1).values for a in actions])
        assert change != "stock" or 0 < th.cat(critic(obs, actions[0]), dim=1).argmin(dim=1).sum() < N_STATES
        (expected_grad,) = th.autograd.grad(expected.square().sum(), actions)
        values = model.critic_rule.value(critic, obs)(actions)
        th.testing.assert_close(values, expected)
        th.testing.assert_close(th.autograd.grad(values.square().sum(), actions)[0], expected_grad)
    next(changed, None)


DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "squashed_gaussian": {},
    "gsde": {"use_sde": True, "policy_kwargs": {"log_std_init": -1.0}},
    "beta": {"policy_kwargs": {"distribution": "beta"}},
    "gaussian_mixture": {"policy_kwargs": {"distribution": "gaussian_mixture", "n_components": 3}},
}


@pytest.mark.parametrize("samples_entropy", [False, True])
@pytest.mark.parametrize("route", [pathwise, likelihood_ratio, measure_valued, mixed])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_surrogate_is_j(make_model: MakeModel, distribution: str, route: Any, samples_entropy: bool) -> None:
    """
    100 surrogates of 100 copies of 4 states, against the mean of Q - ent_coef * log pi over 40,000 actions that SB3's method
    draws: each has a standard error, and 5 of them together are the bound.
    """
    if (distribution, route) not in SUPPORTED:
        return
    actor, ent_coef = make_model(LikelihoodRatioAC, **DISTRIBUTIONS[distribution]).actor, th.tensor(0.7)
    obs = th.tensor([[0.9, -0.3], [-0.7, 0.1], [0.2, 0.8], [0.0, 0.5]]).repeat(100, 1)

    def value(actions: th.Tensor) -> th.Tensor:
        return th.sin(3 * actions[..., 0]) + actions[..., 1] ** 2

    th.manual_seed(0)
    surrogates, values = [], []
    for _ in range(100):
        if distribution == "gsde":
            actor.reset_noise()
        draw = draw_actions(actor, obs)
        surrogates.append(surrogate_of_objective(route, draw, value, ent_coef, samples_entropy))
        values.append(value(draw.actions) - ent_coef * draw.log_prob)
    # Of gSDE, whose noise the states share, repetitions alone are independent
    means = [th.stack(parts).detach().mean(dim=1) for parts in (surrogates, values)]
    errors = [mean.std() / 10 for mean in means]
    assert abs(means[0].mean() - means[1].mean()) < 5 * (errors[0] ** 2 + errors[1] ** 2).sqrt()
    assert surrogates[0].shape == (400,) and surrogates[0].requires_grad


SUPPORTED = {
    *(
        (name, route)
        for name in ("squashed_gaussian", "gsde")
        for route in (pathwise, likelihood_ratio, measure_valued, mixed)
    ),
    *(("beta", route) for route in (pathwise, likelihood_ratio, mixed)),
    ("gaussian_mixture", likelihood_ratio),
}


@pytest.mark.parametrize("shape", [(N_STATES, 2), (3, N_STATES), (3, N_STATES, 1), (3, 1, 2), (1, 3, N_STATES, 2)])
def test_objective_refuses_what_are_no_actions(make_model: MakeModel, shape: tuple[int, ...]) -> None:
    """Broadcasting would have made something of most of them."""
    draw = draw_actions(make_model(LikelihoodRatioAC).actor, th.zeros(N_STATES, 2))

    def route(dist: Any, objective: Any) -> th.Tensor:
        return objective(th.zeros(shape))

    with pytest.raises(ValueError, match=r"objective takes actions of shape \('n', 16, 2\), got"):
        surrogate_of_objective(route, draw, lambda actions: actions.sum(-1), th.tensor(1.0))


def test_entropy_coefficient(make_model: MakeModel) -> None:
    fixed, learned = make_model(LikelihoodRatioAC, ent_coef=0.25), make_model(LikelihoodRatioAC, ent_coef="auto_0.5")
    assert current_ent_coef(fixed).item() == 0.25
    assert current_ent_coef(learned).item() == pytest.approx(0.5) and not current_ent_coef(learned).requires_grad
    # Learned no more: held where it is, or, as in SAC, where it is put
    learned.ent_coef_optimizer = None
    assert current_ent_coef(learned).item() == pytest.approx(0.5)
    learned.ent_coef_tensor = th.tensor(0.1)
    assert current_ent_coef(learned).item() == pytest.approx(0.1)
