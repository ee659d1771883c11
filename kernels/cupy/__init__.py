"""CUDA C++ for CuPy: the kernels' text beside the Python that builds and measures out a launch.

A header's text goes into a kernel's source, never behind an `#include`: CuPy caches compiled
kernels by their source text, and would go on using the binary of a header that has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cupy

# dtype → its name in CUDA C++, and the header of CUDA's own that declares it
C_TYPES = {
    "float16": ("__half", "#include <cuda_fp16.h>\n"),
    "bfloat16": ("__nv_bfloat16", "#include <cuda_bf16.h>\n"),
    "float32": ("float", ""),
    "float64": ("double", ""),
    "int8": ("signed char", ""),
    "int16": ("short", ""),
    "int32": ("int", ""),
    "int64": ("long long", ""),
    "uint8": ("unsigned char", ""),
    "uint16": ("unsigned short", ""),
    "uint32": ("unsigned", ""),
    "uint64": ("unsigned long long", ""),
}


class Launch(NamedTuple):
    """What launch_raw takes."""

    module: Any
    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[Any, ...]
    shared: int = 0  # bytes of shared memory, beside what the kernel declares
    cluster: int = 1  # blocks of a cluster, as the kernel declares it


def text(header: str) -> str:
    """The text of one of the .cuh files here."""
    return Path(__file__).with_name(header).read_text(encoding="utf-8")


def compute_name(*dtypes: str) -> str:
    """The dtype to compute in: float32, or float64 where one of them is float64."""
    return "float64" if "float64" in dtypes else "float32"


def raw_module(types: Mapping[str, str], *texts: str, contract: bool = True) -> Any:
    """A module of extern "C" kernels whose types are named by typedef: no mangled names.

    contract: whether products and sums may become one operation.
    """
    options = ("-std=c++17", *(() if contract else ("--fmad=false",)))
    return cupy.RawModule(code="".join([typedefs(types), *texts]), options=options)


def typedefs(types: Mapping[str, str]) -> str:
    """C++ that gives these names to dtypes."""
    includes = dict.fromkeys(C_TYPES[dtype][1] for dtype in types.values())
    return "".join([*includes, *(f"typedef {C_TYPES[t][0]} {n};\n" for n, t in types.items())])


def element_strides(array: Any) -> tuple[int, ...]:
    """Strides in elements, as the kernels count."""
    size = array.itemsize
    return tuple([stride // size for stride in array.strides])
