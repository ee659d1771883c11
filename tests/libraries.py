"""Whose arrays a test of the public functions uses, and who then computes: the table of libraries.

A library places NumPy arrays as its own, with the same strides and the same address modulo 16, and
says what a result must be. Those that need a GPU are skipped where none answers, and fail there
under GPUACT_REQUIRE_GPU=1; Triton's interpreter has a process of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tests import harness
from tests.bounds import DTYPES, FORMATS
from tests.harness import Executor, Placed
from tests.truth import Array


@dataclass(frozen=True)
class Library:
    """The arrays of one library, computed by one backend."""

    name: str
    executor: Executor  # who places arrays
    backend: str | None = None  # for using(); None: the array's home decides

    @property
    def family(self) -> str:
        return self.executor.family

    def place(self, x: Any) -> Placed:
        return self.executor.place(np.asarray(x))

    def blank(self, like: Array) -> Placed:
        """Poison in the place of an array of these strides."""
        return self.executor.place(like, blank=True)

    def numpy(self, result: Any, like: Any, shape: tuple[int, ...], dtype: str) -> Array:
        """A result's values; it must be of like's library and device, of this shape and dtype."""
        assert type(result) is type(like), f"{type(result)} came out, {type(like)} went in"
        assert tuple(result.shape) == tuple(shape)
        assert str(result.dtype).removeprefix("torch.") == dtype
        if not isinstance(result, np.ndarray):
            assert result.device == like.device
        if hasattr(result, "detach"):
            result = result.detach()
        return self.executor.to_numpy(result)


def untouched(*inputs: Placed) -> None:
    """No byte of these arrays' memory has changed."""
    assert all(x.unchanged() for x in inputs), "an input was modified"


def _numpy_in_pieces(monkeypatch: pytest.MonkeyPatch) -> Library:
    """The same executor, cutting small arrays as it cuts large ones, and on threads."""
    library = _executor("numpy", None, "numpy")(monkeypatch)
    small = {
        "BLOCK": 64,
        "ROW_BLOCK": 64,
        "STRIP": 3,
        "LARGE_BLOCK": 512,
        "PARALLEL": 256,
        "LONG_ROW": 900,
    }
    for name, value in {**small, "WORKERS": 3, "SPANS": 12}.items():
        monkeypatch.setattr(library.executor.backend, name, value)
    return replace(library, name="numpy-in-pieces")


def _torch_cpu(monkeypatch: pytest.MonkeyPatch) -> Library:
    pytest.importorskip("torch")
    tools = (harness._to_torch, harness._torch_view, harness._from_torch, False)
    backend = harness.import_module("gpuact.backends.numpy")
    return Library("torch-cpu", Executor("torch-cpu", "numpy", backend, *tools))


def _interpreter(monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library("interpreter", harness.make("triton-interpreter", monkeypatch), "triton")


def _executor(name: str, backend: str | None, family: str) -> Callable[..., Library]:
    def make(monkeypatch: pytest.MonkeyPatch) -> Library:
        if backend is not None:
            harness.needs_gpu(backend)
        executor = harness.make(name, monkeypatch)
        return Library(name, replace(executor, family=family), backend)

    return make


LIBRARIES: dict[str, tuple[Callable[[pytest.MonkeyPatch], Library], tuple[Any, ...]]] = {
    "numpy": (_executor("numpy", None, "numpy"), ()),
    "numpy-in-pieces": (_numpy_in_pieces, ()),
    "torch-cpu": (_torch_cpu, ()),
    "torch-interpreter": (_interpreter, (pytest.mark.interpreter,)),
    "cupy": (_executor("cupy-cuda", None, "cupy"), (pytest.mark.cuda,)),
    "cupy-on-triton": (_executor("cupy-cuda", "triton", "triton"), (pytest.mark.cuda,)),
    "torch-cuda": (_executor("triton-cuda", None, "triton"), (pytest.mark.cuda,)),
    "torch-cuda-on-cupy": (_executor("triton-cuda", "cupy", "cupy"), (pytest.mark.cuda,)),
}


def libraries(*names: str) -> list[Any]:
    """Parameters of the fixture `lib`."""
    return [pytest.param(name, marks=LIBRARIES[name][1]) for name in names or LIBRARIES]


TORCH = libraries(*(name for name in LIBRARIES if name.startswith("torch")))


# -- values ---------------------------------------------------------------------------------------


def specials(dtype: str) -> list[float]:
    """Where formulas go wrong: NaN, infinities, both zeros, the ends of the range, saturation."""
    form = FORMATS[dtype]
    least, tiniest = 2.0**form.least, 2.0 ** (form.least - form.digits + 1)
    ends = [0.0, tiniest, least, form.largest, np.inf, 1.0, 20.0, 88.5, 104.0, 746.0]
    return [np.nan, *ends, *(-x for x in ends)]


def values(
    shape: tuple[int, ...], dtype: str, seed: int = 0, special: Sequence[float] | None = None
) -> Array:
    """Normally distributed numbers, every third of them replaced by a special one."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * 3
    special = specials(dtype) if special is None else special
    if len(special):
        x = np.where(rng.random(shape) < 1 / 3, rng.choice(special, shape), x)
    return np.asarray(x).astype(DTYPES[dtype])


View = Callable[[Array], Array]

# name → the shape in memory, and the view of it that a function is given
LAYOUTS: dict[str, tuple[tuple[int, ...], View]] = {
    "0-d": ((), lambda x: x),
    "one element": ((1,), lambda x: x),
    "empty": ((3, 0, 2), lambda x: x),
    "size-1 axes": ((1, 37, 1), lambda x: x),
    "4-d": ((2, 3, 5, 7), lambda x: x),
    "strided": ((6, 9, 8), lambda x: x[::2, 1::3, ::2]),
    "negative strides": ((5, 6, 7), lambda x: x[::-1, :, ::-2]),
    "transposed": ((5, 4, 3), lambda x: x.transpose(2, 0, 1)),
    "broadcast": ((4, 1, 5), lambda x: np.broadcast_to(x, (4, 3, 5))),
    "misaligned": ((1031,), lambda x: x[1:]),
    "misaligned rows": ((3, 67), lambda x: x[:, 1:]),
    "wide": ((2, 100_003), lambda x: x),
}


def layouts(
    lib: Library, dtype: str, seed: int = 0, special: Sequence[float] | None = None
) -> Iterator[tuple[str, Array]]:
    """Each layout that the library has, with values in it."""
    for name, (shape, view) in LAYOUTS.items():
        if too_large(lib, shape):
            continue
        x = view(values(shape, dtype, seed, special))
        if lib.executor.negative_strides or min(x.strides, default=0) >= 0:
            yield name, x


def too_large(lib: Library, shape: tuple[int, ...]) -> bool:
    """Where kernels see nothing new in a large array, and take a second a piece."""
    return lib.name in ("interpreter", "numpy-in-pieces") and math.prod(shape) > 50_000
