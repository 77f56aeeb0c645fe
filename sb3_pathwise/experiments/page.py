"""
The page of a report: verdicts and tables in words, put into the template of ``report.html``, and written with its figures.

Numbers come from ``statistics.py``, pictures from ``figures.py``; nothing is computed here.
"""

import base64
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd

from sb3_pathwise.experiments import figures
from sb3_pathwise.experiments.grid import Comparison, ComparisonError, one_line, slug
from sb3_pathwise.experiments.palette import styles
from sb3_pathwise.experiments.statistics import ALL, REPETITIONS, SCORES, Duel, Estimate, Place, Statistics
from sb3_pathwise.experiments.store import KEY, RUN_COLUMNS, finished_of, read_manifest, read_results
from sb3_pathwise.persistence.atomic import write_atomically

# Said of algorithms of which neither is ahead
SAME = "the same score with every seed"
REFERENCES = Path(__file__).with_name("references.csv")


class Report(NamedTuple):
    """A report that has been written: the page, its verdicts, and what else is to be said."""

    page: Path
    verdicts: list[dict[str, Any]]
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
    manifest, target = read_manifest(folder), output or folder
    runs, results = read_results(folder)
    if results.empty:
        raise ComparisonError(f"no run in {folder} is finished")
    request, notes = Comparison(**manifest["request"]), []
    known = _read_table(references or REFERENCES, ["environment"], ["random", "reference"])
    if seconds:
        pace = "seconds_per_1000_steps"
        paces = _read_table(seconds, ["algorithm", "environment"], [pace])
        results = results.join(paces[[pace]], on=["algorithm", "environment"])
        if len(missing := results[results[pace].isna()]):
            raise ComparisonError("no seconds are given for {algorithm} on {environment}".format(**missing.iloc[0]))
        results["train_seconds"] = results["step"] * results[pace] / 1000
        notes.append(f"Training times are steps times the seconds per step of {seconds.name}, which were measured apart.")
    statistics = Statistics(results, request.algos, request.envs, known)
    if len(statistics.environments) > 1 and statistics.references is None:
        unknown = f"there is no reference for {_listing(statistics.unknown)}" if statistics.unknown else ""
        why = unknown or "no seed is finished everywhere"
        notes.insert(0, f"No aggregate over the environments: {why} (--references gives others).")
    report = Report(target / "report.html", [verdict(place) for place in statistics.places], notes)
    # Of all that was asked for: a run that is still missing must not change the others' looks
    looks = styles(request.algos)
    files = {name: data for place in statistics.places for name, data in figures.files(place, looks).items()}
    text = _html(request, manifest["cells"], runs, statistics, report=report, looks=looks, files=files, folder=str(folder))
    try:
        (target / "figures").mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomically(target / "figures" / name, data)
        write_atomically(report.page, text)
    except OSError as error:
        raise ComparisonError(f"cannot write to {target} ({one_line(error)})") from error
    return report


def _html(request: Comparison, cells: dict[str, Any], runs: pd.DataFrame, statistics: Statistics, **more: Any) -> str:
    errors = runs.set_index(KEY)["error"].to_dict()
    wanted = [(algo, env, seed) for env in request.envs for algo in request.algos for seed in request.seeds]
    finished = finished_of(runs)
    # Several where runs differ
    versions = {name: " and ".join(filter(None, finished[name].unique())) for name in finished.columns.drop(RUN_COLUMNS)}
    machine = [versions.pop("platform", ""), f"{versions.pop('processors', '?')} processors"]
    every = [cell for environments in cells.values() for cell in environments.values()]
    loader = jinja2.PackageLoader(__name__)
    environment = jinja2.Environment(autoescape=True, loader=loader, trim_blocks=True, undefined=jinja2.StrictUndefined)
    # Inlined as markup, the ids of several figures would collide
    environment.filters["address"] = lambda svg: "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    return environment.get_template("report.html").render(
        cells=cells,
        date=runs["started"].max()[:10],
        duels={name: table for score, name in SCORES.items() if len(table := _duel_table(statistics, score))},
        lengths={key: " or ".join(dict.fromkeys(f"{cell[key]:,}" for cell in every)) for key in ("n_timesteps", "eval_freq")},
        machine=", ".join(filter(None, machine)),
        missing=[(*key, "failed" if errors.get(key) else "not finished") for key in wanted if errors.get(key) != ""],
        n_finished=len(finished),
        n_runs=len(wanted),
        one_seed=replace(request, n_seeds=1),
        repetitions=REPETITIONS,
        request=request,
        seeds=_seed_table(statistics),
        statistics=statistics,
        title=f"{_listing(statistics.algorithms)} on {_listing([place.name for place in statistics.environments])}",
        versions=", ".join(f"{name} {version}" for name, version in versions.items() if version),
        **more,
    )


def _read_table(path: Path, key: list[str], numbers: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path).set_index(key)
        table[numbers].astype(float)
    except (OSError, ValueError, KeyError) as error:
        what = f"a CSV file with {', '.join([*key, *numbers])}"
        raise ComparisonError(f"cannot read {path}, {what} ({one_line(error)})") from error
    return table


def _numbers(estimates: Iterable[Estimate]) -> Callable[[float], str]:
    # Text of numbers, all with the same decimals, which these estimates ask for; adding nothing makes no "-0.0"
    ends = [abs(end) for value in estimates for end in value if math.isfinite(end)]
    decimals = min(2, max(0, 3 - math.floor(math.log10(max(ends, default=1.0) or 1.0))))
    return lambda value: f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _interval(value: Estimate, text_of: Callable[[float], str], none: str = "no interval") -> str:
    return f"[{text_of(value.low)}, {text_of(value.high)}]" if value.bounded else none


def _p_value(p: float) -> str:
    if math.isnan(p):
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _listing(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def verdict(place: Place) -> dict[str, Any]:
    """
    :param place: An environment, or all of them
    :return: Who won there, by how much, and how sure that is, as text; a ``bar`` is an estimate in per cent of the ``scale``
    """
    ranking, duels = place.ranking["final"], place.against_the_best()
    (leader, best), text_of = next(iter(ranking.items())), _numbers(ranking.values())
    low, high = np.nanmin(list(ranking.values())), np.nanmax(list(ranking.values()))
    margin = 0.04 * ((high - low) or abs(high) or 1.0)
    low, high = low - margin, high + margin
    board = []
    for algo, value in ranking.items():
        bar = Estimate(*(round(100 * (end - low) / (high - low), 2) for end in value))
        row: dict[str, Any] = {"algorithm": algo, "bar": bar, "gap": "", "sure": "", "decided": False}
        row |= {"final": text_of(value.point), "interval": _interval(value, text_of)}
        if duel := duels.get(algo):
            row["gap"] = SAME if duel.equal else f"{text_of(duel.difference.point)} behind"
            row |= {"sure": _how_sure(place, duel), "decided": duel.decided}
        board.append(row)
    level = [leader, *(algo for algo, duel in duels.items() if duel.equal)]
    facts = [("Who is ahead", _listing(level), f"{text_of(best.point)} {_interval(best, text_of)}")]
    if duel := next((duel for duel in duels.values() if not duel.equal), None):
        often = f"{_interval(duel.improvement, _percent, '')} that a run of it beats one of {duel.second}".strip()
        tested = "" if place.name == ALL else f"; {_p_value(duel.p_holm)}"
        over = f"{_interval(duel.difference, text_of)} over {duel.second}"
        facts.append(("By how much", text_of(duel.difference.point), over))
        facts.append(("How sure", f"{_percent(duel.improvement.point)} %", often + tested))
    score, scale = "normalised score" if place.name == ALL else SCORES["final"], (text_of(low), text_of(high))
    found = {"place": place.name, "slug": slug(place.name), "score": score, "scale": scale, "facts": facts, "board": board}
    return found | _sentences(place, level, duels)


def _sentences(place: Place, level: list[str], duels: dict[str, Duel]) -> dict[str, str]:
    where = f"over {len(place.environments)} environments" if place.name == ALL else f"on {place.name}"
    tied = [algo for algo, duel in duels.items() if not duel.decided and not duel.equal]
    beaten = [algo for algo, duel in duels.items() if duel.decided]
    ahead, several = _listing(level), len(level) > 1
    are, their, they = ("are", "their", "They are") if several else ("is", "its", "It is")
    sentences = []
    if not duels:
        headline, sentences = ahead, ["There is nothing to compare it with."]
    elif not tied and not beaten:
        headline = "No difference"
    elif not next(iter(duels.values())).difference.bounded:
        headline = "Too few seeds to name a winner"
        sentences = [f"{ahead} {are} ahead; whether by more than chance cannot be said."]
    else:
        headline = "No clear winner" if tied else f"{ahead} won"
        if tied:
            sentences = [f"{ahead} {are} ahead, but chance alone may explain {their} lead over {_listing(tied)}."]
        if beaten:
            sentences.append(f"{they} ahead of {_listing(beaten)} by more than chance explains.")
    if several:
        sentences.append(f"{ahead} have {SAME}.")
    return {"headline": f"{headline} {where}", "detail": " ".join(sentences)}


def _how_sure(place: Place, duel: Duel) -> str:
    if duel.equal:
        return ""
    if not duel.difference.bounded:
        return "too few seeds to test"
    chance = "more than chance" if duel.decided else "may be chance"
    return chance if place.name == ALL else f"{_p_value(duel.p_holm)}, {chance}"


def _duel_table(statistics: Statistics, score: str) -> pd.DataFrame:
    rows = []
    for place in statistics.environments:
        text_of = _numbers(place.ranking[score].values())
        for duel in place.duels[score]:
            gap, better = duel.difference, duel.improvement
            difference = SAME if duel.equal else f"{text_of(gap.point)} {_interval(gap, text_of)}"
            improvement = f"{_percent(better.point)} % {_interval(better, _percent, '')}".strip()
            row = {"environment": place.name, "ahead": duel.first, "behind": duel.second, "difference": difference}
            row |= {"probability of improvement": improvement, "after Holm's correction": _p_value(duel.p_holm)}
            row |= {"more than chance": "yes" if duel.decided else "", "Welch's t-test": _p_value(duel.p)}
            rows.append(row | {"Mann-Whitney U test": _p_value(duel.p_rank)})
    return pd.DataFrame(rows)


def _seed_table(statistics: Statistics) -> pd.DataFrame:
    tables = []
    for place in statistics.environments:
        text_of = _numbers(place.ranking["final"].values())
        tables.append(place.runs.assign(**{name: place.runs[score].map(text_of) for score, name in SCORES.items()}))
    table = pd.concat(tables).reset_index().sort_values(["environment", "algorithm", "seed"])
    table["training time"] = table["train_seconds"].map(_duration)
    speed = table["step"] / table["train_seconds"]
    table["steps per second"] = speed.map("{:,.0f}".format).where(table["train_seconds"] > 0, "")
    return table[["environment", "algorithm", "seed", *SCORES.values(), "training time", "steps per second"]]
