"""The figures of a report: learning curves, scores with their intervals, probabilities of improvement; as PNG and as SVG."""

import io
from typing import Any

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sb3_pathwise.experiments.palette import Style
from sb3_pathwise.experiments.statistics import ALL, SCORES, Estimate, Statistics

# Inches of 72 points: on a phone, where a figure is 330 pixels wide, a point is a pixel and the text still readable
WIDTH = 4.6
GREY = "#8c8c8c"
INK = dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color", "text.color"), "#1a1a1a")
STYLE = INK | {"axes.edgecolor": GREY, "axes.spines.top": False, "axes.spines.right": False, "grid.color": "#ececec"}
RC: dict[Any, Any] = sns.axes_style("whitegrid", STYLE | {"xtick.bottom": True, "font.sans-serif": ["DejaVu Sans"]})
RC |= {"legend.frameon": False, "savefig.dpi": 200}


def label(variant: str) -> str:
    """:return: An algorithm's name, broken into lines where it is long"""
    algo, colon, overrides = variant.partition(":")
    return algo + colon + "".join(f"\n{line}" for line in overrides.replace(",", ",\n").splitlines())


def _n_lines(names: list[str]) -> int:
    return sum(name.count("\n") + 1 for name in names)


def drawn(statistics: Statistics, environment: str, looks: dict[str, Style]) -> dict[str, Figure]:
    """
    :param statistics: Of the comparison
    :param environment: Where, or ``ALL``
    :param looks: Of the algorithms
    :return: All figures of it, by their kinds
    """
    with matplotlib.rc_context(RC):
        figures = {
            "steps": learning_curves(statistics, environment, "step", looks),
            "time": learning_curves(statistics, environment, "train_seconds", looks),
        }
        if environment != ALL:
            figures["scores"] = scores(statistics, environment, looks)
            if len(statistics.ranking(environment)) > 1:
                figures["improvement"] = improvements(statistics, environment, looks)
    return figures


def rendered(figure: Figure, name: str) -> dict[str, bytes]:
    """
    :param figure: To be saved
    :param name: Without suffix
    :return: File names and contents: PNG and SVG, the same at every rendering
    """
    FigureCanvasAgg(figure)
    files = {}
    # Without these SVG files hold random ids and the date
    with matplotlib.rc_context(RC | {"svg.hashsalt": name}):
        for suffix, metadata in {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata=metadata, facecolor="white")
            files[f"{name}.{suffix}"] = buffer.getvalue()
    return files


def _figure(title: str, height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.02, ha="left")
    return figure


def _plain_numbers(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}".replace("-", "\N{MINUS SIGN}")))


def _clock(seconds: float) -> tuple[float, str]:
    for unit, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 3 * unit:
            return unit, name
    return 1.0, "seconds"


def learning_curves(statistics: Statistics, environment: str, axis: str, looks: dict[str, Style]) -> Figure:
    """:return: Interquartile means with their bands, along ``step`` or ``train_seconds``"""
    found = {algo: statistics.curve(environment, algo, axis) for algo in statistics.algorithms}
    curves = {algo: curve for algo, curve in found.items() if curve is not None}
    names = [label(algo) for algo in curves]
    columns = 2 if max(map(len, names)) <= 20 else 1
    figure = _figure(environment, 3.2 + 0.17 * _n_lines(names) / columns)
    axes = figure.add_subplot()
    unit, unit_name = 1.0, "environment steps"
    if axis == "train_seconds":
        unit, unit_name = _clock(max(x[-1] for x, _ in curves.values()))
        unit_name = f"{unit_name} of training"
    for place, (algo, (x, (point, low, high))) in enumerate(curves.items()):
        look = looks[algo]
        axes.fill_between(x / unit, low, high, color=look.colour, alpha=0.16, linewidth=0)
        # Wide where a later curve runs over this one, so that both are seen
        covered = sum(np.array_equal(other[1][0], point) for other in list(curves.values())[place + 1 :])
        # Markers out of step with each other, so that none hides another
        stride = max(1, len(x) // 6)
        (line,) = axes.plot(
            x / unit,
            point,
            color=look.colour,
            linewidth=2 + 3.5 * covered,
            label=names[place],
            marker=look.marker,
            markersize=4.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            markevery=((place * stride) // max(1, len(curves)), stride),
        )
        if look.dash:
            line.set_dashes(look.dash)
    axes.set_xlabel(unit_name)
    axes.set_ylabel("normalised score" if environment == ALL else "return")
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for side in (axes.xaxis, axes.yaxis):
        _plain_numbers(side)
    figure.legend(loc="outside lower left", ncols=columns, handlelength=2.6, fontsize=9.5)
    return figure


def _interval(axes: Axes, row: int, estimate: Estimate, look: Style) -> None:
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [row, row], color=look.colour, linewidth=7, alpha=0.35, solid_capstyle="butt")
    axes.plot(estimate.point, row, marker="|", color=look.colour, markersize=15, markeredgewidth=2.6)


def scores(statistics: Statistics, environment: str, looks: dict[str, Style]) -> Figure:
    """:return: Every seed's scores, their interquartile means and intervals; the best on top"""
    order = list(statistics.ranking(environment))[::-1]
    names = [label(algo) for algo in order]
    figure = _figure(environment, 1.3 + 0.5 * len(order) + 0.36 * _n_lines(names))
    for axes, (score, name) in zip(figure.subplots(len(SCORES), 1), SCORES.items(), strict=True):
        ranking, runs = statistics.ranking(environment, score), statistics.scores(environment, score)
        for row, algo in enumerate(order):
            _interval(axes, row, ranking[algo], looks[algo])
            seeds, look = runs[algo].ravel(), looks[algo]
            axes.scatter(seeds, np.full(len(seeds), row - 0.3), s=16, color=look.colour, marker=look.marker, alpha=0.75, lw=0)
        _rows(axes, names)
        _plain_numbers(axes.xaxis)
        axes.set_xlabel(name)
    return figure


def _rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.5)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def improvements(statistics: Statistics, environment: str, looks: dict[str, Style]) -> Figure:
    """:return: Probabilities that a run of the best algorithm scores higher than one of each other"""
    leader, *others = statistics.ranking(environment)
    names = [f"over {label(other)}" for other in others[::-1]]
    figure = _figure(f"{environment}: {leader}", 1.0 + 0.25 * len(others) + 0.18 * _n_lines(names))
    axes = figure.add_subplot()
    axes.axvline(50, color=GREY, linewidth=1)
    for row, other in enumerate(others[::-1]):
        found = statistics.find_duel(environment, leader, other)
        point, *ends = found.improvement
        per_cent = Estimate(100 * point, *(None if end is None else 100 * end for end in ends))
        _interval(axes, row, per_cent, looks[leader])
    _rows(axes, names)
    axes.set_xlim(0, 101)
    axes.set_xlabel("probability of improvement, %")
    return figure
