"""An activation with what stands before and behind it, and the way back, sums included.

    u = scale·x + bias    a = act(u)    d = dropout(a)    y = d·gate + residual

Steps that are None do not exist. Forward runs flat, as elementwise.py describes. So does backward
where no sum is wanted or a tile meets two runs of one channel at most; shorter runs take columns.

No sum uses atomics, and what is added to what follows from the call (shapes, dtypes, alignment, and
which gradients are wanted): the same bits every time. A sum's longest path of roundings is stated
at each kernel; a chain of n adds counts n, a tree its depth.
"""

from dataclasses import dataclass
from math import lcm

import triton
import triton.language as tl

from .elementwise import at, block, boundary, cut, packs, parameter, whole
from .formulas import linear_backward, linear_dbias, linear_dscale, prelu_dweight, rounded

WARPS = 4
SECTOR = 32  # bytes: rows of columns begin with one, or all 16 bytes behind one's beginning
LINE, LANES = 128, 32  # bytes, and items (a warp's at once), that lie side by side at least
IDLE = 0.1  # of the rows of tiles: more are not taken together for it
SHARE = 1 / 128  # of the bytes that arrays move: what partial sums may add, written and read
PROGRAMS = 1024  # wanted: some for each of a GPU's SMs
GRID_Y = 65535  # what CUDA allows
PACK = 8  # elements that 16 bytes hold of a half type, and whole quadruples of random words
COLLECT_WARPS = 8


@dataclass(frozen=True)
class Columns:
    """Memory cut into rows of whole periods and whole sectors, and those into tiles."""

    width: int  # of a row
    used: int  # of that, where there is one row alone
    rows: int
    columns: int  # of a tile
    together: int  # rows of a tile
    chunk: int  # rows that one program adds up, a tile after another

    @property
    def grid(self) -> tuple[int, int, int]:
        return -(-self.used // self.columns), -(-self.rows // self.chunk), 1


def columns(inner: int, kept: int, elements: int, itemsize: int, sums: float) -> Columns:
    """Tiles for sums over runs of `inner` elements, of `kept` channels.

    sums: bytes of one element's partial sums, written and read, over the bytes that it moves.
    """
    narrow, tile = max(LANES, LINE // itemsize), block(itemsize)
    width = lcm(inner * kept, max(PACK, SECTOR // itemsize))
    if width < 8 * narrow:  # else what the last tile lacks is little
        width = lcm(width, narrow)
    rows = -(-elements // width)
    together = tile // narrow
    while rows < (1 - IDLE) * (-(-rows // together) * together):
        together //= 2
    room, used = tile // together, min(width, elements)
    tiles = -(-used // room)
    left = 1 / inner + (0 if inner == 1 else 1 / room)  # sums for each column
    chunks = max(1, min(int(rows * SHARE / (sums * left)), PROGRAMS // tiles, GRID_Y))
    chunk = -(-rows // chunks)
    return Columns(width, used, rows, room, together, -(-chunk // together) * together)


def collecting(kept: int, flat: bool) -> tuple[int, int]:
    """(LANES, ENTRIES) of `collect`: neighbours' sums are neighbours where tiles leave many."""
    return (2048, 1) if flat or kept < 64 else (256, 8)


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
def remaining(a, drop):
    """0 where dropped, whatever was there."""
    if drop is None:
        return a
    else:
        return tl.where(drop, 0.0, a)


@triton.jit
def masked(a, drop, kept):
    """0 where dropped; the others times `kept`."""
    if drop is None:
        return a
    else:
        return remaining(a * kept, drop)


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
    da = dy
    if gate is not None:
        da = dy * gate
    if drop is not None:
        da = da * kept
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
    dscale = remaining(linear_dscale(du, x, STORED), drop)
    dbias = remaining(linear_dbias(du, STORED), drop)
    dslope = remaining(prelu_dweight(da, u, STORED), drop)
    return remaining(dx, drop), dgate, (dscale, dbias, dslope)


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
    dscale,  # like x, or where a tile's sums go: two if over runs
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
    SUMS: tl.constexpr,  # for each of scale, bias and slope: a sum over "runs", "all", or None
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
        if SUMS[k] == "all":
            tl.store(gradients[k] + tile, sums[2 * k] + sums[2 * k + 1])
        elif SUMS[k] == "runs":
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
            if SUMS[k] is not None:
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


@triton.jit(
    do_not_specialize=[
        "chunks", "tiles", "left", "outer", "kept", "inner", "offset", "end", "longest"
    ]
)  # fmt: skip
def collect(
    a,  # (chunks, tiles, left): sums of the run that a tile begins in, and of those behind it
    b,  # None, or as a; so c
    c,
    a_out,
    b_out,
    c_out,
    chunks,
    tiles,
    left,
    outer,  # runs of one entry, in a row
    kept,
    inner,
    offset,  # tiles begin at positions offset, offset + BLOCK, ...; run r at r·inner
    end,
    longest,  # how many tiles one run meets at most
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """The sum over all runs of an entry. Each lane adds up every LANES-th tile, then a tree."""
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)[None, :]
    lane = tl.arange(0, LANES)[:, None]
    partials, outs = (a, b, c), (a_out, b_out, c_out)
    for k in tl.static_range(3):
        if partials[k] is not None:
            sums = tl.zeros([LANES, ENTRIES], partials[k].dtype.element_ty)
            for start in range(0, chunks * outer * longest, LANES):
                t = start + lane
                run = (t // longest % outer).to(INDEX) * kept + entry
                begin = run * inner
                tile = tl.maximum(begin - offset, 0) // BLOCK + t % longest
                first = tl.maximum(tile * BLOCK + offset, 0)
                chunk = t // (longest * outer)
                mask = (chunk < chunks) & (begin < end) & (first < tl.minimum(begin + inner, end))
                place = (chunk * tiles + tile).to(tl.int64) * left + run - first // inner
                sums += tl.load(partials[k] + place, mask=mask & (entry < kept), other=0.0)
            total = rounded(tl.sum(sums, 0)[None, :], outs[k].dtype.element_ty)
            tl.store(outs[k] + entry, total, mask=entry < kept)


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
        "seed", "offset", "last", "head", "size", "rows", "width", "chunk", "begun", "inner",
        "left", "s_inner", "s_count", "b_inner", "b_count", "l_inner", "l_count",
    ]
)  # fmt: skip
def columns_backward(
    dy,
    x,
    gate,
    dx,
    dgate,
    dscale,  # like x, or where a program's sums go: (programs,), or (programs, left) over runs
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
    head,  # columns of the first row that come before the arrays
    size,
    rows,
    width,  # columns: whole periods of parameters, whole packs
    chunk,  # rows a program adds up
    begun,  # position of the first column, in some period
    inner,
    left,  # runs that a tile meets at most
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
    start = tl.program_id(0).to(INDEX) * COLUMNS
    lane = tl.arange(0, COLUMNS)[None, :]
    column = start + lane
    limit = tl.multiple_of(tl.minimum(start + COLUMNS, width), PACK)
    inside = tl.multiple_of(column, [1, PACK]) < limit
    # As large as a tile of rows: a row alone would lie in other threads than what it is used with.
    position = begun + tl.where(inside, column, 0) + tl.zeros([ROWS, 1], tl.int32)
    s, b, w = None, None, None
    if SCALE is not None:
        s = column_parameter(scale, s_array, SCALE, s_inner, s_count, position, DTYPE)
    if BIAS is not None:
        b = column_parameter(bias, b_array, BIAS, b_inner, b_count, position, DTYPE)
    if SLOPE is not None:
        w = column_parameter(slope, l_array, SLOPE, l_inner, l_count, position, DTYPE)
    sums = (
        tl.zeros([ROWS, COLUMNS], DTYPE),
        tl.zeros([ROWS, COLUMNS], DTYPE),
        tl.zeros([ROWS, COLUMNS], DTYPE),
    )
    # Places in memory count from the first row's first column. Those of whole packs:
    reach = size.to(INDEX) + head
    front = tl.multiple_of(tl.where(head > 0, PACK, 0), PACK)
    tail = tl.multiple_of(reach // PACK * PACK, PACK)
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, rows)
    for first in range(begin, end, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        place = row.to(INDEX) * width + start
        i = tl.multiple_of(place + lane, [1, PACK])
        mask = inside & (row < end) & (i >= front) & (i < tail)
        sums = rows_backward(
            dy, x, gate, dx, dgate, dscale, dbias, dslope, place - head, mask, s, b, w, sums,
            s_array, s_inner, s_count, b_array, b_inner, b_count, l_array, l_inner, l_count,
            seed, offset, last, kept, FORWARD, BACKWARD, READS, SCALE, BIAS, SLOPE, DROPOUT, SUMS,
            DTYPE, STORED, COLUMNS, ALIGNED,
        )  # fmt: skip
    for edge in range(2):  # the packs that the arrays' beginning and end cut
        pack = edge * tail
        first = (pack // width).to(tl.int32)
        at_column = pack - first.to(INDEX) * width
        cut = tl.where(edge == 0, head > 0, (tail >= front) & (tail < reach))
        if cut & (first >= begin) & (first < end) & (at_column // COLUMNS == tl.program_id(0)):
            place = (first + tl.arange(0, ROWS)[:, None]).to(INDEX) * width + start
            i = place + lane
            mask = (i >= tl.maximum(pack, head)) & (i < tl.minimum(pack + PACK, reach))
            sums = rows_backward(
                dy, x, gate, dx, dgate, dscale, dbias, dslope, place - head, mask, s, b, w, sums,
                s_array, s_inner, s_count, b_array, b_inner, b_count, l_array, l_inner, l_count,
                seed, offset, last, kept, FORWARD, BACKWARD, READS, SCALE, BIAS, SLOPE, DROPOUT,
                SUMS, DTYPE, STORED, COLUMNS, ALIGNED,
            )  # fmt: skip
    gradients = dscale, dbias, dslope
    program = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    for k in tl.static_range(3):
        if SUMS[k] == "all":
            tl.store(gradients[k] + program, tl.sum(tl.sum(sums[k], 1), 0))
        elif SUMS[k] == "runs":
            total = tl.sum(sums[k], 0)[None, :]
            to = gradients[k] + program * left
            position = column + begun
            ends = inside
            if RUNS:
                new = (position % inner == 0).to(tl.int32)
                _, total = tl.associative_scan((new, total), 1, segments)
                ends = inside & (((position + 1) % inner == 0) | (column + 1 == limit))
            tl.store(to + position // inner - (start + begun) // inner, total, mask=ends)


@triton.jit
def rows_backward(
    dy, x, gate, dx, dgate, dscale, dbias, dslope, first, mask, s, b, w, sums,
    s_array, s_inner, s_count, b_array, b_inner, b_count, l_array, l_inner, l_count,
    seed, offset, last, kept,
    FORWARD: tl.constexpr, BACKWARD: tl.constexpr, READS: tl.constexpr,
    SCALE: tl.constexpr, BIAS: tl.constexpr, SLOPE: tl.constexpr, DROPOUT: tl.constexpr,
    SUMS: tl.constexpr, DTYPE: tl.constexpr, STORED: tl.constexpr,
    COLUMNS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """A tile whose rows begin at offsets `first`; its terms are added to sums."""
    i = first + tl.arange(0, COLUMNS)[None, :]
    drop = None
    if DROPOUT is not None:
        drop = drops(first, seed, offset, last, DROPOUT, COLUMNS, COLUMNS)
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
        elif SUMS[k] is not None:
            added = added + (sums[k] + tl.where(mask, terms[k], 0.0),)
        else:
            stored(gradients[k], i, terms[k], mask, ALIGNED)
            added = added + (sums[k],)
    return added
