"""Operands at run time: closures that read or write registers of a batch."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import PTXError
from .floats import NUMPY, SINT, UINT, WIDTH, to_bf16
from .parse import Imm, Mem, Not, Program, Reg, Sink, Special, Sym, Vec

if TYPE_CHECKING:
    from .machine import Batch

Reader = Callable[["Batch"], Any]
Writer = Callable[["Batch", Any, Any], None]


def full(s: Batch, v: Any) -> Any:
    """One value per thread."""
    return v if np.shape(v) == (s.threads,) else np.full(s.threads, v)


def immediate(op: Imm, t: str) -> int:
    """The bits of a literal used as type t."""
    w = WIDTH[t]
    if op.width == 0:
        if t not in ("f32", "f64"):
            return int(op.value) & ((1 << w) - 1)
    elif op.bits is not None and op.width == w:
        return op.bits
    if t == "f16":
        return int(np.float16(op.value).view(np.uint16))
    if t == "bf16":
        return int(to_bf16(np.float64(op.value)))
    if w not in (32, 64):
        raise PTXError(f"literal {op.value} used as .{t}")
    return int.from_bytes(struct.pack("<f" if w == 32 else "<d", op.value), "little")


def special(name: str) -> Reader:
    """A special register."""
    if m := re.match(r"(\w+)\.([xyz])$", name):
        kind, d = m.group(1), "xyz".index(m.group(2))
        if kind in ("tid", "ctaid", "clusterid", "cluster_ctaid"):
            return lambda s: getattr(s, kind)[d]
        if kind in ("ntid", "nctaid", "nclusterid", "cluster_nctaid"):
            return lambda s: np.uint32(getattr(s, kind)[d])
    if m := re.match(r"lanemask_(eq|lt|le|gt|ge)$", name):
        kind, one = m.group(1), np.uint32(1)

        def mask(s: Batch) -> Any:
            e = one << s.laneid
            return {
                "eq": e,
                "lt": e - one,
                "le": (e - one) | e,
                "gt": ~((e - one) | e),
                "ge": ~(e - one),
            }[kind]

        return mask
    if name in ("laneid", "warpid", "cluster_ctarank"):
        return lambda s: getattr(s, name)
    values: dict[str, Callable[[Batch], int]] = {
        "nwarpid": lambda s: s.padded // 32,
        "cluster_nctarank": lambda s: s.ranks,
        "is_explicit_cluster": lambda s: s.ranks > 1,
        "nsmid": lambda s: 1,
        "dynamic_smem_size": lambda s: s.dynamic,
        "total_smem_size": lambda s: s.shared_size,
        **dict.fromkeys(("clock", "clock64", "globaltimer", "globaltimer_lo"), lambda s: s.steps),
        **dict.fromkeys(("smid", "gridid", "clock_hi", "globaltimer_hi"), lambda s: 0),
    }
    if name not in values:
        raise PTXError(f"unsupported special register %{name}")
    return lambda s: np.uint64(values[name](s))


def reader(p: Program, op: Any, t: str) -> Reader:
    """Read an operand as type t: an array over the threads, or a scalar for a constant."""
    if isinstance(op, Not):
        inner = reader(p, op.item, t)
        return lambda s: ~inner(s)
    w, dt = WIDTH[t], NUMPY[t]
    if isinstance(op, Reg):
        name, rw = op.name, p.width[op.name]
        if rw == w:
            raw = UINT[w]
            return (lambda s: s.regs[name]) if raw == dt else (lambda s: s.regs[name].view(dt))
        if rw == 1 or w == 1 or rw < w or rw > 64:
            raise PTXError(f"a {rw}-bit register used as .{t}")
        return lambda s: s.regs[name].astype(UINT[w]).view(dt)
    if isinstance(op, Imm):
        if t == "pred":
            flag = bool(op.value)
            return lambda s: np.full(s.threads, flag)
        v = np.array(immediate(op, t), UINT[w]).view(dt)[()]
        return (lambda s: np.full(s.threads, v)) if t.endswith("x2") else (lambda s: v)
    if isinstance(op, Special):
        get = special(op.name)
        return lambda s: get(s).astype(UINT[w]).view(dt)
    if isinstance(op, Sym):
        if op.space == "global":
            return lambda s: dt.type(s.symbols[op.name])
        return lambda s: dt.type(p.offsets[op.name])
    if isinstance(op, Vec):
        part = UINT[w // len(op.items)]
        gets = [reader(p, e, f"b{part.itemsize * 8}") for e in op.items]

        def pack(s: Batch) -> Any:
            a = np.empty((s.threads, len(gets)), part)
            for k, g in enumerate(gets):
                a[:, k] = g(s)
            return a.view(dt)[:, 0]

        return pack
    raise PTXError(f"operand {op!r} as .{t}")


def writer(p: Program, op: Any, t: str) -> Writer:
    """Write an operand of type t under a mask (None: every thread)."""
    if isinstance(op, Sink):
        return lambda s, m, v: None
    w = WIDTH[t]
    if isinstance(op, Vec):
        part = UINT[w // len(op.items)]
        puts = [writer(p, e, f"b{part.itemsize * 8}") for e in op.items]

        def unpack(s: Batch, m: Any, v: Any) -> None:
            a = np.ascontiguousarray(full(s, v)).view(part).reshape(s.threads, -1)
            for k, put in enumerate(puts):
                put(s, m, np.ascontiguousarray(a[:, k]))

        return unpack
    if not isinstance(op, Reg):
        raise PTXError(f"destination {op!r}")
    name, rw = op.name, p.width[op.name]
    if (rw == 1) != (w == 1) or rw < w or rw > 64:
        raise PTXError(f"a {rw}-bit register written as .{t}")
    raw, narrow = UINT[rw], UINT[w]

    def put(s: Batch, m: Any, v: Any) -> None:
        if v.dtype != raw:
            if rw == w:
                v = v.view(raw)
            elif t[0] == "s":  # a wider register takes the sign
                v = v.view(SINT[w]).astype(SINT[rw]).view(raw)
            else:
                v = v.view(narrow).astype(raw)
        if v.shape != (s.threads,):
            v = np.full(s.threads, v)
        s.regs[name] = v if m is None else np.where(m, v, s.regs[name])

    return put


def address(p: Program, op: Any, space: str) -> Reader:
    """Addresses (uint64, one per thread) of a memory operand."""
    base, offset = (op.base, op.offset) if isinstance(op, Mem) else (op, 0)
    if isinstance(base, Reg) and p.width[base.name] == 32:
        name, o32 = base.name, np.uint32(offset & 0xFFFFFFFF)
        return lambda s: (s.regs[name] + o32).astype(np.uint64)
    o64 = np.uint64(offset & 0xFFFFFFFFFFFFFFFF)
    if isinstance(base, Reg):
        name = base.name
        return (lambda s: s.regs[name] + o64) if offset else (lambda s: s.regs[name])
    if isinstance(base, Sym) and space == "generic" and base.space != "global":
        raise PTXError(f"{base.name} is no generic address: cvta is missing")
    get = reader(p, base, "u64")
    return lambda s: np.full(s.threads, get(s) + o64)
