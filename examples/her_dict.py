"""
Goals and Dict observations: LikelihoodRatioAC with hindsight experience replay flips eight bits into a given pattern.

The reward says only whether the goal is reached. Which policy and which buffer suit such an environment, and how they are
told to, is the same as for SB3's SAC.

    python examples/her_dict.py
"""

import argparse

import numpy as np
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pathwise import LikelihoodRatioAC

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--timesteps", type=int, default=4_000)
args = parser.parse_args()

env = BitFlippingEnv(n_bits=8, continuous=True)
model = LikelihoodRatioAC(
    "MultiInputPolicy",
    env,
    learning_rate=1e-3,
    learning_starts=500,
    batch_size=64,
    gamma=0.95,
    # Small against the reward of -1 per step: with "auto" it starts at 1, and acting at random pays
    ent_coef=0.02,
    replay_buffer_class=HerReplayBuffer,
    replay_buffer_kwargs={"n_sampled_goal": 4, "goal_selection_strategy": "future"},
    policy_kwargs={"net_arch": [64, 64]},
    seed=0,
)


def success_rate() -> float:
    # Every step costs 1 until the goal is reached, so an episode that reaches it returns more than minus its length
    returns, lengths = evaluate_policy(model, model.get_env(), n_eval_episodes=100, return_episode_rewards=True)
    return float(np.mean(np.array(returns) > -np.array(lengths)))


print(f"observations: {env.observation_space}")
print(f"success rate before training: {success_rate():.2f}")
model.learn(args.timesteps)
print(f"success rate after {model.num_timesteps} steps: {success_rate():.2f}")
