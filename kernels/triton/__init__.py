"""What the GPU computes, in Triton."""

from . import cross_entropy, elementwise, formulas, fused, inline, rows, softmax, stats

__all__ = [
    "cross_entropy",
    "elementwise",
    "formulas",
    "fused",
    "inline",
    "rows",
    "softmax",
    "stats",
]
