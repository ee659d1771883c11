"""A call goes the way of an earlier one only where nothing differs that matters."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from itertools import product
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


def test_places_within_a_sector_are_told_apart():
    """Triton's rows are cut from a sector of memory on: where it begins decides on their bits."""
    torch = pytest.importorskip("torch")
    memory = torch.empty(64)
    assert memory.data_ptr() % 32 == 0
    gpuact.relu(memory)  # before the first tensor nothing is known of them
    kind = FACTS[torch.Tensor]
    assert kind(memory[:8]) == kind(memory[8:16]) != kind(memory[4:12])


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


ROWS: dict[str, Callable[..., Any]] = {
    "softmax(x)": lambda x, y: gpuact.softmax(x),
    "softmax(x, 0)": lambda x, y: gpuact.softmax(x, 0),
    "softmax(x, None)": lambda x, y: gpuact.softmax(x, None),
    "log_softmax(x)": lambda x, y: gpuact.log_softmax(x),
    "softmax_backward(y, x)": lambda x, y: gpuact.softmax_backward(y, x),
    "log_softmax_backward(y, x, 0)": lambda x, y: gpuact.log_softmax_backward(y, x, 0),
}


@pytest.mark.parametrize("call", ROWS)
def test_rows_that_lie_otherwise(lib, call):
    """As above; a row's last bits may depend on where it lies."""
    other = lib.place(normal(7, 8)[1:]).native
    for name, make in [*LIES.items(), *LIES.items()]:
        placed = lib.place(make())
        got = lib.executor.to_numpy(ROWS[call](placed.native, other))
        with gpuact.using("numpy"):
            want = ROWS[call](np.array(make(), order="C"), lib.executor.to_numpy(other))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6, err_msg=name)
        assert placed.unchanged()


def scored(x: Array, scale: float, mask: Any, causal: bool, zero: bool) -> Array:
    z = scale * x.astype(np.float64)
    if mask is not None:
        z = np.where(mask, z, -np.inf) if mask.dtype == bool else z + mask
    if causal:
        z = np.where(np.tri(*x.shape, dtype=bool), z, -np.inf)
    with np.errstate(all="ignore"):
        e = np.exp(z - z.max(-1, keepdims=True))
        y = e / e.sum(-1, keepdims=True)
    return np.where((z == -np.inf).all(-1, keepdims=True), 0 if zero else np.nan, y)


def test_rows_of_options_that_differ(lib):
    """One after another and again: what was learned of one kind is not taken for another."""
    x = normal(6, 8)
    placed, part = lib.place(x).native, x > -0.5
    part[2] = False
    masks = [
        None,
        part,
        part[:1],
        part[:, :1],
        np.broadcast_to(part[:1], (6, 8)),
        part[::-1].copy()[::-1],
        np.where(part, 0.5, -np.inf).astype(np.float32),
        normal(8),
        normal(8).astype(np.float64),
    ]
    masks = [m for m in masks if m is None or lib.executor.negative_strides or min(m.strides) >= 0]
    for _ in range(2):
        for mask, scale, causal, how in product(
            masks, (1.0, 0.5, 2, np.float32(0.25)), (False, True), ("nan", "zero")
        ):
            options = {"scale": scale, "causal": causal, "all_masked": how}
            native = None if mask is None else lib.place(mask).native
            got = lib.executor.to_numpy(gpuact.softmax(placed, mask=native, **options))
            want = scored(x, scale, mask, causal, how == "zero")
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
        for scale in (1.0, 2.0, 3, 1):
            got = gpuact.softmax_backward(placed, placed, scale=scale)
            want = scale * x * (x - (x * x).sum(-1, keepdims=True))
            np.testing.assert_allclose(lib.executor.to_numpy(got), want, rtol=1e-4, atol=1e-4)
        plain = lib.executor.to_numpy(gpuact.softmax(placed))
        double = gpuact.softmax(placed, dtype="float64")
        assert str(double.dtype).endswith("float64")
        out = lib.blank(x)
        assert gpuact.softmax(placed, out=out.native) is out.native
        assert (out.numpy() == plain).all()
        for axis in (1.0, 2, "1"):
            with pytest.raises((TypeError, np.exceptions.AxisError), match=r"^axis: "):
                gpuact.softmax(placed, axis)
        for refused in ({"scale": True + 0j}, {"causal": 1}, {"all_masked": 0}, {"scale": None}):
            with pytest.raises((TypeError, ValueError), match=r"^(scale|causal|all_masked): "):
                gpuact.softmax(placed, **refused)
        with pytest.raises(ValueError, match=r"^causal: "):
            gpuact.softmax(placed, 0, causal=True)


TARGET, WEIGHTS = np.array([1, 0, -100, 7, 3, 3]), np.abs(normal(8)) + 0.1
LOSS_OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"ignore_index": 3},
    {"label_smoothing": 0.25},
    {"label_smoothing": 1},
    {"label_smoothing": 0.5, "weight": WEIGHTS},
    {"weight": WEIGHTS[::-1]},
    {"weight": WEIGHTS.astype(np.float64)},
    {"z_loss": 0.5, "softcap": 2.0},
    {"z_loss": 0.25, "softcap": 2},
    {"axis": 1},
    {"axis": 0},
]
TARGETS: dict[str, Array] = {
    "int64": TARGET,
    "int32": TARGET.astype(np.int32),
    "int16": TARGET.astype(np.int16),
    "every other": np.repeat(TARGET, 2)[::2],
    "probabilities": np.abs(normal(6, 8)),
    "float64": np.abs(normal(6, 8)).astype(np.float64),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_losses_of_options_that_differ(lib, kind):
    """As above: of the loss, its gradient and both at once; the options are the caller's."""
    target, numpy = TARGETS[kind], lib.executor.to_numpy
    lies = {name: make() for name, make in LIES.items() if name in ("dense", "transposed")}
    lies["one element behind"] = LIES["one element behind"]()
    for options, x in [*product(LOSS_OPTIONS, lies.values())] * 2:
        t = target
        if options.get("axis") == 0:
            t = target if target.ndim == 2 else np.concatenate([target, target[:2]]) % 6
        if "ignore_index" in options:  # and -100 is no class
            t = np.where(t == -100, 3, t)
        t = t.astype(target.dtype)
        if t.ndim == 2 and "ignore_index" in options:
            continue
        logits, labels = lib.place(x).native, lib.place(t).native
        weight = options.get("weight")
        if weight is not None and options.get("axis") == 0:
            continue
        native = dict(options)
        if weight is not None:
            if not lib.executor.negative_strides:
                weight = np.abs(weight)
            native["weight"] = lib.place(np.array(weight)).native
        got = gpuact.cross_entropy(logits, labels, return_lse=True, **native)
        dloss = np.array(2.0, np.float32) if got[0].ndim == 0 else normal(got[0].shape[0])
        dlogits = gpuact.cross_entropy_backward(
            lib.place(dloss).native, logits, labels, got[1], **native
        )
        both = gpuact.cross_entropy_with_grad(logits, labels, **native)
        with gpuact.using("numpy"):
            args = (np.array(x, order="C"), t)
            want = gpuact.cross_entropy(*args, return_lse=True, **options)
            dwant = gpuact.cross_entropy_backward(dloss, *args, want[1], **options)
            both_want = gpuact.cross_entropy_with_grad(*args, **options)
        pairs = zip((*got, dlogits, *both), (*want, dwant, *both_want), strict=True)
        for a, b in pairs:
            assert tuple(a.shape) == b.shape
            np.testing.assert_allclose(numpy(a), b, rtol=1e-4, atol=1e-5, err_msg=str(options))
    for refused in (
        {"ignore_index": 1.0},
        {"label_smoothing": 1 + 0j},
        {"softcap": 0},
        {"reduction": None},
        {"axis": 1.0},
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{next(iter(refused))}: "):
            gpuact.cross_entropy(logits, labels, **refused)


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
        gpuact.softmax(x)
        gpuact.softmax(leaf, 0).backward(y)
        mask = x > 0
        gpuact.softmax(x, scale=0.5, mask=mask, causal=True)
        gpuact.softmax(leaf, mask=w).backward(y)
        target = torch.arange(6, device=dense.device)
        gpuact.cross_entropy(x, target, weight=w[0])
        gpuact.cross_entropy_with_grad(x, target)
        gpuact.cross_entropy(leaf, target).backward()
        gone += [weakref.ref(mask), weakref.ref(target)]
        gone += [weakref.ref(t) for t in (x, y, out, w, leaf)]
        del x, y, out, w, leaf, mask, target
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
            gpuact.relu_backward(leaf, dense).sum().backward()
            assert (leaf.grad == (dense > 0)).all()
            leaf.grad = None
            y.sum().backward()  # a gradient whose elements are one
            assert (leaf.grad == (dense > 0)).all()
            leaf.grad = None
            gpuact.relu(leaf).backward(dense)
            assert (leaf.grad == dense.clamp(min=0)).all()
        with torch.inference_mode():
            assert (gpuact.relu(dense) == dense.clamp(min=0)).all()


@tensors
def test_gradients_of_rows(lib, dense):
    """Of a leaf and of what does not require grad, of dense and expanded incoming gradients."""
    import torch

    want = torch.softmax(dense, -1)
    for _ in range(2):
        leaf = dense.clone().requires_grad_()
        assert not gpuact.softmax(dense).requires_grad
        with torch.no_grad():
            assert not gpuact.softmax(leaf).requires_grad
        for dy in (torch.ones_like(dense), dense, dense[:1].expand(6, 8), dense.t().clone().t()):
            leaf.grad = None
            y = gpuact.softmax(leaf)
            assert torch.allclose(y, want)
            y.backward(dy)
            near = want * (dy - (want * dy).sum(-1, keepdim=True))
            assert torch.allclose(leaf.grad, near, atol=1e-6)
            found = []
            for softmax in (gpuact.softmax, lambda x: torch.softmax(x, -1)):
                (again,) = torch.autograd.grad(softmax(leaf), leaf, dy, create_graph=True)
                found += torch.autograd.grad(again.square().sum(), leaf)
            assert torch.allclose(*found, atol=1e-6)
        leaf.grad = None
        gpuact.softmax_backward(leaf, want).square().sum().backward()
        assert leaf.grad.abs().max() > 1e-3


@tensors
def test_a_mask_of_another_dtype_is_cast_every_time(lib, dense, monkeypatch):
    import torch

    monkeypatch.setattr(routes, "_routes", {})
    for column in (2, 5, 3):
        values = torch.zeros(8, device=dense.device)
        values[column] = -float("inf")
        for kind in (torch.float16, torch.float32, torch.float64):
            y = gpuact.softmax(dense, mask=values.to(kind))
            assert torch.allclose(y, torch.softmax(dense + values, -1))
        assert torch.equal(gpuact.softmax(dense, mask=values == 0), y)


@tensors
def test_a_mask_that_requires_a_gradient(lib, dense):
    """Refused where autograd records, whatever was learned where it did not."""
    import torch

    mask = torch.zeros(8, device=dense.device).requires_grad_()
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(gpuact.softmax(dense, mask=mask), gpuact.softmax(dense))
        for x in (dense, dense.clone().requires_grad_()):
            with pytest.raises(ValueError, match=r"^mask: came requiring grad"):
                gpuact.softmax(x, mask=mask)


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


# A call that goes a known way, and the same in torch's own words
SEEN: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "relu": (gpuact.relu, lambda x: x.relu()),
    "leaky_relu": (
        lambda x: gpuact.leaky_relu(x, 0.25),
        lambda x: x.where(x > 0, 0.25 * x),
    ),
    "fused": (lambda x: gpuact.fused(x, "tanh", scale=2.0), lambda x: (2 * x).tanh()),
    "softmax": (gpuact.softmax, lambda x: x.softmax(-1)),
    "cross_entropy": (
        lambda x: gpuact.cross_entropy(x, x.new_zeros(6).long(), reduction="none"),
        lambda x: -x.log_softmax(-1)[:, 0],
    ),
}


@pytest.fixture(params=SEEN)
def seen(request: pytest.FixtureRequest, lib: Any, dense: Any) -> tuple[Any, Any, Any]:
    """Ours and torch's, and a tensor that ours was called with, forward and backward."""
    ours, theirs = SEEN[request.param]
    for x in (dense, dense.clone().requires_grad_()):
        for _ in range(2):
            y = ours(x)
            if y.requires_grad:
                y.backward(y.detach().clone())
    return ours, theirs, dense


@tensors
def test_forward_mode_leaves_a_known_way(lib, seen):
    """Forward, and in the backward of a graph that was recorded without it."""
    import torch
    from torch.autograd import forward_ad

    ours, theirs, x = seen
    t = x.cos()
    found = []
    for function in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, t))).tangent
            dy = forward_ad.make_dual(y.detach().clone(), y.detach().cos())
            (dx,) = torch.autograd.grad(y, leaf, dy)
            found.append((tangent, forward_ad.unpack_dual(dx).tangent))
    for mine, other in zip(*found, strict=True):
        assert mine is not None and torch.allclose(mine, other, rtol=1e-4, atol=1e-5)


@tensors
def test_a_dispatch_mode_leaves_a_known_way(lib, seen):
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    names: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            names.append(func.namespace)
            return func(*args, **(kwargs or {}))

    ours, theirs, x = seen
    leaf = x.clone().requires_grad_()
    with Mode():
        y = ours(leaf)
        (dx,) = torch.autograd.grad(y, leaf, y.detach())
    assert names.count("gpuact") == 2
    want = theirs(leaf)
    assert torch.allclose(y, want, rtol=1e-4, atol=1e-5)
    assert torch.allclose(dx, *torch.autograd.grad(want, leaf, y.detach()), rtol=1e-4, atol=1e-5)
    with Mode():
        assert gpuact.relu(x, out=torch.empty_like(x)).shape == x.shape
    assert names.count("gpuact") == 3


@tensors
def test_a_transformation_leaves_a_known_way(lib, seen):
    """What it closes over requires grad, and takes no function that does not know it."""
    import torch

    ours, theirs, x = seen
    leaf = x.clone().requires_grad_()

    def factor(function: Callable[[Any], Any]) -> Any:
        return torch.func.grad(lambda z: (z * function(leaf)).sum())(x.new_ones(()))

    assert torch.allclose(factor(ours), factor(theirs), rtol=1e-4, atol=1e-5)
