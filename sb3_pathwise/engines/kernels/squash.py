"""SAC's squashed Gaussian: a draw with its log-probability, differentiated by hand."""

import math
from typing import Any

import torch as th
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch.autograd.function import once_differentiable

_LOG_SQRT_2PI = math.log(math.sqrt(2 * math.pi))


def squash(
    mean_actions: th.Tensor, log_std: th.Tensor, noise: th.Tensor, epsilon: float
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    ``x = mean + exp(log_std) * noise``, ``a = tanh(x)``, ``log pi(a) = log N(x; mean, std) - log(1 - a^2 + epsilon)``.

    :param mean_actions: shape (B, d)
    :param log_std: Log standard deviations, clamped already, shape (B, d)
    :param noise: Standard normal, shape (B, d)
    :param epsilon: SB3's ``SquashedDiagGaussianDistribution.epsilon``
    :return: pre-squash actions and actions, shape (B, d), and their log-probability, shape (B,)
    """
    x = th.addcmul(mean_actions, log_std.exp(), noise)
    actions = th.tanh(x)
    # The exponent, the standard deviation and the squashing, for each coordinate
    terms = (noise * noise).mul_(-0.5).sub_(log_std).sub_(_slope(actions, epsilon).log_())
    return x, actions, terms.sum(dim=1).sub_(noise.shape[1] * _LOG_SQRT_2PI)


def _slope(actions: th.Tensor, epsilon: float) -> th.Tensor:
    return (1 - actions * actions).add_(epsilon)


class SquashedGaussianDraw(th.autograd.Function):
    """``squash`` as one step of the graph, from the outputs of the network."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, mean_actions: th.Tensor, log_std: th.Tensor, noise: th.Tensor, epsilon: float
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param ctx: What ``backward`` needs to know
        :param mean_actions: shape (B, d)
        :param log_std: Log standard deviations, not yet clamped, shape (B, d)
        :param noise: Standard normal, shape (B, d)
        :param epsilon: As in ``squash``
        :return: as ``squash``
        """
        clamped = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        x, actions, log_prob = squash(mean_actions, clamped, noise, epsilon)
        ctx.save_for_backward(log_std, clamped, noise, actions)
        ctx.epsilon = epsilon
        ctx.set_materialize_grads(False)
        return x, actions, log_prob

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad_x: th.Tensor | None, grad_actions: th.Tensor | None, grad_log_prob: th.Tensor | None
    ) -> tuple[th.Tensor | None, ...]:
        """
        :param ctx: What ``forward`` left
        :param grad_x: Gradient with respect to the pre-squash actions
        :param grad_actions: Gradient with respect to the actions
        :param grad_log_prob: Gradient with respect to the log-probabilities
        :return: gradients with respect to mean and log standard deviation
        """
        log_std, clamped, noise, actions = ctx.saved_tensors
        if grad_log_prob is not None:
            grad_log_prob = grad_log_prob.unsqueeze(1)
            # Through the action: d -log(1 - a^2 + epsilon) / da. Through the Gaussian, mean and draw cancel
            through_actions = grad_log_prob * (2 * actions).div_(_slope(actions, ctx.epsilon))
            grad_actions = through_actions if grad_actions is None else through_actions.add_(grad_actions)
        grad_mean = grad_x
        if grad_actions is not None:
            grad_mean = th.ops.aten.tanh_backward(grad_actions, actions)
            grad_mean = grad_mean if grad_x is None else grad_mean.add_(grad_x)
        if grad_mean is None:
            return None, None, None, None
        grad_log_std = (grad_mean * noise).mul_(clamped.exp())
        if grad_log_prob is not None:
            grad_log_std.sub_(grad_log_prob)
        return grad_mean, grad_log_std.masked_fill_(log_std != clamped, 0.0), None, None
