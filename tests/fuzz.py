"""The whole public API under random arguments: what is allowed must be right, junk refused.

    python -m tests.fuzz --calls 1000000 --seed 0 --workers 2 --record tests/records/fuzz.json
    python -m tests.fuzz --only SEED        one call again, in this process, with all that it was

Six calls of ten are valid: arguments that the documentation allows, of any dtype, shape and layout.
They must return, and be right: type, dtype, shape, values by `tests.truth` within `tests.bounds`,
inputs as they were. In the others (hostile) junk takes the place of one to three arguments. These
are refused, by an error that gpuact raises itself, a sentence that names an argument, with nothing
written; or they return, and where the junk still has a meaning, the result must be right as well.

Arrays lie amid poison, which is compared after each call. Warnings and NumPy's floating-point
errors are errors. A process of its own makes the calls: what ends it, or stops it for `PATIENCE`
seconds, is a finding like all others, known by the seed of the call.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import json
import linecache
import math
import multiprocessing
import os
import platform
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from dis import opmap
from fractions import Fraction
from functools import cache, partial
from importlib import metadata
from inspect import signature
from operator import index
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np

import gpuact
from gpuact.catalogue import FUNCTIONS
from gpuact.fusion import Dropout
from tests import bounds, truth
from tests.bounds import DTYPES, FORMATS, check, compute_dtype
from tests.test_functions import ELEMENTWISE, Public, as_rows, sums
from tests.test_fused import Case as FusedCase
from tests.test_scores import Case as ScoresCase
from tests.truth import LONG, Array

FINDINGS = ("crash", "hang", "harness", "raw", "warning", "wrong")
PATIENCE = 5.0  # seconds for a call
SPAN = 10**9  # seeds of calls: that of the run, times this, and the number of the call
HOSTILE = 0.4
FLOATING = tuple(DTYPES)
INTEGERS = tuple(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))
Args = dict[str, Any]


@cache
def torch_or_none() -> Any:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    torch.set_num_threads(1)
    return torch


class Unjudged(Exception):
    """The documentation does not say what these arguments mean."""


class Wrong(Exception):
    """The result is not what it must be."""


class Mine(Exception):
    """Raised by what the caller brought along."""


# -- one call being made up -----------------------------------------------------------------------

GUARD, POISON = 64, 0xA5
STEPS = (1, 1, 1, 1, 1, 2, 3, -1, -2, 0)
APART = (1, 1, 2, -1)


class Memory:
    """Bytes in which an array lies amid poison."""

    def __init__(self, size: int) -> None:
        self.bytes = np.full(size, POISON, np.uint8)
        self.start = self.bytes.ctypes.data
        self.before = b""

    def settle(self) -> None:
        self.before = self.bytes.tobytes()

    def written(self, out: Any) -> bool:
        """Whether a byte changed that is no element's of `out`."""
        if self.bytes.tobytes() == self.before:
            return False
        lies = None if out is None else where(out)
        if lies is None or not self.start <= lies[0] < self.start + self.bytes.size:
            return True
        address, shape, strides, item = lies
        outside = np.ones(self.bytes.size, bool)
        seen = (*shape, item), (*strides, 1)
        np.ndarray(seen[0], bool, outside, address - self.start, seen[1])[...] = False
        before = np.frombuffer(self.before, np.uint8)
        return bool((self.bytes != before)[outside].any())


def where(a: Any) -> tuple[int, tuple[int, ...], tuple[int, ...], int] | None:
    """Address, shape, strides in bytes, itemsize; None of what has no memory."""
    if isinstance(a, np.ndarray):
        return a.__array_interface__["data"][0], a.shape, a.strides, a.itemsize
    try:
        item = a.element_size()
        return a.data_ptr(), tuple(a.shape), tuple(item * s for s in a.stride()), item
    except (AttributeError, RuntimeError, NotImplementedError):
        return None


class Call:
    """One call's random choices, its library, and the memory of its arrays."""

    def __init__(self, seed: int, libraries: Sequence[str]) -> None:
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.library = self.of(libraries)
        self.mode = "hostile" if self.chance(HOSTILE) else "valid"
        self.memories: list[Memory] = []
        self.context = ExitStack()
        self.spoiled: dict[str, str] = {}

    @property
    def torch(self) -> bool:
        return self.library == "torch"

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def below(self, n: int) -> int:
        return int(self.rng.random() * n)

    def of(self, options: Sequence[Any]) -> Any:
        return options[self.below(len(options))]

    def shape(self, least: int = 0) -> tuple[int, ...]:
        """Of up to five axes and some sixty elements; now and then of some thousand, or of none."""
        most = 6000 if self.chance(0.004) else 60
        ndim = max(least, self.of((0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5)))
        sizes = (
            (0, *(1, 1, 1), *(2, 3, 4, 5) * 2, 7, 8, 17, 33) if most == 60 else (1, 2, 5, 40, 999)
        )
        shape: list[int] = []
        for _ in range(ndim):
            n = self.of(sizes)
            shape.append(n if math.prod(shape) * n <= most else 1)
        self.rng.shuffle(shape)
        return tuple(shape)

    def axis(self, ndim: int) -> int:
        return self.below(2 * ndim) - ndim if ndim else self.of((0, -1))

    # -- arrays

    def array(self, x: Any, steps: Sequence[int] = STEPS, more: int = 0) -> Any:
        """x as an array of this call's library, in memory of its own, laid out in some way.

        steps: from an element to the next, 0 to share them; more: bytes of the first axis beyond.
        """
        x = np.asarray(x)
        if self.torch and x.dtype.name not in TENSORS:
            return x
        lies_plain = self.chance(0.5)
        axes = list(range(x.ndim))
        if not lies_plain and self.chance(0.5):
            self.rng.shuffle(axes)
        strides, stride, low = [0] * x.ndim, x.itemsize, 0
        for k in reversed(axes):
            step = 1 if lies_plain else self.of(steps)
            if self.torch:
                step = abs(step)
            if step == 0 and x.shape[k] > 1:
                x = x[(*[slice(None)] * k, slice(0, 1))].repeat(x.shape[k], k)
            strides[k] = stride * step
            low += max(0, (x.shape[k] - 1) * -strides[k])
            stride *= max(1, x.shape[k] * abs(step)) if x.size else 1
        odd = 0 if lies_plain else self.below(16)
        start = GUARD + low + (odd if not self.torch and self.chance(0.2) else odd * x.itemsize)
        memory = Memory(start + stride + GUARD + more)
        seen: Array = np.ndarray(x.shape, x.dtype, memory.bytes, start, strides)
        seen[...] = x
        memory.settle()
        self.memories.append(memory)
        return self.native(memory, seen, start)

    def native(self, memory: Memory, seen: Array, start: int) -> Any:
        if not self.torch:
            return seen
        torch, item = torch_or_none(), seen.itemsize
        bits = seen.dtype if seen.dtype.kind in "biuf" else np.dtype(f"i{item}")
        flat = torch.from_numpy(memory.bytes[: memory.bytes.size // item * item].view(bits))
        if bits is not seen.dtype:
            flat = flat.view(getattr(torch, seen.dtype.name))
        return flat.as_strided(seen.shape, [s // item for s in seen.strides], start // item)

    def floats(
        self, shape: Sequence[int], dtype: str, special: Sequence[float] = (), size: float = 2.0
    ) -> Array:
        x = self.rng.standard_normal(shape) * size
        if special and self.chance(0.5):
            x = np.where(self.rng.random(shape) < 1 / 3, self.rng.choice(special, shape), x)
        with np.errstate(all="ignore"):
            return np.asarray(x).astype(DTYPES[dtype])

    def given(
        self, shape: Sequence[int], special: Sequence[float] = (), *, integers: bool = True
    ) -> Any:
        """What may stand for an array of numbers: an array of any dtype; of NumPy's, a list too."""
        kind = self.rng.random()
        if integers and kind < 0.12:
            dtype = self.of(INTEGERS)
            x = self.rng.integers(0 if dtype[0] == "u" else -5, 6, shape).astype(dtype)
        elif integers and kind < 0.15 and integers != "no bool":
            x = self.rng.random(shape) < 0.5
        else:
            x = self.floats(shape, self.of(FLOATING), special)
        if not self.torch and kind > 0.95 and x.dtype.name != "bfloat16" and x.size:
            return x.tolist()
        a = self.array(x)
        if not self.torch and kind > 0.85:
            a.flags.writeable = False
        return a

    def number(self, special: Sequence[float] = ()) -> Any:
        value = self.of((*special, 0.0, 1.0, -1.5, 0.25, 2, -3, True, 0.01, 1e-8))
        if self.chance(0.2):
            kind = self.of((np.float32, np.float64, np.float16, np.int8, float))
            return kind(value) if np.isfinite(value) or kind is not np.int8 else value
        return value

    def parameter(self, shape: Sequence[int], special: Sequence[float] = ()) -> Any:
        """A number, or an array of this shape."""
        return self.number(special) if self.chance(0.4) else self.given(shape, special)

    def broadcast(self, shape: Sequence[int], whole: bool = False) -> tuple[int, ...]:
        """One that broadcasts to `shape`, of as many axes if `whole`."""
        own = tuple(1 if self.chance(0.4) else n for n in shape)
        return own if whole else own[self.below(len(own) + 1) :]

    def outlet(self, x: Any, shape: tuple[int, ...], dtype: str) -> tuple[Any, Any]:
        """x, and an `out` for its result: None, fresh, x itself, or beside it in its memory."""
        kind = self.rng.random()
        if kind < 0.65 or dtype in ("", None):
            return x, None
        lies = where(x)
        same = lies is not None and dtype_of(x) == dtype and lies[1] == shape
        if same and kind < 0.75 and writable(x):
            return x, x
        if same and kind < 0.85 and shape and 0 not in shape:
            whole = np.zeros((shape[0] + 1, *shape[1:]), DTYPES.get(dtype) or np.dtype(dtype))
            memory = self.array(whole, APART)
            first, second = memory[:-1], memory[1:]
            if self.chance(0.5):
                first, second = second, first
            copy_into(first, x)
            self.memories[-1].settle()
            return first, second
        blank = np.full(shape, 77 if DTYPES.get(dtype) is None else np.nan)
        with np.errstate(all="ignore"):
            blank = blank.astype(DTYPES.get(dtype) or np.dtype(dtype))
        return x, self.array(blank, APART)


TENSORS = {*FLOATING, *INTEGERS, "bool", "complex64", "complex128"}


def dtype_of(a: Any) -> str:
    return str(getattr(a, "dtype", "")).removeprefix("torch.")


def writable(a: Any) -> bool:
    _, shape, strides, _ = where(a) or (0, (), (), 0)
    apart = all(s for n, s in zip(shape, strides, strict=True) if n > 1)
    return apart and bool(not isinstance(a, np.ndarray) or a.flags.writeable)


def copy_into(a: Any, b: Any) -> None:
    if isinstance(a, np.ndarray):
        a[...] = b
    else:
        a.copy_(b)


# -- what arguments mean --------------------------------------------------------------------------

UNKNOWN = object()  # a snapshot of what nobody can say anything of
PLAIN = (bool, int, float, str, list, tuple, Dropout)


def snapshot(value: Any) -> Any:
    """An argument as it is before the call; arrays as NumPy's, in memory of their own."""
    if value is None or type(value) in PLAIN or isinstance(value, np.generic | np.dtype | type):
        return value
    if isinstance(value, np.ma.MaskedArray):
        return UNKNOWN
    if isinstance(value, memoryview | array | Fraction):
        return value if isinstance(value, Fraction) else snapshot(np.asarray(value))
    if isinstance(value, np.ndarray):
        name = value.dtype.name
        if name not in TENSORS:
            return UNKNOWN
        return np.array(value, DTYPES.get(name) or np.dtype(name), subok=False)
    torch = torch_or_none() if "torch" in sys.modules else None
    if torch is None or not isinstance(value, torch.Tensor):
        return value if torch is not None and isinstance(value, torch.dtype) else UNKNOWN
    return from_tensor(value) if plain_tensor(value) else UNKNOWN


def plain_tensor(value: Any) -> bool:
    torch = torch_or_none()
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and str(value.dtype).removeprefix("torch.") in TENSORS
        and not value.is_nested
        and not (value.numel() and not value.data_ptr())
    )


def from_tensor(value: Any) -> Array:
    value = value.detach().resolve_neg().resolve_conj()
    if value.dtype == torch_or_none().bfloat16:
        return (
            value.contiguous().view(torch_or_none().int16).numpy().view(DTYPES["bfloat16"]).copy()
        )
    return value.numpy().copy()


@dataclass
class Reading:
    """A call's arguments as the documentation has them; Unjudged where it has not."""

    args: Args  # as they were given
    seen: Args  # snapshots
    libraries: set[str] = field(default_factory=set)

    def raw(self, name: str, default: Any = None) -> Any:
        value = self.seen.get(name, default)
        if value is UNKNOWN:
            raise Unjudged(name)
        return value

    def array(self, name: str) -> Array:
        value = self.raw(name)
        tensor = hasattr(self.args[name], "data_ptr")
        self.libraries.add("torch" if tensor else "numpy")
        if not isinstance(value, np.ndarray):
            if value is None or isinstance(value, str | type | np.dtype | Dropout):
                raise Unjudged(name)
            try:
                value = np.asarray(value)
            except (ValueError, TypeError, OverflowError):
                raise Unjudged(name) from None
        if value.dtype.name not in (*FLOATING, *INTEGERS, "bool"):
            raise Unjudged(name)
        if value.ndim > 30:  # NumPy's own functions for several arrays end there
            raise Unjudged(name)
        return value

    def floating(self, name: str, dtype: str | None = None) -> Array:
        a = self.array(name)
        return self.cast(a, dtype or (a.dtype.name if a.dtype.name in FLOATING else "float32"))

    def cast(self, a: Array, dtype: str) -> Array:
        """PyTorch rounds float64 to a half type by way of float32."""
        half = dtype in ("float16", "bfloat16") and a.dtype == np.float64
        return cast(cast(a, "float32") if half and "torch" in self.libraries else a, dtype)

    def number(self, name: str, default: Any = None) -> float:
        value = self.raw(name, default)
        if isinstance(value, np.generic) and value.dtype.name == "bfloat16":
            return float(value)
        if not isinstance(value, int | float | Fraction | np.floating | np.integer):
            raise Unjudged(name)
        try:
            return float(value)
        except OverflowError:
            raise Unjudged(name) from None

    def parameter(self, name: str, default: Any = None) -> Array | float:
        try:
            return self.number(name, default)
        except Unjudged:
            if not isinstance(self.raw(name), np.ndarray | list | tuple):
                raise
            return self.floating(name)

    def whole(self, name: str, default: Any = None) -> int:
        value = self.raw(name, default)
        try:
            number = index(value)
        except TypeError:
            raise Unjudged(name) from None
        if not -(2**63) <= number < 2**63:
            raise Unjudged(name)
        return number

    def axes(self, ndim: int, name: str = "axis", default: Any = -1) -> Any:
        """As `as_rows` takes them."""
        axis = self.raw(name, default)
        if axis is None:
            return None
        if isinstance(axis, np.ndarray):
            axis = self.whole(name)
        several = isinstance(axis, tuple | list)
        try:
            axes = [index(a) for a in (axis if several else (axis,))]
        except TypeError:
            raise Unjudged(name) from None
        if ndim == 0:
            if axes in ([], [0], [-1]):
                return None
            raise Unjudged(name)
        if not all(-ndim <= a < ndim for a in axes) or len({a % ndim for a in axes}) < len(axes):
            raise Unjudged(name)
        if not axes:
            raise Unjudged(name)
        return tuple(axes)

    def flag(self, name: str) -> bool:
        value = self.raw(name, False)
        if not isinstance(value, bool | np.bool_):
            raise Unjudged(name)
        return bool(value)

    def library(self) -> str:
        if len(self.libraries) != 1:
            raise Unjudged("arrays of several libraries")
        return next(iter(self.libraries))


def cast(a: Array, dtype: str) -> Array:
    with np.errstate(all="ignore"):
        return a.astype(DTYPES.get(dtype) or np.dtype(dtype))


@dataclass
class Expected:
    """A result: value and allowed error in extended precision, or the value alone (exactly)."""

    value: Any
    dtype: str
    shape: tuple[int, ...]
    allowed: Any = None

    def at(self, shape: Sequence[int]) -> Expected:
        allowed = None if self.allowed is None else np.broadcast_to(self.allowed, self.shape)
        value = np.broadcast_to(self.value, self.shape).reshape(shape)
        return Expected(
            value, self.dtype, tuple(shape), None if allowed is None else allowed.reshape(shape)
        )


Oracle = Callable[[Reading], Any]


def wide(value: Any, dtype: str) -> Array:
    """A parameter in the precision of the computation."""
    with np.errstate(all="ignore"):
        return np.asarray(value).astype(DTYPES[compute_dtype(dtype)])


def fits(own: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to another and no further, with ones in front."""
    padded = (1,) * (len(shape) - len(own)) + own
    if len(own) > len(shape) or any(n not in (1, m) for n, m in zip(padded, shape, strict=True)):
        raise Unjudged(f"{own} does not broadcast to {shape}")
    return padded


def meets(
    r: Reading, own: tuple[int, ...], shape: tuple[int, ...], default: int
) -> tuple[int, ...]:
    """The shape in which a learned parameter meets x."""
    ndim, axis = len(shape), r.whole("channel_axis", default)
    if math.prod(own) == 1 and len(own) <= 1:
        return (1,) * ndim
    if len(own) == 1 and not (ndim == 1 and axis == 1):
        if not -ndim <= axis < ndim or own[0] != shape[axis]:
            raise Unjudged("channels")
        return tuple(own[0] if k == axis % ndim else 1 for k in range(ndim))
    if len(own) == ndim:
        return fits(own, shape)
    raise Unjudged("channels")


def same_shape(a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise Unjudged("shapes differ")


# -- elementwise ----------------------------------------------------------------------------------

INF = np.inf
SPECIAL = (np.nan, INF, -INF, 0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38, 20.0, -88.5, 104.0, -746.0)
TAME = (np.nan, 0.0, -0.0, 30.0)
OF_DY = (np.nan, 0.0, -0.0, 1e-3, -1e4)


def draw_x(c: Call, public: Public, shape: tuple[int, ...], special: Sequence[float]) -> Any:
    integers = public.function.integers
    kept = integers == "kept" and public.kernel is public.function.forward
    return c.given(
        shape, special, integers={"refused": False}.get(integers, "no bool" if kept else True)
    )


def draw_stored(c: Call, public: Public, what: str, shape: tuple[int, ...]) -> Any:
    """What backward reads: x, or y within its range."""
    if what == "x":
        return c.given(
            shape,
            SPECIAL[:7] if not public.function.sums else TAME,
            integers=public.function.integers != "refused",
        )
    dtype = c.of(FLOATING)
    x = c.floats(shape, "float64")
    y = {"sigmoid": lambda: 1 / (1 + np.exp(-x)), "tanh": lambda: np.tanh(x)}
    made = y.get(public.function.name, lambda: np.maximum(x, 0))()
    return c.array(np.asarray(made).astype(DTYPES[dtype]))


def draw_elementwise(c: Call, public: Public) -> Args:
    shape = c.shape()
    args: Args = {}
    function, sums_too = public.function, public.function.sums
    if "dy" in public.arrays:
        stored = public.arrays[1]
        dy = c.given(shape, OF_DY if not sums_too else TAME[:3])
        args = {"dy": dy, stored: draw_stored(c, public, stored, shape)}
    else:
        args["x"] = draw_x(c, public, shape, SPECIAL if function.name != "linear" else SPECIAL[:7])
    for name in public.parameters:
        if name == "negative_slope":
            args[name] = c.number((np.nan,))
        elif name == "weight":
            channel_axis = c.axis(len(shape)) if shape else 1
            own = c.of(
                ((), (1,), (shape[channel_axis],) if shape else (1,), c.broadcast(shape, True))
            )
            args[name] = c.parameter(own)
            if len(own) == 1 or c.chance(0.2):
                args["channel_axis"] = channel_axis
        else:
            args[name] = c.parameter(c.broadcast(shape), TAME[:3])
    if "dy" not in public.arrays:
        dtype = dtype_of(args["x"]) if hasattr(args["x"], "dtype") else ""
        if dtype and dtype not in FLOATING and public.name != "relu":
            dtype = "float32"
        args["x"], out = c.outlet(args["x"], shape, dtype)
        if out is not None:
            args["out"] = out
    optional = [n for n in ("scale", "bias", "negative_slope") if n in args]
    if "dy" not in args and optional and c.chance(0.2):
        del args[c.of(optional)]
    return args


def taken(r: Reading, public: Public, name: str) -> Array:
    """x or y as an activation takes it."""
    a, integers = r.array(name), public.function.integers
    if a.dtype.name in FLOATING:
        return a
    if integers == "refused":
        raise Unjudged(name)
    if integers == "kept" and public.kernel is public.function.forward:
        if a.dtype == bool:
            raise Unjudged(name)
        return a
    return cast(a, "float32")


def judge_elementwise(r: Reading, public: Public) -> Any:
    x = taken(r, public, public.arrays[-1])
    dtype, shape = x.dtype.name, x.shape
    function = public.function
    params: Args = {}
    for name, default in function.defaults.items():
        if name == "negative_slope":
            params[name] = r.number(name, default)
            continue
        p = r.parameter(name, default)
        params[name] = p
        if isinstance(p, np.ndarray):
            rule = meets(r, p.shape, shape, 1) if name == "weight" else fits(p.shape, shape)
            params[name] = p.reshape(rule)
    if "weight" in params:
        r.whole("channel_axis", 1)
    if dtype not in FLOATING:
        return Expected(np.maximum(x, 0), dtype, shape)
    arrays = [x]
    if public.arrays[-1] == "y" and function.name != "relu" and (np.abs(x) > 1).any():
        raise Unjudged("y out of its range")
    if "dy" in public.arrays:
        dy = r.array("dy")
        same_shape(dy, x)
        arrays = [r.cast(dy, dtype), x]
    entered = {name: wide(p, dtype) for name, p in params.items()}
    operands = public.operands(arrays, entered)
    formula = public.kernel.formula
    value = np.broadcast_to(truth.elementwise(formula, *operands), shape)
    allowed = bounds.elementwise(formula, "numpy", dtype, operands, value)
    if formula == "linear" and not all(np.isfinite(truth.long(p)).all() for p in operands[1:]):
        allowed = np.where(np.isfinite(value), INF, allowed)  # overflow on the way to infinity
    found = Expected(value, dtype, shape, allowed)
    if "dy" not in public.arrays or not function.sums:
        return found
    gradients = [found]
    if any((np.abs(truth.long(a)) > 1e15).any() for a in arrays):
        raise Unjudged("sums that overflow, perhaps")
    for name, step in function.sums.items():
        p = params[name]
        array = isinstance(p, np.ndarray)
        own = r.parameter(name).shape if array else ()
        kind = p.dtype.name if array else dtype
        read = dict(zip(public.arrays, arrays, strict=True))
        reads = tuple(read[what] for what in step.reads)
        of_sum = sums(step.formula, reads, p.shape if array else (1,) * x.ndim, kind, own)
        off = of_sum[1] + x.size * bounds.ulp(LONG(0), compute_dtype(dtype))  # of tiny terms
        gradients.append(Expected(of_sum[0], kind, own, off))
    return tuple(gradients)


# -- fused ----------------------------------------------------------------------------------------

ACTIVATIONS = [f.name for f in FUNCTIONS.values() if f.kind == "elementwise"]


def draw_fused(c: Call, backward: bool) -> Args:
    shape, activation = c.shape(), c.of(ACTIVATIONS)
    refused = FUNCTIONS[activation].integers == "refused"
    kept = FUNCTIONS[activation].integers == "kept"
    special = TAME[1:] if backward or c.torch else TAME
    x = c.given(shape, special, integers=False if refused else "no bool" if kept else True)
    args: Args = {"dy": c.given(shape, TAME[1:3])} if backward else {}
    args |= {"x": x, "activation": activation}
    channel_axis = c.axis(len(shape)) if shape else -1
    for name in ("scale", "bias", "weight"):
        if (name == "weight") != (activation == "prelu") and name == "weight":
            continue
        if name == "weight" or c.chance(0.4):
            channels = (shape[channel_axis],) if shape else (1,)
            own = c.of(((), (1,), channels, channels, c.broadcast(shape, True)))
            args[name] = c.parameter(own)
            if len(own) == 1:
                args["channel_axis"] = channel_axis
    for name in ("gate", "residual"):
        if c.chance(0.25):
            args[name] = c.given(shape, TAME[1:3])
    if activation == "leaky_relu" or c.chance(0.1):
        args["negative_slope"] = c.number()
    if c.chance(0.3):
        args["dropout"] = Dropout(
            c.of((0.0, 0.5, 0.3, 1.0, 1e-11)), c.below(2**40), c.of((0, 7, 2**63))
        )
    if not backward and hasattr(x, "dtype"):
        dtype = dtype_of(x) if dtype_of(x) in FLOATING else "float32"
        args["x"], out = c.outlet(x, shape, dtype)
        if out is not None:
            args["out"] = out
    return args


def read_fused(r: Reading) -> tuple[FusedCase, dict[str, Any]]:
    """The case, and each parameter's own shape and dtype."""
    activation = r.raw("activation")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise Unjudged("activation")
    if (r.raw("weight") is None) == (activation == "prelu"):
        raise Unjudged("weight")
    x = r.array("x")
    integers = FUNCTIONS[activation].integers
    if x.dtype.name not in FLOATING:
        if integers == "refused" or (integers == "kept" and x.dtype == bool):
            raise Unjudged("x")
        x = cast(x, "float32")
    dtype = x.dtype.name
    given: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name in ("scale", "bias", "weight"):
        if r.raw(name) is None:
            continue
        p = r.parameter(name)
        own[name] = (p.shape, p.dtype.name) if isinstance(p, np.ndarray) else ((), dtype)
        if isinstance(p, np.ndarray):
            p = wide(p, dtype).reshape(meets(r, p.shape, x.shape, -1))
        given["slope" if name == "weight" else name] = p
    slope = r.number("negative_slope", 0.01)
    if activation == "leaky_relu":
        given["slope"] = slope
    for name in ("gate", "residual"):
        if r.raw(name) is not None:
            a = r.floating(name)
            same_shape(a, x)
            own[name] = a.shape, a.dtype.name
            given[name] = wide(a, dtype)
    dropout = r.raw("dropout")
    if dropout is not None and type(dropout) is not Dropout:
        raise Unjudged("dropout")
    r.whole("channel_axis", -1)
    if not all((np.abs(truth.long(p)) < 1e15).all() for p in given.values()):
        raise Unjudged("parameters that are no numbers, or overflow")
    if ((np.abs(truth.long(x)) > 1e15) & np.isfinite(truth.long(x))).any():
        raise Unjudged("x that overflows, perhaps")
    return FusedCase(activation, x, dropout=dropout, **given), own


def judge_fused(r: Reading) -> Any:
    case, _ = read_fused(r)
    dtype = case.x.dtype.name
    value = np.broadcast_to(case.forward(), case.x.shape)
    with np.errstate(all="ignore"):
        allowed = case.errors(np.zeros_like(case.x))["y"]
        allowed = np.where(np.isnan(allowed), 0, allowed)  # of NaN that is dropped
        allowed = allowed + 2 * bounds.stored(value, dtype)
    return Expected(value, dtype, case.x.shape, allowed)


def judge_fused_backward(r: Reading, named: bool = True) -> Any:
    case, own = read_fused(r)
    dtype, shape = case.x.dtype.name, case.x.shape
    dy = r.array("dy")
    same_shape(dy, case.x)
    dy = r.cast(dy, dtype)
    if not all((np.abs(truth.long(a)) < 1e15).all() for a in (dy, case.x)):
        raise Unjudged("at NaN a derivative may be that of either side")
    terms, errors, decided = (
        case.backward(dy),
        case.errors(dy),
        np.broadcast_to(case.decided(), shape),
    )
    unit = LONG(2) ** (1 - FORMATS[compute_dtype(dtype)].digits)
    found: dict[str, Expected] = {}
    for name in ("x", "scale", "bias", "weight", "gate"):
        slot = "slope" if name == "weight" else name
        if name not in ("x", *own):
            continue
        kept, kind = (shape, dtype) if name == "x" else own[name]
        p = case.x if name == "x" else getattr(case, slot)
        value = np.broadcast_to(terms[slot], shape)
        with np.errstate(all="ignore"):
            allowed = np.broadcast_to(errors[slot], shape)
            allowed = np.where(decided, allowed, INF)
            met = p.shape if isinstance(p, np.ndarray) else (1,) * len(shape)
            axes = tuple(k for k, n in enumerate(met) if n == 1)
            size = np.abs(value).sum(axes, keepdims=True)
            n = max(2, value.size // max(1, size.size))
            allowed = allowed.sum(axes, keepdims=True) + unit * size * bounds.row(n) * (n > 1)
            value = value.sum(axes, keepdims=True)
            allowed = allowed + bounds.stored(value, kind)
        found[name] = Expected(value.reshape(kept), kind, kept, allowed.reshape(kept))
    if "residual" in own:
        kind = own["residual"][1]
        found["residual"] = Expected(truth.long(r.cast(dy, kind)), kind, shape, 0.0)
    return found


# -- rows -----------------------------------------------------------------------------------------

OF_ROWS = (-INF, 0.0, -0.0, 12.0, -30.0, 12.0, 0.0)


def draw_axes(c: Call, ndim: int) -> Any:
    kind = c.rng.random()
    if kind < 0.1:
        return None
    if kind < 0.25 and ndim:
        axes = c.rng.permutation(ndim)[: 1 + c.below(ndim)].tolist()
        axes = [a - ndim if c.chance(0.3) else a for a in axes]
        return axes if c.chance(0.2) else tuple(axes)
    axis = c.axis(ndim)
    return np.int64(axis) if kind > 0.95 else axis


def draw_rows(c: Call, name: str) -> Args:
    shape = c.shape()
    special = (*OF_ROWS, INF, np.nan) if c.chance(0.15) else OF_ROWS
    x = c.given(shape, special)
    args: Args = {"x": x}
    if c.chance(0.8):
        args["axis"] = draw_axes(c, len(shape))
    scored = name == "softmax" and c.chance(0.5)
    dtype = dtype_of(x) if dtype_of(x) in FLOATING else "float32" if hasattr(x, "dtype") else ""
    if c.chance(0.15):
        dtype = c.of(FLOATING)
        args["dtype"] = dtype
        if c.chance(0.5):
            args["dtype"] = getattr(torch_or_none(), dtype) if c.torch else DTYPES[dtype]
    if scored:
        x = c.floats(shape, c.of(FLOATING), (0.0, 12.0, -30.0))
        args |= {"x": c.array(x), "scale": c.of((1.0, 0.5, 2, -1.5, 0.0, np.float32(0.125)))}
        dtype = dtype if "dtype" in args else x.dtype.name
        if c.chance(0.6):
            own = c.broadcast(shape)
            part = np.asarray(c.rng.random(own) < 2 / 3)
            kind = c.of(FLOATING)
            added = np.where(part, c.rng.standard_normal(own), c.of((-INF, -40.0)))
            args["mask"] = c.array(part if c.chance(0.5) else added.astype(DTYPES[kind]))
        if len(shape) > 1 and c.chance(0.4):
            args |= {"causal": True, "axis": c.of((-1, len(shape) - 1))}
        if c.chance(0.4):
            args["all_masked"] = c.of(("nan", "zero"))
    if dtype:
        args["x"], out = c.outlet(args["x"], shape, dtype)
        if out is not None:
            args["out"] = out
    return args


def judge_rows(r: Reading, name: str) -> Any:
    x = r.floating("x", dtype_named(r))
    dtype, axis = x.dtype.name, r.axes(x.ndim)
    x_rows, scores = as_rows(x, axis), False
    if name == "softmax":
        scale, causal = r.number("scale", 1.0), r.flag("causal")
        how = r.raw("all_masked", "nan")
        if not isinstance(how, str) or how not in ("nan", "zero") or not np.isfinite(scale):
            raise Unjudged("scores")
        mask = None
        if r.raw("mask") is not None:
            mask = r.array("mask")
            if mask.dtype.kind in "iu":
                raise Unjudged("mask")
            if mask.dtype != bool:
                mask = r.cast(mask, dtype)
            fits(mask.shape, x.shape)
            if getattr(r.args["mask"], "requires_grad", False):
                raise Unjudged("mask")
        if causal and (x.ndim < 2 or axis is None or [a % x.ndim for a in axis] != [x.ndim - 1]):
            raise Unjudged("causal")
        scores = bool(scale != 1.0 or mask is not None or causal or how == "zero")
    if scores:
        case = ScoresCase(x, axis, scale, mask, causal, how)
        if not x.size:
            return Expected(x, dtype, x.shape)
        with np.errstate(all="ignore"):
            if np.abs(truth.long(x)[np.isfinite(truth.long(x))]).max(initial=0) * abs(scale) > 1e30:
                raise Unjudged("overflow")
        value, allowed = case.truth()
    elif x.size:
        value = truth.ROWS[name](x_rows)
        allowed = bounds.rows(name, dtype, [x_rows], value)
    else:
        return Expected(x, dtype, x.shape)
    return Rows(value, dtype, x.shape, allowed, axis)


@dataclass
class Rows(Expected):
    """Value and allowed error as `as_rows` has them."""

    axis: Any = None


def dtype_named(r: Reading, name: str = "dtype") -> str | None:
    dtype = r.raw(name)
    if dtype is None:
        return None
    text = str(dtype).removeprefix("torch.")
    if text not in FLOATING:
        try:
            text = np.dtype(dtype).name
        except TypeError:
            raise Unjudged(name) from None
    if text not in FLOATING:
        raise Unjudged(name)
    return text


def draw_rows_backward(c: Call, name: str) -> Args:
    shape, axis, dtype = c.shape(), -1, c.of(FLOATING)
    axis = draw_axes(c, len(shape))
    x = c.floats(shape, "float64", (0.0, -30.0))
    axes = tuple(axis) if isinstance(axis, list | tuple) else axis
    axes = axes if shape else None
    y = np.exp(x - x.max(axes, keepdims=True)) if x.size else x
    y = y / y.sum(axes, keepdims=True)
    if name == "log_softmax":
        with np.errstate(all="ignore"):
            y = np.log(y)
    y = np.asarray(y).astype(DTYPES[dtype])
    args = {"dy": c.given(shape, (0.0, np.nan)), "y": c.array(y), "axis": axis}
    if name == "softmax" and c.chance(0.3):
        args["scale"] = c.of((1.0, 0.125, -2.0, 3))
    return args


def judge_rows_backward(r: Reading, name: str) -> Any:
    y = r.floating("y")
    dtype, axis = y.dtype.name, r.axes(y.ndim)
    dy = r.array("dy")
    same_shape(dy, y)
    scale = r.number("scale", 1.0) if name == "softmax" else 1.0
    if not y.size:
        return Expected(y, dtype, y.shape)
    arrays = [as_rows(r.cast(dy, dtype), axis), as_rows(y, axis)]
    large = [(size > 1e25) & (size < INF) for size in (np.abs(truth.long(a)) for a in arrays)]
    if not 1e-10 < abs(scale) < 1e10 or any(which.any() for which in large):
        raise Unjudged("overflow, perhaps")
    formula = f"{name}_backward"
    plain = truth.ROWS[formula](*arrays)
    value = LONG(scale) * plain
    allowed = abs(scale) * bounds.rows(formula, dtype, arrays, plain)
    if scale != 1.0:
        allowed = allowed + 2 * bounds.stored(value, dtype)
    return Rows(value, dtype, y.shape, allowed, axis)


def draw_jacobian(c: Call) -> Args:
    y = draw_rows_backward(c, "softmax")["y"]
    return {"y": y, "axis": c.axis(y.ndim)}


def judge_jacobian(r: Reading) -> Any:
    y = r.floating("y")
    k = r.whole("axis", -1)
    if not (-y.ndim <= k < y.ndim or (not y.ndim and k in (0, -1))):
        raise Unjudged("axis")
    s = truth.long(np.moveaxis(y.reshape(y.shape or (1,)), k, -1))
    n = s.shape[-1]
    if not y.size:
        return Expected(np.empty((*s.shape, n)), y.dtype.name, (*s.shape, n))
    with np.errstate(all="ignore"):
        value = s[..., None] * (np.eye(n, dtype=LONG) - s[..., None, :])
    dtype = y.dtype.name
    allowed = 2 * bounds.ulp(value, dtype) + bounds.stored(value, dtype)
    if (np.abs(s) > 1).any() or np.isnan(s).any():
        raise Unjudged("y that is no softmax")
    return Expected(value, dtype, value.shape, allowed)


# -- cross-entropy --------------------------------------------------------------------------------


def draw_loss(c: Call, what: str) -> Args:
    shape = c.shape(1)
    k = c.axis(len(shape))
    shape = tuple(n or 2 if j == k % len(shape) else n for j, n in enumerate(shape))
    classes, rows = shape[k], tuple(n for j, n in enumerate(shape) if j != k % len(shape))
    special = (*OF_ROWS[1:], -INF, INF, np.nan) if c.chance(0.15) else OF_ROWS[1:]
    logits = c.given(shape, special)
    args: Args = {"logits": logits, "axis": k}
    if c.chance(0.75):
        dtype = c.of(INTEGERS)
        known = min(classes, 127)  # by every dtype
        target = c.rng.integers(0, known, rows).astype(dtype)
        if c.chance(0.4):
            ignored = -100 if dtype[0] != "u" and c.chance(0.5) else c.below(known)
            target = np.where(c.rng.random(rows) < 0.3, ignored, target).astype(dtype)
            if ignored != -100:
                args["ignore_index"] = ignored
    else:
        target = c.rng.random(shape)
        if c.chance(0.5):
            target = target / target.sum(k, keepdims=True)
        if c.chance(0.3):
            target = np.where(c.rng.random(shape) < 0.3, 0, target)
        target = target.astype(DTYPES[c.of(FLOATING)])
    target = np.asarray(target)
    args["target"] = c.array(target)
    if not c.torch and target.dtype != DTYPES["bfloat16"] and target.size and c.chance(0.05):
        args["target"] = target.tolist()
        if target.dtype.kind == "f" and not isinstance(logits, np.ndarray):
            args["target"] = c.array(target)
    if c.chance(0.3):
        weight = c.rng.uniform(0.1, 2.0, classes)
        weight = np.where(c.rng.random(classes) < 0.1, 0, weight)
        args["weight"] = c.array(weight.astype(DTYPES[c.of(FLOATING)]))
    if c.chance(0.3):
        args["label_smoothing"] = c.of((0.1, 0, 1.0, 0.25, np.float32(0.5)))
    if c.chance(0.2):
        args["z_loss"] = c.of((0.01, 0, 1e-4, 0.3))
    if c.chance(0.2):
        args["softcap"] = c.of((None, 2.5, 30.0, 5))
    if c.chance(0.6):
        args["reduction"] = c.of(("mean", "sum", "none"))
    fits_twice = len(shape) > 2 and shape[1] == shape[-1]
    if k % len(shape) == len(shape) - 1 and not fits_twice and c.chance(0.5):
        probable = target.shape == shape and len(shape) > 2
        if not probable:
            del args["axis"]
    if what == "cross_entropy":
        if c.chance(0.3):
            args["return_lse"] = c.chance(0.7)
        if not args.get("return_lse") and args.get("reduction") != "none" and c.chance(0.1):
            args["gradient_in_forward"] = True
    elif what == "cross_entropy_backward":
        z = truth.long(np.asarray(snapshot(logits)))
        with np.errstate(all="ignore"):
            z = z if not args.get("softcap") else args["softcap"] * np.tanh(z / args["softcap"])
            most = z.max(k, keepdims=True)
            lse = (most + np.log(np.exp(z - most).sum(k, keepdims=True))).reshape(rows)
            kind = c.of(FLOATING) if c.chance(0.1) else "float64"
            lse = np.asarray(lse).astype(np.float64).astype(DTYPES[kind])
            args["lse"] = c.array(lse, APART)
        none = args.get("reduction") == "none"
        args["dloss"] = c.given(rows) if none else c.number()
        if not none and c.chance(0.5):
            args["dloss"] = c.array(c.floats((), c.of(FLOATING)))
        args = {name: args.pop(name) for name in ("dloss", "logits", "target", "lse")} | args
    elif c.chance(0.3) and hasattr(logits, "dtype"):
        dtype = dtype_of(logits) if dtype_of(logits) in FLOATING else "float32"
        args["logits"], out = c.outlet(logits, shape, dtype)
        if out is not None:
            args["dlogits_out"] = out
    return args


def judge_loss(r: Reading, what: str) -> Any:
    logits = r.floating("logits")
    target = r.array("target")
    integers = target.dtype.kind in "iu"
    if target.dtype == bool or not logits.ndim:
        raise Unjudged("target")
    shape, ndim = logits.shape, logits.ndim
    axis = r.raw("axis")
    if axis is None:
        k = ndim - 1
        if ndim > 2:
            one = (shape[:1] + shape[2:]) if integers else shape
            if one == target.shape == (shape[:-1] if integers else shape):
                raise Unjudged("axis")
    else:
        k = r.whole("axis")
        if not -ndim <= k < ndim:
            raise Unjudged("axis")
        k %= ndim
    row_shape, classes = shape[:k] + shape[k + 1 :], shape[k]
    if target.shape != (row_shape if integers else shape) or not classes:
        raise Unjudged("target")
    ignore = r.whole("ignore_index", -100)
    reduction = r.raw("reduction", "mean")
    smoothing, z_loss = r.number("label_smoothing", 0.0), r.number("z_loss", 0.0)
    softcap = 0.0 if r.raw("softcap") is None else r.number("softcap")
    if not (isinstance(reduction, str) and reduction in ("mean", "sum", "none")):
        raise Unjudged("reduction")
    if not (0 <= smoothing <= 1 and 0 <= z_loss < INF and 0 <= softcap < INF):
        raise Unjudged("options")
    if (r.raw("softcap") is not None and softcap == 0) or (not integers and ignore >= 0):
        raise Unjudged("options")
    if z_loss > 1e6 or (softcap and not 1e-5 < softcap < 1e8):
        raise Unjudged("beyond what bounds know")
    dtype = logits.dtype.name
    kind = compute_dtype(dtype)
    weight = None
    if r.raw("weight") is not None:
        weight = cast(r.floating("weight"), kind)
        usual = (weight == 0) | ((weight > 1e-6) & (weight < 1e6))
        if weight.shape != (classes,) or not usual.all():
            raise Unjudged("weight")
        if getattr(r.args["weight"], "requires_grad", False):
            raise Unjudged("weight")
    n = math.prod(row_shape)
    z = np.moveaxis(logits, k, -1).reshape(n, classes, 1)
    if integers:
        if target.dtype == np.uint64 and (target >= 2**63).any():
            raise Unjudged("target")
        t = target.astype(np.int64).reshape(n, 1)
        ignored, bad = truth.valid_target(t, classes, ignore)
        if bad.any():
            raise Unjudged("target")
    else:
        t = r.cast(np.moveaxis(target, k, -1).reshape(n, classes, 1), dtype)
        ignored = np.zeros((n, 1), bool)
        if not (np.isfinite(t.astype(np.float64)) & (np.abs(t.astype(np.float64)) < 1e6)).all():
            raise Unjudged("target")
    size = np.abs(truth.long(z))
    if size[np.isfinite(size)].max(initial=0) > 1e8:
        raise Unjudged("beyond what bounds know")
    plain = integers and not smoothing
    options = (weight, ignore, smoothing, z_loss, softcap)
    u = LONG(2) ** -FORMATS[kind].digits
    with np.errstate(all="ignore"):
        found = truth.cross_entropy(z, t, *options) if n else None
        if reduction != "mean":
            below = LONG(1)
        elif not integers:
            below = LONG(n)
        else:
            of_targets = (
                np.ones((n, 1), LONG)
                if weight is None
                else truth.long(weight)[np.where(ignored, 0, t)]
            )
            below = np.where(ignored, 0, of_targets).sum()
    lse_given = None
    if what == "cross_entropy_backward":
        lse_given = cast(r.floating("lse"), kind)
        if lse_given.shape != row_shape:
            raise Unjudged("lse")
        if found is not None:
            given, true = truth.long(lse_given).reshape(n, 1), found["lse"]
            with np.errstate(all="ignore"):
                off = np.abs(given - true) > 0.1 * (1 + np.abs(true))
            if (
                off | (np.isnan(given) != np.isnan(true)) | (np.isinf(given) != np.isinf(true))
            ).any():
                raise Unjudged("lse of other logits")

    def gradient(scale: Any, lse: Array | None = None) -> Expected:
        if found is None:
            return Expected(logits, dtype, shape)
        with np.errstate(all="ignore"):
            t_ = (
                found if lse is None else truth.cross_entropy(z, t, *options, lse=lse.reshape(n, 1))
            )
            errors = bounds.cross_entropy(
                t_, "numpy", dtype, plain, z_loss, softcap, lse is not None
            )
            s = np.broadcast_to(truth.long(scale).reshape(-1, 1), (n, 1))[:, None] / below
            value = np.where(ignored[:, None], 0, s * t_["gradient"])
            off = np.abs(s) * errors["gradient"] + np.abs(value) * u * (bounds.row(max(n, 2)) + 4)
            off = np.where(ignored[:, None], 0, off) + bounds.stored(value, dtype)
        moved = row_shape + (classes,)
        value, off = (np.moveaxis(a.reshape(moved), -1, k) for a in (value, off))
        return Expected(value, dtype, shape, off)

    if what == "cross_entropy_backward":
        dloss = r.parameter("dloss")
        if isinstance(dloss, float):
            dloss = np.asarray(dloss)
        dloss = wide(dloss, dtype)
        if dloss.shape != (row_shape if reduction == "none" else ()):
            raise Unjudged("dloss")
        if not (np.abs(truth.long(dloss)) < 1e6).all():
            raise Unjudged("dloss")
        return gradient(dloss, lse_given)
    if found is None:
        none = reduction == "none"
        empty = np.zeros(row_shape)
        total = LONG(0.0) if reduction == "sum" else LONG(np.nan)
        loss = Expected(empty if none else total, kind, row_shape if none else (), 0.0)
        lse_found = Expected(empty, kind, row_shape, 0.0)
    else:
        errors = bounds.cross_entropy(found, "numpy", dtype, plain, z_loss, softcap)
        with np.errstate(all="ignore"):
            value, off = found["loss"], errors["loss"]
            off = np.where(ignored, 0, off) + np.where(np.isnan(value), 0, u * np.abs(value))
            lse_off = errors["lse"] + bounds.stored(found["lse"], kind)
            lse_found = Expected(found["lse"], kind, (n, 1), lse_off).at(row_shape)
            if reduction == "none":
                loss = Expected(value, kind, (n, 1), off + bounds.stored(value, kind)).at(row_shape)
            else:
                total, size = value.sum(), np.abs(value).sum()
                off = off.sum() + u * size * bounds.row(max(n, 2))
                total, off = total / below, off / below
                off = off + np.abs(total) * u * (bounds.row(max(n, 2)) + 4)
                loss = Expected(total, kind, (), off + bounds.stored(total, kind))
    if what == "cross_entropy_with_grad":
        return loss, gradient(1.0)
    r.flag("gradient_in_forward")
    return (loss, lse_found) if r.flag("return_lse") else loss


# -- beside the functions -------------------------------------------------------------------------


def draw_asarray(c: Call) -> Args:
    args: Args = {"obj": c.given(c.shape())}
    if c.chance(0.5):
        args["dtype"] = c.of((*FLOATING, np.float32, float))
        if dtype_of(args["obj"]) in (*INTEGERS, "bool"):
            args["dtype"] = c.of(("int64", np.int8, "float16", "bool"))
    return args if c.chance(0.8) else {"obj": c.number()}


def judge_asarray(r: Reading) -> Any:
    a = r.array("obj")
    dtype = r.raw("dtype")
    if dtype is not None:
        text = str(dtype).removeprefix("torch.")
        try:
            name = text if text in TENSORS else np.dtype(dtype).name
        except TypeError:
            raise Unjudged("dtype") from None
        if name not in (*FLOATING, *INTEGERS, "bool"):
            raise Unjudged("dtype")
        with np.errstate(all="ignore"):
            if a.dtype.kind == "f" and name not in FLOATING:
                raise Unjudged("what NaN is as an integer")
            a = r.cast(a, name)
    return Expected(a, a.dtype.name, a.shape)


def draw_warmup(c: Call) -> Args:
    args: Args = {
        "shapes": c.of((((2, 3),), [(4,)], [[2, 3], [1, 2, 2]], [()], [])),
        "dtypes": c.of((["float32"], ("float16", "bfloat16"), [])),
        "functions": [c.of([*FUNCTIONS])],
        "like": c.array(np.zeros(1, np.float32)),
    }
    return args


def judge_warmup(r: Reading) -> Any:
    calls = {"rows": 2}
    try:
        each = sum(calls.get(FUNCTIONS[f].kind, 3) for f in r.raw("functions"))
        return len(r.raw("shapes")) * len(r.raw("dtypes")) * each
    except (TypeError, KeyError):
        raise Unjudged("warmup") from None


def judge_describe(r: Reading) -> Any:
    if r.raw("name") not in (*FUNCTIONS,):
        raise Unjudged("name")
    return FUNCTIONS[r.raw("name")]


def use(backend: Any) -> str:
    with gpuact.using(backend):
        return "used"


def judge_dropout(r: Reading) -> Any:
    p, seed, offset = r.number("p"), r.whole("seed"), r.whole("offset", 0)
    if not 0 <= p <= 1 or min(seed, offset) < 0:
        raise Unjudged("p")
    return Dropout(p, seed, offset)


# -- what there is to call ------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A public name: how its arguments are made up, and what it must give for them."""

    name: str
    call: Callable[..., Any]
    draw: Callable[[Call], Args]
    judge: Oracle
    gradient: Callable[..., Any] | None = None
    weight: int = 4
    rename: Mapping[str, str] = field(default_factory=dict)  # its own names → gpuact's
    only: str = ""  # the library

    @property
    def parameters(self) -> list[str]:
        names = [
            n for n, p in signature(self.call).parameters.items() if p.kind is not p.VAR_KEYWORD
        ]
        return [n for n in names if not n.startswith("_")]


def targets_of_gpuact() -> Iterator[Target]:
    def target(name: str, draw: Any, judge: Any, gradient: Any = None, weight: int = 4) -> Target:
        return Target(name, getattr(gpuact, name), draw, judge, gradient, weight)

    for name, public in ELEMENTWISE.items():
        back = None
        if public.kernel is public.function.forward:
            back = partial(gradient_of_elementwise, public=ELEMENTWISE[f"{name}_backward"])
        made = partial(draw_elementwise, public=public), partial(judge_elementwise, public=public)
        yield target(name, *made, back)
    for name in ("softmax", "log_softmax"):
        back = partial(gradient_of_rows, name=name)
        yield target(name, partial(draw_rows, name=name), partial(judge_rows, name=name), back, 8)
        made = partial(draw_rows_backward, name=name), partial(judge_rows_backward, name=name)
        yield target(f"{name}_backward", *made, None, 5)
    yield target("softmax_jacobian", draw_jacobian, judge_jacobian)
    for name in ("cross_entropy", "cross_entropy_backward", "cross_entropy_with_grad"):
        back = gradient_of_loss if name == "cross_entropy" else None
        yield target(name, partial(draw_loss, what=name), partial(judge_loss, what=name), back, 8)
    yield target("fused", partial(draw_fused, backward=False), judge_fused, gradient_of_fused, 10)
    made = partial(draw_fused, backward=True), judge_fused_backward
    yield target("fused_backward", *made, None, 8)
    yield target("asarray", draw_asarray, judge_asarray)
    yield target("warmup", draw_warmup, judge_warmup, None, 1)
    yield target("describe", lambda c: {"name": c.of([*FUNCTIONS])}, judge_describe, None, 1)
    made = (
        lambda c: {"backend": "numpy"},
        lambda r: "used" if r.raw("backend") == "numpy" else bad(),
    )
    yield Target("using", use, *made, None, 1)
    yield target("backends", lambda c: {}, lambda r: ..., None, 0)
    yield target(
        "Dropout",
        lambda c: {"p": c.of((0, 0.5, 1.0, np.float32(0.25))), "seed": c.below(2**62)},
        judge_dropout,
        None,
        1,
    )


def bad() -> Any:
    raise Unjudged("this value")


IN_TORCH = {"input": "x", "dim": "axis"}


def targets_of_torch() -> Iterator[Target]:
    """gpuact.torch.functional, and the modules of gpuact.torch.nn by way of their arguments."""
    from gpuact.torch import functional, nn

    ours = {t.name: t for t in targets_of_gpuact()}

    def renamed(c: Call, of: str, loss: bool, drop: Sequence[str]) -> Args:
        args = ours[of].draw(c)
        if loss:
            args = first_axis(c, args)
        back = {"logits": "input"} if loss else {b: a for a, b in IN_TORCH.items()}
        return {back.get(n, n): v for n, v in args.items() if n not in drop}

    def module(kind: Any) -> Callable[..., Any]:
        takes = [n for n in signature(kind.__init__).parameters if n != "self"]

        def run(**args: Any) -> Any:
            options = {n: args.pop(n) for n in takes if n in args}
            if kind is nn.PReLU:
                weight = args.pop("weight")
                made = nn.PReLU(weight.numel())
                made.weight = torch_or_none().nn.Parameter(weight.detach().reshape(-1))
                return made(**args)
            return kind(**options)(**args)

        names = [n for n in signature(kind.forward).parameters if n != "self"]
        run.__signature__ = _signature(names)  # type: ignore[attr-defined]
        return run

    table: dict[str, tuple[str, Sequence[str], Any]] = {
        # name → gpuact's, what is left out of its arguments, the module
        "sigmoid": ("sigmoid", ("out",), nn.Sigmoid),
        "tanh": ("tanh", ("out",), nn.Tanh),
        "relu": ("relu", ("out",), nn.ReLU),
        "leaky_relu": ("leaky_relu", ("out",), nn.LeakyReLU),
        "prelu": ("prelu", ("out",), nn.PReLU),
        "softmax": ("softmax", SCORES, nn.Softmax),
        "log_softmax": ("log_softmax", SCORES, nn.LogSoftmax),
        "cross_entropy": ("cross_entropy", ("return_lse", "axis"), nn.CrossEntropyLoss),
    }
    for name, (of, drop, kind) in table.items():
        loss = name == "cross_entropy"
        rename = {"input": "logits"} if loss else IN_TORCH
        draw = partial(of_torch, draw=partial(renamed, of=of, loss=loss, drop=drop), name=name)
        base = ours[of]
        rest = base.judge, base.gradient, 3
        if loss:
            rest = (
                partial(along_dim_1, judge=base.judge),
                partial(along_dim_1, judge=base.gradient),
                3,
            )
        function = getattr(functional, name)
        yield Target(f"functional.{name}", function, draw, *rest, rename, "torch")
        if name in ("softmax", "log_softmax"):
            draw = partial(without, draw=draw, names=("dtype",))
        yield Target(f"nn.{kind.__name__}", module(kind), draw, *rest, rename, "torch")
    for name in ("relu_", "leaky_relu_"):
        of = name[:-1]
        draw = partial(of_torch, draw=partial(renamed, of=of, loss=False, drop=("out",)), name=name)
        function = getattr(functional, name)
        rest = ours[of].judge, None, 2
        yield Target(f"functional.{name}", function, draw, *rest, IN_TORCH, "torch")


def along_dim_1(r: Reading, *more: Any, judge: Any) -> Any:
    """With the axis that torch's functions have."""
    axis = min(1, r.array("logits").ndim - 1)
    return judge(Reading({**r.args, "axis": axis}, {**r.seen, "axis": axis}), *more)


SCORES = ("out", "scale", "mask", "causal", "all_masked")


def _signature(names: Sequence[str]) -> Any:
    from inspect import Parameter, Signature

    return Signature([Parameter(n, Parameter.KEYWORD_ONLY) for n in names])


def without(c: Call, draw: Callable[[Call], Args], names: Sequence[str]) -> Args:
    return {n: v for n, v in draw(c).items() if n not in names}


def of_torch(c: Call, draw: Callable[[Call], Args], name: str) -> Args:
    """What torch's functions need beside: a dim, slopes along dim 1, `inplace` now and then."""
    args = draw(c)
    if "softmax" in name:
        dim = args.get("dim")
        if type(dim) is not int:
            args["dim"] = c.axis(args["input"].ndim)
    if name == "prelu":
        args.pop("channel_axis", None)
        shape = args["input"].shape
        n = shape[1] if len(shape) > 1 and c.chance(0.7) else 1
        args["weight"] = c.array(c.floats((n,), c.of(FLOATING)))
    if name in ("relu", "leaky_relu") and c.chance(0.2) and writable(args["input"]):
        args["inplace"] = True
    if name.endswith("_") and not writable(args["input"]):
        args["input"] = args["input"].clone()
    return args


def first_axis(c: Call, args: Args) -> Args:
    """Logits with their classes along dim 1, or 0 if there is no other."""
    k = args.pop("axis", -1)
    logits, target = args["logits"], args["target"]
    to = min(1, logits.ndim - 1)
    args["logits"] = logits.movedim(k, to)
    if tuple(target.shape) == tuple(logits.shape):
        args["target"] = target.movedim(k, to)
    return args


# -- gradients of autograd ------------------------------------------------------------------------


def reading_of(r: Reading, more: Args) -> Reading:
    """The same arguments and some more, these as NumPy arrays."""
    args = {**r.args, **dict.fromkeys(more)}
    return Reading(args, {**r.seen, **more})


def gradient_of_elementwise(r: Reading, y: Array, dy: Array, public: Public) -> dict[str, Expected]:
    given: Args = {"dy": dy, "y": y}
    for name, default in public.function.defaults.items():
        if name not in r.seen:
            given[name] = default
    found = judge_elementwise(reading_of(r, given), public)
    found = found if isinstance(found, tuple) else (found,)
    return dict(zip(("x", *public.function.sums), found, strict=True))


def gradient_of_rows(r: Reading, y: Array, dy: Array, name: str) -> dict[str, Expected]:
    found = judge_rows_backward(reading_of(r, {"dy": dy, "y": y}), name)
    if found.dtype != r.floating("x").dtype.name:
        raise Unjudged("dtype")
    return {"x": found}


def gradient_of_fused(r: Reading, y: Array, dy: Array) -> dict[str, Expected]:
    return dict(judge_fused_backward(reading_of(r, {"dy": dy})))


def gradient_of_loss(r: Reading, y: Any, dy: Array) -> dict[str, Expected]:
    """By way of the lse that forward keeps: the same call without gradients gives it."""
    names = ("logits", "target", "weight", "ignore_index", "reduction", "label_smoothing")
    options = {n: r.args[n] for n in (*names, "z_loss", "softcap", "axis") if n in r.args}
    if r.flag("gradient_in_forward"):
        raise Unjudged("rounded twice")
    with torch_or_none().no_grad():
        _, lse = gpuact.cross_entropy(**options, return_lse=True)
    more = {"dloss": dy, "lse": from_tensor(lse)}
    return {"logits": judge_loss(reading_of(r, more), "cross_entropy_backward")}


# -- junk -----------------------------------------------------------------------------------------


def raises(*_: Any, **__: Any) -> Any:
    raise Mine("not today")


def dunders(name: str, base: type = object, **methods: Any) -> Any:
    made = type(name, (base,), {"__hash__": object.__hash__, **methods})
    return made(0.5) if base in (float, int) else made()


class Subclass(np.ndarray):
    pass


class Giver:
    """Gives an array if asked."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array([1.0, 2.0])


class Index:
    def __init__(self, n: int) -> None:
        self.n = n

    def __index__(self) -> int:
        return self.n


# name → what makes it; of no library
ANYTHING: dict[str, Callable[[Call], Any]] = {
    "None": lambda c: None,
    "text": lambda c: c.of(("text", "", "0", "mean", "2.0", "x\ny", "float32")),
    "bytes": lambda c: c.of((b"bytes", bytearray(b"1234"), memoryview(b"12345678"))),
    "object": lambda c: object(),
    "a dictionary": lambda c: c.of(({}, {"x": 1})),
    "a set": lambda c: c.of(({1}, frozenset())),
    "an empty list": lambda c: c.of(([], (), [[]], [[], []])),
    "a ragged list": lambda c: c.of(([[1.0], [1.0, 2.0]], [1.0, [2.0]], ([1], 2))),
    "a list of junk": lambda c: c.of(([None], ["a"], [object()], [1j], [b"1"], [{}], [10**400])),
    "a list": lambda c: c.of(([1.0, 2.0], [0], (0, 1), [[1.0, 2.0]], [True], [2**63, 1], [2**70])),
    "a huge int": lambda c: c.of((10**400, -(10**400), 2**63, 2**64, -(2**63) - 1, 2**31, 2**1023)),
    "a huge float": lambda c: c.of((1e308, -1e308, 1e39, 1e-320, 5e-324)),
    "NaN or inf": lambda c: c.of((np.nan, INF, -INF, np.float32(np.nan), np.float16(INF))),
    "a number": lambda c: c.of((0, 1, -1, 2, 3, -0.0, 0.5, -0.1, 1.5, 1.0, 100)),
    "a bool": lambda c: c.of((True, False, np.True_, np.False_)),
    "complex": lambda c: c.of((1j, np.complex64(1j), complex(1, 0))),
    "a scalar of NumPy": lambda c: c.of(
        (
            np.longdouble(2),
            np.str_("2"),
            np.bytes_(b"2"),
            np.datetime64("2020"),
            np.timedelta64(3, "s"),
            np.int64(0),
            np.uint8(1),
            np.float16(0.5),
            np.void(b"12"),
            ml_dtypes.bfloat16(0.5),
            ml_dtypes.float8_e4m3fn(1),
            np.int64(-1),
        )
    ),
    "another number": lambda c: c.of((Fraction(1, 3), Decimal("0.5"), Decimal("nan"))),
    "a generator": lambda c: (k for k in range(3)),
    "a range": lambda c: c.of((range(3), range(0), slice(None), ...)),
    "a type": lambda c: c.of((float, int, np.float32, np.dtype("f4"), np.ndarray, object)),
    "a function": lambda c: raises,
    "array.array": lambda c: array("f", [1.0, 2.0]),
    "an index": lambda c: Index(c.of((0, 1, -1, 5, 2**70))),
    "gives an array": lambda c: Giver(),
    "raises in __array__": lambda c: dunders("A", __array__=raises),
    "raises in __len__": lambda c: dunders("L", __len__=raises, __getitem__=raises),
    "raises in __iter__": lambda c: dunders("I", __iter__=raises, __len__=lambda s: 2),
    "raises in __index__": lambda c: dunders("I", __index__=raises),
    "raises in __float__": lambda c: dunders("F", __float__=raises),
    "a float that raises": lambda c: dunders("F", float, __float__=raises),
    "raises in __eq__": lambda c: dunders("E", __eq__=raises),
    "equal to all": lambda c: dunders("E", __eq__=lambda s, o: True),
    "an array of comparisons": lambda c: dunders("E", __eq__=lambda s, o: np.array([1, 0])),
    "raises in __bool__": lambda c: dunders("B", __bool__=raises, __eq__=lambda s, o: s),
    "no hash": lambda c: dunders("H", __hash__=None),
    "raises in __hash__": lambda c: dunders("H", __hash__=raises),
    "raises in __repr__": lambda c: dunders("R", __repr__=raises, __str__=raises),
    "raises in __getattr__": lambda c: dunders("G", __getattr__=raises),
    "a false shape": lambda c: dunders("S", shape=(2, 3), dtype="float32", ndim=2),
    "an interface": lambda c: dunders("S", __array_interface__={"version": 3}),
    "a float of its own": lambda c: dunders("MyFloat", float),
    "an str of its own": lambda c: type("MyStr", (str,), {})("mean"),
    "a Dropout": lambda c: Dropout(0.5, 1),
}


def _of_dtype(*dtypes: Any) -> Callable[[Call, Array], Any]:
    def make(c: Call, x: Array) -> Any:
        with np.errstate(all="ignore"):
            return np.zeros(x.shape, c.of(dtypes))

    return make


def _strange_shape(c: Call, x: Array) -> Array:
    made: Array = c.of(
        (
            lambda: x[None],
            lambda: x.T,
            lambda: x[..., :0] if x.ndim else x[None][:0],
            lambda: x.ravel(),
            lambda: x.reshape(-1)[:1].reshape(()) if x.size else np.zeros((), x.dtype),
            lambda: x[:-1] if x.ndim else x[None],
            lambda: x[..., None],
            lambda: np.concatenate([x, x]) if x.ndim else np.stack([x, x]),
            lambda: np.zeros((0, 3), x.dtype),
            lambda: np.zeros((3, 0, 2**20), x.dtype),
            lambda: x.reshape((1,) * 32 + x.shape)[..., None][..., 0],
        )
    )()
    return made


# name → what makes it of the values of the argument whose place it takes
ARRAYS: dict[str, Callable[[Call, Array], Any]] = {
    "complex numbers": _of_dtype(np.complex64, np.complex128),
    "objects": _of_dtype(object),
    "records": _of_dtype([("a", "f4")], "V4"),
    "dates": _of_dtype("M8[s]", "m8[s]"),
    "strings": _of_dtype("U3", "S3", np.dtypes.StringDType()),
    "a strange float": _of_dtype(
        np.longdouble, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4
    ),
    "another dtype": lambda c, x: c.array(cast(x, c.of((*FLOATING, *INTEGERS, "bool")))),
    "a masked array": lambda c, x: np.ma.MaskedArray(x, x != x),
    "a matrix": lambda c, x: np.asmatrix(x) if x.ndim <= 2 and x.dtype.name != "bfloat16" else x,
    "a subclass": lambda c, x: x.view(Subclass),
    "a memoryview": lambda c, x: memoryview(x) if x.dtype.kind in "fiu" else None,
    "another byte order": lambda c, x: (
        c.array(x.astype(x.dtype.newbyteorder(">")))
        if x.dtype.kind in "fiu" and x.dtype.name != "bfloat16" and not c.torch
        else x
    ),
    "read-only": lambda c, x: _read_only(x),
    "another shape": lambda c, x: c.array(_strange_shape(c, x), (1,)),
    "a broadcast": lambda c, x: (
        np.broadcast_to(x.reshape(-1)[:1].reshape((1,) * x.ndim), x.shape) if x.size else x
    ),
    "a list of it": lambda c, x: x.tolist(),
    "the other library's": lambda c, x: x if c.torch else _tensor(x),
    "a tuple around it": lambda c, x: (c.array(x),),
    "a scalar of it": lambda c, x: x.reshape(-1)[0] if x.size else x,
    "wild values": lambda c, x: c.array(_wild(c, x)),
}


def _read_only(x: Array) -> Array:
    x = x.view()
    x.flags.writeable = False
    return x


def _wild(c: Call, x: Array) -> Array:
    if x.dtype.kind in "iu":
        info = np.iinfo(x.dtype)
        return np.where(c.rng.random(x.shape) < 0.5, c.of((info.max, info.min, 99)), x).astype(
            x.dtype
        )
    special = [np.nan, INF, -INF, 0.0, 1e-45, 3e38, -3e38, 6e4, 1e308]
    return c.floats(x.shape, x.dtype.name if x.dtype.name in FLOATING else "float32", special)


def _tensor(x: Array) -> Any:
    torch = torch_or_none()
    if torch is None or x.dtype.name not in TENSORS:
        return x
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(x).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(x))


@cache
def _subclass() -> Any:
    return type("Subclass", (torch_or_none().Tensor,), {})


def _tensor_subclass(c: Call, x: Any) -> Any:
    return x.as_subclass(_subclass())


# name → what makes it of a tensor
OF_TENSORS: dict[str, Callable[[Call, Any], Any]] = {
    "sparse": lambda c, x: c.of((lambda: x.to_sparse(), lambda: x.to_sparse_csr()))(),
    "meta": lambda c, x: x.to("meta"),
    "quantized": lambda c, x: torch_or_none().quantize_per_tensor(
        x.float(), 0.1, 0, torch_or_none().qint8
    ),
    "a strange float": lambda c, x: x.to(
        c.of((torch_or_none().float8_e4m3fn, torch_or_none().float8_e5m2))
    ),
    "bits": lambda c, x: x.float().view(torch_or_none().uint8).view(torch_or_none().bits8),
    "complex numbers": lambda c, x: x.float().to(torch_or_none().complex64),
    "a real part": lambda c, x: torch_or_none().complex(x.float(), x.float()).conj().imag,
    "a negative view": lambda c, x: torch_or_none()._neg_view(x) if x.dtype.is_signed else x,
    "a conjugate": lambda c, x: torch_or_none().complex(x.float(), x.float()).conj(),
    "a subclass": _tensor_subclass,
    "a parameter": lambda c, x: torch_or_none().nn.Parameter(
        x.detach(), requires_grad=c.chance(0.5) and x.is_floating_point()
    ),
    "requires grad": lambda c, x: x.detach().clone().requires_grad_(),
    "no leaf": lambda c, x: x.detach().clone().requires_grad_() * 1,
    "nested": lambda c, x: torch_or_none().nested.nested_tensor([x.reshape(-1), x.reshape(-1)[:1]]),
    "of inference mode": lambda c, x: _inference(x),
    "expanded": lambda c, x: x.reshape(-1)[:1].reshape((1,) * x.ndim).expand(x.shape),
    "of mkldnn": lambda c, x: x.float().to_mkldnn(),
}


def _inference(x: Any) -> Any:
    with torch_or_none().inference_mode():
        return x.clone()


AXES: dict[str, Callable[[Call], Any]] = {
    "a bool as axis": lambda c: c.of((True, False, np.True_)),
    "an int of NumPy": lambda c: c.of((np.int64(0), np.int8(-1), np.uint8(1), np.int32(7))),
    "a float as axis": lambda c: c.of((0.0, 1.0, -1.0, np.float32(0), np.nan)),
    "out of range": lambda c: c.of((5, -6, 99, 2**31, 2**63, -(2**63), 2**100)),
    "repeated axes": lambda c: c.of(((0, 0), (0, -1), (1, 1), [0, 0], (0, 1, -1))),
    "strange axes": lambda c: c.of(((True,), (0.0,), (None,), ((0,),), ([0],), ("0",), (0, 2**70))),
    "an array as axis": lambda c: c.of(
        (np.array(0), np.array([0]), np.array([0, 1]), np.array(0.0))
    ),
    "an iterable of axes": lambda c: c.of((range(1), {0}, {0: 1}, Index(0), (Index(0),))),
    "a tensor as axis": lambda c: _tensor(np.array(c.of((0, -1)))),
}
WORDS: dict[str, Sequence[Any]] = {
    "reduction": ("avg", "MEAN", "elementwise_mean", "", None, "sum\n"),
    "all_masked": ("one", "NaN", 0, None, ["nan"]),
    "activation": ("gelu", "softmax", "RELU", "", None, ["relu"], "prelu", "leaky_relu", "relu"),
    "dtype": ("float9", "int32", "f4", "f8", "bfloat16", "complex64", ">f4", "O", "U", "", 3.5,
              [("a", "f4")], "float8_e4m3fn", "f4,f4", np.dtype(">f4"), bool, int, float, "M8[s]"),
    "target": (0, 1.0),
    "ignore_index": (-1, 0, 2, -(2**63), 2**63, 1.5, "0", np.int8(1), True),
    "causal": (1, 0, "yes", None, np.True_),
    "return_lse": (1, "yes", None, []),
    "gradient_in_forward": (True, 1, None, np.True_),
    "inplace": (True, 1, None, "yes"),
    "shapes": (5, None, [5], [(2.0,)], ["ab"], [(-1,)], [[None]], "ab", (2, 3)),
    "dtypes": (5, None, [5], ["int8"], "float32", ["float9"], [None], [np.float32], "", [[]]),
    "functions": (5, "relu", ["gelu"], [5], [None], [[]], {"relu"}, "", ()),
    "like": (5, None, "x", [1.0]),
    "name": ("gelu", 5, [], {}, None, np.array(["relu"]), ("relu",)),
    "backend": ("cupy", "triton", "numpy ", "cuda", 5, [], None, np.array(["numpy"])),
    "channel_axis": (7, -9, 1.0, "1", None, True, 2**70, (1,), np.int64(0)),
    "p": (1.5, -0.1, np.nan, "half", None, 10**400, True),
    "seed": (-1, 2**64, 1.0, "1", None, True, np.int64(3)),
    "offset": (-1, 2**64, 1.0, None, np.uint64(2**64 - 1)),
    "reduce": (True, False, None, 1), "size_average": (True, False, None),
}  # fmt: skip


def spoil(c: Call, target: Target, args: Args) -> Args:
    """Junk in the place of one to three arguments."""
    args = dict(args)
    names = [n for n in target.parameters if n in args or c.chance(0.3)] or target.parameters
    for _ in range(c.of((1, 1, 1, 2, 2, 3))):
        if not names:
            break
        name = c.of(names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            what, args[name] = junk(c, target, name, args)
        c.spoiled[name] = what
    return args


def junk(c: Call, target: Target, name: str, args: Args) -> tuple[str, Any]:
    own = target.rename.get(name, name)
    kind = c.rng.random()
    if own in WORDS and kind < 0.6:
        return "a word", c.of(WORDS[own])
    if own in ("axis", "channel_axis") and kind < 0.7:
        what = c.of([*AXES])
        return what, AXES[what](c)
    old = args.get(name)
    if old is None and own in ("out", "dlogits_out", "gate", "residual", "mask", "weight"):
        old = args.get("x", args.get("logits", args.get("input")))
    values = snapshot(old)
    if isinstance(values, np.ndarray) and kind < 0.8:
        if isinstance(old, torch_or_none().Tensor if c.torch else ()) and c.chance(0.6):
            what = c.of([*OF_TENSORS])
            try:
                return what, OF_TENSORS[what](c, old.detach())
            except (RuntimeError, IndexError, TypeError, ValueError):
                return "the same", old  # there is no such tensor
        what = c.of([*ARRAYS])
        try:
            return what, ARRAYS[what](c, values)
        except (ValueError, TypeError):
            return "the same", old
    what = c.of([*ANYTHING])
    return what, ANYTHING[what](c)


# -- judgement ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    function: str
    library: str
    mode: str
    what: str  # "right" (by its values), "returned", "refused", or one of FINDINGS
    detail: str = ""

    @property
    def finding(self) -> bool:
        return self.what in FINDINGS


HERE = str(Path(gpuact.__file__).parent) + os.sep
OWN = (TypeError, ValueError, IndexError, gpuact.BackendError)


def refusal(error: BaseException, names: set[str]) -> str | None:
    """What is wrong with an error as a refusal; None if nothing is."""
    if isinstance(error, Mine) or isinstance(error.__cause__, Mine):
        return None
    step: TracebackType | None = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    if step is None:
        return "it has no traceback"
    code, text = step.tb_frame.f_code, str(error)
    if documented(error, text):
        return None
    if not code.co_filename.startswith(HERE):
        return f"raised in {code.co_filename}:{step.tb_lineno}"
    if code.co_code[step.tb_lasti] != opmap["RAISE_VARARGS"]:
        line = linecache.getline(code.co_filename, step.tb_lineno).strip()
        return f"not raised by gpuact itself, but by what it calls: {line}"
    if not isinstance(error, OWN):
        return f"{type(error).__name__} is no class of gpuact's errors"
    if isinstance(error, gpuact.BackendError):
        return None
    name = re.match(r"([a-z_]+): \S", text)
    if name is None or name[1] not in names:
        return "its message names no argument first"
    if re.search(r"\n|\.$|  ", text):
        return "its message is no sentence in one line"
    return None


# Errors that are documented to be PyTorch's own, or of another kind
DOCUMENTED = (
    (RuntimeError, "a leaf Variable that requires grad"),
    (RuntimeError, "a view of a leaf Variable that requires grad"),
    (UserWarning, "Implicit dimension choice"),
    (UserWarning, "size_average and reduce args will be deprecated"),
    (NotImplementedError, "differentiat"),
    (RuntimeError, "Inference tensors cannot be saved for backward"),
    (RuntimeError, "more than one element of the written-to tensor refers to a single memory"),
    (RuntimeError, "Inplace update to inference tensor outside InferenceMode"),
)


def documented(error: BaseException, text: str) -> bool:
    return any(isinstance(error, kind) and part in text for kind, part in DOCUMENTED)


def compare(expected: Any, result: Any, library: str, out: Any = None) -> bool:
    """Raise Wrong unless the result is what it must be; whether its values could be compared."""
    if expected is ...:
        return False
    if isinstance(expected, tuple):
        if not isinstance(result, tuple) or len(result) != len(expected):
            raise Wrong(f"{type(result).__name__} came out, {len(expected)} results were expected")
        judged = [compare(e, r, library, out) for e, r in zip(expected, result, strict=True)]
        return all(judged)
    if isinstance(expected, dict):
        if not isinstance(result, dict) or set(result) != set(expected):
            raise Wrong(
                f"{result if not isinstance(result, dict) else [*result]} for {[*expected]}"
            )
        judged = [compare(e, result[name], library) for name, e in expected.items()]
        return all(judged)
    if not isinstance(expected, Expected):
        if result != expected:
            raise Wrong(f"{result!r} came out, {expected!r} was expected")
        return True
    got = result_of(result, library, out)
    if got.shape != expected.shape or got.dtype.name != expected.dtype:
        raise Wrong(f"{got.dtype} {got.shape} came out for {expected.dtype} {expected.shape}")
    if not got.size:
        return True
    if expected.allowed is None:
        same = np.array_equal(truth.long(got), truth.long(expected.value), equal_nan=True)
        if not same:
            raise Wrong(f"{got} came out, {expected.value} was expected")
        return True
    if isinstance(expected, Rows):
        got = as_rows(got, expected.axis)
    try:
        check(got, np.asarray(expected.value), expected.allowed, expected.dtype)
    except AssertionError as error:
        raise Wrong(str(error)) from None
    return True


def result_of(result: Any, library: str, out: Any) -> Array:
    """A result's values; it must be a plain array of the library."""
    if library == "numpy":
        if type(result) is not np.ndarray and result is not out:
            raise Wrong(f"{type(result).__name__} came out, an ndarray was expected")
        return np.asarray(result)
    torch = torch_or_none()
    if not isinstance(result, torch.Tensor):
        raise Wrong(f"{type(result).__name__} came out, a tensor was expected")
    return from_tensor(result)


def bytes_of(result: Any) -> Any:
    """To tell two results apart."""
    if isinstance(result, dict):
        return {k: bytes_of(v) for k, v in result.items()}
    if isinstance(result, tuple | list):
        return [bytes_of(v) for v in result]
    if isinstance(result, np.ndarray):
        return result.tobytes()
    if hasattr(result, "data_ptr"):
        return from_tensor(result).tobytes()
    return result


class Fuzz:
    """The targets, and one call after another."""

    def __init__(
        self,
        libraries: Sequence[str] | None = None,
        planted: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        there = [name for name in ("numpy", "torch") if importlib.util.find_spec(name)]
        self.libraries = tuple(libraries or there)
        targets = [*targets_of_gpuact()]
        if "torch" in self.libraries:
            targets += targets_of_torch()
        self.planted = planted or {}
        if self.planted:  # nothing else then, so that it is soon found
            targets = [t for t in targets if t.name in self.planted]
        self.of = {
            library: [t for t in targets for _ in range(t.weight) if t.only in ("", library)]
            for library in self.libraries
        }
        self.names = {"x", "axis", "dtype", "logits", "target", "weight"}
        self.names |= {n for t in targets for n in t.parameters}
        self.messages: set[str] = set()
        if not self.planted:  # what is loaded once takes seconds
            gpuact.backends()
        if "torch" in self.libraries:
            gpuact.relu(torch_or_none().ones(1, device="meta"))

    def one(self, seed: int) -> Outcome:
        """One call, and what came of it."""
        c = Call(seed, self.libraries)
        target = c.of(self.of[c.library])
        try:
            with np.errstate(all="ignore"):
                args = target.draw(c)
                if c.mode == "hostile":
                    args = spoil(c, target, args)
            what, detail = self.made(c, target, args)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            what, detail = "harness", traceback.format_exc()
        finally:
            c.context.close()
        if what in FINDINGS:
            detail = f"{self.shown(c, target, locals().get('args', {}))}\n{detail}"
        return Outcome(target.name, c.library, c.mode, what, detail)

    def shown(self, c: Call, target: Target, args: Args) -> str:
        return f"{target.name}({', '.join(f'{n}={brief(a)}' for n, a in args.items())})" + (
            f"  junk: {c.spoiled}" if c.spoiled else ""
        )

    def made(self, c: Call, target: Target, args: Args) -> tuple[str, str]:
        """Make the call and judge it."""
        leaves = self.leaves(c, target, args)
        seen = {target.rename.get(n, n): snapshot(a) for n, a in args.items()}
        reading = Reading({target.rename.get(n, n): a for n, a in args.items()}, seen)
        out = args.get("out", args.get("dlogits_out"))
        if target.name.endswith("relu_") or ("inplace" in args and truthy(args["inplace"])):
            out = args["input"]
        function = self.planted.get(target.name, target.call)
        result = error = None
        with self.around(c, leaves), np.errstate(all="raise"):
            try:
                result = call(function, args)
            except Exception as raised:
                error = raised
        if error is not None:
            return self.raised(c, error)
        if any(memory.written(out) for memory in c.memories):
            return "wrong", "an input was written to, or memory beside out"
        first = result[1] if "dlogits_out" in args and isinstance(result, tuple) else result
        if isinstance(out, np.ndarray) or hasattr(out, "data_ptr"):
            inplace = "out" not in args and "dlogits_out" not in args
            if first is not out and not (inplace and leaves):
                return "wrong", "out was not returned"
        try:
            try:
                with np.errstate(all="ignore"):
                    expected = target.judge(reading)
                    library = c.library
                    if expected is not ... and target.name not in LIBRARYLESS:
                        library = reading.library() if reading.libraries else library
            except Unjudged as why:
                if c.mode == "valid":
                    return "harness", f"valid, and not judged: {why}"
                return "returned", ""
            with np.errstate(all="ignore"):
                compare(expected, result, library, out)
                if leaves and target.gradient is not None:
                    self.backward(c, target, reading, leaves, result)
        except Wrong as wrong:
            return "wrong", str(wrong)
        if c.mode == "valid" and out is None and not leaves and c.chance(0.15):
            try:
                again = call(function, args)
            except Exception as raised:
                return self.raised(c, raised)
            if bytes_of(again) != bytes_of(result):
                return "wrong", "the second call gave something else"
        return "right", ""

    def raised(self, c: Call, error: Exception) -> tuple[str, str]:
        if isinstance(error, Warning | FloatingPointError) and not documented(error, str(error)):
            return "warning", shown_error(error)
        if c.mode == "valid":
            return "wrong", f"what is allowed was refused: {shown_error(error)}"
        if any(memory.written(None) for memory in c.memories):
            return "wrong", f"something was written before it was refused: {shown_error(error)}"
        why = refusal(error, self.names)
        if why is not None:
            return "raw", f"{why}\n{shown_error(error)}"
        self.messages.add(re.sub(r"\([^)]*\)|'[^']*'|[-+.\de]*\d[-+.\de]*", "…", str(error)))
        return "refused", ""

    def leaves(self, c: Call, target: Target, args: Args) -> dict[str, Any]:
        """Some of the tensors made to require a gradient, where that is to be judged."""
        if not c.torch or c.mode == "hostile" or target.gradient is None or not c.chance(0.4):
            return {}
        if {"out", "dlogits_out", "inplace", "dtype"} & {*args}:
            return {}
        constants = ("mask", "target") + (
            ("weight",) if "logits" in {target.rename.get(n, n) for n in args} else ()
        )
        found = {}
        for name, a in args.items():
            own = target.rename.get(name, name)
            floats = hasattr(a, "data_ptr") and a.is_floating_point()
            if floats and own not in constants and c.chance(0.8):
                found[own] = a.requires_grad_()
        return found

    def around(self, c: Call, leaves: Args) -> AbstractContextManager[Any]:
        stack = ExitStack()
        if c.mode == "valid" and c.chance(0.05):
            stack.enter_context(gpuact.using("numpy"))
        if c.torch and not leaves and c.chance(0.05):
            stack.enter_context(torch_or_none().no_grad())
        return stack

    def backward(
        self, c: Call, target: Target, reading: Reading, leaves: Args, result: Any
    ) -> None:
        torch, first = torch_or_none(), result[0] if isinstance(result, tuple) else result
        if "nn.PReLU" in target.name:
            leaves = {n: a for n, a in leaves.items() if n == "x"}  # its weight is a copy
            if not leaves:
                return
        if not first.requires_grad:
            raise Wrong("the result does not require a gradient")
        dtype = dtype_of(first)
        dy = c.floats(tuple(first.shape), dtype, (0.0,), 1.0)
        given = c.array(dy)
        names = [*leaves]
        dy = np.asarray(snapshot(given))
        with np.errstate(all="raise"):
            got = torch.autograd.grad(first, [leaves[n] for n in names], given, allow_unused=True)
        if any(memory.written(None) for memory in c.memories):
            raise Wrong("backward wrote to an input")
        try:
            expected = target.gradient(reading, from_tensor(first), dy)  # type: ignore[misc]
        except Unjudged:
            return
        for name, gradient in zip(names, got, strict=True):
            if gradient is None:
                raise Wrong(f"{name} has no gradient")
            try:
                compare(expected[name], gradient, "torch")
            except Wrong as wrong:
                raise Wrong(f"the gradient of {name}: {wrong}") from None


def truthy(value: Any) -> bool:
    try:
        return bool(value)
    except Exception:
        return False


LIBRARYLESS = ("describe", "warmup", "using", "backends", "Dropout")


def call(function: Callable[..., Any], args: Args) -> Any:
    """By name; the first by its place where it has one."""
    return function(**args)


def shown_error(error: BaseException) -> str:
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return "".join(lines[-8:])


def brief(a: Any) -> str:
    try:
        if isinstance(a, np.ndarray):
            return f"{type(a).__name__}[{a.dtype}, {a.shape}, strides {a.strides}]"
        if hasattr(a, "data_ptr"):
            return f"{type(a).__name__}[{a.dtype}, {tuple(a.shape)}, {a.layout}, {a.device}]"
        text = repr(a)
        return text if len(text) < 100 else f"{text[:100]}…"
    except BaseException as error:
        return f"<{type(a).__name__}: {type(error).__name__}>"


# -- many calls -----------------------------------------------------------------------------------

Key = tuple[str, str, str, str]  # library, function, mode, outcome


@dataclass
class Report:
    calls: int = 0
    tally: Counter[Key] = field(default_factory=Counter)
    findings: list[tuple[int, Outcome]] = field(default_factory=list)
    messages: set[str] = field(default_factory=set)
    seconds: float = 0.0

    def add(self, seed: int, outcome: Outcome) -> None:
        self.calls += 1
        self.tally[outcome.library, outcome.function, outcome.mode, outcome.what] += 1
        if outcome.finding:
            self.findings.append((seed, outcome))

    def join(self, other: Report) -> None:
        self.calls += other.calls
        self.tally += other.tally
        self.findings += other.findings
        self.messages |= other.messages

    def count(self, what: str) -> int:
        return sum(n for (*_, outcome), n in self.tally.items() if outcome == what)

    def line(self) -> str:
        found = ", ".join(f"{n} {what}" for what in FINDINGS if (n := self.count(what)))
        rate = self.calls / max(self.seconds, 1e-9)
        return f"{self.calls} calls, {rate:.0f}/s, findings: {found or 'none'}"


def here(calls: int, seed: int = 0, fuzz: Fuzz | None = None, first: int = 0) -> Report:
    """So many calls in this process."""
    fuzz, report = fuzz or Fuzz(), Report()
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(first, first + calls):
            report.add(seed * SPAN + k, fuzz.one(seed * SPAN + k))
    report.messages, report.seconds = fuzz.messages, time.perf_counter() - start
    return report


BATCH = 250


def work(
    numbers: range,
    seed: int,
    skipped: set[int],
    plan: tuple[Any, Any],
    now: Any,
    slot: int,
    pipe: Any,
) -> None:
    """What a process does: tell a batch of calls after another, and the number of the present one.

    `now` is written before each call: were it to end the process, it would be known by that.
    """
    with open(os.devnull, "w") as devnull, open(_trace(os.getpid()), "w") as dump:
        faulthandler.register(signal.SIGUSR1, dump)
        sys.stdout = devnull
        fuzz = Fuzz(*plan)
        warnings.simplefilter("error")
        report = Report()
        for done, k in enumerate(numbers, 1):
            if k not in skipped:
                now[slot] = k
                report.add(seed * SPAN + k, fuzz.one(seed * SPAN + k))
            if done % BATCH == 0 or done == len(numbers):
                now[slot] = -1
                report.messages = fuzz.messages
                pipe.send((done, report))
                report = Report()
        pipe.close()
    os.unlink(_trace(os.getpid()))


def _trace(pid: int) -> str:
    return os.path.join(tempfile.gettempdir(), f"gpuact-fuzz-{pid}.txt")


class Worker:
    """A process, and those that take its place when a call ends it."""

    def __init__(
        self, numbers: range, seed: int, plan: tuple[Any, Any], now: Any, slot: int
    ) -> None:
        self.numbers, self.seed, self.plan, self.now, self.slot = numbers, seed, plan, now, slot
        self.skipped: set[int] = set()
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe(duplex=False)
        self.now[self.slot] = -1
        args = (self.numbers, self.seed, self.skipped, self.plan, self.now, self.slot, theirs)
        self.process = context.Process(target=work, args=args, daemon=True)
        self.process.start()
        theirs.close()
        self.told = 0  # how many of the numbers have been told of
        self.moved(-1)

    def moved(self, at: int) -> None:
        self.at, self.since, self.idle = at, time.monotonic(), 0
        self.used: float | None = None  # of the CPU, once it takes long

    def stuck(self) -> bool:
        """Whether the present call computes for too long, or waits for something; not for its turn,
        which may take as long on a busy machine."""
        if time.monotonic() - self.since < PATIENCE:
            return False
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # not on Linux
            return True
        used = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
        self.used = used if self.used is None else self.used
        self.idle = 0 if stat[0] == "R" else self.idle + 1
        return self.idle > 10 or used - self.used > PATIENCE

    @property
    def trace(self) -> Path:
        return Path(_trace(self.process.pid or 0))

    def poll(self, report: Report) -> bool:
        """Take what has been told; whether there is more to come."""
        try:
            while self.pipe.poll():
                self.told, part = self.pipe.recv()
                report.join(part)
        except (EOFError, ConnectionResetError):
            self.process.join()
            if self.told < len(self.numbers):
                self.lost(report, "crash", f"the process ended with {self.process.exitcode}")
                return True
            return False
        at = self.now[self.slot]
        if at != self.at or at < 0:
            self.moved(at)
        elif self.stuck():
            os.kill(self.process.pid or 0, signal.SIGUSR1)
            time.sleep(0.3)
            trace = self.trace.read_text()
            self.process.kill()
            self.process.join()
            self.lost(report, "hang", f"no end after {PATIENCE} s\n{trace}")
        return True

    def lost(self, report: Report, what: str, detail: str) -> None:
        """Record the call that ended the process, and go on with what it had not told yet."""
        at = self.now[self.slot]
        self.trace.unlink(missing_ok=True)
        if at < 0:
            raise RuntimeError(f"a worker failed outside any call: {detail}")
        fuzz = Fuzz(*self.plan)
        c = Call(self.seed * SPAN + at, fuzz.libraries)
        name = c.of(fuzz.of[c.library]).name
        report.add(c.seed, Outcome(name, c.library, c.mode, what, detail))
        self.skipped.add(at)
        self.numbers = self.numbers[self.told :]
        self.start()


def run(
    calls: int,
    seed: int = 0,
    workers: int = 2,
    libraries: Sequence[str] | None = None,
    planted: Mapping[str, Callable[..., Any]] | None = None,
    progress: Callable[[Report], None] = lambda report: None,
) -> Report:
    """So many calls in processes of their own."""
    # glibc then fills what it hands out: what nobody wrote shows
    os.environ.setdefault("MALLOC_PERTURB_", "165")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    now = context.RawArray("q", workers)
    start, report = time.monotonic(), Report()
    plan = (libraries, planted)
    crew = [
        Worker(range(k, calls, workers), seed, plan, now, k) for k in range(min(workers, calls))
    ]
    try:
        while crew:
            crew = [worker for worker in crew if worker.poll(report)]
            report.seconds = time.monotonic() - start
            progress(report)
            time.sleep(0.05)
    finally:
        for worker in crew:
            worker.process.kill()
    return report


def record(report: Report, seed: int, workers: int, libraries: Sequence[str]) -> dict[str, Any]:
    """What a run was and what came of it, as JSON."""
    by: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    for (library, function, mode, what), n in sorted(report.tally.items()):
        by.setdefault(library, {}).setdefault(function, {}).setdefault(mode, {})[what] = n
    versions = {"python": platform.python_version()}
    for name in ("ml_dtypes", "numpy", "torch"):
        if importlib.util.find_spec(name):
            versions[name] = metadata.version(name)
    versions["gpuact"] = gpuact.__version__
    return {
        "calls": report.calls,
        "findings": {what: report.count(what) for what in FINDINGS},
        "outcomes": {what: report.count(what) for what in ("refused", "returned", "right")},
        "messages": len(report.messages),
        "by function": by,
        "libraries": list(libraries),
        "platform": platform.platform(),
        "seconds": round(report.seconds, 1),
        "seed": seed,
        "versions": versions,
        "workers": workers,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--record", type=Path, help="write the run as JSON")
    parser.add_argument("--library", help="numpy, torch or both, with a comma (what there is)")
    parser.add_argument("--only", type=int, metavar="SEED", help="this call alone, in this process")
    parser.add_argument("--show", type=int, default=20, help="how many findings to print")
    options = parser.parse_args(argv)
    libraries = options.library.split(",") if options.library else None
    if options.only is not None:
        seed, k = divmod(options.only, SPAN)
        report = here(1, seed, Fuzz(libraries), k)
        ((what, _),) = report.tally.items()
        print(" ".join(what), *(found.detail for _, found in report.findings), sep="\n")
        return 1 if report.findings else 0
    told = 0.0

    def progress(report: Report) -> None:
        nonlocal told
        if report.seconds - told >= 10:
            told = report.seconds
            print(report.line(), flush=True)

    report = run(options.calls, options.seed, options.workers, libraries, None, progress)
    print(report.line())
    for seed, found in report.findings[: options.show]:
        print(f"\n{found.what} --only {seed} ({found.library}, {found.mode})\n{found.detail}")
    if options.record:
        known = libraries or Fuzz().libraries
        made = record(report, options.seed, options.workers, known)
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
