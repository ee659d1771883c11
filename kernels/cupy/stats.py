"""An activation and statistics of its outputs in one pass, and what adds these up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np

from . import Launch, compute_name, raw_module, text
from .elementwise import NARROW, factor

if TYPE_CHECKING:
    from ..tiles import Tiles

OBSERVE_THREADS, FOLD_THREADS = 128, 256  # of a block; stats.cuh and fold.cuh have them too
# Bytes for a thread of `fold`, as many as it loads at once; of more, a unit has more threads.
SLOTS = 4
FEWEST_LANES = 8  # threads of a unit

# How kernels spell a parameter: there is none, one for all, one a unit of columns or of runs
NONE, NUMBER, ONLY, COLUMNS, RUNS = "Nothing", "Constant", "Only", "OfColumns", "OfRuns"

Empty = Callable[[tuple[int, ...], str], Any]


@cache
def module(
    formula: str | None, x: str, parameter: tuple[str, str], saturates: str, writes: bool,
    runs: bool, pack: int, index: str,
) -> Any:  # fmt: skip
    """parameter as (kind, dtype); saturates: NOTHING, BELOW or OUTSIDE."""
    kind, dtype = parameter
    defined = {
        "WIDTH_": pack,
        "FORMULA": f"gpuact::{formula or 'identity'}",
        "PARAMETER": kind,
        "SATURATES": saturates,
        "COMPUTES": int(formula is not None),
        "WRITES": int(writes),
        "RUNS": int(runs),
    }
    types = {"Y": x, "P": dtype, "C": compute_name(x), "INDEX": index}
    macros = "".join(f"#define {name} {value}\n" for name, value in defined.items())
    headers = ("formulas", "packs", "philox", "fused", "stats")
    return raw_module(types, macros, "constexpr int WIDTH = WIDTH_;\n", *map(_header, headers))


@cache
def fold_module(compute: str, index: str) -> Any:
    return raw_module({"C": compute, "INDEX": index}, _header("fold"))


def _header(name: str) -> str:
    return text(f"{name}.cuh")


def launches(
    formula: str | None,
    x: Any,
    out: Any,
    parameter: Any,
    bounds: tuple[float | None, float | None],
    moments: Any,
    alive: Any,
    cut: Tiles,
    empty: Empty,
) -> Iterator[Launch]:
    """x and out are (outer, units, inner), contiguous, and cut so."""
    outer, units, inner = x.shape
    compute = compute_name(x.dtype.name)
    low, high = [np.dtype(compute).type(nan if bound is None else bound) for bound in bounds]
    saturates = "NOTHING" if bounds == (None, None) else "BELOW" if bounds[1] is None else "OUTSIDE"
    bits = 64 if cut.rows * cut.pitch > NARROW else 32
    index = f"uint{bits}"
    kind = _kind(parameter, cut.runs)
    array, number = (None, parameter) if kind == NUMBER else (parameter, 0.0)
    dtype = x.dtype.name if array is None else array.dtype.name
    kernels = module(
        formula, x.dtype.name, (kind, dtype), saturates, out is not None, cut.runs, cut.pack, index
    )  # fmt: skip
    parts = empty((5, cut.programs), compute)
    flags = None if saturates == "NOTHING" else empty((cut.flags,), "uint8")
    divisors = [n for d in (inner, units) for n in (d, np.uint64(factor(d, bits)))]
    args = (x, out, parts, flags, array, number, low, high)
    geometry = (x.size, cut.pitch, cut.rows, cut.chunk, *divisors)
    yield Launch(
        kernels, "observe", (cut.across, cut.chunks), (OBSERVE_THREADS,), (*args, *geometry)
    )

    slots = 0
    if flags is not None:
        slots = cut.reach * (outer if cut.runs else cut.chunks * cut.repeats)
    lanes = FEWEST_LANES
    while lanes < FOLD_THREADS and SLOTS * lanes < slots:
        lanes *= 2
    across = FOLD_THREADS // lanes
    blocks = 1 + -(-units // (cut.together * across))
    geometry = (cut.programs, cut.octets, units, inner, slots, cut.reach, cut.repeats)
    kinds = map(np.int32, (cut.runs, cut.together, cut.columns.bit_length() - 1))
    args = (parts, flags, moments, alive, *geometry, *kinds)
    yield Launch(fold_module(compute, index), "fold", (blocks,), (across, lanes), args)


def _kind(parameter: Any, runs: bool) -> str:
    if parameter is None:
        return NONE
    if isinstance(parameter, float):
        return NUMBER
    if parameter.size == 1:
        return ONLY
    return RUNS if runs else COLUMNS
