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
FORMULAS = (*ELEMENTWISE, *SUMS, *ROWS, *LOSSES)

ROW_SHAPES = ((2, 33, 1), (2, 1000, 1), (2, 1000, 3), (1, 6000, 1), (1, 70001, 1))
SUM_SHAPES = (((2, 3, 9000), (1, 3, 1)), ((70, 33), (1, 33)), ((20000,), (1,)))
OPTIONS = ((0.0, False), (0.1, True))  # label_smoothing, and whether there are weights
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
            yield formula, partial(backend.elementwise, formula, arrays, params, new(shape), empty)
    for formula, p in SUMS.items():
        for shape, kept in SUM_SHAPES:
            arrays = tuple(new(shape) for _ in p.reads)
            yield formula, partial(backend.reduce, formula, arrays, new(kept), empty)
    for formula, p in ROWS.items():
        for shape in ROW_SHAPES:
            arrays = tuple(new(shape) for _ in p.reads)
            yield formula, partial(backend.rows, formula, arrays, new(shape), empty)
    for target_kind, (smoothing, weighted), shape in product(TARGETS, OPTIONS, ROW_SHAPES):
        outer, classes, inner = shape
        rows = (outer, inner)
        loss, lse, scale = (new(rows, loss_kind) for _ in range(3))
        integers = target_kind != "probabilities"
        target = new(rows, np.dtype(target_kind)) if integers else new(shape)
        weight = new((classes,), loss_kind) if weighted else None
        given = (new(shape), target, weight)
        how = {"ignore_index": -100, "label_smoothing": smoothing, "empty": empty}
        for formula, args in {
            "cross_entropy": (*given, loss, lse),
            "cross_entropy_backward": (scale, *given, lse, new(shape)),
            "cross_entropy_with_grad": (scale, *given, loss, new(shape)),
        }.items():
            yield formula, partial(getattr(backend, formula), *args, **how)
        if integers:
            how = {"classes": classes, "ignore_index": -100}
            yield "target_weight", partial(backend.target_weight, target, weight, loss, **how)
