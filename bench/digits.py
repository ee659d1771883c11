"""Train a network with gpuact's functions alone: `python -m bench digits`.

scikit-learn's handwritten digits, 1797 images of 8×8 pixels; two hidden layers, softmax and
cross-entropy on top, mini-batches and momentum. Every derivative is written out below: no autograd.
The arrays are NumPy's, or CuPy's where a GPU answers; nothing else in the code changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

import gpuact

Array = Any  # numpy.ndarray or cupy.ndarray

WIDTHS = (64, 128, 64, 10)  # pixels, two hidden layers, classes
EPOCHS = 15
BATCH = 32
RATE = 0.05
MOMENTUM = 0.9
SLOPE = 0.25  # PReLU's slopes at the start, as its authors chose
ENOUGH = 0.95  # test accuracy that a network of CAPABLE must reach
CAPABLE = ("tanh", "relu", "leaky_relu", "prelu")


class Activation(NamedTuple):
    """A hidden activation; `slope` is PReLU's, one a unit, and None for all others."""

    gain: float  # of the initial weights: keeps the signal's size from layer to layer
    forward: Callable[[Array, Array], Array]  # z, slope → h
    backward: Callable[[Array, Array, Array, Array], tuple[Array, Array]]  # dh, z, h, slope
    learns: bool = False  # whether it has slopes


HIDDEN: Mapping[str, Activation] = {
    "linear": Activation(
        1,
        lambda z, slope: gpuact.linear(z),
        lambda dh, z, h, slope: (gpuact.linear_backward(dh, z, 1.0, 0.0)[0], None),
    ),
    "sigmoid": Activation(
        4,  # its derivative is at most 1/4
        lambda z, slope: gpuact.sigmoid(z),
        lambda dh, z, h, slope: (gpuact.sigmoid_backward(dh, h), None),
    ),
    "tanh": Activation(
        1,
        lambda z, slope: gpuact.tanh(z),
        lambda dh, z, h, slope: (gpuact.tanh_backward(dh, h), None),
    ),
    "relu": Activation(
        math.sqrt(2),  # half of the signal is cut off
        lambda z, slope: gpuact.relu(z),
        lambda dh, z, h, slope: (gpuact.relu_backward(dh, h), None),
    ),
    "leaky_relu": Activation(
        math.sqrt(2 / (1 + 0.01**2)),
        lambda z, slope: gpuact.leaky_relu(z, 0.01),
        lambda dh, z, h, slope: (gpuact.leaky_relu_backward(dh, z, 0.01), None),
    ),
    "prelu": Activation(
        math.sqrt(2 / (1 + SLOPE**2)),
        lambda z, slope: gpuact.prelu(z, slope),
        lambda dh, z, h, slope: gpuact.prelu_backward(dh, z, slope),
        learns=True,
    ),
}


class Layer:
    """z = x·W + b, and the slopes if its activation learns them."""

    def __init__(self, n: int, m: int, gain: float, slopes: bool, dtype: str, rng: Any) -> None:
        self.weights = gpuact.asarray(rng.normal(0, gain / math.sqrt(n), (n, m)), dtype)
        self.bias = gpuact.asarray(np.zeros(m), dtype)
        self.slope = gpuact.asarray(np.full(m, SLOPE), dtype) if slopes else None

    @property
    def parameters(self) -> list[Array]:
        return [p for p in (self.weights, self.bias, self.slope) if p is not None]


class Network:
    """gain: of the hidden layers' initial weights, instead of the activation's own."""

    def __init__(
        self,
        activation: str | Activation,
        dtype: str = "float32",
        seed: int = 0,
        widths: Sequence[int] = WIDTHS,
        gain: float | None = None,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.hidden = HIDDEN[activation] if isinstance(activation, str) else activation
        *inner, (n, classes) = pairwise(widths)
        gain, slopes = self.hidden.gain if gain is None else gain, self.hidden.learns
        self.layers = [Layer(n, m, gain, slopes, dtype, rng) for n, m in inner]
        self.layers.append(Layer(n, classes, 1, False, dtype, rng))
        self.parameters = [p for layer in self.layers for p in layer.parameters]

    def forward(self, x: Array) -> tuple[Array, list[tuple[Array, Array]]]:
        """The logits, and what backward needs of each hidden layer: z and h."""
        *inner, last = self.layers
        kept = []
        for layer in inner:
            z = x @ layer.weights + layer.bias
            x = self.hidden.forward(z, layer.slope)
            kept.append((z, x))
        return x @ last.weights + last.bias, kept

    def gradients(self, x: Array, target: Array) -> tuple[Array, list[Array]]:
        """The mean loss, and its gradient by every one of `self.parameters`."""
        logits, kept = self.forward(x)
        loss, dz = gpuact.cross_entropy_with_grad(logits, target)  # dz = (S − Y) / batch
        gradients, _ = self.backward(x, kept, dz)
        return loss, gradients

    def backward(
        self, x: Array, kept: list[tuple[Array, Array]], dz: Array
    ) -> tuple[list[Array], list[Array]]:
        """From dz of the last layer: the gradients of the parameters, and dz of every layer."""
        inputs = [x, *(h for _, h in kept)]
        dslope = None  # of the activation on top of the layer: there is none on the last
        found, dzs = [], [dz]
        for k in reversed(range(len(self.layers))):
            layer = self.layers[k]
            found.append([g for g in (inputs[k].T @ dz, dz.sum(0), dslope) if g is not None])
            if k > 0:
                z, h = kept[k - 1]
                dh = dz @ layer.weights.T
                dz, dslope = self.hidden.backward(dh, z, h, self.layers[k - 1].slope)
                dzs.append(dz)
        return [gradient for layer in reversed(found) for gradient in layer], dzs[::-1]

    def accuracy(self, x: Array, target: Array) -> float:
        logits, _ = self.forward(x)
        return float((logits.argmax(1) == target).mean())


@dataclass(frozen=True)
class Digits:
    """Images as rows of 64 pixels in [0, 1], and their classes."""

    x: Array
    target: Array
    test_x: Array
    test_target: Array


def digits(dtype: str = "float32") -> Digits:
    """1437 images to learn from and 360 to test with, always the same."""
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(target))
    x = gpuact.asarray(pixels[order] / 16, dtype)
    target = gpuact.asarray(target[order].astype(np.int64))
    return Digits(x[360:], target[360:], x[:360], target[:360])


@dataclass(frozen=True)
class Trained:
    activation: str
    accuracy: float  # on the test images
    seconds: float  # of one epoch: the median
    loss: float  # of the last epoch: the mean
    epochs: int
    enough: bool  # whether it learned what it is able to
    difference: float  # max |dZ − (S − Y)|, dZ being what cross_entropy_with_grad gives


def epoch(
    network: Network,
    data: Digits,
    velocity: Sequence[Array],
    rng: Any,
    rate: float = RATE,
    momentum: float = MOMENTUM,
) -> float:
    """Every image once, in batches; the mean loss on the way."""
    n = len(data.target)
    order = gpuact.asarray(rng.permutation(n))
    total = 0
    for at in range(0, n, BATCH):
        batch = order[at : at + BATCH]
        loss, gradients = network.gradients(data.x[batch], data.target[batch])
        total = total + loss * len(batch)
        for p, v, dp in zip(network.parameters, velocity, gradients, strict=True):
            v *= momentum
            v -= rate * dp
            p += v
    return float(total) / n  # waits for a GPU, so that the clock tells the truth


def train(activation: str, data: Digits, epochs: int = EPOCHS) -> Trained:
    network = Network(activation)
    velocity = [p * 0 for p in network.parameters]
    rng = np.random.default_rng(1)
    seconds = []
    for _ in range(epochs):
        start = perf_counter()
        mean_loss = epoch(network, data, velocity, rng)
        seconds.append(perf_counter() - start)
    accuracy = network.accuracy(data.test_x, data.test_target)
    enough = accuracy >= ENOUGH or activation not in CAPABLE
    found = activation, accuracy, median(seconds), mean_loss, epochs, enough
    return Trained(*found, difference_from_s_minus_y(network, data))


def difference_from_s_minus_y(network: Network, data: Digits) -> float:
    """max |dZ − (S − Y)|, dZ being what cross_entropy_with_grad gives for the summed loss."""
    logits, _ = network.forward(data.test_x)
    _, dz = gpuact.cross_entropy_with_grad(logits, data.test_target, reduction="sum")
    one_hot = gpuact.asarray(np.eye(10), "float32")[data.test_target]
    return float(abs(dz - (gpuact.softmax(logits) - one_hot)).max())
