"""Elementwise formulas, alone and fused, as CuPy ElementwiseKernels.

Arrays that lie alike in dense memory run flat, in packs of 16 bytes (packs.cuh); all others as
CuPy's ElementwiseKernel has it, element by element with CuPy's strides and broadcasting.

A plan says which kernel runs and with which numbers. It depends on dtypes, shapes, strides and
addresses modulo 16 alone, and is looked up by them: nothing is inspected twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from math import prod
from typing import Any, NamedTuple

import cupy

from . import text, typedefs

BLOCK = 128  # threads; packs.cuh has both numbers too
BYTES = 32  # of one array, for each thread
MOST_PACKS = 16  # for each thread
SECTOR = 32  # bytes: what memory moves at least
NARROW = 1 << 30  # arrays with more elements are counted in 64 bits

# An array as a plan sees it: dtype, shape, strides in bytes, address modulo SECTOR. Beside arrays
# there are numbers (float) and operands that there are not (None).
Spec = Any

# How kernels spell an operand: n is its name, t its type, c its channels
PACKED = {
    "array": "Array<{t}>({n})",
    "channel": "Channel<{t}>({n}, {c})",
    "channel pack": "ChannelPack<{t}>({n}, {c})",
    "any channel": "AnyChannel<{t}>({n}, {c})",
    "number": "Number{{C({n})}}",
    "absent": "Absent{{}}",
    "aligned words": "Words<true>({n})",
    "words": "Words<false>({n})",
}
STRIDED = {
    "array": "as<C>({n})",
    "number": "C({n})",
    "absent": "Absent{{}}",
    "words": "{n}.word(i)",
}
LETTERS = "ABDEFGHJK"  # types that a strided kernel leaves open: CuPy wants one letter

# What a fused kernel takes besides: the generator's numbers, which elements drop, what others gain
DROPOUT = ("seed0", "seed1", "offset0", "offset1", "last")
GENERATOR = "Philox{{seed0, seed1}, {offset0, offset1}}"


class Plan(NamedTuple):
    kernel: Any
    numbers: tuple[int, ...]  # behind those of the call
    size: int | None  # threads; None for CuPy's own loop over strided arrays


class Layout(NamedTuple):
    """Dense memory: the shape in its order, without axes of size 1, and which axes these are."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]


class Operand(NamedTuple):
    kind: str
    dtype: str = ""
    channels: int = 0  # which of the kernel's patterns


@lru_cache(maxsize=4096)
def plan(formula: str, dropout: bool | None, *specs: Spec) -> Plan:
    """For the result and operands. dropout: None for a formula by itself, else fused."""
    out, *operands = specs
    packed = pack(dropout, operands, out)
    if packed is None:
        kinds = [_kind(spec) for spec in operands]
        return Plan(strided_kernel(formula, dropout, tuple(kinds)), (), None)
    return _packed_plan(formula, dropout, out, *packed)


def _kind(spec: Spec) -> str:
    return {float: "number", None: "absent"}.get(spec, "array")


def memory(spec: Spec) -> Layout | None:
    """How an array lies in memory; None if elements are missing there or stand for several."""
    dtype, shape, strides, _ = spec
    axes = [axis for axis, n in enumerate(shape) if n > 1]
    axes.sort(key=lambda axis: -strides[axis])
    step = dtype.itemsize
    for axis in reversed(axes):
        if strides[axis] != step:
            return None
        step *= shape[axis]
    return Layout(tuple(shape[axis] for axis in axes), tuple(axes))


def pattern(spec: Spec, layout: Layout) -> tuple[int, int] | None:
    """(inner, count) if element i in that memory goes with element i // inner % count of this.

    (1, n) is then the array that lies like it. None if there is no such rule.
    """
    dtype, shape, strides, _ = spec
    used = [k for k, axis in enumerate(layout.axes) if shape[axis] > 1 and strides[axis]]
    if not used:
        return 1, 1
    first, last = used[0], used[-1]
    step = dtype.itemsize
    for k in reversed(range(first, last + 1)):
        axis = layout.axes[k]
        if shape[axis] == 1 or strides[axis] != step:
            return None
        step *= shape[axis]
    return prod(layout.shape[last + 1 :]), prod(layout.shape[first : last + 1])


def width(out: Spec, alike: Sequence[Spec]) -> tuple[int, int]:
    """The widest pack that all these arrays share, and the element where the first one begins.

    Packs of 16 bytes begin with a sector of the result's (a warp would touch one more than it
    fills), and of all arrays that share their address so far.
    """
    size, phase = out[0].itemsize, out[3]
    elements = 16 // size
    while elements > 1:
        heads = []
        for dtype, _, _, place in alike:
            unit = min(16, elements * dtype.itemsize)
            heads.append((-place % unit // dtype.itemsize, unit // dtype.itemsize))
        head = max(heads, key=lambda pair: pair[1])[0]
        if all(head % modulus == h for h, modulus in heads):
            odd = elements * size == 16 and (phase + head * size) % SECTOR
            return elements, head + elements if odd else head
        elements //= 2
    return 1, 0


def pack(
    dropout: bool | None, operands: Sequence[Spec], out: Spec
) -> tuple[int, int, list[Operand], list[tuple[int, int]]] | None:
    """Width, head, operands and their patterns; None if the arrays cannot go in packs."""
    layout = memory(out)
    if layout is None or (dropout and list(layout.axes) != sorted(layout.axes)):
        return None  # words go by the logical order
    size = prod(layout.shape)
    arrays = {k: spec for k, spec in enumerate(operands) if _kind(spec) == "array"}
    patterns: dict[int, tuple[int, int]] = {}
    for k, spec in arrays.items():
        found = pattern(spec, layout)
        if found is None:
            return None
        patterns[k] = found
    alike = [spec for k, spec in arrays.items() if patterns[k] == (1, size)]
    elements, head = width(out, [*alike, out])
    head = min(head, size)
    distinct = [p for p in dict.fromkeys(patterns.values()) if p != (1, size)]

    def operand(k: int, spec: Spec) -> Operand:
        if k not in arrays:
            return Operand(_kind(spec))
        name, p = spec[0].name, patterns[k]
        if p == (1, size):
            return Operand("array", name)
        inner, count = p
        whole = count % elements == 0 and spec[3] % min(16, elements * spec[0].itemsize) == 0
        if count == 1 or (head == 0 and inner % elements == 0):
            return Operand("channel", name, distinct.index(p))
        kind = "channel pack" if head == 0 and inner == 1 and whole else "any channel"
        return Operand(kind, name, distinct.index(p))

    spelled = [operand(k, spec) for k, spec in enumerate(operands)]
    if dropout:
        spelled.insert(WORDS, Operand("words" if head % min(4, elements) else "aligned words"))
    elif dropout is not None:
        spelled.insert(WORDS, Operand("absent"))
    return elements, head, spelled, distinct


WORDS = 4  # the place of dropout's words among a fused kernel's operands


def _packed_plan(
    formula: str,
    dropout: bool | None,
    out: Spec,
    elements: int,
    head: int,
    operands: list[Operand],
    patterns: list[tuple[int, int]],
) -> Plan:
    size = prod(out[1])
    index = 64 if size > NARROW else 32
    kernel = packed_kernel(
        formula, dropout, tuple(operands), out[0].name, elements, index, len(patterns)
    )
    divisors = [n for p in patterns for d in p for n in (d, factor(d, index))]
    packs = min(MOST_PACKS, max(1, BYTES // (elements * out[0].itemsize)))
    blocks = max(1, -(-(size - head) // (elements * packs * BLOCK)))
    return Plan(kernel, (head, size, *divisors), blocks * BLOCK)


def factor(divisor: int, bits: int) -> int:
    """packs.cuh's Divisor: what to multiply by."""
    shift = (divisor - 1).bit_length()
    return (((1 << shift) - divisor << bits) // divisor + 1) & ((1 << bits) - 1)


@cache
def packed_kernel(
    formula: str,
    dropout: bool | None,
    operands: tuple[Operand, ...],
    out: str,
    elements: int,
    index: int,
    patterns: int,
) -> Any:
    """Arrays come as their addresses: CuPy would compile a kernel anew for each number of axes."""
    arrays = {f"x{k}": o for k, o in enumerate(operands) if o.dtype}
    numbers = [f"x{k}" for k, o in enumerate(operands) if o.kind == "number"]
    spelled = [
        PACKED[o.kind].format(
            n=f"gpuact::{GENERATOR}" if "words" in o.kind else f"x{k}",
            t=f"X{k}",
            c=f"gpuact::Channels{{{{inner{o.channels}, inner_factor{o.channels}}}, "
            f"{{count{o.channels}, count_factor{o.channels}}}}}",
        )
        for k, o in enumerate(operands)
    ]
    geometry = ["head", "size"]
    for k in range(patterns):
        geometry += [f"inner{k}", f"inner_factor{k}", f"count{k}", f"count_factor{k}"]
    parameters = [f"uint64 {n}" for n in (*arrays, "y")] + [f"float64 {n}" for n in numbers]
    parameters += _dropout_parameters(dropout) + [f"uint{index} {n}" for n in geometry]
    types = {"Y": out, "INDEX": f"uint{index}"} | {n.upper(): o.dtype for n, o in arrays.items()}
    operation = ", ".join(
        ["INDEX(i)", "head", "size", "(Y*)y", _functor(dropout)]
        + [f"gpuact::{operand}" for operand in spelled]
    )
    return cupy.ElementwiseKernel(
        ", ".join(parameters),
        "",
        f"gpuact::elementwise({operation})",
        _name(formula, dropout),
        preamble=typedefs(types) + _headers(formula, dropout, elements),
    )


@cache
def strided_kernel(formula: str, dropout: bool | None, kinds: tuple[str, ...]) -> Any:
    """The types of all arrays are independent: CuPy compiles one binary for every combination."""
    operands = list(kinds)
    if dropout is not None:
        operands.insert(WORDS, "words" if dropout else "absent")
    names = [f"x{k}" for k in range(len(operands))]
    arrays = [n for n, kind in zip(names, operands, strict=True) if kind == "array"]
    numbers = [n for n, kind in zip(names, operands, strict=True) if kind == "number"]
    parameters = [f"{t} {n}" for t, n in zip(LETTERS, arrays, strict=False)]
    parameters += [f"float64 {n}" for n in numbers] + _dropout_parameters(dropout)
    values = [
        f"{'' if kind == 'number' else 'gpuact::'}"
        + STRIDED[kind].format(n=GENERATOR if kind == "words" else n)
        for n, kind in zip(names, operands, strict=True)
    ]
    return cupy.ElementwiseKernel(
        ", ".join(parameters),
        "Y y",
        f"y = gpuact::as<Y>({_functor(dropout)}({', '.join(values)}))",
        _name(formula, dropout),
        preamble="typedef unsigned INDEX;\n" + _headers(formula, dropout, 1),
        reduce_dims=dropout is not True,  # i must count in the logical order
    )


def _dropout_parameters(dropout: bool | None) -> list[str]:
    return [*(f"uint32 {n}" for n in DROPOUT), "float64 kept"] if dropout else []


def _functor(dropout: bool | None) -> str:
    if dropout is None:
        return "gpuact::Formula{}"
    return f"gpuact::Fused{{{{{'last, C(kept)' if dropout else ''}}}}}"


def _name(formula: str, dropout: bool | None) -> str:
    return f"gpuact_{formula}" if dropout is None else f"gpuact_fused_{formula}"


def _headers(formula: str, dropout: bool | None, elements: int) -> str:
    """The texts that a kernel needs, and what they expect before them."""
    constants = f"constexpr int WIDTH = {elements};\n#define FORMULA gpuact::{formula}\n"
    compute = "typedef gpuact::compute_t<Y> C;\n"
    fused = [] if dropout is None else ["philox.cuh", "fused.cuh"]
    headers = [text(name) for name in ("packs.cuh", *fused)]
    return "".join([constants, text("formulas.cuh"), compute, *headers])
