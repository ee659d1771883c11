"""What is timed: a short literal table, each case with the bytes that it must move.

Bytes are those that the function needs, read once and written once, whatever an implementation
does: N elements and M rows, as in `4N` for a 2-byte element read and another written. Parameters
(a slope a channel) are too small to count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np

import gpuact
from gpuact.catalogue import FUNCTIONS, Function
from gpuact.libraries import numpy_dtype

Array = np.ndarray[Any, np.dtype[Any]]

RANDOM = (
    4_194_301  # random numbers drawn at most; prime, so that repeating them never aligns with a row
)
PARAMETERS = ("scale", "bias", "weight")  # one number a channel
NAMED = (("axis", "axis"), ("label_smoothing", "smoothing"))  # options that tell cases apart


@dataclass(frozen=True)
class Case:
    """One call of one public function."""

    function: str
    dtype: str
    shape: tuple[int, ...]
    per_element: int  # bytes moved for every element of x
    per_row: int = 0  # and for every row: a loss, a target
    options: Mapping[str, Any] = field(default_factory=dict)
    compiled: bool = True  # whether torch.compile is timed too: it takes seconds a case
    graphed: bool = False  # whether a CUDA graph is timed too, which leaves out the launch's cost

    @property
    def name(self) -> str:
        power = math.prod(self.shape).bit_length() - 1
        shape = f"2^{power}" if self.shape == (1 << power,) else "×".join(map(str, self.shape))
        words = [self.function, self.dtype, shape]
        words += [f"{word} {self.options[key]}" for key, word in NAMED if key in self.options]
        return " ".join(words)

    @property
    def bytes(self) -> int:
        return self.per_element * math.prod(self.shape) + self.per_row * self.shape[0]

    @property
    def formula(self) -> str:
        return f"{self.per_element}N" + (f" + {self.per_row}M" if self.per_row else "")

    @property
    def base(self) -> str:
        """The function that this one is the backward of, or itself."""
        return self.function.removesuffix("_backward").removesuffix("_with_grad")

    @property
    def record(self) -> Function:
        return FUNCTIONS[self.base]

    @property
    def backward(self) -> bool:
        return self.function.endswith("_backward")

    @property
    def public(self) -> Callable[..., Any]:
        """gpuact's function; it takes the arrays of `inputs` in their order, and the options."""
        function: Callable[..., Any] = getattr(gpuact, self.function)
        return function

    @property
    def reads(self) -> tuple[str, ...]:
        """The arrays that it takes."""
        record = self.record
        kernel = record.backward if self.backward else record.forward
        arrays = ("dy", "x") if self.backward and record.sums else kernel.reads
        return (*arrays, *(name for name, default in record.defaults.items() if default is None))

    @property
    def whole(self) -> bool:
        """Whether a row of the result depends on more than the same row of the arrays."""
        return self.options.get("axis") == 0 or (self.backward and bool(self.record.sums))


@dataclass(frozen=True)
class Chain(Case):
    """A call of `fused`, or of its backward for all gradients but the residual's, which is dy."""

    text: str = ""
    activation: str = ""
    takes: tuple[str, ...] = ()  # beside x
    dropout: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.function} {self.text} {self.dtype} {'×'.join(map(str, self.shape))}"

    @property
    def base(self) -> str:
        return self.activation

    @property
    def public(self) -> Callable[..., Any]:
        takes = self.reads[2:] if self.backward else self.takes
        mask = gpuact.Dropout(self.dropout, seed=1) if self.dropout else None

        def forward(x: Array, *rest: Array) -> Any:
            named: dict[str, Any] = dict(zip(takes, rest, strict=True))
            return gpuact.fused(x, self.activation, dropout=mask, **named)

        def backward(dy: Array, x: Array, *rest: Array) -> Any:
            named: dict[str, Any] = dict(zip(takes, rest, strict=True))
            found = gpuact.fused_backward(dy, x, self.activation, dropout=mask, **named)
            return tuple(found[name] for name in ("x", *takes))

        return backward if self.backward else forward

    @property
    def reads(self) -> tuple[str, ...]:
        if not self.backward:
            return ("x", *self.takes)
        return ("dy", "x", *(name for name in self.takes if name != "residual"))

    @property
    def whole(self) -> bool:
        # parameters' gradients are sums, and whether an element is dropped depends on its place
        return self.backward or self.dropout > 0


AFFINE = {"scale": 2.0, "bias": 1.0}
ROWWISE: dict[str, Any] = {"reduction": "none"}
TARGET_AND_LOSS = 8 + 4  # bytes a row: an int64 and a float32

ITEM = {"float16": 2, "bfloat16": 2, "float32": 4}  # bytes an element

# -- the limits that the kernels are built for ----------------------------------------------------

LIMITS = (
    Case("relu", "bfloat16", (1 << 28,), 4),
    Case("linear", "bfloat16", (1 << 28,), 4, options=AFFINE),
    Case("sigmoid", "float32", (1 << 27,), 8),
    Case("tanh", "float32", (1 << 27,), 8),
    Case("sigmoid_backward", "bfloat16", (1 << 27,), 6),
    Case("tanh_backward", "bfloat16", (1 << 27,), 6),
    Case("prelu_backward", "bfloat16", (64, 256, 56, 56), 6),
)

ROW_LIMITS = (
    Case("softmax", "bfloat16", (32768, 256), 4, graphed=True),  # many short rows
    Case("softmax", "bfloat16", (32768, 1024), 4),
    Case("softmax", "bfloat16", (32768, 4096), 4),
    Case("softmax", "bfloat16", (8192, 4096), 4),
    Case("softmax", "bfloat16", (32768, 65536), 4),  # rows that exceed one block
    Case("softmax", "bfloat16", (8192, 262144), 4),
    Case("softmax", "float32", (16384, 131072), 8),
    Case("softmax_backward", "bfloat16", (32768, 8192), 6),
    Case("log_softmax", "bfloat16", (32768, 50257), 4),  # an odd n
    Case("cross_entropy", "bfloat16", (8192, 128256), 2, TARGET_AND_LOSS, ROWWISE),
    Case("cross_entropy_with_grad", "bfloat16", (8192, 128256), 4, TARGET_AND_LOSS, ROWWISE),
    Case("softmax", "float32", (8192, 8192), 8, options={"axis": 0}),
    Case("softmax", "bfloat16", (4, 131072), 4, graphed=True),  # bound by the launch
    Case("relu", "bfloat16", (128, 1024), 4, graphed=True),
)

GPU = (*LIMITS, *ROW_LIMITS)

# Much the same at sizes that a CPU moves in milliseconds.
CPU = (
    Case("relu", "float32", (1 << 24,), 8),
    Case("linear", "float32", (1 << 24,), 8, options=AFFINE),
    Case("sigmoid", "float32", (1 << 24,), 8),
    Case("tanh", "float32", (1 << 24,), 8),
    Case("sigmoid_backward", "float32", (1 << 23,), 12),
    Case("prelu_backward", "float32", (8, 256, 56, 56), 12),
    Case("softmax", "float32", (4096, 4096), 8),
    Case("softmax_backward", "float32", (1024, 8192), 12),
    Case("log_softmax", "float32", (128, 50257), 8),
    Case("softmax", "float32", (2048, 2048), 8, options={"axis": 0}),
    Case("cross_entropy", "float32", (128, 32000), 4, TARGET_AND_LOSS, ROWWISE),
    Case("cross_entropy_with_grad", "float32", (128, 32000), 8, TARGET_AND_LOSS, ROWWISE),
    Case("relu", "float16", (1 << 22,), 4),
    Case("softmax", "bfloat16", (1024, 4096), 4),
    Case("relu", "float32", (128, 1024), 8),  # bound by the cost of a call
)

# -- every row function ---------------------------------------------------------------------------

SMOOTHED = {**ROWWISE, "label_smoothing": 0.1}

# A row of an odd number of columns is to cost what the next multiple of 8 costs.
ODD = (("softmax", 4097, 4104), ("softmax", 50257, 50264), ("log_softmax", 50257, 50264))
_odd_and_even = (
    Case(function, "bfloat16", (32768, n), 4, compiled=False)
    for function, *columns in ODD
    for n in columns
)
_limits = {case.name for case in ROW_LIMITS}

ROWS_GPU = (
    *ROW_LIMITS,
    *(case for case in _odd_and_even if case.name not in _limits),
    Case("log_softmax_backward", "bfloat16", (32768, 50257), 6),
    Case("softmax_backward", "bfloat16", (8192, 131072), 6),  # two operands, one row a cluster
    Case("cross_entropy", "bfloat16", (8192, 128256), 2, TARGET_AND_LOSS, SMOOTHED),
    Case("cross_entropy_with_grad", "bfloat16", (8192, 128256), 4, TARGET_AND_LOSS, SMOOTHED),
)

ROWS_CPU = (
    *(Case("softmax", "float32", (1 << 24 - k, 1 << k), 8) for k in (8, 10)),
    *(case for case in CPU if case.record.kind != "elementwise"),
    Case("softmax", "float32", (64, 262144), 8),
    Case("softmax", "float32", (128, 50257), 8),
    Case("softmax", "float32", (128, 50264), 8),
    Case("log_softmax", "float32", (128, 50264), 8),
    Case("log_softmax_backward", "float32", (128, 50257), 12),
    Case("cross_entropy", "float32", (128, 32000), 4, TARGET_AND_LOSS, SMOOTHED),
    Case("cross_entropy_with_grad", "float32", (128, 32000), 8, TARGET_AND_LOSS, SMOOTHED),
    Case("softmax", "float32", (4, 131072), 8),
    CPU[-1],
)

# -- every elementwise function, and what is fused of them ----------------------------------------

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "linear": AFFINE,
    "leaky_relu": {"negative_slope": 0.01},
}


def _every(dtypes: Sequence[str], shape: tuple[int, ...], images: tuple[int, ...]) -> list[Case]:
    """Forward moves x and y, backward dy, x or y, and dx; prelu has one slope a channel of images.

    Without torch.compile: what is asked of these is the rate of a copy.
    """
    found = []
    for dtype in dtypes:
        for record in FUNCTIONS.values():
            if record.kind == "elementwise":
                size = images if record.name == "prelu" else shape
                options = OPTIONS.get(record.name, {})
                for function, arrays in ((record.name, 2), (f"{record.name}_backward", 3)):
                    moved = arrays * ITEM[dtype]
                    case = Case(function, dtype, size, moved, options=options, compiled=False)
                    found.append(case)
    return found


SCALED = "relu(scale·x + bias)"
GATED = "sigmoid(x)·gate + residual"
DROPPED = "dropout(prelu(x)) + residual"
EVERYTHING = "dropout(tanh(scale·x + bias))·gate + residual"

# What is fused, of which activation, with what, dropping how many; and how many arrays of x's size
# are moved: forward x, gate, residual and y, backward dy, x, gate, dx and dgate.
CHAINS: tuple[tuple[str, str, tuple[str, ...], float, int, int], ...] = (
    (SCALED, "relu", ("scale", "bias"), 0.0, 2, 3),
    (GATED, "sigmoid", ("gate", "residual"), 0.0, 4, 5),
    (DROPPED, "prelu", ("weight", "residual"), 0.1, 3, 3),
    (EVERYTHING, "tanh", ("scale", "bias", "gate", "residual"), 0.1, 4, 5),
)


def _chains(dtype: str, shape: tuple[int, int]) -> list[Case]:
    return [
        Chain(function, dtype, shape, arrays * ITEM[dtype], text=text, activation=activation,
              takes=takes, dropout=dropout)
        for text, activation, takes, dropout, forward, backward in CHAINS
        for function, arrays in (("fused", forward), ("fused_backward", backward))
    ]  # fmt: skip


_stated = {case.name for case in LIMITS}
ELEMENTWISE_GPU = (
    *LIMITS,
    *_chains("bfloat16", (32768, 4096)),
    *(
        case
        for case in _every(("bfloat16", "float16", "float32"), (1 << 27,), (128, 256, 64, 64))
        if case.name not in _stated
    ),
)
ELEMENTWISE_CPU = (
    *_chains("float32", (1024, 4096)),
    *_every(("float32",), (1 << 24,), (8, 256, 56, 56)),
)

# What autograd keeps is told in bytes an element, and small arrays tell it.
HELD = (
    *(c for c in _every(("bfloat16",), (1 << 16,), (4, 256, 8, 8)) if not c.backward),
    *(c for c in _chains("bfloat16", (64, 1024)) if not c.backward),
)

CALL = Case("relu", "bfloat16", (2048,), 4)  # x of 4 KiB: what the call itself costs the host


# -- the goals ------------------------------------------------------------------------------------

COPY = "copy"  # moves the case's bytes and does nothing else
IN_A_GRAPH = ", in a CUDA graph"  # behind the name of a case

# How CALL is called.
PLAIN, OUT, RECORDED = "relu(x)", "relu(x, out=y)", "relu(x) under autograd"
HOST = {way: f"{way} {CALL.dtype} 4 KiB, cost to the host" for way in (PLAIN, OUT, RECORDED)}

OURS = ("gpuact on NumPy",)
_CUPY, _TRITON = _BOTH = ("gpuact on CuPy", "gpuact on Triton")


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

_large = [c for c in ELEMENTWISE_GPU if not isinstance(c, Chain) and math.prod(c.shape) >= 1 << 27]
_fused = [c for c in ELEMENTWISE_GPU if isinstance(c, Chain)]

ELEMENTWISE_GOALS = (
    *(Goal(c.name, (COPY,), 0.95, ours=(ours,)) for c in _large for ours in _BOTH),
    *(
        Goal(c.name, ("CuPy ElementwiseKernel",), 1.5, ours=(_CUPY,))
        for c in _large
        if c.dtype == "bfloat16"
    ),
    *(Goal(c.name, ("torch",), 2.0, ours=(ours,)) for c in _fused for ours in _BOTH),
    *(
        Goal(c.name, ("torch.compile", "torch.compile, tuned"), 1.0, "not behind", (ours,))
        for c in _fused
        for ours in _BOTH
    ),
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


def _named(function: str, dtype: str, shape: str) -> Case:
    """The first of its kind: plain, before the smoothed ones."""
    return next(c for c in ROWS_GPU if c.name.startswith(f"{function} {dtype} {shape}"))


def rows_goals(device: str) -> tuple[Goal, ...]:
    """Of the rows' cases, on a GPU of this name, for the better of the two backends."""

    def rate(shape: str, least: float) -> Goal:
        """So many GB/s."""
        case = _named("softmax", "bfloat16", shape).name
        if H100 in device:
            return Goal(case, (), least, "GB/s", _BOTH)
        return Goal(case, (COPY,), least * 1e9 / H100_COPY, ours=_BOTH)

    def copied(function: str, dtype: str, shape: str, share: float) -> Goal:
        return Goal(_named(function, dtype, shape).name, (COPY,), share, ours=_BOTH)

    gradient = _named("cross_entropy_with_grad", "bfloat16", "8192×128256")
    once = gradient.bytes / H100_COPY  # seconds
    few = _named("softmax", "bfloat16", "4×131072").name
    return (
        *(rate(f"32768×{n}", least) for n, least in ((256, 1900), (1024, 2650), (4096, 2900))),
        copied("softmax", "bfloat16", "32768×65536", 0.97),
        copied("softmax", "bfloat16", "8192×262144", 0.97),
        *(
            Goal(
                _named(function, "bfloat16", f"32768×{odd}").name,
                _BOTH,
                0.97,
                ours=_BOTH,
                neighbour=_named(function, "bfloat16", f"32768×{even}").name,
            )
            for function, odd, even in ODD
        ),
        copied("log_softmax", "bfloat16", "32768×50257", 0.93),
        copied("softmax_backward", "bfloat16", "32768×8192", 0.95),
        Goal(gradient.name, (), 1.5, "ms", _BOTH)
        if H100 in device
        else Goal(gradient.name, (COPY,), once / 1.5e-3, ours=_BOTH),
        Goal(gradient.name, ("Liger",), 1.0, ours=_BOTH),
        copied("softmax", "float32", "8192×8192", 0.85),
        *(Goal(few + how, (), 1.0, ours=_BOTH) for how in ("", IN_A_GRAPH)),
    )


# -- the arrays -----------------------------------------------------------------------------------


# Kept, for neighbours in the tables take the same numbers, and 2^27 of them take a second to write.
@lru_cache(maxsize=4)
def _normal(dtype: str, count: int, seed: int = 0) -> Array:
    """Always random: zeros are moved and multiplied faster than what a network holds."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(count, np.float32).astype(numpy_dtype(dtype))


@lru_cache(maxsize=2)
def _spread(dtype: str, shape: tuple[int, ...], shift: int) -> Array:
    count = min(RANDOM, math.prod(shape))
    return np.resize(np.roll(_normal(dtype, count), shift), shape)


def _parameter(name: str, case: Case) -> Array:
    values = _normal(case.dtype, case.shape[1], seed=1)
    if name != "scale":
        return values
    # powers of two: scale·x is exact in every dtype, so no rounding carries it over a kink
    return np.ldexp(np.sign(values), np.arange(values.size) % 3 - 1).astype(values.dtype)


def inputs(case: Case) -> dict[str, Array]:
    """The arrays that the public function takes, by name and in order, on the host.

    Not to be written to: other cases are given the same ones.
    """
    arrays: dict[str, Array] = {}
    for name in case.reads:
        if name == "target":
            rng = np.random.default_rng(0)
            arrays[name] = rng.integers(case.shape[1], size=case.shape[0])
        elif name == "y":
            # only the numbers, or the rows, that are repeated need computing
            few = (min(RANDOM, math.prod(case.shape)),)
            if case.record.kind != "elementwise":
                few = (min(case.shape[0], RANDOM // case.shape[1]), *case.shape[1:])
            shape = case.shape if case.whole else few
            with gpuact.using("numpy"):
                y = getattr(gpuact, case.base)(_spread(case.dtype, shape, 0), **case.options)
            arrays[name] = np.resize(y, case.shape)
        elif name in PARAMETERS:
            arrays[name] = _parameter(name, case)
        else:
            arrays[name] = _spread(case.dtype, case.shape, len(arrays))
    return arrays
