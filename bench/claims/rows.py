"""Claim 9: softmax, its Jacobian, and why S − Y is taken instead of J·(−y/s)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

import gpuact
from bench.digits import Network

from .networks import Array, epochs, images, tumours, widths
from .table import Check, Effort, Fact, Figures, Finding, Raw, number

SPREADS = (1.0, 10.0, 100.0)  # standard deviations of the logits
SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # of a trained network's logits
STEP = 1e-5
ROWS = 64


def _sums(classes: int, rng: np.random.Generator) -> tuple[float, float]:
    """|Σ s − 1| of float32 rows, at most: in u, and as a share of what the bound allows.

    An element errs by u·s·(|x − max| + log₂ n + 6) and by the rounding at the store, u·s. Summed
    over a row, with −ln s = lse − x, Σ s·|x − max| is entropy less (lse − max), so at most ln n:
    |Σ s − 1| ≤ u·(log₂ n + ln n + 7), and n halves of the least subnormal number.
    """
    rows = max(4, min(ROWS, 2_000_000 // classes))
    unit = 2.0**-24
    allowed = unit * (np.log2(classes) + np.log(classes) + 7) + classes * 2.0**-150
    off = 0.0
    for deviation in SPREADS:
        x = rng.normal(0, deviation, (rows, classes)).astype(np.float32)
        off = max(off, float(abs(gpuact.softmax(x).astype(np.float64).sum(1) - 1).max()))
    return off / unit, off / float(allowed)


def _jacobian(rng: np.random.Generator) -> tuple[float, float]:
    """Largest differences from diag(s) − ssᵀ, and from finite differences, float64."""
    x = rng.normal(0, 2, (ROWS, 10))
    s = gpuact.softmax(x)
    ours = gpuact.softmax_jacobian(s)
    written = np.eye(10) * s[:, None, :] - s[:, :, None] * s[:, None, :]
    numeric = np.empty_like(ours)
    for j in range(10):
        step = np.zeros(10)
        step[j] = STEP
        numeric[:, :, j] = (gpuact.softmax(x + step) - gpuact.softmax(x - step)) / (2 * STEP)
    return float(abs(ours - written).max()), float(abs(ours - numeric).max())


@cache
def _logits(seed: int, epochs_run: int) -> Array:
    """Of the test images, by a network that has learned them."""
    network, data = Network("tanh", "float32", seed, widths(2)), images()
    for _ in epochs(network, data, seed, epochs_run):
        pass
    found: Array = network.forward(data.test_x)[0]
    return found


def _long_way(logits: Array, target: Array) -> Array:
    """J·(−y/s), in the dtype of the logits."""
    s = gpuact.softmax(logits)
    y = np.eye(logits.shape[1], dtype=logits.dtype)[target]
    with np.errstate(all="ignore"):
        ds = -y / s  # of −Σ y·ln s; 0/0 where another class's share has underflowed
        found: Array = (gpuact.softmax_jacobian(s) @ ds[:, :, None])[:, :, 0]
    return found


def _short_way(logits: Array, target: Array) -> Array:
    found: Array = gpuact.cross_entropy_with_grad(logits, target, reduction="sum")[1]
    return found


def _compared(logits: Array, target: Array) -> dict[str, float]:
    """Rows that the long way loses, and how far both ways are from S − Y in float64."""
    s = gpuact.softmax(logits.astype(np.float64))
    true = s - np.eye(logits.shape[1])[target]
    long, short = _long_way(logits, target), _short_way(logits, target)
    there = np.isfinite(long).all(1)
    return {
        "lost": 1 - float(there.mean()),
        "long": float(abs(long[there] - true[there]).max(initial=0.0)),
        "short": float(abs(short - true).max()),
    }


def _binary(seed: int) -> dict[str, list[float]]:
    """Cross-entropy's (1 − y)/(1 − s) − y/s pulled back through sigmoid, against s − y."""
    data = tumours()
    weights = np.random.default_rng([seed, 9]).normal(0, 0.1, data.x.shape[1])
    for _ in range(200):
        weights -= data.x.T @ (gpuact.sigmoid(data.x @ weights) - data.target) / len(data.target)
    lost, off = [], []
    for scale in SCALES:
        z = (scale * (data.x @ weights)).astype(np.float32)
        s, y = gpuact.sigmoid(z), data.target.astype(np.float32)
        true = gpuact.sigmoid(z.astype(np.float64)) - data.target
        with np.errstate(all="ignore"):
            long = gpuact.sigmoid_backward((1 - y) / (1 - s) - y / s, s)
        lost.append(1 - float(np.isfinite(long).mean()))
        off.append(float(abs((s - y) - true).max()))
    return {"lost": lost, "short": off}


def measure(seed: int, effort: Effort) -> Raw:
    rng = np.random.default_rng([seed, 4])
    logits, target = _logits(seed, effort.epochs), images().test_target
    sums = [_sums(classes, rng) for classes in effort.classes]
    written, numeric = _jacobian(rng)
    wide = logits.astype(np.float64)
    return {
        "classes": list(effort.classes),
        "sums": [off for off, _ in sums],
        "of the bound": [share for _, share in sums],
        "from written": written,
        "from numeric": numeric,
        "float64": _compared(wide, target),
        "float32": [_compared(logits * np.float32(scale), target) for scale in SCALES],
        "binary": _binary(seed),
    }


def _column(figures: Figures, what: str, at: int) -> list[Any]:
    return [each[at][what] for each in figures["float32"]]


def judge(figures: Figures) -> list[Finding]:
    classes = figures["classes"][0]
    last = len(SCALES) - 1
    worst = [max(one["short"] for one in each) for each in figures["float32"]]
    return [
        Finding(
            "9a",
            "Softmax sums to 1.",
            f"|Σ s − 1| of float32 rows of n = {', '.join(f'{n:,}' for n in classes)}, deviation "
            f"{', '.join(f'{d:g}' for d in SPREADS)}, over the bound u·(log₂ n + ln n + 7), u = "
            "2⁻²⁴: the stated bound of an element, u·s·(|x − max| + log₂ n + 6), and u·s of its "
            "store, summed over a row, in which Σ s·|x − max| ≤ ln n",
            [
                Check(
                    "the largest share of that bound",
                    *([max(each) for each in figures["of the bound"]], "≤", 1.0),
                    "but for rounding",
                )
            ],
            [
                Fact(f"n = {n:,}, in u", [each[at] for each in figures["sums"]])
                for at, n in enumerate(classes)
            ],
        ),
        Finding(
            "9b",
            "Its Jacobian is diag(s) − ssᵀ.",
            f"{ROWS} rows of 10, float64: the largest difference of softmax_jacobian from that as "
            f"NumPy writes it, and from central differences of {number(STEP)}",
            [
                Check(
                    *("from diag(s) − ssᵀ", figures["from written"], "≤", 2.0**-52),
                    "a rounding or two of a number of at most ¼",
                ),
                Check(
                    *("from finite differences", figures["from numeric"], "≤", 1e-9),
                    "step²/6 and u/step together are below 1e−10",
                ),
            ],
        ),
        Finding(
            "9c",
            "J·(−y/s) is S − Y.",
            "logits of a trained network for the 360 test images, and the same × 3 to × 300: "
            "largest difference from S − Y in float64, and rows that are not finite",
            [
                Check(
                    "difference, float64",
                    *([each["long"] for each in figures["float64"]], "≤", 1e-13),
                    "10 products of at most 1/s, rounded",
                ),
                Check(
                    "rows lost, float32",
                    *(_column(figures, "lost", 0), "=", 0.0),
                    "it is the same number",
                ),
                Check(
                    "rows lost, float32, × 300",
                    *(_column(figures, "lost", last), "=", 0.0),
                    "the same",
                    core=False,
                ),
            ],
            [
                Fact(f"rows lost, float32, × {SCALES[at]:g}", _column(figures, "lost", at))
                for at in range(1, last)
            ],
            condition="as long as no share underflows: s is 0 where a logit lies 104 below the "
            "largest in float32, and y/s is then ∞ or 0/0",
        ),
        Finding(
            "9d",
            "S − Y is right wherever that overflows.",
            "gradients by cross_entropy_with_grad at all those scales, and s − y of a logistic "
            "regression on breast cancer, float32, against float64",
            [
                Check(
                    *("largest difference, digits", worst, "≤", 2.0**-20),
                    "u·s·(|x − max| + log₂ n + 6) is below 10 u, for s·|x − max| ≤ 1/e",
                ),
                Check(
                    "breast cancer",
                    *([max(each["short"]) for each in figures["binary"]], "≤", 2.0**-21),
                    "4 units in the last place of s (tests/bounds.py), and a subtraction",
                ),
            ],
            [
                Fact(
                    f"share of tumours lost by s(1 − s)·((1 − y)/(1 − s) − y/s), × {SCALES[at]:g}",
                    [each["lost"][at] for each in figures["binary"]],
                )
                for at in (0, 2)
            ],
        ),
    ]
