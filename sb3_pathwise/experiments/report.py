"""
The command ``sb3-pathwise report``: tables and figures of a comparison, from the text files of its folder alone.

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
from sb3_pathwise.experiments.statistics import ALL, Statistics, read_table
from sb3_pathwise.experiments.store import read_manifest, read_results
from sb3_pathwise.persistence.atomic import write_atomically


class Report(NamedTuple):
    """A report that has been written: the page, its verdicts, and what else is to be said."""

    page: Path
    verdicts: list[page.Verdict]
    notes: list[str]


def write_report(
    folder: Path, output: Path | None = None, references: Path | None = None, seconds: Path | None = None
) -> Report:
    """
    Write ``report.html``, which needs no other file, and its ``figures``.

    :param folder: A comparison's
    :param output: Where to; ``None``: the same folder
    :param references: CSV file with ``environment,random,reference,source`` that normalises scores; ``None``: the package's
    :param seconds: CSV file with ``algorithm,environment,seconds_per_1000_steps``; ``None``: each run's own training time
    :return: What was written
    :raises ComparisonError: if there is nothing to report, or it cannot be written
    """
    manifest = read_manifest(folder)
    runs, results = read_results(folder)
    if results.empty:
        raise ComparisonError(f"no run in {folder} is finished")
    request, notes = manifest["request"], []
    statistics = Statistics(
        results,
        request["algos"],
        request["envs"],
        references and read_table(references, ["environment"], ["random", "reference"]),
        seconds and read_table(seconds, ["algorithm", "environment"], ["seconds_per_1000_steps"]),
    )
    if len(statistics.environments) > 1 and ALL not in statistics.places:
        unknown = page.listing(statistics.unknown) if statistics.unknown else ""
        why = f"there is no reference for {unknown}" if unknown else "no seed is finished everywhere"
        notes.append(f"No aggregate over the environments: {why} (--references gives others).")
    if seconds:
        notes.append(f"Training times are steps times the seconds per step of {seconds.name}, which were measured apart.")
    # Of all that was asked for: a run that is still missing must not change the others' looks
    looks = styles(request["algos"])
    files: dict[str, bytes] = {}
    names: dict[str, dict[str, str]] = {}
    for environment in statistics.places:
        drawn = figures.drawn(statistics, environment, looks)
        names[environment] = {kind: f"{slug(environment)}_{kind}" for kind in drawn}
        for kind, figure in drawn.items():
            files |= figures.rendered(figure, names[environment][kind])

    values = page.context(statistics, manifest, runs, looks, str(folder))
    target = output or folder
    try:
        (target / "figures").mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomically(target / "figures" / name, data)
        text = page.render("report.html", values | {"figures": names, "files": files, "notes": notes})
        write_atomically(target / "report.html", text)
    except OSError as error:
        raise ComparisonError(f"cannot write to {target} ({one_line(error)})") from error
    return Report(target / "report.html", values["verdicts"], notes)


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
    for line in (*report.notes, f"Report, with the learning curves: {report.page}"):
        console.print(line, markup=False, highlight=False)


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: The arguments; ``None``: those of the process
    :return: Exit code: 0, or 2 if there is nothing to report or it cannot be written
    """
    parser = argparse.ArgumentParser(
        prog="sb3-pathwise report",
        description="Make the report of a comparison, finished or under way, from the text files of its folder.",
    )
    parser.add_argument("folder", type=Path, help="what compare was given as --output")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to write it (default: the same folder)")
    references = "CSV file with environment,random,reference,source: returns that are 0 and 1 on the scale of all environments"
    parser.add_argument("--references", type=Path, metavar="CSV", help=f"{references} (default: five MuJoCo tasks)")
    seconds = "CSV file with algorithm,environment,seconds_per_1000_steps, measured apart, in place of the runs' own times"
    parser.add_argument("--seconds", type=Path, metavar="CSV", help=seconds)
    args = parser.parse_args(argv)
    try:
        report = write_report(args.folder, args.output, args.references, args.seconds)
        print_report(report, Console(soft_wrap=True))
    except ComparisonError as error:
        print(f"sb3-pathwise report: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
