"""Whole kernels compiled by NVRTC."""

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.ptxrun import Struct, run_ptx

from .helpers import bf16_bits, bf16_values, rounded, value
from .nvrtc import kernels
from .test_floats import near_ties

TARGETS = [(80, ()), (90, ()), (90, ("--use_fast_math",))]


@pytest.fixture(scope="module", params=TARGETS, ids=lambda t: f"sm{t[0]}{'fast' * bool(t[1])}")
def m(request):
    return kernels(*request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def blocks(n, block=256):
    return -(-n // block)


def test_sigmoid(m, rng):
    n = 50_003
    x = (rng.standard_normal(n) * 3).astype("f4")
    y = np.zeros_like(x)
    want = 1 / (1 + np.exp(-x.astype("f8")))
    for name, grid in (("sigmoid_stride", 64), ("sigmoid_f32", blocks(n))):
        y[:] = 0
        run_ptx(m, name, grid, 256, [x, y, n])
        assert np.abs(y - want).max() < 2e-7
    h = np.zeros(n, "f2")
    run_ptx(m, "sigmoid_f16", blocks(n), 256, [x.astype("f2"), h, n])
    assert np.abs(h - 1 / (1 + np.exp(-x.astype("f2").astype("f8")))).max() < 2.5e-4
    b, out = bf16_bits(x), np.zeros(n, "u2")
    run_ptx(m, "sigmoid_bf16", blocks(n), 256, [b, out, n])
    assert np.mean(out == bf16_bits(1 / (1 + np.exp(-bf16_values(b))))) > 0.9999


def test_packs_of_bfloat16(m, rng):
    x = bf16_bits(rng.standard_normal(8000))
    y = np.zeros_like(x)
    run_ptx(m, "silu_pack", 8, 128, [x, y, 1000])
    v = bf16_values(x)
    assert np.mean(y == bf16_bits(v / (1 + np.exp(-v)))) > 0.999


def test_packed_halves(m, rng):
    a, b = (rng.standard_normal(10_000).astype("f2") for _ in range(2))
    out = np.zeros_like(a)
    run_ptx(m, "half2_math", 20, 256, [a, b, out, 5000])
    p = ((a + b) * np.maximum(a, b)).astype("f2")
    assert (out == (a.astype("f8") * b + p).astype("f2")).all()
    a, b = (bf16_bits(rng.standard_normal(10_000)) for _ in range(2))
    out = np.zeros_like(a)
    run_ptx(m, "bf162_math", 20, 256, [a, b, out, 5000])
    x, y = bf16_values(a), bf16_values(b)
    p = bf16_values(bf16_bits(bf16_values(bf16_bits(x + y)) * np.maximum(x, y)))
    assert (out == bf16_bits(x * y + p)).mean() > 0.999


def test_double_to_bfloat16(m):
    x = near_ties("bf16")
    y = np.zeros(len(x), "u2")
    run_ptx(m, "double_to_bf16", blocks(len(x)), 256, [x, y, len(x)])
    for v, g in zip(x, y, strict=True):
        want = rounded(Fraction(v), "bf16")
        assert abs(v) < 2.0**-126 or Fraction(value(g, "bf16")) == want


def test_math(m, rng):
    n = 3000
    x = (rng.standard_normal(n) * 2).astype("f4")
    y = np.zeros((n, 10), "f4")
    run_ptx(m, "math32", blocks(n), 256, [x, y, n])
    d = x.astype("f8")
    erf = np.array([math.erf(v) for v in d])
    erfcx = np.array([math.exp(v * v) * math.erfc(v) for v in np.abs(d)])
    a = np.abs(d)
    want = np.stack(
        [
            np.sin(d),
            np.tanh(d),
            erf,
            np.exp(d),
            1 / np.sqrt(a + 0.01),
            np.sqrt(a),
            np.log1p(a),
            np.expm1(d),
            np.fmod(d, 0.75),
            erfcx,
        ],
        1,
    )
    assert (np.abs(y - want) <= 4e-6 * np.maximum(np.abs(want), 0.1)).all()


def test_math64(m, rng):
    n = 1000
    x = rng.standard_normal(n) * 5
    y = np.zeros((n, 6))
    run_ptx(m, "math64", blocks(n), 256, [x, y, n])
    erf = np.array([math.erf(v) for v in x])
    want = np.stack(
        [
            np.sin(x),
            np.tanh(x),
            erf,
            np.log(np.abs(x) + 0.1),
            np.exp(x),
            np.sqrt(np.abs(x)) / (1 + x * x),
        ],
        1,
    )
    assert (np.abs(y - want) <= 2 * np.spacing(np.abs(want))).all()


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_softmax(m, rng):
    x = (rng.standard_normal((7, 1000)) * 2).astype("f4")
    y = np.zeros_like(x)
    run_ptx(m, "softmax_f32", 7, 128, [x, y, 1000], racecheck=True)
    assert np.abs(y / softmax(x.astype("f8")) - 1).max() < 2e-6
    h, y = x.astype("f2"), np.zeros(x.shape, "f2")
    run_ptx(m, "softmax_f16", 7, 256, [h, y, 1000])
    assert np.abs(y - softmax(h.astype("f8"))).max() < 6e-5
    b, y = bf16_bits(x), np.zeros(x.shape, "u2")
    run_ptx(m, "softmax_bf16", 7, 256, [b, y, 1000])
    assert np.abs(bf16_values(y) / softmax(bf16_values(b)) - 1).max() < 4.1e-3


def test_shared_tree_and_atomics(m, rng):
    x, out = rng.standard_normal(12_000).astype("f4"), np.zeros(1, "f4")
    run_ptx(m, "tree_sum", 5, 256, [x, out, 3000], dynamic_smem=1024, racecheck=True)
    assert abs(out[0] - x.astype("f8").sum()) < 1e-3
    x, h = rng.integers(0, 50, 20_000).astype("i4"), np.zeros(50, "i4")
    run_ptx(m, "histogram", blocks(x.size), 256, [x, h, x.size])
    assert (h == np.bincount(x, minlength=50)).all()
    x, top = rng.standard_normal(1000).astype("f4"), np.full(1, -9, "f4")
    run_ptx(m, "cas_max", 4, 256, [top, x, 1000])
    assert top[0] == x.max()


def test_divergence_calls_and_local_memory(m, rng):
    def steps(v):
        n = 0
        while v != 1:
            v, n = (3 * v + 1 if v & 1 else v // 2), n + 1
        return n

    x, y = np.arange(1, 1001, dtype="i4"), np.zeros(1000, "i4")
    run_ptx(m, "collatz", 4, 256, [x, y, 1000])
    assert (y == [steps(int(v)) for v in x]).all()
    n = 500
    x, y = (rng.standard_normal(n) * 0.5).astype("f4"), np.zeros(n, "f4")
    run_ptx(m, "calls", 2, 256, [x, y, n])
    want = [
        sum(float(v) ** k for k in range(i % 5)) + sum((v / 2.0) ** k for k in range(i % 3))
        for i, v in enumerate(x)
    ]
    assert np.abs(y - want).max() < 1e-5
    run_ptx(m, "local_array", 2, 256, [x, y, n])
    for i in range(n):
        a = [x[(i + k) % n] for k in range(16)]
        for k in range(16):
            j = int(np.trunc(a[k] * np.float32(1000))) & 15
            a[k], a[j] = a[j], a[k]
        assert abs(y[i] - float(a[i & 15]) * float(a[(i + 3) & 15])) < 1e-6
    run_ptx(m, "tables", 2, 256, [x, y, n])
    i = np.arange(n)
    want = x * np.array([1.0, 2, 4, 8])[i & 3] + np.array([0.5, 0.25, 0.125, 3])[(i >> 2) & 3]
    assert np.abs(y - want).max() < 1e-6


def test_transpose(m, rng):
    x, y = rng.standard_normal((70, 100)).astype("f4"), np.zeros((100, 70), "f4")
    run_ptx(m, "transpose", (4, 3), (32, 8), [x, y, 100, 70], racecheck=True)
    assert (y == x.T).all()


def test_struct_by_value(m, rng):
    a, q = rng.standard_normal(8).astype("f4"), rng.standard_normal(32).astype("f4")
    y = np.zeros(32, "f4")
    run_ptx(m, "by_value", 1, 32, [Struct("<8fi4xQ", *a.tolist(), 3, q), y])
    assert np.allclose(y, a[(np.arange(32) * 5) & 7] * 3 + q)


def test_shuffles_in_divergent_code(m, rng):
    x, y = rng.integers(-50, 100, 250).astype("i4"), np.zeros(250, "i4")
    run_ptx(m, "partial_masks", 2, 128, [x, y, 250])
    full, want = np.r_[x, np.zeros(6, "i4")].astype(int), np.zeros(256, int)
    for b in range(0, 256, 32):
        odd = [i for i in range(32) if full[b + i] & 1]
        even = sum(full[b + i] for i in range(32) if not full[b + i] & 1)
        for i in range(32):
            s = full[b + odd[(odd.index(i) + 1) % len(odd)]] if i in odd else -even
            want[b + i] = s + sum(range(i & 3))
    assert (y == (want + want.reshape(-1, 2)[:, ::-1].ravel())[:250]).all()


def test_barriers(m, rng):
    x, y = rng.standard_normal(70).astype("f4"), np.zeros(70, "f4")
    run_ptx(m, "early_exit", 1, 128, [x, y, 70], racecheck=True)
    assert np.allclose(y, x - x[0])
    x, y = rng.integers(-100, 100, 96).astype("i4"), np.zeros(96, "i4")
    run_ptx(m, "counts", 1, 96, [x, y])
    assert (y == (x > 0).sum() * 10 + (x > 90).any() * 2 + 1).all()


def test_generic_pointers_and_cp_async(m, rng):
    x, y = rng.standard_normal(64).astype("f4"), np.zeros(64, "f4")
    run_ptx(m, "generic_pointers", 1, 64, [x, y, 5])
    t = np.arange(64)
    assert np.allclose(y, np.where(t % 3 == 2, (t & 3) * x, x[(t + 5) & 63]))
    x = rng.standard_normal((3, 128, 4)).astype("f4")
    y = np.zeros_like(x)
    run_ptx(m, "async_copy", 3, 128, [x, y], racecheck=True)
    assert (y == x[:, ::-1]).all()


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_philox_dropout(m, rng):
    assert philox([0, 0, 0, 0], [0, 0])[0] == 0x6627E8D5  # known answer of Random123
    n, p = 500, 0.3
    x, y = np.ones(4 * n, "f4"), np.zeros(4 * n, "f4")
    run_ptx(m, "dropout", 2, 256, [x, y, 1234, p, n])
    r = np.array([philox([i, 0, 0, 0], [1234, 0]) for i in range(n)]).ravel()
    keep = r.astype("f4") * np.float32(2.0**-32) > np.float32(p)
    assert ((y != 0) == keep).all() and np.allclose(y[keep], 1 / 0.7)
