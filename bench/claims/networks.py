"""The data that claims are measured on, and what is watched while a network learns.

Networks are those of bench/digits.py: gpuact's own functions forward and backward, no autograd.
They run on NumPy: so small, they are quickest there, and every machine gets the same curves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

import gpuact
from bench.digits import HIDDEN, SLOPE, Activation, Digits, Network, digits, epoch

Array = np.ndarray[Any, np.dtype[Any]]

WIDTH = 64  # as many as an image has pixels: one width from the pixels to the last layer
CLASSES = 10
TESTED = 360  # images
RATE = 0.01  # at which the deepest networks here do not diverge
HALF = 0.5  # sigmoid's value at 0
LEAK = 0.01
WIDE_LEAK = SLOPE  # as wide as where PReLU begins


def widths(depth: int) -> tuple[int, ...]:
    return (*(WIDTH,) * (depth + 1), CLASSES)


@cache
def images(dtype: str = "float32") -> Digits:
    """The digits, all pixels together with mean 0 and variance 1 over the images to learn from."""
    found = digits(dtype)
    mean, deviation = found.x.mean(), found.x.std()
    return replace(found, x=(found.x - mean) / deviation, test_x=(found.test_x - mean) / deviation)


@dataclass(frozen=True)
class Binary:
    """Rows of 30 standardised measurements of breast tumours; 1 is benign."""

    x: Array
    target: Array


@cache
def tumours() -> Binary:
    from sklearn.datasets import load_breast_cancer

    x, target = load_breast_cancer(return_X_y=True)
    return Binary((x - x.mean(0)) / x.std(0), target.astype(np.float64))


# sigmoid − ½: the same slope everywhere, and nothing but the mean taken away.
CENTRED = Activation(
    HIDDEN["sigmoid"].gain,
    lambda z, slope: gpuact.sigmoid(z) - z.dtype.type(HALF),
    lambda dh, z, h, slope: (gpuact.sigmoid_backward(dh, h + h.dtype.type(HALF)), None),
)


WIDE = Activation(
    HIDDEN["prelu"].gain,
    lambda z, slope: gpuact.leaky_relu(z, WIDE_LEAK),
    lambda dh, z, h, slope: (gpuact.leaky_relu_backward(dh, z, WIDE_LEAK), None),
)


def centred(seed: int, depth: int, dtype: str = "float32") -> Network:
    """Of sigmoid − ½: as a function, the sigmoid network of that seed. What the next layer misses
    of every input, ½, is in its bias."""
    network = Network(CENTRED, dtype, seed, widths(depth))
    for layer in network.layers[1:]:
        layer.bias += layer.weights.sum(0) * layer.weights.dtype.type(HALF)
    return network


# f′ of a whole layer, from what gpuact says of it.
DERIVATIVES: dict[str, Callable[[Array, Array | None], Array]] = {
    "linear": lambda z, slope: np.ones_like(z),
    "sigmoid": lambda z, slope: gpuact.sigmoid_derivative(z),
    "tanh": lambda z, slope: gpuact.tanh_derivative(z),
    "relu": lambda z, slope: gpuact.relu_derivative(z),
    "leaky_relu": lambda z, slope: gpuact.leaky_relu_derivative(z, LEAK),
    "prelu": lambda z, slope: gpuact.prelu_derivative(z, SLOPE if slope is None else slope),
}


def dzs(network: Network, x: Array, target: Array) -> tuple[list[Array], list[Array], list[Array]]:
    """∂L/∂z of every hidden layer, z of every hidden layer, and the gradients of its weights."""
    logits, kept = network.forward(x)
    _, dz = gpuact.cross_entropy_with_grad(logits, target)
    gradients, found = network.backward(x, kept, dz)
    weights = gradients[:: 2 + network.hidden.learns]  # beside a bias, and slopes if it has any
    return found[:-1], [z for z, _ in kept], weights


def epochs(
    network: Network,
    data: Digits,
    seed: int,
    count: int,
    rate: float = RATE,
    momentum: float = 0.9,
) -> Iterator[float]:
    """Descend in mini-batches; after each epoch, its mean loss."""
    velocity = [p * 0 for p in network.parameters]
    rng = np.random.default_rng([seed, 1])
    with np.errstate(all="ignore"):  # a rate may be so large that everything overflows
        for _ in range(count):
            yield epoch(network, data, velocity, rng, rate, momentum)


def flat(arrays: Sequence[Array]) -> Array:
    return np.concatenate([array.ravel() for array in arrays])
