"""The command: so many calls, or one again."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __doc__ as about
from .fuzzer import Fuzz
from .runs import SPAN, Report, here, record, run


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=about.split("\n")[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--record", type=Path, help="write the run as JSON")
    parser.add_argument("--library", help="numpy, torch or both, with a comma (what there is)")
    parser.add_argument("--only", type=int, metavar="SEED", help="this call alone, in this process")
    parser.add_argument("--show", type=int, default=20, help="how many findings to print")
    options = parser.parse_args(argv)
    libraries = options.library.split(",") if options.library else None
    if options.only is not None:
        seed, k = divmod(options.only, SPAN)
        report = here(1, seed, Fuzz(libraries), k)
        ((what, _),) = report.tally.items()
        print(" ".join(what), *(found.detail for _, found in report.findings), sep="\n")
        return 1 if report.findings else 0
    told = 0.0

    def progress(report: Report) -> None:
        nonlocal told
        if report.seconds - told >= 10:
            told = report.seconds
            print(report.line(), flush=True)

    report = run(options.calls, options.seed, options.workers, libraries, None, progress)
    print(report.line())
    for seed, found in report.findings[: options.show]:
        print(f"\n{found.what} --only {seed} ({found.library}, {found.mode})\n{found.detail}")
    if options.record:
        known = libraries or Fuzz().libraries
        made = record(report, options.seed, options.workers, known)
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
