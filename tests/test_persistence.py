"""
Exact resume: whatever happens to a training between two checkpoints, it ends with the bits that it would have ended with.

The long version, with processes that are killed at random moments, is ``tests/kill_test.py``; two of its cases are run here.
"""

import errno
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.wrappers import NormalizeObservation, TimeLimit
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_pathwise import LikelihoodRatioAC, PathwiseAC
from sb3_pathwise.callbacks import GradientProbeCallback
from sb3_pathwise.engines.fused import FusedEngine
from sb3_pathwise.guards import NonFiniteError
from sb3_pathwise.persistence import ExactCheckpointCallback, RestorableEnv, resume, storage
from sb3_pathwise.persistence.environments import NotRestorableError

KILL_TEST = Path(__file__).with_name("kill_test.py")
TOTAL = 100


def point(n_envs: int = 1, fixed_length: bool = False, **kwargs: Any) -> DummyVecEnv:
    """The point mass; of episodes of one length, if several are to end together."""
    if fixed_length:
        return make_vec_env(lambda: TimeLimit(Wanderer(), 10), n_envs=n_envs, **kwargs)
    return make_vec_env("PointVector-v0", n_envs=n_envs, **kwargs)


class Wanderer(gym.Env):
    """A random walk that draws random numbers at every step, and ends at none."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-2.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.position = self.np_random.normal(size=2).astype(np.float32)
        return self.position.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.position = (self.position + action + 0.1 * self.np_random.normal(size=2)).astype(np.float32)
        return self.position.copy(), -float(np.square(self.position).mean()), False, False, {}


def bits(n_envs: int = 1) -> DummyVecEnv:
    return make_vec_env(lambda: BitFlippingEnv(n_bits=3, continuous=True, max_steps=8), n_envs=n_envs)


# What the environment is, and the arguments of the model
SETTINGS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (lambda: gym.make("PointVector-v0"), {}),
    "image": (lambda: gym.make("PointImage-v0"), {"policy": "CnnPolicy"}),
    "dict": (lambda: gym.make("PointDict-v0"), {"policy": "MultiInputPolicy"}),
    "her": (
        bits,
        {
            "policy": "MultiInputPolicy",
            "replay_buffer_class": HerReplayBuffer,
            "replay_buffer_kwargs": {"n_sampled_goal": 2, "copy_info_dict": True},
        },
    ),
    "n_steps": (lambda: gym.make("PointVector-v0"), {"n_steps": 3, "buffer_size": 70}),
    "four_envs": (lambda: point(4, fixed_length=True), {"gradient_steps": -1}),
    "vec_normalize": (lambda: VecNormalize(point(2, fixed_length=True)), {}),
    "frame_stack": (lambda: VecNormalize(VecFrameStack(point(2, fixed_length=True), 3)), {}),
    "gym_statistics": (lambda: NormalizeObservation(gym.make("PointVector-v0")), {}),
    "gsde": (lambda: point(2, fixed_length=True), {"use_sde": True, "sde_sample_freq": 4, "use_sde_at_warmup": True}),
    "ou_noise": (
        lambda: point(2, fixed_length=True),
        {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.3))},
    ),
    "memory": (
        lambda: gym.make("PointVector-v0"),
        {
            "optimize_memory_usage": True,
            "replay_buffer_kwargs": {"handle_timeout_termination": False},
            "buffer_size": 70,
            "action_noise": NormalActionNoise(np.zeros(2), np.full(2, 0.1)),
        },
    ),
    "schedule": (lambda: gym.make("PointVector-v0"), {"learning_rate": LinearSchedule(1e-2, 0.0, 1.0), "policy_delay": 2}),
    "episodes": (lambda: gym.make("PointVector-v0"), {"train_freq": (1, "episode"), "gradient_steps": 3}),
    "long_rollouts": (lambda: point(1, fixed_length=True), {"train_freq": 4, "gradient_steps": 2}),
    "other_optimizer": (
        lambda: gym.make("PointVector-v0"),
        {"policy_kwargs": {"optimizer_class": th.optim.RMSprop}, "ent_coef": 0.1, "max_grad_norm": 0.1},
    ),
}


@pytest.fixture
def new_model(make_model: Any) -> Callable[..., Any]:
    def new(cls: type[SAC] = PathwiseAC, setting: str = "plain", **kwargs: Any) -> SAC:
        make_env, arguments = SETTINGS[setting]
        return make_model(cls, make_env(), **{"learning_starts": 24} | arguments | kwargs)

    return new


def disturb() -> None:
    """A new process has other random streams."""
    random.seed(os.urandom(4))
    np.random.seed(int.from_bytes(os.urandom(4), "little"))
    th.manual_seed(int.from_bytes(os.urandom(4), "little"))


def everything(model: SAC) -> dict[str, Any]:
    """
    What must be the same in the end: networks, optimizers, temperature, replay buffer, counters, statistics, streams.
    """
    buffer = model.replay_buffer
    assert buffer is not None
    normalizer = model.get_vec_normalize_env()
    state: dict[str, Any] = {
        "parameters": pickle.loads(pickle.dumps(model.get_parameters())),
        "log_ent_coef": None if model.log_ent_coef is None else model.log_ent_coef.detach().clone(),
        "counters": (model.num_timesteps, model._n_updates, model._episode_num, model._current_progress_remaining),
        "buffer": {name: value for name, value in vars(buffer).items() if name not in ("env", "device", "infos")},
        "episodes": [{key: value for key, value in info.items() if key != "t"} for info in model.ep_info_buffer or ()],
        "last_obs": model._last_obs,
        "streams": (random.getstate(), np.random.get_state()[1].tolist(), th.get_rng_state().tolist()),
    }
    if isinstance(buffer, HerReplayBuffer):
        # Episodes have a time
        state["infos"] = [{key: info[key] for key in info if key != "episode"} for info in buffer.infos.flat]
    if normalizer is not None:
        state["normalizer"] = [vars(normalizer.obs_rms), vars(normalizer.ret_rms), normalizer.returns]
    return state


def assert_same(a: Any, b: Any, path: str = "") -> None:
    if isinstance(a, th.Tensor):
        assert th.equal(a, b), path
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and np.array_equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}/{i}")
    else:
        assert a == b or isinstance(a, gym.Space), path


def learn(model: SAC, *callbacks: BaseCallback, total: int = TOTAL, **kwargs: Any) -> dict[str, Any]:
    model.learn(total, callback=list(callbacks), **kwargs)
    return everything(model)


def forget_last(folder: Path, leave: int = 1) -> None:
    """As if it had been killed before it took the last checkpoints."""
    for checkpoint in storage.checkpoints(folder)[:-leave]:
        shutil.rmtree(checkpoint)


@pytest.mark.parametrize("setting", SETTINGS)
def test_resumed_is_uninterrupted(new_model: Any, setting: str, tmp_path: Path) -> None:
    expected = learn(new_model(setting=setting))
    # Checkpoints change nothing
    assert_same(expected, learn(new_model(setting=setting), ExactCheckpointCallback(tmp_path, every=30, keep=9)))
    assert len(storage.checkpoints(tmp_path)) >= 2
    # From the first one on the end is the same, and so it is from one that the resumed training has taken
    forget_last(tmp_path)
    for _ in range(2):
        disturb()
        model = resume(tmp_path, SETTINGS[setting][0]())
        assert 30 <= model.num_timesteps < TOTAL
        assert_same(expected, learn(model, ExactCheckpointCallback(tmp_path, every=20)))


def test_every_algorithm(new_model: Any, algorithm: Any, tmp_path: Path) -> None:
    expected = learn(new_model(algorithm))
    learn(new_model(algorithm), ExactCheckpointCallback(tmp_path, every=50))
    disturb()
    model = resume(tmp_path, SETTINGS["plain"][0]())
    assert type(model) is algorithm
    assert_same(expected, learn(model, ExactCheckpointCallback(tmp_path, every=50)))


@pytest.mark.parametrize("distribution", ["beta", "gaussian_mixture"])
def test_other_distributions(new_model: Any, distribution: str, tmp_path: Path) -> None:
    policy_kwargs = {"distribution": distribution}
    expected = learn(new_model(LikelihoodRatioAC, policy_kwargs=policy_kwargs), total=70)
    learn(new_model(LikelihoodRatioAC, policy_kwargs=policy_kwargs), ExactCheckpointCallback(tmp_path, every=40), total=70)
    disturb()
    model = resume(tmp_path, SETTINGS["plain"][0]())
    assert_same(expected, learn(model, ExactCheckpointCallback(tmp_path, every=40), total=70))


@pytest.mark.parametrize("seed", [None, 3])
def test_remaining_steps(new_model: Any, seed: int | None, tmp_path: Path) -> None:
    """With ``reset_num_timesteps=False``, learn() is told what is left; also by a model that was never seeded."""
    model = new_model(setting="schedule", seed=seed)
    expected = learn(model, ExactCheckpointCallback(tmp_path, every=30, keep=9))
    forget_last(tmp_path)
    disturb()
    model = resume(tmp_path, SETTINGS["schedule"][0]())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        remaining = TOTAL - model.num_timesteps
        callback = ExactCheckpointCallback(tmp_path, every=30)
        assert_same(expected, learn(model, callback, total=remaining, reset_num_timesteps=False))


def test_another_total_is_warned_about(new_model: Any, tmp_path: Path) -> None:
    learn(new_model(), ExactCheckpointCallback(tmp_path, every=50))
    with pytest.warns(UserWarning, match="of a training of 100 steps, learn\\(\\) now goes for 140"):
        learn(resume(tmp_path, SETTINGS["plain"][0]()), ExactCheckpointCallback(tmp_path, every=50), total=140)


def test_learning_in_two_calls(new_model: Any, tmp_path: Path) -> None:
    """The same callback may serve a second call of learn(), and a checkpoint of the second goes on with the second."""

    def twice(*callbacks: BaseCallback) -> dict[str, Any]:
        model = new_model()
        learn(model, *callbacks, total=60)
        return learn(model, *callbacks, total=60, reset_num_timesteps=False)

    expected = twice()
    assert_same(expected, twice(ExactCheckpointCallback(tmp_path, every=25)))
    disturb()
    model = resume(tmp_path, SETTINGS["plain"][0]())
    assert model.num_timesteps > 60
    remaining = 120 - model.num_timesteps
    assert_same(expected, learn(model, ExactCheckpointCallback(tmp_path, 25), total=remaining, reset_num_timesteps=False))


def test_replay_buffer_is_there_before_learning(new_model: Any, tmp_path: Path) -> None:
    learn(new_model(), ExactCheckpointCallback(tmp_path, every=50))
    model = resume(tmp_path, SETTINGS["plain"][0]())
    assert model.replay_buffer is not None and model.replay_buffer.size() == model.num_timesteps
    # Only the filled part is on disk
    sizes = {path.name: path.stat().st_size for path in storage.checkpoints(tmp_path)[0].glob("*.npy")}
    assert max(sizes.values()) < TOTAL * 2 * 4 + 200


class Counter(BaseCallback):
    """
    A callback with state of all kinds.
    """

    def __init__(self, path: str = "here") -> None:
        super().__init__()
        self.path = path
        self.rewards: list[float] = []
        self.generator = np.random.default_rng(0)
        self.draws: list[float] = []
        self.file = open(os.devnull, "w")
        self.children = [Inner()]

    def _init_callback(self) -> None:
        self.children[0].init_callback(self.model)

    def _on_step(self) -> bool:
        self.rewards.append(float(self.locals["rewards"][0]))
        self.draws.append(self.generator.random())
        return self.children[0].on_step()


class Inner(BaseCallback):
    def _on_step(self) -> bool:
        return True


class Peculiar(BaseCallback):
    """A callback whose state pickle does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: Any = iter(())
        self.count = 0

    def _on_step(self) -> bool:
        self.count += 1
        self.steps = (count for count in range(self.count))
        return True

    def get_exact_state(self) -> int:
        return self.count

    def set_exact_state(self, state: int) -> None:
        self.count = state
        self.steps = (count for count in range(state))


def test_callbacks_go_on(new_model: Any, tmp_path: Path) -> None:
    def callbacks(path: str) -> list[BaseCallback]:
        return [
            Counter(path),
            CallbackList([Peculiar()]),
            ExactCheckpointCallback(tmp_path / "checkpoints", every=50),
            EvalCallback(point(2, seed=5), eval_freq=20, n_eval_episodes=2, verbose=0, log_path=str(tmp_path / path)),
            StopTrainingOnMaxEpisodes(14),
        ]

    before = callbacks("there")
    expected = learn(new_model(), *before, total=1000)
    disturb()
    after = callbacks("here")
    assert_same(expected, learn(resume(tmp_path / "checkpoints", SETTINGS["plain"][0]()), *after, total=1000))
    for name in ("rewards", "draws", "n_calls", "num_timesteps"):
        assert_same(getattr(before[0], name), getattr(after[0], name), name)
    assert after[0].children[0].n_calls == before[0].children[0].n_calls  # type: ignore[attr-defined]
    assert after[1].callbacks[0].count == before[1].callbacks[0].count  # type: ignore[attr-defined]
    assert after[4].n_episodes == 14  # type: ignore[attr-defined]
    # What the user says about paths holds; what the evaluations were is known, and their environment has gone on
    assert after[0].path == "here"  # type: ignore[attr-defined]
    assert after[3].evaluations_timesteps == before[3].evaluations_timesteps  # type: ignore[attr-defined]
    assert after[3].evaluations_results == before[3].evaluations_results  # type: ignore[attr-defined]
    assert (tmp_path / "here" / "evaluations.npz").exists()


def test_a_callback_fewer_is_warned_about(new_model: Any, tmp_path: Path) -> None:
    learn(new_model(), Counter(), ExactCheckpointCallback(tmp_path, every=50))
    with pytest.warns(UserWarning, match="holds the state of a Counter"):
        learn(resume(tmp_path, SETTINGS["plain"][0]()), ExactCheckpointCallback(tmp_path, every=50))


def test_with_gradient_probe(new_model: Any, tmp_path: Path) -> None:
    def callbacks() -> list[BaseCallback]:
        return [GradientProbeCallback(every=30, n_probes=4), ExactCheckpointCallback(tmp_path, every=50)]

    expected = learn(new_model(), *callbacks())
    disturb()
    assert_same(expected, learn(resume(tmp_path, SETTINGS["plain"][0]()), *callbacks()))


def test_logs_go_on(new_model: Any, tmp_path: Path) -> None:
    """Logger and monitor empty their files when they are made anew; the rows until the checkpoint come back."""

    def monitored() -> Monitor:
        return Monitor(gym.make("PointVector-v0"), str(tmp_path / "run"))

    def rows(path: Path) -> list[list[str]]:
        header, *rows = [line.split(",") for line in path.read_text().splitlines() if not line.startswith("#")]
        timed = [i for i, name in enumerate(header) if name == "t" or name.startswith("time/fps") or "elapsed" in name]
        return [[cell for i, cell in enumerate(row) if i not in timed] for row in [header, *rows]]

    def run(model: Any) -> tuple[list[list[str]], ...]:
        model.set_logger(configure(str(tmp_path), ["csv", "json", "log"]))
        model.learn(TOTAL, callback=ExactCheckpointCallback(tmp_path / "checkpoints", every=50), log_interval=2)
        steps = [json.loads(line)["time/total_timesteps"] for line in (tmp_path / "progress.json").read_text().splitlines()]
        assert (tmp_path / "log.txt").read_text().count("total_timesteps") == len(steps)
        return rows(tmp_path / "progress.csv"), rows(tmp_path / "run.monitor.csv"), [list(map(str, steps))]

    tiny = {"learning_starts": 24, "policy_kwargs": {"net_arch": [16]}, "batch_size": 16, "seed": 0}
    expected = run(PathwiseAC("MlpPolicy", monitored(), **tiny))
    assert len(expected[0]) > 4 and len(expected[1]) > 8
    disturb()
    assert run(resume(tmp_path / "checkpoints", monitored())) == expected


def test_time_goes_on(new_model: Any, tmp_path: Path) -> None:
    model = new_model()
    learn(model, ExactCheckpointCallback(tmp_path, every=50))
    with open(storage.checkpoints(tmp_path)[0] / "state.pkl", "rb") as file:
        elapsed = pickle.load(file)["time_elapsed"]
    model = resume(tmp_path, SETTINGS["plain"][0]())
    learn(model, ExactCheckpointCallback(tmp_path, every=50))
    assert time.time_ns() - model.start_time > elapsed


# --- Environments


class Levels(Wanderer):
    """An environment that gets harder with every episode: its state goes beyond its generator."""

    level = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        obs, info = super().reset(seed=seed)
        self.level += 1
        self.position = obs * self.level
        return self.position.copy(), info


class KnownLevels(Levels):
    def get_exact_state(self) -> Any:
        return self.level, self.position.copy()

    def set_exact_state(self, state: Any) -> None:
        self.level, self.position = state


def test_more_than_a_generator(make_model: Any, tmp_path: Path) -> None:
    """It is found out at the first checkpoint, not after days."""
    model = make_model(PathwiseAC, TimeLimit(Levels(), 10))
    with pytest.raises(NotRestorableError, match="state goes beyond"):
        model.learn(TOTAL, callback=ExactCheckpointCallback(tmp_path, every=50))
    assert model.num_timesteps < 70 and not storage.checkpoints(tmp_path)


def test_two_methods(make_model: Any, tmp_path: Path) -> None:
    """Restored in the middle of episodes of different lengths, with time limits and monitors."""

    def make_env() -> DummyVecEnv:
        return DummyVecEnv([lambda i=i: Monitor(TimeLimit(KnownLevels(), 7 + 2 * i)) for i in range(3)])

    def new() -> Any:
        noise = OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.3))
        memory = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
        return make_model(PathwiseAC, make_env(), action_noise=noise, **memory)

    expected = learn(new())
    learn(new(), ExactCheckpointCallback(tmp_path, every=50, keep=9))
    (checkpoint,) = storage.checkpoints(tmp_path)
    assert checkpoint.name.endswith("_51_steps")
    disturb()
    model = resume(tmp_path, make_env())
    with pytest.warns(UserWarning, match="last trajectory in the replay buffer will be truncated"):
        resumed = learn(model, ExactCheckpointCallback(tmp_path, every=50))
    # It was not
    assert_same(expected, resumed)


def test_own_generators(make_model: Any, tmp_path: Path) -> None:
    """Generators of any kind, wherever they are kept, and the global ones."""

    def make_env() -> gym.Env:
        class Own(Wanderer):
            observation_space = gym.spaces.Box(-9.0, 9.0, (2,), np.float32, seed=0)
            action_space = gym.spaces.Box(-2.0, 1.0, (2,), np.float32)

            def __init__(self) -> None:
                self.rng, self.old, self.python = np.random.default_rng(1), np.random.RandomState(2), random.Random(3)
                self.torch = th.Generator().manual_seed(4)

            def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
                super().reset(seed=seed)
                draws = [self.rng.random(), self.old.rand(), self.python.random(), th.rand(1, generator=self.torch).item()]
                draws += [random.random(), np.random.rand(), th.rand(1).item(), self.observation_space.sample()[0]]
                # The model draws its first actions from the same generator
                draws += [self.action_space.sample()[0]]
                self.position = np.array([sum(draws[::2]), sum(draws[1::2])], dtype=np.float32)
                return self.position.copy(), {}

        return TimeLimit(Own(), 10)

    def new() -> Any:
        return make_model(PathwiseAC, make_env(), learning_starts=80)

    expected = learn(new())
    assert_same(expected, learn(new(), ExactCheckpointCallback(tmp_path, every=50)))
    disturb()
    assert_same(expected, learn(resume(tmp_path, make_env()), ExactCheckpointCallback(tmp_path, every=50)))


def test_subprocesses(make_model: Any, tmp_path: Path) -> None:
    def make_env(**kwargs: Any) -> SubprocVecEnv:
        return make_vec_env("Pendulum-v1", 2, env_kwargs={"max_episode_steps": 10}, vec_env_cls=SubprocVecEnv, **kwargs)

    env = make_env()
    with pytest.raises(ValueError, match="wrapper_class=RestorableEnv"):
        make_model(PathwiseAC, env).learn(10, callback=ExactCheckpointCallback(tmp_path, every=50))
    env.close()
    envs = [make_env(wrapper_class=RestorableEnv) for _ in range(2)]
    expected = learn(make_model(PathwiseAC, envs[0]), ExactCheckpointCallback(tmp_path, every=50))
    disturb()
    assert_same(expected, learn(resume(tmp_path, envs[1]), ExactCheckpointCallback(tmp_path, every=50)))
    for env in envs:
        env.close()


def test_mujoco(make_model: Any, tmp_path: Path) -> None:
    pytest.importorskip("mujoco")

    def make_env() -> gym.Env:
        return gym.make("Hopper-v5", max_episode_steps=15)

    expected = learn(make_model(PathwiseAC, make_env()))
    learn(make_model(PathwiseAC, make_env()), ExactCheckpointCallback(tmp_path, every=50))
    disturb()
    assert_same(expected, learn(resume(tmp_path, make_env()), ExactCheckpointCallback(tmp_path, every=50)))


def test_never_between_episodes(make_model: Any, tmp_path: Path) -> None:
    env = DummyVecEnv([lambda i=i: TimeLimit(Wanderer(), 7 + 20 * i) for i in range(2)])
    with pytest.warns(UserWarning, match="have not ended together"):
        make_model(PathwiseAC, env).learn(80, callback=ExactCheckpointCallback(tmp_path, every=20))


@pytest.mark.parametrize(
    "make_env, message",
    [
        (lambda: point(2, fixed_length=True), "needs VecNormalize in DummyVecEnv|needs DummyVecEnv in VecNormalize"),
        (lambda: VecNormalize(point(3, fixed_length=True)), "needs 2 environments, got 3"),
    ],
)
def test_another_environment(new_model: Any, make_env: Any, message: str, tmp_path: Path) -> None:
    learn(new_model(setting="vec_normalize"), ExactCheckpointCallback(tmp_path, every=50))
    with pytest.raises(ValueError, match=message):
        learn(resume(tmp_path, make_env()), ExactCheckpointCallback(tmp_path, every=50))


# --- When, and how not


def test_stop_on_request(new_model: Any, tmp_path: Path) -> None:
    class Impatient(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 33:
                checkpoint.request_stop()
            return True

    expected = learn(new_model())
    checkpoint = ExactCheckpointCallback(tmp_path, every=10_000)
    model = new_model()
    learn(model, checkpoint, Impatient())
    assert 33 < model.num_timesteps < 33 + 12
    disturb()
    # A stop was requested then, not now
    checkpoint = ExactCheckpointCallback(tmp_path, every=10_000)
    assert_same(expected, learn(resume(tmp_path, SETTINGS["plain"][0]()), checkpoint, Impatient()))


def test_needs_its_callback(new_model: Any, tmp_path: Path) -> None:
    learn(new_model(), ExactCheckpointCallback(tmp_path, every=50))
    model = resume(tmp_path, SETTINGS["plain"][0]())
    model.predict(model.observation_space.sample())
    before = pickle.loads(pickle.dumps(model.get_parameters()))
    with pytest.raises(RuntimeError, match="not given the ExactCheckpointCallback"):
        model.learn(TOTAL)
    assert_same(before, model.get_parameters())


def test_does_not_mix_trainings(new_model: Any, tmp_path: Path) -> None:
    learn(new_model(), ExactCheckpointCallback(tmp_path, every=50))
    with pytest.raises(ValueError, match="holds checkpoints of another training"):
        learn(new_model(), ExactCheckpointCallback(tmp_path, every=50))


@pytest.mark.parametrize("name", ["every", "keep"])
def test_bad_arguments(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1"):
        ExactCheckpointCallback(tmp_path, **{"every": 1} | {name: 0})


def test_alarm_leaves_the_checkpoint(new_model: Any, tmp_path: Path) -> None:
    class Spoil(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 80:
                self.locals["rewards"][0] = np.nan
            return True

    expected = learn(new_model())
    with pytest.raises(NonFiniteError, match=r"reward is not finite at step 80.* The last checkpoint, of step 60, is good\."):
        learn(new_model(), Spoil(), ExactCheckpointCallback(tmp_path, every=30, keep=1))
    assert_same(expected, learn(resume(tmp_path, SETTINGS["plain"][0]()), ExactCheckpointCallback(tmp_path, every=30)))


def test_does_not_save_what_is_not_finite(new_model: Any, tmp_path: Path) -> None:
    class Spoil(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls > 70 and self.locals["dones"].all():
                next(iter(self.model.policy.critic_target.parameters())).data.fill_(np.inf)
            return True

    # No update notices it
    model = new_model(learning_starts=1000)
    with pytest.raises(NonFiniteError, match=r"parameter is not finite .*critic_target.* It is not saved"):
        learn(model, Spoil(), ExactCheckpointCallback(tmp_path, every=30, keep=1))
    assert resume(tmp_path, SETTINGS["plain"][0]()).num_timesteps <= 70


def test_refuses_to_be_nested(new_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be given to learn\\(\\) itself"):
        new_model().learn(10, callback=EveryNTimesteps(5, ExactCheckpointCallback(tmp_path, every=50)))


def test_keeps_the_last(new_model: Any, tmp_path: Path) -> None:
    learn(new_model(), ExactCheckpointCallback(tmp_path, every=10, keep=3))
    kept = storage.checkpoints(tmp_path)
    assert len(kept) == 3 == len(list(tmp_path.iterdir()))
    assert [storage.sequence_of(path) for path in kept] == sorted(map(storage.sequence_of, kept), reverse=True)
    assert resume(tmp_path, SETTINGS["plain"][0]()).num_timesteps >= 80


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        resume(tmp_path / "missing", "PointVector-v0")


# --- On disk


def test_damaged_checkpoint(new_model: Any, tmp_path: Path) -> None:
    """Of the files of the last one, each in turn is changed, cut or lost; the one before is taken, and ends alike."""
    expected = learn(new_model(), ExactCheckpointCallback(tmp_path, every=40))
    last, before = storage.checkpoints(tmp_path)
    for path in sorted(last.iterdir()):
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        for damaged in (bytes(flipped), content[: len(content) // 2], b"", None):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            with pytest.warns(UserWarning, match="damaged, the one before it is taken"):
                assert resume(tmp_path, SETTINGS["plain"][0]()).num_timesteps == int(before.name.split("_")[2])
            path.write_bytes(content)
    (last / "state.pkl").unlink()
    with pytest.warns(UserWarning, match="damaged"):
        model = resume(tmp_path, SETTINGS["plain"][0]())
    assert_same(expected, learn(model, ExactCheckpointCallback(tmp_path, every=40)))
    # The damaged one was replaced
    storage.verify(storage.checkpoints(tmp_path)[0])
    assert storage.checkpoints(tmp_path)[0].name == last.name


@pytest.mark.filterwarnings("ignore:A checkpoint is damaged")
def test_every_checkpoint_damaged(new_model: Any, tmp_path: Path) -> None:
    learn(new_model(), ExactCheckpointCallback(tmp_path, every=40))
    for checkpoint in storage.checkpoints(tmp_path):
        (checkpoint / "model.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        resume(tmp_path, SETTINGS["plain"][0]())


def test_unfinished_checkpoint_is_ignored_and_removed(new_model: Any, tmp_path: Path) -> None:
    learn(new_model(), ExactCheckpointCallback(tmp_path, every=40))
    last = storage.checkpoints(tmp_path)[0]
    unfinished = tmp_path / f".unfinished_checkpoint_000009_{TOTAL}_steps"
    last.rename(unfinished)
    model = resume(tmp_path, SETTINGS["plain"][0]())
    learn(model, ExactCheckpointCallback(tmp_path, every=40))
    assert not unfinished.exists()


def test_full_disk(new_model: Any, tmp_path: Path) -> None:
    """The operating system refuses files above a size: writing fails half way."""
    expected = learn(new_model(), total=140)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Filling(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls in (60, 90):
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000 if self.n_calls == 60 else limits[0], limits[1]))
            return True

    try:
        with pytest.warns(UserWarning, match=f"No checkpoint at step .*{os.strerror(errno.EFBIG)}.*Training goes on"):
            assert_same(
                expected, learn(new_model(), Filling(), ExactCheckpointCallback(tmp_path, every=20, keep=9), total=140)
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    steps = [int(path.name.split("_")[2]) for path in storage.checkpoints(tmp_path)]
    # None while it was full, and nothing left behind
    assert any(step > 90 for step in steps) and any(step <= 60 for step in steps)
    assert not any(60 < step <= 90 for step in steps)
    assert len(list(tmp_path.iterdir())) == len(steps)
    disturb()
    model = resume(tmp_path, SETTINGS["plain"][0]())
    assert_same(expected, learn(model, ExactCheckpointCallback(tmp_path, every=20), total=140))


def test_order_of_writing(new_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and the folder reach the disk before the rename, and the folder above after it."""
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(fd: int) -> None:
        events.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
        fsync(fd)

    def recorded_rename(source: Any, target: Any) -> None:
        events.append(("rename", os.path.basename(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    learn(new_model(), ExactCheckpointCallback(tmp_path, every=60))
    (checkpoint,) = storage.checkpoints(tmp_path)
    (renamed,) = [i for i, event in enumerate(events) if event == ("rename", checkpoint.name)]
    before = {name for _, name in events[:renamed]}
    assert before == {path.name for path in checkpoint.iterdir()} | {".unfinished_" + checkpoint.name}
    assert events[renamed + 1 :] == [("fsync", tmp_path.name)]


def test_other_software_is_warned_about(new_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn(new_model(), ExactCheckpointCallback(tmp_path, every=50))
    monkeypatch.setattr(th, "__version__", "1.0")
    with pytest.warns(UserWarning, match="comes from another system.*torch: .* then, 1.0 now"):
        resume(tmp_path, SETTINGS["plain"][0]())


def test_another_engine_is_warned_about(tmp_path: Path) -> None:
    model = PathwiseAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, learning_starts=10, seed=0, device="cpu")
    model.learn(400, callback=ExactCheckpointCallback(tmp_path, every=200))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resume(tmp_path, "Pendulum-v1", device="cpu")
    (checkpoint, *_) = storage.checkpoints(tmp_path)
    assert storage.verify(checkpoint)["engine"] == "FusedEngine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FusedEngine, "reason_not", staticmethod(lambda model: "it is not here"))
        with pytest.warns(UserWarning, match="another system.*engine: FusedEngine then, EagerEngine now"):
            resume(tmp_path, "Pendulum-v1", device="cpu")


# --- Killed


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("arguments", [["random", "--kills", "2", "--seed", "1"], ["writing", "--kills", "2", "--seed", "2"]])
def test_killed(arguments: list[str]) -> None:
    result = subprocess.run([sys.executable, KILL_TEST, *arguments], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 of 2" in result.stdout


def test_sigterm_example(tmp_path: Path) -> None:
    """A preemptible job is told to go, saves, and goes; the next one ends as one that was left alone."""
    script = Path(__file__).parents[1] / "examples" / "preemptible_job.py"

    def job(name: str) -> subprocess.Popen:
        arguments = [str(tmp_path / name), "--total-timesteps", "1200", "--every", "400"]
        return subprocess.Popen([sys.executable, "-u", script, *arguments], stdout=subprocess.PIPE, text=True)

    left_alone = job("alone")
    preempted = job("preempted")
    assert preempted.stdout is not None and left_alone.stdout is not None
    for line in preempted.stdout:
        if "episode" in line:
            preempted.send_signal(signal.SIGTERM)
            break
    rest = preempted.stdout.read()
    assert preempted.wait() == 0 and "saved" in rest, rest
    resumed, _ = job("preempted").communicate(timeout=120)
    expected, _ = left_alone.communicate(timeout=120)
    assert "goes on from step" in resumed
    assert resumed.splitlines()[-1] == expected.splitlines()[-1]
    assert "sha256" in expected.splitlines()[-1]
