"""One run from beginning to end: measure, show, write."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import gpuact

from . import report
from .cases import CPU, GPU, Case
from .digits import EPOCHS, HIDDEN, Trained, difference_from_s_minus_y, train_all
from .providers import ON_CPU, ON_GPU, Provider
from .suite import Row, Verdict, verdicts
from .suite import run as run_cases


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


def throughput(
    out: Console, cases: Sequence[Case], providers: Sequence[Provider], seconds: float
) -> list[Row]:
    out.print(report.heading())
    rows: list[Row] = []
    with _bar(out) as bar:
        task = bar.add_task("cases", total=len(cases))
        for found in run_cases(cases, providers, seconds):
            report.print_case(out, found)
            rows += found
            bar.update(task, advance=1, refresh=True)
    return rows


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
    rows: Iterable[Row], goals: Iterable[Verdict], trained: Iterable[Trained]
) -> list[str]:
    """What --check does not let pass; a rival may be as wrong as it likes."""
    bad = (r for r in rows if r.status in ("wrong", "failed") and r.provider.startswith("gpuact"))
    return [
        *(f"{r.case}: {r.provider}: {r.reason}" for r in bad),
        *(f"{g.goal.case.name} beside {g.goal.rival}: missed" for g in goals if not g.held),
        *(f"digits with {t.activation}: {t.accuracy:.1%}" for t in trained if not t.enough),
    ]


def run(args: argparse.Namespace) -> int:
    out = report.console()
    suite = args.command or args.suite
    if suite == "here":
        suite = "gpu" if _gpu_answers() else "cpu"
    report.print_machine(out)
    rows: list[Row] = []
    goals: list[Verdict] = []
    trained: list[Trained] = []
    if suite == "gpu":
        rows = throughput(out, GPU, ON_GPU, args.seconds)
    if suite == "cpu":
        rows = throughput(out, CPU, ON_CPU, args.seconds)
        goals = verdicts(rows)
        out.print(report.verdict_table(goals))
    epochs = args.epochs or EPOCHS
    if suite == "digits" or args.suite == "here":
        trained = digits(out, epochs)
    if args.out:
        settings = {"suite": suite, "seconds_per_case": args.seconds, "epochs": epochs}
        result = report.record(settings, rows, goals, trained)
        out.print(f"written: {report.write(result, args.out)}")
    failures = _failures(rows, goals, trained) if args.check else []
    for failure in failures:
        out.print(f"check: {failure}")
    return 1 if failures else 0
