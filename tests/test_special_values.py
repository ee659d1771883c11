"""What every function gives for NaN, infinities, zeros, subnormals and the ends of the range.

The tables are the contract, each cell a result in a word; they hold for every library, backend and
dtype, the sign of a zero included. No tolerance applies but where a cell says ≈.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import gpuact
from gpuact.catalogue import FUNCTIONS
from tests import bounds, harness, truth
from tests.bounds import DTYPES, FORMATS, check, compute_dtype
from tests.harness import Executor, executors
from tests.libraries import LIBRARIES, Library, libraries
from tests.truth import Array

# -- words ----------------------------------------------------------------------------------------
# Of a dtype, tiny and sub are the smallest and the largest subnormal number, min and max the ends
# of its normal ones, 1- and 1+ the neighbours of 1. x, dy, y and p are what is computed from, p
# the first parameter; a product of two is computed as the function computes, and rounded at the
# store. ≈ is the truth within the rule of tests/bounds.py, ≈1/3 that number within it.

CONSTANTS = {"1/3": 1 / 3, "2/3": 2 / 3, "ln2": np.log(2.0), "ln3": np.log(3.0)}


def number(word: str, dtype: str) -> float:
    form = FORMATS[dtype]
    least, tiny = 2.0**form.least, 2.0 ** (form.least - form.digits + 1)
    named = CONSTANTS | {"tiny": tiny, "sub": least - tiny, "min": least, "max": form.largest}
    named |= {"1-": 1 - 2.0**-form.digits, "1+": 1 + 2.0 ** (1 - form.digits)}
    size = word.removeprefix("-")
    value = named[size] if size in named else float(size)
    return -value if word.startswith("-") else value


def numbers(words: Sequence[str], dtype: str) -> Array:
    return np.array([number(word, dtype) for word in words]).astype(DTYPES[dtype])


def nearly(cells: Sequence[str], value: Array, dtype: str) -> Array:
    """The truth, or the number that a cell gives after ≈."""
    given = [number(cell[1:], dtype) if cell[:1] == "≈" != cell else np.nan for cell in cells]
    return np.where(np.isnan(given), value.ravel(), given).reshape(value.shape)


def meant(word: str, dtype: str, operands: dict[str, Any]) -> Any:
    """The number that a cell stands for; of ≈ alone, any."""
    word = word.removeprefix("≈") or "0"
    sign, name = (-1, word[1:]) if word in {f"-{known}" for known in operands} else (1, word)
    if not set(name.split("·")) <= set(operands):
        return numbers([word], dtype)[0]
    wide = [operands[part].astype(compute_dtype(dtype)) for part in name.split("·")]
    with np.errstate(all="ignore"):
        return (sign * np.prod(wide, dtype=wide[0].dtype)).astype(DTYPES[dtype])


def may_flush(family: str, dtype: str, value: Array) -> Array:
    """Where a result may be a zero of its sign instead: below 2^-126, from kernels for GPUs.

    In float32 and bfloat16 only; and no operand counts as 0: no kink moves, and inf·tiny is inf.
    """
    kernel = family != "numpy" and dtype in ("float32", "bfloat16")
    return kernel & (np.abs(truth.long(value)) < bounds.FLUSHED)


def unreadable(family: str, dtype: str, operands: Sequence[Array]) -> Array:
    """Triton's interpreter reads other numbers for the subnormal ones of bfloat16; no GPU does."""
    wide = [np.abs(truth.long(a)) for a in operands]
    subnormal = np.any([(a > 0) & (a < 2.0 ** FORMATS[dtype].least) for a in wide], 0)
    return subnormal & ((family, dtype) == ("interpreter", "bfloat16"))


def same(got: Array, want: Array, family: str, signed: bool = True) -> Array:
    """Which elements are equal bit by bit, but for NaN, what may be flushed and unsigned zeros."""
    got, want = (np.ascontiguousarray(a) for a in (got, want))
    bits = f"u{want.dtype.itemsize}"
    zeros = (got == 0) & ((want == 0) | may_flush(family, str(want.dtype), want))
    if signed:
        zeros &= np.signbit(got) == np.signbit(want)
    return (got.view(bits) == want.view(bits)) | (np.isnan(got) & np.isnan(want)) | zeros


def agree(
    got: Array,
    cells: Sequence[str],
    named: dict[str, Array],
    family: str,
    what: str,
    signed: bool = True,
) -> None:
    """Every element is what its cell says; named: the operands, one element a cell."""
    dtype = str(got.dtype)
    at = [{name: a[k] for name, a in named.items()} for k in range(len(cells))]
    want = np.array([meant(cell, dtype, o) for cell, o in zip(cells, at, strict=True)], got.dtype)
    free = np.array([cell.startswith("≈") for cell in cells])
    free |= unreadable(family, dtype, [a for a in named.values() if a.dtype == got.dtype])
    wrong = []
    for k in np.flatnonzero(~(same(got, want, family, signed) | free)):
        given = ", ".join(f"{name} = {value}" for name, value in at[k].items())
        wrong.append(f"of {given}: {got[k]}, not {cells[k]}")
    assert not wrong, f"{what} {dtype}: " + "; ".join(wrong)


# -- who computes ---------------------------------------------------------------------------------

Compute = Callable[..., Iterator[Array]]  # formula, arrays, numbers → results
Call = Callable[..., Any]

# formula → the public functions that compute it, from its arrays and parameters
PUBLIC: dict[str, tuple[Call, ...]] = {
    "linear": (gpuact.linear,),
    "linear_backward": (lambda dy, scale: gpuact.linear_backward(dy, dy, scale, 0.0)[0],),
    "linear_derivative": (gpuact.linear_derivative,),
    "leaky_relu": (gpuact.leaky_relu, gpuact.prelu),
    "leaky_relu_backward": (
        gpuact.leaky_relu_backward,
        lambda dy, x, weight: gpuact.prelu_backward(dy, x, weight)[0],
    ),
    "leaky_relu_derivative": (gpuact.leaky_relu_derivative, gpuact.prelu_derivative),
    **{
        name + which: (getattr(gpuact, name + which),)
        for name in ("sigmoid", "tanh", "relu")
        for which in ("", "_backward", "_derivative")
    },
}


def by_library(lib: Library) -> Compute:
    """The public functions; prelu gets its slope as an array as well."""

    def compute(formula: str, arrays: list[Array], params: list[float]) -> Iterator[Array]:
        x = arrays[0]
        native = [lib.place(a).native for a in arrays]
        calls = [(function, params) for function in PUBLIC[formula]]
        if formula.startswith("leaky_relu"):
            slopes = np.full(x.shape, params[0]).astype(compute_dtype(str(x.dtype)))
            calls.append((PUBLIC[formula][-1], [lib.place(slopes).native]))
        for function, given in calls:
            yield lib.numpy(function(*native, *given), native[0], x.shape, str(x.dtype))

    return compute


def by_executor(executor: Executor) -> Compute:
    """A backend's formula, by its host code and its compiled instructions."""

    def compute(formula: str, arrays: list[Array], params: list[float]) -> Iterator[Array]:
        native = tuple(executor.place(a).native for a in arrays)
        out = executor.place(np.empty_like(arrays[0]), blank=True)
        executor.backend.elementwise(formula, native, tuple(params), out.native, executor.empty)
        yield out.numpy()

    return compute


OTHERS = [name for name in LIBRARIES if name != "torch-interpreter"]
# Every dtype on every library; in Triton's interpreter, which is slow, the usual part.
every = pytest.mark.parametrize(
    "lib",
    [
        *(pytest.param(name, marks=(*LIBRARIES[name][1], pytest.mark.every)) for name in OTHERS),
        *libraries("torch-interpreter"),
    ],
    indirect=True,
)


@pytest.fixture(params=executors("cupy-ptx", "triton-ptx"))
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Executor:
    return harness.make(request.param, monkeypatch)


# -- of one array ---------------------------------------------------------------------------------
# x across (dy of linear_backward), parameters down.

OF_ONE = """
x    | nan  -inf -max -1   -min -sub -tiny -0   0    tiny sub  min  1-   1    1+   max  inf

sigmoid
     | nan  0    0    ≈    0.5  0.5  0.5   0.5  0.5  0.5  0.5  0.5  ≈    ≈    ≈    1    1
sigmoid_derivative
     | nan  0    0    ≈    0.25 0.25 0.25  0.25 0.25 0.25 0.25 0.25 ≈    ≈    ≈    0    0
tanh
     | nan  -1   -1   ≈    x    x    x     -0   0    x    x    x    ≈    ≈    ≈    1    1
tanh_derivative
     | nan  0    0    ≈    1    1    1     1    1    1    1    1    ≈    ≈    ≈    0    0
relu
     | nan  0    0    0    0    0    0     0    0    x    x    x    x    x    x    x    inf
relu_derivative
     | nan  0    0    0    0    0    0     0    0    1    1    1    1    1    1    1    1

leaky_relu
0.1  | nan  -inf p·x  p·x  p·x  p·x  -0    -0   0    x    x    x    x    x    x    x    inf
1    | nan  -inf x    x    x    x    x     -0   0    x    x    x    x    x    x    x    inf
-2   | nan  inf  inf  2    p·x  p·x  p·x   0    -0   x    x    x    x    x    x    x    inf
0    | nan  nan  -0   -0   -0   -0   -0    -0   0    x    x    x    x    x    x    x    inf
inf  | nan  -inf -inf -inf -inf -inf -inf  nan  nan  x    x    x    x    x    x    x    inf
nan  | nan  nan  nan  nan  nan  nan  nan   nan  nan  x    x    x    x    x    x    x    inf
leaky_relu_derivative
0.1  | nan  p    p    p    p    p    p     p    p    1    1    1    1    1    1    1    1
-2   | nan  -2   -2   -2   -2   -2   -2    -2   -2   1    1    1    1    1    1    1    1
0    | nan  0    0    0    0    0    0     0    0    1    1    1    1    1    1    1    1
inf  | nan  inf  inf  inf  inf  inf  inf   inf  inf  1    1    1    1    1    1    1    1
nan  | nan  nan  nan  nan  nan  nan  nan   nan  nan  1    1    1    1    1    1    1    1

linear
1 0  | nan  -inf x    x    x    x    x     0    0    x    x    x    x    x    x    x    inf
-2 0 | nan  inf  inf  2    p·x  p·x  p·x   0    0    p·x  p·x  p·x  p·x  -2   p·x  -inf -inf
0 1  | nan  nan  1    1    1    1    1     1    1    1    1    1    1    1    1    1    nan
0 0  | nan  nan  0    0    0    0    0     0    0    0    0    0    0    0    0    0    nan
inf 1| nan  -inf -inf -inf -inf -inf -inf  nan  nan  inf  inf  inf  inf  inf  inf  inf  inf
1 inf| nan  nan  inf  inf  inf  inf  inf   inf  inf  inf  inf  inf  inf  inf  inf  inf  inf
nan 1| nan  nan  nan  nan  nan  nan  nan   nan  nan  nan  nan  nan  nan  nan  nan  nan  nan
0 nan| nan  nan  nan  nan  nan  nan  nan   nan  nan  nan  nan  nan  nan  nan  nan  nan  nan
linear_derivative
-2   | nan  -2   -2   -2   -2   -2   -2    -2   -2   -2   -2   -2   -2   -2   -2   -2   -2
0    | nan  0    0    0    0    0    0     0    0    0    0    0    0    0    0    0    0
inf  | nan  inf  inf  inf  inf  inf  inf   inf  inf  inf  inf  inf  inf  inf  inf  inf  inf
nan  | nan  nan  nan  nan  nan  nan  nan   nan  nan  nan  nan  nan  nan  nan  nan  nan  nan
linear_backward
-2   | nan  inf  inf  2    p·x  p·x  p·x   0    -0   p·x  p·x  p·x  p·x  -2   p·x  -inf -inf
0    | nan  nan  -0   -0   -0   -0   -0    -0   0    0    0    0    0    0    0    0    nan
inf  | nan  -inf -inf -inf -inf -inf -inf  nan  nan  inf  inf  inf  inf  inf  inf  inf  inf
nan  | nan  nan  nan  nan  nan  nan  nan   nan  nan  nan  nan  nan  nan  nan  nan  nan  nan
"""


def of_one() -> Iterator[tuple[str, list[str], list[str], list[str]]]:
    """(formula, parameters, x, cells) of each row."""
    header, *lines = filter(None, OF_ONE.splitlines())
    points, formula = header.split("|")[1].split(), ""
    for line in lines:
        first, _, cells = line.partition("|")
        if cells:
            yield formula, first.split(), points, cells.split()
        else:
            formula = first


# -- of two arrays --------------------------------------------------------------------------------
# dy down, beside the formula's parameter across what forward stored: y of sigmoid, tanh and relu,
# x of leaky_relu.

OF_TWO = """
sigmoid_backward
         | 0    tiny min  0.5   1-   1    nan
nan      | nan  nan  nan  nan   nan  nan  nan
inf      | nan  inf  inf  inf   inf  nan  nan
-inf     | nan  -inf -inf -inf  -inf nan  nan
1        | 0    y    y    0.25  ≈    0    nan
-1       | -0   -y   -y   -0.25 ≈    -0   nan
0        | 0    0    0    0     0    0    nan
-0       | -0   -0   -0   -0    -0   -0   nan
min      | 0    0    0    ≈     0    0    nan
max      | 0    ≈    ≈    ≈     ≈    0    nan

tanh_backward
         | -1   -0.5 -0   0     tiny min  0.5  1-   1    nan
nan      | nan  nan  nan  nan   nan  nan  nan  nan  nan  nan
inf      | nan  inf  inf  inf   inf  inf  inf  inf  nan  nan
-inf     | nan  -inf -inf -inf  -inf -inf -inf -inf nan  nan
1        | 0    0.75 1    1     1    1    0.75 ≈    0    nan
-1       | -0   ≈    -1   -1    -1   -1   ≈    ≈    -0   nan
0        | 0    0    0    0     0    0    0    0    0    nan
-0       | -0   -0   -0   -0    -0   -0   -0   -0   -0   nan
tiny     | 0    ≈    dy   dy    dy   dy   ≈    0    0    nan
max      | 0    ≈    dy   dy    dy   dy   ≈    ≈    0    nan

relu_backward
         | -inf -1   -tiny -0   0    tiny min  1    inf  nan
nan      | 0    0    0     0    0    nan  nan  nan  nan  nan
inf      | 0    0    0     0    0    inf  inf  inf  inf  inf
-inf     | 0    0    0     0    0    -inf -inf -inf -inf -inf
-1       | 0    0    0     0    0    -1   -1   -1   -1   -1
-0       | 0    0    0     0    0    -0   -0   -0   -0   -0
tiny     | 0    0    0     0    0    dy   dy   dy   dy   dy
max      | 0    0    0     0    0    dy   dy   dy   dy   dy

leaky_relu_backward -2
         | -inf -1   -tiny -0   0    tiny min  1    inf  nan
nan      | nan  nan  nan   nan  nan  nan  nan  nan  nan  nan
inf      | -inf -inf -inf  -inf -inf inf  inf  inf  inf  -inf
1        | -2   -2   -2    -2   -2   1    1    1    1    -2
0        | -0   -0   -0    -0   -0   0    0    0    0    -0
tiny     | p·dy p·dy p·dy  p·dy p·dy dy   dy   dy   dy   p·dy
max      | -inf -inf -inf  -inf -inf dy   dy   dy   dy   -inf

leaky_relu_backward 0
         | -inf -1   -tiny -0   0    tiny min  1    inf  nan
nan      | nan  nan  nan   nan  nan  nan  nan  nan  nan  nan
inf      | nan  nan  nan   nan  nan  inf  inf  inf  inf  nan
-1       | -0   -0   -0    -0   -0   -1   -1   -1   -1   -0
0        | 0    0    0     0    0    0    0    0    0    0

leaky_relu_backward inf
         | -inf -1   -tiny -0   0    tiny min  1    inf  nan
nan      | nan  nan  nan   nan  nan  nan  nan  nan  nan  nan
-1       | -inf -inf -inf  -inf -inf -1   -1   -1   -1   -inf
0        | nan  nan  nan   nan  nan  0    0    0    0    nan
tiny     | inf  inf  inf   inf  inf  dy   dy   dy   dy   inf

leaky_relu_backward nan
         | -inf -1   -tiny -0   0    tiny min  1    inf  nan
1        | nan  nan  nan   nan  nan  1    1    1    1    nan
0        | nan  nan  nan   nan  nan  0    0    0    0    nan
"""

# The terms of a parameter's gradient: x across, and no sign where the sum is 0.
SUMMED = """
linear_dscale
         | -inf -1   -tiny 0    tiny 1    max  inf  nan
nan      | nan  nan  nan   nan  nan  nan  nan  nan  nan
inf      | -inf -inf -inf  nan  inf  inf  inf  inf  nan
1        | -inf -1   x     0    x    1    x    inf  nan
max      | -inf -max x·dy  0    x·dy max  inf  inf  nan
0        | nan  0    0     0    0    0    0    nan  nan

linear_dbias
         | -inf -1   -tiny 0    tiny 1    max  inf  nan
nan      | nan  nan  nan   nan  nan  nan  nan  nan  nan
inf      | inf  inf  inf   inf  inf  inf  inf  inf  inf
tiny     | dy   dy   dy    dy   dy   dy   dy   dy   dy
max      | max  max  max   max  max  max  max  max  max

prelu_dweight
         | -inf -1   -tiny 0    tiny 1    max  inf  nan
nan      | nan  nan  nan   nan  0    0    0    0    nan
inf      | -inf -inf -inf  nan  0    0    0    0    nan
1        | -inf -1   x     0    0    0    0    0    nan
max      | -inf -max x·dy  0    0    0    0    0    nan
0        | nan  0    0     0    0    0    0    0    nan
"""


@dataclass
class Grid:
    """A table of OF_TWO or SUMMED: every dy with every x or y."""

    formula: str
    params: list[str]
    stored: list[str]
    dy: list[str] = field(default_factory=list)  # one a cell
    cells: list[str] = field(default_factory=list)

    def arrays(self, dtype: str) -> list[Array]:
        across = numbers(self.stored, dtype)
        return [numbers(self.dy, dtype), np.tile(across, len(self.dy) // len(across))]


def grids(text: str) -> Iterator[Grid]:
    for table in text.strip().split("\n\n"):
        title, header, *rows = table.splitlines()
        formula, *params = title.split()
        grid = Grid(formula, params, header.split("|")[1].split())
        for row in rows:
            dy, cells = row.split("|")
            grid.dy += [dy.strip()] * len(cells.split())
            grid.cells += cells.split()
        yield grid


def test_the_tables_are_complete():
    functions = [f for f in FUNCTIONS.values() if f.kind == "elementwise"]
    passes = [p for f in functions for p in (f.forward, f.backward, f.slope) if p is not None]
    tables = {formula for formula, *_ in of_one()} | {grid.formula for grid in grids(OF_TWO)}
    assert tables == set(PUBLIC) == {p.formula for p in passes}
    summed = {p.formula for f in functions for p in f.sums.values()}
    assert {grid.formula for grid in grids(SUMMED)} == summed
    for _, _, points, cells in of_one():
        assert len(points) == len(cells)


def cases(formula: str, dtype: str) -> Iterator[tuple[list[str], dict[str, Array], list[str]]]:
    """(parameters, the arrays by name, cells) of each call of a formula."""
    for of, params, points, cells in of_one():
        if of == formula:
            yield params, {"x": numbers(points, dtype)}, cells
    for grid in grids(OF_TWO):
        if grid.formula == formula:
            dy, stored = grid.arrays(dtype)
            name = "x" if formula == "leaky_relu_backward" else "y"
            yield grid.params, {"dy": dy, name: stored}, grid.cells


def verify(compute: Compute, family: str, formula: str, dtype: str) -> None:
    for words, named, cells in cases(formula, dtype):
        what = " ".join([formula, *words, family])
        params, arrays = [number(word, dtype) for word in words], list(named.values())
        exact = [np.asarray(p).astype(compute_dtype(dtype)) for p in params]
        value = truth.elementwise(formula, *arrays, *exact)
        allowed = bounds.elementwise(formula, family, dtype, [*arrays, *exact], value)
        near = np.array([cell.startswith("≈") for cell in cells])
        near &= ~unreadable(family, dtype, arrays)
        for got in compute(formula, arrays, params):
            check(got[near], value[near], allowed[near], dtype, what)
            p = {"p": np.full(got.shape, exact[0])} if exact else {}
            agree(got, cells, named | p, family, what)


@every
@pytest.mark.parametrize("formula", PUBLIC)
def test_elementwise(lib, formula, dtype):
    verify(by_library(lib), lib.family, formula, dtype)


@pytest.mark.every
@pytest.mark.parametrize("formula", PUBLIC)
def test_elementwise_instructions(executor, formula, dtype):
    verify(by_executor(executor), executor.family, formula, dtype)


# -- the gradients of parameters ------------------------------------------------------------------


def sums_by_library(lib: Library, grid: Grid, dtype: str) -> Array:
    """Of scale, bias or slopes of x's own shape: each gradient is a sum of one term."""
    dy, x = (lib.place(a[None]).native for a in grid.arrays(dtype))
    one = lib.place(np.ones((1, len(grid.cells)), DTYPES[dtype])).native
    if grid.formula == "prelu_dweight":
        result = gpuact.prelu_backward(dy, x, one)[1]
    else:
        place = 1 if grid.formula == "linear_dscale" else 2
        result = gpuact.linear_backward(dy, x, one, one)[place]
    return lib.numpy(result, x, (1, len(grid.cells)), dtype)[0]


def sums_by_executor(executor: Executor, grid: Grid, dtype: str) -> Array:
    arrays = grid.arrays(dtype)[: 1 if grid.formula == "linear_dbias" else 2]
    native = tuple(executor.place(a[None]).native for a in arrays)
    out = executor.place(np.empty((1, len(grid.cells)), DTYPES[dtype]), blank=True)
    executor.backend.reduce(grid.formula, native, out.native, executor.empty)
    return out.numpy()[0]


def verify_sums(compute: Callable[..., Array], who: Any, dtype: str) -> None:
    for grid in grids(SUMMED):
        named = dict(zip(("dy", "x"), grid.arrays(dtype), strict=True))
        got = compute(who, grid, dtype)
        agree(got, grid.cells, named, who.family, grid.formula, signed=False)


@every
def test_gradients_of_parameters(lib, dtype):
    verify_sums(sums_by_library, lib, dtype)


@pytest.mark.every
def test_gradients_of_parameters_instructions(executor, dtype):
    verify_sums(sums_by_executor, executor, dtype)


# -- rows -----------------------------------------------------------------------------------------

SOFTMAX = """
x              | softmax         | log_softmax
0 0 0          | ≈1/3 ≈1/3 ≈1/3  | ≈-ln3 ≈-ln3 ≈-ln3
-0 0 -0        | ≈1/3 ≈1/3 ≈1/3  | ≈-ln3 ≈-ln3 ≈-ln3
tiny -tiny 0   | ≈1/3 ≈1/3 ≈1/3  | ≈-ln3 ≈-ln3 ≈-ln3
max max max    | ≈1/3 ≈1/3 ≈1/3  | ≈-ln3 ≈-ln3 ≈-ln3
-max -max -max | ≈1/3 ≈1/3 ≈1/3  | ≈-ln3 ≈-ln3 ≈-ln3
-max max -max  | 0 1 0           | -inf 0 -inf
max -max max   | ≈0.5 0 ≈0.5     | ≈-ln2 -inf ≈-ln2
0 -max -max    | 1 0 0           | 0 -max -max
-inf 0 0       | 0 ≈0.5 ≈0.5     | -inf ≈-ln2 ≈-ln2
-inf -inf 5    | 0 0 1           | -inf -inf 0
5 -inf -inf    | 1 0 0           | 0 -inf -inf
-inf max -inf  | 0 1 0           | -inf 0 -inf
-inf -max -inf | 0 1 0           | -inf 0 -inf
-inf tiny -inf | 0 1 0           | -inf 0 -inf
-inf -inf -inf | nan nan nan     | nan nan nan
0 inf 0        | nan nan nan     | nan nan nan
inf inf inf    | nan nan nan     | nan nan nan
inf -inf -inf  | nan nan nan     | nan nan nan
0 0 nan        | nan nan nan     | nan nan nan
nan -inf -inf  | nan nan nan     | nan nan nan
nan inf -inf   | nan nan nan     | nan nan nan
0              | 1               | 0
-0             | 1               | 0
tiny           | 1               | 0
max            | 1               | 0
-max           | 1               | 0
-inf           | nan             | nan
inf            | nan             | nan
nan            | nan             | nan
"""

# The sign of a zero is that of IEEE's arithmetic, in whatever order a sum is taken: none is stated.
SOFTMAX_BACKWARD = """
dy             | y               | softmax_backward
1 1 1          | 1 0 0           | 0 0 0
3 1 2          | 1 0 0           | 0 0 0
1 2 3          | 0.5 0.5 0       | -0.25 0.25 0
max max 0      | 0.5 0.5 0       | 0 0 0
max 0 0        | 0.5 0.5 0       | ≈ ≈ 0
inf 0 0        | 1 0 0           | nan nan nan
0 0 -inf       | 1 0 0           | nan nan nan
0 nan 0        | 1 0 0           | nan nan nan
0 0 0          | nan nan nan     | nan nan nan
tiny           | 1               | 0
max            | 1               | 0
inf            | 1               | nan
1              | nan             | nan
"""
LOG_SOFTMAX_BACKWARD = """
dy             | y               | log_softmax_backward
0 0 0          | 0 -inf -inf     | 0 0 0
1 1 1          | 0 -inf -inf     | -2 1 1
1 0 0          | 0 -inf -inf     | 0 0 0
0 max 0        | 0 -inf -inf     | -max max 0
inf 0 0        | 0 -inf -inf     | nan nan nan
0 nan 0        | 0 -inf -inf     | nan nan nan
0 0 0          | nan nan nan     | nan nan nan
tiny           | 0               | 0
max            | 0               | 0
inf            | 0               | nan
1              | nan             | nan
"""


def columns(text: str, n: int) -> list[list[str]]:
    """The columns of a table, of its rows of n elements; each a list of words."""
    rows = [[part.split() for part in line.split("|")] for line in text.strip().splitlines()[1:]]
    of_n = [row for row in rows if len(row[0]) == n]
    return [[word for part in column for word in part] for column in zip(*of_n, strict=True)]


# formula → its table, how many columns are its arrays, and which is its result
ROWS = {
    "softmax": (SOFTMAX, 1, 1),
    "log_softmax": (SOFTMAX, 1, 2),
    "softmax_backward": (SOFTMAX_BACKWARD, 2, 2),
    "log_softmax_backward": (LOG_SOFTMAX_BACKWARD, 2, 2),
}


def rows_by_library(lib: Library, formula: str, arrays: list[Array]) -> Array:
    x = arrays[0][:, :, 0]
    native = [lib.place(a[:, :, 0]).native for a in arrays]
    result = getattr(gpuact, formula)(*native)
    return lib.numpy(result, native[0], x.shape, str(x.dtype))


def rows_by_executor(executor: Executor, formula: str, arrays: list[Array]) -> Array:
    native = tuple(executor.place(a).native for a in arrays)
    out = executor.place(np.empty_like(arrays[0]), blank=True)
    executor.backend.rows(formula, native, out.native, None, executor.empty)
    return out.numpy()


def verify_rows(compute: Callable[..., Array], who: Any, formula: str, n: int, dtype: str) -> None:
    text, count, result = ROWS[formula]
    found = columns(text, n)
    arrays = [numbers(words, dtype).reshape(-1, n, 1) for words in found[:count]]
    value, cells = truth.ROWS[formula](*arrays), found[result]
    allowed = bounds.rows(formula, dtype, arrays, value)
    near = np.array([cell.startswith("≈") for cell in cells])
    got = compute(who, formula, arrays).ravel()
    what = f"{formula} {who.name}"
    check(got[near], nearly(cells, value, dtype).ravel()[near], allowed.ravel()[near], dtype, what)
    named = {
        name: a.ravel()
        for name, a in zip(("x",) if count == 1 else ("dy", "y"), arrays, strict=True)
    }
    agree(got, cells, named, who.family, what, signed=count == 1)


@every
@pytest.mark.parametrize("n", (3, 1))
@pytest.mark.parametrize("formula", ROWS)
def test_rows(lib, formula, n, dtype):
    verify_rows(rows_by_library, lib, formula, n, dtype)


@pytest.mark.parametrize("n", [pytest.param(3, marks=pytest.mark.every), 1])
@pytest.mark.parametrize("formula", ROWS)
def test_rows_instructions(executor, formula, n, dtype):
    verify_rows(rows_by_executor, executor, formula, n, dtype)


# -- cross-entropy --------------------------------------------------------------------------------
# No sign is stated of a zero. An lse as it is stored has lost what tells logits near max apart, so
# the gradient from it is held to the truth from it.

CLASSES = """
logits         | target  | loss | lse  | gradient
0 0 0          | 1       | ≈ln3 | ≈ln3 | ≈1/3 ≈-2/3 ≈1/3
tiny -tiny -0  | 1       | ≈ln3 | ≈ln3 | ≈1/3 ≈-2/3 ≈1/3
max max max    | 1       | ≈ln3 | ≈    | ≈1/3 ≈-2/3 ≈1/3
-max -max -max | 1       | ≈ln3 | ≈    | ≈1/3 ≈-2/3 ≈1/3
-max max -max  | 1       | 0    | ≈max | 0 0 0
-max max -max  | 0       | ≈    | ≈max | -1 1 0
0 -inf -inf    | 0       | 0    | 0    | 0 0 0
0 -inf -inf    | 1       | inf  | 0    | 1 -1 0
-inf 5 -inf    | 1       | 0    | 5    | 0 0 0
-inf 0 0       | 1       | ≈ln2 | ≈ln2 | 0 ≈-0.5 ≈0.5
-inf 0 0       | 0       | inf  | ≈ln2 | -1 ≈0.5 ≈0.5
-inf -inf -inf | 1       | nan  | nan  | nan nan nan
0 inf 0        | 1       | nan  | nan  | nan nan nan
0 inf 0        | 0       | nan  | nan  | nan nan nan
inf inf -inf   | 0       | nan  | nan  | nan nan nan
0 nan 0        | 1       | nan  | nan  | nan nan nan
0 nan 0        | 0       | nan  | nan  | nan nan nan
nan inf -inf   | 0       | nan  | nan  | nan nan nan
0 0 0          | ignored | 0    | ≈ln3 | 0 0 0
0 nan 0        | ignored | 0    | nan  | 0 0 0
0 inf 0        | ignored | 0    | nan  | 0 0 0
-inf -inf -inf | ignored | 0    | nan  | 0 0 0
max -max 0     | ignored | 0    | ≈max | 0 0 0
5              | 0       | 0    | 5    | 0
max            | 0       | 0    | ≈max | 0
-inf           | 0       | nan  | nan  | nan
inf            | 0       | nan  | nan  | nan
nan            | 0       | nan  | nan  | nan
nan            | ignored | 0    | nan  | 0
"""
# the first class weighs 0, the second 2, the third 1
WEIGHTED = """
logits         | target  | loss | lse  | gradient
0 -inf -inf    | 0       | 0    | 0    | 0 0 0
0 -inf -inf    | 1       | inf  | 0    | 2 -2 0
-inf 0 0       | 0       | 0    | ≈ln2 | 0 0 0
-inf 0 -inf    | 1       | 0    | 0    | 0 0 0
0 nan 0        | 0       | nan  | nan  | nan nan nan
inf 0 0        | 0       | nan  | nan  | nan nan nan
0 nan 0        | ignored | 0    | nan  | 0 0 0
"""
# label_smoothing is 0.75: of its own class a row's share is a half, of the others a quarter
SMOOTHED = """
logits         | target  | loss | lse  | gradient
0 0 0          | 1       | ≈ln3 | ≈ln3 | ≈ ≈ ≈
0 -inf 0       | 0       | inf  | ≈ln2 | ≈0 -0.25 ≈0.25
-inf -inf -inf | 0       | nan  | nan  | nan nan nan
0 nan 0        | 0       | nan  | nan  | nan nan nan
0 inf 0        | 0       | nan  | nan  | nan nan nan
0 nan 0        | ignored | 0    | nan  | 0 0 0
-inf inf 0     | ignored | 0    | nan  | 0 0 0
"""
PROBABILITIES = """
logits         | target      | loss | lse  | gradient
0 0 0          | 0 1 0       | ≈ln3 | ≈ln3 | ≈1/3 ≈-2/3 ≈1/3
0 0 0          | 0 0 0       | 0    | ≈ln3 | 0 0 0
0 -inf -inf    | 1 0 0       | 0    | 0    | 0 0 0
0 -inf -inf    | 0.5 0.5 0   | inf  | 0    | 0.5 -0.5 0
0 -inf 0       | 0.5 0 0.5   | ≈ln2 | ≈ln2 | ≈0 0 ≈0
-max max -max  | 0 1 0       | 0    | ≈max | 0 0 0
0 0 0          | nan 0 0     | nan  | ≈ln3 | nan nan nan
-inf -inf -inf | 0 0 0       | nan  | nan  | nan nan nan
0 nan 0        | 0 0 0       | nan  | nan  | nan nan nan
0 inf 0        | 1 0 0       | nan  | nan  | nan nan nan
"""

IGNORED = -100
# name → table, options, class weights, how many logits a row has
LOSSES: dict[str, tuple[str, float, tuple[float, ...] | None, int]] = {
    "classes": (CLASSES, 0.0, None, 3),
    "one class": (CLASSES, 0.0, None, 1),
    "weighted": (WEIGHTED, 0.0, (0.0, 2.0, 1.0), 3),
    "smoothed": (SMOOTHED, 0.75, None, 3),
    "probabilities": (PROBABILITIES, 0.0, None, 3),
}


@dataclass(frozen=True)
class Rows:
    """The arrays of one table, as backends take them: rows, classes, 1."""

    logits: Array
    target: Array
    weight: Array | None
    label_smoothing: float


Results = tuple[Array, ...]  # loss, lse, gradient; then loss and gradient in one pass


def losses_by_library(lib: Library, given: Rows) -> Results:
    z, t = lib.place(given.logits[:, :, 0]).native, lib.place(given.target[..., 0]).native
    w = None if given.weight is None else lib.place(given.weight).native
    options = {"weight": w, "label_smoothing": given.label_smoothing, "reduction": "none"}
    rows, n, _ = given.logits.shape
    loss, lse = gpuact.cross_entropy(z, t, return_lse=True, **options)
    one = lib.place(np.ones(rows, str(loss.dtype).removeprefix("torch."))).native
    gradient = gpuact.cross_entropy_backward(one, z, t, lse, **options)
    again, at_once = gpuact.cross_entropy_with_grad(z, t, **options)
    dtype = str(given.logits.dtype)
    found = [lib.numpy(r, z, (rows,), compute_dtype(dtype)) for r in (loss, lse, again)]
    of_each = [lib.numpy(r, z, (rows, n), dtype) for r in (gradient, at_once)]
    return found[0], found[1], of_each[0], found[2], of_each[1]


def losses_by_executor(executor: Executor, given: Rows) -> Results:
    rows = len(given.logits)
    kind = DTYPES[compute_dtype(str(given.logits.dtype))]

    def blank(like: Array) -> Any:
        return executor.place(like, blank=True)

    z, t = executor.place(given.logits).native, executor.place(given.target).native
    w = None if given.weight is None else executor.place(given.weight).native
    loss, lse, again = (blank(np.empty((rows, 1), kind)) for _ in range(3))
    gradient, at_once = blank(given.logits), blank(given.logits)
    one = executor.place(np.ones((rows, 1), kind)).native
    options = {"ignore_index": IGNORED, "label_smoothing": given.label_smoothing, "z_loss": 0.0}
    options |= {"softcap": 0.0, "empty": executor.empty}
    backend = executor.backend
    backend.cross_entropy(z, t, w, loss.native, lse.native, **options)
    backend.cross_entropy_backward(one, z, t, w, lse.native, gradient.native, **options)
    backend.cross_entropy_with_grad(one, z, t, w, again.native, at_once.native, **options)
    return tuple(r.numpy() for r in (loss, lse, gradient, again, at_once))


def verify_losses(compute: Callable[..., Results], who: Any, case: str, dtype: str) -> None:
    text, smoothing, weights, n = LOSSES[case]
    logits, targets, *cells = columns(text, n)
    z = numbers(logits, dtype).reshape(-1, n, 1)
    if case == "probabilities":
        target = numbers(targets, dtype).reshape(z.shape)
    else:
        target = np.array([IGNORED if t == "ignored" else int(t) for t in targets])[:, None]
    kind = compute_dtype(dtype)
    weight = None if weights is None else np.array(weights, kind)
    given = Rows(z, target, weight, smoothing)
    results = compute(who, given)
    lse = results[1].reshape(-1, 1)

    def verify(name: str, got: Array, cells: list[str], given_lse: Array | None = None) -> None:
        stored_as = dtype if name == "gradient" else kind
        t = truth.cross_entropy(z, target, weight, IGNORED, smoothing, lse=given_lse)
        plain = target.ndim == 2 and not smoothing
        from_lse = given_lse is not None
        allowed = bounds.cross_entropy(t, who.family, dtype, plain, from_lse=from_lse)[name]
        value = t[name] if from_lse else nearly(cells, t[name], dtype)
        allowed = (allowed + bounds.stored(value, stored_as)).ravel()
        near = np.array([cell.startswith("≈") for cell in cells])
        what = f"{name} {case} {who.name}"
        check(got.ravel()[near], value.ravel()[near], allowed[near], stored_as, what)
        across = len(cells) // len(z)
        rows = np.repeat([" ".join(map(str, row)) for row in z[:, :, 0]], across)
        agree(got.ravel(), cells, {"row": rows}, who.family, what, signed=False)

    loss, of_lse, gradient = cells
    verify("loss", results[0], loss)
    verify("lse", results[1], of_lse)
    verify("gradient", results[2], gradient, lse)
    verify("loss", results[3], loss)
    verify("gradient", results[4], gradient)


@every
@pytest.mark.parametrize("case", LOSSES)
def test_cross_entropy(lib, case, dtype):
    verify_losses(losses_by_library, lib, case, dtype)


@pytest.mark.many
@pytest.mark.parametrize("case", LOSSES)
def test_cross_entropy_instructions(executor, case, dtype):
    verify_losses(losses_by_executor, executor, case, dtype)


# targets, class weights | mean | gradient of the first row, logits being 0 and 0
MEANS: tuple[tuple[list[int], list[float] | None, float, list[float]], ...] = (
    ([IGNORED, IGNORED], None, np.nan, [0, 0]),
    ([0, IGNORED], None, np.log(2), [-0.5, 0.5]),
    ([0, 1], [1, 0], np.log(2), [-0.5, 0.5]),
    ([1, 1], [1, 0], np.nan, [np.nan, np.nan]),
    ([IGNORED, IGNORED], [1, 0], np.nan, [0, 0]),
)


@pytest.mark.parametrize("case", range(len(MEANS)))
def test_means_over_little(lib, case):
    target, weights, mean, first = MEANS[case]
    z, t = lib.place(np.zeros((2, 2))).native, lib.place(np.array(target)).native
    w = None if weights is None else lib.place(np.array(weights)).native
    loss, lse = gpuact.cross_entropy(z, t, weight=w, return_lse=True)
    again, at_once = gpuact.cross_entropy_with_grad(z, t, weight=w)
    gradient = gpuact.cross_entropy_backward(1.0, z, t, lse, weight=w)
    for got in (loss, again):
        np.testing.assert_allclose(lib.numpy(got, z, (), "float64"), mean, rtol=1e-15)
    for got in (gradient, at_once):
        got = lib.numpy(got, z, (2, 2), "float64")
        np.testing.assert_allclose(got[0], first, rtol=1e-15)
        assert target[1] != IGNORED or (got[1] == 0).all()


# -- subnormal results ----------------------------------------------------------------------------

FAR = {"float16": 12.0, "bfloat16": 90.0, "float32": 90.0, "float64": 720.0}  # e^-FAR is subnormal
TAILS = {"sigmoid": -1.0, "sigmoid_derivative": 1.0, "tanh_derivative": -0.5}  # of FAR


def verify_tail(got: Array, value: Array, allowed: Array, family: str, what: str) -> None:
    """As near as arithmetic without a flush comes to it, or as may_flush says."""
    dtype = str(got.dtype)
    least = 2.0 ** FORMATS[dtype].least
    assert (value > 0).all() and (value < least).all(), "not subnormal"
    flushed = may_flush(family, dtype, value) & (got == 0) & ~np.signbit(got)
    check(np.where(flushed, value, truth.long(got)), value, allowed, dtype, what)


def verify_tails(compute: Compute, rows: Callable[..., Array], who: Any, dtype: str) -> None:
    for formula, factor in TAILS.items():
        x = np.full(5, factor * FAR[dtype]).astype(DTYPES[dtype])
        value = truth.elementwise(formula, x)
        allowed = bounds.elementwise(formula, "numpy", dtype, [x], value)  # has no floor
        for got in compute(formula, [x], []):
            verify_tail(got, value, allowed, who.family, f"{formula} {who.name}")
    floor = bounds.FLUSHED if compute_dtype(dtype) == "float32" else 0
    least = 2.0 ** FORMATS[dtype].least
    for formula, *operands in (  # the second element is subnormal
        ("softmax", (0, -FAR[dtype], -np.inf)),
        ("softmax_backward", (0, 0.25, 0), (1, 1.5 * least, 0)),
        ("log_softmax_backward", (0, 0.375 * least, 0), (0, -20000, -20000)),
    ):
        arrays = [np.array([a]).astype(DTYPES[dtype])[:, :, None] for a in operands]
        if not bounds.defined(who.family, dtype, arrays).all():
            continue
        value = truth.ROWS[formula](*arrays)
        allowed = bounds.rows(formula, dtype, arrays, value) - floor
        got, value, allowed = (a.ravel()[1:2] for a in (rows(who, formula, arrays), value, allowed))
        verify_tail(got, value, allowed, who.family, f"{formula} {who.name}")


@every
def test_subnormal_results(lib, dtype):
    verify_tails(by_library(lib), rows_by_library, lib, dtype)


@pytest.mark.every
def test_subnormal_results_instructions(executor, dtype):
    verify_tails(by_executor(executor), rows_by_executor, executor, dtype)
