"""
The command ``bench``: what it counts is right, what it prints is what it measured. How fast anything is, is not tested.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_pathwise.experiments import bench, bench_measure
from sb3_pathwise.experiments.bench_measure import Measurement, Stopwatch, make_model, product_operations, summarize
from sb3_pathwise.zoo.registry import ALGORITHMS, CRITIC_OF


@pytest.mark.parametrize("algo", ["sac", "pathwise_ac"])
def test_split_adds_up(monkeypatch: pytest.MonkeyPatch, algo: str) -> None:
    clock = [0.0]
    monkeypatch.setattr(bench_measure.time, "perf_counter", lambda: clock[0])
    model = make_model(algo, "Pendulum-v1", width=16)
    model.learn(101)

    def slow(owner: Any, name: str, seconds: float) -> None:
        function = getattr(owner, name)

        def waiting(*args: Any, **kwargs: Any) -> Any:
            clock[0] += seconds
            return function(*args, **kwargs)

        setattr(owner, name, waiting)

    slow(model, "_sample_action", 1)
    slow(model.env, "step", 2)
    slow(model.replay_buffer, "sample", 4)
    slow(model.critic.optimizer, "step", 8)
    slow(model.actor.optimizer, "step", 16)
    slow(model, "_store_transition", 32)
    watch = Stopwatch(model)
    start = clock[0]
    model.learn(3, reset_num_timesteps=False)
    split = watch.split(clock[0] - start, 3)
    expected = {"acting": 1, "env": 2, "sampling": 4, "critic": 8, "actor": 16, "rest": 32}
    assert split == pytest.approx({part: 1e3 * seconds for part, seconds in expected.items()})
    assert watch.seconds["train"] == pytest.approx(3 * (4 + 8 + 16))


@pytest.mark.parametrize("algo", CRITIC_OF)
def test_critics_of_keys_are_measured(algo: str) -> None:
    model = make_model(algo, "Pendulum-v1", width=16)
    assert model.policy.critic_name == CRITIC_OF[algo]
    assert type(model) is ALGORITHMS[algo]
    assert model.policy.net_arch == [16, 16]
    assert make_model("pathwise_crossq", "Pendulum-v1").policy_delay == 3


def test_measure_counts_its_own_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(bench_measure.time, "perf_counter", lambda: clock[0])
    model = make_model("pathwise_ac", "Pendulum-v1", width=16, gradient_steps=2)
    sample, step = model.replay_buffer.sample, model.env.step

    def slow_sample(*args: Any, **kwargs: Any) -> Any:
        clock[0] += 3
        return sample(*args, **kwargs)

    def slow_step(*args: Any) -> Any:
        clock[0] += 4
        return step(*args)

    monkeypatch.setattr(model.replay_buffer, "sample", slow_sample)
    monkeypatch.setattr(model.env, "step", slow_step)
    measurements = bench_measure.measure({"a": model}, "Pendulum-v1", 1, n_steps=3, repetitions=2)
    assert [measurement.update_ms for measurement in measurements] == pytest.approx([3000, 3000])
    assert [measurement.steps_per_second for measurement in measurements] == pytest.approx([1 / 10, 1 / 10])


def test_product_operations() -> None:
    model = make_model("pathwise_ac", "Pendulum-v1", width=32)
    # Pendulum: 3 observations, 1 action
    critic, actor = 4 * 32 + 32 * 32 + 32, 3 * 32 + 32 * 32 + 2 * 32
    expected = 2 * 10 * (2 * (6 * critic - 4 * 32) + 4 * actor - 3 * 32)
    assert product_operations(model, batch_size=10) == expected


def test_summary() -> None:
    def measurement(algo: str, speed: float) -> Measurement:
        return Measurement(algo, "E", 1, speed, 1000 / speed, dict.fromkeys(bench_measure.PARTS, 1.0))

    # The machine slowed down from turn to turn; the ratios did not
    speeds = (100, 50, 10)
    rows = summarize([measurement(algo, factor * s) for s in speeds for algo, factor in (("sac", 1), ("x", 2), ("y", 0.5))])
    assert {row["algo"]: row["ratio"] for row in rows} == {"sac": 1, "x": 2, "y": 0.5}
    assert rows[1]["ratio_quartiles"] == [2, 2] and rows[1]["steps_per_second"] == 100


def test_threads_are_restored() -> None:
    before = th.get_num_threads()
    with pytest.raises(ZeroDivisionError), bench_measure.torch_threads(before + 1):
        assert th.get_num_threads() == before + 1
        1 / 0  # noqa: B018
    assert th.get_num_threads() == before


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    varied = {"batch_size": (("pathwise_ac",), (8, 16)), "n_envs": (("pathwise_ac",), (2,))}
    monkeypatch.setattr(bench_measure, "SCALING", varied)
    monkeypatch.setitem(bench_measure.IMPLEMENTATIONS, "sbx_sac", bench_measure.Implementation("no_such_package", "SAC", {}))
    monkeypatch.setenv("COLUMNS", "200")
    arguments = "--quick --algos sac pathwise_ac sbx_sac --repetitions 2 --steps 5 --no-memory --output"
    assert bench.main([*arguments.split(), str(tmp_path)]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [(row["algo"], row["env"]) for row in report["speed"]] == [("sac", "Pendulum-v1"), ("pathwise_ac", "Pendulum-v1")]
    assert len(report["measurements"]) == 4 and report["speed"][0]["ratio"] == 1
    scaling = [(row["variable"], row["value"]) for row in report["scaling"]]
    assert scaling == [("batch_size", 8), ("batch_size", 16), ("n_envs", 2)]
    assert 0 < report["speed"][1]["share_of_product_limit"]
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    output = capsys.readouterr().out
    assert "left out: sbx_sac, as no_such_package is not installed" in output
    assert f"{report['speed'][1]['steps_per_second']:.1f}" in output


def test_memory_of_a_process() -> None:
    # Python, torch and SB3 alone take more than 100 MB; what this process holds does not count
    ballast = np.ones(2**27)
    assert 100 < bench_measure.measure_memory("pathwise_ac", "Pendulum-v1") < ballast.nbytes / 2**20


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
