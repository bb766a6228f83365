"""Directories of results: about one thing, which a record in them tells, and for one process at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from filelock import FileLock, Timeout

from factpatch.support.files import is_draft, plain, remove_drafts, write_json
from factpatch.support.versions import library_versions
from factpatch.support.words import difference

logger = logging.getLogger(__name__)

LOCK = "lock"
T = TypeVar("T")


@contextmanager
def alone(folder: Path, busy: Exception) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs; a process that dies lets go.

    Args:
        busy: What is raised if another process is in it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise busy from None
    try:
        yield
    finally:
        lock.release()


def read_record(
    file: Path, newest: int, holds: str, error: type[Exception], needs: Sequence[str] = ()
) -> dict[str, Any]:
    """Read the record that says what a directory is about.

    Args:
        newest: The newest format that is known here.
        holds: What it should be the directory of, in words.
        error: What is raised if there is no record that can be read, or one of a newer format.
        needs: The fields that a record of a known format has.
    """
    try:
        record = dict(json.loads(file.read_text("utf-8")))
        newer = record["format"] > newest
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{file.parent}: is not the directory of {holds}: it has no {file.name}.") from None
    except (OSError, ValueError, KeyError, TypeError) as found:
        raise error(
            f"{file}: cannot be read ({found}). Restore it from a copy, or choose another directory."
        ) from found
    if newer:
        raise error(f"{file}: is of format {record['format']}, which a newer factpatch wrote; upgrade factpatch.")
    if missing := sorted(set(needs) - record.keys()):
        raise error(f"{file}: lacks {', '.join(missing)}. Restore it from a copy, or choose another one.")
    return record


class DirectoryError(ValueError):
    """A directory of results cannot be used as asked; the message says why and what to do."""


class ResultDirectory:
    """A directory for what is found about one thing: made when it is first locked, and gone on in later.

    Args:
        path: A new or empty directory, or one that was begun with the same `about`.
        about: All that the results depend on, JSON-able. The record holds it, with the versions it was begun with.

    Raises:
        DirectoryError: The directory holds something else, or results about something else.
    """

    holds: ClassVar[str]
    """What it is the directory of, in words."""
    record: ClassVar[str]
    """The name of the file with the record."""
    folders: ClassVar[tuple[str, ...]] = ()
    """What it always has besides."""
    format: ClassVar[int] = 1
    error: ClassVar[type[DirectoryError]] = DirectoryError

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        self.check_place(path)
        self.path = Path(path)
        self.about: dict[str, Any] = plain(about)
        self._check_about()

    @classmethod
    def check_place(cls, path: str | Path) -> None:
        """Raise DirectoryError unless the directory is new, empty or one of these, whatever it is about."""
        path = Path(path)
        if (path / cls.record).is_file() or not path.exists():
            return
        if not path.is_dir() or not all(item.name == LOCK or is_draft(item) for item in path.iterdir()):
            raise cls.error(f"{path}: is not empty and not the directory of {cls.holds}; choose another one.")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory, keep other processes out, and remove what one that was killed had begun to write.

        Raises:
            DirectoryError: Another process is at work there, or has begun something else.
            OSError: It cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with alone(self.path, self.error(f"{self.path}: another process is at work there; wait for it.")):
            self._check_about()  # another process may have come first
            remove_drafts(self.path)
            if not self._file.is_file():  # before anything else, which would be foreign without it
                write_json(self._file, {"format": self.format, "about": self.about, "versions": library_versions()})
            else:
                self._warn_of_versions()
            for folder in (self.path / name for name in self.folders):
                folder.mkdir(exist_ok=True)
                remove_drafts(folder)
            yield

    def read(self, file: Path, read: Callable[[dict[str, Any]], T]) -> T:
        """One of the directory's JSON files.

        Args:
            read: makes a result of what the file holds.

        Raises:
            DirectoryError: The file cannot be read.
        """
        try:
            return read(json.loads(file.read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.error(f"{file}: cannot be read ({error}). Remove it, to have it found anew.") from error

    def _warn_of_versions(self) -> None:
        differing = difference(self._held()["versions"], library_versions())
        if differing is not None:
            logger.warning(
                "%s: was begun with other versions: %s. What is found now need not agree with what is there to the "
                "last digit; choose another directory for numbers that all come from the same.",
                self.path, differing,
            )  # fmt: skip

    def _held(self) -> dict[str, Any]:
        return read_record(self._file, self.format, self.holds, self.error, ("about", "versions"))

    @property
    def _file(self) -> Path:
        return self.path / self.record

    def _check_about(self) -> None:
        if not self._file.is_file():
            return
        differing = difference(self._held()["about"], self.about)
        if differing is not None:
            raise self.error(
                f"{self.path}: holds {self.holds} of something else: {differing}. Choose another directory, or give "
                "what was given for this one."
            )
