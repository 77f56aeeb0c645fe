"""
What ``sb3-pathwise bench`` shows of its measurements: tables in the terminal, and one figure.

Nothing is measured here. Matplotlib is imported when the figure is drawn.
"""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sb3_pathwise.experiments.bench_measure import IMPLEMENTATIONS, PARTS, REFERENCE
from sb3_pathwise.experiments.palette import MARKERS, colour

# Greys: colours are the algorithms'
PART_COLOURS = ("#EDEDED", "#CFCFCF", "#B0B0B0", "#8A8A8A", "#666666")


def caption(report: dict[str, Any]) -> str:
    """:return: On what a report was measured, and how"""
    machine = report["processor"] + (f"; on {report['device']}" if report["device"] != "cpu" else "")
    return f"{machine}; PyTorch {report['torch']}; {report['repetitions']} turns of {report['steps']} steps"


def overview(report: dict[str, Any]) -> list[list[str]]:
    """:return: The lines of one table of all ratios, its heading first"""
    works = list(dict.fromkeys(row["work"] for row in report["speed"]))
    memory = report["memory_mb"]
    lines = [["algorithm", "engine", *works, "against its like", *(f"memory, {work}" for work in memory), "policy"]]
    rows = {(row["work"], row["algo"]): row for row in report["speed"]}
    for algo in dict.fromkeys(row["algo"] for row in report["speed"]):
        mine = {work: rows[work, algo] for work in works if (work, algo) in rows}
        first, reference = next(iter(mine.values())), rows.get((next(iter(mine)), REFERENCE), {})
        line = [algo, "/".join(dict.fromkeys(row["engine"] for row in mine.values()))]
        line += [_quartiles(mine[work]["ratios"].get(REFERENCE)) if work in mine else "" for work in works]
        line.append("; ".join(f"{other} {_quartiles(q)}" for other, q in first["ratios"].items() if other != REFERENCE))
        line += [_ratio(megabytes.get(algo), megabytes.get(REFERENCE)) for megabytes in memory.values()]
        lines.append([*line, _ratio(first["policy_mb"], reference.get("policy_mb"))])
    return lines


def _quartiles(quartiles: list[float] | None) -> str:
    return "{1:.2f} ({0:.2f}-{2:.2f})".format(*quartiles) if quartiles else ""


def _ratio(value: float | None, reference: float | None) -> str:
    return f"{value / reference:.2f}" if value and reference else ""


def markdown(report: dict[str, Any]) -> str:
    """:return: The table of all ratios in Markdown"""
    heading, *lines = overview(report)
    rows = [heading, ["---"] * len(heading), *([f"`{algo}`", *cells] for algo, *cells in lines)]
    return "\n".join([f"{caption(report)}:", "", *(f"| {' | '.join(row)} |" for row in rows)])


def print_tables(console: Console, report: dict[str, Any]) -> None:
    """Show the tables in a terminal."""
    tables: dict[str, list[list[str]]] = {}
    for row in report["scaling"]:
        heading = ["changed", "algorithm", "engine", "steps/s", "update (ms)"]
        lines = tables.setdefault("How cost grows", [heading])
        cells = [f"{row['variable']} {row['value']}", row["algo"], row["engine"], f"{row['steps_per_second']:.1f}"]
        lines.append([*cells, f"{row['update_ms']:.2f}"])
    for row in report["speed"]:
        lines = tables.setdefault(f"{row['work']}: milliseconds per step, by part", [["algorithm", "steps/s", *PARTS]])
        lines.append([row["algo"], f"{row['steps_per_second']:.1f}", *(f"{row['split'][part]:.2f}" for part in PARTS)])
    tables["Steps/s, memory and size of a pickled policy against SAC's"] = overview(report)
    for title, (heading, *lines) in tables.items():
        table = Table(*heading, title=title, caption=caption(report))
        table.columns[0].no_wrap = True
        for line in lines:
            table.add_row(*line)
        console.print(table)


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw one figure, a PNG file: where the time of a step goes, and how that of an update grows."""
    from matplotlib.figure import Figure

    works = list(dict.fromkeys(row["work"] for row in report["speed"]))
    variables = list(dict.fromkeys(row["variable"] for row in report["scaling"]))
    # At most two of them side by side, so that names have room
    pairs = [works[place : place + 2] for place in range(0, len(works), 2)]
    heights = [1 + max(sum(row["work"] == work for row in report["speed"]) for work in pair) / 4 for pair in pairs]
    heights += [3.5] * bool(variables)
    figure = Figure(figsize=(13, sum(heights) + 0.5), layout="constrained")
    figure.suptitle(caption(report), fontsize="medium")
    strips = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for place, pair in enumerate(pairs):
        for ax, work in zip(strips[place].subplots(1, len(pair), squeeze=False)[0], pair, strict=True):
            _draw_split(ax, [row for row in report["speed"] if row["work"] == work])
            ax.set(title=work, xlabel="milliseconds per step; times the speed of SAC")
    bars = strips[0].axes[0].get_legend_handles_labels()
    strips[0].legend(*bars, loc="outside upper center", ncols=len(PARTS), frameon=False)
    if variables:
        for ax, variable in zip(strips[-1].subplots(1, len(variables), squeeze=False)[0], variables, strict=True):
            _draw_growth(ax, [row for row in report["scaling"] if row["variable"] == variable])
            ax.set(xlabel=variable, ylim=(0, None))
        strips[-1].axes[0].set_ylabel("milliseconds per update")
        labels = {line.get_label(): line for ax in strips[-1].axes for line in ax.get_lines()}
        strips[-1].legend(labels.values(), labels, loc="outside lower center", ncols=len(labels), frameon=False)
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
        text = f"{total:.1f} ms" + (f"; x{row['ratios'][REFERENCE][1]:.2f}" if row["ratios"] else "")
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
