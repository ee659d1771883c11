"""Who executes a backend: its real host code, on compiled PTX, on Triton's interpreter, on a GPU.

An executor places NumPy arrays where its backend wants them, with the same strides and the same
address modulo 16 bytes; every output and temporary starts as NaN, the gaps between its elements
included. Where there is no GPU, the one function of a backend that launches is replaced by the PTX
interpreter, so all that runs above and below it is what a GPU would run.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.bounds import DTYPES
from tests.ptxrun import PTXModule
from tests.ptxrun.stats import Stats
from tests.truth import Array

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
REQUIRE_GPU = os.environ.get("GPUACT_REQUIRE_GPU") == "1"
NO_POOLS = os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1"  # for CuPy, too
TARGET = 90  # the compute capability that kernels are compiled for here
# Bytes of shared memory that a block may have: on every GPU supported, and on those where Triton's
# blocks form clusters.
SHARED, IN_CLUSTERS = 99 << 10, 227 << 10
FREE_SHARED = 48 << 10  # unasked


def named(dtype: str) -> np.dtype[Any]:
    return DTYPES.get(dtype) or np.dtype(dtype)


def poison(dtype: np.dtype[Any]) -> Any:
    """NaN; for integers a value that no test expects."""
    return 77 if dtype.kind in "iu" else np.nan


# -- arrays ---------------------------------------------------------------------------------------


@dataclass
class Placed:
    """An array of an executor (`native`) in memory of its own, which begins and ends as it does."""

    executor: Executor
    native: Any
    memory: Any
    before: Array  # what the memory held at first
    shape: tuple[int, ...]
    steps: tuple[int, ...]  # strides in elements
    offset: int

    def _view(self, flat: Array) -> Array:
        strides = tuple(s * flat.itemsize for s in self.steps)
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides)

    def numpy(self) -> Array:
        """The values now. Nothing beside the elements may have been written."""
        after = self.executor.to_numpy(self.memory)
        inside = np.zeros(after.shape, bool)
        self._view(inside)[...] = True
        bits = f"u{after.dtype.itemsize}"
        changed = (after.view(bits) != self.before.view(bits)) & ~inside
        assert not changed.any(), f"written between the elements: {np.flatnonzero(changed)[:9]}"
        return self._view(after)

    def unchanged(self) -> bool:
        return self.executor.to_numpy(self.memory).tobytes() == self.before.tobytes()


@dataclass(frozen=True)
class Launch:
    """One kernel launch, with what it takes to compile it again for another GPU."""

    kernel: str
    dtypes: tuple[str, ...]
    ptx: Callable[[int], str]  # compute capability → what ptxas makes machine code of
    arguments: Callable[[int], Sequence[Any]]  # likewise, → as run_ptx takes them
    threads: int


@dataclass(frozen=True)
class Executor:
    """A backend and what stands under it."""

    name: str
    family: str  # column of the table of bounds
    backend: ModuleType
    copy: Callable[[Array], Any]  # a 1-D NumPy array → one of the backend's
    view: Callable[[Any, tuple[int, ...], tuple[int, ...], int], Any]  # shape, steps, offset
    to_numpy: Callable[[Any], Array]
    negative_strides: bool = True
    options: dict[str, Any] = field(default_factory=lambda: {"racecheck": True})  # of run_ptx
    launches: list[Launch] = field(default_factory=list)
    stats: list[Stats] = field(default_factory=list)  # of each launch, if the options ask for them

    @property
    def gpu(self) -> bool:
        return self.family in ("cupy", "triton")

    def place(self, x: Array, blank: bool = False) -> Placed:
        """A copy with the strides and the misalignment of x; `blank`: filled with poison."""
        x = np.asarray(x)
        item = x.dtype.itemsize
        steps = tuple(s // item for s in x.strides)
        reach = [s * (n - 1) for s, n in zip(steps, x.shape, strict=True)] if x.size else []
        low, high = sum(min(0, r) for r in reach), sum(max(0, r) for r in reach)
        phase = (x.ctypes.data + low * item) % 16 // item
        offset = phase - low if x.size else 0
        before = np.full(offset + high + 1 if x.size else 0, poison(x.dtype), x.dtype)
        placed = Placed(self, None, None, before, x.shape, steps, offset)
        if not blank:
            placed._view(before)[...] = x
        placed.memory = self.copy(before.copy())
        placed.native = self.view(placed.memory, x.shape, steps, offset)
        return placed

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Where a backend gets its temporaries from."""
        return self.place(np.empty(shape, named(dtype)), blank=True).native


# -- launches, executed by the PTX interpreter ----------------------------------------------------

EXECUTED: Counter[tuple[str, str, tuple[str, ...]]] = Counter()  # executor, kernel, dtypes


def _record(executor: Executor, launch: Launch) -> None:
    EXECUTED[executor.name, launch.kernel, launch.dtypes] += 1
    executor.launches.append(launch)


def _counted(executor: Executor, stats: Stats | None) -> None:
    if stats is not None:
        executor.stats.append(stats)


def _dtype_of(x: Any) -> str:
    return str(x.dtype).removeprefix("torch.")


Change = Callable[[str], str]  # plants a fault in a kernel's PTX


def _changed(executor: Executor, ptx: str) -> tuple[str, dict[str, Any]]:
    """The PTX as a test wants it (`change` plants a fault), and the options of run_ptx."""
    options = dict(executor.options)
    change = options.pop("change", None)
    return (change(ptx) if change else ptx), options


def triton_launcher(executor: Executor, run: bool = True) -> Callable[..., None]:
    from triton import JITFunction

    from tests.ptxrun.tritonrun import compile_triton, describe, run_built

    def launch(plan: Any, args: tuple[Any, ...]) -> None:
        kernel, constexprs = plan.kernel, plan.constexprs
        options = executor.backend.options(plan)
        seen = [describe(a) for a in args]

        def compiled(capability: int) -> Any:
            built = compile_triton(kernel, seen, constexprs, capability, **options)
            shared = built.compiled.metadata.shared
            most = SHARED if plan.ctas == 1 else IN_CLUSTERS
            assert shared <= most, f"{kernel.__name__}: {shared} bytes of shared memory"
            return built

        def ptx_for(capability: int) -> str:
            return str(compiled(capability).compiled.asm["ptx"])

        def arguments(capability: int) -> list[Any]:
            return [args[k] for k in compiled(capability).passed]

        constants = [f.__name__ for f in constexprs.values() if isinstance(f, JITFunction)]
        name = " ".join([kernel.__name__, *constants])
        dtypes = tuple(_dtype_of(a) for a in args if hasattr(a, "dtype"))
        threads = 32 * plan.warps * prod(plan.grid)
        _record(executor, Launch(name, dtypes, ptx_for, arguments, threads))
        if run:
            built = compiled(TARGET)
            ptx, how = _changed(executor, built.compiled.asm["ptx"])
            module = built.module if ptx is built.compiled.asm["ptx"] else PTXModule(ptx)
            passed = [args[k] for k in built.passed]
            # Triton asks for more than 48 KB only where its own share is more
            shared = built.compiled.metadata.shared
            declared = module.program(built.compiled.metadata.name).shared_size
            assert shared + declared <= FREE_SHARED or shared > FREE_SHARED, kernel.__name__
            _counted(executor, run_built(built, module, plan.grid, passed, **how))

    return launch


def cupy_launchers(
    executor: Executor, run: bool = True, capability: int = TARGET
) -> dict[str, Callable[..., Any]]:
    from gpuact.kernels.cupy.rows import Device
    from tests.ptxrun import device_address, run_ptx
    from tests.ptxrun.cupyrun import Address, elementwise_source, parsed, raw_source

    def launch(
        source: Any, name: str, grid: Any, block: Any, arrays: tuple[Any, ...], shared: int = 0
    ) -> None:
        dtypes = tuple(_dtype_of(a) for a in arrays if isinstance(a, np.ndarray))
        threads = int(np.prod(grid) * np.prod(block))
        _record(executor, Launch(name, dtypes, source.ptx, lambda _: source.args, threads))
        if run:
            ptx, how = _changed(executor, source.ptx(TARGET))
            used = parsed(ptx).program(name).shared_size + shared
            most = Device.of(executor.backend.capability()).shared
            assert used <= most, f"{name}: {used} bytes of shared memory where {most} are"
            found = run_ptx(parsed(ptx), name, grid, block, source.args, shared, **how)
            _counted(executor, found)

    def launch_elementwise(
        kernel: Any, arrays: Any, numbers: tuple[float, ...], size: int | None
    ) -> None:
        if size is None:
            source = elementwise_source(kernel, (*arrays[:-1], *numbers), arrays[-1:])
        else:
            source = elementwise_source(kernel, (*map(Address, arrays), *numbers), [], size)
        block = 128  # CuPy's
        grid = max(1, -(-source.size // block))
        launch(source, kernel.name, grid, block, tuple(arrays))

    def launch_raw(
        module: Any,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        shared: int = 0,
        cluster: int = 1,
    ) -> None:
        given = [np.uint64(0) if a is None else a for a in args]  # as the backend spells None
        launch(raw_source(module, given), name, grid, block, args, shared)

    def address(array: Array) -> int:
        return device_address(array)

    return {
        "address": address,
        "capability": lambda: capability,
        "launch_elementwise": launch_elementwise,
        "launch_raw": launch_raw,
    }


def recorded(executor: Executor) -> Callable[..., None]:
    """CuPy's own launches of modules, written down; what their code was compiled to stays there."""
    launch_raw = executor.backend.launch_raw

    def launch(module: Any, name: str, grid: Any, block: Any, args: Any, *more: Any) -> None:
        dtypes = tuple(_dtype_of(a) for a in args if hasattr(a, "dtype") and a.ndim)
        _record(executor, Launch(name, dtypes, _unknown, _unknown, prod(grid) * prod(block)))
        launch_raw(module, name, grid, block, args, *more)

    return launch


def _unknown(capability: int) -> Any:
    raise NotImplementedError("the code that a GPU runs is not looked at")


class _PlansOfRegimes(dict[Any, Any]):
    """A cache of plans for tests that change the table which plans are made by."""

    @staticmethod
    def _key(key: Any) -> Any:
        return key, import_module("gpuact.kernels.cupy.rows").REGIMES

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(self._key(key), default)

    def __setitem__(self, key: Any, plan: Any) -> None:
        super().__setitem__(self._key(key), plan)


# -- the executors --------------------------------------------------------------------------------


def _numpy_view(
    memory: Array, shape: tuple[int, ...], steps: tuple[int, ...], offset: int
) -> Array:
    strides = tuple(s * memory.itemsize for s in steps)
    return np.lib.stride_tricks.as_strided(memory[offset:], shape, strides)


def _to_torch(x: Array) -> Any:
    """In memory of PyTorch's own, which begins at a multiple of 64 bytes; NumPy's at one of 16."""
    import torch

    if x.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(x.view(np.int16)).clone().view(torch.bfloat16)
    return torch.from_numpy(x).clone()


def _from_torch(x: Any) -> Array:
    import torch

    x = x.cpu()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(DTYPES["bfloat16"])
    return x.numpy()


def _torch_view(memory: Any, shape: tuple[int, ...], steps: tuple[int, ...], offset: int) -> Any:
    return memory.as_strided(shape, steps, offset)


def _cupy_view(memory: Any, shape: tuple[int, ...], steps: tuple[int, ...], offset: int) -> Any:
    import cupy

    strides = tuple(s * memory.itemsize for s in steps)
    return cupy.lib.stride_tricks.as_strided(memory[offset:], shape, strides)


def _numpy() -> Executor:
    backend = import_module("gpuact.backends.numpy")
    return Executor("numpy", "numpy", backend, np.copy, _numpy_view, np.copy)


def _cupy_ptx() -> Executor:
    backend = import_module("gpuact.backends.cupy")
    return Executor("cupy-ptx", "cupy", backend, np.copy, _numpy_view, np.copy)


def _triton_ptx() -> Executor:
    backend = import_module("gpuact.backends.triton")
    tools = (_to_torch, _torch_view, _from_torch, False)
    return Executor("triton-ptx", "triton", backend, *tools)


@cache
def _comparisons_are_bool() -> None:
    """Give what Triton's interpreter compares the dtype int1.

    It keeps that of the operands, makes integers of a scalar that is spread beside a block, and
    from Triton 3.9 on refuses such a mask.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def compared(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: TensorHandle(function(*args).data, tl.int1)

    for name, function in list(vars(InterpreterBuilder).items()):
        if name.startswith(("create_icmp", "create_fcmp")):
            setattr(InterpreterBuilder, name, compared(function))


def _triton_interpreter() -> Executor:
    _comparisons_are_bool()
    backend = import_module("gpuact.backends.triton")
    tools = (_to_torch, _torch_view, _from_torch, False)
    return Executor("triton-interpreter", "interpreter", backend, *tools)


def _cupy_cuda() -> Executor:
    import cupy

    if NO_POOLS:
        cupy.cuda.set_allocator(None)
    backend = import_module("gpuact.backends.cupy")
    return Executor("cupy-cuda", "cupy", backend, cupy.asarray, _cupy_view, cupy.asnumpy)


def _triton_cuda() -> Executor:
    backend = import_module("gpuact.backends.triton")
    tools = (lambda x: _to_torch(x).cuda(), _torch_view, _from_torch, False)
    return Executor("triton-cuda", "triton", backend, *tools)


EXECUTORS: dict[str, Callable[[], Executor]] = {
    "numpy": _numpy,
    "cupy-ptx": _cupy_ptx,
    "triton-ptx": _triton_ptx,
    "triton-interpreter": _triton_interpreter,
    "cupy-cuda": _cupy_cuda,
    "triton-cuda": _triton_cuda,
}
NEEDS = {"cupy": ("cupy",), "triton": ("torch", "triton")}  # packages, by the name's first word
MARKS = {"triton-interpreter": pytest.mark.interpreter, "cupy-cuda": pytest.mark.cuda}
MARKS["triton-cuda"] = pytest.mark.cuda


def executors(*names: str) -> list[Any]:
    """Parameters for pytest: those that need a GPU or a process of their own are marked."""
    return [pytest.param(name, marks=MARKS.get(name, ())) for name in names or EXECUTORS]


def needs_gpu(backend: str) -> None:
    """Skip unless the backend runs on a GPU here; under GPUACT_REQUIRE_GPU=1 that is a failure.

    Whatever is missing, be it the GPU, the driver or a package: the reason is why_not's.
    """
    if reason := no_gpu(backend):
        (pytest.fail if REQUIRE_GPU else pytest.skip)(f"{backend}: {reason}")


def torch_or_skip() -> Any:
    """PyTorch, for a file that is all about tensors: skipped without it, or failing likewise."""
    try:
        import torch
    except ImportError:
        if REQUIRE_GPU:
            pytest.fail(f"triton: {no_gpu('triton')}", pytrace=False)
        pytest.skip("there is no PyTorch", allow_module_level=True)
    return torch


def make(
    name: str, monkeypatch: pytest.MonkeyPatch, run: bool = True, capability: int = TARGET
) -> Executor:
    """The executor, or a skip with the reason why it is not to be had here.

    run=False: launches are recorded and nothing is executed. `capability` is that of the GPU that a
    backend is to plan for, where there is none.
    """
    backend, _, place = name.partition("-")
    if place == "cuda":
        needs_gpu(backend)
    for package in NEEDS.get(backend, ()):
        pytest.importorskip(package)
    if name == "triton-interpreter" and not INTERPRETED:
        pytest.skip("Triton's interpreter needs a process with TRITON_INTERPRET=1")
    executor = EXECUTORS[name]()
    if name == "triton-ptx":
        monkeypatch.setattr(executor.backend, "launch", triton_launcher(executor, run))
        monkeypatch.setattr(executor.backend, "_clusters", lambda device: 90 <= capability < 120)
        monkeypatch.setattr(executor.backend, "_plans", {})  # of other launchers and GPUs
    if name == "triton-interpreter":  # NumPy warns of what a GPU computes in silence
        quiet = np.errstate(all="ignore")(executor.backend.launch)
        monkeypatch.setattr(executor.backend, "launch", quiet)
    if name == "cupy-ptx":
        for function, replacement in cupy_launchers(executor, run, capability).items():
            monkeypatch.setattr(executor.backend, function, replacement)
    if name == "cupy-cuda":
        monkeypatch.setattr(executor.backend, "launch_raw", recorded(executor))
    if backend == "cupy":
        monkeypatch.setattr(executor.backend, "_plans", _PlansOfRegimes())
    if name == "triton-cuda":
        monkeypatch.setattr(executor.backend, "_plans", {})
    return executor


@cache
def no_gpu(backend: str) -> str | None:
    return import_module(f"gpuact.backends.{backend}").why_not()


def context_lost() -> str | None:
    """Why this process can use its GPU no more, once all that was launched is done."""
    if no_gpu("cupy") and no_gpu("triton"):
        return None  # there was none
    torch = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        elif cupy := sys.modules.get("cupy"):
            cupy.cuda.runtime.deviceSynchronize()
    except Exception as error:
        return str(error).strip().partition("\n")[0]
    return None
