"""What kernels over rows share, and sums over axes.

A view has three axes, (outer, n, inner), and a row runs along the middle one. A tile holds ROWS
rows, [ROWS, BLOCK]: whole rows, or a chunk of each. ACROSS of them lie beside each other along
inner; only where that has no more, short rows of several outer indices share a tile. The host hands
a view with inner = 1 over as (1, n, outer), so that its short rows share a program too. Over a
cluster of PARTS blocks the tile is [PARTS·ROWS, BLOCK]: each block has a part of every row. What
belongs to a row, or to a part of it, has the shape [PARTS·ROWS, 1].

Rows that are contiguous but begin anywhere consist of a body, whole packs from a sector of memory
on, and of what lies before and behind it. Masks that cut no pack leave accesses wide; the ends are
a tile of their own, an element for each thread, of which those of two sectors exist.

In kernels of whole rows the body of x, or of the logits, is loaded after its ends and after what
there is once for a row. Where values of two loads meet, Triton lays them out as the later load is;
in the other order it would be the body that moves to other threads, through shared memory.

The same bits: how a row is cut, and the order in which a tile adds up, follow from n, inner, dtype
and, where a row's ends cut packs, the address modulo 32; never from how many rows there are. Chunks
leave what they know of a row in memory, and whoever finishes the row merges that in one and the
same way.
"""

from dataclasses import dataclass
from functools import lru_cache

import triton
import triton.language as tl

from .formulas import INTERPRETED, exp, rounded

SIDE = 128  # bytes beside each other, where the axis is not the last
LEAST_SIDE = 32  # where else blocks would share rows whose arithmetic takes longer than their bytes
TOGETHER = 4096  # bytes of short rows that one program takes, at least: two packs for a thread
# Elements that a program takes of short rows beside each other, half as many where there is more
# than one array: 32 for a thread, or 16. What it finds out of its rows costs as much for one.
BESIDE_TILE, BESIDE_WARPS = 4096, 4
WARPS = {2048: 4, 8192: 8, 32768: 16}  # of 32-bit words in a tile: most have 16 to 64 for a thread
FEW_WARPS = {16384: 4, 32768: 8}  # where rows lie beside each other, for the same reason: up to 128
CHUNK = 32768  # bytes of all arrays read: on their way at once, they keep one SM's share busy


@dataclass(frozen=True)
class Regime:
    """Who computes a row of so many 32-bit words in registers, all arrays that stay there."""

    name: str
    words: int  # at most; of half types too, which are computed with as float32
    blocks: int  # that share the row


ROW = 32768  # words of a row, or of those beside each other, that a block has: see the table

# The first that holds the row. Beyond the table, and where there are no clusters, chunks: "passes",
# one program for a row, or "spread", as many as it has chunks.
REGIMES = (
    Regime("rows", 1024, 1),  # a row is less than one pack for each thread of 4 warps
    Regime("row", ROW, 1),  # 64 registers for each thread of 16 warps, half of all there are
    Regime("cluster", 65536, 2),  # as many, of each block
    Regime("cluster", 131072, 4),
    Regime("cluster", 262144, 8),  # 16 blocks are beyond what every GPU with clusters takes
)

# Arrays of which one has columns side by side, and another rows, meet in shared memory: half of
# what every GPU's blocks have of that.
MIXED = 12288  # words of a tile

# An H100's; other GPUs' are near enough.
SMS = 132
LIVE = 32 << 20  # bytes of rows under way that surely stay in an L2 cache of 40 or 50 MB
FEWEST = 64  # programs, of 32 KiB of loads each, that reach most of the memory's rate

TILE = 1024  # elements of a tile of sums: 8 for each thread of 4 warps
STEPS = 16  # such tiles that one program adds up; its chunk of a sum
SUM_WARPS = 4
ACROSS = 64  # elements a tile takes along a strided axis; beside them 64 bytes of float32

GRID_Y = 65535  # what CUDA allows along the second and third dimension of a grid


def _power_of_2(n: int) -> int:
    """The next one; Triton's own, of microseconds, is for kernels."""
    return 1 << (n - 1).bit_length()


@dataclass(frozen=True)
class Geometry:
    """How rows are tiled, and how many programs take how much of them."""

    regime: str
    rows: int
    across: int  # of them that lie beside each other along inner
    block: int
    parts: int  # blocks of a cluster
    warps: int
    chunks: int  # of a row; 1 where it is whole
    merge: int  # partial results merged at a time

    @property
    def whole(self) -> bool:
        return self.regime in ("rows", "row", "cluster")


def _warps(words: int, table: dict[int, int]) -> int:
    return next(w for most, w in table.items() if words <= most)


@lru_cache(maxsize=4096)
def geometry(
    n: int,
    inner: int,
    itemsize: int,
    held: int,
    wide: bool,
    clusters: bool,
    once: bool = False,
    mixed: bool = False,
) -> Geometry:
    """For rows of n elements, inner of which lie side by side.

    held: arrays whose rows are needed twice; wide: computed in float64; once: nothing is needed
    twice, so that chunks are as good as a whole row; mixed: not all arrays have the same neighbours
    in memory. Never from how many rows there are: a row's bits must not depend on its neighbours.
    """
    words = held * (2 if wide else 1)
    side = min(SIDE // itemsize, _power_of_2(inner))
    packed = inner % (16 // itemsize) == 0
    if side > 1 and not (packed and itemsize == 4):
        words *= 2  # strided addresses take as many registers, those of four float32 fewer
    block = _power_of_2(n)
    fits = ROW // (block * words)
    if held >= 4 and LEAST_SIDE // itemsize <= fits < side:
        side = fits
    room = BESIDE_TILE // (block * min(held, 2) * (2 if wide else 1))
    if inner > 1 and side <= room and not mixed:
        rows = _power_of_2(room + 1) // 2
        return Geometry("rows", rows, min(rows, _power_of_2(inner)), block, 1, BESIDE_WARPS, 1, 1)
    for regime in REGIMES:
        short = regime.name == "rows"
        if regime.blocks > 1 and (wide or once or mixed or not clusters):
            continue
        if mixed and side * block * words > MIXED:
            continue
        if (block if short and side == 1 else side * block * words) <= regime.words:
            part = block // regime.blocks
            rows = max(side, TOGETHER // itemsize // block) if short else side
            across = min(rows, _power_of_2(inner)) if inner > 1 else rows
            few = inner > 1 and regime.blocks == 1 and not mixed
            warps = _warps(rows * part * words, FEW_WARPS if few else WARPS)
            if regime.blocks > 1 and side > 1 and held < 4:
                # What a thread knows of its rows is there once for twice the values, then.
                # With masks, smoothing or probabilities it is those that take the registers.
                warps = min(warps, 8)
            return Geometry(regime.name, rows, across, part, regime.blocks, warps, 1, 1)
    chunk = CHUNK // itemsize // held // side
    if side > 1 and not packed and itemsize < 4:
        chunk //= 2  # of twice as many elements
    chunks = -(-n // chunk)
    warps = _warps(side * chunk * min(words, 2), WARPS)
    merge = max(1, 32 * warps // side)  # a thread has one: what it reads, no other has to read
    return Geometry("passes", side, side, chunk, 1, warps, chunks, merge)


def spread(tiles: int, chunks: int) -> int:
    """How many chunks a program takes, where rows are too few to give every SM one; else 0."""
    return -(-chunks // max(1, 2 * SMS // tiles)) if tiles < SMS else 0


def programs(tiles: int, row: int) -> int:
    """How many programs take tiles of so many bytes, which they read twice, one after another."""
    return min(tiles, max(FEWEST, LIVE // row))


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
def place(
    outer, inner,
    ROWS: tl.constexpr, ACROSS: tl.constexpr, PARTS: tl.constexpr, BESIDE: tl.constexpr,
):  # fmt: skip
    """Where this program's rows are: outer and inner indices, which exist; and their parts."""
    r = tl.arange(0, PARTS * ROWS)[:, None]
    o = second()
    if ACROSS < ROWS:
        o = o * (ROWS // ACROSS) + r % ROWS // ACROSS
    i = first() * ACROSS + r % ACROSS
    return o, i, (o < outer) & (i < inner // BESIDE * BESIDE), r // ROWS


@triton.jit
def place_of(tile, outer, inner, ROWS: tl.constexpr, BESIDE: tl.constexpr):
    """`place` of a tile of rows, counted along inner first."""
    tiles = (tl.full((), inner, tl.int64) + ROWS - 1) // ROWS
    o = tile // tiles
    i = (tile - o * tiles) * ROWS + tl.arange(0, ROWS)[:, None]
    return o, i, (o < outer) & (i < inner // BESIDE * BESIDE)


@triton.jit
def span(offset, n, PACK: tl.constexpr, EDGE: tl.constexpr):
    """(start, length) of a row's body; offset: elements from a sector's beginning to the row."""
    if EDGE:
        start = ((-offset) & (EDGE - 1)).to(tl.int32)
        return start, (n - start) // PACK * PACK
    else:
        return tl.full((), 0, tl.int32), n


@triton.jit
def columns(
    base, length, part, exists, BLOCK: tl.constexpr, PARTS: tl.constexpr, PACK: tl.constexpr
):
    """Columns of a tile, counted from `base` in the body, and which exist; no pack is cut."""
    left = tl.minimum(length - base, BLOCK * PARTS).to(tl.int32) // PACK * PACK
    j = part * BLOCK + tl.arange(0, BLOCK)[None, :]
    return j, exists & (j < left)


@triton.jit
def nothing():
    """0, of which the compiler does not know that."""
    if INTERPRETED:
        return 0
    else:
        return tl.inline_asm_elementwise(
            "mov.b64 $0, 0;", "=l", [], dtype=tl.int64, is_pure=False, pack=1
        )


@triton.jit
def at(array, base, j, step, PACK: tl.constexpr, BESIDE: tl.constexpr):
    """Pointers to columns base + j: PACK of them, or BESIDE rows, lie at a multiple of their size.

    Where columns are apart, a compiler that saw through it would keep a pointer to each, at two
    registers each, and have a loop over chunks step them on.
    """
    size: tl.constexpr = array.dtype.element_ty.primitive_bitwidth // 8
    if PACK > 1:
        aligned: tl.constexpr = PACK * size if PACK * size < 16 else 16
        return tl.multiple_of(array + base * step + j, [1, aligned])
    else:
        pointers = array + (nothing() + base + j.to(tl.int64)) * step
        if BESIDE > 1:
            side_aligned: tl.constexpr = BESIDE * size if BESIDE * size < 16 else 16
            pointers = tl.multiple_of(pointers, [side_aligned, 1])
        return pointers


@triton.jit
def ends(start, length, n, part, exists, LANES: tl.constexpr, EDGE: tl.constexpr):
    """Columns before the body and behind it, at most EDGE each, and which of them there are."""
    e = tl.arange(0, LANES)[None, :]
    c = tl.where(e < EDGE, start - EDGE, start + length - EDGE) + e
    mine = ((e < EDGE) & (c >= 0)) | ((e >= EDGE) & (e < 2 * EDGE) & (c < n))
    return c, exists & (part == 0) & mine


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
def product(a, b):
    """a·b, rounded before it is added to another: which of two products an addition takes in, the
    compiler chooses by what stands around it, and a row's bits must not depend on that."""
    return tl.fma(a, b, tl.zeros_like(a))


@triton.jit
def moved(m, top):
    """e^(m - top), which moves a part's sum to the row's maximum; m is `finite`, and so 0, above
    any maximum, for a part of -inf alone, whose sum is 0 as it is."""
    return exp(tl.minimum(m - top, 0.0))


@triton.jit
def joined(m, s, n, t):
    """(max, sum) of two parts; m and n are finite, or -inf where there is nothing."""
    top = tl.maximum(m, n)
    return top, s * exp(m - finite(top)) + t * exp(n - finite(top))


@triton.jit
def both_added(a, b, c, d):
    return a + c, b + d


@triton.jit
def meet():
    """All threads of a cluster; what they wrote before is seen by all behind."""
    tl.inline_asm_elementwise(
        "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned; "
        "mov.b32 $0, 0;",
        "=r", [], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def leave():
    """Says that this thread reads no other block's memory any more."""
    tl.inline_asm_elementwise(
        "barrier.cluster.arrive.release.aligned; mov.b32 $0, 0;",
        "=r", [], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def left():
    """A block must not end before all have said so."""
    tl.inline_asm_elementwise(
        "barrier.cluster.wait.aligned; mov.b32 $0, 0;",
        "=r", [], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def posted(a, b, ROWS: tl.constexpr, PARTS: tl.constexpr):
    """Two numbers of each row's part, where the other blocks find them: the place in each block.

    Triton 3.7 reduces within a block only. A thread with several rows has a box for each; threads
    with the same row write the same.
    """
    slot = tl.arange(0, PARTS * ROWS)[:, None] % ROWS
    return tl.inline_asm_elementwise(
        """{
        .shared .align 8 .b8 box[512];
        mov.u32 $0, box;
        mad.lo.u32 $0, $3, 8, $0;
        st.shared.v2.f32 [$0], {$1, $2};
        }""",
        "=&r,f,f,r", [a, b, slot], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def fetched(box, part):
    """What the block with this part of the rows has posted."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 there;
        mapa.shared::cluster.u32 there, $2, $3;
        ld.shared::cluster.v2.f32 {$0, $1}, [there];
        }""",
        "=f,=f,r,r", [box, tl.full((), part, tl.int32)], dtype=(tl.float32, tl.float32),
        is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def over_parts(a, b, ROWS: tl.constexpr, PARTS: tl.constexpr, JOIN: tl.constexpr):
    """JOIN over the blocks of a cluster, in their order.

    A loop where a thread has several rows: fetched at once, all parts of all of them would take its
    registers.
    """
    box = posted(a, b, ROWS, PARTS)
    meet()
    a, b = fetched(box, 0)
    if ROWS == 1:
        for part in tl.static_range(1, PARTS):
            c, d = fetched(box, part)
            a, b = JOIN(a, b, c, d)
    else:
        for part in range(1, PARTS):
            c, d = fetched(box, part)
            a, b = JOIN(a, b, c, d)
    return a, b


@triton.jit
def among_parts(m, s, ROWS: tl.constexpr, PARTS: tl.constexpr):
    """`joined`, over the blocks of a cluster; `leave` and `left` have to follow."""
    return over_parts(m, s, ROWS, PARTS, joined)


@triton.jit
def added_parts(a, b, ROWS: tl.constexpr, PARTS: tl.constexpr):
    """Sums over the blocks of a cluster; `leave` and `left` have to follow."""
    return over_parts(a, b, ROWS, PARTS, both_added)


@triton.jit
def merged_chunks(maxima, sums, chunks, ROWS: tl.constexpr, MERGE: tl.constexpr):
    """(m, Σ e^(x - m)) of whole rows from what their chunks left, which begins where these point.

    The same code for whoever finishes the rows; a lane takes every MERGE-th, then a tree.
    """
    m = tl.full([ROWS, MERGE], -float("inf"), maxima.dtype.element_ty)
    s = tl.zeros([ROWS, MERGE], maxima.dtype.element_ty)
    for first in range(0, chunks, MERGE):
        k = first + tl.arange(0, MERGE)[None, :]
        n = tl.load(maxima + k, mask=k < chunks, other=-float("inf"))
        t = tl.load(sums + k, mask=k < chunks, other=0.0)
        m, s = joined(m, s, n, t)
    top = finite(maximum(m))
    return top, total(tl.where(s == 0, 0.0, product(s, exp(m - top))))


@triton.jit
def added_chunks(sums, chunks, ROWS: tl.constexpr, MERGE: tl.constexpr):
    """The sum of what chunks have left."""
    s = tl.zeros([ROWS, MERGE], sums.dtype.element_ty)
    for first in range(0, chunks, MERGE):
        k = first + tl.arange(0, MERGE)[None, :]
        s += tl.load(sums + k, mask=k < chunks, other=0.0)
    return total(s)


@triton.jit
def moved_chunks(maxima, masses, sums, top, chunks, ROWS: tl.constexpr, MERGE: tl.constexpr):
    """Σ q·(top - z) from chunks' Σ q and Σ q·(maximum - z)."""
    s = tl.zeros([ROWS, MERGE], sums.dtype.element_ty)
    for first in range(0, chunks, MERGE):
        k = first + tl.arange(0, MERGE)[None, :]
        m = finite(tl.load(maxima + k, mask=k < chunks, other=0.0))
        q = tl.load(masses + k, mask=k < chunks, other=0.0)
        s += tl.load(sums + k, mask=k < chunks, other=0.0)
        s += tl.where(q == 0, 0.0, product(q, top - m))
    return total(s)


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
