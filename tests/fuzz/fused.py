"""`fused` and `fused_backward`."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuact.catalogue import FUNCTIONS
from gpuact.fusion import Dropout
from tests import bounds, truth
from tests.bounds import FORMATS, compute_dtype
from tests.test_fused import Case as FusedCase
from tests.truth import LONG, Array

from .calls import FLOATING, INF, Args, Call, dtype_of
from .elementwise import TAME
from .meaning import Expected, Reading, Unjudged, cast, meets, reading_of, same_shape, wide

ACTIVATIONS = [f.name for f in FUNCTIONS.values() if f.kind == "elementwise"]


def draw_fused(c: Call, backward: bool) -> Args:
    shape, activation = c.shape(), c.of(ACTIVATIONS)
    refused = FUNCTIONS[activation].integers == "refused"
    kept = FUNCTIONS[activation].integers == "kept"
    special = TAME[1:] if backward or c.torch else TAME
    drawn: Args = {}
    lost = None
    if c.chance(0.3):
        p = c.of((0.0, 0.5, 0.3, 1.0, 1e-11))
        drawn["dropout"] = Dropout(p, c.below(2**40), c.of((0, 7, 2**63)))
        if c.chance(0.5):
            lost = FusedCase(activation, np.zeros(shape), **drawn).keep() == 0
    integers = False if refused else "no bool" if kept else True
    x = c.given(shape, special, integers=integers, lost=lost)
    args: Args = {"dy": c.given(shape, TAME[1:3], lost=lost)} if backward else {}
    args |= {"x": x, "activation": activation, **drawn}
    channel_axis = c.axis(len(shape)) if shape else -1
    for name in ("scale", "bias", "weight"):
        if (name == "weight") != (activation == "prelu") and name == "weight":
            continue
        if name == "weight" or c.chance(0.4):
            channels = (shape[channel_axis],) if shape else (1,)
            own = c.of(((), (1,), channels, channels, c.broadcast(shape, True)))
            args[name] = c.parameter(own)
            if len(own) == 1:
                args["channel_axis"] = channel_axis
    for name in ("gate", "residual"):
        if c.chance(0.25):
            args[name] = c.given(shape, TAME[1:3])
    if activation == "leaky_relu" or c.chance(0.1):
        args["negative_slope"] = c.number()
    if not backward and hasattr(x, "dtype"):
        dtype = dtype_of(x) if dtype_of(x) in FLOATING else "float32"
        args["x"], out = c.outlet(x, shape, dtype)
        if out is not None:
            args["out"] = out
    return args


def read_fused(r: Reading) -> tuple[FusedCase, dict[str, Any]]:
    """The case, and each parameter's own shape and dtype."""
    activation = r.raw("activation")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise Unjudged("activation")
    if (r.raw("weight") is None) == (activation == "prelu"):
        raise Unjudged("weight")
    x = r.array("x")
    integers = FUNCTIONS[activation].integers
    if x.dtype.name not in FLOATING:
        if integers == "refused" or (integers == "kept" and x.dtype == bool):
            raise Unjudged("x")
        x = cast(x, "float32")
    dtype = x.dtype.name
    given: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name in ("scale", "bias", "weight"):
        if r.raw(name) is None:
            continue
        p = r.parameter(name)
        own[name] = (p.shape, p.dtype.name) if isinstance(p, np.ndarray) else ((), dtype)
        if isinstance(p, np.ndarray):
            p = wide(p, dtype).reshape(meets(r, p.shape, x.shape, -1))
        given["slope" if name == "weight" else name] = p
    slope = r.number("negative_slope", 0.01)
    if activation == "leaky_relu":
        given["slope"] = slope
    for name in ("gate", "residual"):
        if r.raw(name) is not None:
            a = r.floating(name)
            same_shape(a, x)
            own[name] = a.shape, a.dtype.name
            given[name] = wide(a, dtype)
    dropout = r.raw("dropout")
    if dropout is not None and type(dropout) is not Dropout:
        raise Unjudged("dropout")
    r.whole("channel_axis", -1)
    if not all((np.abs(truth.long(p)) < 1e15).all() for p in given.values()):
        raise Unjudged("parameters that are no numbers, or overflow")
    if ((np.abs(truth.long(x)) > 1e15) & np.isfinite(truth.long(x))).any():
        raise Unjudged("x that overflows, perhaps")
    return FusedCase(activation, x, dropout=dropout, **given), own


def judge_fused(r: Reading) -> Any:
    case, _ = read_fused(r)
    dtype = case.x.dtype.name
    value = np.broadcast_to(case.forward(), case.x.shape)
    with np.errstate(all="ignore"):
        allowed = case.errors(np.zeros_like(case.x))["y"]
        allowed = np.where(np.isnan(allowed), 0, allowed)  # of NaN that is dropped
        allowed = allowed + 2 * bounds.stored(value, dtype)
    return Expected(value, dtype, case.x.shape, allowed)


def judge_fused_backward(r: Reading) -> dict[str, Expected]:
    case, own = read_fused(r)
    dtype, shape = case.x.dtype.name, case.x.shape
    dy = r.array("dy")
    same_shape(dy, case.x)
    dy = r.cast(dy, dtype)
    lost = case.keep() == 0
    if not all((lost | (np.abs(truth.long(a)) < 1e15)).all() for a in (dy, case.x)):
        raise Unjudged("at NaN a derivative may be that of either side")
    terms, errors, decided = (
        case.backward(dy),
        case.errors(dy),
        np.broadcast_to(case.decided(), shape),
    )
    unit = LONG(2) ** (1 - FORMATS[compute_dtype(dtype)].digits)
    found: dict[str, Expected] = {}
    for name in ("x", "scale", "bias", "weight", "gate"):
        slot = "slope" if name == "weight" else name
        if name not in ("x", *own):
            continue
        kept, kind = (shape, dtype) if name == "x" else own[name]
        p = case.x if name == "x" else getattr(case, slot)
        value = np.broadcast_to(terms[slot], shape)
        with np.errstate(all="ignore"):
            allowed = np.broadcast_to(errors[slot], shape)
            allowed = np.where(lost, 0, np.where(decided, allowed, INF))
            met = p.shape if isinstance(p, np.ndarray) else (1,) * len(shape)
            axes = tuple(k for k, n in enumerate(met) if n == 1)
            size = np.abs(value).sum(axes, keepdims=True)
            n = max(2, value.size // max(1, size.size))
            allowed = allowed.sum(axes, keepdims=True) + unit * size * bounds.row(n) * (n > 1)
            value = value.sum(axes, keepdims=True)
            allowed = allowed + bounds.stored(value, kind)
        found[name] = Expected(value.reshape(kept), kind, kept, allowed.reshape(kept))
    if "residual" in own:
        kind = own["residual"][1]
        found["residual"] = Expected(truth.long(r.cast(dy, kind)), kind, shape, 0.0)
    return found


def gradient_of_fused(r: Reading, y: Array, dy: Array) -> dict[str, Expected]:
    return judge_fused_backward(reading_of(r, {"dy": dy}))
