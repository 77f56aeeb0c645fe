"""
Batch normalisation: whose statistics a network uses, two batches in one, and layers folded away.

The layers themselves are sb3-contrib's ``BatchRenorm1d`` and torch's ``BatchNorm1d``; the critics (``critics/``) say who uses
which statistics when.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm1d
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def statistics_of(batch: bool, *networks: nn.Module, layer: type[nn.Module] = BatchRenorm1d) -> Iterator[None]:
    """
    A context in which normalisation layers use the statistics of the batch, and learn from them, or else the running ones. No
    other module's mode is touched.

    :param batch: Whether to use those of the batch
    :param networks: Networks
    :param layer: Type of the layers
    """
    modes = {module: module.training for network in networks for module in network.modules() if isinstance(module, layer)}
    try:
        for module in modes:
            module.training = batch
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def joint(first: Any, second: Any) -> PyTorchObs:
    """
    :param first: Observations or actions, batch size B
    :param second: The same of others, batch size B
    :return: both as one batch of size 2 B
    """
    if isinstance(first, dict):
        return {key: joint(first[key], second[key]) for key in first}  # type: ignore[misc]
    return th.cat([first, second], dim=0)


def folded(network: nn.Module) -> Callable[[th.Tensor], th.Tensor] | None:
    """
    A network in evaluation mode as one without normalisation: running statistics, scale and bias are multiplied into the
    neighbouring linear layers. Differentiable in its input only.

    :param network: Any network
    :return: the same function of the input, up to rounding, or ``None`` if it may not be the same: layers that cannot be
        folded, hooks
    """
    if type(network) is not nn.Sequential or any(getattr(module, name) for module in network.modules() for name in _HOOKS):
        return None
    steps: list[Any] = []
    ahead: tuple[th.Tensor, th.Tensor] | None = None
    with th.no_grad():
        for layer in network:
            if isinstance(layer, (BatchRenorm1d, nn.BatchNorm1d)):
                scale, shift = _scale_and_shift(layer)
                if steps and isinstance(steps[-1], tuple):
                    weight, bias = steps[-1]
                    steps[-1] = scale[:, None] * weight, scale * bias + shift
                elif ahead is None:
                    ahead = scale, shift
                else:
                    return None
            elif type(layer) is nn.Linear:
                weight, bias = layer.weight, th.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias
                if ahead is not None:
                    weight, bias, ahead = weight * ahead[0], bias + weight @ ahead[1], None
                steps.append((weight.detach(), bias.detach()))
            elif ahead is None:
                steps.append(layer)
            else:
                return None

    def forward(x: th.Tensor) -> th.Tensor:
        for step in steps:
            x = F.linear(x, *step) if isinstance(step, tuple) else step(x)
        return x

    return forward if ahead is None else None


def _scale_and_shift(layer: Any) -> tuple[th.Tensor, th.Tensor]:
    if isinstance(layer, BatchRenorm1d):
        mean, var, weight = layer.ra_mean, layer.ra_var, layer.scale
    else:
        mean, var, weight = layer.running_mean, layer.running_var, layer.weight
    scale = weight / (var + layer.eps).sqrt()  # type: ignore[operator]
    return scale, layer.bias - scale * mean
