"""`python -m bench`: the throughput table and the digits, for what this machine has.

python -m bench                  the GPU's cases if one answers, else the CPU's; then the digits
python -m bench --suite cpu      the CPU's cases, and the goals that gpuact on NumPy must reach
python -m bench --suite elementwise   every elementwise function, what is fused of them, what a
                                 call costs the host and what autograd holds; the GPU's goals
python -m bench --suite rows     softmax, log-softmax and cross-entropy, forward and backward, some
                                 in CUDA graphs too; the GPU's goals
python -m bench digits           the digits alone
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

# What is run, and which packages that needs.
SUITES = {
    "here": ("rich", "sklearn"),
    "cpu": ("rich",),
    "gpu": ("rich",),
    "elementwise": ("rich",),
    "rows": ("rich",),
    "digits": ("rich", "sklearn"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", choices=("digits",), help="short for --suite digits")
    parser.add_argument("--suite", choices=SUITES, default="here", help="what to run")
    parser.add_argument(
        "--seconds", type=float, default=0.6, help="spent on timing each case (default: 0.6)"
    )
    parser.add_argument("--only", metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--epochs", type=int, help="of the digits")
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 on a missed goal or a wrong result"
    )
    parser.add_argument(
        "--out",
        nargs="?",
        type=Path,
        const=Path("bench/results"),
        metavar="DIR",
        help="write the run as JSON (to bench/results if no DIR is named)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    for package in SUITES[args.command or args.suite]:
        try:
            import_module(package)
        except ImportError as error:
            message = f'bench: needs {package} ({error}): pip install "gpuact[bench]" brings it'
            print(message, file=sys.stderr)
            return 2
    from .run import run  # now that rich is known to be there

    return run(args)


if __name__ == "__main__":
    sys.exit(main())
