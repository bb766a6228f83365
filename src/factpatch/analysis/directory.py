"""The directory of an analysis: what is in it, and that it is about the same model, facts and settings.

analysis.json        what is analyzed, and with which versions
targets/             value targets, for as long as the weights they belong to are the same
parts/               what single edits gave, of an analysis that consists of many
NAME.json, NAME.csv  the numbers of one analysis: means, and in JSON the value of every fact
NAME.png, NAME.svg   its figure
report.html          all that is there, on one page
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from factpatch.analysis.rows import Findings
from factpatch.editor import library_versions
from factpatch.files import atomic_write, is_draft, plain, remove_drafts, write_json
from factpatch.settings import difference

FORMAT = 1
_ABOUT = "analysis.json"


class AnalysisError(ValueError):
    """The directory of an analysis cannot be used as asked; the message says why and what to do."""


class AnalysisDirectory:
    """A directory that findings are written to, and found again in.

    Args:
        path: a new or empty directory, or one that was begun with the same `about`.
        about: all that the findings depend on, JSON-able.

    Raises:
        AnalysisError: the directory holds something else, or analyses of something else.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.about: dict[str, Any] = plain(about)
        file = self.path / _ABOUT
        if file.is_file():
            self._check(file)
        elif self.path.exists() and (not self.path.is_dir() or not all(map(is_draft, self.path.iterdir()))):
            raise AnalysisError(f"{self.path}: is not empty and holds no analysis; choose another directory.")
        self.path.mkdir(parents=True, exist_ok=True)
        if not file.is_file():
            write_json(file, {"format": FORMAT, "about": self.about, "versions": library_versions()})
        for folder in (self.parts, self.targets):
            folder.mkdir(exist_ok=True)

    @property
    def targets(self) -> Path:
        """Where value targets are kept."""
        return self.path / "targets"

    @property
    def parts(self) -> Path:
        """Where parts of an analysis are kept."""
        return self.path / "parts"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out, and remove what one that was killed had begun to write.

        Raises:
            AnalysisError: another process is at work there.
        """
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise AnalysisError(f"{self.path}: another process is at work there; wait for it.") from None
        try:
            for folder in (self.path, self.parts, self.targets):
                remove_drafts(folder)
            yield
        finally:
            lock.release()

    def part(self, name: str, find: Callable[[], Findings]) -> Findings:
        """A part of an analysis: read if it is there, else found and kept."""
        file = self.parts / f"{name}.json"
        if not file.is_file():
            write_json(file, find().to_dict())
        return self._read(file)

    def found(self, name: str) -> Findings | None:
        """What an analysis found; None if it is not done."""
        file = self.path / f"{name}.json"
        return self._read(file) if file.is_file() else None

    def write(self, name: str, findings: Findings) -> list[Path]:
        """Write what an analysis found as CSV and JSON; the latter comes last and says that it is done."""
        table, record = (self.path / f"{name}.{suffix}" for suffix in ("csv", "json"))
        atomic_write(table, lambda draft: draft.write_text(findings.csv(), "utf-8"))
        write_json(record, {"analysis": name, "about": self.about, **findings.to_dict()})
        return [table, record]

    def _check(self, file: Path) -> None:
        try:
            held = json.loads(file.read_text("utf-8"))
            newer, about = held["format"] > FORMAT, held["about"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AnalysisError(
                f"{file}: cannot be read ({error}). Restore it, or choose another directory."
            ) from error
        if newer:
            raise AnalysisError(f"{file}: is of format {held['format']}, which a newer factpatch wrote; upgrade it.")
        differing = difference(about, self.about)
        if differing is not None:
            raise AnalysisError(
                f"{self.path}: holds analyses of something else: {differing}. Choose another directory, or give what "
                "was given for this one."
            )

    def _read(self, file: Path) -> Findings:
        try:
            return Findings.from_dict(json.loads(file.read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AnalysisError(f"{file}: cannot be read ({error}). Remove it, to have it found anew.") from error
