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


def _found(finding: Finding) -> str:
    """A sentence, and what became of it."""
    verdict = f"**{finding.verdict}**{finding.told.removeprefix(finding.verdict)}"
    return f"| {escaped(f'{finding.number} {finding.says}')} | {escaped(verdict)} |"


def _sentences(findings: Sequence[Finding]) -> list[str]:
    """Claim by claim."""
    lines = []
    for claim in CLAIMS:
        lines.append(f"| **{claim.number} {escaped(claim.title)}** | |")
        lines += [_found(each) for each in findings if each.number[:-1] == claim.number]
    return lines


def _figures(finding: Finding) -> str:
    facts = [fact.text for fact in finding.facts if fact.in_readme]
    measured = [finding.how + ".", *(check.text for check in finding.checks), *facts]
    return f"| {finding.number} | {'<br>'.join(map(escaped, measured))} |"


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
    """Markdown: sentences, folded away what they were measured by, the pictures that lie there."""
    whole = [record for record in records if record.whole]
    if not whole:
        return f"{NONE}\n"
    newest = max(whole, key=lambda record: record.time)
    lines = [_about(newest), "", "| what is said | what is found |", "| --- | --- |"]
    lines += _sentences(newest.findings)
    lines += ["", "<details>", "<summary>Figures and limits of every sentence</summary>", ""]
    lines += ["| | measured |", "| --- | --- |"]
    lines += [*map(_figures, newest.findings), "", "</details>"]
    path = path_of(newest, folder)
    for name, words in SHOWN.items():
        picture = path.with_name(f"{path.stem}-{name}.png")
        if picture.exists():
            where = picture.relative_to(ROOT).as_posix()
            lines += ["", f"![{words}]({where})"]
    return "\n".join(lines) + "\n"
