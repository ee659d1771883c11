"""The examples in gpuact's docstrings run and give what they show."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import pytest

import gpuact

SKIPPED = ("gpuact.kernels", "gpuact.__main__")  # need a GPU's packages; runs when imported
MODULES = [
    module.name
    for module in pkgutil.walk_packages(gpuact.__path__, "gpuact.", onerror=lambda name: None)
    if not module.name.startswith(SKIPPED)
]


@pytest.mark.parametrize("name", ["gpuact", *MODULES])
def test_examples(name):
    if name.startswith("gpuact.torch"):
        pytest.importorskip("torch")
    module = import_module(name)
    with gpuact.using("numpy"):
        failures, _ = doctest.testmod(module, verbose=False, raise_on_error=False)
    assert failures == 0


def examples_of(name: str) -> list[doctest.Example]:
    finder = doctest.DocTestFinder(recurse=False)
    return [e for test in finder.find(getattr(gpuact, name), name) for e in test.examples]


# but what others raise or give
CALLABLE = [name for name in gpuact.__all__ if name not in ("BackendError", "ActivationStats")]


@pytest.mark.parametrize("name", CALLABLE)
def test_every_public_function_shows_a_result(name):
    """An example that calls the function and says what comes out."""
    examples = examples_of(name)
    assert any(f"gpuact.{name}(" in e.source for e in examples)
    assert any(e.want.strip() for e in examples)


def test_the_examples_are_looked_at():
    """A wrong expectation is found: the runner does compare."""

    def wrong() -> None:
        """
        >>> 1 + 1
        3
        """

    test = doctest.DocTestFinder().find(wrong, "wrong", globs={})[0]
    runner = doctest.DocTestRunner(verbose=False)
    assert runner.run(test, out=lambda text: None).failed == 1
