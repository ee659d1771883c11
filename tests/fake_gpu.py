"""A GPU that is not there: CuPy's and torch's events, streams, graphs and pools, on our own clock.

What is computed is NumPy's and right; what time it takes is the bytes over RATE, and each launch
costs the host LAUNCH. So every path of bench/measure.py that needs a device runs, and what it must
find is known. `Asked` has a suite of it for the process that measures, with planted faults.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import numpy as np

import gpuact
from bench import measure, suites
from bench.cases import Case, Chain
from bench.providers import Provider
from gpuact.libraries import numpy_dtype

RATE = 1e12  # bytes a second
LAUNCH = 5e-6  # seconds of the host
LEAST = 2e-6  # seconds that the device needs for any kernel
L2 = 1 << 16


@dataclass
class Device:
    """Two clocks: the host goes on when it has launched, the device does all in its order."""

    host: float = 0.0
    done: float = 0.0  # when the device will be
    graph: list[float] | None = None  # what is being recorded
    launches: int = 0
    lost: str = ""  # why it does nothing any more
    in_use: int = 0
    most: int = 0
    stream: object = None  # the current one
    allocator: object = None  # CuPy's current one

    def launch(self, moved: float) -> None:
        self.launches += 1
        took = max(LEAST, moved / RATE)
        if self.graph is not None:
            self.graph.append(took)
            return
        self.host += LAUNCH
        self.done = max(self.done, self.host) + took

    def replay(self, graph: list[float]) -> None:
        self.host += LAUNCH
        self.done = max(self.done, self.host) + sum(graph)

    def wait(self) -> None:
        if self.lost:
            raise RuntimeError(self.lost)
        self.host = max(self.host, self.done)

    @contextmanager
    def recording(self) -> Iterator[list[float]]:
        assert self.graph is None, "recorded twice at once"
        self.graph = []
        try:
            yield self.graph
        finally:
            self.graph = None


DEVICE = Device()


def clock() -> float:
    return DEVICE.host


class Event:
    def __init__(self, enable_timing: bool = True) -> None:
        assert enable_timing
        self.at = float("nan")

    def record(self) -> None:
        self.at = max(DEVICE.done, DEVICE.host)

    def synchronize(self) -> None:
        DEVICE.wait()

    def elapsed_time(self, stop: Event) -> float:
        return (stop.at - self.at) * 1e3


# -- CuPy -----------------------------------------------------------------------------------------


class Stream:
    def __init__(self, non_blocking: bool = False) -> None:
        self.recorded: Any = None
        self.before: object = None

    def __enter__(self) -> Stream:
        self.before, DEVICE.stream = DEVICE.stream, self
        return self

    def __exit__(self, *error: object) -> None:
        DEVICE.stream = self.before

    def synchronize(self) -> None:
        DEVICE.wait()

    def begin_capture(self) -> None:
        self.recorded = DEVICE.recording()
        self.graph = self.recorded.__enter__()

    def end_capture(self) -> Any:
        self.recorded.__exit__(None, None, None)
        graph = self.graph
        return SimpleNamespace(launch=lambda: DEVICE.replay(graph))


class MemoryHook:
    """Told of every allocation of a call; here the fake functions tell it themselves."""

    here: ClassVar[list[MemoryHook]] = []

    def __enter__(self) -> MemoryHook:
        self.here.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.here.remove(self)

    @classmethod
    def took(cls, size: int) -> None:
        for hook in cls.here:
            hook.malloc_postprocess(device_id=0, size=size, mem_size=size, mem_ptr=0, pmem_id=0)

    @classmethod
    def gave(cls, size: int) -> None:
        for hook in cls.here:
            hook.free_postprocess(device_id=0, mem_size=size, mem_ptr=0, pmem_id=0)


class MemoryPool:
    """Alive as long as somebody has it."""

    alive: ClassVar[weakref.WeakSet[MemoryPool]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)

    def malloc(self, size: int) -> None:
        raise AssertionError("NumPy allocates")


@contextmanager
def _using_allocator(allocator: object) -> Iterator[None]:
    DEVICE.allocator = allocator
    try:
        yield
    finally:
        DEVICE.allocator = None


def _cupy() -> ModuleType:
    module = ModuleType("cupy")
    module.__dict__.update(
        asarray=np.asarray,
        asnumpy=np.asarray,
        empty=np.empty,
        get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=lambda: None),
        cuda=SimpleNamespace(
            Event=Event,
            Stream=Stream,
            MemoryHook=MemoryHook,
            MemoryPool=MemoryPool,
            using_allocator=_using_allocator,
            Device=lambda: SimpleNamespace(synchronize=DEVICE.wait),
            runtime=SimpleNamespace(
                getDevice=lambda: 0, getDeviceProperties=lambda device: {"l2CacheSize": L2}
            ),
            get_elapsed_time=lambda start, stop: start.elapsed_time(stop),
        ),
    )
    return module


class Cupy(measure.Cupy):
    batch = 2e-4  # there is no noise to outlast
    ends = 1 << 20

    def __init__(self) -> None:
        with mock.patch.dict(sys.modules, cupy=_cupy()):
            super().__init__()

    def copy(self, array: Any) -> Any:
        DEVICE.launch(2 * array.nbytes)
        return super().copy(array)


# -- torch ----------------------------------------------------------------------------------------


class _Recording:
    """torch.cuda.graph. Where what is recorded raises, ending that raises as well: the stream stays
    current then, and the pool counts as one that is being recorded to."""

    def __init__(self, graph: Any, pool: _Pool, stream: object) -> None:
        self.graph, self.pool, self.stream = graph, pool, stream

    def __enter__(self) -> None:
        if self.pool.recording:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.before, DEVICE.stream = DEVICE.stream, self.stream
        self.pool.recording = True
        self.recording = DEVICE.recording()
        self.work = self.recording.__enter__()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.recording.__exit__(None, None, None)
        if error is not None:
            raise RuntimeError("capture_end: operation failed due to a previous error")
        self.pool.recording, DEVICE.stream = False, self.before
        self.graph.work = self.work


@dataclass
class _Pool:
    recording: bool = False


class _Cuda:
    """torch.cuda, as far as it is used."""

    Event = Event
    graph = _Recording

    def get_device_properties(self) -> Any:
        return SimpleNamespace(L2_cache_size=L2)

    def graph_pool_handle(self) -> _Pool:
        return _Pool()

    def synchronize(self) -> None:
        DEVICE.wait()

    def Stream(self) -> Stream:
        return Stream()

    def stream(self, stream: Stream) -> Stream:
        return stream

    def current_stream(self) -> object:
        return DEVICE.stream

    def set_stream(self, stream: object) -> None:
        DEVICE.stream = stream

    def CUDAGraph(self) -> Any:
        graph = SimpleNamespace(work=[])
        graph.replay = lambda: DEVICE.replay(graph.work)
        return graph

    def reset_peak_memory_stats(self) -> None:
        DEVICE.most = DEVICE.in_use

    def memory_allocated(self) -> int:
        return DEVICE.in_use

    def max_memory_allocated(self) -> int:
        return DEVICE.most

    def empty_cache(self) -> None:
        pass


RESETS: list[str] = []  # of torch's compiler


def _torch() -> ModuleType:
    import torch

    module = ModuleType("torch")
    module.__dict__.update(
        {name: getattr(torch, name) for name in ("from_numpy", "int16", "uint8", "bfloat16")},
        empty=torch.empty,
        cuda=_Cuda(),
        compiler=SimpleNamespace(reset=lambda: RESETS.append("reset")),
    )
    return module


class TorchCuda(measure.TorchCuda):
    device = "cpu"
    batch = Cupy.batch
    ends = Cupy.ends

    def __init__(self) -> None:
        with mock.patch.dict(sys.modules, torch=_torch()):
            super().__init__()

    def copy(self, array: Any) -> Any:
        DEVICE.launch(2 * array.nbytes)
        return super().copy(array)


# Under names of their own, beside the real ones.
CUPY, TORCH = "a fake CuPy", "a fake torch"
PLACES: dict[str, type[measure.Host]] = {CUPY: Cupy, TORCH: TorchCuda}
measure.PLACES.update(PLACES)


# -- who computes ---------------------------------------------------------------------------------


def _numpy_of(array: Any) -> Any:
    if isinstance(array, np.ndarray):
        return array
    if array.dtype.is_floating_point and array.element_size() == 2 and "bf" in str(array.dtype):
        import torch

        return array.view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
    return array.numpy()


def kernel(case: Case, place: str, slower: float = 1.0) -> Callable[..., Any]:
    """The case's function in one launch, its result in memory that is counted."""
    put = PLACES[place]()
    known: list[object] = []  # streams that it was called on

    def run(*args: Any, **options: Any) -> Any:
        if DEVICE.graph is not None and DEVICE.stream not in known:
            raise RuntimeError("what a first call on a stream sets up cannot be recorded")
        known.append(DEVICE.stream)
        with gpuact.using("numpy"):
            found = case.public(*map(_numpy_of, args), **options)
        outputs = found if isinstance(found, tuple) else (found,)
        size = sum(y.nbytes for y in outputs)
        DEVICE.launch(case.bytes * slower)
        MemoryHook.took(size)
        DEVICE.most = max(DEVICE.most, DEVICE.in_use + size)
        MemoryHook.gave(size)
        placed = tuple(put.put(np.array(y)) for y in outputs)
        return placed if isinstance(found, tuple) else placed[0]

    return run


def provider(name: str, place: str, slower: float = 1.0, backend: str = "") -> Provider:
    return Provider(name, place, lambda: None, lambda c: kernel(c, place, slower), backend)


def planted(name: str, place: str, fault: Callable[[Any], Any]) -> Provider:
    """Right, but for what the fault does to the result of each call."""

    def spell(case: Case) -> Callable[..., Any]:
        right = kernel(case, place)
        return lambda *args, **options: fault(right(*args, **options))

    return Provider(name, place, lambda: None, spell)


OURS = (
    provider("gpuact on CuPy", CUPY, 1.02, backend="cupy"),
    provider("gpuact on Triton", TORCH, 1.04, backend="triton"),
)
TORCHS = provider("torch", TORCH, 2.0)


def off(found: Any) -> Any:
    y, *_ = found if isinstance(found, tuple) else (found,)
    y[..., -1:] += 1
    return found


def dies(y: Any) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)
    return y


def hangs(y: Any) -> Any:
    time.sleep(60)
    return y


def loses_the_device(y: Any) -> Any:
    DEVICE.lost = "an illegal memory access was encountered"
    raise RuntimeError(DEVICE.lost)


def not_while_recording(y: Any) -> Any:
    if DEVICE.graph is not None:
        raise RuntimeError("operation not permitted when stream is capturing")
    return y


WRONG = planted("a wrong one", CUPY, off)
CRASHING = planted("a crashing one", TORCH, dies)
HANGING = planted("a hanging one", CUPY, hangs)
ILLEGAL = planted("an illegal one", CUPY, loses_the_device)
SHY = planted("a shy one", TORCH, not_while_recording)
ABSENT = Provider("an absent one", CUPY, lambda: "no such GPU", lambda case: None)
ONCE = Provider(
    *("one that crashes once", TORCH, lambda: None),
    lambda case: CRASHING.spell(case) if case.suite == "rows" else None,
)
SHY_ONCE = Provider(
    *("one that is shy once", TORCH, lambda: None),
    lambda case: SHY.spell(case) if case.suite == "rows" else None,
)
FAULTS = {p.name: p for p in (WRONG, CRASHING, ONCE, HANGING, ILLEGAL, SHY, SHY_ONCE, ABSENT)}

CASES = (
    Case("relu", "bfloat16", (1 << 12,), headline=True),
    Case("sigmoid", "float32", (1 << 10,)),
    Case("softmax", "float16", (64, 100)),
    Case("cross_entropy_with_grad", "float32", (32, 50), {"reduction": "none"}, headline=True),
    Chain("fused", "float32", (16, 32), text="", activation="relu", takes=("scale", "bias")),
)


@dataclass(frozen=True)
class Asked(suites.Asked):
    """A suite on the fake GPU, with faulty ones of FAULTS among the providers."""

    suite: str = "fake"
    on_gpu: bool = True
    seconds: float = 0.001
    faults: tuple[str, ...] = field(default=())

    def plan(self) -> suites.Suite:
        who = (*OURS, TORCHS, *(FAULTS[name] for name in self.faults))
        found = suites.Suite("fake", cases=CASES, providers=who)
        return found.only(self._wanted) if self.only or self.dtypes else found
