"""
The command ``bench``: what it counts is right, what it prints is what it measured. How fast anything is, is not tested.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from sb3_pathwise.experiments import bench, bench_measure
from sb3_pathwise.experiments.bench_measure import IMPLEMENTATIONS, Measurement, Stopwatch, describe, make_model, summarize
from sb3_pathwise.experiments.bench_report import markdown

ROOT = Path(__file__).parent.parent


def slow(clock: list[float], owner: Any, name: str, seconds: float) -> None:
    function = getattr(owner, name)

    def waiting(*args: Any, **kwargs: Any) -> Any:
        clock[0] += seconds
        return function(*args, **kwargs)

    setattr(owner, name, waiting)


@pytest.mark.parametrize("algo", ["sac", "crossq", "pathwise_ac"])
def test_split_adds_up(algo: str) -> None:
    clock = [0.0]
    model = make_model(algo, "Pendulum-v1", width=16)
    model.learn(101)
    slow(clock, model, "_sample_action", 1)
    slow(clock, model.env, "step", 2)
    slow(clock, model.replay_buffer, "sample", 4)
    slow(clock, model, "_update_learning_rate", 8)
    slow(clock, model, "_store_transition", 16)
    watch = Stopwatch(model, lambda: clock[0])
    start = clock[0]
    model.learn(3, reset_num_timesteps=False)
    split = watch.split(clock[0] - start, 3)
    expected = {"acting": 1, "env": 2, "sampling": 4, "update": 8, "rest": 16}
    assert split == pytest.approx({part: 1e3 * seconds for part, seconds in expected.items()})
    assert watch.seconds["train"] == pytest.approx(3 * (4 + 8))


def test_measure_counts_its_own_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(bench_measure, "clock_for", lambda threads, device: lambda: clock[0])
    model = make_model("pathwise_ac", "Pendulum-v1", width=16, gradient_steps=2)
    slow(clock, model.replay_buffer, "sample", 3)
    slow(clock, model.env, "step", 4)
    turns = bench_measure.measure({"a": model}, n_steps=3, repetitions=2)["a"]
    assert [turn.update_ms for turn in turns] == pytest.approx([3000, 3000])
    assert [turn.steps_per_second for turn in turns] == pytest.approx([1 / 10, 1 / 10])


OURS = [algo for algo, implementation in IMPLEMENTATIONS.items() if implementation.module == "sb3_pathwise"]


@pytest.mark.parametrize("algo", [algo for algo in OURS if not algo.endswith("cuda_graph")])
def test_measured_is_what_users_get(algo: str) -> None:
    # At their own width: the 1024 wide one too takes a second
    model = make_model(algo, "Pendulum-v1")
    bench_measure.measure({algo: model}, n_steps=3, repetitions=1)
    assert describe(model)["engine"] == ("eager" if algo == "pathwise_ac_eager" else "fused")
    assert describe(make_model("sac", "Pendulum-v1"))["engine"] == ""


@pytest.mark.parametrize(("ours", "theirs"), [("pathwise_crossq", "crossq_256"), ("pathwise_crossq_1024", "crossq")])
def test_likes_are_alike(ours: str, theirs: str) -> None:
    assert theirs == IMPLEMENTATIONS[ours].peer
    ours, theirs = (make_model(algo, "Pendulum-v1") for algo in (ours, theirs))
    for network in ("actor", "critic"):
        shapes = [{name: value.shape for name, value in getattr(m, network).state_dict().items()} for m in (ours, theirs)]
        assert shapes[0] == shapes[1]
        groups = [getattr(m, network).optimizer.param_groups[0] for m in (ours, theirs)]
        assert all(groups[0][name] == groups[1][name] for name in ("lr", "betas"))
    assert ours.policy_delay == theirs.policy_delay == 3


def test_summary() -> None:
    def measurement(speed: float) -> Measurement:
        return Measurement(speed, 1000 / speed, dict.fromkeys(bench_measure.PARTS, 1.0))

    # The machine slowed down from turn to turn; the ratios did not
    factors = {"sac": 1, "tqc": 0.5, "pathwise_tqc": 2}
    rows = summarize({algo: [measurement(factor * speed) for speed in (100, 50, 10)] for algo, factor in factors.items()})
    assert {algo: row["ratios"]["sac"] for algo, row in rows.items()} == {a: [f, f, f] for a, f in factors.items()}
    assert rows["pathwise_tqc"]["ratios"]["tqc"] == [4, 4, 4] and rows["tqc"]["ratios"].keys() == {"sac"}
    assert rows["tqc"]["steps_per_second"] == 25 and rows["tqc"]["update_ms"] == 40
    assert [turn["steps_per_second"] for turn in rows["tqc"]["turns"]] == [50, 25, 5]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks so small that a run of the command takes seconds."""
    whole = bench_measure.make_model
    monkeypatch.setattr(bench, "make_model", lambda *args, **kwargs: whole(*args, **{"width": 8, "batch_size": 4} | kwargs))
    monkeypatch.setattr(bench, "measure_memory", lambda algo, env_id: {"sac": 200.0}.get(algo, 220.0))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("tiny")
def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    varied = {"batch_size": (("pathwise_ac",), (8, 16)), "n_envs": (("pathwise_ac", "mixed_ac"), (2,))}
    monkeypatch.setattr(bench, "SCALING", varied)
    monkeypatch.setitem(IMPLEMENTATIONS, "sbx_sac", bench_measure.Implementation("no_such_package", "SAC"))
    arguments = "--quick --algos sac pathwise_ac sbx_sac pathwise_ac_cuda_graph --repetitions 2 --steps 5 --output"
    assert bench.main([*arguments.split(), str(tmp_path)]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [(row["algo"], row["work"]) for row in report["speed"]] == [("sac", "Pendulum-v1"), ("pathwise_ac", "Pendulum-v1")]
    assert [row["engine"] for row in report["speed"]] == ["", "fused"]
    assert report["speed"][0]["ratios"]["sac"] == [1, 1, 1] and len(report["speed"][1]["turns"]) == 2
    scaling = [(row["variable"], row["value"], row["algo"]) for row in report["scaling"]]
    assert scaling == [("batch_size", 8, "pathwise_ac"), ("batch_size", 16, "pathwise_ac"), ("n_envs", 2, "pathwise_ac")]
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    output = capsys.readouterr().out
    assert "left out: sbx_sac: No module named 'no_such_package'" in output
    assert "left out: pathwise_ac_cuda_graph: " in output and "the model is on cpu" in output
    assert output.count("left out: ") == 2
    assert bench_measure.processor() == report["processor"] and report["processor"] in output
    assert f"{report['speed'][1]['steps_per_second']:.1f}" in output

    assert bench.main(["--table", str(tmp_path / "bench.json")]) == 0
    caption, _, heading, _, *lines = capsys.readouterr().out.splitlines()
    assert report["processor"] in caption and "2 turns of 5 steps" in caption
    assert heading == "| algorithm | engine | Pendulum-v1 | against its like | memory, Pendulum-v1 | policy |"
    assert [line.split(" | ")[0] for line in lines] == ["| `sac`", "| `pathwise_ac`"]
    low, median, high = report["speed"][1]["ratios"]["sac"]
    assert f"| fused | {median:.2f} ({low:.2f}-{high:.2f}) |  | 1.10 |" in lines[1]


@pytest.mark.usefixtures("tiny")
def test_memory_is_that_of_the_cpu_where_no_graph_can_be_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def describe_on_gpu(model: Any) -> dict[str, Any]:
        return describe(model) | ({"engine": "cuda_graph"} if describe(model)["engine"] else {})

    monkeypatch.setattr(bench, "describe", describe_on_gpu)
    arguments = "--quick --algos sac pathwise_ac --repetitions 1 --steps 2 --no-scaling --output"
    assert bench.main([*arguments.split(), str(tmp_path)]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [row["algo"] for row in report["speed"]] == ["sac", "pathwise_ac"]
    assert report["memory_mb"] == {"Pendulum-v1": {"sac": 200.0}}


@pytest.mark.usefixtures("tiny")
def test_what_is_measured_is_kept_if_it_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure_memory", stop)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--quick", "--algos", "sac", "--repetitions", "1", "--steps", "2", "--output", str(tmp_path)])
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [row["algo"] for row in report["speed"]] == ["sac"] and report["device"] == "cpu"


@pytest.mark.parametrize("folder", ["bench", "bench-gpu"])
def test_table_of_the_documentation(folder: str) -> None:
    report = json.loads((ROOT / "examples" / "figures" / folder / "bench.json").read_text())
    assert markdown(report) in (ROOT / "docs" / "guide" / "engines.md").read_text()


@pytest.mark.parametrize("arguments", [["--algos", "unknown"], ["--steps", "0"], ["--repetitions", "x"]])
def test_bad_arguments(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        bench.main(arguments)
    assert exit_info.value.code == 2


def test_unknown_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--envs", "Pendulum-v1", "--device", "no_such_device"]) == 2
    assert "--device no_such_device" in capsys.readouterr().out


def test_unknown_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--envs", "NoSuchEnv-v0"]) == 2
    assert "--envs NoSuchEnv-v0" in capsys.readouterr().out
