"""Mixed calls for a long time, new shapes at every step: nothing grows, and no bit drifts.

A few seconds in `make test`, five minutes in `make test-slow`; GPUACT_SOAK=3600 with `-m soak`
makes an hour of it.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuact
from gpuact import fusion, routes
from gpuact.backends import numpy as backend
from tests import harness
from tests.bounds import DTYPES
from tests.libraries import values

if sys.platform != "linux":
    pytest.skip("how much memory a process has is asked of Linux", allow_module_level=True)

MEMORY = 4 << 20  # bytes that the process may grow by
OBJECTS = 300  # that the collector may find more of, beside what is kept of calls
DROPOUT = gpuact.Dropout(0.25, seed=11)


def plain(x: Any, dy: Any, w: Any, t: Any) -> Iterator[Any]:
    """Every kind of function, without autograd."""
    yield gpuact.relu(x)
    yield gpuact.sigmoid_backward(dy, gpuact.sigmoid(x))
    yield gpuact.tanh_derivative(x)
    yield gpuact.linear(x, w, 0.5)
    yield from gpuact.linear_backward(dy, x, w, w)
    yield from gpuact.prelu_backward(dy, x, w, channel_axis=-1)
    yield gpuact.fused(x, "tanh", bias=w, gate=dy, dropout=DROPOUT)
    yield from gpuact.fused_backward(dy, x, "leaky_relu", scale=w, dropout=DROPOUT).values()
    yield gpuact.softmax_backward(dy, gpuact.softmax(x, scale=0.5, causal=True))
    yield gpuact.log_softmax(x, 0, out=dy)
    loss, lse = gpuact.cross_entropy(x, t, return_lse=True, label_smoothing=0.1)
    yield gpuact.cross_entropy_backward(loss, x, t, lse, label_smoothing=0.1)
    yield from gpuact.cross_entropy_with_grad(x, t, reduction="none")
    with gpuact.using("numpy"):
        yield gpuact.relu(x)


def learned(x: Any, dy: Any, w: Any, t: Any) -> Iterator[Any]:
    """With backward, and backward of it."""
    import torch

    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    h = gpuact.fused(gpuact.prelu(x, w, channel_axis=-1), "sigmoid", bias=w, dropout=DROPOUT)
    h = gpuact.tanh(gpuact.linear(h, w)) + gpuact.log_softmax(gpuact.leaky_relu(x))
    loss = gpuact.cross_entropy(gpuact.softmax(h), t)
    gradients = torch.autograd.grad(loss, (x, w), create_graph=True)
    yield from gradients
    more = gradients[0].square().sum() + (gpuact.relu(x) * dy).sum()
    yield from torch.autograd.grad(more, (x, w))
    gpuact.sigmoid(x).sum().backward()
    yield x.grad


def refused(x: Any) -> None:
    """A refusal holds on to nothing."""
    with pytest.raises(ValueError):
        gpuact.softmax(x, 7)
    with pytest.raises(ValueError):
        gpuact.linear(x, x[:, :1, None])
    with pytest.raises(TypeError), gpuact.using("cupy"):
        gpuact.relu(x)


def arrays(lib: str, shape: tuple[int, int], dtype: str, seed: int) -> list[Any]:
    """x, dy, a column w and classes t."""
    given = [values(s, dtype, seed + k, ()) for k, s in enumerate((shape, shape, shape[1:]))]
    given.append(np.random.default_rng(seed).integers(0, shape[1], shape[0]))
    return given if lib == "numpy" else [harness._to_torch(a) for a in given]


def bits(results: Iterator[Any]) -> list[bytes]:
    found = []
    for result in results:
        if not isinstance(result, np.ndarray | np.generic):
            result = harness._from_torch(result.detach())
        found.append(result.tobytes())
    return found


def fixed(lib: str) -> list[list[bytes]]:
    """Of the same inputs every time, in each dtype; the large one is cut among threads."""
    large = (300, 3600), "float32"
    found = [bits(plain(*arrays(lib, *large, 9)))]
    for k, dtype in enumerate(DTYPES):
        found.append(bits(plain(*arrays(lib, (5, 37 + k), dtype, k))))
        if lib == "torch":
            found.append(bits(learned(*arrays(lib, (6, 129), dtype, k))))
    return found


def tracked() -> int:
    """Objects that the garbage collector knows of, once there is no garbage."""
    gc.collect()
    return len(gc.get_objects())


def resident() -> int:
    """Bytes of memory that the process has, without what the C library keeps of what was freed."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def kept() -> int:
    """Answers of all the caches that shapes could fill."""
    sizes = (cache.cache_info().currsize for cache in (backend._formula, fusion._chance))
    return len(routes._routes) + sum(sizes)


LONG = float(os.environ.get("GPUACT_SOAK", 300))


def soak(lib: str, seconds: float) -> dict[str, Any]:
    """What grew, and whether a bit drifted, in a process that does nothing else."""
    routes.MOST = 64  # soon full: how many there are is looked at below
    rng = np.random.default_rng(0)

    def step(k: int) -> None:
        """Of a shape that hardly comes twice."""
        shape = int(rng.integers(1, 12)), int(rng.integers(2, 3000))
        given = arrays(lib, shape, list(DTYPES)[k % len(DTYPES)], k)
        if lib == "torch":
            bits(learned(*given))
        bits(plain(*given))
        refused(given[0])

    want = fixed(lib)
    for k in range(25):  # until all is loaded, what is kept is full, and the allocator content
        step(k)
    fixed(lib)
    memory, objects, answers, k = resident(), tracked(), kept(), 25
    end = time.monotonic() + seconds / 2  # there are two libraries
    while k < 40 or time.monotonic() < end:
        step(k)
        k += 1
    drifted = fixed(lib) != want
    return {
        "drifted": drifted,
        "answers": kept() - answers,
        "objects": tracked() - objects,
        "memory": resident() - memory,
    }


@pytest.mark.parametrize(
    "seconds",
    [2, pytest.param(LONG, id="long", marks=[pytest.mark.slow, pytest.mark.soak])],
)
@pytest.mark.parametrize("lib", ["numpy", "torch"])
def test_nothing_grows_and_nothing_drifts(lib, seconds):
    if lib == "torch":
        pytest.importorskip("torch")
    # a new process: what other tests have freed is no yardstick
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        found = alone.submit(soak, lib, seconds).result()
    assert not found["drifted"]
    assert found["answers"] <= 64
    assert found["objects"] < OBJECTS
    assert found["memory"] < MEMORY
