"""A call that is being made up: its random choices, and its arrays in memory amid poison."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from tests.bounds import DTYPES
from tests.truth import Array

Args = dict[str, Any]
HOSTILE = 0.4
FLOATING = tuple(DTYPES)
INTEGERS = tuple(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))
TENSORS = {*FLOATING, *INTEGERS, "bool", "complex64", "complex128"}
INF = np.inf
GUARD, POISON = 64, 0xA5
STEPS = (1, 1, 1, 1, 1, 2, 3, -1, -2, 0)
APART = (1, 1, 2, -1)


@cache
def torch_or_none() -> Any:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    torch.set_num_threads(1)
    return torch


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
        self,
        shape: Sequence[int],
        special: Sequence[float] = (),
        *,
        integers: bool = True,
        lost: Array | None = None,
    ) -> Any:
        """What may stand for an array of numbers: an array of any dtype; of NumPy's, a list too.

        lost: where NaN and infinities may stand, as what is there must not matter.
        """
        kind = self.rng.random()
        if integers and kind < 0.12:
            dtype = self.of(INTEGERS)
            x = self.rng.integers(0 if dtype[0] == "u" else -5, 6, shape).astype(dtype)
        elif integers and kind < 0.15 and integers != "no bool":
            x = self.rng.random(shape) < 0.5
        else:
            x = self.floats(shape, self.of(FLOATING), special)
            if lost is not None:
                x[lost] = self.rng.choice((np.nan, INF, -INF, 1.0), shape)[lost]
        if not self.torch and kind > 0.95 and x.dtype.name != "bfloat16" and x.size:
            return x.tolist()
        a = self.array(x, STEPS if lost is None else APART)
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
        if kind < 0.65 or not dtype:
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
