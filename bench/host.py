"""What a call costs the host: relu of 4 KiB, called again and again without waiting for the device.

On a CPU the host is also who computes, so there it is all that the call takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .cases import CALL, HOST, Case, inputs
from .measure import PLACES, Host, Timing, Unwaited, interleaved
from .providers import Caller
from .suite import Outputs, Status, checked, reference

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
) -> list[Cost]:
    """The costs of one way of calling, of those who compute what they should; then the others."""
    contenders: dict[str, tuple[Host, Sequence[Call]]] = {}
    wrong: list[Cost] = []
    for who, (place, call) in calls.items():
        status, reason = checked(case, place, call, expected)
        if status == "timed":
            contenders[who] = Unwaited(place), [call]
        else:
            wrong.append(Cost(name, who, status, reason))
    timings: Mapping[str, Timing] = interleaved(contenders, budget) if contenders else {}
    timed = [Cost(name, who, "timed", timing=timing) for who, timing in timings.items()]
    return timed + wrong


def costs(callers: Sequence[Caller], names: Sequence[str], budget: float) -> Iterator[list[Cost]]:
    """The costs of each way of calling in turn, with `budget` seconds of timing for each.

    names: of HOST, the rows that are asked for.
    """
    able = [caller for caller in callers if caller.why_not() is None]
    places = {caller.place: PLACES[caller.place]() for caller in able}
    (x,) = inputs(CALL).values()
    expected = reference(CALL, {"x": x})
    ways = {
        caller.name: caller.ways(place.put(x), place.put(np.zeros_like(x)))
        for caller in able
        for place in [places[caller.place]]
    }
    for way, name in HOST.items() if able else ():
        if name in names:
            calls = {
                caller.name: (places[caller.place], ways[caller.name][way])
                for caller in able
                if way in ways[caller.name]
            }
            yield compared(CALL, name, calls, expected, budget)
