"""Claim 7: zeros of ReLU, units that die, and what leaky ReLU and PReLU do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.digits import SLOPE, Network

from .networks import LEAK, WIDE, WIDE_LEAK, epochs, images, widths
from .table import Check, Effort, Fact, Figures, Finding, Raw, real

DEPTH = 3
ACTIVATIONS = ("relu", "leaky_relu", "prelu")
USUAL = 0.05  # the learning rate, with momentum 0.9
RATES = (0.01, 0.05, 0.1, 0.2)
BIASES = (0.0, -1.0, -2.0, -4.0)  # of hidden units at the start
FASTER, FAST, LOW = "rate 0.1", "rate 0.2", "bias −2"
ALIVE = 0.8  # test accuracy
WIDER = f"leaky_relu of slope {WIDE_LEAK:g}"

# What is run: the learning rate and the bias, by name.
RUNS: Mapping[str, tuple[float, float]] = {
    **{f"rate {rate:g}": (rate, 0.0) for rate in RATES},
    **{f"bias −{-bias:g}": (USUAL, bias) for bias in BIASES[1:]},
}
USUALLY = f"rate {USUAL:g}"


def _seen(network: Network) -> tuple[float, float]:
    """The share of outputs with z ≤ 0, and of units with z ≤ 0 on every image; NaN if diverged."""
    with np.errstate(all="ignore"):
        _, kept = network.forward(images().x)
    off = [z <= 0 for z, _ in kept]
    if not all(np.isfinite(z).all() for z, _ in kept):
        return np.nan, np.nan
    return float(np.mean(off)), float(np.mean([each.all(0) for each in off]))


def _run(activation: str, rate: float, bias: float, seed: int, effort: Effort) -> dict[str, Any]:
    hidden = WIDE if activation == WIDER else activation
    network, data = Network(hidden, "float32", seed, widths(DEPTH)), images()
    for layer in network.layers[:-1]:
        layer.bias += layer.bias.dtype.type(bias)
    seen = [_seen(network)]
    slopes: list[list[float]] = []
    for loss in epochs(network, data, seed, effort.epochs, rate):
        seen.append(_seen(network))
        slopes.append([float(s.mean()) for s in _slopes(network)])
        if not np.isfinite(loss):
            break  # it will not come back
    with np.errstate(all="ignore"):
        accuracy = network.accuracy(data.test_x, data.test_target)
    return {
        "zeros": [zeros for zeros, _ in seen],
        "dead": [dead for _, dead in seen],
        "accuracy": accuracy,
        "diverged": bool(np.isnan(seen[-1][0])),
        "slopes": slopes,
        "moved": [float(abs(s - SLOPE).mean()) for s in _slopes(network)],
    }


def _slopes(network: Network) -> list[Any]:
    return [layer.slope for layer in network.layers if layer.slope is not None]


def measure(seed: int, effort: Effort) -> Raw:
    every = [(activation, name) for activation in ACTIVATIONS for name in RUNS]
    every += [(WIDER, name) for name in (LOW, FASTER, FAST)]
    return {
        f"{activation}, {name}": _run(activation, *RUNS[name], seed, effort)
        for activation, name in every
    }


def each(figures: Figures, activation: str, run: str, what: str) -> list[Any]:
    return [one[what] for one in figures[f"{activation}, {run}"]]


def last(figures: Figures, activation: str, run: str, what: str) -> list[Any]:
    return [real(values[-1]) for values in each(figures, activation, run, what)]


def _cure(
    figures: Figures,
    number: str,
    says: str,
    how: str,
    checks: Sequence[tuple[str, str, str]],
    condition: str,
) -> Finding:
    """checks: what is checked, of which activation in which run; the first is the sentence."""
    why = "above the third at most that lost networks reach, and below the 0.9 of all others"
    return Finding(
        *(number, says, how),
        [
            Check(what, each(figures, of, run, "accuracy"), "≥", ALIVE, why, core=k == 0)
            for k, (what, of, run) in enumerate(checks)
        ],
        [
            *(
                Fact(
                    f"share of seeds that diverged, {what}",
                    [float(np.mean(each(figures, of, run, "diverged")))],
                )
                for what, of, run in checks
            ),
            *(
                Fact(f"units with z ≤ 0 throughout, {what}", last(figures, of, run, "dead"))
                for what, of, run in checks
                if run == LOW
            ),
        ],
        condition=condition,
    )


def judge(figures: Figures) -> list[Finding]:
    begun = {name: [z[0] for z in each(figures, "relu", name, "zeros")] for name in (USUALLY,)}
    half = [abs(zeros - 0.5) for zeros in begun[USUALLY]]
    later = [abs(zeros - 0.5) for zeros in last(figures, "relu", USUALLY, "zeros")]
    slopes = [values[-1] for values in each(figures, "prelu", USUALLY, "slopes")]
    layers = list(zip(*slopes, strict=True))
    moved = each(figures, "prelu", USUALLY, "moved")
    return [
        Finding(
            "7a",
            "The output of ReLU is sparse: about half of it is zero.",
            f"share of zeros over units and images, {DEPTH} hidden layers, at the start and after "
            f"training: its distance from ½",
            [
                Check(*("at the start", half, "≤", 0.1), "between 0.4 and 0.6"),
                Check(*("after training", later, "≤", 0.1), "the same", core=False),
            ],
            [
                Fact("share at the start", begun[USUALLY]),
                *(
                    Fact(f"after training, {run}", last(figures, "relu", run, "zeros"))
                    for run in (f"rate {RATES[0]:g}", USUALLY)
                ),
            ],
            condition="at the start; what training makes of it depends on the rate",
        ),
        Finding(
            "7b",
            "Units of ReLU die.",
            "share of units with z ≤ 0 on all 1437 images after training, by learning rate "
            f"(usual: {USUAL:g}, momentum 0.9) and by the bias at the start",
            [
                Check(
                    *(FAST, last(figures, "relu", FAST, "dead"), "≥", 0.2),
                    "a fifth of the network is lost",
                ),
                Check(
                    *(LOW, last(figures, "relu", LOW, "dead"), "≥", 0.2),
                    "the same",
                ),
                Check(
                    *("usual rate, bias 0", last(figures, "relu", USUALLY, "dead"), "≥", 0.2),
                    "the same",
                    core=False,
                ),
            ],
            [
                *(
                    Fact(run, last(figures, "relu", run, "dead"))
                    for run in (FASTER, "bias −1", "bias −4")
                ),
                *(
                    Fact(
                        f"test accuracy, {run}",
                        each(figures, "relu", run, "accuracy"),
                        in_readme=True,
                    )
                    for run in (USUALLY, FASTER, FAST, LOW)
                ),
            ],
            condition="of a learning rate four times the usual, or a bias of −2",
        ),
        _cure(
            *(figures, "7c", "PReLU cures that."),
            f"test accuracy of the same runs with PReLU, slopes from {SLOPE:g}",
            [(run, "prelu", run) for run in (LOW, FAST, FASTER)],
            "of units that a bias took; a rate of four times the usual it does not survive "
            "either, and at twice the usual rate it diverges where ReLU does not",
        ),
        _cure(
            *(figures, "7d", "Leaky ReLU cures that."),
            f"test accuracy of the same runs with leaky ReLU, of the usual slope {LEAK:g}, and of "
            f"{WIDE_LEAK:g}",
            (
                (f"slope {WIDE_LEAK:g}, {LOW}", WIDER, LOW),
                (f"slope {LEAK:g}, {LOW}", "leaky_relu", LOW),
                (f"slope {WIDE_LEAK:g}, {FAST}", WIDER, FAST),
                (f"slope {WIDE_LEAK:g}, {FASTER}", WIDER, FASTER),
                (f"slope {LEAK:g}, {FASTER}", "leaky_relu", FASTER),
            ),
            f"of units that a bias took, by a slope of {WIDE_LEAK:g}; the usual {LEAK:g} fails: "
            f"multiplied up over {DEPTH} layers, it hardly moves the units in so few epochs. At "
            f"twice the usual rate {WIDE_LEAK:g} diverges, as PReLU does",
        ),
        Finding(
            "7e",
            "PReLU learns slopes of its own.",
            f"slopes after training at the usual rate, from {SLOPE:g}, of {DEPTH} layers of 64",
            [
                Check(
                    "mean |slope − 0.25|, the layer with least",
                    *([min(one) for one in moved], "≥", 0.025),
                    "a tenth of where it starts",
                )
            ],
            [Fact(f"mean slope of layer {k}", values) for k, values in enumerate(layers, start=1)],
        ),
    ]
