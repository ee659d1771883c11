"""Rounding and the narrow float types: what numpy does not do by itself.

Registers hold raw bits.  `up` turns typed bits into values to compute with and `down` rounds
results back.  Half types are computed in float64; `sum_odd` and `odd32` round to odd there, so that
the final rounding to the narrow type sees whether anything was lost and comes out right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import PTXError

WIDTH: dict[str, int] = {f"{k}{w}": w for w in (8, 16, 32, 64) for k in "bus"}
WIDTH |= {"pred": 1, "f16": 16, "bf16": 16, "f32": 32, "f64": 64}
WIDTH |= {"f16x2": 32, "bf16x2": 32, "f32x2": 64, "s16x2": 32, "u16x2": 32}
UINT = {w: np.dtype(f"u{w // 8}") for w in (8, 16, 32, 64)} | {1: np.dtype(bool)}
SINT = {w: np.dtype(f"i{w // 8}") for w in (8, 16, 32, 64)}
FLOATS = ("f16", "bf16", "f32", "f64", "f16x2", "bf16x2", "f32x2")
# The numpy type in which a register of each PTX type is handed to an instruction.
NUMPY = {t: SINT[w] if t[0] == "s" else UINT[w] for t, w in WIDTH.items()}
NUMPY |= {"f32": np.dtype("f4"), "f64": np.dtype("f8"), "f16": np.dtype("f2")}
NUMPY |= dict.fromkeys(("s16x2", "u16x2"), UINT[32])
TINY = np.float32(2.0**-126)
NAN32 = np.uint32(0x7FFFFFFF).view(np.float32)  # what arithmetic makes, whatever NaN went in
F32_TIE = np.int64(0x10000000)  # low bits of a float64 that lies half way between two float32


def flush(x: Any, t: str = "f32") -> Any:
    """Subnormal values of type t become zeros of the same sign."""
    tiny = x.dtype.type(2.0**-14 if t.startswith("f16") else 2.0**-126)
    return np.where(np.abs(x) < tiny, np.copysign(x.dtype.type(0), x), x)


def sum_odd(p: Any, c: Any) -> Any:
    """p + c in float64, rounded to odd, so that a later rounding to a narrower type is exact."""
    s = np.asarray(p + c, np.float64)
    b = s - p
    err = (p - (s - b)) + (c - b)
    bits = s.view(np.int64)
    fix = np.isfinite(err) & (err != 0) & ((bits & 1) == 0)
    if not fix.any():
        return s
    return (bits + np.where(fix, np.where((err > 0) == (s > 0), 1, -1), 0)).view(np.float64)


def odd32(x: Any) -> Any:
    """float64 -> float32 rounded to odd (bfloat16 is then one more, correct, rounding)."""
    y = np.asarray(np.asarray(x).astype(np.float32))
    y = np.where(np.isinf(y) & np.isfinite(x), np.copysign(np.finfo(np.float32).max, y), y)
    lost = x - y.astype(np.float64)
    bits = y.view(np.int32)
    fix = np.isfinite(lost) & (lost != 0) & ((bits & 1) == 0)
    if not fix.any():
        return y
    step = np.where((lost > 0) == (x > 0), 1, -1)
    return (bits + np.where(fix, step, 0).astype(np.int32)).view(np.float32)


def _directed(x: Any, y: Any, mode: str) -> Any:
    """Move y, x rounded to nearest, to the neighbour that a directed rounding gives."""
    if mode == "rn":
        return y
    t, wide = y.dtype.type, y.astype(np.float64)
    if mode == "rz":
        return np.where(np.abs(wide) > np.abs(x), np.nextafter(y, t(0)), y)
    if mode == "rm":
        return np.where(wide > x, np.nextafter(y, t(-np.inf)), y)
    if mode == "rp":
        return np.where(wide < x, np.nextafter(y, t(np.inf)), y)
    raise PTXError(f"unsupported rounding .{mode}")


def round32(x: Any, mode: str = "rn") -> Any:
    """float64 (exact, or rounded to odd) -> float32."""
    return _directed(x, np.asarray(np.asarray(x).astype(np.float32)), mode)


def to_f16(x: Any, mode: str = "rn") -> Any:
    """float32 or float64 -> float16."""
    h = _directed(np.asarray(x, np.float64), np.asarray(np.asarray(x).astype(np.float16)), mode)
    return np.where(np.isnan(h), np.uint16(0x7FFF), h.view(np.uint16)).view(np.float16)


def to_bf16(x: Any, mode: str = "rn") -> Any:
    """float32 or float64 -> bfloat16 bits."""
    x = np.asarray(x)
    y = x if x.dtype == np.float32 else odd32(x)
    b = np.ascontiguousarray(y).view(np.uint32).reshape(x.shape)
    one, top = np.uint32(1), b >> np.uint32(16)
    if mode == "rn":
        r = (b + np.uint32(0x7FFF) + (top & one)) >> np.uint32(16)
    elif mode in ("rz", "rm", "rp"):
        away = {"rz": False, "rm": np.signbit(y), "rp": ~np.signbit(y)}[mode]
        inexact = (b & np.uint32(0xFFFF)) != 0
        r = np.where(inexact & away, top + one, top)
    else:
        raise PTXError(f"unsupported rounding .{mode}")
    return np.where(np.isnan(y), np.uint32(0x7FFF), r).astype(np.uint16)


def up(t: str, u: Any, ftz: bool = False) -> Any:
    """Typed register -> values to compute with; packed types give twice as many values."""
    if t == "f64" or t not in FLOATS:
        return u
    if t in ("f32", "f32x2"):
        x = u.view(np.float32)
    elif t in ("f16", "f16x2"):
        x = u.view(np.float16).astype(np.float64)
    else:
        wide = u.view(np.uint16).astype(np.uint32) << np.uint32(16)
        x = wide.view(np.float32).astype(np.float64)
    return flush(x, t) if ftz else x


def canonical(y: Any) -> Any:
    """Results of float32 arithmetic, with the one NaN that PTX knows."""
    y = np.asarray(y)
    nan = np.isnan(y)
    return np.where(nan, NAN32, y) if nan.any() else y


def down(
    t: str, y: Any, mode: str = "rn", ftz: bool = False, sat: bool = False, relu: bool = False
) -> Any:
    """Computed values -> typed register."""
    y = np.asarray(y)
    if sat:
        y = np.where(np.isnan(y), 0, np.clip(y, 0, 1)).astype(y.dtype)
    if relu:
        y = np.where(y < 0, 0, y).astype(y.dtype)
    if t in ("f32", "f32x2"):
        y = canonical(y if y.dtype == np.float32 else round32(y, mode))
        y = flush(y) if ftz else y
    elif t in ("f16", "f16x2"):
        y = to_f16(y, mode)
        y = flush(y, t) if ftz else y
    elif t in ("bf16", "bf16x2"):
        y = to_bf16(y, mode)
        if ftz:
            y = np.where((y & np.uint16(0x7F80)) == 0, y & np.uint16(0x8000), y)
    return y.view(UINT[WIDTH[t]]) if t.endswith("x2") else y


def fma32(a: Any, b: Any, c: Any) -> Any:
    """Fused multiply-add of float32 values.

    The float64 product is exact.  Rounding the float64 sum once more to float32 can only go wrong
    where that sum sits exactly on a tie or the result is subnormal; only those lanes take the slow,
    exact path.
    """
    p, c = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    s = np.asarray(p + c)
    r = np.asarray(s.astype(np.float32))
    low = s.view(np.int64) & np.int64(0x1FFFFFFF)
    slow = (low == F32_TIE) | (np.abs(r) <= TINY)
    if slow.any():
        r[slow] = round32(
            sum_odd(np.broadcast_to(p, s.shape)[slow], np.broadcast_to(c, s.shape)[slow])
        )
    return r


def fma64(a: Any, b: Any, c: Any) -> Any:
    """Fused multiply-add of float64 values (Boldo and Melquiond: error-free terms, odd rounding).

    Exact unless the product's low half underflows or |a| or |b| is above 2**996. A zero takes its
    sign from p + c, which the error-free terms lose.
    """

    def two_sum(x: Any, y: Any) -> tuple[Any, Any]:
        s = x + y
        t = s - x
        return s, (x - (s - t)) + (y - t)

    def split(x: Any) -> tuple[Any, Any]:
        k = x * 134217729.0
        high = k - (k - x)
        return high, x - high

    p = a * b
    (ah, al), (bh, bl) = split(a), split(b)
    low = ((ah * bh - p) + ah * bl + al * bh) + al * bl
    th, tl = two_sum(c, low)
    vh, vl = two_sum(p, th)
    r = vh + sum_odd(tl, vl)
    return np.where(np.isfinite(r) & (r != 0), r, p + c)


def fminmax(x: Any, y: Any, largest: bool, nan: bool) -> Any:
    """min / max with -0 < +0; a NaN operand is dropped, or kept with .NaN."""
    r = (np.fmax if largest else np.fmin)(x, y)
    zeros = (x == 0) & (y == 0)
    if np.any(zeros):
        sx, sy = np.signbit(x), np.signbit(y)
        negative = (sx & sy) if largest else (sx | sy)
        r = np.where(zeros, np.where(negative, -0.0, 0.0).astype(r.dtype), r)
    return np.where(np.isnan(x) | np.isnan(y), np.nan, r).astype(r.dtype) if nan else r


def _scattered(y: np.ndarray, seed: int) -> Any:
    """A number from -1 to 1 for each y that looks random: the finalizer of SplitMix64."""
    h = np.atleast_1d(y).view(np.uint64) + np.uint64(seed % 2**32 * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        h = (h ^ (h >> np.uint64(shift))) * np.uint64(factor)
    h ^= h >> np.uint64(31)
    return ((h >> np.uint64(11)) / 2.0**52 - 1).reshape(y.shape)


def perturb(t: str, raw: Any, bound: float, absolute: bool, scale: float, seed: int) -> Any:
    """Put an error of up to scale * bound on the result of an approximate instruction.

    It depends on the result and the seed alone, for in hardware two threads find the same. Powers
    of two stay exact, as there: CUDA's own exp relies on ex2.approx of integers.
    """
    y = up(t, raw).astype(np.float64)
    size = np.where(np.abs(y) < 1, 1.0, np.abs(y)) if absolute else np.abs(y)
    size = np.where(np.isfinite(y) & (np.frexp(np.abs(y))[0] != 0.5), size, 0)
    return down(t, y + size * bound * scale * _scattered(y, seed))


# opcode -> (function on float64, documented error bound, bound is absolute below 1)
APPROX: dict[str, tuple[Callable[[Any], Any], float, bool]] = {
    "ex2": (np.exp2, 2.0**-22, False),
    "lg2": (np.log2, 2.0**-22, True),
    "rcp": (lambda x: 1.0 / x, 2.0**-23, False),
    "sqrt": (np.sqrt, 2.0**-23, False),
    "rsqrt": (lambda x: 1.0 / np.sqrt(x), 2.0**-22.4, False),
    "sin": (np.sin, 2.0**-20.5, True),
    "cos": (np.cos, 2.0**-20.5, True),
    "tanh": (np.tanh, 2.0**-11, False),
}
