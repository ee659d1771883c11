"""The benchmark tells the truth: bytes, checks, goals, JSON; the digits' gradients are right.

What needs a GPU is its providers and its clock. Their kernels are executed by the PTX interpreter,
torch's spellings on CPU tensors, and compiled ones without the compiler behind.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuact
from gpuact.catalogue import FUNCTIONS
from gpuact.libraries import numpy_dtype

pytest.importorskip("rich")
from bench import cases, digits, held, host, in_torch, measure, providers, report, suite
from bench.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
Array = Any

TABLES = {
    "GPU": cases.GPU,
    "CPU": cases.CPU,
    "ELEMENTWISE_GPU": cases.ELEMENTWISE_GPU,
    "ELEMENTWISE_CPU": cases.ELEMENTWISE_CPU,
    "ROWS_GPU": cases.ROWS_GPU,
    "ROWS_CPU": cases.ROWS_CPU,
    "HELD": (*cases.HELD, cases.CALL),
}


def small(case: cases.Case) -> cases.Case:
    """The case on arrays that cost nothing, of lengths that all differ."""
    return replace(case, shape=(5, 7, 3, 2)[: len(case.shape)])


# What differs in its size alone is one case here.
EVERY = {small(case).name: case for table in TABLES.values() for case in table}


def outputs(result: Any) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)


# -- cases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_bytes_are_those_of_the_arrays_read_and_written(name: str) -> None:
    case = small(EVERY[name])
    read = cases.inputs(case)
    with gpuact.using("numpy"):
        written = outputs(case.public(*read.values(), **case.options))
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


FUSED_BYTES = {  # an element of bfloat16, forward and backward
    "relu(scale·x + bias)": (4, 6),
    "sigmoid(x)·gate + residual": (8, 10),
    "dropout(prelu(x)) + residual": (6, 6),
    "dropout(tanh(scale·x + bias))·gate + residual": (8, 10),
}


def test_every_elementwise_function_has_its_cases() -> None:
    """Forward and backward, in each dtype, with no fewer than 2^27 elements; and four chains."""
    large = [c for c in cases.ELEMENTWISE_GPU if math.prod(c.shape) >= 2**27]
    functions = [f.name for f in FUNCTIONS.values() if f.kind == "elementwise"]
    stated = {
        *((f, dtype, 2 * size) for f in functions for dtype, size in cases.ITEM.items()),
        *((f"{f}_backward", d, 3 * size) for f in functions for d, size in cases.ITEM.items()),
    }
    plain = [c for c in large if not isinstance(c, cases.Chain)]
    assert {(c.function, c.dtype, c.per_element) for c in plain} == stated
    assert cases.ELEMENTWISE_GPU[: len(cases.LIMITS)] == cases.LIMITS
    chains = [c for c in large if isinstance(c, cases.Chain)]
    assert {c.dtype for c in chains} == {"bfloat16"}
    moved = {(c.text, c.backward): c.per_element for c in chains}
    assert moved == {
        (text, k == 1): n for text, both in FUSED_BYTES.items() for k, n in enumerate(both)
    }


def test_the_rows_are_the_design_s_and_more() -> None:
    """Bytes of N elements and M rows; each odd row has the next multiple of 8 beside it."""
    assert cases.ROWS_GPU[: len(cases.ROW_LIMITS)] == cases.ROW_LIMITS
    assert cases.GPU[len(cases.LIMITS) :] == cases.ROW_LIMITS
    mn, m, smoothed = 8192 * 128256, 8192, " smoothing 0.1"
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
        "relu bfloat16 128×1024": 4 * 128 * 1024,
    }
    for n in (50257, 50264):
        moved[f"log_softmax bfloat16 32768×{n}"] = 4 * 32768 * n
    for n in (4097, 4104, 50257, 50264):
        moved[f"softmax bfloat16 32768×{n}"] = 4 * 32768 * n
    for end in ("", smoothed):
        moved[f"cross_entropy bfloat16 8192×128256{end}"] = 2 * mn + 12 * m
        moved[f"cross_entropy_with_grad bfloat16 8192×128256{end}"] = 4 * mn + 12 * m
    assert {case.name: case.bytes for case in cases.ROWS_GPU} == moved
    assert all(odd % 2 and even == -(-odd // 8) * 8 for _, odd, even in cases.ODD)
    graphed = {case.name for case in cases.ROWS_GPU if case.graphed}
    assert graphed >= {"softmax bfloat16 4×131072", "relu bfloat16 128×1024"}


def test_the_rows_of_a_cpu_are_of_the_same_kinds() -> None:
    def kinds(table: Sequence[cases.Case]) -> set[tuple[str, ...]]:
        return {
            (c.function, *(k for k in ("axis", "label_smoothing") if k in c.options)) for c in table
        }

    assert kinds(cases.ROWS_CPU) == kinds(cases.ROWS_GPU)
    assert max(case.bytes for case in cases.ROWS_CPU) < 2e8
    assert not any(case.graphed for case in cases.ROWS_CPU)


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_the_y_of_rows_is_forward_s_in_every_row(function: str) -> None:
    """Of the rows that are repeated, for the host would spend a minute on all of them."""
    case = cases.Case(f"{function}_backward", "float32", (1000, 10_007), 12)
    y = cases.inputs(case)["y"]
    sums = (y if function == "softmax" else np.exp(y)).sum(1, dtype=np.float64)
    assert np.abs(sums - 1).max() < 1e-5
    distinct = cases.RANDOM // 10_007
    assert len(np.unique(y[:, 0])) > 0.99 * distinct


@pytest.mark.parametrize("table", TABLES)
def test_cases_have_names_of_their_own(table: str) -> None:
    names = [case.name for case in TABLES[table]]
    assert len(set(names)) == len(names)


def test_names_say_function_dtype_and_shape() -> None:
    names = {case.name for table in TABLES.values() for case in table}
    assert "softmax float32 8192×8192 axis 0" in names
    assert "cross_entropy bfloat16 8192×128256 smoothing 0.1" in names
    assert "relu bfloat16 2^28" in names
    assert "fused_backward sigmoid(x)·gate + residual bfloat16 32768×4096" in names


def test_no_rounding_carries_a_scaled_input_over_the_kink() -> None:
    """The chain's scales are powers of two: scale·x is exact, whatever a rival rounds to."""
    case = next(c for c in cases.ELEMENTWISE_GPU if "scale" in c.reads)
    scale = cases.inputs(replace(case, shape=(3, 1000)))["scale"].astype(np.float32)
    assert set(np.abs(scale)) == {0.5, 1.0, 2.0}
    assert {-1.0, 1.0} == set(np.sign(scale))


@pytest.mark.parametrize("name", EVERY)
def test_inputs_are_random_and_of_the_dtype(name: str) -> None:
    case = small(EVERY[name])
    for key, array in cases.inputs(case).items():
        assert array.dtype == (np.int64 if key == "target" else numpy_dtype(case.dtype))
        assert np.count_nonzero(array) > array.size // 3 or key == "target"


@pytest.mark.parametrize("function", ["sigmoid", "tanh", "relu"])
def test_the_y_that_backward_reads_is_forward_s(function: str) -> None:
    case = cases.Case(f"{function}_backward", "bfloat16", (600,), 6)
    arrays = cases.inputs(case)
    x = cases._spread(case.dtype, case.shape, 0)
    with gpuact.using("numpy"):
        assert np.array_equal(arrays["y"], getattr(gpuact, case.base)(x, **case.options))


def test_goals_name_cases_and_rivals_that_are_run() -> None:
    names = {provider.name for provider in providers.ON_CPU}
    assert len(cases.GOALS) == 4
    for goal in cases.GOALS:
        assert goal.case in {case.name for case in cases.CPU}
        assert names >= {*goal.ours, *goal.rivals}
    sigmoid, relu = cases.GOALS[0], cases.GOALS[2]
    assert sigmoid.held(sigmoid.value(ours=1.0, theirs=1.3))
    assert not sigmoid.held(sigmoid.value(ours=1.0, theirs=1.29))
    assert relu.held(relu.value(ours=1.15, theirs=1.0))
    assert not relu.held(relu.value(ours=1.16, theirs=1.0))


def test_the_gpu_s_goals_name_cases_and_rivals_that_are_run() -> None:
    timed = {case.name: case for case in cases.ELEMENTWISE_GPU}
    names = {provider.name: provider for provider in providers.ELEMENTWISE_ON_GPU}
    callers = {caller.name for caller in providers.CALLERS_ON_GPU}
    for goal in cases.ELEMENTWISE_GOALS:
        if goal.case in cases.HOST.values():
            assert callers >= {*goal.ours, *goal.rivals}
            continue
        case = timed[goal.case]
        for rival in goal.rivals:
            assert rival == cases.COPY or case.compiled or not names[rival].compiles
        assert set(goal.ours) <= set(names)
        if "CuPy ElementwiseKernel" in goal.rivals:
            assert case.function in providers.ELEMENTWISE


def test_the_gpu_s_goals_are_those_of_the_design() -> None:
    both = {"gpuact on CuPy", "gpuact on Triton"}
    functions = [f.name for f in FUNCTIONS.values() if f.kind == "elementwise"]
    every = {f"{f}{way}" for f in functions for way in ("", "_backward")}

    def asked(limit: float, figure: str = "times as fast", ours: set[str] = both) -> set[str]:
        """The cases in which all of `ours` have such a goal."""
        goals = [g for g in cases.ELEMENTWISE_GOALS if (g.limit, g.figure) == (limit, figure)]
        return set.intersection(*({g.case for g in goals if g.ours == (who,)} for who in ours))

    copied = {name.partition(" 2^")[0].partition(" 128×")[0] for name in asked(0.95)}
    assert copied == {f"{name} {dtype}" for name in every for dtype in cases.ITEM}
    plain = {name.partition(" ")[0] for name in asked(1.5, ours={"gpuact on CuPy"})}
    assert plain == every
    chains = {c.name for c in cases.ELEMENTWISE_GPU if isinstance(c, cases.Chain)}
    assert len(chains) == 8
    assert asked(2.0) == chains
    assert asked(1.0, "not behind") == chains
    assert len(asked(1.0, "of its time", {"gpuact on CuPy"})) == 2
    assert len(asked(3.0, "µs more", {"gpuact on Triton"})) == 2


def cost(case: str, provider: str, median: float, high: float) -> host.Cost:
    return host.Cost(case, provider, "timed", timing=measure.Timing(median, median, high, 7))


@pytest.mark.parametrize(
    ("figure", "limit", "ours", "value", "reached"),
    [
        ("times as fast", 2.0, 1.0, 2.0, True),  # beside the quicker of two: 2 s and 3 s
        ("times as fast", 2.0, 1.1, 2 / 1.1, False),
        ("not behind", 1.0, 2.05, 2.1 / 2.05, True),  # within the rival's own spread: to 2.1 s
        ("not behind", 1.0, 2.2, 2.1 / 2.2, False),
        ("of its time", 1.0, 1.9, 0.95, True),
        ("µs more", 3.0, 2.0000029, 2.9, True),
        ("µs more", 3.0, 2.0000031, 3.1, False),
    ],
)
def test_a_goal_is_held_beside_the_quickest_rival(
    figure: Any, limit: float, ours: float, value: float, reached: bool
) -> None:
    goal = cases.Goal("a case", ("first", "second"), limit, figure, ("ours",))
    rows = [
        *(cost("a case", "ours", ours, 9), cost("a case", "first", 2.0, 2.1)),
        *(cost("a case", "second", 3.0, 3.1), cost("another", "second", 0.1, 0.1)),
    ]
    (verdict,) = suite.verdicts(rows, [goal])
    assert verdict.value == pytest.approx(value)
    assert (verdict.held, verdict.word) == (reached, "held" if reached else "missed")
    for k in range(3):
        (verdict,) = suite.verdicts(rows[:k] + rows[k + 1 :], [goal])
        assert (verdict.value, verdict.held, verdict.word) == (None, False, "not measured")


CUPY, TRITON = "gpuact on CuPy", "gpuact on Triton"


def row(case: str, provider: str, seconds: float, moved: int = 3_000_000_000) -> suite.Row:
    timing = measure.Timing(seconds, seconds, seconds, 7)
    return suite.Row(case, moved, "", provider, "timed", timing=timing)


def judge(goal: cases.Goal, *rows: suite.Row) -> suite.Verdict:
    (verdict,) = suite.verdicts(rows, [goal])
    return verdict


@pytest.mark.parametrize(
    ("figure", "limit", "value", "reached"),
    [
        ("GB/s", 1500, 1500, True),  # 3 GB in the 2 ms of the better one
        ("GB/s", 1501, 1500, False),
        ("ms", 2.0, 2.0, True),
        ("ms", 1.9, 2.0, False),
    ],
)
@pytest.mark.parametrize("better", [CUPY, TRITON])
def test_the_better_backend_is_judged_and_named(
    figure: Any, limit: float, value: float, reached: bool, better: str
) -> None:
    goal = cases.Goal("a case", (), limit, figure, (CUPY, TRITON))
    seconds = {CUPY: 0.004, TRITON: 0.004, better: 0.002}
    rows = [row("a case", who, seconds[who]) for who in seconds]
    found = judge(goal, *rows, row("a case", "Liger", 0.001))
    assert found.value == pytest.approx(value)
    assert (found.held, found.ours) == (reached, better)
    told = f"{better}: a case: {'held' if reached else 'missed'} with {value:.2f}"
    assert report.verdict(found) == told
    (alone,) = (r for r in rows if r.provider != better)
    assert judge(goal, alone).ours == alone.provider
    nobody = judge(goal, row("a case", "Liger", 0.001))
    assert (nobody.word, nobody.ours) == ("not measured", f"{CUPY} or {TRITON}")


def test_a_neighbour_is_met_at_its_rate_of_bytes() -> None:
    """Ours at the better backend's rate in either case; more bytes may take more time."""
    goal = cases.Goal("odd", (CUPY, TRITON), 0.97, ours=(CUPY, TRITON), neighbour="even")
    odd = row("odd", CUPY, 1.03, 1000), row("odd", TRITON, 2.0, 1000)
    even = row("even", TRITON, 2.0, 2000), row("even", CUPY, 2.1, 2000)
    found = judge(goal, *odd, *even)
    assert found.value == pytest.approx(1 / 1.03)
    assert (found.held, found.ours) == (True, CUPY)
    slower = judge(goal, row("odd", CUPY, 1.04, 1000), *even)
    assert (slower.word, slower.value) == ("missed", pytest.approx(1 / 1.04))
    assert judge(goal, *odd, even[1]).value == pytest.approx(1.05 / 1.03)
    assert judge(goal, *odd).word == "not measured"
    assert goal.rival == f"{CUPY} or {TRITON} in even"


def test_every_rival_is_whoever_could_be_timed() -> None:
    goal = cases.Goal("a case", (), 1.0, ours=(CUPY, TRITON))
    ours = row("a case", CUPY, 2.0), row("a case", TRITON, 3.0), row("a case", "copy", 0.5)
    assert judge(goal, *ours).word == "not measured"  # the copy is no rival, nor are we our own
    assert judge(goal, *ours, row("a case", "torch", 2.1)).word == "held"
    found = judge(goal, *ours, row("a case", "torch", 2.1), row("a case", "QuACK", 1.9))
    assert (found.word, found.value) == ("missed", pytest.approx(0.95))
    named = cases.Goal("a case", ("Liger",), 1.0, ours=(CUPY, TRITON))
    assert judge(named, *ours, row("a case", "torch", 2.1)).word == "not measured"


ON_AN_H100 = [
    ("softmax bfloat16 32768×256", "", "≥ 1900 GB/s"),
    ("softmax bfloat16 32768×1024", "", "≥ 2650 GB/s"),
    ("softmax bfloat16 32768×4096", "", "≥ 2900 GB/s"),
    ("softmax bfloat16 32768×65536", "copy", "≥ 0.97 times as fast"),
    ("softmax bfloat16 8192×262144", "copy", "≥ 0.97 times as fast"),
    *(
        (f"{f} bfloat16 32768×{odd}", f"ours in {f} bfloat16 32768×{even}", "≥ 0.97 times as fast")
        for f, odd, even in (
            ("softmax", 4097, 4104),
            ("softmax", 50257, 50264),
            ("log_softmax", 50257, 50264),
        )
    ),
    ("log_softmax bfloat16 32768×50257", "copy", "≥ 0.93 times as fast"),
    ("softmax_backward bfloat16 32768×8192", "copy", "≥ 0.95 times as fast"),
    ("cross_entropy_with_grad bfloat16 8192×128256", "", "≤ 1.5 ms"),
    ("cross_entropy_with_grad bfloat16 8192×128256", "Liger", "≥ 1 times as fast"),
    ("softmax float32 8192×8192 axis 0", "copy", "≥ 0.85 times as fast"),
    ("softmax bfloat16 4×131072", "every rival", "≥ 1 times as fast"),
    ("softmax bfloat16 4×131072, in a CUDA graph", "every rival", "≥ 1 times as fast"),
]


def told(goals: Sequence[cases.Goal]) -> list[tuple[str, str, str]]:
    both = f"{CUPY} or {TRITON}"
    return [(g.case, g.rival.replace(both, "ours"), report._aim(g)) for g in goals]


def test_the_rows_goals_on_an_h100() -> None:
    goals = cases.rows_goals("NVIDIA H100 80GB HBM3")
    assert told(goals) == ON_AN_H100
    timed = {case.name: case for case in cases.ROWS_GPU}
    names = {provider.name for provider in providers.ROWS_ON_GPU}
    for goal in goals:
        assert goal.ours == (CUPY, TRITON)
        assert names >= {*goal.ours, *goal.rivals} - {cases.COPY}
        name, _, graph = goal.case.partition(cases.IN_A_GRAPH)
        assert timed[name].graphed or cases.IN_A_GRAPH not in goal.case + graph
        assert not goal.neighbour or goal.neighbour in timed


@pytest.mark.parametrize("device", ["", "NVIDIA H200", "NVIDIA H100 PCIe"])
def test_elsewhere_the_absolute_goals_are_shares_of_the_copy(device: str) -> None:
    """1900 GB/s are 63 % of the 3.0 TB/s that an H100 copies, 1.5 ms 93 % for 4.2 GB."""
    found = cases.rows_goals(device)
    shares = [goal for goal, aim in zip(found, ON_AN_H100, strict=True) if not aim[1]]
    assert all(goal.rivals == (cases.COPY,) for goal in shares)
    limits = [goal.limit for goal in shares]
    assert limits == pytest.approx([1.9 / 3, 2.65 / 3, 2.9 / 3, 1.4008 / 1.5], rel=1e-3)
    same = [words for words, aim in zip(told(found), ON_AN_H100, strict=True) if aim[1]]
    assert same == [aim for aim in ON_AN_H100 if aim[1]]


# -- who is right ---------------------------------------------------------------------------------


def rows_of(case: cases.Case, *who: providers.Provider) -> dict[str, suite.Row]:
    found = [row for rows in suite.run([case], who, 0.001) for row in rows]
    return {row.provider: row for row in found}


def planted(function: Any) -> providers.Provider:
    return providers.Provider("planted", "numpy", lambda: None, lambda case: function)


SIGMOID = cases.Case("sigmoid", "float32", (1000,), 8)
PLANTED = planted(gpuact.sigmoid)


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
    monkeypatch.setitem(suite.CHECKED, "rows", 1000)
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
    assert providers._scipy(replace(SIGMOID, function="relu")) is None
    assert providers._scipy(replace(SIGMOID, dtype="bfloat16")) is None
    rows = rows_of(SIGMOID, planted(gpuact.sigmoid), planted(None))
    assert list(rows) == ["copy", "planted"]


def test_a_case_that_cannot_be_set_up_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays that do not fit a GPU, say."""
    put = measure.Host.put

    def full(self: measure.Host, array: Array) -> Array:
        if array.size > 1000:
            raise MemoryError("out of memory\nand who has it")
        return put(self, array)

    monkeypatch.setattr(measure.Host, "put", full)
    found = list(suite.run([replace(SIGMOID, shape=(2000,)), SIGMOID], [PLANTED], 0.001))
    (lost,), timed, _ = found
    assert (lost.provider, lost.status) == ("planted", "failed")
    assert lost.reason == "MemoryError: out of memory"
    assert [row.status for row in timed] == ["timed", "timed"]


@pytest.mark.parametrize("where", ["numpy", "torch on the CPU"])
@pytest.mark.parametrize(("moved", "own"), [(8, True), (4, True), (12, False)])
def test_the_copy_reads_half_of_the_bytes(where: str, moved: int, own: bool) -> None:
    if where != "numpy":
        pytest.importorskip("torch")
    case, place = replace(SIGMOID, per_element=moved), measure.PLACES[where]()
    x = cases.inputs(case)["x"]
    held = [(place.put(x),), (place.copy(place.put(x)),)]
    calls = suite._copies(case, place, x, held)
    for call in calls:
        copied = place.take(call())
        assert copied.nbytes == case.bytes / 2
        assert np.array_equal(copied, np.resize(x.view(np.uint8), copied.nbytes))
    assert len(calls) == (2 if own else 1)


class Recording(measure.Host):
    """A place whose graphs are the calls themselves."""

    def recorded(self, calls: measure.Calls) -> Any:
        return lambda: [call() for call in calls]


def test_what_is_asked_for_is_timed_in_a_graph_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measure.PLACES, "numpy", Recording)

    for case in (SIGMOID, replace(SIGMOID, graphed=True)):
        tables = list(suite.run([case], [PLANTED], 0.001))
        names = [SIGMOID.name, SIGMOID.name + cases.IN_A_GRAPH][: 1 + case.graphed]
        assert [rows[0].case for rows in tables[:-1]] == names
    plain, graphs, _ = tables
    assert [row.provider for row in graphs] == [row.provider for row in plain]
    assert {row.status for row in graphs} == {"timed"}
    assert graphs[1].share_of_copy == graphs[0].timing.median / graphs[1].timing.median
    assert graphs[1].bytes == SIGMOID.bytes

    monkeypatch.setattr(Recording, "recorded", measure.Host.recorded)
    _, graphs, _ = suite.run([replace(SIGMOID, graphed=True)], [PLANTED], 0.001)
    assert {row.reason for row in graphs} == {"NotImplementedError: a CPU has no CUDA graphs"}


RIVALS = {provider.name: provider for provider in providers.ON_CPU}


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("name", EVERY)
def test_every_spelling_computes_what_it_should(name: str, rival: str) -> None:
    provider, case = RIVALS[rival], small(EVERY[name])
    reason = provider.why_not()
    if reason is not None:
        pytest.skip(reason)
    if provider.spell(case) is not None:
        assert judged(case, provider) == ("timed", "")


def judged(case: cases.Case, provider: providers.Provider) -> tuple[str, str]:
    """What the suite says to a provider's results."""
    arrays = cases.inputs(case)
    judge, _ = suite._judge(case, provider, arrays)
    place = measure.PLACES[provider.place]()
    held = [place.copy(place.put(array)) for array in arrays.values()]  # some write over theirs
    function = provider.spell(case)
    assert function is not None
    expected = suite.reference(case, arrays)
    return suite.checked(case, place, lambda: function(*held, **case.options), expected, judge)


@pytest.mark.parametrize(
    "name", [n for n, c in EVERY.items() if c.function == "cross_entropy_with_grad"]
)
def test_torch_compiles_a_loss_and_its_gradient_in_one_graph(name: str) -> None:
    torch = pytest.importorskip("torch")
    compiled = providers._torch(
        small(EVERY[name]),
        lambda function: torch.compile(function, backend="aot_eager", fullgraph=True),
    )
    assert judged(small(EVERY[name]), on_torch(compiled)) == ("timed", "")


def cupy_as_numpy(name: str) -> Any:
    return getattr(pytest.importorskip("scipy").special, name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"axis": 0}])
@pytest.mark.parametrize("function", ["sigmoid", "softmax", "log_softmax"])
def test_cupyx_functions_take_our_axis_and_keep_the_dtype(
    function: str, options: dict[str, int], dtype: str
) -> None:
    """Its functions are SciPy's by name and meaning, but of float32 in place of a half type."""
    pytest.importorskip("cupy")
    if options and function == "sigmoid":
        return
    case = cases.Case(function, dtype, (5, 7), 4, options=options)
    x = cases.inputs(case)["x"]
    wide = {name: cupy_as_numpy(name) for name, _ in providers.SCIPY.values()}
    stands = {name: lambda x, f=f, **o: f(x.astype(np.float32), **o) for name, f in wide.items()}
    with pytest.MonkeyPatch.context() as patch:
        import cupyx.scipy.special

        for name, stand in stands.items():
            patch.setattr(cupyx.scipy.special, name, stand)
        y = providers._cupyx(case)(x, **options)
    assert suite.mistake(case, (y,), suite.reference(case, {"x": x})) is None


# -- kernels of others: modules with the signatures of Liger 0.8, QuACK 0.6 and FlagGems 5.0 -----


def module(name: str, **functions: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(functions)
    return made


def smoothed_loss(logits: Array, target: Array, reduction: str, smoothing: float) -> Array:
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits, target, reduction=reduction, label_smoothing=smoothing)


def loss_and_gradient(logits: Array, target: Array, smoothing: float = 0.0) -> tuple[Array, Array]:
    import torch

    z = logits.detach().clone().requires_grad_()
    loss = smoothed_loss(z, target, "none", smoothing)
    (dlogits,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach(), dlogits


def liger() -> list[types.ModuleType]:
    import torch

    def settings(n: int) -> tuple[int, int]:
        if n > 65536:
            raise RuntimeError(f"Cannot launch Triton kernel since n = {n} exceeds")
        return 1 << (n - 1).bit_length(), 4

    class Softmax:
        @staticmethod
        def forward(ctx: Any, input_: Array) -> Array:
            settings(input_.shape[-1])
            ctx.save_for_backward(input_)
            return torch.softmax(input_, -1)

        @staticmethod
        def backward(ctx: Any, grad_output: Array) -> Array:
            (y,) = ctx.saved_tensors
            assert settings(y.shape[-1]) == (ctx.BLOCK_SIZE, ctx.num_warps)
            assert not ctx.multi_block_launch
            return torch.ops.aten._softmax_backward_data(grad_output, y, -1, y.dtype)

    def cross_entropy_forward(
        _input: Array,
        target: Array,
        weight: None,
        ignore_index: int,
        lse_square_scale: float,
        label_smoothing: float,
        reduction: str,
        softcap: None,
        return_z_loss: bool,
        return_token_accuracy: bool = False,
        return_predicted_tokens: bool = False,
    ) -> tuple[Any, ...]:
        assert (weight, ignore_index, lse_square_scale, softcap) == (None, -100, 0.0, None)
        assert (reduction, return_z_loss) == ("none", False)
        loss, dlogits = loss_and_gradient(_input, target, label_smoothing)
        if _input.requires_grad:
            _input.data.copy_(dlogits)
        return loss, None, None, None, _input

    return [
        module("liger_kernel"),
        module("liger_kernel.ops"),
        module("liger_kernel.ops.softmax", LigerSoftmaxFunction=Softmax),
        module("liger_kernel.ops.cross_entropy", cross_entropy_forward=cross_entropy_forward),
        module("liger_kernel.ops.utils", calculate_settings=settings),
    ]


def quack() -> list[types.ModuleType]:
    import torch

    def cross_entropy_fwd(
        x: Array,
        target: Array,
        target_logit: None = None,
        weight: None = None,
        ignore_index: int = -100,
        return_lse: bool = False,
        return_dx: bool = False,
        inplace_backward: bool = False,
    ) -> Any:
        loss, dlogits = loss_and_gradient(x, target)
        return (loss, dlogits) if return_dx else loss

    return [
        module("quack"),
        module(
            "quack.softmax",
            softmax_fwd=lambda x: torch.softmax(x, -1),
            softmax_bwd=lambda dy, y: torch.ops.aten._softmax_backward_data(dy, y, -1, y.dtype),
        ),
        module("quack.cross_entropy", cross_entropy_fwd=cross_entropy_fwd),
    ]


def flag_gems() -> list[types.ModuleType]:
    import torch

    def cross_entropy_loss(
        inp: Array,
        target: Array,
        weight: None = None,
        reduction: str = "mean",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> Array:
        return smoothed_loss(inp, target, reduction, label_smoothing)

    aten = torch.ops.aten
    return [
        module(
            "flag_gems",
            relu=torch.relu,
            softmax=lambda self, dim, half_to_float=False: torch.softmax(self, dim),
            log_softmax=lambda self, dim, half_to_float=False: torch.log_softmax(self, dim),
            softmax_backward=aten._softmax_backward_data,
            log_softmax_backward=aten._log_softmax_backward_data,
            cross_entropy_loss=cross_entropy_loss,
        )
    ]


OTHERS = {  # and the functions that each has
    "Liger": (
        liger,
        {"softmax", "softmax_backward", "cross_entropy", "cross_entropy_with_grad"},
    ),
    "QuACK": (
        quack,
        {"softmax", "softmax_backward", "cross_entropy", "cross_entropy_with_grad"},
    ),
    "FlagGems": (
        flag_gems,
        {"relu", "softmax", "softmax_backward", "log_softmax", "log_softmax_backward"}
        | {"cross_entropy", "cross_entropy_with_grad"},
    ),
}


def other(name: str, monkeypatch: pytest.MonkeyPatch) -> providers.Provider:
    """The rival on CPU tensors, with such modules in place of its own."""
    pytest.importorskip("torch")
    for made in OTHERS[name][0]():
        monkeypatch.setitem(sys.modules, made.__name__, made)
    (found,) = (p for p in providers.ROWS_ON_GPU if p.name == name)
    return replace(found, place="torch on the CPU", why_not=lambda: None)


@pytest.mark.parametrize("name", OTHERS)
def test_kernels_of_others_are_called_as_they_ask(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = other(name, monkeypatch)
    spelled = set()
    for case in {small(case).name: small(case) for case in cases.ROWS_GPU}.values():
        if rival.spell(case) is not None:
            assert judged(case, rival) == ("timed", "")
            spelled.add(case.function)
            assert name == "FlagGems" or "axis" not in case.options
            assert name != "QuACK" or "label_smoothing" not in case.options
    assert spelled == OTHERS[name][1]


def test_what_keeps_another_s_kernels_from_running_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(providers, "_no_torch_gpu", lambda: None)
    monkeypatch.setitem(sys.modules, "flag_gems", None)
    assert str(providers._no_rival("flag_gems")).startswith("flag_gems cannot be imported (")
    assert providers._no_rival("json") is None
    monkeypatch.setattr(providers, "_no_torch_gpu", lambda: "torch finds no CUDA GPU")
    assert providers._no_rival("json") == "torch finds no CUDA GPU"


def test_liger_s_limit_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.Case("softmax", "float32", (1, 65537), 8)
    row = rows_of(case, other("Liger", monkeypatch))["Liger"]
    assert row.status == "failed"
    assert row.reason.startswith("RuntimeError: Cannot launch Triton kernel since n = 65537")


def test_who_overwrites_his_input_has_one_of_his_own(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.Case("cross_entropy_with_grad", "float32", (5, 7), 8, 12, cases.ROWWISE)
    before = cases.inputs(case)["logits"].copy()
    found = rows_of(case, other("Liger", monkeypatch), RIVALS["torch"])
    assert [row.status for row in found.values()] == ["timed"] * 3
    assert [row.note for row in found.values()] == ["", suite.OVERWRITES, ""]
    assert np.array_equal(cases.inputs(case)["logits"], before)


def on_torch(function: Any) -> providers.Provider:
    return replace(RIVALS["torch"], spell=lambda case: function)


CHAINS = {c.name: c for c in cases.ELEMENTWISE_GPU if isinstance(c, cases.Chain)}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", CHAINS)
def test_chains_have_a_torch_spelling_to_compile(name: str, dtype: str) -> None:
    """Without the compiler: it would be asked for these very functions."""
    pytest.importorskip("torch")
    case = replace(CHAINS[name], dtype=dtype, shape=(64, 96))
    spelled = providers._torch(case, compiled=lambda function: function)
    assert judged(case, on_torch(spelled)) == ("timed", "")


def test_torch_compiles_a_chain_s_backward_whole() -> None:
    """In one graph: nothing of `torch.func.vjp` is left to Python. No C++ compiler is called."""
    torch = pytest.importorskip("torch")
    case = next(c for c in CHAINS.values() if c.text == cases.GATED and c.backward)
    case = replace(case, shape=(16, 24))
    compiled = providers._torch(
        case, lambda function: torch.compile(function, backend="aot_eager", fullgraph=True)
    )
    assert judged(case, on_torch(compiled)) == ("timed", "")


DROPPING = replace(
    next(c for c in CHAINS.values() if c.text == cases.EVERYTHING), shape=(64, 96), dtype="float32"
)


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
        assert suite.checked(DROPPING, measure.Host(), call, expected, judge)[0] == word


def test_a_rival_that_rounds_step_by_step_may_stray_once_in_a_thousand() -> None:
    case = replace(next(c for c in CHAINS.values() if c.text == cases.GATED), shape=(100, 100))
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


def test_an_infinite_sum_is_right_where_it_is_expected() -> None:
    case = cases.Case("linear_backward", "float16", (3,), 6, options=cases.AFFINE)
    total = np.asarray(np.inf, np.float16)
    assert suite.mistake(case, (total,), (total,)) is None
    assert suite.mistake(case, (-total,), (total,)) is not None
    assert suite.mistake(case, (np.asarray(1, np.float16),), (total,)) is not None
    assert suite.mistake(case, (np.asarray(np.nan, np.float16),), (total,)) is not None


# -- CuPy's kernels, executed by the PTX interpreter ----------------------------------------------


def stated(key: str, dtype: str) -> cases.Case:
    """A small case of a function, or of a chain by its text."""
    case = next(
        c for c in cases.ELEMENTWISE_GPU if key in (getattr(c, "text", c.function), c.function)
    )
    return replace(case, dtype=dtype, shape=(100,) if len(case.shape) == 1 else (20, 5))


def operands(case: cases.Case) -> list[Any]:
    """What a kernel takes: parameters lie along axis 1."""
    arrays = cases.inputs(case)
    return [
        a.reshape(1, -1) if name in cases.PARAMETERS else a for name, a in arrays.items()
    ] + list(case.options.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("key", providers.ELEMENTWISE)
def test_plain_cupy_kernels_compute_what_they_should(key: str, dtype: str) -> None:
    """So that the rival is known to be right without a GPU."""
    pytest.importorskip("cupy")
    from tests.ptxrun import cupyrun

    case = stated(key, dtype)
    given = operands(case)
    if key == "linear_backward":  # x and bias are for the sums
        given = [given[0], given[2]]
    out = np.full(case.shape, np.nan, numpy_dtype(dtype))
    cupyrun.elementwise(providers.plain_kernel(key), given, [out], arch=90)
    expected = suite.reference(case, cases.inputs(case))
    assert suite.mistake(case, (out,), expected[:1]) is None


SUMMED = {
    "x·dy": lambda dy, x: x * dy,
    "dy": lambda dy: dy,
    "x·dy where x ≤ 0": lambda dy, x: np.where(x > 0, 0, x * dy),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("terms", providers.SUMS)
def test_plain_cupy_sums_are_right(terms: str, dtype: str) -> None:
    pytest.importorskip("cupy")
    rng = np.random.default_rng(0)
    kernel = providers.plain_sum(terms)
    arrays = [rng.standard_normal((40, 3)).astype(numpy_dtype(dtype)) for _ in range(kernel.nin)]
    out = np.full(3, np.nan, numpy_dtype(dtype))
    reduced(kernel, arrays, out)
    exact = SUMMED[terms](*(a.astype(np.float64) for a in arrays)).sum(0)
    assert np.allclose(out.astype(np.float64), exact, rtol=suite.TOLERANCE[dtype])


def reduced(kernel: Any, arrays: Sequence[Array], out: Array) -> None:
    """A ReductionKernel over the first axis, as CuPy writes it for one block an output."""
    import cupy
    from cupy._core import _carray, _kernel, _reduction, _scalar

    from tests.ptxrun import cupyrun, memory, run_ptx

    element = out.dtype.type
    infos, args = [], []
    for array in (*arrays, out):
        infos.append(_kernel._ArgInfo(1, cupy.ndarray, out.dtype, array.ndim, True, True))
        args.append(memory.carray(array))
    for shape in (arrays[0].shape, out.shape):
        infos.append(_kernel._ArgInfo(2, _carray.Indexer, None, len(shape), True, True))
        args.append(memory.cindexer(shape))
    infos.append(_kernel._ArgInfo(3, _scalar.CScalar, np.dtype(np.int32), 0, True, True))
    names = [p.name for p in kernel.in_params]
    code = _reduction._create_reduction_function_code(
        kernel.name, 32, kernel.reduce_type, kernel._params, tuple(infos), kernel.identity,
        kernel.map_expr, kernel.reduce_expr, kernel.post_map_expr,
        _kernel._TypeMap((("T", element), ("IndexT", "int32"))),
        "".join(f"const T {name} = _raw_{name}[_in_ind.get()];" for name in names),
        "T &out = _raw_out[_out_ind.get()];", kernel.preamble, (),
    )  # fmt: skip
    source = cupyrun.Source(cupyrun._HEADERS + code, (), [*args, np.int32(1)])
    run_ptx(cupyrun.parsed(source.ptx(90)), kernel.name, out.size, 32, source.args)


WRITTEN = ("linear", "sigmoid", "sigmoid_backward", "tanh", "tanh_backward", "relu",
           "relu_backward", "leaky_relu", "leaky_relu_backward", "prelu",
           cases.SCALED, cases.GATED)  # fmt: skip


@cache
def unowned() -> Any:
    import cupy

    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(1 << 12, 1 << 12, None, 0), 0)


def fused_kernel(fused: Any, arguments: Sequence[Any]) -> Any:
    """The ElementwiseKernel that `cupy.fuse` makes; of an array it looks at dtype and ndim."""
    import cupy
    from cupy._core import fusion

    looked_at = [
        cupy.ndarray((1,) * a.ndim, a.dtype, unowned()) if isinstance(a, np.ndarray) else a
        for a in arguments
    ]
    history = fusion._FusionHistory()
    fusion._thread_local.history, fusion._thread_local.is_old_fusing = history, True
    try:
        kernel, _ = history.get_fusion(fused.func, tuple(looked_at), fused.name)
    finally:
        fusion._thread_local.history, fusion._thread_local.is_old_fusing = None, False
    return kernel


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("key", WRITTEN)
def test_what_cupy_fuses_computes_what_it_should(key: str, dtype: str) -> None:
    pytest.importorskip("cupy")
    from tests.ptxrun import cupyrun

    case = stated(key, dtype)
    fused = providers.fused_by_cupy(case)
    arrays = operands(case)
    given = [*arrays[: len(arrays) - len(case.options)], *providers.numbers(case)]
    kernel = fused_kernel(fused, given)
    made = kernel.out_params[0].dtype
    if dtype == "bfloat16" and key in ("leaky_relu_backward", "prelu"):
        # CuPy's `where` makes float32 of it: on a GPU that is a row that says so
        assert made == np.float32
    else:
        assert made == numpy_dtype(dtype)
    out = np.full(case.shape, np.nan, made)
    cupyrun.elementwise(kernel, given, [out], arch=90)
    expected = suite.reference(case, cases.inputs(case))
    wide = tuple(y.astype(made) for y in expected)
    assert suite.mistake(case, (out,), wide, suite.STRAY.get(dtype, 0)) is None


# -- what autograd holds --------------------------------------------------------------------------


HOLDS = {  # bytes an element of bfloat16, and of what: gpuact, then torch eager
    "linear": ({}, {}),
    "sigmoid": ({"y": 2}, {"y": 2}),
    "tanh": ({"y": 2}, {"y": 2}),
    "relu": ({"y": 2}, {"y": 2}),
    "leaky_relu": ({"y": 2}, {"x": 2}),  # y is what the next layer keeps anyway
    "prelu": ({"x": 2}, {"x": 2}),
    cases.SCALED: ({"x": 2}, {"x": 2, "y": 2}),
    cases.GATED: ({"x": 2, "gate": 2}, {"gate": 2, "the rest": 2}),
    cases.DROPPED: ({"x": 2}, {"x": 2, "the rest": 2}),  # on a CPU the mask is of x's dtype
    cases.EVERYTHING: ({"x": 2, "gate": 2}, {"x": 2, "gate": 2, "the rest": 6}),
}


def test_what_autograd_holds_is_measured() -> None:
    pytest.importorskip("torch")
    rows = [row for rows in held.held(cases.HELD, providers.HOLDERS_ON_CPU) for row in rows]
    names = {case.name: getattr(case, "text", case.function) for case in cases.HELD}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        assert row.reason == ""
        assert row.bytes == sum(row.kept.values())
        each = {name: size / row.elements for name, size in row.kept.items()}
        found.setdefault(names[row.case], {})[row.provider] = each
    assert {key: tuple(by.values()) for key, by in found.items()} == HOLDS
    assert all(list(by) == ["gpuact on torch tensors", "torch"] for by in found.values())


def test_what_a_compiled_chain_holds_is_measured() -> None:
    torch = pytest.importorskip("torch")
    case = next(c for c in cases.HELD if getattr(c, "text", "") == cases.SCALED)
    compiled = torch.compile(providers._torch(case), backend="aot_eager")
    place = measure.TorchHost()
    arrays = {name: place.put(array) for name, array in cases.inputs(case).items()}
    assert {"x", "y"} <= set(held.kept(compiled, arrays))


def test_what_cannot_be_held_says_why() -> None:
    pytest.importorskip("torch")
    broken = replace(providers.HOLDERS_ON_CPU[0], spell=lambda case: raising)
    (row,) = next(held.held(cases.HELD[:1], [broken]))
    assert row.reason == "TypeError: raising() got an unexpected keyword argument 'scale'"
    absent = replace(broken, why_not=lambda: "no torch here")
    assert list(held.held(cases.HELD[:1], [absent])) == []


# -- what a call costs the host -------------------------------------------------------------------


def test_host_costs_are_of_calls_that_are_right() -> None:
    pytest.importorskip("torch")
    wrong = replace(
        providers.CALLERS_ON_CPU[0], name="wrong", ways=lambda x, y: {cases.PLAIN: lambda: x}
    )
    names = tuple(cases.HOST.values())
    tables = list(host.costs([*providers.CALLERS_ON_CPU, wrong], names, 0.001))
    assert [rows[0].case for rows in tables] == list(names)
    who = [[row.provider for row in rows if row.timing] for rows in tables]
    assert who == [
        ["gpuact on NumPy", "NumPy", "gpuact on torch tensors", "torch"],
        ["gpuact on NumPy", "NumPy", "gpuact on torch tensors", "torch"],
        ["gpuact on torch tensors", "torch", "an empty autograd function"],
    ]
    (bad,) = (row for rows in tables for row in rows if row.timing is None)
    assert (bad.provider, bad.status) == ("wrong", "wrong")
    assert "values differ" in bad.reason
    for rows in tables:
        assert all(0 < row.timing.median < 0.1 for row in rows if row.timing)
    assert list(host.costs([], names, 0.001)) == []


def test_calls_under_autograd_record() -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(8)
    for caller in providers.CALLERS_ON_CPU[2:]:
        y = caller.ways(x, torch.empty_like(x))[cases.RECORDED]()
        assert y.requires_grad
        assert y.grad_fn is not None


def test_nobody_waits_for_the_device_while_the_clock_runs() -> None:
    events: list[str] = []

    class Place(measure.Host):
        def synchronize(self) -> None:
            events.append("wait")

    place = measure.Unwaited(Place())
    assert 0 < place.seconds([lambda: events.append("call")], 3) < 1
    assert events == ["wait", "call", "call", "call", "wait"]


# -- what a call costs inside PyTorch -------------------------------------------------------------


def test_rows_inside_torch_are_named_and_all_there() -> None:
    names = [row.name.removesuffix(" float32 8×128") for row in in_torch.ROWS]
    assert len(set(names)) == len(names) == 16
    functions = ("relu", "sigmoid", "prelu", "softmax", "log_softmax", "cross_entropy")
    for name in (*functions, "relu→tanh→softmax"):
        assert {f"{name} forward", f"{name} forward + backward"} <= set(names)
    assert {"softmax torch.func.vmap", "softmax torch.func.grad"} <= set(names)
    widths = report.OVERHEAD
    assert max(map(len, names)) <= widths[0]
    assert widths[0] + len(providers.IN_TORCH_ON_CPU) * (1 + widths[1]) < 80
    for on_cpu, on_gpu in zip(providers.IN_TORCH_ON_CPU, providers.IN_TORCH_ON_GPU, strict=True):
        assert (on_cpu.name, on_cpu.compiles) == (on_gpu.name, on_gpu.compiles)
        assert {on_cpu.place, on_gpu.place} == set(in_torch.MODES) == set(in_torch.WHAT)


def test_costs_inside_torch_are_of_calls_that_are_right() -> None:
    """gpuact and its modules beside torch, in every row; faults are rows that say so."""
    pytest.importorskip("torch")
    theirs, _, ours, _, modules = providers.IN_TORCH_ON_CPU
    wrong = replace(
        ours, name="wrong", spell=lambda case: lambda *args: 1.01 * providers._torch(case)(*args)
    )
    broken = replace(ours, name="broken", spell=raising)
    lacking = replace(ours, name="lacking", spell=lambda case: None)
    absent = replace(ours, name="absent", why_not=lambda: "not here")
    who = (theirs, ours, modules, wrong, broken, lacking, absent)
    *tables, rest = in_torch.costs(in_torch.ROWS, who, 0.001)
    assert [rows[0].case for rows in tables] == [row.name for row in in_torch.ROWS]
    for rows in tables:
        timed = dict.fromkeys(("torch", "gpuact", "gpuact.torch.nn"), "timed")
        found = {row.provider: row.status for row in rows}
        assert found == {**timed, "wrong": "wrong", "broken": "failed"}
        assert all(0 < row.timing.median < 0.1 for row in rows if row.timing)
        assert rows[-1].reason == "RuntimeError: no such kernel"
    assert rest == [host.Cost("", "absent", "unavailable", "not here")]
    assert list(in_torch.costs(in_torch.ROWS, [absent], 0.001)) == [rest]


def test_a_wrong_gradient_inside_torch_is_found() -> None:
    torch = pytest.importorskip("torch")
    off = replace(
        providers.IN_TORCH_ON_CPU[0], spell=lambda case: lambda x: torch.relu(x) + x - x.detach()
    )
    row = in_torch.Row(("relu",), in_torch.BACKWARD)
    ((found,), _) = in_torch.costs([row], [off], 0.001)
    assert (found.status, found.timing) == ("wrong", None)
    assert "values differ" in found.reason


def test_a_cpu_s_costs_inside_torch_are_of_one_thread() -> None:
    torch = pytest.importorskip("torch")
    threads: list[int] = []

    def relu(x: Array) -> Array:
        threads.append(torch.get_num_threads())
        return torch.relu(x)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        spied = replace(providers.IN_TORCH_ON_CPU[0], spell=lambda case: relu)
        list(in_torch.costs(in_torch.ROWS[:1], [spied], 0.001))
        assert set(threads) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("row", in_torch.ROWS, ids=lambda row: row.name)
def test_gradients_inside_torch_are_taken_where_the_row_says_so(row: in_torch.Row) -> None:
    pytest.importorskip("torch")
    place = measure.TorchHost()
    learned = 2 if row.functions == ("prelu",) else 1
    for provider in providers.IN_TORCH_ON_CPU[::2]:
        found = in_torch.call_of(row, provider, place)()
        if row.way == in_torch.BACKWARD:
            y, *gradients = found
            assert y.requires_grad
            assert len(gradients) == learned
            assert all(g.abs().sum() > 0 and not g.requires_grad for g in gradients)
        else:
            assert not found.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("row", in_torch.ROWS, ids=lambda row: row.name)
def test_calls_inside_torch_compile_in_one_graph(
    row: in_torch.Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the compiler behind, which would be asked for seconds."""
    torch = pytest.importorskip("torch")
    asked: list[dict[str, Any]] = []
    compiled = torch.compile

    def compile(function: Any, **options: Any) -> Any:
        asked.append(options)
        return compiled(function, fullgraph=True, dynamic=False, backend="aot_eager")

    monkeypatch.setattr("torch.compile", compile)
    place, expected = measure.TorchHost(), in_torch._right(row)
    for provider in providers.IN_TORCH_ON_CPU:
        torch.compiler.reset()
        call = in_torch.call_of(row, provider, place)
        assert suite.checked(row.cases[0], place, call, expected) == ("timed", "")
    assert asked == [{"fullgraph": True, "dynamic": False, "mode": "default"}] * 2


@pytest.mark.filterwarnings(  # of how torch finds a compiler
    "ignore:The distutils package:DeprecationWarning", "ignore:Distutils was imported before"
)
def test_where_nothing_compiles_the_compiled_say_why() -> None:
    torch = pytest.importorskip("torch")
    from torch._inductor import config

    probe = providers._no_compiler.__wrapped__  # which is asked once
    torch.compiler.reset()
    with config.patch({"cpp.cxx": ("no such compiler",)}):
        reason = probe("cpu")
    assert reason.startswith("torch.compile cannot compile here (InductorError: InvalidCxxCompiler")
    assert "no such compiler" in reason
    assert "\n" not in reason
    torch.compiler.reset()
    if shutil.which("g++"):
        assert probe("cpu") is None


def test_an_error_in_a_line_says_what_went_wrong() -> None:
    said = providers.in_a_line(RuntimeError("backend='inductor' raised:\nKeyError: 'x'\n\nSet …"))
    assert said == "RuntimeError: backend='inductor' raised: KeyError: 'x'"
    assert providers.in_a_line(ValueError("one\ntwo")) == "ValueError: one"
    assert providers.in_a_line(ValueError()) == "ValueError: "


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


def test_a_replayed_call_is_its_share_of_the_graph() -> None:
    replays: list[int] = []

    class Place(measure.Host):
        def recorded(self, calls: measure.Calls) -> Any:
            return lambda: replays.append(len(calls))

        def seconds(self, calls: measure.Calls, count: int) -> float:
            super().seconds(calls, count)
            return 0.4 * count

    calls = [lambda: None] * 4
    place = measure.Replayed(Place(), calls)
    assert place.seconds(calls, 1) == pytest.approx(0.1)
    assert place.seconds(calls, 9) == pytest.approx(0.9)
    assert replays == [4] * (1 + 3)


@pytest.mark.parametrize("fails", [False, True])
def test_cupy_records_on_a_stream_whose_pool_has_the_memory(fails: bool) -> None:
    """Called once before, all outputs alive; and the stream never stays in recording."""
    events: list[str] = []

    class Stream:
        def __init__(self, non_blocking: bool) -> None:
            assert non_blocking

        def __enter__(self) -> Stream:
            return self

        def __exit__(self, *error: object) -> None:
            events.append("exit")

        def synchronize(self) -> None:
            events.append("wait")

        def begin_capture(self) -> None:
            events.append("begin")

        def end_capture(self) -> Any:
            events.append("end")
            return types.SimpleNamespace(launch=lambda: events.append("launch"))

    def call() -> str:
        if fails and "begin" in events:
            raise RuntimeError("not while recording")
        events.append("call")
        return "output"

    place = measure.Cupy.__new__(measure.Cupy)
    place.cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(Stream=Stream))
    if fails:
        with pytest.raises(RuntimeError, match="not while recording"):
            place.recorded([call, call])
        assert events == ["call", "call", "wait", "begin", "end", "exit"]
    else:
        replay = place.recorded([call, call])
        assert replay() == ["output", "output"]
        assert events == [
            *["call", "call", "wait", "begin"],
            *["call", "call", "end", "exit"],
            "launch",
        ]


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
    monkeypatch.setattr("bench.run.ELEMENTWISE_CPU", tuple(map(small, cases.ELEMENTWISE_CPU)))
    monkeypatch.setattr("bench.run.ROWS_CPU", tuple(map(small, cases.ROWS_CPU)))
    monkeypatch.setattr("bench.run.ON_CPU", providers.ON_CPU[:3])
    names = {case.name: small(case).name for case in cases.CPU}
    goals = tuple(replace(goal, case=names[goal.case]) for goal in cases.GOALS)
    monkeypatch.setattr("bench.run.GOALS", goals)
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
        *("settings", "rows", "host_costs", "held_for_backward", "goals", "digits"),
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
    from bench import run

    goals = tuple(replace(goal, limit=1e9) for goal in run.GOALS[:1])
    monkeypatch.setattr("bench.run.GOALS", goals)
    assert main(["--suite", "cpu", "--seconds", "0.001"]) == 0
    assert main(["--suite", "cpu", "--seconds", "0.001", "--check"]) == 1
    printed = capsys.readouterr().out
    assert "missed" in printed
    assert f"check: gpuact on NumPy: {goals[0].case} beside NumPy: missed with " in printed


@pytest.mark.usefixtures("quick")
def test_check_fails_on_a_wrong_result_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.run.GOALS", ())
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


@pytest.mark.usefixtures("quick")
def test_the_elementwise_suite_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("bench.run._gpu_answers", lambda: False)
    asked = ["--suite", "elementwise", "--seconds", "0.001"]
    assert main([*asked, "--check", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "No GPU answers here" in printed
    assert "Goals" not in printed
    assert "its mask is its own" in printed
    for name in cases.HOST.values():
        assert name in printed

    (path,) = tmp_path.glob("*-elementwise.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in result["rows"] if row["provider"] == providers.OURS]
    assert {row["case"] for row in rows} == {small(c).name for c in cases.ELEMENTWISE_CPU}
    assert {row["status"] for row in result["rows"]} == {"timed"}
    assert {row["note"] for row in result["rows"]} == {"", suite.OWN_MASK}
    assert {row["case"] for row in result["host_costs"]} == set(cases.HOST.values())
    assert all(row["timing"]["median"] > 0 for row in result["host_costs"])
    assert {row["case"] for row in result["held_for_backward"]} == {c.name for c in cases.HELD}
    assert result["goals"] == []
    assert result["settings"]["only"] is None

    assert main([*asked, "--only", "leaky_relu_backward", "--out", str(tmp_path / "some")]) == 0
    (path,) = (tmp_path / "some").iterdir()
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {row["case"] for row in result["rows"]} == {"leaky_relu_backward float32 5"}
    assert (result["host_costs"], result["held_for_backward"]) == ([], [])
    capsys.readouterr()
    assert main([*asked, "--only", "nothing of the kind"]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "'nothing of the kind' came" in said.err
    assert said.out == ""


def test_the_elementwise_suite_is_the_gpu_s_where_one_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bench import run

    monkeypatch.setattr("bench.run._gpu_answers", lambda: True)
    found = run._suite("elementwise")
    assert found.cases is cases.ELEMENTWISE_GPU
    assert found.goals is cases.ELEMENTWISE_GOALS
    assert found.providers is providers.ELEMENTWISE_ON_GPU
    some = found.only("fused_backward")
    assert {goal.case for goal in some.goals} == {case.name for case in some.cases}
    assert len(some.cases) == 4
    assert found.only("cost to the host").ways == list(cases.HOST.values())


@pytest.mark.usefixtures("quick")
def test_the_rows_suite_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("scipy")
    monkeypatch.setattr("bench.run._gpu_answers", lambda: False)
    asked = ["--suite", "rows", "--seconds", "0.001"]
    assert main([*asked, "--check", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "No GPU answers here" in printed
    assert "Goals" not in printed
    (path,) = tmp_path.glob("*-rows.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in result["rows"] if row["provider"] == "gpuact on NumPy"]
    assert {row["case"] for row in rows} == {small(c).name for c in cases.ROWS_CPU}
    assert {row["status"] for row in result["rows"]} == {"timed"}
    assert (result["goals"], result["settings"]["suite"]) == ([], "rows")

    assert main([*asked, "--only", "smoothing"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("smoothing 0.1") == 2
    assert "log_softmax" not in printed


def test_the_rows_suite_is_the_gpu_s_where_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import run

    monkeypatch.setattr("bench.run._gpu_answers", lambda: True)
    monkeypatch.setattr("bench.report._gpus", lambda: [{"name": "NVIDIA H100 80GB HBM3"}])
    found = run._suite("rows")
    assert (found.cases, found.providers) == (cases.ROWS_GPU, providers.ROWS_ON_GPU)
    assert found.goals == cases.rows_goals("NVIDIA H100 80GB HBM3")
    assert not (found.callers or found.holders or found.held or found.ways)
    some = found.only("softmax bfloat16 4×131072")
    assert [case.name for case in some.cases] == ["softmax bfloat16 4×131072"]
    assert len(some.goals) == 2
    monkeypatch.setattr("bench.report._gpus", list)
    assert run._suite("rows").goals == cases.rows_goals("")


def test_the_torch_suite_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    theirs, compiled, ours, *_ = providers.IN_TORCH_ON_CPU
    absent = replace(compiled, why_not=lambda: "no compiler")
    monkeypatch.setattr("bench.run.IN_TORCH_ON_CPU", (theirs, absent, ours))
    monkeypatch.setattr(
        "bench.run.IN_TORCH_ON_GPU", (replace(theirs, why_not=lambda: "no GPU here"),)
    )
    asked = ["--suite", "torch", "--seconds", "0.001", "--only", "prelu", "--check"]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    heading = lines.index(next(line for line in lines if line.startswith("µs of a call float32")))
    assert "in one thread" in lines[heading - 3]
    assert lines[heading - 2] == "torch.compile: fullgraph, static shapes, mode default"
    assert (lines[heading - 1].split(), lines[heading].split()[-3:]) == (
        ["torch."],
        ["torch", "compile", "gpuact"],
    )
    for k, name in enumerate(("prelu forward", "prelu forward + backward"), 1):
        assert lines[heading + k].startswith(name)
        first, missing, last = lines[heading + k].removeprefix(name).split()
        assert (float(first) > 0, missing, float(last) > 0) == (True, "–", True)
    assert lines[heading + 3] == "  torch.compile: unavailable: no compiler"

    (path,) = tmp_path.glob("*-torch.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    assert (result["settings"]["suite"], result["settings"]["only"]) == ("torch", "prelu")
    assert (result["rows"], result["held_for_backward"], result["goals"]) == ([], [], [])
    found = [(row["case"], row["provider"], row["status"]) for row in result["host_costs"]]
    assert found == [
        ("prelu forward float32 8×128", "torch", "timed"),
        ("prelu forward float32 8×128", "gpuact", "timed"),
        ("prelu forward + backward float32 8×128", "torch", "timed"),
        ("prelu forward + backward float32 8×128", "gpuact", "timed"),
        ("", "torch.compile", "unavailable"),
    ]
    assert main([*asked[:2], "--only", "nothing of the kind"]) == 2

    wrong = replace(ours, spell=lambda case: lambda x, *more: x)
    monkeypatch.setattr("bench.run.IN_TORCH_ON_CPU", (theirs, wrong))
    assert main(asked) == 1
    assert "  gpuact: wrong: " in capsys.readouterr().out


def test_the_torch_suite_is_the_gpu_s_where_torch_finds_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bench import run

    here = tuple(replace(p, why_not=lambda: None) for p in providers.IN_TORCH_ON_GPU)
    monkeypatch.setattr("bench.run.IN_TORCH_ON_GPU", here)
    found = run._suite("torch")
    assert (found.providers, found.in_torch) == (here, in_torch.ROWS)
    assert not (found.cases or found.callers or found.holders or found.held or found.ways)


def test_goals_stand_below_their_cases_with_who_was_better(
    capsys: pytest.CaptureFixture[str],
) -> None:
    goals = cases.rows_goals("NVIDIA H100 80GB HBM3")
    case = goals[-1].case
    rows = [row(case, CUPY, 1.0), row(case, TRITON, 2.0), row(case, "torch", 3.0)]
    report.print_verdicts(report.console(), suite.verdicts(rows, goals))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "Goals",
        "softmax bfloat16 32768×256",
        "  not measured: gpuact on CuPy or gpuact on Triton, goal ≥ 1900 GB/s",
    ]
    assert lines[-2:] == [
        "softmax bfloat16 4×131072, in a CUDA graph",
        "  held: gpuact on CuPy 3.00 beside every rival, goal ≥ 1 times as fast",
    ]
    assert lines.count("log_softmax bfloat16 32768×50257") == 1


def test_goals_are_counted_and_the_missed_ones_named(capsys: pytest.CaptureFixture[str]) -> None:
    def verdict(case: str, value: float | None, **more: Any) -> suite.Verdict:
        goal = cases.Goal(case, ("copy",), 0.95, ours=("gpuact on CuPy",))
        return suite.Verdict(goal, value, value is not None and goal.held(value), goal.who)

    found = [verdict("relu", 0.96), verdict("tanh", 0.94), verdict("prelu", None)]
    report.print_goals(report.console(), found)
    printed = capsys.readouterr().out
    words = " ".join(printed.replace("│", " ").split())
    for told in ("≥ 0.95 times as fast", "1 held, 1 missed, 1 not measured"):
        assert told in words
    assert "gpuact on CuPy: tanh beside copy: missed with 0.94" in words
    assert "relu beside" not in words
    lines = [report.verdict(v) for v in found[1:]]
    assert lines == [
        "gpuact on CuPy: tanh beside copy: missed with 0.94",
        "gpuact on CuPy: prelu beside copy: not measured",
    ]


def test_the_gpu_suite_says_why_it_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    if any(provider.why_not() is None for provider in providers.ON_GPU):
        pytest.skip("a GPU answers here")
    assert main(["--suite", "gpu"]) == 0
    printed = capsys.readouterr().out
    for provider in providers.ON_GPU:
        assert f"{provider.name}: unavailable: " in printed


@pytest.mark.parametrize(
    ("missing", "asked", "extra"),
    [
        ("rich", [], "bench"),
        ("sklearn", [], "bench"),
        ("torch", ["--suite", "torch"], "torch"),
    ],
)
def test_a_missing_package_is_one_sentence(missing: str, asked: list[str], extra: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; import bench.__main__ as b; "
    done = subprocess.run(
        [sys.executable, "-c", script + f"sys.exit(b.main({asked}))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f'pip install "gpuact[{extra}]"' in done.stderr


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
