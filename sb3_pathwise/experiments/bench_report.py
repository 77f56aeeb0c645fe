"""
What ``sb3-pathwise bench`` shows of its measurements: tables in the terminal, and one figure.

Nothing is measured here. Matplotlib is imported when the figure is drawn.
"""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sb3_pathwise.experiments.bench_measure import IMAGES, IMPLEMENTATIONS, PARTS, REFERENCE
from sb3_pathwise.experiments.palette import MARKERS, colour

# Okabe and Ito's
PART_COLOURS = ("#56B4E9", "#F0E442", "#009E73", "#0072B2", "#D55E00", "#999999")


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
