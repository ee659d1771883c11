"""Which regime runs rows, and how it is launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from . import Launch, compute_name, element_strides, raw_module, text

PACK = 16  # bytes
LANES = 16  # of a chunk
CHUNK = 2048  # bytes of a row that they have; rows.cuh has the same three
WARP = 32
UNITS = 16  # chunks of a block of 256 threads, of which there is room for two or three

# Blocks that two_passes has at least and, at most, bytes of the rows that they read at a time: an
# H100's multiprocessors, and half its L2, where the second reading is to find them.
SMS, LIVE = 132, 24 << 20
# Where a row is spread over the chip, a block has 16 KB of it: more blocks than places for them.
SPREAD_UNITS = 8
STATIC = 48 << 10  # bytes of shared memory that a kernel may declare
# From a sector on, rows side by side are read a warp at a time, not element by element.
SIDE_BY_SIDE = 32  # bytes
# A thread has a row whole that lies side by side with others, of fewer packs than these, all arrays
# together: on their way its elements, of half types too, take a register each. Of shorter ones it
# has several, if there are many. Its blocks are small, for there may be few.
THREADS_OWN, OWN_BLOCK = 8, 64
# How threads have rows that lie side by side: so many threads next to each other, rows of each, and
# chunks of each row; and how many of these slices are in registers, the others in shared memory.
# The first for which a block has memory and a cluster room for the whole of a row: it has 128 bytes
# side by side, if that can be, and leaves room for another block.
LAYOUTS = (
    *((32, 2, 1, 0), (32, 2, 1, 1)),  # of half types
    *((32, 1, 1, 0), (32, 1, 2, 0), (16, 1, 1, 0)),
)

Empty = Callable[[tuple[int, ...], str], Any]


class Device(NamedTuple):
    """What of a GPU matters here."""

    clusters: int  # blocks of a cluster at most
    shared: int  # bytes of shared memory that a block may have
    more: int = 0  # registers, for a block less, that a thread wants where 128 or 168 just do

    @classmethod
    def of(cls, capability: int) -> Device:
        large = {80: 163, 87: 163, 90: 227, 100: 227, 103: 227, 110: 227}
        clusters = 1 if capability < 90 else 16 if capability in large else 8
        return cls(clusters, large.get(capability, 99) << 10, 24 if capability >= 120 else 0)


class Regime(NamedTuple):
    """For rows of up to `longest` bytes, on conditions."""

    name: str
    variant: int  # lanes of a row, packs of a lane, or blocks of a cluster
    threads: int  # of a block, at most
    longest: float  # bytes of a row
    shortest: int = 0
    needs: frozenset[str] = frozenset()


# Rows follow each other, or begin at multiples of 16 bytes, or go element by element.
TOGETHER = frozenset({"together"})
FEW = frozenset({"few"})  # rows, that is: a block each would leave multiprocessors without work
MANY = frozenset({"many"})
WIDE = frozenset({"wide"})  # a thread does with 128 registers, and a block may have 512
ENDLESS = float("inf")

# The first that fits; all give the same bits.
REGIMES = (
    # A lane has a whole pack: so many lanes have a row, and a warp has many.
    Regime("short_rows", 1, 128, 1 * PACK, needs=TOGETHER),
    Regime("short_rows", 2, 128, 2 * PACK, needs=TOGETHER),
    Regime("short_rows", 4, 128, 4 * PACK, needs=TOGETHER),
    Regime("short_rows", 8, 128, 8 * PACK, needs=TOGETHER),
    Regime("short_rows", 16, 128, 16 * PACK, needs=TOGETHER),
    # A few rows that fit into a block each are spread over 8, to bring more memory to work on them.
    Regime("cluster", 8, 256, 8 * UNITS * CHUNK, UNITS * CHUNK, FEW),
    # The registers of 16 lanes hold a chunk. Short rows share a block; their lanes hold fewer
    # packs, so that the registers make room for more blocks.
    Regime("whole_rows", 2, 256, CHUNK // 4),
    Regime("whole_rows", 4, 256, CHUNK // 2),
    Regime("whole_rows", 8, 256, UNITS * CHUNK),
    # Longer rows stay in registers of a cluster; not every GPU has clusters, and not all have 16.
    Regime("cluster", 2, 256, 2 * UNITS * CHUNK),
    Regime("cluster", 4, 256, 4 * UNITS * CHUNK),
    Regime("cluster", 8, 256, 8 * UNITS * CHUNK),
    Regime("cluster", 16, 256, 16 * UNITS * CHUNK),
    # Then of larger blocks, of which there may be room for one: up to 256K columns of float32.
    Regime("whole_rows", 8, 512, 2 * UNITS * CHUNK, needs=WIDE),
    Regime("cluster", 8, 512, 16 * UNITS * CHUNK, needs=WIDE),
    Regime("cluster", 16, 512, 32 * UNITS * CHUNK, needs=WIDE),
    # Or they are read twice, the second time from L2 ...
    Regime("two_passes", 0, 256, 1024 * CHUNK, needs=MANY),
    # ... but from memory, where a row by itself is to fill the chip.
    Regime("spread", 0, 256, ENDLESS),
)


def regime(longest: int, clusters: int, has: frozenset[str]) -> Regime:
    """For rows of so many bytes, clusters of so many blocks."""
    return next(
        r
        for r in REGIMES
        if r.shortest <= longest <= r.longest
        and r.needs <= has
        and (r.name != "cluster" or r.variant <= clusters)
    )


class Operation(NamedTuple):
    """What a header's operation is told, and what is known of it here."""

    header: str
    kernel: str  # its name
    arguments: tuple[Any, ...]
    types: Mapping[str, str]
    macros: Mapping[str, Any]
    fields: int  # numbers that a chunk is reduced to; 0: chunks have nothing to do with each other
    finishes: bool = True  # whether it writes an array
    plain: bool = False  # whether half of 128 registers are enough for a thread, or
    registers: int = 128  # how many it has to have, and
    scarce: bool = False  # whether they just do


@dataclass(frozen=True)
class Rows:
    """The rows of some arrays of one shape and dtype, (outer, n, inner)."""

    views: tuple[Any, ...]
    device: Device
    address: Callable[[Any], int]

    @property
    def count(self) -> int:
        return int(self.views[0].shape[0] * self.views[0].shape[2])

    @property
    def itemsize(self) -> int:
        return int(self.views[0].itemsize)

    @property
    def bytes(self) -> int:
        return int(self.views[0].shape[1]) * self.itemsize

    @property
    def chunks(self) -> int:
        return -(-self.bytes // CHUNK)

    def access(self) -> str:
        """How memory is read and written: see rows.cuh."""
        if any(element_strides(v)[1] != 1 and v.shape[1] > 1 for v in self.views):
            return "APART"
        return "ALIGNED" if all(map(self._aligned, self.views)) else "ANYWHERE"

    def _aligned(self, view: Any) -> bool:
        outer, n, inner = view.shape
        outer_step, _, inner_step = element_strides(view)
        steps = [n, *([outer_step] if outer > 1 else []), *([inner_step] if inner > 1 else [])]
        whole = all(s * self.itemsize % PACK == 0 for s in steps)
        return whole and self.address(view) % PACK == 0

    def follow(self) -> bool:
        """Whether rows lie one behind the other, or their elements apart."""
        return all(map(self._follow, self.views))

    def _follow(self, view: Any) -> bool:
        outer, n, inner = view.shape
        outer_step, step, inner_step = element_strides(view)
        if step != 1 and n > 1:
            return True
        return (inner == 1 or inner_step == n) and (outer == 1 or outer_step == n * inner)

    def beside(self) -> bool:
        """Whether rows lie side by side, enough of them."""
        return self.views[0].shape[2] * self.itemsize >= SIDE_BY_SIDE and self.abreast(1)

    def abreast(self, count: int) -> bool:
        """Whether rows lie side by side, and one access takes an element of each of `count`."""
        if self.views[0].shape[2] % count:
            return False
        for view in self.views:
            outer_step, step, inner_step = element_strides(view)
            if inner_step != 1 or step % count or (outer_step % count and view.shape[0] > 1):
                return False
            if self.address(view) % (count * self.itemsize):
                return False
        return True


@cache
def module(
    header: str, types: tuple[tuple[str, str], ...], macros: tuple[tuple[str, Any], ...]
) -> Any:
    defined = "".join(f"#define GPUACT_{name} {value}\n" for name, value in macros)
    headers = ("compute", "formulas", "rows", "regimes", "beside", header, "entry")
    return raw_module(dict(types), defined, *(text(f"{h}.cuh") for h in headers), contract=False)


class Plan(NamedTuple):
    """An operation and its rows, about to be launched."""

    operation: Operation
    rows: Rows

    def registers(self, name: str, threads: int) -> int:
        """What a thread may have: more of them, or room for another block."""
        operation, rows = self
        if name == "short_rows":
            return 168 + rows.device.more
        if name == "columns":  # of three warps for each quarter of a multiprocessor, or two
            return 168 if packs_of_all(operation, rows) <= THREADS_OWN // 2 else 255
        one_array = len(rows.views) == 1 + operation.finishes
        plain = operation.plain and one_array and rows.itemsize < 8 and rows.access() != "APART"
        if plain and name in ("whole_rows", "cluster", "beside"):
            return 80 if threads == 256 else 64
        more = rows.device.more if operation.scarce else 0
        return operation.registers + more if threads == 256 else 128

    def launch(
        self,
        name: str,
        variant: tuple[Any, ...],
        blocks: int,
        threads: int,
        shared: int,
        per_block: int = 1,
        cluster: int = 1,
        parts: Any = None,
    ) -> Launch:
        operation, rows = self.operation, self.rows
        view = rows.views[0]
        dtype = view.dtype.name
        types = {"X": dtype, "C": compute_name(dtype), **operation.types}
        kernel = f"{operation.kernel}_{name}"
        one_size = name in ("short_rows", "columns")  # of block; others share what is compiled
        bound = threads if one_size else max(threads, WARP * UNITS // 2)
        registers = self.registers(name, bound)
        macros = {
            **operation.macros,
            "KERNEL": kernel,
            "REGIME": name,
            "VARIANT": ", ".join(map(str, variant)),
            "THREADS": bound,
            "BLOCKS": 65536 // registers // bound,
        }
        if cluster > 1:
            macros["CLUSTERED"] = cluster
        built = module(operation.header, tuple(types.items()), tuple(macros.items()))
        _, n, inner = view.shape
        numbers = (rows.count, n, inner, np.int32(per_block), np.int32(rows.chunks))
        given = (*operation.arguments, parts, *numbers)
        return Launch(built, kernel, (blocks,), (threads,), given, shared, cluster)


def launches(operation: Operation, rows: Rows, empty: Empty) -> Iterator[Launch]:
    several = rows.views[0].shape[2] > 1 and rows.abreast(1)
    if several and packs_of_all(operation, rows) < THREADS_OWN:
        return _columns(operation, rows)
    if rows.beside():
        return _beside(operation, rows, empty)
    return _behind(operation, rows, empty)


def packs_of_all(operation: Operation, rows: Rows) -> int:
    """Of a row, in all arrays that are read."""
    return -(-rows.bytes // PACK) * (len(rows.views) - operation.finishes)


def _columns(operation: Operation, rows: Rows) -> Iterator[Launch]:
    """Short rows side by side, each with a thread."""
    packs = -(-rows.bytes // PACK)
    sides = next(
        count
        for count in (8, 4, 2, 1)
        if count * rows.itemsize <= PACK
        and count * packs_of_all(operation, rows) <= THREADS_OWN
        and rows.abreast(count)
        and (count == 1 or rows.count >= count * OWN_BLOCK * SMS)
    )
    blocks = -(-rows.count // (sides * OWN_BLOCK))
    yield Plan(operation, rows).launch("columns", (packs, sides), blocks, OWN_BLOCK, 0)


def _behind(operation: Operation, rows: Rows, empty: Empty) -> Iterator[Launch]:
    """Rows of one stride: one behind the other, if it is 1."""
    plan = Plan(operation, rows)
    access = rows.access()
    together = access == "ALIGNED" or rows.follow()
    if not together and rows.bytes <= LANES * PACK:
        access, together = "SCATTERED", True
    filled = rows.count * -(-rows.chunks // UNITS) * 2 > SMS
    has = {
        "together": together,
        "few": not filled,
        "many": filled,
        "wide": operation.registers <= 128,
    }
    clusters = rows.device.clusters if operation.fields else 1
    chosen = regime(rows.bytes, clusters, frozenset(name for name, holds in has.items() if holds))
    name = chosen.name
    if not operation.fields and name == "two_passes":
        name = "spread"

    def start(
        name: str, blocks: int, units: int, packs: int = 8, per_block: int = 1, **more: Any
    ) -> Launch:
        threads = WARP * -(-units // 2)
        staged = access not in ("ALIGNED", "SCATTERED")
        shared = threads * packs * PACK + 6 * PACK if staged else 0
        return plan.launch(
            name, (chosen.variant, f"gpuact::{access}"), blocks, threads, shared, per_block, **more
        )

    if name == "short_rows":
        per_block = 8 * chosen.threads // chosen.variant
        blocks = -(-rows.count // per_block)
        yield start(name, blocks, chosen.threads // LANES, per_block=per_block)
    elif name == "whole_rows":
        per_block = max(1, chosen.threads // LANES // rows.chunks) if together else 1
        blocks = -(-rows.count // per_block)
        yield start(name, blocks, per_block * rows.chunks, chosen.variant, per_block)
    elif name == "cluster":
        cluster = chosen.variant
        share = -(-rows.chunks // cluster)
        yield start(name, rows.count * cluster, share + share % 2, cluster=cluster)
    elif name == "two_passes":
        yield start(name, min(rows.count, max(SMS, LIVE // rows.bytes)), UNITS)
    else:
        blocks = rows.count * -(-rows.chunks // SPREAD_UNITS)
        yield from _spread(
            plan, empty, lambda name, parts: start(name, blocks, SPREAD_UNITS, parts=parts)
        )


def _spread(
    plan: Plan, empty: Empty, start: Callable[[str, Any], Launch], prefix: str = ""
) -> Iterator[Launch]:
    """Over the chip: the parts of chunks, the rows, their elements."""
    operation, rows = plan.operation, plan.rows
    parts = None
    if operation.fields:
        shape = (rows.chunks, rows.count, operation.fields)
        parts = empty(shape, compute_name(rows.views[0].dtype.name))
        yield start(f"{prefix}measured", parts)
        blocks = -(-rows.count * LANES // 256)
        yield plan.launch("merged", (0, "gpuact::ALIGNED"), blocks, 256, 0, parts=parts)
    if operation.finishes:
        yield start(f"{prefix}finished", parts)


def _beside(operation: Operation, rows: Rows, empty: Empty) -> Iterator[Launch]:
    """Rows side by side, a warp's width of them at a time."""
    plan = Plan(operation, rows)
    outer, n, inner = rows.views[0].shape
    width = PACK // rows.itemsize
    packs = _power_of_2(min(8, -(-n // (LANES * width))))  # of a lane and slice
    lanes = _power_of_2(min(LANES, -(-n // width)))
    most = rows.device.clusters if operation.fields else 1  # blocks of a cluster
    fitting = list(_fitting(plan, packs, most))
    whole = [fit for fit in fitting if rows.chunks <= most * fit[2]]
    across, sides, groups, kept, shared = (whole or fitting)[0]
    tiles = outer * -(-inner // (across * sides))
    blocks = -(-tiles // (LANES // lanes))
    words = str(sides == 2 and rows.itemsize == 2 and rows.abreast(2)).lower()

    def start(name: str, count: int, cluster: int = 1, parts: Any = None) -> Launch:
        layout = f"gpuact::Layout<{packs}, {across}, {sides}, {groups}, {kept}, {words}, {cluster}>"
        return plan.launch(name, (layout,), count, LANES * across, shared, lanes, cluster, parts)

    if whole:
        cluster = _power_of_2(-(-rows.chunks // groups))
        yield start("beside", blocks * cluster, cluster)
    else:
        count = blocks * -(-rows.chunks // groups)
        yield from _spread(
            plan, empty, lambda name, parts: start(name, count, parts=parts), "beside_"
        )


def _fitting(plan: Plan, packs: int, most: int) -> Iterator[tuple[int, int, int, int, int]]:
    """The layouts that a block has memory for, and how much of it their slices take."""
    operation, rows = plan
    arrays = len(rows.views) - operation.finishes
    part = operation.fields * np.dtype(compute_name(rows.views[0].dtype.name)).itemsize
    for across, sides, groups, kept in LAYOUTS:
        shared = (sides * groups * arrays - kept) * packs * PACK * LANES * across
        parts = across * sides * (LANES * groups + max(LANES, most * groups)) * part
        fits = parts <= STATIC and shared + parts <= rows.device.shared
        # One array leaves no room behind it for what registers give back.
        if fits and (sides == 1 or rows.itemsize == 2) and (arrays > 1 or not kept):
            yield across, sides, groups, kept, shared


def _power_of_2(n: int) -> int:
    """The next one."""
    return 1 << (n - 1).bit_length()


def view_arguments(view: Any) -> tuple[Any, ...]:
    """An array of three axes as a kernel takes it."""
    return (None, 0, 0, 0) if view is None else (view, *element_strides(view))
