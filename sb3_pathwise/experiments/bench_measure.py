"""
What a step costs, in time and memory: what is measured, with which models, and how measurements are summed up.

Which of it ``sb3-pathwise bench`` measures is decided in ``bench.py``, what it shows is in ``bench_report.py``. Nothing here
prints, except in the process whose memory is measured.
"""

import importlib
import os
import pathlib
import pickle
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_pathwise.engines import ENGINES, choose_engine
from sb3_pathwise.engines.kernels.linear import uses_onednn
from sb3_pathwise.learner import ActorCritic

REFERENCE = "sac"
PARTS = ("acting", "env", "sampling", "update", "rest")
IMAGES = "images"


class Implementation(NamedTuple):
    """An algorithm to measure: where its class is, arguments that differ from its defaults, and its like beside SAC."""

    module: str
    name: str
    kwargs: Mapping[str, Any] = MappingProxyType({})
    peer: str = ""


def _crossq(name: str, peer: str, width: int = 256) -> Implementation:
    policy_kwargs = {
        "critic": "batch_renorm",
        "net_arch": {"pi": [256, 256], "qf": [width, width]},
        "optimizer_kwargs": {"betas": (0.5, 0.999)},
    }
    kwargs = {"learning_rate": 1e-3, "policy_delay": 3, "ent_coef": "auto_0.1", "policy_kwargs": policy_kwargs}
    return Implementation("sb3_pathwise", name, kwargs, peer)


_NARROW = {"policy_kwargs": {"net_arch": {"pi": [256, 256], "qf": [256, 256]}}}
_QUANTILE = {"policy_kwargs": {"critic": "quantile"}}
IMPLEMENTATIONS = {
    "sac": Implementation("stable_baselines3", "SAC"),
    "td3": Implementation("stable_baselines3", "TD3"),
    "tqc": Implementation("sb3_contrib", "TQC"),
    "crossq": Implementation("sb3_contrib", "CrossQ"),
    "crossq_256": Implementation("sb3_contrib", "CrossQ", _NARROW),
    "sbx_sac": Implementation("sbx", "SAC"),
    "pathwise_ac": Implementation("sb3_pathwise", "PathwiseAC", peer="sbx_sac"),
    "pathwise_ac_eager": Implementation("sb3_pathwise", "PathwiseAC", {"engine": "eager"}),
    "pathwise_ac_cuda_graph": Implementation("sb3_pathwise", "PathwiseAC", {"engine": "cuda_graph"}),
    "pathwise_ac_bfloat16": Implementation("sb3_pathwise", "PathwiseAC", {"precision": "bfloat16"}),
    "likelihood_ratio_ac": Implementation("sb3_pathwise", "LikelihoodRatioAC"),
    "likelihood_ratio_ac_cuda_graph": Implementation("sb3_pathwise", "LikelihoodRatioAC", {"engine": "cuda_graph"}),
    "measure_valued_ac": Implementation("sb3_pathwise", "MeasureValuedAC"),
    "mixed_ac": Implementation("sb3_pathwise", "MixedAC"),
    "pathwise_tqc": Implementation("sb3_pathwise", "PathwiseAC", _QUANTILE, "tqc"),
    "likelihood_ratio_tqc": Implementation("sb3_pathwise", "LikelihoodRatioAC", _QUANTILE, "tqc"),
    "pathwise_crossq": _crossq("PathwiseAC", "crossq_256"),
    "likelihood_ratio_crossq": _crossq("LikelihoodRatioAC", "pathwise_crossq"),
    "pathwise_crossq_1024": _crossq("PathwiseAC", "crossq", 1024),
}
_GRAPHS = ("pathwise_ac_cuda_graph", "likelihood_ratio_ac_cuda_graph")
# Measured in other work than the first too
CORE = ("sac", "sbx_sac", "pathwise_ac", "pathwise_ac_eager", "pathwise_ac_bfloat16", "likelihood_ratio_ac", *_GRAPHS)
# What is varied, one thing at a time, and for which algorithms
SCALING: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "n_action_samples": (("pathwise_ac", "likelihood_ratio_ac", "mixed_ac", *_GRAPHS), (4, 8, 16, 32)),
    **dict.fromkeys(("batch_size", "width"), (("sac", "pathwise_ac", "likelihood_ratio_ac"), (64, 256, 512))),
    **dict.fromkeys(("n_envs", "gradient_steps"), (("sac", "pathwise_ac", "likelihood_ratio_ac"), (1, 4, 16))),
}


class Work(NamedTuple):
    """What algorithms are to do: in which environment, with how many of torch's threads, and with what changed."""

    env: str
    algos: Sequence[str]
    threads: int = 1
    variable: str = ""
    value: int = 0

    @property
    def name(self) -> str:
        threads = f", {self.threads} threads" if self.threads > 1 else ""
        return self.env + threads + (f", {self.variable} {self.value}" if self.variable else "")


@dataclass
class Measurement:
    """What one algorithm took in one turn; the split is in milliseconds per step of the environment, by part."""

    steps_per_second: float
    update_ms: float
    split: dict[str, float]


class RandomImages(gym.Env):
    """Images of noise, 84 x 84, that cost nothing to make."""

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
    :param n_envs: number of environments; if several, there is an update for each transition
    :param width: of both hidden layers, if not the algorithm's default
    :param kwargs: arguments of the algorithm
    :return: the model, on the CPU unless ``kwargs`` say otherwise, its first 100 steps without learning
    :raises ModuleNotFoundError: if the package of the algorithm is not installed
    :raises ValueError: if the algorithm has no policy for images, or no engine can run it
    """
    implementation = IMPLEMENTATIONS[algo]
    cls = getattr(importlib.import_module(implementation.module), implementation.name)
    policy, env = ("CnnPolicy", RandomImages) if env_id == IMAGES else ("MlpPolicy", env_id)
    defaults: dict[str, Any] = {"learning_starts": 100, "buffer_size": 1_000, "seed": 0, "device": "cpu"}
    defaults["gradient_steps"] = 1 if n_envs == 1 else -1
    if width is not None:
        kwargs["policy_kwargs"] = implementation.kwargs.get("policy_kwargs", {}) | {"net_arch": [width, width]}
    return cls(policy, make_vec_env(env, n_envs), **defaults | {**implementation.kwargs} | kwargs)


def describe(model: OffPolicyAlgorithm) -> dict[str, Any]:
    """:return: The engine that runs a model of ours, and the megabytes of the pickled policy, if it is one of torch's"""
    names = {engine: name for name, engine in ENGINES.items()}
    return {
        "engine": names[type(choose_engine(model))] if isinstance(model, ActorCritic) else "",
        "policy_mb": len(pickle.dumps(model.policy)) / 2**20 if any(True for _ in model.policy.parameters()) else None,
    }


def processor() -> str:
    """:return: The CPU's name, and the library of the fused engine's products"""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    library = "oneDNN" if uses_onednn(th.float32) else "MKL" if th.backends.mkl.is_available() else "PyTorch's BLAS"
    return f"{name or platform.machine()}, products by {library}"


def device_name(device: str) -> str:
    """:return: "cpu", or what a GPU is called by its maker"""
    return th.cuda.get_device_name(device) if th.device(device).type == "cuda" else device


def clock_for(threads: int, device: str = "cpu") -> Callable[[], float]:
    """
    :return: A clock, in seconds: of the process's CPU time where it does all the work on one core, whatever else the machine
        does meanwhile; else of the time that passes
    """
    return time.process_time if threads == 1 and device == "cpu" else time.perf_counter


class Stopwatch:
    """
    Where the time of a model goes: it wraps what the model calls, whoever wrote it, and nothing that an engine looks at.

    :param model: the model
    :param clock: in seconds
    """

    def __init__(self, model: OffPolicyAlgorithm, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        assert model.env is not None and model.replay_buffer is not None
        self._wrap(model, "_sample_action", "acting")
        self._wrap(model.env, "step", "env")
        self._wrap(model.replay_buffer, "sample", "sampling")
        self._wrap(model, "train", "train")

    def _wrap(self, owner: Any, name: str, part: str) -> None:
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.clock()
            result = function(*args, **kwargs)
            self.seconds[part] += self.clock() - start
            return result

        setattr(owner, name, timed)

    def split(self, total: float, n_steps: int) -> dict[str, float]:
        """:return: Milliseconds per step of the environment, by part, of a total in seconds"""
        parts = {part: self.seconds[part] for part in PARTS[:3]}
        parts["update"] = self.seconds["train"] - self.seconds["sampling"]
        parts["rest"] = total - sum(parts.values())
        return {part: 1e3 * seconds / n_steps for part, seconds in parts.items()}


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """The number of torch's threads, meanwhile."""
    before = th.get_num_threads()
    th.set_num_threads(n_threads)
    try:
        yield
    finally:
        th.set_num_threads(before)


def measure(
    models: dict[str, OffPolicyAlgorithm], n_steps: int, repetitions: int, threads: int = 1, device: str = "cpu"
) -> dict[str, list[Measurement]]:
    """:return: The turns of models that are measured in turn, each of so many steps after some that are not measured"""
    turns: dict[str, list[Measurement]] = {algo: [] for algo in models}
    clock = clock_for(threads, device)
    with torch_threads(threads):
        for model in models.values():
            model.learn(model.learning_starts + n_steps)
        watches = [Stopwatch(model, clock) for model in models.values()]
        for _ in range(repetitions):
            for (algo, model), watch in zip(models.items(), watches, strict=True):
                watch.seconds.clear()
                n_updates, n_before = model._n_updates, model.num_timesteps
                start = clock()
                model.learn(n_steps, reset_num_timesteps=False)
                total = clock() - start
                taken = model.num_timesteps - n_before
                update_ms = 1e3 * watch.seconds["train"] / max(model._n_updates - n_updates, 1)
                turns[algo].append(Measurement(taken / total, update_ms, watch.split(total, taken)))
    return turns


def summarize(turns: dict[str, list[Measurement]]) -> dict[str, dict[str, Any]]:
    """
    :return: For each algorithm medians; the quartiles of the ratios of its steps per second to those of SAC and of its like,
        if they were measured, in the same turn; and all measurements
    """
    rows = {}
    for algo, mine in turns.items():
        row: dict[str, Any] = {"algo": algo, "ratios": {}}
        row["steps_per_second"] = statistics.median(measurement.steps_per_second for measurement in mine)
        row["update_ms"] = statistics.median(measurement.update_ms for measurement in mine)
        row["split"] = {part: statistics.median(measurement.split[part] for measurement in mine) for part in PARTS}
        for other in filter(turns.__contains__, (REFERENCE, IMPLEMENTATIONS[algo].peer)):
            ratios = [a.steps_per_second / b.steps_per_second for a, b in zip(mine, turns[other], strict=True)]
            row["ratios"][other] = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
        rows[algo] = row | {"turns": [asdict(measurement) for measurement in mine]}
    return rows


def measure_memory(algo: str, env_id: str) -> float:
    """:return: Peak memory of a process that trains the algorithm, in MB"""
    command = [sys.executable, "-m", "sb3_pathwise.experiments.bench", "--memory-of", algo, env_id]
    process = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if process.returncode:
        raise RuntimeError(f"{algo} on {env_id} failed: {process.stderr.strip()[-300:]}")
    return float(process.stdout.split()[-1])


def train_and_print_memory(algo: str, env_id: str) -> None:
    """What that process does."""
    make_model(algo, env_id).learn(130)
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        # getrusage() would count what the process was before it became this one: a copy of a larger one
        (kilobytes,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        print(int(kilobytes) / 2**10)
    else:
        # macOS counts in bytes
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
