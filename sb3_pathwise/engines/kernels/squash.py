"""SAC's squashed Gaussian: a draw with its log-probability, differentiated by hand."""

import math
from typing import Any, cast

import torch as th
from stable_baselines3.sac import policies as sac_policies
from torch.autograd.function import once_differentiable
from torch.distributions import Independent, Normal

_LOG_SQRT_2PI = math.log(math.sqrt(2 * math.pi))


def clamp(log_std: th.Tensor) -> th.Tensor:
    """
    :param log_std: Log standard deviations
    :return: the same, within SAC's bounds as they are now
    """
    return log_std.clamp(sac_policies.LOG_STD_MIN, sac_policies.LOG_STD_MAX)


def squash(
    mean_actions: th.Tensor, log_std: th.Tensor, noise: th.Tensor, epsilon: float
) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
    """
    ``x = mean + exp(log_std) * noise``, ``a = tanh(x)``, ``log pi(a) = log N(x; mean, std) - log(1 - a^2 + epsilon)``.

    :param mean_actions: shape (B, d)
    :param log_std: Log standard deviations, clamped already, shape (B, d)
    :param noise: Standard normal, shape (B, d)
    :param epsilon: SB3's ``SquashedDiagGaussianDistribution.epsilon``
    :return: pre-squash actions and actions, shape (B, d); their log-probability, shape (B,); standard deviation and
        ``1 - a^2 + epsilon``, shape (B, d)
    """
    std = log_std.exp()
    x = th.addcmul(mean_actions, std, noise)
    actions = th.tanh(x)
    slope = (1 - actions * actions).add_(epsilon)
    # The exponent, the standard deviation and the squashing, for each coordinate
    terms = th.addcmul(log_std + slope.log(), noise, noise, value=0.5)
    return x, actions, terms.sum(dim=1).add_(noise.shape[1] * _LOG_SQRT_2PI).neg_(), std, slope


class SquashedGaussianDraw(th.autograd.Function):
    """``squash`` as one step of the graph, from the outputs of the network."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, mean_actions: th.Tensor, log_std: th.Tensor, noise: th.Tensor, epsilon: float
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        """
        :param ctx: What ``backward`` needs to know
        :param mean_actions: shape (B, d)
        :param log_std: Log standard deviations, not yet clamped, shape (B, d)
        :param noise: Standard normal, shape (B, d)
        :param epsilon: As in ``squash``
        :return: pre-squash actions, actions, log-probabilities and standard deviations, as ``squash``
        """
        clamped = clamp(log_std)
        x, actions, log_prob, std, slope = squash(mean_actions, clamped, noise, epsilon)
        # Where the clamp bites, nothing passes
        ctx.save_for_backward(noise, actions, std * (clamped == log_std), slope)
        ctx.set_materialize_grads(False)
        return x, actions, log_prob, std

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any,
        grad_x: th.Tensor | None,
        grad_actions: th.Tensor | None,
        grad_log_prob: th.Tensor | None,
        grad_std: th.Tensor | None,
    ) -> tuple[th.Tensor | None, ...]:
        """
        :param ctx: What ``forward`` left
        :param grad_x: Gradient with respect to the pre-squash actions
        :param grad_actions: Gradient with respect to the actions
        :param grad_log_prob: Gradient with respect to the log-probabilities
        :param grad_std: Gradient with respect to the standard deviations
        :return: gradients with respect to mean and log standard deviation
        """
        noise, actions, std, slope = ctx.saved_tensors
        if grad_log_prob is not None:
            grad_log_prob = grad_log_prob.unsqueeze(1)
            # Through the action: d -log(1 - a^2 + epsilon) / da. Through the Gaussian, mean and draw cancel
            through_actions = (actions / slope).mul_(2 * grad_log_prob)
            grad_actions = through_actions if grad_actions is None else through_actions.add_(grad_actions)
        if grad_actions is not None:
            through_tanh = th.ops.aten.tanh_backward(grad_actions, actions)
            grad_x = through_tanh if grad_x is None else through_tanh.add_(grad_x)
        # With respect to the standard deviation: through the draw, and of -log(std) in the log-probability
        if grad_x is not None:
            grad_std = grad_x * noise if grad_std is None else th.addcmul(grad_std, grad_x, noise)
        grad_log_std = None if grad_std is None else grad_std * std
        if grad_log_prob is not None:
            grad_log_std = th.where(std > 0, cast(th.Tensor, grad_log_std) - grad_log_prob, 0.0)
        return grad_x, grad_log_std, None, None


def diagonal_gaussian(mean: th.Tensor, std: th.Tensor) -> Independent:
    """
    ``Independent(Normal(mean, std), 1)`` without the broadcasting and the checks at its creation, which take longer than a
    draw.

    :param mean: shape (B, d)
    :param std: shape (B, d)
    :return: the distribution
    """
    normal = object.__new__(Normal)
    normal.loc, normal.scale, normal._validate_args = mean, std, False
    normal._batch_shape, normal._event_shape = mean.shape, th.Size()
    gaussian = object.__new__(Independent)
    gaussian.base_dist, gaussian.reinterpreted_batch_ndims, gaussian._validate_args = normal, 1, False
    gaussian._batch_shape, gaussian._event_shape = mean.shape[:1], mean.shape[1:]
    return gaussian
