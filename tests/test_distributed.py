"""Vocab-parallel softmax and cross-entropy on gloo ranks, against gpuact of one process.

To start ranks takes seconds, so they are started once for each number of them and go through all
that is marked `on_ranks` below, a list of which failures they found; the tests look at those lists.
A rank that stops before its time ends the others too, and its message is the failure.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import harness

torch = harness.torch_or_skip()
import torch.distributed as dist
import torch.multiprocessing as mp

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("torch.distributed with gloo is not here", allow_module_level=True)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode

import gpuact
from gpuact.torch import distributed
from tests import bounds, truth
from tests.bounds import COMPUTE, DTYPES

Tensor = torch.Tensor
Failures = Iterator[str]

CLASSES, ROWS = 8, (2, 4)
# Ranks → the classes of each: an odd cut, and empty shards. Eight in all.
CUTS = {
    1: {"whole": (8,)},
    2: {"uneven": (3, 5), "empty": (8, 0)},
    4: {"uneven": (2, 1, 4, 1), "empty": (0, 5, 0, 3)},
}
LONGEST = 60  # seconds that a rank waits for another


# -- ranks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Here:
    """A rank, as its checks see it."""

    rank: int
    ranks: int

    def shard(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """This rank's columns, as memory of their own."""
        return x.split(list(sizes), -1)[self.rank].detach().clone()


CHECKS: list[str] = []


def on_ranks(check: Callable[[Here], Failures]) -> Callable[[Here], Failures]:
    CHECKS.append(check.__name__)
    return check


def _rank(rank: int, ranks: int, names: Sequence[str], folder: str) -> None:
    """One process: every check, and what failed of each."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    limit = timedelta(seconds=LONGEST)
    dist.init_process_group("gloo", store, limit, ranks, rank)
    found: dict[str, list[str]] = {name: [] for name in names}
    for name in names:
        try:
            for line in globals()[name](Here(rank, ranks)):
                found[name].append(f"rank {rank}: {line}")
        except Exception:
            lines = [f"rank {rank} in {name}:", *(line for n in names for line in found[n])]
            # of several ranks the first is the cause, and the others missed it: see `run`
            Path(folder, f"stopped{rank}").write_text("\n".join([*lines, traceback.format_exc()]))
            raise
    torch.save(found, f"{folder}/rank{rank}")
    dist.barrier()
    dist.destroy_process_group()


def run(ranks: int, names: Sequence[str], folder: Path) -> dict[str, list[str]]:
    """What failed of each check, on whatever rank."""
    folder.mkdir()
    try:
        mp.spawn(_rank, (ranks, tuple(names), str(folder)), ranks)
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        stopped = sorted(folder.glob("stopped*"), key=lambda path: path.stat().st_mtime_ns)
        message = stopped[0].read_text() if stopped else str(error)
        return {name: [message] for name in names}
    found: dict[str, list[str]] = {name: [] for name in names}
    for rank in range(ranks):
        for name, lines in torch.load(folder / f"rank{rank}").items():
            found[name] += lines
    return found


def once(ranks: int, names: Sequence[str], word: str, factory: pytest.TempPathFactory) -> Any:
    """`run`, by one of pytest-xdist's workers for all of them."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, result = base / f"ranks-{word}-{ranks}", base / f"ranks-{word}-{ranks}.found"
    try:
        (base / f"{folder.name}.mine").mkdir()
    except FileExistsError:
        ended = time.monotonic() + 10 * LONGEST
        while not result.exists() and time.monotonic() < ended:
            time.sleep(0.2)
    else:
        torch.save(run(ranks, names, folder), f"{result}.part")
        Path(f"{result}.part").rename(result)
    return torch.load(result)


SLOW = ("every_option_on_every_cut",)


@pytest.fixture(scope="module", params=(2, pytest.param(4, marks=pytest.mark.slow)))
def failures(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    names = [name for name in CHECKS if name not in SLOW]
    return once(request.param, names, "quick", tmp_path_factory)


@pytest.fixture(scope="module", params=(2, 4))
def slow_failures(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return once(request.param, SLOW, "slow", tmp_path_factory)


def off(name: str, ours: Any, expected: Any, tolerance: Any = 1e-12) -> Failures:
    """NaN and infinities where they are expected, the rest no farther off than the tolerance."""
    a, b = (t.detach().double() for t in (ours, expected))
    if a.shape != b.shape:
        yield f"{name}: shape {tuple(a.shape)}, not {tuple(b.shape)}"
        return
    tolerance = torch.as_tensor(tolerance).expand(b.shape) * (1 + b.abs())
    same = (a == b) | (a.isnan() & b.isnan()) | ((a - b).abs() <= tolerance)
    if not same.all():
        at = (~same).nonzero()[0].tolist()
        yield f"{name}: {a[tuple(at)].item()}, not {b[tuple(at)].item()}, at {at}"


# -- what is compared -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A cross-entropy of whole rows."""

    logits: Tensor
    target: Tensor
    weight: Tensor | None
    options: dict[str, Any]
    lse: bool = False  # whether lse gets a gradient, too
    loss: bool = True  # whether the loss does

    @property
    def name(self) -> str:
        kind = "probabilities" if self.target.is_floating_point() else "classes"
        weighted = "" if self.weight is None else "weights "
        return f"{kind} {weighted}{self.options}, lse {self.lse}"

    def weigh(self, loss: Tensor, lse: Tensor) -> Tensor:
        """A number in which losses and lse have gradients that are not 1."""
        total = loss.new_zeros(())
        if self.loss:
            total = total + (loss * torch.linspace(0.5, 2.0, loss.numel()).view_as(loss)).sum()
        if self.lse:
            total = total + (lse * torch.linspace(-1.0, 1.0, lse.numel()).view_as(lse)).sum()
        return total

    def whole(self) -> tuple[Tensor, ...]:
        """loss, lse, and gradients by logits and probabilities, of one process."""
        z = self.logits.clone().requires_grad_()
        target = self.target.clone()
        leaves = [z]
        if target.is_floating_point():
            leaves.append(target.requires_grad_())
        loss, lse = gpuact.cross_entropy(
            z, target, weight=self.weight, axis=-1, return_lse=True, **self.options
        )
        gradients = torch.autograd.grad(self.weigh(loss, lse), leaves, allow_unused=True)
        return loss, lse, *gradients

    def on(
        self, here: Here, sizes: Sequence[int], told: bool, group: Any = None
    ) -> tuple[Tensor, ...]:
        """The same on ranks, gradients of this rank's shard."""
        z = here.shard(self.logits, sizes).requires_grad_()
        target, leaves = self.target, [z]
        if target.is_floating_point():
            target = here.shard(target, sizes).requires_grad_()
            leaves.append(target)
        loss, lse = distributed.cross_entropy(
            z,
            target,
            group,
            weight=None if self.weight is None else here.shard(self.weight, sizes),
            return_lse=True,
            sizes=sizes if told else None,
            **self.options,
        )
        gradients = torch.autograd.grad(self.weigh(loss, lse), leaves, allow_unused=True)
        return loss, lse, *gradients

    def compare(
        self,
        here: Here,
        sizes: Sequence[int],
        told: bool = True,
        group: Any = None,
        tolerance: float = 1e-12,
    ) -> Failures:
        ours, expected = self.on(here, sizes, told, group), self.whole()
        words = ("loss", "lse", "dlogits", "dtarget")[: len(ours)]
        for word, a, b in zip(words, ours, expected, strict=True):
            if word[0] == "d" and b is not None:
                b = here.shard(b, sizes)
            if a is None or b is None:
                if a is not b:
                    yield f"{sizes} {self.name}: {word}: {a}, not {b}"
                continue
            yield from off(f"{sizes} {self.name}: {word}", a, b, tolerance)


def logits_of(kind: str, sizes: Sequence[int]) -> Tensor:
    """plain; masked: with shards, and classes, at −inf; special: rows that are NaN, too."""
    z = 3 * torch.randn(*ROWS, CLASSES, generator=torch.manual_seed(1), dtype=torch.float64)
    rows = z.view(-1, CLASSES)
    filled = [k for k, n in enumerate(sizes) if n]
    starts = np.cumsum([0, *sizes])
    first, last = (slice(starts[k], starts[k + 1]) for k in (filled[0], filled[-1]))
    if kind == "masked" and len(filled) > 1:
        rows[0, first] = rows[1, last] = rows[4, first] = -torch.inf
    if kind == "masked":
        rows[2, 5] = rows[3, 0] = -torch.inf
    if kind == "special":
        rows[0] = -torch.inf
        rows[1, 2], rows[2, 7], rows[3, 0] = torch.nan, torch.inf, -torch.inf
        rows[3, first] = -torch.inf
        rows[3, last.stop - 1] = torch.nan
    return z


# Rows 2 and 3 of masked logits have their class at −inf, class 0 having no weight; row 4 its class
# in a shard of −inf.
LABELS = torch.tensor([7, 0, 5, 0, 1, -100, 3, 6]).view(ROWS)
SHARES = torch.randn(*ROWS, CLASSES, generator=torch.manual_seed(2), dtype=torch.float64).softmax(
    -1
)
SHARES[..., ::3] = 0.0
WEIGHT = torch.tensor([0.0, 0.5, 1.5, 1.0, 2.0, 0.25, 0.0, 3.0], dtype=torch.float64)


def options_of(reductions: Sequence[str]) -> Iterator[dict[str, Any]]:
    for reduction, smoothing, z_loss, cap in product(
        reductions, (0.0, 0.1), (0.0, 0.01), (None, 4.0)
    ):
        options: dict[str, Any] = {"reduction": reduction}
        options |= {"label_smoothing": smoothing, "z_loss": z_loss, "softcap": cap}
        yield options


def some_of(here: Here, *given: Any) -> Iterator[Case]:
    """Of four ranks, which have to share a few cores, every fifth case: each option in turn."""
    return islice(cases_of(*given), 0, None, 1 if here.ranks < 4 else 5)


def cases_of(kind: str, sizes: Sequence[int], reductions: Sequence[str]) -> Iterator[Case]:
    z = logits_of(kind, sizes)
    for options, weight, lse in product(options_of(reductions), (None, WEIGHT), (False, True)):
        yield Case(z, SHARES, weight, options, lse)
        yield Case(z, LABELS, weight, options, lse)
        yield Case(z, LABELS.where(LABELS >= 0, 4), weight, options | {"ignore_index": 3}, lse)


REDUCTIONS = ("mean", "sum", "none")


# -- checks ---------------------------------------------------------------------------------------


@on_ranks
def every_option(here: Here) -> Failures:
    """Loss, lse and the gradients of every shard, in float64."""
    sizes = CUTS[here.ranks]["uneven"]
    for case in some_of(here, "plain", sizes, REDUCTIONS):
        yield from case.compare(here, sizes)


@on_ranks
def minus_infinity_and_nan(here: Here) -> Failures:
    """Shards of −inf in a valid row add nothing; rows of NaN are NaN, and their neighbours not."""
    for kind in ("masked", "special"):
        for sizes in CUTS[here.ranks].values():
            for case in some_of(here, kind, sizes, ("none",)):
                yield from case.compare(here, sizes)
            for target, weight in product((LABELS, SHARES), (None, WEIGHT)):
                options = {"reduction": "none", "label_smoothing": 1.0}
                yield from Case(logits_of(kind, sizes), target, weight, options).compare(
                    here, sizes
                )


@on_ranks
def empty_shards(here: Here) -> Failures:
    sizes = CUTS[here.ranks]["empty"]
    for case in some_of(here, "plain", sizes, ("mean",)):
        yield from case.compare(here, sizes, told=False)


@on_ranks
def every_option_on_every_cut(here: Here) -> Failures:
    for kind, told in product(("plain", "masked", "special"), (False, True)):
        for sizes in CUTS[here.ranks].values():
            for case in cases_of(kind, sizes, REDUCTIONS):
                yield from case.compare(here, sizes, told)


@on_ranks
def sizes_that_stay_on_the_device(here: Here) -> Failures:
    """As on a GPU, where the host does not look: neither at sizes, nor at a class out of range."""
    before = distributed._on_host
    distributed._on_host = lambda x: False
    try:
        for kind, sizes in product(("plain", "masked"), CUTS[here.ranks].values()):
            for case in some_of(here, kind, sizes, ("none",)):
                yield from case.compare(here, sizes, told=False)
        yield from _out_of_range_on_a_gpu(here)
    finally:
        distributed._on_host = before


def _out_of_range_on_a_gpu(here: Here) -> Failures:
    """The row of a class that does not exist is NaN, its neighbours are not."""
    sizes = CUTS[here.ranks]["uneven"]
    target = LABELS.clone()
    target[0, 1], target[1, 2] = CLASSES, -7
    right = target == LABELS
    check = gpuact.calls.LossCall._checks_targets
    gpuact.calls.LossCall._checks_targets = lambda self: False
    try:
        for smoothing in (0.0, 0.1):
            options = {"reduction": "none", "label_smoothing": smoothing}
            case = Case(logits_of("plain", sizes), target, None, options)
            good = Case(case.logits, LABELS, None, options)
            loss, lse, dlogits = case.on(here, sizes, told=False)
            expected = good.on(here, sizes, told=False)
            yield from off("lse", lse, expected[1])
            for name, a, b in (("loss", loss, expected[0]), ("dlogits", dlogits, expected[2])):
                yield from off(name, a[right], b[right])
                if not a[~right].isnan().all():
                    yield f"{name} of a class out of range: {a[~right]}"
    finally:
        gpuact.calls.LossCall._checks_targets = check


@on_ranks
def a_mean_over_nothing(here: Here) -> Failures:
    """Is NaN with gradient 0, whatever the logits; so is one of no rows."""
    for sizes in CUTS[here.ranks].values():
        for smoothing, kind, weight in product((0.0, 0.1), ("plain", "special"), (None, WEIGHT)):
            z = here.shard(logits_of(kind, sizes), sizes).requires_grad_()
            options: dict[str, Any] = {"label_smoothing": smoothing, "sizes": sizes}
            options["weight"] = None if weight is None else here.shard(weight, sizes)
            loss = distributed.cross_entropy(z, torch.full(ROWS, -100), **options)
            loss.backward()
            if not loss.isnan() or z.grad.count_nonzero():
                yield f"loss {loss}, gradient {z.grad}"
        z = torch.zeros(0, sizes[here.rank], requires_grad=True)
        loss = distributed.cross_entropy(z, torch.zeros(0, dtype=torch.int64), sizes=sizes)
        loss.backward()
        if not loss.isnan() or z.grad.shape != z.shape:
            yield f"of no rows: {loss}"


@on_ranks
def classes_of_any_integers(here: Here) -> Failures:
    sizes = CUTS[here.ranks]["uneven"]
    z = logits_of("plain", sizes)
    target = LABELS.clamp(0)
    expected = gpuact.cross_entropy(z, target, axis=-1)
    for dtype in (torch.int8, torch.uint8, torch.int32, torch.uint64):
        loss = distributed.cross_entropy(here.shard(z, sizes), target.to(dtype))
        yield from off(str(dtype), loss, expected)


def placed(z: np.ndarray, dtype: str) -> Tensor:
    return torch.from_numpy(z.astype(np.float64)).to(getattr(torch, dtype))


@on_ranks
def half_types(here: Here) -> Failures:
    """A loss in float32; gradients within one rounding of those of one process."""
    for dtype, sizes in product(("float16", "bfloat16"), CUTS[here.ranks].values()):
        z = logits_of("plain", sizes).to(getattr(torch, dtype))
        for target, weight, cap in product((LABELS, SHARES), (None, WEIGHT), (None, 4.0)):
            for smoothing in (0.0, 0.1):
                options = {"reduction": "sum", "label_smoothing": smoothing, "softcap": cap}
                case = Case(z, target.to(z.dtype) if target is SHARES else target, weight, options)
                ours, expected = case.on(here, sizes, True), case.whole()
                if ours[0].dtype != torch.float32 or ours[2].dtype != z.dtype:
                    yield f"{dtype} {case.name}: {ours[0].dtype}, {ours[2].dtype}"
                yield from off(f"{dtype} {case.name}: loss", ours[0], expected[0], 1e-6)
                for word, a, b in zip(("logits", "target"), ours[2:], expected[2:], strict=False):
                    yield from _rounded(f"{dtype} {case.name}: {word}", a, here.shard(b, sizes))


def _rounded(name: str, ours: Tensor, expected: Tensor) -> Failures:
    """Neighbours in their dtype at most: what float32 has for both may lie on a rounding's edge."""
    dtype = str(ours.dtype).removeprefix("torch.")
    unit = bounds.ulp(truth.long(expected.double().numpy()), dtype)
    apart = np.abs(truth.long(ours.double().numpy()) - truth.long(expected.double().numpy()))
    if not (apart <= 1.001 * unit).all():
        yield f"{name}: {(apart / unit).max()} units apart"


@on_ranks
def softmax_and_log_softmax(here: Here) -> Failures:
    """Forward and backward within the bounds of gpuact's own, near 0 and far from it."""
    rng = np.random.default_rng(3)
    for dtype, sizes in product(DTYPES, CUTS[here.ranks].values()):
        for far, name in product((0.0, 300.0), ("softmax", "log_softmax")):
            x = (2 * rng.standard_normal((5, CLASSES)) + far).astype(DTYPES[dtype])
            dy = rng.standard_normal((5, CLASSES)).astype(DTYPES[dtype])
            x[0, : sizes[0]] = -np.inf
            x[1, 0] = -np.inf
            local = here.shard(placed(x, dtype), sizes).requires_grad_()
            y = getattr(distributed, name)(local)
            given = here.shard(placed(dy, dtype), sizes)
            (dx,) = torch.autograd.grad(y, local, given)
            if y.dtype != local.dtype or dx.dtype != local.dtype:
                yield f"{name} {dtype}: {y.dtype}, {dx.dtype}"
            stored = torch.cat([p.double() for p in _shards_of(here, y.detach(), sizes)], -1)
            arrays = [dy[..., None], stored.numpy()[..., None]]
            for word, ours, formula, of in (
                ("forward", y, name, [x[..., None]]),
                ("backward", dx, f"{name}_backward", arrays),
            ):
                value = truth.ROWS[formula](*of)
                allowed = bounds.rows(formula, dtype, of, value)
                if formula == "log_softmax" and dtype in COMPUTE:  # lse, rounded in float32
                    allowed = allowed + 2.0**-24 * np.abs(far)
                parts = (here.shard(torch.from_numpy(a[..., 0].astype(np.float64)), sizes)
                         for a in (value, allowed))  # fmt: skip
                expected, within = parts
                yield from _within(f"{name} {word} {dtype} {sizes} {far}", ours, expected, within)


def _within(name: str, ours: Tensor, expected: Tensor, allowed: Tensor) -> Failures:
    a = ours.detach().double()
    same = (a == expected) | (a.isnan() & expected.isnan()) | ((a - expected).abs() <= allowed)
    if not same.all():
        at = tuple((~same).nonzero()[0].tolist())
        yield f"{name}: {a[at].item()}, not {expected[at].item()} ± {allowed[at].item()}"


def _shards_of(here: Here, x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    found: list[Any] = [None] * here.ranks
    dist.all_gather_object(found, x)
    return found


@on_ranks
def rows_of_nan(here: Here) -> Failures:
    for kind, sizes in product(("masked", "special"), CUTS[here.ranks].values()):
        x = logits_of(kind, sizes)
        for name in ("softmax", "log_softmax"):
            y = getattr(distributed, name)(here.shard(x, sizes), sizes=sizes)
            expected = here.shard(getattr(gpuact, name)(x), sizes)
            yield from off(f"{name} {kind} {sizes}", y, expected)


@on_ranks
def a_single_row(here: Here) -> Failures:
    """Without any other axis."""
    for sizes, smoothing in product(CUTS[here.ranks].values(), (0.0, 0.1)):
        z, options = logits_of("plain", sizes)[0, 0], {"label_smoothing": smoothing}
        for target in (torch.tensor(4), SHARES[0, 0]):
            for told in (False, True):
                yield from Case(z, target, WEIGHT, options, lse=True).compare(here, sizes, told)
        for name in ("softmax", "log_softmax"):
            x, whole = here.shard(z, sizes).requires_grad_(), z.clone().requires_grad_()
            y, expected = getattr(distributed, name)(x), getattr(gpuact, name)(whole)
            yield from off(name, y, here.shard(expected, sizes))
            y.square().sum().backward()
            expected.square().sum().backward()
            yield from off(f"{name} dx", x.grad, here.shard(whole.grad, sizes))


@on_ranks
def the_gradient_of_lse_alone(here: Here) -> Failures:
    sizes = CUTS[here.ranks]["uneven"]
    for case in some_of(here, "masked", sizes, ("none",)):
        if case.lse:
            yield from replace(case, loss=False).compare(here, sizes)


@on_ranks
def strided_shards(here: Here) -> Failures:
    """A shard may be a view, and its gradient may come broadcast."""
    sizes = CUTS[here.ranks]["uneven"]
    z = logits_of("plain", sizes)
    leaf = here.shard(z, sizes).transpose(0, 1).contiguous().requires_grad_()
    for name in ("softmax", "log_softmax"):
        (dx,) = torch.autograd.grad(
            getattr(distributed, name)(leaf.transpose(0, 1)).double().sum(), leaf
        )
        whole = z.clone().requires_grad_()
        (expected,) = torch.autograd.grad(getattr(gpuact, name)(whole).sum(), whole)
        yield from off(name, dx.transpose(0, 1), here.shard(expected, sizes))
    for weight in (None, WEIGHT):
        options = {"weight": weight, "label_smoothing": 0.1}
        own = options | {"weight": None if weight is None else here.shard(weight, sizes)}
        loss = distributed.cross_entropy(leaf.transpose(0, 1), LABELS, **own)
        (dz,) = torch.autograd.grad(loss, leaf)
        whole = z.clone().requires_grad_()
        (expected,) = torch.autograd.grad(
            gpuact.cross_entropy(whole, LABELS, axis=-1, **options), whole
        )
        yield from off("cross_entropy", dz.transpose(0, 1), here.shard(expected, sizes))


@on_ranks
def pieces(here: Here) -> Failures:
    """What is done in pieces is the same in many."""
    before, distributed.PIECE = distributed.PIECE, 11
    sizes = CUTS[here.ranks]["uneven"]
    try:
        for case in some_of(here, "plain", sizes, ("mean",)):
            yield from case.compare(here, sizes)
        x = here.shard(logits_of("plain", sizes), sizes).requires_grad_()
        (in_many,) = torch.autograd.grad(distributed.log_softmax(x)[..., :1].sum(), x)
    finally:
        distributed.PIECE = before
    (in_one,) = torch.autograd.grad(distributed.log_softmax(x)[..., :1].sum(), x)
    yield from off("log_softmax", in_many, in_one, 0.0)


@on_ranks
def the_same_bits_on_every_rank(here: Here) -> Failures:
    """And every time, though the ranks are never alike in time."""
    sizes = CUTS[here.ranks]["uneven"]
    z = here.shard(torch.randn(64, CLASSES, generator=torch.manual_seed(5)), sizes)
    target = torch.arange(64) % CLASSES
    for smoothing in (0.0, 0.1):
        options = {"label_smoothing": smoothing, "return_lse": True}
        mine = torch.cat([
            t.flatten()
            for _ in range(3)
            for t in distributed.cross_entropy(z, target, z_loss=0.1, **options)
        ])  # fmt: skip
        all_of_them = _shards_of(here, mine, sizes)
        if not all(torch.equal(mine, other) for other in all_of_them):
            yield f"smoothing {smoothing}: not the same bits"
        if not torch.equal(*mine.view(3, -1)[:2]):
            yield f"smoothing {smoothing}: not the same bits again"


@on_ranks
def collectives(here: Here) -> Failures:
    """One forward where sizes are known, else two; none backward but what softmax cannot avoid."""
    sizes = CUTS[here.ranks]["uneven"]
    x = here.shard(logits_of("plain", sizes), sizes).requires_grad_()
    loss = partial(distributed.cross_entropy, weight=here.shard(WEIGHT, sizes), label_smoothing=0.1)
    for name, work, forward, backward in (
        ("cross_entropy", lambda: loss(x, LABELS), 2, 0),
        ("with sizes", lambda: loss(x, LABELS, sizes=sizes), 1, 0),
        ("probabilities", lambda: loss(x, here.shard(SHARES, sizes), sizes=sizes), 1, 0),
        ("softmax", lambda: distributed.softmax(x).sum(), 1, 1),
        ("log_softmax", lambda: distributed.log_softmax(x, sizes=sizes).sum(), 1, 1),
    ):
        with CommDebugMode() as there:
            result = work()
        with CommDebugMode() as back:
            result.backward()
        found = there.get_total_counts(), back.get_total_counts()
        if found != (forward, backward):
            yield f"{name}: {found} collectives, not {(forward, backward)}"


class Seen(TorchDispatchMode):
    """Which operators run outside gpuact's own, and how many results are of a shard's size."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.names, self.large = elements, set(), set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for t in result if isinstance(result, tuple | list) else (result,):
            if isinstance(t, Tensor) and t.numel() >= self.elements:
                self.large.add(t.untyped_storage().data_ptr())
        return result


@on_ranks
def nobody_waits_for_a_gpu_and_memory_is_the_gradients(here: Here) -> Failures:
    """No operator that tells the host a value; nothing of a shard's size but what is returned."""
    sizes = [32] * here.ranks
    z = torch.randn(64, sum(sizes), generator=torch.manual_seed(8))
    x, shares, weight = (here.shard(t, sizes) for t in (z, z.softmax(-1), torch.rand(z.shape[1])))
    looks = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique_dim"}
    labels = torch.arange(64) % 40 - 1  # the first and the 40th are none
    before = distributed._on_host, distributed.PIECE, gpuact.calls.LossCall._checks_targets
    distributed._on_host, distributed.PIECE = (lambda x: False), 64
    gpuact.calls.LossCall._checks_targets = lambda self: False
    try:
        for dtype, target, weighted, smoothing, cap in product(
            (torch.float32, torch.bfloat16),
            (labels, shares),
            (False, True),
            (0.0, 0.1),
            (None, 4.0),
        ):
            leaf = x.to(dtype).requires_grad_()
            given = target if target is labels else target.to(dtype)
            own = weight if weighted else None
            with Seen(leaf.numel()) as forward:
                loss = distributed.cross_entropy(
                    leaf, given, weight=own, label_smoothing=smoothing, softcap=cap, ignore_index=-1
                )
            with Seen(leaf.numel()) as backward:
                torch.autograd.grad(loss, leaf)
            found = (forward.names | backward.names) & looks
            count = len(forward.large), len(backward.large)
            if found or count != (0, 1):
                yield f"{dtype} {given.dtype} {weighted} {smoothing} {cap}: {found} {count}"
        for name in ("softmax", "log_softmax"):
            leaf = x.clone().requires_grad_()
            with Seen(leaf.numel()) as forward:
                y = getattr(distributed, name)(leaf)
            dy = torch.rand_like(y)
            with Seen(leaf.numel()) as backward:
                torch.autograd.grad(y, leaf, dy)
            found = (forward.names | backward.names) & looks
            given = {leaf.data_ptr(), dy.data_ptr()}
            new = len(forward.large - given), len(backward.large - forward.large - given)
            if found or new != (1, 1):
                yield f"{name}: {found} {new}"
    finally:
        distributed._on_host, distributed.PIECE, gpuact.calls.LossCall._checks_targets = before


@on_ranks
def groups_within_the_world(here: Here) -> Failures:
    """Each half of the ranks has rows of its own, cut among it."""
    half = here.ranks // 2
    groups = [dist.new_group([*range(k * half, (k + 1) * half)]) for k in range(2)]
    mine, place = divmod(here.rank, half)
    sizes = (CLASSES,) if half == 1 else (6, 2)
    z = logits_of("plain", sizes) + mine
    case = Case(z, LABELS, WEIGHT, {"reduction": "mean"})
    yield from case.compare(Here(place, half), sizes, False, groups[mine])
    x = Here(place, half).shard(z, sizes)
    y = distributed.softmax(x, groups[mine])
    yield from off("softmax", y, Here(place, half).shard(gpuact.softmax(z), sizes))
    other = distributed.dist.new_group([0])
    if here.rank:
        yield from refused("a foreign group", ValueError, "group: came without this process",
                           lambda: distributed.softmax(x, other))  # fmt: skip


def refused(name: str, kind: type[Exception], words: str, work: Callable[[], Any]) -> Failures:
    try:
        work()
    except Exception as error:
        if type(error) is not kind or words not in str(error):
            yield f"{name}: {type(error).__name__}: {error}"
    else:
        yield f"{name}: not refused"


@on_ranks
def refusals(here: Here) -> Failures:
    """In gpuact's words, before a rank waits for another."""
    sizes = CUTS[here.ranks]["uneven"]
    z = here.shard(logits_of("plain", sizes), sizes)
    loss = distributed.cross_entropy
    wrong = LABELS.clone()
    wrong[0, 0] = CLASSES
    nobody = torch.zeros(2, 0)
    own = sizes[here.rank]
    for name, kind, words, work in (
        ("sizes", ValueError, "sizes: [1, 2, 3] came", lambda: loss(z, LABELS, sizes=[1, 2, 3])),
        ("sizes", ValueError, f"{own} on rank {here.rank}",
         lambda: distributed.softmax(z, sizes=[own + 1] * here.ranks)),
        ("sizes", TypeError, "allowed is an int", lambda: loss(z, LABELS, sizes=[1.0])),
        ("range", IndexError, "target: class 8 came, allowed are 0 to 7", lambda: loss(z, wrong)),
        ("nothing", ValueError, "no rank has a class",
         lambda: loss(nobody, torch.zeros(2, dtype=torch.int64))),
        ("target", ValueError, "target: classes of shape (3,)", lambda: loss(z, LABELS[0, :3])),
        ("target", TypeError, "target: dtype complex64",
         lambda: loss(z, LABELS.to(torch.complex64))),
        ("target", TypeError, "target: list came", lambda: loss(z, [1, 2])),
        ("weight", ValueError, "allowed is one weight a class",
         lambda: loss(z, LABELS, weight=torch.ones(CLASSES + 1))),
        ("weight", ValueError, "class weights are constants",
         lambda: loss(z, LABELS, weight=torch.ones(own, requires_grad=True))),
        ("reduction", ValueError, "reduction: 'all' came",
         lambda: loss(z, LABELS, reduction="all")),
        ("label_smoothing", ValueError, "allowed is 0 to 1",
         lambda: loss(z, LABELS, label_smoothing=2.0)),
        ("softcap", ValueError, "softcap: 0.0 came", lambda: loss(z, LABELS, softcap=0.0)),
        ("z_loss", ValueError, "z_loss: -1.0 came", lambda: loss(z, LABELS, z_loss=-1.0)),
        ("ignore_index", ValueError, "has no index to ignore",
         lambda: loss(z, z, ignore_index=1)),
        ("x", TypeError, "x: ndarray came", lambda: distributed.softmax(z.numpy())),
        ("x", TypeError, "dtype complex64", lambda: distributed.softmax(z.to(torch.complex64))),
        ("logits", ValueError, "0-d", lambda: loss(torch.tensor(1.0), torch.tensor(0))),
        ("group", TypeError, "group: str came", lambda: distributed.softmax(z, "gloo")),
    ):  # fmt: skip
        yield from refused(name, kind, words, work)
    x = z.requires_grad_()
    for function in (lambda: loss(x, LABELS), lambda: distributed.softmax(x).square().sum()):
        (dx,) = torch.autograd.grad(function(), x, create_graph=True)
        words = "a second derivative was asked for"
        yield from refused("twice", NotImplementedError, words, lambda dx=dx: dx.sum().backward())
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(z.detach(), z.detach())
            for forward in (partial(loss, dual, LABELS), partial(distributed.softmax, dual)):
                words = "forward mode was asked for"
                yield from refused("forward mode", NotImplementedError, words, forward)


# -- DTensor --------------------------------------------------------------------------------------


@on_ranks
def dtensors(here: Here) -> Failures:
    """Seven classes and five, cut as Shard cuts them: of four ranks one has none of the five."""
    mesh = init_device_mesh("cpu", (here.ranks,))
    for classes in (7, 5):
        z = 2 * torch.randn(*ROWS, classes, generator=torch.manual_seed(6), dtype=torch.float64)
        yield from _rows_of_dtensor(z, mesh, [Shard(2)])
        yield from _loss_of_dtensor(z, mesh, [Shard(2)], ("mean", "sum", "none"))
    mesh = init_device_mesh("cpu", (2, here.ranks // 2))
    z = 2 * torch.randn(*ROWS, 5, generator=torch.manual_seed(6), dtype=torch.float64)
    for placements in ([Shard(1), Shard(2)], [Shard(2), Replicate()], [Shard(2), Shard(0)]):
        yield from _rows_of_dtensor(z, mesh, placements)
        cut = any(p != Shard(2) and p.is_shard() and mesh.size(d) > 1
                  for d, p in enumerate(placements))  # fmt: skip
        yield from _loss_of_dtensor(z, mesh, placements, ("none",) if cut else ("mean", "none"))


def _placed(grad: Any, placements: Any) -> bool:
    """As its leaf is. Before torch 2.13 uneven shards may be gathered for a leaf's gradient."""
    found = [*grad.placements]
    gathers = torch.__version__ < (2, 13)
    return found == placements or (gathers and all(p.is_replicate() for p in found))


def _rows_of_dtensor(z: Tensor, mesh: Any, placements: Any) -> Failures:
    for name in ("softmax", "log_softmax"):
        x = distribute_tensor(z, mesh, placements).requires_grad_()
        y = distributed.of_dtensor(name, x, axis=2, dtype=None)
        y.square().sum().backward()
        whole = z.clone().requires_grad_()
        expected = getattr(gpuact, name)(whole)
        expected.square().sum().backward()
        if [*y.placements] != placements or not _placed(x.grad, placements):
            yield f"{name}: {y.placements}, gradient {x.grad.placements}"
        yield from off(f"{name} {placements}", y.full_tensor(), expected)
        yield from off(f"{name} {placements} dx", x.grad.full_tensor(), whole.grad)


def _loss_of_dtensor(z: Tensor, mesh: Any, placements: Any, reductions: Any) -> Failures:
    shares = z.softmax(-1)
    weight = WEIGHT[: z.shape[-1]] + 0.5
    target = torch.where(LABELS < 0, LABELS, LABELS % z.shape[-1])
    rows = [Replicate() if p == Shard(2) else p for p in placements]
    for reduction, given in product(reductions, (target, shares)):
        options = {"reduction": reduction, "label_smoothing": 0.1, "return_lse": True}
        logits = distribute_tensor(z, mesh, placements).requires_grad_()
        labels = distribute_tensor(given, mesh, placements if given is shares else rows)
        loss, lse = distributed.of_dtensor(
            "cross_entropy",
            logits,
            labels.requires_grad_(given is shares),
            axis=None,
            weight=distribute_tensor(weight, mesh, [Replicate()] * mesh.ndim),
            gradient_in_forward=False,
            **options,
        )
        loss.sum().backward()
        whole = z.clone().requires_grad_()
        given = given.clone().requires_grad_(given is shares)
        expected, of_lse = gpuact.cross_entropy(whole, given, weight=weight, axis=-1, **options)
        expected.sum().backward()
        name = f"cross_entropy {reduction} {placements}"
        if not _placed(logits.grad, placements):
            yield f"{name}: gradient {logits.grad.placements}"
        if [*lse.placements] != rows or (reduction == "none" and [*loss.placements] != rows):
            yield f"{name}: {loss.placements}, {lse.placements}"
        yield from off(name, loss.full_tensor(), expected)
        yield from off(f"{name} lse", lse.full_tensor(), of_lse)
        yield from off(f"{name} dlogits", logits.grad.full_tensor(), whole.grad)
        if given.requires_grad:
            yield from off(f"{name} dtarget", labels.grad.full_tensor(), given.grad)


@on_ranks
def dtensors_refused(here: Here) -> Failures:
    mesh = init_device_mesh("cpu", (2, here.ranks // 2))
    z = torch.randn(4, 6, generator=torch.manual_seed(7))
    target = torch.arange(4)
    of = distributed.of_dtensor
    for placements in ([Replicate(), Replicate()], [Shard(0), Replicate()]):
        x = distribute_tensor(z, mesh, placements)
        if of("softmax", x) is not NotImplemented or of("cross_entropy", x, target) is not (
            NotImplemented
        ):
            yield f"{placements}: taken"
    cut = distribute_tensor(z, mesh, [Shard(0), Shard(1)])
    if of("softmax", cut, axis=0) is not NotImplemented or of("softmax", cut, axis=None) is not (
        NotImplemented
    ):
        yield "rows along another axis: taken"
    yield from refused("mean", ValueError, "rows are cut among ranks as well",
                       lambda: of("cross_entropy", cut, target))  # fmt: skip
    yield from refused("scale", ValueError, "scale: came with a DTensor",
                       lambda: of("softmax", cut, scale=2.0))  # fmt: skip
    yield from refused("mask", ValueError, "mask: came with a DTensor",
                       lambda: of("softmax", cut, mask=np.ones((4, 6), bool)))  # fmt: skip
    yield from refused("axis", TypeError, "args: 1 came", lambda: of("softmax", cut, -1))
    yield from refused("target", TypeError, "target: list came",
                       lambda: of("cross_entropy", cut, [1], reduction="none"))  # fmt: skip
    yield from refused("unknown", TypeError, "gpuact.softmax does not take",
                       lambda: of("softmax", cut, colour=1))  # fmt: skip
    yield from refused("shard", TypeError, "x: DTensor came",
                       lambda: distributed.softmax(cut))  # fmt: skip
    twice = distribute_tensor(z, mesh, [Shard(1), Shard(1)])
    yield from refused("twice", ValueError, "placements:", lambda: of("softmax", twice))
    assert isinstance(cut, DTensor)


# -- the tests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in SLOW])
def test_ranks(failures: dict[str, list[str]], name: str) -> None:
    found = "\n".join(failures[name][:10])
    assert not found, found


@pytest.mark.slow
def test_every_option_on_every_cut(slow_failures: dict[str, list[str]]) -> None:
    found = "\n".join(slow_failures["every_option_on_every_cut"][:10])
    assert not found, found


@pytest.fixture
def alone() -> Iterator[Here]:
    """A group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Here(0, 1)
    dist.destroy_process_group()


def test_one_rank_is_gpuact_itself(alone: Here) -> None:
    for case in cases_of("masked", (CLASSES,), REDUCTIONS):
        assert not list(case.compare(alone, (CLASSES,), told=False))


def test_the_benchmark_checks_itself(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    from bench.__main__ import main

    sizes = ["--rows", "5", "--classes", "33", "--dtype", "bfloat16", "--seconds", "0.01"]
    assert main(["vocab_parallel", *sizes, "--check"]) == 0
    out = capfd.readouterr().out
    assert "5 rows × 33 classes of torch.bfloat16" in out and "1 rank of gloo" in out
    assert "the same loss and gradient" in out


def test_a_wrong_result_is_no_benchmark(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    from bench.__main__ import main

    right = distributed.cross_entropy
    monkeypatch.setattr(distributed, "cross_entropy", lambda *a, **k: 1.1 * right(*a, **k))
    sizes = ["--rows", "5", "--classes", "33", "--dtype", "float32", "--seconds", "0.01"]
    assert main(["vocab_parallel", *sizes, "--check"]) == 1
    assert "loss: " in capfd.readouterr().out


def test_without_a_group() -> None:
    with pytest.raises(ValueError, match="group: None came"):
        distributed.softmax(torch.zeros(2))


def test_probabilities_alone_may_learn(alone: Here) -> None:
    found = []
    for loss in (distributed.cross_entropy, partial(gpuact.cross_entropy, axis=-1)):
        shares = SHARES.clone().requires_grad_()
        loss(logits_of("plain", (CLASSES,)), shares, label_smoothing=0.1).backward()
        found.append(shares.grad)
    assert not list(off("dtarget", *found))


def _finds(here: Here) -> Failures:
    yield "found"


def _raises(here: Here) -> Failures:
    if here.rank:
        raise RuntimeError("stopped here")
    dist.barrier()
    yield from ()


def test_failures_of_ranks_surface(tmp_path: Path) -> None:
    """Both what a check found and the exception of one rank, for which the other waits."""
    found = run(2, ["_finds", "_raises"], tmp_path / "ranks")
    (message,) = found["_raises"]
    assert message.startswith("rank 1 in _raises:\nrank 1: found\n")
    assert "RuntimeError: stopped here" in message
