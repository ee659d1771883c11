"""How a call is timed: where its arrays live, on whose clock, how often.

Every provider of a case is timed in turn, round after round, so that a clock that drifts or a
neighbour who wakes up meets all of them. A sample is a batch of calls that lasts long enough for
the clock; reported are the median of the samples and their 20 and 80 % quantiles. Outputs are
fresh on every call, for everybody. On a GPU the calls go around inputs of three times the L2
cache, which would otherwise serve what memory is to serve.

Where a kernel takes less time than its launch, what is measured so is the launch, as a caller meets
it; a CUDA graph of the same calls tells the kernel's own time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from gpuact.libraries import numpy_dtype

Array = Any
Calls = Sequence[Callable[[], object]]  # the same work on different memory, to go around

ROUNDS = (7, 50)  # at least and at most so many samples of each provider
WARM_UP = 2


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
    cache = 0  # bytes to go around; the CPU's cases state what a call on one input costs

    def put(self, array: Array) -> Array:
        return array

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

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked to."""

    def release(self) -> None:
        """A case is over: give memory back that a pool keeps for this library alone."""


class Cupy(Host):
    """CuPy arrays, and CUDA events."""

    batch = 0.005

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy
        self.cache = 3 * cupy.cuda.Device().attributes["L2CacheSize"]

    def put(self, array: Array) -> Array:
        return self.cupy.asarray(array)

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
        with self.cupy.cuda.Stream(non_blocking=True) as stream:
            # the pool cannot ask for memory while a graph is recorded: it is to have it by then
            before = [call() for call in calls]
            stream.synchronize()
            del before
            stream.begin_capture()
            try:
                outputs = [call() for call in calls]
            finally:  # a stream that is left recording makes every later call fail
                graph = stream.end_capture()

        def replay() -> object:
            graph.launch()
            return outputs  # theirs as long as the graph writes to them

        return replay

    def synchronize(self) -> None:
        self.cupy.cuda.Device().synchronize()

    def release(self) -> None:
        self.cupy.get_default_memory_pool().free_all_blocks()


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

    def flat(self, array: Array) -> Array:
        return array.reshape(-1).view(self.torch.uint8)

    def take(self, array: Array) -> Array:
        array = array.detach().cpu()
        if array.dtype == self.torch.bfloat16:
            return array.view(self.torch.int16).numpy().view(numpy_dtype("bfloat16"))
        return array.numpy()


class TorchCuda(TorchHost):
    """torch CUDA tensors, and CUDA events."""

    device = "cuda"
    batch = Cupy.batch

    def __init__(self) -> None:
        super().__init__()
        self.cache = 3 * self.torch.cuda.get_device_properties().L2_cache_size

    def seconds(self, calls: Calls, count: int) -> float:
        start, stop = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for i in range(count):
            calls[i % len(calls)]()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3

    def recorded(self, calls: Calls) -> Callable[[], object]:
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            outputs = [call() for call in calls]

        def replay() -> object:
            graph.replay()
            return outputs

        return replay

    def synchronize(self) -> None:
        self.torch.cuda.synchronize()

    def release(self) -> None:
        # torch falls back to eager, silently, after a few shapes of one compiled function
        self.torch.compiler.reset()
        self.torch.cuda.empty_cache()


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

    def __init__(self, place: Host) -> None:
        self.place = place

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


def rotated(place: Host, arrays: Sequence[Array]) -> list[tuple[Array, ...]]:
    """The inputs, and as many copies of them as the place's cache asks for."""
    first = tuple(place.put(array) for array in arrays)
    more = math.ceil(place.cache / sum(array.nbytes for array in arrays)) - 1
    return [first, *(tuple(place.copy(array) for array in first) for _ in range(more))]


def interleaved(contenders: Mapping[str, tuple[Host, Calls]], budget: float) -> dict[str, Timing]:
    """Time all contenders in turn, for `budget` seconds in all or the least number of rounds."""
    counts = {}
    spent = 0.0
    for name, (place, calls) in contenders.items():
        place.seconds(calls, WARM_UP)
        once = place.seconds(calls, 1)
        counts[name] = max(1, math.ceil(place.batch / max(once, 1e-9)))
        spent += once * counts[name]
    rounds = int(np.clip(budget / spent, *ROUNDS))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (place, calls) in contenders.items():
            samples[name].append(place.seconds(calls, counts[name]) / counts[name])
    timings = {}
    for name, times in samples.items():
        median, low, high = (float(q) for q in np.quantile(times, (0.5, 0.2, 0.8)))
        timings[name] = Timing(median, low, high, rounds)
    return timings
