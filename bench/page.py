"""The report: results as one HTML page that needs nothing beside itself, and as pictures.

What stands on the page is put together here, in the order in which it is read; page.html.jinja
says how it looks. Figures are data: URIs, one for light pages and one for dark ones.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Generic, Protocol, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from . import figures, words
from .digits import ENOUGH
from .figures import LOOKS, Panel, families, largest, named, ordered, ours, panels, parted
from .held import Held
from .host import Cost
from .result import Condition, CopyRate, Result
from .suite import Row
from .tables import COPY

SMALL = 1 << 20  # bytes: what a call costs is then the launch
METHODS = {
    "graph": "in a CUDA graph, by device events",
    "events": "plain calls, by device events",
    "clock": "plain calls, by the clock on the wall",
}


class Entry(Protocol):
    """A row of any table that has a case a line and a provider a column."""

    @property
    def case(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def reason(self) -> str: ...


E = TypeVar("E", bound=Entry)


# -- tables: a case a line, a provider a column ---------------------------------------------------


@dataclass(frozen=True)
class Cell:
    provider: str
    main: str = "–"
    below: str = ""
    hint: str = ""
    bar: float | None = None  # a share, drawn
    best: bool = False
    status: str = ""  # in place of a number
    to: str = ""  # where the reason stands


@dataclass(frozen=True)
class Line:
    head: str
    rest: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Reason:
    ident: str
    case: str
    provider: str
    status: str
    text: str


@dataclass(frozen=True)
class Grid(Generic[E]):
    """How rows become a table: what a cell says, and which is the best of a line."""

    ident: str
    first: str  # the heading of the first column
    label: Callable[[E], tuple[str, str]]
    cell: Callable[[E], dict[str, Any]]
    value: Callable[[E], float | None]  # the least is the best; None where there is no number

    def table(self, rows: Iterable[E]) -> Table | None:
        cases: dict[str, dict[str, E]] = {}
        for row in rows:
            cases.setdefault(row.case, {})[row.provider] = row
        if not cases:
            return None
        providers = ordered(who for case in cases.values() for who in case)
        reasons: list[Reason] = []
        lines = [self._line(case, providers, reasons) for case in cases.values()]
        return Table(self.first, providers, lines, reasons, _notes(cases))

    def _line(self, case: Mapping[str, E], providers: Sequence[str], reasons: list[Reason]) -> Line:
        values = {who: self.value(row) for who, row in case.items() if who != COPY}
        known = [v for v in values.values() if v is not None]
        # of equals nobody is the best, nor who is alone
        least = min(known) if len(set(known)) > 1 else None
        cells = []
        for who in providers:
            row = case.get(who)
            if row is None:
                cells.append(Cell(who))
            elif row.reason:
                status = getattr(row, "status", "failed")
                ident = f"{self.ident}-{len(reasons) + 1}"
                reasons.append(Reason(ident, row.case, who, status, row.reason))
                cells.append(Cell(who, status=status, hint=row.reason, to=ident))
            else:
                best = least is not None and values.get(who) == least
                cells.append(Cell(who, best=best, **self.cell(row)))
        return Line(*self.label(next(iter(case.values()))), cells)


@dataclass(frozen=True)
class Table:
    first: str
    providers: Sequence[str]
    lines: Sequence[Line]
    reasons: Sequence[Reason] = ()
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)  # who, by what is to be said


def _notes(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for case in cases.values():
        for who, row in case.items():
            if getattr(row, "note", ""):
                found.setdefault(row.note, set()).add(who)
    return {note: ordered(who) for note, who in found.items()}


def _case(row: Row) -> tuple[str, str]:
    head, rest = parted(row)
    size = words.size(row.bytes).replace(" ", "\u00a0")
    return head, ", ".join(part for part in (rest, size) if part)


def _before_the_dtype(row: Cost | Held) -> tuple[str, str]:
    found = re.fullmatch(r"(.+?) ((?:b?float\d+).*)", row.case)
    return (found[1], found[2]) if found else (row.case, "")


def _hint(row: Row) -> str:
    if row.timing is None:
        return ""
    spread = f"20–80%: {words.spread(row.timing)}, {row.timing.samples} samples"
    return "; ".join(
        part for part in (spread, METHODS.get(row.method, row.method), row.note) if part
    )


def _median(row: Row | Cost) -> float | None:
    return row.timing.median if row.timing else None


def _headline_cell(row: Row) -> dict[str, Any]:
    assert row.timing
    mark = " *" if row.method == "events" else ""  # its note says why
    found = {"main": words.duration(row.timing.median) + mark, "hint": _hint(row)}
    if row.provider == COPY:
        return {**found, "below": f"{words.gigabytes(row.bytes_per_second)} GB/s"}
    return {**found, "below": words.share(row.share_of_copy), "bar": row.share_of_copy}


def _latency_cell(row: Row) -> dict[str, Any]:
    assert row.timing
    call = f"call {words.microseconds(row.call.median)}" if row.call else ""
    return {"main": words.microseconds(row.timing.median), "below": call, "hint": _hint(row)}


def _cost_cell(row: Cost) -> dict[str, Any]:
    assert row.timing
    return {
        "main": words.microseconds(row.timing.median),
        "hint": f"20–80%: {words.spread(row.timing)}, {row.timing.samples} samples",
    }


def _memory_cell(row: Row) -> dict[str, Any]:
    assert row.peak_bytes is not None
    return {"main": f"{row.peak_bytes / row.bytes:.2f}", "below": words.size(row.peak_bytes)}


def _held_cell(row: Held) -> dict[str, Any]:
    return {"main": words.plain(row.bytes / row.elements), "below": ", ".join(row.kept)}


def _headline(ident: str, result: Result) -> Table | None:
    grid = Grid(ident, "case", _case, _headline_cell, _median)
    return grid.table(row for row in result.rows if row.headline)


def _latency(ident: str, result: Result) -> list[Table]:
    """The smallest case of each function and those of the headlines, then all the other ones."""
    small = [row for row in result.rows if 0 < row.bytes <= SMALL]
    least: dict[str, Row] = {}
    for row in small:
        least[named(row)] = min(least.get(named(row), row), row, key=lambda row: row.bytes)
    first = {row.case for row in least.values()} | {row.case for row in small if row.headline}
    return _parted(Grid(ident, "case", _case, _latency_cell, _median), small, first)


def _parted(grid: Grid[Row], rows: Sequence[Row], first: Iterable[str]) -> list[Table]:
    """Two tables, of the cases that are told first and of the others; or as many as there are."""
    parts = (
        [row for row in rows if row.case in first],
        [row for row in rows if row.case not in first],
    )
    grids = grid, replace(grid, ident=f"{grid.ident}o")
    found = (each.table(part) for each, part in zip(grids, parts, strict=True))
    return [table for table in found if table]


def _costs(ident: str, result: Result) -> Table | None:
    return Grid(ident, "call", _before_the_dtype, _cost_cell, _median).table(result.host_costs)


def _memory(ident: str, result: Result) -> list[Table]:
    """The cases in which providers differ, then those in which all take the same."""
    rows = [row for row in result.rows if row.headline and row.peak_bytes is not None]
    peaks: dict[str, set[int | None]] = {}
    for row in rows:
        peaks.setdefault(row.case, set()).add(row.peak_bytes)
    differ = [case for case, found in peaks.items() if len(found) > 1]
    grid = Grid(ident, "case", _case, _memory_cell, lambda row: row.peak_bytes)
    return _parted(grid, rows, differ or list(peaks))


def _held(ident: str, result: Result) -> Table | None:
    grid = Grid(ident, "forward call", _before_the_dtype, _held_cell, lambda row: float(row.bytes))
    return grid.table(result.held_for_backward)


# -- the heat map, and the errors -----------------------------------------------------------------

STEPS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # shares of the copy at which the colour changes
DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Heat:
    provider: str
    dtypes: Sequence[str]
    lines: Mapping[str, Sequence[Row | None]]  # by function


def step(share: float) -> int:
    """Of the number as it is shown: 94.6 stands there as 95."""
    return sum(round(share, 2) >= bound for bound in STEPS)


def _heat(rows: Sequence[Row]) -> list[Heat]:
    """Of each backend, how near the copy each function gets where it moves most."""
    best = largest(rows)
    found = []
    for provider in ordered(row.provider for row in rows if row.backend):
        mine = {(name, dtype): row for (name, dtype, who), row in best.items() if who == provider}
        dtypes = sorted({dtype for _, dtype in mine}, key=_place)
        names = families(name for name, _ in mine)
        lines = {name: [mine.get((name, dtype)) for dtype in dtypes] for name in names}
        found.append(Heat(provider, dtypes, lines))
    return [heat for heat in found if heat.lines]


def _place(dtype: str) -> tuple[int, str]:
    return (DTYPES.index(dtype) if dtype in DTYPES else len(DTYPES)), dtype


def _errors(ident: str, rows: Sequence[Row]) -> Table | None:
    """The largest error of each function and provider, over all cases and dtypes."""
    worst: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.error_ulp is not None and row.function:
            key = row.function, row.provider
            if key not in worst or row.error_ulp > (worst[key].error_ulp or 0):
                worst[key] = row
    names = families(name for name, _ in worst)
    providers = ordered(who for _, who in worst)
    lines = []
    for name in names:
        cells = []
        for who in providers:
            found = worst.get((name, who))
            if found is None or found.error_ulp is None:
                cells.append(Cell(who))
            else:
                below = found.dtype if found.error_ulp else ""
                cells.append(Cell(who, words.digits(found.error_ulp), below, found.case))
        lines.append(Line(name, "", cells))
    return Table("function", providers, lines) if lines else None


# -- the figures ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    title: str
    rest: str
    alt: str
    light: str  # data: URIs
    dark: str
    width: int
    height: int


def _uri(text: str) -> str:
    return f"data:image/svg+xml;base64,{b64encode(text.encode()).decode()}"


def drawing(figure: Figure, title: str, rest: str, alt: str) -> Drawn:
    light, dark = map(_uri, figures.svg(figure))
    width, height = (round(inches * 96) for inches in figure.get_size_inches())
    return Drawn(title, rest, alt, light, dark, width, height)


def _seen(panel: Panel) -> str:
    """What the figure shows, for who cannot see it."""
    ends = [f"{panel.x(line[-1]):,}" for line in list(panel.lines.values())[:1]]
    over = "rows of up to {} numbers" if panel.by_length else "up to {} bytes moved"
    told = [
        f"{who} {words.gigabytes(panel.lines[who][-1].bytes_per_second)}"
        for who in ordered(panel.lines)
    ]
    return (
        f"GB/s of {panel.title} at {len(panel.xs)} sizes, {over.format(*ends)}. "
        f"At the largest measured: {', '.join(told)}."
    )


def _bandwidth(result: Result) -> list[Drawn]:
    return [
        drawing(figures.bandwidth(panel, result.sample), panel.function, panel.dtype, _seen(panel))
        for panel in panels(result.rows)
    ]


def _accuracy(result: Result) -> list[Drawn]:
    rows = [row for row in largest(result.rows).values() if row.error_ulp is not None]
    found = []
    for dtype in sorted({row.dtype for row in rows}, key=_place):
        chosen = [row for row in rows if row.dtype == dtype]
        told = []
        for who in ordered(row.provider for row in chosen):
            mine = [row for row in chosen if row.provider == who]
            most = max(row.error_ulp or 0 for row in mine)
            shares = [row.share_of_copy for row in mine]
            told.append(
                f"{who} errs by at most {words.plain(most)} ulp at "
                f"{words.share(min(shares))} to {words.share(max(shares))}"
            )
        alt = f"Share of the copy's rate against largest error, {dtype}. {'; '.join(told)}."
        figure = figures.accuracy(chosen, result.sample)
        found.append(drawing(figure, dtype, f"{len(chosen)} points", alt))
    return found


# -- the machine ----------------------------------------------------------------------------------

READINGS = (
    ("SM clock", "sm_mhz", "MHz"),
    ("memory clock", "memory_mhz", "MHz"),
    ("temperature", "temperature_c", "°C"),
    ("power", "power_w", "W"),
)


TOLD = 3  # times that a GPU was slowed down


@dataclass(frozen=True)
class Reading:
    name: str
    unit: str
    start: str
    end: str
    least: str
    most: str


@dataclass(frozen=True)
class Conditions:
    """Of the GPU, during the run."""

    readings: Sequence[Reading]
    throttled: str  # a sentence


def _conditions(result: Result) -> Conditions | None:
    told = result.conditions
    if not told:
        return None
    readings = []
    for name, key, unit in READINGS:
        values = [v for condition in told if (v := getattr(condition, key)) is not None]
        if values:
            shown = (values[0], values[-1], min(values), max(values))
            readings.append(Reading(name, unit, *(f"{value:,.0f}" for value in shown)))
    return Conditions(readings, _throttled(told))


def _throttled(told: Sequence[Condition]) -> str:
    answers = [condition for condition in told if condition.throttled is not None]
    slowed = [f"{c.throttled} {c.when}" for c in answers if c.throttled]
    if not answers:
        return "The driver does not tell whether anything slowed it down."
    if not slowed:
        return f"Nothing slowed it down at any of {len(answers)} readings."
    more = f"; {len(slowed) - TOLD} more" if len(slowed) > TOLD else ""
    where = "; ".join(slowed[:TOLD])
    return f"Slowed down at {len(slowed)} of {len(answers)} readings: {where}{more}."


@dataclass(frozen=True)
class Copied:
    """The plain copy of one provider at the run's two ends."""

    provider: str
    size: str
    ends: Mapping[str, CopyRate]

    @property
    def drift(self) -> str:
        if len(self.ends) < 2:
            return "–"
        start, end = (self.ends[when].bytes_per_second for when in ("start", "end"))
        return f"{end / start - 1:+.1%}".replace("-", "−")


def _copies(result: Result) -> list[Copied]:
    found: dict[tuple[str, int], dict[str, CopyRate]] = {}
    for copy in result.copies:
        found.setdefault((copy.provider, copy.bytes), {})[copy.when] = copy
    return [Copied(who, words.size(count), ends) for (who, count), ends in found.items()]


def _facts(result: Result) -> dict[str, str]:
    """In the order in which they are read; what nobody told is left out."""
    here = result.machine
    cores = f", {here['cores']} cores" if here.get("cores") else ""
    changes = " with changes" if result.changed_since_commit else ""
    # "only: None" says nothing
    chosen = [f"{name.replace('_', ' ')} {v}" for name, v in result.settings.items() if v]
    found = {
        "GPU": "; ".join(
            f"{gpu['name']}, {gpu['memory'] / 2**30:.0f} GiB, driver {gpu['driver']}"
            for gpu in here.get("gpus", ())
        ),
        "processor": f"{here['processor']}{cores}" if here.get("processor") else "",
        "system": str(here.get("system", "")),
        "versions": ", ".join(f"{name} {number}" for name, number in result.versions.items()),
        "commit": f"{result.commit[:12]}{changes}" if result.commit else "",
        "settings": ", ".join(chosen),
        "begun": f"{result.time[:16].replace('T', ' ')} UTC",
        "took": f"{result.seconds / 60:.1f} minutes" if result.seconds else "",
    }
    return {name: text for name, text in found.items() if text}


@dataclass(frozen=True)
class Number:
    """One number of the few that say most."""

    value: str
    what: str


def _summary(result: Result) -> list[Number]:
    found = []
    rates = [row.bytes_per_second for row in result.rows if row.provider == COPY]
    rates += [copy.bytes_per_second for copy in result.copies]
    if rates:
        found.append(Number(f"{words.gigabytes(max(rates))} GB/s", "the quickest copy"))
    short = [row for row in result.rows if row.headline and row.timing and row.provider != COPY]
    cases: dict[str, list[Row]] = {}
    for row in short:
        cases.setdefault(row.case, []).append(row)
    for who in ordered(row.provider for row in short if row.backend):
        shares = [row.share_of_copy for row in short if row.provider == who]
        what = f"of the copy: {who}, median of {len(shares)} headline cases"
        found.append(Number(words.share(median(shares)), what))
    beside = [rows for rows in cases.values() if len({ours(row.provider) for row in rows}) == 2]
    won = sum(ours(min(rows, key=_quickest).provider) for rows in beside)
    if beside:
        what = "headline cases in which gpuact is the quickest"
        found.append(Number(f"{won} of {len(beside)}", what))
    judged = [goal for goal in result.goals if goal.value is not None]
    if judged:
        held = sum(goal.held for goal in judged)
        found.append(Number(f"{held} of {len(judged)}", "measured goals held"))
    return found


def _quickest(row: Row) -> float:
    return row.timing.median if row.timing else float("inf")


# -- the page -------------------------------------------------------------------------------------


def _section(index: int, result: Result) -> dict[str, Any]:
    """All that one result has to say; what is empty is left out by the page."""
    ident = f"r{index}"
    goals = sorted(
        result.goals, key=lambda goal: ("missed", "not measured", "held").index(words.verdict(goal))
    )
    cases: dict[str, list[Row]] = {}
    for row in result.rows:
        cases.setdefault(row.case, []).append(row)
    unavailable = cases.pop("", [])
    return {
        "id": ident,
        "result": result,
        "facts": _facts(result),
        "summary": _summary(result),
        "conditions": _conditions(result),
        "copies": _copies(result),
        "headline": _headline(f"{ident}-h", result),
        "bandwidth": _bandwidth(result),
        "drawn": ordered(who for panel in panels(result.rows) for who in panel.lines),
        "heat": _heat(result.rows),
        "latency": _latency(f"{ident}-l", result),
        "costs": _costs(f"{ident}-c", result),
        "memory": _memory(f"{ident}-m", result),
        "held": _held(f"{ident}-b", result),
        "accuracy": _accuracy(result),
        "errors": _errors(f"{ident}-e", result.rows),
        "goals": goals,
        "cases": cases,
        "unavailable": unavailable,
        "untimed": [row for rows in cases.values() for row in rows if row.reason],
    }


def slug(provider: str) -> str:
    """A provider's class; all who have no look of their own share one."""
    return re.sub(r"\W+", "-", provider.lower()).strip("-") if provider in LOOKS else "other"


def breakable(name: str) -> Markup:
    """With places at which a long word may be broken."""
    return Markup("<wbr>").join(re.split(r"(?<=[a-z]{4})(?=[A-Z.])|(?<=_)(?=\w)", name))


def environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    found = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"slug": slug, "step": step, "breakable": breakable}
    found.globals |= {
        "words": words,
        "looks": {**LOOKS, "": figures.OTHER},
        "outline": figures.outline,
        "ours": ours,
        "copy": COPY,
        "enough": ENOUGH,
        "methods": METHODS,
        "steps": STEPS,
    }
    return found


def page(results: Sequence[Result]) -> str:
    """The HTML of all results, one below the other."""
    sections = [_section(index, result) for index, result in enumerate(results, 1)]
    text = environment().get_template("page.html.jinja").render(sections=sections)
    return re.sub(r"\n\s*\n", "\n", text)


def write(results: Sequence[Result], folder: Path, stem: str) -> list[Path]:
    """The page, and for each result the pictures of what it has: their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{stem}.html"]
    written[0].write_text(page(results), encoding="utf-8")
    for index, result in enumerate(results, 1):
        name = stem if len(results) == 1 else f"{stem}-{index}"
        drawings = {"headline": figures.headline, "bandwidth": figures.bandwidths}
        for what, draw in drawings.items():
            figure = draw(result)
            if figure is not None:
                written.append(folder / f"{name}-{what}.png")
                figures.png(figure, written[-1])
    return written
