"""Claim 6: what a function costs, on NumPy and on every GPU backend that answers, beside a copy.

Functions are compared within a round of timing (measure.interleaved), after their results were
compared with NumPy's. A seed is a repetition: nothing is random here but the neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import gpuact
from bench.cases import Case, Chain, sources
from bench.measure import PLACES, Host, Replayed, interleaved, rotated
from bench.suite import checked, reference
from bench.tables import COPY

from .table import Check, Effort, Fact, Figures, Finding, Raw

FUNCTIONS = ("relu", "leaky_relu", "prelu", "sigmoid", "tanh", "softmax")
CHAIN = "act(scale·x + bias)·gate + residual"
COMPARED = ("relu", "sigmoid", "tanh")
# NumPy's own, beside which gpuact's relu is three passes: it makes +0 of −0.
BARE: Mapping[str, Callable[[Any], object]] = {
    "np.maximum": lambda x: np.maximum(x, 0),
    "np.tanh": np.tanh,
}
SHAPES = {"prelu": 64, "softmax": 1024}  # columns: a slope each, and a row's length
CACHE, MEMORY = "numpy, in the cache", "numpy, in memory"
DEARER = 1.25  # more than timings of one function differ from run to run
FREE = 1.05
CACHED = 16  # outputs of as many calls stay in a GPU's L2 beside the input


class Regime(NamedTuple):
    """What bounds a call: how many elements it has, and whether its inputs are in the cache."""

    name: str
    elements: int
    cached: bool


def regimes(backend: str, effort: Effort) -> tuple[Regime, ...]:
    small, large = effort.elements
    if backend == "numpy":
        return Regime("in the cache", small, True), Regime("in memory", large, True)
    return (
        Regime("small", 1 << 12, True),
        Regime("in the cache", 1 << 20, True),
        Regime("in memory", 1 << 26, False),
    )


DTYPES = {"numpy": "float32", "cupy": "bfloat16", "triton": "bfloat16"}
HOMES = {"numpy": "numpy", "cupy": "cupy", "triton": "torch on CUDA"}
NAMES = {"numpy": "NumPy", "cupy": "CuPy", "triton": "Triton"}


def backends() -> list[str]:
    found = gpuact.backends()
    return [name for name in HOMES if name == "numpy" or found[name].available]


def _cases(backend: str, elements: int) -> dict[str, Case]:
    dtype, found = DTYPES[backend], {}
    for name in FUNCTIONS:
        columns = SHAPES.get(name)
        shape = (elements // columns, columns) if columns else (elements,)
        options = {"negative_slope": 0.01} if name == "leaky_relu" else {}
        for function in (name, f"{name}_backward"):
            found[function] = Case(function, dtype, shape, options)
    for name in COMPARED if backend != "numpy" else ():  # NumPy fuses nothing
        takes = "scale", "bias", "gate", "residual"
        more: dict[str, Any] = {"text": CHAIN, "activation": name, "takes": takes}
        found[f"{name} fused"] = Chain("fused", dtype, (elements // 64, 64), **more)
    return found


def _calls(case: Case, place: Host, cached: bool) -> list[partial[Any]]:
    """One, or as many as go around memory; of right results, or it is an error."""
    arrays = sources(case)
    if cached:
        held = [tuple(rotated(place, list(arrays.values()), place.cache)[0])]
        held *= CACHED if place.graphs else 1
    else:
        held = rotated(place, list(arrays.values()), case.bytes // case.arrays)
    calls = [partial(case.public, *args, **case.options) for args in held]
    found = checked(case, place, calls[0], reference(case, arrays))
    if found.status != "timed":
        raise RuntimeError(f"{case.name}: {found.reason}")
    return calls


def _timed(backend: str, regime: Regime, seconds: float) -> dict[str, float]:
    """ns per element of every function, and of a copy of one array."""
    place = PLACES[HOMES[backend]]()
    cases = _cases(backend, regime.elements)
    calls = {name: _calls(case, place, regime.cached) for name, case in cases.items()}
    if backend == "numpy":
        (x,) = calls["relu"][0].args
        calls |= {name: [partial(function, x)] for name, function in BARE.items()}
    calls[COPY] = [partial(place.copy, call.args[0]) for call in calls["relu"]]
    who = {n: (Replayed(place, c) if place.graphs else place, c) for n, c in calls.items()}
    timings = interleaved(who, seconds)
    place.release()
    # the 20 % quantile: neighbours who wake up in some rounds spoil less of it than of a median
    return {name: 1e9 * t.low / regime.elements for name, t in timings.items()}


def measure(seed: int, effort: Effort) -> Raw:
    return {
        f"{backend}, {regime.name}": {
            "elements": regime.elements,
            "ns": _timed(backend, regime, effort.seconds),
        }
        for backend in backends()
        for regime in regimes(backend, effort)
    }


def arrays_moved(function: str) -> int:
    """Forward reads one and writes one; backward reads two; the chain three."""
    return 4 if function.endswith("fused") else 3 if function.endswith("_backward") else 2


def _ns(figures: Figures, place: str, function: str) -> list[float]:
    return [each["ns"][function] for each in figures[place]]


def _over(figures: Figures, place: str, function: str, other: str) -> list[float]:
    pairs = zip(_ns(figures, place, function), _ns(figures, place, other), strict=True)
    return [a / b for a, b in pairs]


def _copies(figures: Figures, place: str, function: str) -> list[float]:
    """The time over that of copying as many bytes."""
    share = 2 / arrays_moved(function)
    return [share * ratio for ratio in _over(figures, place, function, COPY)]


def _size(figures: Figures, place: str) -> str:
    return f"2^{math.log2(figures[place][0]['elements']):g}"


def _facts(figures: Figures, places: Mapping[str, str]) -> list[Fact]:
    return [
        Fact(
            f"{name}, {function}, ns per element",
            _ns(figures, place, function),
        )
        for place, name in places.items()
        for function in (COPY, *(f + way for f in COMPARED for way in ("", "_backward")))
    ]


def named(place: str) -> str:
    backend, _, regime = place.partition(", ")
    return f"{NAMES[backend]} {regime}"


def _on_numpy(figures: Figures) -> str:
    small, large = (_size(figures, place) for place in (CACHE, MEMORY))
    sizes = f"{small} float32 in the cache, {large} in memory"
    return f"gpuact on NumPy, {sizes}, timed in turn beside a copy, 20 % quantiles"


def _gpu(figures: Figures) -> list[str]:
    return [place for place in figures if place not in (CACHE, MEMORY)]


def _dearer(
    figures: Figures, number: str, function: str, facts: Sequence[Fact], remark: str = ""
) -> Finding:
    why = "more than one function differs from run to run"
    return Finding(
        number,
        f"{function.capitalize()} costs more than ReLU, for its exponential.",
        f"{_on_numpy(figures)}: time over that of relu",
        [
            Check(
                named(place),
                *(_over(figures, place, function, "relu"), "≥", DEARER, why),
                core=place == CACHE,
            )
            for place in (CACHE, *_gpu(figures))
        ],
        [
            Fact(named(MEMORY), _over(figures, MEMORY, function, "relu"), in_readme=True),
            *facts,
        ],
        condition="where arithmetic is what takes the time, and not memory",
        remark=remark,
    )


def _bare(figures: Figures, function: str) -> Fact:
    """Beside what NumPy alone takes for the maximum."""
    who = function if function in BARE else f"gpuact's {function}"
    values = _over(figures, CACHE, function, "np.maximum")
    return Fact(f"{who} over np.maximum(x, 0), in the cache", values, in_readme=True)


def judge(figures: Figures) -> list[Finding]:
    gpu = _gpu(figures)
    return [
        _dearer(
            *(figures, "6a", "sigmoid"),
            [
                _bare(figures, "sigmoid"),
                *_facts(figures, {place: named(place) for place in figures}),
            ],
        ),
        _dearer(
            *(figures, "6b", "tanh"),
            [_bare(figures, name) for name in ("tanh", "np.tanh", "relu")],
            remark="how a function is written decides, more than whether there is an exponential "
            "in it: gpuact's relu on NumPy is three passes, tanh one of vector instructions",
        ),
        Finding(
            "6c",
            "Backward needs no exponential: s(1 − s) and 1 − t² cost little more than ReLU's.",
            f"{_on_numpy(figures)}: time over that of relu_backward",
            [
                Check(
                    f"{f}_backward, {where}",
                    *(_over(figures, place, f"{f}_backward", "relu_backward"), "≤", DEARER),
                    "no more than one function differs from run to run",
                )
                for place, where in ((CACHE, "in the cache"), (MEMORY, "in memory"))
                for f in ("sigmoid", "tanh")
            ],
            [
                Fact(
                    f"NumPy, {f}_backward in memory, over a copy of as many bytes",
                    _copies(figures, MEMORY, f"{f}_backward"),
                )
                for f in ("relu", "sigmoid", "tanh")
            ],
        ),
        Finding(
            "6d",
            "On a GPU at the memory limit the exponential is free.",
            "CUDA graphs between device events, bfloat16: 2^26 elements from memory, 2^20 that L2 "
            f"holds, 2^12, and {CHAIN} in one kernel; time over that of relu",
            [
                check
                for place in gpu
                for f in ("sigmoid", "tanh")
                for check in _on_gpu(figures, place, f)
            ],
            [
                Fact(
                    f"{named(place)}, {f} over a copy of as many bytes", _copies(figures, place, f)
                )
                for place in gpu
                for f in ("relu", "sigmoid", "tanh")
            ],
            condition="at the memory limit; not where data lies in the cache",
            missing="" if gpu else "no GPU answered there",
        ),
    ]


def _on_gpu(figures: Figures, place: str, function: str) -> list[Check]:
    core = place.endswith("in memory")
    why = "within what a function differs from run to run"
    alone = Check(
        f"{function}, {named(place)}",
        *(_over(figures, place, function, "relu"), "≤", FREE, why),
        core=core,
    )
    chain = Check(
        f"{function} in the chain, {named(place)}",
        *(_over(figures, place, f"{function} fused", "relu fused"), "≤", FREE, why),
        core=False,
    )
    return [alone, chain]
