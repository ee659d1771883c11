"""Claim 5: units whose derivative is next to nothing, and how they learn."""

from __future__ import annotations

from typing import Any

import numpy as np

import gpuact
from bench.digits import HIDDEN, Network

from .networks import DERIVATIVES, WIDTH, Array, epochs, images, tumours, widths
from .table import Check, Effort, Fact, Figures, Finding, Raw

DEPTH = 3
SATURATED = 0.01  # |f′| below it: |z| > 4.6 in sigmoid, > 3 in tanh
ACTIVATIONS = ("sigmoid", "tanh")
SCALES = (1, 4, 16)  # times the gain of bench/digits.py: 4 of sigmoid, 1 of tanh
PUSHED = {"sigmoid": 12.0, "tanh": 5.0}  # biases at which f′ is below 1e-3 on most images
LOSSES = ("cross-entropy", "squared error")
BIASES = (0.0, 4.0, 8.0)  # of the output at the start: undecided, 98.2 % and 99.97 % sure
RIGHT = 0.9  # of the tumours
BINARY_RATE = 0.1


def _saturated(network: Network, activation: str) -> list[Array]:
    """For each unit of each layer, the share of the images on which it is."""
    _, kept = network.forward(images().x)
    derivative = DERIVATIVES[activation]
    return [(abs(derivative(z, None)) < SATURATED).mean(0) for z, _ in kept]


def gain(activation: str, scale: int) -> float:
    return HIDDEN[activation].gain * scale


def _run(activation: str, scale: int, seed: int, effort: Effort) -> dict[str, Any]:
    network = Network(activation, "float32", seed, widths(DEPTH), gain(activation, scale))
    data = images()
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
    """Logistic regression, from a bias for benign: steps until RIGHT of the tumours are right."""
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
    """The last epoch's loss over that from weights × 1."""
    large, small = (_each(figures, activation, s, "losses") for s in (scale, 1))
    return [a[-1] / b[-1] for a, b in zip(large, small, strict=True)]


def _binary_ratio(figures: Figures, bias: float, what: str) -> list[float]:
    """Of squared error over cross-entropy; NaN where a start was right enough, and no step made."""
    squared, cross = (figures[f"{loss}, bias {bias:g}"] for loss in LOSSES[::-1])
    return [a[what] / b[what] if b[what] else np.nan for a, b in zip(squared, cross, strict=True)]


def _times(figures: Figures, bias: float) -> list[float]:
    """As often is the ratio of steps what it is where nothing is saturated: there squared error is
    the slower one too, for s(1 − s) is ¼ at most."""
    there, undecided = (_binary_ratio(figures, b, "steps") for b in (bias, BIASES[0]))
    return [a / b for a, b in zip(there, undecided, strict=True)]


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
    none, early, late = BIASES

    def named(activation: str, scale: int) -> str:
        return f"{activation}, gain {gain(activation, scale):g}"

    return [
        Finding(
            "5a",
            "Units of sigmoid and tanh saturate.",
            f"share of units × images with |f′| < 1 % after {epochs_run} epochs, {DEPTH} hidden "
            f"layers; gain g: weights of deviation g/√{WIDTH} at the start",
            [
                *(
                    Check(
                        named(a, 16),
                        *(ends[a, 16], "≥", 0.25),
                        "a quarter of the network is out of use",
                    )
                    for a in ACTIVATIONS
                ),
                *(
                    Check(named(a, 1), *(ends[a, 1], "≥", 0.25), "the same", core=False)
                    for a in ACTIVATIONS
                ),
            ],
            [Fact(f"{named(a, 1)}, at the start", starts[a]) for a in ACTIVATIONS],
            condition="of weights that start 16 times as large as of gain 4 (sigmoid) and 1 "
            "(tanh), from which training does not drive them there",
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
            f"mean loss of epoch {epochs_run}, over that from gain 4 (sigmoid) and 1 (tanh)",
            [
                *(
                    Check(
                        named(a, 16),
                        *(_over(figures, a, 16), "≥", 1.5),
                        "half as much again",
                    )
                    for a in ACTIVATIONS
                ),
                *(
                    Check(
                        named(a, 4),
                        *(_over(figures, a, 4), "≥", 1.5),
                        "the same",
                        core=False,
                    )
                    for a in ACTIVATIONS
                ),
            ],
            [
                Fact(f"{named(a, scale)}, share saturated", ends[a, scale])
                for a in ACTIVATIONS
                for scale in (4, 16)
            ],
            condition="where nearly all units are; those that are left learn in their place",
        ),
        Finding(
            "5d",
            "Squared error gets a saturated sigmoid output out far more slowly than cross-entropy.",
            "breast cancer, logistic regression, all taken for benign at first (bias "
            f"{early:g}, {late:g}) or undecided ({none:g}): dz of those that are wrong, and steps "
            f"until {RIGHT:.0%} are right, squared error over cross-entropy",
            [
                Check(
                    f"dz, bias {late:g}",
                    *(_binary_ratio(figures, late, "dz"), "≤", 0.01),
                    "f′ of less than 1 %",
                ),
                Check(
                    f"steps, bias {late:g}, over the same at bias {none:g}",
                    *(_times(figures, late), "≥", 2.0),
                    "twice as much as where nothing is saturated",
                ),
                Check(
                    f"steps, bias {early:g}, over the same at bias {none:g}",
                    *(_times(figures, early), "≥", 2.0),
                    "the same",
                    core=False,
                ),
            ],
            [
                *(
                    Fact(f"steps, bias {bias:g}", _binary_ratio(figures, bias, "steps"), True)
                    for bias in BIASES
                ),
                *(
                    Fact(
                        f"steps of {loss}, bias {late:g}",
                        [e["steps"] for e in figures[f"{loss}, bias {late:g}"]],
                        in_readme=True,
                    )
                    for loss in LOSSES
                ),
            ],
            condition=f"from a bias of {late:g} (99.97 % sure of what is wrong); from {early:g} "
            "(98.2 %) only somewhat more so than from none, where it is slower already",
        ),
    ]
