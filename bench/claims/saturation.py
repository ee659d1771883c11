"""Claim 5: units whose derivative is next to nothing, and how they learn."""

from __future__ import annotations

from typing import Any

import numpy as np

import gpuact
from bench.digits import HIDDEN, Network

from .networks import DERIVATIVES, Array, epochs, images, tumours, widths
from .table import Check, Effort, Fact, Figures, Finding, Raw

DEPTH = 3
SATURATED = 0.01  # |f′| below it: |z| > 4.6 in sigmoid, > 3 in tanh
ACTIVATIONS = ("sigmoid", "tanh")
SCALES = (1, 4, 16)  # of the usual weights
PUSHED = {"sigmoid": 12.0, "tanh": 5.0}  # biases at which f′ is below 1e-3 on most images
LOSSES = ("cross-entropy", "squared error")
BIASES = (4.0, 8.0)  # of the output at the start: 98.2 % and 99.97 % sure of what is wrong
RIGHT = 0.9  # of the tumours
BINARY_RATE = 0.1


def _saturated(network: Network, activation: str) -> list[Array]:
    """For each unit of each layer, the share of the images on which it is."""
    _, kept = network.forward(images().x)
    derivative = DERIVATIVES[activation]
    return [(abs(derivative(z, None)) < SATURATED).mean(0) for z, _ in kept]


def _run(activation: str, scale: int, seed: int, effort: Effort) -> dict[str, Any]:
    gain = HIDDEN[activation].gain * scale
    network, data = Network(activation, "float32", seed, widths(DEPTH), gain), images()
    shares, losses = [float(np.mean(_saturated(network, activation)))], []
    for loss in epochs(network, data, seed, effort.epochs):
        losses.append(loss)
        shares.append(float(np.mean(_saturated(network, activation))))
    accuracy = network.accuracy(data.test_x, data.test_target)
    return {"shares": shares, "losses": losses, "accuracy": accuracy}


def _pushed(activation: str, seed: int, effort: Effort) -> dict[str, float]:
    """Every other unit of each layer saturated by its bias, one on either side in turn: the way of
    its weights over that of its neighbours', which are as they were."""
    network, data = Network(activation, "float32", seed, widths(DEPTH)), images()
    inner = network.layers[:-1]
    for layer in inner:
        layer.bias[::4] += layer.bias.dtype.type(PUSHED[activation])
        layer.bias[2::4] -= layer.bias.dtype.type(PUSHED[activation])
    begun = [layer.weights.copy() for layer in inner]
    start = [float(share[::2].mean()) for share in _saturated(network, activation)]
    for _ in epochs(network, data, seed, effort.epochs):
        pass
    moved = [
        np.linalg.norm(layer.weights - b, axis=0) for layer, b in zip(inner, begun, strict=True)
    ]
    return {
        "speed": max(float(np.median(d[::2]) / np.median(d[1::2])) for d in moved),
        "start": min(start),
        "end": min(float(share[::2].mean()) for share in _saturated(network, activation)),
    }


def _binary(loss: str, bias: float, seed: int, most: int) -> dict[str, Any]:
    """Logistic regression that starts with every tumour benign: steps until RIGHT are right."""
    data = tumours()
    weights = np.random.default_rng([seed, 3]).normal(0, data.x.shape[1] ** -0.5, data.x.shape[1])
    wrong, first = data.target == 0, 0.0
    for step in range(most):
        s = gpuact.sigmoid(data.x @ weights + bias)
        if ((s > 0.5) == data.target).mean() >= RIGHT:
            return {"steps": step, "dz": first}
        off = s - data.target
        # (s − y)²/2 is pulled back through sigmoid; of cross-entropy 1/s(1 − s) cancels that
        dz = off if loss == "cross-entropy" else gpuact.sigmoid_backward(off, s)
        first = first or float(abs(dz[wrong]).mean())
        weights -= BINARY_RATE * data.x.T @ dz / len(dz)
        bias -= BINARY_RATE * float(dz.mean())
    return {"steps": most, "dz": first}


def measure(seed: int, effort: Effort) -> Raw:
    found: Raw = {
        f"{activation}, weights × {scale}": _run(activation, scale, seed, effort)
        for activation in ACTIVATIONS
        for scale in SCALES
    }
    found |= {f"{a}, pushed": _pushed(a, seed, effort) for a in ACTIVATIONS}
    for bias in BIASES:
        for loss in LOSSES:
            key = f"{loss}, bias {bias:g}"
            found[key] = _binary(loss, bias, seed, effort.few_steps)
    return found


def _each(figures: Figures, activation: str, scale: int, what: str) -> list[Any]:
    return [each[what] for each in figures[f"{activation}, weights × {scale}"]]


def _over(figures: Figures, activation: str, scale: int) -> list[float]:
    """The last epoch's loss over that of the usual weights."""
    large, usual = (_each(figures, activation, s, "losses") for s in (scale, 1))
    return [a[-1] / b[-1] for a, b in zip(large, usual, strict=True)]


def _binary_ratio(figures: Figures, bias: float, what: str) -> list[float]:
    squared, cross = (figures[f"{loss}, bias {bias:g}"] for loss in LOSSES[::-1])
    return [a[what] / b[what] for a, b in zip(squared, cross, strict=True)]


def judge(figures: Figures) -> list[Finding]:
    ends = {
        (a, scale): [shares[-1] for shares in _each(figures, a, scale, "shares")]
        for a in ACTIVATIONS
        for scale in SCALES
    }
    starts = {a: [shares[0] for shares in _each(figures, a, 1, "shares")] for a in ACTIVATIONS}
    pushed = {
        (a, what): [each[what] for each in figures[f"{a}, pushed"]]
        for a in ACTIVATIONS
        for what in ("speed", "start", "end")
    }
    epochs_run = len(_each(figures, "tanh", 1, "losses")[0])
    early, late = BIASES
    return [
        Finding(
            "5a",
            "Units of sigmoid and tanh saturate.",
            f"share of units × images with |f′| < 1 % after {epochs_run} epochs, {DEPTH} hidden "
            "layers, from usual weights (gain 4 and 1) and from larger ones",
            [
                *(
                    Check(
                        f"{a}, weights × 16",
                        *(ends[a, 16], "≥", 0.25),
                        "a quarter of the network is out of use",
                    )
                    for a in ACTIVATIONS
                ),
                *(
                    Check(f"{a}, usual weights", *(ends[a, 1], "≥", 0.25), "the same", core=False)
                    for a in ACTIVATIONS
                ),
            ],
            [Fact(f"{a} at the start, usual weights", starts[a]) for a in ACTIVATIONS],
            condition="of weights that start large; training from usual ones does not drive them "
            "there",
        ),
        Finding(
            "5b",
            "A saturated unit hardly learns.",
            "every other unit of a layer saturated by a bias: how far its weights come in "
            f"{epochs_run} epochs, over its neighbours', the layer with most",
            [Check(a, pushed[a, "speed"], "≤", 0.1, "a tenth as fast") for a in ACTIVATIONS],
            [
                Fact(
                    f"{a}, images on which they are saturated, {when} (layer with least)",
                    pushed[a, key],
                )
                for a in ACTIVATIONS
                for when, key in (("at the start", "start"), ("at the end", "end"))
            ],
        ),
        Finding(
            "5c",
            "So a saturated network learns slowly.",
            f"mean loss of epoch {epochs_run}, over that from usual weights",
            [
                *(
                    Check(
                        f"{a}, weights × 16",
                        *(_over(figures, a, 16), "≥", 1.5),
                        "half as much again",
                    )
                    for a in ACTIVATIONS
                ),
                *(
                    Check(
                        f"{a}, weights × 4",
                        *(_over(figures, a, 4), "≥", 1.5),
                        "the same",
                        core=False,
                    )
                    for a in ACTIVATIONS
                ),
            ],
            [
                Fact(f"{a}, share saturated, weights × {scale}", ends[a, scale])
                for a in ACTIVATIONS
                for scale in (4, 16)
            ],
            condition="where nearly all units are; those that are left learn in their place",
        ),
        Finding(
            "5d",
            "Squared error does not get a saturated sigmoid output out; cross-entropy does.",
            "breast cancer, logistic regression, all taken for benign at first (bias "
            f"{early:g}, {late:g}): dz of those that are wrong, and steps until {RIGHT:.0%} are "
            "right, squared error over cross-entropy",
            [
                Check(
                    f"dz, bias {late:g}",
                    *(_binary_ratio(figures, late, "dz"), "≤", 0.01),
                    "f′ of less than 1 %",
                ),
                Check(
                    f"steps, bias {late:g}",
                    *(_binary_ratio(figures, late, "steps"), "≥", 2.0),
                    "twice as many",
                ),
                Check(
                    f"steps, bias {early:g}",
                    *(_binary_ratio(figures, early, "steps"), "≥", 2.0),
                    "twice as many",
                    core=False,
                ),
            ],
            [
                Fact(
                    f"steps, {loss}, bias {late:g}",
                    [e["steps"] for e in figures[f"{loss}, bias {late:g}"]],
                )
                for loss in LOSSES
            ],
            condition=f"from a bias of {late:g}",
        ),
    ]
