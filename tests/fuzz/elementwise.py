"""Elementwise functions, their derivatives and backward functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests import bounds, truth
from tests.bounds import DTYPES, compute_dtype
from tests.test_functions import Public, sums
from tests.truth import LONG, Array

from .calls import FLOATING, INF, Args, Call, dtype_of
from .meaning import Expected, Reading, Unjudged, cast, fits, meets, reading_of, same_shape, wide

SPECIAL = (np.nan, INF, -INF, 0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38, 20.0, -88.5, 104.0, -746.0)
TAME = (np.nan, 0.0, -0.0, 30.0)
OF_DY = (np.nan, 0.0, -0.0, 1e-3, -1e4)


def draw_x(c: Call, public: Public, shape: tuple[int, ...], special: Sequence[float]) -> Any:
    integers = public.function.integers
    kept = integers == "kept" and public.kernel is public.function.forward
    return c.given(
        shape, special, integers={"refused": False}.get(integers, "no bool" if kept else True)
    )


def draw_stored(c: Call, public: Public, what: str, shape: tuple[int, ...]) -> Any:
    """What backward reads: x, or y within its range."""
    if what == "x":
        return c.given(
            shape,
            SPECIAL[:7] if not public.function.sums else TAME,
            integers=public.function.integers != "refused",
        )
    dtype = c.of(FLOATING)
    x = c.floats(shape, "float64")
    y = {"sigmoid": lambda: 1 / (1 + np.exp(-x)), "tanh": lambda: np.tanh(x)}
    made = y.get(public.function.name, lambda: np.maximum(x, 0))()
    return c.array(np.asarray(made).astype(DTYPES[dtype]))


def draw_elementwise(c: Call, public: Public) -> Args:
    shape = c.shape()
    args: Args = {}
    function, sums_too = public.function, public.function.sums
    if "dy" in public.arrays:
        stored = public.arrays[1]
        dy = c.given(shape, OF_DY if not sums_too else TAME[:3])
        args = {"dy": dy, stored: draw_stored(c, public, stored, shape)}
    else:
        args["x"] = draw_x(c, public, shape, SPECIAL if function.name != "linear" else SPECIAL[:7])
    for name in public.parameters:
        if name == "negative_slope":
            args[name] = c.number((np.nan,))
        elif name == "weight":
            channel_axis = c.axis(len(shape)) if shape else 1
            own = c.of(
                ((), (1,), (shape[channel_axis],) if shape else (1,), c.broadcast(shape, True))
            )
            args[name] = c.parameter(own)
            if len(own) == 1 or c.chance(0.2):
                args["channel_axis"] = channel_axis
        else:
            args[name] = c.parameter(c.broadcast(shape), TAME[:3])
    if "dy" not in public.arrays:
        dtype = dtype_of(args["x"]) if hasattr(args["x"], "dtype") else ""
        if dtype and dtype not in FLOATING and public.name != "relu":
            dtype = "float32"
        args["x"], out = c.outlet(args["x"], shape, dtype)
        if out is not None:
            args["out"] = out
    optional = [n for n in ("scale", "bias", "negative_slope") if n in args]
    if "dy" not in args and optional and c.chance(0.2):
        del args[c.of(optional)]
    return args


def taken(r: Reading, public: Public, name: str) -> Array:
    """x or y as an activation takes it."""
    a, integers = r.array(name), public.function.integers
    if a.dtype.name in FLOATING:
        return a
    if integers == "refused":
        raise Unjudged(name)
    if integers == "kept" and public.kernel is public.function.forward:
        if a.dtype == bool:
            raise Unjudged(name)
        return a
    return cast(a, "float32")


def judge_elementwise(r: Reading, public: Public) -> Any:
    x = taken(r, public, public.arrays[-1])
    dtype, shape = x.dtype.name, x.shape
    function = public.function
    params: Args = {}
    for name, default in function.defaults.items():
        if name == "negative_slope":
            params[name] = r.number(name, default)
            continue
        p = r.parameter(name, default)
        params[name] = p
        if isinstance(p, np.ndarray):
            rule = meets(r, p.shape, shape, 1) if name == "weight" else fits(p.shape, shape)
            params[name] = p.reshape(rule)
    if "weight" in params:
        r.whole("channel_axis", 1)
    if dtype not in FLOATING:
        return Expected(np.maximum(x, 0), dtype, shape)
    arrays = [x]
    if public.arrays[-1] == "y" and function.name != "relu" and (np.abs(x) > 1).any():
        raise Unjudged("y out of its range")
    if "dy" in public.arrays:
        dy = r.array("dy")
        same_shape(dy, x)
        arrays = [r.cast(dy, dtype), x]
    entered = {name: wide(p, dtype) for name, p in params.items()}
    operands = public.operands(arrays, entered)
    formula = public.kernel.formula
    value = np.broadcast_to(truth.elementwise(formula, *operands), shape)
    allowed = bounds.elementwise(formula, "numpy", dtype, operands, value)
    if formula == "linear" and not all(np.isfinite(truth.long(p)).all() for p in operands[1:]):
        allowed = np.where(np.isfinite(value), INF, allowed)  # overflow on the way to infinity
    found = Expected(value, dtype, shape, allowed)
    if "dy" not in public.arrays or not function.sums:
        return found
    gradients = [found]
    if any((np.abs(truth.long(a)) > 1e15).any() for a in arrays):
        raise Unjudged("sums that overflow, perhaps")
    for name, step in function.sums.items():
        p = params[name]
        array = isinstance(p, np.ndarray)
        own = r.parameter(name).shape if array else ()
        kind = p.dtype.name if array else dtype
        read = dict(zip(public.arrays, arrays, strict=True))
        reads = tuple(read[what] for what in step.reads)
        of_sum = sums(step.formula, reads, p.shape if array else (1,) * x.ndim, kind, own)
        off = of_sum[1] + x.size * bounds.ulp(LONG(0), compute_dtype(dtype))  # of tiny terms
        gradients.append(Expected(of_sum[0], kind, own, off))
    return tuple(gradients)


def gradient_of_elementwise(r: Reading, y: Array, dy: Array, public: Public) -> dict[str, Expected]:
    given: Args = {"dy": dy, "y": y}
    for name, default in public.function.defaults.items():
        if name not in r.seen:
            given[name] = default
    found = judge_elementwise(reading_of(r, given), public)
    found = found if isinstance(found, tuple) else (found,)
    return dict(zip(("x", *public.function.sums), found, strict=True))
