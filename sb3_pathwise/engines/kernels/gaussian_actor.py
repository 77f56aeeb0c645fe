"""SAC's actor, from features to mean and log standard deviation, differentiated by hand."""

import torch as th
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.sac.policies import Actor

from sb3_pathwise.engines.kernels.adam import AdamKernel
from sb3_pathwise.engines.kernels.mlp import MLP, linear_layers, reason_not_mlp


class GaussianActor:
    """
    The actor's network, its two heads being one layer.

    :param actor: Actor, for which ``reason_not`` is ``None``
    :param adam: Its optimizer
    :param low_dtype: dtype of the products between hidden layers, if it is another one
    """

    def __init__(self, actor: Actor, adam: AdamKernel, low_dtype: th.dtype | None) -> None:
        grads = dict(zip(adam.params, adam.grads, strict=True))
        hidden = linear_layers(actor.latent_pi)  # type: ignore[arg-type]
        self.heads = [(head.weight, head.bias) for head in (actor.mu, actor.log_std)]
        self.head_grads = [(grads[weight], grads[bias]) for weight, bias in self.heads]
        joint, joint_grads = (tuple(map(th.cat, zip(*parts, strict=True))) for parts in (self.heads, self.head_grads))
        self.joint: tuple[th.Tensor, ...] = tuple(part.detach() for part in joint)
        self.joint_grads = joint_grads
        layers = [(layer.weight, layer.bias) for layer in hidden]
        self.mlp = MLP(
            [*layers, self.joint],  # type: ignore[list-item]
            [*((grads[weight], grads[bias]) for weight, bias in layers), joint_grads],  # type: ignore[list-item]
            low_dtype,
        )

    @staticmethod
    def reason_not(actor: Actor) -> str | None:
        """
        :param actor: Any actor
        :return: why it is not SAC's own, or ``None``
        """
        if type(actor) is not Actor:
            return f"the actor is a {type(actor).__name__}, not SAC's"
        if type(actor.action_dist) is not SquashedDiagGaussianDistribution:
            return f"its distribution is {type(actor.action_dist).__name__}, not a squashed Gaussian"
        if any(type(head) is not th.nn.Linear or head.bias is None for head in (actor.mu, actor.log_std)):
            return "its heads are not Linear"
        return reason_not_mlp(actor.latent_pi)

    @th.no_grad()
    def refresh(self) -> None:
        """To be called when the parameters have changed."""
        for joint, parts in zip(self.joint, zip(*self.heads, strict=True), strict=True):
            th.cat(parts, out=joint)
        self.mlp.refresh()

    def forward(self, features: th.Tensor) -> tuple[list[th.Tensor], th.Tensor, th.Tensor]:
        """
        :param features: shape (B, features_dim)
        :return: for ``backward``; mean and log standard deviation, before SAC clamps it, shape (B, d)
        """
        activations = self.mlp.forward(features)
        mean_actions, log_std = activations.pop().chunk(2, dim=1)
        return activations, mean_actions, log_std

    def backward(self, grads: tuple[th.Tensor, th.Tensor], activations: list[th.Tensor]) -> None:
        """
        Write the gradients of all parameters.

        :param grads: Gradients with respect to mean and log standard deviation
        :param activations: What ``forward`` returned
        """
        self.mlp.backward(th.cat(grads, dim=1), activations, weights=True)
        for joint, parts in zip(self.joint_grads, zip(*self.head_grads, strict=True), strict=True):
            th._foreach_copy_(list(parts), list(joint.chunk(2)))
