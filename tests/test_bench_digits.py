"""The digits: gradients written by hand are right, and a network learns from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpuact
from bench import digits


@pytest.fixture(scope="module")
def data() -> digits.Digits:
    pytest.importorskip("sklearn")
    with gpuact.using("numpy"):
        return digits.digits()


@pytest.mark.parametrize("activation", digits.HIDDEN)
def test_gradients_written_by_hand_equal_numeric_ones(activation: str, data: digits.Digits) -> None:
    with gpuact.using("numpy"):
        network = digits.Network(activation, "float64")
        x, target = np.asarray(data.x[:16], np.float64), data.target[:16]
        loss, gradients = network.gradients(x, target)
        assert len(gradients) == len(network.parameters)
        rng, step = np.random.default_rng(2), 1e-5
        for p, gradient in zip(network.parameters, gradients, strict=True):
            assert gradient.shape == p.shape
            # along a random direction; so small that next to no unit passes its kink
            direction = rng.standard_normal(p.shape)
            direction /= np.linalg.norm(direction)
            sides = []
            for sign in (1, -1):
                p += sign * step * direction
                sides.append(network.gradients(x, target)[0])
                p -= sign * step * direction
            numeric = (sides[0] - sides[1]) / (2 * step)
            assert abs(numeric - (gradient * direction).sum()) < 1e-7
        assert loss > 0


@pytest.mark.parametrize("activation", digits.CAPABLE)
def test_a_few_epochs_learn_most_of_it(activation: str, data: digits.Digits) -> None:
    with gpuact.using("numpy"):
        trained = digits.train(activation, data, epochs=2)
    assert trained.accuracy > 0.8
    assert trained.enough == (trained.accuracy >= 0.95)
    assert trained.seconds > 0
    assert (trained.activation, trained.epochs) == (activation, 2)
    assert 0 < trained.loss < 1
    assert 0 <= trained.difference < 1e-6


@pytest.mark.parametrize("activation", sorted(set(digits.HIDDEN) - set(digits.CAPABLE)))
def test_who_is_not_able_to_learn_it_has_learned_enough(
    activation: str, data: digits.Digits
) -> None:
    with gpuact.using("numpy"):
        trained = digits.train(activation, data, epochs=1)
    assert trained.accuracy < digits.ENOUGH
    assert trained.enough


def test_the_split_is_fixed_and_apart(data: digits.Digits) -> None:
    assert (data.x.shape, data.test_x.shape) == ((1437, 64), (360, 64))
    assert (data.x.min(), data.x.max()) == (0, 1)
    assert np.bincount(data.test_target).min() > 20
    with gpuact.using("numpy"):
        again = digits.digits()
    assert np.array_equal(again.test_x, data.test_x)


@pytest.mark.parametrize("activation", digits.HIDDEN)
def test_dz_is_s_minus_y(activation: str, data: digits.Digits) -> None:
    with gpuact.using("numpy"):
        network = digits.Network(activation)
        assert digits.difference_from_s_minus_y(network, data) < 1e-6


def test_a_dz_that_is_not_s_minus_y_is_told(
    data: digits.Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = gpuact.cross_entropy_with_grad

    def off(logits: Any, target: Any, **options: Any) -> Any:
        loss, dz = right(logits, target, **options)
        dz[17, 3] += 0.01
        return loss, dz

    monkeypatch.setattr(gpuact, "cross_entropy_with_grad", off)
    with gpuact.using("numpy"):
        found = digits.difference_from_s_minus_y(digits.Network("tanh"), data)
    assert found == pytest.approx(0.01, rel=1e-3)
