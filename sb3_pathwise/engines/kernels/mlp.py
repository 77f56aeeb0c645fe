"""Multilayer perceptrons of ``Linear`` and ``ReLU``, differentiated by hand (Rumelhart, Hinton and Williams, 1986)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch as th
from torch import nn

from sb3_pathwise.engines.kernels.linear import Workspace, linear_relu, product, product_into, relu_backward

# Smaller layers take as long in bfloat16 as in float32
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


def parameters(module: nn.Module) -> list[Layer]:
    """
    :param module: For which ``reason_not_mlp`` is ``None``
    :return: weight and bias of its layers
    """
    return [(child.weight, child.bias) for child in module.children() if isinstance(child, nn.Linear)]


class Trace(NamedTuple):
    """
    What a network has computed.

    :param inputs: Inputs of each layer, in the dtype of its product
    :param hidden: Outputs of each layer but the last, after the ReLU, in the lower of the precisions that there are
    :param output: Output of the network
    """

    inputs: list[th.Tensor]
    hidden: list[th.Tensor]
    output: th.Tensor

    def rows(self, rows: slice) -> "Trace":
        """
        :param rows: Neighbouring rows
        :return: these only
        """
        return Trace([x[rows] for x in self.inputs], [x[rows] for x in self.hidden], self.output[rows])


class MLP:
    """
    The network of some layers, with a ReLU after each but the last.

    :param layers: Weight and bias of each layer
    :param workspace: Memory for intermediate results, which networks may share
    :param grads: Where to write the layers' gradients, if ever
    :param low_dtype: dtype of the products of the layers before the last, if it is another one
    """

    def __init__(
        self,
        layers: list[Layer],
        workspace: Workspace,
        grads: list[Layer] | None = None,
        low_dtype: th.dtype | None = None,
    ) -> None:
        self.layers = [(weight.detach(), bias.detach()) for weight, bias in layers]
        self.workspace = workspace
        self.grads = grads
        # Of the layers before the last one: outputs stay in full precision
        self.low: dict[int, Layer] = {
            i: (weight.to(low_dtype), bias.to(low_dtype))
            for i, (weight, bias) in enumerate(self.layers[:-1])
            if low_dtype is not None and weight.shape[0] >= MIN_WIDTH
        }
        # What a product takes: the weights as they are stored, and their transposes
        used = [self.low.get(i, layer) for i, layer in enumerate(self.layers)]
        self.used = [(weight, weight.t(), bias) for weight, bias in used]
        self._memory: dict[tuple[object, int], list[tuple[th.Tensor | None, th.Tensor | None]]] = {}

    @th.no_grad()
    def refresh(self) -> None:
        """To be called when the layers have changed: bring their copies of low precision up to date."""
        for i, copies in self.low.items():
            th._foreach_copy_(list(copies), list(self.layers[i]))

    def forward(self, x: th.Tensor, name: object = None) -> Trace:
        """
        :param x: Inputs, shape (B, in_features)
        :param name: Name of the memory for the hidden layers: the next network that uses it overwrites them
        :return: its output, and what ``backward`` needs
        """
        inputs: list[th.Tensor] = []
        hidden: list[th.Tensor] = []
        for (weight, weight_t, bias), (cast, out) in zip(self.used, self._memory_for(x, name), strict=True):
            if cast is not None:
                if hidden and cast.dtype is not th.float32:
                    hidden[-1] = cast
                x = cast.copy_(x)
            inputs.append(x)
            if out is None:
                return Trace(inputs, hidden, th.addmm(bias, x, weight_t))
            x = linear_relu(x, weight, weight_t, bias, out)
            hidden.append(x)
        raise ValueError("a network needs a layer")

    def _memory_for(self, x: th.Tensor, name: object) -> list[tuple[th.Tensor | None, th.Tensor | None]]:
        """For each layer, where to convert its inputs and where to write its outputs, if at all."""
        key = (name, x.shape[0])
        memory = self._memory.get(key)
        if memory is None:
            memory, dtype = [], x.dtype
            for i, (weight, _, _) in enumerate(self.used):
                cast = self.workspace.get((name, i, "cast"), x.shape[0], weight.shape[1], weight.dtype)
                out = self.workspace.get((name, i), x.shape[0], weight.shape[0], weight.dtype)
                memory.append((None if weight.dtype is dtype else cast, None if i == len(self.used) - 1 else out))
                dtype = weight.dtype
            self._memory[key] = memory
        return memory

    def backward(self, grad: th.Tensor, trace: Trace) -> None:
        """
        Write the gradients of the layers.

        :param grad: Gradient with respect to the outputs, shape (B, out_features)
        :param trace: What ``forward`` returned
        """
        assert self.grads is not None
        for i in reversed(range(len(self.layers))):
            grad_weight, grad_bias = self.grads[i]
            x = trace.inputs[i]
            if grad.dtype is grad_bias.dtype:
                th.sum(grad, 0, out=grad_bias)
            else:
                grad_bias.copy_(grad.sum(0, dtype=grad_bias.dtype))
            product_into(grad.t(), x if x.dtype is grad.dtype else x.to(grad.dtype), grad_weight)
            if i > 0:
                grad = self._through(i, grad, trace.hidden[i - 1])

    def input_gradient(self, weights: th.Tensor, hidden: Sequence[th.Tensor], columns: slice) -> th.Tensor:
        """
        Gradient of a weighted sum of the last hidden layer's outputs, the same for each row.

        :param weights: shape (last hidden width,), or (in_features,) where nothing is hidden
        :param hidden: As in a trace, of any number of rows
        :param columns: Which inputs' gradient to return
        :return: gradient with respect to those inputs, shape (B, len(columns)), in full precision
        """
        if not hidden:
            return weights[columns].unsqueeze(0)
        y = hidden[-1]
        out = self.workspace.get(("grad", len(hidden)), y.shape[0], y.shape[1], y.dtype)
        grad = relu_backward(weights.to(y.dtype).expand_as(y), y, 0, grad_input=out)
        for i in reversed(range(1, len(hidden))):
            grad = self._through(i, grad, hidden[i - 1])
        weight = self.layers[0][0][:, columns]
        return product(grad, weight.to(grad.dtype)).to(weight.dtype)

    def _through(self, i: int, grad: th.Tensor, y: th.Tensor) -> th.Tensor:
        weight, _, _ = self.used[i]
        dtype = y.dtype
        out = self.workspace.get(("grad", i), y.shape[0], y.shape[1], dtype)
        if grad.shape[1] == 1:
            # The product of a column and a row
            grad = th.mul(grad.to(dtype), weight.to(dtype), out=out)
        elif weight.dtype is dtype:
            grad = product(grad.to(dtype), weight, out)
        else:
            grad = product(grad.to(weight.dtype), weight).to(dtype)
        return relu_backward(grad, y, 0, grad_input=grad)
