"""Runs the Triton kernels on torch tensors: which memory order, which tile, which grid.

Importing this module imports neither torch nor Triton. With TRITON_INTERPRET=1 the same kernels run
on CPU tensors, without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor, dtype

    Empty = Callable[[tuple[int, ...], str], Tensor]

NARROW = 2**31  # elements whose offsets fit into 32 bits: a 64-bit division is a subroutine
PERIOD = 2**31  # entries times elements in a run of each, of a parameter, that do
CAPABILITY = (8, 0)  # the oldest GPUs supported; bfloat16 arithmetic begins there
# Every kernel is compiled with these. Left to itself, ptxas spills a register or two to fit one
# block more; 255 is the most a thread can have, and 8 warps of them fit into a GPU's 65536.
OPTIONS = {"enable_fp_fusion": True, "maxnreg": 255}


def why_not() -> str | None:
    """None if Triton kernels run here, else one sentence with the reason and the remedy."""
    try:
        import torch
    except Exception as error:
        return f'torch cannot be imported ({error}): pip install "gpuact[torch]"'
    try:
        import triton
    except Exception as error:
        return f'triton cannot be imported ({error}): pip install "gpuact[torch]"'
    try:
        if triton.knobs.runtime.interpret:
            return None
        if not torch.cuda.is_available():
            return "torch finds no CUDA GPU: install its CUDA build, and the driver of the GPU"
        capability = torch.cuda.get_device_capability()
    except Exception as error:
        return f"torch cannot use the GPU ({error}): match the driver to torch's CUDA version"
    if capability < CAPABILITY:
        have, need = (".".join(map(str, c)) for c in (capability, CAPABILITY))
        return f"the GPU has compute capability {have}: use one with {need} or later"
    try:
        _ = triton.runtime.driver.active  # compiles C, unless Triton's cache has the result
    except Exception as error:
        return f"Triton cannot build its launcher ({error}): install gcc and Python's headers"
    return None


@cache
def _kernels() -> ModuleType:
    from ..kernels import triton

    return triton


@cache
def _compute(*dtypes: dtype) -> str:
    """What a kernel computes in, the last dtype being its output's: integers keep theirs."""
    names = [_name(each) for each in dtypes]
    if not dtypes[-1].is_floating_point:
        return names[-1]
    return "float64" if "float64" in names else "float32"


@cache
def _triton_dtype(name: str) -> Any:
    import triton.language as tl

    return getattr(tl, name)


def _name(dtype: dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(slots=True)
class Plan:
    """A launch but for its arrays: what follows from a call's dtypes, layouts and alignment."""

    kernel: Any
    grid: tuple[int, ...]
    constexprs: dict[str, Any]  # the kernel's last parameters, in order
    warps: int
    numbers: tuple[int, ...] = ()  # the parameters before them
    device: int = -1
    compiled: Any = None


def launch(plan: Plan, args: tuple[Any, ...]) -> None:
    """Every kernel starts here. args are the parameters before the constexprs, in order.

    The first launch of a plan is Triton's own, which binds, specialises, compiles and gives the
    compiled kernel back (its interpreter gives None back, and so goes this way always). The
    launches that follow go straight to it, as `JITFunction.run` ends, the same in Triton 3.6 and
    3.7: binding costs 6 to 13 µs, and would find nothing new for arguments that agree in all that
    a plan is kept by.
    """
    compiled = plan.compiled
    if compiled is None:
        how = {**plan.constexprs, "num_warps": plan.warps, **OPTIONS}
        plan.compiled = plan.kernel[plan.grid](*args, **how)
        return
    stream, runtime = _stream()(plan.device), _runtime()
    args = (*args, *plan.constexprs.values())  # whose places count, though nothing is passed
    enter, leave, metadata = runtime.launch_enter_hook, runtime.launch_exit_hook, None
    if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):
        metadata = compiled.launch_metadata(plan.grid, stream, *args)
    else:
        enter = leave = None  # empty chains of hooks
    x, y, z = plan.grid
    compiled.run(
        x, y, z, stream, compiled.function, compiled.packed_metadata, metadata, enter, leave, *args
    )


def _launch_once(
    kernel: Any,
    grid: tuple[int, ...],
    args: tuple[Any, ...],
    constexprs: dict[str, Any],
    warps: int,
) -> None:
    launch(Plan(kernel, grid, constexprs, warps), args)


@cache
def _stream() -> Callable[[int], int]:
    """The current stream of a device, where Triton's driver finds it too."""
    import torch

    return cast(Callable[[int], int], torch._C._cuda_getCurrentRawStream)


@cache
def _runtime() -> Any:
    import triton

    return triton.knobs.runtime


def _contiguous(x: Tensor, empty: Empty) -> Tensor:
    return x if x.is_contiguous() else empty(tuple(x.shape), _name(x.dtype)).copy_(x)


def _memory_order(x: Tensor) -> list[int] | None:
    """The order of axes in which x is contiguous, if there is one."""
    if x.is_contiguous():
        return list(range(x.ndim))
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    return order if x.permute(order).is_contiguous() else None


# -- elementwise ----------------------------------------------------------------------------------

_plans: dict[Any, Plan] = {}
PLANS = 4096  # kept; a caller with more layouts than that begins anew


def _keep(key: Any, plan: Plan) -> None:
    if len(_plans) >= PLANS:
        _plans.clear()
    _plans[key] = plan


def _seen(x: Any) -> Any:
    """All of an argument that a plan depends on."""
    if type(x) is float:
        return None
    return x.dtype, x.shape, x.stride(), x.data_ptr() % 16


def _run(p: Tensor, order: list[int], shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(inner, count): a parameter's entry at each offset is (offset // inner) % count.

    None if its axes do not form one run, or it does not lie in this order.
    """
    p = p.permute(order)
    wide = [axis for axis, length in enumerate(p.shape) if length != 1]
    first, last = (wide[0], wide[-1] + 1) if wide else (0, 0)
    if p.shape[first:last] != shape[first:last] or not p.is_contiguous():
        return None
    return prod(shape[last:]), p.numel()


def _kind(p: Tensor, inner: int, count: int, size: int, pack: int, head: int) -> str:
    """How a kernel finds a parameter's entries: see `parameter` there."""
    if count in (1, size):
        return "element" if count == 1 else "full"
    if inner * count >= PERIOD:
        return "far"
    if head:
        return "any"
    if inner % pack == 0:
        return "pack"
    return "lanes" if inner == 1 and count % pack == p.data_ptr() % 16 == 0 else "any"


def _packs(arrays: Sequence[Tensor]) -> tuple[int, int]:
    """(pack, head): the largest packs that begin at an address of their size in all arrays, and how
    many elements before the arrays the first of them begins."""
    sizes = [x.element_size() for x in arrays]
    pack = _kernels().elementwise.BYTES // min(sizes)
    while pack > 1:
        for head in range(pack):
            if all(
                (x.data_ptr() - head * size) % min(pack * size, 16) == 0
                for x, size in zip(arrays, sizes, strict=True)
            ):
                return pack, head
        pack //= 2
    return 1, 0


def elementwise(
    formula: str,
    arrays: Sequence[Tensor],
    params: Sequence[float | Tensor],
    out: Tensor,
    empty: Empty,
) -> None:
    """out = formula(*arrays, *params), in the order in which out lies in memory."""
    key = (formula, out.get_device(), *map(_seen, (out, *arrays, *params)))
    plan = _plans.get(key)
    if plan is None:
        plan = _elementwise_plan(formula, arrays, params, out)
        if plan is None:
            _elementwise_of_copies(formula, arrays, params, out, empty)
            return
        _keep(key, plan)
    p, q = (*params, 0.0, 0.0)[:2]
    launch(
        plan,
        (
            arrays[0],
            arrays[1] if len(arrays) == 2 else None,
            out,
            *((p, None) if isinstance(p, float) else (0.0, p)),
            *((q, None) if isinstance(q, float) else (0.0, q)),
            *plan.numbers,
        ),
    )


def _elementwise_plan(
    formula: str, arrays: Sequence[Tensor], params: Sequence[float | Tensor], out: Tensor
) -> Plan | None:
    """None where an array does not lie in memory as out does."""
    order = _memory_order(out)
    if order is None or not all(x.permute(order).is_contiguous() for x in arrays):
        return None
    shape, size = tuple(out.shape[axis] for axis in order), out.numel()
    runs = [(1, 1) if isinstance(p, float) else _run(p, order, shape) for p in params]
    if None in runs:
        return None
    given = [(p, *run) for p, run in zip(params, runs, strict=True) if run is not None]
    kernels = _kernels()
    alike = [p for p, _, count in given if count == size != 1 and not isinstance(p, float)]
    pack, head = _packs([*arrays, out, *alike])
    block = kernels.elementwise.block(min(x.element_size() for x in (*arrays, out)))
    kinds = [
        "number" if isinstance(p, float) else _kind(p, inner, count, size, pack, head)
        for p, inner, count in given
    ]
    places = [n for _, inner, count in given for n in (inner, count)]
    return Plan(
        kernels.elementwise.elementwise,
        (-(-(head + size) // block), 1, 1),
        {
            "FORMULA": getattr(kernels.formulas, formula),
            **dict(zip("PQ", (*kinds, None, None), strict=False)),
            "INDEX": _index(size),
            "DTYPE": _triton_dtype(_compute(*(array.dtype for array in arrays), out.dtype)),
            "BLOCK": block,
            "PACK": pack,
        },
        kernels.elementwise.WARPS,
        (head, size, *(*places, 1, 1, 1, 1)[:4]),
        out.get_device(),
    )


def _elementwise_of_copies(
    formula: str,
    arrays: Sequence[Tensor],
    params: Sequence[float | Tensor],
    out: Tensor,
    empty: Empty,
) -> None:
    """Everything that does not lie as out does, out too if it is not dense, by way of a copy."""
    order = _memory_order(out)
    if order is None:
        dense = empty(tuple(out.shape), _name(out.dtype))
        elementwise(formula, arrays, params, dense, empty)
        out.copy_(dense)
        return
    shape = tuple(out.shape[axis] for axis in order)
    elementwise(
        formula,
        [_contiguous(x.permute(order), empty) for x in arrays],
        [p if isinstance(p, float) else _spelled(p, order, shape, empty) for p in params],
        out.permute(order),
        empty,
    )


def _spelled(p: Tensor, order: list[int], shape: tuple[int, ...], empty: Empty) -> Tensor:
    """A parameter in this order of axes, in memory that `_run` finds its entries in."""
    p = p.permute(order)
    wide = [axis for axis, length in enumerate(p.shape) if length != 1]
    if wide and p.shape[wide[0] : wide[-1] + 1] != shape[wide[0] : wide[-1] + 1]:
        p = p.expand(shape)
    return _contiguous(p, empty)


def _index(size: int) -> Any:
    return _triton_dtype("int32" if size <= NARROW - 2**15 else "int64")


def reduce(formula: str, arrays: Sequence[Tensor], out: Tensor, empty: Empty) -> None:
    """out = sum of formula(*arrays) over the axes where out has length 1."""
    shape = tuple(arrays[0].shape)
    if 0 in shape:
        out.zero_()
        return
    wide = [axis for axis, length in enumerate(shape) if length != 1]
    kept = [axis for axis in wide if out.shape[axis] != 1]
    # In memory order the kept axes are to form one run; if they do not, they come first.
    order = _memory_order(arrays[0]) or list(range(len(shape)))
    places = [place for place, axis in enumerate(a for a in order if a in wide) if axis in kept]
    if places and places[-1] - places[0] >= len(places):
        order = sorted(range(len(shape)), key=lambda axis: axis not in kept)
    views = [_contiguous(array.permute(order), empty) for array in arrays]
    last = max((order.index(axis) for axis in kept), default=len(shape) - 1)
    inner = prod(views[0].shape[last + 1 :])
    result = out.permute(order)
    total = result if result.is_contiguous() else empty(tuple(result.shape), _name(out.dtype))
    _sum(formula, views, total, inner, empty)
    if total is not result:
        result.copy_(total)


def _sum(formula: str, arrays: Sequence[Tensor], out: Tensor, inner: int, empty: Empty) -> None:
    """Two stages: partial sums of chunks that the shape alone fixes, and their sums in order."""
    kernels = _kernels()
    compute = _compute(*(array.dtype for array in arrays), out.dtype)
    kept = out.numel()
    summed = arrays[0].numel() // kept
    chunk = kernels.rows.STEPS * kernels.rows.sum_tile(summed, kept, inner)[1]
    chunks = -(-summed // chunk)

    def stage(
        formula: str, arrays: Sequence[Tensor], out: Tensor, summed: int, inner: int, chunk: int
    ) -> None:
        tile_kept, tile_summed = kernels.rows.sum_tile(summed, kept, inner)
        _launch_once(
            kernels.rows.reduce,
            kernels.rows.grid(-(-summed // chunk), -(-kept // tile_kept)),
            (arrays[0], arrays[1] if arrays[1:] else None, out, summed, kept, inner, chunk),
            {
                "FORMULA": getattr(kernels.formulas, formula),
                "DTYPE": _triton_dtype(compute),
                "KEPT": tile_kept,
                "SUMMED": tile_summed,
            },
            kernels.rows.SUM_WARPS,
        )

    if chunks == 1:
        stage(formula, arrays, out, summed, inner, summed)
    else:
        partial = empty((chunks, kept), compute)
        stage(formula, arrays, partial, summed, inner, chunk)
        stage("linear_dbias", (partial,), out, chunks, 1, chunks)


def _place(view: Tensor) -> tuple[tuple[int, int, int], int, tuple[int, ...], dict[str, Any], int]:
    """(outer, n, inner), step, grid, tile and warps for the rows of a view.

    Where inner is 1, the view is handed over as (1, n, outer): step is the order of its axes then.
    """
    rows = _kernels().rows
    outer, n, inner = view.shape
    beside, block, whole, warps = rows.tile(n, inner)
    step = 1
    if inner == 1:
        outer, inner, step = 1, outer, -1
    grid = rows.grid(-(-inner // beside), outer)
    return (outer, n, inner), step, grid, {"ROWS": beside, "BLOCK": block, "WHOLE": whole}, warps


def rows(formula: str, arrays: Sequence[Tensor], out: Tensor, empty: Empty) -> None:
    """softmax, log_softmax or their backward, of rows along the middle axis of three."""
    extents, step, grid, tile, warps = _place(out)
    views = (*arrays, out)
    _launch_once(
        getattr(_kernels().softmax, formula.removeprefix("log_")),
        grid,
        (*views, *extents, *(stride for view in views for stride in view.stride()[::step])),
        {
            "LOG": formula.startswith("log_"),
            "DTYPE": _triton_dtype(_compute(*(view.dtype for view in views))),
            **tile,
        },
        warps,
    )


def _loss_arguments(
    logits: Tensor,
    target: Tensor,
    scale: Tensor | None,
    dlogits: Tensor | None,
    step: int,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the cross-entropy kernels take after (outer, n, inner), and which kind they are."""
    probabilities = target.ndim == 3
    t = target.stride()[::step]
    return (
        *logits.stride()[::step],
        *(t if probabilities else (t[0], 0, t[1])),
        *((0, 0) if scale is None else scale.stride()[::step]),
        *((0, 0, 0) if dlogits is None else dlogits.stride()[::step]),
        ignore_index,
        1.0 - label_smoothing,
        label_smoothing / logits.shape[1],
    ), {"PROBABILITIES": probabilities, "SMOOTHING": label_smoothing != 0}


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    loss: Tensor,
    lse: Tensor,
    *,
    ignore_index: int,
    label_smoothing: float,
    empty: Empty,
) -> None:
    """The loss of each row, and lse."""
    extents, step, grid, tile, warps = _place(logits)
    more, kind = _loss_arguments(logits, target, None, None, step, ignore_index, label_smoothing)
    weight = None if weight is None else _contiguous(weight, empty)
    _launch_once(
        _kernels().cross_entropy.cross_entropy,
        grid,
        (logits, target, weight, None, loss, lse, None, *extents, *more),
        {**kind, "DTYPE": _triton_dtype(_compute(logits.dtype, loss.dtype)), **tile},
        warps,
    )


def cross_entropy_with_grad(
    scale: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    loss: Tensor,
    dlogits: Tensor,
    *,
    ignore_index: int,
    label_smoothing: float,
    empty: Empty,
) -> None:
    """The loss of each row, and scale times its gradient."""
    extents, step, grid, tile, warps = _place(logits)
    more, kind = _loss_arguments(
        logits, target, scale, dlogits, step, ignore_index, label_smoothing
    )
    weight = None if weight is None else _contiguous(weight, empty)
    _launch_once(
        _kernels().cross_entropy.cross_entropy,
        grid,
        (logits, target, weight, scale, loss, None, dlogits, *extents, *more),
        {**kind, "DTYPE": _triton_dtype(_compute(logits.dtype, loss.dtype)), **tile},
        warps,
    )


def cross_entropy_backward(
    scale: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    dlogits: Tensor,
    *,
    ignore_index: int,
    label_smoothing: float,
    empty: Empty,
) -> None:
    """scale times the gradient of each row, from lse."""
    extents, step, grid, tile, warps = _place(logits)
    more, kind = _loss_arguments(
        logits, target, scale, dlogits, step, ignore_index, label_smoothing
    )
    weight = None if weight is None else _contiguous(weight, empty)
    tile.pop("WHOLE")  # nothing of a row is needed twice
    _launch_once(
        _kernels().cross_entropy.cross_entropy_backward,
        grid,
        (scale, logits, target, weight, lse, dlogits, *extents, *more),
        {**kind, "DTYPE": _triton_dtype(_compute(logits.dtype, lse.dtype)), **tile},
        warps,
    )


def target_weight(
    target: Tensor,
    weight: Tensor | None,
    out: Tensor,
    *,
    classes: int,
    ignore_index: int,
) -> None:
    """The weight of each row's class: 1 without weights, 0 where the row is ignored."""
    kernels = _kernels()
    block = kernels.elementwise.block(4)
    _launch_once(
        kernels.cross_entropy.target_weight,
        (-(-out.numel() // block),),
        (
            target,
            weight,
            0 if weight is None else weight.stride(0),
            out,
            *target.shape,
            *target.stride(),
            classes,
            ignore_index,
        ),
        {"DTYPE": _triton_dtype(_compute(out.dtype)), "BLOCK": block},
        kernels.elementwise.WARPS,
    )
