"""The ledger of what is proved: every kernel is in it, and an edit of its sources takes it out.

The results are built here; nothing is timed.
"""

from __future__ import annotations

import ast
import inspect
import io
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuact
from gpuact.catalogue import FUNCTIONS

pytest.importorskip("rich")
from rich.console import Console

from bench import suites
from bench.ledger import (
    BACKENDS,
    DTYPES,
    Cell,
    Ledger,
    draw,
    failures,
    kernels,
    ledger,
    print_ledger,
)
from bench.measure import Timing
from bench.result import FAMILIES, ROOT, Result, kernel_hash, write
from bench.suite import Row

KERNELS = ROOT / "kernels"
TODAY = dict.fromkeys(FAMILIES, "today")
# Compiled by torch's own compiler from the formulas, or the list of the others: timed by no case.
UNTIMED = ("triton/__init__.py", "triton/inline.py")

GPU = {"gpus": [{"name": "a GPU"}]}

# Who runs nothing on a GPU
OTHERS = {"ActivationStats", "BackendError", "Dropout", "asarray", "backends", "describe", "using",
          "warmup"}  # fmt: skip

# What of a backend runs the kernels of each family
ENTRIES = {
    "elementwise": {"elementwise"},
    "fused": {"fused", "fused_backward"},
    "rows": {"rows"},
    "loss": {
        *("cross_entropy", "cross_entropy_backward", "cross_entropy_with_grad"),
        *("target_weight", "reduce"),
    },
    "stats": {"observe"},
}


def row(
    function: str = "softmax",
    dtype: str = "bfloat16",
    backend: str = "cupy",
    status: str = "timed",
    share: float = 0.9,
    case: str = "",
    moved: int = 4,
) -> Row:
    about = (case or f"{function} {dtype}", moved, "4N", f"gpuact on {backend}", status)
    timing = Timing(1.0, 1.0, 1.0, 7) if status == "timed" else None
    fields = {"function": function, "dtype": dtype, "backend": backend, "timing": timing}
    return Row(*about, "" if timing else "no", share_of_copy=share, **fields)


def result(*rows: Row, day: int = 1, hashes: Mapping[str, str] = TODAY, **fields: Any) -> Result:
    given: dict[str, Any] = {"machine": GPU, "settings": {"suite": "gpu"}, **fields}
    given.setdefault("commit", f"{day:040}")
    return Result(f"2026-11-{day:02}T10:00:00+00:00", kernels=hashes, rows=rows, **given)


def drawn(*results: Result) -> Ledger:
    return ledger({f"{k}.json": each for k, each in enumerate(results)}, TODAY)


def cell(found: Ledger, function: str = "softmax", dtype: str = "bfloat16") -> Cell:
    (one,) = (
        c for c in found.cells if (c.function, c.backend, c.dtype) == (function, "cupy", dtype)
    )
    return one


def all_rows() -> list[Row]:
    return [row(f, d, b) for f in kernels() for b in BACKENDS for d in DTYPES]


# -- the kernels and their families ---------------------------------------------------------------


def test_every_public_function_that_runs_a_kernel_is_in_it() -> None:
    assert set(gpuact.__all__) - set(kernels()) == OTHERS
    assert set(kernels()) < set(gpuact.__all__)
    assert {f"{b} {kind}" for b in BACKENDS for kind in kernels().values()} == set(FAMILIES)


REQUIRED: dict[str, Any] = {
    **dict.fromkeys(("x", "y", "dy", "logits"), np.full((2, 3), 0.5, np.float32)),
    "target": np.array([0, 2]),
    "lse": np.zeros(2, np.float32),
    "dloss": np.float32(1),
    "scale": 1.0,
    "bias": 0.0,
    "weight": np.ones(1, np.float32),
    "activation": "relu",
}


@pytest.mark.parametrize("name", kernels())
def test_a_function_is_in_the_family_whose_kernels_it_runs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = import_module("gpuact.backends.numpy")
    ran = []

    def noted(entry: str, run: Any, *args: Any, **options: Any) -> Any:
        ran.append(entry)
        return run(*args, **options)

    for entry in set().union(*ENTRIES.values()):
        monkeypatch.setattr(backend, entry, partial(noted, entry, getattr(backend, entry)))
    function = getattr(gpuact, name)
    parameters = inspect.signature(function).parameters.values()
    given = {p.name: REQUIRED[p.name] for p in parameters if p.default is p.empty}
    with gpuact.using("numpy"):
        function(**given)
    assert ran and set(ran) <= ENTRIES[kernels()[name]]


def test_families_name_every_source_and_none_that_is_not_there() -> None:
    there = {p.relative_to(KERNELS).as_posix() for p in KERNELS.rglob("*.*") if p.is_file()}
    there = {name for name in there if name.endswith((".py", ".cuh"))}
    named = {name for names in FAMILIES.values() for name in names}
    assert named | set(UNTIMED) == there
    assert not named & set(UNTIMED)


# Read by a module of the family for the kernels of another: see the test below
NOT_READ = {"cupy elementwise": {"cupy/philox.cuh", "cupy/fused.cuh"}}


def sources(module: Path) -> Iterator[str]:
    """What a module of kernels needs beside itself: modules it imports, headers it names."""
    folder = module.parent
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield f"{node.module or '__init__'}.py"
            yield from (f"{a.name}.py" for a in node.names if (folder / f"{a.name}.py").exists())
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            header = f"{node.value.removesuffix('.cuh')}.cuh"
            if "\n" not in header and (folder / header).exists():
                yield header


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_all_that_its_modules_read(family: str) -> None:
    names = set(FAMILIES[family])
    for name in (n for n in names if n.endswith(".py")):
        module = KERNELS / name
        needed = {f"{module.parent.name}/{source}" for source in sources(module)}
        assert needed - NOT_READ.get(family, set()) <= names, name


def test_headers_are_found_where_they_are_named() -> None:
    assert {"rows.cuh", "entry.cuh", "__init__.py"} <= set(sources(KERNELS / "cupy/rows.py"))
    assert {"philox.cuh", "reduce.py"} <= set(sources(KERNELS / "cupy/fused.py"))
    assert set(sources(KERNELS / "triton/fused.py")) == {"elementwise.py", "formulas.py"}


def test_an_elementwise_kernel_has_nothing_of_dropout() -> None:
    pytest.importorskip("cupy")
    elementwise = import_module("gpuact.kernels.cupy.elementwise")
    for dropout, has in ((None, False), (False, True)):
        text = elementwise._headers("relu", dropout, 8)
        for name in NOT_READ["cupy elementwise"]:
            assert ((KERNELS / name).read_text(encoding="utf-8") in text) == has


LOADED = ("kernels", "_kernels()")  # how a backend spells the modules of kernels

# Kernels of rows are looked up by name in one of two modules, and each family has its own.
BY_NAME = {"rows": {"cross_entropy"}, "loss": {"softmax"}}


def modules(backend: str, entries: set[str]) -> set[str]:
    """The modules of kernels that a backend's functions use, and all that they call there."""
    tree = ast.parse((ROOT / "gpuact/backends" / f"{backend}.py").read_text(encoding="utf-8"))
    bodies = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    there = {path.stem for path in (KERNELS / backend).glob("*.py")}
    found: set[str] = set()
    seen, ahead = {"_kernels"}, set(entries)  # which names all of them
    while ahead:
        seen.add(name := ahead.pop())
        for node in ast.walk(bodies[name]):
            if isinstance(node, ast.Name) and node.id in bodies.keys() - seen:
                ahead.add(node.id)
            elif isinstance(node, ast.Attribute) and node.attr in there:
                found |= {node.attr} if ast.unparse(node.value) in LOADED else set()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_all_that_its_backend_uses(family: str) -> None:
    backend, kind = family.split()
    used = modules(backend, ENTRIES[kind]) - BY_NAME.get(kind, set())
    assert {f"{backend}/{name}.py" for name in used} <= set(FAMILIES[family])


# -- the states -----------------------------------------------------------------------------------

OLD = {**TODAY, "cupy rows": "yesterday"}
OTHER = {**TODAY, "cupy loss": "yesterday"}


@pytest.mark.parametrize(
    ("results", "state"),
    [
        ([], "missing"),
        ([result(row())], "proved"),
        ([result(row(), hashes=OTHER)], "proved"),  # another family's sources have changed
        ([result(row(), hashes=OLD)], "stale"),
        ([result(row(), hashes={})], "stale"),
        ([result(row(dtype="float32"))], "missing"),
        ([result(row(backend="triton"))], "missing"),
        ([result(row(backend=""))], "missing"),
        ([result(row("softmax_backward"))], "missing"),
        ([result(row(status="not run"))], "missing"),
        *(([result(row(status=status))], "wrong") for status in ("wrong", "failed", "lost")),
        ([result(row(status="wrong"), hashes=OLD)], "missing"),
        ([result(row(status="wrong")), result(row(), day=2)], "proved"),
        ([result(row()), result(row(status="wrong"), day=2)], "wrong"),
        ([result(row(), day=2), result(row(status="wrong"), day=1)], "proved"),  # by their time
        ([result(row()), result(row(status="wrong"), day=2, hashes=OLD)], "proved"),
        ([result(row(), hashes=OLD), result(row(status="wrong"), day=2)], "wrong"),
        ([result(row()), result(row(status="not run"), day=2)], "proved"),
        ([result(row(status="wrong")), result(row(status="not run"), day=2)], "wrong"),
        # a fault in one case stands, whatever others do
        ([result(row(status="wrong")), result(row(case="another"), day=2)], "wrong"),
        ([result(row(), row(status="lost", case="another"))], "wrong"),
    ],
)
def test_states(results: list[Result], state: str) -> None:
    found = drawn(*results)
    assert cell(found).state == state
    assert (cell(found) in failures(found)) == (state != "proved")
    assert {c.state for c in found.cells if c.family != "cupy rows"} <= {"missing", "proved"}


def test_a_cell_has_the_largest_case_s_share_and_the_newest_proof() -> None:
    """Small ones may be quicker than a copy, which is launched as well."""
    found = cell(
        drawn(
            result(row(share=0.99), hashes=OLD),
            result(row(share=0.8), day=2),
            result(row(share=0.95), row(share=1.7, case="another", moved=1), day=3),
            result(row(share=0.9), day=4, commit="abcdef0123456789", changed_since_commit=True),
            result(row(share=1.0), day=5, hashes=OLD),
        )
    )
    assert found == Cell(
        *("softmax", "cupy", "bfloat16", "cupy rows", "proved"),
        share=0.9,
        file="3.json",
        commit="abcdef012 and changes",
        date="2026-11-04",
    )
    stale = cell(drawn(result(row(), day=1, hashes=OLD), result(row(), day=2, hashes=OLD)))
    assert (stale.share, stale.file, stale.date) == (None, "1.json", "2026-11-02")
    wrong = cell(drawn(result(row(status="failed"))))
    assert (wrong.share, wrong.reason) == (None, "softmax bfloat16: failed: no")


def test_other_dtypes_are_there_where_a_result_has_them() -> None:
    assert {c.dtype for c in drawn().cells} == set(DTYPES)
    found = drawn(result(row(dtype="float64"), hashes=OLD))
    assert [c.function for c in found.cells if c.dtype == "float64"] == ["softmax"]
    assert cell(found, dtype="float64").state == "stale"


def test_all_of_it_is_proved_where_every_kernel_was_timed() -> None:
    found = drawn(result(*all_rows()))
    assert failures(found) == []
    assert len(found.cells) == 30 * 2 * 3


# -- sources that change --------------------------------------------------------------------------


def hashes(folder: Path) -> dict[str, str]:
    return {family: kernel_hash(names, folder) for family, names in FAMILIES.items()}


@pytest.mark.parametrize(
    "name", sorted({name for names in FAMILIES.values() for name in names} | set(UNTIMED))
)
def test_an_edit_makes_stale_what_depends_on_it_and_nothing_else(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(KERNELS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = {"run.json": result(*all_rows(), hashes=hashes(folder))}
    assert failures(ledger(before, hashes(folder))) == []
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    found = ledger(before, hashes(folder))
    touched = {family for family, names in FAMILIES.items() if name in names}
    assert {c.family for c in found.where("stale")} == touched
    assert {c.family for c in found.where("proved")} == set(FAMILIES) - touched


# -- files, and telling ---------------------------------------------------------------------------


def said(found: Ledger) -> str:
    text = io.StringIO()
    print_ledger(Console(file=text, width=100, markup=False, highlight=False), found)
    assert max(map(len, text.getvalue().splitlines())) <= 100
    return text.getvalue()


def test_what_is_read_and_what_is_passed_over(tmp_path: Path) -> None:
    write(result(row(), day=2), tmp_path / "a.json")
    write(result(row(share=0.5), day=1), tmp_path / "b.json")
    write(result(row("relu"), sample=True), tmp_path / "c.json")
    cpu = result(row("relu"), machine={"processor": "a processor"})
    write(cpu, tmp_path / "d.json")
    (tmp_path / "e.json").write_text('{"schema": 1, "rows": []}', encoding="utf-8")
    (tmp_path / "f.json").write_text("{", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not one of them", encoding="utf-8")
    found = draw(tmp_path, TODAY)
    assert list(found.files) == ["b.json", "a.json"]
    assert (cell(found).file, cell(found).share) == ("a.json", 0.9)
    assert cell(found, "relu").state == "missing"
    sample, processor, old, broken = found.passed_over
    assert sample == "c.json: a sample, which proves nothing."
    assert processor == "d.json: of a processor, which is no GPU."
    assert "e.json: schema 1 came" in old
    assert "f.json: not JSON" in broken
    text = said(found)
    assert "b.json: a GPU, 2026-11-01, commit 000000000: the newest timing of 0" in text
    assert "a.json: a GPU, 2026-11-02, commit 000000000: the newest timing of 1" in text
    assert all(name in text for name in ("c.json", "d.json", "e.json", "f.json"))


def test_a_folder_without_results_proves_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not there"):
        found = draw(folder)
        assert {c.state for c in found.cells} == {"missing"}
        assert "No result of a GPU was read." in said(found)


def test_the_table_says_it_without_colour() -> None:
    rows = [row(share=0.934), row("relu", dtype="float32", status="lost", case="relu float32 2^27")]
    old = result(row("cross_entropy", dtype="float16"), hashes=OTHER)
    text = said(drawn(result(*rows), old))
    table = text.partition("\n\n")[0].splitlines()[2:]
    lines = {line.split()[0]: line.split()[1:] for line in table}
    assert lines["softmax"] == ["–", "✓", "93%", "–", "–", "–", "–"]
    assert lines["relu"] == ["–", "–", "WRONG", "–", "–", "–"]
    assert lines["cross_entropy"] == ["stale", "–", "–", "–", "–", "–"]
    assert "proved, 1 of 180: " in text
    assert "missing, 177 of 180: " in text
    assert "relu cupy float32: relu float32 2^27: lost: no" in text


def test_functions_of_a_record_stand_together() -> None:
    names = list(kernels())
    assert names[:3] == ["linear", "linear_backward", "linear_derivative"]
    assert names[-4:-2] == ["fused", "fused_backward"]
    assert {name for name, kind in kernels().items() if kind == "stats"} == {*names[-2:]}
    assert [kernels()[f"{f}_backward"] == "fused" for f in FUNCTIONS] == [
        bool(record.sums) for record in FUNCTIONS.values()
    ]


def test_a_quick_run_on_a_gpu_proves_all_that_runs() -> None:
    """Every cell of the table has a case: one run without a fault leaves none of it missing."""
    cases = suites.Asked("all", on_gpu=True).plan().cases
    assert {(case.function, case.dtype) for case in cases} == {
        (function, dtype) for function in kernels() for dtype in DTYPES
    }
