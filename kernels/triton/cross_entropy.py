"""Cross-entropy of logits: the loss, its gradient, or both; over rows as rows.py describes them.

With Y' = keep·Y + share (label smoothing ε: keep = 1 - ε, share = ε / n), w the class weights,
S = softmax(z), the loss of a row is Σ w·Y'·(lse - z) and its gradient S·Σ w·Y' - w·Y'. An integer
target without smoothing has one class y in both sums, so they are never formed.

An ignored row has loss and gradient 0. A target that is no class gives NaN, and is never used as
an index.
"""

import triton
import triton.language as tl

from .formulas import exp, log, rounded
from .rows import accumulate, columns, first, maximum_and_sum, merged, place, total


@triton.jit
def label(target, exists, n, ignore_index, PROBABILITIES: tl.constexpr):
    """(y, is the row ignored, is y a class); probabilities ignore nothing and y is no class."""
    if PROBABILITIES:
        y = tl.full(exists.shape, -1, tl.int64)
        return y, y >= 0, y < 0
    else:
        y = tl.load(target, mask=exists, other=0).to(tl.int64)
        ignored = y == ignore_index
        return y, ignored, (y >= 0) & (y < n) & ~ignored


@triton.jit
def class_weight(weight, c, mask, DTYPE: tl.constexpr):
    if weight is None:
        return tl.full((), 1.0, DTYPE)
    else:
        return tl.load(weight + c, mask=mask, other=0.0).to(DTYPE)


@triton.jit
def weighted_target(
    target,
    t_n,
    y,
    weight,
    c,
    mask,
    keep,
    share,
    PROBABILITIES: tl.constexpr,
    SMOOTHING: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """w·Y' at the columns c, 0 where there is no column."""
    if PROBABILITIES:
        p = tl.load(target + c * t_n, mask=mask, other=0.0).to(DTYPE)
    else:
        p = tl.where(c == y, 1.0, 0.0).to(DTYPE)
    if SMOOTHING:
        p = p * tl.full((), keep, DTYPE) + tl.full((), share, DTYPE)
    return tl.where(mask, p * class_weight(weight, c, mask, DTYPE), 0.0)


@triton.jit
def term(g, m, v, log_s):
    """-g·log S. A class without a share counts for nothing, at v = -inf too: 0·inf would be NaN."""
    return g * (tl.where(g == 0, 0.0, m - v) + log_s)


@triton.jit
def cross_entropy(
    logits,
    target,
    weight,  # None: 1 for every class
    scale,  # None without dlogits
    loss,
    lse,  # None with dlogits: it stays in here
    dlogits,  # None: the loss only
    outer,
    n: tl.int64,
    inner,
    z_outer,
    z_n,
    z_inner,
    t_outer,
    t_n,
    t_inner,
    s_outer,
    s_inner,
    d_outer,
    d_n,
    d_inner,
    ignore_index: tl.int64,
    keep: tl.float64,
    share: tl.float64,
    PROBABILITIES: tl.constexpr,
    SMOOTHING: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    SUMS: tl.constexpr = PROBABILITIES or SMOOTHING
    o, i, exists = place(outer, inner, ROWS)
    row = o * inner + i
    logits += o * z_outer + i * z_inner
    target += o * t_outer + i * t_inner
    y, ignored, valid = label(target, exists, n, ignore_index, PROBABILITIES)
    valid = valid & exists

    if WHOLE:
        c, mask = columns(0, n, exists, BLOCK)
        v = tl.load(logits + c * z_n, mask=mask, other=-float("inf")).to(DTYPE)
        m, s = maximum_and_sum(v)
    else:
        m = tl.full([ROWS, BLOCK], -float("inf"), DTYPE)
        s = tl.zeros([ROWS, BLOCK], DTYPE)
        for start in range(0, n, BLOCK):
            c, mask = columns(start, n, exists, BLOCK)
            v = tl.load(logits + c * z_n, mask=mask, other=-float("inf")).to(DTYPE)
            m, s = accumulate(m, s, v)
        m, s = merged(m, s)
    log_s = log(s)
    if lse is not None:
        # A row of -inf alone has no softmax; its sum is 0.
        log_sum = tl.where(s > 0, m + log_s, float("nan"))
        tl.store(lse + row, log_sum.to(lse.dtype.element_ty), mask=exists)

    if SUMS:
        if WHOLE:
            g = weighted_target(
                target, t_n, y, weight, c, mask, keep, share, PROBABILITIES, SMOOTHING, DTYPE
            )
            sum_g = total(g)
            # The choice keeps the product out of the sum: threads that hold the same row add in
            # another order each, which changes no bit of a sum, but of a fused product would.
            value = total(tl.where(mask, term(g, m, v, log_s), 0.0))
        else:
            sum_g = tl.zeros([ROWS, BLOCK], DTYPE)
            value = tl.zeros([ROWS, BLOCK], DTYPE)
            for start in range(0, n, BLOCK):
                c, mask = columns(start, n, exists, BLOCK)
                v = tl.load(logits + c * z_n, mask=mask, other=0.0).to(DTYPE)
                g = weighted_target(
                    target, t_n, y, weight, c, mask, keep, share, PROBABILITIES, SMOOTHING, DTYPE
                )
                sum_g += g
                value += term(g, m, v, log_s)
            sum_g = total(sum_g)
            value = total(value)
    else:
        sum_g = class_weight(weight, y, valid, DTYPE)
        at_y = tl.load(logits + y * z_n, mask=valid, other=0.0).to(DTYPE)
        value = term(sum_g, m, at_y, log_s)
    value = tl.where(ignored, 0.0, tl.where(valid, value, float("nan")))
    tl.store(loss + row, value.to(loss.dtype.element_ty), mask=exists)

    if dlogits is not None:
        # dlogits may be logits: what is above has been read before what is below is written.
        tl.debug_barrier()
        dlogits += o * d_outer + i * d_inner
        dloss = tl.load(scale + o * s_outer + i * s_inner, mask=exists, other=0.0).to(DTYPE)
        sum_g = tl.where(valid, sum_g, float("nan"))
        if WHOLE:
            if not SUMS:
                g = weighted_target(
                    target, t_n, y, weight, c, mask, keep, share, PROBABILITIES, SMOOTHING, DTYPE
                )
            d = dloss * (exp(v - m) * (1.0 / s) * sum_g - g)
            d = tl.where(ignored, 0.0, d)
            tl.store(dlogits + c * d_n, rounded(d, dlogits.dtype.element_ty), mask=mask)
        else:
            for start in range(0, n, BLOCK):
                c, mask = columns(start, n, exists, BLOCK)
                v = tl.load(logits + c * z_n, mask=mask, other=0.0).to(DTYPE)
                g = weighted_target(
                    target, t_n, y, weight, c, mask, keep, share, PROBABILITIES, SMOOTHING, DTYPE
                )
                d = dloss * (exp(v - m) * (1.0 / s) * sum_g - g)
                d = tl.where(ignored, 0.0, d)
                tl.store(dlogits + c * d_n, rounded(d, dlogits.dtype.element_ty), mask=mask)


@triton.jit
def cross_entropy_backward(
    scale,
    logits,
    target,
    weight,
    lse,
    dlogits,
    outer,
    n: tl.int64,
    inner,
    z_outer,
    z_n,
    z_inner,
    t_outer,
    t_n,
    t_inner,
    s_outer,
    s_inner,
    d_outer,
    d_n,
    d_inner,
    ignore_index: tl.int64,
    keep: tl.float64,
    share: tl.float64,
    PROBABILITIES: tl.constexpr,
    SMOOTHING: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o, i, exists = place(outer, inner, ROWS)
    logits += o * z_outer + i * z_inner
    target += o * t_outer + i * t_inner
    dlogits += o * d_outer + i * d_inner
    y, ignored, valid = label(target, exists, n, ignore_index, PROBABILITIES)
    valid = valid & exists
    dloss = tl.load(scale + o * s_outer + i * s_inner, mask=exists, other=0.0).to(DTYPE)
    log_sum = tl.load(lse + o * inner + i, mask=exists, other=0.0).to(DTYPE)
    if PROBABILITIES or SMOOTHING:
        sum_g = tl.zeros([ROWS, BLOCK], DTYPE)
        for start in range(0, n, BLOCK):
            c, mask = columns(start, n, exists, BLOCK)
            sum_g += weighted_target(
                target, t_n, y, weight, c, mask, keep, share, PROBABILITIES, SMOOTHING, DTYPE
            )
        sum_g = total(sum_g)
    else:
        sum_g = class_weight(weight, y, valid, DTYPE)
    sum_g = tl.where(valid, sum_g, float("nan"))
    for start in range(0, n, BLOCK):
        c, mask = columns(start, n, exists, BLOCK)
        v = tl.load(logits + c * z_n, mask=mask, other=0.0).to(DTYPE)
        g = weighted_target(
            target, t_n, y, weight, c, mask, keep, share, PROBABILITIES, SMOOTHING, DTYPE
        )
        d = tl.where(ignored, 0.0, dloss * (exp(v - log_sum) * sum_g - g))
        tl.store(dlogits + c * d_n, rounded(d, dlogits.dtype.element_ty), mask=mask)


@triton.jit
def target_weight(
    target,
    weight,  # None: 1 for every class
    w_n,
    out,  # contiguous
    outer,
    inner,
    t_outer,
    t_inner,
    classes,
    ignore_index: tl.int64,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The weight of each row's class, 0 for a row without one."""
    row = first() * BLOCK + tl.arange(0, BLOCK)
    exists = row < outer * inner
    y = tl.load(target + (row // inner) * t_outer + (row % inner) * t_inner, mask=exists, other=0)
    y = y.to(tl.int64)
    valid = exists & (y >= 0) & (y < classes) & (y != ignore_index)
    w = tl.where(valid, class_weight(weight, y * w_n, valid, DTYPE), 0.0)
    tl.store(out + row, w.to(out.dtype.element_ty), mask=exists)
