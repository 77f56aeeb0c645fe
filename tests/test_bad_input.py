"""
Input that cannot work is refused when a model is made or loaded, by an exception that names the argument and the remedy.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_pathwise import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC
from sb3_pathwise.engines import ENGINES
from sb3_pathwise.routes import BASELINES

MakeModel = Callable[..., Any]


class Spaces(gym.Env):
    """Nothing but spaces."""

    def __init__(self, action_space: spaces.Space) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,))
        self.action_space = action_space


def assert_names(error: BaseException, *words: str) -> None:
    missing = [word for word in words if word not in str(error)]
    assert not missing, f"{missing} not in: {error}"


@pytest.mark.parametrize(
    "action_space",
    [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), spaces.Box(-np.inf, np.inf, (1,))],
)
def test_action_spaces(algorithm: type[SAC], make_model: MakeModel, action_space: spaces.Space) -> None:
    # AssertionError is what SB3 raises, and what its users catch
    with pytest.raises(AssertionError) as error:
        make_model(algorithm, Spaces(action_space))
    assert_names(error.value, "action space")


@pytest.mark.parametrize("half_open", [spaces.Box(-1, np.inf, (1,)), spaces.Box(np.array([-1, -np.inf]), np.ones(2))])
def test_half_open_action_spaces(algorithm: type[SAC], make_model: MakeModel, half_open: spaces.Box) -> None:
    with pytest.raises(AssertionError, match="finite"):
        make_model(algorithm, Spaces(half_open))


@pytest.mark.parametrize("value", [0, -1, 1.5, "8"])
def test_n_action_samples(algorithm: type[SAC], make_model: MakeModel, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_model(algorithm, n_action_samples=value)
    at_least = 4 if algorithm is MixedAC else 1
    assert_names(error.value, "n_action_samples", f"at least {at_least}", repr(value))


def test_too_few_samples_to_mix(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"n_action_samples.*4"):
        make_model(MixedAC, n_action_samples=3)
    assert make_model(MixedAC, n_action_samples=4).n_action_samples == 4


@pytest.mark.parametrize("cls", [LikelihoodRatioAC, MixedAC])
@pytest.mark.parametrize("value", ["unknown", "LEAVE_ONE_OUT", "", 0])
def test_baseline(make_model: MakeModel, cls: type[SAC], value: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_model(cls, baseline=value)
    assert_names(error.value, "baseline", *BASELINES, repr(value))


def test_leave_one_out_with_one_sample(make_model: MakeModel) -> None:
    with pytest.raises(ValueError) as error:
        make_model(LikelihoodRatioAC, n_action_samples=1)
    assert_names(error.value, "leave_one_out", "n_action_samples", "at least 2", "mean_action")
    for baseline in ("mean_action", "none"):
        assert make_model(LikelihoodRatioAC, n_action_samples=1, baseline=baseline).n_action_samples == 1


@pytest.mark.parametrize("cls", [PathwiseAC, MeasureValuedAC])
def test_no_baseline_where_it_means_nothing(make_model: MakeModel, cls: type[SAC]) -> None:
    with pytest.raises(ValueError) as error:
        make_model(cls, baseline="none")
    assert_names(error.value, "baseline", cls.__name__, "leave it out")


@pytest.mark.parametrize("value", ["fast", "Eager", None, 1])
def test_unknown_engine(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_model(algorithm, engine=value)
    assert_names(error.value, "engine", "auto", *ENGINES, repr(value))
    make_model(SAC).save(tmp_path / "model")
    with pytest.raises(ValueError, match="engine"):
        algorithm.load(tmp_path / "model", engine=value)


@pytest.mark.parametrize("value", ["float16", "float64", None, 32])
def test_unknown_precision(algorithm: type[SAC], make_model: MakeModel, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_model(algorithm, precision=value)
    assert_names(error.value, "precision", "float32", "bfloat16", repr(value))


def test_precision_that_no_engine_has(algorithm: type[SAC], make_model: MakeModel) -> None:
    """Only networks that are computed by hand know other products than PyTorch's."""
    with pytest.raises(ValueError) as error:
        make_model(algorithm, precision="bfloat16", policy_kwargs={"activation_fn": nn.Tanh})
    assert_names(error.value, "precision", "bfloat16", "eager", "Use precision='float32'")
    with pytest.raises(ValueError) as error:
        make_model(algorithm, precision="bfloat16", engine="eager")
    assert_names(error.value, "engine", "eager", "float32", "Use engine='auto'")


@pytest.mark.parametrize("value", [0, -2, 1.5, "2", None])
def test_policy_delay(algorithm: type[SAC], make_model: MakeModel, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_model(algorithm, policy_delay=value)
    assert_names(error.value, "policy_delay", "at least 1", repr(value))


@pytest.mark.parametrize("value", [0, -1, -0.5, float("nan")])
def test_max_grad_norm(algorithm: type[SAC], make_model: MakeModel, value: float) -> None:
    with pytest.raises(ValueError) as error:
        make_model(algorithm, max_grad_norm=value)
    assert_names(error.value, "max_grad_norm", "positive", "None", repr(value))


@pytest.mark.parametrize("distribution", ["gaussian", "Beta", None])
def test_unknown_distribution(algorithm: type[SAC], make_model: MakeModel, distribution: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_model(algorithm, policy_kwargs={"distribution": distribution})
    assert_names(error.value, "distribution", "squashed_gaussian", "beta", "gaussian_mixture", repr(distribution))


@pytest.mark.parametrize("distribution", ["beta", "gaussian_mixture"])
def test_distribution_with_gsde(make_model: MakeModel, distribution: str) -> None:
    with pytest.raises(ValueError) as error:
        make_model(LikelihoodRatioAC, use_sde=True, policy_kwargs={"distribution": distribution})
    assert_names(error.value, "distribution", distribution, "use_sde")


@pytest.mark.parametrize("n_components", [0, -1, 2.0, "4"])
def test_n_components(make_model: MakeModel, n_components: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_model(LikelihoodRatioAC, policy_kwargs={"distribution": "gaussian_mixture", "n_components": n_components})
    assert_names(error.value, "n_components", "at least 1", repr(n_components))


@pytest.mark.parametrize(
    "cls, distribution, remedies, wrong",
    [
        (PathwiseAC, "gaussian_mixture", ["LikelihoodRatioAC"], ["MixedAC", "MeasureValuedAC"]),
        (MeasureValuedAC, "gaussian_mixture", ["LikelihoodRatioAC"], ["PathwiseAC", "MixedAC"]),
        (MixedAC, "gaussian_mixture", ["LikelihoodRatioAC"], ["PathwiseAC", "MeasureValuedAC"]),
        (MeasureValuedAC, "beta", ["LikelihoodRatioAC", "PathwiseAC", "MixedAC"], []),
    ],
)
def test_distribution_that_the_route_cannot_use(
    make_model: MakeModel, tmp_path: Path, cls: type[SAC], distribution: str, remedies: list[str], wrong: list[str]
) -> None:
    policy_kwargs = {"distribution": distribution}
    with pytest.raises(ValueError) as at_construction:
        make_model(cls, policy_kwargs=policy_kwargs)
    make_model(LikelihoodRatioAC, policy_kwargs=policy_kwargs).save(tmp_path / "model")
    with pytest.raises(ValueError) as at_load:
        cls.load(tmp_path / "model")
    for error in (at_construction, at_load):
        assert_names(error.value, "distribution", distribution, cls.__name__, *remedies)
        assert not [name for name in wrong if name in str(error.value)]


@pytest.mark.parametrize(
    "policy, env, remedy",
    [
        ("MlpPolicy", "PointDict-v0", "MultiInputPolicy"),
        ("CnnPolicy", "PointDict-v0", "MultiInputPolicy"),
        ("MultiInputPolicy", "PointVector-v0", "MlpPolicy"),
        ("MultiInputPolicy", "PointImage-v0", "CnnPolicy"),
        ("CnnPolicy", "PointVector-v0", "MlpPolicy"),
    ],
)
def test_policy_that_does_not_fit_the_observations(algorithm: type[SAC], policy: str, env: str, remedy: str) -> None:
    with pytest.raises((ValueError, AssertionError)) as error:
        algorithm(policy, env, device="cpu")
    assert_names(error.value, policy, remedy)


@pytest.mark.parametrize("policy", [TD3Policy, DQNPolicy])
def test_policy_of_another_family(algorithm: type[SAC], policy: type) -> None:
    with pytest.raises(ValueError) as error:
        algorithm(policy, "PointVector-v0")
    assert_names(error.value, "policy", policy.__name__, "SACPolicy", algorithm.__name__)


def test_unknown_policy(algorithm: type[SAC]) -> None:
    with pytest.raises(ValueError, match="Policy RnnPolicy unknown"):
        algorithm("RnnPolicy", "PointVector-v0")


@pytest.mark.parametrize(
    "family, policy",
    [
        (TD3, "TD3Policy"),
        (DDPG, "TD3Policy"),
        (PPO, "ActorCriticPolicy"),
        (A2C, "ActorCriticPolicy"),
        (DQN, "DQNPolicy"),
    ],
)
def test_model_of_another_family(algorithm: type[SAC], tmp_path: Path, family: type, policy: str) -> None:
    kwargs: dict[str, Any] = {} if family in (PPO, A2C) else {"buffer_size": 10}
    env = "CartPole-v1" if family is DQN else "PointVector-v0"
    family("MlpPolicy", env, device="cpu", policy_kwargs={"net_arch": [8]}, **kwargs).save(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError) as error:
        algorithm.load(tmp_path / "model", env=None if family is DQN else gym.make(env))
    assert_names(error.value, "policy", policy, algorithm.__name__, "SAC", "own class")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kwargs", [{"n_action_samples": 0}, {"policy_delay": 0}, {"max_grad_norm": -1.0}])
def test_arguments_of_load(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path, kwargs: dict[str, Any]) -> None:
    for saver in (SAC, algorithm):
        make_model(saver).save(tmp_path / "model")
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            algorithm.load(tmp_path / "model", **kwargs)


def test_baseline_at_load(make_model: MakeModel, tmp_path: Path) -> None:
    make_model(SAC).save(tmp_path / "model")
    with pytest.raises(ValueError, match="baseline"):
        LikelihoodRatioAC.load(tmp_path / "model", baseline="unknown")
    with pytest.raises(ValueError, match="leave_one_out"):
        LikelihoodRatioAC.load(tmp_path / "model", n_action_samples=1)


def test_files_that_are_no_models(algorithm: type[SAC], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        algorithm.load(tmp_path / "nothing")
    (tmp_path / "text.zip").write_text("not a zip file")
    with pytest.raises(ValueError, match="zip"):
        algorithm.load(tmp_path / "text")
    assert (tmp_path / "text.zip").read_text() == "not a zip file"


def test_environment_of_another_kind(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path) -> None:
    make_model(algorithm).save(tmp_path / "model")
    with pytest.raises(ValueError, match="spaces do not match"):
        algorithm.load(tmp_path / "model", env=gym.make("Pendulum-v1"))


def test_policy_kwargs_cannot_change_at_load(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path) -> None:
    make_model(algorithm).save(tmp_path / "model")
    with pytest.raises(ValueError, match="policy kwargs"):
        algorithm.load(tmp_path / "model", policy_kwargs={"distribution": "beta"})


@pytest.mark.parametrize(
    "kwargs, expected",
    [
        (
            {
                "n_steps": 3,
                "optimize_memory_usage": True,
                "replay_buffer_kwargs": {"handle_timeout_termination": False},
            },
            ValueError,
        ),
        ({"n_steps": 3, "env": "PointDict-v0", "policy": "MultiInputPolicy"}, AssertionError),
        ({"ent_coef": "auto_-1"}, ValueError),
        ({"optimize_memory_usage": True}, ValueError),
        ({"train_freq": (1, "epoch")}, ValueError),
    ],
)
def test_what_sb3_refuses(
    algorithm: type[SAC], make_model: MakeModel, kwargs: dict[str, Any], expected: type[Exception]
) -> None:
    with pytest.raises(expected):
        make_model(algorithm, **kwargs)


def test_n_steps_with_a_buffer_of_the_users(algorithm: type[SAC], make_model: MakeModel) -> None:
    # See https://github.com/DLR-RM/stable-baselines3/issues/2274
    with pytest.warns(UserWarning, match="n_steps=3"):
        make_model(algorithm, n_steps=3, replay_buffer_class=ReplayBuffer)
