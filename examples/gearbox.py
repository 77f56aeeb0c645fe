"""
Where the likelihood ratio is the right tool: a truck with a gearbox, whose critic knows that there are six gears.

The agent moves a pedal and a gear lever, two numbers in [-1, 1]. What the truck executes is the pedal and one of six gears, so
Q(s, a) is a function of the pedal and the gear: in the lever it is a staircase. A critic that is given what is executed (the
gear, one-hot) represents it exactly, and has the derivative zero in the lever wherever it has one. The *expectation* of a
staircase under a Gaussian is smooth: its gradient in the lever's mean is

    sum over the steps of (Q above - Q below) * density of the lever at the step,

which the pathwise route never sees, however many samples it takes, and which the likelihood ratio estimates without bias.
`MixedAC` trusts the estimate that does not vary, and that is the constant zero. A critic that is given the lever's position
instead, as SAC's is, blurs the steps, and gives the pathwise route a slope to follow: it is trained beside the other.

    python examples/gearbox.py               # some minutes; needs `pip install -e '.[plots]'`
    python examples/gearbox.py --plot        # table and figure from the CSVs alone

Writes `returns.csv`, a row as each training ends (none is done again while it is there), `gradients.csv` and `gearbox.png`.
"""

import argparse
import csv
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ContinuousCritic
from torch.distributions import Independent, Normal
from torch.nn import functional as F

from sb3_pathwise import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC
from sb3_pathwise.critics import CRITICS
from sb3_pathwise.critics.twin import TwinCritic
from sb3_pathwise.learner import ActorCritic
from sb3_pathwise.routes import likelihood_ratio, measure_valued, mixed, pathwise

TOP_SPEEDS = (4.0, 7.0, 11.0, 16.0, 22.0, 30.0)  # m/s, of each gear
N_GEARS = len(TOP_SPEEDS)
# Of the lever, in [-1, 1], between one gear and the next
EDGES = th.linspace(-1, 1, N_GEARS + 1)[1:-1]


class Truck(gym.Env):
    """
    A loaded truck starts at rest and is to hold 20 m/s for a minute on a hilly road.

    An engine has power in a narrow band of speeds: a gear that is too high leaves it without torque, one that is too low
    reaches its limit. Observations are speed and slope, here and 100 m ahead, scaled; the reward is minus the relative error
    of speed, for every second.
    """

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def slope(self, position: float) -> float:
        return self.steepness * math.sin(position / 100 + self.phase)

    def pull(self, top_speed: float) -> float:
        engine_speed = self.speed / top_speed
        # From a standstill the clutch slips; beyond its limit the engine gives nothing
        torque = max(0.15, 1 - 4 * (engine_speed - 0.65) ** 2) if engine_speed < 1 else 0.0
        return 15 / top_speed * torque

    def observe(self) -> np.ndarray:
        slopes = (20 * self.slope(self.position), 20 * self.slope(self.position + 100))
        return np.array([self.speed / 10 - 1, *slopes], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.speed = self.position = 0.0
        self.steepness, self.phase = self.np_random.uniform(0, 0.05), self.np_random.uniform(0, 2 * math.pi)
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        pedal, lever = action
        top_speed = TOP_SPEEDS[min(int((lever + 1) / 2 * N_GEARS), N_GEARS - 1)]
        for _ in range(10):
            drive = self.pull(top_speed) * pedal if pedal > 0 else 3 * pedal
            resistance = 0.0004 * self.speed**2 + 0.06 * (self.speed > 0) + 9.81 * self.slope(self.position)
            self.speed = max(0.0, self.speed + 0.1 * (drive - resistance))
            self.position += 0.1 * self.speed
        return self.observe(), -abs(self.speed - 20) / 20, False, False, {}


class GearCriticNetworks(ContinuousCritic):
    """Q-networks that are given the pedal and, one-hot, the gear."""

    def __init__(self, *args: Any, action_space: gym.spaces.Box, **kwargs: Any) -> None:
        super().__init__(*args, action_space=gym.spaces.Box(-1.0, 1.0, (1 + N_GEARS,)), **kwargs)

    def forward(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        gears = th.bucketize(actions[:, 1].detach().contiguous(), EDGES, right=True)
        return super().forward(obs, th.cat((actions[:, :1], F.one_hot(gears, N_GEARS)), dim=1))


class GearCritic(TwinCritic):
    """SAC's critic in all but what it knows of an action."""

    def make(self, policy, features_extractor):
        return GearCriticNetworks(**policy._update_features_extractor(policy.critic_kwargs, features_extractor))

    def value(self, critic, obs):
        def value(actions: th.Tensor) -> th.Tensor:
            q_values = th.cat(critic(obs.repeat(len(actions), 1), actions.flatten(0, 1)), dim=1)
            return q_values.min(dim=1).values.view(actions.shape[:-1])

        return value


CRITICS["gear"] = GearCritic

ROUTES: dict[str, tuple[type[ActorCritic], Callable, str]] = {
    "pathwise": (PathwiseAC, partial(pathwise, n_samples=8), "#0072B2"),
    "likelihood_ratio": (LikelihoodRatioAC, partial(likelihood_ratio, n_samples=8), "#D55E00"),
    "measure_valued": (MeasureValuedAC, partial(measure_valued, n_samples=2), "#009E73"),
    "mixed": (MixedAC, partial(mixed, n_samples=8), "#CC79A7"),
}
CRITIC_NAMES = {"gear": "critic given the gear", "twin": "critic given the lever"}
GRID = [("gear", route) for route in ("likelihood_ratio", "pathwise", "mixed")]
GRID += [("twin", route) for route in ("likelihood_ratio", "pathwise")]
FIGURES = Path(__file__).parent / "figures" / "gearbox"


def train(route: str, critic: str, seed: int, timesteps: int) -> ActorCritic:
    policy_kwargs = dict(critic=critic, net_arch=[64, 64])
    hyperparams: dict[str, Any] = dict(
        learning_rate=1e-3, gamma=0.95, batch_size=128, learning_starts=500, ent_coef="auto_0.1"
    )
    env = TimeLimit(Truck(), 60)
    model = ROUTES[route][0]("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=seed, device="cpu", **hyperparams)
    return model.learn(timesteps)


def staircase(values: th.Tensor, edges: th.Tensor, loc: th.Tensor, scale: float, n_samples: int = 8) -> tuple[th.Tensor, ...]:
    """
    The likelihood ratio of a staircase under N(loc, scale^2), with leave-one-out baselines, in closed form.

    :param values: on each of C stairs, shape (C, B)
    :param edges: between them, shape (C - 1,)
    :param loc: shape (B,)
    :return: the gradient of the expectation with respect to loc, and the variance of its estimate, each (B,)
    """
    standard = Normal(0.0, 1.0)
    infinity = th.full((1, len(loc)), math.inf)
    z = th.cat((-infinity, (edges.unsqueeze(1) - loc) / scale, infinity))
    density = standard.log_prob(z).exp()
    first = density[:-1] - density[1:]  # of eps on each stair, and below: of eps^2
    probability = standard.cdf(z).diff(dim=0)
    second = probability - (z.nan_to_num(0.0, 0.0, 0.0) * density).diff(dim=0)
    gradient = (values * first).sum(0) / scale
    advantages = values - (values * probability).sum(0)
    score = (advantages.square() * second).sum(0) / scale**2 - gradient**2
    price = (advantages.square() * probability).sum(0) / scale**2 + gradient**2
    return gradient, (score + price / (n_samples - 1)) / n_samples


def estimates(route: str, f: Callable[[th.Tensor], th.Tensor], loc: th.Tensor, scale: float, n_draws: int) -> th.Tensor:
    """
    :param f: maps (n, B) to (n, B)
    :param loc: shape (B,)
    :return: independent estimates of the gradient of E[f] with respect to loc, shape (n_draws, B)
    """
    locs = loc.expand(n_draws, -1).clone().requires_grad_()
    dist = Independent(Normal(locs.flatten().unsqueeze(1), scale), 1)

    def objective(x: th.Tensor) -> th.Tensor:
        return f(x.view(-1, len(loc))).view(x.shape[:-1])

    return th.autograd.grad(ROUTES[route][1](dist, objective).sum(), locs)[0]


def measure_gradients(model: ActorCritic, critic: str, n_draws: int) -> list[dict[str, Any]]:
    """
    Of a trained model, the lever's gradient of E[Q] along every route, against the closed form.

    :return: rows: at one state, a truck at 8 m/s on a level road, for means of the lever ("mean"); and the variance,
        averaged over replayed states, for standard deviations of the lever ("std")
    """
    assert model.replay_buffer is not None
    replayed = model.replay_buffer.sample(64).observations
    with th.no_grad():
        mean_actions, log_std, _ = model.actor.get_action_dist_params(replayed)
    policy_std = log_std[:, 1].mean().exp().item()
    # Before squashing. Cells so fine that any critic is a staircase on them; those of the gears are among their edges
    edges = th.cat((th.linspace(-6, 6, 1201), th.atanh(EDGES))).sort().values
    middles = th.cat((edges[:1], (edges[1:] + edges[:-1]) / 2, edges[-1:]))

    def q(obs: th.Tensor, pedal: th.Tensor) -> Callable[[th.Tensor], th.Tensor]:
        def f(levers: th.Tensor) -> th.Tensor:
            n_repeats = levers.numel() // len(obs)
            x = levers.view(n_repeats, len(obs))
            actions = th.stack((pedal.expand_as(x), x.tanh()), dim=-1)
            return model.critic_rule.value(model.critic, obs)(actions).view(levers.shape)

        return f

    rows = []

    def measure(what: str, at: float, f: Callable[[th.Tensor], th.Tensor], loc: th.Tensor, scale: float) -> None:
        with th.no_grad():
            gradient, variance = staircase(f(middles.unsqueeze(1).expand(-1, len(loc))), edges, loc, scale)
        for route in ROUTES:
            draws = estimates(route, f, loc, scale, n_draws)
            means, variances = draws.mean(0), draws.var(0)
            numbers = {
                "gradient": means.mean(),
                "gradient_theory": gradient.mean(),
                "standard_error": (variances.mean() / draws.numel()).sqrt(),
                "share": (means * gradient).sum() / gradient.square().sum(),
                "variance": variances.mean(),
                "likelihood_ratio_theory": variance.mean(),
            }
            row: dict[str, Any] = {"critic": critic, "what": what, "at": at, "route": route, "policy_std": policy_std}
            row |= {name: number.item() for name, number in numbers.items()}
            rows.append(row)

    one = th.tensor([[-0.2, 0.0, 0.0]])
    with th.no_grad():
        pedal = model.actor.get_action_dist_params(one)[0][:, 0].tanh()
    for lever in th.linspace(-1.8, 1.8, 19).tolist():
        measure("mean", lever, q(one, pedal), th.tensor([lever]), policy_std)
    for scale in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
        measure("std", scale, q(replayed, mean_actions[:, 0].tanh()), mean_actions[:, 1], scale)
    return rows


def by_hand(choose_gear: Callable[[Truck], int], n_roads: int = 20) -> float:
    """
    :return: mean return of full pedal below 20 m/s in the gears that are chosen
    """
    returns = []
    for road in range(n_roads):
        truck = Truck()
        truck.reset(seed=road)
        levers = (((choose_gear(truck) + 0.5) / N_GEARS * 2 - 1) for _ in range(60))
        returns.append(sum(truck.step(np.array([float(truck.speed < 20), lever]))[1] for lever in levers))
    return statistics.fmean(returns)


def append_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()} for row in rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def intervals(path: Path) -> dict[tuple[str, str], tuple[list[float], float, float]]:
    """
    :return: by critic and route the returns of all seeds, their mean, and half its 95 % interval, of three seeds or more
    """
    from scipy.stats import t

    returns: dict[tuple[str, str], list[float]] = {}
    for row in read_csv(path):
        returns.setdefault((row["critic"], row["route"]), []).append(float(row["return"]))
    found = {}
    for key, values in sorted(returns.items()):
        n = len(values)
        half = t.ppf(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n) if n > 2 else math.nan
        found[key] = (values, statistics.fmean(values), half)
    return found


def draw(folder: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    gradients = read_csv(folder / "gradients.csv")

    def curve(critic: str, what: str, route: str, name: str) -> tuple[list[float], list[float]]:
        rows = [r for r in gradients if (r["critic"], r["what"], r["route"]) == (critic, what, route)]
        return [float(row["at"]) for row in rows], [float(row[name]) for row in rows]

    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        returns, gradient, variance = figure.subplots(1, 3)
    found = intervals(folder / "returns.csv")
    for y, ((_, route), (values, mean, half)) in enumerate(found.items()):
        colour = ROUTES[route][2]
        returns.plot(values, [-y] * len(values), "o", color=colour, markersize=4, alpha=0.5)
        returns.errorbar(mean, -y - 0.25, xerr=half, fmt="D", color=colour, capsize=3, markersize=5)
    returns.set_yticks(
        [-y for y in range(len(found))], [f"{r.replace('_', ' ')}\n{CRITIC_NAMES[c]}" for c, r in found], fontsize=8
    )
    returns.set_xlabel("return of each seed; mean with its 95 % interval")
    returns.set_title("the truck", fontsize=10)

    for route, (_, _, colour) in ROUTES.items():
        # The pathwise route's zeros lie beneath the mixed one's
        size = 8 if route == "pathwise" else 4
        looks = {"color": colour, "marker": "o", "markersize": size, "linewidth": 0, "label": route.replace("_", " ")}
        gradient.plot(*curve("gear", "mean", route, "gradient"), **looks)
    theory = curve("gear", "mean", "pathwise", "gradient_theory")
    gradient.plot(*theory, color="0.4", linewidth=1, zorder=0, label="theory")
    for edge in th.atanh(EDGES).tolist():
        gradient.axvline(edge, color="0.85", linewidth=1, zorder=0)
    gradient.set(xlabel="the lever's mean, before squashing", ylabel="gradient of E[Q] in it")
    gradient.set_title("critic given the gear, at 8 m/s (grey: changes of gear)", fontsize=10)

    for critic, route, marker in (
        ("gear", "likelihood_ratio", "o"),
        ("twin", "likelihood_ratio", "s"),
        ("twin", "pathwise", "^"),
    ):
        label = f"{route.replace('_', ' ')}, {CRITIC_NAMES[critic]}"
        looks = {"color": ROUTES[route][2], "marker": marker, "markersize": 5, "linewidth": 0, "label": label}
        variance.plot(*curve(critic, "std", route, "variance"), **looks)
        if route == "likelihood_ratio":
            theory = curve(critic, "std", route, "likelihood_ratio_theory")
            variance.plot(*theory, color="0.4", linewidth=1, zorder=0, linestyle="-" if critic == "gear" else "--")
    variance.set(xlabel="the lever's standard deviation", ylabel="variance of the gradient, 8 samples")
    variance.set(xscale="log", yscale="log")
    variance.set_title("lines: theory, markers: measured", fontsize=10)
    for axes in (gradient, variance):
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "gearbox.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=4_000, help="of each training (default: 4000)")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each (default: 5)")
    parser.add_argument("--eval-episodes", type=int, default=20, help="after each training (default: 20)")
    parser.add_argument("--draws", type=int, default=200, help="of each gradient that is measured (default: 200)")
    parser.add_argument("--output", type=Path, default=FIGURES, help="folder to write to")
    parser.add_argument("--plot", action="store_true", help="do not train, only read the CSVs that are there")
    args = parser.parse_args()
    # More threads only slow small networks down, and would round otherwise
    th.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)

    path = args.output / "returns.csv"
    done = {(row["critic"], row["route"], row["seed"]) for row in read_csv(path)}
    for seed in range(args.seeds if not args.plot else 0):
        for critic, route in GRID:
            if (critic, route, str(seed)) in done:
                continue
            model = train(route, critic, seed, args.timesteps)
            if seed == 0 and route == "likelihood_ratio":
                append_csv(args.output / "gradients.csv", measure_gradients(model, critic, args.draws))
            env = Monitor(TimeLimit(Truck(), 60))
            env.reset(seed=1_000 + seed)
            mean_return, _ = evaluate_policy(model, env, args.eval_episodes)
            append_csv(path, [{"critic": critic, "route": route, "seed": seed, "return": float(mean_return)}])
            print(f"{critic:5} {route:17} seed {seed}: {mean_return:.1f}", flush=True)

    print("Return, mean and 95 % interval over the seeds:")
    for (critic, route), (values, mean, half) in intervals(path).items():
        print(f"  {CRITIC_NAMES[critic]:22} {route:17} {mean:7.1f} +- {half:.1f}   ({len(values)} seeds)")
    best = by_hand(lambda truck: int(np.argmax([truck.pull(top_speed) for top_speed in TOP_SPEEDS])))
    singles = [by_hand(lambda truck, gear=gear: gear) for gear in range(N_GEARS)]
    print(f"  by hand: {best:.1f} in the gear that pulls best, {max(singles):.1f} in the best single gear")
    print("Share of the gradient in the lever's mean that a route sees, at the lever's standard deviation of the policy:")
    for row in read_csv(args.output / "gradients.csv"):
        if row["what"] == "std" and row["at"] == "0.5":
            print(f"  {CRITIC_NAMES[row['critic']]:22} {row['route']:17} {float(row['share']):7.3f}")
    draw(args.output)
    print(f"Written: {args.output}/gearbox.png, returns.csv, gradients.csv")


if __name__ == "__main__":
    main()
