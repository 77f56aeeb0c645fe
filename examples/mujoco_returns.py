"""
Returns on MuJoCo after 100,000 steps: the tables of README and documentation.

They are made from text alone: `examples/figures/mujoco` has the runs of `sb3-pathwise compare` (the command is in
`docs/guide/results.md`), what peers have published, and the seconds that 1,000 steps of training take, from which
`sb3-pathwise report --seconds` draws curves over time. Needs `pip install -e '.[compare,mujoco]'`.

    python examples/mujoco_returns.py              # the tables
    python examples/mujoco_returns.py --measure    # the seconds, in turns: some minutes, on a core with nothing else to do
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from sb3_pathwise.experiments.bench_measure import make_model, measure, processor

FOLDER = Path(__file__).parent / "figures" / "mujoco"
TASKS = ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid")
# With the numbers of samples that `zoo_configs` has for these tasks
ALGORITHMS: dict[str, dict[str, Any]] = {"pathwise_crossq": {}, "likelihood_ratio_crossq": {"n_action_samples": 32}}
# Evaluations from here on are one number
LATE = 80_000


def late_returns() -> pd.Series:
    """:return: Mean return from 80,000 to 100,000 steps, by algorithm, environment and seed"""
    results = pd.read_csv(FOLDER / "results.csv")
    return results[results["step"] >= LATE].groupby(["algorithm", "environment", "seed"])["return"].mean()


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
            seeds = late.get((algorithm, f"{task}-v5"), pd.Series(dtype=float))
            each = ", ".join(f"{value:,.0f}" for value in seeds)
            cells.append(f"{seeds.mean():,.0f} ({each})" if len(seeds) > 1 else each)
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


def measure_seconds(tasks: Sequence[str] = TASKS, n_steps: int = 100, turns: int = 5) -> pd.DataFrame:
    """:return: Seconds of CPU time for 1,000 steps of training, the median of turns, SB3's SAC among them"""
    rows = []
    for task in tasks:
        models = {"sac": make_model("sac", f"{task}-v5", buffer_size=100_000)}
        models |= {name: make_model(name, f"{task}-v5", buffer_size=100_000, **more) for name, more in ALGORITHMS.items()}
        for name, found in measure(models, n_steps, turns).items():
            seconds = 1000 / median(turn.steps_per_second for turn in found)
            rows.append({"algorithm": name, "environment": f"{task}-v5", "seconds_per_1000_steps": round(seconds, 3)})
            print(f"{name} on {task}-v5: {seconds:.2f} s for 1,000 steps", flush=True)
    return pd.DataFrame(rows).assign(processor=processor())


def seconds_table(seconds: pd.DataFrame) -> str:
    """:return: A line per task: seconds for 1,000 steps as a share of those of SB3's SAC"""
    paces = seconds.set_index(["algorithm", "environment"])["seconds_per_1000_steps"]
    lines = [f"| time of SB3's SAC | {' | '.join(f'`{name}`' for name in ALGORITHMS)} |", "|---" * (1 + len(ALGORITHMS)) + "|"]
    for task in TASKS:
        shares = [paces[name, f"{task}-v5"] / paces["sac", f"{task}-v5"] for name in ALGORITHMS]
        lines.append(f"| {task}-v5 | {' | '.join(f'{share:.2f} x' for share in shares)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the seconds per 1,000 steps here")
    if parser.parse_args().measure:
        measure_seconds().to_csv(FOLDER / "seconds.csv", index=False)
    peers = pd.read_csv(FOLDER / "peers.csv", index_col="method")
    tables = [readme_table(late_returns(), peers), peers_table(peers)]
    if (FOLDER / "seconds.csv").exists():
        tables.append(seconds_table(pd.read_csv(FOLDER / "seconds.csv")))
    print(*tables, sep="\n\n")


if __name__ == "__main__":
    main()
