"""The performance section of README.md: whose figures it gives, and what it says without any."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")

from bench import readme, result
from bench.result import committed, kernel_hashes, path_of, read, write

from . import bench_samples

# Measured, for the purposes of these tests.
GPU = replace(bench_samples.gpu(), sample=False, kernels=kernel_hashes())
LATER = replace(bench_samples.gpu_later(), sample=False)
CPU = replace(bench_samples.cpu(), sample=False, finished=True)


def lines(text: str, start: str = "| ") -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_the_readme_s_is_that_of_the_results_that_lie_there():
    """After a result is added to git: python -m bench readme."""
    if result._git("ls-files") is None:
        pytest.skip("without git nobody knows which results are committed")
    text = readme.README.read_text(encoding="utf-8")
    assert readme.BEGIN + readme.section(committed()) + readme.END in text


def test_a_result_that_git_does_not_know_is_not_committed(tmp_path, monkeypatch):
    """Who measures on his machine and tests afterwards has changed nothing."""
    write(CPU, tmp_path / "mine.json")
    write(GPU, tmp_path / "theirs.json")
    monkeypatch.setattr(result, "_git", lambda *words: "theirs.json")
    assert committed(tmp_path) == [read(tmp_path / "theirs.json")]
    monkeypatch.setattr(result, "_git", lambda *words: None)
    assert len(committed(tmp_path)) == 2


def test_a_picture_that_lies_there_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    monkeypatch.setattr(readme, "ROOT", tmp_path.parent)
    assert "![" not in readme.section([CPU])
    picture = f"{path_of(CPU, tmp_path).stem}-headline.png"
    (tmp_path / picture).touch()
    assert readme.section([CPU]).endswith(f"]({tmp_path.name}/{picture})\n")


def test_without_a_result_it_says_so():
    assert readme.section([]) == f"{readme.NO_GPU}\n"


def test_samples_and_unfinished_runs_are_no_results():
    unfinished = replace(GPU, finished=False)
    assert readme.section([bench_samples.gpu(), unfinished]) == f"{readme.NO_GPU}\n"


def test_a_run_of_cpus_alone_says_that_there_is_none_of_a_gpu():
    text = readme.section([CPU])
    first, about, *_ = text.split("\n\n")
    assert first == readme.NO_GPU
    assert about.startswith("sample processor (made up), 2000-01-01, commit 0123456;")
    cases = {row.case for row in CPU.rows if row.headline}
    assert len(lines(text)) == len(cases) + 2
    assert "of earlier kernels" not in text  # of a GPU, and none ran


def test_a_line_has_our_best_backend_and_the_quickest_rival():
    text = readme.section([GPU, CPU])
    assert readme.NO_GPU not in text
    (line,) = lines(text, "| softmax bfloat16 32768×256 |")
    rows = {row.provider: row for row in GPU.rows if row.case == "softmax bfloat16 32768×256"}
    ours, rival = rows["gpuact on CuPy"], rows["QuACK"]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:3] == ["33.6 MB", f"{rows['copy'].bytes_per_second / 1e9:,.0f}"]
    assert cells[3].endswith("µs (CuPy)")
    assert cells[4] == f"{ours.share_of_copy:.0%}"
    assert cells[5] == "QuACK"
    assert cells[7] == f"{rival.timing.median / ours.timing.median:.2f}"
    assert all(line.count("|") == 9 for line in lines(text))


def test_a_rival_with_his_launches_is_marked():
    loss = "cross_entropy bfloat16 8192×128256"
    others = ("torch", "torch.compile", "torch.compile, tuned", "QuACK")
    rows = [r for r in GPU.rows if r.case != loss or r.provider not in others]
    text = readme.section([replace(GPU, rows=rows)])
    (line,) = lines(text, f"| {loss} |")
    assert "| Liger |" in line and readme.LAUNCHES in line
    assert text.endswith(f"{readme.LAUNCHED}\n")
    assert readme.LAUNCHED not in readme.section([GPU])


def test_a_run_that_ended_early_is_told_if_its_headline_is_whole():
    early = replace(GPU, finished=False, stopped="the 8 minutes were over")
    assert readme.section([early]) == readme.section([GPU])
    assert readme.section([replace(early, stopped="interrupted")]) == f"{readme.NO_GPU}\n"
    ours = next(row for row in GPU.rows if row.headline and row.backend)
    lacking = [replace(r, status="not run", timing=None) if r is ours else r for r in GPU.rows]
    assert readme.section([replace(early, rows=lacking)]) == f"{readme.NO_GPU}\n"


def test_a_quicker_rival_stays_in():
    rows = [
        replace(row, timing=replace(row.timing, median=row.timing.median / 2))
        if row.timing and row.provider == "torch"
        else row
        for row in GPU.rows
    ]
    line, *_ = lines(readme.section([replace(GPU, rows=rows)]), "| relu")
    assert "| torch |" in line and float(line.split("|")[-2]) < 0.6


def test_a_case_without_rival_or_without_us():
    alone = [row for row in GPU.rows if row.provider in ("copy", "gpuact on Triton")]
    text = readme.section([replace(GPU, rows=alone)])
    assert lines(text, "| relu")[0].endswith("| – | – | – |")
    others = [row for row in GPU.rows if not row.provider.startswith("gpuact")]
    assert len(lines(readme.section([replace(GPU, rows=others)]))) == 2


def test_the_newest_is_told_and_whether_its_kernels_are_todays():
    text = readme.section([LATER, GPU])
    assert "2000-01-02, commit 89abcde with changes, of earlier kernels; driver 000.00" in text
    assert "0123456" not in text
    assert "of earlier kernels" not in readme.section([GPU])


def test_it_is_written_between_its_marks(tmp_path, monkeypatch):
    path = tmp_path / "README.md"
    claims = "<!-- claims -->\n{}<!-- end -->\n"
    performance = "before\n<!-- performance -->\n{}<!-- end -->\nafter\n<!-- end -->\n"
    path.write_text(performance.format("old\n") + claims.format("old\n"))
    monkeypatch.setattr(readme, "committed", lambda: [GPU])
    monkeypatch.setattr(readme.record, "committed", list)
    assert readme.update(path)
    none = f"{readme.claims.NONE}\n"
    assert path.read_text() == performance.format(readme.section([GPU])) + claims.format(none)
    assert not readme.update(path)
    path.write_text("no marks\n")
    with pytest.raises(ValueError, match="performance"):
        readme.update(path)
    path.write_text(performance.format(""))
    with pytest.raises(ValueError, match="claims"):
        readme.update(path)


def test_committed_results_are_read_without_samples(tmp_path):
    write(GPU, tmp_path / "gpu.json")
    write(bench_samples.cpu(), tmp_path / "cpu.json")
    assert committed(tmp_path) == [GPU]
