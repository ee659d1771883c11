"""Run a case: check every provider against gpuact on NumPy, then time those that are right."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

import gpuact
from gpuact.stats import MOMENTS

from .cases import Case, Chain, Watched, sources, whole
from .measure import Calls, Host, Repeated, Replayed, Timing, Unwaited, interleaved, rotated
from .providers import Provider, in_a_line
from .tables import COPY

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = Mapping[str, "Array | Repeated"]
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
# was rounded may then be far off where y is near 1: so large a share of its values may be. So many
# elements may be counted otherwise by a compiler that looks at y as it was before it was rounded.
STRAY = {"float16": 1e-3, "bfloat16": 1e-3}

# Elements compared; of larger arrays every k-th row, the last one included: as many as the host
# compares in a tenth of a second, for each provider.
CHECKED = {"elementwise": 1 << 20, "rows": 1 << 21, "loss": 1 << 21}

HUGE = 1 << 32  # bytes of a case: a GPU has room for few of its arrays

DIGITS = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}  # behind the leading one

WAITS = "waits for the device in every call: no CUDA graph can hold it, launches are timed along"
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
    suite: str = ""  # elementwise, rows, loss, fused or stats
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


def reference(case: Case, arrays: Arrays) -> Outputs:
    """What gpuact on NumPy computes for the sampled rows."""
    given = map(whole, arrays.values()) if case.whole else _sampled(case, arrays.values())
    with gpuact.using("numpy"):
        outputs = _outputs(case.public(*given, **case.options))
    return _sampled(case, outputs) if case.whole else outputs


def truth(case: Case, arrays: Arrays) -> Outputs | None:
    """The same in float64, of the same inputs; None where that is too much to compute."""
    if case.whole or case.dtype == "float64":
        return None
    given = (
        array if array.dtype.kind == "i" else array.astype(np.float64)
        for array in _sampled(case, arrays.values())
    )
    with gpuact.using("numpy"):
        return _outputs(case.public(*given, **case.options))


def error_ulp(outputs: Outputs, expected: Outputs) -> float:
    """The largest error, in ulp of the result's dtype: of the value, or of the mean of all where a
    value is smaller, since a difference that cancels has no digits to be right in."""
    largest = 0.0
    for got, want in zip(outputs, expected, strict=True):
        size = np.abs(want)
        size = np.where(size < np.inf, size, 0)
        exponent = np.frexp(np.maximum(size, size.mean()))[1] - 1
        ulp = np.exp2(exponent - DIGITS[got.dtype.name])
        with np.errstate(invalid="ignore", divide="ignore"):
            off = np.abs(got.astype(np.float64) - want) / ulp
        largest = max(largest, float(off[np.isfinite(off)].max(initial=0.0)))
    return largest


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
        if want.ndim >= len(case.shape) and got.dtype != want.dtype:
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


def _alternatives(case: Chain, arrays: Arrays) -> tuple[list[Array], list[Array]]:
    """Each sampled value of x's size as it is where it was kept, and where it was dropped."""
    given = zip(arrays, _sampled(case, arrays.values()), strict=True)
    precision = np.dtype("float64" if case.dtype == "float64" else "float32")
    wide = {name: array.astype(precision) for name, array in given}
    undropped = replace(case, dropout=0.0, dtype=precision.name)
    with gpuact.using("numpy"):
        outputs = _outputs(undropped.public(*wide.values()))
    base = wide.get("residual", precision.type(0))
    outputs = tuple(y for y in outputs if y.ndim == len(case.shape))
    kept = [base + (y - base) / precision.type(1 - case.dropout) for y in outputs]
    return kept, [np.broadcast_to(base, y.shape) for y in outputs]


def mistake_but_for_the_mask(
    case: Chain, outputs: Outputs, expected: Outputs, arrays: Arrays
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


def mistake_in_stats(
    case: Case, outputs: Outputs, expected: Outputs, stray: float = 0.0
) -> str | None:
    """`mistake`, with each of the moments by itself: they are of very different sizes. Counts are
    exact, but for a share of `stray` of all elements."""
    found = _shapes(case, outputs, expected) or mistake(case, outputs[:-1], expected[:-1])
    if found is not None:
        return found
    moments = zip(MOMENTS, outputs[-1], expected[-1], strict=True)
    for name, got, want in moments:
        counts = name not in ("mean", "m2")
        off = stray * math.prod(case.shape)
        if not abs(got - want) <= off if counts else _far(case, got, want):
            return f"{name}: {float(got):.6g} came, {float(want):.6g} is expected"
    return None


def failed(error: Exception) -> tuple[Status, str]:
    """Whatever a rival dies of is a row, not the end of the run."""
    return "failed", in_a_line(error)


class Checked(NamedTuple):
    """What there is to say to one provider's results: "timed" if a call may be timed."""

    status: Status
    reason: str
    error_ulp: float | None = None


def checked(
    case: Case,
    place: Host,
    run: Callable[[], Any],
    expected: Outputs,
    wrong: Callable[..., str | None] = mistake,
    exact: Outputs | None = None,
) -> Checked:
    try:
        outputs = tuple(place.take(y) for y in _sampled(case, _outputs(run())))
        reason = wrong(case, outputs, expected)
    except Exception as error:
        return Checked(*failed(error))
    if reason is not None:
        return Checked("wrong", reason)
    return Checked("timed", "", None if exact is None else error_ulp(outputs, exact))


def _judge(case: Case, provider: Provider, arrays: Arrays) -> tuple[Callable[..., str | None], str]:
    """Who looks at a provider's results, and what there is to say about that."""
    stray = 0.0 if provider.backend else STRAY.get(case.dtype, 0)
    if isinstance(case, Watched):
        return partial(mistake_in_stats, stray=stray), ""
    if provider.backend or not isinstance(case, Chain):
        return mistake, ""
    if case.dropout:
        return partial(mistake_but_for_the_mask, arrays=arrays), OWN_MASK
    return partial(mistake, stray=stray), ""


def _copies(case: Case, place: Host, x: Array | Repeated, held: Iterable[Sequence[Any]]) -> Calls:
    """What moves the case's bytes and does nothing else: half are read, half are written.

    Read are the case's own arrays, if the first is large enough: gigabytes need not be there twice.
    """
    half = case.bytes // 2
    if x.nbytes >= half:
        return [partial(place.copy, place.flat(first)[:half]) for first, *_ in held]
    base = x.base if isinstance(x, Repeated) else x
    larger = Repeated(base.reshape(-1).view(np.uint8), (half,))
    return [partial(place.copy, *args) for args in rotated(place, [larger])]


class Broken(Exception):
    """What a provider did has made its device useless to everybody: only a new process helps."""


def _still_there(place: Host, reason: str) -> None:
    """After a failure. An illegal access makes every later call of this process fail."""
    try:
        place.synchronize()
    except Exception as error:
        raise Broken(reason or in_a_line(error)) from error


@dataclass
class _Contender:
    """Whoever is to be timed in a case."""

    place: Host
    calls: Calls
    row: Row  # but for its timings
    waits: bool = False  # for the device, in every call


class Turn:
    """One case, from its arrays to its rows. `at` is told whose turn it is."""

    def __init__(
        self,
        case: Case,
        places: Mapping[str, Host],
        at: Callable[[str], object] = lambda who: None,
    ) -> None:
        at(COPY)
        self.case, self.places, self.at = case, places, at
        self.arrays = sources(case)
        self.expected, self.exact = reference(case, self.arrays), truth(case, self.arrays)
        arrays = list(self.arrays.values())
        written = case.bytes - sum(array.nbytes for array in arrays)
        self.held = {name: rotated(place, arrays, written) for name, place in places.items()}
        name, first = next(iter(places.items()))
        copies = _copies(case, first, arrays[0], self.held[name])
        self.contenders = {COPY: _Contender(first, copies, row_of(case, COPY))}
        self.rows: list[Row] = []  # of those that are not timed

    def enter(self, provider: Provider) -> None:
        """Ask the provider for the function, and look at what it computes."""
        self.at(provider.name)
        row = row_of(self.case, provider.name, backend=provider.backend)
        place = self.places[provider.place]
        try:
            contender = self._checked(provider, row)
        except Exception as error:
            self._fails(place, row, error)
            return
        if contender is None:
            return
        if contender.row.status == "timed":
            self.contenders[provider.name] = contender
        else:
            _still_there(place, contender.row.reason)
            self.rows.append(contender.row)

    def _checked(self, provider: Provider, row: Row) -> _Contender | None:
        """None where he has no such function."""
        case, place = self.case, self.places[provider.place]
        judge, note = _judge(case, provider, self.arrays)
        function = provider.spell(case)
        if function is None:
            return None
        given = self.held[provider.place]
        if case.function in provider.overwrites:
            given = [tuple(place.copy(array) for array in args) for args in given]
            note = OVERWRITES
        calls = [partial(function, *args, **case.options) for args in given]
        found = checked(case, place, calls[0], self.expected, judge, self.exact)
        row = replace(row, status=found.status, reason=found.reason, error_ulp=found.error_ulp)
        if found.status == "timed":
            row = replace(row, note=note, peak_bytes=place.peak(calls[0]))
        return _Contender(place, calls, row, case.function in provider.waits)

    def _fails(self, place: Host, row: Row, error: Exception) -> None:
        status, reason = failed(error)
        _still_there(place, reason)
        self.rows.append(replace(row, status=status, reason=reason))

    def timed(self, budget: float) -> list[Row]:
        """All contenders in turn; after them those that are not timed."""
        who = self.contenders

        def lost(name: str, error: Exception) -> None:
            if name == COPY:  # the measure of all others
                raise error
            self._fails(who[name].place, who[name].row, error)

        def uncalled(name: str, error: Exception) -> None:
            reason, row = in_a_line(error), who[name].row
            _still_there(who[name].place, reason)
            said = f"what a call costs is not known ({reason})"
            who[name].row = replace(row, note=f"{row.note}; {said}" if row.note else said)

        alone = {name: (self._recorded(one), one.calls) for name, one in who.items()}
        timings = interleaved(alone, budget, self.at, lost)
        del alone  # graphs and their memory
        if self.case.bytes >= HUGE:
            for place in self.places.values():
                place.trim()
        called: Mapping[str, Timing] = {}
        if any(one.place.graphs for one in who.values()):
            once = timings[COPY].median
            plain = {n: (Unwaited(who[n].place, once), who[n].calls) for n in timings}
            called = interleaved(plain, budget / 3, self.at, uncalled)
        return [
            replace(
                who[name].row,
                timing=timing,
                call=called.get(name),
                bytes_per_second=self.case.bytes / timing.median,
                share_of_copy=timings[COPY].median / timing.median,
            )
            for name, timing in timings.items()
        ] + self.rows

    def _recorded(self, one: _Contender) -> Host:
        """In a CUDA graph, if the place has any and the work can be recorded."""
        if not one.place.graphs:
            return one.place
        self.at(one.row.provider)
        if one.waits:
            return self._launched(one, WAITS)
        try:
            found: Host = Replayed(one.place, one.calls)
        except Exception as error:
            reason = in_a_line(error)
            _still_there(one.place, reason)
            return self._launched(one, f"no CUDA graph of it ({reason}): launches are timed along")
        one.row = replace(one.row, method="graph")
        return found

    def _launched(self, one: _Contender, why: str) -> Host:
        """As plain calls between device events."""
        note = f"{one.row.note}; {why}" if one.row.note else why
        one.row = replace(one.row, method="events", note=note)
        return one.place


def row_of(
    case: Case, provider: str, status: Status = "timed", reason: str = "", **more: Any
) -> Row:
    """A case's row, but for what is measured."""
    return Row(
        *(case.name, case.bytes, case.formula, provider, status, reason),
        suite=case.suite,
        function=case.function,
        dtype=case.dtype,
        shape=case.shape,
        headline=case.headline,
        **more,
    )


def _run_case(
    case: Case,
    able: Sequence[Provider],
    places: Mapping[str, Host],
    budget: float,
    at: Callable[[str], object],
) -> list[Row]:
    try:
        turn = Turn(case, places, at)
        for provider in able:
            turn.enter(provider)
            if case.bytes >= HUGE:  # what one library's pool keeps, another's may need
                places[provider.place].trim()
        return turn.timed(budget)
    except Broken:
        raise
    except Exception as error:  # its arrays do not fit this GPU, say: those of the next may
        for place in places.values():
            _still_there(place, in_a_line(error))
        ours = [p for p in able if p.backend] or able
        return [row_of(case, p.name, *failed(error), backend=p.backend) for p in ours]


def run_case(
    case: Case,
    providers: Sequence[Provider],
    places: Mapping[str, Host],
    budget: float,
    at: Callable[[str], object] = lambda who: None,
) -> list[Row]:
    """One row a provider that has the function; the copy comes first, and is the measure."""
    able = [p for p in providers if case.compiled or not p.compiles]
    try:
        return _run_case(case, able, places, budget, at)
    finally:  # its arrays are gone by now, but for those that an error's frames hold in a circle
        if case.bytes >= HUGE:
            gc.collect()
        for place in places.values():  # one library's pool would starve the other
            place.release()
