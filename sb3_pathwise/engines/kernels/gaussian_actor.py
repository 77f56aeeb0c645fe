"""SAC's actor, from features to mean and log standard deviation, differentiated by hand; CrossQ's, too."""

from collections.abc import Sequence
from typing import Any

import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm1d
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.sac.policies import Actor

from sb3_pathwise.engines.kernels.adam import AdamKernel
from sb3_pathwise.engines.kernels.linear import Workspace
from sb3_pathwise.engines.kernels.mlp import MLP, Layer, Trace, parameters, reason_not_mlp
from sb3_pathwise.engines.kernels.normalized import NormalizedMLP, reason_not_normalized


class GaussianActor:
    """
    The actor's network, its two heads being one layer.

    :param actor: Actor, for which ``reason_not`` is ``None``
    :param adam: Its optimizer
    :param workspace: Memory for intermediate results
    :param low_dtype: dtype of the products between hidden layers, if it is another one
    """

    def __init__(self, actor: Actor, adam: AdamKernel, workspace: Workspace, low_dtype: th.dtype | None) -> None:
        layers = parameters(actor.latent_pi)
        heads: list[Any] = [actor.mu, actor.log_std]
        self.heads: list[Layer] = [(head.weight, head.bias) for head in heads]
        self.head_grads = adam.grads_of(self.heads)
        self.joint, self.joint_grads = _joint(self.heads), _joint(self.head_grads)
        all_layers, all_grads = [*layers, self.joint], [*adam.grads_of(layers), self.joint_grads]
        norms = [child for child in actor.latent_pi.children() if isinstance(child, BatchRenorm1d)]
        #: Whether it is normalised: then it learns from other outputs than it acts by
        self.normalized = NormalizedMLP(norms, all_layers, adam, all_grads, workspace, low_dtype) if norms else None
        self.mlp = self.normalized.folded if self.normalized else MLP(all_layers, workspace, all_grads, low_dtype)

    @staticmethod
    def reason_not(actor: Actor) -> str | None:
        """
        :param actor: Any actor
        :return: why it is neither SAC's nor CrossQ's own, or ``None``
        """
        if type(actor) is not Actor:
            return f"the actor is a {type(actor).__name__}, not SAC's"
        if type(actor.action_dist) is not SquashedDiagGaussianDistribution:
            return f"its distribution is {type(actor.action_dist).__name__}, not a squashed Gaussian"
        if any(map(callable, vars(actor.action_dist).values())):
            return "a method of its distribution is overridden"
        if any(type(head) is not th.nn.Linear or head.bias is None for head in (actor.mu, actor.log_std)):
            return "its heads are not Linear"
        if any(isinstance(child, BatchRenorm1d) for child in actor.latent_pi.children()):
            return reason_not_normalized(actor.latent_pi, n_linear_after=1)
        return reason_not_mlp(actor.latent_pi)

    @th.no_grad()
    def refresh(self) -> None:
        """To be called when the parameters have changed."""
        for joint, parts in zip(self.joint, zip(*self.heads, strict=True), strict=True):
            th.cat(parts, out=joint)
        if self.normalized is None:
            self.mlp.refresh()
        else:
            self.normalized.fold()

    def act(self, features: th.Tensor) -> Trace:
        """
        :param features: shape (B, features_dim)
        :return: the output being mean and log standard deviation, before SAC clamps it, shape (B, 2 d), and, of an actor that
            is not normalised, what ``backward`` needs
        """
        return self.mlp.forward(features, name="actor")

    def learn(self, features: th.Tensor) -> tuple[Any, th.Tensor]:
        """
        :param features: shape (B, features_dim)
        :return: for ``backward``; mean and log standard deviation, shape (B, 2 d), of a normalised actor by the batch's
            statistics
        """
        if self.normalized is not None:
            return self.normalized.forward(features, name="actor")
        trace = self.act(features)
        return trace, trace.output

    def backward(self, grads: Sequence[th.Tensor], trace: Any) -> None:
        """
        Write the gradients of all parameters.

        :param grads: Gradients with respect to mean and log standard deviation
        :param trace: What ``learn`` returned, or ``act``
        """
        grad = th.cat(tuple(grads), dim=1)
        if self.normalized is not None:
            self.normalized.backward(grad, trace, grad.shape[0])
        else:
            self.mlp.backward(grad, trace)
        for joint, parts in zip(self.joint_grads, zip(*self.head_grads, strict=True), strict=True):
            th._foreach_copy_(list(parts), list(joint.chunk(2)))


def _joint(layers: list[Layer]) -> Layer:
    weights, biases = zip(*layers, strict=True)
    return th.cat(weights).detach(), th.cat(biases).detach()
