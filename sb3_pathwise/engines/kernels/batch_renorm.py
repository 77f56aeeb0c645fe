"""CrossQ's critic: one pass over both states by hand, and its value by the folded networks."""

from typing import TYPE_CHECKING

import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm1d
from sb3_contrib.crossq.policies import CrossQCritic

from sb3_pathwise.critics import ActionValue
from sb3_pathwise.critics.batch_renorm import BatchRenormCritic
from sb3_pathwise.engines.kernels.adam import AdamKernel
from sb3_pathwise.engines.kernels.linear import Workspace
from sb3_pathwise.engines.kernels.mlp import parameters
from sb3_pathwise.engines.kernels.normalized import NormalizedMLP, reason_not_normalized
from sb3_pathwise.engines.kernels.twin import reason_not_networks, smallest, smallest_q

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic


class BatchRenormKernel:
    """
    ``critics/batch_renorm.py`` by hand.

    :param model: The model, for which ``reason_not`` is ``None``
    :param adam: The critics' optimizer
    :param workspace: Memory for intermediate results
    :param low_dtype: dtype of the products of the layers before the last, if it is another one
    """

    rule = BatchRenormCritic

    def __init__(self, model: "ActorCritic", adam: AdamKernel, workspace: Workspace, low_dtype: th.dtype | None) -> None:
        self.networks = []
        for q_net in model.critic.q_networks:
            norms = [child for child in q_net.children() if isinstance(child, BatchRenorm1d)]
            layers = parameters(q_net)
            self.networks.append(NormalizedMLP(norms, layers, adam, adam.grads_of(layers), workspace, low_dtype))

    @staticmethod
    def reason_not(model: "ActorCritic") -> str | None:
        """
        :param model: Any model
        :return: why its critic is not CrossQ's, or ``None``
        """
        return reason_not_networks([model.critic], CrossQCritic, reason_not_normalized)

    def refresh(self) -> None:
        """To be called when the critics' parameters have changed."""

    def refresh_targets(self) -> None:
        """There are none."""

    def follow(self, tau: float) -> None:
        """
        :param tau: Not used
        """

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
        The loss, its gradient being written, as ``TwinKernel.loss``. The networks' normalisations learn.

        :param inputs: Features and actions, shape (B, features_dim + d)
        :param next_inputs: The same at the next state
        :param next_log_prob: Log-probability of the next actions, shape (B,)
        :param rewards: shape (B, 1)
        :param discounts: What the value of the next state counts, 0 at the end of an episode, shape (B, 1)
        :param ent_coef: Entropy coefficient
        :return: loss, a scalar; the target, shape (B, 1)
        """
        n_rows = inputs.shape[0]
        both = th.cat([inputs, next_inputs])
        traces, outputs = zip(*(network.forward(both, name=i) for i, network in enumerate(self.networks)), strict=True)
        next_q_values = smallest([output[n_rows:] for output in outputs])
        next_q_values = th.sub(next_q_values, next_log_prob.unsqueeze(1), alpha=ent_coef)
        target_q_values = th.addcmul(rewards, discounts, next_q_values)
        losses = []
        for network, trace, output in zip(self.networks, traces, outputs, strict=True):
            td_error = output[:n_rows] - target_q_values
            losses.append(th.dot(td_error.view(-1), td_error.view(-1)))
            # Of half the squared error, averaged over the batch
            network.backward(td_error.mul_(1 / n_rows), trace, n_rows)
        return th.stack(losses).sum().mul_(0.5 / n_rows), target_q_values

    def value(self, features: th.Tensor) -> ActionValue:
        """
        :param features: shape (B, features_dim)
        :return: as ``BatchRenormCritic.value``
        """
        return smallest_q([network.fold() for network in self.networks], features)
