"""kernels/cupy/formulas.cuh, compiled by the host's C++ compiler and called on NumPy arrays.

A GPU adds its own exp, 2^x and 1 / x (2, 2 and 1 ulp; half an ulp here) and CuPy -ftz=true; the
text is the same.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.bounds import DTYPES, compute_dtype
from tests.truth import Array

SOURCE = Path(__file__).with_name("formulas_host.cpp")
HEADER = SOURCE.parents[1] / "kernels" / "cupy" / "formulas.cuh"
COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
C_NAMES = {"float32": "float", "float64": "double"}  # of half types, the headers' own


@cache
def _directory() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="gpuact-formulas-")  # removed when this process ends


@cache
def _build(formula: str, arity: int, stored: str) -> ctypes.CDLL:
    library = Path(_directory().name) / f"{formula}_{stored}.so"
    defined = {"FORMULA": formula, "ARITY": arity, "RESULT": C_NAMES.get(stored, stored)}
    which = [f"-D{name}={value}" for name, value in defined.items()]
    command = [str(COMPILER), *FLAGS, *which, f"-I{HEADER.parent}", str(SOURCE), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def elementwise(formula: str, stored: str, *operands: Array) -> Array:
    """The formula, element by element, for a result of the dtype `stored`."""
    shape = np.broadcast_shapes(*(np.shape(a) for a in operands))
    with np.errstate(all="ignore"):  # signalling NaN, and overflow at the store, are meant
        compute = (np.asarray(a).astype(compute_dtype(stored)) for a in operands)
        arrays = [np.ascontiguousarray(np.broadcast_to(a, shape)) for a in compute]
        out = np.full_like(arrays[0], np.nan)
        pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        run = _build(formula, len(arrays), stored).run
        run(ctypes.c_long(out.size), pointers, ctypes.c_void_p(out.ctypes.data))
        return out.astype(DTYPES[stored])
