"""softmax of attention scores: scale, mask, causality, and rows in which no column takes part.

Through the public functions on every library, against the truth in extended precision; the meaning
of each option against torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest

import gpuact
from tests import bounds, truth
from tests.bounds import DTYPES, check
from tests.libraries import TORCH, Library, libraries, untouched, values
from tests.test_functions import as_rows
from tests.truth import Array

KINDS = ("bool", "added")


def scores(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> Array:
    return values(shape, dtype, seed, [0.0, 12.0, -30.0])


def mask_of(kind: str, shape: tuple[int, ...], dtype: str = "float32", seed: int = 1) -> Array:
    """Two thirds take part; of the added ones the others are −inf or a large negative number."""
    rng = np.random.default_rng(seed)
    part = np.asarray(rng.random(shape) < 2 / 3)
    if kind == "bool":
        return part
    others = rng.choice([-np.inf, -40.0], shape)
    return np.asarray(np.where(part, rng.standard_normal(shape), others)).astype(DTYPES[dtype])


@dataclass(frozen=True)
class Case:
    x: Array
    axis: Any = -1
    scale: float = 1.0
    mask: Array | None = None
    causal: bool = False
    all_masked: str = "nan"

    def options(self, mask: Any) -> dict[str, Any]:
        return {
            "scale": self.scale,
            "mask": mask,
            "causal": self.causal,
            "all_masked": self.all_masked,
        }

    @property
    def dtype(self) -> str:
        return str(self.x.dtype)

    def truth(self) -> tuple[Array, Array]:
        """The result and its bound, as rows."""
        scale = np.asarray(self.scale).astype(DTYPES[bounds.compute_dtype(self.dtype)])
        mask = self.mask
        if mask is not None and mask.dtype != bool:
            with np.errstate(all="ignore"):
                mask = mask.astype(self.x.dtype)
        z = as_rows(truth.scored(self.x, scale, mask, self.causal), self.axis)
        value = truth.softmax(z)
        if self.all_masked == "zero":
            value = np.where((z == -np.inf).all(1, keepdims=True), 0, value)
        with np.errstate(all="ignore"):
            terms = np.abs(as_rows(truth.long(self.x) * truth.long(scale), self.axis))
        return value, bounds.scored(self.dtype, z, np.where(np.isfinite(terms), terms, 0), value)

    def verify(self, lib: Library, got: Array, what: str) -> None:
        assert got.shape == self.x.shape
        if got.size:
            value, allowed = self.truth()
            what = f"{lib.name} {self.dtype} {self.x.shape} axis {self.axis} {what}"
            check(as_rows(got, self.axis), value, allowed, self.dtype, what)

    def run(self, lib: Library, what: str = "") -> Array:
        """In new memory, and over x."""
        x = lib.place(self.x)
        mask = None if self.mask is None else lib.place(self.mask)
        options = self.options(None if mask is None else mask.native)
        y = lib.numpy(
            gpuact.softmax(x.native, self.axis, **options), x.native, self.x.shape, self.dtype
        )
        self.verify(lib, y, what)
        untouched(x, *([] if mask is None else [mask]))
        return y


# -- masks of every shape -------------------------------------------------------------------------

X = (2, 3, 4, 5)
PATTERNS: dict[str, tuple[int, ...]] = {
    "0-d": (),
    "one element": (1, 1, 1, 1),
    "a key": (5,),
    "a query": (4, 1),
    "(L, S)": (4, 5),
    "(1, 1, L, S)": (1, 1, 4, 5),
    "(B, 1, 1, S)": (2, 1, 1, 5),
    "(1, H, 1, 1)": (1, 3, 1, 1),
    "(1, H, L, 1)": (1, 3, 4, 1),
    "(B, 1, L, S)": (2, 1, 4, 5),
    "(B, H, 1, S)": (2, 3, 1, 5),
    "(H, L, S)": (3, 4, 5),
    "(B, H, L, 1)": (2, 3, 4, 1),
    "full": X,
}
AXES = (-1, 0, 1, (2, 3), (1, 3), (0, 2), None)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_every_pattern(lib, kind, pattern):
    shape = PATTERNS[pattern]
    for k, axis in enumerate(AXES):
        if lib.family == "interpreter" and (len(pattern) + k) % 3:
            continue  # a third of all, another third for each pattern
        mask = mask_of(kind, shape) if shape else np.asarray(kind == "bool" or np.float32(2.5))
        for how in ("nan", "zero"):
            Case(scores(X), axis, 0.37, mask, all_masked=how).run(lib, f"{kind} {pattern} {how}")
    if len(shape) > 1:
        Case(scores(X), -1, -1.5, mask_of(kind, shape), causal=True).run(lib, f"{pattern} causal")


MASK_VIEWS: dict[str, Callable[[Array], Array]] = {
    "transposed": lambda m: m.transpose(1, 0, 3, 2),
    "strided": lambda m: m[::2, :, ::3, 1::2],
    "misaligned": lambda m: m[..., 1:],
    "broadcast": lambda m: np.broadcast_to(m[:1, :, :1], m.shape),
    "negative": lambda m: m[::-1, ..., ::-1],
}


@pytest.mark.parametrize("view", MASK_VIEWS)
@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_scores_of_any_strides(lib, kind, view):
    if view == "negative" and not lib.executor.negative_strides:
        pytest.skip("torch tensors have no negative strides")
    mask = MASK_VIEWS[view](mask_of(kind, (4, 3, 6, 9)))
    x = scores((mask.shape[3], mask.shape[0], mask.shape[2], mask.shape[1]))
    x = x.transpose(1, 3, 2, 0)
    assert x.shape == mask.shape
    for axis in (-1, 1, (0, 2)):
        Case(x, axis, 0.5, mask, all_masked="zero").run(lib, f"{kind} {view}")
        Case(x, axis, 0.5, mask[:, :1]).run(lib, f"{kind} {view}, shared by heads")


@pytest.mark.parametrize("kind", KINDS)
def test_masks_whose_axes_do_not_merge(lib, kind):
    """Every other axis is broadcast, so that no two are one: up to four are counted along."""
    x = scores((2, 3, 2, 2, 3, 2, 2, 5))
    for shape in (
        (2, 1, 2, 1, 3, 1, 2, 5),
        (2, 1, 2, 1, 3, 1, 1, 5),
        (1, 3, 1, 2, 1, 2, 1, 1),
        (2, 1, 2, 1, 1, 1, 1, 1),
    ):
        Case(x, -1, 0.5, mask_of(kind, shape), all_masked="zero").run(lib, f"{kind} {shape}")
        Case(x, (3, 5), 0.5, mask_of(kind, shape)).run(lib, f"{kind} {shape}")


def test_a_mask_is_not_copied(monkeypatch):
    """What the kernel sees is the caller's memory, with as many axes as its strides take."""
    from gpuact.backends import numpy as backend

    seen: list[Array] = []
    work = backend.rows

    def spy(formula: str, arrays: Any, out: Array, given: Any, empty: Any) -> None:
        seen.append(given.mask)
        work(formula, arrays, out, given, empty)

    monkeypatch.setattr(backend, "rows", spy)
    expected: dict[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]]] = {
        (): ((24, 5), (0, 0)),
        (5,): ((24, 5), (0, 1)),
        (4, 1): ((6, 4, 5), (0, 1, 0)),
        (4, 5): ((6, 4, 5), (0, 5, 1)),
        (2, 1, 1, 5): ((2, 12, 5), (5, 0, 1)),
        (1, 3, 1, 1): ((2, 3, 4, 5), (0, 1, 0, 0)),
        (2, 1, 4, 5): ((2, 3, 4, 5), (20, 0, 5, 1)),
        (2, 3, 4, 5): ((24, 5), (5, 1)),
    }
    for (shape, (axes, steps)), kind in product(expected.items(), KINDS):
        mask = mask_of(kind, shape)
        gpuact.softmax(scores(X), mask=mask)
        assert seen[-1].shape == axes
        long = [k for k, n in enumerate(axes) if n > 1]
        assert [seen[-1].strides[k] for k in long] == [mask.itemsize * steps[k] for k in long]
        assert np.shares_memory(seen[-1], mask)
    wide = np.broadcast_to(mask_of("added", (5,), "float64"), X)  # cast before it is broadcast
    gpuact.softmax(scores(X), mask=wide)
    assert seen[-1].strides == (0, 4)
    mask = mask_of("bool", (2, 1, 1, 5))
    gpuact.softmax(scores(X), 1, mask=mask)  # another axis: the row's is last, and broadcast
    assert seen[-1].shape == (2, 4, 5, 3)
    assert seen[-1].strides == (5, 0, 1, 0)
    gpuact.softmax(scores(X), (2, 3), mask=mask)  # no one stride: the row alone is copied
    assert seen[-1].shape == (2, 3, 20)
    assert seen[-1].strides == (20, 0, 1)


# -- causal ---------------------------------------------------------------------------------------

SQUARES = [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1), (2, 3, 5), (2, 3, 6, 4), (2, 3, 4, 6)]


@pytest.mark.parametrize("shape", SQUARES, ids=str)
def test_causal(lib, shape, dtype):
    case = Case(scores(shape, dtype), scale=0.125, causal=True)
    y = case.run(lib, "causal")
    late = np.arange(shape[-1]) > np.arange(shape[-2])[:, None]
    assert (y[..., late] == 0).all()
    assert (y[..., 0, 0] == 1).all()
    for kind in KINDS:
        mask = mask_of(kind, shape[-2:], dtype)
        Case(case.x, -1, 2.0, mask, True, "zero").run(lib, f"causal and {kind}")


@pytest.mark.parametrize("lib", TORCH, indirect=True)
def test_causal_is_aligned_as_torchs_attention(lib):
    """With the identity for values, attention's output is its softmax."""
    torch = pytest.importorskip("torch")
    attention = torch.nn.functional.scaled_dot_product_attention
    for rows, columns in ((4, 4), (3, 7), (7, 3), (1, 4)):
        q = lib.place(scores((2, 3, rows, 8), "float64")).native
        k = lib.place(scores((2, 3, columns, 8), "float64", 1)).native
        v = torch.eye(columns, dtype=torch.float64, device=q.device).expand(2, 3, -1, -1)
        x = q @ k.transpose(-1, -2)
        want = attention(q, k, v, is_causal=True)
        got = gpuact.softmax(x, scale=8**-0.5, causal=True)
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-14)
        mask = lib.place(mask_of("bool", (2, 1, 1, columns))).native
        mask[..., 0] = True
        want = attention(q, k, v, attn_mask=mask.expand(2, 3, rows, columns))
        got = gpuact.softmax(x, scale=8**-0.5, mask=mask)
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-14)


# -- what takes no part ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 1030])
def test_rows_that_are_masked_whole(lib, n, dtype):
    """By False, by −inf, by causality and a mask together, by x itself: NaN, or 0 if asked."""
    x = scores((5, n), dtype)
    x[4] = -np.inf
    part = np.ones((5, n), bool)
    part[1] = False
    added = np.zeros((5, n), DTYPES[dtype])
    added[1] = -np.inf
    late = np.ones((5, n), bool)
    late[1, :2] = False
    for mask, causal in ((part, False), (added, False), (late, True)):
        whole = [False, True, False, False, True]
        y = Case(x, -1, 1.0, mask, causal).run(lib).astype(np.float64)
        assert np.isnan(y).all(1).tolist() == np.isnan(y).any(1).tolist() == whole
        y = Case(x, -1, 1.0, mask, causal, "zero").run(lib).astype(np.float64)
        assert not np.isnan(y).any()
        assert (y == 0).all(1).tolist() == whole


def test_nan_and_infinity_under_a_mask(lib, dtype):
    """False means −inf whatever x holds there, and a later column likewise; an added −inf does not
    hide NaN or +inf."""
    x = scores((4, 6), dtype)
    x[:, 4], x[:, 5] = np.nan, np.inf
    part = np.ones((4, 6), bool)
    part[:, 4:] = False
    plain = x[:, :4].copy()
    want = lib.executor.to_numpy(gpuact.softmax(lib.place(plain).native, scale=0.5))
    y = Case(x, -1, 0.5, part).run(lib, "hidden").astype(np.float64)
    np.testing.assert_allclose(y[:, :4], want.astype(np.float64), rtol=1e-2)
    assert (y[:, 4:] == 0).all()
    y = Case(x, -1, 0.5, None, causal=True).run(lib, "later").astype(np.float64)
    assert not np.isnan(y).any()
    added = np.where(part, 0, -np.inf).astype(DTYPES[dtype])
    for how in ("nan", "zero"):
        y = Case(x, -1, 0.5, added, all_masked=how).run(lib, "added").astype(np.float64)
        assert np.isnan(y).all()


def test_one_column_takes_part(lib):
    """Its share is 1, however wide the row is and whatever the mask is beside it."""
    n = 5000
    for kind, where in product(KINDS, (0, n // 2, n - 1)):
        part = np.arange(n) == where
        mask = part if kind == "bool" else np.where(part, 0, -np.inf).astype(np.float32)
        y = Case(scores((3, n)), -1, 0.5, mask).run(lib, f"{kind} at {where}")
        assert (y[:, where] == 1).all()
        assert (np.delete(y, where, 1) == 0).all()


# -- scale ----------------------------------------------------------------------------------------


@pytest.mark.every
@pytest.mark.parametrize("scale", [0.125, -2.0, 0.0, 1e-3, 3])
def test_scale(lib, scale, dtype):
    for shape, axis in (((3, 33), -1), ((33, 4), 0), ((2, 3, 5), (0, 2)), ((), -1), ((3, 0), -1)):
        Case(scores(shape, dtype), axis, scale).run(lib, f"scale {scale}")


def test_scale_does_not_lose_digits_to_a_half_type(lib):
    """0.1 enters as float32 has it."""
    for dtype in ("float16", "bfloat16"):
        x = np.array([[0.0, 96.0]], DTYPES[dtype])
        want = 1 / (1 + np.exp(np.float64(np.float32(0.1)) * 96))
        y = Case(x, -1, 0.1).run(lib).astype(np.float64)
        assert abs(y[0, 0] - want) <= want * 2 ** -(8 if dtype == "bfloat16" else 4)


# -- dtypes, out, sizes ---------------------------------------------------------------------------


@pytest.mark.every
def test_an_added_mask_is_taken_in_the_dtype_of_x(lib, dtype):
    for kind in DTYPES:
        mask = mask_of("added", (4, 1, 6), kind)
        Case(scores((4, 3, 6), dtype), -1, 0.5, mask, all_masked="zero").run(lib, f"mask {kind}")
    x, mask = lib.place(scores((4, 6), "float16")), lib.place(mask_of("bool", (6,)))
    y = gpuact.softmax(x.native, dtype=dtype, mask=mask.native, scale=0.5)
    like = Case(x.numpy().astype(DTYPES[dtype]), -1, 0.5, mask.numpy())
    like.verify(lib, lib.numpy(y, x.native, (4, 6), dtype), "cast")


@pytest.mark.parametrize("kind", KINDS)
def test_out(lib, kind):
    """Over x, over the mask, beside them in their memory, into strides."""
    x, mask = scores((6, 9)), mask_of(kind, (6, 9))
    case = Case(x, -1, 0.5, mask, True, "zero")
    memory, given = lib.place(x), lib.place(mask)
    options = case.options(given.native)
    assert gpuact.softmax(memory.native, out=memory.native, **options) is memory.native
    case.verify(lib, memory.numpy(), "over x")
    strided = lib.blank(np.empty((9, 14), np.float32).T[2:8])
    placed = lib.place(x)
    assert gpuact.softmax(placed.native, out=strided.native, **options) is strided.native
    case.verify(lib, strided.numpy(), "strided")
    untouched(placed, given)
    if kind == "added":
        gpuact.softmax(placed.native, out=given.native, **options)
        case.verify(lib, given.numpy(), "over the mask")
        both = lib.place(np.concatenate([mask, mask[:1]]))
        options = case.options(both.native[:-1])
        gpuact.softmax(placed.native, out=both.native[1:], **options)
        case.verify(lib, both.numpy()[1:], "beside the mask")
        row = lib.place(mask)
        gpuact.softmax(placed.native, out=row.native, **case.options(row.native[2]))
        Case(x, -1, 0.5, mask[2], True, "zero").verify(lib, row.numpy(), "over a row's mask")


@pytest.mark.parametrize(
    ("shape", "axis"), [((0, 5), -1), ((3, 0), -1), ((0,), 0), ((2, 0, 3), 1), ((), -1), ((), None)]
)
def test_small_scores(lib, shape, axis):
    for mask in (np.asarray(True), np.asarray(0.5, np.float32), np.asarray(False)):
        Case(scores(shape), axis, 0.5, mask, all_masked="zero").run(lib)
    if len(shape) > 1 and axis == -1:
        Case(scores(shape), causal=True).run(lib)


# 20,000 is cut into pieces by a GPU, 300,000 by NumPy
@pytest.mark.parametrize(
    ("kind", "n"),
    [
        pytest.param(kind, n, marks=() if k == j % 2 and n < 50_000 else pytest.mark.slow)
        for k, kind in enumerate(KINDS)
        for j, n in enumerate((257, 1027, 20_000, 300_000))
    ],
)
def test_long_rows(lib, kind, n):
    if n > 50_000 and lib.name in ("numpy-in-pieces", "interpreter"):
        pytest.skip("what a long row would show, a short one in small pieces does")
    x = scores((1 if n > 50_000 else 2, 3, n))
    x[..., n // 2] = np.nan
    mask = mask_of(kind, (3, n))
    mask[:, : n // 3] = False if kind == "bool" else -np.inf  # whole tiles
    mask[1] = False if kind == "bool" else -np.inf
    if kind == "bool":
        mask[:, n // 2] = False
    else:
        x[..., n // 2] = 1
    for how in ("nan", "zero"):
        Case(x, -1, 0.5, mask, all_masked=how).run(lib, how)
        Case(x.transpose(2, 0, 1), 0, 0.5, mask.T[:, None], all_masked=how).run(lib, how)
    Case(x[:, 1:], -1, 0.5, mask[::2], True).run(lib, "causal")


def test_a_row_of_scores_does_not_depend_on_the_rows_beside_it(lib, dtype):
    x, mask = scores((40, 1001), dtype), mask_of("bool", (40, 1001))
    many = gpuact.softmax(lib.place(x).native, mask=lib.place(mask).native, scale=0.3)
    many = lib.executor.to_numpy(many)
    for k in (0, 17, 39):
        one = lib.place(x[k : k + 1]).native
        y = gpuact.softmax(one, mask=lib.place(mask[k]).native, scale=0.3)
        assert lib.executor.to_numpy(y).tobytes() == many[k].tobytes()


# -- backward -------------------------------------------------------------------------------------


@pytest.mark.every
@pytest.mark.parametrize("scale", [0.125, -2.0])
def test_backward_with_scale(lib, scale, dtype):
    cases = [((3, 33), -1), ((33, 4), 0), ((2, 3, 5), (0, 2)), ((2, 20_000), -1), ((), -1)]
    for shape, axis in cases:
        y = truth.softmax(as_rows(scores(shape, dtype), axis))
        rows = np.moveaxis(y, 1, -1).astype(np.float64).astype(DTYPES[dtype])
        dy = values((len(y), 1, y.shape[1]), dtype, 2, [0.0])
        both = [lib.place(a.transpose(0, 2, 1)) for a in (dy, rows)]
        got = gpuact.softmax_backward(*(p.native for p in both), 1, scale=scale)
        arrays = [p.numpy() for p in both]
        value = scale * truth.softmax_backward(*arrays)
        allowed = abs(scale) * bounds.rows("softmax_backward", dtype, arrays, value / scale)
        allowed = allowed + 2 * bounds.stored(value, dtype)
        got = lib.numpy(got, both[0].native, arrays[0].shape, dtype)
        check(got, value, allowed, dtype, f"backward {shape} {axis}")
        untouched(*both)


on_torch = pytest.mark.parametrize("lib", TORCH, indirect=True)


@on_torch
def test_gradients_are_torchs(lib):
    """Through masked_fill and addition; at what takes no part the gradient is 0."""
    torch = pytest.importorskip("torch")
    x = lib.place(scores((2, 3, 4, 5), "float64")).native.requires_grad_()
    dy = lib.place(scores((2, 3, 4, 5), "float64", 3)).native
    late = torch.ones(4, 5, dtype=torch.bool, device=x.device).triu(1)
    for kind, shape, causal in product(KINDS, ((5,), (2, 1, 1, 5), (1, 3, 4, 1)), (False, True)):
        mask = lib.place(mask_of(kind, shape, "float64")).native
        z = 0.5 * x
        z = z.masked_fill(~mask, -torch.inf) if kind == "bool" else z + mask
        if causal:
            z = z.masked_fill(late, -torch.inf)
        none = (z == -torch.inf).all(-1, keepdim=True)
        want = torch.softmax(z, -1).masked_fill(none, 0.0)
        got = gpuact.softmax(x, scale=0.5, mask=mask, causal=causal, all_masked="zero")
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-15)
        (dx,) = torch.autograd.grad(got, x, dy)
        assert not dx.isnan().any()
        assert (dx[(z == -torch.inf).expand_as(dx)] == 0).all()
        safe = torch.where(none, 0.0, z)  # torch's own gives NaN for rows of −inf
        (part,) = torch.autograd.grad(torch.softmax(safe, -1), x, dy)
        near = torch.where(none, 0.0, part)
        assert torch.allclose(dx, near, rtol=1e-12, atol=1e-13)


@on_torch
def test_gradcheck(lib):
    torch = pytest.importorskip("torch")
    x = lib.place(scores((2, 3, 4), "float64") / 8).native.clone().requires_grad_()
    mask = lib.place(mask_of("bool", (3, 1))).native
    added = lib.place(np.linspace(-1, 2, 12).reshape(3, 4)).native
    calls: list[Callable[[Any], Any]] = [
        lambda x: gpuact.softmax(x, scale=-1.5),
        lambda x: gpuact.softmax(x, 1, scale=0.5, mask=added),
        lambda x: gpuact.softmax(x, mask=mask, all_masked="zero"),
        lambda x: gpuact.softmax(x, mask=added, scale=2.0, causal=True),
        lambda x: gpuact.softmax(x, (0, 2), mask=mask, scale=2.0, all_masked="zero"),
    ]
    for call in calls:
        assert torch.autograd.gradcheck(call, (x,))
        if lib.family != "interpreter":  # a minute
            assert torch.autograd.gradgradcheck(call, (x,))


@on_torch
def test_forward_keeps_the_result_alone(lib):
    torch = pytest.importorskip("torch")
    x = lib.place(scores((3, 4, 5), "float64")).native.requires_grad_()
    mask = lib.place(mask_of("added", (4, 5), "float64")).native
    stored = []

    def pack(tensor: Any) -> Any:
        stored.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = gpuact.softmax(x, scale=0.5, mask=mask, causal=True)
    assert [t.data_ptr() for t in stored] == [y.data_ptr()]


@pytest.mark.parametrize("lib", libraries("numpy", "torch-cpu"), indirect=True)
def test_plain_options_take_the_plain_kernel(lib, monkeypatch):
    """Scores that change nothing are none."""
    given = []
    work = lib.executor.backend.rows

    def spy(formula: str, arrays: Any, out: Any, how: Any, empty: Any) -> None:
        given.append(how)
        work(formula, arrays, out, how, empty)

    monkeypatch.setattr(lib.executor.backend, "rows", spy)
    x = lib.place(scores((3, 4))).native
    gpuact.softmax(x, scale=1, mask=None, causal=False, all_masked="nan")
    gpuact.softmax_backward(x, x, scale=1)
    assert given == [None, None]
