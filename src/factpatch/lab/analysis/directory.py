"""The directory of an analysis: what is in it, and that it is about the same model, facts and settings.

analysis.json        what is analyzed, and with which versions
targets/             value targets, for as long as the weights they belong to are the same
parts/               what single edits gave, of an analysis that consists of many
NAME.json, NAME.csv  the numbers of one analysis: means, and in JSON the value of every fact
NAME.png, NAME.svg   its figure
report.html          all that is there, on one page
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from factpatch.lab.analysis.rows import Findings
from factpatch.support.directory import DirectoryError, ResultDirectory
from factpatch.support.files import atomic_write, write_json


class AnalysisError(DirectoryError):
    """The directory of an analysis cannot be used as asked; the message says why and what to do."""


class AnalysisDirectory(ResultDirectory):
    """A directory that findings are written to, and found again in."""

    holds, record, folders = "an analysis", "analysis.json", ("parts", "targets")
    error = AnalysisError

    @property
    def targets(self) -> Path:
        """Where value targets are kept."""
        return self.path / "targets"

    @property
    def parts(self) -> Path:
        """Where parts of an analysis are kept."""
        return self.path / "parts"

    def part(self, name: str, find: Callable[[], Findings]) -> Findings:
        """A part of an analysis: read if it is there, else found and kept."""
        file = self.parts / f"{name}.json"
        if not file.is_file():
            write_json(file, find().to_dict())
        return self.read(file, Findings.from_dict)

    def found(self, name: str) -> Findings | None:
        """What an analysis found; None if it is not done."""
        file = self.path / f"{name}.json"
        return self.read(file, Findings.from_dict) if file.is_file() else None

    def write(self, name: str, findings: Findings) -> list[Path]:
        """Write what an analysis found as CSV and JSON; the latter comes last and says that it is done."""
        table, record = (self.path / f"{name}.{suffix}" for suffix in ("csv", "json"))
        atomic_write(table, lambda draft: draft.write_text(findings.csv(), "utf-8"))
        write_json(record, {"analysis": name, "about": self.about, **findings.to_dict()})
        return [table, record]
