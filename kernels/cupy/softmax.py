"""softmax and log_softmax, forward and backward: their module and the geometry of a launch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from . import Launch, compute_name, element_strides, raw_module, row_geometry, text


@cache
def module(a: str, b: str, result: str) -> Any:
    types = {"A": a, "B": b, "R": result, "C": compute_name(result)}
    return raw_module(types, text("rows.cuh"), text("softmax.cuh"))


def launch(formula: str, arrays: Sequence[Any], out: Any) -> Launch:
    """`formula` over axis 1 of (outer, n, inner) arrays."""
    operands = [arg for array in (*arrays, out) for arg in (array, *element_strides(array))]
    grid, block = row_geometry(out.shape)
    outer, n, inner = out.shape
    kernels = module(arrays[0].dtype.name, arrays[-1].dtype.name, out.dtype.name)
    return kernels, formula, grid, block, (*operands, outer * inner, n, inner)
