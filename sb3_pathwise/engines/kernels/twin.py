"""SAC's critic: the loss and its gradient, and the smallest of the networks as a function of the action."""

from typing import TYPE_CHECKING, Any

import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from torch.autograd.function import once_differentiable

from sb3_pathwise.critics import ActionValue
from sb3_pathwise.critics.twin import TwinCritic
from sb3_pathwise.engines.kernels.adam import AdamKernel
from sb3_pathwise.engines.kernels.mlp import MLP, linear_layers, reason_not_mlp

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic


class TwinKernel:
    """
    ``critics/twin.py`` by hand.

    :param model: The model, for which ``reason_not`` is ``None``
    :param adam: The critics' optimizer
    :param low_dtype: dtype of the products between hidden layers, if it is another one
    """

    def __init__(self, model: "ActorCritic", adam: AdamKernel, low_dtype: th.dtype | None) -> None:
        grads = dict(zip(adam.params, adam.grads, strict=True))
        self.networks = [MLP(_layers(q_net), None, low_dtype) for q_net in model.critic.q_networks]
        for network in self.networks:
            network.grads = [(grads[weight], grads[bias]) for weight, bias in network.layers]  # type: ignore[index]
        self.targets = [MLP(_layers(q_net), None, low_dtype) for q_net in model.critic_target.q_networks]
        self.params, self.target_params = (
            [param for network in networks for layer in network.layers for param in layer]
            for networks in (self.networks, self.targets)
        )

    @staticmethod
    def reason_not(model: "ActorCritic") -> str | None:
        """
        :param model: Any model
        :return: why its critic is not SAC's own, or ``None``
        """
        if type(model.critic_rule) is not TwinCritic:
            return f"of the critic {type(model.critic_rule).__name__} it knows nothing"
        for critic in (model.critic, model.critic_target):
            if type(critic) is not ContinuousCritic:
                return f"a critic is a {type(critic).__name__}, not SAC's"
            if [id(getattr(critic, f"qf{i}", None)) for i in range(len(critic.q_networks))] != list(
                map(id, critic.q_networks)
            ):
                return "critic.q_networks and critic.qf0, qf1, ... are not the same networks"
            for q_net in critic.q_networks:
                reason = reason_not_mlp(q_net)
                if reason is not None:
                    return f"of a critic, {reason}"
        if len(model.critic.q_networks) != len(model.critic_target.q_networks):
            return "there are more critics than targets, or fewer"
        return None

    def refresh(self) -> None:
        """To be called when the critics' parameters have changed."""
        for network in self.networks:
            network.refresh()

    def refresh_targets(self) -> None:
        """To be called when the targets' parameters have changed."""
        for network in self.targets:
            network.refresh()

    def loss(
        self,
        inputs: th.Tensor,
        next_inputs: th.Tensor,
        next_log_prob: th.Tensor,
        rewards: th.Tensor,
        discounts: th.Tensor,
        ent_coef: th.Tensor,
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        The loss, its gradient being written.

        :param inputs: Features and actions, shape (B, features_dim + d)
        :param next_inputs: The same at the next state
        :param next_log_prob: Log-probability of the next actions, shape (B,)
        :param rewards: shape (B, 1)
        :param discounts: What the value of the next state counts, 0 at the end of an episode, shape (B, 1)
        :param ent_coef: Entropy coefficient, a scalar
        :return: loss, a scalar; the target, shape (B, 1)
        """
        next_q_values = _smallest([network.forward(next_inputs)[-1] for network in self.targets])
        next_q_values = next_q_values - (ent_coef * next_log_prob).unsqueeze(1)
        target_q_values = th.addcmul(rewards, discounts, next_q_values)
        losses = []
        for network in self.networks:
            activations = network.forward(inputs)
            td_error = activations.pop().sub_(target_q_values)
            losses.append(th.linalg.vector_norm(td_error))
            # Of half the squared error, averaged over the batch
            network.backward(td_error.mul_(1 / len(td_error)), activations, weights=True)
        return th.stack(losses).square_().sum().mul_(0.5 / len(inputs)), target_q_values

    def follow(self, tau: float) -> None:
        """
        The targets follow.

        :param tau: The soft update coefficient
        """
        th._foreach_lerp_(self.target_params, self.params, tau)
        self.refresh_targets()

    def value(self, features: th.Tensor) -> ActionValue:
        """
        :param features: shape (B, features_dim)
        :return: as ``critics.twin.min_q_values``
        """

        def value(actions: th.Tensor) -> th.Tensor:
            if th.is_grad_enabled() and actions.requires_grad:
                states = features if len(actions) == 1 else features.repeat(len(actions), 1)
                return SmallestQ.apply(actions.flatten(end_dim=1), states, self.networks).view(actions.shape[:-1])
            # One sample at a time, so that activations stay in the cache
            inputs = th.cat([features, actions[0]], dim=1)
            values = []
            for a in actions:
                inputs[:, features.shape[1] :] = a
                values.append(_smallest([network.forward(inputs)[-1] for network in self.networks]))
            return th.cat(values, dim=1).t()

        return value


class SmallestQ(th.autograd.Function):
    """The smallest of the critics as a function of the action: no gradient is spent on weights, nor on the other critics."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, actions: th.Tensor, features: th.Tensor, networks: list[MLP]
    ) -> th.Tensor:
        """
        :param ctx: What ``backward`` needs to know
        :param actions: shape (B, d)
        :param features: shape (B, features_dim)
        :param networks: The critics
        :return: values, shape (B,)
        """
        inputs = th.cat([features, actions], dim=1)
        traces = [network.forward(inputs) for network in networks]
        values, ctx.indices = th.cat([trace.pop() for trace in traces], dim=1).min(dim=1)
        ctx.traces, ctx.networks, ctx.columns = traces, networks, slice(features.shape[1], None)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor, None, None]:  # type: ignore[override]
        """
        :param ctx: What ``forward`` left
        :param grad: Gradient with respect to the values
        :return: gradient with respect to the actions
        """
        grad = grad.unsqueeze(1)
        grad_actions = grad.new_zeros(len(grad), ctx.traces[0][0].shape[1] - ctx.columns.start)
        for i, (network, trace) in enumerate(zip(ctx.networks, ctx.traces, strict=True)):
            rows = (ctx.indices == i).nonzero().squeeze(1)
            if len(rows) > 0:
                activations = [activation.index_select(0, rows) for activation in trace]
                grad_actions[rows] = network.backward(
                    grad.index_select(0, rows), activations, weights=False, columns=ctx.columns
                ).to(grad.dtype)
        return grad_actions, None, None


def _layers(q_net: th.nn.Module) -> list[tuple[th.Tensor, th.Tensor]]:
    return [(layer.weight, layer.bias) for layer in linear_layers(q_net)]  # type: ignore[arg-type]


def _smallest(q_values: list[th.Tensor]) -> th.Tensor:
    smallest = q_values[0]
    for other in q_values[1:]:
        smallest = th.minimum(smallest, other)
    return smallest
