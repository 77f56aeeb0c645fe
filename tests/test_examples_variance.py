"""Tests of the examples on the variance of gradients. The notebook on its theory is in ``test_docs.py``."""

import csv
import importlib.util
import math
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch as th

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_compare_variance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    example = load("compare_variance")
    threads = th.get_num_threads()
    arguments = ["--env", "Pendulum-v1", "--output", str(tmp_path)]
    try:
        monkeypatch.setattr(sys, "argv", ["", *arguments, "--timesteps", "150", "--every", "30"])
        example.main()
        curves = example.read_csv(tmp_path / "variance-Pendulum-v1.csv")
        assert curves["timesteps"].tolist() == [120, 150]
        assert all((curves[f"gradient/{route}/variance"] > 0).all() for route in example.ROUTES)

        figure = tmp_path / "variance-Pendulum-v1.png"
        figure.unlink()
        monkeypatch.setattr(sys, "argv", ["", *arguments, "--plot"])
        example.main()
        assert figure.stat().st_size > 10_000

        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["", *arguments, "--baselines", "--timesteps", "120"])
        example.main()
        assert "same model, states and critics: 1 / " in capsys.readouterr().out
        with (tmp_path / "baselines-Pendulum-v1.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["trained_with"] for row in rows] == ["leave_one_out", "none"]
        assert all(float(row["leave_one_out"]) < float(row["none"]) for row in rows)
    finally:
        th.set_num_threads(threads)


def test_study_variance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    example = load("study_variance")
    monkeypatch.setitem(example.HYPERPARAMS, "twin", dict(policy_kwargs=dict(net_arch=[16, 16]), batch_size=32))
    monkeypatch.setattr(example, "update_times", partial(example.update_times, n_turns=1, n_updates=1))
    arguments = ["", "--env", "Pendulum-v1", "--critics", "twin", "--timesteps", "120", "--every", "60"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--output", str(tmp_path)])
    threads = th.get_num_threads()
    try:
        example.main()
        # Nothing is trained again
        monkeypatch.delattr(example, "train")
        example.main()
    finally:
        th.set_num_threads(threads)

    measured = example.read_csv(tmp_path / "variance-Pendulum-v1-twin.csv")
    assert list(measured) == [(60, 1), (120, 1), *((120, scale) for scale in example.STD_SCALES[1:])]
    assert set(measured[120, 1]) == set(example.ESTIMATORS) and set(measured[120, 0.5]) == set(example.SHARPENED)
    assert all(numbers["variance"] > 0 for point in measured.values() for numbers in point.values())
    assert all(numbers["update_ms"] > 0 for numbers in measured[120, 1].values())
    std, halved = (measured[120, scale][example.PATHWISE[0]]["policy_std"] for scale in (0.5, 0.25))
    assert halved == pytest.approx(std / 2, rel=1e-3)
    assert (tmp_path / "variance-Pendulum-v1.png").stat().st_size > 10_000
    assert "K = 16: " in capsys.readouterr().out


def test_samples_to_match_follow_the_law_of_leave_one_out() -> None:
    example = load("study_variance")
    v, c, one = 3.0, 7.0, 0.4
    point = {e: {"variance": (v + c / (e.n_samples - 1)) / e.n_samples} for e in example.RATIOS["leave_one_out"]}
    point[example.PATHWISE[0]] = {"variance": one}
    assert example.leave_one_out_law(point) == pytest.approx((v, c))
    n_samples = example.samples_to_match(point)
    assert (v + c / (n_samples - 1)) / n_samples == pytest.approx(one)


@pytest.mark.parametrize("env", ["Hopper-v5", "HalfCheetah-v5"])
def test_tables_of_the_documentation(env: str) -> None:
    example = load("study_variance")
    folder = Path(example.__file__).parent / "figures" / "study"
    paths = [folder / f"variance-{env}-{critic}.csv" for critic in example.HYPERPARAMS]
    page = (folder.parents[2] / "docs" / "guide" / "study.md").read_text()
    assert example.markdown(paths, env) in page
    # By how much the likelihood ratio's samples are more than pathwise ones, last and lowest and highest
    for path in paths:
        needed = [example.samples_to_match(point) for (_, scale), point in example.read_csv(path).items() if scale == 1]
        assert f"{needed[-1]:.1f}" in page and f"{min(needed):.1f}" in page and f"{max(needed):.1f}" in page


@pytest.mark.parametrize("env", ["Hopper-v5", "HalfCheetah-v5"])
def test_findings_of_the_documentation(env: str) -> None:
    """What the text says of the tables' files, in the order of the critics."""
    example = load("study_variance")
    folder = Path(example.__file__).parent / "figures" / "study"
    page = " ".join((folder.parents[2] / "docs" / "guide" / "study.md").read_text().split())
    ratio, pathwise = example.RATIOS["leave_one_out"], example.PATHWISE[0]
    sharper, falls, errors, needed = [], [], [], []
    for critic in example.HYPERPARAMS:
        measured = example.read_csv(folder / f"variance-{env}-{critic}.csv")
        steps, point = example.at_the_end(measured)
        sharp = measured[steps, min(example.STD_SCALES)]
        sharper.append(f"from {point[ratio[2]]['variance']:#.3g} to {sharp[ratio[2]]['variance']:#.3g}")
        falls.append(f"{point[pathwise]['variance'] / sharp[pathwise]['variance']:.2g}")
        v, c = example.leave_one_out_law(point)
        laws = {estimator: v + c / (estimator.n_samples - 1) for estimator in ratio[1:-1]}
        errors.append(max(abs(law / (e.n_samples * point[e]["variance"]) - 1) for e, law in laws.items()))
        needed.append([example.samples_to_match(point) for (_, scale), point in measured.items() if scale == 1])
    assert f"{' and '.join(sharper)} on {env}" in page
    assert f"by {' and '.join(falls)}" in page
    within = "within {:.0f} % (twin) and {:.0f} % (batch_renorm)" if env == "Hopper-v5" else "within {:.0f} % and {:.0f} %"
    assert f"{within.format(*(math.ceil(100 * error) for error in errors))} on {env}" in page
    more = [normalised / twin for twin, normalised in zip(*needed, strict=True)]
    assert f"{min(more):.1f} to {max(more):.1f} times" in page


def test_study_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of the page are those of the committed files, which the figure can be drawn from."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(EXAMPLES)
    example = load("study_returns")
    page = (EXAMPLES.parent / "docs" / "guide" / "study.md").read_text()
    tables = (example.early_table(), *map(example.study_table, example.ENVS))
    assert all(table in page for table in tables)
    # Differences in the text, with their intervals, are those of the tables
    text = "\n".join(line for line in page.splitlines() if not line.startswith("|"))
    found = re.findall(r"-?[\d,]+ \[[-\d, ]+\]", text)
    assert found and all(difference in "".join(tables) for difference in found)
    n_runs = len((example.STUDY / "runs.csv").read_text().splitlines()) - 1
    assert f": {n_runs} runs of 50,000 steps" in text
    figure = tmp_path / "samples.png"
    example.draw(figure)
    assert figure.stat().st_size > 10_000
