"""Many calls, in this process or in others that are watched, and the record of them."""

from __future__ import annotations

import faulthandler
import importlib.util
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import gpuact

from .calls import Call
from .fuzzer import Fuzz
from .judgement import FINDINGS, Outcome

SPAN = 10**9  # seeds of calls: that of the run, times this, and the number of the call
PATIENCE = 5.0  # seconds for a call
BATCH = 250
Key = tuple[str, str, str, str]  # library, function, mode, outcome


@dataclass
class Report:
    calls: int = 0
    tally: Counter[Key] = field(default_factory=Counter)
    findings: list[tuple[int, Outcome]] = field(default_factory=list)
    messages: set[str] = field(default_factory=set)
    seconds: float = 0.0

    def add(self, seed: int, outcome: Outcome) -> None:
        self.calls += 1
        self.tally[outcome.library, outcome.function, outcome.mode, outcome.what] += 1
        if outcome.finding:
            self.findings.append((seed, outcome))

    def join(self, other: Report) -> None:
        self.calls += other.calls
        self.tally += other.tally
        self.findings += other.findings
        self.messages |= other.messages

    def count(self, what: str) -> int:
        return sum(n for (*_, outcome), n in self.tally.items() if outcome == what)

    def line(self) -> str:
        found = ", ".join(f"{n} {what}" for what in FINDINGS if (n := self.count(what)))
        rate = self.calls / max(self.seconds, 1e-9)
        return f"{self.calls} calls, {rate:.0f}/s, findings: {found or 'none'}"


def here(calls: int, seed: int = 0, fuzz: Fuzz | None = None, first: int = 0) -> Report:
    """So many calls in this process."""
    fuzz, report = fuzz or Fuzz(), Report()
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(first, first + calls):
            report.add(seed * SPAN + k, fuzz.one(seed * SPAN + k))
    report.messages, report.seconds = fuzz.messages, time.perf_counter() - start
    return report


def work(
    numbers: range,
    seed: int,
    skipped: set[int],
    plan: tuple[Any, Any],
    now: Any,
    slot: int,
    pipe: Any,
) -> None:
    """What a process does: tell a batch of calls after another, and the number of the present one.

    `now` is written before each call: were it to end the process, it would be known by that.
    """
    with open(os.devnull, "w") as devnull, open(_trace(os.getpid()), "w") as dump:
        faulthandler.register(signal.SIGUSR1, dump)
        sys.stdout = devnull
        fuzz = Fuzz(*plan)
        warnings.simplefilter("error")
        report = Report()
        for done, k in enumerate(numbers, 1):
            if k not in skipped:
                now[slot] = k
                report.add(seed * SPAN + k, fuzz.one(seed * SPAN + k))
            if done % BATCH == 0 or done == len(numbers):
                now[slot] = -1
                report.messages = fuzz.messages
                pipe.send((done, report))
                report = Report()
        pipe.close()
    os.unlink(_trace(os.getpid()))


def _trace(pid: int) -> str:
    return os.path.join(tempfile.gettempdir(), f"gpuact-fuzz-{pid}.txt")


class Worker:
    """A process, and those that take its place when a call ends it."""

    def __init__(
        self, numbers: range, seed: int, plan: tuple[Any, Any], now: Any, slot: int
    ) -> None:
        self.numbers, self.seed, self.plan, self.now, self.slot = numbers, seed, plan, now, slot
        self.skipped: set[int] = set()
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe(duplex=False)
        self.now[self.slot] = -1
        args = (self.numbers, self.seed, self.skipped, self.plan, self.now, self.slot, theirs)
        self.process = context.Process(target=work, args=args, daemon=True)
        self.process.start()
        theirs.close()
        self.told = 0  # how many of the numbers have been told of
        self.moved(-1)

    def moved(self, at: int) -> None:
        self.at, self.since, self.idle = at, time.monotonic(), 0
        self.used: float | None = None  # of the CPU, once it takes long

    def stuck(self) -> bool:
        """Whether the present call computes for too long, or waits for something; not for its turn,
        which may take as long on a busy machine."""
        if time.monotonic() - self.since < PATIENCE:
            return False
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # not on Linux
            return True
        used = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
        self.used = used if self.used is None else self.used
        self.idle = 0 if stat[0] == "R" else self.idle + 1
        return self.idle > 10 or used - self.used > PATIENCE

    @property
    def trace(self) -> Path:
        return Path(_trace(self.process.pid or 0))

    def poll(self, report: Report) -> bool:
        """Take what has been told; whether there is more to come."""
        try:
            while self.pipe.poll():
                self.told, part = self.pipe.recv()
                report.join(part)
        except (EOFError, ConnectionResetError):
            self.process.join()
            if self.told < len(self.numbers):
                self.lost(report, "crash", f"the process ended with {self.process.exitcode}")
                return True
            return False
        at = self.now[self.slot]
        if at != self.at or at < 0:
            self.moved(at)
        elif self.stuck():
            os.kill(self.process.pid or 0, signal.SIGUSR1)
            time.sleep(0.3)
            trace = self.trace.read_text()
            self.process.kill()
            self.process.join()
            self.lost(report, "hang", f"no end after {PATIENCE} s\n{trace}")
        return True

    def lost(self, report: Report, what: str, detail: str) -> None:
        """Record the call that ended the process, and go on with what it had not told yet."""
        at = self.now[self.slot]
        self.trace.unlink(missing_ok=True)
        if at < 0:
            raise RuntimeError(f"a worker failed outside any call: {detail}")
        fuzz = Fuzz(*self.plan)
        c = Call(self.seed * SPAN + at, fuzz.libraries)
        name = c.of(fuzz.of[c.library]).name
        report.add(c.seed, Outcome(name, c.library, c.mode, what, detail))
        self.skipped.add(at)
        self.numbers = self.numbers[self.told :]
        self.start()


def run(
    calls: int,
    seed: int = 0,
    workers: int = 2,
    libraries: Sequence[str] | None = None,
    planted: Mapping[str, Callable[..., Any]] | None = None,
    progress: Callable[[Report], None] = lambda report: None,
) -> Report:
    """So many calls in processes of their own."""
    # glibc then fills what it hands out: what nobody wrote shows
    os.environ.setdefault("MALLOC_PERTURB_", "165")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    now = context.RawArray("q", workers)
    start, report = time.monotonic(), Report()
    plan = (libraries, planted)
    crew = [
        Worker(range(k, calls, workers), seed, plan, now, k) for k in range(min(workers, calls))
    ]
    try:
        while crew:
            crew = [worker for worker in crew if worker.poll(report)]
            report.seconds = time.monotonic() - start
            progress(report)
            time.sleep(0.05)
    finally:
        for worker in crew:
            worker.process.kill()
    return report


def record(report: Report, seed: int, workers: int, libraries: Sequence[str]) -> dict[str, Any]:
    """What a run was and what came of it, as JSON."""
    by: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    for (library, function, mode, what), n in sorted(report.tally.items()):
        by.setdefault(library, {}).setdefault(function, {}).setdefault(mode, {})[what] = n
    versions = {"python": platform.python_version()}
    for name in ("ml_dtypes", "numpy", "torch"):
        if importlib.util.find_spec(name):
            versions[name] = metadata.version(name)
    versions["gpuact"] = gpuact.__version__
    return {
        "calls": report.calls,
        "findings": {what: report.count(what) for what in FINDINGS},
        "outcomes": {what: report.count(what) for what in ("refused", "returned", "right")},
        "messages": len(report.messages),
        "by function": by,
        "libraries": list(libraries),
        "platform": platform.platform(),
        "seconds": round(report.seconds, 1),
        "seed": seed,
        "versions": versions,
        "workers": workers,
    }
