"""What the tests of the benchmark share: small cases, planted providers, what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench import cases, measure, providers, suite, tables

Array = Any

SIZES = (tables.QUICK, tables.FULL)
ON_GPU = {
    "elementwise": tables.elementwise_on_gpu,
    "rows": tables.rows_on_gpu,
    "loss": tables.loss_on_gpu,
    "fused": tables.fused_on_gpu,
    "stats": tables.stats_on_gpu,
}
ON_CPU = {
    "elementwise": tables.elementwise_on_cpu,
    "rows": tables.rows_on_cpu,
    "loss": tables.loss_on_cpu,
    "fused": tables.fused_on_cpu,
    "stats": tables.stats_on_cpu,
    "cpu": tables.cpu,
}
TABLES = {
    **{f"{name} on a GPU, {sizes}": of(sizes) for name, of in ON_GPU.items() for sizes in SIZES},
    **{f"{name} on a CPU, {sizes}": of(sizes) for name, of in ON_CPU.items() for sizes in SIZES},
    "held": (*tables.HELD, tables.CALL),
}

COPY, CUPY, TRITON = "copy", "gpuact on CuPy", "gpuact on Triton"


# -- cases ----------------------------------------------------------------------------------------


def small(case: cases.Case) -> cases.Case:
    """The case on arrays that cost nothing, of lengths that all differ."""
    lengths = (4, 7) if isinstance(case, cases.Watched) else (5, 7, 3, 2)  # moments are 5
    return replace(case, shape=lengths[: len(case.shape)])


# What differs in its size alone is one case here.
EVERY = {small(case).name: small(case) for table in TABLES.values() for case in table}

CHAINS = {
    case.name: case
    for case in tables.fused_on_gpu("quick")
    if isinstance(case, cases.Chain) and case.compiled
}

WATCHED = {case.name: case for case in EVERY.values() if isinstance(case, cases.Watched)}

SIGMOID = cases.Case("sigmoid", "float32", (1000,))


def chain(text: str, backward: bool = False) -> cases.Chain:
    return next(c for c in CHAINS.values() if c.text == text and c.backward == backward)


def outputs(result: Any) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)


# -- providers ------------------------------------------------------------------------------------

RIVALS = {provider.name: provider for provider in providers.ON_CPU}


def planted(function: Any, name: str = "planted", **more: Any) -> providers.Provider:
    return providers.Provider(name, "numpy", lambda: None, lambda case: function, **more)


def on_torch(function: Any) -> providers.Provider:
    return replace(RIVALS["torch"], spell=lambda case: function)


def raising(x: Array) -> Array:
    raise RuntimeError("no such kernel\nand a page of trace")


def rows_of(
    case: cases.Case,
    *who: providers.Provider,
    place: measure.Host | None = None,
    at: Callable[[str], object] = lambda who: None,
) -> dict[str, suite.Row]:
    """The rows by provider; all of them on one place, or each on his own."""
    places = {one.place: place or measure.PLACES[one.place]() for one in who}
    found = suite.run_case(case, who, places, 0.001, at)
    assert len({row.provider for row in found}) == len(found)
    return {row.provider: row for row in found}


def judged(case: cases.Case, provider: providers.Provider) -> tuple[str, str]:
    """What the suite says to a provider's results."""
    arrays = cases.inputs(case)
    judge, _ = suite._judge(case, provider, arrays)
    place = measure.PLACES[provider.place]()
    held = [place.copy(place.put(array)) for array in arrays.values()]  # some write over theirs
    function = provider.spell(case)
    assert function is not None
    expected = suite.reference(case, arrays)
    found = suite.checked(case, place, lambda: function(*held, **case.options), expected, judge)
    return found.status, found.reason


# -- rows of which nothing was measured -----------------------------------------------------------


def timing(seconds: float) -> measure.Timing:
    return measure.Timing(seconds, seconds, seconds, 7)


def row(
    case: str, provider: str, seconds: float, moved: int = 3_000_000_000, **more: Any
) -> suite.Row:
    return suite.Row(case, moved, "", provider, "timed", timing=timing(seconds), **more)
