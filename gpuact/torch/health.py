"""What a monitor reports of a network in training: figures by layer, and advice upon them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["Advice", "Layer", "Report"]


@dataclass(frozen=True)
class Layer:
    """One activation's outputs in the steps that were looked at; what is not known is NaN.

    name: the module's, as in model.named_modules(); where it gave outputs of several numbers of
    units, with that number. kind: its class in torch.nn. looks: the steps in which it was seen.
    count, mean, std, zeros, saturated: as in `gpuact.ActivationStats`. dead: the units that were
    saturated in every element seen; of ReLU, those that gave nothing but 0. Of LeakyReLU, PReLU
    and RReLU nothing counts as either, nor of GELU, SiLU, Mish and Hardswish, whose outputs do not
    tell the slope: those four are called dead where almost all outputs are exactly 0, which of SiLU
    and Mish they are only left of about -100 (float32). gradient: ‖dL/dy‖, the norm of the loss's
    gradient by all its outputs of a step, of the scaled loss under a loss scaler; of several steps
    the root of the mean square, without those that are not finite (inf if none is). ratio: gradient
    over that of the layer above, the next one toward the loss. broken: the looks from the first on
    at which outputs held inf or NaN. broken_gradients: the looks at which the gradient was not
    finite. output: whether the model returns what it gives, or no activation, linear layer,
    convolution or norm runs behind it. clipped: whether it is a ReLU with an upper bound, as
    Hardtanh(0, 20) is. note: why it was not seen.
    """

    name: str
    kind: str
    units: int = 0
    looks: int = 0
    count: int = 0
    mean: float = math.nan
    std: float = math.nan
    zeros: float = math.nan
    saturated: float = math.nan
    dead: int = 0
    gradient: float = math.nan
    ratio: float = math.nan
    broken: int = 0
    broken_gradients: int = 0
    output: bool = False
    clipped: bool = False
    note: str = ""

    @property
    def dead_share(self) -> float:
        return self.dead / self.units if self.units else math.nan

    @property
    def squashing(self) -> bool:
        return self.kind in SQUASHING and not self.clipped


@dataclass(frozen=True)
class Advice:
    """A fault of a layer, or of the layers from it on, in one sentence; evidence: its figures."""

    layer: str
    fault: str
    sentence: str
    evidence: Mapping[str, float]


# -- what is a fault ------------------------------------------------------------------------------

# A unit that is 0 for a rare input is no dead one: so many looks and elements must agree. A unit
# that is on for one input in a hundred is taken for dead with a probability below 1 %.
DEAD_LOOKS = 10
DEAD_ELEMENTS = 500  # of each unit
# Where all units agree, they bear each other out; a few may all start on the wrong side.
WHOLE_UNITS = 8
WHOLE_LOOKS = 3
WHOLE_ELEMENTS = 100  # of each unit
# ReLU layers that learn handwritten digits well lose up to a sixth of their units for good, and at
# the start two fifths are off for all digits, four layers into PyTorch's own initialisation.
DEAD = 0.5
GRADIENT_LOOKS = 5  # a loss scaler that begins high overflows for a few steps, and only then
# A sigmoid or tanh of which most outputs pass on less than 1 % of their gradient hardly learns. In
# networks that learn well a tenth of them are so far out.
SATURATED = 0.5
SATURATED_LOOKS = 3  # a single step may be an odd batch
# PyTorch's own initialisation lets the gradient fall by √6 a ReLU layer: by nearly 100 over six
# layers, which learn well. Beyond 1000 those near the input stand still while those above move.
CHAIN = 1e3
CHAIN_LAYERS = 4  # fewer are no stack: an odd layer among them says nothing of the rest
# So many of the steps from layer to layer must go that way: in branches and gates, which also have
# small gradients, up and down alternate.
CHAIN_AGREES = 0.75

# Bounded on both sides: outputs near the bounds are saturated. Of the others, all bounded on one
# side or open, half the outputs may lie on the flat side of a good layer; whole units may not.
SQUASHING = ("Sigmoid", "Tanh", "Hardsigmoid", "Hardtanh", "Softsign")
# Not monotone: y does not tell where the slope is small, so units never count as dead. But they are
# exactly 0 only far out.
UNTOLD = ("GELU", "SiLU", "Mish", "Hardswish")
DEAD_ZEROS = 0.99


def _not_finite(layers: Sequence[Layer], steps: int) -> Iterator[Advice]:
    """The layer where it began: the earliest, and of these of outputs the first, of gradients the
    last."""
    broken = max(layers, key=lambda layer: layer.broken, default=None)
    if broken is not None and broken.broken:
        yield Advice(
            broken.name,
            "not finite",
            f"layer {broken.name}: outputs first held inf or NaN at look "
            f"{broken.looks - broken.broken + 1} of {broken.looks}, in no other layer earlier: "
            "exploded; lower the rate, clip gradients, and look at what feeds it",
            {"broken": broken.broken, "looks": broken.looks, "steps": steps},
        )
        return
    broken = max(reversed(layers), key=lambda layer: layer.broken_gradients, default=None)
    if broken is not None and broken.broken_gradients >= GRADIENT_LOOKS:
        yield Advice(
            broken.name,
            "not finite",
            f"layer {broken.name}: the gradient was inf or NaN at {broken.broken_gradients} of "
            f"{broken.looks} looks, while all outputs are finite: lower the rate or the scale of "
            "the loss",
            {"broken": broken.broken_gradients, "looks": broken.looks, "steps": steps},
        )


def _chain(values: Sequence[tuple[Layer, float]]) -> tuple[float, float]:
    """How much larger the last value is than the first, and the share of steps that go that way."""
    logs = [math.log(value) for _, value in values]
    rise = logs[-1] - logs[0]
    agree = sum((b - a) * rise > 0 for a, b in pairwise(logs))
    return rise, agree / (len(logs) - 1)


def _stack(
    layers: Sequence[Layer], figure: str, rises: bool
) -> tuple[Layer, Layer, dict[str, float]] | None:
    """The first and the last layer of a stack along which a figure rises, or falls, too much."""
    values = [(layer, float(getattr(layer, figure))) for layer in layers]
    # 0 has no logarithm, and is told of elsewhere: outputs in `_dead`, gradients in `_cut_off`
    values = [(layer, value) for layer, value in values if 0 < value < math.inf]
    if len(values) < CHAIN_LAYERS:
        return None
    rise, agree = _chain(values)
    if (rise > 0) != rises or abs(rise) < math.log(CHAIN) or agree < CHAIN_AGREES:
        return None
    (first, low), (last, high) = values[0], values[-1]
    factor = math.exp(abs(rise) / (len(values) - 1))
    return first, last, {"factor per layer": factor, "first": low, "last": high}


def _exploding(layers: Sequence[Layer], steps: int) -> Iterator[Advice]:
    """Toward the loss the outputs, toward the input the gradient."""
    do = "use He initialisation, normalise between layers, or clip gradients"
    if found := _stack(layers, "std", rises=True):
        first, last, evidence = found
        yield Advice(
            last.name,
            "exploding",
            f"layers {first.name} to {last.name}: the outputs' standard deviation grows by "
            f"a factor of {evidence['factor per layer']:.2g} a layer, from "
            f"{evidence['first']:.2g} to {evidence['last']:.2g}: exploding; {do}",
            evidence,
        )
    if found := _stack(layers, "gradient", rises=False):
        first, last, evidence = found
        yield Advice(
            first.name,
            "exploding",
            f"layers {last.name} to {first.name}: the gradient grows by "
            f"a factor of {evidence['factor per layer']:.2g} a layer on its way to the input, from "
            f"{evidence['last']:.2g} to {evidence['first']:.2g}: exploding; {do}",
            evidence,
        )


def _needed(layer: Layer) -> tuple[int, int]:
    """The looks, and the outputs of each unit, by which units that gave nothing are dead ones."""
    agree = layer.kind in UNTOLD or layer.dead == layer.units
    if agree and layer.units >= WHOLE_UNITS:
        return WHOLE_LOOKS, WHOLE_ELEMENTS
    return DEAD_LOOKS, DEAD_ELEMENTS


def _enough(layer: Layer) -> bool:
    looks, outputs = _needed(layer)
    return layer.looks >= looks and layer.count >= outputs * layer.units


def _dead(layers: Sequence[Layer], steps: int) -> Iterator[Advice]:
    do = "dead; lower the rate, start from biases of 0, or use leaky_relu"
    for layer in sorted(layers, key=lambda layer: -layer.dead):
        figures = {"looks": layer.looks, "steps": steps}
        if layer.kind in UNTOLD:
            if layer.zeros >= DEAD_ZEROS and _enough(layer):
                yield Advice(
                    layer.name,
                    "dead",
                    f"layer {layer.name}: {_percent(layer.zeros)} of {layer.kind} outputs have "
                    f"been 0 for {steps} steps (in {layer.looks} looks): {do}",
                    {"zeros": layer.zeros, "units": layer.units, **figures},
                )
            continue
        if layer.squashing or not _enough(layer) or layer.dead_share < DEAD:
            continue
        flat = "0" if layer.kind == "ReLU" else "saturated"
        yield Advice(
            layer.name,
            "dead",
            f"layer {layer.name}: {_percent(layer.dead_share)} of {layer.kind} units have been "
            f"{flat} for {steps} steps ({layer.dead} of {layer.units}, at all {layer.looks} "
            f"looks): {do}",
            {"dead": layer.dead, "units": layer.units, **figures},
        )


def _saturated(layers: Sequence[Layer], steps: int) -> Iterator[Advice]:
    for layer in sorted(layers, key=lambda layer: -layer.saturated):
        # a classifier that is sure saturates where it answers, and is right to
        wanted = layer.squashing and not layer.output and layer.looks >= SATURATED_LOOKS
        if not wanted or layer.saturated < SATURATED:
            continue
        yield Advice(
            layer.name,
            "saturated",
            f"layer {layer.name}: {_percent(layer.saturated)} of {layer.kind} outputs, over {steps}"
            f" steps, lie where the slope is below 0.01 ({layer.dead} of {layer.units} units "
            "always): saturated; start from smaller weights, normalise its input, or use relu",
            {
                "saturated": layer.saturated,
                "dead": layer.dead,
                "units": layer.units,
                "looks": layer.looks,
                "steps": steps,
            },
        )


def _vanishing(layers: Sequence[Layer], steps: int) -> Iterator[Advice]:
    if found := _stack(layers, "gradient", rises=True):
        first, last, evidence = found
        squashing = [layer.kind for layer in layers if layer.squashing]
        use = "use He initialisation"
        if len(squashing) * 2 > len(layers):
            use = f"use relu in place of {squashing[0].lower()}"
        yield Advice(
            first.name,
            "vanishing",
            f"layers {last.name} to {first.name}: the gradient falls by "
            f"a factor of {evidence['factor per layer']:.2g} a layer on its way to the input, from "
            f"{evidence['last']:.2g} to {evidence['first']:.2g}: vanishing; {use}, residual "
            "connections, or normalisation between layers",
            evidence,
        )


def _cut_off(layers: Sequence[Layer], steps: int) -> Iterator[Advice]:
    """Exactly 0: cut off, or below what half types hold."""
    # at the first looks an initialisation of 0, as residual branches have, is no fault
    none = [layer for layer in layers if layer.gradient == 0 and layer.looks >= GRADIENT_LOOKS]
    if none:
        last = none[-1]
        others = f" and {len(none) - 1} more" if len(none) > 1 else ""
        yield Advice(
            last.name,
            "no gradient",
            f"layer {last.name}{others}: the gradient was 0 at all {last.looks} looks, so nothing "
            "is learnt there: look for a dead layer behind it, a factor of 0, a flat loss, or "
            "float16 without a loss scaler",
            {"layers": len(none), "looks": last.looks, "steps": steps},
        )


# Causes before what they cause: what explodes dies or saturates, and what is dead or saturated
# lets gradients vanish.
CHECKS: tuple[Callable[[Sequence[Layer], int], Iterator[Advice]], ...] = (
    _not_finite,
    _exploding,
    _dead,
    _saturated,
    _cut_off,
    _vanishing,
)


def advise(layers: Sequence[Layer], steps: int) -> tuple[Advice, ...]:
    """What is wrong with these layers, in order of execution, after so many steps."""
    return tuple([advice for check in CHECKS for advice in check(layers, steps)])


def doubt(layers: Sequence[Layer]) -> Iterator[str]:
    """What cannot be told of these layers, though it looks like a fault."""
    for layer in layers:
        if layer.squashing or layer.dead_share < DEAD or _enough(layer):
            continue
        looks, outputs = _needed(layer)
        yield (
            f"too little seen to tell whether units of layer {layer.name} are dead: {layer.dead} of"
            f" {layer.units} seem so after {layer.looks} of {looks} looks and "
            f"{layer.count // layer.units} of {outputs} outputs of each"
        )
    if layers and all(math.isnan(layer.gradient) for layer in layers):
        yield "no backward was seen to reach a layer"


# -- the report -----------------------------------------------------------------------------------

COLUMNS = (
    *("layer", "kind", "units", "mean", "std", "zeros", "saturated", "dead"),
    *("gradient", "ratio"),
)


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.0f} %"


def _figure(x: float) -> str:
    return f"{x:.3g}"


def _cells(layer: Layer) -> tuple[str, ...]:
    if not layer.looks:
        return layer.name, layer.kind, *["–"] * (len(COLUMNS) - 2)
    return (
        layer.name,
        layer.kind,
        str(layer.units),
        _figure(layer.mean),
        _figure(layer.std),
        _percent(layer.zeros),
        _percent(layer.saturated),
        str(layer.dead),
        *["–" if math.isnan(x) else _figure(x) for x in (layer.gradient, layer.ratio)],
    )


def _strict(x: Any) -> Any:
    """As JSON has it: no NaN, no infinity."""
    if isinstance(x, dict):
        return {key: _strict(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_strict(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _need(package: str, what: str) -> None:
    """Load a package of the extra, or say which extra brings it."""
    try:
        import_module(package)
    except ImportError as error:
        raise ImportError(
            f'{what} needs {package} ({error}): pip install "gpuact[cli]" brings it'
        ) from error


@dataclass(frozen=True)
class Report:
    """Steps `first` to `last` of a training, of which `looks` were looked at.

    layers: in order of execution, those that were not seen last. advice: the most serious first,
    none if nothing is wrong that can be told. doubts: what looks like a fault, and too little was
    seen to tell. str() is a plain table; rich.print() and `print` draw one with rich. Step 0 is the
    first one that the monitor saw.

    >>> from gpuact.torch.health import Report
    >>> report = Report(first=0, last=499, looks=50, layers=())
    >>> report.steps, report.advice
    (500, ())
    """

    first: int
    last: int
    looks: int
    layers: tuple[Layer, ...]

    @property
    def steps(self) -> int:
        return self.last - self.first + 1

    @property
    def _seen(self) -> list[Layer]:
        """Those of which something can be told: not of empty batches alone."""
        return [layer for layer in self.layers if layer.count]

    @cached_property
    def advice(self) -> tuple[Advice, ...]:
        return advise(self._seen, self.steps)

    @cached_property
    def doubts(self) -> tuple[str, ...]:
        return tuple(doubt(self._seen))

    @property
    def sentence(self) -> str:
        """The most serious fault; without one, that there is none to be seen, and what is in doubt
        or was not seen at all."""
        if self.advice:
            return self.advice[0].sentence
        if not self.looks:
            return "no step was looked at"
        if not self._seen:
            return "no layer was seen"
        return "; ".join(["no fault to be seen", *self.doubts])

    @property
    def _heading(self) -> str:
        if not self.steps:
            return "no steps"
        return f"steps {self.first} to {self.last}, of which {self.looks} were looked at"

    @property
    def _closing(self) -> list[str]:
        """What is wrong or in doubt, and who was not seen."""
        notes = [f"layer {layer.name}: {layer.note}" for layer in self.layers if layer.note]
        faults = [each.sentence for each in self.advice]
        return [*([*faults, *self.doubts] if faults else [self.sentence]), *notes]

    def __str__(self) -> str:
        rows = [COLUMNS, *map(_cells, self.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            words = [cell.ljust(n) for cell, n in zip(row[:2], widths[:2], strict=True)]
            words += [cell.rjust(n) for cell, n in zip(row[2:], widths[2:], strict=True)]
            lines.append("  ".join(words).rstrip())
        return "\n".join([self._heading, "", *lines, "", *self._closing])

    def __rich__(self) -> Group:
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for k, name in enumerate(COLUMNS):
            table.add_column(name, justify="left" if k < 2 else "right")
        table.columns[0].style = "cyan"
        faulty = {each.layer for each in self.advice}
        for layer in self.layers:
            # a name with brackets is no markup
            cells = map(Text, _cells(layer))
            table.add_row(*cells, style="red" if layer.name in faulty else None)
        style = "bold red" if self.advice else ""
        closing = [Text(line, style if not k else "") for k, line in enumerate(self._closing)]
        return Group(Text(self._heading), Text(), table, Text(), *closing)

    def print(self) -> None:
        """Draw the table on the terminal; ImportError without rich, which gpuact[cli] brings."""
        _need("rich", "report.print()")
        from rich.console import Console

        Console(highlight=False).print(self)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON has it: null for what is not known and what is not finite."""
        layers = [{**asdict(layer), "dead_share": layer.dead_share} for layer in self.layers]
        found = {name: getattr(self, name) for name in ("first", "last", "steps", "looks")}
        advice = [asdict(each) for each in self.advice]
        found |= {"layers": layers, "advice": advice, "doubts": self.doubts}
        strict: dict[str, Any] = _strict(found)
        return strict

    def save(self, path: str | Path) -> None:
        """Write `as_dict` to a file, as JSON."""
        text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def plot(self, path: str | Path) -> None:
        """Draw the figures over the layers: a PNG, or what the path's suffix says.

        ImportError without matplotlib, which gpuact[cli] brings; ValueError for a report of no
        step, and for a suffix that matplotlib does not know.
        """
        layers = [layer for layer in self.layers if layer.looks]
        if not layers:
            raise ValueError("report: one of no layer came, allowed is one that saw some")
        _need("matplotlib", "report.plot()")
        # a Figure of its own draws with Agg and needs no display
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter

        wide = max(5.5, min(16.0, 2.5 + 0.4 * len(layers)))
        figure = Figure(figsize=(wide, 7.0), layout="constrained")
        panels = figure.subplots(len(PANELS), sharex=True)
        for panel, names in zip(panels, PANELS, strict=True):
            for name, (label, colour, style) in names.items():
                panel.plot([getattr(layer, name) for layer in layers], style, c=colour, label=label)
            panel.grid(alpha=0.25)
            panel.legend(frameon=False, fontsize="small")
        shares, *logarithmic = panels
        shares.set_ylim(-0.04, 1.04)
        shares.yaxis.set_major_formatter(PercentFormatter(1))
        for panel, names in zip(logarithmic, PANELS[1:], strict=True):
            values = [getattr(layer, name) for layer in layers for name in names]
            known = [value for value in values if 0 < value < math.inf]
            if known:  # room, or what is nearly level would look like mountains
                panel.set_yscale("log", nonpositive="mask")
                panel.set_ylim(min(known) / 4, max(known) * 4)
        named = range(0, len(layers), math.ceil(len(layers) / 50))  # so many names find room
        panels[-1].set_xticks(named, [layers[k].name for k in named], rotation=90)
        panels[-1].set_xlabel("layer, from the input to the loss")
        words = [self._heading, *wrap(self.sentence, int(13 * wide))]
        shares.set_title("\n".join(words), fontsize="medium", parse_math=False)
        figure.savefig(path, dpi=150)


# What is drawn, panel by panel: label, colour and style. Of ReLU zeros and saturated coincide.
PANELS: tuple[Mapping[str, tuple[str, str, str]], ...] = (
    {
        "zeros": ("zeros", "#1f6fb4", "o-"),
        "saturated": ("saturated", "#e39b3b", ".--"),
        "dead_share": ("dead units", "#b3135f", "^-"),
    },
    {"std": ("standard deviation", "#1f6fb4", "o-")},
    {"gradient": ("norm of the gradient", "#b3135f", "o-")},
)
