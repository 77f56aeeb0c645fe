"""SAC's critic: the loss and its gradient, and the smallest of the networks as a function of the action."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch as th
from stable_baselines3.common.policies import ContinuousCritic

from sb3_pathwise.critics import ActionValue, Critic
from sb3_pathwise.critics.twin import TwinCritic
from sb3_pathwise.engines.kernels.adam import AdamKernel
from sb3_pathwise.engines.kernels.linear import Workspace
from sb3_pathwise.engines.kernels.mlp import MLP, parameters, reason_not_mlp

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic


class TwinKernel:
    """
    ``critics/twin.py`` by hand.

    :param model: The model, for which ``reason_not`` is ``None``
    :param adam: The critics' optimizer
    :param workspace: Memory for intermediate results
    :param low_dtype: dtype of the products between hidden layers, if it is another one
    """

    rule: type[Critic] = TwinCritic

    def __init__(self, model: "ActorCritic", adam: AdamKernel, workspace: Workspace, low_dtype: th.dtype | None) -> None:
        layers = [parameters(q_net) for q_net in model.critic.q_networks]
        self.networks = [MLP(part, workspace, adam.grads_of(part), low_dtype) for part in layers]
        self.targets = [MLP(parameters(q_net), workspace, None, low_dtype) for q_net in model.critic_target.q_networks]
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
        critics: list[Any] = [model.critic, model.critic_target]
        reason = reason_not_networks(critics, ContinuousCritic, reason_not_mlp)
        if reason is None and len(critics[0].q_networks) != len(critics[1].q_networks):
            return "there are more critics than targets, or fewer"
        return reason

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
        ent_coef: float,
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        The loss, its gradient being written.

        :param inputs: Features and actions, shape (B, features_dim + d)
        :param next_inputs: The same at the next state
        :param next_log_prob: Log-probability of the next actions, shape (B,)
        :param rewards: shape (B, 1)
        :param discounts: What the value of the next state counts, 0 at the end of an episode, shape (B, 1)
        :param ent_coef: Entropy coefficient
        :return: loss, a scalar; the target, shape (B, 1)
        """
        next_q_values = smallest([network.forward(next_inputs).output for network in self.targets])
        next_q_values = th.sub(next_q_values, next_log_prob.unsqueeze(1), alpha=ent_coef)
        target_q_values = th.addcmul(rewards, discounts, next_q_values)
        losses = []
        for network in self.networks:
            trace = network.forward(inputs)
            td_error = trace.output.sub_(target_q_values)
            losses.append(th.dot(td_error.view(-1), td_error.view(-1)))
            # Of half the squared error, averaged over the batch
            network.backward(td_error.mul_(1 / inputs.shape[0]), trace)
        return th.stack(losses).sum().mul_(0.5 / inputs.shape[0]), target_q_values

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

        return smallest_q(self.networks, features)


def reason_not_networks(critics: list[Any], stock: type[Any], reason_not: Callable[[Any], str | None]) -> str | None:
    """
    :param critics: Critics
    :param stock: Their class
    :param reason_not: Says of a network what of it is not known
    :return: why they are not of that class, with known networks, or ``None``
    """
    for critic in critics:
        kind: type[Any] = type(critic)
        if kind is not stock:
            return f"a critic is a {kind.__name__}, not a {stock.__name__}"
        names = [f"qf{i}" for i in range(len(critic.q_networks))]
        if any(getattr(critic, name, None) is not q_net for name, q_net in zip(names, critic.q_networks, strict=True)):
            return "critic.q_networks and critic.qf0, qf1, ... are not the same networks"
        for q_net in critic.q_networks:
            reason = reason_not(q_net)
            if reason is not None:
                return f"of a critic, {reason}"
    return None


def smallest_q(networks: list[MLP], features: th.Tensor) -> ActionValue:
    """
    :param networks: Critics
    :param features: shape (B, features_dim)
    :return: the smallest of them, as a function of the actions
    """

    def value(actions: th.Tensor) -> th.Tensor:
        if th.is_grad_enabled() and actions.requires_grad:
            return SmallestQ.apply(actions, features, networks)
        # One sample at a time, so that activations stay in the cache
        inputs = th.cat([features, actions[0]], dim=1)
        values = []
        for a in actions:
            inputs[:, features.shape[1] :] = a
            values.append(smallest([network.forward(inputs).output for network in networks]))
        return th.cat(values, dim=1).t()

    return value


class SmallestQ(th.autograd.Function):
    """The smallest of the critics as a function of the action: no gradient is spent on weights, nor on the other critics."""

    @staticmethod
    def forward(ctx: Any, actions: th.Tensor, features: th.Tensor, networks: list[MLP]) -> th.Tensor:  # type: ignore[override]
        """
        :param ctx: What ``backward`` needs to know
        :param actions: shape (n, B, d)
        :param features: shape (B, features_dim)
        :param networks: The critics
        :return: values, shape (n, B)
        """
        results = [_smallest_with_gradient(th.cat([features, a], dim=1), features.shape[1], networks) for a in actions]
        values, gradients = zip(*results, strict=True)
        ctx.save_for_backward(th.stack(gradients))
        return th.stack(values)

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor, None, None]:  # type: ignore[override]
        """
        :param ctx: What ``forward`` left
        :param grad: Gradient with respect to the values
        :return: gradient with respect to the actions
        """
        # Itself differentiable: between the kinks of its ReLUs, a network's gradient does not change
        (gradient,) = ctx.saved_tensors
        return gradient * grad.unsqueeze(-1), None, None


def _smallest_with_gradient(inputs: th.Tensor, first_action: int, networks: list[MLP]) -> tuple[th.Tensor, th.Tensor]:
    # The gradient at once, while weights and activations are in the cache: a value depends on its own action only
    traces = [network.forward(inputs, name=i) for i, network in enumerate(networks)]
    outputs = [trace.output for trace in traces]
    gradient = th.empty_like(inputs[:, first_action:])
    for i, (network, trace) in enumerate(zip(networks, traces, strict=True)):
        # Of equal values the first counts, as in th.min()
        is_smallest = None
        for j, other in enumerate(outputs):
            if j != i:
                comparison = th.lt(outputs[i], other) if j < i else th.le(outputs[i], other)
                is_smallest = comparison if is_smallest is None else is_smallest & comparison
        hidden = trace.hidden
        if is_smallest is not None:
            rows = is_smallest.view(-1).nonzero().view(-1)
            n_rows = rows.shape[0]
            hidden = [
                th.index_select(part, 0, rows, out=network.workspace.get(("rows", j), n_rows, part.shape[1], part.dtype))
                for j, part in enumerate(hidden)
            ]
        part = network.input_gradient(network.layers[-1][0][0], hidden, slice(first_action, None))
        if is_smallest is None:
            return outputs[0].squeeze(1), part.expand_as(gradient)
        gradient.index_copy_(0, rows, part.expand(n_rows, -1))
    return smallest(outputs).squeeze(1), gradient


def smallest(q_values: list[th.Tensor]) -> th.Tensor:
    """
    :param q_values: of each critic, shape (B, 1)
    :return: the smallest
    """
    smallest = q_values[0]
    for other in q_values[1:]:
        smallest = th.minimum(smallest, other)
    return smallest
