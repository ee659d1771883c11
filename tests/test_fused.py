"""`fused` and its backward: every activation with every option, on every backend and library.

The truth is spelled here once more, in extended precision, step by step as the docstring has it.
A dropped element is compared too: Philox by its published answers, the mask on every backend.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import gpuact
from gpuact import reference, routes
from gpuact.catalogue import FUNCTIONS
from gpuact.fusion import Dropout, Fusion
from tests import bounds, harness, truth
from tests.bounds import DTYPES, FORMATS, check, compute_dtype
from tests.harness import Executor, executors
from tests.truth import LONG, Array

ACTIVATIONS = [f.name for f in FUNCTIONS.values() if f.kind == "elementwise"]
DROPOUT = Dropout(0.3, seed=0x1234567_89ABCDEF, offset=2**32 + 5)


# -- the generator --------------------------------------------------------------------------------

# counter, key, and the words of Philox4x32-10: the known answers of its authors' Random123
KNOWN = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
)  # fmt: skip


def number(low: str, high: str) -> int:
    return int(low, 16) | int(high, 16) << 32


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, words):
    c, k = counter.split(), key.split()
    block = np.array([number(*c[:2])], np.uint64)
    got = reference.philox(block, number(*k), number(*c[2:]))
    assert [int(word[0]) for word in got] == [int(w, 16) for w in words.split()]


@pytest.mark.parametrize("first", (0, 1, 2, 3, 2**34 - 3))
def test_a_mask_depends_on_the_element_alone(first):
    """Word i & 3 of counter i >> 2, wherever the piece begins that asks for it."""
    mask = reference.dropped(first, 11, DROPOUT)
    for k, i in enumerate(range(first, first + 11)):
        words = reference.philox(np.array([i >> 2], np.uint64), DROPOUT.seed, DROPOUT.offset)
        assert mask[k] == (int(words[i & 3][0]) < DROPOUT.p * 2**32)


@pytest.mark.parametrize("p", (0.0, 1e-9, 0.25, 0.5, 0.999, 1.0))
def test_so_many_are_dropped(p):
    n = 1 << 18
    x = np.ones(n)
    y = gpuact.fused(x, "linear", dropout=Dropout(p, seed=3))
    share = (y == 0).mean()
    assert abs(share - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-9
    assert set(np.unique(y)) <= {0.0, 1 / (1 - p) if p < 1 else 0.0}


def test_calls_that_differ_in_their_offset_share_a_kind():
    """Else the kinds remembered would be as many as calls, and push each other out."""
    x = np.ones(8)
    gpuact.fused(x, "tanh", dropout=Dropout(0.5, 1))
    before = len(routes._routes)
    masks = {gpuact.fused(x, "tanh", dropout=Dropout(0.5, 1, k)).tobytes() for k in range(50)}
    assert len(routes._routes) == before
    assert len(masks) > 40


def test_seeds_and_offsets_give_masks_of_their_own():
    masks = [
        reference.dropped(0, 4096, Dropout(0.5, seed, offset))
        for seed, offset in itertools.product((0, 1, 2**32, 2**63), (0, 1, 2**32))
    ]
    for a, b in itertools.combinations(masks, 2):
        assert 0.4 < (a == b).mean() < 0.6


# -- the truth ------------------------------------------------------------------------------------


@dataclass
class Case:
    """One call: x and what else is given; None is left out."""

    activation: str
    x: Array
    scale: Array | float | None = None
    bias: Array | float | None = None
    slope: Array | float | None = None
    gate: Array | None = None
    residual: Array | None = None
    dropout: Dropout | None = None

    @property
    def fusion(self) -> Fusion:
        return Fusion(self.activation, self.dropout)

    @property
    def params(self) -> tuple[Array | float | None, ...]:
        return self.scale, self.bias, self.slope

    @property
    def given(self) -> dict[str, Array | float]:
        names = ("scale", "bias", "slope", "gate")
        return {k: v for k in names if (v := getattr(self, k)) is not None}

    def wide(self, value: Any) -> Array:
        """As it enters the computation: numbers in its precision."""
        number = isinstance(value, float)
        return truth.long(
            np.dtype(compute_dtype(str(self.x.dtype))).type(value) if number else value
        )

    def keep(self) -> Array:
        """What each element is multiplied by; 0 where it is dropped."""
        if self.dropout is None:
            return np.ones(self.x.shape, LONG)
        mask = reference.dropped(0, self.x.size, self.dropout).reshape(self.x.shape)
        kept = np.dtype(compute_dtype(str(self.x.dtype))).type(self.dropout.scale)
        return np.where(mask, 0, LONG(kept))

    def inner(self) -> tuple[Array, Array, Array]:
        """u = scale·x + bias, act(u), act'(u)."""
        u = truth.long(self.x)
        u = u if self.scale is None else u * self.wide(self.scale)
        u = u if self.bias is None else u + self.wide(self.bias)
        if self.activation == "linear":
            return u, u, np.ones_like(u)
        record = FUNCTIONS[self.activation]
        slope = () if self.slope is None else (self.wide(self.slope),)
        assert record.slope is not None
        a = truth.elementwise(record.forward.formula, u, *slope)
        return u, a, truth.elementwise(record.slope.formula, u, *slope)

    def forward(self) -> Array:
        with np.errstate(all="ignore"):
            _, a, _ = self.inner()
            y = np.where(self.keep() == 0, 0, a * self.keep())
            y = y if self.gate is None else y * truth.long(self.gate)
            return y if self.residual is None else y + truth.long(self.residual)

    def backward(self, dy: Array) -> dict[str, Array]:
        """The gradients of elements: dx and dgate, and the terms of the parameters' sums."""
        with np.errstate(all="ignore"):
            u, a, da_du = self.inner()
            e = truth.long(dy) * (1 if self.gate is None else truth.long(self.gate))
            keep = self.keep()
            da = np.where(keep == 0, 0, e * keep)
            du = np.where((da_du == 0) & ~np.isnan(da), 0, da * da_du)
            terms = {
                "x": du * (1 if self.scale is None else self.wide(self.scale)),
                "scale": du * truth.long(self.x),
                "bias": du,
                "slope": np.where(u > 0, 0, da * u),
            }
            terms = {name: np.where(keep == 0, 0, term) for name, term in terms.items()}
            terms["gate"] = truth.long(dy) * np.where(keep == 0, 0, a * keep)
            return terms

    def errors(self, dy: Array) -> dict[str, Array]:
        """How far off the elements of `forward` (as "y") and of `backward` may be.

        u is rounded twice at most, act and act' are good to FUSED ulp, or to a hundredth of a half
        type's if x is one, and |act''| <= 2 |act'|; each product or sum behind that costs half an
        ulp. A gradient has u as the stored x makes it.
        """
        dtype = str(self.x.dtype)
        unit = LONG(2) ** (1 - FORMATS[compute_dtype(dtype)].digits)
        good = bounds.FUSED * unit if dtype == compute_dtype(dtype) else LONG(2) ** -18
        with np.errstate(all="ignore"):
            u, a, slope = (np.abs(v) for v in self.inner())
            x, dy = np.abs(truth.long(self.x)), np.abs(truth.long(dy))
            scale = np.abs(self.wide(1.0 if self.scale is None else self.scale))
            bias = np.abs(self.wide(0.0 if self.bias is None else self.bias))
            gate = np.abs(truth.long(1 if self.gate is None else self.gate))
            residual = np.abs(truth.long(0 if self.residual is None else self.residual))
            keep = self.keep()
            u, a, slope, x, dy = (np.where(keep == 0, 0, v) for v in (u, a, slope, x, dy))
            in_u = unit * (x * scale + bias)
            in_a = slope * in_u + good * a + TINY
            in_slope = slope * (2 * in_u + good) + TINY
            da = dy * gate * keep
            in_du = da * (in_slope + 2 * unit * slope)
            return {
                "y": keep * gate * (in_a + 2 * unit * a) + unit * residual,
                "x": in_du * scale + unit * da * slope * scale,
                "gate": dy * keep * (in_a + 2 * unit * a),
                "scale": in_du * x + unit * da * slope * x,
                "bias": in_du,
                "slope": da * (in_u + 2 * unit * u),
            }

    def decided(self) -> Array:
        """Where rounding u cannot carry it over a kink at 0."""
        if FUNCTIONS[self.activation].kink == "smooth":
            return np.ones(self.x.shape, bool)
        u, _, _ = self.inner()
        scale = np.abs(self.wide(1.0 if self.scale is None else self.scale))
        bias = np.abs(self.wide(0.0 if self.bias is None else self.bias))
        unit = LONG(2) ** (1 - FORMATS[compute_dtype(str(self.x.dtype))].digits)
        rounded = unit * (np.abs(truth.long(self.x)) * scale + bias)
        return np.abs(u) > np.maximum(rounded, bounds.least(str(self.x.dtype)))


TINY = bounds.FLUSHED  # below it float32 may be flushed, within a chain as well


def some(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    return np.asarray(rng.standard_normal(shape) * 2).astype(DTYPES[dtype])


def case_of(
    activation: str,
    x: Array,
    kinds: dict[str, Any],
    dtype: str,
    seed: int = 0,
) -> Case:
    """kinds: name → shape of an array, True for x's, or a number; for dropout the value."""
    rng = np.random.default_rng(seed)
    given: dict[str, Any] = {}
    for name, kind in kinds.items():
        shape = x.shape if kind is True else kind
        given[name] = kind if isinstance(kind, float | Dropout) else some(rng, shape, dtype)
    if Fusion(activation).slope and "slope" not in given:
        given["slope"] = 0.25
    case = Case(activation, x.copy(), **given)
    case.x[~case.decided()] = 1
    assert case.decided().mean() > 0.9
    return case


# -- the backends ---------------------------------------------------------------------------------


@pytest.fixture(params=executors())
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Executor:
    return harness.make(request.param, monkeypatch)


def native(executor: Executor, value: Any) -> Any:
    return executor.place(value).native if isinstance(value, np.ndarray) else value


def ones(ndim: int) -> tuple[int, ...]:
    return (1,) * ndim


def run(executor: Executor, case: Case, into: Array | None = None) -> None:
    """Forward against the truth; `into`: an array whose strides the result is to have."""
    x, dtype = executor.place(case.x), str(case.x.dtype)
    out = executor.place(np.empty_like(case.x) if into is None else into, blank=True)
    rest = (native(executor, a) for a in (case.gate, case.residual))
    params = tuple(native(executor, p) for p in case.params)
    executor.backend.fused(case.fusion, x.native, params, *rest, out.native, executor.empty)
    value = case.forward()
    allowed = case.errors(np.zeros_like(case.x))["y"] + bounds.stored(value, dtype)
    got = out.numpy()
    assert x.unchanged()
    dropped = np.broadcast_to(case.keep() == 0, got.shape)
    residual = 0 if case.residual is None else case.residual.astype(got.dtype)
    if str(np.asarray(residual).dtype) == dtype or case.residual is None:
        assert (got[dropped] == np.broadcast_to(residual, got.shape)[dropped]).all()
    check(got, value, allowed, dtype, f"{executor.name} {case.fusion} {case.x.shape}")


def behind(count: int, shape: tuple[int, ...], dtype: str) -> Array:
    """New memory whose address is so many elements behind a multiple of 16."""
    item = np.dtype(DTYPES[dtype]).itemsize
    flat = np.empty(int(np.prod(shape)) + 16 + count, DTYPES[dtype])
    first = -flat.ctypes.data % 16 // item + count
    return flat[first : first + int(np.prod(shape))].reshape(shape)


def run_backward(
    executor: Executor,
    case: Case,
    dy: Array,
    wanted: Sequence[str] | None = None,
    like: Callable[[Array], Array] = np.empty_like,
) -> dict[str, Array]:
    """Every gradient that is wanted (all that there are, by default) against the truth."""
    names = ["x", *case.given] if wanted is None else list(wanted)
    if not Fusion(case.activation).slope or case.activation == "leaky_relu":
        names = [name for name in names if name != "slope"]
    x, incoming = executor.place(case.x), executor.place(dy)
    params = tuple(native(executor, p) for p in case.params)
    outs = {}
    for name in names:
        source = case.x if name == "x" else getattr(case, name)
        if isinstance(source, float) or source is None:
            source = np.empty(ones(case.x.ndim), case.x.dtype)
        outs[name] = executor.place(like(source), blank=True)
    found = {name: out.native for name, out in outs.items()}
    executor.backend.fused_backward(
        case.fusion,
        incoming.native,
        x.native,
        params,
        native(executor, case.gate),
        found.get("x"),
        found.get("gate"),
        tuple(found.get(name) for name in ("scale", "bias", "slope")),
        executor.empty,
    )
    assert x.unchanged()
    assert incoming.unchanged()
    truths, errors = case.backward(dy), case.errors(dy)
    unit = LONG(2) ** (1 - FORMATS[compute_dtype(str(case.x.dtype))].digits)
    results = {}
    for name, out in outs.items():
        results[name] = got = out.numpy()
        axes = tuple(k for k, n in enumerate(got.shape) if n == 1)
        value = np.broadcast_to(truths[name], case.x.shape)
        allowed = np.broadcast_to(errors[name], case.x.shape)
        terms = max(1, case.x.size // max(1, got.size))
        summed = np.abs(value).sum(axes, keepdims=True)
        if terms > 1:
            allowed = allowed.sum(axes, keepdims=True) + unit * summed * bounds.row(terms)
            value = value.sum(axes, keepdims=True)
        dtype = str(got.dtype)
        allowed = allowed + bounds.stored(value, dtype)
        check(got, value, allowed, dtype, f"{executor.name} d{name} {case.fusion} {got.shape}")
    return results


# option → what is given beside x; a channel is the last axis of (6, 5, 8)
SHAPE = (6, 5, 8)
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "numbers": {"scale": -1.5, "bias": 0.25},
    "channels": {"scale": (1, 1, 8), "bias": (1, 1, 8)},
    "full": {"scale": True, "bias": True},
    "bias": {"bias": (1, 5, 1)},
    "gate": {"gate": True},
    "residual": {"residual": True},
    "dropout": {"dropout": DROPOUT},
    "all": {
        "scale": (1, 1, 8),
        "bias": 0.25,
        "gate": True,
        "residual": True,
        "dropout": DROPOUT,
    },
}


@pytest.mark.many
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_with_every_option(executor, activation, option, dtype):
    rng = np.random.default_rng(1)
    case = case_of(activation, some(rng, SHAPE, dtype), OPTIONS[option], dtype)
    run(executor, case)
    run_backward(executor, case, some(rng, SHAPE, dtype))


# Where slopes differ: shared, one a channel on each axis, one an element
@pytest.mark.parametrize("slope", (0.3, (1, 1, 1), (1, 1, 8), (1, 5, 1), (6, 1, 1), True), ids=str)
def test_slopes_are_learned(executor, slope, dtype):
    rng = np.random.default_rng(2)
    case = case_of("prelu", some(rng, SHAPE, dtype), {"slope": slope, "dropout": DROPOUT}, dtype)
    run(executor, case)
    run_backward(executor, case, some(rng, SHAPE, dtype))


def test_patterns_that_differ(executor):
    """Scale, bias and slope along different axes, and along two that are no neighbours."""
    rng = np.random.default_rng(3)
    for kinds in (
        {"scale": (1, 5, 1), "bias": (1, 1, 8), "slope": (6, 1, 1)},
        {"scale": (6, 1, 8), "bias": (6, 5, 1), "slope": 0.5},
        {"scale": True, "bias": (1, 5, 8), "slope": (1, 1, 1)},
    ):
        case = case_of("prelu", some(rng, SHAPE, "float32"), kinds, "float32")
        run(executor, case)
        run_backward(executor, case, some(rng, SHAPE, "float32"))


# (shape, channel axis): runs that are short, long, odd, one element; more rows than a chunk
SUMS = {
    "planes": ((3, 4, 56, 56), 1),
    "odd planes": ((5, 3, 7, 7), 1),
    "odd long planes": ((2, 3, 1237), 1),
    "channels last": ((700, 24), 1),
    "odd channels last": ((301, 13), 1),
    "many channels last": ((70, 2056), 1),
    "channels first": ((6, 999), 0),
    "one channel": ((9000,), None),
    "a lot": ((90, 1024), 1),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums(executor, name, dtype):
    """In every regime, three at once, twice the same bits."""
    shape, axis = SUMS[name]
    rng = np.random.default_rng(4)
    one = tuple(n if k == axis else 1 for k, n in enumerate(shape))
    kinds = {"scale": one, "bias": one, "slope": one}
    case = case_of("prelu", some(rng, shape, dtype), kinds, dtype)
    dy = some(rng, shape, dtype)
    first, again = (run_backward(executor, case, dy) for _ in range(2))
    assert all(first[k].tobytes() == again[k].tobytes() for k in first)
    run_backward(executor, Case("prelu", case.x, slope=case.slope), dy)
    run_backward(executor, Case("linear", case.x, scale=case.scale), dy, ("x", "scale", "bias"))
    run_backward(executor, case, dy, ("bias",))


@pytest.mark.parametrize("along", (1, 2, 4))
@pytest.mark.parametrize("executor", executors("cupy-ptx", "cupy-cuda"), indirect=True)
def test_a_thread_merges_the_sums_of_many_blocks(executor, along, monkeypatch):
    """As where they outnumber a block's threads, which count on through tiles, runs and chunks."""
    monkeypatch.setattr("gpuact.kernels.cupy.fused.MANY_CHANNELS", (8, along))
    rng = np.random.default_rng(8)
    x, dy = (some(rng, (40, 8, 300), "float32") for _ in range(2))
    case = Case("prelu", x, slope=some(rng, (1, 8, 1), "float32"))
    run_backward(executor, case, dy)


# (shape, channel axis, dtype, how many elements behind a multiple of 16 bytes all arrays begin)
SHORT = {
    "one pack, cut at both ends": ((2, 2), 1, "bfloat16", 3),
    "two packs, each cut": ((2, 3), 1, "bfloat16", 3),
    "a pack and two cut": ((3, 5), 1, "float16", 7),
    "odd planes": ((9, 5, 7, 7), 1, "bfloat16", 1),
    "odd planes, whole quadruples": ((9, 5, 7, 7), 1, "float16", 4),
    "aligned odd planes": ((9, 5, 7, 7), 1, "bfloat16", 0),
    "longer than a tile's row": ((3, 4, 999), 1, "float32", 3),
    "as long as a row of memory": ((6, 999), 0, "float32", 1),
    "channels last": ((301, 13), 1, "bfloat16", 5),
    "many short runs": ((700, 5, 3), 1, "float32", 1),
    "more channels last": ((17, 133), 1, "float32", 2),
    "float64": ((33, 6, 5), 1, "float64", 1),
}


KERNELS = ("cupy-ptx", "triton-ptx", "triton-interpreter", "cupy-cuda", "triton-cuda")


@pytest.fixture(params=("long chunks", "short chunks", "offsets of 64 bits"))
def regime(request, executor, monkeypatch):
    """What arrays of another size would be given."""
    module = f"gpuact.kernels.{executor.backend.__name__.rpartition('.')[2]}.fused"
    settings: dict[str, Any] = {}
    if request.param == "short chunks":
        settings = {"FEWEST_ROWS": 1, "SHARE": 1} if "cupy" in module else {"SHARE": 4.0}
        if "triton" in module:  # and the second stage goes around several times
            settings["collecting"] = lambda kept, flat: (8, 2)
    elif request.param == "offsets of 64 bits" and "triton" in module:
        monkeypatch.setattr(executor.backend, "NARROW", 0)
    for name, value in settings.items():
        monkeypatch.setattr(f"{module}.{name}", value)
    if "triton" in module:
        monkeypatch.setattr(executor.backend, "_plans", {})
        yield
    else:
        kernels = pytest.importorskip(module)
        kernels.plan.cache_clear()
        yield
        kernels.plan.cache_clear()


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("executor", executors(*KERNELS), indirect=True)
def test_sums_over_short_runs_wherever_memory_begins(executor, regime, name):
    """Rows of Triton's tiles begin with a sector; what memory's ends cut off has its own path."""
    shape, axis, dtype, start = SHORT[name]
    rng = np.random.default_rng(9)

    def at_start(a: Array) -> Array:
        return behind(start, a.shape, dtype) if a.shape == shape else np.empty_like(a)

    def filled() -> Array:
        memory = behind(start, shape, dtype)
        memory[...] = some(rng, shape, dtype)
        return memory

    one = tuple(n if k == axis else 1 for k, n in enumerate(shape))
    scale, bias, slope = (some(rng, one, dtype) for _ in range(3))
    x, dy, gate = filled(), filled(), filled()
    case = Case("prelu", x, scale, bias, slope, gate, None, DROPOUT)
    x[~case.decided()] = 1
    run_backward(executor, case, dy, like=at_start)
    # of two the sum over all, of one over runs
    case = Case("prelu", x, 1.5, bias, some(rng, ones(len(shape)), dtype))
    x[~case.decided()] = 1
    run_backward(executor, case, dy, like=at_start)


VIEWS = {
    "transposed": ((40, 9, 30), lambda m: m.transpose(1, 2, 0)),
    "channels last": ((6, 7, 7, 24), lambda m: m.transpose(0, 3, 1, 2)),
    "odd start": ((1 + 7 * 24 * 49,), lambda m: m[1:].reshape(7, 24, 49)),
    "strided": ((14, 24, 98), lambda m: m[::2, :, ::2]),
}


@pytest.mark.parametrize("layout", VIEWS)
def test_sums_of_views(executor, layout):
    """One entry a channel of axis 1 of what lies otherwise; each array so, and x alone."""
    shape, view = VIEWS[layout]
    rng = np.random.default_rng(7)
    x, dy = (view(some(rng, shape, "float32")) for _ in range(2))
    one = tuple(n if k == 1 else 1 for k, n in enumerate(x.shape))
    given = [some(rng, one, "float32") for _ in range(3)]
    case = Case("prelu", x, *given)
    x[~case.decided()] = 1
    run_backward(executor, case, dy)
    run_backward(executor, case, np.ascontiguousarray(dy))
    run_backward(executor, Case("linear", x, scale=given[0], bias=given[1]), dy)


LAYOUTS = {
    "misaligned": ((2, 5, 43), lambda m: m[:, :, 3:]),
    "odd start": ((803,), lambda m: m[1:-1]),
    "transposed": ((8, 6, 5), lambda m: m.transpose(1, 2, 0)),
    "strided": ((12, 5, 17), lambda m: m[::2, :, ::2]),
    "broadcast": ((1, 40), lambda m: np.broadcast_to(m, (6, 40))),
    "0-d": ((), lambda m: m),
    "size one": ((3, 1, 5, 1), lambda m: m),
    "negative": ((6, 40), lambda m: m[::-1, ::-1]),
}


@pytest.mark.many
@pytest.mark.parametrize("drop", (None, DROPOUT), ids=("whole", "dropout"))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(executor, layout, drop, dtype):
    """x, dy, gate and residual lie in one way, or each in its own; the mask is the same."""
    shape, view = LAYOUTS[layout]
    if layout == "negative" and not executor.negative_strides:
        pytest.skip("torch has no negative strides")
    rng = np.random.default_rng(5)
    x, dy, gate, residual = (view(some(rng, shape, dtype)) for _ in range(4))
    slope = some(rng, (*x.shape[:-1][:0], *ones(max(0, x.ndim - 1)), *x.shape[-1:]), dtype)
    case = Case("prelu", x, 1.5, None, slope, gate, residual, drop)
    run(executor, case)
    if layout != "broadcast":
        run(executor, case, into=view(some(rng, shape, dtype)))
    run_backward(executor, case, dy)
    mixed = Case(
        "prelu", np.ascontiguousarray(x).reshape(x.shape), 1.5, None, slope, gate, None, drop
    )
    run(executor, mixed)
    run_backward(executor, mixed, dy)


@pytest.mark.parametrize(
    "pair", (("bfloat16", "float32"), ("float32", "float16"), ("float16", "float64"))
)
def test_gate_and_residual_of_another_dtype(executor, pair):
    rng = np.random.default_rng(6)
    x = some(rng, (5, 67), pair[0])
    gate, residual = (some(rng, x.shape, pair[1]) for _ in range(2))
    scale = some(rng, (1, 67), pair[1])
    case = Case("tanh", x, scale, None, None, gate, residual, DROPOUT)
    run(executor, case)
    run_backward(executor, case, some(rng, x.shape, pair[0]))


@pytest.mark.parametrize("size", (1, 2, 3, 5, 4096, 4099))
def test_the_mask_is_the_same_everywhere(executor, size):
    """Bit for bit: of ones, the elements that are 0."""
    for start in range(4):  # where in a pack of 16 bytes it begins
        memory = np.ones(size + start, np.float16)
        x = executor.place(memory[start:])
        out = executor.place(memory[start:], blank=True)
        nothing = (None, None, None)
        fusion = Fusion("linear", DROPOUT)
        executor.backend.fused(fusion, x.native, nothing, None, None, out.native, executor.empty)
        assert ((out.numpy() == 0) == reference.dropped(0, size, DROPOUT)).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_dropped_is_zero_whatever_it_was(executor, activation, dtype):
    """And so is its gradient, on its own and in sums."""
    rng = np.random.default_rng(5)
    one = (1, 1, 8)
    kinds = {"scale": one, "bias": one, "gate": True, "dropout": DROPOUT}
    if activation == "prelu":
        kinds["slope"] = one
    case = case_of(activation, some(rng, SHAPE, dtype), kinds, dtype)
    dy, mask = some(rng, SHAPE, dtype), case.keep() == 0
    case.x[mask] = np.resize([np.nan, np.inf, -np.inf, 1.0], mask.sum())
    run(executor, case)
    for special in (1.0, np.nan, np.inf):
        dy[mask] = special
        got = run_backward(executor, case, dy, [k for k in ("x", *case.given) if k != "gate"])
        assert (got["x"][mask] == 0).all()
        assert all(np.isfinite(a).all() for a in got.values())


def test_nan_and_infinity_pass_as_through_the_activation(executor):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 2.0, -2.0], np.float32)
    for activation in ACTIVATIONS:
        slope = 0.25 if Fusion(activation).slope else None
        run(executor, Case(activation, x, slope=slope, residual=np.ones_like(x)))


@pytest.mark.parametrize("activation", ("relu", "leaky_relu", "prelu"))
def test_the_derivative_at_the_kink(executor, activation):
    x = np.array([-0.0, 0.0, 1.0, -1.0], np.float32)
    slope = 0.25 if Fusion(activation).slope else None
    got = run_backward(executor, Case(activation, x, slope=slope), np.full_like(x, 4.0), ("x",))
    low = 0.0 if slope is None else 1.0
    assert got["x"].tolist() == [low, low, 4.0, low]


def test_sums_over_nothing_are_zero(executor):
    x = np.empty((3, 0, 2), np.float32)
    case = Case("prelu", x, 1.0, (b := np.ones((1, 1, 2), np.float32)), b)
    names = ("scale", "bias", "slope")
    outs = [executor.place(np.empty((1, 1, 1) if k == "scale" else b.shape, b.dtype), blank=True)
            for k in names]  # fmt: skip
    placed = executor.place(x).native
    executor.backend.fused_backward(
        case.fusion, placed, placed, tuple(native(executor, p) for p in case.params), None,
        None, None, tuple(out.native for out in outs), executor.empty,
    )  # fmt: skip
    assert all((out.numpy() == 0).all() for out in outs)


# (elements of a run, channels, elements, bytes of an item)
TILED = list(itertools.product((1, 3, 49, 784), (1, 3, 256, 2049), (1, 12345, 1 << 24), (2, 4, 8)))


@pytest.mark.parametrize("sums", (8 / 6, 24 / 6, 16 / 30), ids=("one", "three", "of much"))
def test_tiles_of_short_runs(sums):
    """Whole periods and sectors, all of memory, few idle rows, and few sums where rows are many."""
    fused = pytest.importorskip("gpuact.kernels.triton.fused")
    several = 0
    for inner, kept, elements, itemsize in TILED:
        cut = fused.columns(inner, kept, elements, itemsize, sums)
        assert cut.width % (inner * kept) == 0
        assert cut.width % fused.PACK == cut.width * itemsize % fused.SECTOR == 0
        assert cut.width * cut.rows >= elements > cut.width * (cut.rows - 1)
        tiles, chunks, _ = cut.grid
        assert tiles * cut.columns >= cut.used == min(cut.width, elements)
        assert chunks * cut.chunk >= cut.rows > (chunks - 1) * cut.chunk
        assert cut.columns * itemsize >= fused.LINE
        assert cut.chunk % cut.together == 0
        idle = -(-cut.rows // cut.together) * cut.together - cut.rows
        assert idle <= fused.IDLE * (cut.rows + idle)
        left = chunks * (cut.used / inner + (tiles if inner > 1 else 0))  # sums, of each parameter
        assert left * sums <= 1.02 * fused.SHARE * cut.used * cut.rows or chunks == 1
        several += chunks > 1 < cut.together
    assert several > 20
