"""Whose array is this, and so which backend runs it.

The law: `using()` beats the environment variable GPUACT_BACKEND (read when gpuact is imported)
beats the array's home. Nothing moves between devices: an override that cannot take the array raises
and names those that can.
Importing this module imports NumPy alone; a backend is loaded when its first array comes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from typing import Any

from .arguments import INTEGERS
from .arguments import array as as_array

# Loads the package `backends` now: later it would hide the public function of that name.
from .backends import BACKENDS, SHAPES
from .libraries import FLOATING, Library, dtype_name, inside, library_of, word

# The backends that can take an array, the array's own first.
TAKES = {
    "NumPy": ("numpy",),
    "CuPy": ("cupy", "triton"),
    "PyTorch on CUDA": ("triton", "cupy"),
    "PyTorch on the CPU": ("numpy",),
}

chosen: ContextVar[str | None] = ContextVar("gpuact_backend", default=None)
# The blocks of using() that are open, each a list of its own so that it is told from its like
_blocks: ContextVar[tuple[list[str], ...]] = ContextVar("gpuact_blocks", default=())
HOME = "home"  # chosen: the array's home, whatever the environment says


class BackendError(RuntimeError):
    """No usable GPU, or the package that would drive it is missing or broken."""


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Run everything inside the block on one backend: "numpy", "cupy" or "triton".

    Holds for the current thread or asyncio task, nests, and beats GPUACT_BACKEND. An array that the
    backend cannot take raises TypeError: nothing is copied to another device.

    >>> import gpuact, numpy as np
    >>> with gpuact.using("numpy"):
    ...     gpuact.relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    asked: Any = backend
    if not (isinstance(asked, str) and asked in BACKENDS):
        raise ValueError(f"backend: {word(backend)} came, allowed are {', '.join(BACKENDS)}")
    block, before, around = [backend], chosen.get(), _blocks.get()
    _blocks.set((*around, block))
    chosen.set(backend)
    try:
        yield
    finally:
        # Generators that hold blocks end in any order, and anywhere: what stays open still holds.
        left = tuple([each for each in _blocks.get() if each is not block])
        if len(left) < len(_blocks.get()):
            _blocks.set(left)
            chosen.set(before if left == around else left[-1][0] if left else None)


class within:
    """Inside one of PyTorch's operators: on this backend, or where the arrays are at home ("")."""

    __slots__ = ("backend", "tokens")

    def __init__(self, backend: str = "") -> None:
        self.backend = backend or HOME

    def __enter__(self) -> None:
        self.tokens = chosen.set(self.backend), inside.set(True)

    def __exit__(self, *error: object) -> None:
        chosen.reset(self.tokens[0])
        inside.reset(self.tokens[1])


# Read once: asking the environment takes longer than anything else that a call asks.
ENVIRONMENT = os.environ.get("GPUACT_BACKEND", "")


def _override() -> tuple[str, str] | None:
    """The backend asked for and by whom."""
    asked = chosen.get()
    if asked == HOME:
        return None
    if asked is not None:
        return asked, f'using("{asked}")'
    if not ENVIRONMENT:
        return None
    if ENVIRONMENT not in BACKENDS:
        raise ValueError(f"GPUACT_BACKEND: {ENVIRONMENT!r} came, allowed are {', '.join(BACKENDS)}")
    return ENVIRONMENT, f"GPUACT_BACKEND={ENVIRONMENT}"


def _interpreting() -> bool:
    """Triton's interpreter runs kernels on the CPU: then the Triton backend takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _choose(name: str, home: str) -> str:
    takers = TAKES.get(home)
    if takers is None and chosen.get() == SHAPES:
        return SHAPES
    if takers is None:
        raise TypeError(f"{name}: an array of {home} came, allowed are {', '.join(TAKES)}")
    if home == "PyTorch on the CPU" and _interpreting():
        takers = (*takers, "triton")
    override = _override()
    if override is None:
        return takers[0]
    backend, asker = override
    if backend not in takers and backend != SHAPES:
        raise TypeError(
            f"{asker} cannot take an array of {home}: {' or '.join(takers)} can, and nothing is "
            "moved between devices"
        )
    return backend


_usable: dict[str, Any] = {}


def load(backend: str) -> Any:
    """The backend's module, once it is known to work; BackendError says why it does not."""
    if backend not in _usable:
        module = import_module(f"{__package__}.backends.{backend}")
        reason = module.why_not()
        if reason is not None:
            raise BackendError(f"the {backend} backend cannot run: {reason}")
        _usable[backend] = module
    return _usable[backend]


@dataclass(frozen=True)
class Call:
    """Where one call runs: an array's library, the array (it knows its device), the backend."""

    library: Library
    like: Any
    backend: str
    own: bool = False  # arrays are the backend's own, on the current device: see `Library.own`

    @property
    def module(self) -> Any:
        return load(self.backend)

    @property
    def computes(self) -> bool:
        """Whether there is memory to fill."""
        return self.backend != SHAPES

    def native(self, x: Any) -> Any:
        """An array as the backend's own; scalars and None as they are."""
        if self.own or x is None or isinstance(x, float):
            return x
        return self.library.native(x, self.backend)

    def on(self) -> AbstractContextManager[Any]:
        """Make the arrays' device and the caller's stream current for the backend."""
        return nullcontext() if self.own else self.library.on(self.like, self.backend)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """New memory in the caller's library."""
        return self.library.empty(shape, dtype, self.like)

    def scratch(self, shape: tuple[int, ...], dtype: str) -> Any:
        """New memory as the backend's own."""
        return self.native(self.empty(shape, dtype))


def resolve(**arrays: Any) -> Call:
    """Which library and backend the named arrays belong to; the first of them decides.

    Raises TypeError if they are of several libraries or devices.
    """
    (first, x), *others = arrays.items()
    library = library_of(x)
    if library is None:
        raise TypeError(f"{first}: {type(x).__name__} came, allowed are {', '.join(TAKES)} arrays")
    for name, other in others:
        theirs = library_of(other)
        if theirs is not library:
            raise TypeError(
                f"{name}: {type(other).__name__} came beside {first} of type {type(x).__name__}; "
                "all arrays of a call must be of one library"
            )
        if library.device(other) != library.device(x):
            raise TypeError(
                f"{name}: is on {library.device(other)} while {first} is on {library.device(x)}; "
                "all arrays of a call must be on one device"
            )
    for name, each in arrays.items():
        library.check_dense(name, each)
    backend = _choose(first, library.home(x))
    load(backend)
    return Call(library, x, backend)


# -- what is here ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backend:
    """Whether a backend can run here, and if not, why."""

    name: str
    available: bool
    reason: str  # empty where available
    versions: dict[str, str]

    def __str__(self) -> str:
        found = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        state = "available" if self.available else f"not available: {self.reason}"
        return f"{self.name}: {state}" + (f" ({found})" if found else "")


_DISTRIBUTIONS = {
    "numpy": ("numpy", "ml_dtypes"),
    "cupy": ("cupy-cuda12x", "cupy-cuda13x", "cupy"),
    "triton": ("torch", "triton"),
}


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def backends() -> dict[str, Backend]:
    """What can run here: for each backend whether it is available, and if not, why.

    Never raises, whatever is missing or broken.

    >>> import gpuact
    >>> gpuact.backends()["numpy"].available
    True
    """
    found = {}
    for name in BACKENDS:
        try:
            reason = import_module(f"{__package__}.backends.{name}").why_not() or ""
        except Exception as error:  # a broken install may fail in any way: report, do not crash
            reason = f"{type(error).__name__}: {error}"
        found[name] = Backend(name, not reason, reason, _versions(_DISTRIBUTIONS[name]))
    return found


@cache
def _gpu_answers() -> bool:
    return backends()["cupy"].available


def asarray(obj: Any, dtype: Any = None) -> Any:
    """A list, scalar or NumPy array as an array on the GPU if one answers (CuPy), else NumPy.

    Inside `using("numpy")` the result is a NumPy array, inside `using("cupy")` or
    `using("triton")` a CuPy array; BackendError if that cannot be. CuPy arrays and torch tensors
    stay where they are. dtype: a name, or a NumPy, ml_dtypes or torch dtype; by default NumPy's
    choice.

    >>> import gpuact
    >>> with gpuact.using("numpy"):
    ...     gpuact.asarray([1, 2], "float32")
    array([1., 2.], dtype=float32)
    """
    name = None if dtype is None else dtype_name(dtype)
    allowed = *FLOATING, *INTEGERS, "bool"
    if name is not None and name not in allowed:
        raise TypeError(f"dtype: {name} came, allowed are {', '.join(FLOATING)} and integers")
    array = as_array("obj", obj)
    library = library_of(array)
    assert library is not None  # what is of none is NumPy's now
    came = library.dtype(array)
    if came not in allowed and (library.name == "numpy" or name is not None):
        raise TypeError(f"obj: dtype {came} came, allowed are real numbers")
    if name is not None:
        library.check_dense("obj", array)
        array = library.astype(array, name)
    if library.name != "numpy":
        return array
    override = _override()
    if override is not None and override[0] == "numpy":
        return array
    if override is not None:
        load(override[0])
        load("cupy")
    elif not _gpu_answers():
        return array
    import cupy

    return cupy.asarray(array)
