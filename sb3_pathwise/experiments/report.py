"""
The command ``sb3-pathwise report``: tables and figures of a comparison, from the text files of its folder alone.

Here are its arguments and what it shows in a terminal; what it writes is made in ``page.py``.
"""

import argparse
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sb3_pathwise.experiments.grid import ComparisonError
from sb3_pathwise.experiments.page import Report, write_report


def print_report(report: Report, console: Console) -> None:
    """
    :param report: What to show, as far as a terminal can: the verdicts, the leader boards, and where the page is
    :param console: Where to
    """
    for verdict in report.verdicts:
        table = Table(box=box.SIMPLE)
        table.add_column("algorithm", overflow="fold")
        for column in (verdict["score"], "95 % interval"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("against the first")
        for row in verdict["board"]:
            cells = (row["algorithm"], row["final"], row["interval"], ", ".join(filter(None, (row["gap"], row["sure"]))))
            # A variant's brackets are no markup
            table.add_row(*map(Text, cells))
        console.print("", verdict["headline"], sep="\n", style="bold", markup=False, highlight=False)
        console.print(verdict["detail"], markup=False, highlight=False)
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
    try:
        print_report(write_report(**vars(parser.parse_args(argv))), Console(soft_wrap=True))
    except ComparisonError as error:
        print(f"sb3-pathwise report: error: {error}", file=sys.stderr)
        return 2
    return 0
