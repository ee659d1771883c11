"""Results in which nothing was measured, to show the report and to test it.

`python -m tests.bench_samples` writes them to tests/samples.

A time is a latency and the bytes over a rate, a few per cent up or down as a checksum of the names
says: the same numbers on every machine. Each file is marked as a sample, and so is its machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from bench.digits import Trained
from bench.held import Held
from bench.host import Cost
from bench.measure import Timing
from bench.result import Condition, CopyRate, Judged, Result, write
from bench.suite import WAITS, Row

SAMPLES = Path(__file__).parent / "samples"

COPY, CUPY, TRITON, NUMPY = "copy", "gpuact on CuPy", "gpuact on Triton", "gpuact on NumPy"
COMPILED, TUNED, PLAIN = "torch.compile", "torch.compile, tuned", "CuPy ElementwiseKernel"
ITEM = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class Pace(NamedTuple):
    """How quick one is: a start in seconds, a share of the copy's rate, a call's cost."""

    latency: float
    share: float
    call: float
    ulp: float


GPU: Mapping[str, Pace] = {
    COPY: Pace(1.9e-6, 1.0, 4.1e-6, 0.0),
    CUPY: Pace(2.0e-6, 0.985, 8.8e-6, 0.503),
    TRITON: Pace(2.2e-6, 0.968, 6.1e-6, 0.508),
    "torch": Pace(2.3e-6, 0.90, 4.6e-6, 0.51),
    COMPILED: Pace(2.4e-6, 0.93, 17.5e-6, 0.78),
    TUNED: Pace(2.4e-6, 0.955, 17.9e-6, 0.78),
    PLAIN: Pace(2.3e-6, 0.61, 9.2e-6, 0.52),
    "Liger": Pace(3.1e-6, 0.86, 31e-6, 0.95),
    "QuACK": Pace(2.5e-6, 0.97, 22e-6, 0.6),
}
CPU: Mapping[str, Pace] = {
    COPY: Pace(0.3e-6, 1.0, 0.3e-6, 0.0),
    NUMPY: Pace(2.1e-6, 0.62, 2.1e-6, 0.9),
    "NumPy": Pace(0.9e-6, 0.28, 0.9e-6, 1.4),
    "SciPy": Pace(1.1e-6, 0.22, 1.1e-6, 1.1),
    "torch": Pace(3.0e-6, 0.57, 3.0e-6, 0.8),
    "numexpr": Pace(14e-6, 0.49, 14e-6, 1.2),
}
# Of these no kernel gets near the copy, whoever wrote it.
HARD = {"softmax": 0.97, "log_softmax": 0.95, "softmax_backward": 0.96, "cross_entropy": 0.94,
        "cross_entropy_with_grad": 0.95, "tanh": 0.99, "sigmoid": 0.99}  # fmt: skip
ARRAYS = {"relu": 2, "linear": 2, "sigmoid": 2, "tanh": 2, "leaky_relu": 2, "prelu": 2,
          "softmax": 2, "log_softmax": 2, "softmax_backward": 3, "cross_entropy": 1,
          "cross_entropy_with_grad": 2}  # fmt: skip
ROW_WISE = ("softmax", "log_softmax", "softmax_backward")
EXACT = ("relu", "relu_backward", "leaky_relu_backward")


@dataclass(frozen=True)
class Case:
    function: str
    dtype: str
    shape: tuple[int, ...]
    more: str = ""  # the name's end
    headline: bool = False

    @property
    def name(self) -> str:
        power = math.prod(self.shape).bit_length() - 1
        shape = f"2^{power}" if self.shape == (1 << power,) else "×".join(map(str, self.shape))
        return f"{self.function} {self.dtype} {shape} {self.more}".strip()

    @property
    def loss(self) -> bool:
        return self.function.startswith("cross_entropy")

    @property
    def per_element(self) -> int:
        return ARRAYS.get(self.function, 3) * ITEM[self.dtype]

    @property
    def bytes(self) -> int:
        return self.per_element * math.prod(self.shape) + (12 * self.shape[0] if self.loss else 0)

    @property
    def formula(self) -> str:
        return f"{self.per_element}N" + (" + 12M" if self.loss else "")

    @property
    def suite(self) -> str:
        return "loss" if self.loss else "rows" if self.function in ROW_WISE else "elementwise"


# -- the cases ------------------------------------------------------------------------------------

BF16, FP16, FP32 = "bfloat16", "float16", "float32"


def _short(*cases: Case) -> tuple[Case, ...]:
    return tuple(replace(case, headline=True) for case in cases)


HEADLINE = _short(
    Case("relu", BF16, (1 << 28,)),
    Case("linear", BF16, (1 << 28,)),
    Case("sigmoid", FP32, (1 << 27,)),
    Case("tanh", FP32, (1 << 27,)),
    Case("sigmoid_backward", BF16, (1 << 27,)),
    Case("tanh_backward", BF16, (1 << 27,)),
    Case("prelu_backward", BF16, (64, 256, 56, 56)),
    *(Case("softmax", BF16, (32768, n)) for n in (256, 1024, 4096)),
    Case("softmax", BF16, (8192, 4096)),
    Case("softmax", BF16, (32768, 65536)),
    Case("softmax", BF16, (8192, 262144)),
    Case("softmax", FP32, (16384, 131072)),
    Case("softmax_backward", BF16, (32768, 8192)),
    Case("log_softmax", BF16, (32768, 50257)),
    Case("cross_entropy", BF16, (8192, 128256)),
    Case("cross_entropy_with_grad", BF16, (8192, 128256)),
    Case("softmax", FP32, (8192, 8192), "axis 0"),
    Case("softmax", BF16, (4, 131072)),
    Case("relu", BF16, (128, 1024)),
)
ELEMENTWISE = tuple(
    name + end
    for name in ("relu", "sigmoid", "tanh", "linear", "leaky_relu", "prelu")
    for end in ("", "_backward")
)
SWEEPS = (
    *(Case(name, BF16, (1 << k,)) for name in ELEMENTWISE for k in (11, 17, 21, 25, 28)),
    *(
        Case(name, BF16, (max(8, (1 << 26) // n), n))
        for name in (*ROW_WISE, "cross_entropy_with_grad")
        for n in (256, 1024, 4096, 16384, 65536, 262144)
    ),
)
DTYPES = tuple(
    Case(name, dtype, (1 << 26,) if name in ELEMENTWISE else (8192, 8192))
    for name in (*ELEMENTWISE, *ROW_WISE)
    for dtype in (FP16, FP32)
)
ON_CPU = (
    *_short(
        *(Case(name, FP32, (1 << 24,)) for name in ("relu", "linear", "sigmoid", "tanh")),
        Case("softmax", FP32, (4096, 4096)),
        Case("log_softmax", FP32, (128, 50257)),
        Case("cross_entropy", FP32, (128, 32000)),
        Case("relu", FP16, (1 << 22,)),
    ),
    *(Case(name, FP32, (1 << k,)) for name in ("relu", "sigmoid") for k in (10, 14, 18, 20)),
    *(Case("softmax", FP32, ((1 << 22) // n, n)) for n in (256, 1024, 4096)),
)


# -- what became of them --------------------------------------------------------------------------


def _wave(*names: str) -> float:
    """From −1 to 1, by the names."""
    return crc32(" ".join(names).encode()) / 2**31 - 1


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _timing(seconds: float, *names: str, samples: int = 50) -> Timing:
    half = 0.004 + 0.008 * abs(_wave("spread", *names))
    low, high = seconds * (1 - half), seconds * (1 + 1.3 * half)
    return Timing(_rounded(seconds), _rounded(low), _rounded(high), samples)


def _share(case: Case, who: str, pace: Pace) -> float:
    if who == COPY:
        return pace.share
    share = pace.share * HARD.get(case.function, 1)
    if case.suite == "elementwise":
        return share
    n = case.shape[-1]
    if who in ("torch", COMPILED, TUNED):  # reads a row twice where it exceeds a block
        share *= 0.93 if n <= 4096 else 0.64
    if who == "Liger" and n > 16384:
        share *= 0.75
    if case.more:
        share *= 0.9 if who in (CUPY, TRITON) else 0.45
    return share * (1 - 14 / n)


def _ulp(case: Case, who: str, pace: Pace) -> float | None:
    if case.function in EXACT:
        return 0.0
    if who == COPY:
        return None
    wide = 1 if case.dtype in (BF16, FP16) else 4.2
    return _rounded(pace.ulp * wide * (1 + 0.2 * abs(_wave("ulp", case.function, who))))


def _rows(
    case: Case, paces: Mapping[str, Pace], rate: float, noise: str, faster: Mapping[str, float]
) -> Iterator[Row]:
    """A row a provider; faster: by a case's name, by how much gpuact is."""
    copy = 0.0
    on_gpu = rate > 1e12
    for who, pace in paces.items():
        wobble = 1 + 0.008 * _wave(noise, case.name, who)
        seconds = pace.latency + case.bytes / (rate * _share(case, who, pace)) * wobble
        seconds /= faster.get(case.name, 1.0) if who.startswith("gpuact") else 1.0
        copy = copy or seconds
        small = case.bytes <= 1 << 20
        host = max(pace.call, 0.0 if on_gpu else seconds) * (1 + 0.02 * _wave(noise, who))
        out = case.per_element // ARRAYS.get(case.function, 3) * math.prod(case.shape)
        waits = who == "Liger" and case.suite == "loss"
        more = {"torch": 2.0, "Liger": 1.5}.get(who, 1.0) if case.suite == "loss" else 1.0
        yield Row(
            case=case.name,
            bytes=case.bytes,
            bytes_formula=case.formula,
            provider=who,
            status="timed",
            timing=_timing(seconds, case.name, who),
            bytes_per_second=_rounded(case.bytes / seconds),
            share_of_copy=_rounded(copy / seconds),
            suite=case.suite,
            function=case.function,
            dtype=case.dtype,
            shape=case.shape,
            backend={CUPY: "cupy", TRITON: "triton", NUMPY: "numpy"}.get(who, ""),
            headline=case.headline,
            method="clock" if not on_gpu else "events" if waits else "graph",
            note=WAITS if waits else "",
            call=_timing(host, case.name, who) if small or case.headline else None,
            peak_bytes=None if who == COPY else int(out * more),
            error_ulp=None if who == COPY else _ulp(case, who, pace),
        )


def _untimed(row: Row, status: Any, reason: str) -> Row:
    about = (row.case, row.bytes, row.bytes_formula, row.provider, status, reason)
    return Row(*about, suite=row.suite, function=row.function, dtype=row.dtype, shape=row.shape,
               backend=row.backend, headline=row.headline, method=row.method)  # fmt: skip


# By case and provider: what ended there, and the words.
ENDED: Mapping[tuple[str, str], tuple[str, str]] = {
    ("tanh_backward bfloat16 2^27", PLAIN): (
        "wrong",
        "1843 of 4194301 values differ: 0.00390625 came, 0.0117188 is expected",
    ),
    ("softmax bfloat16 8192×262144", "Liger"): (
        "failed",
        "RuntimeError: Cannot launch Triton kernel since n = 262144 exceeds the maximum "
        "blocksize = 65536",
    ),
    ("log_softmax bfloat16 32768×50257", TUNED): (
        "lost",
        "its process died of signal 11 (SIGSEGV) while it compiled",
    ),
    ("softmax bfloat16 4×131072", "QuACK"): ("not run", "the run ended before its turn"),
}
UNAVAILABLE = (
    ("FlagGems", "flag_gems cannot be imported (No module named 'flag_gems')"),
    ("cupyx", "cupyx.scipy.special cannot be imported (libcufft.so.12: cannot open)"),
)


def _able(case: Case) -> list[str]:
    """Who has the function: of what is no headline only a few are asked."""
    if not case.headline:
        few = [COPY, CUPY, TRITON]
        return few if case in DTYPES else [*few, "torch"]
    able = [COPY, CUPY, TRITON, "torch", COMPILED, TUNED]
    if case.suite == "elementwise":
        able.append(PLAIN)
    elif not case.more:
        able += [] if case.function == "log_softmax" else ["Liger"]
        able += ["QuACK"] if case.shape[-1] % 8 == 0 else []
    return able


def _gpu_rows(noise: str, faster: Mapping[str, float]) -> list[Row]:
    rows: dict[tuple[str, str], Row] = {}
    for case in (*HEADLINE, *SWEEPS, *DTYPES):
        paces = {who: GPU[who] for who in _able(case)}
        for row in _rows(case, paces, 3.2e12, noise, faster):
            key = case.name, row.provider
            rows.setdefault(key, _untimed(row, *ENDED[key]) if key in ENDED else row)
    unavailable = [Row("", 0, "", who, "unavailable", reason) for who, reason in UNAVAILABLE]
    return [*rows.values(), *unavailable]


def _cpu_rows() -> list[Row]:
    rows: dict[tuple[str, str], Row] = {}
    for case in ON_CPU:
        without = {"SciPy"} if case.function in ("relu", "linear", "tanh") else {"numexpr"}
        paces = {who: pace for who, pace in CPU.items() if who not in without}
        for row in _rows(case, paces, 9.1e9, "cpu", {}):
            rows.setdefault((case.name, row.provider), row)
    missing = "numba cannot be imported (No module named 'numba')"
    return [*rows.values(), Row("", 0, "", "numba", "unavailable", missing)]


def _conditions(cases: Iterable[str], throttled: str) -> list[Condition]:
    found = []
    for k, name in enumerate(cases):
        warm = 1 - math.exp(-k / 6)
        for half, when in enumerate(("before", "after")):
            found.append(
                Condition(
                    when=f"{when} {name}",
                    seconds=round(9.5 * (2 * k + half), 3),
                    sm_mhz=1980 - 15 * round(4 * warm),
                    memory_mhz=2619,
                    temperature_c=round(31 + 27 * warm),
                    power_w=round(118 + 470 * warm * half, 1),
                    throttled="SwPowerCap" if name == throttled and half else "",
                )
            )
    return found


def _copies(providers: Sequence[str], rate: float, size: int) -> list[CopyRate]:
    drift = {"start": 1.0, "end": 1.006}
    return [
        CopyRate(when, who, size, _timing(size / rate * slower, when, who))
        for when, slower in drift.items()
        for who in providers
    ]


def _costs() -> list[Cost]:
    """What a call of relu costs the host."""
    ways = {"relu(x)": 1.0, "relu(x, out=y)": 0.86, "relu(x) under autograd": 2.3}
    callers = (CUPY, TRITON, "torch", COMPILED, PLAIN, "an empty autograd function")
    found = []
    for way, factor in ways.items():
        name = f"{way} bfloat16 4 KiB, cost to the host"
        for who in callers:
            learns = "autograd" in way
            if who in (CUPY, PLAIN) if learns else who.startswith("an empty"):
                continue
            seconds = GPU[who].call * factor if who in GPU else 9.8e-6
            if who == COMPILED and "out=" in way:
                reason = "TypeError: relu() got an unexpected keyword argument 'out'"
                found.append(Cost(name, who, "failed", reason))
            else:
                found.append(Cost(name, who, "timed", timing=_timing(seconds, name, who)))
    return found


def _held() -> list[Held]:
    n = 1 << 16
    found = []
    for name in ("relu", "sigmoid", "tanh", "prelu"):
        case, array = f"{name} bfloat16 2^16", "x" if name == "prelu" else "y"
        found += [Held(case, who, n, 2 * n, {array: 2 * n}) for who in (TRITON, "torch")]
    case = "fused sigmoid(x)·gate + residual bfloat16 64×1024"
    refused = "Unsupported: torch.compile with fullgraph=True found a graph break"
    return [
        *found,
        Held(case, TRITON, n, 4 * n, {"x": 2 * n, "gate": 2 * n}),
        Held(case, "torch", n, 6 * n, {"gate": 2 * n, "the rest": 4 * n}),
        Held(case, COMPILED, n, reason=refused),
    ]


def _goals(rows: Sequence[Row]) -> list[Judged]:
    """Each backend beside the copy where elements are all that is moved, and some of each kind."""
    shares = {(r.case, r.provider): r.share_of_copy for r in rows if r.headline}
    found = [
        Judged(case.name, who, COPY, "times as fast", 0.96, value, value >= 0.96)
        for case in HEADLINE[:7]
        for who in (CUPY, TRITON)
        for value in [shares[case.name, who]]
    ]
    call = "relu(x) bfloat16 4 KiB, cost to the host"
    rival = "torch.compile or torch.compile, tuned"
    return [
        *found,
        Judged(HEADLINE[7].name, CUPY, "", "GB/s", 1900.0, 2712.0, True),
        Judged(HEADLINE[13].name, TRITON, rival, "not behind", 1.0, 1.31, True),
        Judged(
            HEADLINE[17].name, f"{CUPY} or {TRITON}", "Liger", "times as fast", 1.0, None, False
        ),
        Judged(call, CUPY, PLAIN, "of its time", 1.0, 0.957, True),
        Judged(call, TRITON, "torch", "µs more", 3.0, 1.5, True),
    ]


def _digits() -> list[Trained]:
    table = (
        ("linear", 0.917, 0.0231),
        ("sigmoid", 0.931, 0.0286),
        ("tanh", 0.972, 0.0288),
        ("relu", 0.975, 0.0264),
        ("leaky_relu", 0.969, 0.0271),
        ("prelu", 0.944, 0.0313),
    )
    return [
        Trained(
            activation=name,
            accuracy=accuracy,
            seconds=seconds,
            loss=round(1.2 - accuracy, 4),
            epochs=15,
            enough=accuracy >= 0.95 or name in ("linear", "sigmoid"),
            difference=6e-8,
        )
        for name, accuracy, seconds in table
    ]


# -- the results ----------------------------------------------------------------------------------

FAMILIES = [f"{who} {what}" for who in ("cupy", "triton")
            for what in ("elementwise", "fused", "rows", "loss")]  # fmt: skip
VERSIONS = {
    "python": "3.11.0",
    "gpuact": "0.0.0",
    "numpy": "2.0.0",
    "cupy-cuda13x": "14.0.0",
    "torch": "2.0.0",
    "triton": "3.0.0",
    "liger-kernel": "0.0.0",
    "quack-kernels": "0.0.0",
}
PROCESSOR = "sample processor (made up)"


def _hash(*words: str) -> str:
    return f"{crc32(' '.join(words).encode()):08x}" * 8


def gpu() -> Result:
    rows = _gpu_rows("first", {})
    cases = [case.name for case in HEADLINE]
    return Result(
        time="2000-01-01T12:00:00+00:00",
        commit="0123456789abcdef0123456789abcdef01234567",
        changed_since_commit=False,
        kernels={family: _hash(family) for family in FAMILIES},
        machine={
            "system": "sample system (made up)",
            "processor": PROCESSOR,
            "cores": 16,
            "gpus": [{"name": "sample GPU (made up)", "memory": 80 << 30, "driver": "000.00"}],
        },
        versions=VERSIONS,
        settings={"suite": "gpu", "seconds_per_case": 0.6, "only": None, "epochs": 15},
        sample=True,
        seconds=412.5,
        finished=True,
        conditions=_conditions(cases, throttled=cases[12]),
        copies=_copies((CUPY, TRITON), 3.2e12, 1 << 31),
        rows=rows,
        host_costs=_costs(),
        held_for_backward=_held(),
        goals=_goals(rows),
        digits=_digits(),
    )


# Of the later commit: who is faster, by how much. The rest is noise.
LATER = {
    "softmax bfloat16 32768×256": 1.12,
    "softmax bfloat16 32768×65536": 1.06,
    "log_softmax bfloat16 32768×50257": 1.09,
    "softmax float32 8192×8192 axis 0": 0.86,
}


def gpu_later() -> Result:
    first = gpu()
    rows = _gpu_rows("later", LATER)
    return replace(
        first,
        time="2000-01-02T12:00:00+00:00",
        commit="89abcdef0123456789abcdef0123456789abcdef",
        changed_since_commit=True,
        kernels={**first.kernels, "cupy rows": _hash("cupy rows", "later")},
        seconds=418.0,
        rows=rows,
        goals=_goals(rows),
    )


def cpu() -> Result:
    goals = (("sigmoid float32 2^24", "NumPy", 1.3), ("softmax float32 4096×4096", "SciPy", 1.4))
    return Result(
        time="2000-01-01T09:30:00+00:00",
        commit="0123456789abcdef0123456789abcdef01234567",
        changed_since_commit=False,
        kernels={family: _hash(family) for family in FAMILIES},
        machine={
            "system": "sample system (made up)",
            "processor": PROCESSOR,
            "cores": 2,
            "gpus": [],
        },
        versions={name: VERSIONS[name] for name in ("python", "gpuact", "numpy", "torch")},
        settings={"suite": "cpu", "seconds_per_case": 0.6, "only": None, "epochs": 15},
        sample=True,
        seconds=38.2,
        stopped="KeyboardInterrupt: stopped by hand after 19 of 24 cases",
        conditions=[],
        copies=_copies(("NumPy",), 9.1e9, 1 << 27)[:1],
        rows=_cpu_rows(),
        host_costs=[],
        held_for_backward=[],
        goals=[Judged(case, NUMPY, who, "times as fast", limit, 1.8, True)
               for case, who, limit in goals],
        digits=_digits()[:3],
    )  # fmt: skip


def built() -> dict[str, Result]:
    """By the names of their files."""
    return {"gpu": gpu(), "gpu-later": gpu_later(), "cpu": cpu()}


def main(folder: Path = SAMPLES) -> None:
    for name, result in built().items():
        write(result, folder / f"{name}.json")


if __name__ == "__main__":
    main()
