"""Every elementwise function within its bound: on all values of the half types, and the records.

tests/accuracy.py measures, tests/exhaustive.py goes through all float32; what they wrote down must
cover everything and be what README.md shows.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import Future
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest

from gpuact import reference
from tests import accuracy, exhaustive, harness, host, truth
from tests.bounds import BOUNDS, DTYPES, check, compute_dtype, operand_names, stated, ulp
from tests.exhaustive import SLICE, SWEEPS
from tests.truth import Array

HALVES = ("float16", "bfloat16")
WHOLE = ("numpy", "host")  # families whose record of all float32 there must be

needs_compiler = pytest.mark.skipif(host.COMPILER is None, reason="there is no C++ compiler")
FAMILIES = [
    "numpy",
    pytest.param("host", marks=needs_compiler),
    pytest.param("interpreter", marks=pytest.mark.interpreter),
]


def within(line: dict[str, Any]) -> None:
    assert accuracy.breaches([line]) == []


def patterns(formula: str, dtype: str) -> Array:
    """Of a half type, the bits of all that the swept operand may be: y beyond 1 is relu's alone."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    if "y" not in operand_names(formula) or formula == "relu_backward":
        return bits
    one, infinity = (np.array(a, DTYPES[dtype]).view(np.uint16) for a in (1, np.inf))
    size = bits & 0x7FFF
    return bits[(size <= one) | (size > infinity)]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("formula", BOUNDS)
def test_every_value_of_a_half_type_is_swept(formula, dtype):
    swept, others = exhaustive.roles(formula)
    at, found = operand_names(formula).index(swept), set()
    for given in accuracy.operands(formula, dtype):
        assert np.array_equal(given[at].view(np.uint16), patterns(formula, dtype))
        found.add(tuple(float(a[0]) for k, a in enumerate(given) if k != at))
    choices = (np.array(accuracy.OTHERS[name], DTYPES[dtype]) for name in others)
    assert found == set(product(*(map(float, values) for values in choices)))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("formula", BOUNDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_of_a_half_type(family, formula, dtype, monkeypatch):
    executor = None
    if family != "host":
        executor = harness.make(accuracy.executor_of(family), monkeypatch)
    found = accuracy.elementwise(executor, formula, dtype)
    choices = prod(len(accuracy.OTHERS[name]) for name in exhaustive.roles(formula)[1])
    assert found["inputs"] == len(patterns(formula, dtype)) * choices
    within(found)


@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("formula", BOUNDS)
@pytest.mark.parametrize("family", FAMILIES[:2])
def test_a_sweep(family, formula, dtype, monkeypatch):
    executor = None if family == "host" else harness.make(family, monkeypatch)
    within(accuracy.elementwise(executor, formula, dtype, 4))


@pytest.mark.slow
@pytest.mark.parametrize("family", ("cupy", "triton"))
def test_a_sweep_of_compiled_kernels(family, monkeypatch):
    executor = harness.make(f"{family}-ptx", monkeypatch)
    executor.options.update(noise=1.0, seed=3)
    for formula, dtype in ((f, d) for f in BOUNDS for d in DTYPES):
        within(accuracy.elementwise(executor, formula, dtype, 64))


# -- the CUDA formulas on the host ----------------------------------------------------------------


def test_every_formula_is_here():
    """The header and the truth name the same formulas in the same order."""
    formulas = host.HEADER.read_text(encoding="utf-8").split("// -- linear", 1)[1]
    names = re.findall(r"^GPUACT_FORMULA T (\w+)\(", formulas, re.MULTILINE)
    assert names == list(truth.ELEMENTWISE), "kernels/cupy/formulas.cuh beside tests/truth.py"


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("formula", [f for f in truth.ELEMENTWISE if f not in BOUNDS])
def test_terms_of_sums_are_exact_but_for_a_rounding(formula, dtype):
    for given in accuracy.operands(formula, dtype, 4):
        got = host.elementwise(formula, dtype, *given)
        value = truth.elementwise(formula, *given)
        allowed = (ulp(value, dtype) + (dtype in HALVES) * ulp(value, compute_dtype(dtype))) / 2
        check(got, value, allowed, dtype, f"{formula} {dtype}")


@needs_compiler
@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_relu_of_minus_zero_is_zero(dtype):
    assert not np.signbit(host.elementwise("relu", dtype, np.array([-0.0], dtype))).any()


# -- what is measured -----------------------------------------------------------------------------


def test_the_measure_is_in_units_of_the_last_place(monkeypatch):
    """A result moved by k units is k units off, at its input; NaN astray is infinitely off."""
    executor = harness.make("numpy", monkeypatch)
    at = 40_000
    for dtype, units in (("float16", 3), ("float32", 8)):

        def moved(executor, formula, dtype, given, units=units):
            y = np.where(given[0] <= 0, 0, given[0]).astype(dtype)  # relu, exact
            y.view(f"u{y.itemsize}")[at] += units
            return y

        monkeypatch.setattr(accuracy, "run", moved)
        found = accuracy.elementwise(executor, "relu", dtype)
        x = accuracy.sweep(dtype)[at]
        # where 0 was expected, a unit is the smallest subnormal
        assert found["ulp"] == units and found["at"]["x"] == float(x)
        assert accuracy.breaches([found]) == [found]

    def astray(executor, formula, dtype, given):
        y = np.where(given[0] <= 0, 0, given[0])
        y[at] = np.nan
        return y

    monkeypatch.setattr(accuracy, "run", astray)
    assert accuracy.elementwise(executor, "relu", "float64")["ulp"] == np.inf


def test_the_table_in_the_readme_is_the_record():
    lines = json.loads(accuracy.RECORD.read_text())
    assert accuracy.page(lines) in accuracy.README.read_text(), "make accuracy ARGS=--record"
    measured = {(line["of"], line["dtype"], line["family"]) for line in lines if "ulp" in line}
    assert measured == {(f, d, family) for f in BOUNDS for d in DTYPES for family in BOUNDS[f]}
    for line in lines:
        if "ulp" in line:
            assert line["bound"] == stated(line["of"], line["family"], line["dtype"])
    assert accuracy.breaches(lines) == []


# -- all float32 ----------------------------------------------------------------------------------


def test_the_record_covers_all_float32():
    record = json.loads(exhaustive.RECORD.read_text())
    assert set(WHOLE) <= set(record)
    for family, of in record.items():
        assert of["sources"] == exhaustive.sources(family), f"{family} changed: make exhaustive"
        assert set(of["sweeps"]) == set(SWEEPS)
        for name, found in of["sweeps"].items():
            assert found["inputs"] == len(SWEEPS[name].slices) * SLICE
            assert found["ulp"] <= exhaustive.bound(family, name)
    assert {len(s.slices) * SLICE for s in SWEEPS.values() if s.swept != "y"} == {1 << 32}


def test_the_record_is_of_what_is_swept(monkeypatch):
    """Another formula, or helper of one, makes other sources; what is not swept does not."""
    swept = {s.formula for s in SWEEPS.values()} | {"where"}
    for name in (*swept, "fused_backward", "softmax", "philox"):
        with monkeypatch.context() as patch:
            patch.setattr(reference, name, lambda *args: 0)
            changed = exhaustive.sources.__wrapped__("numpy") != exhaustive.sources("numpy")
            assert changed == (name in swept), name


def test_a_y_is_swept_from_minus_1_to_1():
    patterns = [
        range(k * SLICE, (k + 1) * SLICE) for k in SWEEPS["tanh_backward(y, dy = -2.71875)"].slices
    ]
    for y in (0.0, -0.0, 1e-45, 0.3, -0.3, 1.0, -1.0):
        bits = int(np.float32(y).view(np.uint32))
        assert any(bits in part for part in patterns), y


def short(family: str, name: str, count: int = 1 << 18) -> dict[str, Any]:
    """A few slices of a sweep, the beginning of each."""
    slices = SWEEPS[name].slices
    lines = [exhaustive.one_slice(family, name, k, count) for k in slices[:: len(slices) // 3]]
    return max(lines, key=lambda line: line["ulp"])


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("family", FAMILIES[:2])
def test_the_beginnings_of_some_slices(family, name):
    assert short(family, name)["ulp"] <= exhaustive.bound(family, name)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES[:2])
def test_a_slice_of_every_sweep(family):
    for k, (name, sweep) in enumerate(SWEEPS.items()):
        index = sweep.slices[(7 * k + 13) % len(sweep.slices)]
        line = exhaustive.one_slice(family, name, index)
        assert line["ulp"] <= exhaustive.bound(family, name), line


@pytest.mark.parametrize("name", ("sigmoid(x)", "tanh_backward(y, dy = -2.71875)"))
@pytest.mark.parametrize("family", ("cupy", "triton"))
def test_what_a_gpu_would_run(family, name, monkeypatch):
    """The beginnings of slices, subnormals among them, through a GPU backend's own kernels."""
    harness.make(f"{family}-ptx", monkeypatch)

    def native(a: Any) -> Any:
        return a if family == "cupy" else pytest.importorskip("torch").from_numpy(a)

    run = exhaustive._backend(family, native)
    monkeypatch.setattr(exhaustive, "_runner", lambda family: (run, np))
    assert 0 < short(family, name, 1 << 12)["ulp"] <= exhaustive.bound(family, name)


@pytest.mark.cuda
@pytest.mark.parametrize("family", ("cupy", "triton"))
def test_a_slice_of_every_sweep_on_a_gpu(family):
    harness.needs_gpu(family)
    for k, (name, sweep) in enumerate(SWEEPS.items()):
        index = sweep.slices[(7 * k + 13) % len(sweep.slices)]
        line = exhaustive.one_slice(family, name, index)
        assert line["ulp"] <= exhaustive.bound(family, name), line


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.parametrize("family", ("cupy", "triton"))
def test_all_float32_on_a_gpu(family, tmp_path):
    harness.needs_gpu(family)
    assert exhaustive.run([family], tmp_path / "log.jsonl", "1/1", 1) == 0


def test_an_error_is_measured_in_ulp(monkeypatch):
    """One value of a slice moved by k units, infinity where there is none, NaN dropped."""
    first = int(np.float32(1.5).view(np.uint32)) // SLICE * SLICE
    for change, want in ((5, 5.0), (np.inf, np.inf), (np.nan, np.inf)):

        def run(formula, operands, change=change):
            y = operands[0].copy()
            if isinstance(change, int):
                y.view(np.uint32)[77] += change
            else:
                y[77] = change
            return y

        monkeypatch.setattr(exhaustive, "_runner", lambda family, run=run: (run, np))
        line = exhaustive.one_slice("numpy", "relu(x)", first // SLICE, 1 << 12)
        assert line["ulp"] == want
        assert float.fromhex(line["at"]) == np.uint32(first + 77).view(np.float32)


def test_the_truth_of_a_subnormal_number_is_not_that_of_zero():
    """CuPy's kernels, its conversions too, flush what they read."""

    class Flushing:
        __getattr__ = staticmethod(np.__dict__.__getitem__)

        def asarray(self, x: Any, dtype: Any) -> Any:
            small = np.abs(x) < np.finfo(np.float32).tiny
            return np.where(small, np.copysign(0.0, x), x).astype(dtype)

    bits = [0, 1, 2, (1 << 23) - 1, 1 << 23, 0x3F800000, 0x7F800000, 0x7FC00000]
    x = np.array([b | sign for b in bits for sign in (0, 1 << 31)], np.uint32).view(np.float32)
    found = exhaustive.widened(Flushing(), x)
    assert np.array_equal(found.view(np.uint64), x.astype(np.float64).view(np.uint64))
    assert exhaustive.widened(Flushing(), np.float32(-1.75)) == -1.75


def test_infinities_and_nan_belong_where_the_truth_has_them():
    """The last slice of either sign holds the largest numbers, infinity and every NaN."""
    name = "linear(x, scale = -1.75, bias = -0.7)"
    for index in (31, 63):
        assert exhaustive.one_slice("numpy", name, index)["ulp"] <= exhaustive.bound("numpy", name)


def test_a_false_truth_is_noticed(monkeypatch):
    monkeypatch.setitem(truth.FLOAT64, "tanh", lambda xp, x: xp.tanh(x) * (1 + 2.0**-40))
    with pytest.raises(AssertionError, match="float64 is no truth"):
        exhaustive.one_slice("numpy", "tanh(x)", 15, 1 << 14)


def test_a_run_goes_on_where_it_stopped_and_parts_make_a_whole(monkeypatch, tmp_path):
    """Slices that a log has are left out; parts share no slice; gaps make no record."""
    monkeypatch.setattr(exhaustive, "SWEEPS", {"relu(x)": SWEEPS["relu(x)"]})
    done: list[int] = []

    class Now:
        """A pool that works at once, in this process."""

        def __init__(self, workers):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, function, *job):
            done.append(job[2])
            future: Future[dict[str, Any]] = Future()
            future.set_result(line(job[2]))
            return future

    def line(index: int) -> dict[str, Any]:
        return {"family": "numpy", "sweep": "relu(x)", "slice": index, "inputs": SLICE,
                "sources": exhaustive.sources("numpy"), "ulp": 0.0 if index != 5 else 0.25,
                "at": (1.5).hex(), "got": (1.5).hex(), "seconds": 1.0}  # fmt: skip

    monkeypatch.setattr(exhaustive, "ProcessPoolExecutor", Now)
    logs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert exhaustive.run(["numpy"], logs[0], "1/2", 1) == 0
    assert done == list(range(0, 64, 2))
    with pytest.raises(SystemExit, match="lacks 32 slices"):
        exhaustive.record(logs, tmp_path / "record.json")
    exhaustive.run(["numpy"], logs[0], "1/2", 1)
    assert len(done) == 32, "done again"
    assert exhaustive.run(["numpy"], logs[1], "2/2", 1) == 1, "0.25 ulp of relu is a breach"
    exhaustive.record(logs, tmp_path / "record.json")
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["numpy"]["sweeps"]["relu(x)"]["inputs"] == 1 << 32
    assert record["numpy"]["sweeps"]["relu(x)"]["ulp"] == 0.25
    monkeypatch.setattr(exhaustive, "sources", lambda family: "others")
    assert exhaustive.logged(logs) == {}, "of other sources"
