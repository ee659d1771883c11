"""The pictures: where a curve says more than its figures.

A line is the median of the seeds, the band around it reaches from the least to the greatest. One
activation looks the same everywhere; the colours are those of bench/figures.py, which knows their
dark counterparts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from bench.figures import INK, LOOKS, SOFT, STYLE, TEXT, Look
from bench.tables import COPY

from . import centre, cost, depth, rows, saturation, sparse
from .table import Figures, real

OF: Mapping[str, Look] = {
    "linear": LOOKS[COPY],
    "sigmoid": LOOKS["gpuact on Triton"],
    "sigmoid − ½": LOOKS["gpuact.torch.nn"],
    "tanh": LOOKS["gpuact on NumPy"],
    "relu": LOOKS["gpuact on CuPy"],
    "leaky_relu": LOOKS["gpuact on torch tensors"],
    "prelu": LOOKS["gpuact"],
}
# Three of one kind: the weights' sizes, layers, forward and backward.
STEPS = (LOOKS["gpuact on CuPy"], LOOKS["gpuact on Triton"], LOOKS["gpuact on NumPy"])
GUIDE = LOOKS[COPY].light
WIDE, TALL = 250, 150  # points, of a panel without what stands around it


@dataclass(frozen=True)
class Line:
    label: str
    look: Look
    xs: Sequence[float]
    seeds: Sequence[Sequence[float | None]]  # the ys of each; a line is broken where one has none

    def across(self, of: Callable[[Iterable[float]], float]) -> list[float]:
        columns = zip(*self.seeds, strict=True)
        found = ([real(y) for y in column] for column in columns)
        return [math.nan if any(map(math.isnan, ys)) else of(ys) for ys in found]


@dataclass(frozen=True)
class Panel:
    title: str
    across: str  # the label of x
    up: str
    lines: Sequence[Line]
    logarithmic: str = ""  # "x", "y" or both
    guides: Mapping[str, float] = field(default_factory=dict)  # a dashed line at that y
    curve: tuple[str, Sequence[float]] | None = None  # a dashed one over the xs of the first line
    low: float | None = None


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(y: float) -> str:
    """A power of ten as one, but for those that are read more easily in full."""
    if 0.01 <= y < 1000:
        return f"{y:g}"
    return f"10{str(round(math.log10(y))).translate(SUPERSCRIPTS)}"


def _panel(axes: Axes, panel: Panel) -> None:
    for at, line in enumerate(panel.lines):
        middle = line.across(median)
        # the later the thinner: who lies on top of somebody leaves an edge of him
        width, marker = max(1.2, 3.0 - 0.9 * at), line.look.marker if len(line.xs) < 40 else ""
        axes.plot(line.xs, middle, color=line.look.light, linewidth=width, marker=marker,
                  markersize=width + 1.6, zorder=3)  # fmt: skip
        if len(line.seeds) > 1:
            axes.fill_between(line.xs, line.across(min), line.across(max), color=line.look.light,
                              alpha=0.16, linewidth=0, zorder=2)  # fmt: skip
    if "x" in panel.logarithmic:
        axes.set_xscale("log")
        told = sorted({x for line in panel.lines for x in line.xs})
        axes.xaxis.set_major_locator(FixedLocator(told))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(told, [f"{x:g}" for x in told])
    if "y" in panel.logarithmic:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        near = high < 1000 * low
        axes.yaxis.set_major_locator(LogLocator(numticks=6, subs=(1, 2, 5) if near else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, place: power(y)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if panel.low is not None:
        axes.set_ylim(bottom=panel.low)
    if panel.curve:
        axes.plot(panel.lines[0].xs, panel.curve[1], color=GUIDE, linewidth=1, dashes=(4, 2.5))
        middle_of = len(panel.curve[1]) // 2
        axes.annotate(panel.curve[0], (panel.lines[0].xs[middle_of], panel.curve[1][middle_of]),
                      (6, -8), textcoords="offset points", va="top", color=SOFT[0],
                      fontsize=TEXT - 1)  # fmt: skip
    for name, y in panel.guides.items():
        axes.axhline(y, color=GUIDE, linewidth=1, dashes=(4, 2.5), zorder=1)
        axes.annotate(name, (1, y), (-2, 2), xycoords=("axes fraction", "data"), ha="right",
                      textcoords="offset points", color=SOFT[0], fontsize=TEXT - 1)  # fmt: skip
    axes.set_xlabel(panel.across)


def _drawn(title: str, panels: Sequence[Panel]) -> Figure:
    """The panels side by side, a legend of all that is in them above."""
    looks = {line.label: line.look for panel in panels for line in panel.lines}
    head = 16 + 15 * math.ceil(len(looks) / 6)
    width, height = len(panels) * (WIDE + 20), head + TALL + 84
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
        for at, panel in enumerate(panels):
            left, bottom = at * (WIDE + 20) + 44, 36
            box = left / width, bottom / height, (WIDE - 36) / width, TALL / height
            axes = figure.add_axes(box, facecolor="none")
            _panel(axes, panel)
            figure.text((left - 36) / width, (bottom + TALL + 6) / height, panel.up, color=SOFT[0],
                        va="bottom", fontsize=TEXT - 0.5)  # fmt: skip
            axes.set_title(panel.title, loc="left", fontsize=TEXT + 1, weight="bold", pad=20,
                           color=INK[0])  # fmt: skip
        figure.text(
            8 / width, 1 - 12 / height, title, fontsize=TEXT + 3, weight="bold", va="center"
        )
        handles = [
            Line2D([], [], color=look.light, linewidth=1.8, marker=look.marker, markersize=4.5,
                   label=label)
            for label, look in looks.items()
        ]  # fmt: skip
        figure.legend(handles=handles, loc="upper left", ncols=6, frameon=False, borderpad=0,
                      bbox_to_anchor=(4 / width, 1 - 24 / height), fontsize=TEXT + 0.5)  # fmt: skip
    return figure


# -- one a claim, or two --------------------------------------------------------------------------


def _ranges(figures: Figures) -> Figure:
    panels = []
    for name, top in (("sigmoid", 0.25), ("tanh", 1.0)):
        xs, ys = figures[f"{name} curve"][0]
        line = Line(name, OF[name], xs, [ys])
        panels.append(Panel(f"{name}′ in float16", "x", "f′(x)", [line], guides={f"{top:g}": top}))
    return _drawn("Derivatives, at the float16 values of [−8, 8]", panels)


def _of_gain(gain: str) -> str:
    return "weights of gain 1 (Glorot)" if gain == "1" else "weights of each one's own gain"


def _norms(figures: Figures) -> Figure:
    deepest = depth.depths(figures)[-1]
    layers = range(1, deepest + 1)
    panels = []
    for gain in depth.GAINS:
        lines = [
            Line(
                *(name, OF[name], layers),
                [[n / one["norms"][-1] for n in one["norms"]] for one in found],
            )
            for name in depth.ACTIVATIONS
            for found in [figures[f"{name}, gain {gain}, {deepest} layers"]]
        ]
        quarter = [0.25 ** (deepest - layer) for layer in layers]
        panels.append(
            Panel(
                *(_of_gain(gain), "hidden layer", "‖∂L/∂z‖ over that of the last hidden layer"),
                *(lines, "y"),
                curve=("0.25 a layer", quarter),
            )
        )
    return _drawn(f"The gradient at the start, {deepest} hidden layers", panels)


def _factors(figures: Figures) -> Figure:
    panels = []
    for gain in depth.GAINS:
        lines = [
            Line(name, OF[name], range(len(found[0]["factors"])), [one["factors"] for one in found])
            for name in depth.ACTIVATIONS
            for found in [figures[f"{name}, gain {gain}, trained"]]
        ]
        panels.append(
            Panel(
                *(_of_gain(gain), "epoch", "factor of ‖∂L/∂z‖ from a layer to the one before"),
                lines,
                guides={"0.25": 0.25, "1": 1.0},
                low=0,
            )
        )
    return _drawn(f"The factor a layer through training, {depth.TRAINED} hidden layers", panels)


def _descents(figures: Figures) -> Figure:
    panels = []
    for rate in centre.RATES[:3]:
        lines = []
        for name in centre.NETWORKS:
            found = [one["losses"] for one in figures[f"{name}, rate {rate:g}"]]
            longest = max(map(len, found))
            # who has arrived stays there
            padded = [[*losses, *[losses[-1]] * (longest - len(losses))] for losses in found]
            lines.append(Line(name, OF[name], range(longest), padded))
        panels.append(
            Panel(
                *(f"rate {rate:g}", "step, of all images", "loss", lines, "y"),
                guides={f"{centre.REACHED:g}": centre.REACHED},
            )
        )
    return _drawn("Descent of one function: sigmoid, the same centred, and tanh", panels)


def _shares(figures: Figures) -> Figure:
    panels = []
    for what, up in (
        ("shares", "share of units × images with |f′| < 1 %"),
        ("losses", "mean loss"),
    ):
        for name in saturation.ACTIVATIONS:
            lines = []
            for look, scale in zip(STEPS, saturation.SCALES, strict=True):
                found = [one[what] for one in figures[f"{name}, weights × {scale}"]]
                first = int(what == "losses")  # a loss is that of an epoch, a share between two
                xs = range(first, first + len(found[0]))
                lines.append(Line(f"weights × {scale}", look, xs, found))
            title = f"{name}, × 1: gain {saturation.gain(name, 1):g}"
            panels.append(Panel(title, "epoch", up, lines, low=0))
    return _drawn("Saturated units, and the loss meanwhile", panels)


def _dying(figures: Figures) -> Figure:
    rates = [(rate, f"rate {rate:g}") for rate in sparse.RATES]
    biases = [(bias, f"bias −{-bias:g}" if bias else sparse.USUALLY) for bias in sparse.BIASES]
    panels = []
    for runs, across, scale in ((rates, "learning rate", "x"), (biases, "bias at the start", "")):
        for what, up in (("dead", "share with z ≤ 0 on all images"), ("accuracy", "test accuracy")):
            lines = []
            for name in sparse.ACTIVATIONS:
                columns = [
                    (sparse.last if what == "dead" else sparse.each)(figures, name, run, what)
                    for _, run in runs
                ]
                xs = [x for x, _ in runs]
                lines.append(Line(name, OF[name], xs, list(zip(*columns, strict=True))))
            panels.append(Panel("", across, up, lines, scale, low=-0.03))
    return _drawn("Units that are off on every image after training (no point: diverged)", panels)


def _slopes(figures: Figures) -> Figure:
    panels = []
    for run in (f"rate {sparse.RATES[0]:g}", sparse.USUALLY, sparse.LOW):
        found = sparse.each(figures, "prelu", run, "slopes")
        shortest = min(map(len, found))
        lines = [
            Line(
                *(f"layer {layer + 1}", look, range(1, shortest + 1)),
                [[epoch[layer] for epoch in one[:shortest]] for one in found],
            )
            for layer, look in enumerate(STEPS)
        ]
        panels.append(Panel(run, "epoch", "mean slope of a layer", lines, guides={"0.25": 0.25}))
    return _drawn("The slopes that PReLU learns", panels)


def _costs(figures: Figures) -> Figure:
    """A panel a place: bars of ns per element, forward and backward, and the copy's time."""
    places = list(figures)
    columns = min(3, len(places))
    lines = math.ceil(len(places) / columns)
    width, height = columns * (WIDE + 20), 50 + lines * (TALL + 64)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
        for at, place in enumerate(places):
            row, column = divmod(at, columns)
            left, top = column * (WIDE + 20) + 76, 68 + row * (TALL + 64)
            bottom = height - top - TALL
            box = left / width, bottom / height, (WIDE - 72) / width, TALL / height
            axes = figure.add_axes(box, facecolor="none")
            ns = {
                name: [one["ns"][name] for one in figures[place]]
                for name in figures[place][0]["ns"]
            }
            for place_at, name in enumerate(cost.FUNCTIONS):
                for part, function in enumerate((name, f"{name}_backward")):
                    y, value = place_at + 0.38 * part - 0.19, median(ns[function])
                    off = [[value - min(ns[function])], [max(ns[function]) - value]]
                    axes.barh(y, value, height=0.34, color=STEPS[part].light, linewidth=0,
                              xerr=off, error_kw={"linewidth": 0.8, "ecolor": INK[0]})  # fmt: skip
            axes.axvline(median(ns[COPY]), color=GUIDE, linewidth=1.2, dashes=(4, 2.5), zorder=4)
            axes.set_yticks(range(len(cost.FUNCTIONS)), cost.FUNCTIONS)
            axes.invert_yaxis()
            axes.set_xlabel("ns per element")
            axes.grid(axis="y", visible=False)
            size = f"2^{math.log2(figures[place][0]['elements']):g} elements"
            axes.set_title(
                f"{cost.named(place)}, {size}", loc="left", fontsize=TEXT + 1, weight="bold"
            )
        figure.text(8 / width, 1 - 12 / height, "What a function costs", fontsize=TEXT + 3,
                    weight="bold", va="center")  # fmt: skip
        handles = [
            *(Line2D([], [], color=look.light, linewidth=6, label=label)
              for label, look in zip(("forward", "backward"), STEPS, strict=False)),
            Line2D([], [], color=GUIDE, linewidth=1.2, dashes=(4, 2.5), label="copy of one array"),
        ]  # fmt: skip
        figure.legend(handles=handles, loc="upper left", ncols=3, frameon=False, borderpad=0,
                      bbox_to_anchor=(4 / width, 1 - 24 / height), fontsize=TEXT + 0.5)  # fmt: skip
    return figure


def _overflows(figures: Figures) -> Figure:
    digits = [[one["lost"] for one in each] for each in figures["float32"]]
    short = [[one["short"] * 2**24 for one in each] for each in figures["float32"]]
    tumours = [each["lost"] for each in figures["binary"]]
    across = "logits ×"
    long = LOOKS["gpuact on Triton"]
    return _drawn(
        "The long way, J·(−y/s), and the short one, S − Y, in float32",
        [
            Panel(
                *("rows that are not finite, the long way", across, "share"),
                [
                    Line("digits, softmax", long, rows.SCALES, digits),
                    Line("breast cancer, sigmoid", OF["prelu"], rows.SCALES, tumours),
                ],
                "x",
                low=-0.03,
            ),
            Panel(
                *("S − Y, against float64", across, "largest difference, in 2⁻²⁴"),
                [Line("digits, S − Y", OF["relu"], rows.SCALES, short)],
                "x",
                low=0,
            ),
        ],
    )


# By the claim: the name of a picture, what it shows to who cannot see it, and who draws it.
DRAWINGS: Mapping[str, Sequence[tuple[str, str, Callable[[Figures], Figure]]]] = {
    "2": [("ranges", "The derivatives of sigmoid and tanh against x", _ranges)],
    "3": [
        (
            "depth",
            "Norm of the gradient by layer, for six activations and two initialisations",
            _norms,
        ),
        ("factors", "Factor of the gradient a layer against epochs of training", _factors),
    ],
    "4": [
        ("descent", "Loss against steps of sigmoid, sigmoid − ½ and tanh at three rates", _descents)
    ],
    "5": [("saturation", "Share of saturated units, and the loss, against epochs", _shares)],
    "6": [("cost", "ns per element of each function, forward and backward", _costs)],
    "7": [
        ("dying", "Dead units and accuracy against learning rate and bias", _dying),
        ("slopes", "Mean slope of PReLU by layer against epochs", _slopes),
    ],
    "9": [("overflow", "Rows lost against the scale of the logits", _overflows)],
}


def drawn(figures: Mapping[str, Figures]) -> dict[str, list[tuple[str, str, Figure]]]:
    """By the claim, those that were measured: name, words, figure."""
    return {
        number: [(name, words, draw(figures[number])) for name, words, draw in DRAWINGS[number]]
        for number in figures
        if number in DRAWINGS
    }
