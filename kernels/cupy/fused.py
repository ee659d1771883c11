"""Back through a fused activation: one kernel for all gradients, a small one for sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from math import gcd, prod
from typing import Any

import numpy as np

from . import Launch, compute_name, raw_module, reduce, text
from .elementwise import SECTOR, factor, memory, pattern, width

THREADS = 256  # of a block; fused_backward.cuh has the number too
TILES = 8  # of a row, about: whole periods then leave few of the last tile's threads idle
# Rows of a chunk: at least a few, for a block's reduction at its end costs about as much as one; at
# most so many that 2048 blocks are left, four for each place of an H100, and no sum grows long.
FEWEST_ROWS, MOST_ROWS, BLOCKS = 4, 64, 2048
# More where a block leaves many sums, that these stay below 1/128 of what it reads and writes.
SHARE, MOST_ROWS_FOR_SUMS = 128, 256
# Threads of a block of the second stage: (across channels, along one's sums)
MANY_CHANNELS, FEW_CHANNELS = (8, 64), (1, 512)

READS = {(): "NOTHING", ("x",): "X", ("dy", "x"): "DY_X", ("dy", "y"): "DY_Y"}
NAMES = ("scale", "bias", "slope")
SPELLED = {
    "none": "gpuact::Nothing",
    "number": "gpuact::Constant",
    "only": "gpuact::Only<{}>",
    "channel": "gpuact::PerChannel<{}>",
    "each": "gpuact::Input<{}>",
}

Empty = Callable[[tuple[int, ...], str], Any]


@cache
def module(
    x: str, dy: str, dx: str | None, dgate: str | None, gate: tuple[str, str],
    params: tuple[tuple[str, str], ...], gradients: tuple[tuple[str, str], ...],
    names: tuple[str, str, str], aligned: bool | None, elements: int,
) -> Any:  # fmt: skip
    """operands as (kind, dtype), gradients as (what becomes of it, dtype)."""
    forward, backward, reads = names
    defined = {
        "WIDTH_": elements,
        "FORMULA": f"gpuact::{forward}",
        "BACKWARD": f"gpuact::{backward}",
        "READS": f"gpuact::{reads}",
        "WORDS": "Undrawn" if aligned is None else f"Drawn<{str(aligned).lower()}>",
        "WRITES_DX": int(dx is not None),
        "WRITES_DGATE": int(dgate is not None),
    }
    types = {"Y": x, "DY": dy, "DX": dx or x, "DGATE": dgate or x, "C": compute_name(x)}
    types["INDEX"] = "uint64"
    for name, (kind, dtype), (mode, of) in zip(NAMES, params, gradients, strict=True):
        types |= {f"T_{name}": dtype, f"D_{name}": of}
        defined[name.upper()] = SPELLED[kind].format(f"T_{name}")
        defined[f"D_{name.upper()}"] = f"gpuact::{mode}"
        defined[f"D_{name.upper()}_TYPE"] = f"D_{name}"
    types["T_gate"] = gate[1]
    defined["GATE"] = SPELLED[gate[0]].format("T_gate")
    macros = "".join(f"#define {name} {value}\n" for name, value in defined.items())
    headers = ("formulas", "rows", "packs", "philox", "fused", "fused_backward")
    return raw_module(types, macros, "constexpr int WIDTH = WIDTH_;\n", *map(_header, headers))


@cache
def merge_module(compute: str, result: str) -> Any:
    return raw_module({"C": compute, "R": result}, *map(_header, ("rows", "merge")))


def _header(name: str) -> str:
    return text(f"{name}.cuh")


def launches(
    fusion: Any,
    dy: Any,
    x: Any,
    params: Sequence[Any],
    gate: Any,
    dx: Any,
    dgate: Any,
    dparams: Sequence[Any],
    empty: Empty,
    address: Callable[[Any], int],
) -> Iterator[Launch]:
    if x.size == 0:
        for d in dparams:
            if d is not None:
                d[...] = 0
        return

    def spec(array: Any) -> Any:
        return array.dtype, array.shape, array.strides, address(array) % SECTOR

    layout = memory(spec(x))
    if layout is None or (fusion.dropout and list(layout.axes) != sorted(layout.axes)):
        layout = memory((x.dtype, x.shape, _c_strides(x.shape, x.itemsize), 0))
    assert layout is not None
    copies: list[tuple[Any, Any]] = []  # (where a result belongs, where it is)

    def new(shape: tuple[int, ...], dtype: str) -> Any:
        """Memory whose axes lie as those of the layout."""
        order = [*(k for k in range(x.ndim) if k not in layout.axes), *layout.axes]
        made = empty(tuple(shape[axis] for axis in order), dtype)
        return made.transpose([order.index(axis) for axis in range(x.ndim)])

    def alike(array: Any) -> bool:
        return pattern(spec(array), layout) == (1, x.size)

    def dense(array: Any) -> Any:
        if array is None or alike(array):
            return array
        made = new(x.shape, array.dtype.name)
        made[...] = array
        return made

    def target(array: Any) -> Any:
        """Where to write what belongs into the array."""
        if array is None or alike(array):
            return array
        made = new(x.shape, array.dtype.name)
        copies.append((array, made))
        return made

    compute = compute_name(x.dtype.name)
    dy, x_dense, gate, dx, dgate = dense(dy), dense(x), dense(gate), target(dx), target(dgate)

    # -- parameters: what kernels read, and what becomes of their gradients
    channels: tuple[int, int] | None = None
    kinds, read, modes, written, sums = [], [], [], [], []
    for param, d in zip(params, dparams, strict=True):
        kind, mode, to = "none", "UNWANTED" if d is None else "SUMMED", None
        if isinstance(param, float):
            kind = "number"
        elif param is not None and param.size == 1:
            kind = "only"
        elif param is not None:
            found = pattern(spec(param), layout)
            if found not in (None, (1, x.size)) and channels in (None, found):
                kind, channels = "channel", found
            else:  # of another pattern: one value for each element
                kind, mode = "each", mode and ("UNWANTED" if d is None else "EACH")
                if found != (1, x.size):
                    made = new(x.shape, param.dtype.name)
                    made[...] = param
                    param = made
                if d is not None and d.shape == x.shape:
                    to = target(d)
                elif d is not None:
                    to = new(x.shape, compute)
                    sums.append((to, d))
        kinds.append((kind, param.dtype.name if kind not in ("none", "number") else compute))
        read.append(None if kind in ("none", "number") else param)
        modes.append(mode)
        written.append(to)

    # -- rows and tiles
    inner, kept = channels or (1, 1)
    arrays = [dy, x_dense, gate, dx, dgate]
    arrays += [p for p, (kind, _) in zip(read, kinds, strict=True) if kind == "each"] + written
    specs = [spec(a) for a in arrays if a is not None]
    elements, head = width(spec(x_dense), specs)
    sector = 2 * elements if elements * x.itemsize == 16 else elements
    shift, tile = -head % sector, THREADS * elements
    size, run = x.size + shift, inner * kept
    base = run * sector // gcd(run, sector)  # so that rows begin with one
    period = base * max(1, min(TILES * tile // base, -(-size // base)))
    rows = -(-size // period)
    if rows == 1:
        period = -(-size // elements) * elements
    tiles = -(-period // tile)
    offset = -shift % run
    merged = run <= tile
    entries = kept if merged else (period + offset) // inner - offset // inner + tiles
    summed = modes.count("SUMMED")
    left = (kept if merged else tile // inner + 2) if summed else 0
    traffic = sum(s[0].itemsize for s in specs)
    least = -(-2 * SHARE * left * summed * np.dtype(compute).itemsize // (tile * traffic))
    chunk = min(max(FEWEST_ROWS, rows * tiles // BLOCKS), MOST_ROWS)
    chunk = min(max(chunk, min(least, MOST_ROWS_FOR_SUMS)), rows)
    chunks = -(-rows // chunk)
    lanes = 1
    while lanes < 32 and 2 * lanes * left <= THREADS:
        lanes *= 2

    count = chunks * tiles * kept if merged else chunks * entries
    for k, mode in enumerate(modes):
        if mode == "SUMMED":
            written[k] = empty((count,), compute)

    # -- the launches
    dropout = fusion.dropout
    aligned = None if dropout is None else shift % min(4, elements) == 0
    kernels = module(
        x.dtype.name,
        dy.dtype.name,
        dx if dx is None else dx.dtype.name,
        dgate if dgate is None else dgate.dtype.name,
        ("none", compute) if gate is None else ("each", gate.dtype.name),
        tuple(kinds),
        tuple(
            (mode, compute if to is None else to.dtype.name)
            for mode, to in zip(modes, written, strict=True)
        ),
        (fusion.forward or "identity", fusion.backward or "identity", READS[fusion.reads]),
        aligned,
        elements,
    )
    numbers = [p if isinstance(p, float) else 0.0 for p in params]
    seed, start, last, gain = (
        (0, 0, 0, 0.0)
        if dropout is None
        else (dropout.seed, dropout.offset, dropout.last, dropout.scale)
    )
    words = [np.uint32(n >> s & 0xFFFFFFFF) for n in (seed, start) for s in (0, 32)]
    factors = [_signed(factor(d, 64)) for d in (inner, kept)]
    geometry = (x.size, shift, rows, chunk, period, tiles, kept, inner, *factors, offset, entries)
    args = (dy, x_dense, *read, gate, *numbers, dx, dgate, *written)
    args += (*words, np.uint32(last), gain, *geometry, np.int32(merged), np.int32(lanes))
    yield kernels, "fused_backward", (chunks * tiles,), (THREADS,), args

    blocks = chunks * tiles if merged else chunks
    for mode, partial, (kind, _), param, d in zip(
        modes, written, kinds, params, dparams, strict=True
    ):
        if mode != "SUMMED":
            continue
        if kind == "channel":
            direct = pattern(spec(d), layout) == channels
            result = d if direct else new(param.shape, d.dtype.name)
            if not direct:
                copies.append((d, result))
        else:
            result = d if kept == 1 else empty((kept,), compute)
        across, along = MANY_CHANNELS if kept >= MANY_CHANNELS[0] else FEW_CHANNELS
        args = (partial, result, blocks, period, kept, inner, offset, tile, entries)
        kernels = merge_module(compute, result.dtype.name)
        grid = (-(-kept // across),)
        yield kernels, "merge_blocks", grid, (across, along), (*args, np.int32(merged))
        if kind != "channel" and kept > 1:
            yield from reduce.launches("linear_dbias", (result,), d.reshape((1,)), empty)
    for terms, d in sums:
        yield from reduce.launches("linear_dbias", (terms,), d, empty)
    for to, made in copies:
        to[...] = made


def _c_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(itemsize * prod(shape[k + 1 :]) for k in range(len(shape)))


def _signed(n: int) -> int:
    return n - (1 << 64) if n >= 1 << 63 else n
