"""An activation whose outputs are looked at on their way: what a layer is like, for no traffic.

`observe` goes through tiles (kernels/tiles.py says how memory is cut) and leaves for each
program count, mean, Σ (y − mean)², zeros and saturated elements of what it saw, and bits: where an
element was alive, which is not saturated. `fold` adds these onto what is known already. The mean is
a pack's first, with squares about it, so nothing cancels; packs at the same place of tiles are
merged in a thread, and threads once, at a program's end. Nothing is atomic.
"""

import triton
import triton.language as tl

from .formulas import reciprocal, rounded

# Rows that are looked at together, warps, and registers of a thread at most, by TAIL. 32 bytes a
# thread are on their way. Two blocks of the former share an SM, three of the latter, and one loads
# while another adds up; with fewer registers half types spill, on some GPUs.
TILES = {False: (16, 8, 128), True: (8, 4, 168)}
MERGE = 1024  # programs' numbers that are added up together
FOLD_WARPS = 4
# An element is told by 1 if it is 0, and BEYOND if it is saturated: one sum counts both, for a
# place of a program's tiles has fewer elements than that (tiles.COUNTED), and what is least tells
# whether all are saturated.
BEYOND = tl.constexpr(1 << 16)
ALL = tl.constexpr(1 << 17)


def folding(slots: int) -> tuple[int, int]:
    """(ENTRIES, LANES) of `fold`: units, and bytes of each, that are looked at together."""
    return (8, 128) if slots <= 1024 else (1, 1024)


@triton.jit
def begins(array, offset, PACK: tl.constexpr):
    """Pointers whose packs are of one access. Triton does not see that through a pitch."""
    size: tl.constexpr = array.dtype.element_ty.primitive_bitwidth // 8
    return tl.multiple_of(array + offset, [1, 1, PACK * size])


@triton.jit(do_not_specialize=["p", "low", "high", "size", "pitch", "rows", "chunk", "units",
                               "inner", "programs"])  # fmt: skip
def observe(
    x,
    out,  # None where x is what is looked at
    parts,  # five numbers of each program, the first of all programs first
    flags,  # None where nothing saturates
    p: tl.float64,
    p_array,  # None for a number
    low: tl.float64,
    high: tl.float64,
    size,
    pitch,
    rows,
    chunk,
    units,
    inner,
    programs,
    FORMULA: tl.constexpr,  # None: y = x
    P: tl.constexpr,  # None, or a "number", an array's only "element", or one of "units"
    SATURATES: tl.constexpr,  # None, or "below" low, or "outside" of low and high
    RUNS: tl.constexpr,  # None, or a unit's run is of whole "packs", or of "any" elements
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    TAIL: tl.constexpr,  # whether the array's end cuts a pack
    ROWS: tl.constexpr,
    WARP: tl.constexpr,
    PACK: tl.constexpr,
):
    COLUMNS: tl.constexpr = WARP * PACK
    tile, part = tl.program_id(0), tl.program_id(1).to(INDEX)
    begin = tile.to(INDEX) * COLUMNS + tl.arange(0, WARP)[None, :, None] * PACK  # of packs
    column = begin + tl.arange(0, PACK)[None, None, :]
    if P == "number":
        p = tl.full((1, 1, 1), p, DTYPE)
    elif P == "element":
        p = tl.load(p_array).to(DTYPE)
    elif P == "units" and RUNS is None:
        p = tl.load(p_array + column // inner % units).to(DTYPE)
    low = tl.full((1, 1, 1), low, DTYPE)
    high = tl.full((1, 1, 1), high, DTYPE)

    n = tl.zeros((ROWS, WARP), DTYPE)  # of what lay in this place of each tile
    mean, m2 = n, n
    counts = tl.zeros((ROWS, WARP), tl.int32)
    least = tl.full((ROWS, WARP, PACK), ALL, tl.int32)
    first = part * chunk
    for row in range(first, tl.minimum(first + chunk, rows), ROWS):
        r = row + tl.arange(0, ROWS)[:, None, None]
        from_row = r.to(INDEX) * pitch
        end = (tile + 1).to(INDEX) * COLUMNS
        if (end <= pitch) & (pitch.to(INDEX) * (row + ROWS - 1) + end <= size):  # it is all there
            y, found, least = look(
                x, out, from_row, begin, column, None, p, p_array, low, high, units, inner, flags,
                row, rows, least, FORMULA, P, SATURATES, RUNS, DTYPE, ROWS, PACK,
            )  # fmt: skip
            mean_b = tl.sum(y, 2) / PACK
            apart = y - mean_b[:, :, None]
            n, mean, m2 = merged(n, mean, m2, PACK, mean_b, tl.sum(apart * apart, 2))
            counts += tl.sum(found, 2)
        else:
            inside = (r < rows) & (begin < pitch)
            mask = inside & (from_row + begin + PACK <= size)
            if TAIL:  # one tile has the array's end, which cuts a pack: it goes by elements
                last = size.to(INDEX) - 1 - pitch.to(INDEX) * row - tile.to(INDEX) * COLUMNS
                if (last // pitch < ROWS) & (last % pitch < COLUMNS) & (last >= 0):
                    n, mean, m2, counts, least = partly(
                        x, out, from_row, begin, column, inside & (from_row + column < size), p,
                        p_array, low, high, units, inner, flags, row, rows, least, n, mean, m2,
                        counts, True, FORMULA, P, SATURATES, RUNS, DTYPE, ROWS, PACK,
                    )  # fmt: skip
                else:
                    n, mean, m2, counts, least = partly(
                        x, out, from_row, begin, column, mask, p, p_array, low, high, units, inner,
                        flags, row, rows, least, n, mean, m2, counts, False, FORMULA, P, SATURATES,
                        RUNS, DTYPE, ROWS, PACK,
                    )  # fmt: skip
            else:
                n, mean, m2, counts, least = partly(
                    x, out, from_row, begin, column, mask, p, p_array, low, high, units, inner,
                    flags, row, rows, least, n, mean, m2, counts, False, FORMULA, P, SATURATES,
                    RUNS, DTYPE, ROWS, PACK,
                )  # fmt: skip

    if SATURATES is not None and RUNS is None:
        lives = (tl.min(least, 0) < BEYOND).to(tl.int32)
        octets = tl.reshape(lives, (COLUMNS // 8, 8)) << tl.arange(0, 8)[None, :]
        place = (part * tl.num_programs(0) + tile) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
        tl.store(flags + place, tl.sum(octets, 1).to(tl.uint8))
    count = total(n)
    mean_of_all = total(mean * (n / tl.maximum(count, 1.0)))
    parts += part * tl.num_programs(0) + tile
    tl.store(parts, count)
    tl.store(parts + programs, mean_of_all)
    tl.store(parts + 2 * programs, total(m2 + squares(n, mean, mean_of_all)))
    tl.store(parts + 3 * programs, total(counts & (BEYOND - 1)).to(DTYPE))
    tl.store(parts + 4 * programs, total((counts >> 16) & (BEYOND - 1)).to(DTYPE))


@triton.jit
def merged(n, mean, m2, n_b, mean_b, m2_b):
    """Count, mean and Σ (y − mean)² of both, by Chan, Golub and LeVeque; n_b is above 0.

    Not mean + (mean_b − mean)·share: of two infinities that would make a NaN. What is far from a
    mean of nothing squares to infinity, and times 0 to NaN.
    """
    if n.dtype == tl.float64:
        share = n_b / (n + n_b)
    else:
        share = n_b * reciprocal(n + n_b)
    between = mean_b - mean
    m2 += m2_b + tl.where(n == 0, 0.0, between * between * (n * share))
    return n + n_b, mean * (1 - share) + mean_b * share, m2


@triton.jit
def partly(
    x, out, from_row, begin, column, mask, p, p_array, low, high, units, inner, flags, row, rows,
    least, n, mean, m2, counts, CUT: tl.constexpr, FORMULA: tl.constexpr, P: tl.constexpr,
    SATURATES: tl.constexpr, RUNS: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr,
    PACK: tl.constexpr,
):  # fmt: skip
    """A tile of which not all is there: (n, mean, m2, counts, least) with it. CUT: nor is all of
    each pack."""
    y, found, least = look(
        x, out, from_row, begin, column, mask, p, p_array, low, high, units, inner, flags, row,
        rows, least, FORMULA, P, SATURATES, RUNS, DTYPE, ROWS, PACK,
    )  # fmt: skip
    there = tl.sum(mask.to(tl.int32), 2)
    n_b = tl.full((), PACK, DTYPE)
    if CUT:
        n_b = tl.maximum(there, 1).to(DTYPE)
    mean_b = tl.sum(tl.where(mask, y, 0.0), 2) / n_b
    apart = tl.where(mask, y - mean_b[:, :, None], 0.0)
    with_it = merged(n, mean, m2, n_b, mean_b, tl.sum(apart * apart, 2))
    n = tl.where(there > 0, with_it[0], n)
    mean = tl.where(there > 0, with_it[1], mean)
    m2 = tl.where(there > 0, with_it[2], m2)
    return n, mean, m2, counts + tl.sum(tl.where(mask, found, 0), 2), least


@triton.jit
def look(
    x, out, from_row, begin, column, mask, p, p_array, low, high, units, inner, flags, row, rows,
    least, FORMULA: tl.constexpr, P: tl.constexpr, SATURATES: tl.constexpr, RUNS: tl.constexpr,
    DTYPE: tl.constexpr, ROWS: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """(y, 1 where it is 0 and BEYOND where it is saturated, the least of that in each place)"""
    STORED: tl.constexpr = x.dtype.element_ty
    y = tl.load(begins(x, from_row + column, PACK), mask=mask).to(DTYPE)
    if RUNS is not None:  # a row meets two: `here`, and from `end` on the one behind it
        here = from_row // inner
        end = (here + 1) * inner - from_row
        first = begin if RUNS == "packs" else column
        if P == "units":
            p = tl.load(p_array + here % units)
            p = tl.where(first < end, p, tl.load(p_array + (here + 1) % units)).to(DTYPE)
    if FORMULA is not None:
        if P is None:
            y = FORMULA(y, STORED)
        else:
            y = FORMULA(y, p, STORED)
    if out is not None:
        stored = rounded(y, STORED)
        tl.store(begins(out, from_row + column, PACK), stored, mask=mask)
        y = stored.to(DTYPE)
    found = tl.where(y == 0, 1, 0)
    if SATURATES is not None:
        beyond = y <= low
        if SATURATES == "outside":
            beyond = beyond | (y >= high)
        found += tl.where(beyond, BEYOND, 0)
        here_least = found
        if mask is not None:
            here_least = tl.where(mask, found, ALL)
        if RUNS is not None:
            if RUNS == "packs":
                lives = tl.min(here_least, 2) < BEYOND
                before = tl.max((first < end).to(tl.int32), 2) > 0
                behind = lives & (before == 0)
                before = lives & before
            else:
                before = tl.min(tl.where(first < end, here_least, ALL), 2) < BEYOND
                behind = tl.min(tl.where(first < end, ALL, here_least), 2) < BEYOND
            lanes = tl.sum(tl.where(before, 1, 0) + tl.where(behind, 256, 0), 1)  # up to 32 each
            code = tl.where(lanes % 256 > 0, 1, 0) + tl.where(lanes > 255, 2, 0)
            i = row + tl.arange(0, ROWS)
            tl.store(flags + i, code.to(tl.uint8), mask=i < rows)
        else:
            least = tl.minimum(least, here_least)
    return y, found, least


@triton.jit
def total(x):
    return tl.sum(tl.sum(x, 0), 0)


@triton.jit
def squares(n, mean, mean_of_all):
    """What parts' distances add to Σ (y − mean)²: nothing where one is empty."""
    apart = mean - mean_of_all
    return tl.where(n == 0, 0.0, n * apart * apart)


@triton.jit(do_not_specialize=["programs", "chunks", "stride", "outer", "units", "inner",
                               "repeats", "longest"])  # fmt: skip
def fold(
    parts,
    flags,
    moments,  # float64: count, mean, Σ (y − mean)², zeros, saturated, so far
    alive,
    programs,
    chunks,
    stride,  # bytes of a chunk's bits
    outer,
    units,
    inner,
    repeats,  # periods of a row
    longest,  # bytes, or rows, that one run reaches into at most
    SATURATES: tl.constexpr,
    RUNS: tl.constexpr,
    TOGETHER: tl.constexpr,  # units with a bit each in one byte
    INDEX: tl.constexpr,
    COLUMNS: tl.constexpr,
    MERGE: tl.constexpr,
    ENTRIES: tl.constexpr,
    LANES: tl.constexpr,
):
    """The first program adds up what programs left, each other one has some units to look after."""
    if tl.program_id(0) == 0:
        add_up(parts, moments, programs, MERGE)
    else:
        first = (tl.program_id(0) - 1).to(INDEX) * ENTRIES
        group = first + tl.arange(0, ENTRIES)[:, None]
        lane = tl.arange(0, LANES)[None, :]
        here = group * TOGETHER < units
        if SATURATES is None:
            found = tl.full((ENTRIES, LANES), 0xFF, tl.int32)
        else:
            found = tl.zeros((ENTRIES, LANES), tl.int32)
            if RUNS:
                for start in range(0, outer * longest, LANES):
                    k = start + lane
                    run = (k // longest).to(INDEX) * units + group
                    row = run * inner // COLUMNS + k % longest
                    mask = here & (k < outer * longest) & (row * COLUMNS < (run + 1) * inner)
                    left = tl.load(flags + row, mask=mask, other=0).to(tl.int32)
                    found |= left & tl.where(row * COLUMNS // inner == run, 1, 2)
            else:
                slots = repeats * longest
                for start in range(0, chunks * slots, LANES):
                    k = start + lane
                    slot = k % slots
                    period = units.to(INDEX) * inner
                    begin = slot // longest * period + group * (TOGETHER * inner)
                    octet = begin // 8 + slot % longest
                    behind = octet * 8 + 8 - (begin + TOGETHER * inner)  # bits of the next
                    mask = here & (k < chunks * slots) & (octet < stride) & (behind < 8)
                    place = (k // slots).to(INDEX) * stride + octet
                    left = tl.load(flags + place, mask=mask, other=0).to(tl.int32)
                    left &= (0xFF << tl.maximum(begin - octet * 8, 0)).to(tl.int32)
                    found |= left & (0xFF >> tl.maximum(behind, 0)).to(tl.int32)
        for bit in tl.static_range(TOGETHER):
            if TOGETHER == 1:
                lives = tl.max((found != 0).to(tl.int32), 1)
            else:
                lives = tl.max((found >> bit) & 1, 1)
            unit = (first + tl.arange(0, ENTRIES)) * TOGETHER + bit
            tl.store(alive + unit, lives.to(tl.uint8), mask=(lives != 0) & (unit < units))


@triton.jit
def add_up(parts, moments, programs, MERGE: tl.constexpr):
    lane = tl.arange(0, MERGE)
    known = lane == 0  # what is known already is the first thread's to begin with
    n = tl.load(moments + lane, mask=known, other=0.0)
    mean_a = tl.load(moments + 1 + lane, mask=known, other=0.0)
    m2 = tl.load(moments + 2 + lane, mask=known, other=0.0)
    zeros = tl.load(moments + 3 + lane, mask=known, other=0.0)
    saturated = tl.load(moments + 4 + lane, mask=known, other=0.0)
    n_a, sums = n, n * mean_a
    for start in range(0, programs, MERGE):
        k = start + lane
        here = k < programs
        n_k = tl.load(parts + k, mask=here, other=0.0).to(tl.float64)
        n += n_k
        sums += n_k * tl.load(parts + programs + k, mask=here, other=0.0).to(tl.float64)
        zeros += tl.load(parts + 3 * programs + k, mask=here, other=0.0).to(tl.float64)
        saturated += tl.load(parts + 4 * programs + k, mask=here, other=0.0).to(tl.float64)
    count = tl.sum(n, 0)
    mean = tl.sum(sums, 0) / count
    m2 += squares(n_a, mean_a, mean)
    for start in range(0, programs, MERGE):
        k = start + lane
        here = k < programs
        n_k = tl.load(parts + k, mask=here, other=0.0).to(tl.float64)
        mean_k = tl.load(parts + programs + k, mask=here, other=0.0).to(tl.float64)
        m2 += tl.load(parts + 2 * programs + k, mask=here, other=0.0).to(tl.float64)
        m2 += squares(n_k, mean_k, mean)
    tl.store(moments, count)
    tl.store(moments + 1, mean)
    tl.store(moments + 2, tl.sum(m2, 0))
    tl.store(moments + 3, tl.sum(zeros, 0))
    tl.store(moments + 4, tl.sum(saturated, 0))
