"""An activation with what stands before and behind it, and the way back, sums included.

    u = scale·x + bias    a = act(u)    d = dropout(a)    y = d·gate + residual

Steps that are None do not exist. Forward runs flat, as elementwise.py describes. So does backward
where no sum is wanted or a tile meets two of them at most; sums of shorter runs take columns.

No sum uses atomics, and what is added to what follows from the shape: same bits every time. A sum's
longest path of roundings is stated at each kernel; a chain of n adds counts n, a tree its depth.
"""

from dataclasses import dataclass
from math import gcd, lcm

import triton
import triton.language as tl

from .elementwise import at, block, boundary, cut, packs, parameter, whole
from .formulas import linear_backward, linear_dbias, linear_dscale, prelu_dweight, rounded

WARPS = 4
LANES = 1024  # of `collect`
WIDEST = 4096  # columns of a tile; 32 elements a thread, for each array and each sum
NARROWEST = 128  # columns where there are more: 256 contiguous bytes of a half type
PROGRAMS = 1024  # wanted: some for each of a GPU's SMs
FEWEST = 128  # elements in a sum: written and read, it moves 8 bytes, each of those 6 and more
GRID_Y = 65535  # what CUDA allows
PACK = 8  # elements that 16 bytes hold of a half type, and whole quadruples of random words


@dataclass(frozen=True)
class Columns:
    """Arrays cut into rows of whole periods and whole packs, and into tiles; by shape alone."""

    width: int  # of a row
    rows: int
    used: int  # columns of a tile: whole runs and packs
    columns: int  # what it has room for
    together: int  # rows of a tile
    chunk: int  # rows that one program adds up

    @property
    def grid(self) -> tuple[int, int, int]:
        return -(-self.width // self.used), -(-self.rows // self.chunk), 1


def flat(inner: int, itemsize: int) -> int:
    """Elements of a tile for runs so long, of which it may meet two; 0 for runs too short."""
    if inner >= block(itemsize):
        return block(itemsize)
    return 0 if lcm(inner, PACK) <= WIDEST else 1 << (inner.bit_length() - 1)


def columns(inner: int, kept: int, size: int, itemsize: int) -> Columns:
    """Tiles for shorter runs."""
    period = inner * kept
    width = period * (PACK // gcd(period, PACK))
    step = lcm(inner, PACK)
    found = []
    room = min(NARROWEST, triton.next_power_of_2(width))
    while room <= WIDEST:
        used = width if width <= room else room // step * step
        found.append((used >= 0.75 * room, used / room, -room, used))
        room *= 2
    if itemsize == 8:  # 16 elements a thread, and sums of them, do not fit its registers
        found = [tile for tile in found if tile[-1] and -tile[2] <= WIDEST // 4] or found
    *_, room, used = max(found)
    rows = -(-size // width)
    together = max(1, block(itemsize) // -room)
    tiles = -(-width // used)
    chunk = max(-(-rows * tiles // PROGRAMS), -(-FEWEST // inner), -(-rows // GRID_Y))
    chunk = -(-min(chunk, rows) // together) * together
    return Columns(width, rows, used, -room, together, chunk)


@triton.jit
def words(quadruple, seed, offset):
    """The random words of four logical neighbours."""
    if quadruple.dtype == tl.int64:
        high = (quadruple >> 32).to(tl.uint32)
    else:
        high = tl.zeros_like(quadruple).to(tl.uint32)
    low, above = offset.to(tl.uint32), (offset >> 32).to(tl.uint32)
    return tl.philox(seed, quadruple.to(tl.uint32), high, low, above)


@triton.jit
def drops(first, seed, offset, last, SHIFT: tl.constexpr, BLOCK: tl.constexpr, PACK: tl.constexpr):
    """Which elements of a tile of packs are dropped; first + SHIFT is a multiple of 4.

    Where packs begin between quadruples, each four of their elements have words of two.
    """
    k = (packs(first + SHIFT, BLOCK, PACK) >> 2) + tl.arange(0, PACK // 4)[None, :]
    w = words(k, seed, offset)
    if SHIFT:
        w = words(k - 1, seed, offset) + w
    # word j of `w` is that of lane j - 4 + SHIFT, or of lane j without the quadruple before
    BEGIN: tl.constexpr = 4 - SHIFT if SHIFT else 0
    even = tl.interleave(w[BEGIN], w[BEGIN + 2])
    return tl.interleave(even, tl.interleave(w[BEGIN + 1], w[BEGIN + 3])) <= last


@triton.jit
def activated(x, scale, bias, slope, FORMULA: tl.constexpr, STORED: tl.constexpr):
    """(u, a)"""
    u = x
    if scale is not None:
        u = scale * u
    if bias is not None:
        u = u + bias
    if FORMULA is None:
        return u, u
    elif slope is None:
        return u, FORMULA(u, STORED)
    else:
        return u, FORMULA(u, slope, STORED)


@triton.jit
def masked(a, drop, kept):
    if drop is None:
        return a
    else:
        return tl.where(drop, 0.0, a * kept)


@triton.jit(
    do_not_specialize=[
        "seed", "offset", "last", "head", "size",
        "s_inner", "s_count", "b_inner", "b_count", "l_inner", "l_count",
    ]
)  # fmt: skip
def fused(
    x,
    gate,
    residual,
    out,
    scale: tl.float64,
    s_array,
    bias: tl.float64,
    b_array,
    slope: tl.float64,
    l_array,
    seed: tl.uint64,
    offset: tl.uint64,
    last: tl.uint32,
    kept: tl.float64,
    head,
    size,
    s_inner,
    s_count,
    b_inner,
    b_count,
    l_inner,
    l_count,
    FORMULA: tl.constexpr,
    SCALE: tl.constexpr,  # the kind of parameter, or None
    BIAS: tl.constexpr,
    SLOPE: tl.constexpr,
    DROPOUT: tl.constexpr,  # None, or SHIFT of `drops`
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    PACK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    first = tl.program_id(0).to(INDEX) * BLOCK - head
    forward_tile(
        x, gate, residual, out, first, whole(first, size, BLOCK, PACK),
        scale, s_array, s_inner, s_count, bias, b_array, b_inner, b_count,
        slope, l_array, l_inner, l_count, seed, offset, last, kept,
        FORMULA, SCALE, BIAS, SLOPE, DROPOUT, DTYPE, BLOCK, PACK, ALIGNED,
    )  # fmt: skip
    if PACK > 1 and (first < 0) | (first + BLOCK > size):
        for edge in range(2):
            start, mask = cut(edge, first, head, size, BLOCK, PACK)
            forward_tile(
                x, gate, residual, out, start, mask,
                scale, s_array, s_inner, s_count, bias, b_array, b_inner, b_count,
                slope, l_array, l_inner, l_count, seed, offset, last, kept,
                FORMULA, SCALE, BIAS, SLOPE, DROPOUT, DTYPE, PACK, PACK, ALIGNED,
            )  # fmt: skip


@triton.jit
def forward_tile(
    x, gate, residual, out, first, mask,
    scale, s_array, s_inner, s_count, bias, b_array, b_inner, b_count,
    slope, l_array, l_inner, l_count, seed, offset, last, kept,
    FORMULA: tl.constexpr, SCALE: tl.constexpr, BIAS: tl.constexpr, SLOPE: tl.constexpr,
    DROPOUT: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK: tl.constexpr, PACK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    i = packs(first, BLOCK, PACK) + tl.arange(0, PACK)[None, :]
    STORED: tl.constexpr = out.dtype.element_ty
    v = tl.load(at(x, i, ALIGNED), mask=mask).to(DTYPE)
    s, b, w = None, None, None
    if SCALE is not None:
        s = parameter(
            scale, s_array, s_inner, s_count, SCALE, first, mask, BLOCK, PACK, ALIGNED, DTYPE
        )
    if BIAS is not None:
        b = parameter(
            bias, b_array, b_inner, b_count, BIAS, first, mask, BLOCK, PACK, ALIGNED, DTYPE
        )
    if SLOPE is not None:
        w = parameter(
            slope, l_array, l_inner, l_count, SLOPE, first, mask, BLOCK, PACK, ALIGNED, DTYPE
        )
    _, y = activated(v, s, b, w, FORMULA, STORED)
    if DROPOUT is not None:
        drop = drops(first, seed, offset, last, DROPOUT, BLOCK, PACK)
        y = masked(y, drop, tl.full((), kept, DTYPE))
    if gate is not None:
        y = y * tl.load(at(gate, i, ALIGNED), mask=mask).to(DTYPE)
    if residual is not None:
        y = y + tl.load(at(residual, i, ALIGNED), mask=mask).to(DTYPE)
    tl.store(at(out, i, ALIGNED), rounded(y, STORED), mask=mask)


@triton.jit
def led_back(
    dy, x, gate, scale, bias, slope, drop, kept,
    FORWARD: tl.constexpr, BACKWARD: tl.constexpr, READS: tl.constexpr, STORED: tl.constexpr,
):  # fmt: skip
    """(dx, dgate, and the terms of dscale, dbias and dslope); what is not used costs nothing."""
    u, a = activated(x, scale, bias, slope, FORWARD, STORED)
    dgate = dy * masked(a, drop, kept)
    if gate is not None:
        dy = dy * gate
    da = masked(dy, drop, kept)
    if BACKWARD is None:
        du = da
    elif READS == "derivative":
        du = da * BACKWARD(u, STORED)
    else:
        v = u
        if READS == "y":
            v = a
        if slope is None:
            du = BACKWARD(da, v, STORED)
        else:
            du = BACKWARD(da, v, slope, STORED)
    dx = du
    if scale is not None:
        dx = linear_backward(du, scale, STORED)
    terms = linear_dscale(du, x, STORED), linear_dbias(du, STORED), prelu_dweight(da, u, STORED)
    return dx, dgate, terms


@triton.jit(
    do_not_specialize=[
        "seed", "offset", "last", "head", "size", "inner",
        "s_inner", "s_count", "b_inner", "b_count", "l_inner", "l_count",
    ]
)  # fmt: skip
def flat_backward(
    dy,
    x,
    gate,
    dx,  # None where not wanted, as all gradients
    dgate,
    dscale,  # like x, or where a tile's two sums go
    dbias,
    dslope,
    scale: tl.float64,
    s_array,
    bias: tl.float64,
    b_array,
    slope: tl.float64,
    l_array,
    seed: tl.uint64,
    offset: tl.uint64,
    last: tl.uint32,
    kept: tl.float64,
    head,
    size,
    inner,  # elements in a run, which is added up; a tile meets two at most
    s_inner,
    s_count,
    b_inner,
    b_count,
    l_inner,
    l_count,
    FORWARD: tl.constexpr,
    BACKWARD: tl.constexpr,
    READS: tl.constexpr,
    SCALE: tl.constexpr,
    BIAS: tl.constexpr,
    SLOPE: tl.constexpr,
    DROPOUT: tl.constexpr,
    SUMS: tl.constexpr,  # for each of scale, bias and slope: is its gradient a sum
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    STORED: tl.constexpr,
    BLOCK: tl.constexpr,
    PACK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Sums: a thread's elements and its warps' as a tree, then those of tiles (see the host)."""
    first = tl.program_id(0).to(INDEX) * BLOCK - head
    end = size
    if inner is not None:
        _, end = boundary(first, inner)
    sums = backward_tile(
        dy, x, gate, dx, dgate, dscale, dbias, dslope,
        first, whole(first, size, BLOCK, PACK), end,
        scale, s_array, s_inner, s_count, bias, b_array, b_inner, b_count,
        slope, l_array, l_inner, l_count, seed, offset, last, kept,
        FORWARD, BACKWARD, READS, SCALE, BIAS, SLOPE, DROPOUT, SUMS, inner is not None,
        DTYPE, STORED, BLOCK, PACK, ALIGNED,
    )  # fmt: skip
    if PACK > 1 and (first < 0) | (first + BLOCK > size):
        for edge in range(2):
            start, mask = cut(edge, first, head, size, BLOCK, PACK)
            more = backward_tile(
                dy, x, gate, dx, dgate, dscale, dbias, dslope, start, mask, end,
                scale, s_array, s_inner, s_count, bias, b_array, b_inner, b_count,
                slope, l_array, l_inner, l_count, seed, offset, last, kept,
                FORWARD, BACKWARD, READS, SCALE, BIAS, SLOPE, DROPOUT, SUMS, inner is not None,
                DTYPE, STORED, PACK, PACK, ALIGNED,
            )  # fmt: skip
            sums = added(sums, more)
    gradients = dscale, dbias, dslope
    tile = tl.program_id(0).to(INDEX)
    for k in tl.static_range(3):
        if gradients[k] is not None and SUMS[k]:
            if inner is None:
                tl.store(gradients[k] + tile, sums[2 * k])
            else:
                tl.store(gradients[k] + 2 * tile, sums[2 * k])
                tl.store(gradients[k] + 2 * tile + 1, sums[2 * k + 1])


@triton.jit
def added(a, b):
    c = ()
    for k in tl.static_range(len(a)):
        c = c + (a[k] + b[k],)
    return c


@triton.jit
def stored(gradient, i, value, mask, ALIGNED: tl.constexpr):
    if gradient is not None:
        value = rounded(value, gradient.dtype.element_ty)
        tl.store(at(gradient, i, ALIGNED), value, mask=mask)


@triton.jit
def backward_tile(
    dy, x, gate, dx, dgate, dscale, dbias, dslope, first, mask, end,
    scale, s_array, s_inner, s_count, bias, b_array, b_inner, b_count,
    slope, l_array, l_inner, l_count, seed, offset, last, kept,
    FORWARD: tl.constexpr, BACKWARD: tl.constexpr, READS: tl.constexpr,
    SCALE: tl.constexpr, BIAS: tl.constexpr, SLOPE: tl.constexpr,
    DROPOUT: tl.constexpr, SUMS: tl.constexpr, TWO: tl.constexpr,
    DTYPE: tl.constexpr, STORED: tl.constexpr,
    BLOCK: tl.constexpr, PACK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Writes the gradients; (before `end`, from there on) of the sums of scale, bias and slope."""
    i = packs(first, BLOCK, PACK) + tl.arange(0, PACK)[None, :]
    v = tl.load(at(x, i, ALIGNED), mask=mask).to(DTYPE)
    e = tl.load(at(dy, i, ALIGNED), mask=mask).to(DTYPE)
    g = None if gate is None else tl.load(at(gate, i, ALIGNED), mask=mask).to(DTYPE)
    s, b, w = None, None, None
    if SCALE is not None:
        s = parameter(
            scale, s_array, s_inner, s_count, SCALE, first, mask, BLOCK, PACK, ALIGNED, DTYPE
        )
    if BIAS is not None:
        b = parameter(
            bias, b_array, b_inner, b_count, BIAS, first, mask, BLOCK, PACK, ALIGNED, DTYPE
        )
    if SLOPE is not None:
        w = parameter(
            slope, l_array, l_inner, l_count, SLOPE, first, mask, BLOCK, PACK, ALIGNED, DTYPE
        )
    drop = None
    if DROPOUT is not None:
        drop = drops(first, seed, offset, last, DROPOUT, BLOCK, PACK)
    kept = tl.full((), kept, DTYPE)
    v, h, terms = led_back(e, v, g, s, b, w, drop, kept, FORWARD, BACKWARD, READS, STORED)
    stored(dx, i, v, mask, ALIGNED)
    stored(dgate, i, h, mask, ALIGNED)
    gradients = dscale, dbias, dslope
    zero = tl.zeros((), DTYPE)
    sums = ()
    for k in tl.static_range(3):
        here, behind = zero, zero
        if gradients[k] is not None:
            if SUMS[k]:
                # Terms of what was not read may be anything.
                t = tl.where(mask, terms[k], 0.0)
                if TWO:
                    behind = tl.sum(tl.sum(tl.where(i < end, 0.0, t), 1), 0)
                    t = tl.where(i < end, t, 0.0)
                here = tl.sum(tl.sum(t, 1), 0)
            else:
                stored(gradients[k], i, terms[k], mask, ALIGNED)
        sums = sums + (here, behind)
    return sums


@triton.jit(do_not_specialize=["outer", "kept", "inner", "head", "longest"])
def collect(
    partial,  # (tiles, 2): a tile's sums of the run that it begins in, and of the next
    out,
    outer,
    kept,
    inner: tl.int64,
    head,
    longest,  # how many tiles one run meets at most
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    """The sum over all runs of an entry. Each lane adds up every LANES-th tile, then a tree."""
    entry = tl.program_id(0)
    lanes = tl.zeros([LANES], partial.dtype.element_ty)
    for start in range(0, outer * longest, LANES):
        t = start + tl.arange(0, LANES)
        begin = ((t // longest).to(tl.int64) * kept + entry) * inner
        tile = (begin + head) // BLOCK + t % longest
        first = tl.maximum(tile * BLOCK - head, 0)
        mask = (t < outer * longest) & (first < begin + inner)
        lanes += tl.load(partial + 2 * tile + (first < begin).to(tl.int64), mask=mask, other=0.0)
    tl.store(out + entry, rounded(tl.sum(lanes, 0), out.dtype.element_ty))


@triton.jit
def column_parameter(p, array, KIND: tl.constexpr, inner, count, column, DTYPE: tl.constexpr):
    """A parameter as far as the column decides on it: as `parameter`, or an entry for each."""
    if KIND == "element":
        return tl.load(array).to(DTYPE)
    elif KIND == "column":
        return tl.load(array + column // inner % count).to(DTYPE)
    else:
        return tl.full((1, 1), p, DTYPE)


@triton.jit
def entries(
    array, KIND: tl.constexpr, inner, count, i, mask, ALIGNED: tl.constexpr, DTYPE: tl.constexpr
):
    if KIND == "full":
        return tl.load(at(array, i, ALIGNED), mask=mask, other=0.0).to(DTYPE)
    else:
        return tl.load(array + i // inner % count, mask=mask, other=0.0).to(DTYPE)


@triton.jit
def segments(flag_a, a, flag_b, b):
    """Adds b to a, but where b begins anew."""
    return flag_a | flag_b, tl.where(flag_b != 0, b, a + b)


@triton.jit(
    do_not_specialize=[
        "seed", "offset", "last", "size", "rows", "width", "used", "chunk", "inner",
        "s_inner", "s_count", "b_inner", "b_count", "l_inner", "l_count",
    ]
)  # fmt: skip
def columns_backward(
    dy,
    x,
    gate,
    dx,
    dgate,
    dscale,  # like x, or (chunks, width // inner), as dbias and dslope
    dbias,
    dslope,
    scale: tl.float64,
    s_array,
    bias: tl.float64,
    b_array,
    slope: tl.float64,
    l_array,
    seed: tl.uint64,
    offset: tl.uint64,
    last: tl.uint32,
    kept: tl.float64,
    size,
    rows,  # the last may end early
    width,  # columns: whole periods of parameters, whole packs
    used,  # columns of a tile: whole runs, whole packs
    chunk,  # rows a program adds up
    inner,
    s_inner,
    s_count,
    b_inner,
    b_count,
    l_inner,
    l_count,
    FORWARD: tl.constexpr,
    BACKWARD: tl.constexpr,
    READS: tl.constexpr,
    SCALE: tl.constexpr,
    BIAS: tl.constexpr,
    SLOPE: tl.constexpr,
    DROPOUT: tl.constexpr,
    SUMS: tl.constexpr,
    RUNS: tl.constexpr,  # is a run longer than one column
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    STORED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PACK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Sums: chunk / ROWS rows one after another, a tree over ROWS, and one over a run's columns."""
    lane = tl.arange(0, COLUMNS)[None, :]
    column = tl.program_id(0) * used + lane
    # `used` and `width` are multiples of PACK, so that a pack is masked as a whole.
    limit = tl.multiple_of(tl.minimum(tl.program_id(0) * used + used, width), PACK)
    inside = tl.multiple_of(column, [1, PACK]) < limit
    # As large as a tile of rows: a row alone would lie in other threads than what it is used with.
    place = tl.where(inside, column, 0) + tl.zeros([ROWS, 1], tl.int32)
    s, b, w = None, None, None
    if SCALE is not None:
        s = column_parameter(scale, s_array, SCALE, s_inner, s_count, place, DTYPE)
    if BIAS is not None:
        b = column_parameter(bias, b_array, BIAS, b_inner, b_count, place, DTYPE)
    if SLOPE is not None:
        w = column_parameter(slope, l_array, SLOPE, l_inner, l_count, place, DTYPE)
    sums = (
        tl.zeros([ROWS, COLUMNS], DTYPE),
        tl.zeros([ROWS, COLUMNS], DTYPE),
        tl.zeros([ROWS, COLUMNS], DTYPE),
    )
    complete = size // width
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, rows)
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        i = row.to(INDEX) * width + column
        mask = inside & (row < end)
        drop = None
        if DROPOUT is not None:
            begun = row.to(INDEX) * width + tl.program_id(0) * used
            drop = drops(begun, seed, offset, last, DROPOUT, COLUMNS, COLUMNS)
        if start + ROWS <= complete:
            sums = rows_backward(
                dy, x, gate, dx, dgate, dscale, dbias, dslope, i, mask, s, b, w, sums,
                s_array, s_inner, s_count, b_array, b_inner, b_count, l_array, l_inner, l_count,
                drop, kept, FORWARD, BACKWARD, READS, SCALE, BIAS, SLOPE, SUMS, DTYPE, STORED,
                ALIGNED,
            )  # fmt: skip
        else:  # with the end of a row that ends early, inside of a pack
            sums = rows_backward(
                dy, x, gate, dx, dgate, dscale, dbias, dslope, i, mask & (i < size), s, b, w, sums,
                s_array, s_inner, s_count, b_array, b_inner, b_count, l_array, l_inner, l_count,
                drop, kept, FORWARD, BACKWARD, READS, SCALE, BIAS, SLOPE, SUMS, DTYPE, STORED,
                ALIGNED,
            )  # fmt: skip
    gradients = dscale, dbias, dslope
    for k in tl.static_range(3):
        if gradients[k] is not None and SUMS[k]:
            total = tl.sum(sums[k], 0)[None, :]
            to = gradients[k] + tl.program_id(1).to(tl.int64) * (width // inner)
            if RUNS:
                new = (column % inner == 0).to(tl.int32)
                _, total = tl.associative_scan((new, total), 1, segments)
                whole = inside & ((column + 1) % inner == 0)
                tl.store(to + column // inner, total, mask=whole)
            else:
                tl.store(to + column, total, mask=inside)


@triton.jit
def rows_backward(
    dy, x, gate, dx, dgate, dscale, dbias, dslope, i, mask, s, b, w, sums,
    s_array, s_inner, s_count, b_array, b_inner, b_count, l_array, l_inner, l_count, drop, kept,
    FORWARD: tl.constexpr, BACKWARD: tl.constexpr, READS: tl.constexpr,
    SCALE: tl.constexpr, BIAS: tl.constexpr, SLOPE: tl.constexpr,
    SUMS: tl.constexpr, DTYPE: tl.constexpr, STORED: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Some rows of a tile's columns; their terms are added to sums."""
    v = tl.load(at(x, i, ALIGNED), mask=mask, other=0.0).to(DTYPE)
    e = tl.load(at(dy, i, ALIGNED), mask=mask, other=0.0).to(DTYPE)
    g = None if gate is None else tl.load(at(gate, i, ALIGNED), mask=mask, other=0.0).to(DTYPE)
    if SCALE == "full" or SCALE == "any":
        s = entries(s_array, SCALE, s_inner, s_count, i, mask, ALIGNED, DTYPE)
    if BIAS == "full" or BIAS == "any":
        b = entries(b_array, BIAS, b_inner, b_count, i, mask, ALIGNED, DTYPE)
    if SLOPE == "full" or SLOPE == "any":
        w = entries(l_array, SLOPE, l_inner, l_count, i, mask, ALIGNED, DTYPE)
    kept = tl.full((), kept, DTYPE)
    v, h, terms = led_back(e, v, g, s, b, w, drop, kept, FORWARD, BACKWARD, READS, STORED)
    stored(dx, i, v, mask, ALIGNED)
    stored(dgate, i, h, mask, ALIGNED)
    gradients = dscale, dbias, dslope
    added = ()
    for k in tl.static_range(3):
        if gradients[k] is None:
            added = added + (sums[k],)
        elif SUMS[k]:
            added = added + (sums[k] + tl.where(mask, terms[k], 0.0),)
        else:
            stored(gradients[k], i, terms[k], mask, ALIGNED)
            added = added + (sums[k],)
    return added
