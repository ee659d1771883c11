"""A monitor of a model's activations in training; `gpuact.torch.monitor` makes one.

Between looks one hook on the model counts steps (`Monitor._before`). It sets up a look (`_set_up`),
which another takes down (`_after`): for that one step gpuact's own modules count their outputs in
the kernel that computes them (`_compute`), torch's in a hook that reads them (`_look_at`), and each
output has a hook that takes the norm of its gradient (`_Gathered.gradient`). `_Gathered` keeps what
was counted on the device, until a report reads it (`_Gathered.read`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from types import FrameType
from typing import Any, NamedTuple, TypeGuard, TypeVar, cast
from weakref import ref

import torch
from torch import Tensor

from .. import activations, arguments, calls
from ..catalogue import FUNCTIONS
from ..dispatch import resolve, within
from ..stats import ActivationStats, Bounds, count
from . import nn
from .health import Layer, Report

__all__ = ["Monitor"]

Module = torch.nn.Module

# -- what is watched ------------------------------------------------------------------------------


class Kind(NamedTuple):
    """activation: what its statistics are called. bounds: where |f′| < 0.01, told from y, of a
    module's own parameters."""

    activation: str
    bounds: Callable[[Any], Bounds]


def _ours(name: str) -> Kind:
    return Kind(name, lambda m: FUNCTIONS[name].saturated)


# GELU, SiLU, Mish and Hardswish are not monotone: y does not tell where the slope is small.
KINDS: Mapping[type[Module], Kind] = {
    torch.nn.Sigmoid: _ours("sigmoid"),
    torch.nn.Tanh: _ours("tanh"),
    torch.nn.ReLU: _ours("relu"),
    torch.nn.LeakyReLU: _ours("leaky_relu"),
    torch.nn.PReLU: _ours("prelu"),
    torch.nn.ReLU6: Kind("relu6", lambda m: (0.0, 6.0)),
    torch.nn.Hardtanh: Kind("hardtanh", lambda m: (m.min_val, m.max_val)),
    torch.nn.Hardsigmoid: Kind("hardsigmoid", lambda m: (0.0, 1.0)),
    torch.nn.Softsign: Kind("softsign", lambda m: (-0.9, 0.9)),  # f′ = (1 − |y|)²
    torch.nn.ELU: Kind("elu", lambda m: (0.01 - m.alpha, None)),  # f′ = y + α left of 0
    torch.nn.CELU: Kind("celu", lambda m: (-0.99 * m.alpha, None)),  # f′ = 1 + y / α
    torch.nn.SELU: Kind("selu", lambda m: (0.01 - 1.0507009873554805 * 1.6732632423543772, None)),
    torch.nn.Softplus: Kind("softplus", lambda m: (-math.log(0.99) / m.beta, None)),  # 1 − e^−βy
    torch.nn.LogSigmoid: Kind("logsigmoid", lambda m: (None, math.log(0.99))),  # f′ = 1 − e^y
    torch.nn.RReLU: Kind("rrelu", lambda m: (None, None)),
    torch.nn.GELU: Kind("gelu", lambda m: (None, None)),
    torch.nn.SiLU: Kind("silu", lambda m: (None, None)),
    torch.nn.Mish: Kind("mish", lambda m: (None, None)),
    torch.nn.Hardswish: Kind("hardswish", lambda m: (None, None)),
}

# Whose forward asks `_watch`, unless it is in place: then the input is to be overwritten, which
# counting leaves as it is.
OWN = (nn.Sigmoid, nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.PReLU)

# What ran last before an activation tells where its units lie: dim 1, or the last one.
CHANNELS_FIRST: tuple[type[Module], ...] = (
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.ConvTranspose1d,
    torch.nn.ConvTranspose2d,
    torch.nn.ConvTranspose3d,
    torch.nn.BatchNorm1d,
    torch.nn.BatchNorm2d,
    torch.nn.BatchNorm3d,
    torch.nn.SyncBatchNorm,
    torch.nn.GroupNorm,
    torch.nn.InstanceNorm1d,
    torch.nn.InstanceNorm2d,
    torch.nn.InstanceNorm3d,
)
CHANNELS_LAST: tuple[type[Module], ...] = (
    torch.nn.Linear,
    torch.nn.Bilinear,
    torch.nn.LayerNorm,
    torch.nn.RMSNorm,
    torch.nn.Embedding,
)

SIZES = 8  # numbers of units that one module's outputs may have and be told apart


def _kind(module: Module) -> tuple[str, Kind] | None:
    for base in type(module).__mro__:
        if base in KINDS:
            return base.__name__, KINDS[base]
    return None


def _by_kernel(module: Module) -> TypeGuard[nn.Watchable]:
    """Whether its forward is one that asks `_watch`, and nobody has hung in there yet."""
    if not isinstance(module, OWN) or getattr(module, "inplace", False):
        return False
    own = next(ours for ours in OWN if isinstance(module, ours))
    mine = type(module).forward is own.forward and "forward" not in vars(module)
    return mine and module._watch is None


def _in_memory(*tensors: Tensor) -> bool:
    """What there is to look at: no trace, no transformation's tensor, no subclass, no integers."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if torch.is_inference_mode_enabled():  # what is made in it cannot be added to outside
        return False
    for x in tensors:
        if not x.is_floating_point() or x.layout is not torch.strided:
            return False
        if x.device.type not in ("cpu", "cuda"):
            return False
        # a graph that is captured would count at every replay, and its gradients never
        if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False
    return not calls.watched(*tensors)


def _compiled(model: Module) -> set[Module]:
    """What lies in its parts that torch.compile has compiled."""
    found: set[Module] = set()
    for module in model.modules():
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            found.update(module.modules())
    return found


# -- what was seen of it --------------------------------------------------------------------------


class _Gathered:
    """One module's outputs of one number of units on one device, on that device."""

    def __init__(self, device: torch.device) -> None:
        self.stats: ActivationStats | None = None
        tallies = torch.zeros(3, dtype=torch.float64, device=device)
        # outputs before the first that is not finite; of gradients, where their norm is finite, how
        # many there were and the sum of their squares
        self.tallies, (self.finite, self.gradients, self.squares) = tallies, tallies.split(1)
        self.place = 0  # in order of execution, at the latest look
        self.y: Callable[[], Tensor | None] = lambda: None  # the latest, while it lives
        self.output = False
        self.forget()

    def forget(self) -> None:
        if self.stats is not None:
            self.stats.reset()
        self.tallies.zero_()
        # of outputs and of gradients: how many, at how many looks, and the latest look
        self.calls = self.looks = self.backs = self.back_looks = 0
        self.look = self.back_look = -1

    def saw(self, look: int, place: int, y: Tensor) -> bool:
        """That these outputs were counted; whether they are the first at this look."""
        assert self.stats is not None
        first = look != self.look
        if first:
            self.look, self.place, self.output = look, place, False
            self.looks += 1
        self.calls += 1
        self.y = ref(y)
        self.finite.add_(self.stats.moments[1].isfinite())
        if y.requires_grad:
            y.register_hook(partial(self.gradient, look))
        return first

    def gradient(self, look: int, dy: Tensor) -> None:
        """A hook of outputs.

        The norm is over all outputs: He's initialisation keeps it from layer to layer whatever
        their widths, where a mean square would change with each; a batch scales all layers alike.
        """
        if not _in_memory(dy):
            return
        with torch.no_grad():
            # float64: the squares of a gradient that vanishes are below float32's range
            square = torch.linalg.vector_norm(dy, dtype=torch.float64).square_()
            finite = square < math.inf
            # a loss scaler's first steps overflow, and are skipped: so they are here
            self.squares.add_(square.where(finite, 0.0))
            self.gradients.add_(finite)
        self.backs += 1
        self.back_looks += look != self.back_look
        self.back_look = look

    def read(self, layer: _Watched) -> Layer:
        """Waits for the device."""
        stats, gradient, module = self.stats, math.nan, layer.module
        assert stats is not None
        finite, gradients, squares = self.tallies.tolist()
        if self.backs:
            gradient = math.inf
        if gradients:
            gradient = math.sqrt(squares / gradients * self.backs / self.back_looks)
        return Layer(
            name=layer.name,
            kind=layer.kind,
            units=stats.units,
            looks=self.looks,
            count=stats.count,
            mean=stats.mean,
            std=stats.std,
            zeros=stats.zeros,
            saturated=stats.saturated,
            dead=int(stats.dead.sum()),
            gradient=gradient,
            # a look at several outputs is finite if all are
            broken=self.looks - int(finite * self.looks // self.calls),
            broken_gradients=self.back_looks
            - int(gradients * self.back_looks // max(self.backs, 1)),
            output=self.output,
            clipped=isinstance(module, torch.nn.Hardtanh)
            and not module.min_val < 0 < module.max_val,
        )


class Before(NamedTuple):
    """What ran last before an activation, and gave so many dimensions."""

    channels_first: bool
    ndim: int


class _Watched:
    """An activation module, and what is known of it."""

    def __init__(self, name: str, module: Module, kind: str, how: Kind) -> None:
        self.name, self.module, self.kind, self.how = name or "(model)", module, kind, how
        self.note = ""
        self.ran = False
        self.before: Before | None = None
        self.followed = False  # whether a module that computes was seen to run behind it
        self.gathered: dict[tuple[Any, ...], _Gathered] = {}

    def axis(self, asked: int | None, y: Tensor) -> int:
        weight = getattr(self.module, "weight", None)
        if isinstance(weight, Tensor) and weight.numel() > 1 and y.ndim > 1:
            return 1  # PReLU's
        if y.ndim == 0:
            return 0  # of the one unit that it is
        if asked is not None:
            return arguments.single_axis("channel_axis", asked, y.ndim)
        first = y.ndim > 3
        # of another number of dimensions it was flattened, or stands aside as a gate's does
        if self.before is not None and self.before.ndim == y.ndim:
            first = self.before.channels_first
        return 1 if first and y.ndim > 1 else y.ndim - 1

    def of(self, y: Tensor, axis: int, backend: str) -> _Gathered | None:
        """Where to gather these outputs; None if they are of too many sizes."""
        units = y.shape[axis] if y.ndim else 1
        key = units, y.device, backend
        found = self.gathered.get(key)
        if found is None:
            if len(self.gathered) == SIZES:
                self.note = f"not seen with {units} units: it had {SIZES} other numbers of them"
                return None
            found = self.gathered[key] = _Gathered(y.device)
        return found

    def forget(self) -> None:
        """Begin anew; what was not seen of late is dropped."""
        self.gathered = {key: each for key, each in self.gathered.items() if each.looks}
        for each in self.gathered.values():
            each.forget()
        self.note = ""

    def unseen(self, compiled: bool, gone: bool) -> str:
        """Why nothing was seen of it, or no more."""
        if compiled:
            return f"not seen{' since' * self.ran}: torch.compile has compiled it"
        if gone:
            return f"not seen{' since' * self.ran}: the model has it no more"
        if self.note or any(each.looks for each in self.gathered.values()):
            return self.note
        return "not seen: it did not run in a step that was looked at"


def _with_ratios(layers: Sequence[Layer]) -> Iterator[Layer]:
    """Of gradients to those of the next layer that has one."""
    for k, layer in enumerate(layers):
        above = next((a.gradient for a in layers[k + 1 :] if not math.isnan(a.gradient)), math.nan)
        yield replace(layer, ratio=layer.gradient / above) if above else layer


# -- the monitor ----------------------------------------------------------------------------------

M = TypeVar("M", bound="Monitor")


class _Hook:
    """A hook; that of a copy, or of what was pickled, does nothing."""

    def __init__(self, act: Callable[..., Any] | None = None) -> None:
        self.act = act

    def __call__(self, *given: Any) -> Any:
        return None if self.act is None else self.act(*given)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, ()


class _Watch(_Hook):
    """A `_watch`; a copy has None."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def _tensors(output: Any) -> Iterator[Tensor]:
    """What a model returns, however it is wrapped: in containers, mappings and dataclasses."""
    todo, seen = [output], {}
    while todo:
        each = todo.pop()
        if id(each) in seen:  # a container may hold itself
            continue
        seen[id(each)] = each
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, Mapping):
            todo += each.values()
        elif isinstance(each, tuple | list):
            todo += each
        elif is_dataclass(each) and not isinstance(each, type):
            todo += [getattr(each, field.name, None) for field in fields(each)]


CALL = Module.__call__.__code__


def _from_inside(model: Module) -> bool:
    """Whether the model's call now is one that its own forward makes."""
    calls, frame = 0, cast(FrameType | None, sys._getframe())
    while frame is not None:
        calls += frame.f_code is CALL and frame.f_locals.get("self") is model
        frame = frame.f_back
    return calls > 1


class Monitor:
    """Watches the activation modules of a model in training; `gpuact.torch.monitor` makes one.

    model: a torch.nn.Module. every: an int, 1 or more: steps 0, every, 2·every, … are looked at. A
    step is a forward pass of the model in training mode with gradients enabled. channel_axis: the
    axis of each output's units; by default dim 1 behind a convolution or a norm over channels, the
    last one behind a linear layer or LayerNorm, else dim 1 from four dimensions on.

    Watched are gpuact.torch.nn's and torch.nn's activations that work element by element, those of
    a subclass, too: Sigmoid, Tanh, ReLU, LeakyReLU, PReLU, ReLU6, Hardtanh, Hardsigmoid, Softsign,
    ELU, CELU, SELU, Softplus, LogSigmoid, RReLU, GELU, SiLU, Mish and Hardswish. Not functions that
    a forward calls by name, and not Softmax. gpuact's own, unless in place, are counted by the
    kernel that computes them; the others' outputs are read once more, in the steps looked at.
    A module that is called several times in a step is one layer, or one for each number of units.
    What torch.compile has compiled, torch.func transforms, or a CUDA graph captures, is not seen,
    and the report says so; a reentrant checkpoint hides its gradients.

    Between looks a step costs two small hooks of the model; nothing waits for the device before
    `report`. A look costs by the layer, on a CPU core 0.3 to 0.6 ms each: where steps are short,
    take a larger `every`. Where the model runs more than once a step, as a GAN's discriminator
    does, or with gradients accumulated, choose an `every` without a common factor with that number,
    or always the same of these passes are looked at. Gradients are those of what backward is called
    on: under a loss scaler of the scaled loss.

    Batches may change in size. Two monitors of one model do not disturb each other. Forwards may
    run in several threads, but their looks mix. Of a model that calls itself, the outermost call is
    the step. A copy of the model is not watched; one that torch.save wrote whole needs gpuact to
    load, so close first. Sums are taken in a fixed order: the same bits every time.

    steps: how many there were. `close`, or the end of a with statement, takes everything off the
    model; reports go on.

    Raised: TypeError (model is no Module, every no int), ValueError (every below 1; a model that
    has no activation module to watch), numpy.exceptions.AxisError, in a step (channel_axis).

    >>> import torch, gpuact.torch
    >>> layers = torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
    >>> torch.nn.init.constant_(layers[0].bias, -100.0).shape
    torch.Size([8])
    >>> model = torch.nn.Sequential(*layers)
    >>> with gpuact.torch.monitor(model, every=5) as watch:
    ...     for _ in range(50):
    ...         model(torch.randn(64, 4)).sum().backward()
    >>> print(watch.report().sentence)  # doctest: +NORMALIZE_WHITESPACE
    layer 1: 100 % of ReLU units have been 0 for 50 steps (8 of 8, at all 10 looks): dead; lower
    the rate, start from biases of 0, or use leaky_relu
    """

    def __init__(self, model: Module, every: int = 10, *, channel_axis: int | None = None) -> None:
        given: Any = model
        if not isinstance(given, Module):
            raise TypeError(f"model: {type(given).__name__} came, allowed is a torch.nn.Module")
        self.every = arguments.whole("every", every)
        if self.every < 1:
            raise ValueError(f"every: {every} came, allowed is 1 or more")
        if channel_axis is not None:
            channel_axis = arguments.whole("channel_axis", channel_axis)
        self.channel_axis = channel_axis
        self._model = model
        named = [(name, module, _kind(module)) for name, module in model.named_modules()]
        self._layers = [_Watched(name, module, *kind) for name, module, kind in named if kind]
        compiled = _compiled(model)
        if all(layer.module in compiled for layer in self._layers):
            what = "with none but compiled activations" if self._layers else "without activations"
            raise ValueError(
                f"model: {type(model).__name__} {what} came, allowed is one with modules to watch "
                "that run uncompiled (functions that a forward calls by name are none)"
            )
        self._makers = [m for m in model.modules() if isinstance(m, CHANNELS_FIRST + CHANNELS_LAST)]
        self.steps = 0  # all that were seen
        self._first = self._looks = 0  # of the period that the next report is of
        self._undo: list[Callable[[], None]] = []  # what takes the present look down
        self._depth = 0  # calls of the model, within each other
        # of the present look
        self._places = 0
        self._before_now: Before | None = None
        self._latest: tuple[_Watched, _Gathered] | None = None
        self._hooks = [
            model.register_forward_pre_hook(_Hook(self._before)),
            # an exception in forward takes the look down, too
            model.register_forward_hook(_Hook(self._after), always_call=True),
        ]

    # -- steps and looks

    def _before(self, model: Module, args: Any) -> None:
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return
        # what is under way may be an outer call; else it was interrupted
        if self._depth and _from_inside(model):
            self._depth += 1
            return
        self._depth = 1
        self._take_down()
        if not (model.training and torch.is_grad_enabled()):
            return
        self.steps += 1
        if (self.steps - 1) % self.every == 0:
            self._set_up()

    def _after(self, model: Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self._depth = max(self._depth - 1, 0)
        if self._depth:
            return
        if self._undo:
            self._returned(model, args, output)
            latest = self._latest
            if latest is not None and not latest[0].followed:
                latest[1].output = True
        self._take_down()

    def _set_up(self) -> None:
        self._looks += 1
        self._places = 0
        compiled = _compiled(self._model)  # hooks would have it compiled again
        for layer in self._layers:
            module = layer.module
            if module in compiled:
                continue
            if _by_kernel(module):
                module._watch = _Watch(partial(self._compute, layer))
                self._undo.append(partial(vars(module).pop, "_watch", None))
            else:
                self._hang(module, partial(self._look_at, layer))
        if not all(layer.ran or layer.module in compiled for layer in self._layers):
            for module in self._makers:
                if module not in compiled:
                    self._hang(module, partial(self._note, isinstance(module, CHANNELS_FIRST)))
        if isinstance(self._model, torch.nn.parallel.DistributedDataParallel):
            self._hang(self._model.module, self._returned)  # of which it may return copies

    def _hang(self, module: Module, hook: Callable[..., None]) -> None:
        self._undo.append(module.register_forward_hook(_Hook(hook)).remove)

    def _take_down(self) -> None:
        self._latest = self._before_now = None
        while self._undo:
            try:
                undo = self._undo.pop()
            except IndexError:  # another thread was quicker
                return
            undo()

    def _note(self, channels_first: bool, module: Module, args: Any, output: Any) -> None:
        """A hook of what runs between activations."""
        known = isinstance(output, Tensor)
        self._before_now = Before(channels_first, output.ndim) if known else None
        if (latest := self._latest) is not None:
            latest[0].followed = True

    def _returned(self, model: Module, args: Any, output: Any) -> None:
        """Which layers' outputs these are."""
        given = [y for each in _tensors(output) for y in (each, each._base) if y is not None]
        for layer in self._layers:
            for gathered in [*layer.gathered.values()]:
                if gathered.look == self.steps:
                    gathered.output |= any(each is gathered.y() for each in given)

    # -- outputs

    def _compute(self, layer: _Watched, module: Any, x: Tensor) -> Tensor | None:
        """The output, counted by its own kernel; None where that cannot be.

        module: the layer's, or DataParallel's replica of it.
        """
        params = [module.weight] if layer.kind == "PReLU" else []
        if not self._can(layer, x, *params):
            return None
        axis, gathered = self._gather(layer, x, resolve(x=x).backend)
        if gathered is None:
            return None
        y, gathered.stats = activations.activation_with_stats(
            x,
            layer.how.activation,
            negative_slope=getattr(module, "negative_slope", 0.01),
            weight=params[0] if params else None,
            channel_axis=axis,
            into=gathered.stats,
        )
        self._saw(layer, gathered, y)
        return y

    def _look_at(self, layer: _Watched, module: Module, args: Any, y: Any) -> None:
        """A hook: count what a module gave."""
        if not (isinstance(y, Tensor) and self._can(layer, y)):
            return
        with within():  # wherever using() sends gpuact: this is torch's, and counted at home
            call = resolve(y=y)
        axis, gathered = self._gather(layer, y, call.backend)
        if gathered is None:
            return
        units = axis if y.ndim else None
        if gathered.stats is None:
            bounds, size = layer.how.bounds(module), y.shape[axis] if y.ndim else 1
            gathered.stats = ActivationStats(layer.how.activation, size, call, bounds)
        count(gathered.stats, call, y, units)
        self._saw(layer, gathered, y)

    def _can(self, layer: _Watched, *tensors: Tensor) -> bool:
        can = _in_memory(*tensors)
        if not can and not torch.compiler.is_compiling():
            layer.note = (
                "not seen where tensors were no plain floating ones: of torch.func, a subclass, "
                "a CUDA graph, …"
            )
        return can

    def _gather(self, layer: _Watched, y: Tensor, backend: str) -> tuple[int, _Gathered | None]:
        """The axis of y's units, and where to gather them."""
        if not layer.ran:
            layer.ran, layer.before = True, self._before_now
        axis = layer.axis(self.channel_axis, y)
        return axis, layer.of(y, axis, backend)

    def _saw(self, layer: _Watched, gathered: _Gathered, y: Tensor) -> None:
        self._places += gathered.saw(self.steps, self._places, y)
        self._latest = layer, gathered

    # -- reports

    def report(self, reset: bool = True) -> Report:
        """What the steps since the last report were like; waits for the device.

        reset: begin anew; else the next report is of these steps, too. Ask between two steps: the
        gradients of one whose backward is to come count for the next report.
        """
        reset = arguments.flag("reset", reset)
        seen: list[tuple[int, Layer]] = []
        unseen: list[Layer] = []
        compiled, present = _compiled(self._model), {*self._model.modules()}
        for layer in self._layers:
            note = layer.unseen(layer.module in compiled, layer.module not in present)
            found = [each for each in layer.gathered.values() if each.looks]
            for each in found:
                figures = each.read(layer)
                if len(found) > 1:
                    figures = replace(figures, name=f"{layer.name} ({figures.units} units)")
                if each is found[-1]:  # is said once
                    figures = replace(figures, note=note)
                seen.append((each.place, figures))
            if not found:
                unseen.append(Layer(layer.name, layer.kind, note=note))
        ordered = [figures for _, figures in sorted(seen, key=lambda each: each[0])]
        layers = (*_with_ratios(ordered), *unseen)
        report = Report(self._first, self.steps - 1, self._looks, layers)
        if reset:
            self._first, self._looks = self.steps, 0
            for layer in self._layers:
                layer.forget()
        return report

    def close(self) -> None:
        """Take everything off the model."""
        self._take_down()
        for hook in self._hooks:
            hook.remove()

    def __enter__(self: M) -> M:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
