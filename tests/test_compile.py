"""Every kernel compiles for every generation of GPU, within its registers.

The list is what the backends launch for the catalogue. Triton, and NVRTC with CuPy's options, make
PTX of it; ptxas makes machine code of that and says what each kernel takes. None may spill,
nor use a stack at all; what two versions of Triton make of two kernels is the exception.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

from tests import harness
from tests.bounds import DTYPES
from tests.calls import calls
from tests.sass import assemble

# Each of these takes minutes; the rest of the tests executes what is compiled for 9.0. Where all
# are too many, each dtype and each GPU comes once.
TARGETS = [
    pytest.param(name, dtype, capability, marks=pytest.mark.slow if j == k else pytest.mark.deep)
    for name in ("cupy-ptx", "triton-ptx")
    for j, dtype in enumerate(DTYPES)
    for k, capability in enumerate((80, 90, 100, 120))
]
# Bytes a thread spills at most, by Triton's version: softmax of columns under a mask with 3.6 and
# 3.9, and of columns over a cluster with 3.9.
SPILLS = {"3.6": 92, "3.9": 60}
USAGE = re.compile(
    r"Function properties for (\S+)\s+"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)


def usage(ptx: str, folder: Path) -> dict[str, tuple[int, int, int]]:
    """Bytes of stack frame, spill stores and spill loads of each function."""
    said = assemble(ptx, folder / "kernel.cubin")
    return {name: (int(a), int(b), int(c)) for name, a, b, c in USAGE.findall(said)}


@pytest.mark.parametrize(("name", "dtype", "capability"), TARGETS)
def test_compiles(name, dtype, capability, monkeypatch, tmp_path, record_property):
    executor = harness.make(name, monkeypatch, run=False, capability=capability)
    allowed = 0
    if name == "triton-ptx":
        allowed = SPILLS.get(".".join(metadata.version("triton").split(".")[:2]), 0)
    for _, call in calls(executor, dtype):
        call()
    compiled, seen, spilled = [], set(), []
    for launch in executor.launches:
        ptx = launch.ptx(capability)
        if ptx in seen:
            continue
        seen.add(ptx)
        for function, (frame, stores, loads) in usage(ptx, tmp_path).items():
            compiled.append(launch.kernel)
            if max(frame, stores, loads) > (allowed if launch.kernel == "softmax" else 0):
                spilled.append((launch.kernel, launch.dtypes, function, frame, stores, loads))
    assert compiled
    assert not spilled
    record_property("compiled", (f"{name.split('-')[0]} {dtype} sm_{capability}", compiled))


def test_a_kernel_that_spills_is_noticed(tmp_path):
    pytest.importorskip("cupy")
    from tests.ptxrun.cupyrun import nvrtc_ptx

    code = """
    extern "C" __global__ void __maxnreg__(24) spills(float* x) {
        float a[64];
        #pragma unroll
        for (int i = 0; i < 64; ++i) a[i] = x[i];
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 64; ++i) x[i] = a[63 - i];
    }
    extern "C" __global__ void indexes(float* x) {
        float a[64];
        for (int i = 0; i < 64; ++i) a[i] = x[i];
        for (int i = 0; i < 64; ++i) a[int(a[i]) & 63] += 1.0f;
        for (int i = 0; i < 64; ++i) x[i] = a[i];
    }"""
    found = usage(nvrtc_ptx(code, 90), tmp_path)
    frame, stores, loads = found["spills"]
    assert stores > 0
    assert loads > 0
    frame, *_ = found["indexes"]
    assert frame > 0
