"""What a call costs before its kernel starts: our Python, timed with the launch taken out.

In microseconds on a core that runs YARDSTICK's loop in the time stated there; a slower core gets as
much more. The framework's own work (a new tensor, an empty autograd function, a gradient's
bookkeeping) is timed beside ours and subtracted.
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

CALLS = 100  # in a sample: short, so that some samples meet no neighbour
SAMPLES = 200


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


YARDSTICK = 0.7  # µs
NOISE = 1.1  # of the best sample, between two runs


def held(record_property: Any, what: str, measure: Callable[[], float], limit: float) -> None:
    """measure: of our cost. What disturbs it only adds to it: of some attempts the best counts."""
    columns = ("our Python before the launch", "µs", "at most", "slowness of this core")
    for _ in range(20):
        slowness = max(1.0, microseconds(yardstick) / YARDSTICK)
        cost = measure()
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

    def measure() -> float:
        new = 0.0 if "out=y" in what else microseconds(lambda: torch.empty_like(x))
        return microseconds(calls[what]) - new

    held(record_property, what, measure, BEFORE_A_LAUNCH)


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

    def measure() -> float:
        return microseconds(call) - microseconds(lambda: torch.empty_like(x))

    held(record_property, what, measure, ROWS[what])


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

    def measure() -> float:
        beside = microseconds(lambda: empty.apply(leaf).backward(dy))
        return microseconds(lambda: gpuact.relu(leaf).backward(dy)) - beside

    what = "relu forward and backward, beyond an empty autograd function"
    held(record_property, what, measure, 2 * BEFORE_A_LAUNCH)


GRADIENTS_OF_ROWS = {"softmax": 12.0, "cross_entropy": 36.0}  # µs, of which seven launches


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

    def measure() -> float:
        beside = microseconds(lambda: empty.apply(leaf).backward(dy))
        return microseconds(calls[name]) - beside

    what = f"{name} forward and backward, beyond an empty autograd function"
    held(record_property, what, measure, GRADIENTS_OF_ROWS[name])


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

    def measure() -> float:
        return microseconds(lambda: gpuact.relu(x)) - microseconds(lambda: np.empty_like(x))

    held(record_property, "relu(x) on CuPy", measure, ELEMENTWISE_KERNEL)


@pytest.mark.parametrize("what", ROWS)
def test_a_call_of_rows_on_cupy(on_cupy, what, record_property):
    """No more than an ElementwiseKernel's call; a loss's mean has four launches."""
    x, y = np.zeros((4, 8, 16), np.float32), np.empty((4, 8, 16), np.float32)
    mask, target = np.ones((4, 1, 16), bool), np.zeros((4, 8), np.int64)
    call = calls_of_rows(x, y, mask, target)[what]
    call()

    def measure() -> float:
        return microseconds(call) - microseconds(lambda: np.empty_like(x))

    limit = ELEMENTWISE_KERNEL * (2.5 if what == "cross_entropy(x, target)" else 1)
    held(record_property, f"{what} on CuPy", measure, limit)
