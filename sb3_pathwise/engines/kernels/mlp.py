"""Multilayer perceptrons of ``Linear`` and ``ReLU``, differentiated by hand (Rumelhart, Hinton and Williams, 1986)."""

from collections.abc import Sequence

import torch as th
from torch import nn

from sb3_pathwise.engines.kernels.linear import linear, product, relu_backward

# Products with fewer rows or columns take as long in bfloat16 as in float32
MIN_WIDTH = 64
Layer = tuple[th.Tensor, th.Tensor]


def reason_not_mlp(module: nn.Module) -> str | None:
    """
    :param module: Any module
    :return: why it is not ``Linear``, ``ReLU``, ``Linear``, ... with biases, exactly, or ``None``
    """
    if type(module) is not nn.Sequential:
        return f"{type(module).__name__} is not a Sequential"
    for i, child in enumerate(module):
        if type(child) is not (nn.ReLU if i % 2 else nn.Linear):
            return f"it contains {type(child).__name__}, not Linear and ReLU in turn"
        if type(child) is nn.Linear and child.bias is None:
            return "a layer has no bias"
    return None


def linear_layers(module: nn.Sequential) -> list[nn.Linear]:
    """
    :param module: For which ``reason_not_mlp`` is ``None``
    :return: its linear layers
    """
    return [child for child in module if isinstance(child, nn.Linear)]


class MLP:
    """
    The network of some layers, with a ReLU after each but the last.

    :param layers: Weight and bias of each layer
    :param grads: Where to write their gradients, if ever
    :param low_dtype: dtype of the products between hidden layers, if it is another one
    """

    def __init__(self, layers: list[Layer], grads: list[Layer] | None = None, low_dtype: th.dtype | None = None) -> None:
        self.layers = layers
        self.grads = grads
        # Of large matrices only: inputs and outputs stay in full precision, and there is nothing to gain
        self.low: dict[int, Layer] = {
            i: (weight.to(low_dtype), bias.to(low_dtype))
            for i, (weight, bias) in enumerate(layers)
            if low_dtype is not None and min(weight.shape) >= MIN_WIDTH
        }

    @th.no_grad()
    def refresh(self) -> None:
        """To be called when the layers have changed: bring their copies of low precision up to date."""
        for i, copies in self.low.items():
            th._foreach_copy_(list(copies), list(self.layers[i]))

    def forward(self, x: th.Tensor) -> list[th.Tensor]:
        """
        :param x: Inputs, shape (B, in_features)
        :return: the inputs of each layer, a ReLU being part of the layer before, and the output
        """
        activations = []
        for i, layer in enumerate(self.layers):
            weight, bias = self.low.get(i, layer)
            if x.dtype is not weight.dtype:
                x = x.to(weight.dtype)
            activations.append(x)
            x = linear(x, weight, bias, relu=i < len(self.layers) - 1)
        activations.append(x)
        return activations

    def backward(
        self, grad: th.Tensor, activations: Sequence[th.Tensor], weights: bool, columns: slice | None = None
    ) -> th.Tensor | None:
        """
        :param grad: Gradient with respect to the outputs, shape (B, out_features)
        :param activations: What ``forward`` returned
        :param weights: Whether to write the gradients of the layers
        :param columns: Which inputs' gradient to return, if any
        :return: gradient with respect to those inputs, shape (B, len(columns)), or ``None``
        """
        for i in reversed(range(len(self.layers))):
            weight, _ = self.low.get(i, self.layers[i])
            if weights:
                assert self.grads is not None
                grad_weight, grad_bias = self.grads[i]
                x = activations[i]
                th.sum(grad, 0, out=grad_bias) if grad.dtype is grad_bias.dtype else grad_bias.copy_(grad.float().sum(0))
                if grad.dtype is not x.dtype:
                    grad = grad.to(x.dtype)
                product(grad.t(), x, out=grad_weight)
            elif grad.dtype is not weight.dtype:
                grad = grad.to(weight.dtype)
            if i == 0:
                return None if columns is None else product(grad, weight[:, columns])
            # The outer product of a column and a row takes no matrix product
            grad = grad * weight if grad.shape[1] == 1 else product(grad, weight)
            y = activations[i]
            grad = relu_backward(grad if grad.dtype is y.dtype else grad.to(y.dtype), y, 0)
        return None
