"""Runs the CUDA C++ kernels on CuPy arrays.

CuPy, and with it the kernels, is imported by the first call that needs it, never by importing this
module. The kernels' modules say what to launch; here alone it is launched. Of the arrays only what
NumPy's have too is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from math import gcd
from operator import itemgetter
from threading import Lock
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from ..fusion import Fusion
from ..kernels.tiles import tiles
from ..scores import Scores

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
        return (
            f"CuPy finds no usable CUDA driver ({_brief(error)}): install or update NVIDIA's; "
            "a container has it if started with --gpus all"
        )
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


# What a kernel must be told before it may take so much
FREE_SHARED = 48 << 10  # bytes of shared memory
PORTABLE = 8  # blocks of a cluster
NULL = np.uint64(0)
NON_PORTABLE_CLUSTER = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
_granting = Lock()  # of two threads, the one that asks for less must not come second


@cache
def _function(module: Any, name: str, shared: int, cluster: int, device: int) -> Any:
    """A new object every time, which CuPy would look up anew; its settings are a device's."""
    function = module.get_function(name)
    if function.shared_size_bytes + shared > FREE_SHARED:  # what it declares counts, too
        with _granting:
            granted = function.max_dynamic_shared_size_bytes  # to a launch with more of it
            function.max_dynamic_shared_size_bytes = max(granted, shared)
    if cluster > PORTABLE:
        driver = import_module("cupy_backends.cuda.api.driver")

        driver.funcSetAttribute(function.kernel.ptr, NON_PORTABLE_CLUSTER, 1)
    return function


def launch_raw(
    module: Any,
    name: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    args: tuple[Any, ...],
    shared: int = 0,
    cluster: int = 1,
) -> None:
    """The one place that launches a RawModule's kernel; None is a null pointer."""
    arguments = tuple([NULL if arg is None else arg for arg in args])
    function = _function(module, name, shared, cluster, _device())
    function(grid, block, arguments, shared_mem=shared)


def _device() -> int:
    return int(_runtime().getDevice())


@cache
def _runtime() -> Any:
    from cupy.cuda import runtime

    return runtime


@cache
def _capability(device: int) -> int:
    from cupy.cuda import Device

    return int(Device(device).compute_capability)


def capability() -> int:
    """The current device's: 90 for 9.0."""
    return _capability(_device())


@cache
def _kernels() -> Any:
    """The modules of kernels, once CuPy is asked for: an import by each call takes 1 µs."""
    from ..kernels.cupy import cross_entropy, elementwise, fused, reduce, rows, softmax, stats

    return SimpleNamespace(
        cross_entropy=cross_entropy,
        elementwise=elementwise,
        fused=fused,
        reduce=reduce,
        rows=rows,
        softmax=softmax,
        stats=stats,
    )


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


# -- rows, sums, statistics -----------------------------------------------------------------------


class Scratch(NamedTuple):
    """Memory that a plan asks for at every launch anew."""

    shape: tuple[int, ...]
    dtype: str


class Plan(NamedTuple):
    """Launches but for their arrays and floats, which every call brings."""

    launches: tuple[tuple[Callable[[Any], tuple[Any, ...]], Any], ...]  # with what each picks
    scratch: tuple[Scratch, ...]
    fixed: tuple[Any, ...]  # arguments that the layouts decide


_plans: dict[Any, Plan] = {}
PLANS = 4096  # kept; a caller with more layouts than that begins anew


def _launch(
    kind: tuple[Any, ...],
    arrays: Sequence[Array | None],
    floats: tuple[float, ...],
    make: Callable[[Sequence[Any], Empty], Iterable[Any]],
    empty: Empty,
) -> None:
    """Whatever `make` launches for such arrays; it is asked once for each kind and layout.

    A float among a launch's arguments is one of `floats`, which come in their order.
    """
    key = [*kind]
    for x in arrays:
        if x is None:
            key.append(None)
        else:
            key += x.dtype, x.shape, x.strides, address(x) % SECTOR
    plan = _plans.get(tuple(key))
    if plan is None:
        if len(_plans) >= PLANS:
            _plans.clear()
        plan = _plans[tuple(key)] = _plan(arrays, len(floats), make, empty)
    given = (*arrays, *floats, *[empty(*each) for each in plan.scratch], *plan.fixed)
    for pick, (module, name, grid, block, _, shared, cluster) in plan.launches:
        launch_raw(module, name, grid, block, pick(given), shared, cluster)


def _plan(
    arrays: Sequence[Array | None],
    floats: int,
    make: Callable[[Sequence[Any], Empty], Iterable[Any]],
    empty: Empty,
) -> Plan:
    own = [x if x is None else x.view() for x in arrays]  # told apart where one comes twice
    scratch: list[Scratch] = []
    asked: list[Array] = []

    def asking(shape: tuple[int, ...], dtype: str) -> Array:
        scratch.append(Scratch(shape, dtype))
        asked.append(empty(shape, dtype))
        return asked[-1]

    launches = [*make(own, asking)]
    given = [id(x) for x in own if x is not None], [id(x) for x in asked]
    places = [k for k, x in enumerate(own) if x is not None]
    begin = len(own) + floats
    fixed: list[Any] = []
    picks = []
    for launch in launches:
        picked, float_places = [], iter(range(len(own), begin))
        for argument in launch.arguments:
            if id(argument) in given[0]:
                picked.append(places[given[0].index(id(argument))])
            elif id(argument) in given[1]:
                picked.append(begin + given[1].index(id(argument)))
            elif type(argument) is float:
                picked.append(next(float_places))
            else:
                assert argument is None or isinstance(argument, int | np.generic)
                picked.append(begin + len(scratch) + len(fixed))
                fixed.append(argument)
        picks.append(itemgetter(*picked))
    # a launch is kept without the arrays that it was made for
    bare = [launch._replace(arguments=()) for launch in launches]
    return Plan(tuple(zip(picks, bare, strict=True)), tuple(scratch), tuple(fixed))


def reduce(formula: str, arrays: Sequence[Array], out: Array, empty: Empty) -> None:
    module = _kernels().reduce

    def make(arrays: Sequence[Any], empty: Empty) -> Iterable[Any]:
        return module.launches(formula, arrays[:-1], arrays[-1], empty)

    if out.size == 1 and all(x.flags.c_contiguous for x in arrays):
        _launch((formula, "sum"), (*arrays, out), (), make, empty)
    else:  # by way of copies, maybe
        for launch in module.launches(formula, arrays, out, empty):
            launch_raw(*launch)


def observe(
    formula: str | None,
    x: Array,
    out: Array | None,
    parameter: Array | float | None,
    bounds: tuple[float | None, float | None],
    moments: Array,
    alive: Array,
    empty: Empty,
) -> None:
    """out = formula(x, parameter), and what it is like: counted onto moments, noted in alive.

    x and out are (outer, units, inner), contiguous.
    """
    number, array = (parameter, None) if isinstance(parameter, float) else (0.0, parameter)

    def make(own: Sequence[Any], empty: Empty) -> Iterable[Any]:
        x, out, array, *known = own
        outer, units, inner = x.shape
        whole = 16 // x.itemsize
        places = [address(each) // x.itemsize for each in (x, out) if each is not None]
        cut = tiles(outer, units, inner, gcd(whole, *places), whole)
        given = float(parameter) if isinstance(parameter, float) else array
        launches: Iterable[Any] = _kernels().stats.launches(
            formula, x, out, given, bounds, *known, cut, empty
        )
        return launches

    kind = "observe", formula, bounds, isinstance(parameter, float)
    _launch(kind, (x, out, array, moments, alive), (float(number),), make, empty)


def rows(
    formula: str, arrays: Sequence[Array], out: Array, scores: Scores | None, empty: Empty
) -> None:
    scale, mask, kind = 1.0, None, None
    if scores is not None:
        scale, mask, kind = scores.scale, scores.mask, (scores.causal, scores.zero)

    def make(own: Sequence[Any], empty: Empty) -> Iterable[Any]:
        *arrays, out, mask = own
        told = None if scores is None else replace(scores, mask=mask)
        return _launches(_kernels().softmax.operation(formula, arrays, out, told), empty)

    _launch((formula, kind, capability()), (*arrays, out, mask), (scale,), make, empty)


def _launches(told: Any, empty: Empty) -> Iterable[Any]:
    kernels, (operation, views) = _kernels().rows, told
    rows = kernels.Rows(views, kernels.Device.of(capability()), address)
    found: Iterable[Any] = kernels.launches(operation, rows, empty)
    return found


def _loss(asked: str, operands: tuple[Any, ...], options: dict[str, Any], empty: Empty) -> None:
    # a plan finds its numbers by their type
    options |= {k: float(options[k]) for k in ("label_smoothing", "z_loss", "softcap")}
    ignored, smoothing = options["ignore_index"], options["label_smoothing"]
    z_loss, cap = options["z_loss"], options["softcap"]

    def make(own: Sequence[Any], empty: Empty) -> Iterable[Any]:
        return _launches(_kernels().cross_entropy.operation(asked, options, *own), empty)

    kind = asked, ignored, smoothing != 0, cap != 0, capability()
    floats = (1.0 - smoothing, smoothing / operands[0].shape[1], z_loss, cap)
    _launch(kind, operands, floats, make, empty)


def cross_entropy(
    logits: Array,
    target: Array,
    weight: Array | None,
    loss: Array,
    lse: Array,
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    empty: Empty,
) -> None:
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    options |= {"z_loss": z_loss, "softcap": softcap}
    _loss("LOSS", (logits, target, weight, None, None, loss, lse), options, empty)


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
    z_loss: float,
    softcap: float,
    empty: Empty,
) -> None:
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    options |= {"z_loss": z_loss, "softcap": softcap}
    _loss("GRADIENT", (logits, target, weight, scale, dlogits, None, lse), options, empty)


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
    z_loss: float,
    softcap: float,
    empty: Empty,
) -> None:
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    options |= {"z_loss": z_loss, "softcap": softcap}
    _loss("BOTH", (logits, target, weight, scale, dlogits, loss, None), options, empty)


def target_weight(
    target: Array, weight: Array | None, out: Array, *, classes: int, ignore_index: int
) -> None:
    def make(own: Sequence[Any], empty: Empty) -> Iterable[Any]:
        return (_kernels().cross_entropy.target_weight(*own, classes, ignore_index),)

    kind = "target_weight", classes, ignore_index
    _launch(kind, (target, weight, out), (), make, _no_scratch)


def _no_scratch(shape: tuple[int, ...], dtype: str) -> Array:
    raise AssertionError("a weight of targets needs no memory beside")
