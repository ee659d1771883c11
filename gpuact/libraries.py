"""What gpuact must know of an array library: NumPy, CuPy, PyTorch. Nothing here computes.

An array belongs to its library by type, asked only of libraries that are already imported: an
object of a library nobody imported cannot exist. Dtypes go by name ("bfloat16"), memory by pointer
and byte strides, so that everything above is written once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any, ClassVar, cast

import numpy as np

from .backends import SHAPES

FLOATING = ("float16", "bfloat16", "float32", "float64")
HALF = ("float16", "bfloat16")
# Types of operands that are no arrays
NUMBERS: frozenset[type] = frozenset((float, int, type(None)))

# Of an array of exactly this type all that tells one kind from another; of a number its type. For
# tensors it is all that a launch depends on but the address; CuPy's backend looks at addresses
# itself, at every call. No two types have facts in common.
FACTS: dict[type, Callable[[Any], Hashable]] = dict.fromkeys(NUMBERS, type)


def _int_facts(n: int) -> Hashable:
    try:
        float(n)
    except OverflowError:
        raise KeyError("too large for a float: a closer look will say so") from None
    return int


FACTS[int] = _int_facts


# Inside one of PyTorch's operators: who sees every operator sees that one, not what it is made of.
inside: ContextVar[bool] = ContextVar("gpuact_inside", default=False)


def tracing(x: Any) -> bool:
    """Whether torch.compile reads this code, instead of Python running it."""
    if not hasattr(x, "__torch_function__"):
        return False
    import torch  # which is there, as x is; and a trace that asked sys.modules would copy it whole

    return torch.compiler.is_dynamo_compiling() and isinstance(x, torch.Tensor)


def mode(x: Any) -> str:
    """What is on beside autograd: "compile" where `tracing`, "autocast" where torch.autocast is."""
    if not hasattr(x, "__torch_function__"):
        return ""
    import torch

    if torch.compiler.is_dynamo_compiling() and isinstance(x, torch.Tensor):
        return "compile"
    return "autocast" if torch._C._is_any_autocast_enabled() else ""


def autocast(x: Any) -> Any:
    """A half type in float32 where torch.autocast is on: what it does with softmax."""
    import torch

    half = x.dtype in (torch.float16, torch.bfloat16) and not x.is_meta
    return x.float() if half and torch.is_autocast_enabled(x.device.type) else x


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's dtype of that name; ml_dtypes is loaded when bfloat16 is first asked for."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def dtype_name(dtype: Any) -> str:
    """The name of a NumPy, CuPy, ml_dtypes or torch dtype, or of its spelling as text."""
    text = str(dtype)
    if text.startswith("torch."):
        return text.removeprefix("torch.")
    if text == "bfloat16":
        return text
    try:
        return np.dtype(dtype).name
    except (TypeError, ValueError, Warning):  # of a name that is deprecated, where that is an error
        raise TypeError(f"dtype: {word(dtype)} came, allowed are {', '.join(FLOATING)}") from None


def word(value: Any) -> str:
    """What came, in an error message: text and numbers as they are, of other things the type."""
    told = value is None or type(value) in (str, int, float, bool)
    return repr(value) if told else type(value).__name__


@cache
def _name_of(dtype: np.dtype[Any]) -> str:
    return dtype.name  # NumPy puts it together anew each time: 2 µs


class Library:
    """NumPy and, with another module behind it, CuPy."""

    name: ClassVar[str] = "numpy"
    tracks: ClassVar[bool] = False  # whether it has an autograd
    xp: Any = np
    captured: ClassVar[list[Any]] = []  # what is kept for CUDA graphs; of NumPy, nothing

    def home(self, x: Any) -> str:
        """Where the array lives, in the words that error messages use."""
        return "NumPy"

    def device(self, x: Any) -> str:
        return "cpu"

    def dtype(self, x: Any) -> str:
        return _name_of(x.dtype)

    def pointer(self, x: Any) -> int:
        return int(x.__array_interface__["data"][0])

    def strides(self, x: Any) -> tuple[int, ...]:
        """In bytes."""
        return tuple(x.strides)

    def itemsize(self, x: Any) -> int:
        return int(x.dtype.itemsize)

    def writable(self, x: Any) -> bool:
        return bool(x.flags.writeable)

    def empty(self, shape: Sequence[int], dtype: str, like: Any) -> Any:
        return self.xp.empty(tuple(shape), numpy_dtype(dtype))

    def ordinary(self) -> AbstractContextManager[Any]:
        """Memory that is made in here may be written to anywhere."""
        return nullcontext()

    def empty_in_order(
        self, order: Sequence[int], shape: Sequence[int], dtype: str, like: Any
    ) -> Any:
        """`empty`, with its axes in this order in memory."""
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return self.permute(self.empty([shape[k] for k in order], dtype, like), inverse)

    def empty_like(self, x: Any, dtype: str) -> Any:
        """In x's memory order where x is dense."""
        return self.xp.empty_like(x, numpy_dtype(dtype))

    def astype(self, x: Any, dtype: str) -> Any:
        if self.dtype(x) == dtype:
            return x
        with np.errstate(all="ignore"):
            return x.astype(numpy_dtype(dtype))

    def classes(self, x: Any) -> Any:
        """Integers as int64; what is too large for that becomes the largest, never a negative."""
        found = self.astype(x, "int64")
        return self.xp.where(found < 0, 2**63 - 1, found) if self.dtype(x) == "uint64" else found

    def eye(self, n: int, dtype: str, like: Any) -> Any:
        return self.xp.eye(n, dtype=numpy_dtype(dtype))

    def permute(self, x: Any, axes: Sequence[int]) -> Any:
        return x.transpose(tuple(axes))

    def broadcast(self, x: Any, shape: Sequence[int]) -> Any:
        return self.xp.broadcast_to(x, tuple(shape))

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        """A view where the strides allow it, else a copy."""
        return x.reshape(tuple(shape))

    def strided(self, x: Any, shape: Sequence[int], strides: Sequence[int]) -> Any:
        """A view that begins where x does; strides in bytes."""
        return self.xp.lib.stride_tricks.as_strided(x, tuple(shape), tuple(strides))

    def contiguous(self, x: Any) -> Any:
        return self.xp.ascontiguousarray(x)

    def is_contiguous(self, x: Any) -> bool:
        return bool(x.flags.c_contiguous)

    def copy(self, destination: Any, source: Any) -> None:
        destination[...] = source

    def wrote(self, x: Any) -> None:
        """Told after every write to an array of the caller's."""

    def divide(self, a: Any, b: Any) -> Any:
        """Arrays of the loss's dtype; 0/0 is NaN without a warning."""
        with np.errstate(all="ignore"):
            return self.xp.asarray(self.xp.true_divide(a, b))

    def any(self, x: Any) -> bool:
        """Whether one element is true: waits for the device."""
        return bool(x.any())

    def check_dense(self, name: str, x: Any) -> None:
        """Refuse what has no strides."""

    def shares(self, x: Any, backend: str) -> bool:
        """Whether `native` is the same memory and not a copy."""
        return True

    def native(self, x: Any, backend: str) -> Any:
        """The array that the backend works on: the same memory wherever that is possible."""
        return x

    def on(self, x: Any, backend: str) -> AbstractContextManager[Any]:
        """Make x's device and the caller's stream current for the backend."""
        return nullcontext()

    def tracked(self, x: Any) -> bool:
        """Whether autograd must record what is done with x."""
        return self.learns(x) and self.recording()

    def learns(self, x: Any) -> bool:
        """Whether x requires a gradient."""
        return False

    recording: Callable[[], bool] = staticmethod(lambda: False)  # whether autograd records

    def watched(self, *operands: Any) -> bool:
        """Whether more than autograd must see what is done with these: a trace, a transformation,
        a subclass's own rules."""
        return False

    # Quick answers, for routes.py

    def own(self, x: Any, backend: str) -> bool:
        """Whether arrays with x's facts are the backend's own as they stand: `native` does nothing
        for them, and `on` neither where their place is the current one."""
        return type(x) is self.xp.ndarray and backend == self.name and bool(x.dtype.isnative)

    def place(self, x: Any) -> int:
        """The number of x's device; -1 for the CPU."""
        return -1

    # whether a place is the current one, and nobody watches
    here: Callable[[int], bool] = staticmethod(lambda place: True)
    alike: Callable[[Any], Any] = staticmethod(np.empty_like)  # `empty_like` of x's own dtype

    def direct(self, out: Any, x: Any) -> bool:
        """Whether `out` is one like x, contiguous as it is, in its very memory or in none of it."""
        if type(out) is not type(x) or out.dtype != x.dtype or out.shape != x.shape:
            return False
        if not (self._simple(out) and self._simple(x)):
            return False
        apart = abs(self.pointer(out) - self.pointer(x))
        return apart == 0 or apart >= x.nbytes

    def apart(self, out: Any, x: Any) -> bool:
        """`direct`, of arrays with the same facts as some of which it held."""
        return self.direct(out, x)

    def _simple(self, x: Any) -> bool:
        return bool(x.flags.c_contiguous and self.writable(x))


def _array_facts(x: Any) -> Hashable:
    return x.dtype, x.shape, x.flags.c_contiguous or x.strides


FACTS[np.ndarray] = _array_facts


class CuPy(Library):
    name = "cupy"
    captured: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        import cupy

        self.xp = cupy
        self.alike = lambda x: self._made(x, cupy.empty_like, x)
        self.here = lambda place: bool(cupy.cuda.runtime.getDevice() == place)
        FACTS[cupy.ndarray] = lambda x: (*cast(Any, _array_facts(x)), x.device.id)

    def home(self, x: Any) -> str:
        return "CuPy"

    def device(self, x: Any) -> str:
        return f"cuda:{x.device.id}"

    def pointer(self, x: Any) -> int:
        return int(x.data.ptr)

    def writable(self, x: Any) -> bool:
        return True

    def _made(self, like: Any, make: Callable[..., Any], *args: Any) -> Any:
        """What `make` makes, on like's device; all memory that is asked of CuPy comes this way.

        CuPy's pool knows nothing of CUDA graphs: it would hand the memory to somebody else once we
        let go of it, while every replay still writes there. What a capture makes is kept for good,
        in `captured`.
        """
        with like.device:
            made = make(*args)
            if self.xp.cuda.get_current_stream().is_capturing():
                self.captured.append(made)
        return made

    def empty(self, shape: Sequence[int], dtype: str, like: Any) -> Any:
        return self._made(like, super().empty, shape, dtype, like)

    def empty_like(self, x: Any, dtype: str) -> Any:
        return self._made(x, super().empty_like, x, dtype)

    def astype(self, x: Any, dtype: str) -> Any:
        return self._made(x, super().astype, x, dtype)

    def classes(self, x: Any) -> Any:
        return self._made(x, super().classes, x)

    def eye(self, n: int, dtype: str, like: Any) -> Any:
        return self._made(like, super().eye, n, dtype, like)

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        return self._made(x, super().reshape, x, shape)

    def contiguous(self, x: Any) -> Any:
        return self._made(x, super().contiguous, x)

    def divide(self, a: Any, b: Any) -> Any:
        return self._made(a, super().divide, a, b)

    def place(self, x: Any) -> int:
        return int(x.device.id)

    def copy(self, destination: Any, source: Any) -> None:
        with destination.device:
            super().copy(destination, source)

    def shares(self, x: Any, backend: str) -> bool:
        return backend != "triton" or min(x.strides, default=0) >= 0  # torch has no others

    def native(self, x: Any, backend: str) -> Any:
        if backend != "triton":
            return x
        return _torch_from_cupy(x if self.shares(x, backend) else self.contiguous(x))

    def on(self, x: Any, backend: str) -> AbstractContextManager[Any]:
        if backend != "triton":
            return cast(AbstractContextManager[Any], x.device)
        import torch

        stack = ExitStack()
        stack.enter_context(x.device)
        pointer = self.xp.cuda.get_current_stream().ptr
        stack.enter_context(torch.cuda.device(x.device.id))
        # ExternalStream takes 0 for "any stream of the pool", not for the null stream
        stream = torch.cuda.ExternalStream(pointer) if pointer else torch.cuda.default_stream()
        stack.enter_context(torch.cuda.stream(stream))
        return stack


class Torch(Library):
    name = "torch"
    tracks = True

    def __init__(self) -> None:
        import torch

        self.xp = torch
        self._devices = 0  # not asked yet: what CUDA shows is settled with the first CUDA tensor
        self.alike, self.recording = torch.empty_like, torch.is_grad_enabled
        self.here, self._looked_at = self._quick_answers(torch)
        self._wrote = torch.autograd.graph.increment_version
        FACTS[torch.Tensor] = FACTS[torch.nn.Parameter] = _tensor_facts

    def home(self, x: Any) -> str:
        return {"cpu": "PyTorch on the CPU", "cuda": "PyTorch on CUDA"}.get(
            x.device.type, f"PyTorch on {x.device.type}"
        )

    def device(self, x: Any) -> str:
        return str(x.device)

    def dtype(self, x: Any) -> str:
        return str(x.dtype).removeprefix("torch.")

    def pointer(self, x: Any) -> int:
        return int(x.data_ptr())

    def strides(self, x: Any) -> tuple[int, ...]:
        size = x.element_size()
        return tuple(size * s for s in x.stride())

    def itemsize(self, x: Any) -> int:
        return int(x.element_size())

    def writable(self, x: Any) -> bool:
        # a view whose sign is kept apart from its memory; a trace copies into it rightly
        return tracing(x) or not x.is_neg()

    def empty(self, shape: Sequence[int], dtype: str, like: Any) -> Any:
        return self.xp.empty(tuple(shape), dtype=getattr(self.xp, dtype), device=like.device)

    def ordinary(self) -> AbstractContextManager[Any]:
        return cast(AbstractContextManager[Any], self.xp.inference_mode(False))

    def empty_in_order(
        self, order: Sequence[int], shape: Sequence[int], dtype: str, like: Any
    ) -> Any:
        """No view: autograd refuses to have one that a function returns changed in place."""
        strides, step = [0] * len(order), 1
        for k in reversed(order):
            strides[k], step = step, step * max(1, shape[k])
        kind = getattr(self.xp, dtype)
        return self.xp.empty_strided(tuple(shape), strides, dtype=kind, device=like.device)

    def empty_like(self, x: Any, dtype: str) -> Any:
        return self.xp.empty_like(x, dtype=getattr(self.xp, dtype), requires_grad=False)

    def astype(self, x: Any, dtype: str) -> Any:
        return x.to(getattr(self.xp, dtype))

    def eye(self, n: int, dtype: str, like: Any) -> Any:
        return self.xp.eye(n, dtype=getattr(self.xp, dtype), device=like.device)

    def permute(self, x: Any, axes: Sequence[int]) -> Any:
        return x.permute(tuple(axes))

    def contiguous(self, x: Any) -> Any:
        return x.contiguous()

    def is_contiguous(self, x: Any) -> bool:
        return bool(x.is_contiguous())

    def broadcast(self, x: Any, shape: Sequence[int]) -> Any:
        return x.expand(tuple(shape))

    def strided(self, x: Any, shape: Sequence[int], strides: Sequence[int]) -> Any:
        size = x.element_size()
        return x.as_strided(tuple(shape), [s // size for s in strides])

    def wrote(self, x: Any) -> None:
        if not x.is_inference():  # which no backward reads, and whose versions nobody counts
            self._wrote(x)

    def divide(self, a: Any, b: Any) -> Any:
        return a / b

    def check_dense(self, name: str, x: Any) -> None:
        if x.layout is not self.xp.strided or x.is_nested:
            kind = "a nested" if x.is_nested else "an MKL-DNN" if x.is_mkldnn else "a sparse"
            raise TypeError(f"{name}: {kind} tensor came, allowed are dense ones")

    def learns(self, x: Any) -> bool:
        return bool(x.requires_grad)

    def _simple(self, x: Any) -> bool:
        return bool(x.is_contiguous() and not self.tracked(x))

    def own(self, x: Any, backend: str) -> bool:
        strided = type(x) in FACTS and x.layout is self.xp.strided
        return bool(strided and backend == "triton" and not x.is_neg())

    def place(self, x: Any) -> int:
        return int(x.get_device())

    def _quick_answers(self, torch: Any) -> tuple[Callable[[int], bool], Callable[[], bool]]:
        """`here`, and whether something sees every operator: with nothing to look up on the way."""
        modes = torch._C._len_torch_dispatch_stack
        transforms = torch._C._are_functorch_transforms_active
        forward = torch.autograd.forward_ad
        current, within = torch.cuda.current_device, inside.get

        def looked_at() -> bool:
            return bool(modes() or transforms() or forward._current_level >= 0)

        def here(place: int) -> bool:
            if (modes() or transforms() or forward._current_level >= 0) and not within():
                return False
            if place < 0:
                return True
            self._devices = self._devices or torch.cuda.device_count()
            return self._devices == 1 or bool(current() == place)

        return here, looked_at

    def watched(self, *operands: Any) -> bool:
        if inside.get():
            return False
        return self._looked_at() or any(
            isinstance(a, self.xp.Tensor) and self._special(a) for a in operands
        )

    def _special(self, x: Any) -> bool:
        """What has rules of its own, or no memory; is_grads_batched makes tensors of a kind of old
        that no transformation is active for."""
        batched: bool = self.xp._C._functorch.is_legacy_batchedtensor(x)
        return type(x) not in FACTS or x.is_meta or batched

    def apart(self, out: Any, x: Any) -> bool:
        apart = abs(out.data_ptr() - x.data_ptr())
        return bool(apart == 0 or apart >= x.nbytes)

    def native(self, x: Any, backend: str) -> Any:
        x = x.detach().resolve_neg()
        if backend in ("triton", SHAPES):
            return x
        if backend == "cupy":
            return _cupy_from_torch(x)
        if x.dtype == self.xp.bfloat16:  # NumPy has no such dtype of its own: the same bits
            return x.view(self.xp.int16).numpy().view(numpy_dtype("bfloat16"))
        return x.numpy()

    def on(self, x: Any, backend: str) -> AbstractContextManager[Any]:
        if x.device.type != "cuda" or backend == SHAPES:
            return nullcontext()
        if backend != "cupy":
            return cast(AbstractContextManager[Any], self.xp.cuda.device(x.device))
        import cupy

        stack = ExitStack()
        stream = self.xp.cuda.current_stream(x.device)
        stack.enter_context(self.xp.cuda.device(x.device))
        stack.enter_context(cupy.cuda.Device(x.device.index))
        stack.enter_context(cupy.cuda.Stream.from_external(stream))
        return stack


def _tensor_facts(x: Any) -> Hashable:
    """What has no memory has the address 0 (meta), or none, and raises RuntimeError (sparse)."""
    lies = x.is_contiguous() or x.stride()
    address = x.data_ptr()
    phase = address & 31 if address else None  # of a sector
    return x.dtype, x.shape, lies, phase, x.get_device(), x.is_neg(), x.requires_grad


def _cupy_from_torch(x: Any) -> Any:
    import cupy
    import torch

    if x.dtype == torch.bfloat16:  # unknown to the interface through which memory is shared
        return cupy.asarray(x.view(torch.int16)).view(numpy_dtype("bfloat16"))
    return cupy.asarray(x)


def _torch_from_cupy(x: Any) -> Any:
    import torch

    device = torch.device("cuda", x.device.id)
    if x.dtype.name == "bfloat16":
        return torch.as_tensor(x.view(np.int16), device=device).view(torch.bfloat16)
    return torch.as_tensor(x, device=device)


_libraries: dict[str, Library] = {"numpy": Library()}


def library_of(x: Any) -> Library | None:
    """The library whose array x is, or None."""
    if isinstance(x, np.ndarray):
        return _libraries["numpy"]
    if tracing(x):
        return _libraries["torch"]
    for name, kind, make in (("torch", "Tensor", Torch), ("cupy", "ndarray", CuPy)):
        module = sys.modules.get(name)
        array_type = getattr(module, kind, None)  # absent while the import is still going on
        if array_type is not None and isinstance(x, array_type):
            if name not in _libraries:
                _libraries.setdefault(name, make())  # of two threads, the first one's
            return _libraries[name]
    return None


def extent(library: Library, x: Any) -> tuple[int, int]:
    """The first byte that x touches, and the one behind its last."""
    start = library.pointer(x)
    if 0 in x.shape:
        return start, start
    steps = [(n - 1) * s for n, s in zip(x.shape, library.strides(x), strict=True)]
    return (
        start + sum(min(0, step) for step in steps),
        start + sum(max(0, step) for step in steps) + library.itemsize(x),
    )


def same_memory(library: Library, a: Any, b: Any) -> bool:
    """Element for element in the same places."""
    return bool(
        library.pointer(a) == library.pointer(b)
        and tuple(a.shape) == tuple(b.shape)
        and library.strides(a) == library.strides(b)
        and library.itemsize(a) == library.itemsize(b)
    )


def overlap(library: Library, a: Any, b: Any) -> bool:
    """Whether a write to a could change b: by their extents, which errs on the safe side."""
    (a0, a1), (b0, b1) = extent(library, a), extent(library, b)
    return a0 < b1 and b0 < a1 and math.prod(a.shape) > 0
