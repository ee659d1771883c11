"""Runs the Triton kernels on torch tensors: which memory order, which tile, which grid.

Importing this module imports neither torch nor Triton. With TRITON_INTERPRET=1 the same kernels run
on CPU tensors, without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import nan, prod
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from ..kernels.tiles import WARP, tiles

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from ..fusion import Dropout, Fusion
    from ..scores import Scores

    Empty = Callable[[tuple[int, ...], str], Tensor]

NARROW = 2**31  # elements whose offsets fit into 32 bits: a 64-bit division is a subroutine
PERIOD = 2**31  # entries times elements in a run of each, of a parameter, that do
CAPABILITY = (8, 0)  # the oldest GPUs supported; bfloat16 arithmetic begins there
# Every kernel is compiled with this, and told how many registers it may take. Left to itself, ptxas
# spills one or two to fit one block more; 255 is the most a thread can have (`Plan.registers`), and
# 8 warps of them fit into a GPU's 65536.
OPTIONS = {"enable_fp_fusion": True}
REGISTERS = 65536  # of an SM; ptxas would give a block of 16 warps more than it has
SECTOR = 32  # bytes that memory is read and written by


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
            if torch.version.cuda is None:
                return f"torch {torch.__version__} is built without CUDA: install its CUDA build"
            return (
                "torch finds no CUDA GPU: install or update NVIDIA's driver; a container has it "
                "if started with --gpus all"
            )
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
    numbers: tuple[int | None, ...] = ()  # the parameters before them
    device: int = -1
    ctas: int = 1  # blocks of each program: a cluster
    registers: int = 255  # of a thread at most
    compiled: Any = None


def options(plan: Plan) -> dict[str, Any]:
    """What a kernel is compiled with, its constexprs apart."""
    registers = min(plan.registers, REGISTERS // (32 * plan.warps))
    return {"num_warps": plan.warps, "num_ctas": plan.ctas, **OPTIONS, "maxnreg": registers}


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
        plan.compiled = plan.kernel[plan.grid](*args, **plan.constexprs, **options(plan))
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

_plans: dict[Any, Any] = {}
PLANS = 4096  # kept; a caller with more layouts than that begins anew


def _keep(key: Any, plan: Any) -> Any:
    if len(_plans) >= PLANS:
        _plans.clear()
    _plans[key] = plan
    return plan


def _key(name: Any, x: Tensor, arrays: Sequence[Tensor | None], params: Sequence[Any]) -> Any:
    """All that a plan depends on, for arrays of x's shape. It is made anew at every call."""
    key: list[Any] = [name, x.dtype, x.data_ptr() & 15, x.is_contiguous() or x.stride()]
    for a in arrays:
        if a is None:
            key.append(None)
        else:
            key += a.dtype, a.data_ptr() & 15, a.is_contiguous() or a.stride()
    for p in params:
        if p is None or type(p) is float:
            key.append(p is None)
        else:
            key += p.dtype, p.data_ptr() & 15, p.is_contiguous() or p.stride(), p.shape
    return (*key, x.shape, x.get_device())


def _place_of(
    p: float | Tensor | None, order: Sequence[int], shape: Sequence[int]
) -> tuple[int, int] | None:
    """(inner, count): a parameter's entry at each offset is (offset // inner) % count.

    None if its axes do not form one run, or it does not lie in this order.
    """
    if p is None or isinstance(p, float):
        return 1, 1
    place = _place_of_shape([p.shape[axis] for axis in order], shape)
    return place if p.permute(tuple(order)).is_contiguous() else None


def _place_of_shape(lengths: Sequence[int], shape: Sequence[int]) -> tuple[int, int] | None:
    wide = [axis for axis, length in enumerate(lengths) if length != 1]
    first, last = (wide[0], wide[-1] + 1) if wide else (0, 0)
    if list(lengths[first:last]) != list(shape[first:last]):
        return None
    return prod(shape[last:]), prod(lengths)


def _like(p: Any, size: int) -> bool:
    """Whether a parameter is an array with an entry for every element."""
    return p is not None and not isinstance(p, float) and p.numel() == size > 1


def _kind(
    p: Any, place: tuple[int, int], size: int, block: int, pack: int, aligned: bool
) -> str | None:
    """How a kernel finds a parameter's entries: see `parameter` there."""
    if p is None or isinstance(p, float):
        return None if p is None else "number"
    inner, count = place
    kinds = {
        "element": count == 1,
        "full": count == size,
        "two": inner >= block,
        "far": inner * count >= PERIOD,
        "pack": aligned and inner % pack == 0,
        "pair": aligned and inner >= pack,
        "lanes": aligned and inner == 1 and count % pack == p.data_ptr() % 16 == 0,
        "any": True,
    }
    return next(kind for kind, fits in kinds.items() if fits)


def _packs(arrays: Sequence[Tensor], shift: bool = True) -> tuple[int, int]:
    """(pack, head): the largest packs that begin at an address of their size in all arrays, and how
    many elements before the arrays the first of them begins (0 without shift)."""
    sizes = [x.element_size() for x in arrays]
    pack = _kernels().elementwise.BYTES // min(sizes)
    while pack > 1:
        for head in range(pack if shift else 1):
            if all(
                (x.data_ptr() - head * size) % min(pack * size, 16) == 0
                for x, size in zip(arrays, sizes, strict=True)
            ):
                return pack, head
        pack //= 2
    return 1, 0


def _sector_head(arrays: Sequence[Tensor], pack: int, head: int) -> int:
    """As many elements more that most arrays begin so far behind the beginning of a sector."""

    def aligned(more: int) -> int:
        return sum((x.data_ptr() - more * x.element_size()) % SECTOR == 0 for x in arrays)

    return max(range(head, SECTOR // min(x.element_size() for x in arrays), pack), key=aligned)


def _tile(arrays: Sequence[Tensor], block: int, dropout: bool) -> tuple[int, dict[str, Any]]:
    """head, and what the kernels of `fused` are told of a flat tile."""
    aligned, head = _packs(arrays)
    itemsize = min(x.element_size() for x in arrays)
    if dropout and aligned * itemsize < _kernels().elementwise.BYTES:
        # Packs of random words come first: they are not to begin between quadruples for nothing.
        aligned, head = _packs(arrays, shift=False)
    return head, {
        "DROPOUT": head % 4 if dropout else None,
        "BLOCK": block,
        "PACK": max(4, aligned) if dropout else aligned,
        "ALIGNED": aligned,
    }


def elementwise(
    formula: str,
    arrays: Sequence[Tensor],
    params: Sequence[float | Tensor],
    out: Tensor,
    empty: Empty,
) -> None:
    """out = formula(*arrays, *params), in the order in which out lies in memory."""
    key = _key(formula, out, arrays, params)
    plan = _plans.get(key)
    if plan is None:
        plan = _elementwise_plan(formula, arrays, params, out)
        if plan is None:
            _elementwise_of_copies(formula, arrays, params, out, empty)
            return
        _keep(key, plan)
    given: tuple[Any, ...] = (arrays[0], arrays[1] if len(arrays) == 2 else None, out)
    for k in range(2):
        given += _number_and_array(params[k] if k < len(params) else None)
    launch(plan, given + plan.numbers)


def prepare(
    formula: str, arrays: Sequence[Tensor], params: Sequence[float | Tensor], out: Tensor
) -> Callable[[Sequence[Any], Tensor], None] | None:
    """`elementwise` of (*arrays, *params) that agree with these in all that a plan depends on;
    their shapes need not show how they meet x. None if that takes more than one launch."""
    plan = _elementwise_plan(formula, arrays, params, out)
    if plan is None:
        return None
    count, numbers = len(arrays), plan.numbers
    if not params:
        no_params = (0.0, None, 0.0, None, *numbers)
        if count == 1:
            return lambda operands, out: launch(plan, (operands[0], None, out, *no_params))
        return lambda operands, out: launch(plan, (*operands, out, *no_params))

    def start(operands: Sequence[Any], out: Tensor) -> None:
        b = operands[1] if count == 2 else None
        p, p_array = _number_and_array(operands[count])
        q, q_array = _number_and_array(operands[-1]) if len(operands) > count + 1 else (0.0, None)
        launch(plan, (operands[0], b, out, p, p_array, q, q_array, *numbers))

    return start


def _number_and_array(p: Any) -> tuple[float, Tensor | None]:
    """A parameter as kernels take it; one that there is not is (0.0, None)."""
    return (p, None) if type(p) is float else (0.0, p)


def _elementwise_plan(
    formula: str, arrays: Sequence[Tensor], params: Sequence[float | Tensor], out: Tensor
) -> Plan | None:
    """None where an array does not lie in memory as out does."""
    order = _memory_order(out)
    if order is None or not all(x.permute(order).is_contiguous() for x in arrays):
        return None
    shape, size = tuple(out.shape[axis] for axis in order), out.numel()
    places: list[Any] = [_place_of(p, order, shape) for p in params]
    if None in places:
        return None
    kernels = _kernels()
    alike: list[Any] = [p for p in params if _like(p, size)]
    pack, head = _packs([*arrays, out, *alike])
    block = kernels.elementwise.block(min(x.element_size() for x in (*arrays, out)))
    kinds = [
        _kind(p, place, size, block, pack, head == 0)
        for p, place in zip(params, places, strict=True)
    ]
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
        (head, size, *(n for place in (*places, (1, 1), (1, 1))[:2] for n in place or ())),
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
    elementwise(
        formula,
        [_dense(x, order, empty) for x in arrays],
        [_spelled(p, order, out.shape, empty) for p in params],
        out.permute(order),
        empty,
    )


def _spelled(p: Any, order: list[int], unordered: Sequence[int], empty: Empty) -> Any:
    """A parameter in this order of axes, in memory that `_place_of` finds its entries in."""
    if p is None or isinstance(p, float):
        return p
    p, shape = p.permute(order), tuple(unordered[axis] for axis in order)
    wide = [axis for axis, length in enumerate(p.shape) if length != 1]
    if wide and p.shape[wide[0] : wide[-1] + 1] != shape[wide[0] : wide[-1] + 1]:
        p = p.expand(shape)
    return _contiguous(p, empty)


def _index(size: int) -> Any:
    return _triton_dtype("int32" if size <= NARROW - 2**15 else "int64")


# -- fused ----------------------------------------------------------------------------------------


def fused(
    fusion: Fusion,
    x: Tensor,
    params: Sequence[float | Tensor | None],
    gate: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    empty: Empty,
) -> None:
    """out = dropout(act(scale·x + bias))·gate + residual."""
    dropout = fusion.dropout
    arrays = (x, gate, residual)
    key = _key((fused, fusion.activation, dropout is None), out, arrays, params)
    plan = _plans.get(key)
    if plan is None:
        plan = _fused_plan(fusion, arrays, params, out)
        if plan is None:
            order = _logical_order(fusion, out)
            if order is None:
                dense = empty(tuple(out.shape), _name(out.dtype))
                fused(fusion, x, params, gate, residual, dense, empty)
                out.copy_(dense)
            else:
                x, gate, residual = (_dense(a, order, empty) for a in arrays)
                given = [_spelled(p, order, out.shape, empty) for p in params]
                fused(fusion, x, given, gate, residual, out.permute(order), empty)
            return
        _keep(key, plan)
    launch(plan, (*arrays, out, *_fused_arguments(dropout, params), *plan.numbers))


def prepare_fused(
    fusion: Fusion, operands: Sequence[Any], slope: int, out: Tensor
) -> Callable[[Sequence[Any], Tensor, Dropout | None], None] | None:
    """As `prepare`, of operands x, scale, bias, ..., gate, residual; slope: the place of that."""
    x, gate, residual = operands[0], operands[-2], operands[-1]
    params = operands[1], operands[2], operands[slope]
    plan = _fused_plan(fusion, (x, gate, residual), params, out)
    if plan is None:
        return None
    places = [5 + 2 * k for k, p in enumerate(params) if type(p) is float]
    numbers, no_chance = plan.numbers, _chance(None)

    def start(given: Sequence[Any], out: Tensor, dropout: Dropout | None) -> None:
        args = [given[0], given[-2], given[-1], out]
        args += 0.0, given[1], 0.0, given[2], 0.0, given[slope]
        for k in places:
            args[k - 1], args[k] = args[k], None
        launch(plan, (*args, *(_chance(dropout) if dropout else no_chance), *numbers))

    return start


def _chance(dropout: Dropout | None) -> tuple[Any, ...]:
    """Dropout as kernels take it."""
    if dropout is None:
        return 0, 0, 0, 1.0
    return dropout.seed, dropout.offset, *dropout.chance


def _logical_order(fusion: Fusion, x: Tensor) -> list[int] | None:
    """The order of axes in which a kernel runs: with dropout the logical one, whose place in it
    decides on each element. None if x does not lie so."""
    order = _memory_order(x)
    return order if fusion.dropout is None or order == list(range(x.ndim)) else None


def _dense(x: Tensor | None, order: list[int], empty: Empty) -> Any:
    return None if x is None else _contiguous(x.permute(order), empty)


def _fused_arguments(dropout: Dropout | None, params: Sequence[Any]) -> tuple[Any, ...]:
    """Parameters and dropout as kernels take them."""
    s, b, w = params
    numbers = _number_and_array(s) + _number_and_array(b) + _number_and_array(w)
    return numbers + _chance(dropout)


def _fused_plan(
    fusion: Fusion,
    arrays: Sequence[Tensor | None],
    params: Sequence[float | Tensor | None],
    out: Tensor,
) -> Plan | None:
    """None where an array does not lie in memory as out does."""
    order = _logical_order(fusion, out)
    given = [x for x in arrays if x is not None]
    if order is None or not all(x.permute(order).is_contiguous() for x in given):
        return None
    shape, size = tuple(out.shape[axis] for axis in order), out.numel()
    places: list[Any] = [_place_of(p, order, shape) for p in params]
    if None in places:
        return None
    kernels = _kernels()
    alike: list[Any] = [p for p in params if _like(p, size)]
    itemsize = min(x.element_size() for x in (*given, out))
    block = kernels.elementwise.block(itemsize)
    head, tile = _tile([*given, out, *alike], block, fusion.dropout is not None)
    return Plan(
        kernels.fused.fused,
        (-(-(head + size) // block), 1, 1),
        {
            "FORMULA": fusion.forward and getattr(kernels.formulas, fusion.forward),
            **{
                name: _kind(p, place, size, block, tile["PACK"], head == 0)
                for name, p, place in zip(PARAMETERS, params, places, strict=True)
            },
            "DROPOUT": tile.pop("DROPOUT"),
            "INDEX": _index(size),
            "DTYPE": _triton_dtype(_compute(out.dtype)),
            **tile,
        },
        kernels.elementwise.WARPS,
        (head, size, *(n for place in places for n in place or ())),
        out.get_device(),
    )


PARAMETERS = ("SCALE", "BIAS", "SLOPE")


@dataclass(frozen=True, slots=True)
class Backward:
    """One pass over x and dy, and what becomes of the sums of its tiles."""

    plan: Plan
    partial: tuple[int, ...]  # for each parameter: how many sums the tiles leave, 0 for none
    dtype: str
    collect: Plan | None  # where they are over runs


def fused_backward(
    fusion: Fusion,
    dy: Tensor,
    x: Tensor,
    params: Sequence[float | Tensor | None],
    gate: Tensor | None,
    dx: Tensor | None,
    dgate: Tensor | None,
    dparams: Sequence[Tensor | None],
    empty: Empty,
) -> None:
    """The gradients that are not None: one pass over x and dy, and a small one over its sums."""
    if not x.numel():
        for gradient in dparams:
            if gradient is not None:
                gradient.zero_()
        return
    dropout = fusion.dropout
    arrays = (dy, x, gate, dx, dgate)
    name = (fused_backward, fusion.activation, dropout is None)
    key = _key(name, x, arrays, (*params, *dparams))
    way = _plans.get(key)
    if way is None:
        way = _backward_plan(fusion, arrays, params, dparams)
        if way is None:
            _backward_of_copies(fusion, arrays, params, dparams, empty)
            return
        _keep(key, way)
    found = [
        empty((count,), way.dtype) if count else gradient
        for count, gradient in zip(way.partial, dparams, strict=True)
    ]
    launch(way.plan, (*arrays, *found, *_fused_arguments(dropout, params), *way.plan.numbers))
    sums = way.plan.constexprs["SUMS"]
    if way.collect is not None:
        partials, outs = (
            tuple(a if over == "runs" else None for a, over in zip(each, sums, strict=True))
            for each in (found, dparams)
        )
        launch(way.collect, (*partials, *outs, *way.collect.numbers))
    for over, partial, gradient in zip(sums, found, dparams, strict=True):
        if over == "all":
            _sum("linear_dbias", (cast("Tensor", partial),), cast("Tensor", gradient), 1, empty)


def _backward_plan(
    fusion: Fusion,
    arrays: Sequence[Tensor | None],
    params: Sequence[float | Tensor | None],
    dparams: Sequence[Tensor | None],
) -> Backward | None:
    """None where one pass over these arrays, as they lie in memory, does not do."""
    x = cast("Tensor", arrays[1])
    order = _logical_order(fusion, x)
    given = [a for a in arrays if a is not None]
    if order is None or not all(a.permute(order).is_contiguous() for a in given):
        return None
    shape, size = tuple(x.shape[axis] for axis in order), x.numel()
    places: list[Any] = [_place_of(p, order, shape) for p in (*params, *dparams)]
    if None in places:
        return None
    wanted = [(d, p) for d, p in zip(dparams, places[3:], strict=True) if d is not None]
    summed = {place for d, place in wanted if d.numel() not in (1, size)}
    if len(summed) > 1:
        return None
    kernels = _kernels()
    alike: list[Any] = [p for p in (*params, *dparams) if _like(p, size)]
    sums = tuple(
        None if d is None or _like(d, size) else "all" if d.numel() == 1 else "runs"
        for d in dparams
    )
    dtype = _compute(x.dtype)
    itemsize = min(a.element_size() for a in given)
    inner, kept = next(iter(summed)) if summed else (size, 1)
    block = kernels.elementwise.block(itemsize)
    head, tile = _tile([*given, *alike], block, fusion.dropout is not None)
    constexprs = {
        "FORWARD": fusion.forward and getattr(kernels.formulas, fusion.forward),
        "BACKWARD": fusion.backward and getattr(kernels.formulas, fusion.backward),
        "READS": fusion.reads[-1] if "dy" in fusion.reads else "derivative",
        **dict.fromkeys(PARAMETERS),
        "DROPOUT": tile.pop("DROPOUT"),
        "SUMS": sums,
    }
    types = {
        "DTYPE": _triton_dtype(dtype),
        # what is added up is rounded once, behind the sum
        "STORED": _triton_dtype(dtype if any(sums) else _name(x.dtype)),
    }
    numbers: tuple[Any, ...] = tuple(n for place in places[:3] for n in place)
    flat = not summed or inner >= block
    if flat:
        for name, p, place in zip(PARAMETERS, params, places, strict=False):
            constexprs[name] = _kind(p, place, size, block, tile["PACK"], head == 0)
        kernel, grid = kernels.fused.flat_backward, (-(-(head + size) // block), 1, 1)
        constexprs |= {"INDEX": _index(size), **types, **tile}
        numbers = (head, size, inner if summed else None, *numbers)
        left, begun, end, outer = 2, -head, size, size // (inner * kept)
    else:
        moved = sum(a.element_size() for a in (*given, *alike))
        terms = 2 * types["DTYPE"].primitive_bitwidth // 8 * sum(map(bool, sums))
        cut = kernels.fused.columns(inner, kept, head + size, itemsize, terms / moved)
        for name, p, place in zip(PARAMETERS, params, places, strict=False):
            kind = _kind(p, place, size, size + 1, 1, False)
            if kind in ("any", "far"):
                kind = "column" if cut.width % prod(place) == 0 else "any"
            constexprs[name] = kind
        constexprs |= {
            "RUNS": inner > 1,
            "INDEX": _index((cut.rows + cut.together) * cut.width),
            **types,
            "ROWS": cut.together,
            "COLUMNS": cut.columns,
            "PACK": kernels.fused.PACK,  # of which each row and tile has a whole number
            "ALIGNED": tile["ALIGNED"],
        }
        kernel, grid, block = kernels.fused.columns_backward, cut.grid, cut.columns
        left = block if inner == 1 else block // inner + 2
        begun, outer = -head % cut.width, cut.width // (inner * kept) + (head > 0)
        numbers = (head, size, cut.rows, cut.width, cut.chunk, begun, inner, left, *numbers)
        begun %= inner * kept
        end = begun + cut.used
    device = x.get_device()
    tiles, programs = grid[0], prod(grid)
    counts = {None: 0, "all": programs, "runs": programs * left}
    collect = None
    if "runs" in sums:
        lanes, entries = kernels.fused.collecting(kept, flat)
        longest = (inner + block - 2) // block + 1
        collect = Plan(
            kernels.fused.collect,
            (-(-kept // entries), 1, 1),
            {
                "INDEX": _index(end + inner * kept + block),
                "BLOCK": block,
                "LANES": lanes,
                "ENTRIES": entries,
            },
            kernels.fused.COLLECT_WARPS,
            (grid[1], tiles, left, outer, kept, inner, begun, end, longest),
            device,
        )
    plan = Plan(kernel, grid, constexprs, kernels.fused.WARPS, numbers, device)
    return Backward(plan, tuple(counts[each] for each in sums), dtype, collect)


def _backward_of_copies(
    fusion: Fusion,
    arrays: Sequence[Any],
    params: Sequence[float | Tensor | None],
    dparams: Sequence[Tensor | None],
    empty: Empty,
) -> None:
    """By way of copies of what does not lie alike, and another pass for sums of another pattern."""
    dy, x, gate, dx, dgate = arrays
    order = _logical_order(fusion, x) or list(range(x.ndim))
    shape, size = [x.shape[axis] for axis in order], x.numel()
    targets: list[Any] = list(dparams)
    spelled: list[tuple[Tensor, Tensor]] = []
    pattern = None
    for k, gradient in enumerate(dparams):
        if gradient is None or gradient.numel() in (1, size):
            continue
        place = _place_of_shape([gradient.shape[axis] for axis in order], shape)
        if place is None:  # no run of axes, so it is formed element by element and added up then
            terms = empty(tuple(shape), _compute(x.dtype))
            targets[k] = terms.permute([order.index(axis) for axis in range(x.ndim)])
            spelled.append((targets[k], gradient))
        elif place != (pattern := pattern or place):
            targets[k] = None  # first, as dx may be where dy is
            alone = [g if g is gradient else None for g in dparams]
            fused_backward(fusion, dy, x, params, gate, None, None, alone, empty)
    outputs: list[Any] = [g if g is None else g.permute(order) for g in (dx, dgate, *targets)]
    dense = [
        g if g is None or g.is_contiguous() else empty(tuple(g.shape), _name(g.dtype))
        for g in outputs
    ]
    fused_backward(
        fusion,
        _dense(dy, order, empty),
        _dense(x, order, empty),
        [_spelled(p, order, x.shape, empty) for p in params],
        _dense(gate, order, empty),
        dense[0],
        dense[1],
        dense[2:],
        empty,
    )
    for output, result in zip(outputs, dense, strict=True):
        if output is not result:
            output.copy_(result)
    for terms, gradient in spelled:
        reduce("linear_dbias", (terms,), gradient, empty)


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


@dataclass(slots=True)
class Sum:
    """Partial sums of chunks that the shape alone fixes, if there are several; their sums."""

    stages: tuple[Plan, ...]
    partial: tuple[int, int]
    dtype: str

    def launch(self, arrays: Sequence[Tensor], out: Tensor, empty: Empty) -> None:
        a, b = arrays[0], arrays[1] if arrays[1:] else None
        *first, last = self.stages
        for plan in first:
            partial = empty(self.partial, self.dtype)
            launch(plan, (a, b, partial, *plan.numbers))
            a, b = partial, None
        launch(last, (a, b, out, *last.numbers))


def _sum(formula: str, arrays: Sequence[Tensor], out: Tensor, inner: int, empty: Empty) -> None:
    """Of what is contiguous in memory."""
    key: list[Any] = [_sum, formula, inner, arrays[0].numel(), out.numel(), out.get_device()]
    for a in (*arrays, out):
        key += a.dtype, a.data_ptr() & 15
    plans = _plans.get(tuple(key))
    if plans is None:
        plans = _keep(tuple(key), _sum_plans(formula, arrays, out, inner))
    plans.launch(arrays, out, empty)


def _sum_plans(formula: str, arrays: Sequence[Tensor], out: Tensor, inner: int) -> Sum:
    kernels = _kernels()
    compute = _compute(*(array.dtype for array in arrays), out.dtype)
    kept = out.numel()
    summed = arrays[0].numel() // kept
    chunk = kernels.rows.STEPS * kernels.rows.sum_tile(summed, kept, inner)[1]
    chunks = -(-summed // chunk)

    def stage(formula: str, summed: int, inner: int, chunk: int) -> Plan:
        tile_kept, tile_summed = kernels.rows.sum_tile(summed, kept, inner)
        grid = kernels.rows.grid(-(-summed // chunk), -(-kept // tile_kept))
        constexprs = {
            "FORMULA": getattr(kernels.formulas, formula),
            "DTYPE": _triton_dtype(compute),
            "KEPT": tile_kept,
            "SUMMED": tile_summed,
        }
        return Plan(
            kernels.rows.reduce,
            (*grid, 1, 1)[:3],
            constexprs,
            kernels.rows.SUM_WARPS,
            (summed, kept, inner, chunk),
            out.get_device(),
        )

    stages = [stage(formula, summed, inner, summed if chunks == 1 else chunk)]
    if chunks > 1:
        stages.append(stage("linear_dbias", chunks, 1, chunks))
    return Sum(tuple(stages), (chunks, kept), compute)


def prepare_total(x: Tensor, out: Tensor) -> Callable[[Tensor, Tensor, Empty], None]:
    """The sum of arrays like x, which are contiguous, into one element."""
    plans = _sum_plans("linear_dbias", (x,), out, 1)
    return lambda x, out, empty: plans.launch((x,), out, empty)


# -- statistics -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Observing:
    """One pass over x, and a small one over what its programs leave."""

    pass_over: Plan
    fold: Plan
    flags: int  # bytes
    dtype: str


def observe(
    formula: str | None,
    x: Tensor,
    out: Tensor | None,
    parameter: float | Tensor | None,
    bounds: tuple[float | None, float | None],
    moments: Tensor,
    alive: Tensor,
    empty: Empty,
) -> None:
    """out = formula(x, parameter), and what it is like: counted onto moments, noted in alive.

    x and out are (outer, units, inner), contiguous.
    """
    key = _key((observe, formula, bounds), x, (out,), (parameter,))
    way = _plans.get(key)
    if way is None:
        way = _keep(key, _observing(formula, x, out, parameter, bounds))
    parts = empty((5, way.fold.numbers[0]), way.dtype)
    flags = empty((way.flags,), "uint8") if way.flags else None
    low, high = [nan if bound is None else bound for bound in bounds]
    arrays = x, out, parts, flags, *_number_and_array(parameter), low, high
    launch(way.pass_over, (*arrays, *way.pass_over.numbers))
    launch(way.fold, (parts, flags, moments, alive, *way.fold.numbers))


def _observing(
    formula: str | None,
    x: Tensor,
    out: Tensor | None,
    parameter: float | Tensor | None,
    bounds: tuple[float | None, float | None],
) -> Observing:
    kernels = _kernels()
    stats = kernels.stats
    outer, units, inner = x.shape
    size, device = x.numel(), x.get_device()
    pack, _ = _packs([x] if out is None else [x, out], shift=False)
    cut = tiles(outer, units, inner, pack, 16 // x.element_size())
    saturates = None if bounds == (None, None) else "below" if bounds[1] is None else "outside"
    kind = None if parameter is None else "number"
    if parameter is not None and not isinstance(parameter, float):
        kind = "element" if parameter.numel() == 1 else "units"
    dtype = _compute(x.dtype)
    index = _index((cut.rows + cut.chunk) * cut.pitch)
    tail = size % cut.pack > 0
    together, warps, registers = stats.TILES[tail]
    pass_over = Plan(
        stats.observe,
        (cut.across, cut.chunks, 1),
        {
            "FORMULA": formula and getattr(kernels.formulas, formula),
            "P": kind,
            "SATURATES": saturates,
            "RUNS": None if not cut.runs else "any" if inner % cut.pack else "packs",
            "INDEX": index,
            "DTYPE": _triton_dtype(dtype),
            "TAIL": tail,
            "ROWS": together,
            "WARP": WARP,
            "PACK": cut.pack,
        },
        warps,
        (size, cut.pitch, cut.rows, cut.chunk, units, inner, cut.programs),
        device,
        registers=registers,
    )
    entries, lanes = stats.folding(cut.reach * (outer if cut.runs else cut.chunks * cut.repeats))
    fold = Plan(
        stats.fold,
        (1 + -(-units // (cut.together * entries)), 1, 1),
        {
            "SATURATES": saturates,
            "RUNS": cut.runs,
            "TOGETHER": cut.together,
            "INDEX": index,
            "COLUMNS": cut.columns,
            "MERGE": stats.MERGE,
            "ENTRIES": entries,
            "LANES": lanes,
        },
        stats.FOLD_WARPS,
        (cut.programs, cut.chunks, cut.octets, outer, units, inner, cut.repeats, cut.reach),
        device,
    )
    return Observing(pass_over, fold, cut.flags if saturates else 0, dtype)


# -- rows -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Rows:
    """The launches of a row function, one after another."""

    plans: tuple[Plan, ...]
    chunks: bool  # of rows, that leave each other something of this shape
    scratch: tuple[int, ...] | None
    dtype: str

    def launch(self, arrays: tuple[Any, ...], floats: tuple[float, ...], empty: Empty) -> None:
        if self.chunks:
            arrays += (empty(self.scratch, self.dtype) if self.scratch else None,)
        for plan in self.plans:
            launch(plan, (*arrays, *floats, *plan.numbers))


@cache
def _clusters(device: int) -> bool:
    """Whether blocks can share rows: by Triton from 3.7 on, of GPUs from 9.0 on, but not from 12.0
    on, whose blocks have less shared memory than Triton takes for it."""
    import torch
    import triton

    version = tuple(map(int, triton.__version__.split(".")[:2]))
    if device < 0 or triton.knobs.runtime.interpret or version < (3, 7):
        return False
    return (9, 0) <= torch.cuda.get_device_capability(device) < (12, 0)


def _rows_key(name: Any, arrays: Sequence[Tensor | None], more: tuple[Any, ...]) -> Any:
    """All that the launches of rows depend on."""
    key: list[Any] = [name, *more]
    for a in arrays:
        if a is None:
            key.append(None)
        else:
            key += a.dtype, a.data_ptr() & 31, a.shape, a.stride()
    return (*key, cast("Tensor", arrays[0]).get_device())


@dataclass(frozen=True)
class View:
    """The rows of arrays (outer, n, inner), as kernels see them; short rows share a program."""

    extents: tuple[int, int, int]
    step: int  # of axes: inner = 1 is handed over as (1, n, outer)
    strides: tuple[int, ...]
    pack: int  # columns that lie together, at a multiple of their size in all arrays
    head: int  # elements from such a place, of a sector if packs are cut, to the arrays
    cut: bool  # packs by the ends of rows
    beside: int  # rows that lie together likewise
    mixed: bool  # whether columns lie together in some arrays, and rows in others

    @classmethod
    def of(cls, arrays: Sequence[Tensor]) -> View:
        outer, n, inner = arrays[0].shape
        step = 1 if inner > 1 else -1
        extents = (outer, n, inner) if inner > 1 else (1, n, outer)
        steps = [a.stride()[::step] for a in arrays]
        wide = [k for k in range(3) if extents[k] > 1]
        strides = tuple(s for each in steps for s in each)
        mixed = n > 1 and len({each[1] == 1 for each in steps}) > 1
        pack, head = _packs(arrays)
        while pack > 1:
            rest = {tuple(each[k] % pack for k in wide if k != 1) for each in steps}
            if len(rest) == 1 and all(each[1] == 1 for each in steps) and n > 1:
                cut = head > 0 or n % pack > 0 or any(next(iter(rest)))
                head = _sector_head(arrays, pack, head) if cut else 0
                return cls(extents, step, strides, pack, head, cut, 1, mixed)
            across = [each[k] % pack for each in steps for k in wide if k != 2]
            beside = all(each[2] == 1 for each in steps)
            if head == 0 and inner % pack == 0 and beside and not any(across):
                return cls(extents, step, strides, 1, 0, False, pack, mixed)
            pack //= 2
            head %= pack
        return cls(extents, step, strides, 1, 0, False, 1, mixed)


def _rows_plans(
    name: str,
    arrays: Sequence[Tensor],
    held: int,
    planes: int,
    once: bool,
    dtype: str,
    numbers: tuple[Any, ...],
    constexprs: dict[str, Any],
    aside: View | None = None,
) -> Rows:
    """The launches of kernel `name`, or of `name`_chunks.

    held: arrays of which a row is needed twice; planes: what a chunk leaves; numbers and
    constexprs: what a kernel takes besides; aside: the view of arrays and a target beside them.
    """
    kernels = _kernels()
    module = kernels.cross_entropy if name.startswith("cross") else kernels.softmax
    view = View.of(arrays)
    outer, n, inner = view.extents
    beside = inner if view.step == 1 else 1
    itemsize = max(a.element_size() for a in arrays)
    device = arrays[0].get_device()
    mixed = view.mixed or (aside is not None and aside.mixed)
    g = kernels.rows.geometry(
        n, beside, itemsize, held, dtype == "float64", _clusters(device), once, mixed
    )
    # A tile of one row has its ends in a tile of their own. Of several they begin anywhere in a
    # pack, each elsewhere, and of short ones they cost more than they gain.
    narrow = view.cut and (g.regime == "rows" or g.rows > 1)
    pack, head = (1, 0) if narrow else (view.pack, view.head)
    edge = SECTOR // min(a.element_size() for a in arrays) if view.cut and not narrow else 0
    if aside is not None:
        alike = (view.head - aside.head) % view.pack == 0 and not narrow
        alike = alike and (view.pack, view.beside) == (aside.pack, aside.beside)
        constexprs = {
            **constexprs,
            "T_PACK": view.pack if alike else 1,
            "T_BESIDE": view.beside if alike else 1,
        }
    constexprs = {
        **constexprs,
        "DTYPE": _triton_dtype(dtype),
        "ROWS": g.rows,
        "BLOCK": g.block,
    }
    lanes = 32 * g.warps if g.rows == 1 else 1
    shape = {"PACK": pack, "BESIDE": view.beside, "EDGE": edge, "LANES": lanes}
    numbers = (*view.extents, *view.strides, head, *numbers)
    if g.whole:
        grid = kernels.rows.grid(-(-inner // g.across), -(-outer // (g.rows // g.across)))
        constexprs |= {"ACROSS": g.across, "PARTS": g.parts, **shape}
        plan = Plan(getattr(module, name), grid, constexprs, g.warps, numbers, device, g.parts)
        return Rows((plan,), False, None, dtype)
    tiles = outer * -(-inner // g.rows)
    left = g.chunks + (edge > 0)
    batch = kernels.rows.spread(tiles, g.chunks)
    constexprs |= {"MERGE": g.merge, **shape}
    twice = g.rows * n * itemsize * held
    phases = {"both": (tiles if once else kernels.rows.programs(tiles, twice), 1, 1)}
    if not planes:  # chunks have nothing to do with each other
        batch = 1
        phases = {"last": kernels.rows.grid(tiles, g.chunks)}
    elif batch:
        phases = dict.fromkeys(("first", "last"), kernels.rows.grid(tiles, -(-g.chunks // batch)))
    numbers += tiles, g.chunks, left, batch
    plans = tuple(
        Plan(
            getattr(module, f"{name}_chunks"),
            grid,
            {"PHASE": phase, **constexprs},
            g.warps,
            numbers,
            device,
        )
        for phase, grid in phases.items()
    )
    scratch = (planes, next(iter(phases.values()))[0], g.rows, left)
    return Rows(plans, True, scratch if planes else None, dtype)


NO_MASK = (1, 1, 1, 0, 0, 0, 0, 0)


def _mask_place(mask: Tensor, pack: int) -> tuple[tuple[int, ...], int]:
    """What kernels take to find a row's mask, and how many columns of it lie together."""
    lengths, strides = list(mask.shape[:-1]), list(mask.stride()[:-1])
    missing = 4 - len(lengths)
    lengths, strides = [1] * missing + lengths, [0] * missing + strides
    size = mask.element_size()
    together = mask.stride(-1) == 1 and mask.data_ptr() % min(16, pack * size) == 0
    apart = any(s % pack for s, k in zip(strides, lengths, strict=True) if k > 1)
    place = (*lengths[1:], *strides, mask.stride(-1))
    return place, pack if together and not apart else 1


def rows(
    formula: str, arrays: Sequence[Tensor], out: Tensor, scores: Scores | None, empty: Empty
) -> None:
    """softmax, log_softmax or their backward, of rows along the middle axis of three."""
    scale, mask, causal, zero = 1.0, None, 0, False
    if scores is not None:
        scale, mask, causal, zero = scores.scale, scores.mask, scores.causal, scores.zero
    more = scale != 1.0, causal, zero
    key = _rows_key(formula, (out, *arrays, mask), more)
    plans = _plans.get(key)
    if plans is None:
        plans = _keep(key, _softmax_plans(formula, (*arrays, out), scores))
    plans.launch(_given(formula, (*arrays, out), mask), (scale,), empty)


def prepare_rows(
    formula: str, arrays: Sequence[Tensor], out: Tensor, scores: Scores | None, empty: Empty
) -> Callable[[tuple[Tensor, ...], float, Tensor | None], None]:
    """`rows` of arrays, the result's last, and a mask that lie as these do; their shapes need not
    show it."""
    plans = _softmax_plans(formula, (*arrays, out), scores)
    if formula.endswith("_backward") or scores is None or scores.mask is None:
        missing = () if formula.endswith("_backward") else (None,)
        return lambda views, scale, mask: plans.launch((*views, *missing), (scale,), empty)
    return lambda views, scale, mask: plans.launch(_given(formula, views, mask), (scale,), empty)


def _given(formula: str, views: tuple[Tensor, ...], mask: Tensor | None) -> tuple[Any, ...]:
    if formula.endswith("_backward"):
        return views
    if mask is not None and mask.element_size() == 1:
        mask = mask.view(_uint8())
    return (*views, mask)


def _softmax_plans(formula: str, views: tuple[Tensor, ...], scores: Scores | None) -> Rows:
    scale, mask, causal, zero = 1.0, None, 0, False
    if scores is not None:
        scale, mask, causal, zero = scores.scale, scores.mask, scores.causal, scores.zero
    backward = formula.endswith("_backward")
    constexprs: dict[str, Any] = {"LOG": formula.startswith("log_"), "SCALED": scale != 1.0}
    numbers: tuple[Any, ...] = ()
    if not backward:
        place: tuple[int, ...] = NO_MASK
        together = 1
        if mask is not None:
            view = View.of(views)
            place, together = _mask_place(mask, 1 if view.cut else view.pack)
        constexprs |= {"CAUSAL": causal > 0, "ZERO": zero, "M_PACK": together}
        numbers = (causal, *place)
    plain = (scale, mask is None, causal, zero) == (1.0, True, 0, False)
    # Registers: what a mask needs beside x, and what its addresses do, where they are strided.
    beside = mask is not None and View.of(views).step == 1
    held = 4 if beside else 1 if plain and not backward else 2
    return _rows_plans(
        formula.removeprefix("log_"),
        views,
        held,
        1 if backward else 2,
        False,
        _compute(*(view.dtype for view in views)),
        numbers,
        constexprs,
    )


@cache
def _uint8() -> Any:
    import torch

    return torch.uint8


def _losses(
    what: str,  # a gradient, a loss, or both
    arrays: Sequence[Tensor | None],  # logits, target, weight, scale, loss, lse, dlogits
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    empty: Empty,
) -> None:
    """The cross-entropy kernels do whatever they are given arrays for."""
    logits, _, weight, *_ = arrays
    if weight is not None and not weight.is_contiguous():
        weight = _contiguous(weight, empty)
        arrays = (*arrays[:2], weight, *arrays[3:])
    kinds = label_smoothing != 0, z_loss != 0, softcap != 0
    key = _rows_key(what, arrays, (ignore_index, *kinds))
    plans = _plans.get(key)
    if plans is None:
        plans = _keep(key, _losses_plans(what, cast(Any, arrays), ignore_index, kinds))
    classes = cast(Any, logits).shape[1]
    plans.launch(tuple(arrays), _loss_floats(classes, label_smoothing, z_loss, softcap), empty)


def _loss_floats(
    classes: int, label_smoothing: float, z_loss: float, softcap: float
) -> tuple[float, ...]:
    share, inverse = label_smoothing / classes, 1.0 / softcap if softcap else 0.0
    return 1.0 - label_smoothing, share, z_loss, softcap, inverse


def prepare_losses(
    what: str,
    arrays: Sequence[Tensor | None],
    empty: Empty,
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
) -> Callable[..., None]:
    """What `what` runs for arrays that lie as these do; they come in the order of `_losses`."""
    kinds = label_smoothing != 0, z_loss != 0, softcap != 0
    plans = _losses_plans(what, cast(Any, arrays), ignore_index, kinds)
    classes = cast(Any, arrays[0]).shape[1]
    floats = _loss_floats(classes, label_smoothing, z_loss, softcap)
    return lambda *arrays: plans.launch(arrays, floats, empty)


def _losses_plans(
    what: str, arrays: Sequence[Any], ignore_index: int, kinds: tuple[bool, bool, bool]
) -> Rows:
    logits, target, weight, scale, loss, lse, dlogits = arrays
    both = (logits, logits if dlogits is None else dlogits)
    view = View.of(both)
    probabilities = target.ndim == 3
    t = target.stride()[:: view.step]
    smoothing, with_z_loss, capped = kinds
    sums = probabilities or smoothing
    added = probabilities or (smoothing and weight is not None)  # Σ q takes a sum
    if loss is None:
        planes = int(added)
    else:
        planes = 4 if sums else 3
    # Registers: what q and weights need beside z, and what addresses of strided packs do.
    held = 4 if added else 2 if sums or capped else 1
    held *= 2 if view.step == 1 or (probabilities and weight is not None) else 1
    return _rows_plans(
        "cross_entropy",
        both,
        held,
        planes,
        loss is None or dlogits is None,
        _compute(logits.dtype, (lse if loss is None else loss).dtype),
        (
            *(t if probabilities else (t[0], 0, t[1])),
            *((0, 0) if scale is None else scale.stride()[:: view.step]),
            ignore_index,
        ),
        {
            "PROBABILITIES": probabilities,
            "SMOOTHING": smoothing,
            "Z_LOSS": with_z_loss,
            "CAPPED": capped,
        },
        View.of((*both, target)) if probabilities else view,
    )


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    loss: Tensor,
    lse: Tensor,
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    empty: Empty,
) -> None:
    """The loss of each row, and lse."""
    arrays = logits, target, weight, None, loss, lse, None
    _losses("cross_entropy", arrays, ignore_index, label_smoothing, z_loss, softcap, empty)


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
    z_loss: float,
    softcap: float,
    empty: Empty,
) -> None:
    """The loss of each row, and scale times its gradient."""
    arrays = logits, target, weight, scale, loss, None, dlogits
    _losses("with_grad", arrays, ignore_index, label_smoothing, z_loss, softcap, empty)


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
    z_loss: float,
    softcap: float,
    empty: Empty,
) -> None:
    """scale times the gradient of each row, from lse."""
    arrays = logits, target, weight, scale, None, lse, dlogits
    _losses("backward", arrays, ignore_index, label_smoothing, z_loss, softcap, empty)


def target_weight(
    target: Tensor,
    weight: Tensor | None,
    out: Tensor,
    *,
    classes: int,
    ignore_index: int,
) -> None:
    """The weight of each row's class: 1 without weights, 0 where the row is ignored."""
    key = _rows_key("target_weight", (target, weight, out), (classes, ignore_index))
    plan = _plans.get(key)
    if plan is None:
        plan = _keep(key, _target_weight_plan(target, weight, out, classes, ignore_index))
    launch(plan, (target, weight, plan.numbers[0], out, *plan.numbers[1:]))


def prepare_target_weight(
    target: Tensor, weight: Tensor | None, out: Tensor, *, classes: int, ignore_index: int
) -> Callable[[Tensor, Tensor | None, Tensor], None]:
    """`target_weight` of arrays that lie as these do."""
    plan = _target_weight_plan(target, weight, out, classes, ignore_index)
    step, *numbers = plan.numbers
    return lambda target, weight, out: launch(plan, (target, weight, step, out, *numbers))


def _target_weight_plan(
    target: Tensor, weight: Tensor | None, out: Tensor, classes: int, ignore_index: int
) -> Plan:
    kernels = _kernels()
    block = kernels.elementwise.block(4)
    step = 0 if weight is None else weight.stride(0)
    return Plan(
        kernels.cross_entropy.target_weight,
        (-(-out.numel() // block), 1, 1),
        {"DTYPE": _triton_dtype(_compute(out.dtype)), "BLOCK": block},
        kernels.elementwise.WARPS,
        (step, *target.shape, *target.stride(), classes, ignore_index),
        out.get_device(),
    )
