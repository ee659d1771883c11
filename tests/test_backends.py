"""Every function of the catalogue, on every backend that can run here, against the truth.

The cases come from the catalogue: a new record is tested without a line here. On machines without
a GPU the CuPy and Triton backends run compiled PTX in the interpreter of tests/ptxrun, with its
checks of every address and of races between warps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import pytest

from gpuact.catalogue import FUNCTIONS, Pass
from tests import bounds, harness, truth
from tests.bounds import DTYPES, FORMATS, check
from tests.harness import Executor, executors
from tests.truth import Array

ELEMENTWISE: dict[str, Pass] = {
    p.formula: p
    for f in FUNCTIONS.values()
    if f.kind == "elementwise"
    for p in (f.forward, f.backward, f.slope)
    if p is not None
}
SUMS = {p.formula: p for f in FUNCTIONS.values() for p in f.sums.values()}
ROWS = {
    p.formula: p for f in FUNCTIONS.values() if f.kind == "rows" for p in (f.forward, f.backward)
}
FORMULAS = list(ELEMENTWISE)


@pytest.fixture(params=executors())
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Executor:
    return harness.make(request.param, monkeypatch)


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


# -- what goes in ---------------------------------------------------------------------------------


def narrow(values: Array, dtype: np.dtype[Any] | str) -> Array:
    """Rounded to a dtype (ml_dtypes knows nothing of longdouble)."""
    with np.errstate(all="ignore"):
        return values.astype(np.float64).astype(dtype)


def specials(dtype: str) -> Array:
    """Signed zeros, subnormals, the ends of the range, infinities and NaN."""
    form = FORMATS[dtype]
    least = np.ldexp(1.0, form.least)
    step = np.ldexp(1.0, form.least - form.digits + 1)
    positive = [0.0, step, 3 * step, least - step, least, 1.0, 20.0, 87.5, 89.0, 104.0, 710.0]
    positive += [form.largest, np.inf]
    return np.array([*positive, *(-v for v in positive), np.nan]).astype(DTYPES[dtype])


def spread(rng: np.random.Generator, n: int, dtype: str) -> Array:
    """Ordinary values of many sizes, both signs."""
    v = rng.standard_normal(n) * np.exp(rng.uniform(-6, 3, n))
    return v.astype(DTYPES[dtype])


def every(dtype: str, rng: np.random.Generator, n: int) -> Array:
    """All values of a half type; of a wider one, n of all sizes and the special ones."""
    if DTYPES[dtype].itemsize == 2:
        return np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype])
    return np.concatenate([specials(dtype), spread(rng, n, dtype)])


def as_output(formula: str, x: Array) -> Array:
    """What the function whose backward this is gives for x, rounded as it is stored."""
    forward = next(f.forward for f in FUNCTIONS.values() if f.backward.formula == formula)
    defaults = [0.25] * len(forward.parameters)
    with np.errstate(all="ignore"):
        return narrow(truth.elementwise(forward.formula, x, *defaults), x.dtype)


def operands(formula: str, x: Array, rng: np.random.Generator) -> list[Array]:
    """The arrays that a formula reads, from one array of values."""
    arrays = []
    for name in {**ELEMENTWISE, **SUMS}[formula].reads:
        if name == "y":
            arrays.append(as_output(formula, x))
        elif name == "dy":
            arrays.append(rng.permutation(x.ravel()).reshape(x.shape) if x.size > 1 else x)
        else:
            arrays.append(x)
    return arrays


def run_elementwise(
    executor: Executor,
    formula: str,
    arrays: list[Array],
    params: list[Array | float],
    out: Array,
    alias: int | None = None,
) -> float:
    """Run, compare every element; alias: which of the arrays the result is written to."""
    dtype = str(out.dtype)
    compute = np.dtype(bounds.compute_dtype(dtype))  # parameters enter in it
    exact = [compute.type(p) if isinstance(p, float) else p.astype(compute) for p in params]
    placed = [executor.place(a) for a in arrays]
    given = [executor.place(p).native if isinstance(p, np.ndarray) else p for p in params]
    result = executor.place(out, blank=True) if alias is None else placed[alias]
    executor.backend.elementwise(
        formula, tuple(a.native for a in placed), tuple(given), result.native, executor.empty
    )
    value = truth.elementwise(formula, *arrays, *exact)
    allowed = bounds.elementwise(formula, executor.family, dtype, [*arrays, *exact], value)
    assert all(a.unchanged() for k, a in enumerate(placed) if k != alias), "an input was written"
    got, what = result.numpy(), f"{executor.name} {formula} {dtype}"
    usable = bounds.defined(executor.family, dtype, [*arrays, *params])
    got, value = np.where(usable, truth.long(got), 0), np.where(usable, value, 0)
    return check(got, value, allowed, dtype, what)


# -- elementwise ----------------------------------------------------------------------------------


@pytest.mark.every
@pytest.mark.parametrize("formula", FORMULAS)
def test_values(executor, formula, dtype):
    rng = np.random.default_rng(0)
    x = every(dtype, rng, 8000)
    params = [0.3, -1.7][: len(ELEMENTWISE[formula].parameters)]
    arrays = operands(formula, x, rng)
    run_elementwise(executor, formula, arrays, params, np.empty_like(arrays[0]))


@pytest.mark.parametrize("executor", executors("cupy-ptx", "triton-ptx"), indirect=True)
@pytest.mark.parametrize("formula", ("sigmoid", "sigmoid_derivative", "tanh", "tanh_derivative"))
def test_values_where_hardware_is_as_inexact_as_documented(executor, formula, dtype):
    """ptxrun rounds approximate instructions correctly; here it errs by as much as a GPU may."""
    for seed in (1, 2):
        executor.options.update(noise=1.0, seed=seed)
        rng = np.random.default_rng(seed)
        x = every(dtype, rng, 30_000)
        run_elementwise(executor, formula, [x], [], np.empty_like(x))


@pytest.mark.parametrize("formula", [f for f in FORMULAS if len(ELEMENTWISE[f].reads) == 2])
def test_special_values_meet_each_other(executor, formula, dtype):
    v = specials(dtype)
    first, second = (a.ravel().copy() for a in np.meshgrid(v, v))
    if "y" in ELEMENTWISE[formula].reads:
        second = as_output(formula, second)
    params = [-0.3][: len(ELEMENTWISE[formula].parameters)]
    run_elementwise(executor, formula, [first, second], params, np.empty_like(first))


@pytest.mark.parametrize("kind", ("int32", "int64", "uint8", "int8"))
def test_relu_keeps_integers(executor, kind):
    info = np.iinfo(kind)
    x = np.array([info.min, info.max, 0, 1, 2, 100, info.max - 1], kind)
    placed, out = executor.place(x), executor.place(np.empty_like(x), blank=True)
    executor.backend.elementwise("relu", (placed.native,), (), out.native, executor.empty)
    assert (out.numpy() == np.maximum(x, 0)).all()


def layouts(dtype: str, negative: bool) -> dict[str, tuple[tuple[int, ...], Any]]:
    """name → (shape of the memory, index or transposition that gives the view)."""
    found: dict[str, tuple[tuple[int, ...], Any]] = {
        "dense": ((6, 4, 16), np.s_[:]),
        "odd size": ((1291,), np.s_[:]),
        "transposed": ((5, 7, 9), (2, 0, 1)),
        "strided": ((8, 10, 14), np.s_[::2, 1::3, 2:13:5]),
        "columns": ((37, 11), np.s_[:, 3]),
        "misaligned": ((1041,), np.s_[1:]),
        "0-d": ((), np.s_[()]),
        "broadcast": ((1, 33), np.s_[:]),
        "size one": ((3, 1, 5, 1), np.s_[:]),
    }
    if negative:
        found["negative"] = ((6, 5, 11), np.s_[::-1, :, ::-2])
    return found


def lay(values: Array, layout: tuple[tuple[int, ...], Any], start: int = 0) -> Array:
    """A view of this layout, filled with values."""
    shape, index = layout
    memory = np.take(values, np.arange(start, start + int(np.prod(shape))), mode="wrap")
    memory = memory.reshape(shape)
    transposition = isinstance(index, tuple) and index and all(isinstance(i, int) for i in index)
    return memory.transpose(index) if transposition else memory[index]


LAYOUTS = list(layouts("float32", True))


def some(index: int, full: bool) -> Iterator[str]:
    """Every third layout, another third for each formula and dtype; or all of them."""
    return (name for k, name in enumerate(LAYOUTS) if full or (k + index) % 3 == 0)


def run_layouts(executor: Executor, formula: str, dtype: str, full: bool) -> None:
    rng = np.random.default_rng(1)
    known = layouts(dtype, executor.negative_strides)
    index = FORMULAS.index(formula) + list(DTYPES).index(dtype)
    values = spread(rng, 2000, dtype)
    for name in some(index, full):
        if name not in known:
            continue
        x = lay(values, known[name])
        if name == "broadcast":
            x = np.broadcast_to(x, (4, 33))
        arrays = operands(formula, x, rng)
        if len(arrays) == 2 and name != "broadcast":
            arrays[0] = lay(arrays[0].ravel() if x.ndim else arrays[0].reshape(1), known[name])
        count = len(ELEMENTWISE[formula].parameters)
        params = [0.3, -1.7][:count]
        run_elementwise(executor, formula, arrays, params, np.empty(x.shape, x.dtype))
        if name not in ("broadcast",):  # the result in memory of the same layout, and over an input
            run_elementwise(executor, formula, arrays, params, lay(values, known[name]))
            run_elementwise(executor, formula, arrays, params, arrays[-1], alias=len(arrays) - 1)


@pytest.mark.parametrize("formula", FORMULAS)
def test_layouts(executor, formula, dtype):
    run_layouts(executor, formula, dtype, full=False)


@pytest.mark.slow
@pytest.mark.parametrize("formula", FORMULAS)
def test_all_layouts(executor, formula, dtype):
    run_layouts(executor, formula, dtype, full=True)


PARAMETERS = {
    "per channel": (1, 6, 1, 1),
    "last axis": (1, 1, 1, 5),
    "full": (3, 6, 4, 5),
    "one element": (1, 1, 1, 1),
}


@pytest.mark.parametrize("shape", PARAMETERS.values(), ids=PARAMETERS.keys())
@pytest.mark.parametrize("formula", [f for f in FORMULAS if ELEMENTWISE[f].parameters])
def test_parameters(executor, formula, shape, dtype):
    rng = np.random.default_rng(2)
    x = spread(rng, 360, dtype).reshape(3, 6, 4, 5)
    arrays = operands(formula, x, rng)
    for kind in (dtype, "float32"):
        params: list[Array | float] = [
            spread(rng, int(np.prod(shape)), kind).reshape(shape)
            for _ in ELEMENTWISE[formula].parameters
        ]
        if len(params) == 2 and kind == "float32":
            params[1] = 0.75  # a number beside an array
        run_elementwise(executor, formula, arrays, params, np.empty_like(x))


@pytest.mark.parametrize("pair", (("float16", "float32"), ("float32", "bfloat16")))
def test_arrays_of_another_dtype(executor, pair):
    rng = np.random.default_rng(3)
    dy, x = spread(rng, 300, pair[0]), spread(rng, 300, pair[1])
    run_elementwise(executor, "leaky_relu_backward", [dy, x], [0.25], np.empty_like(x))


# -- sums -----------------------------------------------------------------------------------------

REDUCTIONS = {
    "all": ((3, 4, 50), (1, 1, 1)),
    "per channel": ((4, 6, 35), (1, 6, 1)),
    "last kept": ((70, 33), (1, 33)),
    "first kept": ((5, 300), (5, 1)),
    "two kept": ((4, 3, 5, 7), (4, 1, 5, 1)),
    "middle summed": ((3, 40, 6), (3, 1, 6)),
    "none summed": ((4, 9), (4, 9)),
    "one element": ((1,), (1,)),
    "0-d": ((), ()),
    "many blocks": ((3, 2, 9000), (1, 2, 1)),
    "few long": ((20000,), (1,)),
}


def run_reduce(executor: Executor, formula: str, arrays: list[Array], out: Array) -> Array:
    dtype = str(out.dtype)
    placed = [executor.place(a) for a in arrays]
    result = executor.place(out, blank=True)
    executor.backend.reduce(formula, tuple(a.native for a in placed), result.native, executor.empty)
    total, size = truth.reduce(formula, tuple(arrays), out.shape)
    n = max(2, arrays[0].size // max(1, out.size))
    compute = bounds.compute_dtype(str(arrays[0].dtype))
    u = truth.LONG(2) ** -FORMATS[compute].digits
    allowed = u * size * bounds.row(n) + bounds.stored(total, dtype)
    got = result.numpy()
    check(got, total, allowed, dtype, f"{executor.name} {formula} {dtype} {out.shape}")
    return got


@pytest.mark.parametrize("case", REDUCTIONS)
@pytest.mark.parametrize("formula", SUMS)
def test_sums(executor, formula, case, dtype):
    shape, kept = REDUCTIONS[case]
    rng = np.random.default_rng(4)
    x = spread(rng, int(np.prod(shape)), dtype).reshape(shape)
    arrays = operands(formula, x, rng)
    first = run_reduce(executor, formula, arrays, np.empty(kept, DTYPES[dtype]))
    again = run_reduce(executor, formula, arrays, np.empty(kept, DTYPES[dtype]))
    assert first.tobytes() == again.tobytes()


@pytest.mark.parametrize("formula", SUMS)
def test_sums_of_strided_arrays(executor, formula):
    rng = np.random.default_rng(5)
    x = spread(rng, 6 * 40 * 14, "float32").reshape(6, 40, 14)
    views = [x.transpose(2, 0, 1), x[::2, 3::5, 1:], x[:, :, 3:4]]
    views += [x[::-1, :, ::-1]] if executor.negative_strides else []
    for view in views:
        arrays = operands(formula, view, rng)
        run_reduce(executor, formula, arrays, np.empty((1, view.shape[1], 1), np.float32))
        run_reduce(executor, formula, arrays, np.empty((1, 1, view.shape[2]), np.float32))


@pytest.mark.parametrize("formula", SUMS)
def test_sums_over_nothing_are_zero(executor, formula):
    x = np.empty((3, 0, 2), np.float32)
    arrays = [x] * len(SUMS[formula].reads)
    assert (run_reduce(executor, formula, arrays, np.empty((3, 1, 2), np.float32)) == 0).all()


def test_a_nan_reaches_its_own_sum_only(executor):
    x = np.ones((4, 700), np.float32)
    x[2, 300] = np.nan
    got = run_reduce(executor, "linear_dbias", [x], np.empty((4, 1), np.float32))
    assert np.isnan(got).ravel().tolist() == [False, False, True, False]


# -- rows -----------------------------------------------------------------------------------------

LENGTHS = (1, 2, 3, 7, 31, 33, 255, 257, 1000, 1025, 5003)
LONG = 70001  # beyond what one block keeps
ROW_FORMULAS = list(ROWS)


def row_operands(formula: str, x: Array) -> list[Array]:
    """(x,), or (dy, y) with y from x."""
    if "y" not in ROWS[formula].reads:
        return [x]
    with np.errstate(all="ignore"):
        y = narrow(truth.ROWS[formula.removesuffix("_backward")](x), x.dtype)
    dy = np.random.default_rng(6).standard_normal(x.shape).astype(x.dtype)
    return [dy, y]


def run_rows(
    executor: Executor,
    formula: str,
    arrays: list[Array],
    out: Array | None = None,
    alias: int | None = None,
) -> Array:
    dtype = str(arrays[0].dtype)
    placed = [executor.place(a) for a in arrays]
    target = np.empty(arrays[0].shape, arrays[0].dtype) if out is None else out
    result = executor.place(target, blank=True) if alias is None else placed[alias]
    given = tuple(a.native for a in placed)
    executor.backend.rows(formula, given, result.native, None, executor.empty)
    value = truth.ROWS[formula](*arrays)
    allowed = bounds.rows(formula, dtype, arrays, value)
    got = result.numpy()
    check(got, value, allowed, dtype, f"{executor.name} {formula} {dtype} {value.shape}")
    return got


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("formula", ROW_FORMULAS)
def test_rows(executor, formula, n, dtype):
    x = (np.random.default_rng(7).standard_normal((3, n, 1)) * 4).astype(DTYPES[dtype])
    run_rows(executor, formula, row_operands(formula, x))


noisy = pytest.mark.parametrize("executor", executors("cupy-ptx", "triton-ptx"), indirect=True)


@noisy
@pytest.mark.many
@pytest.mark.parametrize("n", (33, 1000, 5003))
@pytest.mark.parametrize("formula", ROW_FORMULAS)
def test_rows_where_hardware_is_as_inexact_as_documented(executor, formula, n, dtype):
    """As with elementwise formulas: each approximate instruction errs by as much as it may."""
    x = (np.random.default_rng(7).standard_normal((40, n, 1)) * 4).astype(DTYPES[dtype])
    for seed, size in ((1, 1), (2, 1), (3, 8)):
        executor.options.update(noise=1.0, seed=seed)
        if size == 1 or "y" not in ROWS[formula].reads:
            run_rows(executor, formula, row_operands(formula, size * x))


@pytest.mark.parametrize("formula", ROW_FORMULAS)
def test_rows_wider_than_a_block(executor, formula, dtype):
    x = (np.random.default_rng(8).standard_normal((2, LONG, 1)) * 4).astype(DTYPES[dtype])
    run_rows(executor, formula, row_operands(formula, x))


@pytest.mark.parametrize("shape", ((2, 5, 3), (2, 33, 40), (1, 300, 7), (3, 2100, 2), (40, 8, 1)))
@pytest.mark.parametrize("formula", ROW_FORMULAS)
def test_rows_of_another_axis(executor, formula, shape):
    x = (np.random.default_rng(9).standard_normal(shape) * 4).astype(np.float32)
    run_rows(executor, formula, row_operands(formula, x))


def row_views(negative: bool) -> dict[str, Array]:
    x = (np.random.default_rng(10).standard_normal((6, 90, 8)) * 3).astype(np.float32)
    views = {
        "transposed": x.transpose(2, 0, 1),
        "strided": x[::2, 5::7, ::3],
        "misaligned": x.reshape(-1)[1 : 1 + 4 * 301].reshape(4, 301, 1),
        "rows apart": x.reshape(6, 720, 1)[:, :500],
        "broadcast": np.broadcast_to(x[:1, :, :1], (3, 90, 4)),
    }
    if negative:
        views["negative"] = x[::-1, ::-1, ::-2]
    return views


@pytest.mark.parametrize("layout", row_views(True))
@pytest.mark.parametrize("formula", ROW_FORMULAS)
def test_rows_of_any_layout(executor, formula, layout):
    views = row_views(executor.negative_strides)
    if layout not in views:
        return  # torch has no negative strides
    view = views[layout]
    arrays = [view] if "y" not in ROWS[formula].reads else row_operands(formula, view)
    if len(arrays) == 2:  # the incoming gradient in that layout, too
        arrays[0] = np.where(np.isnan(view), 0, view) if layout == "broadcast" else view
    run_rows(executor, formula, arrays)
    if layout != "broadcast":
        run_rows(executor, formula, arrays, out=view)
        run_rows(executor, formula, arrays, alias=0)


def awkward_rows(n: int, dtype: str) -> Array:
    """(rows, n, 1): infinities, NaN, the ends of the range, rows and tiles of -inf."""
    rng = np.random.default_rng(11)
    largest = FORMATS[dtype].largest
    plain = rng.standard_normal(n)
    rows = [plain, np.full(n, -np.inf), np.full(n, 3.0), np.full(n, -largest), np.full(n, largest)]
    for value, where in ((np.inf, n // 2), (np.nan, n - 1), (np.nan, 0), (-np.inf, n // 3)):
        row = plain.copy()
        row[where] = value
        rows.append(row)
    for where in (0, n // 2, n - 1):  # one finite value, all else -inf
        row = np.full(n, -np.inf)
        row[where] = -5.0
        rows.append(row)
    for half, shift in ((np.s_[: n // 2], 0), (np.s_[n // 2 :], -200)):  # whole tiles of -inf
        row = plain + shift
        row[half] = -np.inf
        rows.append(row)
    rows.append(np.where(np.arange(n) % 2, largest, -largest))
    rows.append(plain * 1000)
    return np.stack(rows)[:, :, None].astype(DTYPES[dtype])


@pytest.mark.parametrize("n", (1, 5, 300, 6000))
@pytest.mark.parametrize("formula", ("softmax", "log_softmax"))
def test_awkward_rows(executor, formula, n, dtype):
    x = awkward_rows(n, dtype)
    got = run_rows(executor, formula, [x]).astype(np.float64)
    assert np.isnan(got[1]).all()  # all -inf
    if n > 1:
        one_finite = got[9:12]
        assert not np.isnan(one_finite).any()
    run_rows(executor, formula, [x], alias=0)


@pytest.mark.parametrize("formula", ("softmax_backward", "log_softmax_backward"))
def test_awkward_rows_backward(executor, formula, dtype):
    x = awkward_rows(300, dtype)
    dy, y = row_operands(formula, x)
    run_rows(executor, formula, [dy, y])
    dy[0, 7], dy[1, 9] = np.nan, np.inf
    run_rows(executor, formula, [dy, y])


def test_a_row_does_not_depend_on_its_neighbours(executor, dtype):
    for n in (31, 1000, 5003):
        x = (np.random.default_rng(12).standard_normal((9, n, 1)) * 4).astype(DTYPES[dtype])
        many = run_rows(executor, "softmax", [x])
        for k in (0, 8):
            assert run_rows(executor, "softmax", [x[k : k + 1]]).tobytes() == many[k].tobytes()


# -- cross-entropy --------------------------------------------------------------------------------

CE_SHAPES = ((5, 37, 1), (2, 10, 3), (3, 1000, 1), (2, 5003, 1))
CE_CASES = {
    "plain": {},
    "int32": {"target": "int32"},
    "weight": {"weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "smoothing and weight": {"label_smoothing": 0.25, "weight": True},
    "probabilities": {"target": "probabilities"},
    "probabilities, all": {"target": "probabilities", "weight": True, "label_smoothing": 0.1},
}
IGNORED = -100


def ce_inputs(shape: tuple[int, int, int], dtype: str, case: dict[str, Any]) -> dict[str, Any]:
    rng = np.random.default_rng(13)
    outer, classes, inner = shape
    kind = case.get("target", "int64")
    if kind == "probabilities":
        target = rng.uniform(0.01, 1, shape)
        target = (target / target.sum(1, keepdims=True)).astype(DTYPES[dtype])
    else:
        target = rng.integers(0, classes, (outer, inner)).astype(kind)
        target.flat[1:2] = IGNORED
    loss = bounds.compute_dtype(dtype)
    return {
        "logits": (rng.standard_normal(shape) * 4).astype(DTYPES[dtype]),
        "target": target,
        "weight": rng.uniform(0.25, 2, classes).astype(loss) if case.get("weight") else None,
        "label_smoothing": case.get("label_smoothing", 0.0),
        "z_loss": case.get("z_loss", 0.0),
        "softcap": case.get("softcap", 0.0),
        "scale": rng.standard_normal((outer, inner)).astype(loss),
    }


class Losses:
    """The three kernels of cross-entropy on one input, each compared with the truth."""

    def __init__(self, executor: Executor, inputs: dict[str, Any]):
        self.executor, self.inputs = executor, inputs
        self.logits, self.target = inputs["logits"], inputs["target"]
        self.dtype = str(self.logits.dtype)
        self.loss_dtype = bounds.compute_dtype(self.dtype)
        self.options = {
            "ignore_index": inputs.get("ignore_index", IGNORED),
            "label_smoothing": inputs["label_smoothing"],
            "z_loss": inputs["z_loss"],
            "softcap": inputs["softcap"],
        }
        self.n = self.logits.shape[1]
        self.found: dict[str, float] = {}  # of its bound, the largest share that each result took
        self.truth = self._truth()
        self.plain = self.target.ndim == 2 and not inputs["label_smoothing"]
        outer, _, inner = self.logits.shape
        self.loss = executor.place(np.empty((outer, inner), self.loss_dtype), blank=True)
        self.lse = executor.place(np.empty((outer, inner), self.loss_dtype), blank=True)
        self.shared = [
            None if x is None else executor.place(x).native
            for x in (self.logits, self.target, inputs["weight"])
        ]

    def what(self, name: str) -> str:
        return f"{self.executor.name} {name} {self.dtype} {self.logits.shape} {self.options}"

    def _truth(self, lse: Array | None = None) -> dict[str, Array]:
        weight = self.inputs["weight"]
        return truth.cross_entropy(self.logits, self.target, weight, **self.options, lse=lse)

    def _allowed(self, t: dict[str, Array], from_lse: bool = False) -> dict[str, Array]:
        added = {name: self.options[name] for name in ("z_loss", "softcap")}
        family = self.executor.family
        return bounds.cross_entropy(t, family, self.dtype, self.plain, **added, from_lse=from_lse)

    def _check_row(self, name: str, got: Array) -> None:
        value, allowed = self.truth[name], self._allowed(self.truth)[name]
        allowed = allowed + bounds.stored(value, self.loss_dtype)
        share = check(got, value, allowed, self.loss_dtype, self.what(name))
        self.found[name] = max(share, self.found.get(name, 0.0))

    def forward(self) -> None:
        self.executor.backend.cross_entropy(
            *self.shared,
            self.loss.native,
            self.lse.native,
            **self.options,
            empty=self.executor.empty,
        )
        self._check_row("loss", self.loss.numpy())
        self._check_row("lse", self.lse.numpy())

    def _check_gradient(self, got: Array, scale: Array, lse: Array | None = None) -> None:
        """lse: as it was stored, where the gradient was made from it."""
        t = self.truth if lse is None else self._truth(lse)
        s = truth.long(scale)[:, None]
        with np.errstate(all="ignore"):
            gradient = s * t["gradient"]
            error = np.abs(s) * self._allowed(t, lse is not None)["gradient"]
        if self.target.ndim == 2:
            ignored, _ = truth.valid_target(self.target, self.n, self.options["ignore_index"])
            gradient = np.where(ignored[:, None], 0, gradient)
            error = np.where(ignored[:, None], 0, error)
        allowed = error + bounds.stored(gradient, self.dtype)
        share = check(got, gradient, allowed, self.dtype, self.what("gradient"))
        self.found["gradient"] = max(share, self.found.get("gradient", 0.0))

    def backward(self, alias: bool = False, scale: Array | None = None) -> None:
        """From the lse that is stored, be it ours or the truth's."""
        scale = self.inputs["scale"] if scale is None else scale
        lse = np.ascontiguousarray(self.truth["lse"], self.loss_dtype)
        logits = self.executor.place(self.logits)
        result = logits if alias else self.executor.place(np.empty_like(self.logits), blank=True)
        self.executor.backend.cross_entropy_backward(
            self.executor.place(scale).native,
            logits.native,
            *self.shared[1:],
            self.executor.place(lse).native,
            result.native,
            **self.options,
            empty=self.executor.empty,
        )
        self._check_gradient(result.numpy(), scale, lse)

    def with_grad(self, alias: bool = False, scale: Array | None = None) -> None:
        scale = self.inputs["scale"] if scale is None else scale
        logits = self.executor.place(self.logits)
        result = logits if alias else self.executor.place(np.empty_like(self.logits), blank=True)
        self.loss = self.executor.place(self.loss.before, blank=True)
        self.loss = self.executor.place(np.empty(scale.shape, self.loss_dtype), blank=True)
        self.executor.backend.cross_entropy_with_grad(
            self.executor.place(scale).native,
            logits.native,
            *self.shared[1:],
            self.loss.native,
            result.native,
            **self.options,
            empty=self.executor.empty,
        )
        self._check_row("loss", self.loss.numpy())
        self._check_gradient(result.numpy(), scale)


@pytest.mark.many
@pytest.mark.parametrize("shape", CE_SHAPES, ids=str)
@pytest.mark.parametrize("case", CE_CASES)
def test_cross_entropy(executor, case, shape, dtype):
    losses = Losses(executor, ce_inputs(shape, dtype, CE_CASES[case]))
    losses.forward()
    losses.backward()
    losses.with_grad()
    losses.backward(alias=True)
    losses.with_grad(alias=True)


CAPS = {
    "z_loss": {"z_loss": 0.01},
    "softcap": {"softcap": 5.0},
    "both": {"z_loss": 0.3, "softcap": 30.0},
    "all at the cap": {"softcap": 2.0**-10},
    "none near the cap": {"z_loss": 0.01, "softcap": 1e6},
}
CAPPED = ("plain", "weight", "smoothing and weight", "probabilities, all")


def run_losses(executor: Executor, inputs: dict[str, Any]) -> Losses:
    losses = Losses(executor, inputs)
    with np.errstate(all="ignore"):
        losses.forward()
        losses.backward()
        losses.with_grad(alias=True)
    return losses


def slow_but(*quick: Any, of: Sequence[Any]) -> list[Any]:
    return [pytest.param(v, marks=() if v in quick else pytest.mark.slow, id=str(v)) for v in of]


@pytest.mark.long
@noisy
@pytest.mark.many
@pytest.mark.parametrize(
    "n",
    [37, pytest.param(1000, marks=pytest.mark.deep), pytest.param(5003, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("case", CAPPED)
def test_losses_where_hardware_is_as_inexact_as_documented(executor, case, n, dtype):
    for seed, cap in enumerate(({}, CAPS["both"], CAPS["softcap"])):
        executor.options.update(noise=1.0, seed=seed)
        run_losses(executor, ce_inputs((40, n, 1), dtype, CE_CASES[case] | cap))


def awkward_logits(n: int, dtype: str, case: dict[str, Any]) -> dict[str, Any]:
    """Rows of infinities, of NaN, of one finite value, of numbers at the ends of the range."""
    logits = awkward_rows(n, dtype)
    if "label_smoothing" in case:
        logits[-2] /= 2  # -largest beside largest: their difference is infinite in float32
    return ce_inputs(logits.shape, dtype, case) | {"logits": logits}


@pytest.mark.many
@pytest.mark.parametrize(
    "shape",
    [
        (4, 37, 1),
        pytest.param((2, 10, 3), marks=pytest.mark.deep),
        pytest.param((2, 1033, 1), marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("case", slow_but("smoothing and weight", of=CAPPED))
def test_z_loss_and_softcap(executor, case, shape, dtype):
    for cap in ({}, *CAPS.values()):
        options = CE_CASES[case] | cap
        run_losses(executor, ce_inputs(shape, dtype, options))
        if shape[2] == 1:
            inputs = awkward_logits(shape[1], dtype, options)
            loss = run_losses(executor, inputs).loss.numpy()
            if "softcap" in cap:  # infinities are numbers then
                missing = np.isnan(truth.long(inputs["logits"])).any(1)
                assert (np.isnan(loss) == missing).all()


@pytest.mark.parametrize("case", ("plain", "probabilities"))
def test_cross_entropy_of_any_layout(executor, case):
    inputs = ce_inputs((3, 40, 5), "float32", CE_CASES[case])
    logits = inputs["logits"]
    wide = np.empty((5, 3, 81), np.float32)
    wide[:, :, 1::2] = logits.transpose(2, 0, 1)
    inputs["logits"] = wide[:, :, 1::2].transpose(1, 2, 0)
    inputs["target"] = np.ascontiguousarray(inputs["target"].swapaxes(0, -1)).swapaxes(0, -1)
    inputs["scale"] = np.broadcast_to(np.float32(0.125), (3, 5))
    losses = Losses(executor, inputs)
    losses.forward()
    losses.backward()
    losses.with_grad()


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
def test_targets_out_of_range_are_nan_and_read_nothing(executor, smoothing):
    if executor.name == "numpy":
        return  # the public function raises IndexError before NumPy is asked
    inputs = ce_inputs((8, 11, 1), "float32", {"weight": True, "label_smoothing": smoothing})
    inputs["target"] = np.array([[0, 11, -1, 10, 2**40, -(2**40), IGNORED, 3]]).T.copy()
    losses = Losses(executor, inputs)
    losses.forward()
    losses.backward()
    losses.with_grad()
    assert np.isnan(losses.loss.numpy()).ravel().tolist() == [
        False, True, True, False, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("ignore_index", (-100, 3, 0))
def test_ignored_rows_are_zero_whatever_they_hold(executor, ignore_index):
    inputs = ce_inputs((6, 9, 1), "float32", {"label_smoothing": 0.1})
    inputs["ignore_index"] = ignore_index
    inputs["target"] = np.array([[1, ignore_index, ignore_index, ignore_index, 2, 1]]).T.copy()
    inputs["logits"][1] = np.nan
    inputs["logits"][2] = np.inf
    inputs["scale"][3], inputs["scale"][1] = np.nan, np.inf
    losses = Losses(executor, inputs)
    with np.errstate(all="ignore"):
        losses.with_grad()
        losses.backward()
    assert (losses.loss.numpy().ravel()[1:4] == 0).all()


def test_minus_infinity_among_the_logits(executor, dtype):
    inputs = ce_inputs((4, 300, 1), dtype, {})
    inputs["target"] = np.array([[5, 250, 7, 9]]).T.copy()
    inputs["logits"][0, 100:] = -np.inf
    inputs["logits"][1, :200] = -np.inf  # the first tiles
    inputs["logits"][2] = -np.inf
    inputs["logits"][3, 9] = -np.inf  # the target itself: an infinite loss
    losses = Losses(executor, inputs)
    losses.forward()
    losses.with_grad()
    assert np.isfinite(losses.loss.numpy()[:2]).all()


NO_SHARE = {  # the last class weighs nothing, or its probability is 0: (target, label_smoothing)
    "probabilities": ("probabilities", 0.0),
    "smoothing": ("another", 0.1),
    "its own row": ("last", 0.0),
    "its own row and smoothing": ("last", 0.1),
}


@pytest.mark.many
@pytest.mark.parametrize("n", (3, 5003))
@pytest.mark.parametrize("case", NO_SHARE)
def test_a_class_without_a_share_counts_for_nothing(executor, case, n, dtype):
    """At a logit of -inf too; what makes a row NaN makes its loss NaN all the same."""
    kind, smoothing = NO_SHARE[case]
    inputs = ce_inputs((4, n, 1), dtype, {"weight": True, "label_smoothing": smoothing})
    logits, weight, target = inputs["logits"], inputs["weight"], np.zeros((4, n, 1))
    logits[:, 0], logits[:, 1], logits[:, -1] = 0, 1, -np.inf
    logits[1], logits[2, 1], logits[3, 0] = -np.inf, np.inf, np.nan
    weight[-1] = 0
    if kind == "probabilities":
        inputs["weight"], target[:, :2] = None, 0.5
        inputs["target"] = target.astype(DTYPES[dtype])
    else:
        inputs["target"] = np.full((4, 1), n - 1 if kind == "last" else 0)
    losses = Losses(executor, inputs)
    with np.errstate(all="ignore"):
        losses.forward()
        losses.with_grad()
        losses.backward()
    assert np.isnan(losses.loss.numpy()).ravel().tolist() == [False, True, True, True]


@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("kind", ("int32", "int64"))
def test_target_weight(executor, kind, weighted, dtype):
    loss = bounds.compute_dtype(dtype)
    weight = np.arange(1, 8).astype(DTYPES[dtype]) if weighted else None
    target = np.array([[0, 6, 7], [IGNORED, -1, 3]], kind)
    want = np.array([[1, 7, 0], [0, 0, 4]] if weighted else [[1, 1, 0], [0, 0, 1]], loss)
    out = executor.place(np.empty((2, 3), loss), blank=True)
    native = None if weight is None else executor.place(weight).native
    executor.backend.target_weight(
        executor.place(target).native, native, out.native, classes=7, ignore_index=IGNORED
    )
    assert (out.numpy() == want).all()


# -- what Triton's launches take for large arrays, on small ones ----------------------------------

triton_only = pytest.mark.parametrize(
    "executor", executors("triton-ptx", "triton-interpreter", "triton-cuda"), indirect=True
)


@pytest.fixture
def launched(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """(grid, constexprs) of each launch from now on."""
    seen, launch = [], executor.backend.launch

    def spy(plan: Any, args: Any) -> None:
        seen.append((plan.grid, plan.constexprs))
        launch(plan, args)

    monkeypatch.setattr(executor.backend, "launch", spy)
    return seen


@triton_only
def test_offsets_of_64_bits(executor, launched, monkeypatch):
    rng = np.random.default_rng(14)
    x = spread(rng, 2310, "float32").reshape(5, 6, 7, 11)
    full, channels = spread(rng, 2310, "float32").reshape(x.shape), x[:1, :, :1, :1].copy()
    for params in ([0.3, channels], [full, 0.75], [channels, full]):
        offsets = []
        for narrow, period in ((2**31, 2**31), (0, 2**31), (0, 0)):
            with monkeypatch.context() as patch:
                patch.setattr(executor.backend, "NARROW", narrow)
                patch.setattr(executor.backend, "PERIOD", period)
                patch.setattr(executor.backend, "_plans", {})
                run_elementwise(executor, "linear", [x], params, np.empty_like(x))
            offsets.append(str(launched[-1][1]["INDEX"]))
        assert offsets == ["int32", "int64", "int64"]


@pytest.mark.parametrize("executor", executors("cupy-ptx", "cupy-cuda"), indirect=True)
def test_offsets_of_64_bits_in_cuda(executor, monkeypatch):
    """As beyond 2^30 elements, where channels are counted in 64 bits."""
    from gpuact.kernels.cupy import elementwise

    widths: list[int] = []
    build = elementwise.packed_kernel

    def spy(*args: Any) -> Any:
        widths.append(args[5])
        return build(*args)

    monkeypatch.setattr(elementwise, "packed_kernel", spy)
    rng = np.random.default_rng(14)
    x = spread(rng, 2310, "float32").reshape(5, 6, 7, 11)
    full, channels = spread(rng, 2310, "float32").reshape(x.shape), x[:1, :, :1, :1].copy()
    for narrow in (elementwise.NARROW, 0):
        monkeypatch.setattr(elementwise, "NARROW", narrow)
        for params in ([0.3, channels], [full, 0.75], [channels, full]):
            elementwise.plan.cache_clear()
            run_elementwise(executor, "linear", [x], params, np.empty_like(x))
    elementwise.plan.cache_clear()
    assert widths == [32] * 3 + [64] * 3


def assert_few_instructions(
    executor: Executor, formula: str, shape: Any, dtype: str, limit: float, record: Any
) -> None:
    """Instructions of an element, executed by all threads of a call; `executor` counts."""
    x = spread(np.random.default_rng(3), prod(shape), dtype).reshape(shape)
    if formula == "cross_entropy_with_grad":
        Losses(executor, ce_inputs(shape, dtype, {})).with_grad()
    else:
        run_rows(executor, formula, row_operands(formula, x))
    found = sum(sum(s.instructions.values()) for s in executor.stats) / x.size
    row = (executor.name, formula, str(shape), dtype, f"{found:.1f}", str(limit))
    columns = ("executor", "formula", "shape", "dtype", "instructions an element", "at most")
    record("table", ("classes along axis 1", columns, row))
    assert 0.6 * limit < found <= limit


@triton_only
def test_grids_of_three_dimensions(executor, launched, monkeypatch):
    """As where the second count exceeds CUDA's 65535; the last program has nothing to do.

    So many rows lie beside each other that none of another outer index shares their program.
    """
    monkeypatch.setattr(executor.backend._kernels().rows, "GRID_Y", 2)
    rng = np.random.default_rng(15)
    x = spread(rng, 5 * 33 * 65, "float32").reshape(5, 33, 65)
    for formula in ROW_FORMULAS:
        run_rows(executor, formula, row_operands(formula, x))
    losses = Losses(executor, ce_inputs((5, 10, 129), "float32", CE_CASES["smoothing and weight"]))
    losses.forward()
    losses.backward()
    losses.with_grad()
    columns = spread(rng, 1100 * 80, "float32").reshape(1100, 80)
    run_reduce(executor, "linear_dscale", [columns, columns], np.empty((1, 80), np.float32))
    assert len(launched) == len(ROW_FORMULAS) + 3 + 2
    assert {grid[1:] for grid, _ in launched[:-1]} == {(2, 3)}
