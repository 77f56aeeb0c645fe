"""
What a policy hands to a gradient route: a torch distribution over *pre-squash* actions, the map that squashes them, and the
actions that it has drawn itself.

Routes differentiate in the pre-squash space, so no score is ever taken at an inverted tanh. Networks live in
``policies.py``, the estimators in ``routes.py``; nothing here learns.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

import torch as th
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
    TanhBijector,
)
from stable_baselines3.common.distributions import Distribution as ActionDistribution
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac.policies import Actor
from torch import nn
from torch.distributions import Beta, Categorical, Distribution, Independent, MixtureSameFamily, Normal
from torch.distributions.transforms import AffineTransform, TanhTransform, Transform
from torch.nn import functional as F

# By exact type: nothing is known of what a subclass does
_KNOWN_DISTRIBUTIONS = (SquashedDiagGaussianDistribution, DiagGaussianDistribution, StateDependentNoiseDistribution)
SampleShape = th.Size | list[int] | tuple[int, ...]
SelfSplitDistribution = TypeVar("SelfSplitDistribution", bound="SplitDistribution")


def independent(base: Distribution) -> Independent:
    """
    A distribution of vectors with independent coordinates. Arguments are not validated: that would wait for the device.

    :param base: Distribution of the coordinates, batch_shape (..., d)
    :return: the distribution, event_shape (d,)
    """
    return Independent(base, 1, validate_args=False)


def draw(dist: Distribution, sample_shape: SampleShape = ()) -> th.Tensor:
    """
    :param dist: Any distribution
    :param sample_shape: Shape of the draws
    :return: draws, shape ``(*sample_shape, B, d)``, reparameterised if they can be
    """
    return dist.rsample(sample_shape) if dist.has_rsample else dist.sample(th.Size(sample_shape))


class StateDependentNoise(Independent):
    """
    The pre-squash Gaussian of gSDE (https://arxiv.org/abs/2005.05719).

    ``sample`` draws from the marginal Gaussian, independently for every state: what a score needs. ``rsample`` shares an
    exploration matrix among the states, as SB3's SAC does, and draws a new one for each sample. For each single state both
    follow the same law.

    :param action_dist: SB3's distribution, its parameters already set for these observations
    """

    def __init__(self, action_dist: StateDependentNoiseDistribution) -> None:
        marginal = action_dist.distribution
        super().__init__(Normal(marginal.loc, marginal.scale, validate_args=False), 1, validate_args=False)
        self.latent_sde = action_dist._latent_sde
        self.weights_dist = action_dist.weights_dist

    def rsample(self, sample_shape: SampleShape = ()) -> th.Tensor:
        exploration_mats = self.weights_dist.rsample((th.Size(sample_shape).numel(),))
        return (self.mean + th.matmul(self.latent_sde, exploration_mats)).reshape(*sample_shape, *self.mean.shape)

    def sample(self, sample_shape: SampleShape = ()) -> th.Tensor:
        with th.no_grad():
            return self.base_dist.sample(sample_shape)


class DrawsOnly(Distribution):
    """
    A policy of which only draws are known, because ``action_log_prob`` was overridden with something else than SAC's: the
    pathwise route needs no more than one of them. See ``PolicyDraw.base``, which hands it out.

    :param actions: One action for each state, shape (B, d)
    """

    has_rsample = True

    def __init__(self, actions: th.Tensor) -> None:
        super().__init__(actions.shape[:1], actions.shape[1:], validate_args=False)

    def rsample(self, sample_shape: SampleShape = ()) -> th.Tensor:
        raise self._error("draws more than one action per state")

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        raise self._error("needs the density of the policy")

    @staticmethod
    def _error(need: str) -> ValueError:
        return ValueError(
            f"The route {need}, of which nothing is known: the actor's action_log_prob or action_dist is not SAC's. Override "
            "get_action_dist_params() instead, or use PathwiseAC with n_action_samples=1, which needs no more than that draw."
        )


class SACTanh(TanhTransform):
    """
    tanh with SAC's log-derivative, ``log(1 - tanh(x)^2 + epsilon)``.

    Torch's own, ``2 (log 2 - x - softplus(-2x))``, is exact for every x, but PathwiseAC would not be SAC with it. So SAC's
    distributions (squashed Gaussian, gSDE) keep SAC's formula, whose error is below 1e-4 for ``|x| < 5`` and 0.27 at 7, and
    distributions that SAC does not have take torch's.

    :param epsilon: SB3's ``SquashedDiagGaussianDistribution.epsilon``
    """

    def __init__(self, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.epsilon = epsilon

    def log_abs_det_jacobian(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        return th.log(1 - y**2 + self.epsilon)


@dataclass(frozen=True)
class PolicyDistribution:
    """
    A policy's action distribution for a batch of states, split at the squashing function.

    With ``x ~ base`` and ``actions = squash(x)``, ``log pi(actions) = log base(x) - log |d actions / d x|``.

    :param base: Distribution of the pre-squash actions, batch_shape (B,), event_shape (d,)
    :param squash: Elementwise map from pre-squash actions to actions in (-1, 1)
    """

    base: Distribution
    squash: Transform

    def log_abs_det_jacobian(self, x: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        ``log |d actions / d x|``, summed over action dimensions.

        :param x: Pre-squash actions, shape (..., d)
        :param actions: ``squash(x)``, of the same shape
        :return: shape (...)
        """
        return self.squash.log_abs_det_jacobian(x, actions).sum(dim=-1)

    def log_prob(self, x: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Log-probability of the actions, from the pre-squash actions that they came from.

        :param x: Pre-squash actions, shape (..., B, d)
        :param actions: ``squash(x)``, of the same shape
        :return: shape (..., B)
        """
        return self.base.log_prob(x) - self.log_abs_det_jacobian(x, actions)

    def squash_with_log_prob(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param x: Pre-squash actions, shape (..., B, d)
        :return: actions, of the same shape, and their log-probability, shape (..., B)
        """
        actions = self.squash(x)
        return actions, self.log_prob(x, actions)


class StateDependentNoisePolicy(PolicyDistribution):
    """
    gSDE's policy. Its log-probability is SB3's, which takes the squashed action back through a clamped atanh. No score is ever
    taken there: routes differentiate ``base.log_prob`` at the pre-squash actions themselves.
    """

    def log_prob(self, x: th.Tensor, actions: th.Tensor) -> th.Tensor:
        x = TanhBijector.inverse(actions)
        return super().log_prob(x, self.squash(x))


@dataclass(frozen=True)
class PolicyDraw:
    """
    A policy at a batch of states, and the action for each that SAC's ``action_log_prob`` has drawn there.

    :param policy_dist: The policy
    :param x: Pre-squash actions, shape (B, d)
    :param actions: Actions, shape (B, d)
    :param log_prob: Their log-probability, shape (B,)
    """

    policy_dist: PolicyDistribution
    x: th.Tensor
    actions: th.Tensor
    log_prob: th.Tensor

    @cached_property
    def _first(self) -> th.Tensor:
        return self.x.unsqueeze(0)

    @cached_property
    def base(self) -> Distribution:
        """
        A copy of ``policy_dist.base`` whose first reparameterised sample is the draw: SAC draws the actor's actions before
        those of the target, and its temperature sees them too. All further samples are fresh.
        """
        original, x_shape = self.policy_dist.base, self.x.shape
        base: Any = object.__new__(type(original))
        base.__dict__.update(original.__dict__)
        # Not the draw itself: a cycle would keep the graph until the garbage is collected
        ours = [self._first]

        def rsample(sample_shape: SampleShape = ()) -> th.Tensor:
            n_samples = th.Size(sample_shape).numel()
            if not ours or n_samples == 0:
                return original.rsample(sample_shape)
            first = ours.pop()
            if not th.is_grad_enabled():
                first = first.detach()
            if n_samples > 1:
                first = th.cat([first, original.rsample((n_samples - 1,))])
            shape = (*sample_shape, *x_shape)
            return first if first.shape == shape else first.reshape(shape)

        if base.has_rsample:
            base.rsample = rsample
        return base

    def actions_with_log_prob(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param x: Pre-squash actions, shape (n, B, d)
        :return: actions, of the same shape, and their log-probability, shape (n, B): the actor's own for its own draw
        """
        if x is self._first:
            return self.actions.unsqueeze(0), self.log_prob.unsqueeze(0)
        return self.policy_dist.squash_with_log_prob(x)


class ClampedBeta(Beta):
    """Beta distribution that never returns 0 or 1, where float32 rounds to and the log-probability is infinite."""

    def rsample(self, sample_shape: SampleShape = ()) -> th.Tensor:
        eps = th.finfo(self.concentration1.dtype).eps
        return super().rsample(sample_shape).clamp(eps, 1 - eps)


class SplitDistribution(ActionDistribution):
    """
    SB3's view of a policy distribution that is split at its squashing function, so that it acts like any of SB3's.

    :param action_dim: Number of action dimensions d
    :param n_params: Number of unconstrained parameters, what the network puts out
    """

    # As SB3's distributions, it knows what it was last asked for: the distribution, and the pre-squash actions drawn
    policy_dist: PolicyDistribution
    x: th.Tensor

    def __init__(self, action_dim: int, n_params: int) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.n_params = n_params

    @abstractmethod
    def policy_distribution(self, params: th.Tensor) -> PolicyDistribution:
        """
        :param params: Unconstrained parameters, shape (B, n_params)
        :return: the distribution
        """

    @staticmethod
    def mode_of(policy_dist: PolicyDistribution) -> th.Tensor:
        """
        :param policy_dist: What ``policy_distribution`` returned
        :return: the action to take if it must be one, shape (B, d)
        """
        return policy_dist.squash(policy_dist.base.mean)

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:  # type: ignore[override]
        """
        :param latent_dim: Dimension of the last layer of the policy
        :return: layer for the parameters
        """
        return nn.Linear(latent_dim, self.n_params)

    def proba_distribution(self: SelfSplitDistribution, params: th.Tensor) -> SelfSplitDistribution:  # type: ignore[override]
        """
        :param params: Unconstrained parameters, shape (B, n_params)
        :return: self
        """
        self.policy_dist = self.policy_distribution(params)
        return self

    def sample(self) -> th.Tensor:
        self.x = draw(self.policy_dist.base)
        return self.policy_dist.squash(self.x)

    def mode(self) -> th.Tensor:
        return self.mode_of(self.policy_dist)

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return self.policy_dist.log_prob(self.policy_dist.squash.inv(actions), actions)

    def entropy(self) -> th.Tensor | None:
        return None

    def actions_from_params(self, params: th.Tensor, deterministic: bool = False) -> th.Tensor:  # type: ignore[override]
        # Leaves nothing behind, so that several threads may ask at a time
        policy_dist = self.policy_distribution(params)
        return self.mode_of(policy_dist) if deterministic else policy_dist.squash(draw(policy_dist.base))

    def log_prob_from_params(self, params: th.Tensor) -> tuple[th.Tensor, th.Tensor]:  # type: ignore[override]
        actions = self.proba_distribution(params).sample()
        return actions, self.policy_dist.log_prob(self.x, actions)


class BetaDistribution(SplitDistribution):
    """
    Independent beta distributions, stretched from (0, 1) to (-1, 1)
    (Chou et al., 2017, https://proceedings.mlr.press/v70/chou17a.html).

    Both concentrations are ``1 + softplus`` and so exceed 1: one mode, no poles.

    :param action_dim: Number of action dimensions d
    """

    def __init__(self, action_dim: int) -> None:
        super().__init__(action_dim, 2 * action_dim)

    def policy_distribution(self, params: th.Tensor) -> PolicyDistribution:
        alpha, beta = (1 + F.softplus(params)).chunk(2, dim=1)
        return PolicyDistribution(independent(ClampedBeta(alpha, beta, validate_args=False)), AffineTransform(-1.0, 2.0))

    def entropy(self) -> th.Tensor:
        return self.policy_dist.base.entropy() + self.action_dim * math.log(2.0)


class SquashedGaussianMixtureDistribution(SplitDistribution):
    """
    Mixture of diagonal Gaussians, squashed by tanh. Components are drawn, so it has no ``rsample``.

    :param action_dim: Number of action dimensions d
    :param n_components: Number of Gaussians
    :param log_std_min: Smallest log standard deviation
    :param log_std_max: Largest log standard deviation
    """

    def __init__(self, action_dim: int, n_components: int, log_std_min: float, log_std_max: float) -> None:
        super().__init__(action_dim, n_components * (2 * action_dim + 1))
        self.n_components = n_components
        self.log_std_range = (log_std_min, log_std_max)

    def policy_distribution(self, params: th.Tensor) -> PolicyDistribution:
        params = params.unflatten(1, (self.n_components, -1))
        mean, log_std, logits = params.split([self.action_dim, self.action_dim, 1], dim=2)
        std = log_std.clamp(*self.log_std_range).exp()
        components = independent(Normal(mean, std, validate_args=False))
        weights = Categorical(logits=logits.squeeze(2), validate_args=False)
        return PolicyDistribution(MixtureSameFamily(weights, components, validate_args=False), TanhTransform())

    @staticmethod
    def mode_of(policy_dist: PolicyDistribution) -> th.Tensor:
        """
        The mean of the most probable component. (The policy, which knows Q, prefers the best one.)

        :param policy_dist: What ``policy_distribution`` returned
        :return: actions, shape (B, d)
        """
        best = cast(MixtureSameFamily, policy_dist.base).mixture_distribution.logits.argmax(dim=1)
        return SquashedGaussianMixtureDistribution.component_means(policy_dist)[th.arange(len(best)), best]

    @staticmethod
    def component_means(policy_dist: PolicyDistribution) -> th.Tensor:
        """
        :param policy_dist: What ``policy_distribution`` returned
        :return: squashed means of the components, shape (B, n_components, d)
        """
        return policy_dist.squash(cast(MixtureSameFamily, policy_dist.base).component_distribution.mean)


# Nothing in them outlives a draw, but the draw itself
_STATELESS = (SquashedDiagGaussianDistribution, DiagGaussianDistribution)


def has_foreign_draws(actor: Actor) -> bool:
    """
    :param actor: Actor network
    :return: whether somebody else has written how it draws its actions, which may then come from any distribution
    """
    function: Any = getattr(actor.action_log_prob, "__func__", actor.action_log_prob)
    package = str(getattr(function, "__module__", "")).partition(".")[0]
    is_known = isinstance(actor.action_dist, SplitDistribution) or type(actor.action_dist) in _KNOWN_DISTRIBUTIONS
    return not is_known or package not in ("stable_baselines3", "sb3_contrib", "sb3_pathwise")


def draw_actions(actor: Actor, obs: PyTorchObs) -> PolicyDraw:
    """
    One action for each state, drawn by the actor's own ``action_log_prob``, whatever that is.

    :param actor: Actor network
    :param obs: Observations, batch size B
    :return: the actions, and the distribution that they came from as far as it is known
    """
    action_dist: Any = actor.action_dist
    held = vars(action_dist).copy() if isinstance(action_dist, SplitDistribution) or type(action_dist) in _STATELESS else {}
    actions, log_prob = actor.action_log_prob(obs)
    # As SAC takes it, which may be a column
    log_prob = log_prob.reshape(-1)
    policy_dist, x = _last_draw(action_dist, actions)
    # With a graph, which is the caller's, the actor could not be copied
    vars(action_dist).update(held)
    # What a user has written may return anything
    if policy_dist is not None and has_foreign_draws(actor):
        with th.no_grad():
            expected_actions, expected_log_prob = policy_dist.squash_with_log_prob(x)
        if not th.equal(expected_actions, actions) or not th.allclose(expected_log_prob, log_prob, rtol=1e-3, atol=1e-3):
            policy_dist = None
    if policy_dist is None:
        policy_dist, x = PolicyDistribution(DrawsOnly(actions), AffineTransform(0.0, 1.0)), actions
    return PolicyDraw(policy_dist, x, actions, log_prob)


def policy_distribution(actor: Actor, obs: PyTorchObs) -> PolicyDistribution | None:
    """
    :param actor: Actor network
    :param obs: Observations, batch size B
    :return: the actor's distribution, split at its squashing function; ``None`` if it is none of SB3's nor ours
    """
    action_dist: Any = actor.action_dist
    if isinstance(action_dist, SplitDistribution):
        return action_dist.policy_distribution(cast(Any, actor).dist_params(obs))
    mean_actions, log_std, kwargs = actor.get_action_dist_params(obs)
    return _current(action_dist.proba_distribution(mean_actions, log_std, **kwargs))


def _current(action_dist: Any) -> PolicyDistribution | None:
    if isinstance(action_dist, SplitDistribution):
        return getattr(action_dist, "policy_dist", None)
    # An actor may leave it unused
    if type(action_dist) not in _KNOWN_DISTRIBUTIONS or getattr(action_dist, "distribution", None) is None:
        return None
    if type(action_dist) is SquashedDiagGaussianDistribution:
        return PolicyDistribution(independent(action_dist.distribution), SACTanh(action_dist.epsilon))
    if type(action_dist) is DiagGaussianDistribution:
        return PolicyDistribution(independent(action_dist.distribution), AffineTransform(0.0, 1.0))
    noise = StateDependentNoise(action_dist)
    if action_dist.bijector is None:
        return PolicyDistribution(noise, AffineTransform(0.0, 1.0))
    return StateDependentNoisePolicy(noise, SACTanh(action_dist.bijector.epsilon))


def _last_draw(action_dist: Any, actions: th.Tensor) -> tuple[PolicyDistribution | None, th.Tensor]:
    policy_dist = _current(action_dist)
    if policy_dist is None:
        return None, actions
    if isinstance(action_dist, SplitDistribution):
        return policy_dist, action_dist.x
    if isinstance(action_dist, SquashedDiagGaussianDistribution):
        return policy_dist, cast(th.Tensor, action_dist.gaussian_actions)
    if isinstance(action_dist, StateDependentNoiseDistribution):
        return policy_dist, action_dist.distribution.mean + action_dist.get_noise(action_dist._latent_sde)
    return policy_dist, actions
