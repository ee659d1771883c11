"""Run cases: check every provider against gpuact on NumPy, then time those that are right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np

import gpuact

from .cases import COPY, IN_A_GRAPH, Case, Chain, Goal, inputs
from .measure import PLACES, Calls, Host, Replayed, Timing, interleaved, rotated
from .providers import Provider, in_a_line

Array = np.ndarray[Any, np.dtype[Any]]
Outputs = tuple[Array, ...]
# "lost": its process died or fell silent; "not run": the run ended before its turn
Status = Literal["timed", "wrong", "failed", "lost", "unavailable", "not run"]
# "graph": a CUDA graph of the calls, between device events; "events": plain calls between them;
# "clock": plain calls, by the clock on the wall
Method = Literal["graph", "events", "clock"]
Contenders = Mapping[str, tuple[Host, Calls]]

# A benchmark asks whether the same thing was computed; how well is for the tests. Relative to the
# value, or to the mean of all where a value is near 0 by cancellation. The half types have room
# for torch's cross-entropy, which exponentiates a log-softmax of about 16 rounded to the dtype, and
# float32 for the sum that it takes of a smoothed target's 32000 small shares and one of nearly 1.
TOLERANCE = {"float16": 2**-7, "bfloat16": 2**-4, "float32": 2**-14, "float64": 2**-44}

# A rival that computes a chain step by step rounds to the dtype after each, and 1 − y² of a y that
# was rounded may then be far off where y is near 1: so large a share of its values may be.
STRAY = {"float16": 1e-3, "bfloat16": 1e-3}

# Elements compared; of larger arrays every k-th row, the last one included. Of rows as many as the
# host compares in half a second, for each provider.
CHECKED = {"elementwise": 1 << 22, "rows": 1 << 23, "loss": 1 << 23}

OVERWRITES = "writes over its input, so that each call is given what the last one left"
OWN_MASK = "its mask is its own: values are right as kept or as dropped, sums are not compared"


@dataclass(frozen=True)
class Row:
    """One provider in one case: its timing, or why there is none."""

    case: str
    bytes: int  # that the function must move, whoever computes it
    bytes_formula: str
    provider: str
    status: Status
    reason: str = ""  # empty where timed
    timing: Timing | None = None  # of the work alone, as `method` says
    bytes_per_second: float = 0
    share_of_copy: float = 0  # of the rate at which a copy of as many bytes ran beside it
    note: str = ""  # of how it was checked or timed
    suite: str = ""  # elementwise, rows, loss, fused or cpu
    function: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    backend: str = ""  # of gpuact: numpy, cupy or triton; empty for a rival
    headline: bool = False  # one of the short table
    method: Method = "clock"
    call: Timing | None = None  # what a plain call costs the host, who waits for no device
    peak_bytes: int | None = None  # taken at once during a call beside its arrays, the result too
    error_ulp: float | None = None  # the largest error of those compared; None for a whole case


def _outputs(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _sample(case: Case) -> slice:
    """The rows that are compared; the step is odd, so that every lane of a pack comes by."""
    rows = case.shape[0]
    step = max(1, math.ceil(math.prod(case.shape) / CHECKED[case.record.kind])) | 1
    return slice((rows - 1) % step, None, step)


def _sampled(case: Case, arrays: Iterable[Any]) -> Any:
    """Of those arrays that have the case's rows, the ones that are compared."""
    rows, sample = case.shape[:1], _sample(case)
    return tuple(array[sample] if tuple(array.shape[:1]) == rows else array for array in arrays)


def reference(case: Case, arrays: Mapping[str, Array]) -> Outputs:
    """What gpuact on NumPy computes for the sampled rows."""
    given = arrays.values() if case.whole else _sampled(case, arrays.values())
    with gpuact.using("numpy"):
        outputs = _outputs(case.public(*given, **case.options))
    return _sampled(case, outputs) if case.whole else outputs


def _far(case: Case, got: Array, want: Array) -> Array:
    """Where they differ by more than rounding; NaN does. A sum may be infinite in float16."""
    precision = np.float64 if case.dtype == "float64" else np.float32
    got, want = got.astype(precision, copy=False), want.astype(precision, copy=False)
    size = np.abs(want)
    size = np.where(size < np.inf, size, 0)
    allowed = TOLERANCE[case.dtype] * np.maximum(size, size.mean())
    with np.errstate(invalid="ignore"):
        return ~((np.abs(got - want) <= allowed) | (got == want))


def _values(wrong: Array, got: Array, want: Array) -> str:
    at = np.unravel_index(int(wrong.argmax()), wrong.shape)
    values = f"{float(got[at]):.6g} came, {float(want[at]):.6g} is expected"
    return f"{np.count_nonzero(wrong)} of {wrong.size} values differ: {values}"


def _shapes(case: Case, outputs: Outputs, expected: Outputs) -> str | None:
    """What is wrong with the outputs before anybody looks at their values."""
    if len(outputs) != len(expected):
        return f"{len(outputs)} arrays came, {len(expected)} are expected"
    for got, want in zip(outputs, expected, strict=True):
        if got.shape != want.shape:
            return f"shape {got.shape} came, {want.shape} is expected"
        if want.ndim == len(case.shape) and got.dtype != want.dtype:
            return f"dtype {got.dtype} came, {want.dtype} is expected"
    return None


def mistake(case: Case, outputs: Outputs, expected: Outputs, stray: float = 0.0) -> str | None:
    """What is wrong with the sampled outputs, or None; a share of `stray` may be."""
    found = _shapes(case, outputs, expected)
    for got, want in zip(outputs, expected, strict=False) if found is None else ():
        wrong = _far(case, got, want)
        if np.count_nonzero(wrong) > stray * wrong.size:
            return _values(wrong, got, want)
    return found


def _alternatives(case: Chain, arrays: Mapping[str, Array]) -> tuple[list[Array], list[Array]]:
    """Each sampled value of x's size as it is where it was kept, and where it was dropped."""
    given = zip(arrays, _sampled(case, arrays.values()), strict=True)
    wide = {name: array.astype(np.float32) for name, array in given}
    undropped = replace(case, dropout=0.0, dtype="float32")
    with gpuact.using("numpy"):
        outputs = _outputs(undropped.public(*wide.values()))
    base = wide.get("residual", np.float32(0))
    outputs = tuple(y for y in outputs if y.ndim == len(case.shape))
    kept = [base + (y - base) / np.float32(1 - case.dropout) for y in outputs]
    return kept, [np.broadcast_to(base, y.shape) for y in outputs]


def mistake_but_for_the_mask(
    case: Chain, outputs: Outputs, expected: Outputs, arrays: Mapping[str, Array]
) -> str | None:
    """`mistake` for a rival whose dropout draws numbers of its own.

    Each value is right if it is what keeping the element gives or what dropping it gives, and the
    dropped ones must be as many as p says. Sums depend on the mask and are not compared.
    """
    found = _shapes(case, outputs, expected)
    if found is not None:
        return found
    full = [y for y in outputs if y.ndim == len(case.shape)]
    for got, keep, drop in zip(full, *_alternatives(case, arrays), strict=True):
        wrong = _far(case, got, keep) & _far(case, got, drop)
        if np.count_nonzero(wrong) > STRAY.get(case.dtype, 0) * wrong.size:
            return _values(wrong, got, keep)
        told = _far(case, drop, keep)  # elsewhere nobody can tell
        share = (np.abs(got - drop) < np.abs(got - keep))[told].mean()
        noise = math.sqrt(case.dropout * (1 - case.dropout) / np.count_nonzero(told))
        if not abs(share - case.dropout) <= 5 * noise + STRAY.get(case.dtype, 0):
            return f"{share:.3f} of the values are dropped, {case.dropout} is expected"
    return None


def failed(error: Exception) -> tuple[Status, str]:
    """Whatever a rival dies of is a row, not the end of the run."""
    return "failed", in_a_line(error)


def checked(
    case: Case,
    place: Host,
    run: Callable[[], Any],
    expected: Outputs,
    wrong: Callable[..., str | None] = mistake,
) -> tuple[Status, str]:
    """ "timed" if a call may be timed, else what is wrong with it."""
    try:
        outputs = tuple(place.take(y) for y in _sampled(case, _outputs(run())))
        reason = wrong(case, outputs, expected)
    except Exception as error:
        return failed(error)
    return ("timed", "") if reason is None else ("wrong", reason)


def _judge(
    case: Case, provider: Provider, arrays: Mapping[str, Array]
) -> tuple[Callable[..., str | None], str]:
    """Who looks at a provider's results, and what there is to say about that."""
    if provider.name.startswith("gpuact") or not isinstance(case, Chain):
        return mistake, ""
    if case.dropout:
        return partial(mistake_but_for_the_mask, arrays=arrays), OWN_MASK
    return partial(mistake, stray=STRAY.get(case.dtype, 0)), ""


def _copies(case: Case, place: Host, x: Array, held: Iterable[Sequence[Any]]) -> Calls:
    """What moves the case's bytes and does nothing else: half are read, half are written.

    Read are the case's own arrays, if the first is large enough: gigabytes need not be there twice.
    """
    half = case.bytes // 2
    if x.nbytes >= half:
        return [partial(place.copy, place.flat(first)[:half]) for first, *_ in held]
    larger = np.resize(x.reshape(-1).view(np.uint8), half)
    return [partial(place.copy, *args) for args in rotated(place, [larger])]


def _rows(
    case: Case, name: str, contenders: Contenders, notes: Mapping[str, str], budget: float
) -> list[Row]:
    """All contenders timed in turn."""
    timings = interleaved(contenders, budget)
    copy = timings[COPY]
    return [
        Row(
            name,
            case.bytes,
            case.formula,
            who,
            "timed",
            timing=timing,
            bytes_per_second=case.bytes / timing.median,
            share_of_copy=copy.median / timing.median,
            note=notes.get(who, ""),
        )
        for who, timing in timings.items()
    ]


def _graphs(case: Case, contenders: Contenders, budget: float) -> list[Row]:
    """The same calls in CUDA graphs."""
    name = case.name + IN_A_GRAPH
    recorded: dict[str, tuple[Host, Calls]] = {}
    rows = []
    for who, (place, calls) in contenders.items():
        try:
            recorded[who] = Replayed(place, calls), calls
        except Exception as error:
            rows.append(Row(name, case.bytes, case.formula, who, *failed(error)))
    return (_rows(case, name, recorded, {}, budget) if COPY in recorded else []) + rows


def run_case(
    case: Case, providers: Sequence[Provider], places: Mapping[str, Host], budget: float
) -> Iterator[list[Row]]:
    """One row a provider that has the function; the copy comes first, and is the measure.

    After them, where the case asks for it, the same in CUDA graphs.
    """
    rows: list[Row] = []
    arrays = inputs(case)
    expected = reference(case, arrays)
    held = {name: rotated(place, list(arrays.values())) for name, place in places.items()}

    name, first = next(iter(places.items()))
    contenders: dict[str, tuple[Host, Calls]] = {
        COPY: (first, _copies(case, first, next(iter(arrays.values())), held[name]))
    }
    notes: dict[str, str] = {}
    for provider in providers:
        if provider.compiles and not case.compiled:
            continue
        place = places[provider.place]
        judge, note = _judge(case, provider, arrays)
        try:
            function = provider.spell(case)
        except Exception as error:
            status, reason = failed(error)
        else:
            if function is None:
                continue
            given = held[provider.place]
            if case.function in provider.overwrites:
                given = [tuple(place.copy(array) for array in args) for args in given]
                note = OVERWRITES
            calls = [partial(function, *args, **case.options) for args in given]
            status, reason = checked(case, place, calls[0], expected, judge)
        if status == "timed":
            contenders[provider.name] = place, calls
            notes[provider.name] = note
        else:
            about = (case.name, case.bytes, case.formula, provider.name)
            rows.append(Row(*about, status, reason))
    yield _rows(case, case.name, contenders, notes, budget) + rows
    if case.graphed:
        yield _graphs(case, contenders, budget)


def run(cases: Iterable[Case], providers: Sequence[Provider], budget: float) -> Iterator[list[Row]]:
    """The rows of each case in turn, with `budget` seconds of timing for each case.

    At the end come those providers that cannot run here.
    """
    reasons = {provider.name: provider.why_not() for provider in providers}
    able = [provider for provider in providers if reasons[provider.name] is None]
    places = {provider.place: PLACES[provider.place]() for provider in able}
    for case in cases if able else ():
        try:
            yield from run_case(case, able, places, budget)
        except Exception as error:  # its arrays do not fit this GPU, say: the others may
            about = (case.name, case.bytes, case.formula)
            yield [Row(*about, provider.name, *failed(error)) for provider in able]
        for place in places.values():  # one library's pool would starve the other
            place.release()
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
    ours: str  # the better of those that the goal names, or all of them where none was timed

    @property
    def word(self) -> str:
        return "not measured" if self.value is None else "held" if self.held else "missed"


class Measured(Protocol):
    """A row of any table that a goal may be about."""

    @property
    def case(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def timing(self) -> Timing | None: ...


def _rivals(goal: Goal, timed: Mapping[tuple[str, str], Measured]) -> list[Measured | None]:
    """Who is beside us: None for one who is named and was not timed, if it is not ourselves."""
    case = goal.neighbour or goal.case
    here = {who: row for (name, who), row in timed.items() if name == case}
    named = goal.rivals or [who for who in here if who not in (COPY, *goal.ours)]
    return [here.get(who) for who in named if who in here or who not in goal.ours]


def _verdict(goal: Goal, timed: Mapping[tuple[str, str], Measured]) -> Verdict:
    found = [timed[goal.case, who] for who in goal.ours if (goal.case, who) in timed]
    rivals = _rivals(goal, timed)
    if not found or None in rivals or not (rivals or goal.alone):
        return Verdict(goal, None, False, goal.who)
    ours = min(found, key=lambda row: row.timing.median)
    # who is as quick as his rival is behind him in every second run: behind is whose median lies
    # above the rival's 80 % quantile
    slack = goal.figure == "not behind"
    theirs = [
        (row.timing.high if slack else row.timing.median) * ours.bytes / row.bytes for row in rivals
    ]
    value = goal.value(ours.timing.median, min(theirs, default=0), ours.bytes)
    return Verdict(goal, value, goal.held(value), ours.provider)


def verdicts(rows: Iterable[Measured], goals: Iterable[Goal]) -> list[Verdict]:
    timed = {(row.case, row.provider): row for row in rows if row.timing}
    return [_verdict(goal, timed) for goal in goals]
