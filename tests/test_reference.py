"""The reference itself: against mpmath at 50 digits, and against finite differences.

Everything else is compared with the reference or with what the reference was compared with here, so
the formulas in this file are a textbook's, and the points are where formulas break: both tails, the
kink and its neighbours, zero, and what float32 and float64 saturate at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

mpmath = pytest.importorskip("mpmath")

from gpuact import reference
from gpuact.catalogue import FUNCTIONS
from tests.truth import Array

# Exact in every dtype; a slope above 1, where max(x, slope·x) would be another function.
SCALE, BIAS, SLOPE, STEEP = -1.5, 0.3125, 0.25, 3.0
PARAMETERS: dict[str, tuple[float, ...]] = {
    "linear": (SCALE, BIAS),
    "leaky_relu": (SLOPE,),
    "prelu": (STEEP,),
}
TYPES = (np.float32, np.float64)


def mp_sigmoid(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x))


# name → f and f' in mpmath, and the ulp that the reference may be off by in each
EXACT: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], float, float]] = {
    "linear": (lambda x: SCALE * x + BIAS, lambda x: mpmath.mpf(SCALE), 1.0, 0),
    "sigmoid": (mp_sigmoid, lambda x: mp_sigmoid(x) * mp_sigmoid(-x), 4, 5),
    "tanh": (mpmath.tanh, lambda x: mpmath.sech(x) ** 2, 4, 5),
    "relu": (lambda x: max(x, 0), lambda x: mpmath.mpf(x > 0), 0, 0),
    "leaky_relu": (
        lambda x: x if x > 0 else SLOPE * x,
        lambda x: mpmath.mpf(1 if x > 0 else SLOPE),
        0.5,
        0,
    ),
    "prelu": (
        lambda x: x if x > 0 else STEEP * x,
        lambda x: mpmath.mpf(1 if x > 0 else STEEP),
        0.5,
        0,
    ),
}


def points(kind: type) -> Array:
    """Both tails to beyond saturation, the kink and what lies an ulp beside it, subnormals."""
    info = np.finfo(kind)
    tiny = info.smallest_subnormal
    sizes = [tiny, 3 * tiny, info.tiny, info.eps, 1e-20, 1e-5, 0.1, 0.5, 1.0, 2.5, 7.0, 17.3, 20.0]
    sizes += [36.8, 50.0, 80.0, 87.2]
    sizes += [88.0, 89.0, 103.5, 104.5] if kind is np.float32 else [350.0, 709.0, 740.0, 746.0]
    positive = np.array([*sizes, np.nextafter(kind(1), kind(2))], kind)
    return np.concatenate([-positive[::-1], np.array([-0.0, 0.0], kind), positive])


def ulp_error(got: Any, want: Any, weight: Any = None) -> Any:
    """In units of the last place of the wanted value (or of `weight`), or of the subnormals."""
    info = np.finfo(type(got))
    size = abs(want if weight is None else weight)
    unit = mpmath.mpf(float(info.smallest_subnormal))
    if size:
        unit = max(unit, mpmath.mpf(2) ** (mpmath.floor(mpmath.log(size, 2)) - info.nmant))
    return abs(mpmath.mpf(float(got)) - want) / unit


def call(formula: str, *arrays: Any, **named: Any) -> Array:
    """A formula of the reference, quietly."""
    with np.errstate(all="ignore"):
        return np.asarray(getattr(reference, formula)(*arrays, **named))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", EXACT)
def test_forward_and_derivative_against_mpmath(name, kind):
    function, (f, slope, f_ulp, slope_ulp) = FUNCTIONS[name], EXACT[name]
    assert function.slope is not None
    x = points(kind)
    given = [kind(p) for p in PARAMETERS.get(name, ())]
    y = call(function.forward.formula, x, *given)
    derivative = call(function.slope.formula, x, *given[: len(function.slope.parameters)])
    assert y.dtype == kind
    with mpmath.workdps(50):
        for k, v in enumerate(x.tolist()):
            at = mpmath.mpf(v)
            weight = abs(SCALE * at) + BIAS if name == "linear" else None
            assert ulp_error(y[k], f(at), weight) <= f_ulp, f"f({v!r})"
            assert ulp_error(kind(derivative[k]), slope(at)) <= slope_ulp, f"f'({v!r})"


def test_parameters_are_here():
    assert set(PARAMETERS) == {f.name for f in FUNCTIONS.values() if f.forward.parameters}


@pytest.mark.parametrize("kind", TYPES)
def test_values_at_the_ends_and_at_the_kink(kind):
    inf, nan = kind(np.inf), kind(np.nan)
    x = np.array([-inf, -0.0, 0.0, inf, nan], kind)
    slope = kind(-2)
    rows = {
        "sigmoid": [0, 0.5, 0.5, 1, nan],
        "sigmoid_derivative": [0, 0.25, 0.25, 0, nan],
        "tanh": [-1, 0, 0, 1, nan],
        "tanh_derivative": [0, 1, 1, 0, nan],
        "relu": [0, 0, 0, inf, nan],
        "relu_derivative": [0, 0, 0, 1, nan],
        "leaky_relu": [inf, 0, 0, inf, nan],
        "leaky_relu_derivative": [-2, -2, -2, 1, nan],
    }
    for formula, want in rows.items():
        got = call(formula, x, slope) if formula.startswith("leaky") else call(formula, x)
        np.testing.assert_array_equal(got, np.array(want, kind), err_msg=formula)
    assert np.signbit(call("tanh", x)).tolist()[:4] == [True, True, False, False]
    assert not np.signbit(call("relu", x))[:4].any()
    dy = np.full(5, 8, kind)
    backward = {
        "relu_backward": [0, 0, 0, 8, 8],  # a NaN of y is no y ≤ 0
        "leaky_relu_backward": [-16, -16, -16, 8, -16],  # NaN takes the slope
        "prelu_dweight": [-inf, 0, 0, 0, nan],
    }
    for formula, want in backward.items():
        more = (slope,) if formula.startswith("leaky") else ()
        got = call(formula, dy, x, *more)
        np.testing.assert_array_equal(got, np.array(want, kind), err_msg=formula)


# -- finite differences ---------------------------------------------------------------------------

STEP = 2.0**-17  # the error of a central difference: STEP² of truncation, 2^-53 / STEP of rounding
NEAR = 2e-9


def slope_of(f: Callable[[Array], Array], x: Array) -> Array:
    return (f(x + STEP) - f(x - STEP)) / (2 * STEP)


GRID = np.linspace(-9.03, 9.01, 301)  # the kink lies between its points


@pytest.mark.parametrize("name", [f.name for f in FUNCTIONS.values() if f.kind == "elementwise"])
def test_backward_and_derivative_against_differences(name):
    function, given = FUNCTIONS[name], PARAMETERS.get(name, ())
    assert function.slope is not None
    forward = getattr(reference, function.forward.formula)
    want = slope_of(lambda x: forward(x, *given), GRID)
    derivative = call(function.slope.formula, GRID, *given[: len(function.slope.parameters)])
    np.testing.assert_allclose(derivative, want, rtol=0, atol=NEAR)
    dy = np.cos(GRID) + 2
    named = {"dy": dy, "x": GRID, "y": forward(GRID, *given)}
    named |= dict(zip(function.forward.parameters, given, strict=True))
    kernel = function.backward
    dx = call(kernel.formula, *(named[name] for name in kernel.reads + kernel.parameters))
    np.testing.assert_allclose(dx, dy * want, rtol=0, atol=3 * NEAR)


@pytest.mark.parametrize(
    ("name", "which"), [(f.name, p) for f in FUNCTIONS.values() for p in f.sums]
)
def test_gradients_of_parameters_against_differences(name, which):
    """The sum of the terms is the derivative of Σ dy·f by the parameter."""
    function, given = (
        FUNCTIONS[name],
        dict(zip(FUNCTIONS[name].forward.parameters, PARAMETERS[name], strict=True)),
    )
    forward = getattr(reference, function.forward.formula)
    dy = np.cos(GRID) + 2

    def total(step: float) -> float:
        moved = {**given, which: given[which] + step}
        return float((dy * forward(GRID, *moved.values())).sum())

    want = (total(STEP) - total(-STEP)) / (2 * STEP)
    named = {"dy": dy, "x": GRID}
    kernel = function.sums[which]
    got = call(kernel.formula, *(named[name] for name in kernel.reads)).sum()
    assert abs(got - want) < 1e-6 * max(1, abs(want))


# -- rows -----------------------------------------------------------------------------------------

ROWS = np.random.default_rng(0).standard_normal((7, 6)) * 3
DY = np.random.default_rng(1).standard_normal((7, 6))


def jacobian_of(f: Callable[[Array], Array], x: Array) -> Array:
    """∂f_i/∂x_j for each row, by differences: (rows, i, j)."""
    columns = []
    for j in range(x.shape[1]):
        step = np.zeros_like(x)
        step[:, j] = STEP
        columns.append((f(x + step) - f(x - step)) / (2 * STEP))
    return np.stack(columns, -1)


def test_the_jacobian_of_softmax():
    """diag(s) − s sᵀ is what differences give, and softmax_backward is its product with dy."""
    s = reference.softmax(ROWS)
    want = jacobian_of(reference.softmax, ROWS)
    jacobian = s[:, :, None] * np.eye(6) - s[:, :, None] * s[:, None, :]
    np.testing.assert_allclose(jacobian, want, rtol=0, atol=NEAR)
    product = np.einsum("rij,rj->ri", jacobian, DY)
    np.testing.assert_allclose(reference.softmax_backward(DY, s), product, rtol=0, atol=1e-15)


def test_log_softmax_backward():
    y = reference.log_softmax(ROWS)
    want = np.einsum("ri,rij->rj", DY, jacobian_of(reference.log_softmax, ROWS))
    np.testing.assert_allclose(reference.log_softmax_backward(DY, y), want, rtol=0, atol=5 * NEAR)
    np.testing.assert_allclose(np.exp(y).sum(-1), 1, rtol=1e-15)


@pytest.mark.parametrize("kind", TYPES)
def test_rows_against_mpmath(kind):
    """Far from the maximum too, where softmax underflows and log_softmax does not."""
    row = np.array([-1000, -87.5, -20, -1e-8, 0, 1e-8, 0.75, 3], kind)
    soft, log = reference.softmax(row[None])[0], reference.log_softmax(row[None])[0]
    with mpmath.workdps(50):
        e = [mpmath.exp(mpmath.mpf(v)) for v in row.tolist()]
        for k in range(row.size):
            share = e[k] / sum(e)
            # u·(|x_i − max| + log2 n + k), in ulp; log_softmax's error is absolute
            allowed = 2 * (abs(float(row[k]) - 3) + 3 + 2)
            assert ulp_error(soft[k], share) <= allowed, row[k]
            assert ulp_error(log[k], mpmath.log(share), 4) <= allowed, row[k]
            if row[k] == -1000:
                assert soft[k] == 0
                assert np.isfinite(log[k])


@pytest.mark.parametrize("kind", TYPES)
def test_rows_of_infinities(kind):
    inf, nan = np.inf, np.nan
    x = np.array([[-inf, -inf, -inf], [-inf, 5, -inf], [inf, 0, 1], [nan, 0, 1]], kind)
    soft, log = call("softmax", x), call("log_softmax", x)
    np.testing.assert_array_equal(soft, np.array([[nan] * 3, [0, 1, 0], [nan] * 3, [nan] * 3]))
    np.testing.assert_array_equal(log, np.array([[nan] * 3, [-inf, 0, -inf], [nan] * 3, [nan] * 3]))


@pytest.mark.parametrize("cut", [1, 3, 7, 64, 1000])
@pytest.mark.parametrize("name", reference.CHUNKED)
def test_a_row_in_chunks_is_the_row(name, cut):
    """Chunks that are all −inf, and rows that are, included."""
    rng = np.random.default_rng(2)
    statistics, merge, finish = reference.CHUNKED[name]
    plain = rng.standard_normal(100) * 4
    tiles = np.where((np.arange(100) // 10) % 3 == 1, -np.inf, plain)
    one = np.where(np.arange(100) == 57, 2.0, -np.inf)
    for x in (plain, tiles, one, np.full(100, -np.inf), np.where(plain > 5, np.inf, plain)):
        arrays = [x]
        if name.endswith("_backward"):
            y = call(name.removesuffix("_backward"), x[None])[0]
            arrays = [plain[::-1].copy(), y]
        chunks = [[a[i : i + cut] for a in arrays] for i in range(0, 100, cut)]
        with np.errstate(all="ignore"):
            found = [statistics(*chunk) for chunk in chunks]
            merged = merge(*(np.array(column) for column in zip(*found, strict=True)))
            got = np.concatenate([finish(*chunk, *merged) for chunk in chunks])
        want = call(name, *(a[None] for a in arrays))[0]
        np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-13)


def test_scores_in_chunks_are_the_scores():
    """A row in which no column takes part is 0 if asked; backward multiplies by the scale."""
    rng = np.random.default_rng(4)
    x, mask, part = rng.standard_normal(100), rng.standard_normal(100), rng.random(100) < 0.5
    statistics, merge, finish = reference.CHUNKED["softmax"]
    for columns in (part, np.zeros(100, bool)):
        z = reference.scores(x, 0.5, mask, columns)
        np.testing.assert_array_equal(z, np.where(columns, 0.5 * x + mask, -np.inf))
        chunks = [z[i : i + 7] for i in range(0, 100, 7)]
        found = [statistics(chunk) for chunk in chunks]
        merged = merge(*(np.array(column) for column in zip(*found, strict=True)))
        merged = reference.spared(*merged)
        got = np.concatenate([finish(chunk, *merged) for chunk in chunks])
        want = reference.softmax(z[None], zero=True)[0]
        np.testing.assert_allclose(got, want, rtol=1e-13)
        np.testing.assert_array_equal(want == 0, ~columns)
        with np.errstate(all="ignore"):
            plain = reference.softmax(z[None])[0]
        np.testing.assert_array_equal(plain, want if columns.any() else np.full(100, np.nan))
    scaled = reference.softmax_backward(DY, reference.softmax(ROWS), scale=-1.5)
    plain = reference.softmax_backward(DY, reference.softmax(ROWS))
    np.testing.assert_allclose(scaled, -1.5 * plain, rtol=1e-15)


# -- cross-entropy --------------------------------------------------------------------------------

CLASSES = np.array([0, 5, 2, -100, 3, 3, -100])
SHARES = np.random.default_rng(3).uniform(0, 1, (7, 6))
WEIGHT = np.array([0.5, 2.0, 1.0, 0.25, 3.0, 1.5])


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weight"])
@pytest.mark.parametrize("target", [CLASSES, SHARES], ids=["classes", "probabilities"])
def test_cross_entropy(target, weight, smoothing, z_loss, softcap):
    """The loss against its definition in mpmath, the gradient against differences of the loss."""
    options = (-100, smoothing, z_loss)
    z = reference.capped(ROWS, softcap)
    loss, lse = reference.cross_entropy(z, target, weight, *options)
    scale = np.linspace(1, 2, len(ROWS))
    gradient = reference.cross_entropy_backward(scale, z, target, weight, lse, *options, softcap)
    ignored = np.array([t.ndim == 0 and t == -100 for t in target])
    y = target if target.ndim == 2 else np.eye(6)[np.where(target < 0, 0, target)]
    q = ((1 - smoothing) * y + smoothing / 6) * (1 if weight is None else weight)
    with mpmath.workdps(30):
        for k, logits in enumerate(ROWS.tolist()):
            row = [softcap * mpmath.tanh(v / softcap) if softcap else mpmath.mpf(v) for v in logits]
            log_sum = mpmath.log(sum(map(mpmath.exp, row)))
            want = sum(a * (log_sum - v) for a, v in zip(q[k].tolist(), row, strict=True))
            want += z_loss * log_sum**2
            assert abs(lse[k] - log_sum) < 1e-14
            assert abs(loss[k] - (0 if ignored[k] else want)) < 1e-13

    def losses(z: Array) -> Array:
        z = reference.capped(z, softcap)
        return reference.cross_entropy(z, target, weight, *options)[0][:, None]

    want = np.where(ignored[:, None], 0, scale[:, None] * jacobian_of(losses, ROWS)[:, 0, :])
    np.testing.assert_allclose(gradient, want, rtol=0, atol=40 * NEAR)


def test_the_plain_gradient_is_s_minus_y():
    target = np.array([0, 5, 2, 1, 3, 3, 4])
    _, lse = reference.cross_entropy(ROWS, target, None, -100, 0.0)
    one = np.ones(len(ROWS))
    gradient = reference.cross_entropy_backward(one, ROWS, target, None, lse, -100, 0.0)
    want = reference.softmax(ROWS) - np.eye(6)[target]
    np.testing.assert_allclose(gradient, want, rtol=0, atol=1e-15)


def test_infinite_logits_of_classes_that_nobody_asked_for():
    z = np.array([[-np.inf, 1.0, 2.0], [0.0, -np.inf, -np.inf]])
    target = np.array([1, 0])
    with np.errstate(all="ignore"):
        loss, lse = reference.cross_entropy(z, target, None, -100, 0.0)
        gradient = reference.cross_entropy_backward(np.ones(2), z, target, None, lse, -100, 0.0)
    assert abs(loss[0] - np.log1p(np.e)) < 1e-15
    assert loss[1] == 0
    assert not np.isnan(gradient).any()
    assert gradient[1].tolist() == [0.0, 0.0, 0.0]
