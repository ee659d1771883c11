"""Instructions that touch memory: ld, st, atom, red, cp.async, st.async, ldmatrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .floats import NUMPY, UINT, WIDTH, down, fminmax, up
from .memory import load, locate, store
from .operands import address, full, reader, writer
from .parse import Imm, Instruction, Mem, Program, Reg, Sink, Sym, Vec

if TYPE_CHECKING:
    from .machine import Batch

Action = Callable[["Batch", Any], None]
_SPACES = {
    "global": "global",
    "const": "global",
    "local": "local",
    "param": "param",
    "shared": "shared",
    "shared::cta": "shared",
    "shared::cluster": "cluster",
    "param::entry": "param",
    "param::func": "param",
}


def space_of(i: Instruction) -> str:
    return next((_SPACES[m] for m in i.mods if m in _SPACES), "generic")


def _items(o: Any) -> list[Any]:
    return list(o.items) if isinstance(o, Vec) else [o]


def compile_memory(p: Program, i: Instruction) -> Action:
    if i.op == "cp":
        return _async_copy(p, i)
    if i.op == "st" and i.mod("async"):
        return _async_store(p, i)
    known = {
        "v2",
        "v4",
        "v8",
        "volatile",
        "relaxed",
        "acquire",
        "release",
        "acq_rel",
        "weak",
        "nc",
        "cta",
        "cluster",
        "gpu",
        "sys",
        "ca",
        "cg",
        "cs",
        "cv",
        "lu",
        "wb",
        "wt",
        "noftz",
        "mmio",
        "unified",
        *_ATOMIC,
        *_SPACES,
        *WIDTH,
    }
    if any(m not in known and not m.startswith(("L1::", "L2::")) for m in i.mods):
        raise i.unsupported()
    if i.op in ("atom", "red"):
        return _atomic(p, i)
    space, t = space_of(i), i.types[-1]
    where = i.ops[1] if i.op != "st" else i.ops[0]
    if space == "param" and isinstance(where.base, Sym) and where.base.space == "local":
        space = "local"  # a parameter of an inlined call
    values = _items(i.ops[0] if i.op != "st" else i.ops[1])
    if len(values) != int(next((m[1:] for m in i.mods if m in ("v2", "v4", "v8")), 1)):
        raise i.unsupported()
    if i.op == "st":
        gets = [reader(p, o, t) for o in values]
        at = address(p, where, space)
        return lambda s, m: store(s, space, at(s), m, [full(s, g(s)) for g in gets])
    puts = [writer(p, o, t) for o in values]
    dt = NUMPY[t]
    if space == "param" and isinstance(where.base, Sym):
        first = (p.offsets[where.base.name] + where.offset) // dt.itemsize

        def parameter(s: Batch, m: Any) -> None:
            data = s.spaces["param"].view(dt)
            for k, put in enumerate(puts):
                put(s, m, data[first + k])

        return parameter
    at = address(p, where, space)

    def fetch(s: Batch, m: Any) -> None:
        for put, v in zip(puts, load(s, space, at(s), m, dt, len(puts)), strict=True):
            put(s, m, v)

    return fetch


_ATOMIC: dict[str, Callable[[Any, Any, Any], Any]] = {
    "add": lambda old, v, c: old + v,
    "min": lambda old, v, c: min(old, v),
    "max": lambda old, v, c: max(old, v),
    "and": lambda old, v, c: old & v,
    "or": lambda old, v, c: old | v,
    "xor": lambda old, v, c: old ^ v,
    "exch": lambda old, v, c: v,
    "cas": lambda old, v, c: c if old == v else old,
    "inc": lambda old, v, c: old - old if old >= v else old + 1,
    "dec": lambda old, v, c: v if old == 0 or old > v else old - 1,
}


def _atomic(p: Program, i: Instruction) -> Action:
    name, t = next(m for m in i.mods if m in _ATOMIC), i.types[-1]
    space, dst = space_of(i), i.ops[0] if i.op == "atom" else Sink()
    where, value, *compare = i.ops[1:] if i.op == "atom" else i.ops
    half = t in ("f16", "bf16", "f16x2", "bf16x2")
    dt = UINT[WIDTH[t]] if half else NUMPY[t]
    at, gets = address(p, where, space), [reader(p, o, t) for o in _items(value)]
    other = reader(p, compare[0], t) if name == "cas" else None
    puts = [writer(p, o, t) for o in _items(dst)]
    unused = isinstance(dst, Sink) or (isinstance(dst, Reg) and p.uses[dst.name] == 1)

    def one(old: Any, v: Any, c: Any) -> Any:
        if not half or name in ("exch", "cas"):
            return _ATOMIC[name](old, v, c)
        a, b = (up(t, np.array([x], dt)) for x in (old, v))
        return down(t, a + b if name == "add" else fminmax(a, b, name == "max", False)).view(dt)[0]

    def act(s: Batch, m: Any) -> None:
        n, size = len(gets), dt.itemsize
        olds = [np.zeros(s.threads, dt) for _ in gets]
        third = full(s, other(s)) if other else None
        for lanes, al, index in locate(s, space, at(s), m, size * n, "atomic"):
            who = s.lanes if lanes is None else lanes
            if s.race is not None and al is s.spaces["shared"]:
                s.race.check(s, who, index, size * n, "atomic")
            data, e = al.view(dt), index // size
            for k, get in enumerate(gets):
                v = full(s, get(s)).view(dt)[who]
                if name == "add" and unused and not half:
                    np.add.at(data, e + k, v)
                    continue
                for j, lane in enumerate(who):
                    old = olds[k][lane] = data[e[j] + k]
                    data[e[j] + k] = one(old, v[j], None if third is None else third[lane])
        if not unused:
            for put, old in zip(puts, olds, strict=True):
                put(s, m, old)

    return act


def _async_copy(p: Program, i: Instruction) -> Action:
    """cp.async.  The data lands at the wait, so a read that does not wait sees stale bytes."""
    if i.mod("commit_group"):

        def commit(s: Batch, m: Any) -> None:
            s.commits = s.commits + (1 if m is None else m.astype(np.int64))

        return commit
    if i.mod("wait_group", "wait_all"):
        keep = i.ops[0].value if i.mod("wait_group") else -1

        def wait(s: Batch, m: Any) -> None:
            later = []
            for lanes, group, index, data in s.copies:
                done = np.full(len(lanes), True) if keep < 0 else group < s.commits[lanes] - keep
                done &= True if m is None else m[lanes]
                if done.any():
                    if s.race is not None:
                        s.race.check(
                            s, lanes[done], index[done], data.shape[1], "write", data[done]
                        )
                    buf = s.spaces["shared"].bytes
                    buf[index[done][:, None] + np.arange(data.shape[1])] = data[done]
                if not done.all():
                    later.append((lanes[~done], group[~done], index[~done], data[~done]))
            s.copies = later

        return wait
    if i.mods[0] != "async" or i.mod("bulk", "mbarrier") or not i.mod("ca", "cg"):
        raise i.unsupported()
    to, source = address(p, i.ops[0], "shared"), address(p, i.ops[1], "global")
    size = i.ops[2].value
    extra = i.ops[3] if len(i.ops) > 3 else None  # bytes to copy; 64 bits are a cache policy
    count = (
        reader(p, extra, "u32")
        if isinstance(extra, Imm) or (isinstance(extra, Reg) and p.width[extra.name] == 32)
        else None
    )
    if isinstance(extra, Reg) and p.width[extra.name] == 1:
        raise i.unsupported()

    def copy(s: Batch, m: Any) -> None:
        n = np.full(s.threads, size) if count is None else full(s, count(s)).astype(np.int64)
        for lanes, _, index in locate(s, "shared", to(s), m, size, "store"):
            who = s.lanes if lanes is None else lanes
            data = np.zeros((s.threads, size), np.uint8)
            for some in np.unique(n[who]).tolist():
                if some:
                    part = np.zeros(s.threads, bool)
                    part[who] = n[who] == some
                    step = min(some & -some, 16)
                    for o in range(0, some, step):
                        w = UINT[8 * min(step, 8)]
                        got = load(
                            s, "global", source(s) + np.uint64(o), part, w, max(step // 8, 1)
                        )
                        data[part, o : o + step] = np.stack(got, 1).view(np.uint8)[part]
            s.copies.append((who, s.commits[who], index, data[who]))

    return copy


def compile_matrix(p: Program, i: Instruction) -> Action:
    """ldmatrix / stmatrix: 8x8 blocks of 16-bit elements (Triton converts layouts with them)."""
    if not (i.mod("m8n8") and i.mod("b16")):
        raise i.unsupported()
    n, space, turn = int((i.mod("x1", "x2", "x4") or "x1")[1]), space_of(i), i.mod("trans")
    regs, where = i.ops if i.op == "ldmatrix" else i.ops[::-1]
    at, u16 = address(p, where, space), UINT[16]

    def rows(s: Batch, m: Any) -> Any:  # thread 8 k + r of a warp holds the address of row r of k
        return (s.laneid < 8 * n) & (True if m is None else m)

    def fetch(s: Batch, m: Any) -> None:
        data = np.stack(load(s, space, at(s), rows(s, m), u16, 8), 1).reshape(-1, 4, 8, 8)
        for k, put in enumerate(puts):
            block = data[:, k].swapaxes(1, 2) if turn else data[:, k]
            put(s, m, np.ascontiguousarray(block).view(np.uint32).ravel())

    def save(s: Batch, m: Any) -> None:
        data = np.zeros((s.threads // 32, 4, 8, 8), u16)
        for k, get in enumerate(gets):
            block = full(s, get(s)).view(u16).reshape(-1, 8, 8)
            data[:, k] = block.swapaxes(1, 2) if turn else block
        store(s, space, at(s), rows(s, m), list(data.reshape(-1, 8).T.copy()))

    if i.op == "ldmatrix":
        puts = [writer(p, o, "b32") for o in _items(regs)]
        return fetch
    gets = [reader(p, o, "b32") for o in _items(regs)]
    return save


def _async_store(p: Program, i: Instruction) -> Action:
    """st.async: a store to another CTA that completes bytes of an mbarrier there."""
    if space_of(i) != "cluster":
        raise i.unsupported()
    t = i.types[-1]
    gets, at = [reader(p, o, t) for o in _items(i.ops[1])], address(p, i.ops[0], "cluster")
    barrier = i.ops[2]
    assert isinstance(barrier, Mem)
    signal = address(p, barrier, "cluster")

    def act(s: Batch, m: Any) -> None:
        raw = np.stack([full(s, g(s)) for g in gets], 1).view(np.uint8).reshape(s.threads, -1)
        nbytes = raw.shape[1]
        ((lanes, _, index),) = locate(s, "cluster", at(s), m, nbytes, "store")
        ((_, _, key),) = locate(s, "cluster", signal(s), m, 8, "store")
        data = raw if lanes is None else raw[lanes]
        for k, j, d in zip(key.tolist(), index.tolist(), data, strict=True):
            if k // s.shared_stride != j // s.shared_stride:
                raise i.unsupported()
            s.in_flight.setdefault(k, []).append((j, d))

    return act
