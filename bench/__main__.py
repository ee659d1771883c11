"""`python -m bench`: the throughput table and the digits, for what this machine has.

python -m bench                  the GPU's cases if one answers, else the CPU's; then the digits
python -m bench --suite cpu      the CPU's cases, and the goals that gpuact on NumPy must reach
python -m bench --suite elementwise   every elementwise function, what is fused of them, what a
                                 call costs the host and what autograd holds; the GPU's goals
python -m bench --suite rows     softmax, log-softmax and cross-entropy, forward and backward, some
                                 in CUDA graphs too; the GPU's goals
python -m bench --suite torch    what a call costs the host inside PyTorch: without and with
                                 gradients, compiled, as a module, under torch.func
python -m bench digits           the digits alone
python -m bench vocab_parallel   cross-entropy of a vocabulary that is cut among ranks: one, or as
                                 many as `torchrun --nproc-per-node N -m bench vocab_parallel` has
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
    "torch": ("rich", "torch"),
    "digits": ("rich", "sklearn"),
    "vocab_parallel": ("rich", "torch"),
}
DTYPES = ("float16", "bfloat16", "float32", "float64")
COMMANDS = ("digits", "vocab_parallel")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", choices=COMMANDS, help="short for --suite COMMAND")
    parser.add_argument("--suite", choices=SUITES, default="here", help="what to run")
    parser.add_argument(
        "--seconds", type=float, default=0.6, help="spent on timing each case (default: 0.6)"
    )
    parser.add_argument("--only", metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--epochs", type=int, help="of the digits")
    parser.add_argument("--rows", type=int, help="of vocab_parallel")
    parser.add_argument("--classes", type=int, help="of vocab_parallel, on all ranks together")
    parser.add_argument("--dtype", choices=DTYPES, help="of vocab_parallel")
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
    name = args.command or args.suite
    for package in SUITES[name]:
        try:
            import_module(package)
        except ImportError as error:
            extra = "torch" if package == "torch" else "bench"
            message = f'bench: needs {package} ({error}): pip install "gpuact[{extra}]" brings it'
            print(message, file=sys.stderr)
            return 2
    # now that rich is known to be there
    if name == "vocab_parallel":
        from .vocab_parallel import run
    else:
        from .run import run
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
