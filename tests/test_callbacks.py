"""Tests of ``GradientProbeCallback``: that it disturbs nothing, and that its figures are what they are said to be."""

import copy
import math
import random
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, TD3, HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn
from torch.distributions import Independent, Normal

from sb3_pathwise import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC
from sb3_pathwise.callbacks import GradientProbeCallback
from sb3_pathwise.distributions import draw_actions
from sb3_pathwise.learner import ActorCritic
from sb3_pathwise.routes import likelihood_ratio

ROUTES = ("pathwise", "likelihood_ratio", "measure_valued", "mixed")
TINY = dict(learning_starts=20, batch_size=8, buffer_size=500, seed=0, device="cpu")


def tiny(**kwargs: Any) -> dict[str, Any]:
    return TINY | dict(policy_kwargs=dict(net_arch=[8])) | kwargs


class NoisyExtractor(BaseFeaturesExtractor):
    """A feature extractor with running statistics and random masks."""

    def __init__(self, observation_space: spaces.Box, dropout: float = 0.2) -> None:
        super().__init__(observation_space, features_dim=8)
        n_inputs = spaces.flatdim(observation_space)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(n_inputs, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


def goal_env() -> gym.Env:
    return Monitor(BitFlippingEnv(n_bits=3, continuous=True, max_steps=5))


def normalized_env() -> VecNormalize:
    return VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 2))


HER = dict(replay_buffer_class=HerReplayBuffer, replay_buffer_kwargs=dict(n_sampled_goal=2))
NOISY = dict(net_arch=[8], features_extractor_class=NoisyExtractor)
TWO = ("pathwise", "likelihood_ratio")

CONFIGURATIONS: dict[str, tuple[type[SAC], str, Any, tuple[str, ...], dict[str, Any]]] = {
    "pathwise": (PathwiseAC, "MlpPolicy", "Pendulum-v1", ROUTES, {}),
    "likelihood_ratio": (LikelihoodRatioAC, "MlpPolicy", "Pendulum-v1", TWO, dict(policy_delay=2, max_grad_norm=1.0)),
    "measure_valued": (MeasureValuedAC, "MlpPolicy", "Pendulum-v1", ("measure_valued", "mixed"), dict(ent_coef=0.1)),
    "mixed": (MixedAC, "MlpPolicy", "Pendulum-v1", ("mixed",), dict(gradient_steps=2, train_freq=4)),
    "sac": (SAC, "MlpPolicy", "Pendulum-v1", ROUTES, {}),
    "cnn": (PathwiseAC, "CnnPolicy", "PointImage-v0", ROUTES, dict(policy_kwargs=NOISY)),
    "cnn, shared": (
        PathwiseAC,
        "CnnPolicy",
        "PointImage-v0",
        TWO,
        dict(policy_kwargs=NOISY | dict(share_features_extractor=True)),
    ),
    "her": (PathwiseAC, "MultiInputPolicy", goal_env, TWO, HER),
    "gsde": (PathwiseAC, "MlpPolicy", "Pendulum-v1", TWO, dict(use_sde=True, sde_sample_freq=16)),
    "gsde, sac": (SAC, "MlpPolicy", "Pendulum-v1", TWO, dict(use_sde=True)),
    "vec_normalize": (PathwiseAC, "MlpPolicy", normalized_env, TWO, {}),
    "quantile": (
        LikelihoodRatioAC,
        "MlpPolicy",
        "Pendulum-v1",
        TWO,
        dict(policy_kwargs=dict(net_arch=[8], critic="quantile")),
    ),
    "batch_renorm": (
        PathwiseAC,
        "MlpPolicy",
        "Pendulum-v1",
        ROUTES,
        dict(policy_delay=3, policy_kwargs=dict(net_arch=[8], critic="batch_renorm", renorm_warmup_steps=10)),
    ),
    "categorical": (
        PathwiseAC,
        "MlpPolicy",
        normalized_env,
        TWO,
        dict(policy_kwargs=dict(net_arch=[8], critic="categorical")),
    ),
    "n_steps": (LikelihoodRatioAC, "MlpPolicy", "Pendulum-v1", TWO, dict(n_steps=3)),
    "episodes": (PathwiseAC, "MlpPolicy", goal_env, TWO, dict(train_freq=(1, "episode"), policy="MultiInputPolicy")),
    "beta": (PathwiseAC, "MlpPolicy", "Pendulum-v1", TWO, dict(policy_kwargs=dict(net_arch=[8], distribution="beta"))),
    "mixture": (
        LikelihoodRatioAC,
        "MlpPolicy",
        "Pendulum-v1",
        ("likelihood_ratio",),
        dict(policy_kwargs=dict(net_arch=[8], distribution="gaussian_mixture")),
    ),
}


def flatten(value: Any) -> list[Any]:
    """Copies of the leaves of nested dictionaries and sequences, in order."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in flatten(value[key])]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in flatten(item)]
    return [value.detach().clone() if isinstance(value, th.Tensor) else copy.copy(value)]


def same(one: Any, two: Any) -> bool:
    if isinstance(one, th.Tensor):
        return th.equal(one, two)
    return np.array_equal(one, two, equal_nan=isinstance(one, np.ndarray) and one.dtype.kind == "f")


def traces(model: SAC) -> dict[str, list[Any]]:
    """All that training leaves behind, by kind."""
    vec_normalize = model.get_vec_normalize_env()
    buffer = vars(model.replay_buffer)
    logged = {name: value for name, value in model.logger.name_to_value.items() if not name.startswith(("time/", "gradient/"))}
    kinds = {
        "random streams": [random.getstate(), np.random.get_state(), th.get_rng_state()],
        "parameters and statistics": model.policy.state_dict(),
        "gradients": [parameter.grad for parameter in model.policy.parameters() if parameter.grad is not None],
        "optimizers": [model.actor.optimizer.state_dict(), model.critic.optimizer.state_dict()],
        "temperature": [] if model.log_ent_coef is None else [model.log_ent_coef],
        "modes": [module.training for module in model.policy.modules()],
        "exploration noise": [model.actor.action_dist.exploration_mat] if model.use_sde else [],
        "buffer": [value for value in buffer.values() if isinstance(value, np.ndarray) and value.dtype != object],
        "environment": [] if vec_normalize is None else [vec_normalize.obs_rms.mean, vec_normalize.obs_rms.var],
        "logger": logged,
    }
    return {kind: flatten(values) for kind, values in kinds.items()}


def assert_same_traces(one: dict[str, list[Any]], two: dict[str, list[Any]]) -> None:
    for kind, values in one.items():
        assert len(values) == len(two[kind]), kind
        assert all(same(*pair) for pair in zip(values, two[kind], strict=True)), kind


def train(name: str, callback: GradientProbeCallback | None, total_timesteps: int = 60) -> SAC:
    cls, policy, make_env, _, kwargs = CONFIGURATIONS[name]
    env = make_env if isinstance(make_env, str) else make_env()
    model = cls(**tiny(policy=policy, env=env) | kwargs)
    # What the logger is given is compared: it must not be emptied
    return model.learn(total_timesteps, callback=callback, log_interval=10_000)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_training_is_bitwise_what_it_is_without(name: str) -> None:
    """... and the figures are there, and finite."""
    routes = CONFIGURATIONS[name][3]
    probe = GradientProbeCallback(every=8, routes=routes, n_probes=16, batch_size=16)
    assert_same_traces(traces(train(name, probe)), traces(train(name, None)))

    assert len(probe.history) >= 3
    names = {f"gradient/{route}/{figure}" for route in routes for figure in ("variance", "snr", "norm")}
    names |= {"gradient/cosine", "gradient/consistency_z"} if len(routes) > 1 else set()
    for figures in probe.history:
        assert figures.keys() == names | {"timesteps"}
        assert all(math.isfinite(value) for value in figures.values()), figures
        assert all(figures[f"gradient/{route}/variance"] > 0 for route in routes)


def test_measurements_are_reproducible_and_see_the_time_step() -> None:
    model = train("pathwise", None)
    probe = GradientProbeCallback(n_probes=16, batch_size=16)
    probe.init_callback(model)
    figures = probe.measure()
    assert probe.measure() == figures
    model.num_timesteps += 1
    assert probe.measure() != figures


@pytest.mark.parametrize("name", ["cnn", "her", "gsde", "sac", "batch_renorm", "categorical"])
def test_measure_leaves_the_model_as_it_was(name: str) -> None:
    """Also what the next update would overwrite anyway, and a module that its owner keeps in evaluation mode."""
    model = train(name, None)
    model.policy.set_training_mode(True)
    model.actor.features_extractor.eval()
    before = traces(model)
    probe = GradientProbeCallback(n_probes=16, batch_size=16)
    probe.init_callback(model)
    probe.measure()
    assert_same_traces(before, traces(model))


# -- When ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("learning_starts", "expected"), [(20, [30, 40, 50, 60]), (40, [50, 60]), (100, [])], ids=["early", "on time", "never"]
)
def test_measures_every_so_many_steps_once_learning_has_started(learning_starts: int, expected: list[int]) -> None:
    model = PathwiseAC("MlpPolicy", "Pendulum-v1", **tiny(learning_starts=learning_starts))
    probe = GradientProbeCallback(every=10, n_probes=4, batch_size=4)
    model.learn(60, callback=probe)
    assert [figures["timesteps"] for figures in probe.history] == expected
    model.learn(15, callback=probe, reset_num_timesteps=False)
    expected = [*expected, *([70] if expected else [])]
    assert [figures["timesteps"] for figures in probe.history] == expected
    # From the beginning again, random actions included: nothing is learned meanwhile
    model.learn(30, callback=probe)
    assert [figures["timesteps"] for figures in probe.history] == [*expected, *([30] if learning_starts < 30 else [])]


def test_measures_at_the_first_rollout_end_after_a_multiple() -> None:
    model = PathwiseAC("MlpPolicy", "Pendulum-v1", **tiny(train_freq=8, gradient_steps=1))
    probe = GradientProbeCallback(every=10, n_probes=4, batch_size=4)
    model.learn(64, callback=probe)
    assert [figures["timesteps"] for figures in probe.history] == [32, 40, 56, 64]


def test_values_reach_the_logger() -> None:
    model = train("pathwise", None)
    probe = GradientProbeCallback(every=10, n_probes=16, batch_size=16)
    model.set_logger(Logger(None, []))
    model.learn(30, callback=probe, log_interval=10_000, reset_num_timesteps=False)
    logged = {name: value for name, value in model.logger.name_to_value.items() if name.startswith("gradient/")}
    assert logged == {name: value for name, value in probe.history[-1].items() if name != "timesteps"}


# -- What ----------------------------------------------------------------------------------------------------------------


class RandomObservations(gym.Env):
    """Independent standard normal observations."""

    observation_space = spaces.Box(-np.inf, np.inf, (5,))
    action_space = spaces.Box(-1, 1, (3,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.np_random.standard_normal(5).astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.np_random.standard_normal(5).astype(np.float32), 0.0, False, False, {}


class QuadraticCritic(ContinuousCritic):
    """``Q(s, tanh(x)) = |x|^2``: quadratic in what the routes sample."""

    def forward(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        return (th.atanh(actions).square().sum(dim=1, keepdim=True),) * 2


def linear_gaussian_model(cls: type[SAC], mean: th.Tensor, sigma: float, **kwargs: Any) -> SAC:
    """
    A model whose actor is linear in its observations, with weights of zero, and whose critic is quadratic.

    The gradient that an observation s adds to the parameters of a head is the outer product of that of the head's output
    and (s, 1): variances are those of the output, times ``1 + |s|^2``.
    """
    model = cls("MlpPolicy", RandomObservations(), **tiny(policy_kwargs=dict(net_arch=[]), ent_coef=0.0) | kwargs)
    with th.no_grad():
        for head, bias in ((model.actor.mu, mean), (model.actor.log_std, math.log(sigma))):
            head.weight.zero_()
            head.bias.copy_(th.as_tensor(bias))
    model.critic.__class__ = QuadraticCritic
    return model


def fix_batch(model: SAC, obs: th.Tensor) -> None:
    model.replay_buffer.sample = lambda *args, **kwargs: SimpleNamespace(observations=obs)  # type: ignore[union-attr]


MEAN = th.tensor([0.6, -0.2, 0.3])
SIGMA = 0.2


def output_variances(m: th.Tensor, sigma: float, k: int) -> dict[str, float]:
    """
    Total variance of the gradient with respect to mean and log standard deviation of ``N(m, sigma^2 I)``, for the
    objective |x|^2: pathwise (1 sample), likelihood ratio (k samples, leave-one-out), measure-valued (1 sample, coupled).
    """
    d, s2, m2 = len(m), sigma**2, m.square()
    known_baseline = 4 * (d + 1) * m2.sum() + 2 * (d + 4) * s2 * d
    known_baseline += (4 * s2 * (2 * m2.sum() + 8 * m2) + s2**2 * (4 * (d - 1) + 56)).sum()
    var_objective = (4 * m2 * s2 + 2 * s2**2).sum()
    var_score = d / s2 + 2 * d
    squared_gradient = 4 * m2.sum() + 4 * d * s2**2
    return {
        "pathwise": float(4 * s2 * d + (4 * m2 * s2 + 8 * s2**2).sum()),
        "likelihood_ratio": float((known_baseline + (var_objective * var_score + squared_gradient) / (k - 1)) / k),
        "measure_valued": float(((16 / math.pi - 4) * m2 + 4 * m2 * s2 + 4 * s2**2).sum()),
    }


@pytest.mark.parametrize("cls", [PathwiseAC, LikelihoodRatioAC, SAC])
def test_figures_match_the_closed_forms_on_a_quadratic_critic(cls: type[SAC]) -> None:
    """
    400 gradients in 4 parts, 32 states. The relative standard error of a variance is about 2 % (1596 degrees of freedom in
    at least 3 directions), so 8 % is four of them. The norm's is below 1 %, and that of the cosine below 0.5 %.
    """
    obs = th.randn(32, 5, generator=th.Generator().manual_seed(1))
    model = linear_gaussian_model(cls, MEAN, SIGMA)
    fix_batch(model, obs)
    routes = ("pathwise", "likelihood_ratio", "measure_valued")
    probe = GradientProbeCallback(routes=routes, n_probes=1600, batch_size=32)
    probe.init_callback(model)
    figures = probe.measure()

    inputs = th.cat((obs, th.ones(32, 1)), dim=1)
    squared_norm = float((4 * MEAN.square().sum() + 3 * 4 * SIGMA**4) * inputs.mean(0).square().sum())
    snr = {}
    for route, output_variance in output_variances(MEAN, SIGMA, k=8).items():
        variance = output_variance * float(inputs.square().sum(1).mean()) / 32
        snr[route] = squared_norm / variance
        assert figures[f"gradient/{route}/variance"] == pytest.approx(variance, rel=0.08), route
        assert figures[f"gradient/{route}/norm"] == pytest.approx(math.sqrt(squared_norm), rel=0.05), route
        assert figures[f"gradient/{route}/snr"] == pytest.approx(snr[route], rel=0.15), route
    cosine = math.prod((1 + 1 / (400 * snr[route])) ** -0.5 for route in routes[:2])
    assert figures["gradient/cosine"] == pytest.approx(cosine, abs=0.01)
    assert abs(figures["gradient/consistency_z"]) < 4


def test_few_gradients_are_not_taken_for_many() -> None:
    """
    60 measurements of 4 gradients: the mean variance has 720 degrees of freedom in at least 3 directions, 3 % of relative
    standard error; a variance that divided by 4 instead of 3 would be 25 % off. At the optimum of the mean next to nothing
    is left of the gradient: the length of the mean of 4 gradients is mostly noise.
    """
    sigma = 0.02
    obs = th.randn(32, 5, generator=th.Generator().manual_seed(1))
    obs -= obs.mean(0)
    model = linear_gaussian_model(PathwiseAC, th.zeros(3), sigma)
    fix_batch(model, obs)
    probe = GradientProbeCallback(routes=("likelihood_ratio",), n_probes=16, batch_size=32)
    probe.init_callback(model)
    variances, squared_norms = [], []
    for _ in range(60):
        model.num_timesteps += 1
        figures = probe.measure()
        variances.append(figures["gradient/likelihood_ratio/variance"])
        squared_norms.append(figures["gradient/likelihood_ratio/norm"] ** 2)
    variance = output_variances(th.zeros(3), sigma, k=8)["likelihood_ratio"] * float(1 + obs.square().sum(1).mean()) / 32
    assert np.mean(variances) == pytest.approx(variance, rel=0.12)
    truth = 3 * 4 * sigma**4
    # Uncorrected, the mean would be truth + variance / 4, some 80 times the truth
    assert variance / 4 > 50 * truth
    assert np.mean(squared_norms) < truth + 0.5 * variance / 4


def applied_gradients(model: SAC, obs_batch: Any, n: int) -> th.Tensor:
    """
    Gradients (ascent) of the actor in updates that are not carried out.

    :return: shape (n, number of parameters)
    """
    applied = []
    model.replay_buffer.sample = lambda *args, **kwargs: obs_batch  # type: ignore[union-attr]
    model.actor.optimizer.step = lambda: applied.append(th.cat([-p.grad.flatten() for p in model.actor.parameters()]))
    model.critic.optimizer.step = model.ent_coef_optimizer.step = lambda: None
    model.train(n, batch_size=16)
    return th.stack(applied)


@pytest.mark.parametrize("extra", ["plain", "gsde", "beta", "batch norm"])
@pytest.mark.parametrize("cls", [PathwiseAC, LikelihoodRatioAC])
def test_the_gradient_is_the_one_that_training_applies(cls: type[SAC], extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same random numbers, it is the same gradient."""
    kwargs: dict[str, Any] = {
        "plain": {},
        "gsde": dict(use_sde=True),
        "beta": dict(policy_kwargs=dict(net_arch=[8], distribution="beta")),
        "batch norm": dict(policy_kwargs=NOISY | dict(features_extractor_kwargs=dict(dropout=0.0))),
    }[extra]
    model = cls("MlpPolicy", "Pendulum-v1", **tiny() | kwargs).learn(60)
    batch = model.replay_buffer.sample(16)
    th.manual_seed(3)
    (applied,) = applied_gradients(model, batch, 1)
    route = "pathwise" if cls is PathwiseAC else "likelihood_ratio"
    probe = GradientProbeCallback(routes=(route,), batch_size=16)
    probe.init_callback(model)

    def draw_as_in_training(actor: Any, obs: Any) -> Any:
        draw = draw_actions(actor, obs)
        # For the target of the critics; the other routes draw after that
        with th.no_grad():
            actor.action_log_prob(batch.next_observations)
        return draw

    monkeypatch.setattr("sb3_pathwise.callbacks.draw_actions", draw_as_in_training)
    # As rollouts leave it
    model.policy.set_training_mode(False)
    for n_parts in (1, 4):
        th.manual_seed(3)
        (gradients,) = probe._gradients(1, n_parts)
        assert gradients[route].shape[0] == n_parts
        th.testing.assert_close(gradients[route].sum(0), applied, rtol=1e-4, atol=1e-6 * float(applied.abs().max()))


@pytest.mark.parametrize(
    ("route", "cls", "kwargs"),
    [
        ("pathwise", PathwiseAC, dict(use_sde=True)),
        ("likelihood_ratio", LikelihoodRatioAC, dict(n_action_samples=3)),
        ("measure_valued", MeasureValuedAC, dict(n_action_samples=2)),
        ("mixed", MixedAC, dict(n_action_samples=6, baseline="mean_action")),
    ],
    ids=ROUTES,
)
def test_variance_and_norm_are_those_of_the_gradients_that_training_applies(
    route: str, cls: type[SAC], kwargs: dict[str, Any]
) -> None:
    """
    The gradients of 250 updates that are not carried out, against as many of the probe.

    They have at least 2 noisy directions: the relative standard error of each variance is below 6.3 %, so 40 % is more than
    four of their difference's. That of the norms is smaller.
    """
    model = cls("MlpPolicy", "Pendulum-v1", **tiny(**kwargs)).learn(100)
    gradients = applied_gradients(model, model.replay_buffer.sample(16), 250)
    probe = GradientProbeCallback(routes=(route,), n_probes=250 if model.use_sde else 1000, batch_size=16)
    probe.init_callback(model)
    figures = probe.measure()
    variance = gradients.var(0).sum().item()
    norm = math.sqrt(gradients.mean(0).square().sum().item() - variance / len(gradients))
    assert figures[f"gradient/{route}/variance"] == pytest.approx(variance, rel=0.4)
    assert figures[f"gradient/{route}/norm"] == pytest.approx(norm, rel=0.2)


def test_arguments_of_the_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own where the route is its own, also in a subclass; the defaults otherwise."""
    calls = []

    def spy(dist: Any, objective: Any, n_samples: int = 8, baseline: str = "leave_one_out") -> th.Tensor:
        calls.append((n_samples, baseline))
        return likelihood_ratio(dist, objective, n_samples, baseline)

    class Custom(LikelihoodRatioAC):
        pass

    monkeypatch.setattr(LikelihoodRatioAC, "route", staticmethod(spy))
    for cls, kwargs, expected in (
        (Custom, dict(n_action_samples=3, baseline="mean_action"), (3, "mean_action")),
        (MixedAC, dict(n_action_samples=5, baseline="none"), (8, "leave_one_out")),
        (PathwiseAC, dict(n_action_samples=5), (8, "leave_one_out")),
        (SAC, {}, (8, "leave_one_out")),
    ):
        model = cls("MlpPolicy", "Pendulum-v1", **tiny(**kwargs)).learn(22)
        calls.clear()
        probe = GradientProbeCallback(routes=("likelihood_ratio",), n_probes=4, batch_size=4)
        probe.init_callback(model)
        probe.measure()
        assert set(calls) == {expected}, cls


# -- Consistency -----------------------------------------------------------------------------------------------------------


def undetached(dist: Independent, objective: Any) -> th.Tensor:
    """The classic mistake: the score at a sample that still depends on the parameters."""
    actions = dist.rsample(th.Size((8,)))
    values = objective(actions).detach()
    log_prob = dist.log_prob(actions)
    return values.mean(0) + ((values - values.mean(0)) * (log_prob - log_prob.detach())).mean(0) * 8 / 7


def own_sample_in_baseline(dist: Independent, objective: Any) -> th.Tensor:
    """The mean of all samples, the action's own included: shrinks the gradient by 7 / 8."""
    surrogate = likelihood_ratio(dist, objective, 8)
    return surrogate.detach() + (surrogate - surrogate.detach()) * 7 / 8


def scaled_scale(dist: Independent, objective: Any) -> th.Tensor:
    """A pull on the scale alone, a tenth of the policy's entropy."""
    assert isinstance(dist.base_dist, Normal)
    return likelihood_ratio(dist, objective, 8) + 0.1 * dist.entropy()


def z_values(model: SAC, n: int, routes: tuple[str, ...] = TWO, n_probes: int = 64) -> np.ndarray:
    probe = GradientProbeCallback(routes=routes, n_probes=n_probes, batch_size=32)
    probe.init_callback(model)
    values = []
    for _ in range(n):
        # Other states, and other actions
        model.num_timesteps += 1
        values.append(probe.measure()["gradient/consistency_z"])
    return np.array(values)


@pytest.fixture(scope="module")
def quadratic_model() -> PathwiseAC:
    """An actor that sees many states, and a critic that never changes."""
    model = linear_gaussian_model(PathwiseAC, MEAN, SIGMA, learning_starts=200)
    return model.learn(200)


@pytest.fixture(scope="module")
def trained_model() -> PathwiseAC:
    """Far enough that Q tells actions apart."""
    kwargs = tiny(policy_kwargs=dict(net_arch=[16, 16]), batch_size=64, learning_rate=1e-3)
    return PathwiseAC("MlpPolicy", "Pendulum-v1", **kwargs).learn(500)


@pytest.mark.parametrize(
    ("model", "routes"),
    [
        ("quadratic_model", TWO),
        ("quadratic_model", ("measure_valued", "pathwise")),
        ("quadratic_model", ("mixed", "likelihood_ratio")),
        ("trained_model", TWO),
    ],
)
def test_z_is_standard_normal_for_correct_routes(model: str, routes: tuple[str, ...], request: pytest.FixtureRequest) -> None:
    """
    25 measurements. The mean of z has a standard error of 0.21; that of the standard deviation, which is 1.04 for Student's t
    with 28 degrees of freedom, is 0.15.
    """
    z = z_values(request.getfixturevalue(model), 25, routes)
    assert abs(z.mean()) < 0.8
    assert 0.5 < z.std() < 1.6
    assert abs(z).max() < 4.5


@pytest.mark.parametrize("biased", [undetached, own_sample_in_baseline, scaled_scale])
def test_z_flags_a_biased_route(biased: Any) -> None:
    Biased = type("Biased", (ActorCritic,), {"route": staticmethod(biased)})
    model = linear_gaussian_model(Biased, MEAN, SIGMA, learning_starts=200).learn(200)
    z = z_values(model, 4, ("pathwise", "Biased"), n_probes=64 if biased is undetached else 512)
    assert z.min() > 4, z


# -- Errors ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(routes=("pathwise", "pathwise")), "at most once"),
        (dict(routes=()), "routes must be"),
        (dict(every=0), "every must be an integer of at least 1, got 0"),
        (dict(every=1e3), "every must be an integer"),
        (dict(n_probes=0), "n_probes must be an integer of at least 1, got 0"),
        (dict(batch_size=0), "batch_size must be"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientProbeCallback(**kwargs)


@pytest.mark.parametrize(("cls", "own"), [(MixedAC, ", MixedAC"), (SAC, "")])
def test_unknown_route(cls: type[SAC], own: str) -> None:
    """Which routes there are only the model knows."""
    model = cls("MlpPolicy", "Pendulum-v1", **tiny())
    message = f"routes must be some of pathwise, likelihood_ratio, measure_valued, mixed{own} for this model.*'score'"
    with pytest.raises(ValueError, match=message):
        model.learn(10, callback=GradientProbeCallback(routes=("pathwise", "score")))
    assert model.num_timesteps == 0


def test_one_route_may_be_given_by_its_name() -> None:
    assert GradientProbeCallback(routes="pathwise").routes == ("pathwise",)


def test_routes_that_the_distribution_cannot_use() -> None:
    for cls, distribution, route in (
        (LikelihoodRatioAC, "gaussian_mixture", "pathwise"),
        (LikelihoodRatioAC, "gaussian_mixture", "mixed"),
        (PathwiseAC, "beta", "measure_valued"),
    ):
        model = cls("MlpPolicy", "Pendulum-v1", **tiny(policy_kwargs=dict(net_arch=[8], distribution=distribution)))
        with pytest.raises(ValueError, match=rf"routes: '{route}' cannot be measured.*leave it out.*{distribution}"):
            model.learn(10, callback=GradientProbeCallback(routes=("likelihood_ratio", route)))


def test_algorithms_without_such_a_gradient() -> None:
    model = TD3("MlpPolicy", "Pendulum-v1", **tiny())
    with pytest.raises(ValueError, match=r"sb3_pathwise or with SB3's SAC, not with TD3"):
        model.learn(10, callback=GradientProbeCallback())
