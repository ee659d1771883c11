"""The CUDA kernels over rows: every regime reached, right, the same to the bit, and frugal.

A regime is forced by a table that has it first, so that all that can run a length do run it. What
each of them moves is counted as the PTX runs, with the checks of bounds, barriers and clusters on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cupy")

from gpuact.kernels.cupy import rows as geometry
from gpuact.kernels.cupy.rows import CHUNK, REGIMES, Regime
from gpuact.scores import Scores
from tests import bounds, harness, truth
from tests.bounds import DTYPES, check
from tests.harness import Executor, executors
from tests.ptxrun.stats import SECTOR
from tests.test_backends import (
    CE_CASES,
    IGNORED,
    Losses,
    assert_few_instructions,
    awkward_rows,
    ce_inputs,
    row_operands,
    run_losses,
    run_rows,
    slow_but,
)
from tests.truth import Array

pytestmark = pytest.mark.every  # each case is another regime's, and the slow ones are marked


@pytest.fixture(params=executors("cupy-ptx", "cupy-cuda"))
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Executor:
    return harness.make(request.param, monkeypatch)


def normal(shape: tuple[int, ...], dtype: str) -> Array:
    return (np.random.default_rng(shape[1]).standard_normal(shape) * 4).astype(DTYPES[dtype])


def able(row_bytes: int) -> Iterator[Regime]:
    """The regimes that can run rows of so many bytes, each without conditions."""
    chunks = -(-row_bytes // CHUNK)
    fits = {
        "short_rows": lambda r: row_bytes <= 16 * r.variant,
        "whole_rows": lambda r: row_bytes <= 256 * r.variant or r.variant == 8,
        "cluster": lambda r: chunks <= r.threads // 16 * r.variant,
        "two_passes": lambda r: True,
        "spread": lambda r: True,
    }
    for regime in dict.fromkeys(r._replace(shortest=0) for r in REGIMES):
        in_a_block = regime.name != "whole_rows" or chunks <= regime.threads // 16
        if fits[regime.name](regime) and in_a_block:
            yield regime._replace(needs=frozenset(), longest=float("inf"))


def run(executor: Executor, formula: str, arrays: list[Array]) -> Array:
    placed = [executor.place(a) for a in arrays]
    result = executor.place(np.empty(arrays[0].shape, arrays[0].dtype), blank=True)
    given = tuple(a.native for a in placed)
    executor.backend.rows(formula, given, result.native, None, executor.empty)
    return result.numpy()


# -- which regime runs what -----------------------------------------------------------------------

# kernel: a shape (outer, n, inner) of float32 that it runs, by the table as it stands
REACHED = {
    "short_rows": (9, 40, 1),
    "whole_rows": (3, 1025, 1),
    "cluster": (1, 17000, 1),
    "two_passes": (40, 17000, 1),
    "measured merged finished": (1, 17000, 1),
    "columns": (5, 11, 9),
    "beside": (1, 300, 33),
    "beside_measured merged beside_finished": (1, 1100, 8),
}
WITHOUT_CLUSTERS = (
    "two_passes",
    "measured merged finished",
    "beside_measured merged beside_finished",
)


@pytest.mark.parametrize("regime", REACHED)
def test_every_regime_is_reached(executor, regime, monkeypatch):
    if regime in WITHOUT_CLUSTERS:
        monkeypatch.setattr(executor.backend, "capability", lambda: 80)
    x = normal(REACHED[regime], "float32")
    for formula in ("softmax", "log_softmax_backward"):
        executor.launches.clear()
        run_rows(executor, formula, row_operands(formula, x))
        kernels = [launch.kernel for launch in executor.launches]
        assert kernels == [f"{formula}_{kernel}" for kernel in regime.split()]


# Short rows side by side: (outer, n, inner), dtype, elements by which the array is misaligned → the
# packs and the rows of a thread where there are many rows; None: a block has them.
COLUMNS = {
    ((3, 8, 40), "bfloat16", 0): (1, 8),
    ((3, 7, 12), "float16", 0): (1, 4),
    ((3, 8, 40), "bfloat16", 2): (1, 2),
    ((3, 8, 41), "float16", 0): (1, 1),
    ((2, 15, 40), "bfloat16", 0): (2, 4),
    ((2, 24, 40), "float16", 0): (3, 2),
    ((2, 24, 40), "float16", 1): (3, 1),
    ((1, 56, 40), "bfloat16", 0): (7, 1),
    ((1, 57, 40), "bfloat16", 0): None,
    ((3, 1, 40), "float32", 0): (1, 4),
    ((3, 8, 12), "float32", 0): (2, 4),
    ((3, 16, 12), "float32", 0): (4, 2),
    ((2, 19, 30), "float32", 0): (5, 1),
    ((3, 2, 12), "float64", 0): (1, 2),
    ((2, 13, 12), "float64", 0): (7, 1),
    ((2, 15, 12), "float64", 0): None,
}


@pytest.fixture
def variants(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The regime and the variant of each kernel that is made from now on."""
    seen, module = [], geometry.module

    def spy(header: str, types: tuple, macros: tuple) -> object:
        seen.append((dict(macros)["REGIME"], dict(macros)["VARIANT"]))
        return module(header, types, macros)

    monkeypatch.setattr(geometry, "module", spy)
    return seen


def moved_on(x: Array, by: int) -> Array:
    """A copy that begins so many elements behind a multiple of 16 bytes."""
    memory = np.empty(x.size + by + 16, x.dtype)
    first = -memory.ctypes.data % 16 // x.itemsize + by
    view = memory[first : first + x.size].reshape(x.shape)
    view[...] = x
    return view


@pytest.mark.every
@pytest.mark.parametrize("case", COLUMNS, ids=str)
def test_a_thread_has_short_rows_side_by_side(executor, case, variants, monkeypatch):
    """Right, and with the bits of rows behind each other, however many a thread has."""
    (outer, n, inner), dtype, by = case
    rows = awkward_rows(n, dtype)[:, :, 0]
    x = np.resize(rows, (outer * inner, n)).reshape(outer, inner, n).swapaxes(1, 2)
    x = moved_on(x, by)
    behind = np.ascontiguousarray(x.swapaxes(1, 2)).reshape(outer * inner, n, 1)
    want = run(executor, "softmax", [behind]).reshape(outer, inner, n).swapaxes(1, 2)
    variants.clear()
    for sms in (10**6, 0):  # rows are few, or many
        monkeypatch.setattr(geometry, "SMS", sms)
        monkeypatch.setattr(executor.backend, "_plans", {})
        assert run(executor, "softmax", [x]).tobytes() == want.tobytes()
        run_rows(executor, "log_softmax", [x], alias=0)
    packs, sides = COLUMNS[case] or (0, 0)
    wanted = {("columns", f"{packs}, {count}") for count in (1, sides)}
    assert (set(variants) == wanted) == (packs > 0), variants
    if not packs:
        assert "columns" not in dict(variants)


@pytest.mark.parametrize("steps", ((336, 48), (287, 41), (281, 40), (288, 41)), ids=str)
@pytest.mark.parametrize("inner", (40, 39, 33))
def test_short_rows_side_by_side_in_wider_memory(executor, inner, steps, monkeypatch):
    """A thread has as many as their distance in memory allows: no access is misaligned."""
    monkeypatch.setattr(geometry, "SMS", 0)
    x = normal((3, 7, inner), "float16")
    memory = np.zeros(2000, np.float16)
    view = np.lib.stride_tricks.as_strided(memory, x.shape, (*(2 * s for s in steps), 2))
    view[...] = x
    want = run(executor, "softmax", [x])
    assert run(executor, "softmax", [view]).tobytes() == want.tobytes()
    run_rows(executor, "softmax", [view], alias=0)


@pytest.mark.parametrize("kind", CE_CASES)
@pytest.mark.parametrize("shape", ((3, 7, 12), (2, 21, 9)), ids=str)
def test_losses_of_short_rows_side_by_side(executor, shape, kind, variants, monkeypatch):
    monkeypatch.setattr(geometry, "SMS", 0)
    run_losses(executor, ce_inputs(shape, "bfloat16", CE_CASES[kind]))
    assert "columns" in dict(variants)


@pytest.mark.parametrize(("n", "variant"), ((8, "1, 4"), (24, "3, 1"), (25, None)))
@pytest.mark.parametrize("formula", ("softmax_backward", "log_softmax_backward"))
def test_gradients_of_short_rows_side_by_side(executor, formula, n, variant, variants, monkeypatch):
    """Where both arrays have room in a thread, and where not; one of them lying otherwise, too."""
    monkeypatch.setattr(geometry, "SMS", 0)
    operands = row_operands(formula, normal((3, n, 12), "float16"))
    run_rows(executor, formula, operands)
    assert dict(variants).get("columns") == variant
    operands[0] = np.ascontiguousarray(operands[0].swapaxes(1, 2)).swapaxes(1, 2)
    run_rows(executor, formula, operands)
    assert variants[-1][0] != "columns"


def test_the_table_is_reached_whole():
    names = {kernel for regime in REACHED for kernel in regime.split()}
    assert {r.name for r in REGIMES} - {"spread"} <= names


# A layout of rows side by side: what is run in it, of which GPU and shape (outer, n, inner).
LAID_OUT = {
    (32, 2, 1, 0): ("softmax", "float16", 90, (1, 600, 66)),
    (32, 2, 1, 1): ("softmax_backward", "float16", 90, (2, 1100, 35)),
    (32, 1, 1, 0): ("softmax_backward", "float32", 90, (1, 600, 35)),
    (32, 1, 2, 0): ("softmax", "float32", 80, (2, 600, 35)),
    (16, 1, 1, 0): ("log_softmax_backward", "bfloat16", 120, (2, 600, 35)),
}


@pytest.mark.parametrize("layout", geometry.LAYOUTS, ids=str)
def test_every_layout_is_reached(executor, layout, variants, monkeypatch):
    formula, dtype, capability, shape = LAID_OUT[layout]
    monkeypatch.setattr(executor.backend, "capability", lambda: capability)
    x = normal(shape, dtype)
    run_rows(executor, formula, row_operands(formula, x))
    run_rows(executor, formula, row_operands(formula, x), alias=0)
    wanted = f"gpuact::Layout<8, {', '.join(map(str, layout))}, "
    assert any(variant.startswith(wanted) for _, variant in variants), variants


# Of a GPU with little shared memory: arrays of its own beside what registers keep, or none.
LITTLE_SHARED = (
    ("softmax", "float16", 89, (1, 600, 66)),
    ("softmax", "bfloat16", 120, (1, 1100, 16)),
    ("softmax_backward", "float16", 86, (1, 9000, 16)),
)


@pytest.mark.parametrize("case", LITTLE_SHARED, ids=str)
def test_tiles_keep_to_little_shared_memory(executor, case, monkeypatch):
    formula, dtype, capability, shape = case
    monkeypatch.setattr(executor.backend, "capability", lambda: capability)
    run_rows(executor, formula, row_operands(formula, normal(shape, dtype)))


def test_tiles_declare_no_more_shared_memory_than_a_kernel_may(executor):
    """Four float64 for each row and lane are much; ptxas takes 48 KB of them."""
    case = {"label_smoothing": 0.1}
    losses = Losses(executor, ce_inputs((1, 5000, 4), "float64", case))
    losses.forward()
    losses.with_grad()


SHORT = {
    "a column": lambda a: a[:, 3:4],
    "a column, reshaped": lambda a: np.lib.stride_tricks.as_strided(
        a[:, 3:4], strides=a.strides[:1] * 3
    ),
    "a column, backwards": lambda a: a[::-1, 3:4],
    "some columns": lambda a: a[:, 2:7],
    "every other column": lambda a: a[:, 1::2],
}


@pytest.mark.long
@pytest.mark.parametrize("dtype", ("float16", "float32"))
@pytest.mark.parametrize("view", SHORT)
def test_short_rows_that_lie_anywhere(executor, view, dtype):
    """Nothing but their own elements is read or written, whatever the stride of a single one."""
    memory = normal((40, 10, 1), dtype)
    x = SHORT[view](memory)
    for out in (None, SHORT[view](memory.copy())):
        run_rows(executor, "softmax", [x], out=out)
        run_rows(executor, "log_softmax_backward", row_operands("log_softmax_backward", x), out=out)
    run_rows(executor, "softmax", [x], alias=0)
    inputs = ce_inputs(x.shape, dtype, {"label_smoothing": 0.1})
    inputs["logits"] = x
    losses = Losses(executor, inputs)
    losses.forward()
    losses.with_grad(alias=True)
    if executor.name.endswith("ptx"):
        assert all("short_rows" in launch.kernel for launch in executor.launches)


class _Module:
    """One kernel, and what CuPy says of it: it declares 16 KB of shared memory."""

    shared_size_bytes = 16 << 10
    max_dynamic_shared_size_bytes = 32 << 10

    def get_function(self, name: str) -> _Module:
        return self


def test_a_launch_asks_for_the_shared_memory_that_it_needs():
    """And takes none from launches of the same kernel that need more."""
    from gpuact.backends import cupy

    module = _Module()
    for shared, granted in ((32 << 10, 32), (60 << 10, 60), (40 << 10, 60)):
        function = cupy._function(module, "kernel", shared, 1, 0)
        assert function.max_dynamic_shared_size_bytes == granted << 10
    cupy._function.cache_clear()


# -- the same bits --------------------------------------------------------------------------------

LENGTHS = (1, 2, 3, 7, 31, 33, 255, 257, 1000, 1025, 4097)
LONG = (32001, 50257, 65537, 131073, 262147)
FORMULAS = ("softmax", "log_softmax", "softmax_backward", "log_softmax_backward")


def same_bits(executor: Executor, formula: str, n: int, dtype: str, count: int) -> None:
    """A row alone, in every regime, at every offset, along another axis: as among `count`."""
    arrays = row_operands(formula, normal((count, n, 1), dtype))
    want = run(executor, formula, arrays)

    def hold(got: Array, rows: slice, where: str) -> None:
        wrong = np.count_nonzero(got.view(np.uint8) != want[rows].view(np.uint8))
        assert not wrong, f"{formula} {dtype} {n} {where}: {wrong} bytes differ"

    few = slice(count - 3, count)
    for regime in able(n * DTYPES[dtype].itemsize):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(geometry, "REGIMES", (regime, REGIMES[-1]))
            got = run(executor, formula, [a[few] for a in arrays])
        hold(got, few, f"{regime.name} {regime.variant}")
    hold(run(executor, formula, [a[-1:] for a in arrays]), slice(count - 1, count), "alone")
    for offset in range(1, 8):
        memory = [np.zeros(3 * n + 8, a.dtype) for a in arrays]
        for m, a in zip(memory, arrays, strict=True):
            m[offset : offset + 3 * n] = a[few].ravel()
        views = [m[offset : offset + 3 * n].reshape(3, n, 1) for m in memory]
        hold(run(executor, formula, views), few, f"{offset} elements on")
    beside = [np.ascontiguousarray(a.transpose(2, 1, 0)) for a in arrays]
    hold(
        np.ascontiguousarray(run(executor, formula, beside).transpose(2, 1, 0)),
        slice(None),
        "beside",
    )


CASES = [(FORMULAS[k % 4], n) for k, n in enumerate(LENGTHS[1::2])]


@pytest.mark.long
@pytest.mark.parametrize(("formula", "n"), CASES)
def test_the_same_bits(executor, formula, n):
    same_bits(executor, formula, n, "float16", 64 if n < 2000 else 16)


# Every formula at every length, and each in every dtype at some.
IN_EVERY_DTYPE = [
    (formula, n, list(DTYPES)[(j + k) % 4])
    for j, formula in enumerate(FORMULAS)
    for k, n in enumerate(LENGTHS)
]


@pytest.mark.slow
@pytest.mark.parametrize(("formula", "n", "dtype"), IN_EVERY_DTYPE)
def test_the_same_bits_in_every_dtype(executor, formula, n, dtype):
    same_bits(executor, formula, n, dtype, 64 if n < 2000 else 16)


OF_LONG_ROWS = [(formula, n) for k, n in enumerate(LONG) for formula in FORMULAS[k % 2 :: 2]]


@pytest.mark.slow
@pytest.mark.parametrize(("formula", "n"), OF_LONG_ROWS)
def test_the_same_bits_of_long_rows(executor, formula, n):
    same_bits(executor, formula, n, "bfloat16", 4)


ASKED = ("cross_entropy", "cross_entropy_backward", "cross_entropy_with_grad")
KINDS = ("plain", "smoothing and weight", "probabilities")


@dataclass
class Loss:
    """One kernel of cross-entropy: its operands, arrays of rows or (classes,), and what it says."""

    asked: str
    inputs: dict[str, Any]

    def take(self, rows: slice) -> Loss:
        whole = ("label_smoothing", "z_loss", "softcap", "weight")
        return Loss(self.asked, {k: v if k in whole else v[rows] for k, v in self.inputs.items()})

    def beside(self) -> Loss:
        """The rows along the last axis instead of the first."""
        turned = {
            k: np.ascontiguousarray(self.inputs[k].swapaxes(0, -1))
            for k in ("logits", "target", "scale", "lse")
        }
        return Loss(self.asked, self.inputs | turned)

    def moved(self, offset: int) -> Loss:
        """Arrays of the logits' shape so many elements behind a multiple of 16 bytes."""

        def lay(a: Array) -> Array:
            memory = np.zeros(a.size + offset, a.dtype)
            memory[offset:] = a.ravel()
            return memory[offset:].reshape(a.shape)

        shape = self.inputs["logits"].shape
        same = {k: lay(v) for k, v in self.inputs.items() if getattr(v, "shape", ()) == shape}
        return Loss(self.asked, self.inputs | same)

    def run(self, executor: Executor) -> dict[str, Array]:
        inputs, backend = self.inputs, executor.backend
        placed = {
            k: executor.place(v).native for k, v in inputs.items() if isinstance(v, np.ndarray)
        }
        given = (placed["logits"], placed["target"], placed.get("weight"))
        out = {
            name: executor.place(np.empty_like(inputs[like]), blank=True)
            for name, like in (("loss", "scale"), ("lse", "scale"), ("dlogits", "logits"))
        }
        written = {
            "cross_entropy": ("loss", "lse"),
            "cross_entropy_backward": ("dlogits",),
            "cross_entropy_with_grad": ("loss", "dlogits"),
        }[self.asked]
        scale = () if self.asked == "cross_entropy" else (placed["scale"],)
        lse = (placed["lse"],) if self.asked == "cross_entropy_backward" else ()
        options = {k: inputs[k] for k in ("label_smoothing", "z_loss", "softcap")}
        getattr(backend, self.asked)(
            *scale,
            *given,
            *lse,
            *(out[name].native for name in written),
            ignore_index=IGNORED,
            **options,
            empty=executor.empty,
        )
        return {name: out[name].numpy() for name in written}


def loss_of(asked: str, shape: tuple[int, int, int], dtype: str, case: dict[str, Any]) -> Loss:
    inputs = ce_inputs(shape, dtype, case)
    lse = truth.cross_entropy(inputs["logits"], inputs["target"], None, IGNORED, 0.0)["lse"]
    return Loss(asked, inputs | {"lse": lse.astype(inputs["scale"].dtype)})


def same_bits_of_losses(
    executor: Executor, asked: str, case: dict[str, Any], n: int, dtype: str, count: int
) -> None:
    """As `same_bits`, of what a row's loss, lse and gradient are."""
    loss = loss_of(asked, (count, n, 1), dtype, case)
    want = loss.run(executor)

    def hold(got: dict[str, Array], rows: slice, where: str) -> None:
        for name, value in got.items():
            wrong = np.count_nonzero(value.view(np.uint8) != want[name][rows].view(np.uint8))
            assert not wrong, f"{asked} {case} {dtype} {n} {where}: {wrong} bytes of {name} differ"

    few, last = slice(count - 3, count), slice(count - 1, count)
    for regime in able(n * DTYPES[dtype].itemsize):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(geometry, "REGIMES", (regime, REGIMES[-1]))
            hold(loss.take(few).run(executor), few, f"{regime.name} {regime.variant}")
    hold(loss.take(last).run(executor), last, "alone")
    for offset in range(1, 16 // DTYPES[dtype].itemsize):
        hold(loss.take(few).moved(offset).run(executor), few, f"{offset} elements on")
    beside = loss.beside().run(executor)
    turned = {k: np.ascontiguousarray(v.swapaxes(0, -1)) for k, v in beside.items()}
    hold(turned, slice(None), "beside")


BITS = [(asked, kind, n) for asked in ASKED for kind in KINDS for n in (33, 1001, 4097)]
QUICK_BITS = (("cross_entropy_with_grad", "smoothing and weight", 1001),)


@pytest.mark.long
@pytest.mark.parametrize(
    ("asked", "kind", "n"),
    [pytest.param(*b, marks=() if b in QUICK_BITS else pytest.mark.slow) for b in BITS],
)
def test_the_same_bits_of_losses(executor, asked, kind, n):
    for more in ({}, {"z_loss": 0.1, "softcap": 5.0}) if n == 33 else ({},):
        case = CE_CASES[kind] | more
        same_bits_of_losses(executor, asked, case, n, "float16", 64 if n < 2000 else 16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ("bfloat16", "float32", "float64"))
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_of_losses_in_every_dtype(executor, kind, dtype):
    same_bits_of_losses(executor, "cross_entropy_with_grad", CE_CASES[kind], 257, dtype, 64)


@pytest.mark.slow
@pytest.mark.parametrize("n", (50257, 131073))
@pytest.mark.parametrize("asked", ASKED)
def test_the_same_bits_of_losses_of_long_rows(executor, asked, n):
    for kind in ("plain", "probabilities"):
        same_bits_of_losses(executor, asked, CE_CASES[kind], n, "bfloat16", 4)


# -- right ----------------------------------------------------------------------------------------

FORCED = ((1, 3), (40, 5), (2500, 1))  # n of awkward rows, and how many beside each other


@pytest.mark.parametrize("n", slow_but(700, of=(5, 100, 700, 9000)))
def test_awkward_rows_in_every_regime(executor, n, monkeypatch):
    x = awkward_rows(n, "float32")
    for regime in able(4 * n):
        monkeypatch.setattr(geometry, "REGIMES", (regime, REGIMES[-1]))
        for formula in ("softmax", "log_softmax"):
            run_rows(executor, formula, [x])
            run_rows(executor, formula, [x], alias=0)


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ((1, 5, 40), (2, 130, 33), (1, 1500, 70)), ids=str)
def test_awkward_rows_side_by_side(executor, shape, dtype):
    _, n, inner = shape
    rows = awkward_rows(n, dtype)[:, :, 0]
    x = np.resize(rows, (shape[0] * inner, n)).reshape(shape[0], inner, n).swapaxes(1, 2)
    x = np.ascontiguousarray(x)
    for formula in ("softmax", "log_softmax"):
        run_rows(executor, formula, [x])
        run_rows(executor, formula, [x], alias=0)
    for formula in ("softmax_backward", "log_softmax_backward"):
        run_rows(executor, formula, row_operands(formula, x))


def test_one_finite_value_in_a_hundred_thousand(executor):
    for where in (0, 31999, 99999):
        x = np.full((1, 100_000, 1), -np.inf, np.float32)
        x[0, where] = -3e38
        got = run_rows(executor, "softmax", [x])
        assert got[0, where, 0] == 1
        assert np.count_nonzero(got) == 1


SCORES = {
    "scale": Scores(scale=-0.25),
    "mask": Scores(scale=0.5, mask="bool"),
    "additive": Scores(mask="added"),
    "causal": Scores(scale=2.0, causal=6),
    "causal and mask": Scores(mask="bool", causal=6, zero=True),
    "zero": Scores(mask="none", zero=True),
    "nan": Scores(mask="none"),
}


def masked(x: Array, scores: Scores, mask: Array | None) -> Array:
    """softmax of scores, in extended precision: x is (12, n, 1), mask broadcast to (2, 6, n)."""
    z = truth.long(x) * scores.scale
    wide = None if mask is None else np.broadcast_to(mask, (2, 6, x.shape[1])).reshape(z.shape)
    if wide is not None:
        z = np.where(wide, z, -np.inf) if wide.dtype == bool else z + truth.long(wide)
    if scores.causal:
        row, column = np.arange(12)[:, None, None], np.arange(x.shape[1])[None, :, None]
        z = np.where(column <= row % scores.causal, z, -np.inf)
    with np.errstate(all="ignore"):
        e = np.exp(z - z.max(1, keepdims=True))
        y = e / e.sum(1, keepdims=True)
    empty = (z == -np.inf).all(1, keepdims=True)
    return np.where(empty & scores.zero, 0, y)


@pytest.mark.parametrize("dtype", ("float16", "float32"))
@pytest.mark.parametrize("n", (6, 300, 5000))
@pytest.mark.parametrize("case", SCORES)
def test_scores(executor, case, n, dtype):
    scores = SCORES[case]
    x = normal((12, n, 1), dtype)
    x[3, 2] = np.nan if scores.mask == "bool" else 0.5
    rng = np.random.default_rng(n)
    kinds = {
        "bool": lambda: rng.random((1, 6, n)) < 0.7,
        "added": lambda: rng.standard_normal((2, 1, n)).astype(x.dtype),
        "none": lambda: np.arange(6)[None, :, None] % 2 == np.zeros((1, 1, n), int),
    }
    mask = kinds[scores.mask]() if scores.mask else None
    if scores.mask == "bool":
        mask[:, 3, 2] = False  # over the NaN
    native = None
    if mask is not None:
        placed = executor.place(np.broadcast_to(mask, (2, 6, n)))
        native = placed.native
    result = executor.place(np.empty_like(x), blank=True)
    given = Scores(scores.scale, native, scores.causal, scores.zero)
    executor.backend.rows(
        "softmax", (executor.place(x).native,), result.native, given, executor.empty
    )
    want = masked(x, scores, mask)
    error = 2.0 ** -(10 if dtype == "float16" else 20)
    check(result.numpy(), want, error * np.abs(want) + bounds.FLUSHED + 2.0**-24, dtype, case)


# -- losses in every regime -----------------------------------------------------------------------

LOSSES = ({}, {"label_smoothing": 0.1, "weight": True}, {"target": "probabilities"})


@pytest.mark.long
@pytest.mark.parametrize(
    ("case", "n"),
    [
        pytest.param(case, n, id=f"{case} {n}", marks=() if j == k else pytest.mark.slow)
        for j, case in enumerate(LOSSES)
        for k, n in enumerate((37, 700, 9000))
    ],
)
def test_losses_in_every_regime(executor, case, n, monkeypatch):
    inputs = ce_inputs((3, n, 1), "float32", case)
    found = []
    for regime in able(4 * n):
        monkeypatch.setattr(geometry, "REGIMES", (regime, REGIMES[-1]))
        losses = Losses(executor, inputs)
        losses.forward()
        losses.backward()
        losses.with_grad(alias=True)
        found.append(losses.loss.numpy().tobytes())
    assert len(set(found)) == 1


@pytest.mark.parametrize("case", LOSSES, ids=str)
@pytest.mark.parametrize("shape", ((2, 37, 33), (1, 1500, 40)), ids=str)
def test_losses_side_by_side(executor, case, shape):
    losses = Losses(executor, ce_inputs(shape, "float32", case))
    losses.forward()
    losses.backward()
    losses.with_grad(alias=True)


CAPPED_KINDS = ("plain", "smoothing and weight", "probabilities, all")
CAPPED = [
    pytest.param(regime, kind, marks=() if quick else pytest.mark.slow)
    for k, regime in enumerate(REACHED)
    for j, kind in enumerate(CAPPED_KINDS)
    for quick in [j == k % 3 and regime != "two_passes"]
]


@pytest.mark.parametrize(("regime", "kind"), CAPPED)
def test_capped_losses_in_every_regime(executor, regime, kind, monkeypatch):
    if regime in WITHOUT_CLUSTERS:
        monkeypatch.setattr(executor.backend, "capability", lambda: 80)
    inputs = ce_inputs(REACHED[regime], "float32", CE_CASES[kind] | {"z_loss": 0.1, "softcap": 9.0})
    losses = Losses(executor, inputs)
    losses.with_grad(alias=True)
    kernels = [launch.kernel for launch in executor.launches]
    assert kernels == [f"cross_entropy_with_grad_{kernel}" for kernel in regime.split()]


@pytest.mark.slow
@pytest.mark.parametrize("regime", [r for r in REACHED if r != "two_passes"])
def test_every_capped_kernel_in_every_regime(executor, regime, monkeypatch):
    if regime in WITHOUT_CLUSTERS:
        monkeypatch.setattr(executor.backend, "capability", lambda: 80)
    for kind in CAPPED_KINDS:
        case = CE_CASES[kind] | {"z_loss": 0.1, "softcap": 9.0}
        run_losses(executor, ce_inputs(REACHED[regime], "float32", case))


# -- what is moved --------------------------------------------------------------------------------

# regime: shape, dtype, capability, reads of each array; n is odd, so that rows begin anywhere
TRAFFIC: dict[str, tuple[tuple[int, int, int], str, int, int]] = {
    "short rows, even": ((4096, 64, 1), "bfloat16", 90, 1),
    "short rows, odd": ((4096, 63, 1), "bfloat16", 90, 1),
    "whole rows, even": ((64, 1024, 1), "bfloat16", 90, 1),
    "whole rows, odd": ((64, 1001, 1), "bfloat16", 90, 1),
    "whole rows, long, odd": ((4, 20001, 1), "bfloat16", 90, 1),
    "whole rows, float32, odd": ((8, 5001, 1), "float32", 90, 1),
    "cluster, even": ((1, 131072, 1), "bfloat16", 90, 1),
    "cluster, odd": ((2, 131071, 1), "bfloat16", 90, 1),
    "cluster, float32, odd": ((1, 70001, 1), "float32", 90, 1),
    "two passes, odd": ((40, 33001, 1), "bfloat16", 80, 2),
    "spread, odd": ((1, 262147, 1), "bfloat16", 80, 2),
    "beside": ((1, 1024, 256), "bfloat16", 90, 1),
    "columns": ((2, 21, 1024), "bfloat16", 90, 1),
    "columns, float32": ((2, 13, 1024), "float32", 90, 1),
    "beside, float32": ((1, 512, 128), "float32", 90, 1),
    "beside, cluster": ((1, 2048, 128), "bfloat16", 90, 1),
    "beside, cluster, float32": ((1, 2048, 64), "float32", 90, 1),
    "beside, read twice": ((1, 2048, 64), "float32", 80, 2),
}
MOVED, EFFICIENCY = 1.01, 0.98


@pytest.mark.parametrize("case", TRAFFIC)
@pytest.mark.parametrize("formula", ("softmax", "softmax_backward"))
@pytest.mark.parametrize("executor", ["cupy-ptx"], indirect=True)
def test_traffic(executor, formula, case, monkeypatch, record_property):
    shape, dtype, capability, reads = TRAFFIC[case]
    monkeypatch.setattr(executor.backend, "capability", lambda: capability)
    executor.options["stats"] = True
    x = executor.place(normal(shape, dtype))
    y = executor.place(normal(shape, dtype))
    out = executor.place(np.empty(shape, DTYPES[dtype]), blank=True)
    given = (x.native, y.native) if formula == "softmax_backward" else (x.native,)
    executor.backend.rows(formula, given, out.native, None, executor.empty)
    moved = asked = touched = 0
    for launch, stats in zip(executor.launches, executor.stats, strict=True):
        for name, count in stats.arrays.items():
            argument = launch.arguments(capability)[int(name.removeprefix("arg"))]
            moved += count["load_bytes"] + count["store_bytes"]
            if argument.ctypes.data in {a.ctypes.data for a in (*given, out.native)}:
                asked += count["load_bytes"] + count["store_bytes"]
                touched += SECTOR * (count["load_sectors"] + count["store_sectors"])
    size = int(np.prod(shape)) * DTYPES[dtype].itemsize
    needed = size * (reads * len(given) + 1)
    kernels = ", ".join(launch.kernel.removeprefix(f"{formula}_") for launch in executor.launches)
    columns = ("case", "kernels", "moved / model", "sector efficiency")
    row = (f"{formula} {case}", kernels, f"{moved / needed:.4f}", f"{asked / touched:.2%}")
    record_property("table", ("what the kernels over rows move", columns, row))
    assert moved <= MOVED * needed
    assert asked >= EFFICIENCY * touched


LOSSES_MOVED = [
    pytest.param(asked, kind, case, marks=() if quick else pytest.mark.slow)
    for asked in ASKED
    for kind in ("plain", "probabilities")
    for case in TRAFFIC
    for quick in [
        (asked == ASKED[2] and kind == "plain" and case in ("whole rows, odd", "cluster, odd"))
        or (asked == ASKED[0] and kind == "probabilities" and case == "beside")
        or (asked == ASKED[1] and kind == "plain" and case == "spread, odd")
    ]
]  # fmt: skip


@pytest.mark.parametrize(("asked", "kind", "case"), LOSSES_MOVED)
@pytest.mark.parametrize("executor", ["cupy-ptx"], indirect=True)
def test_traffic_of_losses(executor, asked, kind, case, monkeypatch, record_property):
    """The numbers of rows and chunks count once for each sector: a row's threads share them.

    So do they the logit of the row's class, which comes from a cache: rows that are ignored spare
    that load, and no other.
    """
    shape, dtype, capability, twice = TRAFFIC[case]
    outer, n, inner = shape
    monkeypatch.setattr(executor.backend, "capability", lambda: capability)
    executor.options["stats"] = True
    loss = loss_of(asked, shape, dtype, CE_CASES[kind])
    integers = loss.inputs["target"].ndim == 2
    if integers:
        loss.inputs["target"][...] = IGNORED
    loss.run(executor)
    large = shape[0] * shape[2] * n * DTYPES[dtype].itemsize
    moved = asked_for = touched = 0
    for launch, stats in zip(executor.launches, executor.stats, strict=True):
        for name, count in stats.arrays.items():
            argument = launch.arguments(capability)[int(name.removeprefix("arg"))]
            if argument.shape == shape:
                moved += count["load_bytes"] + count["store_bytes"]
                asked_for += count["load_bytes"] + count["store_bytes"]
                touched += SECTOR * (count["load_sectors"] + count["store_sectors"])
            else:
                moved += stats.footprint(name, "load") + stats.footprint(name, "store")
    once = asked == "cross_entropy" or (asked == "cross_entropy_backward" and integers)
    arrays = (1 if once else twice) * (1 if integers else 2) + (asked != "cross_entropy")
    # loss and lse, or one of them and the scale; a class
    row = 2 * loss.inputs["scale"].itemsize + 8 * integers
    needed = arrays * large + outer * inner * row
    kernels = ", ".join(launch.kernel.removeprefix(f"{asked}_") for launch in executor.launches)
    columns = ("case", "kernels", "moved / model", "sector efficiency")
    cells = (f"{asked} {kind} {case}", kernels, f"{moved / needed:.4f}")
    record_property(
        "table",
        ("what the kernels over rows move", columns, (*cells, f"{asked_for / touched:.2%}")),
    )
    assert moved <= MOVED * needed
    assert asked_for >= EFFICIENCY * touched


@pytest.mark.parametrize("executor", ["cupy-ptx"], indirect=True)
def test_causal_rows_read_what_may_take_part(executor):
    executor.options["stats"] = True
    rows, n = 64, 1024
    x = executor.place(normal((1, rows, n), "bfloat16").reshape(rows, n, 1))
    out = executor.place(np.empty((rows, n, 1), DTYPES["bfloat16"]), blank=True)
    scores = Scores(causal=rows)
    executor.backend.rows("softmax", (x.native,), out.native, scores, executor.empty)
    assert np.array_equal(out.numpy()[:, :, 0] != 0, np.tri(rows, n, dtype=bool))
    (stats,) = executor.stats
    packs = sum(row // 8 + 1 for row in range(rows))
    assert sum(count["load_bytes"] for count in stats.arrays.values()) == 16 * packs
    assert sum(count["store_bytes"] for count in stats.arrays.values()) == 2 * rows * n


# Instructions of an element, executed, at most: of classes along axis 1, as images have them. An
# H200 has time for 27 of a half type at the rate of a copy, and for 54 of a float32.
CLASSES = {
    ("softmax", (1, 21, 2048), "bfloat16"): 34,
    ("softmax", (1, 21, 2048), "float32"): 50,
    ("softmax", (1, 2, 4096), "float32"): 110,
    ("softmax_backward", (1, 21, 2048), "bfloat16"): 32,
    ("cross_entropy_with_grad", (1, 21, 2048), "bfloat16"): 50,
    ("cross_entropy_with_grad", (1, 21, 2048), "float32"): 65,
}


@pytest.mark.parametrize("case", CLASSES, ids=str)
@pytest.mark.parametrize("executor", ["cupy-ptx"], indirect=True)
def test_instructions_of_classes_along_axis_1(executor, case, record_property):
    executor.options.update(stats=True, racecheck=False)
    assert_few_instructions(executor, *case, CLASSES[case], record_property)
