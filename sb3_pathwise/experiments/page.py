"""
The words of a report: verdicts, tables and notes, put into the template of ``report.html``.

Numbers come from ``statistics.py``, pictures from ``figures.py``; nothing is computed here.
"""

import base64
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jinja2
import markupsafe
import pandas as pd

from sb3_pathwise.experiments.grid import Comparison
from sb3_pathwise.experiments.palette import Style
from sb3_pathwise.experiments.statistics import ALL, REPETITIONS, SCORES, Duel, Estimate, Statistics
from sb3_pathwise.experiments.store import RUN_COLUMNS, finished_of

MINUS = "\N{MINUS SIGN}"
# Said of algorithms of which neither is ahead
SAME = "the same score with every seed"


def numbers(estimates: Any) -> Callable[[float], str]:
    """:return: What makes text of numbers, all with the same decimals, which these estimates ask for"""
    ends = [abs(end) for value in estimates for end in value if end is not None and math.isfinite(end)]
    decimals = min(2, max(0, 3 - math.floor(math.log10(max(ends, default=1.0) or 1.0))))

    def text_of(value: float) -> str:
        text = f"{value:,.{decimals}f}"
        # No "-0.0"
        return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", MINUS)

    return text_of


def interval(value: Estimate, text_of: Callable[[float], str]) -> str:
    """:return: The text of an estimate's interval"""
    return "no interval" if value.low is None or value.high is None else f"[{text_of(value.low)}, {text_of(value.high)}]"


def percent(value: Estimate) -> tuple[str, str]:
    """:return: The texts of a probability and of its interval, in per cent"""
    ends = "" if value.low is None or value.high is None else f"[{100 * value.low:.0f}, {100 * value.high:.0f}]"
    return f"{100 * value.point:.0f} %", ends


def p_value(p: float | None) -> str:
    """:return: The text of a test's outcome"""
    if p is None:
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def duration(seconds: float) -> str:
    """:return: The text of a time"""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def listing(names: list[str]) -> str:
    """:return: Names as they stand in a sentence"""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


class Row(NamedTuple):
    """A line of a leader board; positions of the estimate and its interval's ends are per cent of the board's scale."""

    algorithm: str
    final: str
    interval: str
    gap: str
    sure: str
    decided: bool
    position: float | None
    low: float | None
    high: float | None


class Verdict(NamedTuple):
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
    :param environment: Where, or ``ALL``
    :return: The verdict there
    """
    ranking = statistics.ranking(environment)
    text_of, leader = numbers(ranking.values()), next(iter(ranking))
    duels = {other: statistics.find_duel(environment, leader, other) for other in ranking if other != leader}
    ends = [end for value in ranking.values() for end in value if end is not None]
    margin = 0.04 * ((max(ends) - min(ends)) or abs(max(ends)) or 1.0)
    low, high = min(ends) - margin, max(ends) + margin
    board = []
    for algo, value in ranking.items():
        found = duels.get(algo)
        against = ("", "", False) if found is None else (_gap(found, text_of), _how_sure(found), found.decided)
        places = (None if end is None else round(100 * (end - low) / (high - low), 2) for end in value)
        board.append(Row(algo, text_of(value.point), interval(value, text_of), *against, *places))
    score = "normalised score" if environment == ALL else SCORES["final"]
    where = f"over {len(statistics.environments)} environments" if environment == ALL else f"on {environment}"
    headline, detail = _sentences(where, leader, duels)
    return Verdict(environment, score, headline, detail, _facts(ranking, duels), board, (text_of(low), text_of(high)))


def _sentences(where: str, leader: str, duels: dict[str, Duel]) -> tuple[str, str]:
    level = [algo for algo, found in duels.items() if found.equal]
    tied = [algo for algo, found in duels.items() if not found.decided and not found.equal]
    beaten = [algo for algo, found in duels.items() if found.decided]
    if not duels:
        return f"{leader} {where}", "There is nothing to compare it with."
    ahead = listing([leader, *level])
    are, their, they = ("are", "their", "They are") if level else ("is", "its", "It is")
    same = f" {ahead} have {SAME}." if level else ""
    if not tied and not beaten:
        return f"No difference {where}", same.strip()
    if not next(iter(duels.values())).testable:
        detail = f"{ahead} {are} ahead; whether by more than chance cannot be said.{same}"
        return f"Too few seeds to name a winner {where}", detail
    if not tied:
        return f"{ahead} won {where}", f"{they} ahead of {listing(beaten)} by more than chance explains.{same}"
    detail = f"{ahead} {are} ahead, but chance alone may explain {their} lead over {listing(tied)}."
    if beaten:
        detail += f" {they} ahead of {listing(beaten)} by more than chance explains."
    return f"No clear winner {where}", detail + same


def _facts(ranking: dict[str, Estimate], duels: dict[str, Duel]) -> list[tuple[str, str, str]]:
    # Who, by how much, how sure: each a question, an answer and a remark
    text_of = numbers(ranking.values())
    leader, best = next(iter(ranking.items()))
    level = [algo for algo, found in duels.items() if found.equal]
    facts = [("Who is ahead", listing([leader, *level]), f"{text_of(best.point)} {interval(best, text_of)}")]
    found = next((found for found in duels.values() if not found.equal), None)
    if found is not None:
        remark = f"{interval(found.difference, text_of)} over {found.second}"
        facts.append(("By how much", text_of(found.difference.point), remark))
        how_often, ends = percent(found.improvement)
        remark = f"{ends} that a run of it beats one of {found.second}".strip()
        facts.append(("How sure", how_often, remark if found.environment == ALL else f"{remark}; {p_value(found.p_holm)}"))
    return facts


def _gap(found: Duel, text_of: Callable[[float], str]) -> str:
    return SAME if found.equal else f"{text_of(found.difference.point)} behind"


def _how_sure(found: Duel) -> str:
    if found.equal:
        return ""
    if not found.testable:
        return "too few seeds to test"
    chance = "more than chance" if found.decided else "may be chance"
    return chance if found.environment == ALL else f"{p_value(found.p_holm)}, {chance}"


def duel_table(statistics: Statistics, score: str) -> pd.DataFrame:
    """:return: The pairwise tests by one of ``SCORES``, as text"""
    rows = []
    for found in statistics.duels:
        if found.score == score and found.environment != ALL:
            text_of = numbers(statistics.ranking(found.environment, score).values())
            gap = f"{text_of(found.difference.point)} {interval(found.difference, text_of)}"
            improvement = percent(found.improvement)
            row = {"environment": found.environment, "ahead": found.first, "behind": found.second}
            row |= {"difference": SAME if found.equal else gap, "probability of improvement": " ".join(improvement).strip()}
            row |= {"after Holm's correction": p_value(found.p_holm), "more than chance": "yes" if found.decided else ""}
            rows.append(row | {"Welch's t-test": p_value(found.p), "Mann-Whitney U test": p_value(found.p_rank)})
    return _table(statistics, rows)


def _table(statistics: Statistics, rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    return table if len(statistics.environments) > 1 or not rows else table.drop(columns="environment")


def seed_table(statistics: Statistics) -> pd.DataFrame:
    """:return: Every run, as text"""
    rows = []
    for run in statistics.runs.itertuples():
        text_of = numbers(statistics.ranking(run.environment).values())
        row = {"environment": run.environment, "algorithm": run.algorithm, "seed": run.seed}
        row |= {name: text_of(getattr(run, score)) for score, name in SCORES.items()}
        speed = f"{run.steps / run.train_seconds:,.0f}" if run.train_seconds > 0 else ""
        rows.append(row | {"training time": duration(run.train_seconds), "steps per second": speed})
    return _table(statistics, rows)


def context(
    statistics: Statistics, manifest: dict[str, Any], runs: pd.DataFrame, looks: dict[str, Style], output: str
) -> dict[str, Any]:
    """
    :param statistics: Of the comparison
    :param manifest: What it was started with
    :param runs: What is known of those that have ended, as text
    :param looks: Of the algorithms
    :param output: The folder, for the command that reproduces it
    :return: What the template is filled with, but for figures and notes
    """
    comparison = Comparison(**manifest["request"])
    one = Comparison(**manifest["request"] | {"n_seeds": 1})
    errors = {(run.algorithm, run.environment, run.seed): run.error for run in runs.itertuples()}
    wanted = [(algo, env, seed) for env in comparison.envs for algo in comparison.algos for seed in comparison.seeds]
    cells = [cell for cells in manifest["cells"].values() for cell in cells.values()]
    versions = finished_of(runs).drop(columns=RUN_COLUMNS)
    # Several where runs differ
    made_with = {name: " and ".join(filter(None, dict.fromkeys(versions[name]))) for name in versions}
    machine = [made_with.pop("platform", ""), f"{made_with.pop('processors', '?')} processors"]
    return {
        "title": f"{listing(statistics.algorithms)} on {listing(statistics.environments)}",
        "verdicts": [verdict(statistics, place) for place in statistics.places],
        "missing": [(*key, "failed" if errors.get(key) else "not finished") for key in wanted if errors.get(key) != ""],
        "n_finished": len(versions),
        "n_runs": len(wanted),
        "n_seeds": comparison.n_seeds,
        "steps": " or ".join(f"{steps:,}" for steps in dict.fromkeys(cell["n_timesteps"] for cell in cells)),
        "eval_freq": " or ".join(f"{steps:,}" for steps in dict.fromkeys(cell["eval_freq"] for cell in cells)),
        "n_eval_episodes": comparison.n_eval_episodes,
        "date": runs["started"].max()[:10],
        "duels": {name: table for score, name in SCORES.items() if len(table := duel_table(statistics, score))},
        "seeds": seed_table(statistics),
        "references": statistics.references.loc[statistics.environments].reset_index() if ALL in statistics.places else None,
        "versions": ", ".join(f"{name} {version}" for name, version in made_with.items() if version),
        "mixed_versions": any(" and " in version for version in made_with.values()),
        "machine": ", ".join(filter(None, machine)),
        "command": comparison.command(output),
        "seed_command": one.command(f"{output.rstrip('/')}-one-seed") + " --no-report",
        "cells": manifest["cells"],
        "looks": looks,
        "repetitions": f"{REPETITIONS:,}",
    }


def render(template: str, values: dict[str, Any]) -> str:
    """
    :param template: File in ``templates``
    :param values: What it is filled with
    :return: The page
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sb3_pathwise.experiments"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Long names may be broken, but where a reader expects it
    broken = re.compile(r"([:,])")
    environment.filters["breakable"] = lambda text: markupsafe.Markup(broken.sub(r"\1<wbr>", str(markupsafe.escape(text))))
    # Inlined as markup, the ids of several figures would collide
    environment.filters["address"] = lambda svg: "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    # As pandas writes it, escaped
    environment.filters["html"] = lambda table: markupsafe.Markup(table.to_html(index=False, border=0))
    return environment.get_template(template).render(values)
