"""Triton kernels compiled ahead of time for sm_80, sm_90 and sm_100."""

import re

import numpy as np
import pytest

from tests.ptxrun import PTXError, PTXModule, PTXRace

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from tests.ptxrun.tritonrun import compile_triton, run_built, run_triton

from . import triton_kernels as K

EPS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
CHECK = {"racecheck": True}


@pytest.fixture(params=(80, 90, 100))
def cap(request):
    return request.param


@pytest.fixture(params=EPS, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request):
    torch.manual_seed(0)
    return request.param


def test_gelu(cap, dtype):
    x = (torch.randn(5008) * 2).to(dtype)
    y = torch.zeros_like(x)
    s = run_triton(K.gelu, 5, [y, x, 5008], {"BLOCK": 1024}, cap=cap, run={"stats": True})
    want = torch.nn.functional.gelu(x.double())
    assert ((y.double() - want).abs() <= EPS[dtype] * want.abs() * 1.01 + 1e-6).all()
    assert s.load_bytes == s.store_bytes == 5008 * x.element_size()
    assert max(s.load_widths) == 16


@pytest.mark.parametrize("n, block, warps", ((1000, 1024, 4), (4096, 4096, 8), (77, 128, 1)))
def test_softmax(cap, dtype, n, block, warps):
    x = (torch.randn(5, n) * 2).to(dtype)
    y = torch.zeros_like(x)
    run_triton(K.softmax, 5, [y, x, n, n], {"BLOCK": block}, cap=cap, num_warps=warps, run=CHECK)
    want = torch.softmax(x.double(), 1)
    tolerance = EPS[dtype] * 1.01 * (want + (2.0**-14 if dtype == torch.float16 else 0))
    assert ((y.double() - want).abs() <= tolerance + 2e-6 * want).all()


def test_softmax_of_several_rows(cap, dtype):
    x = torch.randn(8, 200).to(dtype)
    y = torch.zeros_like(x)
    run_triton(K.softmax_rows, 2, [y, x, 200], {"BLOCK": 256, "ROWS": 4}, cap=cap, run=CHECK)
    assert (y.double() - torch.softmax(x.double(), 1)).abs().max() <= EPS[dtype] * 0.5 + 1e-6


def test_cross_entropy(cap, dtype):
    n, rows = 1300, 6
    x = (torch.randn(rows, n) * 3).to(dtype)
    t, loss, dx = torch.randint(0, n, (rows,)), torch.zeros(rows), torch.zeros_like(x)
    run_triton(K.cross_entropy, rows, [loss, dx, x, t, n, n], {"BLOCK": 512}, cap=cap, run=CHECK)
    v = x.double().requires_grad_()
    want = torch.nn.functional.cross_entropy(v, t, reduction="none")
    want.sum().backward()
    assert (loss / want - 1).abs().max() < 3e-6
    assert (dx.double() - v.grad).abs().max() < EPS[dtype] * 1.05 + 5e-6


def test_layernorm(cap, dtype):
    n = 1300
    x, w, b = (v.to(dtype) for v in (torch.randn(6, n) * 2 + 1, torch.randn(n), torch.randn(n)))
    y = torch.zeros_like(x)
    run_triton(K.layernorm, 6, [y, x, w, b, n, n, 1e-5], {"BLOCK": 512}, cap=cap, run=CHECK)
    want = torch.nn.functional.layer_norm(x.double(), (n,), w.double(), b.double(), 1e-5)
    assert (y.double() - want).abs().max() < EPS[dtype] * 16 + 5e-6


def test_scan_atomics_and_philox(cap):
    x = np.random.default_rng(0).standard_normal((3, 500)).astype("f4")
    y = np.zeros_like(x)
    run_triton(K.cumsum, 3, [y, x, 500], {"BLOCK": 512}, cap=cap, run=CHECK)
    assert np.abs(y - x.astype("f8").cumsum(1)).max() < 2e-5
    out = np.zeros(1, "f4")
    run_triton(K.total, 3, [out, x, 1500], {"BLOCK": 512}, cap=cap, run=CHECK)
    assert abs(out[0] - x.astype("f8").sum()) < 1e-3
    x, y = np.ones(4000, "f4"), np.zeros(4000, "f4")
    run_triton(K.dropout, 4, [y, x, 4000, 0.25, 7], {"BLOCK": 1024}, cap=cap)
    kept = y != 0
    assert np.allclose(y[kept], 1 / 0.75) and abs(kept.mean() - 0.75) < 0.03


@pytest.fixture(scope="module")
def built():
    x = torch.zeros(3, 1000)
    options = {"num_warps": 4, "enable_fp_fusion": True}
    return compile_triton(K.softmax, [x, x, 1000, 1000], {"BLOCK": 1024}, **options)


def run_changed(built, ptx, **run):
    x = torch.randn(3, 1000)
    run_built(built, PTXModule(ptx), 3, [torch.zeros_like(x), x, 1000, 1000], **run)


def test_each_barrier_is_needed(built):
    ptx = built.compiled.asm["ptx"]
    bars = [m.span() for m in re.finditer(r"bar\.sync\s+0;", ptx)]
    run_changed(built, ptx, racecheck=True)
    seen = 0
    for a, b in bars:
        try:
            run_changed(built, ptx[:a] + ptx[b:], racecheck=True)
        except PTXRace:
            seen += 1
    assert bars and seen == len(bars)


def test_mask_off_by_one(built):
    ptx = built.compiled.asm["ptx"]
    changed = re.sub(r"setp\.lt\.s32", "setp.le.s32", ptx)
    changed = re.sub(r"setp\.gt\.s32", "setp.ge.s32", changed)
    assert changed != ptx
    with pytest.raises(PTXError, match="out of bounds"):
        run_changed(built, changed)


def test_arguments_are_typed_as_the_launcher_types_them():
    x = torch.zeros(64)
    y = torch.zeros(64, dtype=torch.float64)
    run_triton(K.affine, 1, [y, x, None, 0.1, 64, 1], {"F": K.identity, "BLOCK": 64})
    assert (y == 0.1).all()  # the literal arrives as fp64, not rounded to float32
    run_triton(K.affine, 1, [y, x, x, 0.1, 64, 1], {"F": K.identity, "BLOCK": 64})
    assert (y == 0.1).all()


def test_functions_of_one_name_are_compiled_apart():
    y = torch.zeros(64, dtype=torch.float64)
    for function, want in ((K.identity, 2.0), (K.make_identity(), 3.0), (K.identity, 2.0)):
        args = [y, torch.full((64,), 2.0), None, 0.0, 64, 1]
        run_triton(K.affine, 1, args, {"F": function, "BLOCK": 64})
        assert (y == want).all()


def test_a_misaligned_view_is_compiled_for(built):
    x, y = torch.randn(1025)[1:], torch.zeros(1024)
    s = run_triton(K.gelu, 1, [y, x, 1024], {"BLOCK": 1024}, run={"stats": True})
    assert set(s.load_widths) == {4} and set(s.store_widths) == {16}
