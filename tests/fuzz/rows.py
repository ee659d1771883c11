"""Softmax and log-softmax, scores with masks among them, their backward functions, the Jacobian."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests import bounds, truth
from tests.bounds import DTYPES
from tests.test_functions import as_rows
from tests.test_scores import Case as ScoresCase
from tests.truth import LONG, Array

from .calls import FLOATING, INF, Args, Call, dtype_of, torch_or_none
from .meaning import Expected, Reading, Rows, Unjudged, fits, reading_of, same_shape

OF_ROWS = (-INF, 0.0, -0.0, 12.0, -30.0, 12.0, 0.0)


def draw_axes(c: Call, ndim: int) -> Any:
    kind = c.rng.random()
    if kind < 0.1:
        return None
    if kind < 0.25 and ndim:
        axes = c.rng.permutation(ndim)[: 1 + c.below(ndim)].tolist()
        axes = [a - ndim if c.chance(0.3) else a for a in axes]
        return axes if c.chance(0.2) else tuple(axes)
    axis = c.axis(ndim)
    return np.int64(axis) if kind > 0.95 else axis


def draw_rows(c: Call, name: str) -> Args:
    shape = c.shape()
    special = (*OF_ROWS, INF, np.nan) if c.chance(0.15) else OF_ROWS
    x = c.given(shape, special)
    args: Args = {"x": x}
    if c.chance(0.8):
        args["axis"] = draw_axes(c, len(shape))
    scored = name == "softmax" and c.chance(0.5)
    dtype = dtype_of(x) if dtype_of(x) in FLOATING else "float32" if hasattr(x, "dtype") else ""
    if c.chance(0.15):
        dtype = c.of(FLOATING)
        args["dtype"] = dtype
        if c.chance(0.5):
            args["dtype"] = getattr(torch_or_none(), dtype) if c.torch else DTYPES[dtype]
    if scored:
        x = c.floats(shape, c.of(FLOATING), (0.0, 12.0, -30.0))
        args |= {"x": c.array(x), "scale": c.of((1.0, 0.5, 2, -1.5, 0.0, np.float32(0.125)))}
        dtype = dtype if "dtype" in args else x.dtype.name
        if c.chance(0.6):
            own = c.broadcast(shape)
            part = np.asarray(c.rng.random(own) < 2 / 3)
            kind = c.of(FLOATING)
            added = np.where(part, c.rng.standard_normal(own), c.of((-INF, -40.0)))
            args["mask"] = c.array(part if c.chance(0.5) else added.astype(DTYPES[kind]))
        if len(shape) > 1 and c.chance(0.4):
            args |= {"causal": True, "axis": c.of((-1, len(shape) - 1))}
        if c.chance(0.4):
            args["all_masked"] = c.of(("nan", "zero"))
    if dtype:
        args["x"], out = c.outlet(args["x"], shape, dtype)
        if out is not None:
            args["out"] = out
    return args


def judge_rows(r: Reading, name: str) -> Any:
    x = r.floating("x", dtype_named(r))
    dtype, axis = x.dtype.name, r.axes(x.ndim)
    x_rows, scores = as_rows(x, axis), False
    if name == "softmax":
        scale, causal = r.number("scale", 1.0), r.flag("causal")
        how = r.raw("all_masked", "nan")
        if not isinstance(how, str) or how not in ("nan", "zero") or not np.isfinite(scale):
            raise Unjudged("scores")
        mask = None
        if r.raw("mask") is not None:
            mask = r.array("mask")
            if mask.dtype.kind in "iu":
                raise Unjudged("mask")
            if mask.dtype != bool:
                mask = r.cast(mask, dtype)
            fits(mask.shape, x.shape)
            if getattr(r.args["mask"], "requires_grad", False):
                raise Unjudged("mask")
        if causal and (x.ndim < 2 or axis is None or [a % x.ndim for a in axis] != [x.ndim - 1]):
            raise Unjudged("causal")
        scores = bool(scale != 1.0 or mask is not None or causal or how == "zero")
    if scores:
        case = ScoresCase(x, axis, scale, mask, causal, how)
        if not x.size:
            return Expected(x, dtype, x.shape)
        with np.errstate(all="ignore"):
            if np.abs(truth.long(x)[np.isfinite(truth.long(x))]).max(initial=0) * abs(scale) > 1e30:
                raise Unjudged("overflow")
        value, allowed = case.truth()
    elif x.size:
        value = truth.ROWS[name](x_rows)
        allowed = bounds.rows(name, dtype, [x_rows], value)
    else:
        return Expected(x, dtype, x.shape)
    return Rows(value, dtype, x.shape, allowed, axis)


def dtype_named(r: Reading, name: str = "dtype") -> str | None:
    dtype = r.raw(name)
    if dtype is None:
        return None
    text = str(dtype).removeprefix("torch.")
    if text not in FLOATING:
        try:
            text = np.dtype(dtype).name
        except TypeError:
            raise Unjudged(name) from None
    if text not in FLOATING:
        raise Unjudged(name)
    return text


def draw_rows_backward(c: Call, name: str) -> Args:
    shape, dtype = c.shape(), c.of(FLOATING)
    axis = draw_axes(c, len(shape))
    x = c.floats(shape, "float64", (0.0, -30.0))
    axes = tuple(axis) if isinstance(axis, list | tuple) else axis
    axes = axes if shape else None
    y = np.exp(x - x.max(axes, keepdims=True)) if x.size else x
    y = y / y.sum(axes, keepdims=True)
    if name == "log_softmax":
        with np.errstate(all="ignore"):
            y = np.log(y)
    y = np.asarray(y).astype(DTYPES[dtype])
    args = {"dy": c.given(shape, (0.0, np.nan)), "y": c.array(y), "axis": axis}
    if name == "softmax" and c.chance(0.3):
        args["scale"] = c.of((1.0, 0.125, -2.0, 3))
    return args


def judge_rows_backward(r: Reading, name: str) -> Any:
    y = r.floating("y")
    dtype, axis = y.dtype.name, r.axes(y.ndim)
    dy = r.array("dy")
    same_shape(dy, y)
    scale = r.number("scale", 1.0) if name == "softmax" else 1.0
    if not y.size:
        return Expected(y, dtype, y.shape)
    arrays = [as_rows(r.cast(dy, dtype), axis), as_rows(y, axis)]
    large = [(size > 1e25) & (size < INF) for size in (np.abs(truth.long(a)) for a in arrays)]
    if not 1e-10 < abs(scale) < 1e10 or any(which.any() for which in large):
        raise Unjudged("overflow, perhaps")
    formula = f"{name}_backward"
    plain = truth.ROWS[formula](*arrays)
    value = LONG(scale) * plain
    allowed = abs(scale) * bounds.rows(formula, dtype, arrays, plain)
    if scale != 1.0:
        allowed = allowed + 2 * bounds.stored(value, dtype)
    return Rows(value, dtype, y.shape, allowed, axis)


def gradient_of_rows(r: Reading, y: Array, dy: Array, name: str) -> dict[str, Expected]:
    found = judge_rows_backward(reading_of(r, {"dy": dy, "y": y}), name)
    if found.dtype != r.floating("x").dtype.name:
        raise Unjudged("dtype")
    return {"x": found}


def draw_jacobian(c: Call) -> Args:
    y = draw_rows_backward(c, "softmax")["y"]
    return {"y": y, "axis": c.axis(y.ndim)}


def judge_jacobian(r: Reading) -> Any:
    y = r.floating("y")
    k = r.whole("axis", -1)
    if not (-y.ndim <= k < y.ndim or (not y.ndim and k in (0, -1))):
        raise Unjudged("axis")
    s = truth.long(np.moveaxis(y.reshape(y.shape or (1,)), k, -1))
    n = s.shape[-1]
    if not y.size:
        return Expected(np.empty((*s.shape, n)), y.dtype.name, (*s.shape, n))
    with np.errstate(all="ignore"):
        value = s[..., None] * (np.eye(n, dtype=LONG) - s[..., None, :])
    dtype = y.dtype.name
    allowed = 2 * bounds.ulp(value, dtype) + bounds.stored(value, dtype)
    if (np.abs(s) > 1).any() or np.isnan(s).any():
        raise Unjudged("y that is no softmax")
    return Expected(value, dtype, value.shape, allowed)
