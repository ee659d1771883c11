"""Cross-entropy: the loss, its lse, its gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import gpuact
from tests import bounds, truth
from tests.bounds import DTYPES, FORMATS, compute_dtype
from tests.truth import LONG, Array

from .calls import APART, FLOATING, INF, INTEGERS, Args, Call, dtype_of, torch_or_none
from .meaning import Expected, Reading, Unjudged, cast, from_tensor, reading_of, snapshot, wide
from .rows import OF_ROWS


def draw_loss(c: Call, what: str) -> Args:
    shape = c.shape(1)
    k = c.axis(len(shape))
    shape = tuple(n or 2 if j == k % len(shape) else n for j, n in enumerate(shape))
    classes, rows = shape[k], tuple(n for j, n in enumerate(shape) if j != k % len(shape))
    special = (*OF_ROWS[1:], -INF, INF, np.nan) if c.chance(0.15) else OF_ROWS[1:]
    logits = c.given(shape, special)
    args: Args = {"logits": logits, "axis": k}
    if c.chance(0.75):
        dtype = c.of(INTEGERS)
        known = min(classes, 127)  # by every dtype
        target = c.rng.integers(0, known, rows).astype(dtype)
        if c.chance(0.4):
            ignored = -100 if dtype[0] != "u" and c.chance(0.5) else c.below(known)
            target = np.where(c.rng.random(rows) < 0.3, ignored, target).astype(dtype)
            if ignored != -100:
                args["ignore_index"] = ignored
    else:
        target = c.rng.random(shape)
        if c.chance(0.5):
            target = target / target.sum(k, keepdims=True)
        if c.chance(0.3):
            target = np.where(c.rng.random(shape) < 0.3, 0, target)
        target = target.astype(DTYPES[c.of(FLOATING)])
    target = np.asarray(target)
    args["target"] = c.array(target)
    if not c.torch and target.dtype != DTYPES["bfloat16"] and target.size and c.chance(0.05):
        args["target"] = target.tolist()
        if target.dtype.kind == "f" and not isinstance(logits, np.ndarray):
            args["target"] = c.array(target)
    if c.chance(0.3):
        weight = c.rng.uniform(0.1, 2.0, classes)
        weight = np.where(c.rng.random(classes) < 0.1, 0, weight)
        args["weight"] = c.array(weight.astype(DTYPES[c.of(FLOATING)]))
    if c.chance(0.3):
        args["label_smoothing"] = c.of((0.1, 0, 1.0, 0.25, np.float32(0.5)))
    if c.chance(0.2):
        args["z_loss"] = c.of((0.01, 0, 1e-4, 0.3))
    if c.chance(0.2):
        args["softcap"] = c.of((None, 2.5, 30.0, 5))
    if c.chance(0.6):
        args["reduction"] = c.of(("mean", "sum", "none"))
    fits_twice = len(shape) > 2 and shape[1] == shape[-1]
    if k % len(shape) == len(shape) - 1 and not fits_twice and c.chance(0.5):
        probable = target.shape == shape and len(shape) > 2
        if not probable:
            del args["axis"]
    if what == "cross_entropy":
        if c.chance(0.3):
            args["return_lse"] = c.chance(0.7)
        if not args.get("return_lse") and args.get("reduction") != "none" and c.chance(0.1):
            args["gradient_in_forward"] = True
    elif what == "cross_entropy_backward":
        z = truth.long(np.asarray(snapshot(logits)))
        with np.errstate(all="ignore"):
            z = z if not args.get("softcap") else args["softcap"] * np.tanh(z / args["softcap"])
            most = z.max(k, keepdims=True)
            lse = (most + np.log(np.exp(z - most).sum(k, keepdims=True))).reshape(rows)
            kind = c.of(FLOATING) if c.chance(0.1) else "float64"
            lse = np.asarray(lse).astype(np.float64).astype(DTYPES[kind])
            args["lse"] = c.array(lse, APART)
        none = args.get("reduction") == "none"
        args["dloss"] = c.given(rows) if none else c.number()
        if not none and c.chance(0.5):
            args["dloss"] = c.array(c.floats((), c.of(FLOATING)))
        args = {name: args.pop(name) for name in ("dloss", "logits", "target", "lse")} | args
    elif c.chance(0.3) and hasattr(logits, "dtype"):
        dtype = dtype_of(logits) if dtype_of(logits) in FLOATING else "float32"
        args["logits"], out = c.outlet(logits, shape, dtype)
        if out is not None:
            args["dlogits_out"] = out
    return args


def judge_loss(r: Reading, what: str) -> Any:
    logits = r.floating("logits")
    target = r.array("target")
    integers = target.dtype.kind in "iu"
    if target.dtype == bool or not logits.ndim:
        raise Unjudged("target")
    shape, ndim = logits.shape, logits.ndim
    axis = r.raw("axis")
    if axis is None:
        k = ndim - 1
        if ndim > 2:
            one = (shape[:1] + shape[2:]) if integers else shape
            if one == target.shape == (shape[:-1] if integers else shape):
                raise Unjudged("axis")
    else:
        k = r.whole("axis")
        if not -ndim <= k < ndim:
            raise Unjudged("axis")
        k %= ndim
    row_shape, classes = shape[:k] + shape[k + 1 :], shape[k]
    if target.shape != (row_shape if integers else shape) or not classes:
        raise Unjudged("target")
    ignore = r.whole("ignore_index", -100)
    reduction = r.raw("reduction", "mean")
    smoothing, z_loss = r.number("label_smoothing", 0.0), r.number("z_loss", 0.0)
    softcap = 0.0 if r.raw("softcap") is None else r.number("softcap")
    if not (isinstance(reduction, str) and reduction in ("mean", "sum", "none")):
        raise Unjudged("reduction")
    if not (0 <= smoothing <= 1 and 0 <= z_loss < INF and 0 <= softcap < INF):
        raise Unjudged("options")
    if (r.raw("softcap") is not None and softcap == 0) or (not integers and ignore >= 0):
        raise Unjudged("options")
    if (z_loss and not 1e-20 < z_loss < 1e6) or (softcap and not 1e-5 < softcap < 1e8):
        raise Unjudged("beyond what bounds know")
    dtype = logits.dtype.name
    kind = compute_dtype(dtype)
    weight = None
    if r.raw("weight") is not None:
        weight = cast(r.floating("weight"), kind)
        usual = (weight == 0) | ((weight > 1e-6) & (weight < 1e6))
        if weight.shape != (classes,) or not usual.all():
            raise Unjudged("weight")
        if getattr(r.args["weight"], "requires_grad", False):
            raise Unjudged("weight")
    n = math.prod(row_shape)
    z = np.moveaxis(logits, k, -1).reshape(n, classes, 1)
    if integers:
        if target.dtype == np.uint64 and (target >= 2**63).any():
            raise Unjudged("target")
        t = target.astype(np.int64).reshape(n, 1)
        ignored, bad = truth.valid_target(t, classes, ignore)
        if bad.any():
            raise Unjudged("target")
    else:
        t = r.cast(np.moveaxis(target, k, -1).reshape(n, classes, 1), dtype)
        ignored = np.zeros((n, 1), bool)
        if not (np.isfinite(t.astype(np.float64)) & (np.abs(t.astype(np.float64)) < 1e6)).all():
            raise Unjudged("target")
    size = np.abs(truth.long(z))
    if size[np.isfinite(size)].max(initial=0) > 1e8:
        raise Unjudged("beyond what bounds know")
    plain = integers and not smoothing
    options = (weight, ignore, smoothing, z_loss, softcap)
    u = LONG(2) ** -FORMATS[kind].digits
    with np.errstate(all="ignore"):
        found = truth.cross_entropy(z, t, *options) if n else None
        if reduction != "mean":
            below = LONG(1)
        elif not integers:
            below = LONG(n)
        else:
            of_targets = (
                np.ones((n, 1), LONG)
                if weight is None
                else truth.long(weight)[np.where(ignored, 0, t)]
            )
            below = np.where(ignored, 0, of_targets).sum()
    lse_given = None
    if what == "cross_entropy_backward":
        lse_given = cast(r.floating("lse"), kind)
        if lse_given.shape != row_shape:
            raise Unjudged("lse")
        if found is not None:
            given, true = truth.long(lse_given).reshape(n, 1), found["lse"]
            with np.errstate(all="ignore"):
                off = np.abs(given - true) > 0.1 * (1 + np.abs(true))
            if (
                off | (np.isnan(given) != np.isnan(true)) | (np.isinf(given) != np.isinf(true))
            ).any():
                raise Unjudged("lse of other logits")

    def gradient(scale: Any, lse: Array | None = None) -> Expected:
        if found is None:
            return Expected(logits, dtype, shape)
        with np.errstate(all="ignore"):
            t_ = (
                found if lse is None else truth.cross_entropy(z, t, *options, lse=lse.reshape(n, 1))
            )
            errors = bounds.cross_entropy(
                t_, "numpy", dtype, plain, z_loss, softcap, lse is not None
            )
            s = np.broadcast_to(truth.long(scale).reshape(-1, 1), (n, 1))[:, None] / below
            value = np.where(ignored[:, None], 0, s * t_["gradient"])
            off = np.abs(s) * errors["gradient"] + np.abs(value) * u * (bounds.row(max(n, 2)) + 4)
            off = np.where(ignored[:, None], 0, off) + bounds.stored(value, dtype)
        moved = row_shape + (classes,)
        value, off = (np.moveaxis(a.reshape(moved), -1, k) for a in (value, off))
        return Expected(value, dtype, shape, off)

    if what == "cross_entropy_backward":
        dloss = r.parameter("dloss")
        if isinstance(dloss, float):
            dloss = np.asarray(dloss)
        dloss = wide(dloss, dtype)
        if dloss.shape != (row_shape if reduction == "none" else ()):
            raise Unjudged("dloss")
        if not (np.abs(truth.long(dloss)) < 1e6).all():
            raise Unjudged("dloss")
        return gradient(dloss, lse_given)
    if found is None:
        none = reduction == "none"
        empty = np.zeros(row_shape)
        total = LONG(0.0) if reduction == "sum" else LONG(np.nan)
        loss = Expected(empty if none else total, kind, row_shape if none else (), 0.0)
        lse_found = Expected(empty, kind, row_shape, 0.0)
    else:
        errors = bounds.cross_entropy(found, "numpy", dtype, plain, z_loss, softcap)
        with np.errstate(all="ignore"):
            value, off = found["loss"], errors["loss"]
            off = np.where(ignored, 0, off) + np.where(np.isnan(value), 0, u * np.abs(value))
            lse_off = errors["lse"] + bounds.stored(found["lse"], kind)
            lse_found = Expected(found["lse"], kind, (n, 1), lse_off).at(row_shape)
            if reduction == "none":
                loss = Expected(value, kind, (n, 1), off + bounds.stored(value, kind)).at(row_shape)
            else:
                total, size = value.sum(), np.abs(value).sum()
                off = off.sum() + u * size * bounds.row(max(n, 2))
                total, off = total / below, off / below
                off = off + np.abs(total) * u * (bounds.row(max(n, 2)) + 4)
                loss = Expected(total, kind, (), off + bounds.stored(total, kind))
    if what == "cross_entropy_with_grad":
        return loss, gradient(1.0)
    r.flag("gradient_in_forward")
    return (loss, lse_found) if r.flag("return_lse") else loss


def gradient_of_loss(r: Reading, y: Any, dy: Array) -> dict[str, Expected]:
    """By way of the lse that forward keeps: the same call without gradients gives it."""
    names = ("logits", "target", "weight", "ignore_index", "reduction", "label_smoothing")
    options = {n: r.args[n] for n in (*names, "z_loss", "softcap", "axis") if n in r.args}
    if r.flag("gradient_in_forward"):
        raise Unjudged("rounded twice")
    with torch_or_none().no_grad():
        _, lse = gpuact.cross_entropy(**options, return_lse=True)
    more = {"dloss": dy, "lse": from_tensor(lse)}
    return {"logits": judge_loss(reading_of(r, more), "cross_entropy_backward")}
