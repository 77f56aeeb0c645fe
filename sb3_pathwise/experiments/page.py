"""
The words of a report: the verdict, tables and notes, put into the templates of ``report.md`` and ``report.html``.

Numbers come from ``statistics.py``, pictures from ``figures.py``; nothing is computed here.
"""

import base64
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jinja2
import markupsafe
import pandas as pd

from sb3_pathwise.experiments.grid import MIN_SEEDS, Comparison
from sb3_pathwise.experiments.palette import Style
from sb3_pathwise.experiments.statistics import REPETITIONS, SCORES, Duel, Estimate, Statistics, iqm, ranked

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
# Said of algorithms of which neither is ahead
SAME = "the same score with every seed"


class Numbers:
    """
    Numbers of one environment, all with the same decimals.

    :param values: The estimates that set the scale
    """

    def __init__(self, values: Iterable[Estimate]) -> None:
        ends = [abs(end) for value in values for end in vars(value).values() if end is not None and math.isfinite(end)]
        largest = max(ends, default=1.0) or 1.0
        self.decimals = min(2, max(0, 3 - math.floor(math.log10(largest))))

    def __call__(self, value: float) -> str:
        """
        :param value: A number
        :return: Its text
        """
        text = f"{value:,.{self.decimals}f}"
        # No "-0.0"
        return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", MINUS)

    def interval(self, value: Estimate) -> str:
        """
        :param value: A number with an interval
        :return: The interval's text
        """
        return "no interval" if value.low is None or value.high is None else f"[{self(value.low)}, {self(value.high)}]"


def percent(value: Estimate) -> str:
    """
    :param value: A probability
    :return: It and its interval in per cent
    """
    if value.low is None or value.high is None:
        return f"{100 * value.point:.0f} %"
    return f"{100 * value.point:.0f} % [{100 * value.low:.0f}, {100 * value.high:.0f}]"


def p_value(p: float | None) -> str:
    """
    :param p: Of a test
    :return: Its text
    """
    if p is None:
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def duration(seconds: float) -> str:
    """
    :param seconds: A time
    :return: Its text
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def listing(names: list[str]) -> str:
    """
    :param names: Some
    :return: Them in a sentence
    """
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


@dataclass
class Row:
    """A line of a leader board; positions are per cent of the board's scale."""

    algorithm: str
    final: str
    interval: str
    gap: str
    sure: str
    decided: bool
    area: str
    time: str
    n_seeds: int
    position: float
    low: float | None
    high: float | None


@dataclass
class Verdict:
    """Who won on an environment (or on all), by how much, and how sure that is."""

    environment: str
    score: str
    headline: str
    detail: str
    facts: list[tuple[str, str, str]]
    board: list[Row]
    scale: tuple[str, str]


def verdict(statistics: Statistics, environment: str) -> Verdict:
    """
    :param statistics: Of the comparison
    :param environment: Where
    :return: The verdict there
    """
    ranking, areas = statistics.ranking(environment), statistics.ranking(environment, "auc")
    numbers, leader = Numbers(ranking.values()), next(iter(ranking))
    duels = {other: statistics.find_duel(environment, leader, other) for other in ranking if other != leader}
    low, high = _scale(ranking.values())
    runs = statistics.runs[statistics.runs["environment"] == environment]
    board = []
    for algo, estimate in ranking.items():
        ours = runs[runs["algorithm"] == algo]
        board.append(
            Row(
                algorithm=algo,
                final=numbers(estimate.point),
                interval=numbers.interval(estimate),
                gap=_gap(duels.get(algo), numbers),
                sure=_how_sure(duels[algo]) if algo in duels else "",
                decided=algo in duels and duels[algo].decided,
                area=f"{numbers(areas[algo].point)} {numbers.interval(areas[algo])}",
                time=duration(float(ours["train_seconds"].median())),
                n_seeds=len(ours),
                **_positions(estimate, low, high),
            )
        )
    headline, detail = _sentences(environment, leader, duels)
    facts = _facts(ranking, duels, numbers)
    return Verdict(environment, SCORES["final"], headline, detail, facts, board, (numbers(low), numbers(high)))


def overall(statistics: Statistics) -> Verdict | None:
    """
    :param statistics: Of the comparison
    :return: The verdict over all environments, if there are several and their scores can be pooled
    """
    matrices = statistics.normalised
    if len(matrices) < 2:
        return None
    ranking = ranked({algorithm: iqm(matrix) for algorithm, matrix in matrices.items()})
    numbers, leader = Numbers([Estimate(1.0)]), next(iter(ranking))
    duels = {other: statistics.find_duel(None, leader, other) for other in ranking if other != leader}
    low, high = _scale(ranking.values())
    board = [
        Row(
            algorithm=algo,
            final=numbers(estimate.point),
            interval=numbers.interval(estimate),
            gap=_gap(duels.get(algo), numbers),
            sure=_how_sure_overall(duels[algo]) if algo in duels else "",
            decided=algo in duels and _sure(duels[algo]),
            area="",
            time="",
            n_seeds=len(matrices[algo]),
            **_positions(estimate, low, high),
        )
        for algo, estimate in ranking.items()
    ]
    level = [algo for algo, found in duels.items() if found.equal]
    tied = [algo for algo, found in duels.items() if not found.equal and not _sure(found)]
    ahead = listing([leader, *level])
    where = f"over {len(statistics.environments)} environments"
    headline = f"No clear winner {where}" if tied else f"{ahead} won {where}"
    if len(level) == len(duels):
        headline = f"No difference {where}"
    detail = "Final returns, pooled on a scale where 0 is an untrained policy and 1 the best result of this comparison."
    if tied:
        detail += f" Chance alone may explain the lead of {ahead} over {listing(tied)}."
    if level:
        detail += f" {ahead} have {SAME}."
    facts = _facts(ranking, duels, numbers)
    return Verdict("all environments", "normalised score", headline, detail, facts, board, (numbers(low), numbers(high)))


def _sure(found: Duel) -> bool:
    return found.improvement.low is not None and found.improvement.low > 0.5


def _how_sure_overall(found: Duel) -> str:
    if found.equal:
        return ""
    return "more than chance" if _sure(found) else "may be chance"


def _sentences(environment: str, leader: str, duels: dict[str, Duel]) -> tuple[str, str]:
    level = [algo for algo, found in duels.items() if found.equal]
    tied = [algo for algo, found in duels.items() if not found.decided and not found.equal]
    beaten = [algo for algo, found in duels.items() if found.decided]
    if not duels:
        return f"{leader} on {environment}", "There is nothing to compare it with."
    ahead, are, their = listing([leader, *level]), "are" if level else "is", "their" if level else "its"
    same = f" {ahead} have {SAME}." if level else ""
    if not tied and not beaten:
        return f"No difference on {environment}", same.strip()
    if next(iter(duels.values())).p_holm is None:
        return (
            f"Too few seeds to name a winner on {environment}",
            f"{ahead} {are} ahead; whether by more than chance cannot be said.{same}",
        )
    they = "They are" if level else "It is"
    if not tied:
        return f"{ahead} won on {environment}", f"{they} ahead of {listing(beaten)} by more than chance explains.{same}"
    detail = f"{ahead} {are} ahead, but chance alone may explain {their} lead over {listing(tied)}."
    if beaten:
        detail += f" {they} ahead of {listing(beaten)} by more than chance explains."
    return f"No clear winner on {environment}", detail + same


def _facts(ranking: dict[str, Estimate], duels: dict[str, Duel], numbers: Numbers) -> list[tuple[str, str, str]]:
    """
    :param ranking: The highest first
    :param duels: The first against each other
    :param numbers: For the texts
    :return: Who, by how much, how sure: each a question, an answer and a remark
    """
    leader, best = next(iter(ranking.items()))
    level = [algo for algo, found in duels.items() if found.equal]
    facts = [("Who is ahead", listing([leader, *level]), f"{numbers(best.point)} {numbers.interval(best)}")]
    next_best = next((found for found in duels.values() if not found.equal), None)
    if next_best is not None:
        gap, improvement = next_best.difference, next_best.improvement
        facts.append(("By how much", numbers(gap.point), f"{numbers.interval(gap)} over {next_best.second}"))
        remark = f"that a run of it beats one of {next_best.second}"
        if improvement.low is not None and improvement.high is not None:
            remark = f"[{100 * improvement.low:.0f}, {100 * improvement.high:.0f}] {remark}"
        if next_best.environment is not None:
            remark += f"; {p_value(next_best.p_holm)}"
        facts.append(("How sure", f"{100 * improvement.point:.0f} %", remark))
    return facts


def _gap(found: Duel | None, numbers: Numbers) -> str:
    if found is None:
        return ""
    return SAME if found.equal else f"{numbers(found.difference.point)} behind"


def _how_sure(found: Duel) -> str:
    if found.equal:
        return ""
    if found.p_holm is None:
        return "too few seeds to test"
    return f"{p_value(found.p_holm)}, " + ("more than chance" if found.decided else "may be chance")


def _scale(estimates: Iterable[Estimate]) -> tuple[float, float]:
    ends = [end for value in estimates for end in vars(value).values() if end is not None]
    low, high = min(ends), max(ends)
    margin = 0.04 * ((high - low) or abs(high) or 1.0)
    return low - margin, high + margin


def _positions(estimate: Estimate, low: float, high: float) -> dict[str, Any]:
    places = {"position": estimate.point, "low": estimate.low, "high": estimate.high}
    return {name: None if end is None else round(100 * (end - low) / (high - low), 2) for name, end in places.items()}


def duel_rows(statistics: Statistics) -> dict[str, list[dict[str, Any]]]:
    """
    :param statistics: Of the comparison
    :return: The tables of pairwise tests, as text, by the score's name
    """
    tables: dict[str, list[dict[str, Any]]] = {}
    for found in statistics.duels:
        numbers = Numbers(statistics.ranking(str(found.environment), found.score).values())
        tables.setdefault(SCORES[found.score], []).append(
            {
                "environment": found.environment,
                "first": found.first,
                "second": found.second,
                "difference": SAME
                if found.equal
                else f"{numbers(found.difference.point)} {numbers.interval(found.difference)}",
                # One sample, seen twice, has no interval of its own
                "improvement": percent(Estimate(0.5) if found.equal else found.improvement),
                "p": p_value(found.p),
                "p_rank": p_value(found.p_rank),
                "p_holm": p_value(found.p_holm),
                "decided": found.decided,
            }
        )
    return tables


def seed_rows(statistics: Statistics) -> list[dict[str, Any]]:
    """
    :param statistics: Of the comparison
    :return: The table of every run, as text
    """
    rows = []
    for environment in statistics.environments:
        numbers = Numbers(statistics.ranking(environment).values())
        for run in statistics.runs[statistics.runs["environment"] == environment].itertuples():
            rows.append(
                {
                    "environment": environment,
                    "algorithm": run.algorithm,
                    "seed": run.seed,
                    "final": numbers(run.final),
                    "auc": numbers(run.auc),
                    "time": duration(run.train_seconds),
                    "speed": f"{run.steps / run.train_seconds:,.0f}" if run.train_seconds > 0 else DASH,
                }
            )
    return rows


def version_rows(finished: list[dict[str, Any]]) -> dict[str, str]:
    """
    :param finished: What is known of every run
    :return: The version of each package; several where runs differ
    """
    found: dict[str, list[str]] = {}
    for run in finished:
        for package, version in run["versions"].items():
            if version not in found.setdefault(package, []):
                found[package].append(version)
    return {package: " and ".join(versions) for package, versions in found.items()}


def context(
    statistics: Statistics,
    manifest: dict[str, Any],
    finished: list[dict[str, Any]],
    missing: list[dict[str, Any]],
    looks: dict[str, Style],
    output: str,
) -> dict[str, Any]:
    """
    :param statistics: Of the comparison
    :param manifest: What it was started with
    :param finished: What is known of the finished runs
    :param missing: The others
    :param looks: Of the algorithms
    :param output: The folder, for the command that reproduces it
    :return: What both templates are filled with, but for the figures
    """
    comparison = Comparison(**manifest["request"])
    verdicts = [verdict(statistics, environment) for environment in statistics.environments]
    whole = overall(statistics)
    one = Comparison(**manifest["request"] | {"n_seeds": 1})
    cells = [cell for cells in manifest["cells"].values() for cell in cells.values()]
    return {
        "title": f"{listing(statistics.algorithms)} on {listing(statistics.environments)}",
        "verdicts": [whole, *verdicts] if whole else verdicts,
        "missing": missing,
        "n_finished": len(finished),
        "n_runs": len(finished) + len(missing),
        "n_seeds": comparison.n_seeds,
        "steps": " or ".join(f"{steps:,}" for steps in dict.fromkeys(cell["n_timesteps"] for cell in cells)),
        "eval_freq": " or ".join(f"{steps:,}" for steps in dict.fromkeys(cell["eval_freq"] for cell in cells)),
        "n_eval_episodes": comparison.n_eval_episodes,
        "date": pd.to_datetime(max(run["started"] for run in finished), unit="s").date().isoformat(),
        "duels": duel_rows(statistics),
        "seeds": seed_rows(statistics),
        "scores": SCORES,
        "versions": version_rows(finished),
        "mixed_versions": any(" and " in versions for versions in version_rows(finished).values()),
        "machines": sorted({f"{run['machine']['platform']}, {run['machine']['processors']} processors" for run in finished}),
        "command": comparison.command(output),
        "seed_command": one.command(f"{output.rstrip('/')}-one-seed") + " --no-report",
        "cells": manifest["cells"],
        "looks": looks,
        "min_seeds": MIN_SEEDS,
        "repetitions": f"{REPETITIONS:,}",
        "has_overall": whole is not None,
    }


def data_uri(svg: bytes) -> str:
    """
    :param svg: A figure
    :return: An address that holds it; inlined as markup, the ids of several figures would collide
    """
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def render(template: str, values: dict[str, Any]) -> str:
    """
    :param template: File in ``templates``
    :param values: What it is filled with
    :return: The page
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sb3_pathwise.experiments"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # A table's cell must not end at a name's "|"
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|")
    # Long names may be broken, but where a reader expects it
    environment.filters["breakable"] = lambda text: markupsafe.Markup(
        re.sub(r"([:,])", r"\1<wbr>", str(markupsafe.escape(text)))
    )
    environment.globals["data_uri"] = data_uri
    return environment.get_template(template).render(values)
