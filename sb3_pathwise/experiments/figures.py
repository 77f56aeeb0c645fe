"""The figures of a report: learning curves, scores with their intervals, probabilities of improvement; as PNG and as SVG."""

import io
from typing import Any

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sb3_pathwise.experiments.grid import slug
from sb3_pathwise.experiments.palette import Style
from sb3_pathwise.experiments.statistics import ALL, SCORES, Estimate, Place

# Inches of 72 points: on a phone, where a figure is 330 pixels wide, a point is a pixel and the text still readable
WIDTH = 4.6
GREY = "#8c8c8c"
INK = dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color", "text.color"), "#1a1a1a")
STYLE = INK | {"axes.edgecolor": GREY, "axes.spines.top": False, "axes.spines.right": False, "grid.color": "#ececec"}
RC: dict[Any, Any] = sns.axes_style("whitegrid", STYLE | {"xtick.bottom": True, "font.sans-serif": ["DejaVu Sans"]})
RC |= {"legend.frameon": False, "savefig.dpi": 200, "lines.markersize": 4.5, "lines.markeredgewidth": 0.6}
PLAIN_NUMBERS = "{x:,.10g}"


def files(place: Place, looks: dict[str, Style]) -> dict[str, bytes]:
    """
    :param place: An environment, or all of them
    :param looks: Of the algorithms
    :return: Names and contents of its figures' files: PNG and SVG, the same at every call
    """
    found = {}
    with matplotlib.rc_context(RC):
        figures = {kind: learning_curves(place, axis, looks) for kind, axis in (("steps", "step"), ("time", "train_seconds"))}
        if place.name != ALL:
            figures["scores"] = scores(place, looks)
            if len(place.algorithms) > 1:
                figures["improvement"] = improvements(place, looks)
        for kind, figure in figures.items():
            name = f"{slug(place.name)}_{kind}"
            # Without these SVG files hold random ids and the date
            matplotlib.rcParams["svg.hashsalt"] = name
            for suffix, metadata in {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}.items():
                buffer = io.BytesIO()
                figure.savefig(buffer, format=suffix, metadata=metadata)
                found[f"{name}.{suffix}"] = buffer.getvalue()
    return found


def _label(variant: str) -> str:
    # Broken into lines where it is long
    return variant.replace(":", ":\n", 1).replace(",", ",\n")


def _n_lines(names: list[str]) -> int:
    return sum(name.count("\n") + 1 for name in names)


def _figure(title: str, height: float, rows: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.02, ha="left")
    return figure, figure.subplots(rows)


def learning_curves(place: Place, axis: str, looks: dict[str, Style]) -> Figure:
    """:return: Interquartile means with their bands, along ``step`` or ``train_seconds``"""
    curves = {algo: place.curve(algo, axis) for algo in place.algorithms}
    names = [_label(algo) for algo in curves]
    columns = 2 if max(map(len, names)) <= 20 else 1
    figure, axes = _figure(place.name, 3.2 + 0.17 * _n_lines(names) / columns)
    unit, unit_name = 1, "environment steps"
    if axis == "train_seconds":
        clock = ((3600, "hours of training"), (60, "minutes of training"), (1, "seconds of training"))
        longest = max(x[-1] for x, _ in curves.values())
        unit, unit_name = next((found for found in clock if longest >= 3 * found[0]), clock[-1])
    for order, (algo, (x, (point, low, high))) in enumerate(curves.items()):
        look = looks[algo]
        axes.fill_between(x / unit, low, high, color=look.colour, alpha=0.16, linewidth=0)
        # Wide where a later curve runs over this one, so that both are seen
        covered = sum(np.array_equal(other[1][0], point) for other in list(curves.values())[order + 1 :])
        # Markers out of step with each other, so that none hides another
        stride = max(1, len(x) // 6)
        line = axes.plot(x / unit, point, color=look.colour, dashes=look.dash, label=names[order], marker=look.marker)[0]
        line.set(linewidth=2 + 3.5 * covered, markevery=(order * stride // len(curves), stride), markeredgecolor="white")
    axes.set(xlabel=unit_name, ylabel="normalised score" if place.name == ALL else "return")
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(PLAIN_NUMBERS)
    axes.yaxis.set_major_formatter(PLAIN_NUMBERS)
    figure.legend(loc="outside lower left", ncols=columns, handlelength=2.6, fontsize=9.5)
    return figure


def scores(place: Place, looks: dict[str, Style]) -> Figure:
    """:return: Every seed's scores, their interquartile means and intervals; the best on top"""
    order = list(place.ranking["final"])[::-1]
    names = [_label(algo) for algo in order]
    figure, panels = _figure(place.name, 1.3 + 0.5 * len(order) + 0.36 * _n_lines(names), len(SCORES))
    for axes, (score, name) in zip(panels, SCORES.items(), strict=True):
        for row, algo in enumerate(order):
            seeds, look = place.scores[score][algo].ravel(), looks[algo]
            _interval(axes, row, place.ranking[score][algo], look)
            axes.scatter(seeds, np.full(len(seeds), row - 0.3), s=16, color=look.colour, marker=look.marker, alpha=0.75, lw=0)
        _rows(axes, names)
        axes.set_xlabel(name)
    return figure


def improvements(place: Place, looks: dict[str, Style]) -> Figure:
    """:return: Probabilities that a run of the best algorithm scores higher than one of each other"""
    leader, duels = next(iter(place.ranking["final"])), list(place.against_the_best().values())[::-1]
    names = [f"over {_label(duel.second)}" for duel in duels]
    figure, axes = _figure(f"{place.name}: {leader}", 1.0 + 0.25 * len(duels) + 0.18 * _n_lines(names))
    axes.axvline(50, color=GREY, linewidth=1)
    for row, duel in enumerate(duels):
        _interval(axes, row, Estimate(*(100 * end for end in duel.improvement)), looks[leader])
    _rows(axes, names)
    axes.set(xlim=(0, 101), xlabel="probability of improvement, %")
    return figure


def _interval(axes: Axes, row: int, estimate: Estimate, look: Style) -> None:
    # Ends that are not there are not drawn
    axes.plot(estimate[1:], [row, row], color=look.colour, linewidth=7, alpha=0.35, solid_capstyle="butt")
    axes.plot(estimate.point, row, marker="|", color=look.colour, markersize=15, markeredgewidth=2.6)


def _rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.5)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PLAIN_NUMBERS)
