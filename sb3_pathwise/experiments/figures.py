"""The figures of a report: learning curves, scores with their intervals, probabilities of improvement; as PNG and as SVG."""

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sb3_pathwise.experiments.palette import Style
from sb3_pathwise.experiments.statistics import SCORES, Estimate, Statistics

# Inches of 72 points: on a phone, where a figure is 330 pixels wide, a point is a pixel and the text still readable
WIDTH = 4.6
INK = "#1a1a1a"
# Names and values as matplotlib has them
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#8c8c8c",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "savefig.dpi": 200,
}


def label(variant: str) -> str:
    """
    :param variant: An algorithm
    :return: Its name, broken into lines where it is long
    """
    algo, colon, overrides = variant.partition(":")
    return algo + colon + "".join(f"\n{line}" for line in overrides.replace(",", ",\n").splitlines())


def _n_lines(names: list[str]) -> int:
    return sum(name.count("\n") + 1 for name in names)


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


def _thousands(value: float, _: Any = None) -> str:
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{suffix}".replace("-", "\N{MINUS SIGN}")
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def _clock(seconds: float) -> tuple[float, str]:
    for unit, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 3 * unit:
            return unit, name
    return 1.0, "seconds"


@matplotlib.rc_context(RC)
def learning_curves(statistics: Statistics, environment: str, axis: str, looks: dict[str, Style]) -> Figure:
    """
    :param statistics: Of the comparison
    :param environment: Where
    :param axis: ``step`` or ``train_seconds``
    :param looks: Of the algorithms
    :return: Interquartile means with their bands
    """
    curves = {algo: statistics.curve(environment, algo, axis) for algo in statistics.algorithms}
    names = [label(algo) for algo, curve in curves.items() if curve]
    columns = 2 if max(map(len, names)) <= 20 else 1
    figure = Figure(figsize=(WIDTH, 3.2 + 0.17 * _n_lines(names) / columns), layout="constrained")
    axes = figure.add_subplot()
    unit, unit_name = 1.0, "environment steps"
    if axis == "train_seconds":
        unit, unit_name = _clock(max(curve.x[-1] for curve in curves.values() if curve))
        unit_name = f"{unit_name} of training"
    for place, (algo, curve) in enumerate(curves.items()):
        if curve is None:
            continue
        look, x = looks[algo], curve.x / unit
        if curve.low is not None and curve.high is not None:
            axes.fill_between(x, curve.low, curve.high, color=look.colour, alpha=0.16, linewidth=0)
        # Wide where a later curve runs over this one, so that both are seen
        covered = [other for other in list(curves.values())[place + 1 :] if other and np.array_equal(other.point, curve.point)]
        # Markers out of step with each other, so that none hides another
        stride = max(1, len(x) // 6)
        (line,) = axes.plot(
            x,
            curve.point,
            color=look.colour,
            linewidth=2 + 3.5 * len(covered),
            label=label(algo),
            marker=look.marker,
            markersize=4.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            markevery=((place * stride) // max(1, len(curves)), stride),
        )
        if look.dash:
            line.set_dashes(look.dash)
    axes.set_xlabel(unit_name)
    axes.set_ylabel("return")
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_formatter(FuncFormatter(_thousands))
    _title(figure, environment)
    figure.legend(loc="outside lower left", ncols=columns, handlelength=2.6, fontsize=9.5)
    return figure


def _title(figure: Figure, title: str) -> None:
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.02, ha="left")


def _interval(axes: Axes, row: int, estimate: Estimate, look: Style) -> None:
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [row, row], color=look.colour, linewidth=7, alpha=0.35, solid_capstyle="butt")
    axes.plot(estimate.point, row, marker="|", color=look.colour, markersize=15, markeredgewidth=2.6)


@matplotlib.rc_context(RC)
def scores(statistics: Statistics, environment: str, looks: dict[str, Style]) -> Figure:
    """
    :param statistics: Of the comparison
    :param environment: Where
    :param looks: Of the algorithms
    :return: Every seed's scores, their interquartile means and intervals; the best on top
    """
    order = list(statistics.ranking(environment))[::-1]
    names = [label(algo) for algo in order]
    figure = Figure(figsize=(WIDTH, 1.3 + 0.5 * len(order) + 0.36 * _n_lines(names)), layout="constrained")
    _title(figure, environment)
    for axes, (score, name) in zip(figure.subplots(len(SCORES), 1), SCORES.items(), strict=True):
        ranking, runs = statistics.ranking(environment, score), statistics.scores(environment, score)
        for row, algo in enumerate(order):
            _interval(axes, row, ranking[algo], looks[algo])
            axes.plot(
                runs[algo].ravel(),
                np.full(len(runs[algo]), row - 0.3),
                linestyle="none",
                marker=looks[algo].marker,
                markersize=4,
                color=looks[algo].colour,
                alpha=0.75,
                markeredgewidth=0,
            )
        _rows(axes, names)
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.set_xlabel(name)
    return figure


def _rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))


@matplotlib.rc_context(RC)
def improvements(statistics: Statistics, environment: str, looks: dict[str, Style]) -> Figure:
    """
    :param statistics: Of the comparison
    :param environment: Where
    :param looks: Of the algorithms
    :return: Probabilities that a run of the best algorithm scores higher than one of each other
    """
    leader, *others = statistics.ranking(environment)
    names = [f"over {label(other)}" for other in others[::-1]]
    figure = Figure(figsize=(WIDTH, 1.0 + 0.25 * len(others) + 0.18 * _n_lines(names)), layout="constrained")
    _title(figure, f"{environment}: {leader}")
    axes = figure.add_subplot()
    axes.axvline(50, color="#8c8c8c", linewidth=1)
    for row, other in enumerate(others[::-1]):
        found = statistics.find_duel(environment, leader, other)
        improvement = found.improvement
        # One sample, seen twice, has no interval of its own
        ends = [None if end is None or found.equal else 100 * end for end in (improvement.low, improvement.high)]
        _interval(axes, row, Estimate(100 * improvement.point, *ends), looks[leader])
    _rows(axes, names)
    axes.set_xlim(0, 101)
    axes.set_xlabel("probability of improvement, %")
    return figure
