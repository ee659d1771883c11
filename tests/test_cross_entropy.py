"""Cross-entropy through its public functions, against torch's in float64, option by option.

Loss, log-sum-exp and gradient: the gradient three times, from autograd, from cross_entropy_backward
and from cross_entropy_with_grad. tests/test_backends.py holds the kernels to the last bits; here it
is the meaning of every combination of options that counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest

from tests import harness

torch = harness.torch_or_skip()
from torch.nn import functional

import gpuact
from tests.bounds import DTYPES
from tests.libraries import TORCH, Library, libraries, untouched
from tests.truth import Array

CLASSES = 5


@dataclass(frozen=True)
class Case:
    """Arrays of float64 and integers, and the options."""

    logits: Array
    target: Array
    axis: int | None
    weight: Array | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    reduction: str = "mean"
    z_loss: float = 0.0
    softcap: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {
            "axis": self.axis,
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
            "reduction": self.reduction,
            "z_loss": self.z_loss,
            "softcap": self.softcap,
        }

    @property
    def place(self) -> int:
        """The class axis as a number from 0."""
        return (-1 if self.axis is None else self.axis) % self.logits.ndim

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.logits.shape[: self.place] + self.logits.shape[self.place + 1 :]

    @property
    def loss_shape(self) -> tuple[int, ...]:
        return self.row_shape if self.reduction == "none" else ()

    def dloss(self) -> Array:
        """An incoming gradient that is not 1."""
        return np.linspace(0.5, 2.0, int(np.prod(self.loss_shape))).reshape(self.loss_shape)

    def torch(self) -> dict[str, Array]:
        """What torch says in float64: loss, lse, and gradients for `dloss` and for ones."""
        z = torch.from_numpy(self.logits.copy()).requires_grad_()
        integers = self.target.dtype.kind in "iu"
        target = torch.from_numpy(self.target.astype(np.int64 if integers else np.float64))
        target.requires_grad_(not integers)
        weight = None if self.weight is None else torch.from_numpy(self.weight)
        capped = z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)
        last, shape = capped.movedim(self.place, -1), self.row_shape
        flat = last.reshape(-1, last.shape[-1])
        t = target.reshape(-1) if integers else target.movedim(self.place, -1).reshape(flat.shape)
        options = {k: getattr(self, k) for k in ("ignore_index", "label_smoothing", "reduction")}
        if not integers:
            options["ignore_index"] = -100
        loss = functional.cross_entropy(flat, t, weight, **options)
        if self.z_loss:
            loss = loss + self.squares(flat, t, weight)
        loss = loss.reshape(self.loss_shape)
        inputs = [z] if integers else [z, target]
        dloss = torch.from_numpy(self.dloss())
        given = torch.autograd.grad(loss, inputs, dloss, retain_graph=True)
        ones = torch.autograd.grad(loss, z, torch.ones_like(loss))[0]
        found = {"loss": loss, "lse": torch.logsumexp(last, -1).reshape(shape)}
        found |= dict(zip(("dlogits", "dtarget"), given, strict=False)) | {"unit": ones}
        return {name: value.detach().numpy() for name, value in found.items()}

    def squares(self, flat: Any, target: Any, weight: Any) -> Any:
        """z_loss·lse² of the rows that count, reduced as torch reduces its loss."""
        terms = self.z_loss * torch.logsumexp(flat, -1) ** 2
        counts = torch.ones(len(flat), dtype=torch.float64)
        if target.ndim == 1:
            counted = target != self.ignore_index
            terms = torch.where(counted, terms, 0.0)
            counts = counted.double()
            if weight is not None:
                counts = torch.where(counted, weight[torch.where(counted, target, 0)], 0.0)
        if self.reduction == "none":
            return terms
        if self.reduction == "sum":
            return terms.sum()
        return terms.sum() / counts.sum() if counts.any() else 0.0


def near(got: Array, want: Array, what: str, rtol: float = 1e-12) -> None:
    """NaN where torch has NaN, else within rtol of the largest value."""
    got = np.asarray(got).astype(np.float64)
    assert (np.isnan(got) == np.isnan(want)).all(), f"{what}: NaN at other places: {got}, {want}"
    got, want = np.nan_to_num(got), np.nan_to_num(want)
    size = np.max(np.abs(want), initial=1.0)
    worst = np.max(np.abs(got - want), initial=0.0)
    assert worst <= rtol * size, f"{what}: off by {worst:.3g}"


LAYOUTS: dict[str, tuple[tuple[int, ...], int | None]] = {
    "(N, C)": ((6, CLASSES), None),
    "(C,)": ((CLASSES,), None),
    "(N, C, d1), axis 1": ((3, CLASSES, 4), 1),
    "(N, d1, C)": ((3, 4, CLASSES), -1),
    "(C, N), axis 0": ((CLASSES, 6), 0),
}
KINDS = ("int64", "int32", "uint8", "probabilities", "unnormalised")
IGNORED = {"default": -100, "in range": 2, "everything": 4}
REDUCTIONS = ("mean", "sum", "none")
Z_LOSSES = (0.0, 0.01)
SOFTCAPS = (None, 2.5)


@cache
def cases(layout: str, kind: str) -> list[tuple[Case, dict[str, Array]]]:
    """Every combination of the options, and what torch says."""
    shape, axis = LAYOUTS[layout]
    rng = np.random.default_rng(7)
    logits = rng.standard_normal(shape) * 3
    weights = (None, rng.uniform(0.1, 2.0, CLASSES))
    place = (-1 if axis is None else axis) % len(shape)
    rows = shape[:place] + shape[place + 1 :]
    found = []
    for weight, ignored, smoothing, reduction, z_loss, softcap in product(
        weights, IGNORED, (0.0, 0.1, 1.0), REDUCTIONS, Z_LOSSES, SOFTCAPS
    ):
        ignore_index = IGNORED[ignored]
        if kind in ("probabilities", "unnormalised"):
            if ignored != "default":
                continue  # probabilities have no index to ignore
            target = rng.uniform(0, 1, shape)
            if kind == "probabilities":
                target /= target.sum(place, keepdims=True)
        elif ignored == "everything":
            target = np.full(rows, ignore_index, kind)
        else:
            target = rng.integers(0, CLASSES, rows).astype(kind)
            if kind != "uint8":
                target = np.where(rng.random(rows) < 0.3, ignore_index, target).astype(kind)
        options = (weight, ignore_index, smoothing, reduction, z_loss, softcap)
        case = Case(logits, target, axis, *options)
        found.append((case, case.torch()))
    return found


def sample(lib: Library, layout: str, kind: str) -> list[tuple[Case, dict[str, Array]]]:
    """All cases where NumPy computes as ever, elsewhere some: all values of each option."""
    return cases(layout, kind)[:: SAMPLED.get(lib.name, 5)]


# library → one case of so many, a number prime to those of the options' values
SAMPLED = {"numpy": 1, "torch-cpu": 1, "numpy-in-pieces": 5, "interpreter": 11}


def test_a_sample_has_every_value_of_every_option():
    def values(some: list[tuple[Case, dict[str, Array]]]) -> dict[str, set[Any]]:
        each = [case.options | {"weighted": case.weight is not None} for case, _ in some]
        return {name: {options[name] for options in each} for name in each[0]}

    for layout, kind in product(LAYOUTS, KINDS):
        every = cases(layout, kind)
        for step in SAMPLED.values():
            assert values(every[::step]) == values(every), (layout, kind, step)


def placed(lib: Library, *arrays: Array | None) -> list[Any]:
    return [None if a is None else lib.place(a) for a in arrays]


def natives(inputs: list[Any]) -> list[Any]:
    return [None if p is None else p.native for p in inputs]


def check_case(lib: Library, case: Case, want: dict[str, Array]) -> None:
    """Loss, lse, cross_entropy_backward and cross_entropy_with_grad."""
    what = f"{lib.name} {case.options} weight {case.weight is not None}"
    inputs = placed(lib, case.logits, case.target, case.weight)
    z, t, w = natives(inputs)
    options = {"weight": w, **case.options}
    loss, lse = gpuact.cross_entropy(z, t, return_lse=True, **options)
    near(lib.numpy(loss, z, case.loss_shape, "float64"), want["loss"], f"loss {what}")
    near(lib.numpy(lse, z, case.row_shape, "float64"), want["lse"], f"lse {what}")
    alone = gpuact.cross_entropy(z, t, **options)
    assert lib.executor.to_numpy(alone).tobytes() == lib.executor.to_numpy(loss).tobytes()

    dloss = lib.place(case.dloss())
    dz = gpuact.cross_entropy_backward(dloss.native, z, t, lse, **options)
    near(lib.numpy(dz, z, case.logits.shape, "float64"), want["dlogits"], f"dlogits {what}")

    loss, dz = gpuact.cross_entropy_with_grad(z, t, **options)
    near(lib.numpy(loss, z, case.loss_shape, "float64"), want["loss"], f"its loss {what}")
    near(lib.numpy(dz, z, case.logits.shape, "float64"), want["unit"], f"its grad {what}")
    untouched(*(p for p in (*inputs, dloss) if p is not None))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_combination(lib, layout, kind):
    for case, want in sample(lib, layout, kind):
        check_case(lib, case, want)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lib", libraries("torch-interpreter"), indirect=True)
def test_every_combination_in_the_interpreter(lib, layout, kind):
    for case, want in cases(layout, kind):
        check_case(lib, case, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lib", TORCH, indirect=True)
def test_autograd_of_every_combination(lib, layout, kind):
    for case, want in sample(lib, layout, kind):
        what = f"{lib.name} {case.options} weight {case.weight is not None}"
        z, t, w = natives(placed(lib, case.logits, case.target, case.weight))
        leaves = [z] if case.target.dtype.kind in "iu" else [z, t]
        for leaf in leaves:
            leaf.requires_grad_()
        loss = gpuact.cross_entropy(z, t, weight=w, **case.options)
        near(lib.numpy(loss, z, case.loss_shape, "float64"), want["loss"], f"loss {what}")
        got = torch.autograd.grad(loss, leaves, lib.place(case.dloss()).native)
        near(lib.executor.to_numpy(got[0]), want["dlogits"], f"dlogits {what}")
        if len(leaves) == 2:
            near(lib.executor.to_numpy(got[1]), want["dtarget"], f"dtarget {what}")


@pytest.mark.parametrize("softcap", SOFTCAPS)
@pytest.mark.parametrize("kind", ["int64", "probabilities"])
@pytest.mark.parametrize("lib", TORCH, indirect=True)
def test_the_gradient_of_lse(lib, kind, softcap):
    """Of lse alone, of loss and lse together, of lse when the loss goes unused."""
    for layout in LAYOUTS:
        case = replace(cases(layout, kind)[0][0], reduction="sum", label_smoothing=0.1)
        case = replace(case, z_loss=0.1, softcap=softcap)
        z, t = natives(placed(lib, case.logits, case.target))
        reference = torch.from_numpy(case.logits.copy()).requires_grad_()
        z.requires_grad_()
        dlse = torch.linspace(-1, 2, int(np.prod(case.row_shape))).double()
        dlse = dlse.reshape(case.row_shape)
        capped = reference if softcap is None else softcap * torch.tanh(reference / softcap)
        want = torch.autograd.grad(torch.logsumexp(capped, case.place), reference, dlse)[0]
        loss, lse = gpuact.cross_entropy(z, t, return_lse=True, **case.options)
        dlse = dlse.to(z.device)
        got = torch.autograd.grad(lse, z, dlse, retain_graph=True)[0]
        near(lib.executor.to_numpy(got), want.numpy(), f"lse alone, {layout}")
        both = torch.autograd.grad([loss, lse], z, [torch.ones_like(loss), dlse])[0]
        total = want.numpy() + case.torch()["unit"]
        near(lib.executor.to_numpy(both), total, f"lse and loss, {layout}")


@pytest.mark.parametrize("factor", (1e5, 1e-5))
@pytest.mark.parametrize("lib", TORCH, indirect=True)
def test_the_gradient_of_lse_is_no_number_of_a_half_type(lib, factor):
    """float16 holds neither 1e5 nor, of a thousand classes, 1e-5 S."""
    logits = np.random.default_rng(3).standard_normal((2, 1000)).astype(np.float16) * 8
    z, t = natives(placed(lib, logits, np.array([0, 1])))
    reference = torch.from_numpy(logits).double().requires_grad_()
    (torch.logsumexp(reference, 1) * factor).sum().backward()
    _, lse = gpuact.cross_entropy(z.requires_grad_(), t, return_lse=True)
    (lse * factor).sum().backward()
    want, got = reference.grad.numpy(), lib.executor.to_numpy(z.grad).astype(np.float64)
    want = np.where(want > 65504, np.inf, want)
    near(np.nan_to_num(got), np.nan_to_num(want.astype(np.float16).astype(np.float64)), "", 2e-3)


RESULTS: dict[str, Callable[[Any, Any], Any]] = {
    "softmax": lambda z, t: gpuact.softmax(z),
    "softmax of the first axis": lambda z, t: gpuact.softmax(z, axis=0),
    "softmax of two axes": lambda z, t: gpuact.softmax(z[None], axis=(0, 2)),
    "log_softmax": lambda z, t: gpuact.log_softmax(z),
    "softmax_jacobian": lambda z, t: gpuact.softmax_jacobian(z),
    **{
        reduction: lambda z, t, r=reduction: gpuact.cross_entropy(z, t, reduction=r)
        for reduction in REDUCTIONS
    },
    "lse": lambda z, t: gpuact.cross_entropy(z, t, return_lse=True)[1],
    "gradient in forward": lambda z, t: gpuact.cross_entropy(
        z, t, reduction="sum", gradient_in_forward=True
    ),
    "gradient": lambda z, t: gpuact.cross_entropy_with_grad(z, t)[1],
}


@pytest.mark.parametrize("what", RESULTS)
@pytest.mark.parametrize("lib", TORCH, indirect=True)
def test_a_result_may_be_changed_in_place(lib, what):
    """As torch's may, by a mask of tokens or their number: it is no view, to begin with too."""
    z, t = natives(placed(lib, np.random.default_rng(4).standard_normal((4, 5)), np.arange(4)))
    z.requires_grad_()
    for _ in range(2):
        result = RESULTS[what](z, t)
        assert result.requires_grad
        result.mul_(2)


@pytest.mark.every
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["int64", "probabilities"])
def test_dtypes(lib, dtype, kind):
    """Half types give a float32 loss and lse, and a gradient in their own dtype."""
    loss_dtype = "float64" if dtype == "float64" else "float32"
    rtol = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 1e-5, "float64": 1e-12}[dtype]
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((7, 300)) * 4).astype(DTYPES[dtype])
    exact = logits.astype(np.float64)
    target = rng.integers(0, 300, 7)
    if kind == "probabilities":
        target = rng.uniform(0, 0.02, (7, 300)).astype(DTYPES[dtype]).astype(np.float64)
    for weight_dtype, more in product({dtype, "float32"}, ({}, {"z_loss": 0.01, "softcap": 6.0})):
        weight = rng.uniform(0.5, 1.5, 300).astype(DTYPES[weight_dtype])
        options = {"label_smoothing": 0.1, **more}
        case = Case(exact, target, None, weight.astype(np.float64), **options)
        want = case.torch()
        t = target if kind == "int64" else target.astype(DTYPES[dtype])
        z, t, w = natives(placed(lib, logits, t, weight))
        options = {"weight": w, **options}
        loss, lse = gpuact.cross_entropy(z, t, return_lse=True, **options)
        near(lib.numpy(loss, z, (), loss_dtype), want["loss"], "loss", min(rtol, 1e-5))
        near(lib.numpy(lse, z, (7,), loss_dtype), want["lse"], "lse", min(rtol, 1e-5))
        dloss = lib.place(np.full((), case.dloss(), loss_dtype)).native
        dz = gpuact.cross_entropy_backward(dloss, z, t, lse, **options)
        size = np.abs(want["dlogits"]).max()
        near(lib.numpy(dz, z, (7, 300), dtype) / size, want["dlogits"] / size, "dlogits", rtol)
        loss, dz = gpuact.cross_entropy_with_grad(z, t, **options)
        near(lib.numpy(loss, z, (), loss_dtype), want["loss"], "its loss", min(rtol, 1e-5))
        size = np.abs(want["unit"]).max()
        near(lib.numpy(dz, z, (7, 300), dtype) / size, want["unit"] / size, "its grad", rtol)


@pytest.mark.parametrize("kind", ["int8", "int16", "uint16", "uint32", "uint64"])
def test_every_integer_names_a_class(lib, kind):
    rng = np.random.default_rng(4)
    logits, target = rng.standard_normal((6, 9)), rng.integers(0, 9, 6)
    z, t, plain = natives(placed(lib, logits, target.astype(kind), target))
    got = gpuact.cross_entropy(z, t, reduction="none")
    want = gpuact.cross_entropy(z, plain, reduction="none")
    assert lib.executor.to_numpy(got).tobytes() == lib.executor.to_numpy(want).tobytes()


def test_an_integer_beyond_int64_names_no_class(lib):
    """Nor the ignore_index that its bits are as an int64."""
    target = np.array([1, 2**64 - 100], np.uint64)
    z, t = natives(placed(lib, np.zeros((2, 4), np.float32), target))
    if getattr(lib.executor.backend, "ON_HOST", False):
        with pytest.raises(IndexError, match="target: class 9223372036854775807 came"):
            gpuact.cross_entropy(z, t)
    else:
        got = lib.executor.to_numpy(gpuact.cross_entropy(z, t, reduction="none"))
        assert np.isnan(got).tolist() == [False, True]


@pytest.mark.parametrize("view", ["strided", "transposed", "misaligned", "broadcast", "negative"])
def test_logits_and_targets_of_any_strides(lib, view):
    rng = np.random.default_rng(5)
    if view == "negative" and not lib.executor.negative_strides:
        pytest.skip("torch tensors have no negative strides")
    memory = rng.standard_normal((8, 14))
    logits = {
        "strided": memory[::2, 1::3],
        "transposed": memory.T[:, :4],
        "misaligned": memory.reshape(-1)[1:61].reshape(4, 15),
        "broadcast": np.broadcast_to(memory[:1], (4, 14)),
        "negative": memory[6::-2, ::-1],
    }[view]
    rows, classes = logits.shape
    classes_of_rows = rng.integers(0, classes, 2 * rows)
    shares = rng.uniform(0, 1, (classes, rows)).T
    if view == "broadcast":
        shares = np.broadcast_to(shares[:1], shares.shape)
    lse = rng.standard_normal(2 * rows)
    for target in (classes_of_rows[::2], shares):
        case = Case(logits, target, None, label_smoothing=0.1, reduction="none")
        want = case.torch()
        inputs = placed(lib, logits, target)
        z, t = natives(inputs)
        options = {"label_smoothing": 0.1, "reduction": "none"}
        near(lib.executor.to_numpy(gpuact.cross_entropy(z, t, **options)), want["loss"], view)
        _, dz = gpuact.cross_entropy_with_grad(z, t, **options)
        near(lib.numpy(dz, z, (rows, classes), "float64"), want["unit"], view)
        lse[::2] = want["lse"]
        dloss = np.broadcast_to(2.5, (rows,))
        back = placed(lib, dloss, lse)
        strided = back[1].native[::2]
        dz = gpuact.cross_entropy_backward(back[0].native, z, t, strided, **options)
        near(lib.numpy(dz, z, (rows, classes), "float64"), 2.5 * want["unit"], view)
        untouched(*inputs, *back)


def test_wide_rows(lib):
    rng = np.random.default_rng(6)
    logits = (rng.standard_normal((3, 100_003)) * 5).astype(np.float32)
    target = np.array([0, 100_002, 70_000])
    case = Case(logits.astype(np.float64), target, None, reduction="none")
    want = case.torch()
    z, t = natives(placed(lib, logits, target))
    loss, lse = gpuact.cross_entropy(z, t, reduction="none", return_lse=True)
    near(lib.numpy(loss, z, (3,), "float32"), want["loss"], "loss", 2e-6)
    near(lib.numpy(lse, z, (3,), "float32"), want["lse"], "lse", 2e-6)
    loss, dz = gpuact.cross_entropy_with_grad(z, t, reduction="none")
    near(lib.numpy(dz, z, logits.shape, "float32"), want["unit"], "gradient", 2e-6)


# -- the plain identities -------------------------------------------------------------------------


def test_the_gradient_is_s_minus_y(lib):
    """dZ = S − Y, the sum of whose elements over a row is zero."""
    rng = np.random.default_rng(8)
    logits, target = rng.standard_normal((20, 11)), rng.integers(0, 11, 20)
    z, t = natives(placed(lib, logits, target))
    _, dz = gpuact.cross_entropy_with_grad(z, t, reduction="sum")
    s = lib.executor.to_numpy(gpuact.softmax(z))
    want = s - np.eye(11)[target]
    near(lib.numpy(dz, z, (20, 11), "float64"), want, "S − Y", 1e-15)
    _, mean = gpuact.cross_entropy_with_grad(z, t)
    near(lib.executor.to_numpy(mean), want / 20, "(S − Y) / N", 1e-15)


def test_exact_where_the_jacobian_route_overflows(lib):
    """A confidently wrong label: softmax underflows to 0, its logarithm would be infinite."""
    z, t = natives(placed(lib, np.array([[0.0, -2000.0]], np.float32), np.array([1])))
    loss, dz = gpuact.cross_entropy_with_grad(z, t)
    assert lib.numpy(loss, z, (), "float32") == 2000.0
    assert lib.numpy(dz, z, (1, 2), "float32").tolist() == [[1.0, -1.0]]


def test_masked_classes(lib, dtype):
    """−inf among the logits: no NaN unless the row holds nothing else, however it is tiled."""
    logits = np.full((4, 3000), -np.inf)
    logits[0, 2999], logits[1, 0], logits[2, ::7] = 1.0, 1.0, 2.0
    target = np.array([2999, 0, 7, 5])
    z, t = natives(placed(lib, logits.astype(DTYPES[dtype]), target))
    loss, lse = gpuact.cross_entropy(z, t, reduction="none", return_lse=True)
    kind = "float64" if dtype == "float64" else "float32"
    got = lib.numpy(loss, z, (4,), kind)
    assert got[:2].tolist() == [0.0, 0.0]
    assert abs(got[2] - np.log(429)) < 1e-5
    assert np.isnan(got[3])
    near(lib.numpy(lse, z, (4,), kind)[:3], [1.0, 1.0, 2 + np.log(429)], "lse", 1e-6)
    _, dz = gpuact.cross_entropy_with_grad(z, t, reduction="none")
    dz = lib.numpy(dz, z, (4, 3000), dtype).astype(np.float64)
    assert (dz[:2] == 0).all()
    assert not np.isnan(dz[2]).any()
    assert np.isnan(dz[3]).all()


def test_a_mean_over_nothing_is_nan_with_gradient_zero(lib):
    logits = np.random.default_rng(9).standard_normal((3, 4)).astype(np.float32)
    z, t, w = natives(placed(lib, logits, np.full(3, -100), np.ones(4, np.float32)))
    for options in ({}, {"label_smoothing": 0.1}, {"weight": w}, {"z_loss": 0.1, "softcap": 2.0}):
        loss, lse = gpuact.cross_entropy(z, t, return_lse=True, **options)
        assert np.isnan(lib.numpy(loss, z, (), "float32"))
        again, dz = gpuact.cross_entropy_with_grad(z, t, **options)
        assert np.isnan(lib.numpy(again, z, (), "float32"))
        assert (lib.numpy(dz, z, (3, 4), "float32") == 0).all()
        dz = gpuact.cross_entropy_backward(loss, z, t, lse, **options)  # a NaN comes in
        assert (lib.numpy(dz, z, (3, 4), "float32") == 0).all()
        total = gpuact.cross_entropy(z, t, reduction="sum", **options)
        assert lib.numpy(total, z, (), "float32") == 0


@pytest.mark.parametrize("shape", [(0, 4), (0, 3, 4)])
def test_no_rows(lib, shape):
    z, t = natives(placed(lib, np.empty(shape, np.float32), np.empty(shape[:-1], np.int64)))
    loss, lse = gpuact.cross_entropy(z, t, return_lse=True)
    assert np.isnan(lib.numpy(loss, z, (), "float32"))
    assert lib.numpy(lse, z, shape[:-1], "float32").size == 0
    total, dz = gpuact.cross_entropy_with_grad(z, t, reduction="sum")
    assert lib.numpy(total, z, (), "float32") == 0
    assert lib.numpy(dz, z, shape, "float32").size == 0
    none = gpuact.cross_entropy(z, t, reduction="none")
    assert lib.numpy(none, z, shape[:-1], "float32").size == 0


def test_nothing_ignored_is_ever_read_as_a_class(lib):
    """An ignored row counts for nothing even where all else in it is NaN."""
    logits = np.zeros((3, 4), np.float32)
    logits[1] = np.nan
    z, t = natives(placed(lib, logits, np.array([1, -100, 2])))
    loss, dz = gpuact.cross_entropy_with_grad(z, t)
    assert abs(lib.numpy(loss, z, (), "float32") - np.log(4.0)) < 1e-6
    dz = lib.numpy(dz, z, (3, 4), "float32")
    assert (dz[1] == 0).all()
    assert dz[0].tolist() == [0.125, -0.375, 0.125, 0.125]


def test_an_ignored_row_has_no_z_loss(lib):
    """Neither its loss nor its gradient, and it does not count in the mean."""
    logits = np.random.default_rng(13).standard_normal((3, 4)) * 9
    logits[1] = np.nan
    z, t = natives(placed(lib, logits, np.array([1, -100, 2])))
    few = natives(placed(lib, logits[::2], np.array([1, 2])))
    options = {"z_loss": 0.5, "softcap": 3.0}
    want = [lib.executor.to_numpy(a) for a in gpuact.cross_entropy_with_grad(*few, **options)]
    loss, dz = gpuact.cross_entropy_with_grad(z, t, **options)
    near(lib.numpy(loss, z, (), "float64"), want[0], "loss")
    dz = lib.numpy(dz, z, (3, 4), "float64")
    assert (dz[1] == 0).all()
    near(dz[::2], want[1], "gradient")
    each = gpuact.cross_entropy(z, t, reduction="none", **options)
    assert lib.numpy(each, z, (3,), "float64")[1] == 0


def test_a_softcap_bounds_the_logits(lib, dtype):
    """An infinity becomes the cap, with slope 0; NaN stays; far below the cap nothing changes."""
    logits = np.array([[-np.inf, 1.0, np.inf], [1.0, np.nan, 0.0], [1e-3, 2e-3, -1e-3]])
    z, t = natives(placed(lib, logits.astype(DTYPES[dtype]), np.array([2, 0, 1])))
    kind = "float64" if dtype == "float64" else "float32"
    options = {"softcap": 30.0, "reduction": "none"}
    loss, lse = gpuact.cross_entropy(z, t, return_lse=True, **options)
    loss, lse = lib.numpy(loss, z, (3,), kind), lib.numpy(lse, z, (3,), kind)
    assert abs(loss[0]) < 1e-6
    assert abs(lse[0] - 30) < 1e-5
    assert np.isnan(loss).tolist() == np.isnan(lse).tolist() == [False, True, False]
    plain = gpuact.cross_entropy(z, t, reduction="none")
    assert abs(loss[2] - lib.executor.to_numpy(plain)[2]) < 1e-6
    _, dz = gpuact.cross_entropy_with_grad(z, t, **options)
    dz = lib.numpy(dz, z, (3, 3), dtype).astype(np.float64)
    assert dz[0, [0, 2]].tolist() == [0.0, 0.0]
    assert np.isnan(dz[1]).all()


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_an_ignore_index_of_any_size(lib, kind):
    """2^32 − 100 is no −100, and what no target can be ignores nothing."""
    z, t = natives(placed(lib, np.zeros((2, 4), np.float32), np.array([1, 2], kind)))
    for ignore_index in (2**32 + 1, 2**31, -(2**31) - 1, 2**62):
        got = gpuact.cross_entropy(z, t, ignore_index=ignore_index, reduction="sum")
        assert abs(lib.numpy(got, z, (), "float32") - 2 * np.log(4.0)) < 1e-6


# -- the class axis -------------------------------------------------------------------------------


def test_the_class_axis_is_the_last_unless_the_target_says_otherwise(lib):
    rng = np.random.default_rng(10)
    logits = rng.standard_normal((2, 3, 4))
    z = lib.place(logits).native
    for axis, rows, spellings in (
        (2, (2, 3), (None, 2, -1)),
        (1, (2, 4), (1, -2)),
        (0, (3, 4), (0,)),
    ):
        target = rng.integers(0, logits.shape[axis], rows)
        t = lib.place(target).native
        want = Case(logits, target, axis).torch()["loss"]
        for spelling in spellings:
            near(lib.executor.to_numpy(gpuact.cross_entropy(z, t, axis=spelling)), want, "loss")


def test_the_last_axis_is_taken_only_where_no_other_could_be_meant(lib):
    z = lib.place(np.zeros((2, 3, 3))).native
    t = lib.place(np.zeros((2, 3), np.int64)).native
    for function in (gpuact.cross_entropy, gpuact.cross_entropy_with_grad):
        with pytest.raises(ValueError, match="axis"):
            function(z, t)
        function(z, t, axis=1)
        function(z, t, axis=-1)
        with pytest.raises(ValueError, match="axis"):
            function(z, z)


# -- dlogits_out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_gradient_may_be_written_over_the_logits(lib, axis, dtype):
    rng = np.random.default_rng(11)
    logits = (rng.standard_normal((4, 5, 6)) * 2).astype(DTYPES[dtype])
    rows = logits.shape[: axis % 3] + logits.shape[axis % 3 + 1 :]
    target = rng.integers(0, logits.shape[axis], rows)
    inputs = placed(lib, logits, target)
    z, t = natives(inputs)
    want_loss, want = gpuact.cross_entropy_with_grad(z, t, axis=axis)
    untouched(*inputs)  # never unasked
    loss, dz = gpuact.cross_entropy_with_grad(z, t, axis=axis, dlogits_out=z)
    assert dz is z
    executor = lib.executor
    assert executor.to_numpy(loss).tobytes() == executor.to_numpy(want_loss).tobytes()
    assert executor.to_numpy(dz).tobytes() == executor.to_numpy(want).tobytes()


def test_the_gradient_may_be_written_anywhere(lib):
    """Beside the logits in their own memory, over the probabilities, into strides."""
    rng = np.random.default_rng(12)
    logits = rng.standard_normal((6, 8)).astype(np.float32)
    target = np.array([1, 2, 3, 4, 5])
    memory, t = lib.place(logits), lib.place(target).native
    want = gpuact.cross_entropy_with_grad(lib.place(logits[1:]).native, t)[1]
    want = lib.executor.to_numpy(want)
    out = memory.native[:-1]
    assert gpuact.cross_entropy_with_grad(memory.native[1:], t, dlogits_out=out)[1] is out
    assert (lib.executor.to_numpy(out) == want).all()
    strided = lib.blank(np.empty((8, 10), np.float32).T[::2])
    z = lib.place(logits[1:]).native
    gpuact.cross_entropy_with_grad(z, t, dlogits_out=strided.native)
    assert (strided.numpy() == want).all()
    shares = lib.place(rng.uniform(0, 1, (5, 8)).astype(np.float32))
    want = lib.executor.to_numpy(gpuact.cross_entropy_with_grad(z, shares.native)[1])
    gpuact.cross_entropy_with_grad(z, shares.native, dlogits_out=shares.native)
    assert (shares.numpy() == want).all()


# -- the gradient found in forward ----------------------------------------------------------------

at_once = pytest.mark.parametrize("lib", TORCH, indirect=True)


@at_once
@pytest.mark.parametrize("kind", ["int64", "unnormalised"])
def test_gradient_in_forward_is_the_gradient(lib, kind):
    for layout in LAYOUTS:
        for case, want in sample(lib, layout, kind)[::3]:
            if case.reduction == "none":
                continue
            what = f"{lib.name} {layout} {case.options}"
            z, t, w = natives(placed(lib, case.logits, case.target, case.weight))
            z.requires_grad_()
            loss = gpuact.cross_entropy(z, t, weight=w, gradient_in_forward=True, **case.options)
            near(lib.numpy(loss, z, (), "float64"), want["loss"], f"loss {what}")
            (dz,) = torch.autograd.grad(loss, z, lib.place(case.dloss()).native)
            near(lib.numpy(dz, z, case.logits.shape, "float64"), want["dlogits"], what)


@at_once
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_in_forward_in_every_dtype(lib, dtype):
    """The loss's gradient is no number of a half type: it enters as float32 has it."""
    rng = np.random.default_rng(14)
    logits = (rng.standard_normal((5, 40)) * 3).astype(DTYPES[dtype])
    target = rng.integers(0, 40, 5)
    z, t = natives(placed(lib, logits, target))
    z.requires_grad_()
    (
        gpuact.cross_entropy(z, t, reduction="sum", gradient_in_forward=True) * 1.0009765625
    ).backward()
    want = Case(logits.astype(np.float64), target, None, reduction="sum").torch()["unit"]
    digits = {"float16": 11, "bfloat16": 8, "float32": 19, "float64": 48}[dtype]
    got = lib.executor.to_numpy(z.grad).astype(np.float64)
    assert np.abs(got - 1.0009765625 * want).max() < 2.0 ** (1 - digits)


@at_once
def test_gradient_in_forward_keeps_the_gradient_alone(lib):
    z, t = natives(placed(lib, np.random.default_rng(15).standard_normal((4, 6)), np.arange(4)))
    z.requires_grad_()
    stored = []

    def pack(tensor: Any) -> Any:
        stored.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = gpuact.cross_entropy(z, t, gradient_in_forward=True)
    (kept,) = stored
    assert kept.data_ptr() != z.data_ptr()
    assert kept.shape == z.shape
    (dz,) = torch.autograd.grad(loss, z)
    assert dz.data_ptr() == kept.data_ptr()


@at_once
def test_gradient_in_forward_serves_one_backward(lib):
    """A second one, and a gradient to be differentiated, are refused with the option's name."""
    z, t = natives(placed(lib, np.zeros((2, 3)), np.array([0, 1])))
    z.requires_grad_()
    for keep in (True, False):
        loss = gpuact.cross_entropy(z, t, gradient_in_forward=True)
        loss.backward(retain_graph=keep)
        with pytest.raises(RuntimeError, match=r"second backward came .*gradient_in_forward=True"):
            loss.backward()
    loss = gpuact.cross_entropy(z, t, gradient_in_forward=True)
    with pytest.raises(NotImplementedError, match=r"gradient_in_forward=True, which keeps no"):
        torch.autograd.grad(loss, z, create_graph=True)
    torch.autograd.grad(loss, z)  # which took nothing


@at_once
def test_gradient_in_forward_changes_nothing_where_nothing_is_tracked(lib):
    z, t = natives(placed(lib, np.zeros((2, 3)), np.array([0, 1])))
    for reduction in REDUCTIONS:
        loss, _ = gpuact.cross_entropy(
            z, t, reduction=reduction, return_lse=True, gradient_in_forward=True
        )
        assert torch.equal(loss, gpuact.cross_entropy(z, t, reduction=reduction))
        assert not loss.requires_grad
    z.requires_grad_()
    with torch.no_grad():
        assert not gpuact.cross_entropy(z, t, gradient_in_forward=True).requires_grad


# -- layouts --------------------------------------------------------------------------------------

# name → the memory's shape, the logits in it, the class axis
IN_PLACE: dict[str, tuple[tuple[int, ...], Callable[[Any], Any], int]] = {
    "(N, C)": ((6, 5), lambda m: m, -1),
    "(N, C), rows apart": ((6, 9), lambda m: m[:, :5], -1),
    "(C, N)": ((5, 6), lambda m: m, 0),
    "(N, C, d1)": ((3, 5, 4), lambda m: m, 1),
    "(N, C, d1, d2)": ((2, 5, 3, 4), lambda m: m, 1),
    "(N, C, d1, d2), channels last": ((2, 3, 4, 5), lambda m: m.transpose(1, 3).transpose(2, 3), 1),
    "(…, C)": ((2, 3, 4, 5), lambda m: m, -1),
    "(…, C), strided": ((2, 3, 4, 10), lambda m: m[..., ::2], -1),
}


@pytest.mark.parametrize("lib", libraries("numpy", "torch-cpu"), indirect=True)
@pytest.mark.parametrize("layout", IN_PLACE)
def test_logits_are_read_where_they_lie(lib, layout, monkeypatch):
    """What the kernels see is the caller's memory, of logits and of probabilities."""
    shape, view, axis = IN_PLACE[layout]
    memory = torch.from_numpy(np.random.default_rng(16).standard_normal(shape))
    logits = view(memory)
    z = logits if lib.name == "torch-cpu" else logits.numpy()
    seen: list[int] = []
    for name in ("cross_entropy", "cross_entropy_backward", "cross_entropy_with_grad"):
        work = getattr(lib.executor.backend, name)

        def spy(*args: Any, work: Any = work, name: str = name, **options: Any) -> None:
            first = 0 if name == "cross_entropy" else 1
            seen.extend(a.ctypes.data for a in args[first : first + 2])
            work(*args, **options)

        monkeypatch.setattr(lib.executor.backend, name, spy)
    options = {"axis": axis, "label_smoothing": 0.1}
    loss, lse = gpuact.cross_entropy(z, z, return_lse=True, **options)
    gpuact.cross_entropy_backward(loss, z, z, lse, **options)
    gpuact.cross_entropy_with_grad(z, z, **options)
    assert seen == [memory.data_ptr()] * 6


# -- targets out of range -------------------------------------------------------------------------


@pytest.mark.parametrize("lib", libraries("numpy", "torch-cpu"), indirect=True)
@pytest.mark.parametrize("wrong", [4, -1, 2**40, -(2**40)])
def test_a_class_out_of_range_is_an_index_error_on_the_cpu(lib, wrong):
    z, t = natives(placed(lib, np.zeros((3, 4)), np.array([0, wrong, -100])))
    dloss, lse = natives(placed(lib, np.ones(()), np.zeros(3)))
    for call in (
        lambda: gpuact.cross_entropy(z, t),
        lambda: gpuact.cross_entropy_with_grad(z, t),
        lambda: gpuact.cross_entropy_backward(dloss, z, t, lse),
    ):
        with pytest.raises(IndexError, match=rf"^target: class {wrong} came, allowed are 0 to 3"):
            call()


GPU = libraries("torch-interpreter", "cupy", "cupy-on-triton", "torch-cuda", "torch-cuda-on-cupy")


@pytest.mark.parametrize("lib", GPU, indirect=True)
def test_a_class_out_of_range_is_nan_on_a_gpu(lib, monkeypatch):
    target = np.array([0, 4, -100, -1, 3, 2**40])
    z, t = natives(placed(lib, np.zeros((6, 4), np.float32), target))
    loss, dz = gpuact.cross_entropy_with_grad(z, t, reduction="none")
    wrong = [False, True, False, True, False, True]
    assert np.isnan(lib.numpy(loss, z, (6,), "float32")).tolist() == wrong
    dz = np.isnan(lib.numpy(dz, z, (6, 4), "float32"))
    assert dz.all(1).tolist() == dz.any(1).tolist() == wrong
    assert np.isnan(lib.numpy(gpuact.cross_entropy(z, t), z, (), "float32"))
    monkeypatch.setenv("GPUACT_CHECK", "1")
    with pytest.raises(IndexError, match=r"^target: class 4 came"):
        gpuact.cross_entropy(z, t)
