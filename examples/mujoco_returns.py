"""
Returns on MuJoCo after 100,000 steps: the tables of README and documentation.

They are made from text alone: `examples/figures/mujoco` has the runs of `sb3-pathwise compare` (the command is in
`docs/guide/results.md`), what peers have published, and the seconds that 1,000 steps of training take, from which
`sb3-pathwise report --seconds` draws curves over time; `mujoco-narrow` beside it has what was tried before. Needs
`pip install -e '.[compare,mujoco]'`.

    python examples/mujoco_returns.py              # the tables
    python examples/mujoco_returns.py --measure    # the seconds, in turns: some minutes, on a core with nothing else to do
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pandas as pd

from sb3_pathwise.experiments.bench_measure import make_model, measure, processor

FOLDER = Path(__file__).parent / "figures" / "mujoco"
NARROW = FOLDER.with_name("mujoco-narrow")
TASKS = ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid")
ALGORITHMS = ("pathwise_crossq", "likelihood_ratio_crossq")
PRECISIONS = ("float32", "bfloat16")
# Evaluations between these steps are one number
EARLY, LATE = (30_000, 50_000), (80_000, 100_000)


def mean_returns(folder: Path = FOLDER, steps: tuple[float, float] = LATE) -> pd.Series:
    """:return: Mean return of the evaluations between two steps, by algorithm, environment and seed"""
    results = pd.read_csv(folder / "results.csv")
    return results[results["step"].between(*steps)].groupby(["algorithm", "environment", "seed"])["return"].mean()


def _each(seeds: pd.Series) -> str:
    return ", ".join(f"{value:,.0f}" for value in seeds)


def _with_seeds(seeds: pd.Series) -> str:
    return f"{seeds.mean():,.0f} ({_each(seeds)})" if len(seeds) > 1 else _each(seeds)


def readme_table(late: pd.Series, peers: pd.DataFrame) -> str:
    """:return: A line per task: mean and seeds of our algorithms, and what is published"""
    heads = [f"`{algorithm}`: mean (each seed)" for algorithm in ALGORITHMS]
    lines = [
        f"| task | {' | '.join(heads)} | SAC, published | best published (x SAC's arithmetic) |",
        "|---" * (3 + len(heads)) + "|",
    ]
    for task in TASKS:
        cells = [f"{task}-v5"]
        for algorithm in ALGORITHMS:
            cells.append(_with_seeds(late.get((algorithm, f"{task}-v5"), pd.Series(dtype=float))))
        published = peers[f"{task}-v4"]
        best = published.idxmax()
        cells += [f"{published['SAC']:,}", f"{published[best]:,} ({best.partition(',')[0]}, {peers['arithmetic'][best]} x)"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def peers_table(peers: pd.DataFrame) -> str:
    """:return: A line per method: its arithmetic and returns"""
    lines = [f"| published | seeds | arithmetic | {' | '.join(f'{task}-v4' for task in TASKS)} |", "|---" * 8 + "|"]
    for method, row in peers.iterrows():
        cells = [method, row["seeds"], f"{row['arithmetic']} x", *(f"{row[f'{task}-v4']:,}" for task in TASKS)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def widths_table(late: pd.Series, narrow: pd.Series) -> str:
    """:return: A line per task whose critics are wide: what was trained before, and what is trained now"""
    before = list(dict.fromkeys(narrow.index.get_level_values("algorithm")))
    lines = ["| task | 256 wide, float32 | the same, observations normalised | 512 wide, bfloat16 |", "|---" * 4 + "|"]
    for env in sorted(set(narrow.index.get_level_values("environment"))):
        cells = [narrow.get((variant, env), pd.Series(dtype=float)) for variant in before] + [late[ALGORITHMS[0], env]]
        lines.append(f"| {env} | {' | '.join(map(_each, cells))} |")
    return "\n".join(lines)


def early_table(seconds: pd.DataFrame) -> str:
    """:return: A line per task of the study: both routes after as many steps, and after as much time"""
    paces = seconds.set_index(["algorithm", "environment"])["seconds_per_1000_steps"]
    pathwise, likelihood_ratio = ALGORITHMS
    early = mean_returns(steps=EARLY)
    lines = ["| task | pathwise | likelihood ratio | likelihood ratio, as much time |", "|---" * 4 + "|"]
    for env in ("Hopper-v5", "HalfCheetah-v5"):
        share = paces[pathwise, env] / paces[likelihood_ratio, env]
        as_long = mean_returns(steps=(EARLY[0] * share, EARLY[1] * share))
        cells = [early[pathwise, env], early[likelihood_ratio, env], as_long[likelihood_ratio, env]]
        lines.append(f"| {env} | {' | '.join(map(_with_seeds, cells))} |")
    return "\n".join(lines)


def measure_seconds(tasks: Sequence[str] = TASKS, n_steps: int = 100, turns: int = 5) -> pd.DataFrame:
    """
    :return: Seconds of CPU time for 1,000 steps of training, the median of turns, SB3's SAC among them: of an algorithm as it
        was trained, and in either precision
    """
    cells = json.loads((FOLDER / "comparison.json").read_text())["cells"]
    rows = []
    for env in (f"{task}-v5" for task in tasks):
        models, trained = {"sac": make_model("sac", env, buffer_size=100_000)}, {}
        for name in ALGORITHMS:
            settings = cells[name][env]["hyperparams"]
            trained[name] = f"{name}:precision={settings.get('precision', PRECISIONS[0])}"
            samples = {key: value for key, value in settings.items() if key == "n_action_samples"}
            for precision in PRECISIONS:
                models[f"{name}:precision={precision}"] = make_model(
                    *(name, env),
                    buffer_size=100_000,
                    precision=precision,
                    # As rl_zoo3 reads it
                    policy_kwargs=eval(settings["policy_kwargs"]),
                    **samples,
                )
        seconds = {
            name: round(1000 / median(turn.steps_per_second for turn in found), 3)
            for name, found in measure(models, n_steps, turns).items()
        }
        seconds |= {name: seconds[variant] for name, variant in trained.items()}
        rows += [{"algorithm": name, "environment": env, "seconds_per_1000_steps": value} for name, value in seconds.items()]
        print(env, seconds, flush=True)
    return pd.DataFrame(rows).assign(processor=processor())


def seconds_table(seconds: pd.DataFrame) -> str:
    """:return: A line per task: seconds for 1,000 steps as a share of those of SB3's SAC"""
    paces = seconds.set_index(["algorithm", "environment"])["seconds_per_1000_steps"]
    columns = [(name, precision) for name in ALGORITHMS for precision in PRECISIONS]
    heads = [f"`{name}`, {precision}" for name, precision in columns]
    lines = [f"| time of SB3's SAC | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for env in (f"{task}-v5" for task in TASKS):
        shares = [paces[f"{name}:precision={precision}", env] / paces["sac", env] for name, precision in columns]
        lines.append(f"| {env} | {' | '.join(f'{share:.2f} x' for share in shares)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the seconds per 1,000 steps here")
    if parser.parse_args().measure:
        measure_seconds().to_csv(FOLDER / "seconds.csv", index=False)
    peers = pd.read_csv(FOLDER / "peers.csv", index_col="method")
    late, seconds = mean_returns(), pd.read_csv(FOLDER / "seconds.csv")
    tables = [readme_table(late, peers), peers_table(peers), widths_table(late, mean_returns(NARROW))]
    tables += [seconds_table(seconds), early_table(seconds)]
    print(*tables, sep="\n\n")


if __name__ == "__main__":
    main()
