"""Run NVIDIA PTX on the CPU, with numpy only, to check GPU kernels where there is no GPU."""

from .errors import PTXError, PTXRace
from .machine import run_ptx, unsupported
from .memory import Struct, carray, cindexer, device_address
from .parse import PTXModule
from .stats import Stats

__all__ = [
    "PTXError",
    "PTXModule",
    "PTXRace",
    "Stats",
    "Struct",
    "carray",
    "cindexer",
    "device_address",
    "run_ptx",
    "unsupported",
]
