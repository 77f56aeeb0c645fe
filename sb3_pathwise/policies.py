"""
SAC's policies with a choice of action distribution, and the smallest critic as a function of the action.

Networks only. The distributions themselves are in ``distributions.py``, what is learned with them in ``learner.py``.
"""

import itertools
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import BaseModel, ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac import policies as sac_policies
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, Actor, SACPolicy
from torch import nn
from torch.autograd.function import once_differentiable

from sb3_pathwise.distributions import (
    BetaDistribution,
    SplitDistribution,
    SquashedGaussianMixtureDistribution,
    policy_distribution,
)
from sb3_pathwise.fast import FusedMLP


def extract_features(network: BaseModel, obs: PyTorchObs) -> th.Tensor:
    """
    :param network: Critics, or an actor
    :param obs: Observations, batch size B
    :return: ``network.extract_features``, without the way there if it leads nowhere, shape (B, features_dim)
    """
    if type(network.features_extractor) is FlattenExtractor and isinstance(obs, th.Tensor):
        if isinstance(network.observation_space, spaces.Box) and obs.dim() == 2 and obs.dtype == th.float32:
            return obs
    return network.extract_features(obs, cast(BaseFeaturesExtractor, network.features_extractor))


def min_q_function(critic: ContinuousCritic, obs: PyTorchObs) -> Callable[[th.Tensor], th.Tensor]:
    """
    The smallest of the critics as a function of the actions alone: features are extracted once per state.

    :param critic: Critic networks
    :param obs: Observations, batch size B
    :return: maps actions (n, B, d) to values (n, B), differentiable in the actions
    """
    if type(critic).forward is not ContinuousCritic.forward:
        # A user's own critic: nothing is known of its parts
        return lambda actions: th.stack([th.cat(critic(obs, a), dim=1).min(dim=1).values for a in actions])

    with th.no_grad():
        features = extract_features(critic, obs)

    all_fused = all(isinstance(q_net, FusedMLP) for q_net in critic.q_networks)

    def min_qf(actions: th.Tensor) -> th.Tensor:
        if th.is_grad_enabled() or not all_fused:
            states = features if len(actions) == 1 else features.repeat(len(actions), 1)
            qvalue_input = th.cat([states, actions.flatten(end_dim=1)], dim=1)
            if all_fused:
                min_q_values = MinQValue.apply(qvalue_input, critic.q_networks)
            else:
                min_q_values = th.cat([q_net(qvalue_input) for q_net in critic.q_networks], dim=1).min(dim=1).values
            return min_q_values.view(actions.shape[:-1])
        # One sample at a time, so that activations stay in the cache, and the state's part of the first layer only once
        q_nets = [(q_net, q_net.first_layer(features)) for q_net in cast(list[FusedMLP], critic.q_networks)]
        q_values = [[q_net.evaluate(a, use=0, first=first)[-1] for q_net, first in q_nets] for a in actions]
        return th.stack([th.cat(values, dim=1).min(dim=1).values for values in q_values])

    return min_qf


class MinQValue(th.autograd.Function):
    """The smallest of the critics as a function of its inputs only: no gradient is spent on weights."""

    @staticmethod
    def forward(ctx: Any, qvalue_input: th.Tensor, q_networks: list[FusedMLP]) -> th.Tensor:
        """
        :param ctx: What ``backward`` needs to know
        :param qvalue_input: Features and actions, shape (B, features_dim + d)
        :param q_networks: Critics
        :return: Values, shape (B,)
        """
        traces = [q_net.evaluate(qvalue_input, use=i) for i, q_net in enumerate(q_networks)]
        values, indices = th.cat([trace[-1] for trace in traces], dim=1).min(dim=1)
        ctx.q_networks = q_networks
        # Saved so that autograd notices if they are overwritten too early
        ctx.save_for_backward(indices, *itertools.chain(*traces))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor, None]:  # type: ignore[override]
        """
        :param ctx: What ``forward`` left
        :param grad: Gradient with respect to the values
        :return: Gradient with respect to ``qvalue_input``
        """
        indices, *saved = ctx.saved_tensors
        n_saved = len(saved) // len(ctx.q_networks)
        traces = [saved[i * n_saved : (i + 1) * n_saved] for i in range(len(ctx.q_networks))]
        grad = grad.unsqueeze(1)
        grad_input = th.zeros_like(saved[0], dtype=th.float32)
        for i, (q_net, trace) in enumerate(zip(ctx.q_networks, traces, strict=True)):
            # All rows, not only those where this critic is the smallest: a product of fewer rows is rounded otherwise
            mask = (indices == i).unsqueeze(1)
            # Added up at once: the next network's result takes the place of this one's
            grad_input += q_net.backward(grad * mask, trace, weights=False, inputs=True)
        return grad_input, None


class DistributionActor(Actor):
    """
    SAC's actor with another action distribution than its own.

    :param args: Arguments of SAC's actor
    :param distribution: "beta" or "gaussian_mixture"
    :param n_components: Number of Gaussians of a mixture
    :param kwargs: Keyword arguments of SAC's actor
    """

    def __init__(self, *args: Any, distribution: str, n_components: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # SAC's two heads give way to one
        del self.mu, self.log_std
        self.distribution = distribution
        self.n_components = n_components
        action_dim = get_action_dim(self.action_space)
        split_dist: SplitDistribution
        if distribution == "beta":
            split_dist = BetaDistribution(action_dim)
        else:
            split_dist = SquashedGaussianMixtureDistribution(action_dim, n_components, LOG_STD_MIN, LOG_STD_MAX)
        self.action_dist: Any = split_dist
        self.head = split_dist.proba_distribution_net(self.net_arch[-1] if self.net_arch else self.features_dim)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        chosen = {"distribution": self.distribution, "n_components": self.n_components}
        return super()._get_constructor_parameters() | chosen

    def dist_params(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: Observations, batch size B
        :return: Unconstrained parameters of the distribution, shape (B, ``n_params``)
        """
        return self.head(self.latent_pi(self.extract_features(obs, self.features_extractor)))

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.action_dist.actions_from_params(self.dist_params(obs), deterministic=deterministic)

    def action_log_prob(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        return self.action_dist.log_prob_from_params(self.dist_params(obs))


class DistributionPolicy(SACPolicy):
    """
    SAC's policy with a choice of action distribution.

    :param args: Arguments of SAC's policy
    :param distribution: "squashed_gaussian" (SAC's), "beta" or "gaussian_mixture" (squashed too)
    :param n_components: Number of Gaussians of a "gaussian_mixture"
    :param kwargs: Keyword arguments of SAC's policy
    :raises ValueError: if the distribution is unknown, or cannot be had with gSDE
    """

    distributions: ClassVar[tuple[str, ...]] = ("squashed_gaussian", "beta", "gaussian_mixture")

    def __init__(self, *args: Any, distribution: str = "squashed_gaussian", n_components: int = 4, **kwargs: Any) -> None:
        if distribution not in self.distributions:
            raise ValueError(f"distribution must be one of {', '.join(self.distributions)}, got {distribution!r}.")
        if distribution != "squashed_gaussian" and kwargs.get("use_sde"):
            raise ValueError(
                f"distribution={distribution!r} cannot be combined with use_sde=True: gSDE is a Gaussian of its own. "
                "Leave out one of the two."
            )
        if not isinstance(n_components, int) or n_components < 1:
            raise ValueError(f"n_components must be an integer of at least 1, got {n_components!r}.")
        self.distribution = distribution
        self.n_components = n_components
        super().__init__(*args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        chosen = {"distribution": self.distribution, "n_components": self.n_components}
        return super()._get_constructor_parameters() | chosen

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        if self.distribution == "squashed_gaussian":
            return super().make_actor(features_extractor)
        actor_kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        actor = DistributionActor(**actor_kwargs, distribution=self.distribution, n_components=self.n_components)
        return actor.to(self.device)

    def set_training_mode(self, mode: bool) -> None:
        # SB3's, but for nn.Module.train(), which is 20 times slower and is called at every step of the environment
        modules: list[nn.Module] = [self.actor, self.critic]
        for module in modules:
            if type(module).train is nn.Module.train:
                module.__dict__["training"] = mode
                modules += filter(None, module._modules.values())
            else:
                module.train(mode)
        self.training = mode

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        action_dist: Any = self.actor.action_dist
        if type(self.actor) is Actor and type(action_dist) is SquashedDiagGaussianDistribution:
            # SAC's, without the checks of torch's Normal at its creation, which take as long as the network
            policy_dist = policy_distribution(self.actor, observation)
            return policy_dist.squash(policy_dist.base.mean if deterministic else policy_dist.base.rsample())
        actions = super()._predict(observation, deterministic)
        if deterministic and isinstance(action_dist, SquashedGaussianMixtureDistribution):
            # Of the components' means, the one that the critics like best (as haarnoja/sac did)
            candidates = action_dist.component_means().movedim(1, 0)
            best = min_q_function(self.critic, observation)(candidates).argmax(dim=0)
            actions = candidates[best, th.arange(candidates.shape[1])]
        return actions


class MlpPolicy(DistributionPolicy):
    """SAC's MlpPolicy with a choice of action distribution, see ``DistributionPolicy``."""


class CnnPolicy(DistributionPolicy, sac_policies.CnnPolicy):
    """SAC's CnnPolicy with a choice of action distribution, see ``DistributionPolicy``."""


class MultiInputPolicy(DistributionPolicy, sac_policies.MultiInputPolicy):
    """SAC's MultiInputPolicy with a choice of action distribution, see ``DistributionPolicy``."""
