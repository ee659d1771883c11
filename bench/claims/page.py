"""The page of a run, in the clothes of the benchmark's (bench/page.py), and its pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench import figures, page, result
from bench.page import Drawn

from .course import CLAIMS
from .drawings import drawn
from .record import Record
from .table import VERDICTS, number, spread

TEMPLATE = "claims.html.jinja"
Drawings = Mapping[str, Sequence[tuple[str, str, Figure]]]


def _facts(record: Record) -> dict[str, str]:
    here = record.machine
    changes = " with changes" if record.changed_since_commit else ""
    found = {
        "GPU": "; ".join(gpu["name"] for gpu in here.get("gpus", ())),
        "processor": f"{here.get('processor')}, {here.get('cores')} cores",
        "system": str(here.get("system", "")),
        "versions": ", ".join(f"{name} {number}" for name, number in record.versions.items()),
        "commit": f"{record.commit[:12]}{changes}" if record.commit else "",
        "seeds": str(record.settings["seeds"]),
        "begun": f"{record.time[:16].replace('T', ' ')} UTC",
        "took": f"{record.seconds:.0f} seconds",
    }
    return {name: text for name, text in found.items() if text}


def _counts(record: Record) -> dict[str, int]:
    words = [finding.verdict for finding in record.findings]
    return {verdict: words.count(verdict) for verdict in VERDICTS if verdict in words}


def html(record: Record, drawings: Drawings) -> str:
    claims: list[dict[str, Any]] = []
    for claim in CLAIMS:
        mine = [one for one in record.findings if one.number.startswith(claim.number)]
        shown: list[Drawn] = [
            page.drawing(figure, words, "", words)
            for _, words, figure in drawings.get(claim.number, ())
        ]
        if mine:
            claims.append({"claim": claim, "findings": mine, "drawn": shown})
    environment = page.environment()
    environment.filters |= {"number": number, "spread": spread}
    text = environment.get_template(TEMPLATE).render(
        sections=[], record=record, claims=claims, facts=_facts(record), counts=_counts(record)
    )
    return re.sub(r"\n\s*\n", "\n", text)


def write(record: Record, folder: Path, stem: str) -> list[Path]:
    """The page and the pictures: their paths."""
    drawings = drawn(record.figures)
    written = [folder / f"{stem}.html"]
    result.put(html(record, drawings), written[0])
    for name, _, figure in (one for some in drawings.values() for one in some):
        written.append(folder / f"{stem}-{name}.png")
        figures.png(figure, written[-1])
    return written
