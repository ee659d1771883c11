"""The command line: `python -m gpuact info | list | describe NAME | plot NAME -o FILE`.

rich and matplotlib come with the extra gpuact[cli]; each is loaded by the command that needs it.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import gpuact

from .catalogue import FUNCTIONS, Function

if TYPE_CHECKING:
    from rich.table import Table

Array = Any


class UsageError(Exception):
    """What the user can put right, in one sentence."""


def _need(package: str) -> None:
    """Load a package of the extra, or say which extra brings it."""
    try:
        import_module(package)
    except ImportError as error:
        raise UsageError(
            f'this command needs {package} ({error}): pip install "gpuact[cli]" brings it'
        ) from error


def _describe(name: str) -> Function:
    try:
        return gpuact.describe(name)
    except ValueError as error:
        raise UsageError(str(error)) from error


# -- info, list, describe -------------------------------------------------------------------------


def _device() -> str:
    """What gpuact.asarray would put an array on."""
    found = gpuact.backends()
    cpu = f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
    if found["cupy"].available:
        import cupy

        return str(cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode())
    if found["triton"].available:
        import torch

        # Triton's interpreter makes the backend available where there is no GPU
        return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return cpu


def _table(*headings: str, **options: Any) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    # few borders: a table of formulas is to fit into 80 columns
    layout: dict[str, Any] = {"box": SIMPLE_HEAD, "show_edge": False, "padding": (0, 1, 0, 0)}
    table = Table(*headings, header_style="bold", **layout, **options)
    table.columns[0].style = "cyan"
    table.columns[0].no_wrap = True
    return table


def _print(thing: Any) -> None:
    from rich.console import Console

    # "gpuact[cuda13]" is no markup
    Console(highlight=False, markup=False).print(thing)


def info(args: argparse.Namespace) -> None:
    """the device, the versions, the backends, and why one cannot run"""
    _need("rich")
    _print(
        f"gpuact {gpuact.__version__}, Python {platform.python_version()}, "
        f"{platform.system()}\ndevice: {_device()}"
    )
    table = _table("backend", "runs here", "versions", "why not")
    for backend in gpuact.backends().values():
        versions = "\n".join(f"{name} {version}" for name, version in backend.versions.items())
        table.add_row(backend.name, "yes" if backend.available else "no", versions, backend.reason)
    _print(table)


def show_list(args: argparse.Namespace) -> None:
    """all functions: formula, derivative, range, derivative at the kink"""
    _need("rich")
    table = _table("function", "formula", "derivative", "range", "at the kink")
    table.columns[3].no_wrap = True
    for column, longest_word in (
        (1, "negative_slope·x"),
        (2, "negative_slope"),
        (4, "negative_slope"),
    ):
        table.columns[column].min_width = len(longest_word)
    for f in FUNCTIONS.values():
        table.add_row(f.name, f.formula, f.derivative, f.range, f.kink, end_section=True)
    _print(table)


def describe(args: argparse.Namespace) -> None:
    """one function: the above, what it is used for, and its limitations"""
    record = _describe(args.name)
    _need("rich")
    _, *lines = str(record).splitlines()
    table = _table("", "", title=record.name, show_header=False)
    for line in lines:
        table.add_row(*line.strip().split(": ", 1))
    _print(table)


# -- plot -----------------------------------------------------------------------------------------

# Parameters under which a picture shows what the function does: a slope of 0.01 looks like 0.
PLOTTED: Mapping[str, Mapping[str, float]] = {
    "linear": {"scale": 0.5, "bias": 1.0},
    "leaky_relu": {"negative_slope": 0.1},
    "prelu": {"weight": 0.25},
}
SPAN = 6.0  # from -SPAN to SPAN
POINTS = 601  # odd, so that 0 is one of them
PALETTE = ("#1f6fb4", "#d1495b")  # the function, its derivative; apart in grey too

# (x, y, derivative), and what the three are called
Curves = tuple[Array, Array, Array, tuple[str, str, str]]


def _elementwise_curves(f: Function, x: Array) -> Curves:
    params = PLOTTED.get(f.name, {})
    y = getattr(gpuact, f.name)(x, **params)
    dy = getattr(gpuact, f"{f.name}_derivative")(x, **params)
    given = ", ".join(f"{name} = {value:g}" for name, value in params.items())
    label = f"{f.name}(x)" + (f" with {given}" if given else "")
    return x, y, dy, ("x", label, "derivative")


def _row_curves(f: Function, x: Array) -> Curves:
    """A row of two, (x, 0): the first output, and its derivative by x."""
    y = getattr(gpuact, f.name)(np.stack([x, np.zeros_like(x)], -1))
    dy = np.broadcast_to([1.0, 0.0], y.shape)
    dx = getattr(gpuact, f"{f.name}_backward")(dy, y)
    return x, y[:, 0], dx[:, 0], ("x", f"{f.name}((x, 0)), first output", "its derivative by x")


def _loss_curves(f: Function, x: Array) -> Curves:
    """Two logits, the first of them the target's: the loss against their difference."""
    logits, target = np.stack([x, np.zeros_like(x)], -1), np.zeros(len(x), np.int64)
    loss, dlogits = gpuact.cross_entropy_with_grad(logits, target, reduction="none")
    names = ("logit of the target − the other logit", "loss", "its gradient by the target's logit")
    return x, loss, dlogits[:, 0], names


CURVES: Mapping[str, Callable[[Function, Array], Curves]] = {
    "elementwise": _elementwise_curves,
    "rows": _row_curves,
    "loss": _loss_curves,
}


def plot(args: argparse.Namespace) -> None:
    """the function and its derivative as a picture"""
    record = _describe(args.name)
    _need("matplotlib")
    # a Figure of its own draws with Agg and needs no display; pyplot would pick a window system
    from matplotlib.figure import Figure

    x, y, dy, (x_label, y_label, dy_label) = CURVES[record.kind](
        record, np.linspace(-SPAN, SPAN, POINTS)
    )
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.plot(x, y, color=PALETTE[0], linewidth=2.2, label=y_label)
    sides = [slice(None)]
    if record.kink != "smooth":
        # the derivative jumps: two lines, and a dot where the kink's own value lies
        sides = [slice(None, POINTS // 2), slice(POINTS // 2 + 1, None)]
        axes.plot(x[POINTS // 2], dy[POINTS // 2], "o", color=PALETTE[1], markersize=5)
        dy_label += f" ({record.kink})"
    for side, label in zip(sides, (dy_label, None), strict=False):
        axes.plot(x[side], dy[side], "--", color=PALETTE[1], linewidth=1.8, label=label)
    axes.set(title=f"{record.name}: {record.formula}", xlabel=x_label, xlim=(-SPAN, SPAN))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    try:
        figure.savefig(args.output, dpi=150)
    except (OSError, ValueError) as error:  # no such folder, or a suffix that says no format
        raise UsageError(f"{args.output} cannot be written: {error}") from error
    print(args.output)


# -- the parser -----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m gpuact", description=gpuact.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run)
        return sub

    command("info", info)
    command("list", show_list)
    name_help = ", ".join(FUNCTIONS)
    command("describe", describe).add_argument("name", metavar="NAME", help=name_help)
    picture = command("plot", plot)
    picture.add_argument("name", metavar="NAME", help=name_help)
    picture.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="a PNG")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except UsageError as error:
        print(f"gpuact: {error}", file=sys.stderr)
        return 2
    return 0
