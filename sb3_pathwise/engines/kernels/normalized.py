"""
Multilayer perceptrons with sb3-contrib's ``BatchRenorm1d`` before every linear layer, differentiated by hand, and folded into
plain ones where running statistics are used.
"""

import math
from typing import Any, NamedTuple

import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm1d
from torch import nn

from sb3_pathwise.engines.kernels.adam import AdamKernel
from sb3_pathwise.engines.kernels.linear import Workspace, linear_relu, product_into, relu_backward
from sb3_pathwise.engines.kernels.mlp import MLP, Layer


def reason_not_normalized(module: nn.Module, n_linear_after: int = 0) -> str | None:
    """
    :param module: Any module
    :param n_linear_after: Whether a linear layer follows that is not the module's
    :return: why it is not ``BatchRenorm1d``, ``Linear``, ``ReLU``, ... exactly, or ``None``
    """
    if type(module) is not nn.Sequential:
        return f"{type(module).__name__} is not a Sequential"
    kinds = (BatchRenorm1d, nn.Linear, nn.ReLU)
    for i, child in enumerate(module):
        if type(child) is not kinds[i % 3]:
            return f"it contains {type(child).__name__}, not BatchRenorm1d, Linear and ReLU in turn"
        if isinstance(child, BatchRenorm1d) and not child.affine:
            return "a normalisation is not affine"
        if isinstance(child, nn.Linear) and child.bias is None:
            return "a layer has no bias"
    return None if len(module) % 3 == (1 if n_linear_after else 2) else "its last layer is not a normalised linear one"


class Step(NamedTuple):
    """
    What a normalised layer has computed.

    :param x: Inputs of the normalisation, which are outputs of a ReLU but for the first layer
    :param y: Its outputs
    :param saved: What its backward pass needs
    """

    x: th.Tensor
    y: th.Tensor
    saved: Any


class NormalizedMLP:
    """
    A network of normalised linear layers, with a ReLU after each but the last.

    :param norms: Normalisation before each layer
    :param layers: Weight and bias of each layer
    :param adam: Their optimizer's kernel
    :param grads: Where to write the layers' gradients
    :param workspace: Memory for intermediate results
    :param low_dtype: dtype of the products of the layers before the last, and of what is between them, if it is another one
    """

    def __init__(
        self,
        norms: list[BatchRenorm1d],
        layers: list[Layer],
        adam: AdamKernel,
        grads: list[Layer],
        workspace: Workspace,
        low_dtype: th.dtype | None,
    ) -> None:
        self.norms = norms
        # Torch normalises bfloat16 with parameters in float32 only
        self.plain = MLP(layers, workspace, None, low_dtype if norms[0].scale.dtype is th.float32 else None)
        self.layers = self.plain.layers
        self.grads = grads
        self.norm_grads = adam.grads_of([(norm.scale, norm.bias) for norm in norms])
        self.affine = [(norm.scale.detach(), norm.bias.detach()) for norm in norms]
        self.workspace = workspace
        self.running: list[Any] = [(norm.ra_mean, norm.ra_var) for norm in norms]
        self.steps: list[Any] = [norm.steps for norm in norms]
        # In use when running statistics are
        self.folded = MLP([(weight.clone(), bias.clone()) for weight, bias in self.layers], workspace, None, low_dtype)

    def fold(self) -> MLP:
        """
        :return: the network in evaluation mode as a plain one: running statistics, scale and bias are part of its layers
        """
        parts = zip(self.norms, self.affine, self.running, self.layers, self.folded.layers, strict=True)
        for norm, (scale, shift), (mean, var), (weight, bias), (folded_weight, folded_bias) in parts:
            factor = th.rsqrt(var + norm.eps).mul_(scale)
            th.mul(weight, factor, out=folded_weight)
            th.addmv(bias, weight, th.addcmul(shift, factor, mean, value=-1), out=folded_bias)
        self.folded.refresh()
        return self.folded

    def forward(self, x: th.Tensor, name: object) -> tuple[list[Step], th.Tensor]:
        """
        In training mode: normalised by the batch's statistics, from which the running ones learn.

        :param x: Inputs, shape (B, in_features)
        :param name: Name of the memory for the layers
        :return: for ``backward``; the output
        """
        self.plain.refresh()
        trace = []
        last = len(self.layers) - 1
        for i, (weight, weight_t, bias) in enumerate(self.plain.used):
            y, saved = self._normalize(i, x)
            y = y.to(weight.dtype)
            trace.append(Step(x, y, saved))
            if i == last:
                break
            out = self.workspace.get((name, i), x.shape[0], weight.shape[0], weight.dtype)
            x = linear_relu(y, weight, weight_t, bias, out)
        # All at once
        th._foreach_add_(self.steps, 1)
        return trace, th.addmm(bias, y, weight_t)

    def _normalize(self, i: int, x: th.Tensor) -> tuple[th.Tensor, Any]:
        norm, (scale, shift), (ra_mean, ra_var) = self.norms[i], self.affine[i], self.running[i]
        n = x.shape[0]
        if int(self.steps[i]) <= norm.warmup_steps:
            # Torch's divides by the biased variance v: v n / (n - 1) + eps = (v + eps (n - 1) / n) n / (n - 1)
            correction = math.sqrt((n - 1) / n)
            eps = norm.eps * (n - 1) / n
            scale = scale * correction
            y, mean, invstd = th.native_batch_norm(x, scale, shift, ra_mean, ra_var, True, norm.momentum, eps)
            return y, (scale, mean, invstd, correction, eps)
        x = x.to(scale.dtype)
        var, mean = th.var_mean(x, dim=0)
        std = var.sqrt()
        running_std = (ra_var + norm.eps).sqrt()
        r = ((var + norm.eps).sqrt() / running_std).clamp_(1 / norm.rmax, norm.rmax)
        d = ((mean - ra_mean) / running_std).clamp_(-norm.dmax, norm.dmax)
        ra_mean.lerp_(mean, norm.momentum)
        ra_var.lerp_(var, norm.momentum)
        centered = x - mean
        invstd = th.rsqrt(var / r**2 + norm.eps)
        normalized = (centered * invstd).add_(d / r * std * invstd)
        return th.addcmul(shift, normalized, scale), (normalized, centered, std, invstd, r, d)

    def backward(self, grad: th.Tensor, trace: list[Step], n_rows: int) -> None:
        """
        Write the gradients of layers and normalisations.

        :param grad: Gradient with respect to the first rows of the output, shape (n_rows, out_features), the others' being 0
        :param trace: What ``forward`` returned
        :param n_rows: Number of these rows
        """
        for i in reversed(range(len(self.layers))):
            x, y, saved = trace[i]
            weight, _, _ = self.plain.used[i]
            grad_weight, grad_bias = self.grads[i]
            n = grad.shape[0]
            th.sum(grad, 0, out=grad_bias)
            product_into(grad.t(), y if n == y.shape[0] else y[:n], grad_weight)
            grad_y = self.workspace.get(("grad", i), x.shape[0], x.shape[1], x.dtype)
            first = grad_y if n == y.shape[0] else grad_y[:n]
            if grad.shape[1] == 1:
                th.mul(grad, weight, out=first)
            else:
                product_into(grad, weight, first)
            if n < y.shape[0]:
                grad_y[n:].zero_()
            grad = self._normalize_backward(i, grad_y, x, saved)
            if i > 0:
                grad = relu_backward(grad, x, 0, grad_input=grad)

    def _normalize_backward(self, i: int, grad: th.Tensor, x: th.Tensor, saved: Any) -> th.Tensor:
        grad_scale, grad_shift = self.norm_grads[i]
        if len(saved) == 5:
            scale, mean, invstd, correction, eps = saved
            ra_mean, ra_var = self.running[i]
            mask = [i > 0, True, True]
            grad_x, by_scale, by_shift = th.ops.aten.native_batch_norm_backward(
                grad, x, scale, ra_mean, ra_var, mean, invstd, True, eps, mask
            )
            th.mul(by_scale, correction, out=grad_scale)
            grad_shift.copy_(by_shift)
            return grad_x
        normalized, centered, std, invstd, r, d = saved
        th.sum(grad * normalized, 0, out=grad_scale)
        th.sum(grad, 0, out=grad_shift)
        dtype, grad = grad.dtype, grad * self.affine[i][0]
        # With respect to the variance, r and d being constants
        by_var = -0.5 * invstd**3 / r**2
        through_var = (grad * centered).sum(0) * by_var + grad.sum(0) * (d / r) * (0.5 * invstd / std + std * by_var)
        centered = centered * (2 / (x.shape[0] - 1) * through_var)
        return ((grad - grad.mean(0)) * invstd).add_(centered).to(dtype)
