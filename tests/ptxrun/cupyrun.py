"""Run CUDA C++ and CuPy's own kernels without a GPU.

CuPy writes the CUDA source of an ElementwiseKernel, NVRTC compiles it, `run_ptx` carries it out on
numpy arrays; a RawModule brings its own source.  CuPy's private functions are used (14.x); it is
imported only here, when a function is called.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np

from .machine import run_ptx
from .memory import carray, cindexer
from .parse import PTXModule
from .stats import Stats

_HEADERS = "".join(
    f"#include <cupy/{h}>\n"
    for h in ("complex.cuh", "carray.cuh", "atomics.cuh", "math_constants.h")
)
_ND, _INDEXER, _SCALAR = 1, 2, 3  # cupy._core._kernel._ArgKind


def _runtime_headers() -> list[str]:
    """Include folders of the CUDA runtime wheels (cooperative_groups.h, cuda_fp16.h)."""
    found = []
    for name, sub in (("nvidia.cuda_runtime", "include"), ("nvidia.cu13", "include")):
        try:
            found += [os.path.join(p, sub) for p in importlib.import_module(name).__path__]
        except ImportError:
            continue
    return [f"-I{p}" for p in found if os.path.isdir(p)]


KEPT = Path(__file__).parents[2] / ".pytest_cache" / "ptx"


@cache
def nvrtc_ptx(source: str, arch: int = 80, options: tuple[str, ...] = ()) -> str:
    """CUDA C++ to PTX with CuPy's compiler options; kept on disk for other processes.

    CuPy appends -ftz=true after the caller's options, and NVRTC obeys the last one: so here too.
    """
    from cupy._core import core
    from cupy_backends.cuda.libs import nvrtc

    given = core.assemble_cupy_compiler_options(options)
    headers = _runtime_headers()
    flags = (f"-arch=compute_{arch}", *given, *headers, "-ftz=true")
    ages = [os.stat(folder.removeprefix("-I")).st_mtime_ns for folder in headers]
    key = repr((nvrtc.getVersion(), ages, flags, source))
    kept = KEPT / hashlib.sha256(key.encode()).hexdigest()
    with suppress(OSError):
        return kept.read_text()
    program = nvrtc.createProgram(source, "k.cu", [], [])
    try:
        nvrtc.compileProgram(program, flags)
        made = nvrtc.getPTX(program)
    except nvrtc.NVRTCError as e:
        raise RuntimeError(nvrtc.getProgramLog(program)) from e
    finally:
        nvrtc.destroyProgram(program)
    ptx = (made.decode() if isinstance(made, bytes) else made).rstrip("\0")
    with suppress(OSError):  # where nothing can be written, nothing is kept
        KEPT.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=KEPT, delete=False) as file:
            file.write(ptx)
        os.replace(file.name, kept)
    return ptx


@lru_cache(64)  # megabytes each
def parsed(ptx: str) -> PTXModule:
    """Parsed once, however often it runs."""
    return PTXModule(ptx)


@dataclass(frozen=True)
class Source:
    """What CuPy gives the compiler, and the packed arguments of one call."""

    code: str
    options: tuple[str, ...]
    args: Sequence[Any]
    size: int = 0  # threads, of an elementwise kernel

    def ptx(self, arch: int = 80) -> str:
        return nvrtc_ptx(self.code, arch, self.options)


def _raw_argument(x: Any) -> Any:
    """What CuPy copies into the argument buffer: numpy scalars by their own width."""
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, (bool, int, float, np.generic)):  # Python's int is int64, float is float64
        return np.asarray(x)[()].tobytes()
    raise TypeError(f"CuPy cannot pass a {type(x).__name__} to a raw kernel")


def raw_source(module: Any, args: Sequence[Any] = ()) -> Source:
    """A cupy.RawModule, and the arguments of one of its kernels."""
    return Source(module.code, tuple(module.options), [_raw_argument(a) for a in args])


def raw(
    module: Any,
    name: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    args: Sequence[Any],
    *,
    shared_mem: int = 0,
    arch: int = 80,
    **run: Any,
) -> Stats | None:
    """module.get_function(name)(grid, block, args) on numpy arrays."""
    source = raw_source(module, args)
    return run_ptx(parsed(source.ptx(arch)), name, grid, block, source.args, shared_mem, **run)


@dataclass(frozen=True)
class Address:
    """An array that a kernel takes as a number."""

    array: np.ndarray


def _describe(values: Sequence[Any], types: Sequence[Any]) -> Any:
    """CuPy's description of the arguments, and the arguments as structs."""
    import cupy
    from cupy._core import _kernel, _scalar

    infos: list[Any] = []
    args: list[Any] = []
    for x, t in zip(values, types, strict=True):
        if isinstance(x, np.ndarray):
            contiguous = x.flags.c_contiguous
            low, high = np.lib.array_utils.byte_bounds(x)
            narrow = max(high - low, x.size * x.itemsize) <= 1 << 31  # offsets have 32 bits
            infos.append(
                _kernel._ArgInfo(_ND, cupy.ndarray, np.dtype(x.dtype), x.ndim, contiguous, narrow)
            )
            args.append(carray(x))
        else:
            infos.append(_kernel._ArgInfo(_SCALAR, _scalar.CScalar, np.dtype(t), 0, True, True))
            args.append(x.array if isinstance(x, Address) else np.dtype(t).type(x))
    return infos, args


def _add_indexer(infos: list[Any], args: list[Any], shape: Sequence[int]) -> None:
    from cupy._core import _carray, _kernel

    infos.append(_kernel._ArgInfo(_INDEXER, _carray.Indexer, None, len(shape), True, True))
    args.append(cindexer(shape))


def _dtypes(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(x.dtype.type if isinstance(x, np.ndarray) else None for x in values)


def _broadcast(values: Sequence[Any], params: Sequence[Any]) -> tuple[int, ...]:
    shapes = [np.shape(x) for x, p in zip(values, params, strict=True) if not p.raw]
    return np.broadcast_shapes(*shapes)


def elementwise_source(
    kernel: Any, ins: Sequence[Any], outs: Sequence[np.ndarray], size: int | None = None
) -> Source:
    """A cupy.ElementwiseKernel for the types and dimensions of these arguments."""
    from cupy._core import _kernel

    values = [*ins, *outs]
    params = kernel.params[: len(values)]  # CuPy's own index parameter follows
    shape = (size,) if size is not None else _broadcast(values, params)
    in_types, out_types, types = kernel._decide_params_type(_dtypes(ins), _dtypes(outs))
    values = [
        np.broadcast_to(x, shape)
        if isinstance(x, np.ndarray) and not p.raw and x.shape != shape
        else x
        for x, p in zip(values, params, strict=True)
    ]
    infos, args = _describe(values, [*in_types, *out_types])
    _add_indexer(infos, args, shape)
    extra = {k: v for k, v in kernel.kwargs.items() if k in ("loop_prep", "after_loop")}
    code = _kernel._get_elementwise_kernel_code(
        tuple(infos),
        types,
        kernel.params,
        kernel.operation,
        kernel.name,
        kernel.preamble,
        **extra,
    )
    options = tuple(kernel.kwargs.get("options", ()))
    return Source(_HEADERS + code, options, args, int(np.prod(shape, dtype=np.int64)))


def elementwise(
    kernel: Any,
    ins: Sequence[Any],
    outs: Sequence[np.ndarray],
    *,
    arch: int = 80,
    block: int = 128,
    size: int | None = None,
    **run: Any,
) -> Stats | None:
    """cupy.ElementwiseKernel on numpy arrays; outs have the broadcast shape and are written."""
    source = elementwise_source(kernel, ins, outs, size)
    grid = max(1, -(-source.size // block))
    return run_ptx(parsed(source.ptx(arch)), kernel.name, grid, block, source.args, **run)
