"""`python -m gpuact`: what it prints, what it draws, and how it says no."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuact
from gpuact import cli
from gpuact.catalogue import FUNCTIONS
from gpuact.cli import main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(params=[80, 120])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of the terminal."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def printed_by(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    pytest.importorskip("rich")
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def words(text: str) -> list[str]:
    return text.replace("│", " ").split()


# -- what is printed ------------------------------------------------------------------------------


def test_info_tells_the_versions_and_every_backend(
    capsys: pytest.CaptureFixture[str], width: int
) -> None:
    printed = printed_by(capsys, "info")
    assert f"gpuact {gpuact.__version__}" in printed
    assert f"numpy {np.__version__}" in printed
    assert "device: " in printed
    for backend in gpuact.backends().values():
        (line,) = (line for line in printed.splitlines() if line.startswith(f"{backend.name} "))
        assert line.split()[1] == ("yes" if backend.available else "no")
        for word in backend.reason.split():  # "gpuact[cuda13]" with its brackets
            assert word[: width // 4] in printed
    assert max(map(len, printed.splitlines())) <= width


def test_list_holds_every_function_in_full(capsys: pytest.CaptureFixture[str], width: int) -> None:
    printed = printed_by(capsys, "list")
    assert max(map(len, printed.splitlines())) <= width
    rows = printed.split("\n" + " " * width + "\n")
    assert len(rows) == len(FUNCTIONS)
    for row, record in zip(rows, FUNCTIONS.values(), strict=True):
        for text in (record.formula, record.derivative, record.kink):
            assert set(text.split()) <= set(words(row))
        assert record.name in row
        assert record.range in row


@pytest.mark.parametrize("name", FUNCTIONS)
def test_describe_tells_all_of_the_record(
    capsys: pytest.CaptureFixture[str], name: str, width: int
) -> None:
    printed = printed_by(capsys, "describe", name)
    record = FUNCTIONS[name]
    assert max(map(len, printed.splitlines())) <= width
    flat = " ".join(words(printed))
    for text in (record.formula, record.derivative, record.range, record.uses, record.limitations):
        assert " ".join(text.split()) in flat


# -- what is drawn --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_plot_writes_a_picture(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    path = tmp_path / f"{name}.png"
    assert main(["plot", name, "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert 10_000 < path.stat().st_size < 200_000
    picture = imread(path)
    assert picture.shape == (600, 960, 4)
    for colour in cli.PALETTE:
        shade = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        near = np.abs(picture[..., :3] - shade).max(-1) < 0.02
        assert near.sum() > 500, colour
        assert np.ptp(np.nonzero(near)[1]) > 480  # drawn across the picture


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_derivative_drawn_is_the_curves_slope(name: str) -> None:
    record = FUNCTIONS[name]
    x = np.linspace(-cli.SPAN, cli.SPAN, cli.POINTS)
    x, y, dy, _ = cli.CURVES[record.kind](record, x)
    inside = np.abs(x) > 0.05  # not at a kink, be it the derivative's
    inside[:2] = inside[-2:] = False
    assert np.allclose(np.gradient(y, x)[inside], dy[inside], atol=1e-3)
    assert x[cli.POINTS // 2] == 0


def test_loss_and_softmax_are_those_of_two_classes() -> None:
    x = np.array([-2.0, 0.0, 2.0])
    _, y, _, _ = cli.CURVES["rows"](FUNCTIONS["softmax"], x)
    _, loss, _, _ = cli.CURVES["loss"](FUNCTIONS["cross_entropy"], x)
    assert np.allclose(y, 1 / (1 + np.exp(-x)))
    assert np.allclose(loss, np.log1p(np.exp(-x)))


# -- how it says no -------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line of the refusal."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("argv", [("describe", "swish"), ("plot", "swish", "-o", "x.png")])
def test_an_unknown_name_is_answered_with_the_known(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, *argv)
    assert "'swish' came" in line
    assert ", ".join(FUNCTIONS) in line


@pytest.mark.parametrize("file", ["no-such-folder/x.png", "x.nonsense"])
def test_a_file_that_cannot_be_written(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    line = refused(capsys, "plot", "relu", "-o", str(tmp_path / file))
    assert f"{tmp_path / file} cannot be written: " in line


@pytest.mark.parametrize(
    ("missing", "argv"),
    [
        ("rich", ["info"]),
        ("rich", ["list"]),
        ("rich", ["describe", "relu"]),
        ("matplotlib", ["plot", "relu", "-o", "x.png"]),
    ],
)
def test_a_missing_package_is_answered_with_the_extra(
    missing: str,
    argv: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    line = refused(capsys, *argv)
    assert missing in line
    assert 'pip install "gpuact[cli]"' in line


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([])
    assert error.value.code == 2
    assert "usage: python -m gpuact" in capsys.readouterr().err


# -- as people start it ---------------------------------------------------------------------------


def start(*argv: str) -> subprocess.CompletedProcess[str]:
    environment: dict[str, Any] = os.environ | {"PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-W", "error", "-m", "gpuact", *argv]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", env=environment
    )


def test_the_module_runs_and_hands_its_code_on() -> None:
    pytest.importorskip("rich")
    done = start("describe", "tanh")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 − y²" in done.stdout
    assert start("describe", "swish").returncode == 2
