"""The short way of an elementwise call: what is known of a kind of array is not asked again.

`calls` looks closely at what comes: whose array, which backend, what may be wrong with it. Most
calls are of a kind seen before: an array of the same type and dtype on the same device, plain
numbers beside it, a new array for the result. Those find their route here, and a kernel is launched
microseconds sooner. Whatever is not plain goes the long way; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import dispatch
from .catalogue import Pass
from .dispatch import Call
from .libraries import FLOATING

Array = Any


@dataclass(frozen=True, slots=True)
class Route:
    """Where arrays of one kind go. They are the backend's own, and so is the result."""

    call: Call
    device: Any
    backend: Any  # its module
    empty_like: Callable[[Array], Array]
    plain: Callable[[Array], bool]  # nothing has to be made of it, or made current, first
    tracked: Callable[[Array], bool]  # autograd must record what is done with it

    def fits(self, *arrays: Array) -> bool:
        """Whether these, of one dtype and shape, can go this way."""
        x = arrays[-1]
        if 0 in x.shape or not self.plain(x) or x.device != self.device:
            return False
        for a in arrays[:-1]:
            if type(a) is not type(x) or a.dtype != x.dtype or a.shape != x.shape:
                return False
            if not self.plain(a) or a.device != self.device:
                return False
        return True

    def run(self, kernel: Pass, arrays: tuple[Array, ...], params: tuple[float, ...]) -> Array:
        """Arrays that fit."""
        y = self.empty_like(arrays[-1])
        self.backend.elementwise(kernel.formula, arrays, params, y, self.call.scratch)
        return y


_routes: dict[tuple[Any, ...], Route] = {}


def find(x: Any) -> Route | None:
    """The route of arrays like x, if one of them came before."""
    try:
        return _routes.get((type(x), x.dtype, dispatch.chosen()))
    except (AttributeError, TypeError):  # no array at all, or one that cannot be looked up
        return None


def learn(call: Call, x: Array) -> None:
    """Remember where x went, if arrays of its kind need no attention on their way."""
    library = call.library
    if library.dtype(x) not in FLOATING or not library.own(x, call.backend):
        return
    like = library.empty((0,), library.dtype(x), x)  # of its kind, and none of its memory
    _routes[type(x), x.dtype, dispatch.chosen()] = Route(
        call=Call(library, like, call.backend),
        device=x.device,
        backend=call.module,
        empty_like=library.alike,
        plain=library.plain,
        tracked=library.tracked,
    )
