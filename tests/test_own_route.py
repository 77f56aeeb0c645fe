"""
Routes of a user's own: a function and a class with a docstring are a whole algorithm, whatever the function does with the
distribution and the objective; what cannot work is refused before it does harm.

The estimator of most tests is that of ``examples/own_route.py``; the example itself runs in ``test_examples.py``.
"""

import copy
import functools
import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC

from sb3_pathwise import ExactCheckpointCallback, LikelihoodRatioAC, PathwiseAC, load_weights_only, resume
from sb3_pathwise.callbacks import GradientProbeCallback
from sb3_pathwise.engines import choose_engine
from sb3_pathwise.engines.eager import EagerEngine
from sb3_pathwise.learner import ActorCritic
from sb3_pathwise.routes import likelihood_ratio, pathwise

MakeModel = Callable[..., Any]
ENGINES = ("eager", "auto")
ENT_COEF = 0.5


def antithetic(dist: Any, objective: Any, n_samples: int = 2) -> th.Tensor:
    x = dist.rsample((n_samples // 2,))
    return (objective(x) + objective(2 * dist.mean - x)).mean(0) / 2


class AntitheticAC(ActorCritic):
    """Pairs of actions, mirrored at the policy's mean."""

    route = antithetic
    supported_distributions = ("squashed_gaussian",)
    min_action_samples = 2


def make_class(route: Any, base: type[ActorCritic] = ActorCritic, **attributes: Any) -> type[ActorCritic]:
    """The class statement, as a function."""
    return type("MyAC", (base,), {"__doc__": "Mine.", "route": route, **attributes})


def parameters(model: Any) -> dict[str, th.Tensor]:
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


# --- A whole algorithm


def test_learns_with_the_arguments_of_its_route(make_model: MakeModel) -> None:
    model = make_model(AntitheticAC)
    assert (model.n_action_samples, model.baseline) == (2, None)
    before = parameters(model)
    model.learn(60, log_interval=1)
    after = parameters(model)
    assert not [name for name, tensor in before.items() if th.equal(tensor, after[name])]
    assert {"train/actor_loss", "train/entropy", "train/actor_grad_norm"} <= model.logger.name_to_value.keys()
    assert make_model(AntitheticAC, n_action_samples=6).n_action_samples == 6
    with pytest.raises(ValueError, match="n_action_samples must be an integer of at least 2, got 1"):
        make_model(AntitheticAC, n_action_samples=1)
    with pytest.raises(ValueError, match="baseline: the route of AntitheticAC has no such argument"):
        make_model(AntitheticAC, baseline="none")
    with pytest.raises(ValueError, match=r"distribution='beta' cannot be used by AntitheticAC.*squashed_gaussian.*Use "):
        make_model(AntitheticAC, policy_kwargs={"distribution": "beta"})


@pytest.mark.parametrize("env, policy", [("PointImage-v0", "CnnPolicy"), ("PointImageDict-v0", "MultiInputPolicy")])
def test_learns_from_anything(make_model: MakeModel, env: str, policy: str) -> None:
    model = make_model(AntitheticAC, env, policy).learn(40)
    assert model._n_updates == 20


@pytest.mark.parametrize("engine", ENGINES)
def test_travels(make_model: MakeModel, tmp_path: Path, engine: str) -> None:
    """To itself and to any other route, and from SAC."""
    model = make_model(AntitheticAC, n_action_samples=4, engine=engine).learn(40)
    model.save(tmp_path / "mine")
    make_model(SAC).learn(40).save(tmp_path / "sac")
    for cls, path, n_action_samples in (
        (AntitheticAC, "mine", 4),
        (PathwiseAC, "mine", 1),
        (LikelihoodRatioAC, "mine", 8),
        (AntitheticAC, "sac", 2),
    ):
        loaded = cls.load(tmp_path / path, env=gym.make("PointVector-v0"))
        assert type(loaded) is cls and loaded.n_action_samples == n_action_samples
        if path == "mine":
            assert all(th.equal(tensor, parameters(loaded)[name]) for name, tensor in parameters(model).items())
        loaded.learn(30)
        assert loaded._n_updates > 0
    weights_only = load_weights_only(AntitheticAC, tmp_path / "mine.zip", "PointVector-v0", train_freq=1)
    assert all(th.equal(tensor, parameters(weights_only)[name]) for name, tensor in parameters(model).items())
    assert weights_only.n_action_samples == 4


def test_resumes_exactly(make_model: MakeModel, tmp_path: Path) -> None:
    uninterrupted = make_model(AntitheticAC).learn(60)
    make_model(AntitheticAC).learn(50, callback=ExactCheckpointCallback(tmp_path, every=40))
    model = resume(tmp_path, gym.make("PointVector-v0"))
    assert type(model) is AntitheticAC and model.num_timesteps < 50
    model.learn(60, callback=ExactCheckpointCallback(tmp_path, every=40))
    assert all(th.equal(tensor, parameters(model)[name]) for name, tensor in parameters(uninterrupted).items())


def test_is_tried_on_pytorch_2_11_too(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_rng = th.random.fork_rng

    def of_2_11(devices: Any = None, enabled: bool = True, device_type: Any = "cuda") -> Any:
        return fork_rng(devices, enabled, device_type=th.device(device_type).type)

    monkeypatch.setattr(th.random, "fork_rng", of_2_11)
    make_model(AntitheticAC)


def test_is_known_to_the_zoo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By one line; its configuration is a file of the user's."""
    from rl_zoo3 import ALGOS
    from rl_zoo3 import train as zoo_train

    from sb3_pathwise import zoo

    (tmp_path / "mine.yml").write_text("default: {n_timesteps: 60, policy: MlpPolicy, learning_starts: 20, batch_size: 16}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ALGOS, "antithetic_ac", AntitheticAC)
    zoo.register()
    arguments = "--algo antithetic_ac --env Pendulum-v1 --conf-file mine.yml --seed 0 -params n_action_samples:4"
    monkeypatch.setattr(sys, "argv", ["train", *arguments.split()])
    zoo_train.train()
    (path,) = tmp_path.glob("logs/antithetic_ac/Pendulum-v1_1/*.zip")
    model = AntitheticAC.load(path)
    assert (model.n_action_samples, model._n_updates) == (4, 40)


@pytest.mark.parametrize("use_sde", [False, True])
def test_changes_nothing_but_the_gradient(make_model: MakeModel, use_sde: bool) -> None:
    """With the pathwise route under another name, it is SAC; that a route is tried leaves no trace."""

    def same(dist: Any, objective: Any) -> th.Tensor:
        return pathwise(dist, objective)

    cls = make_class(same, samples_gaussian_entropy=True, supported_distributions=PathwiseAC.supported_distributions)
    models = [
        make_model(made, use_sde=use_sde, **kwargs).learn(60)
        for made, kwargs in (
            (SAC, {}),
            (cls, {"engine": "eager"}),
            (PathwiseAC, {"engine": "auto"}),
            (cls, {"engine": "auto"}),
        )
    ]
    for reference, model in (models[:2], models[2:]):
        assert all(th.equal(tensor, parameters(model)[name]) for name, tensor in parameters(reference).items())


# --- What a route may do


@pytest.fixture
def make_still(make_model: MakeModel) -> MakeModel:
    """A factory of models that have learned something, and then do not any more; a batch of theirs is always the same."""

    def make(cls: type[ActorCritic], engine: str, **kwargs: Any) -> Any:
        kwargs = {"ent_coef": ENT_COEF, "policy_kwargs": {"net_arch": [16, 16]}} | kwargs
        # Every class starts from the same parameters
        trained = make_model(SAC, ent_coef=ENT_COEF, policy_kwargs=kwargs["policy_kwargs"]).learn(60)
        model = make_model(cls, engine=engine, learning_rate=0.0, **kwargs)
        model.learn(0)
        model.policy.load_state_dict(trained.policy.state_dict())
        batch = trained.replay_buffer.sample(32)
        model.replay_buffer.sample = lambda *args, **kwargs: batch
        model.batch = batch
        return model

    return make


def applied_gradient(model: Any, seed: int = 0) -> th.Tensor:
    """What an update climbs: the gradient with respect to the actor's parameters."""
    th.manual_seed(seed)
    model.train(gradient_steps=1, batch_size=32)
    return -th.cat([param.grad.flatten() for param in model.actor.parameters()])


def objective_by_hand(model: Any, x: th.Tensor) -> th.Tensor:
    """Q + ent_coef * log |d action / d x| at pre-squash actions (B, 2), by SAC's formulas. The entropy of x comes to it."""
    actions = th.tanh(x)
    q_values = th.cat(model.critic(model.batch.observations, actions), dim=1).min(dim=1).values
    return q_values + ENT_COEF * th.log(1 - actions**2 + 1e-6).sum(dim=1)


def by_hand(model: Any, surrogate: th.Tensor, log_std: th.Tensor) -> th.Tensor:
    """The gradient of a surrogate and the entropy of x, which is known in closed form."""
    entropy = log_std.sum(dim=1) + math.log(2 * math.pi * math.e)
    gradient = th.autograd.grad((surrogate + ENT_COEF * entropy).mean(), list(model.actor.parameters()))
    return th.cat([part.flatten() for part in gradient])


def assert_close(actual: th.Tensor, expected: th.Tensor) -> None:
    assert (actual - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("engine", ENGINES)
def test_objective_is_evaluated_twice(make_still: MakeModel, engine: str) -> None:
    """Each evaluation keeps what its derivative needs. The gradient, by hand, is that of the same random numbers."""
    model = make_still(AntitheticAC, engine)
    assert isinstance(choose_engine(model), EagerEngine) == (engine == "eager")
    th.manual_seed(0)
    noise = th.randn(32, 2)
    mean, log_std, _ = model.actor.get_action_dist_params(model.batch.observations)
    surrogate = sum(objective_by_hand(model, mean + sign * log_std.exp() * noise) for sign in (1, -1)) / 2
    expected = by_hand(model, surrogate, log_std)
    assert_close(applied_gradient(model), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_any_numbers_of_draws(make_still: MakeModel, engine: str) -> None:
    """5 and then 3, of which the very first is SAC's; the second mean serves as a control variate of the first."""
    seen: list[th.Tensor] = []

    def route(dist: Any, objective: Any) -> th.Tensor:
        first, second = dist.rsample((5,)), dist.rsample((3,))
        if dist.batch_shape == (32,):
            seen.extend((*first.detach(), *second.detach()))
        return objective(first).mean(0) + 0.1 * (objective(second) - objective(second).detach()).mean(0)

    model = make_still(make_class(route), engine)
    assert model.n_action_samples is None
    gradient = applied_gradient(model)
    mean, log_std, _ = model.actor.get_action_dist_params(model.batch.observations)
    noises = [((x - mean) / log_std.exp()).detach() for x in seen]
    assert len(noises) == 8
    th.manual_seed(0)
    th.testing.assert_close(noises[0], th.randn(32, 2), rtol=1e-3, atol=1e-4)
    # Independent: correlations of 64 numbers have a standard error of 1 / 8
    correlations = th.corrcoef(th.stack([noise.flatten() for noise in noises]))
    assert (correlations.triu(1).abs() < 5 / 8).all()
    values = [objective_by_hand(model, mean + log_std.exp() * noise) for noise in noises]
    surrogate = sum(values[:5]) / 5 + 0.1 * sum(values[5:]) / 3
    assert_close(gradient, by_hand(model, surrogate, log_std))
    with pytest.raises(ValueError, match="n_action_samples: the route of MyAC has no such argument"):
        make_still(make_class(route), engine, n_action_samples=2)


@pytest.mark.parametrize("engine", ENGINES)
def test_score_of_draws_without_a_graph(make_still: MakeModel, engine: str) -> None:
    """A likelihood ratio by ``rsample`` under ``no_grad``: a draw that kept its graph would bias it."""

    def route(dist: Any, objective: Any) -> th.Tensor:
        with th.no_grad():
            x = dist.rsample((1,))
            values = objective(x)
        log_prob = dist.log_prob(x)
        return (values + values * (log_prob - log_prob.detach()))[0]

    model = make_still(make_class(route), engine)
    th.manual_seed(0)
    noise = th.randn(32, 2)
    mean, log_std, _ = model.actor.get_action_dist_params(model.batch.observations)
    x = (mean + log_std.exp() * noise).detach()
    log_prob = th.distributions.Normal(mean, log_std.exp()).log_prob(x).sum(dim=1)
    expected = by_hand(model, objective_by_hand(model, x).detach() * log_prob, log_std)
    assert_close(applied_gradient(model), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_route_may_differentiate_by_itself(make_still: MakeModel, engine: str) -> None:
    """The slope of the objective at the mean, as a linear control variate of the likelihood ratio."""

    def route(dist: Any, objective: Any, n_samples: int = 4) -> th.Tensor:
        mean = dist.mean.detach().requires_grad_()
        with th.enable_grad():
            (slope,) = th.autograd.grad(objective(mean.unsqueeze(0)).sum(), mean)
        with th.no_grad():
            x = dist.sample((n_samples,))
            values = objective(x) - ((x - mean) * slope).sum(-1)
        log_prob = dist.log_prob(x)
        surrogate = (values * (log_prob - log_prob.detach())).mean(0) + ((dist.mean - mean.detach()) * slope).sum(-1)
        return values.mean(0) + surrogate

    gradients = [applied_gradient(make_still(make_class(route), made)) for made in (engine, "eager")]
    assert_close(*gradients)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("base", [ActorCritic, PathwiseAC])
def test_route_may_differentiate_twice(make_still: MakeModel, base: type[ActorCritic], engine: str) -> None:
    """A penalty on the slope of the objective at SAC's own draw."""

    def route(dist: Any, objective: Any) -> th.Tensor:
        x = dist.rsample((1,))
        values = objective(x)
        (slope,) = th.autograd.grad(values.sum(), x, create_graph=True)
        return values[0] - 0.1 * slope[0].square().sum(-1)

    model = make_still(make_class(route, base), engine)
    th.manual_seed(0)
    noise = th.randn(32, 2)
    mean, log_std, _ = model.actor.get_action_dist_params(model.batch.observations)
    x = mean + log_std.exp() * noise
    values = objective_by_hand(model, x)
    (slope,) = th.autograd.grad(values.sum(), x, create_graph=True)
    expected = by_hand(model, values - 0.1 * slope.square().sum(dim=1), log_std)
    assert_close(applied_gradient(model), expected)


@pytest.mark.parametrize("name", ["partial", "lambda", "staticmethod", "callable"])
def test_forms_of_routes(make_still: MakeModel, name: str) -> None:
    class Callable:
        def __call__(self, dist: Any, objective: Any, n_samples: int = 4) -> th.Tensor:
            return likelihood_ratio(dist, objective, n_samples, "none")

    cls = make_class(
        {
            "partial": functools.partial(likelihood_ratio, n_samples=4, baseline="none"),
            "lambda": lambda dist, objective: likelihood_ratio(dist, objective, 4, "none"),
            "staticmethod": staticmethod(lambda dist, objective: likelihood_ratio(dist, objective, 4, "none")),
            "callable": Callable(),
        }[name]
    )
    expected = applied_gradient(make_still(LikelihoodRatioAC, "eager", n_action_samples=4, baseline="none"))
    assert th.equal(applied_gradient(make_still(cls, "eager")), expected)
    # Inherited, too
    assert th.equal(applied_gradient(make_still(type("Mine", (cls,), {}), "eager")), expected)


def test_names_of_the_routes_arguments(make_still: MakeModel) -> None:
    """A baseline of one's own has values of one's own; without a default one has to be given."""
    seen: list[Any] = []

    def route(dist: Any, objective: Any, n_samples: int, baseline: str = "median") -> th.Tensor:
        seen.append((n_samples, baseline))
        return pathwise(dist, objective, n_samples)

    cls = make_class(route)
    with pytest.raises(ValueError, match="n_action_samples must be an integer of at least 1, got None"):
        make_still(cls, "eager")
    applied_gradient(make_still(cls, "eager", n_action_samples=3))
    assert seen[-1] == (3, "median")
    applied_gradient(make_still(cls, "eager", n_action_samples=2, baseline="mode"))
    assert seen[-1] == (2, "mode")


# --- What an overridden surrogate may reach


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("base", [PathwiseAC, LikelihoodRatioAC])
def test_regulariser_on_weights(make_still: MakeModel, base: type[ActorCritic], engine: str) -> None:
    class Decayed(base):  # type: ignore[misc, valid-type]
        """With a penalty on the actor's weights."""

        def actor_surrogate(self, dist: Any, objective: Any) -> th.Tensor:
            penalty = sum(param.square().sum() for param in self.actor.parameters())
            return super().actor_surrogate(dist, objective) - 0.1 * penalty

    model = make_still(Decayed, engine)
    effect = applied_gradient(model) - applied_gradient(make_still(base, "eager"))
    expected = -0.2 * th.cat([param.detach().flatten() for param in model.actor.parameters()])
    assert_close(effect, expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_regulariser_at_other_states(make_still: MakeModel, engine: str) -> None:
    class Centred(PathwiseAC):
        """Of which the actions at the next states are to be small (after CAPS, https://arxiv.org/abs/2012.06644)."""

        def actor_surrogate(self, dist: Any, objective: Any) -> th.Tensor:
            mean, _, _ = self.actor.get_action_dist_params(self.replay_buffer.sample(32).next_observations)
            return super().actor_surrogate(dist, objective) - 0.5 * mean.square().sum(1).mean()

    model = make_still(Centred, engine)
    effect = applied_gradient(model) - applied_gradient(make_still(PathwiseAC, "eager"))
    mean, _, _ = model.actor.get_action_dist_params(model.batch.next_observations)
    expected = th.autograd.grad(
        -0.5 * mean.square().sum(1).mean(), list(model.actor.parameters()), materialize_grads=True, allow_unused=True
    )
    assert_close(effect, th.cat([part.flatten() for part in expected]))


def test_surrogate_in_the_instance(make_still: MakeModel) -> None:
    model = make_still(PathwiseAC, "auto")
    plain = applied_gradient(model)
    surrogate = model.actor_surrogate
    model.actor_surrogate = lambda dist, objective: 3 * surrogate(dist, objective)
    assert_close(applied_gradient(model), 3 * plain)


# --- What is refused


def state(model: Any) -> list[th.Tensor]:
    tensors = [*model.policy.state_dict().values()]
    tensors += [
        value for network in (model.actor, model.critic) for s in network.optimizer.state.values() for value in s.values()
    ]
    return [tensor.clone() for tensor in tensors]


BAD: dict[str, tuple[Any, str]] = {
    "scalar": (lambda dist, objective: pathwise(dist, objective).mean(), r"surrogate of shape \(7,\).*got \(\)"),
    "column": (lambda dist, objective: pathwise(dist, objective).unsqueeze(1), r"surrogate of shape \(7,\).*got \(7, 1\)"),
    "samples": (lambda dist, objective: objective(dist.rsample((3,))), r"surrogate of shape \(7,\).*got \(3, 7\)"),
    "nothing": (lambda dist, objective: None, r"surrogate of shape \(7,\).*got NoneType"),
    "number": (lambda dist, objective: 0.0, r"surrogate of shape \(7,\).*got float"),
    "detached": (lambda dist, objective: pathwise(dist, objective).detach(), "cannot be differentiated"),
    "evaluated_only": (lambda dist, objective: objective(dist.sample((3,))).mean(0), "cannot be differentiated"),
    "states_as_samples": (
        lambda dist, objective: objective(dist.rsample()),
        r"objective takes actions of shape \('n', 7, 2\), got \(7, 2\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_routes_are_refused_at_construction(make_model: MakeModel, name: str) -> None:
    route, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make_model(make_class(route))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BAD)
def test_bad_surrogates_are_refused_before_a_weight_changes(make_model: MakeModel, name: str, engine: str) -> None:
    """Not at construction: they may need what is not there by then."""
    route, message = BAD[name]

    class Overridden(ActorCritic):
        """Mine."""

        def actor_surrogate(self, dist: Any, objective: Any) -> th.Tensor:
            assert self.replay_buffer.size() > 0
            return route(dist, objective)

    model = make_model(Overridden, engine=engine)
    before = state(model)
    with pytest.raises(ValueError, match=message):
        model.learn(40)
    assert (model.num_timesteps, model._n_updates) == (21, 0)
    assert all(th.equal(one, other) for one, other in zip(before, state(model), strict=True))


@pytest.mark.parametrize(
    "route, message",
    [
        (lambda dist, objective: objective(dist.rsample((1,)))[0], "MyAC needs rsample, which MixtureSameFamily has not"),
        (pathwise, "pathwise needs a distribution with rsample"),
    ],
)
def test_rsample_where_there_is_none(make_model: MakeModel, route: Any, message: str) -> None:
    cls = make_class(functools.partial(route))
    with pytest.raises(ValueError, match=message):
        make_model(cls, policy_kwargs={"distribution": "gaussian_mixture"})
    make_model(cls)


def test_no_route(make_model: MakeModel) -> None:
    for cls in (ActorCritic, type("Empty", (ActorCritic,), {})):
        with pytest.raises(ValueError, match=f"{cls.__name__} has no route: set the class attribute `route` to a function"):
            make_model(cls)


def with_self(self: Any, dist: Any, objective: Any) -> th.Tensor:
    return pathwise(dist, objective)


@pytest.mark.parametrize("route", [with_self, lambda dist: dist.mean.sum(-1)])
def test_other_signatures(make_model: MakeModel, route: Any) -> None:
    with pytest.raises(ValueError, match=r"route of MyAC must be a function of \(dist, objective\).*Override actor_surrogate"):
        make_model(make_class(route))


def test_no_function(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"route of MyAC must be a function as in routes\.py, got 'pathwise'"):
        make_model(make_class("pathwise"))


def test_named_engine_that_cannot_run_it(make_model: MakeModel) -> None:
    class Overridden(PathwiseAC):
        """Mine."""

        def actor_surrogate(self, dist: Any, objective: Any) -> th.Tensor:
            return super().actor_surrogate(dist, objective)

    with pytest.raises(ValueError, match="engine='fused' cannot run this model: fused: actor_surrogate is overridden"):
        make_model(Overridden, engine="fused")


def test_own_actor_of_which_too_little_is_known(make_model: MakeModel) -> None:
    """A likelihood ratio needs a density: without one it ends before the first update, not half way through it."""
    model = make_model(LikelihoodRatioAC)
    action_log_prob = model.actor.action_log_prob
    model.actor.action_log_prob = lambda obs: (action_log_prob(obs)[0] * 0.5, action_log_prob(obs)[1])
    before = state(model)
    with pytest.raises(ValueError, match="action_log_prob or action_dist is not SAC's"):
        model.learn(40)
    assert all(th.equal(one, other) for one, other in zip(before, state(model), strict=True))


# --- The probe


class Doubled(PathwiseAC):
    """Twice the gradient, to be told apart from its parent's."""

    def actor_surrogate(self, dist: Any, objective: Any) -> th.Tensor:
        surrogate = super().actor_surrogate(dist, objective)
        return surrogate + surrogate - surrogate.detach()


def test_probe_measures_a_subclass_under_its_own_name(make_model: MakeModel) -> None:
    """And under its parent's name what the parent would do: the same figures as of a model of the parent's."""
    model = make_model(Doubled).learn(100)
    parent = make_model(PathwiseAC).learn(100)
    parent.policy.load_state_dict(model.policy.state_dict())
    parent.replay_buffer, parent.log_ent_coef = copy.deepcopy(model.replay_buffer), model.log_ent_coef
    figures = []
    for measured, routes in ((model, ("pathwise", "Doubled")), (parent, ("pathwise", "likelihood_ratio"))):
        # From the same random numbers in the same order
        probe = GradientProbeCallback(routes=routes[:1], n_probes=64, batch_size=64)
        probe.init_callback(measured)
        figures.append(probe.measure())
    assert figures[0] == figures[1]
    probe = GradientProbeCallback(routes=("Doubled", "pathwise"), n_probes=2000, batch_size=64)
    probe.init_callback(model)
    both = probe.measure()
    # 500 gradients: relative standard errors of 4 % or less
    assert both["gradient/Doubled/norm"] == pytest.approx(2 * both["gradient/pathwise/norm"], rel=0.2)
    assert both["gradient/Doubled/variance"] == pytest.approx(4 * both["gradient/pathwise/variance"], rel=0.2)


def test_probe_measures_an_own_route(make_model: MakeModel) -> None:
    """While it trains, which it leaves as it was; with independent draws in fours, twice as many give half the variance."""
    models = []
    for callback in (GradientProbeCallback(every=10, routes=("AntitheticAC", "pathwise"), n_probes=16), None):
        models.append(make_model(AntitheticAC).learn(60, callback=callback))
    assert all(th.equal(tensor, parameters(models[1])[name]) for name, tensor in parameters(models[0]).items())
    variances = []
    for n_action_samples in (2, 4):
        models[0].n_action_samples = n_action_samples
        probe = GradientProbeCallback(routes=("AntitheticAC",), n_probes=2000, batch_size=64)
        probe.init_callback(models[0])
        variances.append(probe.measure()["gradient/AntitheticAC/variance"])
    assert variances[0] == pytest.approx(2 * variances[1], rel=0.2)


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("own_route", Path(__file__).parents[1] / "examples" / "own_route.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_example_is_unbiased_and_gains() -> None:
    """
    2,000 estimates of the gradient of E[f] for one Gaussian: the mean within 5 standard errors of an average over a grid of
    quantiles, and a variance below the half of single draws' that independent pairs would have.
    """
    example = load_example()
    assert issubclass(example.AntitheticAC, ActorCritic) and example.AntitheticAC.__doc__
    loc, log_scale = th.tensor([[0.3, -0.5]], requires_grad=True), th.tensor([[-1.0, -0.5]], requires_grad=True)

    def dist_of(n_rows: int) -> th.distributions.Distribution:
        base = th.distributions.Normal(loc.expand(n_rows, -1), log_scale.expand(n_rows, -1).exp())
        return th.distributions.Independent(base, 1)

    def objective(x: th.Tensor) -> th.Tensor:
        return th.sin(2 * x[..., 0]) + x[..., 1] ** 2 + x[..., 0] * x[..., 1]

    def gradients(route: Any) -> np.ndarray:
        th.manual_seed(0)
        rows = []
        for _ in range(2_000):
            rows.append(th.cat(th.autograd.grad(route(dist_of(1), objective).sum(), (loc, log_scale)), dim=1)[0])
        return th.stack(rows).numpy()

    quantiles = (th.arange(400) + 0.5) / 400
    noise = th.cartesian_prod(*[th.distributions.Normal(0.0, 1.0).icdf(quantiles)] * 2)
    truth = th.autograd.grad(objective(loc + log_scale.exp() * noise).mean(), (loc, log_scale))
    pairs, singles = gradients(example.antithetic), gradients(pathwise)
    errors = pairs.std(axis=0) / np.sqrt(len(pairs))
    assert (np.abs(pairs.mean(axis=0) - th.cat(truth, dim=1)[0].numpy()) < 5 * errors + 1e-3).all()
    assert pairs.var(axis=0).sum() < 0.45 * singles.var(axis=0).sum()
    # Of a quadratic it is exact
    assert pairs.var(axis=0)[1] < 1e-9 < singles.var(axis=0)[1]
