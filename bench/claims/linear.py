"""Claim 1: layers without an activation between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

import gpuact
from bench.digits import Network

from .networks import TESTED, WIDTH, epochs, images, widths
from .ranges import every_float16
from .table import Check, Effort, Fact, Figures, Finding, Raw

DEPTHS = (1, 2, 4, 8)  # linear layers, the last one included
RATES = (0.003, 0.01)  # the first too small for one layer, the second too large for eight
STEP = 1e-5  # of a numeric derivative


def _difference(seed: int, layers: int) -> float:
    """How far the layers are from the one that they multiply out to."""
    network = Network("linear", "float64", seed, widths(layers - 1))
    rng = np.random.default_rng([seed, layers])
    for layer in network.layers:
        layer.bias += rng.standard_normal(layer.bias.shape)
    x = images("float64").x
    weights, bias = np.eye(WIDTH), np.zeros(WIDTH)
    for layer in network.layers:
        weights, bias = weights @ layer.weights, bias @ layer.weights + layer.bias
    logits, _ = network.forward(x)
    return float(abs(logits - (x @ weights + bias)).max() / abs(logits).max())


def _trained(
    activation: str, layers: int, rate: float, seed: int, effort: Effort
) -> tuple[float, list[float]]:
    """Test accuracy, and the loss of each epoch."""
    network, data = Network(activation, "float32", seed, widths(layers - 1)), images()
    losses = list(epochs(network, data, seed, effort.epochs, rate))
    return network.accuracy(data.test_x, data.test_target), losses


def _error(seed: int) -> float:
    """The gradient by backpropagation against the numeric one, along a random direction."""
    network, data = Network("linear", "float64", seed, widths(3)), images("float64")
    x, target = data.x[:64], data.target[:64]
    _, gradients = network.gradients(x, target)
    rng = np.random.default_rng([seed, 2])
    directions = [rng.standard_normal(p.shape) for p in network.parameters]
    sides = []
    for sign in (1, -2):  # one step ahead, and from there one behind
        for p, direction in zip(network.parameters, directions, strict=True):
            p += sign * STEP * direction
        sides.append(float(network.gradients(x, target)[0]))
    numeric = (sides[0] - sides[1]) / (2 * STEP)
    exact = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    return abs(numeric - exact) / abs(numeric)


def measure(seed: int, effort: Effort) -> Raw:
    found = {
        (rate, layers): _trained("linear", layers, rate, seed, effort)
        for rate in RATES
        for layers in DEPTHS
    }
    tanh, _ = _trained("tanh", 3, RATES[1], seed, effort)
    slopes = gpuact.linear_derivative(every_float16(), np.float16(1.5 + seed))
    _, losses = found[RATES[0], 4]
    return {
        "difference": max(_difference(seed, layers) for layers in DEPTHS),
        "accuracy": [[found[rate, layers][0] for layers in DEPTHS] for rate in RATES],
        "tanh": tanh,
        "gradient error": _error(seed),
        "loss": [losses[0], losses[-1]],
        "slopes": float(np.ptp(slopes.astype(np.float64))),
    }


def _apart(accuracies: Sequence[Sequence[float]]) -> list[float]:
    """Of each seed: how far the farthest depth is from the first, one layer."""
    return [max(abs(a - one) for a in deeper) for one, *deeper in accuracies]


def judge(figures: Figures) -> list[Finding]:
    # at one rate for all, what is compared is how quickly they learn
    best = [[max(at) for at in zip(*each, strict=True)] for each in figures["accuracy"]]
    at_one = [each[-1] for each in figures["accuracy"]]
    rates = " and ".join(f"{rate:g}" for rate in RATES)
    why = f"two standard errors of 95 % on {TESTED} images"
    bound = DEPTHS[-1] * WIDTH * 2.0**-52
    points = round(2 * math.sqrt(0.95 * 0.05 / TESTED), 3)
    return [
        Finding(
            "1a",
            "Several linear layers are one linear layer.",
            "2, 4 and 8 layers with random biases against their product, on all images, float64; "
            "the largest difference over the largest logit",
            [
                Check(
                    *("difference", figures["difference"], "≤", bound),
                    "layers × width × 2⁻⁵²: what sums of so many products may be off by",
                )
            ],
        ),
        Finding(
            "1b",
            "So a deep linear network trains to the accuracy of a single layer.",
            "test accuracy after training: 2, 4 and 8 linear layers against 1, the largest "
            "difference",
            [
                Check(f"each at the better of {rates}", _apart(best), "≤", points, why),
                Check(f"all at {RATES[-1]:g}", _apart(at_one), "≤", points, why, core=False),
            ],
            [
                *(
                    Fact(
                        f"accuracy of {layers} layer{'s' * (layers > 1)}, rate {rate:g}",
                        [each[r][at] for each in figures["accuracy"]],
                    )
                    for r, rate in enumerate(RATES)
                    for at, layers in ((0, 1), (-1, 8))
                ),
                Fact("of 2 hidden layers of tanh", figures["tanh"]),
            ],
            condition="of a rate that suits each; at one for all, more layers are only harder to "
            "train",
        ),
        Finding(
            "1c",
            "With a linear activation backpropagation is not possible.",
            "4 linear layers: the gradient by backpropagation against finite differences, and the "
            "loss of the last epoch over that of the first",
            [
                Check(
                    *("relative error of the gradient", figures["gradient error"], "≥", 0.5),
                    "were it not possible, at least half of the gradient would be wrong",
                ),
                Check(
                    *("loss, last over first epoch", [b / a for a, b in figures["loss"]], "≥", 1.0),
                    "were it not possible, nothing would be learned",
                ),
            ],
            remark="it is possible; what is meant is 1d",
        ),
        Finding(
            "1d",
            "The derivative of a linear activation carries no information of x.",
            "linear_derivative on every finite float16 value: greatest minus least",
            [
                Check(
                    *("difference", figures["slopes"], "=", 0.0),
                    "the derivative is one number, the scale",
                )
            ],
        ),
    ]
