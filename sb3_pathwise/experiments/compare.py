"""
The command ``sb3-pathwise compare``: a grid of algorithms x environments x seeds, run to the end and kept in a folder.

Arguments, the order of things and the exit code are here; each thing itself is a module beside this one.
"""

import argparse
import contextlib
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from sb3_pathwise.experiments.grid import Comparison, ComparisonError, Run, one_line
from sb3_pathwise.experiments.progress import Display
from sb3_pathwise.experiments.schedule import DaskEngine, Engine, LocalEngine
from sb3_pathwise.experiments.store import Store, write_results

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def make_parser() -> argparse.ArgumentParser:
    """:return: The command's parser"""
    parser = argparse.ArgumentParser(
        prog="sb3-pathwise compare",
        description="Train every algorithm on every environment with every seed, then report who won and how sure that is. "
        "The same command goes on where it was stopped.",
    )
    grid = parser.add_argument_group("what is compared")
    grid.add_argument(
        "--algos",
        nargs="+",
        required=True,
        metavar="ALGO",
        help="zoo keys of SB3, sb3-contrib or sb3-pathwise, or variants such as likelihood_ratio_ac:n_action_samples=32",
    )
    grid.add_argument("--envs", nargs="+", required=True, metavar="ENV", help="environment ids")
    grid.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds per algorithm and environment (default: 5)")
    grid.add_argument("--first-seed", type=int, default=0, metavar="SEED", help="the smallest seed (default: 0)")
    grid.add_argument("--timesteps", type=int, metavar="N", help="steps of every run (default: the zoo's)")
    grid.add_argument(
        "-params",
        "--hyperparams",
        nargs="+",
        default=[],
        metavar="KEY:VALUE",
        help="overwrite hyperparameters of all",
    )
    grid.add_argument(
        "-conf", "--conf-file", nargs="+", default=[], metavar="[ALGO=]FILE", help="YAML files in place of the zoo's"
    )
    grid.add_argument("--env-kwargs", nargs="+", default=[], metavar="KEY:VALUE", help="arguments of the environments")
    grid.add_argument(
        "--eval-env-kwargs", nargs="+", default=[], metavar="KEY:VALUE", help="those of the evaluation environments, if others"
    )
    grid.add_argument("--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules that register environments")
    evaluation = parser.add_argument_group("evaluation")
    evaluation.add_argument("--eval-freq", type=int, metavar="N", help="steps between evaluations (default: a twentieth)")
    evaluation.add_argument("--eval-episodes", type=int, default=10, metavar="N", help="episodes of each (default: 10)")
    where = parser.add_argument_group("where")
    where.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="where the results are kept")
    where.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one per processor)")
    where.add_argument("--scheduler", metavar="ADDRESS", help="run on the Dask cluster of this scheduler (tcp://host:8786)")
    where.add_argument("--device", default="auto", help="torch device (default: auto)")
    where.add_argument("--torch-threads", type=int, default=1, metavar="N", help="torch threads of each run (default: 1)")
    where.add_argument("--no-report", action="store_true", help="only run; allows fewer seeds than an interval needs")
    return parser


def comparison_of(args: argparse.Namespace) -> Comparison:
    """
    :param args: The command's arguments
    :return: The request that they make
    """
    return Comparison(
        algos=args.algos,
        envs=args.envs,
        n_seeds=args.seeds,
        first_seed=args.first_seed,
        n_timesteps=args.timesteps,
        eval_freq=args.eval_freq,
        n_eval_episodes=args.eval_episodes,
        params=args.hyperparams,
        conf_files=args.conf_file,
        env_kwargs=args.env_kwargs,
        eval_env_kwargs=args.eval_env_kwargs,
        gym_packages=args.gym_packages,
        device=args.device,
        torch_threads=args.torch_threads,
    )


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: The arguments; ``None``: those of the process
    :return: Exit code: 0, or 1 if a run failed, 2 if the request cannot be carried out, 130 if interrupted
    """
    args = make_parser().parse_args(argv)
    comparison = comparison_of(args)
    console = Console(soft_wrap=True)
    previous = signal.getsignal(signal.SIGTERM)
    try:
        # A cluster's time limit, or systemd: stop as cleanly as for Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if args.jobs < 1:
            raise ComparisonError(f"--jobs must be at least 1, not {args.jobs}")
        comparison.check(for_report=not args.no_report)
        if not args.no_report:
            # Now, so that a package which is not there is missed before the training and not after it
            from sb3_pathwise.experiments.report import print_report, write_report
        runs, store = comparison.plan(), Store(args.output)
        # All that can be refused, before anything is written: the corrected command finds the folder as it was
        store.check(comparison, runs)
        todo = store.unfinished(runs)
        check_buildable(todo)
        engine: Engine = LocalEngine(args.jobs, args.torch_threads)
        if args.scheduler:
            engine = DaskEngine(args.scheduler, partial(console.print, highlight=False, markup=False))
        # A cluster that is not needed need not be there
        with engine if todo else contextlib.nullcontext(), store.opened(comparison, runs):
            try:
                failures = compare(runs, store, engine, console)
            finally:
                write_results(args.output)
        if not args.no_report and len(failures) < len(runs):
            print_report(write_report(args.output), console)
    except ComparisonError as error:
        print(f"sb3-pathwise compare: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(f"Stopped. What is finished is kept in {args.output}; the same command goes on.", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)
    if failures:
        print_failures(failures)
        print(f"{len(failures)} of {len(runs)} runs failed; the same command tries them again.", file=sys.stderr)
        return EXIT_FAILED
    return 0


def compare(runs: list[Run], store: Store, engine: Engine, console: Console) -> list[tuple[Run, str]]:
    """
    Execute the runs that are not finished, and keep each as soon as it is.

    :param runs: All of them
    :param store: Where they are kept
    :param engine: Where they are executed, entered if there is any of them
    :param console: Where progress is shown
    :return: The runs that failed, with their tracebacks
    """
    todo = store.unfinished(runs)
    if len(todo) < len(runs):
        console.print(f"{len(runs) - len(todo)} of {len(runs)} runs are finished already", highlight=False)
    failures: list[tuple[Run, str]] = []
    place = {run.folder: index for index, run in enumerate(todo)}
    if todo:
        with Display(todo, len(runs) - len(todo), console) as display:
            for run, outcome in engine.outcomes(todo, display.tick):
                store.save(run, outcome)
                if outcome["error"]:
                    failures.append((run, outcome["error"]))
                display.finish(place[run.folder], final_return(outcome), outcome.get("wall_seconds"))
    return sorted(failures, key=lambda failure: place[failure[0].folder])


def print_failures(failures: list[tuple[Run, str]]) -> None:
    """
    :param failures: Runs with their tracebacks; one that several runs share is printed once
    """
    runs_of: dict[str, list[Run]] = {}
    for run, error_text in failures:
        runs_of.setdefault(error_text, []).append(run)
    for error_text, runs in runs_of.items():
        print("", *(f"Failed: {run.label}" for run in runs), error_text, sep="\n", file=sys.stderr)


def final_return(outcome: dict[str, Any]) -> float | None:
    """
    :param outcome: Of a run
    :return: The mean return of its last evaluation, or ``None`` if it failed
    """
    if outcome["error"]:
        return None
    returns = outcome["evaluations"][-1]["returns"]
    return sum(returns) / len(returns)


def check_buildable(runs: list[Run]) -> None:
    """
    Build one model per algorithm and environment: whatever is wrong with a hyperparameter shows before any training.

    :param runs: To be executed
    :raises ComparisonError: if a model cannot be built
    """
    from sb3_pathwise.experiments.run import check

    first = {(run.variant, run.env): run for run in reversed(runs)}
    for run in reversed(first.values()):
        try:
            check(run)
        except Exception as error:
            raise ComparisonError(f"{run.variant} cannot be trained on {run.env} ({one_line(error)})") from error


if __name__ == "__main__":
    sys.exit(main())
