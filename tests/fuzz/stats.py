"""`activation_with_stats` and `activation_stats`: what is counted is told of the very outputs."""

from __future__ import annotations

import math
from functools import wraps
from typing import Any

import numpy as np

import gpuact
from gpuact import reference
from gpuact.catalogue import FUNCTIONS
from tests.bounds import DTYPES

from .calls import FLOATING, Args, Call
from .elementwise import TAME
from .fused import ACTIVATIONS, judge_fused
from .meaning import Reading, Unjudged, from_tensor


def agree(stats: gpuact.ActivationStats, y: Any, axis: int) -> None:
    """AssertionError, which no refusal is, unless the statistics are those of y."""
    mean, std, zeros, saturated = stats.mean, stats.std, stats.zeros, stats.saturated
    with np.errstate(all="ignore"):  # unlike what is judged, judging raises nothing
        y = from_tensor(y) if hasattr(y, "detach") else np.asarray(y)
        if y.dtype.name not in FLOATING:
            y = y.astype(np.float32)
        y = y.astype(np.float64 if y.dtype == DTYPES["float64"] else np.float32)
        y = np.moveaxis(y, axis, 0) if y.ndim else y.reshape(1)
        y = y.reshape(len(y), math.prod(y.shape[1:]))
        beyond = reference.is_saturated(y, *FUNCTIONS[stats.activation].saturated)
        assert (stats.count, stats.units) == (y.size, len(y))
        assert stats.dead.tolist() == (beyond.all(1) & (y.size > 0)).tolist()
        if not y.size:
            assert np.isnan([mean, std, zeros, saturated]).all()
            return
        assert round(zeros * y.size) == (y == 0).sum()
        assert round(saturated * y.size) == beyond.sum()
        if np.isfinite(y).all() and abs(y).max() < 1e15:  # what is squared does not overflow
            vanishes = float(np.finfo(y.dtype).tiny) ** 0.5  # what is below it is 0 when squared
            y = y.astype(np.float64)
            near = 1e-5 * abs(y).mean()
            assert np.isclose(mean, y.mean(), rtol=0, atol=near)
            assert np.isclose(std, y.std(), rtol=1e-5, atol=near + vanishes)


def _axis(args: Args) -> int:
    return args.get("channel_axis", -1)


@wraps(gpuact.activation_with_stats)
def with_stats(**args: Any) -> Any:
    y, stats = gpuact.activation_with_stats(**args)
    agree(stats, y, _axis(args))
    return y


@wraps(gpuact.activation_stats)
def of_outputs(**args: Any) -> None:
    agree(gpuact.activation_stats(**args), args["y"], _axis(args))


def draw_with_stats(c: Call) -> Args:
    shape, activation = c.shape(), c.of(ACTIVATIONS)
    integers = FUNCTIONS[activation].integers
    whole = False if integers == "refused" else "no bool" if integers == "kept" else True
    args: Args = {"x": c.given(shape, TAME[1:] if c.torch else TAME, integers=whole)}
    args["activation"] = activation
    axis = c.axis(len(shape)) if shape else -1
    if activation == "prelu":
        units = (shape[axis],) if shape else (1,)
        args["weight"] = c.parameter(c.of(((), (1,), units, units, c.broadcast(shape, True))))
    if activation == "leaky_relu" or c.chance(0.1):
        args["negative_slope"] = c.number()
    return args | ({"channel_axis": axis} if activation == "prelu" or c.chance(0.5) else {})


def judge_with_stats(r: Reading) -> Any:
    if r.raw("into") is not None:
        raise Unjudged("into")
    r.whole("channel_axis", -1)
    return judge_fused(r)


def draw_of_outputs(c: Call) -> Args:
    shape = c.shape()
    args: Args = {"y": c.given(shape, TAME), "activation": c.of(ACTIVATIONS)}
    return args | ({"channel_axis": c.axis(len(shape))} if c.chance(0.5) else {})


def judge_of_outputs(r: Reading) -> None:
    y, activation = r.array("y"), r.raw("activation", "linear")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise Unjudged("activation")
    if r.raw("into") is not None:
        raise Unjudged("into")
    axis = r.whole("channel_axis", -1)
    if not (-y.ndim <= axis < y.ndim or (y.ndim == 0 and axis in (0, -1))):
        raise Unjudged("channel_axis")
