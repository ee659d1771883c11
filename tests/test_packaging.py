"""What users without the checkout get: the wheel's files, and that they work on their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_string
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import gpuact

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = find_spec("setuptools")
pytestmark = pytest.mark.skipif(
    SETUPTOOLS is None or find_spec("pip") is None, reason="builds with setuptools and pip"
)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The output of a command that must succeed, outside the checkout."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={
            **os.environ,
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(source: Path, into: Path) -> Path:
    """Build without the network: with this environment's setuptools, and no dependencies."""
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(into)]
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=into.parent)
    (wheel,) = into.glob("gpuact-*.whl")
    return wheel


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: a build writes beside them."""
    tree = tmp_path_factory.mktemp("packaging") / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("gpuact", "kernels", "tests", "bench"):
        without_caches = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=without_caches)
    return tree


@pytest.fixture(scope="session")
def wheel(tree: Path) -> Path:
    return build_wheel(tree, tree.parent / "wheel")


@pytest.fixture(scope="session")
def sdist(tree: Path) -> Path:
    into = tree.parent / "sdist"
    call = "import setuptools.build_meta, sys; setuptools.build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", call, into, cwd=tree)
    (archive,) = into.glob("gpuact-*.tar.gz")
    return archive


def site_packages(python: Path) -> Path:
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(run(python, "-c", where, cwd=python.parent).strip())


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The Python of an environment that holds NumPy and ml_dtypes, and nothing else."""
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    for pattern in ("numpy*", "ml_dtypes*"):
        for package in Path(np.__file__).parents[1].glob(pattern):
            (site_packages(python) / package.name).symlink_to(package)
    return python


def install(python: Path, *what: str | Path, **environment: str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps"]
    run(*pip, *what, cwd=python.parent, **environment)


def test_the_wheel_holds_each_file_once_and_no_other(tree: Path, wheel: Path) -> None:
    sources = [*(tree / "gpuact").rglob("*.py"), *(tree / "kernels").rglob("*.py")]
    sources += [tree / "gpuact/py.typed", *(tree / "kernels").rglob("*.cuh")]
    names = (path.relative_to(tree).as_posix() for path in sources)
    expected = {f"gpuact/{name}" if name.startswith("kernels/") else name for name in names}

    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
    assert len(files) == len(set(files))
    packaged = {name for name in files if ".dist-info/" not in name}
    assert packaged == expected
    assert {"gpuact/py.typed", "gpuact/kernels/cupy/formulas.cuh"} <= packaged
    assert {name.partition("/")[0] for name in packaged} == {"gpuact"}


def test_the_wheel_says_what_it_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(name).decode())
        assert name.replace("METADATA", "licenses/LICENSE") in archive.namelist()
    needs = metadata.get_all("Requires-Dist", [])
    assert {need.partition(">")[0] for need in needs if "extra" not in need} == {
        "numpy",
        "ml_dtypes",
    }
    extras = {"cuda12", "cuda13", "torch", "cli", "bench", "test"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras
    assert metadata["Version"] == gpuact.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"


def test_the_sdist_builds_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert "kernels/cupy/formulas.cuh" in files
    assert not [name for name in files if name.startswith(("tests", "bench", "gpuact/kernels"))]
    again = build_wheel(sdist, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


# What any way of installing must give.
USE = """
import importlib.util, sys
from pathlib import Path
import ml_dtypes, numpy as np
import gpuact

assert Path(gpuact.__file__).parent == Path(sys.argv[1]) / "gpuact"
for language, text in (("cupy", "formulas.cuh"), ("triton", "formulas.py")):
    folder = Path(importlib.util.find_spec(f"gpuact.kernels.{language}").origin).parent
    assert "sigmoid" in (folder / text).read_text()

for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
    x = np.array([[-2, 0, 3], [1, 1, 1]], dtype)
    assert gpuact.relu(x).tolist() == [[0, 0, 3], [1, 1, 1]]
    assert gpuact.sigmoid(x).dtype == x.dtype and gpuact.sigmoid(x)[0, 1] == 0.5
    assert abs(gpuact.softmax(x).astype(np.float64).sum(-1) - 1).max() < 0.01
    loss, dx = gpuact.cross_entropy_with_grad(x, np.array([2, 0]))
    assert abs(loss - (0.0550 + 1.0986) / 2) < 0.001 and dx.dtype == x.dtype
assert set(gpuact.backends()) == {"numpy", "cupy", "triton"}
"""

# What an installed gpuact must not bring along.
ABSENT = """
import importlib.util, sys
sys.exit(" ".join(name for name in sys.argv[1:] if importlib.util.find_spec(name)) or None)
"""


def test_the_wheel_works_with_its_hard_dependencies_alone(wheel: Path, python: Path) -> None:
    install(python, wheel)
    outside = python.parent
    run(python, "-W", "error", "-c", USE, site_packages(python), cwd=outside)
    absent = ("torch", "cupy", "triton", "rich", "matplotlib", "scipy", "kernels", "tests", "bench")
    run(python, "-c", ABSENT, *absent, cwd=outside)


def test_the_command_line_names_the_extra_that_it_misses(wheel: Path, python: Path) -> None:
    install(python, wheel)
    command = [python, "-m", "gpuact", "list"]
    done = subprocess.run(command, cwd=python.parent, capture_output=True, text=True)
    assert done.returncode != 0
    assert "gpuact[cli]" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_editable_install_finds_the_kernels(tree: Path, python: Path) -> None:
    # The empty environment borrows setuptools for the build, not for the use.
    borrowed = str(Path(SETUPTOOLS.origin).parents[1])
    install(python, "--no-build-isolation", "--editable", tree, PYTHONPATH=borrowed)
    run(python, "-W", "error", "-c", USE, tree, cwd=python.parent)
    run(python, "-c", ABSENT, "kernels", "tests", "bench", cwd=python.parent)


def test_a_bare_checkout_finds_the_kernels(tree: Path, python: Path) -> None:
    assert (tree / "gpuact" / "kernels").readlink() == Path("../kernels")
    run(python, "-W", "error", "-c", USE, tree, cwd=tree)
