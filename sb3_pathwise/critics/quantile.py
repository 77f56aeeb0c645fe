"""TQC's critic: quantiles of the return, the largest of them dropped (https://arxiv.org/abs/2005.04269)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch as th
from sb3_contrib.common.utils import quantile_huber_loss
from sb3_contrib.tqc.policies import Critic as QuantileNetworks
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from stable_baselines3.sac.policies import SACPolicy

from sb3_pathwise.critics.base import ActionValue, Critic, action_value, discounts

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic


class QuantileCritic(Critic):
    """
    ``n_critics`` networks of quantiles, each with the quantile Huber loss to the pooled quantiles of the target networks, less
    the largest. The value is the mean of all quantiles.

    :param n_quantiles: Quantiles per network
    :param top_quantiles_to_drop_per_net: How many of them to drop from the target, against overestimation
    :raises ValueError: if no quantile is left
    """

    def __init__(self, n_quantiles: int = 25, top_quantiles_to_drop_per_net: int = 2) -> None:
        for name, value, at_least in (
            ("n_quantiles", n_quantiles, 1),
            ("top_quantiles_to_drop_per_net", top_quantiles_to_drop_per_net, 0),
        ):
            if not isinstance(value, int) or value < at_least:
                raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}.")
        if top_quantiles_to_drop_per_net >= n_quantiles:
            raise ValueError(
                f"top_quantiles_to_drop_per_net={top_quantiles_to_drop_per_net} drops all of n_quantiles={n_quantiles}: drop "
                "fewer, or have more."
            )
        self.n_quantiles = n_quantiles
        self.top_quantiles_to_drop_per_net = top_quantiles_to_drop_per_net

    def make(self, policy: SACPolicy, features_extractor: BaseFeaturesExtractor | None) -> QuantileNetworks:
        kwargs = policy._update_features_extractor(policy.critic_kwargs, features_extractor)
        return QuantileNetworks(**kwargs, n_quantiles=self.n_quantiles).to(policy.device)

    def loss(
        self,
        agent: "ActorCritic",
        replay_data: ReplayBufferSamples,
        next_actions: th.Tensor,
        next_log_prob: th.Tensor,
        ent_coef: th.Tensor,
    ) -> tuple[th.Tensor, th.Tensor]:
        with th.no_grad():
            next_quantiles: th.Tensor = agent.critic_target(replay_data.next_observations, next_actions)  # type: ignore[assignment]
            n_dropped = self.top_quantiles_to_drop_per_net * next_quantiles.shape[1]
            next_quantiles, _ = th.sort(next_quantiles.flatten(start_dim=1))
            next_quantiles = next_quantiles[:, : next_quantiles.shape[1] - n_dropped]
            target_quantiles = next_quantiles - ent_coef * next_log_prob.reshape(-1, 1)
            target_quantiles = replay_data.rewards + (1 - replay_data.dones) * discounts(agent, replay_data) * target_quantiles
            target_quantiles = target_quantiles.unsqueeze(dim=1)
        current_quantiles: th.Tensor = agent.critic(replay_data.observations, replay_data.actions)  # type: ignore[assignment]
        return quantile_huber_loss(current_quantiles, target_quantiles, sum_over_quantiles=False), target_quantiles

    def value(self, critic: QuantileNetworks, obs: PyTorchObs) -> ActionValue:
        return action_value(critic, obs, QuantileNetworks, _mean)


def _mean(quantiles: Sequence[th.Tensor]) -> th.Tensor:
    return th.stack(tuple(quantiles), dim=1).mean(dim=2).mean(dim=1)
