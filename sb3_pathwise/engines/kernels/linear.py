"""
Linear layers and their gradients, by the library that the machine is best served with.

PyTorch's MKL is slow on processors that are not Intel's, where oneDNN, in the same PyTorch, takes half its time. The choice
depends on the machine and the dtype alone, so that the same seed gives the same bits.
"""

import functools
import pathlib
import platform

import torch as th

_onednn = getattr(getattr(th.ops.mkldnn, "_linear_pointwise", None), "default", None)


@functools.cache
def library(dtype: th.dtype) -> str:
    """
    :param dtype: dtype of the operands
    :return: "onednn" or "blas"
    """
    if _onednn is None or not th.backends.mkldnn.is_available() or dtype not in (th.float32, th.bfloat16):
        return "blas"
    return "blas" if dtype is th.float32 and th.backends.mkl.is_available() and _is_intel() else "onednn"


def _is_intel() -> bool:
    try:
        return "GenuineIntel" in pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return "Intel" in platform.processor()


def linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor, relu: bool = False) -> th.Tensor:
    """
    :param x: Inputs, shape (B, in_features)
    :param weight: shape (out_features, in_features)
    :param bias: shape (out_features,)
    :param relu: Whether a ReLU follows
    :return: outputs, shape (B, out_features)
    """
    if library(x.dtype) == "onednn":
        return _onednn(x, weight, bias, "relu" if relu else "none", [], "")  # type: ignore[misc]
    y = th.addmm(bias, x, weight.t())
    return y.relu_() if relu else y


def product(a: th.Tensor, b: th.Tensor, out: th.Tensor | None = None) -> th.Tensor:
    """
    :param a: Matrix, shape (m, k), in any memory layout
    :param b: Matrix, shape (k, n), in any memory layout
    :param out: Where to write, of any dtype
    :return: ``a @ b``
    """
    if library(a.dtype) == "onednn":
        result = _onednn(a, b.t(), None, "none", [], "")  # type: ignore[misc]
    elif out is None or out.dtype is a.dtype:
        return th.mm(a, b) if out is None else th.mm(a, b, out=out)
    else:
        result = th.mm(a, b)
    return result if out is None else out.copy_(result)


#: Gradient of a ReLU, by its name in C++: (gradient, output, 0) -> gradient
relu_backward = th.ops.aten.threshold_backward.default
