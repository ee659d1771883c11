"""gpuact.torch.nn and gpuact.torch.functional are what torch.nn and torch.nn.functional are."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from inspect import signature
from itertools import product
from typing import Any

import numpy as np
import pytest

from tests import harness

torch = harness.torch_or_skip()

import gpuact
from gpuact import dispatch
from gpuact.catalogue import FUNCTIONS
from gpuact.torch import functional as F
from gpuact.torch import nn
from tests.bounds import DTYPES
from tests.libraries import TORCH, Library, layouts, libraries
from tests.test_import import loaded_by
from tests.test_torch import kept_by, leaf, spied

on_torch = pytest.mark.parametrize("lib", TORCH, indirect=True)
# What stands above the kernels is the same for Triton's interpreter and for CuPy
on_tensors = pytest.mark.parametrize("lib", libraries("torch-cpu", "torch-cuda"), indirect=True)
on_cpu = pytest.mark.parametrize("lib", libraries("torch-cpu"), indirect=True)
TF = torch.nn.functional
Tensor = torch.Tensor
NAN, INF = float("nan"), float("inf")


def outcome(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """What a function gives, and its gradients by the inputs that can have one."""
    inputs = tuple([x.detach().requires_grad_(x.is_floating_point()) for x in inputs])
    y = function(*inputs)
    leaves = [x for x in inputs if x.requires_grad]
    dy = torch.linspace(-1, 2, max(1, y.numel()), dtype=y.dtype, device=y.device)
    return [y, *torch.autograd.grad(y, leaves, dy[: y.numel()].reshape(y.shape))]


def agree(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor, **tolerance: float
) -> None:
    """Result and gradients: values, shapes, dtypes and devices."""
    tolerance = tolerance or {"rtol": 1e-12, "atol": 1e-14}
    got, want = outcome(ours, *inputs), outcome(theirs, *inputs)
    torch.testing.assert_close(got, want, equal_nan=True, **tolerance)


def tensor(lib: Library, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return leaf(lib, shape, seed).detach()


def test_importing_the_package_loads_no_torch() -> None:
    assert not loaded_by("import gpuact.torch") & {"torch", "triton"}


# -- functions ------------------------------------------------------------------------------------

NAMES = [name for name in FUNCTIONS if name != "linear"]


def test_every_function_is_there() -> None:
    assert set(F.__all__) == {*NAMES, "relu_", "leaky_relu_"}


@pytest.mark.parametrize("name", sorted({*NAMES} - {"prelu"}))
def test_signatures_are_those_of_torch(name: str) -> None:
    """Names, order and defaults; what is gpuact's own stands behind, by name alone."""
    ours, theirs = (signature(getattr(module, name)).parameters for module in (F, TF))
    shared = {k: (p.kind, p.default) for k, p in ours.items() if p.kind is not p.KEYWORD_ONLY}
    assert [*shared.items()] == [(k, (p.kind, p.default)) for k, p in theirs.items()]
    assert all(p.default in (0.0, None, False) for k, p in ours.items() if k not in shared)


def calls_of(x: Tensor) -> dict[str, tuple[str, Callable[[Any], Callable[..., Tensor]], Any]]:
    """name → what a module of functions is to compute of x, and what else it is differentiated by.

    relu's and the sigmoid's values at infinities are in it; so are rows all −inf.
    """
    found: dict[str, Any] = {
        "sigmoid": (lambda f: f.sigmoid, ()),
        "tanh": (lambda f: f.tanh, ()),
        "relu": (lambda f: f.relu, ()),
        "leaky_relu": (lambda f: f.leaky_relu, ()),
        "leaky_relu, negative": (lambda f: lambda x: f.leaky_relu(x, -2.0), ()),
        "prelu, shared": (lambda f: f.prelu, (x.new_full((1,), 0.3),)),
    }
    if x.ndim > 1:
        slopes = torch.linspace(-1, 2, x.shape[1], dtype=x.dtype, device=x.device)
        found["prelu, channels"] = (lambda f: f.prelu, (slopes,))
    for dim in {0, max(0, x.ndim - 1), -1}:
        found[f"softmax {dim}"] = (lambda f, dim=dim: lambda x: f.softmax(x, dim), ())
        found[f"log_softmax {dim}"] = (lambda f, dim=dim: lambda x: f.log_softmax(x, dim), ())
    return found


@on_tensors
@pytest.mark.parametrize("special", [(-INF, 0.0, -0.0, 700.0), (NAN, INF, -INF)], ids=str)
def test_functions_agree_on_any_shape_and_value(lib: Library, special: tuple[float, ...]) -> None:
    """0-d, empty, strided and misaligned tensors; NaN, infinities, rows that are all −inf."""
    for layout, x in layouts(lib, "float64", special=special):
        x = lib.place(x).native
        for name, (of, more) in calls_of(x).items():
            try:
                # a sum of many numbers of either sign
                agree(of(F), of(TF), x, *more, rtol=1e-12, atol=1e-10 if more else 1e-13)
            except AssertionError as error:
                raise AssertionError(f"{name} of {layout}: {error}") from error


@pytest.mark.every
@on_tensors
@pytest.mark.parametrize("dtype", DTYPES)
def test_functions_agree_in_every_dtype(lib: Library, dtype: str) -> None:
    """Against float64, from which a half type may be off by its own rounding, of y and of dx."""
    x = leaf(lib, (4, 5, 6), 0, dtype).detach()
    eps = torch.finfo(x.dtype).eps
    tolerance = {"rtol": 2 * eps, "atol": 2 * eps} if eps > 1e-4 else {}
    for of, more in calls_of(x).values():
        got = outcome(of(F), x, *more)
        want = outcome(of(TF), x.double(), *[w.double() for w in more])
        torch.testing.assert_close(got, [w.to(x.dtype) for w in want], **tolerance)


@on_tensors
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_loss_of_half_types_is_float32(lib: Library, dtype: str) -> None:
    z, t = leaf(lib, (4, 5), 0, dtype).detach(), torch.tensor([0, 4, 2, 1])
    t = t.to(z.device)
    loss, dz = outcome(lambda z: F.cross_entropy(z, t), z)
    want, dwide = outcome(lambda z: TF.cross_entropy(z, t), z.float())
    assert (loss.dtype, dz.dtype) == (torch.float32, z.dtype)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(dz, dwide.to(z.dtype))


@on_tensors
def test_integers(lib: Library) -> None:
    x = lib.place(np.array([[-3, 0, 2], [7, -1, 1]])).native
    assert torch.equal(F.relu(x), TF.relu(x))
    assert torch.equal(F.relu_(y := x.clone()), TF.relu(x)) and torch.equal(y, TF.relu(x))
    for name in ("sigmoid", "tanh"):
        torch.testing.assert_close(getattr(F, name)(x), getattr(TF, name)(x))
    for name in ("softmax", "log_softmax"):
        got = getattr(F, name)(x, 1, dtype=torch.float64)
        torch.testing.assert_close(got, getattr(TF, name)(x, 1, dtype=torch.float64))
        torch.testing.assert_close(getattr(F, name)(x, 1), got.float())


@on_tensors
def test_dtype_of_a_softmax(lib: Library) -> None:
    """x is cast first, and its gradient comes back in its own dtype."""
    x = leaf(lib, (3, 4), 0, "bfloat16").detach()
    for name in ("softmax", "log_softmax"):
        ours, theirs = getattr(F, name), getattr(TF, name)
        agree(
            lambda x, f=ours: f(x, dim=0, dtype=torch.float64),
            lambda x, f=theirs: f(x, dim=0, dtype=torch.float64),
            x,
        )


@on_tensors
@pytest.mark.parametrize("ndim", range(5))
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_a_softmax_without_dim_chooses_and_warns_as_torch_does(
    lib: Library, name: str, ndim: int
) -> None:
    x = tensor(lib, (2, 3, 4, 2)[:ndim])
    module = {"softmax": "Softmax", "log_softmax": "LogSoftmax"}[name]
    functions = [getattr(F, name), getattr(TF, name)]
    functions += [getattr(nn, module)(), getattr(torch.nn, module)()]
    results, told = [], []
    for function in functions:
        with pytest.warns(UserWarning, match=f"^Implicit dimension choice for {name} has") as seen:
            results.append(function(x))
        told.append([(str(w.message), w.filename, w.lineno) for w in seen])
    for y in results:
        torch.testing.assert_close(y, results[1], rtol=1e-12, atol=1e-14)
    # the same words, and of the same place: of a function the caller's
    assert told[:1] + told[2:3] == told[1:2] + told[3:]
    assert told[0][0][1] == __file__


@on_tensors
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_dtypes_under_autocast(lib: Library, dtype: str) -> None:
    """Softmaxes of half types are float32, as torch's are on CUDA; the others keep their dtype."""
    x, t = leaf(lib, (3, 4), 0, dtype).detach(), torch.tensor([0, 1, 3])
    t = t.to(x.device)
    wide = x.float() if dtype == "bfloat16" else x
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        for name in ("softmax", "log_softmax"):
            ours, theirs = getattr(F, name), getattr(TF, name)
            torch.testing.assert_close(ours(x, 1), theirs(wide, 1))
            if x.is_cuda:
                assert theirs(x, 1).dtype == wide.dtype
            half = ours(x, 1, dtype=torch.bfloat16)
            assert half.dtype == theirs(x, 1, dtype=torch.bfloat16).dtype == torch.bfloat16
        for name in ("sigmoid", "tanh", "relu", "leaky_relu"):
            torch.testing.assert_close(getattr(F, name)(x), getattr(TF, name)(x))
        slope = torch.full((1,), 0.25, device=x.device)
        assert F.prelu(x, slope).dtype == x.dtype
        if dtype == "float32":  # told in the module's docstring
            assert TF.prelu(x, slope).dtype == torch.bfloat16
        torch.testing.assert_close(F.cross_entropy(x, t), TF.cross_entropy(x, t))


# -- cross-entropy --------------------------------------------------------------------------------

SHAPES = [(5,), (4, 5), (3, 5, 4), (2, 5, 3, 2), (3, 5, 5)]


@on_tensors
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cross_entropy_agrees_in_every_option(
    lib: Library, shape: tuple[int, ...], reduction: str
) -> None:
    """Classes lie along dim 1, also where the last axis has their number."""
    z, weights = tensor(lib, shape), lib.place(np.array([0.5, 1.5, 0.0, 2.0, 1.0])).native
    probabilities = tensor(lib, shape, 1).softmax(-1 if len(shape) == 1 else 1)
    rows = (*shape[:1], *shape[2:]) if len(shape) > 1 else ()
    classes = lib.place(np.random.default_rng(2).integers(0, 5, rows)).native
    for weight, smoothing in product((None, weights), (0.0, 0.3)):
        options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
        for ignore_index in (-100, 1):
            target = torch.where(classes == 1, ignore_index, classes) if rows else classes
            with_index = {**options, "ignore_index": ignore_index}
            agree(
                lambda z, t=target, o=with_index: F.cross_entropy(z, t, **o),
                lambda z, t=target, o=with_index: TF.cross_entropy(z, t, **o),
                z,
            )
        agree(
            lambda z, p, o=options: F.cross_entropy(z, p, **o),
            lambda z, p, o=options: TF.cross_entropy(z, p, **o),
            z,
            probabilities,
        )


@on_tensors
def test_cross_entropy_of_nothing_and_of_what_is_no_number(lib: Library) -> None:
    for shape in ((0, 5), (0, 5, 3), (2, 5, 0)):
        z, t = tensor(lib, shape), lib.place(np.zeros((*shape[:1], *shape[2:]), np.int64)).native
        for reduction in ("mean", "sum", "none"):
            agree(
                lambda z, t=t, r=reduction: F.cross_entropy(z, t, reduction=r),
                lambda z, t=t, r=reduction: TF.cross_entropy(z, t, reduction=r),
                z,
            )
    rows = [[NAN, 0, 1], [INF, 0, 1], [-INF, 0, 1], [0, -INF, 1], [-INF] * 3, [1e308, -1e308, 0]]
    z = lib.place(np.array(rows)).native
    for k in range(3):
        t = torch.full((6,), k, device=z.device)
        agree(
            lambda z, t=t: F.cross_entropy(z, t, reduction="none"),
            lambda z, t=t: TF.cross_entropy(z, t, reduction="none"),
            z,
        )
    ignored = torch.full((6,), -100, device=z.device)
    got = outcome(lambda z: F.cross_entropy(z, ignored), z)
    assert got[0].isnan()
    assert (got[1] == 0).all()


@on_cpu
def test_where_a_class_without_a_share_differs_from_torch(lib: Library) -> None:
    """Told in the module's docstring: 0·inf is 0 here, NaN there."""
    z, y = torch.tensor([[0.0, -INF]]), torch.tensor([[1.0, 0.0]])
    assert F.cross_entropy(z, y) == 0
    assert TF.cross_entropy(z, y).isnan()


@on_cpu
def test_where_dtypes_are_mixed(lib: Library) -> None:
    """Told in the module's docstring, too."""
    z, wide = tensor(lib, (2, 3)).float(), torch.full((2, 3), 1 / 3, dtype=torch.float64)
    assert F.cross_entropy(z, wide).dtype == torch.float32
    assert TF.cross_entropy(z, wide).dtype == torch.float64
    torch.testing.assert_close(F.cross_entropy(z, wide), TF.cross_entropy(z, wide.float()))
    half, slopes = tensor(lib, (4, 3)).half(), torch.tensor([0.5, 0.25, 2.0])
    assert torch.equal(F.prelu(half, slopes), TF.prelu(half, slopes.half()))
    for t in (torch.uint8, torch.int16, torch.int32):
        assert F.cross_entropy(z, torch.tensor([0, 2], dtype=t)) == F.cross_entropy(
            z, torch.tensor([0, 2])
        )


@on_cpu
@pytest.mark.parametrize(
    ("size_average", "reduce"), [*product([None, True, False], repeat=2)][1:], ids=str
)
def test_older_words_for_reduction(
    lib: Library, size_average: bool | None, reduce: bool | None
) -> None:
    z, t = tensor(lib, (3, 4)), torch.tensor([0, 3, 1])
    told, values = [], []
    for functions, modules in ((F, nn), (TF, torch.nn)):
        with pytest.warns(UserWarning, match="^size_average and reduce args will be") as seen:
            values.append(functions.cross_entropy(z, t, None, size_average, -100, reduce))
            loss = modules.CrossEntropyLoss(None, size_average, -100, reduce)
        told.append([str(w.message) for w in seen])
        values.append(loss(z, t))
    assert told[0] == told[1]
    assert len(told[0]) == 2
    for value in values:
        torch.testing.assert_close(value, values[2], rtol=1e-12, atol=1e-14)


@on_tensors
def test_what_is_gpuacts_own_in_a_loss(lib: Library) -> None:
    z, t = tensor(lib, (3, 4, 2)), lib.place(np.array([[0, 1], [3, 3], [2, 0]])).native
    own = {"z_loss": 0.1, "softcap": 2.0}
    loss = nn.CrossEntropyLoss(label_smoothing=0.2, **own)
    agree(loss, lambda z, t: gpuact.cross_entropy(z, t, axis=1, label_smoothing=0.2, **own), z, t)
    at_once = nn.CrossEntropyLoss(gradient_in_forward=True)
    agree(at_once, torch.nn.CrossEntropyLoss(), z, t)
    y = at_once((x := z.clone().requires_grad_()), t)
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward came"):
        y.backward()
    assert x.grad is not None
    assert str(loss) == "CrossEntropyLoss(z_loss=0.1, softcap=2.0)"
    assert str(at_once) == "CrossEntropyLoss(gradient_in_forward=True)"
    again = pickle.loads(pickle.dumps(loss))
    assert (again.z_loss, again.softcap, again.label_smoothing) == (0.1, 2.0, 0.2)


# -- what is refused ------------------------------------------------------------------------------

X = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]], dtype=torch.float64)
T = torch.tensor([0, 2])
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "complex": (lambda: F.sigmoid(X.cfloat()), TypeError, "x: dtype complex64 came"),
    "bool": (lambda: F.relu(X > 0), TypeError, "x: dtype bool came, allowed are float16"),
    "bool in place": (lambda: F.relu_(X > 0), TypeError, "x: dtype bool came"),
    "integers": (lambda: F.leaky_relu(T), TypeError, "x: dtype int64 came, allowed are float16"),
    "integers in place": (lambda: F.leaky_relu_(T), TypeError, "x: dtype int64 came"),
    "slope": (
        lambda: F.leaky_relu((X.clone().requires_grad_()) * 1, -0.5, inplace=True),
        ValueError,
        "negative_slope: -0.5 came, in place and with a gradient to record; allowed are slopes "
        "above 0, or inplace=False",
    ),
    "slope of a module": (
        lambda: nn.LeakyReLU(-0.5, inplace=True)((X.clone().requires_grad_()) * 1),
        ValueError,
        "negative_slope: -0.5 came, in place",
    ),
    "in place or not": (
        lambda: F.relu(X, X > 0),
        TypeError,
        "inplace: Tensor came, allowed is True or False",
    ),
    "in place or not, of a slope": (
        lambda: F.leaky_relu(X, 0.5, X > 0),
        TypeError,
        "inplace: Tensor came, allowed is True or False",
    ),
    "shared places": (
        lambda: F.relu_(torch.zeros(3, 1).expand(3, 4)),
        ValueError,
        r"out: shape .* came with strides of .* bytes, by which elements share their places",
    ),
    "channels": (
        lambda: F.prelu(X, torch.ones(2)),
        ValueError,
        "weight: 2 elements came, axis 1 of x .* has 3 channels",
    ),
    "dim": (lambda: F.softmax(X, 2), IndexError, "axis: 2 came, an array of 2 dimensions allows"),
    "dim of a module": (lambda: nn.LogSoftmax(-3)(X), IndexError, "axis: -3 came"),
    "dtype": (lambda: F.softmax(X, 0, dtype=torch.int64), TypeError, "dtype: int64 came, allowed"),
    "0-d logits": (lambda: F.cross_entropy(X[0, 0], T), ValueError, "logits: a 0-d array came"),
    "class": (lambda: F.cross_entropy(X, T + 1), IndexError, "target: class 3 came, allowed are 0"),
    "target": (lambda: F.cross_entropy(X, T[:1]), ValueError, r"target: classes of shape \(1,\)"),
    "classes last": (
        lambda: F.cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)),
        ValueError,
        r"target: classes of shape \(2, 3\) came, .* along axis 1 allow \(2, 4\)",
    ),
    "weight": (lambda: F.cross_entropy(X, T, X[:, 0]), ValueError, r"weight: shape \(2,\) came"),
    "reduction": (
        lambda: F.cross_entropy(X, T, reduction="elementwise_mean"),
        ValueError,
        "reduction: 'elementwise_mean' came, allowed are 'mean', 'sum', 'none'",
    ),
    "smoothing": (
        lambda: nn.CrossEntropyLoss(label_smoothing=2)(X, T),
        ValueError,
        "label_smoothing: 2.0 came, allowed is 0 to 1",
    ),
    "softcap": (
        lambda: nn.CrossEntropyLoss(softcap=-1)(X, T),
        ValueError,
        "softcap: -1.0 came, allowed is a finite number above 0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_sentence(name: str) -> None:
    call, kind, words = REFUSED[name]
    with pytest.raises(kind, match=f"^{words}") as caught:
        call()
    assert "\n" not in str(caught.value)


# -- in place -------------------------------------------------------------------------------------

IN_PLACE: dict[str, tuple[Callable[[Any], Callable[[Tensor], Tensor]], Callable[..., Tensor]]] = {
    "relu_": (lambda f: f.relu_, TF.relu),
    "relu": (lambda f: lambda x: f.relu(x, inplace=True), TF.relu),
    "leaky_relu_": (lambda f: lambda x: f.leaky_relu_(x, 0.3), lambda x: TF.leaky_relu(x, 0.3)),
    "leaky_relu": (
        lambda f: lambda x: f.leaky_relu(x, 0.3, True),
        lambda x: TF.leaky_relu(x, 0.3),
    ),
    "leaky_relu, slope 2": (lambda f: lambda x: f.leaky_relu_(x, 2), lambda x: TF.leaky_relu(x, 2)),
}
in_place = pytest.mark.parametrize("name", IN_PLACE)


@on_torch
@in_place
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_in_place_writes_its_input(lib: Library, name: str, mode: Any) -> None:
    """Of any strides, whether or not autograd is there to see it, and says so to autograd."""
    ours, want = IN_PLACE[name][0](F), IN_PLACE[name][1]
    for layout, x in layouts(lib, "float32", special=[NAN, INF, -INF, 0.0]):
        if layout in ("broadcast", "wide"):
            continue
        placed = lib.place(x)
        with mode():
            t = placed.native
            expected, version = want(t), None if t.is_inference() else t._version
            assert ours(t) is t
        torch.testing.assert_close(t, expected, equal_nan=True, rtol=2e-7, atol=0)
        assert version is None or t._version > version
        assert np.array_equal(placed.numpy(), t.cpu().numpy(), equal_nan=True)


@on_torch
@in_place
def test_gradients_in_place(lib: Library, name: str) -> None:
    """In a chain, on dense and other tensors, and on views, whose base gets what it is due."""
    ours, theirs = (IN_PLACE[name][0](functions) for functions in (F, TF))
    x, w = tensor(lib, (3, 4)), tensor(lib, (4, 4), 1)

    def chain(act: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda x, w: act(act(x @ w) @ w)

    def transposed(act: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda x: act(x.t() * 1.5) * 2

    def view(act: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        def function(x: Tensor) -> Tensor:
            base = x * 2
            y = act(base[:, 1::2])
            return base * base + y.sum()

        return function

    def strided(act: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda x: act((x * 2).t()[1:]) * 3

    agree(chain(ours), chain(theirs), x, w)
    for make in (transposed, view, strided):
        agree(make(ours), make(theirs), x)
    hidden = leaf(lib, (2, 3)) * 2
    y = ours(hidden)
    assert y is hidden
    assert y._version > 0
    assert not y._is_view()


@on_tensors
def test_in_place_behind_a_convolution(lib: Library) -> None:
    x, w = tensor(lib, (2, 3, 5, 5)), tensor(lib, (4, 3, 3, 3), 1)
    for memory in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=memory)
        for act in IN_PLACE.values():
            agree(
                lambda x, w, a=act: a[0](F)(TF.conv2d(x, w)),
                lambda x, w, a=act: a[0](TF)(TF.conv2d(x, w)),
                x,
                w,
                rtol=1e-11,
                atol=1e-12,
            )


@on_tensors
@in_place
def test_in_place_keeps_nothing_but_its_result(lib: Library, name: str) -> None:
    hidden = leaf(lib, (4, 5)) * 1
    y, stored = kept_by(IN_PLACE[name][0](F), hidden)
    assert stored == [y.data_ptr()] == [hidden.data_ptr()]


def leaf_itself(act: Callable[[Tensor], Tensor], x: Tensor) -> None:
    act(x)


def view_of_a_leaf(act: Callable[[Tensor], Tensor], x: Tensor) -> None:
    act(x[1:])


def one_of_many_views(act: Callable[[Tensor], Tensor], x: Tensor) -> None:
    act((x * 1).unbind()[0])


def view_without_a_graph(act: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.no_grad():
        view = x[1:]
    act(view)


def broadcast(act: Callable[[Tensor], Tensor], x: Tensor) -> None:
    act((x * 1)[:, :1].expand(3, 4))


def stored_already(act: Callable[[Tensor], Tensor], x: Tensor) -> None:
    y = torch.sigmoid(x)
    z = y * 1
    act(y)
    z.sum().backward()
    y.sum().backward()


@on_tensors
@pytest.mark.parametrize(
    "misuse",
    [
        leaf_itself,
        view_of_a_leaf,
        one_of_many_views,
        view_without_a_graph,
        broadcast,
        stored_already,
    ],
)
def test_in_place_is_refused_in_torchs_own_words(lib: Library, misuse: Any) -> None:
    for ours, theirs in ((F.relu_, TF.relu_), (F.leaky_relu_, TF.leaky_relu_)):
        told = []
        for act in (ours, theirs):
            x = leaf(lib, (3, 4))
            before = x.detach().clone()
            with pytest.raises(RuntimeError) as caught:
                misuse(act, x)
            told.append(str(caught.value).partition(" is at version")[0])
            assert torch.equal(x, before)
            assert x._version == 0
        assert told[0] == told[1]


@on_torch
def test_a_slope_that_hides_the_sign_is_refused_before_anything_is_written(lib: Library) -> None:
    for slope in (-0.5, 0.0, NAN):
        hidden = leaf(lib, (3, 4)) * 1
        before = hidden.detach().clone()
        for of in (hidden, hidden[1:]):
            with pytest.raises(ValueError, match=r"^negative_slope: .* allowed are slopes above 0"):
                F.leaky_relu(of, slope, inplace=True)
        assert torch.equal(hidden.detach(), before)
    with torch.no_grad():  # nobody asks for a gradient
        want = TF.leaky_relu(hidden, -0.5)
        assert F.leaky_relu_(hidden, -0.5) is hidden
    assert torch.equal(hidden.detach(), want)
    plain = hidden.detach()
    assert torch.equal(F.leaky_relu_(plain, -2.0), TF.leaky_relu(want, -2.0))


@pytest.mark.every
@on_torch
def test_backward_in_place_runs_where_forward_ran(
    lib: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """using() and GPUACT_BACKEND around backward change nothing: each could refuse the tensors."""
    losses = [act[0](F)(leaf(lib, (2, 3)) * 1).sum() for act in IN_PLACE.values()]
    home = lib.backend or ("triton" if losses[0].is_cuda else "numpy")
    ran = spied(monkeypatch)
    for loss, elsewhere in product(losses, ("numpy", "cupy", "triton")):
        monkeypatch.setattr(dispatch, "ENVIRONMENT", elsewhere)
        with gpuact.using(elsewhere):
            loss.backward(retain_graph=True)
    assert set(ran) <= {home}


@on_tensors
@in_place
def test_in_place_under_every_kind_of_derivative(lib: Library, name: str) -> None:
    """Backward twice, forward mode, torch.func: as if it were not in place."""
    ours, theirs = (IN_PLACE[name][0](functions) for functions in (F, TF))
    x, dx = leaf(lib, (3, 4)), tensor(lib, (3, 4), 1)
    assert torch.autograd.gradcheck(lambda x: ours(x * 1) ** 2, (x,))
    assert torch.autograd.gradgradcheck(lambda x: ours(x * 1) ** 2, (x,))
    x = x.detach()
    for transform in (
        lambda f: torch.func.jvp(f, (x,), (dx,)),
        lambda f: torch.func.grad(lambda x: f(x).sum())(x),
        lambda f: torch.func.vmap(f)(x),
        lambda f: torch.func.hessian(lambda x: f(x).sum())(x),
    ):
        for step in (1, 2):  # a tensor of its own, and a view
            got, want = (
                transform(lambda x, a=act, s=step: a((x * 1)[..., ::s] if s > 1 else x * 1) ** 2)
                for act in (ours, theirs)
            )
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


# -- modules --------------------------------------------------------------------------------------

# how each is built, of either library, and the shapes of what it reads (integers: classes)
MODULES: dict[str, tuple[Callable[[Any], Any], tuple[tuple[int, ...], ...]]] = {
    "Sigmoid": (lambda m: m.Sigmoid(), ((3, 4),)),
    "Tanh": (lambda m: m.Tanh(), ((3, 4),)),
    "ReLU": (lambda m: m.ReLU(), ((3, 4),)),
    "ReLU in place": (lambda m: m.ReLU(inplace=True), ((3, 4),)),
    "LeakyReLU": (lambda m: m.LeakyReLU(), ((3, 4),)),
    "LeakyReLU in place": (lambda m: m.LeakyReLU(0.3, True), ((3, 4),)),
    "PReLU": (lambda m: m.PReLU(), ((3, 4),)),
    "PReLU of channels": (lambda m: m.PReLU(4, init=0.1, dtype=torch.float64), ((3, 4, 2, 2),)),
    "Softmax": (lambda m: m.Softmax(dim=1), ((3, 4, 2),)),
    "LogSoftmax": (lambda m: m.LogSoftmax(dim=0), ((3, 4),)),
    "CrossEntropyLoss": (lambda m: m.CrossEntropyLoss(), ((3, 4, 2), (3, 2))),
    "CrossEntropyLoss with options": (
        lambda m: m.CrossEntropyLoss(
            torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64),
            ignore_index=1,
            reduction="sum",
            label_smoothing=0.1,
        ),
        ((3, 4, 2), (3, 2)),
    ),
}
modules = pytest.mark.parametrize("name", MODULES)


def test_every_function_has_its_module() -> None:
    classes = {name.partition(" ")[0] for name in MODULES}
    assert len(classes) == len(NAMES)
    assert set(nn.__all__) == {*classes, "Converted", "convert"}


@on_tensors
@modules
def test_a_module_computes_what_its_namesake_does(lib: Library, name: str) -> None:
    make, (shape, *classes) = MODULES[name]
    ours, theirs = (make(module).double() for module in (nn, torch.nn))
    x, targets = tensor(lib, shape), [torch.ones(s, dtype=torch.int64) for s in classes]
    for t in targets:
        t.view(-1)[::2] = 3
    results = []
    for module in (ours, theirs):
        module.to(x.device)
        leaves = [x.clone().requires_grad_(), *module.parameters()]
        hidden = leaves[0] * 1  # changed, or not
        y = module(hidden, *[t.to(x.device) for t in targets])
        results.append([y, hidden, *torch.autograd.grad((y * y).sum(), leaves)])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


@modules
def test_a_module_looks_like_its_namesake(name: str) -> None:
    ours, theirs = (MODULES[name][0](module) for module in (nn, torch.nn))
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert getattr(ours, "__constants__", None) == getattr(theirs, "__constants__", None)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.load_state_dict(theirs.state_dict()) == theirs.load_state_dict(ours.state_dict())
    made, given = (signature(type(m)).parameters for m in (ours, theirs))
    shared = [(k, p.default) for k, p in made.items() if p.kind is not p.KEYWORD_ONLY]
    assert shared == [(k, p.default) for k, p in given.items()]
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(again) is type(ours)
        assert repr(again) == repr(ours)
        for k, value in ours.state_dict().items():
            assert torch.equal(again.state_dict()[k], value)


# -- convert --------------------------------------------------------------------------------------


class Everything(torch.nn.Module):
    """Each module that is replaced, in each kind of container, and one twice."""

    def __init__(self) -> None:
        super().__init__()
        shared = torch.nn.PReLU(init=0.2)
        self.body = torch.nn.Sequential(
            torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(3, 4, 1)),
            torch.nn.PReLU(4),
            torch.nn.Sequential(torch.nn.Conv1d(4, 4, 1), torch.nn.ReLU(inplace=True)),
            torch.nn.Conv1d(4, 5, 1),
            torch.nn.LeakyReLU(0.2, inplace=True),
            shared,
        )
        self.gates = torch.nn.ModuleDict({"s": torch.nn.Sigmoid(), "t": torch.nn.Tanh()})
        self.heads = torch.nn.ModuleList(
            [torch.nn.Softmax(dim=1), shared, torch.nn.LogSoftmax(1), torch.nn.Softmax2d()]
        )
        self.loss = torch.nn.CrossEntropyLoss(torch.arange(1.0, 6.0), label_smoothing=0.1)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        h = self.body(x)
        h = self.gates["s"](h) * self.gates["t"](h)
        h = self.heads[0](h) + self.heads[2](self.heads[1](h - 0.5))
        return self.loss(h + self.heads[3](h.unsqueeze(-1)).squeeze(-1), target)


REPLACED = {
    "body.1": "PReLU",
    "body.2.1": "ReLU",
    "body.4": "LeakyReLU",
    "body.5": "PReLU",
    "gates.s": "Sigmoid",
    "gates.t": "Tanh",
    "heads.0": "Softmax",
    "heads.1": "PReLU",
    "heads.2": "LogSoftmax",
    "loss": "CrossEntropyLoss",
}


def everything(lib: Library) -> tuple[Any, Tensor, Tensor]:
    torch.manual_seed(3)
    x, target = tensor(lib, (2, 3, 6)), lib.place(np.arange(12).reshape(2, 6) % 5).native
    return Everything().double().to(x.device), x, target


@on_tensors
def test_a_converted_model_computes_and_learns_the_same(lib: Library) -> None:
    model, x, target = everything(lib)
    converted = nn.convert(copy.deepcopy(model))
    assert not converted.left
    assert converted.replaced == {
        name: (getattr(torch.nn, kind), getattr(nn, kind)) for name, kind in REPLACED.items()
    }
    assert repr(converted.model) == repr(model)
    losses = []
    for m in (converted.model, model):
        optimizer = torch.optim.SGD(m.parameters(), 0.1, momentum=0.9)
        steps = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = m(x, target)
            loss.backward()
            optimizer.step()
            steps.append(loss)
        losses.append([*steps, *[p.grad for p in m.parameters()], *m.parameters()])
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12)
    assert losses[0][2] < losses[0][0]


@on_cpu
def test_convert_keeps_every_object(lib: Library) -> None:
    model, x, target = everything(lib)
    model.body[1].weight.requires_grad_(False)
    model.gates.eval()
    seen: list[str] = []
    model.heads[1].register_forward_hook(lambda *_: seen.append("hook"))
    before = model.heads[0].register_forward_pre_hook(lambda *_: seen.append("pre-hook"))
    model.gates["t"].register_full_backward_hook(lambda *_: seen.append("backward"))
    objects = [*model.modules(), *model.parameters(), *model.buffers()]
    flags = [m.training for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    got, replaced, left = nn.convert(model)
    assert got is model
    assert (len(replaced), left) == (len(REPLACED), {})
    assert all(
        a is b
        for a, b in zip(
            objects, [*model.modules(), *model.parameters(), *model.buffers()], strict=True
        )
    )
    assert [m.training for m in model.modules()] == flags
    assert not model.body[1].weight.requires_grad
    assert model.body[5] is model.heads[1]
    assert type(model.heads[3]) is torch.nn.Softmax2d
    model(x, target).backward()
    assert seen == ["hook", "pre-hook", "hook", "backward"]
    before.remove()
    model(x, target)
    assert seen.count("pre-hook") == 1
    for k, value in model.state_dict().items():
        assert torch.equal(value, state[k])


@on_cpu
def test_a_state_dict_fits_before_and_after(lib: Library) -> None:
    old, x, target = everything(lib)
    new = nn.convert(Everything().double()).model
    file = io.BytesIO()
    torch.save(old.state_dict(), file)
    file.seek(0)
    new.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(new(x, target), old(x, target), rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        for p in new.parameters():
            p.add_(0.1)
    old.load_state_dict(new.state_dict())
    torch.testing.assert_close(new(x, target), old(x, target), rtol=1e-12, atol=1e-14)
    for again in (copy.deepcopy(new.heads), pickle.loads(pickle.dumps(new.heads))):
        assert [type(m) for m in again] == [type(m) for m in new.heads]


@modules
def test_a_module_itself_is_converted(name: str) -> None:
    module = MODULES[name][0](torch.nn)
    old = type(module)
    converted = nn.convert(module)
    assert converted.model is module
    assert converted.replaced == {"": (old, getattr(nn, old.__name__))}
    assert type(module) is getattr(nn, old.__name__)
    assert nn.convert(module) == (module, {}, {})  # once is enough


class Mine(torch.nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return input * 2


class Doubled(torch.nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_what_may_compute_otherwise_is_left_and_told() -> None:
    patched = torch.nn.Tanh()
    patched.forward = lambda x: x  # type: ignore[method-assign]
    parametrized = torch.nn.PReLU()
    torch.nn.utils.parametrize.register_parametrization(parametrized, "weight", Doubled())
    model = torch.nn.ModuleDict(
        {
            "mine": Mine(),
            "patched": patched,
            "parametrized": parametrized,
            "slope": torch.nn.LeakyReLU(-0.5, inplace=True),
            "steep": torch.nn.LeakyReLU(-0.5),
            "flat": torch.nn.LeakyReLU(0.0),
            "other": torch.nn.GELU(),
            "six": torch.nn.ReLU6(),
            "ours": nn.ReLU(),
        }
    )
    kinds = [type(m) for m in model.values()]
    _, replaced, left = nn.convert(model)
    assert [*replaced] == ["steep", "flat"]
    assert left == {
        "mine": "tests.test_torch_nn.Mine is a subclass, which may compute otherwise",
        "patched": "its forward was replaced by one that may compute otherwise",
        "parametrized": "torch.nn.utils.parametrize.ParametrizedPReLU is a subclass, which may "
        "compute otherwise",
        "slope": "negative_slope=-0.5 with inplace=True has no gradient: what was above 0 is lost",
    }
    changed = [a is not type(b) for a, b in zip(kinds, model.values(), strict=True)]
    assert changed == [name in replaced for name in model]


@on_cpu
def test_a_transformer_is_converted_where_its_activation_is_a_module(lib: Library) -> None:
    """One that was given as a function is not found, as the docstring says."""
    function = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True).double()
    assert nn.convert(function).replaced == {}
    layer = torch.nn.TransformerEncoderLayer(
        8, 2, 16, 0.0, activation=torch.nn.ReLU(), batch_first=True
    ).double()
    layer.load_state_dict(function.state_dict())
    assert [*nn.convert(layer).replaced] == ["activation"]
    x = tensor(lib, (2, 5, 8))
    agree(layer, function, x, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), function.eval()(x), rtol=1e-10, atol=1e-12)


# -- what else looks at a call --------------------------------------------------------------------


@on_cpu
def test_torch_fx_sees_the_functions(lib: Library) -> None:
    model, x, target = everything(lib)
    nn.convert(model)
    traced = torch.fx.symbolic_trace(model)
    called = {node.target for node in traced.graph.nodes if node.op == "call_function"}
    assert {getattr(F, name) for name in NAMES} <= called
    torch.testing.assert_close(traced(x, target), model(x, target))


@on_cpu
def test_a_subclass_of_tensor_sees_the_functions(lib: Library) -> None:
    """With every argument, and the results are of its type."""
    seen: dict[Any, tuple[Any, Any]] = {}

    class Told(torch.Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen[func] = args[1:], kwargs or {}
            return super().__torch_function__(func, types, args, kwargs or {})

    plain, slopes, target = tensor(lib, (2, 3), 3), torch.tensor(0.5), torch.tensor([0, 1])
    assert (plain < 0).any()
    loss = {
        "weight": torch.ones(3),
        "size_average": None,
        "ignore_index": -1,
        "reduce": None,
        "reduction": "sum",
        "label_smoothing": 0.1,
        "z_loss": 0.2,
        "softcap": 3.0,
        "gradient_in_forward": True,
    }
    rows = {"dim": 1, "_stacklevel": 2, "dtype": torch.float32}
    expected = {
        F.sigmoid: ((), {}),
        F.tanh: ((), {}),
        F.relu: ((), {"inplace": True}),
        F.relu_: ((), {}),
        F.leaky_relu: ((), {"negative_slope": 0.5, "inplace": True}),
        F.leaky_relu_: ((0.5,), {}),
        F.prelu: ((slopes,), {}),
        F.softmax: ((), rows),
        F.log_softmax: ((), rows),
        F.cross_entropy: ((target,), loss),
    }
    assert {function.__name__ for function in expected} == {*F.__all__}
    for function, (args, kwargs) in expected.items():
        y = function((plain * 1).as_subclass(Told), *args, **kwargs)
        assert type(y) is Told
        assert seen[function] == (args, kwargs)
        assert torch.equal(y.as_subclass(Tensor), function(plain * 1, *args, **kwargs))


@on_tensors
def test_compiled_model(lib: Library) -> None:
    """One graph, in-place activations included; the same loss and gradients."""
    model, x, target = everything(lib)
    compiled = torch.compile(
        nn.convert(copy.deepcopy(model)).model, backend="aot_eager", fullgraph=True
    )
    results = []
    for m in (compiled, model):
        loss = m(x, target)
        loss.backward()
        results.append([loss, *[p.grad for p in m.parameters()]])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
