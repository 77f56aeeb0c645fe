"""
Tests of ``compare``: bad input, what a run is, what survives a kill, what is kept, processes and Dask workers.

The report's numbers and page are tested in ``test_report.py``.
"""

import contextlib
import csv
import io
import itertools
import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest

from sb3_pathwise.experiments import store as store_module
from sb3_pathwise.experiments.cluster import connected
from sb3_pathwise.experiments.compare import comparison_of, main, make_parser, print_failures
from sb3_pathwise.experiments.grid import Comparison, Run, parse_variant
from sb3_pathwise.experiments.progress import Display
from sb3_pathwise.experiments.run import RunManager, build, execute
from sb3_pathwise.experiments.store import Store

TESTS = Path(__file__).parent
ALGOS = ["sac", "likelihood_ratio_ac", "likelihood_ratio_ac:n_action_samples=2"]
SEEDS = 3
# Small networks and batches, and most steps after the warm-up
SMALL = ["learning_starts:10", "batch_size:8", "policy_kwargs:dict(net_arch=[8])"]
REQUEST = Comparison(["sac"], ["Reach-v0"], 3, n_timesteps=60, eval_freq=20, n_eval_episodes=2)


def arguments(output: Path, *more: Any, algos: list[str] = ALGOS, envs: tuple[str, ...] = ("Reach-v0",)) -> list[str]:
    """A small comparison's command line; what comes later in ``more`` overrules."""
    words = ["--algos", *algos, "--envs", *envs, "--seeds", SEEDS, "--timesteps", 60, "--eval-freq", 20, "--eval-episodes", 2]
    words += ["--no-report", "--jobs", 2, "--gym-packages", "comparison_envs", "--device", "cpu", "-params", *SMALL]
    return [str(word) for word in (*words, "--output", output, *more)]


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def returns(output: Path) -> dict[tuple[str, ...], str]:
    """Returns by algorithm, environment, seed, step and episode, as ``results.csv`` has them; no row may be there twice."""
    rows = rows_of(output / "results.csv")
    names = ("algorithm", "environment", "seed", "step", "episode")
    found = {tuple(row[name] for name in names): row["return"] for row in rows}
    assert len(found) == len(rows)
    return found


def small_run(**changes: Any) -> Run:
    """One of the comparison's runs, or like it."""
    words = arguments(Path("unused"), algos=["sac"])
    run = next(run for run in comparison_of(make_parser().parse_args(words)).plan() if run.seed == 1)
    return replace(run, **changes)


def outcome_of(*values: float) -> dict[str, Any]:
    """What ``execute`` would return, with evaluations of these returns."""
    episodes = [(20 * k, k / 3, n, sign * value, 10) for k, value in enumerate(values) for n, sign in enumerate((1, -1))]
    versions = {"python": "3.11", "torch": "2.13"}
    return {"episodes": episodes, "error": None, "started": "2026-11-25", "wall_seconds": 0.1, "versions": versions}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nothing disturbed."""
    output = tmp_path_factory.mktemp("finished") / "results"
    assert main(arguments(output)) == 0
    return output


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "copied")


# Bad input


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--algos", "sack"], "unknown algorithm 'sack'; did you mean sac?"),
        (["--envs", "Reach-v1"], "unknown environment 'Reach-v1'; did you mean Reach-v0?"),
        (["--algos", "likelihood_ratio_ac:n_samples=2"], "unexpected keyword argument 'n_samples'"),
        (["--algos", "sac:learning_rate"], "'learning_rate' is not of the form name=value"),
        (["--algos", "sac:gamma=0.9,gamma=0.8"], "'gamma' is given twice"),
        (["--algos", "sac", "sac"], "sac is named twice"),
        (["--algos", "pathwise_crossq:policy_kwargs=dict(critic='twin')"], "has critic='batch_renorm', not 'twin'"),
        (["-params", "n_action_samples:4", "--algos", "sac"], "sac cannot be trained on Reach-v0 (TypeError: SAC"),
        (["-params", "n_timesteps:4"], "'n_timesteps' is set by --timesteps"),
        (["--algos", "sac:seed=4"], "algorithm 'sac:seed=4': 'seed' is set by --seeds and --first-seed"),
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
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--output", "{tmp}/bad.yml/results"], "cannot write to"),
        (["--output", "{tmp}"], "is not empty and holds no comparison"),
        (["--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler answers at tcp://127.0.0.1:9"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_before_any_training(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.yml").write_text("Reach-v0: [1,\n  2")
    (tmp_path / "other.yml").write_text("Other-v0:\n  policy: MlpPolicy\n")
    # Nobody answers: do not wait as long as for a cluster
    monkeypatch.setattr("sb3_pathwise.experiments.cluster.CONNECT_SECONDS", 1)
    assert main(arguments(tmp_path / "results", *(word.replace("{tmp}", str(tmp_path)) for word in more))) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    # The corrected command finds everything as it was
    assert {path.name for path in tmp_path.rglob("*")} == {"bad.yml", "other.yml"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sac", "--envs", "Pendulum-v1", "--seeds", "2"], "--seeds 2 is too few for a confidence interval"),
        # rl_zoo3's own: 20,000 and 100,000 steps
        (["sac", "ppo", "--envs", "Pendulum-v1"], "(sac 20000, ppo 100000.0); give --timesteps"),
    ],
)
def test_what_defaults_do_not_allow(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--algos", *words, "--output", str(tmp_path / "results")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "results").exists()


def test_a_folder_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(tmp_path / "results").opened(REQUEST, [small_run()]):
        assert main(arguments(tmp_path / "results")) == 2
    error = capsys.readouterr().err
    assert "is in use by another compare" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--algos", "sac"], "with likelihood_ratio_ac on Reach-v0"),
        (["--seeds", "2"], "with seeds 0 to 2, here 0 to 1"),
        (["--timesteps", "80"], "n_timesteps is 60 there, 80 here"),
        (["--env-kwargs", "noise:0.2"], "env_kwargs is {} there, {'noise': 0.2} here"),
        (["-params", *SMALL, "gamma:0.9"], "gamma of sac on Reach-v0 is the default there, 0.9 here"),
    ],
)
def test_what_would_change_finished_runs(
    finished: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in finished.iterdir()}
    assert main(arguments(finished, *more)) == 2
    error = capsys.readouterr().err
    assert "holds another comparison" in error and message in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


def test_a_folder_of_an_older_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "comparison.json").write_text('{"format": 1}')
    assert main(arguments(tmp_path)) == 2
    error = capsys.readouterr().err
    assert "holds a comparison of another version" in error and error.count("\n") == 1


# The request


@pytest.mark.parametrize(
    ("variant", "algo", "overrides"),
    [
        ("sac", "sac", {}),
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
    texts = {"params": ["learning_starts:10"], "conf_files": ["sac=a b.yml"], "gym_packages": ["comparison_envs"]}
    texts |= {"env_kwargs": ["g:9.0"], "eval_env_kwargs": ["g:8.0"]}
    algos = ["sac", "tqc:policy_kwargs=dict(net_arch=[8, 8])"]
    comparison = Comparison(algos, ["Pendulum-v1"], 4, 2, 70, 9, 3, device="cpu", torch_threads=2, **texts)
    words = shlex.split(comparison.command("runs/my folder"))
    assert words[:2] == ["sb3-pathwise", "compare"]
    args = make_parser().parse_args(words[2:])
    assert comparison_of(args) == comparison and args.output == Path("runs/my folder")


# Runs


def test_what_a_comparison_leaves(finished: Path) -> None:
    found = returns(finished)
    assert set(found) == set(itertools.product(ALGOS, ["Reach-v0"], "012", ["0", "20", "40", "60"], "01"))
    cells = json.loads((finished / "comparison.json").read_text())["cells"]
    assert cells[ALGOS[2]]["Reach-v0"]["hyperparams"]["n_action_samples"] == 2
    runs = rows_of(finished / "runs.csv")
    assert len(runs) == 9 and all(float(run["wall_seconds"]) > 0 and run["torch"] and run["platform"] for run in runs)
    seconds = [float(row["train_seconds"]) for row in rows_of(finished / "results.csv")[:8]]
    assert seconds == sorted(seconds) and seconds[-1] > seconds[0] >= 0
    # Learning changes what is evaluated, and a variant is not its algorithm
    last = [found[algo, "Reach-v0", "0", step, "0"] for algo, step in ((ALGOS[0], "20"), *((algo, "60") for algo in ALGOS))]
    assert len(set(last)) == 4
    # Git keeps the text alone
    subprocess.run(["git", "init", "-q", finished], check=True)
    kept = subprocess.check_output(["git", "-C", finished, "ls-files", "-o", "--exclude-standard"], text=True)
    shutil.rmtree(finished / ".git")
    assert set(kept.split()) == {".gitignore", "comparison.json", "results.csv", "runs.csv"}


def test_nothing_is_redone_and_a_comparison_may_grow(finished: Path, copied: Path) -> None:
    before = rows_of(copied / "runs.csv")
    # As text alone, as from another machine; then some of it
    for missing in ("1", "seed = 1"):
        with contextlib.closing(sqlite3.connect(copied / "comparison.sqlite")) as db, db:
            for table in ("runs", "results"):
                db.execute(f"DELETE FROM {table} WHERE {missing}")
        assert main(arguments(copied)) == 0
        assert (copied / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()
    # Another algorithm and another seed
    assert main(arguments(copied, "--seeds", SEEDS + 1, algos=["tqc", *ALGOS])) == 0
    after = rows_of(copied / "runs.csv")
    assert [run for run in after if run in before] == before
    found, whole = returns(copied), returns(finished)
    assert len(found) == 4 * (SEEDS + 1) * 8
    assert {key: found[key] for key in whole} == whole


def test_returns_depend_on_the_run_alone(finished: Path) -> None:
    # In this process, after other runs and in another order than the comparison's
    execute(small_run(seed=7), lambda steps: True)
    outcome = execute(small_run(), lambda steps: True)
    there = returns(finished)
    assert [value for _, _, _, value, _ in outcome["episodes"]] == [
        float(there["sac", "Reach-v0", "1", str(step), k]) for step in (0, 20, 40, 60) for k in "01"
    ]


def test_evaluations_leave_training_alone() -> None:
    often, seldom = (execute(small_run(eval_freq=freq), lambda steps: True)["episodes"] for freq in (7, 60))
    assert [step for step, *_ in often[::2]] == [0, 7, 14, 21, 28, 35, 42, 49, 56, 60]
    first, second, third, fourth = ((step, episode, value) for step, _, episode, value, _ in seldom)
    assert [first, second, third, fourth] == [(s, k, value) for s, _, k, value, _ in often if s in (0, 60)]
    assert first[2] != third[2]


def test_a_variant_keeps_the_critic_of_its_key(tmp_path: Path) -> None:
    algos = ["pathwise_crossq", "likelihood_ratio_tqc:policy_kwargs=dict(net_arch=[16])", "pathwise_ac"]
    request = make_parser().parse_args(arguments(tmp_path, "--seeds", 1, algos=algos, envs=("Pendulum-v1",)))
    critics = [build(run)[1].policy.critic_name for run in comparison_of(request).plan()]
    assert critics == ["batch_renorm", "quantile", "twin"]


def test_evaluations_of_several_environments_that_are_normalised() -> None:
    policy = {"policy": "MlpPolicy", "n_steps": 8, "batch_size": 8, "n_epochs": 1, "n_envs": 3, "normalize": True}
    manager, model = build(small_run(variant="ppo", algo="ppo", hyperparams=policy, n_timesteps=50, eval_freq=20))
    manager.learn(model)
    # Three steps at a time do not shift the points of evaluation
    assert [step for step, *_ in manager.evaluate.episodes[::2]] == [0, 20, 40, 50]
    # The evaluation environments see what the policy was trained on
    assert manager.evaluate.eval_env.obs_rms.count > 50  # type: ignore[attr-defined]


def test_evaluation_environments_have_their_own_arguments() -> None:
    manager = RunManager(small_run(env_kwargs={"noise": 0.3}, eval_env_kwargs={"noise": 0.0}), lambda steps: True)
    assert manager.create_envs(1).get_attr("noise") == [0.3]
    assert manager.create_envs(1, eval_env=True).get_attr("noise") == [0.0]


def test_runs_that_do_not_count() -> None:
    outcome = execute(small_run(), lambda steps: steps < 30)
    assert "RuntimeError: training ended after 30 of 60 steps" in outcome["error"]
    outcome = execute(small_run(eval_env_kwargs={"reward_scale": float("nan")}), lambda steps: True)
    assert "FloatingPointError: the evaluation after 0 steps" in outcome["error"]


# Failures, kills and interrupts


def test_failures_spoil_no_other_run_and_are_tried_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results"
    one = ("--seeds", 1, "--jobs", 1)
    assert main(arguments(output, *one, algos=["sac"], envs=("Faulty-v0",))) == 1
    # A folder without a finished run blocks nobody
    words = arguments(output, *one, "--env-kwargs", f"marker:{tmp_path / 'marker'}", algos=["sac"])
    words = [*words, "--envs", "Faulty-v0", "Deadly-v0"]
    (tmp_path / "marker").touch()
    assert main(words) == 0
    assert len(returns(output)) == 2 * 8
    other, whole = tmp_path / "other", returns(finished)
    assert main(arguments(other, *one, algos=["sac"], envs=("Faulty-v0", "Deadly-v0", "Reach-v0"))) == 1
    captured = capsys.readouterr()
    assert "Failed: sac on Faulty-v0, seed 0\nTraceback" in captured.err
    assert "RuntimeError: the point fell off the line" in captured.err
    assert "Failed: sac on Deadly-v0, seed 0\nEvery process that it was given to died" in captured.err
    assert "2 of 3 runs failed" in captured.err and "Lost the worker" in captured.out
    assert [run["environment"] for run in rows_of(other / "runs.csv") if run["error"]] == ["Deadly-v0", "Faulty-v0"]
    assert returns(other) == {key: whole[key] for key in whole if key[0] == "sac" and key[2] == "0"}


def test_a_traceback_that_runs_share_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    print_failures([(small_run(seed=seed), text) for seed, text in enumerate(("one\n", "two\n", "one\n"))])
    assert capsys.readouterr().err == (
        "\nFailed: sac on Reach-v0, seed 0\nFailed: sac on Reach-v0, seed 2\none\n\n\nFailed: sac on Reach-v0, seed 1\ntwo\n\n"
    )


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


def wait_until(condition: Callable[[], Any], process: Any = None) -> None:
    """Wait for something that a process does."""
    deadline = time.monotonic() + 300
    while not condition():
        assert (process is None or process.poll() is None) and time.monotonic() < deadline
        time.sleep(0.02)


def is_quiet(group: int) -> bool:
    """Whether no process of a group is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        return False
    return True


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX process groups")
def test_kill_then_interrupt_then_finish(finished: Path, tmp_path: Path) -> None:
    output, hold, reached = tmp_path / "results", tmp_path / "hold", tmp_path / "hold-reached"
    # The runs of the last seed wait as long as the file is there, and change nothing else
    hold.touch()
    more = ("--env-kwargs", f"hold:{hold}")
    process = start(output, *more)
    wait_until(lambda: (output / "runs.csv").exists() and rows_of(output / "runs.csv"), process)
    # The comparison alone, without a chance to stop its workers
    process.kill()
    process.communicate()
    wait_until(lambda: is_quiet(process.pid))

    reached.unlink(missing_ok=True)
    process = start(output, *more)
    # All others have begun by then, and most are finished
    wait_until(reached.exists, process)
    # What a terminal does at Ctrl-C
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "the same command goes on" in text and "Traceback" not in text
    wait_until(lambda: is_quiet(process.pid))
    kept = rows_of(output / "runs.csv")
    assert 1 <= len(kept) <= len(ALGOS) * (SEEDS - 1)

    hold.unlink()
    assert main(arguments(output, *more)) == 0
    assert returns(output) == returns(finished)
    assert [run for run in rows_of(output / "runs.csv") if run in kept] == kept


# What is kept


def test_a_run_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, values = small_run(), (0.1, 1 / 3, 1e-300, -2e17)
    for stop_at in range(1, 8):
        output, n_calls = tmp_path / str(stop_at), 0

        def until_the_plug_is_pulled(function: Callable[..., Any], stop_at: int = stop_at) -> Callable[..., Any]:
            def counted(*args: Any) -> Any:
                nonlocal n_calls
                n_calls += 1
                if n_calls == stop_at:
                    raise KeyboardInterrupt
                return function(*args)

            return counted

        # The record, then for either file its content, its name and its folder
        with pytest.raises(KeyboardInterrupt), Store(output).opened(REQUEST, [run]) as store, monkeypatch.context() as patches:
            patches.setattr(store_module.json, "dumps", until_the_plug_is_pulled(json.dumps))
            for name in ("fsync", "replace"):
                patches.setattr(os, name, until_the_plug_is_pulled(getattr(os, name)))
            store.save(run, outcome_of(*values))
        with Store(output).opened(REQUEST, [run]) as store:
            # As soon as it is in the database it is kept
            assert bool(store.unfinished([run])) == (stop_at == 1)
            assert not list(output.glob(".tmp-*"))
            if stop_at == 1:
                store.save(run, outcome_of(*values))
        # To the last digit
        assert [float(text) for text in returns(output).values()] == [sign * value for value in values for sign in (1, -1)]
        # From the text, which may have come from elsewhere
        before = [(output / name).read_bytes() for name in ("runs.csv", "results.csv")]
        (output / "comparison.sqlite").unlink()
        with Store(output).opened(REQUEST, [run]) as store:
            assert store.unfinished([run]) == []
        assert [(output / name).read_bytes() for name in ("runs.csv", "results.csv")] == before


def test_text_that_cannot_be_gone_on_with(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "comparison.sqlite").unlink()
    lines = (copied / "results.csv").read_text().splitlines()
    (copied / "results.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert main(arguments(copied)) == 2
    assert "results.csv lacks episodes of sac Reach-v0 2" in capsys.readouterr().err
    (copied / "runs.csv").write_text("seed\nx\n")
    assert main(arguments(copied)) == 2
    error = capsys.readouterr().err
    assert "cannot read" in error and "runs.csv" in error and error.count("\n") == 1


# Progress


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress(is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bars = io.StringIO()
    monkeypatch.setattr(bars, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", bars)
    with Display([small_run(seed=seed, n_timesteps=1000) for seed in range(3)], 1) as display:
        for steps in range(0, 1000, 100):
            display.tick({0: steps, 1: steps // 2})
            time.sleep(0.02)
        episodes = [(0, 0.0, 0, -99.0, 10), (1000, 4.0, 0, -12.0, 10), (1000, 4.0, 1, -13.0, 10)]
        display.finish(0, outcome_of() | {"episodes": episodes, "wall_seconds": 5.0})
        display.finish(1, outcome_of() | {"error": "Traceback"})
        display.tick({0: 1000, 1: 600, 2: 10})
    lines = "[2/4] sac on Reach-v0, seed 0: final return -12.5 in 5.0 s\n[2/4] sac on Reach-v0, seed 1: failed\n"
    assert capsys.readouterr().out == lines
    shown = ("1/4 runs", "2/4 runs", "sac on Reach-v0, seed 1:", " steps/s", "00:0") if is_terminal else ()
    assert all(text in bars.getvalue() for text in shown) and bool(bars.getvalue()) == is_terminal


# Clusters


@pytest.fixture(scope="module")
def cluster() -> Any:
    """A Dask cluster of two workers, each in a process of its own."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield cluster


def test_a_worker_killed_in_mid_run(tmp_path: Path, cluster: Any, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "marker"
    more = ("--env-kwargs", f"marker:{marker}", "--scheduler", cluster.scheduler_address)
    output = tmp_path / "results"
    assert main(arguments(output, *more, algos=ALGOS[:2], envs=("Deadly-v0",))) == 0
    # It did happen, and somebody who waits is told
    assert marker.exists()
    (loss,) = [line for line in capsys.readouterr().out.splitlines() if "Lost the worker" in line]
    assert "tcp://" in loss and "on Deadly-v0, seed " in loss
    # The same environment, now that the marker is there, without any kill, and on this machine
    undisturbed = tmp_path / "undisturbed"
    assert main(arguments(undisturbed, *more[:2], algos=ALGOS[:2], envs=("Deadly-v0",))) == 0
    assert len(returns(output)) == 2 * SEEDS * 8
    assert returns(output) == returns(undisturbed)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_workers_stop_when_nobody_waits(kind: signal.Signals, tmp_path: Path, cluster: Any) -> None:
    # Ten minutes, were it not interrupted
    more = ("--timesteps", 12_000, "--eval-freq", 12_000, "--env-kwargs", "seconds:0.05", "--eval-env-kwargs", "seconds:0.0")
    process = start(tmp_path / "results", *more, "--scheduler", cluster.scheduler_address)
    with cluster.get_client() as client:
        wait_until(lambda: all(client.run(n_executing).values()), process)
        os.kill(process.pid, kind)
        assert process.wait(timeout=200) == (130 if kind == signal.SIGINT else -signal.SIGKILL)
        wait_until(lambda: not any(client.run(n_executing).values()))
    process.stdout.close()  # type: ignore[union-attr]
    assert returns(tmp_path / "results") == {}


def n_executing(dask_worker: Any) -> int:
    """Of a worker: how many threads are at work, whether or not anybody waits for it."""
    return dask_worker.executors["default"]._work_queue.qsize() + len(dask_worker.active_threads)


def test_jobs_are_processes_of_one_thread() -> None:
    with connected(3, None) as client:
        assert list(client.nthreads().values()) == [1, 1, 1]


def test_a_process_that_slept_is_not_given_up() -> None:
    with dask.config.set({"distributed.scheduler.worker-ttl": "1s"}), connected(1, None) as client:
        (process,) = client.run(os.getpid).values()
        os.kill(process, signal.SIGSTOP)
        time.sleep(4)
        os.kill(process, signal.SIGCONT)
        assert client.submit(os.getpid).result(timeout=60) == process


def test_a_worker_of_several_threads_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        assert main(arguments(tmp_path / "results", "--scheduler", cluster.scheduler_address)) == 2
    error = capsys.readouterr().err
    assert "has 2 threads" in error and "--nthreads 1" in error
    assert not (tmp_path / "results").exists()
