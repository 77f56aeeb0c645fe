"""
Bounds of actions that are wider than what the environment can use: SAC explores all of the box.

Pendulum-v1 has a torque of 2 at most. Here it gets the box of +-100 that IsaacLab gave to environments without one
(https://github.com/isaac-sim/IsaacLab/issues/5080). The model is made twice: with that box, when it warns, and with the bounds
that the warning advises, with which it trains. (Pendulum clips what goes beyond, so that it learns with both; the robots of
that issue did not.)

    python examples/action_bounds.py
    python examples/action_bounds.py --bound 100    # as extreme as can be
"""

import argparse
import warnings

import gymnasium as gym
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_pathwise import PathwiseAC

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--bound", type=float, help="of the torque (default: the actuator's)")
parser.add_argument("--timesteps", type=int, default=10_000)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()


def with_bound(env: gym.Env, bound: float) -> gym.Env:
    # Actions are what they were; only which of them there are is another matter
    return gym.wrappers.TransformAction(env, lambda action: action, gym.spaces.Box(-bound, bound, (1,)))


def make_model(env: gym.Env) -> PathwiseAC:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PathwiseAC("MlpPolicy", env, learning_rate=1e-3, learning_starts=1_000, seed=args.seed)
    print(f"{env.action_space}:", *(warning.message for warning in caught) if caught else ["no warning"], sep="\n  ")
    return model


env = with_bound(gym.make("Pendulum-v1"), 100.0)
make_model(env)
# The limit of the actuator
bound = args.bound or env.unwrapped.max_torque
model = make_model(Monitor(with_bound(env, bound)))
model.learn(args.timesteps)
mean_return, std = evaluate_policy(model, model.get_env(), n_eval_episodes=20)
print(f"{args.timesteps} steps within +-{bound:g}: mean return {mean_return:.1f} +/- {std:.1f}")
