"""
Tests of ``report``: statistics against closed forms and rliable's own, verdicts, the page and its figures.

The results are made up, by laws that the tests know; training and storing are tested in ``test_compare.py``.
"""

import html
import io
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from rich.console import Console
from rliable import metrics

from sb3_pathwise.experiments import figures, page, palette
from sb3_pathwise.experiments.compare import comparison_of, make_parser
from sb3_pathwise.experiments.grid import Comparison, Run
from sb3_pathwise.experiments.report import Report, main, print_report, write_report
from sb3_pathwise.experiments.statistics import ALL, Estimate, Statistics, bootstrap
from sb3_pathwise.experiments.store import COLUMNS, Store, read_manifest
from sb3_pathwise.zoo.registry import ALGORITHMS

STEPS = (0, 50, 100)
ENV, OTHER = "Pendulum-v1", "Other-v0"
# Returns of random actions, from which the runs start, and those that are 1 when normalised
REFERENCES = pd.DataFrame({"random": {ENV: 0.0, OTHER: -30.0}, "reference": {ENV: 10.0, OTHER: -10.0}})
Finals = dict[str, list[float]]


@pytest.fixture(scope="module", autouse=True)
def few_repetitions() -> Iterator[None]:
    """Bootstraps that are as quick as tests need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sb3_pathwise.experiments.statistics.REPETITIONS", 400)
        yield


def statistics_of(*finals: Finals) -> Statistics:
    """Statistics of runs that learn at a constant pace to these returns, on one environment or two; seed 3 is twice as fast."""
    rows = [
        [algo, env, seed, step, step * (1.0 if seed == 3 else 2.0), 0, start + (final - start) * step / 100, 10]
        for (env, start), ours in zip(REFERENCES["random"].items(), finals, strict=False)
        for algo, values in ours.items()
        for seed, final in enumerate(values)
        for step in STEPS
    ]
    return Statistics(pd.DataFrame(rows, columns=COLUMNS), ["sac", "tqc", *finals[0]], [ENV, OTHER], REFERENCES)


def make_folder(output: Path, finals: dict[tuple[str, str], list[float]], failed: tuple[Any, ...] = ()) -> Path:
    """A comparison's folder, with runs of the given final returns by algorithm and environment."""
    algos, envs = (list(dict.fromkeys(key[place] for key in finals)) for place in (0, 1))
    comparison = Comparison(algos, envs, max(map(len, finals.values())), n_timesteps=100, eval_freq=50, n_eval_episodes=2)
    settings: Any = (100, 50, 2, {"policy": "MlpPolicy"}, {}, {}, [], "auto", 1)
    runs = [Run(algo, algo.partition(":")[0], env, seed, *settings) for algo, env in finals for seed in comparison.seeds]
    with Store(output).opened(comparison, runs) as store:
        for run in runs:
            if run.seed < len(values := finals[run.variant, run.env]):
                final, error = values[run.seed], "Traceback\n" if (run.variant, run.env, run.seed) in failed else None
                evaluations = [
                    {"step": step, "train_seconds": 2.0 * step, "returns": [final * step / 100] * 2, "lengths": [10, 10]}
                    for step in STEPS
                ]
                versions = {"python": "3.11", "torch": "2.13" if run.seed else "2.14"}
                outcome = {"evaluations": evaluations, "error": error, "started": "2026-11-25T01:02:03+00:00"}
                store.save(run, outcome | {"wall_seconds": 200.0, "versions": versions})
    return output


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a comparison of two environments, one run of which failed."""
    rng, envs = np.random.default_rng(0), ("HalfCheetah-v5", "Hopper-v5")
    means = {"pathwise_ac": (6500, 3000), "likelihood_ratio_ac:n_action_samples=2": (5500, 2950)}
    means["sac:policy_kwargs=dict(a='<b>[b]')"] = (6490, 1000)
    finals = {(a, env): list(rng.normal(m, 100, 5)) for a, row in means.items() for env, m in zip(envs, row, strict=True)}
    folder = tmp_path_factory.mktemp("reported") / "results"
    return write_report(make_folder(folder, finals, (("pathwise_ac", "Hopper-v5", 4),)))


# Statistics


@pytest.mark.parametrize("n_runs", [3, 4, 5, 10])
def test_estimates_are_those_of_rliable(n_runs: int) -> None:
    # With few values there are ties
    rng = np.random.default_rng(0)
    first, second = ({"a": list(rng.integers(4, size=n_runs)), "b": list(rng.integers(4, size=4))} for _ in range(2))
    for place in statistics_of(first, second).places:
        scores, (duel,) = place.scores["final"], place.duels["final"]
        for algo, value in place.ranking["final"].items():
            expected = pytest.approx(metrics.aggregate_iqm(scores[algo]))
            assert value.point == expected and place.curve(algo, "step")[1][0, -1] == expected
        x, y = scores[duel.first], scores[duel.second]
        assert duel.difference.point == pytest.approx(metrics.aggregate_iqm(x) - metrics.aggregate_iqm(y))
        assert duel.difference.point >= 0
        assert duel.improvement.point == pytest.approx(metrics.probability_of_improvement(x, y))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    # 200 samples of 20 runs: were the coverage 95 %, fewer than 176 would hold it once in 10^4, as would more than 199.
    # The percentile bootstrap is known to be a little too narrow at this size.
    rng = np.random.default_rng(0)
    found = [bootstrap(lambda scores: scores.mean(axis=0), rng.normal(size=(20, 1)))[:, 0] for _ in range(200)]
    assert 176 <= sum(low < 0.0 < high for _, low, high in found) <= 199


def test_intervals_are_stratified_by_environment_and_always_the_same() -> None:
    # Runs differ between environments only: resampled within each of them, they leave no doubt
    assert statistics_of({"a": [10.0] * 4}, {"a": [-20.0] * 4}).places[0].ranking["final"]["a"] == Estimate(0.75, 0.75, 0.75)
    np.random.seed(3)
    first, drawn = statistics_of({"a": [1.0, 5.0, 9.0]}).places[0], np.random.random()
    assert statistics_of({"a": [1.0, 5.0, 9.0]}).places[0].ranking == first.ranking
    # And the user's random numbers are left alone
    np.random.seed(3)
    assert np.random.random() == drawn


def test_duels() -> None:
    values, same = [float(k) for k in range(8)], [200.0] * 4
    finals = {"few": [7.0, 8.0], "a": values, "b": values[::-1], "far": [v + 100 for v in values], "c": same, "d": same}
    finals["e"] = [300.0] * 4
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


def test_scores_and_curves_of_one_environment() -> None:
    place = statistics_of({"sac": [10.0, 20.0, 30.0, 40.0]}).places[0]
    # A straight line's mean is half way
    assert list(place.runs["final"]) == [10.0, 20.0, 30.0, 40.0] and list(place.runs["auc"]) == [5.0, 10.0, 15.0, 20.0]
    x, (point, low, high) = place.curve("sac", "step")
    # Of four, the middle two
    assert list(x) == list(STEPS) and point == pytest.approx([0.0, 12.5, 25.0])
    assert low[0] == high[0] == 0.0 and 10 <= low[2] < 25 < high[2] <= 40
    x, (point, *_) = place.curve("sac", "train_seconds")
    # Until the quickest ended, when the others were half way: 5, 10, 15 and 40
    assert (x[-1], point[-1]) == (100.0, pytest.approx(12.5)) and place.algorithms == ["sac"]


def test_normalised_scores_and_curves() -> None:
    first = {"a": [10.0, 9.0, 11.0], "b": [5.0, 5.0, 5.0]}
    place, *others = statistics_of(first, {"a": [-10.0, -10.0, -10.0], "b": [-20.0, -20.0]}).places
    assert [place.name, *(other.name for other in others)] == [ALL, ENV, OTHER]
    assert place.scores["final"]["a"] == pytest.approx(np.array([[1.0, 1.0], [0.9, 1.0], [1.1, 1.0]]))
    # The seed that is not there on both does not count
    assert place.scores["final"]["b"] == pytest.approx(np.full((2, 2), 0.5))
    for axis, end in (("step", 100), ("train_seconds", 200.0)):
        x, (point, low, _) = place.curve("a", axis)
        assert (x[0], point[0], x[-1], point[-1]) == pytest.approx((0, 0, end, 1)) and low[-1] <= 1


# Verdicts

LOW, MIDDLE, HIGH = [1.0, 2.0, 3.0, 4.0], [11.0, 12.0, 13.0, 14.0], [51.0, 50.0, 53.0, 54.0]
NEARLY = [51.5, 50.5, 53.0, 54.0]
ABC: Finals = {"a": [9.0, 10.0, 11.0], "b": [9.0, 10.0, 11.0], "c": [1.0, 2.0, 3.0]}
OPEN: Finals = {"a": [0.0, 1.0, 2.0], "b": [1.0, 0.0, 2.5], "c": [5.0, -3.0, 2.0]}
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
        ("No clear winner", f"a is {TIED} its lead over b and c.", [ABC, OPEN]),
    ],
)
def test_verdicts(headline: str, detail: str, finals: list[Finals]) -> None:
    found, where = verdict_of(*finals), f"on {ENV}" if len(finals) == 1 else "over 2 environments"
    assert (found["headline"], found["detail"]) == (f"{headline} {where}", detail)


def test_leader_boards() -> None:
    first, *others = verdict_of({"a": HIGH, "b": HIGH, "c": [value - 44 for value in HIGH]})["board"]
    against = [(row["algorithm"], row["gap"], row["sure"], row["decided"]) for row in others]
    equal = ("b", "the same score with every seed", "", False)
    assert first["gap"] == "" and against == [equal, ("c", "44.00 behind", "p < 0.001, more than chance", True)]
    facts = verdict_of({"a": HIGH, "b": HIGH, "c": [value - 44 for value in HIGH]})["facts"]
    assert [answer for _, answer, _ in facts] == ["a and b", "44.00", "100 %"]
    assert facts[2][2] == "[100, 100] that a run of it beats one of c; p < 0.001"
    assert [row["sure"] for row in verdict_of(ABC, ABC)["board"]] == ["", "", "more than chance"]
    assert verdict_of({"a": LOW, "b": LOW[::-1]})["board"][1]["sure"] == "p = 1.00, may be chance"
    board = verdict_of({"a": [1], "b": [51]})["board"]
    assert (board[0]["interval"], board[1]["sure"]) == ("no interval", "too few seeds to test")
    # Numbers have as many decimals as help
    finals = {"\N{MINUS SIGN}150.2": -150.24, "12,346": 12345.6, "0.50": 0.5, "0.00": -0.001}
    assert all(verdict_of({"a": [final]})["board"][0]["final"] == text for text, final in finals.items())


# Figures


def test_figures_show_covered_curves_and_plain_numbers_and_no_interval_that_is_none() -> None:
    place = statistics_of({"a": HIGH, "b": NEARLY, "c": HIGH}).places[0]
    looks = palette.styles([*"abc"])
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
    places = {"HalfCheetah-v5": ("steps", "time", "scores", "improvement")}
    places |= {"Hopper-v5": places["HalfCheetah-v5"], "all_environments-c80ed8dd": ("steps", "time")}
    names = [f"{place}_{kind}" for place, kinds in places.items() for kind in kinds]
    assert drawn.keys() == {f"{name}.{suffix}" for name in names for suffix in ("png", "svg")}
    assert all(data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml") for name, data in drawn.items())
    for look in palette.styles(read_manifest(folder)["request"]["algos"]).values():
        assert look.colour.lower().encode() in drawn["Hopper-v5_steps.svg"]
    again = write_report(folder, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == drawn
    assert again.page.read_bytes() == reported.page.read_bytes()


# The page


def words_of(text: str) -> str:
    """What a page says."""
    return " ".join(html.unescape(re.sub("<[^>]*>", "", text)).split())


def test_the_page_needs_no_other_file_and_says_everything(reported: Report) -> None:
    text = reported.page.read_text()
    images = re.findall(r'<img src="data:image/svg\+xml;base64,[^"]*" alt="[^"]+">', text)
    assert len(images) == text.count("<img") == len(re.findall("(?:src|href|srcset|data|action)=", text)) == 10
    assert not re.search(r"url\(|@import|<script|<link|<iframe", text) and 'name="viewport"' in text
    for tag in set(re.findall(r"</(\w+)>", text)):
        assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>"), tag
    for phrase in (
        "No clear winner on HalfCheetah-v5",
        "over 2 environments",
        "pathwise_ac on Hopper-v5, seed 4: failed",
        "1 of 30 runs are missing",
        "SAC at 100,000 steps on v4",
        "torch 2.14 and 2.13",
        "Not all runs used the same versions",
    ):
        assert phrase in words_of(text), phrase
    # 29 seeds, 2 x 3 duels of either score, 2 references
    assert text.count("<td>3 min</td>") == 29 and text.count("<tr>") == 29 + 2 * 6 + 2
    # Names are text and not markup
    assert "<b>[" not in text and "&lt;b&gt;[" in text


def test_the_terminal_shows_the_verdict_and_where_the_page_is(reported: Report) -> None:
    output = io.StringIO()
    print_report(reported, Console(file=output, width=120, soft_wrap=True))
    text, said = output.getvalue(), words_of(reported.page.read_text())
    lines = re.findall(r"^ +\S.* (\S+) +(\[\d.*?\]) ", text, re.MULTILINE)
    # The leader board of either environment, and that of both together; names are text here too
    assert len(lines) == 9 and all(f"{score} {interval}" in said for score, interval in lines)
    assert text.count("sac:policy_kwargs=dict(a='<b>[b]')  ") == 3 and "of sac:policy_kwargs=dict(a='<b>[b]') by" in text
    assert text.endswith(f"Report, with the learning curves: {reported.page}\n")


def test_references_and_seconds_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finals = {(algo, env): [1.0, 2.0, 3.0] for algo in ("sac", "tqc") for env in (ENV, "Hopper-v5")}
    folder = make_folder(tmp_path / "results", finals)
    assert main([str(folder)]) == 0
    said = f"No aggregate over the environments: there is no reference for {ENV} (--references gives others)."
    assert said in capsys.readouterr().out and said in (folder / "report.html").read_text()
    mine, pace = tmp_path / "mine.csv", tmp_path / "pace.csv"
    mine.write_text(f"environment,random,reference,source\n{ENV},0,4,mine\nHopper-v5,0,2,mine\n")
    paces = [f"{algo},{env},{36000 if algo == 'sac' else 72000}\n" for algo, env in finals]
    pace.write_text("algorithm,environment,seconds_per_1000_steps\n" + "".join(paces))
    arguments = [str(folder), "--references", str(mine), "--seconds", str(pace)]
    assert main(arguments) == 0
    output, text = capsys.readouterr().out, (folder / "report.html").read_text()
    assert "No difference over 2 environments" in output and "seconds per step of pace.csv" in output
    assert "<td>mine</td>" in text and text.count("<td>60 min</td>") == text.count("<td>2.0 h</td>") == 6
    pace.write_text("algorithm,environment,seconds_per_1000_steps\n" + "".join(paces[1:]))
    assert main(arguments) == 2
    assert f"no seconds are given for sac on {ENV}" in capsys.readouterr().err
    mine.write_text("environment,random\n")
    assert main(arguments[:3]) == 2
    assert "a CSV file with environment, random, reference" in capsys.readouterr().err


def test_the_command_in_the_report_asks_for_the_same(reported: Report) -> None:
    commands = map(html.unescape, re.findall(r"<pre>sb3-pathwise compare(.*?)</pre>", reported.page.read_text()))
    whole, one = (make_parser().parse_args(shlex.split(command)) for command in commands)
    request = read_manifest(reported.page.parent)["request"]
    assert comparison_of(whole) == Comparison(**request)
    assert comparison_of(one) == Comparison(**request | {"n_seeds": 1})
    assert one.no_report and one.output != whole.output


@pytest.mark.parametrize(
    "manifest, message",
    [(None, "holds no comparison"), ("", "no run in"), ("{", "cannot read"), ('{"format": 1}', "another version")],
)
def test_a_folder_without_results(
    manifest: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if manifest == "":
        make_folder(tmp_path, {("sac", ENV): []})
    elif manifest:
        (tmp_path / "comparison.json").write_text(manifest)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


# Colours

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
    # A difference of 2.3 is just noticed when the colours lie side by side
    for first, second in itertools.combinations(COMMON, 2):
        assert np.linalg.norm(seen[first] - seen[second]) > 12, (first, second)
    # And from paper
    assert all(lightness < 80 for lightness, _, _ in seen.values())


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
