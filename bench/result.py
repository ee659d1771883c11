"""A run as it is kept: one JSON file, whose schema is the dataclasses below and those of its rows.

`rows` are suite.Row, `host_costs` host.Cost, `held_for_backward` held.Held, `digits`
digits.Trained. Times are in seconds, sizes in bytes, rates in bytes per second. A file is written
anew after every case, so that whatever ends a run leaves a whole file of what was measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import gpuact

from .digits import Trained
from .held import Held
from .host import Cost
from .measure import Timing
from .suite import Row

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
SCHEMA = 2
CLAIMS = "-claims.json"  # how other names end there: claims/record.py reads these

R = TypeVar("R")


@dataclass(frozen=True)
class Condition:
    """What nvidia-ml-py tells of the GPU at one moment; None where it cannot tell."""

    when: str  # "start", "end", or during which case
    seconds: float  # since the run began
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    throttled: str | None = None  # by what, in NVML's words; "" for nothing


@dataclass(frozen=True)
class CopyRate:
    """The plain copy by itself, at the run's two ends."""

    when: str  # "start" or "end"
    provider: str  # whose arrays were copied
    bytes: int  # read and written
    timing: Timing

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.timing.median


@dataclass(frozen=True)
class Judged:
    """A goal and what became of it."""

    case: str
    ours: str
    rival: str
    figure: str
    limit: float
    value: float | None  # None where it was not measured
    held: bool


@dataclass(frozen=True)
class Result:
    """One run. Of a sample nothing was measured: it is there to show and to test the report."""

    time: str  # when it began, UTC, ISO 8601
    commit: str | None = None
    changed_since_commit: bool | None = None  # sources only, results may lie about
    kernels: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of each family's sources
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    sample: bool = False
    seconds: float = 0.0  # that the run took
    finished: bool = False
    stopped: str = ""  # what ended it early
    restarts: int = 0  # of the process that measures
    conditions: Sequence[Condition] = ()
    copies: Sequence[CopyRate] = ()
    rows: Sequence[Row] = ()
    host_costs: Sequence[Cost] = ()
    held_for_backward: Sequence[Held] = ()
    goals: Sequence[Judged] = ()
    digits: Sequence[Trained] = ()

    @property
    def device(self) -> str:
        """What was measured: the GPU, or the processor where there is none."""
        names = [gpu["name"] for gpu in self.machine.get("gpus", ())]
        return names[0] if names else str(self.machine.get("processor", "unknown"))

    @property
    def on_gpu(self) -> bool:
        return bool(self.machine.get("gpus"))

    @property
    def title(self) -> str:
        words = [self.device, str(self.settings.get("suite", "")), self.time[:10]]
        return ", ".join(word for word in words if word)


class Unreadable(ValueError):
    """A file that holds no result, in one sentence."""


# -- reading and writing --------------------------------------------------------------------------

TABLES: Mapping[str, type] = {
    "conditions": Condition,
    "copies": CopyRate,
    "rows": Row,
    "host_costs": Cost,
    "held_for_backward": Held,
    "goals": Judged,
    "digits": Trained,
}


def _built(kind: type[R], values: Mapping[str, Any]) -> R:
    given = {
        name: Timing(**value) if name in ("timing", "call") and value else value
        for name, value in values.items()
    }
    if "shape" in given:
        given["shape"] = tuple(given["shape"])
    return kind(**given)


def read(path: Path) -> Result:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise Unreadable(f"{path}: not JSON ({error})") from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise Unreadable(f"{path}: schema {schema} came, {SCHEMA} is read")
    try:
        tables = {name: [_built(kind, v) for v in found[name]] for name, kind in TABLES.items()}
        return Result(**{**found, **tables})
    except (AttributeError, KeyError, TypeError) as error:
        raise Unreadable(f"{path}: not a result of schema {SCHEMA} ({error})") from None


def _lines(rows: Iterable[Any]) -> str:
    """A row a line: what changed between two files is then seen by any diff."""
    lines = (f"  {json.dumps(asdict(row), ensure_ascii=False)}" for row in rows)
    text = ",\n".join(lines)
    return f"[\n{text}\n ]" if text else "[]"


def text(result: Result) -> str:
    parts = []
    for each in fields(result):
        value = getattr(result, each.name)
        plain = json.dumps(value, ensure_ascii=False) if each.name not in TABLES else _lines(value)
        parts.append(f" {json.dumps(each.name)}: {plain}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


class Dated(Protocol):
    """What a file is named for."""

    @property
    def time(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...


def path_of(result: Dated, folder: Path) -> Path:
    stamp = result.time.replace(":", "").replace("-", "").partition("+")[0]
    device = re.sub("[^a-z0-9]+", "-", result.device.lower()).strip("-")
    return folder / f"{stamp}-{device}-{result.settings['suite']}.json"


def put(text: str, path: Path) -> None:
    """Whole or not at all: who is killed while writing leaves the file that was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def write(result: Result, path: Path) -> None:
    put(text(result), path)


def files(folder: Path) -> list[Path]:
    """Where results may lie; claims are not among them."""
    return [path for path in sorted(folder.glob("*.json")) if not path.name.endswith(CLAIMS)]


def committed_paths(folder: Path) -> list[Path]:
    """All that git knows there, results and claims; without git, whatever lies there."""
    known = _git("ls-files", "--", str(folder))
    names = None if known is None else {Path(line).name for line in known.splitlines()}
    return [path for path in sorted(folder.glob("*.json")) if names is None or path.name in names]


def committed(folder: Path = RESULTS) -> list[Result]:
    """The results that git knows there, the oldest first, without samples; without git, all."""
    known = committed_paths(folder)
    found = [read(path) for path in files(folder) if path in known]
    return sorted((r for r in found if not r.sample), key=lambda result: result.time)


# -- what is measured, and where ------------------------------------------------------------------

# The sources behind each kernel: a GPU result speaks for these and no others. `rows` is softmax and
# log_softmax, `fused` the chains and every backward that sums for a parameter, `stats` what outputs
# are like.
_SHARED_CUPY = ("cupy/__init__.py", "cupy/compute.cuh", "cupy/formulas.cuh")
_ROWS_CUPY = (
    *_SHARED_CUPY,
    *(f"cupy/{name}" for name in ("rows.py", "rows.cuh", "regimes.cuh", "beside.cuh")),
    "cupy/entry.cuh",
)
_SUMS_CUPY = ("cupy/reduce.py", "cupy/reduce.cuh")
_ELEMENTWISE_CUPY = (*_SHARED_CUPY, "cupy/elementwise.py", "cupy/packs.cuh")
_FUSED_CUPY = ("cupy/fused.cuh", "cupy/philox.cuh")
_ELEMENTWISE_TRITON = ("triton/formulas.py", "triton/elementwise.py")
_ROWS_TRITON = (*_ELEMENTWISE_TRITON, "triton/rows.py")
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "cupy elementwise": _ELEMENTWISE_CUPY,
    "cupy fused": (
        *_ELEMENTWISE_CUPY,
        *_SUMS_CUPY,
        *_FUSED_CUPY,
        *(f"cupy/{name}" for name in ("fused.py", "fused_backward.cuh", "merge.cuh")),
    ),
    "cupy rows": (*_ROWS_CUPY, "cupy/softmax.py", "cupy/softmax.cuh"),
    "cupy loss": (
        *_ROWS_CUPY,
        *_SUMS_CUPY,
        *(f"cupy/{name}" for name in ("cross_entropy.py", "cross_entropy.cuh")),
        "cupy/target_weight.cuh",
    ),
    "cupy stats": (
        *_ELEMENTWISE_CUPY,
        *_FUSED_CUPY,  # a parameter is spelled there
        *("tiles.py", *(f"cupy/{name}" for name in ("stats.py", "stats.cuh", "fold.cuh"))),
    ),
    "triton elementwise": _ELEMENTWISE_TRITON,
    "triton fused": (*_ROWS_TRITON, "triton/fused.py"),  # sums into one number run in rows.py
    "triton rows": (*_ROWS_TRITON, "triton/softmax.py"),
    "triton loss": (*_ROWS_TRITON, "triton/cross_entropy.py"),
    "triton stats": (*_ELEMENTWISE_TRITON, "tiles.py", "triton/stats.py"),
}


def kernel_hash(names: Iterable[str], folder: Path = ROOT / "kernels") -> str:
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes() + b"\0")
    return digest.hexdigest()


def kernel_hashes() -> dict[str, str]:
    return {family: kernel_hash(names) for family, names in FAMILIES.items()}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except OSError:  # no git here
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


@cache
def _nvml() -> Any:
    """nvidia-ml-py where a driver answers; None where there is nothing to tell."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, or no driver
        return None
    return pynvml


class Gpu(NamedTuple):
    """The one that calls run on, as the library says that makes them."""

    name: str
    known_as: str  # to NVML, which counts in another order and sees those that are hidden here
    memory: int


@cache
def gpu() -> Gpu | None:
    try:
        import cupy

        device = cupy.cuda.Device()
        told = cupy.cuda.runtime.getDeviceProperties(device.id)
        return Gpu(told["name"].decode(), device.pci_bus_id, told["totalGlobalMem"])
    except Exception:  # not installed, or it finds none
        pass
    try:
        import torch

        properties = torch.cuda.get_device_properties()
        return Gpu(properties.name, f"GPU-{properties.uuid}", properties.total_memory)
    except Exception:
        return None


def _handle(nvml: Any) -> Any:
    """NVML's own name for it."""
    here = gpu()
    known_as = here.known_as if here else ""
    if known_as.startswith("GPU-"):
        return nvml.nvmlDeviceGetHandleByUUID(known_as)
    return nvml.nvmlDeviceGetHandleByPciBusId(known_as)


def gpus() -> list[dict[str, Any]]:
    """The GPU that calls run on, its memory and its driver; none where none answers."""
    here, nvml = gpu(), _nvml()
    if here is None:
        return []
    driver = nvml.nvmlSystemGetDriverVersion() if nvml else "unknown"
    return [{"name": here.name, "memory": here.memory, "driver": driver}]


# What is asked of NVML, by the field of Condition; a GPU that hides one of them has None there.
_ASKED: Mapping[str, Any] = {
    "sm_mhz": lambda nvml, h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_SM),
    "memory_mhz": lambda nvml, h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_MEM),
    "temperature_c": lambda nvml, h: nvml.nvmlDeviceGetTemperature(h, nvml.NVML_TEMPERATURE_GPU),
    "power_w": lambda nvml, h: nvml.nvmlDeviceGetPowerUsage(h) / 1e3,
    "throttled": lambda nvml, h: _reasons(nvml, nvml.nvmlDeviceGetCurrentClocksEventReasons(h)),
}


def _reasons(nvml: Any, bits: int) -> str:
    """Of the bit mask, the names that slow a busy GPU down."""
    names = ("SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown")
    set_ = (n for n in names if bits & getattr(nvml, f"nvmlClocksEventReason{n}", 0))
    return ", ".join(set_)


def conditions(when: str, seconds: float) -> list[Condition]:
    """Of the GPU that calls run on, now; nothing where NVML does not find it."""
    nvml = _nvml()
    try:
        handle = _handle(nvml)
    except Exception:  # there is no NVML, or it knows no such GPU
        return []
    told: dict[str, Any] = {}
    for name, ask in _ASKED.items():
        try:
            told[name] = ask(nvml, handle)
        except Exception:  # this driver does not tell, or not to everybody
            told[name] = None
    return [Condition(when, round(seconds, 3), **told)]


def machine(on_gpu: bool) -> dict[str, Any]:
    """What a run is made on: no GPU where it is made on the CPU beside one."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": gpus() if on_gpu else [],
    }


PACKAGES = (
    *("numpy", "ml_dtypes", "scipy", "scikit-learn", "numexpr", "numba"),
    *("cupy-cuda12x", "cupy-cuda13x", "torch", "triton"),
    *("liger-kernel", "quack-kernels", "flag-gems"),
)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "gpuact": gpuact.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def revision() -> tuple[str | None, bool | None]:
    """The commit, and whether sources were changed since: git's word, or the image's without git.

    The image says it by GPUACT_REVISION: a hash, with "-dirty" behind it where there are changes.
    """
    changed = _git("status", "--porcelain", "--", ".", ":!bench/results")
    if changed is not None:
        return _git("rev-parse", "HEAD"), bool(changed)
    commit, dash, changes = os.environ.get("GPUACT_REVISION", "").partition("-")
    if not re.fullmatch("[0-9a-f]{40}", commit):
        return None, None
    return commit, (dash + changes) == "-dirty"


def begun(settings: Mapping[str, Any]) -> Result:
    """A run that starts now, with nothing measured yet."""
    commit, changed = revision()
    return Result(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit,
        changed_since_commit=changed,
        kernels=kernel_hashes(),
        machine=machine(bool(settings.get("on_gpu"))),
        versions=versions(),
        settings=dict(settings),
    )
