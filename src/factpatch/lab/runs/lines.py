"""A method at work on one line of a run's table: it edits batch after batch, and its directory keeps what it did.

An editing method is an editor with its session. A rival is a learner, whose batches leave a file each. To the run both
are a `Line`.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from factpatch.editor import Editor
from factpatch.evaluation.budget import BudgetError, Meter, recorded
from factpatch.lab.rivals.learner import Learner
from factpatch.lab.runs.directory import RunError
from factpatch.lab.runs.plan import Plan
from factpatch.model.language_model import LanguageModel
from factpatch.session import Session
from factpatch.support.files import file_digest, write_json
from factpatch.values.contexts import BARE
from factpatch.values.shared import SharedTargets


class Line(ABC):
    """What a run needs of whatever edits.

    Args:
        plan: What it edits.
        meter: Measures what each batch costs; None without a budget.
    """

    def __init__(self, plan: Plan, meter: Meter | None) -> None:
        self.plan, self.meter = plan, meter

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

    @property
    @abstractmethod
    def stopped(self) -> str:
        """Which limit of the budget the next batch exceeds; empty if that is not known, or there is none."""

    @property
    @abstractmethod
    def spent(self) -> Mapping[str, float | None]:
        """What the edits have cost, as `budget.recorded` says it; empty without a budget, or without edits."""

    @abstractmethod
    def opened(self) -> AbstractContextManager[None]:
        """A context in which the model is where the line's directory left it; afterwards it is unedited."""

    @abstractmethod
    def edit(self) -> None:
        """Edit the next batch and record it. Call it inside `opened`.

        Raises:
            BudgetError: It exceeds the budget. The model is where the batch before left it, to the bit, and it is
                recorded that the line has stopped.
        """

    @abstractmethod
    def mend(self) -> None:
        """Edit again what the model does not hold, if the method is to do so. Call it inside `opened`, at the end.

        Raises:
            BudgetError: As `edit`.
        """

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Settings, seconds and bytes, once everything is edited, or the line has stopped."""


class EditorLine(Line):
    """An editing method: an editor and its session."""

    def __init__(self, plan: Plan, meter: Meter | None, editor: Editor, targets: SharedTargets) -> None:
        super().__init__(plan, meter)
        self.editor, self.targets = editor, targets
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
        return min(len(self.session.finished), len(self.plan.batches))  # more, if facts were edited again

    @property
    def stopped(self) -> str:
        return self.session.stopped

    @property
    def spent(self) -> Mapping[str, float | None]:
        return self.session.finished[-1].spent if self.session.finished else {}

    @contextmanager
    def opened(self) -> Iterator[None]:
        self.targets.take_seconds()  # of a batch that failed
        self._session = session = self._kept()
        try:
            with session.locked():
                session.attach(self.editor)
                if not session.waiting and self.done < len(self.plan.batches):
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
        self.session.edit(self.editor, ask=False, meter=self.meter)
        self._count_shared()

    def mend(self) -> None:
        session = self.session
        try:
            session.mend(self.editor, session.outputs.get("mend", self.plan.method.mend), ask=False, meter=self.meter)
        finally:
            self._count_shared()

    def _count_shared(self) -> None:
        """Record how long the targets took that were read."""
        if seconds := self.targets.take_seconds():
            number = str(len(self.session.finished))
            write_json(self.plan.directory / "shared.json", {**self._shared(), number: seconds})

    def record(self) -> dict[str, Any]:
        finished = self.session.finished
        stages = dict.fromkeys(stage for batch in finished for stage in batch.seconds)
        return {
            "settings": self.editor.settings,
            "seconds": {stage: sum(batch.seconds.get(stage, 0.0) for batch in finished) for stage in stages},
            "shared_seconds": math.fsum(self._shared().values()),
            "bytes": self.editor.patch.num_bytes if self.done else 0,
        }

    def _shared(self) -> dict[str, float]:
        """The seconds that each batch's value targets took when they were optimized before, for another method."""
        file = self.plan.directory / "shared.json"
        found: dict[str, float] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        return found


class RivalLine(Line):
    """A rival: `learned.json` lists the file that each batch has left, with its digest, its time and its cost."""

    def __init__(self, plan: Plan, meter: Meter | None, learner: Learner) -> None:
        super().__init__(plan, meter)
        self.learner = learner
        self._batches: list[dict[str, Any]] = []
        self._stopped = ""

    contexts = (BARE,)

    @property
    def lm(self) -> LanguageModel:
        return self.learner.lm

    @property
    def done(self) -> int:
        return len(self._batches)

    @property
    def stopped(self) -> str:
        return self._stopped

    @property
    def spent(self) -> Mapping[str, float | None]:
        return self._batches[-1].get("spent", {}) if self._batches else {}

    @contextmanager
    def opened(self) -> Iterator[None]:
        (self.plan.directory / "learned").mkdir(parents=True, exist_ok=True)
        file = self._index
        kept = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        self._batches, self._stopped = kept.get("batches", []), kept.get("stopped", "")
        try:
            self._restore()
            yield
        finally:
            self.learner.reset()

    @property
    def _index(self) -> Path:
        return self.plan.directory / "learned.json"

    def _restore(self) -> None:
        """Bring the untaught model to where the last recorded batch left it."""
        self.learner.restore([self._checked(batch) for batch in self._batches])

    def _record(self, **stopped: str) -> None:
        write_json(self._index, {"batches": self._batches, **stopped})

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
        spent = self._cost()
        name = f"learned/{number:04d}{self.learner.suffix}"
        self.learner.save(self.plan.directory / name)
        batch = {"file": name, "sha256": file_digest(self.plan.directory / name), "seconds": round(took, 3), **spent}
        # After the file: a batch that is not listed is learned again, with the same outcome.
        self._batches.append(batch)
        self._record()

    def mend(self) -> None:
        """A rival has no rounds: its settings say how long it learns."""

    def _cost(self) -> dict[str, Any]:
        """What all batches have cost, as a field of a record; if they exceed the budget, the last is taken back."""
        if self.meter is None:
            return {}
        try:
            return {"spent": recorded(self.meter.check(self.lm))}
        except BudgetError as error:
            self.learner.reset()
            self._restore()
            self._stopped = str(error)
            self._record(stopped=self._stopped)
            raise

    def record(self) -> dict[str, Any]:
        return {
            "settings": self.learner.settings,
            "seconds": {"learn": math.fsum(batch["seconds"] for batch in self._batches)},
            "shared_seconds": 0.0,
            "bytes": self.learner.num_bytes if self.done else 0,
        }
