"""The example on the noise of gradients along a training. The notebook on its theory is in ``test_docs.py``."""

import csv
import importlib.util
import sys
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
