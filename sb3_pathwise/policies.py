"""
SAC's policies with a choice of action distribution and of critic.

``MlpPolicy``, ``CnnPolicy`` and ``MultiInputPolicy`` are public names, as SAC's: to be given to an algorithm, to be derived
from, and to load what ``policy.save()`` wrote. With SAC's distribution and critic, SAC's own policies load that too.

Networks only, all of them stock modules. The distributions themselves are in ``distributions.py``, what a critic is in
``critics/``, what is learned with them in ``update.py``.
"""

import inspect
from typing import Any, ClassVar

import torch as th
from sb3_contrib.crossq.policies import CrossQPolicy
from stable_baselines3.common.policies import BaseModel, ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac import policies as sac_policies
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, Actor, SACPolicy

from sb3_pathwise.critics import CRITICS
from sb3_pathwise.distributions import BetaDistribution, SplitDistribution, SquashedGaussianMixtureDistribution

__all__ = ["CnnPolicy", "DistributionPolicy", "MlpPolicy", "MultiInputPolicy"]


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


class NoTarget(th.nn.Module):
    """Stands where SAC's target networks are. It has no parameters, and is in no file."""

    def forward(self, *args: th.Tensor) -> th.Tensor:
        raise ValueError("This critic has no target networks: train it with an algorithm of sb3_pathwise, not with SB3's SAC.")


class DistributionPolicy(SACPolicy):
    """
    SAC's policy with a choice of action distribution and of critic.

    :param args: Arguments of SAC's policy
    :param distribution: "squashed_gaussian" (SAC's), "beta" or "gaussian_mixture" (squashed too)
    :param n_components: Number of Gaussians of a "gaussian_mixture"
    :param critic: Kind of critic: "twin" (SAC's), "quantile" (TQC's), "batch_renorm" (CrossQ's), "categorical"
        (XQC's), see ``sb3_pathwise.critics``
        for their arguments
    :param kwargs: Keyword arguments of SAC's policy, and of the critic
    :raises ValueError: if distribution or critic is unknown or has not such an argument, or cannot be had with gSDE
    """

    distributions: ClassVar[tuple[str, ...]] = ("squashed_gaussian", "beta", "gaussian_mixture")

    def __init__(
        self,
        *args: Any,
        distribution: str = "squashed_gaussian",
        n_components: int = 4,
        critic: str = "twin",
        **kwargs: Any,
    ) -> None:
        if distribution not in self.distributions:
            raise ValueError(f"distribution must be one of {', '.join(self.distributions)}, got {distribution!r}.")
        if distribution != "squashed_gaussian" and kwargs.get("use_sde"):
            raise ValueError(
                f"distribution={distribution!r} cannot be combined with use_sde=True: gSDE is a Gaussian of its own. "
                "Leave out one of the two."
            )
        if not isinstance(n_components, int) or n_components < 1:
            raise ValueError(f"n_components must be an integer of at least 1, got {n_components!r}.")
        if not isinstance(critic, str) or critic not in CRITICS:
            raise ValueError(f"critic must be one of {', '.join(CRITICS)}, got {critic!r}.")
        self.critic_arguments = {name: kwargs.pop(name) for name in critic_arguments(critic) if name in kwargs}
        for other in CRITICS:
            foreign = [name for name in critic_arguments(other) if name in kwargs]
            if foreign:
                raise ValueError(
                    f"policy_kwargs: {', '.join(foreign)} are arguments of critic={other!r}, this one is {critic!r}. "
                    "Leave them out, or choose that critic."
                )
        self.distribution = distribution
        self.n_components = n_components
        self.critic_name = critic
        self.critic_rule = CRITICS[critic](**self.critic_arguments)
        super().__init__(*args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        chosen = {"distribution": self.distribution, "n_components": self.n_components, "critic": self.critic_name}
        defaults = inspect.signature(DistributionPolicy).parameters
        # What is SAC's is written as SAC would, so that SAC's policies load it
        ours = {name: value for name, value in chosen.items() if value != defaults[name].default}
        return super()._get_constructor_parameters() | ours | self.critic_arguments

    def _build(self, lr_schedule: Schedule) -> None:
        if self.critic_rule.has_target:
            super()._build(lr_schedule)
        else:
            # SAC's, but for the target networks, whose initialization would draw random numbers
            CrossQPolicy._build(self, lr_schedule)  # type: ignore[arg-type]
            self.critic_target = NoTarget()  # type: ignore[assignment]

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        if self.distribution == "squashed_gaussian":
            actor = super().make_actor(features_extractor)
        else:
            actor_kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
            actor = DistributionActor(**actor_kwargs, distribution=self.distribution, n_components=self.n_components)
            actor = actor.to(self.device)
        self.critic_rule.prepare_actor(actor)
        return actor

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        critic = self.critic_rule.make(self, features_extractor)
        if features_extractor is not None and critic.features_extractor is not features_extractor:
            raise ValueError(
                f"share_features_extractor=True: critic={self.critic_name!r} makes a features extractor of its own, which "
                "nobody would train. Leave the argument out."
            )
        return critic

    def set_training_mode(self, mode: bool) -> None:
        # SAC's. It is called three times a step, and Module.__setattr__ costs more than a small layer
        for network in (self.actor, self.critic):
            _set_training_mode(network, mode)
        self.training = mode

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if not (deterministic and self.distribution == "gaussian_mixture"):
            return super()._predict(observation, deterministic)
        # Of the components' means, the one that the critics like best (as haarnoja/sac did)
        actor: Any = self.actor
        policy_dist = actor.action_dist.policy_distribution(actor.dist_params(observation))
        candidates = actor.action_dist.component_means(policy_dist).movedim(1, 0)
        best = self.critic_rule.value(self.critic, observation)(candidates).argmax(dim=0)
        return candidates[best, th.arange(candidates.shape[1])]


def _set_training_mode(network: BaseModel, mode: bool) -> None:
    """``network.set_training_mode(mode)``, written to the modules directly if no class and nobody else has a say in it."""
    modules: list[Any] = [network]
    for module in modules:
        modules += [child for child in module._modules.values() if child is not None]
    is_stock = type(network).set_training_mode is BaseModel.set_training_mode and "set_training_mode" not in vars(network)
    if is_stock and all(
        type(module).train is th.nn.Module.train and "train" not in module.__dict__ and "training" in module.__dict__
        for module in modules
    ):
        for module in modules:
            module.__dict__["training"] = mode
    else:
        network.set_training_mode(mode)


def critic_arguments(critic: str) -> list[str]:
    """
    :param critic: Kind of critic
    :return: names of its own arguments
    """
    constructor = CRITICS[critic].__init__
    return [] if constructor is object.__init__ else list(inspect.signature(constructor).parameters)[1:]


class MlpPolicy(DistributionPolicy):
    """SAC's MlpPolicy with a choice of action distribution and of critic, see ``DistributionPolicy``."""


class CnnPolicy(DistributionPolicy, sac_policies.CnnPolicy):
    """SAC's CnnPolicy with a choice of action distribution and of critic, see ``DistributionPolicy``."""


class MultiInputPolicy(DistributionPolicy, sac_policies.MultiInputPolicy):
    """SAC's MultiInputPolicy with a choice of action distribution and of critic, see ``DistributionPolicy``."""
