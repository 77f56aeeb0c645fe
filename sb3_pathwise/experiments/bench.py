"""
The command ``sb3-pathwise bench``: what a step costs, against other implementations, in turn within one run.

Arguments and the order of things are here; measuring is in ``bench_measure.py``, tables and the figure in ``bench_report.py``.
Only time and memory are measured. Who learns better is for ``compare.py``.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from rich.console import Console

from sb3_pathwise import __version__
from sb3_pathwise.experiments.bench_measure import (
    CORE,
    IMAGES,
    IMPLEMENTATIONS,
    SCALING,
    Work,
    describe,
    device_name,
    make_model,
    measure,
    measure_memory,
    processor,
    summarize,
    train_and_print_memory,
)
from sb3_pathwise.experiments.bench_report import draw, markdown, print_tables
from sb3_pathwise.persistence.atomic import write_atomically

EXIT_BAD_INPUT = 2


def run(options: argparse.Namespace, notify: Callable[[str], None], keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """
    :param options: The command's arguments
    :param notify: is told, in a line, what is measured or cannot be
    :param keep: is given everything measured so far, after each piece of work
    :return: Everything measured
    """
    first, threads = options.envs[0], options.threads[0]
    works = [Work(env_id, options.algos, threads) for env_id in options.envs]
    if not options.quick:
        works += [Work(first, CORE, threads, "n_envs", 8), *(Work(first, CORE, more) for more in options.threads[1:])]
        works.append(Work(IMAGES, CORE, threads))
    report: dict[str, Any] = {
        "version": __version__,
        "torch": th.__version__,
        "processor": processor(),
        "device": device_name(options.device),
        "repetitions": options.repetitions,
        "steps": options.steps,
        "speed": [],
        "memory_mb": {},
        "scaling": [],
    }
    for work in works:
        report["speed"] += measure_work(work, options, options.repetitions, notify)
        # What is not installed, or has no engine here, is said once
        options.algos = {row["algo"] for row in report["speed"]}
        keep(report)
    for env_id in [] if options.no_memory else [first] if options.quick else [first, IMAGES]:
        notify(f"memory: {env_id}")
        # On the CPU, where no graph can be recorded
        rows = [row for row in report["speed"] if row["engine"] != "cuda_graph"]
        algos = [row["algo"] for row in rows if row["work"] == Work(env_id, CORE, threads).name]
        report["memory_mb"][env_id] = {a: measure_memory(a, env_id) for a in algos if a in CORE[:3] or not options.quick}
        keep(report)
    for variable, (varied, values) in {} if options.no_scaling else SCALING.items():
        for value in values[:2] if options.quick else values:
            work = Work(first, varied, threads, variable, value)
            report["scaling"] += measure_work(work, options, min(options.repetitions, 5), notify)
            keep(report)
    return report


def measure_work(
    work: Work, options: argparse.Namespace, repetitions: int, notify: Callable[[str], None]
) -> list[dict[str, Any]]:
    """:return: A row for each of the algorithms that can be measured"""
    notify(f"speed: {work.name}")
    models, changed = {}, {work.variable: work.value} if work.variable else {}
    for algo in work.algos:
        try:
            if algo in options.algos:
                models[algo] = make_model(algo, work.env, device=options.device, **changed)
        except (ModuleNotFoundError, ValueError) as error:
            notify(f"left out: {algo}: {error}")
    # An update with images takes as long as many others
    share = 10 if work.env == IMAGES else work.value if work.variable == "gradient_steps" else 1
    rows = summarize(measure(models, max(options.steps // share, 2), repetitions, work.threads, options.device))
    about = {"work": work.name, "variable": work.variable, "value": work.value}
    return [about | rows[algo] | describe(model) for algo, model in models.items()]


def positive(text: str) -> int:
    """:return: The number that an argument says; argparse reports the error"""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """:return: The command's parser"""
    parser = argparse.ArgumentParser(
        prog="sb3-pathwise bench",
        description="Measure time and memory of our algorithms and of others, in turn within one run.",
    )
    parser.add_argument(
        "--algos",
        nargs="+",
        choices=IMPLEMENTATIONS,
        default=list(IMPLEMENTATIONS),
        metavar="ALGO",
        help=f"what is measured (default: all that is installed of {', '.join(IMPLEMENTATIONS)})",
    )
    parser.add_argument("--envs", nargs="+", metavar="ENV", help="default: HalfCheetah-v5 Pendulum-v1")
    parser.add_argument("--threads", nargs="+", type=positive, metavar="N", help="torch's threads (default: 1 2)")
    parser.add_argument("--repetitions", type=positive, metavar="N", help="turns of every algorithm (default: 15)")
    parser.add_argument("--steps", type=positive, metavar="N", help="steps of the environment per turn (default: 30)")
    parser.add_argument("--device", default="cpu", help="torch's, such as cuda (memory is always that of the CPU)")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory, a process for every algorithm")
    parser.add_argument("--no-scaling", action="store_true", help="leave out how cost grows")
    parser.add_argument(
        "--quick", action="store_true", help="Pendulum-v1, 1 thread, 3 turns of 12 steps: a minute of CPU time"
    )
    parser.add_argument("--output", type=Path, default=Path("bench"), metavar="FOLDER", help="default: bench")
    parser.add_argument("--table", type=Path, metavar="JSON", help="measure nothing, print this report as a table of Markdown")
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
    if options.table:
        print(markdown(json.loads(options.table.read_text())))
        return 0
    quick = options.quick
    options.envs = options.envs or (["Pendulum-v1"] if quick else ["HalfCheetah-v5", "Pendulum-v1"])
    options.threads = options.threads or ([1] if quick else [1, 2])
    options.repetitions = options.repetitions or (3 if quick else 15)
    options.steps = options.steps or (12 if quick else 30)
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
    file = options.output / "bench.json"
    report = run(
        options,
        notify=lambda line: console.print(line, style="dim"),
        keep=lambda report: write_atomically(file, json.dumps(report, indent=1)),
    )
    print_tables(console, report)
    draw(report, options.output / "bench.png")
    console.print(f"Written to {options.output}: bench.json, bench.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
