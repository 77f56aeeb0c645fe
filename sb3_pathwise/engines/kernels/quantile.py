"""TQC's critic: the quantile Huber loss and its gradient, and the mean of all quantiles as a function of the action."""

from typing import TYPE_CHECKING, Any

import torch as th
from sb3_contrib.tqc.policies import Critic as QuantileNetworks

from sb3_pathwise.critics import ActionValue, Critic
from sb3_pathwise.critics.quantile import QuantileCritic
from sb3_pathwise.engines.kernels.adam import AdamKernel
from sb3_pathwise.engines.kernels.linear import Workspace
from sb3_pathwise.engines.kernels.mlp import MLP, reason_not_mlp
from sb3_pathwise.engines.kernels.twin import TwinKernel, reason_not_networks

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic

# Pairs of quantiles at a time: as many as stay in the cache
_N_PAIRS = 75_000


class QuantileKernel(TwinKernel):
    """
    ``critics/quantile.py`` by hand. Networks and targets are laid out as SAC's.

    :param model: The model, for which ``reason_not`` is ``None``
    :param adam: The critics' optimizer
    :param workspace: Memory for intermediate results
    :param low_dtype: dtype of the products of the layers before the last, if it is another one
    """

    rule: type[Critic] = QuantileCritic

    def __init__(self, model: "ActorCritic", adam: AdamKernel, workspace: Workspace, low_dtype: th.dtype | None) -> None:
        super().__init__(model, adam, workspace, low_dtype)
        rule: Any = model.critic_rule
        self.n_dropped = rule.top_quantiles_to_drop_per_net * len(self.networks)
        self.workspace = workspace

    @staticmethod
    def reason_not(model: "ActorCritic") -> str | None:
        """
        :param model: Any model
        :return: why its critic is not TQC's, or ``None``
        """
        critics: list[Any] = [model.critic, model.critic_target]
        reason = reason_not_networks(critics, QuantileNetworks, reason_not_mlp)
        if reason is None and len(critics[0].q_networks) != len(critics[1].q_networks):
            return "there are more critics than targets, or fewer"
        return reason

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
        The loss, its gradient being written, as ``TwinKernel.loss``.

        :param inputs: Features and actions, shape (B, features_dim + d)
        :param next_inputs: The same at the next state
        :param next_log_prob: Log-probability of the next actions, shape (B,)
        :param rewards: shape (B, 1)
        :param discounts: What the value of the next state counts, 0 at the end of an episode, shape (B, 1)
        :param ent_coef: Entropy coefficient
        :return: loss, a scalar; the target quantiles, shape (B, number that is not dropped)
        """
        pooled = th.cat([network.forward(next_inputs).output for network in self.targets], dim=1)
        next_quantiles = pooled.sort(dim=1).values[:, : pooled.shape[1] - self.n_dropped]
        next_quantiles = th.sub(next_quantiles, next_log_prob.unsqueeze(1), alpha=ent_coef)
        target_quantiles = th.addcmul(rewards, discounts, next_quantiles)
        losses = []
        for network in self.networks:
            trace = network.forward(inputs)
            loss, grad = self._quantile_huber_loss(trace.output, target_quantiles)
            losses.append(loss)
            network.backward(grad.div_(len(self.networks)), trace)
        return th.stack(losses).mean(), target_quantiles

    def _quantile_huber_loss(self, quantiles: th.Tensor, targets: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        sb3-contrib's ``quantile_huber_loss(sum_over_quantiles=False)`` of one network, and its gradient.

        :param quantiles: shape (B, n_quantiles)
        :param targets: shape (B, n_targets)
        :return: mean over all pairs, a scalar; its gradient with respect to the quantiles, shape (B, n_quantiles)
        """
        n_rows, n_quantiles = quantiles.shape
        n_pairs = n_quantiles * targets.shape[1]
        # In single precision, as sb3-contrib's
        cum_prob = ((th.arange(n_quantiles, dtype=th.float32) + 0.5) / n_quantiles).unsqueeze(1)
        above, below = cum_prob.to(quantiles.dtype), (1 - cum_prob).to(quantiles.dtype)
        rows = max(1, _N_PAIRS // n_pairs)
        grad, loss = th.empty_like(quantiles), quantiles.new_zeros(())
        for first in range(0, n_rows, rows):
            part = slice(first, first + rows)
            n = min(rows, n_rows - first)
            delta, clipped, weight = (
                self.workspace.get((name, n_quantiles), n, n_pairs, quantiles.dtype).view(n, n_quantiles, -1)
                for name in ("delta", "clipped", "weight")
            )
            th.sub(targets[part].unsqueeze(1), quantiles[part].unsqueeze(2), out=delta)
            th.clamp(delta, -1.0, 1.0, out=clipped)
            # |cum_prob - (delta < 0)|
            th.where(delta < 0, below, above, out=weight)
            # The derivative of the Huber loss, which itself is clipped * (delta - clipped / 2)
            weight.mul_(clipped)
            th.sum(weight, dim=2, out=grad[part])
            delta.sub_(clipped, alpha=0.5)
            loss += th.dot(weight.view(-1), delta.view(-1))
        n_all = n_rows * n_pairs
        return loss.div_(n_all), grad.div_(-n_all)

    def value(self, features: th.Tensor) -> ActionValue:
        """
        :param features: shape (B, features_dim)
        :return: as ``QuantileCritic.value``
        """

        def value(actions: th.Tensor) -> th.Tensor:
            if th.is_grad_enabled() and actions.requires_grad:
                return MeanQuantile.apply(actions, features, self.networks)
            inputs = th.cat([features, actions[0]], dim=1)
            values = []
            for a in actions:
                inputs[:, features.shape[1] :] = a
                values.append(_mean_quantile([network.forward(inputs).output for network in self.networks]))
            return th.stack(values)

        return value


class MeanQuantile(th.autograd.Function):
    """The mean of all quantiles as a function of the action: no gradient is spent on weights."""

    @staticmethod
    def forward(ctx: Any, actions: th.Tensor, features: th.Tensor, networks: list[MLP]) -> th.Tensor:  # type: ignore[override]
        """
        :param ctx: What ``backward`` needs to know
        :param actions: shape (n, B, d)
        :param features: shape (B, features_dim)
        :param networks: The critics
        :return: values, shape (n, B)
        """
        values, gradients = [], []
        columns = slice(features.shape[1], None)
        for a in actions:
            inputs = th.cat([features, a], dim=1)
            outputs, gradient = [], th.zeros_like(a)
            for network in networks:
                trace = network.forward(inputs)
                outputs.append(trace.output)
                # A value depends on its own action only, so the gradient can be had at once
                mean_weight = network.layers[-1][0].mean(dim=0)
                gradient += network.input_gradient(mean_weight, trace.hidden, columns)
            values.append(_mean_quantile(outputs))
            gradients.append(gradient.div_(len(networks)))
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


def _mean_quantile(quantiles: list[th.Tensor]) -> th.Tensor:
    return th.stack([part.mean(dim=1) for part in quantiles]).mean(dim=0)
