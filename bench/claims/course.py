"""The claims, in their order: what measures each, and what judges it."""

from __future__ import annotations

from . import centre, cost, depth, linear, ranges, rows, saturation, sparse
from .table import Claim

CLAIMS = (
    Claim("1", "linear layers collapse", linear.measure, linear.judge),
    Claim("2", "ranges of derivatives", ranges.measure, ranges.judge, random=False),
    Claim("3", "vanishing gradients", depth.measure, depth.judge),
    Claim("4", "outputs not centred on zero", centre.measure, centre.judge),
    Claim("5", "saturation", saturation.measure, saturation.judge),
    Claim("6", "cost", cost.measure, cost.judge, on_numpy=False),
    Claim("7", "sparse and dying ReLU", sparse.measure, sparse.judge),
    Claim("8", "max(ax, x) as PReLU", ranges.measure_maximum, ranges.judge_maximum),
    Claim("9", "softmax and its Jacobian", rows.measure, rows.judge),
)


def chosen(only: str) -> list[Claim]:
    """By number, or by a part of the title; all where nothing is asked for."""
    return [
        claim
        for claim in CLAIMS
        if only == claim.number or (not only.isdigit() and only.lower() in claim.title.lower())
    ]
