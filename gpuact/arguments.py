"""What may be passed. A refusal is one sentence: the argument, what came, what is allowed."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import islice
from numbers import Real
from operator import index
from typing import Any

import numpy as np

from .libraries import FLOATING, HALF, Library, dtype_name, library_of, word

INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
UNDECIDED = 50_000  # combinations of steps, tried in milliseconds, after which strides are refused


def _masked(x: Any) -> bool:
    """Asked without loading numpy.ma, which fails where another thread loads ml_dtypes."""
    if not isinstance(x, np.ndarray):  # nor does a trace ask sys.modules, which it would copy whole
        return False
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", None)
    return masked is not None and isinstance(x, masked)


def array(name: str, x: Any) -> Any:
    """An array of a known library; lists, scalars and the like become NumPy arrays."""
    if _masked(x):
        raise TypeError(f"{name}: a masked array came, allowed are arrays without a mask")
    if library_of(x) is not None:
        return np.asarray(x) if isinstance(x, np.ndarray) else x  # np.matrix has rules of its own
    try:
        return np.asarray(x)
    except Exception as error:
        raise TypeError(
            f"{name}: {type(x).__name__} came, allowed are arrays of NumPy, CuPy or PyTorch, "
            f"numbers and lists of numbers"
        ) from error


def floating(name: str, library: Library, x: Any, dtype: Any = None) -> Any:
    """x in a floating dtype: integers and bools as float32; the others are refused."""
    came = _real(name, library, x)
    wanted = came if came in FLOATING else "float32"
    if dtype is not None:
        wanted = dtype_name(dtype)
        if wanted not in FLOATING:
            raise TypeError(f"dtype: {wanted} came, allowed are {', '.join(FLOATING)}")
    return library.astype(x, wanted)


def _real(name: str, library: Library, x: Any) -> str:
    came = library.dtype(x)
    if came not in (*FLOATING, *INTEGERS, "bool"):
        raise TypeError(
            f"{name}: dtype {came} came, allowed are {', '.join(FLOATING)}, integers and bool"
        )
    return came


def activation_input(name: str, library: Library, x: Any, integers: str) -> Any:
    """x as an activation takes it: `integers` is the record's word on integer arrays."""
    came = _real(name, library, x)
    if came in FLOATING:
        return x
    if integers == "refused":
        raise TypeError(f"{name}: dtype {came} came, allowed are {', '.join(FLOATING)}")
    if integers == "kept":
        if came == "bool":
            raise TypeError(f"{name}: dtype bool came, allowed are {', '.join(FLOATING)}, integers")
        return x
    return library.astype(x, "float32")


def compute_dtype(dtype: str) -> str:
    """The precision in which a dtype is computed; also the dtype of losses."""
    return "float32" if dtype in HALF else dtype


def gradient(name: str, library: Library, dy: Any, of: str, x: Any) -> Any:
    """An incoming gradient: of the shape of what it is the gradient of, and taken in its dtype."""
    _real(name, library, dy)
    if tuple(dy.shape) != tuple(x.shape):
        raise ValueError(f"{name}: shape {tuple(dy.shape)} came, {of} has {tuple(x.shape)}")
    return library.astype(dy, library.dtype(x))


def parameter(name: str, value: Any, arrays: bool) -> Any:
    """A parameter: a number as float, and where `arrays` are allowed, an array or list as array."""
    if isinstance(value, np.generic) and value.dtype.name in FLOATING:
        return float(value)
    if isinstance(value, Real) and not isinstance(value, np.timedelta64):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(
                f"{name}: a number came that is too large for a float, allowed are numbers up to "
                f"{sys.float_info.max:.2g}"
            ) from None
    if not arrays:
        raise TypeError(f"{name}: {type(value).__name__} came, allowed is a number")
    if library_of(value) is None and not isinstance(value, list | tuple):
        raise TypeError(f"{name}: {type(value).__name__} came, allowed are a number and an array")
    return array(name, value)


def positive(name: str, value: Any, zero: bool) -> float:
    """A finite number above 0, or from 0 on."""
    number: float = parameter(name, value, arrays=False)
    if not (0 <= number < math.inf and (zero or number)):
        allowed = "a finite number from 0 on" if zero else "a finite number above 0"
        raise ValueError(f"{name}: {number} came, allowed is {allowed}")
    return number


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: {type(value).__name__} came, allowed is True or False")
    return bool(value)


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of some words."""
    if not (isinstance(value, str) and value in allowed):
        raise ValueError(f"{name}: {word(value)} came, allowed are {', '.join(map(repr, allowed))}")
    return value


def broadcast_shape(name: str, value: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """A parameter's shape with ones in front, checked to broadcast to `shape` and no further."""
    own = tuple(value.shape)
    padded = (1,) * (len(shape) - len(own)) + own
    # not `n in (1, m)`: of a symbolic m torch.compile answers that with False
    fits = len(own) <= len(shape) and all(
        n == 1 or n == m for n, m in zip(padded, shape, strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name}: shape {own} came, allowed are shapes that broadcast to {tuple(shape)}"
        )
    return padded


def channel_shape(
    name: str, value: Any, shape: Sequence[int], channel_axis: int
) -> tuple[int, ...]:
    """The shape in which a learned parameter meets x: shared, one a channel, or x's dimensions."""
    own = tuple(value.shape)
    ndim = len(shape)
    whole("channel_axis", channel_axis)
    if math.prod(own) == 1 and len(own) <= 1:
        return (1,) * ndim
    if len(own) == 1 and not (ndim == 1 and channel_axis == 1):
        axis = single_axis("channel_axis", channel_axis, ndim)
        if own[0] != shape[axis]:
            raise ValueError(
                f"{name}: {own[0]} elements came, axis {axis} of x (shape {tuple(shape)}) "
                f"has {shape[axis]} channels; allowed are one element or one a channel"
            )
        return tuple(own[0] if k == axis else 1 for k in range(ndim))
    if len(own) == ndim:
        return broadcast_shape(name, value, shape)
    raise ValueError(
        f"{name}: shape {own} came, allowed are one element, one a channel (1-D), or "
        f"{ndim} dimensions that broadcast to x's shape {tuple(shape)}"
    )


def integer(name: str, value: Any) -> int:
    try:
        if isinstance(value, np.bool_):  # index takes it up to NumPy 2.2, and warns
            raise TypeError
        return index(value)
    except (TypeError, RuntimeError):  # RuntimeError: of a tensor that has no memory
        raise TypeError(f"{name}: {type(value).__name__} came, allowed is an int") from None


def whole(name: str, value: Any) -> int:
    """An argument that must be an int (of 64 bits, as the kernels take it)."""
    number = integer(name, value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name}: {number} came, allowed is an int of 64 bits")
    return number


def single_axis(name: str, axis: Any, ndim: int) -> int:
    """An axis as a number from 0; AxisError out of range."""
    k = whole(name, axis)
    if not -ndim <= k < ndim:
        raise np.exceptions.AxisError(
            f"{name}: {k} came, an array of {ndim} dimensions allows {-ndim} to {ndim - 1}"
            if ndim
            else f"{name}: {k} came, a 0-d array has no such axis"
        )
    return k % ndim


def row_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """The axes of a softmax, sorted: an int, a tuple of ints, or None for all."""
    if axis is None:
        return tuple(range(ndim))
    several = isinstance(axis, tuple | list)
    given = axis if several else (axis,)
    if ndim == 0 and len(given) < 2 and all(whole("axis", a) in (0, -1) for a in given):
        return ()  # a 0-d array is one row of one element
    if not several:
        return (single_axis("axis", axis, ndim),)
    axes = tuple(sorted(single_axis("axis", a, ndim) for a in given))
    if not axes or len(set(axes)) < len(axes):
        raise ValueError(f"axis: {tuple(given)} came, allowed are distinct axes, at least one")
    return axes


def output(
    library: Library, out: Any, shape: Sequence[int], dtype: str, like: Any, name: str = "out"
) -> None:
    """Refuse an `out` that cannot take the result."""
    if _masked(out):
        raise TypeError(f"{name}: a masked array came, allowed are arrays without a mask")
    if isinstance(out, np.matrix):  # whose views have two dimensions, whatever one asks for
        raise TypeError(f"{name}: a matrix came, allowed is an ndarray")
    if library_of(out) is not library:
        raise TypeError(
            f"{name}: {type(out).__name__} came, allowed is an array of x's own library, "
            f"{type(like).__name__}"
        )
    if library.device(out) != library.device(like):
        raise TypeError(
            f"{name}: is on {library.device(out)} while x is on {library.device(like)}; both must "
            "be on one device"
        )
    if library.dtype(out) != dtype:
        raise TypeError(f"{name}: dtype {library.dtype(out)} came, the result has {dtype}")
    library.check_dense(name, out)
    if tuple(out.shape) != tuple(shape):
        raise ValueError(f"{name}: shape {tuple(out.shape)} came, the result has {tuple(shape)}")
    if not library.writable(out):
        raise ValueError(f"{name}: a read-only array came, allowed is a writable one")
    strides = library.strides(out)
    if 0 not in out.shape and _overlaps(out.shape, strides, library.itemsize(out)):
        raise ValueError(
            f"{name}: shape {tuple(out.shape)} came with strides of {strides} bytes, by which "
            "elements share their places, allowed is an array in which each has its own"
        )


def _overlaps(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """Whether two elements share a byte; also where it would take too long to say."""
    axes, reaches, reach = [], [], itemsize - 1
    for step, n in sorted((abs(s), n) for s, n in zip(strides, shape, strict=True) if n > 1):
        axes.append((step, n))
        reaches.append(reach)  # what the axes with smaller steps can make up for
        reach += step * (n - 1)
    if all(step > reach for (step, _), reach in zip(axes, reaches, strict=True)):
        return False
    # How far apart two elements are, axis by axis, as long as the axes left can bring them together
    apart = {(0, False)}  # bytes, and whether they are two
    for (step, n), reach in zip(reversed(axes), reversed(reaches), strict=True):
        if step == 0:
            return True
        steps = (
            (far + step * k, two or k != 0)
            for far, two in apart
            for k in range(max(-n + 1, -((reach + far) // step)), min(n, (reach - far) // step + 1))
        )
        found = list(islice(steps, UNDECIDED))
        if len(found) == UNDECIDED:
            return True
        apart = set(found)
    return any(two for _, two in apart)
