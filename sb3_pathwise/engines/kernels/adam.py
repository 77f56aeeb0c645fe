"""Adam on the state of torch's own optimizer, with the gradients of all parameters side by side in memory."""

from collections.abc import Sequence

import torch as th
from torch.optim import Adam

# Floats in 64 bytes: gradients begin where a cache line does
_ALIGNMENT = 16
_VARIANTS = ("weight_decay", "amsgrad", "maximize", "differentiable", "capturable", "fused")


def reason_not_plain(optimizer: th.optim.Optimizer, params: list[th.nn.Parameter]) -> str | None:
    """
    :param optimizer: Any optimizer
    :param params: The parameters that it should have
    :return: why it is not torch's Adam for exactly these, without variants and hooks, or ``None``
    """
    if type(optimizer) is not Adam:
        return f"its optimizer is {type(optimizer).__name__}, not Adam"
    if len(optimizer.param_groups) != 1 or list(map(id, optimizer.param_groups[0]["params"])) != list(map(id, params)):
        return "its optimizer holds other parameters than the network, or several groups"
    (group,) = optimizer.param_groups
    for variant in _VARIANTS:
        if group.get(variant):
            return f"its Adam has {variant}={group[variant]!r}"
    if not isinstance(group["lr"], float | int) or not all(isinstance(beta, float) for beta in group["betas"]):
        return "its Adam has hyperparameters that are tensors"
    if (
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or vars(optimizer).keys() & {"step", "zero_grad"}
    ):
        return "its optimizer has hooks"
    for param in params:
        state = optimizer.state.get(param)
        if state and (state.keys() != {"step", "exp_avg", "exp_avg_sq"} or not _is_alike(param, state)):
            return "the state of its Adam is not torch's"
    return None


def _is_alike(param: th.Tensor, state: dict[str, th.Tensor]) -> bool:
    moments = (state["exp_avg"], state["exp_avg_sq"])
    return isinstance(state["step"], th.Tensor) and all(
        moment.shape == param.shape and moment.dtype == param.dtype and moment.is_contiguous() for moment in moments
    )


class AdamKernel:
    """
    Steps of an optimizer for which ``reason_not_plain`` is ``None`` (https://arxiv.org/abs/1412.6980, algorithm 1).

    :param optimizer: The optimizer. Its state is created, as its own first step would, and then updated in place
    """

    def __init__(self, optimizer: th.optim.Optimizer) -> None:
        (self.group,) = optimizer.param_groups
        self.params: list[th.Tensor] = self.group["params"]
        for param in self.params:
            state = optimizer.state[param]
            if not state:
                state["step"] = th.tensor(0.0)
                state["exp_avg"], state["exp_avg_sq"] = th.zeros_like(param), th.zeros_like(param)
        states = [optimizer.state[param] for param in self.params]
        # The counts side by side, to be raised at once
        self.step_counts = th.stack([state["step"] for state in states])
        for state, count in zip(states, self.step_counts, strict=True):
            state["step"] = count
        self.steps, self.exp_avgs, self.exp_avg_sqs = (
            [state[name] for state in states] for name in ("step", "exp_avg", "exp_avg_sq")
        )
        sizes = [-(-param.numel() // _ALIGNMENT) * _ALIGNMENT for param in self.params]
        #: All gradients, in one tensor
        self.grad = th.zeros(sum(sizes), dtype=self.params[0].dtype)
        #: and one by one
        self.grads = [
            part[: param.numel()].view(param.shape) for part, param in zip(self.grad.split(sizes), self.params, strict=True)
        ]
        self.one = th.ones(())

    def grads_of(self, layers: Sequence[tuple[th.Tensor, th.Tensor]]) -> list[tuple[th.Tensor, th.Tensor]]:
        """
        :param layers: Pairs of parameters of the optimizer
        :return: their gradients
        """
        grads = dict(zip(map(id, self.params), self.grads, strict=True))
        return [(grads[id(weight)], grads[id(bias)]) for weight, bias in layers]

    def grad_norm(self) -> th.Tensor:
        """
        :return: norm of the gradient, a scalar
        """
        for param, grad in zip(self.params, self.grads, strict=True):
            param.grad = grad
        return th.linalg.vector_norm(self.grad)

    def step(self, grad_norm: th.Tensor, max_grad_norm: float | None = None) -> None:
        """
        :param grad_norm: Norm of the gradient
        :param max_grad_norm: What to clip it to, if at all, as ``th.nn.utils.clip_grad_norm_``
        """
        if max_grad_norm is not None:
            self.grad.mul_((max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0))
        self.step_counts += self.one
        beta1, beta2 = self.group["betas"]
        th._fused_adam_(
            self.params,
            self.grads,
            self.exp_avgs,
            self.exp_avg_sqs,
            [],
            self.steps,
            lr=self.group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=self.group["eps"],
            amsgrad=False,
            maximize=False,
        )
