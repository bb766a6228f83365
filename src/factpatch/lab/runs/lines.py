"""A method at work on one line of a run's table: it edits batch after batch, and its directory keeps what it did.

An editing method is an editor with its session. A rival is a learner, whose batches leave a file each. To the run both
are a `Line`.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from factpatch.editor import Editor
from factpatch.lab.rivals.learner import Learner
from factpatch.lab.runs.directory import RunError
from factpatch.lab.runs.plan import Plan
from factpatch.model.language_model import LanguageModel
from factpatch.session import Session
from factpatch.support.files import file_digest, write_json
from factpatch.values.contexts import BARE
from factpatch.values.shared import SharedTargets


class Line(ABC):
    """What a run needs of whatever edits."""

    plan: Plan

    @property
    @abstractmethod
    def lm(self) -> LanguageModel:
        """What is measured."""

    @property
    @abstractmethod
    def contexts(self) -> tuple[str, ...]:
        """The templates in which facts are edited."""

    @property
    @abstractmethod
    def done(self) -> int:
        """How many batches are edited."""

    @abstractmethod
    def opened(self) -> AbstractContextManager[None]:
        """A context in which the model is where the line's directory left it; afterwards it is unedited."""

    @abstractmethod
    def edit(self) -> None:
        """Edit the next batch and record it. Call it inside `opened`."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Settings, seconds and bytes, once everything is edited."""


class EditorLine(Line):
    """An editing method: an editor and its session."""

    def __init__(self, plan: Plan, editor: Editor, targets: SharedTargets) -> None:
        self.plan, self.editor, self.targets = plan, editor, targets
        self._session: Session | None = None

    @property
    def lm(self) -> LanguageModel:
        return self.editor.lm

    @property
    def contexts(self) -> tuple[str, ...]:
        return self.editor.contexts

    @property
    def session(self) -> Session:
        assert self._session is not None  # inside `opened`
        return self._session

    @property
    def done(self) -> int:
        return len(self.session.finished)

    @contextmanager
    def opened(self) -> Iterator[None]:
        self.targets.take_seconds()  # of a batch that failed
        self._session = session = self._kept()
        try:
            with session.locked():
                session.attach(self.editor)
                if not session.pending and self.done < len(self.plan.batches):
                    session.plan(self.plan.batches[self.done :])  # somebody has undone some
                yield
        finally:
            self.editor.reset()

    def _kept(self) -> Session:
        directory = self.plan.directory
        # Empty, if a method had failed and the process was killed before it recorded that.
        if directory.exists() and any(directory.iterdir()):
            return Session(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        return Session.create(directory, self.editor, self.plan.batches)

    def edit(self) -> None:
        self.session.edit(self.editor, ask=False)
        if seconds := self.targets.take_seconds():
            write_json(self.plan.directory / "shared.json", {**self._shared(), str(self.done): seconds})

    def record(self) -> dict[str, Any]:
        finished = self.session.finished
        stages = dict.fromkeys(stage for batch in finished for stage in batch.seconds)
        return {
            "settings": self.editor.settings,
            "seconds": {stage: sum(batch.seconds.get(stage, 0.0) for batch in finished) for stage in stages},
            "shared_seconds": math.fsum(self._shared().values()),
            "bytes": self.editor.patch.num_bytes,
        }

    def _shared(self) -> dict[str, float]:
        """The seconds that each batch's value targets took when they were optimized before, for another method."""
        file = self.plan.directory / "shared.json"
        found: dict[str, float] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        return found


class RivalLine(Line):
    """A rival: `learned.json` lists the file that each batch has left, with its digest and the time it took."""

    def __init__(self, plan: Plan, learner: Learner) -> None:
        self.plan, self.learner = plan, learner
        self._batches: list[dict[str, Any]] = []

    contexts = (BARE,)

    @property
    def lm(self) -> LanguageModel:
        return self.learner.lm

    @property
    def done(self) -> int:
        return len(self._batches)

    @contextmanager
    def opened(self) -> Iterator[None]:
        (self.plan.directory / "learned").mkdir(parents=True, exist_ok=True)
        file = self._index
        self._batches = json.loads(file.read_text("utf-8"))["batches"] if file.is_file() else []
        try:
            self.learner.restore([self._checked(batch) for batch in self._batches])
            yield
        finally:
            self.learner.reset()

    @property
    def _index(self) -> Path:
        return self.plan.directory / "learned.json"

    def _checked(self, batch: dict[str, Any]) -> Path:
        file = self.plan.directory / str(batch["file"])
        if not file.is_file() or file_digest(file) != batch["sha256"]:
            raise RunError(f"{file}: is missing or was altered; remove {self.plan.directory} to begin its line again.")
        return file

    def edit(self) -> None:
        number = self.done + 1
        begun = time.perf_counter()
        self.learner.learn(self.plan.batches[number - 1])
        took = time.perf_counter() - begun
        name = f"learned/{number:04d}{self.learner.suffix}"
        self.learner.save(self.plan.directory / name)
        batch = {"file": name, "sha256": file_digest(self.plan.directory / name), "seconds": round(took, 3)}
        # After the file: a batch that is not listed is learned again, with the same outcome.
        write_json(self._index, {"batches": [*self._batches, batch]})
        self._batches.append(batch)

    def record(self) -> dict[str, Any]:
        return {
            "settings": self.learner.settings,
            "seconds": {"learn": math.fsum(batch["seconds"] for batch in self._batches)},
            "shared_seconds": 0.0,
            "bytes": self.learner.num_bytes,
        }
