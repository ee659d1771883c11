"""Elementwise formulas as CuPy ElementwiseKernels: strides and broadcasting are CuPy's."""

from __future__ import annotations

from functools import cache
from typing import Any

import cupy

from . import text

ARRAY_TYPES, PARAM_TYPES = "AB", "PQ"  # CuPy wants a type that a kernel leaves open in one letter


@cache
def kernel(formula: str, arrays: int, scalars: tuple[bool, ...]) -> Any:
    """`y = formula(x0, …, p0, …)`; scalars tells which parameters are numbers and not arrays.

    The types of all arrays are independent: each is converted to the precision that belongs to
    y's type as it is read, and the result once as it is stored. CuPy compiles one binary for
    every combination that is used.
    """
    x = [f"x{i}" for i in range(arrays)]
    p = [f"p{i}" for i in range(len(scalars))]
    inputs = [f"{letter} {name}" for letter, name in zip(ARRAY_TYPES, x, strict=False)]
    inputs += [
        f"{'float64' if scalar else letter} {name}"
        for letter, name, scalar in zip(PARAM_TYPES, p, scalars, strict=False)
    ]
    return cupy.ElementwiseKernel(
        ", ".join(inputs),
        "Y y",
        f"y = gpuact::{formula}<gpuact::compute_t<Y>>({', '.join(x + p)})",
        f"gpuact_{formula}",
        preamble=text("formulas.cuh"),
    )
