"""Directories that outlive the process that fills them: a record says what is in one, and a lock who may write."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from factpatch.support.files import is_draft, plain, remove_drafts, write_json
from factpatch.support.validation import explained, parsed
from factpatch.support.versions import library_versions
from factpatch.support.words import difference

logger = logging.getLogger(__name__)

LOCK = "lock"
T = TypeVar("T")


class DirectoryError(ValueError):
    """A directory cannot be used as asked; the message says why and what to do."""


class Record(BaseModel):
    """What the fields of a record hold, where they are there; a record may have others."""

    model_config = ConfigDict(strict=True)
    format: int
    about: dict[str, Any] = {}
    versions: dict[str, str | None] = {}
    later_versions: list[dict[str, str | None]] = []


class KeptDirectory:
    """A directory that one process at a time works in, and that a later one continues after a kill.

    A subclass sets the class variables below. It begins a directory in one of two ways:

    - `begin(path, write)`, under the lock: `write` creates whatever belongs next to the record and returns the record's
      fields. The record comes last, so a directory without one was never begun.
    - `atomic_directory`, with `write_json(draft / cls.record_name, {"format": cls.format, ...})` inside.

    Either way the constructor then opens it and reads the record. A subclass that has more to do once the lock is held,
    such as mending a journal, extends `locked`.

    Args:
        path: A directory that was begun.

    Raises:
        DirectoryError: It was not, or its record cannot be used.
    """

    holds: ClassVar[str]
    """What it is the directory of, with the article: "a run"."""
    record_name: ClassVar[str]
    """The name of the record's file."""
    format: ClassVar[int] = 1
    """The newest format of the record, which is the one that is written."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Fields that every record has."""
    fields: ClassVar[type[Record]] = Record
    """What they hold."""
    before_record: ClassVar[tuple[str, ...]] = ()
    """Names that `begin` creates before the record: a process killed in between leaves them."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Further packages that the numbers depend on; see `library_versions`."""
    error: ClassVar[type[DirectoryError]] = DirectoryError

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.record = self._read_record()

    @classmethod
    def is_begun(cls, path: Path) -> bool:
        """Whether the record is there."""
        return (path / cls.record_name).is_file()

    @classmethod
    def check_place(cls, path: str | Path) -> None:
        """Raise DirectoryError unless the directory is new, empty, one of these, or what a killed `begin` left."""
        path = Path(path)
        if not path.exists() or cls.is_begun(path):
            return
        known = {LOCK, *cls.before_record}
        if not path.is_dir() or not all(item.name in known or is_draft(item) for item in path.iterdir()):
            raise cls.error(f"{path}: is not empty and not the directory of {cls.holds}; choose another one.")

    @classmethod
    def begin(cls, path: Path, write: Callable[[], Mapping[str, Any]]) -> None:
        """Begin a new or empty directory; one that was begun, here or by another process, stays as it is.

        Raises:
            DirectoryError: It holds something else, or another process is using it.
            OSError: It cannot be written.
        """
        cls.check_place(path)
        if cls.is_begun(path):
            return
        path.mkdir(parents=True, exist_ok=True)
        with cls._alone(path):
            if not cls.is_begun(path):
                versions = library_versions(*cls.packages)
                write_json(path / cls.record_name, {"format": cls.format, **write(), "versions": versions})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out while the block runs; the lock of a process that dies is released.

        Raises:
            DirectoryError: Another process is using the directory, it is gone, or it holds a symbolic link.
        """
        if not self.is_begun(self.path):  # locking would create the directory again
            raise self.error(f"{self.path}: the {self._noun()} is no longer there.")
        with self._alone(self.path):
            yield

    def update(self, **fields: Any) -> None:
        """Set fields of the record. Call it inside `locked`."""
        self.record.update(fields)
        write_json(self.path / self.record_name, self.record)

    def other_versions(self) -> str | None:
        """How the installed versions differ from the latest known here; None if they are among those known.

        Known are those the directory was begun with, and those that `add_versions` has added since.
        """
        now = library_versions(*self.packages)
        known = [self.record["versions"], *self.record.get("later_versions", [])]
        # Older versions of factpatch recorded fewer packages.
        if any(all(now.get(name) == then[name] for name in then) for then in known):
            return None
        return difference(known[-1], {name: now.get(name) for name in known[-1]})

    def add_versions(self) -> None:
        """Record that the installed versions were used here too. Call it inside `locked`."""
        self.update(later_versions=[*self.record.get("later_versions", []), library_versions(*self.packages)])

    def check_same(self, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Raise DirectoryError unless what the directory is about agrees with what was asked for."""
        differing = difference(then, now)
        if differing is not None:
            raise self.error(
                f"{self.path}: holds {self.holds} with other settings: {differing}. Choose another directory, or "
                "repeat the settings of this one."
            )

    def read(self, file: Path, make: Callable[[dict[str, Any]], T]) -> T:
        """Read one of the directory's JSON files.

        Args:
            make: Makes a result of the file's content.

        Raises:
            DirectoryError: The file cannot be read.
        """
        try:
            return make(parsed(file.read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.error(f"{file}: cannot be read ({error}). Remove it; it will be computed again.") from error

    @classmethod
    def _noun(cls) -> str:
        return cls.holds.partition(" ")[2]

    @classmethod
    @contextmanager
    def _alone(cls, path: Path) -> Iterator[None]:
        lock = FileLock(path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise cls.error(f"{path}: another process is using this {cls._noun()}; wait for it.") from None
        try:
            for folder, folders, files in os.walk(path):
                remove_drafts(Path(folder))
                cls._check_links(Path(folder), [*folders, *files])
            yield
        finally:
            lock.release()

    @classmethod
    def _check_links(cls, folder: Path, names: Iterable[str]) -> None:
        """Raise DirectoryError if a name is a symbolic link: what is written there would replace what it points to."""
        for link in (folder / name for name in names if (folder / name).is_symlink()):
            raise cls.error(
                f"{link}: is a symbolic link, to {os.readlink(link)}. The directory of {cls.holds} keeps its own "
                "files; replace it by a copy of what it points to, or remove it."
            )

    def _read_record(self) -> dict[str, Any]:
        file = self.path / self.record_name
        try:
            record = dict(parsed(file.read_text("utf-8")))
            newer = record["format"] > self.format
        except (FileNotFoundError, NotADirectoryError):
            # It appears complete or not at all.
            never = " It does not exist: if its command was stopped early, nothing was recorded; repeat that command."
            raise self.error(
                f"{self.path}: is not the directory of {self.holds}: it has no {self.record_name}."
                f"{'' if self.path.exists() else never}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.error(
                f"{file}: cannot be read ({error}). Restore it from a copy, or choose another directory."
            ) from error
        if newer:
            raise self.error(
                f"{file}: is of format {record['format']}, which a newer factpatch wrote; upgrade factpatch."
            )
        if missing := sorted(set(self.needs) - record.keys()):
            raise self.error(
                f"{file}: lacks {', '.join(missing)}. Restore it from a copy, or choose another directory."
            )
        try:
            self.fields.model_validate(record)
        except ValidationError as error:
            raise self.error(
                f"{file}: {explained(error)} Restore it from a copy, or choose another directory."
            ) from None
        return record


class ResultDirectory(KeptDirectory):
    """A directory of results, all about the one thing that its record describes as `about`.

    Args:
        path: A new or empty directory, or one that was begun with the same `about`.
        about: Everything the results depend on, JSON-able.

    Raises:
        DirectoryError: The directory holds something else, or results about something else.
        OSError: It cannot be written.
    """

    needs = ("about", "versions")

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        self.about: dict[str, Any] = plain(about)
        self.begin(Path(path), lambda: {"about": self.about})
        super().__init__(path)
        self.check_same(self.record["about"], self.about)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """As in every kept directory; warns if other versions produced what is there, and records the present ones."""
        with super().locked():
            differing = self.other_versions()
            if differing is not None:
                logger.warning(
                    "%s: was begun with other versions: %s. New results may differ from the old ones in the last "
                    "digits; choose another directory for numbers that all come from the same versions.",
                    self.path, differing,
                )  # fmt: skip
                self.add_versions()
            yield


def cut_unfinished(file: Path) -> None:
    """Cut off the last line of a file of lines if a process that was killed has not finished it."""
    content = file.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(file, content.rfind(b"\n") + 1)
