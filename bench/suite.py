"""Run cases: check every provider against gpuact on NumPy, then time those that are right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

import gpuact

from .cases import GOALS, Case, Goal, inputs
from .measure import PLACES, Host, Timing, interleaved, rotated
from .providers import OURS, Provider

Array = np.ndarray[Any, np.dtype[Any]]
Outputs = tuple[Array, ...]
Status = Literal["timed", "wrong", "failed", "unavailable"]

COPY = "copy"  # the limit: moves the case's bytes and does nothing else

# A benchmark asks whether the same thing was computed; how well is for the tests. Relative to the
# value, or to the mean of all where a value is near 0 by cancellation. The half types have room
# for torch's cross-entropy, which exponentiates a log-softmax of about 16 rounded to the dtype.
TOLERANCE = {"float16": 2**-7, "bfloat16": 2**-4, "float32": 2**-15, "float64": 2**-44}

# Elements compared; of larger arrays every k-th row, the last one included. Above the size of the
# cases that sum over rows, which a sample could not tell.
CHECKED = 1 << 26


@dataclass(frozen=True)
class Row:
    """One provider in one case: its timing, or why there is none."""

    case: str
    bytes: int
    bytes_formula: str
    provider: str
    status: Status
    reason: str = ""  # empty where timed
    timing: Timing | None = None
    bytes_per_second: float = 0
    share_of_copy: float = 0


def _outputs(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _sample(case: Case) -> slice:
    """The rows that are compared; the step is odd, so that every lane of a pack comes by."""
    rows = case.shape[0]
    step = max(1, math.ceil(math.prod(case.shape) / CHECKED)) | 1
    return slice((rows - 1) % step, None, step)


def reference(case: Case, arrays: Mapping[str, Array]) -> Outputs:
    """What gpuact on NumPy computes for the sampled rows."""
    rows = _sample(case)
    few = (array[rows] if len(array) == case.shape[0] else array for array in arrays.values())
    with gpuact.using("numpy"):
        return _outputs(getattr(gpuact, case.function)(*few, **case.options))


def mistake(case: Case, outputs: Outputs, expected: Outputs) -> str | None:
    """What is wrong with the sampled outputs, or None."""
    if len(outputs) != len(expected):
        return f"{len(outputs)} arrays came, {len(expected)} are expected"
    for got, want in zip(outputs, expected, strict=True):
        if got.shape != want.shape:
            return f"shape {got.shape} came, {want.shape} is expected"
        if want.ndim == len(case.shape) and got.dtype != want.dtype:
            return f"dtype {got.dtype} came, {want.dtype} is expected"
        precision = np.float64 if case.dtype == "float64" else np.float32
        got, want = got.astype(precision, copy=False), want.astype(precision, copy=False)
        allowed = TOLERANCE[case.dtype] * np.maximum(np.abs(want), np.abs(want).mean())
        wrong = ~(np.abs(got - want) <= allowed)  # NaN is wrong too
        if wrong.any():
            at = np.unravel_index(int(wrong.argmax()), wrong.shape)
            values = f"{got[at]:.6g} came, {want[at]:.6g} is expected"
            return f"{np.count_nonzero(wrong)} of {wrong.size} values differ: {values}"
    return None


def _checked(case: Case, place: Host, run: Callable[[], Any], expected: Outputs) -> str | None:
    rows = _sample(case)
    outputs = tuple(place.take(y[rows] if len(y) == case.shape[0] else y) for y in _outputs(run()))
    return mistake(case, outputs, expected)


def _timed(case: Case, name: str, timing: Timing, copy: Timing) -> Row:
    return Row(
        case.name,
        case.bytes,
        case.formula,
        name,
        "timed",
        timing=timing,
        bytes_per_second=case.bytes / timing.median,
        share_of_copy=copy.median / timing.median,
    )


def run_case(
    case: Case, providers: Sequence[Provider], places: Mapping[str, Host], budget: float
) -> list[Row]:
    """One row a provider that has the function; the copy comes first, and is the measure."""
    rows: list[Row] = []
    arrays = inputs(case)
    expected = reference(case, arrays)
    held = {name: rotated(place, list(arrays.values())) for name, place in places.items()}

    first = next(iter(places.values()))
    half = np.resize(next(iter(arrays.values())).ravel().view(np.uint8), case.bytes // 2)
    contenders: dict[str, tuple[Host, Sequence[Callable[[], object]]]] = {
        COPY: (first, [partial(first.copy, *args) for args in rotated(first, [half])])
    }
    for provider in providers:
        place = places[provider.place]
        status: Status = "wrong"
        try:
            function = provider.spell(case)
            if function is None:
                continue
            calls = [partial(function, *args, **case.options) for args in held[provider.place]]
            reason = _checked(case, place, calls[0], expected)
        except Exception as error:  # whatever a rival dies of is a row, not the end of the run
            reason, status = f"{type(error).__name__}: {error}".partition("\n")[0], "failed"
        if reason is None:
            contenders[provider.name] = place, calls
        else:
            about = (case.name, case.bytes, case.formula, provider.name)
            rows.append(Row(*about, status, reason))
    timings = interleaved(contenders, budget)
    return [_timed(case, *item, timings[COPY]) for item in timings.items()] + rows


def run(cases: Iterable[Case], providers: Sequence[Provider], budget: float) -> Iterator[list[Row]]:
    """The rows of each case in turn, with `budget` seconds of timing for each case.

    At the end come those providers that cannot run here.
    """
    reasons = {provider.name: provider.why_not() for provider in providers}
    able = [provider for provider in providers if reasons[provider.name] is None]
    places = {provider.place: PLACES[provider.place]() for provider in able}
    for case in cases if able else ():
        rows = run_case(case, able, places, budget)
        for place in places.values():  # one library's pool would starve the other
            place.release()
        yield rows
    yield [
        Row("", 0, "", name, "unavailable", reason)
        for name, reason in reasons.items()
        if reason is not None
    ]


@dataclass(frozen=True)
class Verdict:
    """One goal: what was measured, and whether it holds; None where a row is missing."""

    goal: Goal
    value: float | None
    held: bool


def verdicts(rows: Iterable[Row]) -> list[Verdict]:
    seconds = {(row.case, row.provider): row.timing.median for row in rows if row.timing}
    found = []
    for goal in GOALS:
        ours, theirs = (seconds.get((goal.case.name, name)) for name in (OURS, goal.rival))
        value = None if ours is None or theirs is None else goal.value(ours, theirs)
        found.append(Verdict(goal, value, value is not None and goal.held(value)))
    return found
