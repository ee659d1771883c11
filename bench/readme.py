"""What README.md has of results: performance here, claims in claims/readme.py; of those that are
committed.

`python -m bench readme` writes it anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import words
from .claims import readme as claims
from .claims import record
from .figures import ours
from .result import RESULTS, ROOT, Result, committed, kernel_hashes, path_of
from .suite import Row
from .tables import COPY
from .words import escaped

README = ROOT / "README.md"
BEGIN, END = "<!-- performance -->\n", "<!-- end -->"

LAUNCHES = " *"
LAUNCHED = "\\* with its launches: no CUDA graph can hold it"
NO_GPU = "No run on a GPU has been committed yet, so there are no figures of one here."
HEADINGS = (
    *("case", "bytes", "copy, GB/s", "gpuact", "of the copy"),
    *("quickest rival", "its time", "times as fast"),
)


def _cells(case: str, rows: Mapping[str, Row]) -> list[str] | None:
    """One line, the last number the rival's time over ours; None where gpuact was not timed."""
    timed = [row for who, row in rows.items() if row.timing and who != COPY]
    mine = [row for row in timed if ours(row.provider)]
    if not mine:
        return None
    best = min(mine, key=_seconds)
    rival = min((row for row in timed if row not in mine), key=_seconds, default=None)
    copy = rows.get(COPY)
    cells = [
        escaped(case),
        words.size(best.bytes),
        words.gigabytes(copy.bytes_per_second) if copy else "–",
        f"{words.duration(_seconds(best))} ({best.provider.removeprefix('gpuact on ')})",
        words.share(best.share_of_copy),
    ]
    if rival is None:
        return [*cells, "–", "–", "–"]
    ratio = _seconds(rival) / _seconds(best)
    mark = LAUNCHES if (best.method, rival.method) == ("graph", "events") else ""
    time = words.duration(_seconds(rival)) + mark
    return [*cells, escaped(rival.provider), time, f"{ratio:.2f}"]


def _seconds(row: Row) -> float:
    return row.timing.median if row.timing else math.inf


def _about(result: Result, kernels: Mapping[str, str]) -> str:
    """Where, with what, of which commit, when."""
    commit = f"commit {result.commit[:7]}" if result.commit else "no commit"
    changes = " with changes" if result.changed_since_commit else ""
    # on a CPU none of them ran
    changed = result.on_gpu and dict(result.kernels) != dict(kernels)
    earlier = ", of earlier kernels" if changed else ""
    drivers = {gpu["driver"] for gpu in result.machine.get("gpus", ())}
    versions = [f"driver {driver}" for driver in sorted(drivers)]
    versions += [f"{name} {number}" for name, number in result.versions.items() if name != "gpuact"]
    where = f"{result.device}, {result.time[:10]}, {commit}{changes}{earlier}"
    return escaped(f"{where}; {', '.join(versions)}:")


def _part(result: Result, kernels: Mapping[str, str]) -> str:
    cases: dict[str, dict[str, Row]] = {}
    for row in result.rows:
        if row.headline:
            cases.setdefault(row.case, {})[row.provider] = row
    found = [cells for case, rows in cases.items() if (cells := _cells(case, rows))]
    lines = [HEADINGS, ("---", *("---:" for _ in HEADINGS[1:])), *found]
    table = [_about(result, kernels), "", *(f"| {' | '.join(c)} |" for c in lines)]
    if any(LAUNCHES in cell for cells in found for cell in cells):
        table += ["", LAUNCHED]
    picture = path_of(result, RESULTS).with_suffix("")
    picture = picture.with_name(f"{picture.name}-headline.png")
    if picture.exists():
        words = "Share of a copy's rate, by case and provider"
        table += ["", f"![{words}]({picture.relative_to(ROOT).as_posix()})"]
    return "\n".join(table)


def section(results: Sequence[Result]) -> str:
    """Markdown: the newest result of a GPU, and of a CPU, that has the whole headline."""
    told = [
        result
        for result in sorted(results, key=lambda result: result.time)
        if not result.sample and _whole(result)
    ]
    newest = {result.on_gpu: result for result in told}
    kernels = kernel_hashes()
    parts = [_part(newest[True], kernels) if True in newest else NO_GPU]
    parts += [_part(newest[False], kernels)] if False in newest else []
    return "\n\n".join(parts) + "\n"


def _whole(result: Result) -> bool:
    """Whether it has its headline, though it may have ended early after that."""
    headline = [row for row in result.rows if row.headline]
    ended = result.finished or "minutes" in result.stopped
    return (
        ended and bool(headline) and all(row.status != "not run" for row in headline if row.backend)
    )


def _between(text: str, begin: str, section: str, readme: Path) -> str:
    before, mark, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{readme}: no {begin.strip()} … {END} to write between")
    return before + begin + section + end + after


def update(readme: Path) -> bool:
    """Write it between its marks; whether anything changed."""
    text = readme.read_text(encoding="utf-8")
    new = _between(text, BEGIN, section(committed()), readme)
    new = _between(new, claims.BEGIN, claims.section(record.committed()), readme)
    if new != text:
        readme.write_text(new, encoding="utf-8")
    return new != text
