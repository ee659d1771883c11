"""A run from beginning to end: measure, judge, show, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

import gpuact
from bench import result
from bench.console import console
from bench.run import INTERRUPTED, progress
from bench.suites import gpu_answers
from bench.words import duration

from . import record
from .course import chosen
from .record import Record, rounded
from .table import (
    CONDITION,
    FAILS,
    HOLDS,
    NOT_MEASURED,
    SEEDS,
    Claim,
    Effort,
    Finding,
    Raw,
    collected,
)

STYLES = {HOLDS: "green", CONDITION: "yellow", FAILS: "red", NOT_MEASURED: "dim"}


def one_seed(claim: Claim, seed: int, effort: Effort) -> Raw:
    """As it is kept, so that what is judged now is what a file says later."""
    with gpuact.using("numpy") if claim.on_numpy else nullcontext():
        found: Raw = rounded(claim.measure(seed, effort))
    return found


def _measure(
    out: Console, claims: Sequence[Claim], seeds: int, effort: Effort, kept: Record
) -> Record:
    """Claim by claim; what Ctrl-C cuts off in the middle is not kept."""
    start = perf_counter()
    figures: dict[str, Mapping[str, Sequence[object]]] = {}
    findings: list[Finding] = []
    stopped = ""
    with progress(out) as bar:
        task = bar.add_task("", total=sum(seeds if claim.random else 1 for claim in claims))
        try:
            for claim in claims:
                begun, raws = perf_counter(), []
                for seed in range(seeds if claim.random else 1):
                    words = f"{claim.number} {claim.title}, seed {seed}"
                    bar.update(task, description=words, refresh=True)
                    raws.append(one_seed(claim, seed, effort))
                    bar.update(task, advance=1, refresh=True)
                figures[claim.number] = collected(raws)
                findings += claim.judge(figures[claim.number])
                took = duration(perf_counter() - begun)
                out.print(f"{claim.number} {claim.title}: {took}")
        except KeyboardInterrupt:
            stopped = "interrupted"
    seconds = round(perf_counter() - start, 3)
    return replace(
        kept,
        figures=figures,
        findings=findings,
        seconds=seconds,
        stopped=stopped,
        finished=not stopped,
    )


def table(findings: Sequence[Finding]) -> Table:
    found = Table(
        "claim",
        "measured",
        "verdict",
        title="What courses say",
        title_style="bold",
        show_lines=True,
    )
    for finding in findings:
        verdict = Text(finding.told, STYLES[finding.verdict])
        measured = Text("\n").join([Text(finding.how, "dim"), *map(Text, finding.lines)])
        found.add_row(Text(f"{finding.number} {finding.says}"), measured, verdict)
    found.columns[0].ratio, found.columns[1].ratio, found.columns[2].ratio = 3, 6, 2
    found.expand = True
    return found


def _write(out: Console, found: Record, folder: Path) -> None:
    path = record.path_of(found, folder)
    result.put(record.text(found), path)
    out.print(f"written: {path}", soft_wrap=True)
    try:
        from . import page
    except ImportError as error:
        out.print(f'no page: {error}: pip install "gpuact[bench]" brings it', soft_wrap=True)
        return
    for written in page.write(found, folder, path.stem):
        out.print(f"written: {written}", soft_wrap=True)


def run(
    only: str = "", seeds: int = SEEDS, folder: Path | None = None, effort: Effort | None = None
) -> int:
    """folder: where the result goes, if anywhere."""
    out, effort = console(), effort or Effort()
    claims = chosen(only)
    begun = record.begun(seeds, only, gpu_answers(), effort)
    out.print(f"{begun.device}: {len(claims)} claims, {seeds} seeds")
    found = _measure(out, claims, seeds, effort, begun)
    out.print(table(found.findings))
    if seeds < SEEDS:
        out.print(
            f"Of {seeds} seeds: a verdict is worth telling of {SEEDS}, and README takes no fewer."
        )
    missing = [claim.number for claim in claims if claim.number not in found.figures]
    if missing:
        out.print(f"interrupted: claims {', '.join(missing)} are missing, the others are kept")
    if folder and found.figures:
        _write(out, found, folder)
    return INTERRUPTED if found.stopped else 0
