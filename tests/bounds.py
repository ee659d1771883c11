"""How far from the truth a result may be: one table, one rule, one comparison.

An elementwise result may be `BOUNDS[formula][family]` units in the last place (ulp) of the truth
away, a unit of the dtype that is stored. Row functions compute in the compute dtype, whose unit
roundoff is u: their error before the last rounding is at most

    u · (|x_i − max| + c·log2 n + k)

times the size of what is summed: the exponential of a rounded difference, then a sum of n terms.
NaN and infinities must be where the truth has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import ml_dtypes
import numpy as np

from tests import truth
from tests.truth import LONG, Array

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


@dataclass(frozen=True)
class Format:
    digits: int  # significant bits, the hidden one too
    least: int  # exponent of the smallest normal number
    largest: float


FORMATS = {
    "float16": Format(11, -14, 65504.0),
    "bfloat16": Format(8, -126, float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)),
    "float32": Format(24, -126, float(np.finfo(np.float32).max)),
    "float64": Format(53, -1022, float(np.finfo(np.float64).max)),
}
FLUSHED = LONG(2) ** -126  # float32 arithmetic on GPUs may take anything smaller for zero
COMPUTE = {"float16": "float32", "bfloat16": "float32"}  # the others compute in themselves
ROW_C, ROW_K = 1.0, 6.0


def compute_dtype(dtype: str) -> str:
    return COMPUTE.get(dtype, dtype)


# formula → ulp for (float32, float64) by family of backends. Half types are rounded once, at the
# store: half a unit of theirs, and a little (HALF) where float32's error tips the scale. Measured
# and rounded up: NumPy, and the text of the CUDA formulas as the host compiles it, on all float32
# (tests/exhaustive.py); Triton's interpreter on those around 1, where it is worst; for GPUs with
# the whole documented error, of random size and sign, in every approximate instruction (2 ulp in
# ex2 and in Triton's division). EXACT is one rounding.
EXACT = (0.501, 0.501)
FUSED = 8.0  # of act and act' in float32 and float64 inside `fused`; its other steps are EXACT
FAMILIES = ("numpy", "host", "cupy", "triton", "interpreter")
FLUSHING = ("cupy", "triton")  # may take float32 below 2^-126 for zero
BOUNDS: dict[str, dict[str, tuple[float, float]]] = {
    formula: dict(zip(FAMILIES, row, strict=True))
    for formula, row in {
        #                       numpy       host        cupy        triton      interpreter
        "linear": ((1.0, 1.0), EXACT, EXACT, EXACT, (1.0, 1.0)),
        "linear_backward": (EXACT, EXACT, EXACT, EXACT, EXACT),
        "linear_derivative": (EXACT, EXACT, EXACT, EXACT, EXACT),
        "sigmoid": ((4.0, 3.0), (2.5, 2.5), (6.5, 3.0), (8.5, 3.0), (4.0, 3.0)),
        "sigmoid_backward": ((2.5, 2.5), (2.5, 2.5), (2.5, 2.5), (2.5, 2.5), (2.5, 2.5)),
        "sigmoid_derivative": ((6.0, 4.5), (4.5, 4.0), (7.5, 4.0), (9.0, 4.0), (6.5, 4.0)),
        "tanh": ((2.0, 2.0), (2.0, 2.0), (3.5, 1.5), (4.5, 2.0), (3.0, 2.0)),
        "tanh_backward": ((2.5, 2.5), (1.5, 1.5), (1.5, 1.5), (2.5, 2.5), (2.5, 2.5)),
        "tanh_derivative": ((6.0, 4.5), (4.5, 4.0), (7.5, 4.0), (9.0, 4.0), (6.5, 4.0)),
        "relu": ((0.0, 0.0),) * 5,
        "relu_backward": ((0.0, 0.0),) * 5,
        "relu_derivative": ((0.0, 0.0),) * 5,
        "leaky_relu": (EXACT, EXACT, EXACT, EXACT, EXACT),
        "leaky_relu_backward": (EXACT, EXACT, EXACT, EXACT, EXACT),
        "leaky_relu_derivative": (EXACT, EXACT, EXACT, EXACT, EXACT),
    }.items()
}
HALF = 0.505  # ulp of a half type


@cache
def operand_names(formula: str) -> tuple[str, ...]:
    """What a formula reads, in its order, by the names of tests/truth.py."""
    return tuple(signature(truth.ELEMENTWISE[formula]).parameters)


def ulp(value: Array, dtype: str) -> Array:
    """The unit in the last place of values as the dtype stores them."""
    form = FORMATS[dtype]
    magnitude = np.where(np.isfinite(value), np.abs(value), 0)
    _, exponent = np.frexp(magnitude)
    exponent = np.where(magnitude == 0, form.least, exponent - 1)
    exponent = np.maximum(exponent, form.least)
    return np.ldexp(LONG(1), exponent - form.digits + 1)


def _weight(formula: str, operands: list[Array], value: Array) -> Array:
    """The numbers whose last place the error is measured in: the result, but where it cancels."""
    if formula == "linear":
        x, scale, bias = operands
        return np.abs(scale * x) + np.abs(bias)
    return np.abs(value)


def stated(formula: str, family: str, dtype: str) -> float:
    """The bound in ulp of the dtype that is stored."""
    compute = compute_dtype(dtype)
    bound = BOUNDS[formula][family][compute == "float64"]
    if dtype == compute or not bound:
        return bound
    return HALF + bound * 2.0 ** (FORMATS[dtype].digits - FORMATS[compute].digits)


def elementwise(formula: str, family: str, dtype: str, operands: list[Any], value: Array) -> Array:
    """The error that each element may have."""
    wide = [truth.long(a) for a in operands]
    compute = compute_dtype(dtype)
    bound = BOUNDS[formula][family][compute == "float64"]
    with np.errstate(all="ignore"):
        weight = _weight(formula, wide, value)
        # what an error of `bound` ulp before the store, or half an ulp at it, makes
        if dtype == compute:
            allowed = bound * ulp(weight, dtype)
        else:
            allowed = (HALF * ulp(value, dtype) + bound * ulp(weight, compute)) * (bound > 0)
    return allowed + floor(family, dtype)


def floor(family: str, dtype: str) -> Array:
    """2^-126 where a float32 result below it may become 0; no operand ever counts as 0.

    On GPUs, and so in Triton's interpreter; the cheap forms for bfloat16 do so on the host, too.
    """
    flushes = family not in ("numpy", "host") or (family, dtype) == ("host", "bfloat16")
    return FLUSHED * (flushes and compute_dtype(dtype) == "float32")


def defined(family: str, dtype: str, operands: list[Any]) -> Array:
    """Where a result is promised: Triton's interpreter takes a subnormal bfloat16 for another
    number as it loads it; no GPU does.
    """
    wide = np.broadcast_arrays(*(np.abs(truth.long(a)) for a in operands))
    subnormal = np.any([(a > 0) & (a < FLUSHED) for a in wide], 0)
    return ~subnormal | ((family, dtype) != ("interpreter", "bfloat16"))


def measured(
    actual: Any, formula: str, family: str, dtype: str, operands: list[Any], value: Array
) -> Array:
    """The error of each element in ulp of the dtype, of what may be flushed beyond that alone.

    inf where NaN or an infinity stands at the wrong place, 0 where no result is promised.
    """
    wide = [truth.long(a) for a in operands]
    with np.errstate(all="ignore"):
        unit = ulp(_weight(formula, wide, value), dtype)
        error = _distance(truth.long(actual), value, stated(formula, family, dtype) * unit, dtype)
        beyond = np.maximum(error - floor(family, dtype), 0) / unit
    return np.where(defined(family, dtype, operands), beyond, 0)


def row(n: int, distance: Array | float = 0.0) -> Array:
    """|x_i − max| + c·log2 n + k."""
    return np.abs(distance) + ROW_C * np.log2(n) + ROW_K


def rows(formula: str, dtype: str, arrays: list[Any], value: Array) -> Array:
    """The error that each element of a row may have, the store's included."""
    compute = compute_dtype(dtype)
    u = LONG(2) ** -FORMATS[compute].digits
    n = value.shape[1]
    with np.errstate(all="ignore"):
        if formula in ("softmax", "log_softmax"):
            error = u * row(n, truth.distance(arrays[0]))
            error = error * (value if formula == "softmax" else 1)
        else:
            dy, y = (truth.long(a) for a in arrays)
            terms = y * dy if formula == "softmax_backward" else dy
            size = np.abs(terms).sum(1, keepdims=True)
            share = np.abs(y) if formula == "softmax_backward" else np.exp(y)
            far = 0.0 if formula == "softmax_backward" else y
            error = u * (share * size * row(n, far) + ROW_K * (np.abs(value) + np.abs(dy) * share))
    return error + stored(value, dtype)


def scored(dtype: str, z: Array, terms: Array, value: Array) -> Array:
    """Of a softmax of z, a sum of rounded terms whose sizes are `terms`, rows along axis 1.

    Each z is off by half an ulp of every step on its way; through the sum an element meets the
    errors of all, by their shares.
    """
    u = LONG(2) ** -FORMATS[compute_dtype(dtype)].digits
    with np.errstate(all="ignore"):
        size = np.where(np.isfinite(z), np.abs(z) + terms, 0)
        share = np.where(np.isnan(value), 0, value)
        steps = 2 * (size + (share * size).sum(1, keepdims=True))
        error = u * (row(z.shape[1], truth.distance(z)) + steps) * value
    return np.where(np.isnan(error), 0, error) + stored(value, dtype)


def capped(family: str, dtype: str, z: Array) -> Array:
    """What cap·tanh(x / cap) may be off by, in u: as tanh is, and as its argument and product are.

    The argument, by a reciprocal perhaps, is off by 2 u, of which no more reaches tanh.
    """
    tanh = BOUNDS["tanh"][family][compute_dtype(dtype) == "float64"]
    return (2 * tanh + 3) * np.where(np.isfinite(z), np.abs(z), 0)


def cross_entropy(
    t: dict[str, Array],
    family: str,
    dtype: str,
    plain: bool,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    from_lse: bool = False,
) -> dict[str, Array]:
    """Of loss, lse and gradient of truth.cross_entropy's rows, before they are stored.

    plain: a row's loss is that of one class, else a sum over all. from_lse: the gradient is made
    from an lse that is given, and takes no error of the sum's.
    """
    u = LONG(2) ** -FORMATS[compute_dtype(dtype)].digits
    z, slope, lse, softmax = t["z"], t["slope"], t["lse"], t["softmax"]
    n, q = z.shape[1], np.abs(t["shares"])
    with np.errstate(all="ignore"):
        steps = capped(family, dtype, z) if softcap else np.zeros_like(z)
        mean = np.where(softmax == 0, 0, softmax * steps).sum(1)
        of_lse = np.abs(lse) + row(n) + mean
        if plain:
            of_loss = np.abs(t["mass"]) * row(n) + np.abs(t["distance"])
        else:  # a sum of n terms q·(lse − z)
            sizes = np.where(q == 0, 0, q * (np.abs(z) + np.abs(lse)[:, None])).sum(1)
            of_loss = q.sum(1) * row(n) + sizes * (1 + np.log2(n))
        of_loss = of_loss + (q * steps).sum(1) + np.abs(t["mass"]) * mean
        pulled = softmax * np.abs(t["pull"])[:, None]
        of_pull = np.zeros_like(lse)
        if z_loss:
            of_loss = of_loss + z_loss * (2 * np.abs(lse) * of_lse + 3 * lse**2)
            of_pull = 2 * z_loss * (2 * np.abs(lse) if from_lse else of_lse + 2 * np.abs(lse))
        far = np.where(pulled == 0, 0, np.log(softmax))
        of_softmax = row(n, far) + steps + (0 if from_lse else mean[:, None])
        error = pulled * of_softmax + softmax * of_pull[:, None] + ROW_K * q
        error = error + least(dtype) / u * np.abs(t["pull"])[:, None]
        if softcap:  # (1 − t)(1 + t), whose digits cancel where t is nearly 1
            share = np.abs(z) / softcap
            of_slope = 2 * share * (capped(family, dtype, share) + 2 * share) + 3 * slope
            error = error * (slope + u * of_slope)
            error = error + np.abs(softmax * t["pull"][:, None] - t["shares"]) * of_slope
    return {"loss": u * of_loss, "lse": u * of_lse, "gradient": u * error}


def least(dtype: str) -> Array:
    """What is not told from zero in the course of a computation."""
    form = FORMATS[compute_dtype(dtype)]
    return FLUSHED if form.digits == 24 else np.ldexp(LONG(1), form.least - form.digits + 1)


def stored(value: Array, dtype: str) -> Array:
    """What rounding at the store adds; below 2^-126 a GPU may store zero."""
    floor = FLUSHED if compute_dtype(dtype) == "float32" else 0
    return HALF * ulp(value, dtype) + floor


def _distance(got: Array, value: Array, allowed: Array, dtype: str) -> Array:
    """|got − truth|, inf where NaN or an infinity is where the truth has none, or the reverse."""
    largest = LONG(FORMATS[dtype].largest)
    # an overflow is right where the truth lies beyond the largest number, or as near as allowed
    edge = largest + ulp(largest, dtype) / 2 - allowed
    overflow = np.isinf(got) & (np.sign(got) == np.sign(value)) & (np.abs(value) >= edge)
    error = np.abs(got - np.clip(value, -largest, largest))
    error = np.where(np.isinf(value) & np.isfinite(got), np.inf, error)
    special = (np.isnan(got) & np.isnan(value)) | (got == value) | overflow
    error = np.where(special, 0, error)
    return np.where((np.isnan(got) != np.isnan(value)) | np.isnan(error), np.inf, error)


def check(actual: Any, value: Array, allowed: Array | float, dtype: str, what: str = "") -> float:
    """Raise with the worst element unless every one is as near as allowed; the worst ratio else."""
    got, (value, allowed) = truth.long(actual), np.broadcast_arrays(value, allowed)
    if got.shape != value.shape:
        raise AssertionError(f"{what}: shape {got.shape}, the truth has {value.shape}")
    if not got.size:
        return 0.0
    with np.errstate(all="ignore"):
        error = _distance(got, value, allowed, dtype)
        ratio = error / np.where(allowed > 0, allowed, LONG(2) ** -16000)
    worst = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    if ratio[worst] > 1:
        unit = ulp(value[worst], dtype)
        raise AssertionError(
            f"{what}: {int((ratio > 1).sum())} of {ratio.size} wrong, the worst at "
            f"{tuple(map(int, worst))}: got {got[worst]!r}, truth {value[worst]!r}, "
            f"{float(error[worst] / unit):.4g} ulp, allowed {float(allowed[worst] / unit):.4g}"
        )
    return float(ratio[worst])
