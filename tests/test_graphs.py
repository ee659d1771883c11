"""Functions over rows in CUDA graphs: recorded after `warmup`, they give what a call gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuact
from tests.bounds import DTYPES, compute_dtype
from tests.libraries import Library, libraries

GPU = libraries("cupy", "cupy-on-triton", "torch-cuda", "torch-cuda-on-cupy")
ROOM = 1 << 26  # bytes


def torch_graph(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    return graph.replay, results


def cupy_graph(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    import cupy

    # CuPy's pool cannot ask for memory while a graph is recorded: this is what it will hand out
    room = cupy.empty(ROOM, np.uint8)
    del room
    stream = cupy.cuda.get_current_stream()
    stream.begin_capture()
    try:
        results = work()
    finally:  # a stream that is left recording makes every later call fail
        graph = stream.end_capture()
    return graph.launch, results


@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
@pytest.mark.parametrize("shape", ((64, 257), (3, 33001)), ids=str)
@pytest.mark.parametrize("lib", GPU, indirect=True)
def test_a_graph_gives_what_calls_give(lib: Library, shape: tuple[int, int], dtype: str) -> None:
    rows, classes = shape

    def values(seed: int) -> list[Any]:
        rng = np.random.default_rng(seed)
        # two arrays, aligned as warmup's are: half of one need not be
        x, dy = ((rng.standard_normal(shape) * 4).astype(DTYPES[dtype]) for _ in range(2))
        target = rng.integers(0, classes, rows)
        dloss = np.asarray(rng.uniform(), compute_dtype(dtype))
        return [lib.place(a).native for a in (x, dy, target, dloss)]

    inputs = x, dy, target, dloss = values(0)

    def work() -> tuple[Any, ...]:
        y = gpuact.softmax(x)
        loss, lse = gpuact.cross_entropy(x, target, return_lse=True)
        return (
            y,
            gpuact.softmax_backward(dy, y),
            loss,
            lse,
            gpuact.cross_entropy_backward(dloss, x, target, lse),
        )

    def bits(results: tuple[Any, ...]) -> list[bytes]:
        return [lib.executor.to_numpy(r).tobytes() for r in results]

    gpuact.warmup([shape], [dtype], ["softmax", "cross_entropy"], like=x)
    record = torch_graph if lib.name.startswith("torch") else cupy_graph
    replay, results = record(work)
    for seed in (1, 2):
        for held, other in zip(inputs, values(seed), strict=True):
            held[...] = other
        replay()
        assert bits(results) == bits(work()), f"values {seed}"


@pytest.mark.parametrize("lib", GPU, indirect=True)
def test_every_replay_is_counted(lib: Library) -> None:
    x = lib.place(np.random.default_rng(0).standard_normal((64, 257)).astype(np.float32)).native
    y, stats = gpuact.activation_with_stats(x, "relu")  # compiles
    mean = stats.mean
    stats.reset()
    record = torch_graph if lib.name.startswith("torch") else cupy_graph
    replay, held = record(lambda: gpuact.activation_with_stats(x, "relu", into=stats)[0])
    for times in (1, 2):
        replay()
        assert stats.count == times * 64 * 257
        assert stats.mean == pytest.approx(mean)
    assert lib.executor.to_numpy(held).tobytes() == lib.executor.to_numpy(y).tobytes()
