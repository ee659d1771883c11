"""The operators of the namespace gpuact, and the calls that go through them.

`torch.ops.gpuact.NAME` for each function of the catalogue, its backward and its derivative. The
functions below have the arguments of those in `gpuact.calls`, which hands over to them;
torch.compile reads them line by line, so they bring arguments into an operator's order and do
little else: most of what may be wrong is found where an operator computes, or says what it would.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .. import arguments, calls, dispatch
from ..catalogue import FUNCTIONS
from ..fusion import Dropout, Fusion
from ..libraries import autocast, library_of
from ..operations import Loss
from . import elementwise, losses
from . import rows as of_rows
from .registry import call as call
from .registry import operators as operators
from .registry import params_of, register

Tensor = torch.Tensor

_RULES = {"elementwise": elementwise.rules, "rows": of_rows.rules, "loss": losses.rules}
for _function in FUNCTIONS.values():
    for _rule in _RULES[_function.kind](_function):
        register(_rule)
for _rule in (of_rows.Jacobian(), elementwise.Fused(), elementwise.FusedBackward()):
    register(_rule)


# In dicts, of which torch.compile reads more than of catalogue.FUNCTIONS: see calls.ACTIVATIONS
_LEARNS = {name: tuple(FUNCTIONS[name].sums) for name in calls.ACTIVATIONS}
_INTEGERS = {name: FUNCTIONS[name].integers for name in calls.ACTIVATIONS}
TORCH: Any = library_of(torch.empty(0))  # known from here on, not first met in a trace


def _backend() -> str:
    """Compiled code runs where its arrays are, whatever `using()` said when it was compiled."""
    if torch.compiler.is_compiling():
        return ""
    return dispatch.chosen.get() or dispatch.ENVIRONMENT


def _tensor(name: str, x: Any, first: str = "", beside: Tensor | None = None) -> Tensor:
    """beside: the tensor `first`, on whose device it must be."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name}: {type(x).__name__} came beside tensors or into compiled code; all arrays of "
            "a call must be of one library"
        )
    if hasattr(x, "placements") and not torch.compiler.is_dynamo_compiling():
        from . import sharding  # takes half a second

        sharding.register()
    TORCH.check_dense(name, x)
    if beside is not None and x.device != beside.device:
        raise TypeError(
            f"{name}: is on {x.device} while {first} is on {beside.device}; all arrays of a call "
            "must be on one device"
        )
    return x


def _into(out: Any, result: Tensor, name: str = "out") -> Any:
    if out is None:
        return result
    arguments.output(TORCH, out, result.shape, TORCH.dtype(result), result, name)
    if (result.requires_grad or out.requires_grad) and torch.is_grad_enabled():
        raise ValueError(
            f"{name}: came with a tensor that requires grad; allowed are tensors that do not, or "
            f"no {name}"
        )
    out.copy_(result)  # of subclasses it may return another
    return out


# -- elementwise ----------------------------------------------------------------------------------


def _params(
    name: str, x: Tensor, params: Mapping[str, Any], channel_axis: Any
) -> tuple[list[Tensor | None], list[float]]:
    """Parameters as operators take them: tensors of x's number of dimensions, and numbers."""
    tensors: list[Tensor | None] = []
    numbers: list[float] = []
    for k in calls.ACTIVATIONS[name]:
        value = arguments.parameter(k, params[k], k in _LEARNS[name])
        if isinstance(value, float):
            tensors.append(None)
            numbers.append(value)
            continue
        value = arguments.floating(k, TORCH, _tensor(k, value, "x", x))
        if channel_axis is ...:
            shape = arguments.broadcast_shape(k, value, x.shape)
        else:
            shape = arguments.channel_shape(k, value, x.shape, channel_axis)
        tensors.append(value.reshape(shape))
        numbers.append(0.0)
    return tensors, numbers


def _arguments(name: str, x: Tensor, params: Mapping[str, Any], channel_axis: Any) -> list[Any]:
    tensors, numbers = _params(name, x, params, channel_axis)
    return [*tensors, numbers] if _LEARNS[name] else numbers


def _input(name: str, what: str, x: Any, kept: bool = False) -> Tensor:
    """As an activation takes it, or its derivative; `kept`: integers may stay what they are."""
    integers = _INTEGERS[name]
    if integers == "kept" and not kept:
        integers = "float32"
    found: Tensor = arguments.activation_input(what, TORCH, _tensor(what, x), integers)
    return found


def activation(
    name: str, x: Any, out: Any = None, *, channel_axis: Any = ..., **params: Any
) -> Any:
    x = _input(name, "x", x, kept=True)
    more = _arguments(name, x, params, channel_axis)
    return _into(out, call(name, x, *more, _backend()))


def derivative(
    name: str, x: Any, out: Any = None, *, channel_axis: Any = ..., **params: Any
) -> Any:
    x = _input(name, "x", x)
    more = _arguments(name, x, params, channel_axis)
    return _into(out, call(f"{name}_derivative", x, *more, _backend()))


def activation_backward(
    name: str, dy: Any, stored: Mapping[str, Any], *, channel_axis: Any = ..., **params: Any
) -> tuple[Any, ...]:
    ((what, kept),) = stored.items()
    kept = _input(name, what, kept)
    dy = arguments.gradient("dy", TORCH, _tensor("dy", dy, what, kept), what, kept)
    more = _arguments(name, kept, params, channel_axis)
    learns = _LEARNS[name]
    if not learns:
        return (call(f"{name}_backward", dy, kept, *more, _backend()),)
    wanted = [True] * (1 + len(learns))
    dx, *sums = call(f"{name}_backward", dy, kept, *more, wanted, _backend())
    shapes = [getattr(params[k], "shape", ()) for k in learns]
    return (dx, *[total.reshape(shape) for total, shape in zip(sums, shapes, strict=True)])


# -- fused ----------------------------------------------------------------------------------------

NOTHING = Dropout(0.0, 0)


def _chance(dropout: Dropout) -> tuple[float, int, int]:
    return dropout.p, elementwise.signed(dropout.seed), elementwise.signed(dropout.offset)


def _fused(
    activation: Any, dropout: Any, channel_axis: Any, given: tuple[Any, ...]
) -> tuple[Any, list[Any], Any, list[Any], tuple[Any, ...]]:
    """x; scale, bias, slope and gate as tensors; residual; the numbers; dropout."""
    x, scale, bias, weight, negative_slope, gate, residual = given
    calls.check_fused(activation, weight)
    x = arguments.floating("x", TORCH, _input(activation, "x", x, kept=True))
    number = arguments.parameter("negative_slope", negative_slope, arrays=False)
    slope = number if activation == "leaky_relu" else weight
    tensors: list[Any] = []
    numbers: list[Any] = []
    for name, value in (("scale", scale), ("bias", bias), ("weight", slope)):
        if value is not None:
            value = arguments.parameter(name, value, True)
        if value is None or isinstance(value, float):
            tensors.append(None)
            numbers.append(value)
        else:
            value = arguments.floating(name, TORCH, _tensor(name, value, "x", x))
            shape = arguments.channel_shape(name, value, x.shape, channel_axis)
            tensors.append(value.reshape(shape))
            numbers.append(None)
    gate, residual = _beside("gate", gate, x), _beside("residual", residual, x)
    if dropout is None:
        dropout = NOTHING
    elif not isinstance(dropout, Dropout):
        raise TypeError(f"dropout: {type(dropout).__name__} came, allowed is gpuact.Dropout")
    chance = _chance(dropout)
    return x, [*tensors, gate], residual, numbers, chance


def _beside(name: str, value: Any, x: Tensor) -> Any:
    if value is None:
        return None
    value = arguments.floating(name, TORCH, _tensor(name, value, "x", x))
    if value.shape != x.shape:
        raise ValueError(f"{name}: shape {tuple(value.shape)} came, x has {tuple(x.shape)}")
    return value


def fused(
    activation: Any, dropout: Any, channel_axis: Any, out: Any, given: tuple[Any, ...]
) -> Any:
    x, tensors, residual, numbers, chance = _fused(activation, dropout, channel_axis, given)
    args = (activation, *tensors, residual, *numbers, *chance, _backend())
    return _into(out, call("fused", x, *args))


def fused_gradients(
    fusion: Fusion,
    dy: Tensor,
    x: Tensor,
    operands: tuple[Any, ...],
    wanted: tuple[bool, ...],
    backend: str,
) -> list[Tensor | None]:
    """For autograd. operands: scale, bias, slope and gate as tensors, then numbers, or None."""
    *tensors, gate, scale, bias, slope = operands
    chance = _chance(fusion.dropout or NOTHING)
    params = params_of(tensors, (scale, bias, slope))
    parts = elementwise.Parts(fusion.activation, x, params, gate, chance, backend)
    found = parts.backward(dy, wanted)
    return [g if want else None for g, want in zip(found, wanted, strict=True)]


def fused_backward(
    activation: Any, dropout: Any, channel_axis: Any, dy: Any, given: tuple[Any, ...]
) -> dict[str, Any]:
    x, tensors, residual, numbers, chance = _fused(activation, dropout, channel_axis, given)
    dy = arguments.gradient("dy", TORCH, _tensor("dy", dy, "x", x), "x", x)
    _, scale, bias, weight, _, gate, _ = given
    named = {"x": x, "scale": scale, "bias": bias, "weight": weight, "gate": gate}
    wanted = [value is not None for value in named.values()]
    args = (dy, x, activation, *tensors, *numbers, wanted, *chance, _backend())
    gradients = call("fused_backward", *args)
    found = {
        name: g.reshape(getattr(value, "shape", ()))
        for (name, value), g in zip(named.items(), gradients, strict=True)
        if value is not None
    }
    if residual is not None:
        found["residual"] = dy.to(residual.dtype)
    return found


# -- rows -----------------------------------------------------------------------------------------


def _of_shards(name: str, x: Tensor, *args: Any, **options: Any) -> Any:
    """Of a DTensor whose classes are cut among ranks; NotImplemented of another."""
    from . import distributed

    return distributed.of_dtensor(name, x, *args, **options)


def _axes(axis: Any, x: Tensor) -> list[int]:
    return list(arguments.row_axes(axis, x.ndim))


def rows(
    name: str,
    x: Any,
    axis: Any,
    dtype: Any,
    out: Any,
    scale: Any = 1.0,
    mask: Any = None,
    causal: Any = False,
    all_masked: Any = "nan",
) -> Any:
    x = _tensor("x", x)
    if hasattr(x, "placements"):
        options = {"dtype": dtype, "out": out}
        if name == "softmax":
            options |= {"scale": scale, "mask": mask, "causal": causal, "all_masked": all_masked}
        found = _of_shards(name, x, axis=axis, **options)
        if found is not NotImplemented:
            return found
    told = dtype is not None or out is not None
    x = arguments.floating("x", TORCH, x if told else autocast(x), dtype)
    axes = _axes(axis, x)
    scores: list[Any] = []
    if name == "softmax":
        mask = None if mask is None else _tensor("mask", mask, "x", x)
        causal = calls.check_scores(TORCH, x, axes, mask, causal)
        scale = arguments.parameter("scale", scale, False)
        zero = arguments.choice("all_masked", all_masked, ("nan", "zero")) == "zero"
        scores = [scale, mask, causal, zero]
    y = call(name, x, axes, *scores, _backend())
    return _into(out, y.to(x.dtype) if told else y)  # the operator knows torch.autocast, too


def rows_backward(name: str, dy: Any, y: Any, axis: Any, scale: Any = 1.0) -> Any:
    y = arguments.floating("y", TORCH, _tensor("y", y))
    dy = arguments.gradient("dy", TORCH, _tensor("dy", dy, "y", y), "y", y)
    scale = arguments.parameter("scale", scale, False)
    return call(f"{name}_backward", dy, y, _axes(axis, y), scale, _backend())


def softmax_jacobian(y: Any, axis: Any) -> Any:
    return call("softmax_jacobian", _tensor("y", y), arguments.whole("axis", axis), _backend())


# -- cross-entropy --------------------------------------------------------------------------------


def _loss(logits: Any, target: Any, *, weight: Any, axis: Any, **options: Any) -> tuple[Any, ...]:
    """The logits, and of an operator all arguments behind the tensors before them."""
    logits = arguments.floating("logits", TORCH, _tensor("logits", logits))
    checked = calls.check_loss(
        TORCH, logits, _tensor("target", target, "logits", logits), **options
    )
    if weight is not None and TORCH.tracked(_tensor("weight", weight, "logits", logits)):
        raise ValueError("weight: came requiring grad; class weights are constants")
    k = calls.class_axis(logits, target, not target.is_floating_point(), axis)
    return logits, (weight, *losses.Options(axis=k, **checked), _backend())


def cross_entropy(
    logits: Any, target: Any, return_lse: Any, gradient_in_forward: Any, **options: Any
) -> Any:
    if hasattr(_tensor("logits", logits), "placements"):
        more = {"return_lse": return_lse, "gradient_in_forward": gradient_in_forward, **options}
        found = _of_shards("cross_entropy", logits, target, **more)
        if found is not NotImplemented:
            return found
    logits, args = _loss(logits, target, **options)
    return_lse = arguments.flag("return_lse", return_lse)
    at_once = arguments.flag("gradient_in_forward", gradient_in_forward)
    if at_once and logits.requires_grad and torch.is_grad_enabled():
        calls.check_gradient_in_forward(args[2], return_lse, target.requires_grad)
        return call("cross_entropy_with_grad", logits, target, *args)[0]
    if args[2] == "mean" and hasattr(logits, "placements"):
        loss, lse = _mean_of_shards(logits, target, *args)
    else:
        loss, lse = call("cross_entropy", logits, target, *args)
    return (loss, lse) if return_lse else loss


def _mean_of_shards(logits: Tensor, target: Tensor, weight: Any, *args: Any) -> tuple[Any, Any]:
    """Of a DTensor: of a shard alone, what a mean divides by is not known."""
    ignore_index, _, *more = args
    loss, lse = call("cross_entropy", logits, target, weight, ignore_index, "sum", *more)
    if target.is_floating_point():
        return loss / lse.numel(), lse
    weights = losses.weight_of_targets(target, weight, ignore_index, lse)
    return loss / weights.sum(), lse


def cross_entropy_backward(dloss: Any, logits: Any, target: Any, lse: Any, **options: Any) -> Any:
    logits, args = _loss(logits, target, **options)
    if not isinstance(dloss, Tensor):
        number = arguments.parameter("dloss", dloss, False)
        dtype = arguments.compute_dtype(TORCH.dtype(logits))
        dloss = torch.full((), number, dtype=getattr(torch, dtype), device=logits.device)
    _tensor("dloss", dloss, "logits", logits)
    return call(
        "cross_entropy_backward",
        dloss,
        logits,
        target,
        _tensor("lse", lse, "logits", logits),
        *args,
    )


def loss_gradient(
    backend: str,
    loss: Loss,
    dloss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
) -> Any:
    """dlogits for autograd, on the backend that ran forward."""
    options = _options_of(loss)
    return call("cross_entropy_backward", dloss, logits, target, lse, weight, *options, backend)


def loss_gradients(backend: str, loss: Loss, needs: tuple[bool, bool], *tensors: Any) -> Any:
    """For autograd: of loss, lse or both, by logits, by probabilities, or both."""
    return losses.gradients(_options_of(loss), backend, needs, *tensors)


def _options_of(loss: Loss) -> losses.Options:
    return losses.Options(
        loss.ignore_index,
        loss.reduction,
        loss.label_smoothing,
        loss.z_loss,
        loss.softcap,
        loss.axis,
    )


def cross_entropy_with_grad(logits: Any, target: Any, dlogits_out: Any, **options: Any) -> Any:
    logits, args = _loss(logits, target, **options)
    loss, dlogits = call("cross_entropy_with_grad", logits, target, *args)
    return loss, _into(dlogits_out, dlogits, "dlogits_out")
