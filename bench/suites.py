"""What is run under a name, and by whom: the same in the process that measures and its watcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import gpuact

from . import in_torch, tables
from .cases import Case
from .digits import HIDDEN
from .goals import (
    CALL_GOALS,
    GOALS,
    Goal,
    elementwise_goals,
    fused_goals,
    loss_goals,
    rows_goals,
    stats_goals,
)
from .providers import (
    CALLERS_ON_CPU,
    CALLERS_ON_GPU,
    HOLDERS_ON_CPU,
    HOLDERS_ON_GPU,
    IN_TORCH_ON_CPU,
    IN_TORCH_ON_GPU,
    ON_CPU,
    ON_GPU,
    Caller,
    Provider,
)
from .result import gpu
from .tables import HELD, HOST

Kind = Literal["who", "copy", "case", "cost", "torch", "held", "digits"]


@dataclass(frozen=True)
class Job:
    """What is measured in one go; `name` is a case's, a way's or a row's."""

    kind: Kind
    name: str = ""


@dataclass(frozen=True)
class Suite:
    """What is run of a suite, and by whom."""

    name: str
    cases: Sequence[Case] = ()
    providers: Sequence[Provider] = ()
    goals: Sequence[Goal] = ()
    callers: Sequence[Caller] = ()
    ways: Sequence[str] = ()  # of calling, by the names of their rows
    holders: Sequence[Provider] = ()
    held: Sequence[Case] = ()
    in_torch_by: Sequence[Provider] = ()
    in_torch: Sequence[in_torch.Row] = ()
    digits: Sequence[str] = ()  # hidden activations

    def only(self, wanted: Callable[[str], bool]) -> Suite:
        """What has a name that is wanted."""
        return replace(
            self,
            cases=[case for case in self.cases if wanted(case.name)],
            goals=[goal for goal in self.goals if wanted(goal.case)],
            held=[case for case in self.held if wanted(case.name)],
            ways=[way for way in self.ways if wanted(way)],
            in_torch=[row for row in self.in_torch if wanted(row.name)],
            digits=[name for name in self.digits if wanted(f"digits {name}")],
        )

    def by(self, wanted: Callable[[str], bool]) -> Suite:
        """Measured by those who are wanted."""
        return replace(
            self,
            providers=[p for p in self.providers if wanted(p.name)],
            callers=[p for p in self.callers if wanted(p.name)],
            holders=[p for p in self.holders if wanted(p.name)],
            in_torch_by=[p for p in self.in_torch_by if wanted(p.name)],
        )

    @property
    def everybody(self) -> list[str]:
        who = (*self.providers, *self.callers, *self.holders, *self.in_torch_by)
        return list(dict.fromkeys(one.name for one in who))

    @property
    def empty(self) -> bool:
        return not (self.cases or self.held or self.ways or self.in_torch or self.digits)

    def jobs(self) -> Iterator[Job]:
        """In the order of their weight: what ends a run early costs the least of it."""
        if self.cases or self.in_torch:
            yield Job("who")
        if self.cases:
            yield Job("copy", "start")
        yield from (Job("case", case.name) for case in self.cases if case.headline)
        yield from (Job("cost", way) for way in self.ways if self.callers)
        yield from (Job("case", case.name) for case in self.cases if not case.headline)
        yield from (Job("torch", row.name) for row in self.in_torch)
        yield from (Job("held", case.name) for case in self.held if self.holders)
        yield from (Job("digits", name) for name in self.digits)
        if self.cases:
            yield Job("copy", "end")


def _device() -> str:
    here = gpu()
    return here.name if here else ""


def gpu_answers() -> bool:
    found = gpuact.backends()
    return found["cupy"].available or found["triton"].available


def without_gpu() -> str:
    """Why none answers, as each backend has it."""
    found = gpuact.backends()
    return "; ".join(f"{name}: {found[name].reason}" for name in ("cupy", "triton"))


def _elementwise(sizes: str, on_gpu: bool) -> Suite:
    found = (tables.elementwise_on_gpu if on_gpu else tables.elementwise_on_cpu)(sizes)
    goals = (*elementwise_goals(found), *CALL_GOALS) if on_gpu else ()
    held = [case for case in HELD if case.suite == "elementwise"]
    return _with_calls(Suite("elementwise", found, _who(on_gpu), goals, held=held), on_gpu)


def _with_calls(suite: Suite, on_gpu: bool) -> Suite:
    callers = CALLERS_ON_GPU if on_gpu else CALLERS_ON_CPU
    holders = HOLDERS_ON_GPU if on_gpu else HOLDERS_ON_CPU
    return replace(suite, callers=callers, ways=tuple(HOST.values()), holders=holders)


def _fused(sizes: str, on_gpu: bool) -> Suite:
    found = (tables.fused_on_gpu if on_gpu else tables.fused_on_cpu)(sizes)
    goals = fused_goals(found) if on_gpu else ()
    held = [case for case in HELD if case.suite == "fused"]
    holders = HOLDERS_ON_GPU if on_gpu else HOLDERS_ON_CPU
    return Suite("fused", found, _who(on_gpu), goals, held=held, holders=holders)


def _rows(sizes: str, on_gpu: bool) -> Suite:
    found = (tables.rows_on_gpu if on_gpu else tables.rows_on_cpu)(sizes)
    return Suite("rows", found, _who(on_gpu), rows_goals(_device()) if on_gpu else ())


def _loss(sizes: str, on_gpu: bool) -> Suite:
    found = (tables.loss_on_gpu if on_gpu else tables.loss_on_cpu)(sizes)
    return Suite("loss", found, _who(on_gpu), loss_goals(_device()) if on_gpu else ())


def _stats(sizes: str, on_gpu: bool) -> Suite:
    found = (tables.stats_on_gpu if on_gpu else tables.stats_on_cpu)(sizes)
    return Suite("stats", found, _who(on_gpu), stats_goals(found) if on_gpu else ())


def _torch(sizes: str, on_gpu: bool) -> Suite:
    by = IN_TORCH_ON_GPU if on_gpu else IN_TORCH_ON_CPU
    return Suite("torch", in_torch_by=by, in_torch=in_torch.ROWS)


def _cpu(sizes: str, on_gpu: bool) -> Suite:
    return _with_calls(Suite("cpu", tables.cpu(sizes), ON_CPU, GOALS, held=HELD), on_gpu=False)


def _digits(sizes: str, on_gpu: bool) -> Suite:
    return Suite("digits", digits=tuple(HIDDEN))


def _all(sizes: str, on_gpu: bool) -> Suite:
    makers = _elementwise, _rows, _loss, _fused, _stats, _torch, _digits
    parts = [make(sizes, on_gpu) for make in makers]
    calls, _, _, fused, _, torch, digits = parts
    inside = torch.in_torch
    if sizes == tables.QUICK:
        inside = [row for row in inside if row.functions[0] in in_torch.QUICK]
    return Suite(
        "all",
        cases=[case for part in parts for case in part.cases],
        providers=calls.providers,
        goals=[goal for part in parts for goal in part.goals],
        callers=calls.callers,
        ways=calls.ways,
        holders=calls.holders,
        held=[*calls.held, *fused.held],
        in_torch_by=torch.in_torch_by,
        in_torch=inside,
        digits=digits.digits,
    )


def _here(sizes: str, on_gpu: bool) -> Suite:
    if on_gpu:
        return _all(sizes, on_gpu)
    return replace(_cpu(sizes, on_gpu), digits=tuple(HIDDEN))


def _who(on_gpu: bool) -> Sequence[Provider]:
    return ON_GPU if on_gpu else ON_CPU


SUITES: dict[str, Callable[[str, bool], Suite]] = {
    "here": _here,
    "elementwise": _elementwise,
    "rows": _rows,
    "loss": _loss,
    "fused": _fused,
    "stats": _stats,
    "torch": _torch,
    "cpu": _cpu,
    "digits": _digits,
    "all": _all,
}


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, as both processes are told it."""

    suite: str = "here"
    sizes: str = tables.QUICK
    on_gpu: bool = False
    only: str = ""
    dtypes: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    seconds: float = 0.3  # of timing for each case
    epochs: int = 0  # of the digits; 0 for as many as they need

    def plan(self) -> Suite:
        found = SUITES[self.suite](self.sizes, self.on_gpu and self.suite != "cpu")
        if self.only or self.dtypes:
            found = found.only(self._wanted)
        if self.providers:
            found = found.by(self._by)
        return found

    def _wanted(self, name: str) -> bool:
        return self.only in name and (not self.dtypes or bool({*self.dtypes} & {*name.split()}))

    def _by(self, name: str) -> bool:
        return any(word.lower() in name.lower() for word in self.providers)


def settings(asked: Asked, **more: Any) -> dict[str, Any]:
    """As a result keeps them."""
    return {
        "suite": asked.plan().name,
        "on_gpu": asked.on_gpu,
        "sizes": asked.sizes,
        "seconds_per_case": asked.seconds,
        "only": asked.only,
        "dtypes": list(asked.dtypes),
        "providers": list(asked.providers),
        **more,
    }
