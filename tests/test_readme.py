"""
What the tables of README and documentation say is so: they agree with the package and with the files of results.

Their code is in ``test_docs.py``, the examples in ``test_examples.py``.
"""

import ast
import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from gymnasium import spaces
from stable_baselines3 import SAC

import sb3_pathwise
from sb3_pathwise.experiments.page import REFERENCES
from sb3_pathwise.experiments.statistics import Statistics
from sb3_pathwise.zoo.registry import ALGORITHMS, CRITIC_OF

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NO_REFERENCES = pd.DataFrame({"random": [], "reference": []})
CLASSES = (sb3_pathwise.PathwiseAC, sb3_pathwise.LikelihoodRatioAC, sb3_pathwise.MeasureValuedAC, sb3_pathwise.MixedAC)


def table(heading: str) -> list[dict[str, str]]:
    """
    :param heading: first line of a table, as it stands in README or documentation, once
    :return: its rows, by column
    """
    (text,) = [page.read_text() for page in PAGES if heading in page.read_text()]
    lines = text[text.index(heading) :].split("\n\n")[0].splitlines()
    columns, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(columns, row, strict=True)) for row in rows]


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


def test_the_line_that_differs() -> None:
    """Besides its route, an algorithm of ours says what the route can use, and has no method."""
    declared = {"route", "supported_distributions", "min_action_samples", "samples_gaussian_entropy"}
    for cls in CLASSES:
        own = {name: value for name, value in vars(cls).items() if not name.startswith("_")}
        assert own.keys() <= declared and not any(map(inspect.isfunction, own.values()))


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
    results = pd.read_csv(ROOT / "examples" / "figures" / "Pendulum-v1" / "results.csv")
    ranking = Statistics(results, [row["algorithm"].strip("`") for row in rows], ["Pendulum-v1"], NO_REFERENCES)
    scores = ranking.environments[0].ranking["final"].values()
    assert [row["95 % interval"] for row in rows] == [f"[{score.low:.1f}, {score.high:.1f}]" for score in scores]


def test_critics_on_pendulum() -> None:
    measured = {critic: final_returns("critics", 5000) for critic in ("twin", "quantile", "batch_renorm")}
    measured["categorical"] = final_returns("critics-categorical", 5000)
    rows = table("| critic | key | seed 0 |")
    assert len(rows) == 8
    for row in rows:
        critic, key = row["critic"].strip('`"'), row["key"].strip("`")
        assert CRITIC_OF.get(key, critic) == critic
        assert [row[f"seed {seed}"] for seed in range(3)] == [f"{measured[critic][key, str(seed)]:.1f}" for seed in range(3)]


def test_mujoco() -> None:
    """The tables are those that the script makes of the committed files."""
    script = runpy.run_path(str(ROOT / "examples" / "mujoco_returns.py"))
    folder, large_batches = script["FOLDER"], script["LARGE_BATCHES"]
    peers = pd.read_csv(folder / "peers.csv", index_col="method")
    seconds, large_seconds = pd.read_csv(folder / "seconds.csv"), pd.read_csv(large_batches / "seconds.csv")
    late, large = script["mean_returns"](), script["mean_returns"](large_batches)
    readme = (ROOT / "README.md").read_text()
    assert script["readme_table"](late, seconds, peers) in readme
    eight = script["mean_returns"](script["EIGHT"]).groupby("environment")
    text = r"takes (.+) on Ant-v5 and (.+) on Humanoid-v5, and returns (.+) \(five\s+seeds\) and ([\d,]+)"
    shares = pd.read_csv(script["EIGHT"] / "seconds.csv").groupby("environment")["seconds_per_1000_steps"]
    assert re.search(text, readme).groups() == (
        *(f"{shares.last()[env] / shares.first()[env]:.2f} x" for env in ("Ant-v5", "Humanoid-v5")),
        *(f"{eight.mean()[env]:,.0f}" for env in ("Ant-v5", "Humanoid-v5")),
    )
    references = pd.read_csv(REFERENCES, index_col="environment")
    prose, keys = " ".join(readme.split()), [*script["CROSSQ"], *script["TWIN"]]
    pooled = Statistics(pd.read_csv(folder / "results.csv"), keys, script["ENVS"], references).places[0].ranking["final"]
    scores = [f"{pooled[key].point:.2f} [{pooled[key].low:.2f}, {pooled[key].high:.2f}]" for key in keys]
    at_the_end = "at the end {} with the pathwise gradient and {} with the likelihood ratio, both with CrossQ's critic"
    assert f"{at_the_end}; with SAC's, {{}} and {{}}.".format(*scores) in prose
    assert all(pooled[key].bounded for key in keys)
    results = (ROOT / "docs" / "guide" / "results.md").read_text()
    assert f"the first three seeds' mean is {eight.head(3).groupby('environment').mean()['Ant-v5']:,.0f}," in results
    tables = [script["peers_table"](peers), script["routes_table"](large, "batches of 256"), script["tried_table"]()]
    tables.append(script["routes_table"](late, "SAC's critic", script["TWIN"]))
    tables.append(script["eight_table"](seconds, pd.read_csv(script["EIGHT"] / "seconds.csv")))
    tables += [*map(script["seconds_table"], (seconds, large_seconds)), script["seconds_table"](seconds, script["TWIN"])]
    assert all(table in results for table in tables)
    assert script["bfloat16_table"](late) in (ROOT / "docs" / "guide" / "engines.md").read_text()


def shares_of_sac(script: dict[str, Any], folder: Path, name: str, precision: str, envs: list[str]) -> pd.Series:
    """Training time as a share of SB3's SAC's, in the committed seconds."""
    paces = script["paces_of"](pd.read_csv(folder / "seconds.csv"))
    return paces[f"{name}:precision={precision}"][envs] / paces["sac"][envs]


def test_bfloat16_saves() -> None:
    """What the page of the engines says of bfloat16's time is in the measured seconds."""
    script = runpy.run_path(str(ROOT / "examples" / "mujoco_returns.py"))
    engines = " ".join((ROOT / "docs" / "guide" / "engines.md").read_text().split())
    narrow, wide = script["ENVS"][:3], script["ENVS"][3:]
    said = (
        ("LARGE_BATCHES", "pathwise_crossq", narrow, "took {} of the time of SB3's SAC instead of {} where critics"),
        ("LARGE_BATCHES", "pathwise_crossq", wide, "and {} instead of {} where they are 512 wide"),
        ("FOLDER", "pathwise_crossq", wide, "at 384 it took {} instead of {}."),
        ("FOLDER", "pathwise_ac", script["ENVS"], "`PathwiseAC` with SAC's critic took {} instead of {} "),
    )
    for folder, name, envs, text in said:
        ranges = []
        for precision in ("bfloat16", "float32"):
            shares = shares_of_sac(script, script[folder], name, precision, envs)
            ranges.append(f"{shares.min():.2f} to {shares.max():.2f}")
        assert text.format(*ranges) in engines


def test_tried() -> None:
    """What the page says of the settings' times and means is in the committed files."""
    script = runpy.run_path(str(ROOT / "examples" / "mujoco_returns.py"))
    page = " ".join((ROOT / "docs" / "guide" / "results.md").read_text().split())
    tasks, name = list(script["PILOT"]), script["CROSSQ"][0]
    benchmark = script["mean_returns"]()[name].groupby("environment").mean()
    times = []
    for setting in ("two updates a step", "critics 512 wide, bfloat16", "actor not normalised", "observations normalised"):
        folder = script["TRIED"][setting]
        ((variant, late),) = script["mean_returns"](folder).groupby("algorithm")
        means = late.groupby("environment").mean()
        assert list(means.index) == tasks and (means < benchmark[tasks]).all()
        if (folder / "seconds.csv").exists():
            shares = (
                shares_of_sac(script, folder, variant, precision, tasks)
                / shares_of_sac(script, script["FOLDER"], name, precision, tasks)
                for precision in script["PRECISIONS"]
            )
            times.append(np.array(list(shares)))
    *slower, plain_actor = times
    assert len(slower) == 2
    assert f"bring no more, for {np.min(slower):.1f} to {np.max(slower):.1f} times the time." in page
    assert 0.9 < plain_actor.min() and plain_actor.max() < 1 and "saves less than a tenth of the time" in page


def test_normalised_observations() -> None:
    script = runpy.run_path(str(ROOT / "examples" / "mujoco_returns.py"))
    folders = (script["FOLDER"], script["OTHERS"] / "likelihood-ratio-normalised")
    without, with_them = (script["mean_returns"](folder, (40_000, 40_000)).loc[:, "Humanoid-v5", 0] for folder in folders)
    pathwise, likelihood_ratio = (f"{without[name]:,.0f}" for name in script["TWIN"])
    (normalised,) = (f"{value:,.0f}" for value in with_them)
    results, choosing = (
        " ".join((ROOT / "docs" / "guide" / name).read_text().split()) for name in ("results.md", "choosing_a_route.md")
    )
    assert (
        f"returned {normalised} after 40,000 steps instead of {likelihood_ratio}; the pathwise route, without, {pathwise}"
        in results
    )
    assert f"{pathwise}, `LikelihoodRatioAC` {likelihood_ratio}, and {normalised} with normalised observations |" in choosing


def test_choosing_a_route() -> None:
    """Speeds are those of the table of the engines, the variances those of the files."""
    page = (ROOT / "docs" / "guide" / "choosing_a_route.md").read_text()
    rows = {row["algorithm"].strip("`"): row for row in table("| algorithm | engine | HalfCheetah-v5 | Pendulum-v1 |")}
    speed = {name: row["HalfCheetah-v5"].partition(" ")[0] for name, row in rows.items()}
    others = "`LikelihoodRatioAC` {likelihood_ratio_ac}, `MixedAC` {mixed_ac}, `MeasureValuedAC` {measure_valued_ac}"
    assert f"{speed['pathwise_ac']} times SAC's steps per second on HalfCheetah-v5; {others.format(**speed)}" in page
    in_one_dimension = rows["measure_valued_ac"]["Pendulum-v1"].partition(" ")[0]
    assert f"{in_one_dimension} times SAC's steps per second on Pendulum-v1" in page
    critics = {row["`critic=`"].strip('`"'): row["needs"] for row in table("| `critic=` |")}
    with_twin = (
        f'{speed["pathwise_tqc"]} times SAC\'s steps per second on HalfCheetah-v5, where `"twin"` has {speed["pathwise_ac"]}'
    )
    assert with_twin in critics["quantile"]
    assert f"{speed['pathwise_crossq']} times SAC's steps per second" in critics["batch_renorm"]

    figures = ROOT / "examples" / "figures"
    last = pd.read_csv(figures / "variance-HalfCheetah-v5.csv").iloc[-1]
    mixed, pathwise = (f"{last[f'gradient/{route}/variance']:.3f}" for route in ("mixed", "pathwise"))
    assert f"after 20,000 steps: variance {mixed} with 8 actions; `PathwiseAC` with one, {pathwise} |" in page
    baselines = pd.read_csv(figures / "baselines-HalfCheetah-v5.csv", index_col="trained_with")
    for row in table("| trained with |"):
        measured = baselines.loc[row["trained with"].partition('"')[2].strip('`"')]
        assert [row[f'`"{name}"`'] for name in baselines] == [f"{x:,.0f}" if x > 100 else f"{x:.3f}" for x in measured]


def test_truck() -> None:
    script = runpy.run_path(str(ROOT / "examples" / "gearbox.py"))
    page, choosing = ((ROOT / "docs" / "guide" / name).read_text() for name in ("study.md", "choosing_a_route.md"))
    measured = script["intervals"](script["FIGURES"] / "returns.csv")
    critics = {"the gear": "gear", "the lever": "twin"}
    shown = {(critics[row["critic is given"]], row["route"].replace(" ", "_")): row for row in table("| critic is given |")}
    assert shown.keys() == measured.keys()
    for key, (seeds, mean, half) in measured.items():
        assert shown[key]["return of each seed"] == ", ".join(f"{value:.1f}" for value in seeds)
        assert shown[key]["mean"] == f"{mean:.1f} ± {half:.1f}"
    ours, theirs = (measured["gear", route][1] for route in ("likelihood_ratio", "pathwise"))
    assert f"return {ours:.1f}, `PathwiseAC` {theirs:.1f} (" in choosing

    rows = pd.read_csv(script["FIGURES"] / "gradients.csv").set_index(["critic", "what", "route"]).sort_index()
    shares = [
        rows.loc[("gear", "std", route), "share"] for route in ("likelihood_ratio", "measure_valued", "pathwise", "mixed")
    ]
    texts = [f"{share.min():.2f} to {share.max():.2f}" for share in shares[:2]]
    assert (shares[2] == 0).all() and (shares[3] == 0).all()
    assert f"{texts[0]} (likelihood ratio), {texts[1]} (measure-valued) and 0 (pathwise, mixed)" in " ".join(page.split())
    variances = [rows.loc[("twin", "std", route)].set_index("at")["variance"] for route in ("pathwise", "likelihood_ratio")]
    ratio = variances[0] / variances[1]
    text = "{:.2f} times the likelihood ratio's variance at a standard deviation of 0.02 and {:.2f} times at 1"
    assert text.format(ratio[0.02], ratio[1]) in " ".join(page.split())


def test_keys_of_the_zoo() -> None:
    shown = {row["key"].strip("`"): row for row in table("| key | algorithm |")}
    assert shown.keys() == ALGORITHMS.keys()
    for key, row in shown.items():
        assert row["algorithm"] == f"`{ALGORITHMS[key].__name__}`"
        assert row["critic"] == f'`"{CRITIC_OF.get(key, "twin")}"`'


def test_links() -> None:
    """Sphinx knows of the documentation's own links; these are those of the pages that it does not build."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text()) if not link.startswith("http")]
        assert not [link for link in links if not (ROOT / link.partition("#")[0]).exists()]
