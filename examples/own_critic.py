"""
A critic of one's own, under any route: a class that knows its networks, its loss and its value, and a line that names it.

It is REDQ's (https://arxiv.org/abs/2101.05982): many Q-networks, a target that is the smallest of two drawn at random, and
their mean as the value. See `sb3_pathwise/critics/base.py` for what a critic has to know.

    python examples/own_critic.py
"""

import argparse

import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.sac.policies import SACPolicy

from sb3_pathwise import LikelihoodRatioAC, PathwiseAC
from sb3_pathwise.critics import CRITICS, Critic
from sb3_pathwise.critics.base import discounts


class RandomSubsetCritic(Critic):
    """
    The mean of ``n_critics`` Q-networks, each with the squared error to the smallest of a random subset of their targets.

    :param subset_size: Number of targets in the subset
    """

    def __init__(self, subset_size: int = 2) -> None:
        self.subset_size = subset_size

    def make(self, policy, features_extractor):
        return SACPolicy.make_critic(policy, features_extractor)

    def loss(self, agent, replay_data, next_actions, next_log_prob, ent_coef):
        with th.no_grad():
            next_q_values = th.cat(agent.critic_target(replay_data.next_observations, next_actions), dim=1)
            subset = th.randperm(next_q_values.shape[1])[: self.subset_size]
            next_v_values = next_q_values[:, subset].min(dim=1).values - ent_coef * next_log_prob
            not_done = (1 - replay_data.dones) * discounts(agent, replay_data)
            target_q_values = replay_data.rewards + not_done * next_v_values.unsqueeze(1)
        q_values = th.cat(agent.critic(replay_data.observations, replay_data.actions), dim=1)
        return (q_values - target_q_values).square().sum(dim=1).mean() / 2, target_q_values

    def value(self, critic, obs):
        return lambda actions: th.stack([th.cat(critic(obs, a), dim=1).mean(dim=1) for a in actions])


CRITICS["random_subset"] = RandomSubsetCritic

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=3_000)
    args = parser.parse_args()
    for algorithm in (PathwiseAC, LikelihoodRatioAC):
        policy_kwargs = dict(critic="random_subset", n_critics=5, subset_size=2)
        model = algorithm("MlpPolicy", "Pendulum-v1", learning_rate=1e-3, policy_kwargs=policy_kwargs, seed=0)
        model.learn(args.timesteps)
        mean_return, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=20)
        print(f"{algorithm.__name__} with REDQ's critic: {mean_return:.0f}")
