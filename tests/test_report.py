"""
Tests of ``report``: statistics against closed forms and rliable's own, verdicts, the page and its figures.

The results are made up, by laws that the tests know; training and storing are tested in ``test_compare.py``.
"""

import contextlib
import io
import itertools
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from rliable import metrics

from sb3_pathwise.experiments import figures, page, palette
from sb3_pathwise.experiments.compare import comparison_of, make_parser
from sb3_pathwise.experiments.grid import Comparison, Run
from sb3_pathwise.experiments.report import Report, main, print_report, write_report
from sb3_pathwise.experiments.statistics import (
    ALL,
    Duel,
    Estimate,
    Statistics,
    corrected,
    duel,
    estimates,
    interquartile_mean,
    probability_of_improvement,
)
from sb3_pathwise.experiments.store import COLUMNS, Store, read_manifest
from sb3_pathwise.zoo.registry import ALGORITHMS

STEPS = (0, 50, 100)
ENV = "Pendulum-v1"
REFERENCES = pd.DataFrame(
    {"random": {ENV: 0.0, "Other-v0": -30.0}, "reference": {ENV: 10.0, "Other-v0": -10.0}, "source": "here"}
)
Finals = dict[str, list[float]]


def results_of(finals: Finals, environment: str = ENV, start: float = 0.0) -> pd.DataFrame:
    """Evaluations of runs that learn at a constant pace, from ``start`` to the given final returns."""
    rows = [
        [algorithm, environment, seed, step, 2.0 * step, episode, start + (final - start) * step / 100 + shift, 10]
        for algorithm, values in finals.items()
        for seed, final in enumerate(values)
        for step in STEPS
        for episode, shift in enumerate((-1, 1))
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def statistics_of(finals: Finals, **more: Any) -> Statistics:
    """Statistics of one environment."""
    return Statistics(results_of(finals, **more), list(finals), [ENV])


def statistics_of_two(first: Finals, second: Finals, references: Any = REFERENCES, **more: Any) -> Statistics:
    """Statistics of two environments."""
    results = pd.concat([results_of(first), results_of(second, "Other-v0", start=-30.0)])
    return Statistics(results, list(first), [ENV, "Other-v0"], references, **more)


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
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two environments, one run of which failed, with its report."""
    rng = np.random.default_rng(0)
    means = {"pathwise_ac": (6500, 3000), "likelihood_ratio_ac:n_action_samples=2": (5500, 2950)}
    means["sac:policy_kwargs=dict(a='<b>|')"] = (6490, 1000)
    envs = ("HalfCheetah-v5", "Hopper-v5")
    finals = {
        (algo, env): list(rng.normal(m, 100, 5)) for algo, row in means.items() for env, m in zip(envs, row, strict=True)
    }
    folder = make_folder(tmp_path_factory.mktemp("reported") / "results", finals, (("pathwise_ac", "Hopper-v5", 4),))
    (folder / "said").mkdir()
    with open(folder / "said" / "text", "w") as file, contextlib.redirect_stdout(file):
        assert main([str(folder)]) == 0
    return folder


# Statistics


@pytest.mark.parametrize("shape", [(3, 1), (4, 1), (5, 1), (10, 1), (7, 3)])
def test_interquartile_mean_is_that_of_rliable(shape: tuple[int, ...]) -> None:
    scores = np.random.default_rng(0).normal(size=shape)
    assert interquartile_mean(scores)[0] == pytest.approx(metrics.aggregate_iqm(scores), rel=1e-12)
    curve = np.random.default_rng(1).normal(size=(*shape, 4))
    assert interquartile_mean(curve) == pytest.approx([metrics.aggregate_iqm(curve[..., k]) for k in range(4)], rel=1e-12)


@pytest.mark.parametrize("n_values", [3, 1000])
def test_probability_of_improvement_is_that_of_rliable(n_values: int) -> None:
    # With few values there are ties
    rng = np.random.default_rng(0)
    x, y = rng.integers(n_values, size=(6, 2)) / 7, rng.integers(n_values, size=(4, 2)) / 7
    assert probability_of_improvement(x, y) == pytest.approx(metrics.probability_of_improvement(x, y), rel=1e-12)


def test_scores_of_a_run() -> None:
    runs = statistics_of({"sac": [10.0, 20.0, -40.0]}, start=-10.0).runs
    # The last, not the best
    assert list(runs["final"]) == [10.0, 20.0, -40.0]
    # A straight line's mean is half way
    assert list(runs["auc"]) == [0.0, 5.0, -25.0]
    assert list(runs["train_seconds"]) == [200.0] * 3


def test_intervals_hold_the_truth_about_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_pathwise.experiments.statistics.REPETITIONS", 400)
    # 200 samples of 20 runs: were the coverage 95 %, fewer than 176 would hold it once in 10^4, as would more than 199.
    # The percentile bootstrap is known to be a little too narrow at this size.
    rng = np.random.default_rng(0)
    found = [estimates(interquartile_mean, rng.normal(size=(20, 1)))[0] for _ in range(200)]
    assert 176 <= sum(value.low < 0.0 < value.high for value in found) <= 199  # type: ignore[operator]


def test_intervals_are_stratified_by_environment() -> None:
    # Runs differ between environments only: resampled within each of them, they leave no doubt
    assert estimates(interquartile_mean, np.tile([0.0, 1.0, 5.0, 9.0], (5, 1))) == [Estimate(3.0, 3.0, 3.0)]


def test_the_same_results_give_the_same_intervals_and_leave_the_generator_alone() -> None:
    scores = np.random.default_rng(0).normal(size=(6, 1))
    np.random.seed(3)
    first, drawn = estimates(interquartile_mean, scores), np.random.random()
    assert estimates(interquartile_mean, scores) == first
    np.random.seed(3)
    assert np.random.random() == drawn


def test_a_duel_of_equals_is_open() -> None:
    scores = np.random.default_rng(0).normal(size=(8, 1))
    found = duel(ENV, "final", {"a": scores, "b": scores.copy()}, "a", "b")
    assert (found.difference.point, found.improvement.point, found.p, found.p_rank) == (0.0, 0.5, 1.0, 1.0)
    assert found.difference.low < 0.0 < found.difference.high  # type: ignore[operator]
    assert not corrected([found])[0].decided


def test_a_duel_names_the_better_one_first() -> None:
    rng = np.random.default_rng(0)
    scores = {"a": rng.normal(0, 1, (8, 1)), "b": rng.normal(9, 1, (8, 1))}
    found = corrected([duel(ENV, "final", scores, "a", "b")])[0]
    assert (found.first, found.second, found.decided) == ("b", "a", True)
    assert found.improvement == Estimate(1.0, 1.0, 1.0)
    assert found.difference.point == pytest.approx(metrics.aggregate_iqm(scores["b"]) - metrics.aggregate_iqm(scores["a"]))
    assert found.difference.low is not None and found.difference.low > 5
    # Two samples of eight without overlap: 2 / (16 choose 8)
    assert found.p_rank == pytest.approx(2 / 12870)


def test_scores_without_any_spread() -> None:
    same, other = np.full((4, 1), 2.0), np.full((4, 1), 1.0)
    assert duel(ENV, "final", {"a": same, "b": same.copy()}, "a", "b").p == 1.0
    assert duel(ENV, "final", {"a": same, "b": other}, "a", "b").p == 0.0


def test_holm() -> None:
    ps = [0.01, None, 0.04, 0.03]
    found = corrected([Duel(ENV, "final", "a", "b", Estimate(1.0), Estimate(1.0), p=p) for p in ps])
    # 3 * 0.01, then 2 * 0.03, then no less than that
    assert [one.p_holm for one in found] == pytest.approx([0.03, None, 0.06, 0.06])
    assert [one.decided for one in found] == [True, False, False, False]


def test_curves_over_steps_and_over_time() -> None:
    results = results_of({"sac": [10.0, 20.0, 30.0, 40.0]})
    # The last seed trains twice as fast
    results.loc[results["seed"] == 3, "train_seconds"] /= 2
    statistics = Statistics(results, ["sac", "tqc"], [ENV])
    x, (point, low, high) = statistics.curve(ENV, "sac", "step")  # type: ignore[misc]
    assert list(x) == list(STEPS)
    # Of four, the middle two
    assert point == pytest.approx([0.0, 12.5, 25.0])
    assert low[0] == high[0] == 0.0
    assert 10 <= low[2] < 25 < high[2] <= 40
    x, (point, *_) = statistics.curve(ENV, "sac", "train_seconds")  # type: ignore[misc]
    # Until the quickest ended, when the others were half way: 5, 10, 15 and 40
    assert (x[-1], point[-1]) == (100.0, pytest.approx(12.5))
    assert statistics.curve(ENV, "tqc", "step") is None


# All environments together

PAIR: tuple[Finals, Finals] = (
    {"a": [10.0, 9.0, 11.0], "b": [5.0, 5.0, 5.0]},
    {"a": [-10.0, -10.0, -10.0], "b": [-20.0, -20.0]},
)


def test_normalised_scores_and_their_curves() -> None:
    statistics = statistics_of_two(*PAIR)
    assert statistics.places == [ALL, ENV, "Other-v0"]
    scores = statistics.scores(ALL, "final")
    assert scores["a"] == pytest.approx(np.array([[1.0, 1.0], [0.9, 1.0], [1.1, 1.0]]))
    # The seed that is not there on both does not count
    assert scores["b"] == pytest.approx(np.full((2, 2), 0.5))
    for axis, end in (("step", 100), ("train_seconds", 200.0)):
        x, (point, low, _) = statistics.curve(ALL, "a", axis)  # type: ignore[misc]
        assert (x[0], point[0], x[-1], point[-1]) == pytest.approx((0, 0, end, 1)) and low[-1] <= 1


def test_times_that_were_measured_apart() -> None:
    index = pd.MultiIndex.from_product([["a", "b"], [ENV, "Other-v0"]], names=["algorithm", "environment"])
    seconds = pd.DataFrame({"seconds_per_1000_steps": [10.0, 20.0, 30.0, 40.0]}, index=index)
    runs = statistics_of_two(*PAIR, seconds=seconds).runs
    assert dict(runs.groupby(["algorithm", "environment"])["train_seconds"].first()) == pytest.approx(
        dict(zip(index, [1.0, 2.0, 3.0, 4.0], strict=True))
    )
    with pytest.raises(Exception, match="no seconds are given for b on Other-v0"):
        statistics_of_two(*PAIR, seconds=seconds[:2])


def test_without_a_reference_there_is_no_aggregate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finals = {(algo, env): [1.0, 2.0, 3.0] for algo in ("sac", "tqc") for env in (ENV, "Hopper-v5")}
    folder = make_folder(tmp_path / "results", finals)
    assert main([str(folder)]) == 0
    said = f"No aggregate over the environments: there is no reference for {ENV} (--references gives others)."
    assert said in capsys.readouterr().out and said in (folder / "report.html").read_text()
    # The user's own
    (tmp_path / "mine.csv").write_text(f"environment,random,reference,source\n{ENV},0,4,mine\nHopper-v5,0,2,mine\n")
    assert main([str(folder), "--references", str(tmp_path / "mine.csv")]) == 0
    assert "No difference over 2 environments" in capsys.readouterr().out
    assert "<td>mine</td>" in (folder / "report.html").read_text()
    (tmp_path / "mine.csv").write_text("environment,random\n")
    assert main([str(folder), "--references", str(tmp_path / "mine.csv")]) == 2
    assert "a CSV file with environment, random, reference" in capsys.readouterr().err


# Verdicts


def verdict_of(finals: Finals) -> page.Verdict:
    """The verdict on one environment."""
    return page.verdict(statistics_of(finals), ENV)


def test_a_clear_winner() -> None:
    verdict = verdict_of({"a": [1.0, 2.0, 3.0, 4.0], "b": [51.0, 52.0, 53.0, 54.0], "c": [11.0, 12.0, 13.0, 14.0]})
    assert verdict.headline == f"b won on {ENV}"
    assert verdict.detail == "It is ahead of c and a by more than chance explains."
    assert [row.algorithm for row in verdict.board] == ["b", "c", "a"]
    assert [fact[1] for fact in verdict.facts] == ["b", "40.00", "100 %"] and verdict.facts[1][2].endswith("over c")


def test_no_clear_winner() -> None:
    verdict = verdict_of({"a": [1.0, 2.0, 3.0, 4.0], "b": [51.0, 50.0, 53.0, 54.0], "c": [51.5, 50.5, 53.0, 54.0]})
    assert verdict.headline == f"No clear winner on {ENV}"
    assert verdict.detail == (
        "c is ahead, but chance alone may explain its lead over b. It is ahead of a by more than chance explains."
    )
    assert [row.decided for row in verdict.board] == [False, False, True]


def test_too_few_seeds_and_nobody_to_compare_with() -> None:
    verdict = verdict_of({"a": [1.0, 2.0], "b": [51.0, 50.0]})
    assert verdict.headline == f"Too few seeds to name a winner on {ENV}"
    assert verdict.board[0].interval == "no interval" and verdict.board[0].low is None
    assert verdict.board[1].sure == "too few seeds to test"
    verdict = verdict_of({"a": [1.0, 2.0, 3.0]})
    assert verdict.headline == f"a on {ENV}" and len(verdict.facts) == 1


def test_algorithms_that_score_the_same() -> None:
    same, other, far = [1.0, 2.0, 3.0, 4.0], [0.5, 2.0, 2.5, 4.0], [-40.0, -41.0, -42.0, -43.0]
    verdict = verdict_of({"a": same, "b": same, "c": far})
    assert verdict.headline == f"a and b won on {ENV}"
    assert verdict.detail == ("They are ahead of c by more than chance explains. a and b have the same score with every seed.")
    assert [fact[1] for fact in verdict.facts] == ["a and b", "44.00", "100 %"]
    assert [(row.gap, row.sure, row.decided) for row in verdict.board] == [
        ("", "", False),
        ("the same score with every seed", "", False),
        ("44.00 behind", "p < 0.001, more than chance", True),
    ]
    verdict = verdict_of({"c": far, "a": same, "d": other, "b": same})
    assert verdict.headline == f"No clear winner on {ENV}"
    assert verdict.detail.startswith("a and b are ahead, but chance alone may explain their lead over d. They are ahead of c")
    # The same returns with other seeds are no such thing
    assert "the same" not in verdict_of({"a": same, "b": same[::-1], "c": far}).detail
    equal = statistics_of({"a": same, "b": same})
    verdict = page.verdict(equal, ENV)
    assert verdict.headline == f"No difference on {ENV}" and len(verdict.facts) == 1
    row = page.duel_table(equal, "final").iloc[0]
    assert list(row[["difference", "probability of improvement", "Welch's t-test"]]) == [page.SAME, "50 %", "p = 1.00"]
    verdict = verdict_of({"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [0.0, 0.0]})
    assert verdict.headline == f"Too few seeds to name a winner on {ENV}"
    assert verdict.detail.startswith("a and b are ahead;")


def test_the_verdict_over_all_environments() -> None:
    finals = {"a": [9.0, 10.0, 11.0], "b": [9.0, 10.0, 11.0], "c": [1.0, 2.0, 3.0]}
    verdict = page.verdict(statistics_of_two(finals, finals), ALL)
    assert verdict.headline == "a and b won over 2 environments"
    assert [(row.gap, row.sure) for row in verdict.board[1:]] == [(page.SAME, ""), ("0.60 behind", "more than chance")]
    verdict = page.verdict(statistics_of_two(finals, {"a": [0.0, 1.0, 2.0], "b": [1.0, 0.0, 2.5], "c": [5.0, -3.0, 2.0]}), ALL)
    assert verdict.headline == "No clear winner over 2 environments"


def test_numbers() -> None:
    assert page.numbers([Estimate(-150.24, -160.0, -140.0)])(-150.24) == "\N{MINUS SIGN}150.2"
    assert page.numbers([Estimate(12345.6)])(12345.6) == "12,346"
    assert page.numbers([Estimate(0.5)])(-0.001) == page.numbers([Estimate(0.0)])(0.0) == "0.00"
    assert [page.p_value(p) for p in (None, 1e-5, 0.0456, 0.456)] == ["not tested", "p < 0.001", "p = 0.046", "p = 0.46"]
    assert [page.duration(seconds) for seconds in (12.3, 300, 9000)] == ["12 s", "5 min", "2.5 h"]


# Figures


def test_a_covered_curve_is_seen() -> None:
    same, other = [1.0, 2.0, 3.0, 4.0], [1.0, 2.5, 3.0, 4.0]
    figure = figures.learning_curves(statistics_of({"a": same, "b": other, "c": same}), ENV, "step", palette.styles([*"abc"]))
    width = {line.get_label(): line.get_linewidth() for line in figure.axes[0].lines}
    assert width["a"] > width["b"] == width["c"]


def test_a_probability_of_improvement_over_an_equal_has_no_interval() -> None:
    same, other = [1.0, 2.0, 3.0, 4.0], [0.5, 2.5, 2.0, 3.0]
    figure = figures.improvements(statistics_of({"a": same, "b": same, "c": other}), ENV, palette.styles([*"abc"]))
    # The line at 50 %, a mark for each of the others, and the interval of one
    assert len(figure.axes[0].lines) == 4


def test_axes_have_plain_numbers() -> None:
    statistics = statistics_of({"a": [-1250.0, -200.0, -10.0]}, start=-2000.0)
    axes = figures.learning_curves(statistics, ENV, "step", palette.styles(["a"])).axes[0]
    assert [axes.yaxis.get_major_formatter()(value) for value in (-1250.0, 0.5)] == ["\N{MINUS SIGN}1,250", "0.5"]
    assert axes.xaxis.get_major_formatter()(100_000.0) == "100,000"


def test_figures_are_there_in_the_algorithms_colours_and_always_the_same(reported: Path, tmp_path: Path) -> None:
    drawn = {path.name: path.read_bytes() for path in (reported / "figures").iterdir()}
    names = [f"{env}_{kind}" for env in ("HalfCheetah-v5", "Hopper-v5") for kind in ("steps", "time", "scores", "improvement")]
    names += [name for name in drawn if name.startswith("all_environments") and name.endswith(("_steps", "_time"))]
    assert {f"{name}.{suffix}" for name in names for suffix in ("png", "svg")} <= drawn.keys() and len(drawn) == 20
    for name, data in drawn.items():
        assert data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    for look in palette.styles(read_manifest(reported)["request"]["algos"]).values():
        assert look.colour.lower().encode() in drawn["Hopper-v5_steps.svg"]
    write_report(reported, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == drawn
    assert (tmp_path / "report.html").read_bytes() == (reported / "report.html").read_bytes()


# The page


class Page(HTMLParser):
    """What a page refers to, says, and leaves open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.images: list[dict[str, Any]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.text = " ".join(self.text.replace("\N{NO-BREAK SPACE}", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.images += [dict(attrs)] * (tag == "img")
        self.open += [tag] * (tag not in ("meta", "img", "line", "wbr", "br"))
        assert tag not in ("script", "link", "iframe")

    def handle_endtag(self, tag: str) -> None:
        assert tag in ("line",) or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_no_other_file_and_says_everything(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    read = Page(text)
    assert read.open == [] and len(read.images) == 10 and all(image["alt"] for image in read.images)
    assert all(address.startswith("data:image/svg+xml;base64,") for address in read.addresses)
    assert "url(" not in text and "@import" not in text and 'name="viewport"' in text
    for phrase in (
        "No clear winner on HalfCheetah-v5",
        "over 2 environments",
        "pathwise_ac on Hopper-v5, seed 4: failed",
        "1 of 30 runs are missing",
        "SAC at 100,000 steps on v4",
        "torch 2.14 and 2.13",
        "Not all runs used the same versions",
    ):
        assert phrase in read.text, phrase
    # 29 seeds, 2 x 3 duels of either score, 2 references
    assert text.count("<td>200 s") == 0 and text.count("<td>3 min</td>") == 29
    assert text.count("<tr>") == 29 + 2 * 6 + 2
    # Names are text and not markup
    assert "<b>|" not in text and "&lt;b&gt;|" in text


def test_the_terminal_shows_the_verdict_and_where_the_page_is(reported: Path) -> None:
    text, said = (reported / "said" / "text").read_text(), Page((reported / "report.html").read_text()).text
    lines = re.findall(r"^ +\S.* (\S+) +(\[.*?\]) ", text, re.MULTILINE)
    # The leader board of either environment, and that of both together
    assert len(lines) == 9
    assert all(f"{score} {interval}" in said for score, interval in lines)
    assert text.endswith(f"Report, with the learning curves: {reported / 'report.html'}\n")


def test_names_are_text_in_the_terminal() -> None:
    text = io.StringIO()
    verdict = verdict_of({"a:net_arch=[b]": [1.0, 2.0, 3.0], "c": [9.0, 8.0, 7.0]})
    print_report(Report(Path("report.html"), [verdict], []), Console(file=text, width=100))
    assert "a:net_arch=[b]  " in text.getvalue() and "It is ahead of a:net_arch=[b] by" in text.getvalue()


def test_the_command_in_the_report_asks_for_the_same(reported: Path) -> None:
    text = "".join(re.findall(r"<pre>(.*?)</pre>", (reported / "report.html").read_text().replace("&#39;", "'"), re.DOTALL))
    commands = text.replace("&#34;", '"').replace("&lt;", "<").replace("&gt;", ">").split("sb3-pathwise compare")[1:]
    whole, one = (make_parser().parse_args(shlex.split(command)) for command in commands)
    request = read_manifest(reported)["request"]
    assert comparison_of(whole) == Comparison(**request)
    assert comparison_of(one) == Comparison(**request | {"n_seeds": 1})
    assert one.no_report and one.output != whole.output


@pytest.mark.parametrize("prepare", ["nothing", "empty", "damaged", "older"])
def test_a_folder_without_results(prepare: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = {"nothing": "holds no comparison", "empty": "no run in", "damaged": "cannot read", "older": "another version"}
    if prepare == "empty":
        make_folder(tmp_path, {("sac", ENV): []})
    if prepare in ("damaged", "older"):
        (tmp_path / "comparison.json").write_text("{" if prepare == "damaged" else '{"format": 1}')
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message[prepare] in error and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


# Colours

# Machado, Oliveira and Fernandes (2009), severity 1
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
COMMON = (*ALGORITHMS, "sac", "tqc", "crossq", "td3")


def cielab(colour: str, blindness: np.ndarray) -> np.ndarray:
    """A colour of sRGB as a reader sees it, in a space where distances are differences seen."""
    encoded = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = blindness @ np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
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
