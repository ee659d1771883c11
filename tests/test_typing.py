"""The types that a user's checker infers, from tests/typing_cases.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT / "tests" / "typing_cases.py"
pytest.importorskip("mypy")
pytest.importorskip("torch")


def check(file: Path, cache: Path) -> str:
    """What mypy has to say of a file; of gpuact's own it is `make lint` that speaks."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"]
    command += ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache), str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return "\n".join(line for line in done.stdout.splitlines() if file.name in line)


def test_the_array_type_that_goes_in_comes_out(tmp_path: Path) -> None:
    assert check(CASES, tmp_path / "cache") == ""

    # and the checker does look: with one wrong expectation it speaks up
    wrong = tmp_path / "wrong.py"
    right = "assert_type(gpuact.sigmoid(x), torch.Tensor)"
    assert right in CASES.read_text()
    wrong.write_text(CASES.read_text().replace(right, "assert_type(gpuact.sigmoid(x), str)"))
    complaint = check(wrong, tmp_path / "cache")
    assert complaint.count("error:") == 1
    assert '"Tensor", not "str"' in complaint
