"""What kernels over rows share, and sums over axes.

A view has three axes, (outer, n, inner), and a row runs along the middle one. A program holds ROWS
rows that lie beside each other along inner, as a tile [ROWS, BLOCK]: the whole row where it fits
(WHOLE), else a chunk of it. The host hands a view with inner = 1 over as (1, n, outer), so that
short rows share a program too. What belongs to a row has the shape [ROWS, 1].
"""

import triton
import triton.language as tl

from .formulas import INTERPRETED, exp, rounded

TILE = 1024  # elements a program has at least, by taking more rows: 8 for each thread of 4 warps
WIDEST = 4096  # elements a program holds at most: 16 a thread of 8 warps; the rest goes by chunks
BESIDE = 32  # rows side by side where the axis is not the last: 64 to 256 contiguous bytes

STEPS = 16  # tiles of TILE elements that one program adds up; its chunk of a sum
SUM_WARPS = 4
ACROSS = 64  # elements a tile takes along a strided axis; beside them 64 bytes of float32

GRID_Y = 65535  # what CUDA allows along the second and third dimension of a grid


def _power_of_2(n: int) -> int:
    """The next one; Triton's own, of microseconds, is for kernels."""
    return 1 << (n - 1).bit_length()


def tile(n: int, inner: int) -> tuple[int, int, bool, int]:
    """(ROWS, BLOCK, WHOLE, warps) for rows of n elements, inner of which lie side by side.

    Never from how many rows there are: a row's bits must not depend on its neighbours.
    """
    side = min(BESIDE, _power_of_2(inner))
    block = min(_power_of_2(n), WIDEST // side)
    rows = max(side, TILE // block)
    if inner > 1:
        rows = min(rows, _power_of_2(inner))
    return rows, block, n <= block, 4 if rows * block <= 2 * TILE else 8


def sum_tile(summed: int, kept: int, inner: int) -> tuple[int, int]:
    """(KEPT, SUMMED): how many sums a program forms, and how many elements of each at a time."""
    longest = ACROSS if inner == 1 < kept else TILE
    lanes = min(longest, _power_of_2(summed))
    return min(TILE // lanes, _power_of_2(kept)), lanes


def grid(first: int, second: int) -> tuple[int, int, int]:
    """Programs for two counts; the second may exceed one dimension and then takes some more.

    A program finds its place in both without a division, which in 64 bits is a subroutine.
    """
    return first, min(second, GRID_Y), -(-second // GRID_Y)


@triton.jit
def first():
    return tl.program_id(0).to(tl.int64)


@triton.jit
def second():
    return tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)


@triton.jit
def place(outer, inner, ROWS: tl.constexpr):
    """Where this program's rows are: outer index, inner indices, and which of them exist."""
    o = second()
    i = first() * ROWS + tl.arange(0, ROWS)[:, None]
    return o, i, (o < outer) & (i < inner)


@triton.jit
def columns(start, n, exists, BLOCK: tl.constexpr):
    """The columns of the chunk that begins at start, and which elements of it exist."""
    c = tl.arange(0, BLOCK)[None, :].to(tl.int64) + start
    return c, exists & (c < n)


@triton.jit
def finite(top):
    """What to subtract before e^: the maximum, or 0 for -inf, since -inf - -inf is NaN."""
    return tl.where(top == -float("inf"), 0.0, top)


@triton.jit
def maximum(x):
    """The largest of each row, NaN left out: the sum of e^(x - maximum) brings it in again."""
    if INTERPRETED:
        x = tl.where(x == x, x, -float("inf"))
    return tl.max(x, axis=1, keep_dims=True)


@triton.jit
def total(x):
    return tl.sum(x, axis=1, keep_dims=True)


@triton.jit
def maximum_and_sum(x):
    """(m, sum of e^(x - m)) of whole rows; elements that do not exist are -inf, which adds 0."""
    m = finite(maximum(x))
    return m, total(exp(x - m))


@triton.jit
def accumulate(m, s, x):
    """One chunk more in each lane's own running maximum and sum, for one exponential.

    Whichever of the two is larger, the other is e^-|x - m| of it. NaN never is the larger, so it
    stays out of m and enters s.
    """
    d = exp(-tl.abs(x - finite(m)))
    larger = x > m
    return tl.where(larger, x, m), tl.where(larger, s * d + 1.0, s + d)


@triton.jit
def merged(m, s):
    """(m, sum) of whole rows from those of their lanes."""
    top = finite(maximum(m))
    return top, total(s * exp(m - top))


@triton.jit
def reduce(
    a,
    b,  # None where the formula reads one array
    out,  # [chunks, kept], contiguous
    summed: tl.int64,  # elements in each sum: all of the first axis and of the last
    kept,
    inner,
    chunk,
    FORMULA: tl.constexpr,
    DTYPE: tl.constexpr,
    KEPT: tl.constexpr,
    SUMMED: tl.constexpr,
):
    """Sums of FORMULA over the first and last axis of (outer, kept, inner), contiguous."""
    part = first()
    k = second() * KEPT + tl.arange(0, KEPT)[:, None]
    begin = part * chunk
    end = tl.minimum(begin + chunk, summed)
    lanes = tl.zeros([KEPT, SUMMED], DTYPE)
    for start in range(begin, end, SUMMED):
        r = tl.arange(0, SUMMED)[None, :].to(tl.int64) + start
        mask = (k < kept) & (r < end)
        offset = ((r // inner) * kept + k) * inner + r % inner
        # What is not there reads as 0, and every formula that is summed makes 0 of zeros.
        x = tl.load(a + offset, mask=mask, other=0.0).to(DTYPE)
        if b is None:
            lanes += FORMULA(x, DTYPE)
        else:
            lanes += FORMULA(x, tl.load(b + offset, mask=mask, other=0.0).to(DTYPE), DTYPE)
    tl.store(out + part * kept + k, rounded(total(lanes), out.dtype.element_ty), mask=k < kept)
