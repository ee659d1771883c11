"""Two results side by side: what became faster, what slower, and what is no more than noise.

A ratio is the first result's figure over the second's: above 1, the second is faster, or takes
less. Its band reaches from the first's 20 % quantile over the second's 80 % to the other way round.
It is a gain where the whole band lies above 1 and the ratio is at least ENOUGH, a loss where both
hold of its inverse, else noise.

A copy of as many bytes is timed in turn with everybody else, so it meets the same clock and the
same neighbours. Where it kept its time, seconds are compared with seconds. Where it did not (the
machine is another, or the copy of that very case changed beyond its own noise), seconds would tell
of the machine: each is then taken as a share of the copy beside it, which multiplies ratio and band
by the second copy's median over the first's. The copy's own band is left out: what disturbs it
disturbs the others of its round too, and is in their bands already. This is decided case by case,
and what is compared so says "share of copy" instead of "time".

A band is of one run, and a machine is not the same an hour later. Rivals run the same code in both:
where there are enough of them, and of the same versions, what nineteen of twenty stay within is
noise for everybody.

What a plain call costs the host has the cost of the copy's call for a yardstick, on another machine
or if that changed ("share of call"). What has no copy beside it is compared on one machine alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .host import Cost
from .measure import Timing
from .result import Result
from .suite import Row
from .tables import COPY
from .words import duration, size

Item = Row | Cost
Key = tuple[str, str]  # case and provider
# A figure has one of the first four, a status one of the rest.
Verdict = Literal[
    "gain",
    "loss",
    "noise",
    "not compared",  # nothing in common to measure by, as the reason says
    "broken",  # wrong, failed or lost, and was not
    "mended",  # timed, and was not
    "changed",  # otherwise
    "only in A",
    "only in B",
]
FAULTS = ("wrong", "failed", "lost")
ONE_SIDED = ("only in A", "only in B")

ENOUGH = 1.02  # less is nothing, however sure
PLAIN = 1.05  # of what is counted and not timed
MANY = 20  # timings of rivals that it takes to say what noise is

TIME, SHARE = "time", "share of copy"
CALL, CALL_SHARE = "of the call", "share of call"
SHARES = {TIME: SHARE, CALL: CALL_SHARE}
HOST, MEMORY, ERROR, STATUS = "host cost", "memory", "error", "status"

NO_COPY = "the machines differ, and no copy was timed beside it"

# How a figure is written, by what it is.
WRITTEN: Mapping[str, Callable[[float], str]] = {
    TIME: duration,
    SHARE: "{:.1%}".format,
    CALL: duration,
    CALL_SHARE: "{:.1%}".format,
    HOST: duration,
    MEMORY: size,
    ERROR: "{:.3g} ulp".format,
}


@dataclass(frozen=True)
class Change:
    """One figure of one provider in one case, or its status, in both results."""

    case: str
    provider: str
    what: str  # a key of WRITTEN, or STATUS
    before: float | str | None  # None where the row is missing
    after: float | str | None
    ratio: float | None = None  # None of a status
    low: float | None = None  # the band; None of what is counted and not timed
    high: float | None = None
    verdict: Verdict = "noise"
    ours: bool = False
    reason: str = ""  # of a status that is not "timed", or why nothing is compared


@dataclass(frozen=True)
class Comparison:
    a: Result
    b: Result
    changes: tuple[Change, ...]
    cases: frozenset[str]  # that both have
    rows: int  # of those, by the same provider
    noise: float = 1.0  # a ratio: how far rivals are from where they were

    def where(self, *verdicts: str, ours: bool | None = None) -> list[Change]:
        """The changes of these verdicts, but for the copy's."""
        return [
            change
            for change in self.changes
            if change.provider != COPY
            and change.verdict in verdicts
            and ours in (None, change.ours)
        ]

    @property
    def copies(self) -> list[Change]:
        return [c for c in self.changes if c.provider == COPY and c.what in (TIME, CALL)]


# -- comparing ------------------------------------------------------------------------------------


def judged(ratio: float, low: float, high: float) -> Verdict:
    if low > 1 and ratio >= ENOUGH:
        return "gain"
    if high < 1 and ratio <= 1 / ENOUGH:
        return "loss"
    return "noise"


@dataclass(frozen=True)
class _Pair:
    """A timing of both results, and what stands beside it as a yardstick."""

    before: Timing
    after: Timing
    yard: tuple[Timing, Timing] | None = None

    @property
    def band(self) -> tuple[float, float, float]:
        a, b = self.before, self.after
        return a.median / b.median, a.low / b.high, a.high / b.low

    @property
    def drifted(self) -> bool:
        """Whether the yardstick changed beyond its noise."""
        return self.yard is not None and judged(*_Pair(*self.yard).band) != "noise"

    def shares(self) -> tuple[float, float]:
        assert self.yard is not None
        first, second = self.yard
        return first.median / self.before.median, second.median / self.after.median

    def scaled(self) -> tuple[float, float, float]:
        assert self.yard is not None
        first, second = self.yard
        ratio, low, high = (value * (second.median / first.median) for value in self.band)
        return ratio, low, high


def _ours(item: Item) -> bool:
    return bool(item.backend) if isinstance(item, Row) else "gpuact" in item.provider


def _timed(item: Item, what: str, pair: _Pair, elsewhere: bool, reason: str = "") -> Change:
    """elsewhere: the other result is of a machine on which seconds mean something else."""
    if elsewhere and pair.yard is None:
        reason = reason or NO_COPY
    if reason:
        seconds = pair.before.median, pair.after.median
        about = (item.case, item.provider, what, *seconds)
        return Change(*about, verdict="not compared", ours=_ours(item), reason=reason)
    if item.provider == COPY or not (elsewhere or pair.drifted):
        figures, band = (pair.before.median, pair.after.median), pair.band
    else:
        figures, band = pair.shares(), pair.scaled()
        what = SHARES[what]
    return Change(item.case, item.provider, what, *figures, *band, judged(*band), _ours(item))


def _counted(item: Row, what: str, before: float | None, after: float | None) -> Iterator[Change]:
    """Memory or error, where it is not what it was."""
    if before is None or after is None or max(before, after) <= PLAIN * min(before, after):
        return
    ratio = before / after if after else float("inf")
    verdict: Verdict = "gain" if ratio > 1 else "loss"
    about = (item.case, item.provider, what, before, after, ratio)
    yield Change(*about, verdict=verdict, ours=True)


def _both(first: Timing | None, second: Timing | None) -> tuple[Timing, Timing] | None:
    return None if first is None or second is None else (first, second)


def _status(a: Item | None, b: Item | None) -> Change:
    item = b or a
    assert item is not None
    before, after = a.status if a else None, b.status if b else None
    verdict: Verdict
    if before is None or after is None:
        verdict = "only in B" if before is None else "only in A"
    elif after == "timed":
        verdict = "mended"
    else:
        verdict = "broken" if after in FAULTS and before not in FAULTS else "changed"
    about = (item.case, item.provider, STATUS, before, after)
    return Change(*about, verdict=verdict, ours=_ours(item), reason=item.reason)


def _figures(
    a: Item, b: Item, copies: tuple[Item | None, Item | None], elsewhere: bool, other_host: bool
) -> Iterator[Change]:
    """Of a row that is timed in both."""
    if not (isinstance(a, Row) and isinstance(b, Row)):
        if pair := _both(a.timing, b.timing):
            yield _timed(a, HOST, _Pair(*pair), other_host)
        return
    yard = call_yard = None
    if isinstance(copies[0], Row) and isinstance(copies[1], Row):
        yard = _both(copies[0].timing, copies[1].timing)
        call_yard = _both(copies[0].call, copies[1].call)
    if pair := _both(a.timing, b.timing):
        methods = "" if a.method == b.method else f"one was timed by {a.method}, one by {b.method}"
        yield _timed(a, TIME, _Pair(*pair, yard), elsewhere, methods)
    if pair := _both(a.call, b.call):
        yield _timed(a, CALL, _Pair(*pair, call_yard), other_host)
    if _ours(a):
        yield from _counted(a, MEMORY, a.peak_bytes, b.peak_bytes)
        yield from _counted(a, ERROR, a.error_ulp, b.error_ulp)


def _items(result: Result) -> dict[Key, Item]:
    items: list[Item] = [*result.rows, *result.host_costs]
    return {(item.case, item.provider): item for item in items}


def compare(a: Result, b: Result) -> Comparison:
    """The rows of both in the order of the first, then those of the second alone."""
    before, after = _items(a), _items(b)
    elsewhere = a.device != b.device
    other_host = elsewhere or a.machine.get("processor") != b.machine.get("processor")
    changes: list[Change] = []
    for key in dict.fromkeys((*before, *after)):
        first, second = before.get(key), after.get(key)
        if first is None or second is None or first.status != second.status:
            changes.append(_status(first, second))
        elif first.status == "timed":
            copies = before.get((key[0], COPY)), after.get((key[0], COPY))
            changes += _figures(first, second, copies, elsewhere, other_host)
    cases = frozenset(case for case, _ in before) & frozenset(case for case, _ in after) - {""}
    rows = sum(case in cases for case, _ in before.keys() & after.keys())
    noise = _noise(a, b, changes)
    return Comparison(a, b, tuple(_within(c, noise) for c in changes), cases, rows, noise)


def _noise(a: Result, b: Result, changes: Sequence[Change]) -> float:
    """How far nineteen of twenty rivals are from where they were; 1 where nobody can tell."""
    same = {name: v for name, v in a.versions.items() if name != "gpuact"}
    if same != {name: v for name, v in b.versions.items() if name != "gpuact"}:
        return 1.0
    found = [
        abs(math.log(change.ratio))
        for change in changes
        if change.ratio and not change.ours and change.provider != COPY
    ]
    if len(found) < MANY:
        return 1.0
    return math.exp(float(np.quantile(found, 0.95, method="lower")))


def _within(change: Change, noise: float) -> Change:
    """Of what is timed; what is counted has none."""
    timed = change.what not in (MEMORY, ERROR) and change.verdict in ("gain", "loss")
    if change.provider == COPY or not timed:
        return change
    if change.ratio and 1 / noise <= change.ratio <= noise:
        return replace(change, verdict="noise")
    return change


def failures(comparison: Comparison) -> list[Change]:
    """What --check fails of: gpuact's losses, and its rows that are newly at fault."""
    return [
        change
        for change in comparison.changes
        if change.ours
        and (
            change.verdict in ("loss", "broken")
            or (change.verdict == "only in B" and change.after in FAULTS)
        )
    ]


# -- telling --------------------------------------------------------------------------------------


def _written(what: str, value: float | str | None) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else WRITTEN[what](value)


def in_words(change: Change) -> str:
    """One change in a line."""
    before, after = (_written(change.what, value) for value in (change.before, change.after))
    ratio = "" if change.ratio is None else f", {change.ratio:.2f}×"
    reason = f" ({change.reason})" if change.reason else ""
    where = f"{change.case or 'every case'}: {change.provider}"
    return f"{where}: {change.verdict}: {change.what} {before} → {after}{ratio}{reason}"


def _different(a: Result, b: Result) -> str:
    """What was asked of the two runs, where it is not the same."""
    names = sorted({*a.settings, *b.settings})
    found = [
        f"{name} {a.settings.get(name)} and {b.settings.get(name)}"
        for name in names
        if a.settings.get(name) != b.settings.get(name)
    ]
    return f"Their settings differ: {', '.join(found)}." if found else ""


def remarks(comparison: Comparison) -> list[str]:
    """What a reader must know of the two before any figure."""
    a, b = comparison.a, comparison.b
    found = [
        f"{name} is a sample: its figures are made up."
        for name, result in (("A", a), ("B", b))
        if result.sample
    ]
    found += [
        f"{name} ended before its time{f' ({result.stopped})' if result.stopped else ''}."
        for name, result in (("A", a), ("B", b))
        if not result.finished
    ]
    if a.device != b.device and comparison.rows:
        found.append("They are of different machines: times are compared as shares of the copy.")
    else:
        drifted = {c.case for c in comparison.copies if c.what == TIME and c.verdict != "noise"}
        if drifted:
            cases = f"{len(drifted)} case{'s' if len(drifted) > 1 else ''}"
            found.append(
                f"The copy itself changed in {cases}: there, times are compared as shares of it."
            )
    if comparison.noise > ENOUGH:
        far = f"{comparison.noise:.2f}×"
        found.append(f"19 of 20 rivals, whose code is the same, are within {far}: so is noise.")
    reasons = Counter(change.reason for change in comparison.where("not compared"))
    found += [f"Not compared, {count} in all: {reason}." for reason, count in reasons.items()]
    return [*found, *filter(None, [_different(a, b)])]


def summary(comparison: Comparison) -> str:
    gains, losses, noise = (len(comparison.where(word)) for word in ("gain", "loss", "noise"))
    alone = len(comparison.where(*ONE_SIDED))
    words = [
        f"{gains} gain{'' if gains == 1 else 's'}",
        f"{losses} loss{'' if losses == 1 else 'es'}",
        f"{noise} within the noise",
        f"{alone} only in one",
    ]
    return ", ".join(words)


# Fixed widths, 96 in all with what stands between: the tables of all cases line up.
COLUMNS = (("", 28), ("", 13), ("A", 11), ("B", 11), ("A/B", 7), ("band", 11), ("", 9))


def _grid() -> Table:
    table = Table.grid(padding=(0, 1))
    for name, width in COLUMNS:
        table.add_column(width=width, justify="right" if name else "left")
    return table


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"


def _cells(change: Change) -> tuple[str, ...]:
    figures = [_written(change.what, value) for value in (change.before, change.after)]
    ratio = "" if change.ratio is None else f"{_times(change.ratio)}×"
    band = "" if change.low is None else f"{_times(change.low)}–{_times(change.high)}"
    return f"  {change.provider}", change.what, *figures, ratio, band, change.verdict


STYLES = {"gain": "green", "loss": "red", "broken": "red", "mended": "green"}


def _print_group(out: Console, title: str, changes: Sequence[Change]) -> None:
    """The changes below the names of their cases."""
    if not changes:
        return
    heading = _grid()
    heading.add_row(title, *(name for name, _ in COLUMNS[1:]), style="bold")
    out.print()
    out.print(heading)
    cases: dict[str, list[Change]] = {}
    for change in changes:
        cases.setdefault(change.case, []).append(change)
    for name, group in cases.items():
        out.print(Text(name or "every case", "cyan"))
        table = _grid()
        for change in group:
            table.add_row(*_cells(change), style=STYLES.get(change.verdict, ""))
        out.print(table)
        for change in group:
            if change.reason:
                out.print(Text(f"  {change.provider}: {change.reason}", "yellow"))


def _print_statuses(out: Console, comparison: Comparison) -> None:
    """Who changed his status or is in one result alone; whole cases in one by their names."""
    _print_group(out, "Changed status", comparison.where("broken", "mended", "changed"))
    common = comparison.cases
    alone = comparison.where(*ONE_SIDED)
    _print_group(out, "Only in one", [c for c in alone if c.case in common or not c.case])
    for verdict in ONE_SIDED:
        cases = dict.fromkeys(c.case for c in alone if c.verdict == verdict)
        names = [name for name in cases if name and name not in common]
        if names:
            out.print(Text(f"\nCases {verdict}: {len(names)}", "bold"))
            for name in names:
                out.print(f"  {name}")


def _print_copies(out: Console, comparison: Comparison) -> None:
    """Those that changed, each; of the others how far apart they are."""
    copies = [c for c in comparison.copies if c.what == TIME]
    still = [c.ratio for c in copies if c.verdict == "noise" and c.ratio is not None]
    _print_group(out, "The copy itself", [c for c in copies if c.verdict != "noise"])
    if still:
        cases = f"{len(still)} case{'s' if len(still) > 1 else ''}"
        span = f"{min(still):.2f}–{max(still):.2f}×"
        out.print(f"\nThe copy is within its noise in {cases}: A/B {span}.")


def print_comparison(out: Console, comparison: Comparison) -> None:
    """Statuses first, then gpuact's losses and gains, then its rivals', the copy at the end."""
    out.print(f"A: {comparison.a.title}")
    out.print(f"B: {comparison.b.title}")
    for remark in remarks(comparison):
        out.print(Text(remark, "yellow"))
    if not comparison.rows:
        out.print("They have nothing in common: no provider is in the same case of both.")
        return
    out.print(Text(summary(comparison), "bold"))
    _print_statuses(out, comparison)
    for who, ours in (("gpuact", True), ("rivals", False)):
        for word, title in (("loss", "losses"), ("gain", "gains")):
            _print_group(out, f"{title} of {who}".capitalize(), comparison.where(word, ours=ours))
    _print_copies(out, comparison)
