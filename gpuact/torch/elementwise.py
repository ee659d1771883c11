"""The rules of the elementwise functions: of each activation, its backward and its derivative.

An activation's backward is dx = dy·f'(x), and its rule needs what f' becomes when differentiated
again: the short tables below, in PyTorch's own operations, which know every further order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .. import calls, operations
from ..catalogue import Function
from ..dispatch import Call, resolve
from ..fusion import Dropout, Fusion
from .registry import Args, Rule, call, front, params_of, save, total, wide

Tensor = torch.Tensor

# ∂(f'·dy)/∂y by what backward reads, y; what is not here is 0
CURVATURE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid": lambda dy, y: dy * (1 - 2 * y),
    "tanh": lambda dy, y: dy * (-2 * y),
}
# What a parameter learns, ∂f/∂p of x, and ∂²f/∂x∂p; NaN counts as not above 0
LEARNS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "scale": lambda x: x,
    "bias": torch.ones_like,
    "weight": lambda x: torch.where(x > 0, 0.0, x),
}
MIXED: Mapping[str, Callable[[Tensor], Tensor]] = {
    "scale": torch.ones_like,
    "bias": torch.zeros_like,
    "weight": lambda x: torch.where(x > 0, 0.0, torch.ones_like(x)),
}


class Activation(Rule):
    """y = f(x) of an activation that learns nothing."""

    def __init__(self, function: Function) -> None:
        self.function, self.name = function, function.name
        self.parameters, self.inline = function.forward.parameters, function.forward
        self.schema = f"(Tensor x{''.join(f', float {p}' for p in self.parameters)}) -> Tensor"

    def run(self, x: Tensor, *numbers: float) -> Any:
        params = dict(zip(self.parameters, numbers, strict=True))
        return calls.activation(self.name, x, **params)

    def keep(self, ctx: Any, inputs: Args, output: Any) -> None:
        x, *numbers, _ = inputs
        kept = self.function.keep(dict(zip(self.parameters, numbers, strict=True)))
        ctx.more = inputs[1:]
        save(ctx, output if kept == "y" else x)

    def jvp(self, ctx: Any, tx: Tensor, *_: Any) -> Any:
        return call(f"{self.name}_backward", tx, *ctx.saved_tensors, *ctx.more)

    def backward(self, ctx: Any, dy: Tensor) -> Any:
        return self.jvp(ctx, dy), *[None] * len(ctx.more)

    def vmap(self, info: Any, in_dims: Args, *args: Any) -> tuple[Any, Any]:
        return call(self.name, *args), in_dims[0]


class ActivationBackward(Rule):
    """dx of dy and what forward kept, x or y."""

    def __init__(self, function: Function) -> None:
        self.function, self.name = function, f"{function.name}_backward"
        self.parameters, self.inline = function.forward.parameters, function.backward
        reads = function.backward.reads[1]
        numbers = "".join(f", float {p}" for p in self.parameters)
        self.schema = f"(Tensor dy, Tensor {reads}{numbers}) -> Tensor"
        self.reads = reads

    def run(self, dy: Tensor, kept: Tensor, *numbers: float) -> Any:
        params = dict(zip(self.parameters, numbers, strict=True))
        return calls.activation_backward(self.function.name, dy, {self.reads: kept}, **params)[0]

    def keep(self, ctx: Any, inputs: Args, output: Any) -> None:
        ctx.more = inputs[2:]
        save(ctx, *inputs[:2])

    def _curvature(self, dy: Tensor, kept: Tensor, by: Tensor) -> Any:
        """times `by`"""
        curvature = CURVATURE.get(self.function.name)
        if curvature is None:
            return torch.zeros_like(kept)
        dy, y, by = wide(dy, kept, by)
        return (curvature(dy, y) * by).to(kept.dtype)

    def backward(self, ctx: Any, g: Tensor) -> Any:
        dy, kept = ctx.saved_tensors
        by_dy = by_kept = None
        if ctx.needs_input_grad[0]:
            by_dy = call(self.name, g, kept, *ctx.more)
        if ctx.needs_input_grad[1]:
            by_kept = self._curvature(dy, kept, g)
        return by_dy, by_kept, *[None] * len(ctx.more)

    def jvp(self, ctx: Any, tdy: Tensor | None, tkept: Tensor | None, *_: Any) -> Any:
        dy, kept = ctx.saved_tensors
        return total(
            (
                None if tdy is None else call(self.name, tdy, kept, *ctx.more),
                None if tkept is None else self._curvature(dy, kept, tkept),
            )
        )

    def vmap(self, info: Any, in_dims: Args, *args: Any) -> tuple[Any, Any]:
        dy, kept = (front(info, a, dim) for a, dim in zip(args[:2], in_dims[:2], strict=True))
        return call(self.name, dy, kept, *args[2:]), 0


# -- what learns ----------------------------------------------------------------------------------


def _tensors(parameters: Sequence[str]) -> str:
    return "".join(f", Tensor? {p}" for p in parameters) + ", float[] numbers"


class Learned(Rule):
    """y = f(x, parameters), each a tensor of x's number of dimensions or a number."""

    def __init__(self, function: Function) -> None:
        self.function, self.name = function, function.name
        self.parameters, self.inline = function.forward.parameters, function.forward
        self.schema = f"(Tensor x{_tensors(self.parameters)}) -> Tensor"

    def run(self, x: Tensor, *params: Any) -> Any:
        *tensors, numbers = params
        given = dict(zip(self.parameters, params_of(tensors, numbers), strict=True))
        return calls.activation(self.name, x, **given)

    def inlined(self, x: Tensor, *params: Any) -> Args | None:
        *tensors, numbers = params
        return None if any(t is not None for t in tensors) else (x, *numbers)

    def keep(self, ctx: Any, inputs: Args, output: Any) -> None:
        x, *tensors, numbers, backend = inputs
        ctx.numbers, ctx.backend = numbers, backend
        needs = ctx.needs_input_grad[1 : 1 + len(tensors)]
        learned = [p for p, need in zip(self.parameters, needs, strict=True) if need]
        ctx.save_for_backward(x if self.function.keep({}, learned) == "x" else None, *tensors)
        ctx.save_for_forward(x, *tensors)

    def backward(self, ctx: Any, dy: Tensor) -> Any:
        wanted = ctx.needs_input_grad[: 1 + len(self.parameters)]
        args = (dy, *ctx.saved_tensors, ctx.numbers, list(wanted), ctx.backend)
        found = call(f"{self.name}_backward", *args)
        return *(g if want else None for g, want in zip(found, wanted, strict=True)), None, None

    def jvp(self, ctx: Any, tx: Tensor | None, *tangents: Any) -> Any:
        x, *tensors = ctx.saved_tensors
        terms = []
        if tx is not None:
            wanted = [True, *[False] * len(tensors)]
            args = (tx, x, *tensors, ctx.numbers, wanted, ctx.backend)
            terms.append(call(f"{self.name}_backward", *args)[0])
        for p, t in zip(self.parameters, tangents, strict=False):
            if t is not None:
                terms.append((LEARNS[p](wide(x)) * wide(t)).to(x.dtype))
        return total(terms)

    def vmap(self, info: Any, in_dims: Args, *args: Any) -> tuple[Any, Any]:
        count = len(self.parameters)
        x = front(info, args[0], in_dims[0])
        tensors = [
            front(info, p, dim, expand=False)
            for p, dim in zip(args[1 : 1 + count], in_dims[1:], strict=False)
        ]
        return call(self.name, x, *tensors, *args[1 + count :]), 0


class LearnedBackward(Rule):
    """dx and the sums that are the parameters' gradients; what is not wanted is empty."""

    def __init__(self, function: Function) -> None:
        self.function, self.name = function, f"{function.name}_backward"
        self.parameters, self.inline = function.forward.parameters, function.backward
        self.count = len(self.parameters)
        results = ", ".join(["Tensor"] * (1 + self.count))
        self.schema = (
            f"(Tensor dy, Tensor? x{_tensors(self.parameters)}, bool[] wanted) -> ({results})"
        )

    def run(self, dy: Tensor, x: Tensor | None, *params: Any) -> Any:
        *tensors, numbers, wanted = params
        names = ("x", *self.parameters)
        given = dict(zip(self.parameters, params_of(tensors, numbers), strict=True))
        # what is not kept is not read: anything of its shape will do
        x = dy if x is None else x
        named = {"dy": dy, "x": x, **given}
        asked = {name for name, want in zip(names, wanted, strict=True) if want}
        found = calls.backward(resolve(dy=dy, x=x), self.function, named, asked)
        return tuple([found.get(name, dy.new_empty(0)) for name in names])

    def inlined(self, dy: Tensor, x: Tensor | None, *params: Any) -> Args | None:
        *tensors, numbers, wanted = params
        if any(t is not None for t in tensors) or any(wanted[1:]):
            return None
        named = {"dy": dy, "x": x, **dict(zip(self.parameters, numbers, strict=True))}
        kernel = self.function.backward
        return tuple([named[name] for name in (*kernel.reads, *kernel.parameters)])

    def delivered(self, result: Tensor) -> Any:
        return result, *[result.new_empty(0) for _ in self.parameters]

    def keep(self, ctx: Any, inputs: Args, output: Any) -> None:
        dy, x, *tensors, numbers, wanted, backend = inputs
        ctx.numbers, ctx.wanted, ctx.backend = numbers, wanted, backend
        save(ctx, dy, x, *tensors)

    def _slopes(self, ctx: Any, g: Tensor, x: Tensor | None, tensors: Sequence[Any]) -> Any:
        """g times f'(x)"""
        wanted = [True, *[False] * self.count]
        return call(self.name, g, x, *tensors, ctx.numbers, wanted, ctx.backend)[0]

    def backward(self, ctx: Any, *gradients: Any) -> Any:
        dy, x, *tensors = ctx.saved_tensors
        gx, *gp = (g if want else None for g, want in zip(gradients, ctx.wanted, strict=True))
        by_dy, by_x = [], []
        by_params: list[Any] = [None] * self.count
        if gx is not None:
            by_dy.append(self._slopes(ctx, gx, x, tensors))
        for k, p in enumerate(self.parameters):
            if gp[k] is not None:
                at = dy if x is None else x  # a bias reads no x
                by_dy.append((wide(gp[k]) * LEARNS[p](wide(at))).to(dy.dtype))
                if x is not None:
                    by_x.append((wide(gp[k]) * wide(dy) * MIXED[p](wide(x))).to(x.dtype))
            if gx is not None and tensors[k] is not None:
                at = dy if x is None else x
                terms = wide(gx) * wide(dy) * MIXED[p](wide(at))
                by_params[k] = terms.sum_to_size(tensors[k].shape).to(tensors[k].dtype)
        return total(by_dy), total(by_x), *by_params, None, None, None

    def jvp(self, ctx: Any, tdy: Any, tx: Any, *tangents: Any) -> Any:
        dy, x, *tensors = ctx.saved_tensors
        at = dy if x is None else x
        by_x = []
        if ctx.wanted[0]:
            if tdy is not None:
                by_x.append(self._slopes(ctx, tdy, x, tensors))
            for p, t in zip(self.parameters, tangents, strict=False):
                if t is not None:
                    by_x.append((wide(dy) * MIXED[p](wide(at)) * wide(t)).to(dy.dtype))
        found: list[Any] = [total(by_x) if by_x else dy.new_zeros(dy.shape)]
        for p, t, want in zip(self.parameters, tensors, ctx.wanted[1:], strict=True):
            terms = []
            if want and tdy is not None:
                terms.append(wide(tdy) * LEARNS[p](wide(at)))
            if want and tx is not None:
                terms.append(wide(dy) * MIXED[p](wide(at)) * wide(tx))
            shape, dtype = ((1,) * dy.ndim, dy.dtype) if t is None else (t.shape, t.dtype)
            summed = total(terms) if terms else torch.zeros_like(dy)
            found.append(summed.sum_to_size(shape).to(dtype) if want else dy.new_zeros(0))
        return (found[0] if ctx.wanted[0] else dy.new_zeros(0), *found[1:])

    def vmap(self, info: Any, in_dims: Args, *args: Any) -> tuple[Any, Any]:
        """Each sample has sums of its own, of shared parameters too."""
        count = 2 + self.count
        tensors = [
            front(info, a, dim) for a, dim in zip(args[:count], in_dims[:count], strict=True)
        ]
        numbers, wanted, backend = args[count:]
        for k in range(self.count):
            if tensors[2 + k] is None and wanted[1 + k]:  # a number: one entry a sample
                shape = (info.batch_size, *[1] * (tensors[0].ndim - 1))
                tensors[2 + k] = tensors[0].new_full(shape, numbers[k])
        found = call(self.name, *tensors, numbers, wanted, backend)
        return found, tuple([0 if want else None for want in wanted])


class Derivative(Activation):
    """f'(x) of x: an activation's arguments, another pass, and no derivative of its own."""

    def __init__(self, function: Function) -> None:
        super().__init__(function)
        self.name, self.inline = f"{function.name}_derivative", function.slope

    def run(self, x: Tensor, *numbers: float) -> Any:
        params = dict(zip(self.parameters, numbers, strict=True))
        return calls.derivative(self.function.name, x, **params)

    keep: Any = Rule.keep
    backward: Any = Rule.backward
    jvp: Any = Rule.jvp


class LearnedDerivative(Learned):
    """The same of an activation that learns."""

    def __init__(self, function: Function) -> None:
        super().__init__(function)
        self.name, self.inline = f"{function.name}_derivative", function.slope

    def run(self, x: Tensor, *params: Any) -> Any:
        *tensors, numbers = params
        given = dict(zip(self.parameters, params_of(tensors, numbers), strict=True))
        return calls.derivative(self.function.name, x, **given)

    def inlined(self, x: Tensor, *params: Any) -> Args | None:
        operands = super().inlined(x, *params)
        count = len(self.function.slope.parameters) if self.function.slope else 0
        return operands and operands[: 1 + count]  # the derivative may need fewer, the first

    keep: Any = Rule.keep
    backward: Any = Rule.backward
    jvp: Any = Rule.jvp


def rules(function: Function) -> tuple[Rule, ...]:
    if function.sums:
        return Learned(function), LearnedBackward(function), LearnedDerivative(function)
    return Activation(function), ActivationBackward(function), Derivative(function)


# -- fused ----------------------------------------------------------------------------------------

_OPERANDS = "Tensor? scale, Tensor? bias, Tensor? slope, Tensor? gate"
_NUMBERS = "float? scale_number, float? bias_number, float? slope_number"
_DROPOUT = "float p, SymInt seed, SymInt offset"


def _dropout(p: float, seed: int, offset: int) -> Dropout | None:
    dropout = Dropout(p, _unsigned(seed), _unsigned(offset))
    return dropout if dropout.drops else None


def _unsigned(n: Any) -> int:
    """64 bits, which an operator has as a signed number, and a trace as a symbol: any will do."""
    return n % 2**64 if isinstance(n, int) else 0


def signed(n: int) -> int:
    """64 bits as an operator takes them."""
    return n - 2**64 if n >= 2**63 else n


class Fused(Rule):
    """dropout(act(scale·x + bias))·gate + residual"""

    name = "fused"
    schema = (
        f"(Tensor x, str activation, {_OPERANDS}, Tensor? residual, {_NUMBERS}, {_DROPOUT})"
        " -> Tensor"
    )

    def run(self, x: Tensor, activation: str, *rest: Any) -> Any:
        scale, bias, slope, gate, residual, *numbers, p, seed, offset = rest
        fusion = Fusion(activation, _dropout(p, seed, offset))
        params = params_of((scale, bias, slope), numbers)
        given = {"x": x, "gate": gate, "residual": residual}
        call = resolve(**{name: a for name, a in given.items() if a is not None})
        return operations.fused(call, fusion, x, params, gate, residual)

    def keep(self, ctx: Any, inputs: Args, output: Any) -> None:
        x, activation, scale, bias, slope, gate, _, *more = inputs
        ctx.activation, ctx.more = activation, tuple(more)
        ctx.save_for_backward(x, scale, bias, slope, gate)
        ctx.save_for_forward(x, scale, bias, slope, gate)

    def backward(self, ctx: Any, dy: Tensor) -> Any:
        x, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad
        wanted = [needs[0], *needs[2:6]]
        if torch.is_grad_enabled():
            found = self._parts(ctx, x, tensors).backward(dy, wanted)
        else:
            *numbers, p, seed, offset, backend = ctx.more
            args = (dy, x, ctx.activation, *tensors, *numbers, wanted, p, seed, offset, backend)
            found = call("fused_backward", *args)
        found = [g if want else None for g, want in zip(found, wanted, strict=True)]
        residual = dy if needs[6] else None
        return found[0], None, *found[1:], residual, *[None] * len(ctx.more)

    def jvp(self, ctx: Any, tx: Any, _: Any, *tangents: Any) -> Any:
        x, *tensors = ctx.saved_tensors
        return self._parts(ctx, x, tensors).tangent(tx, *tangents[:5])

    def _parts(self, ctx: Any, x: Tensor, tensors: Sequence[Any]) -> Parts:
        *numbers, p, seed, offset, backend = ctx.more
        params = params_of(tensors[:3], numbers)
        return Parts(ctx.activation, x, params, tensors[3], (p, seed, offset), backend)

    def vmap(self, info: Any, in_dims: Args, *args: Any) -> tuple[Any, Any]:
        x, activation, *tensors = args[:7]
        more = args[7:]
        if _dropout(*more[3:6]) is not None:  # each sample drops what it would drop alone
            return super().vmap(info, in_dims, *args)
        x = front(info, x, in_dims[0])
        params = [
            front(info, t, dim, expand=False)
            for t, dim in zip(tensors[:3], in_dims[2:5], strict=True)
        ]
        beside = [front(info, t, dim) for t, dim in zip(tensors[3:], in_dims[5:7], strict=True)]
        return call("fused", x, activation, *params, *beside, *more), 0


class FusedBackward(Rule):
    """The gradients by x, scale, bias, slope and gate; what is not wanted is empty."""

    name = "fused_backward"
    schema = (
        f"(Tensor dy, Tensor x, str activation, {_OPERANDS}, {_NUMBERS}, bool[] wanted, {_DROPOUT})"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    )

    def run(self, dy: Tensor, x: Tensor, activation: str, *rest: Any) -> Any:
        scale, bias, slope, gate, *numbers, wanted, p, seed, offset = rest
        fusion = Fusion(activation, _dropout(p, seed, offset))
        names = operations.GRADIENTS
        asked = {name for name, want in zip(names, wanted, strict=True) if want}
        call: Call = resolve(x=x, dy=dy)
        params = params_of((scale, bias, slope), numbers)
        found = operations.fused_backward(call, fusion, dy, x, params, gate, asked)
        return tuple([found.get(name, x.new_empty(0)) for name in names])


class Parts:
    """`fused` taken apart into differentiable steps: where derivatives are to be differentiated."""

    def __init__(
        self,
        activation: str,
        x: Tensor,
        params: Sequence[Any],
        gate: Tensor | None,
        dropout: tuple[float, int, int],
        backend: str,
    ) -> None:
        self.name, self.backend, self.dtype = activation, backend, x.dtype
        self.of_gate = x.dtype if gate is None else gate.dtype
        self.x, self.gate = wide(x, gate)
        self.scale, self.bias, self.slope = (
            wide(p) if isinstance(p, Tensor) else p for p in params
        )
        self.shapes = [p.shape if isinstance(p, Tensor) else (1,) * x.ndim for p in params]
        self.dtypes = [p.dtype if isinstance(p, Tensor) else x.dtype for p in params]
        self.mask, self.factor = None, 1.0
        drop = _dropout(*dropout)
        if drop is not None:
            ones = torch.ones_like(self.x, memory_format=torch.contiguous_format)
            nothing = (None,) * 5 + (None,) * 3
            kept = call("fused", ones, "linear", *nothing, *dropout, backend)
            self.mask, self.factor = kept != 0, drop.scale
            # What is dropped is 0 whatever it was, NaN too, and so is its gradient.
            self.x = torch.where(self.mask, self.x, 0.0)
        u = self.x if self.scale is None else self.x * self.scale
        u = u if self.bias is None else u + self.bias
        if self.mask is not None:
            u = torch.where(self.mask, u, 0.0)
        self.u = u
        if activation == "linear":
            self.a = u
        elif activation == "prelu":
            self.a = call("prelu", u, *self._weight(), backend)
        else:
            self.a = call(activation, u, *self._number(), backend)

    def _weight(self) -> tuple[Any, list[float]]:
        if isinstance(self.slope, Tensor):
            return self.slope, [0.0]
        return None, [self.slope]

    def _number(self) -> tuple[float, ...]:
        return (self.slope,) if self.name == "leaky_relu" else ()

    def _kept(self, a: Tensor) -> Tensor:
        return a if self.mask is None else torch.where(self.mask, a * self.factor, 0.0)

    def _through(self, du: Tensor) -> tuple[Tensor, Any]:
        """du·act'(u), and the terms of the slope's gradient if it has one."""
        if self.name == "linear":
            return du, None
        if self.name == "prelu":
            wanted = [True, False]
            found = call("prelu_backward", du, self.u, *self._weight(), wanted, self.backend)
            return found[0], du * LEARNS["weight"](self.u)
        reads_y = self.name in CURVATURE or self.name == "relu"
        kept = self.a if reads_y else self.u
        return call(f"{self.name}_backward", du, kept, *self._number(), self.backend), None

    def value(self, residual: Any) -> Tensor:
        y = self._kept(self.a)
        y = y if self.gate is None else y * self.gate
        return (y if residual is None else y + residual).to(self.dtype)

    def backward(self, dy: Tensor, wanted: Sequence[bool]) -> list[Any]:
        dy = wide(dy)
        kept = self._kept(dy if self.gate is None else dy * self.gate)
        du, dslope = self._through(kept)
        terms = [du if self.scale is None else du * self.scale, du * self.x, du, dslope]
        found: list[Any] = [terms[0].to(self.dtype)]
        for k in range(3):
            term = terms[1 + k]
            summed = wanted[1 + k] and term is not None
            found.append(term.sum_to_size(self.shapes[k]).to(self.dtypes[k]) if summed else None)
        found.append((dy * self._kept(self.a)).to(self.of_gate) if wanted[4] else None)
        return found

    def tangent(self, tx: Any, tscale: Any, tbias: Any, tslope: Any, tgate: Any, tres: Any) -> Any:
        tx, tscale, tbias, tslope, tgate, tres = wide(tx, tscale, tbias, tslope, tgate, tres)
        steps = [
            tx if tx is None or self.scale is None else tx * self.scale,
            None if tscale is None else tscale * self.x,
            None if tbias is None else tbias.expand_as(self.x),
        ]
        tu, ta = total(steps), []
        if tu is not None:
            ta.append(self._through(tu)[0])
        if tslope is not None:
            ta.append(LEARNS["weight"](self.u) * tslope)
        terms = [
            self._kept(total(ta)) * (1.0 if self.gate is None else self.gate) if ta else None,
            None if tgate is None else self._kept(self.a) * tgate,
            tres,
        ]
        return total(terms).to(self.dtype)
