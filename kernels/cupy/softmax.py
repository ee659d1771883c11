"""softmax and log_softmax, forward and backward: what their kernels are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import element_strides
from .rows import Operation, view_arguments

if TYPE_CHECKING:
    from ...scores import Scores


def operation(
    formula: str, arrays: Sequence[Any], out: Any, scores: Scores | None
) -> tuple[Operation, tuple[Any, ...]]:
    """`formula` over axis 1 of (outer, n, inner) arrays, and which arrays these are."""
    views = (*arrays, out)
    scale = 1.0 if scores is None else scores.scale
    given = [*(argument for view in views for argument in view_arguments(view)), scale]
    macros: dict[str, Any] = {"LOG": str(formula.startswith("log_")).lower()}
    if formula.endswith("_backward"):
        macros["BACKWARD"] = 1
        return Operation("softmax", formula, tuple(given), {}, macros, 2), views
    mask = None if scores is None else scores.mask
    strides, sizes = (0,) * 5, (1,) * 4
    if mask is not None:
        missing = 5 - mask.ndim
        strides = (0,) * missing + element_strides(mask)
        sizes = (1,) * missing + mask.shape[:-1]
    macros["MASK"] = 0 if scores is None else 3 if mask is None else 1 if mask.dtype == bool else 2
    causal, zero = (0, 0) if scores is None else (scores.causal, scores.zero)
    given += [mask, strides[-1], *sizes, *strides[:-1], causal, np.int32(zero)]
    plain = scores is None
    return Operation("softmax", formula, tuple(given), {}, macros, 2, plain=plain), views
