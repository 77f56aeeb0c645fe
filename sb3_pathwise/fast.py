"""
The two parts of an update that stock modules make slow on small networks: multilayer perceptrons and Adam.

Both are drop-in: same parameters, same state dictionaries, same arithmetic in float32, to the last bit, so that PathwiseAC
stays SAC. What they save is bookkeeping and memory traffic. No reinforcement learning here.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import torch as th
from stable_baselines3.sac.policies import SACPolicy
from torch import nn
from torch.nn import functional as F
from torch.optim import Adam

OptimizerT = TypeVar("OptimizerT", bound=th.optim.Optimizer)


class FusedMLP(nn.Sequential):
    """
    A ``Sequential`` of ``Linear`` layers with a ``ReLU`` between them, run as one node of the graph.

    The children are those of the module that it replaces, so that names and state dictionaries stay. Hooks of the children
    are not called.

    :param modules: ``Linear`` and ``ReLU`` modules in turn, beginning with a ``Linear``
    """

    # Of the hidden layers' products
    dtype = th.float32

    @staticmethod
    def supports(module: nn.Module) -> bool:
        """
        :param module: Any module
        :return: Whether it can be replaced
        """
        return type(module) is nn.Sequential and all(
            type(child) is nn.ReLU if i % 2 else type(child) is nn.Linear and child.bias is not None
            for i, child in enumerate(module)
        )

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Inputs, shape (B, in_features)
        :return: Outputs, shape (B, out_features), float32
        """
        return self._run(x, first=0)

    def _run(self, x: th.Tensor, first: int) -> th.Tensor:
        for i in range(first, len(self), 2):
            linear = cast(nn.Linear, self[i])
            if i == len(self) - 1 or self.dtype == th.float32:
                x = F.linear(x.float(), linear.weight, linear.bias)
            else:
                x = F.linear(x.to(self.dtype), linear.weight.to(self.dtype), linear.bias.to(self.dtype))
            if i < len(self) - 1:
                # In place: the product is not needed for the gradient, and the cache holds it
                x = x.relu_()
        return x.float()

    def given(self, features: th.Tensor) -> Callable[[th.Tensor], th.Tensor]:
        """
        The network as a function of its last inputs, the first ones being fixed: their part of the first layer is computed
        once.

        :param features: First inputs, shape (B, in_features - d)
        :return: maps the last inputs, shape (B, d), to outputs, shape (B, out_features)
        """
        linear = cast(nn.Linear, self[0])
        weight, weight_last = linear.weight.split([features.shape[1], linear.in_features - features.shape[1]], dim=1)
        fixed_part = F.linear(features, weight, linear.bias)

        def network(last_inputs: th.Tensor) -> th.Tensor:
            x = th.addmm(fixed_part, last_inputs, weight_last.t())
            return self._run(x.relu_(), first=2) if len(self) > 1 else x

        return network


def fuse_mlps(policy: SACPolicy, dtype: th.dtype = th.float32) -> None:
    """
    Replace what can be replaced of a policy's networks by ``FusedMLP``, in place. Parameters and their names stay.

    :param policy: SAC's policy, or one derived from it
    :param dtype: dtype of the hidden layers' products
    """

    def fused(module: nn.Module) -> nn.Module:
        if FusedMLP.supports(module):
            module = FusedMLP(*cast(nn.Sequential, module))
        if isinstance(module, FusedMLP):
            module.dtype = dtype
        return module

    if isinstance(getattr(policy.actor, "latent_pi", None), nn.Sequential):
        policy.actor.latent_pi = cast(nn.Sequential, fused(policy.actor.latent_pi))
    for critic in (policy.critic, policy.critic_target):
        for i, q_net in enumerate(getattr(critic, "q_networks", [])):
            critic.q_networks[i] = fused(q_net)
            setattr(critic, f"qf{i}", critic.q_networks[i])


class LeanAdam(Adam):
    """
    Torch's Adam, stripped to the case that reinforcement learning uses: one group, no weight decay, no variants.

    State dictionary and rounding are Adam's. Torch's ``fused=True`` saves more, but rounds otherwise: a ReLU that flips then
    sends a parameter away from SAC's by more than 1e-3 within 150 updates, for two seeds in eight.

    :param params: Parameters
    :param lr: learning rate
    :param betas: decay of the two moments
    :param eps: term added to the denominator
    """

    @classmethod
    def of(cls, optimizer: OptimizerT) -> "OptimizerT | LeanAdam":
        """
        :param optimizer: Any optimizer
        :return: A lean one in its place and state, or ``optimizer`` itself if it is more than plain Adam
        """
        variants = ("weight_decay", "amsgrad", "maximize", "differentiable", "capturable", "fused")
        if type(optimizer) is not Adam or len(optimizer.param_groups) != 1:
            return optimizer
        (group,) = optimizer.param_groups
        if any(group[variant] for variant in variants):
            return optimizer
        lean = cls(group["params"], lr=group["lr"], betas=group["betas"], eps=group["eps"])
        lean.load_state_dict(optimizer.state_dict())
        return lean

    @th.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of Adam (https://arxiv.org/abs/1412.6980, algorithm 1), a tensor at a time: one fits in the cache."""
        (group,) = self.param_groups
        (beta1, beta2), lr, eps = group["betas"], group["lr"], group["eps"]
        for param in group["params"]:
            grad = param.grad
            if grad is None:
                continue
            state = self.state[param]
            if not state:
                state["step"] = th.tensor(0.0)
                state["exp_avg"], state["exp_avg_sq"] = th.zeros_like(param), th.zeros_like(param)
            state["step"] += 1
            step, exp_avg, exp_avg_sq = state["step"].item(), state["exp_avg"], state["exp_avg_sq"]
            exp_avg.lerp_(grad, 1 - beta1)
            exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            denom = exp_avg_sq.sqrt().div_((1 - beta2**step) ** 0.5).add_(eps)
            param.addcdiv_(exp_avg, denom, value=-lr / (1 - beta1**step))

    # Tells the base class not to wrap it for the profiler, which would cost as much as a third of it
    step.hooked = True  # type: ignore[attr-defined]
