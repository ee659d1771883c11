"""The benchmark's suites with arrays that cost nothing, for the process that measures."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench import suites
from bench.providers import OURS
from gpuact import dispatch
from tests.benchmarks import planted, small

LIMIT = 1e9  # no function is so many times as fast
WRONG = planted(lambda *x, **options: x[0] + 1, OURS, backend="numpy")


@dataclass(frozen=True)
class Asked(suites.Asked):
    """A suite of the CPU, each case once at a small size; with a goal out of reach, or with a
    result of ours that is wrong."""

    seconds: float = 0.001
    missed: bool = False
    wrong: bool = False
    compiled: bool = False

    def plan(self) -> suites.Suite:
        dispatch.ENVIRONMENT = "numpy"  # in the process that measures, whatever answers there
        found = super().plan()
        names = {case.name: small(case).name for case in found.cases}
        cases = {small(case).name: small(case) for case in reversed(found.cases)}
        who = [p for p in found.providers if p.name not in ("torch", "Numba")]
        goals = [replace(goal, case=names[goal.case]) for goal in found.goals if goal.case in names]
        if self.missed:
            goals = [replace(goal, limit=LIMIT) for goal in goals[:1]]
        if self.wrong:
            who = [WRONG]
            goals = []
        return replace(
            found,
            cases=list(cases.values())[::-1],
            providers=who,
            goals=goals,
            in_torch_by=[p for p in found.in_torch_by if self.compiled or not p.compiles],
        )
