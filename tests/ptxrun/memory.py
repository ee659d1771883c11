"""Memory: allocations with bounds and alignment checks, host arrays, and the race detector.

Each argument array is an allocation of its own, exactly as long as the bytes it spans, so a pack
that reaches past the end of a view is seen even where the parent array goes on.  The device address
keeps the view's offset within its owner modulo 256: a misaligned view stays misaligned.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import PTXError, PTXRace
from .parse import Variable

if TYPE_CHECKING:
    from .machine import Batch

# Where the spaces lie in the generic address space; everything below is global memory.
WINDOW = {"shared": 0x7000_0000_0000, "local": 0x7100_0000_0000, "param": 0x7200_0000_0000}
FIRST_GLOBAL = 0x10_0000_0000
IN_PLACE = 1 << 30  # bytes from which a host array is not copied: of such a one little is touched
# A shared::cluster address is (rank + 1) << RANK_SHIFT | offset; with no rank it is the own CTA's.
RANK_SHIFT = 24
RANK_MASK = (1 << RANK_SHIFT) - 1


class Struct:
    """A struct passed by value: struct.pack(fmt, *values); arrays stand for their addresses."""

    def __init__(self, fmt: str, *values: Any):
        self.fmt, self.values = fmt, values


def carray(a: np.ndarray) -> Struct:
    """CuPy's CArray<T, ndim, ...>: data, size, shape[ndim], strides[ndim]."""
    return Struct(f"<Qq{2 * a.ndim}q", a, a.size, *a.shape, *a.strides)


def cindexer(shape: Sequence[int]) -> Struct:
    """CuPy's CIndexer<ndim>: size, shape[ndim], index[ndim]."""
    size = int(np.prod(shape, dtype=np.int64))
    return Struct(f"<q{2 * len(shape)}q", size, *shape, *[0] * len(shape))


class Allocation:
    """Memory from address `base` on, in `data` from byte `lead` on: so that what is aligned on the
    device is aligned in `data` too, and can be viewed in any type."""

    def __init__(
        self,
        name: str,
        base: int,
        size: int,
        data: np.ndarray,
        writable: bool = True,
        lead: int = 0,
    ):
        self.name, self.base, self.size, self.writable = name, base, size, writable
        self.dirty = False
        self.bytes, self.lead = data, lead
        self.views: dict[np.dtype[Any], np.ndarray] = {}

    def view(self, dt: np.dtype[Any]) -> np.ndarray:
        if dt not in self.views:
            self.views[dt] = self.bytes.view(dt)
        return self.views[dt]


def padded(size: int) -> np.ndarray:
    """Zeroed bytes, rounded up so that every element type can view them."""
    return np.zeros(-(-max(size, 1) // 64) * 64, np.uint8)


def is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray) or hasattr(x, "untyped_storage")


def _extent(x: Any) -> tuple[int, int, int, bool]:
    """First byte, end, device alignment (modulo 256) and writability of an array's memory."""
    if not isinstance(x, np.ndarray):  # a torch tensor
        if x.device.type != "cpu":
            raise PTXError("tensors must be on the CPU")
        lo = x.data_ptr()
        span = sum((n - 1) * st for n, st in zip(x.shape, x.stride(), strict=True)) + 1
        size = span * x.element_size() if x.numel() else 0
        return lo, lo + size, (lo - x.untyped_storage().data_ptr()) % 256, True
    root = x
    while isinstance(root.base, np.ndarray):
        root = root.base
    lo, hi = np.lib.array_utils.byte_bounds(x)
    start = root.__array_interface__["data"][0]
    owner_phase = 0 if root.base is None else start % 16  # memory of another library
    return lo, hi if x.size else lo, (lo - start + owner_phase) % 256, x.flags.writeable


def device_address(x: np.ndarray) -> int:
    """Where an array begins, modulo 256, when it is a kernel's argument."""
    lo, _, phase, _ = _extent(x)
    return int(phase + x.__array_interface__["data"][0] - lo)


class GlobalMemory:
    """Separate allocations, far apart, so that no overrun of one lands in another."""

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []
        self.bases = np.zeros(0, np.uint64)
        self._next = FIRST_GLOBAL
        self._host: list[tuple[int, int, Allocation, Any]] = []

    def allocate(
        self, name: str, size: int, phase: int = 0, writable: bool = True, data: Any = None
    ) -> Allocation:
        data = padded(phase + size) if data is None else data
        a = Allocation(name, self._next + phase, size, data, writable, phase)
        self._next += (-(-size // 4096) + 256) * 4096
        self.allocations.append(a)
        self.bases = np.append(self.bases, np.uint64(a.base))
        return a

    def bind(self, arrays: Iterable[tuple[str, Any]]) -> None:
        """Allocate the arguments; overlapping arrays share one allocation."""
        spans = sorted(((*_extent(x), name, x) for name, x in arrays), key=lambda t: t[:2])
        while spans:
            lo, hi, phase, writable, name, x = spans.pop(0)
            keep = [x]
            while spans and spans[0][0] < max(hi, lo + 1):
                _, h, _, w, n, x = spans.pop(0)
                hi, writable, name = max(hi, h), writable or w, name if n == name else f"{name}+{n}"
                keep.append(x)
            if hi - lo >= IN_PLACE:
                whole = -(-(phase + hi - lo) // 64) * 64  # the rest of the last page is there, too
                data = np.ctypeslib.as_array((ctypes.c_uint8 * whole).from_address(lo - phase))
                a = self.allocate(name, hi - lo, phase, writable, data)
                self._host.append((lo, hi, a, (None, keep)))
                continue
            a = self.allocate(name, hi - lo, phase, writable)
            host = np.ctypeslib.as_array((ctypes.c_uint8 * (hi - lo)).from_address(lo))
            a.bytes[a.lead : a.lead + hi - lo] = host
            self._host.append((lo, hi, a, (host, keep)))

    def address(self, x: Any) -> int:
        lo = _extent(x)[0]
        first = x.__array_interface__["data"][0] if isinstance(x, np.ndarray) else x.data_ptr()
        start, _, a, _ = next(h for h in self._host if h[0] <= lo < max(h[1], h[0] + 1))
        return a.base + first - start

    def write_back(self) -> None:
        for lo, hi, a, (host, _) in self._host:
            if a.dirty and host is not None:
                host[:] = a.bytes[a.lead : a.lead + hi - lo]

    def fault(self, s: Batch, a: Any, lanes: Any, nbytes: int, kind: str) -> PTXError:
        for addr, lane in zip(a.tolist(), lanes.tolist(), strict=True):
            i = int(np.searchsorted(self.bases, np.uint64(addr), "right")) - 1
            near = self.allocations[i]
            if i < 0 or addr + nbytes > near.base + near.size:
                where = (
                    ""
                    if i < 0
                    else (
                        f"; {near.name} has {near.size} bytes, this is at offset {addr - near.base}"
                    )
                )
                return PTXError(
                    f"global {kind} out of bounds: 0x{addr:x} (+{nbytes}){where}, {s.who(lane)}"
                )
        return PTXError("global access out of bounds")

    def locate(self, s: Batch, a: Any, lanes: Any, nbytes: int, kind: str) -> list[Any]:
        low, high = int(a.min()), int(a.max())
        i = int(np.searchsorted(self.bases, np.uint64(low), "right")) - 1
        one = self.allocations[i] if i >= 0 else None
        if one is not None and high + nbytes <= one.base + one.size:
            found: list[tuple[Any, Allocation]] = [(None, one)]
        else:
            which = np.searchsorted(self.bases, a, "right") - 1
            found = [(np.flatnonzero(which == i), self.allocations[i]) for i in np.unique(which)]
            if which.min() < 0 or any(
                int(a[k].max()) + nbytes > al.base + al.size for k, al in found
            ):
                raise self.fault(s, a, lanes, nbytes, kind)
        for _, al in found:
            if kind != "load":
                al.dirty = True
                if not al.writable:
                    raise PTXError(f"{kind} to {al.name}, a read-only array")
        return [
            (k, al, ((a if k is None else a[k]) - np.uint64(al.base - al.lead)).astype(np.int64))
            for k, al in found
        ]


def pack_arguments(
    params: list[Variable], args: Sequence[Any], memory: GlobalMemory, size: int
) -> np.ndarray:
    """The bytes of the parameter space."""
    if len(args) != len(params):
        want = [f"{p.type}[{p.size}]" for p in params]
        raise PTXError(f"the kernel takes {len(params)} parameters {want}, {len(args)} given")
    found = []
    for k, x in enumerate(args):
        values = x.values if isinstance(x, Struct) else (x,)
        found += [(f"arg{k}", v) for v in values if is_array(v)]
    memory.bind(found)
    buf = padded(size)
    for k, (p, x) in enumerate(zip(params, args, strict=True)):
        if isinstance(x, Struct):
            raw = struct.pack(x.fmt, *[memory.address(v) if is_array(v) else v for v in x.values])
        elif is_array(x):
            raw = memory.address(x).to_bytes(8, "little")
        elif x is None:
            raw = bytes(p.size)
        elif isinstance(x, (bytes, bytearray)):
            raw = bytes(x)
        elif isinstance(x, np.generic) and x.dtype.kind not in "iub":
            raw = x.tobytes()
        elif isinstance(x, float):
            raw = struct.pack({2: "<e", 4: "<f", 8: "<d"}[p.size], x)
        elif isinstance(x, (int, np.generic)):
            raw = (int(x) & ((1 << 8 * p.size) - 1)).to_bytes(p.size, "little")
        else:
            raise PTXError(f"argument {k}: cannot pass a {type(x).__name__}")
        if len(raw) != p.size and not (is_array(x) and p.size == 8):
            raise PTXError(f"argument {k} has {len(raw)} bytes, the parameter {p.size}")
        buf[p.offset : p.offset + len(raw)] = np.frombuffer(raw, np.uint8)
    return buf


def locate(s: Batch, space: str, addr: Any, m: Any, nbytes: int, kind: str) -> list[Any]:
    """Split an access into (lanes or None for all, allocation, byte index) pieces, all checked.

    space: a PTX space, "cluster" for shared::cluster, or "generic".  kind: load, store or atomic.
    """
    lanes = s.lanes if m is None else np.flatnonzero(m)
    a = addr if m is None else addr[lanes]
    if not len(a):
        return []
    if (odd := a & np.uint64(nbytes - 1)).any():
        k = int(np.flatnonzero(odd)[0])
        raise PTXError(
            f"misaligned {kind} of {nbytes} bytes at 0x{int(a[k]):x} ({space}), {s.who(lanes[k])}"
        )
    if space == "generic" and int(a.max()) < WINDOW["shared"]:
        space = "global"
    pieces = []
    windows: list[tuple[Any, str, int]] = [(None, space, 0)]
    for k, name, base in windows if space != "generic" else _windows(a):
        part, who = (a, lanes) if k is None else (a[k] - np.uint64(base), lanes[k])
        if name == "global":
            inside = s.memory.locate(s, part, who, nbytes, kind)
        else:
            al = s.spaces["shared" if name == "cluster" else name]
            inside = [(None, al, _index(s, name, part.astype(np.int64), who, nbytes, kind))]
        for q, al, index in inside:
            chosen = who if q is None else who[q]
            if s.stats is not None:
                s.stats.access(s, al, kind, chosen, index, nbytes)
            all_lanes = m is None and k is None and q is None
            pieces.append((None if all_lanes else chosen, al, index))
    return pieces


def _windows(a: Any) -> list[tuple[Any, str, int]]:
    """Sort generic addresses by window."""
    out = []
    for name, low, high in (
        ("global", 0, WINDOW["shared"]),
        ("cluster", WINDOW["shared"], WINDOW["local"]),
        ("local", WINDOW["local"], WINDOW["param"]),
        ("param", WINDOW["param"], 2**63),
    ):
        k = np.flatnonzero((a >= np.uint64(low)) & (a < np.uint64(high)))
        if len(k):
            out.append((k, name, low))
    return out


def _index(s: Batch, space: str, a: Any, lanes: Any, nbytes: int, kind: str) -> Any:
    """Offsets in shared, local or parameter memory -> byte index in the batch's buffer."""
    size, unit, stride = s.space_size[space], lanes, s.local_stride
    if space == "param":
        unit, stride = np.zeros_like(lanes), 0
    elif space in ("shared", "cluster"):
        unit, stride = s.cta[lanes], s.shared_stride
        rank = a >> RANK_SHIFT
        if rank.any():
            target = np.where(rank == 0, unit, unit - s.cluster_ctarank[lanes] + rank - 1)
            wrong = {
                "is not in the cluster": (rank < 0) | (rank > s.ranks),
                "is another CTA's, but the access is .shared::cta": (target != unit)
                & (space == "shared"),
                "is of a CTA that has exited": ~s.cta_alive()[np.clip(target, 0, s.ctas - 1)],
            }
            for what, bad in wrong.items():
                if bad.any():
                    k = int(np.flatnonzero(bad)[0])
                    raise PTXError(f"shared address 0x{int(a[k]):x} {what}, {s.who(lanes[k])}")
            unit, a = target, a & RANK_MASK
    bad = (a < 0) | (a + nbytes > size)
    if bad.any():
        k = int(np.flatnonzero(bad)[0])
        raise PTXError(
            f"{space} {kind} out of bounds: offset {int(a[k])} (+{nbytes}) of {size}, "
            f"{s.who(lanes[k])}"
        )
    return unit * stride + a


def load(s: Batch, space: str, addr: Any, m: Any, dt: np.dtype[Any], n: int) -> list[Any]:
    """n consecutive elements per thread (zero where inactive)."""
    size = dt.itemsize
    outs: list[Any] = [None] * n
    for lanes, al, index in locate(s, space, addr, m, size * n, "load"):
        if s.race is not None and al is s.spaces["shared"]:
            s.race.check(s, s.lanes if lanes is None else lanes, index, size * n, "read")
        data, e = al.view(dt), index // size
        for k in range(n):
            x = data[e + k] if k else data[e]
            if lanes is None:
                outs[k] = x
                continue
            if outs[k] is None:
                outs[k] = np.zeros(s.threads, dt)
            outs[k][lanes] = x
    return [np.zeros(s.threads, dt) if o is None else o for o in outs]


def store(s: Batch, space: str, addr: Any, m: Any, values: list[Any]) -> None:
    dt = values[0].dtype
    size, n = dt.itemsize, len(values)
    for lanes, al, index in locate(s, space, addr, m, size * n, "store"):
        parts = values if lanes is None else [v[lanes] for v in values]
        if s.race is not None:
            who = s.lanes if lanes is None else lanes
            raw = np.ascontiguousarray(np.stack(parts, 1)).view(np.uint8)
            order = np.argsort(index, kind="stable")
            twice = np.flatnonzero(np.diff(index[order]) == 0)
            bad = twice[(raw[order[twice]] != raw[order[twice + 1]]).any(1)]
            if len(bad):
                a, b = order[bad[0] : bad[0] + 2]
                raise PTXRace(
                    f"two threads store different values to one place in {al.name}: "
                    f"{s.who(who[a])} and {s.who(who[b])}"
                )
            if al is s.spaces["shared"]:
                s.race.check(s, who, index, size * n, "write", raw)
        data, e = al.view(dt), index // size
        for k, v in enumerate(parts):
            data[e + k] = v


class _Record:
    """The last access of one kind to every byte of shared memory."""

    def __init__(self, nbytes: int):
        self.warp = np.full(nbytes, -1, np.int32)  # -1: none, -2: several
        self.epoch = np.zeros(nbytes, np.int32)
        self.arrivals = np.zeros(nbytes, np.int32)


class Race:
    """Shared-memory hazards between warps.

    Two accesses of one CTA are ordered by a block barrier between them (a count per CTA, `epoch`).
    Accesses of different CTAs are ordered by barrier.cluster: the first thread must have arrived
    (its arrivals so far is the clock) at a barrier that the second has waited for.
    """

    def __init__(self, nbytes: int, ctas: int):
        kinds = [(kind, remote) for kind in ("read", "write", "atomic") for remote in (True, False)]
        self.records = {k: _Record(nbytes) for k in kinds}
        self.epoch = np.zeros(ctas, np.int32)
        self.remote_clock = np.full(ctas, -1)  # of the last access from another CTA
        self.loose = False  # remote mbarriers order CTAs in ways that are not followed here

    def check(self, s: Batch, lanes: Any, index: Any, n: int, kind: str, data: Any = None) -> None:
        """Check and record an access; atomics do not race with one another."""
        b = (index[:, None] + np.arange(n)).ravel()
        who = np.repeat(lanes, n)
        warp, owner = who // 32, b // s.shared_stride
        home, epoch = s.cta[who] == owner, self.epoch[owner]
        waited, arrived = s.cluster_waits[who], s.cluster_arrivals[who]
        early = ~home & (waited == 0)
        if early.any() and not self.loose:
            self._report(
                s,
                "another CTA's memory before the first barrier.cluster.wait: "
                "that CTA may not have started",
                early,
                who,
                b,
            )
        np.maximum.at(self.remote_clock, owner[~home], arrived[~home])
        differs = True if data is None else s.spaces["shared"].bytes[b] != data.ravel()
        for (other, remote), r in self.records.items():
            if kind == other != "write" or (remote and self.loose):
                continue
            hit = (r.warp[b] != -1) & (r.warp[b] != warp) & (r.arrivals[b] >= waited)
            if not remote:
                hit &= (~home & (not self.loose)) | (home & (r.epoch[b] >= epoch))
            hit &= differs
            if hit.any():
                whose = "another CTA's" if remote or not home[hit][0] else "another warp's"
                self._report(s, f"{kind} after {whose} {other}, no barrier between", hit, who, b)
        for remote, k in ((False, home), (True, ~home)):
            if not k.any():
                continue
            r, bk, wk = self.records[kind, remote], b[k], warp[k]
            several = (
                (r.warp[bk] != wk)
                & (r.warp[bk] != -1)
                & (r.epoch[bk] == epoch[k])
                & (r.arrivals[bk] == arrived[k])
            )
            r.warp[bk] = wk
            several |= r.warp[bk] != wk
            r.epoch[bk], r.arrivals[bk] = epoch[k], arrived[k]
            if kind != "write":
                r.warp[bk[several]] = -2

    def forget(self, index: Any) -> None:
        """Bytes that an asynchronous copy has written: its mbarrier orders them."""
        for r in self.records.values():
            r.warp[index] = -1

    def check_exit(self, s: Batch, gone: Any) -> None:
        """CTAs end: nothing may still be reading their shared memory."""
        clock = np.where(self.remote_clock >= 0, self.remote_clock, -1)
        last_wait = s.cluster_waits.reshape(s.ctas, -1).max(1)
        bad = gone & (clock >= last_wait) & (clock >= 0) & (not self.loose)
        if bad.any():
            lane = int(np.flatnonzero(bad)[0]) * s.padded
            raise PTXRace(
                "the CTA ends while another CTA may still use its shared memory "
                f"(barrier.cluster missing at the end), {s.who(lane)}"
            )

    def _report(self, s: Batch, what: str, bad: Any, who: Any, b: Any) -> None:
        k = int(np.flatnonzero(bad)[0])
        raise PTXRace(
            f"shared memory race: {what}; byte {int(b[k]) % s.shared_stride}, {s.who(who[k])}"
        )
