"""
Linear layers and their gradients, by the library that the machine is best served with, and memory for their results.

PyTorch's MKL is slow on processors that are not Intel's, where oneDNN, in the same PyTorch, takes half its time. The choice
depends on machine, dtype and shapes alone, so that the same seed gives the same bits.
"""

import functools
import pathlib
import platform

import torch as th

_onednn = getattr(getattr(th.ops.mkldnn, "_linear_pointwise", None), "default", None)
# Products with fewer rows or columns are not worth oneDNN's preparations
_MIN_WIDTH = 16
#: Gradient of a ReLU, by its name in C++: (gradient, output, 0, grad_input=)
relu_backward = th.ops.aten.threshold_backward.grad_input


class Workspace:
    """
    Memory for intermediate results, used again by whoever asks by the same name: what was written there last is in the cache.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[object, int, th.dtype], th.Tensor] = {}

    def get(self, name: object, n_rows: int, n_columns: int, dtype: th.dtype) -> th.Tensor:
        """
        :param name: Who asks
        :param n_rows: Number of rows
        :param n_columns: Number of columns
        :param dtype: dtype
        :return: memory of any content, shape (n_rows, n_columns)
        """
        key = (name, n_columns, dtype)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape[0] < n_rows:
            buffer = self._buffers[key] = th.empty(n_rows, n_columns, dtype=dtype)
        return buffer if buffer.shape[0] == n_rows else buffer[:n_rows]


@functools.cache
def uses_onednn(dtype: th.dtype) -> bool:
    """
    :param dtype: dtype of the operands
    :return: whether large products are oneDNN's
    """
    if _onednn is None or not th.backends.mkldnn.is_available():
        return False
    return dtype is th.float32 and not (th.backends.mkl.is_available() and _is_intel())


def products() -> str:
    """
    :return: the library of large products in single precision, and its version
    """
    name = "MKL-DNN" if uses_onednn(th.float32) else "Math Kernel Library"
    lines = [line.strip(" -") for line in th.__config__.show().splitlines()]
    return next((line.partition(" (")[0] if "DNN" in line else line for line in lines if name in line), "PyTorch's BLAS")


def _is_intel() -> bool:
    try:
        return "GenuineIntel" in pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return "Intel" in platform.processor()


def linear_relu(x: th.Tensor, weight: th.Tensor, weight_t: th.Tensor, bias: th.Tensor, out: th.Tensor) -> th.Tensor:
    """
    :param x: Inputs, shape (B, in_features)
    :param weight: shape (out_features, in_features)
    :param weight_t: Its transpose
    :param bias: shape (out_features,)
    :param out: Memory that may be used for the outputs
    :return: outputs after a ReLU, shape (B, out_features)
    """
    # In bfloat16, PyTorch's plain products are oneDNN's already, but for the ReLU
    if uses_onednn(x.dtype) or (_onednn is not None and x.dtype is th.bfloat16):
        return _onednn(x, weight, bias, "relu", [], "")  # type: ignore[misc]
    return th.addmm(bias, x, weight_t, out=out).relu_()


def product(a: th.Tensor, b: th.Tensor, out: th.Tensor | None = None) -> th.Tensor:
    """
    :param a: Matrix, shape (m, k), in any memory layout
    :param b: Matrix, shape (k, n), in any memory layout
    :param out: Memory that may be used for the result, of the same dtype
    :return: ``a @ b``
    """
    if uses_onednn(a.dtype) and min(a.shape[0], b.shape[1]) >= _MIN_WIDTH:
        return _onednn(a, b.t(), None, "none", [], "")  # type: ignore[misc]
    return th.mm(a, b) if out is None else th.mm(a, b, out=out)


def product_into(a: th.Tensor, b: th.Tensor, out: th.Tensor) -> None:
    """
    :param a: Matrix, shape (m, k), in any memory layout
    :param b: Matrix, shape (k, n), in any memory layout
    :param out: Where ``a @ b`` is written, of any dtype
    """
    result = product(a, b, out if out.dtype is a.dtype else None)
    if result is not out:
        out.copy_(result)
