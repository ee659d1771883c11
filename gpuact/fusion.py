"""What `fused` fuses: an activation with what stands before and behind it, and dropout's mask.

    y = dropout(act(scale·x + bias))·gate + residual

The mask is never stored: it follows from the seed and the place of an element, by a generator that
counts instead of remembering (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .arguments import integer, parameter
from .catalogue import FUNCTIONS, Function, Pass


@dataclass(frozen=True)
class Dropout:
    """Which elements are dropped: each with probability p, the others are divided by 1 − p.

    The same p, seed and offset drop the same elements on NumPy, CuPy and PyTorch, in forward and in
    backward, whatever the memory layout: element i in C order takes word i mod 4 of Philox4x32-10
    with counter (i div 4, offset) and key seed, and is dropped if that word is below p·2³². So give
    every call another offset (or seed). p lies within [0, 1], seed and offset within [0, 2⁶⁴); up
    to 2⁻³³ p counts as 0.

    >>> import gpuact
    >>> gpuact.Dropout(0.25, seed=7).scale
    1.3333333333333333
    """

    p: float
    seed: int
    offset: int = 0

    def __post_init__(self) -> None:
        p, seed, offset = self.p, self.seed, self.offset
        if type(p) is not float:
            p = parameter("p", p, arrays=False)
            object.__setattr__(self, "p", p)
        if not 0 <= p <= 1:
            raise ValueError(f"p: {p} came, allowed is a number from 0 to 1")
        if not (type(seed) is type(offset) is int and 0 <= seed < 2**64 and 0 <= offset < 2**64):
            for name, value in (("seed", seed), ("offset", offset)):
                number = integer(name, value)
                if not 0 <= number < 2**64:
                    raise ValueError(
                        f"{name}: {number} came, allowed is an int from 0 to 2**64 - 1"
                    )
                object.__setattr__(self, name, number)

    @property
    def drops(self) -> bool:
        """Whether it drops anything: `last` is not −1."""
        return self.p > 2**-33

    @property
    def last(self) -> int:
        """The largest 32-bit word that drops its element; -1 if none does."""
        return _chance(self.p)[0]

    @property
    def scale(self) -> float:
        """What elements that stay are multiplied by; 0 where none stays."""
        return _chance(self.p)[1]

    @property
    def chance(self) -> tuple[int, float]:
        """(last, scale), as kernels take them."""
        return _chance(self.p)


@lru_cache(maxsize=64)  # a layer has one p, and another Dropout for each call
def _chance(p: float) -> tuple[int, float]:
    last = round(p * 2**32) - 1
    return last, 1.0 if last < 0 else 1 / (1 - p) if p < 1 else 0.0


@dataclass(frozen=True)
class Fusion:
    """An activation inside `fused`, in names that a kernel needs."""

    activation: str
    dropout: Dropout | None = None  # one that drops something

    @property
    def record(self) -> Function:
        return FUNCTIONS[self.activation]

    @property
    def forward(self) -> str | None:
        """The activation's formula; None for linear, which is the identity here."""
        return None if self.activation == "linear" else self.record.forward.formula

    @property
    def backward(self) -> str | None:
        """The formula that leads back through the activation; `reads` says what it reads."""
        return self._step.formula if self._step else None

    @property
    def reads(self) -> tuple[str, ...]:
        """("x",): a derivative, still to be multiplied by dy; else dy and x or y."""
        return self._step.reads if self._step else ()

    @property
    def _step(self) -> Pass | None:
        """An activation with a kink is asked on which side of it an element lies: its own backward.
        A smooth one gives its derivative at x, which cancels nowhere, as one from y would.
        """
        if self.activation == "linear":
            return None
        return self.record.slope if self.record.kink == "smooth" else self.record.backward

    @property
    def slope(self) -> bool:
        """Whether the formulas take a slope."""
        return self.activation != "linear" and bool(self.record.forward.parameters)
