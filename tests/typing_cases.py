"""What type checkers must infer: the array type that goes in comes out. Checked, never run."""

from __future__ import annotations

from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import torch

import gpuact
import gpuact.torch
from gpuact.torch.health import Report
from gpuact.torch.watching import Monitor

Single = npt.NDArray[np.float32]


def numpy_arrays(
    x: Single, classes: npt.NDArray[np.int64], doubles: npt.NDArray[np.float64]
) -> None:
    assert_type(gpuact.linear(x, 2.0, x), Single)
    assert_type(gpuact.sigmoid(x), Single)
    assert_type(gpuact.tanh(x, out=x), Single)
    assert_type(gpuact.relu(x), Single)
    assert_type(gpuact.leaky_relu(x, 0.2), Single)
    assert_type(gpuact.prelu(x, x, channel_axis=0), Single)
    assert_type(gpuact.prelu(x, doubles), Single)
    assert_type(gpuact.softmax(x, axis=(0, 1)), Single)
    assert_type(gpuact.softmax(x, scale=0.1, mask=doubles > 0, causal=True), Single)
    assert_type(gpuact.softmax(x, mask=doubles, all_masked="zero", out=x), Single)
    assert_type(gpuact.log_softmax(x, axis=None), Single)
    assert_type(gpuact.relu(classes), npt.NDArray[np.int64])

    assert_type(gpuact.linear_backward(x, x, x, 0.0), tuple[Single, Single, Single])
    assert_type(gpuact.sigmoid_backward(x, x), Single)
    assert_type(gpuact.tanh_backward(doubles, x), Single)
    assert_type(gpuact.relu_backward(x, x), Single)
    assert_type(gpuact.leaky_relu_backward(x, x, 0.2), Single)
    assert_type(gpuact.prelu_backward(x, x, x), tuple[Single, Single])
    assert_type(gpuact.softmax_backward(x, x, scale=0.1), Single)
    assert_type(gpuact.log_softmax_backward(x, x), Single)
    assert_type(gpuact.softmax_jacobian(x), Single)

    assert_type(gpuact.linear_derivative(x, 2.0), Single)
    assert_type(gpuact.sigmoid_derivative(x), Single)
    assert_type(gpuact.tanh_derivative(x), Single)
    assert_type(gpuact.relu_derivative(x), Single)
    assert_type(gpuact.leaky_relu_derivative(x), Single)
    assert_type(gpuact.prelu_derivative(x, 0.2), Single)

    assert_type(gpuact.cross_entropy(x, classes), Single)
    assert_type(gpuact.cross_entropy(x, x, reduction="none", axis=1), Single)
    assert_type(gpuact.cross_entropy(x, classes, return_lse=True), tuple[Single, Single])
    assert_type(gpuact.cross_entropy(x, classes, z_loss=1e-4, softcap=30.0), Single)
    assert_type(
        gpuact.cross_entropy(x, x, softcap=None, return_lse=True, z_loss=0), tuple[Single, Single]
    )
    assert_type(gpuact.cross_entropy_backward(x, x, classes, x, softcap=30), Single)
    assert_type(gpuact.cross_entropy_with_grad(x, classes, z_loss=0.1), tuple[Single, Single])


def torch_tensors(x: torch.Tensor, classes: torch.Tensor) -> None:
    assert_type(gpuact.linear(x, 2.0, x), torch.Tensor)
    assert_type(gpuact.sigmoid(x), torch.Tensor)
    assert_type(gpuact.relu(x, out=x), torch.Tensor)
    assert_type(gpuact.prelu(x, x), torch.Tensor)
    assert_type(gpuact.softmax(x, dtype=torch.float32), torch.Tensor)
    assert_type(gpuact.softmax(x, mask=x > 0, causal=True), torch.Tensor)
    assert_type(gpuact.cross_entropy(x, classes, gradient_in_forward=True), torch.Tensor)
    assert_type(gpuact.prelu_backward(x, x, x), tuple[torch.Tensor, torch.Tensor])
    assert_type(gpuact.sigmoid_derivative(x), torch.Tensor)
    assert_type(gpuact.cross_entropy(x, classes, label_smoothing=0.1), torch.Tensor)
    assert_type(
        gpuact.cross_entropy(x, classes, return_lse=True), tuple[torch.Tensor, torch.Tensor]
    )
    assert_type(gpuact.cross_entropy_with_grad(x, x), tuple[torch.Tensor, torch.Tensor])


def monitors(model: torch.nn.Module) -> None:
    assert_type(gpuact.torch.monitor(model, every=5), Monitor)
    with gpuact.torch.monitor(model) as watch:
        assert_type(watch, Monitor)
    assert_type(watch.report(), Report)
    assert_type(watch.report(reset=False).sentence, str)


def unknown_arrays(x: Any) -> None:
    assert_type(gpuact.sigmoid(x), Any)
