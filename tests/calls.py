"""Every kernel of the catalogue called once in each of its regimes, on arrays as small as may be.

What comes of the calls is not looked at: the harness records what they launch, so that those
kernels can be counted and compiled. A new record of the catalogue is in the list by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from gpuact.catalogue import FUNCTIONS, Pass
from gpuact.fusion import Dropout, Fusion
from gpuact.scores import Scores
from tests.bounds import compute_dtype
from tests.harness import Executor, named

ELEMENTWISE: dict[str, Pass] = {
    p.formula: p
    for f in FUNCTIONS.values()
    if f.kind == "elementwise"
    for p in (f.forward, f.backward, f.slope)
    if p is not None
}
SUMS = {p.formula: p for f in FUNCTIONS.values() for p in f.sums.values()}
ROWS = {
    p.formula: p for f in FUNCTIONS.values() if f.kind == "rows" for p in (f.forward, f.backward)
}
LOSSES = ("cross_entropy", "cross_entropy_backward", "cross_entropy_with_grad", "target_weight")
ACTIVATIONS = [f.name for f in FUNCTIONS.values() if f.kind == "elementwise"]
FUSED = tuple(f"{name} {way}" for way in ("fused", "fused_backward") for name in ACTIVATIONS)
OBSERVED = tuple(f"{name} observed" for name in ("outputs", *ACTIVATIONS))
FORMULAS = (*ELEMENTWISE, *SUMS, *FUSED, *OBSERVED, *ROWS, *LOSSES)

ROW_SHAPES = (
    *((2, 33, 1), (2, 1000, 1), (2, 1000, 3), (1, 6000, 1), (1, 70001, 1), (1, 131071, 1)),
    *((1, 300, 40), (1, 1000, 64), (1, 3000, 40), (1, 3000, 39)),  # side by side
    *((2, 13, 40), (2, 21, 9)),  # short ones
)
SCORED_SHAPES = ((2, 1000, 1), (1, 70001, 1), (1, 300, 40), (2, 21, 9))
SUM_SHAPES = (((2, 3, 9000), (1, 3, 1)), ((70, 33), (1, 33)), ((20000,), (1,)))
# Runs of a channel that are long and short, one element each, odd; and the shape of a channel's
# parameter, with its neighbours and without
FUSED_SHAPES = (
    ((3, 2, 5000), (1, 2, 1)),
    ((40, 6, 49), (1, 6, 1)),
    ((300, 64), (1, 64)),
    ((5000,), (1,)),
    ((64, 33), (64, 33)),
)
OBSERVED_SHAPES = ((40, 16, 1), (3, 2, 700))  # a unit a column, and in runs
# label_smoothing, whether there are weights, and what stands for z_loss and softcap
OPTIONS = ((0.0, False, 0.0), (0.1, True, 0.0), (0.1, True, 3.0))
TARGETS = ("int64", "int32", "probabilities")

Call = tuple[str, Callable[[], None]]  # the formula, and what runs it


def calls(executor: Executor, dtype: str) -> Iterator[Call]:
    backend, empty = executor.backend, executor.empty
    kind, loss_kind = named(dtype), named(compute_dtype(dtype))

    def new(shape: tuple[int, ...], of: np.dtype[Any] = kind) -> Any:
        return executor.place(np.ones(shape, of)).native

    for formula, p in ELEMENTWISE.items():
        for shape in ((1600,), (2, 6, 35)):  # whole blocks and packs; an odd size, in channels
            arrays = tuple(new(shape) for _ in p.reads)
            params: tuple[Any, ...] = (0.5,) * len(p.parameters)
            if len(shape) > 1:
                params = tuple(new((1, 6, 1)) for _ in p.parameters)
            yield (
                formula,
                partial(backend.elementwise, formula, arrays, params, new(shape), empty),
            )
    for formula, p in SUMS.items():
        for shape, kept in SUM_SHAPES:
            arrays = tuple(new(shape) for _ in p.reads)
            yield formula, partial(backend.reduce, formula, arrays, new(kept), empty)
    for activation in ACTIVATIONS:
        yield from fused(executor, activation, new)
    yield from observed(executor, new)
    for formula, p in ROWS.items():
        for shape in ROW_SHAPES:
            arrays = tuple(new(shape) for _ in p.reads)
            yield formula, partial(backend.rows, formula, arrays, new(shape), None, empty)
    for formula in ("softmax", "log_softmax"):
        for shape in SCORED_SHAPES:
            rows, n, inner = shape
            x, y, wide = new(shape), new(shape), (rows * inner, n)
            for scores in (
                Scores(scale=0.5, causal=rows),
                Scores(mask=new(wide, np.dtype(bool))),
                Scores(scale=0.5, mask=new(wide), zero=True),
            ):
                yield formula, partial(backend.rows, formula, (x,), y, scores, empty)
    for target_kind, option, shape in product(TARGETS, OPTIONS, ROW_SHAPES):
        smoothing, weighted, softcap = option
        if (target_kind == "int32" or softcap) and shape not in SCORED_SHAPES:
            continue  # as int64, but for one load; as without a cap
        outer, classes, inner = shape
        rows = (outer, inner)
        loss, lse, scale = (new(rows, loss_kind) for _ in range(3))
        integers = target_kind != "probabilities"
        target = new(rows, np.dtype(target_kind)) if integers else new(shape)
        weight = new((classes,), loss_kind) if weighted else None
        given = (new(shape), target, weight)
        how = {"ignore_index": -100, "label_smoothing": smoothing, "empty": empty}
        how |= {"z_loss": softcap, "softcap": softcap}
        for formula, args in {
            "cross_entropy": (*given, loss, lse),
            "cross_entropy_backward": (scale, *given, lse, new(shape)),
            "cross_entropy_with_grad": (scale, *given, loss, new(shape)),
        }.items():
            yield formula, partial(getattr(backend, formula), *args, **how)
        if integers:
            how = {"classes": classes, "ignore_index": -100}
            yield "target_weight", partial(backend.target_weight, target, weight, loss, **how)


def observed(executor: Executor, new: Callable[..., Any]) -> Iterator[Call]:
    """An activation whose outputs are looked at, and outputs that are there."""
    for name, shape in product(("outputs", *ACTIVATIONS), OBSERVED_SHAPES):
        record = FUNCTIONS.get(name)
        formula, slopes = None, [None]
        if record is not None and name != "linear":
            formula = record.forward.formula
            slopes = {"leaky_relu": [0.5], "prelu": [new((shape[1],)), new((1,))]}.get(name, [None])
        for slope in slopes:
            x, y = new(shape), None if record is None else new(shape)
            bounds = FUNCTIONS["tanh"].saturated if record is None else record.saturated
            moments, alive = new((5,), np.dtype(np.float64)), new((shape[1],), np.dtype(np.uint8))
            args = (formula, x, y, slope, bounds, moments, alive, executor.empty)
            yield f"{name} observed", partial(executor.backend.observe, *args)


def fused(executor: Executor, activation: str, new: Callable[..., Any]) -> Iterator[Call]:
    """With everything and with next to nothing; where the activation learns, in every regime."""
    backend, empty = executor.backend, executor.empty
    whole, bare = Fusion(activation, Dropout(0.5, seed=1)), Fusion(activation)
    learns = bool(FUNCTIONS[activation].sums)
    for fusion in (whole, bare):
        for shape, kept in FUSED_SHAPES if learns else FUSED_SHAPES[1:2]:
            x, dy, gate, residual, y, dx, dgate = (new(shape) for _ in range(7))
            slope = new(kept) if activation == "prelu" else 0.5 if fusion.slope else None
            scale, bias = (new(kept) if fusion is whole else None for _ in range(2))
            params = (scale, bias, slope)
            dparams = tuple(new(kept) if hasattr(p, "shape") else None for p in params)
            if fusion is bare:
                gate = residual = dgate = None
            if activation == "linear" and fusion is bare:  # linear_backward
                params, dparams = (new(kept), None, None), (new(kept), new(kept), None)
            args = (fusion, x, params, gate, residual, y, empty)
            yield f"{activation} fused", partial(backend.fused, *args)
            args = (fusion, dy, x, params, gate, dx, dgate, dparams, empty)
            yield f"{activation} fused_backward", partial(backend.fused_backward, *args)
