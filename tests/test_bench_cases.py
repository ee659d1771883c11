"""The cases: the bytes that they move, their arrays, and that the tables hold what they state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest

import gpuact
from bench import cases, tables
from bench.measure import Repeated
from gpuact.catalogue import FUNCTIONS
from gpuact.libraries import numpy_dtype
from tests.benchmarks import CHAINS, EVERY, ON_CPU, ON_GPU, SIZES, TABLES, WATCHED, outputs

# -- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_bytes_are_those_of_the_arrays_read_and_written(name: str) -> None:
    case = EVERY[name]
    read = cases.inputs(case)
    with gpuact.using("numpy"):
        written = outputs(case.public(*read.values(), **case.options))
    # one number an element or a row, or a matrix a row; slopes, one a channel, are not counted
    shapes = case.shape, case.shape[:1], (*case.shape, case.shape[-1])
    counted = [a for a in (*read.values(), *written) if a.shape in shapes]
    assert case.bytes == sum(array.nbytes for array in counted)
    assert case.formula.startswith(f"{case.per_element}N")
    assert ("M" in case.formula) == (case.suite == "loss")


@pytest.mark.parametrize(
    ("function", "dtype", "formula"),
    [
        ("relu", "bfloat16", "4N"),
        ("relu", "float64", "16N"),
        ("tanh_backward", "float16", "6N"),
        ("linear_backward", "float32", "12N"),  # dscale and dbias are two numbers
        ("sigmoid_derivative", "float32", "8N"),
        ("log_softmax_backward", "bfloat16", "6N"),
        ("softmax_jacobian", "float32", "32N"),  # of rows of 7
        ("cross_entropy", "bfloat16", "2N + 12M"),  # a target and a loss of float32
        ("cross_entropy", "float64", "8N + 16M"),
        ("cross_entropy_with_grad", "float32", "8N + 12M"),
        ("cross_entropy_backward", "bfloat16", "4N + 16M"),  # dloss, target and lse
        ("cross_entropy_backward", "float64", "16N + 24M"),
    ],
)
def test_bytes_follow_from_the_record(function: str, dtype: str, formula: str) -> None:
    case = cases.Case(function, dtype, (5, 7), tables.ROWWISE if "cross" in function else {})
    assert case.formula == formula
    each, _, row = formula.replace(" ", "").partition("+")
    assert case.bytes == 35 * int(each.strip("N")) + 5 * int(row.strip("M") or 0)


def test_the_headline_is_the_design_s() -> None:
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
    for sizes in SIZES:
        found = [c for of in ON_GPU.values() for c in of(sizes) if c.headline]
        assert {(c.function, c.per_element, math.prod(c.shape)) for c in found} == stated
        assert len({c.name for c in found}) == len(found) == 21  # two pairs are of one size
        assert {c.per_row for c in found if c.base == "cross_entropy"} == {12}
        assert all(c.compiled for c in found)
        on_cpu = {c.name for of in ON_CPU.values() for c in of(sizes) if c.headline}
        assert on_cpu == {c.name for c in tables.CPU}


# -- tables ---------------------------------------------------------------------------------------

ELEMENTWISE = [f.name for f in FUNCTIONS.values() if f.kind == "elementwise"]
GPU_DTYPES = ("bfloat16", "float16", "float32")
ITEM = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


@pytest.mark.parametrize(("sizes", "most"), [("quick", 2**26), ("full", 2**27)])
def test_every_elementwise_function_has_its_cases(sizes: str, most: int) -> None:
    """Forward, backward and derivative, in each dtype, at a size that memory bounds."""
    table = tables.elementwise_on_gpu(sizes)
    large = [c for c in table if math.prod(c.shape) >= most]
    stated = {
        (f"{name}{way}", dtype, arrays * ITEM[dtype])
        for name in ELEMENTWISE
        for dtype in GPU_DTYPES
        for way, arrays in (("", 2), ("_backward", 3), ("_derivative", 2))
    }
    assert {(c.function, c.dtype, c.per_element) for c in large} == stated
    assert table[: len(tables.LIMITS)] == tables.LIMITS
    assert table[len(tables.LIMITS)] == tables.LAUNCH
    assert {c.suite for c in table} == {"elementwise"}


def test_every_elementwise_function_is_swept_by_size() -> None:
    """In bfloat16, in full in every dtype, from what a launch bounds to what memory bounds."""
    powers = {"quick": (12, 16, 20, 23, 26), "full": (*range(10, 27, 2), 27)}
    for sizes, dtypes in (("quick", ("bfloat16",)), ("full", GPU_DTYPES)):
        found = {(c.function, c.dtype, c.shape) for c in tables.elementwise_on_gpu(sizes)}
        counts = {(f, d, math.prod(shape)) for f, d, shape in found}
        for name in ELEMENTWISE:
            for function in (name, f"{name}_backward"):
                for dtype in dtypes:
                    assert counts >= {(function, dtype, 1 << k) for k in powers[sizes]}
        images = {len(shape) for f, _, shape in found if f.startswith("prelu")}
        assert images == {4}


FUSED_BYTES = {  # an element of bfloat16, forward and backward
    "relu(scale·x + bias)": (4, 6),
    "sigmoid(x)·gate + residual": (8, 10),
    "dropout(prelu(x)) + residual": (6, 6),
    "dropout(tanh(scale·x + bias))·gate + residual": (8, 10),
}


@pytest.mark.parametrize(("sizes", "rows"), [("quick", 8192), ("full", 16384)])
def test_the_chains_are_four_with_their_backward(sizes: str, rows: int) -> None:
    """Large ones of bfloat16, which are compiled, and smaller ones in every dtype."""
    found = tables.fused_on_gpu(sizes)
    assert all(isinstance(c, cases.Chain) and c.suite == "fused" for c in found)
    moved = {(c.text, c.backward, c.dtype, c.shape[0]): c.per_element for c in found}
    assert moved == {
        (text, k == 1, dtype, m): n * ITEM[dtype] // 2
        for text, both in FUSED_BYTES.items()
        for k, n in enumerate(both)
        for dtype, m in (("bfloat16", rows), *((dtype, 2048) for dtype in GPU_DTYPES))
    }
    assert all(c.compiled == (c.shape == (rows, 4096)) for c in found)
    assert len(found) == len(moved)


LARGE_WATCHED, MEDIUM_WATCHED = "65536×4096", "16384×4096"


@pytest.mark.parametrize("sizes", SIZES)
def test_what_is_watched_has_the_activation_alone_beside_it(sizes: str) -> None:
    """In bfloat16 at every size, in all dtypes where memory bounds it; in full at the small one."""
    found = tables.stats_on_gpu(sizes)
    shapes = {(LARGE_WATCHED, "bfloat16"), ("1024×1024", "bfloat16")}
    shapes |= {(MEDIUM_WATCHED, dtype) for dtype in GPU_DTYPES}
    if sizes == "full":
        shapes |= {("1024×1024", dtype) for dtype in GPU_DTYPES}
    assert {(case.name, case.suite, case.per_element) for case in found} == {
        (f"{words} {dtype} {shape}", suite, arrays * ITEM[dtype])
        for shape, dtype in shapes
        for activation in ("relu", "sigmoid")
        for words, suite, arrays in (
            (f"activation_with_stats {activation}", "stats", 2),
            (f"activation_stats {activation}", "stats", 1),
            (activation, "elementwise", 2),
        )
    }
    assert not any(case.headline for case in found)
    assert {case.name for case in found if case.compiled} == {
        f"activation_with_stats {activation} bfloat16 {LARGE_WATCHED}"
        for activation in ("relu", "sigmoid")
    }
    names = {case.name for case in found}
    assert {case.plain.name for case in found if isinstance(case, cases.Watched)} <= names


def swept(
    functions: Iterable[str], dtypes: Iterable[str], shapes: Iterable[tuple[int, int]]
) -> Iterator[tuple[str, int]]:
    """Names and bytes, as the formulas of the functions state them."""
    arrays = {"softmax": 2, "log_softmax": 2, "cross_entropy": 1, "cross_entropy_with_grad": 2,
              "cross_entropy_backward": 2}  # fmt: skip
    each_row = {"cross_entropy": 12, "cross_entropy_with_grad": 12, "cross_entropy_backward": 16}
    shapes = list(shapes)
    for dtype in dtypes:
        for function in functions:
            for m, n in shapes:
                item = arrays.get(function, n + 1 if "jacobian" in function else 3) * ITEM[dtype]
                yield f"{function} {dtype} {m}×{n}", item * m * n + each_row.get(function, 0) * m


ROWS = ("softmax", "softmax_backward", "log_softmax", "log_softmax_backward")
LOSSES = ("cross_entropy", "cross_entropy_with_grad", "cross_entropy_backward")


@pytest.mark.parametrize(
    ("sizes", "steps", "small", "dtypes"),
    [
        ("quick", (8, 11, 14, 17), (7, 12), ("bfloat16",)),
        ("full", range(6, 19), range(5, 13), GPU_DTYPES),
    ],
)
def test_the_rows_are_the_design_s_and_more(
    sizes: str, steps: Iterable[int], small: Iterable[int], dtypes: Iterable[str]
) -> None:
    """Bytes of N elements; each odd row has the next multiple of 8 beside it."""
    found = tables.rows_on_gpu(sizes)
    assert found[: len(tables.ROW_LIMITS)] == tables.ROW_LIMITS
    moved = {
        "softmax bfloat16 32768×256": 4 * 32768 * 256,
        "softmax bfloat16 32768×1024": 4 * 32768 * 1024,
        "softmax bfloat16 32768×4096": 4 * 32768 * 4096,
        "softmax bfloat16 8192×4096": 4 * 8192 * 4096,
        "softmax bfloat16 32768×65536": 4 * 32768 * 65536,
        "softmax bfloat16 8192×262144": 4 * 8192 * 262144,
        "softmax float32 16384×131072": 8 * 16384 * 131072,
        "softmax_backward bfloat16 32768×8192": 6 * 32768 * 8192,
        "softmax_backward bfloat16 8192×131072": 6 * 8192 * 131072,
        "log_softmax_backward bfloat16 32768×50257": 6 * 32768 * 50257,
        "softmax float32 8192×8192 axis 0": 8 * 8192 * 8192,
        "softmax bfloat16 4×131072": 4 * 4 * 131072,
    }
    for n in (50257, 50264):
        moved[f"log_softmax bfloat16 32768×{n}"] = 4 * 32768 * n
    for n in (4097, 4104, 50257, 50264):
        moved[f"softmax bfloat16 32768×{n}"] = 4 * 32768 * n
    moved |= swept(ROWS, GPU_DTYPES, [(8192, 8192)])
    moved |= swept(["softmax_jacobian"], GPU_DTYPES, [(4096, 128)])
    moved |= swept(ROWS, dtypes, [(1 << 26 - k, 1 << k) for k in steps])
    moved |= swept(ROWS, dtypes, [(1 << k, 256) for k in small])
    assert {case.name: case.bytes for case in found} == moved
    assert all(odd % 2 and even == -(-odd // 8) * 8 for _, odd, even in tables.ODD)


@pytest.mark.parametrize(
    ("sizes", "steps", "dtypes"),
    [("quick", (10, 13, 15), ("bfloat16",)), ("full", range(8, 19), GPU_DTYPES)],
)
def test_the_losses_are_the_design_s_and_more(
    sizes: str, steps: Iterable[int], dtypes: Iterable[str]
) -> None:
    found = tables.loss_on_gpu(sizes)
    assert found[: len(tables.LOSS_LIMITS)] == tables.LOSS_LIMITS
    mn, m = 8192 * 128256, 8192
    moved = {}
    for end in ("", " smoothing 0.1"):
        moved[f"cross_entropy bfloat16 8192×128256{end}"] = 2 * mn + 12 * m
        moved[f"cross_entropy_with_grad bfloat16 8192×128256{end}"] = 4 * mn + 12 * m
    moved |= swept(LOSSES, GPU_DTYPES, [(8192, 16384)])
    moved |= swept(LOSSES, dtypes, [(128, 1024), *((1 << 26 - k, 1 << k) for k in steps)])
    assert {case.name: case.bytes for case in found} == moved


def kinds(table: Iterable[cases.Case]) -> set[tuple[str, ...]]:
    options = ("axis", "label_smoothing")
    return {
        (c.function, getattr(c, "text", ""), *(k for k in options if k in c.options)) for c in table
    }


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", ON_GPU)
def test_the_cases_of_a_cpu_are_of_the_same_kinds(name: str, sizes: str) -> None:
    found = ON_CPU[name](sizes)
    left_out = {("sigmoid", "")} if (name, sizes) == ("stats", "quick") else set()
    assert kinds(found) == kinds(ON_GPU[name](sizes)) - left_out
    assert {case.suite for case in found} == {name, *{"stats": ["elementwise"]}.get(name, [])}
    assert max(case.bytes for case in found) < (2.1e8 if name == "elementwise" else 2e8)
    if name not in ("fused", "stats") or sizes == "full":
        assert {case.dtype for case in found} == set(ITEM)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_cpu_s_own_suite_has_all_others(sizes: str) -> None:
    """The quick one few cases of every kind but the smoothed losses; the full one every case."""
    found = tables.cpu(sizes)
    assert found[: len(tables.CPU)] == tables.CPU
    every = [case for name in ON_GPU for case in ON_CPU[name](sizes)]
    if sizes == "quick":
        assert kinds(every) - kinds(found) == {
            ("cross_entropy", "", "label_smoothing"),
            ("cross_entropy_with_grad", "", "label_smoothing"),
            ("softmax_jacobian", ""),
        }
    else:
        assert {case.name for case in found} >= {case.name for case in every}


@pytest.mark.parametrize("table", TABLES)
def test_cases_have_names_of_their_own(table: str) -> None:
    names = [case.name for case in TABLES[table]]
    assert len(set(names)) == len(names)


def test_a_name_is_taken_once() -> None:
    one, two, three = (cases.Case("relu", "float32", (n,)) for n in (3, 5, 7))
    again = replace(two, headline=True)
    assert cases.every([one, two, again, three], apart_from=[one]) == [two, three]


# -- names ----------------------------------------------------------------------------------------


def test_names_say_function_dtype_and_shape() -> None:
    names = {case.name for table in TABLES.values() for case in table}
    assert "softmax float32 8192×8192 axis 0" in names
    assert "cross_entropy bfloat16 8192×128256 smoothing 0.1" in names
    assert "relu bfloat16 2^28" in names
    assert "fused_backward sigmoid(x)·gate + residual bfloat16 8192×4096" in names
    assert "activation_with_stats relu float32 1024×1024" in names


@pytest.mark.parametrize(
    ("function", "base", "suite"),
    [
        ("relu", "relu", "elementwise"),
        ("leaky_relu_backward", "leaky_relu", "elementwise"),
        ("tanh_derivative", "tanh", "elementwise"),
        ("log_softmax_backward", "log_softmax", "rows"),
        ("softmax_jacobian", "softmax", "rows"),
        ("cross_entropy", "cross_entropy", "loss"),
        ("cross_entropy_with_grad", "cross_entropy", "loss"),
        ("cross_entropy_backward", "cross_entropy", "loss"),
    ],
)
def test_a_case_knows_its_function_and_its_suite(function: str, base: str, suite: str) -> None:
    case = cases.Case(function, "float32", (5, 7))
    assert (case.base, case.suite, case.record) == (base, suite, FUNCTIONS[base])
    assert case.public is getattr(gpuact, function)
    assert case.backward == function.endswith("_backward")


@pytest.mark.parametrize("name", WATCHED)
def test_what_is_watched_is_a_case_of_its_activation(name: str) -> None:
    """Its moments are those of the whole array, as the device keeps them."""
    case = WATCHED[name]
    assert case.base == case.record.name == case.activation
    assert not case.backward
    (given,) = cases.inputs(case).values()
    with gpuact.using("numpy"):
        *y, moments = outputs(case.public(given))
        expected = case.plain.public(given) if case.computes else given
        found = gpuact.activation_stats(expected, case.activation)
    assert [np.array_equal(one, expected) for one in y] == [True] * case.computes
    assert (moments.dtype, moments.tolist()) == (np.float64, found.moments.tolist())
    assert moments[0] == given.size


def test_whose_rows_depend_on_others() -> None:
    whole = {name for name, case in EVERY.items() if case.whole}
    named = {name.partition(" float")[0].partition(" bfloat")[0] for name in whole}
    dropping = {f"fused {text}" for text in FUSED_BYTES if text.startswith("dropout")}
    backward = {f"fused_backward {text}" for text in FUSED_BYTES}
    watched = {f"{case.function} {case.activation}" for case in WATCHED.values()}
    functions = {"softmax", "linear_backward", "prelu_backward"}
    assert named == functions | dropping | backward | watched
    assert {name for name in whole if name.startswith("softmax")} == {"softmax float32 5×7 axis 0"}


# -- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_inputs_are_random_and_of_the_dtype(name: str) -> None:
    case = EVERY[name]
    found = cases.inputs(case)
    assert tuple(found) == case.reads
    of_a_row = np.float64 if case.dtype == "float64" else np.float32
    dtypes = {"target": np.int64, "dloss": of_a_row, "lse": of_a_row}
    for key, array in found.items():
        assert array.dtype == dtypes.get(key, numpy_dtype(case.dtype))
        assert np.count_nonzero(array) > array.size // 3 or key == "target"
    for key in {"target", "lse", "dloss"} & set(found):
        assert found[key].shape == case.shape[:1]
    if {"dy", "x"} <= set(found):
        assert not np.array_equal(found["dy"], found["x"])


def test_arrays_of_gigabytes_are_short_ones_that_repeat() -> None:
    for case in (tables.LIMITS[0], tables.LIMITS[4], tables.LOSS_LIMITS[0]):
        for name, array in cases.sources(case).items():
            if name == "target":
                assert array.nbytes == 8 * case.shape[0]
                continue
            assert isinstance(array, Repeated)
            assert array.base.size <= cases.RANDOM
            assert array.shape == case.shape
            assert array.nbytes == cases.ITEM[case.dtype] * math.prod(case.shape)


@pytest.mark.parametrize("name", ["relu float32 5", "cross_entropy_backward float32 5×7"])
def test_inputs_are_the_sources_in_full(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "RANDOM", 15)  # two rows of seven
    case = replace(EVERY[name], shape=(40,) if "relu" in name else (9, 7))
    found = cases.inputs(case)
    for key, array in cases.sources(case).items():
        assert np.array_equal(found[key], cases.whole(array))
        assert not isinstance(array, Repeated) or array.base.size in (14, 15)
    first = next(array for array in found.values() if array.shape == case.shape)
    assert len(np.unique(first)) in (14, 15)


@pytest.mark.parametrize("function", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("distinct", [cases.RANDOM, 101])
def test_the_y_that_backward_reads_is_forward_s(
    function: str, distinct: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "RANDOM", distinct)
    case = cases.Case(f"{function}_backward", "bfloat16", (600,))
    arrays = cases.inputs(case)
    x = cases._spread(case.dtype, case.shape, 1).whole()  # dy is another
    with gpuact.using("numpy"):
        assert np.array_equal(arrays["y"], getattr(gpuact, case.base)(x, **case.options))
    assert abs(np.corrcoef(arrays["dy"].astype(float), arrays["y"].astype(float))[0, 1]) < 0.3


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_the_y_of_rows_is_forward_s_in_every_row(function: str) -> None:
    """Of the rows that are repeated, for the host would spend a minute on all of them."""
    case = cases.Case(f"{function}_backward", "float32", (1000, 10_007))
    y = cases.inputs(case)["y"]
    sums = (y if function == "softmax" else np.exp(y)).sum(1, dtype=np.float64)
    assert np.abs(sums - 1).max() < 1e-5
    distinct = cases.RANDOM // 10_007
    assert len(np.unique(y[:, 0])) > 0.99 * distinct


def test_the_y_that_is_watched_is_computed_once_for_all_that_repeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cases, "RANDOM", 101)
    case = cases.Watched("activation_stats", "bfloat16", (60, 7), activation="sigmoid")
    y = cases.sources(case)["y"]
    assert isinstance(y, Repeated)
    assert y.base.size == 101
    with gpuact.using("numpy"):
        forward = gpuact.sigmoid(cases._spread(case.dtype, case.shape, 0).whole())
    assert np.array_equal(y.whole(), forward)


def test_the_y_along_another_axis_is_forward_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "RANDOM", 101)
    case = cases.Case("softmax_backward", "float32", (60, 7), {"axis": 0})
    assert np.abs(cases.inputs(case)["y"].sum(0) - 1).max() < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_lse_that_backward_reads_is_forward_s(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every row, where rows repeat; dloss is none that repeats with them."""
    monkeypatch.setattr(cases, "RANDOM", 101)
    case = cases.Case("cross_entropy_backward", dtype, (60, 7), tables.ROWWISE)
    arrays = cases.inputs(case)
    logits = arrays["logits"]
    assert np.array_equal(logits[14:28], logits[:14])
    exact = np.log(np.exp(logits.astype(np.float64)).sum(1))
    assert np.abs(arrays["lse"] - exact).max() < (1e-6 if dtype == "float32" else 1e-14)
    assert len(np.unique(arrays["dloss"])) == 60
    assert arrays["target"].min() >= 0
    assert arrays["target"].max() < 7


def test_no_rounding_carries_a_scaled_input_over_the_kink() -> None:
    """The chain's scales are powers of two: scale·x is exact, whatever a rival rounds to."""
    case = next(c for c in CHAINS.values() if "scale" in c.reads)
    scale = cases.inputs(replace(case, shape=(3, 1000)))["scale"].astype(np.float32)
    assert set(np.abs(scale)) == {0.5, 1.0, 2.0}
    assert {-1.0, 1.0} == set(np.sign(scale))
