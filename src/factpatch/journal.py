"""Journal: the state of a session's directory, which only grows. It needs no model and no PyTorch.

    session.json     what the session edits: the model, the recipe, the settings, the hashes of the unedited weights
    facts/0001.json  the facts of one call
    patches/0001.safetensors, ...  one patch per batch, in the order in which they were edited
    traces/0001.safetensors, ...   what the solver remembers of a batch, if the patch does not suffice to restore it
    journal.jsonl    one line per event: facts planned, a batch finished, an undo, outputs written
    lock             held by the process that writes

A line is written after the files it mentions, so the journal never mentions a missing file. A batch without a line
counts as not edited: it is edited again, which gives the same patch.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factpatch.data import save_facts, saved_facts
from factpatch.facts import Fact, check_batch
from factpatch.patch.file import PatchFileError, describe
from factpatch.support.directory import DirectoryError, KeptDirectory, cut_unfinished
from factpatch.support.files import append, file_digest
from factpatch.support.words import counted

if TYPE_CHECKING:
    from factpatch.recipe import Recipe

logger = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"


class SessionError(DirectoryError):
    """A session's directory cannot be used as requested; the message names the file and says what to do."""


@dataclass(frozen=True)
class FinishedBatch:
    """A batch that was edited; files are relative to the directory."""

    patch: str
    """Its patch file."""
    sha256: str
    """The checksum that the patch file states."""
    facts: int
    """The number of its facts."""
    learned: tuple[bool, ...]
    """Whether the model held each of them right after the batch; empty if it was not asked."""
    seconds: dict[str, float]
    """Wall time by stage."""
    time: str
    """When it was finished, in UTC."""
    traces: str | None = None
    """The file of what the solver remembers of it, if any."""
    traces_sha256: str | None = None


class Journal(KeptDirectory):
    """The content of a session's directory, and its changes.

    Raises:
        SessionError: `path` is not a directory that `factpatch.session.Session.create` made, or its files disagree.
    """

    holds = "a session"
    record_name = "session.json"
    format = 2  # 1 had no recipe, but the options of the command line as "about"
    needs = ("model", "method", "joins", "settings", "weights")
    error = SessionError

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.finished: list[FinishedBatch] = []
        """The batches in force."""
        self.undone = 0
        """How many batches were ever undone."""
        self.waiting: list[int] = []
        """The number of facts of each pending batch: planned and not edited yet."""
        self.outputs: dict[str, Any] = {}
        """The outputs that the last plan requested besides the patches, until they are written."""
        self._files = {"facts": 0, "patches": 0}
        self._plan: tuple[Path, str] | None = None  # the file of pending facts, and its digest
        self._planned: list[Fact] = []  # its content, once read
        self._length = 0  # of the part of the journal that was read or written here
        for number, event in enumerate(self._events(), start=1):
            try:
                self._follow(event)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise SessionError(
                    f"{self.path / JOURNAL}, line {number}: does not follow from the lines before it "
                    f"({type(error).__name__}: {error}). Restore the file from a copy."
                ) from error

    @property
    def source(self) -> str | None:
        """The model as named on the command line; None for a session begun in Python."""
        source: str | None = self.record.get("source") or self.record.get("about", {}).get("model")
        return source

    @property
    def recipe(self) -> Recipe:
        """The recipe of the session's editor.

        Raises:
            SessionError: It was begun in Python, and the directory does not hold a recipe.
            RecipeError: A field names something that no longer exists.
        """
        from factpatch.recipe import Recipe

        if self.source is None:
            raise SessionError(f"{self.path}: was begun in Python; continue it there with Session.attach.")
        options = self.record.get("about", {})
        older = {name: value for name, value in options.items() if name != "model"}
        return Recipe.from_dict(self.record.get("recipe", older))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; SessionError if one is working here, or has since this session was read."""
        with super().locked():
            cut_unfinished(self.path / JOURNAL)
            self.check_current()
            yield

    @property
    def pending(self) -> list[tuple[Fact, ...]]:
        """The batches planned and not edited yet; SessionError if the file of their facts is missing or altered."""
        if not self.waiting or self._plan is None:
            return []
        path, digest = self._plan
        if not self._planned:
            if not path.is_file() or file_digest(path) != digest:
                raise SessionError(
                    f"{path}: is missing or was altered after it was planned. Put the original back, or drop the "
                    f"pending batches: factpatch undo {self.path} --to {len(self.finished)}"
                )
            self._planned = saved_facts(path)
        rest = iter(self._planned[len(self._planned) - sum(self.waiting) :])
        return [tuple(islice(rest, size)) for size in self.waiting]

    @property
    def batches(self) -> list[tuple[Fact, ...]]:
        """The facts of every batch, finished and pending."""
        self.check_patches()
        finished = [describe(self.path / batch.patch).batches for batch in self.finished]
        done = [tuple(fact for part in parts for fact in part.facts) for parts in finished]
        return [*done, *self.pending]

    def plan(self, batches: Sequence[Sequence[Fact]], outputs: Mapping[str, Any] | None = None) -> None:
        """Record which batches to edit next. Call it inside `locked`.

        Args:
            outputs: JSON-able data for the process that resumes.

        Raises:
            ValueError: There is no batch, or one that is empty or contradicts itself.
            SessionError: Batches are pending.
            OSError: The directory cannot be written; nothing is planned.
        """
        if not batches:
            raise ValueError("batches=[]: give at least one batch of facts.")
        for batch in batches:
            check_batch(batch)
        self.check_idle()
        self.check_current()  # otherwise another process may have used the name of the file below
        name = f"facts/{self._files['facts'] + 1:04d}.json"
        save_facts([fact for batch in batches for fact in batch], self.path / name)
        sizes, digest = [len(batch) for batch in batches], file_digest(self.path / name)
        outputs = dict(outputs or {})
        self._append({"event": "plan", "facts": name, "sha256": digest, "batches": sizes, "outputs": outputs})

    def check_idle(self) -> None:
        """Raise SessionError if batches are pending."""
        if self.waiting:
            raise SessionError(
                f"{self.path}: {counted(len(self.waiting), 'batch')} pending. To finish: factpatch edit --resume "
                f"{self.path}; to drop: factpatch undo {self.path} --to {len(self.finished)}"
            )

    def undo(self, to: int) -> None:
        """Return to the state after batch `to`, 0 for the beginning; drop pending ones. Call it inside `locked`.

        The patches of the undone batches stay in the directory, no longer in force.
        """
        if not 0 <= to <= len(self.finished):
            raise SessionError(f"to={to}: the session has {len(self.finished)} batches; give a number from 0 to that.")
        self._append({"event": "undo", "to": to})

    def settle(self) -> None:
        """Record that the outputs of the last plan are written. Call it inside `locked`."""
        self.check_idle()
        if self.outputs:
            self._append({"event": "settle"})

    def check_current(self) -> None:
        """Raise SessionError if another process has appended to the journal since this session read it."""
        if (self.path / JOURNAL).stat().st_size != self._length:
            raise SessionError(f"{self.path}: has been changed since it was opened; open it again.")

    def check_patches(self) -> None:
        for number, batch in enumerate(self.finished, start=1):
            path = self.path / batch.patch
            with self.advised(number):
                if not path.is_file():
                    raise PatchFileError(f"{path}: the patch of batch {number} is missing.")
                if describe(path).sha256 != batch.sha256:
                    raise PatchFileError(f"{path}: is not the patch that batch {number} left.")

    @contextmanager
    def advised(self, number: int) -> Iterator[None]:
        """Make an error about a batch's patch say how to continue without it."""
        try:
            yield
        except PatchFileError as error:
            raise SessionError(
                f"{error} Put it back, or go back before it: factpatch undo {self.path} --to {number - 1}"
            ) from error

    def _follow(self, event: Mapping[str, Any]) -> None:
        """Update the state by one event."""
        kind = event["event"]
        if kind == "plan":
            if self.waiting:
                raise ValueError("batches were still to be edited")
            self.waiting = [int(size) for size in event["batches"]]
            self.outputs = dict(event["outputs"])
            self._plan, self._planned = (self.path / event["facts"], str(event["sha256"])), []
            self._files["facts"] += 1
        elif kind == "batch":
            if self.waiting[0] != event["facts"]:
                raise ValueError(f"{self.waiting[0]} facts were planned and {event['facts']} edited")
            given = {one.name: event[one.name] for one in fields(FinishedBatch) if one.name in event}
            self.finished.append(FinishedBatch(**{**given, "learned": tuple(event["learned"])}))
            self.waiting.pop(0)
            self._files["patches"] += 1
        elif kind == "undo":
            to = int(event["to"])
            if not 0 <= to <= len(self.finished):
                raise ValueError(f"there is no batch {to}")
            self.undone += len(self.finished) - to
            del self.finished[to:]
            self.waiting, self.outputs = [], {}
        elif kind == "settle":
            self.outputs = {}
        else:
            raise ValueError(f"unknown event {kind!r}")

    def _events(self) -> Iterator[dict[str, Any]]:
        path = self.path / JOURNAL
        try:
            *lines, cut = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            raise SessionError(f"{path}: is missing. Restore it from a copy.") from None
        for number, line in enumerate(lines, start=1):
            try:
                event = json.loads(line)
            except ValueError as error:
                raise SessionError(
                    f"{path}, line {number}: cannot be read ({error}). Restore the file from a copy; the patches it "
                    "mentions are in patches/."
                ) from error
            if not isinstance(event, dict) or _line(event) != line + b"\n":
                raise SessionError(f"{path}, line {number}: was altered. Restore the file from a copy.")
            self._length += len(line) + 1
            yield event
        if cut:
            logger.warning("%s, line %d: was cut short, so its event counts as not done.", path, len(lines) + 1)

    def _append(self, event: dict[str, Any]) -> None:
        """Append an event to the journal, whole or not at all, and update the state."""
        self.check_current()
        event = {**event, "time": now()}
        line = _line(event)
        append(self.path / JOURNAL, line)
        self._length += len(line)
        self._follow(event)


def _line(event: Mapping[str, Any]) -> bytes:
    """A line of the journal, with a checksum."""
    record = {name: value for name, value in event.items() if name != "crc32"}
    return json.dumps({**record, "crc32": zlib.crc32(json.dumps(record).encode())}).encode() + b"\n"


def now() -> str:
    """The time, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
