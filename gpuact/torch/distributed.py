"""Softmax and cross-entropy of rows whose classes are cut among ranks (vocab-parallel).

Each rank of a process group holds a shard of the classes (the last axis, some columns on each rank)
of the same rows, and calls the same function with the same options:

    from gpuact.torch import distributed

    loss = distributed.cross_entropy(shard, target, group)  # the whole loss, on every rank
    loss.backward()                                         # the gradient of this rank's shard

What the functions mean is what gpuact's functions of the same name mean on the shards put together
in the order of the ranks, to NaN, infinities and empty shards. No rank sees another's logits: they
exchange a few numbers a row, (max, log Σ e^(z − max)) first, as the parts of a row do inside a
kernel, in one all_gather. All of them merge the same numbers in the order of the ranks, so that
every rank has the same bits, every time. Runs on whatever backend the group has for the tensors'
device (NCCL, gloo), on groups of any size, and without waiting for a GPU.

Forward and backward of each function are one autograd function. Second derivatives and forward mode
raise NotImplementedError. All ranks must call, and for softmax and log_softmax run backward, or
none; an argument that one rank alone refuses leaves the others waiting.

Source: Shoeybi et al., Megatron-LM (2019), whose loss this is; merging (max, sum) pairs: Milakov
and Gimelshein, Online normalizer calculation for softmax (2018).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, overload

import torch
import torch.distributed as dist

from .. import activations, arguments, calls, operations
from ..catalogue import Pass
from ..dispatch import resolve, using
from ..operations import Loss, Reduction

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["cross_entropy", "log_softmax", "of_dtensor", "softmax"]

Tensor = torch.Tensor
Group = dist.ProcessGroup | None


# -- the ranks ------------------------------------------------------------------------------------


def _place(group: Any) -> tuple[int, int]:
    """How many ranks the group has, and which of them this is."""
    if group is None and not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "group: None came, and torch.distributed has no default group; allowed is a process "
            "group, or to call torch.distributed.init_process_group first"
        )
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("group: came without this process; allowed is a group that it belongs to")
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"group: {type(group).__name__} came, allowed are a torch.distributed.ProcessGroup and "
            "None, the default group"
        )
    return dist.get_world_size(group), dist.get_rank(group)


# Its name since torch 2.13, and before
_ALL_GATHER = "all_gather_single", "all_gather_into_tensor"


def _gathered(x: Tensor, group: Group) -> Tensor:
    """Every rank's x, one behind the other along a new first axis."""
    mine, ranks = x.contiguous().unsqueeze(0), dist.get_world_size(group)
    if ranks == 1:
        return mine
    found = x.new_empty((ranks, *x.shape))
    name = next(name for name in _ALL_GATHER if hasattr(dist, name))
    getattr(dist, name)(found, mine, group=group)
    return found


@dataclass(frozen=True)
class _Cut:
    """Where this rank's classes stand among all: tensors where to look would wait for a GPU."""

    group: Group
    first: Any
    classes: Any  # of all ranks

    @property
    def unknown(self) -> bool:
        """To the host."""
        return not isinstance(self.classes, int)

    def share(self, label_smoothing: float, dtype: torch.dtype) -> Any:
        """ε / C."""
        return label_smoothing / (self.classes.to(dtype) if self.unknown else self.classes)


def _cut(x: Tensor, group: Group, sizes: Sequence[int] | None) -> _Cut:
    """One collective, unless the sizes are known."""
    ranks, rank = _place(group)
    own = x.shape[-1]
    if sizes is not None:
        found = [arguments.whole("sizes", n) for n in sizes]
        if len(found) != ranks or found[rank] != own or min(found) < 0:
            raise ValueError(
                f"sizes: {found} came, allowed is the number of classes of each of the {ranks} "
                f"ranks, {own} on rank {rank}"
            )
    else:
        gathered = _gathered(torch.full((1,), own, dtype=torch.int64, device=x.device), group)
        if not _on_host(x):
            return _Cut(group, gathered[:rank].sum(), gathered.sum())
        found = gathered.flatten().tolist()
    return _Cut(group, sum(found[:rank]), sum(found))


def _on_host(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _check_plain(name: str, x: Any) -> None:
    if not isinstance(x, Tensor) or hasattr(x, "to_local"):
        raise TypeError(
            f"{name}: {type(x).__name__} came, allowed is a torch.Tensor, this rank's own (of a "
            "DTensor: to_local())"
        )


def _shard(name: str, x: Any) -> Any:
    """x, or what the kernels make of it: integers count as float32."""
    _check_plain(name, x)
    if not x.ndim:
        raise ValueError(f"{name}: a 0-d array came, allowed is at least the axis of classes")
    return arguments.floating(name, resolve(**{name: x}).library, x)


# -- rows -----------------------------------------------------------------------------------------
# Of each row and rank: m, the largest z, and log Σ e^(z − m). A shard that is all −inf, or empty,
# has m = −inf and adds nothing; the kernels, to which it is a whole row, say NaN. m tells it from a
# row with NaN or +inf in it. That is why m is looked for apart from the kernels, in a pass of its
# own over the logits: a kernel that gave (m, log Σ) itself would save it.


def _computed(x: Tensor) -> torch.dtype:
    """The precision of the computation; also the dtype of losses and of what ranks exchange."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _capped(z: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(z / softcap) if softcap else z


def _slope(z: Tensor, softcap: float) -> Tensor:
    """Of the cap, at capped logits z."""
    t = z / softcap
    return (1 - t) * (1 + t)


def _at(x: Tensor, column: Tensor, softcap: float = 0.0) -> Tensor:
    """One z of each row."""
    return _capped(x.gather(-1, column.unsqueeze(-1)).squeeze(-1).to(_computed(x)), softcap)


def _put(x: Tensor, column: Tensor, z: Tensor) -> Tensor:
    """x with one element of each row written over."""
    seen, bits = x, z.to(x.dtype).unsqueeze(-1)
    if (
        x.dtype.itemsize == 2
    ):  # of half types a CPU's scatter_ makes a copy in float32, of bits none
        seen, bits = seen.view(torch.int16), bits.view(torch.int16)
    seen.scatter_(-1, column.unsqueeze(-1), bits)
    return x


def _spread(x: Tensor, largest: Tensor, softcap: float = 0.0) -> Tensor:
    """log Σ e^(z − m): the loss of the largest, which a kernel finds without a detour by lse."""
    options: dict[str, Any] = {"reduction": "none", "softcap": softcap or None, "axis": -1}
    return cast(Tensor, activations.cross_entropy(x, largest, **options))


def _merged(m: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor]:
    """The same of whole rows, from that of all ranks. A row of −inf alone is NaN: −inf − −inf is;
    so is one with +inf or NaN."""
    top = m.amax(0)
    return top, torch.logsumexp(log_sum + (m - top), 0)


PIECE = 1 << 22  # elements that are in the making at once, in the precision of the computation


def _pieces(x: Tensor) -> Iterator[slice]:
    """Rows of (rows, classes) whose temporaries are small whatever x's size, and stay in caches."""
    thick = max(1, PIECE // max(1, x.shape[1]))
    for i in range(0, x.shape[0], thick):
        yield slice(i, i + thick)


def _flat(x: Tensor) -> Tensor:
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _once(name: str, work: Callable[..., Any], *inputs: Any) -> Any:
    """A backward, which has no derivative of its own."""
    if not torch.is_grad_enabled():
        return work(*inputs)
    return _Once.apply(name, work, *inputs)  # type: ignore[no-untyped-call]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, work: Callable[..., Any], *inputs: Any) -> Any:
        ctx.name = name
        return work(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise _refusal(ctx.name, "a second derivative")


def _refusal(name: str, what: str) -> NotImplementedError:
    return NotImplementedError(
        f"gpuact.torch.distributed.{name}: {what} was asked for, allowed is one backward"
    )


# -- softmax and log_softmax ----------------------------------------------------------------------
# Forward reads x three times (its maximum, its sum, the result) and writes once, nothing else of
# its size; log_softmax of float32 and float64 goes over its result once more. Backward of softmax
# reads dy and y twice and writes once; that of log_softmax reads dy twice and y once.

_PRODUCT = Pass("linear_dscale", ("dy", "x"))  # Σ x·dy
_SUM = Pass("linear_dbias", ("dy",))


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, backend: str, group: Group, x: Tensor) -> Tensor:
        table = torch.zeros((2, *x.shape[:-1]), dtype=_computed(x), device=x.device)
        table[0] = -math.inf
        column = None  # of an empty shard
        if x.shape[-1]:
            top, column = x.max(-1)
            table[0] = top
            table[1] = _spread(x, column).masked_fill_(top == -math.inf, 0.0)
        m, log_sum = _merged(*_gathered(table, group).unbind(1))
        if column is None:
            y = torch.empty_like(x)
        else:
            y = (_softmax if name == "softmax" else _log_softmax)(x, column, m, log_sum)
        ctx.save_for_backward(y)
        ctx.name, ctx.backend, ctx.group = name, backend, group
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        def work(dy: Tensor, y: Tensor) -> Tensor:
            with using(ctx.backend):
                back = _softmax_backward if ctx.name == "softmax" else _log_softmax_backward
                return back(dy, y, ctx.group)

        return None, None, None, _once(ctx.name, work, dy, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _refusal(ctx.name, "forward mode")


def _softmax(x: Tensor, column: Tensor, m: Tensor, log_sum: Tensor) -> Tensor:
    """s = e^(x − lse): the gradient of the loss of any class, but at that class, which is written
    over. In one pass, and rounded once."""
    lse = m + log_sum
    lost = (lse - m) - log_sum  # of lse by its rounding; far from 0 that is much beside log_sum
    options: dict[str, Any] = {"reduction": "none", "axis": -1}
    s = activations.cross_entropy_backward(lost.exp(), x, column, lse, **options)
    return _put(s, column, (_at(x, column) - m - log_sum).exp())


def _softmax_backward(dy: Tensor, y: Tensor, group: Group) -> Tensor:
    """dx = y (dy − Σ y·dy), the sum over all ranks."""
    total = _total(_PRODUCT, group, dy, y)
    return activations.fused(dy, "linear", bias=-total, gate=y)


def _log_softmax(x: Tensor, column: Tensor, m: Tensor, log_sum: Tensor) -> Tensor:
    """y = x − lse, rounded once."""
    lse = m + log_sum
    y = activations.linear(x, 1.0, -lse.unsqueeze(-1))
    if x.dtype.itemsize > 2:  # what lse lost by its rounding; beside a half type's that is little
        y += ((lse - m) - log_sum).unsqueeze(-1)
    return y


def _log_softmax_backward(dy: Tensor, y: Tensor, group: Group) -> Tensor:
    """dx = dy − e^y Σ dy, the sum over all ranks. In pieces: kernels know but the sum of theirs."""
    total = _total(_SUM, group, dy).reshape(-1, 1)
    dx = torch.empty_like(y, memory_format=torch.contiguous_format)
    given, stored, found = _flat(dy), _flat(y), _flat(dx)
    for rows in _pieces(stored):
        e = stored[rows].to(total.dtype).exp()
        found[rows] = e.mul_(total[rows]).neg_().add_(given[rows])
    return dx


def _total(terms: Pass, group: Group, *arrays: Tensor) -> Tensor:
    """Over all ranks, with an axis of length 1 for the classes. The one collective of backward."""
    call, shape = resolve(dy=arrays[0]), (*arrays[0].shape[:-1], 1)
    dtype = arguments.compute_dtype(call.library.dtype(arrays[0]))
    return _gathered(operations.reduce(call, terms, arrays, shape, dtype), group).sum(0)


def _rows(name: str, x: Any, group: Group, sizes: Sequence[int] | None) -> Tensor:
    x = _shard("x", x)
    _place(group)
    if sizes is not None:
        _cut(x, group, sizes)
    step: Any = _Rows
    return cast(Tensor, step.apply(name, resolve(x=x).backend, group, x))


def softmax(x: Tensor, group: Group = None, *, sizes: Sequence[int] | None = None) -> Tensor:
    """s_i = e^x_i / Σ_k e^x_k over the classes of all ranks; ∂s_i/∂x_j = s_i (δ_ij − s_j).

    x: this rank's shard (…, C_r) of rows (…, C), C = Σ C_r; the other axes are the same on every
    rank. Shards may differ in C_r, and be empty. The result is this rank's shard of the softmax, of
    x's shape and dtype: that of `gpuact.softmax` of the shards put together, NaN where that is.
    group: a process group, by default the default one. sizes: C_r of each rank, in their order;
    nothing here depends on it, but what is given must fit.

    Float16, bfloat16 (computed in float32, rounded once), float32, float64; integers count as
    float32. Error: as that of `gpuact.softmax`. Collectives: one all_gather of two numbers a row.
    Backward dx = s (dy − Σ s·dy) sums over all ranks: one of one number a row, so it must run on
    all ranks or on none. dy is the gradient of what all ranks compute by this rank's shard, and no
    other rank's part is added.
    Raises TypeError (a dtype, or no tensor) and ValueError (a group without this rank, sizes).
    Source: Bridle 1990; cut along the vocabulary: Shoeybi et al., Megatron-LM (2019).

    >>> import torch, torch.distributed as dist
    >>> from gpuact.torch import distributed
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> distributed.softmax(torch.tensor([0.0, 0.0, -torch.inf]))
    tensor([0.5000, 0.5000, 0.0000])
    >>> dist.destroy_process_group()
    """
    return _rows("softmax", x, group, sizes)


def log_softmax(x: Tensor, group: Group = None, *, sizes: Sequence[int] | None = None) -> Tensor:
    """y_i = x_i − log Σ_k e^x_k over the classes of all ranks; ∂y_i/∂x_j = δ_ij − e^y_j.

    Exact where log(softmax(x)) underflows to −inf. Shapes, dtypes, group, sizes, collectives and
    what is raised are those of `softmax`; backward is dx = dy − e^y Σ dy, summed over all ranks.
    Error: as that of `gpuact.log_softmax`, in half types 2⁻²⁴·|lse| more.
    Source: Bridle 1990; cut along the vocabulary: Shoeybi et al., Megatron-LM (2019).

    >>> import torch, torch.distributed as dist
    >>> from gpuact.torch import distributed
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> distributed.log_softmax(torch.tensor([0.0, -1000.0]))
    tensor([    0., -1000.])
    >>> dist.destroy_process_group()
    """
    return _rows("log_softmax", x, group, sizes)


# -- cross-entropy --------------------------------------------------------------------------------
# With q = w·((1 − ε) Y + ε/C) of all classes the loss of a row is Σ q (m − z) + Σ q·log Σ e^(z − m)
# and dz = S (Σ q + 2 z_loss·lse) − q. So beside (m, log Σ) each rank gives Σ q and Σ q (m − z) of
# its own classes, which are moved to the row's m as the sums are.
#
# Forward reads the logits twice: m, then a kernel; three times where probabilities are smoothed.
# Backward of integer targets is one read and one write, by a kernel, and dlogits all its memory.
# With probabilities, or weights beside smoothing, the Σ q of all ranks is not that of a kernel's
# own columns, and a kernel has one factor a row, not two: then it is done in pieces, with
# temporaries of PIECE elements.


class _Labels(NamedTuple):
    """Of integer targets, a row each."""

    column: Tensor  # of this rank's shard: that of the class, or 0 where another rank has it
    here: Tensor  # whether this rank has it
    ignored: Tensor
    valid: Tensor  # a class of some rank; a host has looked already

    @classmethod
    def of(cls, target: Tensor, cut: _Cut, classes: int, ignore_index: int) -> _Labels:
        ignored, column = target == ignore_index, target - cut.first
        valid = (target >= 0) & (target < cut.classes) & ~ignored
        here = valid & (column >= 0) & (column < classes)
        return cls(torch.where(here, column, 0), here, ignored, valid)

    def weights(self, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Of the classes that this rank has, else 0."""
        if weight is None:
            return self.here.to(dtype)
        return torch.where(self.here, weight[self.column], 0.0)


def _statistics(
    cut: _Cut, loss: Loss, logits: Tensor, target: Tensor, weight: Tensor | None
) -> Tensor:
    """(5, …): m, log Σ e^(z − m), Σ q, Σ q (m − z), and the weight of the target, if it is here."""
    n, cap, smoothing = logits.shape[-1], loss.softcap, loss.label_smoothing
    dtype = _computed(logits)
    table = torch.zeros((5, *logits.shape[:-1]), dtype=dtype, device=logits.device)
    m, log_sum, mass, far, own = table.unbind(0)
    if not n:
        m.fill_(-math.inf)
        return table
    top, column = logits.max(-1)
    m.copy_(_capped(top.to(dtype), cap))
    options: dict[str, Any] = {"reduction": "none", "softcap": cap or None, "axis": -1}
    kernel = partial(activations.cross_entropy, logits, weight=weight, return_lse=True, **options)
    if loss.probabilities and smoothing < 1:
        value, lse = kernel(target)
        torch.sub(lse, m, out=log_sum)
        mass.copy_(_mass(target, weight, dtype)).mul_(1 - smoothing)
        far.copy_(value * (1 - smoothing) - mass * log_sum)
    elif not loss.probabilities:
        labels = _Labels.of(target, cut, n, loss.ignore_index)
        own.copy_(labels.weights(weight, dtype))
        torch.mul(own, 1 - smoothing, out=mass)
        distance = m - _at(logits, labels.column, cap)
        far.copy_(torch.where(mass == 0, 0.0, mass * distance))  # 0 times infinity would be NaN
    if smoothing:
        value, lse = kernel(column, label_smoothing=1.0)  # the mean over classes, whichever column
        torch.sub(lse, m, out=log_sum)
        share = cut.share(smoothing, dtype)
        whole = n if weight is None else weight.sum()
        mass += share * whole
        far += share * (value * n - whole * log_sum)
    elif not loss.probabilities:
        log_sum.copy_(_spread(logits, column, cap))
    nothing = m == -math.inf
    log_sum.masked_fill_(nothing, 0.0)
    far.masked_fill_(nothing, 0.0)
    return table


def _mass(p: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Σ w·p of this rank's classes. In pieces: of half types a CPU's sum makes a float32 copy."""
    flat, sums = _flat(p), p.new_empty(p.shape[:-1], dtype=dtype)
    for rows in _pieces(flat):
        piece = flat[rows] if weight is None else flat[rows].to(dtype) * weight
        torch.sum(piece, -1, dtype=dtype, out=sums.view(-1)[rows])
    return sums


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        cut: _Cut,
        loss: Loss,
        backend: str,
        weight: Tensor | None,
        logits: Tensor,
        target: Tensor,
    ) -> tuple[Tensor, Tensor]:
        table = _statistics(cut, loss, logits, target, weight)
        each_m, each_sum, each_mass, each_far, each_own = _gathered(table, cut.group).unbind(1)
        m, log_sum = _merged(each_m, each_sum)
        lse = m + log_sum
        # a shard of −inf alone is infinitely far, unless nothing there has a share
        moved = torch.where(each_mass == 0, 0.0, each_mass * (m - each_m))
        mass = each_mass.sum(0)
        losses = (each_far + moved).sum(0) + mass * log_sum
        if loss.z_loss:
            losses += loss.z_loss * lse * lse
        if not loss.probabilities:
            labels = _Labels.of(target, cut, logits.shape[-1], loss.ignore_index)
            losses = torch.where(labels.valid, losses, math.nan).masked_fill_(labels.ignored, 0.0)
        count = None  # what a mean divides by
        if loss.reduction == "mean" and loss.probabilities:
            count = torch.full((), losses.numel(), dtype=losses.dtype, device=losses.device)
        elif loss.reduction == "mean":
            count = each_own.sum(0).sum()
        ctx.save_for_backward(logits, target, weight, lse, mass, count)
        ctx.cut, ctx.loss, ctx.backend = cut, loss, backend
        ctx.set_materialize_grads(False)  # an output that nobody used comes back as None
        if loss.reduction == "none":
            return losses, lse
        return losses.sum() if count is None else losses.sum() / count, lse

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
        *_, wanted, target_wanted = ctx.needs_input_grad

        def work(dloss: Tensor | None, dlse: Tensor | None, *kept: Any) -> tuple[Any, Any]:
            *arrays, count = kept
            scale = dloss
            if dloss is not None:
                scale = (dloss if count is None else dloss / count).expand(arrays[3].shape)
            with using(ctx.backend):
                found = _Gradient(ctx.cut, ctx.loss, scale, dlse, *arrays)
                dtarget = target_wanted and scale is not None
                return found.by_logits() if wanted else None, found.by_target() if dtarget else None

        return (None,) * 4 + _once("cross_entropy", work, dloss, dlse, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _refusal("cross_entropy", "forward mode")


@dataclass(frozen=True)
class _Gradient:
    """The gradients of the losses of rows, and of their lse, on this rank."""

    cut: _Cut
    loss: Loss
    scale: Tensor | None  # the gradient that reaches the loss of each row
    dlse: Tensor | None
    logits: Tensor
    target: Tensor
    weight: Tensor | None
    lse: Tensor
    mass: Tensor  # Σ q of all ranks

    def by_logits(self) -> Tensor:
        """scale·(S (Σ q + 2 z_loss·lse) − q) + dlse·S, times the cap's slope."""
        loss, n = self.loss, self.logits.shape[-1]
        if not n:
            return torch.empty_like(self.logits)
        pull = self.mass + 2 * loss.z_loss * self.lse
        scale = torch.zeros_like(pull) if self.scale is None else self.scale
        if loss.probabilities:
            return self._in_pieces(scale, pull, self.target)
        labels = _Labels.of(self.target, self.cut, n, loss.ignore_index)
        if self.scale is not None:
            scale = torch.where(labels.valid, scale, math.nan)
        # An ignored row is 0 whatever its scale, for a mean over nothing is 0/0; not if lse has
        # a gradient, which ignores nothing.
        scale = scale.masked_fill(labels.ignored, 0.0)
        skipped = labels.ignored if self.dlse is None else torch.zeros_like(labels.ignored)
        column = torch.where(skipped, -1, labels.column)
        smoothing, cut, weight = loss.label_smoothing, self.cut, self.weight
        options: dict[str, Any] = {
            "ignore_index": -1,
            "reduction": "none",
            "softcap": loss.softcap or None,
            "axis": -1,
        }
        if smoothing and (self.dlse is not None or weight is not None or cut.unknown):
            dlogits = self._in_pieces(scale, pull, None, skipped)
            return self._with_class(dlogits, scale, pull, labels, skipped)
        if smoothing:
            pulled = scale  # a kernel's Σ q is 1, as that of all ranks is
            options |= {"label_smoothing": smoothing * n / cut.classes, "z_loss": loss.z_loss}
        else:
            pulled = scale * pull if self.dlse is None else scale * pull + self.dlse
        given = (pulled, self.logits, column, self.lse)
        dlogits = activations.cross_entropy_backward(*given, **options)
        return self._with_class(dlogits, scale, pull, labels, skipped)

    def _with_class(
        self, dlogits: Tensor, scale: Tensor, pull: Tensor, labels: _Labels, skipped: Tensor
    ) -> Tensor:
        """dlogits with one element of each row as it is to be. Where this rank has the class, that
        is its own; else the one whose class a kernel was told in its place. To add what is missing
        would not do: it cancels, and dlogits are rounded."""
        loss, column = self.loss, labels.column
        z = _at(self.logits, column, loss.softcap)
        q = labels.weights(self.weight, z.dtype) * (1 - loss.label_smoothing)
        if loss.label_smoothing:
            share = self.cut.share(loss.label_smoothing, z.dtype)
            q += share if self.weight is None else share * self.weight[column]
        s = (z - self.lse).exp()
        there = scale * (s * pull - q)
        if self.dlse is not None:
            there += self.dlse * s
        if loss.softcap:
            there *= _slope(z, loss.softcap)
        return _put(dlogits, column, there.masked_fill(skipped, 0.0))

    def _in_pieces(
        self, scale: Tensor, pull: Tensor, p: Tensor | None, skipped: Tensor | None = None
    ) -> Tensor:
        """For any q, without the class of an integer target; p: probabilities."""
        loss, dtype = self.loss, self.lse.dtype
        q: Any = self.cut.share(loss.label_smoothing, dtype)
        q = q if self.weight is None else q * self.weight
        factor: Any = 1 - loss.label_smoothing
        factor = factor if self.weight is None else factor * self.weight
        dlogits = torch.empty_like(self.logits, memory_format=torch.contiguous_format)
        z, p, out = _flat(self.logits), None if p is None else _flat(p), _flat(dlogits)
        lse, pull, scale = (a.reshape(-1, 1) for a in (self.lse, pull, scale))
        dlse = None if self.dlse is None else self.dlse.reshape(-1, 1)
        for rows in _pieces(z):
            capped = _capped(z[rows].to(dtype), loss.softcap)
            s = (capped - lse[rows]).exp_()
            d = s * pull[rows]
            d -= q if p is None else p[rows].to(dtype) * factor + q
            d *= scale[rows]
            if dlse is not None:
                d += s * dlse[rows]
            if loss.softcap:
                d *= _slope(capped, loss.softcap)
            if skipped is not None:
                d.masked_fill_(skipped.view(-1, 1)[rows], 0.0)
            out[rows] = d
        return dlogits

    def by_target(self) -> Tensor:
        """By probabilities the loss is linear: (1 − ε) w (lse − z), times scale."""
        loss, dtype = self.loss, self.lse.dtype
        factor: Any = 1 - loss.label_smoothing
        factor = factor if self.weight is None else factor * self.weight
        scale = cast(Tensor, self.scale).reshape(-1, 1)
        z, lse = _flat(self.logits), self.lse.reshape(-1, 1)
        dtarget = torch.empty_like(z)
        for rows in _pieces(z):
            distance = lse[rows] - _capped(z[rows].to(dtype), loss.softcap)
            dtarget[rows] = distance * factor * scale[rows]
        return dtarget.reshape(self.target.shape)


@overload
def cross_entropy(
    logits: Tensor,
    target: Tensor,
    group: Group = ...,
    *,
    weight: Tensor | None = ...,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    softcap: float | None = ...,
    return_lse: Literal[False] = ...,
    sizes: Sequence[int] | None = ...,
) -> Tensor: ...


@overload
def cross_entropy(
    logits: Tensor,
    target: Tensor,
    group: Group = ...,
    *,
    weight: Tensor | None = ...,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    softcap: float | None = ...,
    return_lse: bool,
    sizes: Sequence[int] | None = ...,
) -> Any: ...


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    group: Group = None,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_lse: bool = False,
    sizes: Sequence[int] | None = None,
) -> Any:
    """loss = −Σ_k w_k Y_k log S_k over the classes of all ranks; dZ = S Σ_k w_k Y_k − w ⊙ Y.

    logits: this rank's shard (…, C_r) of (…, C), C = Σ C_r; the other axes are the same on every
    rank. Shards may differ in C_r, and be empty. target: integer classes from 0 to C − 1 of logits'
    shape without the last axis, the same on every rank; or this rank's shard (…, C_r) of
    probabilities. weight: this rank's shard (C_r,) of the weights of the classes. The other options
    are those of `gpuact.cross_entropy`, and so is their meaning for the shards put together:
    label_smoothing spreads over all C classes, a mean divides by the weight of the targets that
    count wherever their classes are, an all −inf shard of a row that has more adds nothing.
    sizes: C_r of each rank, in their order; saves a collective where the caller knows.

    Returns the loss, or (loss, lse) with `return_lse`, whole and with the same bits on every rank;
    float32 for half types, else of logits' dtype. A class out of range raises IndexError on the
    CPU, on all ranks; on a GPU that row's loss and gradient are NaN, and the host looks only under
    GPUACT_CHECK=1.

    The loss is differentiable by logits and by probabilities, lse by logits: each rank gets the
    gradient of its shard. The loss is one and the same number on all ranks, so its gradient must be
    too (`loss.backward()` on each), and gradients of shards are not to be added up over this group.
    logits, target and a few numbers a row are kept.

    Collectives: one all_gather of five numbers a row, before it one of a number a rank unless sizes
    are given; in backward none. A GPU is never waited for, so with a group that can be captured
    this can be, in a CUDA graph (after a call to warm up). Backward takes S from lse as it is
    stored, as `gpuact.cross_entropy_backward` does; with label_smoothing or probabilities that
    rounding, u·|lse|, is an error of the loss too. label_smoothing on a GPU is faster with sizes.
    Raises TypeError (a dtype, or no tensors), ValueError (a shape or value, a group without this
    rank, sizes that do not fit), IndexError.
    Source: Shoeybi et al., Megatron-LM (2019); the options' are at `gpuact.cross_entropy`.

    >>> import torch, torch.distributed as dist
    >>> from gpuact.torch import distributed
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> shard = torch.zeros(2, 4, requires_grad=True)
    >>> loss = distributed.cross_entropy(shard, torch.tensor([0, 3]), sizes=[4])
    >>> loss.backward()
    >>> print(f"{loss.item():.4f}", shard.grad[0])
    1.3863 tensor([-0.3750,  0.1250,  0.1250,  0.1250])
    >>> dist.destroy_process_group()
    """
    return _loss(
        *(logits, target, weight, return_lse, partial(_cut, group=group, sizes=sizes)),
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
    )


def _loss(
    logits: Any,
    target: Any,
    weight: Any,
    return_lse: bool,
    find: Callable[[Tensor], _Cut],
    **options: Any,
) -> Any:
    """find: where the classes of these logits stand, asked once the arguments are known to do."""
    logits = _shard("logits", logits)
    for name, a in (("target", target), ("weight", weight)):
        if a is not None:
            _check_plain(name, a)
    c = _checked(logits, target, weight, options)
    cut = find(logits)
    if not (cut.unknown or cut.classes):
        raise ValueError("logits: no rank has a class, allowed is at least one class")
    if c.loss.probabilities:
        target = target.to(logits.dtype)
    else:
        target = c.target = c.call.library.classes(target)
        if c._checks_targets():
            c._check_targets(int(cut.classes))
    step: Any = _CrossEntropy
    weight = c.weight if logits.shape[-1] else None
    value, lse = step.apply(cut, c.loss, c.call.backend, weight, logits, target)
    return (value, lse) if return_lse else value


def _checked(logits: Tensor, target: Tensor, weight: Any, options: dict[str, Any]) -> Any:
    """What gpuact.cross_entropy refuses of a shard, in its words; not yet which classes the target
    has, and an empty shard in the place of one of one class."""
    if not (target.is_floating_point() or target.is_complex()):
        target = torch.zeros_like(target)
    if not logits.shape[-1]:
        if target.shape == logits.shape:
            target = target.new_zeros((*target.shape[:-1], 1))
        if weight is not None and tuple(weight.shape) == (0,):
            weight = weight.new_zeros(1)
        logits = logits.new_zeros((*logits.shape[:-1], 1))
    return calls.LossCall(logits, target, weight=weight, axis=-1, **options)


# -- DTensor --------------------------------------------------------------------------------------


def _class_dim(x: DTensor) -> int | None:
    """The mesh dimension along which the last axis is cut; None if there is none."""
    from torch.distributed.tensor import Replicate, Shard

    last = x.ndim - 1
    placements = enumerate(x.placements)
    found = [d for d, p in placements if isinstance(p, Shard) and p.dim % x.ndim == last]
    if not found:
        return None
    if len(found) > 1 or not all(type(p) in (Replicate, Shard) for p in x.placements):
        raise ValueError(
            f"placements: {x.placements} came, allowed are Shard({last}), the classes, once, and "
            "beside it Replicate() and Shard() of other dimensions"
        )
    return found[0]


def _cut_of(x: DTensor, dim: int) -> _Cut:
    """As Shard cuts, which is as torch.chunk does: no rank need ask another."""
    classes, mesh = x.shape[-1], x.device_mesh
    thick = -(-classes // mesh.size(dim))
    return _Cut(mesh.get_group(dim), min(classes, thick * mesh.get_local_rank(dim)), classes)


def _of_defaults(name: str, options: dict[str, Any], taken: Sequence[str]) -> dict[str, Any]:
    """The options that are taken here; the others must say what is the default."""
    parameters = inspect.signature(getattr(activations, name)).parameters
    for key, value in options.items():
        if key not in parameters:
            raise TypeError(f"{key}: came, which gpuact.{name} does not take")
        default = parameters[key].default
        same = value is default or (isinstance(value, str | Real) and value == default)
        if key not in taken and not same:
            raise ValueError(
                f"{key}: came with a DTensor whose classes are cut among ranks, allowed is the "
                f"default, {default!r}"
            )
    return {key: value for key, value in options.items() if key in taken}


# The options of a loss that go on as they are, and those that do not
_LOSS = {"ignore_index": -100, "label_smoothing": 0.0, "z_loss": 0.0, "softcap": None}
_TAKEN = (*_LOSS, "weight", "reduction", "return_lse")


def of_dtensor(name: str, x: Any, *args: Any, axis: Any = -1, **options: Any) -> Any:
    """gpuact's function of that name of a DTensor; NotImplemented unless its classes are cut.

    name: "softmax", "log_softmax" or "cross_entropy". x: a DTensor with Shard of the last dimension
    on exactly one dimension of its mesh, on the others Replicate or Shard of other dimensions;
    shards are as Shard cuts them, uneven or empty ones too. axis: the last (None, too, of a loss);
    else NotImplemented is returned, as for a DTensor that is not cut there. args: the target.

    softmax and log_softmax give a DTensor of x's placements. The loss of rows (reduction="none")
    and lse are DTensors of logits' placements, Replicate where the classes were cut. "mean" and
    "sum" are refused (ValueError) where rows are cut as well: a rank knows its own rows alone.
    target and weight: DTensors, brought to the placements that fit logits', or plain tensors, this
    rank's own. Gradients come back as DTensors of their argument's placements. Taken are the
    options of the functions above; others raise ValueError, unless they say what is the default.

    >>> import torch
    >>> from gpuact.torch import distributed
    >>> distributed.of_dtensor("softmax", torch.zeros(2))
    NotImplemented
    """
    if not hasattr(x, "to_local") or x.ndim == 0:
        return NotImplemented
    loss = name == "cross_entropy"
    if not (loss and axis is None) and arguments.row_axes(axis, x.ndim) != (x.ndim - 1,):
        return NotImplemented
    dim = _class_dim(x)
    if dim is None:
        return NotImplemented
    options = _of_defaults(name, options, _TAKEN if loss else ())
    if loss:
        return _loss_of_dtensor(x, dim, *args, **options)
    if args:
        raise TypeError(f"args: {len(args)} came, gpuact.{name} takes but x and options here")
    y = _rows(name, x.to_local(grad_placements=x.placements), x.device_mesh.get_group(dim), None)
    return _wrapped(y, x, x.placements, x.shape)


def _loss_of_dtensor(
    x: DTensor,
    dim: int,
    target: Any,
    *,
    weight: Any = None,
    reduction: Reduction = "mean",
    return_lse: bool = False,
    **options: Any,
) -> Any:
    from torch.distributed.tensor import Replicate, Shard

    mesh = x.device_mesh
    everywhere = [Replicate()] * mesh.ndim
    rows = [Replicate() if d == dim else p for d, p in enumerate(x.placements)]
    cut = [d for d, p in enumerate(rows) if type(p) is Shard and mesh.size(d) > 1]
    if cut and reduction != "none":
        raise ValueError(
            f"reduction: {reduction!r} came with logits whose rows are cut among ranks as well, "
            f"{x.placements}; allowed is 'none'"
        )
    whole = isinstance(target, Tensor) and target.is_floating_point()
    classes = [Shard(0) if d == dim else Replicate() for d in range(mesh.ndim)]
    value, lse = _loss(
        x.to_local(grad_placements=x.placements),
        _local(target, x, x.placements if whole else rows),
        _local(weight, x, classes),
        True,
        lambda _: _cut_of(x, dim),
        reduction=reduction,
        **_LOSS | options,
    )
    row_shape = x.shape[:-1]
    none = reduction == "none"
    loss = _wrapped(value, x, rows if none else everywhere, row_shape if none else ())
    return (loss, _wrapped(lse, x, rows, row_shape)) if return_lse else loss


def _local(a: Any, x: DTensor, placements: Any) -> Any:
    """This rank's part of what comes beside x; a plain tensor is that already."""
    if not hasattr(a, "to_local"):
        return a
    return a.redistribute(x.device_mesh, placements).to_local(grad_placements=placements)


def _wrapped(local: Tensor, x: DTensor, placements: Any, shape: Sequence[int]) -> DTensor:
    from torch.distributed.tensor import DTensor

    # Shards may be uneven, so the whole shape cannot be told from this rank's.
    stride = tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))
    size = torch.Size(shape)
    local = local.contiguous()
    return DTensor.from_local(local, x.device_mesh, placements, shape=size, stride=stride)
