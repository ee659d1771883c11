"""Who is timed: gpuact on each of its backends, and its rivals, each in its best spelling.

A rival is imported when it is first asked whether it can run. Functions take the arguments of
gpuact's public functions; one that a provider has no spelling for is not in its table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np

import gpuact
from gpuact.libraries import numpy_dtype

from .cases import Case

Array = Any
Function = Callable[..., Any]


@dataclass(frozen=True)
class Provider:
    name: str
    place: str  # of measure.PLACES
    why_not: Callable[[], str | None]  # None where it can run, else a sentence
    spell: Callable[[Case], Function | None]  # None where it has no such function


# -- gpuact ---------------------------------------------------------------------------------------


def _unavailable(backend: str) -> str | None:
    return gpuact.backends()[backend].reason or None


def _ours(case: Case) -> Function:
    function: Function = getattr(gpuact, case.function)
    return function  # the array's home picks the backend


# -- NumPy and SciPy ------------------------------------------------------------------------------


def _missing(package: str) -> str | None:
    try:
        import_module(package)
    except Exception as error:  # not there, or broken in whatever way
        return f"{package} cannot be imported ({error})"
    return None


def _prelu_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    slope = weight.reshape(1, -1, *[1] * (x.ndim - 2))
    others = tuple(axis for axis in range(x.ndim) if axis != 1)
    return np.where(x > 0, dy, slope * dy), np.where(x > 0, 0, x * dy).sum(others)


def _softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _log_softmax(x: Array, axis: int = -1) -> Array:
    d = x - x.max(axis, keepdims=True)
    return d - np.log(np.exp(d).sum(axis, keepdims=True))


def _cross_entropy(logits: Array, target: Array, reduction: str) -> Array:
    return -_log_softmax(logits)[np.arange(len(target)), target]


def _cross_entropy_with_grad(logits: Array, target: Array, reduction: str) -> tuple[Array, Array]:
    rows = np.arange(len(target))
    log_s = _log_softmax(logits)
    dlogits = np.exp(log_s)
    dlogits[rows, target] -= 1
    return -log_s[rows, target], dlogits


# As people write them.
NUMPY: Mapping[str, Function] = {
    "linear": lambda x, scale, bias: scale * x + bias,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sigmoid_backward": lambda dy, y: dy * y * (1 - y),
    "tanh": np.tanh,
    "tanh_backward": lambda dy, y: dy * (1 - y * y),
    "relu": lambda x: np.maximum(x, 0),
    "prelu_backward": _prelu_backward,
    "softmax": _softmax,
    "softmax_backward": lambda dy, y: y * (dy - (dy * y).sum(-1, keepdims=True)),
    "log_softmax": _log_softmax,
    "cross_entropy": _cross_entropy,
    "cross_entropy_with_grad": _cross_entropy_with_grad,
}


def _numpy(case: Case) -> Function | None:
    function = NUMPY.get(case.function)
    if function is None or case.dtype != "bfloat16":
        return function

    def rounded_once(*args: Array, **options: Any) -> Any:
        # ml_dtypes' own arithmetic rounds after every step, and a long sum is then far off
        bfloat16 = numpy_dtype("bfloat16")
        wide = (x.astype(np.float32) if x.dtype == bfloat16 else x for x in args)
        result = function(*wide, **options)
        if isinstance(result, tuple):
            return tuple(y.astype(bfloat16) for y in result)
        return result.astype(bfloat16)

    return rounded_once


# SciPy's own default is the softmax of the whole array.
SCIPY: Mapping[str, tuple[str, Mapping[str, int]]] = {
    "sigmoid": ("expit", {}),
    "softmax": ("softmax", {"axis": -1}),
    "log_softmax": ("log_softmax", {"axis": -1}),
}


def _scipy(case: Case) -> Function | None:
    from scipy import special

    # bfloat16 is none of NumPy's own dtypes: SciPy has no loops for it
    if case.function not in SCIPY or case.dtype == "bfloat16":
        return None
    name, options = SCIPY[case.function]
    return partial(getattr(special, name), **options)


# -- torch ----------------------------------------------------------------------------------------


@cache
def _torch_functions() -> Mapping[str, Function]:
    """Backward functions are the kernels that torch's autograd itself calls."""
    import torch
    from torch.nn import functional

    aten = torch.ops.aten

    def prelu_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
        slope = weight.view(1, -1, *[1] * (x.ndim - 2))
        dx, terms = aten._prelu_kernel_backward(dy, x, slope)
        return dx, terms.sum_to_size(slope.shape).view(-1)

    return {
        "linear": lambda x, scale, bias: torch.add(bias, x, alpha=scale),
        "sigmoid": torch.sigmoid,
        "sigmoid_backward": aten.sigmoid_backward.default,
        "tanh": torch.tanh,
        "tanh_backward": aten.tanh_backward.default,
        "relu": torch.relu,
        "prelu_backward": prelu_backward,
        "softmax": lambda x, axis=-1: torch.softmax(x, axis),
        "softmax_backward": lambda dy, y: aten._softmax_backward_data(dy, y, -1, y.dtype),
        "log_softmax": lambda x, axis=-1: torch.log_softmax(x, axis),
        "cross_entropy": lambda z, t, reduction: functional.cross_entropy(
            z, t, reduction=reduction
        ),
    }


def _torch(case: Case, compiled: Callable[[Function], Function] = lambda f: f) -> Function | None:
    import torch

    function = _torch_functions().get(case.base if "_with_grad" in case.function else case.function)
    if function is None:
        return None
    # torch falls back to eager, silently, after a few shapes of one function
    torch.compiler.reset()
    forward = compiled(function)
    if "_with_grad" not in case.function:
        return forward

    def with_grad(logits: Array, target: Array, reduction: str) -> tuple[Array, Array]:
        logits = logits.detach().requires_grad_()
        loss = forward(logits, target, reduction)
        (dlogits,) = torch.autograd.grad(loss, logits, torch.ones_like(loss))
        return loss, dlogits

    return with_grad


def _torch_compiled(case: Case) -> Function | None:
    import torch

    return _torch(case, partial(torch.compile, dynamic=False))


def _no_torch_gpu() -> str | None:
    missing = _missing("torch")
    if missing:
        return missing
    import torch

    return None if torch.cuda.is_available() else "torch finds no CUDA GPU"


# -- plain CuPy -----------------------------------------------------------------------------------

# What a user of CuPy writes: one scalar a thread, computed in float, rounded at the store.
ELEMENTWISE: Mapping[str, tuple[str, str]] = {
    "linear": ("T x, float32 scale, float32 bias", "scale * float(x) + bias"),
    "sigmoid": ("T x", "1 / (1 + expf(-float(x)))"),
    "sigmoid_backward": ("T dy, T y", "float(dy) * float(y) * (1 - float(y))"),
    "tanh": ("T x", "tanhf(float(x))"),
    "tanh_backward": ("T dy, T y", "float(dy) * (1 - float(y) * float(y))"),
    "relu": ("T x", "float(x) <= 0 ? 0.0f : float(x)"),
}


def plain_kernel(function: str) -> Function:
    import cupy

    takes, value = ELEMENTWISE[function]
    name = f"plain_{function}"
    kernel: Function = cupy.ElementwiseKernel(takes, "T out", f"out = T({value})", name)
    return kernel


def _cupy(case: Case) -> Function | None:
    if case.function not in ELEMENTWISE:
        return None
    kernel = plain_kernel(case.function)
    return lambda *args, **options: kernel(*args, *options.values())


# -- all of them ----------------------------------------------------------------------------------

OURS = "gpuact on NumPy"

ON_CPU = (
    Provider(OURS, "numpy", lambda: None, _ours),
    Provider("NumPy", "numpy", lambda: None, _numpy),
    Provider("SciPy", "numpy", partial(_missing, "scipy"), _scipy),
    Provider("torch", "torch on the CPU", partial(_missing, "torch"), _torch),
)

# torch.compile runs here alone: on a CPU it calls a C++ compiler for seconds in every case.
ON_GPU = (
    Provider("gpuact on CuPy", "cupy", partial(_unavailable, "cupy"), _ours),
    Provider("gpuact on Triton", "torch on CUDA", partial(_unavailable, "triton"), _ours),
    Provider("CuPy ElementwiseKernel", "cupy", partial(_unavailable, "cupy"), _cupy),
    Provider("torch", "torch on CUDA", _no_torch_gpu, _torch),
    Provider("torch.compile", "torch on CUDA", _no_torch_gpu, _torch_compiled),
)
