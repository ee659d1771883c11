"""Cross-entropy, its gradient, and both at once: what their kernels are told."""

from __future__ import annotations

from functools import cache
from typing import Any

from . import Launch, compute_name, element_strides, raw_module, text
from .rows import Operation

THREADS = 256  # of a block of target_weight, a row each

NAMES = {"LOSS": "cross_entropy", "GRADIENT": "cross_entropy_backward"}
NAMES["BOTH"] = "cross_entropy_with_grad"


def operation(
    asked: str,
    options: dict[str, Any],
    logits: Any,
    target: Any,
    weight: Any,
    scale: Any,
    dlogits: Any,
    loss: Any,
    lse: Any,
) -> tuple[Operation, tuple[Any, ...]]:
    """asked: LOSS, GRADIENT (from lse) or BOTH; what is not written or read is None."""
    smoothing, cap = options["label_smoothing"], options["softcap"]
    probabilities = target.ndim == 3
    kind = "PROBABILITIES" if probabilities else "SMOOTHED" if smoothing else "ONE_CLASS"
    shares = (1.0 - smoothing, smoothing / logits.shape[1])
    arrays = (*_rows_of(logits), *_rows_of(target), *_rows_of(scale), *_rows_of(dlogits))
    numbers = (options["ignore_index"], *shares, options["z_loss"], cap)
    views = (logits, target if probabilities else None, dlogits)
    found = Operation(
        "cross_entropy",
        NAMES[asked],
        (*arrays, weight, loss, lse, *numbers),
        {"T": target.dtype.name},
        {
            "ASKED": asked,
            "TARGET": kind,
            "WEIGHTED": str(weight is not None).lower(),
            "CAPPED": str(cap != 0).lower(),
        },
        0 if (asked, kind) == ("GRADIENT", "ONE_CLASS") else 4,
        finishes=asked != "LOSS",
        registers=255 if probabilities else 128,
        scarce=kind == "SMOOTHED" and weight is not None and logits.itemsize == 2,
    )
    return found, tuple(view for view in views if view is not None)


def _rows_of(array: Any) -> tuple[Any, ...]:
    """An array and its strides: (outer, n, inner), or (outer, inner) with one value for a row."""
    if array is None:
        return (None, 0, 0, 0)
    strides = element_strides(array)
    return array, strides[0], strides[1] if len(strides) == 3 else 0, strides[-1]


@cache
def _target_weight(target: Any, weight: Any, out: Any) -> Any:
    types = {"T": target.name, "W": weight.name, "C": compute_name(out.name)}
    return raw_module(types, text("compute.cuh"), text("target_weight.cuh"))


def target_weight(target: Any, weight: Any, out: Any, classes: int, ignore_index: int) -> Launch:
    """Each row's weight, one thread a row."""
    outer, inner = out.shape
    module = _target_weight(target.dtype, (out if weight is None else weight).dtype, out.dtype)
    weights = (None, 0) if weight is None else (weight, *element_strides(weight))
    args = (target, *element_strides(target), *weights, out, outer * inner, classes, inner)
    blocks = -(-out.size // THREADS)
    return Launch(module, "target_weight", (blocks,), (THREADS,), (*args, ignore_index))
