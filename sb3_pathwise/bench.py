"""
The command ``sb3-pathwise bench``: what a step costs, against other implementations, in turn within one run.

Only time and memory are measured here. Who learns better is for ``compare.py``.
"""

import argparse
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import nn

from sb3_pathwise import __version__
from sb3_pathwise.experiments.palette import MARKERS, colour

REFERENCE = "sac"
PARTS = ("acting", "env", "sampling", "critic", "actor", "rest")
# Okabe and Ito's
PART_COLOURS = ("#56B4E9", "#F0E442", "#009E73", "#0072B2", "#D55E00", "#999999")
IMAGES = "images"
# These have no policy for images
NOT_FOR_IMAGES = ("crossq", "sbx_sac")
EXIT_BAD_INPUT = 2


class Implementation(NamedTuple):
    """An algorithm to measure: where its class is, and arguments that differ from its defaults."""

    module: str
    name: str
    kwargs: dict[str, Any]


IMPLEMENTATIONS = {
    "sac": Implementation("stable_baselines3", "SAC", {}),
    "td3": Implementation("stable_baselines3", "TD3", {}),
    "tqc": Implementation("sb3_contrib", "TQC", {}),
    "crossq": Implementation("sb3_contrib", "CrossQ", {}),
    "sbx_sac": Implementation("sbx", "SAC", {}),
    "pathwise_ac": Implementation("sb3_pathwise", "PathwiseAC", {}),
    "pathwise_ac_bfloat16": Implementation("sb3_pathwise", "PathwiseAC", {"precision": "bfloat16"}),
    "likelihood_ratio_ac": Implementation("sb3_pathwise", "LikelihoodRatioAC", {}),
    "measure_valued_ac": Implementation("sb3_pathwise", "MeasureValuedAC", {}),
    "mixed_ac": Implementation("sb3_pathwise", "MixedAC", {}),
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
        kwargs["policy_kwargs"] = {"net_arch": [width, width]}
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
    command = [sys.executable, "-m", "sb3_pathwise.bench", "--memory-of", algo, env_id]
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


def print_tables(console: Console, report: dict[str, Any]) -> None:
    """
    :param console: where to
    :param report: what ``run`` returned
    """
    for env_id, threads in dict.fromkeys((row["env"], row["threads"]) for row in report["speed"]):
        table = Table(title=f"{env_id}, {threads} thread{'s' * (threads > 1)}: milliseconds per step, by part")
        for column in ("algorithm", "steps/s", "against SAC", "update (ms)", *PARTS, "product limit", "memory (MB)"):
            table.add_column(column, justify="left" if column == "algorithm" else "right")
        for row in report["speed"]:
            if (row["env"], row["threads"]) != (env_id, threads):
                continue
            low, high = row.get("ratio_quartiles", (float("nan"),) * 2)
            memory = report["memory_mb"].get(env_id, {}).get(row["algo"])
            table.add_row(
                row["algo"],
                f"{row['steps_per_second']:.1f}",
                f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})" if "ratio" in row else "",
                f"{row['update_ms']:.2f}",
                *(f"{row['split'][part]:.2f}" for part in PARTS),
                f"{row['share_of_product_limit']:.0%}" if "share_of_product_limit" in row else "",
                "" if memory is None else f"{memory:.0f}",
            )
        console.print(table)
    if report["memory_mb"].get(IMAGES):
        table = Table("algorithm", "peak memory (MB)", title="84x84 images, CnnPolicy")
        for algo, memory in report["memory_mb"][IMAGES].items():
            table.add_row(algo, f"{memory:.0f}")
        console.print(table)
    if report["scaling"]:
        table = Table("variable", "value", "algorithm", "update (ms)", "step (ms)", title="How cost grows (1 thread)")
        for row in report["scaling"]:
            values = (f"{row[name]:.2f}" for name in ("update_ms", "step_ms"))
            table.add_row(row["variable"], str(row["value"]), row["algo"], *values)
        console.print(table)


def draw(report: dict[str, Any], path: Path) -> None:
    """
    One figure: where the time of a step goes, and how that of an update grows.

    :param report: what ``run`` returned
    :param path: PNG file
    """
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys((row["env"], row["threads"]) for row in report["speed"]))
    variables = list(dict.fromkeys(row["variable"] for row in report["scaling"]))
    figure = Figure(figsize=(13, 7.5 if variables else 4), layout="constrained")
    rows_of_axes = figure.subfigures(2 if variables else 1, 1, squeeze=False, height_ratios=[5, 4][: 1 + bool(variables)])
    for ax, (env_id, threads) in zip(rows_of_axes[0, 0].subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        _draw_split(ax, [row for row in report["speed"] if (row["env"], row["threads"]) == (env_id, threads)])
        ax.set_title(f"{env_id}, {threads} thread{'s' * (threads > 1)}")
        ax.set_xlabel("milliseconds per step; times the speed of SAC")
    bars = rows_of_axes[0, 0].axes[0].get_legend_handles_labels()
    rows_of_axes[0, 0].legend(*bars, loc="outside upper center", ncols=len(PARTS), frameon=False)
    if variables:
        for ax, variable in zip(rows_of_axes[1, 0].subplots(1, len(variables), squeeze=False)[0], variables, strict=True):
            _draw_growth(ax, [row for row in report["scaling"] if row["variable"] == variable])
            ax.set(xlabel=variable, ylim=(0, None))
        rows_of_axes[1, 0].axes[0].set_ylabel("milliseconds per update")
        labels = {line.get_label(): line for ax in rows_of_axes[1, 0].axes for line in ax.get_lines()}
        rows_of_axes[1, 0].legend(labels.values(), labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=100)


def _draw_split(ax: Any, rows: list[dict[str, Any]]) -> None:
    totals = [sum(row["split"].values()) for row in rows]
    reference = next((total for row, total in zip(rows, totals, strict=True) if row["algo"] == REFERENCE), max(totals))
    # One that is many times slower would leave no room for the others
    limit = 1.4 * max(total for total in totals if total <= 3 * reference)
    left = np.zeros(len(rows))
    for part, part_colour in zip(PARTS, PART_COLOURS, strict=True):
        widths = np.array([row["split"][part] for row in rows])
        ax.barh([row["algo"] for row in rows], widths, left=left, label=part, color=part_colour)
        left += widths
    for place, (row, total) in enumerate(zip(rows, totals, strict=True)):
        text = f"{total:.1f} ms" + (f"; x{row['ratio']:.2f}" if "ratio" in row else "")
        beyond = total > limit
        ax.text(min(total, limit) * 0.99 if beyond else total + 0.01 * limit, place, text, va="center", fontsize="small")
        if beyond:
            ax.texts[-1].set(ha="right", color="white")
    ax.set_xlim(0, limit)
    ax.invert_yaxis()


def _draw_growth(ax: Any, rows: list[dict[str, Any]]) -> None:
    values = sorted({row["value"] for row in rows})
    for algo in dict.fromkeys(row["algo"] for row in rows):
        mine = [row for row in rows if row["algo"] == algo]
        positions = [values.index(row["value"]) for row in mine]
        marker = MARKERS[list(IMPLEMENTATIONS).index(algo) % len(MARKERS)]
        ax.plot(positions, [row["update_ms"] for row in mine], marker=marker, color=colour(algo), label=algo)
    ax.set_xticks(range(len(values)), values)


def run(options: argparse.Namespace, notify: Callable[[str], None]) -> dict[str, Any]:
    """
    :param options: what ``make_parser`` parses
    :param notify: told, in a line, what is measured or cannot be
    :return: everything measured, as it is written to JSON
    """
    algos = []
    for algo in options.algos:
        try:
            importlib.import_module(IMPLEMENTATIONS[algo].module)
            algos.append(algo)
        except ModuleNotFoundError as error:
            notify(f"left out: {algo}, as {error.name} is not installed")
    measurements, operations = [], {}
    for threads in options.threads:
        for env_id in options.envs:
            notify(f"speed: {env_id}, threads: {threads}")
            models = {algo: make_model(algo, env_id, device=options.device) for algo in algos}
            measurements += measure(models, env_id, threads, options.steps, options.repetitions)
            for algo in ("sac", "pathwise_ac", "pathwise_ac_bfloat16"):
                if algo in models:
                    operations[env_id, algo] = product_operations(models[algo], models[algo].batch_size)
    rates = {
        threads: {
            name: product_rate(dtype, threads, device=options.device)
            for name, dtype in (("float32", th.float32), ("bfloat16", th.bfloat16))
        }
        for threads in options.threads
    }
    speed = summarize(measurements)
    for row in speed:
        if (row["env"], row["algo"]) in operations:
            rate = rates[row["threads"]]["bfloat16" if row["algo"].endswith("bfloat16") else "float32"]
            row["share_of_product_limit"] = 1e3 * operations[row["env"], row["algo"]] / rate / row["update_ms"]
    memory: dict[str, dict[str, float]] = {}
    for env_id in [] if options.no_memory else [*options.envs, IMAGES]:
        notify(f"memory: {env_id}")
        measured = [algo for algo in algos if not (env_id == IMAGES and algo in NOT_FOR_IMAGES)]
        memory[env_id] = {algo: measure_memory(algo, env_id) for algo in measured}
    scaling = []
    if not options.no_scaling:
        notify(f"scaling: {options.envs[0]}")
        scaling = measure_scaling(options.envs[0], algos, options.steps, options.quick, options.device)
    return {
        "version": __version__,
        "torch": th.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {th.backends.cpu.get_cpu_capability()}",
        "device": options.device,
        "repetitions": options.repetitions,
        "steps": options.steps,
        "products_per_second": rates,
        "speed": speed,
        "memory_mb": memory,
        "scaling": scaling,
        "measurements": [asdict(measurement) for measurement in measurements],
    }


def positive(text: str) -> int:
    """
    :param text: an argument
    :return: the number that it says
    :raises argparse.ArgumentTypeError: if it is not a positive integer
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """:return: The command's parser"""
    parser = argparse.ArgumentParser(
        prog="sb3-pathwise bench",
        description="Measure time and memory of our algorithms and of others, in turn within one run.",
    )
    parser.add_argument("--algos", nargs="+", choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS), metavar="ALGO")
    parser.add_argument("--envs", nargs="+", metavar="ENV", help="default: HalfCheetah-v5 Pendulum-v1")
    parser.add_argument("--threads", nargs="+", type=positive, metavar="N", help="torch's threads (default: 1 2)")
    parser.add_argument("--repetitions", type=positive, metavar="N", help="turns of every algorithm (default: 10)")
    parser.add_argument("--steps", type=positive, metavar="N", help="steps of the environment per turn (default: 100)")
    parser.add_argument("--device", default="cpu", help="torch's, such as cuda (memory is always that of the CPU)")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory, a process for every algorithm")
    parser.add_argument("--no-scaling", action="store_true", help="leave out how cost grows")
    parser.add_argument("--quick", action="store_true", help="Pendulum-v1, 1 thread, 3 turns of 30 steps: minutes become one")
    parser.add_argument("--output", type=Path, default=Path("bench"), metavar="FOLDER", help="default: bench")
    parser.add_argument("--memory-of", nargs=2, metavar=("ALGO", "ENV"), help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: the arguments, without the program's name; ``None``: those of the process
    :return: exit code: 0, or 2 if there is no such environment or device
    """
    options = make_parser().parse_args(argv)
    if options.memory_of:
        train_and_print_memory(*options.memory_of)
        return 0
    quick = options.quick
    options.envs = options.envs or (["Pendulum-v1"] if quick else ["HalfCheetah-v5", "Pendulum-v1"])
    options.threads = options.threads or ([1] if quick else [1, 2])
    options.repetitions = options.repetitions or (3 if quick else 10)
    options.steps = options.steps or (30 if quick else 100)
    console = Console()
    for env_id in options.envs:
        try:
            gym.make(env_id).close()
        except gym.error.Error as error:
            console.print(f"sb3-pathwise bench: error: --envs {env_id}: {error}", style="red", markup=False)
            return EXIT_BAD_INPUT
    try:
        th.empty(0, device=options.device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        console.print(f"sb3-pathwise bench: error: --device {options.device}: {reason}", style="red", markup=False)
        return EXIT_BAD_INPUT
    options.output.mkdir(parents=True, exist_ok=True)
    report = run(options, lambda line: console.print(line, style="dim"))
    (options.output / "bench.json").write_text(json.dumps(report, indent=1))
    print_tables(console, report)
    draw(report, options.output / "bench.png")
    console.print(f"Written to {options.output}: bench.json, bench.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
