"""One call end to end: where the result goes, which view the kernel sees, and the launch.

Arguments are already checked (`arguments.py`) and in their library's own arrays. A result is
written where the caller wants it: into `out` itself where a kernel can, through a temporary where
`out` overlaps an input in part or cannot be seen as the kernel must see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from operator import itemgetter
from typing import Any, Literal, cast

from .arguments import compute_dtype
from .catalogue import Pass
from .dispatch import Call
from .fusion import Dropout, Fusion
from .libraries import overlap, same_memory
from .routes import Launch
from .scores import Scores

Array = Any
Reduction = Literal["mean", "sum", "none"]


def _deliver(
    call: Call,
    out: Array | None,
    inputs: Sequence[Array],
    fresh: Callable[[], Array],
    write: Callable[[Array], None],
) -> Array:
    """Write the result into `out`, by way of new memory where a direct write would be wrong."""
    library = call.library
    target = fresh() if out is None else out
    indirect = (out is not None and call.computes) and (
        not library.shares(out, call.backend)
        or any(overlap(library, out, x) and not same_memory(library, out, x) for x in inputs)
    )
    result = fresh() if indirect else target
    if call.computes and math.prod(result.shape):
        with call.on():
            write(result)
            if indirect:
                library.copy(target, result)
    if out is not None:
        library.wrote(out)
    return target


def elementwise(
    call: Call,
    kernel: Pass,
    arrays: Sequence[Array],
    params: Sequence[Array | float],
    out: Array | None = None,
) -> Array:
    """One pass over arrays of one shape and dtype, which the result has too."""
    library = call.library
    dtype = library.dtype(arrays[-1])

    def write(result: Array) -> None:
        native = call.native
        call.module.elementwise(
            kernel.formula,
            tuple(native(a) for a in arrays),
            tuple(native(p) for p in params),
            native(result),
            call.scratch,
        )

    inputs = [*arrays, *(p for p in params if not isinstance(p, float))]
    return _deliver(call, out, inputs, lambda: library.empty_like(arrays[-1], dtype), write)


def prepare(call: Call, kernel: Pass, operands: Sequence[Any], out: Array | None = None) -> Launch:
    """`elementwise` for operands like these; into new memory like the last array of them, or into
    arrays like `out`."""
    module, formula, arrays = call.module, kernel.formula, len(kernel.reads)
    like = arrays - 1
    if quick := getattr(module, "prepare", None):
        result = call.library.alike(operands[like]) if out is None else out
        launch = quick(formula, operands[:arrays], operands[arrays:], result)
        if launch is not None:
            return Launch(launch, like, as_given=True)

    def start(operands: Sequence[Any], out: Array) -> None:
        module.elementwise(formula, operands[:arrays], operands[arrays:], out, call.scratch)

    return Launch(start, like)


def fused(
    call: Call,
    fusion: Fusion,
    x: Array,
    params: Sequence[Array | float | None],
    gate: Array | None,
    residual: Array | None,
    out: Array | None = None,
) -> Array:
    """dropout(act(scale·x + bias))·gate + residual; params are scale, bias and slope."""
    library, native = call.library, call.native

    def write(result: Array) -> None:
        call.module.fused(
            fusion,
            native(x),
            tuple(native(p) for p in params),
            native(gate),
            native(residual),
            native(result),
            call.scratch,
        )

    inputs = [a for a in (x, *params, gate, residual) if a is not None and not isinstance(a, float)]
    return _deliver(call, out, inputs, lambda: library.empty_like(x, library.dtype(x)), write)


def prepare_fused(call: Call, fusion: Fusion, operands: Sequence[Any], slope: int) -> Launch:
    """`fused` for operands like these, with whichever dropout if there is one here.

    operands: x, scale, bias, ..., gate, residual; slope: which of them that is.
    """
    module, activation = call.module, fusion.activation
    if quick := getattr(module, "prepare_fused", None):
        launch = quick(fusion, operands, slope, call.library.alike(operands[0]))
        if launch is not None:
            return Launch(launch, 0, as_given=True)

    def start(o: Sequence[Any], out: Array, dropout: Dropout | None) -> None:
        params, fusion = (o[1], o[2], o[slope]), Fusion(activation, dropout)
        module.fused(fusion, o[0], params, o[-2], o[-1], out, call.scratch)

    return Launch(start, 0)


# What a backward of `fused` may be asked for
GRADIENTS = ("x", "scale", "bias", "slope", "gate")


def fused_backward(
    call: Call,
    fusion: Fusion,
    dy: Array,
    x: Array,
    params: Sequence[Array | float | None],
    gate: Array | None,
    wanted: Container[str],
) -> dict[str, Array]:
    """The gradients that are wanted, by name, all in one pass over dy and x.

    A parameter's has its dtype and its shape (x's dtype and ones, if it is a number or None): the
    sum over the axes along which it is broadcast.
    """
    library, native = call.library, call.native
    found: dict[str, Array] = {}
    with call.on():
        for name, a in (("x", x), ("gate", gate)):
            if name in wanted:
                found[name] = library.empty_like(a, library.dtype(a))
        for name, p in zip(("scale", "bias", "slope"), params, strict=True):
            if name in wanted:
                if p is None or isinstance(p, float):
                    found[name] = call.empty((1,) * x.ndim, library.dtype(x))
                else:
                    found[name] = call.empty(tuple(p.shape), library.dtype(p))
        if found:
            dx, dscale, dbias, dslope, dgate = (native(found.get(name)) for name in GRADIENTS)
            call.module.fused_backward(
                fusion,
                native(dy),
                native(x),
                tuple(native(p) for p in params),
                native(gate),
                dx,
                dgate,
                (dscale, dbias, dslope),
                call.scratch,
            )
    return found


def reduce(
    call: Call, kernel: Pass, arrays: Sequence[Array], shape: Sequence[int], dtype: str
) -> Array:
    """The sum of a formula's terms to `shape`, whose axes are the arrays' or 1."""
    out = call.empty(tuple(shape), dtype)
    if math.prod(shape):
        with call.on():
            native = call.native
            call.module.reduce(
                kernel.formula, tuple(native(a) for a in arrays), native(out), call.scratch
            )
    return out


# -- rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowView:
    """How an array is seen as (outer, n, inner) with its rows along n.

    Neighbouring axes need no more than a new shape; others are first brought to the end.
    """

    order: tuple[int, ...]  # of the axes
    shape: tuple[int, int, int]
    moved: tuple[int, ...]  # the array's shape in that order
    parts: tuple[slice, slice, slice]  # of the order: what becomes outer, n, inner

    @classmethod
    def of(cls, shape: Sequence[int], axes: Sequence[int]) -> RowView:
        axes = axes or (0,)
        first, last = axes[0], axes[-1]
        kept = [k for k in range(len(shape)) if k not in axes]
        neighbours = last - first + 1 == len(axes)
        before = [k for k in kept if k < first] if neighbours else kept
        behind = [k for k in kept if k > last] if neighbours else []
        order = (*before, *axes, *behind) if shape else ()

        def size(of: Sequence[int]) -> int:
            return math.prod(shape[k] for k in of) if shape else 1

        sizes = size(before), size(axes), size(behind)
        cuts = 0, len(before), len(order) - len(behind), len(order)
        parts = tuple(slice(a, b) for a, b in pairwise(cuts))
        return cls(order, sizes, tuple(shape[k] for k in order), cast(Any, parts))

    def view(self, call: Call, x: Array) -> Array:
        """x as (outer, n, inner): a view where the strides allow it, else a copy."""
        return call.library.reshape(call.library.permute(x, self.order), self.shape)

    def views(self, call: Call, x: Array) -> bool:
        """Whether `view` shares memory with x: each part has one stride."""
        strides = call.library.strides(x)
        steps = [(n, strides[k]) for n, k in zip(self.moved, self.order, strict=True)]
        return all(
            s == n * t
            for part in self.parts
            for (_, s), (n, t) in pairwise([step for step in steps[part] if step[0] != 1])
        )

    def fresh(self, call: Call, shape: Sequence[int], dtype: str) -> Array:
        """New memory of the array's shape, in that order: `view` shares it."""
        return call.library.empty_in_order(self.order, shape, dtype, call.like)


def _deliver_rows(
    call: Call,
    rows: RowView,
    shape: Sequence[int],
    dtype: str,
    out: Array | None,
    inputs: Sequence[Array],
    write: Callable[[Array], None],
) -> Array:
    """`_deliver` for kernels that see (outer, n, inner)."""

    def fresh() -> Array:
        return rows.fresh(call, shape, dtype)

    if out is None or rows.views(call, out):
        return _deliver(call, out, inputs, fresh, lambda y: write(rows.view(call, y)))
    result = _deliver(call, None, inputs, fresh, lambda y: write(rows.view(call, y)))
    with call.on():
        call.library.copy(out, result)
    call.library.wrote(out)
    return out


MASK_AXES = 4  # of rows, beside the row itself: as many as kernels count along


def _mask_of_rows(call: Call, mask: Array, view: RowView, axes: int) -> Array:
    """A mask of x's number of dimensions as `Scores` says: (k1, …, km, n), broadcast by strides.

    axes: how many of x's are the row's. What strides can say is not copied; else what is copied is
    the row alone where that is enough, or the mask as broadcast.
    """
    library, kept = call.library, len(view.order) - axes
    first = view.parts[1].start

    def rows_last(of_axes: Sequence[int]) -> tuple[int, ...]:
        return (*of_axes[:first], *of_axes[first + axes :], *of_axes[first : first + axes])

    shape = rows_last(view.moved)
    mask = library.permute(mask, rows_last(view.order))

    def steps() -> list[tuple[int, int]]:
        """Length and stride of each axis as broadcast."""
        own = zip(mask.shape, library.strides(mask), strict=True)
        return [(n, 0 if one == 1 else s) for n, (one, s) in zip(shape, own, strict=True)]

    if len(_merged(steps()[kept:])) > 1:
        mask = library.contiguous(library.broadcast(mask, (*mask.shape[:kept], *shape[kept:])))
    if len(_merged(steps()[:kept])) > MASK_AXES:
        mask = library.contiguous(library.broadcast(mask, shape))
    seen = (*_merged(steps()[:kept]), *_merged(steps()[kept:]))
    return library.strided(mask, [n for n, _ in seen], [s for _, s in seen])


def _merged(steps: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Axes (length, stride) with neighbours multiplied together where one stride serves both."""
    found: list[tuple[int, int]] = []
    for n, s in steps:
        if n == 1:
            continue
        if found and found[-1][1] == n * s:
            found[-1] = found[-1][0] * n, s
        else:
            found.append((n, s))
    return found or [(1, 0)]


def rows(
    call: Call,
    kernel: Pass,
    arrays: Sequence[Array],
    axes: Sequence[int],
    out: Array | None = None,
    scores: Scores | None = None,
) -> Array:
    """A row function over the given axes; the result has the last array's shape and dtype.

    scores: with a mask of x's number of dimensions, which broadcasts to x.
    """
    view = RowView.of(arrays[-1].shape, axes)
    inputs = [*arrays]
    if scores is not None and scores.mask is not None:
        inputs.append(scores.mask)

    def write(result: Array) -> None:
        native, seen = call.native, scores
        if scores is not None and scores.mask is not None:
            mask = _mask_of_rows(call, scores.mask, view, len(axes))
            seen = replace(scores, mask=native(mask))
        call.module.rows(
            kernel.formula,
            tuple(native(view.view(call, a)) for a in arrays),
            native(result),
            seen,
            call.scratch,
        )

    shape, dtype = arrays[-1].shape, call.library.dtype(arrays[-1])
    return _deliver_rows(call, view, shape, dtype, out, inputs, write)


def prepare_rows(
    call: Call, kernel: Pass, axes: Sequence[int], operands: Sequence[Any], scores: Scores | None
) -> Launch | None:
    """`rows` for operands like these: what it reads, the scale (1 or another, as scores have it),
    and the mask that scores have.

    None where their facts leave open whether views of them will do: they do of contiguous arrays
    whose axes keep their order, and of a mask that is neither cast nor copied.
    """
    module, library, count = call.module, call.library, len(kernel.reads)
    view = RowView.of(operands[0].shape, axes)
    told = all(library.is_contiguous(a) for a in operands[:count])
    if not told or view.order != tuple(range(len(view.order))):
        return None
    how = scores or Scores()
    mask, lies = how.mask, None
    if mask is not None:
        mask = _mask_of_rows(call, mask, view, len(axes))
        if library.pointer(mask) != library.pointer(operands[-1]):
            return None
        lies = tuple(mask.shape), library.strides(mask)
    formula, shape, scratch = kernel.formula, view.shape, call.scratch
    causal, zero = how.causal, how.zero
    if quick := getattr(module, "prepare_rows", None):
        arrays = [library.reshape(a, shape) for a in operands[:count]]
        result = library.reshape(library.alike(operands[count - 1]), shape)
        seen = Scores(how.scale, mask, causal, zero)
        run = quick(formula, arrays, result, seen, scratch)

        def started(operands: Sequence[Any], out: Array) -> None:
            run((*operands[:count], out), operands[count], operands[-1])

        return Launch(started, count - 1, as_given=True)

    def start(operands: Sequence[Any], out: Array) -> None:
        scale, mask = operands[count:]
        seen = None
        if scale != 1.0 or lies is not None or causal or zero:
            mask = None if lies is None else library.strided(mask, *lies)
            seen = Scores(scale, mask, causal, zero)
        arrays = tuple([a.reshape(shape) for a in operands[:count]])
        module.rows(formula, arrays, out.reshape(shape), seen, scratch)

    return Launch(start, count - 1, as_given=True)


_JACOBIAN = Pass("softmax_backward", ("dy", "y"))


def softmax_jacobian(call: Call, y: Array, axis: int) -> Array:
    """diag(s) - s sᵀ over two new last axes: softmax's backward of every unit vector."""
    library = call.library
    n = y.shape[axis] if y.ndim else 1
    kept = [k for k in range(y.ndim) if k != axis]
    batch = tuple(y.shape[k] for k in kept)
    outer = math.prod(batch)
    dtype = library.dtype(y)
    s = library.reshape(library.permute(y, (*kept, axis) if y.ndim else ()), (outer, n, 1))
    shape = (outer, n, n)
    jacobian = call.empty((*batch, n, n), dtype)
    if call.computes and not outer:  # of long rows the unit vectors alone fill the memory
        return jacobian
    with call.on():
        unit = library.eye(n, dtype, call.like).reshape(1, n, n)
    arrays = (library.broadcast(unit, shape), library.broadcast(s, shape))
    rows(call, _JACOBIAN, arrays, (1,), jacobian.reshape(shape))
    return jacobian


# -- cross-entropy --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """The options of a cross-entropy, and how its logits are seen."""

    axis: int
    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float  # 0: none
    reduction: Reduction
    probabilities: bool  # the target's kind

    @property
    def options(self) -> dict[str, Any]:
        """As kernels take them."""
        return {
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
            "z_loss": self.z_loss,
            "softcap": self.softcap,
        }


_TOTAL = Pass("linear_dbias", ("dy",))  # the plain sum


@dataclass(frozen=True)
class LossView:
    """Logits (outer, classes, inner), target and weight as the kernels see them."""

    loss: Loss
    view: RowView
    logits: Array
    target: Array
    weight: Array | None
    dtype: str  # of loss and lse

    @classmethod
    def of(
        cls, call: Call, logits: Array, target: Array, weight: Array | None, loss: Loss
    ) -> LossView:
        view = RowView.of(logits.shape, (loss.axis,))
        outer, _, inner = view.shape
        if loss.probabilities:
            seen = view.view(call, target)
        else:
            seen = call.library.reshape(target, (outer, inner))
        dtype = compute_dtype(call.library.dtype(logits))
        return cls(loss, view, view.view(call, logits), seen, weight, dtype)

    @property
    def rows(self) -> tuple[int, int]:
        outer, _, inner = self.view.shape
        return outer, inner

    def arguments(self, call: Call) -> tuple[Array, Array, Array | None]:
        return call.native(self.logits), call.native(self.target), call.native(self.weight)


def _weight_of_targets(call: Call, seen: LossView) -> Array:
    """The weight of all targets that count, as a 0-d array."""
    weights = call.empty(seen.rows, seen.dtype)
    if math.prod(seen.rows):
        _, target, weight = seen.arguments(call)
        call.module.target_weight(
            target,
            weight,
            call.native(weights),
            classes=seen.view.shape[1],
            ignore_index=seen.loss.ignore_index,
        )
    return _total(call, weights)


def _total(call: Call, x: Array) -> Array:
    """The sum of (outer, inner)."""
    total = call.empty((), call.library.dtype(x))
    with call.on():
        out = call.native(total.reshape(1, 1))
        call.module.reduce(_TOTAL.formula, (call.native(x),), out, call.scratch)
    return total


def _denominator(call: Call, seen: LossView) -> Array | float:
    """What the reduction divides by."""
    if seen.loss.reduction != "mean":
        return 1.0
    if seen.loss.probabilities:
        return float(math.prod(seen.rows))
    return _weight_of_targets(call, seen)


def _reduced(call: Call, losses: Array, seen: LossView, denominator: Any) -> Array:
    """The losses of the rows as the caller wants them."""
    if seen.loss.reduction == "none":
        return losses
    total = _total(call, losses.reshape(seen.rows))
    return total if seen.loss.reduction == "sum" else call.library.divide(total, denominator)


def _row_shape(logits: Array, loss: Loss) -> tuple[int, ...]:
    return tuple(n for k, n in enumerate(logits.shape) if k != loss.axis)


def cross_entropy(
    call: Call, logits: Array, target: Array, weight: Array | None, loss: Loss
) -> tuple[Array, Array]:
    """The loss, reduced, and the log-sum-exp of every row."""
    with call.on():
        seen = LossView.of(call, logits, target, weight, loss)
        losses, lse = (call.empty(_row_shape(logits, loss), seen.dtype) for _ in range(2))
        if math.prod(seen.rows):
            call.module.cross_entropy(
                *seen.arguments(call),
                call.native(losses.reshape(seen.rows)),
                call.native(lse.reshape(seen.rows)),
                **loss.options,
                empty=call.scratch,
            )
        return _reduced(call, losses, seen, _denominator(call, seen)), lse


def _row_scale(call: Call, seen: LossView, dloss: Array, denominator: Any) -> Array:
    """The gradient that reaches each row's loss, over (outer, inner)."""
    library = call.library
    if dloss.ndim:
        return library.reshape(dloss, seen.rows)
    if seen.loss.reduction == "mean":
        dloss = library.divide(dloss, denominator)
    return library.broadcast(dloss.reshape(1, 1), seen.rows)


def cross_entropy_backward(
    call: Call,
    dloss: Array,
    logits: Array,
    target: Array,
    weight: Array | None,
    lse: Array,
    loss: Loss,
) -> Array:
    """dlogits from what forward kept: logits, target and lse."""
    library = call.library
    seen = LossView.of(call, logits, target, weight, loss)

    def write(dlogits: Array) -> None:
        z, t, w = seen.arguments(call)
        call.module.cross_entropy_backward(
            call.native(_row_scale(call, seen, dloss, _denominator(call, seen))),
            z,
            t,
            w,
            call.native(library.contiguous(library.reshape(lse, seen.rows))),
            call.native(dlogits),
            **loss.options,
            empty=call.scratch,
        )

    dtype = library.dtype(logits)
    return _deliver_rows(call, seen.view, logits.shape, dtype, None, (), write)


def cross_entropy_with_grad(
    call: Call,
    logits: Array,
    target: Array,
    weight: Array | None,
    loss: Loss,
    out: Array | None = None,
) -> tuple[Array, Array]:
    """The loss, reduced, and its gradient by the logits, in one pass over them."""
    library = call.library
    with call.on():
        seen = LossView.of(call, logits, target, weight, loss)
        losses = call.empty(_row_shape(logits, loss), seen.dtype)
        one = call.empty((), seen.dtype)
        library.copy(one, 1.0)
        denominator = _denominator(call, seen)
        scale = _row_scale(call, seen, one, denominator)

    def write(dlogits: Array) -> None:
        call.module.cross_entropy_with_grad(
            call.native(scale),
            *seen.arguments(call),
            call.native(losses.reshape(seen.rows)),
            call.native(dlogits),
            **loss.options,
            empty=call.scratch,
        )

    inputs = [x for x in (logits, target, weight) if x is not None]
    dtype = library.dtype(logits)
    dlogits = _deliver_rows(call, seen.view, logits.shape, dtype, out, inputs, write)
    with call.on():
        return _reduced(call, losses, seen, denominator), dlogits


# The kernels of a loss by what they are given of LossArrays
LossArrays = tuple[Any, ...]  # logits, target, weight, scale, losses, lse, dlogits
_LOSSES: dict[str, Callable[[LossArrays], tuple[Any, ...]]] = {
    "cross_entropy": itemgetter(0, 1, 2, 4, 5),
    "cross_entropy_backward": itemgetter(3, 0, 1, 2, 5, 6),
    "cross_entropy_with_grad": itemgetter(3, 0, 1, 2, 4, 6),
}


class PreparedLoss:
    """What is above, for operands like some: contiguous and as kernels take them."""

    def __init__(self, call: Call, logits: Array, target: Array, weight: Any, loss: Loss) -> None:
        seen = LossView.of(call, logits, target, weight, loss)
        self.call, self.loss, self.module = call, loss, call.module
        self.shape, self.rows, self.dtype = seen.view.shape, seen.rows, seen.dtype
        self.row_shape = _row_shape(logits, loss)
        self.prepared: dict[str, Any] = {}  # launches, once they are asked for

    def __call__(self, logits: Array, target: Array, weight: Any) -> tuple[Array, Array]:
        """`cross_entropy`."""
        empty = self.call.empty
        losses, lse = empty(self.row_shape, self.dtype), empty(self.row_shape, self.dtype)
        self._run("cross_entropy", (logits, target, weight, None, losses, lse, None))
        if self.loss.reduction == "none":
            return losses, lse
        return self._reduced(losses, self._denominator(target, weight)), lse

    def backward(
        self, dloss: Array, logits: Array, target: Array, weight: Any, lse: Array
    ) -> Array:
        dlogits = self.call.library.alike(logits)
        if self.loss.reduction == "mean":
            dloss = self.call.library.divide(dloss, self._denominator(target, weight))
        arrays = (logits, target, weight, dloss, None, lse, dlogits)
        self._run("cross_entropy_backward", arrays)
        return dlogits

    def with_grad(self, logits: Array, target: Array, weight: Any) -> tuple[Array, Array]:
        library, empty = self.call.library, self.call.empty
        losses, dlogits = empty(self.row_shape, self.dtype), library.alike(logits)
        scale = empty((), self.dtype)
        library.copy(scale, 1.0)
        denominator = self._denominator(target, weight)
        if self.loss.reduction == "mean":
            scale = library.divide(scale, denominator)
        arrays = (logits, target, weight, scale, losses, None, dlogits)
        self._run("cross_entropy_with_grad", arrays)
        if self.loss.reduction == "none":
            return losses, dlogits
        return self._reduced(losses, denominator), dlogits

    def _run(self, name: str, arrays: LossArrays) -> None:
        run = self.prepared.get(name)
        if run is None:
            run = self.prepared[name] = self._prepare(name, arrays)
        run(*arrays)

    def _prepare(self, name: str, arrays: LossArrays) -> Callable[..., None]:
        module, scratch, options = self.module, self.call.scratch, self.loss.options
        if quick := getattr(module, "prepare_losses", None):
            return cast(Callable[..., None], quick(name, self._views(*arrays), scratch, **options))
        kernel, given = getattr(module, name), _LOSSES[name]

        def run(*arrays: Any) -> None:
            kernel(*given(self._views(*arrays)), **options, empty=scratch)

        return run

    def _views(self, *arrays: Any) -> LossArrays:
        """As kernels see them."""
        logits, target, weight, scale, losses, lse, dlogits = arrays
        shape, rows = self.shape, self.rows
        if scale is not None:
            none = self.loss.reduction == "none" and scale.ndim
            one = self.call.library.broadcast
            scale = scale.reshape(rows) if none else one(scale.reshape(1, 1), rows)
        return (
            logits.reshape(shape),
            target.reshape(shape if self.loss.probabilities else rows),
            weight,
            scale,
            None if losses is None else losses.reshape(rows),
            None if lse is None else lse.reshape(rows),
            None if dlogits is None else dlogits.reshape(shape),
        )

    def _denominator(self, target: Array, weight: Any) -> Array | float:
        """What the mean divides by."""
        if self.loss.reduction != "mean":
            return 1.0
        if self.loss.probabilities:
            return float(math.prod(self.rows))
        weights = self.call.empty(self.rows, self.dtype)
        target = target.reshape(self.rows)
        run = self.prepared.get("target_weight")
        if run is None:
            options = {"classes": self.shape[1], "ignore_index": self.loss.ignore_index}
            quick = getattr(self.module, "prepare_target_weight", None)
            run = quick and quick(target, weight, weights, **options)
            run = run or partial(self.module.target_weight, **options)
            self.prepared["target_weight"] = run
        run(target, weight, weights)
        return self._total(weights)

    def _total(self, x: Array) -> Array:
        out = self.call.empty((), self.dtype)
        run = self.prepared.get("total")
        if run is None:
            quick = getattr(self.module, "prepare_total", None)
            run = self.prepared["total"] = quick(x, out) if quick else self._summed
        run(x, out, self.call.scratch)
        return out

    def _summed(self, x: Array, out: Array, empty: Any) -> None:
        self.module.reduce(
            _TOTAL.formula, (x.reshape(self.rows),), out.reshape(1, 1), self.call.scratch
        )

    def _reduced(self, losses: Array, denominator: Any) -> Array:
        total = self._total(losses)
        if self.loss.reduction == "sum":
            return total
        return self.call.library.divide(total, denominator)


def prepare_loss(
    call: Call, operands: Sequence[Any], given: Sequence[Any], loss: Loss
) -> Launch | None:
    """Of operands that came as `given`: logits, target, weight, and what else is read. None on the
    host, where targets are looked at, and where operands are no contiguous memory of the caller's.
    """
    library = call.library
    if getattr(call.module, "ON_HOST", False):
        return None
    for a, b in zip(operands, given, strict=True):
        if a is not None and not (
            library.is_contiguous(a) and library.pointer(a) == library.pointer(b)
        ):
            return None
    logits, target, weight = operands[:3]
    return Launch(PreparedLoss(call, logits, target, weight, loss), 0, as_given=True)
