"""Back through a fused activation: one kernel for all gradients, a small one for sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

from . import Launch, compute_name, raw_module, reduce, text
from .elementwise import SECTOR, Spec, factor, memory, pattern, width

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
    headers = ("formulas", "compute", "packs", "philox", "fused", "fused_backward")
    return raw_module(types, macros, "constexpr int WIDTH = WIDTH_;\n", *map(_header, headers))


@cache
def merge_module(compute: str, result: str) -> Any:
    return raw_module({"C": compute, "R": result}, *map(_header, ("compute", "merge")))


def _header(name: str) -> str:
    return text(f"{name}.cuh")


class Stage(NamedTuple):
    """How one parameter's sum is finished."""

    parameter: int
    kernels: Any
    direct: bool  # the sums of channels are the result; else their sum is


class Plan(NamedTuple):
    """What runs where all arrays lie as x does, and the numbers that it takes."""

    kernels: Any
    blocks: int
    geometry: tuple[Any, ...]
    written: tuple[str, ...]  # what becomes of each parameter's gradient
    partial: int  # sums that the blocks leave, for each parameter
    compute: str
    kept: int
    merge: tuple[Any, ...]
    stages: tuple[Stage, ...]


@lru_cache(maxsize=1024)
def plan(
    names: tuple[str, str, str], dropout: bool, dy: Spec, x: Spec, gate: Spec, dx: Spec,
    dgate: Spec, params: tuple[Spec, ...], dparams: tuple[Spec, ...],
) -> Plan | None:  # fmt: skip
    """None if an array lies otherwise, or a second pattern of channels is asked for."""
    layout = memory(x)
    if layout is None or (dropout and list(layout.axes) != sorted(layout.axes)):
        return None
    size, compute = prod(x[1]), compute_name(x[0].name)
    alike = [spec for spec in (dy, x, gate, dx, dgate) if spec is not None]

    full = (1, size)
    channels: tuple[int, int] | None = None
    kinds, gradients = [], []
    for param, d in zip(params, dparams, strict=True):
        kind, dtype = ("none" if param is None else "number"), compute
        if param is not None and param is not float:
            kind, dtype, found = "only", param[0].name, pattern(param, layout)
            if prod(param[1]) > 1 and found == full:
                kind, alike = "each", [*alike, param]
            elif prod(param[1]) > 1:
                kind, channels = "channel", channels or found
                if found is None or found != channels:
                    return None
        mode, result = ("UNWANTED" if d is None else "SUMMED"), compute
        if d is not None and prod(d[1]) > 1:
            found = pattern(d, layout)
            if found == full:
                mode, result, alike = "EACH", d[0].name, [*alike, d]
            else:
                channels = channels or found
                if found is None or found != channels:
                    return None
        kinds.append((kind, dtype))
        gradients.append((mode, result))
    if any(pattern(spec, layout) != full for spec in alike):
        return None

    inner, kept = channels or (1, 1)
    elements, head = width(x, alike)
    sector = 2 * elements if elements * x[0].itemsize == 16 else elements
    shift, tile = -head % sector, THREADS * elements
    run = inner * kept
    base = run * sector // gcd(run, sector)  # so that rows begin with one
    period = base * max(1, min(TILES * tile // base, -(-(size + shift) // base)))
    rows = -(-(size + shift) // period)
    if rows == 1:
        period = -(-(size + shift) // elements) * elements
    tiles = -(-period // tile)
    offset = -shift % run
    merged = run <= tile
    entries = kept if merged else (period + offset) // inner - offset // inner + tiles
    summed = sum(mode == "SUMMED" for mode, _ in gradients)
    left = (kept if merged else tile // inner + 2) if summed else 0  # by a block

    traffic = sum(spec[0].itemsize for spec in alike)
    least = -(-2 * SHARE * left * summed * np.dtype(compute).itemsize // (tile * traffic))
    chunk = min(max(FEWEST_ROWS, rows * tiles // BLOCKS), MOST_ROWS)
    chunks = max(1, rows // max(chunk, min(least, MOST_ROWS_FOR_SUMS)))
    chunk = -(-rows // chunks)
    chunks = -(-rows // chunk)
    lanes = 1
    while lanes < 32 and 2 * lanes * left <= THREADS:
        lanes *= 2

    kernels = module(
        x[0].name,
        dy[0].name,
        dx and dx[0].name,
        dgate and dgate[0].name,
        ("none", compute) if gate is None else ("each", gate[0].name),
        tuple(kinds),
        tuple(gradients),
        names,
        shift % min(4, elements) == 0 if dropout else None,
        elements,
    )
    factors = [_signed(factor(d, 64)) for d in (inner, kept)]
    geometry = (size, shift, rows, chunk, period, tiles, kept, inner, *factors, offset, entries)
    stages = []
    for k, ((mode, _), d) in enumerate(zip(gradients, dparams, strict=True)):
        if mode == "SUMMED":
            direct = prod(d[1]) == kept
            result = d[0].name if direct else compute
            stages.append(Stage(k, merge_module(compute, result), direct))
    return Plan(
        kernels,
        chunks * tiles,
        (*geometry, np.int32(merged), np.int32(lanes)),
        tuple(mode for mode, _ in gradients),
        chunks * tiles * kept if merged else chunks * entries,
        compute,
        kept,
        (chunks * tiles if merged else chunks, period, kept, inner, offset, tile, entries)
        + (np.int32(merged),),
        tuple(stages),
    )


def launches(
    names: tuple[str, str, str],
    dropout: Any,
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
    """names: the formulas forward and backward, and what backward reads."""

    def spec(array: Any) -> Spec:
        if array is None:
            return None
        if isinstance(array, float):
            return float
        return array.dtype, array.shape, array.strides, address(array) % SECTOR

    if x.size == 0:
        for d in dparams:
            if d is not None:
                d[...] = 0
        return
    operands = [spec(a) for a in (dy, x, gate, dx, dgate)]
    specs = tuple([spec(p) for p in params]), tuple([spec(d) for d in dparams])
    found = plan(names, dropout is not None, *operands, *specs)
    if found is None:
        arrays = (dy, x, params, gate, dx, dgate, dparams)
        yield from _unlike(names, dropout, *arrays, empty, address, spec)
        return

    read = [None if isinstance(p, float) else p for p in params]
    numbers = [p if isinstance(p, float) else 0.0 for p in params]
    written = [
        empty((found.partial,), found.compute) if mode == "SUMMED" else d
        for mode, d in zip(found.written, dparams, strict=True)
    ]
    words = NO_WORDS if dropout is None else _words(dropout)
    args = (dy, x, *read, gate, *numbers, dx, dgate, *written, *words, *found.geometry)
    yield Launch(found.kernels, "fused_backward", (found.blocks,), (THREADS,), args)

    across, along = MANY_CHANNELS if found.kept >= MANY_CHANNELS[0] else FEW_CHANNELS
    for k, kernels, direct in found.stages:
        result = dparams[k] if direct else empty((found.kept,), found.compute)
        merge = (written[k], result, *found.merge)
        blocks = -(-found.kept // across)
        yield Launch(kernels, "merge_blocks", (blocks,), (across, along), merge)
        if not direct:
            yield from reduce.launches("linear_dbias", (result,), dparams[k].reshape((1,)), empty)


NO_WORDS = (*[np.uint32(0)] * 5, 0.0)


def _words(dropout: Any) -> tuple[Any, ...]:
    halves = (n >> s & 0xFFFFFFFF for n in (dropout.seed, dropout.offset) for s in (0, 32))
    return (*map(np.uint32, halves), np.uint32(dropout.last), dropout.scale)


def _unlike(
    names: tuple[str, str, str], dropout: Any, dy: Any, x: Any, params: Sequence[Any], gate: Any,
    dx: Any, dgate: Any, dparams: Sequence[Any], empty: Empty, address: Callable[[Any], int],
    spec: Callable[[Any], Spec],
) -> Iterator[Launch]:  # fmt: skip
    """The same by way of arrays that lie alike: copies of what is read, memory for results."""
    layout = memory(spec(x))
    if layout is None or (dropout is not None and list(layout.axes) != sorted(layout.axes)):
        strides = tuple(x.itemsize * prod(x.shape[k + 1 :]) for k in range(x.ndim))
        layout = memory((x.dtype, x.shape, strides, 0))
    assert layout is not None
    order = [*(k for k in range(x.ndim) if k not in layout.axes), *layout.axes]
    copies: list[tuple[Any, Any]] = []  # (where a result belongs, where it is)
    sums: list[tuple[Any, Any]] = []  # (a gradient, the terms that it is the sum of)

    def new(shape: tuple[int, ...], dtype: str) -> Any:
        made = empty(tuple(shape[axis] for axis in order), dtype)
        return made.transpose([order.index(axis) for axis in range(x.ndim)])

    def lies(array: Any, rule: tuple[int, int]) -> bool:
        return array is None or pattern(spec(array), layout) == rule

    full = (1, x.size)

    def dense(array: Any) -> Any:
        if lies(array, full):
            return array
        made = new(x.shape, array.dtype.name)
        made[...] = array
        return made

    def target(array: Any, rule: tuple[int, int] = full) -> Any:
        if lies(array, rule):
            return array
        made = new(array.shape, array.dtype.name)
        copies.append((array, made))
        return made

    def rule(shape: tuple[int, ...]) -> tuple[int, int] | None:
        """The pattern of an array of this shape whose axes lie as those of the layout."""
        n, strides = 1, [0] * x.ndim
        for axis in reversed(layout.axes):
            strides[axis], n = n, n * shape[axis]
        return pattern((np.dtype(np.int8), shape, tuple(strides), 0), layout)

    channels: tuple[int, int] | None = None
    read, written = [], []
    for param, d in zip(params, dparams, strict=True):
        if param is not None and not isinstance(param, float) and param.size > 1:
            found = pattern(spec(param), layout)
            if found not in (None, full) and channels in (None, found):
                channels = found
            else:
                param = dense(param)  # a value for each element
        if d is not None and d.size > 1:
            found = rule(d.shape)
            if found is not None and found in (full, channels or found):
                channels = channels if found == full else found
                d = target(d, found)
            else:  # a gradient for each element, which is added up
                sums.append((d, new(x.shape, compute_name(x.dtype.name))))
                d = sums[-1][1]
        read.append(param)
        written.append(d)
    arrays = (dense(dy), dense(x), read, dense(gate), target(dx), target(dgate), written)
    yield from launches(names, dropout, *arrays, empty, address)
    for d, terms in sums:
        yield from reduce.launches("linear_dbias", (terms,), d, empty)
    for to, made in copies:
        to[...] = made


def _signed(n: int) -> int:
    return n - (1 << 64) if n >= 1 << 63 else n
