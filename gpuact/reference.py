"""What every function means, in plain NumPy: the definition that all else is compared with.

Every formula works on arrays already in the precision of the computation (float32 for half types,
float32 and float64 for themselves) and knows nothing of blocks, threads or GPUs. Forward, backward
and derivative stand together; backward arguments are named for what they read: `x` or `y`.

Two habits keep NumPy fast without hiding the formula (nanoseconds an element, float32, one core):
`where` below chooses in 0.5 where `np.where` mispredicts a branch on every other element and takes
4.5; and `maximum` of two arrays takes 0.07 where `maximum` with a number takes 0.35.

NaN in gives NaN out. The derivative at a kink is the one that the docstrings of `activations`
state: 0 for ReLU, the slope for leaky and parametric ReLU.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .fusion import Dropout

Array = npt.NDArray[Any]


def where(condition: Array, a: Array, b: Array) -> Array:
    """a where the condition holds, else b, of the same dtype: by their bits, without a branch."""
    dtype = np.result_type(a, b)
    bits = np.dtype(f"i{dtype.itemsize}")
    keep = condition.astype(bits)
    np.negative(keep, out=keep)  # all ones where it holds
    x, y = (np.asarray(v, dtype).view(bits) for v in (a, b))
    keep &= x ^ y
    keep ^= y
    return keep.view(dtype)


# -- elementwise ----------------------------------------------------------------------------------
# `out`, where a formula has it, receives the last step; it may be one of the arguments.


def linear(x: Array, scale: Array, bias: Array, out: Array | None = None) -> Array:
    return np.add(scale * x, bias, out=out)


def linear_backward(dy: Array, scale: Array, out: Array | None = None) -> Array:
    return np.multiply(scale, dy, out=out)


def linear_dscale(dy: Array, x: Array) -> Array:
    """The terms whose sum is the gradient of scale."""
    return x * dy


def linear_dbias(dy: Array) -> Array:
    """The terms whose sum is the gradient of bias."""
    return dy


def linear_derivative(x: Array, scale: Array) -> Array:
    return where(np.isnan(x), x, scale)


def sigmoid(x: Array, out: Array | None = None) -> Array:
    # 1 / (1 + e^-x) overflows below -88 and is wrong there; z = e^-|x| never overflows. The
    # numerator is 1 where x >= 0, else z; z is at most 1, so that is the larger of z and x >= 0.
    z = np.abs(x)
    np.negative(z, out=z)
    np.exp(z, out=z)
    y = np.maximum(z, (x >= 0).astype(x.dtype), out=out)
    z += 1
    y /= z
    return y


def sigmoid_backward(dy: Array, y: Array, out: Array | None = None) -> Array:
    return np.multiply(dy, y * (1 - y), out=out)


def sigmoid_derivative(x: Array, out: Array | None = None) -> Array:
    # s (1 - s) cancels where s rounds to 1; z / (1 + z)^2 is right to a few ulp everywhere.
    z = np.exp(-np.abs(x))
    return np.divide(z, np.square(1 + z), out=out)


def tanh(x: Array, out: Array | None = None) -> Array:
    return np.tanh(x, out=out)


def tanh_backward(dy: Array, y: Array, out: Array | None = None) -> Array:
    # 1 - y^2 in the form that does not cancel where |y| is nearly 1
    return np.multiply(dy, (1 - y) * (1 + y), out=out)


def tanh_derivative(x: Array, out: Array | None = None) -> Array:
    z = np.exp(-2 * np.abs(x))
    return np.divide(4 * z, np.square(1 + z), out=out)


def relu(x: Array, out: Array | None = None) -> Array:
    y = np.maximum(x, np.zeros_like(x), out=out)
    y += 0  # -0.0, which maximum may keep, becomes +0.0
    return y


def relu_backward(dy: Array, y: Array) -> Array:
    return where(y <= 0, np.zeros_like(dy), dy)


def relu_derivative(x: Array) -> Array:
    return where(np.isnan(x), x, (x > 0).astype(x.dtype))


def leaky_relu(x: Array, slope: Array) -> Array:
    return where(x > 0, x, slope * x)


def leaky_relu_backward(dy: Array, x: Array, slope: Array) -> Array:
    return where(x > 0, dy, slope * dy)


def leaky_relu_derivative(x: Array, slope: Array) -> Array:
    return where(x > 0, np.ones_like(x), where(np.isnan(x), x, slope))


def prelu_dweight(dy: Array, x: Array) -> Array:
    """The terms whose sum is the gradient of the slope; x is tested, for slopes may be negative."""
    return where(x > 0, np.zeros_like(x), x * dy)


# -- fused: dropout(act(scale·x + bias))·gate + residual ------------------------------------------
# What is None is left out. `forward` and `backward` are formulas from above, None for the identity.


def philox(block: Array, seed: int, offset: int) -> list[Array]:
    """Philox4x32-10: the four words of each counter (block, offset) under the key seed."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    block = block.astype(np.uint64)
    second = np.full_like(block, offset)
    word = [block & low, block >> half, second & low, second >> half]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = word[0] * np.uint64(0xD2511F53), word[2] * np.uint64(0xCD9E8D57)
        word[0], word[1] = b >> half ^ word[1] ^ np.uint64(key[0]), b & low
        word[2], word[3] = a >> half ^ word[3] ^ np.uint64(key[1]), a & low
        key = [(k + w) & 0xFFFFFFFF for k, w in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)]
    return word


def dropped(first: int, count: int, dropout: Dropout) -> Array:
    """Which of `count` elements are dropped, from the one with C-order index `first` on."""
    blocks = np.arange(first // 4, (first + count + 3) // 4, dtype=np.uint64)
    words: Array = np.stack(philox(blocks, dropout.seed, dropout.offset), axis=-1).ravel()
    return words[first % 4 :][:count] <= dropout.last


def affine(x: Array, scale: Array | None, bias: Array | None) -> Array:
    if scale is not None:
        x = scale * x
    return x if bias is None else x + bias


def remaining(a: Array, drop: Array | None) -> Array:
    """0 where dropped, whatever was there."""
    return a if drop is None else where(drop, np.zeros_like(a), a)


def masked(a: Array, drop: Array | None, kept: float) -> Array:
    """0 where dropped; the others times `kept`."""
    return a if drop is None else remaining(a * a.dtype.type(kept), drop)


def fused(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    slope: Array | None,
    gate: Array | None,
    residual: Array | None,
    *,
    forward: Callable[..., Array] | None,
    drop: Array | None,
    kept: float,
) -> Array:
    y = affine(x, scale, bias)
    if forward is not None:
        y = forward(y) if slope is None else forward(y, slope)
    y = masked(y, drop, kept)
    if gate is not None:
        y = y * gate
    return y if residual is None else y + residual


def fused_backward(
    dy: Array,
    x: Array,
    scale: Array | None,
    bias: Array | None,
    slope: Array | None,
    gate: Array | None,
    *,
    forward: Callable[..., Array] | None,
    backward: Callable[..., Array] | None,
    reads: Sequence[str],  # what `backward` reads: x alone makes it a derivative
    drop: Array | None,
    kept: float,
    wanted: Container[str],
) -> dict[str, Array]:
    """What is wanted of dx and dgate, and of the terms of dscale, dbias and dslope."""
    slopes = () if slope is None else (slope,)
    u = affine(x, scale, bias)
    a = u
    if forward is not None and ("y" in reads or "gate" in wanted):
        a = forward(u, *slopes)
    da = dy if gate is None else dy * gate
    if drop is not None:
        da = da * da.dtype.type(kept)
    if backward is None:
        du = da
    elif "dy" in reads:
        du = backward(da, a if "y" in reads else u, *slopes)
    else:
        du = da * backward(u, *slopes)
    found = {}
    if "x" in wanted:
        found["x"] = du if scale is None else linear_backward(du, scale)
    if "scale" in wanted:
        found["scale"] = linear_dscale(du, x)
    if "bias" in wanted:
        found["bias"] = linear_dbias(du)
    if "slope" in wanted:
        found["slope"] = prelu_dweight(da, u)
    found = {name: remaining(gradient, drop) for name, gradient in found.items()}
    if "gate" in wanted:
        found["gate"] = dy * masked(a, drop, kept)
    return found


# -- statistics of outputs y (outer, units, inner) ------------------------------------------------


def is_saturated(y: Array, low: float | None, high: float | None) -> Array:
    """Where y is no more than low, or no less than high; None is no bound, and NaN beyond none."""
    compute = y.dtype.type
    below = np.zeros(y.shape, bool) if low is None else y <= compute(low)
    return below if high is None else below | (y >= compute(high))


def statistics(
    y: Array, low: float | None, high: float | None
) -> tuple[tuple[float, float, float, float, float], Array]:
    """Count, mean, Σ (y − mean)², how many are 0, how many saturated; and which units are alive:
    those with an element that is not.
    """
    saturated = is_saturated(y, low, high)
    mean = y.mean()
    apart = y - mean
    m2 = np.square(apart, out=apart).sum()
    numbers = y.size, mean, m2, np.count_nonzero(y == 0), np.count_nonzero(saturated)
    return cast(Any, tuple(map(float, numbers))), np.asarray(~saturated.all((0, 2)))


def merged(
    a: tuple[float, float, float, float, float], b: tuple[float, float, float, float, float]
) -> tuple[float, float, float, float, float]:
    """The numbers of both (Chan, Golub and LeVeque 1979); an infinite mean stays infinite."""
    n = a[0] + b[0]
    if not a[0] or not b[0]:
        return a if a[0] else b
    mean = a[1] * (a[0] / n) + b[1] * (b[0] / n)
    m2 = a[2] + b[2] + (b[1] - a[1]) ** 2 * (a[0] * b[0] / n)
    return n, mean, m2, a[3] + b[3], a[4] + b[4]


# -- rows -----------------------------------------------------------------------------------------
# A row that is all -inf, or holds +inf or NaN, becomes NaN: -inf - -inf and inf - inf are. The
# former is 0 where `zero` asks for that.


def total(x: Array, axis: int) -> Array:
    """Σ x along an axis, kept with length 1; the error grows with the logarithm of its length.

    NumPy sums in pairs along the last axis alone; along any other it adds one row after another, so
    there the upper half is added to the lower until few are left.
    """
    if axis == -1:
        return x.sum(-1, keepdims=True)
    rows = x.swapaxes(0, axis)
    while len(rows) > 8:
        half = (len(rows) + 1) // 2
        sums = rows[:half].copy()
        sums[: len(rows) - half] += rows[half:]
        rows = sums
    return rows.sum(0, keepdims=True).swapaxes(0, axis)


def scores(x: Array, scale: float, mask: Array | None, part: Array | None) -> Array:
    """scale·x + mask, and -inf where a column takes no part, whatever x holds there.

    mask and part broadcast to x; what is None is left out.
    """
    z = x * x.dtype.type(scale)
    if mask is not None:
        z += mask
    if part is not None:
        z = where(np.broadcast_to(part, z.shape), z, np.full((), -np.inf, z.dtype))
    return z


def softmax(x: Array, axis: int = -1, out: Array | None = None, zero: bool = False) -> Array:
    m = x.max(axis, keepdims=True)
    none = m == -np.inf if zero else None
    if none is not None:
        m[none] = 0
    e = np.subtract(x, m, out=out)
    np.exp(e, out=e)
    s = total(e, axis)
    if none is not None:
        s[none] = 1
    e /= s
    return e


def softmax_backward(
    dy: Array, y: Array, axis: int = -1, out: Array | None = None, scale: float = 1.0
) -> Array:
    dx = np.multiply(y, dy - total(y * dy, axis), out=out)
    if scale != 1.0:
        dx *= dx.dtype.type(scale)
    return dx


def log_softmax(x: Array, axis: int = -1, out: Array | None = None) -> Array:
    d = np.subtract(x, x.max(axis, keepdims=True), out=out)
    d -= np.log(total(np.exp(d), axis))
    return d


def log_softmax_backward(dy: Array, y: Array, axis: int = -1, out: Array | None = None) -> Array:
    return np.subtract(dy, np.exp(y) * total(dy, axis), out=out)


# A row too long for one piece is cut into chunks: name → (statistics of a chunk, their merger over
# all chunks, what finishes a chunk). Softmax's statistics are (max, sum of e^(x - max)); a chunk
# that is all -inf contributes 0 to the sum, never NaN.


def _max_and_sum(x: Array) -> tuple[Array, Array]:
    m = x.max()
    return m, np.exp(x - np.where(m == -np.inf, 0, m)).sum()


def _merge_max_and_sum(m: Array, s: Array) -> tuple[Array, Array]:
    top = m.max()
    return top, (s * np.exp(m - np.where(top == -np.inf, 0, top))).sum()


def spared(m: Array, s: Array) -> tuple[Array, Array]:
    """Statistics that make 0 of a row that is all -inf."""
    none = m == -np.inf
    return np.where(none, 0, m), np.where(none, 1, s)


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
# With Y' = (1 - ε) Y + ε / classes and q = w Y':  loss = -Σ q log S + z_loss·lse²  and
# dZ = S (Σ q + 2 z_loss·lse) - q. Under a cap the logits are capped first, and dZ takes its slope.


def capped(z: Array, softcap: float) -> Array:
    """cap·tanh(z / cap), or z itself if the cap is 0."""
    if not softcap:
        return z
    cap = z.dtype.type(softcap)
    return cap * np.tanh(z / cap)


def capped_slope(z: Array, softcap: float) -> Array:
    """1 - (z / cap)² of capped logits z, in the form that does not cancel near the cap."""
    t = z / z.dtype.type(softcap)
    return (1 - t) * (1 + t)


def columns(target: Array, ignore_index: int) -> tuple[Array, Array]:
    """The class of every row, 0 for those that are ignored, and which are."""
    ignored = target == ignore_index
    return np.where(ignored, 0, target), ignored


def smoothed(
    z: Array, target: Array, weight: Array | None, ignore_index: int, label_smoothing: float
) -> Array:
    """q = w·Y', of z's shape."""
    if target.ndim == 2:
        q = (1 - label_smoothing) * target
    else:
        q = np.zeros_like(z)
        column, _ = columns(target, ignore_index)
        q[np.arange(len(z)), column] = 1 - label_smoothing
    q += label_smoothing / z.shape[1]
    return q if weight is None else q * weight


def surprise(q: Array, m: Array, z: Array, log_sum: Array) -> Array:
    """-q log S; a class without a share adds nothing, whatever its logit, but to a row of NaN."""
    distance = where(q == 0, np.zeros_like(z), m - z)  # 0 times infinity would be NaN
    return q * (distance + log_sum)


def cross_entropy(
    z: Array,
    target: Array,
    weight: Array | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float = 0.0,
) -> tuple[Array, Array]:
    """Loss and log-sum-exp of each row of capped logits."""
    m = z.max(-1)
    log_sum = np.log(np.exp(z - m[:, None]).sum(-1))
    lse = m + log_sum
    if target.ndim == 2 or label_smoothing:
        q = smoothed(z, target, weight, ignore_index, label_smoothing)
        loss = surprise(q, m[:, None], z, log_sum[:, None]).sum(-1)
    else:
        column, _ = columns(target, ignore_index)
        w = np.ones_like(m) if weight is None else weight[column]
        loss = surprise(w, m, z[np.arange(len(z)), column], log_sum)
    if z_loss:
        loss += lse.dtype.type(z_loss) * lse * lse
    if target.ndim == 1:
        loss[target == ignore_index] = 0
    return loss, lse


def cross_entropy_backward(
    scale: Array,
    z: Array,
    target: Array,
    weight: Array | None,
    lse: Array,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    stored: bool = True,
) -> Array:
    """scale·(S (Σ q + 2 z_loss·lse) - q), times the cap's slope; scale: of each row's loss.

    stored: lse is all that is known of the row; else S is made of it anew, as lse was.
    """
    dz = np.exp(z - lse[:, None]) if stored else softmax(z)
    more = lse * lse.dtype.type(2 * z_loss) if z_loss else np.zeros_like(lse)
    if target.ndim == 2 or label_smoothing:
        q = smoothed(z, target, weight, ignore_index, label_smoothing)
        dz *= q.sum(-1, keepdims=True) + more[:, None]
        dz -= q
    else:
        column, _ = columns(target, ignore_index)
        w = np.ones_like(lse) if weight is None else weight[column]
        dz *= (w + more)[:, None]
        dz[np.arange(len(z)), column] -= w
    dz *= scale[:, None]
    if softcap:
        dz *= capped_slope(z, softcap)
    if target.ndim == 1:  # an ignored row is 0 whatever its scale: a mean over nothing is 0/0
        dz[target == ignore_index] = 0
    return dz
