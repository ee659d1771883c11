"""What there is to call: every public name of gpuact, and of gpuact.torch functions and layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

import gpuact
from gpuact.catalogue import FUNCTIONS
from tests.test_functions import ELEMENTWISE

from .beside import (
    draw_asarray,
    draw_warmup,
    judge_asarray,
    judge_describe,
    judge_dropout,
    judge_warmup,
    use,
)
from .calls import FLOATING, Args, Call, torch_or_none, writable
from .elementwise import draw_elementwise, gradient_of_elementwise, judge_elementwise
from .fused import draw_fused, gradient_of_fused, judge_fused, judge_fused_backward
from .loss import draw_loss, gradient_of_loss, judge_loss
from .meaning import Reading, Unjudged
from .rows import (
    draw_jacobian,
    draw_rows,
    draw_rows_backward,
    gradient_of_rows,
    judge_jacobian,
    judge_rows,
    judge_rows_backward,
)
from .stats import (
    draw_of_outputs,
    draw_with_stats,
    judge_of_outputs,
    judge_with_stats,
    of_outputs,
    with_stats,
)

IN_TORCH = {"input": "x", "dim": "axis"}
SCORES = ("out", "scale", "mask", "causal", "all_masked")
Oracle = Callable[[Reading], Any]


@dataclass(frozen=True)
class Target:
    """A public name: how its arguments are made up, and what it must give for them."""

    name: str
    call: Callable[..., Any]
    draw: Callable[[Call], Args]
    judge: Oracle
    gradient: Callable[..., Any] | None = None
    weight: int = 4
    rename: Mapping[str, str] = field(default_factory=dict)  # its own names → gpuact's
    only: str = ""  # the library

    @property
    def parameters(self) -> list[str]:
        names = [
            n for n, p in signature(self.call).parameters.items() if p.kind is not p.VAR_KEYWORD
        ]
        return [n for n in names if not n.startswith("_")]


def targets_of_gpuact() -> Iterator[Target]:
    def target(name: str, draw: Any, judge: Any, gradient: Any = None, weight: int = 4) -> Target:
        return Target(name, getattr(gpuact, name), draw, judge, gradient, weight)

    for name, public in ELEMENTWISE.items():
        back = None
        if public.kernel is public.function.forward:
            back = partial(gradient_of_elementwise, public=ELEMENTWISE[f"{name}_backward"])
        made = partial(draw_elementwise, public=public), partial(judge_elementwise, public=public)
        yield target(name, *made, back)
    for name in ("softmax", "log_softmax"):
        back = partial(gradient_of_rows, name=name)
        yield target(name, partial(draw_rows, name=name), partial(judge_rows, name=name), back, 8)
        made = partial(draw_rows_backward, name=name), partial(judge_rows_backward, name=name)
        yield target(f"{name}_backward", *made, None, 5)
    yield target("softmax_jacobian", draw_jacobian, judge_jacobian)
    for name in ("cross_entropy", "cross_entropy_backward", "cross_entropy_with_grad"):
        back = gradient_of_loss if name == "cross_entropy" else None
        yield target(name, partial(draw_loss, what=name), partial(judge_loss, what=name), back, 8)
    yield target("fused", partial(draw_fused, backward=False), judge_fused, gradient_of_fused, 10)
    made = partial(draw_fused, backward=True), judge_fused_backward
    yield target("fused_backward", *made, None, 8)
    rest = with_stats, draw_with_stats, judge_with_stats, None, 5
    yield Target("activation_with_stats", *rest)
    yield Target("activation_stats", of_outputs, draw_of_outputs, judge_of_outputs, None, 3)
    yield target("asarray", draw_asarray, judge_asarray)
    yield target("warmup", draw_warmup, judge_warmup, None, 1)
    yield target("describe", lambda c: {"name": c.of([*FUNCTIONS])}, judge_describe, None, 1)
    made = (
        lambda c: {"backend": "numpy"},
        lambda r: "used" if r.raw("backend") == "numpy" else bad(),
    )
    yield Target("using", use, *made, None, 1)
    yield target("backends", lambda c: {}, lambda r: gpuact.backends(), None, 1)
    yield target(
        "Dropout",
        lambda c: {"p": c.of((0, 0.5, 1.0, np.float32(0.25))), "seed": c.below(2**62)},
        judge_dropout,
        None,
        1,
    )


def bad() -> Any:
    raise Unjudged("this value")


def targets_of_torch() -> Iterator[Target]:
    """gpuact.torch.functional, and the modules of gpuact.torch.nn by way of their arguments."""
    from gpuact.torch import functional, nn

    ours = {t.name: t for t in targets_of_gpuact()}

    def renamed(c: Call, of: str, loss: bool, drop: Sequence[str]) -> Args:
        args = ours[of].draw(c)
        if loss:
            args = first_axis(c, args)
        back = {"logits": "input"} if loss else {b: a for a, b in IN_TORCH.items()}
        return {back.get(n, n): v for n, v in args.items() if n not in drop}

    def module(kind: Any) -> Callable[..., Any]:
        takes = [n for n in signature(kind.__init__).parameters if n != "self"]

        def run(**args: Any) -> Any:
            options = {n: args.pop(n) for n in takes if n in args}
            if kind is nn.PReLU:
                weight = args.pop("weight")
                made = nn.PReLU(weight.numel())
                call = torch_or_none().func.functional_call
                return call(made, {"weight": weight}, kwargs=args)
            return kind(**options)(**args)

        names = [n for n in signature(kind.forward).parameters if n != "self"]
        run.__signature__ = _signature(names)  # type: ignore[attr-defined]
        return run

    table: dict[str, tuple[str, Sequence[str], Any]] = {
        # name → gpuact's, what is left out of its arguments, the module
        "sigmoid": ("sigmoid", ("out",), nn.Sigmoid),
        "tanh": ("tanh", ("out",), nn.Tanh),
        "relu": ("relu", ("out",), nn.ReLU),
        "leaky_relu": ("leaky_relu", ("out",), nn.LeakyReLU),
        "prelu": ("prelu", ("out",), nn.PReLU),
        "softmax": ("softmax", SCORES, nn.Softmax),
        "log_softmax": ("log_softmax", SCORES, nn.LogSoftmax),
        "cross_entropy": ("cross_entropy", ("return_lse", "axis"), nn.CrossEntropyLoss),
    }
    for name, (of, drop, kind) in table.items():
        loss = name == "cross_entropy"
        rename = {"input": "logits"} if loss else IN_TORCH
        draw = partial(of_torch, draw=partial(renamed, of=of, loss=loss, drop=drop), name=name)
        base = ours[of]
        rest = base.judge, base.gradient, 3
        if loss:
            rest = (
                partial(along_dim_1, judge=base.judge),
                partial(along_dim_1, judge=base.gradient),
                3,
            )
        function = getattr(functional, name)
        yield Target(f"functional.{name}", function, draw, *rest, rename, "torch")
        if name in ("softmax", "log_softmax"):
            draw = partial(without, draw=draw, names=("dtype",))
        yield Target(f"nn.{kind.__name__}", module(kind), draw, *rest, rename, "torch")
    for name in ("relu_", "leaky_relu_"):
        of = name[:-1]
        draw = partial(of_torch, draw=partial(renamed, of=of, loss=False, drop=("out",)), name=name)
        function = getattr(functional, name)
        rest = ours[of].judge, None, 2
        yield Target(f"functional.{name}", function, draw, *rest, IN_TORCH, "torch")


def along_dim_1(r: Reading, *more: Any, judge: Any) -> Any:
    """With the axis that torch's functions have."""
    axis = min(1, r.array("logits").ndim - 1)
    return judge(Reading({**r.args, "axis": axis}, {**r.seen, "axis": axis}), *more)


def _signature(names: Sequence[str]) -> Any:
    from inspect import Parameter, Signature

    return Signature([Parameter(n, Parameter.KEYWORD_ONLY) for n in names])


def without(c: Call, draw: Callable[[Call], Args], names: Sequence[str]) -> Args:
    return {n: v for n, v in draw(c).items() if n not in names}


def of_torch(c: Call, draw: Callable[[Call], Args], name: str) -> Args:
    """What torch's functions need beside: a dim, slopes along dim 1, `inplace` now and then."""
    args = draw(c)
    if "softmax" in name:
        dim = args.get("dim")
        if type(dim) is not int:
            args["dim"] = c.axis(args["input"].ndim)
    if name == "prelu":
        args.pop("channel_axis", None)
        shape = args["input"].shape
        n = shape[1] if len(shape) > 1 and c.chance(0.7) else 1
        args["weight"] = c.array(c.floats((n,), c.of(FLOATING)))
    if name in ("relu", "leaky_relu") and c.chance(0.2) and writable(args["input"]):
        args["inplace"] = True
    if name.endswith("_") and not writable(args["input"]):
        args["input"] = args["input"].clone()
    return args


def first_axis(c: Call, args: Args) -> Args:
    """Logits with their classes along dim 1, or 0 if there is no other."""
    k = args.pop("axis", -1)
    logits, target = args["logits"], args["target"]
    to = min(1, logits.ndim - 1)
    args["logits"] = logits.movedim(k, to)
    if tuple(target.shape) == tuple(logits.shape):
        args["target"] = target.movedim(k, to)
    return args
