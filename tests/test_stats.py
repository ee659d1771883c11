"""Statistics of outputs, on every backend: those that NumPy finds in the same outputs.

Counts and dead units are exact. Mean and std may be off by the roundings of a sum: CHAIN·u of the
mean magnitude, u being the unit roundoff of the computation and CHAIN the longest chain of
additions and merges that an element goes through.
"""

from __future__ import annotations

import gc
import math
import weakref
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gpuact
from gpuact import reference
from gpuact.catalogue import FUNCTIONS
from gpuact.kernels import tiles
from tests import harness
from tests.bounds import DTYPES, FORMATS
from tests.harness import named
from tests.libraries import Library, untouched, values
from tests.libraries import layouts as layouts_of
from tests.test_sass import launch_measured
from tests.truth import Array
from tests.workloads import LARGE, Arrays

Bounds = tuple[float | None, float | None]

# A thread's 32 elements, five steps within its warp and three among warps; then at most 128 parts
# of a lane, and ten steps. NumPy adds up 128 at a time, those as a tree, and then pieces.
CHAIN = 192
ACTIVATIONS = [f.name for f in FUNCTIONS.values() if f.kind == "elementwise"]
SLOPE = 0.1

# (outer, units, inner), by what each reaches
SHAPES = {
    "one element": (1, 1, 1),
    "fewer than a pack": (3, 1, 1),
    "bits of eight units a byte": (40, 96, 1),
    "units that fill no byte": (70, 10, 1),
    "narrow packs": (9, 131, 1),
    "a row of many tiles": (3, 3000, 1),
    "bits across bytes": (5, 33, 49),
    "bits of one unit a byte": (36, 4, 8),
    "rows that meet two units": (2, 3, 1400),
    "packs that meet two units": (2, 3, 1401),
    "one unit": (1, 1, 5000),
    "rows of one unit": (3, 2, 512),
}


def outputs(shape: tuple[int, ...], dtype: str) -> Array:
    """x with units that are silent, saturated, and alive in their last element alone."""
    rng = np.random.default_rng(sum(shape))
    x = rng.normal(0.3, 2.5, shape)
    x[:, ::3] = -abs(x[:, ::3]) - 8  # dead under relu, saturated under sigmoid and tanh
    x[:, 1::5] = abs(x[:, 1::5]) + 8
    x[-1, ::6, -1] = 0.5
    x.reshape(-1)[2::7] = 0
    return x.astype(named(dtype))


def observe(
    executor: harness.Executor,
    formula: str | None,
    x: Array,
    parameter: Any,
    bounds: Bounds,
    *,
    writes: bool = True,
    known: tuple[float, ...] = (0.0,) * 5,
    alive: int = 0,
) -> SimpleNamespace:
    """What the backend makes of it: y, its moments, and which units are alive."""
    placed = executor.place(x)
    out = executor.place(x, blank=True) if writes else None
    moments = executor.place(np.array(known, np.float64))
    seen = executor.place(np.full(x.shape[1], alive, np.uint8))
    if isinstance(parameter, np.ndarray):
        parameter = executor.place(parameter).native
    executor.backend.observe(
        formula,
        placed.native,
        out and out.native,
        parameter,
        bounds,
        moments.native,
        seen.native,
        executor.empty,
    )
    assert placed.unchanged()
    return SimpleNamespace(
        y=x if out is None else out.numpy().copy(),
        moments=moments.numpy().copy(),
        alive=seen.numpy().copy(),
    )


def computed(y: Array) -> Array:
    return y.astype(np.float64 if y.dtype == np.float64 else np.float32)


def check(found: SimpleNamespace, bounds: Bounds) -> None:
    """found: y as (outer, units, inner), moments and alive."""
    y = computed(found.y)
    exact, u = y.astype(np.float64), float(np.finfo(y.dtype).eps) / 2
    count, mean, m2, zeros, saturated = found.moments
    beyond = reference.is_saturated(y, *bounds)
    assert (count, zeros, saturated) == (y.size, (y == 0).sum(), beyond.sum())
    assert found.alive.tolist() == (~beyond.all((0, 2))).astype(int).tolist()
    with np.errstate(all="ignore"):
        size, want, std = abs(exact).mean(), exact.mean(), exact.std()
        spread = np.sqrt(m2 / count)
    if np.isfinite(size):
        assert abs(mean - want) <= CHAIN * u * size
        assert abs(spread - std) <= CHAIN * u * (std + size)
    else:
        assert (mean == want) | (np.isnan(mean) & np.isnan(want))
        assert np.isnan(spread) & np.isnan(std)


@pytest.fixture(params=harness.executors())
def executor(request, monkeypatch) -> harness.Executor:
    return harness.make(request.param, monkeypatch)


RELU = FUNCTIONS["relu"].saturated


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape(executor, shape):
    check(observe(executor, "relu", outputs(shape, "float32"), None, RELU), RELU)


# How the slope comes; what is none has no formula either
PARAMETERS = {
    "a number": lambda x: SLOPE,
    "an element": lambda x: np.array([SLOPE], x.dtype),
    "one a unit": lambda x: np.linspace(-0.5, 1.5, x.shape[1]).astype(x.dtype),
}
FORMULAS = {
    **{name: (name, None) for name in ("sigmoid", "tanh", "relu")},
    **{f"leaky_relu by {how}": ("leaky_relu", how) for how in PARAMETERS},
    "a copy": (None, None),
}


@pytest.mark.parametrize(
    "shape", ((45, 24, 1), (3, 5, 700), (2, 3, 701)), ids=("columns", "runs", "odd runs")
)
@pytest.mark.parametrize("case", FORMULAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_formula(executor, dtype, case, shape):
    """y is the activation's own, bit for bit, and the statistics are those of y."""
    formula, how = FORMULAS[case]
    x = outputs(shape, dtype)
    parameter = None if how is None else PARAMETERS[how](x)
    bounds = FUNCTIONS[formula or "tanh"].saturated
    found = observe(executor, formula, x, parameter, bounds)
    check(found, bounds)
    if formula is None:
        expected = x
    else:
        params = () if how is None else (parameter,)
        if how is not None and how != "a number":
            params = (executor.place(parameter.reshape(1, -1, 1)).native,)
        out = executor.place(x, blank=True)
        arrays = (executor.place(x).native,)
        executor.backend.elementwise(formula, arrays, params, out.native, executor.empty)
        expected = out.numpy()
    assert found.y.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "shape", ((45, 24, 1), (3, 5, 700), (2, 3, 701)), ids=("columns", "runs", "odd runs")
)
def test_outputs_that_are_there(executor, shape):
    y = np.tanh(outputs(shape, "float32"))
    for name in ("tanh", "relu", "linear"):
        bounds = FUNCTIONS[name].saturated
        check(observe(executor, None, y, None, bounds, writes=False), bounds)
    check(observe(executor, None, y, None, (None, 0.5), writes=False), (None, 0.5))


@pytest.mark.parametrize("shape", ((130, 384, 1), (3, 5, 9000)), ids=("columns", "runs"))
@pytest.mark.parametrize("name", ("relu", "linear"))
def test_programs_of_several_tiles(executor, name, shape, monkeypatch):
    """As of arrays of 70 MB and more."""
    monkeypatch.setattr(tiles, "PROGRAMS", 2)
    x = outputs(shape, "float32")
    cut = tiles.tiles(*shape, 4, 4)
    assert cut.chunk > tiles.ROWS
    bounds = FUNCTIONS[name].saturated
    check(observe(executor, None if name == "linear" else name, x, None, bounds), bounds)


@pytest.mark.parametrize("shape", ((45, 24, 1), (2, 3, 701)), ids=("columns", "runs"))
def test_offsets_of_64_bits(executor, shape, monkeypatch):
    """As of arrays of 2³¹ elements and more."""
    if executor.name.startswith("triton"):
        monkeypatch.setattr(executor.backend, "NARROW", 0)
    if executor.name.startswith("cupy"):
        monkeypatch.setattr(import_module("gpuact.kernels.cupy.stats"), "NARROW", 0)
    x = outputs(shape, "float32")
    slopes = PARAMETERS["one a unit"](x)
    check(observe(executor, "leaky_relu", x, slopes, RELU), RELU)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_one_element_makes_a_unit_live(executor, shape):
    """Wherever it lies."""
    rng = np.random.default_rng(3)
    x = np.full(shape, -1.0, np.float32)
    lives = rng.random(shape[1]) < 0.5
    where = rng.integers(shape[0], size=shape[1]), np.arange(shape[1])
    x[(*where, rng.integers(shape[2], size=shape[1]))] = np.where(lives, 1, -1)
    found = observe(executor, None, x, None, RELU, writes=False)
    assert found.alive.tolist() == lives.astype(int).tolist()


@pytest.mark.parametrize("shape", ((2, 3, 701), (1, 1, 513), (9, 131, 1)))
def test_the_last_element_makes_a_unit_live(executor, shape):
    """Where the end cuts a pack."""
    x = -np.ones(shape, np.float32)
    x.reshape(-1)[-1] = 1
    check(observe(executor, None, x, None, RELU, writes=False), RELU)


@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_squares_that_overflow(executor, dtype):
    """Infinite is what is too large; a mean that is not, is right; nothing becomes NaN."""
    large = 1e20 if dtype == "float32" else 1e200
    x = np.array([large, -large], dtype).repeat(600).reshape(300, 4, 1)
    found = observe(executor, None, x, None, (None, None), writes=False)
    assert found.moments[2] == np.inf
    assert abs(found.moments[1]) <= 1e-5 * large
    level = observe(executor, None, np.full_like(x, large), None, (None, None), writes=False)
    assert level.moments[1] == pytest.approx(large, rel=1e-5)
    assert not np.isnan(level.moments[2])


def test_programs_that_see_nothing(executor):
    """The last row ends before some of them begin."""
    check(observe(executor, "relu", outputs((2049, 10, 1), "float32"), None, RELU), RELU)


@pytest.mark.parametrize("behind", (1, 2, 4))
@pytest.mark.parametrize("shape", ((45, 24, 1), (3, 5, 700), (9, 131, 1)))
def test_misaligned(executor, shape, behind):
    """Narrow packs, of which a program takes more."""
    flat = np.empty(math.prod(shape) + behind, np.float16)
    x = flat[behind:].reshape(shape)
    x[...] = outputs(shape, "float16")
    check(observe(executor, "relu", x, None, RELU), RELU)


@pytest.mark.parametrize("special", ([np.nan], [np.inf], [-np.inf], [np.inf, -np.inf]))
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_no_numbers(executor, dtype, special):
    for name in ("relu", "sigmoid", "linear"):
        x = outputs((70, 8, 1), dtype)
        x[1::30, 3] = special[0]
        x[2::30, 5] = special[-1]
        bounds = FUNCTIONS[name].saturated
        check(observe(executor, None, x, None, bounds, writes=False), bounds)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_number_is_too_small_to_count(executor, dtype):
    """A subnormal number is no zero, and a unit that gives nothing else is not dead."""
    if executor.name == "triton-interpreter" and dtype == "bfloat16":
        pytest.skip("Triton's interpreter takes bfloat16's subnormal numbers for 0")
    x = np.zeros((40, 16, 1))
    form = FORMATS[dtype]
    x[:, 3], x[7, 5] = 2.0 ** (form.least - form.digits + 1), -0.0
    x = x.astype(named(dtype))
    found = observe(executor, None, x, None, RELU, writes=False)
    assert found.moments[[0, 3, 4]].tolist() == [640, 600, 600]
    assert found.alive.nonzero()[0].tolist() == [3]
    assert observe(executor, "relu", x, None, RELU).moments[3] == 600


def test_what_is_known_is_added_to(executor):
    x = outputs((40, 24, 1), "float32")
    a, b = x[:30].copy(), (x[30:] + 100).copy()
    first = observe(executor, None, a, None, RELU, writes=False)
    both = observe(executor, None, b, None, RELU, writes=False, known=tuple(first.moments), alive=0)
    both.y, both.alive = np.concatenate([a, b]), both.alive | first.alive
    check(both, RELU)
    kept = observe(executor, None, a, None, RELU, writes=False, alive=1)
    assert kept.alive.all()


def test_nothing_cancels(executor):
    """The mean is 10,000 times the spread: squares about 0 would have lost every digit."""
    x = (1e4 + outputs((64, 32, 1), "float32") / 8).astype(np.float32)
    found = observe(executor, None, x, None, (None, None), writes=False)
    assert abs(math.sqrt(found.moments[2] / x.size) / x.astype(np.float64).std() - 1) < 1e-3


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_same_bits_every_time(executor, shape):
    x = outputs(shape, "float16")
    one, two = (observe(executor, "sigmoid", x, None, (0.01, 0.99)) for _ in range(2))
    assert one.moments.tobytes() == two.moments.tobytes()
    assert one.y.tobytes() == two.y.tobytes()


# -- the public functions -------------------------------------------------------------------------


def seen(stats: gpuact.ActivationStats, y: Array, axis: int) -> None:
    """The statistics are those of y, whose units lie along the axis."""
    y = np.asarray(y)
    along = np.moveaxis(y.reshape(1) if y.ndim == 0 else y, axis, 0)
    found = SimpleNamespace(
        y=along.reshape(1, len(along), -1) if y.ndim else y.reshape(1, 1, 1),
        moments=np.array([stats.count, stats.mean, 0, 0, 0]),
        alive=1 - stats.dead.astype(int),
    )
    found.moments[2] = stats.std**2 * stats.count
    found.moments[3:] = round(stats.zeros * y.size), round(stats.saturated * y.size)
    assert stats.units == len(along)
    check(found, FUNCTIONS[stats.activation].saturated)


FEW = [0.0, -0.0, 20.0, -20.0, 1.0]
NUMBERS = {"leaky_relu": {"negative_slope": SLOPE}, "prelu": {"weight": SLOPE}}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_layout(lib: Library, dtype, name):
    for layout, x in layouts_of(lib, dtype, 1, FEW):
        if not x.size:
            continue
        placed = lib.place(x)
        axes = range(-x.ndim, x.ndim) if layout in ("4-d", "transposed", "strided") else (-1,)
        for axis in axes:
            options = NUMBERS.get(name, {})
            y, stats = gpuact.activation_with_stats(
                placed.native, name, channel_axis=axis, **options
            )
            y = lib.numpy(y, placed.native, x.shape, dtype)
            if name == "linear":
                plain = placed.native
            else:
                plain = getattr(gpuact, name)(placed.native, **options)
            assert y.tobytes() == lib.numpy(plain, placed.native, x.shape, dtype).tobytes(), layout
            seen(stats, y, axis)
            seen(gpuact.activation_stats(placed.native, name, channel_axis=axis), x, axis)
        untouched(placed)


@pytest.mark.parametrize("shape", ((), (6,), (1, 6, 1), (5, 6, 4), (5, 1, 4)))
def test_slopes_of_every_shape(lib: Library, shape):
    """One, one a unit, and those that take a second pass."""
    x = values((5, 6, 4), "float32", 3, FEW)
    weight = np.linspace(-1, 2, math.prod(shape), dtype=np.float32).reshape(shape)
    placed, slopes = lib.place(x), lib.place(weight)
    for axis in (0, 1, 2):
        if shape == (6,) and axis != 1:
            continue
        y, stats = gpuact.activation_with_stats(
            placed.native, "prelu", weight=slopes.native, channel_axis=axis
        )
        plain = gpuact.prelu(placed.native, slopes.native, channel_axis=axis)
        y, plain = (lib.numpy(a, placed.native, x.shape, "float32") for a in (y, plain))
        assert y.tobytes() == plain.tobytes()
        seen(stats, y, axis)


def test_slopes_that_the_compute_dtype_has_not():
    """They are infinite there, as prelu's own are, and nobody is warned."""
    x = np.array([[-1, 2], [3, 4]], np.float32)
    y, stats = gpuact.activation_with_stats(x, "prelu", weight=np.array([1e300, 0.5]))
    assert y.tolist() == gpuact.prelu(x, np.array([1e300, 0.5])).tolist() == [[-np.inf, 2], [3, 4]]
    assert stats.mean == -np.inf


def test_calls_are_gathered(lib: Library):
    parts = [values((n, 8), "float32", n, FEW) for n in (3, 40, 1)]
    stats = None
    for x in parts:
        _, found = gpuact.activation_with_stats(lib.place(x).native, "relu", into=stats)
        assert stats is None or found is stats
        stats = found
        assert stats.count  # read in between
    whole = np.maximum(np.concatenate(parts), 0)
    seen(stats, whole, -1)
    empty = lib.place(np.zeros((0, 8), np.float32)).native
    assert gpuact.activation_stats(empty, "relu", into=stats) is stats
    seen(stats, whole, -1)
    stats.reset()
    assert (stats.count, stats.dead.any()) == (0, False)
    assert np.isnan([stats.mean, stats.std, stats.zeros, stats.saturated]).all()
    x = lib.place(parts[0]).native
    seen(gpuact.activation_stats(x, "relu", into=stats), parts[0], -1)


def test_nothing_is_read_before_it_is_asked_for(lib: Library, monkeypatch):
    read = []
    on_host = gpuact.stats._on_host
    monkeypatch.setattr(gpuact.stats, "_on_host", lambda x: read.append(x) or on_host(x))
    x = lib.place(values((9, 4), "float32", 0, FEW)).native
    _, stats = gpuact.activation_with_stats(x, "relu")
    gpuact.activation_stats(x, "relu", into=stats)
    assert stats.moments.shape == (5,)
    assert read == []
    assert (stats.count, stats.units, stats.dead.shape) == (72, 4, (4,))
    assert read


def test_what_was_looked_at_may_go():
    """Neither the arrays nor their graph are kept with the statistics."""
    torch = pytest.importorskip("torch")
    x = torch.ones(4, 3, requires_grad=True) * 2
    gone = weakref.ref(x)
    y, stats = gpuact.activation_with_stats(x, "relu")
    also = weakref.ref(y)
    kept = gpuact.activation_stats(y)
    del x, y
    gc.collect()
    assert gone() is also() is None
    assert stats.count == kept.count == 12


def test_inference_mode():
    torch = pytest.importorskip("torch")
    with torch.inference_mode():
        _, stats = gpuact.activation_with_stats(torch.ones(4, 3), "relu")
    gpuact.activation_with_stats(torch.ones(4, 3, requires_grad=True), "relu", into=stats)
    assert (stats.count, stats.mean) == (24, 1)
    stats.reset()
    assert stats.count == 0
    with torch.inference_mode():
        gpuact.activation_stats(torch.ones(4, 3), "relu", into=stats)
    assert stats.count == 12


def strides(x: Any) -> Any:
    return x.stride() if hasattr(x, "stride") else x.strides


def test_outputs_lie_as_the_plain_functions(lib: Library):
    x = lib.place(values((4, 6, 8), "float32", 5, FEW).transpose(2, 0, 1)[::2]).native
    y, stats = gpuact.activation_with_stats(x, "relu", channel_axis=1)
    plain = gpuact.relu(x)
    assert (y == plain).all()
    assert [*strides(y)] == [*strides(plain)]
    seen(stats, lib.executor.to_numpy(y), 1)


def test_integers_are_float32(lib: Library):
    x = lib.place(np.array([[-3, 4], [5, 0]], np.int32)).native
    y, stats = gpuact.activation_with_stats(x, "relu")
    assert str(y.dtype).endswith("float32")
    assert (stats.mean, stats.zeros) == (2.25, 0.5)
    assert gpuact.activation_stats(x).mean == 1.5


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_are_those_of_the_plain_function(name):
    torch = pytest.importorskip("torch")
    x = torch.tensor(outputs((30, 6, 1), "float32")[:, :, 0], requires_grad=True)
    weight = torch.linspace(-1, 1, 6, requires_grad=True) if name == "prelu" else None
    inputs = [x] if weight is None else [x, weight]
    y, stats = gpuact.activation_with_stats(x, name, weight=weight)
    plain = getattr(gpuact, name)(x, *inputs[1:])
    grads, expected = (
        torch.autograd.grad((out * out.detach().cos()).sum(), inputs, create_graph=True)
        for out in (y, plain)
    )
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))
    if grads[0].requires_grad:
        second, wanted = (torch.autograd.grad(g[0].sum(), x)[0] for g in (grads, expected))
        assert torch.equal(second, wanted)
    seen(stats, y.detach().numpy(), -1)
    with torch.no_grad():
        assert not gpuact.activation_with_stats(x, name, weight=weight)[0].requires_grad


def test_channels_last_stays_channels_last():
    torch = pytest.importorskip("torch")
    x = torch.randn(3, 8, 5, 7).to(memory_format=torch.channels_last)
    y, stats = gpuact.activation_with_stats(x, "relu", channel_axis=1)
    assert y.stride() == x.stride()
    seen(stats, y.numpy(), 1)


REFUSED = {
    "no activation": (
        lambda x: gpuact.activation_stats(x, "gelu"),
        ValueError,
        r"^activation: 'gelu' came, allowed are linear, sigmoid, tanh, relu, leaky_relu, prelu$",
    ),
    "a row function": (
        lambda x: gpuact.activation_with_stats(x, "softmax"),
        ValueError,
        r"^activation: 'softmax' came, allowed are linear, ",
    ),
    "slopes where there are none": (
        lambda x: gpuact.activation_with_stats(x, "relu", weight=0.1),
        ValueError,
        "^weight: float came, relu takes none$",
    ),
    "no slopes": (
        lambda x: gpuact.activation_with_stats(x, "prelu"),
        ValueError,
        "^weight: none came, prelu takes slopes$",
    ),
    "a slope that is no number, used or not": (
        lambda x: gpuact.activation_with_stats(x, "sigmoid", negative_slope="steep"),
        TypeError,
        "^negative_slope: str came, allowed is a number$",
    ),
    "an axis that there is not": (
        lambda x: gpuact.activation_stats(x, channel_axis=2),
        np.exceptions.AxisError,
        "^channel_axis: 2 came, an array of 2 dimensions allows -2 to 1$",
    ),
    "an axis that is none": (
        lambda x: gpuact.activation_with_stats(x, "relu", channel_axis=1.0),
        TypeError,
        "^channel_axis: float came, allowed is an int$",
    ),
    "complex outputs": (
        lambda x: gpuact.activation_stats(np.ones(2, complex)),
        TypeError,
        "^y: dtype complex128 came, allowed are ",
    ),
    "integers that have no slope": (
        lambda x: gpuact.activation_with_stats(np.ones(2, int), "prelu", weight=0.5),
        TypeError,
        "^x: dtype int64 came, allowed are float16",
    ),
    "bools": (
        lambda x: gpuact.activation_with_stats(x > 0, "relu"),
        TypeError,
        "^x: dtype bool came, allowed are float16, bfloat16, float32, float64, integers$",
    ),
    "statistics of something else": (
        lambda x: gpuact.activation_stats(x, into={}),
        TypeError,
        "^into: dict came, allowed is gpuact.ActivationStats$",
    ),
    "statistics of another activation": (
        lambda x: gpuact.activation_stats(x, "tanh", into=gpuact.activation_stats(x, "relu")),
        ValueError,
        "^into: statistics of relu came, allowed are those of tanh$",
    ),
    "statistics of other units": (
        lambda x: gpuact.activation_stats(x, channel_axis=0, into=gpuact.activation_stats(x)),
        ValueError,
        "^into: statistics of 3 units came, allowed are those of 2$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, error, match = REFUSED[case]
    with pytest.raises(error, match=match):
        call(np.ones((2, 3)))


def test_statistics_stay_where_they_are():
    torch = pytest.importorskip("torch")
    stats = gpuact.activation_stats(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"^into: statistics kept in numpy came, allowed are "):
        gpuact.activation_stats(torch.ones(2, 3), into=stats)


def test_what_has_no_memory_is_refused():
    torch = pytest.importorskip("torch")
    x = torch.ones(2, 3)
    match = "^[xy]: a tensor came that torch.compile, torch.func, forward mode, a dispatch mode or"
    with pytest.raises(TypeError, match=match):
        torch.func.vmap(lambda x: gpuact.activation_with_stats(x, "relu")[0])(x)
    with pytest.raises(TypeError, match=match):
        torch.func.vmap(lambda x: gpuact.activation_stats(x) and x)(x)
    with pytest.raises(TypeError, match=match):
        gpuact.activation_stats(x.to("meta"))


# -- what it costs --------------------------------------------------------------------------------

EXTRA = 0.005  # of the plain activation's bytes
# Of outputs whose end cuts a pack and whose units fill no bytes: eight read each byte of bits.
ODD_EXTRA = 0.011
TRAFFIC = {
    "1024×1024": ((1024, 1024, 1), EXTRA),
    "16×64×32×32": ((16, 64, 1024), EXTRA),
    "1023×1025": ((1023, 1025, 1), ODD_EXTRA),
}


@pytest.mark.parametrize(("shape", "allowed"), TRAFFIC.values(), ids=TRAFFIC)
@pytest.mark.parametrize("dtype", ("bfloat16", "float16", "float32"))
@pytest.mark.parametrize("backend", ("cupy-ptx", "triton-ptx"))
def test_traffic(backend, dtype, shape, allowed, monkeypatch, record_property):
    """All that both kernels ask for, over what the activation reads and writes."""
    executor = harness.make(backend, monkeypatch)
    executor.options.update(stats=True, racecheck=False)
    x = outputs(shape, dtype)
    check(observe(executor, "relu", x, None, RELU), RELU)
    moved = sum(stats.load_bytes + stats.store_bytes for stats in executor.stats)
    extra = moved / (2 * x.nbytes) - 1
    table = "traffic of statistics: bytes beyond the plain activation's"
    row = (backend, dtype, "×".join(map(str, shape)), f"{extra:.3%}")
    record_property("table", (table, ("backend", "dtype", "outputs", "more"), row))
    assert 0 < extra < allowed
    wide = sum(n for s in executor.stats for w, n in s.load_widths.items() if w == 16)
    assert wide * 16 >= 0.99 * x.nbytes  # but for a tile that has an end which cuts a pack


# Instructions an element of half types, and of float32, at 2²⁶ elements: at most what is measured
# and 15 %. An H100 has the time of its copy for 39 and 78, an H200 for 27 and 54.
BUDGET = {
    ("cupy-ptx", "relu", "columns"): (21.5, 20.5),
    ("cupy-ptx", "relu", "runs"): (25, 27),
    ("cupy-ptx", "sigmoid", "columns"): (22.5, 38),
    ("cupy-ptx", "sigmoid", "runs"): (26.5, 44.5),
    ("triton-ptx", "relu", "columns"): (23, 22.5),
    ("triton-ptx", "relu", "runs"): (30, 35),
    ("triton-ptx", "sigmoid", "columns"): (30.5, 37.5),
    ("triton-ptx", "sigmoid", "runs"): (37.5, 50.5),
}
SPECIAL = 3.6, 3.4


@pytest.mark.parametrize(
    "dtype",
    ("bfloat16", *(pytest.param(d, marks=pytest.mark.slow) for d in ("float16", "float32"))),
)
@pytest.mark.parametrize(("backend", "name", "kind"), BUDGET)
def test_machine_code(backend, name, kind, dtype, monkeypatch, record_property):
    executor = harness.make(backend, monkeypatch, run=False)
    arrays = Arrays(executor, dtype, LARGE, "flat" if kind == "columns" else "NCHW 56²")
    shape = (1 << 16, 1024, 1) if kind == "columns" else (64, 256, 3136)
    x, out = (a.reshape(shape) for a in (arrays.read("x"), arrays.written("out")))
    state = executor.place(np.zeros(5)).native, executor.place(np.zeros(shape[1], np.uint8)).native
    bounds = FUNCTIONS[name].saturated
    executor.backend.observe(name, x, out, None, bounds, *state, executor.empty)
    call = arrays.ready(lambda: None)
    found = [m for launch in executor.launches for m in launch_measured(call, launch, 90)]
    (one,) = found  # what adds up has no array of x's size
    assert not one.faults
    row = (name, kind, dtype, f"{one.instructions:.1f}", f"{one.special:.2f}")
    table = f"machine code of statistics, {backend}: instructions an element"
    record_property("table", (table, ("kernel", "tiles", "dtype", "all", "special"), row))
    assert one.instructions <= BUDGET[backend, name, kind][dtype == "float32"]
    assert one.special <= SPECIAL[dtype == "float32"]


@pytest.mark.parametrize("pack", (1, 2, 4, 8))
@pytest.mark.parametrize("shape", ((1 << 16, 1024, 1), (64, 256, 3136), (8000, 515, 1)))
def test_a_program_has_enough_to_do(shape, pack):
    """Of half types, whatever the pack: what it leaves is little then; nor are there too many."""
    cut = tiles.tiles(*shape, pack, 8)
    size = math.prod(shape)
    assert cut.chunk * cut.columns >= 8 << 10
    assert (cut.chunks - 1) * cut.chunk < cut.rows <= cut.chunks * cut.chunk
    assert cut.rows * cut.pitch >= size > (cut.rows - 1) * cut.pitch
    assert cut.programs < 4096  # which one block merges
    assert cut.runs or cut.pitch % math.prod(shape[1:]) == cut.pitch % pack == 0


@pytest.mark.parametrize("pack", (1, 2, 4, 8))
@pytest.mark.parametrize("shape", ((1 << 22, 1 << 13, 1), (1 << 12, 8, 1 << 20)))
def test_what_a_program_counts_fits_its_words(shape, pack):
    """Zeros and saturated elements share 32 bits at each of a tile's 256 places."""
    cut = tiles.tiles(*shape, pack, 8)
    assert cut.chunk * cut.columns <= 256 << 15


# -- the reference --------------------------------------------------------------------------------


def test_the_reference_is_numpys():
    y = outputs((6, 7, 5), "float64")
    (count, mean, m2, zeros, saturated), alive = reference.statistics(y, 0.0, None)
    assert (count, zeros, saturated) == (210, (y == 0).sum(), (y <= 0).sum())
    assert mean == pytest.approx(y.mean(), rel=1e-14)
    assert m2 / count == pytest.approx(y.var(), rel=1e-14)
    assert alive.tolist() == (y > 0).any((0, 2)).tolist()
    one, two = (reference.statistics(part, 0.0, None)[0] for part in (y[:2], y[2:]))
    assert reference.merged(one, two) == pytest.approx((count, mean, m2, zeros, saturated))
    nothing = (0.0,) * 5
    assert reference.merged(nothing, one) == one == reference.merged(one, nothing)
    far = (3.0, math.inf, math.nan, 0.0, 0.0)
    assert reference.merged(one, far)[1] == math.inf == reference.merged(far, one)[1]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_saturated_is_a_derivative_below_one_percent(name):
    low, high = FUNCTIONS[name].saturated
    if name in ("linear", "leaky_relu", "prelu"):
        assert (low, high) == (None, None)
        return
    x = np.linspace(-12, 12, 100_001)
    slope, y = getattr(gpuact, f"{name}_derivative")(x), getattr(gpuact, name)(x)
    assert (reference.is_saturated(y, low, high) == (slope < 0.01)).all()
