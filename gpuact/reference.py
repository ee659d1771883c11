"""What every function means, in plain NumPy: the definition that all else is compared with.

Every formula works on arrays already in the precision of the computation (float32 for half types,
float32 and float64 for themselves) and knows nothing of blocks, threads or GPUs. Forward, backward
and derivative stand together; backward arguments are named for what they read: `x` or `y`.

Two habits keep NumPy fast here without hiding the formula (float32, one core, 2¹⁵ elements in the
cache): `putmask` chooses in 1.0 ns an element where `np.where`, which branches on every one, takes
5.0; and `maximum` of two arrays takes 0.07 ns where `maximum` with a number takes 0.35.

NaN in gives NaN out. The derivative at a kink is the one that the docstrings of `activations`
state: 0 for ReLU, the slope for leaky and parametric ReLU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# -- elementwise ----------------------------------------------------------------------------------


def linear(x: Array, scale: Array, bias: Array) -> Array:
    return scale * x + bias


def linear_backward(dy: Array, scale: Array) -> Array:
    return scale * dy


def linear_dscale(dy: Array, x: Array) -> Array:
    """The terms whose sum is the gradient of scale."""
    return x * dy


def linear_dbias(dy: Array) -> Array:
    """The terms whose sum is the gradient of bias."""
    return dy


def linear_derivative(x: Array, scale: Array) -> Array:
    return np.where(np.isnan(x), x, scale)


def sigmoid(x: Array) -> Array:
    # 1 / (1 + e^-x) overflows below -88 and is wrong there; e^-|x| never overflows, and the
    # numerator e^min(x, 0) is the 1 or the e^x that belongs to x's sign.
    return np.exp(np.minimum(x, np.zeros_like(x))) / (1 + np.exp(-np.abs(x)))


def sigmoid_backward(dy: Array, y: Array) -> Array:
    return dy * (y * (1 - y))


def sigmoid_derivative(x: Array) -> Array:
    # s (1 - s) cancels where s rounds to 1; z / (1 + z)^2 is right to a few ulp everywhere.
    z = np.exp(-np.abs(x))
    return z / np.square(1 + z)


def tanh(x: Array) -> Array:
    return np.tanh(x)


def tanh_backward(dy: Array, y: Array) -> Array:
    return dy * (1 - y * y)


def tanh_derivative(x: Array) -> Array:
    z = np.exp(-2 * np.abs(x))
    return 4 * z / np.square(1 + z)


def relu(x: Array) -> Array:
    y = np.maximum(x, np.zeros_like(x))
    y += 0  # -0.0, which maximum may keep, becomes +0.0
    return y


def relu_backward(dy: Array, y: Array) -> Array:
    dx = dy.copy()
    np.putmask(dx, y <= 0, 0)
    return dx


def relu_derivative(x: Array) -> Array:
    d = (x > 0).astype(x.dtype)
    np.putmask(d, np.isnan(x), x)
    return d


def leaky_relu(x: Array, slope: Array) -> Array:
    y = slope * x
    np.putmask(y, x > 0, x)
    return y


def leaky_relu_backward(dy: Array, x: Array, slope: Array) -> Array:
    dx = slope * dy
    np.putmask(dx, x > 0, dy)
    return dx


def leaky_relu_derivative(x: Array, slope: Array) -> Array:
    d = np.empty_like(x)
    d[...] = slope
    np.putmask(d, x > 0, 1)
    np.putmask(d, np.isnan(x), x)
    return d


def prelu_dweight(dy: Array, x: Array) -> Array:
    """The terms whose sum is the gradient of the slope; x is tested, for slopes may be negative."""
    terms = x * dy
    np.putmask(terms, x > 0, 0)
    return terms


# -- rows: over the last axis ---------------------------------------------------------------------
# A row that is all -inf, or holds +inf or NaN, becomes NaN: -inf - -inf and inf - inf are.


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    e /= e.sum(-1, keepdims=True)
    return e


def softmax_backward(dy: Array, y: Array) -> Array:
    return y * (dy - (y * dy).sum(-1, keepdims=True))


def log_softmax(x: Array) -> Array:
    d = x - x.max(-1, keepdims=True)
    return d - np.log(np.exp(d).sum(-1, keepdims=True))


def log_softmax_backward(dy: Array, y: Array) -> Array:
    return dy - np.exp(y) * dy.sum(-1, keepdims=True)


# A row too long for one piece is cut into chunks: name → (statistics of a chunk, their merger over
# all chunks, what finishes a chunk). Softmax's statistics are (max, sum of e^(x - max)); a chunk
# that is all -inf contributes 0 to the sum, never NaN.


def _max_and_sum(x: Array) -> tuple[Array, Array]:
    m = x.max()
    return m, np.exp(x - np.where(m == -np.inf, 0, m)).sum()


def _merge_max_and_sum(m: Array, s: Array) -> tuple[Array, Array]:
    top = m.max()
    return top, (s * np.exp(m - np.where(top == -np.inf, 0, top))).sum()


def _sum_all(terms: Array) -> tuple[Array]:
    return (terms.sum(),)


CHUNKED: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Array]]] = {
    "softmax": (_max_and_sum, _merge_max_and_sum, lambda x, m, s: np.exp(x - m) / s),
    "log_softmax": (_max_and_sum, _merge_max_and_sum, lambda x, m, s: (x - m) - np.log(s)),
    "softmax_backward": (lambda dy, y: _sum_all(y * dy), _sum_all, lambda dy, y, t: y * (dy - t)),
    "log_softmax_backward": (
        lambda dy, y: _sum_all(dy),
        _sum_all,
        lambda dy, y, t: dy - np.exp(y) * t,
    ),
}


# -- cross-entropy: logits z (rows, classes) ------------------------------------------------------
# With Y' = (1 - ε) Y + ε / classes and q = w Y':  loss = -Σ q log S  and  dZ = S Σ q - q.


def smoothed(
    z: Array, target: Array, weight: Array | None, ignore_index: int, label_smoothing: float
) -> tuple[Array, Array]:
    """q = w·Y' of shape (rows, classes), and which rows are ignored."""
    rows, classes = z.shape
    if target.ndim == 2:
        ignored = np.zeros(rows, bool)
        q = (1 - label_smoothing) * target
    else:
        ignored = target == ignore_index
        q = np.zeros_like(z)
        q[np.arange(rows), np.where(ignored, 0, target)] = 1 - label_smoothing
    q = q + label_smoothing / classes
    q = q if weight is None else q * weight
    return q.astype(z.dtype, copy=False), ignored


def cross_entropy(
    z: Array, target: Array, weight: Array | None, ignore_index: int, label_smoothing: float
) -> tuple[Array, Array]:
    """Loss and log-sum-exp of each row."""
    m = z.max(-1)
    log_sum = np.log(np.exp(z - m[:, None]).sum(-1))
    q, ignored = smoothed(z, target, weight, ignore_index, label_smoothing)
    surprise = (m[:, None] - z) + log_sum[:, None]  # -log S
    if target.ndim == 1 and label_smoothing == 0:
        # only the target's class counts: 0 times an infinite surprise elsewhere would be NaN
        column = np.where(ignored, 0, target)[:, None]
        q, surprise = (np.take_along_axis(a, column, -1) for a in (q, surprise))
    return np.where(ignored, 0, (q * surprise).sum(-1)), m + log_sum


def cross_entropy_backward(
    z: Array,
    target: Array,
    weight: Array | None,
    lse: Array,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Array, Array]:
    """dZ = S Σ q - q for a loss gradient of 1, and which rows are ignored."""
    q, ignored = smoothed(z, target, weight, ignore_index, label_smoothing)
    return np.exp(z - lse[:, None]) * q.sum(-1, keepdims=True) - q, ignored
