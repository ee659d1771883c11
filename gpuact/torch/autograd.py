"""PyTorch's reverse mode over gpuact's own backward functions.

Backward runs on autograd's thread, where `using()` does not reach: each function remembers the
backend that ran forward. Gradients are not differentiable again: they are computed `underived`, so
that autograd says so when asked instead of taking them for constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from .. import calls, operations
from ..catalogue import FUNCTIONS, Function
from ..dispatch import Call
from ..fusion import Fusion
from ..libraries import library_of
from ..operations import Loss
from ..routes import Route

Tensor = torch.Tensor


def _call(backend: str, like: Tensor) -> Call:
    library = library_of(like)
    assert library is not None  # a tensor always has one
    return Call(library, like, backend)


def _either(numbers: Sequence[Any], tensors: Sequence[Tensor | None]) -> list[Any]:
    """Parameters in their order: tensors come out of what was saved, numbers were kept aside."""
    return [n if t is None else t for n, t in zip(numbers, tensors, strict=True)]


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Function, backend: str, x: Tensor, *params: Tensor | float
    ) -> Tensor:
        y = operations.elementwise(_call(backend, x), function.forward, (x,), params)
        names = function.forward.parameters
        values = dict(zip(names, params, strict=True))
        learned = [k for k, need in zip(names, ctx.needs_input_grad[3:], strict=True) if need]
        ctx.keep = function.keep(values, learned)
        kept = {"x": x, "y": y, None: None}[ctx.keep]
        ctx.save_for_backward(kept, *(p if isinstance(p, Tensor) else None for p in params))
        ctx.function, ctx.backend = function, backend
        ctx.numbers = [None if isinstance(p, Tensor) else p for p in params]
        return cast(Tensor, y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        function: Function = ctx.function
        call = _call(ctx.backend, dy)
        names = function.forward.parameters
        needed = zip(("x", *names), ctx.needs_input_grad[2:], strict=True)
        wanted = {name for name, need in needed if need}

        def work(dy: Tensor, kept: Tensor | None, *tensors: Tensor) -> tuple[Tensor | None, ...]:
            # what is not kept is not read: anything of its shape will do
            kept = dy if kept is None else kept
            params = zip(names, _either(ctx.numbers, tensors), strict=True)
            found = calls.backward(
                call, function, {"dy": dy, "x": kept, "y": kept, **dict(params)}, wanted
            )
            return tuple(found.get(name) for name in ("x", *names))

        name = f"{function.name}_backward"
        return (None, None, *calls.underived(call, name, work, dy, *ctx.saved_tensors))


def activation(function: Function, backend: str, x: Tensor, *params: Tensor | float) -> Tensor:
    return cast(Tensor, _Activation.apply(function, backend, x, *params))  # type: ignore[no-untyped-call]


class _Plain(torch.autograd.Function):
    """`_Activation` on a route: nothing is learned but x."""

    @staticmethod
    def forward(ctx: Any, function: Function, route: Route, x: Tensor, *params: float) -> Tensor:
        y = route.run(function.forward, (x,), params)
        keep = function.keep(dict(zip(function.forward.parameters, params, strict=True)), ())
        ctx.save_for_backward({"x": x, "y": y, None: None}[keep])
        ctx.function, ctx.route, ctx.params = function, route, params
        return cast(Tensor, y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        kernel, route, (kept,) = ctx.function.backward, ctx.route, ctx.saved_tensors
        values = dict(zip(ctx.function.forward.parameters, ctx.params, strict=True))
        params = tuple([values[name] for name in kernel.parameters])

        def work(dy: Tensor, kept: Tensor) -> Tensor:
            arrays = (dy, kept)[: len(kernel.reads)]
            if route.fits(*arrays):
                return cast(Tensor, route.run(kernel, arrays, params))
            call = _call(route.call.backend, dy)
            return cast(Tensor, operations.elementwise(call, kernel, arrays, params))

        if torch.is_grad_enabled():
            dx = calls.underived(route.call, f"{ctx.function.name}_backward", work, dy, kept)
        else:
            dx = work(dy, kept)
        return (None, None, dx, *(None for _ in ctx.params))


def plain(function: Function, route: Route, x: Tensor, *params: float) -> Tensor:
    """An activation whose parameters are numbers, of a tensor that fits the route."""
    return cast(Tensor, _Plain.apply(function, route, x, *params))  # type: ignore[no-untyped-call]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, fusion: Fusion, x: Tensor, *operands: Operand) -> Tensor:
        *params, gate, residual = operands
        y = operations.fused(
            _call(backend, x),
            fusion,
            x,
            params,
            cast(Tensor | None, gate),
            cast(Tensor | None, residual),
        )
        ctx.backend, ctx.fusion = backend, fusion
        # tensors are saved, numbers kept; the residual's gradient is dy and needs nothing of it
        ctx.numbers = [None if isinstance(p, Tensor) else p for p in params]
        ctx.save_for_backward(x, *(p if isinstance(p, Tensor) else None for p in params), gate)
        return cast(Tensor, y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        call = _call(ctx.backend, dy)
        names = ("x", "scale", "bias", "slope", "gate")
        *needed, residual_needed = ctx.needs_input_grad[2:]
        wanted = {name for name, need in zip(names, needed, strict=True) if need}

        def work(dy: Tensor, x: Tensor, *rest: Tensor | None) -> tuple[Tensor | None, ...]:
            *tensors, gate = rest
            params = _either(ctx.numbers, tensors)
            found = operations.fused_backward(call, ctx.fusion, dy, x, params, gate, wanted)
            return tuple(found.get(name) for name in names)

        gradients = calls.underived(call, "fused_backward", work, dy, *ctx.saved_tensors)
        return (None, None, *gradients, dy if residual_needed else None)


Operand = Tensor | float | None


def fused(backend: str, fusion: Fusion, x: Tensor, *operands: Operand) -> Tensor:
    """operands: scale, bias, slope, gate, residual."""
    return cast(Tensor, _Fused.apply(backend, fusion, x, *operands))  # type: ignore[no-untyped-call]


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Function, backend: str, x: Tensor, axes: tuple[int, ...]
    ) -> Tensor:
        y = operations.rows(_call(backend, x), function.forward, (x,), axes)
        ctx.save_for_backward(y)
        ctx.function, ctx.backend, ctx.axes = function, backend, axes
        return cast(Tensor, y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        function: Function = ctx.function
        call = _call(ctx.backend, dy)

        def work(dy: Tensor, y: Tensor) -> Tensor:
            return cast(Tensor, operations.rows(call, function.backward, (dy, y), ctx.axes))

        name = f"{function.name}_backward"
        return None, None, calls.underived(call, name, work, dy, *ctx.saved_tensors), None


def rows(function: Function, backend: str, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return cast(Tensor, _Rows.apply(function, backend, x, axes))  # type: ignore[no-untyped-call]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        loss: Loss,
        weight: Tensor | None,
        logits: Tensor,
        target: Tensor,
    ) -> tuple[Tensor, Tensor]:
        call = _call(backend, logits)
        value, lse = operations.cross_entropy(call, logits, target, weight, loss)
        ctx.save_for_backward(logits, target, weight, lse)
        ctx.backend, ctx.loss = backend, loss
        ctx.set_materialize_grads(False)  # an output that nobody used comes back as None
        return value, lse

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        loss: Loss = ctx.loss
        call = _call(ctx.backend, ctx.saved_tensors[0])
        *_, wanted, target_wanted = ctx.needs_input_grad

        def work(
            dloss: Tensor | None,
            dlse: Tensor | None,
            logits: Tensor,
            target: Tensor,
            weight: Tensor | None,
            lse: Tensor,
        ) -> tuple[Tensor | None, Tensor | None]:
            dlogits = dtarget = None
            if wanted and dloss is not None:
                dlogits = operations.cross_entropy_backward(
                    call, dloss, logits, target, weight, lse, loss
                )
            if wanted and dlse is not None:
                s = operations.rows(call, FUNCTIONS["softmax"].forward, (logits,), (loss.axis,))
                by_lse = s * dlse.unsqueeze(loss.axis).to(s.dtype)
                dlogits = by_lse if dlogits is None else dlogits + by_lse
            if target_wanted and dloss is not None:
                dtarget = _target_gradient(call, dloss, logits, weight, loss).to(target.dtype)
            return dlogits, dtarget

        inputs = (dloss, dlse, *ctx.saved_tensors)
        gradients = calls.underived(call, "cross_entropy_backward", work, *inputs)
        return (None, None, None, *gradients)


def _target_gradient(
    call: Call, dloss: Tensor, logits: Tensor, weight: Tensor | None, loss: Loss
) -> Tensor:
    """By probabilities Y the loss is linear: -(1 - ε) w log S, scaled by the reduction."""
    z = logits.to(dloss.dtype)
    log_s = operations.rows(call, FUNCTIONS["log_softmax"].forward, (z,), (loss.axis,))
    gradient = log_s * (loss.label_smoothing - 1)
    if weight is not None:
        gradient = gradient * weight.reshape([-1 if k == loss.axis else 1 for k in range(z.ndim)])
    if loss.reduction == "none":
        dloss = dloss.unsqueeze(loss.axis)
    elif loss.reduction == "mean":
        dloss = dloss / (z.numel() // z.shape[loss.axis])
    return cast(Tensor, gradient * dloss)


def cross_entropy(
    backend: str, loss: Loss, weight: Tensor | None, logits: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    result = _CrossEntropy.apply(backend, loss, weight, logits, target)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], result)


class _Underivable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, work: Callable[..., Any], *inputs: Any) -> Any:
        ctx.name = name
        return work(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(
            f"gpuact.{ctx.name} has no derivative of its own; detach its inputs, or differentiate "
            "the forward function"
        )


def underivable(name: str, work: Callable[..., Any], *inputs: Any) -> Any:
    """Run `work` so that a gradient asked of it later is refused, never silently zero."""
    return _Underivable.apply(name, work, *inputs)  # type: ignore[no-untyped-call]
