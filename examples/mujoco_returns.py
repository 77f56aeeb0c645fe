"""
Returns on MuJoCo after 100,000 steps: the tables of README and documentation.

They are made from text alone: `examples/figures/mujoco` has the runs of `sb3-pathwise compare` (the command is in
`docs/guide/results.md`), what peers have published, and the seconds that 1,000 steps of training take, from which
`sb3-pathwise report --seconds` draws curves over time. `mujoco-256` beside it has the same with batches of 256, `mujoco-tried`
what else was tried, and `mujoco-bfloat16` runs in half the precision. The trainings of `docs/guide/study.md` are read by
`study_returns.py`, but their seconds are measured here. Needs `pip install -e '.[compare,mujoco]'`.

    python examples/mujoco_returns.py                        # the tables
    python examples/mujoco_returns.py --measure benchmark    # the seconds, in turns: minutes, on a core of its own
    python examples/mujoco_returns.py --measure 256          # those of batches of 256
    python examples/mujoco_returns.py --measure study        # those of the study's trainings
    python examples/mujoco_returns.py --measure eight        # those of eight updates at a time
    python examples/mujoco_returns.py --measure wide         # those of critics 512 wide; also two-updates, plain-actor
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp, ttest_ind

from sb3_pathwise.experiments.bench_measure import make_model, measure, processor

FOLDER = Path(__file__).parent / "figures" / "mujoco"
LARGE_BATCHES = FOLDER.with_name("mujoco-256")
BFLOAT16 = FOLDER.with_name("mujoco-bfloat16")
# The trainings of `docs/guide/study.md`, on two of the tasks
STUDY = FOLDER.parent / "study" / "returns"
# What else `pathwise_crossq` was tried with: a folder for each setting
OTHERS = FOLDER.with_name("mujoco-tried")
TRIED = {
    "batches of 256, critics 256 wide, float32": OTHERS / "narrow",
    "the same, observations normalised": OTHERS / "normalised",
    "batches of 64": OTHERS / "batches-of-64",
    "`n_steps=3`": OTHERS / "three-steps",
    "two updates a step": OTHERS / "two-updates",
    "critics 512 wide, bfloat16": OTHERS / "wide",
    "actor not normalised": OTHERS / "plain-actor",
    "observations normalised": OTHERS / "observations-normalised",
}
# Where settings were tried whose time was measured
PILOT = ("HalfCheetah-v5", "Hopper-v5")
# The same with as many updates, but eight at a time: calls are fewer, and time is less
EIGHT = OTHERS / "eight-steps"
TASKS = ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid")
ENVS = [f"{task}-v5" for task in TASKS]
CROSSQ = ("pathwise_crossq", "likelihood_ratio_crossq")
TWIN = ("pathwise_ac", "likelihood_ratio_ac")
PRECISIONS = ("float32", "bfloat16")
# Whose seconds can be measured, and in which precisions beside that of the training
MEASURED = {
    "benchmark": (FOLDER, PRECISIONS),
    "256": (LARGE_BATCHES, PRECISIONS),
    "study": (STUDY, ()),
    "eight": (EIGHT, ()),
    **{name: (OTHERS / name, PRECISIONS) for name in ("two-updates", "wide", "plain-actor")},
}
# Hyperparameters that `make_model` has already
NOT_MEASURED = ("policy", "learning_starts")
NOTHING = pd.Series(dtype=float)
# Evaluations between these steps are one number
LATE = (80_000, 100_000)


@cache
def _results(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv")


def mean_returns(folder: Path = FOLDER, steps: tuple[float, float] = LATE) -> pd.Series:
    """:return: Mean return of the evaluations between two steps, by algorithm, environment and seed"""
    results = _results(folder)
    return results[results["step"].between(*steps)].groupby(["algorithm", "environment", "seed"])["return"].mean()


def _each(seeds: pd.Series) -> str:
    return ", ".join(f"{value:,.0f}" for value in seeds)


def with_seeds(seeds: pd.Series) -> str:
    """:return: The mean, and each seed in brackets if there are several"""
    return f"{seeds.mean():,.0f} ({_each(seeds)})" if len(seeds) > 1 else _each(seeds)


def difference(seeds: pd.Series, others: pd.Series) -> str:
    """:return: That of the means, with Welch's 95 % interval if both have seeds enough for one"""
    text = f"{seeds.mean() - others.mean():,.0f}"
    if min(len(seeds), len(others)) < 2:
        return text
    ends = ttest_ind(seeds, others, equal_var=False).confidence_interval()
    return f"{text} [{ends.low:,.0f}, {ends.high:,.0f}]"


def paces_of(seconds: pd.DataFrame) -> pd.Series:
    """:return: Seconds for 1,000 steps, by algorithm and environment"""
    return seconds.set_index(["algorithm", "environment"])["seconds_per_1000_steps"]


def _in(precision: str, name: str) -> str:
    return f"{name}:precision={precision}"


def _share(paces: pd.Series, name: str, env: str) -> str:
    return f"{paces[name, env] / paces['sac', env]:.2f} x"


def as_table(heads: list[str], rows: Iterable[list[str]]) -> str:
    """:return: In Markdown"""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)).replace(" --- ", "---")


def readme_table(late: pd.Series, seconds: pd.DataFrame, peers: pd.DataFrame) -> str:
    """:return: A line per task: mean and seeds with CrossQ's critic, its time, and what is published"""
    paces = paces_of(seconds)
    ours = [name for name in CROSSQ if name in late]
    heads = ["task", *(head for name in ours for head in (f"`{name}`", "time"))]
    rows = []
    for task in TASKS:
        env, published = f"{task}-v5", peers[f"{task}-v4"]
        cells = [cell for name in ours for cell in (with_seeds(late[name].get(env, NOTHING)), _share(paces, name, env))]
        best = published.idxmax()
        beside = f"{published[best]:,} ({best.partition(',')[0]}, {peers['arithmetic'][best]} x)"
        rows.append([env, *cells, f"{published['SAC']:,}", beside])
    return as_table([*heads, "SAC, published", "best published (arithmetic)"], rows)


def peers_table(peers: pd.DataFrame) -> str:
    """:return: A line per method: its arithmetic and returns"""
    tasks = [f"{task}-v4" for task in TASKS]
    rows = (
        [method, str(row["seeds"]), f"{row['arithmetic']} x", *(f"{row[task]:,}" for task in tasks)]
        for method, row in peers.iterrows()
    )
    return as_table(["published", "seeds", "arithmetic", *tasks], rows)


def routes_table(late: pd.Series, head: str, names: Sequence[str] = CROSSQ) -> str:
    """:return: A line per task: mean and seeds of those algorithms that have runs; the first cell says of what"""
    there = [name for name in names if name in late]
    rows = ([env, *(with_seeds(late[name].get(env, NOTHING)) for name in there)] for env in ENVS)
    return as_table([head, *(f"`{name}`" for name in there)], rows)


def tried_table() -> str:
    """:return: A line for each setting that `pathwise_crossq` was tried with, the benchmark's first: returns and time"""
    rows = []
    for setting, folder in {"the benchmark's": FOLDER, **TRIED}.items():
        late, times = mean_returns(folder), [""] * len(PRECISIONS)
        (name,) = (name for name in late.index.unique("algorithm") if name.startswith(CROSSQ[0]))
        if (folder / "seconds.csv").exists():
            paces = paces_of(pd.read_csv(folder / "seconds.csv"))
            times = [", ".join(_share(paces, _in(precision, name), env) for env in PILOT) for precision in PRECISIONS]
        rows.append([setting, *(_each(late[name].get(env, NOTHING)) for env in ENVS), *times])
    return as_table(["setting", *ENVS, *(f"time, {precision}" for precision in PRECISIONS)], rows)


def eight_table(seconds: pd.DataFrame, seconds_of_eight: pd.DataFrame) -> str:
    """:return: A line per task trained with eight updates at a time: mean, seeds and time, and the time of one at a time"""
    (variant,) = mean_returns(EIGHT).index.unique("algorithm")
    eight, paces, one_at_a_time = mean_returns(EIGHT)[variant], paces_of(seconds_of_eight), paces_of(seconds)
    rows = (
        [env, with_seeds(eight[env]), _share(paces, variant, env), _share(one_at_a_time, CROSSQ[0], env)]
        for env in ENVS
        if env in eight
    )
    return as_table(["eight at a time", "return", "time of SB3's SAC", "one at a time"], rows)


def bfloat16_table(late: pd.Series, env: str = "HalfCheetah-v5") -> str:
    """:return: A line per critic: the pathwise route in both precisions and the difference, with 95 % intervals"""
    low = mean_returns(BFLOAT16)
    rows = []
    for name in (TWIN[0], CROSSQ[0]):
        float32, bfloat16 = late[name][env], low[f"{name}:precision=bfloat16"][env]
        cells = []
        for seeds in (float32, bfloat16):
            half = ttest_1samp(seeds, 0).confidence_interval().high - seeds.mean()
            cells.append(f"{seeds.mean():,.0f} ± {half:,.0f} ({_each(seeds)})")
        rows.append([f"`{name}`", *cells, difference(bfloat16, float32)])
    return as_table([env, *PRECISIONS, "difference"], rows)


def measure_seconds(folder: Path, precisions: Sequence[str], n_steps: int = 50, turns: int = 15) -> pd.DataFrame:
    """
    :param folder: Of a comparison
    :param precisions: In which each of its algorithms is measured, beside the one that it was trained in
    :return: Seconds of CPU time for 1,000 steps of training, SB3's SAC among them: its median of all turns, and for the others
        that times the median of their ratios to it in the same turn, which a machine that is slower for a while leaves alone
    """
    cells = json.loads((folder / "comparison.json").read_text())["cells"]
    rows = []
    for env in next(iter(cells.values())):
        models, trained_in = {"sac": make_model("sac", env, buffer_size=100_000)}, {}
        for name, of_task in cells.items():
            settings = {key: value for key, value in of_task[env]["hyperparams"].items() if key not in NOT_MEASURED}
            # As rl_zoo3 reads it
            settings["policy_kwargs"] = eval(settings.get("policy_kwargs", "{}"))
            trained_in[name] = settings.pop("precision", PRECISIONS[0])
            variants = {name: trained_in[name]} | {_in(x, name): x for x in precisions if x != trained_in[name]}
            for variant, precision in variants.items():
                models[variant] = make_model(of_task[env]["algo"], env, buffer_size=100_000, precision=precision, **settings)
        paces = {
            name: np.array([1000 / turn.steps_per_second for turn in found])
            for name, found in measure(models, n_steps, turns).items()
        }
        of_sac = paces["sac"]
        seconds = {name: round(float(np.median(of_sac) * np.median(found / of_sac)), 3) for name, found in paces.items()}
        seconds |= {_in(own, name): seconds[name] for name, own in trained_in.items() if own in precisions}
        rows += [{"algorithm": name, "environment": env, "seconds_per_1000_steps": value} for name, value in seconds.items()]
        print(env, seconds, flush=True)
    return pd.DataFrame(rows).assign(processor=processor())


def seconds_table(seconds: pd.DataFrame, names: Sequence[str] = CROSSQ) -> str:
    """:return: A line per task: seconds for 1,000 steps as a share of those of SB3's SAC"""
    paces = paces_of(seconds)
    columns = [(name, precision) for name in names for precision in PRECISIONS]
    heads = [f"`{name}`, {precision}" for name, precision in columns]
    rows = ([env, *(_share(paces, _in(precision, name), env) for name, precision in columns)] for env in ENVS)
    return as_table(["time of SB3's SAC", *heads], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", choices=MEASURED, help="measure the seconds per 1,000 steps here")
    if measured := parser.parse_args().measure:
        folder, precisions = MEASURED[measured]
        measure_seconds(folder, precisions).to_csv(folder / "seconds.csv", index=False)
    peers = pd.read_csv(FOLDER / "peers.csv", index_col="method")
    seconds, large_seconds, of_eight = (pd.read_csv(folder / "seconds.csv") for folder in (FOLDER, LARGE_BATCHES, EIGHT))
    late, large = mean_returns(), mean_returns(LARGE_BATCHES)
    tables = [readme_table(late, seconds, peers), peers_table(peers)]
    tables += [routes_table(late, "SAC's critic", TWIN), routes_table(large, "batches of 256"), tried_table()]
    tables += [eight_table(seconds, of_eight)]
    tables += [bfloat16_table(late), seconds_table(seconds), seconds_table(large_seconds), seconds_table(seconds, TWIN)]
    print(*tables, sep="\n\n")


if __name__ == "__main__":
    main()
