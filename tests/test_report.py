"""
Tests of ``report``: statistics against closed forms and rliable's own, verdicts, pages and figures.

The results are made up, by laws that the tests know; training and storing are tested in ``test_compare.py``.
"""

import io
import itertools
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rliable import metrics

from sb3_pathwise.experiments import figures, page, palette
from sb3_pathwise.experiments.compare import comparison_of, make_parser
from sb3_pathwise.experiments.grid import Comparison, Run
from sb3_pathwise.experiments.report import Report, main, print_report, write_report
from sb3_pathwise.experiments.statistics import (
    Duel,
    Estimate,
    Statistics,
    corrected,
    duel,
    interquartile_mean,
    iqm,
    probability_of_improvement,
)
from sb3_pathwise.experiments.store import Store
from sb3_pathwise.zoo.registry import ALGORITHMS

STEPS = (0, 50, 100)
ENV = "Pendulum-v1"


def make_rows(finals: dict[str, list[float]], environment: str = ENV, start: float = 0.0) -> list[dict[str, Any]]:
    """Evaluations of runs that learn at a constant pace, from ``start`` to the given final returns."""
    return [
        {
            "algorithm": algorithm,
            "environment": environment,
            "seed": seed,
            "step": step,
            "train_seconds": 2.0 * step,
            "return_mean": start + (final - start) * step / 100,
            "return_std": 1.0,
            "length_mean": 10.0,
        }
        for algorithm, values in finals.items()
        for seed, final in enumerate(values)
        for step in STEPS
    ]


def statistics_of(finals: dict[str, list[float]], **more: Any) -> Statistics:
    """Statistics of one environment."""
    return Statistics(make_rows(finals, **more), list(finals), [more.get("environment", ENV)])


def make_folder(output: Path, finals: dict[tuple[str, str], list[float]], failed: tuple[Any, ...] = ()) -> Path:
    """A comparison's folder, with runs of the given final returns by algorithm and environment."""
    algos, envs = (list(dict.fromkeys(key[place] for key in finals)) for place in (0, 1))
    comparison = Comparison(algos, envs, max(map(len, finals.values())), n_timesteps=100, eval_freq=50)
    run_of = {
        (algo, env, seed): Run(
            algo, algo.partition(":")[0], env, seed, 100, 50, 10, {"policy": "MlpPolicy"}, {}, {}, [], "auto", 1
        )
        for algo, env in finals
        for seed in comparison.seeds
    }
    with Store(output).opened(comparison, list(run_of.values())) as store:
        for (algo, env), values in finals.items():
            for seed, final in enumerate(values):
                evaluations = [
                    {"step": step, "train_seconds": 2.0 * step, "returns": [final * step / 100] * 2, "lengths": [10, 10]}
                    for step in STEPS
                ]
                outcome = {
                    "evaluations": evaluations,
                    "error": "Traceback\n" if (algo, env, seed) in failed else None,
                    "started": 0.0,
                    "wall_seconds": 200.0,
                    "versions": {"python": "3.11", "torch": "2.13"},
                    "machine": {"platform": "Linux", "processors": 2},
                }
                store.save(run_of[algo, env, seed], outcome)
    return output


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two environments, one run of which failed, with its report."""
    rng = np.random.default_rng(0)
    finals = {
        ("pathwise_ac", ENV): list(rng.normal(100, 5, 5)),
        ("pathwise_ac", "Hopper-v5"): list(rng.normal(3000, 100, 5)),
        ("likelihood_ratio_ac:n_action_samples=2", ENV): list(rng.normal(60, 5, 5)),
        ("likelihood_ratio_ac:n_action_samples=2", "Hopper-v5"): list(rng.normal(2950, 100, 5)),
        ("sac:policy_kwargs=dict(a='<b>|')", ENV): list(rng.normal(99, 5, 5)),
        ("sac:policy_kwargs=dict(a='<b>|')", "Hopper-v5"): list(rng.normal(1000, 100, 5)),
    }
    failed = (("pathwise_ac", "Hopper-v5", 4),)
    folder = make_folder(tmp_path_factory.mktemp("reported") / "results", finals, failed)
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
    estimates = [iqm(rng.normal(size=(20, 1))) for _ in range(200)]
    n_held = sum(estimate.low < 0.0 < estimate.high for estimate in estimates)  # type: ignore[operator]
    assert 176 <= n_held <= 199


def test_intervals_are_stratified_by_environment() -> None:
    # Runs differ between environments only: resampled within each of them, they leave no doubt
    scores = np.tile([0.0, 1.0, 5.0, 9.0], (5, 1))
    estimate = iqm(scores)
    assert estimate == Estimate(3.0, 3.0, 3.0)


def test_the_same_results_give_the_same_intervals_and_leave_the_generator_alone() -> None:
    scores = np.random.default_rng(0).normal(size=(6, 1))
    np.random.seed(3)
    first, drawn = iqm(scores), np.random.random()
    assert iqm(scores) == first
    np.random.seed(3)
    assert np.random.random() == drawn


def test_a_duel_of_equals_is_open() -> None:
    scores = np.random.default_rng(0).normal(size=(8, 1))
    found = duel(ENV, "final", {"a": scores, "b": scores.copy()}, "a", "b")
    assert (found.difference.point, found.improvement.point, found.p, found.p_rank) == (0.0, 0.5, 1.0, 1.0)
    assert found.difference.low is not None and found.difference.high is not None
    assert found.difference.low < 0.0 < found.difference.high
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
    rows = make_rows({"sac": [10.0, 20.0, 30.0, 40.0]})
    # The last seed trains twice as fast
    for row in rows[-3:]:
        row["train_seconds"] /= 2
    statistics = Statistics(rows, ["sac"], [ENV])
    curve = statistics.curve(ENV, "sac", "step")
    assert curve is not None and curve.low is not None and curve.high is not None
    assert list(curve.x) == list(STEPS)
    # Of four, the middle two
    assert curve.point == pytest.approx([0.0, 12.5, 25.0])
    assert curve.low[0] == curve.high[0] == 0.0
    assert 10 <= curve.low[2] < 25 < curve.high[2] <= 40
    curve = statistics.curve(ENV, "sac", "train_seconds")
    assert curve is not None
    # Until the quickest ended, when the others were half way: 5, 10, 15 and 40
    assert curve.x[-1] == 100.0
    assert curve.point[-1] == pytest.approx(12.5)
    assert statistics.curve(ENV, "tqc", "step") is None


def test_normalised_scores() -> None:
    rows = make_rows({"a": [10.0, 10.0, 10.0], "b": [5.0, 5.0, 0.0]})
    rows += make_rows({"a": [-10.0, -10.0, -10.0], "b": [-20.0, -20.0]}, environment="Other-v0", start=-30.0)
    statistics = Statistics(rows, ["a", "b"], [ENV, "Other-v0"])
    assert statistics.normalised["a"] == pytest.approx(np.ones((3, 2)))
    # The seed that is not there on both does not count
    assert statistics.normalised["b"] == pytest.approx(np.full((2, 2), 0.5))
    nothing_learned = Statistics(
        make_rows({"a": [1.0]}) + make_rows({"a": [0.0]}, environment="Other-v0"), ["a"], [ENV, "Other-v0"]
    )
    assert nothing_learned.normalised == {}


# Verdicts


def verdict_of(finals: dict[str, list[float]]) -> page.Verdict:
    """The verdict on one environment."""
    return page.verdict(statistics_of(finals), ENV)


def test_a_clear_winner() -> None:
    verdict = verdict_of({"a": [1.0, 2.0, 3.0, 4.0], "b": [51.0, 52.0, 53.0, 54.0], "c": [11.0, 12.0, 13.0, 14.0]})
    assert verdict.headline == f"b won on {ENV}"
    assert verdict.detail == "It is ahead of c and a by more than chance explains."
    assert [row.algorithm for row in verdict.board] == ["b", "c", "a"]
    assert verdict.facts[0][1] == "b"
    assert verdict.facts[1][1] == "40.00" and verdict.facts[1][2].endswith("over c")
    assert verdict.facts[2][1] == "100 %"


def test_no_clear_winner() -> None:
    verdict = verdict_of({"a": [1.0, 2.0, 3.0, 4.0], "b": [51.0, 50.0, 53.0, 54.0], "c": [51.5, 50.5, 53.0, 54.0]})
    assert verdict.headline == f"No clear winner on {ENV}"
    assert verdict.detail == (
        "c is ahead, but chance alone may explain its lead over b. It is ahead of a by more than chance explains."
    )
    assert [row.decided for row in verdict.board] == [False, False, True]


def test_too_few_seeds() -> None:
    verdict = verdict_of({"a": [1.0, 2.0], "b": [51.0, 50.0]})
    assert verdict.headline == f"Too few seeds to name a winner on {ENV}"
    assert verdict.board[0].interval == "no interval" and verdict.board[0].low is None
    assert verdict.board[1].sure == "too few seeds to test"


def test_algorithms_that_score_the_same() -> None:
    same, other, far = [1.0, 2.0, 3.0, 4.0], [0.5, 2.0, 2.5, 4.0], [-40.0, -41.0, -42.0, -43.0]
    verdict = verdict_of({"a": same, "b": same, "c": far})
    assert verdict.headline == f"a and b won on {ENV}"
    assert verdict.detail == ("They are ahead of c by more than chance explains. a and b have the same score with every seed.")
    assert [fact[1] for fact in verdict.facts] == ["a and b", "44.00", "100 %"]
    assert verdict.facts[1][2].endswith("over c")
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
    verdict = verdict_of({"a": same, "b": same})
    assert verdict.headline == f"No difference on {ENV}" and len(verdict.facts) == 1
    verdict = verdict_of({"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [0.0, 0.0]})
    assert verdict.headline == f"Too few seeds to name a winner on {ENV}"
    assert verdict.detail.startswith("a and b are ahead;")


def test_algorithms_that_score_the_same_in_the_table_of_pairs() -> None:
    same = [1.0, 2.0, 3.0, 4.0]
    row = next(iter(page.duel_rows(statistics_of({"a": same, "b": same}))["final return"]))
    assert (row["difference"], row["improvement"], row["p"]) == ("the same score with every seed", "50 %", "p = 1.00")


def test_algorithms_that_score_the_same_on_all_environments() -> None:
    same, low = [9.0, 10.0, 11.0], [1.0, 2.0, 3.0]
    rows = make_rows({"a": same, "b": same, "c": low}) + make_rows({"a": same, "b": same, "c": low}, environment="Other-v0")
    verdict = page.overall(Statistics(rows, ["a", "b", "c"], [ENV, "Other-v0"]))
    assert verdict is not None
    assert verdict.headline == "a and b won over 2 environments"
    assert "a and b have the same score with every seed" in verdict.detail
    assert verdict.board[1].gap == "the same score with every seed" and verdict.board[1].sure == ""


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


def test_one_algorithm() -> None:
    verdict = verdict_of({"a": [1.0, 2.0, 3.0]})
    assert verdict.headline == f"a on {ENV}" and len(verdict.facts) == 1


def test_numbers() -> None:
    assert page.Numbers([Estimate(-150.24, -160.0, -140.0)])(-150.24) == "\N{MINUS SIGN}150.2"
    assert page.Numbers([Estimate(12345.6)])(12345.6) == "12,346"
    assert page.Numbers([Estimate(0.5)])(-0.001) == "0.00"
    assert page.Numbers([Estimate(0.0)])(0.0) == "0.00"
    assert [page.p_value(p) for p in (None, 1e-5, 0.0456, 0.456)] == ["not tested", "p < 0.001", "p = 0.046", "p = 0.46"]
    assert [page.duration(seconds) for seconds in (12.3, 300, 9000)] == ["12 s", "5 min", "2.5 h"]


# Pages


class Links(HTMLParser):
    """What a page refers to, and its open tags."""

    VOID = ("meta", "img", "line", "wbr", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.images: list[dict[str, Any]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)
        assert tag not in ("script", "link", "iframe")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_no_other_file(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    links = Links(text)
    assert links.open == []
    assert len(links.images) == 8
    assert all(address.startswith("data:image/svg+xml;base64,") for address in links.addresses)
    assert all(image["alt"] for image in links.images)
    assert "url(" not in text and "@import" not in text
    assert 'name="viewport"' in text and "@media print" in text


def test_both_pages_say_the_same(reported: Path) -> None:
    html = " ".join(Links((reported / "report.html").read_text()).text.replace("\N{NO-BREAK SPACE}", " ").split())
    markdown = (reported / "report.md").read_text()
    for phrase in (
        "No clear winner on Pendulum-v1",
        "No clear winner on Hopper-v5",
        "over 2 environments",
        "pathwise_ac on Hopper-v5, seed 4: failed",
        "1 of 30 runs are missing",
    ):
        assert phrase in html and phrase in markdown, phrase
    # 29 seeds, 2 x 3 duels of either score
    assert len(re.findall(r"^\| [^|]+ \| .+ \| \d \| [^|]+ \| [^|]+ \| 200|^\| .*\| 3 min \|", markdown, re.M)) >= 29
    assert markdown.count("p = ") + markdown.count("p < ") > 30


def test_the_terminal_shows_the_verdict_and_where_the_page_is(reported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(reported)]) == 0
    text = capsys.readouterr().out
    markdown = (reported / "report.md").read_text()
    for headline in re.findall(r"^## (.* on .*)$", markdown, re.M):
        assert f"\n{headline}\n" in text
    # The leader board of either environment, and that of both together
    scores = re.findall(r"^\| \d \| \S+ \| \*\*(\S+)\*\* \| (\[.*?\])", markdown, re.M)
    assert len(scores) == 9
    for score, interval in scores:
        # Long names are folded, numbers are not
        assert re.search(rf"^ +\S.* {re.escape(score)} +{re.escape(interval)} ", text, re.M)
    assert text.endswith(f"Report, with the learning curves: {reported / 'report.html'}\n")


def test_names_are_text_in_the_terminal() -> None:
    text = io.StringIO()
    verdict = verdict_of({"a:net_arch=[b]": [1.0, 2.0, 3.0], "c": [9.0, 8.0, 7.0]})
    print_report(Report(Path("report.html"), [verdict]), Console(file=text, width=100))
    assert "a:net_arch=[b]  " in text.getvalue() and "lead over" not in text.getvalue()
    assert "It is ahead of a:net_arch=[b] by" in text.getvalue()


def test_names_are_text_and_not_markup(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    assert "<b>|" not in text and "&lt;b&gt;|" in text
    table = [line for line in (reported / "report.md").read_text().splitlines() if line.startswith("| 1 |")]
    assert all(len(re.split(r"(?<!\\)\|", line)) in (8, 10) for line in table)


def test_the_command_in_the_report_asks_for_the_same(reported: Path) -> None:
    commands = re.findall(r"^sb3-pathwise compare .*$", (reported / "report.md").read_text(), re.M)
    whole, one = (make_parser().parse_args(shlex.split(command)[2:]) for command in commands)
    assert comparison_of(whole) == Comparison(**page_request(reported))
    assert comparison_of(one) == Comparison(**page_request(reported) | {"n_seeds": 1})
    assert one.no_report and one.output != whole.output


def page_request(folder: Path) -> dict[str, Any]:
    """What a comparison was started with."""
    from sb3_pathwise.experiments.store import read_manifest

    return read_manifest(folder)["request"]


def test_figures_are_there_as_png_and_as_svg(reported: Path) -> None:
    drawn = {path.name: path.read_bytes() for path in (reported / "figures").iterdir()}
    names = [f"{env}_{kind}" for env in (ENV, "Hopper-v5") for kind in ("steps", "time", "scores", "improvement")]
    assert sorted(drawn) == sorted(f"{name}.{suffix}" for name in names for suffix in ("png", "svg"))
    for name, data in drawn.items():
        assert data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    markdown = (reported / "report.md").read_text()
    assert set(re.findall(r"\(figures/(.+?)\)", markdown)) == {f"{name}.png" for name in names}
    # In the algorithms' colours
    for algorithm in page_request(reported)["algos"]:
        assert palette.colour(algorithm).lower().encode() in drawn[f"{ENV}_steps.svg"]


def test_the_same_results_give_the_same_files(reported: Path, tmp_path: Path) -> None:
    write_report(reported, tmp_path / "again")
    first = {path.name: path.read_bytes() for path in (tmp_path / "again").rglob("*") if path.is_file()}
    write_report(reported, tmp_path / "again")
    second = {path.name: path.read_bytes() for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert len(first) == 2 + 16
    assert first == second
    assert first["report.html"] == (reported / "report.html").read_bytes()


def test_mixed_versions_are_pointed_out() -> None:
    runs = [{"versions": {"torch": "2.13"}}, {"versions": {"torch": "2.14"}}]
    assert page.version_rows(runs) == {"torch": "2.13 and 2.14"}


@pytest.mark.parametrize("prepare", ["nothing", "empty", "damaged"])
def test_a_folder_without_results(prepare: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = "holds no comparison"
    if prepare == "empty":
        make_folder(tmp_path, {("sac", ENV): []})
        message = "no run in"
    if prepare == "damaged":
        (tmp_path / "comparison.json").write_text("{")
        message = "cannot read"
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
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
    assert palette.COLOURS.keys() >= set(COMMON)
    alone, among = palette.styles(["tqc"]), palette.styles(["sac", "pathwise_ac", "tqc", "tqc:gamma=0.9", "tqc:gamma=0.8"])
    assert alone["tqc"].colour == among["tqc"].colour == palette.COLOURS["tqc"]
    assert palette.styles(["tqc:gamma=0.9"])["tqc:gamma=0.9"].colour == among["tqc:gamma=0.9"].colour
    # In print without colours, what differs is the marker, and the dashes of variants
    assert len({look.marker for look in among.values()}) == 5
    assert len({among[f"tqc{suffix}"].dash for suffix in ("", ":gamma=0.9", ":gamma=0.8")}) == 3
    assert len({look.colour for look in among.values()}) == 5


def test_an_unknown_algorithm_has_a_colour() -> None:
    assert palette.colour("my_algo") in palette.COLOURS.values()


@pytest.mark.parametrize("text", ["n=2", "n=32", "gamma=0.9", "baseline=none", "a=1,b=2"])
@pytest.mark.parametrize("algo", COMMON)
def test_tints_of_variants_are_visible_on_paper(algo: str, text: str) -> None:
    lightness, _, _ = cielab(palette.colour(f"{algo}:{text}"), BLINDNESS["none"])
    assert 5 < lightness < 87
