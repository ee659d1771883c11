"""The goals: those of the design, each about what is run, and held or missed as they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from gpuact.catalogue import FUNCTIONS

pytest.importorskip("rich")
from bench import cases, console, goals, host, measure, providers, suite, tables, words
from tests.benchmarks import CUPY, SIZES, TRITON, row, timing

BOTH = {CUPY, TRITON}
ELEMENTWISE = [f.name for f in FUNCTIONS.values() if f.kind == "elementwise"]


def gpu_goals(sizes: str) -> tuple[goals.Goal, ...]:
    return (
        *goals.elementwise_goals(tables.elementwise_on_gpu(sizes)),
        *goals.fused_goals(tables.fused_on_gpu(sizes)),
        *goals.stats_goals(tables.stats_on_gpu(sizes)),
        *goals.CALL_GOALS,
    )


# -- which there are ------------------------------------------------------------------------------


def test_goals_name_cases_and_rivals_that_are_run() -> None:
    names = {provider.name for provider in providers.ON_CPU}
    assert len(goals.GOALS) == 4
    for goal in goals.GOALS:
        assert goal.case in {case.name for case in tables.CPU}
        assert names >= {*goal.ours, *goal.rivals}
    sigmoid, relu = goals.GOALS[0], goals.GOALS[2]
    assert [goal.rival for goal in goals.GOALS] == ["NumPy", "SciPy", "NumPy", "SciPy"]
    assert sigmoid.held(sigmoid.value(ours=1.0, theirs=1.3))
    assert not sigmoid.held(sigmoid.value(ours=1.0, theirs=1.29))
    assert relu.held(relu.value(ours=1.15, theirs=1.0))
    assert not relu.held(relu.value(ours=1.16, theirs=1.0))


@pytest.mark.parametrize("sizes", SIZES)
def test_the_gpu_s_goals_name_cases_and_rivals_that_are_run(sizes: str) -> None:
    of = tables.elementwise_on_gpu, tables.fused_on_gpu, tables.stats_on_gpu
    timed = {case.name: case for table in of for case in table(sizes)}
    names = {provider.name: provider for provider in providers.ON_GPU}
    callers = {caller.name for caller in providers.CALLERS_ON_GPU}
    for goal in gpu_goals(sizes):
        if goal.case in tables.HOST.values():
            assert callers >= {*goal.ours, *goal.rivals}
            continue
        case = timed[goal.case]
        assert not goal.neighbour or timed[goal.neighbour].bytes == case.bytes
        for rival in goal.rivals:
            assert rival == tables.COPY or case.compiled or not names[rival].compiles
        assert set(goal.ours) <= set(names)
        if "CuPy ElementwiseKernel" in goal.rivals:
            assert case.function in providers.ELEMENTWISE


@pytest.mark.parametrize("sizes", SIZES)
def test_the_gpu_s_goals_are_those_of_the_design(sizes: str) -> None:
    table = tables.elementwise_on_gpu(sizes)
    functions = {case.name: (case.function, case.dtype) for case in table}
    every = {f"{name}{way}" for name in ELEMENTWISE for way in ("", "_backward")}
    found = gpu_goals(sizes)

    def asked(limit: float, figure: str = "times as fast", ours: set[str] = BOTH) -> set[str]:
        """The cases in which all of `ours` have such a goal."""
        such = [g for g in found if (g.limit, g.figure) == (limit, figure)]
        return set.intersection(*({g.case for g in such if g.ours == (who,)} for who in ours))

    copied = {functions[name] for name in asked(0.95)}
    assert copied == {(name, dtype) for name in every for dtype in tables.DTYPES}
    plain = {functions[name] for name in asked(1.5, ours={CUPY})}
    assert plain == {(name, "bfloat16") for name in every}
    compiled = [c for c in tables.fused_on_gpu(sizes) if c.compiled]
    chains = {c.name for c in compiled if isinstance(c, cases.Chain)}
    assert len(chains) == 8
    assert asked(2.0) == chains
    assert asked(1.0, "not behind") == chains
    watched = {f"activation_with_stats {name} bfloat16 65536×4096" for name in ("relu", "sigmoid")}
    assert asked(1.03, "of its time") == watched
    assert len(asked(1.0, "of its time", {CUPY})) == 2
    assert len(asked(3.0, "µs more", {TRITON})) == 2
    assert {goal.column for goal in found} == {"timing"}


@pytest.mark.parametrize("sizes", SIZES)
def test_where_memory_bounds_the_work_there_is_a_goal(sizes: str) -> None:
    """Of 256 MB and more, whoever is asked; a derivative alone is nobody's inner loop."""
    table = tables.elementwise_on_gpu(sizes)
    asked = {g.case for g in goals.elementwise_goals(table)}
    large = {c.name for c in table if c.bytes >= 2**28}
    assert asked == {name for name in large if "_derivative" not in name}
    assert len(large) > len(asked) > 0
    assert {c.name for c in tables.LIMITS} <= asked
    assert tables.LAUNCH.name not in asked


ROWS_ON_AN_H100 = [
    ("softmax bfloat16 32768×256", "", "≥ 1,900 GB/s"),
    ("softmax bfloat16 32768×1024", "", "≥ 2,650 GB/s"),
    ("softmax bfloat16 32768×4096", "", "≥ 2,900 GB/s"),
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
    ("softmax float32 8192×8192 axis 0", "copy", "≥ 0.85 times as fast"),
    ("softmax bfloat16 4×131072", "every rival", "≥ 1 times as fast"),
    ("softmax bfloat16 4×131072, a plain call", "every rival", "≥ 1 times as fast"),
]
LOSS_ON_AN_H100 = [
    ("cross_entropy_with_grad bfloat16 8192×128256", "", "≤ 1.5 ms"),
    ("cross_entropy_with_grad bfloat16 8192×128256", "Liger", "≥ 1 times as fast"),
]
H100 = "NVIDIA H100 80GB HBM3"


def told(found: Sequence[goals.Goal]) -> list[tuple[str, str, str]]:
    both = f"{CUPY} or {TRITON}"
    return [(g.what, g.rival.replace(both, "ours"), words.aim(g.figure, g.limit)) for g in found]


def test_the_rows_goals_on_an_h100() -> None:
    found = (*goals.rows_goals(H100), *goals.loss_goals(H100))
    assert told(found) == ROWS_ON_AN_H100 + LOSS_ON_AN_H100
    names = {provider.name for provider in providers.ON_GPU}
    for sizes in SIZES:
        timed = {c.name for c in (*tables.rows_on_gpu(sizes), *tables.loss_on_gpu(sizes))}
        for goal in found:
            assert goal.ours == (CUPY, TRITON)
            assert names >= {*goal.ours, *goal.rivals} - {tables.COPY}
            assert goal.case in timed
            assert not goal.neighbour or goal.neighbour in timed
    assert [goal.column for goal in found].count("call") == 1


@pytest.mark.parametrize("device", ["", "NVIDIA H200", "NVIDIA H100 PCIe"])
def test_elsewhere_the_absolute_goals_are_shares_of_the_copy(device: str) -> None:
    """1900 GB/s are 63 % of the 3.0 TB/s that an H100 copies, 1.5 ms 93 % for 4.2 GB."""
    found = (*goals.rows_goals(device), *goals.loss_goals(device))
    there = ROWS_ON_AN_H100 + LOSS_ON_AN_H100
    shares = [goal for goal, aim in zip(found, there, strict=True) if not aim[1]]
    assert all(goal.rivals == (tables.COPY,) for goal in shares)
    assert all(goal.figure == "times as fast" for goal in shares)
    limits = [goal.limit for goal in shares]
    assert limits == pytest.approx([1.9 / 3, 2.65 / 3, 2.9 / 3, 1.4008 / 1.5], rel=1e-3)
    same = [words for words, aim in zip(told(found), there, strict=True) if aim[1]]
    assert same == [aim for aim in there if aim[1]]


# -- what becomes of them -------------------------------------------------------------------------


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
    goal = goals.Goal("a case", ("first", "second"), limit, figure, ("ours",))
    rows = [
        *(cost("a case", "ours", ours, 9), cost("a case", "first", 2.0, 2.1)),
        *(cost("a case", "second", 3.0, 3.1), cost("another", "second", 0.1, 0.1)),
    ]
    (verdict,) = goals.verdicts(rows, [goal])
    assert verdict.value == pytest.approx(value)
    assert (verdict.held, verdict.word) == (reached, "held" if reached else "missed")
    for k in range(3):
        (verdict,) = goals.verdicts(rows[:k] + rows[k + 1 :], [goal])
        assert (verdict.value, verdict.held, verdict.word) == (None, False, "not measured")


def judge(goal: goals.Goal, *rows: suite.Row) -> goals.Verdict:
    (verdict,) = goals.verdicts(rows, [goal])
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
    goal = goals.Goal("a case", (), limit, figure, (CUPY, TRITON))
    seconds = {CUPY: 0.004, TRITON: 0.004, better: 0.002}
    rows = [row("a case", who, seconds[who]) for who in seconds]
    found = judge(goal, *rows, row("a case", "Liger", 0.001))
    assert found.value == pytest.approx(value)
    assert (found.held, found.ours) == (reached, better)
    told = f"{better}: a case: {'held' if reached else 'missed'} with {value:.2f}"
    assert console.verdict(found) == told
    (alone,) = (r for r in rows if r.provider != better)
    assert judge(goal, alone).ours == alone.provider
    nobody = judge(goal, row("a case", "Liger", 0.001))
    assert (nobody.word, nobody.ours) == ("not measured", f"{CUPY} or {TRITON}")


def test_a_neighbour_is_met_at_its_rate_of_bytes() -> None:
    """Ours at the better backend's rate in either case; more bytes may take more time."""
    goal = goals.Goal("odd", (CUPY, TRITON), 0.97, ours=(CUPY, TRITON), neighbour="even")
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


@pytest.mark.parametrize(("ours", "word"), [(1.02, "held"), (1.04, "missed")])
def test_statistics_are_met_by_the_activation_alone(ours: float, word: str) -> None:
    """Each backend by its own."""
    large = (c for c in tables.stats_on_gpu("quick") if c.compiled)
    case = replace(next(large), shape=(4, 7))
    of_cupy, of_triton = goals.stats_goals([case, case.plain])
    rows = [
        *(row(case.name, CUPY, ours), row(case.name, TRITON, 3.0)),
        *(row("relu bfloat16 4×7", CUPY, 1.0), row("relu bfloat16 4×7", TRITON, 2.0)),
        row("relu bfloat16 4×7", "torch", 0.5),
    ]
    found = judge(of_cupy, *rows)
    assert (found.word, found.ours, found.value) == (word, CUPY, pytest.approx(ours))
    assert found.rival == f"{CUPY} in relu bfloat16 4×7"
    found = judge(of_triton, *rows)
    assert (found.word, found.ours, found.value) == ("missed", TRITON, pytest.approx(1.5))
    assert judge(of_cupy, *rows[:2]).word == "not measured"


def test_every_rival_is_whoever_could_be_timed() -> None:
    goal = goals.Goal("a case", (), 1.0, ours=(CUPY, TRITON))
    ours = row("a case", CUPY, 2.0), row("a case", TRITON, 3.0), row("a case", "copy", 0.5)
    assert judge(goal, *ours).word == "not measured"  # the copy is no rival, nor are we our own
    assert judge(goal, *ours, row("a case", "torch", 2.1)).word == "held"
    found = judge(goal, *ours, row("a case", "torch", 2.1), row("a case", "QuACK", 1.9))
    assert (found.word, found.value) == ("missed", pytest.approx(0.95))
    named = goals.Goal("a case", ("Liger",), 1.0, ours=(CUPY, TRITON))
    assert judge(named, *ours, row("a case", "torch", 2.1)).word == "not measured"


def test_a_plain_call_is_judged_by_what_it_costs_the_host() -> None:
    """Of the same rows, whatever the work itself takes; what has none is not measured."""
    work = goals.Goal("a case", (), 1.0, ours=(CUPY, TRITON))
    call = goals.Goal("a case", (), 1.0, ours=(CUPY, TRITON), column="call")
    rows = [
        row("a case", CUPY, 1.0, call=timing(5e-6)),
        row("a case", TRITON, 2.0, call=timing(4e-6)),
        row("a case", "torch", 3.0, call=timing(3e-6)),
        row("a case", "copy", 0.5, call=timing(1e-6)),
    ]
    found = judge(work, *rows)
    assert (found.word, found.ours, found.value) == ("held", CUPY, pytest.approx(3.0))
    found = judge(call, *rows)
    assert (found.word, found.ours, found.value) == ("missed", TRITON, pytest.approx(0.75))
    assert judge(call, *rows[:2], row("a case", "torch", 3.0)).word == "not measured"
    assert (work.what, call.what) == ("a case", "a case, a plain call")
    assert not math.isnan(found.value)
