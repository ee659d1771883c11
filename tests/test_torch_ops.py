"""PyTorch's operators over gpuact: derivatives of every order, torch.func, compilation, export.

One table of calls, `CALLS`, on which every way of calling is tried.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import harness

torch = harness.torch_or_skip()

import gpuact
from gpuact.catalogue import FUNCTIONS
from gpuact.torch import composite, losses, ops, registry

Tensor = torch.Tensor
DEVICE = "cpu"


@pytest.fixture(autouse=True, params=("cpu", pytest.param("cuda", marks=pytest.mark.cuda)))
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where leaves are made; on a GPU on a stream that nobody finds without asking."""
    monkeypatch.setitem(globals(), "DEVICE", request.param)
    if request.param == "cpu":
        yield
        return
    harness.needs_gpu("triton")
    with torch.cuda.stream(torch.cuda.Stream()):
        yield


def leaf(*shape: int, seed: int = 0, dtype: Any = torch.float64) -> Tensor:
    """Numbers of both signs, none near a kink."""
    x = np.random.default_rng(seed).uniform(0.2, 2.0, shape)
    x = np.where(np.arange(x.size).reshape(shape) % 3 == 1, -x, x)
    return here(torch.from_numpy(np.asarray(x)).to(dtype)).requires_grad_()


def here(x: Any) -> Any:
    return x.to(DEVICE) if isinstance(x, Tensor) else x


@dataclass(frozen=True)
class Case:
    """A call of tensors, their shapes, and the operators that it and its derivatives go through."""

    call: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    operators: tuple[str, ...]
    first_order: bool = False  # no further


def public(name: str) -> Callable[..., Any]:
    return lambda *x: getattr(gpuact, name)(*x)


TARGET = torch.tensor([2, 0, -100])
WEIGHT = torch.tensor([0.5, 1.5, 1.0, 2.0], dtype=torch.float64)


def loss(**options: Any) -> Callable[..., Any]:
    def call(logits: Tensor, *probabilities: Tensor) -> Any:
        target = probabilities[0] if probabilities else here(TARGET)
        return gpuact.cross_entropy(logits, target, **{k: here(v) for k, v in options.items()})

    return call


def loss_backward(**options: Any) -> Callable[..., Any]:
    def call(dloss: Tensor, logits: Tensor, lse: Tensor, *probabilities: Tensor) -> Any:
        target = probabilities[0] if probabilities else here(TARGET)
        given = {k: here(v) for k, v in options.items()}
        return gpuact.cross_entropy_backward(dloss, logits, target, lse, **given)

    return call


PLAIN = [f.name for f in FUNCTIONS.values() if f.kind == "elementwise" and not f.sums]
LEARN = [f.name for f in FUNCTIONS.values() if f.sums]
ALL_OPTIONS = {"weight": WEIGHT, "label_smoothing": 0.1, "z_loss": 0.3, "softcap": 2.0}
MASK = torch.tensor([[True, True, False, True]])
TWO = torch.tensor([1, 0])

CALLS: dict[str, Case] = {
    **{n: Case(public(n), ((2, 3),), (n, f"{n}_backward")) for n in PLAIN},
    **{
        f"{n}_backward": Case(public(f"{n}_backward"), ((2, 3), (2, 3)), (f"{n}_backward",))
        for n in PLAIN
    },
    "linear, numbers": Case(lambda x: gpuact.linear(x, -1.5, 0.5), ((2, 3),), ("linear",)),
    "linear": Case(gpuact.linear, ((2, 3), (3,), (2, 1)), ("linear", "linear_backward")),
    "linear, 0-d": Case(gpuact.linear, ((), (), ()), ("linear", "linear_backward")),
    "linear, a bias alone": Case(
        lambda x, b: gpuact.linear(x, 2.0, b), ((2, 3), (3,)), ("linear", "linear_backward")
    ),
    "linear_backward": Case(
        gpuact.linear_backward, ((2, 3), (2, 3), (3,), (2, 1)), ("linear_backward",)
    ),
    "linear_backward, numbers": Case(
        lambda dy, x: gpuact.linear_backward(dy, x, 2.0, 1.0),
        ((2, 3), (2, 3)),
        ("linear_backward",),
    ),
    "prelu, a number": Case(lambda x: gpuact.prelu(x, 3.0), ((2, 3),), ("prelu",)),
    "prelu, shared": Case(gpuact.prelu, ((2, 3), (1,)), ("prelu", "prelu_backward")),
    "prelu, channels": Case(gpuact.prelu, ((2, 3, 2), (3,)), ("prelu", "prelu_backward")),
    "prelu, channels last": Case(
        lambda x, w: gpuact.prelu(x, w, channel_axis=-1),
        ((2, 3, 2), (2,)),
        ("prelu", "prelu_backward"),
    ),
    "prelu_backward": Case(gpuact.prelu_backward, ((2, 3), (2, 3), (3,)), ("prelu_backward",)),
    "softmax": Case(gpuact.softmax, ((2, 4),), ("softmax", "softmax_backward")),
    "softmax, 0-d": Case(gpuact.softmax, ((),), ("softmax", "softmax_backward")),
    "softmax, two axes": Case(
        lambda x: gpuact.softmax(x, (0, 2)), ((2, 2, 2),), ("softmax", "softmax_backward")
    ),
    "softmax, scores": Case(
        lambda x: gpuact.softmax(x, scale=0.5, mask=here(MASK), causal=True),
        ((4, 4),),
        ("softmax", "softmax_backward"),
    ),
    "softmax, added mask": Case(
        lambda x: gpuact.softmax(x, scale=2.0, mask=here(WEIGHT)), ((2, 4),), ("softmax",)
    ),
    "softmax_backward": Case(
        lambda dy, y: gpuact.softmax_backward(dy, y, scale=0.5),
        ((2, 4), (2, 4)),
        ("softmax_backward",),
    ),
    "log_softmax": Case(gpuact.log_softmax, ((2, 4),), ("log_softmax", "log_softmax_backward")),
    "log_softmax, axis 0": Case(
        lambda x: gpuact.log_softmax(x, 0), ((3, 2),), ("log_softmax", "log_softmax_backward")
    ),
    "log_softmax_backward": Case(
        gpuact.log_softmax_backward, ((2, 4), (2, 4)), ("log_softmax_backward",)
    ),
    **{
        f"cross_entropy, {reduction}, {kind}{', all options' if more else ''}": Case(
            loss(reduction=reduction, **more),
            ((3, 4),) if kind == "classes" else ((3, 4), (3, 4)),
            ("cross_entropy", "cross_entropy_backward"),
        )
        for reduction in ("mean", "sum", "none")
        for kind in ("classes", "probabilities")
        for more in ({}, ALL_OPTIONS)
    },
    "cross_entropy and lse": Case(
        loss(return_lse=True, z_loss=0.2), ((3, 4),), ("cross_entropy", "cross_entropy_backward")
    ),
    "cross_entropy, axis 1": Case(
        lambda z: gpuact.cross_entropy(z, here(TARGET).expand(2, 3), axis=1, softcap=3.0),
        ((2, 4, 3),),
        ("cross_entropy", "cross_entropy_backward"),
    ),
    **{
        f"cross_entropy_backward, {reduction}, {kind}": Case(
            loss_backward(reduction=reduction, **ALL_OPTIONS),
            (
                (3,) if reduction == "none" else (),
                (3, 4),
                (3,),
                *([(3, 4)] if kind == "probabilities" else []),
            ),
            ("cross_entropy_backward",),
        )
        for reduction in ("mean", "none")
        for kind in ("classes", "probabilities")
    },
    **{
        f"fused, {name}": Case(
            lambda x, s, b, g, r, *w, name=name: gpuact.fused(
                x, name, scale=s, bias=b, gate=g, residual=r, weight=w[0] if w else None
            ),
            ((2, 4), (4,), (2, 4), (2, 4), (2, 4), *([(4,)] if name == "prelu" else [])),
            ("fused", "fused_backward"),
        )
        for name in ("linear", *PLAIN, "prelu")
    },
    "fused, dropout": Case(
        lambda x, g: gpuact.fused(
            x, "leaky_relu", negative_slope=0.3, gate=g, dropout=gpuact.Dropout(0.4, 5, 1)
        ),
        ((3, 4), (3, 4)),
        ("fused", "fused_backward"),
    ),
    "fused, bare": Case(lambda x: gpuact.fused(x, "tanh"), ((3, 4),), ("fused",)),
}


def leaves_of(case: Case, dtype: Any = torch.float64) -> list[Tensor]:
    return [leaf(*shape, seed=k, dtype=dtype) for k, shape in enumerate(case.shapes)]


def seen(work: Callable[[], Any]) -> list[str]:
    """The operators of the namespace that a dispatch mode sees."""
    from torch.utils._python_dispatch import TorchDispatchMode

    names: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            if func.namespace == registry.NAMESPACE:
                names.append(func._opname)
            return func(*args, **(kwargs or {}))

    with Mode():
        work()
    return names


def first(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def some(step: int, *of: Iterable[Any]) -> list[Any]:
    """Of a product, every so many-th; the rest is slow."""
    slow = pytest.mark.slow
    return [
        pytest.param(*each, marks=[slow] if k % step else [], id=", ".join(map(str, each)))
        for k, each in enumerate(product(*of))
    ]


# -- derivatives of every order -------------------------------------------------------------------


@pytest.mark.parametrize("name", some(4, CALLS))
def test_first_derivatives(name):
    """Reverse and forward mode, and both of a batch of vectors at once."""
    case = CALLS[name]
    assert torch.autograd.gradcheck(
        case.call,
        leaves_of(case),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=False,
    )


@pytest.mark.parametrize("name", some(4, CALLS))
def test_second_derivatives(name):
    """Reverse over reverse, forward over reverse, reverse over forward."""
    case = CALLS[name]
    leaves = leaves_of(case)
    assert torch.autograd.gradgradcheck(
        case.call, leaves, check_fwd_over_rev=True, check_batched_grad=True
    )
    tangents = tuple(leaf(*shape, seed=9 + k).detach() for k, shape in enumerate(case.shapes))

    def tangent(*leaves: Tensor) -> Any:
        return torch.func.jvp(case.call, leaves, tangents)[1]

    assert torch.autograd.gradcheck(tangent, leaves)


REFERENCES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "linear": (lambda x: gpuact.linear(x, 1.5, x[0]), lambda x: 1.5 * x + x[0]),
    "sigmoid": (gpuact.sigmoid, torch.sigmoid),
    "tanh": (gpuact.tanh, torch.tanh),
    "relu": (gpuact.relu, torch.relu),
    "leaky_relu": (
        lambda x: gpuact.leaky_relu(x, 0.3),
        lambda x: torch.nn.functional.leaky_relu(x, 0.3),
    ),
    "prelu": (
        lambda x: gpuact.prelu(x, x[0]),
        lambda x: torch.where(x > 0, x, x * x[0]),
    ),
    "softmax": (gpuact.softmax, lambda x: x.softmax(-1)),
    "log_softmax": (gpuact.log_softmax, lambda x: x.log_softmax(-1)),
    "cross_entropy": (
        lambda x: gpuact.cross_entropy(x, here(TWO), reduction="none"),
        lambda x: torch.nn.functional.cross_entropy(x, here(TWO), reduction="none"),
    ),
}


def test_references_of_every_function():
    assert set(REFERENCES) == set(FUNCTIONS)
    assert set(composite.COMPOSITES) == {*FUNCTIONS, "fused"}, "add it to gpuact/torch/composite.py"


def close(ours: Any, theirs: Any, digits: float = 1e-12) -> bool:
    ours, theirs = torch.utils._pytree.tree_leaves((ours, theirs))[:2]
    assert ours.shape == theirs.shape
    return torch.allclose(ours, theirs, rtol=digits, atol=digits)


def weighed(f: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """One number, to which every output adds in its own way."""

    def number(x: Tensor) -> Tensor:
        y = f(x)
        weights = torch.arange(1.0, 1 + y.numel(), dtype=y.dtype, device=y.device)
        return (y * weights.reshape(y.shape) * y).sum()

    return number


TRANSFORMS: dict[str, Callable[[Callable[..., Any], Tensor], Any]] = {
    "grad": lambda f, x: torch.func.grad(weighed(f))(x),
    "grad of grad": lambda f, x: torch.func.grad(
        lambda x: torch.func.grad(weighed(f))(x).sin().sum()
    )(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.cos(),))[1],
    "vjp": lambda f, x: (lambda y, back: back(y.cos())[0])(*torch.func.vjp(f, x)),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "jacfwd of jacfwd": lambda f, x: torch.func.jacfwd(torch.func.jacfwd(weighed(f)))(x),
    "hessian": lambda f, x: torch.func.hessian(weighed(f))(x),
    "jacrev of jacfwd": lambda f, x: torch.func.jacrev(torch.func.jacfwd(weighed(f)))(x),
    "third": lambda f, x: torch.func.grad(
        lambda x: torch.func.hessian(weighed(f))(x).square().sum()
    )(x),
    "vmap": lambda f, x: torch.func.vmap(f, in_dims=1)(torch.stack([x, x.cos(), -x], 1)),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(weighed(f)))(
        torch.stack([x, x.cos()])
    ),
    "vmap of hessian": lambda f, x: torch.func.vmap(torch.func.hessian(weighed(f)))(
        torch.stack([x, x.cos()])
    ),
    "vmap of vmap": lambda f, x: torch.func.vmap(torch.func.vmap(f))(
        torch.stack([x, x.cos(), -x, x.exp()]).reshape(2, 2, *x.shape)
    ),
    "functional.hessian": lambda f, x: torch.autograd.functional.hessian(weighed(f), x),
    "functional.jacobian, vectorized": lambda f, x: torch.autograd.functional.jacobian(
        f, x, vectorize=True
    ),
    "functional.jvp": lambda f, x: torch.autograd.functional.jvp(f, x, x.cos())[1],
}


@pytest.mark.filterwarnings("ignore:.*_vmap_internals:UserWarning")
@pytest.mark.parametrize(("name", "how"), some(4, REFERENCES, TRANSFORMS))
def test_transformations(name, how):
    """Every transformation gives of ours what it gives of PyTorch's own function."""
    ours, theirs = REFERENCES[name]
    x = leaf(2, 3, seed=3).detach()
    transform = TRANSFORMS[how]
    assert close(transform(ours, x), transform(theirs, x))


@pytest.mark.parametrize("name", REFERENCES)
def test_a_dual_tensor_has_its_tangent(name):
    """Which an operator alone would drop without a word."""
    ours, theirs = REFERENCES[name]
    x = leaf(2, 3, seed=3).detach()
    gpuact.relu(x), ours(x)  # what is known of such a call must not serve for this one
    with torch.autograd.forward_ad.dual_level():
        for f in (ours, theirs):
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x).cumsum(1))
            tangent = torch.autograd.forward_ad.unpack_dual(f(dual)).tangent
            assert tangent is not None and tangent.abs().max() > 0.1
            if f is ours:
                found = tangent
    assert close(found, tangent)


@pytest.mark.parametrize("reentrant", (False, True))
@pytest.mark.parametrize("name", REFERENCES)
def test_checkpointing(name, reentrant):
    from torch.utils.checkpoint import checkpoint

    f = weighed(REFERENCES[name][0])
    x = leaf(2, 3)
    checkpoint(f, x, use_reentrant=reentrant).backward()
    assert torch.equal(x.grad, torch.autograd.grad(f(x), x)[0])


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
@pytest.mark.parametrize("name", ("sigmoid", "prelu", "softmax", "log_softmax", "cross_entropy"))
def test_second_derivatives_in_lower_precision(name, dtype):
    """No worse than a rounding of what float64 gives for the same numbers."""
    ours, _ = REFERENCES[name]
    x = leaf(2, 3, seed=4, dtype=dtype).detach().requires_grad_()
    wide = x.detach().double().requires_grad_()
    found = []
    for at in (x, wide):
        (dx,) = torch.autograd.grad(ours(at).double().square().sum(), at, create_graph=True)
        (again,) = torch.autograd.grad(dx.double().square().sum(), at)
        found.append(again)
    assert found[0].dtype == dtype
    ulp = torch.finfo(dtype).eps
    assert torch.allclose(found[0].double(), found[1], rtol=16 * ulp, atol=16 * ulp)


def test_what_has_no_derivative_says_so():
    """In reverse and in forward mode, of every operator that is itself one and has no rule."""
    x = leaf(2, 3)
    calls: dict[str, Callable[[Tensor], Any]] = {
        **{
            f"{f.name}_derivative": lambda x, f=f: getattr(gpuact, f"{f.name}_derivative")(
                x, *([0.5] if f.name == "prelu" else [])
            )
            for f in FUNCTIONS.values()
            if f.slope is not None
        },
        "softmax_jacobian": gpuact.softmax_jacobian,
        "fused_backward": lambda x: gpuact.fused_backward(x, x, "tanh", scale=2.0)["x"],
        "cross_entropy_with_grad": lambda x: gpuact.cross_entropy_with_grad(x, here(TWO))[1],
    }
    for name, function in calls.items():
        message = f"^gpuact.{name} has no derivative of its own"
        with pytest.raises(NotImplementedError, match=message):
            function(x).sum().backward()
        with pytest.raises(NotImplementedError, match=message):
            torch.func.jvp(function, (x.detach(),), (x.detach(),))
        assert torch.equal(torch.func.vmap(function)(x.detach()[None].expand(2, 2, 3))[1],
                           function(x.detach()))  # fmt: skip


# -- what watches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_a_dispatch_mode_sees_operators(name):
    case = CALLS[name]
    leaves = [x.detach() for x in leaves_of(case)]
    case.call(*leaves)
    assert seen(lambda: case.call(*leaves))[0] == case.operators[0]
    leaves = leaves_of(case)

    def both() -> None:
        results = first(case.call(*leaves))
        torch.autograd.grad([y.sum() for y in results], leaves, allow_unused=True)

    assert set(seen(both)) >= set(case.operators)


@pytest.mark.parametrize("name", CALLS)
def test_tensors_without_memory(name):
    """Meta tensors and fake ones get the shape, dtype and strides that real ones would."""
    from torch._subclasses import FakeTensorMode

    case = CALLS[name]
    for order in (False, True):
        leaves = [x.detach().t().contiguous().t() if order and x.ndim == 2 else x.detach()
                  for x in leaves_of(case)]  # fmt: skip
        want = first(case.call(*leaves))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = first(case.call(*[mode.from_tensor(x) for x in leaves]))
        for fake, real in zip(fakes, want, strict=True):
            assert (fake.shape, fake.stride(), fake.dtype, fake.device) == (
                real.shape,
                real.stride(),
                real.dtype,
                real.device,
            )
    metas = first(REFERENCES["softmax"][0](torch.empty(3, 4, device="meta")))
    assert metas[0].is_meta and metas[0].shape == (3, 4)


def test_a_trace_holds_operators():
    """Of a call, of its gradient, and of what was made functional."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def operators_of(function: Callable[[Tensor], Any]) -> list[str]:
        graph = make_fx(function)(leaf(2, 3).detach()).graph
        named = [str(node.target) for node in graph.nodes]
        return [n.split(".")[1] for n in named if n.startswith("gpuact.")]

    def both(x: Tensor) -> Tensor:
        return gpuact.softmax(gpuact.relu(x))

    assert operators_of(both) == ["relu", "softmax"]
    assert operators_of(torch.func.functionalize(both)) == ["relu", "softmax"]
    backwards = ["relu", "softmax", "softmax_backward", "relu_backward"]
    assert operators_of(torch.func.grad(weighed(both))) == backwards


def test_a_subclass_keeps_its_type():
    class Mine(Tensor):
        pass

    x = leaf(2, 3).detach().as_subclass(Mine)
    assert type(gpuact.tanh(x)) is type(torch.tanh(x)) is Mine
    assert torch.equal(gpuact.relu(x).as_subclass(Tensor), torch.relu(x).as_subclass(Tensor))


# -- operators as PyTorch checks them -------------------------------------------------------------


def operator_calls(case: Case, permuted: bool) -> list[tuple[Any, tuple[Any, ...]]]:
    """Every operator that a call and its gradient go through, with its arguments."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found: dict[Any, tuple[Any, ...]] = {}

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            if func.namespace == registry.NAMESPACE:
                found.setdefault(func, args)
            return func(*args, **(kwargs or {}))

    leaves = leaves_of(case)
    if permuted:
        leaves = [x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
                  if x.ndim > 1 else x for x in leaves]  # fmt: skip
    with Mode():
        results = first(case.call(*leaves))
        torch.autograd.grad([y.sum() for y in results], leaves, allow_unused=True)
    return list(found.items())


LAYOUTS = ("contiguous", "permuted")


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own look, in torch 2.15
@pytest.mark.parametrize(("name", "layout"), some(7, CALLS, LAYOUTS))
def test_opcheck(name, layout):
    case = CALLS[name]
    pairs = operator_calls(case, layout == "permuted")
    assert {op._opname for op, _ in pairs} >= set(case.operators)
    for op, args in pairs:
        # a mask and a loss's weights are constants
        constants = {"mask", *(["weight"] if "cross_entropy" in op._opname else [])}
        learned = (
            set() if op._opname == "fused_backward" else {a.name for a in op._schema.arguments}
        )
        given = tuple(
            a.detach().clone().requires_grad_(told.name in learned - constants)
            if isinstance(a, Tensor) and a.is_floating_point()
            else a
            for a, told in zip(args, op._schema.arguments, strict=False)
        )
        torch.library.opcheck(op, given)


OTHERS: dict[str, tuple[Any, ...]] = {
    **{f"{n}_derivative": (leaf(2, 3).detach(),) for n in ("sigmoid", "tanh", "relu")},
    "leaky_relu_derivative": (leaf(2, 3).detach(), 0.5),
    "linear_derivative": (leaf(2, 3).detach(), leaf(1, 3).detach(), None, [0.0, 2.0]),
    "prelu_derivative": (leaf(2, 3).detach(), leaf(1, 3).detach(), [0.0]),
    "softmax_jacobian": (leaf(2, 3).detach(), 0),
    "cross_entropy_with_grad": (
        leaf(3, 4).detach(), TARGET, None, -100, "mean", 0.1, 0.0, 0.0, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_opcheck_of_what_is_not_differentiated(name):
    operator = getattr(torch.ops.gpuact, name).default
    torch.library.opcheck(operator, tuple(here(a) for a in OTHERS[name]))


def test_every_operator_is_checked():
    checked = {name for case in CALLS.values() for name in case.operators} | set(OTHERS)
    assert checked == {rule.name for rule, _ in ops.operators()}


# -- torch.compile and torch.export ---------------------------------------------------------------


def gradients_of(function: Callable[..., Any], leaves: list[Tensor]) -> tuple[Any, ...]:
    results = first(function(*leaves))
    number = sum((y * y).sum() for y in results)
    return (*results, *torch.autograd.grad(number, leaves, allow_unused=True))


def equal(found: tuple[Any, ...], want: tuple[Any, ...]) -> bool:
    return all(
        (a is None and b is None) or torch.allclose(a, b, rtol=1e-13, atol=1e-13, equal_nan=True)
        for a, b in zip(found, want, strict=True)
    )


@pytest.mark.parametrize(("name", "sizes"), some(7, CALLS, ("static", "dynamic")))
def test_compiled_calls(name, sizes):
    """In one graph, forward and backward, the same values; and nothing asks `using()`."""
    case = CALLS[name]
    torch._dynamo.reset()
    options: Any = {"fullgraph": True, "backend": "aot_eager", "dynamic": sizes == "dynamic"}
    compiled = torch.compile(case.call, **options)
    want = gradients_of(case.call, leaves_of(case))
    other = "cupy" if DEVICE == "cpu" else "numpy"
    with gpuact.using(other):  # which would refuse these tensors
        assert equal(gradients_of(compiled, leaves_of(case)), want)
        assert equal(gradients_of(compiled, leaves_of(case)), want)


@pytest.mark.parametrize("name", some(13, CALLS))
def test_inductor(name):
    case = CALLS[name]
    torch._dynamo.reset()

    def call(*leaves: Tensor) -> Any:
        return [y * 2 for y in first(case.call(*[x + 1 for x in leaves]))]

    compiled = torch.compile(call, fullgraph=True)
    want = gradients_of(lambda *x: tuple(call(*x)), leaves_of(case))
    assert equal(gradients_of(lambda *x: tuple(compiled(*x)), leaves_of(case)), want)


@pytest.mark.parametrize("name", REFERENCES)
def test_no_recompilation_for_another_length(name):
    from torch._dynamo.testing import CompileCounterWithBackend

    ours, _ = REFERENCES[name]
    for dynamic, more in ((True, 0), (None, 1)):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(ours, fullgraph=True, backend=counter, dynamic=dynamic)
        counts = []
        for n in (5, 7, 11, 64, 1000, 50257):
            x = here(torch.randn(2, n, dtype=torch.float64))
            assert close(compiled(x), ours(x))
            counts.append(counter.frame_count)
        assert counts[-1] <= counts[0] + more


class Network(torch.nn.Module):
    """Every function of the catalogue, in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.1, -0.2, 3.0, 0.5]).double())

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        y = gpuact.linear(x, self.weight, 0.5)
        y = gpuact.tanh(y) + gpuact.sigmoid(y) * gpuact.relu(y) + gpuact.leaky_relu(y)
        y = gpuact.prelu(y, self.weight)
        y = gpuact.fused(y, "prelu", weight=self.weight, bias=1.0, gate=x)
        loss, lse = gpuact.cross_entropy(y, target, return_lse=True, z_loss=0.1)
        return loss, lse, gpuact.softmax(y, 0), gpuact.log_softmax(y, 1)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # torch 2.10's
@pytest.mark.parametrize("strict", (False, True), ids=("non-strict", "strict"))
def test_export_round_trips(strict, tmp_path):
    network, x = Network().to(DEVICE), leaf(3, 4).detach()
    target = here(torch.tensor([0, 3, 1]))
    rows = torch.export.Dim("rows", min=2, max=64)
    exported = torch.export.export(
        network, (x, target), dynamic_shapes=({0: rows}, {0: rows}), strict=strict
    )
    names = {str(node.target) for node in exported.graph.nodes}
    assert {f"gpuact.{name}.default" for name in (*FUNCTIONS, "fused")} <= names
    torch.export.save(exported, tmp_path / "network.pt2")
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    others = leaf(5, 4, seed=1).detach(), here(torch.tensor([0, 1, 2, 3, 0]))
    for inputs in ((x, target), others):
        assert equal(loaded(*inputs), network(*inputs))


def test_compiled_out_and_options():
    """`out` is written; a backward that is called by name, a derivative and a Jacobian trace."""
    x = leaf(2, 3).detach()

    def call(x: Tensor, out: Tensor) -> tuple[Any, ...]:
        y = gpuact.softmax(x, dtype=torch.float32, out=out)
        return (
            y,
            gpuact.sigmoid_derivative(x),
            gpuact.softmax_jacobian(y),
            *gpuact.linear_backward(x, x, 2.0, x[0]),
            gpuact.softmax_backward(x, x, (0, 1), scale=2.0),
            *gpuact.cross_entropy_with_grad(x, here(TWO)),
            *gpuact.fused_backward(x, x, "tanh", scale=x[0], residual=x).values(),
        )

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    out, other = torch.zeros(2, 2, 3, device=DEVICE)
    assert equal(compiled(x, out), call(x, other))
    assert torch.equal(out, other) and out.abs().max() > 0


COMPILED_TRANSFORMS = ("grad", "jvp", "vmap", "hessian", "vmap of grad")


@pytest.mark.parametrize(("name", "how"), some(7, REFERENCES, COMPILED_TRANSFORMS))
def test_compiled_transformations(name, how):
    """In one graph, and with every tangent, of which an operator knows nothing."""
    ours, theirs = REFERENCES[name]
    x = leaf(2, 3, seed=3).detach()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: TRANSFORMS[how](ours, x), fullgraph=True, backend="aot_eager"
    )
    assert close(compiled(x), TRANSFORMS[how](theirs, x))


CORNER = torch.arange(16).reshape(4, 4) == 0
COMPOSED: dict[str, Callable[[Tensor], Any]] = {
    "softmax, scores": lambda x: gpuact.softmax(x, scale=0.5, mask=here(MASK), causal=True),
    "softmax, zero": lambda x: gpuact.softmax(x, mask=here(MASK) & (x > 0), all_masked="zero"),
    "softmax, two axes": lambda x: gpuact.softmax(x, (0, 1), mask=here(WEIGHT)),
    "softmax, +inf": lambda x: gpuact.softmax(torch.where(here(CORNER), torch.inf, x)),
    "log_softmax, -inf": lambda x: gpuact.log_softmax(torch.where(here(CORNER), -torch.inf, x)),
    "softmax, two axes, zero": lambda x: gpuact.softmax(x, None, mask=x > 9, all_masked="zero"),
    "cross_entropy": lambda x: gpuact.cross_entropy(
        x, here(torch.tensor([0, -100, 3, 1])), **{k: here(v) for k, v in ALL_OPTIONS.items()}
    ),
    "probabilities": lambda x: gpuact.cross_entropy(
        x, x.softmax(-1), **{k: here(v) for k, v in ALL_OPTIONS.items()}
    ),
    "fused": lambda x: gpuact.fused(x, "prelu", weight=x[0], scale=2.0, gate=x, residual=x),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_what_stands_for_an_operator_means_the_same(name):
    function = COMPOSED[name]
    x = leaf(4, 4, seed=3).detach()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: torch.func.jvp(function, (x,), (x.cos(),)), fullgraph=True, backend="aot_eager"
    )
    want = function(x), torch.func.jvp(function, (x,), (x.cos(),))[1]
    found = compiled(x)
    assert torch.allclose(found[0], want[0], rtol=1e-12, atol=1e-12, equal_nan=True)
    rows = slice(1, None) if "inf" in name else ...  # the first row's infinity has no tangent
    assert close(found[1][rows], want[1][rows])


def test_what_is_not_compiled_inside_a_transformation():
    for name, call in (
        ("sigmoid_derivative", gpuact.sigmoid_derivative),
        ("fused with dropout", lambda x: gpuact.fused(x, "relu", dropout=gpuact.Dropout(0.5, 1))),
    ):
        compiled = torch.compile(torch.func.vmap(call), backend="aot_eager", fullgraph=True)
        with pytest.raises(Exception, match=f"gpuact.{name} came inside a transformation"):
            compiled(leaf(2, 3).detach())


def test_dropout_of_another_offset_is_not_compiled_again():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()

    def call(x: Tensor, offset: int) -> Tensor:
        return gpuact.fused(x, "relu", dropout=gpuact.Dropout(0.5, 7, offset))

    compiled = torch.compile(call, fullgraph=True, backend=counter)
    x = leaf(4, 8).detach()
    for offset in (0, 1, 2, 3, 4, 5, 2**63 - 1):
        assert torch.equal(compiled(x, offset), call(x, offset))
    assert counter.frame_count <= 3  # a 0 and a 1 are constants to torch


def test_gradient_in_forward_is_compiled():
    target = here(TWO)

    def call(x: Tensor) -> Tensor:
        return gpuact.cross_entropy(x, target, gradient_in_forward=True)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    x, y = leaf(2, 3), leaf(2, 3)
    (3 * compiled(x)).backward()
    (3 * gpuact.cross_entropy(y, target)).backward()
    assert torch.allclose(x.grad, y.grad, rtol=1e-14)


# -- autocast -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", (False, True), ids=("eager", "compiled"))
@pytest.mark.parametrize("name", REFERENCES)
def test_autocast(name, compiled):
    """softmax and log_softmax in float32; losses are anyway; an activation keeps its dtype."""
    ours = REFERENCES[name][0]
    x = leaf(2, 3, dtype=torch.bfloat16)
    torch._dynamo.reset()
    function = torch.compile(ours, fullgraph=True, backend="aot_eager") if compiled else ours
    for _ in range(2):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            y = function(x)
        assert y.dtype == (
            torch.bfloat16 if FUNCTIONS[name].kind == "elementwise" else torch.float32
        )
        if FUNCTIONS[name].kind == "rows":
            assert torch.equal(y, ours(x.float()))
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert dx.dtype == torch.bfloat16
    assert ours(x).dtype == (torch.float32 if name == "cross_entropy" else torch.bfloat16)


# -- what a closer look found ---------------------------------------------------------------------

NAN_ROW = torch.tensor([[0.5, -1.0, 2.0], [torch.nan] * 3, [torch.inf, 0.0, 1.0]]).double()
IGNORED = torch.tensor([1, -100, -100])


def test_rows_that_are_ignored_have_no_derivative_of_any_order():
    """Whatever they hold; eager, through lse, compiled, and compiled inside a transformation."""
    target = here(IGNORED)

    def loss(x: Tensor) -> Tensor:
        return gpuact.cross_entropy(x, target, z_loss=0.1, label_smoothing=0.1)

    def first_of_two(x: Tensor) -> Tensor:
        return gpuact.cross_entropy(x, target, return_lse=True)[0]

    x = here(NAN_ROW).clone().requires_grad_()
    (dx,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (again,) = torch.autograd.grad(dx.sum(), x)
    compiled = torch.compile(first_of_two, fullgraph=True, backend="aot_eager")
    (traced,) = torch.autograd.grad(compiled(x), x)
    torch._dynamo.reset()
    inside = torch.compile(torch.func.grad(loss), fullgraph=True, backend="aot_eager")(x.detach())
    for found in (dx, again, traced, inside):
        assert (found[1:] == 0).all() and found[0].isfinite().all()
    assert close(inside, dx)


def test_a_mean_over_nothing_has_no_derivative_by_its_gradient():
    x, scale = leaf(2, 3), leaf()
    loss = gpuact.cross_entropy(x, here(torch.tensor([-100, -100]))) * scale
    (dx,) = torch.autograd.grad(loss, x, create_graph=True)
    assert torch.autograd.grad(dx.sum(), scale)[0] == 0


def test_classes_out_of_range_make_nothing_else_wrong():
    """Where nobody looks at them, their rows are NaN, and nothing is read out of bounds."""
    row = losses.Row(
        leaf(3, 4).detach(),
        here(torch.tensor([0, 9, -5])),
        None,
        leaf(3).detach(),
        losses.Options(-100, "none", 0.1, 0.0, 0.0, 1),
    )
    assert row.gradient[0].isfinite().all() and row.gradient[1:].isnan().all()


SCORES = torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(3, 4)
CONSTANTS: dict[str, Callable[[Tensor], Any]] = {
    "mask": lambda m: gpuact.softmax(here(SCORES), mask=m),
    "weight": lambda m: gpuact.cross_entropy(here(SCORES), here(TARGET), weight=m[0]),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_not_differentiated(name):
    """In any mode, at any level: never a silent zero."""
    function, m = CONSTANTS[name], leaf(3, 4).detach()
    with pytest.raises(ValueError, match=f"^{name}: came"):
        torch.func.jvp(function, (m,), (m,))
    with pytest.raises(ValueError, match=f"^{name}: came"):
        torch.func.grad(lambda m: torch.func.vmap(function)(m).sum())(torch.stack([m, m]))
    with pytest.raises(ValueError, match=f"^{name}: came"):
        function(m.requires_grad_())


def test_integers_count_as_float32_before_they_are_kept():
    x, scale = here(torch.tensor([[0, 1, 2], [2, 0, 1]])), leaf(3).detach()

    def ours(scale: Tensor) -> Tensor:
        return gpuact.linear(x, scale).sin().sum()

    want = torch.func.grad(lambda scale: (x * scale).sin().sum())(scale)
    found = torch.func.grad(ours)(scale), torch.func.jacfwd(ours)(scale)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    again = scale.clone().requires_grad_()
    compiled(again).backward()
    for each in (*found, again.grad):
        assert torch.allclose(each.double(), want, rtol=1e-6, atol=1e-6)
    vmapped = torch.compile(torch.func.vmap(gpuact.softmax), fullgraph=True, backend="aot_eager")
    assert torch.allclose(vmapped(x), gpuact.softmax(x)) and vmapped(x).dtype == torch.float32


WRONG: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "reduction": (
        lambda x: gpuact.cross_entropy(x, here(TARGET)[:2], reduction="foo"),
        ValueError,
        "reduction: 'foo' came",
    ),
    "ignore_index": (
        lambda x: gpuact.cross_entropy(x, here(TARGET)[:2], ignore_index=1.5),
        TypeError,
        "ignore_index: float came",
    ),
    "causal": (lambda x: gpuact.softmax(x[0], causal=True), ValueError, "causal: came with axis"),
    "mask": (
        lambda x: gpuact.softmax(x[0], mask=here(torch.ones(2, 3)) > 0),
        ValueError,
        "mask: shape",
    ),
    "dtype": (lambda x: gpuact.softmax(x, dtype=torch.int64), TypeError, "dtype: int64 came"),
    "dy": (lambda x: gpuact.prelu_backward(x[:1], x, 0.3), ValueError, "dy: shape"),
    "x": (lambda x: gpuact.fused(x > 0, "prelu", weight=0.5), TypeError, "x: dtype bool came"),
    "complex": (lambda x: gpuact.fused(x + 1j, "tanh"), TypeError, "x: dtype complex"),
    "slope": (
        lambda x: gpuact.fused(x, "relu", negative_slope="a"),
        TypeError,
        "negative_slope: str came",
    ),
    "scale": (lambda x: gpuact.linear(x, here(WEIGHT)), ValueError, "scale: shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_way_refuses_alike(name):
    function, error, message = WRONG[name]
    x = leaf(2, 3).detach()
    with pytest.raises(error, match=f"^{message}"):
        function(x)
    with pytest.raises(error, match=f"^{message}"):
        torch.func.jvp(function, (x,), (x,))
    with pytest.raises(error, match=f"^{message}"):
        torch.func.vmap(function)(x[None])
    torch._dynamo.reset()
    # torch 2.10's compiler ends where Python's own function raises, with its words
    with pytest.raises(Exception, match=f"{message}|cannot be interpreted as an integer"):
        torch.compile(function, fullgraph=True, backend="aot_eager")(x)


@pytest.mark.parametrize(
    ("name", "more"), [("softmax", (1.0, None, False, False)), ("log_softmax", ())]
)
def test_operators_know_autocast_by_themselves(name, more):
    """So that a trace holds the cast, and gives the same when run without autocast."""
    from torch.fx.experimental.proxy_tensor import make_fx

    operator, x = getattr(torch.ops.gpuact, name), leaf(2, 3, dtype=torch.bfloat16).detach()
    assert operator(x, [1], *more).dtype == torch.bfloat16
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        graph = make_fx(lambda x: operator(x, [1], *more))(x)
    assert torch.equal(graph(x), getattr(gpuact, name)(x.float()))


def test_a_trace_looks_at_no_target(monkeypatch):
    monkeypatch.setenv("GPUACT_CHECK", "1")
    x, target = leaf(3, 4).detach(), here(torch.tensor([0, 3, 1]))
    compiled = torch.compile(gpuact.cross_entropy, fullgraph=True, backend="aot_eager")
    assert close(compiled(x, target), gpuact.cross_entropy(x, target))
    meta = gpuact.cross_entropy(x.to("meta"), target.to("meta"))
    assert meta.is_meta and meta.shape == ()


def test_operators_are_batched_by_themselves():
    x = leaf(2, 3, 4).detach()
    softmax, relu = torch.ops.gpuact.softmax, torch.ops.gpuact.relu
    found = torch.func.vmap(lambda x: softmax(relu(x), [-1], 1.0, None, False, False))(x)
    assert torch.equal(found, gpuact.softmax(gpuact.relu(x)))


@pytest.mark.parametrize("name", REFERENCES)
def test_functionalized(name):
    """Alone, inside and outside of another transformation."""
    ours, theirs = REFERENCES[name]
    x, functionalize = leaf(2, 3).detach(), torch.func.functionalize
    want = torch.func.jvp(theirs, (x,), (x.cos(),))[1]
    assert close(functionalize(ours)(x), theirs(x))
    assert close(torch.func.jvp(functionalize(ours), (x,), (x.cos(),))[1], want)
    found = functionalize(lambda x: torch.func.jvp(ours, (x,), (x.cos(),))[1])(x)
    assert close(found, want)


def test_parameters_of_a_static_shape_beside_a_dynamic_one():
    weight = torch.nn.Parameter(here(torch.ones(4)))
    compiled = torch.compile(gpuact.linear, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (7, 9):
        x = here(torch.randn(rows, 4))
        assert torch.equal(compiled(x, weight), x)


def test_dtypes_beside_the_logits_do_not_widen_the_loss():
    x = leaf(3, 4, dtype=torch.float32).detach()
    weight = here(WEIGHT)

    def loss(x: Tensor, target: Tensor) -> Tensor:
        return gpuact.cross_entropy(x, target, weight=weight)

    target = here(torch.tensor([2, 0, 1], dtype=torch.uint8))
    want = loss(x, target)
    assert [y.dtype for y in torch.func.jvp(lambda x: loss(x, target), (x,), (x,))] == [x.dtype] * 2
    assert torch.equal(torch.func.vmap(loss)(x[None], target[None])[0], want)
    empty = torch.func.vmap(loss)(x[None][:0], target[None][:0])
    assert empty.shape == (0,)


@pytest.mark.slow
def test_numpy_arrays_in_compiled_code_are_numpys():
    compiled = torch.compile(lambda x: gpuact.relu(x.numpy()), backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about what it makes of NumPy
        assert isinstance(compiled(torch.tensor([-1.0, 2.0])), np.ndarray)


def test_the_first_call_of_a_process_may_be_compiled():
    """And the caller's code may change any dict before it."""
    code = """
import gpuact, torch
seen = {}
def f(x, w):
    seen["x"] = 1
    return gpuact.cross_entropy(gpuact.relu(gpuact.prelu(x, w)), torch.zeros(4, dtype=torch.int64))
f = torch.compile(f, fullgraph=True, backend="aot_eager")
x, w = torch.randn(4, 3), torch.rand(3)
assert torch.allclose(f(x, w), f._torchdynamo_orig_callable(x, w))
"""
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_what_is_exported_knows_nothing_of_using():
    class Relu(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return gpuact.relu(x)

    x = leaf(2, 3).detach()
    with gpuact.using("numpy" if DEVICE == "cpu" else "triton"):
        graph = torch.export.export(Relu(), (x,)).graph
    (node,) = (n for n in graph.nodes if "gpuact" in str(n.target))
    assert len(node.args) == 1
