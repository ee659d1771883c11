"""One run from beginning to end: measure, show, write."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import gpuact

from . import in_torch, report
from .cases import (
    CPU,
    ELEMENTWISE_CPU,
    ELEMENTWISE_GOALS,
    ELEMENTWISE_GPU,
    GOALS,
    GPU,
    HELD,
    HOST,
    ROWS_CPU,
    ROWS_GPU,
    Case,
    Goal,
    rows_goals,
)
from .digits import EPOCHS, HIDDEN, Trained, difference_from_s_minus_y, train_all
from .held import Held, held
from .host import Cost, costs
from .providers import (
    CALLERS_ON_CPU,
    CALLERS_ON_GPU,
    ELEMENTWISE_ON_GPU,
    HOLDERS_ON_CPU,
    HOLDERS_ON_GPU,
    IN_TORCH_ON_CPU,
    IN_TORCH_ON_GPU,
    ON_CPU,
    ON_GPU,
    ROWS_ON_GPU,
    Caller,
    Provider,
)
from .suite import Row, Verdict, verdicts
from .suite import run as run_cases


@dataclass(frozen=True)
class Suite:
    """What is run of a suite, and by whom."""

    cases: Sequence[Case]
    providers: Sequence[Provider]
    goals: Sequence[Goal] = ()
    callers: Sequence[Caller] = ()
    holders: Sequence[Provider] = ()
    held: Sequence[Case] = ()
    ways: Sequence[str] = ()  # of calling, by the names of their rows
    in_torch: Sequence[in_torch.Row] = ()  # by `providers`

    def only(self, text: str) -> Suite:
        """What has this in its name."""
        return replace(
            self,
            cases=[case for case in self.cases if text in case.name],
            goals=[goal for goal in self.goals if text in goal.case],
            held=[case for case in self.held if text in case.name],
            ways=[way for way in self.ways if text in way],
            in_torch=[row for row in self.in_torch if text in row.name],
        )

    @property
    def empty(self) -> bool:
        return not (self.cases or self.held or self.ways or self.in_torch)


def _suite(name: str) -> Suite:
    """`elementwise` and `rows` are the GPU's where one answers, else the CPU's, without goals."""
    if name == "cpu":
        return Suite(CPU, ON_CPU, GOALS)
    if name == "gpu":
        return Suite(GPU, ON_GPU)
    if name == "digits":
        return Suite((), ())
    if name == "torch":
        found = IN_TORCH_ON_CPU if IN_TORCH_ON_GPU[0].why_not() else IN_TORCH_ON_GPU
        return Suite((), found, in_torch=in_torch.ROWS)
    if name == "rows" and _gpu_answers():
        return Suite(ROWS_GPU, ROWS_ON_GPU, rows_goals(report.gpu()))
    if name == "rows":
        return Suite(ROWS_CPU, ON_CPU)
    beside = {"held": HELD, "ways": tuple(HOST.values())}
    if not _gpu_answers():
        return Suite(ELEMENTWISE_CPU, ON_CPU, (), CALLERS_ON_CPU, HOLDERS_ON_CPU, **beside)
    who = ELEMENTWISE_ON_GPU, ELEMENTWISE_GOALS, CALLERS_ON_GPU, HOLDERS_ON_GPU
    return Suite(ELEMENTWISE_GPU, *who, **beside)


def _bar(out: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(
        *columns,
        TimeRemainingColumn(),
        console=out,
        transient=True,
        auto_refresh=False,  # a thread that draws would be timed along with the cases
        disable=not out.is_terminal,  # into a file go the tables alone
    )


def _gpu_answers() -> bool:
    found = gpuact.backends()
    return found["cupy"].available or found["triton"].available


def throughput(out: Console, suite: Suite, seconds: float) -> list[Row]:
    out.print(report.heading())
    rows: list[Row] = []
    with _bar(out) as bar:
        total = len(suite.cases) + sum(case.graphed for case in suite.cases)
        task = bar.add_task("cases", total=total)
        for found in run_cases(suite.cases, suite.providers, seconds):
            report.print_case(out, found)
            rows += found
            bar.update(task, advance=1, refresh=True)
    return rows


def host_costs(out: Console, suite: Suite, seconds: float) -> list[Cost]:
    found = []
    for rows in costs(suite.callers, suite.ways, seconds):
        report.print_costs(out, rows)
        found += rows
    return found


def overheads(out: Console, suite: Suite, seconds: float) -> list[Cost]:
    names = [provider.name for provider in suite.providers]
    place = suite.providers[0].place
    out.print(in_torch.WHAT[place])
    out.print(f"torch.compile: fullgraph, static shapes, mode {in_torch.MODES[place]}")
    out.print(report.overhead_heading(names))
    found = []
    for rows in in_torch.costs(suite.in_torch, suite.providers, seconds):
        report.print_overheads(out, rows, names)
        found += rows
    return found


def bytes_held(out: Console, suite: Suite) -> list[Held]:
    found = []
    for rows in held(suite.held, suite.holders):
        report.print_held(out, rows)
        found += rows
    return found


def digits(out: Console, epochs: int) -> list[Trained]:
    trained = []
    with _bar(out) as bar:
        for row in bar.track(train_all(epochs), total=len(HIDDEN), description="digits"):
            trained.append(row)
    out.print(report.digits_table(trained))
    difference = difference_from_s_minus_y()
    out.print(f"dZ of cross_entropy_with_grad is S − Y: the largest difference is {difference:.1e}")
    return trained


def _failures(
    rows: Iterable[Row | Cost], goals: Iterable[Verdict], trained: Iterable[Trained]
) -> list[str]:
    """What --check does not let pass; a rival may be as wrong as it likes."""
    bad = (r for r in rows if r.status in ("wrong", "failed") and r.provider.startswith("gpuact"))
    return [
        *(f"{r.case}: {r.provider}: {r.reason}" for r in bad),
        *(report.verdict(g) for g in goals if not g.held),
        *(f"digits with {t.activation}: {t.accuracy:.1%}" for t in trained if not t.enough),
    ]


def run(args: argparse.Namespace) -> int:
    out = report.console()
    name = args.command or args.suite
    if name == "here":
        name = "gpu" if _gpu_answers() else "cpu"
    suite = _suite(name)
    if args.only:
        suite = suite.only(args.only)
        if suite.empty:
            message = f"bench: --only: {args.only!r} came, no case of {name} has it in its name"
            print(message, file=sys.stderr)
            return 2
    report.print_machine(out)
    if name in ("elementwise", "rows") and not _gpu_answers():
        out.print(
            "No GPU answers here: the cases have a CPU's sizes, and the goals are not measured."
        )
    rows = throughput(out, suite, args.seconds) if suite.cases else []
    paid = host_costs(out, suite, args.seconds)
    paid += overheads(out, suite, args.seconds) if suite.in_torch else []
    kept = bytes_held(out, suite)
    goals = verdicts([*rows, *paid], suite.goals)
    if goals and name == "rows":
        report.print_verdicts(out, goals)
    elif goals and name == "cpu":
        out.print(report.verdict_table(goals))
    elif goals:
        report.print_goals(out, goals)
    trained: list[Trained] = []
    epochs = args.epochs or EPOCHS
    if name == "digits" or args.suite == "here":
        trained = digits(out, epochs)
    if args.out:
        settings = {
            "suite": name,
            "seconds_per_case": args.seconds,
            "only": args.only,
            "epochs": epochs,
        }
        result = report.record(settings, rows, paid, kept, goals, trained)
        out.print(f"written: {report.write(result, args.out)}")
    failures = _failures([*rows, *paid], goals, trained) if args.check else []
    for failure in failures:
        out.print(f"check: {failure}")
    return 1 if failures else 0
