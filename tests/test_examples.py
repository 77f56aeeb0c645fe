"""
Every example runs as a user would run it, in an empty folder and with few steps, and shows what its docstring says.

Whether they *learn* takes their default numbers of steps, and is tested for the one whose subject it is. The README is in
``test_readme.py``.
"""

import csv
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from stable_baselines3.common.save_util import load_from_zip_file

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def run_example(name: str, *arguments: str) -> str:
        command = [sys.executable, EXAMPLES / name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_example


def read_csv(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_quickstart(run) -> None:
    lines = re.findall(r"(\w+): (-\d+) \+/- (\d+)", run("quickstart.py", "--timesteps", "1050"))
    assert [name for name, *_ in lines] == ["PathwiseAC", "LikelihoodRatioAC"]
    returns = [int(mean) for _, mean, _ in lines]
    assert all(-2000 < mean < 0 for mean in returns)
    # Fifty updates from the same parameters, on the same data, along another gradient
    assert returns[0] != returns[1]


@pytest.mark.parametrize(
    ("which", "env"),
    [("benchmark", "Hopper-v5"), ("256", "Hopper-v5"), ("study", "Hopper-v5"), ("eight", "Ant-v5"), ("wide", "Hopper-v5")],
)
def test_mujoco(which: str, env: str, tmp_path: Path) -> None:
    """Seconds are measured as the committed files have them; the tables are in ``test_readme.py``."""
    script = runpy.run_path(str(EXAMPLES / "mujoco_returns.py"))
    folder, precisions = script["MEASURED"][which]
    comparison = json.loads((folder / "comparison.json").read_text())
    cells = {name: {env: of_task[env]} for name, of_task in comparison["cells"].items()}
    (tmp_path / "comparison.json").write_text(json.dumps({"cells": cells}))
    table = script["measure_seconds"](tmp_path, precisions, n_steps=2, turns=1)
    seconds = dict(zip(table["algorithm"], table["seconds_per_1000_steps"], strict=True))
    variants = {f"{name}:precision={precision}" for name in cells for precision in precisions}
    assert len(seconds) == len(table) and seconds.keys() == {"sac", *cells, *variants}
    trained_in = {name: of_task[env]["hyperparams"].get("precision", "float32") for name, of_task in cells.items()}
    assert all(seconds[name] == seconds[f"{name}:precision={own}"] for name, own in trained_in.items() if precisions)
    assert set(table["environment"]) == {env} and (table["seconds_per_1000_steps"] > 0).all()
    committed = read_csv(folder / "seconds.csv")
    assert list(table.columns) == list(committed[0])
    assert {row["algorithm"] for row in committed} == seconds.keys()


def test_swap_route(run) -> None:
    stages = re.findall(r"(\w+)\.zip: (\w+), (\d+) steps", run("swap_route.py", "--timesteps", "120"))
    assert stages == [
        ("pathwise", "PathwiseAC", "120"),
        ("likelihood_ratio", "LikelihoodRatioAC", "240"),
        ("pathwise_again", "PathwiseAC", "360"),
        ("sac", "SAC", "120"),
        ("likelihood_ratio_from_sac", "LikelihoodRatioAC", "240"),
    ]
    for name, _, steps in stages:
        data, tensors, _ = load_from_zip_file(f"runs/swap_route/{name}.zip")
        n_updates = int(steps) - data["learning_starts"]
        assert data["_n_updates"] == n_updates
        # Optimizers went on as well
        for optimizer in ("actor.optimizer", "critic.optimizer", "ent_coef_optimizer"):
            assert {state["step"].item() for state in tensors[optimizer]["state"].values()} == {n_updates}


def test_own_route(run) -> None:
    output = run("own_route.py", "--timesteps", "390")
    # Nothing is learned before step 100
    steps = re.findall(r"^Step (\d+), variance", output, re.MULTILINE)
    assert steps == ["130", "260", "390"]
    tables = re.findall(r"^  (\w+) +(\d[\d.e-]*)$", output, re.MULTILINE)
    assert [name for name, _ in tables] == ["AntitheticAC", "pathwise", "likelihood_ratio"] * 3
    assert all(float(variance) > 0 for _, variance in tables)
    z_values = [float(z) for z in re.findall(r"z = (-?\d+\.\d)$", output, re.MULTILINE)]
    # 64 gradients each: Student's t with some 30 degrees of freedom
    assert len(z_values) == 3 and max(map(abs, z_values)) < 5
    assert len((EXAMPLES / "own_route.py").read_text().splitlines()) < 60


def test_her_dict(run) -> None:
    output = run("her_dict.py", "--timesteps", "550")
    assert re.search(r"observations: Dict\('achieved_goal': .*, 'desired_goal': .*, 'observation': .*\)", output)
    rates = [float(rate) for rate in re.findall(r"success rate .*: ([01]\.\d\d)", output)]
    assert len(rates) == 2
    # Nobody flips eight bits rightly by chance
    assert rates[0] < 0.1


@pytest.mark.slow
def test_her_dict_learns(run) -> None:
    before, after = (float(rate) for rate in re.findall(r"success rate .*: ([01]\.\d\d)", run("her_dict.py")))
    assert before < 0.1 and after > 0.9


def test_action_bounds(run) -> None:
    """The warning, and that it is gone with the bounds it advises."""
    output = run("action_bounds.py", "--timesteps", "1050")
    wide, advised = output.split("Box(-2.0, 2.0, (1,), float32):\n")
    assert wide.startswith("Box(-100.0, 100.0, (1,), float32):\n  The action space is wide (-100 to 100 in dimension 0)")
    assert "gymnasium.wrappers.TransformAction(env, lambda action: action, gymnasium.spaces.Box(low, high))" in wide
    assert re.fullmatch(r"  no warning\n1050 steps within \+-2: mean return -\d+\.\d \+/- \d+\.\d\n", advised)


@pytest.mark.slow
def test_action_bounds_learns(run) -> None:
    assert float(re.search(r"mean return (\S+)", run("action_bounds.py"))[1]) > -200


def test_evaluation_callbacks_stop(run) -> None:
    output = run("evaluation_callbacks.py", "--timesteps", "1000", "--eval-freq", "100", "--threshold=-10000")
    assert "ended at step 100\n" in output


def test_evaluation_callbacks_go_on(run) -> None:
    output = run("evaluation_callbacks.py", "--timesteps", "250", "--eval-freq", "100", "--threshold", "0")
    assert "ended at step 250\n" in output
    returns = {int(step): float(mean) for step, mean in re.findall(r"step (\d+): mean return (-\d+)", output)}
    assert list(returns) == [100, 200]
    folder = Path("runs/evaluation_callbacks")
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert checkpoints == ["rl_model_100_steps.zip", "rl_model_200_steps.zip"]
    data, *_ = load_from_zip_file(folder / "best_model.zip")
    assert data["num_timesteps"] == max(returns, key=returns.__getitem__)
    assert re.search(r"best model: -\d+ \+/- \d+", output)


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of ``make demo``, cut short."""
    monkeypatch.chdir(tmp_path)
    makefile = (EXAMPLES.parent / "Makefile").read_text().replace("\\\n", " ")
    command = shlex.split(next(line for line in makefile.splitlines() if "sb3-pathwise compare" in line))
    assert command[0] == "$(BIN)/sb3-pathwise"
    short = ["--timesteps", "1030", "--eval-freq", "1030", "--eval-episodes", "2", "--jobs", "2", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "sb3_pathwise", *command[1:], *short], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    # A verdict, a table, and where the curves are
    assert re.search(r"^(No clear winner|pathwise_ac won|likelihood_ratio_ac won) on Pendulum-v1$", done.stdout, re.MULTILINE)
    algorithms = ("pathwise_ac", "likelihood_ratio_ac")
    for algorithm in algorithms:
        assert re.search(rf"^ +{algorithm} +\N{{MINUS SIGN}}[\d,]+ +\[.*\]", done.stdout, re.MULTILINE)
    page = re.search(r"Report, with the learning curves: (\S+)", done.stdout)
    assert page and Path(page[1]).read_text().startswith("<!DOCTYPE html>")
    assert Path("runs/demo/figures/Pendulum-v1_steps.png").read_bytes().startswith(b"\x89PNG")

    rows = [row for row in read_csv("runs/demo/results.csv") if row["episode"] == "0"]
    found = {(row["algorithm"], row["seed"], row["step"]): row["return"] for row in rows}
    assert found.keys() == {(algorithm, seed, step) for algorithm in algorithms for seed in "012" for step in ("0", "1030")}
    for seed in "012":
        first, second = ([found[algorithm, seed, step] for algorithm in algorithms] for step in ("0", "1030"))
        # Until learning starts a seed means the same policy, then the routes part
        assert first[0] == first[1] and second[0] != second[1]


def test_own_critic(run) -> None:
    output = run("own_critic.py", "--timesteps", "120")
    assert re.findall(r"^(\w+) with REDQ's critic: -\d+$", output, flags=re.MULTILINE) == ["PathwiseAC", "LikelihoodRatioAC"]


def test_gearbox(run) -> None:
    """What does not take a policy that has learned: who sees the lever's gradient on which critic, and the theory of both."""
    pytest.importorskip("matplotlib")
    arguments = ("--timesteps", "560", "--seeds", "1", "--eval-episodes", "1", "--draws", "100", "--output", "gearbox")
    trained = re.findall(r"^(\w+) +(\w+) +seed 0: -\d+\.\d$", run("gearbox.py", *arguments), re.MULTILINE)
    routes = ["likelihood_ratio", "pathwise", "mixed"]
    assert trained == [*(("gear", route) for route in routes), *(("twin", route) for route in routes[:2])]
    assert "seed 0" not in run("gearbox.py", *arguments), "a training was done again"
    assert Path("gearbox/gearbox.png").read_bytes().startswith(b"\x89PNG")

    for row in read_csv("gearbox/gradients.csv"):
        gradient, theory, error = (float(row[name]) for name in ("gradient", "gradient_theory", "standard_error"))
        if row["critic"] == "gear" and row["route"] in ("pathwise", "mixed"):
            assert gradient == error == 0
        else:
            # Of 70 rows; where the lever hardly ever leaves its gear, 100 draws do not tell their standard error
            is_rare = row["what"] == "std" and float(row["at"]) < 0.5
            assert is_rare or abs(gradient - theory) < 5 * error + 1e-6
        if row["what"] == "std" and float(row["at"]) >= 0.5 and row["route"] == "likelihood_ratio":
            # Of 64 states with 100 draws each
            assert float(row["variance"]) == pytest.approx(float(row["likelihood_ratio_theory"]), rel=0.25)
