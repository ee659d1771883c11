"""What holds of every input, on inputs that Hypothesis makes up: NumPy's arrays and CPU tensors.

Each property is tried on a few inputs, the same ones every time; as `slow`, on many others; as
`deep`, of Triton's kernels in its interpreter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import gpuact
from tests import bounds, truth
from tests.bounds import DTYPES, check, compute_dtype, ulp
from tests.libraries import Library, libraries, specials, untouched
from tests.test_functions import (
    ELEMENTWISE,
    ROWS,
    WITH_OUT,
    Public,
    as_rows,
    row_output,
    verify,
    verify_rows,
)
from tests.truth import LONG, Array

Test = Callable[..., None]
HOSTS = ("numpy", "numpy-in-pieces", "torch-cpu")
MANY: dict[str, tuple[Test, tuple[str, ...]]] = {}  # each property on many inputs, and on whose


def for_all(*names: str, **drawn: st.SearchStrategy[Any]) -> Callable[[Test], Test]:
    """A test of libraries on a few inputs, kept for a slow one on many."""
    on = names or HOSTS
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]  # `lib` has no state
    common: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": quiet}

    def both(test: Test) -> Test:
        many = settings(max_examples=200, print_blob=True, **common)
        MANY[test.__name__] = many(given(**drawn)(test)), on
        few = settings(max_examples=40, derandomize=True, **common)
        interpreted = (pytest.mark.interpreter, pytest.mark.deep)
        more = [] if names else [pytest.param("torch-interpreter", marks=interpreted)]
        return pytest.mark.parametrize("lib", [*libraries(*on), *more], indirect=True)(
            few(given(**drawn)(test))
        )

    return both


# -- what goes in ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """An array: the numbers repeat over it; the rest says how it lies in memory."""

    dtype: str
    shape: tuple[int, ...]
    numbers: tuple[float, ...]
    order: tuple[int, ...]  # of the axes in memory
    steps: tuple[int, ...]  # along each axis; 0: one element for all
    start: int  # elements before the first, which misalign it

    def lay(self, negative: bool = True, dtype: str | None = None) -> Array:
        """The array as a view; its memory begins at a multiple of 16 bytes."""
        steps = self.steps if negative else tuple(map(abs, self.steps))
        places = [n * abs(s) if s else min(n, 1) for n, s in zip(self.shape, steps, strict=True)]
        size = math.prod(places)
        kind = DTYPES.get(dtype or self.dtype) or np.dtype(dtype or self.dtype)
        room = np.empty(size + self.start + 16, kind)
        first = -room.ctypes.data % 16 // kind.itemsize + self.start
        memory = room[first : first + size]
        with np.errstate(all="ignore"):
            memory[...] = np.resize(np.array(self.numbers), size).astype(kind)
        view = memory.reshape([places[k] for k in self.order])
        view = view.transpose([self.order.index(k) for k in range(len(self.shape))])
        view = view[tuple(slice(None, None, s or None) for s in steps)]
        return np.broadcast_to(view, self.shape)

    def of(self, lib: Library) -> Array:
        return self.lay(lib.executor.negative_strides)


def reals(dtype: str, special: bool) -> st.SearchStrategy[float]:
    ordinary = st.floats(-2, 2, width=32) | st.floats(-40, 40, width=32)
    return st.sampled_from(specials(dtype)) | ordinary if special else ordinary


SHAPES = st.lists(st.sampled_from((3, 1, 2, 5, 0, 17)), max_size=5).filter(
    lambda shape: math.prod(shape) <= 3000
)


@st.composite
def arrays(
    draw: Any, special: bool = True, least: int = 0, empty: bool = True, overlap: bool = True
) -> Given:
    """least: how many dimensions at least; overlap: elements may share a place."""
    dtype = draw(st.sampled_from(list(DTYPES)))
    shape = draw(SHAPES.filter(lambda s: len(s) >= least and (empty or 0 not in s)))
    steps = st.sampled_from((1, 2, -1, 3, -2, 0) if overlap else (1, 2, -1, 3, -2))
    return Given(
        dtype,
        tuple(shape),
        tuple(draw(st.lists(reals(dtype, special), min_size=1, max_size=24))),
        tuple(draw(st.permutations(range(len(shape))))),
        tuple(draw(steps) for _ in shape),
        draw(st.integers(0, 5)),
    )


def gradient(like: Array, seed: int = 0) -> Array:
    """A finite dy of an array's shape and dtype."""
    dy = np.random.default_rng(seed).standard_normal(like.shape) * 3
    return np.asarray(dy).astype(like.dtype)


def in_order(x: Array) -> Array:
    """Stable, since NumPy's default leaves float16 out of order if −0 is there (AVX-512, 2.4.6)."""
    return np.sort(x, kind="stable")


def bits(x: Any) -> bytes:
    return np.ascontiguousarray(x).tobytes()


def same_bits(a: Array, b: Array, what: str = "") -> None:
    """Of NaN, that there is one."""
    a, b = (np.where(np.isnan(x), x.dtype.type(1.25), x) for x in (a, b))
    assert bits(a) == bits(b), f"{what}: {a} and {b}"


def compute(lib: Library, function: Callable[..., Any], *arrays: Array, **options: Any) -> Array:
    """A result of an array's shape and dtype, on arrays of the library."""
    placed = [lib.place(a) for a in arrays]
    result = function(*(p.native for p in placed), **options)
    if isinstance(result, tuple):
        result = result[0]
    untouched(*placed)
    last = arrays[-1]
    return lib.numpy(result, placed[-1].native, last.shape, str(last.dtype))


SLOPES = st.sampled_from((0.1, -2.0, 0.0, 1.0, 3.5))
FORWARD = [name for name, public in ELEMENTWISE.items() if public.function.name == name]
FROM_X = st.sampled_from(WITH_OUT)
LEARNED = st.sampled_from([n for n in ELEMENTWISE if n.startswith(("linear", "prelu"))])
ROW = st.sampled_from(ROWS)


def numbers_of(public: Public, slope: float) -> dict[str, float]:
    return dict.fromkeys(public.parameters, slope)


def operands(public: Public, x: Array) -> list[Array]:
    """(x,), or dy and what is stored of x."""
    if public.arrays == ("x",):
        return [x]
    stored = x
    if public.arrays[1] == "y":
        with gpuact.using("numpy"):
            stored = getattr(gpuact, public.function.name)(x)
    return [gradient(x), stored]


# -- against the truth, whatever the layout -------------------------------------------------------


@for_all(x=arrays(), slope=SLOPES)
def test_elementwise(lib, x, slope):
    """In any layout: near the truth, and the bits of a contiguous copy."""
    view = x.of(lib)
    for public in ELEMENTWISE.values():
        params, inputs = numbers_of(public, slope), operands(public, view)
        placed = [lib.place(a) for a in inputs]
        result = public.dx(*(p.native for p in placed), *params.values())
        got = verify(public, lib, result, placed, inputs, params)
        untouched(*placed)
        copies = [np.ascontiguousarray(a).reshape(a.shape) for a in inputs]
        same_bits(got, compute(lib, public, *copies, **params), public.name)


@st.composite
def axes(draw: Any, ndim: int) -> Any:
    """An int, a tuple or None."""
    one = st.integers(-ndim, ndim - 1)
    several = st.lists(one, min_size=1, unique_by=lambda a: a % ndim).map(tuple)
    return draw(one | several | st.none())


@for_all(name=ROW, x=arrays(special=False, least=1), data=st.data())
def test_rows(lib, name, x, data):
    view = x.of(lib)
    axis = data.draw(axes(view.ndim), "axis")
    y = row_output(name, view, axis)
    for function, inputs in ((name, [view]), (f"{name}_backward", [gradient(view), y])):
        got = compute(lib, getattr(gpuact, function), *inputs, axis=axis)
        placed = [lib.place(a) for a in inputs]
        result = getattr(gpuact, function)(*(p.native for p in placed), axis)
        verify_rows(function, lib, result, placed, inputs, axis)
        copies = [np.ascontiguousarray(a) for a in inputs]
        same_bits(got, compute(lib, getattr(gpuact, function), *copies, axis=axis))


@for_all(name=FROM_X, x=arrays(), slope=SLOPES, data=st.data())
def test_out(lib, name, x, slope, data):
    """Of any layout, or x itself: the same bits, and nothing beside it is written."""
    public, view = ELEMENTWISE[name], x.of(lib)
    params = numbers_of(public, slope)
    want = compute(lib, public, view, **params)
    order = tuple(data.draw(st.permutations(range(view.ndim)), "order"))
    steps = tuple(data.draw(st.sampled_from((1, 2, -1)), "step") for _ in order)
    where = Given(x.dtype, view.shape, (0.0,), order, steps, data.draw(st.integers(0, 5), "start"))
    placed, result = lib.place(view), lib.blank(where.of(lib))
    assert public(placed.native, **params, out=result.native) is result.native
    same_bits(result.numpy(), want)
    untouched(placed)
    if 0 not in x.steps:
        assert public(placed.native, **params, out=placed.native) is placed.native
        same_bits(placed.numpy(), want)


@for_all(name=ROW, x=arrays(special=False, least=1), data=st.data())
def test_out_of_rows(lib, name, x, data):
    view = x.of(lib)
    axis = data.draw(axes(view.ndim), "axis")
    function = getattr(gpuact, name)
    want = compute(lib, function, view, axis=axis)
    order = tuple(data.draw(st.permutations(range(view.ndim)), "order"))
    where = Given(x.dtype, view.shape, (0.0,), order, (2,) * view.ndim, x.start)
    placed, result = lib.place(view), lib.blank(where.of(lib))
    assert function(placed.native, axis, out=result.native) is result.native
    same_bits(result.numpy(), want)
    untouched(placed)
    if 0 not in x.steps:
        assert function(placed.native, axis, out=placed.native) is placed.native
        same_bits(placed.numpy(), want)


@for_all(
    name=FROM_X,
    x=arrays(empty=False),
    n=st.integers(1, 300),
    shift=st.integers(-9, 9),
    step=st.sampled_from((1, 2, 3)),
)
def test_out_beside_x_in_one_memory(lib, name, x, n, shift, step):
    """They overlap in part, out at a step of its own."""
    memory = lib.place(np.resize(x.lay(), 1000))
    before = memory.numpy().copy()
    public = ELEMENTWISE[name]
    params = numbers_of(public, 0.1)
    at_x, at_out = np.s_[20 : 20 + n], np.s_[20 + shift : 20 + shift + n * step : step]
    want = compute(lib, public, before[at_x], **params)
    public(memory.native[at_x], **params, out=memory.native[at_out])
    after = memory.numpy()
    same_bits(after[at_out], want)
    after[at_out] = before[at_out]
    same_bits(after, before)


@for_all(name=LEARNED, x=arrays(special=False, least=1), data=st.data())
def test_parameters_broadcast(lib, name, x, data):
    """Arrays of scales, biases or slopes, in x's dtype or wider, against the truth."""
    public, view = ELEMENTWISE[name], x.of(lib)
    inputs = operands(public, view)
    kind = DTYPES[data.draw(st.sampled_from((x.dtype, compute_dtype(x.dtype))), "kind")]
    params: dict[str, Array] = {}
    for parameter in public.parameters:
        ones = data.draw(st.lists(st.booleans(), min_size=view.ndim, max_size=view.ndim), parameter)
        shape = [1 if one else n for n, one in zip(view.shape, ones, strict=True)]
        params[parameter] = gradient(np.empty(shape, kind), seed=1)
    placed = [lib.place(a) for a in inputs]
    native = [lib.place(a).native for a in (*inputs, *params.values())]
    result = public.dx(*native)
    verify(public, lib, result, placed, inputs, params)


@for_all(
    name=st.sampled_from([n for n in ELEMENTWISE if n.startswith("prelu")]),
    x=arrays(special=False, least=1, empty=False),
    data=st.data(),
)
def test_one_slope_a_channel(lib, name, x, data):
    public, view = ELEMENTWISE[name], x.of(lib)
    axis = data.draw(st.integers(-view.ndim, view.ndim - 1), "channel_axis")
    slopes = np.linspace(-1, 2, view.shape[axis]).astype(view.dtype)
    around = [1] * view.ndim
    around[axis] = len(slopes)
    inputs = operands(public, view)
    placed = [lib.place(a) for a in inputs]
    native = [lib.place(a).native for a in (*inputs, slopes)]
    result = public(*native, channel_axis=axis)
    result = result[0] if isinstance(result, tuple) else result
    verify(public, lib, result, placed, inputs, {"weight": slopes.reshape(around)})


@for_all(
    name=st.sampled_from(("linear", "sigmoid", "tanh", "relu", "softmax", "log_softmax")),
    x=arrays(special=False, least=1),
    kind=st.sampled_from(("int8", "int16", "int32", "int64", "uint8", "bool")),
)
def test_integers(lib, name, x, kind):
    """Counted as float32; relu keeps them and refuses bool."""
    view = x.lay(lib.executor.negative_strides, "float32")
    inputs = np.abs(view).astype(kind) if kind in ("bool", "uint8") else view.astype(kind)
    function, placed = getattr(gpuact, name), lib.place(inputs)
    if name == "relu" and kind == "bool":
        with pytest.raises(TypeError, match="bool"):
            function(placed.native)
        return
    result = function(placed.native)
    if name == "relu":
        want, dtype = np.maximum(inputs, 0), kind
    else:
        want, dtype = compute(lib, function, inputs.astype(np.float32)), "float32"
    assert bits(lib.numpy(result, placed.native, inputs.shape, dtype)) == bits(want)
    untouched(placed)


@for_all(
    "numpy",
    axes=st.lists(st.tuples(st.integers(1, 4), st.integers(-9, 9)), max_size=4),
    item=st.sampled_from((1, 2)),
)
def test_an_out_whose_elements_share_places_is_refused(lib, axes, item):
    """item: of two units of the strides, or one."""
    shape, steps = tuple(n for n, _ in axes), tuple(s for _, s in axes)
    begins = sum((s * np.indices(shape)[k] for k, s in enumerate(steps)), np.zeros(shape, int))
    units = (begins.reshape(-1, 1) + np.arange(item)).ravel()
    room = np.zeros(400, np.float16)
    first = room[200:].view(DTYPES["float16" if item == 1 else "float32"])
    out = np.lib.stride_tricks.as_strided(first, shape, tuple(2 * s for s in steps))
    x = np.arange(1, 1 + begins.size, dtype=out.dtype).reshape(shape)
    if len(set(units)) < units.size:
        with pytest.raises(ValueError, match="by which elements share their places"):
            gpuact.relu(x, out=out)
        assert not room.any()
    else:
        gpuact.relu(x, out=out)
        assert (out == x).all()


# -- elementwise functions ------------------------------------------------------------------------


def allowed_of(public: Public, lib: Library, x: Array, slope: float = 0.1) -> Array:
    """How far public(x) may be from the truth."""
    params = [
        np.asarray(v).astype(compute_dtype(str(x.dtype)))
        for name, v in numbers_of(public, slope).items()
        if name in public.kernel.parameters
    ]
    value = truth.elementwise(public.kernel.formula, x, *params)
    return bounds.elementwise(public.kernel.formula, lib.family, str(x.dtype), [x, *params], value)


@for_all(x=arrays(), slope=st.sampled_from((0.0, 0.1, 1.0, 3.5)))
def test_rising(lib, x, slope):
    """y does not fall where x rises; of sigmoid and tanh, by no more than their errors."""
    view = x.of(lib).ravel()
    view = in_order(view[np.isfinite(view)])
    for name in ("sigmoid", "tanh", "relu", "leaky_relu"):
        public = ELEMENTWISE[name]
        y = truth.long(compute(lib, public, view, **numbers_of(public, slope)))
        error = np.zeros_like(y)
        if name in ("sigmoid", "tanh"):
            error = allowed_of(public, lib, view)
        assert (y[1:] >= y[:-1] - error[1:] - error[:-1]).all(), name


@for_all(x=arrays())
def test_symmetry(lib, x):
    view = x.of(lib)
    for name, sign in (("tanh", -1), ("tanh_derivative", 1), ("sigmoid_derivative", 1)):
        y, opposite = (compute(lib, ELEMENTWISE[name], a) for a in (view, -view))
        same_bits(opposite, y if sign > 0 else -y, name)


@for_all(x=arrays())
def test_sigmoid_and_its_complement(lib, x):
    view = x.of(lib)
    view = np.where(np.isnan(view), view.dtype.type(0), view)
    sigmoid = ELEMENTWISE["sigmoid"]
    total = sum(truth.long(compute(lib, sigmoid, a)) for a in (view, -view))
    allowed = sum(allowed_of(sigmoid, lib, a) for a in (view, -view))
    assert (np.abs(total - 1) <= allowed).all()


@for_all(x=arrays())
def test_relu_once_is_enough(lib, x):
    once = compute(lib, gpuact.relu, x.of(lib))
    same_bits(compute(lib, gpuact.relu, once), once)


@for_all(x=arrays())
def test_linear_is_the_identity_by_default(lib, x):
    view = x.of(lib)
    got = compute(lib, gpuact.linear, view)
    same_bits(got, view + view.dtype.type(0))  # of -0.0, +0.0


# how much an error of y counts in the derivative made of it: y(1 − y), 1 − y²
OF_Y = {"sigmoid": 1, "tanh": 2}


@for_all(x=arrays(special=False), slope=SLOPES)
def test_backward_is_the_derivative_times_dy(lib, x, slope):
    view = x.of(lib)
    dy = gradient(view)
    size = np.abs(truth.long(dy))
    for name in FORWARD:
        forward, back, slope_of = (ELEMENTWISE[name + s] for s in ("", "_backward", "_derivative"))
        params = numbers_of(forward, slope)
        stored = compute(lib, forward, view, **params) if back.arrays[1] == "y" else view
        got = truth.long(compute(lib, back, dy, stored, **params))
        want = truth.long(compute(lib, slope_of, view, **params)) * truth.long(dy)
        exact = [np.asarray(slope).astype(compute_dtype(x.dtype))] * len(back.kernel.parameters)
        reads = [{"dy": dy, "x": view, "y": stored}[a] for a in back.kernel.reads] + exact
        formula = back.kernel.formula
        value = truth.elementwise(formula, *reads)
        error = bounds.elementwise(formula, lib.family, x.dtype, reads, value)
        error = error + size * allowed_of(slope_of, lib, view, slope)
        if name in OF_Y:
            error = error + OF_Y[name] * size * allowed_of(forward, lib, view)
        assert (np.abs(got - want) <= error).all(), name


@for_all(x=arrays(), slope=SLOPES)
def test_fused_alone_is_the_activation(lib, x, slope):
    view = x.of(lib)
    for name in FORWARD:
        params, want = {}, view
        if name != "linear":  # which is the identity there
            params = numbers_of(ELEMENTWISE[name], slope)
            want = compute(lib, ELEMENTWISE[name], view, **params)
        same_bits(compute(lib, gpuact.fused, view, activation=name, **params), want, name)


@for_all("torch-cpu", x=arrays(overlap=False), slope=SLOPES)
def test_autograd_gives_what_backward_gives(lib, x, slope):
    import torch

    view = x.of(lib)
    dy = lib.place(gradient(view)).native
    for name in FORWARD:
        public, back = ELEMENTWISE[name], ELEMENTWISE[f"{name}_backward"]
        params, leaf = numbers_of(public, slope), lib.place(view).native.requires_grad_()
        y = public(leaf, **params)
        (got,) = torch.autograd.grad(y, leaf, dy)
        stored = y.detach() if back.arrays[1] == "y" else leaf.detach()
        want = back.dx(dy, stored, *params.values())
        same_bits(*(lib.executor.to_numpy(a) for a in (got, want)), name)


# -- rows -----------------------------------------------------------------------------------------


def row_errors(name: str, x: Array, axis: Any) -> tuple[Array, Array]:
    """Of each row's elements, (rows, n, 1): the truth, and how far from it each may be."""
    rows = as_rows(x, axis)
    value = truth.ROWS[name](rows)
    return value, bounds.rows(name, str(x.dtype), [rows], value)


SOME = arrays(special=False, least=1, empty=False)


@for_all(x=SOME, data=st.data())
def test_softmax_sums_to_one(lib, x, data):
    view = x.of(lib)
    axis = data.draw(axes(view.ndim), "axis")
    y = truth.long(as_rows(compute(lib, gpuact.softmax, view, axis=axis), axis))
    assert ((y >= 0) & (y <= 1)).all()
    _, allowed = row_errors("softmax", view, axis)
    assert (np.abs(y.sum(1) - 1) <= allowed.sum(1)).all()


@for_all(x=SOME, data=st.data())
def test_log_softmax_is_the_logarithm_of_softmax(lib, x, data):
    view = x.of(lib)
    axis = data.draw(axes(view.ndim), "axis")
    got = as_rows(compute(lib, gpuact.log_softmax, view, axis=axis), axis)
    got, (value, error) = truth.long(got), row_errors("log_softmax", view, axis)
    assert (got <= 0).all()
    share = np.exp(value)
    assert (np.abs(np.exp(got).sum(1) - 1) <= (share * np.expm1(error)).sum(1)).all()
    y = truth.long(as_rows(compute(lib, gpuact.softmax, view, axis=axis), axis))
    _, of_y = row_errors("softmax", view, axis)
    assert (np.abs(np.exp(got) - y) <= of_y + share * np.expm1(error)).all()


@for_all(
    name=ROW,
    quarters=st.lists(st.integers(-64, 64), min_size=1, max_size=20),
    shift=st.integers(-63, 63),
    dtype=st.sampled_from(list(DTYPES)),
)
def test_a_row_may_be_shifted(lib, name, quarters, shift, dtype):
    """By what is added without rounding: the distances to the maximum stay the same."""
    x, c = np.array(quarters) / 4, shift / 4
    assume(all(v.astype(DTYPES[dtype]) == v for v in x + c))
    rows = [v.astype(DTYPES[dtype]) for v in (x, x + c)]
    first, second = (compute(lib, getattr(gpuact, name), row) for row in rows)
    same_bits(first, second)


@for_all(name=ROW, x=arrays(least=2, empty=False), data=st.data())
def test_rows_may_change_places(lib, name, x, data):
    view = x.of(lib)
    order = data.draw(st.permutations(range(len(view))), "order")
    function = getattr(gpuact, name)
    same_bits(compute(lib, function, view[list(order)]), compute(lib, function, view)[list(order)])


@for_all(name=ROW, x=SOME)
def test_a_row_keeps_its_order(lib, name, x):
    row = in_order(x.of(lib).ravel())
    y = compute(lib, getattr(gpuact, name), row)
    assert (y[1:] >= y[:-1]).all()


@for_all(x=SOME)
def test_the_jacobian_times_dy_is_backward(lib, x):
    view = x.of(lib)
    assume(view.shape[-1] * view.size <= 5000)
    s = compute(lib, gpuact.softmax, view)
    placed, n = lib.place(s), s.shape[-1]
    jacobian = gpuact.softmax_jacobian(placed.native)
    jacobian = truth.long(lib.numpy(jacobian, placed.native, (*s.shape, n), x.dtype))
    dy = gradient(s)
    wide = truth.long(dy)
    product = (jacobian @ wide[..., None])[..., 0]
    got = truth.long(compute(lib, gpuact.softmax_backward, dy, s))
    rows = [as_rows(a, -1) for a in (dy, s)]
    value = truth.softmax_backward(*rows)
    error = bounds.rows("softmax_backward", x.dtype, rows, value).reshape(s.shape)
    of_each = 2 * ulp(jacobian, x.dtype) + bounds.stored(jacobian, x.dtype)
    error = error + (of_each @ np.abs(wide)[..., None])[..., 0]
    assert (np.abs(product - got) <= error).all()


# -- cross-entropy --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """Logits of rows, their targets and options."""

    x: Given
    seed: int
    probabilities: bool
    weighted: bool
    label_smoothing: float
    z_loss: float

    def arrays(self, lib: Library) -> tuple[Array, Array, Array | None]:
        logits = self.x.of(lib).reshape(-1, self.x.shape[-1])
        rng = np.random.default_rng(self.seed)
        rows, n = logits.shape
        weight = rng.uniform(0.25, 2, n).astype(compute_dtype(self.x.dtype))
        if self.probabilities:
            target = rng.uniform(0, 1, (rows, n)).astype(logits.dtype)
        else:
            target = np.where(rng.random(rows) < 0.2, -100, rng.integers(0, n, rows))
        return logits, target, weight if self.weighted else None

    def truth(self, lib: Library, lse: Array | None = None) -> tuple[dict[str, Array], ...]:
        """loss, lse and gradient of each row, and how far from them a result may be.

        lse: as it is stored, for a gradient that is made from it.
        """
        z, target, weight = self.arrays(lib)
        rows = None if lse is None else lse[:, None]
        options = (-100, self.label_smoothing, self.z_loss)
        t = truth.cross_entropy(z[:, :, None], target[..., None], weight, *options, lse=rows)
        plain = not (self.probabilities or self.label_smoothing)
        added: dict[str, Any] = {"z_loss": self.z_loss, "from_lse": lse is not None}
        allowed = bounds.cross_entropy(t, lib.family, self.x.dtype, plain, **added)
        for name in allowed:
            kind = self.x.dtype if name == "gradient" else compute_dtype(self.x.dtype)
            allowed[name] = (allowed[name] + bounds.stored(t[name], kind))[..., 0]
        return {name: t[name][..., 0] for name in allowed}, allowed

    def call(self, lib: Library, function: Callable[..., Any], **more: Any) -> Any:
        z, target, weight = (a if a is None else lib.place(a).native for a in self.arrays(lib))
        options = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss}
        return function(z, target, weight=weight, reduction="none", **options, **more)


LOSS = st.builds(
    Loss,
    SOME,
    st.integers(0, 99),
    st.booleans(),
    st.booleans(),
    st.sampled_from((0.0, 0.1, 1.0)),
    st.sampled_from((0.0, 0.01)),
)


@for_all(loss=LOSS)
def test_the_gradient_of_cross_entropy_sums_to_zero(lib, loss):
    """Over the classes; z_loss adds 2 z_loss·lse to the sum."""
    _, dz = loss.call(lib, gpuact.cross_entropy_with_grad)
    got = truth.long(lib.executor.to_numpy(dz))
    t, allowed = loss.truth(lib)
    check(got, t["gradient"], allowed["gradient"], loss.x.dtype, "gradient")
    _, target, _ = loss.arrays(lib)
    counts = True if loss.probabilities else target != -100
    total = np.where(counts, 2 * LONG(loss.z_loss) * t["lse"], 0)
    rounding = 2 * np.spacing(np.abs(total))
    assert (np.abs(got.sum(1) - total) <= allowed["gradient"].sum(1) + rounding).all()


@for_all(loss=LOSS)
def test_loss_and_gradient_at_once_or_apart(lib, loss):
    """The same loss; gradients as near as the stored lse allows."""
    value, lse = loss.call(lib, gpuact.cross_entropy, return_lse=True)
    again, at_once = loss.call(lib, gpuact.cross_entropy_with_grad)
    backward = gpuact.cross_entropy_backward
    one = lib.place(np.ones(*value.shape, str(value.dtype).removeprefix("torch."))).native
    apart = loss.call(lib, lambda z, target, **options: backward(one, z, target, lse, **options))
    value, lse, again, at_once, apart = (
        lib.executor.to_numpy(a) for a in (value, lse, again, at_once, apart)
    )
    t, allowed = loss.truth(lib)
    kind = compute_dtype(loss.x.dtype)
    for name, got in (("loss", value), ("loss", again), ("lse", lse)):
        check(got, t[name], allowed[name], kind, name)
    from_lse, error = loss.truth(lib, lse)
    check(at_once, t["gradient"], allowed["gradient"], loss.x.dtype, "gradient at once")
    check(apart, from_lse["gradient"], error["gradient"], loss.x.dtype, "gradient from lse")
    between = np.abs(t["gradient"] - from_lse["gradient"])
    difference = np.abs(truth.long(at_once) - truth.long(apart))
    assert (difference <= allowed["gradient"] + error["gradient"] + between).all()


# -- on many inputs -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lib"),
    [pytest.param(name, lib, id=f"{name}-{lib}") for name, (_, on) in MANY.items() for lib in on],
    indirect=["lib"],
)
def test_many_inputs(lib, name):
    MANY[name][0](lib=lib)
