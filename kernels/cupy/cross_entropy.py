"""Cross-entropy, its gradient, and both at once: their module and the geometry of a launch."""

from __future__ import annotations

from functools import cache
from typing import Any

from . import Launch, compute_name, element_strides, raw_module, row_geometry, text

THREADS = 256  # of a block of target_weight, a row each


@cache
def module(logits: Any, target: Any, weight: Any) -> Any:
    """The kernels for arrays of these dtypes; without weights any will do for theirs."""
    types = {
        "X": logits.name,
        "T": target.name,
        "W": weight.name,
        "C": compute_name(logits.name),
    }
    return raw_module(types, text("rows.cuh"), text("cross_entropy.cuh"))


def forward(logits: Any, target: Any, weight: Any, loss: Any, lse: Any, *options: Any) -> Launch:
    return _rows("cross_entropy", logits, target, weight, (*_rows_of(logits), loss, lse), *options)


def backward(
    scale: Any, logits: Any, target: Any, weight: Any, lse: Any, dlogits: Any, *options: Any
) -> Launch:
    args = (*_rows_of(scale), *_rows_of(logits), lse, *_rows_of(dlogits))
    return _rows("cross_entropy_backward", logits, target, weight, args, *options)


def with_grad(
    scale: Any, logits: Any, target: Any, weight: Any, loss: Any, dlogits: Any, *options: Any
) -> Launch:
    args = (*_rows_of(scale), *_rows_of(logits), loss, *_rows_of(dlogits))
    return _rows("cross_entropy_with_grad", logits, target, weight, args, *options)


def target_weight(target: Any, weight: Any, out: Any, classes: int, ignore_index: int) -> Launch:
    """Each row's weight, one thread a row."""
    outer, inner = out.shape
    kernels = module(out.dtype, target.dtype, (out if weight is None else weight).dtype)
    args = (*_rows_of(target), *_weights(weight), out, outer * inner, classes, inner, ignore_index)
    return kernels, "target_weight", (-(-out.size // THREADS),), (THREADS,), args


def _rows(
    kernel: str,
    logits: Any,
    target: Any,
    weight: Any,
    args: tuple[Any, ...],
    ignore_index: int,
    label_smoothing: float,
) -> Launch:
    outer, n, inner = logits.shape
    kernels = module(logits.dtype, target.dtype, (logits if weight is None else weight).dtype)
    grid, block = row_geometry(logits.shape)
    shape = (outer * inner, n, inner)
    smoothing = (1.0 - label_smoothing, label_smoothing / n)
    options = (*_rows_of(target), *_weights(weight), *shape, ignore_index, *smoothing)
    return kernels, kernel, grid, block, (*args, *options)


def _rows_of(array: Any) -> tuple[Any, ...]:
    """An array and its strides: (outer, n, inner), or (outer, inner) with one value for a row."""
    strides = element_strides(array)
    return array, strides[0], strides[1] if len(strides) == 3 else 0, strides[-1]


def _weights(weight: Any) -> tuple[Any, ...]:
    return (None, 0) if weight is None else (weight, *element_strides(weight))
