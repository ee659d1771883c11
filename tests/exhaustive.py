"""Every elementwise formula on all 2^32 values of a float32, against a truth in float64.

    python -m tests.exhaustive run numpy host            # some twenty minutes on two cores
    python -m tests.exhaustive run cupy triton           # on a GPU
    python -m tests.exhaustive run numpy --part 1/4      # a quarter of it
    python -m tests.exhaustive record                    # the record of what has run

A run appends a line for each slice it has done to a log (`--log`, one for each machine if it is
split), and leaves out what the log has of the same sources: so it is stopped and goes on. `record`
writes tests/records/float32.json, from logs that cover everything. What a formula reads beside the
operand that is swept has the fixed values of OTHERS; y, which no function makes larger than 1 but
relu, is swept from −1 to 1.

float64 is truth enough: its errors are below 2^-26 ulp of a float32. Each slice holds a sample of
it, and the truth at its worst input, against the extended precision of tests/truth.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from inspect import getsource, isfunction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from gpuact import reference
from tests import host, truth
from tests.bounds import BOUNDS, FLUSHED, FLUSHING, operand_names
from tests.truth import Array

RECORD = Path(__file__).parent / "records" / "float32.json"
LOG = Path("build") / "exhaustive.jsonl"
ROOT = Path(__file__).parents[1]
SOURCES = {  # family → files that its results follow from; of NumPy's, what is swept of it
    "numpy": (),
    "host": ("kernels/cupy/formulas.cuh",),
    "cupy": ("kernels/cupy/formulas.cuh", "kernels/cupy/elementwise.py"),
    "triton": ("kernels/triton/formulas.py", "kernels/triton/elementwise.py"),
}
OTHERS = {"dy": (-2.71875,), "slope": (0.01, -1.75), "scale": (-1.75,), "bias": (-0.7,)}
SLICE, BLOCK = 1 << 26, {"cpu": 1 << 18, "gpu": 1 << 26}
SAMPLE = 1 << 12  # of so many inputs, one is held against extended precision
EDGE = float(np.finfo(np.float32).max) + 2.0**103  # what rounds to infinity

# -- what is computed -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """A formula, which of its operands takes every value, and the values of the others."""

    formula: str
    swept: str
    others: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        fixed = ", ".join(f"{name} = {value:g}" for name, value in self.others)
        return f"{self.formula}({self.swept}{', ' if fixed else ''}{fixed})"

    @property
    def slices(self) -> list[int]:
        """Numbers of the slices of bit patterns; a y is none of those beyond ±1."""
        if self.swept != "y" or self.formula == "relu_backward":
            return list(range((1 << 32) // SLICE))
        one = int(np.float32(1).view(np.uint32)) // SLICE
        sign = (1 << 31) // SLICE
        return [*range(one + 1), *range(sign, sign + one + 1)]

    def operands(self, values: Any) -> list[Any]:
        """In the formula's order: the swept array, and float32 numbers."""
        fixed = {name: np.float32(value) for name, value in self.others}
        return [values if n == self.swept else fixed[n] for n in operand_names(self.formula)]


def roles(formula: str) -> tuple[str, list[str]]:
    """The operand that is swept, x or y or dy alone, and the others."""
    names = operand_names(formula)
    swept = next((name for name in names if name in "xy"), names[0])
    return swept, [name for name in names if name != swept]


def _sweeps() -> Iterator[Sweep]:
    for formula in BOUNDS:
        swept, fixed = roles(formula)
        for values in product(*(OTHERS[name] for name in fixed)):
            yield Sweep(formula, swept, tuple(zip(fixed, values, strict=True)))


SWEEPS = {sweep.name: sweep for sweep in _sweeps() if sweep.formula in truth.FLOAT64}


# -- who computes it ------------------------------------------------------------------------------

Run = Callable[[str, list[Any]], Any]  # formula, operands → float32, in the memory of `values`


def _host(formula: str, operands: list[Any]) -> Array:
    return host.elementwise(formula, "float32", *operands)


def _backend(name: str, native: Callable[[Any], Any]) -> Run:
    backend = import_module(f"gpuact.backends.{name}")

    def run(formula: str, operands: list[Any]) -> Any:
        """Arrays are what the kernel reads, numbers its parameters, but for a fixed dy."""
        values = next(a for a in operands if a.ndim)
        xp = np if isinstance(values, np.ndarray) else import_module("cupy")
        if operand_names(formula)[0] == "dy" and not operands[0].ndim:
            operands = [xp.full_like(values, operands[0]), *operands[1:]]
        arrays = tuple(native(a) for a in operands if a.ndim)
        numbers = tuple(float(a) for a in operands if not a.ndim)
        out = xp.full_like(values, np.nan)
        backend.elementwise(formula, arrays, numbers, native(out), _no_temporaries)
        return out

    return run


def _no_temporaries(shape: tuple[int, ...], dtype: str) -> Any:
    raise AssertionError("an elementwise kernel asked for memory")


@cache
def _runner(family: str) -> tuple[Run, Any]:
    """Who runs a formula, and the module its arrays belong to."""
    if family == "host":
        return _host, np
    if family == "numpy":
        return _backend("numpy", lambda a: a), np
    cupy = import_module("cupy")
    if family == "cupy":
        return _backend("cupy", lambda a: a), cupy
    return _backend("triton", import_module("torch").from_dlpack), cupy


# -- the comparison -------------------------------------------------------------------------------


def errors(xp: Any, sweep: Sweep, family: str, got: Any, values: Any) -> tuple[Any, Any]:
    """The error of each element in ulp, inf where NaN or infinity is at the wrong place; the truth.

    What flushing may change on a GPU, 2^-126 times what it is multiplied by, is no error there.
    """
    wide = [widened(xp, a) for a in sweep.operands(values)]
    value = xp.broadcast_to(truth.FLOAT64[sweep.formula](xp, *wide), values.shape)
    size = xp.abs(value)
    if sweep.formula == "linear":
        x, scale, bias = wide
        size = xp.abs(scale * x) + xp.abs(bias)
    bits = xp.ascontiguousarray(size).view(np.int64)
    power = (bits & np.int64(0x7FF << 52)).view(np.float64)  # of two, not above the size
    unit = xp.clip(power, 2.0**-126, 2.0**127) * 2.0**-23
    error = xp.abs(widened(xp, got) - value)
    if family in FLUSHING:
        largest = max([1.0, *(abs(number) for _, number in sweep.others)])
        error = xp.maximum(error - float(FLUSHED) * largest, 0)
    error /= unit
    if not bool(xp.isfinite(error.max())):
        same = (got == value) | (xp.isnan(got) & xp.isnan(value))
        beyond = xp.isinf(got) & (xp.sign(got) == xp.sign(value)) & (xp.abs(value) >= EDGE)
        error = xp.where(same | beyond, 0, xp.where(xp.isnan(error), np.inf, error))
    return error, value


def widened(xp: Any, x: Any) -> Any:
    """float64 of a float32, subnormal ones too, which CuPy's own conversion flushes to zero."""
    wide = xp.asarray(x, np.float64)
    if not getattr(x, "ndim", 0):
        return wide
    fraction = x.view(np.uint32) & np.uint32((1 << 23) - 1)
    least = xp.copysign(fraction.astype(np.float64) * 2.0**-149, wide)
    return xp.where(x.view(np.uint32) & np.uint32(0xFF << 23), wide, least)


def verify(sweep: Sweep, values: Array, value: Array) -> None:
    """The float64 truth is that of extended precision."""
    exact = truth.elementwise(sweep.formula, *sweep.operands(values))
    with np.errstate(all="ignore"):
        near = np.abs(exact - value) <= np.abs(exact) * 2.0**-49 + 2.0**-180
    if sweep.formula == "linear":  # where the sum cancels
        near |= np.abs(exact - value) <= 2.0**-52
    same = near | (exact == value) | (np.isnan(exact) & np.isnan(value))
    assert same.all(), f"{sweep.name}: float64 is no truth at {values[~same][:3]}"


def one_slice(family: str, name: str, index: int, count: int = SLICE) -> dict[str, Any]:
    """The worst of a slice (or of its first `count` values), as a line of the log."""
    sweep, (run, xp) = SWEEPS[name], _runner(family)
    begin, worst = time.perf_counter(), (-1.0, 0.0, 0.0)
    block = min(count, BLOCK["cpu" if xp is np else "gpu"])
    with np.errstate(all="ignore"):
        for first in range(index * SLICE, index * SLICE + count, block):
            values = xp.arange(first, first + block, dtype=np.uint32).view(np.float32)
            if sweep.swept == "y" and sweep.formula != "relu_backward":
                values = xp.where(xp.abs(values) > 1, np.float32(0.5), values)
            got = run(sweep.formula, sweep.operands(values))
            error, value = errors(xp, sweep, family, got, values)
            at = int(error.argmax())
            some = xp.append(xp.arange(first % SAMPLE, block, SAMPLE), at)
            on_host = (a if xp is np else a.get() for a in (values[some], value[some]))
            verify(sweep, *on_host)
            if float(error[at]) > worst[0]:
                worst = tuple(float(a[at]) for a in (error, values, got))
    error_at, x, y = worst
    return {
        "family": family,
        "sweep": name,
        "slice": index,
        "inputs": count,
        "sources": sources(family),
        "ulp": error_at,
        "at": x.hex(),
        "got": y.hex(),
        "seconds": round(time.perf_counter() - begin, 2),
    }


@cache
def sources(family: str) -> str:
    """A hash of the text that a family's results follow from."""
    texts = [(ROOT / name).read_bytes() for name in SOURCES[family]]
    if family == "numpy":
        texts = [text.encode() for text in _reference()]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:16]


def _reference() -> list[str]:
    """The text of every function of the reference that a sweep calls, by their names' order."""
    found: dict[str, str] = {}
    names = [sweep.formula for sweep in SWEEPS.values()]
    for name in names:  # which grows by what is called in turn
        function = vars(reference).get(name)
        if isfunction(function) and name not in found:
            found[name] = getsource(function).rstrip() + "\n"
            names += function.__code__.co_names
    return [found[name] for name in sorted(found)]


# -- the command ----------------------------------------------------------------------------------


def logged(logs: Sequence[Path]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """What has been done of the sources as they are."""
    lines = (line for path in logs if path.exists() for line in path.read_text().splitlines())
    found = map(json.loads, lines)
    return {
        (done["family"], done["sweep"], done["slice"]): done
        for done in found
        if done["sources"] == sources(done["family"]) and done["inputs"] == SLICE
    }


def run(families: Sequence[str], log: Path, part: str, workers: int) -> int:
    from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

    this, of = map(int, part.split("/"))
    every = [(f, s.name, k) for f in families for s in SWEEPS.values() for k in s.slices]
    done = logged([log])
    left = [job for job in every[this - 1 :: of] if job not in done]
    log.parent.mkdir(parents=True, exist_ok=True)
    columns = (*Progress.get_default_columns()[:3], TimeElapsedColumn(), TimeRemainingColumn())
    breaches = 0
    with Progress(*columns) as progress, log.open("a") as lines:
        bar = progress.add_task(f"{len(left)} slices of 2^26", total=len(left))

        def keep(line: dict[str, Any]) -> None:
            nonlocal breaches
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            progress.advance(bar)
            if line["ulp"] > bound(line["family"], line["sweep"]):
                breaches += 1
                where = f"{line['ulp']} ulp at {float.fromhex(line['at'])!r}"
                progress.print(f"BREACH {line['family']} {line['sweep']}: {where}")

        if set(families) <= {"numpy", "host"}:
            with ProcessPoolExecutor(workers) as pool:
                for future in as_completed(pool.submit(one_slice, *job) for job in left):
                    keep(future.result())
        else:  # one GPU, one process
            for job in left:
                keep(one_slice(*job))
    return breaches


def bound(family: str, sweep: str) -> float:
    return BOUNDS[SWEEPS[sweep].formula][family][0]


def record(logs: Sequence[Path], path: Path = RECORD) -> None:
    """Write the record of all families that the logs cover, beside what it has of others."""
    done = logged(logs)
    known = json.loads(path.read_text()) if path.exists() else {}
    for family in dict.fromkeys(job[0] for job in done):
        known[family] = {"sources": sources(family), "machine": machine(family), "sweeps": {}}
        for sweep in SWEEPS.values():
            missing = [k for k in sweep.slices if (family, sweep.name, k) not in done]
            if missing:
                raise SystemExit(f"{family}: {sweep.name} lacks {len(missing)} slices of 2^26")
            lines = [done[family, sweep.name, k] for k in sweep.slices]
            worst = max(lines, key=lambda line: line["ulp"])
            known[family]["sweeps"][sweep.name] = {
                "inputs": sum(line["inputs"] for line in lines),
                "ulp": float(f"{worst['ulp']:.6g}"),
                **{key: worst[key] for key in ("at", "got")},
            }
        spent = (line["seconds"] for line in done.values() if line["family"] == family)
        known[family]["seconds"] = round(sum(spent))
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def machine(family: str) -> dict[str, str]:
    import ml_dtypes

    found = {"numpy": np.__version__, "ml_dtypes": ml_dtypes.__version__}
    if family == "host":
        found = {"libc": "".join(platform.libc_ver())}
    if family in FLUSHING:
        cupy = import_module("cupy")
        properties = cupy.cuda.runtime.getDeviceProperties(0)
        found |= {"gpu": properties["name"].decode(), "cupy": cupy.__version__}
    if family == "triton":
        found |= {"triton": import_module("triton").__version__}
    return {**found, "python": platform.python_version(), "processor": processor()}


def processor() -> str:
    """The name of the CPU, on Linux; elsewhere its architecture."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.exhaustive",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="what the log does not have yet")
    runs.add_argument("families", nargs="+", choices=SOURCES)
    runs.add_argument("--log", type=Path, default=LOG)
    runs.add_argument("--part", default="1/1", help="the k-th of n parts: k/n")
    runs.add_argument("--workers", type=int, default=os.cpu_count())
    records = commands.add_parser("record", help=f"write {RECORD.relative_to(ROOT)}")
    records.add_argument("logs", nargs="*", type=Path, default=[LOG])
    given = parser.parse_args(arguments)
    if given.command == "record":
        record(given.logs)
        return 0
    return run(given.families, given.log, given.part, given.workers)


if __name__ == "__main__":
    sys.exit(main())
