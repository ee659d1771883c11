"""PyTorch's operators of the namespace gpuact: what one consists of, and how one is called.

An operator is what torch.compile, torch.export, a dispatch mode or a subclass of Tensor sees of a
call. Beside each stands an autograd function that runs it, for what operators lack: the
transformations of torch.func, and forward mode, which would take the result of an operator for a
constant. A rule states both at once; backward is an operator too, with a rule of its own, so that
there is a derivative of every order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from .. import dispatch
from ..backends import SHAPES

Tensor = torch.Tensor
Args = tuple[Any, ...]
NAMESPACE = "gpuact"


class Rule:
    """An operator: its schema, what it computes, its derivatives. Arguments are positional; the
    last is the backend, "" for the one at home where the tensors are."""

    name: str
    schema: str  # without `str backend`
    autocast: torch.dtype | None = None  # what its inputs are cast to under torch.autocast

    def run(self, *args: Any) -> Any:
        """On plain tensors; on tensors without memory, too."""
        raise NotImplementedError

    def keep(self, ctx: Any, inputs: Args, output: Any) -> None:
        """What the derivatives read."""

    def backward(self, ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(self._refusal())

    def jvp(self, ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(self._refusal())

    def vmap(self, info: Any, in_dims: Args, *args: Any) -> tuple[Any, Any]:
        """Sample by sample, where nothing better is known."""
        results = []
        for k in range(info.batch_size):
            sample = [
                a.select(dim, k) if isinstance(dim, int) else a
                for a, dim in zip(args, in_dims, strict=True)
            ]
            results.append(call(self.name, *sample))
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple([torch.stack(each) for each in zip(*results, strict=True)])
        return stacked, (0,) * len(stacked)

    def _refusal(self) -> str:
        return (
            f"gpuact.{self.name} has no derivative of its own; detach its inputs, or differentiate "
            "the forward function"
        )


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """For backward and for forward mode alike."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def front(info: Any, x: Tensor | None, dim: Any, expand: bool = True) -> Any:
    """A tensor with its batch first, whether it had one or not; without `expand` of length 1."""
    if x is None:
        return None
    if dim is None:
        return x.expand(info.batch_size, *x.shape) if expand else x.unsqueeze(0)
    return x.movedim(dim, 0)


def wide(*tensors: Any) -> Any:
    """In the precision of a computation: half types in float32."""
    found = [t.float() if t is not None and t.dtype.itemsize == 2 else t for t in tensors]
    return found[0] if len(found) == 1 else found


def total(gradients: Sequence[Any]) -> Any:
    """The sum of what there is, None if there is nothing."""
    found = [g for g in gradients if g is not None]
    if not found:
        return None
    result = found[0]
    for g in found[1:]:
        result = result + g
    return result


_operators: dict[str, Callable[..., Any]] = {}
_functions: dict[str, Any] = {}


def call(name: str, *args: Any) -> Any:
    """An operator, through its autograd function where a transformation or forward mode is on."""
    if not torch.compiler.is_dynamo_compiling() and _transformed():
        return _functions[name].apply(*args)
    return _operators[name](*args)


def _transformed() -> bool:
    level: int = torch.autograd.forward_ad._current_level
    return level >= 0 or torch._C._are_functorch_transforms_active()


def register(rule: Rule) -> None:
    arguments, results = rule.schema.split(") -> ")
    count = arguments.count(",") + 1

    # PyTorch leaves out an argument that is its default, the backend.

    def run(*args: Any) -> Any:
        with dispatch.within(*args[count:]), torch.no_grad():
            return rule.run(*args[:count])

    def fake(*args: Any) -> Any:
        with dispatch.within(SHAPES), torch.no_grad():
            return rule.run(*args[:count])

    def vmap(info: Any, in_dims: Args, *args: Any) -> tuple[Any, Any]:
        missing = 1 + count - len(args)
        return rule.vmap(info, (*in_dims, *[None] * missing), *args, *[""] * missing)

    op: Any = torch.library.custom_op(
        f"{NAMESPACE}::{rule.name}",
        run,
        mutates_args=(),
        schema=f'{arguments}, str backend="") -> {results}',
    )
    op.register_fake(fake)
    op.register_autograd(rule.backward, setup_context=rule.keep)
    op.register_vmap(vmap)
    if rule.autocast is not None:
        for device in ("cpu", "cuda"):
            op.register_autocast(device, rule.autocast)
    _operators[rule.name] = getattr(getattr(torch.ops, NAMESPACE), rule.name).default
    _functions[rule.name] = _function(rule)


def _function(rule: Rule) -> Any:
    class Step(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return _operators[rule.name](*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
            rule.keep(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return rule.backward(ctx, *gradients)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            return rule.jvp(ctx, *tangents)

        @staticmethod
        def vmap(info: Any, in_dims: Args, *args: Any) -> Any:
            return rule.vmap(info, in_dims, *args)

    Step.__name__ = Step.__qualname__ = rule.name
    return cast(Any, Step)
