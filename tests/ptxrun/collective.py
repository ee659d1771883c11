"""Instructions that threads carry out together: shuffles, votes, barriers, clusters, mbarriers.

Each compiles to an action and, if it waits, a `ready` function that says which of the threads that
stand at the instruction may go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import PTXError
from .floats import NUMPY
from .instructions import bit_length
from .loadstore import Action, space_of
from .memory import RANK_MASK, RANK_SHIFT, WINDOW, locate
from .operands import Reader, address, full, reader, writer
from .parse import Imm, Instruction, Mem, Pair, Program, Sink

if TYPE_CHECKING:
    from .machine import Batch

Ready = Callable[["Batch", Any], Any]
ALL = np.uint32(0xFFFFFFFF)
POISON = np.uint32(0xFFFFFFFF)  # what a shuffle reads from a thread that takes no part: a NaN
_BITS = np.arange(32, dtype=np.uint32)


def active(s: Batch, m: Any) -> Any:
    return np.ones(s.threads, bool) if m is None else m


def _converge(i: Instruction, member: Reader) -> Ready:
    """Wait until every living thread that the member mask names has come."""

    def ready(s: Batch, m: Any) -> Any:
        mask = member(s)
        if np.ndim(mask) == 0 and mask == ALL and m is None:
            return None
        mask, here = full(s, mask), active(s, m)
        alone = here & ((mask >> s.laneid) & np.uint32(1) == 0)
        if alone.any():
            raise PTXError(
                f"{i.op}: the member mask 0x{int(mask[alone][0]):08x} does not name the "
                f"thread itself, {s.who(np.flatnonzero(alone)[0])}"
            )
        missing = mask & (s.warp_bits(s.alive) & ~s.warp_bits(here))[s.lanes // 32]
        return here & (missing == 0)

    return ready


def _spread(rows: Any) -> Any:
    """A value per warp (or per lane) -> per thread."""
    return np.ascontiguousarray(np.broadcast_to(rows, (rows.shape[0], 32))).ravel()


def compile_warp(p: Program, i: Instruction) -> tuple[Action, Ready | None]:
    if i.op == "activemask":
        put = writer(p, i.ops[0], "b32")
        return lambda s, m: put(s, m, s.warp_bits(active(s, m))[s.lanes // 32]), None
    if "sync" not in i.mods:
        raise i.unsupported()
    member = reader(p, i.ops[-1], "b32")
    make = {"shfl": _shuffle, "vote": _vote, "redux": _redux, "match": _match, "elect": _elect}
    return make[i.op](p, i, member), _converge(i, member)


def _outputs(o: Any) -> tuple[Any, Any]:
    return (o.first, o.second) if isinstance(o, Pair) else (o, Sink())


def _participants(s: Batch, m: Any, member: Reader) -> Any:
    """(warps, 32 or 1, 32): the threads whose values lane i combines."""
    act, mask = active(s, m).reshape(-1, 1, 32), member(s)
    if np.all(mask == ALL):
        return act
    return act & ((full(s, mask).reshape(-1, 32, 1) >> _BITS) & np.uint32(1)).astype(bool)


def _pack(bits: Any) -> Any:
    return (bits.astype(np.uint32) << _BITS).sum(2, dtype=np.uint32)


def _shuffle(p: Program, i: Instruction, member: Reader) -> Action:
    kind = i.mod("up", "down", "bfly", "idx")
    d, q = _outputs(i.ops[0])
    put, put_ok = writer(p, d, "b32"), writer(p, q, "pred")
    value, where, clamp = (reader(p, o, "b32") for o in i.ops[1:4])

    def fn(s: Batch, m: Any) -> None:
        x, lane = full(s, value(s)), s.laneid.astype(np.int64)
        b, c = where(s).astype(np.int64) & 31, clamp(s).astype(np.int64)
        segment, limit = (c >> 8) & 31, c & 31
        last = (lane & segment) | (limit & ~segment)
        j = {
            "up": lane - b,
            "down": lane + b,
            "bfly": lane ^ b,
            "idx": (lane & segment) | (b & ~segment),
        }[kind or ""]
        ok = j >= last if kind == "up" else j <= last
        source = (s.lanes & ~31) + np.where(ok, j, lane)
        r = x[source]
        mask = member(s)
        if m is not None or np.ndim(mask) or mask != ALL:
            absent = ~active(s, m)[source] | ((mask >> (source & 31).astype(np.uint32)) & 1 == 0)
            r = np.where(absent, POISON, r)
        put(s, m, r)
        put_ok(s, m, full(s, ok))

    return fn


def _vote(p: Program, i: Instruction, member: Reader) -> Action:
    kind = i.mod("all", "any", "uni", "ballot")
    put = writer(p, i.ops[0], "b32" if kind == "ballot" else "pred")
    value = reader(p, i.ops[1], "pred")

    def fn(s: Batch, m: Any) -> None:
        part, v = _participants(s, m, member), value(s).reshape(-1, 1, 32)
        some, every = (v & part).any(2), (v | ~part).all(2)
        r = {"any": some, "all": every, "uni": every | ~some}.get(kind or "")
        put(s, m, _spread(_pack(v & part) if r is None else r))

    return fn


def _redux(p: Program, i: Instruction, member: Reader) -> Action:
    kind, t = i.mod("add", "min", "max", "and", "or", "xor") or "", i.types[-1]
    dt = NUMPY[t]
    put, value = writer(p, i.ops[0], t), reader(p, i.ops[1], t)
    if t == "f32":
        if "abs" in i.mods:
            raise i.unsupported()
        start = dt.type(np.inf if kind == "min" else -np.inf)
        ufunc = getattr(np, kind + "imum" if "NaN" in i.mods else "f" + kind)
    else:
        info = np.iinfo(dt)
        start = dt.type({"min": info.max, "max": info.min}.get(kind, 0))
        start = ~start if kind == "and" else start
        ufunc = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[kind]

    def fn(s: Batch, m: Any) -> None:
        v = full(s, value(s)).reshape(-1, 1, 32)
        put(
            s,
            m,
            _spread(
                ufunc.reduce(np.where(_participants(s, m, member), v, start), axis=2, dtype=dt)
            ),
        )

    return fn


def _match(p: Program, i: Instruction, member: Reader) -> Action:
    d, q = _outputs(i.ops[0])
    put, put_ok = writer(p, d, "b32"), writer(p, q, "pred")
    value = reader(p, i.ops[1], i.types[-1])

    def fn(s: Batch, m: Any) -> None:
        part, v = _participants(s, m, member), full(s, value(s)).reshape(-1, 32)
        equal = _spread(_pack((v[:, :, None] == v[:, None, :]) & part))
        same = equal == _spread(_pack(part))
        put(s, m, equal if "any" in i.mods else np.where(same, equal, np.uint32(0)))
        put_ok(s, m, same)

    return fn


def _elect(p: Program, i: Instruction, member: Reader) -> Action:
    d, q = _outputs(i.ops[0])
    put, put_ok = writer(p, d, "b32"), writer(p, q, "pred")

    def fn(s: Batch, m: Any) -> None:
        mask = full(s, member(s)).astype(np.int64)
        leader = (bit_length((mask & -mask).astype(np.uint64)) - 1).astype(np.uint32)
        put(s, m, leader)
        put_ok(s, m, s.laneid == leader)

    return fn


WAITING, RELEASED = 1, 2


def compile_barrier(p: Program, i: Instruction) -> tuple[Action, Ready | None]:
    """bar / barrier: of the warp, the CTA, or the cluster."""
    if i.mod("warp"):
        return (lambda s, m: None), _converge(i, reader(p, i.ops[0] if i.ops else Imm(-1), "b32"))
    if i.mod("cluster"):
        return _cluster_barrier(i)
    kind = i.mod("sync", "arrive", "red")
    ids = i.ops[1:-1] if kind == "red" else i.ops
    number = reader(p, ids[0], "u32")
    count = reader(p, ids[1], "u32") if len(ids) > 1 else None

    def release(s: Batch) -> None:
        """Open the barriers that have all their threads."""
        for b in np.unique(s.bar_id[s.bar_state == WAITING]).tolist():
            waiting = (s.bar_state == WAITING) & (s.bar_id == b)
            rows = waiting.reshape(s.ctas, -1)
            need = np.where(waiting, s.bar_count, 0).reshape(s.ctas, -1).max(1)
            need = np.where(need > 0, need, s.alive.reshape(s.ctas, -1).sum(1))
            early = s.bar_arrived.setdefault(b, np.zeros(s.ctas, np.int64))
            go = rows.any(1) & (rows.sum(1) + early >= need)
            early[go] = 0
            s.bar_state[waiting & np.repeat(go, s.padded)] = RELEASED
            if s.race is not None:
                s.race.epoch[go] += 1

    def ready(s: Batch, m: Any) -> Any:
        if m is None and count is None and np.ndim(number(s)) == 0:
            if s.race is not None:
                s.race.epoch += 1
            return None
        here = active(s, m)
        new = here & (s.bar_state == 0)
        if new.any():
            s.bar_state[new] = WAITING
            s.bar_id[new] = full(s, number(s))[new]
            s.bar_count[new] = 0 if count is None else full(s, count(s))[new]
        release(s)
        return here & (s.bar_state == RELEASED)

    if kind == "arrive":

        def arrive(s: Batch, m: Any) -> None:
            here, which = active(s, m), full(s, number(s))
            for b in np.unique(which[here]).tolist():
                n = s.bar_arrived.setdefault(b, np.zeros(s.ctas, np.int64))
                n += (here & (which == b)).reshape(s.ctas, -1).sum(1)

        return arrive, None
    put = None
    if kind == "red":
        how, t = i.mod("and", "or", "popc"), "u32" if i.mod("popc") else "pred"
        put, value = writer(p, i.ops[0], t), reader(p, i.ops[-1], "pred")

    def fn(s: Batch, m: Any) -> None:
        here = active(s, m)
        s.bar_state[here] = 0
        if put is not None:
            v, here = value(s).reshape(s.ctas, -1), here.reshape(s.ctas, -1)
            r = {
                "popc": (v & here).sum(1).astype(np.uint32),
                "and": (v | ~here).all(1),
                "or": (v & here).any(1),
            }[how or ""]
            put(s, m, np.repeat(r, s.padded))

    return fn, ready


def _cluster_barrier(i: Instruction) -> tuple[Action, Ready | None]:
    """barrier.cluster: `arrive` counts, `wait` lets go once all threads have arrived as often."""

    def misuse(s: Batch, bad: Any, what: str) -> None:
        if bad.any():
            raise PTXError(f"barrier.cluster: {what}, {s.who(np.flatnonzero(bad)[0])}")

    if i.mod("arrive"):

        def arrive(s: Batch, m: Any) -> None:
            here = active(s, m)
            misuse(s, here & (s.cluster_arrivals > s.cluster_waits), "arrives twice with no wait")
            s.cluster_arrivals = s.cluster_arrivals + here

        return arrive, None

    def ready(s: Batch, m: Any) -> Any:
        here = active(s, m)
        misuse(s, here & (s.cluster_arrivals == s.cluster_waits), "waits without having arrived")
        n = np.where(s.alive, s.cluster_arrivals, np.iinfo(np.int32).max)
        lowest = n.reshape(-1, s.ranks * s.padded).min(1)
        return here & (np.repeat(lowest, s.ranks * s.padded) >= s.cluster_arrivals)

    def fn(s: Batch, m: Any) -> None:
        s.cluster_waits = np.where(active(s, m), s.cluster_arrivals, s.cluster_waits)

    return fn, ready


def compile_cluster_address(p: Program, i: Instruction) -> Action:
    """mapa and getctarank."""
    t = i.types[-1]
    wide = "shared::cluster" not in i.mods  # without it, operands are generic addresses
    value = reader(p, i.ops[1], t)
    base = np.uint64(WINDOW["shared"] if wide else 0)
    if i.op == "getctarank":
        put = writer(p, i.ops[0], "u32")

        def rank_of(s: Batch, m: Any) -> None:
            r = (full(s, value(s)).astype(np.uint64) - base) >> np.uint64(RANK_SHIFT)
            put(s, m, np.where(r == 0, s.cluster_ctarank, (r - np.uint64(1)).astype(np.uint32)))

        return rank_of
    put, rank = writer(p, i.ops[0], t), reader(p, i.ops[2], "u32")

    def fn(s: Batch, m: Any) -> None:
        r = full(s, rank(s)).astype(np.uint64)
        bad = active(s, m) & (r >= s.ranks)
        if bad.any():
            k = np.flatnonzero(bad)[0]
            raise PTXError(f"mapa to CTA {int(r[k])} of a cluster of {s.ranks}, {s.who(k)}")
        a = (full(s, value(s)).astype(np.uint64) - base) & np.uint64(RANK_MASK)
        put(s, m, (a + ((r + np.uint64(1)) << np.uint64(RANK_SHIFT)) + base).astype(NUMPY[t]))

    return fn


@dataclass
class MBarrier:
    count: int
    pending: int
    bytes: int = 0
    phase: int = 0

    def settle(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.phase, self.pending = self.phase + 1, self.count


def _find(s: Batch, key: int, i: Instruction) -> MBarrier:
    if key not in s.mbarriers:
        raise PTXError(
            f"{i.text}: no mbarrier.init at shared byte {key % s.shared_stride}, "
            f"CTA {key // s.shared_stride} of the batch"
        )
    return s.mbarriers[key]


def compile_mbarrier(p: Program, i: Instruction) -> tuple[Action, Ready | None]:
    """mbarrier.*: the state lives beside the memory (its 64 bits there are opaque anyway)."""
    at_index = next(k for k, o in enumerate(i.ops) if isinstance(o, Mem))
    space, args = space_of(i), i.ops[at_index + 1 :]
    at = address(p, i.ops[at_index], space)
    operand = (
        reader(
            p, args[0], "u64" if i.mod("test_wait", "try_wait") and not i.mod("parity") else "u32"
        )
        if args
        else None
    )
    kind = i.mods[0]
    if kind not in ("init", "inval", "arrive", "expect_tx", "complete_tx", "test_wait", "try_wait"):
        raise i.unsupported()

    def keys(s: Batch, m: Any) -> Any:
        out = np.zeros(s.threads, np.int64)
        for lanes, al, index in locate(s, space, at(s), m, 8, "store"):
            if al is not s.spaces["shared"]:
                raise PTXError(f"{i.text}: not in shared memory")
            out[s.lanes if lanes is None else lanes] = index
        return out

    if kind in ("test_wait", "try_wait"):
        put = writer(p, i.ops[0], "pred")

        def ready(s: Batch, m: Any) -> Any:
            here, key = active(s, m), keys(s, m)
            want, done = full(s, operand(s)), np.zeros(s.threads, bool)  # type: ignore[misc]
            for k in np.unique(key[here]).tolist():
                b = _find(s, k, i)
                if k in s.in_flight:  # asynchronous stores land here
                    for index, data in s.in_flight.pop(k):
                        where = np.arange(index, index + len(data))
                        s.spaces["shared"].bytes[where] = data
                        b.bytes -= len(data)
                        if s.race is not None:
                            s.race.forget(where)
                    b.settle()
                done |= (key == k) & ((b.phase & 1) != want if i.mod("parity") else b.phase > want)
            return here & done

        def waited(s: Batch, m: Any) -> None:
            put(s, m, np.ones(s.threads, bool))
            if s.race is not None:
                s.race.epoch[np.unique(s.cta[active(s, m)])] += 1

        return waited, ready

    has_state = at_index == 1 and not isinstance(i.ops[0], Sink)
    put_state = writer(p, i.ops[0], "b64") if has_state else None

    def fn(s: Batch, m: Any) -> None:
        here, key = active(s, m), keys(s, m)
        value = full(s, operand(s)).astype(np.int64) if operand else np.ones(s.threads, np.int64)
        phases = np.zeros(s.threads, np.uint64)
        for k in np.unique(key[here]).tolist():
            who = here & (key == k)
            total, n = int(value[who].sum()), int(who.sum())
            if kind == "init":
                s.mbarriers[k] = MBarrier(int(value[who][0]), int(value[who][0]))
                continue
            b = _find(s, k, i)
            if kind == "inval":
                del s.mbarriers[k]
                continue
            phases[who] = b.phase
            if kind == "complete_tx" or i.mod("expect_tx"):
                b.bytes += -total if kind == "complete_tx" else total
            if kind == "arrive":
                b.pending -= n if i.mod("expect_tx") else total
                if b.pending < 0:
                    raise PTXError(
                        f"mbarrier: more arrivals than the {b.count} expected, "
                        f"{s.who(np.flatnonzero(who)[0])}"
                    )
                if s.race is not None and (s.cta[who] != k // s.shared_stride).any():
                    s.race.loose = True
            b.settle()
        if put_state is not None:
            put_state(s, m, phases)

    return fn, None
