"""softmax and log_softmax: forward and backward, over rows as rows.py describes them."""

import triton
import triton.language as tl

from .formulas import exp, log, rounded
from .rows import accumulate, columns, maximum_and_sum, merged, place, total


@triton.jit
def normalised(x, m, s, LOG: tl.constexpr):
    if LOG:
        return (x - m) - log(s)
    else:
        return exp(x - m) * (1.0 / s)


@triton.jit
def softmax(
    x,
    y,
    outer,
    n: tl.int64,
    inner,
    x_outer,
    x_n,
    x_inner,
    y_outer,
    y_n,
    y_inner,
    LOG: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    o, i, exists = place(outer, inner, ROWS)
    x += o * x_outer + i * x_inner
    y += o * y_outer + i * y_inner
    if WHOLE:
        c, mask = columns(0, n, exists, BLOCK)
        v = tl.load(x + c * x_n, mask=mask, other=-float("inf")).to(DTYPE)
        m, s = maximum_and_sum(v)
        tl.store(y + c * y_n, rounded(normalised(v, m, s, LOG), y.dtype.element_ty), mask=mask)
    else:
        m = tl.full([ROWS, BLOCK], -float("inf"), DTYPE)
        s = tl.zeros([ROWS, BLOCK], DTYPE)
        for start in range(0, n, BLOCK):
            c, mask = columns(start, n, exists, BLOCK)
            v = tl.load(x + c * x_n, mask=mask, other=-float("inf")).to(DTYPE)
            m, s = accumulate(m, s, v)
        m, s = merged(m, s)
        for start in range(0, n, BLOCK):
            c, mask = columns(start, n, exists, BLOCK)
            v = tl.load(x + c * x_n, mask=mask).to(DTYPE)
            tl.store(y + c * y_n, rounded(normalised(v, m, s, LOG), y.dtype.element_ty), mask=mask)


@triton.jit
def gradient(dy, y, s, LOG: tl.constexpr):
    if LOG:
        return dy - exp(y) * s
    else:
        return y * (dy - s)


@triton.jit
def softmax_backward(
    dy,
    y,
    dx,
    outer,
    n: tl.int64,
    inner,
    dy_outer,
    dy_n,
    dy_inner,
    y_outer,
    y_n,
    y_inner,
    dx_outer,
    dx_n,
    dx_inner,
    LOG: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    o, i, exists = place(outer, inner, ROWS)
    dy += o * dy_outer + i * dy_inner
    y += o * y_outer + i * y_inner
    dx += o * dx_outer + i * dx_inner
    if WHOLE:
        c, mask = columns(0, n, exists, BLOCK)
        g = tl.load(dy + c * dy_n, mask=mask, other=0.0).to(DTYPE)
        v = tl.load(y + c * y_n, mask=mask, other=0.0).to(DTYPE)
        # The choice keeps the product out of the sum, where threads that hold the same row would
        # each fuse it in another order.
        s = total(g if LOG else tl.where(mask, g * v, 0.0))
        tl.store(dx + c * dx_n, rounded(gradient(g, v, s, LOG), dx.dtype.element_ty), mask=mask)
    else:
        s = tl.zeros([ROWS, BLOCK], DTYPE)
        for start in range(0, n, BLOCK):
            c, mask = columns(start, n, exists, BLOCK)
            g = tl.load(dy + c * dy_n, mask=mask, other=0.0).to(DTYPE)
            if LOG:
                s += g
            else:
                s += g * tl.load(y + c * y_n, mask=mask, other=0.0).to(DTYPE)
        s = total(s)
        for start in range(0, n, BLOCK):
            c, mask = columns(start, n, exists, BLOCK)
            g = tl.load(dy + c * dy_n, mask=mask).to(DTYPE)
            v = tl.load(y + c * y_n, mask=mask).to(DTYPE)
            tl.store(dx + c * dx_n, rounded(gradient(g, v, s, LOG), dx.dtype.element_ty), mask=mask)
