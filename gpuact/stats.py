"""Statistics of a layer's outputs, out of the pass that computes them.

A kernel that writes y has it in registers: what a layer's health is told by (mean, spread, zeros,
saturation, units that are silent) costs no other reading of memory, and a few bytes a tile to leave
behind. A second, small kernel adds these up in a fixed order, without atomics, onto what the device
already knows, so that any number of calls is gathered and nobody waits until somebody reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from . import arguments, calls, operations
from .catalogue import FUNCTIONS, Pass
from .dispatch import Call, resolve
from .libraries import Library, library_of, tracing

Array = Any
Bounds = tuple[float | None, float | None]

MOMENTS = ("count", "mean", "m2", "zeros", "saturated")  # m2: Σ (y − mean)²


class ActivationStats:
    """What a layer's outputs were like, over all calls gathered here; kept on the device.

    To read a figure waits for the device's current stream, and only that does.

    count: the elements seen, units: those along `channel_axis`. mean and std: of all elements, std
    with the divisor count. zeros: the share that is 0. saturated: the share where |f′| < 0.01, told
    from y: sigmoid and tanh near their bounds, relu at 0; never for linear, leaky_relu and prelu.
    dead: a boolean NumPy array, True for each unit that was saturated in every element seen: of
    relu those that gave nothing but 0. NaN is neither 0 nor saturated, and makes mean and std NaN.
    Of nothing seen all shares are NaN and no unit is dead. Where a sum or its squares exceed the
    range of the computation (float32's for half types), mean and std are infinite or NaN.

    moments: the device's own numbers, a float64 array of the library that came first: count, mean,
    Σ (y − mean)², zeros and saturated elements. To look at it waits for nothing; it changes with
    every call that is gathered here.

    As with any memory, calls that share one must not run at once, in threads or on streams that do
    not wait for each other. A checkpoint that computes an activation again counts it again.

    >>> import gpuact, numpy as np
    >>> y, stats = gpuact.activation_with_stats(np.array([[-1.0, 2.0], [-3.0, -4.0]]), "relu")
    >>> stats
    ActivationStats(relu, count=4, mean=0.5, std=0.866, zeros=75%, saturated=75%, dead=1 of 2)
    >>> stats.dead
    array([ True, False])
    """

    def __init__(self, activation: str, units: int, call: Call, bounds: Bounds) -> None:
        self.activation, self.units, self.bounds = activation, units, bounds
        with call.on(), call.library.ordinary():
            self.moments: Array = call.empty((len(MOMENTS),), "float64")
            self._alive = call.empty((units,), "uint8")
        self._call = replace(call, like=self.moments)  # what came may go
        self.reset()

    def reset(self) -> None:
        """Forget all that was seen."""
        with self._call.on():
            for each in (self.moments, self._alive):
                self._call.library.copy(each, 0)

    def _read(self) -> dict[str, float]:
        """Waits for the device."""
        count, mean, m2, zeros, saturated = _on_host(self.moments).tolist()
        n = count or math.nan
        return {
            "count": count,
            "mean": mean if count else math.nan,
            "std": math.sqrt(m2 / n),
            "zeros": zeros / n,
            "saturated": saturated / n,
        }

    @property
    def count(self) -> int:
        return int(self._read()["count"])

    @property
    def mean(self) -> float:
        return self._read()["mean"]

    @property
    def std(self) -> float:
        return self._read()["std"]

    @property
    def zeros(self) -> float:
        return self._read()["zeros"]

    @property
    def saturated(self) -> float:
        return self._read()["saturated"]

    @property
    def dead(self) -> npt.NDArray[np.bool_]:
        dead: npt.NDArray[np.bool_] = _on_host(self._alive) == 0
        return dead & (self.count > 0)

    def __repr__(self) -> str:
        found = self._read()
        return (
            f"ActivationStats({self.activation}, count={found['count']:.0f}, "
            f"mean={found['mean']:.3g}, std={found['std']:.3g}, zeros={found['zeros']:.0%}, "
            f"saturated={found['saturated']:.0%}, dead={self.dead.sum()} of {self.units})"
        )

    def _add(
        self, call: Call, formula: str | None, x: Array, out: Array | None, parameter: Any
    ) -> None:
        """Count out = formula(x, parameter) in, and write it; without a formula x itself, which is
        written if there is an out.

        Arrays are the backend's own and (outer, units, inner), contiguous; a parameter is a number,
        an array of one a unit, or one of one alone.
        """
        if 0 in x.shape:
            return
        known = call.native(self.moments), call.native(self._alive)
        call.module.observe(formula, x, out, parameter, self.bounds, *known, call.scratch)

    def _takes(self, call: Call, activation: str, units: int) -> None:
        """Refuse an array that is another layer's."""
        mine, came = self._call, None
        if activation != self.activation:
            came = f"statistics of {self.activation}", f"those of {activation}"
        elif units != self.units:
            came = f"statistics of {self.units} units", f"those of {units}"
        elif mine.library is not call.library:
            came = f"statistics kept in {mine.library.name}", f"those in {call.library.name}"
        elif (here := mine.library.device(mine.like)) != call.library.device(call.like):
            came = f"statistics on {here}", f"those on {call.library.device(call.like)}"
        if came is not None:
            raise ValueError(f"into: {came[0]} came, allowed are {came[1]}")


def _on_host(x: Array) -> npt.NDArray[Any]:
    """NumPy's copy of a small array; waits for its device."""
    if hasattr(x, "get"):  # CuPy's
        with x.device:
            return np.asarray(x.get())
    return np.array(x.cpu().numpy() if hasattr(x, "cpu") else x)  # of a tensor np.array would warn


# -- how a kernel sees a layer --------------------------------------------------------------------


@dataclass(frozen=True)
class UnitView:
    """An array as (outer, units, inner), its axes in the order in which they lie in memory."""

    order: tuple[int, ...]
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, library: Library, x: Array, axis: int | None) -> UnitView:
        """x is dense, or lies in no order of its own. axis: of units; None if the array is one."""
        strides = library.strides(x)
        order = tuple(sorted(range(x.ndim), key=lambda k: -strides[k]))
        if not library.is_contiguous(library.permute(x, order)):
            order = tuple(range(x.ndim))
        if axis is None:
            return cls(order, (1, 1, math.prod(x.shape)))
        place, sizes = order.index(axis), [x.shape[k] for k in order]
        outer, inner = math.prod(sizes[:place]), math.prod(sizes[place + 1 :])
        return cls(order, (outer, sizes[place], inner))

    def view(self, library: Library, x: Array) -> Array:
        """x so, contiguous: a view where it lies so, else a copy."""
        moved = library.contiguous(library.permute(x, self.order))
        return library.reshape(moved, self.shape)


def _axis(channel_axis: Any, ndim: int) -> int | None:
    """The axis of units; None for a 0-d array, which is one."""
    if ndim == 0 and arguments.whole("channel_axis", channel_axis) in (0, -1):
        return None
    return arguments.single_axis("channel_axis", channel_axis, ndim)


def _gatherer(into: Any, call: Call, name: str, shape: Sequence[int], axis: int | None) -> Any:
    """Where to count: `into`, or statistics of nothing yet."""
    units = 1 if axis is None else shape[axis]
    if into is None:
        return ActivationStats(name, units, call, FUNCTIONS[name].saturated)
    if not isinstance(into, ActivationStats):
        raise TypeError(f"into: {type(into).__name__} came, allowed is gpuact.ActivationStats")
    into._takes(call, name, units)
    return into


def _not_watched(name: str, *operands: Any) -> None:
    """What is counted lies in memory: a trace has none."""
    if tracing(operands[0]) or calls.watched(*operands):
        raise TypeError(
            f"{name}: a tensor came that torch.compile, torch.func, forward mode, a dispatch mode "
            "or a class of its own sees to, allowed is a plain one that nobody else watches"
        )


def activation_stats(
    y: Any, activation: Any, channel_axis: Any, into: ActivationStats | None
) -> ActivationStats:
    calls.check_activation(activation)
    _not_watched("y", y)
    y = arguments.array("y", y)
    call = resolve(y=y)
    y = arguments.floating("y", call.library, y)
    axis = _axis(channel_axis, y.ndim)
    stats: ActivationStats = _gatherer(into, call, activation, y.shape, axis)
    count(stats, call, y, axis)
    return stats


def count(stats: ActivationStats, call: Call, y: Array, axis: int | None) -> None:
    """Count these outputs in."""
    with call.on():
        y = call.native(y)
        library = cast(Library, library_of(y))
        stats._add(call, None, UnitView.of(library, y, axis).view(library, y), None, None)


def activation_with_stats(
    x: Any, activation: Any, negative_slope: Any, weight: Any, channel_axis: Any, into: Any
) -> tuple[Any, ActivationStats]:
    calls.check_fused(activation, weight)
    function = FUNCTIONS[activation]
    slope = arguments.parameter("negative_slope", negative_slope, arrays=False)  # used or not
    params = {"weight": weight, "negative_slope": slope, "scale": 1.0, "bias": 0.0}
    params = {name: params[name] for name in function.forward.parameters}
    _not_watched("x", x, *params.values())
    channel_axis = arguments.whole("channel_axis", channel_axis)
    call, x, *ready = calls.looked_at(
        function, function.forward, x, params, channel_axis, function.integers
    )
    x = arguments.floating("x", call.library, x)
    axis = _axis(channel_axis, x.ndim)
    stats: ActivationStats = _gatherer(into, call, activation, x.shape, axis)
    watching = Watching(stats, call, function.forward, axis)
    if calls.tracked(call, x, *ready):
        return calls.autograd().activation(function, call, watching, x, *ready), stats
    return watching.run((x, *ready)), stats


@dataclass(frozen=True)
class Watching:
    """An activation that counts its outputs: autograd calls it as it calls a route."""

    stats: ActivationStats
    call: Call
    kernel: Pass
    axis: int | None

    def run(self, given: Sequence[Any]) -> Array:
        x, *params = given
        call, library = self.call, self.call.library
        formula: str | None = self.kernel.formula
        parameter = None
        if formula == "linear":  # by 1 and 0
            formula = None
        elif params:
            parameter = self._of_units(params[0], x)
            if parameter is None:
                y = operations.elementwise(call, self.kernel, (x,), params)
                count(self.stats, call, y, self.axis)
                return y
        with call.on():
            y = library.empty_like(x, library.dtype(x))
            own, out = call.native(x), call.native(y)
            backend = cast(Library, library_of(own))
            view = UnitView.of(backend, out, self.axis)  # a view of out indeed, which is dense
            arrays = (view.view(backend, own), view.view(backend, out))
            self.stats._add(call, formula, *arrays, call.native(parameter))
        return y

    def _of_units(self, p: Any, x: Array) -> Any:
        """A parameter as kernels take it: a number, or an array of one a unit or of one; None if it
        has others."""
        if isinstance(p, float):
            return p
        library, n = self.call.library, math.prod(p.shape)
        if n == 1 or (self.axis is not None and n == p.shape[self.axis] == x.shape[self.axis]):
            return library.contiguous(library.reshape(p, (n,)))
        return None
