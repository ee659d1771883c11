"""What is proved: which kernels a GPU has run as they stand, in which dtypes, and how fast.

A result speaks for the sources that it was measured with. It carries a hash of those of each family
of kernels; where a family's sources have another hash today, its rows prove nothing any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

import gpuact
from gpuact.catalogue import FUNCTIONS

from . import words
from .result import RESULTS, Result, Unreadable, kernel_hashes, read
from .result import files as files_of
from .suite import Row

BACKENDS = ("cupy", "triton")
DTYPES = ("float16", "bfloat16", "float32")  # to be proved; others are shown where a result has any
FAULTS = ("wrong", "failed", "lost")

State = Literal["proved", "stale", "wrong", "missing"]
LEGEND: Mapping[State, str] = {
    "proved": "timed on a GPU with today's sources; the largest case at this share of a copy",
    "stale": "timed on a GPU, but its sources have changed since",
    "wrong": "the newest row of a case, of today's sources, is wrong, failed or lost",
    "missing": "not timed on a GPU",
}
MARKS: Mapping[State, str] = {"proved": "✓", "stale": "stale", "wrong": "WRONG", "missing": "–"}
STYLES: Mapping[State, str] = {"proved": "green", "stale": "yellow", "wrong": "red", "missing": ""}


@dataclass(frozen=True)
class Proof:
    """A row of a kernel in a result of a GPU."""

    file: str
    result: Result
    row: Row

    def current(self, family: str, hashes: Mapping[str, str]) -> bool:
        return self.result.kernels.get(family) == hashes[family]


@dataclass(frozen=True)
class Cell:
    """One function of one backend in one dtype."""

    function: str
    backend: str
    dtype: str
    family: str  # of result.FAMILIES
    state: State
    share: float | None = None  # of the copy's rate, in the proved case that moves most
    # of the newest timed row, with today's sources if there is one
    file: str = ""
    commit: str = ""
    date: str = ""
    reason: str = ""  # of what is wrong

    @property
    def mark(self) -> str:
        mark = MARKS[self.state]
        return mark if self.share is None else f"{mark} {words.share(self.share)}"


@dataclass(frozen=True)
class Ledger:
    cells: tuple[Cell, ...]
    files: Mapping[str, Result]  # that it is drawn from, the oldest first
    passed_over: tuple[str, ...] = ()  # a sentence for each other file

    def where(self, *states: State) -> list[Cell]:
        return [cell for cell in self.cells if cell.state in states]


# -- the kernels ----------------------------------------------------------------------------------


def kernels() -> dict[str, str]:
    """Every public function that runs a kernel, with the kind of its family."""
    found: dict[str, str] = {}
    for base in (*FUNCTIONS, "fused"):
        record = FUNCTIONS.get(base)
        for name in gpuact.__all__:
            if f"{name}_".startswith(f"{base}_"):
                sums = record is not None and record.sums and name.endswith("_backward")
                found[name] = "fused" if record is None or sums else record.kind
    return found | dict.fromkeys(("activation_with_stats", "activation_stats"), "stats")


# -- drawing it -----------------------------------------------------------------------------------


def _proofs(files: Mapping[str, Result]) -> dict[tuple[str, str, str], list[Proof]]:
    """The rows of each cell, the oldest first."""
    found: dict[tuple[str, str, str], list[Proof]] = {}
    for file, result in sorted(files.items(), key=lambda item: item[1].time):
        for row in result.rows:
            key = row.function, row.backend, row.dtype
            found.setdefault(key, []).append(Proof(file, result, row))
    return found


def _commit(result: Result) -> str:
    short = (result.commit or "unknown")[:9]
    return f"{short} and changes" if result.changed_since_commit else short


def _date(result: Result) -> str:
    return result.time[:10]


def _cell(
    function: str,
    backend: str,
    dtype: str,
    family: str,
    proofs: Sequence[Proof],
    hashes: Mapping[str, str],
) -> Cell:
    current = [proof for proof in proofs if proof.current(family, hashes)]
    # A fault stands until the same case was timed after it.
    newest = {p.row.case: p for p in current if p.row.status in ("timed", *FAULTS)}
    faults = [p.row for p in newest.values() if p.row.status in FAULTS]
    timed = [p for p in current if p.row.status == "timed"]
    old = [p for p in proofs if p.row.status == "timed"]
    state: State = "wrong" if faults else "proved" if timed else "stale" if old else "missing"
    about = (function, backend, dtype, family, state)
    reason = "; ".join(f"{row.case}: {row.status}: {row.reason}" for row in faults)
    if not old:
        return Cell(*about, reason=reason)
    last = (timed or old)[-1]
    largest = None
    if state == "proved":  # of equals the newest
        largest = max((p.row for p in reversed(timed)), key=lambda row: row.bytes)
    # a share of 0 is one that nobody measured
    share = (largest.share_of_copy or None) if largest else None
    return Cell(*about, share, last.file, _commit(last.result), _date(last.result), reason)


def ledger(
    files: Mapping[str, Result],
    hashes: Mapping[str, str] | None = None,
    passed_over: Iterable[str] = (),
) -> Ledger:
    """files: results of GPUs by the names of their files; hashes: of the sources as they are."""
    hashes = kernel_hashes() if hashes is None else hashes
    proofs = _proofs(files)
    cells = []
    for function, kind in kernels().items():
        for backend in BACKENDS:
            others = sorted({d for f, b, d in proofs if (f, b) == (function, backend)})
            for dtype in (*DTYPES, *(d for d in others if d not in DTYPES)):
                found = proofs.get((function, backend, dtype), ())
                cells.append(_cell(function, backend, dtype, f"{backend} {kind}", found, hashes))
    return Ledger(tuple(cells), files, tuple(passed_over))


def draw(folder: Path = RESULTS, hashes: Mapping[str, str] | None = None) -> Ledger:
    """Of the results that lie there. Whatever else does is passed over, in a sentence."""
    files: dict[str, Result] = {}
    passed_over = []
    for path in files_of(folder):
        try:
            result = read(path)
        except Unreadable as error:
            passed_over.append(f"{error}.")
            continue
        if result.sample:
            passed_over.append(f"{path.name}: a sample, which proves nothing.")
        elif not result.on_gpu:
            passed_over.append(f"{path.name}: of {result.device}, which is no GPU.")
        else:
            files[path.name] = result
    files = dict(sorted(files.items(), key=lambda item: item[1].time))
    return ledger(files, hashes, passed_over)


def failures(found: Ledger) -> list[Cell]:
    """What --check fails of: all that is not proved."""
    return found.where("stale", "wrong", "missing")


# -- telling --------------------------------------------------------------------------------------


def _table(found: Ledger) -> Table:
    """A function a line, a backend and dtype a column."""
    columns = [(cell.backend, cell.dtype) for cell in found.cells]
    order = (*DTYPES, *sorted({dtype for _, dtype in columns} - {*DTYPES}))
    columns = [(b, d) for b in BACKENDS for d in order if (b, d) in columns]
    table = Table.grid(padding=(0, 1))
    table.add_column(width=24, no_wrap=True)
    for _ in columns:
        table.add_column(width=8, justify="right", no_wrap=True)
    table.add_row("", *(f"{backend}\n{dtype}" for backend, dtype in columns), style="bold")
    cells = {(cell.function, cell.backend, cell.dtype): cell for cell in found.cells}
    for function in dict.fromkeys(cell.function for cell in found.cells):
        line = [cells.get((function, *column)) for column in columns]
        marks = (Text(c.mark, STYLES[c.state]) if c else Text("") for c in line)
        table.add_row(function, *marks)
    return table


def print_ledger(out: Console, found: Ledger) -> None:
    out.print(_table(found))
    out.print()
    for state, meaning in LEGEND.items():
        count = len(found.where(state))
        out.print(f"{MARKS[state]:>5}  {state}, {count} of {len(found.cells)}: {meaning}")
    for cell in found.where("wrong"):
        out.print(Text(f"{cell.function} {cell.backend} {cell.dtype}: {cell.reason}", "red"))
    out.print()
    if not found.files:
        out.print("No result of a GPU was read.")
    for file, result in found.files.items():
        count = sum(cell.file == file for cell in found.cells)
        about = f"{result.device}, {_date(result)}, commit {_commit(result)}"
        out.print(f"{file}: {about}: the newest timing of {count}")
    for sentence in found.passed_over:
        out.print(Text(sentence, "yellow"))
