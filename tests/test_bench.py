"""The benchmark tells the truth: bytes, checks, goals, JSON; the digits' gradients are right."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuact
from gpuact.libraries import numpy_dtype

pytest.importorskip("rich")
from bench import cases, digits, measure, providers, report, suite
from bench.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
Array = Any

EVERY = {case.name: case for case in cases.GPU + cases.CPU}


def small(case: cases.Case) -> cases.Case:
    """The case on arrays that cost nothing, of lengths that all differ."""
    return replace(case, shape=(5, 7, 3, 2)[: len(case.shape)])


def outputs(result: Any) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)


# -- cases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_bytes_are_those_of_the_arrays_read_and_written(name: str) -> None:
    case = small(EVERY[name])
    read = cases.inputs(case)
    with gpuact.using("numpy"):
        written = outputs(getattr(gpuact, case.function)(*read.values(), **case.options))
    # one number an element or a row; slopes, one a channel, are not counted
    counted = [a for a in (*read.values(), *written) if a.shape in (case.shape, case.shape[:1])]
    assert case.bytes == sum(array.nbytes for array in counted)
    assert case.formula.startswith(f"{case.per_element}N")


def test_the_design_cases_are_all_there() -> None:
    """Twelve cases as the design states them: function, bytes an element, number of elements."""
    stated = {
        ("relu", 4, 2**28),
        ("linear", 4, 2**28),
        ("sigmoid", 8, 2**27),
        ("tanh", 8, 2**27),
        ("sigmoid_backward", 6, 2**27),
        ("tanh_backward", 6, 2**27),
        ("prelu_backward", 6, 64 * 256 * 56 * 56),
        *(("softmax", 4, 32768 * n) for n in (256, 1024, 4096, 65536)),
        ("softmax", 4, 8192 * 4096),
        ("softmax", 4, 8192 * 262144),
        ("softmax", 8, 16384 * 131072),
        ("softmax_backward", 6, 32768 * 8192),
        ("log_softmax", 4, 32768 * 50257),
        ("cross_entropy", 2, 8192 * 128256),
        ("cross_entropy_with_grad", 4, 8192 * 128256),
        ("softmax", 8, 8192 * 8192),
        ("softmax", 4, 4 * 131072),
        ("relu", 4, 128 * 1024),
    }
    assert {(c.function, c.per_element, math.prod(c.shape)) for c in cases.GPU} == stated
    assert {c.per_row for c in cases.GPU if c.base == "cross_entropy"} == {12}


def test_cases_have_names_of_their_own() -> None:
    assert len(EVERY) == len(cases.GPU) + len(cases.CPU)
    assert "softmax float32 8192×8192 axis 0" in EVERY
    assert "relu bfloat16 2^28" in EVERY


@pytest.mark.parametrize("name", EVERY)
def test_inputs_are_random_and_of_the_dtype(name: str) -> None:
    case = small(EVERY[name])
    for key, array in cases.inputs(case).items():
        assert array.dtype == (np.int64 if key == "target" else numpy_dtype(case.dtype))
        assert np.count_nonzero(array) > array.size // 3 or key == "target"


def test_goals_name_cases_and_rivals_that_are_run() -> None:
    names = {provider.name for provider in providers.ON_CPU}
    assert len(cases.GOALS) == 4
    for goal in cases.GOALS:
        assert goal.case in cases.CPU
        assert goal.rival in names
    sigmoid, relu = cases.GOALS[0], cases.GOALS[2]
    assert sigmoid.held(sigmoid.value(ours=1.0, theirs=1.3))
    assert not sigmoid.held(sigmoid.value(ours=1.0, theirs=1.29))
    assert relu.held(relu.value(ours=1.15, theirs=1.0))
    assert not relu.held(relu.value(ours=1.16, theirs=1.0))


# -- who is right ---------------------------------------------------------------------------------


def rows_of(case: cases.Case, *who: providers.Provider) -> dict[str, suite.Row]:
    found = [row for rows in suite.run([case], who, 0.001) for row in rows]
    return {row.provider: row for row in found}


def planted(function: Any) -> providers.Provider:
    return providers.Provider("planted", "numpy", lambda: None, lambda case: function)


SIGMOID = cases.Case("sigmoid", "float32", (1000,), 8)


def test_a_right_provider_is_timed_beside_the_copy() -> None:
    rows = rows_of(SIGMOID, planted(gpuact.sigmoid))
    assert list(rows) == ["copy", "planted"]
    for row in rows.values():
        assert row.status == "timed"
        assert row.timing is not None
        assert 0 < row.timing.low <= row.timing.median <= row.timing.high
        assert row.bytes_per_second == 8000 / row.timing.median
    assert rows["copy"].share_of_copy == 1
    copy, ours = rows["copy"].timing, rows["planted"].timing
    assert rows["planted"].share_of_copy == copy.median / ours.median


def off_at_one(x: Array) -> Array:
    y = gpuact.sigmoid(x)
    y[-1] *= 1.001
    return y


def nan_at_one(x: Array) -> Array:
    y = gpuact.sigmoid(x)
    y[17] = np.nan
    return y


def raising(x: Array) -> Array:
    raise RuntimeError("no such kernel\nand a page of trace")


@pytest.mark.parametrize(
    ("function", "status", "reason"),
    [
        (off_at_one, "wrong", "1 of 1000 values differ: "),
        (nan_at_one, "wrong", "1 of 1000 values differ: nan came, "),
        (lambda x: gpuact.sigmoid(x).astype(np.float64), "wrong", "dtype float64 came, float32 "),
        (lambda x: gpuact.sigmoid(x)[:-1], "wrong", "shape (999,) came, (1000,) is expected"),
        (lambda x: (x, x), "wrong", "2 arrays came, 1 are expected"),
        (raising, "failed", "RuntimeError: no such kernel"),
    ],
)
def test_a_planted_fault_is_a_row_that_says_so(function: Any, status: str, reason: str) -> None:
    row = rows_of(SIGMOID, planted(function))["planted"]
    assert (row.status, row.timing) == (status, None)
    assert row.reason.startswith(reason)
    assert "\n" not in row.reason


def test_a_large_case_is_compared_by_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "CHECKED", 1000)
    case = cases.Case("softmax", "float32", (100, 40), 8)

    def last_row_wrong(x: Array) -> Array:
        y = gpuact.softmax(x)
        y[-1] = 0
        return y

    assert suite._sample(case) == slice(4, None, 5)
    row = rows_of(case, planted(last_row_wrong))["planted"]
    assert row.reason.startswith("40 of 800 values differ: 0 came, ")


def test_a_provider_that_cannot_run_says_why() -> None:
    absent = providers.Provider("absent", "cupy", lambda: "no GPU here", lambda case: None)
    rows = rows_of(SIGMOID, planted(gpuact.sigmoid), absent)
    assert (rows["absent"].status, rows["absent"].reason) == ("unavailable", "no GPU here")
    assert list(rows_of(SIGMOID, absent)) == ["absent"]


def test_a_provider_without_the_function_has_no_row() -> None:
    assert providers._scipy(small(EVERY["relu float32 2^24"])) is None
    rows = rows_of(SIGMOID, planted(gpuact.sigmoid), planted(None))
    assert list(rows) == ["copy", "planted"]


RIVALS = {provider.name: provider for provider in providers.ON_CPU}


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("name", EVERY)
def test_every_spelling_computes_what_it_should(name: str, rival: str) -> None:
    provider, case = RIVALS[rival], small(EVERY[name])
    reason = provider.why_not()
    if reason is not None:
        pytest.skip(reason)
    if provider.spell(case) is not None:
        assert rows_of(case, provider)[rival].reason == ""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("function", providers.ELEMENTWISE)
def test_plain_cupy_kernels_compute_what_they_should(function: str, dtype: str) -> None:
    """Executed by the PTX interpreter, so that the rival is known to be right without a GPU."""
    pytest.importorskip("cupy")
    from tests.ptxrun import run_ptx
    from tests.ptxrun.cupyrun import elementwise_source, parsed

    stated = next(case for case in cases.GPU if case.function == function)
    case = replace(stated, dtype=dtype, shape=(100,))
    arrays = cases.inputs(case)
    out = np.full(case.shape, np.nan, numpy_dtype(dtype))
    kernel = providers.plain_kernel(function)
    source = elementwise_source(kernel, (*arrays.values(), *case.options.values()), [out])
    run_ptx(parsed(source.ptx(90)), kernel.name, 1, 128, source.args)
    assert suite.mistake(case, (out,), suite.reference(case, arrays)) is None


# -- timing ---------------------------------------------------------------------------------------


def test_inputs_go_around_the_cache_three_times_over() -> None:
    place = measure.Host()
    place.cache = 1000
    arrays = [np.arange(10.0), np.arange(20.0)]
    copies = measure.rotated(place, arrays)
    assert len(copies) == math.ceil(1000 / 240)
    assert len({x.ctypes.data for args in copies for x in args}) == 2 * len(copies)
    for args in copies:
        assert all(np.array_equal(a, b) for a, b in zip(args, arrays, strict=True))


def test_contenders_take_turns() -> None:
    met: list[str] = []

    class Clock(measure.Host):
        batch = 0.0

        def seconds(self, calls: measure.Calls, count: int) -> float:
            for i in range(count):
                calls[i % len(calls)]()
            return 0.001 * count

    contenders = {
        name: (Clock(), [lambda name=name: met.append(name)]) for name in ("first", "second")
    }
    timings = measure.interleaved(contenders, 0.02)
    warm_up = 2 * (measure.WARM_UP + 1)
    assert met[warm_up:] == ["first", "second"] * 10
    assert timings["first"] == measure.Timing(0.001, 0.001, 0.001, 10)


def test_a_host_batch_is_timed_by_the_clock_on_the_wall() -> None:
    calls: list[int] = []
    seconds = measure.Host().seconds([lambda: calls.append(0), lambda: calls.append(1)], 5)
    assert calls == [0, 1, 0, 1, 0]
    assert 0 < seconds < 1


# -- digits ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> digits.Digits:
    pytest.importorskip("sklearn")
    with gpuact.using("numpy"):
        return digits.digits()


@pytest.mark.parametrize("activation", digits.HIDDEN)
def test_gradients_written_by_hand_equal_numeric_ones(activation: str, data: digits.Digits) -> None:
    with gpuact.using("numpy"):
        network = digits.Network(activation, "float64")
        x, target = np.asarray(data.x[:16], np.float64), data.target[:16]
        loss, gradients = network.gradients(x, target)
        assert len(gradients) == len(network.parameters)
        rng, step = np.random.default_rng(2), 1e-5
        for p, gradient in zip(network.parameters, gradients, strict=True):
            assert gradient.shape == p.shape
            # along a random direction; so small that next to no unit passes its kink
            direction = rng.standard_normal(p.shape)
            direction /= np.linalg.norm(direction)
            sides = []
            for sign in (1, -1):
                p += sign * step * direction
                sides.append(network.gradients(x, target)[0])
                p -= sign * step * direction
            numeric = (sides[0] - sides[1]) / (2 * step)
            assert abs(numeric - (gradient * direction).sum()) < 1e-7
        assert loss > 0


@pytest.mark.parametrize("activation", digits.CAPABLE)
def test_a_few_epochs_learn_most_of_it(activation: str, data: digits.Digits) -> None:
    with gpuact.using("numpy"):
        trained = digits.train(activation, data, epochs=2)
    assert trained.accuracy > 0.8
    assert trained.enough == (trained.accuracy >= 0.95)
    assert trained.seconds > 0


def test_the_split_is_fixed_and_apart(data: digits.Digits) -> None:
    assert (data.x.shape, data.test_x.shape) == ((1437, 64), (360, 64))
    assert (data.x.min(), data.x.max()) == (0, 1)
    assert np.bincount(data.test_target).min() > 20
    with gpuact.using("numpy"):
        again = digits.digits()
    assert np.array_equal(again.test_x, data.test_x)


def test_dz_is_s_minus_y(data: digits.Digits) -> None:
    with gpuact.using("numpy"):
        assert digits.difference_from_s_minus_y() < 1e-6


# -- the run --------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's suite with arrays that cost nothing, on NumPy and SciPy."""
    tiny = tuple(small(case) for case in cases.CPU)
    monkeypatch.setattr("bench.run.CPU", tiny)
    monkeypatch.setattr("bench.run.ON_CPU", providers.ON_CPU[:3])
    goals = tuple(replace(goal, case=small(goal.case)) for goal in cases.GOALS)
    monkeypatch.setattr("bench.suite.GOALS", goals)
    monkeypatch.setattr("gpuact.dispatch.ENVIRONMENT", "numpy")


@pytest.mark.usefixtures("quick")
def test_the_cpu_suite_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy")
    assert main(["--suite", "cpu", "--seconds", "0.001", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "GB/s" in printed
    assert "gpuact on NumPy" in printed
    assert "≥ 1.3 times as fast" in printed

    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["schema"] == 1
    assert set(result) == {
        *("schema", "time", "commit", "changed_since_commit", "kernels", "machine", "versions"),
        *("settings", "rows", "goals", "digits"),
    }
    assert set(result["machine"]) == {"system", "processor", "cores", "gpus"}
    assert {"python", "numpy", "gpuact"} <= set(result["versions"])
    assert result["settings"]["suite"] == "cpu"
    assert len(result["kernels"]) == 64
    assert [goal["rival"] for goal in result["goals"]] == ["NumPy", "SciPy", "NumPy", "SciPy"]
    assert all(isinstance(goal["held"], bool) and goal["value"] for goal in result["goals"])
    assert {row["status"] for row in result["rows"]} == {"timed"}
    for row in result["rows"]:
        assert set(row["timing"]) == {"median", "low", "high", "samples"}
        assert row["bytes_per_second"] == row["bytes"] / row["timing"]["median"]
        assert row["case"]
        assert row["bytes_formula"]


@pytest.mark.usefixtures("quick")
def test_check_fails_on_a_missed_goal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    goals = tuple(replace(goal, limit=1e9) for goal in suite.GOALS[:1])
    monkeypatch.setattr("bench.suite.GOALS", goals)
    assert main(["--suite", "cpu", "--seconds", "0.001"]) == 0
    assert main(["--suite", "cpu", "--seconds", "0.001", "--check"]) == 1
    printed = capsys.readouterr().out
    assert "missed" in printed
    assert f"check: {goals[0].case.name} beside NumPy: missed" in printed


@pytest.mark.usefixtures("quick")
def test_check_fails_on_a_wrong_result_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.suite.GOALS", ())
    assert main(["--suite", "cpu", "--seconds", "0.001", "--check"]) == 0
    wrong = replace(planted(lambda *x, **options: x[0] + 1), name=providers.OURS)
    monkeypatch.setattr("bench.run.ON_CPU", (wrong,))
    assert main(["--suite", "cpu", "--seconds", "0.001", "--check"]) == 1


@pytest.mark.usefixtures("quick")
def test_digits_print_their_table(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    assert main(["digits", "--epochs", "1", "--check"]) == 1  # nobody learns it in one
    printed = capsys.readouterr().out
    for activation in digits.HIDDEN:
        assert activation in printed
    assert "dZ of cross_entropy_with_grad is S − Y" in printed


def test_the_gpu_suite_says_why_it_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    if any(provider.why_not() is None for provider in providers.ON_GPU):
        pytest.skip("a GPU answers here")
    assert main(["--suite", "gpu"]) == 0
    printed = capsys.readouterr().out
    for provider in providers.ON_GPU:
        assert f"{provider.name}: unavailable: " in printed


@pytest.mark.parametrize("missing", ["rich", "sklearn"])
def test_a_missing_package_is_one_sentence(missing: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; import bench.__main__ as b; "
    done = subprocess.run(
        [sys.executable, "-c", script + "sys.exit(b.main([]))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'pip install "gpuact[bench]"' in done.stderr


def test_the_kernel_hash_follows_the_sources(tmp_path: Path) -> None:
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "formulas.cuh").write_text("a")
    before = report.kernel_hash(tmp_path)
    (tmp_path / "cupy" / "notes.txt").write_text("not a source")
    assert report.kernel_hash(tmp_path) == before
    (tmp_path / "cupy" / "formulas.cuh").write_text("b")
    assert report.kernel_hash(tmp_path) != before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.0, "2.00 s"), (0.0123, "12.3 ms"), (1.5e-4, "150 µs"), (3.14e-8, "0.03 µs")],
)
def test_durations_have_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text
