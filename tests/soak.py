"""
An hour of updates with every feature on: does memory stay flat, does speed stay constant, is everything finite?

    python tests/soak.py                # an hour; the first ten minutes are warm-up
    python tests/soak.py --minutes 3 --warm-up 1

Four models learn in turn, one for each algorithm, so that features that exclude each other all get their share. Prints a line
a minute, then the figures; the exit status is 1 if resident memory has changed by more than 2 % since the warm-up, if updates
have come to take more than 10 % longer (CPU time, first against last third), or if a parameter is not finite.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_pathwise import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC
from sb3_pathwise.callbacks import GradientProbeCallback
from sb3_pathwise.learner import ActorCritic
from sb3_pathwise.persistence import ExactCheckpointCallback, resume

STEPS = 800


def pendulum(n_envs: int = 1) -> VecEnv:
    return make_vec_env("Pendulum-v1", n_envs, env_kwargs={"max_episode_steps": 100})


def bits() -> VecEnv:
    return make_vec_env(lambda: BitFlippingEnv(n_bits=4, continuous=True, max_steps=10))


def normalized(n_envs: int = 4) -> VecNormalize:
    return VecNormalize(pendulum(n_envs))


def stacked() -> VecFrameStack:
    return VecFrameStack(pendulum(2), 3)


COMMON: dict[str, Any] = {"buffer_size": 5_000, "batch_size": 64, "learning_starts": 200, "seed": 0}
MODELS: dict[type[ActorCritic], tuple[Any, dict[str, Any]]] = {
    PathwiseAC: (
        normalized,
        {
            "n_steps": 3,
            "use_sde": True,
            "sde_sample_freq": 8,
            "use_sde_at_warmup": True,
            "gradient_steps": -1,
            "policy_delay": 2,
            "max_grad_norm": 10.0,
            "learning_rate": LinearSchedule(1e-3, 1e-4, 1.0),
            "action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(1), np.full(1, 0.1)),
            "policy_kwargs": {"net_arch": {"pi": [64], "qf": [64, 64]}, "n_critics": 3},
        },
    ),
    LikelihoodRatioAC: (
        bits,
        {
            "policy": "MultiInputPolicy",
            "replay_buffer_class": HerReplayBuffer,
            "replay_buffer_kwargs": {"copy_info_dict": True},
            "policy_kwargs": {"net_arch": [64, 64], "distribution": "gaussian_mixture"},
        },
    ),
    MeasureValuedAC: (
        stacked,
        {
            "optimize_memory_usage": True,
            "replay_buffer_kwargs": {"handle_timeout_termination": False},
            "train_freq": (4, "step"),
            "gradient_steps": 4,
            "policy_kwargs": {"net_arch": [64, 64], "activation_fn": th.nn.Tanh, "optimizer_class": th.optim.AdamW},
        },
    ),
    MixedAC: (
        pendulum,
        {"precision": "bfloat16", "ent_coef": "auto_0.1", "policy_kwargs": {"net_arch": [64, 64], "distribution": "beta"}},
    ),
}


class Trainee:
    """
    A model with all its callbacks.

    :param cls: Its class
    :param folder: For logs and checkpoints
    """

    def __init__(self, cls: type[ActorCritic], folder: Path) -> None:
        self.make_env, kwargs = MODELS[cls]
        self.name, self.folder = cls.__name__, folder / cls.__name__
        self.model = cls(env=self.make_env(), **{"policy": "MlpPolicy"} | COMMON | kwargs)
        self.model.set_logger(configure(str(self.folder), ["csv", "json", "tensorboard"]))
        mixture = self.model.policy_kwargs.get("distribution") == "gaussian_mixture"
        routes = ("likelihood_ratio",) if mixture else ("pathwise", "likelihood_ratio")
        self.callbacks = [
            ExactCheckpointCallback(self.folder / "checkpoints", every=STEPS // 2),
            EvalCallback(self.make_env(), eval_freq=1_000, n_eval_episodes=2, verbose=0, warn=False),
            GradientProbeCallback(every=2_000, routes=routes, n_probes=8),
        ]

    def learn(self) -> tuple[float, float]:
        """
        :return: CPU time and elapsed time of an update, with all that comes with it
        """
        n_updates, cpu, elapsed = self.model._n_updates, time.process_time(), time.perf_counter()
        self.model.learn(STEPS, callback=list(self.callbacks), reset_num_timesteps=False)
        n_updates = max(self.model._n_updates - n_updates, 1)
        assert all(bool(th.isfinite(value).all()) for value in self.model.policy.state_dict().values()), self.name
        return (time.process_time() - cpu) / n_updates, (time.perf_counter() - elapsed) / n_updates


def resident_megabytes() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(minutes: float, warm_up: float, folder: Path) -> bool:
    """
    :param minutes: How long
    :param warm_up: How much of it does not count
    :param folder: For logs and checkpoints
    :return: whether memory stayed flat and speed constant
    """
    trainees = [Trainee(cls, folder) for cls in MODELS]
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    memory: list[float] = []
    begin, last_line = time.perf_counter(), -1
    while (passed := (time.perf_counter() - begin) / 60) < minutes:
        for trainee in trainees:
            duration = trainee.learn()
            if passed >= warm_up:
                times[trainee.name].append(duration)
        if passed >= warm_up:
            memory.append(resident_megabytes())
        if int(passed) > last_line:
            last_line = int(passed)
            n_updates = sum(trainee.model._n_updates for trainee in trainees)
            print(f"{passed:5.1f} min  {n_updates:9,d} updates  {resident_megabytes():7.1f} MiB", flush=True)

    if len(memory) < 3:
        print(f"{len(memory)} rounds since the warm-up say nothing: give it more minutes")
        return False
    growth = memory[-1] / memory[0] - 1
    print(f"resident memory: {memory[0]:.1f} MiB after {warm_up:g} min, {memory[-1]:.1f} MiB in the end: {growth:+.2%}")
    good = abs(growth) <= 0.02
    for trainee in trainees:
        cpu, elapsed = (np.array(column) for column in zip(*times[trainee.name], strict=True))
        third = max(len(cpu) // 3, 1)
        # The median, since other processes share the caches
        slower = float(np.median(cpu[-third:]) / np.median(cpu[:third])) - 1
        print(
            f"{trainee.name:18} {trainee.model._n_updates:9,d} updates, {1e3 * np.median(cpu):.2f} ms CPU time and "
            f"{1e3 * np.median(elapsed):.2f} ms each; the last third took {slower:+.1%}"
        )
        good = good and slower <= 0.1
        resume(trainee.folder / "checkpoints", trainee.make_env())
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--warm-up", type=float, default=10.0)
    arguments = parser.parse_args()
    if not 0 <= arguments.warm_up < arguments.minutes:
        parser.error("--warm-up must be shorter than --minutes")
    th.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        good = soak(arguments.minutes, arguments.warm_up, Path(folder))
    print("passed" if good else "FAILED")
    sys.exit(not good)


if __name__ == "__main__":
    main()
