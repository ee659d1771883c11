"""Claim 3: what becomes of the gradient on its way through many layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import mean

import numpy as np

from bench.digits import HIDDEN, Network

from .networks import DERIVATIVES, WIDTH, Array, dzs, epochs, images, widths
from .table import Check, Effort, Fact, Figures, Finding, Raw, real

ACTIVATIONS = tuple(HIDDEN)
GAINS = ("1", "own")  # of the weights: 1 for all (Glorot), or each activation's own
SEEN = 256  # images whose gradient is taken
TRAINED = 8  # hidden layers of the networks that are trained
DEEP = 8  # hidden layers from which on a factor is fitted: 7 steps


def _gain(activation: str, gain: str) -> float:
    return HIDDEN[activation].gain if gain == "own" else 1.0


def factor(norms: Sequence[float]) -> float:
    """By which a norm changes from a layer to the one below it: the slope of a line through
    the logarithms, of the first layer on the left."""
    logs = np.log(norms)
    return float(np.exp(-np.polyfit(np.arange(len(logs)), logs, 1)[0]))


def _predicted(network: Network, zs: Sequence[Array]) -> float:
    """√(n · Var w · E f′²): what a layer multiplies a norm by whose parts are independent."""
    derivative = DERIVATIVES[_name(network)]
    logs = []
    for z, here, above in zip(zs, network.layers, network.layers[1:-1], strict=False):
        squared = float((derivative(z, here.slope).astype(np.float64) ** 2).mean())
        logs.append(np.log(squared * float((above.weights.astype(np.float64) ** 2).sum()) / WIDTH))
    return float(np.exp(mean(logs) / 2))


def _name(network: Network) -> str:
    return next(name for name, hidden in HIDDEN.items() if hidden is network.hidden)


def _seen(network: Network, dtype: str) -> dict[str, object]:
    data = images(dtype)
    with np.errstate(all="ignore"):  # what has diverged is infinite, and so told
        dz, zs, weights = dzs(network, data.x[:SEEN], data.target[:SEEN])
        norms = [float(np.linalg.norm(each)) for each in dz]
        inner = [float(np.linalg.norm(each)) for each in weights[1:-1]]  # of one shape
        fitted = len(norms) > 1
        return {
            "norms": norms,
            "factor": factor(norms) if fitted else None,
            "weights' factor": factor(inner) if len(inner) > 1 else None,
            "predicted": _predicted(network, zs) if fitted else None,
        }


def _of_weights(activation: str, gain: float, seed: int, effort: Effort) -> Raw:
    found: Raw = {}
    for depth in effort.depths:
        network = Network(activation, "float64", seed, widths(depth), gain)
        found[f"{depth} layers"] = _seen(network, "float64")
    network, data = Network(activation, "float32", seed, widths(TRAINED), gain), images()
    seen = [_seen(network, "float32")]
    for _ in epochs(network, data, seed, effort.epochs):
        seen.append(_seen(network, "float32"))
    found["trained"] = {
        "factors": [each["factor"] for each in seen],
        "predicted": [each["predicted"] for each in seen],
        "accuracy": network.accuracy(data.test_x, data.test_target),
    }
    return found


def measure(seed: int, effort: Effort) -> Raw:
    found: Raw = {}
    for activation in ACTIVATIONS:
        gains = {gain: _gain(activation, gain) for gain in GAINS}
        runs = {gain: _of_weights(activation, gain, seed, effort) for gain in {*gains.values()}}
        for name, gain in gains.items():  # of linear and tanh they are one
            found |= {f"{activation}, gain {name}, {what}": v for what, v in runs[gain].items()}
    return found


def depths(figures: Figures) -> list[int]:
    """As many layers as were measured."""
    start = f"{ACTIVATIONS[0]}, gain {GAINS[0]}, "
    words = (name.removeprefix(start).split()[0] for name in figures if name.startswith(start))
    return sorted(int(word) for word in words if word.isdigit())


def _of(figures: Figures, activation: str, gain: str, what: str) -> list[list[float]]:
    """For each seed, the figure at every depth that a factor can be fitted to."""
    deep = [depth for depth in depths(figures) if depth >= min(DEEP, depths(figures)[-1])]
    names = [f"{activation}, gain {gain}, {depth} layers" for depth in deep]
    seeds = range(len(figures[names[0]]))
    return [[figures[name][seed][what] for name in names] for seed in seeds]


def _first_over_last(figures: Figures, activation: str, gain: str) -> list[float]:
    """∂L/∂z of the first hidden layer over that of the last, in the deepest network."""
    name = f"{activation}, gain {gain}, {depths(figures)[-1]} layers"
    return [each["norms"][0] / each["norms"][-1] for each in figures[name]]


def _single(figures: Figures, activation: str, gain: str) -> list[float]:
    """The largest factor between two neighbouring layers, in networks of any depth."""
    names = [f"{activation}, gain {gain}, {depth} layers" for depth in depths(figures)]
    return [
        max(below / above for each in one for below, above in pairwise(each["norms"]))
        for one in zip(*(figures[name] for name in names), strict=True)
    ]


def _trained(figures: Figures, activation: str, gain: str, what: str) -> list[list[float]]:
    return [each[what] for each in figures[f"{activation}, gain {gain}, trained"]]


def _misses(figures: Figures) -> list[float]:
    """How far a factor at the start is from what is predicted, at most, for each seed."""
    pairs = [
        (_of(figures, a, g, "factor"), _of(figures, a, g, "predicted"))
        for a in ACTIVATIONS
        for g in GAINS
    ]
    return [
        max(abs(f / p - 1) for fs, ps in pairs for f, p in zip(fs[seed], ps[seed], strict=True))
        for seed in range(len(pairs[0][0]))
    ]


def _misses_later(figures: Figures) -> list[float]:
    """The same after training; NaN where a network diverged."""
    pairs = [
        (_trained(figures, a, g, "factors"), _trained(figures, a, g, "predicted"))
        for a in ACTIVATIONS
        for g in GAINS
    ]
    return [
        float(np.max([abs(real(fs[seed][-1]) / real(ps[seed][-1]) - 1) for fs, ps in pairs]))
        for seed in range(len(pairs[0][0]))
    ]


def judge(figures: Figures) -> list[Finding]:
    most = depths(figures)[-1]
    deep = f"{min(DEEP, most)} to {most} layers"
    sigmoid = {gain: _of(figures, "sigmoid", gain, "factor") for gain in GAINS}
    tanh = {gain: _of(figures, "tanh", gain, "factor") for gain in GAINS}
    relu = {gain: _of(figures, "relu", gain, "factor") for gain in GAINS}
    prelu = {gain: _of(figures, "prelu", gain, "factor") for gain in GAINS}
    later = _trained(figures, "sigmoid", "1", "factors")
    predicted = [mean(each) for each in _of(figures, "sigmoid", "own", "predicted")]
    gap = {
        gain: [min(map(np.subtract, t, s)) for t, s in zip(tanh[gain], sigmoid[gain], strict=True)]
        for gain in GAINS
    }
    how = (
        f"‖∂L/∂z‖ of every layer of {', '.join(map(str, depths(figures)))} hidden layers of "
        f"{WIDTH}, on {SEEN} images; the factor a layer is a line through its logarithms; gain g: "
        f"weights of deviation g/√{WIDTH}"
    )
    quarter = "the largest derivative that sigmoid has"
    return [
        Finding(
            "3a",
            "On average a layer of sigmoid multiplies the gradient by 0.25 at most.",
            how,
            [
                Check(
                    f"factor, {deep}, weights of gain 1",
                    *([max(each) for each in sigmoid["1"]], "≤", 0.25, quarter),
                ),
                Check(
                    f"the same through training, {TRAINED} layers",
                    *([max(each) for each in later], "≤", 0.25, quarter),
                    core=False,
                ),
                Check(
                    f"factor, {deep}, weights of gain 4",
                    *([max(each) for each in sigmoid["own"]], "≤", 0.25, quarter),
                    core=False,
                ),
            ],
            [
                Fact("largest of a single layer, gain 1", _single(figures, "sigmoid", "1"), True),
                Fact("predicted for gain 4", predicted),
            ],
            condition="of weights that keep a norm (gain 1); the factor is that of weights and "
            "derivative together, and a single layer's scatters around it",
        ),
        Finding(
            "3b",
            "So in deep sigmoid networks the gradient vanishes.",
            f"‖∂L/∂z‖ of the first hidden layer over that of the last, {most} layers",
            [
                Check(
                    *("gain 1", _first_over_last(figures, "sigmoid", "1"), "≤", 1e-3),
                    "a thousandth does not train beside a last layer that takes whole steps",
                ),
                Check(
                    *("gain 4", _first_over_last(figures, "sigmoid", "own"), "≤", 1e-3),
                    "the same",
                    core=False,
                ),
            ],
            [
                Fact(
                    f"test accuracy with {TRAINED} layers, gain 1",
                    [each["accuracy"] for each in figures["sigmoid, gain 1, trained"]],
                ),
                Fact(
                    "gain 4", [each["accuracy"] for each in figures["sigmoid, gain own, trained"]]
                ),
            ],
            condition="of these weights",
        ),
        Finding(
            "3c",
            "The gradient of tanh, whose derivative reaches 1, vanishes less.",
            f"the factor of tanh minus that of sigmoid from the same draw of weights, {deep}",
            [
                Check(
                    *("both of gain 1", gap["1"], "≥", 0.1),
                    "more than factors differ from seed to seed",
                ),
                Check(
                    *("each of its own gain", gap["own"], "≥", 0.1),
                    "the same",
                    core=False,
                ),
            ],
            [
                Fact("factor of tanh", [mean(each) for each in tanh["1"]]),
                Fact(f"its first over last, {most} layers", _first_over_last(figures, "tanh", "1")),
            ],
            condition="of weights of one gain",
        ),
        Finding(
            "3d",
            "The gradient of ReLU does not vanish, for its derivative is 1.",
            f"‖∂L/∂z‖ of the first hidden layer over that of the last, {most} layers",
            [
                Check(
                    *("gain √2", _first_over_last(figures, "relu", "own"), "≥", 0.1),
                    "within a factor of ten, 0.93 a layer at 32",
                ),
                Check(
                    *("gain 1", _first_over_last(figures, "relu", "1"), "≥", 0.1),
                    "the same",
                    core=False,
                ),
            ],
            [
                Fact("factor, gain √2", [mean(each) for each in relu["own"]]),
                Fact("factor, gain 1", [mean(each) for each in relu["1"]]),
                Fact("of PReLU, its own gain", [mean(each) for each in prelu["own"]]),
                Fact(
                    "of ReLU's ∂L/∂W, gain 1",
                    [mean(each) for each in _of(figures, "relu", "1", "weights' factor")],
                ),
            ],
            condition="of weights of gain √2, since half of its derivatives are 0; with gain 1 it "
            "vanishes by 1/√2 a layer",
        ),
        Finding(
            "3e",
            "The factor is √(n · Var w · E f′²): of the initialisation as much as of the function.",
            f"|factor / prediction − 1|, the worst of six activations, two gains, {deep}; E f′² is "
            "measured",
            [
                Check(
                    *("at the start", _misses(figures), "≤", 0.15),
                    f"a product of {DEEP - 1} random matrices of width {WIDTH} scatters so much",
                ),
                Check(
                    f"after training, {TRAINED} layers",
                    *(_misses_later(figures), "≤", 0.15, "the same"),
                    core=False,
                ),
            ],
            condition="at the start; what is learned is not independent of what comes back",
        ),
    ]
