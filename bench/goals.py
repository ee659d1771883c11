"""What gpuact must reach, case by case, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from .cases import Case, Chain, Watched
from .measure import Timing
from .tables import COPY, CPU, HOST, ODD, OUT, PLAIN, RECORDED, loss_on_gpu, rows_on_gpu

OURS = ("gpuact on NumPy",)
_CUPY, _TRITON = _BOTH = ("gpuact on CuPy", "gpuact on Triton")
LARGE = 1 << 28  # bytes: of cases that move as many or more, memory is the bound


@dataclass(frozen=True)
class Goal:
    """What gpuact, or the better of its backends, must reach in a case.

    Beside a rival or the quickest of several: of those that are named, or, if none is, of all that
    could be timed. In another case, a rival is taken at the rate of bytes that he has there.
    """

    case: str
    rivals: tuple[str, ...]
    limit: float
    figure: Literal["times as fast", "of its time", "µs more", "not behind", "GB/s", "ms"] = (
        "times as fast"
    )
    ours: tuple[str, ...] = OURS
    neighbour: str = ""  # the case that the rivals are timed in, if not the same
    column: Literal["timing", "call"] = "timing"  # of the work, or of what a call costs the host

    @property
    def what(self) -> str:
        return self.case + (", a plain call" if self.column == "call" else "")

    @property
    def who(self) -> str:
        return " or ".join(self.ours)

    @property
    def rival(self) -> str:
        if self.alone:
            return ""
        names = " or ".join(self.rivals) or "every rival"
        return f"{names} in {self.neighbour}" if self.neighbour else names

    @property
    def alone(self) -> bool:
        """Whether nobody else matters."""
        return self.figure in ("GB/s", "ms")

    def value(self, ours: float, theirs: float = 0, moved: int = 0) -> float:
        """Of seconds, and of the bytes that ours moved in them."""
        match self.figure:
            case "GB/s":
                return moved / ours / 1e9
            case "ms":
                return ours * 1e3
            case "µs more":
                return (ours - theirs) * 1e6
            case "of its time":
                return ours / theirs
        return theirs / ours

    @property
    def at_least(self) -> bool:
        return self.figure in ("times as fast", "not behind", "GB/s")

    def held(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


_relu, _sigmoid, _softmax = (
    next(case.name for case in CPU if case.function == name)
    for name in ("relu", "sigmoid", "softmax")
)
GOALS = (
    Goal(_sigmoid, ("NumPy",), 1.3),
    Goal(_sigmoid, ("SciPy",), 2.0),
    Goal(_relu, ("NumPy",), 1.15, "of its time"),
    Goal(_softmax, ("SciPy",), 1.4),
)


def elementwise_goals(cases: Iterable[Case]) -> tuple[Goal, ...]:
    """The rate of a copy; in bfloat16, where one scalar a thread is too little, half as much again
    as the plain kernel."""
    large = [c for c in cases if c.bytes >= LARGE and not c.function.endswith("_derivative")]
    return (
        *(Goal(c.name, (COPY,), 0.95, ours=(ours,)) for c in large for ours in _BOTH),
        *(
            Goal(c.name, ("CuPy ElementwiseKernel",), 1.5, ours=(_CUPY,))
            for c in large
            if c.dtype == "bfloat16"
        ),
    )


def fused_goals(cases: Iterable[Case]) -> tuple[Goal, ...]:
    fused = [c for c in cases if isinstance(c, Chain) and c.compiled]
    compiled = ("torch.compile", "torch.compile, tuned")
    return (
        *(Goal(c.name, ("torch",), 2.0, ours=(ours,)) for c in fused for ours in _BOTH),
        *(Goal(c.name, compiled, 1.0, "not behind", (ours,)) for c in fused for ours in _BOTH),
    )


def stats_goals(cases: Iterable[Case]) -> tuple[Goal, ...]:
    """Where memory is the bound, statistics cost next to nothing beside the activation."""
    large = [c for c in cases if isinstance(c, Watched) and c.compiled]
    return tuple(
        Goal(c.name, (ours,), 1.03, "of its time", (ours,), neighbour=c.plain.name)
        for c in large
        for ours in _BOTH
    )


CALL_GOALS = (
    Goal(HOST[PLAIN], ("CuPy ElementwiseKernel",), 1.0, "of its time", (_CUPY,)),
    Goal(HOST[OUT], ("CuPy ElementwiseKernel",), 1.0, "of its time", (_CUPY,)),
    # torch's own operation allocates and launches without a line of Python: ours beside it is what
    # our Python costs, and under autograd what it costs beside a function that does nothing else
    Goal(HOST[PLAIN], ("torch",), 3.0, "µs more", (_TRITON,)),
    Goal(HOST[RECORDED], ("an empty autograd function",), 3.0, "µs more", (_TRITON,)),
)

# The absolute figures are those of one GPU, whose copy moves so much a second; elsewhere the same
# share of the copy's rate is asked for.
H100 = "H100 80GB HBM3"
H100_COPY = 3.0e12


def _named(function: str, dtype: str, shape: str) -> str:
    """Of the first of its kind: plain, before the smoothed ones."""
    cases = (*rows_on_gpu("quick"), *loss_on_gpu("quick"))
    return next(c.name for c in cases if c.name.startswith(f"{function} {dtype} {shape}"))


def _copied(name: str, share: float) -> Goal:
    return Goal(name, (COPY,), share, ours=_BOTH)


def rows_goals(device: str) -> tuple[Goal, ...]:
    """Of softmax and log-softmax on a GPU of this name, for the better of the two backends."""

    def rate(shape: str, least: float) -> Goal:
        """So many GB/s."""
        case = _named("softmax", "bfloat16", shape)
        if H100 in device:
            return Goal(case, (), least, "GB/s", _BOTH)
        return _copied(case, least * 1e9 / H100_COPY)

    few = _named("softmax", "bfloat16", "4×131072")
    return (
        *(rate(f"32768×{n}", least) for n, least in ((256, 1900), (1024, 2650), (4096, 2900))),
        _copied(_named("softmax", "bfloat16", "32768×65536"), 0.97),
        _copied(_named("softmax", "bfloat16", "8192×262144"), 0.97),
        *(
            Goal(
                _named(function, "bfloat16", f"32768×{odd}"),
                _BOTH,
                0.97,
                ours=_BOTH,
                neighbour=_named(function, "bfloat16", f"32768×{even}"),
            )
            for function, odd, even in ODD
        ),
        _copied(_named("log_softmax", "bfloat16", "32768×50257"), 0.93),
        _copied(_named("softmax_backward", "bfloat16", "32768×8192"), 0.95),
        _copied(_named("softmax", "float32", "8192×8192 axis 0"), 0.85),
        Goal(few, (), 1.0, ours=_BOTH),
        Goal(few, (), 1.0, ours=_BOTH, column="call"),
    )


def loss_goals(device: str) -> tuple[Goal, ...]:
    gradient = next(c for c in loss_on_gpu("quick") if c.function == "cross_entropy_with_grad")
    once = gradient.bytes / H100_COPY  # seconds
    return (
        Goal(gradient.name, (), 1.5, "ms", _BOTH)
        if H100 in device
        else _copied(gradient.name, once / 1.5e-3),
        Goal(gradient.name, ("Liger",), 1.0, ours=_BOTH),
    )


@dataclass(frozen=True)
class Verdict:
    """One goal: what was measured, and whether it holds; None where a row is missing."""

    goal: Goal
    value: float | None
    held: bool
    ours: str  # the better of those that the goal names, or all of them where none was timed
    launches: bool = False  # whether the rival could be timed with his launches alone

    @property
    def rival(self) -> str:
        return self.goal.rival + (" with its launches" if self.launches else "")

    @property
    def word(self) -> str:
        return "not measured" if self.value is None else "held" if self.held else "missed"


class Measured(Protocol):
    """A row of any table that a goal may be about."""

    @property
    def case(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def timing(self) -> Timing | None: ...


class Found(NamedTuple):
    timing: Timing
    bytes: int
    method: str = ""


Timed = Mapping[tuple[str, str], Found]  # by case and provider


def _rivals(goal: Goal, timed: Timed) -> list[Found | None]:
    """Who is beside us: None for one who is named and was not timed, if it is not ourselves."""
    case = goal.neighbour or goal.case
    here = {who: row for (name, who), row in timed.items() if name == case}
    named = goal.rivals or [who for who in here if who not in (COPY, *goal.ours)]
    return [here.get(who) for who in named if who in here or who not in goal.ours]


def _verdict(goal: Goal, timed: Timed) -> Verdict:
    found = {who: timed[goal.case, who] for who in goal.ours if (goal.case, who) in timed}
    rivals = [row for row in _rivals(goal, timed) if row]
    if not found or None in _rivals(goal, timed) or not (rivals or goal.alone):
        return Verdict(goal, None, False, goal.who)
    who = min(found, key=lambda name: found[name].timing.median)
    ours = found[who]
    # who is as quick as his rival is behind him in every second run: behind is whose median lies
    # above the rival's 80 % quantile
    slack = goal.figure == "not behind"
    theirs = {
        (row.timing.high if slack else row.timing.median) * ours.bytes / row.bytes: row.method
        for row in rivals
    }
    best = min(theirs, default=0.0)
    value = goal.value(ours.timing.median, best, ours.bytes)
    launches = ours.method == "graph" and theirs.get(best) == "events"
    return Verdict(goal, value, goal.held(value), who, launches)


def verdicts(rows: Iterable[Measured], goals: Iterable[Goal]) -> list[Verdict]:
    timed: dict[str, dict[tuple[str, str], Found]] = {"timing": {}, "call": {}}
    for row in rows:
        for column, found in timed.items():
            timing = getattr(row, column, None)
            if timing is not None:
                method = getattr(row, "method", "") if column == "timing" else ""
                found[row.case, row.provider] = Found(timing, row.bytes, method)
    return [_verdict(goal, timed[goal.column]) for goal in goals]
