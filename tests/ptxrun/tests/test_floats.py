"""Rounding against exact fractions, at the places where a double rounding goes wrong."""

from fractions import Fraction

import numpy as np
import pytest

from tests.ptxrun import floats

from .helpers import FORMATS, TYPES, random_f32, rounded, same, unit, value

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow is meant here
MODES = ("rn", "rz", "rm", "rp")
N = 2000


def near_ties(fmt, n=400, seed=5):
    """float64 values on, just above and just below the ties of a narrow format."""
    rng = np.random.default_rng(seed)
    p, emin, emax = FORMATS[fmt]
    m = rng.integers(2 ** (p - 1), 2**p, n) * 2 + 1  # odd: half way between two values
    e = rng.integers(-10, 10, n)
    e[: n // 4] = rng.integers(emin - p, emin, n // 4)  # subnormal results
    tie = np.ldexp(m.astype(np.float64), e - p)
    tie[n // 4 : n // 2] = rng.integers(2, 2**p, n // 4) * 2.0 ** (emin - p)
    tiny = np.ldexp(tie, -rng.integers(24, 50, n))  # lost when rounding to float32 first
    sign = rng.choice([-1.0, 1.0], n)
    x = np.concatenate([tie, tie + tiny, tie - tiny]) * np.tile(sign, 3)
    half = 2.0 ** (emin - p)  # of the smallest subnormal
    largest = 2.0**emax * (2 - 2.0 ** (1 - p))
    edge = [
        0.0,
        half,
        half * (1 + 2.0**-50),
        half * (1 - 2.0**-50),
        1e-300,
        5e-324,
        1.5 * half,
        largest,
        largest * (1 + 2.0**-40),
        2.0**emax * (2 - 2.0**-p) * (1 - 2.0**-40),
    ]
    return np.concatenate([x, edge, np.negative(edge)])


def mismatches(x, fmt, mode):
    bits = {"bf16": floats.to_bf16, "f16": floats.to_f16}[fmt](x, mode).view(np.uint16)
    bad = 0
    for v, g in zip(x, bits, strict=True):
        want = rounded(Fraction(v), fmt, mode)
        got = value(g, fmt)
        bad += want is not None and (not np.isfinite(got) or Fraction(got) != want)
    return bad


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", ("bf16", "f16"))
def test_float64_to_half(fmt, mode):
    assert mismatches(near_ties(fmt), fmt, mode) == 0


def test_the_vectors_see_a_double_rounding(monkeypatch):
    """Planted bug: float64 -> float32 to nearest (not to odd) before bfloat16."""
    monkeypatch.setattr(floats, "odd32", lambda x: np.asarray(x).astype(np.float32))
    assert mismatches(near_ties("bf16"), "bf16", "rn") > 100


@pytest.mark.parametrize("fmt, largest", (("bf16", 0x7F7F), ("f16", 0x7BFF)))
def test_overflow_and_special_values(fmt, largest):
    narrow = {"bf16": floats.to_bf16, "f16": floats.to_f16}[fmt]
    inf = largest + 1
    x = np.array([1e300, -1e300, np.inf, -np.inf, np.nan, value(largest, fmt) * (1 + 2.0**-5)])
    for mode, want in (
        ("rn", [inf, inf | 0x8000]),
        ("rz", [largest, largest | 0x8000]),
        ("rp", [inf, largest | 0x8000]),
        ("rm", [largest, inf | 0x8000]),
    ):
        got = narrow(x, mode).view(np.uint16).tolist()
        assert got == [*want, inf, inf | 0x8000, 0x7FFF, want[0]], mode


@pytest.mark.parametrize("mode", MODES)
def test_cvt_bf16_f64_instruction(mode):
    x = near_ties("bf16")
    got = unit(f"cvt.{mode}.bf16.f64 d, $0;", "bf16", ("f64", x))
    for v, g in zip(x, got, strict=True):
        want = rounded(Fraction(v), "bf16", mode)
        assert want is None or Fraction(value(g, "bf16")) == want


def fma_operands(fmt, n=N):
    """a * b near a tie of the format and a c too small to show in float64."""
    rng = np.random.default_rng(7)
    p = FORMATS[fmt][0]
    narrow = {"f16": lambda v: floats.to_f16(v).view("u2"), "bf16": floats.to_bf16}[fmt]
    a = 1 + rng.integers(0, 2 ** (p - 1), n) / 2.0 ** (p - 1)
    b = 1 + rng.integers(0, 2 ** (p - 1), n) / 2.0 ** (p - 1)
    c = rng.choice([-1, 1], n) * 2.0 ** -rng.integers(10, 14 if fmt == "f16" else 100, n)
    b[: n // 2] = 1.5
    return [narrow(v) for v in (a, b, c)]


def fma_mismatches(fmt, operands):
    got = unit(f"fma.rn.{fmt} d, $0, $1, $2;", fmt, *[(fmt, v) for v in operands])
    bad = 0
    for *v, g in zip(*operands, got, strict=True):
        a, b, c = (Fraction(value(u, fmt)) for u in v)
        bad += rounded(a * b + c, fmt) != Fraction(value(g, fmt))
    return bad


@pytest.mark.parametrize("fmt", ("f16", "bf16"))
def test_half_fma(fmt):
    assert fma_mismatches(fmt, fma_operands(fmt)) == 0


def test_half_fma_sees_a_plain_sum(monkeypatch):
    """Planted bug: the float64 sum rounded to nearest."""
    monkeypatch.setattr("tests.ptxrun.instructions.sum_odd", lambda p, c: p + c)
    assert fma_mismatches("bf16", fma_operands("bf16")) > 10


def test_float32_fma_sees_a_plain_sum(monkeypatch):
    rng = np.random.default_rng(3)
    a = (1 + rng.integers(0, 2**12, N) / 2.0**12).astype("f4")  # exact product of 25 bits
    b = (1 + (2 * rng.integers(0, 2**11, N) + 1) / 2.0**12).astype("f4")
    c = (rng.choice([-1, 1], N) * 2.0**-70).astype("f4")

    def bad():
        r = floats.fma32(a, b, c)
        return sum(
            Fraction(float(g))
            != rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), "f32")
            for x, y, z, g in zip(a, b, c, r, strict=True)
        )

    assert bad() == 0
    monkeypatch.setattr(floats, "sum_odd", lambda p, c: p + c)
    assert bad() > 10


def test_float32_fma_with_subnormal_results():
    """A sum just below a tie between subnormals, which the float64 sum rounds onto the tie."""
    a, b = (np.full(4, v * 2.0**-75, "f4") for v in (1 + 2.0**-23, 1 - 2.0**-23))
    c = np.array([2.0**-127 + 2.0**-149, 2.0**-126 - 2.0**-149, 2.0**-127, 3 * 2.0**-149], "f4")
    assert (unit("fma.rn.f32 d, $0, $1, $2;", "f32", ("f32", a), ("f32", b), ("f32", c)) == c).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", ("fma", "add", "sub", "mul"))
def test_float32_arithmetic(op, mode):
    rng = np.random.default_rng(1)
    a, b, c = (random_f32(rng, N) for _ in range(3))
    with np.errstate(all="ignore"):
        k = rng.integers(0, N, N // 4)
        c[k] = -(a[k].astype("f8") * b[k]).astype("f4")  # cancellation
    args = [("f32", v) for v in (a, b, c)[: 3 if op == "fma" else 2]]
    got = unit(f"{op}.{mode}.f32 d, $0, $1{', $2' if op == 'fma' else ''};", "f32", *args)
    for x, y, z, g in zip(a, b, c, got, strict=True):
        if not (np.isfinite([x, y]).all() and (op != "fma" or np.isfinite(z))):
            continue
        p, q, r = Fraction(float(x)), Fraction(float(y)), Fraction(float(z) if op == "fma" else 0)
        exact = {"fma": p * q + r, "add": p + q, "sub": p - q, "mul": p * q}[op]
        want = rounded(exact, "f32", mode)
        if want is None:
            assert np.isinf(g) or mode != "rn"
        else:
            assert np.isfinite(g) and Fraction(float(g)) == want, (x, y, z)


@pytest.mark.parametrize("fmt", ("f16", "bf16"))
def test_mixed_precision(fmt):
    """sm_100: a half operand and a float32 accumulator."""
    rng = np.random.default_rng(11)
    a, b = (rng.integers(0x3000, 0x4400, N).astype("u2") for _ in range(2))
    c = rng.standard_normal(N).astype("f4")
    for op, exact in (
        ("add", lambda x, y, z: x + z),
        ("sub", lambda x, y, z: x - z),
        ("fma", lambda x, y, z: x * y + z),
    ):
        text = f"{op}.rn.f32.{fmt} d, $0, {'$1, ' if op == 'fma' else ''}$2;"
        got = unit(text, "f32", (fmt, a), (fmt, b), ("f32", c))
        for x, y, z, g in zip(a, b, c, got, strict=True):
            want = exact(*[Fraction(v) for v in (value(x, fmt), value(y, fmt), float(z))])
            assert Fraction(float(g)) == rounded(want, "f32")


def test_float64_fma():
    rng = np.random.default_rng(2)
    a, b, c = (rng.standard_normal(N) * 10.0 ** rng.integers(-20, 20, N) for _ in range(3))
    c[: N // 2] = -(a * b)[: N // 2]
    c[N // 2 : 3 * N // 4] = (a * b * 2.0**-53)[N // 2 : 3 * N // 4]
    k = slice(3 * N // 4, N)  # the product is 1 - tiny, and 1 is half an ulp of c
    i = rng.integers(1, 2**20, N // 4)
    a[k], b[k] = 1 + i * 2.0**-52, 1 - i * 2.0**-52
    c[k] = rng.choice([-1, 1], N // 4) * (2.0**53 + 2 * rng.integers(0, 2**20, N // 4))
    got = unit("fma.rn.f64 d, $0, $1, $2;", "f64", ("f64", a), ("f64", b), ("f64", c))
    for x, y, z, g in zip(a, b, c, got, strict=True):
        assert Fraction(g) == rounded(Fraction(x) * Fraction(y) + Fraction(z), "f64")


def test_float32_division_and_roots():
    rng = np.random.default_rng(4)
    a, b = random_f32(rng, N), random_f32(rng, N)
    with np.errstate(all="ignore"):
        one = np.float32(1)
        for text, want in (
            ("div.rn.f32 d, $0, $1;", a / b),
            ("rcp.rn.f32 d, $0;", one / a),
            ("sqrt.rn.f32 d, $0;", np.sqrt(a)),
        ):
            assert same(unit(text, "f32", ("f32", a), ("f32", b)), want).all(), text
        ok = np.isfinite(a / b) & np.isfinite(a) & np.isfinite(b)
        for mode in ("rz", "rm", "rp"):
            got = unit(f"div.{mode}.f32 d, $0, $1;", "f32", ("f32", a), ("f32", b))
            for k in np.flatnonzero(ok)[:500]:
                want = rounded(Fraction(float(a[k])) / Fraction(float(b[k])), "f32", mode)
                assert Fraction(float(got[k])) == want


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", ("f16", "bf16"))
def test_float32_to_half(fmt, mode):
    a = random_f32(np.random.default_rng(6), 2 * N)
    a[: N // 2] = near_ties(fmt)[: N // 2].astype("f4")
    got = unit(f"cvt.{mode}.{fmt}.f32 d, $0;", fmt, ("f32", a))
    both = unit(f"cvt.{mode}.{fmt}x2.f32 d, $1, $0;", "b32", ("f32", a), ("f32", a[::-1]))
    assert (both.view("u2").reshape(-1, 2) == np.stack([got, got[::-1]], 1)).all()
    for v, g in zip(a, got, strict=True):
        if np.isnan(v):
            assert g & 0x7FFF == 0x7FFF
        elif np.isfinite(v) and (want := rounded(Fraction(float(v)), fmt, mode)) is not None:
            assert Fraction(value(g, fmt)) == want


def test_halves_to_float32():
    h = np.arange(65536, dtype="u2")
    assert same(unit("cvt.f32.f16 d, $0;", "f32", ("f16", h)), h.view("f2").astype("f4")).all()
    want = (h.astype("u4") << 16).view("f4")
    assert same(unit("cvt.f32.bf16 d, $0;", "f32", ("bf16", h)), want).all()


@pytest.mark.parametrize("fmt", ("f16", "bf16"))
@pytest.mark.parametrize("op", ("add", "mul", "sub"))
def test_packed_arithmetic(op, fmt):
    rng = np.random.default_rng(8)
    a, b = (rng.integers(0x3000, 0x4400, 2 * N).astype("u2") for _ in range(2))
    a[::3] |= 0x8000
    got = unit(f"{op}.rn.{fmt}x2 d, $0, $1;", f"{fmt}x2", (f"{fmt}x2", a), (f"{fmt}x2", b))
    for x, y, g in zip(a, b, got.view("u2"), strict=True):
        p, q = Fraction(value(x, fmt)), Fraction(value(y, fmt))
        want = rounded({"add": p + q, "sub": p - q, "mul": p * q}[op], fmt)
        assert want is None or Fraction(value(g, fmt)) == want


@pytest.mark.parametrize("dst", ("s32", "u32", "s64", "u64", "s16"))
@pytest.mark.parametrize("mode", ("rzi", "rni", "rmi", "rpi"))
def test_float_to_integer(mode, dst):
    import math

    rng = np.random.default_rng(9)
    a = random_f32(rng, N)
    a[: N // 4] = rng.standard_normal(N // 4) * 1e9
    info = np.iinfo(TYPES[dst])
    f = {"rzi": math.trunc, "rni": round, "rmi": math.floor, "rpi": math.ceil}[mode]
    for x, g in zip(a, unit(f"cvt.{mode}.{dst}.f32 d, $0;", dst, ("f32", a)), strict=True):
        if np.isnan(x):
            want = {"s64": -(2**63), "u64": 2**63}.get(dst, 0)
        elif np.isinf(x):
            want = info.max if x > 0 else info.min
        else:
            want = min(max(f(float(x)), info.min), info.max)
        assert int(g) == want, x


def test_noise_stays_within_the_documented_bound():
    x = np.random.default_rng(0).uniform(-5, 5, N).astype("f4")
    exact = np.exp2(x.astype("f8"))
    plain = unit("ex2.approx.ftz.f32 d, $0;", "f32", ("f32", x))
    noisy = unit("ex2.approx.ftz.f32 d, $0;", "f32", ("f32", x), noise=1.0)
    assert np.abs(plain / exact - 1).max() <= 2.0**-24
    # rounded before the error is put on, and behind
    assert 2.0**-24 < np.abs(noisy / exact - 1).max() <= 2.0**-22 + 2 * 2.0**-24
    again = unit("ex2.approx.ftz.f32 d, $0;", "f32", ("f32", x[::-1].copy()), noise=1.0)
    assert (again[::-1] == noisy).all()  # whichever thread computes it
