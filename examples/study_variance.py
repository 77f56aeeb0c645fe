"""
How many actions does the likelihood ratio need to be as good as the pathwise gradient? Variance, signal-to-noise ratio and
price of every route and number of samples, on the same states and critics, along one training with each kind of critic.

PathwiseAC trains with the hyperparameters of `zoo_configs`, but in batches of 256 and from step 5,000 on; nothing that is
measured changes it. At the end the same policy is measured again with its standard deviation halved, and halved again: what a
policy that becomes sharper does to each route. Needs `pip install -e '.[extra,mujoco]'`.

    python examples/study_variance.py                                      # Hopper-v5, both critics: about 20 minutes
    python examples/study_variance.py --env HalfCheetah-v5 --timesteps 20000
    python examples/study_variance.py --plot                               # tables and figure from the CSVs alone

Each training writes a CSV in `examples/figures/study` when it has ended, and is not done again while the CSV is there.
"""

import argparse
import csv
import math
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.logger import Logger

from sb3_pathwise import PathwiseAC
from sb3_pathwise.callbacks import BUILT_IN, GradientProbeCallback
from sb3_pathwise.guards.undisturbed import undisturbed
from sb3_pathwise.objective import Route
from sb3_pathwise.routes import BASELINES

HYPERPARAMS: dict[str, dict[str, Any]] = {
    "twin": {},
    "batch_renorm": dict(
        learning_rate=1e-3,
        policy_delay=3,
        ent_coef="auto_0.1",
        policy_kwargs=dict(critic="batch_renorm", net_arch=[256, 256], optimizer_kwargs=dict(betas=(0.5, 0.999))),
    ),
}
LEARNING_STARTS = 5_000
STD_SCALES = (1.0, 0.5, 0.25, 0.125, 0.0625)


class Estimator(NamedTuple):
    """A route with its number of samples and, if it has one, its baseline"""

    route: str
    n_samples: int
    baseline: str = ""

    @property
    def route_arguments(self) -> dict[str, Any]:
        return {"n_samples": self.n_samples} | ({"baseline": self.baseline} if self.baseline else {})


# What is measured of each estimator; by step and scale of the standard deviation
Point = dict[Estimator, dict[str, float]]
Measured = dict[tuple[int, float], Point]
PATHWISE = [Estimator("pathwise", n) for n in (1, 2, 4, 8, 16, 32)]
RATIOS = {baseline: [Estimator("likelihood_ratio", n, baseline) for n in (2, 4, 8, 16, 32)] for baseline in BASELINES}
MIXED = [Estimator("mixed", n, "leave_one_out") for n in (4, 8, 16, 32)]
MEASURE_VALUED = [Estimator("measure_valued", n) for n in (1, 2, 4)]
# Label of each line of the figure, the estimators along it, and Okabe and Ito's colours
LINES = {
    "pathwise": (PATHWISE, "#0072B2", "o"),
    "likelihood ratio, leave-one-out": (RATIOS["leave_one_out"], "#D55E00", "s"),
    "likelihood ratio, Q at the mean action": (RATIOS["mean_action"], "#E69F00", "v"),
    "likelihood ratio, no baseline": (RATIOS["none"], "0.45", "x"),
    "mixed": (MIXED, "#CC79A7", "D"),
    "measure-valued": (MEASURE_VALUED, "#009E73", "^"),
}
ESTIMATORS = [estimator for estimators, *_ in LINES.values() for estimator in estimators]
SHARPENED = [
    Estimator("pathwise", 1),
    Estimator("likelihood_ratio", 8, "leave_one_out"),
    Estimator("likelihood_ratio", 32, "leave_one_out"),
    Estimator("mixed", 8, "leave_one_out"),
    Estimator("measure_valued", 1),
]
# The documentation's table
TABLE = {
    "pathwise, K = 1": PATHWISE[0],
    **{f"likelihood ratio, K = {estimator.n_samples}": estimator for estimator in RATIOS["leave_one_out"]},
    "the same, baseline `mean_action`": RATIOS["mean_action"][-1],
    "the same, baseline `none`": RATIOS["none"][-1],
    "mixed, K = 8": MIXED[1],
    "mixed, K = 32": MIXED[-1],
    "pathwise, K = 32": PATHWISE[-1],
    "measure-valued, 1": MEASURE_VALUED[0],
}


class EstimatorProbe(GradientProbeCallback):
    """
    The probe, for any number of samples and any baseline rather than the model's.

    :param estimators: What to measure; the first two are tested for the same expectation
    """

    def __init__(self, estimators: list[Estimator], **kwargs: Any) -> None:
        self.estimators = {str(estimator): estimator for estimator in estimators}
        super().__init__(routes=tuple(self.estimators), **kwargs)

    def _route(self, name: str) -> tuple[Route, bool]:
        estimator = self.estimators[name]
        cls = BUILT_IN[estimator.route]
        return partial(cls.route, **estimator.route_arguments), cls.samples_gaussian_entropy

    def measure(self) -> dict[str, float]:
        figures = super().measure()
        with undisturbed(self.model), th.no_grad():
            assert self.model.replay_buffer is not None
            obs = self.model.replay_buffer.sample(self.batch_size, env=self.model._vec_normalize_env).observations
            _, log_std, _ = self.model.actor.get_action_dist_params(obs)
            # Before squashing, the geometric mean over states and dimensions
            return figures | {"policy_std": log_std.mean().exp().item()}

    def rows(self, figures: dict[str, float], **more: Any) -> Iterator[dict[str, Any]]:
        """
        :param figures: A measurement
        :param more: What else to write into its rows
        :return: of each estimator a row of the CSV
        """
        for name, estimator in self.estimators.items():
            measured = {key: figures[f"gradient/{name}/{key}"] for key in ("variance", "snr", "norm")}
            of_all = {"policy_std": figures["policy_std"], "consistency_z": figures["gradient/consistency_z"]}
            yield more | of_all | estimator._asdict() | measured


def train(env: str, critic: str, timesteps: int, every: int, seed: int) -> list[dict[str, Any]]:
    """
    :return: all rows of the CSV of one training
    """
    # First two: the pathwise gradient and the likelihood ratio with the least noise
    first = [PATHWISE[-1], RATIOS["leave_one_out"][-1]]
    probe = EstimatorProbe(first + [estimator for estimator in ESTIMATORS if estimator not in first], every=every)
    hyperparams = HYPERPARAMS[critic] | {"learning_starts": min(LEARNING_STARTS, timesteps // 4)}
    model = PathwiseAC("MlpPolicy", env, seed=seed, device="cpu", **hyperparams)
    model.learn(timesteps, callback=probe)

    common = {"env": env, "critic": critic, "seed": seed}
    rows = []
    for figures in probe.history:
        rows += probe.rows(figures, **common, timesteps=int(figures["timesteps"]), std_scale=1.0)
    prices = update_times(model, hyperparams)
    for row in rows:
        is_last = row["timesteps"] == rows[-1]["timesteps"]
        row["update_ms"] = prices[Estimator(row["route"], row["n_samples"], row["baseline"])] if is_last else ""

    probe = EstimatorProbe(SHARPENED)
    probe.init_callback(model)
    for std_scale in STD_SCALES[1:]:
        with th.no_grad():
            model.actor.log_std.bias.add_(math.log(0.5))
        more = common | {"timesteps": model.num_timesteps, "std_scale": std_scale}
        rows += [row | {"update_ms": ""} for row in probe.rows(probe.measure(), **more)]
    return rows


def update_times(
    model: PathwiseAC, hyperparams: dict[str, Any], n_turns: int = 5, n_updates: int = 12
) -> dict[Estimator, float]:
    """
    :param model: Trained model, whose networks and replay buffer all the others get
    :return: of each estimator the milliseconds of CPU time of an update (critics, actor and temperature, ``policy_delay``
        included): medians over turns, in each of which every estimator has its turn
    """
    others = {}
    for estimator in ESTIMATORS:
        arguments = {"n_action_samples": estimator.n_samples, "baseline": estimator.baseline or None}
        other = BUILT_IN[estimator.route]("MlpPolicy", model.get_env(), device="cpu", **hyperparams, **arguments)
        other.set_parameters(model.get_parameters())
        other.replay_buffer = model.replay_buffer
        other.set_logger(Logger(None, []))
        other.train(model.policy_delay, model.batch_size)
        others[estimator] = other
    times: dict[Estimator, list[float]] = {estimator: [] for estimator in others}
    for _ in range(n_turns):
        for estimator, other in others.items():
            start = time.process_time()
            other.train(n_updates, model.batch_size)
            times[estimator].append((time.process_time() - start) / n_updates * 1e3)
    return {estimator: statistics.median(values) for estimator, values in times.items()}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()} for row in rows)


def read_csv(path: Path) -> Measured:
    """
    :return: by step and scale of the standard deviation, what was measured of each estimator
    """
    measured: Measured = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            estimator = Estimator(row["route"], int(row["n_samples"]), row["baseline"])
            names = ("policy_std", "variance", "snr", "norm", "consistency_z", "update_ms")
            numbers = {name: float(row[name] or "nan") for name in names}
            measured.setdefault((int(row["timesteps"]), float(row["std_scale"])), {})[estimator] = numbers
    return measured


def at_the_end(measured: Measured) -> tuple[int, Point]:
    """
    :return: the last step, and what was measured there with the policy as it was trained
    """
    steps, scale = max(key for key in measured if key[1] == 1)
    return steps, measured[steps, scale]


def leave_one_out_law(point: Point) -> tuple[float, float]:
    """
    K Var = v + c / (K - 1) holds for any objective: v is one sample's variance with the baseline E[Q], and c, which is
    Var(Q) Var(score) + |gradient|^2, the price of having that baseline from the other samples.

    :param point: A measurement
    :return: v and c, from K = 2 and 32; what lies between is predicted
    """
    at_2, *_, at_32 = (estimator.n_samples * point[estimator]["variance"] for estimator in RATIOS["leave_one_out"])
    c = (at_2 - at_32) / (1 - 1 / 31)
    return at_2 - c, c


def samples_to_match(point: Point) -> float:
    """
    :return: with how many samples the likelihood ratio (leave-one-out) has the variance of one pathwise sample, by the law
    """
    v, c = leave_one_out_law(point)
    target = point[PATHWISE[0]]["variance"]
    # K (K - 1) target = v (K - 1) + c
    b = 1 + v / target
    return (b + math.sqrt(b * b + 4 * (c - v) / target)) / 2


def summarise(path: Path) -> None:
    measured = read_csv(path)
    shown = [PATHWISE[0], *(RATIOS["leave_one_out"][i] for i in (0, 2, 4)), MIXED[1], MEASURE_VALUED[0]]
    print(f"\n{path.stem}: variance of one gradient; K with which the likelihood ratio (LR, leave-one-out) matches pathwise 1")
    columns = ("steps", "std", "pathwise 1", "LR 2", "LR 8", "LR 32", "mixed 8", "measure-valued 1", "K")
    print("".join(f"{column:>18}" if "-" in column else f"{column:>11}" for column in columns))
    for (steps, scale), point in measured.items():
        std = point[PATHWISE[0]]["policy_std"]
        values = "".join(
            f"{point[e]['variance']:{18 if e in MEASURE_VALUED else 11}.4g}" if e in point else " " * 11 for e in shown
        )
        print(f"{steps:11,d}{std:11.3f}{values}" + (f"{samples_to_match(point):11.1f}" if scale == 1 else ""))
    _, point = at_the_end(measured)
    v, c = leave_one_out_law(point)
    print("Law of leave-one-out, v + c / (K - 1) from K = 2 and 32, against K Var as measured between:")
    for estimator in RATIOS["leave_one_out"][1:-1]:
        n = estimator.n_samples
        print(f"  K = {n:2d}: {v + c / (n - 1):.4g}, measured {n * point[estimator]['variance']:.4g}")


def markdown(paths: list[Path], env: str) -> str:
    """
    :return: a line for each of ``TABLE``, after the training with each critic: variance, signal-to-noise ratio, and time of an
        update in units of one with one pathwise sample
    """
    heads, columns = [env], [list(TABLE)]
    for path in paths:
        _, point = at_the_end(read_csv(path))
        shown = [point[estimator] for estimator in TABLE.values()]
        variances = [numbers["variance"] for numbers in shown]
        heads += [f"{path.stem.rpartition('-')[2]}: variance", "signal to noise", "time"]
        columns.append([f"{variance:{',.0f' if variance > 1000 else '.3g'}}" for variance in variances])
        columns.append([f"{numbers['snr']:.3g}" for numbers in shown])
        columns.append([f"{numbers['update_ms'] / shown[0]['update_ms']:.2f}" for numbers in shown])
    rows = (heads, ["---"] * len(heads), *zip(*columns, strict=True))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows).replace(" --- ", "---")


def draw(paths: list[Path], figure_path: Path, env: str) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 4 * len(paths)), layout="constrained")
        grid = figure.subplots(len(paths), 3, squeeze=False)
    for panels, path in zip(grid, paths, strict=True):
        measured = read_csv(path)
        steps, point = at_the_end(measured)
        for label, (estimators, colour, marker) in LINES.items():
            looks = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.2, "label": label}
            variances = [point[estimator]["variance"] for estimator in estimators]
            by_price = [point[estimator]["update_ms"] / point[PATHWISE[0]]["update_ms"] for estimator in estimators]
            panels[0].plot([estimator.n_samples for estimator in estimators], variances, **looks | {"linewidth": 0})
            panels[1].plot(by_price, variances, **looks)
        n_samples = th.logspace(0, 5, 100, base=2).tolist()
        one = point[PATHWISE[0]]["variance"]
        panels[0].plot(n_samples, [one / n for n in n_samples], color="#0072B2", linewidth=1, label="theory: Var(1) / K")
        v, c = leave_one_out_law(point)
        n_samples = [n for n in n_samples if n > 1.6]
        law = [(v + c / (n - 1)) / n for n in n_samples]
        panels[0].plot(n_samples, law, color="#D55E00", linewidth=1, label="theory: (v + c / (K - 1)) / K")
        panels[0].set_xscale("log", base=2)
        panels[0].set(xlabel="samples K", ylabel=f"{path.stem.rpartition('-')[2]} critic, after {steps:,} steps\nvariance")
        panels[1].set_xscale("log", base=2)
        panels[1].set(xlabel="CPU time of an update, times that of pathwise 1")

        for estimator in SHARPENED:
            _, colour, marker = next(line for line in LINES.values() if estimator in line[0])
            curve = [(scale, measured[step, scale][estimator]["variance"]) for step, scale in measured if step == steps]
            label = f"{estimator.route.replace('_', ' ')}, {estimator.n_samples}"
            dashed = "--" if estimator.n_samples == 32 else "-"
            panels[2].plot(*zip(*curve, strict=True), color=colour, marker=marker, linestyle=dashed, label=label)
        for slope, text in ((2, "quadratic Q, pathwise"), (1, "a kink in Q, pathwise")):
            guide = [one * scale**slope for scale in STD_SCALES]
            panels[2].plot(STD_SCALES, guide, color="0.6", linewidth=1, linestyle=":", zorder=0)
            panels[2].annotate(rf"theory, $\sigma^{slope}$: {text}", (STD_SCALES[-1], guide[-1]), fontsize=7, color="0.4")
        panels[2].set_xscale("log", base=2)
        panels[2].invert_xaxis()
        panels[2].set(xlabel="standard deviation of the policy, times")
        panels[2].legend(frameon=False, fontsize=8)
        for axes in panels:
            axes.set_yscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.grid(color="0.9", linewidth=0.8)
            axes.set_axisbelow(True)
    figure.suptitle(f"{env}: variance of one gradient of PathwiseAC's actor, along every route (markers: measured)")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(figure_path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Hopper-v5", help="environment (default: Hopper-v5)")
    parser.add_argument("--critics", nargs="+", default=list(HYPERPARAMS), choices=HYPERPARAMS, help="default: all")
    parser.add_argument("--timesteps", type=int, default=20_000, help="of each training (default: 20000)")
    parser.add_argument("--every", type=int, default=2_500, help="steps between two measurements (default: 2500)")
    parser.add_argument("--seed", type=int, default=0, help="of each training (default: 0)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "figures" / "study", help="folder to write to")
    parser.add_argument("--plot", action="store_true", help="do not train, only read the CSVs that are there")
    args = parser.parse_args()
    # More threads only slow small networks down, and would round otherwise
    th.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)

    paths = {critic: args.output / f"variance-{args.env}-{critic}.csv" for critic in args.critics}
    for critic, path in paths.items():
        if not path.exists() and not args.plot:
            write_csv(path, train(args.env, critic, args.timesteps, args.every, args.seed))
    there = [path for path in paths.values() if path.exists()]
    for path in there:
        summarise(path)
    if there:
        print(f"\n{markdown(there, args.env)}")
        draw(there, args.output / f"variance-{args.env}.png", args.env)
        print(f"Written: {', '.join(map(str, there))}, and the figure variance-{args.env}.png beside them")


if __name__ == "__main__":
    main()
