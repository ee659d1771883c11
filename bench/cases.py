"""What is timed: a short literal table, each case with the bytes that it must move.

Bytes are those that the function needs, read once and written once, whatever an implementation
does: N elements and M rows, as in `4N` for a 2-byte element read and another written. Parameters
(a slope a channel) are too small to count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import gpuact
from gpuact.catalogue import FUNCTIONS, Function
from gpuact.libraries import numpy_dtype

Array = np.ndarray[Any, np.dtype[Any]]

RANDOM = (
    4_194_301  # random numbers drawn at most; prime, so that repeating them never aligns with a row
)


@dataclass(frozen=True)
class Case:
    """One call of one public function."""

    function: str
    dtype: str
    shape: tuple[int, ...]
    per_element: int  # bytes moved for every element of x
    per_row: int = 0  # and for every row: a loss, a target
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        power = math.prod(self.shape).bit_length() - 1
        shape = f"2^{power}" if self.shape == (1 << power,) else "×".join(map(str, self.shape))
        axis = f" axis {self.options['axis']}" if "axis" in self.options else ""
        return f"{self.function} {self.dtype} {shape}{axis}"

    @property
    def bytes(self) -> int:
        return self.per_element * math.prod(self.shape) + self.per_row * self.shape[0]

    @property
    def formula(self) -> str:
        return f"{self.per_element}N" + (f" + {self.per_row}M" if self.per_row else "")

    @property
    def base(self) -> str:
        """The function that this one is the backward of, or itself."""
        return self.function.removesuffix("_backward").removesuffix("_with_grad")

    @property
    def record(self) -> Function:
        return FUNCTIONS[self.base]


AFFINE = {"scale": 2.0, "bias": 1.0}
ROWWISE: dict[str, Any] = {"reduction": "none"}
TARGET_AND_LOSS = 8 + 4  # bytes a row: an int64 and a float32

# The limits that the kernels are built for.
GPU = (
    Case("relu", "bfloat16", (1 << 28,), 4),
    Case("linear", "bfloat16", (1 << 28,), 4, options=AFFINE),
    Case("sigmoid", "float32", (1 << 27,), 8),
    Case("tanh", "float32", (1 << 27,), 8),
    Case("sigmoid_backward", "bfloat16", (1 << 27,), 6),
    Case("tanh_backward", "bfloat16", (1 << 27,), 6),
    Case("prelu_backward", "bfloat16", (64, 256, 56, 56), 6),
    Case("softmax", "bfloat16", (32768, 256), 4),  # many short rows
    Case("softmax", "bfloat16", (32768, 1024), 4),
    Case("softmax", "bfloat16", (32768, 4096), 4),
    Case("softmax", "bfloat16", (8192, 4096), 4),
    Case("softmax", "bfloat16", (32768, 65536), 4),  # rows that exceed one block
    Case("softmax", "bfloat16", (8192, 262144), 4),
    Case("softmax", "float32", (16384, 131072), 8),
    Case("softmax_backward", "bfloat16", (32768, 8192), 6),
    Case("log_softmax", "bfloat16", (32768, 50257), 4),  # an odd n
    Case("cross_entropy", "bfloat16", (8192, 128256), 2, TARGET_AND_LOSS, ROWWISE),
    Case("cross_entropy_with_grad", "bfloat16", (8192, 128256), 4, TARGET_AND_LOSS, ROWWISE),
    Case("softmax", "float32", (8192, 8192), 8, options={"axis": 0}),
    Case("softmax", "bfloat16", (4, 131072), 4),  # bound by the launch
    Case("relu", "bfloat16", (128, 1024), 4),
)

# Much the same at sizes that a CPU moves in milliseconds.
CPU = (
    Case("relu", "float32", (1 << 24,), 8),
    Case("linear", "float32", (1 << 24,), 8, options=AFFINE),
    Case("sigmoid", "float32", (1 << 24,), 8),
    Case("tanh", "float32", (1 << 24,), 8),
    Case("sigmoid_backward", "float32", (1 << 23,), 12),
    Case("prelu_backward", "float32", (8, 256, 56, 56), 12),
    Case("softmax", "float32", (4096, 4096), 8),
    Case("softmax_backward", "float32", (1024, 8192), 12),
    Case("log_softmax", "float32", (128, 50257), 8),
    Case("softmax", "float32", (2048, 2048), 8, options={"axis": 0}),
    Case("cross_entropy", "float32", (128, 32000), 4, TARGET_AND_LOSS, ROWWISE),
    Case("cross_entropy_with_grad", "float32", (128, 32000), 8, TARGET_AND_LOSS, ROWWISE),
    Case("relu", "float16", (1 << 22,), 4),
    Case("softmax", "bfloat16", (1024, 4096), 4),
    Case("relu", "float32", (128, 1024), 8),  # bound by the cost of a call
)


@dataclass(frozen=True)
class Goal:
    """What gpuact on NumPy must reach beside a rival in the same run."""

    case: Case
    rival: str
    limit: float
    figure: str = "times as fast"  # or "of its time", which must stay below the limit

    def value(self, ours: float, theirs: float) -> float:
        return theirs / ours if self.figure == "times as fast" else ours / theirs

    def held(self, value: float) -> bool:
        return value >= self.limit if self.figure == "times as fast" else value <= self.limit


_relu, _sigmoid, _softmax = (
    next(case for case in CPU if case.function == name) for name in ("relu", "sigmoid", "softmax")
)
GOALS = (
    Goal(_sigmoid, "NumPy", 1.3),
    Goal(_sigmoid, "SciPy", 2.0),
    Goal(_relu, "NumPy", 1.15, "of its time"),
    Goal(_softmax, "SciPy", 1.4),
)


def inputs(case: Case) -> dict[str, Array]:
    """The arrays that the public function takes, by name and in order, on the host.

    Always random: zeros are moved and multiplied faster than what a network holds.
    """
    rng = np.random.default_rng(0)
    count = min(RANDOM, math.prod(case.shape))
    normal = rng.standard_normal(count, np.float32).astype(numpy_dtype(case.dtype))
    record = case.record
    kernel = record.backward if case.function.endswith("_backward") else record.forward
    arrays: dict[str, Array] = {}
    for name in kernel.reads:
        if name == "target":
            arrays[name] = rng.integers(case.shape[1], size=case.shape[0])
        elif name == "y":
            x = np.resize(normal, case.shape)
            with gpuact.using("numpy"):
                arrays[name] = getattr(gpuact, case.base)(x, **case.options)
        else:
            arrays[name] = np.resize(np.roll(normal, len(arrays)), case.shape)
    for name, default in record.defaults.items():
        if default is None:  # a parameter that is an array: one slope a channel
            arrays[name] = np.resize(normal, case.shape[1])
    return arrays
