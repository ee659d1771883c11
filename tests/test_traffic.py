"""Every elementwise kernel moves each array once, in whole sectors: counted as the PTX runs.

"Needed" are the bytes of x and of all arrays of its shape, and one entry a channel of parameters
and their gradients. "Moved" are the bytes that threads ask for, of all launches of the call. Of
parameters it is the sectors touched that count, once each: the threads of all channels read them
again and again, but from a cache. Partial sums, written and read again, are all overhead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests import harness
from tests.bounds import DTYPES
from tests.harness import TARGET, named
from tests.ptxrun import run_ptx
from tests.ptxrun.stats import SECTOR, Stats
from tests.workloads import ALIGNMENTS, KINDS, WORKLOADS, Call

MOVED = 1.01  # bytes moved, and sectors touched, over bytes needed
EFFICIENCY = 0.99  # bytes asked for over those of the sectors that each request of a warp touches
WIDE = 16  # bytes a thread moves at once, where all arrays share their address modulo 16
WARP = 32


@dataclass
class Traffic:
    """What a call moved, in bytes."""

    needed: int
    moved: int = 0
    touched: int = 0  # sectors of the operands, once a launch
    scratch: int = 0  # of `moved`: partial sums
    parameters: int = 0  # what threads asked for of the parameters, of caches mostly
    asked: Counter[str] = field(default_factory=Counter)  # of operands, by "load" and "store"
    sectors: Counter[str] = field(default_factory=Counter)  # the same, those of each request
    widths: dict[str, Counter[int]] = field(
        default_factory=lambda: {"load": Counter(), "store": Counter()}
    )

    def add(self, stats: Stats, names: Sequence[str], call: Call) -> None:
        """Count a launch whose arguments have these names."""
        for argument, count in stats.arrays.items():
            name = names[int(argument.removeprefix("arg"))]
            asked = {what: count[f"{what}_bytes"] for what in ("load", "store")}
            if name in call.operands:
                self.moved += sum(asked.values())
                self.asked.update(asked)
                for what in asked:
                    self.sectors[what] += SECTOR * count[f"{what}_sectors"]
                    self.touched += stats.footprint(argument, what)
                    for width, times in stats.widths.get((argument, what), {}).items():
                        self.widths[what][width] += width * times
            elif name in call.parameters:
                self.moved += stats.footprint(argument, "load") + asked["store"]
                self.parameters += asked["load"]
            else:
                self.moved += sum(asked.values())
                self.scratch += sum(asked.values())

    def efficiency(self, what: str) -> float:
        return self.asked[what] / self.sectors[what] if self.sectors[what] else 1.0

    def share(self, what: str, width: int) -> float:
        return self.widths[what][width] / self.asked[what] if self.asked[what] else 1.0

    def said(self, what: str) -> str:
        """Widths of accesses in bits, with their share of the bytes."""
        return " ".join(
            f"{8 * width}" + (f" ({share:.1%})" if share < 0.9995 else "")
            for width in sorted(self.widths[what], reverse=True)
            if (share := self.share(what, width)) >= 0.0005
        )


def faults(traffic: Traffic, alike: bool, itemsize: int) -> list[str]:
    """What is wrong; alike: all operands share their address modulo 16."""
    found = []
    if traffic.moved > MOVED * traffic.needed:
        found.append(f"moves {traffic.moved} bytes, {traffic.needed} are needed")
    if traffic.touched > MOVED * traffic.needed:
        found.append(f"touches sectors of {traffic.touched} bytes, {traffic.needed} are needed")
    for what in ("load", "store"):
        least = EFFICIENCY if alike else unaligned(itemsize)
        if traffic.efficiency(what) < least:
            found.append(f"{what} requests: {traffic.efficiency(what):.2%} of their sectors' bytes")
        if alike and traffic.share(what, WIDE) < EFFICIENCY:
            found.append(f"{what}s are narrow: {traffic.said(what)}")
    return found


def unaligned(itemsize: int) -> float:
    """The least efficiency where operands have only their items' alignment in common.

    A warp's request is for 32 neighbouring items, 32·itemsize bytes: itemsize sectors, and one more
    if the first does not begin at a sector. That is 2/3 of the bytes of three sectors for half
    types, 4/5 for float32, 8/9 for float64; the sector that two requests share comes from the cache
    the second time. Not counted are the few requests at the ends, hence the one percent.
    """
    return EFFICIENCY * itemsize / (itemsize + 1)


def measured(call: Call, executor: harness.Executor) -> Traffic:
    executor.options["stats"] = True
    call.run()
    traffic = Traffic(call.needed)
    for launch, stats in zip(executor.launches, executor.stats, strict=True):
        traffic.add(stats, call.names(launch, TARGET), call)
    return traffic


def selection() -> list[object]:
    """Of each kind of kernel one formula, in every dtype, of which one is quick. The others differ
    in arithmetic, which moves no other bytes: they are slow, and each has one dtype, in turn.
    """
    names = list(WORKLOADS)
    return [
        pytest.param(name, backend, dtype, marks=() if quick else pytest.mark.slow)
        for name in WORKLOADS
        for backend in ("cupy-ptx", "triton-ptx")
        for dtype in DTYPES
        for quick in [name in KINDS and dtype == "bfloat16"]
        if name in KINDS or dtype == list(DTYPES)[names.index(name) % len(DTYPES)]
    ]


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize(("name", "backend", "dtype"), selection())
def test_traffic(name, backend, dtype, alignment, monkeypatch, record_property):
    executor = harness.make(backend, monkeypatch)
    call = WORKLOADS[name].call(executor, dtype, alignment)
    traffic = measured(call, executor)
    table = f"traffic of {backend}: bytes moved ÷ needed, sectors used, widths in bits"
    row = (
        name,
        dtype,
        alignment,
        f"{traffic.moved / traffic.needed:.4f}",
        f"{traffic.efficiency('load'):.2%}",
        f"{traffic.efficiency('store'):.2%}",
        traffic.said("load"),
        traffic.said("store"),
        f"{traffic.scratch / traffic.needed:.2%}",
        f"{traffic.parameters / traffic.needed:.2f}",
    )
    record_property("table", (table, COLUMNS, row))
    assert executor.launches
    assert not faults(traffic, alignment != "different", named(dtype).itemsize)


COLUMNS = (
    "kernel",
    "dtype",
    "arrays",
    "moved",
    "loads",
    "stores",
    "load widths",
    "store widths",
    "partial sums",
    "parameters asked",
)


# -- the checker itself ---------------------------------------------------------------------------

PLANTED = r"""
#define KERNEL extern "C" __global__ void
KERNEL right(const float4* x, float4* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n / 4) y[i] = x[i];
}
KERNEL narrow(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i];
}
KERNEL strided(const float4* x, float4* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  int k = i % 64 * (n / 256) + i / 64;
  if (i < n / 4) y[k] = x[k];
}
KERNEL twice(const float4* x, float4* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n / 4) {
    float4 a = x[i], b = x[n / 4 - 1 - i];
    y[i] = make_float4(a.x + b.w, a.y + b.z, a.z + b.y, a.w + b.x);
  }
}
KERNEL offset_by_a_pack(const float4* x, float4* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n / 4 - 1) y[i + 1] = x[i + 1];
  if (i == 0) y[0] = x[0];
}
"""


@pytest.mark.parametrize(
    ("kernel", "words"),
    {
        "right": [],
        "narrow": ["loads are narrow", "stores are narrow"],
        "strided": ["load requests", "store requests"],
        "twice": ["moves"],
        "offset_by_a_pack": ["load requests", "store requests"],
    }.items(),
)
def test_what_is_wrong_is_noticed(kernel, words):
    pytest.importorskip("cupy")
    from tests.ptxrun.cupyrun import nvrtc_ptx

    n = 1 << 14
    executor = harness.EXECUTORS["cupy-ptx"]()
    operands = {name: executor.place(np.ones(n, np.float32)) for name in ("x", "y")}
    args = [*(p.native for p in operands.values()), n]
    stats = run_ptx(nvrtc_ptx(PLANTED, TARGET), kernel, n // 128, 128, args, stats=True)
    call = Call(lambda: None, operands)
    traffic = Traffic(call.needed)
    traffic.add(stats, ["x", "y", ""], call)
    found = faults(traffic, alike=True, itemsize=4)
    assert len(found) == len(words), found
    assert all(text.startswith(word) for text, word in zip(found, words, strict=True)), found


def test_partial_sums_and_temporaries_count():
    pytest.importorskip("cupy")
    from tests.ptxrun.cupyrun import nvrtc_ptx

    n = 1 << 14
    executor = harness.EXECUTORS["cupy-ptx"]()
    operands = {"x": executor.place(np.ones(n, np.float32))}
    args = [operands["x"].native, np.empty(n, np.float32), n]
    stats = run_ptx(nvrtc_ptx(PLANTED, TARGET), "right", n // 512, 128, args, stats=True)
    call = Call(lambda: None, operands)
    traffic = Traffic(call.needed)
    traffic.add(stats, ["x", "scratch", ""], call)
    assert traffic.scratch == 4 * n
    assert faults(traffic, alike=True, itemsize=4) == [f"moves {8 * n} bytes, {4 * n} are needed"]
