"""Who is timed: gpuact on each of its backends, and its rivals, each in its best spelling.

A rival is imported when it is first asked whether it can run. Functions take the arguments of
gpuact's public functions; one that a provider has no spelling for is not in its table. Chains,
which gpuact fuses, are spelled as their users write them.

Liger Kernel, QuACK and FlagGems run where they are installed; nothing here asks for them. Where
they have a function without autograd around it, that one is called: a short kernel takes less time.
Liger is not among the rivals of elementwise functions: its own are SwiGLU, GEGLU, squared ReLU and
DyT, none of which means the same as one of ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

import gpuact
from gpuact.libraries import HALF, numpy_dtype

from .cases import Case, Chain, Watched
from .tables import DROPPED, EVERYTHING, GATED, OUT, PLAIN, RECORDED, SCALED

Array = Any
Function = Callable[..., Any]


@dataclass(frozen=True)
class Provider:
    name: str
    place: str  # of measure.PLACES
    why_not: Callable[[], str | None]  # None where it can run, else a sentence
    spell: Callable[[Case], Function | None]  # None where it has no such function
    backend: str = ""  # of gpuact; empty for a rival
    compiles: bool = False  # for seconds, in every case
    overwrites: tuple[str, ...] = ()  # functions that write over their arrays
    waits: tuple[str, ...] = ()  # functions that wait for the device: no CUDA graph can hold them


def in_a_line(error: Exception) -> str:
    """What went wrong, without the advice below it."""
    first, *rest = f"{type(error).__name__}: {error}".splitlines()
    # "backend='inductor' raised:" says nothing yet
    return f"{first} {rest[0]}" if first.endswith(":") and rest else first


# -- gpuact ---------------------------------------------------------------------------------------


def _unavailable(backend: str) -> str | None:
    return gpuact.backends()[backend].reason or None


def _ours(case: Case) -> Function:
    return case.public  # the array's home picks the backend


def numbers(case: Case) -> list[Any]:
    """The options of an elementwise function, in the case's dtype: a Python float would widen the
    result."""
    return [numpy_dtype(case.dtype).type(value) for value in case.options.values()]


# -- what is watched, by others -------------------------------------------------------------------


def _saturated(case: Watched) -> Function:
    """Whether y is as good as constant there, as people write it. Bounds are the outermost numbers
    of the dtype that are within: what compares a half type would round any other to one of it."""
    dtype = numpy_dtype(case.dtype)
    compute = np.dtype("float32" if case.dtype in HALF else dtype)

    def bound(value: float, sign: int) -> float:
        value = float(compute.type(value))
        near = dtype.type(value)
        within = sign * float(near) >= sign * value
        return float(near if within else np.nextafter(near, dtype.type(sign * math.inf)))

    low, high = case.record.saturated
    below = bound(low, -1)
    if high is None:
        return lambda y: y <= below
    above = bound(high, 1)
    return lambda y: (y <= below) | (y >= above)


def _watching(
    case: Watched,
    activation: Function,
    seen: Function,
    compiled: Callable[[Function], Function] = lambda function: function,
) -> Function:
    """`activation`, and `seen` of its outputs: their moments, and which units are dead. gpuact
    finds these too, so no compiler may leave them out; but they are not compared."""

    def watched(x: Array) -> tuple[Array, ...]:
        y = activation(x)
        return y, *seen(y)

    run = compiled(watched if case.computes else seen)

    def without_the_dead(x: Array) -> tuple[Array, ...]:
        *found, _ = run(x)
        return tuple(found)

    return without_the_dead


# -- NumPy and SciPy ------------------------------------------------------------------------------


def _missing(package: str) -> str | None:
    try:
        import_module(package)
    except Exception as error:  # not there, or broken in whatever way
        return f"{package} cannot be imported ({error})"
    return None


def _slopes(weight: Array, x: Array) -> Array:
    """One a channel, along axis 1."""
    return weight.reshape(1, -1, *[1] * (x.ndim - 2))


def _prelu_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    slope = _slopes(weight, x)
    others = tuple(axis for axis in range(x.ndim) if axis != 1)
    return np.where(x > 0, dy, slope * dy), np.where(x > 0, 0, x * dy).sum(others)


def _softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _log_softmax(x: Array, axis: int = -1) -> Array:
    d = x - x.max(axis, keepdims=True)
    return d - np.log(np.exp(d).sum(axis, keepdims=True))


def _losses(log_s: Array, target: Array, label_smoothing: float) -> Array:
    hit = log_s[np.arange(len(target)), target]
    if not label_smoothing:
        return -hit
    return (label_smoothing - 1) * hit - label_smoothing * log_s.mean(-1)


def _cross_entropy(
    logits: Array, target: Array, reduction: str, label_smoothing: float = 0.0
) -> Array:
    return _losses(_log_softmax(logits), target, label_smoothing)


def _cross_entropy_with_grad(
    logits: Array, target: Array, reduction: str, label_smoothing: float = 0.0
) -> tuple[Array, Array]:
    log_s = _log_softmax(logits)
    dlogits = np.exp(log_s)
    if label_smoothing:
        dlogits -= label_smoothing / logits.shape[-1]
    dlogits[np.arange(len(target)), target] -= 1 - label_smoothing
    return _losses(log_s, target, label_smoothing), dlogits


def _cross_entropy_backward(
    dloss: Array, logits: Array, target: Array, lse: Array, reduction: str
) -> Array:
    dlogits = np.exp(logits - lse[:, None])
    dlogits[np.arange(len(target)), target] -= 1
    return (dloss[:, None] * dlogits).astype(logits.dtype, copy=False)


def _as_written(xp: Any) -> Mapping[str, Function]:
    """Elementwise functions and chains as people write them with NumPy or CuPy."""
    return {
        "linear": lambda x, scale, bias: scale * x + bias,
        "sigmoid": lambda x: 1 / (1 + xp.exp(-x)),
        "sigmoid_backward": lambda dy, y: dy * y * (1 - y),
        "tanh": lambda x: xp.tanh(x),
        "tanh_backward": lambda dy, y: dy * (1 - y * y),
        "relu": lambda x: xp.maximum(x, 0),
        "relu_backward": lambda dy, y: dy * (y > 0),
        "leaky_relu": lambda x, negative_slope: xp.maximum(x, negative_slope * x),
        "leaky_relu_backward": lambda dy, x, negative_slope: xp.where(
            x > 0, dy, negative_slope * dy
        ),
        "sigmoid_derivative": lambda x: xp.exp(-x) / (1 + xp.exp(-x)) ** 2,
        "tanh_derivative": lambda x: 1 - xp.tanh(x) ** 2,
        "prelu": lambda x, slope: xp.where(x > 0, x, slope * x),
        SCALED: lambda x, scale, bias: xp.maximum(scale * x + bias, 0),
        GATED: lambda x, gate, residual: gate / (1 + xp.exp(-x)) + residual,
    }


_DRAWS = np.random.default_rng()


def _dropout(x: Array, p: float = 0.1) -> Array:
    return x * (_DRAWS.random(x.shape, np.float32) >= p) / (1 - p)


NUMPY: Mapping[str, Function] = {
    **_as_written(np),
    "linear_backward": lambda dy, x, scale, bias: (scale * dy, (x * dy).sum(), dy.sum()),
    "prelu": lambda x, weight: np.where(x > 0, x, _slopes(weight, x) * x),
    "prelu_backward": _prelu_backward,
    "softmax": _softmax,
    "softmax_backward": lambda dy, y: y * (dy - (dy * y).sum(-1, keepdims=True)),
    "log_softmax": _log_softmax,
    "log_softmax_backward": lambda dy, y: dy - np.exp(y) * dy.sum(-1, keepdims=True),
    "cross_entropy": _cross_entropy,
    "cross_entropy_with_grad": _cross_entropy_with_grad,
    "cross_entropy_backward": _cross_entropy_backward,
    "softmax_jacobian": lambda y: (
        y[..., None] * (np.eye(y.shape[-1], dtype=y.dtype) - y[..., None, :])
    ),
    DROPPED: lambda x, weight, residual: _dropout(np.where(x > 0, x, weight * x)) + residual,
    EVERYTHING: lambda x, scale, bias, gate, residual: (
        _dropout(np.tanh(scale * x + bias)) * gate + residual
    ),
}


S = TypeVar("S")


def _spelled(table: Mapping[str, S], case: Case) -> S | None:
    """A chain goes by its text, and its backward has no spelling there."""
    if isinstance(case, Chain):
        return None if case.backward else table.get(case.text)
    return table.get(case.function)


def _numpy_watched(case: Watched) -> Function:
    saturated = _saturated(case)
    activation = _numpy(case.plain)
    assert activation is not None

    def seen(y: Array) -> tuple[Array, Array]:
        if case.dtype in HALF:  # whose sums overflow, or round at every step
            y = y.astype(np.float32)
        beyond = saturated(y)
        squares = float(y.var()) * y.size
        told = y.size, y.mean(), squares, np.count_nonzero(y == 0), np.count_nonzero(beyond)
        return np.array(told, np.float64), beyond.all(0)

    return _watching(case, activation, seen)


def _numpy(case: Case) -> Function | None:
    if isinstance(case, Watched):
        return _numpy_watched(case)
    function = _spelled(NUMPY, case)
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

    # SciPy has no loops for bfloat16, and its expit makes float64 of float16
    if case.function not in SCIPY or case.dtype in HALF:
        return None
    name, options = SCIPY[case.function]
    return partial(getattr(special, name), **options)


# -- numexpr and Numba ----------------------------------------------------------------------------

# `one` and `zero` are of the arrays' dtype, as the options are: another would widen the result.
NUMEXPR: Mapping[str, tuple[str, str]] = {
    "linear": ("x scale bias", "scale * x + bias"),
    "sigmoid": ("x", "one / (one + exp(-x))"),
    "sigmoid_backward": ("dy y", "dy * y * (one - y)"),
    "tanh": ("x", "tanh(x)"),
    "tanh_backward": ("dy y", "dy * (one - y * y)"),
    "relu": ("x", "where(x > zero, x, zero)"),
    "relu_backward": ("dy y", "where(y > zero, dy, zero)"),
    "leaky_relu": ("x slope", "where(x > zero, x, slope * x)"),
    "leaky_relu_backward": ("dy x slope", "where(x > zero, dy, slope * dy)"),
    SCALED: ("x scale bias", "where(scale * x + bias > zero, scale * x + bias, zero)"),
    GATED: ("x gate residual", "gate / (one + exp(-x)) + residual"),
}


def _numexpr(case: Case) -> Function | None:
    import numexpr

    found = _spelled(NUMEXPR, case)
    if found is None or case.dtype in HALF:  # of which it knows nothing
        return None
    (names, expression), number = found, numpy_dtype(case.dtype).type
    constants, given = {"one": number(1), "zero": number(0)}, numbers(case)

    def evaluated(*args: Array, **options: Any) -> Any:
        named = dict(zip(names.split(), (*args, *given), strict=True))
        return numexpr.evaluate(expression, local_dict=constants | named, global_dict={})

    return evaluated


def _numba(case: Case) -> Function | None:
    """A loop over the elements on all cores, compiled when it is asked for."""
    import numba

    number = numpy_dtype(case.dtype).type
    one, zero, exp, tanh = number(1), number(0), math.exp, math.tanh
    loops: Mapping[str, Function] = {
        "linear": lambda x, scale, bias: scale * x + bias,
        "sigmoid": lambda x: one / (one + exp(-x)),
        "sigmoid_backward": lambda dy, y: dy * y * (one - y),
        "tanh": lambda x: tanh(x),
        "tanh_backward": lambda dy, y: dy * (one - y * y),
        "relu": lambda x: x if x > zero else zero,
        "relu_backward": lambda dy, y: dy if y > zero else zero,
        "leaky_relu": lambda x, slope: x if x > zero else slope * x,
        "leaky_relu_backward": lambda dy, x, slope: dy if x > zero else slope * dy,
        SCALED: lambda x, scale, bias: max(scale * x + bias, zero),
        GATED: lambda x, gate, residual: gate / (one + exp(-x)) + residual,
    }
    loop = _spelled(loops, case)
    if loop is None or case.dtype in HALF:
        return None
    given = numbers(case)
    takes = ", ".join([case.dtype] * loop.__code__.co_argcount)
    compiled = numba.vectorize([f"{case.dtype}({takes})"], target="parallel")(loop)
    return lambda *args, **options: compiled(*args, *given)


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
        "linear_backward": lambda dy, x, scale, bias: (scale * dy, (x * dy).sum(), dy.sum()),
        "sigmoid": torch.sigmoid,
        "sigmoid_backward": aten.sigmoid_backward.default,
        "sigmoid_derivative": lambda x: torch.sigmoid(x) * torch.sigmoid(-x),
        "tanh": torch.tanh,
        "tanh_backward": aten.tanh_backward.default,
        "tanh_derivative": lambda x: 1 - torch.tanh(x).square(),
        "relu": torch.relu,
        "relu_backward": lambda dy, y: aten.threshold_backward(dy, y, 0),
        "leaky_relu": functional.leaky_relu,
        "leaky_relu_backward": lambda dy, x, negative_slope: aten.leaky_relu_backward(
            dy, x, negative_slope, False
        ),
        "prelu": functional.prelu,
        "prelu_backward": prelu_backward,
        "softmax": lambda x, axis=-1: torch.softmax(x, axis),
        "softmax_jacobian": lambda y: torch.diag_embed(y) - y.unsqueeze(-1) * y.unsqueeze(-2),
        "softmax_backward": lambda dy, y: aten._softmax_backward_data(dy, y, -1, y.dtype),
        "log_softmax": lambda x, axis=-1: torch.log_softmax(x, axis),
        "log_softmax_backward": lambda dy, y: aten._log_softmax_backward_data(dy, y, -1, y.dtype),
        "cross_entropy": lambda z, t, **options: functional.cross_entropy(z, t, **options),
    }


@cache
def _torch_chains() -> Mapping[str, Function]:
    import torch
    from torch.nn.functional import dropout, prelu

    return {
        SCALED: lambda x, scale, bias: torch.relu(scale * x + bias),
        GATED: lambda x, gate, residual: torch.sigmoid(x) * gate + residual,
        DROPPED: lambda x, weight, residual: dropout(prelu(x, weight), 0.1) + residual,
        EVERYTHING: lambda x, scale, bias, gate, residual: (
            dropout(torch.tanh(scale * x + bias), 0.1) * gate + residual
        ),
    }


def _complete(case: Chain, dy: Array, given: tuple[Array, ...]) -> list[Array]:
    """A chain's arguments, from those of its backward: the residual's values do not matter."""
    named = dict(zip(case.reads[1:], given, strict=True))
    return [named.get(name, dy) for name in ("x", *case.takes)]


def _differentiated(case: Chain, chain: Function) -> Function:
    """autograd's backward alone: forward ran before, and what it kept is read again each time."""
    import torch

    graphs: dict[tuple[int, Any], tuple[Array, list[Array]]] = {}

    def backward(dy: Array, *given: Array) -> Any:
        # autograd runs backward on the stream that forward ran on
        key = id(dy), torch.cuda.current_stream() if dy.is_cuda else None
        if key not in graphs:
            leaves = [tensor.detach().requires_grad_() for tensor in _complete(case, dy, given)]
            graphs[key] = chain(*leaves), leaves[: len(given)]
        y, leaves = graphs[key]
        return torch.autograd.grad(y, leaves, dy, retain_graph=True)

    return backward


def _pulled_back(case: Chain, chain: Function) -> Function:
    """From the inputs to the gradients, for the compiler to make of it what it can.

    Dropout draws a mask here instead of reading forward's: less to do than a training step has.
    """
    import torch

    def backward(dy: Array, *given: Array) -> Any:
        _, pull = torch.func.vjp(chain, *_complete(case, dy, given))
        return pull(dy)[: len(given)]

    return backward


def _torch_watched(case: Watched, compiled: Callable[[Function], Function] | None) -> Function:
    import torch

    saturated = _saturated(case)

    def seen(y: Array) -> tuple[Array, Array]:
        beyond = saturated(y)
        var, mean = torch.var_mean(y, correction=0)  # of half types rounded, but read once
        count = torch.full_like(mean, y.numel(), dtype=torch.float64)
        told = count, mean, var.double() * y.numel(), (y == 0).sum(), beyond.sum()
        return torch.stack(told), beyond.all(0)

    activation = _torch_functions()[case.activation]
    return _watching(case, activation, seen, *(compiled,) if compiled else ())


def _torch(case: Case, compiled: Callable[[Function], Function] | None = None) -> Function | None:
    if isinstance(case, Watched):
        return _torch_watched(case, compiled)
    if isinstance(case, Chain):
        chain = _torch_chains()[case.text]
        if case.backward:
            chain = (_pulled_back if compiled else _differentiated)(case, chain)
        return compiled(chain) if compiled else chain
    function = _torch_functions().get(case.function.removesuffix("_with_grad"))
    if case.function.endswith("_with_grad"):
        function = (_pulled_back_loss if compiled else _differentiated_loss)(function)
    return compiled(function) if compiled and function else function


def _differentiated_loss(loss: Function) -> Function:
    import torch

    def with_grad(logits: Array, target: Array, **options: Any) -> tuple[Array, Array]:
        logits = logits.detach().requires_grad_()
        y = loss(logits, target, **options)
        (dlogits,) = torch.autograd.grad(y, logits, torch.ones_like(y))
        return y, dlogits

    return with_grad


def _pulled_back_loss(loss: Function) -> Function:
    """In one graph, so that the compiler may compute both from what it has read once."""
    import torch

    def with_grad(logits: Array, target: Array, **options: Any) -> tuple[Array, Array]:
        y, pull = torch.func.vjp(lambda z: loss(z, target, **options), logits)
        (dlogits,) = pull(torch.ones_like(y))
        return y, dlogits

    return with_grad


def _torch_compiled(case: Case, **mode: str) -> Function | None:
    import torch

    return _torch(case, partial(torch.compile, dynamic=False, **mode))


def _no_torch_gpu() -> str | None:
    missing = _missing("torch")
    if missing:
        return missing
    import torch

    return None if torch.cuda.is_available() else "torch finds no CUDA GPU"


# -- CuPy -----------------------------------------------------------------------------------------

# What a user of CuPy writes: one scalar a thread, computed in float, rounded at the store.
ELEMENTWISE: Mapping[str, tuple[str, str]] = {
    "linear": ("T x, float32 scale, float32 bias", "scale * float(x) + bias"),
    "linear_backward": ("T dy, float32 scale", "scale * float(dy)"),
    "sigmoid": ("T x", "1 / (1 + expf(-float(x)))"),
    "sigmoid_backward": ("T dy, T y", "float(dy) * float(y) * (1 - float(y))"),
    "tanh": ("T x", "tanhf(float(x))"),
    "tanh_backward": ("T dy, T y", "float(dy) * (1 - float(y) * float(y))"),
    "relu": ("T x", "float(x) <= 0 ? 0.0f : float(x)"),
    "relu_backward": ("T dy, T y", "float(y) <= 0 ? 0.0f : float(dy)"),
    "leaky_relu": ("T x, float32 slope", "(float(x) > 0 ? 1 : slope) * float(x)"),
    "leaky_relu_backward": ("T dy, T x, float32 slope", "(float(x) > 0 ? 1 : slope) * float(dy)"),
    "prelu": ("T x, T slope", "(float(x) > 0 ? 1 : float(slope)) * float(x)"),
    "prelu_backward": ("T dy, T x, T slope", "(float(x) > 0 ? 1 : float(slope)) * float(dy)"),
    SCALED: ("T x, T scale, T bias", "fmaxf(float(scale) * float(x) + float(bias), 0)"),
    GATED: ("T x, T gate, T residual", "float(gate) / (1 + expf(-float(x))) + float(residual)"),
}

# The terms of the sums over channels or over everything, which follow in kernels of their own.
SUMS: Mapping[str, tuple[str, str]] = {
    "x·dy": ("T dy, T x", "float(x) * float(dy)"),
    "dy": ("T dy", "float(dy)"),
    "x·dy where x ≤ 0": ("T dy, T x", "float(x) > 0 ? 0.0f : float(x) * float(dy)"),
}


def plain_kernel(function: str) -> Function:
    import cupy

    takes, value = ELEMENTWISE[function]
    name = f"plain_{function}" if function.isidentifier() else "plain_chain"
    kernel: Function = cupy.ElementwiseKernel(takes, "T out", f"out = T({value})", name)
    return kernel


def plain_sum(terms: str) -> Function:
    import cupy

    takes, value = SUMS[terms]
    total = takes, "T out", value, "a + b", "out = T(a)", "0", "plain_sum"
    kernel: Function = cupy.ReductionKernel(*total, reduce_type="float")
    return kernel


def _cupy(case: Case) -> Function | None:
    key = case.text if isinstance(case, Chain) else case.function
    if key not in ELEMENTWISE or (isinstance(case, Chain) and case.backward):
        return None
    kernel = plain_kernel(key)
    if key == "linear_backward":
        dscale, dbias = plain_sum("x·dy"), plain_sum("dy")
        return lambda dy, x, scale, bias: (kernel(dy, scale), dscale(dy, x), dbias(dy))
    if key == "prelu":
        return lambda x, weight: kernel(x, _slopes(weight, x))
    if key == "prelu_backward":
        dweight, others = plain_sum("x·dy where x ≤ 0"), (0, *range(2, len(case.shape)))
        return lambda dy, x, weight: (
            kernel(dy, x, _slopes(weight, x)),
            dweight(dy, x, axis=others),
        )
    return lambda *args, **options: kernel(*args, *options.values())


def fused_by_cupy(case: Case) -> Function | None:
    """What `cupy.fuse` makes of a function as people write it."""
    import cupy

    written = _spelled(_as_written(cupy), case)
    if written is None:
        return None
    fused: Function = cupy.fuse(kernel_name="fused_by_cupy")(written)
    return fused


def _cupy_fuse(case: Case) -> Function | None:
    fused = fused_by_cupy(case)
    if fused is None:
        return None
    given = numbers(case)
    if case.function == "prelu":
        return lambda x, weight: fused(x, _slopes(weight, x))
    return lambda *args, **options: fused(*args, *given)


def _cupyx(case: Case) -> Function | None:
    from cupyx.scipy import special

    if case.function not in SCIPY:
        return None
    name, options = SCIPY[case.function]
    function = partial(getattr(special, name), **options)
    # of half types some are made float32 or float64: whoever wants his dtype back casts
    return lambda x, **given: function(x, **given).astype(x.dtype, copy=False)


# -- kernels of others for torch's tensors --------------------------------------------------------


def _no_rival(module: str) -> str | None:
    return _no_torch_gpu() or _missing(module)


def _liger(case: Case) -> Function | None:
    """Its softmax refuses rows of more than 65536; its losses are of the logits' dtype."""
    from types import SimpleNamespace

    from liger_kernel.ops.cross_entropy import cross_entropy_forward
    from liger_kernel.ops.softmax import LigerSoftmaxFunction
    from liger_kernel.ops.utils import calculate_settings

    forgets = SimpleNamespace(save_for_backward=lambda *tensors: None)

    def backward(dy: Array, y: Array) -> Array:
        block, warps = calculate_settings(y.shape[-1])
        kept = SimpleNamespace(
            saved_tensors=(y,), BLOCK_SIZE=block, num_warps=warps, multi_block_launch=False
        )
        return LigerSoftmaxFunction.backward(kept, dy)

    def loss(logits: Array, target: Array, reduction: str, label_smoothing: float = 0.0) -> Any:
        # weight, ignored class, z-loss, smoothing, reduction, softcap, whether z-loss is returned
        more = None, -100, 0.0, label_smoothing, reduction, None, False
        return cross_entropy_forward(logits, target, *more)

    def with_grad(logits: Array, target: Array, **options: Any) -> tuple[Array, Array]:
        found = loss(logits.requires_grad_(), target, **options)
        return found[0], logits

    functions: Mapping[str, Function] = {
        "softmax": lambda x: LigerSoftmaxFunction.forward(forgets, x),
        "softmax_backward": backward,
        "cross_entropy": lambda logits, target, **options: loss(logits, target, **options)[0],
        "cross_entropy_with_grad": with_grad,
    }
    return None if "axis" in case.options else functions.get(case.function)


def _quack(case: Case) -> Function | None:
    """It compiles for every length of a row, and refuses odd ones."""
    from quack.cross_entropy import cross_entropy_fwd
    from quack.softmax import softmax_bwd, softmax_fwd

    functions: Mapping[str, Function] = {
        "softmax": softmax_fwd,
        "softmax_backward": softmax_bwd,
        "cross_entropy": lambda logits, target, reduction: cross_entropy_fwd(logits, target),
        "cross_entropy_with_grad": lambda logits, target, reduction: cross_entropy_fwd(
            logits, target, return_dx=True
        ),
    }
    lacks = "axis" in case.options or "label_smoothing" in case.options
    return None if lacks else functions.get(case.function)


def _flag_gems(case: Case) -> Function | None:
    import flag_gems

    functions: Mapping[str, Function] = {
        "relu": flag_gems.relu,
        "softmax": lambda x, axis=-1: flag_gems.softmax(x, axis),
        "softmax_backward": lambda dy, y: flag_gems.softmax_backward(dy, y, -1, y.dtype),
        "log_softmax": lambda x, axis=-1: flag_gems.log_softmax(x, axis),
        "log_softmax_backward": lambda dy, y: flag_gems.log_softmax_backward(dy, y, -1, y.dtype),
        "cross_entropy": flag_gems.cross_entropy_loss,
        "cross_entropy_with_grad": _differentiated_loss(flag_gems.cross_entropy_loss),
    }
    return functions.get(case.function)


# -- all of them ----------------------------------------------------------------------------------

OURS = "gpuact on NumPy"

ON_CPU = (
    Provider(OURS, "numpy", lambda: None, _ours, "numpy"),
    Provider("NumPy", "numpy", lambda: None, _numpy),
    Provider("SciPy", "numpy", partial(_missing, "scipy"), _scipy),
    Provider("numexpr", "numpy", partial(_missing, "numexpr"), _numexpr),
    Provider("Numba", "numpy", partial(_missing, "numba"), _numba),
    Provider("torch", "torch on the CPU", partial(_missing, "torch"), _torch),
)

_no_cupy, _no_triton = (partial(_unavailable, name) for name in ("cupy", "triton"))

# torch.compile runs here alone: on a CPU it calls a C++ compiler for seconds in every case. Tuned,
# it does without CUDA graphs of its own, which would copy every input into memory of theirs.
TUNED = partial(_torch_compiled, mode="max-autotune-no-cudagraphs")
ON_GPU = (
    Provider("gpuact on CuPy", "cupy", _no_cupy, _ours, "cupy"),
    Provider("gpuact on Triton", "torch on CUDA", _no_triton, _ours, "triton"),
    Provider("torch", "torch on CUDA", _no_torch_gpu, _torch),
    Provider("torch.compile", "torch on CUDA", _no_torch_gpu, _torch_compiled, compiles=True),
    Provider("torch.compile, tuned", "torch on CUDA", _no_torch_gpu, TUNED, compiles=True),
    Provider("CuPy ElementwiseKernel", "cupy", _no_cupy, _cupy),
    Provider("cupy.fuse", "cupy", _no_cupy, _cupy_fuse),
    Provider("cupyx", "cupy", _no_cupy, _cupyx),
    Provider(
        "Liger",
        "torch on CUDA",
        partial(_no_rival, "liger_kernel.ops"),
        _liger,
        overwrites=("cross_entropy_with_grad",),
        waits=("cross_entropy", "cross_entropy_with_grad"),  # asks how many targets there are
    ),
    Provider("QuACK", "torch on CUDA", partial(_no_rival, "quack.softmax"), _quack),
    Provider("FlagGems", "torch on CUDA", partial(_no_rival, "flag_gems"), _flag_gems),
)

# Whose autograd is asked what it holds.
HOLDERS_ON_CPU = (
    Provider("gpuact on torch tensors", "torch on the CPU", partial(_missing, "torch"), _ours),
    ON_CPU[-1],
)
HOLDERS_ON_GPU = ON_GPU[1:4]


# -- a call of relu -------------------------------------------------------------------------------

Ways = Mapping[str, Callable[[], Array]]


@dataclass(frozen=True)
class Caller:
    """Who calls relu, and how: `ways` is given x, and y to write to."""

    name: str
    place: str
    why_not: Callable[[], str | None]
    ways: Callable[[Array, Array], Ways]


def _our_calls(x: Array, y: Array) -> Ways:
    return {PLAIN: partial(gpuact.relu, x), OUT: partial(gpuact.relu, x, out=y)}


def _our_torch_calls(x: Array, y: Array) -> Ways:
    return {**_our_calls(x, y), RECORDED: partial(gpuact.relu, x.detach().requires_grad_())}


def _numpy_calls(x: Array, y: Array) -> Ways:
    zero = x.dtype.type(0)  # beside a bfloat16, NumPy 2.1 takes a plain 0 for a float32
    return {PLAIN: partial(np.maximum, x, zero), OUT: partial(np.maximum, x, zero, out=y)}


def _cupy_calls(x: Array, y: Array) -> Ways:
    kernel = plain_kernel("relu")
    return {PLAIN: partial(kernel, x), OUT: partial(kernel, x, y)}


def _torch_calls(x: Array, y: Array) -> Ways:
    import torch

    return {
        PLAIN: partial(torch.relu, x),
        OUT: partial(torch.clamp_min, x, 0, out=y),
        RECORDED: partial(torch.relu, x.detach().requires_grad_()),
    }


def _empty_function_calls(x: Array, y: Array) -> Ways:
    """What Python costs under autograd: a function around torch's relu that does nothing else."""
    import torch

    class Empty(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Array) -> Array:
            return torch.relu(x)

    return {RECORDED: partial(Empty.apply, x.detach().requires_grad_())}


def _compiled_calls(x: Array, y: Array) -> Ways:
    import torch

    relu = torch.compile(torch.relu, dynamic=False)
    return {PLAIN: partial(relu, x), RECORDED: partial(relu, x.detach().requires_grad_())}


_no_torch = partial(_missing, "torch")

CALLERS_ON_CPU = (
    Caller("gpuact on NumPy", "numpy", lambda: None, _our_calls),
    Caller("NumPy", "numpy", lambda: None, _numpy_calls),
    Caller("gpuact on torch tensors", "torch on the CPU", _no_torch, _our_torch_calls),
    Caller("torch", "torch on the CPU", _no_torch, _torch_calls),
    Caller("an empty autograd function", "torch on the CPU", _no_torch, _empty_function_calls),
)

CALLERS_ON_GPU = (
    Caller("gpuact on CuPy", "cupy", partial(_unavailable, "cupy"), _our_calls),
    Caller("gpuact on Triton", "torch on CUDA", partial(_unavailable, "triton"), _our_torch_calls),
    Caller("CuPy ElementwiseKernel", "cupy", partial(_unavailable, "cupy"), _cupy_calls),
    Caller("torch", "torch on CUDA", _no_torch_gpu, _torch_calls),
    Caller("an empty autograd function", "torch on CUDA", _no_torch_gpu, _empty_function_calls),
    Caller("torch.compile", "torch on CUDA", _no_torch_gpu, _compiled_calls),
)


# -- inside PyTorch -------------------------------------------------------------------------------


def _module(case: Case) -> Function | None:
    from gpuact.torch import nn

    modules: Mapping[str, Callable[[], Function]] = {
        "relu": nn.ReLU,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "prelu": partial(nn.PReLU, case.shape[1]),
        "softmax": partial(nn.Softmax, dim=-1),
        "log_softmax": partial(nn.LogSoftmax, dim=-1),
        "cross_entropy": nn.CrossEntropyLoss,
    }
    return modules[case.function]() if case.function in modules else None


@cache
def _no_compiler(device: str) -> str | None:
    """What keeps torch.compile from compiling anything: no C++ compiler, say."""
    import torch

    try:
        torch.compile(torch.relu)(torch.zeros(1, device=device))
    except Exception as error:
        return f"torch.compile cannot compile here ({in_a_line(error)})"
    return None


def _in_torch(
    place: str,
    device: str,
    not_theirs: Callable[[], str | None],
    not_ours: Callable[[], str | None],
) -> tuple[Provider, ...]:
    """Where `compiles`, what is spelled is still to be compiled, by who calls it in some way."""

    def compiler(why_not: Callable[[], str | None]) -> Callable[[], str | None]:
        return lambda: why_not() or _no_compiler(device)

    return (
        Provider("torch", place, not_theirs, _torch),
        Provider("torch.compile", place, compiler(not_theirs), _torch, compiles=True),
        Provider("gpuact", place, not_ours, _ours),
        Provider("gpuact, torch.compile", place, compiler(not_ours), _ours, compiles=True),
        Provider("gpuact.torch.nn", place, not_ours, _module),
    )


IN_TORCH_ON_CPU = _in_torch("torch on the CPU", "cpu", _no_torch, _no_torch)
IN_TORCH_ON_GPU = _in_torch("torch on CUDA", "cuda", _no_torch_gpu, partial(_unavailable, "triton"))
