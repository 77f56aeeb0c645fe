"""
The command ``sb3-pathwise bench``: what a step costs, against other implementations, in turn within one run.

Arguments and the order of things are here; measuring is in ``bench_measure.py``, tables and the figure in ``bench_report.py``.
Only time and memory are measured. Who learns better is for ``compare.py``.
"""

import argparse
import importlib
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from rich.console import Console

from sb3_pathwise import __version__
from sb3_pathwise.experiments.bench_measure import (
    IMAGES,
    IMPLEMENTATIONS,
    make_model,
    measure,
    measure_memory,
    measure_scaling,
    product_operations,
    product_rate,
    summarize,
    train_and_print_memory,
)
from sb3_pathwise.experiments.bench_report import draw, print_tables

# These have no policy for images
NOT_FOR_IMAGES = ("crossq", "crossq_256", "sbx_sac")
EXIT_BAD_INPUT = 2


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
