"""What is found of a claim: figures, the limits that they are held to, and the verdict.

A claim falls into findings, each one sentence. A finding has checks: a figure, of which there is
one value a seed, and a limit that says what the sentence means in numbers. Some checks are of the
case in which the sentence can be true if it is at all (`core`); others ask whether it is also true
elsewhere, with other weights, say, be they the usual ones. What fails only there holds with a
condition, which names the cases. All values of a check must keep its limit, so whoever reads the
least and the greatest of them sees the verdict.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

HOLDS = "holds"
CONDITION = "holds with a condition"
FAILS = "does not hold"
NOT_MEASURED = "not measured"
VERDICTS = (HOLDS, CONDITION, FAILS, NOT_MEASURED)

SEEDS = 5  # of which a verdict is worth telling

RELATIONS: Mapping[str, Callable[[float, float], bool]] = {
    "≤": operator.le,
    "≥": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}


def real(value: float | None) -> float:
    """What JSON keeps as null is no number."""
    return math.nan if value is None else value


# The figures of one seed, by name: numbers, or lists of them for a curve.
Raw = dict[str, Any]
# Those of all seeds.
Figures = Mapping[str, Sequence[Any]]


def number(value: float) -> str:
    """Three digits, with an exponent where zeros would have to be counted."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "NaN")
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:.3g}"
        text = f"{float(text):,.0f}" if "e" in text else text
    else:
        digits, _, exponent = f"{value:.1e}".partition("e")
        text = f"{digits.removesuffix('.0')}e{int(exponent)}"
    return text.replace("-", "−")


def spread(values: Sequence[float]) -> str:
    """The median, and the least and the greatest where they differ."""
    if any(math.isnan(value) for value in values):
        finite = [value for value in values if not math.isnan(value)]
        return f"NaN in {len(values) - len(finite)} of {len(values)}"
    middle, low, high = (number(f(values)) for f in (median, min, max))
    return middle if low == high else f"{middle} ({low} to {high})"


@dataclass(frozen=True)
class Fact:
    """A figure that no verdict hangs on."""

    what: str
    values: Sequence[float]
    in_readme: bool = False  # for a reader would miss it there

    @property
    def text(self) -> str:
        return f"{self.what}: {spread(self.values)}"


@dataclass(frozen=True)
class Check:
    """A figure and its limit; `why` is the reason for that limit."""

    what: str
    values: Sequence[float]
    relation: str
    limit: float
    why: str
    core: bool = True

    @property
    def held(self) -> bool:
        """By every value; NaN holds nothing, nor does what was never measured."""
        keeps = RELATIONS[self.relation]
        return bool(self.values) and all(keeps(value, self.limit) for value in self.values)

    @property
    def asked(self) -> str:
        return f"{self.relation} {number(self.limit)}"

    @property
    def text(self) -> str:
        mark = "✓" if self.held else "✗"
        return f"{mark} {self.what}: {spread(self.values)}, asked {self.asked}"


@dataclass(frozen=True)
class Finding:
    """One sentence and what became of it."""

    number: str
    says: str
    how: str
    checks: Sequence[Check]
    facts: Sequence[Fact] = ()
    condition: str = ""
    remark: str = ""  # what is true instead, where it does not hold
    missing: str = ""  # why it was not measured

    @property
    def verdict(self) -> str:
        if self.missing:
            return NOT_MEASURED
        core = [check for check in self.checks if check.core]
        if not core or not all(check.held for check in core):
            return FAILS
        return HOLDS if all(check.held for check in self.checks) else CONDITION

    @property
    def told(self) -> str:
        """The verdict, and what there is to say to it."""
        found = self.verdict
        more = {CONDITION: self.condition, FAILS: self.remark, NOT_MEASURED: self.missing}
        return f"{found}: {more[found]}" if more.get(found) else found

    @property
    def lines(self) -> list[str]:
        """What was measured, a line a figure."""
        return [*(check.text for check in self.checks), *(fact.text for fact in self.facts)]


@dataclass(frozen=True)
class Effort:
    """How much is run: less for tests."""

    epochs: int = 10
    depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    steps: int = 400  # of descent on all images at once, at most
    few_steps: int = 20_000  # of a logistic regression, at most
    elements: tuple[int, int] = (1 << 16, 1 << 23)  # that caches hold, and that they do not
    seconds: float = 1.0  # of timing, for each seed and size: some 30 rounds in the cache
    classes: tuple[int, ...] = (10, 1000, 50257)


@dataclass(frozen=True)
class Claim:
    """`measure` gives the figures of one seed, `judge` the findings of all."""

    number: str
    title: str
    measure: Callable[[int, Effort], Raw]
    judge: Callable[[Figures], list[Finding]]
    random: bool = True  # otherwise one seed says all
    on_numpy: bool = True  # whatever GPU answers


def collected(raws: Sequence[Raw]) -> dict[str, list[Any]]:
    """One list a figure, with a value a seed."""
    return {name: [raw[name] for raw in raws] for name in raws[0]} if raws else {}
