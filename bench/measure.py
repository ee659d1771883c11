"""How a call is timed: where its arrays live, on whose clock, how often.

Every provider of a case is timed in turn, round after round, so that a clock that drifts or a
neighbour who wakes up meets all of them. A sample is a batch of calls that lasts long enough for
the clock; reported are the median of the samples and their 20 and 80 % quantiles. Outputs are
fresh on every call, for everybody. On a GPU the calls go around inputs of three times the L2
cache, which would otherwise serve what memory is to serve, and are timed twice: recorded in a CUDA
graph, by device events, which tells what the work takes (`Replayed`); and as plain calls, by the
host's clock, which tells what a call costs whoever makes it (`Unwaited`).
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from gpuact.libraries import library_of, numpy_dtype

Array = Any
Calls = Sequence[Callable[[], object]]  # the same work on different memory, to go around

ROUNDS = (7, 50)  # at least and at most so many samples of each provider
WARM_UP = 2

# Copies of the inputs to go around, at most: a graph of 512 calls takes a moment to record. Arrays
# so small that more were needed are read from the cache, as they are wherever they matter.
AROUND = 512

# And at least, below so many bytes: what lies between two graphs is then shared by as many calls.
FEW, FEW_BYTES = 4, 1 << 30


@dataclass(frozen=True)
class Repeated:
    """An array of gigabytes that repeats a short one, as np.resize makes it, and takes no room."""

    base: Array  # flat
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * int(self.base.itemsize)

    def whole(self) -> Array:
        return np.resize(self.base, self.shape)

    def __getitem__(self, rows: slice) -> Array:
        """Some of its rows."""
        first = np.arange(self.shape[0])[rows] * math.prod(self.shape[1:])
        index = first[:, None] + np.arange(math.prod(self.shape[1:]))
        return self.base[index % self.base.size].reshape(len(first), *self.shape[1:])


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median: float
    low: float  # the 20 % quantile
    high: float  # the 80 % quantile
    samples: int


class Host:
    """NumPy arrays, and the clock on the wall."""

    batch = 0.002  # seconds that one sample takes at least
    most = 1 << 20  # calls in one sample
    cache = 0  # bytes to go around; the CPU's cases state what a call on one input costs
    graphs = False  # whether it has CUDA graphs, and a host that need not wait
    ends = 1 << 26  # bytes that the copy at a run's two ends reads
    spoiled = False  # whether something went wrong that only a new process is free of

    def put(self, array: Array) -> Array:
        return array

    def repeat(self, array: Array, shape: tuple[int, ...]) -> Array:
        """`put` of what np.resize makes of a flat array, written where it is to be."""
        base = self.put(array)
        flat = self._empty(math.prod(shape), base)
        for at in range(0, len(flat), len(base)):
            piece = flat[at : at + len(base)]
            piece[:] = base[: len(piece)]
        return flat.reshape(shape)

    def _empty(self, count: int, like: Array) -> Array:
        return np.empty(count, like.dtype)

    def copy(self, array: Array) -> Array:
        return array.copy()

    def flat(self, array: Array) -> Array:
        """Its bytes, seen and not copied."""
        return array.reshape(-1).view(np.uint8)

    def take(self, array: Array) -> Array:
        """As a NumPy array."""
        return array

    def seconds(self, calls: Calls, count: int) -> float:
        start = perf_counter()
        for i in range(count):
            calls[i % len(calls)]()
        return perf_counter() - start

    def recorded(self, calls: Calls) -> Callable[[], object]:
        """What does all of the calls at once, with no host behind each."""
        raise NotImplementedError("a CPU has no CUDA graphs")

    def peak(self, call: Callable[[], object]) -> int | None:
        """Bytes that a call holds at once beside its arguments; None where nobody counts them."""
        tracemalloc.start()  # to which NumPy reports what it allocates
        try:
            before, _ = tracemalloc.get_traced_memory()
            call()
            return tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked to."""

    def trim(self) -> None:
        """Give memory back that a pool keeps for this library alone."""

    def release(self) -> None:
        """A case is over."""
        self.trim()


class Cupy(Host):
    """CuPy arrays, and CUDA events."""

    batch = 0.005
    graphs = True
    ends = 1 << 30

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy
        of = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
        self.cache = 3 * of["l2CacheSize"]
        self.stream = cupy.cuda.Stream(non_blocking=True)  # that graphs are recorded on

    def put(self, array: Array) -> Array:
        return self.cupy.asarray(array)

    def _empty(self, count: int, like: Array) -> Array:
        return self.cupy.empty(count, like.dtype)

    def take(self, array: Array) -> Array:
        return self.cupy.asnumpy(array)

    def seconds(self, calls: Calls, count: int) -> float:
        start, stop = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        start.record()
        for i in range(count):
            calls[i % len(calls)]()
        stop.record()
        stop.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, stop)) / 1e3

    def recorded(self, calls: Calls) -> Callable[[], object]:
        """With memory of its own, which nothing gives back while the graph may write there."""
        pool = self.cupy.cuda.MemoryPool()
        kept = library_of(self.cupy.empty(0)).captured  # by gpuact, which knows of no such pool
        known = len(kept)
        self.synchronize()
        with self.stream as stream, self.cupy.cuda.using_allocator(pool.malloc):
            before = [call() for call in calls]  # loads and compiles what a graph cannot hold
            stream.synchronize()
            del before
            stream.begin_capture()
            try:
                outputs = [call() for call in calls]  # apart from each other
            except Exception:
                with suppress(Exception):  # a stream left recording makes every later call fail
                    stream.end_capture()
                raise
            finally:
                del kept[known:]
            graph = stream.end_capture()
            del outputs  # nobody reads them

        def replay(keep: object = pool) -> None:
            graph.launch()

        return replay

    def peak(self, call: Callable[[], object]) -> int | None:
        counted = _counting(self.cupy)
        with counted:
            call()
        return counted.most

    def synchronize(self) -> None:
        self.cupy.cuda.Device().synchronize()

    def trim(self) -> None:
        self.cupy.get_default_memory_pool().free_all_blocks()


def _counting(cupy: Any) -> Any:
    """A hook of CuPy's memory pool that counts what is in use; within the call, so that `import
    bench` asks for no CuPy."""

    class Counting(cupy.cuda.MemoryHook):
        name = "gpuact.bench"

        def __init__(self) -> None:
            self.now = self.most = 0

        def malloc_postprocess(self, *, mem_size: int, **told: Any) -> None:
            self.now += mem_size
            self.most = max(self.most, self.now)

        def free_postprocess(self, *, mem_size: int, **told: Any) -> None:
            self.now -= mem_size

    return Counting()


class TorchHost(Host):
    """torch CPU tensors, and the clock on the wall."""

    device = "cpu"

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def put(self, array: Array) -> Array:
        if array.dtype.name == "bfloat16":  # the bits: torch does not know ml_dtypes
            bits = self.torch.from_numpy(array.view(np.int16))
            return bits.view(self.torch.bfloat16).to(self.device)
        return self.torch.from_numpy(array).to(self.device)

    def copy(self, array: Array) -> Array:
        return array.clone()

    def _empty(self, count: int, like: Array) -> Array:
        return self.torch.empty(count, dtype=like.dtype, device=self.device)

    def flat(self, array: Array) -> Array:
        return array.reshape(-1).view(self.torch.uint8)

    def take(self, array: Array) -> Array:
        array = array.detach().cpu()
        if array.dtype == self.torch.bfloat16:
            return array.view(self.torch.int16).numpy().view(numpy_dtype("bfloat16"))
        return array.numpy()

    def peak(self, call: Callable[[], object]) -> int | None:
        return None  # torch counts on a GPU alone


class TorchCuda(TorchHost):
    """torch CUDA tensors, and CUDA events."""

    device = "cuda"
    batch = Cupy.batch
    graphs = True
    ends = Cupy.ends

    def __init__(self) -> None:
        super().__init__()
        self.cache = 3 * self.torch.cuda.get_device_properties().L2_cache_size
        self.side = self.torch.cuda.Stream()  # that graphs are recorded on
        self.pool = self.torch.cuda.graph_pool_handle()  # of all graphs of a case

    def seconds(self, calls: Calls, count: int) -> float:
        start, stop = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for i in range(count):
            calls[i % len(calls)]()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3

    def recorded(self, calls: Calls) -> Callable[[], object]:
        cuda = self.torch.cuda
        cuda.synchronize()
        with cuda.stream(self.side):  # what is set up in a first call is not to be recorded
            for call in calls:
                call()
        cuda.synchronize()
        graph, before = cuda.CUDAGraph(), cuda.current_stream()
        why = None
        try:
            with cuda.graph(graph, pool=self.pool, stream=self.side):
                try:
                    outputs = [call() for call in calls]  # apart from each other
                except Exception as error:
                    why = error
                    raise
        except Exception as error:
            # torch may stay on that stream; its pools and its generator may go on as if it recorded
            cuda.set_stream(before)
            self.pool, self.spoiled = cuda.graph_pool_handle(), True
            raise why or error from None  # and not that recording ended badly
        del outputs  # the next to be recorded writes there too: nobody reads them
        return graph.replay

    def peak(self, call: Callable[[], object]) -> int | None:
        cuda = self.torch.cuda
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        result = call()
        del result
        return int(cuda.max_memory_allocated() - before)

    def synchronize(self) -> None:
        self.torch.cuda.synchronize()

    def trim(self) -> None:
        self.torch.cuda.empty_cache()

    def release(self) -> None:
        # torch falls back to eager, silently, after a few shapes of one compiled function
        self.torch.compiler.reset()
        self.pool = self.torch.cuda.graph_pool_handle()
        self.trim()


class Replayed(Host):
    """The calls as a CUDA graph of this place: what the device alone spends."""

    def __init__(self, place: Host, calls: Calls) -> None:
        self.place, self.batch = place, place.batch
        self.replay, self.calls = place.recorded(calls), len(calls)

    def seconds(self, calls: Calls, count: int) -> float:
        replays = math.ceil(count / self.calls)
        return self.place.seconds([self.replay], replays) * count / (replays * self.calls)


class Unwaited(Host):
    """What the host alone spends: the clock on the wall, and nobody waits for the device."""

    batch = 0.001  # some 300 calls; a stream takes about 1000 before the host must wait for it
    patience = 0.0005  # seconds that the device may need for one sample

    def __init__(self, place: Host, once: float = 0.0) -> None:
        """once: seconds that the device needs for a call."""
        self.place = place
        self.most = max(1, int(self.patience / once)) if once else Host.most

    def seconds(self, calls: Calls, count: int) -> float:
        self.place.synchronize()
        seconds = super().seconds(calls, count)
        self.place.synchronize()
        return seconds


PLACES: Mapping[str, type[Host]] = {
    "numpy": Host,
    "cupy": Cupy,
    "torch on the CPU": TorchHost,
    "torch on CUDA": TorchCuda,
}


def placed(place: Host, array: Array | Repeated) -> Array:
    if isinstance(array, Repeated):
        return place.repeat(array.base, array.shape)
    return place.put(array)


def rotated(
    place: Host, arrays: Sequence[Array | Repeated], written: int = 0
) -> list[tuple[Array, ...]]:
    """The inputs, and as many copies of them as the place's cache asks for.

    written: by a call, in bytes; outputs of the cache's size, of one call or of several, leave
    nothing of any input there.
    """
    first = tuple(placed(place, array) for array in arrays)
    size = max(1, sum(array.nbytes for array in arrays))
    least = FEW if place.graphs and size + written < FEW_BYTES else 1
    needed = math.ceil(place.cache / max(size, written))
    more = min(max(least, needed), AROUND) - 1
    return [first, *(tuple(place.copy(array) for array in first) for _ in range(more))]


def interleaved(
    contenders: Mapping[str, tuple[Host, Calls]],
    budget: float,
    at: Callable[[str], object] = lambda who: None,
    lost: Callable[[str, Exception], object] | None = None,
) -> dict[str, Timing]:
    """Time all contenders in turn, for `budget` seconds in all or the least number of rounds.

    at: is told whose turn it is.
    lost: is told who raised what, and the others go on; without it that ends it for all.
    """
    going = dict(contenders)
    counts: dict[str, int] = {}
    samples: dict[str, list[float]] = {name: [] for name in contenders}

    def turn(name: str, work: Callable[[str], float]) -> float:
        at(name)
        try:
            return work(name)
        except Exception as error:
            if lost is None:
                raise
            del going[name]
            lost(name, error)
            return 0.0

    def first(name: str) -> float:
        """How long a sample takes on the clock on the wall, waiting for the device included."""
        place, calls = going[name]
        place.seconds(calls, WARM_UP)
        once = place.seconds(calls, 1)
        counts[name] = min(max(1, math.ceil(place.batch / max(once, 1e-9))), place.most)
        start = perf_counter()
        place.seconds(calls, counts[name])
        return perf_counter() - start

    def sample(name: str) -> float:
        place, calls = going[name]
        return place.seconds(calls, counts[name]) / counts[name]

    spent = sum(turn(name, first) for name in contenders)
    rounds = int(np.clip(budget / max(spent, 1e-9), *ROUNDS))
    for _ in range(rounds):
        for name in list(going):
            samples[name].append(turn(name, sample))
    timings = {}
    for name in going:
        median, low, high = (float(q) for q in np.quantile(samples[name], (0.5, 0.2, 0.8)))
        timings[name] = Timing(median, low, high, rounds)
    return timings
