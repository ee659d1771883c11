"""How a call is timed: where its arrays live, in which order, on whose clock, how often."""

from __future__ import annotations

import math
import types
from typing import Any

import numpy as np
import pytest

from bench import measure
from gpuact.libraries import Library, numpy_dtype
from tests import fake_gpu

Array = Any

# -- arrays ---------------------------------------------------------------------------------------

DTYPES = ("float32", "bfloat16", "float16", "float64")
SHAPES = [(31,), (10,), (4,), (9, 7), (9, 10), (5, 3, 2, 4), (1, 3)]
ROWS = [slice(None), slice(None, None, 3), slice(2, None, 5), slice(3, 3), slice(0, 1)]


def numbers(count: int, dtype: str) -> Array:
    return np.random.default_rng(0).standard_normal(count).astype(numpy_dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_array_that_repeats_is_what_numpy_makes_of_it(
    shape: tuple[int, ...], dtype: str
) -> None:
    repeated = measure.Repeated(numbers(10, dtype), shape)
    whole = repeated.whole()
    assert (whole.shape, whole.dtype) == (shape, numpy_dtype(dtype))
    assert np.array_equal(whole.reshape(-1), np.resize(numbers(10, dtype), math.prod(shape)))
    assert repeated.nbytes == whole.nbytes
    for rows in ROWS:
        assert np.array_equal(repeated[rows], whole[rows])
        assert repeated[rows].shape == whole[rows].shape


@pytest.mark.parametrize("where", ["numpy", "torch on the CPU"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_array_is_repeated_where_it_is_to_be(
    shape: tuple[int, ...], dtype: str, where: str
) -> None:
    if where != "numpy":
        pytest.importorskip("torch")
    place = measure.PLACES[where]()
    repeated = measure.Repeated(numbers(10, dtype), shape)
    found = place.take(measure.placed(place, repeated))
    assert found.dtype == numpy_dtype(dtype)
    assert np.array_equal(found, repeated.whole())
    assert np.array_equal(repeated.base, numbers(10, dtype))
    plain = place.take(measure.placed(place, repeated.whole()))
    assert np.array_equal(plain, repeated.whole())


def test_inputs_go_around_the_cache_three_times_over() -> None:
    place = measure.Host()
    place.cache = 1000
    arrays = [np.arange(10.0), measure.Repeated(np.arange(4.0), (5, 4))]
    copies = measure.rotated(place, arrays)
    assert len(copies) == math.ceil(1000 / 240)
    assert len({x.ctypes.data for args in copies for x in args}) == 2 * len(copies)
    for first, second in copies:
        assert np.array_equal(first, arrays[0])
        assert np.array_equal(second, arrays[1].whole())


@pytest.mark.parametrize(
    ("cache", "copies"), [(0, 1), (8, 1), (9, 2), (9 * measure.AROUND, measure.AROUND)]
)
def test_small_inputs_go_around_so_often_and_no_more(cache: int, copies: int) -> None:
    place = measure.Host()
    place.cache = cache
    assert len(measure.rotated(place, [np.zeros(1)])) == copies
    assert len(measure.rotated(place, [np.zeros(0)])) == min(max(1, cache), measure.AROUND)


@pytest.mark.parametrize(("written", "copies"), [(8, 125), (100, 10), (999, 2), (1000, 1)])
def test_outputs_go_through_the_cache_as_inputs_do(written: int, copies: int) -> None:
    place = measure.Host()
    place.cache = 1000
    assert len(measure.rotated(place, [np.zeros(1)], written)) == copies


# -- turns ----------------------------------------------------------------------------------------


class Clock(measure.Host):
    """A millisecond a call, on the wall as well."""

    batch = 0.0
    wall = 0.0

    def seconds(self, calls: measure.Calls, count: int) -> float:
        for i in range(count):
            calls[i % len(calls)]()
        Clock.wall += 0.001 * count
        return 0.001 * count


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "perf_counter", lambda: Clock.wall)


@pytest.mark.usefixtures("wall")
def test_contenders_take_turns() -> None:
    met: list[str] = []
    contenders = {
        name: (Clock(), [lambda name=name: met.append(name)]) for name in ("first", "second")
    }
    timings = measure.interleaved(contenders, 0.0205)
    warm_up = 2 * (measure.WARM_UP + 1 + 1)  # a first sample tells how many there is time for
    assert met[warm_up:] == ["first", "second"] * 10
    assert timings["first"] == measure.Timing(0.001, 0.001, 0.001, 10)


@pytest.mark.usefixtures("wall")
def test_the_budget_is_of_the_clock_on_the_wall() -> None:
    """What a place reports is a part of what it takes where it waits for a device afterwards."""

    class Waiting(Clock):
        def seconds(self, calls: measure.Calls, count: int) -> float:
            super().seconds(calls, count)
            return 1e-6 * count

    (timing,) = measure.interleaved({"one": (Waiting(), [lambda: None])}, 0.0205).values()
    assert (timing.samples, timing.median) == (20, 1e-6)


@pytest.mark.usefixtures("wall")
def test_who_raises_is_left_behind() -> None:
    calls: list[int] = []
    errors: list[str] = []

    def late() -> None:
        calls.append(0)
        if len(calls) > measure.WARM_UP + 4:
            raise MemoryError("late")

    def early() -> None:
        raise ValueError("early")

    contenders = {
        name: (Clock(), [call]) for name, call in (("a", early), ("b", late), ("c", lambda: None))
    }
    lost = lambda who, error: errors.append(f"{who}: {error}")  # noqa: E731
    timings = measure.interleaved(contenders, 0.0, lost=lost)
    assert errors == ["a: early", "b: late"]
    assert list(timings) == ["c"]
    assert timings["c"].samples == measure.ROUNDS[0]
    with pytest.raises(ValueError, match="early"):
        measure.interleaved(contenders, 0.0)


@pytest.mark.usefixtures("wall")
def test_it_is_told_whose_turn_it_is_before_every_sample() -> None:
    met: list[str] = []
    contenders = {
        name: (Clock(), [lambda name=name: met.append(name)]) for name in ("first", "second")
    }
    measure.interleaved(contenders, 0.0205, lambda who: met.append(f"at {who}"))
    once = measure.WARM_UP + 1 + 1
    warm = ["at first", *["first"] * once, "at second", *["second"] * once]
    assert met == warm + ["at first", "first", "at second", "second"] * 10


@pytest.mark.usefixtures("wall")
@pytest.mark.parametrize(("budget", "rounds"), [(0.0, measure.ROUNDS[0]), (9.0, measure.ROUNDS[1])])
def test_samples_are_neither_too_few_nor_too_many(budget: float, rounds: int) -> None:
    timings = measure.interleaved({"one": (Clock(), [lambda: None])}, budget)
    assert timings["one"].samples == rounds


def test_quantiles_are_of_one_call() -> None:
    ticks = iter([0.0, 0.5, 1.0, *(0.5 * k for k in (1, 2, 3, 4, 5, 6, 7))])

    class Place(measure.Host):
        batch = 1.0  # two calls of half a second

        def seconds(self, calls: measure.Calls, count: int) -> float:
            assert count in (measure.WARM_UP, 1, 2)
            return next(ticks)

    (timing,) = measure.interleaved({"one": (Place(), [])}, 0.0).values()
    assert timing == measure.Timing(1.0, pytest.approx(0.55), pytest.approx(1.45), 7)


# -- clocks ---------------------------------------------------------------------------------------


def test_a_host_batch_is_timed_by_the_clock_on_the_wall() -> None:
    calls: list[int] = []
    seconds = measure.Host().seconds([lambda: calls.append(0), lambda: calls.append(1)], 5)
    assert calls == [0, 1, 0, 1, 0]
    assert 0 < seconds < 1


def test_nobody_waits_for_the_device_while_the_clock_runs() -> None:
    events: list[str] = []

    class Place(measure.Host):
        def synchronize(self) -> None:
            events.append("wait")

    place = measure.Unwaited(Place())
    assert 0 < place.seconds([lambda: events.append("call")], 3) < 1
    assert events == ["wait", "call", "call", "call", "wait"]


@pytest.mark.parametrize(
    ("once", "most"), [(0.0, measure.Host.most), (0.0001, 5), (0.00026, 1), (1.0, 1)]
)
def test_the_device_keeps_up_with_a_sample_of_plain_calls(once: float, most: int) -> None:
    """Else the host would wait for room in the stream, and the clock would tell of the device."""
    place = measure.Unwaited(measure.Host(), once)
    assert place.most == most
    if most > 1000:
        return
    calls: list[int] = []
    measure.interleaved({"one": (place, [lambda: calls.append(0)])}, 0.0)
    assert len(calls) == measure.WARM_UP + 1 + most * (1 + measure.ROUNDS[0])


def test_a_cpu_has_no_graphs() -> None:
    for place in (measure.Host, measure.TorchHost):
        assert not place.graphs
        assert place.cache == 0
    with pytest.raises(NotImplementedError, match="a CPU has no CUDA graphs"):
        measure.Host().recorded([])
    assert measure.Cupy.graphs
    assert measure.TorchCuda.graphs


def test_a_replayed_call_is_its_share_of_the_graph() -> None:
    replays: list[int] = []

    class Place(measure.Host):
        def recorded(self, calls: measure.Calls) -> Any:
            return lambda: replays.append(len(calls))

        def seconds(self, calls: measure.Calls, count: int) -> float:
            super().seconds(calls, count)
            return 0.4 * count

    calls = [lambda: None] * 4
    place = measure.Replayed(Place(), calls)
    assert place.seconds(calls, 1) == pytest.approx(0.1)
    assert place.seconds(calls, 9) == pytest.approx(0.9)
    assert replays == [4] * (1 + 3)


@pytest.mark.parametrize("fails", [False, True])
def test_cupy_records_on_a_stream_whose_pool_has_the_memory(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called once before, all outputs alive; and the stream never stays in recording."""
    events: list[str] = []

    class Stream:
        def __enter__(self) -> Stream:
            return self

        def __exit__(self, *error: object) -> None:
            events.append("exit")

        def synchronize(self) -> None:
            events.append("wait")

        def begin_capture(self) -> None:
            events.append("begin")

        def end_capture(self) -> Any:
            events.append("end")
            return types.SimpleNamespace(launch=lambda: events.append("launch"))

    class Output:
        def __init__(self) -> None:
            if fails and "begin" in events:
                raise RuntimeError("not while recording")
            events.append("call")

        def __del__(self) -> None:
            if events:
                events.append("freed")

    held = object()  # of a graph that somebody else has captured
    monkeypatch.setattr(Library, "captured", [held])

    class Ours(Output):
        """As of gpuact, which keeps what is made while a graph is recorded."""

        def __init__(self) -> None:
            super().__init__()
            if "begin" in events:
                Library.captured.append(self)

    place = fake_gpu.Cupy()
    place.stream = Stream()
    before = ["call", "call", "wait", "freed", "freed", "begin"]
    if fails:
        with pytest.raises(RuntimeError, match="not while recording"):
            place.recorded([Ours, Ours])
        assert [e for e in events if e != "freed"][:6] == [
            *("call", "call", "wait", "begin", "end", "exit")
        ]
    else:
        place.recorded([Ours, Ours])()
        assert events == [*before, "call", "call", "end", "freed", "freed", "exit", "launch"]
    assert Library.captured == [held]
    events.clear()


# -- memory ---------------------------------------------------------------------------------------


def test_a_peak_is_what_is_held_at_once() -> None:
    place, kept = measure.Host(), []

    def one_after_another() -> None:
        for _ in range(3):
            np.ones(1 << 17)

    def all_at_once() -> None:
        kept[:] = [np.ones(1 << 17) for _ in range(3)]

    mb = 1 << 20
    assert mb <= place.peak(one_after_another) < 1.1 * mb
    assert 3 * mb <= place.peak(all_at_once) < 3.1 * mb
    assert mb <= place.peak(one_after_another) < 1.1 * mb  # beside what was there before


def test_nobody_counts_after_a_failure() -> None:
    import tracemalloc

    with pytest.raises(ZeroDivisionError):
        measure.Host().peak(lambda: 1 // 0)
    assert not tracemalloc.is_tracing()


def test_torch_counts_no_memory_on_a_cpu() -> None:
    pytest.importorskip("torch")
    assert measure.TorchHost().peak(lambda: None) is None


def test_cupy_s_pool_is_asked_for_what_it_gave() -> None:
    """In bytes of its blocks, which is what the call keeps others from having."""
    hooks: list[Any] = []

    class MemoryHook:
        def __enter__(self) -> MemoryHook:
            hooks.append(self)
            return self

        def __exit__(self, *error: object) -> None:
            hooks.remove(self)

    def allocated(size: int) -> None:
        for hook in hooks:
            hook.malloc_postprocess(device_id=0, size=size - 1, mem_size=size, mem_ptr=1, pmem_id=1)

    def freed(size: int) -> None:
        for hook in hooks:
            hook.free_postprocess(device_id=0, mem_size=size, mem_ptr=1, pmem_id=1)

    def call() -> None:
        allocated(512)
        allocated(1024)
        freed(512)
        allocated(256)
        freed(1024)
        freed(4096)  # of before

    place = measure.Cupy.__new__(measure.Cupy)
    place.cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(MemoryHook=MemoryHook))
    assert place.peak(call) == 512 + 1024
    assert not hooks
