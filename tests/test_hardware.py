"""What stands around the tests of a GPU: how they are run within a time, and where one faults."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

import pytest

pytest.importorskip("rich")
from bench import suites
from tests import hardware, harness
from tests.hardware import Part

ROOT = Path(__file__).parents[1]

# -- a context that is lost -----------------------------------------------------------------------

CONFTEST = """
import os
from pathlib import Path
from tests import conftest
from tests.conftest import pytest_runtest_protocol

mark = Path(f"lost-{os.getpid()}")
conftest.context_lost = lambda: "an illegal memory access" if mark.exists() else None
"""
FAULTS = """
import os
from pathlib import Path
import pytest

pytestmark = pytest.mark.cuda

def test_before(): pass

def test_faults(): Path(f"lost-{os.getpid()}").touch()

def test_after(): assert not Path(f"lost-{os.getpid()}").exists()
"""


def faulty(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(FAULTS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    cuda\n")
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pytest; sys.exit(pytest.main())"
    command = (sys.executable, "-c", path, "-q", "-p", "no:cacheprovider", *options, ".")
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_who_loses_the_context_is_named_and_nothing_runs_after_it(tmp_path: Path) -> None:
    done = faulty(tmp_path)
    assert done.returncode == 1
    assert "test_it.py::test_faults lost the GPU's context: an illegal memory access" in done.stdout
    assert "2 passed" in done.stdout


def test_another_process_goes_on_after_a_lost_context(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    done = faulty(tmp_path, "--numprocesses=1")
    assert done.returncode == 1
    assert "test_faults: an illegal memory access: this process ends" in done.stderr
    assert "crashed while running 'test_it.py::test_faults'" in done.stdout
    assert "1 failed, 3 passed" in done.stdout


def test_without_a_gpu_no_context_can_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "no_gpu", lambda backend: "there is none")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "cupy", object())
    assert harness.context_lost() is None


# -- the parts ------------------------------------------------------------------------------------

SUITE = """
import time
import pytest
def test_right(): pass
def test_wrong(): assert False
@pytest.mark.skip(reason="no need")
def test_skipped(): pass
def test_slow(): time.sleep({seconds})
"""


def part(tmp_path: Path, seconds: float) -> Part:
    (tmp_path / "test_it.py").write_text(dedent(SUITE).format(seconds=seconds))
    options = ("-p", "no:cacheprovider", "-c", str(tmp_path / "pytest.ini"))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return Part("some", "something", 1, (*hardware.PYTEST, "-ra", *options, str(tmp_path)))


def test_a_part_is_counted(tmp_path: Path) -> None:
    ended = hardware.run(part(tmp_path, 0), tmp_path, 60)
    assert (ended.how, ended.code) == ("failed", 1)
    assert ended.counts == {"passed": 2, "failed": 1, "skipped": 1}
    (line,) = ended.failures
    assert line.startswith("FAILED ") and line.endswith("test_it.py::test_wrong - assert False")
    assert ended.line.endswith("failed: 1 failed, 2 passed, 1 skipped")


def test_a_part_that_is_out_of_time_counts_as_far_as_it_came(tmp_path: Path) -> None:
    begin = time.monotonic()
    ended = hardware.run(part(tmp_path, 100), tmp_path, 5)
    assert time.monotonic() - begin < 30
    assert ended.how == "out of time"
    assert ended.counts == {"passed": 1, "failed": 1, "skipped": 1}


def test_what_a_part_has_left_behind_ends_with_it(tmp_path: Path) -> None:
    child = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()'], "
    child += "stdin=subprocess.PIPE).pid)"
    ended = hardware.run(Part("some", "", 1, (sys.executable, "-c", child)), tmp_path, 60)
    assert ended.how == "passed"
    stat = Path("/proc", (tmp_path / "some.log").read_text().strip(), "stat")
    for _ in range(100):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("it still runs")


def test_one_part_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suites, "gpu_answers", lambda: True)
    said = "import os; print(os.environ['GPUACT_REQUIRE_GPU'], os.environ.get('MORE'))"
    parts = (
        Part("fails", "", 1, (sys.executable, "-c", "raise SystemExit('a reason')")),
        Part("lacks", "", 1, ("no-such-program",)),
        Part("says", "", 1, (sys.executable, "-c", said), {"MORE": "more"}),
        Part("late", "", 0.5 / 60, (sys.executable, "-c", "import time; time.sleep(60)")),
    )
    kept, out = tmp_path / "record.json", tmp_path / "out"
    words = ["says", "fails", "lacks", "late", "--out", str(out), "--record", str(kept)]
    assert hardware.main(words, parts) == 1
    assert (out / "says.log").read_text() == "1 more\n"
    found = json.loads(kept.read_text())
    assert {name: told["how"] for name, told in found["parts"].items()} == {
        "fails": "failed",
        "lacks": "not run: there is no no-such-program on the PATH",
        "says": "passed",
        "late": "out of time",
    }
    assert found["kernels"]["triton rows"] and found["versions"]["gpuact"]
    assert "a reason" in capsys.readouterr().out
    assert hardware.main(["says", "--out", str(out)], parts) == 0
    assert hardware.main(["says", "--out", str(out), "--minutes", "0"], parts) == 1
    assert "not run: the 0 minutes were over" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        hardware.main(["what"], parts)
    assert "what came, there are fails, lacks, says, late" in capsys.readouterr().err


def test_without_a_gpu_that_is_all_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suites, "gpu_answers", lambda: False)
    monkeypatch.setattr(suites, "without_gpu", lambda: "cupy: no driver; triton: no driver")
    assert hardware.main(["--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().out == "no GPU answers: cupy: no driver; triton: no driver\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("each", hardware.PARTS, ids=lambda each: each.name)
def test_what_a_part_names_is_there(each: Part, pytestconfig: pytest.Config) -> None:
    marks = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    for option, word in pairwise(each.command):
        if option == "-m" and "pytest" in each.command and word != "pytest":
            assert set(word.split()) - {"and", "or", "not"} <= marks
        elif option == "-m":
            assert find_spec(word)
        elif word.endswith(".py"):
            assert (ROOT / word).exists()
