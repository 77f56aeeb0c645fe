"""
SAC's policies with a choice of action distribution, and the smallest critic as a function of the action.

Networks only. The distributions themselves are in ``distributions.py``, what is learned with them in ``learner.py``.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac import policies as sac_policies
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, Actor, SACPolicy

from sb3_pathwise.distributions import BetaDistribution, SquashedGaussianMixtureDistribution


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
        features = critic.extract_features(obs, critic.features_extractor)

    def min_qf(actions: th.Tensor) -> th.Tensor:
        qvalue_input = th.cat([features.expand(*actions.shape[:-1], -1), actions], dim=-1).flatten(end_dim=1)
        q_values = th.cat([q_net(qvalue_input) for q_net in critic.q_networks], dim=1)
        return q_values.min(dim=1).values.view(actions.shape[:-1])

    return min_qf


class BetaActor(Actor):
    """
    Actor whose actions follow beta distributions.

    :param args: Arguments of SAC's actor
    :param kwargs: Keyword arguments of SAC's actor
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        latent_dim, action_dim = self.mu.in_features, self.mu.out_features  # type: ignore[union-attr]
        del self.mu, self.log_std
        self.action_dist = BetaDistribution(action_dim)  # type: ignore[assignment]
        self.alpha, self.beta = self.action_dist.proba_distribution_net(latent_dim)

    def get_action_dist_params(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        """
        :param obs: Observations, batch size B
        :return: The two concentrations before softplus, each of shape (B, d), and no keyword arguments
        """
        latent_pi = self.latent_pi(self.extract_features(obs, self.features_extractor))
        return self.alpha(latent_pi), self.beta(latent_pi), {}


class GaussianMixtureActor(Actor):
    """
    Actor whose actions follow a squashed mixture of Gaussians.

    :param args: Arguments of SAC's actor
    :param n_components: Number of Gaussians
    :param kwargs: Keyword arguments of SAC's actor
    """

    def __init__(self, *args: Any, n_components: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        latent_dim, action_dim = self.mu.in_features, self.mu.out_features  # type: ignore[union-attr]
        self.n_components = n_components
        self.action_dist = SquashedGaussianMixtureDistribution(action_dim, n_components)  # type: ignore[assignment]
        self.mu, self.log_std, self.logits = self.action_dist.proba_distribution_net(latent_dim)  # type: ignore[assignment]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"n_components": self.n_components}

    def get_action_dist_params(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        """
        :param obs: Observations, batch size B
        :return: Means and log standard deviations, each of shape (B, n_components, d), and the weights' ``logits``
        """
        latent_pi = self.latent_pi(self.extract_features(obs, self.features_extractor))
        per_component = (self.n_components, -1)
        mean_actions = self.mu(latent_pi).unflatten(1, per_component)
        log_std = self.log_std(latent_pi).unflatten(1, per_component)  # type: ignore[operator]
        return mean_actions, th.clamp(log_std, LOG_STD_MIN, LOG_STD_MAX), {"logits": self.logits(latent_pi)}


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
        if self.distribution == "beta":
            return BetaActor(**actor_kwargs).to(self.device)
        return GaussianMixtureActor(**actor_kwargs, n_components=self.n_components).to(self.device)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        actions = super()._predict(observation, deterministic)
        if deterministic and isinstance(self.actor.action_dist, SquashedGaussianMixtureDistribution):
            # Of the components' means, the one that the critics like best (as haarnoja/sac did)
            candidates = self.actor.action_dist.component_means().movedim(1, 0)
            best = min_q_function(self.critic, observation)(candidates).argmax(dim=0)
            actions = candidates[best, th.arange(candidates.shape[1])]
        return actions


class MlpPolicy(DistributionPolicy):
    """SAC's MlpPolicy with a choice of action distribution, see ``DistributionPolicy``."""


class CnnPolicy(DistributionPolicy, sac_policies.CnnPolicy):
    """SAC's CnnPolicy with a choice of action distribution, see ``DistributionPolicy``."""


class MultiInputPolicy(DistributionPolicy, sac_policies.MultiInputPolicy):
    """SAC's MultiInputPolicy with a choice of action distribution, see ``DistributionPolicy``."""
