"""How far every function is from the truth: the table of bounds, and what was measured.

    python -m tests.accuracy               # `make accuracy`: measure, print, fail on a breach
    python -m tests.accuracy --record      # and write tests/records/accuracy.json and README.md

An elementwise formula is measured on all values of a half type, and of float32 and float64 on a
sweep of them and, for float32, where the run over all 2^32 of them (tests/exhaustive.py) found the
worst. The backends are those that run here: NumPy; the text of the CUDA formulas, compiled by the
host's compiler; Triton's interpreter; CuPy's and Triton's kernels on a GPU, and where there is
none, compiled, and executed by tests/ptxrun with every approximate instruction off by as much as
documented.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuact.catalogue import FUNCTIONS
from tests import bounds, exhaustive, harness, host, truth
from tests.bounds import BOUNDS, DTYPES, FAMILIES, operand_names
from tests.harness import Executor
from tests.truth import Array

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "tests" / "records" / "accuracy.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- accuracy -->\n", "<!-- end -->"

# What the other operands take on while x, or the y or dy that backward reads, sweeps its values.
OTHERS = {
    "dy": (1.0, -2.71875, 1e-40),
    "slope": (0.01, -1.75),
    "scale": (1.0, -1.75),
    "bias": (0.0, -0.7),
}
PARAMETERS = ("slope", "scale", "bias")  # numbers, not arrays
STRIDE = {"numpy": 1, "host": 1, "cupy": 16, "triton": 16, "interpreter": 8}  # through the sweep
LENGTHS = (1, 2, 33, 1000, 5003)  # of rows


# -- elementwise ----------------------------------------------------------------------------------


def sweep(dtype: str, stride: int = 1) -> Array:
    """All values of a half type; of the others every nth bit pattern, with care where it counts."""
    if dtype in ("float16", "bfloat16"):
        return np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype])
    bits = np.dtype(f"u{DTYPES[dtype].itemsize}")
    patterns = np.arange(1 << 18, dtype=bits) * bits.type(np.iinfo(bits).max >> 18)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], DTYPES[dtype])
    edges = np.arange(5, dtype=bits)  # the smallest subnormals
    near = np.concatenate([np.linspace(-r, r, 40_001) for r in (0.1, 2.0, 20.0, 110.0, 800.0)])
    dense = [patterns.view(DTYPES[dtype])[::stride], near.astype(DTYPES[dtype])[::stride]]
    return np.concatenate([special, edges.view(DTYPES[dtype]), *dense])


def worst_known(formula: str) -> list[float]:
    """Where the run over all float32 found the largest errors of a formula."""
    if not exhaustive.RECORD.exists():
        return []
    record = json.loads(exhaustive.RECORD.read_text())
    return sorted(
        float.fromhex(found["at"])
        for of in record.values()
        for name, found in of["sweeps"].items()
        if exhaustive.SWEEPS[name].formula == formula
    )


def operands(formula: str, dtype: str, stride: int = 1) -> Iterator[list[Array]]:
    """A sweep of x or y (or dy alone) with every combination of the others, as stored in dtype."""
    swept, _ = exhaustive.roles(formula)
    values = sweep(dtype, stride)
    if dtype == "float32":
        values = np.concatenate([values, np.array(worst_known(formula), np.float32)])
    if swept == "y" and formula != "relu_backward":
        with np.errstate(invalid="ignore"):  # signalling NaN
            values = values[~(np.abs(values) > 1)]  # there is no such y, and y·y may overflow
    choices = [
        [values] if n == swept else OTHERS[n] + exhaustive.OTHERS[n] * (dtype == "float32")
        for n in operand_names(formula)
    ]
    for chosen in product(*(dict.fromkeys(c) if isinstance(c, tuple) else c for c in choices)):
        yield np.broadcast_arrays(*(np.asarray(v, DTYPES[dtype]) for v in chosen))


def run(executor: Executor | None, formula: str, dtype: str, given: list[Array]) -> Array:
    """On a backend; None: the text of the CUDA formulas on the host."""
    if executor is None:
        return host.elementwise(formula, dtype, *given)
    names = operand_names(formula)
    arrays = [a for n, a in zip(names, given, strict=True) if n not in PARAMETERS]
    numbers = [float(a.flat[0]) for n, a in zip(names, given, strict=True) if n in PARAMETERS]
    placed = [executor.place(np.ascontiguousarray(a)) for a in arrays]
    result = executor.place(np.empty_like(arrays[0]), blank=True)
    inputs = tuple(a.native for a in placed)
    executor.backend.elementwise(formula, inputs, tuple(numbers), result.native, executor.empty)
    return result.numpy()


def elementwise(
    executor: Executor | None, formula: str, dtype: str, stride: int = 1
) -> dict[str, Any]:
    """The largest error in ulp and where it is, and how many inputs were tried."""
    family = "host" if executor is None else executor.family
    worst: dict[str, Any] = {"ulp": -1.0}
    inputs = 0
    for given in operands(formula, dtype, stride):
        got = run(executor, formula, dtype, given)
        value = truth.elementwise(formula, *given)
        error = bounds.measured(got, formula, family, dtype, given, value)
        at = int(error.argmax())
        inputs += error.size
        if error[at] > worst["ulp"]:
            where = zip(operand_names(formula), (float(a[at]) for a in given), strict=True)
            worst = {"ulp": float(f"{error[at]:.4g}"), "at": dict(where)}
    stated = bounds.stated(formula, family, dtype)
    return {"of": formula, "dtype": dtype, "family": family, "bound": stated, "inputs": inputs,
            **worst}  # fmt: skip


# -- rows -----------------------------------------------------------------------------------------


def rows(executor: Executor, dtype: str) -> Iterator[dict[str, Any]]:
    """Of each row function the largest share of its bound, and the length of that row."""
    from tests import test_backends as on

    found: dict[str, tuple[float, int]] = {}
    for n in LENGTHS:
        x = (np.random.default_rng(n).standard_normal((40, n, 1)) * 4).astype(DTYPES[dtype])
        for formula in on.ROW_FORMULAS:
            arrays = on.row_operands(formula, x)
            value = truth.ROWS[formula](*arrays)
            allowed = bounds.rows(formula, dtype, arrays, value)
            share = bounds.check(on.run_rows(executor, formula, arrays), value, allowed, dtype)
            found[formula] = max(found.get(formula, (-1.0, 0)), (share, n))
        for case in ("plain", "probabilities, all"):
            losses = on.run_losses(executor, on.ce_inputs((9, n, 1), dtype, on.CE_CASES[case]))
            for name, share in losses.found.items():
                what = f"cross_entropy: {name}"
                found[what] = max(found.get(what, (-1.0, 0)), (share, n))
    for formula, (share, n) in found.items():
        yield {"of": formula, "dtype": dtype, "family": executor.family, "bound": 1.0,
               "share": float(f"{share:.2g}"), "at": {"n": n}}  # fmt: skip


# -- all of it ------------------------------------------------------------------------------------


def measure(family: str) -> list[dict[str, Any]]:
    """Everything of one family of backends, in this process."""
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        executor = None if family == "host" else harness.make(executor_of(family), patch)
        if executor is not None and executor.name.endswith("-ptx"):
            executor.options.update(noise=1.0, seed=1)
        found = [
            elementwise(executor, formula, dtype, STRIDE[family])
            for formula, dtype in product(BOUNDS, DTYPES)
        ]
        if executor is not None:
            for dtype in DTYPES:
                found += rows(executor, dtype)
        name = "host" if executor is None else executor.name
    return [{**line, "executor": name} for line in found]


def executor_of(family: str) -> str:
    """A GPU where one answers."""
    if family in bounds.FLUSHING:
        return f"{family}-{'ptx' if harness.no_gpu(family) else 'cuda'}"
    return "triton-interpreter" if family == "interpreter" else family


def in_a_process(family: str) -> list[dict[str, Any]]:
    """Triton reads TRITON_INTERPRET when a kernel is defined."""
    environment = {**os.environ, "TRITON_INTERPRET": str(int(family == "interpreter"))}
    command = [sys.executable, "-m", "tests.accuracy", "--family", family]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{family}: could not be measured")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def breaches(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line.get("ulp", line.get("share")) > line["bound"]]


# -- the table ------------------------------------------------------------------------------------

TITLES = {
    "numpy": "NumPy",
    "host": "CUDA formulas on the host",
    "cupy-ptx": "CuPy, its PTX interpreted",
    "cupy-cuda": "CuPy on a GPU",
    "triton-ptx": "Triton, its PTX interpreted",
    "triton-cuda": "Triton on a GPU",
    "triton-interpreter": "Triton's interpreter",
}


def _number(x: float) -> str:
    return f"{x:.3g}".replace("e-0", "e-").replace("e+0", "e+").replace("-", "−")


def _cell(line: dict[str, Any]) -> str:
    """The bound, the largest error found, and its input."""
    if "share" in line:
        return f"{line['share']:.2g} (n = {line['at']['n']})"
    if not line["bound"]:
        return "0"
    swept, _ = exhaustive.roles(line["of"])
    where = f", {swept} = {_number(line['at'][swept])}" if line["ulp"] else ""
    return f"{line['bound']:.3g} ({line['ulp']:.3g}{where})"


def _label(formula: str) -> str:
    """The public functions that a formula is."""
    names = [
        f"`{f.name}{ending}`"
        for f in FUNCTIONS.values()
        for ending, kernel in (("", f.forward), ("_backward", f.backward), ("_derivative", f.slope))
        if kernel is not None and kernel.formula == formula
    ]
    return ", ".join(names) or f"`{formula}`"


def table(lines: Sequence[dict[str, Any]], dtype: str, what: str) -> list[str]:
    """Markdown; what: "ulp" of elementwise functions, or the "share" of a row's bound."""
    chosen = [line for line in lines if line["dtype"] == dtype and what in line]
    columns = list(dict.fromkeys(line["executor"] for line in chosen))
    text = [
        f"| {dtype} | " + " | ".join(TITLES[name] for name in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for formula in dict.fromkeys(line["of"] for line in chosen):
        cells = {line["executor"]: _cell(line) for line in chosen if line["of"] == formula}
        text.append("| " + " | ".join([_label(formula), *(cells[name] for name in columns)]) + " |")
    return text


def page(lines: Sequence[dict[str, Any]]) -> str:
    """What README.md has between its marks."""
    parts = []
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        body = [*table(lines, dtype, "ulp"), "", *table(lines, dtype, "share")]
        if dtype != "float32":
            body = [f"<details><summary>{dtype}</summary>", "", *body, "", "</details>"]
        parts.append("\n".join(body))
    return "\n\n".join(parts) + "\n"


def write(lines: Sequence[dict[str, Any]]) -> None:
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text("[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n")
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(before + BEGIN + page(lines) + END + rest.partition(END)[2])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy")
    parser.add_argument("--family", choices=FAMILIES, help="print what one measures, as JSON")
    parser.add_argument("--record", action="store_true", help="write the record and README.md")
    given = parser.parse_args(arguments)
    if given.family:
        json.dump(measure(given.family), sys.stdout)
        return 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lines = [line for found in pool.map(in_a_process, FAMILIES) for line in found]
    print("Each cell: the bound in ulp of the dtype, and in brackets the largest error found and")
    print("its input; of rows the share of the bound that was found, and the length of the row.\n")
    print(page(lines))
    for line in breaches(lines):
        print(f"BREACH: {line}")
    if given.record:
        write(lines)
    elif page(lines) not in README.read_text():
        print("README.md has other figures, of another machine perhaps; --record writes these.")
    return 1 if breaches(lines) else 0


if __name__ == "__main__":
    sys.exit(main())
