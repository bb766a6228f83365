"""Session: edits that live in a directory. Every finished batch is a patch file and a line of a journal.

    session.json     what the session edits: the model, the settings, the hashes of the unedited weights
    facts/0001.json  the facts of one call
    patches/0001.safetensors, ...  one patch per batch, in the order in which they were edited
    journal.jsonl    one line per event: facts planned, a batch finished, an undo, outputs written
    lock             held by the process that writes

A line is written after what it speaks of is on the disk, so that the journal never promises what is not there. A batch
whose line is missing was not edited: it is edited again, which gives the same patch.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

from factpatch.data import load_facts, save_facts
from factpatch.editor import Editor
from factpatch.evaluation.verify import read_facts
from factpatch.facts import Fact, check_batch
from factpatch.model.weights import content_hash
from factpatch.patch.file import PatchFileError, describe
from factpatch.patch.patch import Patch
from factpatch.strategies.regularizer import Acts
from factpatch.support.directory import alone, read_record
from factpatch.support.files import append, atomic_directory, file_digest, plain, remove_drafts, write_json
from factpatch.support.words import difference

logger = logging.getLogger(__name__)

FORMAT = 1
_ABOUT, _JOURNAL = "session.json", "journal.jsonl"


class SessionError(ValueError):
    """A session's directory cannot be used as asked; the message names the file and says what to do."""


@dataclass(frozen=True)
class FinishedBatch:
    """A batch that was edited."""

    patch: str
    """Its patch file, relative to the directory."""
    sha256: str
    """The checksum that the patch file states."""
    facts: int
    """How many facts it has."""
    learned: tuple[bool, ...]
    """Whether the model held each of them right after the batch; empty if it was not asked."""
    seconds: dict[str, float]
    """Wall time by stage."""
    time: str
    """When it was finished, in UTC."""


class Session:
    """The state of a session's directory, and the only way in which it changes.

    Args:
        directory: One that `create` made.

    Raises:
        SessionError: It is no session, or its files do not fit together.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.about = _read_about(self.directory)
        self.finished: list[FinishedBatch] = []
        """The batches in force."""
        self.undone = 0
        """How many batches were taken back, over all time."""
        self.waiting: list[int] = []
        """How many facts each batch has that is planned and not edited yet."""
        self.outputs: dict[str, Any] = {}
        """What the last plan asked for besides the patches and has not got yet."""
        self._files = {"facts": 0, "patches": 0}
        self._plan: tuple[Path, str] | None = None  # the file of facts that are waiting, and its digest
        self._planned: list[Fact] = []  # what it holds, once it has been read
        self._length = 0  # of the journal, as far as it was read or written here
        for number, event in enumerate(self._events(), start=1):
            try:
                self._take(event)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise SessionError(
                    f"{self.directory / _JOURNAL}, line {number}: does not follow from the lines before it "
                    f"({type(error).__name__}: {error}). Restore the file from a copy."
                ) from error

    @classmethod
    def create(
        cls,
        directory: str | Path,
        editor: Editor,
        batches: Sequence[Sequence[Fact]] = (),
        about: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> Session:
        """Begin a session in a new or empty directory, which appears whole or not at all.

        Args:
            editor: One that has not edited anything.
            batches: What is to be edited first; see `plan`.
            about: What it takes to make this editor again, as JSON-able data.
            outputs: See `plan`.

        Raises:
            SessionError: The editor has edited.
            FileExistsError: The directory is not empty.
            OSError: It cannot be written.
        """
        if editor.edits:
            raise SessionError("editor: it has edited the model already; a session begins with an unedited model.")
        record = {
            "format": FORMAT,
            "created": _now(),
            "model": editor.lm.name,
            "method": editor.method.name,
            "joins": editor.method.regularizer.acts is not Acts.SESSION,
            "settings": _settings(editor),
            "weights": _hashes(editor),
            "about": dict(about or {}),
        }
        with atomic_directory(directory) as draft:
            for folder in ("facts", "patches"):
                (draft / folder).mkdir()
            write_json(draft / _ABOUT, record)
            (draft / _JOURNAL).touch()
            if batches:
                cls(draft).plan(batches, outputs)
        return cls(directory)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out while the block runs; a process that dies lets go.

        Raises:
            SessionError: Another process is at work here, or it has been since this session was read.
        """
        if not (self.directory / _ABOUT).is_file():  # locking would make the directory again
            raise SessionError(f"{self.directory}: the session is no longer there.")
        busy = SessionError(f"{self.directory}: another process is editing this session; wait for it.")
        with alone(self.directory, busy):
            self._mend()
            self._check_current()
            yield

    @property
    def pending(self) -> list[tuple[Fact, ...]]:
        """What is planned and not edited yet.

        Raises:
            SessionError: The file of these facts is missing or was altered.
        """
        if not self.waiting or self._plan is None:
            return []
        path, digest = self._plan
        if not self._planned:
            if not path.is_file() or file_digest(path) != digest:
                raise SessionError(
                    f"{path}: is missing or was altered after it was planned. Put the original back, or drop what is "
                    f"still to be edited: factpatch undo {self.directory} --to {len(self.finished)}"
                )
            self._planned = load_facts(path)
        rest = iter(self._planned[len(self._planned) - sum(self.waiting) :])
        return [tuple(islice(rest, size)) for size in self.waiting]

    @property
    def batches(self) -> list[tuple[Fact, ...]]:
        """The facts of every batch, finished and pending."""
        self._check_patches()
        finished = [describe(self.directory / batch.patch)["batches"] for batch in self.finished]
        done = [tuple(Fact.from_dict(fact) for part in parts for fact in part["facts"]) for parts in finished]
        return [*done, *self.pending]

    def patches(self) -> Iterator[Patch]:
        """The patches of the batches in force, one after another.

        Raises:
            SessionError: One is missing, altered, or not the one that the journal speaks of.
        """
        self._check_patches()
        return (self._load(number) for number in range(1, len(self.finished) + 1))

    def patch(self) -> Patch:
        """Everything in force as one patch.

        Raises:
            SessionError: Nothing is in force, or the regularizer acts on the session, which takes the model.
        """
        if not self.finished:
            raise SessionError(f"{self.directory}: no batch is in force, so there is no patch.")
        if not self.about["joins"]:
            raise SessionError(
                f"{self.directory}: {self.about['method']} conditions the sum of all batches, which takes the model. "
                f"factpatch edit --resume {self.directory} --out PATCH writes that patch."
            )
        return Patch.join(list(self.patches()))

    def plan(self, batches: Sequence[Sequence[Fact]], outputs: Mapping[str, Any] | None = None) -> None:
        """Set down which batches are to be edited next. Call it inside `locked`.

        Args:
            outputs: JSON-able data for whoever resumes.

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
        self._check_current()  # the name of the file below may be another's by now
        name = f"facts/{self._files['facts'] + 1:04d}.json"
        save_facts([fact for batch in batches for fact in batch], self.directory / name)
        self._append(
            {
                "event": "plan",
                "facts": name,
                "sha256": file_digest(self.directory / name),
                "batches": [len(batch) for batch in batches],
                "outputs": dict(outputs or {}),
            }
        )

    def check_idle(self) -> None:
        """Raise SessionError if batches are pending."""
        if self.waiting:
            raise SessionError(
                f"{self.directory}: {len(self.waiting)} batches are still to be edited. Finish them: factpatch edit "
                f"--resume {self.directory}; or drop them: factpatch undo {self.directory} --to {len(self.finished)}"
            )

    def attach(self, editor: Editor) -> None:
        """Bring an unedited editor to where the session is. If that fails, the editor stays unedited.

        Raises:
            SessionError: The editor has edited, or its model or its settings are not the session's.
            RuntimeError: This machine writes other bits than the one that edited.
        """
        if editor.edits:
            raise SessionError("editor: it has edited the model already; attach an editor with an unedited model.")
        mine, its = self.about["weights"], _hashes(editor)
        if mine != its:
            layers = sorted(mine.keys() ^ its.keys()) or [layer for layer in mine if its[layer] != mine[layer]]
            raise SessionError(
                f"{self.directory}: the session is of {self.about['model']}; the given model, {editor.lm.name}, has "
                f"other critical layers or other weights there: {', '.join(layers)}. Load the model that the session "
                "began with."
            )
        differing = difference(self.about["settings"], _settings(editor))
        if differing is not None:
            raise SessionError(f"{self.directory}: the session was begun with other settings: {differing}.")
        if self.finished:
            editor.replay(Patch.join(list(self.patches())))  # as one, so that it is all written or nothing

    def edit(self, editor: Editor, ask: bool = True) -> Patch:
        """Edit the next pending batch and set it down. Call it inside `locked`, with an editor that is attached.

        If the result cannot be written, the edit is undone.

        Args:
            ask: Whether to ask the model afterwards which facts it holds.

        Raises:
            IndexError: Nothing is pending.
            SessionError: The editor does not hold the batches in force; the session is as it was.
            OSError: The directory cannot be written; the session is as it was.
        """
        facts = self.pending[0]
        self._check_current()
        if len(editor.edits) != len(self.finished):
            raise SessionError(
                f"editor: it holds {len(editor.edits)} batches and the session {len(self.finished)}; attach a new "
                "editor to the session first."
            )
        patch = editor.edit(facts)
        try:
            name = f"patches/{self._files['patches'] + 1:04d}.safetensors"
            patch.save(self.directory / name)
            alone = [replace(fact, paraphrases=(), neighbors=()) for fact in facts] if ask else []
            self._append(
                {
                    "event": "batch",
                    "patch": name,
                    "sha256": describe(self.directory / name)["sha256"],
                    "facts": len(facts),
                    "learned": [reading.learned for reading in read_facts(editor.lm, alone, answers=False)],
                    "seconds": {stage: round(took, 3) for stage, took in editor.edits[-1].seconds.items()},
                }
            )
        except BaseException:
            editor.undo()
            raise
        return patch

    def undo(self, to: int) -> None:
        """Go back to where the session was after batch `to`, 0 for the beginning. Call it inside `locked`.

        What was pending is dropped. The patches of the undone batches stay in the directory, out of force.

        Raises:
            SessionError: There is no such batch.
        """
        if not 0 <= to <= len(self.finished):
            raise SessionError(f"to={to}: the session has {len(self.finished)} batches; give a number from 0 to that.")
        self._append({"event": "undo", "to": to})

    def settle(self) -> None:
        """Set down that everything is edited and the outputs of the last plan are written. Call it inside `locked`.

        Raises:
            SessionError: Batches are pending.
            OSError: The directory cannot be written.
        """
        self.check_idle()
        if self.outputs:
            self._append({"event": "settle"})

    def _check_current(self) -> None:
        """Raise SessionError if the journal is not as far as this session knows; all writing only appends to it."""
        if (self.directory / _JOURNAL).stat().st_size != self._length:
            raise SessionError(f"{self.directory}: has been changed since it was opened; open it again.")

    def _check_patches(self) -> None:
        for number, batch in enumerate(self.finished, start=1):
            path = self.directory / batch.patch
            with self._advised(number):
                if not path.is_file():
                    raise PatchFileError(f"{path}: the patch of batch {number} is missing.")
                if describe(path)["sha256"] != batch.sha256:
                    raise PatchFileError(f"{path}: is not the patch that batch {number} left.")

    def _load(self, number: int) -> Patch:
        with self._advised(number):
            return Patch.load(self.directory / self.finished[number - 1].patch)

    @contextmanager
    def _advised(self, number: int) -> Iterator[None]:
        """Let an error about a batch's patch say how to go on without it."""
        try:
            yield
        except PatchFileError as error:
            raise SessionError(
                f"{error} Put it back, or go back before it: factpatch undo {self.directory} --to {number - 1}"
            ) from error

    def _take(self, event: Mapping[str, Any]) -> None:
        """Let the state follow one event."""
        kind = event["event"]
        if kind == "plan":
            if self.waiting:
                raise ValueError("batches were still to be edited")
            self.waiting = [int(size) for size in event["batches"]]
            self.outputs = dict(event["outputs"])
            self._plan, self._planned = (self.directory / event["facts"], str(event["sha256"])), []
            self._files["facts"] += 1
        elif kind == "batch":
            if self.waiting[0] != event["facts"]:
                raise ValueError(f"{self.waiting[0]} facts were planned and {event['facts']} edited")
            batch = FinishedBatch(
                patch=event["patch"],
                sha256=event["sha256"],
                facts=event["facts"],
                learned=tuple(event["learned"]),
                seconds=dict(event["seconds"]),
                time=event["time"],
            )
            self.finished.append(batch)
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
        path = self.directory / _JOURNAL
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
                    "speaks of are in patches/."
                ) from error
            if not isinstance(event, dict) or _line(event) != line + b"\n":
                raise SessionError(f"{path}, line {number}: was altered. Restore the file from a copy.")
            self._length += len(line) + 1
            yield event
        if cut:
            logger.warning(
                "%s, line %d: was cut short when it was written, so what it speaks of counts as not done.",
                path,
                len(lines) + 1,
            )

    def _mend(self) -> None:
        """Remove what a process that was killed has left half written."""
        path = self.directory / _JOURNAL
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
        for folder in ("facts", "patches"):
            remove_drafts(self.directory / folder)

    def _append(self, event: dict[str, Any]) -> None:
        """Write a line of the journal, whole or not at all, and follow it."""
        self._check_current()
        event = {**event, "time": _now()}
        line = _line(event)
        append(self.directory / _JOURNAL, line)
        self._length += len(line)
        self._take(event)


def load_patch(path: str | Path) -> Patch:
    """A patch from its file, or from the directory of a session.

    Raises:
        PatchFileError: It is no patch that can be read.
        SessionError: It is a session without a patch.
    """
    return Session(path).patch() if Path(path).is_dir() else Patch.load(path)


def _read_about(directory: Path) -> dict[str, Any]:
    needs = ("model", "method", "joins", "settings", "weights", "about")
    return read_record(directory / _ABOUT, FORMAT, "a session", SessionError, needs)


def _line(event: Mapping[str, Any]) -> bytes:
    """A line of the journal, with a checksum that tells if it was altered."""
    record = {name: value for name, value in event.items() if name != "crc32"}
    return json.dumps({**record, "crc32": zlib.crc32(json.dumps(record).encode())}).encode() + b"\n"


def _hashes(editor: Editor) -> dict[str, str]:
    return {str(layer): content_hash(editor.lm.weight(layer)) for layer in editor.critical_layers}


def _settings(editor: Editor) -> dict[str, Any]:
    """What an editor's next batch depends on, as `session.json` gives it back."""
    editor.prepare()
    settings = {**editor.settings, "seed": editor.seed, "written_dtype": str(editor.written_dtype)}
    return {name: plain(value) for name, value in settings.items()}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
