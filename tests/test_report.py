"""Tests of ``report``: statistics, verdicts, page and figures of results that are made up, by laws that the tests know."""

import html
import io
import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from rich.console import Console
from rliable import metrics
from rliable.library import get_interval_estimates

from sb3_pathwise.experiments import figures, page, palette
from sb3_pathwise.experiments.compare import comparison_of, make_parser
from sb3_pathwise.experiments.grid import Comparison, Run
from sb3_pathwise.experiments.report import Report, main, print_report, write_report
from sb3_pathwise.experiments.statistics import ALL, Estimate, Statistics
from sb3_pathwise.experiments.store import COLUMNS, Store, read_manifest
from sb3_pathwise.zoo.registry import ALGORITHMS

STEPS = (0, 50, 100)
ENV, OTHER = "Pendulum-v1", "Other-v0"
# Returns of random actions, from which the runs start, and those that are 1 when normalised
REFERENCES = pd.DataFrame({"random": {ENV: 0.0, OTHER: -30.0}, "reference": {ENV: 10.0, OTHER: -10.0}})
Finals = dict[str, list[float]]


@pytest.fixture(scope="module", autouse=True)
def few_repetitions() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sb3_pathwise.experiments.statistics.REPETITIONS", 400)
        yield


def statistics_of(*finals: Finals) -> Statistics:
    """Statistics of runs that learn at a constant pace to these returns, on an environment or two; seed 3 twice as fast."""
    rows = [
        [algo, env, seed, step, step * (1.0 if seed == 3 else 2.0), 0, start + (final - start) * step / 100, 10]
        for (env, start), ours in zip(REFERENCES["random"].items(), finals, strict=False)
        for algo, values in ours.items()
        for seed, final in enumerate(values)
        for step in STEPS
    ]
    return Statistics(pd.DataFrame(rows, columns=COLUMNS), ["unfinished", *finals[0]], [ENV, OTHER], REFERENCES)


def make_folder(output: Path, finals: dict[tuple[str, str], list[float]], failed: tuple[Any, ...] = ()) -> Path:
    """A comparison's folder, with runs of the given final returns by algorithm and environment."""
    algos, envs = (list(dict.fromkeys(names)) for names in zip(*finals, strict=True))
    comparison = Comparison(algos, envs, max(map(len, finals.values())), n_timesteps=100, eval_freq=50, n_eval_episodes=2)
    settings: Any = (100, 50, 2, {"policy": "MlpPolicy"}, {}, {}, [], "auto", 1)
    runs = [Run(algo, algo.partition(":")[0], env, seed, *settings) for algo, env in finals for seed in comparison.seeds]
    with Store(output).opened(comparison, runs) as store:
        for run in runs:
            final = finals[run.variant, run.env][run.seed]
            outcome: dict[str, Any] = {"started": "2026-11-25T01:02:03+00:00", "wall_seconds": 200.0, "error": None}
            outcome["versions"] = {"python": "3.11", "torch": "2.13" if run.seed else "2.14"}
            outcome["episodes"] = [(step, 2.0 * step, k, final * step / 100, 10) for step in STEPS for k in (0, 1)]
            if (run.variant, run.env, run.seed) in failed:
                outcome |= {"error": "Traceback\n", "episodes": []}
            store.save(run, outcome)
    return output


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a comparison of two environments, one run of which failed."""
    rng, envs = np.random.default_rng(0), ("HalfCheetah-v5", "Hopper-v5")
    means = {"pathwise_ac": (6500, 3000), "likelihood_ratio_ac:n_action_samples=2": (5500, 2950)}
    means["sac:policy_kwargs=dict(a='<b>[b]')"] = (6490, 1000)
    finals = {(a, env): list(rng.normal(m, 100, 5)) for a, row in means.items() for env, m in zip(envs, row, strict=True)}
    return write_report(make_folder(tmp_path_factory.mktemp("r") / "results", finals, (("pathwise_ac", "Hopper-v5", 4),)))


@pytest.mark.parametrize("n_runs", [3, 4, 5, 10])
def test_estimates_and_intervals_are_those_of_rliable(n_runs: int) -> None:
    # With few values there are ties
    rng = np.random.default_rng(0)
    first, second = ({"a": list(rng.integers(4, size=n_runs)), "b": list(rng.integers(4, size=4))} for _ in range(2))
    np.random.seed(3)
    places, drawn = statistics_of(first, second).places, np.random.random()
    np.random.seed(3)
    assert np.random.random() == drawn, "the user's random numbers are left alone"
    for place in places:
        scores, (duel,) = place.scores["final"], place.duels["final"]
        for algo, value in place.ranking["final"].items():
            np.random.seed(0)
            iqm, ends = get_interval_estimates({"": scores[algo]}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=400)
            assert value == pytest.approx((*iqm[""], *ends[""].ravel())) and place.curve(algo, "step")[1][0, -1] == value.point
        x, y = scores[duel.first], scores[duel.second]
        assert list(place.ranking["final"]) == [duel.first, duel.second] and duel.difference.point >= 0
        assert duel.difference.point == pytest.approx(metrics.aggregate_iqm(x) - metrics.aggregate_iqm(y))
        assert duel.improvement.point == pytest.approx(metrics.probability_of_improvement(x, y))


def test_duels() -> None:
    values, same = [float(k) for k in range(8)], [200.0] * 4
    finals = {"a": values, "b": values[::-1], "far": [value + 100 for value in values], "few": [7.0, 8.0]}
    finals |= {"c": same, "d": same, "e": [300.0] * 4}
    duels = {(duel.first, duel.second): duel for duel in statistics_of(finals).places[0].duels["final"]}
    # Of equals, in another order
    duel = duels["a", "b"]
    assert (duel.difference.point, duel.improvement.point, duel.p, duel.p_rank, duel.decided) == (0.0, 0.5, 1.0, 1.0, False)
    assert duel.difference.low < 0.0 < duel.difference.high and not duel.equal
    # The better one first; two samples of eight without overlap: 2 / (16 choose 8)
    duel = duels["far", "a"]
    assert duel.improvement == Estimate(1.0, 1.0, 1.0) and duel.decided and duel.difference.low > 90
    assert duel.p_rank == pytest.approx(2 / 12870)
    # Without any spread
    assert (duels["c", "d"].p, duels["c", "d"].equal, duels["c", "d"].improvement.bounded) == (1.0, True, False)
    assert duels["e", "c"].p == 0.0 and duels["e", "c"].decided
    # Holm's correction over all pairs that were tested, as the definition has it
    tested = sorted((duel.p, duel.p_holm) for pair, duel in duels.items() if "few" not in pair)
    ps = np.array([p for p, _ in tested])
    assert len(ps) == 15 and all(np.isnan((duel.p, duel.p_holm)).all() for pair, duel in duels.items() if "few" in pair)
    assert [p for _, p in tested] == pytest.approx(np.minimum(1, np.maximum.accumulate(ps * np.arange(15, 0, -1))))


def test_scores_and_curves() -> None:
    first = {"a": [10.0, 20.0, 30.0, 40.0], "b": [5.0, 5.0, 5.0, 5.0]}
    everywhere, place, other = statistics_of(first, {"a": [-10.0, -10.0, -10.0, -20.0], "b": [-20.0, -20.0]}).places
    assert [everywhere.name, place.name, other.name] == [ALL, ENV, OTHER] and place.algorithms == ["a", "b"]
    # A straight line's mean is half way
    assert list(place.runs.loc["a"]["final"]) == first["a"] and list(place.runs.loc["a"]["auc"]) == [5.0, 10.0, 15.0, 20.0]
    x, (point, low, high) = place.curve("a", "step")
    # Of four, the middle two
    assert list(x) == list(STEPS) and point == pytest.approx([0.0, 12.5, 25.0])
    assert low[0] == high[0] == 0.0 and 10 <= low[2] < 25 < high[2] <= 40
    # Until the quickest ended, when the others were half way: 5, 10, 15 and 40
    x, (point, *_) = place.curve("a", "train_seconds")
    assert (x[-1], point[-1]) == pytest.approx((100.0, 12.5))
    # Normalised; the seeds that are not there on both do not count
    assert everywhere.scores["final"]["a"] == pytest.approx(np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [4.0, 0.5]]))
    assert everywhere.scores["final"]["b"] == pytest.approx(np.full((2, 2), 0.5))
    for axis, end in (("step", 100), ("train_seconds", 200.0)):
        x, (point, *_) = everywhere.curve("b", axis)
        assert (x[0], point[0], x[-1], point[-1]) == pytest.approx((0, 0, end, 0.5))


LOW, MIDDLE, HIGH = [1.0, 2.0, 3.0, 4.0], [11.0, 12.0, 13.0, 14.0], [51.0, 50.0, 53.0, 54.0]
NEARLY = [51.5, 50.5, 53.0, 54.0]
ABC: Finals = {"a": [9.0, 10.0, 11.0], "b": [9.0, 10.0, 11.0], "c": [1.0, 2.0, 3.0]}
TIED, WON = "ahead, but chance alone may explain", "by more than chance explains."
UNSAID = "ahead; whether by more than chance cannot be said."
SAME = "a and b have the same score with every seed."


def verdict_of(*finals: Finals) -> dict[str, Any]:
    """The verdict on one environment, or on two together."""
    return page.verdict(statistics_of(*finals).places[0])


@pytest.mark.parametrize(
    "headline, detail, finals",
    [
        ("b won", f"It is ahead of c and a {WON}", [{"a": LOW, "b": HIGH, "c": MIDDLE}]),
        ("No clear winner", f"c is {TIED} its lead over b. It is ahead of a {WON}", [{"a": LOW, "b": HIGH, "c": NEARLY}]),
        ("Too few seeds to name a winner", f"b is {UNSAID}", [{"a": [1], "b": [51]}]),
        ("a", "There is nothing to compare it with.", [{"a": LOW}]),
        ("a and b won", f"They are ahead of c {WON} {SAME}", [{"a": HIGH, "b": HIGH, "c": LOW}]),
        ("No clear winner", f"a and b are {TIED} their lead over c. {SAME}", [{"c": HIGH, "a": NEARLY, "b": NEARLY}]),
        # The same returns with other seeds are not the same
        ("No clear winner", f"a is {TIED} its lead over b.", [{"a": LOW, "b": LOW[::-1]}]),
        ("No difference", SAME, [{"a": LOW, "b": LOW}]),
        ("Too few seeds to name a winner", f"a and b are {UNSAID} {SAME}", [{"a": [1], "b": [1], "c": [0]}]),
        ("a and b won", f"They are ahead of c {WON} {SAME}", [ABC, ABC]),
    ],
)
def test_verdicts(headline: str, detail: str, finals: list[Finals]) -> None:
    found, where = verdict_of(*finals), f"on {ENV}" if len(finals) == 1 else "over 2 environments"
    assert (found["headline"], found["detail"]) == (f"{headline} {where}", detail)


def test_leader_boards() -> None:
    found = verdict_of({"a": HIGH, "b": HIGH, "c": [value - 44 for value in HIGH]})
    assert [(row["algorithm"], row["gap"], row["sure"], row["decided"]) for row in found["board"]] == [
        ("a", "", "", False),
        ("b", "the same score with every seed", "", False),
        ("c", "44.00 behind", "p < 0.001, more than chance", True),
    ]
    assert [answer for _, answer, _ in found["facts"]] == ["a and b", "44.00", "100 %"]
    assert found["facts"][2][2] == "[100, 100] that a run of it beats one of c; p < 0.001"
    assert [row["sure"] for row in verdict_of(ABC, ABC)["board"]] == ["", "", "more than chance"]
    assert verdict_of({"a": LOW, "b": LOW[::-1]})["board"][1]["sure"] == "p = 1.00, may be chance"
    board = verdict_of({"a": [1], "b": [51]})["board"]
    assert (board[0]["interval"], board[1]["sure"]) == ("no interval", "too few seeds to test")
    # Numbers have as many decimals as help
    finals = {"\N{MINUS SIGN}150.2": -150.24, "12,346": 12345.6, "0.50": 0.5, "0.00": -0.001}
    assert all(verdict_of({"a": [final]})["board"][0]["final"] == text for text, final in finals.items())


def test_figures_show_covered_curves_and_plain_numbers_and_no_interval_that_is_none() -> None:
    place, looks = statistics_of({"a": HIGH, "b": NEARLY, "c": HIGH}).places[0], palette.styles([*"abc"])
    axes = figures.learning_curves(place, "step", looks).axes[0]
    width = {line.get_label(): line.get_linewidth() for line in axes.lines}
    assert width["a"] > width["b"] == width["c"]
    assert [axes.yaxis.get_major_formatter()(value) for value in (-1250.0, 0.5)] == ["\N{MINUS SIGN}1,250", "0.5"]
    assert axes.xaxis.get_major_formatter()(100_000.0) == "100,000"
    place = statistics_of({"a": NEARLY, "b": NEARLY, "c": HIGH}).places[0]
    lines = figures.improvements(place, looks).axes[0].lines
    # The line at 50 %, a mark for each of the others, and the interval of one
    assert sum(bool(np.isfinite(np.asarray(line.get_xdata(), float)).all()) for line in lines) == 4


def test_figures_are_there_in_the_algorithms_colours_and_always_the_same(reported: Report, tmp_path: Path) -> None:
    folder = reported.page.parent
    drawn = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    kinds = [(env, kind) for env in ("HalfCheetah-v5", "Hopper-v5") for kind in ("steps", "time", "scores", "improvement")]
    kinds += [("all_environments", "steps"), ("all_environments", "time")]
    assert drawn.keys() == {f"{env}_{kind}.{suffix}" for env, kind in kinds for suffix in ("png", "svg")}
    for look in palette.styles(read_manifest(folder)["request"]["algos"]).values():
        assert look.colour.lower().encode() in drawn["Hopper-v5_steps.svg"]
    again = write_report(folder, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == drawn
    assert again.page.read_bytes() == reported.page.read_bytes()


def test_page_and_terminal_say_everything(reported: Report) -> None:
    text = reported.page.read_text()
    # The page needs no other file
    images = re.findall(r'<img src="data:image/svg\+xml;base64,[^"]*" alt="[^"]+">', text)
    assert len(images) == text.count("<img") == len(re.findall("(?:src|href|srcset|data|action)=", text)) == 10
    assert not re.search(r"url\(|@import|<script|<link|<iframe", text) and 'name="viewport"' in text
    for tag in set(re.findall(r"</(\w+)>", text)):
        assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>"), tag
    said = " ".join(html.unescape(re.sub("<[^>]*>", "", text)).split())
    assert "No clear winner on HalfCheetah-v5" in said and "No clear winner over 2 environments" in said
    assert "1 of 30 runs are missing" in said and "pathwise_ac on Hopper-v5, seed 4: failed" in said
    assert "torch 2.14 and 2.13" in said and "Not all runs used the same" in said and "SAC at 100,000 steps on v4" in said
    # 29 seeds, 2 x 3 duels of either score, 2 references
    assert text.count("<td>3 min</td>") == 29 and text.count("<tr>") == 29 + 2 * 6 + 2
    # Names are text and not markup
    assert "<b>[" not in text and "&lt;b&gt;[" in text
    # The terminal shows the leader board of either environment, and that of both together
    print_report(reported, Console(file=(file := io.StringIO()), width=120, soft_wrap=True))
    shown = file.getvalue()
    lines = re.findall(r"^ +\S.* (\S+) +(\[\d.*?\]) ", shown, re.MULTILINE)
    assert len(lines) == 9 and all(f"{score} {interval}" in said for score, interval in lines)
    assert shown.count("sac:policy_kwargs=dict(a='<b>[b]')  ") == 3 and "of sac:policy_kwargs=dict(a='<b>[b]') by" in shown
    assert shown.endswith(f"Report, with the learning curves: {reported.page}\n")
    # The commands ask for the same, and for one seed of it
    commands = map(html.unescape, re.findall(r"<pre>sb3-pathwise compare(.*?)</pre>", text))
    whole, one = (make_parser().parse_args(shlex.split(command)) for command in commands)
    request = Comparison(**read_manifest(reported.page.parent)["request"])
    assert comparison_of(whole) == request and comparison_of(one) == replace(request, n_seeds=1)
    assert one.no_report and one.output != whole.output


def test_references_and_seconds_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finals = {(algo, env): [1.0, 2.0, 3.0] for algo in ("sac", "tqc") for env in (ENV, "Hopper-v5")}
    folder = make_folder(tmp_path / "results", finals)
    assert main([str(folder)]) == 0
    said = f"No aggregate over the environments: there is no reference for {ENV} (--references gives others)."
    assert said in capsys.readouterr().out and said in (folder / "report.html").read_text()
    mine, paces = tmp_path / "mine.csv", tmp_path / "paces.csv"
    mine.write_text(f"environment,random,reference,source\n{ENV},0,4,mine\nHopper-v5,0,2,mine\n")
    lines = ["algorithm,environment,seconds_per_1000_steps", *(f"{algo},{env},{len(env)}000" for algo, env in finals)]
    paces.write_text("\n".join(lines))
    arguments = [str(folder), "--references", str(mine), "--seconds", str(paces)]
    assert main(arguments) == 0
    output, text = capsys.readouterr().out, (folder / "report.html").read_text()
    assert "No difference over 2 environments" in output and "seconds per step of paces.csv" in output
    assert "<td>mine</td>" in text and text.count("<td>18 min</td>") == text.count("<td>15 min</td>") == 6
    paces.write_text("\n".join(lines[:-1]))
    assert main(arguments) == 2
    assert "no seconds are given for tqc on Hopper-v5" in capsys.readouterr().err
    mine.write_text("environment,random\n")
    assert main(arguments) == 2
    assert "a CSV file with environment, random, reference" in capsys.readouterr().err


@pytest.mark.parametrize("manifest", [None, "", "{", '{"format": 1}'])
def test_a_folder_without_results(manifest: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages = {None: "holds no comparison", "": "no run in", "{": "cannot read", '{"format": 1}': "another version"}
    if manifest == "":
        make_folder(tmp_path, {("sac", ENV): [1.0]}, (("sac", ENV, 0),))
    elif manifest:
        (tmp_path / "comparison.json").write_text(manifest)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert messages[manifest] in error and error.count("\n") == 1 and not (tmp_path / "report.html").exists()


# Machado, Oliveira and Fernandes (2009), severity 1
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
COMMON = (*ALGORITHMS, "sac", "tqc", "crossq", "td3")


def cielab(colour: str, blindness: Any) -> np.ndarray:
    """A colour of sRGB as a reader sees it, in a space where distances are differences seen."""
    encoded = np.array(to_rgb(colour))
    linear = blindness @ np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ np.clip(linear, 0, 1) / [0.95047, 1.0, 1.08883], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", list(BLINDNESS))
def test_colours_can_be_told_apart(kind: str) -> None:
    seen = {algo: cielab(palette.colour(algo), BLINDNESS[kind]) for algo in COMMON}
    # A difference of 2.3 is just noticed when the colours lie side by side; of paper, the first is 100
    assert min(np.linalg.norm(first - second) for first, second in itertools.combinations(seen.values(), 2)) > 12
    assert max(lightness for lightness, _, _ in seen.values()) < 80


def test_an_algorithm_looks_the_same_everywhere() -> None:
    assert palette.COLOURS.keys() >= set(COMMON) and palette.colour("my_algo") in palette.COLOURS.values()
    variants = ["sac", "tqc:gamma=0.9", "pathwise_ac", "tqc", *(f"tqc:gamma=0.{k}" for k in (8, 7, 6, 5))]
    alone, among = palette.styles(["tqc"]), palette.styles(variants)
    assert alone["tqc"].colour == among["tqc"].colour == palette.COLOURS["tqc"]
    # What is added changes nothing, and nothing looks like anything else, with colours or without
    assert palette.styles(variants[:4]).items() <= among.items()
    assert len({look.marker for look in among.values()}) == len({look.colour for look in among.values()}) == 8
    assert len({look.dash for name, look in among.items() if "tqc" in name}) == 6
    for algo in COMMON:
        looks = palette.styles([f"{algo}:n={k}" for k in range(5)]).values()
        assert all(5 < cielab(look.colour, BLINDNESS["none"])[0] < 90 for look in looks)
