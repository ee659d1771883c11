"""The truth: every formula of the contract in extended precision, written apart from reference.py.

Values are numpy's longdouble (64 significant bits on x86, more elsewhere), which is truth enough
for float64 too; test_truth.py holds it against mpmath. Each formula is spelled as a textbook would,
for range and cancellation do not matter at this precision. Backward formulas are exact functions of
the y or lse that they read, rounded as it is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LONG = np.longdouble
if np.finfo(LONG).nmant < 63:
    raise ImportError("longdouble is no wider than float64 on this machine: no truth for float64")


def long(a: Any) -> Array:
    """To longdouble; the narrow types that numpy does not know by itself go through float64."""
    a = np.asarray(a)
    with np.errstate(invalid="ignore"):  # signalling NaN
        return a.astype(LONG) if a.dtype.kind in "fiub" else a.astype(np.float64).astype(LONG)


# -- elementwise ----------------------------------------------------------------------------------


def _where_number(x: Array, value: Array) -> Array:
    return np.where(np.isnan(x), x, value)


ELEMENTWISE: dict[str, Callable[..., Array]] = {
    "linear": lambda x, scale, bias: scale * x + bias,
    "linear_backward": lambda dy, scale: scale * dy,
    "linear_dscale": lambda dy, x: x * dy,
    "linear_dbias": lambda dy: dy,
    "linear_derivative": lambda x, scale: _where_number(x, scale + 0 * np.sign(x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sigmoid_backward": lambda dy, y: dy * (y * (1 - y)),
    "sigmoid_derivative": lambda x: 1 / (2 * np.cosh(x / 2)) ** 2,
    "tanh": lambda x: np.tanh(x),
    "tanh_backward": lambda dy, y: dy * ((1 - y) * (1 + y)),
    "tanh_derivative": lambda x: 1 / np.cosh(x) ** 2,
    "relu": lambda x: np.where(x > 0, x, _where_number(x, LONG(0))),
    "relu_backward": lambda dy, y: np.where((y > 0) | np.isnan(y), dy, 0),
    "relu_derivative": lambda x: _where_number(x, (x > 0).astype(LONG)),
    "leaky_relu": lambda x, slope: np.where(x > 0, x, slope * x),
    "leaky_relu_backward": lambda dy, x, slope: np.where(x > 0, dy, slope * dy),
    "leaky_relu_derivative": lambda x, slope: np.where(x > 0, 1, _where_number(x, slope)),
    "prelu_dweight": lambda dy, x: np.where(x > 0, 0, x * dy),
}


def _z(xp: Any, x: Any) -> Any:
    return xp.exp(-xp.abs(x))


# The same of float32 operands in float64, on the arrays of NumPy or CuPy (xp): truth enough for a
# float32, and quick enough for all 2^32 of them. The sigmoids' textbook forms would overflow.
FLOAT64: dict[str, Callable[..., Any]] = {
    "linear": lambda xp, x, scale, bias: scale * x + bias,
    "linear_backward": lambda xp, dy, scale: scale * dy,
    "linear_derivative": lambda xp, x, scale: xp.where(xp.isnan(x), x, scale),
    "sigmoid": lambda xp, x: 1 / (1 + xp.exp(-x)),
    "sigmoid_backward": lambda xp, dy, y: dy * (y * (1 - y)),
    "sigmoid_derivative": lambda xp, x: _z(xp, x) / (1 + _z(xp, x)) ** 2,
    "tanh": lambda xp, x: xp.tanh(x),
    "tanh_backward": lambda xp, dy, y: dy * ((1 - y) * (1 + y)),
    "tanh_derivative": lambda xp, x: 4 * _z(xp, 2 * x) / (1 + _z(xp, 2 * x)) ** 2,
    "relu": lambda xp, x: xp.where(x <= 0, 0, x),
    "relu_backward": lambda xp, dy, y: xp.where(y <= 0, 0, dy),
    "relu_derivative": lambda xp, x: xp.where(xp.isnan(x), x, x > 0),
    "leaky_relu": lambda xp, x, slope: xp.where(x > 0, x, slope * x),
    "leaky_relu_backward": lambda xp, dy, x, slope: xp.where(x > 0, dy, slope * dy),
    "leaky_relu_derivative": lambda xp, x, slope: xp.where(
        x > 0, 1, xp.where(xp.isnan(x), x, slope)
    ),
}


def elementwise(formula: str, *operands: Any) -> Array:
    with np.errstate(all="ignore"):
        value = ELEMENTWISE[formula](*(long(a) for a in operands))
    shape = np.broadcast_shapes(*(np.shape(a) for a in operands))
    return np.broadcast_to(value, shape)


def reduce(formula: str, arrays: tuple[Array, ...], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The sum over the axes where shape is 1, and the sum of absolute values beside it."""
    terms = elementwise(formula, *arrays)
    axes = tuple(k for k, n in enumerate(shape) if n == 1)
    with np.errstate(all="ignore"):
        return terms.sum(axes, keepdims=True), np.abs(terms).sum(axes, keepdims=True)


# -- rows: arrays (outer, n, inner), the row is axis 1 --------------------------------------------


def softmax(x: Any) -> Array:
    with np.errstate(all="ignore"):
        e = np.exp(distance(x))
        return e / e.sum(1, keepdims=True)


def log_softmax(x: Any) -> Array:
    with np.errstate(all="ignore"):
        d = distance(x)
        return d - np.log(np.exp(d).sum(1, keepdims=True))


def softmax_backward(dy: Any, y: Any) -> Array:
    dy, y = long(dy), long(y)
    with np.errstate(all="ignore"):
        return y * (dy - (y * dy).sum(1, keepdims=True))


def log_softmax_backward(dy: Any, y: Any) -> Array:
    dy, y = long(dy), long(y)
    with np.errstate(all="ignore"):
        return dy - np.exp(y) * dy.sum(1, keepdims=True)


def distance(x: Any) -> Array:
    """x − max of its row: NaN where the row is all −inf or holds +inf."""
    x = long(x)
    with np.errstate(all="ignore"):
        return x - x.max(1, keepdims=True)


def scored(x: Any, scale: Any, mask: Array | None, causal: bool) -> Array:
    """scale·x + mask, −inf where the mask is False or the column is later than the row.

    x of its own shape, with the row along the last axis where causal.
    """
    with np.errstate(all="ignore"):
        z = long(x) * long(scale)
        if mask is not None and mask.dtype != bool:
            z = z + long(mask)
    if mask is not None and mask.dtype == bool:
        z = np.where(mask, z, -np.inf)
    if causal:
        late = np.arange(z.shape[-1]) > np.arange(z.shape[-2])[:, None]
        z = np.where(late, -np.inf, z)
    return z


ROWS = {f.__name__: f for f in (softmax, log_softmax, softmax_backward, log_softmax_backward)}


# -- cross-entropy: logits (outer, classes, inner) ------------------------------------------------


def valid_target(target: Array, classes: int, ignore_index: int) -> tuple[Array, Array]:
    """Which rows are ignored, and which name a class out of range."""
    ignored = target == ignore_index
    return ignored, ~ignored & ((target < 0) | (target >= classes))


def _shares(
    z: Array, target: Array, weight: Array | None, ignore_index: int, label_smoothing: float
) -> Array:
    """q = w · ((1 − ε) Y + ε / classes)."""
    classes = z.shape[1]
    y = long(target)
    if target.ndim == 2:
        y = (np.arange(classes)[None, :, None] == target[:, None, :]).astype(LONG)
    q = (1 - LONG(label_smoothing)) * y + LONG(label_smoothing) / classes
    return q if weight is None else q * long(weight)[None, :, None]


def cross_entropy(
    logits: Any,
    target: Array,
    weight: Array | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    lse: Array | None = None,
) -> dict[str, Array]:
    """loss, lse, and gradient of a row (for a scale of 1), with what their errors are measured by.

    z: the capped logits; slope: the cap's; distance: Σ q (max − z), what the loss is made of;
    shares: q; mass: Σ q; pull: what softmax is multiplied by. lse: as it is stored, for a gradient
    that is made from it.
    """
    z, cap = long(logits), LONG(softcap)
    slope = np.ones_like(z)
    with np.errstate(all="ignore"):
        if softcap:
            z, slope = cap * np.tanh(z / cap), 1 / np.cosh(z / cap) ** 2
        q = _shares(z, target, weight, ignore_index, label_smoothing)
        d = distance(z)
        log_sum = np.log(np.exp(d).sum(1))
        surprise = log_sum[:, None] - d
        # a class of no share counts for nothing, be it ever so surprising
        terms = np.where(q == 0, 0 * log_sum[:, None], q * surprise)
        far = np.where(q == 0, 0, q * -d)
        mass = q.sum(1)
        whole = z.max(1) + log_sum
        of_lse = whole if lse is None else long(lse)
        softmax = np.exp(d - log_sum[:, None] if lse is None else z - of_lse[:, None])
        pull = mass + (2 * LONG(z_loss) * of_lse if z_loss else 0)
        truth = {
            "loss": terms.sum(1) + (LONG(z_loss) * whole**2 if z_loss else 0),
            "lse": whole,
            "gradient": (softmax * pull[:, None] - q) * slope,
            "softmax": softmax,
            "z": z,
            "slope": slope,
            "distance": far.sum(1),
            "shares": q,
            "mass": mass,
            "pull": pull,
        }
    if target.ndim == 2:
        ignored, wrong = valid_target(target, z.shape[1], ignore_index)
        truth["loss"] = np.where(ignored, 0, np.where(wrong, np.nan, truth["loss"]))
        gradient = np.where(wrong[:, None], np.nan, truth["gradient"])
        truth["gradient"] = np.where(ignored[:, None], 0, gradient)
    return truth
