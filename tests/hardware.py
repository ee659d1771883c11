"""All that only a GPU can prove, each part in a process of its own and within its time.

    python -m tests.hardware                              # an hour at most
    python -m tests.hardware tests bench --minutes 12     # some parts; in all at most so long
    python -m tests.hardware --record tests/records/hardware.json

What fails, hangs or takes the GPU's context along holds up nothing that comes after it. A part that
is out of time is interrupted, and counts as far as it came. Logs, reports and results go to
build/hardware (`--out`); the record says what ran, how it ended, on what and of which sources.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import result, suites

ROOT = Path(__file__).parents[1]
OUT = Path("build") / "hardware"
GRACE = 30.0  # seconds to end in, once interrupted
SHOWN = 20  # lines of a log whose part failed

PYTEST = (sys.executable, "-m", "pytest", "-q")
# A test that hangs is shown and ends its process; xdist begins another, and reports the test.
HANGS = ("-o", "faulthandler_timeout=120", "-o", "faulthandler_exit_on_timeout=true")
# Beside each other: most of a test's time is its compiler's.
SERIAL = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # in each of them
BESIDE = ("--numprocesses", "auto", "--maxprocesses", "16", "--dist", "worksteal")
BENCH = (sys.executable, "-m", "bench", "--out", "{out}")
# Of a checker's own speed: a few files, the pools off, so that it knows where an array ends.
CHECKER = ("compute-sanitizer", "--error-exitcode", "9", "--print-limit", "20", "--tool")
CHECKED = ("tests/test_functions.py", "tests/test_cross_entropy.py", "tests/test_stats.py")
NO_POOLS = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


@dataclass(frozen=True)
class Part:
    """A command, with {out} for the folder that it may write to."""

    name: str
    proves: str
    minutes: float  # at most
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


PARTS = (
    Part(
        *("tests", "every function, dtype and library; graphs, streams, threads", 6),
        (*PYTEST, *HANGS, *BESIDE, "-m", "gpu"),
        SERIAL,
    ),
    Part(
        *("large", "more than 2^31 elements", 2),
        (*PYTEST, *HANGS, "-m", "cuda", "tests/test_large_arrays.py"),
    ),
    Part(
        *("kernels", "how fast gpuact is: every kernel in every dtype", 6),
        (*BENCH, "--providers", "gpuact", "--minutes", "5"),
    ),
    Part(
        *("bench", "how fast beside others, the headline first", 10),
        (*BENCH, "--minutes", "8"),
    ),
    Part(
        *("memcheck", "no access out of bounds", 4),
        (*CHECKER, "memcheck", *PYTEST, "-m", "gpu", *CHECKED),
        NO_POOLS,
    ),
    Part(
        *("racecheck", "no race for shared memory", 4),
        (*CHECKER, "racecheck", *PYTEST, "-m", "gpu", *CHECKED),
        NO_POOLS,
    ),
    Part(
        *("float32", "every float32 through every formula", 8),
        (*(sys.executable, "-m", "tests.exhaustive", "run", "cupy", "triton"),)
        + ("--log", "{out}/float32.jsonl"),
    ),
    Part(
        *("slow", "every dtype on every library", 15),
        (*PYTEST, *BESIDE, "-m", "cuda and slow and not soak"),
        SERIAL,
    ),
)


@dataclass(frozen=True)
class Ended:
    """What became of a part."""

    name: str
    how: str  # "passed", "failed", "out of time", or a sentence on why it was not run
    code: int | None = None
    seconds: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)
    failures: Sequence[str] = ()

    @property
    def line(self) -> str:
        told = ", ".join(f"{n} {what}" for what, n in self.counts.items() if n)
        return f"{self.name:10} {self.seconds:6.0f} s  {self.how}{f': {told}' if told else ''}"


def run(part: Part, out: Path, seconds: float) -> Ended:
    """The part, its output in a file, for so many seconds at most."""
    command = [word.format(out=out) for word in part.command]
    if shutil.which(command[0]) is None:
        return Ended(part.name, f"not run: there is no {command[0]} on the PATH")
    asked = {
        "GPUACT_REQUIRE_GPU": "1",
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
        **part.environment,
    }
    begin, late = time.monotonic(), False
    path = out / f"{part.name}.log"
    with path.open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **asked},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # with all that it starts, it can be ended
            preexec_fn=_can_be_interrupted,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            late = True
            _end(process, signal.SIGINT)
        finally:
            _end(process, signal.SIGKILL)
    counts, failures = tests_of(path.read_text(errors="replace"))
    how = "out of time" if late else "failed" if process.returncode else "passed"
    spent = round(time.monotonic() - begin, 1)
    return Ended(part.name, how, process.returncode, spent, counts, failures)


def _can_be_interrupted() -> None:
    """A shell has what it runs in the background ignore Ctrl-C, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """The part and whatever it has left behind."""
    try:
        os.killpg(process.pid, how)
        process.wait(GRACE)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass


def tests_of(log: str) -> tuple[dict[str, int], list[str]]:
    """From pytest's last words: how many passed, failed, were skipped; which failed, and why."""
    lines = log.splitlines()
    summaries = [line for line in lines if re.search(r"\d+ \w+.* in [\d.]+s\b", line)]
    found = re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", " ".join(summaries[-1:]))
    counts = {what.removesuffix("s"): int(n) for n, what in found}
    return counts, [line for line in lines if re.match(r"(FAILED|ERROR) \S+::", line)]


def prove(
    parts: Sequence[Part],
    out: Path,
    minutes: float,
    told: Callable[[Sequence[Ended]], None] = lambda ended: None,
) -> list[Ended]:
    """The parts, one after another; `told` of what has ended whenever one has."""
    out.mkdir(parents=True, exist_ok=True)
    ended: list[Ended] = []
    end = time.monotonic() + 60 * minutes
    for part in parts:
        left = end - time.monotonic()
        if left > 0:
            print(f"{part.name}: {part.proves}", flush=True)
            ended.append(run(part, out, min(left, 60 * part.minutes)))
        else:
            ended.append(Ended(part.name, f"not run: the {minutes:g} minutes were over"))
        if ended[-1].how == "failed":
            log = (out / f"{part.name}.log").read_text(errors="replace").splitlines()
            print(*log[-SHOWN:], sep="\n")
        print(ended[-1].line, flush=True)
        told(ended)
    return ended


def record(ended: Sequence[Ended]) -> dict[str, Any]:
    """What a run was and what came of it, as JSON."""
    commit, changed = result.revision()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": result.machine(on_gpu=True),
        "versions": result.versions(),
        "commit": commit,
        "changed since": changed,
        "kernels": result.kernel_hashes(),
        "parts": {
            part.name: {
                "how": part.how,
                "code": part.code,
                "seconds": part.seconds,
                "counts": dict(part.counts),
                "failures": list(part.failures),
            }
            for part in ended
        },
    }


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    names = [part.name for part in parts]
    parser = argparse.ArgumentParser(
        prog="python -m tests.hardware",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(names))
    parser.add_argument("--minutes", type=float, default=60.0, help="of all parts together")
    parser.add_argument("--out", type=Path, default=OUT, help=f"of logs (default: {OUT})")
    parser.add_argument("--record", type=Path, help="write what came of it as JSON")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.parts if name not in names]:
        parser.error(f"{unknown[0]} came, there are {', '.join(names)}")
    if not suites.gpu_answers():
        print(f"no GPU answers: {suites.without_gpu()}")
        return 1
    by = {part.name: part for part in parts}
    chosen = [by[name] for name in given.parts or names]

    def keep(ended: Sequence[Ended]) -> None:
        if given.record:
            given.record.parent.mkdir(parents=True, exist_ok=True)
            given.record.write_text(json.dumps(record(ended), indent=1, sort_keys=True) + "\n")

    ended = prove(chosen, given.out.resolve(), given.minutes, keep)
    print(*(part.line for part in ended), sep="\n")
    return int(any(part.how != "passed" for part in ended))


if __name__ == "__main__":
    sys.exit(main())
