"""A run as it is kept: one JSON file with machine, versions, every figure of every seed, findings.

It lies among the benchmark's results under a name of its own (result.CLAIMS), by which those who
read results pass it over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bench import result
from bench.result import CLAIMS, RESULTS, Unreadable

from .course import chosen
from .table import SEEDS, Check, Effort, Fact, Finding

SCHEMA = "claims 1"
SUITE = CLAIMS.strip("-").removesuffix(".json")


@dataclass(frozen=True)
class Record:
    time: str  # when it began, UTC, ISO 8601
    commit: str | None = None
    changed_since_commit: bool | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    schema: str = SCHEMA
    seconds: float = 0.0
    finished: bool = False
    stopped: str = ""  # what ended it early
    findings: Sequence[Finding] = ()
    figures: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)  # by claim

    @property
    def device(self) -> str:
        """Of the networks, which run on NumPy: a GPU is named where it is measured."""
        return str(self.machine.get("processor", "unknown"))

    @property
    def title(self) -> str:
        return f"{self.device}, {self.settings['seeds']} seeds, {self.time[:10]}"

    @property
    def whole(self) -> bool:
        """Whether README may tell it: every claim, and enough seeds for a spread."""
        every = {claim.number for claim in chosen("")} == set(self.figures)
        return self.finished and every and self.settings["seeds"] >= SEEDS


def begun(seeds: int, only: str, on_gpu: bool, effort: Effort) -> Record:
    settings = {"suite": SUITE, "seeds": seeds, "only": only, "on_gpu": on_gpu}
    found = result.begun({**settings, "effort": asdict(effort)})
    about = ("time", "commit", "changed_since_commit", "machine", "versions", "settings")
    return Record(**{name: getattr(found, name) for name in about})


def rounded(value: Any) -> Any:
    """Eight digits, in types that JSON has; what is no number is null."""
    if isinstance(value, Mapping):
        return {str(name): rounded(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    return float(f"{value:.8g}") if math.isfinite(value) else None


def _plain(value: Any) -> str:
    return json.dumps(rounded(value), ensure_ascii=False)


def text(record: Record) -> str:
    """A finding a line, and a figure a line."""
    parts = []
    for each in fields(record):
        value = getattr(record, each.name)
        if each.name == "findings":
            told = ({**asdict(one), "verdict": one.verdict} for one in value)
            plain = "[\n" + ",\n".join(f"  {_plain(one)}" for one in told) + "\n ]"
        elif each.name == "figures":
            claims = (
                f'  "{number}": {{\n'
                + ",\n".join(
                    f"   {json.dumps(n, ensure_ascii=False)}: {_plain(v)}" for n, v in of.items()
                )
                + "\n  }"
                for number, of in value.items()
            )
            plain = "{\n" + ",\n".join(claims) + "\n }"
        else:
            plain = _plain(value)
        parts.append(f" {json.dumps(each.name)}: {plain}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def path_of(record: Record, folder: Path) -> Path:
    return result.path_of(record, folder)


def _values(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _finding(told: dict[str, Any]) -> Finding:
    verdict = told.pop("verdict")
    checks = [Check(**{**one, "values": _values(one["values"])}) for one in told.pop("checks")]
    facts = [Fact(**{**one, "values": _values(one["values"])}) for one in told.pop("facts")]
    found = Finding(**told, checks=checks, facts=facts)
    if found.verdict != verdict:
        raise ValueError(f"{found.number}: the figures say {found.verdict!r}, not {verdict!r}")
    return found


def read(path: Path) -> Record:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise Unreadable(f"{path}: not JSON ({error})") from None
    schema = told.get("schema") if isinstance(told, dict) else None
    if schema != SCHEMA:
        raise Unreadable(f"{path}: schema {schema} came, {SCHEMA!r} is read")
    try:
        return Record(**{**told, "findings": [_finding(one) for one in told["findings"]]})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"{path}: not a result of schema {SCHEMA!r} ({error})") from None


def committed(folder: Path = RESULTS) -> list[Record]:
    """Those that git knows there, the oldest first; without git, all."""
    found = (read(path) for path in result.committed_paths(folder) if path.name.endswith(CLAIMS))
    return sorted(found, key=lambda record: record.time)
