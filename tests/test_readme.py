"""
What the README says is so: quoted lines are in the source, its code runs, its tables agree with the package and the files.

The examples it links are in ``test_examples.py``.
"""

import ast
import inspect
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC

import sb3_pathwise
from sb3_pathwise.experiments.compare import comparison_of, make_parser
from sb3_pathwise.zoo.cli import COMMANDS
from sb3_pathwise.zoo.registry import ALGORITHMS, CRITIC_OF

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CLASSES = (sb3_pathwise.PathwiseAC, sb3_pathwise.LikelihoodRatioAC, sb3_pathwise.MeasureValuedAC, sb3_pathwise.MixedAC)
QUOTES = re.findall(r"<!-- quoted from (\S+) -->\n```python\n(.*?)```", README, flags=re.DOTALL)
CODE = [code for mark, code in re.findall(r"(<!-- .* -->\n)?```python\n(.*?)```", README, flags=re.DOTALL) if not mark]


def table(heading: str) -> list[dict[str, str]]:
    """
    :param heading: first line of a table, as it stands in the README
    :return: its rows, by column
    """
    lines = README[README.index(heading) :].split("\n\n")[0].splitlines()
    columns, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(columns, row, strict=True)) for row in rows]


@pytest.mark.parametrize("path, lines", QUOTES)
def test_quotations(path: str, lines: str) -> None:
    assert lines in (ROOT / path).read_text()


def test_the_line_that_differs_is_the_only_line() -> None:
    quoted = [lines.strip() for path, lines in QUOTES if path == "sb3_pathwise/algorithms.py"]
    for cls, line in zip(CLASSES[:2], quoted, strict=True):
        # Besides what the route can use, which the base class declares
        own = {name for name in vars(cls) if not name.startswith("_") and name not in ("supported_distributions", "route")}
        assert own <= {"samples_gaussian_entropy"} and not any(map(inspect.isfunction, map(vars(cls).get, own)))
        assert line == f"route = {cls.route.__name__}" and line in inspect.getsource(cls)


def test_ten_lines() -> None:
    code = next(code for code in CODE if "PathwiseAC" in code)
    assert len(code.splitlines()) <= 10
    short = code.replace("model.learn(5_000)", "model.learn(1_010)")
    assert short != code
    done = subprocess.run([sys.executable, "-c", short], capture_output=True, text=True, env=os.environ)
    assert re.fullmatch(r"PathwiseAC: -\d+ \+/- \d+\nLikelihoodRatioAC: -\d+ \+/- \d+\n", done.stdout), done.stderr
    quickstart = (ROOT / "examples" / "quickstart.py").read_text()
    assert code[code.index("for ") :].replace("5_000", "timesteps") in quickstart


def test_resume(tmp_path: Path) -> None:
    """The code, twice, with fewer steps: the second process goes on where the first was saved."""
    code = next(code for code in CODE if "resume" in code)
    short = (
        code.replace("20_000", "450").replace("2_000", "200").replace("model.learn", "print(model.num_timesteps)\nmodel.learn")
    )
    for begin in ("0", "400"):
        command = [sys.executable, "-c", short]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, cwd=tmp_path)
        assert done.stdout.split() == [begin], done.stderr


def test_which_engine(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    code = next(code for code in CODE if "choose_engine" in code)
    model = sb3_pathwise.PathwiseAC("MlpPolicy", RandomEnv(BOX, BOX), policy_kwargs={"net_arch": [8]})
    assert not caplog.messages
    with caplog.at_level(logging.INFO, "sb3_pathwise.engines"):
        exec(code, {"model": model, "my_hook": lambda *args: None})
    assert f"# {capsys.readouterr().out.strip()}\n" in code
    assert caplog.messages and code.endswith(f"{caplog.messages[-1]}\n")


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_the_mean_vanishes(seed: int) -> None:
    th.manual_seed(seed)
    scope: dict[str, Any] = {}
    exec(next(code for code in CODE if "at_rsample" in code), scope)
    mu, sigma = scope["mu"].detach(), scope["log_sigma"].detach().exp()
    eps = (scope["x"].detach() - mu) / sigma
    th.testing.assert_close(scope["at_rsample"], (th.tensor(0.0), th.tensor(-1.0)))
    th.testing.assert_close(scope["score"], (eps / sigma, eps**2 - 1))


def test_arguments() -> None:
    rows = {row["argument"].strip("`"): row["default"] for row in table("| argument | default | meaning |")}
    for cls in CLASSES:
        parameters = inspect.signature(cls).parameters
        ours = parameters.keys() - inspect.signature(SAC).parameters.keys()
        assert ours <= rows.keys()
        for name in ours:
            default, _, exception = rows[name].replace("`", "").partition("; ")
            if cls.__name__ in exception:
                default = exception.split(" for ")[0]
            # None stands for the route's own, and for none where it has no such argument
            actual = cls.route_arguments().get(name, parameters[name].default)
            assert actual == ast.literal_eval(default) or (name == "baseline" and actual is None)


class RandomEnv(gym.Env):
    """Observations of any kind, and no task."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return self.observation_space.sample(), 0.0, False, self.np_random.random() < 0.1, {}


BOX = spaces.Box(-1, 1, (2,), np.float32)
SPACES = {
    "Discrete": spaces.Discrete(3),
    "Box": BOX,
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
    "Dict": spaces.Dict(a=BOX, b=spaces.Discrete(3)),
    "Tuple": spaces.Tuple((BOX, BOX)),
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("row", table("| Space | Action | Observation |"), ids=lambda row: row["Space"])
def test_spaces(row: dict[str, str], cls: type[SAC]) -> None:
    space = SPACES[row["Space"]]
    policy = "MultiInputPolicy" if row["Space"] == "Dict" else "MlpPolicy"
    cases = {"Action": (RandomEnv(BOX, space), "MlpPolicy"), "Observation": (RandomEnv(space, BOX), policy)}
    for column, (env, policy) in cases.items():
        try:
            model = cls(policy, env, policy_kwargs={"net_arch": [8]}, learning_starts=10, buffer_size=20, batch_size=4)
            model.learn(14)
        except (AssertionError, NotImplementedError):
            assert row[column] == "no"
        else:
            assert row[column].startswith("yes")


def final_returns(folder: str, step: int) -> dict[tuple[str, str], float]:
    """
    :param folder: of a comparison, among the figures
    :param step: the last of each run
    :return: mean return after it, by algorithm and seed
    """
    results = pd.read_csv(ROOT / "examples" / "figures" / folder / "results.csv", dtype={"seed": str})
    return dict(results[results["step"] == step].groupby(["algorithm", "seed"])["return"].mean())


def test_demo_results() -> None:
    keys = {algorithm.__name__: key for key, algorithm in ALGORITHMS.items() if key not in CRITIC_OF}
    measured = final_returns("demo", 5000)
    shown = {
        (keys[row["algorithm"].strip("`")], column.removeprefix("seed ")): float(value)
        for row in table("| algorithm | seed 0 |")
        for column, value in row.items()
        if column.startswith("seed")
    }
    assert shown.keys() == measured.keys()
    for key, value in shown.items():
        assert value == float(f"{measured[key]:.1f}")


def test_results() -> None:
    measured = final_returns("Pendulum-v1", 20000)
    rows = table("| algorithm | final return |")
    assert {row["algorithm"].strip("`") for row in rows} == {algorithm for algorithm, _ in measured}
    for row in rows:
        of_seeds = {seed: value for (algorithm, seed), value in measured.items() if algorithm == row["algorithm"].strip("`")}
        shown = {
            column.removeprefix("seed "): value for column, value in row.items() if column.startswith("seed ") and value != "-"
        }
        assert shown == {seed: f"{value:.1f}" for seed, value in of_seeds.items()}
        # Of four or five values, without the smallest and the largest
        assert row["final return"] == f"{np.mean(sorted(of_seeds.values())[1:-1]):.1f}"


def test_commands_of_the_command_line() -> None:
    blocks = "".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL))
    commands = [shlex.split(line, comments=True)[1:] for line in blocks.splitlines() if line.startswith("sb3-pathwise")]
    assert {"train", "enjoy", "compare"} <= {name for name, *_ in commands} <= COMMANDS.keys()
    for _, *arguments in filter(lambda command: command[0] == "compare", commands):
        comparison = comparison_of(make_parser().parse_args(arguments))
        comparison.check(for_report=True)
        assert len(comparison.plan()) == len(comparison.algos) * len(comparison.envs) * comparison.n_seeds
    extras = set(re.findall(r"pip install '\.\[([\w,]+)\]'", README))
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert set(",".join(extras).split(",")) <= set(known)


def test_keys_of_the_zoo() -> None:
    shown = {row["key"].strip("`"): row for row in table("| key | algorithm |")}
    assert shown.keys() == ALGORITHMS.keys()
    for key, row in shown.items():
        assert row["algorithm"] == f"`{ALGORITHMS[key].__name__}`"
        assert row["critic"] == f'`"{CRITIC_OF.get(key, "twin")}"`'


def test_links_and_commands() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert not [link for link in links if not link.startswith("#") and not (ROOT / link).exists()]
    headings = {
        re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    assert {link[1:] for link in links if link.startswith("#")} <= headings
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
    for path in re.findall(r"python (?:-m pytest )?(\S+\.py)", README):
        assert (ROOT / path).exists()
