"""How a GPU goes through (outer, units, inner) in memory to tell what each unit is like.

Memory is cut into rows, and those into columns of a warp's wide access. A program takes `chunk`
rows of one column and leaves five numbers, and bits that say in which columns, or runs, an element
was alive. All of it follows from the shape and the width of an access: the same sums in the same
order every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

WARP = 32  # threads, whose packs lie side by side: 512 bytes of whole packs
# Rows of a program at least: 16 KiB, where packs are of 16 bytes; of narrower ones as many more.
# What a program leaves, bits included, is 0.3 % of what it moves then.
ROWS = 32
# Programs at most, where rows allow it: eight for each place of an H100's SMs. More would leave
# more to merge.
PROGRAMS = 8 * 264
# Elements of a program at most: 2¹⁵ at each place of a tile, so that two kinds fit into one word.
COUNTED = 1 << 23
# A row has so many tiles at least, where its period leaves the choice: the last may be nearly empty
TILES = 8


@dataclass(frozen=True)
class Tiles:
    """runs: a row meets two units at most, one run of each; else every column is of one unit."""

    pack: int  # elements of an access; the last may be of fewer
    runs: bool
    pitch: int  # elements of a row
    rows: int
    chunk: int  # rows of a program, a multiple of ROWS
    across: int  # tiles of a row
    chunks: int
    together: int  # units that have a bit each in one byte, or 1
    repeats: int  # of all units in a row
    reach: int  # bytes that a unit's bits, or rows that its run, reach into at most

    @property
    def columns(self) -> int:
        """Of a tile."""
        return WARP * self.pack

    @property
    def programs(self) -> int:
        return self.across * self.chunks

    @property
    def octets(self) -> int:
        """Bytes that a chunk's bits take."""
        return self.across * self.columns // 8

    @property
    def flags(self) -> int:
        """Bytes of all bits: one a row of runs, else a bit for each column of a chunk."""
        return self.rows if self.runs else self.chunks * self.octets


def tiles(outer: int, units: int, inner: int, pack: int, whole: int) -> Tiles:
    """pack: elements of an access, whole: of one of 16 bytes."""
    size, period, columns = outer * units * inner, units * inner, WARP * pack
    runs = inner >= columns
    pitch = columns if runs else _pitch(period, pack, columns)
    rows, across = -(-size // pitch), -(-min(pitch, size) // columns)
    least = ROWS * (whole // pack)
    each = max(1, -(-rows * across // (least * PROGRAMS)))
    chunk = least * min(each, COUNTED // (least * columns))
    together = 8 if inner == 1 and units % 8 == 0 and not runs else 1
    if runs:
        repeats, reach = 1, (inner - 1) // columns + 2
    else:
        repeats, reach = pitch // period, 1 if together == 8 else (inner + 6) // 8 + 1
    return Tiles(
        pack, runs, pitch, rows, chunk, across, -(-rows // chunk), together, repeats, reach
    )


def _pitch(period: int, pack: int, columns: int) -> int:
    """Whole periods and packs, and whole tiles or many of them."""
    whole = lcm(period, pack)
    if whole >= TILES * columns:
        return whole
    exact = lcm(whole, columns)
    return exact if exact <= 2 * TILES * columns else whole * -(-TILES * columns // whole)
