"""Statistics of outputs, on every backend: those that NumPy finds in the same outputs.

Counts and dead units are exact. Mean and std may be off by the roundings of a sum: u·CHAIN of the
mean magnitude, u being the unit roundoff of the computation, CHAIN the longest chain of additions
and merges that an element goes through (a thread's 64 elements, its warps as trees, then tiles).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpuact import reference
from gpuact.backends import tiles
from gpuact.catalogue import FUNCTIONS
from tests import harness
from tests.bounds import DTYPES
from tests.harness import named

CHAIN = 96

# (outer, units, inner): what each reaches
SHAPES = {
    "one element": (1, 1, 1),
    "fewer than a pack": (3, 1, 1),
    "a layer, bits of eight units a byte": (40, 96, 1),
    "units that fill no byte": (70, 10, 1),
    "an odd width, narrow packs": (9, 131, 1),
    "a row of many tiles": (3, 3000, 1),
    "short runs, bits across bytes": (5, 33, 49),
    "runs as long as bytes": (36, 4, 8),
    "runs that a row meets two of": (2, 3, 1400),
    "one unit": (1, 1, 5000),
    "a row of runs": (3, 2, 512),
}


def numbers(executor: harness.Executor, dtype: str, values: list[float]) -> Any:
    return executor.place(np.array(values, named(dtype)))


def case(name: str, dtype: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Random x with units that are silent, saturated, and alive in one element alone."""
    rng = np.random.default_rng(len(name) + shape[1])
    x = rng.normal(0.3, 2.5, shape)
    x[:, ::3] = -abs(x[:, ::3]) - 6  # dead under relu; under sigmoid and tanh saturated
    x[:, 1::5] = abs(x[:, 1::5]) + 6
    x[-1, ::6, -1] = 0.5  # but for the last element
    x.reshape(-1)[::7] = 0
    return x.astype(named(dtype))


def observe(
    executor: harness.Executor,
    formula: str | None,
    x: np.ndarray,
    parameter: Any,
    bounds: tuple[float | None, float | None],
    writes: bool = True,
    moments: Any = (0, 0, 0, 0, 0),
    alive: Any = 0,
) -> SimpleNamespace:
    placed = executor.place(x)
    out = executor.place(x, blank=True) if writes else None
    state = executor.place(np.array(moments, np.float64))
    seen = executor.place(np.full(x.shape[1], alive, np.uint8))
    if isinstance(parameter, np.ndarray):
        parameter = executor.place(parameter).native
    executor.backend.observe(
        formula,
        placed.native,
        out and out.native,
        parameter,
        bounds,
        state.native,
        seen.native,
        executor.empty,
    )
    assert placed.unchanged()
    return SimpleNamespace(
        y=x if out is None else out.numpy().copy(),
        moments=state.numpy().copy(),
        alive=seen.numpy().copy(),
    )


def check(found: SimpleNamespace, bounds: tuple[float | None, float | None]) -> None:
    y = found.y
    compute = np.float64 if y.dtype == np.float64 else np.float32
    u = np.finfo(compute).eps / 2
    count, mean, m2, zeros, saturated = found.moments
    beyond = reference.is_saturated(y.astype(compute), *bounds)
    exact = y.astype(np.longdouble)
    assert (count, zeros, saturated) == (y.size, (y == 0).sum(), beyond.sum())
    assert found.alive.tolist() == (~beyond.all((0, 2))).astype(int).tolist()
    size = float(abs(exact).mean())
    assert abs(mean - exact.mean()) <= CHAIN * u * size
    std = float(exact.std())
    assert abs(math.sqrt(m2 / count) - std) <= CHAIN * u * (std + size)


@pytest.fixture(params=harness.executors())
def executor(request, monkeypatch) -> harness.Executor:
    return harness.make(request.param, monkeypatch)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape(executor, shape):
    bounds = FUNCTIONS["relu"].saturated
    check(observe(executor, "relu", case("relu", "float32", shape), None, bounds), bounds)
