"""Which cases are run: a short literal table, the headline, and what follows from the catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpuact.catalogue import FUNCTIONS

from .cases import Case, Chain, Watched, every

AFFINE = {"scale": 2.0, "bias": 1.0}
ROWWISE: dict[str, Any] = {"reduction": "none"}
SMOOTHED = {**ROWWISE, "label_smoothing": 0.1}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "linear": AFFINE,
    "leaky_relu": {"negative_slope": 0.01},
    "cross_entropy": ROWWISE,
}

DTYPES = ("bfloat16", "float16", "float32")


def _headline(
    function: str, dtype: str, shape: tuple[int, ...], options: Mapping[str, Any] | None = None
) -> Case:
    return Case(function, dtype, shape, options or {}, compiled=True, headline=True)


# -- what is fused --------------------------------------------------------------------------------

SCALED = "relu(scale·x + bias)"
GATED = "sigmoid(x)·gate + residual"
DROPPED = "dropout(prelu(x)) + residual"
EVERYTHING = "dropout(tanh(scale·x + bias))·gate + residual"

# What is fused, of which activation, with what, dropping how many.
CHAINS: tuple[tuple[str, str, tuple[str, ...], float], ...] = (
    (SCALED, "relu", ("scale", "bias"), 0.0),
    (GATED, "sigmoid", ("gate", "residual"), 0.0),
    (DROPPED, "prelu", ("weight", "residual"), 0.1),
    (EVERYTHING, "tanh", ("scale", "bias", "gate", "residual"), 0.1),
)


def chains(
    dtypes: Sequence[str], shape: tuple[int, int], compiled: bool = False
) -> tuple[Chain, ...]:
    return tuple(
        Chain(
            *(function, dtype, shape),
            compiled=compiled,
            text=text,
            activation=activation,
            takes=takes,
            dropout=dropout,
        )
        for dtype in dtypes
        for text, activation, takes, dropout in CHAINS
        for function in ("fused", "fused_backward")
    )


# -- what is watched ------------------------------------------------------------------------------

# Of relu half is 0 and saturated; of sigmoid next to nothing is either.
WATCHED = ("relu", "sigmoid")


def watched(
    dtypes: Sequence[str],
    shape: tuple[int, int],
    activations: Sequence[str] = WATCHED,
    compiled: bool = False,
) -> tuple[Case, ...]:
    """An activation with its statistics, these of outputs that are there, and it alone: their
    price."""
    found: list[Case] = []
    for dtype in dtypes:
        for activation in activations:
            both = Watched(
                *("activation_with_stats", dtype, shape), compiled=compiled, activation=activation
            )
            alone = replace(both, function="activation_stats", compiled=False)
            found += both, alone, both.plain
    return tuple(found)


# -- from the catalogue ---------------------------------------------------------------------------


def elementwise(
    dtypes: Sequence[str],
    shape: tuple[int, ...],
    images: tuple[int, ...],
    suffixes: Sequence[str] = ("", "_backward", "_derivative"),
) -> tuple[Case, ...]:
    """prelu has one slope a channel of images."""
    return tuple(
        Case(
            record.name + suffix,
            dtype,
            images if record.name == "prelu" else shape,
            OPTIONS.get(record.name, {}),
        )
        for dtype in dtypes
        for record in FUNCTIONS.values()
        if record.kind == "elementwise"
        for suffix in suffixes
    )


ROW_FUNCTIONS = ("softmax", "softmax_backward", "log_softmax", "log_softmax_backward")
LOSS_FUNCTIONS = ("cross_entropy", "cross_entropy_with_grad", "cross_entropy_backward")


def rows(
    functions: Sequence[str], dtypes: Sequence[str], shape: tuple[int, int]
) -> tuple[Case, ...]:
    options = ROWWISE if functions is LOSS_FUNCTIONS else {}
    return tuple(Case(name, dtype, shape, options) for dtype in dtypes for name in functions)


def jacobians(dtypes: Sequence[str], shape: tuple[int, int]) -> tuple[Case, ...]:
    return tuple(Case("softmax_jacobian", dtype, shape) for dtype in dtypes)


# -- a GPU ----------------------------------------------------------------------------------------

LIMITS = (
    _headline("relu", "bfloat16", (1 << 28,)),
    _headline("linear", "bfloat16", (1 << 28,), AFFINE),
    _headline("sigmoid", "float32", (1 << 27,)),
    _headline("tanh", "float32", (1 << 27,)),
    _headline("sigmoid_backward", "bfloat16", (1 << 27,)),
    _headline("tanh_backward", "bfloat16", (1 << 27,)),
    _headline("prelu_backward", "bfloat16", (64, 256, 56, 56)),
)
ROW_LIMITS = (
    _headline("softmax", "bfloat16", (32768, 256)),  # many short rows
    _headline("softmax", "bfloat16", (32768, 1024)),
    _headline("softmax", "bfloat16", (32768, 4096)),
    _headline("softmax", "bfloat16", (8192, 4096)),
    _headline("softmax", "bfloat16", (32768, 65536)),  # rows that exceed one block
    _headline("softmax", "bfloat16", (8192, 262144)),
    _headline("softmax", "float32", (16384, 131072)),
    _headline("softmax_backward", "bfloat16", (32768, 8192)),
    _headline("log_softmax", "bfloat16", (32768, 50257)),  # an odd n
    _headline("softmax", "float32", (8192, 8192), {"axis": 0}),
    _headline("softmax", "bfloat16", (4, 131072)),  # bound by the launch
)
LOSS_LIMITS = (
    _headline("cross_entropy", "bfloat16", (8192, 128256), ROWWISE),
    _headline("cross_entropy_with_grad", "bfloat16", (8192, 128256), ROWWISE),
)
LAUNCH = _headline("relu", "bfloat16", (128, 1024))

# A row of an odd number of columns is to cost what the next multiple of 8 costs.
ODD = (("softmax", 4097, 4104), ("softmax", 50257, 50264), ("log_softmax", 50257, 50264))
_odd_and_even = tuple(
    Case(function, "bfloat16", (32768, n)) for function, *columns in ODD for n in columns
)

QUICK, FULL = "quick", "full"


def _images(count: int) -> tuple[int, int, int, int]:
    """Of 256 channels and 64×64 pixels."""
    return (count >> 20, 256, 64, 64)


def elementwise_on_gpu(sizes: str) -> tuple[Case, ...]:
    """The headline; every function in every dtype at a size that memory bounds; every function in
    bfloat16, or in full in every dtype, from what a launch bounds to what memory bounds."""
    large = 1 << (26 if sizes == QUICK else 27)
    steps = (12, 16, 20, 23) if sizes == QUICK else (10, 12, 14, 16, 18, 20, 22, 24, 26)
    both = ("", "_backward")
    stated = (*LIMITS, LAUNCH)
    return (
        *stated,
        *every(elementwise(DTYPES, (large,), _images(large)), apart_from=stated),
        *(
            case
            for step in steps
            for case in elementwise(
                DTYPES[: 1 if sizes == QUICK else 3],
                (1 << step,),
                _images(1 << step) if step >= 20 else (1, 16, 8, (1 << step) // 128),
                both,
            )
        ),
    )


def rows_on_gpu(sizes: str) -> tuple[Case, ...]:
    """The headline and what stands beside it; every function in every dtype; all lengths."""
    steps = (8, 11, 14, 17) if sizes == QUICK else range(6, 19)
    small = (7, 12) if sizes == QUICK else range(5, 13)
    dtypes = DTYPES[: 1 if sizes == QUICK else 3]
    beside = (
        *_odd_and_even,
        Case("log_softmax_backward", "bfloat16", (32768, 50257)),
        Case("softmax_backward", "bfloat16", (8192, 131072)),  # two operands, one row a cluster
    )
    found: list[Case] = [*ROW_LIMITS, *every(beside, apart_from=ROW_LIMITS)]
    more = (
        *rows(ROW_FUNCTIONS, DTYPES, (8192, 8192)),
        *jacobians(DTYPES, (4096, 128)),
        *(case for k in steps for case in rows(ROW_FUNCTIONS, dtypes, (1 << 26 - k, 1 << k))),
        *(case for k in small for case in rows(ROW_FUNCTIONS, dtypes, (1 << k, 256))),
    )
    return (*found, *every(more, apart_from=found))


def loss_on_gpu(sizes: str) -> tuple[Case, ...]:
    steps = (10, 13, 15) if sizes == QUICK else range(8, 19)
    dtypes = DTYPES[: 1 if sizes == QUICK else 3]
    beside = (
        Case("cross_entropy", "bfloat16", (8192, 128256), SMOOTHED),
        Case("cross_entropy_with_grad", "bfloat16", (8192, 128256), SMOOTHED),
    )
    more = (
        *rows(LOSS_FUNCTIONS, DTYPES, (8192, 16384)),
        *(case for k in steps for case in rows(LOSS_FUNCTIONS, dtypes, (1 << 26 - k, 1 << k))),
        *rows(LOSS_FUNCTIONS, dtypes, (128, 1024)),
    )
    return (*LOSS_LIMITS, *beside, *more)


def fused_on_gpu(sizes: str) -> tuple[Case, ...]:
    """Chains are compared in full, on the host: their size is as small as memory still bounds."""
    rows = 8192 if sizes == QUICK else 16384
    return (
        *chains(DTYPES[:1], (rows, 4096), compiled=True),
        *chains(DTYPES, (2048, 4096)),
    )


def stats_on_gpu(sizes: str) -> tuple[Case, ...]:
    """Where all that follows the pass is next to nothing beside it, where memory still bounds it,
    and where launches do."""
    return (
        *watched(DTYPES[:1], (65536, 4096), compiled=True),
        *watched(DTYPES, (16384, 4096)),
        *watched(DTYPES[: 1 if sizes == QUICK else 3], (1024, 1024)),
    )


# -- a CPU ----------------------------------------------------------------------------------------

# Much the same at sizes that a CPU moves in milliseconds.
CPU = (
    _headline("relu", "float32", (1 << 24,)),
    _headline("linear", "float32", (1 << 24,), AFFINE),
    _headline("sigmoid", "float32", (1 << 24,)),
    _headline("tanh", "float32", (1 << 24,)),
    _headline("sigmoid_backward", "float32", (1 << 23,)),
    _headline("prelu_backward", "float32", (8, 256, 56, 56)),
    _headline("softmax", "float32", (4096, 4096)),
    _headline("softmax_backward", "float32", (1024, 8192)),
    _headline("log_softmax", "float32", (128, 50257)),
    _headline("softmax", "float32", (2048, 2048), {"axis": 0}),
    _headline("cross_entropy", "float32", (128, 32000), ROWWISE),
    _headline("cross_entropy_with_grad", "float32", (128, 32000), ROWWISE),
    _headline("relu", "float16", (1 << 22,)),
    _headline("softmax", "bfloat16", (1024, 4096)),
    _headline("relu", "float32", (128, 1024)),  # bound by the cost of a call
)
ALL_DTYPES = (*DTYPES, "float64")


def elementwise_on_cpu(sizes: str) -> tuple[Case, ...]:
    steps = (10, 14, 18, 22) if sizes == QUICK else range(8, 25, 2)
    both = ("", "_backward")
    stated = tuple(case for case in CPU if case.suite == "elementwise")
    more = (
        *elementwise(ALL_DTYPES, (1 << 20,), (4, 64, 64, 64)),
        *(
            case
            for k in steps
            for case in elementwise(("float32",), (1 << k,), (1, 16, 8, (1 << k) // 128), both)
        ),
    )
    return (*stated, *every(more, apart_from=stated))


def rows_on_cpu(sizes: str) -> tuple[Case, ...]:
    steps = (6, 10, 14, 18) if sizes == QUICK else range(4, 23, 2)
    stated = tuple(case for case in CPU if case.suite == "rows")
    more = (
        *rows(ROW_FUNCTIONS, ALL_DTYPES, (256, 4096)),
        *jacobians(ALL_DTYPES, (64, 128)),
        *(case for k in steps for case in rows(ROW_FUNCTIONS, ("float32",), (1 << 22 - k, 1 << k))),
        Case("softmax", "float32", (128, 50257)),
        Case("softmax", "float32", (128, 50264)),
        Case("log_softmax", "float32", (128, 50264)),
        Case("softmax", "float32", (4, 131072)),
    )
    return (*stated, *every(more, apart_from=stated))


def loss_on_cpu(sizes: str) -> tuple[Case, ...]:
    steps = (8, 12, 16) if sizes == QUICK else range(6, 21, 2)
    stated = tuple(case for case in CPU if case.suite == "loss")
    more = (
        Case("cross_entropy", "float32", (128, 32000), SMOOTHED),
        Case("cross_entropy_with_grad", "float32", (128, 32000), SMOOTHED),
        *rows(LOSS_FUNCTIONS, ALL_DTYPES, (256, 4096)),
        *(
            case
            for k in steps
            for case in rows(LOSS_FUNCTIONS, ("float32",), (1 << 22 - k, 1 << k))
        ),
    )
    return (*stated, *every(more, apart_from=stated))


def fused_on_cpu(sizes: str) -> tuple[Case, ...]:
    return chains(("float32",) if sizes == QUICK else ALL_DTYPES, (1024, 4096))


def stats_on_cpu(sizes: str) -> tuple[Case, ...]:
    if sizes == QUICK:
        return watched(("float32",), (1024, 1024), WATCHED[:1])
    return watched(ALL_DTYPES, (1024, 1024))


def cpu(sizes: str) -> tuple[Case, ...]:
    """The headline, and few of all others: each function in each dtype, and by its size."""
    steps = (8, 13, 18, 21)
    both = ("", "_backward")
    more = (
        *elementwise(("float32", "bfloat16"), (1 << 19,), (2, 64, 64, 64)),
        *(
            case
            for k in steps
            for case in elementwise(("float32",), (1 << k,), (1, 4, 4, (1 << k) // 16), both)
        ),
        *rows(ROW_FUNCTIONS, ("float32", "bfloat16"), (128, 4096)),
        *rows(LOSS_FUNCTIONS, ("float32", "bfloat16"), (128, 4096)),
        *(
            case
            for k in (5, 9, 13, 17)
            for case in rows(ROW_FUNCTIONS[::2], ("float32",), (1 << 20 - k, 1 << k))
        ),
        *chains(("float32",), (256, 2048)),
        *stats_on_cpu(QUICK),
    )
    found = (*CPU, *every(more, apart_from=CPU))
    return found if sizes == QUICK else (*found, *_more_on_cpu(found))


def _more_on_cpu(found: Sequence[Case]) -> list[Case]:
    more = (
        *elementwise_on_cpu(FULL),
        *rows_on_cpu(FULL),
        *loss_on_cpu(FULL),
        *fused_on_cpu(FULL),
        *stats_on_cpu(FULL),
    )
    return every(more, apart_from=found)


# -- small ones -----------------------------------------------------------------------------------

# What autograd keeps is told in bytes an element, and small arrays tell it.
HELD = (
    *elementwise(("bfloat16",), (1 << 16,), (4, 256, 8, 8), ("",)),
    *(case for case in chains(("bfloat16",), (64, 1024), compiled=True) if not case.backward),
)

CALL = Case("relu", "bfloat16", (2048,))  # x of 4 KiB: what the call itself costs the host

COPY = "copy"  # moves the case's bytes and does nothing else

# How CALL is called.
PLAIN, OUT, RECORDED = "relu(x)", "relu(x, out=y)", "relu(x) under autograd"
HOST = {way: f"{way} {CALL.dtype} 4 KiB, cost to the host" for way in (PLAIN, OUT, RECORDED)}
