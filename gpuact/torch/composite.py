"""What stands for an operator where torch.compile meets a transformation of torch.func.

torch.compile takes no autograd function on in there, functionalize none anywhere, and of an
operator alone tangents would be dropped. So the functions are spelled once more, in PyTorch's own
operations, which torch.compile fuses. They mean the same; their derivatives are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import elementwise, losses
from .registry import params_of, wide

Tensor = torch.Tensor


def _linear(x: Tensor, scale: Any, bias: Any, numbers: Sequence[float], backend: str) -> Tensor:
    scale, bias = params_of((scale, bias), numbers)
    return (wide(x) * scale + bias).to(x.dtype)


def _leaky_relu(x: Tensor, slope: Any, backend: str) -> Tensor:
    z = wide(x)
    return torch.where(z > 0, z, z * slope).to(x.dtype)


def _prelu(x: Tensor, weight: Any, numbers: Sequence[float], backend: str) -> Tensor:
    return _leaky_relu(x, numbers[0] if weight is None else weight, backend)


def _softmax(
    x: Tensor,
    axes: Sequence[int],
    scale: float,
    mask: Tensor | None,
    causal: bool,
    zero: bool,
    backend: str,
) -> Tensor:
    z = wide(x) * scale
    part = None
    if mask is not None and mask.dtype != torch.bool:
        z = z + mask.to(x.dtype)
    elif mask is not None:
        part = mask
    if causal:
        rows, columns = (torch.arange(n, device=x.device) for n in x.shape[-2:])
        before = columns <= rows.unsqueeze(1)
        part = before if part is None else part & before
    if part is not None:
        z = torch.where(part, z, -torch.inf)
    if not zero:
        return _normalized(z, axes).exp().to(x.dtype)
    nothing = z == -torch.inf
    nothing = nothing.all(tuple(axes), keepdim=True) if axes else nothing
    # first, so that no derivative meets the NaN that such a row would be
    y = _normalized(torch.where(nothing, 0.0, z), axes).exp()
    return torch.where(nothing, 0.0, y).to(x.dtype)


def _log_softmax(x: Tensor, axes: Sequence[int], backend: str) -> Tensor:
    return _normalized(wide(x), axes).to(x.dtype)


def _normalized(z: Tensor, axes: Sequence[int]) -> Tensor:
    """z less its log-sum-exp along the axes; of a 0-d tensor, which has none, less itself. A row
    with +inf in it is NaN everywhere."""
    lse = z.logsumexp(tuple(axes), keepdim=True) if axes else z
    return z - lse + 0 * lse


def _cross_entropy(logits: Tensor, target: Tensor, weight: Any, *more: Any) -> tuple[Any, Any]:
    *rest, _ = more
    options = losses.Options(*rest)
    lse = _lse(logits, options)
    if not target.is_floating_point():  # a row that does not count may hold anything
        counts = (target != options.ignore_index).unsqueeze(options.axis)
        logits = torch.where(counts, logits, torch.zeros_like(logits))
    of_rows = _lse(logits, options)
    row = losses.Row(logits, target, weight, of_rows, options)
    surprise = torch.where(row.q == 0, 0.0, row.q * (row.lse - row.z))
    return row.reduced(row.sum(surprise) + row.zeta * row.lse * row.lse + 0 * row.lse), lse


def _lse(logits: Tensor, options: losses.Options) -> Tensor:
    z, *_ = losses.capped(wide(logits), options.softcap)
    return z.logsumexp(options.axis)


def _fused(x: Tensor, activation: str, *more: Any) -> Tensor:
    scale, bias, slope, gate, residual, *numbers, p, seed, offset, backend = more
    params = params_of((scale, bias, slope), numbers)
    parts = elementwise.Parts(activation, x, params, gate, (p, seed, offset), backend)
    return parts.value(residual)


COMPOSITES: Mapping[str, Callable[..., Any]] = {
    "linear": _linear,
    "sigmoid": lambda x, backend: x.sigmoid(),
    "tanh": lambda x, backend: x.tanh(),
    "relu": lambda x, backend: x.relu() + 0,  # -0.0 becomes +0.0
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "cross_entropy": _cross_entropy,
    "fused": _fused,
}


def composite(name: str, *args: Any) -> Any:
    dropout = name == "fused" and args[-4] > 0
    if name not in COMPOSITES or dropout:
        raise NotImplementedError(
            f"gpuact.{name}{' with dropout' if dropout else ''} came inside a transformation of "
            "torch.func inside torch.compile; allowed is one of the two"
        )
    return COMPOSITES[name](*args)
