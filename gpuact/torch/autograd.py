"""PyTorch's reverse mode over gpuact's own backward functions, at the least cost to the host.

Backward runs on autograd's thread, where `using()` does not reach: each function remembers the
backend that ran forward. Where a gradient is to be differentiated again (create_graph), or more
than autograd watches, backward is one of the operators of `gpuact.torch.ops`, whose rules know the
derivatives of every order.
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
from ..operations import Loss, PreparedLoss
from ..routes import Runs
from .registry import params_of

Tensor = torch.Tensor


def _call(backend: str, dy: Tensor) -> Call:
    """Forward's call again, for backward."""
    library = library_of(dy)
    assert library is not None  # a tensor always has one
    return Call(library, dy, backend)


class _Activation(torch.autograd.Function):
    """An activation that learns nothing: its parameters, if it has any, are numbers.

    What is no tensor comes as one argument and stays as one attribute: PyTorch looks at each.
    """

    @staticmethod
    def forward(
        ctx: Any, how: tuple[Function, Call, Runs | None, Sequence[float]], x: Tensor
    ) -> Tensor:
        function, call, route, params = how
        y = _forward(function, call, route, x, params)
        values = dict(zip(function.forward.parameters, params, strict=True)) if params else {}
        ctx.save_for_backward(y if function.keep(values) == "y" else x)
        ctx.how = function, call.backend, params
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor]:
        function, backend, params = ctx.how
        (kept,) = ctx.saved_tensors
        return None, calls.gradient(function, backend, dy, kept, params)


def _forward(
    function: Function, call: Call, route: Runs | None, x: Tensor, params: Sequence[Any]
) -> Tensor:
    if route is not None:
        return cast(Tensor, route.run((x, *params)))
    return cast(Tensor, operations.elementwise(call, function.forward, (x,), params))


class _Learned(torch.autograd.Function):
    """linear and prelu: parameters, tensors among them, have gradients of their own."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Function,
        call: Call,
        route: Runs | None,
        x: Tensor,
        *params: Tensor | float,
    ) -> Tensor:
        y = _forward(function, call, route, x, params)
        names = function.forward.parameters
        learned = [k for k, need in zip(names, ctx.needs_input_grad[4:], strict=True) if need]
        kept = x if function.keep({}, learned) == "x" else None
        ctx.save_for_backward(kept, *[p if isinstance(p, Tensor) else None for p in params])
        ctx.numbers = [None if isinstance(p, Tensor) else p for p in params]
        ctx.function, ctx.backend = function, call.backend
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        function: Function = ctx.function
        x, *tensors = saved = ctx.saved_tensors  # once: a checkpoint gives each of them once
        names = ("x", *function.forward.parameters)
        wanted = ctx.needs_input_grad[3:]
        if calls.watched(dy, *saved, derived=True):
            numbers = [0.0 if n is None else n for n in ctx.numbers]
            args = (dy, x, *tensors, numbers, list(wanted), ctx.backend)
            gradients = calls.operators().call(f"{function.name}_backward", *args)
            found = dict(zip(names, gradients, strict=True))
        else:
            # what is not kept is not read: anything of its shape will do
            named = {"dy": dy, "x": dy if x is None else x}
            named |= dict(zip(names[1:], params_of(tensors, ctx.numbers), strict=True))
            asked = {name for name, want in zip(names, wanted, strict=True) if want}
            found = calls.backward(_call(ctx.backend, dy), function, named, asked)
        gradients = [found[k] if want else None for k, want in zip(names, wanted, strict=True)]
        return None, None, None, *gradients


def activation(
    function: Function, call: Call, route: Runs | None, x: Tensor, *params: Tensor | float
) -> Tensor:
    """route: of such a call, if there is one, or what counts its outputs besides."""
    if function.sums:
        return cast(Tensor, cast(Any, _Learned).apply(function, call, route, x, *params))
    return cast(Tensor, cast(Any, _Activation).apply((function, call, route, params), x))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, fusion: Fusion, x: Tensor, *operands: Operand) -> Tensor:
        *params, gate, residual = operands
        y = operations.fused(call, fusion, x, params, gate, residual)
        needed = dict(zip(FUSED, ctx.needs_input_grad[2:], strict=True))
        back = any(needed[name] for name in ("x", "scale", "bias", "slope"))
        linear = fusion.activation == "linear"
        reads_x = needed["gate"] or needed["scale"] or (back and not linear)
        # tensors are saved, numbers kept; the residual's gradient is dy and needs nothing
        ctx.save_for_backward(
            x if reads_x else None,
            *[p if isinstance(p, Tensor) else None for p in params],
            gate if back or needed["gate"] else None,
        )
        ctx.numbers = [None if isinstance(p, Tensor) else p for p in params]
        ctx.backend, ctx.fusion = call.backend, fusion
        ctx.wanted = tuple([needed[name] for name in operations.GRADIENTS])
        return cast(Tensor, y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors, gate = saved = ctx.saved_tensors
        x = dy if x is None else x  # what is not kept is not read: anything of its shape will do
        residual = dy if ctx.needs_input_grad[-1] else None
        if calls.watched(dy, *saved, derived=True):
            operands = (*tensors, gate, *ctx.numbers)
            ops = calls.operators()
            gradients = ops.fused_gradients(ctx.fusion, dy, x, operands, ctx.wanted, ctx.backend)
            return None, None, *gradients, residual
        params, names = params_of(tensors, ctx.numbers), operations.GRADIENTS
        asked = {name for name, want in zip(names, ctx.wanted, strict=True) if want}
        call = _call(ctx.backend, dy)
        found = operations.fused_backward(call, ctx.fusion, dy, x, params, gate, asked)
        return None, None, *[found.get(name) for name in names], residual


FUSED = ("x", "scale", "bias", "slope", "gate", "residual")
Operand = Tensor | float | None


def fused(call: Call, fusion: Fusion, x: Tensor, *operands: Operand) -> Tensor:
    """operands: scale, bias, slope, gate, residual."""
    return cast(Tensor, _Fused.apply(call, fusion, x, *operands))  # type: ignore[no-untyped-call]


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: Function,
        backend: str,
        work: Callable[[Tensor], Tensor],
        x: Tensor,
        axes: tuple[int, ...],
        scale: float,
    ) -> Tensor:
        y = work(x)
        ctx.save_for_backward(y)
        ctx.function, ctx.backend, ctx.axes, ctx.scale = function, backend, axes, scale
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        dx = calls.row_gradient(ctx.function, ctx.backend, dy, y, ctx.axes, ctx.scale)
        return None, None, None, dx, None, None


def rows(
    function: Function,
    backend: str,
    work: Callable[[Tensor], Tensor],
    x: Tensor,
    axes: tuple[int, ...],
    scale: float,
) -> Tensor:
    """work: what computes y of x; of the scores backward reads the scale alone."""
    step: Any = _Rows
    return cast(Tensor, step.apply(function, backend, work, x, axes, scale))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        loss: Loss,
        weight: Tensor | None,
        logits: Tensor,
        target: Tensor,
        prepared: PreparedLoss | None,
    ) -> tuple[Tensor, Tensor]:
        if prepared is None:
            call = _call(backend, logits)
            value, lse = operations.cross_entropy(call, logits, target, weight, loss)
        else:
            value, lse = prepared(logits, target, weight)
        ctx.save_for_backward(logits, target, weight, lse)
        ctx.backend, ctx.loss = backend, loss
        ctx.set_materialize_grads(False)  # an output that nobody used comes back as None
        return value, lse

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        loss: Loss = ctx.loss
        *_, wanted, target_wanted, _ = ctx.needs_input_grad
        if wanted and not target_wanted and dloss is not None and dlse is None:
            dlogits = calls.loss_gradient(ctx.backend, loss, dloss, *ctx.saved_tensors)
            return (None, None, None, dlogits, None, None)
        logits, target, weight, lse = ctx.saved_tensors
        needs = wanted, target_wanted
        tensors = dloss, dlse, logits, target, weight, lse
        gradients = calls.operators().loss_gradients(ctx.backend, loss, needs, *tensors)
        return (None, None, None, *gradients, None)


def cross_entropy(
    backend: str,
    loss: Loss,
    weight: Tensor | None,
    logits: Tensor,
    target: Tensor,
    prepared: PreparedLoss | None = None,
) -> tuple[Tensor, Tensor]:
    step: Any = _CrossEntropy
    return cast(tuple[Tensor, Tensor], step.apply(backend, loss, weight, logits, target, prepared))


class _GradientInForward(torch.autograd.Function):
    """Forward finds the gradient in the pass that finds the loss, and keeps nothing else."""

    @staticmethod
    def forward(
        ctx: Any, backend: str, loss: Loss, weight: Tensor | None, logits: Tensor, target: Tensor
    ) -> Tensor:
        call = _call(backend, logits)
        value, dlogits = operations.cross_entropy_with_grad(call, logits, target, weight, loss)
        ctx.save_for_backward(dlogits)
        ctx.backend, ctx.used = backend, False
        return cast(Tensor, value)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "gpuact.cross_entropy: a gradient that can be differentiated again was asked of "
                "gradient_in_forward=True, which keeps no logits to differentiate by; allowed is "
                "gradient_in_forward=False"
            )
        if ctx.used:
            raise RuntimeError(
                "gpuact.cross_entropy: a second backward came through gradient_in_forward=True, "
                "which keeps the gradient alone, and the first backward has taken it; allowed is "
                "one backward, or gradient_in_forward=False"
            )
        ctx.used = True
        (dlogits,) = ctx.saved_tensors
        # Nobody else has this memory. The factor is read where it lies: to look whether it is 1
        # would wait for the device.
        factor = dloss.reshape([1] * dlogits.ndim)
        call, kernel = _call(ctx.backend, dlogits), FUNCTIONS["linear"].backward
        operations.elementwise(call, kernel, (dlogits,), (factor,), dlogits)
        return None, None, None, dlogits, None


def gradient_in_forward(
    backend: str, loss: Loss, weight: Tensor | None, logits: Tensor, target: Tensor
) -> Tensor:
    step: Any = _GradientInForward
    return cast(Tensor, step.apply(backend, loss, weight, logits, target))
