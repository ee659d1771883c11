"""Runs the Triton kernels on torch tensors: which memory order, which tile, which grid.

Importing this module imports neither torch nor Triton. With TRITON_INTERPRET=1 the same kernels run
on CPU tensors, without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, dtype

    Empty = Callable[[tuple[int, ...], str], Tensor]

NARROW = 2**31  # elements whose offsets fit into 32 bits: a 64-bit division is a subroutine
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


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    args: tuple[Any, ...],
    constexprs: dict[str, Any],
    num_warps: int,
) -> None:
    """Every kernel starts here. args are the parameters before the constexprs, in order."""
    kernel[grid](*args, **constexprs, num_warps=num_warps, **OPTIONS)


def _contiguous(x: Tensor, empty: Empty) -> Tensor:
    return x if x.is_contiguous() else empty(tuple(x.shape), _name(x.dtype)).copy_(x)


def _memory_order(x: Tensor) -> list[int] | None:
    """The order of axes in which x is contiguous, if there is one."""
    if x.is_contiguous():
        return list(range(x.ndim))
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    return order if x.permute(order).is_contiguous() else None


def _pattern(p: float | Tensor, order: list[int], shape: tuple[int, ...], empty: Empty) -> Any:
    """A parameter as the kernel takes it: value, array, inner, count (see `parameter` there)."""
    if not hasattr(p, "permute"):
        return p, None, 1, 1
    p = p.permute(order)
    wide = [axis for axis, length in enumerate(p.shape) if length != 1]
    first, last = (wide[0], wide[-1] + 1) if wide else (0, 0)
    if p.shape[first:last] != shape[first:last]:  # not one run of axes: spell it out
        p, last = p.expand(shape), len(shape)
    return 0.0, _contiguous(p, empty), prod(shape[last:]), p.numel()


def elementwise(
    formula: str,
    arrays: Sequence[Tensor],
    params: Sequence[float | Tensor],
    out: Tensor,
    empty: Empty,
) -> None:
    """out = formula(*arrays, *params), in the order in which out lies in memory."""
    order = _memory_order(out)
    if order is None:
        dense = empty(tuple(out.shape), _name(out.dtype))
        elementwise(formula, arrays, params, dense, empty)
        out.copy_(dense)
        return
    kernels = _kernels()
    a, *rest = (_contiguous(array.permute(order), empty) for array in arrays)
    shape = tuple(out.shape[axis] for axis in order)
    none = (0.0, None, 1, 1)
    p, q = [*(_pattern(p, order, shape, empty) for p in params), none, none][:2]
    block = kernels.elementwise.BLOCK
    launch(
        kernels.elementwise.elementwise,
        (-(-out.numel() // block),),
        (a, rest[0] if rest else None, out, *p, *q, out.numel()),
        {
            "INDEX": _triton_dtype("int32" if out.numel() <= NARROW - block else "int64"),
            "FORMULA": getattr(kernels.formulas, formula),
            "PARAMETERS": len(params),
            "DTYPE": _triton_dtype(_compute(*(array.dtype for array in arrays), out.dtype)),
            "BLOCK": block,
        },
        kernels.elementwise.WARPS,
    )


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
        launch(
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
    launch(
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
    launch(
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
    launch(
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
    launch(
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
    block = kernels.elementwise.BLOCK
    launch(
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
