"""What is known of a kind of call is not asked again.

`calls` looks closely at what comes: whose arrays, which backend, which shapes broadcast, what may
be wrong. Most calls are of a kind that came before: the same function with operands of the same
types, dtypes and shapes. For those the answer is kept here, and a kernel is launched some twenty
microseconds sooner. Nothing is decided here: an answer is kept once a call has gone the long way.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import dispatch
from .dispatch import Call
from .libraries import NUMBERS

Array = Any


@dataclass(frozen=True, slots=True)
class Route:
    """Of calls whose arrays are the backend's own, so that nothing is to be made of them first."""

    call: Call
    place: int  # the device, as `Library.place` counts
    ready: tuple[tuple[int, ...] | type | None, ...]  # the shape or type to give each operand
    as_given: bool  # none has another

    def operands(self, given: Sequence[Any]) -> Sequence[Any]:
        """Numbers as floats, arrays in the shapes in which they meet x."""
        if self.as_given:
            return given
        return [
            a if how is None else float(a) if how is float else a.reshape(how)
            for a, how in zip(given, self.ready, strict=True)
        ]

    def takes(self, out: Any, ready: Sequence[Any]) -> bool:
        """Whether nothing need be asked of `out`: one like x, the other operands being numbers."""
        library = self.call.library
        if not library.direct(out, ready[0]) or not library.plain((out,), self.place):
            return False
        return all(type(a) in NUMBERS for a in ready[1:])


MOST = 4096  # kinds that are kept: shapes may never come to an end
_routes: dict[Hashable, Route] = {}


def _key(entry: Hashable, given: Sequence[Any]) -> Hashable:
    """What tells one kind of call from another; of a number its type alone, and of an array that
    comes by itself not the shape, which nothing has to fit."""
    key: list[Hashable] = [entry, dispatch.chosen.get() or dispatch.ENVIRONMENT]
    for a in given:
        kind = type(a)
        key.append(kind)  # type: ignore[arg-type]  # a type can be hashed
        if kind not in NUMBERS:
            key.append(a.dtype)
            if len(given) > 1:
                key.append(a.shape)
    return tuple(key)


def find(entry: Hashable, given: Sequence[Any]) -> Route | None:
    """The route of such a call, if one came before. given: all operands; what has no dtype and
    shape, and is no number either, has no route."""
    try:
        route = _routes.get(_key(entry, given))
    except (AttributeError, TypeError):  # a list, say; or what cannot be looked up
        return None
    if route is None or not route.call.library.plain(given, route.place):
        return None
    return route


def learn(entry: Hashable, given: Sequence[Any], call: Call, ready: Sequence[Any]) -> None:
    """Remember a call: what was given, and the operands that became of it."""
    library = call.library
    how: list[tuple[int, ...] | type | None] = []
    for a, b in zip(given, ready, strict=True):
        if type(a) in NUMBERS:
            if type(b) not in NUMBERS:  # taken for a 0-d array
                return
            how.append(float if type(a) is int else None)
            continue
        if not library.own(a, call.backend) or library.dtype(a) != library.dtype(b) or 0 in a.shape:
            return
        how.append(None if a.shape == b.shape else tuple(b.shape))
    array = next(a for a in given if type(a) not in NUMBERS)
    like = library.empty((0,), library.dtype(array), array)  # holds no memory of the caller's
    if len(_routes) >= MOST:
        _routes.clear()
    call = replace(call, like=like, own=True)
    as_given = not any(how)
    _routes[_key(entry, given)] = Route(call, library.place(array), tuple(how), as_given)
