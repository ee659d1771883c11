"""Integer, bit, comparison and shuffle instructions against Python integers."""

import numpy as np
import pytest

from tests.ptxrun import PTXError, run_ptx

from .helpers import random_f32, same, unit

N = 1500
M32 = 2**32 - 1


def s(x):
    return x - 2**32 if x >> 31 else x


def ubfe(x, p, n):
    p, n = p & 255, n & 255
    return sum(((x >> (p + i)) & 1) << i for i in range(min(n, max(32 - p, 0))))


def sbfe(x, p, n):
    p, n = p & 255, n & 255
    sign = 0 if n == 0 else (x >> min(p + n - 1, 31)) & 1
    return sum((((x >> (p + i)) & 1) if i < n and p + i <= 31 else sign) << i for i in range(32))


def bfi(a, b, p, n):
    p, n = p & 255, n & 255
    for i in range(min(n, max(32 - p, 0))):
        b = (b & ~(1 << (p + i))) | (((a >> i) & 1) << (p + i))
    return b


def prmt(a, b, c):
    v, d = (b << 32) | a, 0
    for i in range(4):
        k = (c >> (4 * i)) & 15
        byte = (v >> (8 * (k & 7))) & 255
        d |= ((255 if byte & 128 else 0) if k & 8 else byte) << (8 * i)
    return d


def quotient(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


CASES = {
    "add.s32 d,$0,$1;": lambda a, b, c, d: a + b,
    "sub.s32 d,$0,$1;": lambda a, b, c, d: a - b,
    "add.sat.s32 d,$0,$1;": lambda a, b, c, d: max(min(s(a) + s(b), 2**31 - 1), -(2**31)),
    "mul.lo.s32 d,$0,$1;": lambda a, b, c, d: a * b,
    "mul.hi.s32 d,$0,$1;": lambda a, b, c, d: (s(a) * s(b)) >> 32,
    "mul.hi.u32 d,$0,$1;": lambda a, b, c, d: (a * b) >> 32,
    "mad.lo.s32 d,$0,$1,$2;": lambda a, b, c, d: a * b + c,
    "mad.hi.u32 d,$0,$1,$2;": lambda a, b, c, d: ((a * b) >> 32) + c,
    "shl.b32 d,$0,$1;": lambda a, b, c, d: a << b if b < 32 else 0,
    "shr.u32 d,$0,$1;": lambda a, b, c, d: a >> b if b < 32 else 0,
    "shr.s32 d,$0,$1;": lambda a, b, c, d: s(a) >> min(b, 31),
    "shr.s32 d,$0,7;": lambda a, b, c, d: s(a) >> 7,
    "bfe.u32 d,$0,$1,$2;": lambda a, b, c, d: ubfe(a, b, c),
    "bfe.s32 d,$0,$1,$2;": lambda a, b, c, d: sbfe(a, b, c),
    "bfi.b32 d,$0,$1,$2,$3;": bfi,
    "prmt.b32 d,$0,$1,$2;": lambda a, b, c, d: prmt(a, b, c),
    "prmt.b32 d,$0,$1,0x5410;": lambda a, b, c, d: prmt(a, b, 0x5410),
    "prmt.b32 d,$0,$1,0x9EC3;": lambda a, b, c, d: prmt(a, b, 0x9EC3),
    "shf.l.wrap.b32 d,$0,$1,$2;": lambda a, b, c, d: (((b << 32) | a) << (c & 31)) >> 32,
    "shf.r.wrap.b32 d,$0,$1,$2;": lambda a, b, c, d: ((b << 32) | a) >> (c & 31),
    "shf.l.clamp.b32 d,$0,$1,$2;": lambda a, b, c, d: (((b << 32) | a) << min(c, 32)) >> 32,
    "shf.r.clamp.b32 d,$0,$1,$2;": lambda a, b, c, d: ((b << 32) | a) >> min(c, 32),
    "lop3.b32 d,$0,$1,$2,0xE8;": lambda a, b, c, d: (a & b) | (b & c) | (a & c),
    "lop3.b32 d,$0,$1,$2,0x96;": lambda a, b, c, d: a ^ b ^ c,
    "lop3.b32 d,$0,$1,$2,0xCA;": lambda a, b, c, d: (a & b) | (~a & c),
    "div.s32 d,$0,$1;": lambda a, b, c, d: quotient(s(a), s(b)) if b else None,
    "rem.s32 d,$0,$1;": lambda a, b, c, d: s(a) - s(b) * quotient(s(a), s(b)) if b else None,
    "div.u32 d,$0,$1;": lambda a, b, c, d: a // b if b else None,
    "rem.u32 d,$0,$1;": lambda a, b, c, d: a % b if b else None,
    "clz.b32 d,$0;": lambda a, b, c, d: 32 - a.bit_length(),
    "popc.b32 d,$0;": lambda a, b, c, d: a.bit_count(),
    "brev.b32 d,$0;": lambda a, b, c, d: int(f"{a:032b}"[::-1], 2),
    "bfind.u32 d,$0;": lambda a, b, c, d: a.bit_length() - 1,
    "bfind.s32 d,$0;": lambda a, b, c, d: (a if s(a) >= 0 else ~a & M32).bit_length() - 1,
    "bfind.shiftamt.u32 d,$0;": lambda a, b, c, d: 32 - a.bit_length() if a else -1,
    "min.s32 d,$0,$1;": lambda a, b, c, d: min(s(a), s(b)),
    "max.u32 d,$0,$1;": lambda a, b, c, d: max(a, b),
    "abs.s32 d,$0;": lambda a, b, c, d: abs(s(a)),
    "neg.s32 d,$0;": lambda a, b, c, d: -a,
    "not.b32 d,$0;": lambda a, b, c, d: ~a,
    "cnot.b32 d,$0;": lambda a, b, c, d: int(a == 0),
    "add.cc.u32 d,$0,$1; addc.u32 d,$2,$3;": lambda a, b, c, d: c + d + ((a + b) >> 32),
    "sub.cc.u32 d,$0,$1; subc.u32 d,$2,$3;": lambda a, b, c, d: c - d - (a < b),
    "mad.lo.cc.u32 d,$0,$1,$2; madc.hi.u32 d,$0,$1,$3;": lambda a, b, c, d: ((a * b + c) >> 32) + d,
    "mul.wide.u32 xx,$0,$1; mov.b64 {x,y},xx; mov.b32 d,y;": lambda a, b, c, d: a * b >> 32,
    "mad.wide.s32 xx,$0,$1,-5; mov.b64 {x,y},xx; mov.b32 d,x;": lambda a, b, c, d: s(a) * s(b) - 5,
    ("{ .reg .b16 l,h; mov.b32 {l,h},$0; mov.b32 d,{h,l}; }"): (
        lambda a, b, c, d: (a >> 16) | (a << 16)
    ),
    ("setp.lt.s32 pp|qq,$0,$1; selp.b32 x,1,0,pp; selp.b32 y,2,0,qq; add.u32 d,x,y;"): (
        lambda a, b, c, d: 1 if s(a) < s(b) else 2
    ),
    ("setp.hi.u32 qq,$2,$3; setp.ge.and.u32 pp,$0,$1,!qq; selp.b32 d,7,9,pp;"): (
        lambda a, b, c, d: 7 if a >= b and not c > d else 9
    ),
    "set.lt.u32.s32 d,$0,$1;": lambda a, b, c, d: M32 if s(a) < s(b) else 0,
    "slct.b32.s32 d,$0,$1,$2;": lambda a, b, c, d: a if s(c) >= 0 else b,
    ("{ .reg .b16 h; cvt.u16.u32 h,$0; cvt.s32.s16 d,h; }"): (
        lambda a, b, c, d: (a & 0xFFFF) - (0x10000 if a & 0x8000 else 0)
    ),
    "cvt.sat.s8.s32 d,$0;": lambda a, b, c, d: max(-128, min(127, s(a))),
    ("cvt.s64.s32 xx,$0; cvt.u64.u32 yy,$1; mul.hi.s64 xx,xx,yy; cvt.u32.u64 d,xx;"): (
        lambda a, b, c, d: (s(a) * b) >> 64
    ),
    ("mov.b64 xx,{$0,$1}; mov.b64 yy,{$2,$3}; mul.hi.u64 xx,xx,yy; cvt.u32.u64 d,xx;"): (
        lambda a, b, c, d: ((a | b << 32) * (c | d << 32)) >> 64
    ),
    ("mov.b64 xx,{$0,$1}; mov.b64 yy,{$2,$3}; mul.hi.s64 xx,xx,yy; cvt.u32.u64 d,xx;"): (
        lambda a, b, c, d: ((a | s(b) << 32) * (c | s(d) << 32)) >> 64
    ),
}


@pytest.mark.parametrize("text", CASES)
def test_integers(text):
    rng = np.random.default_rng(len(text))
    ops = [
        np.where(rng.random(N) < 0.3, rng.integers(0, 70, N), rng.integers(0, 2**32, N)).astype(
            "u4"
        )
        for _ in range(4)
    ]
    got = unit(text, "b32", *[("b32", v) for v in ops])
    for *v, g in zip(*ops, got, strict=True):
        want = CASES[text](*[int(x) for x in v])
        assert want is None or int(g) == want & M32, [hex(x) for x in v]


def test_carry_chains():
    """Sums of three words, with words of ones that pass a carry on."""
    rng = np.random.default_rng(7)
    a, b = (rng.choice([0, 1, M32, M32 - 1, 5], (N, 3)).astype("u4") for _ in range(2))
    ops = [("b32", np.ascontiguousarray(v)) for v in (*a.T, *b.T)]
    for op, sign in (("add", 1), ("sub", -1)):
        got = unit(f"{op}.cc.u32 x,$0,$3; {op}c.cc.u32 y,$1,$4; {op}c.u32 d,$2,$5;", "b32", *ops)
        for u, v, g in zip(a.tolist(), b.tolist(), got, strict=True):
            x, y = (w[0] | w[1] << 32 | w[2] << 64 for w in (u, v))
            assert g == ((x + sign * y) % 2**96) >> 64


def test_threads_that_come_later_join_a_shuffle():
    x = np.arange(64, dtype="u4")
    text = (
        "mov.u32 x,%laneid; setp.lt.u32 pp,x,16; @pp bra FWD;"
        "SH: shfl.sync.bfly.b32 d,$0,16,31,0xffffffff; bra Z; FWD: mov.u32 y,1; bra SH; Z: "
    )
    assert (unit(text, "b32", ("b32", x)) == x ^ 16).all()


def test_conditional_exit():
    x = np.arange(100, dtype="u4")
    got = unit(
        "mov.u32 d,1; setp.lt.u32 pp,$0,40; @pp ret; setp.lt.u32 pp,$0,60; @!pp exit;",
        "b32",
        ("b32", x),
    )
    assert (got == ((x >= 40) & (x < 60))).all()


def test_min_max_of_zeros():
    a = np.array([0.0, -0.0, 0.0, -0.0], "f4")
    b = np.array([0.0, 0.0, -0.0, -0.0], "f4")
    for op, negative in (("min", [0, 1, 1, 1]), ("max", [0, 0, 0, 1])):
        got = unit(f"{op}.f32 d,$0,$1;", "f32", ("f32", a), ("f32", b))
        assert (np.signbit(got) == negative).all()


@pytest.mark.parametrize("nan", ("", ".NaN"))
@pytest.mark.parametrize("op", ("min", "max"))
def test_float_min_max(op, nan):
    rng = np.random.default_rng(1)
    a, b = random_f32(rng, N), random_f32(rng, N)
    b[: N // 4] = a[: N // 4]
    for x, y, g in zip(
        a, b, unit(f"{op}{nan}.f32 d,$0,$1;", "f32", ("f32", a), ("f32", b)), strict=True
    ):
        if np.isnan(x) or np.isnan(y):
            both = nan or (np.isnan(x) and np.isnan(y))
            w = np.float32(np.nan) if both else y if np.isnan(x) else x
        else:
            w = (min if op == "min" else max)(x, y, key=lambda v: (v, not np.signbit(v)))
        assert same(g, w) and (np.isnan(g) or np.signbit(g) == np.signbit(w)), (x, y)


COMPARISONS = {
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: (x < y) | (x > y),
    "gt": lambda x, y: x > y,
    "ltu": lambda x, y: ~(x >= y),
    "leu": lambda x, y: ~(x > y),
    "neu": lambda x, y: x != y,
    "equ": lambda x, y: (x == y) | np.isnan(x) | np.isnan(y),
    "geu": lambda x, y: ~(x < y),
    "num": lambda x, y: ~(np.isnan(x) | np.isnan(y)),
    "nan": lambda x, y: np.isnan(x) | np.isnan(y),
}


@pytest.mark.parametrize("cmp", COMPARISONS)
def test_float_compare(cmp):
    rng = np.random.default_rng(2)
    a, b = random_f32(rng, N), random_f32(rng, N)
    b[: N // 4] = a[: N // 4]
    got = unit(f"setp.{cmp}.f32 pp,$0,$1; selp.b32 d,1,0,pp;", "b32", ("f32", a), ("f32", b))
    assert (got.astype(bool) == COMPARISONS[cmp](a, b)).all()


@pytest.mark.parametrize(
    "b, c",
    (
        (1, 31),
        (16, 31),
        (5, 31),
        (3, 24 << 8 | 31),
        (2, 28 << 8 | 31),
        (1, 0),
        (4, 0),
        (2, 24 << 8),
    ),
)
@pytest.mark.parametrize("kind", ("up", "down", "bfly", "idx"))
def test_shuffle(kind, b, c):
    source = np.arange(256, dtype="u4") * 7 + 3
    got = unit(
        f"shfl.sync.{kind}.b32 d|pp,$0,{b},{c},0xffffffff; @!pp add.u32 d,d,1000000;",
        "b32",
        ("b32", source),
    )
    for i in range(256):
        lane, segment, limit = i % 32, (c >> 8) & 31, c & 31
        last = (lane & segment) | (limit & ~segment)
        j = {
            "up": lane - b,
            "down": lane + b,
            "bfly": lane ^ b,
            "idx": (lane & segment) | (b & ~segment),
        }[kind]
        ok = j >= last if kind == "up" else j <= last
        assert got[i] == (source[i - lane + j] if ok else source[i] + 1000000)


def test_votes_and_reductions():
    x = np.random.default_rng(3).integers(0, 100, 128).astype("u4")
    m = "0xffffffff"
    rows = x.reshape(4, 32)

    def per_warp(v):
        return np.repeat(v, 32)

    for text, want in (
        (f"redux.sync.add.u32 d,$0,{m};", per_warp(rows.sum(1))),
        (f"redux.sync.max.s32 d,$0,{m};", per_warp(rows.max(1))),
        (f"redux.sync.xor.b32 d,$0,{m};", per_warp(np.bitwise_xor.reduce(rows, 1))),
        (
            f"setp.gt.u32 pp,$0,50; vote.sync.ballot.b32 d,pp,{m};",
            per_warp([sum(int(v > 50) << k for k, v in enumerate(r)) for r in rows]),
        ),
        (
            f"setp.gt.u32 pp,$0,97; vote.sync.any.pred qq,pp,{m}; selp.b32 d,1,0,qq;",
            per_warp((rows > 97).any(1)),
        ),
        (
            f"match.any.sync.b32 d,$0,{m};",
            [sum(1 << k for k in range(32) if r[k] == v) for r in rows for v in r],
        ),
        (f"elect.sync d|pp,{m}; selp.b32 d,1,0,pp;", np.arange(128) % 32 == 0),
    ):
        assert (unit(text, "b32", ("b32", x)) == np.asarray(want, "u4")).all(), text


def test_packed_integers_are_halves():
    rng = np.random.default_rng(5)
    a, b = (rng.integers(0, 1 << 16, 2 * N).astype("u2") for _ in range(2))
    for t, of in (("s16x2", "i2"), ("u16x2", "u2")):
        for name, fn in (("add", np.add), ("min", np.minimum), ("max", np.maximum)):
            got = unit(f"{name}.{t} d,$0,$1;", "b32", ("b32", a.view("u4")), ("b32", b.view("u4")))
            assert (got.view("u2") == fn(a.view(of), b.view(of)).view("u2")).all()
    got = unit("max.u16x2 d,$0,65537;", "b32", ("b32", (a & 1).view("u4")))
    assert (got == 65537).all()


def test_packed_compare_and_set():
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal(2 * N).astype("f2") for _ in range(2))
    ops = [("f16x2", a.view("u4")), ("f16x2", b.view("u4"))]
    got = unit("set.lt.f16x2.f16x2 d,$0,$1;", "b32", *ops).view("f2")
    assert (got == (a < b)).all()
    got = unit(
        "setp.lt.f16x2 pp|qq,$0,$1; selp.b32 x,1,0,pp; selp.b32 y,2,0,qq; add.u32 d,x,y;",
        "b32",
        *ops,
    )
    assert (got == (a < b)[0::2] + 2 * (a < b)[1::2]).all()


def test_wide_vectors_and_vector_atomics():
    x = np.random.default_rng(5).standard_normal((64, 8)).astype("f4")
    y, z, total = np.zeros_like(x), np.zeros_like(x), np.zeros(4, "f4")
    ptx = """.visible .entry k(.param .u64 x, .param .u64 y, .param .u64 z, .param .u64 t) {
    .reg .b64 p<9>; .reg .b32 r<9>; .reg .f32 f<9>;
    mov.u32 r0, %tid.x; mul.wide.u32 p0, r0, 32;
    ld.param.u64 p1, [x]; ld.param.u64 p2, [y]; ld.param.u64 p3, [z]; ld.param.u64 p4, [t];
    add.u64 p1, p1, p0; add.u64 p2, p2, p0; add.u64 p3, p3, p0;
    createpolicy.fractional.L2::evict_first.b64 p5, 1.0;
    ld.global.nc.L1::no_allocate.L2::cache_hint.v8.f32 {f1, f2, f3, f4, f5, f6, f7, f8}, [p1], p5;
    st.global.L1::no_allocate.v8.f32 [p2], {f1, f2, f3, f4, f5, f6, f7, f8};
    ld.global.v4.b64 {p5, p6, p7, p8}, [p1]; st.global.cs.v4.b64 [p3], {p5, p6, p7, p8};
    red.global.add.v4.f32 [p4], {f1, f2, f3, f4};
    ret; }"""
    stats = run_ptx(ptx, "k", 1, 64, [x, y, z, total], stats=True)
    assert (x == y).all() and (x == z).all() and stats.load_widths[32] == 128
    assert np.allclose(total, x[:, :4].sum(0), atol=1e-4)
    with pytest.raises(PTXError, match="misaligned load of 32 bytes"):
        run_ptx(ptx, "k", 1, 63, [x.ravel()[4:], y, z, total])


@pytest.mark.parametrize("t, dtype", (("f16x2", "f2"), ("bf16x2", "u2")))
def test_half_atomics_and_packed_functions(t, dtype):
    one = {"f16x2": 0x3C003C00, "bf16x2": 0x3F803F80}[t]
    total = np.zeros(1, "u4")
    ptx = f""".visible .entry k(.param .u64 t) {{ .reg .b64 p; .reg .b32 r; ld.param.u64 p, [t];
    mov.b32 r, {one}; red.global.add.noftz.{t} [p], r; ret; }}"""
    run_ptx(ptx, "k", 1, 100, [total])
    halves = total.view("f2") if t == "f16x2" else (total.view("u2").astype("u4") << 16).view("f4")
    assert (halves == 100).all()
    x = np.linspace(-3, 3, 64).astype("f2")
    bits = x.view("u2") if t == "f16x2" else (x.astype("f4").view("u4") >> 16).astype("u2")
    v = x.astype("f8") if t == "f16x2" else (bits.astype("u4") << 16).view("f4").astype("f8")
    ftz = "" if t == "f16x2" else ".ftz"
    for name, f in ((f"ex2.approx{ftz}", np.exp2), ("tanh.approx", np.tanh)):
        got = unit(f"{name}.{t} d,$0;", t, (t, bits)).view("u2")
        got = got.view("f2") if t == "f16x2" else (got.astype("u4") << 16).view("f4")
        assert np.abs(got / f(v) - 1).max() < (2.0**-10 if t == "f16x2" else 2.0**-8)


def test_clamping_conversions():
    x = np.array([-2, -0.5, 0.25, 3, 1e30, -1e30, np.inf, 3.4028235e38], "f4")
    ops, top = (("f32", x), ("f32", -x)), 65504

    def f16(text, n=1):
        return unit(text, "b32" if n == 2 else "f16", *ops).view("f2").reshape(-1, n)

    with np.errstate(over="ignore"):
        h = x.astype("f2")
    assert (f16("cvt.rn.relu.f16.f32 d,$0;")[:, 0] == np.maximum(h, 0)).all()
    assert (f16("cvt.rn.satfinite.f16.f32 d,$0;")[:, 0] == np.clip(h, -top, top)).all()
    assert (
        f16("cvt.rn.relu.f16x2.f32 d,$0,$1;", 2)
        == np.stack([np.maximum(-h, 0), np.maximum(h, 0)], 1)
    ).all()
    assert (
        f16("cvt.rn.satfinite.f16x2.f32 d,$0,$1;", 2) == np.clip(np.stack([-h, h], 1), -top, top)
    ).all()
    assert unit("cvt.rn.satfinite.bf16.f32 d,$0;", "bf16", *ops)[-2:].tolist() == [0x7F7F] * 2
    assert unit("cvt.rn.bf16.f32 d,$0;", "bf16", *ops)[-2:].tolist() == [0x7F80] * 2
    assert (unit("cvt.sat.f32.f32 d,$0;", "f32", *ops) == np.clip(x, 0, 1)).all()
    got = unit("{ .reg .b16 h; cvt.rn.f16.f32 h,$0; fma.rn.relu.f16 d,h,h,h; }", "f16", *ops)
    assert (got.view("f2")[:4] == [2, 0, 0.3125, 12]).all()


def test_division_by_huge_values():
    x = np.array([1, 3e38, np.inf, 8], "f4")
    y = np.array([2.0**127, -(2.0**127), 2.0**127, 2], "f4")
    got = unit("div.approx.f32 d,$0,$1;", "f32", ("f32", x), ("f32", y))
    assert got[0] == 0 and got[1] == 0 and np.isnan(got[2]) and got[3] == 4
    assert unit("div.full.f32 d,$0,$1;", "f32", ("f32", x), ("f32", y))[0] == 2.0**-127


def test_values_from_threads_that_take_no_part():
    x = np.arange(48, dtype="u4")
    poison = M32
    got = unit("shfl.sync.down.b32 d,$0,1,31,0xffffffff;", "b32", ("b32", x))
    assert got[46] == 47 and got[47] == poison  # lane 16 of the second warp is not there
    text = (
        "mov.u32 x,%laneid; setp.lt.u32 pp,x,16; selp.b32 y,0xffff,0xffff0000,pp;"
        "shfl.sync.down.b32 d,$0,1,31,y;"
    )
    got = unit(text, "b32", ("b32", np.arange(32, dtype="u4")))
    assert got[14] == 15 and got[15] == poison and got[16] == 17 and got[31] == 31


def test_offsets_of_addresses():
    x, y = np.arange(1, 5, dtype="u4"), np.zeros(3, "u4")
    ptx = """.visible .entry k(.param .u64 x, .param .u64 y) {
    .reg .b64 p, q; .reg .b32 r<3>; ld.param.u64 p, [x]; ld.param.u64 q, [y]; add.u64 p, p, 8;
    ld.global.u32 r0, [p-8]; ld.global.u32 r1, [p+-4]; ld.global.u32 r2, [p+4];
    st.global.u32 [q], r0; st.global.u32 [q+4], r1; st.global.u32 [q + 8], r2; ret; }"""
    run_ptx(ptx, "k", 1, 1, [x, y])
    assert y.tolist() == [1, 2, 4]


def test_float32_pairs():
    rng = np.random.default_rng(6)
    a, b, c = (rng.standard_normal(2 * N).astype("f4") for _ in range(3))
    got = unit("fma.rn.f32x2 d,$0,$1,$2;", "b64", ("b64", a), ("b64", b), ("b64", c)).view("f4")
    assert (got == (a.astype("f8") * b + c).astype("f4")).mean() > 0.999
    assert (unit("add.rn.f32x2 d,$0,$1;", "b64", ("b64", a), ("b64", b)).view("f4") == a + b).all()


@pytest.mark.parametrize("t, tiny", (("f16", 2.0**-14), ("bf16", 2.0**-126), ("f32", 2.0**-126)))
def test_flush_to_zero(t, tiny):
    x = np.array([tiny, -tiny, tiny / 2, -tiny / 2, 4 * tiny], "f8")
    narrow = {
        "f16": lambda v: v.astype("f2").view("u2"),
        "f32": lambda v: v.astype("f4").view("u4"),
        "bf16": lambda v: (v.astype("f4").view("u4") >> 16).astype("u2"),
    }[t]
    half = narrow(np.full(5, 0.5))
    got = unit(f"mul.rn.ftz.{t} d,$0,$1;", t, (t, narrow(x)), (t, half))
    assert (got.view(half.dtype) == narrow(np.array([0, -0.0, 0, -0.0, 2 * tiny]))).all()
    four = narrow(np.full(5, 4.0))
    got = unit(f"mul.rn.ftz.{t} d,$0,$1;", t, (t, narrow(x)), (t, four))  # inputs, too
    want = narrow(np.array([4 * tiny, -4 * tiny, 0, -0.0, 16 * tiny]))
    assert (got.view(half.dtype) == want).all()
    plain = unit(f"mul.rn.{t} d,$0,$1;", t, (t, narrow(x)), (t, half))
    assert (plain.view(half.dtype) == narrow(x / 2)).all()


def test_branch_table():
    x = np.arange(300, dtype="u4")
    text = (
        "rem.u32 x,$0,3; T: .branchtargets A, B, C; brx.idx x, T;"
        " A: mov.u32 d,10; bra.uni Z; B: mov.u32 d,20; bra.uni Z; C: mov.u32 d,30; Z: "
    )
    assert (unit(text, "b32", ("b32", x)) == 10 * (x % 3 + 1)).all()


@pytest.mark.parametrize(
    "text",
    (
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 d, d, d, d;",
        "add.rn.bogus.f32 d, $0, $0;",
        "dp4a.u32.u32 d, $0, $0, $0;",
    ),
)
def test_unsupported_names_instruction_and_line(text):
    with pytest.raises(PTXError, match=rf"unsupported.*{text[:4]}.*line 1\d"):
        unit(text, "b32", ("b32", np.zeros(4, "u4")))
