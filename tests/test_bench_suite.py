"""Who is right, and what becomes of a case: a planted fault is a row that says so, not the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gpuact
from bench import cases, measure, providers, suite, tables
from gpuact.libraries import numpy_dtype
from tests.benchmarks import (
    EVERY,
    RIVALS,
    SIGMOID,
    WATCHED,
    chain,
    judged,
    on_torch,
    outputs,
    planted,
    raising,
    rows_of,
)

Array = Any
PLANTED = planted(gpuact.sigmoid)

# -- a row ----------------------------------------------------------------------------------------


def test_a_right_provider_is_timed_beside_the_copy() -> None:
    rows = rows_of(SIGMOID, PLANTED)
    assert list(rows) == ["copy", "planted"]
    for row in rows.values():
        assert row.status == "timed"
        assert row.timing is not None
        assert 0 < row.timing.low <= row.timing.median <= row.timing.high
        assert row.bytes_per_second == 8000 / row.timing.median
        assert (row.method, row.call, row.note) == ("clock", None, "")  # a CPU has no other
    assert rows["copy"].share_of_copy == 1
    copy, ours = rows["copy"].timing, rows["planted"].timing
    assert rows["planted"].share_of_copy == copy.median / ours.median


def test_a_row_says_what_its_case_is() -> None:
    case = replace(tables.ROW_LIMITS[-1], shape=(5, 7))
    row = suite.row_of(case, "torch", "failed", "no such kernel", backend="cupy")
    assert row == suite.Row(
        *("softmax bfloat16 5×7", 140, "4N", "torch", "failed", "no such kernel"),
        suite="rows",
        function="softmax",
        dtype="bfloat16",
        shape=(5, 7),
        backend="cupy",
        headline=True,
    )
    chained = suite.row_of(replace(chain("relu(scale·x + bias)", True), shape=(5, 7)), "torch")
    told = chained.suite, chained.function, chained.headline, chained.status, chained.reason
    assert told == ("fused", "fused_backward", False, "timed", "")


@pytest.mark.parametrize("headline", [False, True])
def test_every_row_of_a_case_says_what_it_is(headline: bool) -> None:
    case = replace(SIGMOID, headline=headline)
    wrong = planted(lambda x: x, "wrong", backend="cupy")
    rows = rows_of(case, replace(PLANTED, backend="numpy"), wrong, planted(raising, "raising"))
    assert list(rows) == ["copy", "planted", "wrong", "raising"]
    for row in rows.values():
        about = row.case, row.bytes, row.bytes_formula, row.suite, row.function, row.dtype
        assert about == (SIGMOID.name, 8000, "8N", "elementwise", "sigmoid", "float32")
        assert (row.shape, row.headline) == ((1000,), headline)
    assert [row.backend for row in rows.values()] == ["", "numpy", "cupy", ""]


def test_it_is_told_whose_turn_it_is() -> None:
    told: list[str] = []
    broken = replace(planted(None, "broken"), spell=raising)
    rows_of(SIGMOID, PLANTED, planted(raising, "raising"), broken, at=told.append)
    assert told[:4] == ["copy", "planted", "raising", "broken"]  # each asked and checked
    rest = told[4:]
    assert rest == ["copy", "planted"] * (len(rest) // 2)
    assert len(rest) >= 2 * (1 + measure.ROUNDS[0])


def test_a_provider_without_the_function_has_no_row() -> None:
    assert providers._scipy(replace(SIGMOID, function="relu")) is None
    assert providers._scipy(replace(SIGMOID, dtype="bfloat16")) is None
    rows = rows_of(SIGMOID, PLANTED, planted(None, "lacking"))
    assert list(rows) == ["copy", "planted"]


def test_who_compiles_is_asked_where_the_case_says_so() -> None:
    compiles = planted(gpuact.sigmoid, "compiles", compiles=True)
    assert list(rows_of(SIGMOID, PLANTED, compiles)) == ["copy", "planted"]
    case = replace(SIGMOID, compiled=True)
    assert list(rows_of(case, PLANTED, compiles)) == ["copy", "planted", "compiles"]


# -- a planted fault ------------------------------------------------------------------------------


def off_at_one(x: Array) -> Array:
    y = gpuact.sigmoid(x)
    y[-1] *= 1.001
    return y


def nan_at_one(x: Array) -> Array:
    y = gpuact.sigmoid(x)
    y[17] = np.nan
    return y


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
    assert (row.error_ulp, row.peak_bytes, row.bytes_per_second) == (None, None, 0)


@pytest.mark.parametrize("name", ["relu float32 5", "softmax_jacobian float32 5×7"])
def test_what_is_computed_in_another_dtype_is_wrong(name: str) -> None:
    case = EVERY[name]
    wide = planted(lambda x: case.public(x).astype(np.float64))
    row = rows_of(case, wide)["planted"]
    assert row.reason == "dtype float64 came, float32 is expected"


def test_a_loss_may_be_of_another_dtype() -> None:
    case = EVERY["cross_entropy bfloat16 5×7"]
    half = planted(lambda *a, **o: case.public(*a, **o).astype(numpy_dtype("bfloat16")))
    assert rows_of(case, half)["planted"].status == "timed"


def test_a_function_that_cannot_be_spelled_is_a_row() -> None:
    broken = replace(PLANTED, name="broken", spell=raising)
    row = rows_of(SIGMOID, PLANTED, broken)["broken"]
    assert (row.status, row.reason) == ("failed", "RuntimeError: no such kernel")


def test_a_large_case_is_compared_by_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suite.CHECKED, "rows", 1000)
    case = cases.Case("softmax", "float32", (100, 40))

    def last_row_wrong(x: Array) -> Array:
        y = gpuact.softmax(x)
        y[-1] = 0
        return y

    assert suite._sample(case) == slice(4, None, 5)
    row = rows_of(case, planted(last_row_wrong))["planted"]
    assert row.reason.startswith("40 of 800 values differ: 0 came, ")


@pytest.mark.parametrize("name", [name for name, case in EVERY.items() if not case.whole])
def test_rows_are_compared_with_those_of_the_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays that repeat are computed in part; the result is what the whole gives there."""
    monkeypatch.setattr(cases, "RANDOM", 100)
    for kind in suite.CHECKED:
        monkeypatch.setitem(suite.CHECKED, kind, 100)
    case = replace(EVERY[name], shape=(61, *EVERY[name].shape[1:]))
    arrays = cases.sources(case)
    expected = suite.reference(case, arrays)
    with gpuact.using("numpy"):
        full = outputs(case.public(*map(cases.whole, arrays.values()), **case.options))
    step = suite._sample(case).step
    assert step == (max(1, math.ceil(math.prod(case.shape) / 100)) | 1)
    assert len(expected[0]) == math.ceil(61 / step)
    for part, y in zip(expected, full, strict=True):
        assert np.array_equal(part, y[(61 - 1) % step :: step], equal_nan=True)


def test_an_infinite_sum_is_right_where_it_is_expected() -> None:
    case = cases.Case("linear_backward", "float16", (3,), tables.AFFINE)
    total = np.asarray(np.inf, np.float16)
    assert suite.mistake(case, (total,), (total,)) is None
    assert suite.mistake(case, (-total,), (total,)) is not None
    assert suite.mistake(case, (np.asarray(1, np.float16),), (total,)) is not None
    assert suite.mistake(case, (np.asarray(np.nan, np.float16),), (total,)) is not None


def miscounting(case: cases.Watched, number: int, by: float, **more: Any) -> providers.Provider:
    """Right, but for one of the moments."""

    def function(given: Array) -> Any:
        *y, moments = outputs(case.public(given))
        moments[number] += by
        return *y, moments

    return planted(function, **more)


@pytest.mark.parametrize("name", [n for n, c in WATCHED.items() if c.dtype == "float32"])
@pytest.mark.parametrize(
    ("number", "word", "off"),
    [(0, "count", 1.0), (1, "mean", 1e-3), (2, "m2", 10.0), (3, "zeros", 1.0), (4, "saturated", 1)],
)
def test_each_of_the_moments_is_looked_at_by_itself(
    number: int, word: str, off: float, name: str
) -> None:
    """The mean too, which is a millionth of others; a count to the last element."""
    case = replace(WATCHED[name], shape=(1000, 100))
    row = rows_of(case, miscounting(case, number, off))["planted"]
    assert row.status == "wrong"
    assert row.reason.startswith(f"{word}: ")
    assert row.reason.endswith(" is expected")
    right = rows_of(case, miscounting(case, number, 0.0))["planted"]
    assert (right.status, right.reason, right.error_ulp) == ("timed", "", None)
    nan = rows_of(case, miscounting(case, number, math.nan))["planted"]
    assert nan.reason.startswith(f"{word}: nan came, ")


def test_an_output_that_is_watched_is_looked_at_too() -> None:
    case = WATCHED["activation_with_stats relu float32 4×7"]

    def off(x: Array) -> Any:
        y, moments = case.public(x)
        y[-1, -1] += 1
        return y, moments

    assert rows_of(case, planted(off))["planted"].reason.startswith("1 of 28 values differ: ")
    alone = rows_of(case, planted(lambda x: case.public(x)[0]))["planted"]
    assert alone.reason == "1 arrays came, 2 are expected"


@pytest.mark.parametrize(
    ("by", "backend", "status"),
    [(10.0, "", "timed"), (11.0, "", "wrong"), (1.0, "numpy", "wrong")],
)
def test_who_counts_before_rounding_may_stray_a_little(
    by: float, backend: str, status: str
) -> None:
    """A rival, in a half type: one element in a thousand. We may not."""
    case = replace(WATCHED["activation_stats sigmoid bfloat16 4×7"], shape=(100, 100))
    row = rows_of(case, miscounting(case, 4, by, backend=backend))["planted"]
    assert row.status == status


# -- a case that comes to nothing -----------------------------------------------------------------


class Place(measure.Host):
    """NumPy's, whose device is lost when a test says so."""

    def __init__(self) -> None:
        self.lost = False
        self.released = 0

    def synchronize(self) -> None:
        if self.lost:
            raise RuntimeError("an illegal memory access was encountered")

    def release(self) -> None:
        self.released += 1


def test_a_case_that_cannot_be_set_up_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays that do not fit a GPU, say."""
    put = measure.Host.put

    def full(self: measure.Host, array: Array) -> Array:
        if array.size > 1000:
            raise MemoryError("out of memory\nand who has it")
        return put(self, array)

    monkeypatch.setattr(measure.Host, "put", full)
    place = Place()
    two = PLANTED, planted(gpuact.sigmoid, "ours", backend="numpy")
    lost = rows_of(replace(SIGMOID, shape=(2000,)), *two, place=place)
    assert [(row.provider, row.backend) for row in lost.values()] == [
        ("ours", "numpy"),
    ]
    for row in lost.values():
        assert (row.status, row.timing, row.shape) == ("failed", None, (2000,))
        assert row.reason == "MemoryError: out of memory"
    found = rows_of(SIGMOID, *two, place=place)
    assert [row.status for row in found.values()] == ["timed"] * 3
    assert place.released == 2


def losing(place: Place, then: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def lost(x: Array) -> Array:
        place.lost = True
        return then(x)

    return lost


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        (raising, "RuntimeError: no such kernel"),
        (lambda x: x[:-1], r"shape \(999,\) came, \(1000,\) is expected"),
    ],
)
def test_who_loses_the_device_ends_the_process(then: Any, reason: str) -> None:
    """Whoever was asked next would be blamed for it."""
    place, after = Place(), []
    following = planted(lambda x: after.append(x), "following")
    with pytest.raises(suite.Broken, match=f"^{reason}$"):
        rows_of(SIGMOID, planted(losing(place, then)), following, place=place)
    assert not after
    assert place.released == 1


def test_who_loses_the_device_in_the_middle_of_timing_ends_the_process() -> None:
    place, calls = Place(), []

    def later(x: Array) -> Array:
        calls.append(0)
        return losing(place, raising)(x) if len(calls) > 3 else gpuact.sigmoid(x)

    with pytest.raises(suite.Broken, match="RuntimeError: no such kernel"):
        rows_of(SIGMOID, planted(later), place=place)
    assert place.released == 1


# -- timing where there are graphs ----------------------------------------------------------------


class Recording(Place):
    """A place whose graphs are the calls themselves."""

    graphs = True
    recording = False

    def recorded(self, calls: measure.Calls) -> Any:
        self.recording = True
        try:
            for call in calls:
                call()
        finally:
            self.recording = False
        return lambda: [call() for call in calls]


def test_the_work_is_timed_in_a_graph_and_the_call_beside_it() -> None:
    rows = rows_of(SIGMOID, PLANTED, place=Recording())
    assert list(rows) == ["copy", "planted"]
    for row in rows.values():
        assert (row.status, row.method, row.note) == ("timed", "graph", "")
        assert 0 < row.call.low <= row.call.median <= row.call.high
        assert row.bytes_per_second == 8000 / row.timing.median
    copy, ours = rows["copy"].timing, rows["planted"].timing
    assert rows["planted"].share_of_copy == copy.median / ours.median


def unrecordable(place: Recording, function: Any) -> Callable[..., Any]:
    def call(*args: Array, **options: Any) -> Any:
        if place.recording:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return function(*args, **options)

    return call


NO_GRAPH = (
    "no CUDA graph of it (RuntimeError: operation not permitted when stream is capturing): "
    "launches are timed along"
)


def test_what_cannot_be_recorded_is_timed_as_plain_calls() -> None:
    place = Recording()
    other = planted(unrecordable(place, gpuact.sigmoid), "other")
    rows = rows_of(SIGMOID, PLANTED, other, place=place)
    told = {who: (row.status, row.method, row.note) for who, row in rows.items()}
    assert told == {
        "copy": ("timed", "graph", ""),
        "planted": ("timed", "graph", ""),
        "other": ("timed", "events", NO_GRAPH),
    }
    assert all(row.call.median > 0 for row in rows.values())


def test_a_note_is_not_lost_to_another() -> None:
    place = Recording()
    overwrites = planted(unrecordable(place, gpuact.sigmoid), overwrites=("sigmoid",))
    row = rows_of(SIGMOID, overwrites, place=place)["planted"]
    assert row.note == f"{suite.OVERWRITES}; {NO_GRAPH}"
    assert row.method == "events"


def test_it_is_told_whose_graph_is_recorded() -> None:
    told: list[str] = []
    rows_of(SIGMOID, PLANTED, place=Recording(), at=told.append)
    assert told[:4] == ["copy", "planted", "copy", "planted"]  # checked; then both recorded
    rest = told[4:]
    assert rest == ["copy", "planted"] * (len(rest) // 2)
    assert len(rest) >= 2 * 2 * (1 + measure.ROUNDS[0])  # in a graph and as plain calls


def test_who_loses_the_device_in_a_graph_ends_the_process() -> None:
    place = Recording()

    def call(x: Array) -> Array:
        return losing(place, raising)(x) if place.recording else gpuact.sigmoid(x)

    with pytest.raises(suite.Broken, match="RuntimeError: no such kernel"):
        rows_of(SIGMOID, planted(call), place=place)
    assert place.released == 1


def test_plain_calls_are_no_more_than_the_device_keeps_up_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By what the copy needs of it."""
    given: list[tuple[type, float]] = []
    unwaited = measure.Unwaited

    def spied(place: measure.Host, once: float) -> measure.Unwaited:
        given.append((type(place), once))
        return unwaited(place, once)

    monkeypatch.setattr(suite, "Unwaited", spied)
    rows = rows_of(SIGMOID, PLANTED, place=Recording())
    assert given == [(Recording, rows["copy"].timing.median)] * 2


# -- the copy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["numpy", "torch on the CPU"])
@pytest.mark.parametrize(
    ("case", "own"),
    [
        (SIGMOID, True),  # half of the bytes is x
        (cases.Case("cross_entropy", "float32", (100, 10), tables.ROWWISE), True),  # and less
        (cases.Case("sigmoid_backward", "float32", (1000,)), False),
    ],
)
def test_the_copy_reads_half_of_the_bytes(where: str, case: cases.Case, own: bool) -> None:
    if where != "numpy":
        pytest.importorskip("torch")
    place = measure.PLACES[where]()
    x = next(iter(cases.inputs(case).values()))
    held = [(place.put(x),), (place.copy(place.put(x)),)]
    repeated = next(iter(cases.sources(case).values()))
    for given in (x, repeated):
        calls = suite._copies(case, place, given, held)
        for call in calls:
            copied = place.take(call())
            assert copied.nbytes == case.bytes // 2
            assert np.array_equal(copied, np.resize(x.reshape(-1).view(np.uint8), copied.nbytes))
        assert len(calls) == (2 if own else 1)


# -- memory ---------------------------------------------------------------------------------------


def test_what_a_call_takes_at_once_is_counted() -> None:
    def twice(x: Array) -> Array:
        first = gpuact.sigmoid(x)
        return gpuact.sigmoid(x) + 0 * first

    case = replace(SIGMOID, shape=(100_000,))
    rows = rows_of(case, PLANTED, planted(twice, "twice"))
    assert rows["copy"].peak_bytes is None
    assert rows["planted"].peak_bytes >= 400_000
    assert rows["twice"].peak_bytes >= 800_000


def test_nobody_counts_torch_s_memory_on_a_cpu() -> None:
    torch = pytest.importorskip("torch")
    assert rows_of(SIGMOID, on_torch(torch.sigmoid))["torch"].peak_bytes is None


# -- the error ------------------------------------------------------------------------------------

DTYPES = ("float16", "bfloat16", "float32")
SPREAD = np.linspace(1, 1.9, 1000)  # one ulp is the same for all of them
ULP = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_rounded_once_is_half_an_ulp_off(dtype: str) -> None:
    rng = np.random.default_rng(0)
    exact = rng.standard_normal(10_000)
    found = suite.error_ulp((exact.astype(numpy_dtype(dtype)),), (exact,))
    assert 0.4 < found <= 0.5
    assert suite.error_ulp((exact,), (exact,)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ulps", [1, 3, -7])
def test_a_planted_error_is_found_as_large_as_it_is(dtype: str, ulps: int) -> None:
    rounded = SPREAD.astype(numpy_dtype(dtype))
    off = rounded.copy()
    off[17] = rounded[17].astype(np.float64) + ulps * ULP[dtype]
    assert suite.error_ulp((off,), (rounded.astype(np.float64),)) == abs(ulps)
    assert abs(suite.error_ulp((rounded, off), (SPREAD, SPREAD)) - abs(ulps)) <= 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_a_value_is_small_the_mean_s_ulp_counts(dtype: str) -> None:
    """What cancels has no digits to be right in."""
    exact = np.append(SPREAD, 1e-4)
    off = exact.copy()
    off[-1] += 2 * ULP[dtype]
    assert suite.error_ulp((off.astype(np.float32),), (exact,)) == pytest.approx(
        2 * ULP[dtype] / ULP["float32"], rel=1e-3
    )
    large = np.append(SPREAD, 16.0)
    off = large.copy()
    off[-1] += 32 * ULP["float32"]
    assert suite.error_ulp((off.astype(np.float32),), (large,)) == pytest.approx(2, rel=0.3)


def test_what_is_infinite_is_no_error() -> None:
    exact = np.array([np.inf, 1.0, -np.inf])
    assert suite.error_ulp((exact.astype(np.float32),), (exact,)) == 0
    off = exact + [0, 3 * ULP["float32"], 0]
    assert suite.error_ulp((off.astype(np.float32),), (exact,)) == 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", ["sigmoid", "tanh_backward", "softmax", "relu"])
def test_a_row_states_the_error_of_its_provider(function: str, dtype: str) -> None:
    """Ours rounds once, or almost; who is off by more is timed and told so."""
    case = cases.Case(function, dtype, (100, 40))
    planted_ulps = 16 if dtype == "float32" else 4

    def off(*args: Array) -> Array:
        y = case.public(*args)
        at = np.unravel_index(np.abs(y.astype(np.float32)).argmax(), y.shape)
        ulp = 2.0 ** (np.frexp(np.float64(y[at]))[1] - 1 - suite.DIGITS[dtype])
        y[at] = np.float64(y[at]) + planted_ulps * ulp
        return y

    rows = rows_of(case, planted(case.public), planted(off, "off"))
    assert rows["copy"].error_ulp is None
    own = rows["planted"].error_ulp
    assert own <= (5 if dtype == "float32" else 0.6)
    assert (own == 0) == (function == "relu")
    assert rows["off"].status == "timed"
    assert abs(rows["off"].error_ulp - planted_ulps) <= own


@pytest.mark.parametrize("name", EVERY)
def test_the_error_of_every_case_is_beside_the_truth(name: str) -> None:
    """In float64, of the very inputs; NumPy's backend is a few ulp off, and none where none is."""
    case = EVERY[name]
    arrays = cases.sources(case)
    exact = suite.truth(case, arrays)
    if case.whole or case.dtype == "float64":
        assert exact is None
        return
    expected = suite.reference(case, arrays)
    assert {y.dtype.name for y in exact} == {"float64"}
    assert [y.shape for y in exact] == [y.shape for y in expected]
    for y, want in zip(expected, exact, strict=True):
        # a half type's result is rounded to it once; a loss is of float32
        assert suite.error_ulp((y,), (want,)) <= (5 if y.dtype == np.float32 else 0.6)


def test_an_error_is_none_where_nobody_can_tell() -> None:
    for case in (
        replace(SIGMOID, dtype="float64"),
        cases.Case("softmax", "float32", (50, 40), {"axis": 0}),
        cases.Case("linear_backward", "float32", (1000,), tables.AFFINE),
    ):
        row = rows_of(case, planted(case.public))["planted"]
        assert (row.status, row.error_ulp) == ("timed", None)


def test_what_is_checked_has_three_parts() -> None:
    arrays = cases.sources(SIGMOID)
    expected, exact = suite.reference(SIGMOID, arrays), suite.truth(SIGMOID, arrays)
    x, host = cases.whole(arrays["x"]), measure.Host()

    def found(function: Any, **more: Any) -> suite.Checked:
        return suite.checked(SIGMOID, host, lambda: function(x), expected, **more)

    assert found(gpuact.sigmoid) == ("timed", "", None)
    status, reason, error = found(gpuact.sigmoid, exact=exact)
    assert (status, reason) == ("timed", "")
    assert 0 < error < 2
    assert found(raising, exact=exact) == ("failed", "RuntimeError: no such kernel", None)
    wrong = found(off_at_one, exact=exact)
    assert (wrong.status, wrong.error_ulp) == ("wrong", None)


# -- chains ---------------------------------------------------------------------------------------

DROPPING = replace(chain(tables.EVERYTHING), shape=(64, 96), dtype="float32")


def dropped(x: Array, scale: Array, bias: Array, p: float, divisor: float) -> Array:
    import torch

    y = torch.tanh(scale * x + bias)
    return y * (torch.rand_like(y) >= p) / divisor


@pytest.mark.parametrize(
    ("p", "divisor", "status", "reason"),
    [
        (0.1, 0.9, "timed", ""),
        (0.0, 0.9, "wrong", "0.000 of the values are dropped, 0.1 is expected"),
        (0.2, 0.9, "wrong", "of the values are dropped, 0.1 is expected"),
        (0.1, 1.0, "wrong", "values differ: "),
    ],
)
def test_a_mask_of_its_own_must_drop_as_many_and_scale_the_rest(
    p: float, divisor: float, status: str, reason: str
) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)

    def rival(x: Array, scale: Array, bias: Array, gate: Array, residual: Array) -> Array:
        return dropped(x, scale, bias, p, divisor) * gate + residual

    found = judged(DROPPING, on_torch(rival))
    assert found[0] == status
    assert reason in found[1]


def test_whose_mask_is_its_own_is_told() -> None:
    pytest.importorskip("torch")
    rows = rows_of(DROPPING, RIVALS[providers.OURS], RIVALS["torch"])
    assert [row.status for row in rows.values()] == ["timed"] * 3
    assert [row.note for row in rows.values()] == ["", "", suite.OWN_MASK]


def test_ours_must_drop_the_very_elements_that_numpy_drops() -> None:
    arrays = cases.inputs(DROPPING)
    expected = suite.reference(DROPPING, arrays)
    other = gpuact.Dropout(DROPPING.dropout, seed=2)
    judge, note = suite._judge(DROPPING, providers.ON_CPU[0], arrays)
    assert note == ""
    x, *rest = arrays.values()
    named = dict(zip(DROPPING.takes, rest, strict=True))
    for dropout, word in ((gpuact.Dropout(DROPPING.dropout, seed=1), "timed"), (other, "wrong")):
        with gpuact.using("numpy"):
            y = gpuact.fused(x, DROPPING.activation, dropout=dropout, **named)
        call = lambda y=y: y  # noqa: E731
        found = suite.checked(DROPPING, measure.Host(), call, expected, judge)
        assert found.status == word


def test_a_rival_that_rounds_step_by_step_may_stray_once_in_a_thousand() -> None:
    case = replace(chain(tables.GATED), shape=(100, 100))
    arrays = cases.inputs(case)
    (y,) = expected = suite.reference(case, arrays)
    off = y.copy()
    off.flat[:10] += np.asarray(9, y.dtype)
    more = off.copy()
    more.flat[:11] += np.asarray(9, y.dtype)
    rival, _ = suite._judge(case, RIVALS["torch"], arrays)
    ours, _ = suite._judge(case, providers.ON_CPU[0], arrays)
    assert rival(case, (off,), expected) is None
    assert str(rival(case, (more,), expected)).startswith("11 of 10000 values differ")
    assert str(ours(case, (off,), expected)).startswith("10 of 10000 values differ")


def test_ours_is_judged_as_ours_by_its_backend() -> None:
    """Whatever its name; a rival by any name is none."""
    case = replace(chain(tables.GATED), shape=(10, 10))
    arrays = cases.inputs(case)
    assert suite._judge(case, planted(None, backend="cupy"), arrays) == (suite.mistake, "")
    assert suite._judge(case, planted(None, "gpuact's"), arrays)[0] is not suite.mistake
    assert all(bool(p.backend) == p.name.startswith("gpuact") for p in providers.ON_GPU)
    assert all(bool(p.backend) == p.name.startswith("gpuact") for p in providers.ON_CPU)
