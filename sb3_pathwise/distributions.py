"""
What a policy hands to a gradient route: a torch distribution over *pre-squash* actions and the map that squashes them.

Routes differentiate in the pre-squash space, so no score is ever taken at an inverted tanh. Networks live in
``policies.py``, the estimators in ``routes.py``; nothing here learns.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch as th
from stable_baselines3.common.distributions import Distribution as ActionDistribution
from stable_baselines3.common.distributions import (
    StateDependentNoiseDistribution,
    TanhBijector,
)
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, Actor
from torch import nn
from torch.autograd.function import once_differentiable
from torch.distributions import Beta, Categorical, Distribution, Independent, MixtureSameFamily, Normal
from torch.distributions.transforms import AffineTransform, TanhTransform, Transform
from torch.nn import functional as F

from sb3_pathwise.fast import scalar

SampleShape = th.Size | list[int] | tuple[int, ...]
SelfSplitDistribution = TypeVar("SelfSplitDistribution", bound="SplitDistribution")


def independent(base: Distribution) -> Independent:
    """
    A distribution of vectors with independent coordinates. Arguments are not validated: that would wait for the device.

    :param base: Distribution of the coordinates, batch_shape (..., d)
    :return: the distribution, event_shape (d,)
    """
    return Independent(base, 1, validate_args=False)


class LeanNormal(Normal):
    """
    Torch's Normal without the checks at its creation, which take longer than a draw.

    :param loc: Means
    :param scale: Standard deviations, of the same shape
    :param validate_args: Nothing is validated
    """

    def __init__(self, loc: th.Tensor, scale: th.Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = loc, scale
        self._batch_shape, self._event_shape = loc.shape, th.Size()
        self._validate_args = False


class StateDependentNoise(Independent):
    """
    The pre-squash Gaussian of gSDE (https://arxiv.org/abs/2005.05719).

    ``sample`` draws from the marginal Gaussian, independently for every state: what a score needs. ``rsample`` shares
    one exploration matrix among the states, as SB3's SAC does. For each single state both follow the same law.

    :param action_dist: SB3's distribution, its parameters already set for these observations
    :param latent_sde: Features that multiply the exploration matrix, shape (B, latent_sde_dim)
    """

    def __init__(self, action_dist: StateDependentNoiseDistribution, latent_sde: th.Tensor) -> None:
        marginal = action_dist.distribution
        super().__init__(Normal(marginal.loc, marginal.scale, validate_args=False), 1, validate_args=False)
        self.latent_sde = latent_sde if action_dist.learn_features else latent_sde.detach()
        self.exploration_mat = action_dist.exploration_mat
        self.weights_dist = action_dist.weights_dist

    def rsample(self, sample_shape: SampleShape = ()) -> th.Tensor:
        # The matrix of the last reset_noise() comes first: the draw that SAC would have used
        exploration_mats = [self.exploration_mat.unsqueeze(0)]
        n_more = th.Size(sample_shape).numel() - 1
        if n_more > 0:
            exploration_mats.append(self.weights_dist.rsample((n_more,)))
        noise = th.matmul(self.latent_sde, th.cat(exploration_mats))
        return (self.mean + noise).reshape(*sample_shape, *self.mean.shape)

    def sample(self, sample_shape: SampleShape = ()) -> th.Tensor:
        with th.no_grad():
            return self.base_dist.sample(sample_shape)


class SACTanh(TanhTransform):
    """
    tanh with SAC's log-derivative, ``log(1 - tanh(x)^2 + 1e-6)``.

    Torch's own, ``2 (log 2 - x - softplus(-2x))``, is exact for every x, but PathwiseAC would part from SAC with it: after
    150 updates of Pendulum-v1 (seed 0) a parameter differs by 7e-3 instead of 0. So SAC's distributions (squashed Gaussian,
    gSDE) keep SAC's formula, whose error is below 1e-4 for ``|x| < 5`` and 0.27 at 7, and distributions that SAC does not
    have take torch's.
    """

    epsilon = 1e-6

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
        :param actions: ``squash(x)``
        :return: shape (...)
        """
        return self.squash.log_abs_det_jacobian(x, actions).sum(dim=-1)

    def log_prob(self, x: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Log-probability of the actions, from the pre-squash actions that they came from.

        :param x: Pre-squash actions, shape (..., B, d)
        :param actions: ``squash(x)``
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

    def with_draw(self, draw: th.Tensor) -> Distribution:
        """
        A copy of ``base`` whose samples are ``draw``. SAC draws the actor's actions before the target's, and its
        temperature sees the very actions that its actor does; this lets a route do the same.

        :param draw: Pre-squash actions that ``base`` has drawn, shape (n, B, d)
        :return: the copy
        """
        base = object.__new__(type(self.base))
        base.__dict__.update(self.base.__dict__)

        def rsample(sample_shape: SampleShape = ()) -> th.Tensor:
            shape = th.Size(sample_shape) + draw.shape[1:]
            return draw if draw.shape == shape else draw.reshape(shape)

        base.rsample = rsample  # type: ignore[method-assign]
        base.sample = lambda sample_shape=(): base.rsample(sample_shape).detach()  # type: ignore[method-assign]
        return base


class SquashedGaussianPolicy(PolicyDistribution):
    """SAC's policy: a diagonal Gaussian, squashed by tanh."""

    def squash_with_log_prob(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        normal = cast(Normal, cast(Independent, self.base).base_dist)
        return SquashWithLogProb.apply(x, normal.loc, normal.scale)


class SquashWithLogProb(th.autograd.Function):
    """
    ``a = tanh(x)`` and ``sum_d log N(x; mean, std) - log(1 - a^2 + epsilon)``, as one step of the graph instead of twenty,
    rounded as SAC's.
    """

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, mean: th.Tensor, std: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param ctx: What ``backward`` needs to know
        :param x: Pre-squash actions, shape (n, B, d) or (B, d)
        :param mean: shape (B, d)
        :param std: shape (B, d)
        :return: actions, of the shape of ``x``, and log-probabilities, shape (n, B) or (B,)
        """
        actions, deviation = th.tanh(x), x - mean
        # Doubling and squaring are exact, or rounded once, whatever the operation
        two_var = std * std
        two_var += two_var
        exponent = (deviation * deviation).neg_().div_(two_var)
        one_minus_square = scalar(1.0, x.dtype) - actions * actions
        one_minus_square += scalar(SACTanh.epsilon, x.dtype)
        log_prob = (exponent - std.log()).sub_(scalar(math.log(math.sqrt(2 * math.pi)), x.dtype)).sum(dim=-1)
        log_prob -= th.log(one_minus_square).sum(dim=-1)
        ctx.save_for_backward(actions, deviation, std, two_var, exponent, one_minus_square)
        return actions, log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_actions: th.Tensor, grad_log_prob: th.Tensor) -> tuple[th.Tensor, ...]:  # type: ignore[override]
        """
        :param ctx: What ``forward`` left
        :param grad_actions: Gradient with respect to the actions
        :param grad_log_prob: Gradient with respect to the log-probabilities
        :return: Gradients with respect to ``x``, ``mean`` and ``std``
        """
        actions, deviation, std, two_var, exponent, one_minus_square = ctx.saved_tensors
        grad = grad_log_prob.unsqueeze(-1)
        # Of -log(1 - a^2 + epsilon): 2 a / (1 - a^2 + epsilon)
        grad_actions = grad_actions + (grad / one_minus_square).mul_(actions + actions)
        # Of the exponent, -(x - mean)^2 / (2 var): with respect to x, mean and 2 var
        grad_mean = (grad / two_var).mul_(deviation + deviation)
        grad_x = th.ops.aten.tanh_backward(grad_actions, actions).sub_(grad_mean)
        grad_two_var = (exponent / two_var).mul_(-grad)
        # Draws come first
        grad_mean, grad_two_var = (_sum_to(tensor, std) for tensor in (grad_mean, grad_two_var))
        grad_std = -_sum_to(grad.expand_as(actions), std) / std
        grad_std += (grad_two_var + grad_two_var).mul_(std + std)
        return grad_x, grad_mean, grad_std


def _sum_to(tensor: th.Tensor, like: th.Tensor) -> th.Tensor:
    return tensor.sum(dim=0) if tensor.dim() > like.dim() else tensor


class StateDependentNoisePolicy(PolicyDistribution):
    """
    gSDE's policy. Its log-probability is SB3's, which takes the squashed action back through a clamped atanh, because
    PathwiseAC would otherwise part from SAC (by 2e-5 after 150 updates, for one seed in six). No score is ever taken there:
    routes differentiate ``base.log_prob`` at the pre-squash actions themselves.
    """

    def log_prob(self, x: th.Tensor, actions: th.Tensor) -> th.Tensor:
        x = TanhBijector.inverse(actions)
        return super().log_prob(x, self.squash(x))


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

    policy_dist: PolicyDistribution

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

    def draw(self) -> th.Tensor:
        """
        :return: pre-squash actions, shape (B, d)
        """
        base = self.policy_dist.base
        return base.rsample() if base.has_rsample else base.sample()

    def sample(self) -> th.Tensor:
        return self.policy_dist.squash(self.draw())

    def mode(self) -> th.Tensor:
        return self.policy_dist.squash(self.policy_dist.base.mean)

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return self.policy_dist.log_prob(self.policy_dist.squash.inv(actions), actions)

    def entropy(self) -> th.Tensor | None:
        return None

    def actions_from_params(self, params: th.Tensor, deterministic: bool = False) -> th.Tensor:  # type: ignore[override]
        return self.proba_distribution(params).get_actions(deterministic=deterministic)

    def log_prob_from_params(self, params: th.Tensor) -> tuple[th.Tensor, th.Tensor]:  # type: ignore[override]
        x = self.proba_distribution(params).draw()
        actions = self.policy_dist.squash(x)
        return actions, self.policy_dist.log_prob(x, actions)


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

    def mode(self) -> th.Tensor:
        """
        The mean of the most probable component. (The policy, which knows Q, prefers the best one.)

        :return: actions, shape (B, d)
        """
        base = cast(MixtureSameFamily, self.policy_dist.base)
        best = base.mixture_distribution.logits.argmax(dim=1)
        return self.component_means()[th.arange(len(best)), best]

    def component_means(self) -> th.Tensor:
        """
        :return: squashed means of the components, shape (B, n_components, d)
        """
        base = cast(MixtureSameFamily, self.policy_dist.base)
        return self.policy_dist.squash(base.component_distribution.mean)


def policy_distribution(actor: Actor, obs: PyTorchObs) -> PolicyDistribution:
    """
    The distribution that an actor (SB3's, or one of ours) defines at the given observations.

    :param actor: Actor network
    :param obs: Observations, batch size B
    :return: The distribution, split at its squashing function
    """
    action_dist: Any = actor.action_dist
    if isinstance(action_dist, SplitDistribution):
        return action_dist.policy_distribution(cast(Any, actor).dist_params(obs))
    mean_actions, log_std, kwargs = actor.get_action_dist_params(obs)
    if isinstance(action_dist, StateDependentNoiseDistribution):
        action_dist.proba_distribution(mean_actions, log_std, **kwargs)
        return StateDependentNoisePolicy(StateDependentNoise(action_dist, kwargs["latent_sde"]), SACTanh())
    return squashed_gaussian(mean_actions, log_std)


def squashed_gaussian(mean_actions: th.Tensor, log_std: th.Tensor) -> PolicyDistribution:
    """
    SAC's policy.

    :param mean_actions: Means before squashing, shape (B, d)
    :param log_std: Log standard deviations, to be clamped, shape (B, d)
    :return: The distribution, split at its squashing function
    """
    # clamp(), but for its derivative being one operation instead of five
    log_std = F.hardtanh(log_std, LOG_STD_MIN, LOG_STD_MAX)
    return SquashedGaussianPolicy(independent(LeanNormal(mean_actions, log_std.exp())), SACTanh())
