"""A case: one call of one public function, with the bytes that it must move and its arrays.

Bytes are those that the function needs, read once and written once, whatever an implementation
does: N elements and M rows, as in `4N` for a 2-byte element read and another written. They follow
from the function's record: what it reads, what it writes. Parameters (a slope a channel) are too
small to count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

import gpuact
from gpuact.catalogue import FUNCTIONS, Function
from gpuact.libraries import numpy_dtype

from .measure import Repeated

Array = np.ndarray[Any, np.dtype[Any]]

RANDOM = (
    4_194_301  # random numbers drawn at most; prime, so that repeating them never aligns with a row
)
PARAMETERS = ("scale", "bias", "weight")  # one number a channel
NAMED = (("axis", "axis"), ("label_smoothing", "smoothing"))  # options that tell cases apart
SUFFIXES = ("_backward", "_derivative", "_with_grad", "_jacobian")

# Bytes of one number.
ITEM = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

# What there is one of for each row: a target is an int64; the others are float32, of float64
# logits float64.
ROW = ("target", "loss", "dloss", "lse")


def _loss_dtype(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


@dataclass(frozen=True)
class Case:
    """One call of one public function."""

    function: str
    dtype: str
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    compiled: bool = False  # whether torch.compile is timed too: it takes seconds a case
    headline: bool = False  # one of the short table

    @property
    def name(self) -> str:
        power = math.prod(self.shape).bit_length() - 1
        shape = f"2^{power}" if self.shape == (1 << power,) else "×".join(map(str, self.shape))
        words = [self.function, self.dtype, shape]
        words += [f"{word} {self.options[key]}" for key, word in NAMED if key in self.options]
        return " ".join(words)

    @property
    def suite(self) -> str:
        return self.record.kind

    @property
    def arrays(self) -> int:
        """How many of x's size are read and written; a Jacobian has n of them."""
        full = sum(name not in ROW and name not in PARAMETERS for name in self.reads)
        if self.function.endswith("_jacobian"):
            return full + self.shape[-1]
        return full + (self.record.kind != "loss" or self.function != self.base)

    @property
    def per_element(self) -> int:
        return self.arrays * ITEM[self.dtype]

    @property
    def per_row(self) -> int:
        """Bytes of what there is one of for each row of a loss: read, and the loss itself."""
        names = [name for name in self.reads if name in ROW]
        if names and not self.backward:
            names.append("loss")
        return sum(8 if name == "target" else ITEM[_loss_dtype(self.dtype)] for name in names)

    @property
    def bytes(self) -> int:
        return self.per_element * math.prod(self.shape) + self.per_row * self.shape[0]

    @property
    def formula(self) -> str:
        return f"{self.per_element}N" + (f" + {self.per_row}M" if self.per_row else "")

    @property
    def base(self) -> str:
        """The function that this one is the backward or the derivative of, or itself."""
        name = self.function
        for suffix in SUFFIXES:
            name = name.removesuffix(suffix)
        return name

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
        if self.function.endswith("_jacobian"):
            return ("y",)
        if self.function.endswith("_derivative"):
            arrays: tuple[str, ...] = ("x",)
        elif self.backward and record.sums:
            arrays = ("dy", "x")
        else:
            arrays = (record.backward if self.backward else record.forward).reads
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
    def suite(self) -> str:
        return "fused"

    @property
    def base(self) -> str:
        return self.activation

    @property
    def arrays(self) -> int:
        """Forward x, gate, residual and y; backward dy, x, gate, dx and dgate."""
        full = sum(name not in PARAMETERS for name in self.reads)
        return full + 1 + (self.backward and "gate" in self.takes)

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


@dataclass(frozen=True)
class Watched(Case):
    """Statistics of an activation's outputs: `activation_with_stats`, which computes them, or
    `activation_stats` of those that are there. A unit is a column."""

    activation: str = ""

    @property
    def name(self) -> str:
        return f"{self.function} {self.activation} {self.dtype} {'×'.join(map(str, self.shape))}"

    @property
    def suite(self) -> str:
        return "stats"

    @property
    def base(self) -> str:
        return self.activation

    @property
    def plain(self) -> Case:
        """The activation alone."""
        return Case(self.activation, self.dtype, self.shape)

    @property
    def computes(self) -> bool:
        return self.function == "activation_with_stats"

    @property
    def arrays(self) -> int:
        return 1 + self.computes

    @property
    def public(self) -> Callable[..., Any]:
        """What is kept on the device is the result: to read a figure would wait for it."""

        def with_stats(x: Array) -> tuple[Array, Any]:
            y, stats = gpuact.activation_with_stats(x, self.activation)
            return y, stats.moments

        def of_outputs(y: Array) -> Any:
            return gpuact.activation_stats(y, self.activation).moments

        return with_stats if self.computes else of_outputs

    @property
    def reads(self) -> tuple[str, ...]:
        return ("x",) if self.computes else ("y",)

    @property
    def whole(self) -> bool:
        return True  # moments are of all elements


# -- the arrays -----------------------------------------------------------------------------------


# Kept, for neighbours in the tables take the same numbers.
@lru_cache(maxsize=8)
def _normal(dtype: str, count: int, seed: int = 0) -> Array:
    """Always random: zeros are moved and multiplied faster than what a network holds."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(count, np.float32).astype(numpy_dtype(dtype))


def _spread(dtype: str, shape: tuple[int, ...], shift: int) -> Repeated:
    count = min(RANDOM, math.prod(shape))
    return Repeated(np.roll(_normal(dtype, count), shift), shape)


def _parameter(name: str, case: Case) -> Array:
    values = _normal(case.dtype, case.shape[1], seed=1)
    if name != "scale":
        return values
    # powers of two: scale·x is exact in every dtype, so no rounding carries it over a kink
    return np.ldexp(np.sign(values), np.arange(values.size) % 3 - 1).astype(values.dtype)


def _output(case: Case, x: Repeated) -> Array | Repeated:
    """The y of x: only the numbers, or the rows, that are repeated need computing."""
    of_rows = case.record.kind != "elementwise"
    few = _few_rows(case) if of_rows else (min(RANDOM, math.prod(case.shape)),)
    with gpuact.using("numpy"):
        function = getattr(gpuact, case.base)
        if of_rows and case.whole:
            return np.asarray(function(x.whole(), **case.options))
        y = function(np.resize(x.base, few), **case.options)
    return Repeated(y.reshape(-1), case.shape)


def _few_rows(case: Case) -> tuple[int, ...]:
    return (min(case.shape[0], max(1, RANDOM // case.shape[1])), *case.shape[1:])


def _loss_and_what_it_read(case: Case) -> dict[str, Array | Repeated]:
    """What cross_entropy_backward reads: an lse for each row, so the rows are what repeats."""
    rows = _few_rows(case)
    logits = np.resize(_normal(case.dtype, min(RANDOM, math.prod(case.shape))), rows)
    target = _target(case)
    with gpuact.using("numpy"):
        _, lse = gpuact.cross_entropy(
            logits, target[: rows[0]] * 0, return_lse=True, **case.options
        )
    return {
        "dloss": np.resize(_normal(_loss_dtype(case.dtype), case.shape[0]), case.shape[:1]),
        "logits": Repeated(logits.reshape(-1), case.shape),
        "target": target,
        "lse": np.resize(lse, case.shape[:1]),
    }


def _target(case: Case) -> Array:
    return np.random.default_rng(0).integers(case.shape[1], size=case.shape[0])


def sources(case: Case) -> dict[str, Array | Repeated]:
    """The arrays that the public function takes, by name and in order."""
    if "lse" in case.reads:
        return _loss_and_what_it_read(case)
    arrays: dict[str, Array | Repeated] = {}
    for name in case.reads:
        if name == "target":
            arrays[name] = _target(case)
        elif name == "y":
            # of another x than dy, whose sign would else tell which side of a kink y is on
            arrays[name] = _output(case, _spread(case.dtype, case.shape, len(arrays)))
        elif name in PARAMETERS:
            arrays[name] = _parameter(name, case)
        else:
            arrays[name] = _spread(case.dtype, case.shape, len(arrays))
    return arrays


def whole(array: Array | Repeated) -> Array:
    return array.whole() if isinstance(array, Repeated) else array


def inputs(case: Case) -> dict[str, Array]:
    """The same on the host, in full. Not to be written to: some are given to other cases too."""
    return {name: whole(array) for name, array in sources(case).items()}


def every(cases: Sequence[Case], *, apart_from: Sequence[Case]) -> list[Case]:
    """Each once, but for those whose names are among the others."""
    names = {case.name for case in apart_from}
    first: dict[str, Case] = {}
    for case in cases:
        first.setdefault(case.name, case)
    return [case for name, case in first.items() if name not in names]
