"""`python -m bench`: what is asked for is what is run, shown and written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rich")
from bench import digits, goals, in_torch, providers, result, run, suite, suites, tables
from bench.__main__ import SUITES, main
from bench.result import Result, Unreadable
from bench.suites import Asked, Job
from tests import benchmarks, small_suites

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "tests" / "samples"
H100 = "NVIDIA H100 80GB HBM3"


def ran(asked: Asked, folder: Path, **more: Any) -> Result:
    """The result of a run, read from its file."""
    assert run.run(asked, folder, **more) == 0
    (path,) = folder.glob("*.json")
    return result.read(path)


# -- a run ----------------------------------------------------------------------------------------


def test_a_run_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    found = ran(small_suites.Asked(suite="cpu"), tmp_path)
    printed = capsys.readouterr().out
    for told in ("GB/s", "gpuact on NumPy", "≥ 1.3 times as fast", "copy at the start: "):
        assert told in printed

    (path,) = tmp_path.glob("*.json")
    assert path.stem.endswith("-cpu")
    assert path.stem.isascii()
    assert path.with_suffix(".html").stat().st_size > 10_000
    assert [p.suffix for p in sorted(tmp_path.iterdir()) if p.stem.startswith(path.stem)].count(
        ".png"
    ) >= 1
    plain = json.loads(path.read_text(encoding="utf-8"))
    assert list(plain) == [each.name for each in fields(Result)]
    assert plain["schema"] == result.SCHEMA
    assert set(found.machine) == {"system", "processor", "cores", "gpus"}
    assert {"python", "numpy", "gpuact"} <= set(found.versions)
    assert found.settings["suite"] == "cpu"
    assert set(found.kernels) == set(result.FAMILIES)
    assert all(len(digest) == 64 for digest in found.kernels.values())
    assert (found.finished, found.stopped, found.restarts, found.sample) == (True, "", 0, False)
    assert found.seconds > 0
    assert [rate.when for rate in found.copies] == ["start", "end"]
    assert [goal.rival for goal in found.goals] == ["NumPy", "SciPy", "NumPy", "SciPy"]
    assert all(goal.value for goal in found.goals)
    planned = small_suites.Asked(suite="cpu").plan()
    ours = {row.case: row for row in found.rows if row.provider == providers.OURS and row.case}
    assert set(ours) == {case.name for case in planned.cases}
    for row in ours.values():
        assert (row.status, row.method, row.call) == ("timed", "clock", None)
        assert row.bytes_per_second == row.bytes / row.timing.median
        assert row.peak_bytes is not None
    assert {row.status for row in found.rows if row.case} == {"timed"}
    assert {row.headline for row in found.rows} == {True, False}
    assert result.text(found) == path.read_text(encoding="utf-8")


def test_a_case_is_in_the_file_before_the_next_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    write = result.write

    def watched(what: Result, path: Path) -> None:
        write(what, path)
        seen.append(len({row.case for row in result.read(path).rows if row.suite}))

    monkeypatch.setattr(result, "write", watched)
    ran(small_suites.Asked(suite="cpu", only="relu float32"), tmp_path)
    cases = len(small_suites.Asked(suite="cpu", only="relu float32").plan().cases)
    assert {*range(cases + 1)} == {*seen}
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    "name",
    ["fused", *(pytest.param(n, marks=pytest.mark.slow) for n in ("elementwise", "rows", "loss"))],
)
def test_a_suite_s_cases_are_all_measured(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    asked = small_suites.Asked(suite=name)
    found = ran(asked, tmp_path)
    planned = asked.plan()
    ours = [row.case for row in found.rows if row.provider == providers.OURS and row.case]
    assert ours == sorted(ours, key=[job.name for job in planned.jobs()].index)
    assert {*ours} == {case.name for case in planned.cases}
    assert {row.suite for row in found.rows if row.case} == {name}
    assert {row.status for row in found.rows if row.case} == {"timed"}
    assert {row.case for row in found.host_costs} == {*planned.ways}
    assert {row.case for row in found.held_for_backward} == {case.name for case in planned.held}
    notes = {row.note for row in found.rows if row.note}
    assert notes == ({suite.OWN_MASK} if name == "fused" else set())
    assert found.goals == []


def test_the_torch_suite_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    found = ran(small_suites.Asked(suite="torch", only="prelu"), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    heading = lines.index(next(line for line in lines if line.startswith("µs of a call float32")))
    assert any("in one thread" in line for line in lines[:heading])
    assert "torch.compile: fullgraph, static shapes, mode default" in lines[:heading]
    for k, name in enumerate(("prelu forward", "prelu forward + backward"), 1):
        times = lines[heading + k].removeprefix(name).split()
        assert [float(time) > 0 for time in times] == [True] * 3
    told = [(row.case, row.provider, row.status) for row in found.host_costs]
    assert told == [
        (f"prelu {way}{in_torch.OF}", who, "timed")
        for way in (in_torch.FORWARD, in_torch.BACKWARD)
        for who in ("torch", "gpuact", "gpuact.torch.nn")
    ]
    assert found.rows == []


def test_digits_print_their_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    asked = small_suites.Asked(suite="digits", epochs=1)
    assert run.run(asked, tmp_path, check=True) == 1  # nobody learns it in one
    printed = capsys.readouterr().out
    assert "check: digits with tanh: " in printed
    (path,) = tmp_path.glob("*.json")
    found = result.read(path)
    assert [row.activation for row in found.digits] == list(digits.HIDDEN)
    for row in found.digits:
        assert row.activation in printed
        assert 0 <= row.difference < 1e-5


def test_check_fails_on_a_missed_goal(capsys: pytest.CaptureFixture[str]) -> None:
    asked = small_suites.Asked(suite="cpu", only="sigmoid float32 2^24", missed=True)
    assert run.run(asked) == 0
    assert run.run(asked, check=True) == 1
    printed = capsys.readouterr().out
    assert "missed" in printed
    (goal,) = asked.plan().goals
    assert f"check: gpuact on NumPy: {goal.case} beside NumPy: missed with " in printed


def test_check_fails_on_a_wrong_result_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    asked = small_suites.Asked(suite="cpu", only="sigmoid float32", wrong=True)
    assert run.run(asked) == 0
    assert run.run(asked, check=True) == 1
    assert f"check: sigmoid float32 5: {providers.OURS}: 5 of 5 values differ" in (
        capsys.readouterr().out
    )


def test_a_run_is_compared_with_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = small_suites.Asked(suite="cpu", only="relu float32")
    before = ran(asked, tmp_path)
    assert before.host_costs == []
    slower = [
        replace(row, timing=replace(row.timing, **{q: 100 * getattr(row.timing, q) for q in QS}))
        if row.backend and row.timing
        else row
        for row in before.rows
    ]
    capsys.readouterr()
    assert run.run(asked, against=replace(before, rows=slower)) == 0
    _, _, printed = capsys.readouterr().out.partition("\nB: ")
    gains = len({row.case for row in before.rows if row.backend})
    ours = [line for line in printed.splitlines() if providers.OURS in line and "×" in line]
    assert [line.split()[-1] for line in ours] == ["gain"] * gains


QS = ("median", "low", "high")


def test_what_draws_the_page_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "bench.page", None)
    monkeypatch.delattr("bench.page", raising=False)
    ran(small_suites.Asked(suite="cpu", only="relu float32 2^24"), tmp_path)
    assert "no page: " in (printed := capsys.readouterr().out)
    assert 'pip install "gpuact[bench]"' in printed


def nvml(**more: Any) -> SimpleNamespace:
    """nvidia-ml-py on a machine of two GPUs, the second of which is ours."""

    def hidden(handle: str) -> float:
        raise RuntimeError("not supported")

    def known(handle: str, key: str) -> str:
        if key != handle:
            raise RuntimeError("not found")
        return handle

    return SimpleNamespace(
        NVML_CLOCK_SM=0,
        NVML_CLOCK_MEM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlClocksEventReasonSwPowerCap=4,
        nvmlClocksEventReasonHwSlowdown=8,
        nvmlDeviceGetHandleByPciBusId=lambda key: known("0000:02:00.0", key),
        nvmlDeviceGetHandleByUUID=lambda key: known("GPU-1234", key),
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetClockInfo=lambda handle, kind: (1980, 3201)[kind],
        nvmlDeviceGetTemperature=lambda handle, kind: 41,
        nvmlDeviceGetPowerUsage=hidden,
        nvmlDeviceGetCurrentClocksEventReasons=lambda handle: 4 | 16,
        **more,
    )


@pytest.mark.parametrize("key", ["0000:02:00.0", "GPU-1234"])
def test_clocks_and_temperatures_are_the_gpu_s_that_runs(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result, "_nvml", nvml)
    monkeypatch.setattr(result, "gpu", lambda: result.Gpu("a GPU", key, 1 << 30))
    (told,) = result.conditions("start", 1.23456)
    assert asdict(told) == {
        "when": "start",
        "seconds": 1.235,
        "sm_mhz": 1980,
        "memory_mhz": 3201,
        "temperature_c": 41,
        "power_w": None,
        "throttled": "SwPowerCap",
    }
    there = {"name": "a GPU", "memory": 1 << 30, "driver": "580.1"}
    assert result.machine(on_gpu=True)["gpus"] == [there]
    assert result.machine(on_gpu=False)["gpus"] == []  # a run of the CPU beside it
    monkeypatch.setattr(result, "_nvml", lambda: None)
    assert result.machine(on_gpu=True)["gpus"] == [there | {"driver": "unknown"}]
    assert result.conditions("start", 0) == []
    monkeypatch.setattr(result, "_nvml", nvml)
    monkeypatch.setattr(result, "gpu", lambda: result.Gpu("a GPU", "0000:09:00.0", 1 << 30))
    assert result.conditions("start", 0) == []


def test_the_gpu_is_the_one_that_the_libraries_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"name": b"a GPU", "totalGlobalMem": 1 << 30}
    runtime = SimpleNamespace(getDeviceProperties=lambda number: told if number == 1 else {})
    device = SimpleNamespace(id=1, pci_bus_id="0000:02:00.0")
    cuda = SimpleNamespace(Device=lambda: device, runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    asked = result.gpu.__wrapped__
    assert asked() == ("a GPU", "0000:02:00.0", 1 << 30)
    monkeypatch.setitem(sys.modules, "cupy", None)
    properties = SimpleNamespace(name="another GPU", uuid="1234", total_memory=2 << 30)
    torch = SimpleNamespace(cuda=SimpleNamespace(get_device_properties=lambda: properties))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert asked() == ("another GPU", "GPU-1234", 2 << 30)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert asked() is None


def test_readings_are_taken_while_the_gpu_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    told = lambda when, seconds: [result.Condition(when, seconds)]  # noqa: E731
    monkeypatch.setattr(result, "conditions", told)
    there = replace(result.begun({}), machine={"gpus": [{"name": "a GPU"}]})
    log = run.Log(there, None, 0.0)
    now = iter([0.0, 1.9, 2.1, 2.1, 2.2])
    monkeypatch.setattr(run, "perf_counter", lambda: next(now))
    log.note("start")
    log.overhear("relu")  # too early
    log.overhear("relu")
    assert [c.when for c in log.result.conditions] == ["start", "during relu"]
    log.result = replace(there, machine={"gpus": []})
    log.note("end")
    assert log.result.conditions == []


# -- what a suite is ------------------------------------------------------------------------------


def planned(name: str, on_gpu: bool, **more: Any) -> suites.Suite:
    return Asked(name, on_gpu=on_gpu, **more).plan()


@pytest.mark.parametrize("name", ["elementwise", "rows", "loss", "fused", "torch"])
def test_a_suite_is_the_gpu_s_where_one_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "gpu", lambda: result.Gpu(H100, "", 0))
    there, here = planned(name, True), planned(name, False)
    if name == "torch":
        assert there.in_torch_by is providers.IN_TORCH_ON_GPU
        assert here.in_torch_by is providers.IN_TORCH_ON_CPU
        assert there.in_torch == here.in_torch == in_torch.ROWS
        return
    for sizes in (tables.QUICK, tables.FULL):
        assert planned(name, True, sizes=sizes).cases == benchmarks.ON_GPU[name](sizes)
        assert planned(name, False, sizes=sizes).cases == benchmarks.ON_CPU[name](sizes)
    assert (there.providers, here.providers) == (providers.ON_GPU, providers.ON_CPU)
    assert here.goals == ()
    stated = {
        "elementwise": (*goals.elementwise_goals(there.cases), *goals.CALL_GOALS),
        "rows": goals.rows_goals(H100),
        "loss": goals.loss_goals(H100),
        "fused": goals.fused_goals(there.cases),
    }
    assert tuple(there.goals) == stated[name]


def test_all_is_everything_once() -> None:
    parts = [planned(name, True) for name in ("elementwise", "rows", "loss", "fused")]
    whole = planned("all", True)
    watched = tables.stats_on_gpu(tables.QUICK)
    assert whole.cases == [*(case for part in parts for case in part.cases), *watched]
    stated = [*(goal for part in parts for goal in part.goals), *goals.stats_goals(watched)]
    assert whole.goals == stated
    assert {case.name for case in whole.held} == {case.name for case in tables.HELD}
    assert whole.digits == tuple(digits.HIDDEN)
    inside = {row.functions for row in whole.in_torch}
    assert inside == {("relu",), ("softmax",), ("cross_entropy",), in_torch.CHAIN}
    assert planned("all", True, sizes=tables.FULL).in_torch == in_torch.ROWS
    names = [case.name for case in whole.cases]
    assert len(names) == len({*names})
    assert planned("here", True).cases == whole.cases
    here = planned("here", False)
    assert here.cases == tables.cpu(tables.QUICK)
    assert (here.goals, here.digits) == (goals.GOALS, tuple(digits.HIDDEN))


def test_the_headline_comes_first_and_the_copy_at_both_ends() -> None:
    whole = planned("all", True)
    jobs = list(whole.jobs())
    assert jobs[:2] == [Job("who"), Job("copy", "start")]
    assert jobs[-1] == Job("copy", "end")
    headline = [case.name for case in whole.cases if case.headline]
    assert [job.name for job in jobs[2 : 2 + len(headline)]] == headline
    assert len(headline) == len(tables.LIMITS) + len(tables.ROW_LIMITS) + 3
    assert len(jobs) == len(set(jobs))


def test_what_is_asked_for_is_what_is_planned() -> None:
    everything = planned("all", True)
    some = planned("all", True, dtypes=("float16",))
    assert {case.dtype for case in some.cases} == {"float16"}  # and not bfloat16
    assert some.held == []
    both = planned("all", True, only="fused_backward", dtypes=("bfloat16", "float32"))
    assert {case.function for case in both.cases} == {"fused_backward"}
    assert {goal.case for goal in both.goals} <= {case.name for case in both.cases}
    ours = planned("all", True, providers=("gpuact", "liger"))
    assert [p.name for p in ours.providers] == ["gpuact on CuPy", "gpuact on Triton", "Liger"]
    assert {p.name for p in ours.in_torch_by} == {
        p.name for p in everything.in_torch_by if "gpuact" in p.name
    }
    assert planned("all", True, only="nothing of the kind").empty
    assert not planned("digits", False, only="tanh").empty


def test_a_run_of_the_cpu_beside_a_gpu_is_the_cpu_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result, "gpu", lambda: result.Gpu("a GPU", "", 1 << 30))
    found = ran(small_suites.Asked(suite="cpu", only="relu float32 2^24"), tmp_path)
    assert (found.on_gpu, found.settings["on_gpu"]) == (False, False)
    assert "a GPU" not in found.device


def test_who_cannot_run_says_why_in_a_gpu_s_suite(tmp_path: Path) -> None:
    if suites.gpu_answers():
        pytest.skip("a GPU answers here")
    found = ran(Asked("rows", on_gpu=True, only="softmax bfloat16 4×131072"), tmp_path)
    told = {row.provider: row for row in found.rows}
    assert set(told) == {provider.name for provider in providers.ON_GPU}
    assert {row.status for row in told.values()} == {"unavailable"}
    assert all(row.reason for row in told.values())
    assert {goal.value for goal in found.goals} == {None}


# -- the command line -----------------------------------------------------------------------------


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command line hands on, in place of running it."""
    met: list[tuple[Any, ...]] = []

    def instead(*args: Any) -> int:
        met.append(args)
        return 0

    monkeypatch.setattr(run, "run", instead)
    return met


def test_suites_are_those_that_there_are() -> None:
    assert set(SUITES) == set(suites.SUITES)


def test_the_command_line_is_handed_on(
    asked_for: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(suites, "gpu_answers", lambda: False)
    assert main([]) == 0
    assert main(["digits", "--epochs", "2", "--check", "--no-out"]) == 0
    words = ["--suite", "elementwise", "--dtype", "float32", "bfloat16", "--sizes", "full"]
    more = ["--providers", "gpuact, NumPy", "--only", "relu", "--seconds", "0.1", "--minutes", "3"]
    against = ["--against", str(SAMPLES / "cpu.json"), "--out", "here"]
    assert main([*words, *more, *against]) == 0
    default, of_digits, full = asked_for
    assert default == (Asked(), Path("bench/results"), 0.0, False, None)
    assert of_digits == (Asked("digits", epochs=2), None, 0.0, True, None)
    assert full == (
        Asked(
            *("elementwise", "full", False, "relu", ("float32", "bfloat16")),
            providers=("gpuact", "NumPy"),
            seconds=0.1,
        ),
        Path("here"),
        3.0,
        False,
        result.read(SAMPLES / "cpu.json"),
    )
    monkeypatch.setattr(suites, "gpu_answers", lambda: True)
    for words, on_gpu, minutes in (
        ([], True, 8.0),
        (["--sizes", "full"], True, 0.0),
        (["--suite", "cpu"], False, 0.0),
    ):
        assert main(words) == 0
        asked, _, given, *_ = asked_for.pop()
        assert (asked.on_gpu, given) == (on_gpu, minutes)


def refused(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_words_that_hit_nothing_are_refused(
    tmp_path: Path, asked_for: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    cpu = ["--suite", "cpu"]
    said = refused([*cpu, "--only", "nothing of the kind"], capsys)
    assert "'nothing of the kind' came, nothing of cpu has it in its name" in said
    said = refused([*cpu, "--dtype", "float64", "--only", "softmax"], capsys)
    assert "'float64 softmax' came" in said
    said = refused([*cpu, "--providers", "gpuact,Liger"], capsys)
    assert "'Liger' came, there are gpuact on NumPy, NumPy, " in said
    broken = tmp_path / "broken.json"
    for text, told in (
        ("{", "not JSON"),
        ('{"schema": 1}', "schema 1 came, 2 is read"),
        ("[]", "schema None came"),
        ('{"schema": 2}', "not a result of schema 2"),
        ('{"schema": 2, "rows": [[]]}', "not a result of schema 2"),
    ):
        broken.write_text(text)
        assert told in refused([*cpu, "--against", str(broken)], capsys)
        with pytest.raises(Unreadable, match=told):
            result.read(broken)
    assert "No such file" in refused(["report", str(tmp_path / "absent.json")], capsys)
    assert asked_for == []


@pytest.mark.parametrize(
    ("missing", "asked", "extra"),
    [
        ("rich", [], "bench"),
        ("sklearn", [], "bench"),
        ("torch", ["--suite", "torch"], "torch"),
        ("jinja2", ["report", "x.json"], "bench"),
        ("matplotlib", ["report", "x.json"], "bench"),
        ("rich", ["compare", "x.json", "x.json"], "bench"),
        ("rich", ["status"], "bench"),
    ],
)
def test_a_missing_package_is_one_sentence(missing: str, asked: list[str], extra: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; import bench.__main__ as b; "
    done = subprocess.run(
        [sys.executable, "-c", script + f"sys.exit(b.main({asked}))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f'pip install "gpuact[{extra}]"' in done.stderr


def test_samples_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = str(SAMPLES / "gpu.json"), str(SAMPLES / "gpu-later.json")
    assert main(["compare", first, second]) == 0
    printed = capsys.readouterr().out
    assert "sample" in printed
    assert main(["compare", first, first, "--check"]) == 0
    assert main(["compare", first, second, "--check"]) == 1  # one of ours became slower


def test_a_report_is_drawn_of_samples_and_of_a_real_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    ran(small_suites.Asked(suite="cpu", only="relu float32"), tmp_path)
    (real,) = tmp_path.glob("*.json")
    for path in tmp_path.glob("*.html"):
        path.unlink()
    capsys.readouterr()
    out = tmp_path / "pages"
    assert main(["report", str(SAMPLES / "cpu.json"), str(real), "--out", str(out)]) == 0
    written = capsys.readouterr().out.split()
    assert str(out / "cpu.html") in written
    assert all(Path(path).stat().st_size for path in written)
    page = (out / "cpu.html").read_text(encoding="utf-8")
    assert "relu float32 5" in page
    assert "nothing was measured" in page
    assert main(["report", str(real)]) == 0
    assert real.with_suffix(".html").exists()


def test_status_is_drawn_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 0
    assert main(["status", str(tmp_path), "--check"]) == 1  # nothing is proved there
    real = replace(result.read(SAMPLES / "gpu.json"), sample=False, kernels=result.kernel_hashes())
    result.write(real, tmp_path / "real.json")
    capsys.readouterr()
    assert main(["status", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "proved" in printed
    assert "real.json" in printed


# -- a result -------------------------------------------------------------------------------------


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    for path in SAMPLES.glob("*.json"):
        found = result.read(path)
        assert found.sample
        copy = tmp_path / path.name
        result.write(found, copy)
        assert result.read(copy) == found
        assert copy.read_text("utf-8") == path.read_text("utf-8")
    assert result.committed(SAMPLES) == []


def test_who_dies_while_writing_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    result.write(result.begun({"suite": "cpu"}), path)
    found = result.read(path)

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        result.write(replace(found, finished=True), path)
    assert result.read(path) == found


def test_the_kernel_hash_follows_the_sources(tmp_path: Path) -> None:
    (tmp_path / "cupy").mkdir()
    formulas = tmp_path / "cupy" / "formulas.cuh"
    formulas.write_text("a")
    before = result.kernel_hash(["cupy/formulas.cuh"], tmp_path)
    (tmp_path / "cupy" / "notes.txt").write_text("not a source")
    assert result.kernel_hash(["cupy/formulas.cuh"], tmp_path) == before
    formulas.write_text("b")
    assert result.kernel_hash(["cupy/formulas.cuh"], tmp_path) != before


@pytest.mark.parametrize(
    ("told", "commit", "changed"),
    [
        ("a1" * 20, "a1" * 20, False),
        ("a1" * 20 + "-dirty", "a1" * 20, True),
        ("unknown", None, None),
        ("", None, None),
        (None, None, None),
    ],
)
def test_an_image_says_of_which_commit_it_is(
    told: str | None, commit: str | None, changed: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPUACT_REVISION", raising=False)
    if told is not None:
        monkeypatch.setenv("GPUACT_REVISION", told)
    monkeypatch.setattr(result, "_git", lambda *words: None)
    begun = result.begun({})
    assert (begun.commit, begun.changed_since_commit) == (commit, changed)


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_a_result_that_lies_there_is_no_change_of_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "source.py").write_text("a")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr(result, "ROOT", tmp_path)
    (tmp_path / "bench" / "results" / "run.json").write_text("{}")
    assert result.begun({}).changed_since_commit is False
    (tmp_path / "source.py").write_text("b")
    assert result.begun({}).changed_since_commit is True
