"""What is printed of a run while it goes on."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("rich")
from bench import console, goals
from tests.benchmarks import CUPY, TRITON, row, timing


def test_goals_stand_below_their_cases_with_who_was_better(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = goals.rows_goals("NVIDIA H100 80GB HBM3")
    case = asked[-1].case
    rows = [
        row(case, CUPY, 1.0, call=timing(3.0)),
        row(case, TRITON, 2.0, call=timing(2.0)),
        row(case, "torch", 3.0, call=timing(1.0)),
    ]
    console.print_verdicts(console.console(), goals.verdicts(rows, asked))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "Goals",
        "softmax bfloat16 32768×256",
        "  not measured: gpuact on CuPy or gpuact on Triton, goal ≥ 1,900 GB/s",
    ]
    assert lines[-4:] == [
        "softmax bfloat16 4×131072",
        "  held: gpuact on CuPy 3.00 beside every rival, goal ≥ 1 times as fast",
        "softmax bfloat16 4×131072, a plain call",
        "  missed: gpuact on Triton 0.50 beside every rival, goal ≥ 1 times as fast",
    ]
    assert lines.count("log_softmax bfloat16 32768×50257") == 1


def test_goals_are_counted_and_the_missed_ones_named(capsys: pytest.CaptureFixture[str]) -> None:
    def verdict(case: str, value: float | None, **more: Any) -> goals.Verdict:
        goal = goals.Goal(case, ("copy",), 0.95, ours=("gpuact on CuPy",), **more)
        return goals.Verdict(goal, value, value is not None and goal.held(value), goal.who)

    found = [verdict("relu", 0.96), verdict("tanh", 0.94), verdict("prelu", None)]
    console.print_goals(console.console(), found)
    printed = capsys.readouterr().out
    words = " ".join(printed.replace("│", " ").split())
    for told in ("≥ 0.95 times as fast", "1 held, 1 missed, 1 not measured"):
        assert told in words
    assert "gpuact on CuPy: tanh beside copy: missed with 0.94" in words
    assert "relu beside" not in words
    lines = [console.verdict(v) for v in (*found[1:], verdict("relu", 0.96, column="call"))]
    assert lines == [
        "gpuact on CuPy: tanh beside copy: missed with 0.94",
        "gpuact on CuPy: prelu beside copy: not measured",
        "gpuact on CuPy: relu, a plain call beside copy: held with 0.96",
    ]
