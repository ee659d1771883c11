"""Exact references and a harness that runs a few PTX instructions over arrays."""

import math
from fractions import Fraction

import numpy as np

from tests.ptxrun import run_ptx

TYPES = {
    "f32": "f4",
    "f64": "f8",
    "b32": "u4",
    "u32": "u4",
    "s32": "i4",
    "b64": "u8",
    "u64": "u8",
    "s64": "i8",
    "b16": "u2",
    "u16": "u2",
    "s16": "i2",
    "f16": "u2",
    "bf16": "u2",
    "f16x2": "u4",
    "bf16x2": "u4",
}
# significand bits, smallest and largest exponent
FORMATS = {
    "f16": (11, -14, 15),
    "bf16": (8, -126, 127),
    "f32": (24, -126, 127),
    "f64": (53, -1022, 1023),
}


def unit(text, out, *operands, **options):
    """Run `text` for every index: $0, $1 .. are the operands, d the result."""

    def size(t):
        return np.dtype(TYPES[t]).itemsize

    arrays = [np.ascontiguousarray(a).view(TYPES[t]) for t, a in operands]
    n = len(arrays[0])
    reg = "".join(f".reg .b{8 * size(t)} a{k};\n" for k, (t, _) in enumerate(operands))
    load = "".join(
        f"mul.wide.u32 o, i, {size(t)}; ld.param.u64 q, [p{k}]; add.u64 q, q, o;\n"
        f"ld.global.b{8 * size(t)} a{k}, [q];\n"
        for k, (t, _) in enumerate(operands)
    )
    ptx = f""".version 8.0
.target sm_90
.address_size 64
.visible .entry k({"".join(f".param .u64 p{k}, " for k in range(len(operands)))}
 .param .u64 r, .param .u32 n) {{
.reg .b32 i, c, t, nn, x, y; .reg .b64 o, q, xx, yy; .reg .pred lt, pp, qq;
.reg .b{8 * size(out)} d; {reg}
ld.param.u32 nn, [n]; mov.u32 i, %ctaid.x; mov.u32 t, %tid.x; mad.lo.s32 i, i, 256, t;
setp.lt.u32 lt, i, nn; @!lt bra E;
{load}
{text.replace("$", "a")}
mul.wide.u32 o, i, {size(out)}; ld.param.u64 q, [r]; add.u64 q, q, o;
st.global.b{8 * size(out)} [q], d;
E: ret; }}"""
    r = np.zeros(n, TYPES[out])
    run_ptx(ptx, "k", -(-n // 256), 256, [*arrays, r, n], **options)
    return r


def rounded(x, fmt, mode="rn"):
    """A Fraction rounded to a format (None on overflow)."""
    p, emin, emax = FORMATS[fmt]
    if x == 0:
        return Fraction(0)
    a = abs(x)
    e = a.numerator.bit_length() - a.denominator.bit_length()
    e -= Fraction(2) ** e > a
    q = Fraction(2) ** (max(e, emin) - p + 1)
    floor = math.floor(a / q)
    rest = a / q - floor
    up = {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor & 1),
        "rz": False,
        "rp": rest > 0 and x > 0,
        "rm": rest > 0 and x < 0,
    }[mode]
    v = (floor + up) * q
    return None if v >= Fraction(2) ** (emax + 1) else v if x > 0 else -v


def bf16_bits(x):
    """float32 -> bfloat16 bits, to nearest even."""
    u = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def bf16_values(bits):
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def value(bits, fmt):
    """Bits of a format as a Python float."""
    if fmt == "bf16":
        return float(bf16_values(np.array([bits], np.uint16))[0])
    return float(np.array([bits]).view({"f16": "f2", "f32": "f4", "f64": "f8"}[fmt])[0])


def random_f32(rng, n):
    """Any bit pattern, ordinary values, and special values."""
    a = rng.integers(0, 2**32, n, dtype=np.uint32)
    with np.errstate(over="ignore"):
        ordinary = rng.standard_normal(n // 2) * 10.0 ** rng.integers(-3, 4, n // 2)
    a[: n // 2] = ordinary.astype("f4").view("u4")
    special = np.array(
        [
            0,
            0x80000000,
            0x7F800000,
            0xFF800000,
            0x7FC00000,
            1,
            0x007FFFFF,
            0x00800000,
            0x3F800000,
            0xBF800000,
            0x7F7FFFFF,
        ],
        "u4",
    )
    a[rng.integers(0, n, n // 8)] = rng.choice(special, n // 8)
    return a.view("f4")


def same(got, want):
    """Equal, or both NaN."""
    return (got == want) | (np.isnan(got) & np.isnan(want))
