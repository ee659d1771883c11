"""Claims 2 and 8, on every float16 value: ranges of derivatives, and max(ax, x)."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

import gpuact

from .table import Check, Effort, Fact, Figures, Finding, Raw, number, real

Array = np.ndarray[Any, np.dtype[Any]]

SMALL = (-2.0, 0.0, 0.01, 0.25, 0.5, 1.0)  # slopes a ≤ 1
LARGE = (1.0625, 1.25, 1.5, 2.0, 4.0)


@cache
def every_float16() -> Array:
    """All 63,488 finite values, in their order; −0 and 0 are two of them."""
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    return np.sort(values[np.isfinite(values)])


# -- claim 2 --------------------------------------------------------------------------------------

TOPS = {"sigmoid": 0.25, "tanh": 1.0}


def measure(seed: int, effort: Effort) -> Raw:
    """As stored in float16; where the maximum is, in float64, for float16 rounds to it nearby."""
    x = every_float16()
    found: Raw = {}
    for name in TOPS:
        derivative = getattr(gpuact, f"{name}_derivative")
        stored, exact = derivative(x).astype(np.float64), derivative(x.astype(np.float64))
        found[f"{name} most"] = float(stored.max())
        found[f"{name} least"] = float(stored.min())
        found[f"{name} at"] = float(abs(x[exact == exact.max()]).max())
        found[f"{name} positive to"] = float(abs(x[stored > 0]).max())
        # the curve, thinned: x and f′(x)
        shown = x[(abs(x) <= 8)][:: max(1, len(x) // 400)].astype(np.float64)
        found[f"{name} curve"] = [[*shown], [*derivative(shown)]]
    return found


def judge(figures: Figures) -> list[Finding]:
    found = []
    for letter, (name, top) in zip("ab", TOPS.items(), strict=True):
        to = figures[f"{name} positive to"]
        found.append(
            Finding(
                f"2{letter}",
                f"The derivative of {name} lies in (0, {top:g}], its maximum is at 0.",
                f"{name}_derivative on all 63,488 finite float16 values (where its maximum is, "
                "computed in float64)",
                [
                    Check(
                        *("greatest", figures[f"{name} most"], "=", top),
                        "exact in float16",
                    ),
                    Check(
                        *("|x| of the greatest", figures[f"{name} at"], "=", 0.0),
                        "at 0 and nowhere else",
                    ),
                    Check(
                        *("least", figures[f"{name} least"], ">", 0.0),
                        "the range is open at 0",
                        core=False,
                    ),
                ],
                [Fact("float16 tells it from 0 up to |x|", to)],
                condition=f"until it rounds to 0, in float16 beyond |x| = {max(to):.3g}",
            )
        )
    return found


# -- claim 8 --------------------------------------------------------------------------------------


def _off(got: Array, x: Array, slope: float) -> float:
    """The largest difference from x > 0 ? x : slope·x, in units of float16's last place; NaN if an
    infinity is missing, or one too many."""
    with np.errstate(over="ignore"):
        exact = np.where(x > 0, x.astype(np.float64), slope * x.astype(np.float64))
        right = exact.astype(np.float16)
    fine = np.isfinite(right)
    if not np.array_equal(got[~fine], right[~fine]):
        return math.nan
    unit = np.spacing(abs(right[fine])).astype(np.float64)
    return float((abs(got[fine] - exact[fine]) / unit).max())


def measure_maximum(seed: int, effort: Effort) -> Raw:
    """The slopes of the tables, and one drawn for each seed, from 1 to 8, that float16 has."""
    x = every_float16()
    drawn = float(np.float16(np.random.default_rng([seed, 8]).uniform(1.01, 8)))
    with np.errstate(over="ignore"):

        def apart(slope: float) -> float:
            """|max(ax, x) − prelu(x)| at most, over |x| ≤ 1."""
            near = x[abs(x) <= 1]
            there = np.maximum(np.float16(slope) * near, near)
            here = gpuact.prelu(near, np.float16(slope))
            return float(abs(there.astype(np.float64) - here.astype(np.float64)).max())

        def wrong(slope: float) -> list[float]:
            weight = np.float16(slope)
            ours = gpuact.prelu(x, weight), gpuact.leaky_relu(x, float(weight))
            dy = np.ones_like(x)
            dx, _ = gpuact.prelu_backward(dy, x, weight)
            slopes = np.where(x > 0, np.float16(1), weight)
            leaky = gpuact.leaky_relu_backward(dy, x, float(weight))
            off = max(float(abs(d.astype(np.float64) - slopes).max()) for d in (dx, leaky))
            return [*(_off(y, x, float(weight)) for y in ours), off]

        slopes = (*SMALL, *LARGE, drawn)
        return {
            "slopes": list(slopes),
            "apart": [apart(slope) for slope in slopes],
            "wrong": [float(np.max(column)) for column in zip(*map(wrong, slopes), strict=True)],
        }


def judge_maximum(figures: Figures) -> list[Finding]:
    few = len(SMALL)
    small = [max(each[:few]) for each in figures["apart"]]
    large = [min(each[few:]) for each in figures["apart"]]
    gaps = [
        each[-1] - (s[-1] - 1) for each, s in zip(figures["apart"], figures["slopes"], strict=True)
    ]
    return [
        Finding(
            "8a",
            "max(ax, x) is PReLU, and leaky ReLU.",
            "|max(ax, x) − prelu(x, a)| on every float16 value in [−1, 1]; a ≤ 1 from "
            f"{number(SMALL[0])} to {SMALL[-1]:g}, a > 1 from {LARGE[0]:g} to {LARGE[-1]:g} and "
            "one drawn for each seed",
            [
                Check(
                    *("difference, at most, a ≤ 1", small, "=", 0.0),
                    "the same number, rounded once",
                ),
                Check(
                    *("difference, a > 1, of that a at which it is least", large, "=", 0.0),
                    "the same",
                    core=False,
                ),
            ],
            [
                Fact("a drawn", [each[-1] for each in figures["slopes"]]),
                Fact("its difference beyond a − 1", gaps),
            ],
            condition="for a ≤ 1; for a > 1 it takes the other branch on both sides of 0, and is "
            "a − 1 off at |x| = 1",
        ),
        Finding(
            "8b",
            "gpuact's prelu and leaky_relu are right for any a.",
            f"{few + len(LARGE)} slopes a from {number(SMALL[0])} to {LARGE[-1]:g} and one drawn "
            "for each seed, every float16 value: distance from x > 0 ? x : ax in units of the last "
            "place, and of the derivative from 1 and a",
            [
                Check(
                    *("prelu, units", [real(w[0]) for w in figures["wrong"]], "≤", 0.505),
                    "one rounding, as tests/bounds.py has it",
                ),
                Check(
                    *("leaky_relu, units", [real(w[1]) for w in figures["wrong"]], "≤", 0.505),
                    "the same",
                ),
                Check(
                    *("derivative, difference", [w[2] for w in figures["wrong"]], "=", 0.0),
                    "it is 1 or a, and nothing is rounded",
                ),
            ],
        ),
    ]
