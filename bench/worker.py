"""The process that measures, and who watches over it.

A kernel that reads out of bounds, or a rival that falls over, takes its process along. So a suite
is measured in a process of its own, which says whose turn it is before every step; where it dies or
falls silent, that one is recorded as lost, another process takes over, and the same job is done
again without him.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from . import held, host, in_torch
from .digits import EPOCHS, digits, train
from .host import Cost
from .measure import PLACES, Host, Repeated, interleaved, rotated
from .providers import Provider, in_a_line
from .result import CopyRate
from .suite import Broken, Row, Status, row_of, run_case
from .suites import Asked, Job, Suite
from .tables import COPY

SILENCE = 300.0  # seconds without a word, after which a process is taken for hung
DEATHS = 3  # of a process at somebody's turn, after which he gets no other

# What a job gives: the rows of one or more of a result's tables.
Found = Mapping[str, Sequence[Any]]


class Session:
    """Does jobs, one after another, in this process."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.suite = asked, asked.plan()
        self.cases = {case.name: case for case in self.suite.cases}
        self.rows = {row.name: row for row in self.suite.in_torch}
        self.small = {case.name: case for case in self.suite.held}
        self.places: dict[str, Host] = {}
        self.why_not = cache(lambda provider: provider.why_not())
        self.data = cache(digits)

    @property
    def spoiled(self) -> bool:
        return any(place.spoiled for place in self.places.values())

    def _able(self, who: Iterable[Any], without: Sequence[str]) -> list[Any]:
        return [one for one in who if one.name not in without and self.why_not(one) is None]

    def _places(self, who: Iterable[Any]) -> dict[str, Host]:
        return {one.place: self._place(one.place) for one in who}

    def _place(self, name: str) -> Host:
        if name not in self.places:
            self.places[name] = PLACES[name]()
        return self.places[name]

    def do(self, job: Job, without: Sequence[str], at: Any) -> Found:
        suite, seconds = self.suite, self.asked.seconds
        match job.kind:
            case "who":
                return self._unavailable()
            case "copy":
                return {"copies": self._copy(job.name, without)}
            case "case":
                able = self._able(suite.providers, without)
                case = self.cases[job.name]
                if not able:
                    return {}
                budget = seconds if case.headline else seconds / 3
                return {"rows": run_case(case, able, self._places(able), budget, at)}
            case "cost":
                able = self._able(suite.callers, without)
                found = host.cost(job.name, able, self._places(able), seconds, at)
                return {"host_costs": found}
            case "torch":
                able = self._able(suite.in_torch_by, without)
                if not able:
                    return {}
                row = self.rows[job.name]
                return {"host_costs": in_torch.cost(row, able, self._places(able), seconds, at)}
            case "held":
                able = self._able(suite.holders, without)
                case = self.small[job.name]
                return {"held_for_backward": held.held(case, able, self._places(able), at)}
            case "digits":
                return {"digits": [train(job.name, self.data(), self.asked.epochs or EPOCHS)]}

    def _unavailable(self) -> Found:
        reasons = {one.name: self.why_not(one) for one in self.suite.providers}
        inside = {one.name: self.why_not(one) for one in self.suite.in_torch_by}
        return {
            "rows": [
                Row("", 0, "", who, "unavailable", why) for who, why in reasons.items() if why
            ],
            "host_costs": [Cost("", who, "unavailable", why) for who, why in inside.items() if why],
        }

    def _copy(self, when: str, without: Sequence[str]) -> list[CopyRate]:
        able = self._able(self.suite.providers, without)
        if not able:
            return []
        place = self._place(able[0].place)
        size = place.ends
        base = np.random.default_rng(0).integers(256, size=1 << 22, dtype=np.uint8)
        calls = [lambda x=x: place.copy(x) for (x,) in rotated(place, [Repeated(base, (size,))])]
        timing = interleaved({COPY: (place, calls)}, self.asked.seconds)[COPY]
        del calls
        place.release()
        return [CopyRate(when, able[0].place, 2 * size, timing)]


def _follow(parent: Any) -> None:
    """Nobody is left behind with a GPU's memory, be he in the middle of a call that never ends."""
    parent.join()
    os._exit(1)


def _serve(pipe: Connection, asked: Asked) -> None:
    """Until nobody is there to be told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the watcher
    parent = multiprocessing.parent_process()
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    session = Session(asked)
    try:
        pipe.send(("at", ""))
        while True:
            job, without = pipe.recv()
            found = session.do(job, without, lambda who: pipe.send(("at", who)))
            pipe.send(("last" if session.spoiled else "done", found))
    except (EOFError, BrokenPipeError):
        return
    except Broken as error:
        pipe.send(("broken", f"{error}; every later call of its process fails"))
    except Exception as error:
        pipe.send(("broken", in_a_line(error)))
    os._exit(1)  # a lost device may not let it end in peace


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process died of {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"


class Worker:
    """Has jobs done, whatever becomes of the process that does them."""

    def __init__(
        self,
        asked: Asked,
        silence: float = SILENCE,
        heard: Callable[[str], object] = lambda what: None,
    ) -> None:
        """heard: is told of each job's name whenever there is a sign of life."""
        self.asked, self.silence, self.heard = asked, silence, heard
        self.suite: Suite = asked.plan()
        self.restarts = -1
        self.deaths: Counter[str] = Counter()  # by whose turn it was
        self.process: Any = None
        self.pipe: Any = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.asked), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.poll(SILENCE)  # it is there, and has imported what it needs
        self.restarts += 1

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _try(self, job: Job, without: Sequence[str]) -> tuple[Found | None, str, str]:
        """What it gives; or None, whose turn it was, and what became of it."""
        if self.process is None:
            self._start()
        at = ""
        try:
            self.pipe.send((job, without))
            while self.pipe.poll(self.silence):
                word, what = self.pipe.recv()
                if word == "last":  # it measured this well, and is good for nothing more
                    self.stop()
                if word in ("done", "last"):
                    return what, "", ""
                if word == "broken":
                    self.stop()
                    return None, at, what
                at = what
                self.heard(job.name)
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self.stop()
            return None, at, _death(code)
        self.stop()
        return None, at, f"no word of it for {self.silence:g} s"

    def do(self, job: Job) -> Found:
        """With a row for everybody who was lost on the way."""
        without = [who for who, deaths in self.deaths.items() if deaths >= DEATHS and who != COPY]
        lost = [
            missing(self.suite, job, p.name, "not run", f"its process died {DEATHS} times before")
            for p in self.suite.providers
            if p.backend and p.name in without and job.kind == "case"
        ]
        while True:
            found, who, reason = self._try(job, without)
            if found is not None:
                return _together([found, *lost])
            self.deaths[who] += 1 if who else 0
            if self.deaths[who] == DEATHS and who != COPY:
                reason = f"{reason}, for the {DEATHS}rd time: it is not tried again"
            lost.append(missing(self.suite, job, who, "lost", reason))
            if who in ("", COPY) or who in without:  # nobody to go on without
                return _together(lost)
            without.append(who)


def missing(suite: Suite, job: Job, who: str, status: Status, reason: str) -> dict[str, list[Any]]:
    """The rows that stand where a job, or somebody's part in it, came to nothing.

    who: if it is nobody's or the copy's turn, everybody of ours lacks his row.
    """
    match job.kind:
        case "case":
            case = next(case for case in suite.cases if case.name == job.name)
            lacking = [p for p in suite.providers if p.name == who] or _ours(suite.providers)
            found = [row_of(case, p.name, status, reason, backend=p.backend) for p in lacking]
            return {"rows": found}
        case "cost":
            names = [who] if who else _ours_by_name(suite.callers)
            return {"host_costs": [Cost(job.name, name, status, reason) for name in names]}
        case "torch":
            names = [who] if who else _ours_by_name(suite.in_torch_by)
            return {"host_costs": [Cost(job.name, name, status, reason) for name in names]}
        case "held":
            names = [who] if who else _ours_by_name(suite.holders)
            rows = [held.Held(job.name, name, 0, reason=reason) for name in names]
            return {"held_for_backward": rows}
    return {"rows": [Row("", 0, "", f"{job.kind} {job.name}".strip(), status, reason)]}


def _ours(providers: Sequence[Provider]) -> list[Provider]:
    return [p for p in providers if p.backend] or list(providers)


def _ours_by_name(who: Iterable[Any]) -> list[str]:
    names = [one.name for one in who]
    return [name for name in names if name.startswith("gpuact")] or names


def _together(parts: Sequence[Found]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for part in parts:
        for table, rows in part.items():
            found.setdefault(table, []).extend(rows)
    return found
