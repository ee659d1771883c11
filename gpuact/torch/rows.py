"""The rules of softmax and log-softmax, along any axes; of softmax's Jacobian, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import calls
from ..catalogue import Function
from .registry import Args, Rule, call, constant, front, save, total, wide

Tensor = torch.Tensor


def _sum(x: Tensor, axes: Sequence[int]) -> Tensor:
    return x.sum(tuple(axes), keepdim=True) if axes else x


def _behind(axes: Sequence[int]) -> list[int]:
    """The axes of rows behind a batch's."""
    return [axis + 1 for axis in axes]


class Rows(Rule):
    """softmax with its scores, or log_softmax: (x, axes, …)."""

    autocast = torch.float32

    def __init__(self, function: Function) -> None:
        self.function, self.name = function, function.name
        self.scores = function.name == "softmax"
        scores = ", float scale, Tensor? mask, bool causal, bool zero" if self.scores else ""
        self.schema = f"(Tensor x, int[] axes{scores}) -> Tensor"

    def run(self, x: Tensor, axes: Sequence[int], *scores: Any) -> Any:
        if not self.scores:
            return calls.rows(self.name, x, tuple(axes), None, None)
        scale, mask, causal, zero = scores
        word = "zero" if zero else "nan"
        return calls.rows(self.name, x, tuple(axes), None, None, scale, mask, causal, word)

    def keep(self, ctx: Any, inputs: Args, output: Any) -> None:
        _, axes, *scores, backend = inputs
        constant("mask", self.scores and ctx.needs_input_grad[3])
        ctx.axes, ctx.backend = axes, backend
        ctx.scale = scores[0] if scores else 1.0
        ctx.set_materialize_grads(False)  # what has no tangent comes as None
        save(ctx, output)

    def _back(self, ctx: Any, dy: Tensor, y: Tensor) -> Any:
        return call(f"{self.name}_backward", dy, y, ctx.axes, ctx.scale, ctx.backend)

    def backward(self, ctx: Any, dy: Tensor | None) -> Any:
        (y,) = ctx.saved_tensors
        dx = None if dy is None else self._back(ctx, dy, y)
        return dx, *[None] * (6 if self.scores else 2)

    def jvp(self, ctx: Any, tx: Tensor, *more: Any) -> Any:
        """softmax's Jacobian is symmetric; log_softmax's is (I - 1 sᵀ)."""
        constant("mask", self.scores and more[2] is not None)
        (y,) = ctx.saved_tensors
        if self.scores:
            return self._back(ctx, tx, y)
        t, s = wide(tx), wide(y).exp()
        return (t - _sum(s * t, ctx.axes)).to(y.dtype)

    def vmap(self, info: Any, in_dims: Args, *args: Any) -> tuple[Any, Any]:
        x, axes, *scores, backend = args
        x = front(info, x, in_dims[0])
        axes = [axis % max(1, x.ndim - 1) for axis in axes]
        single = x.ndim == 1  # each sample is one number, a row of one
        if single:
            x, axes = x.unsqueeze(1), [0]
        if scores and scores[1] is not None and in_dims[3] is not None:
            mask = scores[1].movedim(in_dims[3], 0)
            missing = [1] * (x.ndim - mask.ndim)
            scores[1] = mask.reshape(mask.shape[0], *missing, *mask.shape[1:])
        y = call(self.name, x, _behind(axes), *scores, backend)
        return y.squeeze(1) if single else y, 0


class RowsBackward(Rule):
    """dx of dy and y."""

    def __init__(self, function: Function) -> None:
        self.function, self.name = function, f"{function.name}_backward"
        self.log = function.name == "log_softmax"
        self.schema = "(Tensor dy, Tensor y, int[] axes, float scale) -> Tensor"

    def run(self, dy: Tensor, y: Tensor, axes: Sequence[int], scale: float) -> Any:
        return calls.rows_backward(self.function.name, dy, y, tuple(axes), scale)

    def keep(self, ctx: Any, inputs: Args, output: Any) -> None:
        dy, y, *ctx.more = inputs
        save(ctx, dy, y)

    def backward(self, ctx: Any, g: Tensor) -> Any:
        dy, y = ctx.saved_tensors
        axes, scale, _ = ctx.more
        by_dy: Any = None
        by_y: Any = None
        if self.log:
            g, s = wide(g), wide(y).exp()
            if ctx.needs_input_grad[0]:
                by_dy = (g - _sum(s * g, axes)).to(dy.dtype)
            if ctx.needs_input_grad[1]:
                by_y = (-g * s * _sum(wide(dy), axes)).to(y.dtype)
        else:
            if ctx.needs_input_grad[0]:
                by_dy = call(self.name, g, y, *ctx.more)
            if ctx.needs_input_grad[1]:
                d, s, g = wide(dy, y, g)
                by_y = scale * (g * (d - _sum(s * d, axes)) - d * _sum(g * s, axes))
                by_y = by_y.to(y.dtype)
        return by_dy, by_y, None, None, None

    def jvp(self, ctx: Any, tdy: Tensor | None, ty: Tensor | None, *_: Any) -> Any:
        dy, y = ctx.saved_tensors
        axes, scale, _ = ctx.more
        by_y = None
        if ty is not None:
            d, s, t = wide(dy, y, ty)
            if self.log:
                by_y = -s.exp() * t * _sum(d, axes)
            else:
                by_y = scale * (t * (d - _sum(s * d, axes)) - s * _sum(t * d, axes))
            by_y = by_y.to(y.dtype)
        return total((None if tdy is None else call(self.name, tdy, y, *ctx.more), by_y))

    def vmap(self, info: Any, in_dims: Args, *args: Any) -> tuple[Any, Any]:
        dy, y, axes, *more = args
        dy, y = front(info, dy, in_dims[0]), front(info, y, in_dims[1])
        axes = [axis % max(1, y.ndim - 1) for axis in axes]
        if y.ndim == 1:
            dx = call(self.name, dy.unsqueeze(1), y.unsqueeze(1), [1], *more)
            return dx.squeeze(1), 0
        return call(self.name, dy, y, _behind(axes), *more), 0


def rules(function: Function) -> tuple[Rule, ...]:
    return Rows(function), RowsBackward(function)


class Jacobian(Rule):
    """diag(s) - s sᵀ over two new last axes."""

    name = "softmax_jacobian"
    schema = "(Tensor y, int axis) -> Tensor"

    def run(self, y: Tensor, axis: int) -> Any:
        return calls.softmax_jacobian(y, axis)

    def vmap(self, info: Any, in_dims: Args, *args: Any) -> tuple[Any, Any]:
        y, axis, backend = args
        y = y.movedim(in_dims[0], 0)
        if y.ndim == 1:
            return call(self.name, y.unsqueeze(1), 1, backend), 0
        return call(self.name, y, axis % (y.ndim - 1) + 1, backend), 0
