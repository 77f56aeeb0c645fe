"""
Input that cannot work is refused when a model is made or loaded, by an exception that names the argument and the remedy.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv
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


FLOAT_MAX = np.finfo(np.float32).max


@pytest.mark.parametrize(
    "space, found",
    [
        (spaces.Box(-np.inf, np.inf, (1,)), "are infinite"),
        (spaces.Box(-1, np.inf, (1,)), "are infinite"),
        (spaces.Box(np.array([-1, -np.inf], np.float32), np.ones(2, np.float32)), "are infinite"),
        # Finite, but not their difference: so were all actions NaN
        (spaces.Box(-FLOAT_MAX, FLOAT_MAX, (2,)), "are so far apart that high - low overflows"),
        (spaces.Box(np.array([-1, -3e38], np.float32), np.array([1, 3e38], np.float32)), "high - low overflows"),
    ],
)
def test_action_spaces_without_bounds(
    algorithm: type[SAC], make_model: MakeModel, tmp_path: Path, space: spaces.Box, found: str
) -> None:
    # What SB3 raises for some of them, and what its users catch
    for kind in (AssertionError, ValueError):
        with pytest.raises(kind) as error:
            make_model(algorithm, Spaces(space))
        assert_names(error.value, "action space", "finite bounds", found, "Limit them", "TransformAction", "RescaleAction")
    make_model(algorithm, Spaces(spaces.Box(-1, 1, space.shape))).save(tmp_path / "model")
    with pytest.raises(ValueError, match="Limit them"):
        algorithm.load(tmp_path / "model", env=Spaces(space))


def warnings_of_bounds(make_model: MakeModel, env: Any, **kwargs: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_model(PathwiseAC, env, **kwargs)
    return [str(warning.message) for warning in caught if "action space is" in str(warning.message)]


@pytest.mark.parametrize(
    "low, high, words",
    [
        # IsaacLab #5080
        ([-100.0], [100.0], ["wide (-100 to 100 in dimension 0)", "around 0, the middle"]),
        ([-1.0, -1.0, -1.0], [1.0, 1.0, 1e3], ["wide (-1 to 1000 in dimension 2)", "around 499.5, the middle"]),
        ([-1.0, -0.1], [1.0, 5.0], ["very asymmetric (-0.1 to 5 in dimension 1)", "around 2.45, the middle"]),
        # What environments have: torques, steering with gas and brake, a throttle, temperatures
        ([-2.0], [2.0], []),
        ([-1.0, 0.0, 0.0], [1.0, 1.0, 1.0], []),
        ([-0.5], [1.0], []),
        ([12.0], [25.0], []),
    ],
)
def test_action_spaces_that_are_explored_badly(
    make_model: MakeModel, tmp_path: Path, low: list[float], high: list[float], words: list[str]
) -> None:
    env = Spaces(spaces.Box(np.array(low, np.float32), np.array(high, np.float32)))
    messages = warnings_of_bounds(make_model, env)
    assert len(messages) == bool(words)
    if not words:
        return
    assert_names(UserWarning(*messages), *words, "explores all of it", "percentiles", "TransformAction")
    # Once
    make_model(PathwiseAC, env).save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PathwiseAC.load(tmp_path / "model", env=env)
    # What it advises makes it go away, and changes no action
    inner = spaces.Box(-1.0, 1.0, env.action_space.shape)
    limited = gym.wrappers.TransformAction(env, lambda action: action, inner)
    assert not warnings_of_bounds(make_model, limited)
    assert limited.action(0.3 * np.ones(inner.shape)) == pytest.approx(0.3)
    venv = DummyVecEnv([lambda: env])
    venv.action_space = inner
    assert not warnings_of_bounds(make_model, venv)


@pytest.mark.parametrize(
    "name, value",
    [
        ("learning_starts", 1e2),
        ("buffer_size", 1e3),
        ("batch_size", np.float32(32)),
        ("gradient_steps", -1.0),
        ("n_steps", 3.0),
        ("target_update_interval", 2.0),
        ("train_freq", 4.0),
        ("stats_window_size", 1e1),
        ("seed", 1e1),
    ],
)
def test_integers_that_are_written_as_floats(
    algorithm: type[SAC], make_model: MakeModel, tmp_path: Path, name: str, value: float
) -> None:
    """As SAC takes some of them."""
    kwargs = {name: value}
    model = make_model(algorithm, **kwargs)
    attribute = "_stats_window_size" if name == "stats_window_size" else name
    taken = getattr(model, attribute)
    assert (taken.frequency if name == "train_freq" else taken) == value and not isinstance(taken, float)
    model.learn(150 if name == "learning_starts" else 30)
    assert model._n_updates > 0
    model.save(tmp_path / "model")
    assert getattr(algorithm.load(tmp_path / "model"), attribute) == taken
    with pytest.raises(ValueError, match=name):
        make_model(algorithm, **{name: float(value) + 0.5})


def test_layers_in_a_tuple(algorithm: type[SAC], make_model: MakeModel) -> None:
    """As SAC takes them, in a dictionary."""
    sizes = {"pi": (16, 8), "qf": [4]}
    model, sac = (make_model(cls, policy_kwargs={"net_arch": sizes}) for cls in (algorithm, SAC))
    assert {name: tensor.shape for name, tensor in model.policy.state_dict().items()} == {
        name: tensor.shape for name, tensor in sac.policy.state_dict().items()
    }
    with pytest.raises(ValueError, match="net_arch"):
        make_model(algorithm, policy_kwargs={"net_arch": {"pi": (16, 0), "qf": (4,)}})


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
