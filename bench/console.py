"""A run as it is seen while it goes on: tables on the console."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .digits import ENOUGH, Trained
from .goals import Verdict
from .held import Held
from .host import Cost
from .in_torch import OF
from .result import CopyRate, Result
from .suite import Row
from .tables import COPY
from .words import aim, duration, gigabytes, microseconds, share, size, spread


def console() -> Console:
    # "gpuact[bench]" is no markup, and not every number needs a colour; a file has room
    out = Console(markup=False, highlight=False)
    return out if out.is_terminal else Console(markup=False, highlight=False, width=100)


# -- the throughput table -------------------------------------------------------------------------


def print_machine(out: Console, result: Result) -> None:
    here = result.machine
    devices = [f"{here['processor']}, {here['cores']} cores", *(g["name"] for g in here["gpus"])]
    out.print("; ".join(devices))
    out.print(", ".join(f"{name} {version}" for name, version in result.versions.items()))


def print_copy(out: Console, rate: CopyRate) -> None:
    moved = f"{size(rate.bytes)} in {duration(rate.timing.median)}"
    out.print(f"copy at the {rate.when}: {gigabytes(rate.bytes_per_second)} GB/s ({moved})")


# Fixed widths: every case is a table of its own, and they line up.
COLUMNS = (("", 24), ("time", 9), ("20–80 %", 18), ("GB/s", 9), ("of the copy", 11))
CALLED = ("a call", 9)  # what it costs the host, where that is another thing


def _columns(called: bool) -> Table:
    table = Table.grid(padding=(0, 1))
    for name, width in (*COLUMNS, CALLED) if called else COLUMNS:
        table.add_column(width=width, justify="right" if name else "left", no_wrap=True)
    return table


def heading(called: bool) -> Table:
    table = _columns(called)
    table.add_row(*(Text(name, "bold") for name, _ in ((*COLUMNS, CALLED) if called else COLUMNS)))
    return table


def case_table(rows: Sequence[Row]) -> Table:
    """A line a provider."""
    called = any(row.call for row in rows)
    table = _columns(called)
    for row in rows:
        if row.timing is None:
            continue
        style = "dim" if row.provider == COPY else "bold" if row.backend else ""
        cells = [
            *(f"  {row.provider}", duration(row.timing.median), spread(row.timing)),
            *(gigabytes(row.bytes_per_second), share(row.share_of_copy)),
        ]
        if called:
            cells.append(duration(row.call.median) if row.call else "–")
        table.add_row(*cells, style=style)
    return table


def in_a_line(rows: Sequence[Row]) -> Text:
    """A case in a line: everybody's time, and his share of the copy's rate."""
    text = Text(f"{rows[0].case}: ", "cyan")
    timed = [row for row in rows if row.timing]
    for row in timed:
        style = "dim" if row.provider == COPY else "bold" if row.backend else ""
        of = "" if row.provider == COPY else f" ({share(row.share_of_copy)})"
        last = "" if row is timed[-1] else ", "
        text.append(f"{row.provider} {duration(row.timing.median)}{of}", style).append(last)
    return text


def print_case(out: Console, rows: Sequence[Row]) -> None:
    """The headline's cases as tables, all others in a line; below, why somebody has no time."""
    if rows and rows[0].headline:
        moved = f", {rows[0].bytes_formula} = {size(rows[0].bytes)}"
        out.print(Text(rows[0].case, "cyan").append(moved))
        out.print(case_table(rows))
    elif rows and rows[0].case:
        out.print(in_a_line(rows))
    for row in rows:
        if row.reason:
            out.print(Text(f"  {row.provider or row.case}: {row.status}: {row.reason}", "yellow"))
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            notes.setdefault(row.note, []).append(row.provider)
    for note, who in notes.items():
        out.print(Text(f"  {', '.join(who)}: {note}", "dim"))


def print_costs(out: Console, rows: Sequence[Cost]) -> None:
    """One way of calling: a line a caller."""
    if not rows:
        return
    out.print(Text(rows[0].case, "cyan"))
    table = Table.grid(padding=(0, 1))
    for name, width in (("", 28), ("time", 9), ("20–80 %", 18)):
        table.add_column(width=width, justify="right" if name else "left", no_wrap=True)
    for row in rows:
        if row.timing:
            style = "bold" if "gpuact" in row.provider else ""
            cells = f"  {row.provider}", duration(row.timing.median), spread(row.timing)
            table.add_row(*cells, style=style)
    out.print(table)
    for row in rows:
        if row.reason:
            out.print(Text(f"  {row.provider}: {row.status}: {row.reason}", "yellow"))


OVERHEAD = (36, 7)  # the widths of a row's name, and of a provider


def _overheads(style: str, name: str, cells: Iterable[str]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=OVERHEAD[0], vertical="bottom", no_wrap=True)
    cells = list(cells)
    for _ in cells:
        table.add_column(width=OVERHEAD[1], justify="right", vertical="bottom")
    table.add_row(name, *cells, style=style)
    return table


def overhead_heading(providers: Iterable[str]) -> Table:
    """A provider a column, its name broken behind commas and dots."""
    names = (name.replace(", ", ",\n").replace(".", ".\n") for name in providers)
    return _overheads("bold", f"µs of a call{OF}", names)


def print_overheads(out: Console, rows: Sequence[Cost], providers: Iterable[str]) -> None:
    """One row in a line, and below who has no time and why."""
    times = {row.provider: microseconds(row.timing.median) for row in rows if row.timing}
    if times:
        name = rows[0].case.removesuffix(OF)
        out.print(_overheads("", name, (times.get(who, "–") for who in providers)))
    for row in rows:
        if row.reason:
            out.print(Text(f"  {row.provider}: {row.status}: {row.reason}", "yellow"))


def print_held(out: Console, rows: Sequence[Held]) -> None:
    """One case: bytes an element that are kept for backward, and of what; a line a provider."""
    if not rows:  # nobody here has autograd
        return
    out.print(Text(f"{rows[0].case}, held for backward", "cyan"))
    for row in rows:
        if row.reason:
            out.print(Text(f"  {row.provider}: {row.reason}", "yellow"))
        else:
            each = f"{row.bytes / row.elements:.3g} bytes an element"
            of = f" ({', '.join(row.kept)})" if row.kept else ""
            style = "bold" if "gpuact" in row.provider else ""
            out.print(Text(f"  {row.provider:24}{each}{of}", style))


STYLES = {"held": "green", "missed": "red", "not measured": "yellow"}


def _value(verdict: Verdict) -> str:
    return "not measured" if verdict.value is None else f"{verdict.value:.2f}"


def verdict(found: Verdict) -> str:
    """In one line."""
    goal, value = found.goal, "" if found.value is None else f" with {_value(found)}"
    beside = f" beside {found.rival}" if found.rival else ""
    return f"{found.ours}: {goal.what}{beside}: {found.word}{value}"


def verdict_table(verdicts: Iterable[Verdict]) -> Table:
    """A row a goal."""
    table = Table(
        "gpuact on NumPy", "beside", "goal", "here", "", title="Goals", title_style="bold"
    )
    for found in verdicts:
        word = Text(found.word, STYLES[found.word])
        asked = aim(found.goal.figure, found.goal.limit)
        table.add_row(found.goal.what, found.rival, asked, _value(found), word)
    return table


def print_verdicts(out: Console, verdicts: Iterable[Verdict]) -> None:
    """Where each case has goals of its own: they stand below it, with who reached them."""
    cases: dict[str, list[Verdict]] = {}
    for found in verdicts:
        cases.setdefault(found.goal.what, []).append(found)
    out.print(Text("Goals", "bold"))
    for name, group in cases.items():
        out.print(Text(name, "cyan"))
        for found in group:
            value = "" if found.value is None else f" {_value(found)}"
            beside = f" beside {found.rival}" if found.rival else ""
            asked = aim(found.goal.figure, found.goal.limit)
            line = f"  {found.word}: {found.ours}{value}{beside}, goal {asked}"
            out.print(Text(line, STYLES[found.word]))


def print_goals(out: Console, verdicts: Iterable[Verdict]) -> None:
    """Where one goal is set for many cases: how many hold it, and each that does not."""
    groups: dict[tuple[str, str, str], list[Verdict]] = {}
    for found in verdicts:
        goal = found.goal
        groups.setdefault((goal.who, goal.rival, aim(goal.figure, goal.limit)), []).append(found)
    table = Table("", "beside", "goal", "cases", title="Goals", title_style="bold")
    for who, group in groups.items():
        words = [found.word for found in group]
        counts = ", ".join(f"{words.count(word)} {word}" for word in STYLES if word in words)
        style = next(STYLES[word] for word in ("missed", *reversed(STYLES)) if word in words)
        table.add_row(*who, Text(counts, style))
    out.print(table)
    for found in (found for group in groups.values() for found in group):
        if found.word == "missed":
            out.print(Text(verdict(found), "red"))


def digits_table(trained: Iterable[Trained]) -> Table:
    table = Table(
        "hidden activation", title="Handwritten digits, trained by hand", title_style="bold"
    )
    for name in ("test accuracy", "time per epoch", "loss at the end", "dZ is S − Y but for"):
        table.add_column(name, justify="right")
    for row in trained:
        style = "" if row.enough else "red"
        accuracy = Text(f"{row.accuracy:.1%}", style)
        loss, difference = f"{row.loss:.4f}", f"{row.difference:.1e}"
        table.add_row(row.activation, accuracy, duration(row.seconds), loss, difference)
    table.caption = f"bar: {ENOUGH:.0%} for all but linear and sigmoid"
    return table
