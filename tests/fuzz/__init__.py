"""The public functions under random arguments: what is allowed must be right, junk refused.

    python -m tests.fuzz --calls 1000000 --seed 0 --workers 2 --record tests/records/fuzz.json
    python -m tests.fuzz --only SEED        one call again, in this process, with all that it was

Six calls of ten are valid: arguments that the documentation allows, of any dtype, shape and layout.
They must return, and be right: type, dtype, shape, values by `tests.truth` within `tests.bounds`,
inputs as they were. In the others (hostile) junk takes the place of one to three arguments. These
are refused, by an error that gpuact raises itself, a sentence that names an argument, with nothing
written; or they return, and where the junk still has a meaning, the result must be right as well.

Arrays lie amid poison, which is compared after each call. Warnings and NumPy's floating-point
errors are errors. A process of its own makes the calls: what ends it, or stops it for
`runs.PATIENCE` seconds, is a finding like all others, known by the seed of the call.

What stands where, each on what is above it:

    calls         one call being made up: its random choices, its arrays and their memory
    meaning       what its arguments mean: snapshots, Reading, Expected
    elementwise, rows, fused, loss, beside
                  a kind of call each: `draw_…` makes up its arguments, `judge_…` says what must
                  come out for them, or that nobody can say; `gradient_of_…` says it of autograd
    targets       what there is to call, of gpuact and of gpuact.torch, and by which of those
    junk          what takes the place of arguments in hostile calls
    judgement     what came of a call: results beside what was expected, errors as refusals
    fuzzer        Fuzz: one call, from its seed to its outcome
    runs          many calls, here or in processes that are watched; the report and the record
    __main__      the command
"""

from .beside import LIBRARYLESS
from .calls import Call
from .fuzzer import Fuzz
from .judgement import FINDINGS, refusal
from .junk import dunders, raises
from .runs import SPAN, Report, here, record, run
from .targets import targets_of_gpuact

__all__ = [
    "FINDINGS",
    "LIBRARYLESS",
    "SPAN",
    "Call",
    "Fuzz",
    "Report",
    "dunders",
    "here",
    "raises",
    "record",
    "refusal",
    "run",
    "targets_of_gpuact",
]
