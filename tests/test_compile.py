"""Every kernel compiles for every generation of GPU, within its registers.

The list is what the backends launch for the catalogue. Triton compiles with its own ptxas, NVRTC
straight to machine code with CuPy's options; cuobjdump then says what a kernel takes. Spilled
registers, or an array that did not fit into them, go through local memory: no tile may.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests import harness
from tests.bounds import DTYPES
from tests.calls import calls

STACK = 16  # bytes: one or two registers of the widest rows; a tile takes hundreds
# The rest of the tests executes what is compiled for 9.0; the others take minutes more.
CAPABILITIES = [90, *(pytest.param(c, marks=pytest.mark.slow) for c in (80, 100))]
USAGE = re.compile(r"Function (\S+?):\s+(REG:.*)")


def tool(name: str) -> Path:
    """A program of Triton's wheel."""
    triton = pytest.importorskip("triton")
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def usage(cubin: bytes, folder: Path) -> dict[str, dict[str, int]]:
    """What each kernel of a cubin takes: REG, STACK, SHARED, LOCAL …"""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    command = [str(tool("cuobjdump")), "-res-usage", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        name: {key: int(n) for key, n in re.findall(r"(\w+)(?:\[\d+\])?:(\d+)", counts)}
        for name, counts in USAGE.findall(text)
    }


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", harness.executors("cupy-ptx", "triton-ptx"))
def test_compiles(name, dtype, capability, monkeypatch, tmp_path, record_property):
    executor = harness.make(name, monkeypatch, run=False)
    for _, call in calls(executor, dtype):
        call()
    compiled, seen = {}, set()
    for launch in executor.launches:
        cubin = launch.cubin(capability)
        if cubin in seen:
            continue
        seen.add(cubin)
        for kernel, counts in usage(cubin, tmp_path).items():
            compiled[f"{launch.kernel} {dtype} sm_{capability} #{len(seen)}"] = counts
            assert counts["REG"] <= 255 and counts["STACK"] <= STACK and counts["LOCAL"] == 0, (
                f"{launch.kernel} ({kernel}) for {dtype} on sm_{capability}: {counts}"
            )
    assert compiled
    record_property("compiled", (f"{name.split('-')[0]} {dtype} sm_{capability}", sorted(compiled)))


def test_a_kernel_that_spills_is_noticed(tmp_path):
    pytest.importorskip("cupy")
    from tests.ptxrun.cupyrun import Source

    code = """
    extern "C" __global__ void spills(float* x) {
        float a[64];
        for (int i = 0; i < 64; ++i) a[i] = x[i];
        for (int i = 0; i < 64; ++i) a[int(a[i]) & 63] += 1.0f;
        for (int i = 0; i < 64; ++i) x[i] = a[i];
    }"""
    counts = usage(Source(code, (), ()).cubin(90), tmp_path)["spills"]
    assert counts["STACK"] > STACK or counts["LOCAL"] > 0
