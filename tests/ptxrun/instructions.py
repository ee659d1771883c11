"""Arithmetic: a table from opcode to a builder that returns typed numpy functions.

A builder looks at one instruction and returns a `Spec`: operand types and a function from typed
arrays to a typed array.  Modifiers that a builder does not name are refused, so nothing is silently
ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .floats import (
    APPROX,
    FLOATS,
    NUMPY,
    TINY,
    UINT,
    WIDTH,
    canonical,
    down,
    flush,
    fma32,
    fma64,
    fminmax,
    round32,
    sum_odd,
    to_bf16,
    to_f16,
    up,
)
from .memory import WINDOW
from .parse import Imm, Instruction, Pair, Reg

U64 = np.uint64


class Spec(NamedTuple):
    dst: tuple[str, ...]
    srcs: tuple[str, ...]
    fn: Callable[..., Any]
    noise: tuple[float, bool] | None = None  # error bound of an approximate instruction


TABLE: dict[str, tuple[Callable[[Instruction], Spec], frozenset[str]]] = {}


def op(names: str, mods: str = "") -> Callable[[Any], Any]:
    def register(builder: Callable[[Instruction], Spec]) -> Callable[[Instruction], Spec]:
        for n in names.split():
            TABLE[n] = (builder, frozenset(mods.split()))
        return builder

    return register


def build(ins: Instruction) -> Spec:
    """The Spec of an arithmetic instruction."""
    if ins.op not in TABLE:
        raise ins.unsupported()
    builder, known = TABLE[ins.op]
    if any(m not in WIDTH and m not in known for m in ins.mods):
        raise ins.unsupported()
    return builder(ins)


def rounding(i: Instruction) -> str:
    return i.mod("rn", "rz", "rm", "rp") or "rn"


LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}


@op("and or xor not cnot mov")
def _logic(i: Instruction) -> Spec:
    t = i.types[0]
    if t != "pred":
        t = f"b{WIDTH[t]}"
    if i.op == "mov":
        return Spec((t,), (t,), lambda a: a)
    if i.op == "cnot":
        return Spec((t,), (t,), lambda a: (a == 0).astype(a.dtype))
    return Spec((t,), (t,) * (len(i.ops) - 1), LOGIC[i.op])


@op("shl shr")
def _shift(i: Instruction) -> Spec:
    t = i.types[0]
    w, dt = WIDTH[t], NUMPY[t]

    def fn(a: Any, n: Any) -> Any:
        shift = np.minimum(n, w - 1).astype(dt)
        r = np.left_shift(a, shift) if i.op == "shl" else np.right_shift(a, shift)
        if (t[0] == "s" and i.op == "shr") or (np.ndim(n) == 0 and n < w):
            return r
        return np.where(n >= w, dt.type(0), r)

    return Spec((t,), (t, "u32"), fn)


@op("shf", "l r wrap clamp")
def _funnel(i: Instruction) -> Spec:
    left, wrap = i.mod("l", "r") == "l", i.mod("wrap")

    def fn(a: Any, b: Any, c: Any) -> Any:
        n = (c & np.uint32(31)) if wrap else np.minimum(c, np.uint32(32))
        n = n.astype(U64)
        v = (b.astype(U64) << U64(32)) | a.astype(U64)
        r = np.where(n == 32, a.astype(U64), (v << n) >> U64(32)) if left else v >> n
        return r.astype(np.uint32)

    return Spec(("b32",), ("b32", "b32", "u32"), fn)


@op("lop3")
def _lop3(i: Instruction) -> Spec:
    lut = i.ops[4].value

    def fn(a: Any, b: Any, c: Any) -> Any:
        r = np.uint32(0)
        for k in range(8):
            if lut >> k & 1:
                r = r | (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
        return r

    return Spec(("b32",), ("b32",) * 3, fn)


@op("prmt")
def _prmt(i: Instruction) -> Spec:
    if "b32" not in i.mods or len(i.mods) > 1:
        raise i.unsupported()
    u8, fixed = np.uint32(0xFF), int(i.ops[3].value) if isinstance(i.ops[3], Imm) else None

    def fn(a: Any, b: Any, c: Any) -> Any:
        r = np.uint32(0)
        for k in range(4):
            if fixed is not None:
                s = fixed >> 4 * k & 15
                byte = ((b if s & 4 else a) >> np.uint32(8 * (s & 3))) & u8
                if s & 8:
                    byte = (byte >> np.uint32(7)) * u8
            else:
                s = (c >> np.uint32(4 * k)) & np.uint32(15)
                word = np.where(s & np.uint32(4), b, a)
                byte = (word >> ((s & np.uint32(3)) << np.uint32(3))) & u8
                byte = np.where(s & np.uint32(8), (byte >> np.uint32(7)) * u8, byte)
            r = r | (byte << np.uint32(8 * k))
        return r

    return Spec(("b32",), ("b32",) * 3, fn)


def bit_length(x: Any) -> Any:
    """Index of the highest set bit + 1, of unsigned arrays."""
    x = np.asarray(x, U64)
    r = np.zeros(x.shape, np.int64)
    for s in (32, 16, 8, 4, 2, 1):
        big = x >= (U64(1) << U64(s))
        r += np.where(big, s, 0)
        x = np.where(big, x >> U64(s), x)
    return r + (x != 0)


def _ones(n: Any) -> Any:
    """n low bits set (n an int64 array)."""
    return np.where(n >= 64, ~U64(0), (U64(1) << np.minimum(n, 63).astype(U64)) - U64(1))


@op("bfe")
def _bfe(i: Instruction) -> Spec:
    t = i.types[0]
    w, signed = WIDTH[t], t[0] == "s"

    def fn(a: Any, pos: Any, n: Any) -> Any:
        pos, n = pos.astype(np.int64) & 255, n.astype(np.int64) & 255
        x = a.astype(np.int64) if signed else a.astype(U64).view(np.int64)
        # bits beyond the word read as its sign (or zero): shift an extended 64-bit word
        v = np.where(
            pos > 63,
            np.where(signed & (x < 0), -1, 0),
            (x >> np.minimum(pos, 63))
            if signed
            else (x.view(U64) >> np.minimum(pos, 63).astype(U64)).view(np.int64),
        ).view(U64)
        keep = _ones(n)
        r = v & keep
        if signed:
            top = np.clip(pos + n - 1, 0, w - 1).astype(np.int64)
            r = np.where((n > 0) & ((x >> top) & 1 == 1), r | ~keep, r)
        return r.astype(UINT[w])

    return Spec((t,), (t, "u32", "u32"), fn)


@op("bfi")
def _bfi(i: Instruction) -> Spec:
    t = i.types[0]
    w = WIDTH[t]

    def fn(f: Any, b: Any, pos: Any, n: Any) -> Any:
        pos, n = pos.astype(np.int64) & 255, n.astype(np.int64) & 255
        shift = np.minimum(pos, 63).astype(U64)
        mask = np.where(pos >= w, U64(0), _ones(n) << shift)
        return ((b.astype(U64) & ~mask) | ((f.astype(U64) << shift) & mask)).astype(UINT[w])

    return Spec((t,), (t, t, "u32", "u32"), fn)


@op("popc clz brev bfind", "shiftamt")
def _count_bits(i: Instruction) -> Spec:
    t = i.types[0]
    w = WIDTH[t]

    def find(a: Any) -> Any:
        n = bit_length((np.where(a < 0, ~a, a) if t[0] == "s" else a).view(UINT[w]))
        return np.where(n == 0, -1, w - n if i.mod("shiftamt") else n - 1).astype(np.int32)

    def reverse(a: Any) -> Any:
        r = np.zeros_like(a)
        for k in range(w):
            r |= ((a >> a.dtype.type(k)) & a.dtype.type(1)) << a.dtype.type(w - 1 - k)
        return r

    fn = {
        "popc": lambda a: np.bitwise_count(a).astype(np.uint32),
        "bfind": find,
        "clz": lambda a: (w - bit_length(a)).astype(np.uint32),
        "brev": reverse,
    }[i.op]
    return Spec((t if i.op == "brev" else "b32",), (t,), fn)


@op("selp slct", "ftz")
def _select(i: Instruction) -> Spec:
    t = f"b{WIDTH[i.types[0]]}"
    if i.op == "selp":
        return Spec((t,), (t, t, "pred"), lambda a, b, c: np.where(c, a, b))
    return Spec((t,), (t, t, i.types[1]), lambda a, b, c: np.where(c >= 0, a, b))


COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
INVERSE = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "ne": "eq"}


def _comparison(cmp: str, t: str, ftz: bool) -> Callable[[Any, Any], Any]:
    if t not in FLOATS:
        return COMPARE[cmp]
    if cmp in ("num", "nan"):

        def nan(a: Any, b: Any) -> Any:
            r = np.isnan(up(t, a)) | np.isnan(up(t, b))
            return r if cmp == "nan" else ~r

        return nan
    base, unordered = COMPARE[cmp[:2]], len(cmp) == 3

    def fn(a: Any, b: Any) -> Any:
        x, y = up(t, a, ftz), up(t, b, ftz)
        if (unordered and cmp in ("equ", "neu")) or (not unordered and cmp == "ne"):
            different = (x < y) | (x > y)
            return different if cmp == "ne" else x != y if cmp == "neu" else ~different
        return ~COMPARE[INVERSE[cmp[:2]]](x, y) if unordered else base(x, y)

    return fn


_CMPS = " ".join(COMPARE) + " equ neu ltu leu gtu geu num nan and or xor ftz"


@op("setp set", _CMPS)
def _set(i: Instruction) -> Spec:
    t, boolop = i.types[-1], next((m for m in i.mods[1:] if m in LOGIC), None)
    if i.mods[0] in ("lo", "ls", "hi", "hs"):
        t = "u" + t[1:]
    compare, packed = _comparison(i.mods[0], t, "ftz" in i.mods), t.endswith("x2")
    srcs = (t, t, "pred") if boolop else (t, t)

    def combine(r: Any, c: Any) -> Any:
        return LOGIC[boolop](r, c) if boolop else r

    if i.op == "setp":
        if not isinstance(i.ops[0], Pair):
            return Spec(("pred",), srcs, lambda a, b, c=None: combine(compare(a, b), c))

        def both(a: Any, b: Any, c: Any = None) -> Any:
            r = compare(a, b)
            p, q = (r[0::2], r[1::2]) if packed else (r, ~r)
            return combine(p, c), combine(q, c)

        return Spec(("pred", "pred"), srcs, both)
    dt = i.types[0]
    one = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80, "f16x2": 0x3C00, "bf16x2": 0x3F80}
    half = np.dtype(np.uint16) if packed else UINT[WIDTH[dt]]
    true = half.type(one.get(dt, (1 << 8 * half.itemsize) - 1))

    def value(a: Any, b: Any, c: Any = None) -> Any:
        r = np.asarray(compare(a, b))
        r = combine(r, np.repeat(c, 2) if packed and boolop else c)
        return np.where(r, true, half.type(0)).view(UINT[WIDTH[dt]])

    return Spec((dt,), srcs, value)


@op("cvta", "to global shared local const param shared::cta shared::cluster")
def _cvta(i: Instruction) -> Spec:
    space = next(m.split("::")[0] for m in i.mods if m != "to")
    base = U64(WINDOW.get(space, 0))
    return Spec(("u64",), ("u64",), (lambda a: a - base) if i.mod("to") else (lambda a: a + base))


@op("isspacep", "global shared local const param shared::cta shared::cluster")
def _isspacep(i: Instruction) -> Spec:
    starts = sorted(WINDOW.values())
    low = WINDOW.get(i.mods[0].split("::")[0], 0)
    high = next((b for b in starts if b > low), 2**63)
    return Spec(("pred",), ("u64",), lambda a: (a >= U64(low)) & (a < U64(high)))


@op("testp", "finite infinite number notanumber normal subnormal")
def _testp(i: Instruction) -> Spec:
    t = i.types[0]
    tiny = TINY if t == "f32" else np.finfo(np.float64).tiny
    fn: Any = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda x: ~np.isnan(x),
        "notanumber": np.isnan,
        "subnormal": lambda x: (x != 0) & (np.abs(x) < tiny),
        "normal": lambda x: np.isfinite(x) & (np.abs(x) >= tiny),
    }[i.mods[0]]
    return Spec(("pred",), (t,), fn)


@op("copysign")
def _copysign(i: Instruction) -> Spec:
    t = i.types[0]
    return Spec((t,), (t, t), lambda a, b: np.copysign(b, a))


@op(
    "createpolicy",
    "fractional range L2::evict_last L2::evict_first L2::evict_normal L2::evict_unchanged",
)
def _policy(i: Instruction) -> Spec:
    return Spec(("b64",), (), lambda: U64(0))


@op("ex2 lg2 rsqrt sin cos tanh rcp sqrt", "approx ftz rn rz rm rp")
def _approx(i: Instruction) -> Spec:
    t, ftz = i.types[0], "ftz" in i.mods
    f, bound, absolute = APPROX[i.op]

    def fn(a: Any) -> Any:
        y = f(up(t, a, ftz).astype(np.float64))
        if t == "f64" and "approx" in i.mods:  # the low word of the result is zero
            return (np.asarray(y).view(U64) & U64(0xFFFFFFFF00000000)).view(np.float64)
        return down(t, y, rounding(i), ftz)

    if rounding(i) != "rn" and t == "f64":
        raise i.unsupported()
    noise = (bound, absolute) if "approx" in i.mods and t != "f64" else None
    return Spec((t,), (t,), fn, noise)


@op("abs neg", "ftz")
def _sign(i: Instruction) -> Spec:
    t = i.types[0]
    if t not in FLOATS:
        return Spec((t,), (t,), np.abs if i.op == "abs" else np.negative)
    raw = f"b{WIDTH[t]}"
    unit = 32 if t == "f32x2" else 16 if t.endswith("x2") else WIDTH[t]
    sign = UINT[WIDTH[t]].type(sum(1 << k for k in range(unit - 1, WIDTH[t], unit)))

    def fn(a: Any) -> Any:
        if "ftz" in i.mods and t == "f32":
            a = np.asarray(flush(a.view(np.float32))).view(a.dtype)
        return a ^ sign if i.op == "neg" else a & ~sign

    return Spec((raw,), (raw,), fn)


def halves(t: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of 16-bit integers on s16x2 or u16x2: on each half by itself."""
    half = np.dtype("i2" if t[0] == "s" else "u2")

    def each(a: Any, b: Any) -> Any:
        x, y = (
            np.ascontiguousarray(np.atleast_1d(v)).view(half) for v in np.broadcast_arrays(a, b)
        )
        return fn(x, y).view(np.uint32).reshape(np.shape(a) or np.shape(b))

    return each


@op("min max", "NaN ftz xorsign abs")
def _minmax(i: Instruction) -> Spec:
    t, largest = i.types[0], i.op == "max"
    srcs = (t,) * (len(i.ops) - 1)
    if t not in FLOATS:
        fn = np.maximum if largest else np.minimum
        return Spec((t,), srcs, halves(t, fn) if t.endswith("x2") else fn)
    if t == "f32x2":
        raise i.unsupported()

    def fn(*args: Any) -> Any:
        r, *rest = [up(t, a, "ftz" in i.mods) for a in args]
        for y in rest:
            sign = np.signbit(r) ^ np.signbit(y)
            if "abs" in i.mods:
                r, y = np.abs(r), np.abs(y)
            r = fminmax(r, y, largest, "NaN" in i.mods)
            if "xorsign" in i.mods:
                r = np.where(sign, -r, r)
        return down(t, r, ftz="ftz" in i.mods)

    return Spec((t,), srcs, fn)


INT_ADD: dict[str, Callable[..., Any]] = {"add": np.add, "sub": np.subtract}
FLOAT_ADD = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def _float_arithmetic(i: Instruction) -> Spec:
    t, mode = i.types[0], rounding(i)
    ftz, sat, relu = (m in i.mods for m in ("ftz", "sat", "relu"))
    name = "fma" if i.op == "mad" else i.op
    srcs = (t,) * (len(i.ops) - 1)
    if t == "f64" and mode != "rn":
        raise i.unsupported()
    if len(i.types) > 1:  # add.f32.bf16 and the like: all but the last operand are halves
        half = i.types[1]
        widen = _float_arithmetic(replace(i, mods=[m for m in i.mods if m != half])).fn
        return Spec(
            (t,),
            (half,) * (len(srcs) - 1) + (t,),
            lambda *x: widen(*[up(half, v).astype(np.float32) for v in x[:-1]], x[-1]),
        )
    if t == "f64":
        return Spec((t,), srcs, fma64 if name == "fma" else FLOAT_ADD[name])
    if t == "f32" and mode == "rn" and not (ftz or sat):
        exact = fma32 if name == "fma" else FLOAT_ADD[name]
        return Spec((t,), srcs, lambda *x: canonical(exact(*x)))

    def fn(*args: Any) -> Any:
        x = [up(t, a, ftz) for a in args]
        if mode == "rn" and t in ("f32", "f32x2"):
            return down(t, fma32(*x) if name == "fma" else FLOAT_ADD[name](*x), mode, ftz, sat)
        x = [np.asarray(v, np.float64) for v in x]
        if name == "mul":
            r = x[0] * x[1]
        elif name == "fma":
            r = sum_odd(x[0] * x[1], x[2])
        else:
            r = sum_odd(x[0], x[1] if name == "add" else -x[1])
        return down(t, r, mode, ftz, sat, relu)

    return Spec((t,), srcs, fn)


@op("div rem", "rn rz rm rp approx full ftz")
def _div(i: Instruction) -> Spec:
    t, mode, ftz = i.types[0], rounding(i), "ftz" in i.mods
    if t not in FLOATS:
        return Spec((t,), (t, t), lambda a, b: _int_div(a, b, NUMPY[t].type, i.op == "rem"))
    approx = i.mod("approx", "full")
    if mode != "rn" and t == "f64":
        raise i.unsupported()

    def fn(a: Any, b: Any) -> Any:
        x, y = up(t, a, ftz), up(t, b, ftz)
        if t == "f64":
            return x / y
        # no quotient of float32 values is closer than 2**-49 to a float32 without being one
        r = x / y if mode == "rn" else round32(np.asarray(x, np.float64) / y, mode)
        if approx == "approx":  # documented: a huge divisor gives zero (NaN for inf / huge)
            huge = (np.abs(y) > 2.0**126) & np.isfinite(y)
            r = np.where(huge, np.where(np.isinf(x), np.nan, 0.0 * r), r).astype(np.float32)
        return down(t, r, "rn", ftz)

    return Spec((t,), (t, t), fn, (2.0**-22, False) if approx else None)


def _int_div(a: Any, b: Any, dt: Any, rem: bool) -> Any:
    zero = b == 0
    y = np.where(zero, dt(1), b)
    q = a // y
    r = a - q * y
    if dt(0) - dt(1) < 0:  # PTX truncates, numpy floors
        wrong = (r != 0) & ((a < 0) != (y < 0))
        q, r = q + wrong.astype(dt), np.where(wrong, r - y, r)
    return np.where(zero, a, r) if rem else np.where(zero, ~dt(0), q)


def mul_hi(a: Any, b: Any) -> Any:
    """High half of an integer product."""
    dt = a.dtype
    w = 8 * dt.itemsize
    if w < 64:
        wide = np.dtype(f"{dt.kind}{2 * dt.itemsize}").type
        return ((a.astype(wide) * b.astype(wide)) >> wide(w)).astype(dt)
    m, s, x, y = U64(0xFFFFFFFF), U64(32), a.view(U64), b.view(U64)
    low, cross1, cross2 = (x & m) * (y & m), (x & m) * (y >> s), (x >> s) * (y & m)
    mid = (low >> s) + (cross1 & m) + (cross2 & m)
    high = (x >> s) * (y >> s) + (cross1 >> s) + (cross2 >> s) + (mid >> s)
    if dt.kind == "i":
        high = high - np.where(a < 0, y, U64(0)) - np.where(b < 0, x, U64(0))
    return high.view(dt)


@op("add sub mul mad fma addc subc madc", "rn rz rm rp ftz sat relu cc wide lo hi")
def _arithmetic(i: Instruction) -> Spec:
    t = i.types[0]
    if t in FLOATS:
        return _float_arithmetic(i)
    if i.op in ("addc", "subc", "madc") or "cc" in i.mods:
        return _carry(i)
    if "relu" in i.mods or i.op == "fma" or (t.endswith("x2") and i.op != "add"):
        raise i.unsupported()
    if t.endswith("x2"):
        return Spec((t,), (t, t), halves(t, np.add))
    if i.op in INT_ADD:
        if "sat" not in i.mods:
            return Spec((t,), (t, t), INT_ADD[i.op])
        f = INT_ADD[i.op]

        def saturate(a: Any, b: Any) -> Any:
            r = f(a.astype(np.int64), b.astype(np.int64))
            return np.clip(r, -(2**31), 2**31 - 1).astype(np.int32)

        return Spec((t,), (t, t), saturate)
    if "wide" in i.mods:
        wt = t[0] + str(2 * WIDTH[t])
        wide = NUMPY[wt]
        srcs = (t, t, wt)[: len(i.ops) - 1]

        def product(a: Any, b: Any, *c: Any) -> Any:
            r = np.multiply(a, b, dtype=wide)
            return r + c[0] if c else r

        return Spec((wt,), srcs, product)
    mul = mul_hi if "hi" in i.mods else np.multiply
    if i.op == "mul":
        return Spec((t,), (t, t), mul)
    return Spec((t,), (t, t, t), lambda a, b, c: mul(a, b) + c)


def _carry(i: Instruction) -> Spec:
    """Extended-precision steps: the carry flag is one more operand."""
    t, uses, sets = "u" + i.types[0][1:], i.op[-1] == "c", "cc" in i.mods
    name, cc = i.op[:3], Reg("%cc")
    i.ops = [Pair(i.ops[0], cc) if sets else i.ops[0], *i.ops[1:], *([cc] if uses else [])]

    def fn(a: Any, b: Any, *rest: Any) -> Any:
        if name == "mad":
            a, b = (mul_hi(a, b) if "hi" in i.mods else a * b), rest[0]
        carry = rest[-1].astype(a.dtype) if uses else a.dtype.type(0)
        if name == "sub":
            r, out = a - b - carry, (a < b) | ((a == b) & (carry != 0))
        else:
            r = a + b
            out = (r < a) | (r + carry < r)
            r = r + carry
        return (r, out) if sets else r

    srcs = (t,) * (3 if name == "mad" else 2) + (("pred",) if uses else ())
    return Spec((t, "pred") if sets else (t,), srcs, fn)


LARGEST = {"f16": 65504.0, "bf16": float(2**128 - 2**120)}
TO_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@op("cvt", "rn rz rm rp rni rzi rmi rpi ftz sat satfinite relu")
def _cvt(i: Instruction) -> Spec:
    (dt, st), mode = i.types, rounding(i)
    integral = TO_INTEGRAL.get(i.mod(*TO_INTEGRAL) or "")
    ftz, sat, relu, finite = (m in i.mods for m in ("ftz", "sat", "relu", "satfinite"))
    if dt.endswith("x2"):
        if st != "f32" or len(i.ops) != 3 or dt == "f32x2":
            raise i.unsupported()
        half, largest = (to_f16 if dt == "f16x2" else to_bf16), LARGEST[dt[:-2]]

        def pair(high: Any, low: Any) -> Any:
            x = np.empty((max(np.size(high), np.size(low)), 2), np.float32)
            x[:, 0], x[:, 1] = low, high
            x = flush(x) if ftz else x
            x = np.where(x < 0, np.float32(0), x) if relu else x
            x = np.clip(x, -largest, largest) if finite else x
            r = np.ascontiguousarray(half(np.asarray(x, np.float32), mode))
            return r.view(np.uint32)[:, 0]

        return Spec((dt,), ("f32", "f32"), pair)
    if st in FLOATS and dt in FLOATS:

        def convert(a: Any) -> Any:
            x = up(st, a, ftz)
            x = integral(x) if integral else x
            x = np.clip(x, -LARGEST[dt], LARGEST[dt]) if finite else x
            x = x.astype(np.float64) if dt == "f64" else x
            return down(dt, x, mode, ftz and dt == "f32", sat, relu)

        return Spec((dt,), (st,), convert)
    if st in FLOATS:
        return _float_to_int(i, dt, st, integral or np.trunc, ftz)
    if dt in FLOATS:

        def to_float(a: Any) -> Any:
            if dt == "f32" and mode == "rn":
                return down(dt, a.astype(np.float32), sat=sat)
            return down(dt, a.astype(np.float64), mode, sat=sat)

        if (mode != "rn" and WIDTH[st] == 64) or (mode != "rn" and dt == "f64"):
            raise i.unsupported()
        return Spec((dt,), (st,), to_float)
    to = NUMPY[dt]
    if not sat:
        return Spec((dt,), (st,), lambda a: a.astype(to))
    low = max(np.iinfo(to).min, np.iinfo(NUMPY[st]).min)
    high = min(np.iinfo(to).max, np.iinfo(NUMPY[st]).max)
    limits = [NUMPY[st].type(low), NUMPY[st].type(high)]
    return Spec((dt,), (st,), lambda a: np.clip(a, *limits).astype(to))


def _float_to_int(i: Instruction, dt: str, st: str, integral: Any, ftz: bool) -> Spec:
    """Out-of-range values saturate; NaN gives 0, or the top bit with 64-bit types."""
    w, npd = WIDTH[dt], NUMPY[dt]
    info = np.iinfo(npd)
    nan_bits = 0 if st != "f64" and w != 64 else 1 << (w - 1)
    nan_value = np.array(nan_bits, UINT[w]).view(npd)

    def fn(a: Any) -> Any:
        x = integral(up(st, a, ftz).astype(np.float64))
        big, small, nan = x >= float(info.max), x <= float(info.min), np.isnan(x)
        r = np.where(big | small | nan, 0.0, x).astype(npd)
        r = np.where(big, npd.type(info.max), np.where(small, npd.type(info.min), r))
        return np.where(nan, nan_value, r)

    return Spec((dt,), (st,), fn)
