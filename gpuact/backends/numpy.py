"""Runs the reference on the CPU, in blocks that stay in the cache, on a few threads.

An expression over whole arrays goes to memory once per operation and asks the system for every
temporary anew; page faults then cost more than the arithmetic. Here `np.nditer` hands out pieces of
512 KiB (cast to the precision of the computation, whatever the strides), the reference computes on
them, and large arrays are shared among threads, for ufuncs release the interpreter's lock.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from inspect import signature
from itertools import pairwise, product
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .. import reference
from ..fusion import Dropout, Fusion
from ..libraries import HALF
from ..scores import Scores

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Array = npt.NDArray[Any]
Empty = Callable[[tuple[int, ...], str], Array]

ON_HOST = True  # so that to look at what an array holds waits for nothing

# Elements of a piece. Large ones, for the threads hand the interpreter's lock to and fro between
# any two operations: at 2^14 two threads are slower than one, here they are twice as fast.
BLOCK = 1 << 17  # 512 KiB of float32: a few temporaries, in the cache
ROW_BLOCK = 1 << 18  # rows are worked on in the result itself
STRIP, LARGE_BLOCK = 256, 1 << 20  # rows side by side where the row is not the last axis
PARALLEL = 1 << 20  # elements from which handing work to threads pays, on busy cores too
WORKERS = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
SPANS = 8 * WORKERS  # pieces of a large array: more than threads, so that none waits for long


def why_not() -> None:
    """NumPy is a hard dependency: it always runs."""


@cache
def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """float32 for half types, else itself."""
    return np.dtype(np.float32) if dtype.name in HALF else dtype


@cache
def _formula(name: str) -> tuple[Callable[..., Any], bool]:
    """A formula of the reference, and whether it writes its last step into `out`."""
    function = getattr(reference, name)
    return function, "out" in signature(function).parameters


@cache
def _pool(pid: int) -> ThreadPoolExecutor:
    """One pool a process: threads do not survive a fork."""
    from concurrent.futures import ThreadPoolExecutor  # not to be had where the interpreter ends

    return ThreadPoolExecutor(max(1, WORKERS - 1), thread_name_prefix="gpuact")


def _hire(take: Callable[[], None], count: int) -> list[Future[None]]:
    """Threads that work beside the caller: as many as there are to be had.

    There are none once the main thread has ended, which others outlive, nor for functions that run
    at exit; and the system may refuse more.
    """
    hired: list[Future[None]] = []
    hiring = Lock()

    def work(k: int) -> None:
        with hiring:
            if k >= len(hired):  # queued, but refused a thread: nobody waits for this one
                return
        take()

    with hiring:
        try:
            for k in range(count):
                hired.append(_pool(os.getpid()).submit(work, k))
        except RuntimeError:
            _pool.cache_clear()  # and with the pool what is queued there in vain
    return hired


@cache
def _keep_blocks() -> None:
    """Have the C library keep freed blocks instead of returning them to the system each time.

    glibc returns blocks above a threshold at once, and every new one then pays its page faults: a
    third of the time of a sigmoid. The threshold follows the largest block freed so far; these
    16 MiB are never touched.
    """
    np.empty(1 << 24, np.uint8)


def _share(work: Callable[[Any], None], pieces: Iterable[Any], size: int) -> None:
    """Do all pieces; where the arrays are large, threads help.

    The caller works too and does not wait for the others to wake, which can take milliseconds.
    """
    _keep_blocks()
    waiting = deque(pieces)

    def take() -> None:
        with np.errstate(all="ignore"):  # NaN and infinity are values here, not accidents
            while waiting:
                try:
                    piece = waiting.popleft()
                except IndexError:  # another thread took the last one
                    return
                work(piece)

    helping = _hire(take, WORKERS - 1) if size >= PARALLEL else []
    try:
        take()
    finally:
        waiting.clear()
        for helper in helping:
            if not helper.cancel():
                helper.result()


def _spans(n: int, count: int) -> list[tuple[int, int]]:
    """range(n) in `count` pieces of nearly equal length."""
    return list(pairwise(n * k // count for k in range(count + 1)))


def elementwise(
    formula: str,
    arrays: Sequence[Array],
    params: Sequence[Array | float],
    out: Array,
    empty: Empty,
) -> None:
    function, takes_out = _formula(formula)

    def work(values: Sequence[Array], y: Array, first: int) -> None:
        if takes_out:
            function(*values, out=y)
        else:
            y[...] = function(*values)

    _over_pieces(work, (*arrays, *params), out, "K")


def _over_pieces(
    work: Callable[[Sequence[Any], Array, int], None],
    operands: Sequence[Array | float | None],
    out: Array,
    order: Literal["C", "K"],
) -> None:
    """work(values, y, first) for each piece of out, first being its first element in this order.

    Values are the operands' pieces in the precision of the computation, numbers as such, None as it
    is.
    """
    compute = compute_dtype(out.dtype)
    arrays = [a for a in operands if isinstance(a, np.ndarray)]
    operand_flags: list[list[Any]] = [*[["readonly"]] * len(arrays), ["writeonly"]]
    with np.errstate(all="ignore"):  # a number may be infinite, or 0, in this precision
        scalars = [compute.type(a) if isinstance(a, float) else None for a in operands]
        pieces = np.nditer(
            [*arrays, out],
            flags=["external_loop", "buffered", "ranged", "delay_bufalloc", "zerosize_ok"],
            op_flags=operand_flags,
            op_dtypes=[compute] * (len(arrays) + 1),
            order=order,
            casting="unsafe",
            buffersize=BLOCK,
        )

    def run(span: tuple[int, int]) -> None:
        mine = pieces.copy()
        mine.iterrange = span  # type: ignore[misc]  # the stub is wrong: it can be set
        first = span[0]
        for *blocks, y in mine:
            block = iter(blocks)
            values = [
                next(block) if isinstance(a, np.ndarray) else scalar
                for a, scalar in zip(operands, scalars, strict=True)
            ]
            work(values, y, first)
            first += y.size

    _share(run, _spans(out.size, SPANS if out.size >= PARALLEL else 1), out.size)


def _step(formula: str | None) -> Callable[..., Array] | None:
    return None if formula is None else _formula(formula)[0]


def _drop(dropout: Dropout | None) -> tuple[Callable[[int, int], Array | None], float]:
    """Which of `count` elements from `first` on are dropped, and the factor of the others."""
    if dropout is None:
        return lambda first, count: None, 1.0
    return lambda first, count: reference.dropped(first, count, dropout), dropout.scale


def fused(
    fusion: Fusion,
    x: Array,
    params: Sequence[Array | float | None],
    gate: Array | None,
    residual: Array | None,
    out: Array,
    empty: Empty,
) -> None:
    forward = _step(fusion.forward)
    drop, kept = _drop(fusion.dropout)

    def work(values: Sequence[Array], y: Array, first: int) -> None:
        mask = drop(first, y.size)
        y[...] = reference.fused(*values, forward=forward, drop=mask, kept=kept)

    # a mask follows the elements' logical order, else theirs in memory is the fastest
    order: Literal["C", "K"] = "C" if fusion.dropout else "K"
    _over_pieces(work, (x, *params, gate, residual), out, order)


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
    outputs = dict(zip(("x", "gate", "scale", "bias", "slope"), (dx, dgate, *dparams), strict=True))
    given = {name: np.atleast_1d(out) for name, out in outputs.items() if out is not None}
    compute = compute_dtype(x.dtype)
    forward, backward = _step(fusion.forward), _step(fusion.backward)
    drop, kept = _drop(fusion.dropout)
    operands = [p if p is None or isinstance(p, float) else np.atleast_1d(p) for p in params]
    dy, x = np.atleast_1d(dy, x)
    gate = None if gate is None else np.atleast_1d(gate)
    summed = {name for name, out in given.items() if out.shape != x.shape}
    pieces = list(_contiguous_pieces(x.shape))
    partials: list[dict[str, Array]] = [{} for _ in pieces]

    def part(a: Any, where: tuple[Any, ...]) -> Any:
        if a is None or isinstance(a, float):
            return a if a is None else compute.type(a)
        return a[_narrow(a.shape, where)].astype(compute, copy=False)

    def work(k: int) -> None:
        where, first = pieces[k]
        values = [part(a, where) for a in (dy, x, *operands, gate)]
        shape = values[0].shape
        mask = drop(first, values[0].size)
        found = reference.fused_backward(
            *values,
            forward=forward,
            backward=backward,
            reads=fusion.reads,
            drop=None if mask is None else mask.reshape(shape),
            kept=kept,
            wanted=given.keys(),
        )
        for name, value in found.items():
            if name in summed:
                axes = tuple(axis for axis, n in enumerate(given[name].shape) if n == 1)
                # float64 makes the sum exact to the last bits of float32 in whatever order
                partials[k][name] = value.sum(axes, dtype=np.float64, keepdims=True)
            else:
                given[name][where] = value

    _share(work, range(len(pieces)), x.size)
    with np.errstate(all="ignore"):  # a sum may overflow its dtype: infinity is its value then
        for name in summed:
            total = np.zeros(given[name].shape)
            for (where, _), partial in zip(pieces, partials, strict=True):
                total[_narrow(total.shape, where)] += partial[name]
            given[name][...] = total


def _narrow(shape: tuple[int, ...], where: tuple[Any, ...]) -> tuple[Any, ...]:
    """Where the piece of an array of this shape is that is broadcast along some axes."""
    return tuple(slice(None) if n == 1 else at for n, at in zip(shape, where, strict=False))


def _contiguous_pieces(shape: tuple[int, ...]) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Index and first element of pieces that are runs of elements in C order, a block each."""
    axis = next(k for k in range(len(shape)) if prod(shape[k + 1 :]) <= BLOCK)
    inside = prod(shape[axis + 1 :])
    thick = max(1, BLOCK // max(1, inside))
    first = 0
    for outer in product(*map(range, shape[:axis])):
        where = tuple(slice(i, i + 1) for i in outer)
        for i in range(0, shape[axis], thick):
            yield (*where, slice(i, i + thick)), first + i * inside
        first += shape[axis] * inside


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
    """out = formula(x, parameter), and what it is like: counted onto moments, noted in alive."""
    compute = compute_dtype(x.dtype)
    pieces = [where for where, _ in _contiguous_pieces(x.shape)]
    found: list[Any] = [()] * len(pieces)
    noting = Lock()
    slopes = parameter
    if isinstance(parameter, np.ndarray):
        with np.errstate(all="ignore"):  # a number may be infinite, or 0, in this precision
            slopes = parameter.reshape(1, -1, 1).astype(compute, copy=False)

    def work(k: int) -> None:
        where = pieces[k]
        y = x[where].astype(compute, copy=False)
        if formula is not None:
            given = [] if slopes is None else [slopes]
            if isinstance(slopes, np.ndarray):
                given = [slopes[_narrow(slopes.shape, where)]]
            elif slopes is not None:
                given = [compute.type(slopes)]
            y = _formula(formula)[0](y, *given)
        if out is not None:
            out[where] = y
            y = out[where].astype(compute, copy=False)  # as it was rounded
        found[k], units = reference.statistics(y, *bounds)
        with noting:
            alive[where[1] if len(where) > 1 else slice(None)] |= units

    _share(work, range(len(pieces)), x.size)
    with np.errstate(all="ignore"):
        moments[...] = functools.reduce(reference.merged, found, tuple(moments.tolist()))


def reduce(formula: str, arrays: Sequence[Array], out: Array, empty: Empty) -> None:
    function = getattr(reference, formula)
    compute = compute_dtype(arrays[0].dtype)
    out, *arrays = np.atleast_1d(out, *arrays)
    shape = arrays[0].shape
    if not arrays[0].size:
        out[...] = 0
        return
    summed = tuple(axis for axis, n in enumerate(out.shape) if n == 1)
    cut = int(np.argmax(shape))  # slabs along the longest axis
    thick = max(1, BLOCK * shape[cut] // arrays[0].size)
    before = (slice(None),) * cut
    slabs = [(*before, slice(i, i + thick)) for i in range(0, shape[cut], thick)]
    partials: list[Array] = [np.zeros(())] * len(slabs)

    def work(k: int) -> None:
        terms = function(*(a[slabs[k]].astype(compute, copy=False) for a in arrays))
        # float64 makes the sum exact to the last bits of float32 in whatever order
        partials[k] = terms.sum(summed, dtype=np.float64, keepdims=True)

    _share(work, range(len(slabs)), arrays[0].size)
    with np.errstate(all="ignore"):  # a sum may overflow out's dtype: infinity is its value then
        if cut in summed:
            out[...] = np.sum(partials, axis=0)
        else:
            for slab, part in zip(slabs, partials, strict=True):
                out[slab] = part


# -- rows -----------------------------------------------------------------------------------------


def _blocks(outer: int, n: int, inner: int) -> list[tuple[slice, slice]]:
    """Pieces of (outer, inner) whose rows, n long, fill a block.

    Rows that lie side by side stay together, up to a larger block: NumPy is slow on short strips.
    """
    wide = min(inner, max(16, min(STRIP, LARGE_BLOCK // n), ROW_BLOCK // n))
    tall = max(1, ROW_BLOCK // (n * wide))
    corners = product(range(0, outer, tall), range(0, inner, wide))
    return [(slice(o, o + tall), slice(i, i + wide)) for o, i in corners]


def _rows_of(a: Array, block: tuple[slice, slice], dtype: np.dtype[Any]) -> Array:
    """One block of an (outer, n, inner) array as contiguous rows (…, n)."""
    return np.ascontiguousarray(a[block[0], :, block[1]].swapaxes(1, 2), dtype)


def _score_operands(
    scores: Scores, rows: Any, columns: slice, compute: np.dtype[Any]
) -> tuple[float, Array | None, Array | None]:
    """scale, mask and part of these rows (numbers in C order, of any shape) and columns."""
    added = part = None
    if scores.mask is not None:
        mask = scores.mask[(*np.unravel_index(rows, scores.mask.shape[:-1]), columns)]
        if mask.dtype == bool:
            part = mask
        else:
            added = mask.astype(compute, copy=False)
    if scores.causal:
        last = np.asarray(rows)[..., None] % scores.causal
        before = np.arange(columns.start, columns.stop) <= last
        part = before if part is None else part & before
    return scores.scale, added, part


def _score_options(formula: str, scores: Scores | None) -> dict[str, Any]:
    """What the formula itself takes of them."""
    if scores is None:
        return {}
    return {"zero": scores.zero} if formula == "softmax" else {"scale": scores.scale}


def rows(
    formula: str, arrays: Sequence[Array], out: Array, scores: Scores | None, empty: Empty
) -> None:
    outer, n, inner = out.shape
    compute = compute_dtype(out.dtype)
    if n > LONG_ROW:
        for o, i in product(range(outer), range(inner)):
            row = [a[o, :, i] for a in arrays]
            _long_row(formula, row, out[o, :, i], scores, o * inner + i, compute)
        return
    function, _ = _formula(formula)
    axis = -1 if inner == 1 else 1  # NumPy is fastest along the last axis
    options = _score_options(formula, scores)

    def scored(x: Array, block: tuple[slice, slice]) -> Array:
        assert scores is not None
        numbers = np.arange(outer * inner).reshape(outer, inner)[block]
        of_rows = numbers[:, 0] if inner == 1 else numbers
        scale, *rest = _score_operands(scores, of_rows, slice(0, n), compute)
        if inner > 1:
            rest = [None if a is None else a.swapaxes(1, 2) for a in rest]
        return reference.scores(x, scale, *rest)

    def work(block: tuple[slice, slice]) -> None:
        where: Any = (block[0], slice(None), 0 if inner == 1 else block[1])
        blocks = [a[where].astype(compute, copy=False) for a in arrays]
        if scores is not None and formula == "softmax":
            blocks = [scored(blocks[0], block)]
        if out.dtype == compute:
            function(*blocks, axis=axis, out=out[where], **options)
        else:
            out[where] = function(*blocks, axis=axis, **options)

    _share(work, _blocks(outer, n, inner), out.size)


LONG_ROW = 1 << 18  # elements: beyond it a row is itself cut, so that no temporary has its size


def _long_row(
    formula: str,
    arrays: Sequence[Array],
    out: Array,
    scores: Scores | None,
    row: int,
    compute: np.dtype[Any],
) -> None:
    """One row in chunks: each gives its statistics, all are merged, each is then finished."""
    statistics, merge, finish = reference.CHUNKED[formula]
    chunks = [slice(i, min(i + BLOCK, out.size)) for i in range(0, out.size, BLOCK)]
    partials: list[Any] = [None] * len(chunks)
    forward = scores is not None and formula == "softmax"

    def chunk(k: int) -> list[Array]:
        values = [a[chunks[k]].astype(compute, copy=False) for a in arrays]
        if scores is not None and forward:
            operands = _score_operands(scores, row, chunks[k], compute)
            values = [reference.scores(values[0], *operands)]
        return values

    def measure(k: int) -> None:
        partials[k] = statistics(*chunk(k))

    def write(k: int) -> None:
        value = finish(*chunk(k), *merged)
        if scores is not None and not forward:
            value = value * compute.type(scores.scale)
        out[chunks[k]] = value

    _share(measure, range(len(chunks)), out.size)
    with np.errstate(all="ignore"):
        merged = merge(*(np.array(column) for column in zip(*partials, strict=True)))
        if scores is not None and forward and scores.zero:
            merged = reference.spared(*merged)
    _share(write, range(len(chunks)), out.size)


# -- cross-entropy --------------------------------------------------------------------------------


def _target_of(target: Array, block: tuple[slice, slice], dtype: np.dtype[Any]) -> Array:
    """The block's classes (rows,), or its probabilities (rows, classes)."""
    if target.ndim == 2:
        return target[block].ravel()
    probabilities = _rows_of(target, block, dtype)
    return probabilities.reshape(-1, probabilities.shape[-1])


def _cross_entropy(
    logits: Array,
    target: Array,
    weight: Array | None,
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    loss: Array | None = None,
    lse: Array | None = None,
    dlogits: Array | None = None,
    scale: Array | None = None,
) -> None:
    """Forward where `loss` is given, backward where `dlogits` is, both where both are."""
    outer, classes, inner = logits.shape
    compute = compute_dtype(logits.dtype)
    weights = None if weight is None else weight.astype(compute, copy=False)
    options = (ignore_index, label_smoothing, z_loss)

    def work(block: tuple[slice, slice]) -> None:
        z = _rows_of(logits, block, compute)
        shape = z.shape
        z = reference.capped(z.reshape(-1, classes), softcap)
        t = _target_of(target, block, compute)
        if loss is None:
            assert lse is not None  # backward reads what forward wrote
            log_sum = lse[block].ravel()
        else:
            value, log_sum = reference.cross_entropy(z, t, weights, *options)
            loss[block] = value.reshape(shape[:2])
            if lse is not None:
                lse[block] = log_sum.reshape(shape[:2])
        if dlogits is not None and scale is not None:
            dz = reference.cross_entropy_backward(
                scale[block].ravel(), z, t, weights, log_sum, *options, softcap, stored=loss is None
            )
            dlogits[block[0], :, block[1]] = dz.reshape(shape).swapaxes(1, 2)

    _share(work, _blocks(outer, classes, inner), logits.size)


def cross_entropy(
    logits: Array,
    target: Array,
    weight: Array | None,
    loss: Array,
    lse: Array,
    *,
    empty: Empty,
    **options: Any,
) -> None:
    _cross_entropy(logits, target, weight, loss=loss, lse=lse, **options)


def cross_entropy_backward(
    scale: Array,
    logits: Array,
    target: Array,
    weight: Array | None,
    lse: Array,
    dlogits: Array,
    *,
    empty: Empty,
    **options: Any,
) -> None:
    _cross_entropy(logits, target, weight, lse=lse, dlogits=dlogits, scale=scale, **options)


def cross_entropy_with_grad(
    scale: Array,
    logits: Array,
    target: Array,
    weight: Array | None,
    loss: Array,
    dlogits: Array,
    *,
    empty: Empty,
    **options: Any,
) -> None:
    _cross_entropy(logits, target, weight, loss=loss, dlogits=dlogits, scale=scale, **options)


def target_weight(
    target: Array, weight: Array | None, out: Array, *, classes: int, ignore_index: int
) -> None:
    counted = (target != ignore_index) & (target >= 0) & (target < classes)
    out[...] = counted if weight is None else np.where(counted, weight[target * counted], 0)
