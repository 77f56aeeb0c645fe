"""
The two routes on one task: train both on Pendulum-v1, evaluate both, draw the learning curves.

`make demo` installs everything and runs this. By hand, in an environment that has `pip install -e '.[extra]'`:

    python examples/demo.py                  # one seed: two trainings, one after the other
    python examples/demo.py --seeds 0 1 2    # three seeds

The figures are printed, and written to `runs/demo` with the curves (PNG and CSV); `--output` names another folder.
"""

import argparse
import csv
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_pathwise import LikelihoodRatioAC, PathwiseAC

ENV_ID = "Pendulum-v1"
LEARNING_STARTS = 1_000
N_EVAL_EPISODES = 20
ALGORITHMS = (PathwiseAC, LikelihoodRatioAC)
# Told apart by the colours of Okabe and Ito, and without colour by their markers
LOOKS = {"PathwiseAC": ("#0072B2", "o"), "LikelihoodRatioAC": ("#D55E00", "s")}

Curve = list[tuple[int, float]]


def train_and_evaluate(algorithm: type, seed: int, timesteps: int) -> tuple[Curve, tuple[float, float, float]]:
    """
    :param algorithm: Class of the model to train
    :param seed: Seed of the networks, the actions and the environment
    :param timesteps: Length of the training, in steps of the environment
    :return: (steps so far, return) of each training episode; mean and standard deviation of the returns of
        ``N_EVAL_EPISODES`` deterministic episodes, and the training time in seconds
    """
    env = Monitor(gym.make(ENV_ID))
    model = algorithm("MlpPolicy", env, learning_rate=1e-3, learning_starts=LEARNING_STARTS, seed=seed)
    start = time.perf_counter()
    model.learn(timesteps, progress_bar=True)
    seconds = time.perf_counter() - start
    curve = list(zip(np.cumsum(env.get_episode_lengths()).tolist(), env.get_episode_rewards(), strict=True))

    # The same initial states for every model
    eval_env = make_vec_env(ENV_ID, seed=1_000)
    mean, std = evaluate_policy(model, eval_env, n_eval_episodes=N_EVAL_EPISODES, deterministic=True)
    return curve, (float(mean), float(std), seconds)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


@rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
def draw(curves: dict[tuple[str, int], Curve], path: Path) -> None:
    """
    :param curves: Learning curve of each (name of the algorithm, seed)
    :param path: Of the picture
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(0, LEARNING_STARTS, color="0.93", linewidth=0, zorder=0)
    axes.text(LEARNING_STARTS / 2, -20, "random actions,\nno updates", ha="center", va="top", color="0.35", fontsize=10)
    n_seeds = len({seed for _, seed in curves})
    for name, (colour, marker) in LOOKS.items():
        of_seeds = [np.array(curve).T for (owner, _), curve in curves.items() if owner == name]
        if n_seeds > 1:
            for steps, returns in of_seeds:
                axes.plot(steps, returns, color=colour, alpha=0.35, linewidth=1)
        # Every episode of Pendulum-v1 lasts 200 steps, so the curves of all seeds share their abscissa
        steps, mean_returns = np.mean(of_seeds, axis=0)
        label = f"{name}, mean of {n_seeds} seeds" if n_seeds > 1 else name
        axes.plot(steps, mean_returns, color=colour, marker=marker, markersize=5, linewidth=2, label=label)
    axes.set(
        title=f"{ENV_ID}: the same learner, two routes to the actor's gradient",
        xlabel="steps of the environment",
        ylabel="return of the training episode",
        xlim=(0, steps[-1] + 100),
        # No return is above 0
        ylim=(None, 50),
    )
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=5_000, help="of each training (default: 5000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write to (default: runs/demo)")
    args = parser.parse_args()
    if args.timesteps < 200:
        parser.error("--timesteps must be at least 200, the length of an episode")
    args.output.mkdir(parents=True, exist_ok=True)
    # More threads only slow small networks down, and would round otherwise
    th.set_num_threads(1)

    console = Console()
    curves: dict[tuple[str, int], Curve] = {}
    results = []
    for seed in args.seeds:
        for algorithm in ALGORITHMS:
            name = algorithm.__name__
            console.print(f"Training {name} on {ENV_ID}, seed {seed}, {args.timesteps} steps", highlight=False)
            curves[name, seed], result = train_and_evaluate(algorithm, seed, args.timesteps)
            results.append((name, seed, *(round(value, 2) for value in result)))

    table = Table(title=f"{ENV_ID} after {args.timesteps} steps: {N_EVAL_EPISODES} deterministic episodes")
    table.add_column("algorithm")
    for column in ("seed", "mean return", "std", "training, s"):
        table.add_column(column, justify="right")
    for name, seed, mean, std, seconds in results:
        table.add_row(name, str(seed), f"{mean:.1f}", f"{std:.1f}", f"{seconds:.0f}")
    console.print(table)

    # Without the seconds: everything written is the same when it is run again
    write_csv(args.output / "evaluation.csv", ("algorithm", "seed", "mean_return", "std_return"), [row[:4] for row in results])
    points = [(name, seed, *point) for (name, seed), curve in curves.items() for point in curve]
    write_csv(args.output / "learning_curves.csv", ("algorithm", "seed", "timesteps", "episode_return"), points)
    draw(curves, args.output / "learning_curves.png")
    console.print(f"Written to {args.output}: learning_curves.png, learning_curves.csv, evaluation.csv", highlight=False)


if __name__ == "__main__":
    main()
