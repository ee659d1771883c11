"""The rules of cross-entropy, its backward, and both in one pass.

Of a row, with z the capped logits, S = e^(z − lse), q the weighted and smoothed target, Q = Σ q:

    loss = Q·lse − Σ q z + ζ·lse²      dlogits = D·((Q + 2ζ·lse) S − q)·z'

ζ is z_loss (0 in a row that is ignored), D the gradient of the row's loss. Backward reads lse as an
argument like any other: it is differentiated by z and by lse apart, and lse has a gradient of its
own, S, on which the chain goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .. import calls
from ..catalogue import Function
from .registry import Args, Rule, call, constant, front, save, total, wide

Tensor = torch.Tensor


class Options(NamedTuple):
    """What stands behind the tensors, in the order of the operators."""

    ignore_index: int
    reduction: str
    label_smoothing: float
    z_loss: float
    softcap: float  # 0: none
    axis: int

    def named(self) -> dict[str, Any]:
        return {**self._asdict(), "softcap": self.softcap or None}


OPTIONS = (
    "Tensor? weight, SymInt ignore_index, str reduction, float label_smoothing, float z_loss, "
    "float softcap, int axis"
)


def capped(z: Tensor, softcap: float) -> tuple[Tensor, Any, Any]:
    """z under the cap, its slope, and the slope's; None for these two without one."""
    if not softcap:
        return z, None, None
    t = torch.tanh(z / softcap)
    slope = (1 - t) * (1 + t)
    return softcap * t, slope, -2 / softcap * t * slope


class Row:
    """The quantities above, of all rows at once; classes along `axis`, rows with a 1 there."""

    def __init__(
        self, logits: Tensor, target: Tensor, weight: Any, lse: Tensor, options: Options
    ) -> None:
        self.options, self.axis = options, options.axis
        self.target, self.weights = target, weight  # as they came
        z = wide(logits)
        self.z, self.slope, self.bend = capped(z, options.softcap)
        self.lse = lse.to(z.dtype).unsqueeze(self.axis)
        self.s = (self.z - self.lse).exp()
        classes = z.shape[self.axis]
        shape = [1] * z.ndim
        shape[self.axis] = classes
        self.weight = None if weight is None else weight.to(z.dtype).reshape(shape)
        self.probabilities = target.is_floating_point()
        share = options.label_smoothing / classes
        if self.probabilities:
            self.counts = None
            q = target.to(z.dtype) * (1 - options.label_smoothing) + share
        else:
            found = target.long().unsqueeze(self.axis)
            self.counts = found != options.ignore_index
            there = (found >= 0) & (found < classes)  # a class out of range makes its row NaN
            whole = torch.full_like(self.lse, 1 - options.label_smoothing)
            whole = torch.where(there, whole, torch.nan)
            column = torch.where(there, found, 0)
            q = torch.full_like(z, share).scatter_add(self.axis, column, whole)
        q = q if self.weight is None else q * self.weight
        self.q = self.counting(q)
        self.zeta = self.counting(torch.full_like(self.lse, options.z_loss))
        self.factor = self.q.sum(self.axis, keepdim=True) + 2 * self.zeta * self.lse

    def counting(self, x: Tensor) -> Tensor:
        return x if self.counts is None else torch.where(self.counts, x, 0.0)

    def sloped(self, x: Tensor) -> Tensor:
        """times z', of rows that count: those that do not may hold anything."""
        return self.counting(x if self.slope is None else x * self.slope)

    @property
    def gradient(self) -> Tensor:
        """dlogits of D = 1."""
        return self.sloped(self.factor * self.s - self.q)

    def sum(self, x: Tensor) -> Tensor:
        return x.sum(self.axis, keepdim=True)

    @property
    def denominator(self) -> Any:
        """What a mean divides by."""
        if self.probabilities:
            return float(self.lse.numel())
        ignored, like = self.options.ignore_index, self.lse
        return weight_of_targets(self.target, self.weights, ignored, like).sum()

    def spread(self, dloss: Tensor) -> Tensor:
        """D of each row, of the gradient of the reduced loss."""
        if self.options.reduction == "none":
            return dloss.unsqueeze(self.axis)
        if self.options.reduction == "mean":
            dloss = dloss / self.denominator
        return self.counting(dloss.expand_as(self.lse))

    def reduced(self, rows: Tensor) -> Tensor:
        """What `spread` is the transpose of."""
        if self.options.reduction == "none":
            return rows.squeeze(self.axis)
        summed = rows.sum()
        return summed / self.denominator if self.options.reduction == "mean" else summed

    def by_dloss(self, g: Tensor) -> Tensor:
        """Of dlogits, the gradient by dloss: 0 by that of a mean over nothing, which is 0 there."""
        found = self.reduced(self.sum(g * self.gradient))
        if self.options.reduction == "mean" and self.counts is not None:
            found = torch.where(self.counts.any(), found, 0.0)
        return found

    def by_target(self, x: Tensor) -> Tensor:
        """Of what is linear in q, the gradient by probabilities."""
        x = x * (1 - self.options.label_smoothing)
        return x if self.weight is None else x * self.weight


class Loss(Rule):
    """(loss, lse); differentiated by logits, and by probabilities."""

    name = "cross_entropy"
    schema = f"(Tensor logits, Tensor target, {OPTIONS}) -> (Tensor, Tensor)"

    def run(self, logits: Tensor, target: Tensor, weight: Any, *options: Any) -> Any:
        named = Options(*options).named()
        return calls.cross_entropy(logits, target, True, False, weight=weight, **named)

    def keep(self, ctx: Any, inputs: Args, output: Any) -> None:
        logits, target, weight, *options, backend = inputs
        constant("weight", ctx.needs_input_grad[2])
        _, lse = output
        ctx.options, ctx.backend = Options(*options), backend
        ctx.set_materialize_grads(False)  # an output that nobody used comes back as None
        save(ctx, logits, target, weight, lse)

    def backward(self, ctx: Any, dloss: Tensor | None, dlse: Tensor | None) -> Any:
        needs = ctx.needs_input_grad[:2]
        found = gradients(ctx.options, ctx.backend, needs, dloss, dlse, *ctx.saved_tensors)
        return *found, *[None] * 8

    def jvp(self, ctx: Any, tlogits: Any, ttarget: Any, tweight: Any, *_: Any) -> Any:
        constant("weight", tweight is not None)
        logits, target, weight, lse = ctx.saved_tensors
        row = Row(logits, target, weight, lse, ctx.options)
        terms, tlse = [], torch.zeros_like(lse)
        if tlogits is not None:
            t = wide(tlogits)
            terms.append(row.sum(row.gradient * t))
            slope = 1.0 if row.slope is None else row.slope
            tlse = row.sum(row.s * slope * t).squeeze(row.axis)
        if ttarget is not None and row.probabilities:
            terms.append(row.sum(row.by_target((row.lse - row.z) * wide(ttarget))))
        if not terms:
            terms.append(torch.zeros_like(row.lse))
        return row.reduced(total(terms)).to(lse.dtype), tlse.to(lse.dtype)

    def vmap(self, info: Any, in_dims: Args, *args: Any) -> tuple[Any, Any]:
        if in_dims[2] is not None:
            return super().vmap(info, in_dims, *args)
        logits, target, weight, *rest, backend = args
        options = _of_sample(Options(*rest), logits, in_dims[0])
        logits, target = front(info, logits, in_dims[0]), front(info, target, in_dims[1])
        inner = options._replace(reduction="none", axis=options.axis + 1)
        losses, lse = call(self.name, logits, target, weight, *inner, backend)
        if options.reduction == "none":
            return (losses, lse), (0, 0)
        loss = _of_samples(losses)
        if options.reduction == "mean":
            loss = loss / _denominators(info, target, weight, losses, options)
        return (loss, lse), (0, 0)


def _of_sample(options: Options, logits: Tensor, dim: Any) -> Options:
    """With an axis that counts from the first."""
    return options._replace(axis=options.axis % (logits.ndim - (dim is not None)))


def weight_of_targets(target: Tensor, weight: Any, ignore_index: int, like: Tensor) -> Tensor:
    """Of each row, what it counts in a mean; target: classes, like: of the loss's dtype."""
    counts = target != ignore_index
    if weight is None:
        return counts.to(like.dtype)
    there = counts & (target >= 0) & (target < weight.shape[0])
    return torch.where(there, weight.to(like.dtype)[torch.where(there, target.long(), 0)], 0.0)


def _denominators(info: Any, target: Tensor, weight: Any, rows: Tensor, options: Options) -> Any:
    """What each sample's mean divides by. rows: of the loss's dtype and the rows' shape."""
    if target.is_floating_point():
        return rows.numel() / max(1, info.batch_size)
    return _of_samples(weight_of_targets(target, weight, options.ignore_index, rows))


def _of_samples(x: Tensor) -> Tensor:
    """The sum of each, the batch being first; there may be none."""
    return x.sum(tuple(range(1, x.ndim))) if x.ndim > 1 else x


def gradients(
    options: Options,
    backend: str,
    needs: Sequence[bool],
    dloss: Tensor | None,
    dlse: Tensor | None,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """By logits and by target, differentiable: of the loss, of lse, or of both."""
    dlogits, dtarget = [], None
    if needs[0] and dloss is not None:
        args = (dloss, logits, target, lse, weight, *options, backend)
        dlogits.append(call("cross_entropy_backward", *args))
    z, slope, _ = capped(wide(logits), options.softcap)
    if needs[0] and dlse is not None:
        # in the dtype of lse: dlse may be no number of a half type
        s = call("softmax", z, [options.axis], 1.0, None, False, False, backend)
        d = dlse.unsqueeze(options.axis)
        gradient = torch.where(d == 0, 0.0, s * d)  # an ignored row may be NaN
        dlogits.append((gradient if slope is None else gradient * slope).to(logits.dtype))
    if needs[1] and dloss is not None:
        log_s = call("log_softmax", z, [options.axis], backend)
        row = log_s * (options.label_smoothing - 1)
        if weight is not None:
            row = row * weight.reshape([-1 if k == options.axis else 1 for k in range(z.ndim)])
        if options.reduction == "none":
            dloss = dloss.unsqueeze(options.axis)
        elif options.reduction == "mean":
            dloss = dloss / (z.numel() // z.shape[options.axis])
        dtarget = (row * dloss).to(target.dtype)
    return total(dlogits), dtarget


class LossBackward(Rule):
    """dlogits of dloss, and what forward kept."""

    name = "cross_entropy_backward"
    schema = f"(Tensor dloss, Tensor logits, Tensor target, Tensor lse, {OPTIONS}) -> Tensor"

    def run(
        self, dloss: Tensor, logits: Tensor, target: Tensor, lse: Tensor, weight: Any, *options: Any
    ) -> Any:
        named = Options(*options).named()
        return calls.cross_entropy_backward(dloss, logits, target, lse, weight=weight, **named)

    def keep(self, ctx: Any, inputs: Args, output: Any) -> None:
        dloss, logits, target, lse, weight, *options, _ = inputs
        constant("weight", ctx.needs_input_grad[4])
        ctx.options = Options(*options)
        ctx.set_materialize_grads(False)  # what has no tangent comes as None
        save(ctx, dloss, logits, target, lse, weight)

    def _row(self, ctx: Any) -> tuple[Row, Tensor]:
        dloss, logits, target, lse, weight = ctx.saved_tensors
        row = Row(logits, target, weight, lse, ctx.options)
        return row, row.spread(wide(dloss))

    def backward(self, ctx: Any, g: Tensor | None) -> Any:
        if g is None:
            return (None,) * 12
        row, d = self._row(ctx)
        dloss, logits, target, lse, _ = ctx.saved_tensors
        needs = ctx.needs_input_grad
        g = wide(g)
        found: list[Any] = [None] * 4
        if needs[0]:
            found[0] = row.by_dloss(g).to(dloss.dtype)
        p = row.sloped(g * d)
        if needs[1]:
            curved = row.factor * row.s * p
            if row.slope is not None:
                bent = (row.factor * row.s - row.q) * row.bend * g * d
                curved = curved * row.slope + bent
            found[1] = row.counting(curved).to(logits.dtype)
        if needs[2] and row.probabilities:
            found[2] = row.by_target(row.sum(p * row.s) - p).to(target.dtype)
        if needs[3]:
            terms = row.sum(p * row.s) * (2 * row.zeta - row.factor)
            found[3] = row.counting(terms).squeeze(row.axis).to(lse.dtype)
        return *found, *[None] * 8

    def jvp(
        self, ctx: Any, tdloss: Any, tlogits: Any, ttarget: Any, tlse: Any, tweight: Any, *_: Any
    ) -> Any:
        constant("weight", tweight is not None)
        row, d = self._row(ctx)
        logits = ctx.saved_tensors[1]
        terms = []
        if tdloss is not None:
            terms.append(row.spread(wide(tdloss)) * row.gradient)
        if tlogits is not None:
            t = wide(tlogits)
            moved = row.factor * row.s * (t if row.slope is None else t * row.slope)
            terms.append(d * row.sloped(moved))
            if row.bend is not None:
                bent = (row.factor * row.s - row.q) * row.bend * t * d
                terms.append(row.counting(bent))
        if ttarget is not None and row.probabilities:
            share = row.by_target(wide(ttarget))
            terms.append(d * row.sloped(row.sum(share) * row.s - share))
        if tlse is not None:
            t = wide(tlse).unsqueeze(row.axis)
            terms.append(d * row.sloped((2 * row.zeta - row.factor) * row.s * t))
        return total(terms).to(logits.dtype)

    def vmap(self, info: Any, in_dims: Args, *args: Any) -> tuple[Any, Any]:
        if in_dims[4] is not None:
            return super().vmap(info, in_dims, *args)
        *tensors, weight = args[:5]
        *rest, backend = args[5:]
        options = _of_sample(Options(*rest), tensors[1], in_dims[1])
        dloss, logits, target, lse = (
            front(info, a, dim) for a, dim in zip(tensors, in_dims[:4], strict=True)
        )
        if options.reduction != "none":
            if options.reduction == "mean":
                dloss = dloss / _denominators(info, target, weight, lse, options)
            dloss = dloss.reshape(-1, *[1] * (lse.ndim - 1)).expand_as(lse)
        inner = options._replace(reduction="none", axis=options.axis + 1)
        return call(self.name, dloss, logits, target, lse, weight, *inner, backend), 0


class LossWithGrad(Rule):
    """(loss, dlogits) in one pass. The loss is differentiable once, by logits; dlogits is not."""

    name = "cross_entropy_with_grad"
    schema = f"(Tensor logits, Tensor target, {OPTIONS}) -> (Tensor, Tensor)"

    def run(self, logits: Tensor, target: Tensor, weight: Any, *options: Any) -> Any:
        named = Options(*options).named()
        return calls.cross_entropy_with_grad(logits, target, None, weight=weight, **named)

    def keep(self, ctx: Any, inputs: Args, output: Any) -> None:
        ctx.reduction = inputs[4]
        ctx.set_materialize_grads(False)
        ctx.needs_target = ctx.needs_input_grad[1]
        save(ctx, output[1])

    def backward(self, ctx: Any, dloss: Tensor | None, ddlogits: Tensor | None) -> Any:
        if ddlogits is not None or ctx.reduction == "none" or ctx.needs_target:
            raise NotImplementedError(self._refusal())
        (dlogits,) = ctx.saved_tensors
        gradient = None if dloss is None else (wide(dlogits) * dloss).to(dlogits.dtype)
        return gradient, *[None] * 9


def rules(function: Function) -> tuple[Rule, ...]:
    return Loss(), LossBackward(), LossWithGrad()
