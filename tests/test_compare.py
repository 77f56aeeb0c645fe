"""
Tests of ``compare``: bad input, what a run is, what survives a kill, processes and Dask workers.

The report's numbers and pages are tested in ``test_report.py``.
"""

import contextlib
import csv
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from filelock import FileLock
from rich.console import Console

from sb3_pathwise.experiments import compare as compare_module
from sb3_pathwise.experiments import run as run_module
from sb3_pathwise.experiments import store as store_module
from sb3_pathwise.experiments.compare import comparison_of, main, make_parser, print_failures
from sb3_pathwise.experiments.grid import Comparison, ComparisonError, Run, parse_variant, read_hyperparameters, slug
from sb3_pathwise.experiments.progress import Display
from sb3_pathwise.experiments.run import RunManager, build, execute
from sb3_pathwise.experiments.schedule import LocalEngine
from sb3_pathwise.experiments.store import Store
from sb3_pathwise.persistence.atomic import write_atomically

TESTS = Path(__file__).parent
ALGOS = ["sac", "likelihood_ratio_ac", "likelihood_ratio_ac:n_action_samples=2"]
SEEDS = 3
# Small networks and batches, and most steps after the warm-up
SMALL = ["learning_starts:10", "batch_size:8", "policy_kwargs:dict(net_arch=[8])"]
EVALUATION = ["--eval-freq", "20", "--eval-episodes", "2"]


def arguments(output: Path, *more: Any, algos: list[str] = ALGOS, envs: tuple[str, ...] = ("Reach-v0",)) -> list[str]:
    """A small comparison's command line; what comes later in ``more`` overrules."""
    words = ["--algos", *algos, "--envs", *envs, "--seeds", SEEDS, "--timesteps", 60, *EVALUATION, "--no-report", "--jobs", 2]
    words += ["--gym-packages", "comparison_envs", "--device", "cpu", "-params", *SMALL, "--output", output, *more]
    return [str(word) for word in words]


def returns(output: Path) -> dict[tuple[str, ...], str]:
    """Mean return by algorithm, environment, seed and step, as ``results.csv`` has it; no row may be there twice."""
    with open(output / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["algorithm"], row["environment"], row["seed"], row["step"]): row["return_mean"] for row in rows}
    assert len(found) == len(rows)
    return found


def small_run(**changes: Any) -> Run:
    """One of the comparison's runs."""
    settings: dict[str, Any] = {
        "variant": "sac",
        "algo": "sac",
        "env": "Reach-v0",
        "seed": 1,
        "n_timesteps": 60,
        "eval_freq": 20,
        "n_eval_episodes": 2,
        "hyperparams": {
            "policy": "MlpPolicy",
            "learning_starts": 10,
            "batch_size": 8,
            "policy_kwargs": "dict(net_arch=[8])",
        },
        "env_kwargs": {},
        "eval_env_kwargs": {},
        "gym_packages": ["comparison_envs"],
        "device": "cpu",
        "torch_threads": 1,
    }
    return Run(**settings | changes)


def outcome_of(value: float, error: str | None = None) -> dict[str, Any]:
    """What ``execute`` would return, with one evaluation."""
    evaluation = {"step": 0, "train_seconds": 0.5, "returns": [value - 1, value + 1], "lengths": [10, 10]}
    return {"evaluations": [evaluation], "error": error, "log": "", "started": 0.0, "wall_seconds": 1.0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nothing disturbed."""
    output = tmp_path_factory.mktemp("finished") / "results"
    assert main(arguments(output)) == 0
    return output


# Bad input


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--algos", "sack"], "unknown algorithm 'sack'; did you mean sac?"),
        (["--envs", "Reach-v1"], "unknown environment 'Reach-v1'; did you mean Reach-v0?"),
        (["--algos", "likelihood_ratio_ac:n_samples=2"], "no argument 'n_samples'; did you mean n_action_samples?"),
        (["--algos", "sac:learning_rate"], "'learning_rate' is not of the form name=value"),
        (["--algos", "sac:gamma=0.9,gamma=0.8"], "'gamma' is given twice"),
        (["--algos", "sac", "sac"], "sac is named twice"),
        (["-params", "n_action_samples:4", "--algos", "sac"], "sac has no argument 'n_action_samples'"),
        (["-params", "n_timesteps:4"], "'n_timesteps' is set by --timesteps"),
        (["-params", "0.1"], "'0.1' is not of the form name:value"),
        (["-params", "learning_rate:fast"], "cannot be trained on Reach-v0"),
        (["--algos", "dqn"], "dqn cannot be trained on Reach-v0"),
        (["--conf-file", "missing.yml"], "there is no file missing.yml"),
        (["--conf-file", "sac={tmp}/bad.yml"], "is not valid YAML"),
        (["--conf-file", "{tmp}/other.yml"], "Hyperparameters not found"),
        (["--conf-file", "ppo={tmp}/other.yml"], "ppo is not among the compared algorithms"),
        (["--gym-packages", "no_such_package"], "cannot import no_such_package"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--timesteps", "0"], "--timesteps must be at least 1"),
        (["--eval-freq", "0"], "--eval-freq must be at least 1"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--output", "{tmp}/bad.yml/results"], "cannot write to"),
        (["--output", "{tmp}"], "is not empty and holds no comparison"),
        (["--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler answers at tcp://127.0.0.1:9"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_before_any_training(
    more: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "bad.yml").write_text("Reach-v0: [1,\n  2")
    (tmp_path / "other.yml").write_text("Other-v0:\n  policy: MlpPolicy\n")
    # Nobody answers: do not wait as long as for a cluster
    monkeypatch.setattr("sb3_pathwise.experiments.schedule.CONNECT_SECONDS", 1)
    output = tmp_path / "results"
    assert main(arguments(output, *(word.replace("{tmp}", str(tmp_path)) for word in more))) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    # The corrected command finds everything as it was
    assert {path.name for path in tmp_path.rglob("*")} == {"bad.yml", "other.yml"}


def test_a_folder_without_runs_blocks_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever became of the comparison that has made it: refused by an older version, interrupted, or all runs failed."""
    output, another = tmp_path / "results", ["--seeds", 1, "--timesteps", 20]
    assert main(arguments(output, "--seeds", 1, algos=["sac"], envs=("Faulty-v0",))) == 1
    assert list(output.glob("failed/sac/Faulty-v0/seed_0/*"))
    assert main(arguments(output, *another, algos=["tqc"])) == 0
    assert {key[0] for key in returns(output)} == {"tqc"}
    # Nothing of the other one is left
    assert not (output / "failed").exists()
    capsys.readouterr()
    # A finished run is somebody's
    assert main(arguments(output, *another, algos=["sac"])) == 2
    assert "holds another comparison (with tqc on Reach-v0)" in capsys.readouterr().err


def test_too_few_seeds_for_an_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in arguments(tmp_path / "results", "--seeds", 2) if word != "--no-report"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "--seeds 2 is too few for a confidence interval" in error and error.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_lengths_that_the_zoo_does_not_agree_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # rl_zoo3's own: 20,000 and 100,000 steps
    words = ["--algos", "sac", "ppo", "--envs", "Pendulum-v1", "--output", str(tmp_path / "results")]
    assert main(words) == 2
    assert "(sac 20000, ppo 100000.0); give --timesteps" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_no_write_permission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results").mkdir(mode=0o500)
    assert main(arguments(tmp_path / "results")) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_a_folder_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results"
    output.mkdir()
    with FileLock(output / ".lock"):
        assert main(arguments(output)) == 2
    assert "is in use by another compare" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--algos", "sac"], "with likelihood_ratio_ac on Reach-v0"),
        (["--seeds", "2"], "with seeds 0 to 2, here 0 to 1"),
        (["--timesteps", "80"], "n_timesteps is 60 there, 80 here"),
        (["--eval-episodes", "3"], "n_eval_episodes is 2 there, 3 here"),
        (["--env-kwargs", "noise:0.2"], "env_kwargs is {} there, {'noise': 0.2} here"),
        (["-params", *SMALL, "gamma:0.9"], "gamma of sac on Reach-v0 is the default there, 0.9 here"),
    ],
)
def test_a_folder_with_another_comparison(
    finished: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "comparison.json").read_bytes()
    assert main(arguments(finished, *more)) == 2
    error = capsys.readouterr().err
    assert "holds another comparison" in error and message in error and error.count("\n") == 1
    assert (finished / "comparison.json").read_bytes() == before


# The request


@pytest.mark.parametrize(
    ("variant", "algo", "overrides"),
    [
        ("sac", "sac", {}),
        ("sac:gamma=0.9", "sac", {"gamma": 0.9}),
        ("mixed_ac:baseline=none,n_action_samples=4", "mixed_ac", {"baseline": "none", "n_action_samples": 4}),
        (
            "sac:policy_kwargs=dict(net_arch=[8, 8], n_critics=1),learning_rate=lin_1e-3",
            "sac",
            {"policy_kwargs": "dict(net_arch=[8, 8], n_critics=1)", "learning_rate": "lin_1e-3"},
        ),
        ("sac:train_freq=(1, 'episode')", "sac", {"train_freq": (1, "episode")}),
    ],
)
def test_variants(variant: str, algo: str, overrides: dict[str, Any]) -> None:
    assert parse_variant(variant) == (algo, overrides)


def test_the_command_asks_for_the_same_comparison() -> None:
    comparison = Comparison(
        algos=["sac", "tqc:policy_kwargs=dict(net_arch=[8, 8])"],
        envs=["Pendulum-v1"],
        n_seeds=4,
        first_seed=2,
        n_timesteps=70,
        eval_freq=9,
        n_eval_episodes=3,
        params=["learning_starts:10"],
        conf_files=["sac=a b.yml"],
        env_kwargs=["g:9.0"],
        eval_env_kwargs=["g:8.0"],
        gym_packages=["comparison_envs"],
        device="cpu",
        torch_threads=2,
    )
    words = shlex.split(comparison.command("runs/my folder"))
    assert words[:2] == ["sb3-pathwise", "compare"]
    args = make_parser().parse_args(words[2:])
    assert comparison_of(args) == comparison
    assert args.output == Path("runs/my folder")


def test_names_of_folders() -> None:
    assert slug("likelihood_ratio_ac") == "likelihood_ratio_ac"
    awkward = ["a:b=1", "a/b=1", "a b=1", "a" * 300, "a" * 301]
    names = [slug(name) for name in awkward]
    assert len(set(names)) == len(names)
    assert all(len(name) < 120 and "/" not in name and ":" not in name for name in names)


# Runs


def test_what_a_comparison_leaves(finished: Path) -> None:
    steps = ["0", "20", "40", "60"]
    found = returns(finished)
    expected = {(algo, "Reach-v0", str(seed), step) for algo in ALGOS for seed in range(SEEDS) for step in steps}
    assert set(found) == expected
    folder = finished / "runs" / slug(ALGOS[2]) / "Reach-v0" / "seed_1"
    record = json.loads((folder / "run.json").read_text())
    assert record["run"]["variant"] == ALGOS[2] and record["run"]["seed"] == 1
    assert record["run"]["hyperparams"]["n_action_samples"] == 2
    assert {"python", "torch", "stable_baselines3", "sb3-pathwise"} <= record["versions"].keys()
    assert record["wall_seconds"] > 0
    with open(folder / "evaluations.csv", newline="") as file:
        episodes = list(csv.DictReader(file))
    last = [float(row["return"]) for row in episodes if row["step"] == "60"]
    assert len(last) == 2
    assert float(found[ALGOS[2], "Reach-v0", "1", "60"]) == np.mean(last)
    seconds = [float(row["train_seconds"]) for row in episodes]
    assert seconds == sorted(seconds) and seconds[-1] > seconds[0] >= 0
    # Learning changes what is evaluated, and a variant is not its algorithm
    assert found["sac", "Reach-v0", "0", "20"] != found["sac", "Reach-v0", "0", "60"]
    assert found[ALGOS[1], "Reach-v0", "0", "60"] != found[ALGOS[2], "Reach-v0", "0", "60"]


def test_the_configuration_is_one_that_the_zoo_reads(finished: Path) -> None:
    folder = finished / "runs" / slug(ALGOS[2]) / "Reach-v0" / "seed_0"
    hyperparams = json.loads((folder / "run.json").read_text())["run"]["hyperparams"]
    found = read_hyperparameters("likelihood_ratio_ac", "Reach-v0", str(folder / "config.yml"))
    assert found == {"n_timesteps": 60, **hyperparams}


def test_nothing_is_redone_and_a_comparison_may_grow(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "grown"
    shutil.copytree(finished, output)
    before = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/*/*/run.json")}
    assert main(arguments(output)) == 0
    assert {path: path.stat().st_mtime_ns for path in output.glob("runs/*/*/*/run.json")} == before
    # Another algorithm and another seed
    assert main(arguments(output, "--seeds", SEEDS + 1, algos=["tqc", *ALGOS])) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found, whole = returns(output), returns(finished)
    assert len(found) == 4 * (SEEDS + 1) * 4
    assert {key: found[key] for key in whole} == whole


def test_returns_depend_on_the_run_alone(finished: Path) -> None:
    # In this process, after other runs and in another order than the comparison's
    execute(small_run(seed=7), lambda steps: True)
    outcome = execute(small_run(), lambda steps: True)
    here = [sum(evaluation["returns"]) / 2 for evaluation in outcome["evaluations"]]
    assert here == [float(returns(finished)["sac", "Reach-v0", "1", str(step)]) for step in (0, 20, 40, 60)]


def test_evaluations_leave_training_alone() -> None:
    often = execute(small_run(eval_freq=7, n_eval_episodes=3), lambda steps: True)["evaluations"]
    seldom = execute(small_run(eval_freq=60, n_eval_episodes=3), lambda steps: True)["evaluations"]
    assert [evaluation["step"] for evaluation in often] == [0, 7, 14, 21, 28, 35, 42, 49, 56, 60]
    assert [evaluation["step"] for evaluation in seldom] == [0, 60]
    assert [often[0]["returns"], often[-1]["returns"]] == [evaluation["returns"] for evaluation in seldom]
    assert often[0]["returns"] != often[-1]["returns"]


def test_a_variant_keeps_the_critic_of_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    algos = ["pathwise_crossq", "likelihood_ratio_tqc:policy_kwargs=dict(net_arch=[16])", "pathwise_ac"]
    request = arguments(tmp_path, algos=algos, envs=("Pendulum-v1",))
    critics = {}
    for run in comparison_of(make_parser().parse_args(request)).plan():
        manager, model = build(run)
        manager.evaluate.eval_env.close()
        critics[run.variant] = model.policy.critic_name
    assert list(critics.values()) == ["batch_renorm", "quantile", "twin"]
    other = arguments(tmp_path, algos=["pathwise_crossq:policy_kwargs=dict(critic='twin')"])
    assert main(other) == 2
    assert "pathwise_crossq has critic='batch_renorm', not 'twin'" in capsys.readouterr().err


def test_evaluations_of_several_environments_that_are_normalised() -> None:
    policy = {"policy": "MlpPolicy", "n_steps": 8, "batch_size": 8, "n_epochs": 1, "n_envs": 3, "normalize": True}
    manager, model = build(small_run(variant="ppo", algo="ppo", hyperparams=policy, n_timesteps=50, eval_freq=20))
    manager.learn(model)
    # Three steps at a time do not shift the points of evaluation
    assert [evaluation["step"] for evaluation in manager.evaluate.evaluations] == [0, 20, 40, 50]
    # The evaluation environments see what the policy was trained on
    assert manager.evaluate.eval_env.obs_rms.count > 50  # type: ignore[attr-defined]


def test_evaluation_environments_have_their_own_arguments() -> None:
    manager = RunManager(small_run(env_kwargs={"noise": 0.3}, eval_env_kwargs={"noise": 0.0}), lambda steps: True)
    assert manager.create_envs(1).get_attr("noise") == [0.3]
    assert manager.create_envs(1, eval_env=True).get_attr("noise") == [0.0]


def test_a_run_that_is_told_to_stop_does_not_count() -> None:
    outcome = execute(small_run(), lambda steps: steps < 30)
    assert "StoppedEarlyError: training ended after 30 of 60 steps" in outcome["error"]


def test_a_return_that_is_not_a_number_fails() -> None:
    outcome = execute(small_run(eval_env_kwargs={"reward_scale": float("nan")}), lambda steps: True)
    assert "FloatingPointError: the evaluation after 0 steps" in outcome["error"]


# Failures, kills and interrupts


def test_runs_that_raise_or_kill_their_process_spoil_no_other(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results"
    words = arguments(output, "--seeds", 1, algos=["sac"], envs=("Faulty-v0", "Deadly-v0", "Reach-v0"))
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "Failed: sac on Faulty-v0, seed 0\nTraceback" in error
    assert "RuntimeError: the point fell off the line" in error
    assert "Failed: sac on Deadly-v0, seed 0\nIts process died: {SIGKILL(-9)}" in error
    assert "2 of 3 runs failed" in error
    found, whole = returns(output), returns(finished)
    assert len(found) == 4
    assert found == {key: whole[key] for key in found}
    assert "the point fell off" in (output / "failed" / "sac" / "Faulty-v0" / "seed_0" / "traceback.txt").read_text()


def test_failures_are_told_even_if_nothing_is_left_to_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(LocalEngine):
        def outcomes(self, runs: list[Run], tick: Any) -> Any:
            for run in runs:
                yield run, outcome_of(0.0, error="Traceback\nRuntimeError: no\n")

    monkeypatch.setattr(compare_module, "LocalEngine", Failing)
    words = [word for word in arguments(tmp_path / "results", algos=["sac"]) if word != "--no-report"]
    assert main(words) == 1
    assert "RuntimeError: no\n" in capsys.readouterr().err
    assert not (tmp_path / "results" / "report.html").exists()


def test_a_traceback_that_runs_share_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    print_failures([(small_run(seed=0), "one\n"), (small_run(seed=1), "two\n"), (small_run(seed=2), "one\n")])
    text = capsys.readouterr().err
    assert text == (
        "\nFailed: sac on Reach-v0, seed 0\nFailed: sac on Reach-v0, seed 2\none\n\n\nFailed: sac on Reach-v0, seed 1\ntwo\n\n"
    )


def test_a_failed_run_is_tried_again(tmp_path: Path) -> None:
    output, marker = tmp_path / "results", tmp_path / "marker"
    words = arguments(output, "--env-kwargs", f"marker:{marker}", "--seeds", 1, algos=["sac"], envs=("Faulty-v0",))
    assert main(words) == 1
    assert len(returns(output)) == 0 and list(output.glob("failed/*/*/*"))
    assert main(words) == 0
    assert len(returns(output)) == 4 and not list(output.glob("failed/*/*/*"))


def start(output: Path, *more: Any) -> subprocess.Popen[str]:
    """The whole comparison in a process of its own, with its own group, as a terminal has it."""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "sb3_pathwise.experiments.compare", *arguments(output, *more)],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell lets what it runs in the background ignore Ctrl-C, and the tests with it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Wait for something that a process does."""
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def is_quiet(group: int) -> bool:
    """Whether no process of a group is left, within some seconds."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX process groups")
def test_kill_then_interrupt_then_finish(finished: Path, tmp_path: Path) -> None:
    output, hold, reached = tmp_path / "results", tmp_path / "hold", tmp_path / "hold-reached"
    # The runs of the last seed wait as long as the file is there, and change nothing else
    hold.touch()
    more = ("--env-kwargs", f"hold:{hold}")
    process = start(output, *more)
    wait_until(lambda: list(output.glob("runs/*/*/*/run.json")), process)
    # The comparison alone, without a chance to stop its workers
    process.kill()
    process.communicate()
    assert is_quiet(process.pid), "workers outlive the comparison"

    reached.unlink(missing_ok=True)
    process = start(output, *more)
    # All others have begun by then, and most are finished
    wait_until(reached.exists, process)
    # What a terminal does at Ctrl-C
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in text and "Traceback" not in text
    assert is_quiet(process.pid)
    n_kept = len(returns(output)) // 4
    assert 1 <= n_kept <= len(ALGOS) * (SEEDS - 1)

    kept = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/*/*/run.json")}
    hold.unlink()
    assert main(arguments(output, *more)) == 0
    assert returns(output) == returns(finished)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(output.rglob(".tmp-*"))


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")
def test_an_interrupt_does_not_reach_workers_that_are_just_starting(tmp_path: Path) -> None:
    process = start(tmp_path / "results")
    workers: list[int] = []

    def started() -> list[int]:
        workers.clear()
        for child in psutil.Process(process.pid).children():
            # One that has just gone has no command line
            with contextlib.suppress(psutil.Error):
                workers.extend([child.pid] * any("popen_loky" in part for part in child.cmdline()))
        return workers

    wait_until(started, process)
    # From its first moment on, long before it runs any code of ours
    first = workers[0]
    for _ in range(20):
        os.kill(first, signal.SIGINT)
        time.sleep(0.02)
    assert first in started()
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "Traceback" not in text
    assert len(returns(tmp_path / "results")) == len(ALGOS) * SEEDS * 4


def test_a_run_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, comparison = small_run(seed=0), Comparison(["sac"], ["Reach-v0"], 1)
    n_calls = 0

    def until_plug_is_pulled(function: Callable[..., None]) -> Callable[..., None]:
        def counted(*args: Any) -> None:
            nonlocal n_calls
            n_calls += 1
            if n_calls == stop_at:
                raise KeyboardInterrupt
            function(*args)

        return counted

    # Every point at which something reaches the disk or takes its final name. The first three are the manifest's; then there
    # are three files, their folder, and the folder's name
    for stop_at in range(4, 9):
        output = tmp_path / f"stopped_{stop_at}"
        n_calls = 0
        with monkeypatch.context() as patches:
            for name in ("fsync", "rename", "replace"):
                patches.setattr(os, name, until_plug_is_pulled(getattr(os, name)))
            with pytest.raises(KeyboardInterrupt), Store(output).opened(comparison, [run]) as store:
                store.save(run, outcome_of(3.0))
        assert n_calls == stop_at
        with Store(output).opened(comparison, [run]) as store:
            assert not store.finished(run)
            assert not list(output.rglob(".tmp-*"))
            store.save(run, outcome_of(3.0))
            assert store.finished(run)
        store_module.write_results(output)
        assert list(returns(output).values()) == ["3.0"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_damaged_run_is_named(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    (tmp_path / "copy" / "runs" / "sac" / "Reach-v0" / "seed_0" / "evaluations.csv").write_text("step\nx\n")
    with pytest.raises(ComparisonError, match=r"seed_0 .* remove that folder"):
        store_module.read_results(tmp_path / "copy")


# Progress


def test_the_display_shows_runs_speed_and_time_left() -> None:
    runs = [small_run(seed=seed, n_timesteps=1000) for seed in range(3)]
    text = io.StringIO()
    with Display(runs, 1, Console(file=text, force_terminal=True, width=160)) as display:
        for steps in range(0, 1000, 100):
            display.tick({0: steps, 1: steps // 2})
            time.sleep(0.02)
        display.finish(0, -12.34, 5.0)
        display.finish(1, None, None)
        display.tick({0: 1000, 1: 600, 2: 10})
    shown = text.getvalue()
    assert "1/4 runs" in shown and "2/4 runs" in shown
    assert "steps/s" in shown and "0:00:0" in shown
    assert "[2/4] sac on Reach-v0, seed 0: final return -12.3 in 5.0 s" in shown
    assert "sac on Reach-v0, seed 1: failed" in shown


def test_a_log_file_gets_one_line_per_run() -> None:
    text = io.StringIO()
    with Display([small_run()], 0, Console(file=text, width=160)) as display:
        display.tick({0: 30})
        display.finish(0, 1.0, 2.0)
    assert text.getvalue() == "[1/1] sac on Reach-v0, seed 1: final return 1.0 in 2.0 s\n"


# Clusters


@pytest.fixture(scope="module")
def cluster() -> Any:
    """A Dask cluster of two workers, each in a process of its own."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield cluster


def test_a_cluster_gives_the_same_returns(finished: Path, tmp_path: Path, cluster: Any) -> None:
    assert main(arguments(tmp_path / "results", "--scheduler", cluster.scheduler_address)) == 0
    assert returns(tmp_path / "results") == returns(finished)


def test_a_worker_killed_in_mid_run(tmp_path: Path, cluster: Any, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "marker"
    more = ("--env-kwargs", f"marker:{marker}", "--scheduler", cluster.scheduler_address)
    output = tmp_path / "results"
    assert main(arguments(output, *more, algos=ALGOS[:2], envs=("Deadly-v0",))) == 0
    # It did happen, and somebody who waits is told
    assert marker.exists()
    (loss,) = [line for line in capsys.readouterr().out.splitlines() if "Lost the worker" in line]
    assert "tcp://" in loss and "on Deadly-v0, seed " in loss
    # The same environment, now that the marker is there, without any kill
    undisturbed = tmp_path / "undisturbed"
    assert main(arguments(undisturbed, *more[:2], algos=ALGOS[:2], envs=("Deadly-v0",))) == 0
    assert len(returns(output)) == 2 * SEEDS * 4
    assert returns(output) == returns(undisturbed)


def test_an_interrupt_reaches_the_workers(tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(display: Display, steps: dict[int, int]) -> None:
        if any(steps.values()):
            raise KeyboardInterrupt

    monkeypatch.setattr(Display, "tick", interrupt)
    # Ten minutes, were it not interrupted
    more = ("--timesteps", 12_000, "--eval-freq", 12_000, "--env-kwargs", "seconds:0.05", "--eval-env-kwargs", "seconds:0.0")
    begun = time.monotonic()
    assert main(arguments(tmp_path / "results", *more, "--scheduler", cluster.scheduler_address)) == 130
    with cluster.get_client() as client:
        while any(client.run(is_training).values()):
            assert time.monotonic() < begun + 240
            time.sleep(0.1)
    assert returns(tmp_path / "results") == {}


def is_training() -> bool:
    """Whether a run is being executed in this process."""
    return run_module._one_run_per_process.locked()


def test_a_run_that_raises_on_a_cluster(tmp_path: Path, cluster: Any, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results"
    words = arguments(output, "--seeds", 1, "--scheduler", cluster.scheduler_address, algos=["sac"])
    assert main([*words, "--envs", "Faulty-v0", "Reach-v0"]) == 1
    assert "RuntimeError: the point fell off the line" in capsys.readouterr().err
    assert {key[1] for key in returns(output)} == {"Reach-v0"}


def test_a_worker_of_several_threads_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        assert main(arguments(tmp_path / "results", "--scheduler", cluster.scheduler_address)) == 2
    error = capsys.readouterr().err
    assert "has 2 threads" in error and "--nthreads 1" in error
    assert not (tmp_path / "results").exists()
