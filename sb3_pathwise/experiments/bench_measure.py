"""
What a step costs, in time and memory: what is measured, with which models, and how measurements are summed up.

Which of it ``sb3-pathwise bench`` measures is decided in ``bench.py``, what it shows is in ``bench_report.py``. Nothing here
prints, except in the process whose memory is measured.
"""

import importlib
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import nn

REFERENCE = "sac"
PARTS = ("acting", "env", "sampling", "critic", "actor", "rest")
IMAGES = "images"


class Implementation(NamedTuple):
    """An algorithm to measure: where its class is, and arguments that differ from its defaults."""

    module: str
    name: str
    kwargs: dict[str, Any]


def crossq(width: int) -> dict[str, Any]:
    """
    :param width: of the critics' hidden layers
    :return: CrossQ's hyperparameters that cost time, for an algorithm of ours
    """
    net_arch = {"pi": [256, 256], "qf": [width, width]}
    return {"policy_delay": 3, "policy_kwargs": {"critic": "batch_renorm", "net_arch": net_arch}}


IMPLEMENTATIONS = {
    "sac": Implementation("stable_baselines3", "SAC", {}),
    "td3": Implementation("stable_baselines3", "TD3", {}),
    "tqc": Implementation("sb3_contrib", "TQC", {}),
    "crossq": Implementation("sb3_contrib", "CrossQ", {}),
    "crossq_256": Implementation("sb3_contrib", "CrossQ", {"policy_kwargs": {"net_arch": [256, 256]}}),
    "sbx_sac": Implementation("sbx", "SAC", {}),
    "pathwise_ac": Implementation("sb3_pathwise", "PathwiseAC", {}),
    "pathwise_ac_bfloat16": Implementation("sb3_pathwise", "PathwiseAC", {"precision": "bfloat16"}),
    "likelihood_ratio_ac": Implementation("sb3_pathwise", "LikelihoodRatioAC", {}),
    "measure_valued_ac": Implementation("sb3_pathwise", "MeasureValuedAC", {}),
    "mixed_ac": Implementation("sb3_pathwise", "MixedAC", {}),
    "pathwise_tqc": Implementation("sb3_pathwise", "PathwiseAC", {"policy_kwargs": {"critic": "quantile"}}),
    "likelihood_ratio_tqc": Implementation("sb3_pathwise", "LikelihoodRatioAC", {"policy_kwargs": {"critic": "quantile"}}),
    "pathwise_crossq": Implementation("sb3_pathwise", "PathwiseAC", crossq(256)),
    "likelihood_ratio_crossq": Implementation("sb3_pathwise", "LikelihoodRatioAC", crossq(256)),
    "pathwise_crossq_1024": Implementation("sb3_pathwise", "PathwiseAC", crossq(1024)),
}
# What is varied, one thing at a time, and for which algorithms
SCALING: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "n_action_samples": (("pathwise_ac", "likelihood_ratio_ac", "mixed_ac"), (4, 8, 16, 32)),
    "batch_size": (("sac", "pathwise_ac", "likelihood_ratio_ac"), (64, 256, 1024)),
    "width": (("sac", "pathwise_ac", "likelihood_ratio_ac"), (64, 256, 512)),
    "n_envs": (("sac", "pathwise_ac", "likelihood_ratio_ac"), (1, 4, 8)),
    "gradient_steps": (("sac", "pathwise_ac", "likelihood_ratio_ac"), (1, 4, 16)),
}


@dataclass
class Measurement:
    """What one algorithm took in one repetition."""

    algo: str
    env: str
    threads: int
    steps_per_second: float
    update_ms: float
    # Milliseconds per step of the environment, by part
    split: dict[str, float] = field(default_factory=dict)


class RandomImages(gym.Env):
    """Images of noise, 84 x 84, that cost nothing to make: memory is what is measured with them."""

    observation_space = spaces.Box(0, 255, (84, 84, 1), np.uint8)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.image = self.np_random.integers(0, 256, (84, 84, 1), np.uint8)
        self.time = 0
        return self.image, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        return self.image, float(action[0]), False, self.time >= 50, {}


def make_model(algo: str, env_id: str, n_envs: int = 1, width: int | None = None, **kwargs: Any) -> OffPolicyAlgorithm:
    """
    :param algo: key of ``IMPLEMENTATIONS``
    :param env_id: an environment, or "images"
    :param n_envs: number of environments
    :param width: of both hidden layers, if not the algorithm's default
    :param kwargs: arguments of the algorithm
    :return: the model, on the CPU unless ``kwargs`` say otherwise, its first 100 steps without learning
    :raises ModuleNotFoundError: if the package of the algorithm is not installed
    """
    implementation = IMPLEMENTATIONS[algo]
    cls = getattr(importlib.import_module(implementation.module), implementation.name)
    policy, env = ("CnnPolicy", RandomImages) if env_id == IMAGES else ("MlpPolicy", env_id)
    if width is not None:
        kwargs["policy_kwargs"] = implementation.kwargs.get("policy_kwargs", {}) | {"net_arch": [width, width]}
    defaults = {"learning_starts": 100, "buffer_size": 10_000, "seed": 0, "device": "cpu"}
    return cls(policy, make_vec_env(env, n_envs), **defaults | implementation.kwargs | kwargs)


class Stopwatch:
    """
    Where the time of a model goes: it wraps what the model calls, whoever wrote it.

    Between sampling and the step of the critics' optimizer is the critics' part, from there to the step of the actor's
    optimizer the actor's; an algorithm in another order, or without these optimizers, has everything in "rest".

    :param model: the model
    """

    def __init__(self, model: OffPolicyAlgorithm) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.mark = 0.0
        assert model.env is not None and model.replay_buffer is not None
        self._wrap(model, "_sample_action", "acting")
        self._wrap(model.env, "step", "env")
        self._wrap(model, "train", "train")
        self._wrap(model.replay_buffer, "sample", "sampling")
        for part in ("critic", "actor"):
            optimizer = getattr(getattr(model, part, None), "optimizer", None)
            if optimizer is not None:
                self._wrap_end(optimizer, part)

    def _wrap(self, owner: Any, name: str, part: str) -> None:
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.mark = time.perf_counter()
            self.seconds[part] += self.mark - start
            return result

        setattr(owner, name, timed)

    def _wrap_end(self, optimizer: Any, part: str) -> None:
        step = optimizer.step

        def timed(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            now = time.perf_counter()
            self.seconds[part] += now - self.mark
            self.mark = now
            return result

        optimizer.step = timed

    def split(self, total: float, n_steps: int) -> dict[str, float]:
        """
        :param total: seconds of the whole
        :param n_steps: steps of the environment
        :return: milliseconds per step, by part
        """
        parts = {part: self.seconds[part] for part in PARTS[:-1]}
        parts["rest"] = total - sum(parts.values())
        return {part: 1e3 * seconds / n_steps for part, seconds in parts.items()}


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """:param n_threads: torch's threads, meanwhile"""
    before = th.get_num_threads()
    th.set_num_threads(n_threads)
    try:
        yield
    finally:
        th.set_num_threads(before)


def measure(
    models: dict[str, OffPolicyAlgorithm], env_id: str, threads: int, n_steps: int, repetitions: int
) -> list[Measurement]:
    """
    :param models: models by their names, to be measured in turn
    :param env_id: their environment
    :param threads: torch's threads
    :param n_steps: steps of the environment in each repetition
    :param repetitions: how often each model has its turn
    :return: one measurement for each repetition and model
    """
    measurements = []
    with torch_threads(threads):
        for model in models.values():
            model.learn(model.learning_starts + 10 * model.n_envs)
        watches = {algo: Stopwatch(model) for algo, model in models.items()}
        for _ in range(repetitions):
            for algo, model in models.items():
                watch = watches[algo]
                watch.seconds.clear()
                n_updates, n_before = model._n_updates, model.num_timesteps
                start = time.perf_counter()
                model.learn(n_steps, reset_num_timesteps=False)
                total = time.perf_counter() - start
                taken = model.num_timesteps - n_before
                measurements.append(
                    Measurement(
                        algo,
                        env_id,
                        threads,
                        steps_per_second=taken / total,
                        update_ms=1e3 * watch.seconds["train"] / max(model._n_updates - n_updates, 1),
                        split=watch.split(total, taken),
                    )
                )
    return measurements


def product_rate(dtype: th.dtype = th.float32, threads: int = 1, size: int = 256, device: str = "cpu") -> float:
    """
    :param dtype: of the matrices
    :param threads: torch's threads
    :param device: where they are
    :param size: rows and columns
    :return: multiplications and additions per second in products of square matrices, the median of several trials
    """
    with torch_threads(threads), th.no_grad():
        left, right, out = (th.rand(size, size).to(device, dtype) for _ in range(3))
        trials = []
        for _ in range(7):
            start = time.perf_counter()
            for _ in range(50):
                th.mm(left, right, out=out)
            # Waits for the device
            out[0, 0].item()
            trials.append(50 * 2 * size**3 / (time.perf_counter() - start))
    return statistics.median(trials)


def product_operations(model: OffPolicyAlgorithm, batch_size: int) -> int:
    """
    Multiplications and additions that the matrix products of one update of SAC need, with one action per state: forward, the
    actor for this state and the next, target critics, critics twice; backward, critics (weights; inputs but the first), the
    critics' inputs for the actor, and the actor.

    :param model: SAC, or an algorithm with its networks
    :param batch_size: states per update
    :return: their number
    """

    def forward(network: nn.Module) -> tuple[int, int]:
        sizes = [layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Linear)]
        return 2 * batch_size * sum(sizes), 2 * batch_size * sizes[0]

    actor, actor_first = forward(model.policy.actor)  # type: ignore[arg-type]
    total = 4 * actor - actor_first
    for q_net in model.policy.critic.q_networks:  # type: ignore[union-attr]
        critic, critic_first = forward(q_net)
        total += 6 * critic - critic_first
    return total


def measure_memory(algo: str, env_id: str) -> float:
    """
    :param algo: key of ``IMPLEMENTATIONS``
    :param env_id: an environment, or "images"
    :return: peak memory of a process that trains the algorithm, in MB
    :raises RuntimeError: if the process fails
    """
    command = [sys.executable, "-m", "sb3_pathwise.experiments.bench", "--memory-of", algo, env_id]
    process = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if process.returncode:
        raise RuntimeError(f"{algo} on {env_id} failed: {process.stderr.strip()[-300:]}")
    return float(process.stdout.split()[-1])


def train_and_print_memory(algo: str, env_id: str) -> None:
    """
    :param algo: key of ``IMPLEMENTATIONS``
    :param env_id: an environment, or "images"
    """
    make_model(algo, env_id, buffer_size=1_000).learn(130)
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage() would count what the process was before it became this one: a copy of a larger one
        (kilobytes,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        print(int(kilobytes) / 2**10)
    else:
        # macOS counts in bytes
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def measure_scaling(env_id: str, algos: Iterable[str], n_updates: int, quick: bool, device: str) -> list[dict[str, Any]]:
    """
    :param env_id: the environment
    :param algos: which of the algorithms to measure
    :param n_updates: updates in each of three repetitions
    :param quick: two values of each variable only
    :param device: where the models are
    :return: a row for each variable, value and algorithm, with the milliseconds of an update, and of a step of all
        environments with what it learns from them
    """
    rows = []
    for variable, (varied, values) in SCALING.items():
        for value in values[:2] if quick else values:
            models = {}
            for algo in varied:
                if algo in algos:
                    kwargs: dict[str, Any] = {"gradient_steps": -1} if variable == "n_envs" else {}
                    models[algo] = make_model(algo, env_id, device=device, **kwargs | {variable: value})
            n_steps = max(n_updates // value, 2) if variable == "gradient_steps" else n_updates
            results = measure(models, env_id, 1, n_steps, repetitions=3)
            for algo, model in models.items():
                mine = [result for result in results if result.algo == algo]
                rows.append(
                    {
                        "variable": variable,
                        "value": value,
                        "algo": algo,
                        "update_ms": statistics.median(result.update_ms for result in mine),
                        "step_ms": statistics.median(1e3 * model.n_envs / result.steps_per_second for result in mine),
                    }
                )
    return rows


def summarize(measurements: list[Measurement]) -> list[dict[str, Any]]:
    """
    :param measurements: of all repetitions
    :return: one row for each environment, number of threads and algorithm: medians, and the ratio of its steps per second to
        SAC's in the same repetition with its quartiles (absent without SAC)
    """
    groups: dict[tuple[str, int, str], list[Measurement]] = defaultdict(list)
    for measurement in measurements:
        groups[measurement.env, measurement.threads, measurement.algo].append(measurement)
    rows = []
    for (env_id, threads, algo), group in groups.items():
        row: dict[str, Any] = {"env": env_id, "threads": threads, "algo": algo}
        for name in ("steps_per_second", "update_ms"):
            row[name] = statistics.median(getattr(measurement, name) for measurement in group)
        row["split"] = {part: statistics.median(measurement.split[part] for measurement in group) for part in PARTS}
        reference = groups.get((env_id, threads, REFERENCE))
        if reference:
            ratios = [ours.steps_per_second / sac.steps_per_second for ours, sac in zip(group, reference, strict=True)]
            row["ratio"] = statistics.median(ratios)
            row["ratio_quartiles"] = np.quantile(ratios, [0.25, 0.75]).tolist()
        rows.append(row)
    return rows
