"""What is known of a kind of call is not asked again.

`calls` looks closely at what comes: whose arrays, which backend, which shapes broadcast, what may
be wrong; the backend then asks how they lie in memory and which kernel that takes. Most calls are
of a kind that came before: the same function, operands of the same types and with the same `facts`
(dtype, shape, all that a launch depends on). For those the answer is kept here, and a kernel is
launched some thirty microseconds sooner. Nothing is decided here: an answer is kept once a call has
gone the long way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from . import dispatch
from .dispatch import Call
from .libraries import FACTS, NUMBERS

Array = Any


@dataclass(frozen=True)
class Launch:
    """A kernel, ready for operands of one kind: `start(operands, out, *more)`; or several, and
    what comes of them."""

    start: Callable[..., Any]
    like: int  # which operand the result is like
    as_given: bool = False  # operands need not be in the shapes in which they meet x


class Runs(Protocol):
    """What stands for a call whose operands are known: a route, or one that counts its outputs."""

    def run(self, given: Sequence[Any]) -> Array: ...


@dataclass(slots=True)
class Route:
    """Of calls whose arrays are the backend's own, so that nothing is to be made of them first."""

    call: Call
    place: int  # the device, as `Library.place` counts
    ready: tuple[tuple[int, ...] | type | None, ...]  # the shape or type to give each operand
    as_given: bool  # none has another
    launch: Launch | None
    learns: bool  # an operand requires a gradient
    alike: Callable[[Array], Array]  # the library's, and so are these
    here: Callable[[int], bool]
    recording: Callable[[], bool]

    def recorded(self) -> bool:
        """Whether autograd must record the call."""
        return self.learns and self.recording()

    def operands(self, given: Sequence[Any]) -> Sequence[Any]:
        """Numbers as floats, arrays in the shapes in which they meet x."""
        if self.as_given:
            return given
        return [
            a if how is None else float(a) if how is float else a.reshape(how)
            for a, how in zip(given, self.ready, strict=True)
        ]

    def run(self, given: Sequence[Any], *more: Any) -> Array:
        """The call's result in new memory."""
        launch: Any = self.launch
        out = self.alike(given[launch.like])
        launch.start(given if launch.as_given else self.operands(given), out, *more)
        return out

    def run_into(self, given: Sequence[Any], out: Array) -> bool:
        """The call's result in `out`, if that is no part of the operand that it is like."""
        launch, library = self.launch, self.call.library
        if launch is None or not library.apart(out, given[launch.like]):
            return False
        if not launch.as_given:
            given = self.operands((*given, out))[:-1]
        launch.start(given, out)
        library.wrote(out)
        return True


MOST = 4096  # kinds that are kept: shapes may never come to an end
_routes: dict[Hashable, Route] = {}


def _key(entry: Hashable, given: Sequence[Any]) -> Hashable:
    """What tells one kind of call from another: of a number its type alone."""
    return (
        entry,
        dispatch.chosen.get() or dispatch.ENVIRONMENT,
        *[FACTS[type(a)](a) for a in given],
    )


def find(entry: Hashable, given: Sequence[Any]) -> Route | None:
    """The route of such a call, if one came before. given: all operands; what is neither a number
    nor a plain array of a known library has no route."""
    try:
        route = _routes.get(_key(entry, given))
    # a list, say; what has no hash, which a memoryview says by ValueError; what has no memory
    except (KeyError, TypeError, ValueError, RuntimeError):
        return None
    if route is None or not route.here(route.place):
        return None
    return route


def learn(
    entry: Hashable,
    given: Sequence[Any],
    call: Call,
    ready: Sequence[Any],
    prepare: Callable[[Call, Sequence[Any]], Launch | None],
) -> Route | None:
    """Remember a call: what was given, and the operands that became of it."""
    library = call.library
    how: list[tuple[int, ...] | type | None] = []
    for a, b in zip(given, ready, strict=True):
        if type(a) in NUMBERS:
            if type(b) not in NUMBERS:  # taken for a 0-d array
                return None
            how.append(float if type(a) is int else None)
            continue
        if not library.own(a, call.backend) or library.dtype(a) != library.dtype(b) or 0 in a.shape:
            return None
        how.append(None if a.shape == b.shape else tuple(b.shape))
    arrays = [a for a in given if type(a) not in NUMBERS]
    place = library.place(arrays[0])
    if not library.here(place):
        return None
    like = library.empty((0,), library.dtype(arrays[0]), arrays[0])  # no memory of the caller's
    call = replace(call, like=like, own=True)
    launch = prepare(call, ready)
    if launch is not None and float in how:
        launch = replace(launch, as_given=False)
    if len(_routes) >= MOST:
        for key in list(_routes)[: -(-MOST // 4)]:  # the oldest
            _routes.pop(key, None)
    learns = any(library.learns(a) for a in arrays)
    as_given = all(each is None for each in how)
    of_library = library.alike, library.here, library.recording
    route = Route(call, place, tuple(how), as_given, launch, learns, *of_library)
    _routes[_key(entry, given)] = route
    return route
