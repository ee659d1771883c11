"""kernels/cupy/formulas.cuh, compiled by the host's C++ compiler: every formula, every half value.

A GPU adds its own exp, 2^x and 1 / x (2, 2 and 1 ulp; half an ulp here) and CuPy -ftz=true; the
text is the same.
"""

from __future__ import annotations

import ctypes
import inspect
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests import truth
from tests.bounds import BOUNDS, DTYPES, FLUSHED, check, compute_dtype, ulp
from tests.truth import Array

SOURCE = Path(__file__).with_name("formulas_host.cpp")
HEADER = SOURCE.parents[1] / "kernels" / "cupy" / "formulas.cuh"
COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")

# formula → largest error in ulp of the computation, where it is less than a GPU's in bounds.py. One
# product, or one fma, is exact but for its rounding, and a choice is exact; an exp, an addition, a
# division add about one each.
BOUND = {
    "linear": 0.5,
    "linear_backward": 0.5,
    "linear_dscale": 0.5,
    "linear_dbias": 0.0,
    "linear_derivative": 0.0,
    "sigmoid": 2.5,
    "sigmoid_backward": 2.5,
    "sigmoid_derivative": 4.0,
    "tanh": 2.0,
    "tanh_backward": 1.5,
    "tanh_derivative": 4.0,
    "relu": 0.0,
    "relu_backward": 0.0,
    "relu_derivative": 0.0,
    "leaky_relu": 0.5,
    "leaky_relu_backward": 0.5,
    "leaky_relu_derivative": 0.0,
    "prelu_dweight": 0.5,
}
STORE = 0.5  # and half an ulp of a half type's where it is stored,
FAST = 0.005  # and as much of it for arithmetic no better than the store
# can show, where 2^-126 may become 0:
APPROXIMATE = ("sigmoid", "sigmoid_derivative", "tanh", "tanh_derivative")
C_NAMES = {"float32": "float", "float64": "double"}  # of half types, the headers' own

# What the other operands take on while x, or the y or dy that backward reads, sweeps its values.
OTHERS = {
    "dy": (1.0, -2.71875, 1e-40),
    "slope": (0.01, -1.75),
    "scale": (1.0, -1.75),
    "bias": (0.0, -0.7),
}


def sweep(dtype: str) -> Array:
    """All values of a half type; of the others every nth bit pattern, with care where it counts."""
    if dtype in ("float16", "bfloat16"):
        return np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype])
    bits = np.dtype(f"u{DTYPES[dtype].itemsize}")
    patterns = np.arange(1 << 18, dtype=bits) * bits.type(np.iinfo(bits).max >> 18)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], DTYPES[dtype])
    edges = np.arange(5, dtype=bits)  # the smallest subnormals
    near = np.concatenate([np.linspace(-r, r, 40_001) for r in (0.1, 2.0, 20.0, 110.0, 800.0)])
    views = [patterns.view(DTYPES[dtype]), edges.view(DTYPES[dtype]), near.astype(DTYPES[dtype])]
    return np.concatenate([special, *views])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Array]:
    directory = tmp_path_factory.mktemp("formulas")
    command = [COMPILER, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]

    @cache
    def build(formula: str, arity: int, stored: str) -> ctypes.CDLL:
        library = directory / f"{formula}_{stored}.so"
        defined = {"FORMULA": formula, "ARITY": arity, "RESULT": C_NAMES.get(stored, stored)}
        which = [f"-D{name}={value}" for name, value in defined.items()]
        command_line = [*command, *which, f"-I{HEADER.parent}", SOURCE, "-o", library]
        subprocess.run(command_line, check=True)
        return ctypes.CDLL(str(library))

    def call(formula: str, stored: str, *operands: Array) -> Array:
        arrays = [np.ascontiguousarray(a, compute_dtype(stored)) for a in operands]
        out = np.full_like(arrays[0], np.nan)
        pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        run = build(formula, len(arrays), stored).run
        run(ctypes.c_long(out.size), pointers, ctypes.c_void_p(out.ctypes.data))
        return out

    return call


def operands_of(formula: str, dtype: str) -> Iterator[list[Array]]:
    """A sweep of x or y (or dy alone) with every combination of the others, as stored in dtype."""
    # np.tanh tells no names
    names = (
        list(inspect.signature(truth.ELEMENTWISE[formula]).parameters)
        if formula != "tanh"
        else ["x"]
    )
    swept = next((name for name in names if name in "xy"), names[0])
    values = sweep(dtype)
    if swept == "y" and formula != "relu_backward":
        with np.errstate(invalid="ignore"):  # signalling NaN
            values = values[~(np.abs(values) > 1)]  # there is no such y, and y·y may overflow
    choices = ([values] if name == swept else OTHERS[name] for name in names)
    for chosen in itertools.product(*choices):
        yield np.broadcast_arrays(*(np.asarray(v, DTYPES[dtype]) for v in chosen))


def test_every_formula_is_here():
    """The header and the truth name the same formulas in the same order."""
    formulas = HEADER.read_text(encoding="utf-8").split("// -- linear", 1)[1]
    names = re.findall(r"^GPUACT_FORMULA T (\w+)\(", formulas, re.MULTILINE)
    assert names == list(truth.ELEMENTWISE), "kernels/cupy/formulas.cuh beside tests/truth.py"
    assert set(BOUND) <= set(names)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("formula", truth.ELEMENTWISE)
def test_formula(compiled, formula, dtype):
    compute = compute_dtype(dtype)
    bound = BOUND.get(formula)
    if bound is None:
        bound = BOUNDS[formula]["cupy"][compute == "float64"]
    for operands in operands_of(formula, dtype):
        with np.errstate(all="ignore"):  # signalling NaN, and overflow at the store, are meant
            got = compiled(formula, dtype, *operands).astype(DTYPES[dtype])
        value = truth.elementwise(formula, *operands)
        allowed = bound * ulp(value, compute)
        if dtype != compute and bound:
            fast = formula in APPROXIMATE
            allowed = allowed + (STORE + FAST * fast) * ulp(value, dtype) + FLUSHED * fast
        check(got, value, allowed, dtype, f"{formula} {dtype}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_relu_of_minus_zero_is_zero(compiled, dtype):
    assert not np.signbit(compiled("relu", dtype, np.array([-0.0], dtype))).any()
