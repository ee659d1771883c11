"""The paths of the benchmark that need a GPU, on a fake one whose times are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich")
pytest.importorskip("torch")
from bench import cases, measure, suite
from bench.cases import Case, Watched
from bench.tables import COPY
from tests import fake_gpu

CASE = Case("relu", "float32", (1 << 14,))
MOVED = CASE.bytes / fake_gpu.RATE


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    device = fake_gpu.DEVICE
    for name, value in vars(fake_gpu.Device()).items():
        setattr(device, name, value)
    monkeypatch.setattr(measure, "perf_counter", fake_gpu.clock)
    yield
    assert device.graph is None
    device.lost = ""


def places() -> dict[str, measure.Host]:
    return {name: place() for name, place in fake_gpu.PLACES.items()}


def rows_of(case: Case, *who: Any, budget: float = 0.001) -> dict[str, suite.Row]:
    return {row.provider: row for row in suite.run_case(case, who, places(), budget)}


@pytest.mark.parametrize("size", [1 << 14, 1 << 18])
def test_throughput_is_a_graph_s_and_a_call_s_cost_is_the_host_s(size: int) -> None:
    case = Case("relu", "float32", (size,))
    rows = rows_of(case, *fake_gpu.OURS, fake_gpu.TORCHS)
    assert list(rows) == [COPY, "gpuact on CuPy", "gpuact on Triton", "torch"]
    for row, slower in zip(rows.values(), (1, 1.02, 1.04, 2), strict=True):
        assert (row.status, row.method, row.note) == ("timed", "graph", "")
        took = max(fake_gpu.LEAST, case.bytes * slower / fake_gpu.RATE)
        # a graph's own launch is shared by as many calls as it holds
        assert row.timing.median == pytest.approx(took, rel=0.2)
        assert row.timing.median >= took * (1 - 1e-9)
        assert row.call.median == pytest.approx(fake_gpu.LAUNCH)
        assert row.bytes_per_second == case.bytes / row.timing.median
    copy, torch = rows[COPY].timing, rows["torch"].timing
    assert rows["torch"].share_of_copy == copy.median / torch.median


def test_peak_memory_is_what_the_libraries_count() -> None:
    rows = rows_of(CASE, *fake_gpu.OURS)
    written = CASE.bytes // 2
    assert [row.peak_bytes for row in rows.values()] == [None, written, written]


@pytest.mark.parametrize("name", fake_gpu.PLACES)
def test_a_graph_goes_around_three_times_the_cache(name: str) -> None:
    place = fake_gpu.PLACES[name]()
    assert place.cache == 3 * fake_gpu.L2
    arrays = [np.zeros(1000, np.float32), np.zeros(1000, np.float32)]
    copies = measure.rotated(place, arrays)
    assert sum(x.nbytes for args in copies for x in args) >= place.cache
    assert len(copies) == math.ceil(3 * fake_gpu.L2 / 8000)
    met: list[int] = []
    calls = [lambda i=i: (met.append(i), fake_gpu.DEVICE.launch(1e6)) for i in range(len(copies))]
    replayed = measure.Replayed(place, calls)
    recorded, replays = met[-len(copies) :], 3
    assert recorded == list(range(len(copies)))
    met.clear()
    seconds = replayed.seconds(calls, replays * len(copies))
    assert met == []  # a replay calls nobody
    assert seconds == pytest.approx(replays * len(copies) * fake_gpu.LEAST, rel=0.05)


@pytest.mark.parametrize("name", fake_gpu.PLACES)
def test_a_graph_is_of_several_calls_where_they_are_short(name: str) -> None:
    place = fake_gpu.PLACES[name]()
    assert len(measure.rotated(place, [np.zeros(1 << 20, np.uint8)])) == measure.FEW
    huge = np.broadcast_to(np.uint8(0), (measure.FEW_BYTES,))  # a byte that says it is many
    place.put = lambda array: array
    assert len(measure.rotated(place, [huge])) == 1


def test_what_cannot_be_recorded_is_timed_with_its_launches() -> None:
    rows = rows_of(CASE, *fake_gpu.OURS, fake_gpu.SHY)
    shy = rows["a shy one"]
    assert (shy.status, shy.method) == ("timed", "events")
    assert shy.note == (
        "no CUDA graph of it (RuntimeError: operation not permitted when stream is capturing): "
        "launches are timed along"
    )
    # the device is quicker than the host that feeds it
    assert shy.timing.median == pytest.approx(max(fake_gpu.LAUNCH, MOVED), rel=0.2)
    assert rows["gpuact on CuPy"].method == "graph"


def test_a_huge_case_leaves_no_pool_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """One library's pool would starve the other's; but none is emptied behind a recorded graph."""
    events: list[str] = []
    held = places()
    for name, place in held.items():
        record, trim = place.recorded, place.trim
        told = lambda calls, n=name, f=record: (events.append(f"{n} records"), f(calls))[1]  # noqa: E731
        monkeypatch.setattr(place, "recorded", told)
        monkeypatch.setattr(place, "trim", lambda n=name, f=trim: (events.append(n), f()))
    monkeypatch.setattr(suite.gc, "collect", lambda: events.append("collected"))
    monkeypatch.setattr(suite, "HUGE", CASE.bytes)
    suite.run_case(CASE, fake_gpu.OURS, held, 0.001)
    cupy, torch = fake_gpu.PLACES
    recorded = [f"{cupy} records"] * 2 + [f"{torch} records"]  # the copy is CuPy's
    assert events == [cupy, torch, *recorded, cupy, torch, "collected", cupy, torch]
    events.clear()
    monkeypatch.setattr(suite, "HUGE", CASE.bytes + 1)
    suite.run_case(CASE, fake_gpu.OURS, held, 0.001)
    assert events == [*recorded, cupy, torch]


def test_a_recording_that_fails_leaves_nothing_behind() -> None:
    """Those who come after are recorded, on the stream that was current before."""
    late = fake_gpu.provider("a later one", fake_gpu.TORCH)
    before = fake_gpu.DEVICE.stream
    rows = rows_of(CASE, fake_gpu.SHY, *fake_gpu.OURS, late)
    methods = {who: row.method for who, row in rows.items()}
    assert methods.pop("a shy one") == "events"
    assert set(methods.values()) == {"graph"}
    assert fake_gpu.DEVICE.stream is before


def test_the_reason_is_the_call_s_and_not_what_came_before_it() -> None:
    def looked_up(y: Any) -> Any:
        try:
            return {}["cached"]
        except KeyError:
            return fake_gpu.not_while_recording(y)

    for name in fake_gpu.PLACES:
        who = fake_gpu.planted("a caching one", name, looked_up)
        note = rows_of(CASE, *fake_gpu.OURS, who)["a caching one"].note
        assert "RuntimeError: operation not permitted when stream is capturing" in note


def test_who_waits_for_the_device_is_not_recorded() -> None:
    waiting = replace(fake_gpu.SHY, waits=("relu",))
    row = rows_of(CASE, waiting)["a shy one"]
    assert (row.status, row.method, row.note) == ("timed", "events", suite.WAITS)
    assert rows_of(replace(CASE, function="tanh"), waiting)["a shy one"].note != suite.WAITS


def test_a_graph_s_memory_is_its_own_as_long_as_it_lives() -> None:
    place = fake_gpu.Cupy()
    alive = fake_gpu.MemoryPool.alive
    others = set(map(id, alive))
    met: list[int] = []  # by their numbers: a reference would keep them

    def call() -> None:
        met.append(id(getattr(fake_gpu.DEVICE.allocator, "__self__", None)))

    replay = place.recorded([call])
    (own,) = set(map(id, alive)) - others
    assert met == [own, own]  # called before it is recorded, from the same memory
    replay()
    del replay
    assert set(map(id, alive)) == others


def test_after_a_case_torch_forgets_what_it_compiled() -> None:
    held = places()
    torch = held[fake_gpu.TORCH]
    pool = torch.pool
    fake_gpu.RESETS.clear()
    suite.run_case(CASE, fake_gpu.OURS, held, 0.001)
    assert fake_gpu.RESETS == ["reset"]
    assert torch.pool is not pool


def broken_after(count: int) -> Any:
    """A function that runs out of memory in a later call."""
    calls: list[int] = []

    def fault(y: Any) -> Any:
        calls.append(0)
        if len(calls) > count:
            raise MemoryError("out of memory")
        return y

    return fake_gpu.planted("a hungry one", fake_gpu.TORCH, fault)


def test_who_fails_late_fails_alone() -> None:
    """In the check 1 call, of its memory 1, before recording and in it one for each input."""
    around = len(measure.rotated(fake_gpu.TorchCuda(), [np.zeros(CASE.bytes // 2, np.uint8)]))
    for calls in (1, 2 + around // 2, 2 + 2 * around + 1):
        rows = rows_of(CASE, *fake_gpu.OURS, broken_after(calls))
        for who in (COPY, "gpuact on CuPy", "gpuact on Triton"):
            assert (rows[who].status, rows[who].method) == ("timed", "graph")
            assert rows[who].call is not None
        hungry = rows["a hungry one"]
        if calls < 2 + 2 * around:
            assert (hungry.status, hungry.reason) == ("failed", "MemoryError: out of memory")
        else:  # of the work there is a time, of what a call costs there is none
            assert (hungry.status, hungry.method, hungry.call) == ("timed", "graph", None)
            assert hungry.note == "what a call costs is not known (MemoryError: out of memory)"


def test_a_wrong_provider_is_wrong_and_not_timed() -> None:
    rows = rows_of(CASE, *fake_gpu.OURS, fake_gpu.WRONG)
    wrong = rows["a wrong one"]
    assert (wrong.status, wrong.timing, wrong.call) == ("wrong", None, None)
    assert wrong.reason.startswith("1 of 16384 values differ: ")
    assert rows["gpuact on Triton"].status == "timed"


def one_more(found: Any) -> Any:
    (found[-1] if isinstance(found, tuple) else found)[3] += 1
    return found


@pytest.mark.parametrize("function", ["activation_with_stats", "activation_stats"])
def test_moments_are_looked_at_where_they_are_kept(function: str) -> None:
    """On the device: nothing is read of them in a graph."""
    case = Watched(function, "float32", (128, 128), activation="relu")
    wrong = fake_gpu.planted("a miscounting one", fake_gpu.TORCH, one_more)
    rows = rows_of(case, *fake_gpu.OURS, fake_gpu.TORCHS, wrong)
    for who in (COPY, "gpuact on CuPy", "gpuact on Triton", "torch"):
        assert (rows[who].status, rows[who].method) == ("timed", "graph")
    assert rows["a miscounting one"].reason.startswith("zeros: ")


def test_after_an_illegal_access_only_another_process_helps() -> None:
    told: list[str] = []
    with pytest.raises(suite.Broken, match="an illegal memory access"):
        suite.run_case(CASE, [*fake_gpu.OURS, fake_gpu.ILLEGAL], places(), 0.001, told.append)
    assert told[-1] == "an illegal one"


def test_a_host_that_goes_ahead_is_not_let_go_far() -> None:
    """Of large arrays few calls are made before the device is waited for."""
    large = Case("relu", "float32", (1 << 18,))
    before = fake_gpu.DEVICE.done
    row = rows_of(large, fake_gpu.OURS[0])["gpuact on CuPy"]
    assert row.call.median == pytest.approx(fake_gpu.LAUNCH)
    slow = measure.Unwaited(measure.Host(), once=0.003)
    assert slow.most == 1
    assert fake_gpu.DEVICE.done > before


@pytest.mark.parametrize("name", fake_gpu.PLACES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_arrays_are_repeated_where_they_are_to_be(name: str, dtype: str) -> None:
    place = fake_gpu.PLACES[name]()
    case = Case("relu", dtype, (7, 1000))
    x = cases.sources(case)["x"]
    short = measure.Repeated(x.base[:301], case.shape)
    placed = place.take(measure.placed(place, short))
    assert placed.dtype == short.base.dtype
    assert np.array_equal(placed.view(np.uint8), np.resize(short.base, case.shape).view(np.uint8))
