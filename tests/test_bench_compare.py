"""Two results beside each other: what counts as faster, what as noise, and what is compared at all.

The results are built here; nothing is timed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("rich")
from rich.console import Console

from bench.compare import (
    Change,
    Comparison,
    compare,
    failures,
    in_words,
    print_comparison,
    remarks,
    summary,
)
from bench.host import Cost
from bench.measure import Timing
from bench.result import Result
from bench.suite import Row
from bench.tables import COPY

MACHINE = {"processor": "a processor", "gpus": [{"name": "a GPU"}]}
OURS, RIVAL = "gpuact on CuPy", "torch"
CASE = "relu bfloat16 2^28"


def timing(median: float, low: float | None = None, high: float | None = None) -> Timing:
    return Timing(median, low or median, high or median, 7)


def row(provider: str = OURS, of: Timing | float = 1.0, case: str = CASE, **fields: Any) -> Row:
    """A timed row; seconds stand for a timing without noise."""
    fields.setdefault("backend", "cupy" if "gpuact" in provider else "")
    fields.setdefault("timing", timing(of) if isinstance(of, float) else of)
    return Row(case, 4, "4N", provider, **{"status": "timed", **fields})


def fault(provider: str = OURS, status: str = "wrong", case: str = CASE) -> Row:
    return row(provider, case=case, status=status, timing=None, reason="2 of 3 values differ")


def result(*rows: Row, costs: Sequence[Cost] = (), **fields: Any) -> Result:
    given = {"machine": MACHINE, "settings": {"suite": "gpu"}, "finished": True, **fields}
    return Result("2026-11-28T10:00:00+00:00", rows=rows, host_costs=costs, **given)


def only(a: Row, b: Row) -> Change:
    """What is said of one row of two results of one machine."""
    (change,) = compare(result(a), result(b)).changes
    return change


def said(comparison: Comparison) -> str:
    text = io.StringIO()
    print_comparison(Console(file=text, width=100, markup=False, highlight=False), comparison)
    assert max(map(len, text.getvalue().splitlines())) <= 100
    return text.getvalue()


# -- gains, losses, noise -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (timing(1.02), timing(1.0), "gain"),
        (timing(1.0199), timing(1.0), "noise"),  # as sure as can be, and nothing
        (timing(1.0), timing(1.02), "loss"),
        (timing(1.0), timing(1.0199), "noise"),
        (timing(2.0, 1.51, 2.5), timing(1.0, 0.9, 1.5), "gain"),
        (timing(2.0, 1.5, 2.5), timing(1.0, 0.9, 1.5), "noise"),  # the band touches 1
        (timing(1.0, 0.9, 1.5), timing(2.0, 1.51, 2.5), "loss"),
        (timing(1.0, 0.9, 1.5), timing(2.0, 1.5, 2.5), "noise"),
        (timing(1.0), timing(1.0), "noise"),
    ],
)
def test_a_gain_is_sure_and_large_enough(before: Timing, after: Timing, verdict: str) -> None:
    assert only(row(of=before), row(of=after)).verdict == verdict


def test_the_band_reaches_from_quantile_to_quantile() -> None:
    found = only(row(of=timing(3.0, 2.0, 4.0)), row(of=timing(1.5, 1.0, 1.6)))
    assert found == Change(
        CASE, OURS, "time", 3.0, 1.5, 2.0, 2.0 / 1.6, 4.0 / 1.0, "gain", ours=True
    )


def test_rivals_are_not_ours() -> None:
    assert [only(row(who), row(who)).ours for who in (OURS, RIVAL)] == [True, False]


def test_rows_come_in_the_order_of_the_first_and_then_of_the_second() -> None:
    a = result(row(case="b"), row(RIVAL, case="a"), row(case="a"))
    b = result(row(case="c"), row(case="a"), row(RIVAL, case="a"), row(case="b"))
    found = [(c.case, c.provider) for c in compare(a, b).changes]
    assert found == [("b", OURS), ("a", RIVAL), ("a", OURS), ("c", OURS)]


# -- the copy as a yardstick ----------------------------------------------------------------------


def test_seconds_are_compared_while_the_copy_keeps_its_time() -> None:
    a, b = result(row(COPY, 1.0), row(of=2.0)), result(row(COPY, 1.01), row(of=1.0))
    found = compare(a, b)
    assert [(c.what, c.ratio) for c in found.changes] == [("time", 1 / 1.01), ("time", 2.0)]
    assert remarks(found) == []


def test_shares_are_compared_where_the_copy_changed() -> None:
    """Half as fast, but so is the copy: in that case it is the machine, and in the other ours."""
    slower = [row(COPY, 2.0), row(of=timing(2.5, 2.4, 2.6))]
    other = [row(COPY, case="b"), row(of=2.0, case="b")]
    a = result(row(COPY, 1.0), row(of=timing(1.25, 1.2, 1.3)), row(COPY, case="b"), row(case="b"))
    found = compare(a, result(*slower, *other))
    copy, ours, _, at_rest = found.changes
    assert (copy.what, copy.ratio, copy.verdict) == ("time", 0.5, "loss")
    assert (ours.what, ours.before, ours.after) == ("share of copy", 0.8, 0.8)
    assert (ours.ratio, ours.verdict) == (1.0, "noise")
    assert (ours.low, ours.high) == pytest.approx((2 * 1.2 / 2.6, 2 * 1.3 / 2.4))
    assert (at_rest.what, at_rest.ratio, at_rest.verdict) == ("time", 0.5, "loss")
    assert "The copy itself changed in 1 case: there, times are" in remarks(found)[0]
    assert failures(found) == [at_rest]  # never the copy


def test_shares_are_compared_on_different_machines() -> None:
    """Also where the copy is as fast by chance."""
    elsewhere = {**MACHINE, "gpus": [{"name": "another GPU"}]}
    a = result(row(COPY, 1.0), row(of=2.0))
    found = compare(a, result(row(COPY, 1.0), row(of=1.0), machine=elsewhere))
    copy, ours = found.changes
    assert (copy.what, copy.verdict) == ("time", "noise")
    assert (ours.what, ours.before, ours.after, ours.ratio) == ("share of copy", 0.5, 1.0, 2.0)
    assert "of different machines" in remarks(found)[0]


def test_without_a_copy_nothing_is_compared_on_different_machines() -> None:
    elsewhere = {**MACHINE, "gpus": [{"name": "another GPU"}]}
    cost = Cost("relu(x)", OURS, "timed", timing=timing(1.0))
    found = compare(
        result(row(), costs=[cost]),
        result(row(of=3.0), costs=[replace(cost, timing=timing(3.0))], machine=elsewhere),
    )
    assert [(c.verdict, c.ratio) for c in found.changes] == [("not compared", None)] * 2
    assert "Not compared, 2 in all: the machines differ" in " ".join(remarks(found))
    assert failures(found) == []


def test_another_method_of_timing_is_not_compared() -> None:
    found = only(row(method="graph"), row(of=3.0, method="events"))
    assert (found.verdict, found.reason) == (
        "not compared",
        "one was timed by graph, one by events",
    )


# -- what a call costs the host -------------------------------------------------------------------


def test_the_cost_of_a_call_has_a_verdict_of_its_own() -> None:
    found = compare(result(row(call=timing(1e-6))), result(row(call=timing(2e-6))))
    assert [(c.what, c.verdict) for c in found.changes] == [
        ("time", "noise"),
        ("of the call", "loss"),
    ]
    assert [c.what for c in failures(found)] == ["of the call"]


@pytest.mark.parametrize(("copied", "what"), [(1e-6, "of the call"), (2e-6, "share of call")])
def test_the_yardstick_of_a_call_is_the_call_of_the_copy(copied: float, what: str) -> None:
    a = result(row(COPY, call=timing(1e-6)), row(call=timing(2e-6)))
    b = result(row(COPY, call=timing(copied)), row(call=timing(4e-6)))
    ours = compare(a, b).changes[-1]
    verdict = "loss" if copied == 1e-6 else "noise"
    assert (ours.provider, ours.what, ours.verdict) == (OURS, what, verdict)


def test_calls_are_shares_where_the_processors_differ() -> None:
    """The same GPU: seconds on it are compared, those of the host are not."""
    a = result(row(COPY, call=timing(1e-6)), row(call=timing(2e-6)))
    found = compare(a, replace(a, machine={**MACHINE, "processor": "another"}))
    assert [c.what for c in found.changes if c.ours] == ["time", "share of call"]


def test_host_costs_are_compared() -> None:
    costs = [Cost("relu(x)", who, "timed", timing=timing(1e-6)) for who in (OURS, RIVAL)]
    slower = [replace(cost, timing=timing(2e-6)) for cost in costs]
    found = compare(result(costs=costs), result(costs=slower))
    assert [(c.what, c.ours, c.verdict) for c in found.changes] == [
        ("host cost", True, "loss"),
        ("host cost", False, "loss"),
    ]
    assert [c.provider for c in failures(found)] == [OURS]
    broken = [Cost("relu(x)", OURS, "wrong", "no")]
    assert [c.verdict for c in failures(compare(result(costs=costs), result(costs=broken)))] == [
        "broken"
    ]


# -- memory and error -----------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["peak_bytes", "error_ulp"])
@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (100, 105, None),
        (100, 106, "loss"),
        (105, 100, None),
        (106, 100, "gain"),
        (0, 0, None),
        (0, 1, "loss"),
        (1, 0, "gain"),
        (None, 1, None),
    ],
)
def test_memory_and_error_count_beyond_a_twentieth(
    field: str, before: int | None, after: int | None, verdict: str | None
) -> None:
    for who in (OURS, RIVAL):
        a, b = row(who, **{field: before}), row(who, **{field: after})
        found = [c for c in compare(result(a), result(b)).changes if c.what != "time"]
        expected = [verdict] if verdict and who == OURS else []
        assert [c.verdict for c in found] == expected
        assert all(c.what in ("memory", "error") and in_words(c) for c in found)


# -- statuses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "verdict", "fails"),
    [
        (row(), fault(), "broken", True),
        (row(), fault(status="failed"), "broken", True),
        (row(), fault(status="lost"), "broken", True),
        (row(), fault(status="not run"), "changed", False),
        (fault(), row(), "mended", False),
        (fault(), fault(status="failed"), "changed", False),
        (fault(status="not run"), fault(), "broken", True),
        (row(), None, "only in A", False),
        (None, row(), "only in B", False),
        (fault(), None, "only in A", False),
        (None, fault(), "only in B", True),
    ],
)
def test_statuses(before: Row | None, after: Row | None, verdict: str, fails: bool) -> None:
    a, b = (result(*(r for r in (each,) if r)) for each in (before, after))
    found = compare(a, b)
    (change,) = found.changes
    assert (change.what, change.verdict, change.ratio) == ("status", verdict, None)
    assert [change.before, change.after] == [r and r.status for r in (before, after)]
    assert failures(found) == ([change] if fails else [])


def test_the_same_fault_in_both_is_no_change() -> None:
    assert compare(result(fault()), result(fault())).changes == ()


def test_faults_of_rivals_fail_no_check() -> None:
    assert failures(compare(result(row(RIVAL)), result(fault(RIVAL)))) == []


# -- telling --------------------------------------------------------------------------------------


def test_the_summary_counts_all_but_the_copy() -> None:
    a = result(row(COPY), row(of=2.0), row(RIVAL), row(case="b"), row(case="c"))
    b = result(row(COPY), row(), row(RIVAL), row(of=2.0, case="b"), row(case="d"))
    assert summary(compare(a, b)) == "1 gain, 1 loss, 1 within the noise, 2 only in one"


def test_statuses_come_first_then_ours_then_rivals_and_the_copy() -> None:
    def rows(quick: float, slow: float) -> list[Row]:
        return [row(who, s, c) for c, s in (("b", slow), ("a", quick)) for who in (RIVAL, OURS)]

    a = result(row(COPY), *rows(2.0, 1.0), row(case="c"), row(case="only here"))
    b = result(row(COPY), *rows(1.0, 2.0), fault(case="c"), row(RIVAL, case="c"))
    text = said(compare(a, b))
    titles = (
        *("2 gains, 2 losses", "Changed status", "2 of 3 values differ", "Only in one"),
        *("Cases only in A: 1", "only here", "Losses of gpuact", "Gains of gpuact"),
        *("Losses of rivals", "Gains of rivals", "The copy is within its noise in 1 case"),
    )
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    losses = text[text.index("Losses of gpuact") : text.index("Gains of gpuact")]
    assert [word in losses for word in (OURS, "0.50×", "0.50–0.50", RIVAL)] == [True] * 3 + [False]


def test_a_copy_that_changed_is_shown() -> None:
    text = said(compare(result(row(COPY), row()), result(row(COPY, 2.0), row(of=2.0))))
    assert "0.50×" in text[text.rindex("The copy itself") :]


def test_wide_names_fit() -> None:
    case = "fused_backward dropout(tanh(scale·x + bias))·gate + residual bfloat16 32768×4096"
    who = "an empty autograd function"
    a, b = result(row(who, 123.0, case)), result(row(who, 1e-9, case))
    assert who in said(compare(a, b))


def test_what_a_reader_must_know_comes_before_the_figures() -> None:
    a = result(row(), sample=True, settings={"suite": "gpu", "seconds": 0.6})
    b = result(row(), settings={"suite": "rows", "seconds": 0.6}, finished=False, stopped="budget")
    assert remarks(compare(a, b)) == [
        "A is a sample: its figures are made up.",
        "B ended before its time (budget).",
        "Their settings differ: suite gpu and rows.",
    ]


def test_nothing_in_common_is_said_in_a_sentence() -> None:
    absent = Row("", 0, "", "Liger", "unavailable", "not installed")
    text = said(compare(result(row(), absent), result(row(case="another"), absent)))
    assert text.splitlines()[-1] == (
        "They have nothing in common: no provider is in the same case of both."
    )


def drifting(far: float, rivals: int, **fields: Any) -> Comparison:
    """All rivals but one of twenty are slower by so much; ours by 1.05 and by 1.3."""
    names = [f"case {k}" for k in range(rivals)]
    after = [row("torch", far if k % 20 else 2.0, case=name) for k, name in enumerate(names)]
    first = result(*(row("torch", case=name) for name in names), row(case="x"), row(case="y"))
    second = result(*after, row(of=1.05, case="x"), row(of=1.3, case="y"), **fields)
    return compare(first, second)


def test_noise_is_what_rivals_change_by_whose_code_is_the_same() -> None:
    found = drifting(1.1, 40)
    assert found.noise == pytest.approx(1.1)
    verdicts = {c.case: c.verdict for c in found.changes if c.ours}
    assert verdicts == {"x": "noise", "y": "loss"}
    assert [c.case for c in failures(found)] == ["y"]
    assert "19 of 20 rivals, whose code is the same, are within 1.10×: so is noise." in said(found)


def test_few_rivals_or_other_versions_do_not_tell_what_noise_is() -> None:
    for found in (drifting(1.1, 19), drifting(1.1, 40, versions={"torch": "2.0"})):
        assert found.noise == 1
        assert {c.verdict for c in found.changes if c.ours} == {"loss"}
    still = drifting(1.0, 40, versions={"gpuact": "another"})
    assert still.noise == pytest.approx(1)
    assert {c.verdict for c in still.changes if c.ours} == {"loss"}
    assert "so is noise" not in said(still)


def test_what_is_counted_has_no_noise() -> None:
    names = [f"case {k}" for k in range(20)]
    first = [row("torch", case=name) for name in names] + [row(peak_bytes=100)]
    second = [row("torch", 1.5, case=name) for name in names] + [row(peak_bytes=110)]
    changes = compare(result(*first), result(*second)).changes
    (change,) = (c for c in changes if c.ours and c.verdict != "noise")
    assert (change.before, change.after, change.verdict) == (100, 110, "loss")
