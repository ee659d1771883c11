"""What a call costs the host: relu of 4 KiB, called again and again without waiting for the device.

On a CPU the host is also who computes, so there it is all that the call takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .cases import CALL, HOST, inputs
from .measure import PLACES, Host, Timing, Unwaited, interleaved
from .providers import Caller
from .suite import Status, checked, reference


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
        if name not in names:
            continue
        contenders: dict[str, tuple[Host, Sequence[Callable[[], object]]]] = {}
        wrong: list[Cost] = []
        for caller in able:
            call = ways[caller.name].get(way)
            if call is None:
                continue
            place = places[caller.place]
            status, reason = checked(CALL, place, call, expected)
            if status == "timed":
                contenders[caller.name] = Unwaited(place), [call]
            else:
                wrong.append(Cost(name, caller.name, status, reason))
        timings: Mapping[str, Timing] = interleaved(contenders, budget) if contenders else {}
        timed = [Cost(name, who, "timed", timing=timing) for who, timing in timings.items()]
        yield timed + wrong
