"""
Change the route of a saved model: train with one, save, load with the other class, go on, and back. SAC's zips load too.

A checkpoint holds networks, optimizers and temperature, none of which belongs to a route. The replay buffer is a file of its
own, as everywhere in SB3.

    python examples/swap_route.py
"""

import argparse
from pathlib import Path

from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pathwise import LikelihoodRatioAC, PathwiseAC

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--timesteps", type=int, default=2_500, help="of each stage")
parser.add_argument("--output", type=Path, default=Path("runs/swap_route"), help="folder to write to")
args = parser.parse_args()
args.output.mkdir(parents=True, exist_ok=True)
env = make_vec_env("Pendulum-v1", seed=0)


def train_and_save(model: SAC, name: str) -> None:
    # False: steps are counted on, so the random actions of the beginning are not repeated
    model.learn(args.timesteps, reset_num_timesteps=False)
    model.save(args.output / f"{name}.zip")
    model.save_replay_buffer(args.output / f"{name}_buffer.pkl")
    mean_return, _ = evaluate_policy(model, env, n_eval_episodes=10)
    print(f"{name}.zip: {type(model).__name__}, {model.num_timesteps} steps, mean return {mean_return:.0f}")


def load(algorithm: type[SAC], name: str) -> SAC:
    model = algorithm.load(args.output / f"{name}.zip", env=env)
    model.load_replay_buffer(args.output / f"{name}_buffer.pkl")
    return model


settings = {"learning_rate": 1e-3, "seed": 0}
train_and_save(PathwiseAC("MlpPolicy", env, **settings), "pathwise")
train_and_save(load(LikelihoodRatioAC, "pathwise"), "likelihood_ratio")
train_and_save(load(PathwiseAC, "likelihood_ratio"), "pathwise_again")

train_and_save(SAC("MlpPolicy", env, **settings), "sac")
train_and_save(load(LikelihoodRatioAC, "sac"), "likelihood_ratio_from_sac")
