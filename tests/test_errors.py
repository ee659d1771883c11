"""Bad input: one table of calls, the class of the exception and what its message says.

A message is one sentence in one line: the argument, what came, what is allowed. Nothing is written
before everything is checked: `out`, poisoned, must come back as it was.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpuact
from gpuact.catalogue import FUNCTIONS

AxisError = np.exceptions.AxisError
X = np.array([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]], np.float32)
Z = np.zeros((4, 3))
T = np.array([0, 1, 2, 0])
CUBE = np.zeros((2, 3, 3))
NUMBER = np.float32(0)


class Unwilling:
    """An object that promises an array and does not give one."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("no array today")


def quietly(make: Callable[..., Any], *args: Any) -> Any:
    """What libraries would rather not make, and warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args)


def array_of(dtype: Any) -> Any:
    return np.zeros((2, 3), dtype)


def read_only(x: Any) -> Any:
    x = x.view()
    x.flags.writeable = False
    return x


Case = tuple[Callable[[Any], Any], type[Exception], str]

Call = tuple[str, Callable[[Any, Any], Any]]


def calls_of(name: str) -> dict[str, Call]:
    """An elementwise function, its derivative and its backward, nothing else being given."""
    stored = FUNCTIONS[name].saved[0]
    return {
        name: ("x", lambda x, out: getattr(gpuact, name)(x, out=out)),
        f"{name}_derivative": (
            "x",
            lambda x, out: getattr(gpuact, f"{name}_derivative")(x, out=out),
        ),
        f"{name}_backward": (stored, lambda y, out: getattr(gpuact, f"{name}_backward")(X, y)),
    }


PLAIN = [f.name for f in FUNCTIONS.values() if f.kind == "elementwise" and not f.sums]

# What the functions have in common: name → its first argument's name and a call.
FIRST: dict[str, Call] = {
    **{name: call for plain in PLAIN for name, call in calls_of(plain).items()},
    "linear": ("x", lambda x, out: gpuact.linear(x, 2.0, 1.0, out=out)),
    "linear_derivative": ("x", lambda x, out: gpuact.linear_derivative(x, 2.0, out=out)),
    "linear_backward": ("x", lambda x, out: gpuact.linear_backward(X, x, 1.0, 0.0)),
    "prelu": ("x", lambda x, out: gpuact.prelu(x, 0.1, out=out)),
    "prelu_derivative": ("x", lambda x, out: gpuact.prelu_derivative(x, 0.1, out=out)),
    "prelu_backward": ("x", lambda x, out: gpuact.prelu_backward(X, x, 0.1)),
    "fused": ("x", lambda x, out: gpuact.fused(x, "tanh", out=out)),
    "fused_backward": ("x", lambda x, out: gpuact.fused_backward(X, x, "tanh")),
    "softmax": ("x", lambda x, out: gpuact.softmax(x, out=out)),
    "softmax_backward": ("y", lambda y, out: gpuact.softmax_backward(X, y)),
    "softmax_jacobian": ("y", lambda y, out: gpuact.softmax_jacobian(y)),
    "log_softmax": ("x", lambda x, out: gpuact.log_softmax(x, out=out)),
    "log_softmax_backward": ("y", lambda y, out: gpuact.log_softmax_backward(X, y)),
    "cross_entropy": ("logits", lambda z, out: gpuact.cross_entropy(z, T[:2])),
    "cross_entropy_backward": (
        "logits",
        lambda z, out: gpuact.cross_entropy_backward(NUMBER, z, T[:2], X[:, 0]),
    ),
    "cross_entropy_with_grad": (
        "logits",
        lambda z, out: gpuact.cross_entropy_with_grad(z, T[:2], dlogits_out=out),
    ),
}
# Not an array of numbers that gpuact knows.
NO_NUMBERS: dict[str, tuple[Any, str]] = {
    "complex": (array_of(np.complex128), "dtype complex128 came"),
    "a complex number": (1j, "dtype complex128 came"),
    "objects": (array_of(object), "dtype object came"),
    "None": (None, "dtype object came"),
    "a dictionary": ({}, "dtype object came"),
    "text": ("text", "dtype str"),
    "bytes": (array_of("S3"), "dtype bytes"),
    "dates": (array_of("datetime64[s]"), "dtype datetime64"),
    "records": (array_of([("a", "f4")]), "dtype void"),
    "float8": (array_of(ml_dtypes.float8_e4m3fn), "dtype float8_e4m3fn came"),
    "long double": (array_of(np.longdouble), "dtype (longdouble|float128|float96) came"),
    "a ragged list": ([[1.0], [1.0, 2.0]], "list came"),
    "an unwilling object": (Unwilling(), "Unwilling came"),
}
# Takes no integers at all, or no bool.
REFUSED = {
    **{name: ("int64", "bool", "uint8") for name in FIRST if "leaky" in name or "prelu" in name},
    "relu": ("bool",),
}

CASES: dict[str, Case] = {
    # fused
    "activation unknown": (
        lambda out: gpuact.fused(X, "gelu", out=out),
        ValueError,
        "activation: 'gelu' came, allowed are linear, sigmoid",
    ),
    "activation without a hash": (
        lambda out: gpuact.fused(X, ["relu"], out=out),
        ValueError,
        "activation: list came, allowed are linear, sigmoid",
    ),
    "activation of rows": (
        lambda out: gpuact.fused(X, "softmax", out=out),
        ValueError,
        "activation: 'softmax' came, allowed are linear, sigmoid",
    ),
    "fused prelu without weight": (
        lambda out: gpuact.fused(X, "prelu", out=out),
        ValueError,
        "weight: none came, prelu takes slopes",
    ),
    "fused relu with weight": (
        lambda out: gpuact.fused(X, "relu", weight=0.5, out=out),
        ValueError,
        "weight: float came, relu takes none",
    ),
    "fused leaky slope an array": (
        lambda out: gpuact.fused(X, "leaky_relu", negative_slope=X, out=out),
        TypeError,
        "negative_slope: ndarray came, allowed is a number",
    ),
    "fused integers": (
        lambda out: gpuact.fused(X.astype(int), "prelu", weight=0.5, out=out),
        TypeError,
        "x: dtype int64 came, allowed are float16",
    ),
    "gate of another shape": (
        lambda out: gpuact.fused(X, "relu", gate=X[0], out=out),
        ValueError,
        r"gate: shape \(3,\) came, x has \(2, 3\)",
    ),
    "residual of another shape": (
        lambda out: gpuact.fused(X, "relu", residual=X[:1], out=out),
        ValueError,
        r"residual: shape \(1, 3\) came, x has \(2, 3\)",
    ),
    "gate complex": (
        lambda out: gpuact.fused(X, "relu", gate=X + 1j, out=out),
        TypeError,
        "gate: dtype complex",
    ),
    "fused scale of another channel": (
        lambda out: gpuact.fused(X, "relu", scale=np.ones(2), out=out),
        ValueError,
        r"scale: 2 elements came, axis 1 of x \(shape \(2, 3\)\)",
    ),
    "dropout a number": (
        lambda out: gpuact.fused(X, "relu", dropout=0.5, out=out),
        TypeError,
        "dropout: float came, allowed is gpuact.Dropout",
    ),
    "dropout more than all": (
        lambda out: gpuact.Dropout(1.5, 0),
        ValueError,
        "p: 1.5 came, allowed is a number from 0 to 1",
    ),
    "dropout NaN": (
        lambda out: gpuact.Dropout(float("nan"), 0),
        ValueError,
        "p: nan came, allowed is a number from 0 to 1",
    ),
    "dropout p text": (lambda out: gpuact.Dropout("half", 0), TypeError, "p: str came"),
    "dropout seed a float": (lambda out: gpuact.Dropout(0.5, 1.0), TypeError, "seed: float came"),
    "dropout p too large for a float": (
        lambda out: gpuact.Dropout(10**400, 0),
        ValueError,
        "p: a number came that is too large for a float",
    ),
    "dropout seed a time": (
        lambda out: gpuact.Dropout(0.5, np.timedelta64(1, "s")),
        TypeError,
        "seed: timedelta64 came, allowed is an int",
    ),
    "scale a time": (
        lambda out: gpuact.linear(X, np.timedelta64(1, "s"), out=out),
        TypeError,
        "scale: timedelta64 came, allowed are a number and an array",
    ),
    "dropout seed negative": (
        lambda out: gpuact.Dropout(0.5, -1),
        ValueError,
        "seed: -1 came, allowed is an int from 0",
    ),
    "dropout offset too large": (
        lambda out: gpuact.Dropout(0.5, 1, 2**64),
        ValueError,
        "offset: 18446744073709551616 came",
    ),
    "fused dy of another shape": (
        lambda out: gpuact.fused_backward(X[0], X, "relu"),
        ValueError,
        r"dy: shape \(3,\) came, x has \(2, 3\)",
    ),
    "fused dy None": (
        lambda out: gpuact.fused_backward(None, X, "relu", residual=X),
        TypeError,
        "dy: dtype object came, allowed are float16",
    ),
    # parameters
    "causal rows of 2^31": (
        lambda out: gpuact.softmax(np.broadcast_to(X[0, 0], (1, 2**31)), causal=True),
        ValueError,
        r"causal: came with 2147483648 columns, allowed are up to 2\^31 - 1",
    ),
    "scale too large for a float": (
        lambda out: gpuact.softmax(X, scale=10**400, out=out),
        ValueError,
        r"scale: a number came that is too large for a float, allowed are numbers up to 1.8e\+308",
    ),
    "dloss too large for a float": (
        lambda out: gpuact.cross_entropy_backward(10**400, Z, T, Z[:, 0]),
        ValueError,
        "dloss: a number came that is too large for a float",
    ),
    "scale None": (lambda out: gpuact.linear(X, None, out=out), TypeError, "scale: NoneType came"),
    "scale text": (lambda out: gpuact.linear(X, "2", out=out), TypeError, "scale: str came"),
    "bias complex": (lambda out: gpuact.linear(X, 1.0, 1j, out=out), TypeError, "bias: complex"),
    "scale complex scalar": (
        lambda out: gpuact.linear(X, np.complex64(1j), out=out),
        TypeError,
        "scale: complex64 came",
    ),
    "scale text scalar": (
        lambda out: gpuact.linear(X, np.str_("2"), out=out),
        TypeError,
        "scale: str_ came",
    ),
    "scale complex array": (
        lambda out: gpuact.linear(X, np.ones(3, complex), out=out),
        TypeError,
        "scale: dtype complex128 came",
    ),
    "bias of objects": (
        lambda out: gpuact.linear(X, 1.0, [None, 1, 2], out=out),
        TypeError,
        "bias: dtype object came",
    ),
    "bias ragged": (
        lambda out: gpuact.linear(X, 1.0, [[1], [1, 2]], out=out),
        TypeError,
        "bias: list came",
    ),
    "scale too long": (
        lambda out: gpuact.linear(X, np.ones(4), out=out),
        ValueError,
        r"scale: shape \(4,\) came, allowed are shapes that broadcast to \(2, 3\)",
    ),
    "bias along the wrong axis": (
        lambda out: gpuact.linear(X, 1.0, np.ones(2), out=out),
        ValueError,
        r"bias: shape \(2,\) came",
    ),
    "scale would widen x": (
        lambda out: gpuact.linear(X, np.ones((1, 2, 3)), out=out),
        ValueError,
        r"scale: shape \(1, 2, 3\) came",
    ),
    "scale would widen a 0-d x": (
        lambda out: gpuact.linear(1.0, np.ones(3)),
        ValueError,
        r"scale: shape \(3,\) came, allowed are shapes that broadcast to \(\)",
    ),
    "scale would widen an axis": (
        lambda out: gpuact.linear(X[:1], np.ones((2, 3)), out=out),
        ValueError,
        r"scale: shape \(2, 3\) came",
    ),
    "bias of the backward": (
        lambda out: gpuact.linear_backward(X, X, 1.0, np.ones(2)),
        ValueError,
        r"bias: shape \(2,\) came",
    ),
    "scale of the derivative": (
        lambda out: gpuact.linear_derivative(X, np.ones(2), out=out),
        ValueError,
        r"scale: shape \(2,\) came",
    ),
    "slope None": (
        lambda out: gpuact.leaky_relu(X, None, out=out),
        TypeError,
        "negative_slope: NoneType came, allowed is a number",
    ),
    "slope an array": (
        lambda out: gpuact.leaky_relu(X, np.ones(3), out=out),
        TypeError,
        "negative_slope: ndarray came, allowed is a number",
    ),
    "slope a list": (
        lambda out: gpuact.leaky_relu_derivative(X, [0.1], out=out),
        TypeError,
        "negative_slope: list came",
    ),
    "too many slopes": (
        lambda out: gpuact.prelu(X, np.ones(4), out=out),
        ValueError,
        "weight: 4 elements came, axis 1 of x .* has 3 channels",
    ),
    "slopes of another axis": (
        lambda out: gpuact.prelu(X, np.ones(2), out=out),
        ValueError,
        "weight: 2 elements came, axis 1",
    ),
    "slopes of axis 0": (
        lambda out: gpuact.prelu(X, np.ones(3), channel_axis=0, out=out),
        ValueError,
        "weight: 3 elements came, axis 0",
    ),
    "slopes that would widen": (
        lambda out: gpuact.prelu(X[:, :1], np.ones((2, 3)), out=out),
        ValueError,
        r"weight: shape \(2, 3\) came",
    ),
    "slopes of too many dimensions": (
        lambda out: gpuact.prelu(X, np.ones((1, 1, 1)), out=out),
        ValueError,
        r"weight: shape \(1, 1, 1\) came",
    ),
    "slopes of too few dimensions": (
        lambda out: gpuact.prelu(CUBE, np.ones((3, 3))),
        ValueError,
        r"weight: shape \(3, 3\) came",
    ),
    "no slopes": (
        lambda out: gpuact.prelu(X, np.ones(0), out=out),
        ValueError,
        "weight: 0 elements came",
    ),
    "slopes of the backward": (
        lambda out: gpuact.prelu_backward(X, X, np.ones(2)),
        ValueError,
        "weight: 2 elements came",
    ),
    "slopes complex": (
        lambda out: gpuact.prelu(X, np.ones(3, complex), out=out),
        TypeError,
        "weight: dtype complex128",
    ),
    "channel axis out of range": (
        lambda out: gpuact.prelu(X, np.ones(3), channel_axis=2, out=out),
        AxisError,
        "channel_axis: 2 came, an array of 2 dimensions allows -2 to 1",
    ),
    "channel axis of 0-d": (
        lambda out: gpuact.prelu(1.0, np.ones(3)),
        AxisError,
        "channel_axis: 1 came, a 0-d array",
    ),
    "channel axis of the derivative no integer": (
        lambda out: gpuact.prelu_derivative(X, 0.1, channel_axis="1", out=out),
        TypeError,
        "channel_axis: str came, allowed is an int",
    ),
    "axis a bool of NumPy": (
        lambda out: gpuact.softmax(X, np.True_, out=out),
        TypeError,
        "axis: bool came, allowed is an int",
    ),
    "channel axis no integer": (
        lambda out: gpuact.prelu(X, np.ones(3), channel_axis=1.0, out=out),
        TypeError,
        "channel_axis: float came",
    ),
    # incoming gradients
    "dy of another shape": (
        lambda out: gpuact.relu_backward(X[0], X),
        ValueError,
        r"dy: shape \(3,\) came, y has \(2, 3\)",
    ),
    "dy a number": (
        lambda out: gpuact.sigmoid_backward(1.0, X),
        ValueError,
        r"dy: shape \(\) came, y has \(2, 3\)",
    ),
    "dy of prelu": (
        lambda out: gpuact.prelu_backward(X.T, X, 0.1),
        ValueError,
        r"dy: shape \(3, 2\) came, x has \(2, 3\)",
    ),
    "dy of softmax": (
        lambda out: gpuact.softmax_backward(X[:1], X),
        ValueError,
        r"dy: shape \(1, 3\) came, y has \(2, 3\)",
    ),
    "dy complex": (
        lambda out: gpuact.tanh_backward(X * 1j, X),
        TypeError,
        "dy: dtype complex64 came",
    ),
    "dy of objects": (
        lambda out: gpuact.log_softmax_backward(X.astype(object), X),
        TypeError,
        "dy: dtype object came",
    ),
    # axes
    "axis too large": (
        lambda out: gpuact.softmax(X, 2, out=out),
        AxisError,
        "axis: 2 came, an array of 2 dimensions allows -2 to 1",
    ),
    "axis too small": (
        lambda out: gpuact.log_softmax(X, -3, out=out),
        AxisError,
        "axis: -3 came",
    ),
    "axis of 0-d": (lambda out: gpuact.softmax(1.0, 1), AxisError, "axis: 1 came, a 0-d array"),
    "an axis of several": (
        lambda out: gpuact.softmax(X, (0, 2), out=out),
        AxisError,
        "axis: 2 came",
    ),
    "axis twice": (
        lambda out: gpuact.softmax(X, (0, 0), out=out),
        ValueError,
        r"axis: \(0, 0\) came, allowed are distinct axes",
    ),
    "axis twice in disguise": (
        lambda out: gpuact.log_softmax(X, (1, -1), out=out),
        ValueError,
        r"axis: \(1, -1\) came",
    ),
    "no axis": (lambda out: gpuact.softmax(X, (), out=out), ValueError, r"axis: \(\) came"),
    "axis text": (lambda out: gpuact.softmax(X, "0", out=out), TypeError, "axis: str came"),
    "axis float": (lambda out: gpuact.softmax(X, 1.0, out=out), TypeError, "axis: float came"),
    "axis among None": (
        lambda out: gpuact.softmax(X, (0, None), out=out),
        TypeError,
        "axis: NoneType came",
    ),
    "axis of the backward": (
        lambda out: gpuact.softmax_backward(X, X, 2),
        AxisError,
        "axis: 2 came",
    ),
    "axis of the Jacobian": (
        lambda out: gpuact.softmax_jacobian(X, 2),
        AxisError,
        "axis: 2 came",
    ),
    "axes of the Jacobian": (
        lambda out: gpuact.softmax_jacobian(X, (0, 1)),
        TypeError,
        "axis: tuple came, allowed is an int",
    ),
    # scores
    "softmax scale None": (
        lambda out: gpuact.softmax(X, scale=None, out=out),
        TypeError,
        "scale: NoneType came, allowed is a number",
    ),
    "softmax scale an array": (
        lambda out: gpuact.softmax(X, scale=X[0], out=out),
        TypeError,
        "scale: ndarray came, allowed is a number",
    ),
    "scale of softmax's backward": (
        lambda out: gpuact.softmax_backward(X, X, scale="2"),
        TypeError,
        "scale: str came, allowed is a number",
    ),
    "a mask of integers": (
        lambda out: gpuact.softmax(X, mask=np.ones(3, int), out=out),
        TypeError,
        r"mask: dtype int64 came, allowed are bool \(True takes part\) and, to be added, float16",
    ),
    "a complex mask": (
        lambda out: gpuact.softmax(X, mask=X + 1j, out=out),
        TypeError,
        "mask: dtype complex64 came",
    ),
    "a mask of objects": (
        lambda out: gpuact.softmax(X, mask=[None] * 3, out=out),
        TypeError,
        "mask: dtype object came",
    ),
    "a mask of the other axis": (
        lambda out: gpuact.softmax(X, mask=np.ones(2, bool), out=out),
        ValueError,
        r"mask: shape \(2,\) came, allowed are shapes that broadcast to \(2, 3\)",
    ),
    "a mask that would widen x": (
        lambda out: gpuact.softmax(X[:1], mask=X > 0, out=out[:1]),
        ValueError,
        r"mask: shape \(2, 3\) came, allowed are shapes that broadcast to \(1, 3\)",
    ),
    "a mask of more dimensions": (
        lambda out: gpuact.softmax(X, mask=np.ones((1, 2, 3), bool), out=out),
        ValueError,
        r"mask: shape \(1, 2, 3\) came",
    ),
    "causal along another axis": (
        lambda out: gpuact.softmax(X, 0, causal=True, out=out),
        ValueError,
        r"causal: came with axis \(0,\) of x of 2 dimensions, allowed is the last axis of two at",
    ),
    "causal along all axes": (
        lambda out: gpuact.softmax(X, None, causal=True, out=out),
        ValueError,
        r"causal: came with axis \(0, 1\)",
    ),
    "causal in one dimension": (
        lambda out: gpuact.softmax(X[0], causal=True),
        ValueError,
        r"causal: came with axis \(0,\) of x of 1 dimensions",
    ),
    "causal a word": (
        lambda out: gpuact.softmax(X, causal="yes", out=out),
        TypeError,
        "causal: str came, allowed is True or False",
    ),
    "all_masked unknown": (
        lambda out: gpuact.softmax(X, all_masked="one", out=out),
        ValueError,
        "all_masked: 'one' came, allowed are 'nan', 'zero'",
    ),
    "all_masked an array": (
        lambda out: gpuact.softmax(X, all_masked=X, out=out),
        ValueError,
        "all_masked: ndarray came, allowed are 'nan', 'zero'",
    ),
    "all_masked a number": (
        lambda out: gpuact.softmax(X, all_masked=0, out=out),
        ValueError,
        "all_masked: 0 came, allowed are 'nan', 'zero'",
    ),
    # dtype=
    "dtype an integer": (
        lambda out: gpuact.softmax(X, dtype="int32", out=out),
        TypeError,
        "dtype: int32 came, allowed are float16",
    ),
    "dtype complex": (
        lambda out: gpuact.log_softmax(X, dtype=complex, out=out),
        TypeError,
        "dtype: complex128 came",
    ),
    "dtype unknown": (
        lambda out: gpuact.softmax(X, dtype="float9", out=out),
        TypeError,
        "dtype: '?float9'? came",
    ),
    "dtype no text": (
        lambda out: gpuact.softmax(X, dtype="", out=out),
        TypeError,
        "dtype: '' came, allowed are float16",
    ),
    "dtype of an object that has none": (
        lambda out: gpuact.softmax(X, dtype=type("Odd", (), {"dtype": "float32"})(), out=out),
        TypeError,
        "dtype: Odd came, allowed are float16",
    ),
    "dtype no dtype": (
        lambda out: gpuact.softmax(X, dtype=3.5, out=out),
        TypeError,
        "dtype: ",
    ),
    "dtype and out": (
        lambda out: gpuact.softmax(X, dtype="float64", out=out),
        TypeError,
        "out: dtype float32 came, the result has float64",
    ),
    # out
    "out shape": (
        lambda out: gpuact.relu(X, out=out[:1]),
        ValueError,
        r"out: shape \(1, 3\) came, the result has \(2, 3\)",
    ),
    "out larger": (
        lambda out: gpuact.relu(X[:1], out=out),
        ValueError,
        r"out: shape \(2, 3\) came, the result has \(1, 3\)",
    ),
    "out transposed": (
        lambda out: gpuact.sigmoid(X, out=out.T),
        ValueError,
        r"out: shape \(3, 2\)",
    ),
    "out flat": (lambda out: gpuact.softmax(X, out=out.ravel()), ValueError, r"out: shape \(6,\)"),
    "out of another float": (
        lambda out: gpuact.tanh(X.astype(np.float64), out=out),
        TypeError,
        "out: dtype float32 came, the result has float64",
    ),
    "out of a half type": (
        lambda out: gpuact.tanh(X.astype(np.float16), out=out),
        TypeError,
        "out: dtype float32 came, the result has float16",
    ),
    "out of integers": (
        lambda out: gpuact.linear(X, out=out.view(np.int32)),
        TypeError,
        "out: dtype int32 came, the result has float32",
    ),
    "out for integers": (
        lambda out: gpuact.relu(X.astype(np.int32), out=out),
        TypeError,
        "out: dtype float32 came, the result has int32",
    ),
    "out in place of integers": (
        lambda out: gpuact.sigmoid(X.astype(int), out=X.astype(int)),
        TypeError,
        "out: dtype int64 came, the result has float32",
    ),
    "out read-only": (
        lambda out: gpuact.leaky_relu(X, out=read_only(out)),
        ValueError,
        "out: a read-only array came",
    ),
    "out broadcast": (
        lambda out: gpuact.relu(
            X, out=np.lib.stride_tricks.as_strided(out, (2, 3), (0, 4), writeable=True)
        ),
        ValueError,
        r"out: shape .* came with strides of .* bytes, by which elements share",
    ),
    "out whose rows overlap": (
        lambda out: gpuact.relu(
            X, out=np.lib.stride_tricks.as_strided(out, (2, 3), (8, 4), writeable=True)
        ),
        ValueError,
        r"out: shape \(2, 3\) came with strides of \(8, 4\) bytes, by which elements share",
    ),
    "out whose elements overlap": (
        lambda out: gpuact.relu(
            X, out=np.lib.stride_tricks.as_strided(out, (2, 3), (12, 2), writeable=True)
        ),
        ValueError,
        r"out: shape \(2, 3\) came with strides of \(12, 2\) bytes, by which elements share",
    ),
    "out a list": (
        lambda out: gpuact.relu(X, out=out.tolist()),
        TypeError,
        "out: list came, allowed is an array of x's own library, ndarray",
    ),
    "out a matrix": (
        lambda out: gpuact.softmax(X, out=quietly(np.asmatrix, out)),
        TypeError,
        "out: a matrix came, allowed is an ndarray",
    ),
    "out a tuple, as ufuncs have it": (
        lambda out: gpuact.relu(X, out=(out,)),
        TypeError,
        "out: tuple came",
    ),
    "out of a derivative": (
        lambda out: gpuact.prelu_derivative(X, 0.1, out=out[:1]),
        ValueError,
        "out: shape",
    ),
    "out of rows": (
        lambda out: gpuact.log_softmax(X, out=read_only(out)),
        ValueError,
        "out: a read-only array",
    ),
    # cross-entropy
    "a 0-d logit": (lambda out: gpuact.cross_entropy(1.0, 0), ValueError, "logits: a 0-d array"),
    "no classes": (
        lambda out: gpuact.cross_entropy(Z[:, :0], T),
        ValueError,
        r"logits: shape \(4, 0\) came, allowed is at least one class",
    ),
    "a target of bools": (
        lambda out: gpuact.cross_entropy(Z, T > 0),
        TypeError,
        "target: dtype bool came, allowed are integer classes, or probabilities",
    ),
    "a complex target": (
        lambda out: gpuact.cross_entropy(Z, Z * 1j),
        TypeError,
        "target: dtype complex128 came",
    ),
    "a target of objects": (
        lambda out: gpuact.cross_entropy_with_grad(Z, [None] * 4),
        TypeError,
        "target: dtype object came",
    ),
    "too many targets": (
        lambda out: gpuact.cross_entropy(Z, np.zeros(5, int)),
        ValueError,
        r"target: classes of shape \(5,\) came, logits of shape \(4, 3\) .* axis 1 allow \(4,\)",
    ),
    "a target a column": (
        lambda out: gpuact.cross_entropy(Z, T[:, None]),
        ValueError,
        r"target: classes of shape \(4, 1\) came",
    ),
    "one target for all": (
        lambda out: gpuact.cross_entropy(Z, 0),
        ValueError,
        r"target: classes of shape \(\) came",
    ),
    "classes as floats": (
        lambda out: gpuact.cross_entropy(Z, T.astype(float)),
        ValueError,
        r"target: probabilities of shape \(4,\) came",
    ),
    "probabilities of another shape": (
        lambda out: gpuact.cross_entropy(Z, Z[:, :2]),
        ValueError,
        r"target: probabilities of shape \(4, 2\) came",
    ),
    "a target that fits axis 1": (
        lambda out: gpuact.cross_entropy(np.zeros((2, 3, 5)), np.zeros((2, 5), int)),
        ValueError,
        r"target: classes of shape \(2, 5\) came, .* allow \(2, 3\); it fits axis=1",
    ),
    "a target that fits two axes": (
        lambda out: gpuact.cross_entropy(CUBE, np.zeros((2, 3), int)),
        ValueError,
        r"axis: none came, and a target of shape \(2, 3\) fits both axis 1 and the last axis",
    ),
    "probabilities fit two axes": (
        lambda out: gpuact.cross_entropy_with_grad(CUBE, CUBE),
        ValueError,
        "axis: none came",
    ),
    "the class axis out of range": (
        lambda out: gpuact.cross_entropy(Z, T, axis=2),
        AxisError,
        "axis: 2 came",
    ),
    "the class axis a float": (
        lambda out: gpuact.cross_entropy(Z, T, axis=1.0),
        TypeError,
        "axis: float came, allowed is an int",
    ),
    "the class axis a tuple": (
        lambda out: gpuact.cross_entropy(CUBE, np.zeros(2, int), axis=(1, 2)),
        TypeError,
        "axis: tuple came",
    ),
    "a class too large": (
        lambda out: gpuact.cross_entropy(Z, np.array([0, 1, 3, 0])),
        IndexError,
        "target: class 3 came, allowed are 0 to 2 and the ignore_index -100",
    ),
    "a negative class": (
        lambda out: gpuact.cross_entropy(Z, np.array([0, -1, 3, 0])),
        IndexError,
        "target: class -1 came",
    ),
    "what was the ignore_index": (
        lambda out: gpuact.cross_entropy(Z, np.array([0, -100, 2, 0]), ignore_index=-1),
        IndexError,
        "target: class -100 came, allowed are 0 to 2 and the ignore_index -1",
    ),
    "a class of the backward": (
        lambda out: gpuact.cross_entropy_backward(NUMBER, Z, T + 1, Z[:, 0]),
        IndexError,
        "target: class 3 came",
    ),
    "a class of both": (
        lambda out: gpuact.cross_entropy_with_grad(X, T[:2] + 2, dlogits_out=out),
        IndexError,
        "target: class 3 came",
    ),
    "reduction unknown": (
        lambda out: gpuact.cross_entropy(Z, T, reduction="avg"),
        ValueError,
        "reduction: 'avg' came, allowed are 'mean', 'sum', 'none'",
    ),
    "reduction None": (
        lambda out: gpuact.cross_entropy(Z, T, reduction=None),
        ValueError,
        "reduction: None came",
    ),
    "smoothing below 0": (
        lambda out: gpuact.cross_entropy(Z, T, label_smoothing=-0.1),
        ValueError,
        "label_smoothing: -0.1 came, allowed is 0 to 1",
    ),
    "smoothing above 1": (
        lambda out: gpuact.cross_entropy_with_grad(Z, T, label_smoothing=1.5),
        ValueError,
        "label_smoothing: 1.5 came",
    ),
    "smoothing NaN": (
        lambda out: gpuact.cross_entropy(Z, T, label_smoothing=np.nan),
        ValueError,
        "label_smoothing: nan came",
    ),
    "smoothing text": (
        lambda out: gpuact.cross_entropy(Z, T, label_smoothing="0.1"),
        TypeError,
        "label_smoothing: str came",
    ),
    "z_loss below 0": (
        lambda out: gpuact.cross_entropy(Z, T, z_loss=-1e-4),
        ValueError,
        "z_loss: -0.0001 came, allowed is a finite number from 0 on",
    ),
    "z_loss NaN": (
        lambda out: gpuact.cross_entropy_with_grad(Z, T, z_loss=np.nan),
        ValueError,
        "z_loss: nan came",
    ),
    "z_loss infinite": (
        lambda out: gpuact.cross_entropy(Z, T, z_loss=np.inf),
        ValueError,
        "z_loss: inf came",
    ),
    "z_loss beyond float32": (
        lambda out: gpuact.cross_entropy(Z.astype(np.float32), T, z_loss=2e38),
        ValueError,
        r"z_loss: 2e\+38 came, allowed is what float32 holds twice: up to 1.7e\+38",
    ),
    "z_loss None": (
        lambda out: gpuact.cross_entropy(Z, T, z_loss=None),
        TypeError,
        "z_loss: NoneType came, allowed is a number",
    ),
    "softcap 0": (
        lambda out: gpuact.cross_entropy(Z, T, softcap=0.0),
        ValueError,
        "softcap: 0.0 came, allowed is a finite number above 0",
    ),
    "softcap below 0": (
        lambda out: gpuact.cross_entropy_backward(NUMBER, Z, T, Z[:, 0], softcap=-30),
        ValueError,
        "softcap: -30.0 came",
    ),
    "softcap beyond float32": (
        lambda out: gpuact.cross_entropy(Z.astype(np.float32), T, softcap=1e39),
        ValueError,
        r"softcap: 1e\+39 came, allowed is what float32 holds: 1.2e-38 to 3.4e\+38",
    ),
    "softcap infinite": (
        lambda out: gpuact.cross_entropy(Z, T, softcap=np.inf),
        ValueError,
        "softcap: inf came",
    ),
    "softcap an array": (
        lambda out: gpuact.cross_entropy(Z, T, softcap=Z),
        TypeError,
        "softcap: ndarray came, allowed is a number",
    ),
    "return_lse an array": (
        lambda out: gpuact.cross_entropy(Z, T, return_lse=X),
        TypeError,
        "return_lse: ndarray came, allowed is True or False",
    ),
    "gradient_in_forward a word": (
        lambda out: gpuact.cross_entropy(Z, T, gradient_in_forward="sum"),
        TypeError,
        "gradient_in_forward: str came, allowed is True or False",
    ),
    "ignore_index a float": (
        lambda out: gpuact.cross_entropy(Z, T, ignore_index=1.5),
        TypeError,
        "ignore_index: float came, allowed is an int",
    ),
    "ignore_index None": (
        lambda out: gpuact.cross_entropy(Z, T, ignore_index=None),
        TypeError,
        "ignore_index: NoneType came",
    ),
    "ignore_index of probabilities": (
        lambda out: gpuact.cross_entropy(Z, Z, ignore_index=1),
        ValueError,
        "ignore_index: 1 came with a target of probabilities",
    ),
    "too many weights": (
        lambda out: gpuact.cross_entropy(Z, T, weight=np.ones(4)),
        ValueError,
        r"weight: shape \(4,\) came, allowed is one weight a class: \(3,\)",
    ),
    "one weight": (
        lambda out: gpuact.cross_entropy(Z, T, weight=1.0),
        ValueError,
        r"weight: shape \(\) came",
    ),
    "a complex weight": (
        lambda out: gpuact.cross_entropy(Z, T, weight=np.ones(3, complex)),
        TypeError,
        "weight: dtype complex128 came",
    ),
    "dloss of the rows": (
        lambda out: gpuact.cross_entropy_backward(Z[:, 0], Z, T, Z[:, 0]),
        ValueError,
        r"dloss: shape \(4,\) came, allowed is \(\)",
    ),
    "dloss of no rows": (
        lambda out: gpuact.cross_entropy_backward(NUMBER, Z, T, Z[:, 0], reduction="none"),
        ValueError,
        r"dloss: shape \(\) came, allowed is \(4,\)",
    ),
    "dloss complex": (
        lambda out: gpuact.cross_entropy_backward(1j, Z, T, Z[:, 0]),
        TypeError,
        "dloss: ",
    ),
    "lse of another shape": (
        lambda out: gpuact.cross_entropy_backward(NUMBER, Z, T, Z),
        ValueError,
        r"lse: shape \(4, 3\) came, allowed is \(4,\)",
    ),
    "lse complex": (
        lambda out: gpuact.cross_entropy_backward(NUMBER, Z, T, Z[:, 0] * 1j),
        TypeError,
        "lse: dtype complex128 came",
    ),
    "dlogits_out of another shape": (
        lambda out: gpuact.cross_entropy_with_grad(X, T[:2], dlogits_out=out[:, :2]),
        ValueError,
        r"dlogits_out: shape \(2, 2\) came, the result has \(2, 3\)",
    ),
    "dlogits_out of another dtype": (
        lambda out: gpuact.cross_entropy_with_grad(X.astype(np.float16), T[:2], dlogits_out=out),
        TypeError,
        "dlogits_out: dtype float32 came, the result has float16",
    ),
    "dlogits_out read-only": (
        lambda out: gpuact.cross_entropy_with_grad(X, T[:2], dlogits_out=read_only(out)),
        ValueError,
        "dlogits_out: a read-only array came",
    ),
    "dlogits_out a list": (
        lambda out: gpuact.cross_entropy_with_grad(X, T[:2], dlogits_out=out.tolist()),
        TypeError,
        "dlogits_out: list came",
    ),
    # beside the functions
    "an unknown function": (
        lambda out: gpuact.describe("gelu"),
        ValueError,
        "name: 'gelu' came, allowed are linear, sigmoid",
    ),
    "an unknown function to warm up": (
        lambda out: gpuact.warmup(functions=["relu", "gelu"]),
        ValueError,
        "functions: 'gelu' came, allowed are linear",
    ),
    "what has no hash to describe": (
        lambda out: gpuact.describe(["relu"]),
        ValueError,
        "name: list came, allowed are linear",
    ),
    "what has no hash to warm up": (
        lambda out: gpuact.warmup(functions=[[]]),
        ValueError,
        "functions: list came, allowed are linear",
    ),
    "no functions to warm up": (
        lambda out: gpuact.warmup(functions=5),
        TypeError,
        "functions: 5 came, allowed is a list of names",
    ),
    "no shapes to warm up": (
        lambda out: gpuact.warmup(5, functions=["relu"], like=X),
        TypeError,
        "shapes: 5 came, allowed is a list of shapes",
    ),
    "one shape to warm up": (
        lambda out: gpuact.warmup((2, 3), functions=["relu"], like=X),
        TypeError,
        "shapes: 2 came, allowed is a list of shapes",
    ),
    "a size to warm up that is no int": (
        lambda out: gpuact.warmup([(2.0,)], functions=["relu"], like=X),
        TypeError,
        "shapes: float came, allowed is an int",
    ),
    "a size to warm up below 0": (
        lambda out: gpuact.warmup([(2, -1)], functions=["relu"], like=X),
        ValueError,
        r"shapes: \[\(2, -1\)\] came, allowed are sizes from 0 on",
    ),
    "no dtypes to warm up": (
        lambda out: gpuact.warmup(dtypes=None, functions=["relu"], like=X),
        TypeError,
        "dtypes: None came, allowed is a list of dtypes",
    ),
    "a backend of several": (
        lambda out: gpuact.using(np.array(["numpy", "cupy"])).__enter__(),
        ValueError,
        "backend: ndarray came, allowed are numpy, cupy, triton",
    ),
    "dtypes to warm up that are no floating ones": (
        lambda out: gpuact.warmup(dtypes=["int8", "float32"], functions=["relu"], like=X),
        TypeError,
        r"dtypes: \['int8'\] came, allowed are float16",
    ),
    "one dtype to warm up": (
        lambda out: gpuact.warmup(dtypes="float32", functions=["relu"], like=X),
        TypeError,
        "dtypes: the str 'float32' came, allowed is a list of dtypes",
    ),
    "an option that nobody takes": (
        lambda out: gpuact.warmup(functions=["softmax", "relu"], like=X, z_loss=0.1),
        ValueError,
        "z_loss: came for softmax, relu, which can be warmed up with all_masked, axis, causal",
    ),
    "an option where there is none": (
        lambda out: gpuact.warmup(functions=["relu"], like=X, out=out),
        ValueError,
        "out: came for relu, which can be warmed up with no option",
    ),
    "asarray of text": (
        lambda out: gpuact.asarray("text"),
        TypeError,
        "obj: dtype .* came, allowed are real numbers",
    ),
    "asarray of None": (lambda out: gpuact.asarray(None), TypeError, "obj: dtype object came"),
    "asarray of text as numbers": (
        lambda out: gpuact.asarray(["text"], "int32"),
        TypeError,
        "obj: dtype str.* came, allowed are real numbers",
    ),
    "asarray of a masked array": (
        lambda out: gpuact.asarray(np.ma.MaskedArray(X)),
        TypeError,
        "obj: a masked array came",
    ),
    "asarray as records": (
        lambda out: gpuact.asarray(X, "f4,f4"),
        TypeError,
        "dtype: void64 came, allowed are float16",
    ),
    "asarray as complex": (
        lambda out: gpuact.asarray([1.0], "complex64"),
        TypeError,
        "dtype: complex64 came",
    ),
    "asarray as what nobody knows": (
        lambda out: gpuact.asarray([1.0], "float9"),
        TypeError,
        "dtype: '?float9'? came",
    ),
}
for name, (argument, function) in FIRST.items():
    for what, (bad, message) in NO_NUMBERS.items():
        CASES[f"{name} of {what}"] = (
            lambda out, function=function, bad=bad: function(bad, out),
            TypeError,
            f"{argument}: {message}",
        )
    for kind in REFUSED.get(name, ()):
        CASES[f"{name} of {kind}"] = (
            lambda out, function=function, kind=kind: function(array_of(kind), out),
            TypeError,
            f"{argument}: dtype {kind} came, allowed are float16",
        )


def is_a_sentence(message: str) -> bool:
    """name: what came, what is allowed; in one line that does not end like a paragraph."""
    return bool(re.match(r"[a-z_]+: \S", message)) and not re.search(r"\n|\.$|  ", message)


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    call, exception, message = CASES[case]
    memory = np.full((4, 5), np.nan, np.float32)
    before = memory.tobytes()
    for _ in range(2):  # and once more after good calls of the same kind, which are remembered
        with pytest.raises(exception, match=f"^{message}") as refused:
            call(memory[1:3, 1:4] if "flat" not in case else np.full((2, 3), np.nan, np.float32))
        assert type(refused.value) is exception
        assert is_a_sentence(str(refused.value))
        assert memory.tobytes() == before, "out was touched"
        good_calls()


def good_calls() -> None:
    """Of every function of elements and rows, with and without `out`."""
    y, slopes = np.empty_like(X), np.ones(3, np.float32)
    for name in PLAIN:
        getattr(gpuact, name)(X, out=y)
        getattr(gpuact, f"{name}_backward")(X, X)
        gpuact.fused(X, name, out=y)
        gpuact.fused_backward(X, X, name, gate=X, residual=X, dropout=gpuact.Dropout(0.5, 1))
    gpuact.linear(X, slopes, 1.0, out=y)
    gpuact.linear_backward(X, X, slopes, 0.0)
    gpuact.prelu(X, slopes, out=y)
    gpuact.prelu_backward(X, X, slopes, channel_axis=1)
    gpuact.fused(X, "prelu", weight=slopes, scale=2.0, bias=slopes, out=y)
    for axis in (-1, 0, 1, None):
        gpuact.softmax(X, axis)
        gpuact.softmax_backward(X, X, axis)
        gpuact.log_softmax(X, axis, out=y)
        gpuact.log_softmax(X, axis)
        gpuact.log_softmax_backward(X, X, axis)


def test_every_public_function_is_in_the_table():
    kinds = {"elementwise": ("", "_backward", "_derivative"), "rows": ("", "_backward")}
    kinds["loss"] = ("", "_backward", "_with_grad")
    names = {f.name + end for f in FUNCTIONS.values() for end in kinds[f.kind]}
    assert names | {"softmax_jacobian", "fused", "fused_backward"} == set(FIRST)


@pytest.mark.parametrize("name", [f.name for f in FUNCTIONS.values() if f.kind != "loss"])
def test_out_is_given_by_name_only(name):
    arguments = {"linear": (X, 1.0, 0.0), "leaky_relu": (X, 0.1), "prelu": (X, 0.1)}.get(name, (X,))
    if FUNCTIONS[name].kind == "rows":
        arguments = (X, -1)
    with pytest.raises(TypeError, match="positional"):
        getattr(gpuact, name)(*arguments, np.empty_like(X))


def test_integers_and_bools_that_are_not_refused():
    """The other side of REFUSED: everything else takes them."""
    for name, (_, function) in FIRST.items():
        for kind in ("int64", "bool", "uint8"):
            if kind not in REFUSED.get(name, ()):
                function(array_of(kind), None)


# -- torch ----------------------------------------------------------------------------------------


def _torch_cases() -> dict[str, Case]:
    import torch

    from gpuact.torch import functional

    x = torch.ones(2, 3)
    tracked = torch.ones(2, 3, requires_grad=True)
    weight = torch.ones(3, requires_grad=True)
    t = torch.tensor([0, 1])
    return {
        "x requires grad": (
            lambda out: gpuact.relu(tracked, out=out),
            ValueError,
            "out: came with a tensor that requires grad",
        ),
        "a parameter requires grad": (
            lambda out: gpuact.prelu(x, weight, out=out),
            ValueError,
            "out: came with a tensor that requires grad",
        ),
        "out requires grad": (
            lambda out: gpuact.sigmoid(x, out=out.requires_grad_()),
            ValueError,
            "out: came with a tensor that requires grad",
        ),
        "x requires grad in a derivative": (
            lambda out: gpuact.tanh_derivative(tracked, out=out),
            ValueError,
            "out: came with a tensor that requires grad",
        ),
        "rows require grad": (
            lambda out: gpuact.softmax(tracked, out=out),
            ValueError,
            "out: came with a tensor that requires grad",
        ),
        "x is its own out": (
            lambda out: gpuact.relu(tracked, out=tracked),
            ValueError,
            "out: came with a tensor that requires grad",
        ),
        "logits require grad": (
            lambda out: gpuact.cross_entropy_with_grad(tracked, t, dlogits_out=out),
            ValueError,
            "dlogits_out: came with a tensor that requires grad",
        ),
        "probabilities require grad": (
            lambda out: gpuact.cross_entropy_with_grad(x, tracked, dlogits_out=out),
            ValueError,
            "dlogits_out: came with a tensor that requires grad",
        ),
        "class weights require grad": (
            lambda out: gpuact.cross_entropy(x, t, weight=weight),
            ValueError,
            "weight: came requiring grad",
        ),
        "a mask requires grad": (
            lambda out: gpuact.softmax(x, mask=weight, out=out),
            ValueError,
            "mask: came requiring grad; a mask is a constant",
        ),
        "a mask of numpy": (
            lambda out: gpuact.softmax(x, mask=X > 0, out=out),
            TypeError,
            "mask: ndarray came beside x of type Tensor; all arrays of a call must be of one",
        ),
        "a mask on another device": (
            lambda out: gpuact.softmax(x, mask=(x > 0).to("meta"), out=out),
            TypeError,
            "mask: is on meta while x is on cpu; all arrays of a call must be on one device",
        ),
        "a sparse mask": (
            lambda out: gpuact.softmax(x, mask=x.to_sparse(), out=out),
            TypeError,
            "mask: a sparse tensor came, allowed are dense ones",
        ),
        "scores require grad": (
            lambda out: gpuact.softmax(tracked, scale=0.5, causal=True, out=out),
            ValueError,
            "out: came with a tensor that requires grad",
        ),
        "a scale that would be learned": (
            lambda out: gpuact.softmax(x, scale=weight[0], out=out),
            TypeError,
            "scale: Tensor came, allowed is a number",
        ),
        "gradient_in_forward of every row": (
            lambda out: gpuact.cross_entropy(
                tracked, t, reduction="none", gradient_in_forward=True
            ),
            ValueError,
            "gradient_in_forward: came with reduction='none', allowed are 'mean' and 'sum'",
        ),
        "gradient_in_forward and lse": (
            lambda out: gpuact.cross_entropy(tracked, t, return_lse=True, gradient_in_forward=True),
            ValueError,
            "gradient_in_forward: came with return_lse=True, allowed is the loss alone",
        ),
        "gradient_in_forward by probabilities": (
            lambda out: gpuact.cross_entropy(x, tracked, gradient_in_forward=True),
            ValueError,
            "gradient_in_forward: came with a target that requires grad, allowed is one that does",
        ),
        "a slope that would be learned": (
            lambda out: gpuact.leaky_relu(x, weight[0], out=out),
            TypeError,
            "negative_slope: Tensor came, allowed is a number",
        ),
        "out of numpy": (
            lambda out: gpuact.relu(x, out=out.numpy()),
            TypeError,
            "out: ndarray came, allowed is an array of x's own library, Tensor",
        ),
        "out of torch": (
            lambda out: gpuact.relu(X, out=out),
            TypeError,
            "out: Tensor came, allowed is an array of x's own library, ndarray",
        ),
        "dlogits_out of numpy": (
            lambda out: gpuact.cross_entropy_with_grad(x, t, dlogits_out=out.numpy()),
            TypeError,
            "dlogits_out: ndarray came",
        ),
        "out on another device": (
            lambda out: gpuact.relu(x, out=out.to("meta")),
            TypeError,
            "out: is on meta while x is on cpu",
        ),
        "out of another dtype": (
            lambda out: gpuact.relu(x.bfloat16(), out=out),
            TypeError,
            "out: dtype float32 came, the result has bfloat16",
        ),
        "out of another shape": (
            lambda out: gpuact.softmax(x, out=out[:1]),
            ValueError,
            r"out: shape \(1, 3\) came",
        ),
        "out expanded": (
            lambda out: gpuact.relu(x, out=out[:1].expand(2, 3)),
            ValueError,
            r"out: shape .* came with strides of .* bytes, by which elements share",
        ),
        "sparse": (
            lambda out: gpuact.relu(x.to_sparse(), out=out),
            TypeError,
            "x: a sparse tensor came, allowed are dense ones",
        ),
        "a sparse matrix": (
            lambda out: gpuact.softmax_backward(x, quietly(x.to_sparse_csr)),
            TypeError,
            "y: a sparse tensor came",
        ),
        "a sparse target": (
            lambda out: gpuact.cross_entropy(x, t.to_sparse()),
            TypeError,
            "target: a sparse tensor came",
        ),
        "a nested gradient beside one that is watched": (
            lambda out: gpuact.cross_entropy_backward(
                quietly(torch.nested.as_nested_tensor, [*x]), tracked, t, tracked[:, 0]
            ),
            TypeError,
            "dloss: a nested tensor came",
        ),
        "nested": (
            lambda out: gpuact.relu(quietly(torch.nested.as_nested_tensor, [*x]), out=out),
            TypeError,
            "x: a nested tensor came, allowed are dense ones",
        ),
        "of MKL-DNN": (
            lambda out: gpuact.prelu(x, torch.ones(3).to_mkldnn(), out=out),
            TypeError,
            "weight: an MKL-DNN tensor came, allowed are dense ones",
        ),
        "in place of an ndarray": (
            lambda out: functional.relu_(X),
            TypeError,
            "x: ndarray came, allowed is a tensor",
        ),
        "logits of numpy": (
            lambda out: functional.cross_entropy(X, t),
            TypeError,
            "logits: ndarray came, allowed is a tensor",
        ),
        "slopes of text in place": (
            lambda out: functional.leaky_relu_(tracked * 1, "2"),
            TypeError,
            "negative_slope: str came, allowed is a number",
        ),
        "asarray of float8": (
            lambda out: gpuact.asarray(x.to(torch.float8_e5m2), "float32"),
            TypeError,
            "obj: dtype float8_e5m2 came, allowed are real numbers",
        ),
        "the Jacobian's axis": (
            lambda out: gpuact.softmax_jacobian(x.to("meta"), "0"),
            TypeError,
            "axis: str came, allowed is an int",
        ),
        "sparse rows": (
            lambda out: gpuact.softmax(x.to_sparse(), out=out),
            TypeError,
            "x: a sparse tensor came",
        ),
        "complex": (
            lambda out: gpuact.tanh(x.to(torch.complex64), out=out),
            TypeError,
            "x: dtype complex64 came",
        ),
        "quantized": (
            lambda out: gpuact.relu(x.to(torch.float8_e5m2), out=out),
            TypeError,
            "x: dtype float8_e5m2 came",
        ),
        "bool": (lambda out: gpuact.relu(x > 0, out=out), TypeError, "x: dtype bool came"),
        "a list of slopes": (
            lambda out: gpuact.prelu(x, [0.1, 0.2, 0.3], out=out),
            TypeError,
            "weight: ",
        ),
        "an axis without memory": (
            lambda out: gpuact.softmax(x, t[0].to("meta"), out=out),
            TypeError,
            "axis: Tensor came, allowed is an int",
        ),
        "an axis": (lambda out: gpuact.softmax(x, 2, out=out), AxisError, "axis: 2 came"),
        "a class": (
            lambda out: gpuact.cross_entropy(x, t + 2),
            IndexError,
            "target: class 3 came",
        ),
    }


def test_bad_input_of_torch(subtests):
    torch = pytest.importorskip("torch")
    for case, (call, exception, message) in _torch_cases().items():
        with subtests.test(case):
            memory = torch.full((4, 5), float("nan"))
            with pytest.raises(exception, match=f"^{message}") as refused:
                call(memory[1:3, 1:4])
            assert type(refused.value) is exception
            assert is_a_sentence(str(refused.value))
            assert memory.isnan().all(), "out was touched"
