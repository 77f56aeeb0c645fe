"""
With how many samples does the likelihood ratio earn what the pathwise gradient earns? Tables and figure of the trainings of
`docs/guide/study.md`: returns after as many steps, and after as much time.

They are made from text alone: the runs of `sb3-pathwise compare` in `examples/figures/study/returns`, with the seconds of a
step (`python examples/mujoco_returns.py --measure study`), and the variances that `study_variance.py` has measured.
Needs `pip install -e '.[compare,mujoco]'`.

    python examples/study_returns.py
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from mujoco_returns import (
    CROSSQ,
    LARGE_BATCHES,
    NOTHING,
    STUDY,
    as_table,
    difference,
    mean_returns,
    paces_of,
    with_seeds,
)
from study_variance import LINES, read_csv, samples_to_match

ENVS = ("Hopper-v5", "HalfCheetah-v5")
CRITICS = {"ac": "twin", "crossq": "batch_renorm"}
# Evaluations between these steps are one number
EARLY = (30_000, 50_000)
# Not one pathwise sample, nor some of the likelihood ratio's with a baseline: place in the figure, and label
OTHERS = {
    "likelihood_ratio_ac:baseline=none": (4, "likelihood ratio, 8, no baseline"),
    "mixed_ac": (5, "mixed, 8"),
    "measure_valued_ac": (6, "measure-valued, 1"),
}
PATHWISE, LIKELIHOOD_RATIO = (LINES[label][1] for label in ("pathwise", "likelihood ratio, leave-one-out"))


class Variant(NamedTuple):
    """
    What a variant of the study has earned.

    :param critic: Of which kind
    :param x: Its place in the figure: 0 for one pathwise sample, below 4 for the likelihood ratio with a baseline
    :param label: Route, and number of samples
    :param early: Mean return between 30,000 and 50,000 steps, by seed
    :param cost: Time of a step, that of one pathwise sample with the same critic being 1
    :param as_long: Mean return when it has trained for as long as one pathwise sample has by those steps, by seed
    :param reference: Mean return of one pathwise sample, by seed
    """

    critic: str
    x: float
    label: str
    early: pd.Series
    cost: float
    as_long: pd.Series
    reference: pd.Series


def _after_as_long(folder: Path, name: str, env: str, cost: float) -> pd.Series:
    return mean_returns(folder, (EARLY[0] / cost, EARLY[1] / cost))[name].get(env, NOTHING)


def variants(env: str) -> list[Variant]:
    """:return: Those that have runs, by critic and place"""
    early, paces = mean_returns(STUDY, EARLY), paces_of(pd.read_csv(STUDY / "seconds.csv"))
    found = []
    for name, cells in json.loads((STUDY / "comparison.json").read_text())["cells"].items():
        if (name, env) not in early:
            continue
        kind = cells[env]["algo"].rpartition("_")[2]
        n_samples = cells[env]["hyperparams"].get("n_action_samples")
        x, label = OTHERS.get(name) or (
            (_place(n_samples), f"likelihood ratio, {n_samples}") if n_samples else (0, "pathwise, 1")
        )
        reference = f"pathwise_{kind}"
        cost = paces[name, env] / paces[reference, env]
        as_long = _after_as_long(STUDY, name, env, cost)
        found.append(Variant(CRITICS[kind], x, label, early[name, env], cost, as_long, early[reference, env]))
    return sorted(found, key=lambda variant: (list(CRITICS.values()).index(variant.critic), variant.x))


def _place(n_samples: float) -> float:
    # 2, 8 and 32 samples are at 1, 2 and 3
    return (math.log2(n_samples) + 1) / 2


def early_table() -> str:
    """:return: A line per task: both routes in larger batches after as many steps, and after as much time"""
    pathwise, likelihood_ratio = CROSSQ
    early, paces = mean_returns(LARGE_BATCHES, EARLY), paces_of(pd.read_csv(LARGE_BATCHES / "seconds.csv"))
    rows = []
    for env in ENVS:
        as_long = _after_as_long(LARGE_BATCHES, likelihood_ratio, env, paces[likelihood_ratio, env] / paces[pathwise, env])
        rows.append([env, *map(with_seeds, (early[pathwise, env], early[likelihood_ratio, env], as_long))])
    return as_table(["task", "pathwise", "likelihood ratio", "likelihood ratio, as much time"], rows)


def study_table(env: str) -> str:
    """:return: A line per variant: mean and seeds after as many steps and as much time, and how far pathwise is behind"""
    rows = []
    for variant in variants(env):
        cells = [f"{variant.critic}: {variant.label}", with_seeds(variant.early), "", f"{variant.cost:.2f} x", "the same", ""]
        if variant.x > 0:
            cells[2] = difference(variant.early, variant.reference)
        if variant.cost > 1:
            cells[4:] = with_seeds(variant.as_long), difference(variant.as_long, variant.reference)
        rows.append(cells)
    return as_table([env, "as many steps", "difference", "time of a step", "as much time", "difference"], rows)


def draw(path: Path) -> None:
    """
    Of each task and critic, every variant's returns after as many steps and after as much time, over the number of samples.

    :param path: Of the figure
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 8), layout="constrained")
        grid = figure.subplots(len(CRITICS), len(ENVS))
    for env, column in zip(ENVS, grid.T, strict=True):
        found = variants(env)
        for critic, axes in zip(CRITICS.values(), column, strict=True):
            there = [variant for variant in found if variant.critic == critic]
            _draw_variants(axes, there)
            measured = read_csv(STUDY.parent / f"variance-{env}-{critic}.csv")
            equal = [_place(samples_to_match(point)) for (_, scale), point in measured.items() if scale == 1]
            axes.axvspan(min(equal), max(equal), color="0.92", zorder=-1, label="as many samples as make the variances equal")
            axes.axhline(there[0].reference.mean(), color=PATHWISE, linewidth=1, linestyle="--", zorder=0)
            axes.set(title=f"{env}, {critic} critic", ylabel="return", ylim=(min(0, axes.get_ylim()[0]), None))
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.grid(axis="y", color="0.9", linewidth=0.8)
            axes.set_axisbelow(True)
    figure.suptitle(
        "Mean return from 30,000 to 50,000 steps: each seed, and their mean (LR: likelihood ratio, number: samples)"
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=100)


def _draw_variants(axes: Any, there: list[Variant]) -> None:
    labels = [
        variant.label.replace("likelihood ratio", "LR").replace(", no ", ",\nno ").replace("-v", "-\nv") for variant in there
    ]
    axes.set_xticks([variant.x for variant in there], labels)
    for what, of, shift, style, looks in (
        ("after as many steps", "early", -0.07, "-", {"marker": "o", "fillstyle": "full"}),
        ("after as much time", "as_long", 0.07, ":", {"marker": "^", "fillstyle": "none"}),
    ):
        line = []
        for variant in there:
            x, seeds = variant.x + shift, getattr(variant, of)
            colour = PATHWISE if variant.x == 0 else LIKELIHOOD_RATIO if variant.x < 4 else "0.35"
            axes.plot([x] * len(seeds), seeds, color=colour, linestyle="none", markersize=5, **looks)
            axes.plot(x, seeds.mean(), "_", color=colour, markersize=16, markeredgewidth=2)
            if 0 < variant.x < 4:
                line.append((x, seeds.mean()))
        axes.plot(*zip(*line, strict=True), style, color=LIKELIHOOD_RATIO, linewidth=1, zorder=0)
        axes.plot([], [], style, color="0.35", label=what, **looks)


def main() -> None:
    print(early_table(), *map(study_table, ENVS), sep="\n\n")
    path = STUDY / "figures" / "samples.png"
    draw(path)
    print(f"\nWritten: {path}")


if __name__ == "__main__":
    main()
