"""Numbers as people read them: three digits, and the unit that needs no exponent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .measure import Timing
from .result import Judged

SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))

Units = Sequence[tuple[float, str]]


def digits(value: float) -> str:
    """Three digits, as many as a timing is good for; all of those before the point."""
    if not value:
        return "0"
    value = float(f"{value:.3g}")  # first, for 9.996 is 10.0 and not 10.00
    after = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, after)}f}"


def plain(value: float) -> str:
    """The same without zeros at the end, for numbers that are often whole."""
    text = digits(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _unit(value: float, units: Units) -> tuple[float, str]:
    value = float(f"{value:.3g}")
    return next((unit for unit in units if value >= unit[0]), units[-1])


def duration(seconds: float) -> str:
    scale, unit = _unit(seconds, SECONDS)
    return f"{digits(seconds / scale)} {unit}"


def microseconds(seconds: float) -> str:
    return digits(seconds * 1e6)


def spread(timing: Timing) -> str:
    scale, unit = _unit(timing.low, SECONDS)
    return f"{digits(timing.low / scale)}–{digits(timing.high / scale)} {unit}"


def size(count: float) -> str:
    scale, unit = _unit(count, BYTES)
    return f"{plain(count / scale)} {unit}"


def gigabytes(bytes_per_second: float) -> str:
    """GB/s, the unit left to the heading."""
    value = bytes_per_second / 1e9
    return f"{value:,.0f}" if value >= 100 else digits(value)


def share(value: float) -> str:
    return f"{value:.0%}"


def escaped(text: str) -> str:
    """In a cell of a table in Markdown."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def aim(figure: str, limit: float) -> str:
    """What a goal asks for."""
    if figure == "not behind":
        return figure
    at_least = figure in ("times as fast", "GB/s")
    return f"{'≥' if at_least else '≤'} {plain(limit)} {figure}"


def verdict(goal: Judged) -> str:
    return "not measured" if goal.value is None else "held" if goal.held else "missed"
