"""SAC's critic: n Q-networks, squared error, the smallest of them as the value (https://arxiv.org/abs/1812.05905)."""

from typing import TYPE_CHECKING

import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from stable_baselines3.sac.policies import SACPolicy
from torch.nn import functional as F

from sb3_pathwise.critics.base import ActionValue, Critic, action_value, discounts, smallest

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic


class TwinCritic(Critic):
    """The minimum of ``n_critics`` Q-networks, each with the squared error to the minimum of their targets."""

    def make(self, policy: SACPolicy, features_extractor: BaseFeaturesExtractor | None) -> ContinuousCritic:
        return SACPolicy.make_critic(policy, features_extractor)

    def loss(
        self,
        agent: "ActorCritic",
        replay_data: ReplayBufferSamples,
        next_actions: th.Tensor,
        next_log_prob: th.Tensor,
        ent_coef: th.Tensor,
    ) -> tuple[th.Tensor, th.Tensor]:
        with th.no_grad():
            next_q_values = th.cat(agent.critic_target(replay_data.next_observations, next_actions), dim=1)
            next_q_values, _ = th.min(next_q_values, dim=1, keepdim=True)
            next_q_values = next_q_values - ent_coef * next_log_prob.reshape(-1, 1)
            target_q_values = replay_data.rewards + (1 - replay_data.dones) * discounts(agent, replay_data) * next_q_values
        current_q_values = agent.critic(replay_data.observations, replay_data.actions)
        # sum() begins with 0, as in SAC
        critic_loss = 0.5 * sum(F.mse_loss(current_q, target_q_values) for current_q in current_q_values)
        return critic_loss, target_q_values  # type: ignore[return-value]

    def value(self, critic: ContinuousCritic, obs: PyTorchObs) -> ActionValue:
        return action_value(critic, obs, ContinuousCritic, smallest)
