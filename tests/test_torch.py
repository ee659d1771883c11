"""PyTorch's autograd over gpuact's functions: gradients, graphs, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests import harness

torch = harness.torch_or_skip()

import gpuact
from gpuact import dispatch, routes
from gpuact.catalogue import FUNCTIONS
from tests.bounds import DTYPES
from tests.libraries import TORCH, Library, libraries

on_torch = pytest.mark.parametrize("lib", TORCH, indirect=True)
Tensor = torch.Tensor


def leaf(lib: Library, shape: tuple[int, ...], seed: int = 0, dtype: str = "float64") -> Tensor:
    """A leaf that requires grad, of numbers of both signs, none near the kink."""
    x = np.random.default_rng(seed).uniform(0.2, 2.0, shape)
    x = np.where(np.arange(x.size).reshape(shape) % 3 == 1, -x, x)
    return lib.place(x.astype(DTYPES[dtype])).native.clone().requires_grad_()


def public(name: str) -> Callable[..., Any]:
    """A function, looked up when it is called."""
    return lambda *x: getattr(gpuact, name)(*x)


PLAIN = [f.name for f in FUNCTIONS.values() if f.kind == "elementwise" and not f.sums]

# name → function of leaves, shapes of the leaves; what each function and each parameter need
DIFFERENTIABLE: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    **{name: (public(name), ((2, 3),)) for name in PLAIN},
    "linear": (lambda x: gpuact.linear(x, -1.5, 0.5), ((2, 3),)),
    "linear of 0-d": (gpuact.linear, ((), (), ())),
    "linear, scale and bias 0-d": (gpuact.linear, ((2, 3), (), ())),
    "linear, per channel": (gpuact.linear, ((2, 3), (3,), (2, 1))),
    "linear, full": (gpuact.linear, ((2, 3), (2, 3), (2, 3))),
    "linear, bias alone": (lambda x, b: gpuact.linear(x, 2.0, b), ((2, 3), (1, 3))),
    "leaky_relu, negative slope": (lambda x: gpuact.leaky_relu(x, -2.0), ((2, 3),)),
    "prelu, a number": (lambda x: gpuact.prelu(x, 3.0), ((2, 3),)),
    "prelu, 0-d": (gpuact.prelu, ((2, 3), ())),
    "prelu, shared": (gpuact.prelu, ((2, 3), (1,))),
    "prelu, per channel": (gpuact.prelu, ((2, 3, 2), (3,))),
    "prelu, channels last": (
        lambda x, w: gpuact.prelu(x, w, channel_axis=-1),
        ((2, 3, 2), (2,)),
    ),
    "prelu, full": (gpuact.prelu, ((2, 3), (2, 3))),
    "prelu, broadcast": (gpuact.prelu, ((2, 3, 2), (2, 1, 2))),
    "softmax": (gpuact.softmax, ((2, 4),)),
    "softmax, axis 0": (lambda x: gpuact.softmax(x, 0), ((3, 2),)),
    "softmax, middle": (lambda x: gpuact.softmax(x, 1), ((2, 3, 2),)),
    "softmax, two axes": (lambda x: gpuact.softmax(x, (0, 2)), ((2, 2, 2),)),
    "softmax, all": (lambda x: gpuact.softmax(x, None), ((2, 3),)),
    "log_softmax": (gpuact.log_softmax, ((2, 4),)),
    "log_softmax, axis 0": (lambda x: gpuact.log_softmax(x, 0), ((3, 2),)),
    "log_softmax, two axes": (lambda x: gpuact.log_softmax(x, (0, 1)), ((2, 2, 2),)),
}


def loss_of(lib: Library, reduction: str, **options: Any) -> Callable[..., Any]:
    target = lib.place(np.array([2, 0, -100])).native
    weight = lib.place(np.array([0.5, 1.5, 1.0, 2.0])).native

    def loss(z: Tensor, *probabilities: Tensor) -> Any:
        given = probabilities[0] if probabilities else target
        return gpuact.cross_entropy(
            z, given, weight=weight, reduction=reduction, label_smoothing=0.1, **options
        )

    return loss


@on_torch
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradcheck(lib, name):
    function, shapes = DIFFERENTIABLE[name]
    leaves = [leaf(lib, shape, seed) for seed, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(function, leaves, check_grad_dtypes=True)


@on_torch
@pytest.mark.parametrize("more", [{}, {"z_loss": 0.3, "softcap": 2.0}], ids=["plain", "capped"])
@pytest.mark.parametrize("shapes", [((3, 4),), ((3, 4), (3, 4))], ids=["classes", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck_of_cross_entropy(lib, reduction, shapes, more):
    """Loss and lse; by the logits and by the probabilities."""
    leaves = [leaf(lib, shape, seed) for seed, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(loss_of(lib, reduction, **more), leaves)
    both = loss_of(lib, reduction, return_lse=True, **more)
    assert torch.autograd.gradcheck(both, leaves[:1])
    assert torch.autograd.gradcheck(lambda z: both(z)[1], leaves[:1])


@on_torch
def test_gradcheck_sees_every_function(lib):
    """The table above misses nothing of the catalogue, and gradcheck does fail on a wrong one."""
    names = {name.partition(",")[0].partition(" of")[0] for name in DIFFERENTIABLE}
    assert names | {"cross_entropy"} == set(FUNCTIONS)
    x = leaf(lib, (2, 3))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda x: gpuact.sigmoid(x) + x.detach() ** 2, (x,))


FUSED_ACTIVATIONS = [f.name for f in FUNCTIONS.values() if f.kind == "elementwise"]
# parameter → the shapes in which it is given
FUSED_SHAPES = {
    "scale": ((), (4,), (2, 4)),
    "bias": ((), (4,), (2, 4)),
    "weight": ((), (4,), (2, 4)),
}


@on_torch
@pytest.mark.parametrize("drop", (None, gpuact.Dropout(0.4, seed=5)), ids=("whole", "dropout"))
@pytest.mark.parametrize("activation", FUSED_ACTIVATIONS)
def test_gradcheck_of_fused(lib, activation, drop):
    """By every floating argument, one at a time and all at once."""
    learned = ["scale", "bias", *(["weight"] if activation == "prelu" else [])]
    for shapes in zip(*(FUSED_SHAPES[name] for name in learned), strict=True):
        names = ["x", *learned, "gate", "residual"]
        sizes = [(2, 4), *shapes, (2, 4), (2, 4)]
        values = [leaf(lib, size, seed) for seed, size in enumerate(sizes)]

        def call(*args: Tensor, names: list[str] = names) -> Tensor:
            x, *rest = args
            options = dict(zip(names[1:], rest, strict=True))
            return gpuact.fused(x, activation, dropout=drop, **options)

        if lib.family == "interpreter":  # a second for each: all at once, one entry a channel
            if shapes[0] == (4,):
                assert torch.autograd.gradcheck(call, values)
            continue
        assert torch.autograd.gradcheck(call, values)
        for k in range(len(values)):
            given = [v.detach() for v in values]

            def alone(v: Tensor, k: int = k, given: list[Tensor] = given) -> Tensor:
                return call(*given[:k], v, *given[k + 1 :])

            assert torch.autograd.gradcheck(alone, (values[k],))
    if activation != "prelu" and lib.family != "interpreter":
        bare = leaf(lib, (2, 4), 9)
        assert torch.autograd.gradcheck(lambda x: gpuact.fused(x, activation, scale=-1.5), (bare,))


# -- incoming gradients of any shape in memory ----------------------------------------------------


@on_torch
@pytest.mark.parametrize("activation", FUSED_ACTIVATIONS)
def test_what_is_dropped_leaves_derivatives_of_every_order_alone(lib, activation):
    values = [leaf(lib, shape, seed) for seed, shape in enumerate(((2, 8), (8,), (8,), (8,)))]
    drop, names = gpuact.Dropout(0.4, seed=5), ["scale", "bias"]
    names += ["weight"] if activation == "prelu" else []
    ones = gpuact.fused(torch.ones_like(values[0]), "linear", dropout=drop)
    assert (ones == 0).any()

    def derivatives(x: Tensor) -> list[Tensor]:
        leaves = [v.detach().requires_grad_() for v in (x, *values[1 : 1 + len(names)])]
        options = dict(zip(names, leaves[1:], strict=True))
        y = gpuact.fused(leaves[0], activation, dropout=drop, **options)
        first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(d.sin().sum() for d in first), leaves)
        return [*first, *second]

    for special in (torch.nan, torch.inf):
        wild = torch.where(ones == 0, special, values[0].detach())
        tame = torch.where(ones == 0, 1.0, values[0].detach())
        for a, b in zip(derivatives(wild), derivatives(tame), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@on_torch
@pytest.mark.parametrize("name", ["sigmoid", "prelu, per channel", "softmax, middle", "linear"])
def test_incoming_gradients_of_any_strides(lib, name):
    """Expanded (from sum), transposed, strided and misaligned dy give what a dense one gives."""
    function, (shape, *others) = DIFFERENTIABLE[name]
    shape = (4, 3, 6)
    leaves = [leaf(lib, s, seed) for seed, s in enumerate((shape, *others))]
    y = function(*leaves)
    device = y.device
    base = torch.linspace(-1, 2, 4 * 3 * 6 * 2 + 1, dtype=torch.float64, device=device)
    gradients = {
        "expanded": torch.full((), 0.5, dtype=torch.float64, device=device).expand(shape),
        "expanded rows": base[:6].expand(shape),
        "transposed": base[:72].reshape(6, 4, 3).permute(1, 2, 0),
        "strided": base[:144].reshape(4, 3, 12)[:, :, ::2],
        "misaligned": base[1:73].reshape(shape),
    }
    for what, dy in gradients.items():
        got = torch.autograd.grad(y, leaves, dy, retain_graph=True)
        want = torch.autograd.grad(y, leaves, dy.clone().contiguous(), retain_graph=True)
        for g, w in zip(got, want, strict=True):
            assert torch.equal(g, w) or torch.allclose(g, w, rtol=1e-15), what
    y.sum().backward()
    ones = torch.autograd.grad(function(*leaves), leaves, torch.ones(shape, device=device).double())
    for x, w in zip(leaves, ones, strict=True):
        assert torch.allclose(x.grad, w, rtol=1e-15)


@on_torch
def test_leaves_of_any_strides(lib):
    """A gradient has its leaf's shape whatever the leaf's strides; the leaf is not modified."""
    memory = leaf(lib, (6, 8)).detach()
    for view in (memory.t(), memory[::2, 1::3], memory[:1].expand(5, 8), memory[:, 1:]):
        x = view.detach().requires_grad_()
        before = x.detach().clone()
        for function in (gpuact.tanh, gpuact.softmax, lambda x: gpuact.prelu(x, 0.5)):
            y = function(x)
            dx = torch.autograd.grad(y, x, torch.ones_like(y))[0]
            dense = before.clone().requires_grad_()
            want = torch.autograd.grad(function(dense), dense, torch.ones_like(before))[0]
            assert dx.shape == x.shape
            assert torch.allclose(dx, want, rtol=1e-15, atol=1e-17)
        assert torch.equal(x.detach(), before)


@on_torch
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1)])
def test_small_tensors(lib, shape):
    x, scale = leaf(lib, shape), leaf(lib, (), 1)
    for y in (gpuact.linear(x, scale), gpuact.softmax(x), gpuact.prelu(x, scale), gpuact.relu(x)):
        assert y.shape == x.shape
        x.grad = scale.grad = None
        y.sum().backward()
        assert x.grad.shape == x.shape
    assert gpuact.sigmoid(x).requires_grad


@pytest.mark.every
@on_torch
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_have_the_dtype_of_what_they_belong_to(lib, dtype):
    x = leaf(lib, (3, 4), 0, dtype)
    scale, bias = leaf(lib, (4,), 1, "float32"), leaf(lib, (), 2, dtype)
    y = gpuact.linear(x, scale, bias)
    assert y.dtype == x.dtype
    y.backward(torch.ones_like(y))
    assert [x.grad.dtype, scale.grad.dtype, bias.grad.dtype] == [x.dtype, torch.float32, bias.dtype]
    want = scale.detach().double().expand(3, 4)
    assert torch.allclose(x.grad.double(), want, rtol=2**-8)
    assert torch.allclose(scale.grad.double(), x.detach().double().sum(0), rtol=1e-6)
    assert bias.grad.item() == 12.0
    z = leaf(lib, (3, 4), 3, dtype)
    loss, lse = gpuact.cross_entropy(
        z, lib.place(np.array([0, 1, 2])).native, return_lse=True, reduction="sum"
    )
    assert loss.dtype == lse.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    (loss + lse.sum()).backward()
    s = torch.softmax(z.detach().double(), -1)
    want = 2 * s - torch.eye(4, device=s.device)[:3]
    assert z.grad.dtype == z.dtype
    digits = {"float16": 10, "bfloat16": 7, "float32": 21, "float64": 50}[dtype]
    assert torch.allclose(z.grad.double(), want, rtol=0, atol=2.0**-digits)


# -- the graph ------------------------------------------------------------------------------------


@on_torch
def test_only_what_requires_grad_is_differentiated(lib):
    x, weight = leaf(lib, (2, 3)), leaf(lib, (3,), 1)
    plain = x.detach()
    y = gpuact.prelu(plain, weight)
    assert y.requires_grad
    y.sum().backward()
    assert plain.grad is None
    assert torch.allclose(weight.grad, torch.where(plain > 0, 0.0, plain).sum(0))
    y = gpuact.prelu(x, weight.detach())
    y.sum().backward()
    assert torch.allclose(x.grad, torch.where(plain > 0, 1.0, weight.detach()))
    assert not gpuact.prelu(plain, weight.detach()).requires_grad


@on_torch
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_graph_where_none_is_wanted(lib, mode):
    x, weight = leaf(lib, (2, 3)), leaf(lib, (3,), 1)
    target = lib.place(np.array([0, 1])).native
    with mode():
        results = [
            gpuact.sigmoid(x),
            gpuact.linear(x, weight, weight),
            gpuact.prelu(x, weight),
            gpuact.fused(x, "prelu", weight=weight, gate=x),
            gpuact.softmax(x),
            gpuact.cross_entropy(x, target),
            *gpuact.cross_entropy_with_grad(x, target),
            gpuact.sigmoid_derivative(x),
            gpuact.relu(x, out=torch.empty_like(x)),
        ]
    for y in results:
        assert not y.requires_grad
        assert y.grad_fn is None


@on_torch
def test_a_gradient_is_accumulated_and_a_graph_used_twice(lib):
    x = leaf(lib, (2, 3))
    y = gpuact.tanh(x)
    y.sum().backward(retain_graph=True)
    once = x.grad.clone()
    y.sum().backward()
    assert torch.equal(x.grad, 2 * once)
    x.grad = None
    (gpuact.tanh(x) + gpuact.tanh(x)).sum().backward()
    assert torch.equal(x.grad, 2 * once)


@on_torch
def test_a_stored_tensor_must_not_change_before_backward(lib):
    """sigmoid's backward reads y, leaky_relu's x if the slope is negative: changes are noticed."""
    x = leaf(lib, (2, 3))
    y = gpuact.sigmoid(x)
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    moved = x * 1
    y = gpuact.leaky_relu(moved, -0.5)
    with torch.no_grad():
        gpuact.relu(moved, out=moved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@on_torch
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("sigmoid", "y"),
        ("tanh", "y"),
        ("relu", "y"),
        ("leaky_relu", "y"),
        ("prelu", "x"),
        ("softmax", "y"),
        ("log_softmax", "y"),
    ],
)
def test_forward_keeps_one_array_only(lib, name, kept):
    y, stored = kept_by(
        lambda x: getattr(gpuact, name)(*((x, 0.5) if name == "prelu" else (x,))),
        x := leaf(lib, (4, 5)),
    )
    assert stored == [{"x": x, "y": y}[kept].data_ptr()]
    assert FUNCTIONS[name].keeps.startswith(kept)


@on_torch
def test_forward_keeps_nothing_that_backward_does_not_read(lib):
    x, scale = leaf(lib, (4, 5)), leaf(lib, (), 1)
    expected: dict[str, tuple[Callable[[Tensor], Tensor], list[Tensor]]] = {
        "numbers": (lambda x: gpuact.linear(x, 2.0, 1.0), []),
        "scale given": (lambda x: gpuact.linear(x, scale.detach()), [scale]),
        "scale learned": (lambda x: gpuact.linear(x, scale), [x, scale]),
        "y would not tell": (lambda x: gpuact.leaky_relu(x, -0.5), [x]),
        "residual alone": (
            lambda x: gpuact.fused(x.detach(), "relu", gate=x.detach(), residual=x),
            [],
        ),
        "identity": (lambda x: gpuact.fused(x, "linear", scale=2.0), []),
        "no mask": (lambda x: gpuact.fused(x, "tanh", dropout=gpuact.Dropout(0.5, 1)), [x]),
    }
    for case, (function, tensors) in expected.items():
        assert kept_by(function, x)[1] == [t.data_ptr() for t in tensors], case


def kept_by(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, list[int]]:
    """The result, and the addresses of the tensors that autograd keeps for it."""
    stored: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        stored.append(tensor.data_ptr())
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(x)
    return y, stored


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends that are asked for from now on: when chosen, and when launched."""
    ran: list[str] = []
    load = dispatch.load

    def spy(backend: str) -> Any:
        ran.append(backend)
        return load(backend)

    monkeypatch.setattr(dispatch, "load", spy)
    return ran


@pytest.mark.every
@on_torch
@pytest.mark.parametrize("elsewhere", ["numpy", "cupy", "triton"])
def test_backward_runs_where_forward_ran(lib, elsewhere, monkeypatch):
    """using() and GPUACT_BACKEND around backward change nothing: each could refuse the tensors."""
    x, weight = leaf(lib, (2, 3)), leaf(lib, (3,), 1)
    target = lib.place(np.array([0, 1])).native
    home = lib.backend or ("triton" if x.is_cuda else "numpy")
    monkeypatch.setattr(routes, "_routes", {})  # those learned before know their backend
    ran = spied(monkeypatch)
    losses = [
        gpuact.prelu(x, weight).sum(),
        gpuact.linear(x, weight, weight).sum(),
        gpuact.log_softmax(x).sum(),
        gpuact.cross_entropy(x, target),
        gpuact.cross_entropy(x, target, return_lse=True)[1].sum(),
    ]
    assert set(ran) == {home}
    ran.clear()
    monkeypatch.setattr(dispatch, "ENVIRONMENT", elsewhere)
    for loss in losses:
        with gpuact.using(elsewhere):
            loss.backward()
    assert set(ran) == {home}
    assert len(ran) >= len(losses)


@pytest.mark.parametrize("lib", libraries("torch-cpu"), indirect=True)
def test_numpy_tensors_stay_in_numpy_under_using(lib, monkeypatch):
    ran = spied(monkeypatch)
    x = leaf(lib, (2, 3))
    with gpuact.using("numpy"):
        y = gpuact.sigmoid(x)
    y.sum().backward()
    assert ran == ["numpy"] * 3  # chosen once, and launched forward and backward


# -- derivatives of derivatives -------------------------------------------------------------------

SECOND = {
    "sigmoid": gpuact.sigmoid,
    "tanh": gpuact.tanh,
    "relu": gpuact.relu,
    "leaky_relu": gpuact.leaky_relu,
    "prelu": lambda x: gpuact.prelu(x, x[0]),
    "linear": lambda x: gpuact.linear(x, x, x[0]),
    "softmax": lambda x: gpuact.softmax(x, scale=0.5),
    "log_softmax": gpuact.log_softmax,
    "cross_entropy": lambda x: gpuact.cross_entropy(x, x.detach().argmax(-1), z_loss=0.1),
    "fused": lambda x: gpuact.fused(x, "prelu", weight=x[0], gate=x),
}


@pytest.mark.parametrize(
    "lib", libraries("torch-cpu", "torch-cuda", "torch-cuda-on-cupy"), indirect=True
)
@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives(lib, name):
    """Of a graph recorded at the least cost; by a gradient penalty, and in forward mode."""
    x = leaf(lib, (3, 3))
    assert torch.autograd.gradgradcheck(SECOND[name], (x,), check_fwd_over_rev=True)
    y = SECOND[name](x)
    (gradient,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad.abs().max() > 0.005


# -- what is refused ------------------------------------------------------------------------------

UNDERIVABLE: dict[str, Callable[[Tensor], Any]] = {
    **{f"{name}_derivative": public(f"{name}_derivative") for name in PLAIN},
    "fused_backward": lambda x: gpuact.fused_backward(x, x, "tanh", scale=2.0)["scale"],
    "linear_derivative": lambda x: gpuact.linear_derivative(x, x),
    "prelu_derivative": lambda x: gpuact.prelu_derivative(x.detach(), x),
    "softmax_jacobian": gpuact.softmax_jacobian,
    "cross_entropy_with_grad": lambda x: gpuact.cross_entropy_with_grad(x, x.detach())[1],
}


@on_torch
@pytest.mark.parametrize("name", UNDERIVABLE)
def test_functions_that_are_derivatives_are_not_differentiated(lib, name):
    y = UNDERIVABLE[name](leaf(lib, (2, 3)))
    assert y.requires_grad, "a gradient would silently be dropped"
    with pytest.raises(NotImplementedError, match=f"^gpuact.{name} has no derivative of its own"):
        y.sum().backward()
    detached = UNDERIVABLE[name](leaf(lib, (2, 3)).detach())
    assert not detached.requires_grad
    assert torch.equal(detached, y.detach())


def test_every_derivative_is_in_the_table():
    ends = ("fused_backward", "_derivative", "_jacobian", "_with_grad")
    assert {name for name in gpuact.__all__ if name.endswith(ends)} == set(UNDERIVABLE)


@on_torch
def test_a_number_is_the_loss_gradient_of_any_library(lib):
    z, target = leaf(lib, (2, 3)).detach(), lib.place(np.array([0, 1])).native
    _, lse = gpuact.cross_entropy(z, target, return_lse=True)
    got = gpuact.cross_entropy_backward(2.0, z, target, lse)
    want = gpuact.cross_entropy_with_grad(z, target)[1]
    assert torch.allclose(got, 2 * want, rtol=1e-15)


@on_torch
def test_training_on_gpuact_alone_goes_downhill(lib):
    """A network of two layers, PReLU between: the loss falls to nothing on eight points."""
    rng = np.random.default_rng(1)
    x, target = lib.place(rng.standard_normal((8, 4))).native, lib.place(np.arange(8) % 3).native
    w1, w2 = leaf(lib, (4, 16), 1), leaf(lib, (16, 3), 2)
    slopes, bias = leaf(lib, (16,), 3), leaf(lib, (3,), 4)
    losses = []
    for _ in range(60):
        hidden = gpuact.prelu(x @ w1, slopes)
        logits = gpuact.linear(hidden @ w2, 1.0, bias)
        loss = gpuact.cross_entropy(logits, target)
        gradients = torch.autograd.grad(loss, (w1, w2, slopes, bias))
        with torch.no_grad():
            for parameter, gradient in zip((w1, w2, slopes, bias), gradients, strict=True):
                parameter -= 0.1 * gradient
        losses.append(loss.item())
    assert losses[-1] < 0.05 < 0.5 < losses[0]
