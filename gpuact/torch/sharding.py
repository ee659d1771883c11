"""Where DTensor may shard the arrays of an operator: each rule says it of one mesh dimension.

An elementwise operator shards along any dimension, a row operator along those that are not the
row's. Classes that are sharded themselves go to `gpuact.torch.distributed`. Where nothing here
fits, DTensor gathers what it must, as for its own operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from . import elementwise, losses, registry, rows

Placement = Any  # of DTensor; None for what is no tensor
Way = tuple[list[Placement], list[Placement]]  # of the results, of the arguments


def _one_of(p: Any, dim: int) -> Placement:
    """A parameter of x's number of dimensions, x being sharded along `dim`."""
    return None if p is None else Replicate() if p.shape[dim] == 1 else Shard(dim)


def _sum_for(p: Any, dim: int, wanted: bool) -> Placement:
    """That parameter's gradient: a sum of the shards', where it was shared."""
    if not wanted:
        return Replicate()  # empty
    return Partial() if p is None or p.shape[dim] == 1 else Shard(dim)


def _activation(x: Any, *numbers: Any) -> Iterator[Way]:
    for d in range(x.ndim):
        yield [Shard(d)], [Shard(d), *[None] * len(numbers)]


def _activation_backward(dy: Any, kept: Any, *numbers: Any) -> Iterator[Way]:
    for d in range(kept.ndim):
        yield [Shard(d)], [Shard(d), Shard(d), *[None] * len(numbers)]


def _learned(x: Any, *rest: Any) -> Iterator[Way]:
    *params, _ = rest
    for d in range(x.ndim):
        yield [Shard(d)], [Shard(d), *[_one_of(p, d) for p in params], None]


def _learned_backward(dy: Any, x: Any, *rest: Any) -> Iterator[Way]:
    *params, _, wanted = rest
    for d in range(dy.ndim):
        sums = [_sum_for(p, d, want) for p, want in zip(params, wanted[1:], strict=True)]
        given = [_one_of(p, d) for p in params]
        dx = Shard(d) if wanted[0] else Replicate()
        yield [dx, *sums], [Shard(d), None if x is None else Shard(d), *given, None, None]


def _fused(x: Any, activation: str, *rest: Any) -> Iterator[Way]:
    *params, gate, residual, _, _, _, p, _, _ = rest
    if p > 0:  # which elements are dropped depends on their place in the whole
        return
    for d in range(x.ndim):
        given = [_one_of(a, d) for a in params]
        beside = [None if a is None else Shard(d) for a in (gate, residual)]
        yield [Shard(d)], [Shard(d), None, *given, *beside, *[None] * 6]


def _fused_backward(dy: Any, x: Any, activation: str, *rest: Any) -> Iterator[Way]:
    *params, gate, _, _, _, wanted, p, _, _ = rest
    if p > 0:
        return
    for d in range(x.ndim):
        sums = [_sum_for(a, d, want) for a, want in zip(params, wanted[1:4], strict=True)]
        dx, dgate = (Shard(d) if want else Replicate() for want in (wanted[0], wanted[4]))
        given = [Shard(d), Shard(d), None, *[_one_of(a, d) for a in params]]
        yield [dx, *sums, dgate], [*given, None if gate is None else Shard(d), *[None] * 7]


def _rows(x: Any, axes: Sequence[int], *scores: Any) -> Iterator[Way]:
    causal = bool(scores) and scores[2]
    axes = [axis % x.ndim for axis in axes] if x.ndim else []
    for d in range(x.ndim):
        if d in axes or (causal and d == x.ndim - 2):  # a row's number counts
            continue
        given: list[Placement] = [None] * len(scores)
        if scores and scores[1] is not None:
            at = d - (x.ndim - scores[1].ndim)
            given[1] = Replicate() if at < 0 else _one_of(scores[1], at)
        yield [Shard(d)], [Shard(d), None, *given]


def _rows_backward(dy: Any, y: Any, axes: Sequence[int], scale: float) -> Iterator[Way]:
    for d in range(y.ndim):
        if d not in [axis % y.ndim for axis in axes]:
            yield [Shard(d)], [Shard(d), Shard(d), None, None]


def _jacobian(y: Any, axis: int) -> Iterator[Way]:
    axis %= max(1, y.ndim)
    for d in range(y.ndim):
        if d != axis:
            yield [Shard(d - (d > axis))], [Shard(d), None]


def _of_rows(logits: Any, target: Any, weight: Any, options: losses.Options) -> Iterator[Any]:
    """Each dimension of the logits that may be sharded, the one of the rows, and the arguments'
    placements; a mean is of all rows, and divided by what is not known of a shard."""
    axis = options.axis % logits.ndim
    for d in range(logits.ndim):
        if d == axis or options.reduction == "mean":
            continue
        of_rows = Shard(d - (d > axis))
        of_target = Shard(d) if target.ndim == logits.ndim else of_rows
        weights = None if weight is None else Replicate()
        loss = of_rows if options.reduction == "none" else Partial()
        yield Shard(d), of_target, weights, of_rows, loss


def _loss(logits: Any, target: Any, weight: Any, *rest: Any) -> Iterator[Way]:
    options = losses.Options(*rest)
    for z, t, w, lse, loss in _of_rows(logits, target, weight, options):
        yield [loss, lse], [z, t, w, *[None] * len(options)]


def _loss_with_grad(logits: Any, target: Any, weight: Any, *rest: Any) -> Iterator[Way]:
    options = losses.Options(*rest)
    for z, t, w, _, loss in _of_rows(logits, target, weight, options):
        yield [loss, z], [z, t, w, *[None] * len(options)]


def _loss_backward(
    dloss: Any, logits: Any, target: Any, lse: Any, weight: Any, *rest: Any
) -> Iterator[Way]:
    options = losses.Options(*rest)
    for z, t, w, of_rows, _ in _of_rows(logits, target, weight, options):
        of_loss = of_rows if options.reduction == "none" else Replicate()
        yield [z], [of_loss, z, t, of_rows, w, *[None] * len(options)]


_WAYS: dict[type[registry.Rule], Callable[..., Iterator[Way]]] = {
    elementwise.Activation: _activation,
    elementwise.ActivationBackward: _activation_backward,
    elementwise.Learned: _learned,
    elementwise.LearnedBackward: _learned_backward,
    elementwise.Derivative: _activation,
    elementwise.LearnedDerivative: _learned,
    elementwise.Fused: _fused,
    elementwise.FusedBackward: _fused_backward,
    rows.Rows: _rows,
    rows.RowsBackward: _rows_backward,
    rows.Jacobian: _jacobian,
    losses.Loss: _loss,
    losses.LossBackward: _loss_backward,
    losses.LossWithGrad: _loss_with_grad,
}


@cache
def register() -> None:
    """Tell DTensor, once it is in use."""
    for rule, operator in registry.operators():
        _register(rule, operator)


def _register(rule: registry.Rule, operator: Any) -> None:
    ways = _WAYS[type(rule)]
    results = len(operator._schema.returns)
    arguments = len(operator._schema.arguments)

    def sharding(*args: Any) -> list[Way]:
        args = (*args, *[""] * (arguments - len(args)))
        given = args[:-1]
        tensors = [Replicate() if hasattr(a, "placements") else None for a in args]
        found = [([Replicate()] * results, tensors)]
        return found + [(out, [*ins, None]) for out, ins in ways(*given)]

    register_sharding(operator)(sharding)
    # Which strategy was found is kept by arguments: by all of them, or a softmax along one axis
    # would be taken for one along another.
    propagator = torch.distributed.tensor.DTensor._op_dispatcher.sharding_propagator
    propagator.op_to_schema_info[operator].static_argnum = 0
