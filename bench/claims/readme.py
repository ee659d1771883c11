"""README.md's section on claims, out of the newest run that is committed and whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.result import RESULTS, ROOT
from bench.words import escaped

from .course import CLAIMS
from .record import Record, path_of
from .table import VERDICTS, Finding

BEGIN = "<!-- claims -->\n"
NONE = "No run has been committed yet that measured every claim with enough seeds."
# The pictures that are shown, and what they show to who cannot see them.
SHOWN = {
    "depth": "Norm of the gradient by layer, for six activations and two initialisations",
    "descent": "Loss against steps of sigmoid, sigmoid − ½ and tanh at three rates",
}


def _titles(findings: Sequence[Finding]) -> list[str]:
    """A line a claim: what became of its sentences."""
    lines = []
    for claim in CLAIMS:
        mine = [finding for finding in findings if finding.number[:-1] == claim.number]
        told = [
            f"{verdict}: {', '.join(each.number for each in mine if each.verdict == verdict)}"
            for verdict in VERDICTS
            if any(each.verdict == verdict for each in mine)
        ]
        lines.append(f"| {claim.number} {escaped(claim.title)} | {'; '.join(told)} |")
    return lines


def _row(finding: Finding) -> str:
    measured = [finding.how + ".", *(check.text for check in finding.checks)]
    cells = (
        escaped(f"{finding.number} {finding.says}"),
        "<br>".join(map(escaped, measured)),
        escaped(f"**{finding.verdict}**{finding.told.removeprefix(finding.verdict)}"),
    )
    return f"| {' | '.join(cells)} |"


def _counts(findings: Sequence[Finding]) -> str:
    words = [finding.verdict for finding in findings]
    return ", ".join(f"{v} {words.count(v)}" for v in VERDICTS if v in words)


def _about(record: Record) -> str:
    commit = f"commit {record.commit[:7]}" if record.commit else "no commit"
    changes = " with changes" if record.changed_since_commit else ""
    packages = ("python", "numpy", "scikit-learn")
    versions = ", ".join(f"{p} {record.versions[p]}" for p in packages if p in record.versions)
    return (
        f"{record.device}, {record.time[:10]}, {commit}{changes}; {versions}; "
        f"{record.settings['seeds']} seeds, {record.seconds:.0f} seconds: "
        f"{_counts(record.findings)}."
    )


def section(records: Sequence[Record], folder: Path = RESULTS) -> str:
    """Markdown: the table, and the pictures that lie there."""
    whole = [record for record in records if record.whole]
    if not whole:
        return f"{NONE}\n"
    newest = max(whole, key=lambda record: record.time)
    lines = [_about(newest), "", "| what is claimed | found |", "| --- | --- |"]
    lines += _titles(newest.findings)
    lines += ["", "<details>", "<summary>Every sentence, its figures and limits</summary>", ""]
    lines += ["| claim | measured | verdict |", "| --- | --- | --- |"]
    lines += [*map(_row, newest.findings), "", "</details>"]
    path = path_of(newest, folder)
    for name, words in SHOWN.items():
        picture = path.with_name(f"{path.stem}-{name}.png")
        if picture.exists():
            where = picture.relative_to(ROOT).as_posix()
            lines += ["", f"![{words}]({where})"]
    return "\n".join(lines) + "\n"
