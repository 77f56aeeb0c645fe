"""
The command ``sb3-pathwise compare``: a grid of algorithms x environments x seeds, run to the end and kept in a folder.

Arguments, the order of things and the exit code are here; each thing itself is a module beside this one.
"""

import argparse
import contextlib
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from sb3_pathwise.experiments import cluster
from sb3_pathwise.experiments.grid import Comparison, ComparisonError, Run, one_line
from sb3_pathwise.experiments.progress import Display
from sb3_pathwise.experiments.store import Store

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def make_parser() -> argparse.ArgumentParser:
    """:return: The command's parser"""
    parser = argparse.ArgumentParser(
        prog="sb3-pathwise compare",
        description="Train every algorithm on every environment with every seed, then report who won and how sure that is. "
        "The same command goes on where it was stopped.",
    )
    for asked in fields(Comparison):
        parser.add_argument(*asked.metadata["flags"], dest=asked.name, **asked.metadata["how"])
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="where the results are kept")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one per processor)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="run on the Dask cluster of this scheduler (tcp://host:8786)")
    parser.add_argument("--no-report", action="store_true", help="only run; allows fewer seeds than an interval needs")
    return parser


def comparison_of(args: argparse.Namespace) -> Comparison:
    """:return: The request that the command's arguments make"""
    return Comparison(**{field.name: getattr(args, field.name) for field in fields(Comparison)})


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: The arguments; ``None``: those of the process
    :return: Exit code: 0, or 1 if a run failed, 2 if the request cannot be carried out, 130 if interrupted
    """
    args = make_parser().parse_args(argv)
    comparison = comparison_of(args)
    previous = signal.getsignal(signal.SIGTERM)
    try:
        # A cluster's time limit, or systemd: stop as cleanly as for Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if args.jobs < 1:
            raise ComparisonError(f"--jobs must be at least 1, not {args.jobs}")
        comparison.check(for_report=not args.no_report)
        if not args.scheduler:
            cluster.begin_imports(args.torch_threads)
        if not args.no_report:
            # Now, so that a package which is not there is missed before the training and not after it
            from sb3_pathwise.experiments.report import print_report, write_report
        runs, store = comparison.plan(), Store(args.output)
        # All that can be refused, before anything is written: the corrected command finds the folder as it was
        store.check(comparison, runs)
        todo = store.unfinished(runs)
        check_buildable(todo)
        # A cluster that is not needed need not be there
        workers = cluster.connected(min(args.jobs, len(todo)), args.scheduler) if todo else contextlib.nullcontext()
        with workers as client, store.opened(comparison, runs):
            failures = compare(runs, store, client)
        if not args.no_report and len(failures) < len(runs):
            print_report(write_report(args.output), Console(soft_wrap=True))
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


def compare(runs: list[Run], store: Store, client: Any) -> list[tuple[Run, str]]:
    """
    Execute the runs that are not finished, and keep each as soon as it is.

    :return: The runs that failed, with their tracebacks
    """
    todo = store.unfinished(runs)
    if len(todo) < len(runs):
        print(f"{len(runs) - len(todo)} of {len(runs)} runs are finished already")
    errors: dict[int, str] = {}
    if todo:
        with Display(todo, len(runs) - len(todo)) as display:
            with contextlib.closing(cluster.outcomes(client, todo, display.tick, tqdm.write)) as outcomes:
                for index, outcome in outcomes:
                    store.save(todo[index], outcome)
                    if outcome["error"]:
                        errors[index] = outcome["error"]
                    display.finish(index, outcome)
    return [(todo[index], errors[index]) for index in sorted(errors)]


def print_failures(failures: list[tuple[Run, str]]) -> None:
    """Show the tracebacks of runs; one that several share is printed once."""
    runs_of: dict[str, list[Run]] = {}
    for run, error_text in failures:
        runs_of.setdefault(error_text, []).append(run)
    for error_text, runs in runs_of.items():
        print("", *(f"Failed: {run.label}" for run in runs), error_text, sep="\n", file=sys.stderr)


def check_buildable(runs: list[Run]) -> None:
    """
    Build one model per algorithm and environment: whatever is wrong with a hyperparameter shows before any training.

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
