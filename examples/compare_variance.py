"""
The noise of the actor's gradient along a real training, for all four routes, on the same states and critics.

PathwiseAC trains; the probe measures at every so many steps what its own gradient and those of the other three routes would
be like. Needs `pip install -e '.[extra,mujoco]'`.

    python examples/compare_variance.py                                        # HalfCheetah-v5, 30,000 steps: minutes
    python examples/compare_variance.py --env Pendulum-v1 --timesteps 5000
    python examples/compare_variance.py --plot                                 # draw the figure from the CSV again
    python examples/compare_variance.py --baselines --timesteps 10000          # what a baseline is worth to LikelihoodRatioAC

The curves are written to `examples/figures` as CSV and PNG; `--output` names another folder.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_pathwise import LikelihoodRatioAC, PathwiseAC
from sb3_pathwise.callbacks import GradientProbeCallback

# Name of each route, with what it spends on a state (d: dimensions of the action), and the colours of Okabe and Ito
ROUTES = {
    "pathwise": ("pathwise, 1 sample (1 evaluation and derivative)", "#0072B2", "o"),
    "likelihood_ratio": ("likelihood ratio, 8 samples, leave-one-out (8 evaluations)", "#D55E00", "s"),
    "measure_valued": ("measure-valued, 1 sample (4d evaluations)", "#009E73", "^"),
    "mixed": ("mixed, 8 samples (8 evaluations and derivatives)", "#CC79A7", "D"),
}
BASELINES = ("leave_one_out", "mean_action", "none")


class SaveHistory(BaseCallback):
    """
    Write what a probe has measured so far, after every rollout that it has measured.

    :param probe: The probe, which must come first among the callbacks
    :param path: CSV file to write to
    """

    def __init__(self, probe: GradientProbeCallback, path: Path) -> None:
        super().__init__()
        self.probe = probe
        self.path = path
        self.n_saved = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if len(self.probe.history) > self.n_saved:
            self.n_saved = len(self.probe.history)
            write_csv(self.path, self.probe.history)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()} for row in rows)


def read_csv(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def train(env: str, timesteps: int, seed: int, every: int, path: Path) -> None:
    probe = GradientProbeCallback(every=every, routes=tuple(ROUTES))
    model = PathwiseAC("MlpPolicy", env, seed=seed)
    model.learn(timesteps, callback=[probe, SaveHistory(probe, path)])


def draw(path: Path, env: str) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    curves = read_csv(path)
    steps = curves["timesteps"]
    with rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 5), layout="constrained")
        panels = figure.subplots(1, 2)
    figures = {
        "variance": "variance of one gradient\n(trace of its covariance)",
        "snr": "signal-to-noise ratio of one gradient\n(squared norm / variance)",
    }
    for axes, (name, label) in zip(panels, figures.items(), strict=True):
        for route, (text, colour, marker) in ROUTES.items():
            values = curves[f"gradient/{route}/{name}"]
            axes.plot(steps, values, color=colour, marker=marker, markersize=4, linewidth=1.5, label=text)
        # Samples of a state are independent on this route
        values = curves[f"gradient/pathwise/{name}"] * (1 / 8 if name == "variance" else 8)
        axes.plot(steps, values, color="#0072B2", linestyle="--", linewidth=1.2, label="pathwise, 8 samples (inferred from 1)")
        axes.set(xlabel="steps of the environment", ylabel=label, yscale="log", xlim=(0, None))
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(color="0.88", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.suptitle(f"{env}: the gradient of PathwiseAC's actor, and what it would be along other routes")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=120)


def compare_baselines(env: str, timesteps: int, seed: int, path: Path) -> None:
    """Train LikelihoodRatioAC with and without baseline, and measure each model's gradient with all of them."""
    rows = []
    for trained_with in ("leave_one_out", "none"):
        model = LikelihoodRatioAC("MlpPolicy", env, baseline=trained_with, seed=seed).learn(timesteps)
        row: dict[str, Any] = {"trained_with": trained_with}
        for baseline in BASELINES:
            model.baseline = baseline
            probe = GradientProbeCallback(routes=("likelihood_ratio",))
            probe.init_callback(model)
            row[baseline] = probe.measure()["gradient/likelihood_ratio/variance"]
        rows.append(row)
        print(f"trained with {trained_with}: " + ", ".join(f"{name} {row[name]:.4g}" for name in BASELINES), flush=True)
    write_csv(path, rows)
    same_model = rows[0]["leave_one_out"] / rows[0]["none"]
    own_model = rows[0]["leave_one_out"] / rows[-1]["none"]
    print(f"Variance with leave_one_out over that with none, after {timesteps} steps of {env}, seed {seed}:")
    print(f"  same model, states and critics: 1 / {1 / same_model:.1f}")
    print(f"  each trained with its own:      1 / {1 / own_model:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5", help="environment (default: HalfCheetah-v5)")
    parser.add_argument("--timesteps", type=int, default=30_000, help="of the training (default: 30000)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: 0)")
    parser.add_argument("--every", type=int, default=1_000, help="steps between two measurements (default: 1000)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "figures", help="folder to write to")
    parser.add_argument("--plot", action="store_true", help="do not train, draw the figure from the CSV of an earlier run")
    parser.add_argument("--baselines", action="store_true", help="train LikelihoodRatioAC with and without baseline instead")
    args = parser.parse_args()
    # More threads only slow small networks down, and would round otherwise
    th.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)

    if args.baselines:
        compare_baselines(args.env, args.timesteps, args.seed, args.output / f"baselines-{args.env}.csv")
        return
    path = args.output / f"variance-{args.env}.csv"
    if not args.plot:
        train(args.env, args.timesteps, args.seed, args.every, path)
    draw(path, args.env)
    last = {name: values[-1] for name, values in read_csv(path).items()}
    print(f"After {last['timesteps']:.0f} steps, the variance of one gradient:")
    for route, (text, *_) in ROUTES.items():
        print(f"  {last[f'gradient/{route}/variance']:9.4g}  {text}")
    print(f"Written: {path}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
