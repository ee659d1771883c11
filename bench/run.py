"""One run from beginning to end: measure, show, write."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import compare, console, in_torch, result
from .goals import Verdict, verdicts
from .result import Judged, Result
from .suites import Asked, Job, Suite, settings
from .worker import Found, Worker, missing

INTERRUPTED = 130  # the shell's code for Ctrl-C
EVERY = 2.0  # seconds between two readings of clocks and temperatures


@dataclass
class Log:
    """What was measured so far; kept in a file as well, if it has one."""

    result: Result
    path: Path | None
    start: float

    @property
    def seconds(self) -> float:
        return perf_counter() - self.start

    def note(self, when: str) -> None:
        """Clocks and temperatures."""
        now = result.conditions(when, self.seconds) if self.result.on_gpu else []
        self.result = replace(self.result, conditions=[*self.result.conditions, *now])

    def overhear(self, name: str) -> None:
        """The same while the GPU is at work, now and then."""
        told = self.result.conditions
        if self.result.on_gpu and (not told or self.seconds - told[-1].seconds > EVERY):
            self.note(f"during {name}")

    def add(self, found: Found) -> None:
        more = {table: [*getattr(self.result, table), *rows] for table, rows in found.items()}
        self.change(**more)

    def change(self, **fields: Any) -> None:
        self.result = replace(self.result, **fields, seconds=round(self.seconds, 3))
        if self.path:
            result.write(self.result, self.path)


def progress(out: Console) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=out,
        transient=True,
        auto_refresh=False,  # a thread that draws would be timed along with the cases
        disable=not out.is_terminal,  # into a file go the tables alone
    )


def _show(out: Console, job: Job, suite: Suite, found: Found) -> None:
    for rate in found.get("copies", ()):
        console.print_copy(out, rate)
    rows, costs = found.get("rows", ()), found.get("host_costs", ())
    if rows:
        console.print_case(out, rows)
    if job.kind == "cost":
        console.print_costs(out, costs)
    elif costs:
        console.print_overheads(out, costs, [provider.name for provider in suite.in_torch_by])
    console.print_held(out, found.get("held_for_backward", ()))


def _headings(out: Console, suite: Suite, on_gpu: bool) -> dict[str, Callable[[], None]]:
    """What stands above the first job of a kind."""

    def inside() -> None:
        place = suite.in_torch_by[0].place if suite.in_torch_by else "torch on the CPU"
        out.print(in_torch.WHAT[place])
        out.print(f"torch.compile: fullgraph, static shapes, mode {in_torch.MODES[place]}")
        out.print(console.overhead_heading(provider.name for provider in suite.in_torch_by))

    return {"case": lambda: out.print(console.heading(on_gpu)), "torch": inside}


def measure(out: Console, log: Log, worker: Worker, minutes: float) -> None:
    """All jobs of the suite, or as many as there is time for."""
    suite = worker.suite
    headings = _headings(out, suite, log.result.on_gpu)
    jobs = list(suite.jobs())
    with progress(out) as bar:
        task = bar.add_task("", total=len(jobs))
        for job in jobs:
            bar.update(task, description=f"{job.kind} {job.name}", refresh=True)
            if minutes and log.seconds > 60 * minutes and job.kind != "copy":
                reason = f"the {minutes:g} minutes were over"
                found = missing(suite, job, "", "not run", reason)
                log.result = replace(log.result, stopped=reason)
            else:
                found = worker.do(job)
            headings.pop(job.kind, lambda: None)()
            _show(out, job, suite, found)
            log.add(found)
            bar.update(task, advance=1, refresh=True)


def _judged(found: Iterable[Verdict]) -> list[Judged]:
    return [
        Judged(
            *(v.goal.what, v.ours, v.rival, v.goal.figure, v.goal.limit),
            value=v.value,
            held=v.held,
        )
        for v in found
    ]


def _failures(found: Result, goals: Iterable[Verdict]) -> list[str]:
    """What --check does not let pass; a rival may be as wrong as it likes."""
    rows = [r for r in (*found.rows, *found.host_costs) if r.status in ("wrong", "failed", "lost")]
    rows += [r for r in found.held_for_backward if r.reason]
    ours = (r for r in rows if r.provider.startswith("gpuact") or not r.case)
    return [
        *(f"{r.case}: {r.provider}: {r.reason}" for r in ours),
        *(console.verdict(g) for g in goals if not g.held),
        *(f"digits with {t.activation}: {t.accuracy:.1%}" for t in found.digits if not t.enough),
    ]


def _show_goals(out: Console, goals: list[Verdict]) -> None:
    """Where each case has goals of its own, below it; where one is set for many, how many hold."""
    own = [g for g in goals if g.goal.ours != ("gpuact on NumPy",) and len(g.goal.ours) > 1]
    plain = [g for g in goals if g.goal.ours == ("gpuact on NumPy",)]
    many = [g for g in goals if g not in own and g not in plain]
    if plain:
        out.print(console.verdict_table(plain))
    if many:
        console.print_goals(out, many)
    if own:
        console.print_verdicts(out, own)


def _report(out: Console, log: Log) -> None:
    """The page beside the JSON, where what draws it is installed."""
    if log.path is None:
        return
    out.print(f"written: {log.path}", soft_wrap=True)
    try:
        from . import page
    except ImportError as error:
        out.print(f'no page: {error}: pip install "gpuact[bench]" brings it', soft_wrap=True)
        return
    for path in page.write([log.result], log.path.parent, log.path.stem):
        out.print(f"written: {path}", soft_wrap=True)


def run(
    asked: Asked,
    folder: Path | None = None,
    minutes: float = 0,
    check: bool = False,
    against: Result | None = None,
) -> int:
    """folder: where the result goes, if anywhere; against: a result to compare it with."""
    out = console.console()
    begun = result.begun(settings(asked, minutes=minutes))
    path = result.path_of(begun, folder) if folder else None
    log = Log(begun, path, perf_counter())
    console.print_machine(out, begun)
    if not asked.on_gpu and asked.suite != "digits":
        out.print("No GPU answers here: the cases have a CPU's sizes.")
    log.note("start")
    interrupted = False
    with Worker(asked, heard=log.overhear) as worker:
        try:
            measure(out, log, worker, minutes)
        except KeyboardInterrupt:
            interrupted = True
            out.print("interrupted: what was measured until here is kept")
        restarts = max(0, worker.restarts)
    log.note("end")
    goals = verdicts((*log.result.rows, *log.result.host_costs), worker.suite.goals)
    stopped = "interrupted" if interrupted else log.result.stopped
    judged = _judged(goals)
    log.change(stopped=stopped, finished=not stopped, goals=judged, restarts=restarts)
    _show_goals(out, goals)
    if log.result.digits:
        out.print(console.digits_table(log.result.digits))
    if against:
        compare.print_comparison(out, compare.compare(against, log.result))
    _report(out, log)
    if interrupted:
        return INTERRUPTED
    failures = _failures(log.result, goals) if check else []
    for failure in failures:
        out.print(f"check: {failure}")
    return 1 if failures else 0
