"""What softmax does to attention scores before the exponential: scale, mask, causality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scores:
    """z = scale·x, and -inf where a column takes no part; or z = scale·x + mask.

    As backends get it, the mask is their own array of shape (k1, …, km, n), m from 1 to 4: x's
    other axes, in order and multiplied together as far as its strides allow (0 where it is
    broadcast), and the row. It is of bool, True where a column takes part, or of x's dtype and
    added.
    """

    scale: float = 1.0
    mask: Any = None
    causal: int = 0  # rows in a square: row i, modulo this, takes part up to column i; 0: all do
    zero: bool = False  # a row in which no column takes part is 0, not NaN
