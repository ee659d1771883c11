"""Beyond 2^31 elements, and beyond 2^32: offsets that 32 bits do not hold.

The memory is promised, not there: of a mapping of many GiB only the pages that are touched take
room. Views with huge strides reach all of it; of dense arrays the few blocks are run that lie at
such offsets.
"""

from __future__ import annotations

import mmap
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import gpuact
from gpuact import reference
from gpuact.fusion import Dropout, Fusion
from gpuact.kernels.tiles import tiles
from tests import bounds, harness, truth
from tests.bounds import DTYPES
from tests.harness import Executor, executors
from tests.libraries import Library, libraries
from tests.truth import Array

if sys.platform != "linux":
    pytest.skip("memory that is only promised is asked of Linux", allow_module_level=True)

NORESERVE = 0x4000  # MAP_NORESERVE, which Python's module does not have everywhere
T30, T31, T32 = 2**30, 2**31, 2**32


def promised(count: int, dtype: Any) -> Array:
    """So many zeros, of which those that are touched take memory, a page of 4 KiB at a time."""
    size = count * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    try:
        memory = mmap.mmap(-1, size + 4096, flags=flags)
    except OSError as error:
        pytest.skip(f"the system does not promise {size >> 30} GiB: {error}")
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint8, size).view(dtype)


# Shapes (outer, n, inner) and steps between elements
FAR: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    # the second row begins below 2^31 and ends beyond it, the third does so about 2^32
    "rows across": ((3, 1000, 1), (T31 - 400, 1, 1)),
    "rows side by side": ((3, 150, 24), (T31 - 1800, 24, 1)),
    "columns apart": ((2, 5, 3), (3, T30 + 1, 1)),
    "columns of one row apart": ((2, 100, 1), (1, 2**27 + 1, 1)),
    "inner apart": ((2, 33, 3), (33, 1, T31 - 17)),
    "all apart": ((2, 3, 2), (T31 + 5, T30 + 3, T30 - 7)),
}


def far(name: str, dtype: Any, values: Array | None = None, backwards: bool = False) -> Array:
    """An array of this layout, with such values or NaN in it."""
    shape, steps = FAR[name]
    item = np.dtype(dtype).itemsize
    reach = sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
    memory = promised(reach + 1, dtype)
    view = np.lib.stride_tricks.as_strided(memory, shape, [s * item for s in steps])
    if backwards:
        view = view[::-1, ::-1, ::-1]
    view[...] = np.nan if values is None else values
    return view


def normal(name: str, dtype: str, seed: int = 0) -> Array:
    x = np.random.default_rng(seed).standard_normal(FAR[name][0]) * 2
    return x.astype(DTYPES[dtype])


# -- every function, on the host ------------------------------------------------------------------

DROPOUT = gpuact.Dropout(0.5, seed=3)

# x, dy, w and t: like x, like x with one entry a column, and classes along axis 1
CALLS: dict[str, Callable[..., Any]] = {
    "relu": lambda x, dy, w, t: gpuact.relu(x),
    "sigmoid_backward": lambda x, dy, w, t: gpuact.sigmoid_backward(dy, x),
    "tanh_derivative": lambda x, dy, w, t: gpuact.tanh_derivative(x),
    "linear": lambda x, dy, w, t: gpuact.linear(x, w, dy),
    "linear_backward": lambda x, dy, w, t: gpuact.linear_backward(dy, x, w, 0.0),
    "prelu_backward": lambda x, dy, w, t: gpuact.prelu_backward(dy, x, w),
    "fused": lambda x, dy, w, t: gpuact.fused(
        x, "sigmoid", bias=w, gate=dy, residual=dy, dropout=DROPOUT
    ),
    "fused_backward": lambda x, dy, w, t: gpuact.fused_backward(
        dy, x, "prelu", weight=w, gate=x, dropout=DROPOUT
    ),
    "softmax": lambda x, dy, w, t: gpuact.softmax(x, 1),
    "softmax over all": lambda x, dy, w, t: gpuact.softmax(x, None),
    "log_softmax": lambda x, dy, w, t: gpuact.log_softmax(x, 1),
    "softmax_backward": lambda x, dy, w, t: gpuact.softmax_backward(dy, x, 1),
    "log_softmax_backward": lambda x, dy, w, t: gpuact.log_softmax_backward(dy, x, 1),
    "cross_entropy": lambda x, dy, w, t: gpuact.cross_entropy(x, t, axis=1, return_lse=True),
    "with_grad": lambda x, dy, w, t: gpuact.cross_entropy_with_grad(
        x, t, axis=1, label_smoothing=0.1
    ),
}
INTO = {
    "relu": lambda x, out: gpuact.relu(x, out=out),
    "linear": lambda x, out: gpuact.linear(x, 0.5, 1.0, out=out),
    "softmax": lambda x, out: gpuact.softmax(x, 1, out=out),
    "log_softmax": lambda x, out: gpuact.log_softmax(x, 1, out=out),
    "with_grad": lambda x, out: gpuact.cross_entropy_with_grad(
        x, classes(x), axis=1, dlogits_out=out
    )[1],
}


def classes(x: Any) -> Any:
    shape = (x.shape[0], *x.shape[2:])
    target = np.arange(np.prod(shape, dtype=int)).reshape(shape) % x.shape[1]
    return target if isinstance(x, np.ndarray) else _tensor(target)


def _tensor(x: Array) -> Any:
    """The same memory."""
    import torch

    if x.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def same(found: Any, want: Any, lib: Library) -> None:
    """To the bit."""
    if isinstance(want, dict):
        found, want = [*found.values()], [*want.values()]
    if isinstance(want, tuple | list):
        for a, b in zip(found, want, strict=True):
            same(a, b, lib)
        return
    found, want = (np.ascontiguousarray(lib.executor.to_numpy(a)) for a in (found, want))
    assert found.dtype == want.dtype and found.shape == want.shape
    assert np.array_equal(found.view(np.uint8), want.view(np.uint8))


@pytest.mark.parametrize("lib", libraries("numpy", "numpy-in-pieces", "torch-cpu"), indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", FAR)
def test_views_that_reach_far_on_the_host(lib, layout, dtype):
    """The same bits as of the same values close together."""
    own = _tensor if lib.name == "torch-cpu" else np.asarray
    values = [normal(layout, dtype, seed) for seed in (0, 1)]
    for backwards in (False, True)[: 1 + lib.executor.negative_strides]:
        x, dy = (far(layout, dtype_of(dtype), a, backwards) for a in values)
        w = x[:1, :, :1]  # a parameter with its stride
        values = [np.copy(a, order="K") for a in (x, dy)]  # in the same order, close together
        near = [own(a) for a in (*values, values[0][:1, :, :1])]
        reaching = [own(a) for a in (x, dy, w)]
        for call in CALLS.values():
            t = classes(near[0])
            same(call(*reaching, t), call(*near, t), lib)
        for call in INTO.values():
            want = call(near[0], own(np.empty_like(values[0])))
            out = own(far(layout, dtype_of(dtype), None, backwards))
            same(call(reaching[0], out), want, lib)
            same(reaching[0], near[0], lib)
            same(out, want, lib)
        for call in INTO.values():  # where x is
            want = call(near[0], own(np.empty_like(values[0])))
            mine = own(far(layout, dtype_of(dtype), values[0], backwards))
            same(call(mine, mine), want, lib)


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(DTYPES[name])


# -- kernels of rows, in the interpreters ---------------------------------------------------------


@pytest.fixture(params=executors("cupy-ptx", "triton-ptx", "triton-interpreter"))
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Executor:
    found = harness.make(request.param, monkeypatch)
    if found.name == "triton-interpreter":
        from triton.runtime.interpreter import GridExecutor

        # which would copy all of the memory onto itself, and so make it real
        monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *args: None)
    return found


def native(executor: Executor, x: Array | None) -> Any:
    return x if x is None or executor.name == "cupy-ptx" else _tensor(x)


def run_rows(executor: Executor, layout: str, dtype: str, backwards: bool = False) -> None:
    kind = dtype_of(dtype)
    x, dy = (normal(layout, dtype, seed) for seed in (0, 1))
    y = truth.softmax(x).astype(np.float64).astype(kind)
    given_to = {"softmax": [x], "softmax_backward": [dy, y], "log_softmax": [x]}
    for formula, operands in given_to.items():
        value = truth.ROWS[formula](*operands)
        allowed = bounds.rows(formula, dtype, operands, value)
        given = [far(layout, kind, a, backwards) for a in operands]
        out = far(layout, kind, None, backwards)
        arrays = tuple(native(executor, a) for a in given)
        executor.backend.rows(formula, arrays, native(executor, out), None, executor.empty)
        bounds.check(out, value, allowed, dtype, formula)
        executor.backend.rows(formula, arrays, arrays[0], None, executor.empty)  # over an input
        bounds.check(given[0], value, allowed, dtype, formula)


def run_losses(executor: Executor, layout: str, dtype: str, probabilities: bool) -> None:
    kind = dtype_of(dtype)
    x = normal(layout, dtype)
    outer, n, inner = x.shape
    t = classes(x)
    if probabilities:
        t = (0.5 * (np.arange(n)[:, None] == t[:, None]) + 0.5 / n).astype(kind)
    logits, dlogits = native(executor, far(layout, kind, x)), far(layout, kind)
    target = native(executor, far(layout, kind, t) if probabilities else t)
    rows = [executor.place(np.ones((outer, inner), np.float32)) for _ in range(3)]
    scale, losses, log_sums = rows
    how: dict[str, Any] = {"ignore_index": -100, "label_smoothing": 0.0, "z_loss": 0.0}
    how |= {"softcap": 0.0}

    def check(name: str, found: Array, lse: Array | None = None) -> None:
        """lse: what a gradient was made from."""
        of = truth.cross_entropy(x, t, None, **how, lse=lse)
        plain, family, stored = not probabilities, executor.family, str(found.dtype)
        error = bounds.cross_entropy(of, family, dtype, plain, from_lse=lse is not None)[name]
        bounds.check(found, of[name], error + bounds.stored(of[name], stored), stored, name)

    to, backend, empty = native(executor, dlogits), executor.backend, executor.empty
    given = (logits, target, None)
    backend.cross_entropy(*given, losses.native, log_sums.native, **how, empty=empty)
    check("loss", losses.numpy())
    check("lse", log_sums.numpy())
    backend.cross_entropy_backward(scale.native, *given, log_sums.native, to, **how, empty=empty)
    check("gradient", dlogits, log_sums.numpy())
    dlogits[...] = np.nan
    backend.cross_entropy_with_grad(scale.native, *given, losses.native, to, **how, empty=empty)
    check("gradient", dlogits)
    check("loss", losses.numpy())


QUICK = {
    ("rows across", "float32"),
    ("columns apart", "bfloat16"),
    ("columns of one row apart", "float32"),
}
some = pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        pytest.param(layout, dtype, marks=() if (layout, dtype) in QUICK else pytest.mark.slow)
        for layout in FAR
        for dtype in ("float32", "bfloat16")
    ],
)


@some
def test_rows_that_reach_far(executor, layout, dtype):
    run_rows(executor, layout, dtype)


@some
@pytest.mark.parametrize("probabilities", [False, True])
def test_losses_of_rows_that_reach_far(executor, layout, dtype, probabilities):
    run_losses(executor, layout, dtype, probabilities)


@pytest.mark.slow
@pytest.mark.parametrize("executor", executors("cupy-ptx"), indirect=True)
@pytest.mark.parametrize("layout", FAR)
def test_rows_that_reach_far_backwards(executor, layout):
    run_rows(executor, layout, "float32", backwards=True)


@pytest.mark.parametrize("executor", executors("cupy-ptx"), indirect=True)
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("layout", ["columns apart", "all apart"])
def test_strided_elements_that_reach_far(executor, layout, backwards):
    """CuPy's own loop, by CuPy's strides; Triton's kernels see copies of such arrays."""
    x, dy, w = (normal(layout, "float32", seed) for seed in (0, 1, 2))
    w = w[:1, :, :1]
    given = [far(layout, np.float32, a, backwards) for a in (dy, x)]
    slopes = far(layout, np.float32, w)[:1, :, :1]
    out = far(layout, np.float32, None, backwards)
    empty = executor.empty
    executor.backend.elementwise("leaky_relu_backward", tuple(given), (slopes,), out, empty)
    assert np.array_equal(out, np.where(x > 0, dy, dy * w))
    fusion = Fusion("relu", Dropout(0.5, seed=3))
    executor.backend.fused(fusion, given[1], (None, slopes, None), given[0], None, out, empty)
    drop = reference.dropped(0, x.size, fusion.dropout).reshape(x.shape)
    want = np.where(drop, 0, np.maximum(x + w, 0) * np.float32(2)) * dy
    np.testing.assert_allclose(out, want, 1e-6)


@pytest.mark.parametrize("executor", executors("triton-interpreter"), indirect=True)
def test_strided_elements_that_reach_far_in_triton(executor):
    """Which copies them first."""
    x, dy = (normal("all apart", "float32", seed) for seed in (0, 1))
    given = [_tensor(far("all apart", np.float32, a)) for a in (dy, x)]
    out = far("all apart", np.float32)
    to = _tensor(out)
    executor.backend.elementwise("leaky_relu_backward", tuple(given), (0.5,), to, executor.empty)
    assert np.array_equal(out, np.where(x > 0, dy, dy * np.float32(0.5)))


# -- dense arrays, of which some blocks run -------------------------------------------------------


class Blocks:
    """Runs of each launch the blocks that have these elements, and those beside them."""

    def __init__(self, executor: Executor, monkeypatch: pytest.MonkeyPatch, size: int):
        self.executor, self.monkeypatch, self.size = executor, monkeypatch, size
        self.at: tuple[int, ...] = ()
        self.ran: list[tuple[int, int]] = []  # elements
        self.launch = executor.backend.launch if executor.name != "cupy-ptx" else None
        if self.launch:
            monkeypatch.setattr(executor.backend, "launch", self.launch_triton)
        else:
            monkeypatch.setattr(executor.backend, "launch_elementwise", self.launch_elementwise)

    def some(self, grid: int) -> list[tuple[int, int]]:
        """The first of each run of blocks, and how many."""
        each = -(-self.size // grid)
        found = []
        for at in self.at:
            first = max(0, at // each - 1)
            count = min(3, grid - first)
            found.append((first, count))
            self.ran.append((first * each, min(self.size, (first + count) * each)))
        return found

    @staticmethod
    def change(ptx: str, first: int, grid: int) -> str:
        """Blocks behind the first, of a grid of so many."""
        ptx, count = re.subn(
            r"mov\.u32\s+(%r\d+), %ctaid\.x;",
            rf"mov.u32 \1, %ctaid.x; add.s32 \1, \1, {first};",
            ptx,
        )
        assert count
        return re.sub(r"mov\.u32\s+(%r\d+), %nctaid\.x;", rf"mov.u32 \1, {grid};", ptx)

    def launch_triton(self, plan: Any, args: tuple[Any, ...]) -> None:
        from triton.runtime import interpreter

        grid, builder = plan.grid[0], interpreter.interpreter_builder
        for first, count in self.some(grid):
            with self.monkeypatch.context() as patch:
                if self.executor.name == "triton-interpreter":
                    patch.setattr(
                        builder,
                        "set_grid_idx",
                        lambda x, y, z, first=first: setattr(
                            builder, "grid_idx", (x + first, y, z)
                        ),
                    )
                else:
                    change = partial(self.change, first=first, grid=grid)
                    self.executor.options["change"] = change
                self.launch(replace(plan, grid=(count, 1, 1), compiled=None), args)

    def launch_elementwise(self, kernel: Any, arrays: Any, numbers: Any, size: int | None) -> None:
        from tests.ptxrun import run_ptx
        from tests.ptxrun.cupyrun import Address, elementwise_source, parsed

        assert size is not None  # in packs
        source = elementwise_source(kernel, (*map(Address, arrays), *numbers), [], size)
        grid, ptx = -(-size // 128), source.ptx(harness.TARGET)
        for first, count in self.some(grid):
            module = parsed(self.change(ptx, first, grid))
            run_ptx(module, kernel.name, count, 128, source.args)


def reached(blocks: Blocks, *arrays: Array) -> np.ndarray:
    """Where blocks have run; elsewhere nothing is looked at, for that would make memory real."""
    return np.concatenate([np.arange(lo, hi) for lo, hi in sorted(set(blocks.ran))])


BEYOND = [T31 + 10, pytest.param(T32 + 8 * 1031, marks=pytest.mark.slow)]


@pytest.mark.parametrize("size", BEYOND)
@pytest.mark.parametrize("parameter", ["number", "channel", "pack"])
def test_dense_arrays_beyond_32_bits(executor, parameter, size, monkeypatch):
    """The first and last elements and those around 2^31 and 2^32, forward and backward, with a
    slope for each channel; what lies around the blocks stays as it was."""
    channels = {"number": 1, "channel": 2, "pack": size // 2}[parameter]
    shape = (1, channels, size // channels)
    kind = dtype_of("bfloat16")
    x, dy, out = (promised(size, kind) for _ in range(3))
    blocks = Blocks(executor, monkeypatch, size)
    blocks.at = (0, T31 - 1, size - 1) if size < T32 else (0, T31 - 1, T32 - 1, size - 1)
    edges = np.unique(np.clip([a + k for a in blocks.at for k in range(-9000, 9000)], 0, size - 1))
    rng = np.random.default_rng(0)
    x[edges], dy[edges] = rng.standard_normal((2, len(edges))).astype(kind)
    out[edges] = 77
    if parameter == "number":
        slope: Any = 0.5
        slopes = np.full(len(edges), 0.5, np.float32)
    else:
        w = promised(channels, kind)
        which = edges // shape[2]
        w[which] = (which % 7 - 3.0).astype(kind)
        slope, slopes = native(executor, w.reshape(1, channels, 1)), w[which].astype(np.float32)
    given = [native(executor, a.reshape(shape)) for a in (dy, x)]
    to = native(executor, out.reshape(shape))
    values = [a[edges].astype(np.float32) for a in (x, dy)]
    for formula, operands, y in (
        ("leaky_relu", given[1:], values[0]),
        ("leaky_relu_backward", given, values[1]),
    ):
        out[edges], blocks.ran = 77, []
        executor.backend.elementwise(formula, tuple(operands), (slope,), to, executor.empty)
        inside = np.isin(edges, reached(blocks))
        want = np.where(values[0] > 0, y, y * slopes).astype(kind)
        want = np.where(inside, want, np.asarray(77, kind))
        assert inside[[0, -1]].all() and inside[np.isin(edges, (T31 - 1, T31))].all()
        assert np.array_equal(out[edges].astype(np.float32), want.astype(np.float32))


@pytest.mark.parametrize("size", BEYOND)
def test_dense_arrays_beyond_32_bits_with_dropout(executor, size, monkeypatch):
    """An element's place in the whole decides on it."""
    kind, dropout = dtype_of("float16"), Dropout(0.5, seed=5, offset=9)
    x, out = (promised(size, kind) for _ in range(2))
    blocks = Blocks(executor, monkeypatch, size)
    blocks.at = (0, T31 - 1, size - 1)  # CuPy's first threads also do what is behind all packs
    to, given = native(executor, out), native(executor, x)
    params = (None, 3.0, None)
    executor.backend.fused(Fusion("relu", dropout), given, params, None, None, to, executor.empty)
    for lo, hi in blocks.ran:
        dropped = reference.dropped(lo, hi - lo, dropout)
        assert 0.4 < dropped.mean() < 0.6
        assert np.array_equal(out[lo:hi], np.where(dropped, 0, 6.0).astype(kind))


# Shapes (outer, units, inner) of float16: a bit a unit, bits of a unit, and runs of many rows
LAYERS = {
    "bits of eight units a byte": (1, T31 + 64, 1),
    "a bit of every unit": (1, T31 + 65, 1),
    "bits of one unit": (1, 2**28, 16),
    "bits of one unit in every period": (8, 2**29 + 1, 5),
    "runs": (300, 2**23, 512),
}


@pytest.mark.parametrize("executor", executors("cupy-ptx", "triton-ptx"), indirect=True)
@pytest.mark.parametrize("shape", LAYERS.values(), ids=LAYERS)
def test_the_last_unit_of_layers_beyond_32_bits(executor, shape):
    """Of what adds statistics up, the last block: its unit's bits lie far, and it writes far."""
    outer, units, inner = shape
    one = np.zeros(1, np.float16)  # whose x is nothing but a shape
    cut = tiles(*shape, 8, 8)
    flags, alive = promised(cut.flags, np.uint8), promised(units, np.uint8)
    last = outer * units * inner - 1
    if cut.runs:
        flags[last // cut.columns] = 1 if last // inner * inner <= last // 256 * 256 else 2
    else:
        assert cut.rows == 1
        flags[last // 8] = 1 << last % 8
    bounds = (0.0, None)
    if executor.name == "triton-ptx":
        plan = executor.backend._observing(
            None, _tensor(one).expand(shape), None, None, bounds
        ).fold
        grid = plan.grid[0]
        args = (np.zeros(8, np.float32), flags, np.zeros(5), alive)
        args = (*map(_tensor, args), *plan.numbers)
        executor.options["change"] = partial(Blocks.change, first=grid - 1, grid=grid)
        executor.backend.launch(replace(plan, grid=(1, 1, 1), compiled=None), args)
    else:
        kernels = import_module("gpuact.kernels.cupy.stats")
        memory = iter([np.zeros(8, np.float32), flags])
        x = np.broadcast_to(one, shape)
        _, fold = kernels.launches(
            None, x, None, None, bounds, np.zeros(5), alive, cut, lambda *of: next(memory)
        )
        (grid,) = fold.grid
        executor.options["change"] = partial(Blocks.change, first=grid - 1, grid=grid)
        executor.backend.launch_raw(fold.module, fold.kernel, (1,), fold.block, fold.arguments)
    assert alive[-9:].tolist() == [0] * 8 + [1]


# -- for real -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_more_than_two_billion_elements_on_the_host(monkeypatch):
    """All of them: relu of int8 in place, a sum of float16, and a row of it."""
    size = T31 + 13
    places = np.array([0, 5, T31 - 2, T31 - 1, T31, T31 + 1, size - 1])
    x = promised(size, np.int8)
    x[places] = (-3, 4, -5, 6, -7, 8, 9)
    assert gpuact.relu(x, out=x) is x
    assert x[places].tolist() == [0, 4, 0, 6, 0, 8, 9]
    assert np.count_nonzero(x) == 4
    del x
    row = promised(size, np.float16)
    row[places] = (-3, 4, -5, 6, -7, 8, 9)
    backend, total = harness.make("numpy", monkeypatch).backend, np.empty(1, np.float32)
    backend.reduce("linear_dbias", (row,), total, None)
    assert total[0] == 12
    lse = np.log(size - 7 + sum(np.exp(row[places].astype(float))))
    want = (row[places] - lse).astype(np.float16)
    assert gpuact.log_softmax(row, out=row) is row
    assert np.array_equal(row[places], want)
    assert row[7] == row[T31 + 7] == np.float16(-lse)


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_more_than_two_billion_elements_on_a_gpu(backend):
    harness.needs_gpu("triton")
    harness.needs_gpu(backend)
    import torch

    size = T31 + 10
    free, _ = torch.cuda.mem_get_info()
    if free < 28 << 30:
        pytest.skip(f"{free >> 30} GiB of the GPU's memory are free, 28 are needed")
    parts = [slice(0, 5000), slice(T31 - 5000, T31 + 5), slice(size - 5000, size)]
    with gpuact.using(backend):
        x = torch.empty(size, dtype=torch.bfloat16, device="cuda").normal_()
        y = gpuact.relu(x)
        dx = gpuact.relu_backward(x, y)
        for part in parts:
            assert torch.equal(y[part], torch.relu(x[part]))
            assert torch.equal(dx[part], torch.where(y[part] > 0, x[part], 0))
        assert torch.equal(y.view(2, -1).amax(1), x.view(2, -1).amax(1))
        del dx, y
        rows = x[: 3 << 30] if size >= 3 << 30 else torch.cat([x, x[: (3 << 30) - size]])
        del x
        rows = rows.view(3, 1 << 30)
        s = gpuact.softmax(rows)
        for k in range(3):
            piece = rows[k].float()
            lse = torch.logsumexp(piece, 0)
            for part in (slice(0, 5000), slice((1 << 30) - 5000, 1 << 30)):
                want = torch.exp(piece[part] - lse)
                assert torch.allclose(s[k, part].float(), want, rtol=2e-2, atol=0)
            del piece
        target = torch.tensor([0, 7, (1 << 30) - 1], device="cuda")
        del s
        loss = gpuact.cross_entropy(rows, target, reduction="none")
        for k in range(3):
            want = torch.logsumexp(rows[k].float(), 0) - rows[k, target[k]].float()
            assert torch.allclose(loss[k], want, rtol=1e-4)
