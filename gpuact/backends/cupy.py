"""Runs the CUDA C++ kernels on CuPy arrays.

CuPy, and with it the kernels, is imported by the first call that needs it, never by importing this
module. The kernels' modules say what to launch; here alone it is launched. Of the arrays only what
NumPy's have too is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..fusion import Fusion

Array = Any  # cupy.ndarray: CuPy has no types, and may not be there
Empty = Callable[[tuple[int, ...], str], Array]

INSTALL = 'pip install "gpuact[cuda13]" (or "gpuact[cuda12]" for a CUDA 12 driver)'
SECTOR = 32  # bytes: kernels depend on addresses modulo this
OLDEST = 80  # compute capability 8.0: bfloat16 arithmetic

PROBE = '#include <cuda_fp16.h>\n#include <cuda_bf16.h>\nextern "C" __global__ void probe() {}\n'


def why_not() -> str | None:
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            return f"CuPy is not installed: {INSTALL}"
        return f"CuPy lacks the module {error.name}: {INSTALL}"
    except Exception as error:
        return (
            f"CuPy is installed but cannot be imported ({_brief(error)}): reinstall it: {INSTALL}"
        )
    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            return "CuPy finds no CUDA device: check CUDA_VISIBLE_DEVICES and nvidia-smi"
        capability = int(cupy.cuda.Device().compute_capability)
    except Exception as error:
        return f"CuPy finds no usable CUDA driver ({_brief(error)}): install or update NVIDIA's"
    if capability < OLDEST:
        return (
            f"the GPU's compute capability is {capability / 10:.1f}, and gpuact needs "
            f"{OLDEST / 10:.1f}: use an Ampere or later GPU, or the NumPy backend"
        )
    try:
        cupy.RawModule(code=PROBE).compile()
    except Exception as error:
        return f"CuPy cannot compile kernels ({_brief(error)}); NVRTC and CUDA's headers: {INSTALL}"
    return None


def _brief(error: Exception) -> str:
    """The first line of what an error says: CuPy frames the error of a broken install in a page."""
    lines = str(error.__cause__ or error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def address(array: Array) -> int:
    return int(array.data.ptr)


def launch_elementwise(
    kernel: Any, arrays: Sequence[Array], numbers: Sequence[float], size: int | None
) -> None:
    """The one place that launches an ElementwiseKernel, on the current device and stream.

    The last array is the result. With a size, the number of threads, the kernel takes addresses.
    """
    if size is None:
        kernel(*arrays[:-1], *numbers, arrays[-1])
    else:
        kernel(*[array.data.ptr for array in arrays], *numbers, size=size)


@cache
def _function(module: Any, name: str) -> Any:
    return module.get_function(name)  # a new object every time, which CuPy would look up anew


def launch_raw(
    module: Any, name: str, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]
) -> None:
    """The one place that launches a RawModule's kernel; None is a null pointer."""
    arguments = tuple(np.uint64(0) if arg is None else arg for arg in args)
    _function(module, name)(grid, block, arguments)


@cache
def _kernels() -> Any:
    """The modules of kernels, once CuPy is asked for: an import by each call takes 1 µs."""
    from ..kernels.cupy import elementwise, fused

    return SimpleNamespace(elementwise=elementwise, fused=fused)


def elementwise(
    formula: str, arrays: Sequence[Array], params: Sequence[Array | float], out: Array, empty: Empty
) -> None:
    _run(formula, None, (*arrays, *params), out, ())


def fused(
    fusion: Fusion,
    x: Array,
    params: Sequence[Array | float | None],
    gate: Array | None,
    residual: Array | None,
    out: Array,
    empty: Empty,
) -> None:
    operands, dropout = (x, *params, gate, residual), fusion.dropout
    formula = _names(fusion.activation)[0]
    if dropout is None:
        _run(formula, False, operands, out, ())
    else:
        seed, offset, half = dropout.seed, dropout.offset, 0xFFFFFFFF
        numbers = (seed & half, seed >> 32, offset & half, offset >> 32)
        _run(formula, True, operands, out, (*numbers, dropout.last, dropout.scale))


def fused_backward(
    fusion: Fusion,
    dy: Array,
    x: Array,
    params: Sequence[Array | float | None],
    gate: Array | None,
    dx: Array | None,
    dgate: Array | None,
    dparams: Sequence[Array | None],
    empty: Empty,
) -> None:
    operands = (dy, x, params, gate, dx, dgate, dparams)
    launches = _kernels().fused.launches
    for launch in launches(_names(fusion.activation), fusion.dropout, *operands, empty, address):
        launch_raw(*launch)


@cache
def _names(activation: str) -> tuple[str, str, str]:
    """The formulas forward and backward, and what backward reads, as kernels spell it."""
    fusion = Fusion(activation)
    reads = _kernels().fused.READS[fusion.reads]
    return fusion.forward or "identity", fusion.backward or "identity", reads


def _run(
    formula: str,
    dropout: bool | None,
    operands: Sequence[Array | float | None],
    out: Array,
    numbers: tuple[float, ...],
) -> None:
    """Look the kernel up by all that it depends on, and launch it."""
    specs: list[Any] = [(out.dtype, out.shape, out.strides, address(out) % SECTOR)]
    arrays, floats = [], []
    for x in operands:
        if x is None:
            specs.append(None)
        elif isinstance(x, float):
            specs.append(float)
            floats.append(x)
        else:
            specs.append((x.dtype, x.shape, x.strides, address(x) % SECTOR))
            arrays.append(x)
    kernel, more, size = _kernels().elementwise.plan(formula, dropout, *specs)
    launch_elementwise(kernel, (*arrays, out), (*floats, *numbers, *more), size)


def reduce(formula: str, arrays: Sequence[Array], out: Array, empty: Empty) -> None:
    from ..kernels.cupy.reduce import launches

    for launch in launches(formula, arrays, out, empty):
        launch_raw(*launch)


def rows(formula: str, arrays: Sequence[Array], out: Array, empty: Empty) -> None:
    from ..kernels.cupy.softmax import launch

    launch_raw(*launch(formula, arrays, out))


def cross_entropy(
    logits: Array,
    target: Array,
    weight: Array | None,
    loss: Array,
    lse: Array,
    *,
    ignore_index: int,
    label_smoothing: float,
    empty: Empty,
) -> None:
    from ..kernels.cupy.cross_entropy import forward

    launch_raw(*forward(logits, target, weight, loss, lse, ignore_index, label_smoothing))


def cross_entropy_backward(
    scale: Array,
    logits: Array,
    target: Array,
    weight: Array | None,
    lse: Array,
    dlogits: Array,
    *,
    ignore_index: int,
    label_smoothing: float,
    empty: Empty,
) -> None:
    from ..kernels.cupy.cross_entropy import backward

    operands = (scale, logits, target, weight, lse, dlogits)
    launch_raw(*backward(*operands, ignore_index, label_smoothing))


def cross_entropy_with_grad(
    scale: Array,
    logits: Array,
    target: Array,
    weight: Array | None,
    loss: Array,
    dlogits: Array,
    *,
    ignore_index: int,
    label_smoothing: float,
    empty: Empty,
) -> None:
    from ..kernels.cupy.cross_entropy import with_grad

    operands = (scale, logits, target, weight, loss, dlogits)
    launch_raw(*with_grad(*operands, ignore_index, label_smoothing))


def target_weight(
    target: Array, weight: Array | None, out: Array, *, classes: int, ignore_index: int
) -> None:
    from ..kernels.cupy.cross_entropy import target_weight as launch

    launch_raw(*launch(target, weight, out, classes, ignore_index))
