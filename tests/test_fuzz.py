"""
Whatever spaces and arguments a user comes up with: the model either trains, and survives saving, loading and predicting, or
says which argument is wrong.

``make test`` draws some 100 cases, always the same; ``make fuzz`` draws 2,000 new ones (``FUZZ_CASES``). At most one argument
of a case is out of range.
"""

import copy
import io
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.her import HerReplayBuffer

from sb3_pathwise import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC
from sb3_pathwise.learner import ActorCritic

N_CASES = int(os.environ.get("FUZZ_CASES", "100"))
SECONDS = 120
EPISODE = 4
# Enough for three updates, one for each rollout
STEPS, STEPS_OF_EPISODES = 14, 24


class AnySpaces(gym.Env):
    """
    An environment of any spaces: observations are drawn, and actions have to be in the space. It is seeded from the start: a
    case that failed has to fail again.

    :param observation_space: Any
    :param action_space: Any
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = copy.deepcopy(observation_space), copy.deepcopy(action_space)
        self.action_space.seed(0)
        self.reset(seed=0)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        check_action(self.action_space, action)
        self.steps += 1
        truncated = self.steps >= EPISODE
        return (
            self.observation_space.sample(),
            float(self.np_random.normal()),
            bool(self.np_random.random() < 0.1),
            truncated,
            {},
        )


def check_action(space: spaces.Space, action: np.ndarray) -> None:
    assert isinstance(space, spaces.Box)
    assert action.shape == space.shape and np.isfinite(action).all()
    # Scaling rounds
    slack = 1e-6 * np.maximum(np.abs(space.low), np.abs(space.high)).astype(np.float64)
    if not ((action >= space.low - slack).all() and (action <= space.high + slack).all()):
        raise RuntimeError(f"{action} is not in {space}")


# --- Spaces

SHAPES = st.sampled_from([(1,), (3,), (2, 2), (1, 2, 3), (2, 1, 2, 1)])
FLOATS = st.sampled_from([np.float32, np.float64, np.float16])
INTEGERS = st.sampled_from([np.uint8, np.int8, np.int32, np.int64])


@st.composite
def boxes(draw: Any) -> spaces.Box:
    shape = draw(SHAPES)
    if draw(st.booleans()):
        dtype = draw(FLOATS)
        low, high = draw(st.sampled_from([(-np.inf, np.inf), (-1, 1), (0, 1e-6), (-3, 200), (-np.inf, 2), (5, np.inf)]))
        return spaces.Box(low, high, shape, dtype)
    dtype = draw(INTEGERS)
    low, high = draw(st.sampled_from([(0, 1), (0, 100), (-5, 3) if dtype != np.uint8 else (1, 255)]))
    return spaces.Box(low, high, shape, dtype)


@st.composite
def images(draw: Any) -> spaces.Box:
    size = draw(st.sampled_from([(36, 36), (36, 40)]))
    channels = draw(st.sampled_from([1, 3]))
    shape = (*size, channels) if draw(st.booleans()) else (channels, *size)
    return spaces.Box(0, 255, shape, np.uint8)


VECTORS = st.one_of(
    boxes(),
    boxes(),
    st.builds(spaces.Discrete, st.integers(1, 5)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 4), min_size=1, max_size=3)),
    st.builds(spaces.MultiBinary, st.sampled_from([1, 3, (2, 2)])),
)
OBSERVATION_SPACES = st.one_of(
    VECTORS,
    VECTORS,
    st.dictionaries(st.sampled_from(["a", "b", "c"]), VECTORS, min_size=1, max_size=3).map(spaces.Dict),
    images(),
    st.builds(lambda image, vector: spaces.Dict(image=image, vector=vector), images(), boxes()),
)


@st.composite
def bounded_boxes(draw: Any) -> spaces.Box:
    shape = draw(st.sampled_from([(1,), (2,), (3,), (2, 2), (1, 2, 1)]))
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float64]))
    low, high = draw(st.sampled_from([(-1, 1), (-2, 0.5), (0, 1e-6), (10, 1e4), (-1e-3, 1e-3), (-400, -399)]))
    lows = np.full(shape, low, dtype)
    # Every dimension has bounds of its own
    return spaces.Box(lows, (lows + (high - low) * np.linspace(1, 0.5, lows.size).reshape(shape)).astype(dtype), dtype=dtype)


WRONG_ACTION_SPACES: list[spaces.Space] = [
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(2),
    spaces.Box(-np.inf, np.inf, (2,)),
    spaces.Box(np.array([0.0, 1.0], np.float32), np.array([1.0, 1.0], np.float32)),
    spaces.Box(-5, 5, (2,), np.int32),
]

WRONG_OBSERVATION_SPACES: list[spaces.Space] = [
    spaces.Box(-1.0, 1.0, ()),
    spaces.Discrete(3, start=2),
    spaces.MultiDiscrete([2, 3], start=[0, 1]),
    spaces.MultiDiscrete([[1, 2], [3, 4]]),
]
WRONG_SPACES = {"action_space": WRONG_ACTION_SPACES, "observation_space": WRONG_OBSERVATION_SPACES}

# --- Arguments, with which no parameter moves far in three updates: divergence is no matter of arguments, but of alarms

ARGUMENTS: dict[str, Any] = {
    "learning_rate": st.sampled_from([3e-4, 1e-2, 0, LinearSchedule(1e-3, 0.0, 0.5)]),
    "buffer_size": st.sampled_from([5, 16, 300]),
    "learning_starts": st.integers(0, 6),
    "batch_size": st.sampled_from([1, 2, 7]),
    "tau": st.sampled_from([0.0, 0.005, 1.0, 1]),
    "gamma": st.sampled_from([0.0, 0.99, 1.0, 1]),
    "train_freq": st.sampled_from([1, 2, (3, "step"), (1, "episode")]),
    "gradient_steps": st.sampled_from([1, 2, -1]),
    "optimize_memory_usage": st.booleans(),
    "n_steps": st.sampled_from([1, 3, 20]),
    "ent_coef": st.sampled_from(["auto", "auto_0.1", 0.1, 0, 1]),
    "target_update_interval": st.sampled_from([1, 3]),
    "target_entropy": st.sampled_from(["auto", -1.0, 0, 2.5]),
    "policy_delay": st.sampled_from([1, 3]),
    "max_grad_norm": st.sampled_from([None, 0.5, 1]),
    "precision": st.sampled_from(["float32", "bfloat16"]),
    "use_sde": st.booleans(),
    "sde_sample_freq": st.sampled_from([-1, 2]),
    "use_sde_at_warmup": st.booleans(),
    "stats_window_size": st.sampled_from([1, 100]),
    "seed": st.sampled_from([None, 0]),
}
ROUTE_ARGUMENTS: dict[type[ActorCritic], dict[str, Any]] = {
    PathwiseAC: {"n_action_samples": st.sampled_from([1, 2])},
    LikelihoodRatioAC: {
        "n_action_samples": st.sampled_from([2, 5]),
        "baseline": st.sampled_from(["leave_one_out", "mean_action", "none"]),
    },
    MeasureValuedAC: {"n_action_samples": st.sampled_from([1, 2])},
    MixedAC: {
        "n_action_samples": st.sampled_from([4, 5]),
        "baseline": st.sampled_from(["leave_one_out", "mean_action", "none"]),
    },
}
POLICY_KWARGS: dict[str, Any] = {
    "net_arch": st.sampled_from([[], [4], [4, 3], {"pi": [4], "qf": []}, {"pi": [], "qf": [3, 3]}]),
    "activation_fn": st.sampled_from([th.nn.ReLU, th.nn.Tanh, th.nn.ELU]),
    "n_critics": st.sampled_from([1, 2, 3]),
    "share_features_extractor": st.booleans(),
    "optimizer_class": st.sampled_from([th.optim.Adam, th.optim.AdamW, th.optim.RMSprop]),
    "normalize_images": st.booleans(),
    "log_std_init": st.sampled_from([-3, 0.0]),
    "use_expln": st.booleans(),
    "clip_mean": st.sampled_from([2.0, 0.0]),
    "distribution": st.sampled_from(["squashed_gaussian", "beta", "gaussian_mixture"]),
    "n_components": st.sampled_from([1, 3]),
    "features_extractor_class": st.just(FlattenExtractor),
}
WRONG: dict[str, list[Any]] = {
    "learning_rate": [-1.0, "fast", np.nan, None],
    "buffer_size": [0, -5, 2.5, "large"],
    "learning_starts": ["late", None],
    "batch_size": [0, -3, 1.5, "256"],
    "tau": [-0.1, 1.5, np.nan, "slow", None],
    "gamma": [-0.1, 1.5, np.nan, "high", None],
    "train_freq": [0, -1, (1, "epoch"), "often", (2.5, "step"), None],
    "gradient_steps": [-5, 1.5, "all", None],
    "n_steps": [0, -1, 1.5, "3", None],
    "ent_coef": ["automatic", "auto_", "auto_-1", -1.0, None, np.nan, [1]],
    "target_update_interval": [0, -1, 1.5, "never"],
    "target_entropy": ["high", None, np.nan],
    "policy_delay": [0, 1.5, "2", None],
    "max_grad_norm": [0.0, -1.0, np.nan, "none"],
    "precision": ["float64", None, th.bfloat16],
    "sde_sample_freq": ["often", 1.5],
    "stats_window_size": [-1, 0, 1.5, "all"],
    "n_action_samples": [0, -1, 2.5, "8"],
    "baseline": ["mean", 0],
    "action_noise": ["noise", NormalActionNoise(np.zeros(7), np.ones(7))],
    "replay_buffer_class": [HerReplayBuffer, dict, "ReplayBuffer"],
    "replay_buffer_kwargs": [{"unheard_of": 1}, "x"],
    "policy": ["Policy", "MultiInputPolicy", "CnnPolicy", th.nn.Linear, 3],
    "seed": [-1, "x", 1.5],
    "device": ["gpu", 1.5],
    "net_arch": ["wide", [0], [-3], {"actor": [4]}, 64, [2.5]],
    "activation_fn": ["relu", 3],
    "n_critics": [0, -1, 1.5, "two"],
    "optimizer_class": ["adam", dict],
    "optimizer_kwargs": [{"unheard_of": 1}],
    "distribution": ["gaussian", None],
    "n_components": [0, 1.5, "many"],
    "features_extractor_class": ["cnn", dict],
    "features_extractor_kwargs": [{"unheard_of": 1}],
    "unheard_of": [1],
}
# Where a wrong argument is looked at only together with another one
NEEDED: dict[str, dict[str, Any]] = {
    "n_components": {"distribution": "gaussian_mixture"},
    "sde_sample_freq": {"use_sde": True},
}
# Refused in some combinations
CLASHING = ("optimize_memory_usage", "n_steps", "train_freq", "use_sde", "distribution")
POLICY_NAMES = {*POLICY_KWARGS, "optimizer_kwargs", "features_extractor_kwargs"}


@dataclass(frozen=True)
class Case:
    algorithm: type[ActorCritic]
    observation_space: spaces.Space
    action_space: spaces.Space
    n_envs: int
    normalize: bool
    kwargs: dict[str, Any]
    # The argument that is out of range, if any
    wrong: str | None

    def make_env(self) -> Any:
        env: Any = DummyVecEnv([lambda: AnySpaces(self.observation_space, self.action_space) for _ in range(self.n_envs)])
        return VecNormalize(env) if self.normalize else env


@st.composite
def cases(draw: Any) -> Case:
    algorithm = draw(st.sampled_from([PathwiseAC, LikelihoodRatioAC, MeasureValuedAC, MixedAC]))
    observation_space, action_space = draw(OBSERVATION_SPACES), draw(bounded_boxes())
    n_envs = draw(st.sampled_from([1, 1, 3]))
    available = ARGUMENTS | ROUTE_ARGUMENTS[algorithm]
    chosen = draw(st.lists(st.sampled_from(sorted(available)), max_size=6, unique=True))
    kwargs: dict[str, Any] = {name: draw(available[name]) for name in chosen}
    chosen = draw(st.lists(st.sampled_from(sorted(POLICY_KWARGS)), max_size=3, unique=True))
    policy_kwargs: dict[str, Any] = {name: draw(POLICY_KWARGS[name]) for name in chosen}
    is_image = (
        isinstance(observation_space, spaces.Box) and len(observation_space.shape) == 3 and observation_space.shape[1] > 30
    )
    if isinstance(observation_space, spaces.Dict):
        kwargs["policy"] = "MultiInputPolicy"
        policy_kwargs.pop("features_extractor_class", None)
    else:
        kwargs["policy"] = draw(st.sampled_from(["CnnPolicy", "MlpPolicy"])) if is_image else "MlpPolicy"
    if kwargs.get("optimize_memory_usage"):
        kwargs["replay_buffer_kwargs"] = {"handle_timeout_termination": False}
    if draw(st.integers(0, 4)) == 0:
        noise = draw(st.sampled_from([NormalActionNoise, OrnsteinUhlenbeckActionNoise]))
        kwargs["action_noise"] = noise(np.zeros(action_space.shape), np.full(action_space.shape, 0.3))
    if draw(st.integers(0, 5)) == 0:
        is_dict = isinstance(observation_space, spaces.Dict)
        kwargs["replay_buffer_class"] = DictReplayBuffer if is_dict else ReplayBuffer
    is_float = isinstance(observation_space, spaces.Box) and observation_space.dtype in (np.float32, np.float64)
    normalize = is_float and draw(st.booleans())
    kwargs["policy_kwargs"] = policy_kwargs
    case = Case(algorithm, observation_space, action_space, n_envs, normalize, kwargs, wrong=None)
    return draw(spoilt(case)) if draw(st.integers(0, 2)) == 0 else case


@st.composite
def spoilt(draw: Any, case: Case) -> Case:
    """
    A case with one argument out of range, which is the only reason to refuse it.
    """
    policy_kwargs = {name: value for name, value in case.kwargs["policy_kwargs"].items() if name not in CLASHING}
    kwargs = {name: value for name, value in case.kwargs.items() if name not in CLASHING} | {"policy_kwargs": policy_kwargs}
    foreign = {"n_action_samples", "baseline"} - ROUTE_ARGUMENTS[case.algorithm].keys()
    if "gaussian_mixture" not in case.algorithm.supported_distributions:
        foreign.add("n_components")
    wrong = draw(st.sampled_from([*(name for name in WRONG if name not in foreign), *WRONG_SPACES]))
    if wrong == "action_space":
        kwargs.pop("action_noise", None)
        return replace(case, action_space=draw(st.sampled_from(WRONG_ACTION_SPACES)), kwargs=kwargs, wrong=wrong)
    if wrong == "observation_space":
        space = draw(st.sampled_from(WRONG_OBSERVATION_SPACES))
        if isinstance(case.observation_space, spaces.Dict):
            space = spaces.Dict(a=space)
        kwargs["policy"] = kwargs["policy"].replace("Cnn", "Mlp")
        return replace(case, observation_space=space, normalize=False, kwargs=kwargs, wrong=wrong)
    for name, value in (NEEDED.get(wrong, {}) | {wrong: draw(st.sampled_from(WRONG[wrong]))}).items():
        (policy_kwargs if name in POLICY_NAMES else kwargs)[name] = value
    return replace(case, kwargs=kwargs, wrong=wrong)


class Hang(Exception):
    """A case takes too long."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def handler(*_: Any) -> None:
        raise Hang(f"still running after {seconds} s")

    previous = signal.signal(signal.SIGALRM, handler)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def named(message: str, case: Case) -> bool:
    """
    Whether a message names the wrong argument, or, if none is known to be wrong, any of the case's.
    """
    text = message.lower().replace("_", " ").replace("`", "")
    policy_kwargs = case.kwargs["policy_kwargs"]
    names = [case.wrong] if case.wrong else [*case.kwargs, *policy_kwargs, "env", "observation_space"]
    # An argument of an argument
    names += (case.kwargs | policy_kwargs).get(case.wrong, {}) if str(case.wrong).endswith("_kwargs") else ()
    return any(name.replace("_", " ") in text for name in names)


def check(case: Case) -> str:
    """
    :return: "trained" or "refused"
    """
    # A case may have no seed of its own, and objects with a state
    set_random_seed(0)
    kwargs = {"learning_starts": 2, "buffer_size": 100, "batch_size": 3} | copy.deepcopy(case.kwargs)
    try:
        model = case.algorithm(env=case.make_env(), **kwargs)
        model.learn(case.n_envs * (STEPS if kwargs.get("train_freq") != (1, "episode") else STEPS_OF_EPISODES))
    except (ValueError, TypeError, AssertionError) as error:
        assert named(str(error), case), f"does not name {case.wrong or 'any argument'}: {type(error).__name__}: {error}"
        return "refused"
    assert model._n_updates >= 3
    for name, value in model.policy.state_dict().items():
        assert bool(th.isfinite(value).all()), name
    file = io.BytesIO()
    model.save(file)
    loaded = case.algorithm.load(file, env=case.make_env(), device="cpu")
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, loaded.policy.state_dict()[name]), name
    venv = case.make_env()
    obs = venv.reset()
    actions, _ = model.predict(obs, deterministic=True)
    assert np.array_equal(actions, loaded.predict(obs, deterministic=True)[0])
    for action in actions:
        check_action(case.action_space, action)
    loaded.learn(STEPS)
    return "trained"


@settings(
    max_examples=N_CASES,
    derandomize="FUZZ_CASES" not in os.environ,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
@given(cases())
def test_any_case(case: Case) -> None:
    with warnings.catch_warnings(), time_limit(SECONDS):
        warnings.simplefilter("ignore")
        # Counted by --hypothesis-show-statistics
        event(f"{'sound arguments' if case.wrong is None else 'a wrong argument'}: {check(case)}")


@pytest.mark.parametrize("wrong", [*WRONG, *WRONG_SPACES])
def test_each_wrong_argument(wrong: str) -> None:
    """Each of the values that are out of range, alone: it is refused by name, not merely survived."""
    for value in (WRONG | WRONG_SPACES)[wrong]:
        case_spaces: dict[str, Any] = {
            "observation_space": spaces.Box(-1.0, 1.0, (3,)),
            "action_space": spaces.Box(-1.0, 1.0, (2,)),
        }
        kwargs: dict[str, Any] = {"policy": "MlpPolicy"}
        policy_kwargs: dict[str, Any] = {"net_arch": [4]}
        if wrong in WRONG_SPACES:
            case_spaces[wrong] = value
        else:
            for name, item in (NEEDED.get(wrong, {}) | {wrong: value}).items():
                (policy_kwargs if name in POLICY_NAMES else kwargs)[name] = item
        kwargs["policy_kwargs"] = policy_kwargs
        case = Case(LikelihoodRatioAC, **case_spaces, n_envs=1, normalize=False, kwargs=kwargs, wrong=wrong)
        with warnings.catch_warnings(), time_limit(SECONDS):
            warnings.simplefilter("ignore")
            assert check(case) == "refused", f"{wrong}={value!r} was not refused"
