"""
The command ``sb3-pathwise report``: tables and figures of a comparison, from its folder alone.

Statistics, figures and words are modules beside this one; here they are brought together and written.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sb3_pathwise.experiments import figures, page
from sb3_pathwise.experiments.grid import ComparisonError, one_line, slug
from sb3_pathwise.experiments.palette import styles
from sb3_pathwise.experiments.statistics import Statistics
from sb3_pathwise.experiments.store import read_manifest, read_results, write_results
from sb3_pathwise.persistence.atomic import write_atomically


class Report(NamedTuple):
    """A report that has been written: the page, and its verdicts."""

    page: Path
    verdicts: list[page.Verdict]


def write_report(folder: Path, output: Path | None = None) -> Report:
    """
    Write ``report.md``, ``report.html`` (which needs no other file) and ``figures``.

    :param folder: A comparison's
    :param output: Where to; ``None``: the same folder
    :return: What was written
    :raises ComparisonError: if there is nothing to report, or it cannot be written
    """
    manifest = read_manifest(folder)
    evaluations, finished, missing = read_results(folder)
    if not finished:
        raise ComparisonError(f"no run in {folder} is finished")
    statistics = Statistics(evaluations, manifest["request"]["algos"], manifest["request"]["envs"])
    # Of all that was asked for: a run that is still missing must not change the others' looks
    looks = styles(manifest["request"]["algos"])
    files: dict[str, bytes] = {}
    names: dict[str, dict[str, str]] = {}
    for environment in statistics.environments:
        drawn = {
            "steps": figures.learning_curves(statistics, environment, "step", looks),
            "time": figures.learning_curves(statistics, environment, "train_seconds", looks),
            "scores": figures.scores(statistics, environment, looks),
        }
        if len(statistics.ranking(environment)) > 1:
            drawn["improvement"] = figures.improvements(statistics, environment, looks)
        names[environment] = {kind: f"{slug(environment)}_{kind}" for kind in drawn}
        for kind, figure in drawn.items():
            files |= figures.rendered(figure, names[environment][kind])

    values = page.context(statistics, manifest, finished, missing, looks, str(folder)) | {"figures": names, "files": files}
    target = output or folder
    try:
        (target / "figures").mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomically(target / "figures" / name, data)
        write_atomically(target / "report.md", page.render("report.md", values))
        write_atomically(target / "report.html", page.render("report.html", values))
    except OSError as error:
        raise ComparisonError(f"cannot write to {target} ({one_line(error)})") from error
    return Report(target / "report.html", values["verdicts"])


def print_report(report: Report, console: Console) -> None:
    """
    :param report: What to show, as far as a terminal can: the verdicts, the leader boards, and where the page is
    :param console: Where to
    """
    for verdict in report.verdicts:
        table = Table(box=box.SIMPLE)
        table.add_column("algorithm", overflow="fold")
        for column in (verdict.score, "95 % interval"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("against the first")
        for row in verdict.board:
            cells = (row.algorithm, row.final, row.interval, ", ".join(filter(None, (row.gap, row.sure))))
            # A variant's brackets are no markup
            table.add_row(*map(Text, cells))
        console.print("", verdict.headline, sep="\n", style="bold", markup=False, highlight=False)
        console.print(verdict.detail, markup=False, highlight=False)
        console.print(table, soft_wrap=False)
    console.print(f"Report, with the learning curves: {report.page}", markup=False, highlight=False)


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: The arguments; ``None``: those of the process
    :return: Exit code: 0, or 2 if there is nothing to report or it cannot be written
    """
    parser = argparse.ArgumentParser(
        prog="sb3-pathwise report", description="Make the report of a comparison, finished or under way, from its folder."
    )
    parser.add_argument("folder", type=Path, help="what compare was given as --output")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to write it (default: the same folder)")
    args = parser.parse_args(argv)
    try:
        write_results(args.folder)
        print_report(write_report(args.folder, args.output), Console(soft_wrap=True))
    except ComparisonError as error:
        print(f"sb3-pathwise report: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
