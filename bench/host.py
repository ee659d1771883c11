"""What a call costs the host: relu of 4 KiB, called again and again without waiting for the device.

On a CPU the host is also who computes, so there it is all that the call takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .cases import Case, inputs
from .measure import Host, Timing, Unwaited, interleaved
from .providers import Caller
from .suite import Outputs, Status, checked, reference
from .tables import CALL, HOST

Call = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """One caller in one way of calling, or why there is none."""

    case: str
    provider: str
    status: Status
    reason: str = ""  # empty where timed
    timing: Timing | None = None  # seconds of one call

    @property
    def bytes(self) -> int:
        return CALL.bytes


def compared(
    case: Case,
    name: str,
    calls: Mapping[str, tuple[Host, Call]],
    expected: Outputs,
    budget: float,
    at: Callable[[str], object] = lambda who: None,
) -> list[Cost]:
    """The costs of one way of calling, of those who compute what they should; then the others."""
    contenders: dict[str, tuple[Host, Sequence[Call]]] = {}
    wrong: list[Cost] = []
    for who, (place, call) in calls.items():
        at(who)
        status, reason, _ = checked(case, place, call, expected)
        if status == "timed":
            contenders[who] = Unwaited(place), [call]
        else:
            wrong.append(Cost(name, who, status, reason))
    timings: Mapping[str, Timing] = interleaved(contenders, budget, at) if contenders else {}
    timed = [Cost(name, who, "timed", timing=timing) for who, timing in timings.items()]
    return timed + wrong


def cost(
    name: str,
    able: Sequence[Caller],
    places: Mapping[str, Host],
    budget: float,
    at: Callable[[str], object] = lambda who: None,
) -> list[Cost]:
    """The costs of one way of calling, by its row's name, with `budget` seconds of timing."""
    way = next(way for way, row in HOST.items() if row == name)
    (x,) = inputs(CALL).values()
    calls: dict[str, tuple[Host, Call]] = {}
    for caller in able:
        at(caller.name)
        place = places[caller.place]
        ways = caller.ways(place.put(x), place.put(np.zeros_like(x)))
        if way in ways:
            calls[caller.name] = place, ways[way]
    return compared(CALL, name, calls, reference(CALL, {"x": x}), budget, at)
