"""CrossQ's critic: batch renormalisation over current and next states jointly, no target (https://arxiv.org/abs/1902.05605)."""

from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm1d
from sb3_contrib.crossq.policies import CrossQCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn
from torch.nn import functional as F

from sb3_pathwise.critics.base import ActionValue, Critic, action_value, discounts, smallest
from sb3_pathwise.normalization import folded, joint, statistics_of

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic


class BatchRenormCritic(Critic):
    """
    The minimum of ``n_critics`` Q-networks with batch renormalisation before every linear layer, each with the squared error
    to the minimum of themselves at the next states: one pass over both, so that both are normalised alike.

    Sizes of layers and the optimizer's options stay SAC's defaults. CrossQ's are ``net_arch=dict(pi=[256, 256], qf=[1024,
    1024])`` and ``optimizer_kwargs=dict(betas=(0.5, 0.999))``, with ``learning_rate=1e-3`` and ``policy_delay=3``.

    :param batch_norm: Whether to normalise at all
    :param actor_batch_norm: Whether the actor is normalised too: by statistics of the batch where it learns, else by running
        ones
    :param batch_norm_momentum: Weight of a batch in the running statistics
    :param batch_norm_eps: Added to the variance, against division by zero
    :param renorm_warmup_steps: Updates before running statistics correct those of the batch
    """

    has_target = False
    actor_draws_first = False
    min_batch_size = 2

    def __init__(
        self,
        batch_norm: bool = True,
        actor_batch_norm: bool = True,
        batch_norm_momentum: float = 0.01,
        batch_norm_eps: float = 0.001,
        renorm_warmup_steps: int = 100_000,
    ) -> None:
        self.actor_batch_norm = batch_norm and actor_batch_norm
        self.arguments: dict[str, Any] = {
            "batch_norm": batch_norm,
            "batch_norm_momentum": batch_norm_momentum,
            "batch_norm_eps": batch_norm_eps,
            "renorm_warmup_steps": renorm_warmup_steps,
        }

    def make(self, policy: SACPolicy, features_extractor: BaseFeaturesExtractor | None) -> CrossQCritic:
        kwargs = policy._update_features_extractor(policy.critic_kwargs, features_extractor)
        return CrossQCritic(**kwargs, **self.arguments).to(policy.device)

    def prepare_actor(self, actor: Actor) -> None:
        linear = [layer for layer in actor.latent_pi if isinstance(layer, nn.Linear)]
        if not self.actor_batch_norm or not linear:
            return
        batch_renorm = partial(
            BatchRenorm1d,
            eps=self.arguments["batch_norm_eps"],
            momentum=self.arguments["batch_norm_momentum"],
            warmup_steps=self.arguments["renorm_warmup_steps"],
        )
        layers: list[nn.Module] = []
        for layer in actor.latent_pi:
            layers += [batch_renorm(layer.in_features), layer] if isinstance(layer, nn.Linear) else [layer]
        actor.latent_pi = nn.Sequential(*layers, batch_renorm(linear[-1].out_features)).to(linear[-1].weight.device)

    def while_acting(self, actor: Actor) -> AbstractContextManager[None]:
        return statistics_of(False, actor)

    def loss(
        self,
        agent: "ActorCritic",
        replay_data: ReplayBufferSamples,
        next_actions: th.Tensor,
        next_log_prob: th.Tensor,
        ent_coef: th.Tensor,
    ) -> tuple[th.Tensor, th.Tensor]:
        all_obs = joint(replay_data.observations, replay_data.next_observations)
        all_actions = joint(replay_data.actions, next_actions)
        with statistics_of(True, agent.critic):
            all_q_values = th.cat(agent.critic(all_obs, all_actions), dim=1)  # type: ignore[arg-type]
        current_q_values, next_q_values = th.split(all_q_values, len(next_actions), dim=0)
        with th.no_grad():
            next_q_values, _ = th.min(next_q_values.detach(), dim=1, keepdim=True)
            next_q_values = next_q_values - ent_coef * next_log_prob.reshape(-1, 1)
            target_q_values = replay_data.rewards + (1 - replay_data.dones) * discounts(agent, replay_data) * next_q_values
        # Through the statistics, the gradient reaches the next states' half too
        critic_loss = 0.5 * sum(F.mse_loss(current_q, target_q_values) for current_q in current_q_values.T[..., None])
        return critic_loss, target_q_values  # type: ignore[return-value]

    def value(self, critic: CrossQCritic, obs: PyTorchObs) -> ActionValue:
        # With statistics of the batch, an action's value would depend on the other actions
        value = action_value(critic, obs, CrossQCritic, smallest, folded)

        def value_by_running_statistics(actions: th.Tensor) -> th.Tensor:
            with statistics_of(False, critic):
                return value(actions)

        return value_by_running_statistics
