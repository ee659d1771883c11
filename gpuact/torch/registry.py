"""PyTorch's operators of the namespace gpuact: what one consists of, and how one is called.

An operator is what torch.compile, torch.export, a dispatch mode or a subclass of Tensor sees of a
call. Beside each stands an autograd function that runs it, for what operators lack: the
transformations of torch.func, and forward mode, which would take the result of an operator for a
constant. A rule states both at once; backward is an operator too, with a rule of its own, so that
there is a derivative of every order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, cast

import torch

from .. import dispatch
from ..backends import SHAPES
from ..catalogue import Pass

Tensor = torch.Tensor
Args = tuple[Any, ...]
NAMESPACE = "gpuact"


class Rule:
    """An operator: its schema, what it computes, its derivatives. Arguments are positional; the
    last is the backend, "" for the one at home where the tensors are."""

    name: str
    schema: str  # without `str backend`
    autocast: torch.dtype | None = None  # what its inputs are cast to under torch.autocast
    inline: Pass | None = None  # what torch.compile may launch by itself

    def run(self, *args: Any) -> Any:
        """On plain tensors; on tensors without memory, too."""
        raise NotImplementedError

    def inlined(self, *args: Any) -> Args | None:
        """The operands of that pass, if it does for these arguments."""
        return args

    def delivered(self, result: Tensor) -> Any:
        """The operator's results, of that of the pass."""
        return result

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


def constant(name: str, learned: bool) -> None:
    if learned:
        raise ValueError(f"{name}: came to be differentiated by; a {name} is a constant")


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


def params_of(tensors: Sequence[Tensor | None], numbers: Sequence[float | None]) -> list[Any]:
    """Parameters in their order; the number of one that is a tensor counts for nothing."""
    return [n if t is None else t for t, n in zip(tensors, numbers, strict=True)]


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


_rules: dict[str, Rule] = {}
_operators: dict[str, Callable[..., Any]] = {}
_functions: dict[str, Any] = {}


def operators() -> list[tuple[Rule, Callable[..., Any]]]:
    """Every rule, and its operator."""
    return [(rule, _operators[name]) for name, rule in _rules.items()]


# Inside the rule that batches an operator, whose level PyTorch leaves on: operators alone do there.
_batching: ContextVar[bool] = ContextVar("gpuact_batching", default=False)


def call(name: str, *args: Any) -> Any:
    """An operator, or what does for it where a transformation or forward mode is on: its autograd
    function, or where no such function is taken, PyTorch's own operations."""
    if not _transformed():
        return _operators[name](*args)
    traced = torch.compiler.is_dynamo_compiling()
    functional = not traced and _functionalized()
    if not traced and (_batching.get() or functional == "alone"):
        return _operators[name](*args)
    if traced or functional:
        from .composite import composite

        return composite(name, *args)
    return _functions[name].apply(*args)


def _transformed() -> bool:
    level: int = torch.autograd.forward_ad._current_level
    return level >= 0 or torch._C._are_functorch_transforms_active()


def _functionalized() -> str:
    """Whether functionalize is on, which takes no autograd function: "alone", or among "others"."""
    from torch._C import _functorch

    stack: Any = _functorch.get_interpreter_stack() or ()
    if not any(each.key() == _functorch.TransformType.Functionalize for each in stack):
        return ""
    return "alone" if len(stack) == 1 else "others"


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
        token = _batching.set(True)
        try:
            return rule.vmap(info, (*in_dims, *[None] * missing), *args, *[""] * missing)
        finally:
            _batching.reset(token)

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
    if rule.inline is not None and find_spec("triton"):
        _register_inline(op, rule, rule.inline, count)
    _operators[rule.name] = getattr(getattr(torch.ops, NAMESPACE), rule.name).default
    _functions[rule.name] = _function(rule)
    _rules[rule.name] = rule


def _register_inline(op: Any, rule: Rule, kernel: Pass, count: int) -> None:
    """Let torch.compile see the kernel in the place of the operator, where one kernel does: what
    makes a `triton_op` of it."""
    from torch._library import triton as kernels_of
    from torch._subclasses.functional_tensor import FunctionalTensorMode

    from . import inline

    body, reads = inline.body(kernel), len(kernel.reads)

    def traced(mode: Any, func: Any, types: Any, args: Args, kwargs: Any) -> Any:
        from torch.export._trace import custom_triton_ops_decomposition_disabled  # takes a second

        at_home = not any(args[count:])
        if at_home and not custom_triton_ops_decomposition_disabled():
            operands = rule.inlined(*args[:count])
            with mode:
                if operands and inline.fits(operands[:reads], operands[reads:]):
                    return rule.delivered(body(*operands))
        return mode.__torch_dispatch__(func, types, args, kwargs)

    op.register_torch_dispatch(FunctionalTensorMode, traced)
    # The key of compiled code that PyTorch keeps: with it, the text of another kernel is another.
    found = getattr(kernels_of, "triton_ops_to_kernels", {})
    found[f"{NAMESPACE}::{rule.name}"] = [inline.kernel_of(kernel)]


def _below(jvp: Callable[..., Any], ctx: Any, tangents: Args) -> Any:
    """The tangents of a result, computed below the level of forward mode that asks for them.

    PyTorch turns forward mode off in here. What is computed on the level itself then has no tangent
    on any other, and a derivative of this one by forward mode would silently be 0.
    """
    if not torch._C._are_functorch_transforms_active():
        return jvp(ctx, *tangents)
    from torch._C._functorch import _unwrap_for_grad, _wrap_for_grad
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

    interpreter = retrieve_current_functorch_interpreter()
    level = interpreter.level()

    def each(change: Callable[..., Tensor], values: Any) -> tuple[Any, ...]:
        return tuple([change(v, level) if isinstance(v, Tensor) else v for v in values])

    below = SimpleNamespace(**{k: v for k, v in vars(ctx).items() if not k.startswith("_")})
    below.saved_tensors = each(_unwrap_for_grad, ctx.saved_tensors)
    tangents = each(_unwrap_for_grad, tangents)
    enabled: Any = torch.autograd.forward_ad._set_fwd_grad_enabled(True)
    with torch.enable_grad(), enabled, interpreter.lower():
        result = jvp(below, *tangents)
    if isinstance(result, Tensor):
        return _wrap_for_grad(result, level)
    return each(_wrap_for_grad, result)


def _function(rule: Rule) -> Any:
    class Step(torch.autograd.Function):
        setup_context = staticmethod(rule.keep)
        backward = staticmethod(rule.backward)
        vmap = staticmethod(rule.vmap)

        @staticmethod
        def forward(*args: Any) -> Any:
            return _operators[rule.name](*args)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            return _below(rule.jvp, ctx, tangents)

    Step.__name__ = Step.__qualname__ = rule.name
    return cast(Any, Step)
