"""The directory of an analysis.

analysis.json        what is analyzed, and with which versions
targets/             value targets, for as long as the weights they belong to are the same
parts/               what single edits gave, of an analysis that consists of many
NAME.json, NAME.csv  the numbers of one analysis: means, and in JSON the value of every fact
NAME.png, NAME.svg   its figure
report.html          one page about all of them
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from factpatch.lab.analysis.findings import Findings
from factpatch.support.directory import ResultDirectory
from factpatch.support.files import atomic_write, write_json


class AnalysisDirectory(ResultDirectory):
    """A directory that keeps findings."""

    holds, record_name = "an analysis", "analysis.json"

    def part(self, name: str, find: Callable[[], Findings]) -> Findings:
        """Return a part of an analysis: read it if it was kept, else find and keep it."""
        file = self.path / "parts" / f"{name}.json"
        if not file.is_file():
            file.parent.mkdir(exist_ok=True)
            write_json(file, find().to_dict())
        return self.read(file, Findings.from_dict)

    def found(self, name: str) -> Findings | None:
        """What an analysis found; None if it is not done."""
        file = self.path / f"{name}.json"
        return self.read(file, Findings.from_dict) if file.is_file() else None

    def write(self, name: str, findings: Findings) -> list[Path]:
        """Write what an analysis found as CSV and JSON; the latter comes last and marks the analysis as done."""
        table, record = (self.path / f"{name}.{suffix}" for suffix in ("csv", "json"))
        atomic_write(table, lambda draft: draft.write_text(findings.csv(), "utf-8"))
        write_json(record, {"analysis": name, "about": self.about, **findings.to_dict()})
        return [table, record]
