"""From a public call to an operation: arguments checked, the array's library and backend found.

Here, too, PyTorch's ways are entered. A call on tensors that require a gradient goes through
`gpuact.torch.autograd`. One that more than autograd must see (torch.compile, a transformation of
torch.func, forward mode, a subclass of Tensor), and one that computes a derivative and is to be
differentiated itself, goes to the operators of `gpuact.torch.ops`. Every other goes straight to
`operations`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from functools import cache
from inspect import signature
from numbers import Real
from types import ModuleType
from typing import Any, cast

import numpy as np

from . import arguments, operations, routes
from .catalogue import FUNCTIONS, Function, Pass
from .dispatch import Call, resolve
from .fusion import Dropout, Fusion
from .libraries import (
    FLOATING,
    NUMBERS,
    Library,
    autocast,
    dtype_name,
    library_of,
    mode,
    tracing,
    word,
)
from .operations import Loss
from .scores import Scores

Array = Any
Parameters = Mapping[str, Any]


@cache
def autograd() -> ModuleType:
    """Loaded with the first tensor that requires grad: torch is there then, and only then."""
    from .torch import autograd

    return autograd


def tracked(call: Call, *values: Any) -> bool:
    """Whether autograd must record this call."""
    library = call.library
    if not library.tracks:
        return False
    for value in values:
        if value is not None and not isinstance(value, float) and library.tracked(value):
            return True
    return False


def operators() -> Any:
    """The functions below, over PyTorch's operators. Not cached: torch.compile reads this, too."""
    from .torch import ops

    return ops


def watched(*operands: Any, derived: bool = False) -> bool:
    """Whether PyTorch's operators take a call; `derived`: autograd alone is reason enough."""
    for a in operands:
        library = library_of(a)
        if library is not None and library.tracks:
            if derived and library.recording():
                derived = any(getattr(b, "requires_grad", False) for b in operands)
                return derived or library.watched(*operands)
            return library.watched(*operands)
    return False


def _check_out(call: Call, out: Any, like: Array, *inputs: Any) -> None:
    """Whether `out` can take a result of like's shape and dtype."""
    arguments.output(call.library, out, like.shape, call.library.dtype(like), like)
    _refuse_tracked("out", call, out, *inputs)


def _refuse_tracked(name: str, call: Call, *tensors: Any) -> None:
    if tracked(call, *tensors):
        raise ValueError(
            f"{name}: came with a tensor that requires grad; allowed are tensors that do not, or "
            f"no {name}"
        )


# -- elementwise ----------------------------------------------------------------------------------


def _parameters(
    library: Library, x: Array, params: Parameters, channel_axis: Any
) -> dict[str, Any]:
    """Floats as they are, arrays floating and of x's number of dimensions."""
    ready: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, float):
            ready[name] = value
            continue
        value = arguments.floating(name, library, value)
        if channel_axis is ...:  # broadcast from the right, as linear's parameters
            shape = arguments.broadcast_shape(name, value, x.shape)
        else:
            shape = arguments.channel_shape(name, value, x.shape, channel_axis)
        ready[name] = value.reshape(shape)
    return ready


def _given(function: Function, params: Parameters) -> dict[str, Any]:
    """Parameters as floats or arrays; only those that can be learned may be arrays."""
    return {k: arguments.parameter(k, v, k in function.sums) for k, v in params.items()}


def _resolve(arrays: Parameters, params: Parameters) -> Call:
    return resolve(**arrays, **{k: v for k, v in params.items() if not isinstance(v, float)})


def _pick(kernel: Pass, params: Parameters) -> list[Any]:
    return [params[name] for name in kernel.parameters]


def activation(
    name: str, x: Any, out: Any = None, *, channel_axis: Any = ..., **params: Any
) -> Any:
    if tracing(x):
        return operators().activation(name, x, out, channel_axis=channel_axis, **params)
    entry: Hashable = name
    if channel_axis is not ...:
        if type(channel_axis) is not int:
            channel_axis = arguments.whole("channel_axis", channel_axis)
        entry = name, channel_axis
    given = (x, *params.values())
    if out is not None:
        return _activation_into(entry, name, given, params, channel_axis, out)
    route = routes.find(entry, given)
    if route is None:
        if watched(*given):
            return operators().activation(name, x, channel_axis=channel_axis, **params)
        function = FUNCTIONS[name]
        call, *ready = looked_at(
            function, function.forward, x, params, channel_axis, function.integers
        )
        route = routes.learn(entry, given, call, ready, _elementwise(function.forward))
        if route is None:
            if tracked(call, *ready):
                return autograd().activation(function, call, None, *ready)
            return operations.elementwise(call, function.forward, ready[:1], ready[1:])
    if route.recorded():
        return autograd().activation(FUNCTIONS[name], route.call, route, *route.operands(given))
    return route.run(given)


def _elementwise(kernel: Pass) -> Callable[[Call, Sequence[Any]], routes.Launch]:
    """What prepares a launch of this pass, when its operands are known."""
    return lambda call, operands: operations.prepare(call, kernel, operands)


def _activation_into(
    entry: Hashable,
    name: str,
    given: tuple[Any, ...],
    params: Parameters,
    channel_axis: Any,
    out: Any,
) -> Any:
    entry = "into", entry
    route = routes.find(entry, (*given, out))
    if route is not None and not route.recorded() and route.run_into(given, out):
        return out
    if watched(*given, out):
        return operators().activation(name, given[0], out, channel_axis=channel_axis, **params)
    function = FUNCTIONS[name]
    kernel = function.forward
    call, *ready = looked_at(function, kernel, given[0], params, channel_axis, function.integers)
    _check_out(call, out, ready[0], *ready)
    result = operations.elementwise(call, kernel, ready[:1], ready[1:], out)
    if all(isinstance(p, float) for p in ready[1:]) and call.library.direct(out, ready[0]):

        def prepare(call: Call, operands: Sequence[Any]) -> routes.Launch:
            return operations.prepare(call, kernel, operands[:-1], operands[-1])

        routes.learn(entry, (*given, out), call, (*ready, out), prepare)
    return result


def looked_at(
    function: Function,
    kernel: Pass,
    x: Any,
    params: Parameters,
    channel_axis: Any,
    integers: str,
) -> tuple[Any, ...]:
    """The long way: the call, x and the parameters, checked and as the kernel takes them."""
    x = arguments.array("x", x)
    params = _given(function, params)
    call = _resolve({"x": x}, params)
    x = arguments.activation_input("x", call.library, x, integers)
    return call, x, *_pick(kernel, _parameters(call.library, x, params, channel_axis))


def derivative(
    name: str, x: Any, out: Any = None, *, channel_axis: Any = ..., **params: Any
) -> Any:
    if tracing(x) or watched(x, *params.values(), derived=out is None):
        return operators().derivative(name, x, out, channel_axis=channel_axis, **params)
    if channel_axis is not ...:
        channel_axis = arguments.whole("channel_axis", channel_axis)
    function = FUNCTIONS[name]
    slope = cast(Pass, function.slope)
    integers = "refused" if function.integers == "refused" else "float32"
    call, x, *values = looked_at(function, slope, x, params, channel_axis, integers)
    if out is not None:
        _check_out(call, out, x, x, *values)
    return operations.elementwise(call, slope, (x,), values, out)


def activation_backward(
    name: str,
    dy: Any,
    stored: Mapping[str, Any],
    *,
    channel_axis: Any = ...,
    **params: Any,
) -> tuple[Any, ...]:
    """dx, then the gradient of each parameter that has one; `stored` is {"x": x} or {"y": y}."""
    if tracing(dy):
        return operators().activation_backward(
            name, dy, stored, channel_axis=channel_axis, **params
        )
    ((what, kept),) = stored.items()
    if channel_axis is not ...:
        channel_axis = arguments.whole("channel_axis", channel_axis)
    entry, given = (name, "backward", channel_axis), (dy, kept, *params.values())
    route = routes.find(entry, given)
    if (route is None or route.recorded()) and watched(*given, derived=True):
        return operators().activation_backward(
            name, dy, stored, channel_axis=channel_axis, **params
        )
    function = FUNCTIONS[name]
    if route is None:
        dy, kept = arguments.array("dy", dy), arguments.array(what, kept)
        checked = _given(function, params)
        call = _resolve({what: kept, "dy": dy}, checked)
        integers = "refused" if function.integers == "refused" else "float32"
        kept = arguments.activation_input(what, call.library, kept, integers)
        dy = arguments.gradient("dy", call.library, dy, what, kept)
        ready = [dy, kept, *_parameters(call.library, kept, checked, channel_axis).values()]
        prepare = _nothing if function.sums else _elementwise(function.backward)
        route = routes.learn(entry, given, call, ready, prepare)
        params = checked
    else:
        call, ready = route.call, [*route.operands(given)]

    if route is not None and route.launch is not None:
        return (route.run(given),)
    if not function.sums:
        return (operations.elementwise(call, function.backward, ready[:2], ready[2:]),)
    named = dict(zip(("dy", what, *params), ready, strict=True))
    found = backward(call, function, named, {"x", *function.sums})
    shapes = [getattr(params[k], "shape", ()) for k in function.sums]
    sums = [found[k].reshape(shape) for k, shape in zip(function.sums, shapes, strict=True)]
    return (found["x"], *sums)


def _nothing(call: Call, operands: Sequence[Any]) -> None:
    """Instead of what would prepare a launch, where it takes more than one."""


def gradient(
    function: Function, backend: str, dy: Array, kept: Array, params: tuple[float, ...]
) -> Array:
    """dx for autograd, on the backend that ran forward."""
    kernel = function.backward
    entry, given = (function.name, "gradient", backend), (dy, kept, *params)
    route = routes.find(entry, given)
    if (route is None or route.recorded()) and watched(*given, derived=True):
        return operators().call(f"{function.name}_backward", *given, backend)
    if route is None:
        library = library_of(dy)
        assert library is not None  # a tensor always has one
        call = Call(library, dy, backend)
        route = routes.learn(entry, given, call, given, _elementwise(kernel))
        if route is None:
            return operations.elementwise(call, kernel, (dy, kept), params)
    return route.run(given)


# What fused calls a parameter that is learned
_FUSED_NAMES = {"scale": "scale", "bias": "bias", "weight": "slope"}


def backward(
    call: Call, function: Function, named: Parameters, wanted: Container[str]
) -> dict[str, Array]:
    """The gradients wanted of x and of parameters; these in x's number of dimensions."""
    if not any(name in wanted for name in function.sums):
        kernel = function.backward
        arrays = tuple(named[name] for name in kernel.reads)
        values = _pick(kernel, named)
        return {"x": operations.elementwise(call, kernel, arrays, values)} if "x" in wanted else {}
    # Sums are formed in the pass that forms dx. A bias matters to its own gradient's shape alone.
    names = {_FUSED_NAMES[name]: name for name in function.sums}
    params = [named.get(names.get(name, "")) for name in ("scale", "bias", "slope")]
    asked = {name for name in ("x", *names) if names.get(name, name) in wanted}
    found = operations.fused_backward(
        call, Fusion(function.name), named["dy"], named["x"], params, None, asked
    )
    return {names.get(name, name): gradient for name, gradient in found.items()}


# -- fused ----------------------------------------------------------------------------------------


# The operands of `fused` in the order in which they come here, and of its backward dy behind them
FUSED = ("x", "scale", "bias", "weight", "negative_slope", "gate", "residual")


def _fused_entry(activation: Any, dropout: Any, channel_axis: Any) -> tuple[Hashable, bool]:
    """What tells calls of `fused` apart beside the operands, and whether elements are dropped.

    Not which: every call has another offset.
    """
    if dropout is None:
        return (activation, channel_axis, False), False
    if type(dropout) is not Dropout:
        raise TypeError(f"dropout: {type(dropout).__name__} came, allowed is gpuact.Dropout")
    drops = dropout.drops
    return (activation, channel_axis, drops), drops


# Of each activation the parameters. In a dict: of a mappingproxy, as catalogue.FUNCTIONS is one,
# torch.compile says that an empty one is true, and it gives up on one once any dict was changed.
ACTIVATIONS = {f.name: f.forward.parameters for f in FUNCTIONS.values() if f.kind == "elementwise"}


def check_activation(activation: Any) -> None:
    """Whether this is the name of an elementwise function."""
    if not (isinstance(activation, str) and activation in ACTIVATIONS):
        came = word(activation)
        raise ValueError(f"activation: {came} came, allowed are {', '.join(ACTIVATIONS)}")


def check_fused(activation: Any, weight: Any) -> None:
    """Whether `fused` takes this activation, with slopes or without."""
    check_activation(activation)
    if ("weight" in ACTIVATIONS[activation]) != (weight is not None):
        allowed = "slopes" if weight is None else "none"
        came = "none" if weight is None else type(weight).__name__
        raise ValueError(f"weight: {came} came, {activation} takes {allowed}")


def _fused_looked_at(
    activation: Any, channel_axis: Any, given: Mapping[str, Any]
) -> tuple[Call, tuple[Any, ...]]:
    """The long way: the call, and the operands in their order."""
    check_fused(activation, given["weight"])
    params = {
        name: arguments.parameter(name, given[name], name != "negative_slope")
        for name in ("scale", "bias", "weight", "negative_slope")
        if given[name] is not None or name == "negative_slope"
    }
    arrays = {
        name: arguments.array(name, given[name])
        for name in ("x", "gate", "residual", "dy")
        if name in given and (name in ("x", "dy") or given[name] is not None)
    }
    call = _resolve(arrays, params)
    integers = FUNCTIONS[activation].integers
    x = arguments.activation_input("x", call.library, arrays.pop("x"), integers)
    x = arguments.floating("x", call.library, x)  # integers count as float32, for relu too
    ready = {**given, "x": x, **_parameters(call.library, x, params, channel_axis)}
    for name, a in arrays.items():
        if name == "dy":
            ready[name] = arguments.gradient(name, call.library, a, "x", x)
            continue
        ready[name] = arguments.floating(name, call.library, a)
        if tuple(a.shape) != tuple(x.shape):
            raise ValueError(f"{name}: shape {tuple(a.shape)} came, x has {tuple(x.shape)}")
    return call, tuple(ready.values())


def _slope(activation: str) -> int:
    """Which of FUSED is the formula's slope; the weight, if there is none, for it is None then."""
    number = "negative_slope" in FUNCTIONS[activation].forward.parameters
    return FUSED.index("negative_slope" if number else "weight")


def fused(
    activation: Any, dropout: Any, channel_axis: Any, out: Any, given: tuple[Any, ...]
) -> Any:
    """given: FUSED."""
    if tracing(given[0]):
        return operators().fused(activation, dropout, channel_axis, out, given)
    if type(channel_axis) is not int:
        channel_axis = arguments.whole("channel_axis", channel_axis)
    entry, drops = _fused_entry(activation, dropout, channel_axis)
    if not drops:
        dropout = None
    route = None if out is not None else routes.find(("fused", entry), given)
    if route is not None and not route.recorded():
        return route.run(given, dropout)
    if route is not None:
        call, ready = route.call, route.operands(given)
    elif watched(*given, out):
        return operators().fused(activation, dropout, channel_axis, out, given)
    else:
        call, ready = _fused_looked_at(
            activation, channel_axis, dict(zip(FUSED, given, strict=True))
        )
    fusion, slope = Fusion(activation, dropout), _slope(activation)
    if route is None and out is None:

        def prepare(call: Call, operands: Sequence[Any]) -> routes.Launch:
            return operations.prepare_fused(call, fusion, operands, slope)

        route = routes.learn(("fused", entry), given, call, ready, prepare)
        if route is not None and not route.recorded():
            return route.run(given, dropout)
    x, scale, bias, *_, gate, residual = ready
    params = (scale, bias, ready[slope])
    if out is not None:
        _check_out(call, out, x, x, *params, gate, residual)
    elif tracked(call, x, *params, gate, residual):
        return autograd().fused(call, fusion, x, *params, gate, residual)
    return operations.fused(call, fusion, x, params, gate, residual, out)


def fused_backward(
    activation: Any, dropout: Any, channel_axis: Any, dy: Any, given: tuple[Any, ...]
) -> dict[str, Any]:
    """given: FUSED."""
    if tracing(dy) or watched(dy, *given, derived=True):
        return operators().fused_backward(activation, dropout, channel_axis, dy, given)
    channel_axis = arguments.whole("channel_axis", channel_axis)
    entry, drops = _fused_entry(activation, dropout, channel_axis)
    route = routes.find(("fused_backward", entry), (*given, dy))
    if route is not None:
        call, ready = route.call, route.operands((*given, dy))
    else:
        named = dict(zip((*FUSED, "dy"), (*given, dy), strict=True))
        call, ready = _fused_looked_at(activation, channel_axis, named)
        routes.learn(("fused_backward", entry), (*given, dy), call, ready, _nothing)
    *ready, dy = ready
    fusion = Fusion(activation, dropout if drops else None)
    x, scale, bias, *_, gate, residual = ready
    slope = ready[_slope(activation)]
    # by the caller's name and by the kernels'
    asked = {"x": "x"}
    for name, slot in _FUSED_NAMES.items():
        if ready[FUSED.index(name)] is not None:
            asked[name] = slot
    if gate is not None:
        asked["gate"] = "gate"
    params = scale, bias, slope
    gradients = operations.fused_backward(call, fusion, dy, x, params, gate, asked.values())
    found = {name: gradients[slot] for name, slot in asked.items()}
    for name in _FUSED_NAMES:
        if name in found:
            found[name] = found[name].reshape(np.shape(given[FUSED.index(name)]))
    if residual is not None:
        found["residual"] = call.library.astype(dy, call.library.dtype(residual))
    return found


# -- rows -----------------------------------------------------------------------------------------


def _told(axis: Any) -> bool:
    """Whether an axis tells calls apart: 1.0 is equal to 1, and an array may change."""
    return type(axis) is int or axis is None


def _plain(scale: Any) -> bool:
    """Whether kernels need not scale."""
    return type(scale) in NUMBERS and scale == 1.0


def rows(
    name: str,
    x: Any,
    axis: Any,
    dtype: Any,
    out: Any,
    scale: Any = 1.0,
    mask: Any = None,
    causal: Any = False,
    all_masked: Any = "nan",
) -> Any:
    if on := mode(x):
        if on == "compile":
            return operators().rows(name, x, axis, dtype, out, scale, mask, causal, all_masked)
        if dtype is None and out is None:
            x = autocast(x)
    function = FUNCTIONS[name]
    entry, given = (name, axis, causal, all_masked, _plain(scale)), (x, scale, mask)
    usual = dtype is None and out is None and _told(axis) and type(causal) is bool
    route = routes.find(entry, given) if usual else None
    if route is not None and route.launch is not None and not route.recorded():
        return route.run(given)
    if route is None:
        if watched(x, mask, out):
            return operators().rows(name, x, axis, dtype, out, scale, mask, causal, all_masked)
        x = arguments.array("x", x)
        mask = None if mask is None else arguments.array("mask", mask)
        call = resolve(x=x) if mask is None else resolve(x=x, mask=mask)
        x = arguments.floating("x", call.library, x, dtype)
    else:
        call = route.call
    axes = arguments.row_axes(axis, x.ndim)
    scores = _scores(call, x, axes, scale, mask, causal, all_masked)
    if out is not None:
        _check_out(call, out, x, x)
    # one that requires grad is refused where autograd records, and elsewhere is not
    if usual and route is None and not (mask is not None and call.library.learns(mask)):

        def prepare(call: Call, operands: Sequence[Any]) -> routes.Launch | None:
            return operations.prepare_rows(call, function.forward, axes, operands, scores)

        ready = (x, 1.0 if scores is None else scores.scale, mask)
        route = routes.learn(entry, given, call, ready, prepare)

    def work(x: Array) -> Array:
        if route is not None and route.launch is not None:
            return route.run((x, *given[1:]))
        return operations.rows(call, function.forward, (x,), axes, out, scores)

    if tracked(call, x):
        scale = 1.0 if scores is None else scores.scale
        return autograd().rows(function, call.backend, work, x, axes, scale)
    return work(x)


def _scores(
    call: Call, x: Array, axes: tuple[int, ...], scale: Any, mask: Any, causal: Any, all_masked: Any
) -> Scores | None:
    """What softmax does to x first; None for nothing."""
    library = call.library
    scale = arguments.parameter("scale", scale, arrays=False)
    zero = arguments.choice("all_masked", all_masked, ("nan", "zero")) == "zero"
    if mask is not None or causal is not False:
        causal = check_scores(library, x, axes, mask, causal)
    if mask is not None:
        mask = _narrow(library, mask)
        if library.dtype(mask) != "bool":
            mask = library.astype(mask, library.dtype(x))
        mask = library.reshape(mask, (*[1] * (x.ndim - mask.ndim), *mask.shape))
    if scale == 1.0 and mask is None and not causal and not zero:
        return None
    return Scores(scale, mask, x.shape[-2] if causal else 0, zero)


def check_scores(library: Library, x: Array, axes: Sequence[int], mask: Any, causal: Any) -> bool:
    """Whether a mask, and causality, fit rows along these axes; causal as a bool."""
    if mask is not None:
        kind = library.dtype(mask)
        if kind not in ("bool", *FLOATING):
            raise TypeError(
                f"mask: dtype {kind} came, allowed are bool (True takes part) and, to be added, "
                f"{', '.join(FLOATING)}"
            )
        if library.tracked(mask):
            raise ValueError("mask: came requiring grad; a mask is a constant")
        arguments.broadcast_shape("mask", mask, x.shape)
    causal = arguments.flag("causal", causal)
    if causal and (x.ndim < 2 or tuple(axes) != (x.ndim - 1,)):
        raise ValueError(
            f"causal: came with axis {tuple(axes)} of x of {x.ndim} dimensions, allowed is the "
            "last axis of two at least: row i along the axis before it takes part up to column i"
        )
    if causal and x.shape[-1] >= 2**31:  # how far behind its own a column is has 32 bits
        raise ValueError(f"causal: came with {x.shape[-1]} columns, allowed are up to 2^31 - 1")
    return causal


def _narrow(library: Library, mask: Array) -> Array:
    """One of what was broadcast already, so that what is made of it is small as well."""
    steps = zip(mask.shape, library.strides(mask), strict=True)
    return mask[(*[slice(1 if n > 1 and s == 0 else n) for n, s in steps], ...)]


def rows_backward(name: str, dy: Any, y: Any, axis: Any, scale: Any = 1.0) -> Any:
    if tracing(dy):
        return operators().rows_backward(name, dy, y, axis, scale)
    kernel = FUNCTIONS[name].backward
    entry, given = (name, "backward", axis, _plain(scale)), (dy, y, scale, None)
    route = routes.find(entry, given) if _told(axis) else None
    if (route is None or route.recorded()) and watched(dy, y, derived=True):
        return operators().rows_backward(name, dy, y, axis, scale)
    if route is not None and route.launch is not None:
        return route.run(given)
    scale = arguments.parameter("scale", scale, arrays=False)
    if route is None:
        dy, y = arguments.array("dy", dy), arguments.array("y", y)
        call = resolve(y=y, dy=dy)
        y = arguments.floating("y", call.library, y)
        dy = arguments.gradient("dy", call.library, dy, "y", y)
    else:
        call = route.call
    axes = arguments.row_axes(axis, y.ndim)
    if route is None and _told(axis):
        _learn_backward(entry, given, call, kernel, axes, (dy, y, scale, None), scale)
    return _row_gradient(call, kernel, dy, y, axes, scale)


def row_gradient(
    function: Function, backend: str, dy: Array, y: Array, axes: tuple[int, ...], scale: float
) -> Array:
    """dx for autograd, on the backend that ran forward."""
    kernel = function.backward
    entry: Hashable = (function.name, "gradient", backend, axes, scale == 1.0)
    given = (dy, y, scale, None)
    route = routes.find(entry, given)
    if (route is None or route.recorded()) and watched(dy, y, derived=True):
        return operators().call(f"{function.name}_backward", dy, y, axes, scale, backend)
    if route is not None and route.launch is not None:
        return route.run(given)
    if route is None:
        library = library_of(dy)
        assert library is not None  # a tensor always has one
        call = Call(library, dy, backend)
        _learn_backward(entry, given, call, kernel, axes, given, scale)
    else:
        call = route.call
    return _row_gradient(call, kernel, dy, y, axes, scale)


def _learn_backward(
    entry: Hashable,
    given: Sequence[Any],
    call: Call,
    kernel: Pass,
    axes: tuple[int, ...],
    ready: Sequence[Any],
    scale: float,
) -> None:
    def prepare(call: Call, operands: Sequence[Any]) -> routes.Launch | None:
        return operations.prepare_rows(call, kernel, axes, operands, Scores(scale))

    routes.learn(entry, given, call, ready, prepare)


def _row_gradient(
    call: Call, kernel: Pass, dy: Array, y: Array, axes: tuple[int, ...], scale: float
) -> Array:
    """What took no part has y = 0: a backward needs the scale alone."""
    scores = None if scale == 1.0 else Scores(scale)
    return operations.rows(call, kernel, (dy, y), axes, None, scores)


def softmax_jacobian(y: Any, axis: Any) -> Any:
    if tracing(y) or watched(y, derived=True):
        return operators().softmax_jacobian(y, axis)
    y = arguments.array("y", y)
    call = resolve(y=y)
    y = arguments.floating("y", call.library, y)
    k = arguments.single_axis("axis", axis, y.ndim or 1)
    return operations.softmax_jacobian(call, y, k)


# -- cross-entropy --------------------------------------------------------------------------------


def class_axis(logits: Array, target: Array, integers: bool, axis: Any) -> int:
    """The axis of the classes: the last, unless the target fits axis 1 as well."""
    shape, fits = tuple(logits.shape), tuple(target.shape)

    def row_shape(k: int) -> tuple[int, ...]:
        return shape[:k] + shape[k + 1 :] if integers else shape

    if axis is None:
        k = len(shape) - 1
        if len(shape) > 2 and fits == row_shape(1) == row_shape(k):
            raise ValueError(
                f"axis: none came, and a target of shape {fits} fits both axis 1 and the last axis "
                f"of logits of shape {shape}; give axis=1 or axis=-1"
            )
    else:
        k = arguments.single_axis("axis", axis, len(shape))
    if fits != row_shape(k):
        hint = "; it fits axis=1" if len(shape) > 2 and fits == row_shape(1) else ""
        kind = "classes" if integers else "probabilities"
        raise ValueError(
            f"target: {kind} of shape {fits} came, logits of shape {shape} with their classes "
            f"along axis {k} allow {row_shape(k)}{hint}"
        )
    return k


def _asked_to_check() -> bool:
    return os.environ.get("GPUACT_CHECK") == "1"


# Of the options that tell calls apart; what is of another type may be another at the next call
_TELLING: frozenset[type] = NUMBERS | {str}


def _loss_entry(name: str, options: Parameters) -> Hashable | None:
    """What tells calls apart beside the operands; None if it takes a closer look."""
    _, *told = options.values()  # weight is an operand
    types = [type(option) for option in told]
    if not _TELLING.issuperset(types) or _asked_to_check():
        return None
    return (name, *told, *types)  # 1.0 is equal to 1


def _find_loss(
    entry: Hashable | None, given: Sequence[Any]
) -> tuple[operations.PreparedLoss | None, bool]:
    """What is prepared for such a call, and whether autograd must record it."""
    route = None if entry is None else routes.find(entry, given)
    if route is None or route.launch is None:
        return None, False
    prepared: Any = route.launch.start
    return prepared, route.recorded()


def check_loss(
    library: Library,
    logits: Array,
    target: Array,
    *,
    ignore_index: Any,
    reduction: Any,
    label_smoothing: Any,
    z_loss: Any,
    softcap: Any,
) -> dict[str, Any]:
    """A loss's numbers and words, checked; a cap that there is not is 0."""
    kind = library.dtype(target)
    integers = kind in arguments.INTEGERS
    if not integers and kind not in FLOATING:
        raise TypeError(
            f"target: dtype {kind} came, allowed are integer classes, or probabilities in "
            f"{', '.join(FLOATING)}"
        )
    reduction = arguments.choice("reduction", reduction, ("mean", "sum", "none"))
    ignore_index = arguments.whole("ignore_index", ignore_index)
    label_smoothing = arguments.parameter("label_smoothing", label_smoothing, arrays=False)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing: {label_smoothing} came, allowed is 0 to 1")
    z_loss = arguments.positive("z_loss", z_loss, zero=True)
    softcap = 0.0 if softcap is None else arguments.positive("softcap", softcap, zero=False)
    computed = arguments.compute_dtype(library.dtype(logits))
    least, most = LIMITS[computed]
    if softcap and not least <= softcap <= most:
        raise ValueError(
            f"softcap: {softcap} came, allowed is what {computed} holds: {least:.2g} to {most:.2g}"
        )
    if z_loss > most / 2:
        raise ValueError(
            f"z_loss: {z_loss} came, allowed is what {computed} holds twice: up to {most / 2:.2g}"
        )
    if not integers and ignore_index >= 0:
        raise ValueError(
            f"ignore_index: {ignore_index} came with a target of probabilities, which has no "
            "index to ignore; allowed is a negative number"
        )
    return {
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "softcap": softcap,
    }


# The least and the largest positive number of a precision, subnormal ones apart
LIMITS = {
    name: (float(np.finfo(name).tiny), float(np.finfo(name).max)) for name in ("float32", "float64")
}


class LossCall:
    """A cross-entropy's arguments, checked: what the three public functions share."""

    def __init__(
        self,
        logits: Any,
        target: Any,
        *,
        weight: Any,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
        z_loss: float,
        softcap: float | None,
        axis: Any,
        **more: Any,
    ) -> None:
        logits, target = arguments.array("logits", logits), arguments.array("target", target)
        numbers = {name: value for name, value in more.items() if isinstance(value, Real)}
        more = {name: arguments.array(name, more[name]) for name in more if name not in numbers}
        weight = None if weight is None else arguments.array("weight", weight)
        given = {"logits": logits, "target": target, "weight": weight, **more}
        self.call = resolve(**{name: value for name, value in given.items() if value is not None})
        library = self.call.library
        self.logits = arguments.floating("logits", library, logits)
        if not self.logits.ndim:
            raise ValueError("logits: a 0-d array came, allowed is at least the axis of classes")
        kind = library.dtype(target)
        integers = kind in arguments.INTEGERS
        checked = check_loss(
            library,
            self.logits,
            target,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
        )
        computed = arguments.compute_dtype(library.dtype(self.logits))
        k = class_axis(self.logits, target, integers, axis)
        classes = self.logits.shape[k]
        if classes == 0:
            raise ValueError(
                f"logits: shape {tuple(logits.shape)} came, allowed is at least one class"
            )
        if integers and kind not in ("int32", "int64"):
            target = library.classes(target)
        elif not integers:
            target = library.astype(target, library.dtype(self.logits))
        self.target = target
        self.weight = weight
        if weight is not None:
            if tuple(weight.shape) != (classes,):
                raise ValueError(
                    f"weight: shape {tuple(weight.shape)} came, allowed is one weight a class: "
                    f"({classes},)"
                )
            if tracked(self.call, weight):
                raise ValueError("weight: came requiring grad; class weights are constants")
            weight = library.astype(arguments.floating("weight", library, weight), computed)
            self.weight = library.contiguous(weight)
        self.loss = Loss(axis=k, probabilities=not integers, **checked)
        for name, value in numbers.items():
            more[name] = self.call.empty((), "float64")
            library.copy(more[name], arguments.parameter(name, value, arrays=False))
        self.more = more
        if integers and self._checks_targets():
            self._check_targets(classes)

    def _checks_targets(self) -> bool:
        """NumPy looks at every target; on a GPU looking would wait for the device."""
        on_host = getattr(self.call.module, "ON_HOST", False)
        return self.call.computes and (on_host or _asked_to_check())

    def _check_targets(self, classes: int) -> None:
        t, ignored = self.target, self.loss.ignore_index
        with self.call.library.on(t, self.call.backend):
            wrong = (t != ignored) & ((t < 0) | (t >= classes))
            first = int(t[wrong].reshape(-1)[0]) if self.call.library.any(wrong) else None
        if first is not None:
            raise IndexError(
                f"target: class {first} came, allowed are 0 to {classes - 1} and the ignore_index "
                f"{ignored}"
            )

    @property
    def row_shape(self) -> tuple[int, ...]:
        shape = tuple(self.logits.shape)
        return shape[: self.loss.axis] + shape[self.loss.axis + 1 :]

    def learn(self, entry: Hashable | None, given: Sequence[Any], *more: Array) -> None:
        """Remember this call, of operands that were given as logits, target, weight and more."""
        if entry is None or (self.weight is not None and self.call.library.learns(given[2])):
            return

        def prepare(call: Call, operands: Sequence[Any]) -> routes.Launch | None:
            return operations.prepare_loss(call, operands, given, self.loss)

        ready = (self.logits, self.target, self.weight, *more)
        routes.learn(entry, given, self.call, ready, prepare)

    def of_rows(self, name: str, shape: tuple[int, ...]) -> Array:
        """An argument in the loss's dtype: lse, or the gradient of the loss."""
        value, library = self.more[name], self.call.library
        if tuple(value.shape) != shape:
            raise ValueError(f"{name}: shape {tuple(value.shape)} came, allowed is {shape}")
        dtype = arguments.compute_dtype(library.dtype(self.logits))
        return library.astype(arguments.floating(name, library, value), dtype)


def cross_entropy(
    logits: Any, target: Any, return_lse: Any, gradient_in_forward: Any, **options: Any
) -> Any:
    if tracing(logits):
        return operators().cross_entropy(logits, target, return_lse, gradient_in_forward, **options)
    entry = _loss_entry("cross_entropy", options) if type(gradient_in_forward) is bool else None
    given = (logits, target, options["weight"])
    prepared, recorded = _find_loss(entry, given)
    if prepared is None and watched(*given):
        return operators().cross_entropy(logits, target, return_lse, gradient_in_forward, **options)
    if prepared is not None and not (recorded and gradient_in_forward):
        if recorded:
            value, lse = autograd().cross_entropy(
                prepared.call.backend, prepared.loss, given[2], logits, target, prepared
            )
        else:
            value, lse = prepared(*given)
        return (value, lse) if return_lse else value
    return_lse = arguments.flag("return_lse", return_lse)
    at_once = arguments.flag("gradient_in_forward", gradient_in_forward)
    c = LossCall(logits, target, **options)
    c.learn(entry, given)
    records = tracked(c.call, c.logits, c.target)
    if records and at_once:
        learned = tracked(c.call, c.target)
        check_gradient_in_forward(c.loss.reduction, return_lse, learned)
        step = autograd().gradient_in_forward
        return step(c.call.backend, c.loss, c.weight, c.logits, c.target)
    if records:
        value, lse = autograd().cross_entropy(c.call.backend, c.loss, c.weight, c.logits, c.target)
    else:
        value, lse = operations.cross_entropy(c.call, c.logits, c.target, c.weight, c.loss)
    return (value, lse) if return_lse else value


def check_gradient_in_forward(reduction: str, return_lse: bool, learned: bool) -> None:
    """The gradient that forward finds is that of one number by the logits, and no other.

    learned: whether the target requires a gradient.
    """
    came = None
    if reduction == "none":
        came = "reduction='none', allowed are 'mean' and 'sum'"
    elif return_lse:
        came = "return_lse=True, allowed is the loss alone"
    elif learned:
        came = "a target that requires grad, allowed is one that does not"
    if came is not None:
        raise ValueError(f"gradient_in_forward: came with {came}")


def cross_entropy_backward(dloss: Any, logits: Any, target: Any, lse: Any, **options: Any) -> Any:
    if tracing(logits):
        return operators().cross_entropy_backward(dloss, logits, target, lse, **options)
    entry = _loss_entry("cross_entropy_backward", options)
    given = (logits, target, options["weight"], dloss, lse)
    prepared, recorded = _find_loss(entry, given)
    if prepared is not None and not recorded:
        return prepared.backward(dloss, logits, target, options["weight"], lse)
    if watched(*given, derived=True):
        return operators().cross_entropy_backward(dloss, logits, target, lse, **options)
    c = LossCall(logits, target, dloss=dloss, lse=lse, **options)
    shape = c.row_shape if c.loss.reduction == "none" else ()
    dloss, lse = c.of_rows("dloss", shape), c.of_rows("lse", c.row_shape)
    c.learn(entry, given, dloss, lse)
    return operations.cross_entropy_backward(
        c.call, dloss, c.logits, c.target, c.weight, lse, c.loss
    )


def loss_gradient(
    backend: str,
    loss: Loss,
    dloss: Array,
    logits: Array,
    target: Array,
    weight: Array | None,
    lse: Array,
) -> Array:
    """dlogits for autograd, on the backend that ran forward."""
    entry = ("cross_entropy", "gradient", backend, loss)
    given = (logits, target, weight, dloss, lse)
    prepared, recorded = _find_loss(entry, given)
    if prepared is not None and not recorded:
        return prepared.backward(dloss, logits, target, weight, lse)
    if watched(*given, derived=True):
        return operators().loss_gradient(backend, loss, dloss, logits, target, weight, lse)
    library = library_of(logits)
    assert library is not None  # a tensor always has one
    call = Call(library, logits, backend)

    def prepare(call: Call, operands: Sequence[Any]) -> routes.Launch | None:
        return operations.prepare_loss(call, operands, given, loss)

    routes.learn(entry, given, call, given, prepare)
    return operations.cross_entropy_backward(call, dloss, logits, target, weight, lse, loss)


def cross_entropy_with_grad(logits: Any, target: Any, dlogits_out: Any, **options: Any) -> Any:
    if tracing(logits):
        return operators().cross_entropy_with_grad(logits, target, dlogits_out, **options)
    entry = _loss_entry("cross_entropy_with_grad", options) if dlogits_out is None else None
    given = (logits, target, options["weight"])
    prepared, recorded = _find_loss(entry, given)
    if prepared is not None and not recorded:
        return prepared.with_grad(*given)
    if watched(*given, dlogits_out, derived=dlogits_out is None):
        return operators().cross_entropy_with_grad(logits, target, dlogits_out, **options)
    c = LossCall(logits, target, **options)
    c.learn(entry, given)
    if dlogits_out is not None:
        dtype = c.call.library.dtype(c.logits)
        arguments.output(
            c.call.library, dlogits_out, c.logits.shape, dtype, c.logits, "dlogits_out"
        )
        _refuse_tracked("dlogits_out", c.call, dlogits_out, c.logits, c.target)
    return operations.cross_entropy_with_grad(
        c.call, c.logits, c.target, c.weight, c.loss, dlogits_out
    )


# -- ahead of time --------------------------------------------------------------------------------


def warmup(
    like: Any,
    shapes: Sequence[Sequence[int]],
    dtypes: Sequence[str],
    functions: Sequence[str],
    options: Parameters,
) -> int:
    """Run every function and its backward once for each shape and dtype; how many calls it took."""
    from . import activations

    library = resolve(like=arguments.array("like", like)).library
    taken = {name: _options_of(activations, FUNCTIONS[name]) for name in functions}
    known = {name for names in taken.values() for name in names}
    for name in options:
        if name not in known:
            raise ValueError(
                f"{name}: came for {', '.join(functions)}, which can be warmed up with "
                f"{', '.join(sorted(known)) or 'no option'}"
            )
    if isinstance(dtypes, str):
        raise TypeError(f"dtypes: the str {dtypes!r} came, allowed is a list of dtypes")
    names = [dtype_name(dtype) for dtype in listed("dtypes", dtypes, "dtypes")]
    sizes = [
        tuple([arguments.whole("shapes", n) for n in listed("shapes", shape, "shapes")])
        for shape in listed("shapes", shapes, "shapes")
    ]
    if any(n < 0 for shape in sizes for n in shape):
        raise ValueError(f"shapes: {sizes} came, allowed are sizes from 0 on")
    if refused := sorted({*names} - {*FLOATING}):
        raise TypeError(f"dtypes: {refused} came, allowed are {', '.join(FLOATING)}")
    calls = 0
    for shape in sizes:
        for dtype in names:
            x = library.empty(shape, dtype, like)
            library.copy(x, 0.5)
            for name in functions:
                own = {k: v for k, v in options.items() if k in taken[name]}
                calls += _warm(activations, FUNCTIONS[name], library, x, own)
    return calls


def listed(name: str, values: Any, of: str) -> list[Any]:
    """The elements of what must be a list."""
    try:
        return list(values)
    except TypeError:
        raise TypeError(f"{name}: {word(values)} came, allowed is a list of {of}") from None


def _options_of(activations: Any, function: Function) -> set[str]:
    """What a call takes beside what it reads; of a loss the target too, whose kind matters."""
    found = {*signature(getattr(activations, function.name)).parameters}
    return found - {"out", "return_lse", *function.forward.reads} | {*function.forward.reads[1:]}


def _warm(
    activations: Any, function: Function, library: Library, x: Array, options: dict[str, Any]
) -> int:
    forward = getattr(activations, function.name)
    backward = getattr(activations, f"{function.name}_backward")
    if function.kind == "loss":
        return _warm_loss(activations, library, x, **options)
    params = {
        name: 0.25 if default is None else default for name, default in function.defaults.items()
    }
    params |= options
    y = forward(x, **params)
    stored = {"x": x, "y": y}
    kept = function.saved[0] if function.saved else "x"
    takes = signature(backward).parameters
    backward(x, stored[kept], **{name: v for name, v in params.items() if name in takes})
    if function.slope is None:
        return 2
    getattr(activations, f"{function.name}_derivative")(x, **params)
    return 3


def _warm_loss(
    activations: Any,
    library: Library,
    logits: Array,
    *,
    target: Any = None,
    gradient_in_forward: bool = False,
    axis: Any = None,
    **options: Any,
) -> int:
    if axis is not None:
        options["axis"] = axis
    if target is None:
        if axis is None:
            *before, classes = logits.shape or (1,)
            logits = logits.reshape(math.prod(before), classes)
        k = arguments.single_axis("axis", -1 if axis is None else axis, logits.ndim)
        target = library.empty((*logits.shape[:k], *logits.shape[k + 1 :]), "int64", logits)
        library.copy(target, 0)
    loss, lse = activations.cross_entropy(logits, target, return_lse=True, **options)
    activations.cross_entropy_backward(loss, logits, target, lse, **options)
    activations.cross_entropy_with_grad(logits, target, **options)
    if gradient_in_forward and library.tracks:
        leaf = logits.detach().requires_grad_()
        loss = activations.cross_entropy(leaf, target, gradient_in_forward=True, **options)
        if loss.requires_grad:
            loss.backward()
    return 3
