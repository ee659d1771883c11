"""`import gpuact` is cheap and safe everywhere: it loads NumPy and nothing else."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import gpuact

# Third-party packages loaded by a statement, as a list, from a Python that has loaded none before.
SCRIPT = """
import json, sys
before = set(sys.modules)
{statement}
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(name for name in loaded - sys.stdlib_module_names)))
"""


def loaded_by(statement: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(statement=statement)],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(run.stdout))


def test_import_loads_numpy_only() -> None:
    numpy_alone = loaded_by("import numpy")
    assert loaded_by("import gpuact") - numpy_alone == {"gpuact"}


@pytest.mark.parametrize(
    "statement",
    [
        "gpuact.sigmoid(numpy.zeros(3, numpy.float32))",
        "gpuact.relu([1, -2])",
        "gpuact.softmax(numpy.zeros((2, 3)))",
        "gpuact.describe('tanh')",
    ],
)
def test_numpy_arrays_load_no_other_array_library(statement: str) -> None:
    loaded = loaded_by(f"import numpy, gpuact; {statement}")
    assert not loaded & {"cupy", "torch", "triton", "rich", "matplotlib", "scipy"}


def test_every_public_name_is_there() -> None:
    assert sorted(gpuact.__all__) == sorted(set(gpuact.__all__))
    assert [name for name in gpuact.__all__ if not hasattr(gpuact, name)] == []


def test_backends_stays_a_function_when_its_namesake_folder_is_loaded() -> None:
    gpuact.relu([1.0])
    importlib.import_module("gpuact.backends.numpy")
    assert callable(gpuact.backends)
    assert "numpy" in gpuact.backends()
