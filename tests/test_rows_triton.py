"""Triton's row kernels: every regime reached, equal to the truth, and moving what it promises.

The regimes of kernels/triton/rows.py are for rows of up to 262144 elements and beyond; the PTX
interpreter takes seconds for those. What a regime does is tested with rows as short as reach it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest

from gpuact.scores import Scores
from tests import bounds, harness, truth
from tests.bounds import DTYPES, FORMATS, check
from tests.calls import ROW_SHAPES
from tests.harness import Executor, executors
from tests.ptxrun import tritonrun
from tests.test_backends import (
    CE_CASES,
    ROW_FORMULAS,
    Losses,
    assert_few_instructions,
    awkward_rows,
    ce_inputs,
    row_operands,
    run_losses,
    run_rows,
)
from tests.truth import Array

TABLE = "Triton's rows: bytes moved ÷ needed by reads and by writes, sectors used"


pytestmark = pytest.mark.every  # each case is another regime's, and the slow ones are marked


@pytest.fixture(params=executors("triton-ptx"))
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Executor:
    return harness.make(request.param, monkeypatch)


both_executors = pytest.mark.parametrize(
    "executor", executors("triton-ptx", "triton-interpreter"), indirect=True
)


def normal(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * 4).astype(DTYPES[dtype])


# -- regimes --------------------------------------------------------------------------------------

ALL = ("rows", "row", "cluster", "passes", "spread")
# name → shape, dtype, what has to be changed for it to be reached with so few rows or on such a GPU
Setting = tuple[tuple[int, int, int], str, dict[str, Any]]
NO_CLUSTERS = {"clusters": False}
ONE_SM = {"SMS": 1}  # few rows are many then
CASES: dict[str, Setting] = {
    "rows": ((67, 64, 1), "bfloat16", {}),
    "rows, odd n": ((67, 33, 1), "bfloat16", {}),
    "rows, axis 1": ((3, 8, 64), "float32", {}),
    "rows, axis 1, few beside": ((301, 5, 3), "bfloat16", {}),
    "rows, axis 1, a pack beside": ((131, 6, 8), "bfloat16", {}),
    "row": ((3, 4096, 1), "bfloat16", {}),
    "row, odd n": ((5, 4097, 1), "bfloat16", {}),
    "row of float64": ((2, 2050, 1), "float64", {}),
    "row, axis 1": ((2, 512, 64), "float32", {}),
    "cluster of 2": ((2, 65536, 1), "bfloat16", {}),
    "cluster of 2, odd n": ((2, 50257, 1), "bfloat16", {}),
    "cluster of 4": ((2, 65540, 1), "float32", {}),
    "cluster, axis 1": ((1, 2048, 64), "float32", {}),
    "passes": ((3, 33024, 1), "bfloat16", {**NO_CLUSTERS, **ONE_SM}),
    "passes, odd n": ((3, 33001, 1), "bfloat16", {**NO_CLUSTERS, **ONE_SM}),
    "passes, axis 1": ((2, 2500, 64), "float32", {**NO_CLUSTERS, **ONE_SM}),
    "passes, one program": (
        (3, 33001, 1), "float32", {**NO_CLUSTERS, **ONE_SM, "FEWEST": 1, "LIVE": 1},
    ),
    "spread": ((2, 33024, 1), "bfloat16", NO_CLUSTERS),
    "spread, odd n": ((2, 33001, 1), "bfloat16", NO_CLUSTERS),
    "spread, axis 1": ((1, 2500, 70), "float32", NO_CLUSTERS),
    "spread, several chunks": ((2, 33001, 1), "float32", {**NO_CLUSTERS, "SMS": 3}),
}  # fmt: skip


def setup(executor: Executor, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    backend = executor.backend
    for name, value in changes.items():
        if name == "clusters":
            monkeypatch.setattr(backend, "_clusters", lambda device, has=value: has)
        else:
            monkeypatch.setattr(backend._kernels().rows, name, value)
    monkeypatch.setattr(backend, "_plans", {})
    executor.launches.clear()
    executor.stats.clear()


@pytest.fixture
def regimes(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The regime of each launch from now on."""
    seen, launch = [], executor.backend.launch

    def spy(plan: Any, args: Any) -> None:
        phase = plan.constexprs.get("PHASE")
        if phase is None:
            several = plan.constexprs["ROWS"] > 1 or plan.constexprs["BLOCK"] <= 1024
            seen.append("cluster" if plan.ctas > 1 else "rows" if several else "row")
        else:
            seen.append("passes" if phase == "both" else "spread")
        launch(plan, args)

    monkeypatch.setattr(executor.backend, "launch", spy)
    return seen


def test_short_rows_of_another_axis_share_a_program():
    """As many as those of the last axis do; and a grid of 2^31 programs, which Triton passes over
    in silence, is beyond any memory."""
    rows = pytest.importorskip("gpuact.kernels.triton.rows")
    for shape, itemsize in (((2**31, 2, 2), 2), ((2**29, 5, 3), 4), ((2**28, 2, 16), 4)):
        outer, n, inner = shape
        g = rows.geometry(n, inner, itemsize, 1, False, True)
        assert g.rows // g.across * inner * n * itemsize > rows.TOGETHER // 4
        grid = rows.grid(-(-inner // g.across), -(-outer // (g.rows // g.across)))
        assert prod(grid) < 2**31 / 8 and grid[1] * grid[2] * (g.rows // g.across) >= outer


@pytest.mark.parametrize(
    ("n", "held", "wanted"),
    [(100, 8, ("rows", 16, 1)), (200, 8, ("cluster", 64, 8)), (1000, 1, ("cluster", 64, 4))],
)
def test_rows_beside_each_other_become_fewer_before_blocks_share_them(n, held, wanted):
    """Where arithmetic is the bound, and as long as a sector is full."""
    rows = pytest.importorskip("gpuact.kernels.triton.rows")
    g = rows.geometry(n, 1024, 2, held, False, True)
    assert (g.regime, g.across, g.parts) == wanted


# Instructions of an element, executed, at most: as tests/test_rows.py has them for CUDA.
CLASSES = {
    ("softmax", (1, 21, 2048), "bfloat16"): 38,
    ("softmax", (1, 21, 2048), "float32"): 36,
    ("softmax", (1, 2, 4096), "float32"): 20,
    ("softmax_backward", (1, 21, 2048), "bfloat16"): 31,
    ("cross_entropy_with_grad", (1, 21, 2048), "bfloat16"): 110,
    ("cross_entropy_with_grad", (1, 21, 2048), "float32"): 80,
    ("cross_entropy_with_grad", (1, 100, 256), "bfloat16"): 65,
}


@pytest.mark.parametrize("case", CLASSES, ids=str)
def test_instructions_of_classes_along_axis_1(executor, case, record_property):
    executor.options.update(stats=True, racecheck=False)
    assert_few_instructions(executor, *case, CLASSES[case], record_property)


def test_every_regime_has_a_case():
    assert {name.split()[0].rstrip(",") for name in CASES} == set(ALL)
    parts = {name for name in CASES if "axis 1" in name}
    assert {name.split()[0].rstrip(",") for name in parts} == set(ALL)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("formula", ("softmax", "log_softmax"))
def test_forward(executor, regimes, monkeypatch, formula, case):
    shape, dtype, changes = CASES[case]
    setup(executor, monkeypatch, changes)
    x = normal(shape, dtype)
    run_rows(executor, formula, [x])
    wanted = case.split()[0].rstrip(",")
    assert set(regimes) == {wanted} or (wanted == "row" and shape[2] > 1), regimes
    run_rows(executor, formula, [x], alias=0)


@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith("cluster")])
@pytest.mark.parametrize("formula", ("softmax_backward", "log_softmax_backward"))
def test_backward(executor, monkeypatch, formula, case):
    shape, dtype, changes = CASES[case]
    setup(executor, monkeypatch, changes)
    operands = row_operands(formula, normal(shape, dtype))
    run_rows(executor, formula, operands)
    run_rows(executor, formula, operands, alias=0)
    run_rows(executor, formula, operands, alias=1)


@pytest.mark.parametrize("shape", ((2, 32768, 1), (2, 32001, 1), (1, 1024, 64)), ids=str)
@pytest.mark.parametrize("formula", ("softmax_backward", "log_softmax_backward"))
def test_backward_over_clusters(executor, regimes, formula, shape):
    run_rows(executor, formula, row_operands(formula, normal(shape, "float32")))
    assert regimes == ["cluster"]


# Columns lie together although there are rows beside each other, as of channels last.
BETWEEN = {
    "rows": ((2, 19, 8), "bfloat16", {}),
    "rows, less than a sector": ((1, 9, 64), "bfloat16", {}),
    "rows, even": ((1, 64, 16), "float32", {}),
    "row": ((1, 257, 64), "bfloat16", {}),
    "cluster": ((1, 2049, 32), "float32", {}),
    "passes": ((1, 1100, 64), "float32", {**NO_CLUSTERS, **ONE_SM}),
    "spread": ((1, 1101, 64), "float32", NO_CLUSTERS),
}


def columns_together(x: Array) -> Array:
    return np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)


@pytest.mark.long
@pytest.mark.parametrize("case", BETWEEN)
def test_columns_that_lie_together_between_rows(executor, regimes, monkeypatch, case):
    shape, dtype, changes = BETWEEN[case]
    setup(executor, monkeypatch, changes)
    x = columns_together(normal(shape, dtype))
    run_rows(executor, "softmax", [x], alias=0)
    wanted = case.split(",")[0]
    assert set(regimes) == {wanted} or (wanted == "row" and shape[2] > 1), regimes
    operands = row_operands("softmax_backward", x)
    run_rows(executor, "softmax_backward", operands, out=x)
    for kind in ("plain", "probabilities"):
        inputs = ce_inputs(shape, dtype, CE_CASES[kind])
        inputs["logits"] = columns_together(inputs["logits"])
        for together in (False, True) if kind == "probabilities" else (False,):
            if together:
                inputs["target"] = columns_together(inputs["target"])
            losses = Losses(executor, inputs)
            losses.forward()
            losses.backward(alias=True)
            losses.with_grad(alias=True)


@pytest.mark.parametrize("shape", ((1, 6001, 1), (1, 70001, 1), (1, 1100, 64)), ids=str)
@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
def test_values_stay_with_the_threads_that_load_them(monkeypatch, dtype, shape):
    """Only ends, and what there is once for a row or a chunk, are laid out anew."""
    built, compile_triton = [], tritonrun.compile_triton

    def spy(*args: Any, **options: Any) -> tritonrun.Built:
        built.append(compile_triton(*args, **options))
        return built[-1]

    monkeypatch.setattr(tritonrun, "compile_triton", spy)
    executor = harness.make("triton-ptx", monkeypatch, run=False)
    backend = executor.backend
    x = executor.place(np.ones(shape, DTYPES[dtype])).native
    for formula in ROW_FORMULAS:
        arrays = (x, x) if formula.endswith("_backward") else (x,)
        backend.rows(formula, arrays, x, None, executor.empty)
    ones = np.ones(shape[::2], np.float32)
    scale, loss, lse = (executor.place(ones).native for _ in range(3))
    target = executor.place(ones.astype(np.int64)).native
    how = {"ignore_index": -100, "label_smoothing": 0.0, "z_loss": 0.0, "softcap": 0.0}
    how |= {"empty": executor.empty}
    backend.cross_entropy(x, target, None, loss, lse, **how)
    backend.cross_entropy_backward(scale, x, target, None, lse, x, **how)
    backend.cross_entropy_with_grad(scale, x, target, None, loss, x, **how)
    for launch in executor.launches:
        launch.ptx(harness.TARGET)
    assert len(built) >= len(ROW_FORMULAS) + 3
    widths = set()
    for each in (b.compiled for b in built):
        moved = re.findall(r"convert_layout .*: tensor<\d+x(\d+)x", each.asm["ttgir"])
        ends = 32 * each.metadata.num_warps if shape[2] == 1 else 1
        assert {int(width) for width in moved} <= {1, ends}, each.metadata.name
        widths.update(moved)
    assert widths, "the operation has another name"


@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
def test_arrays_that_lie_differently_fit_shared_memory(executor, regimes, dtype):
    """Columns together in some, rows in others: tiles meet in shared memory (harness.SHARED)."""
    shape = (1, 2048, 128 // DTYPES[dtype].itemsize)
    x = normal(shape, dtype)
    run_rows(executor, "softmax", [columns_together(x)], out=x)
    run_rows(executor, "softmax", [x], out=columns_together(x))
    dy, y = row_operands("softmax_backward", x)
    run_rows(executor, "softmax_backward", [columns_together(dy), y])
    inputs = ce_inputs(shape, dtype, CE_CASES["probabilities"])
    inputs["target"] = columns_together(inputs["target"])
    losses = Losses(executor, inputs)
    losses.forward()
    losses.with_grad()
    assert "cluster" not in regimes


@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
def test_short_rows_and_a_target_misaligned_alike(executor, dtype):
    for n in (32, 48):
        inputs = ce_inputs((5, n, 1), dtype, CE_CASES["probabilities"])
        for name in ("logits", "target"):
            memory = np.zeros(5 * n + 1, inputs[name].dtype)
            memory[1:] = inputs[name].ravel()
            inputs[name] = memory[1:].reshape(5, n, 1)
        run_losses(executor, inputs)


LENGTHS = (1, 2, 3, 7, 31, 33, 255, 257, 1000, 1025, 4097)
LONG = (32001, 50257, 65537, 131073, 262147)


@pytest.mark.parametrize("n", [*LENGTHS, *(pytest.param(n, marks=pytest.mark.slow) for n in LONG)])
@pytest.mark.parametrize("formula", ROW_FORMULAS)
def test_lengths(executor, formula, n):
    for dtype in ("bfloat16", "float32"):
        run_rows(executor, formula, row_operands(formula, normal((3, n, 1), dtype)))


@pytest.mark.parametrize("n", (1025, 1032, 4097))
def test_every_alignment(executor, n):
    """A row that begins at each of the eight items of 16 bytes; and its result elsewhere."""
    for offset in range(8):
        x = normal((offset + 2 * n,), "bfloat16")[offset:].reshape(2, n, 1)
        run_rows(executor, "softmax", [x])
        run_rows(
            executor, "softmax", [x], out=normal((3 + 2 * n,), "bfloat16")[3:].reshape(x.shape)
        )
        run_rows(executor, "softmax", [x], alias=0)


@pytest.mark.parametrize("case", ("row, odd n", "cluster of 2, odd n", "passes, odd n", "spread"))
@pytest.mark.parametrize("formula", ("softmax", "log_softmax"))
def test_awkward_rows(executor, monkeypatch, formula, case):
    (_, n, _), _, changes = CASES[case]
    setup(executor, monkeypatch, changes)
    x = awkward_rows(n, "bfloat16")
    got = run_rows(executor, formula, [x]).astype(np.float64)
    assert np.isnan(got[1]).all()
    assert not np.isnan(got[9:12]).any()  # one finite value


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ("float16", "float32"))
def test_one_finite_value_in_100000(executor, dtype):
    x = np.full((3, 100000, 1), -np.inf, DTYPES[dtype])
    x[0, 0], x[1, 70001], x[2, -1] = -3, 5, -FORMATS[dtype].largest
    got = run_rows(executor, "softmax", [x])
    assert got.sum() == 3


# -- the same bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", (31, 257, 1000, 1025, 33001))
@pytest.mark.parametrize("formula", ("softmax", "softmax_backward"))
def test_a_row_alone_and_among_64(executor, formula, n):
    operands = row_operands(formula, normal((64, n, 1), "bfloat16"))
    many = run_rows(executor, formula, operands)
    # Triton promises it where all arrays lie as they did before, modulo 32 bytes. Those placed lie
    # modulo 16 as NumPy's do, and so begin in the first half of 32.
    alike = [k for k in range(64) if 2 * n * k % 32 < 16]
    for k in (alike[0], alike[1], alike[-1]):
        place = np.empty_like(operands[0])[k : k + 1]
        alone = run_rows(executor, formula, [a[k : k + 1] for a in operands], out=place)
        assert alone.tobytes() == many[k].tobytes()


@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
@pytest.mark.parametrize("formula", ROW_FORMULAS)
def test_passes_and_spread_agree_to_the_bit(executor, monkeypatch, formula, dtype):
    operands = row_operands(formula, normal((3, 50257, 1), dtype))
    results = []
    for changes in ({}, ONE_SM, {"SMS": 3}, {"SMS": 1, "FEWEST": 1, "LIVE": 1}):
        with monkeypatch.context() as patch:
            setup(executor, patch, {**NO_CLUSTERS, **changes})
            results.append(run_rows(executor, formula, operands).tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_rounded_before_they_are_added(monkeypatch, dtype):
    """Or else a sum's last bits would say which products the compiler took into an addition."""
    executor = harness.make("triton-ptx", monkeypatch, run=False, capability=90)
    for shape in ROW_SHAPES:
        dy, y, dx = (executor.place(normal(shape, dtype)).native for _ in range(3))
        executor.backend.rows("softmax_backward", (dy, y), dx, None, executor.empty)
    ptx = [launch.ptx(90) for launch in executor.launches]
    added = re.findall(r"\bfma\.rn\S* .*, (\S+);", "\n".join(ptx))
    assert len(ptx) >= len(ROW_SHAPES)
    assert set(added) == {"0d0000000000000000" if dtype == "float64" else "0f00000000"}


# -- classes among the ends of rows ---------------------------------------------------------------

ENDS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "row": (16, 1033, {}),
    "cluster": (6, 33001, {}),
    "passes": (6, 33001, {**NO_CLUSTERS, **ONE_SM}),
}


@pytest.mark.parametrize("kind", ("plain", "weight", "smoothing and weight"))
@pytest.mark.parametrize("case", ENDS)
def test_a_class_where_a_body_begins_or_ends(executor, regimes, monkeypatch, case, kind):
    rows, n, changes = ENDS[case]
    setup(executor, monkeypatch, changes)
    inputs = ce_inputs((rows, n, 1), "float32", CE_CASES[kind])
    address = executor.place(inputs["logits"]).native.data_ptr()
    starts = -(address // 4 + n * np.arange(rows)) % 8  # bodies of whole packs, from a sector on
    stops = starts + (n - starts) // 4 * 4
    classes = [stops[0], starts[1] - 1, starts[2], stops[3] - 1, stops[4], n - 1]
    if rows > 6:
        classes += [-1, n, 2**40, 7, *starts[10:13] - 1, *stops[13:]]
        inputs["ignore_index"] = 7
    inputs["target"] = np.array(classes)[:, None]
    run_losses(executor, inputs)
    assert case in regimes


# -- traffic --------------------------------------------------------------------------------------

# reads of the array that a regime needs
READS = {"rows": 1, "row": 1, "cluster": 1, "passes": 2, "spread": 2}
EFFICIENCY = 0.98
ASKEW = 16 / 17  # rows that begin 16 bytes behind a sector's beginning, read 512 bytes at a time
NARROW = 0.5  # short rows of odd n, and an axis beside which rows are odd: single elements
# Rows of several outer indices, a thread for each: what they leave of a sector they read next.
FEW = 0.19


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("formula", ("softmax", "softmax_backward"))
def test_traffic(executor, monkeypatch, record_property, formula, case):
    shape, dtype, changes = CASES[case]
    executor.options["stats"] = True
    setup(executor, monkeypatch, changes)
    operands = row_operands(formula, normal(shape, dtype))
    run_rows(executor, formula, operands)
    nbytes = operands[0].nbytes
    names = [f"arg{k}" for k in range(len(operands))]
    out = f"arg{len(operands)}"
    regime = "passes" if any("chunks" in launch.kernel for launch in executor.launches) else "row"
    loads = [sum(s.arrays[k]["load_bytes"] for s in executor.stats if k in s.arrays) for k in names]
    stores = sum(s.arrays[out]["store_bytes"] for s in executor.stats if out in s.arrays)
    sectors = 32 * sum(
        s.arrays[k][what] for s in executor.stats for k in (*names, out) if k in s.arrays
        for what in ("load_sectors", "store_sectors")
    )  # fmt: skip
    used = (sum(loads) + stores) / sectors
    row = (case, dtype, formula, f"{sum(loads) / nbytes / len(loads):.4f}",
           f"{stores / nbytes:.4f}", f"{used:.1%}")  # fmt: skip
    record_property("table", (TABLE, ("case", "dtype", "formula", "reads", "writes", "used"), row))
    assert all(load <= 1.01 * READS[regime] * nbytes for load in loads)
    assert stores == nbytes
    row, side = shape[1] * operands[0].itemsize, shape[2] * operands[0].itemsize
    narrow = side % 32 if shape[2] > 1 else shape[1] < 1024 and row % 32
    few = "few beside" in case
    assert used >= (FEW if few else NARROW if narrow else ASKEW if row % 32 == 16 else EFFICIENCY)


@pytest.mark.parametrize("case", ("row", "cluster of 2, odd n", "passes", "spread, odd n"))
def test_losses_read_the_logits_once(executor, monkeypatch, record_property, case):
    """What every thread of a row reads, of the class y, comes on top: a sector for each warp."""
    (rows, n, _), dtype, changes = CASES[case]
    executor.options["stats"] = True
    for kind in ("plain", "smoothing", "probabilities, all"):
        setup(executor, monkeypatch, changes)
        losses = Losses(executor, ce_inputs((rows, n, 1), dtype, CE_CASES[kind]))
        losses.forward()
        nbytes = losses.logits.nbytes
        asked = sum(s.arrays["arg0"]["load_bytes"] for s in executor.stats if "arg0" in s.arrays)
        row = (case, dtype, f"cross_entropy, {kind}", f"{asked / nbytes:.4f}", "", "")
        record_property(
            "table", (TABLE, ("case", "dtype", "formula", "reads", "writes", "used"), row)
        )
        width = losses.logits.itemsize * 512 * 8 * rows if kind == "plain" else 0
        assert asked <= 1.01 * nbytes + width


# -- scores ---------------------------------------------------------------------------------------


def scores_truth(x: Array, scores: Scores, mask: Array | None) -> tuple[Array, Array]:
    """(softmax, |z - max|), in longdouble; x has the shape (rows, n)."""
    z = truth.long(x) * scores.scale
    with np.errstate(all="ignore"):
        if mask is not None and mask.dtype == bool:
            z = np.where(mask, z, -np.inf)
        elif mask is not None:
            z = z + truth.long(mask)
        if scores.causal:
            seen = np.arange(x.shape[1]) <= (np.arange(x.shape[0]) % scores.causal)[:, None]
            z = np.where(seen, z, -np.inf)
        d = z - z.max(1, keepdims=True)
        y = np.exp(d) / np.exp(d).sum(1, keepdims=True)
        empty = np.isneginf(z).all(1, keepdims=True)
    return np.where(empty & scores.zero, 0, y), np.where(np.isfinite(d), np.abs(d), 0)


def run_scores(
    executor: Executor, x: Array, scores: Scores, mask: Array | None, inner: int = 1
) -> Array:
    """x: (rows, n); mask: (k1, …, km, n), whose leading axes are the rows'."""
    rows, n = x.shape
    view = x.reshape(rows // inner, inner, n).transpose(0, 2, 1)
    view = np.ascontiguousarray(view)
    native = None if mask is None else executor.place(mask).native
    given = Scores(scores.scale, native, scores.causal, scores.zero)
    placed, out = executor.place(view), executor.place(np.empty_like(view), blank=True)
    executor.backend.rows("softmax", (placed.native,), out.native, given, executor.empty)
    got = out.numpy().transpose(0, 2, 1).reshape(rows, n)
    full = None if mask is None else mask.reshape(rows, n)
    value, far = scores_truth(x, scores, full)
    u = truth.LONG(2) ** -FORMATS[bounds.compute_dtype(str(x.dtype))].digits
    with np.errstate(all="ignore"):
        size = np.abs(truth.long(x) * scores.scale)
        size = np.where(np.isfinite(size), size, 0)
        error = u * value * (bounds.row(n, far) + 2 * size.max(1, keepdims=True) + 2 * far)
    allowed = error + bounds.stored(value, str(x.dtype))
    check(got, value, allowed, str(x.dtype), f"{executor.name} {scores}")
    return got


MASKS: dict[str, Callable[[int, str], Array | None]] = {
    "none": lambda n, dtype: None,
    "boolean": lambda n, dtype: np.random.default_rng(1).uniform(size=(12, n)) < 0.7,
    "of the keys": lambda n, dtype: np.broadcast_to(
        np.random.default_rng(2).uniform(size=(2, 1, 1, n)) < 0.5, (2, 2, 3, n)
    ),
    "of the heads": lambda n, dtype: np.broadcast_to(
        normal((2, 1, n), dtype, 3)[None], (2, 2, 3, n)
    ),
    "of a column": lambda n, dtype: np.broadcast_to(
        np.arange(12)[:, None] % 5 > 0, (12, n)
    ),
    "transposed": lambda n, dtype: normal((n, 12), dtype, 4).T,
    "strided": lambda n, dtype: (
        (np.random.default_rng(5).uniform(size=(3, 4, 2 * n)) < 0.6)[..., ::2]
    ),
    "infinite": lambda n, dtype: np.where(
        np.random.default_rng(6).uniform(size=(12, n)) < 0.5, -np.inf, 1.5
    ).astype(DTYPES[dtype]),
}  # fmt: skip


@both_executors
@pytest.mark.parametrize(
    ("n", "mask"),
    [
        pytest.param(n, mask, marks=() if k % 3 == j else pytest.mark.slow)
        for j, n in enumerate((5, 64, 1033))
        for k, mask in enumerate(MASKS)
    ],
)
def test_scores(executor, mask, n):
    for dtype, inner in (("bfloat16", 1), ("float32", 1), ("float32", 3)):
        x = normal((12, n), dtype)
        for scores in (Scores(0.125), Scores(-1.5, causal=4, zero=True), Scores(causal=12)):
            run_scores(executor, x, scores, MASKS[mask](n, dtype), inner)


@pytest.mark.parametrize("case", ("cluster of 2, odd n", "cluster of 2", "passes, odd n", "spread"))
def test_scores_of_long_rows(executor, monkeypatch, case):
    (_, n, _), dtype, changes = CASES[case]
    setup(executor, monkeypatch, changes)
    x = normal((3, n), dtype)
    mask = np.random.default_rng(7).uniform(size=(3, n)) < 0.3
    mask[1] = False
    for scores in (Scores(0.5, zero=True), Scores(2.0)):
        got = run_scores(executor, x, scores, mask)
        assert (got[1] == 0).all() if scores.zero else np.isnan(got[1]).all()
    run_scores(executor, x, Scores(1.0, causal=3), None)


@both_executors
def test_what_takes_no_part_may_hold_anything(executor):
    x = normal((4, 40), "float32")
    mask = np.ones((4, 40), bool)
    mask[:, 7], mask[1, 9], mask[3] = False, False, False
    x[0, 7], x[1, 7], x[1, 9], x[3, 5] = np.nan, np.inf, np.nan, np.nan
    assert not np.isnan(run_scores(executor, x, Scores(zero=True), mask)).any()
    got = run_scores(executor, x, Scores(), mask)
    assert np.isnan(got).all(1).tolist() == [False, False, False, True]


def test_columns_behind_a_rows_own_are_not_read(executor):
    n = 4096
    executor.options["stats"] = True
    x = normal((4, n), "bfloat16")
    run_scores(executor, x, Scores(causal=4), None)
    asked = executor.stats[-1].arrays["arg0"]["load_bytes"]
    assert asked == 4 * 16  # the first pack of each row


@both_executors
@pytest.mark.parametrize("formula", ("softmax_backward", "log_softmax_backward"))
def test_scale_of_a_gradient(executor, formula):
    for n in (40, 1033):
        operands = row_operands(formula, normal((3, n, 1), "float32"))
        plain = run_rows(executor, formula, operands)
        placed = [executor.place(a).native for a in operands]
        out = executor.place(np.empty_like(plain), blank=True)
        executor.backend.rows(formula, tuple(placed), out.native, Scores(0.25), executor.empty)
        assert (out.numpy() == 0.25 * plain).all()


# -- losses ---------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    ("case", "kind"),
    [
        pytest.param(case, kind, marks=() if j == k % 3 else pytest.mark.slow)
        for k, case in enumerate(("cluster of 2, odd n", "cluster of 4", "passes, odd n", "spread"))
        for j, kind in enumerate(("plain", "smoothing", "probabilities, all"))
    ],
)
def test_losses_of_long_rows(executor, monkeypatch, case, kind):
    (rows, n, _), dtype, changes = CASES[case]
    setup(executor, monkeypatch, changes)
    for more in ({}, {"z_loss": 0.01}, {"softcap": 8.0}):
        run_losses(executor, ce_inputs((rows, n, 1), dtype, CE_CASES[kind] | more))


def test_a_block_of_a_cluster_that_has_nothing_but_infinities(executor):
    """Beside a maximum far below 0, and a weight that is larger than the sum of e^(z - max)."""
    inputs = ce_inputs((2, 65540, 1), "float32", CE_CASES["weight"])
    inputs["logits"] = np.full((2, 65540, 1), -np.inf, np.float32)
    inputs["logits"][:, 5], inputs["logits"][:, 6] = -200, -202
    inputs["target"][...] = 5
    inputs["weight"][...] = 3
    assert not np.isnan(run_losses(executor, inputs).truth["gradient"]).any()


@pytest.mark.long
@pytest.mark.parametrize("case", ("cluster, axis 1", "passes, axis 1", "spread, axis 1"))
def test_losses_of_another_axis(executor, monkeypatch, case):
    shape, dtype, changes = CASES[case]
    setup(executor, monkeypatch, changes)
    for kind in ("plain", "smoothing and weight", "probabilities"):
        run_losses(executor, ce_inputs(shape, dtype, CE_CASES[kind]))
