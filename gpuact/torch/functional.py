"""torch.nn.functional's activations and cross-entropy, with its names and arguments, by gpuact.

    from gpuact.torch import functional as F

Channels and classes lie along dim 1. Tensors of any shape and strides, on the CPU or on CUDA, in
float16, bfloat16, float32 or float64 give results of the same shape and dtype; everything is
differentiable as gpuact's own functions are, which also say what NaN and infinities give. Raised by
all: TypeError (a dtype), ValueError (a shape or value), IndexError (a dim, a class); the message
calls input x (logits in a loss) and dim axis.

Results differ from torch.nn.functional's here:

- A loss of half logits is float32, not rounded to half.
- relu(−0.0) is +0.0.
- In a loss, a class whose share is 0 adds nothing, even at a logit of −inf; PyTorch says NaN.
- Parameters, class weights and probabilities are taken in input's precision, whatever their dtype;
  PyTorch refuses most mixtures, and probabilities of float64 make its loss of float32 float64.
- prelu also takes slopes of input's number of dimensions.
- Integers count as float32 for softmax, log_softmax and cross_entropy too, and targets may be any
  integers; complex tensors are refused, and so is the reduction "elementwise_mean".
- leaky_relu in place needs a slope above 0 where a gradient is recorded, and says so at once;
  PyTorch refuses slopes below 0, in backward.
- Under autocast softmax and log_softmax of half types give float32 on the CPU, too, and not on CUDA
  alone; prelu keeps input's dtype.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.nn._reduction import legacy_get_string
from torch.overrides import (
    handle_torch_function,
    has_torch_function_unary,
    has_torch_function_variadic,
)

from .. import activations, arguments, calls
from ..dispatch import resolve, using
from ..operations import Reduction

__all__ = [
    "cross_entropy",
    "leaky_relu",
    "leaky_relu_",
    "log_softmax",
    "prelu",
    "relu",
    "relu_",
    "sigmoid",
    "softmax",
    "tanh",
]

Tensor = torch.Tensor


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + e^−input), elementwise: `gpuact.sigmoid`. Integers and bools count as float32.

    >>> import torch
    >>> from gpuact.torch import functional as F
    >>> F.sigmoid(torch.tensor([0.0, torch.inf]))
    tensor([0.5000, 1.0000])
    """
    if has_torch_function_unary(input):
        return _overridden(sigmoid, (input,), input)
    return activations.sigmoid(input)


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent, elementwise: `gpuact.tanh`. Integers and bools count as float32.

    >>> import torch
    >>> from gpuact.torch import functional as F
    >>> F.tanh(torch.tensor([0.0, -torch.inf]))
    tensor([ 0., -1.])
    """
    if has_torch_function_unary(input):
        return _overridden(tanh, (input,), input)
    return activations.tanh(input)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(0, input), elementwise, its derivative 0 at 0: `gpuact.relu`. Integers keep their dtype.

    inplace: the result is written to input, which is returned; with gradients, too. RuntimeError if
    input is a leaf that requires grad, as in PyTorch.

    >>> import torch
    >>> from gpuact.torch import functional as F
    >>> F.relu(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    if has_torch_function_unary(input):
        return _overridden(relu, (input,), input, inplace=inplace)
    if inplace is not False and _wanted(inplace):
        return relu_(input)
    return activations.relu(input)


def relu_(input: Tensor) -> Tensor:
    """`relu` in place: the result is written to input, which is returned.

    RuntimeError if input is a leaf that requires grad.

    >>> import torch
    >>> from gpuact.torch import functional as F
    >>> x = torch.tensor([-1.0, 2.0])
    >>> F.relu_(x) is x, x
    (True, tensor([0., 2.]))
    """
    if has_torch_function_unary(input):
        return _overridden(relu_, (input,), input)
    return _in_place(activations.relu, activations.relu_backward, input)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """input where above 0, else negative_slope·input, elementwise: `gpuact.leaky_relu`.

    At 0 the derivative is negative_slope. Integers and bools are refused (TypeError).
    inplace: as in `relu`; with a gradient to record, negative_slope must be above 0 (ValueError):
    from any other result backward could not tell which elements were above 0.

    >>> import torch
    >>> from gpuact.torch import functional as F
    >>> F.leaky_relu(torch.tensor([-1.0, 2.0]), 0.5)
    tensor([-0.5000,  2.0000])
    """
    if has_torch_function_unary(input):
        return _overridden(
            leaky_relu, (input,), input, negative_slope=negative_slope, inplace=inplace
        )
    if inplace is not False and _wanted(inplace):
        return leaky_relu_(input, negative_slope)
    return activations.leaky_relu(input, negative_slope)


def leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """`leaky_relu` in place: the result is written to input, which is returned.

    RuntimeError if input is a leaf that requires grad; ValueError if negative_slope is not above 0
    with a gradient to record.

    >>> import torch
    >>> from gpuact.torch import functional as F
    >>> x = torch.tensor([-1.0, 2.0])
    >>> F.leaky_relu_(x, 0.5) is x, x
    (True, tensor([-0.5000,  2.0000]))
    """
    if has_torch_function_unary(input):
        return _overridden(leaky_relu_, (input,), input, negative_slope)
    if _recorded(input) and not arguments.parameter("negative_slope", negative_slope, False) > 0:
        raise ValueError(
            f"negative_slope: {negative_slope} came, in place and with a gradient to record; "
            "allowed are slopes above 0, or inplace=False"
        )
    forward, backward = activations.leaky_relu, activations.leaky_relu_backward
    return _in_place(forward, backward, input, negative_slope)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """input where above 0, else weight·input, weight learned: `gpuact.prelu`.

    weight: one element, shared, or one for each channel of input's dim 1. At 0 the derivative is
    weight. Integers and bools are refused (TypeError).

    >>> import torch
    >>> from gpuact.torch import functional as F
    >>> F.prelu(torch.tensor([[-1.0, -1.0]]), torch.tensor([0.5, 3.0]))
    tensor([[-0.5000, -3.0000]])
    """
    if has_torch_function_variadic(input, weight):
        return _overridden(prelu, (input, weight), input, weight)
    return activations.prelu(input, weight)


def softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """e^input / Σ e^input along dim: `gpuact.softmax`.

    dim: None chooses 0 for tensors of 0, 1 and 3 dimensions, else 1, with PyTorch's warning
    (UserWarning). dtype: input is cast to it first, and it is the result's.

    >>> import torch
    >>> from gpuact.torch import functional as F
    >>> F.softmax(torch.zeros(2, 4), dim=1)
    tensor([[0.2500, 0.2500, 0.2500, 0.2500],
            [0.2500, 0.2500, 0.2500, 0.2500]])
    """
    if has_torch_function_unary(input):
        return _overridden(softmax, (input,), input, dim=dim, _stacklevel=_stacklevel, dtype=dtype)
    if dim is None:
        dim = _implicit_dim("softmax", _tensor(input).dim(), _stacklevel)
    return activations.softmax(input, dim, dtype=dtype)


def log_softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """input − log Σ e^input along dim: `gpuact.log_softmax`. dim and dtype: as in `softmax`.

    >>> import torch
    >>> from gpuact.torch import functional as F
    >>> F.log_softmax(torch.tensor([0.0, -1000.0]), dim=0)
    tensor([    0., -1000.])
    """
    if has_torch_function_unary(input):
        return _overridden(
            log_softmax, (input,), input, dim=dim, _stacklevel=_stacklevel, dtype=dtype
        )
    if dim is None:
        dim = _implicit_dim("log_softmax", _tensor(input).dim(), _stacklevel)
    return activations.log_softmax(input, dim, dtype=dtype)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    gradient_in_forward: bool = False,
) -> Tensor:
    """−Σ_k w_k Y_k log S_k with S = softmax(input): `gpuact.cross_entropy`, classes along dim 1.

    input: (C,), (N, C) or (N, C, d1, …). target: classes (integers) of input's shape without C, or
    probabilities of input's shape. weight: (C,), a constant. size_average and reduce are PyTorch's
    older words for reduction, and bring its warning (UserWarning). z_loss, softcap and
    gradient_in_forward are gpuact's own, and change nothing by default.
    Returns the loss: one a row for "none", else a number; in float32 for half types.

    >>> import torch
    >>> from gpuact.torch import functional as F
    >>> F.cross_entropy(torch.zeros(2, 4, 3), torch.zeros(2, 3, dtype=torch.int64))
    tensor(1.3863)
    """
    if has_torch_function_variadic(input, target, weight):
        return _overridden(
            cross_entropy,
            (input, target, weight),
            input,
            target,
            weight=weight,
            size_average=size_average,
            ignore_index=ignore_index,
            reduce=reduce,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            gradient_in_forward=gradient_in_forward,
        )
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce)
    return activations.cross_entropy(
        input,
        target,
        weight=weight,
        ignore_index=ignore_index,
        reduction=cast(Reduction, reduction),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        axis=0 if _tensor(input, "logits").dim() < 2 else 1,
        gradient_in_forward=gradient_in_forward,
    )


def _overridden(function: Callable[..., Tensor], tensors: Any, *given: Any, **named: Any) -> Tensor:
    """What stands for a tensor, a subclass or a proxy of torch.fx, sees the call, as in torch."""
    result: Tensor = handle_torch_function(function, tensors, *given, **named)
    return result


def _wanted(inplace: Any) -> bool:
    """True or False, or what Python takes for one of them, as in torch."""
    try:
        return bool(inplace)
    except Exception:  # an array of several elements is neither
        came = type(inplace).__name__
        raise TypeError(f"inplace: {came} came, allowed is True or False") from None


def _tensor(input: Any, name: str = "x") -> Tensor:
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: {type(input).__name__} came, allowed is a tensor")
    return input


def _implicit_dim(name: str, ndim: int, stacklevel: int) -> int:
    warnings.warn(
        f"Implicit dimension choice for {name} has been deprecated. Change the call to include "
        "dim=X as an argument.",
        stacklevel=stacklevel,
    )
    return 0 if ndim in (0, 1, 3) else 1


# -- in place -------------------------------------------------------------------------------------


def _recorded(input: Tensor) -> bool:
    return _tensor(input).requires_grad and torch.is_grad_enabled()


class _InPlace(torch.autograd.Function):
    """An activation whose backward reads y, where y takes the place of x."""

    @staticmethod
    def forward(
        ctx: Any,
        forward: Callable[..., Tensor],
        backward: Callable[..., Tensor],
        x: Tensor,
        *params: float,
    ) -> Tensor:
        y = forward(x, *params, out=x)
        ctx.mark_dirty(y)
        ctx.save_for_backward(y)
        ctx.backward_of_y, ctx.params = backward, params
        ctx.backend = resolve(x=y).backend  # autograd's thread knows nothing of using()
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        with using(ctx.backend):
            dx = ctx.backward_of_y(dy, y, *ctx.params)
        return None, None, dx, *[None] * len(ctx.params)


def _in_place(
    forward: Callable[..., Tensor], backward: Callable[..., Tensor], input: Tensor, *params: float
) -> Tensor:
    if torch.compiler.is_compiling() or calls.watched(input):
        return input.copy_(forward(input, *params))
    if not _recorded(input):
        return forward(input, *params, out=input)
    if input.is_leaf:
        return torch.relu_(input)  # refused in torch's own words, before anything is written
    if input._is_view():  # copy_ knows which views may change, and does not write to the others
        return input.copy_(forward(input, *params))
    step: Any = _InPlace
    return cast(Tensor, step.apply(forward, backward, input, *params))
