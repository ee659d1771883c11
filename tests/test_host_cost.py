"""What a call costs before its kernel starts: our Python, timed with the launch taken out.

The framework's own work (a new tensor, an empty autograd function, a gradient's bookkeeping) is
timed beside ours and subtracted. Limits are in microseconds on a core of known speed: one that runs
YARDSTICK's loop, and the framework's work too, in the times stated here. A slower core gets as much
more as the slower of these two says, for a neighbour that takes caches away slows down much code
more than a loop. `make test` runs this file after all others, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gpuact
from gpuact import dispatch, routes
from tests import harness

pytestmark = pytest.mark.timed

CALLS = 100  # in a sample: short, so that some samples meet no neighbour
SAMPLES = 100


def microseconds(call: Callable[[], object]) -> float:
    """Of one call, at best."""
    best = float("inf")
    for _ in range(SAMPLES):
        start = perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, perf_counter() - start)
    return best / CALLS * 1e6


def yardstick() -> None:
    """Twenty look-ups, calls and tuples: what dispatch is made of."""
    table = {("a", 1): len}
    for _ in range(20):
        table.get(("a", 1), len)((1, 2))


# µs on that core
YARDSTICK = 0.7
NEW_TENSOR = 1.0  # torch.empty_like
NEW_ARRAY = 0.3  # numpy.empty_like
EMPTY_FUNCTION = 20.0  # forward and backward
NOISE = 1.4  # of the best sample, between two runs and three kinds of processor


def held(
    record_property: Any,
    what: str,
    limit: float,
    call: Callable[[], object],
    beside: Callable[[], object] | None,
    known: float,
) -> None:
    """call, less the framework's work `beside` it (None: it has none), takes no more than limit.

    known: what that work, or a new tensor's, takes on the core of known speed. What disturbs a
    measurement only adds to it: of some attempts the best counts.
    """
    columns = ("our Python before the launch", "µs", "at most", "slowness of this core")
    for _ in range(20):
        work = microseconds(beside) if beside else 0.0
        slowness = max(1.0, microseconds(yardstick) / YARDSTICK, work / known)
        cost = microseconds(call) - work
        if cost <= limit * slowness * NOISE:
            break
    row = (what, f"{cost:.1f}", f"{limit:.1f}", f"{slowness:.2f}")
    record_property("table", ("host cost", columns, row))
    assert cost <= limit * slowness * NOISE, f"{what}: {cost:.2f} µs × {slowness:.2f}"


# -- torch tensors, the Triton backend ------------------------------------------------------------


@pytest.fixture
def on_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """CPU tensors that are taken for the Triton backend's, whose launch does nothing."""
    torch = pytest.importorskip("torch")
    backend = harness.make("triton-interpreter", monkeypatch).backend
    monkeypatch.setattr(backend, "launch", lambda plan, args: None)
    with gpuact.using("triton"):
        yield torch


BEFORE_A_LAUNCH = 3.0  # µs
CALLED = (
    "relu(x)",
    "leaky_relu(x, 0.1)",
    "sigmoid_backward(dy, y)",
    "prelu(x, weight)",
    "relu(x, out=y)",
    "fused(x, 'relu', scale=2.0)",
    "fused(x, 'tanh', bias=channels, residual=y)",
    "fused(x, 'relu', dropout=another)",
)


@pytest.mark.interpreter
@pytest.mark.parametrize("what", CALLED)
def test_a_call_without_gradients(on_triton, what, record_property):
    torch = on_triton
    x, y, w = torch.randn(4, 8, 16), torch.empty(4, 8, 16), torch.randn(8)
    bias = torch.randn(16)
    dropouts = cycle([gpuact.Dropout(0.1, 7, offset) for offset in range(1000)])
    calls: dict[str, Callable[[], Any]] = {
        "relu(x)": lambda: gpuact.relu(x),
        "leaky_relu(x, 0.1)": lambda: gpuact.leaky_relu(x, 0.1),
        "sigmoid_backward(dy, y)": lambda: gpuact.sigmoid_backward(x, y),
        "prelu(x, weight)": lambda: gpuact.prelu(x, w),
        "relu(x, out=y)": lambda: gpuact.relu(x, out=y),
        "fused(x, 'relu', scale=2.0)": lambda: gpuact.fused(x, "relu", scale=2.0),
        "fused(x, 'tanh', bias=channels, residual=y)": lambda: gpuact.fused(
            x, "tanh", bias=bias, residual=y
        ),
        "fused(x, 'relu', dropout=another)": lambda: gpuact.fused(
            x, "relu", dropout=next(dropouts)
        ),
    }
    calls[what]()
    new = None if "out=y" in what else lambda: torch.empty_like(x)
    held(record_property, what, BEFORE_A_LAUNCH, calls[what], new, NEW_TENSOR)


# µs; a loss's mean takes four launches, five new tensors and a division between its sums
ROWS = {
    "softmax(x)": 3.5,
    "softmax_backward(dy, y)": 3.5,
    "softmax(x, scale=, mask=, causal=True)": 5.0,
    "cross_entropy(x, target, reduction='none')": 8.5,
    "cross_entropy(x, target)": 17.0,
}


def calls_of_rows(x: Any, y: Any, mask: Any, target: Any) -> dict[str, Callable[[], Any]]:
    return {
        "softmax(x)": lambda: gpuact.softmax(x),
        "softmax_backward(dy, y)": lambda: gpuact.softmax_backward(x, y),
        "softmax(x, scale=, mask=, causal=True)": lambda: gpuact.softmax(
            x, scale=0.125, mask=mask, causal=True
        ),
        "cross_entropy(x, target, reduction='none')": lambda: gpuact.cross_entropy(
            x, target, reduction="none"
        ),
        "cross_entropy(x, target)": lambda: gpuact.cross_entropy(x, target),
    }


@pytest.mark.interpreter
@pytest.mark.parametrize("what", ROWS)
def test_a_call_of_rows(on_triton, what, record_property):
    torch = on_triton
    x, y = torch.randn(4, 8, 16), torch.empty(4, 8, 16)
    mask = torch.ones(4, 1, 16, dtype=torch.bool)
    target = torch.zeros(4, 8, dtype=torch.int64)
    call = calls_of_rows(x, y, mask, target)[what]
    call()
    held(record_property, what, ROWS[what], call, lambda: torch.empty_like(x), NEW_TENSOR)


def empty_function(torch: Any) -> Any:
    class Empty(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            y = torch.empty_like(x)
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            (y,) = ctx.saved_tensors
            return torch.empty_like(y)

    return Empty


@pytest.mark.interpreter
def test_calls_with_gradients(on_triton, record_property):
    """Forward and backward, two calls, beyond an empty function's."""
    torch = on_triton
    x, dy = torch.randn(4, 8, 16), torch.ones(4, 8, 16)
    leaf = x.clone().requires_grad_()
    empty = empty_function(torch)
    gpuact.relu(leaf).backward(dy)
    held(
        record_property,
        "relu forward and backward, beyond an empty autograd function",
        2 * BEFORE_A_LAUNCH,
        lambda: gpuact.relu(leaf).backward(dy),
        lambda: empty.apply(leaf).backward(dy),
        EMPTY_FUNCTION,
    )


GRADIENTS_OF_ROWS = {"softmax": 12.5, "cross_entropy": 40.0}  # µs; a loss has seven launches


@pytest.mark.interpreter
@pytest.mark.parametrize("name", GRADIENTS_OF_ROWS)
def test_rows_with_gradients(on_triton, name, record_property):
    torch = on_triton
    leaf, target = torch.randn(4, 8, requires_grad=True), torch.zeros(4, dtype=torch.int64)
    empty, dy, one = empty_function(torch), torch.ones(4, 8), torch.ones(())
    calls = {
        "softmax": lambda: gpuact.softmax(leaf).backward(dy),
        "cross_entropy": lambda: gpuact.cross_entropy(leaf, target).backward(one),
    }
    calls[name]()
    held(
        record_property,
        f"{name} forward and backward, beyond an empty autograd function",
        GRADIENTS_OF_ROWS[name],
        calls[name],
        lambda: empty.apply(leaf).backward(dy),
        EMPTY_FUNCTION,
    )


@pytest.mark.interpreter
def test_no_autograd_function_without_gradients(on_triton, monkeypatch):
    torch = on_triton
    autograd = pytest.importorskip("gpuact.torch.autograd")

    def refuse(*args: Any) -> None:
        raise AssertionError("an autograd function runs")

    for name in ("_Activation", "_Learned", "_Fused"):
        monkeypatch.setattr(autograd, name, SimpleNamespace(apply=refuse))
    x = torch.randn(4, 8)
    for given in (x, x.clone().requires_grad_()):
        with torch.no_grad():
            gpuact.relu(given)
            gpuact.prelu(given, torch.ones(8))
            gpuact.fused(given, "tanh", gate=given)
    with pytest.raises(AssertionError, match="an autograd function runs"):
        gpuact.relu(x.clone().requires_grad_())


# -- CuPy -----------------------------------------------------------------------------------------

ELEMENTWISE_KERNEL = 11.0  # µs: what CuPy's own Python takes for an ElementwiseKernel call


@pytest.fixture
def on_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's arrays stand for CuPy's; a launch does nothing."""
    pytest.importorskip("cupy")
    backend = harness.make("cupy-ptx", monkeypatch, run=False).backend
    for name in ("launch_elementwise", "launch_raw"):
        monkeypatch.setattr(backend, name, lambda *args: None)
    monkeypatch.setattr(backend, "address", lambda array: 0)
    monkeypatch.setattr(backend, "_plans", {})
    monkeypatch.setitem(dispatch._usable, "numpy", backend)
    monkeypatch.setattr(routes, "_routes", {})  # those found lead to NumPy


def test_a_call_on_cupy(on_cupy, record_property):
    """No more of ours than an ElementwiseKernel's call."""
    x = np.zeros((4, 8, 16), np.float32)
    gpuact.relu(x)
    what, call = "relu(x) on CuPy", lambda: gpuact.relu(x)
    held(record_property, what, ELEMENTWISE_KERNEL, call, lambda: np.empty_like(x), NEW_ARRAY)


@pytest.mark.parametrize("what", ROWS)
def test_a_call_of_rows_on_cupy(on_cupy, what, record_property):
    """No more than an ElementwiseKernel's call; a loss's mean has four launches."""
    x, y = np.zeros((4, 8, 16), np.float32), np.empty((4, 8, 16), np.float32)
    mask, target = np.ones((4, 1, 16), bool), np.zeros((4, 8), np.int64)
    call = calls_of_rows(x, y, mask, target)[what]
    call()
    limit = ELEMENTWISE_KERNEL * (2.5 if what == "cross_entropy(x, target)" else 1)
    held(record_property, f"{what} on CuPy", limit, call, lambda: np.empty_like(x), NEW_ARRAY)
