"""
A gradient route of one's own: a function of two arguments, and a class with a docstring that makes an algorithm of it.

A route is given the policy's distribution, and an objective as a function of actions. It returns an estimate of the
objective's expectation; the gradient of what it returns is what the actor climbs. See `sb3_pathwise.routes` for the rules.

    python examples/own_route.py
"""

import argparse

from sb3_pathwise.callbacks import GradientProbeCallback
from sb3_pathwise.learner import ActorCritic


def antithetic(dist, objective, n_samples=2):
    """
    Pathwise with pairs of actions, mirrored at the policy's mean: what of the objective's slope is odd around the mean cancels
    within a pair, where independent actions would only average it out.
    """
    x = dist.rsample((n_samples // 2,))
    return (objective(x) + objective(2 * dist.mean - x)).mean(0) / 2


class AntitheticAC(ActorCritic):
    """Maximum-entropy actor-critic with the antithetic pathwise gradient."""

    route = antithetic
    # Mirroring takes a symmetric distribution
    supported_distributions = ("squashed_gaussian",)
    min_action_samples = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--timesteps", type=int, default=3_000)
    args = parser.parse_args()

    # The model's own route goes by the name of its class; the last number is how many actions each draws for a state
    routes = {"AntitheticAC": 2, "pathwise": 1, "likelihood_ratio": 8}
    probe = GradientProbeCallback(every=args.timesteps // 3, routes=tuple(routes))
    AntitheticAC("MlpPolicy", args.env, learning_rate=1e-3, seed=0).learn(args.timesteps, callback=probe)
    for figures in probe.history:
        print(f"Step {figures['timesteps']:.0f}, variance of one gradient times the number of its actions:")
        for route, n_samples in routes.items():
            print(f"  {route:16} {n_samples * figures[f'gradient/{route}/variance']:8.3g}")
        # Beyond 3 in absolute value, one of the first two would be biased
        print(f"  same expectation as pathwise: z = {figures['gradient/consistency_z']:.1f}")


if __name__ == "__main__":
    main()
