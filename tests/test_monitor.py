"""gpuact.torch.monitor: right figures, every planted fault told, no other, and no trace left."""

from __future__ import annotations

import copy
import json
import math
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from inspect import signature
from itertools import pairwise, product
from pathlib import Path
from threading import Thread
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import gpuact
import gpuact.torch
from gpuact import stats
from gpuact.catalogue import FUNCTIONS
from gpuact.reference import is_saturated
from gpuact.torch import health, watching
from gpuact.torch import nn as ours
from gpuact.torch.health import Layer, Report
from gpuact.torch.watching import KINDS, OWN
from tests import harness
from tests.test_host_cost import held
from tests.test_import import loaded_by

nn = torch.nn
Module = torch.nn.Module
BOTH = pytest.mark.parametrize("kinds", ["torch", "gpuact"])
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])


def needs(device: str) -> None:
    if device == "cuda":
        harness.needs_gpu("triton")


def converted(model: Module, kinds: str) -> Module:
    return ours.convert(model).model if kinds == "gpuact" else model


def stack(act: Callable[[], Module], depth: int, width: int = 32, gain: float | None = None) -> Any:
    """64 inputs, 10 classes; gain: of Xavier's initialisation (0: PyTorch's own), else He's."""
    sizes = [64, *[width] * depth]
    layers = [part for k in range(depth) for part in (nn.Linear(sizes[k], sizes[k + 1]), act())]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    for part in model:
        if isinstance(part, nn.Linear) and gain != 0:
            if gain is None:
                nn.init.kaiming_normal_(part.weight)
            else:
                nn.init.xavier_normal_(part.weight, gain)
            nn.init.zeros_(part.bias)
    return model


@cache
def digits() -> tuple[Any, Any]:
    datasets = pytest.importorskip("sklearn.datasets")
    x, target = datasets.load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32), torch.tensor(target)


def noise() -> tuple[Any, Any]:
    return torch.randn(1024, 64), torch.randint(0, 10, (1024,))


def train(
    model: Module, steps: int, data: tuple[Any, Any], rate: float = 0.05, adam: bool = False
) -> None:
    x, target = data
    kind = torch.optim.Adam if adam else torch.optim.SGD
    optimiser = kind(model.parameters(), rate)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (64,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), target[rows]).backward()
        optimiser.step()


# -- figures --------------------------------------------------------------------------------------

# kind → how one is made of a module of modules, and gpuact's function of that name
MAKE: dict[str, tuple[Callable[[Any], Module], str]] = {
    "Sigmoid": (lambda m: m.Sigmoid(), "sigmoid"),
    "Tanh": (lambda m: m.Tanh(), "tanh"),
    "ReLU": (lambda m: m.ReLU(), "relu"),
    "ReLU in place": (lambda m: m.ReLU(inplace=True), "relu"),
    "LeakyReLU": (lambda m: m.LeakyReLU(0.3), "leaky_relu"),
    "LeakyReLU in place": (lambda m: m.LeakyReLU(0.3, inplace=True), "leaky_relu"),
    "PReLU": (lambda m: m.PReLU(6, init=0.2), "prelu"),
    "PReLU shared": (lambda m: m.PReLU(), "prelu"),
}


@DEVICES
@BOTH
@pytest.mark.parametrize("name", MAKE)
def test_figures_are_those_of_the_outputs(name: str, kinds: str, device: str) -> None:
    """Of two batches of different sizes; outputs and gradients are what they are unwatched."""
    needs(device)
    torch.manual_seed(0)
    make, function = MAKE[name]
    model = nn.Sequential(nn.Linear(4, 6), make(ours if kinds == "gpuact" else nn))
    with torch.no_grad():
        model[0].bias[2] = -100.0  # a unit that is dead, where units can be
    alone = copy.deepcopy(model.to(device))
    seen, norms = [], []
    with gpuact.torch.monitor(model, every=1) as watch:
        for x in (torch.randn(5, 4), torch.randn(3, 4)):
            y, expected = model(x.to(device)), alone(x.to(device))
            y.square().sum().backward()
            expected.square().sum().backward()
            assert torch.equal(y, expected)
            seen.append(y.detach().cpu().numpy().astype(np.float64))
            norms.append(np.sum((2 * seen[-1]) ** 2))
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    (layer,) = watch.report().layers
    y = np.concatenate(seen)
    low, high = FUNCTIONS[function].saturated
    flat = (y <= (-math.inf if low is None else low)) | (y >= (math.inf if high is None else high))
    assert (layer.name, layer.kind, layer.units) == ("1", name.split()[0], 6)
    assert (layer.looks, layer.count, layer.output) == (2, 48, True)
    assert layer.mean == pytest.approx(y.mean(), rel=1e-5)
    assert layer.std == pytest.approx(y.std(), rel=1e-5)
    assert (layer.zeros, layer.saturated) == (np.mean(y == 0), flat.mean())
    assert layer.dead == flat.all(0).sum() == (low is not None)
    assert layer.dead_share == layer.dead / 6
    assert layer.gradient == pytest.approx(math.sqrt(sum(norms) / 2), rel=1e-6)
    assert math.isnan(layer.ratio)


def test_kernels_count_what_gpuact_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In their own pass, unless in place or in a subclass that computes otherwise."""

    class Other(ours.ReLU):
        def forward(self, input: Any) -> Any:
            return super().forward(input) + 1

    class Same(ours.Tanh):
        pass

    own = [ours.ReLU(), Same(), ours.PReLU(8)]
    read = [ours.ReLU(inplace=True), Other(), nn.ReLU()]
    model = nn.Sequential(nn.Linear(4, 8), *own, nn.Linear(8, 8), *read)
    counted: list[str] = []
    for module, name in ((watching.activations, "activation_with_stats"), (watching, "count")):
        true = getattr(module, name)

        def spied(*args: Any, true: Any = true, name: str = name, **options: Any) -> Any:
            counted.append(name)
            return true(*args, **options)

        monkeypatch.setattr(module, name, spied)
    with gpuact.torch.monitor(model, every=1) as watch:
        y = model(torch.randn(16, 4))
    assert counted == ["activation_with_stats"] * 3 + ["count"] * 3
    layers = watch.report().layers
    assert [layer.kind for layer in layers] == ["ReLU", "Tanh", "PReLU", "ReLU", "ReLU", "ReLU"]
    assert layers[-2].mean >= 1  # Other's outputs, not what its super() gave
    assert layers[-1].mean == pytest.approx(y.mean().item(), rel=1e-5)


MONOTONE = {
    nn.ReLU: {},
    nn.ReLU6: {},
    nn.Sigmoid: {},
    nn.Tanh: {},
    nn.Hardtanh: {"min_val": -0.5, "max_val": 2.0},
    nn.Hardsigmoid: {},
    nn.Softsign: {},
    nn.ELU: {"alpha": 0.7},
    nn.CELU: {"alpha": 0.7},
    nn.SELU: {},
    nn.Softplus: {"beta": 2.0},
    nn.LogSigmoid: {},
}


@pytest.mark.parametrize("kind", MONOTONE, ids=lambda kind: kind.__name__)
def test_bounds_are_where_the_slope_is_small(kind: Any) -> None:
    module = kind(**MONOTONE[kind])
    x = torch.arange(-30.0001, 30, 0.001, dtype=torch.float64, requires_grad=True)
    y = module(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    low, high = KINDS[kind].bounds(module)
    told = is_saturated(y.detach().numpy(), low, high)
    assert told.any()
    clear = (slope.abs() - 0.01).abs().numpy() > 1e-4  # at the bound itself rounding decides
    assert np.array_equal(told[clear], slope.abs().numpy()[clear] < 0.01)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in MONOTONE], ids=lambda k: k.__name__)
def test_others_never_count_as_saturated(kind: Any) -> None:
    model = nn.Sequential(kind())
    with gpuact.torch.monitor(model) as watch:
        model(torch.linspace(-30, 30, 101))
    (layer,) = watch.report().layers
    assert (layer.kind, layer.saturated, layer.dead) == (kind.__name__, 0, 0)


def test_a_subclass_is_what_it_is_a_subclass_of() -> None:
    class Mine(nn.ReLU6):  # itself one of Hardtanh
        pass

    model = nn.Sequential(Mine(), nn.Softmax(-1))
    with gpuact.torch.monitor(model) as watch:
        model(torch.randn(4, 3))
    assert [layer.kind for layer in watch.report().layers] == ["ReLU6"]


@pytest.mark.parametrize(
    ("before", "shape", "units"),
    [
        (nn.Conv2d(3, 5, 1), (2, 3, 4, 6), 5),
        (nn.Conv1d(3, 5, 1), (2, 3, 4), 5),
        (nn.BatchNorm1d(3), (2, 3, 4), 3),
        (nn.GroupNorm(1, 3), (2, 3, 4), 3),
        (nn.Linear(4, 5), (2, 3, 6, 4), 5),
        (nn.LayerNorm(4), (2, 3, 4), 4),
        (nn.Sequential(nn.Conv1d(3, 5, 1), nn.Flatten()), (2, 3, 4), 20),
        (nn.Identity(), (2, 3, 4), 4),
        (nn.Identity(), (2, 3, 4, 6), 3),
        (nn.Identity(), (7,), 7),
        (nn.Identity(), (), 1),
    ],
    ids=str,
)
@BOTH
def test_units_lie_where_what_ran_before_says(
    before: Module, shape: tuple[int, ...], units: int, kinds: str
) -> None:
    model = converted(nn.Sequential(copy.deepcopy(before), nn.Dropout(), nn.ReLU()), kinds)
    with gpuact.torch.monitor(model) as watch:
        model(torch.randn(shape))
    (layer,) = watch.report().layers
    assert layer.units == units


class Gated(Module):
    """Squeeze and excitation: a linear layer runs aside, last before the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.act = nn.Conv2d(3, 6, 1), nn.Linear(6, 6), nn.ReLU()

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        return self.act(y * self.gate(y.mean((2, 3)))[:, :, None, None])


@BOTH
def test_units_lie_not_where_a_gate_says(kinds: str) -> None:
    model = converted(Gated(), kinds)
    with gpuact.torch.monitor(model) as watch:
        model(torch.randn(2, 3, 4, 5))
    assert [layer.units for layer in watch.report().layers] == [6]


@BOTH
def test_units_lie_where_channel_axis_says(kinds: str) -> None:
    """But PReLU's slopes lie along dim 1."""
    model = converted(nn.Sequential(nn.ReLU(), nn.PReLU(3), nn.PReLU()), kinds)
    with gpuact.torch.monitor(model, channel_axis=-2) as watch:
        model(torch.randn(2, 3, 4, 5))
    assert [layer.units for layer in watch.report().layers] == [4, 3, 4]
    watch = gpuact.torch.monitor(model, channel_axis=4)
    with pytest.raises(np.exceptions.AxisError, match="channel_axis: 4 came"):
        model(torch.randn(2, 3, 4, 5))
    watch.close()
    assert traces(model) == []


class Branches(Module):
    """A shared activation, one that runs for some batches only, one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Tanh()
        self.last = nn.Sigmoid()  # told behind what runs before it
        self.act = nn.ReLU()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 8)
        self.third = nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        y = self.act(self.second(self.act(self.first(x))))
        return self.act(self.third(y)) if len(x) > 4 else self.last(self.third(y))


@BOTH
def test_a_shared_module_is_one_layer_for_each_number_of_units(kinds: str) -> None:
    model = converted(Branches(), kinds)
    watch = gpuact.torch.monitor(model, every=1)
    model(torch.randn(8, 4)).sum().backward()
    wide, narrow, *unseen = watch.report().layers
    assert (wide.name, wide.units, wide.count) == ("act (8 units)", 8, 128)
    assert (narrow.name, narrow.units, narrow.count) == ("act (3 units)", 3, 24)
    assert wide.looks == narrow.looks == 1
    assert wide.ratio == wide.gradient / narrow.gradient
    assert [layer.name for layer in unseen] == ["never", "last"]
    assert {layer.note for layer in unseen} == {
        "not seen: it did not run in a step that was looked at"
    }
    model(torch.randn(4, 4)).sum().backward()
    act, last, never = watch.report().layers
    assert [layer.name for layer in (act, last, never)] == ["act", "last", "never"]
    assert (last.output, act.output) == (True, False)
    assert act.ratio == act.gradient / last.gradient


def test_numbers_of_units_that_never_end_are_told() -> None:
    model = nn.Sequential(nn.ReLU())
    with gpuact.torch.monitor(model, every=1) as watch:
        for n in range(1, watching.SIZES + 2):
            model(torch.randn(2, n))
        report = watch.report()
        for _ in range(2):  # those of before the last report are forgotten
            watch.report()
            model(torch.randn(2, 99))
    assert [(layer.units, layer.note) for layer in watch.report().layers] == [(99, "")]
    assert [layer.units for layer in report.layers] == [*range(1, watching.SIZES + 1)]
    assert "layer 0 (8 units): not seen with 9 units: it had 8 other numbers of them" in str(report)


class Answer(Module):
    def __init__(self, form: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.inner, self.act, self.form = nn.Tanh(), nn.Sigmoid(), form

    def forward(self, x: Any) -> Any:
        y = self.inner(x)
        return self.form(y, self.act(y))


@dataclass
class Heads:
    first: Any
    second: Any


@pytest.mark.parametrize(
    ("form", "inner", "act"),
    [
        (lambda x, y: y, False, True),
        (lambda x, y: y.squeeze(-1), False, True),
        (lambda x, y: (x, y), True, True),
        (lambda x, y: {"loss": 0.5, "logits": y}, False, True),
        (lambda x, y: {"out": {"first": [x], "second": y}}, True, True),
        (lambda x, y: Heads(x, [y]), True, True),
        (lambda x, y: Heads(x[:, 0], Heads), True, True),
        # whose outputs the loss is made of: nothing runs behind the last
        (lambda x, y: (x + y).sum(), False, True),
        (lambda x, y: None, False, True),
        (lambda x, y: 3, False, True),
    ],
)
@BOTH
def test_what_the_model_returns_is_known(
    form: Callable[[Any, Any], Any], inner: bool, act: bool, kinds: str
) -> None:
    model = converted(Answer(form), kinds)
    with gpuact.torch.monitor(model, every=1) as watch:
        for _ in range(2):
            model(torch.randn(3, 1))
    assert [layer.output for layer in watch.report().layers] == [inner, act]


def test_what_the_model_returned_last_is_known() -> None:
    model = Answer(lambda x, y: (x, y) if len(x) > 1 else y)
    with gpuact.torch.monitor(model, every=1) as watch:
        model(torch.randn(3, 1))
        assert watch.report(reset=False).layers[0].output
        model(torch.randn(1, 1))
    assert not watch.report().layers[0].output


def test_what_holds_itself_is_no_endless_answer() -> None:
    def form(x: Any, y: Any) -> Any:
        found: list[Any] = [x]
        return [*found, found.append(found), found]

    model = Answer(form)
    with gpuact.torch.monitor(model) as watch:
        model(torch.randn(3, 1))
    assert watch.report().layers[0].output


@BOTH
def test_the_last_activation_of_all_need_not_be_the_answer(kinds: str) -> None:
    """At later looks, too, at which nobody asks what runs between activations."""
    model = converted(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), kinds)
    nn.init.constant_(model[0].bias, 100.0)
    with gpuact.torch.monitor(model, every=1) as watch:
        for _ in range(health.SATURATED_LOOKS):
            model(torch.randn(3, 4)).sum().backward()
    report = watch.report()
    assert not report.layers[0].output
    assert [advice.fault for advice in report.advice] == ["saturated"]


@contextmanager
def alone_in_a_group() -> Iterator[None]:
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("unused", [False, True])
def test_what_distributed_data_parallel_returns_is_known(unused: bool) -> None:
    """Copies, where it looks for unused parameters."""
    with alone_in_a_group():
        inner = Answer(lambda x, y: (x, y))
        inner.some = nn.Linear(1, 1)
        model = nn.parallel.DistributedDataParallel(inner, find_unused_parameters=unused)
        with gpuact.torch.monitor(model) as watch:
            model(torch.randn(3, 1))
        del model
    assert [layer.output for layer in watch.report().layers] == [True, True]
    assert traces(inner) == []


@BOTH
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(dtype: str, kinds: str) -> None:
    torch.manual_seed(0)
    model = converted(nn.Sequential(nn.Linear(4, 8), nn.Tanh()), kinds).to(getattr(torch, dtype))
    x = torch.randn(16, 4).to(getattr(torch, dtype))
    with gpuact.torch.monitor(model) as watch:
        y = model(x)
        y.sum().backward()
    (layer,) = watch.report().layers
    assert y.dtype == x.dtype
    assert layer.mean == pytest.approx(y.double().mean().item(), rel=1e-5, abs=1e-7)
    assert layer.std == pytest.approx(y.double().std(correction=0).item(), rel=1e-5)
    assert layer.gradient == pytest.approx(math.sqrt(128))


@BOTH
def test_under_autocast(kinds: str) -> None:
    model = converted(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), kinds)
    with gpuact.torch.monitor(model) as watch, torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(16, 4)).sum().backward()
    (layer,) = watch.report().layers
    assert (layer.count, layer.note) == (128, "")
    assert layer.gradient > 0


def test_gradients_over_looks_and_backwards() -> None:
    """The root of the mean square over looks; twice through one graph counts as one look."""
    model = nn.Sequential(nn.ReLU())
    x = torch.ones(3, 2, requires_grad=True)
    with gpuact.torch.monitor(model, every=1) as watch:
        (3 * model(x)).sum().backward()
        (y,) = torch.autograd.grad((model(x) ** 2).sum(), x, create_graph=True)
        y.sum().backward()
        model(x)
    (layer,) = watch.report().layers
    assert layer.looks == 3
    # 3 of each of 6 elements; of 2y, and of its derivative 2 again
    assert layer.gradient == pytest.approx(math.sqrt((9 * 6 + 4 * 6 + 4 * 6) / 2))


def test_a_report_is_of_the_steps_since_the_last_one() -> None:
    model = nn.Sequential(nn.ReLU())
    with gpuact.torch.monitor(model, every=1) as watch:
        for value in (2.0, -1.0, math.nan, 3.0):
            model(torch.full((4,), value, requires_grad=True)).square().sum().backward()
            (layer,) = watch.report().layers
            y = max(value, 0.0) if value == value else value
            known = (layer.count, layer.looks, layer.dead, layer.broken)
            assert known == (4, 1, 4 * (y == 0), y != y)
            assert layer.mean == pytest.approx(y, nan_ok=True)
            # a gradient of NaN is told as infinite
            assert layer.gradient == (math.inf if y != y else pytest.approx(4 * y))


def test_outputs_count_as_broken_from_the_first_on() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with gpuact.torch.monitor(model, every=1) as watch:
        for value in (1.0, 1.0, math.inf, 1.0, 1.0):
            model(torch.full((2, 4), value))
    report = watch.report()
    assert report.layers[0].broken == 3
    assert report.sentence.startswith("layer 1: outputs first held inf or NaN at look 3 of 5, in")


def test_a_gradient_that_vanished_is_not_zero() -> None:
    model = nn.Sequential(nn.Tanh())
    with gpuact.torch.monitor(model) as watch:
        (model(torch.ones(4, requires_grad=True)) * 1e-30).sum().backward()
    assert watch.report().layers[0].gradient == pytest.approx(2e-30, rel=1e-6, abs=0)


def test_a_loss_scalers_overflow_is_left_out() -> None:
    model = nn.Sequential(nn.Tanh())
    with gpuact.torch.monitor(model, every=1) as watch:
        for scale in (math.inf, math.nan, 2.0, 2.0):
            (model(torch.ones(4, requires_grad=True)) * scale).sum().backward()
    report = watch.report()
    (layer,) = report.layers
    assert (layer.gradient, layer.broken_gradients, layer.broken) == (4.0, 2, 0)
    assert report.advice == ()


@BOTH
def test_the_same_bits_every_time(kinds: str) -> None:
    def run() -> Report:
        torch.manual_seed(3)
        model = converted(stack(nn.Tanh, 3), kinds)
        with gpuact.torch.monitor(model, every=2) as watch:
            train(model, 12, noise())
        return watch.report()

    assert repr(run()) == repr(run())  # of floats repr tells every bit


# -- steps ----------------------------------------------------------------------------------------


def test_steps_are_forward_passes_in_training() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    x = torch.randn(2, 4)
    watch = gpuact.torch.monitor(model, every=3)
    empty = watch.report()
    assert (empty.steps, empty.looks, empty.sentence) == (0, 0, "no step was looked at")
    for _ in range(5):
        model(x)
        with torch.no_grad():
            model(x)
        with torch.inference_mode():
            model(x)
        model.eval()
        model(x)
        model.train()
    kept = watch.report(reset=False)
    assert (kept.first, kept.last, kept.steps, kept.looks) == (0, 4, 5, 2)
    assert kept.layers[0].count == 2 * 16
    model(x)
    model(x)
    again = watch.report()
    assert (again.first, again.last, again.looks, again.layers[0].count) == (0, 6, 3, 3 * 16)
    model(x)
    last = watch.report()
    assert (last.first, last.last, last.steps, last.looks) == (7, 7, 1, 0)
    model(x)
    model(x)
    assert watch.report().layers[0].count == 16  # step 9; nothing of those before
    watch.close()
    model(x)
    assert watch.steps == 10


def test_nothing_waits_for_the_device_before_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*args: Any) -> Any:
        raise AssertionError("somebody waits for the device")

    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), ours.Tanh(), nn.Linear(8, 10))
    watch = gpuact.torch.monitor(model, every=1)
    with monkeypatch.context() as patched:
        patched.setattr(stats, "_on_host", wait)
        for name in ("item", "tolist", "cpu", "__bool__", "__float__", "__int__"):
            patched.setattr(torch.Tensor, name, wait)
        for _ in range(3):
            model(torch.randn(4, 64)).sum().backward()
        with pytest.raises(AssertionError, match="somebody waits"):
            watch.report()
    assert watch.report().looks == 3


def traces(model: Module) -> list[str]:
    """What a monitor might have left on a model."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called")
    names = (*names, "_forward_hooks_with_kwargs", "_backward_hooks")
    left = [n for m in model.modules() for n in names if getattr(m, n)]
    return left + ["_watch" for m in model.modules() if "_watch" in vars(m)]


class Failing(Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), ours.Tanh())
        self.error = error

    def forward(self, x: Any) -> Any:
        y = self.body(x)
        if len(x) > 2:
            raise self.error("planted")
        return y


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_on_the_model(error: type[BaseException]) -> None:
    model = Failing(error)
    before = repr(model), list(model.state_dict())
    watch = gpuact.torch.monitor(model, every=2)
    with pytest.raises(error, match="planted"):
        model(torch.randn(3, 4))
    if error is ValueError:  # torch tells its hooks of no others
        assert traces(model.body) == []
    model(torch.randn(1, 4))  # is not looked at
    assert traces(model.body) == []
    assert (repr(model), list(model.state_dict())) == before
    model(torch.randn(1, 4))
    assert traces(model.body) == []
    assert [layer.looks for layer in watch.report().layers] == [2, 2]
    with pytest.raises(error, match="planted"), watch:
        model(torch.randn(1, 4))
        model(torch.randn(3, 4))
    assert traces(model) == []


class Calling(Module):
    """A model that calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), ours.Tanh())

    def forward(self, x: Any, depth: int = 2) -> Any:
        y = self.body(x)
        return self.body(self(y, depth - 1)) if depth else y


def test_a_model_that_calls_itself_is_one_step() -> None:
    model = Calling()
    with gpuact.torch.monitor(model, every=2) as watch:
        for _ in range(3):
            model(torch.randn(2, 4)).sum().backward()
        assert traces(model.body) == []
    report = watch.report()
    assert (report.steps, report.looks) == (3, 2)
    assert [(layer.looks, layer.count) for layer in report.layers] == [(2, 2 * 5 * 8)] * 2


def test_another_thread_may_end_a_look() -> None:
    """Where it hurts most: within gpuact's forward, and before the look's own end."""

    class Ending(ours.ReLU):
        ended = False

        @property
        def _watch(self) -> Any:
            found = vars(self).get("_watch") if not self.ended else None
            self.ended = self.ended or found is not None
            return found

        @_watch.setter
        def _watch(self, value: Any) -> None:
            vars(self)["_watch"] = value

    class Model(Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = Ending()

        def forward(self, x: Any) -> Any:
            y = self.act(x)
            del vars(self.act)["_watch"]
            return y

    model = Model()
    with gpuact.torch.monitor(model) as watch:
        assert model(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]
    assert watch.report().layers[0].count == 2


@pytest.mark.slow
def test_forwards_in_several_threads() -> None:
    model = nn.Sequential(*[part for _ in range(4) for part in (nn.Linear(8, 8), ours.ReLU())])
    faults: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(1000):
                model(torch.randn(4, 8)).sum().backward()
        except BaseException as fault:
            faults.append(fault)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with gpuact.torch.monitor(model, every=1):
            threads = [Thread(target=work) for _ in range(4)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
    finally:
        sys.setswitchinterval(before)
    assert faults == []
    assert traces(model) == []


def test_what_was_interrupted_can_be_copied() -> None:
    model = Failing(KeyboardInterrupt)
    with gpuact.torch.monitor(model, every=1) as watch:
        with pytest.raises(KeyboardInterrupt, match="planted"):
            model(torch.randn(3, 4))
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert again.body[2]._watch is None
            again(torch.randn(2, 4))
            assert watch.steps == 1
            with gpuact.torch.monitor(again) as other:
                again(torch.randn(2, 4))
            assert [layer.count for layer in other.report().layers] == [8, 8]
    assert [layer.count for layer in watch.report().layers] == [12, 12]


def test_a_replica_counts_with_its_own_slopes() -> None:
    """As DataParallel makes them, for each device."""
    act = ours.PReLU(init=0.5)
    with gpuact.torch.monitor(act) as watch:
        act.register_forward_pre_hook(lambda act, args: found.append(replicated(act)(*args)))
        found: list[Any] = []
        act(torch.tensor([[-1.0, 2.0]]))
    assert found[0].tolist() == [[-8, 2]]
    assert watch.report().layers[0].count == 4


def replicated(act: Any) -> Any:
    replica = act._replicate_for_data_parallel()
    replica._forward_pre_hooks = {}
    replica._forward_hooks = {}
    replica.weight = torch.tensor([8.0])
    return replica


def test_a_copy_of_the_model_is_not_watched() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), ours.Tanh())
    with gpuact.torch.monitor(model, every=1) as watch:
        model(torch.randn(2, 4))
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            again(torch.randn(2, 4))
            assert torch.equal(again[0].weight, model[0].weight)
        assert watch.steps == 1
    assert watch.report().layers[0].count == 8


@BOTH
def test_two_monitors_do_not_disturb_each_other(kinds: str) -> None:
    model = converted(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), kinds)
    x = torch.randn(2, 4)
    with gpuact.torch.monitor(model, every=1) as first:
        with gpuact.torch.monitor(model, every=2) as second:
            for _ in range(3):
                model(x).sum().backward()
        model(x).sum().backward()
    assert traces(model) == []
    one, other = first.report(), second.report()
    assert (one.looks, other.looks) == (4, 2)
    assert one.layers[0].mean == pytest.approx(other.layers[0].mean)
    assert one.layers[0].gradient == other.layers[0].gradient


def test_a_model_that_is_converted_under_watch() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with gpuact.torch.monitor(model, every=1) as watch:
        model(torch.randn(2, 4))
        ours.convert(model)
        model(torch.randn(2, 4))
    (layer,) = watch.report().layers
    assert (layer.looks, layer.count) == (2, 16)


# -- where nothing can be seen --------------------------------------------------------------------


def test_a_compiled_model_has_no_graph_break_for_it() -> None:
    model = nn.Sequential(nn.Linear(4, 8), ours.ReLU(), nn.Tanh(), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    expected = model(x)
    with gpuact.torch.monitor(model, every=1) as watch:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        y = compiled(x)
        y.sum().backward()
        assert torch.equal(y, expected)
        assert watch.steps == 0
        with pytest.raises(ValueError, match="none but compiled activations came"):
            gpuact.torch.monitor(compiled)
    assert traces(model) == []


def test_compiled_parts_are_told() -> None:
    body = nn.Sequential(nn.Linear(4, 4), ours.ReLU())
    model = nn.Sequential(torch.compile(body, backend="aot_eager"), nn.Tanh(), nn.Sigmoid())
    model[2].compile(backend="aot_eager")
    with gpuact.torch.monitor(model, every=1) as watch:
        model(torch.randn(3, 4)).sum().backward()
    tanh, relu, sigmoid = watch.report().layers
    assert (tanh.name, tanh.looks) == ("1", 1)
    for layer in (relu, sigmoid):
        assert (layer.looks, layer.note) == (0, "not seen: torch.compile has compiled it")


class Body(Module):
    """One to compile: torch.compile passes over a Sequential of torch's own."""

    def __init__(self, act: Module) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(4, 4), act

    def forward(self, x: Any) -> Any:
        return self.act(self.linear(x))


def compiled_graphs() -> tuple[list[Any], Callable[[Any, Any], Any]]:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    return graphs, backend


@BOTH
def test_what_is_compiled_under_watch_is_told(kinds: str) -> None:
    """And is compiled once, however often one looks."""
    graphs, backend = compiled_graphs()
    body = Body(nn.ReLU())
    model = converted(nn.Sequential(body, nn.Linear(4, 4), nn.Sigmoid(), nn.ReLU()), kinds)
    with gpuact.torch.monitor(model, every=1) as watch:
        model(torch.randn(3, 4))
        body.compile(backend=backend)
        for _ in range(4):
            model(torch.randn(3, 4))
        assert len(graphs) == 1
        kept = watch.report()
        model(torch.randn(3, 4))
        unseen = watch.report().layers[2:]
        model.compile(backend=backend)
        whole = watch.report()
    since = "not seen since: torch.compile has compiled it"
    assert {layer.name: layer.note for layer in kept.layers} == {
        "0.act": since,
        "2": "",
        "3": "",
    }
    assert [layer.looks for layer in kept.layers] == [1, 5, 5]
    assert [(layer.name, layer.note) for layer in unseen] == [("0.act", since)]
    assert (whole.looks, whole.sentence) == (0, "no step was looked at")
    assert {layer.note for layer in whole.layers} == {since}


def test_parts_that_are_compiled_before_are_left_alone() -> None:
    """Also by who asks what ran before an activation, as long as one was not seen."""
    graphs, backend = compiled_graphs()
    body = Body(nn.Identity())
    body.compile(backend=backend)
    model = nn.Sequential(body, nn.Tanh(), nn.Dropout())
    model[2].never = nn.Sigmoid()
    with gpuact.torch.monitor(model, every=2):
        for _ in range(6):
            model(torch.randn(3, 4))
    assert len(graphs) == 1


def test_a_layer_that_was_replaced_is_told() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    with gpuact.torch.monitor(model, every=1) as watch:
        kept, model[1] = model[1], nn.ReLU()
        model(torch.randn(3, 4))
        report = watch.report()
        model[1] = kept
        model(torch.randn(3, 4))
        model[1] = nn.ReLU()
        seen = watch.report()
    assert report.sentence == "no layer was seen"
    assert report.layers[0].note == "not seen: the model has it no more"
    assert seen.layers[0].note == "not seen since: the model has it no more"
    assert str(report).endswith("no layer was seen\nlayer 1: not seen: the model has it no more")


@BOTH
def test_what_torch_func_transforms_is_told(kinds: str) -> None:
    model = converted(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), kinds)
    weights = dict(model.named_parameters())

    def loss(weights: Any, x: Any) -> Any:
        return torch.func.functional_call(model, weights, (x,)).sum()

    x = torch.randn(3, 4)
    with gpuact.torch.monitor(model, every=1) as watch:
        found = torch.func.grad(loss)(weights, x)
        torch.func.vmap(lambda row: loss(weights, row))(x)
        told = watch.report()
        loss(weights, x)
        seen = watch.report()
    expected = torch.autograd.grad(loss(weights, x), list(weights.values()))
    torch.testing.assert_close(list(found.values()), list(expected))
    assert (told.looks, told.layers[0].looks) == (2, 0)
    assert told.layers[0].note.startswith("not seen where tensors were no plain")
    assert (seen.layers[0].looks, seen.layers[0].note) == (1, "")


# torch.jit.trace warns of gpuact's own functions, watched or not
@pytest.mark.parametrize(
    ("what", "kinds"),
    [
        *product(("meta", "integers", "inference", "subclass"), ("torch", "gpuact")),
        ("traced", "torch"),
    ],
)
def test_what_lies_not_in_memory_passes_by(what: str, kinds: str) -> None:
    class Told(torch.Tensor):
        pass

    class Model(Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Any) -> Any:
            with torch.inference_mode(what == "inference"):
                return self.act(x)

    model = converted(Model(), kinds)
    x = torch.tensor([-1, 2]) if what == "integers" else torch.tensor([-1.0, 2.0])
    x = x.to("meta") if what == "meta" else x.as_subclass(Told) if what == "subclass" else x
    with gpuact.torch.monitor(model, every=1) as watch:
        y = torch.jit.trace(model, x)(x) if what == "traced" else model(x)
    assert (y.dtype, type(y)) == (x.dtype, type(x))
    if what != "meta":
        assert y.tolist() == [0, 2]
    assert all(layer.looks == 0 and layer.note for layer in watch.report().layers)
    assert traces(model) == []


@pytest.mark.parametrize(
    ("device", "capturing", "seen"),
    [
        ("cpu", True, True),  # is not asked: that would initialise CUDA
        ("cuda", False, True),
        ("cuda", True, False),
        ("mps", False, False),
    ],
)
def test_what_is_looked_at(
    device: str, capturing: bool, seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    x: Any = SimpleNamespace(
        is_floating_point=lambda: True, layout=torch.strided, device=torch.device(device)
    )
    assert watching._in_memory(x) is seen


@BOTH
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_counts_once(reentrant: bool, kinds: str) -> None:
    class Model(Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = converted(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Tanh()), kinds)

        def forward(self, x: Any) -> Any:
            return torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=reentrant)

    torch.manual_seed(0)
    model, x = Model(), torch.randn(3, 4, requires_grad=True)
    expected = torch.autograd.grad(model.body(x).sum(), list(model.parameters()))
    with gpuact.torch.monitor(model, every=1) as watch:
        model(x).sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], list(expected))
    relu, tanh = watch.report().layers
    assert [(layer.looks, layer.count) for layer in (relu, tanh)] == [(1, 12)] * 2
    # of a reentrant checkpoint autograd sees the outside alone
    assert math.isnan(relu.gradient) == reentrant
    if not reentrant:
        assert tanh.gradient == pytest.approx(math.sqrt(12))


def test_torchs_modules_are_counted_at_home() -> None:
    """Whatever backend gpuact's own functions are sent to."""
    model = nn.Sequential(nn.ReLU())
    with gpuact.torch.monitor(model) as watch, gpuact.using("cupy"):
        model(torch.randn(3, 4))
    assert watch.report().layers[0].count == 12


# -- faults ---------------------------------------------------------------------------------------


def dead() -> Module:
    model = stack(nn.ReLU, 3)
    nn.init.constant_(model[2].bias[:24], -10.0)
    return model


def scaled(act: Callable[[], Module], depth: int, factor: float, *which: int, **how: Any) -> Module:
    model = stack(act, depth, **how)
    with torch.no_grad():
        for k in which:
            model[k].weight *= factor
    return model


def cut(act: Callable[[], Module], bias: float) -> Module:
    model = nn.Sequential(nn.Linear(16, 16), act(), nn.Linear(16, 2))
    nn.init.constant_(model[0].bias, bias)
    return model


def looked_at(
    model: Module, looks: int, batch: int = 32, loss: Callable[[Any], Any] = torch.sum
) -> Report:
    with gpuact.torch.monitor(model, every=1) as watch:
        for _ in range(looks):
            loss(model(torch.randn(batch, 16))).backward()
    return watch.report()


@BOTH
def test_a_layer_that_is_wholly_dead_is_told_early(kinds: str) -> None:
    model = converted(cut(nn.ReLU, -100.0), kinds)
    doubt = "no fault to be seen; too little seen to tell whether units of layer 1 are dead: 16 of "
    assert looked_at(model, 2, 64).sentence == (
        f"{doubt}16 seem so after 2 of 3 looks and 128 of 100 outputs of each"
    )
    few = looked_at(model, 3)
    assert few.sentence == (f"{doubt}16 seem so after 3 of 3 looks and 96 of 100 outputs of each")
    assert few.as_dict()["doubts"] == list(few.doubts) != []
    assert str(few).endswith(few.sentence)
    assert [advice.fault for advice in looked_at(model, 4).advice] == ["dead"]
    # a few units prove less
    small = nn.Sequential(nn.Linear(16, 7), nn.ReLU())
    nn.init.constant_(small[0].bias, -100.0)
    assert looked_at(small, 15).advice == ()
    assert len(looked_at(small, 16).advice) == 1
    # of a part of the units more is asked
    nn.init.constant_(model[0].bias[:6], 100.0)
    assert looked_at(model, 15).sentence == (
        f"{doubt[:-6]}10 of 16 seem so after 15 of 10 looks and 480 of 500 outputs of each"
    )
    assert len(looked_at(model, 16).advice) == 1


@pytest.mark.parametrize(
    ("act", "bias"),
    [(nn.GELU, -50.0), (nn.Hardswish, -50.0), (nn.SiLU, -500.0), (nn.Mish, -500.0)],
)
def test_a_layer_whose_slope_nobody_knows_is_dead_where_it_is_0(act: Any, bias: float) -> None:
    report = looked_at(cut(act, bias), 4)
    assert report.layers[0].dead == 0
    assert report.advice[0].sentence == (
        f"layer 1: 100 % of {act.__name__} outputs have been 0 for 4 steps (in 4 looks): dead; "
        "lower the rate, start from biases of 0, or use leaky_relu"
    )
    assert looked_at(cut(act, bias), 3).advice == looked_at(cut(act, 0.0), 4).advice == ()


@pytest.mark.parametrize(
    ("low", "high", "fault"),
    [(0.0, 20.0, ()), (-20.0, 0.0, ()), (-1e-3, 1e-3, ("saturated",))],
)
def test_a_relu_with_two_bounds_is_a_relu(low: float, high: float, fault: Any) -> None:
    torch.manual_seed(0)
    model = stack(lambda: nn.Hardtanh(low, high), 1)
    with gpuact.torch.monitor(model, every=1) as watch:
        train(model, 20, noise(), rate=1e-3)
    report = watch.report()
    assert report.layers[0].clipped == (not fault)
    assert tuple(advice.fault for advice in report.advice) == fault


def test_gradients_that_are_0_are_told() -> None:
    model = stack(nn.Tanh, 3, width=16, gain=1.0)
    model[0] = nn.Linear(16, 16)
    report = looked_at(model, 5, loss=lambda y: y.sum() * 0)
    assert [advice.sentence for advice in report.advice] == [
        "layer 5 and 2 more: the gradient was 0 at all 5 looks, so nothing is learnt there: look "
        "for a dead layer behind it, a factor of 0, a flat loss, or float16 without a loss scaler"
    ]
    # as long as it may be an initialisation of 0
    assert looked_at(model, 4, loss=lambda y: y.sum() * 0).sentence == "no fault to be seen"
    nn.init.zeros_(model[6].weight)
    with gpuact.torch.monitor(model, every=1) as watch:
        train(model, 6, (torch.randn(64, 16), torch.randint(0, 10, (64,))))
    assert watch.report().advice == ()


def test_backwards_that_never_came_are_told() -> None:
    model = cut(nn.Tanh, 0.0)
    with gpuact.torch.monitor(model, every=1) as watch:
        model(torch.randn(3, 16))
    assert watch.report().sentence == ("no fault to be seen; no backward was seen to reach a layer")


@pytest.mark.parametrize("shape", [(0, 16), (3, 0)])
@pytest.mark.parametrize("act", [nn.Sigmoid, nn.ReLU])
def test_nothing_is_said_of_nothing(act: Any, shape: tuple[int, int]) -> None:
    model = nn.Sequential(act(), nn.ReLU())
    with gpuact.torch.monitor(model, every=1) as watch:
        for _ in range(health.DEAD_LOOKS):
            model(torch.randn(shape, requires_grad=True)).sum().backward()
    report = watch.report()
    assert (report.layers[0].looks, report.layers[0].count) == (health.DEAD_LOOKS, 0)
    assert (report.advice, report.doubts, report.sentence) == ((), (), "no layer was seen")
    assert json.loads(json.dumps(report.as_dict()))["layers"][0]["mean"] is None


# fault → (how it is planted, the layer to be named, what of the evidence is known)
PLANTED: dict[str, tuple[Callable[[], Module], str, dict[str, tuple[float, float]]]] = {
    "dead": (dead, "3", {"dead": (24, 32), "units": (32, 32), "looks": (10, 10)}),
    "saturated sigmoid": (
        lambda: scaled(nn.Sigmoid, 3, 30, 2, gain=1.0),
        "3",
        {"saturated": (0.5, 1.0), "looks": (10, 10), "steps": (20, 20)},
    ),
    "saturated tanh": (
        lambda: scaled(nn.Tanh, 3, 30, 2, gain=5 / 3),
        "3",
        {"saturated": (0.7, 1.0), "looks": (10, 10), "steps": (20, 20)},
    ),
    "vanishing": (
        lambda: stack(nn.Sigmoid, 20, gain=0),
        "1",
        {"factor per layer": (5, 10), "first": (0, 1e-12), "last": (1e-3, 1)},
    ),
    "exploding": (
        lambda: scaled(nn.ReLU, 20, 3, *range(0, 40, 2)),
        "39",
        {"factor per layer": (2, 4), "last": (1e6, math.inf)},
    ),
    "not finite": (
        lambda: scaled(nn.ReLU, 3, math.nan, 2),
        "3",
        {"broken": (10, 10), "looks": (10, 10), "steps": (20, 20)},
    ),
}


@DEVICES
@BOTH
@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_told(fault: str, kinds: str, device: str) -> None:
    needs(device)
    make, layer, evidence = PLANTED[fault]
    for seed in range(5):
        torch.manual_seed(seed)
        model = converted(make(), kinds).to(device)
        x, target = digits()
        data = x.to(device), target.to(device)
        with gpuact.torch.monitor(model, every=2) as watch:
            # at such a rate what was planted stays
            train(model, 20 if "looks" in evidence else 6, data, rate=1e-4 * (fault != "exploding"))
        report = watch.report()
        advice = report.advice[0]
        assert advice.fault in fault
        assert advice.layer == layer
        assert advice.sentence == report.sentence
        # twenty layers at three times the weights leave few units on, too
        others = {a.fault for a in report.advice} - {advice.fault}
        assert others <= ({"dead"} if fault == "exploding" else set())
        for name, (low, high) in evidence.items():
            assert low <= advice.evidence[name] <= high, name


def test_the_sentences() -> None:
    """Word for word: a fault, its evidence, and what to do."""

    def layer(name: str, kind: str = "ReLU", **figures: Any) -> Layer:
        known = {"units": 100, "looks": 50, "count": 100_000, "mean": 0.5, "std": 1.0}
        known |= {"zeros": 0.5, "saturated": 0.5, "gradient": 1.0}
        return Layer(name, kind, **(known | figures))

    def said(*layers: Layer) -> list[str]:
        return [a.sentence for a in Report(0, 499, 50, layers).advice]

    assert said(layer("0"), layer("3", dead=71)) == [
        "layer 3: 71 % of ReLU units have been 0 for 500 steps (71 of 100, at all 50 looks): dead; "
        "lower the rate, start from biases of 0, or use leaky_relu"
    ]
    assert said(layer("3", "ELU", dead=71)) == [
        "layer 3: 71 % of ELU units have been saturated for 500 steps (71 of 100, at all 50 looks)"
        ": dead; lower the rate, start from biases of 0, or use leaky_relu"
    ]
    assert said(
        layer("3", "Tanh", saturated=0.9, dead=2), layer("4", "Sigmoid", saturated=0.95)
    ) == [
        "layer 4: 95 % of Sigmoid outputs, over 500 steps, lie where the slope is below 0.01 (0 of "
        "100 units always): saturated; start from smaller weights, normalise its input, or use "
        "relu",
        "layer 3: 90 % of Tanh outputs, over 500 steps, lie where the slope is below 0.01 (2 of "
        "100 units always): saturated; start from smaller weights, normalise its input, or use "
        "relu",
    ]
    falling = [layer(str(k), "Tanh", saturated=0.0, gradient=10.0 ** (k - 6)) for k in range(6)]
    assert said(*falling) == [
        "layers 5 to 0: the gradient falls by a factor of 10 a layer on its way to the input, from "
        "0.1 to 1e-06: vanishing; use relu in place of tanh, residual connections, or "
        "normalisation between layers"
    ]
    growing = [layer(str(k), std=10.0**k, gradient=10.0**-k) for k in range(6)]
    assert said(*growing) == [
        "layers 0 to 5: the outputs' standard deviation grows by a factor of 10 a layer, from 1 to "
        "1e+05: exploding; use He initialisation, normalise between layers, or clip gradients",
        "layers 5 to 0: the gradient grows by a factor of 10 a layer on its way to the input, from "
        "1e-05 to 1: exploding; use He initialisation, normalise between layers, or clip gradients",
    ]
    nothing = {"mean": math.nan, "std": math.nan}
    assert said(layer("0", broken=2, **nothing), layer("1", broken=3, **nothing), layer("2")) == [
        "layer 1: outputs first held inf or NaN at look 48 of 50, in no other layer earlier: "
        "exploded; lower the rate, clip gradients, and look at what feeds it"
    ]
    assert said(layer("0", broken_gradients=9), layer("1", broken_gradients=9), layer("2")) == [
        "layer 1: the gradient was inf or NaN at 9 of 50 looks, while all outputs are finite: "
        "lower the rate or the scale of the loss"
    ]
    falling = [layer(str(k), gradient=10.0 ** (k - 6)) for k in range(6)]
    assert said(*falling) == [
        "layers 5 to 0: the gradient falls by a factor of 10 a layer on its way to the input, from "
        "0.1 to 1e-06: vanishing; use He initialisation, residual connections, or normalisation "
        "between layers"
    ]
    # the worst first
    several = said(layer("0", dead=60), layer("1", dead=71), layer("2", dead=65))
    assert [sentence[:8] for sentence in several] == ["layer 1:", "layer 2:", "layer 0:"]
    # causes before what they cause
    both = [layer("3", dead=71), *growing]
    assert [a.fault for a in Report(0, 499, 50, tuple(both)).advice] == [
        *("exploding", "exploding", "dead")
    ]
    # what is no fault: too few looks, too few elements, a sure classifier's answer, a branch
    assert said(layer("3", dead=71, looks=9), layer("4", dead=71, count=49_999)) == []
    assert said(layer("3", dead=49), layer("4", "LeakyReLU", zeros=1.0, saturated=0.0)) == []
    assert said(layer("3", broken_gradients=4), layer("4", "Tanh", saturated=0.9, looks=2)) == []
    # and as much as suffices
    assert len(said(layer("3", dead=50, looks=10), layer("4", dead=50, count=50_000))) == 2
    assert len(said(layer("3", dead=100, looks=3, count=10_000))) == 1
    assert len(said(layer("3", dead=8, units=8, looks=3, count=800))) == 1
    assert len(said(layer("3", "GELU", zeros=0.99), layer("4", broken_gradients=5))) == 2
    # what is in doubt is nothing that more looks could not make a fault
    doubtful = layer("3", dead=71, looks=9), layer("4", "Tanh", dead=71, looks=2)
    (doubt,) = Report(0, 499, 50, doubtful).doubts
    assert doubt.startswith("too little seen to tell whether units of layer 3 are dead: 71 of 100")
    # of a bounded layer the units, too, are told as saturated
    told = said(layer("3", "Tanh", saturated=0.9, dead=71, looks=3, count=30_000))
    assert [sentence.split(": ")[2][:9] for sentence in told] == ["saturated"]
    assert said(layer("3", "Sigmoid", saturated=0.99, output=True)) == []
    uneven = [layer(str(k), gradient=[1e-4, 1, 1e-2, 1, 1e-2, 1][k]) for k in range(6)]
    assert said(*uneven) == []


def cnn() -> Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


class Transformer(Module):
    """Over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        block = nn.TransformerEncoderLayer(16, 2, 32, activation=nn.GELU(), batch_first=True)
        self.body = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(self.embed(x.view(-1, 8, 8))).mean(1))


HEALTHY: dict[str, Callable[[], Module]] = {
    "ReLU, 3": lambda: stack(nn.ReLU, 3),
    "ReLU, 6": lambda: stack(nn.ReLU, 6, 64),
    "ReLU, 4, PyTorch's initialisation": lambda: stack(nn.ReLU, 4, 64, gain=0),
    "LeakyReLU, 6": lambda: stack(nn.LeakyReLU, 6),
    "PReLU, 4": lambda: stack(nn.PReLU, 4),
    "GELU, 6": lambda: stack(nn.GELU, 6),
    "ELU, 5": lambda: stack(nn.ELU, 5),
    "Tanh, 4": lambda: stack(nn.Tanh, 4, gain=5 / 3),
    "Sigmoid, 2": lambda: stack(nn.Sigmoid, 2, gain=1.0),
    "convolutions": cnn,
    "transformer": Transformer,
}


def silent(make: Callable[[], Module], seed: int, steps: int, every: int, **how: Any) -> None:
    for data in (digits, noise):
        torch.manual_seed(seed)
        model = make()
        if seed % 2:
            ours.convert(model)
        with gpuact.torch.monitor(model, every=every) as watch:
            train(model, 1, data(), **how)
            assert watch.report().advice == ()
            train(model, steps, data(), **how)
            report = watch.report()
        assert report.looks >= health.DEAD_LOOKS
        assert report.advice == (), str(report)
        assert all(layer.looks == report.looks for layer in report.layers)


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_said_of_a_healthy_network(name: str) -> None:
    for seed in range(3):
        silent(HEALTHY[name], seed, steps=20, every=2)


@pytest.mark.slow
@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_said_of_a_network_that_has_learned(name: str, adam: bool) -> None:
    for seed in range(5):
        silent(HEALTHY[name], seed, steps=200, every=5, rate=2e-3 if adam else 0.05, adam=adam)


# -- reports --------------------------------------------------------------------------------------


def report_of_faults() -> Report:
    return Report(
        first=0,
        last=499,
        looks=50,
        layers=(
            Layer("0", "ReLU", 64, 50, 204800, 0.4, 0.58, 0.5, 0.5, 0, 0.01, 0.5),
            Layer("body.1", "ReLU", 64, 50, 204800, 0.1, 0.2, 0.9, 0.9, 45, 0.02),
            Layer("[red]", "Tanh", 8, 50, 25600, math.nan, math.inf, 0, 0, 0, broken=1),
            Layer("x", "GELU", note="not seen: torch.compile has compiled it"),
        ),
    )


TEXT = """\
steps 0 to 499, of which 50 were looked at

layer   kind  units  mean   std  zeros  saturated  dead  gradient  ratio
0       ReLU     64   0.4  0.58   50 %       50 %     0      0.01    0.5
body.1  ReLU     64   0.1   0.2   90 %       90 %    45      0.02      –
[red]   Tanh      8   nan   inf    0 %        0 %     0         –      –
x       GELU      –     –     –      –          –     –         –      –

layer [red]: outputs first held inf or NaN at look 50 of 50, in no other layer earlier: exploded; \
lower the rate, clip gradients, and look at what feeds it
layer body.1: 70 % of ReLU units have been 0 for 500 steps (45 of 64, at all 50 looks): dead; \
lower the rate, start from biases of 0, or use leaky_relu
layer x: not seen: torch.compile has compiled it"""


def test_a_report_as_text() -> None:
    assert str(report_of_faults()) == TEXT


@pytest.mark.parametrize("width", [80, 120])
def test_a_report_drawn_by_rich(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rich = pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", str(width))
    report = report_of_faults()
    report.print()
    printed = capsys.readouterr().out
    assert printed.replace("─", " ").split() == TEXT.split()
    assert max(map(len, printed.splitlines())) <= width
    rich.print(report)
    assert capsys.readouterr().out.replace("─", " ").split() == TEXT.split()


def test_a_report_as_json(tmp_path: Path) -> None:
    report = report_of_faults()
    report.save(tmp_path / "report.json")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    found = json.loads((tmp_path / "report.json").read_text("utf-8"), parse_constant=refuse)
    assert found == report.as_dict()
    assert [found[name] for name in ("first", "last", "steps", "looks")] == [0, 499, 500, 50]
    first, dead, broken, unseen = found["layers"]
    assert (first["name"], first["mean"], first["ratio"]) == ("0", 0.4, 0.5)
    assert (dead["dead_share"], dead["ratio"]) == (45 / 64, None)
    assert (broken["mean"], broken["std"]) == (None, None)
    assert unseen["note"] == "not seen: torch.compile has compiled it"
    assert [each["fault"] for each in found["advice"]] == ["not finite", "dead"]
    assert found["advice"][1]["evidence"] == {"dead": 45, "units": 64, "looks": 50, "steps": 500}


def test_a_report_as_picture(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "report.png"
    report_of_faults().plot(path)
    drawn = image.imread(path)
    assert min(drawn.shape[:2]) > 400
    assert len(np.unique(drawn.reshape(-1, drawn.shape[-1]), axis=0)) > 100
    with pytest.raises(ValueError, match="report: one of no layer came, allowed is one that saw"):
        Report(0, -1, 0, ()).plot(path)


@pytest.mark.parametrize(
    ("package", "what"),
    [("rich", "report.print()"), ("matplotlib", "report.plot()")],
)
def test_what_is_missing_is_named_with_its_extra(
    package: str, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    report = report_of_faults()
    ways: dict[str, Callable[[], None]] = {
        "rich": report.print,
        "matplotlib": lambda: report.plot(tmp_path / "x.png"),
    }
    with pytest.raises(ImportError) as error:
        ways[package]()
    assert str(error.value).startswith(f"{what} needs {package} (")
    assert str(error.value).endswith('pip install "gpuact[cli]" brings it')
    assert str(report) == TEXT
    assert list(tmp_path.iterdir()) == []


def test_watching_loads_neither_rich_nor_matplotlib() -> None:
    statement = (
        "import torch, gpuact.torch; m = torch.nn.Sequential(torch.nn.ReLU()); "
        "w = gpuact.torch.monitor(m); m(torch.ones(2)); str(w.report())"
    )
    assert not loaded_by(statement) & {"rich", "matplotlib"}


# -- refusals -------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "no module": ((3,), {}, TypeError, "model: int came, allowed is a torch.nn.Module"),
    "no activation": (
        (nn.Sequential(nn.Linear(2, 2)),),
        {},
        ValueError,
        "model: Sequential without activations came, allowed is one with modules to watch that run "
        "uncompiled (functions that a forward calls by name are none)",
    ),
    "every below 1": ((nn.ReLU(), 0), {}, ValueError, "every: 0 came, allowed is 1 or more"),
    "every no int": ((nn.ReLU(), 1.5), {}, TypeError, "every: float came, allowed is an int"),
    "an axis": (
        (nn.ReLU(),),
        {"channel_axis": "C"},
        TypeError,
        "channel_axis: str came, allowed is an int",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_sentence(name: str) -> None:
    args, options, kind, words = REFUSED[name]
    with pytest.raises(kind) as error:
        gpuact.torch.monitor(*args, **options)
    assert str(error.value) == words
    assert all(traces(model) == [] for model in args if isinstance(model, Module))


def test_reset_is_a_flag() -> None:
    with pytest.raises(TypeError, match="reset: int came, allowed is True or False"):
        gpuact.torch.monitor(nn.ReLU()).report(reset=1)


def test_the_functions_name_is_that_of_no_module() -> None:
    """However gpuact.torch's modules are loaded, `monitor` stays callable."""
    assert callable(gpuact.torch.monitor)
    assert watching.__all__ == ["Monitor"]
    assert {*OWN} == {
        getattr(ours, kind.__name__) for kind in KINDS if hasattr(ours, kind.__name__)
    }


# -- what it costs --------------------------------------------------------------------------------

STEPS = 40  # of each kind in an attempt, turn by turn
OVERHEAD = 0.1  # of a step, at the default `every`


def step_times(model: Module, x: Any, target: Any) -> dict[str, float]:
    """Seconds a step takes unwatched, looked at, and watched between two looks; at best."""
    optimiser = torch.optim.SGD(model.parameters(), 1e-3)
    found: dict[str, list[float]] = {"alone": [], "looked at": [], "between": []}

    def step(kind: str) -> None:
        start = perf_counter()
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimiser.step()
        found[kind].append(perf_counter() - start)

    for _ in range(STEPS):
        step("alone")
        with gpuact.torch.monitor(model, every=2):
            step("looked at")
            step("between")
    return {kind: min(times) for kind, times in found.items()}


@BOTH
@pytest.mark.timed
def test_overhead_of_a_training_loop(kinds: str, record_property: Any) -> None:
    """Of the best steps of each kind, taken turn by turn: what disturbs only adds to them."""
    torch.manual_seed(0)
    sizes = (784, 512, 512, 512)
    hidden = [(nn.Linear(n, m), nn.ReLU()) for n, m in pairwise(sizes)]
    model = converted(nn.Sequential(*sum(hidden, ()), nn.Linear(512, 10)), kinds)
    x, target = torch.randn(128, 784), torch.randint(0, 10, (128,))
    every = signature(gpuact.torch.monitor).parameters["every"].default
    for _ in range(4):
        times = step_times(model, x, target)
        look, between = (times[k] / times["alone"] - 1 for k in ("looked at", "between"))
        overhead = (look + (every - 1) * between) / every
        if overhead < OVERHEAD:
            break
    columns = ("784-512-512-512-10, batch 128", "ms a step", "every=1", f"every={every}", "between")
    shares = [f"{100 * share:+.1f} %" for share in (look, overhead, between)]
    row = (f"{kinds}'s ReLU", f"{1e3 * times['alone']:.2f}", *shares)
    record_property("table", ("overhead of a monitor", columns, row))
    assert overhead < OVERHEAD, times


@pytest.mark.timed
def test_cost_between_looks_and_without_a_monitor(record_property: Any) -> None:
    """Two hooks of the model; and an attribute that each of gpuact's modules asks for."""

    class Same(Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = ours.ReLU()

        def forward(self, x: Any) -> Any:
            return x

    x, watched, alone = torch.ones(1), Same(), Same()
    with gpuact.torch.monitor(watched, every=10**9):
        watched(x)
        held(
            record_property,
            "a step under a monitor, between looks",
            HOOKS,
            lambda: watched(x),
            lambda: alone(x),
            MODULE,
        )
    act = alone.act
    held(
        record_property,
        "a module of gpuact's that nobody watches",
        ATTRIBUTE,
        lambda: act._watch is not None,
        lambda: None is not None,
        NOTHING,
    )


# µs on the core of tests/test_host_cost.py
HOOKS = 4.0
MODULE = 0.5  # the call of a module that returns its argument
ATTRIBUTE = 0.05
NOTHING = 0.04
