"""The figures of the report: from a result's rows to matplotlib's figures, and those to text.

One provider looks the same everywhere: gpuact's backends in strong colours, rivals in muted ones,
each with a marker of its own, the copy as a dashed line. A figure is drawn once, in the colours of
a light page; the dark one is the same text with the other colour of each pair.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)

from . import words
from .result import Result
from .suite import Row
from .tables import COPY


class Look(NamedTuple):
    light: str  # the colour on a light page
    dark: str
    marker: str


# No colour stands twice: the dark figure is made by replacing each light colour.
LOOKS: Mapping[str, Look] = {
    COPY: Look("#5c6470", "#a7b0bd", "_"),
    "gpuact on CuPy": Look("#0a5bd3", "#5aa2ff", "o"),
    "gpuact on Triton": Look("#cf3f05", "#ff8a4c", "s"),
    "gpuact on NumPy": Look("#6d28c9", "#b48cff", "D"),
    "gpuact on torch tensors": Look("#00796b", "#3ccfb4", "p"),
    "gpuact": Look("#b3135f", "#ff77b3", "h"),
    "gpuact.torch.nn": Look("#8a6100", "#f2c14b", "P"),
    "gpuact, torch.compile": Look("#3f6d0e", "#9bd55c", "X"),
    "torch": Look("#94716a", "#c29c94", "^"),
    "torch.compile": Look("#7d8a6a", "#a3b18d", "v"),
    "torch.compile, tuned": Look("#64807a", "#8cb0a8", "<"),
    "CuPy ElementwiseKernel": Look("#8a83a3", "#aaa3c4", ">"),
    "cupy.fuse": Look("#8d7c98", "#b5a1c1", "d"),
    "cupyx": Look("#7b8394", "#a1abc0", "8"),
    "Liger": Look("#a07a80", "#c79ba2", "*"),
    "QuACK": Look("#6f86a0", "#94aecb", "H"),
    "FlagGems": Look("#93844f", "#bcab72", "1"),
    "NumPy": Look("#64809b", "#8fadc9", "v"),
    "SciPy": Look("#7c863c", "#a9b465", "<"),
    "numexpr": Look("#5a8c82", "#84b8ad", ">"),
    "Numba": Look("#8b7da0", "#b1a2c9", "d"),
    "an empty autograd function": Look("#868686", "#adadad", "+"),
}
OTHER = Look("#807d78", "#a9a6a0", "x")

INK = ("#1b1f24", "#e4e8ee")
SOFT = ("#59626e", "#9ea8b5")
GRID = ("#e2e5e9", "#2c333c")
WARNING = ("#b00020", "#ff8b98")
DARK = dict((*(look[:2] for look in (*LOOKS.values(), OTHER)), INK, SOFT, GRID, WARNING))

SAMPLE = "SAMPLE, made up: nothing was measured"

WIDTH = 270  # points: 360 pixels of a page
TEXT = 8.5  # points: 11.3 pixels
STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gpuact",
    "font.family": "DejaVu Sans",
    "font.size": TEXT,
    "text.parse_math": False,
    "text.color": INK[0],
    "axes.edgecolor": SOFT[0],
    "axes.labelcolor": SOFT[0],
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID[0],
    "grid.linewidth": 0.6,
    "xtick.color": SOFT[0],
    "ytick.color": SOFT[0],
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}


def look(provider: str) -> Look:
    return LOOKS.get(provider, OTHER)


def ours(provider: str) -> bool:
    return provider.startswith("gpuact")


def ordered(providers: Iterable[str]) -> list[str]:
    """The copy, gpuact, its rivals; whoever has no look of his own comes last, by name."""
    order = {name: place for place, name in enumerate(LOOKS)}
    return sorted(set(providers), key=lambda name: (order.get(name, len(order)), name))


def outline(provider: str) -> str:
    """The marker as an SVG path, about two units wide around the origin."""
    letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    style = MarkerStyle(look(provider).marker)
    path = style.get_path().transformed(style.get_transform())
    vertices = path.vertices
    scale = 1 / max(abs(vertices).max(), 1e-9)
    parts = []
    for points, code in path.iter_segments():
        found = letters[int(code)]
        parts.append(found + ("" if found == "Z" else " ".join(f"{p * scale:.2f}" for p in points)))
    # SVG's y runs down
    return re.sub(r"(-?[\d.]+) (-?[\d.]+)", lambda m: f"{m[1]} {-float(m[2]):.2f}", "".join(parts))


# -- which rows belong together -------------------------------------------------------------------


def variant(row: Row) -> str:
    """What a case's name says beside function, dtype and shape: an axis, a chain."""
    known = row.dtype, "×".join(map(str, row.shape))
    found = row.case.removeprefix(row.function).split()
    return " ".join(w for w in found if w not in known and not w.startswith("2^"))


def parted(row: Row) -> tuple[str, str]:
    """A case's name, its function apart from the rest."""
    rest = row.case.removeprefix(row.function)
    return (row.function, rest.strip()) if row.function and rest != row.case else (row.case, "")


def named(row: Row) -> str:
    return f"{row.function} {variant(row)}".strip()


ENDINGS = re.compile(r"_(backward|derivative|with_grad|jacobian)\b")


def families(names: Iterable[str]) -> list[str]:
    """In their order, but each function with its backward behind it."""
    bases = {name: ENDINGS.sub("", name) for name in names}
    order = list(dict.fromkeys(bases.values()))
    return sorted(bases, key=lambda name: (order.index(bases[name]), name != bases[name]))


@dataclass(frozen=True)
class Panel:
    """One function in one dtype at several sizes: the rows of each provider, the smallest first."""

    function: str
    dtype: str
    by_length: bool  # of a row of the array, instead of bytes moved
    lines: Mapping[str, Sequence[Row]]

    @property
    def title(self) -> str:
        return f"{self.function} {self.dtype}"

    def x(self, row: Row) -> int:
        return row.shape[-1] if self.by_length else row.bytes

    @property
    def xs(self) -> list[int]:
        return sorted({self.x(row) for rows in self.lines.values() for row in rows})


SIZES = 3  # points that make a line
FEW = 1 << 22  # bytes: so few of long rows tell of the launch, not of the length


def panels(rows: Sequence[Row]) -> list[Panel]:
    """A row function's time depends on the length of its rows, so that is what it is drawn over;
    of several cases with rows of one length the largest is taken."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.timing and row.function and row.bytes:
            groups.setdefault((named(row), row.dtype), []).append(row)
    order = families(name for name, _ in groups)
    found = []
    for name, dtype in sorted(groups, key=lambda key: order.index(key[0])):
        group = groups[name, dtype]
        of_rows = group[0].suite in ("rows", "loss") and "axis" not in name
        many = [row for row in group if row.bytes > FEW and len(row.shape) > 1]
        by_length = of_rows and len({row.shape[-1] for row in many}) >= SIZES
        group = many if by_length else group
        lines: dict[str, dict[int, Row]] = {}
        for row in sorted(group, key=lambda row: row.bytes):
            x = row.shape[-1] if by_length else row.bytes
            lines.setdefault(row.provider, {})[x] = row
        panel = Panel(
            name,
            dtype,
            by_length,
            {who: [line[x] for x in sorted(line)] for who, line in lines.items()},
        )
        if len(panel.xs) >= SIZES:
            found.append(panel)
    return found


def largest(rows: Iterable[Row]) -> dict[tuple[str, str, str], Row]:
    """By function, dtype and provider the case that moves most: what a kernel can at its best.

    Along another axis than the last, a case tells of something else.
    """
    found: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        if not row.timing or not row.function or "axis" in variant(row).split():
            continue
        key = named(row), row.dtype, row.provider
        if key not in found or row.bytes > found[key].bytes:
            found[key] = row
    return found


# -- drawing --------------------------------------------------------------------------------------


def _mark(figure: Figure, sample: bool) -> None:
    if sample:
        colour = {"color": WARNING[0], "weight": "bold"}
        size = 0.13 * 72 * figure.get_figwidth()
        figure.text(0.5, 0.5, "SAMPLE", ha="center", va="center", rotation=24, alpha=0.13,
                    fontsize=size, **colour)  # fmt: skip
        figure.text(0.995, 0.995, SAMPLE, ha="right", va="top", **colour)


def _sizes(axes: Axes, xs: Sequence[int]) -> None:
    """Bytes along x: a tick a decade, a label every third where there are many."""
    axes.set_xscale("log")
    low, high = math.log10(xs[0]), math.log10(xs[-1])
    margin = 0.04 * (high - low)
    axes.set_xlim(10 ** (low - margin), 10 ** (high + margin))
    decades = [10**k for k in range(math.ceil(low - margin), math.floor(high + margin) + 1)]
    told = [d for d in decades if len(decades) <= 4 or round(math.log10(d)) % 3 == 0]
    axes.xaxis.set_major_locator(FixedLocator(told))
    axes.xaxis.set_minor_locator(FixedLocator([d for d in decades if d not in told]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, at: words.size(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes moved")


def _length(n: float) -> str:
    return f"{n / 1024:g}K" if n >= 1024 and n % 1024 == 0 else f"{n:g}"


def _lengths(axes: Axes, xs: Sequence[int]) -> None:
    """The length of a row along x: powers of four."""
    axes.set_xscale("log", base=2)
    low, high = math.log2(xs[0]), math.log2(xs[-1])
    margin = 0.04 * (high - low)
    axes.set_xlim(2 ** (low - margin), 2 ** (high + margin))
    powers = range(math.ceil(low - margin), math.floor(high + margin) + 1)
    ticks = [2**k for k in powers if k % 2 == 0] if len(powers) > 4 else [2**k for k in powers]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, at: _length(value)))
    axes.set_xlabel("length of a row (K = 1024)")


def _bandwidth(axes: Axes, panel: Panel) -> None:
    xs = panel.xs
    for who in reversed(ordered(panel.lines)):  # the important ones last, on top
        rates = {panel.x(row): row.bytes_per_second / 1e9 for row in panel.lines[who]}
        ys = [rates.get(x, math.nan) for x in xs]  # no line across what was not measured
        seen, strong = look(who), ours(who)
        if who == COPY:
            axes.plot(xs, ys, color=seen.light, linewidth=1.2, dashes=(4, 2.5), zorder=3)
            continue
        axes.plot(
            xs,
            ys,
            color=seen.light,
            linewidth=1.8 if strong else 1.0,
            marker=seen.marker,
            markersize=4.2 if strong else 3.6,
            zorder=4 if strong else 2,
        )
    (_lengths if panel.by_length else _sizes)(axes, panel.xs)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, at: f"{value:,g}"))
    axes.grid(axis="x", visible=False)


def _figure(width: float, height: float) -> Figure:
    """In points."""
    return Figure(figsize=(width / 72, height / 72), facecolor="none")


def bandwidth(panel: Panel, sample: bool) -> Figure:
    """GB/s against size; the copy is the ceiling."""
    with matplotlib.rc_context(STYLE):
        figure = _figure(WIDTH, 190)
        axes = figure.add_axes((0.135, 0.185, 0.845, 0.7), facecolor="none")
        _bandwidth(axes, panel)
        figure.text(0.005, 0.93, "GB/s", color=SOFT[0], va="bottom")
        _mark(figure, sample)
    return figure


def accuracy(rows: Sequence[Row], sample: bool) -> Figure:
    """The share of the copy's rate against the largest error, a point a function and provider."""
    with matplotlib.rc_context(STYLE):
        figure = _figure(WIDTH, 200)
        axes = figure.add_axes((0.135, 0.18, 0.845, 0.7), facecolor="none")
        for who in reversed(ordered(row.provider for row in rows)):
            chosen = [row for row in rows if row.provider == who]
            xs = [math.log2(1 + row.error_ulp) for row in chosen if row.error_ulp is not None]
            seen = look(who)
            size = 24 if ours(who) else 17
            thin = {"linewidths": 0.9} if seen.marker in "1+x_" else {"linewidths": 0}
            axes.scatter(
                xs,
                [row.share_of_copy for row in chosen],
                s=size,
                color=seen.light,
                marker=seen.marker,
                alpha=0.85,
                zorder=4 if ours(who) else 2,
                **thin,
            )
        high = max(row.error_ulp or 0 for row in rows)
        told = [0, 0.5, *(2**k for k in range(max(1, math.ceil(math.log2(1 + high)) + 1)))]
        told = [t for t in told if t <= max(1, high * 1.2)]
        while len(told) > 7:
            told = [t for i, t in enumerate(told) if i % 2 == 0]
        axes.xaxis.set_major_locator(FixedLocator([math.log2(1 + t) for t in told]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, at: words.plain(2**v - 1)))
        axes.set_xlim(-0.06, max(1.1, math.log2(1 + high) * 1.06))
        axes.set_xlabel("largest error, ulp")
        axes.set_ylim(0, max(1.05, *(row.share_of_copy * 1.05 for row in rows)))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.axhline(1, color=look(COPY).light, linewidth=1.2, dashes=(4, 2.5), zorder=1)
        figure.text(0.005, 0.925, "of the copy", color=SOFT[0], va="bottom")
        _mark(figure, sample)
    return figure


COLUMNS = 4  # of panels side by side in a picture
LEGEND = 5  # names in a line
BAR = 13  # points that a bar and the gap beside it take


def _legend(figure: Figure, providers: Iterable[str], y: float) -> None:
    handles = [
        Line2D([], [], color=look(who).light, linewidth=1.8 if ours(who) else 1.1, label=who,
               marker="" if who == COPY else look(who).marker, markersize=5,
               **({"dashes": (4, 2.5)} if who == COPY else {}))
        for who in ordered(providers)
    ]  # fmt: skip
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.005, y), ncols=LEGEND,
                  frameon=False, fontsize=TEXT + 1, handlelength=2.4, borderpad=0)  # fmt: skip


def _titled(figure: Figure, title: str, below: str, sample: bool) -> None:
    high = figure.get_figheight() * 72
    figure.text(0.008, 1 - 16 / high, title, fontsize=TEXT + 5, weight="bold", va="center")
    figure.text(0.008, 1 - 34 / high, below, fontsize=TEXT + 1, color=SOFT[0], va="center")
    _mark(figure, sample)


def bandwidths(result: Result) -> Figure | None:
    """One picture, of the dtype that has most panels: all of them would be a poster."""
    every = panels(result.rows)
    if not every:
        return None
    dtype, _ = Counter(panel.dtype for panel in every).most_common(1)[0]
    found = [panel for panel in every if panel.dtype == dtype]
    columns = min(COLUMNS, len(found))
    providers = {who for panel in found for who in panel.lines}
    head = 58 + 15 * math.ceil(len(providers) / LEGEND)
    wide, tall, each = 250, 124, 186
    width, height = max(2, columns) * wide, head + math.ceil(len(found) / columns) * each
    with matplotlib.rc_context(STYLE):
        figure = _figure(width, height)
        for at, panel in enumerate(found):
            row, column = divmod(at, columns)
            left, top = column * wide + 38, head + row * each + 20
            box = left / width, 1 - (top + tall) / height, (wide - 50) / width, tall / height
            axes = figure.add_axes(box)
            _bandwidth(axes, panel)
            axes.set_title(panel.title, loc="left", fontsize=TEXT + 1, weight="bold")
        _legend(figure, providers, 1 - 46 / height)
        _titled(figure, result.title, "GB/s against size; dashed: a copy", result.sample)
    return figure


def _bars(axes: Axes, rows: Mapping[str, Row], providers: Sequence[str], most: float) -> None:
    for at, who in enumerate(providers):
        row = rows.get(who)
        weight = "bold" if ours(who) else "normal"
        if row is None:
            axes.text(0.02 * most, at, "–", color=SOFT[0], va="center")
        elif not row.timing:
            axes.text(0.02 * most, at, row.status, color=WARNING[0], va="center", style="italic")
        else:
            share = row.share_of_copy
            inside = share > 0.2 * most
            axes.barh(at, share, height=0.76, color=look(who).light, linewidth=0)
            axes.text(share + (-0.015 if inside else 0.015) * most, at, words.share(share),
                      color="white" if inside else INK[0], ha="right" if inside else "left",
                      va="center_baseline", weight=weight)  # fmt: skip
    axes.axvline(1, color=look(COPY).light, linewidth=1.2, dashes=(4, 2.5), zorder=1)
    axes.set_xlim(0, most * 1.02)
    axes.set_ylim(len(providers) - 0.4, -0.6)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)


def _lines_of_panels(rows: Sequence[Row]) -> list[tuple[list[str], list[list[Row]]]]:
    """The headline cases, so many in a line, with the providers that a line has: those of its
    suite, for nobody's loss kernel has bars beside relu."""
    suites: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row.headline and row.provider != COPY:
            suites.setdefault(row.suite, {}).setdefault(row.case, []).append(row)
    return [
        (ordered(row.provider for case in cases.values() for row in case), chunk)
        for cases in suites.values()
        for start in range(0, len(cases), COLUMNS)
        for chunk in [list(cases.values())[start : start + COLUMNS]]
    ]


def headline(result: Result) -> Figure | None:
    """The share of the copy's rate in the headline cases: a panel a case, a bar a provider."""
    lines = _lines_of_panels(result.rows)
    if not lines:
        return None
    shares = [row.share_of_copy for _, cases in lines for case in cases for row in case]
    names, wide, head, over = 136, 190, 56, 40  # points; over: what a panel has above its bars
    width = names + COLUMNS * wide
    height = head + sum(len(providers) * BAR + over for providers, _ in lines)
    with matplotlib.rc_context(STYLE):
        figure = _figure(width, height)
        top = head
        for providers, cases in lines:
            tall = len(providers) * BAR
            for column, case in enumerate(cases):
                left, bottom = names + column * wide, height - top - over + 8 - tall
                box = left / width, bottom / height, (wide - 22) / width, tall / height
                axes = figure.add_axes(box)
                _bars(axes, {row.provider: row for row in case}, providers, max(1.0, *shares))
                axes.set_yticks(range(len(providers)), [] if column else providers)
                for label, who in zip(axes.get_yticklabels(), providers, strict=False):
                    label.set_color(INK[0] if ours(who) else SOFT[0])
                    label.set_weight("bold" if ours(who) else "normal")
                function, rest = parted(case[0])
                y = (bottom + tall) / height
                figure.text(left / width, y + 15 / height, function, weight="bold")
                figure.text(left / width, y + 4 / height, rest, color=SOFT[0])
            top += tall + over
        below = "share of the rate at which a copy moves as many bytes; dashed: all of it"
        _titled(figure, result.title, below, result.sample)
    return figure


# -- written --------------------------------------------------------------------------------------


def svg(figure: Figure) -> tuple[str, str]:
    """As text for a light page and for a dark one, in the reader's own font."""
    with matplotlib.rc_context(STYLE):
        stream = io.StringIO()
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=none)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", stream.getvalue())
    text = re.sub(r"<!--.*?-->|<\?xml.*?\?>|<!DOCTYPE.*?>", "", text, flags=re.DOTALL)
    text = re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", text)
    # what nothing refers to, and what turns nothing
    text = re.sub(r' id="[\w.]+_\d+"| transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(r"\s*\n\s*", "\n", text).strip()
    return text, re.sub(r"#[0-9a-f]{6}\b", lambda m: DARK.get(m[0], m[0]), text)


def png(figure: Figure, path: Path) -> None:
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, dpi=160, facecolor="white", metadata={"Software": None})
