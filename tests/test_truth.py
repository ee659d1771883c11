"""The truth itself, against mpmath at 60 digits."""

from __future__ import annotations

import numpy as np
import pytest

mpmath = pytest.importorskip("mpmath")

from tests import truth

POINTS = (
    -750.0,
    -745.1,
    -100.25,
    -20.0,
    -1.5,
    -0.1,
    -1e-9,
    1e-300,
    1e-9,
    0.3,
    2.0,
    17.5,
    40.0,
    700,
)
MPMATH = {
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "sigmoid_derivative": lambda x: mpmath.exp(-x) / (1 + mpmath.exp(-x)) ** 2,
    "tanh": lambda x: mpmath.expm1(2 * x) / (mpmath.exp(2 * x) + 1),
    "tanh_derivative": lambda x: 4 * mpmath.exp(-2 * x) / (1 + mpmath.exp(-2 * x)) ** 2,
}


def exact(value: np.longdouble) -> mpmath.mpf:
    mantissa, exponent = np.frexp(value)
    return mpmath.ldexp(int(mantissa * np.longdouble(2) ** 64), int(exponent) - 64)


def close(got: np.longdouble, want: mpmath.mpf) -> bool:
    """Within a hundredth of a float64 ulp."""
    return abs(exact(got) - want) <= abs(want) * mpmath.mpf(2) ** -53 / 50


@pytest.mark.parametrize("formula", MPMATH)
def test_elementwise(formula):
    with mpmath.workdps(60):
        for x in POINTS:
            got = truth.elementwise(formula, np.float64(x))[()]
            assert close(got, MPMATH[formula](mpmath.mpf(x))), x


def test_rows():
    x = np.random.default_rng(0).standard_normal((1, 9, 1)) * 30
    with mpmath.workdps(60):
        e = [mpmath.exp(mpmath.mpf(v)) for v in x.ravel().tolist()]
        for k, v in enumerate(e):
            assert close(truth.softmax(x)[0, k, 0], v / sum(e))
            assert abs(exact(truth.log_softmax(x)[0, k, 0]) - mpmath.log(v / sum(e))) < 1e-17
        values = truth.cross_entropy(x, np.array([[4]]), None, -100, 0.25)
        log_p = [mpmath.log(v / sum(e)) for v in e]
        shares = [(0.75 if k == 4 else 0) + mpmath.mpf(1) / 36 for k in range(9)]
        want = -sum(s * lp for s, lp in zip(shares, log_p, strict=True))
        assert close(values["loss"][0, 0], want)
        assert close(values["lse"][0, 0], mpmath.log(sum(e)))
        for k, v in enumerate(e):
            assert abs(exact(values["gradient"][0, k, 0]) - (v / sum(e) - shares[k])) < 1e-18
