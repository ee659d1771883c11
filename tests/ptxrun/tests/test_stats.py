"""Counts of instructions and of memory traffic."""

import numpy as np
import pytest

from tests.ptxrun import run_ptx

from .nvrtc import compiled, kernels

SOURCE = r"""
#define KERNEL extern "C" __global__ void
KERNEL copy(const float* x, float* y, int n, int stride) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i * stride] = x[i * stride];
}
KERNEL copy4(const float4* x, float4* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i];
}
KERNEL twice(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i] + x[n - 1 - i];
}
"""


@pytest.fixture(scope="module")
def m():
    return compiled(SOURCE)


@pytest.fixture
def x():
    return np.zeros(8192, "f4")


def test_off_by_default(m, x):
    assert run_ptx(m, "copy", 32, 256, [x, x.copy(), 8192, 1]) is None


def test_coalesced_copy(m, x):
    s = run_ptx(m, "copy", 32, 256, [x, x.copy(), 8192, 1], stats=True)
    assert s.threads == 8192
    assert s.load_bytes == s.store_bytes == s.load_footprint == x.nbytes
    assert s.load_requests == 8192 // 32 and s.load_sectors == x.nbytes // 32
    assert s.efficiency("load") == s.efficiency("store") == 1.0
    assert s.load_widths == s.store_widths == {4: 8192}
    assert s.arrays["arg0"]["load_bytes"] == s.arrays["arg1"]["store_bytes"] == x.nbytes
    per = s.per_element(8192)
    assert per["global_load"] == per["global_store"] == 1 and per["load_bytes"] == 4
    assert per["branch"] == 2 and per["total"] == sum(s.instructions.values()) / 8192


def test_packs(m, x):
    s = run_ptx(m, "copy4", 8, 256, [x, x.copy(), 2048], stats=True)
    assert s.load_widths == {16: 2048} and s.efficiency() == 1.0
    assert s.widths == {("arg0", "load"): {16: 2048}, ("arg1", "store"): {16: 2048}}
    assert s.per_element(8192)["global_load"] == 0.25


@pytest.mark.parametrize("stride, efficiency", ((2, 0.5), (4, 0.25), (8, 0.125), (16, 0.125)))
def test_strided_copy(m, x, stride, efficiency):
    n = 8192 // stride
    s = run_ptx(m, "copy", 32, 256, [x, x.copy(), n, stride], stats=True)
    assert s.efficiency("load") == s.efficiency("store") == efficiency


def test_offset_costs_a_sector_per_warp(m, x):
    s = run_ptx(m, "copy", 4, 256, [x[1:1025], x[2048:3072].copy(), 1024, 1], stats=True)
    assert s.load_sectors == 5 * 32 and s.store_sectors == 4 * 32


def test_second_read_is_seen(m, x):
    s = run_ptx(m, "twice", 32, 256, [x, x.copy(), 8192], stats=True)
    assert s.load_bytes == 2 * x.nbytes and s.load_footprint == x.nbytes
    assert s.footprint("arg0", "load") == s.footprint("arg1", "store") == x.nbytes
    assert s.footprint("arg0", "store") == 0


def test_tail_counts_active_threads_only(m, x):
    s = run_ptx(m, "copy", 1, 256, [x, x.copy(), 33, 1], stats=True)
    assert s.load_bytes == 33 * 4 and s.load_requests == 2 and s.load_sectors == 5
    assert s.instructions["global_load"] == 33


def test_classes_of_softmax():
    x = np.random.default_rng(0).standard_normal((4, 1024)).astype("f4")
    s = run_ptx(kernels(90), "softmax_f32", 4, 128, [x, np.zeros_like(x), 1024], stats=True)
    assert s.load_bytes == 3 * x.nbytes and s.load_footprint == x.nbytes
    assert s.opcodes["bar.sync"] == s.instructions["barrier"] == 3 * 512
    assert s.instructions["shuffle"] == 3 * 5 * 512
    assert sum(v for k, v in s.opcodes.items() if k.startswith("ex2")) == 2 * x.size
    assert s.instructions["shared"] > 0 and s.instructions["special"] >= 2 * x.size
    with pytest.raises(AttributeError):
        s.load_nothing  # noqa: B018


def test_classes_of_halves():
    a = np.zeros(2 * 640, "f2")
    s = run_ptx(kernels(90), "half2_math", 5, 128, [a, a.copy(), a.copy(), 640], stats=True)
    assert s.per_element(640)["fp16"] == 4
