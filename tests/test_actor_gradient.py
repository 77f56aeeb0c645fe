"""
The gradient that reaches the actor's weights, the same in the mean for every algorithm: that of
``J = E_s E_{a ~ pi(.|s)} [min Q(s, a) - ent_coef * log pi(a|s)]``.

The truth is computed here by quadrature over two action dimensions, from densities written out once more; of the package only
their parameters are used. The algorithms run as they are, through ``train``, with a learning rate of 0.
"""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_pathwise import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC
from sb3_pathwise.distributions import policy_distribution
from sb3_pathwise.learner import ActorCritic


class AntitheticAC(ActorCritic):
    """Another route: pairs of actions, mirrored at the mean."""

    @staticmethod
    def route(dist: Any, objective: Any) -> th.Tensor:
        x = dist.rsample()
        return (objective(x.unsqueeze(0)) + objective((2 * dist.mean - x).unsqueeze(0)))[0] / 2


ENT_COEF = 0.5
N_STATES = 8
MAX_Z = 5.0
LOG_2PI = math.log(2 * math.pi)

GAUSSIAN: dict[str, Any] = {}
GSDE = {"use_sde": True, "policy_kwargs": {"log_std_init": -1.0}}
BETA = {"policy_kwargs": {"distribution": "beta"}}
QUANTILE = {"policy_kwargs": {"critic": "quantile", "n_quantiles": 5}}
# Actions' densities are known with the batch's statistics too, but of few rows: the states as they are, once each
BATCH_RENORM = {"policy_kwargs": {"critic": "batch_renorm"}}
BATCH_RENORM_PLAIN_ACTOR = {"policy_kwargs": {"critic": "batch_renorm", "actor_batch_norm": False}}
CATEGORICAL = {"policy_kwargs": {"critic": "categorical", "n_atoms": 7, "v_min": -20.0, "v_max": 20.0}}
MIXTURE = {"policy_kwargs": {"distribution": "gaussian_mixture", "n_components": 3}}


def gaussian_log_density(u: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
    return -0.5 * ((u - mean) / std) ** 2 - std.log() - 0.5 * LOG_2PI


def beta_log_density(x: th.Tensor, alpha: th.Tensor, beta: th.Tensor) -> th.Tensor:
    log_norm = th.lgamma(alpha) + th.lgamma(beta) - th.lgamma(alpha + beta)
    return (alpha - 1) * x.log() + (beta - 1) * (1 - x).log() - log_norm


def grid(n_points: int, bound: float) -> tuple[th.Tensor, float]:
    """Midpoints of a square of half-width ``bound`` around 0, shape (n_points**2, 1, 2), and the area of a cell."""
    axis = (th.arange(n_points, dtype=th.float64) + 0.5) / n_points * 2 * bound - bound
    return th.cartesian_prod(axis, axis).unsqueeze(1), (2 * bound / n_points) ** 2


def actions_and_densities(model: Any, obs: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Nodes of the quadrature: actions (n, B, 2), log pi of them (n, B), differentiable in the actor's weights, and the
    probability of each node (n, B), differentiable too.
    """
    base = policy_distribution(model.actor, obs).base
    if model.policy_kwargs.get("distribution") == "beta":
        # Even in logit(x), because the density is steep at 0 and 1
        u, area = grid(300, 20.0)
        x = u.sigmoid()
        alpha, beta = base.base_dist.concentration1.double(), base.base_dist.concentration0.double()
        log_density = beta_log_density(x, alpha, beta).sum(-1)
        probability = log_density.exp() * (x * (1 - x)).prod(-1) * area
        # d action / d x = 2 in each dimension
        return (2 * x - 1).expand(-1, len(obs), -1), log_density - 2 * math.log(2), probability
    if model.policy_kwargs.get("distribution") == "gaussian_mixture":
        # The components are apart, so the nodes cover all of pre-squash space that matters
        u, area = grid(400, 11.0)
        components = base.component_distribution.base_dist
        log_densities = gaussian_log_density(u.unsqueeze(2), components.loc.double(), components.scale.double()).sum(-1)
        log_density = th.logsumexp(log_densities + base.mixture_distribution.probs.double().log(), dim=-1)
    else:
        mean, std = base.base_dist.loc.double(), base.base_dist.scale.double()
        u, area = grid(250, 6.5)
        u, area = (mean + std * u).detach(), area * std.detach().prod(-1)
        log_density = gaussian_log_density(u, mean, std).sum(-1)
    u = u.expand(-1, len(obs), -1)
    log_prob = log_density - th.log(1 - u.tanh() ** 2 + 1e-6).sum(-1)
    return u.tanh(), log_prob, log_density.exp() * area


def conservative_value(model: Any, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """Q by each critic's definition, in evaluation mode."""
    model.critic.set_training_mode(False)
    outputs = model.critic(obs, actions)
    critic = model.policy_kwargs.get("critic", "twin")
    if critic == "quantile":
        return outputs.mean(dim=(1, 2))
    if critic == "categorical":
        return (outputs.softmax(dim=2) * th.linspace(-20, 20, 7)).sum(dim=2).min(dim=1).values
    return th.cat(outputs, dim=1).min(dim=1).values


def exact(model: Any, obs: th.Tensor) -> tuple[th.Tensor, float, float]:
    """The gradient of J with respect to all of the actor's weights, J, and the policy's mean entropy."""
    model.policy.set_training_mode(True)
    actions, log_prob, probability = actions_and_densities(model, obs)
    th.testing.assert_close(probability.sum(0), th.ones(len(obs), dtype=th.float64), atol=2e-4, rtol=0)
    with th.no_grad():
        tiled_obs = obs.expand(len(actions), -1, -1).flatten(end_dim=1)
        q_values = conservative_value(model, tiled_obs, actions.flatten(end_dim=1).float())
        min_q = q_values.double().view(len(actions), -1)
    objective = (probability * (min_q - ENT_COEF * log_prob)).sum(0).mean()
    entropy = -(probability * log_prob).sum(0).mean()
    gradient = th.autograd.grad(objective, list(model.actor.parameters()))
    return th.cat([part.flatten() for part in gradient]).double(), objective.item(), entropy.item()


@pytest.fixture(scope="module")
def replayed_obs() -> th.Tensor:
    return th.rand(N_STATES, 2, generator=th.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def make_frozen(
    make_model: Callable[..., Any], replayed_obs: th.Tensor, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """
    A factory of models whose critics are rough and whose policies differ from state to state, which learn nothing, and
    whose every batch holds the same states, each ``tile`` times.
    """

    def make(cls: type, tile: int, kwargs: dict[str, Any]) -> Any:
        kwargs = kwargs | {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [24, 12]}} | kwargs.get("policy_kwargs", {})}
        model = make_model(cls, learning_rate=0.0, ent_coef=f"auto_{ENT_COEF}", **kwargs)
        generator = th.Generator().manual_seed(1)
        with th.no_grad():
            for module in (model.actor, model.critic):
                for name, param in module.named_parameters():
                    # Scales less than the rest, so that a moderate grid covers what they spread
                    param.add_((0.15 if "log_std" in name else 0.4) * th.randn(param.shape, generator=generator))
            for name, buffer in model.policy.named_buffers():
                if name.endswith("_mean") or name.endswith("_var"):
                    buffer.add_(0.3 * th.rand(buffer.shape, generator=generator))
        for module in model.policy.modules():
            if hasattr(module, "momentum"):
                # Nor do running statistics move
                module.momentum = 0.0
        model.critic_rule.after_step(model.critic)
        obs = replayed_obs.repeat(tile, 1)
        column = th.zeros(len(obs), 1)
        batch = ReplayBufferSamples(obs, th.zeros(len(obs), 2), obs, column, column)
        monkeypatch.setattr(ReplayBuffer, "sample", lambda *args, **kwargs: batch)
        model.learn(0)
        return model

    return make


def observe(model: Any, n_repetitions: int) -> dict[str, th.Tensor]:
    """What ``train`` computed, once per repetition: gradients of the actor and of the temperature, and logged values."""
    seen: dict[str, list[th.Tensor]] = {"actor": [], "log_ent_coef": [], "actor_loss": [], "entropy": []}
    before = copy.deepcopy(dict(model.actor.named_parameters()))
    for _ in range(n_repetitions):
        model.train(gradient_steps=1, batch_size=N_STATES)
        # Of the actor's loss, hence minus the gradient of J
        seen["actor"].append(-th.cat([param.grad.flatten() for param in model.actor.parameters()]))
        seen["log_ent_coef"].append(model.log_ent_coef.grad.clone())
        for key in ("actor_loss", "entropy"):
            seen[key].append(th.tensor([model.logger.name_to_value[f"train/{key}"]]))
    th.testing.assert_close(dict(model.actor.named_parameters()), before, rtol=0, atol=0)
    return {key: th.stack(values).double() for key, values in seen.items()}


def z_values(samples: th.Tensor, truth: th.Tensor) -> th.Tensor:
    """(mean - truth) / standard error; the floor on the error is for weights behind a unit that is off."""
    return (samples.mean(0) - truth) / (samples.std(0) / math.sqrt(len(samples))).clamp_min(1e-7)


CASES: list[tuple[type, dict[str, Any], int, int]] = [
    # algorithm, arguments, copies of each state in a batch, repetitions: together the sample size
    (PathwiseAC, GAUSSIAN, 32, 150),
    (LikelihoodRatioAC, GAUSSIAN, 32, 150),
    (MeasureValuedAC, GAUSSIAN, 32, 150),
    (MixedAC, GAUSSIAN, 32, 150),
    # An exploration matrix is shared by the batch, so that only repetitions count
    (PathwiseAC, GSDE, 1, 600),
    (LikelihoodRatioAC, GSDE, 32, 150),
    (MeasureValuedAC, GSDE, 32, 150),
    (MixedAC, GSDE, 1, 600),
    (PathwiseAC, BETA, 32, 150),
    (LikelihoodRatioAC, BETA, 32, 150),
    (MixedAC, BETA, 32, 150),
    (LikelihoodRatioAC, MIXTURE, 32, 150),
    # The plain update, which stock networks above do not go through
    *((cls, {"engine": "eager"}, 32, 150) for cls in (PathwiseAC, LikelihoodRatioAC, MeasureValuedAC, MixedAC)),
    (AntitheticAC, {"engine": "auto"}, 32, 150),
    (AntitheticAC, GSDE, 1, 600),
    # Other critics
    (LikelihoodRatioAC, {"policy_kwargs": {"activation_fn": th.nn.Tanh, "n_critics": 3}}, 32, 150),
    # Other values of the route's arguments
    (PathwiseAC, {"n_action_samples": 3}, 32, 150),
    (LikelihoodRatioAC, {"n_action_samples": 2, "baseline": "mean_action"}, 32, 150),
    (LikelihoodRatioAC, {"n_action_samples": 2, "baseline": "none"}, 32, 150),
    (MeasureValuedAC, {"n_action_samples": 2}, 32, 150),
    (MixedAC, {"n_action_samples": 5, "baseline": "mean_action"}, 32, 150),
    *itertools.product(
        (PathwiseAC, LikelihoodRatioAC, MeasureValuedAC, MixedAC),
        (QUANTILE, BATCH_RENORM_PLAIN_ACTOR, CATEGORICAL),
        (32,),
        (150,),
    ),
    (PathwiseAC, {"n_action_samples": 3} | BATCH_RENORM_PLAIN_ACTOR, 32, 150),
    (PathwiseAC, BATCH_RENORM, 1, 600),
    (LikelihoodRatioAC, BATCH_RENORM, 1, 600),
]


def case_id(case: tuple[type, dict[str, Any], int, int]) -> str:
    kwargs = case[1].get("policy_kwargs", {}) | case[1]
    settings = [f"{name}={getattr(value, '__name__', value)}" for name, value in kwargs.items() if name != "policy_kwargs"]
    return "-".join([case[0].__name__, *settings])


@pytest.mark.parametrize("cls, kwargs, tile, n_repetitions", CASES, ids=map(case_id, CASES))
def test_gradient(
    make_frozen: Callable[..., Any],
    replayed_obs: th.Tensor,
    cls: type,
    kwargs: dict[str, Any],
    tile: int,
    n_repetitions: int,
) -> None:
    model = make_frozen(cls, tile, kwargs)
    gradient, objective, entropy = exact(model, replayed_obs)
    seen = observe(model, n_repetitions)

    z = z_values(seen["actor"], gradient)
    assert z.abs().max() < MAX_Z
    # The whole vector at once, along the direction in which a wrong scale shows most
    along = seen["actor"] @ gradient / gradient.norm() ** 2
    assert z_values(along, th.tensor(1.0)).abs() < MAX_Z
    assert along.std() / math.sqrt(n_repetitions) < 0.02, "the sample is too small to notice an error of a tenth"

    assert z_values(seen["actor_loss"], th.tensor(-objective)).abs() < MAX_Z
    assert z_values(seen["entropy"], th.tensor(entropy)).abs() < MAX_Z
    # Minus the derivative of ``-log_ent_coef * E[log pi + target_entropy]``, with E[log pi] = -entropy
    assert z_values(seen["log_ent_coef"], th.tensor(entropy - model.target_entropy)).abs() < MAX_Z
