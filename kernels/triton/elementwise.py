"""One kernel for every elementwise formula: arrays that lie alike in memory, run in its order.

A program's elements are a tile of packs, [BLOCK // PACK, PACK]: a pack is what a thread loads at
once, 16 bytes where the arrays' addresses allow it. The first pack begins `head` elements before
the arrays do, so that arrays that are misaligned alike are read from 16-byte boundaries all the
same. Where they are not alike, PACK is what they have in common, and neighbouring threads still
take neighbouring elements. The packs that the arrays' beginning and end cut come by themselves.
"""

import triton
import triton.language as tl

from .formulas import rounded

WARPS = 4
PACKS = 2  # a thread: at full occupancy of an SM, 64 KiB of loads on their way for each array
BYTES = 16  # the widest access


def block(itemsize: int) -> int:
    """Elements a program takes, the narrowest array's items having this size."""
    return 32 * WARPS * PACKS * BYTES // itemsize


@triton.jit
def packs(first, BLOCK: tl.constexpr, PACK: tl.constexpr):
    """The offsets at which packs begin, a column."""
    return first + tl.arange(0, BLOCK // PACK)[:, None] * PACK


@triton.jit
def whole(first, size, BLOCK: tl.constexpr, PACK: tl.constexpr):
    """Which packs of a tile exist as a whole. A mask that cut one would narrow every access."""
    pack = packs(first, BLOCK, PACK)
    return (pack >= 0) & (pack + PACK <= size)


@triton.jit
def cut(edge, first, head, size, BLOCK: tl.constexpr, PACK: tl.constexpr):
    """(start, mask) of the pack that the arrays' beginning cuts (edge 0), or their end (1).

    The mask is empty where there is none, or none in this tile.
    """
    size = size.to(first.dtype)
    tail = (size + head) // PACK * PACK - head
    start = (edge * (tail + head) - head).to(first.dtype)
    i = start + tl.arange(0, PACK)[None, :]
    here = (start >= first) & (start < first + BLOCK) & ((start >= 0).to(tl.int32) == edge)
    return start, here & (i >= 0) & (i < size)


@triton.jit
def at(array, offset, ALIGNED: tl.constexpr):
    """Pointers, every ALIGNED-th of a row being a multiple of so many items, or of 16 bytes.

    Triton would not see that through `head`.
    """
    size: tl.constexpr = array.dtype.element_ty.primitive_bitwidth // 8
    return tl.multiple_of(array + offset, [1, ALIGNED * size if ALIGNED * size < 16 else 16])


@triton.jit
def boundary(first, inner):
    """Which run of `inner` elements a tile begins in, and where the next begins."""
    run = tl.maximum(first, 0) // inner
    return run, (run + 1) * inner


@triton.jit
def parameter(
    p,
    array,
    inner,
    count,
    KIND: tl.constexpr,
    first,
    mask,
    BLOCK: tl.constexpr,
    PACK: tl.constexpr,
    ALIGNED: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """A formula's parameter for a tile: a number, or entries of an array.

    KIND is "number"; "element", an array's only one; "full", an array like x; or entry
    (offset // inner) % count: of "two" at most in a tile (inner is no less than BLOCK), one in a
    "pack" (inner is a multiple of PACK) or a "pair" (inner is no less than PACK), neighbours in
    "lanes" (inner is 1, count a multiple of PACK), or of "any". A division costs ten instructions
    in 32 bits and is a subroutine in 64: of offsets of 64 bits, only the tile's is reduced by a
    period, unless that is as "far" itself.
    """
    if KIND == "number":
        return tl.full((1, 1), p, DTYPE)
    elif KIND == "element":
        return tl.load(array).to(DTYPE)
    elif KIND == "two":
        run, end = boundary(first, inner)
        here = tl.load(array + run % count).to(DTYPE)
        behind = tl.load(array + (run + 1) % count).to(DTYPE)
        offset = packs(first, BLOCK, PACK) + tl.arange(0, PACK)[None, :]
        return tl.where(offset < end, here, behind)
    else:
        lane = tl.arange(0, PACK)[None, :]
        if KIND == "full":
            pointer = at(array, packs(first, BLOCK, PACK) + lane, ALIGNED)
            return tl.load(pointer, mask=mask).to(DTYPE)
        elif KIND == "far":
            entry = (packs(first, BLOCK, PACK) + lane) // inner % count
            return tl.load(array + entry, mask=mask).to(DTYPE)
        else:  # entries are there for what lies before the arrays and behind them, too
            if first.dtype == tl.int64:
                first = first % (inner.to(tl.int64) * count)
            place = packs(first.to(tl.uint32), BLOCK, PACK)
            inner = inner.to(tl.uint32)
            count = count.to(tl.uint32)
            if KIND == "pack":
                return tl.load(array + place // inner % count).to(DTYPE)
            elif KIND == "pair":
                run = place // inner
                here = tl.load(array + run % count).to(DTYPE)
                behind = tl.load(array + (run + 1) % count).to(DTYPE)
                return tl.where(place - run * inner + lane < inner, here, behind)
            elif KIND == "lanes":
                return tl.load(at(array, place % count + lane, ALIGNED)).to(DTYPE)
            else:
                return tl.load(array + (place + lane) // inner % count).to(DTYPE)


@triton.jit(do_not_specialize=["head", "size", "p_inner", "p_count", "q_inner", "q_count"])
def elementwise(
    a,
    b,  # None where the formula reads one array
    out,
    p: tl.float64,
    p_array,  # None for a number
    q: tl.float64,
    q_array,
    head,
    size,
    p_inner,
    p_count,
    q_inner,
    q_count,
    FORMULA: tl.constexpr,
    P: tl.constexpr,  # the kind of parameter, or None where the formula takes none
    Q: tl.constexpr,
    INDEX: tl.constexpr,  # the type of offsets
    DTYPE: tl.constexpr,  # what it computes in
    BLOCK: tl.constexpr,
    PACK: tl.constexpr,
):
    first = tl.program_id(0).to(INDEX) * BLOCK - head
    part(
        a, b, out, first, whole(first, size, BLOCK, PACK),
        p, p_array, p_inner, p_count, q, q_array, q_inner, q_count,
        FORMULA, P, Q, DTYPE, BLOCK, PACK,
    )  # fmt: skip
    if PACK > 1 and (first < 0) | (first + BLOCK > size):
        for edge in range(2):
            start, mask = cut(edge, first, head, size, BLOCK, PACK)
            part(
                a, b, out, start, mask,
                p, p_array, p_inner, p_count, q, q_array, q_inner, q_count,
                FORMULA, P, Q, DTYPE, PACK, PACK,
            )  # fmt: skip


@triton.jit
def part(
    a,
    b,
    out,
    first,
    mask,
    p,
    p_array,
    p_inner,
    p_count,
    q,
    q_array,
    q_inner,
    q_count,
    FORMULA: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    PACK: tl.constexpr,
):
    offset = packs(first, BLOCK, PACK) + tl.arange(0, PACK)[None, :]
    values = (tl.load(at(a, offset, PACK), mask=mask).to(DTYPE),)
    if b is not None:
        values = values + (tl.load(at(b, offset, PACK), mask=mask).to(DTYPE),)
    if P is not None:
        p = parameter(p, p_array, p_inner, p_count, P, first, mask, BLOCK, PACK, PACK, DTYPE)
        values = values + (p,)
    if Q is not None:
        q = parameter(q, q_array, q_inner, q_count, Q, first, mask, BLOCK, PACK, PACK, DTYPE)
        values = values + (q,)
    STORED: tl.constexpr = out.dtype.element_ty
    y = FORMULA(*values, STORED)
    tl.store(at(out, offset, PACK), rounded(y, STORED), mask=mask)
