"""What arguments mean: snapshots of them, how the documentation has them, what is then expected."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from operator import index
from typing import Any

import numpy as np

from gpuact.fusion import Dropout
from tests.bounds import DTYPES, compute_dtype
from tests.truth import Array

from .calls import FLOATING, INTEGERS, TENSORS, Args, torch_or_none

UNKNOWN = object()  # a snapshot of what nobody can say anything of
PLAIN = (bool, int, float, str, list, tuple, Dropout)


class Unjudged(Exception):
    """The documentation does not say what these arguments mean."""


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
        real = isinstance(value, int | float | Fraction | np.floating | np.integer)
        if not real or isinstance(value, np.timedelta64):  # which NumPy has for an integer
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


def reading_of(r: Reading, more: Args) -> Reading:
    """The same arguments and some more, these as NumPy arrays."""
    args = {**r.args, **dict.fromkeys(more)}
    return Reading(args, {**r.seen, **more})


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


@dataclass
class Rows(Expected):
    """Value and allowed error as `as_rows` has them."""

    axis: Any = None


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
