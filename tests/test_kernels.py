"""No kernel goes untested: those of the catalogue are all executed, and no file holds another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import harness
from tests.bounds import DTYPES
from tests.calls import FORMULAS, ROW_SHAPES, calls

KERNELS = Path(__file__).parent.parent / "kernels"
PTX = ("cupy-ptx", "triton-ptx")


CASES = [pytest.param(d, marks=() if d == "float32" else pytest.mark.slow) for d in DTYPES]


@pytest.mark.parametrize("dtype", CASES)
@pytest.mark.parametrize("name", harness.executors(*PTX))
def test_every_formula_is_executed(name, dtype, monkeypatch, record_property):
    executor = harness.make(name, monkeypatch)
    launched: dict[str, set[str]] = {formula: set() for formula in FORMULAS}
    for formula, call in calls(executor, dtype):
        if launched[formula]:
            continue  # once will do here: test_backends runs every regime and looks at the values
        executor.launches.clear()
        call()
        dtypes = {each for launch in executor.launches for each in launch.dtypes}
        assert dtype in dtypes or formula == "target_weight", executor.launches
        launched[formula] |= {f"{launch.kernel} {dtype}" for launch in executor.launches}
    assert all(launched.values()), [formula for formula, names in launched.items() if not names]
    record_property("executed", (name, sorted(set().union(*launched.values()))))


@pytest.fixture
def recorded(request, monkeypatch) -> set[str]:
    """Names of all kernels that the calls launch, compiled by nobody."""
    executor = harness.make(request.param, monkeypatch, run=False)
    for dtype in DTYPES:
        for _, call in calls(executor, dtype):
            call()
    return {word for launch in executor.launches for word in launch.kernel.split()}


@pytest.mark.parametrize("recorded", harness.executors("cupy-ptx"), indirect=True)
def test_no_cuda_kernel_goes_unlaunched(recorded):
    texts = [path.read_text() for path in (KERNELS / "cupy").glob("*.cuh")]
    names = re.findall(r'extern "C" __global__ void\s+(?:__\w+__\(.*?\)\s+)?(\w+)', "".join(texts))
    assert names, "the kernels have moved"
    # a macro of entry.cuh is the names of all over rows, whose regimes tests/test_rows.py reaches
    names = set(names) - {"GPUACT_DIMENSIONS", "GPUACT_KERNEL"}
    assert names <= recorded, names - recorded


@pytest.mark.parametrize("recorded", harness.executors("triton-ptx"), indirect=True)
def test_no_triton_function_goes_unused(recorded):
    texts = [path.read_text() for path in (KERNELS / "triton").glob("*.py")]
    whole = "".join(texts)
    names = re.findall(r"@triton\.jit\ndef (\w+)\(", whole)
    assert names, "the kernels have moved"
    # called by others, or handed on to a scan
    helpers = {name for name in names if len(re.findall(rf"\b{name}[(),]", whole)) > 1}
    assert set(names) - helpers <= recorded, set(names) - helpers - recorded


def test_the_calls_reach_rows_of_every_size():
    lengths = [n for _, n, _ in ROW_SHAPES]
    assert min(lengths) <= 33 and max(lengths) > 65536 and any(i > 1 for *_, i in ROW_SHAPES)
