"""Sums of a formula's terms over some axes, in two stages: no atomics, the same bits always."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from math import prod
from typing import Any

from . import Launch, compute_name, element_strides, raw_module, text

# A block's threads, (across outputs, along the terms of one): a warp reads neighbouring outputs
# where those are what lies side by side in memory, else neighbouring terms.
OUTPUTS_ADJACENT = (32, 8)
TERMS_ADJACENT = (1, 256)

CHUNK = 8192  # terms of one output that a block adds up, at least
MOST_CHUNKS = 1024  # of one output: they fill a GPU, and one block can merge them


@cache
def module(formula: str, a: str, b: str, result: str, compute: str) -> Any:
    return raw_module(
        {"A": a, "B": b, "R": result, "C": compute},
        f"#define TERM gpuact::{formula}\n",
        *map(text, ("formulas.cuh", "compute.cuh", "reduce.cuh")),
    )


def launches(
    formula: str, arrays: Sequence[Any], out: Any, empty: Callable[[tuple[int, ...], str], Any]
) -> Iterator[Launch]:
    """`out` = sum of formula(*arrays) over the axes where out's length is 1 and theirs is not."""
    groups = axis_groups(arrays[0].shape, out.shape)
    outer, kept, inner = (prod(arrays[0].shape[axis] for axis in group) for group in groups)
    sums = out if out.flags.c_contiguous else empty(out.shape, out.dtype.name)
    compute = compute_name(out.dtype.name, *(a.dtype.name for a in arrays))
    views = [grouped(a, groups, empty) for a in arrays]

    terms = outer * inner
    chunks = max(1, min(-(-terms // CHUNK), MOST_CHUNKS))
    if chunks == 1:
        yield stage(formula, views, sums, (outer, kept, inner), 1, compute)
    else:
        partial = empty((chunks, kept), compute)
        yield stage(formula, views, partial, (outer, kept, inner), chunks, compute)
        merged = [(partial, (kept, 1, 0))]
        yield stage("linear_dbias", merged, sums, (chunks, kept, 1), 1, compute)
    if sums is not out:
        out[...] = sums


def stage(
    formula: str,
    views: Sequence[tuple[Any, tuple[int, ...]]],
    sums: Any,
    shape: tuple[int, int, int],
    chunks: int,
    compute: str,
) -> Launch:
    """sums[chunk, kept] = the chunk's terms of each output."""
    outer, kept, inner = shape
    across, along = OUTPUTS_ADJACENT if inner == 1 and kept > 1 else TERMS_ADJACENT
    (a, a_strides), (b, b_strides) = views[0], views[-1]
    kernels = module(formula, a.dtype.name, b.dtype.name, sums.dtype.name, compute)
    chunk = -(-outer * inner // chunks)
    # the kernel divides by `inner`, also where there is nothing to sum
    sizes = (outer, kept, inner, chunk) if outer * inner else (0, kept, 1, 0)
    grid = (-(-kept // across), chunks)
    arguments = (a, *a_strides, b, *b_strides, sums, *sizes)
    return Launch(kernels, "sum_terms", grid, (across, along), arguments)


def axis_groups(
    shape: tuple[int, ...], out_shape: tuple[int, ...]
) -> tuple[list[int], list[int], list[int]]:
    """Axes summed, kept, summed, in their own order; else all that are summed, then all kept."""
    axes = [axis for axis, n in enumerate(shape) if n != 1]
    kept = [axis for axis in axes if out_shape[axis] != 1]
    if not kept:
        return [], [], axes
    first = axes.index(kept[0])
    last = first + len(kept)
    if axes[first:last] == kept:
        return axes[:first], kept, axes[last:]
    return [axis for axis in axes if axis not in kept], kept, []


def grouped(
    array: Any,
    groups: tuple[list[int], list[int], list[int]],
    empty: Callable[[tuple[int, ...], str], Any],
) -> tuple[Any, tuple[int, ...]]:
    """The array, and one stride for each group of axes; a copy where a group has not one stride."""
    strides = [one_stride(array, group) for group in groups]
    if None not in strides:
        return array, tuple(s for s in strides if s is not None)
    order = [axis for group in groups for axis in group]
    squeezed = array[(*(0 if n == 1 else slice(None) for n in array.shape), ...)]
    packed = empty(tuple(array.shape[axis] for axis in order), array.dtype.name)
    packed[...] = squeezed.transpose([sorted(order).index(axis) for axis in order])
    _, kept, inner = (prod(array.shape[axis] for axis in group) for group in groups)
    return packed, (kept * inner, inner, 1)


def one_stride(array: Any, group: Sequence[int]) -> int | None:
    """The stride, in elements, of these axes taken as one; None if there is no such stride."""
    strides = element_strides(array)
    for outer, inner in pairwise(group):
        if strides[outer] != array.shape[inner] * strides[inner]:
            return None
    return strides[group[-1]] if group else 0
