"""A call goes the way of an earlier one only where nothing differs that matters."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import gpuact
from gpuact import Dropout, routes
from gpuact.libraries import FACTS
from tests.libraries import libraries
from tests.truth import Array

SHAPE = (6, 8)


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


# Arrays of one shape and dtype
LIES: dict[str, Callable[[], Array]] = {
    "dense": lambda: normal(6, 8),
    "transposed": lambda: normal(8, 6).T,
    "one element behind": lambda: normal(49)[1:].reshape(6, 8),
    "two elements behind": lambda: normal(50)[2:].reshape(6, 8),
    "every other row": lambda: normal(12, 8)[::2],
    "every other column": lambda: normal(6, 16)[:, ::2],
    "of a wider one": lambda: normal(6, 9)[:, :8],
    "one row": lambda: np.broadcast_to(normal(1, 8), SHAPE),
    "one column": lambda: np.broadcast_to(normal(6, 1), SHAPE),
}
WEIGHT, BIAS = normal(8), normal(6, 1)
DROPOUT = Dropout(0.4, seed=5)
CALLS: dict[str, Callable[..., Any]] = {
    "relu(x)": lambda x, y, w, b: gpuact.relu(x),
    "leaky_relu(x, 0.25)": lambda x, y, w, b: gpuact.leaky_relu(x, 0.25),
    "leaky_relu(x, 1)": lambda x, y, w, b: gpuact.leaky_relu(x, 1),
    "prelu(x, w)": lambda x, y, w, b: gpuact.prelu(x, w),
    "relu_backward(y, x)": lambda x, y, w, b: gpuact.relu_backward(y, x),
    "fused": lambda x, y, w, b: gpuact.fused(
        x, "leaky_relu", negative_slope=0.5, scale=2, bias=b, residual=y
    ),
    "fused prelu": lambda x, y, w, b: gpuact.fused(x, "prelu", weight=w, scale=b, gate=y),
    "fused with dropout": lambda x, y, w, b: gpuact.fused(x, "relu", dropout=DROPOUT),
    "fused_backward": lambda x, y, w, b: gpuact.fused_backward(y, x, "relu", scale=0.5)["x"],
}


@pytest.mark.parametrize("call", CALLS)
def test_arrays_that_lie_otherwise(lib, call):
    """Each after each other, twice: the second time on the way that the first one learned."""
    weight, bias = lib.place(WEIGHT), lib.place(BIAS)
    other = lib.place(normal(7, 8)[1:])
    for _ in range(2):
        for name, make in LIES.items():
            x = make()
            placed = lib.place(x)
            args = (placed.native, other.native, weight.native, bias.native)
            got = lib.executor.to_numpy(CALLS[call](*args))
            same = lib.place(np.array(x, order="C"))
            want = CALLS[call](same.native, *args[1:])
            assert got.tobytes() == lib.executor.to_numpy(want).tobytes(), name
            assert placed.unchanged()


def test_numbers_that_differ(lib):
    """An int, a float and an array are kinds of their own; two floats are one."""
    x = normal(6, 8)
    placed = lib.place(x)
    for slope in (0.5, 2, 0.25, np.float32(0.125), -1.0, True, 0.5):
        got = lib.executor.to_numpy(gpuact.leaky_relu(placed.native, slope))
        want = np.where(x > 0, x, x * np.float32(slope))
        assert (got == want).all()
        out = lib.blank(x)
        assert gpuact.leaky_relu(placed.native, slope, out=out.native) is out.native
        assert (out.numpy() == want).all()
    for refused in ("0.5", None, [0.5]):
        with pytest.raises(TypeError, match="negative_slope"):
            gpuact.leaky_relu(placed.native, refused)
    for axis in (-1, 0, -1):
        weight = normal(8) if axis else normal(6)
        got = gpuact.prelu(placed.native, lib.place(weight).native, channel_axis=axis)
        slopes = weight if axis else weight[:, None]
        assert (lib.executor.to_numpy(got) == np.where(x > 0, x, x * slopes)).all()
    with pytest.raises(TypeError, match="channel_axis"):
        gpuact.prelu(placed.native, lib.place(normal(8)).native, channel_axis=-1.0)


def test_an_axis_is_what_it_is_now(lib):
    """It may come in an array, whose value may be another at the next call."""
    x, weight, axis = normal(8, 8), normal(8), np.array(0)
    placed, slopes = lib.place(x).native, lib.place(weight).native
    for k in (0, 1, 0):
        axis[...] = k
        want = np.where(x > 0, x, x * (weight if k else weight[:, None]))
        got = gpuact.prelu(placed, slopes, channel_axis=axis)
        assert (lib.executor.to_numpy(got) == want).all()
        got = gpuact.fused(placed, "prelu", weight=slopes, channel_axis=axis)
        assert (lib.executor.to_numpy(got) == want).all()


# (where `out` begins in the memory whose first 48 elements are x, how far apart its elements are)
OUTS = {"behind": (48, 1), "x itself": (0, 1), "overlapping": (16, 1), "strided": (48, 2)}


def test_results_in_memory_that_overlaps(lib):
    """`out` apart from x, x itself, and memory in between that a kernel must not write at once."""
    values = normal(160)
    for name in [*OUTS, *reversed(OUTS)] * 2:
        start, step = OUTS[name]
        memory = lib.place(values).native
        native = lib.executor.view(memory, SHAPE, (8, 1), 0)
        want = np.maximum(values[:48], 0)
        out = lib.executor.view(memory, SHAPE, (8 * step, step), start)
        assert gpuact.relu(native, out=out) is out
        assert lib.executor.to_numpy(out).tobytes() == want.reshape(SHAPE).tobytes(), name
        rest = lib.executor.to_numpy(memory)
        written = np.zeros(160, bool)
        written[start : start + 48 * step : step] = True
        assert (rest[~written] == values[~written]).all(), name


def test_kinds_do_not_pile_up(lib, monkeypatch):
    monkeypatch.setattr(routes, "_routes", {})
    monkeypatch.setattr(routes, "MOST", 5)
    for n in range(1, 20):
        x = normal(n)
        got = gpuact.relu(lib.place(x).native)
        assert (lib.executor.to_numpy(got) == np.maximum(x, 0)).all()
        assert len(routes._routes) <= 5


# -- tensors --------------------------------------------------------------------------------------


torch_libraries = libraries("torch-cpu", "torch-interpreter", "torch-cuda", "torch-cuda-on-cupy")
tensors = pytest.mark.parametrize("lib", torch_libraries, indirect=True)


@pytest.fixture
def dense(lib: Any) -> Any:
    """A tensor; calls with such go a known way."""
    x = lib.place(normal(6, 8)).native
    for _ in range(2):
        gpuact.relu(x)
        gpuact.relu_backward(x, x)
    return x


@tensors
def test_tensors_that_are_no_plain_memory(lib, dense):
    import torch

    conjugate = torch.complex(dense, -dense).conj().imag  # its memory holds the negative
    assert conjugate.is_neg()
    want = lib.executor.to_numpy(gpuact.relu(dense))
    for _ in range(2):
        assert (lib.executor.to_numpy(gpuact.relu(conjugate)) == want).all()
        assert (lib.executor.to_numpy(gpuact.relu(dense)) == want).all()
    known = FACTS[torch.Tensor](dense)
    others = [dense.to_sparse(), dense.to("meta"), dense.double(), dense.clone().requires_grad_()]
    if dense.device.type == "cpu":
        others.append(dense.to_mkldnn())
    with warnings.catch_warnings(action="ignore"):  # compressed rows are in beta state
        others.append(dense.to_sparse_csr())
    for other in others:
        with suppress(RuntimeError):  # what has no address has no facts
            assert FACTS[torch.Tensor](other) != known
        first, again = (outcome(gpuact.relu, other) for _ in range(2))
        assert first == again
        assert (lib.executor.to_numpy(gpuact.relu(dense)) == want).all()


def outcome(function: Callable[[Any], Any], x: Any) -> object:
    """What a call returns, as far as it can be compared, or what it raises."""
    try:
        return function(x).detach().tolist()
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return type(error), str(error)


@tensors
def test_no_memory_of_the_callers_is_kept(lib, dense):
    import torch

    gone = []
    for _ in range(3):
        x, y, out, w = (torch.randn_like(dense) for _ in range(4))
        gpuact.relu(x, out=out)
        gpuact.prelu(x, w[0])
        gpuact.fused(x, "tanh", bias=w, residual=y, dropout=DROPOUT)
        leaf = x.clone().requires_grad_()
        gpuact.sigmoid(leaf).backward(y)
        gone += [weakref.ref(t) for t in (x, y, out, w, leaf)]
        del x, y, out, w, leaf
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)


@tensors
def test_gradients_of_the_same_tensor(lib, dense):
    """Asked for, switched off, asked for again; of a leaf, a Parameter and what follows of them."""
    import torch

    for _ in range(2):
        assert not gpuact.relu(dense).requires_grad
        for leaf in (dense.clone().requires_grad_(), torch.nn.Parameter(dense.clone())):
            with torch.no_grad():
                assert not gpuact.relu(leaf).requires_grad
                assert gpuact.relu(leaf, out=torch.empty_like(dense)).grad_fn is None
            y = gpuact.relu(leaf)
            assert y.requires_grad
            with pytest.raises(ValueError, match="requires grad"):
                gpuact.relu(leaf, out=torch.empty_like(dense))
            with pytest.raises(NotImplementedError, match="relu_backward"):
                gpuact.relu_backward(leaf, leaf).sum().backward()
            y.sum().backward()  # a gradient whose elements are one
            assert (leaf.grad == (dense > 0)).all()
            leaf.grad = None
            gpuact.relu(leaf).backward(dense)
            assert (leaf.grad == dense.clamp(min=0)).all()
        with torch.inference_mode():
            assert (gpuact.relu(dense) == dense.clamp(min=0)).all()


@tensors
def test_versions_count_writes(lib, dense):
    """Autograd refuses to go back through what was overwritten, whichever way the write went."""
    import torch

    for _ in range(2):
        leaf = dense.clone().requires_grad_()
        y = gpuact.sigmoid(leaf)
        gpuact.relu(dense, out=y.detach())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    assert torch.is_grad_enabled()
