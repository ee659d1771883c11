"""The machine: batches of CTAs in lockstep under masks, and the launch.

One numpy call carries out an instruction for every active thread of a batch.  Groups of threads are
kept by program counter and the lowest one runs first, which brings diverged threads together again.
A thread that has to wait (barrier, shuffle, mbarrier) is parked at its instruction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .collective import (
    compile_barrier,
    compile_cluster_address,
    compile_mbarrier,
    compile_warp,
)
from .errors import PTXError
from .floats import UINT, WIDTH, perturb
from .instructions import build
from .loadstore import compile_matrix, compile_memory
from .memory import Allocation, GlobalMemory, Race, pack_arguments, padded
from .operands import full, reader, writer
from .parse import Instruction, Pair, Program, PTXModule, split_commas
from .stats import Stats, classify

MAX_SHARED = 232448  # bytes a CTA may have (sm_90)
MAX_STATIC = 49152  # of these, that a kernel may declare: ptxas refuses more
NO_OPS = (
    "membar",
    "fence",
    "prefetch",
    "prefetchu",
    "nanosleep",
    "griddepcontrol",
    "discard",
    "pmevent",
    "applypriority",
    "setmaxnreg",
    "brkpt",
)


class Step:
    """A compiled instruction."""

    __slots__ = ("cls", "fn", "guard", "ins", "kind", "negated", "ready", "target")

    def __init__(self, p: Program, ins: Instruction):
        self.ins, self.guard, self.negated = ins, ins.guard, ins.negated
        self.kind = "plain"
        self.fn: Any = None
        self.ready: Any = None
        self.target: Any = None
        self.cls: str | None = None
        try:
            self.cls = classify(ins)
            self._compile(p, ins)
        except (
            PTXError,
            KeyError,
            IndexError,
            StopIteration,
            TypeError,
            ValueError,
            AttributeError,
        ) as e:
            # refused only when reached: many kernels carry a path that is never taken
            self.fn = _refuse(e if isinstance(e, PTXError) else ins.unsupported())
            self.kind = "unsupported"

    def _compile(self, p: Program, ins: Instruction) -> None:
        op = ins.op
        if op == "bra":
            self.kind, self.target = "branch", p.branch(ins.target)
        elif op == "brx":
            self.kind, self.target = "table", p.branch_table(ins.target)
            self.fn = reader(p, ins.ops[0], "u32")
        elif op in ("ret", "exit"):
            self.kind = "exit"
        elif op == "trap":
            self.fn = _trap("trap")
        elif op == "call":
            self.fn = _nothing if ins.target == "vprintf" else _trap(f"call of {ins.target}")
        elif op in NO_OPS:
            self.fn = _nothing
        elif op in ("bar", "barrier"):
            self.fn, self.ready = compile_barrier(p, ins)
        elif op in ("shfl", "vote", "match", "redux", "elect", "activemask"):
            self.fn, self.ready = compile_warp(p, ins)
        elif op == "mbarrier":
            self.fn, self.ready = compile_mbarrier(p, ins)
        elif op in ("mapa", "getctarank"):
            self.fn = compile_cluster_address(p, ins)
        elif op in ("ld", "ldu", "st", "atom", "red", "cp"):
            self.fn = compile_memory(p, ins)
        elif op in ("ldmatrix", "stmatrix"):
            self.fn = compile_matrix(p, ins)
        else:
            self.fn = _arithmetic(p, ins)


def _nothing(s: Batch, m: Any) -> None:
    pass


def _trap(what: str) -> Any:
    def fn(s: Batch, m: Any) -> None:
        raise PTXError(f"{what}, {s.who(0 if m is None else np.flatnonzero(m)[0])}")

    return fn


def _refuse(error: PTXError) -> Any:
    def fn(s: Batch, m: Any) -> None:
        raise PTXError(str(error))

    return fn


def _arithmetic(p: Program, ins: Instruction) -> Any:
    spec = build(ins)
    srcs = [reader(p, o, t) for o, t in zip(ins.ops[1:], spec.srcs, strict=False)]
    fn, noise = spec.fn, spec.noise
    if isinstance(ins.ops[0], Pair):
        puts = [writer(p, o, t) for o, t in zip(ins.ops[0], spec.dst, strict=True)]

        def several(s: Batch, m: Any) -> None:
            for put, v in zip(puts, fn(*[g(s) for g in srcs]), strict=True):
                put(s, m, v)

        return several
    put = writer(p, ins.ops[0], spec.dst[0])
    if noise is not None:
        a, *more = srcs

        def approximate(s: Batch, m: Any) -> None:
            r = fn(a(s), *[g(s) for g in more])
            if s.noise:
                r = perturb(spec.dst[0], r, *noise, s.noise, s.seed)
            put(s, m, r)

        return approximate
    if len(srcs) == 1:
        (a,) = srcs
        return lambda s, m: put(s, m, fn(a(s)))
    if len(srcs) == 2:
        a, b = srcs
        return lambda s, m: put(s, m, fn(a(s), b(s)))
    return lambda s, m: put(s, m, fn(*[g(s) for g in srcs]))


def compiled(p: Program) -> list[Step]:
    if not p.steps:
        p.steps = [Step(p, i) for i in p.code]
    return p.steps


class Registers(dict[str, Any]):
    """Registers start as zero."""

    def __init__(self, threads: int, width: dict[str, int]):
        self.threads, self.width = threads, width

    def __missing__(self, name: str) -> Any:
        self[name] = np.zeros(self.threads, UINT[self.width[name]])
        return self[name]


class Batch:
    """The state of some whole clusters."""

    def __init__(self, p: Program, launch: Launch, first: int, ctas: int):
        options = launch.options
        self.p, self.steps, self.max_steps = p, 0, options.max_steps
        self.ntid, self.nctaid, self.cluster_nctaid = launch.block, launch.grid, launch.cluster
        self.nclusterid = tuple(g // c for g, c in zip(launch.grid, launch.cluster, strict=True))
        self.ranks, self.ctas = int(np.prod(launch.cluster)), ctas
        self.dynamic, self.symbols, self.memory = launch.dynamic, launch.symbols, launch.memory
        self.stats, self.noise = launch.stats, options.noise
        self.seed = options.seed
        size = int(np.prod(self.ntid))
        self.padded = -(-size // 32) * 32
        self.threads = n = ctas * self.padded
        self.regs = Registers(n, p.width)
        self.lanes = np.arange(n)
        self.cta = self.lanes // self.padded
        thread = self.lanes % self.padded
        self.alive = thread < size
        self.laneid, self.warpid = ((thread % 32).astype(np.uint32), (thread // 32).astype("u4"))
        self.tid = self._dims(thread, self.ntid)
        rank = (self.cta + first) % self.ranks
        self.cluster_ctarank = rank.astype(np.uint32)
        self.cluster_ctaid = self._dims(rank, self.cluster_nctaid)
        self.clusterid = self._dims((self.cta + first) // self.ranks, self.nclusterid)
        self.ctaid = [
            q * np.uint32(c) + r
            for q, c, r in zip(self.clusterid, self.cluster_nctaid, self.cluster_ctaid, strict=True)
        ]
        self.shared_size = p.shared_size + launch.dynamic
        self.space_size = {
            "shared": self.shared_size,
            "cluster": self.shared_size,
            "local": p.local_size,
            "param": p.param_size,
        }
        self.shared_stride = len(padded(self.shared_size))
        self.local_stride = len(padded(p.local_size))
        shared = np.full(ctas * self.shared_stride, options.smem_fill, np.uint8)
        local = padded(n * self.local_stride if p.local_size else 0)
        self.spaces = {
            "shared": Allocation("shared", 0, len(shared), shared),
            "local": Allocation("local", 0, len(local), local),
            "param": Allocation("param", 0, p.param_size, launch.params),
        }
        self.race = Race(len(shared), ctas) if options.racecheck else None
        self.commits, self.copies = np.zeros(n, np.int64), []  # type: tuple[Any, list[Any]]
        self.bar_state, self.bar_id = np.zeros(n, np.int8), np.zeros(n, np.int64)
        self.bar_count, self.bar_arrived = np.zeros(n, np.int64), {}  # type: tuple[Any, Any]
        self.cluster_arrivals = self.cluster_waits = np.zeros(n, np.int32)
        self.mbarriers: dict[int, Any] = {}
        self.in_flight: dict[int, list[Any]] = {}

    @staticmethod
    def _dims(linear: Any, shape: Sequence[int]) -> list[Any]:
        x, y = linear % shape[0], linear // shape[0] % shape[1]
        return [v.astype(np.uint32) for v in (x, y, linear // (shape[0] * shape[1]))]

    def who(self, lane: Any) -> str:
        block, thread = ([int(x[int(lane)]) for x in v] for v in (self.ctaid, self.tid))
        return f"block {tuple(block)} thread {tuple(thread)}"

    def warp_bits(self, m: Any) -> Any:
        """A mask of 32 bits per warp."""
        bits = np.packbits(m.reshape(-1, 32), axis=1, bitorder="little")
        return bits.view(np.uint32)[:, 0]

    def cta_alive(self) -> Any:
        return self.alive.reshape(self.ctas, -1).any(1)

    # Scheduling.  A group's mask is None when it holds every thread of the batch.

    def run(self) -> None:
        steps = compiled(self.p)
        self.groups: dict[int, Any] = {}
        self.parked: dict[int, Any] = {}
        self._add(0, self.alive)
        self.pc = 0
        try:
            while self.groups or self._wake(steps):
                self.pc = min(self.groups)
                self._run_group(steps, self.groups.pop(self.pc))
        except PTXError as e:
            ins = steps[self.pc].ins
            raise type(e)(f"{e}\n  at line {ins.line}: {ins.text}") from None

    def _add(self, pc: int, m: Any) -> None:
        if m is not None and pc in self.groups:
            other = self.groups[pc]
            m = None if other is None else m | other
        self.groups[pc] = None if m is None or m.all() else m

    def _wake(self, steps: list[Step]) -> bool:
        """Nobody can run: let go those for whom the others' progress was enough."""
        for pc in sorted(self.parked):
            self.pc = pc
            ok = steps[pc].ready(self, self.parked[pc])
            if ok.any():
                rest = self.parked.pop(pc) & ~ok
                if rest.any():
                    self.parked[pc] = rest
                self._add(pc, ok)
        if not self.groups and self.parked:
            self.pc = min(self.parked)
            lane = np.flatnonzero(self.parked[self.pc])[0]
            raise PTXError(f"deadlock: {self.who(lane)} waits for threads that never come")
        return bool(self.groups)

    def _run_group(self, steps: list[Step], m: Any) -> None:
        """Run the group m from self.pc until it branches away, waits, ends or meets another."""
        pc, groups = self.pc, self.groups
        while True:
            self.pc = pc
            step = steps[pc]
            self.steps += 1
            if self.steps > self.max_steps:
                raise PTXError(f"more than {self.max_steps} steps")
            em, skip, kind = m, False, step.kind
            if step.guard is not None:
                em = self.regs[step.guard]
                em = ~em if step.negated else em
                em = em if m is None else em & m
                n = np.count_nonzero(em)
                skip = n == 0
                if n == (self.threads if m is None else np.count_nonzero(m)):
                    em = m
            if self.stats is not None:
                who = m if kind == "branch" else em  # a branch that is not taken is one, too
                count = self.threads if who is None else int(np.count_nonzero(who))
                self.stats.executed(step.ins, step.cls, 0 if skip and who is em else count)
            if skip:
                pc += 1
            elif kind == "branch":
                if em is not m:
                    self._add(step.target, em)
                    self._add(pc + 1, ~em if m is None else m & ~em)
                    return
                if groups:
                    self._add(step.target, m)
                    return
                pc = step.target
            elif kind == "exit":
                self._exit(em)
                if em is m:
                    return
                m = ~em if m is None else m & ~em
                pc += 1
            elif kind == "table":
                index = full(self, step.fn(self))
                for k, target in enumerate(step.target):
                    part = (index == k) if em is None else em & (index == k)
                    if part.any():
                        self._add(target, part)
                rest = None if em is m else ~em if m is None else m & ~em
                if rest is not None:
                    self._add(pc + 1, rest)
                return
            elif step.ready is None:
                step.fn(self, em)
                pc += 1
            else:
                m = self._wait(step, m, em)
                if m is not None and not m.any():
                    return
                pc += 1
            if groups and pc in groups:
                self._add(pc, m)
                m = groups.pop(pc)

    def _wait(self, step: Step, m: Any, em: Any) -> Any:
        """Carry out a waiting instruction for those that may go; who goes on afterwards."""
        here = em
        if self.pc in self.parked:  # joined by those who came before
            here = self.parked.pop(self.pc) | em
        ok = step.ready(self, here)
        if ok is None:
            step.fn(self, None)
            return None
        rest = ~ok if here is None else here & ~ok
        if rest.any():
            self.parked[self.pc] = rest
        else:
            ok = here
        if ok is None or ok.any():
            step.fn(self, ok)
        if em is m:
            return ok
        passed = ~em if m is None else m & ~em
        return passed if ok is None else passed | ok

    def _exit(self, em: Any) -> None:
        before = self.cta_alive()
        self.alive = self.alive & (False if em is None else ~em)
        if self.race is not None and self.ranks > 1:
            self.race.check_exit(self, before & ~self.cta_alive())


def _dims(x: Any) -> tuple[int, ...]:
    d = [int(v) for v in (x if isinstance(x, Sequence) else (x,))]
    return tuple(d + [1] * (3 - len(d)))


@dataclass
class Options:
    racecheck: bool
    noise: float
    seed: int
    smem_fill: int
    max_steps: int


class Launch:
    """What all batches of one launch share."""

    def __init__(
        self,
        p: Program,
        grid: Any,
        block: Any,
        cluster: Any,
        dynamic: int,
        options: Options,
        stats: Stats | None,
    ):
        self.options, self.stats = options, stats
        self.params = np.zeros(0, np.uint8)
        self.grid, self.block = _dims(grid), _dims(block)
        self.cluster = _dims(cluster or p.cluster or 1)
        self.dynamic = dynamic
        self.memory = GlobalMemory()
        self.symbols: dict[str, int] = {}
        threads = int(np.prod(self.block))
        required = re.search(
            r"\.(reqntid|maxntid)\s+([\d, ]+)", p.module.functions[p.name].directives
        )
        if not 1 <= threads <= 1024:
            raise PTXError(f"a block of {threads} threads")
        if required:
            n = _dims([int(v) for v in required.group(2).split(",")])
            if (threads > np.prod(n)) or (required.group(1) == "reqntid" and self.block != n):
                raise PTXError(f"block {self.block} breaks .{required.group(1)} {n}")
        if any(g % c for g, c in zip(self.grid, self.cluster, strict=True)):
            raise PTXError(f"grid {self.grid} is no multiple of the cluster {self.cluster}")
        if np.prod(self.cluster) > 16:
            raise PTXError(f"a cluster of {np.prod(self.cluster)} CTAs")
        if p.cluster and _dims(p.cluster) != self.cluster:
            raise PTXError(f"cluster {self.cluster} breaks .reqnctapercluster {p.cluster}")
        if p.shared_size > MAX_STATIC:
            raise PTXError(f"{p.shared_size} bytes of shared memory declared")
        if p.shared_size + dynamic > MAX_SHARED:
            raise PTXError(f"{p.shared_size + dynamic} bytes of shared memory per CTA")


def _initialize(a: Allocation, kind: str, init: str) -> None:
    """The initial value of a module variable (addresses of other symbols stay zero)."""
    out = np.zeros(a.size * 8 // WIDTH[kind], UINT[WIDTH[kind]])
    for k, x in enumerate(split_commas(re.sub(r"[{}]", "", init))):
        if m := re.match(r"0[fFdD]([0-9a-fA-F]+)$", x):
            out[k] = int(m.group(1), 16)
        elif re.match(r"[+-]?(0[xX][0-9a-fA-F]+|\d+)U?$", x):
            out[k] = int(x.rstrip("U"), 0) & ((1 << WIDTH[kind]) - 1)
    a.bytes[: out.nbytes] = out.view(np.uint8)


def run_ptx(
    ptx: str | bytes | PTXModule,
    entry: str | None = None,
    grid: Any = 1,
    block: Any = 1,
    args: Sequence[Any] = (),
    dynamic_smem: int = 0,
    *,
    cluster: Any = None,
    stats: bool = False,
    racecheck: bool = False,
    noise: float = 0.0,
    seed: int = 0,
    smem_fill: int = 0xFF,
    max_lanes: int = 1 << 15,
    max_steps: int = 50_000_000,
) -> Stats | None:
    """Run one kernel on the CPU; array arguments are changed in place.

    args       in the order of the kernel's parameters: numpy arrays or CPU torch tensors
               (pointers), None, int, float, numpy scalars, bytes or Struct (passed by value)
    cluster    CTAs per cluster (default: the entry's .reqnctapercluster, or 1)
    stats      count instructions and memory traffic; returns a Stats
    racecheck  raise PTXRace on unordered accesses to shared memory by two warps
    noise      scale (1.0: the documented bound) of random errors of the .approx instructions
    smem_fill  byte that shared memory starts with (0xFF is a NaN in every float type)
    max_lanes  threads carried together (whole clusters; memory against speed)
    """
    module = ptx if isinstance(ptx, PTXModule) else PTXModule(ptx)
    p = module.program(entry if entry is not None else module.entries()[0])
    options = Options(racecheck, noise, seed, smem_fill, max_steps)
    launch = Launch(p, grid, block, cluster, dynamic_smem, options, Stats() if stats else None)
    for v in p.globals:
        a = launch.memory.allocate(v.name, max(v.size, 1))
        launch.symbols[v.name] = a.base
        if v.init:
            _initialize(a, v.type, v.init)
    launch.params = pack_arguments(p.params, args, launch.memory, p.param_size)
    ranks, total = int(np.prod(launch.cluster)), int(np.prod(launch.grid))
    threads = -(-int(np.prod(launch.block)) // 32) * 32
    ctas = max(1, max_lanes // (threads * ranks)) * ranks
    with np.errstate(all="ignore"):
        try:
            for first in range(0, total, ctas):
                Batch(p, launch, first, min(ctas, total - first)).run()
        finally:
            launch.memory.write_back()
    if launch.stats is not None:
        launch.stats.threads = total * int(np.prod(launch.block))
    return launch.stats


def unsupported(ptx: str | PTXModule, entry: str | None = None) -> list[str]:
    """Instructions of an entry that would be refused if they were reached."""
    module = ptx if isinstance(ptx, PTXModule) else PTXModule(ptx)
    p = module.program(entry if entry is not None else module.entries()[0])
    return [f"line {s.ins.line}: {s.ins.text}" for s in compiled(p) if s.kind == "unsupported"]
