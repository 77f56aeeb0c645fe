"""
Train both routes on Pendulum-v1 and evaluate them. They take the arguments of SB3's SAC.

    python examples/quickstart.py
"""

import argparse

from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pathwise import LikelihoodRatioAC, PathwiseAC

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=5_000)
timesteps = parser.parse_args().timesteps

for algorithm in (PathwiseAC, LikelihoodRatioAC):
    model = algorithm("MlpPolicy", "Pendulum-v1", learning_rate=1e-3, learning_starts=1_000, seed=0)
    model.learn(timesteps)
    mean_return, std = evaluate_policy(model, model.get_env(), n_eval_episodes=20)
    print(f"{algorithm.__name__}: {mean_return:.0f} +/- {std:.0f}")
