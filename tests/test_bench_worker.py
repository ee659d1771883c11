"""The process that measures may die, hang or lose its device: the suite goes on, and says so."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("rich")
pytest.importorskip("torch")
from bench import result, run, worker
from bench.suites import Job
from bench.tables import COPY
from tests import fake_gpu
from tests.fake_gpu import OURS, Asked

ROOT = Path(__file__).resolve().parents[1]
RELU, SIGMOID = fake_gpu.CASES[0].name, fake_gpu.CASES[1].name
TIMED = [COPY, "gpuact on CuPy", "gpuact on Triton", "torch"]


def statuses(found: worker.Found) -> dict[str, str]:
    return {row.provider: row.status for row in found["rows"]}


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ("a crashing one", "its process died of SIGSEGV"),
        pytest.param("a hanging one", "no word of it for 8 s", marks=pytest.mark.slow),
        pytest.param(
            "an illegal one",
            "RuntimeError: an illegal memory access was encountered; every later call of its "
            "process fails",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_whoever_is_lost_is_a_row_and_the_others_are_timed(who: str, reason: str) -> None:
    silence = 8.0 if who == "a hanging one" else worker.SILENCE
    with worker.Worker(Asked(faults=(who, "a wrong one")), silence) as watched:
        assert watched.do(Job("who")) == {"rows": [], "host_costs": []}
        assert watched.restarts == 0
        for restarts, name in ((1, RELU), (2, SIGMOID))[: 1 if silence == 8.0 else 2]:
            found = watched.do(Job("case", name))
            expected = dict.fromkeys(TIMED, "timed") | {"a wrong one": "wrong", who: "lost"}
            assert statuses(found) == expected
            (lost,) = (row for row in found["rows"] if row.status == "lost")
            assert (lost.case, lost.reason, lost.timing) == (name, reason, None)
            assert lost.bytes == next(c.bytes for c in fake_gpu.CASES if c.name == name)
            assert watched.restarts == restarts
    assert watched.process is None


def test_a_process_that_dies_at_nobody_s_turn_ends_that_job_alone() -> None:
    with worker.Worker(Asked()) as watched:
        (lost,) = watched.do(Job("digits", "no such activation"))["rows"]
        assert (lost.status, lost.provider) == ("lost", "digits no such activation")
        assert lost.reason == "KeyError: 'no such activation'"
        assert statuses(watched.do(Job("case", RELU))) == dict.fromkeys(TIMED, "timed")


def test_who_cannot_run_says_why_once() -> None:
    with worker.Worker(Asked(faults=("an absent one",))) as watched:
        (row,) = watched.do(Job("who"))["rows"]
        assert (row.case, row.provider, row.status) == ("", "an absent one", "unavailable")
        assert row.reason == "no such GPU"
        assert statuses(watched.do(Job("case", RELU))) == dict.fromkeys(TIMED, "timed")


def test_the_copy_is_measured_at_both_ends() -> None:
    session = worker.Session(Asked())
    for when in ("start", "end"):
        (rate,) = session.do(Job("copy", when), (), lambda who: None)["copies"]
        assert (rate.when, rate.provider, rate.bytes) == (when, fake_gpu.CUPY, 2 << 20)
        assert rate.bytes_per_second == rate.bytes / rate.timing.median


def test_missing_rows_are_of_their_tables() -> None:
    suite = Asked().plan()
    for kind, name, table, who in (
        ("case", RELU, "rows", "gpuact on CuPy"),
        ("cost", "relu(x)", "host_costs", "gpuact on CuPy"),
        ("torch", "relu", "host_costs", "gpuact on CuPy"),
        ("held", "relu", "held_for_backward", "gpuact on CuPy"),
        ("digits", "tanh", "rows", "digits tanh"),
    ):
        found = worker.missing(suite, Job(kind, name), "gpuact on CuPy", "lost", "why")
        ((where, (row,)),) = found.items()
        assert (where, row.provider, row.reason) == (table, who, "why")


@pytest.mark.parametrize("who", ["", COPY])
def test_at_nobody_s_turn_all_of_ours_lack_their_rows(who: str) -> None:
    """So that no table has a nameless column, and --check fails."""
    rows = worker.missing(Asked().plan(), Job("case", RELU), who, "lost", "why")["rows"]
    assert [(row.provider, row.backend) for row in rows] == [
        ("gpuact on CuPy", "cupy"),
        ("gpuact on Triton", "triton"),
    ]
    lost = replace(result.begun({}), rows=rows)
    assert run._failures(lost, []) == [f"{RELU}: {row.provider}: why" for row in rows]
    suite = replace(Asked().plan(), callers=OURS, holders=OURS, in_torch_by=OURS)
    for kind, table in (
        ("cost", "host_costs"),
        ("torch", "host_costs"),
        ("held", "held_for_backward"),
    ):
        rows = worker.missing(suite, Job(kind, "relu"), "", "not run", "why")[table]
        assert [row.provider for row in rows] == [one.name for one in OURS]
    held = replace(result.begun({}), held_for_backward=rows)
    assert len(run._failures(held, [])) == 2
    for kind, name in (("copy", "start"), ("digits", "tanh"), ("who", "")):
        rows = worker.missing(suite, Job(kind, name), "", "lost", "why")["rows"]
        whole = replace(result.begun({}), rows=rows)
        assert run._failures(whole, []) == [f": {kind} {name}".rstrip() + ": why"]


def test_who_dies_again_and_again_is_not_tried_for_ever() -> None:
    class Dying(worker.Worker):
        def _try(self, job: Job, without: Sequence[str]) -> tuple[worker.Found | None, str, str]:
            if "torch" in without:
                return {"rows": []}, "", ""
            return None, "torch", "its process died"

    watched = Dying(Asked())
    reasons = [[row.reason for row in watched.do(Job("case", RELU))["rows"]] for _ in range(5)]
    died = "its process died"
    last = f"{died}, for the 3rd time: it is not tried again"
    assert reasons == [[died], [died], [last], [], []]
    watched.deaths = Counter({"gpuact on CuPy": worker.DEATHS, "torch": worker.DEATHS})
    (row,) = watched.do(Job("case", RELU))["rows"]  # of ours there is a row in every case
    assert (row.provider, row.status) == ("gpuact on CuPy", "not run")
    assert row.reason == "its process died 3 times before"


def test_a_process_whose_torch_is_spoiled_is_the_last_to_use_it() -> None:
    with worker.Worker(Asked(faults=("a shy one",))) as watched:
        for restarts, name in enumerate((RELU, SIGMOID)):
            found = watched.do(Job("case", name))
            assert statuses(found) == dict.fromkeys([*TIMED, "a shy one"], "timed")
            assert watched.restarts == restarts
            assert watched.process is None


# -- a run, whole and cut short -------------------------------------------------------------------


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result, "gpu", lambda: result.Gpu("a fake GPU", "", 1 << 30))


@pytest.mark.usefixtures("on_a_gpu")
def test_a_dry_run_writes_every_row_whatever_happens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Asked(
        faults=("a wrong one", "one that crashes once", "one that is shy once", "an absent one")
    )
    assert run.run(asked, tmp_path) == 0
    (path,) = tmp_path.glob("*-a-fake-gpu-fake.json")
    found = result.read(path)
    assert (found.on_gpu, found.device) == (True, "a fake GPU")
    assert (found.finished, found.stopped) == (True, "")
    assert found.restarts == 2  # after a death, and after torch was spoiled
    (shy,) = (row for row in found.rows if row.provider == "one that is shy once")
    assert (shy.function, shy.method) == ("softmax", "events")
    assert [rate.when for rate in found.copies] == ["start", "end"]
    by = {(row.case, row.provider): row for row in found.rows}
    for case in fake_gpu.CASES:
        for who in TIMED:
            row = by[case.name, who]
            assert (row.status, row.method) == ("timed", "graph")
            assert row.call is not None
            assert row.timing is not None
        assert by[case.name, "a wrong one"].status == "wrong"
    (lost,) = (row for row in found.rows if row.provider == "one that crashes once")
    assert (lost.function, lost.status) == ("softmax", "lost")
    assert by["", "an absent one"].reason == "no such GPU"
    printed = capsys.readouterr().out
    assert "a wrong one: wrong: " in printed
    assert "one that crashes once: lost: its process died of SIGSEGV" in printed
    assert f"written: {path}" in printed
    # what is checked is ours
    assert run.run(Asked(faults=("a wrong one",), only="relu"), check=True) == 0


@pytest.mark.usefixtures("on_a_gpu")
def test_what_there_was_no_time_for_is_told(tmp_path: Path) -> None:
    assert run.run(Asked(), tmp_path, minutes=1e-9) == 0
    (path,) = tmp_path.glob("*.json")
    found = result.read(path)
    assert (found.finished, found.stopped) == (False, "the 1e-09 minutes were over")
    told = {row.case: row for row in found.rows if row.suite}
    assert set(told) == {case.name for case in fake_gpu.CASES}
    assert {row.status for row in told.values()} == {"not run"}
    assert [rate.when for rate in found.copies] == ["start", "end"]


SCRIPT = """
import signal, sys
from pathlib import Path
from bench import run
from tests.fake_gpu import OURS, Asked
if __name__ == "__main__":
    # a shell has what it starts in the background ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run.run(Asked(faults=("a hanging one",)), Path(sys.argv[1])))
"""


def started(tmp_path: Path) -> tuple[subprocess.Popen[str], Path]:
    """A run whose second case hangs, and its file, which has the first."""
    script = tmp_path / "hangs.py"
    script.write_text(
        SCRIPT.replace("Asked(", "Hangs(").replace("if __name__", HANGS + "if __name__")
    )
    process = subprocess.Popen(
        [sys.executable, script, tmp_path / "out"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    patience = time.monotonic() + 60
    while time.monotonic() < patience:
        for path in (tmp_path / "out").glob("*.json"):
            if any(row["case"] == RELU for row in json.loads(path.read_text("utf-8"))["rows"]):
                return process, path
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[0])


HANGS = """
from bench.providers import Provider
from tests import fake_gpu

def spell(case):
    return fake_gpu.HANGING.spell(case) if case.suite == "loss" else None

HANGING = Provider("a hanging one", fake_gpu.CUPY, lambda: None, spell)
fake_gpu.FAULTS["a hanging one"] = HANGING

class Hangs(Asked):
    pass

"""


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_run_that_is_killed_half_way_leaves_what_was_done(tmp_path: Path, how: int) -> None:
    process, path = started(tmp_path)
    time.sleep(0.5)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does: to the worker too
    else:
        process.send_signal(how)
    said, _ = process.communicate(timeout=60)
    found = result.read(path)
    assert not found.finished
    assert {row.provider: row.status for row in found.rows if row.case == RELU} == dict.fromkeys(
        TIMED, "timed"
    )
    assert not list(path.parent.glob("*.part"))
    if how == signal.SIGINT:
        assert process.returncode == run.INTERRUPTED
        assert found.stopped == "interrupted"
        assert "interrupted: what was measured until here is kept" in said
    else:
        assert process.returncode == -how
        assert found.stopped == ""
    assert not alive(process.pid)


def at_work(group: int) -> bool:
    """Whether a process of it runs. In a container nobody may take note of those that ended."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just gone
            state, _, its_group, *_ = path.read_text().rpartition(")")[2].split()
            if int(its_group) == group and state != "Z":
                return True
    return False


def alive(group: int) -> bool:
    """Whether the worker is still there; it has a moment to notice that it is alone."""
    patience = time.monotonic() + 10
    while time.monotonic() < patience:
        if not at_work(group):
            return False
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return True
