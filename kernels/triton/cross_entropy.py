"""Cross-entropy of logits: the loss, its gradient, or both; over rows as rows.py describes them.

With z = logits, or cap·tanh(logits / cap); Y' = keep·Y + share (label smoothing ε: keep = 1 - ε,
share = ε / n), w the class weights, q = w·Y' and S = softmax(z), the loss of a row is
Σ q·(lse - z) + z_loss·lse², and its gradient by z is S·(Σ q + 2·z_loss·lse) - q. An integer target
without smoothing has one class y in both sums, so they are never formed. Else, with m the maximum
of any columns, those bring Σ q and Σ q·(m - z), which are moved to the row's maximum as the sum of
e^(z - m) is: one pass.

An ignored row has loss and gradient 0. A target that is no class gives NaN, and is never used as
an index.
"""

import triton
import triton.language as tl

from .formulas import INTERPRETED, exp, log, rounded, tanh
from .rows import (
    added_chunks,
    added_parts,
    among_parts,
    at,
    both_added,
    columns,
    ends,
    finite,
    first,
    leave,
    left,
    maximum,
    merged_chunks,
    moved,
    moved_chunks,
    place,
    place_of,
    product,
    second,
    span,
    total,
)

# What differs between calls that one warmup stands for: one kernel does for all values.
OPTIONS = ("ignore_index", "s_outer", "s_inner")


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
    """The weights of the classes c; for those of a tile, weight points to where it begins."""
    if weight is None:
        return tl.full((), 1.0, DTYPE)
    else:
        return tl.load(weight + c, mask=mask, other=0.0).to(DTYPE)


@triton.jit
def capped(v, exists, cap, inverse, CAPPED: tl.constexpr, DTYPE: tl.constexpr):
    """z, and -inf still where there is no column."""
    if CAPPED:
        z = tl.full((), cap, DTYPE) * tanh(v * tl.full((), inverse, DTYPE), DTYPE)
        return tl.where(exists, z, -float("inf"))
    else:
        return v


@triton.jit
def hit(y, base, reach):
    """y as one of `reach` columns from base on; -1 if it is none of them."""
    y -= base
    return tl.where((y >= 0) & (y < reach), y, -1).to(tl.int32)


@triton.jit
def weighted_target(
    target, y, weight, base, c, mask, keep, share,
    PROBABILITIES: tl.constexpr, SMOOTHING: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """q = w·Y' at the columns base + c, 0 where there is no column; y counts from base, too.

    target: pointers to probabilities.
    """
    if PROBABILITIES:
        p = tl.load(target, mask=mask, other=0.0).to(DTYPE)
    else:
        p = tl.where(c == y, 1.0, 0.0).to(DTYPE)
    if SMOOTHING:
        p = p * tl.full((), keep, DTYPE) + tl.full((), share, DTYPE)
    if weight is not None:
        weight += base
    return tl.where(mask, p * class_weight(weight, c, mask, DTYPE), 0.0)


@triton.jit
def one_class(y, own, c):
    """q of an integer target without smoothing, at the columns c: the weight of class y there."""
    return tl.where(c == y, own, 0.0)


@triton.jit
def mass_and_distance(q, m, z):
    """(Σ q, Σ q·(m - z)). A class without a share counts for nothing, at z = -inf too.

    One reduction: on its own, q would be added up in a layout that knows nothing of z's threads.
    """
    far = tl.where(q == 0, 0.0, product(q, m - z))
    if INTERPRETED:
        return total(q), total(far)
    else:
        return tl.reduce((q, far), 1, both_added, keep_dims=True)


@triton.jit
def whole_mass(own, n, keep, share, SMOOTHING: tl.constexpr, DTYPE: tl.constexpr):
    """Σ q of rows where it takes no sum; own: the weight of class y."""
    if SMOOTHING:
        return tl.full((1, 1), keep + share * n, DTYPE)
    else:
        return own


@triton.jit
def of_class(
    logits, z_n, y, valid, cap, inverse,
    CAPPED: tl.constexpr, LANES: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """z of class y, 0 where that is none. One of LANES reads it, and not each warp of a row."""
    lane = tl.arange(0, LANES)[None, :]
    valid = valid & (lane == 0)
    z = tl.load(logits + y * z_n + lane, mask=valid, other=0.0).to(DTYPE)
    return total(tl.where(valid, capped(z, valid, cap, inverse, CAPPED, DTYPE), 0.0))


@triton.jit
def logarithm(m, s):
    """(log s, lse). A row of -inf alone has no softmax; its sum is 0."""
    log_s = log(s)
    return log_s, tl.where(s > 0, m + log_s, float("nan"))


@triton.jit
def surprise(
    mass, far, top, z_y, log_s, log_sum, z_loss, ignored, valid,
    SUMS: tl.constexpr, Z_LOSS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The loss of a row. The largest z less that of y is formed as such, not by way of lse."""
    if SUMS:
        value = far + mass * log_s
    else:
        value = mass * (tl.where(mass == 0, 0.0, top - z_y) + log_s)
    if Z_LOSS:
        value += tl.full((), z_loss, DTYPE) * log_sum * log_sum
    return tl.where(ignored, 0.0, tl.where(valid, value, float("nan")))


@triton.jit
def pull(mass, log_sum, z_loss, valid, Z_LOSS: tl.constexpr, DTYPE: tl.constexpr):
    """What S is multiplied by in the gradient."""
    if Z_LOSS:
        mass = mass + tl.full((), 2.0 * z_loss, DTYPE) * log_sum
    return tl.where(valid, mass, float("nan"))


@triton.jit
def gradient(z, m, r, q, dloss, ignored, inverse, CAPPED: tl.constexpr, DTYPE: tl.constexpr):
    """dloss times the gradient of a row; r·e^(z - m) is S times what pulls at it."""
    d = dloss * (exp(z - m) * r - q)
    if CAPPED:
        t = z * tl.full((), inverse, DTYPE)
        d = d * ((1.0 - t) * (1.0 + t))
    return tl.where(ignored, 0.0, d)


@triton.jit(do_not_specialize=["head", *OPTIONS])
def cross_entropy(
    logits,
    target,
    weight,  # None: 1 for every class
    scale,  # None without dlogits
    loss,  # None: the gradient from lse
    lse,  # None with loss and dlogits: it stays in here
    dlogits,  # None: the loss only; or logits
    keep: tl.float64,
    share: tl.float64,
    z_loss: tl.float64,
    cap: tl.float64,
    inverse: tl.float64,  # of cap
    outer,
    n: tl.int64,
    inner,
    z_outer,
    z_n,
    z_inner,
    d_outer,
    d_n,
    d_inner,
    head,
    t_outer,
    t_n,
    t_inner,
    s_outer,
    s_inner,
    ignore_index: tl.int64,
    PROBABILITIES: tl.constexpr,
    SMOOTHING: tl.constexpr,
    Z_LOSS: tl.constexpr,
    CAPPED: tl.constexpr,
    T_PACK: tl.constexpr,
    T_BESIDE: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACROSS: tl.constexpr,
    PARTS: tl.constexpr,
    PACK: tl.constexpr,
    BESIDE: tl.constexpr,
    EDGE: tl.constexpr,  # elements of a sector, where a row begins within one; else 0
    LANES: tl.constexpr,
):
    """Whole rows: each element is read once."""
    SUMS: tl.constexpr = PROBABILITIES or SMOOTHING
    ADDED: tl.constexpr = PROBABILITIES or (SMOOTHING and weight is not None)
    inf = float("inf")
    o, i, exists, part = place(outer, inner, ROWS, ACROSS, PARTS, BESIDE)
    logits += o * z_outer + i * z_inner
    target += o * t_outer + i * t_inner
    y, ignored, valid = label(target, exists, n, ignore_index, PROBABILITIES)
    valid = valid & exists
    here = hit(y, 0, n)
    if loss is None:
        m = tl.load(lse + o * inner + i, mask=exists, other=0.0).to(DTYPE)
    if dlogits is not None:
        dloss = tl.load(scale + o * s_outer + i * s_inner, mask=exists, other=0.0).to(DTYPE)
    start, length = span(head + o * z_outer + i * z_inner, tl.full((), n, tl.int32), PACK, EDGE)
    own = tl.full((), 1.0, DTYPE) if SUMS else class_weight(weight, y, valid, DTYPE)
    if EDGE:
        c, cut = ends(start, length, n, part, exists, LANES, EDGE)
        w = tl.load(logits + c, mask=cut, other=-inf).to(DTYPE)
        z_cut = capped(w, cut, cap, inverse, CAPPED, DTYPE)
        if SUMS:
            q_cut = weighted_target(
                target + c.to(tl.int64) * t_n, here, weight,
                0, c, cut, keep, share, PROBABILITIES, SMOOTHING, DTYPE,
            )  # fmt: skip
    j, inside = columns(0, length, part, exists, BLOCK, PARTS, PACK)
    v = tl.load(at(logits, start, j, z_n, PACK, BESIDE), mask=inside, other=-inf).to(DTYPE)
    z = capped(v, inside, cap, inverse, CAPPED, DTYPE)
    if SUMS:
        q = weighted_target(
            at(target, start, j, t_n, T_PACK, T_BESIDE), here - start,
            weight, start, j, inside, keep, share, PROBABILITIES, SMOOTHING, DTYPE,
        )  # fmt: skip
    if loss is None:
        mass = whole_mass(own, n, keep, share, SMOOTHING, DTYPE)
        if ADDED:
            mass = total(q)
            if EDGE:
                mass += total(q_cut)
        log_sum = m
        r = tl.full((), 1.0, DTYPE)
    else:
        top = maximum(z)
        if EDGE:
            top = tl.maximum(top, maximum(z_cut))
        m = finite(top)
        s = total(exp(z - m))
        if EDGE:
            s += total(exp(z_cut - m))
        if SUMS:
            mass, far = mass_and_distance(q, m, z)
            if EDGE:
                mass_cut, far_cut = mass_and_distance(q_cut, m, z_cut)
                mass += mass_cut
                far += far_cut
            z_y = far
        else:
            mass = own
            far = own
            if ROWS > 1 and PARTS == 1:
                z_y = total(tl.where(j == here - start, z, 0.0))
            else:
                z_y = of_class(logits, z_n, y, valid, cap, inverse, CAPPED, LANES, DTYPE)
        r = 1.0 / s
        if PARTS > 1:
            top, s = among_parts(top, s, ROWS, PARTS)
            top = finite(top)
            if SUMS:
                far += tl.where(mass == 0, 0.0, mass * (top - m))
                mass, far = added_parts(mass, far, ROWS, PARTS)
            leave()
            r = moved(m, top) * (1.0 / s)
        else:
            top = m
        log_s, log_sum = logarithm(top, s)
        row = o * inner + i
        if lse is not None:
            tl.store(lse + row, log_sum.to(lse.dtype.element_ty), mask=exists)
        value = surprise(
            mass, far, top, z_y, log_s, log_sum, z_loss, ignored, valid, SUMS, Z_LOSS, DTYPE
        )
        tl.store(loss + row, value.to(loss.dtype.element_ty), mask=exists)
    if dlogits is not None:
        # dlogits may be logits: what is above has been read before what is below is written.
        tl.debug_barrier()
        dlogits += o * d_outer + i * d_inner
        r = r * pull(mass, log_sum, z_loss, valid, Z_LOSS, DTYPE)
        if not SUMS:  # formed here, q takes no registers before
            q = one_class(here - start, own, j)
            if EDGE:
                q_cut = one_class(here, own, c)
        d = gradient(z, m, r, q, dloss, ignored, inverse, CAPPED, DTYPE)
        p = at(dlogits, start, j, d_n, PACK, BESIDE)
        tl.store(p, rounded(d, dlogits.dtype.element_ty), mask=inside)
        if EDGE:
            d = gradient(z_cut, m, r, q_cut, dloss, ignored, inverse, CAPPED, DTYPE)
            d = rounded(d, dlogits.dtype.element_ty)
            tl.store(dlogits + c, d, mask=cut)
    if PARTS > 1:
        left()


@triton.jit(do_not_specialize=["head", "tiles", "chunks", "left_by", "batch", *OPTIONS])
def cross_entropy_chunks(
    logits,
    target,
    weight,
    scale,
    loss,
    lse,
    dlogits,
    scratch,  # (planes, tiles or programs, ROWS, left_by); None where chunks need nothing
    keep: tl.float64,
    share: tl.float64,
    z_loss: tl.float64,
    cap: tl.float64,
    inverse: tl.float64,
    outer,
    n: tl.int64,
    inner,
    z_outer,
    z_n,
    z_inner,
    d_outer,
    d_n,
    d_inner,
    head,
    t_outer,
    t_n,
    t_inner,
    s_outer,
    s_inner,
    ignore_index: tl.int64,
    tiles,
    chunks,
    left_by,
    batch,
    PHASE: tl.constexpr,
    PROBABILITIES: tl.constexpr,
    SMOOTHING: tl.constexpr,
    Z_LOSS: tl.constexpr,
    CAPPED: tl.constexpr,
    T_PACK: tl.constexpr,
    T_BESIDE: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    MERGE: tl.constexpr,
    PACK: tl.constexpr,
    BESIDE: tl.constexpr,
    EDGE: tl.constexpr,  # elements of a sector, where a row begins within one; else 0
    LANES: tl.constexpr,
):
    """As `softmax_chunks`; the logits are read a second time for a gradient only."""
    SUMS: tl.constexpr = PROBABILITIES or SMOOTHING
    ADDED: tl.constexpr = PROBABILITIES or (SMOOTHING and weight is not None)
    inf = float("inf")
    plane = tl.num_programs(0).to(tl.int64) * ROWS * left_by
    kept = (first() * ROWS + tl.arange(0, ROWS)[:, None]) * left_by
    # What chunks leave: maximum and sum, then Σ q and Σ q·(maximum - z), or z of class y or 0;
    # for the gradient alone, only Σ q.
    MASS: tl.constexpr = 0 if loss is None else 2
    low, high = 0, chunks
    if PHASE != "both":
        low = second().to(tl.int32) * batch
        high = tl.minimum(low + batch, chunks)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        o, i, exists = place_of(tl.full((), tile, tl.int64), outer, inner, ROWS, BESIDE)
        z_row = logits + o * z_outer + i * z_inner
        t_row = target + o * t_outer + i * t_inner
        y, ignored, valid = label(t_row, exists, n, ignore_index, PROBABILITIES)
        valid = valid & exists
        own = tl.full((), 1.0, DTYPE) if SUMS else class_weight(weight, y, valid, DTYPE)
        start, length = span(head + o * z_outer + i * z_inner, n, PACK, EDGE)
        if PHASE != "last":
            for k in range(low, high):
                base = tl.full((), k, tl.int64) * BLOCK
                j, inside = columns(base, length, 0, exists, BLOCK, 1, PACK)
                base += start
                top = tl.zeros([ROWS, 1], DTYPE)
                z = top
                if loss is not None:
                    p = at(z_row, base, j, z_n, PACK, BESIDE)
                    v = tl.load(p, mask=inside, other=-inf).to(DTYPE)
                    z = capped(v, inside, cap, inverse, CAPPED, DTYPE)
                    top = maximum(z)
                    tl.store(scratch + kept + k, top)
                    tl.store(scratch + plane + kept + k, total(exp(z - finite(top))))
                if SUMS:
                    q = weighted_target(
                        at(t_row, base, j, t_n, T_PACK, T_BESIDE), hit(y, base, BLOCK),
                        weight, base, j, inside, keep, share, PROBABILITIES, SMOOTHING, DTYPE,
                    )  # fmt: skip
                    if loss is None:
                        tl.store(scratch + kept + k, total(q))
                    else:
                        mass, far = mass_and_distance(q, finite(top), z)
                        tl.store(scratch + 2 * plane + kept + k, mass)
                        tl.store(scratch + 3 * plane + kept + k, far)
                else:
                    mine = valid & (y >= base) & (y < base + BLOCK) & (y < start + length)
                    z_y = of_class(z_row, z_n, y, mine, cap, inverse, CAPPED, LANES, DTYPE)
                    tl.store(scratch + 2 * plane + kept + k, z_y)
            if EDGE and low == 0:
                c, cut = ends(start, length, n, 0, exists, LANES, EDGE)
                top = tl.zeros([ROWS, 1], DTYPE)
                z = top
                if loss is not None:
                    w = tl.load(z_row + c, mask=cut, other=-inf).to(DTYPE)
                    z = capped(w, cut, cap, inverse, CAPPED, DTYPE)
                    top = maximum(z)
                    tl.store(scratch + kept + chunks, top)
                    tl.store(scratch + plane + kept + chunks, total(exp(z - finite(top))))
                if SUMS:
                    q = weighted_target(
                        t_row + c.to(tl.int64) * t_n, y,
                        weight, 0, c, cut, keep, share, PROBABILITIES, SMOOTHING, DTYPE,
                    )  # fmt: skip
                    if loss is None:
                        tl.store(scratch + kept + chunks, total(q))
                    else:
                        mass, far = mass_and_distance(q, finite(top), z)
                        tl.store(scratch + 2 * plane + kept + chunks, mass)
                        tl.store(scratch + 3 * plane + kept + chunks, far)
                else:
                    mine = valid & ((y < start) | (y >= start + length))
                    z_y = of_class(z_row, z_n, y, mine, cap, inverse, CAPPED, LANES, DTYPE)
                    tl.store(scratch + 2 * plane + kept + chunks, z_y)
        if PHASE == "both":
            tl.debug_barrier()
        if PHASE != "first":
            if ADDED if loss is None else SUMS:
                mass = added_chunks(scratch + MASS * plane + kept, left_by, ROWS, MERGE)
            else:
                mass = whole_mass(own, n, keep, share, SMOOTHING, DTYPE)
            if loss is None:
                m = tl.load(lse + o * inner + i, mask=exists, other=0.0).to(DTYPE)
                log_sum = m
                r = tl.full((), 1.0, DTYPE)
            else:
                m, s = merged_chunks(scratch + kept, scratch + plane + kept, left_by, ROWS, MERGE)
                r = 1.0 / s
                log_s, log_sum = logarithm(m, s)
                if low == 0:
                    row = o * inner + i
                    if SUMS:
                        far = moved_chunks(
                            scratch + kept, scratch + 2 * plane + kept, scratch + 3 * plane + kept,
                            m, left_by, ROWS, MERGE,
                        )  # fmt: skip
                        z_y = far
                    else:
                        z_y = added_chunks(scratch + 2 * plane + kept, left_by, ROWS, MERGE)
                        far = z_y
                    if lse is not None:
                        tl.store(lse + row, log_sum.to(lse.dtype.element_ty), mask=exists)
                    value = surprise(
                        mass, far, m, z_y, log_s, log_sum, z_loss, ignored, valid,
                        SUMS, Z_LOSS, DTYPE,
                    )  # fmt: skip
                    tl.store(loss + row, value.to(loss.dtype.element_ty), mask=exists)
            if dlogits is not None:
                d_row = dlogits + o * d_outer + i * d_inner
                dloss = tl.load(scale + o * s_outer + i * s_inner, mask=exists, other=0.0)
                dloss = dloss.to(DTYPE)
                r = r * pull(mass, log_sum, z_loss, valid, Z_LOSS, DTYPE)
                for k in range(low, high):
                    base = tl.full((), k, tl.int64) * BLOCK
                    j, inside = columns(base, length, 0, exists, BLOCK, 1, PACK)
                    base += start
                    p = at(z_row, base, j, z_n, PACK, BESIDE)
                    v = tl.load(p, mask=inside, other=-inf, eviction_policy="evict_first")
                    z = capped(v.to(DTYPE), inside, cap, inverse, CAPPED, DTYPE)
                    here = hit(y, base, BLOCK)
                    if SUMS:
                        q = weighted_target(
                            at(t_row, base, j, t_n, T_PACK, T_BESIDE), here,
                            weight, base, j, inside, keep, share, PROBABILITIES, SMOOTHING, DTYPE,
                        )  # fmt: skip
                    else:
                        q = one_class(here, own, j)
                    d = gradient(z, m, r, q, dloss, ignored, inverse, CAPPED, DTYPE)
                    p = at(d_row, base, j, d_n, PACK, BESIDE)
                    d = rounded(d, dlogits.dtype.element_ty)
                    tl.store(p, d, mask=inside, cache_modifier=".cs")
                if EDGE and low == 0:
                    c, cut = ends(start, length, n, 0, exists, LANES, EDGE)
                    w = tl.load(z_row + c, mask=cut, other=-inf).to(DTYPE)
                    z = capped(w, cut, cap, inverse, CAPPED, DTYPE)
                    if SUMS:
                        q = weighted_target(
                            t_row + c.to(tl.int64) * t_n, y,
                            weight, 0, c, cut, keep, share, PROBABILITIES, SMOOTHING, DTYPE,
                        )  # fmt: skip
                    else:
                        q = one_class(y, own, c)
                    d = gradient(z, m, r, q, dloss, ignored, inverse, CAPPED, DTYPE)
                    d = rounded(d, dlogits.dtype.element_ty)
                    tl.store(d_row + c, d, mask=cut)
        if PHASE == "both":
            tl.debug_barrier()


@triton.jit(do_not_specialize=["ignore_index"])
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
    exists = row < tl.full((), outer, tl.int64) * inner
    y = tl.load(target + (row // inner) * t_outer + (row % inner) * t_inner, mask=exists, other=0)
    y = y.to(tl.int64)
    valid = exists & (y >= 0) & (y < classes) & (y != ignore_index)
    w = tl.where(valid, class_weight(weight, y * w_n, valid, DTYPE), 0.0)
    tl.store(out + row, w.to(out.dtype.element_ty), mask=exists)
