"""`python -m bench`: measure what this machine has, and look at what was measured.

python -m bench                       the GPU's suites if one answers, else the CPU's; the digits
python -m bench --suite NAME          one of them: elementwise, rows (softmax and log-softmax),
                                      loss, fused, stats (activations that are looked at), torch
                                      (what a call costs inside PyTorch), cpu, digits; or all
python -m bench digits                the digits alone
python -m bench claims                what courses say of activations, measured on digits
python -m bench compare A.json B.json gains and losses from one result to another
python -m bench status [FOLDER]       which kernels have a GPU result, for which sources
python -m bench report RESULT.json…   the page of results, or of claims, and pictures
python -m bench readme                the README's sections on performance and claims, from
                                      bench/results
python -m bench vocab_parallel        cross-entropy of a vocabulary that is cut among ranks: one, or
                                      as many as `torchrun --nproc-per-node N -m bench
                                      vocab_parallel` has

Results go to bench/results as JSON, with a page beside it. Ctrl-C ends a run early and keeps what
was measured; so does whatever else ends it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("bench/results")
SUITES = ("here", "elementwise", "rows", "loss", "fused", "stats", "torch", "cpu", "digits", "all")
DTYPES = ("float16", "bfloat16", "float32", "float64")

# What a suite needs beside rich, and the extra that brings it.
NEEDS = {"here": "sklearn", "digits": "sklearn", "all": "sklearn", "torch": "torch"}
QUICK_MINUTES = 8.0  # on a GPU; what was begun is finished


class _Refused(Exception):
    """In one sentence, for whoever typed it."""


def _needs(*packages: str) -> None:
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            extra = "torch" if package == "torch" else "bench"
            brings = f'pip install "gpuact[{extra}]" brings it'
            raise _Refused(f"needs {package} ({error}): {brings}") from None


def _parser(what: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        f"python -m bench {what}".strip(),
        description=__doc__ if not what else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _run(words: Sequence[str], suite: str = "here") -> int:
    parser = _parser("" if suite == "here" else suite)
    parser.add_argument("--suite", choices=SUITES, default=suite, help="what to run")
    parser.add_argument("--only", metavar="TEXT", default="", help="what has this in its name")
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=[], help="what has one of these in its name"
    )
    parser.add_argument("--sizes", choices=("quick", "full"), default="quick", help="how many")
    parser.add_argument(
        "--providers", type=_words, default=(), metavar="A,B", help="those with A or B in the name"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.3,
        help="of timing for a case of the headline; a third for all others (default: 0.3)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"no new case after so many; 0: no limit (default: {QUICK_MINUTES:g} for the quick "
        "sizes of a GPU, else none)",
    )
    parser.add_argument("--epochs", type=int, default=0, help="of the digits")
    parser.add_argument(
        "--against", type=Path, metavar="RESULT.json", help="compare with this afterwards"
    )
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 on a missed goal or a wrong result"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help=f"default: {RESULTS}"
    )
    where.add_argument("--no-out", action="store_true", help="write nothing")
    args = parser.parse_args(words)
    _needs("rich", *(NEEDS[args.suite],) if args.suite in NEEDS else ())

    from .result import read
    from .run import run
    from .suites import Asked, gpu_answers, without_gpu

    for_gpu = args.suite not in ("cpu", "digits")
    on_gpu = for_gpu and gpu_answers()
    if for_gpu and not on_gpu and os.environ.get("GPUACT_REQUIRE_GPU") == "1":
        raise _Refused(f"GPUACT_REQUIRE_GPU=1 came, and no GPU answers: {without_gpu()}")
    asked = Asked(
        *(args.suite, args.sizes, on_gpu, args.only, tuple(args.dtype), args.providers),
        seconds=args.seconds,
        epochs=args.epochs,
    )
    _some(asked)
    minutes = args.minutes
    if minutes is None:
        minutes = QUICK_MINUTES if on_gpu and args.sizes == "quick" else 0.0
    against = read(args.against) if args.against else None
    return run(asked, None if args.no_out else args.out, minutes, args.check, against)


def _some(asked: object) -> None:
    """Whether the words of --only and --providers hit anything."""
    from dataclasses import replace

    from .suites import Asked

    assert isinstance(asked, Asked)
    everybody = replace(asked, providers=()).plan().everybody
    for word in asked.providers:
        if not any(word.lower() in name.lower() for name in everybody):
            raise _Refused(f"--providers: {word!r} came, there are {', '.join(everybody)}")
    if asked.plan().empty:
        wanted = " ".join((*asked.dtypes, asked.only)).strip()
        raise _Refused(f"{wanted!r} came, nothing of {asked.suite} has it in its name")


def _compare(words: Sequence[str]) -> int:
    parser = _parser("compare")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--check", action="store_true", help="exit with 1 where gpuact lost")
    args = parser.parse_args(words)
    _needs("rich")
    from . import compare
    from .console import console
    from .result import read

    found = compare.compare(read(args.before), read(args.after))
    out = console()
    compare.print_comparison(out, found)
    failures = compare.failures(found) if args.check else []
    for failure in failures:
        out.print(f"check: {compare.in_words(failure)}")
    return 1 if failures else 0


def _status(words: Sequence[str]) -> int:
    parser = _parser("status")
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / RESULTS)
    parser.add_argument("--check", action="store_true", help="exit with 1 unless all are proved")
    args = parser.parse_args(words)
    _needs("rich")
    from . import ledger
    from .console import console

    found = ledger.draw(args.folder)
    ledger.print_ledger(console(), found)
    return 1 if args.check and ledger.failures(found) else 0


def _report(words: Sequence[str]) -> int:
    parser = _parser("report")
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: beside the first result")
    args = parser.parse_args(words)
    _needs("rich", "jinja2", "matplotlib")
    from . import page
    from .result import CLAIMS, read

    if any(path.name.endswith(CLAIMS) for path in args.results):
        return _report_claims(args.results, args.out)
    results = [read(path) for path in args.results]
    first = args.results[0]
    for path in page.write(results, args.out or first.parent, first.stem):
        print(path)
    return 0


def _report_claims(paths: Sequence[Path], folder: Path | None) -> int:
    """A page for each, and nothing else between them."""
    from .claims import page
    from .claims.record import read

    for path in paths:
        for written in page.write(read(path), folder or path.parent, path.stem):
            print(written)
    return 0


def _claims(words: Sequence[str]) -> int:
    parser = _parser("claims")
    parser.add_argument("--only", metavar="CLAIM", default="", help="a number, or words of a title")
    parser.add_argument("--seeds", type=int, default=5, help="of each claim (default: 5)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help=f"default: {RESULTS}"
    )
    where.add_argument("--no-out", action="store_true", help="write nothing")
    args = parser.parse_args(words)
    if args.seeds < 1:
        raise _Refused(f"--seeds: {args.seeds} came, 1 or more are allowed")
    # The networks are so small that threads would only wait for each other; read as NumPy loads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _needs("rich", "sklearn")
    from .claims.course import CLAIMS, chosen
    from .claims.run import run

    if not chosen(args.only):
        known = ", ".join(f"{claim.number} {claim.title}" for claim in CLAIMS)
        raise _Refused(f"--only: {args.only!r} came, the claims are {known}")
    return run(args.only, args.seeds, None if args.no_out else args.out)


def _readme(words: Sequence[str]) -> int:
    parser = _parser("readme")
    parser.add_argument("--check", action="store_true", help="exit with 1 where it was out of date")
    args = parser.parse_args(words)
    _needs("rich")
    from . import readme

    changed = readme.update(ROOT / "README.md")
    print("README.md: written anew" if changed else "README.md: as it was")
    return 1 if args.check and changed else 0


def _vocab_parallel(words: Sequence[str]) -> int:
    parser = _parser("vocab_parallel")
    parser.add_argument("--seconds", type=float, default=0.6, help="of timing (default: 0.6)")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--classes", type=int, help="on all ranks together")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--check", action="store_true", help="exit with 1 on a wrong result")
    args = parser.parse_args(words)
    _needs("rich", "torch")
    from .vocab_parallel import run

    return run(args)


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "digits": lambda words: _run(words, "digits"),
    "claims": _claims,
    "compare": _compare,
    "status": _status,
    "report": _report,
    "readme": _readme,
    "vocab_parallel": _vocab_parallel,
}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    command = COMMANDS.get(words[0] if words else "")
    try:
        return command(words[1:]) if command else _run(words)
    except _Refused as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except ValueError as error:  # of result.read
        if type(error).__name__ != "Unreadable":
            raise
        print(f"bench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
