"""Dynamic counts of one launch."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from .floats import FLOATS
from .parse import Instruction

if TYPE_CHECKING:
    from .machine import Batch
    from .memory import Allocation

SECTOR = 32
_SPECIAL = ("ex2", "lg2", "rcp", "rsqrt", "sqrt", "sin", "cos", "tanh")
_MEMORY = ("ld", "ldu", "st", "atom", "red", "cp", "ldmatrix", "stmatrix")
_CLASS = {
    **dict.fromkeys(("bra", "brx", "ret", "exit"), "branch"),
    "cvt": "convert",
    **dict.fromkeys(("bar", "barrier", "mbarrier"), "barrier"),
    "mov": "move",
    **dict.fromkeys(("shfl", "vote", "match", "redux", "elect", "activemask"), "shuffle"),
    **dict.fromkeys(("membar", "fence", "griddepcontrol", "setmaxnreg"), "barrier"),
}


def classify(i: Instruction) -> str | None:
    """Class of an instruction; None for memory accesses, which are counted where they land."""
    if i.op in _MEMORY:
        return "param" if any(m.startswith("param") for m in i.mods) else None
    if i.op in _CLASS:
        return _CLASS[i.op]
    types = i.types
    if i.op in _SPECIAL or (i.op == "div" and types[0] == "f32"):
        return "special"
    t = types[-1] if types else ""
    if t in FLOATS:
        return {"f64": "fp64", "f32": "fp32", "f32x2": "fp32"}.get(t, "fp16")
    return "int"


class Stats:
    """Counts over all threads of a launch (PTX, so an estimate of what the hardware executes).

    instructions  executed per thread, by class: int, fp32, fp16, fp64, special, convert, move,
                  param, global_load, global_store, shared, local, atomic, shuffle, barrier, branch
    opcodes       the same by full opcode (memory accesses included)
    load_* / store_*  global memory: bytes requested, requests of a warp, 32-byte sectors touched by
                  those requests, widths ({bytes per thread: accesses}), footprint (distinct sectors
                  of the launch, in bytes)
    arrays        {argument: {"load_bytes", "load_sectors", "store_bytes", "store_sectors"}}
    widths        {(argument, "load" or "store"): {bytes per thread: accesses}}
    """

    def __init__(self) -> None:
        self.threads = 0
        self.instructions: Counter[str] = Counter()
        self.opcodes: Counter[str] = Counter()
        self.arrays: dict[str, Counter[str]] = {}
        self.load_widths: Counter[int] = Counter()
        self.store_widths: Counter[int] = Counter()
        self.widths: dict[tuple[str, str], Counter[int]] = {}
        self._sums: Counter[str] = Counter()
        self._seen: dict[tuple[str, str], np.ndarray] = {}

    def executed(self, i: Instruction, cls: str | None, active: int) -> None:
        self.opcodes[".".join([i.op, *i.mods])] += active
        if cls is not None:
            self.instructions[cls] += active

    def access(
        self, s: Batch, a: Allocation, kind: str, lanes: Any, index: Any, nbytes: int
    ) -> None:
        name = next((k for k, v in s.spaces.items() if v is a), "global")
        if name != "global":
            self.instructions[name] += len(lanes)
            return
        self.instructions["atomic" if kind == "atomic" else f"global_{kind}"] += len(lanes)
        for what in ("load", "store") if kind == "atomic" else (kind,):
            (self.load_widths if what == "load" else self.store_widths)[nbytes] += len(lanes)
            # an aligned access lies in one sector; sort each warp's to count the distinct ones
            sector = (index + (a.base - a.lead) % 256) // SECTOR
            key = np.sort((lanes // 32).astype(np.int64) << 40 | sector)
            sectors = 1 + int(np.count_nonzero(np.diff(key)))
            self._sums[f"{what}_requests"] += 1 + int(np.count_nonzero(np.diff(key >> 40)))
            self.widths.setdefault((a.name, what), Counter())[nbytes] += len(lanes)
            per = self.arrays.setdefault(a.name, Counter())
            for c, prefix in ((self._sums, what), (per, what)):
                c[f"{prefix}_bytes"] += len(lanes) * nbytes
                c[f"{prefix}_sectors"] += sectors
            seen = self._seen.setdefault(
                (a.name, what), np.zeros((a.size + 256) // SECTOR + 2, bool)
            )
            seen[sector] = True

    def __getattr__(self, name: str) -> int:
        what, _, item = name.partition("_")
        if what in ("load", "store") and item in ("bytes", "requests", "sectors"):
            return self._sums[name]
        if what in ("load", "store") and item == "footprint":
            return SECTOR * sum(int(v.sum()) for (_, w), v in self._seen.items() if w == what)
        raise AttributeError(name)

    def footprint(self, array: str, what: str = "load") -> int:
        """Distinct sectors that the launch touches of one argument, in bytes."""
        seen = self._seen.get((array, what))
        return 0 if seen is None else SECTOR * int(seen.sum())

    def efficiency(self, what: str = "load") -> float:
        """Requested bytes over bytes of the sectors touched: 1.0 is fully coalesced."""
        sectors = self._sums[f"{what}_sectors"]
        return self._sums[f"{what}_bytes"] / (SECTOR * sectors) if sectors else 1.0

    def per_element(self, n: int) -> dict[str, float]:
        """Instructions by class, their total and global bytes, divided by n."""
        out = {k: v / n for k, v in sorted(self.instructions.items())}
        out["total"] = sum(self.instructions.values()) / n
        return out | {k: self._sums[k] / n for k in ("load_bytes", "store_bytes")}
