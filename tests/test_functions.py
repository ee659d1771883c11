"""Every public function through its public signature, on every library of arrays.

The functions come from the catalogue. Inputs keep awkward strides and alignments, hold NaN,
infinities, signed zeros and subnormals, and must come back unmodified; outputs start as NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest

import gpuact
from gpuact.catalogue import FUNCTIONS, Function, Pass
from tests import bounds, truth
from tests.bounds import DTYPES, FORMATS, check
from tests.harness import Placed
from tests.libraries import (
    LIBRARIES,
    Library,
    layouts,
    libraries,
    too_large,
    untouched,
    values,
)
from tests.truth import LONG, Array


@dataclass(frozen=True)
class Public:
    """One public elementwise function: its arrays and parameters in the order of its signature."""

    name: str
    function: Function
    kernel: Pass
    arrays: tuple[str, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(self.function.defaults)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return getattr(gpuact, self.name)(*args, **options)

    def dx(self, *args: Any) -> Any:
        """The result; of a backward that gives several, the gradient of its input."""
        result = self(*args)
        return result[0] if isinstance(result, tuple) else result

    def operands(self, arrays: list[Any], params: dict[str, Any]) -> list[Any]:
        """What the formula reads, in its own order."""
        named = dict(zip(self.arrays, arrays, strict=True), **params)
        return [named[name] for name in self.kernel.reads + self.kernel.parameters]


def _public(f: Function) -> list[Public]:
    stored = f.saved or ("x",)
    assert f.slope is not None
    return [
        Public(f.name, f, f.forward, ("x",)),
        Public(f"{f.name}_backward", f, f.backward, ("dy", *stored)),
        Public(f"{f.name}_derivative", f, f.slope, ("x",)),
    ]


ELEMENTWISE = {p.name: p for f in FUNCTIONS.values() if f.kind == "elementwise" for p in _public(f)}
WITH_OUT = [p.name for p in ELEMENTWISE.values() if p.arrays == ("x",)]
ROWS = [f.name for f in FUNCTIONS.values() if f.kind == "rows"]
NUMBERS = {"scale": -1.5, "bias": 0.25, "negative_slope": 0.1, "weight": 1.7}


def compute(value: Any, dtype: str) -> Any:
    """A parameter in the precision of the computation, in which it enters."""
    return np.asarray(value).astype(DTYPES[bounds.compute_dtype(dtype)])


def as_output(function: Function, x: Array) -> Array:
    """What the function gives for x, rounded as it is stored."""
    params = [NUMBERS[name] for name in function.forward.parameters]
    with np.errstate(all="ignore"):
        y = truth.elementwise(function.forward.formula, x, *params)
        return y.astype(np.float64).astype(x.dtype)


GRADIENTS = [np.nan, np.inf, 0.0, -0.0, 1e-3, -1e4]


def inputs(public: Public, x: Array, dy: Array) -> list[Array]:
    """(x,), or dy and what is stored of x."""
    if public.arrays == ("x",):
        return [x]
    return [dy, x if public.arrays[1] == "x" else as_output(public.function, x)]


def verify(
    public: Public,
    lib: Library,
    result: Any,
    placed: list[Placed],
    arrays: list[Array],
    params: dict[str, Any],
    case: str = "",
) -> Array:
    """The result is of the library, shape and dtype that it must be, and as near as it must be."""
    dtype = str(arrays[-1].dtype)
    got = lib.numpy(result, placed[-1].native, arrays[-1].shape, dtype)
    wide = {name: compute(p, dtype) for name, p in params.items()}
    operands = public.operands(arrays, wide)
    value = truth.elementwise(public.kernel.formula, *operands)
    value = np.broadcast_to(value, arrays[-1].shape)
    allowed = bounds.elementwise(public.kernel.formula, lib.family, dtype, operands, value)
    allowed = np.where(bounds.defined(lib.family, dtype, operands), allowed, np.inf)
    check(got, value, allowed, dtype, f"{public.name} {lib.name} {dtype} {case}")
    return got


# -- elementwise ----------------------------------------------------------------------------------


@pytest.mark.every
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(lib, name, dtype):
    public = ELEMENTWISE[name]
    params = {p: NUMBERS[p] for p in public.parameters}
    for (layout, x), (_, dy) in zip(
        layouts(lib, dtype), layouts(lib, dtype, 1, GRADIENTS), strict=True
    ):
        arrays = inputs(public, x, dy)
        placed = [lib.place(a) for a in arrays]
        result = public.dx(*(p.native for p in placed), *params.values())
        verify(public, lib, result, placed, arrays, params, layout)
        untouched(*placed)


# -- out= -----------------------------------------------------------------------------------------

# name → memory, view of x and view of out in one and the same memory
SHARED: dict[str, tuple[tuple[int, ...], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "x itself": ((7, 5), lambda m: m, lambda m: m),
    "x itself, strided": ((9, 8), lambda m: m[::2, 1::3], lambda m: m[::2, 1::3]),
    "shifted up": ((1040,), lambda m: m[:-1], lambda m: m[1:]),
    "shifted down": ((1040,), lambda m: m[1:], lambda m: m[:-1]),
    "shifted rows": ((6, 70), lambda m: m[:-1], lambda m: m[1:]),
    "transposed onto itself": ((31, 31), lambda m: m, lambda m: m.transpose(1, 0)),
    "interleaved": ((2000,), lambda m: m[::2], lambda m: m[1::2]),
    "far apart and large": ((2, 150_000), lambda m: m[0], lambda m: m[1]),
    "large and shifted": ((150_001,), lambda m: m[:-1], lambda m: m[1:]),
    "large and shifted rows": ((600, 300), lambda m: m[:-1], lambda m: m[1:]),
}
APART: dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]] = {
    "fresh": ((6, 4, 5), lambda m: m),
    "strided": ((12, 4, 11), lambda m: m[::2, :, 1::2]),
    "transposed": ((5, 6, 4), lambda m: m.transpose(1, 2, 0)),
    "misaligned": ((121,), lambda m: m[1:].reshape(6, 4, 5)),
}


@pytest.mark.parametrize("name", WITH_OUT)
def test_out_in_the_memory_of_x(lib, name, dtype):
    public = ELEMENTWISE[name]
    params = {p: NUMBERS[p] for p in public.parameters}
    for case, (shape, of_x, of_out) in SHARED.items():
        if too_large(lib, shape):
            continue
        x = values(shape, dtype)
        memory = lib.place(x)
        out = of_out(memory.native)
        assert public(of_x(memory.native), *params.values(), out=out) is out
        after = memory.numpy()
        verify(public, lib, out, [memory], [of_x(x)], params, case)
        outside = np.ones(shape, bool)
        of_out(outside)[...] = False
        assert after[outside].tobytes() == x[outside].tobytes(), f"{case}: written beside out"


@pytest.mark.parametrize("name", WITH_OUT)
def test_out_of_its_own(lib, name, dtype):
    public = ELEMENTWISE[name]
    params = {p: NUMBERS[p] for p in public.parameters}
    for case, (shape, view) in APART.items():
        x = values((6, 4, 5), dtype)
        placed, out = lib.place(x), lib.blank(view(np.empty(shape, DTYPES[dtype])))
        assert public(placed.native, *params.values(), out=out.native) is out.native
        out.numpy()  # nothing was written between the elements
        verify(public, lib, out.native, [placed], [x], params, case)
        untouched(placed)


def test_out_in_the_memory_of_a_parameter(lib):
    x, full = values((4, 6), "float32"), values((5, 6), "float32", 1, [])
    placed, memory = lib.place(x), lib.place(full)
    scale, out = memory.native[:-1], memory.native[1:]
    assert gpuact.linear(placed.native, scale, 0.5, out=out) is out
    params = {"scale": full[:-1], "bias": 0.5}
    verify(ELEMENTWISE["linear"], lib, out, [placed], [x], params)
    memory = lib.place(full)
    row, out = memory.native[0], memory.native[:4]
    gpuact.prelu(placed.native, row, out=out)
    verify(ELEMENTWISE["prelu"], lib, out, [placed], [x], {"weight": full[:1]})


def test_any_two_views_of_one_memory(lib):
    """x and out cut at random from one buffer, with a parameter from it as well."""
    rng = np.random.default_rng(13)
    first = 1 if not lib.executor.negative_strides else -2
    for _ in range(20 if lib.executor.gpu or lib.family == "interpreter" else 150):
        shape = tuple(rng.integers(1, 5, 2).tolist())
        memory = lib.place(values((12, 13), "float32", int(rng.integers(1000)), []))
        before = memory.before.reshape(12, 13).copy()

        def cut(shape: tuple[int, ...] = shape) -> tuple[slice, ...]:
            """The index of a view of that shape, of random start and steps."""
            index = []
            for n, size in zip(shape, (12, 13), strict=True):
                step = int(rng.choice([s for s in range(first, 3) if s]))
                span = (n - 1) * abs(step)
                low = int(rng.integers(0, size - span))
                places = range(low, low + span + 1, abs(step))[:: 1 if step > 0 else -1]
                stop = places[-1] + (1 if step > 0 else -1)
                index.append(slice(places[0], stop if stop >= 0 else None, step))
            return tuple(index)

        at = {name: cut() for name in ("x", "out", "scale")}
        views = {name: memory.native[index] for name, index in at.items()}
        copies = {name: before[index].copy() for name, index in at.items()}
        if rng.random() < 0.5:
            gpuact.linear(views["x"], views["scale"], 1.0, out=views["out"])
            want = copies["x"] * copies["scale"] + np.float32(1)
        else:
            axis = int(rng.integers(0, 2))
            gpuact.softmax(views["x"], axis, out=views["out"])
            rows = as_rows(copies["x"], axis)
            want = np.empty(copies["x"].size)
            order = as_rows(np.arange(want.size).reshape(copies["x"].shape), axis)
            want[order.ravel()] = truth.softmax(rows).ravel()
            want = want.reshape(copies["x"].shape)
        after = memory.numpy().reshape(12, 13)
        np.testing.assert_allclose(after[at["out"]], want, rtol=1e-5, atol=1e-6)
        after[at["out"]] = before[at["out"]]
        assert (after == before).all(), "written beside out"


# -- parameters -----------------------------------------------------------------------------------

SHAPES: dict[str, tuple[int, ...]] = {
    "0-d": (),
    "one element": (1,),
    "per channel": (6, 1, 1),
    "last axis": (5,),
    "outer": (3, 1, 1, 1),
    "full": (3, 6, 4, 5),
}


@pytest.mark.parametrize("name", [n for n in ELEMENTWISE if n.startswith("linear")])
def test_parameters_of_linear(lib, name, dtype):
    public = ELEMENTWISE[name]
    for kind, shape in product({dtype, "float32", "float64"}, SHAPES.values()):
        arrays = [values((3, 6, 4, 5), dtype, k) for k in range(len(public.arrays))]
        if "dy" in public.arrays:
            arrays[0] = values((3, 6, 4, 5), dtype, 5, [0.0, np.nan])
        scale, bias = (values(shape, kind, seed, []) for seed in (7, 8))
        placed = [lib.place(a) for a in (*arrays, scale, bias)]
        result = public.dx(*(p.native for p in placed))
        first = placed[: len(arrays)]
        verify(public, lib, result, first, arrays, {"scale": scale, "bias": bias})
        untouched(*placed)


# the slopes' shape, channel_axis, and the shape in which they meet x (3, 6, 4, 5)
SLOPES = {
    "0-d": ((), 1, (1, 1, 1, 1)),
    "one element": ((1,), 1, (1, 1, 1, 1)),
    "per channel": ((6,), 1, (1, 6, 1, 1)),
    "channels last": ((5,), -1, (1, 1, 1, 5)),
    "channels first": ((3,), 0, (3, 1, 1, 1)),
    "broadcast": ((3, 1, 4, 1), 1, (3, 1, 4, 1)),
    "full": ((3, 6, 4, 5), 1, (3, 6, 4, 5)),
}


@pytest.mark.parametrize("name", [n for n in ELEMENTWISE if n.startswith("prelu")])
def test_slopes_of_prelu(lib, name, dtype):
    public = ELEMENTWISE[name]
    for kind, (shape, axis, meets) in product({dtype, "float32"}, SLOPES.values()):
        arrays = [values((3, 6, 4, 5), dtype, k) for k in range(len(public.arrays))]
        if "dy" in public.arrays:
            arrays[0] = values((3, 6, 4, 5), dtype, 5, [0.0, np.nan])
        weight = values(shape, kind, 7, [])
        placed = [lib.place(a) for a in (*arrays, weight)]
        result = public(*(p.native for p in placed), channel_axis=axis)
        result = result[0] if isinstance(result, tuple) else result
        params = {"weight": weight.reshape(meets)}
        verify(public, lib, result, placed[: len(arrays)], arrays, params)


def test_slopes_go_with_their_axis_where_two_axes_have_one_size(lib):
    x, weight = -np.ones((2, 4, 4), np.float32), np.arange(1, 5, dtype=np.float32)
    placed, slopes = lib.place(x), lib.place(weight)
    for axis, meets in ((1, (1, 4, 1)), (2, (1, 1, 4)), (-1, (1, 1, 4)), (-2, (1, 4, 1))):
        want = np.broadcast_to(-weight.reshape(meets), x.shape)
        got = gpuact.prelu(placed.native, slopes.native, channel_axis=axis)
        assert (lib.numpy(got, placed.native, x.shape, "float32") == want).all()
        dx, dweight = gpuact.prelu_backward(
            placed.native, placed.native, slopes.native, channel_axis=axis
        )
        assert (lib.numpy(dx, placed.native, x.shape, "float32") == want).all()
        assert (lib.numpy(dweight, placed.native, (4,), "float32") == 8).all()


@pytest.mark.parametrize("slopes", [(), (1,), (2, 1), (5,)])
def test_one_dimension_has_one_slope_or_one_an_element(lib, slopes):
    if slopes == (2, 1):
        with pytest.raises(ValueError, match="weight"):
            gpuact.prelu(lib.place(np.ones(5)).native, lib.place(np.ones(slopes)).native)
        return
    x, weight = np.array([-1.0, 2.0, -3.0, -0.0, 4.0]), np.linspace(-1, 3, math.prod(slopes))
    placed, given = lib.place(x), lib.place(weight.reshape(slopes))
    want = np.where(x > 0, x, x * weight)
    for axis in (1, 0, -1):
        got = gpuact.prelu(placed.native, given.native, channel_axis=axis)
        assert (lib.numpy(got, placed.native, (5,), "float64") == want).all()


def test_lists_of_parameters():
    x = np.array([[-1.0, 2.0], [3.0, -4.0]], np.float32)
    got = gpuact.linear(x, [2.0, 3.0], [1, -1])
    assert got.dtype == np.float32
    assert got.tolist() == [[-1.0, 5.0], [7.0, -13.0]]
    assert gpuact.prelu(x, [0.5, 2.0]).tolist() == [[-0.5, 2.0], [3.0, -8.0]]
    assert gpuact.prelu(x, [0.5]).tolist() == [[-0.5, 2.0], [3.0, -2.0]]
    for scale in (np.float16(2), np.float64(2), np.int8(2), 2):
        assert gpuact.linear(x, scale).dtype == np.float32
        assert gpuact.linear(x, scale).tolist() == (2 * x).tolist()


def test_parameters_do_not_lose_digits_to_a_half_type(lib):
    """0.1 enters half types as float32 does: rounded to their own 11 or 8 bits it would show."""
    for dtype in ("float16", "bfloat16"):
        x = lib.place(np.array([-4096.0, -3.0], DTYPES[dtype]))
        want = (np.float32(0.1) * np.array([-4096.0, -3.0], np.float32)).astype(DTYPES[dtype])
        got = lib.numpy(gpuact.leaky_relu(x.native, 0.1), x.native, (2,), dtype)
        assert got.tolist() == want.tolist()
        weight = lib.place(np.full(1, 0.1, np.float32)).native
        got = lib.numpy(gpuact.prelu(x.native, weight), x.native, (2,), dtype)
        assert got.tolist() == want.tolist()


# -- gradients of parameters ----------------------------------------------------------------------


def sums(
    formula: str, arrays: tuple[Array, ...], kept: tuple[int, ...], dtype: str, shape: tuple
) -> tuple[Array, Array]:
    """The gradient of a parameter that met the arrays in the shape `kept`, and its bound."""
    total, size = truth.reduce(formula, arrays, kept)
    n = max(2, arrays[0].size // max(1, total.size))
    u = LONG(2) ** -FORMATS[bounds.compute_dtype(str(arrays[0].dtype))].digits
    allowed = u * size * bounds.row(n) + bounds.stored(total, dtype)
    return total.reshape(shape), allowed.reshape(shape)


def padded(shape: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return (1,) * (ndim - len(shape)) + shape


@pytest.mark.every
def test_gradients_of_scale_and_bias(lib, dtype):
    for kind, shape in product({dtype, "float32"}, SHAPES.values()):
        dy, x = (values((3, 6, 4, 5), dtype, seed, []) for seed in (1, 2))
        scale, bias = (values(shape, kind, seed, []) for seed in (3, 4))
        placed = [lib.place(a) for a in (dy, x, scale, bias)]
        _, dscale, dbias = gpuact.linear_backward(*(p.native for p in placed))
        for got, formula, arrays in (
            (dscale, "linear_dscale", (dy, x)),
            (dbias, "linear_dbias", (dy,)),
        ):
            value, allowed = sums(formula, arrays, padded(shape, 4), kind, shape)
            check(lib.numpy(got, placed[0].native, shape, kind), value, allowed, kind, formula)
        untouched(*placed)


@pytest.mark.every
def test_gradient_of_slopes(lib, dtype):
    for case, (shape, axis, meets) in SLOPES.items():
        dy, x = (values((3, 6, 4, 5), dtype, seed, []) for seed in (1, 2))
        placed = [lib.place(a) for a in (dy, x, values(shape, dtype, 3, []))]
        _, dweight = gpuact.prelu_backward(*(p.native for p in placed), channel_axis=axis)
        value, allowed = sums("prelu_dweight", (dy, x), meets, dtype, shape)
        check(lib.numpy(dweight, placed[0].native, shape, dtype), value, allowed, dtype, case)


@pytest.mark.every
def test_gradients_of_numbers(lib, dtype):
    for layout, x in layouts(lib, dtype, 0, []):
        dy = values(x.shape, dtype, 1, [])
        placed = [lib.place(dy), lib.place(x)]
        _, dscale, dbias = gpuact.linear_backward(*(p.native for p in placed), 2.0, -1)
        _, dweight = gpuact.prelu_backward(*(p.native for p in placed), 0.5)
        for got, formula, arrays in (
            (dscale, "linear_dscale", (dy, x)),
            (dbias, "linear_dbias", (dy,)),
            (dweight, "prelu_dweight", (dy, x)),
        ):
            value, allowed = sums(formula, arrays, (1,) * x.ndim, dtype, ())
            got = lib.numpy(got, placed[0].native, (), dtype)
            check(got, value, allowed, dtype, f"{formula} {layout}")
        untouched(*placed)


def test_a_sum_is_the_same_every_time_and_quiet(lib):
    dy, x = (lib.place(values((150_000,), "float32", seed, [])) for seed in (1, 2))
    runs = [gpuact.linear_backward(dy.native, x.native, 1.0, 0.0) for _ in range(3)]
    for results in zip(*runs, strict=True):
        assert len({lib.executor.to_numpy(r).tobytes() for r in results}) == 1
    far = np.zeros(150_000, np.float32)
    far[0], far[-1] = np.inf, -np.inf
    one = lib.place(np.ones(150_000, np.float32)).native
    placed = lib.place(far)
    _, dscale, dbias = gpuact.linear_backward(placed.native, one, 1.0, 0.0)
    assert np.isnan(lib.numpy(dscale, one, (), "float32"))
    assert np.isnan(lib.numpy(dbias, one, (), "float32"))


def test_a_sum_beyond_float16_is_infinite(lib):
    dy, x = (lib.place(np.full(100, 100.0, np.float16)) for _ in range(2))
    _, dscale, dbias = gpuact.linear_backward(dy.native, x.native, 1.0, 0.0)
    assert lib.numpy(dscale, dy.native, (), "float16") == np.inf
    assert lib.numpy(dbias, dy.native, (), "float16") == 10000


def test_slopes_are_learned_where_x_is_not_positive(lib):
    """x decides, never y: with a negative slope y is positive on both sides."""
    x, dy = lib.place(np.array([-2.0, 3.0, 0.0, -1.0])), lib.place(np.array([1.0, 1.0, 1.0, 10.0]))
    dx, dweight = gpuact.prelu_backward(dy.native, x.native, -0.5)
    assert lib.numpy(dx, x.native, (4,), "float64").tolist() == [-0.5, 1.0, -0.5, -5.0]
    assert lib.numpy(dweight, x.native, (), "float64") == -12.0


# -- dtypes ---------------------------------------------------------------------------------------

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


INTEGRAL = ["linear", "sigmoid", "tanh", "softmax", "log_softmax", "linear_derivative"]
INTEGRAL += ["sigmoid_derivative", "tanh_derivative", "relu_derivative"]


@pytest.mark.parametrize("kind", (*INTEGERS, "bool"))
def test_integers_are_taken_as_float32(lib, kind):
    x = (np.arange(12).reshape(3, 4) % (2 if kind == "bool" else 12)).astype(kind)
    placed, wide = lib.place(x), lib.place(x.astype(np.float32))
    for function in (getattr(gpuact, name) for name in INTEGRAL):
        got = lib.numpy(function(placed.native), placed.native, (3, 4), "float32")
        assert got.tobytes() == lib.executor.to_numpy(function(wide.native)).tobytes()
    untouched(placed)


@pytest.mark.parametrize("kind", INTEGERS)
def test_relu_keeps_integers(lib, kind):
    info = np.iinfo(kind)
    x = np.array([info.min, info.max, 0, 1, info.max - 1, info.min + 1, 100, 2], kind)
    placed, out = lib.place(x[::2]), lib.blank(np.empty(4, kind))
    want = np.maximum(x[::2], 0)
    got = gpuact.relu(placed.native)
    assert (lib.numpy(got, placed.native, (4,), kind) == want).all()
    assert gpuact.relu(placed.native, out=out.native) is out.native
    assert (out.numpy() == want).all()
    untouched(placed)
    assert gpuact.relu(placed.native, out=placed.native) is placed.native
    assert (placed.numpy() == want).all()


def test_a_call_is_the_same_the_second_time():
    """When its kind is known: of numbers, lists, 0-d arrays, parameters of other types."""
    x, slopes = np.array([-1.0, 2.0]), np.array([0.5, 0.25])
    drop = gpuact.Dropout(0.5, seed=3)
    calls: list[Callable[[], Any]] = [
        lambda: gpuact.relu(-3.0),
        lambda: gpuact.relu(-3),
        lambda: gpuact.relu(-3.0, out=np.array(7.0)),
        lambda: gpuact.prelu(-3.0, np.array(0.5)),
        lambda: gpuact.prelu(x, 1),
        lambda: gpuact.prelu(x, True),
        lambda: gpuact.prelu(x, np.float32(0.1)),
        lambda: gpuact.prelu(x, [0.5, 0.25], channel_axis=0),
        lambda: gpuact.prelu(x, slopes, channel_axis=np.int64(0)),
        lambda: gpuact.sigmoid_backward(1.0, 0.5),
        lambda: gpuact.fused(3.0, "relu", dropout=drop),
        lambda: gpuact.fused(x, "relu", dropout=gpuact.Dropout(np.float32(0.5), np.int32(3))),
        lambda: gpuact.fused(x, "prelu", weight=[0.5, 0.25], dropout=drop),
        lambda: gpuact.fused_backward(1.0, np.array(3.0), "relu", gate=2.0)["gate"],
        lambda: gpuact.fused_backward(x, x, "prelu", weight=[0.5, 0.25])["weight"],
        lambda: gpuact.fused_backward(x, x, "relu", scale=[1.0, 2.0])["scale"],
        lambda: gpuact.fused_backward(x, x, "relu", residual=x.astype("f4"))["residual"],
    ]
    for call in calls:
        first, *others = call(), call(), call()
        for again in others:
            assert type(again) is type(first)
            assert again.dtype == first.dtype
            assert np.array_equal(again, first)


def test_lists_and_numbers_are_numpy_arrays():
    for given, dtype in (([1.0, -2.0], "float64"), ([1, -2], "int64"), (-2.5, "float64")):
        got = gpuact.relu(given)
        assert isinstance(got, np.ndarray)
        assert got.dtype == dtype
        assert got.tolist() == np.maximum(given, 0).tolist()
    assert gpuact.sigmoid([0, 0]).dtype == np.float32
    assert gpuact.sigmoid(np.float16(0)).dtype == np.float16
    assert gpuact.softmax([[1.0, 1.0]]).tolist() == [[0.5, 0.5]]
    assert gpuact.cross_entropy([[0.0, 0.0]], [1]) == np.log(2.0)


def test_gradients_are_taken_in_the_dtype_of_what_was_stored(lib):
    """Rounded to it, too: 0.7 counts as float16 has it."""
    y = lib.place(np.array([0.5, 0.25, 0.25], np.float16))
    dy = lib.place(np.array([2.0, 1e300, 0.7], np.float64))
    got = lib.numpy(gpuact.sigmoid_backward(dy.native, y.native), y.native, (3,), "float16")
    rounded = np.float16(np.float32(np.float16(0.7)) * np.float32(0.1875))
    assert rounded != np.float16(0.7 * 0.1875)
    assert got.tolist() == [0.5, np.inf, rounded]
    y = lib.place(np.array([0.5, 0.25], np.float16))
    got = gpuact.softmax_backward(lib.place(np.array([1, 0])).native, y.native)
    assert lib.numpy(got, y.native, (2,), "float16").tolist() == [0.25, -0.125]


# -- rows -----------------------------------------------------------------------------------------

AXES: tuple[tuple[tuple[int, ...], Any], ...] = (
    ((), -1),
    ((), None),
    ((7,), 0),
    ((4, 33), -1),
    ((33, 4), 0),
    ((3, 5, 7), 1),
    ((3, 5, 7), -3),
    ((3, 5, 7), None),
    ((3, 5, 7), (0, 1)),
    ((3, 5, 7), (2, 1)),
    ((3, 5, 7), (0, -1)),
    ((2, 3, 4, 5), (1, 3)),
    ((2, 3, 4, 5), (0, 2, 3)),
    ((2, 3, 4, 5), (1, 2)),
    ((2, 3, 4, 5), [0, 2]),
    ((3, 1, 5), 1),
    ((1, 6, 1), (0, 1)),
    ((3, 0, 5), 1),
    ((3, 0, 5), 2),
    ((0,), 0),
    ((2, 100_003), -1),
    ((1500, 2), 0),
)


def as_rows(x: Array, axis: Any) -> Array:
    """(rows, n, 1), by NumPy's own moveaxis."""
    x = x.reshape(1) if x.ndim == 0 else x
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple | list) else (axis,)
    axes = [a % x.ndim for a in axes]
    n = math.prod(x.shape[a] for a in axes)
    moved = np.moveaxis(x, axes, range(-len(axes), 0))
    return moved.reshape(math.prod(moved.shape[: x.ndim - len(axes)]), n, 1)


def row_values(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    """Logits with -inf among them, as masks leave."""
    return values(shape, dtype, seed, [-np.inf, 0.0, -0.0, 12.0, -30.0])


def verify_rows(
    name: str,
    lib: Library,
    result: Any,
    placed: list[Placed],
    arrays: list[Array],
    axis: Any,
    case: str = "",
) -> Array:
    dtype = str(arrays[-1].dtype)
    got = lib.numpy(result, placed[-1].native, arrays[-1].shape, dtype)
    if got.size:
        rows = [as_rows(a, axis) for a in arrays]
        value = truth.ROWS[name](*rows)
        allowed = bounds.rows(name, dtype, rows, value)
        what = f"{name} {lib.name} {dtype} {got.shape} axis {axis} {case}"
        check(as_rows(got, axis), value, allowed, dtype, what)
    return got


def row_output(name: str, x: Array, axis: Any) -> Array:
    """softmax or log_softmax of x as it is stored."""
    rows = as_rows(x, axis)
    flat = as_rows(np.arange(x.size).reshape(x.shape), axis)
    y = np.empty(x.size, x.dtype)
    if x.size:
        y[flat.ravel()] = truth.ROWS[name](rows).astype(np.float64).astype(x.dtype).ravel()
    return y.reshape(x.shape)


@pytest.mark.every
@pytest.mark.parametrize("name", ROWS)
def test_rows(lib, name, dtype):
    for shape, axis in AXES:
        run_rows(lib, name, row_values(shape, dtype), values(shape, dtype, 1, [0.0]), axis)


def run_rows(lib: Library, name: str, x: Array, dy: Array, axis: Any) -> None:
    """Forward on x, backward on dy and y, which is C-contiguous beside dy's strides."""
    placed = lib.place(x)
    verify_rows(name, lib, getattr(gpuact, name)(placed.native, axis), [placed], [x], axis)
    y = row_output(name, x, axis)
    both = [lib.place(dy), lib.place(y)]
    result = getattr(gpuact, f"{name}_backward")(*(p.native for p in both), axis)
    verify_rows(f"{name}_backward", lib, result, both, [dy, y], axis)
    untouched(placed, *both)


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), None], ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_rows_of_any_layout(lib, name, axis, dtype):
    for (_, x), (_, dy) in zip(
        layouts(lib, dtype, 0, [-np.inf, 0.0]), layouts(lib, dtype, 1, [0.0]), strict=True
    ):
        if x.ndim == 3:
            run_rows(lib, name, x, dy, axis)


@pytest.mark.parametrize("name", ROWS)
def test_out_of_rows(lib, name, dtype):
    for (case, (shape, view)), axis in product(APART.items(), (0, -1, (0, 2), None)):
        x = row_values((6, 4, 5), dtype)
        placed, out = lib.place(x), lib.blank(view(np.empty(shape, DTYPES[dtype])))
        assert getattr(gpuact, name)(placed.native, axis, out=out.native) is out.native
        out.numpy()
        verify_rows(name, lib, out.native, [placed], [x], axis, case)
        untouched(placed)


@pytest.mark.parametrize("name", ROWS)
def test_out_of_rows_in_the_memory_of_x(lib, name):
    for (case, (shape, of_x, of_out)), axis in product(SHARED.items(), (0, -1, None)):
        if too_large(lib, shape):
            continue
        x = row_values(shape, "float32")
        memory = lib.place(x)
        out = of_out(memory.native)
        assert getattr(gpuact, name)(of_x(memory.native), axis, out=out) is out
        after = memory.numpy()
        verify_rows(name, lib, out, [memory], [of_x(x)], axis, case)
        outside = np.ones(shape, bool)
        of_out(outside)[...] = False
        assert after[outside].tobytes() == x[outside].tobytes(), f"{case}: written beside out"


def infinite_rows(n: int, dtype: str) -> Array:
    """All -inf; one finite value at the start, middle and end; +inf; NaN; both; the largest."""
    x = np.full((9, n), -np.inf)
    x[1, 0] = x[2, n // 2] = x[3, -1] = -7.0
    x[4:] = np.random.default_rng(3).standard_normal(n)
    x[4, n // 3] = np.inf
    x[5, n // 3] = np.nan
    x[6, :-1] = np.inf
    x[6, -1] = np.nan
    x[7] = -FORMATS[dtype].largest
    x[8, ::2] = FORMATS[dtype].largest
    return x.astype(DTYPES[dtype])


# 70,001 does not fit into a block of a GPU, 300,000 not into a piece of the NumPy executor.
LENGTHS = [*((2, dtype) for dtype in DTYPES), (1027, "float16"), (70_001, "bfloat16")]
SLOW = [
    (n, dtype) for n in (1027, 70_001, 300_000) for dtype in DTYPES if (n, dtype) not in LENGTHS
]


@pytest.mark.parametrize(
    ("n", "dtype"), [*LENGTHS, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
@pytest.mark.parametrize("name", ROWS)
def test_rows_of_infinities(lib, name, n, dtype):
    if lib.name == "numpy-in-pieces" and n > 50_000:
        pytest.skip("what a long row would show, a short one in small pieces does")
    x = infinite_rows(n, dtype)
    placed = lib.place(x)
    got = verify_rows(name, lib, getattr(gpuact, name)(placed.native), [placed], [x], -1)
    nan = np.isnan(got.astype(np.float64))
    assert nan.all(1).tolist() == nan.any(1).tolist()
    assert nan.any(1).tolist() == [True, *[False] * 3, *[True] * 3, *[False] * 2]
    one = 0.0 if name == "log_softmax" else 1.0
    assert [got[1, 0], got[2, n // 2], got[3, -1]] == [one] * 3


def test_rows_in_another_dtype(lib, dtype):
    """x is cast first: the result is that of the cast array, and has its dtype."""
    for kind in DTYPES:
        x = values((5, 40), kind, 4, [3.0])
        placed = lib.place(x)
        with np.errstate(over="ignore"):
            cast = x.astype(DTYPES[dtype])
        like = lib.place(cast)
        out = lib.blank(np.empty((5, 40), DTYPES[dtype]))
        for spelling in (dtype, DTYPES[dtype]):
            result = gpuact.softmax(placed.native, dtype=spelling)
            verify_rows("softmax", lib, result, [like], [cast], -1)
        assert gpuact.log_softmax(placed.native, 0, dtype=dtype, out=out.native) is out.native
        verify_rows("log_softmax", lib, out.native, [like], [cast], 0)
        untouched(placed)


def test_a_row_does_not_depend_on_the_rows_beside_it(lib, dtype):
    """Nor on where it lies; Triton promises that for equal addresses modulo 32 only."""
    x = values((40, 1001), dtype, 9, [])
    many = lib.place(x)
    # What is placed lies modulo 16 as NumPy's does, and so begins in the first half of 32.
    alike = [k for k in range(40) if k * x.strides[0] % 32 < 16]
    for name, k in product(ROWS, (alike[0], alike[1], alike[-1])):
        function = getattr(gpuact, name)
        whole = lib.executor.to_numpy(function(many.native))[k].tobytes()
        for row in [x[k], x[k : k + 1]] + ([] if lib.family == "triton" else [x[k].copy()]):
            assert lib.executor.to_numpy(function(lib.place(row).native)).tobytes() == whole


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((5,), -1), ((3, 4), -1), ((3, 4), 0), ((2, 3, 4), 1), ((), -1), ((0, 3), 1)],
)
def test_softmax_jacobian(lib, shape, axis, dtype):
    s = row_output("softmax", row_values(shape, dtype), axis)
    placed = lib.place(s)
    flat = np.moveaxis(s.reshape(s.shape or (1,)), axis, -1)
    wide = truth.long(flat)
    n = flat.shape[-1]
    want = wide[..., None] * (np.eye(n, dtype=LONG) - wide[..., None, :])
    got = gpuact.softmax_jacobian(placed.native, axis)
    shape = (*flat.shape[:-1], n, n) if s.ndim else (1, 1)
    got = lib.numpy(got, placed.native, shape, dtype)
    check(got, want, 2 * bounds.ulp(want, dtype) + bounds.stored(want, dtype), dtype)
    untouched(placed)


# -- what NumPy users bring -----------------------------------------------------------------------


def test_foreign_byte_order_and_odd_addresses():
    x = np.linspace(-3, 3, 1001, dtype=np.float32)
    odd = np.zeros(4 * 1001 + 1, np.uint8)[1:].view(np.float32)
    odd[...] = x
    assert not odd.flags.aligned
    for strange in (x.astype(">f4"), odd):
        for name in ("sigmoid", "relu", "tanh_derivative", "softmax", "log_softmax"):
            function = getattr(gpuact, name)
            assert (function(strange) == function(x)).all()
            out = np.empty_like(strange)
            assert function(x, out=out) is out
            assert (out == function(x)).all()
        dweight = gpuact.prelu_backward(strange, strange, 0.5)[1]
        assert dweight == gpuact.prelu_backward(x, x, 0.5)[1]


def test_subclasses_are_taken_as_the_arrays_they_are():
    class Mine(np.ndarray):
        pass

    x = np.arange(-3.0, 3.0).reshape(2, 3)
    for name in ("relu", "sigmoid", "softmax", "log_softmax"):
        function = getattr(gpuact, name)
        got = function(x.view(Mine), out=None)
        assert type(got) is np.ndarray
        assert (got == function(x)).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_callers_error_state_is_not_our_business(dtype):
    """Overflow, NaN and subnormals are values here; np.errstate(all="raise") must not see them."""
    x = values((7, 30_000), dtype)
    dy = values((7, 30_000), "float64", 1)
    with np.errstate(all="raise"):
        for public in ELEMENTWISE.values():
            arrays = [x] if public.arrays == ("x",) else [dy, x]
            public(*arrays, *(NUMBERS[p] for p in public.parameters))
        for name in ROWS:
            y = getattr(gpuact, name)(x)
            getattr(gpuact, f"{name}_backward")(dy, y)
            getattr(gpuact, name)(dy, dtype=dtype)
        target = np.zeros(7, np.int64)
        _, lse = gpuact.cross_entropy(x, target, return_lse=True)
        gpuact.cross_entropy_backward(1.0, x, target, lse)
        gpuact.cross_entropy_with_grad(x, target, weight=dy[0], label_smoothing=0.1)
        for beyond in (5e-324, 1e300):  # 0 or infinite where it is computed
            for one in (x, x[0, 0], x[0, :1]):
                slopes = np.full((1,) * np.ndim(one), beyond)
                gates = np.full(np.shape(one), beyond)
                for params in ({"weight": beyond}, {"weight": slopes}):
                    gpuact.prelu(one, **params)
                    gpuact.prelu_backward(one, one, **params)
                    gpuact.activation_with_stats(one, "prelu", **params)
                    gpuact.fused(one, "prelu", **params, scale=slopes, gate=gates, residual=gates)
                    gpuact.fused_backward(one, one, "prelu", **params, scale=beyond, gate=gates)
                gpuact.activation_stats(gates)


# -- sizes ----------------------------------------------------------------------------------------


REAL = [name for name in LIBRARIES if name not in ("numpy-in-pieces", "torch-interpreter")]


@pytest.mark.slow
@pytest.mark.parametrize("lib", libraries(*REAL), indirect=True)
@pytest.mark.parametrize(
    ("n", "dtype"),
    [((1 << 20) - 1, "float32"), ((1 << 20) + 13, "float32"), ((1 << 20) + 13, "bfloat16")],
)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_arrays_that_are_shared_among_threads(lib, name, n, dtype):
    """On either side of where the NumPy executor begins to, and not a multiple of anything."""
    public = ELEMENTWISE[name]
    params = {p: NUMBERS[p] for p in public.parameters}
    x, dy = values((n + 3,), dtype), values((n,), dtype, 1, GRADIENTS)
    arrays = inputs(public, x[3:], dy)
    placed = [lib.place(a) for a in arrays]
    result = public.dx(*(p.native for p in placed), *params.values())
    verify(public, lib, result, placed, arrays, params)
    untouched(*placed)
