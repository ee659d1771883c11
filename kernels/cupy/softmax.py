"""softmax and log_softmax, forward and backward: their module and the geometry of a launch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from . import Launch, compute_name, element_strides, raw_module, row_geometry, text


@cache
def module(a: Any, b: Any, result: Any) -> Any:
    """The kernels for arrays of these dtypes; the key is dtypes since their names take long."""
    types = {"A": a.name, "B": b.name, "R": result.name, "C": compute_name(result.name)}
    return raw_module(types, text("rows.cuh"), text("softmax.cuh"))


def launch(formula: str, arrays: Sequence[Any], out: Any) -> Launch:
    """`formula` over axis 1 of (outer, n, inner) arrays."""
    operands = [arg for array in (*arrays, out) for arg in (array, *element_strides(array))]
    grid, block = row_geometry(out.shape)
    outer, n, inner = out.shape
    kernels = module(arrays[0].dtype, arrays[-1].dtype, out.dtype)
    return kernels, formula, grid, block, (*operands, outer * inner, n, inner)
