"""One call of each elementwise kernel on arrays of about 2²⁰ elements, aligned in one of four ways.

The calls go to a backend's own face: `elementwise` for every formula of the catalogue, `fused` and
`fused_backward` for a choice of their options. Every array of a call has a name here, so that what
a kernel does to it can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from gpuact import Dropout
from gpuact.fusion import Fusion
from tests.calls import ELEMENTWISE
from tests.harness import Executor, Launch, Placed, named
from tests.ptxrun import Struct
from tests.truth import Array

# How the arrays lie: at 16-byte boundaries; all one element behind them; with an odd number of
# elements; the inputs one element behind and the outputs at the boundary, as `f(x[1:])` has it.
ALIGNMENTS = ("aligned", "alike", "odd", "different")


@dataclass(frozen=True)
class Layout:
    """Shapes of x: one, one with an odd number of elements, and one that fills a GPU."""

    shape: tuple[int, ...]
    odd: tuple[int, ...]
    large: tuple[int, ...]
    channel: int | None = None  # which axis
    last: bool = False  # in memory the channels come last, whatever the shape says


LAYOUTS = {
    "flat": Layout((1 << 20,), ((1 << 20) - 3,), (1 << 26,)),
    # whole packs of one channel
    "NCHW 56²": Layout((2, 167, 3136), (3, 111, 3137), (64, 256, 3136), 1),
    # channels begin anywhere in a pack
    "NCHW 7²": Layout((83, 256, 49), (87, 245, 49), (512, 2048, 49), 1),
    # every element of another channel
    "NHWC": Layout((4, 256, 32, 32), (5, 255, 29, 29), (64, 256, 56, 56), 1, last=True),
}


LARGE = "large"  # aligned, but not to be executed: memory of which only the addresses are known


@dataclass
class Call:
    """A call ready to run; the names of its arrays."""

    run: Callable[[], None]
    operands: dict[str, Placed] = field(default_factory=dict)  # of x's shape: each moves once
    parameters: dict[str, Placed] = field(default_factory=dict)  # an entry a channel, or a sum's
    scratch: list[Placed] = field(default_factory=list)  # what the backend took for temporaries

    @property
    def needed(self) -> int:
        """Bytes that must move, each array once."""
        return sum(_nbytes(p) for p in (*self.operands.values(), *self.parameters.values()))

    @property
    def elements(self) -> int:
        return prod(next(iter(self.operands.values())).shape)

    def names(self, launch: Launch, capability: int) -> list[str]:
        """What each of a launch's arguments is here: "" if it is no array."""
        ours = {_pointer(p.native): k for k, p in (self.operands | self.parameters).items()}
        return [
            "" if pointer is None else ours.get(pointer, "scratch")
            for pointer in map(_pointer, launch.arguments(capability))
        ]


def _nbytes(placed: Placed) -> int:
    return prod(placed.shape) * placed.before.itemsize


def _pointer(x: Any) -> int | None:
    """The address of an array, be it in a struct; None for anything else."""
    if isinstance(x, np.ndarray):
        return int(x.ctypes.data)
    if isinstance(x, Struct):  # CuPy's arrays with strides
        return next((p for p in map(_pointer, x.values) if p is not None), None)
    return int(x.data_ptr()) if hasattr(x, "data_ptr") else None


def _normal(count: int, dtype: str) -> Array:
    sample = np.random.default_rng(count).standard_normal(1009)
    return np.resize(sample.astype(named(dtype)), count)


def _in_order(flat: Array, shape: tuple[int, ...], layout: Layout) -> Array:
    if not layout.last:
        return flat.reshape(shape)
    n, c, *rest = shape
    return np.moveaxis(flat.reshape(n, *rest, c), -1, 1)


class Arrays:
    """Makes the arrays of one call, and keeps their names."""

    def __init__(self, executor: Executor, dtype: str, alignment: str, layout: str):
        self.executor, self.dtype, self.alignment = executor, dtype, alignment
        self.layout = LAYOUTS[layout]
        self.call = Call(lambda: None)

    @property
    def shape(self) -> tuple[int, ...]:
        other = {"odd": self.layout.odd, LARGE: self.layout.large}
        return other.get(self.alignment, self.layout.shape)

    def _place(self, behind: bool) -> Placed:
        executor, count = self.executor, prod(self.shape)
        if self.alignment != LARGE:
            flat = _normal(count + behind, self.dtype)[behind:]
            return executor.place(_in_order(flat, self.shape, self.layout))
        memory = native = np.empty(count, named(self.dtype))  # takes no room, unlike a copy
        if executor.family == "triton":
            native = executor.copy(memory[:0]).new_empty(count)
        x = _in_order(memory, self.shape, self.layout)
        steps = tuple(s // x.itemsize for s in x.strides)
        native = executor.view(native, self.shape, steps, 0)
        return Placed(executor, native, memory, memory, self.shape, steps, 0)

    def read(self, name: str) -> Any:
        placed = self.call.operands[name] = self._place(self.alignment in ("alike", "different"))
        return placed.native

    def written(self, name: str) -> Any:
        placed = self.call.operands[name] = self._place(self.alignment == "alike")
        return placed.native

    def channels(self, name: str) -> Any:
        """A parameter or its gradient: an entry a channel, or one if there are no channels."""
        axis = self.layout.channel
        shape = tuple(n if k == axis else 1 for k, n in enumerate(self.shape))
        values = np.full(shape, 0.5, named(self.dtype))
        placed = self.call.parameters[name] = self.executor.place(values)
        return placed.native

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        placed = self.executor.place(np.empty(shape, named(dtype)), blank=True)
        self.call.scratch.append(placed)
        return placed.native

    def ready(self, run: Callable[[], None]) -> Call:
        self.call.run = run
        return self.call


@dataclass(frozen=True)
class Workload:
    """A kernel and the layout it runs on: `make` places arrays and says what to call."""

    layout: str
    make: Callable[[Arrays], Call]

    def call(self, executor: Executor, dtype: str, alignment: str = "aligned") -> Call:
        return self.make(Arrays(executor, dtype, alignment, self.layout))


def _formula(formula: str, channels: bool = False) -> Callable[[Arrays], Call]:
    def make(arrays: Arrays) -> Call:
        p = ELEMENTWISE[formula]
        reads = tuple(arrays.read(name) for name in p.reads)
        params = tuple(arrays.channels(name) if channels else 0.5 for name in p.parameters)
        out = arrays.written("out")
        backend = arrays.executor.backend
        return arrays.ready(lambda: backend.elementwise(formula, reads, params, out, arrays.empty))

    return make


DROPOUT = Dropout(0.1, seed=7, offset=1 << 40)
NUMBER = 0.5  # a parameter that is not an array


def _fused(activation: str, dropout: bool) -> Callable[[Arrays], Call]:
    """With every other option: scale, bias and slope of channels, gate and residual."""

    def make(arrays: Arrays) -> Call:
        fusion = Fusion(activation, DROPOUT if dropout else None)
        x, gate, residual = (arrays.read(name) for name in ("x", "gate", "residual"))
        slope = arrays.channels("slope") if fusion.slope else None
        params = (arrays.channels("scale"), arrays.channels("bias"), slope)
        out = arrays.written("out")
        given = (fusion, x, params, gate, residual, out, arrays.empty)
        return arrays.ready(lambda: arrays.executor.backend.fused(*given))

    return make


def _fused_backward(
    activation: str, wanted: Mapping[str, str], dropout: bool = False, gate: bool = False
) -> Callable[[Arrays], Call]:
    """wanted: the parameters there are; "channels" or "number", each with its gradient."""

    def make(arrays: Arrays) -> Call:
        fusion = Fusion(activation, DROPOUT if dropout else None)
        dy, x = arrays.read("dy"), arrays.read("x")
        gates = (arrays.read("gate"), arrays.written("dgate")) if gate else (None, None)
        params, sums = [], []
        for name in ("scale", "bias", "slope"):
            kind = wanted.get(name)
            params.append(arrays.channels(name) if kind == "channels" else kind and NUMBER)
            sums.append(arrays.channels(f"d{name}") if kind else None)
        if fusion.slope and not wanted.get("slope"):
            params[2] = NUMBER
        dx = arrays.written("dx")
        given = (fusion, dy, x, tuple(params), gates[0], dx, gates[1], tuple(sums), arrays.empty)
        return arrays.ready(lambda: arrays.executor.backend.fused_backward(*given))

    return make


CHANNELS = {"scale": "channels", "bias": "channels"}
NUMBERS = {"scale": "number", "bias": "number"}
SLOPES = {"slope": "channels"}

# One of each kind of kernel: what it reads, how it takes parameters, what it sums.
KINDS = {
    "sigmoid": Workload("flat", _formula("sigmoid")),
    "tanh_backward": Workload("flat", _formula("tanh_backward")),
    "linear": Workload("flat", _formula("linear")),
    "leaky_relu_backward of channels": Workload(
        "NCHW 56²", _formula("leaky_relu_backward", channels=True)
    ),
    "fused sigmoid": Workload("NHWC", _fused("sigmoid", dropout=False)),
    "fused sigmoid, dropout": Workload("flat", _fused("sigmoid", dropout=True)),
    "fused_backward sigmoid, dropout": Workload(
        "flat", _fused_backward("sigmoid", {}, dropout=True, gate=True)
    ),
    "prelu_backward": Workload("NCHW 56²", _fused_backward("prelu", SLOPES)),
    "prelu_backward, NCHW 7²": Workload("NCHW 7²", _fused_backward("prelu", SLOPES)),
    "prelu_backward, NHWC": Workload("NHWC", _fused_backward("prelu", SLOPES)),
    "linear_backward": Workload("flat", _fused_backward("linear", NUMBERS)),
}
# Every formula, and every layout of what reads or sums channels.
ACTIVATIONS = ("linear", "sigmoid", "tanh", "relu", "leaky_relu", "prelu")
OTHERS = {
    formula: Workload("flat", _formula(formula)) for formula in ELEMENTWISE if formula not in KINDS
}
OTHERS |= {
    f"{formula} of channels, {layout}": Workload(layout, _formula(formula, channels=True))
    for formula in ("linear", "leaky_relu_backward")
    for layout in ("NCHW 7²", "NHWC")
}
OTHERS |= {
    f"fused {activation}, dropout, NCHW 56²": Workload("NCHW 56²", _fused(activation, dropout=True))
    for activation in ACTIVATIONS
}
OTHERS |= {
    "fused prelu, NCHW 7²": Workload("NCHW 7²", _fused("prelu", dropout=False)),
    "fused prelu, dropout, NCHW 7²": Workload("NCHW 7²", _fused("prelu", dropout=True)),
}
OTHERS |= {
    f"fused_backward {activation}, dropout, NCHW 56²": Workload(
        "NCHW 56²", _fused_backward(activation, CHANNELS, dropout=True, gate=True)
    )
    for activation in ACTIVATIONS
}
OTHERS |= {
    f"fused_backward sigmoid, {layout}": Workload(
        layout, _fused_backward("sigmoid", CHANNELS, gate=True)
    )
    for layout in ("NCHW 7²", "NHWC")
}
WORKLOADS = KINDS | OTHERS
