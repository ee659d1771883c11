"""softmax and log_softmax: forward and backward, over rows as rows.py describes them."""

import triton
import triton.language as tl

from .formulas import exp, log, rounded
from .rows import (
    added_chunks,
    added_parts,
    among_parts,
    at,
    columns,
    ends,
    finite,
    first,
    leave,
    left,
    maximum,
    merged_chunks,
    moved,
    place,
    place_of,
    product,
    second,
    span,
    total,
)


@triton.jit
def mask_offset(row, k2, k3, k4, m_1, m_2, m_3, m_4):
    """Where a row of scores finds its row of a mask with axes (k1, k2, k3, k4, n)."""
    at_3 = row // k4
    at_2 = at_3 // k3
    at_1 = at_2 // k2
    offset = at_1 * m_1 + (at_2 - at_1 * k2) * m_2
    return offset + (at_3 - at_2 * k3) * m_3 + (row - at_3 * k4) * m_4


@triton.jit
def own(row, n, CAUSAL: tl.constexpr, causal):
    """How many columns a row may see."""
    if CAUSAL:
        return tl.minimum(row % causal + 1, n)
    else:
        return n


@triton.jit
def scored(
    v, base, j, exists, mask, offset, m_n, scale, limit,
    SCALED: tl.constexpr, CAUSAL: tl.constexpr, PACK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """What the exponential sees of the values v at the columns base + j."""
    if SCALED:
        v = v * tl.full((), scale, DTYPE)
    if mask is not None:
        there = tl.load(at(mask + offset, base, j, m_n, PACK, 1), mask=exists, other=0)
        if mask.dtype.element_ty == tl.uint8:
            v = tl.where(there != 0, v, -float("inf"))
        else:
            v = v + there.to(DTYPE)
    if CAUSAL:
        exists = exists & (j < tl.minimum(limit - base, 1 << 30).to(tl.int32))
    if SCALED or CAUSAL or mask is not None:
        v = tl.where(exists, v, -float("inf"))
    return v


@triton.jit
def normalised(x, m, top, r, log_s, empty, LOG: tl.constexpr, ZERO: tl.constexpr):
    """From e^(x - m), as it was summed: r is e^(m - top) / s. Behind a sum it is never computed
    again."""
    if LOG:
        y = (x - top) - log_s
    else:
        y = exp(x - m) * r
    if ZERO:
        y = tl.where(empty, 0.0, y)
    return y


@triton.jit(do_not_specialize=["head", "causal"])
def softmax(
    x,
    y,
    mask,  # None, or bytes, or of x's dtype
    scale: tl.float64,
    outer,
    n: tl.int64,
    inner,
    x_outer,
    x_n,
    x_inner,
    y_outer,
    y_n,
    y_inner,
    head,
    causal,
    k2,
    k3,
    k4,
    m_1,
    m_2,
    m_3,
    m_4,
    m_n,
    LOG: tl.constexpr,
    SCALED: tl.constexpr,
    CAUSAL: tl.constexpr,
    ZERO: tl.constexpr,
    M_PACK: tl.constexpr,
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
    inf = float("inf")
    o, i, exists, part = place(outer, inner, ROWS, ACROSS, PARTS, BESIDE)
    row = o * inner + i
    offset = mask_offset(row, k2, k3, k4, m_1, m_2, m_3, m_4) if mask is not None else row
    limit = own(row, n, CAUSAL, causal)
    x += o * x_outer + i * x_inner
    start, length = span(head + o * x_outer + i * x_inner, tl.full((), n, tl.int32), PACK, EDGE)
    if EDGE:
        c, cut = ends(start, length, n, part, exists, LANES, EDGE)
        w = tl.load(x + c, mask=cut, other=-inf).to(DTYPE)
        w = scored(w, 0, c, cut, mask, offset, m_n, scale, limit, SCALED, CAUSAL, 1, DTYPE)
    j, inside = columns(0, length, part, exists, BLOCK, PARTS, PACK)
    seen = inside
    if CAUSAL:
        _, seen = columns(
            0, packs_before(limit - start, length, PACK), part, exists, BLOCK, PARTS, PACK
        )
    v = tl.load(at(x, start, j, x_n, PACK, BESIDE), mask=seen, other=-inf).to(DTYPE)
    v = scored(v, start, j, seen, mask, offset, m_n, scale, limit, SCALED, CAUSAL, M_PACK, DTYPE)
    m = maximum(v)
    if EDGE:
        m = tl.maximum(m, maximum(w))
    f = finite(m)
    s = total(exp(v - f))
    if EDGE:
        s += total(exp(w - f))
    if PARTS > 1:
        top, s = among_parts(m, s, ROWS, PARTS)
        leave()
        top = finite(top)
        r = moved(f, top) * (1.0 / s)
    else:
        top = f
        r = 1.0 / s
    log_s = log(s) if LOG else s
    out = normalised(v, f, top, r, log_s, s == 0, LOG, ZERO)
    y += o * y_outer + i * y_inner
    store_to = at(y, start, j, y_n, PACK, BESIDE)
    tl.store(store_to, rounded(out, y.dtype.element_ty), mask=inside)
    if EDGE:
        out = normalised(w, f, top, r, log_s, s == 0, LOG, ZERO)
        tl.store(y + c, rounded(out, y.dtype.element_ty), mask=cut)
    if PARTS > 1:
        left()


@triton.jit
def packs_before(limit, length, PACK: tl.constexpr):
    """As much of the body as holds what lies before limit."""
    return tl.minimum((tl.maximum(limit, 0) + PACK - 1) // PACK * PACK, length)


@triton.jit(do_not_specialize=["head", "causal", "tiles", "chunks", "left_by", "batch"])
def softmax_chunks(
    x,
    y,
    mask,
    scratch,  # (2, tiles or programs, ROWS, left_by)
    scale: tl.float64,
    outer,
    n: tl.int64,
    inner,
    x_outer,
    x_n,
    x_inner,
    y_outer,
    y_n,
    y_inner,
    head,
    causal,
    k2,
    k3,
    k4,
    m_1,
    m_2,
    m_3,
    m_4,
    m_n,
    tiles,  # of rows
    chunks,  # of a row
    left_by,  # how many of them leave something, the ends too
    batch,  # of them a program takes that does not take whole rows
    PHASE: tl.constexpr,
    LOG: tl.constexpr,
    SCALED: tl.constexpr,
    CAUSAL: tl.constexpr,
    ZERO: tl.constexpr,
    M_PACK: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    MERGE: tl.constexpr,
    PACK: tl.constexpr,
    BESIDE: tl.constexpr,
    EDGE: tl.constexpr,  # elements of a sector, where a row begins within one; else 0
    LANES: tl.constexpr,
):
    """Chunks of rows, in two passes: "both", or "first" and "last", a program for each chunk."""
    inf = float("inf")
    r = tl.arange(0, ROWS)[:, None]
    plane = tl.num_programs(0).to(tl.int64) * ROWS * left_by
    maxima = scratch + (first() * ROWS + r) * left_by
    sums = maxima + plane
    low, high = 0, chunks
    if PHASE != "both":
        low = second().to(tl.int32) * batch
        high = tl.minimum(low + batch, chunks)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        o, i, exists = place_of(tl.full((), tile, tl.int64), outer, inner, ROWS, BESIDE)
        row = o * inner + i
        offset = mask_offset(row, k2, k3, k4, m_1, m_2, m_3, m_4) if mask is not None else row
        limit = own(row, n, CAUSAL, causal)
        x_row = x + o * x_outer + i * x_inner
        y_row = y + o * y_outer + i * y_inner
        start, length = span(head + o * x_outer + i * x_inner, n, PACK, EDGE)
        reach = length
        if CAUSAL:
            reach = packs_before(limit - start, length, PACK)
        if PHASE != "last":
            for k in range(low, high):
                base = tl.full((), k, tl.int64) * BLOCK
                j, seen = columns(base, reach, 0, exists, BLOCK, 1, PACK)
                base += start
                p = at(x_row, base, j, x_n, PACK, BESIDE)
                v = tl.load(p, mask=seen, other=-inf).to(DTYPE)
                v = scored(
                    v, base, j, seen, mask, offset, m_n, scale, limit,
                    SCALED, CAUSAL, M_PACK, DTYPE,
                )  # fmt: skip
                m = maximum(v)
                tl.store(maxima + k, m)
                tl.store(sums + k, total(exp(v - finite(m))))
            if EDGE and low == 0:
                c, cut = ends(start, length, n, 0, exists, LANES, EDGE)
                w = tl.load(x_row + c, mask=cut, other=-inf).to(DTYPE)
                w = scored(
                    w, 0, c, cut, mask, offset, m_n, scale, limit, SCALED, CAUSAL, 1, DTYPE
                )  # fmt: skip
                m = maximum(w)
                tl.store(maxima + chunks, m)
                tl.store(sums + chunks, total(exp(w - finite(m))))
        if PHASE == "both":
            tl.debug_barrier()
        if PHASE != "first":
            m, s = merged_chunks(maxima, sums, left_by, ROWS, MERGE)
            log_s = log(s) if LOG else s
            for k in range(low, high):
                base = tl.full((), k, tl.int64) * BLOCK
                j, inside = columns(base, length, 0, exists, BLOCK, 1, PACK)
                seen = inside
                if CAUSAL:
                    _, seen = columns(base, reach, 0, exists, BLOCK, 1, PACK)
                base += start
                p = at(x_row, base, j, x_n, PACK, BESIDE)
                v = tl.load(p, mask=seen, other=-inf, eviction_policy="evict_first").to(DTYPE)
                v = scored(
                    v, base, j, seen, mask, offset, m_n, scale, limit,
                    SCALED, CAUSAL, M_PACK, DTYPE,
                )  # fmt: skip
                out = normalised(v, m, m, 1.0 / s, log_s, s == 0, LOG, ZERO)
                p = at(y_row, base, j, y_n, PACK, BESIDE)
                out = rounded(out, y.dtype.element_ty)
                tl.store(p, out, mask=inside, cache_modifier=".cs")
            if EDGE and low == 0:
                c, cut = ends(start, length, n, 0, exists, LANES, EDGE)
                w = tl.load(x_row + c, mask=cut, other=-inf).to(DTYPE)
                w = scored(
                    w, 0, c, cut, mask, offset, m_n, scale, limit, SCALED, CAUSAL, 1, DTYPE
                )  # fmt: skip
                out = normalised(w, m, m, 1.0 / s, log_s, s == 0, LOG, ZERO)
                tl.store(y_row + c, rounded(out, y.dtype.element_ty), mask=cut)
        if PHASE == "both":
            tl.debug_barrier()


@triton.jit
def gradient(dy, y, s, scale, LOG: tl.constexpr, SCALED: tl.constexpr, DTYPE: tl.constexpr):
    if LOG:
        d = dy - exp(y) * s
    else:
        d = y * (dy - s)
    if SCALED:
        d = d * tl.full((), scale, DTYPE)
    return d


@triton.jit
def summed(dy, y, LOG: tl.constexpr):
    return total(dy if LOG else product(dy, y))


@triton.jit(do_not_specialize=["head"])
def softmax_backward(
    dy,
    y,
    dx,
    scale: tl.float64,
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
    head,
    LOG: tl.constexpr,
    SCALED: tl.constexpr,
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
    o, i, exists, part = place(outer, inner, ROWS, ACROSS, PARTS, BESIDE)
    dy += o * dy_outer + i * dy_inner
    y += o * y_outer + i * y_inner
    start, length = span(head + o * dy_outer + i * dy_inner, tl.full((), n, tl.int32), PACK, EDGE)
    if EDGE:
        c, cut = ends(start, length, n, part, exists, LANES, EDGE)
        h = tl.load(dy + c, mask=cut, other=0.0).to(DTYPE)
        w = tl.load(y + c, mask=cut, other=0.0).to(DTYPE)
    j, inside = columns(0, length, part, exists, BLOCK, PARTS, PACK)
    g = tl.load(at(dy, start, j, dy_n, PACK, BESIDE), mask=inside, other=0.0).to(DTYPE)
    v = tl.load(at(y, start, j, y_n, PACK, BESIDE), mask=inside, other=0.0).to(DTYPE)
    s = summed(g, v, LOG)
    if EDGE:
        s += summed(h, w, LOG)
    if PARTS > 1:
        s, _ = added_parts(s, s, ROWS, PARTS)
        leave()
    out = rounded(gradient(g, v, s, scale, LOG, SCALED, DTYPE), dx.dtype.element_ty)
    dx += o * dx_outer + i * dx_inner
    tl.store(at(dx, start, j, dx_n, PACK, BESIDE), out, mask=inside)
    if EDGE:
        out = rounded(gradient(h, w, s, scale, LOG, SCALED, DTYPE), dx.dtype.element_ty)
        tl.store(dx + c, out, mask=cut)
    if PARTS > 1:
        left()


@triton.jit(do_not_specialize=["head", "tiles", "chunks", "left_by", "batch"])
def softmax_backward_chunks(
    dy,
    y,
    dx,
    scratch,  # (tiles or programs, ROWS, left_by)
    scale: tl.float64,
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
    head,
    tiles,
    chunks,
    left_by,
    batch,
    PHASE: tl.constexpr,
    LOG: tl.constexpr,
    SCALED: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    MERGE: tl.constexpr,
    PACK: tl.constexpr,
    BESIDE: tl.constexpr,
    EDGE: tl.constexpr,  # elements of a sector, where a row begins within one; else 0
    LANES: tl.constexpr,
):
    """As `softmax_chunks`."""
    sums = scratch + (first() * ROWS + tl.arange(0, ROWS)[:, None]) * left_by
    low, high = 0, chunks
    if PHASE != "both":
        low = second().to(tl.int32) * batch
        high = tl.minimum(low + batch, chunks)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        o, i, exists = place_of(tl.full((), tile, tl.int64), outer, inner, ROWS, BESIDE)
        dy_row = dy + o * dy_outer + i * dy_inner
        y_row = y + o * y_outer + i * y_inner
        dx_row = dx + o * dx_outer + i * dx_inner
        start, length = span(head + o * dy_outer + i * dy_inner, n, PACK, EDGE)
        if PHASE != "last":
            for k in range(low, high):
                base = tl.full((), k, tl.int64) * BLOCK
                j, inside = columns(base, length, 0, exists, BLOCK, 1, PACK)
                base += start
                p = at(dy_row, base, j, dy_n, PACK, BESIDE)
                g = tl.load(p, mask=inside, other=0.0).to(DTYPE)
                v = g
                if not LOG:
                    p = at(y_row, base, j, y_n, PACK, BESIDE)
                    v = tl.load(p, mask=inside, other=0.0).to(DTYPE)
                tl.store(sums + k, summed(g, v, LOG))
            if EDGE and low == 0:
                c, cut = ends(start, length, n, 0, exists, LANES, EDGE)
                h = tl.load(dy_row + c, mask=cut, other=0.0).to(DTYPE)
                w = tl.load(y_row + c, mask=cut, other=0.0).to(DTYPE)
                tl.store(sums + chunks, summed(h, w, LOG))
        if PHASE == "both":
            tl.debug_barrier()
        if PHASE != "first":
            s = added_chunks(sums, left_by, ROWS, MERGE)
            for k in range(low, high):
                base = tl.full((), k, tl.int64) * BLOCK
                j, inside = columns(base, length, 0, exists, BLOCK, 1, PACK)
                base += start
                p = at(dy_row, base, j, dy_n, PACK, BESIDE)
                g = tl.load(p, mask=inside, other=0.0, eviction_policy="evict_first").to(DTYPE)
                p = at(y_row, base, j, y_n, PACK, BESIDE)
                v = tl.load(p, mask=inside, other=0.0, eviction_policy="evict_first").to(DTYPE)
                out = rounded(gradient(g, v, s, scale, LOG, SCALED, DTYPE), dx.dtype.element_ty)
                p = at(dx_row, base, j, dx_n, PACK, BESIDE)
                tl.store(p, out, mask=inside, cache_modifier=".cs")
            if EDGE and low == 0:
                c, cut = ends(start, length, n, 0, exists, LANES, EDGE)
                h = tl.load(dy_row + c, mask=cut, other=0.0).to(DTYPE)
                w = tl.load(y_row + c, mask=cut, other=0.0).to(DTYPE)
                out = rounded(gradient(h, w, s, scale, LOG, SCALED, DTYPE), dx.dtype.element_ty)
                tl.store(dx_row + c, out, mask=cut)
        if PHASE == "both":
            tl.debug_barrier()
