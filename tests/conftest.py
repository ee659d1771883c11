"""Fixtures of the tests at large: on whose arrays, in which dtype."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any

# torch's compiler loads it, and it must come before distutils.
with suppress(ImportError):
    import setuptools  # noqa: F401

# Set before torch is loaded: its threads spin against those of the other test processes, and the
# smallest operation then takes 20 ms.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

import gpuact
from tests.bounds import DTYPES
from tests.harness import REQUIRE_GPU, context_lost
from tests.libraries import LIBRARIES, Library, libraries

CROSSED = ("cupy-on-triton", "torch-cuda-on-cupy")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Without any GPU under GPUACT_REQUIRE_GPU=1: one sentence, not the failure of each test."""
    if not REQUIRE_GPU or hasattr(session.config, "workerinput"):
        return
    found = gpuact.backends()
    reasons = {name: found[name].reason for name in ("cupy", "triton")}
    if all(reasons.values()):
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        pytest.exit(f"GPUACT_REQUIRE_GPU=1 came, and no GPU answers: {why}", returncode=1)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Choose the quick ones of the tests that a GPU or an interpreter runs; the rest is slow.

    Tests marked `every` run in each dtype on each backend or library, unless an interpreter runs
    them and they are marked `long`, which makes them slow. Of the others, what differs
    between two dtypes, or between an array's own backend and another library's, is little: on a GPU
    (`cuda`) one dtype and each library's own backend will do, and get the mark `gpu`. Compiling
    takes long for PTX's interpreter and Triton's, and Python in them. They run every sixth case
    of one dtype, and of each other (of tests marked `many`, of this one too) every eighteenth,
    other ones for each; of what they leave out of those others, two of three are not `slow` but
    `deep`, the whole products. Of tests of a library they run every sixth.
    """
    interpreters = ("-ptx", "-interpreter")
    seen: Counter[tuple[str, str, str]] = Counter()
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        dtype = params.get("dtype", "float32")
        executor, lib = str(params.get("executor", "")), str(params.get("lib", ""))
        left_out, exempt = "slow", ("every", "slow", "deep")
        if item.get_closest_marker("cuda"):
            quick = dtype == "float32" and lib not in CROSSED
        elif executor.endswith(interpreters) and dtype in DTYPES:
            kind = (item.location[2].partition("[")[0], executor, dtype)
            often = dtype == "float32" and not item.get_closest_marker("many")
            step, first = (6, 0) if often else (18, list(DTYPES).index(dtype) * 4)
            chosen = seen[kind] % step == first
            quick = chosen
            if item.get_closest_marker("long"):
                quick, exempt = False, ("slow", "deep")
            left_out = "slow" if chosen or often or seen[kind] % 3 == 1 else "deep"
            seen[kind] += 1
        elif lib.endswith(interpreters):
            kind = (item.location[2].partition("[")[0], lib, "")
            quick = seen[kind] % 6 == 0
            seen[kind] += 1
        else:
            quick = True
        if not (quick or any(map(item.get_closest_marker, exempt))):
            item.add_marker(left_out)
        if item.get_closest_marker("cuda") and not item.get_closest_marker("slow"):
            item.add_marker("gpu")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A kernel that faults takes the GPU's context along: no test after it could pass here.

    One of xdist's processes ends with it; another goes on, and the test counts as failed.
    """
    done = yield
    if item.get_closest_marker("cuda") and (why := context_lost()):
        if hasattr(item.config, "workerinput"):
            print(f"{item.nodeid}: {why}: this process ends", file=sys.__stderr__, flush=True)
            os._exit(1)
        item.session.shouldfail = f"{item.nodeid} lost the GPU's context: {why}"
    return done


@pytest.fixture(params=libraries())
def lib(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """Every library of arrays; another choice by `indirect=True` and tests.libraries.libraries."""
    library = LIBRARIES[request.param][0](monkeypatch)
    with ExitStack() as stack:
        if library.backend is not None:
            stack.enter_context(gpuact.using(library.backend))
        if library.executor.gpu:
            stack.enter_context(another_stream(library))
        if library.family == "interpreter":  # it is NumPy that computes, and warns of infinities
            stack.enter_context(np.errstate(all="ignore"))
        yield library


def another_stream(library: Library) -> AbstractContextManager[Any]:
    """Not the default stream, on which kernels go that forget to ask which is the caller's."""
    if library.name.startswith("torch"):
        import torch

        stream: AbstractContextManager[Any] = torch.cuda.stream(torch.cuda.Stream())
        return stream
    import cupy

    return cupy.cuda.Stream(non_blocking=True)


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which kernels were executed and compiled: what tests recorded by record_property."""
    for word in ("executed", "compiled"):
        reports = terminalreporter.stats.get("passed", [])
        found = [value for r in reports for key, value in r.user_properties if key == word]
        if found:
            terminalreporter.section(f"kernels {word}")
        for where, names in sorted(found):
            counts = Counter(names)
            each = (f"{name} ({n})" if n > 1 else name for name, n in sorted(counts.items()))
            terminalreporter.line(f"{where}: {len(names)}: {', '.join(each)}")
    _print_tables(terminalreporter)


def _print_tables(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests recorded as `table`: the table's title, its columns, and a row."""
    tables: dict[str, list[tuple[str, ...]]] = {}
    for report in (r for of in ("passed", "failed") for r in terminalreporter.stats.get(of, [])):
        for key, value in report.user_properties:
            if key == "table":
                title, columns, row = value
                tables.setdefault(title, [tuple(columns)]).append(tuple(row))
    for title, (columns, *rows) in sorted(tables.items()):
        terminalreporter.section(title)
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for row in (columns, *sorted(rows)):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            terminalreporter.line("  ".join(cells).rstrip())
