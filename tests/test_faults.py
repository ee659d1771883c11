"""Faults planted in compiled kernels: what the other tests would say if a kernel were wrong.

Every barrier of a row kernel is removed in turn, and every mask is made to reach one element too
far: the interpreter's race and bounds checks, or the comparison with the truth, must notice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests import harness
from tests.harness import Executor
from tests.ptxrun import PTXError
from tests.test_backends import Losses, ce_inputs, run_elementwise, run_reduce, run_rows

BARRIER = re.compile(r"(?:bar|barrier)\.(?:cta\.)?sync[^;]*;")


@pytest.fixture(params=harness.executors("cupy-ptx", "triton-ptx"))
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Executor:
    return harness.make(request.param, monkeypatch)


def softmax(executor: Executor) -> None:
    x = np.random.default_rng(0).standard_normal((3, 3000, 1)).astype(np.float32)
    run_rows(executor, "softmax", [x])


def softmax_backward(executor: Executor) -> None:
    dy, y = np.random.default_rng(0).uniform(0, 1, (2, 3, 3000, 1)).astype(np.float32)
    run_rows(executor, "softmax_backward", [dy, y])


def cross_entropy(executor: Executor) -> None:
    Losses(executor, ce_inputs((3, 3000, 1), "float32", {})).forward()


def with_grad(executor: Executor) -> None:
    Losses(executor, ce_inputs((3, 3000, 1), "float32", {"label_smoothing": 0.1})).with_grad()


def sums(executor: Executor) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4000)).astype(np.float32)
    run_reduce(executor, "linear_dbias", [x], np.empty((3, 1), np.float32))


def instead(k: int, text: str, counts: list[int]) -> harness.Change:
    """Replaces barrier k of every kernel that has so many; counts: how many there were."""

    def change(ptx: str) -> str:
        spans = [m.span() for m in BARRIER.finditer(ptx)]
        counts.append(len(spans))
        return ptx if k >= len(spans) else ptx[: spans[k][0]] + text + ptx[spans[k][1] :]

    return change


def fault(executor: Executor, work: Callable[[Executor], None], change: harness.Change) -> str:
    """What is reported when the work is done with a changed kernel; "" if nothing is."""
    executor.options["change"] = change
    try:
        work(executor)
    except (PTXError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


# Barriers that can go one at a time. Triton's compiler places its own, one more than there need be;
# in CUDA a row with two reductions has four, of which any one orders what the others order, too.
SPARE = {("triton", "with_grad"): 1, ("cupy", "with_grad"): 2}


@pytest.mark.parametrize("work", (softmax, softmax_backward, cross_entropy, with_grad, sums))
def test_each_barrier_is_needed(executor, work):
    counts: list[int] = []
    assert not fault(executor, work, instead(10**9, "", counts))
    reached = [
        k
        for k in range(max(counts))
        if "trap" in fault(executor, work, instead(k, "trap;", counts))
    ]
    assert reached, "warps that work together meet at barriers"
    missed = [k for k in reached if not fault(executor, work, instead(k, "", counts))]
    assert len(missed) <= SPARE.get((executor.family, work.__name__), 0), (missed, reached)


COMPARISON = re.compile(r"setp\.(lt|gt|le|ge)\.([su])(32|64)")
WIDER = {"lt": "le", "gt": "ge", "le": "lt", "ge": "gt"}


def off_by_one(ptx: str) -> Iterator[str]:
    """The text with one comparison of integers made to hold, or to fail, on equality as well."""
    for m in COMPARISON.finditer(ptx):
        yield ptx[: m.start(1)] + WIDER[m.group(1)] + ptx[m.end(1) :]


def elementwise(executor: Executor) -> None:
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    run_elementwise(executor, "sigmoid", [x], [], np.empty_like(x))


def rows(executor: Executor) -> None:
    x = np.random.default_rng(0).standard_normal((2, 1000, 1)).astype(np.float32)
    run_rows(executor, "softmax", [x])


@pytest.mark.parametrize("work", (elementwise, rows))
def test_a_mask_off_by_one_is_noticed(executor, work):
    texts: list[str] = []
    assert not fault(executor, work, lambda ptx: texts.append(ptx) or ptx)
    faults = (fault(executor, work, lambda ptx, text=t: text) for t in off_by_one(texts[-1]))
    assert any("out of bounds" in found for found in faults)
