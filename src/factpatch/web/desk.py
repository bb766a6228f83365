"""A desk: one person's model, recipe and edits, kept in a folder as a session that the command line can open too."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from factpatch.edit_report import EditReport, ask, check_facts
from factpatch.editor import Editor
from factpatch.evaluation.readings import Reading
from factpatch.evaluation.verify import Verification
from factpatch.facts import Fact, latest
from factpatch.model.language_model import LanguageModel
from factpatch.model.twin import own, twin
from factpatch.recipe import Choice, Recipe, choose
from factpatch.session import Session
from factpatch.support.progress import timed
from factpatch.values.contexts import without_trained
from factpatch.values.rows import optimization_rows
from factpatch.web.effects import Effect
from factpatch.web.recipes import recipe_from
from factpatch.web.shared import Batches, Results, Shared, lasting, model_of
from factpatch.web.work import Job

EXPORTS = "exported"
"""The folder, at a desk, of what its owner may download."""
T = TypeVar("T")


@dataclass
class Desk:
    """One person's work. What takes the model runs as a job; what is shown are results, which jobs replace as a whole.

    Args:
        folder: Where the session and what is exported lie; it exists.
        shared: What all desks share.
        given: A session's directory elsewhere, which whoever started the server has named; it is never removed.
    """

    folder: Path
    shared: Shared
    given: Path | None = None
    model: str = field(init=False)
    recipe: Recipe = field(init=False)
    rows: Sequence[Sequence[Any]] = ()
    """The cells of the table of facts to teach."""
    facts: list[Fact] = field(default_factory=list)
    """Facts that were read from a file, with what the table does not show of them."""
    results: Results = field(default_factory=Results)
    job: Job[Any] | None = None
    """The last job."""
    editor: Editor | None = None
    session: Session | None = None
    effects: tuple[Batches, list[Effect]] = ((), [])
    """Side effects that were measured, and of which edits."""
    spare: dict[str, Any] = field(default_factory=dict)
    """What panels keep of this person until the desk is cleared, by their names."""

    def __post_init__(self) -> None:
        self.model, self.recipe = self.shared.models[0], self.shared.recipe
        self._said: dict[Fact, Reading] = {}  # by the original model
        self._opened = False
        self._choice: tuple[tuple[str, Recipe] | None, Choice | None] = (None, None)

    @property
    def session_path(self) -> Path:
        """Where the session is, or will be."""
        return self.given or self.folder / "session"

    # --- jobs

    def start(self, what: str, run: Callable[[], T]) -> Job[T]:
        """Let some work wait for its turn.

        Raises:
            ValueError: This desk's last job is not over.
        """
        if self.busy:
            assert self.job is not None
            raise ValueError(f"Still busy: {self.job.what}. Wait for it, or cancel it.")
        job = Job(what, lambda job: run(), self.shared.limits.seconds)
        self.job = job
        return self.shared.worker.submit(job)

    @property
    def busy(self) -> bool:
        """Whether a job waits or is at work."""
        return self.job is not None and not self.job.over.is_set()

    @property
    def choice(self) -> Choice | None:
        """The recipe completed for the model; None until that is loaded."""
        lm, about = self.shared.loaded(self.model), (self.model, self.recipe)
        if lm is not None and self._choice[0] != about:  # once, since it may log a warning
            self._choice = about, choose(self.recipe, lm)
        return self._choice[1] if self._choice[0] == about else None

    @property
    def measured(self) -> list[Effect]:
        """The side effects of the edits in force, if they were measured."""
        about, found = self.effects
        return found if about == self.results.batches else []

    @property
    def edited(self) -> bool:
        """Whether there are edits in force, or facts that wait to be edited."""
        return bool(self.results.batches or self.results.pending)

    # --- what jobs do, in the worker's thread

    @property
    def original(self) -> LanguageModel:
        """The unedited model, asked as this desk's recipe says."""
        lm = self.shared.original(self.model)
        return LanguageModel(lm.model, lm.tokenizer, True) if self.recipe.chat else lm

    @property
    def edited_model(self) -> LanguageModel:
        """The model with the edits in force; the original if there are none."""
        return self.original if self.editor is None else self.editor.lm

    def open(self) -> None:
        """Take up the session in the folder, if there is one: load its model and write its edits again."""
        if self._opened:
            return
        if Session.is_begun(self.session_path):
            self.session, self.editor = self._attached(self.session_path)
            self._look()
            self.ask_again()
        self._opened = True

    def edit(self, facts: Sequence[Fact]) -> None:
        """Teach the model some facts as one batch; if that fails or is cancelled, all is as it was, to the bit."""
        self.open()
        facts = tuple(facts)
        self.shared.limits.check_facts(facts, sum(map(len, self.results.batches)))
        if self.results.pending:
            raise ValueError("Facts of an edit that was interrupted are pending: continue it, or drop them.")
        seconds: dict[str, float] = {}
        editor = self.editor or self._new_editor(self.recipe)
        with timed(seconds, "contexts"):
            self._check(facts, editor)
        with timed(seconds, "verify_before"):
            self._read_original(without_trained(facts, editor.contexts))
        if self.session is None:
            self.session = Session.create(self.session_path, editor, source=lasting(self.model))
        self.editor = editor
        with self.session.locked(), self._all_or_nothing():
            self.session.plan([facts])
            self._edit_pending(seconds)

    def resume(self) -> None:
        """Edit the facts that are pending since the server was stopped."""
        self.open()
        assert self.session is not None
        seconds: dict[str, float] = {}
        while self.session.waiting:
            with self.session.locked(), self._all_or_nothing():
                self._edit_pending(seconds)

    def undo(self, to: int) -> None:
        """Go back to the state after batch `to`, bit for bit; pending facts are dropped."""
        self.open()
        assert self.session is not None
        with self.session.locked():
            self._back(to)
        self._look()
        self.ask_again()

    def take_back(self, fact: str) -> None:
        """Take a single fact back, by its id or its place."""
        self.open()
        assert self.session is not None
        assert self.editor is not None
        with self.session.locked():
            taken = self.session.undo_fact(self.editor, fact)
        self._look()
        self.ask_again()
        self.results = replace(self.results, taken=taken)

    def ask_again(self) -> None:
        """Ask both models about the facts in force."""
        if self.editor is None or not self.results.batches:
            self.results = replace(self.results, verification=None)
            return
        facts = without_trained(latest(self.results.batches)[0], self.editor.contexts)[-self.shared.limits.facts :]
        before = self._read_original(facts)
        after = ask(self.editor.lm, facts, "asking the edited model", before)
        self.results = replace(self.results, verification=after)

    # --- parts of them

    def _new_editor(self, recipe: Recipe) -> Editor:
        lm = twin(self.shared.original(self.model), recipe.chat)
        editor = Editor(lm, recipe=recipe)
        own(editor.lm, {*editor.critical_layers, *editor.edited_places})
        return editor

    def _attached(self, path: Path) -> tuple[Session, Editor]:
        """The session of a directory with an editor that holds its edits."""
        session = Session(path)
        model = model_of(session, self.shared.models)
        recipe_from(session.record.get("recipe") or {}, self.shared.recipe)  # before anything in it is used
        self.model, self.recipe = model, session.recipe
        editor = self._new_editor(session.settled)
        session.attach(editor)
        return session, editor

    def _check(self, facts: Sequence[Fact], editor: Editor) -> None:
        """Raise ValueError, with the number of the fact, unless all can be edited together."""
        for number, fact in enumerate(facts, start=1):
            try:
                optimization_rows(editor.lm, [fact], editor.contexts)
            except ValueError as error:
                raise ValueError(f"fact {number}: {error}") from None
        check_facts(editor.lm, [facts], editor.contexts)

    def _read_original(self, facts: Sequence[Fact]) -> Verification:
        """What the original model says of facts; each is asked once."""
        new = [fact for fact in facts if fact not in self._said]
        if new:
            found = ask(self.original, new, "asking the original model")
            self._said |= dict(zip(new, found.after, strict=True))
        return Verification(tuple(facts), tuple(self._said[fact] for fact in facts))

    def _edit_pending(self, seconds: dict[str, float]) -> None:
        assert self.session is not None
        assert self.editor is not None
        self.session.edit(self.editor)
        self._look()
        with timed(seconds, "verify_after"):
            self.ask_again()
        edit = self.editor.edits[-1]
        seconds |= edit.seconds
        self.results = replace(
            self.results,
            seconds=sum(edit.seconds.values()),
            report=EditReport(
                model=self.model,
                patch=self.editor.patch,
                settings=self.editor.patch.settings,
                steps={},
                seconds={**seconds, "total": sum(seconds.values())},
                verification=self.results.verification,
            ),
        )

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """If the block fails or is cancelled, bring model, session and results back to where they were."""
        assert self.session is not None
        before, results = len(self.session.finished), self.results
        try:
            yield
        except BaseException:
            self._back(before)
            self.results = results
            raise

    def _back(self, to: int) -> None:
        """Undo the batches after `to` in the model and in the session, and drop what is pending."""
        assert self.session is not None
        assert self.editor is not None
        while len(self.editor.edits) > to:
            self.editor.undo()
        if self.session.waiting or len(self.session.finished) > to:
            self.session.undo(to)

    def _look(self) -> None:
        """Note which facts are in force and which are pending."""
        session = self.session
        pending = () if session is None else tuple(session.pending)
        batches = () if self.editor is None else tuple(edit.facts for edit in self.editor.edits)
        self.results = Results(batches=batches, pending=pending)

    # --- beginning and end

    def choose(self, model: str, recipe: Recipe) -> None:
        """Take another model or recipe for the edits to come; ValueError if there are edits already, or it is busy."""
        if (lm := self.shared.loaded(model)) is not None:
            choose(recipe, lm)  # what does not fit the model is refused here, and not only when something is edited
        if model not in self.shared.models:
            raise ValueError(f"model={model!r}: this server has {', '.join(self.shared.models)}.")
        if (model, recipe) == (self.model, self.recipe):
            return
        if self.busy or self.edited or (self.given is not None and Session.is_begun(self.given)):
            raise ValueError(
                "The edits of a session share a model and a recipe. Start over (under History) to take others."
            )
        if Session.is_begun(self.session_path):  # one whose edits are all undone
            shutil.rmtree(self.session_path)
        self.clear()
        self.model, self.recipe = model, recipe

    def bring(self, folder: Path) -> None:
        """Take up a session whose directory somebody has brought; it is moved here. A job, as those above."""
        self.open()
        if self.edited or self.given is not None:
            raise ValueError("session: there are edits here already; start over before you open another session.")
        self.clear()
        shutil.rmtree(self.session_path, ignore_errors=True)
        folder.rename(self.session_path)
        try:
            self.open()
        except BaseException:
            self.clear()
            shutil.rmtree(self.session_path, ignore_errors=True)
            raise

    def start_over(self) -> None:
        """Forget all edits, and remove their files; a session that was given stays on the disk."""
        if self.busy:
            raise ValueError("Still busy; wait for the work to end, or cancel it.")
        self.clear()
        self.given = None
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def clear(self) -> None:
        """Free the memory; the folder stays, and `open` continues from it."""
        self.editor = self.session = None
        self.results, self._said, self._opened = Results(), {}, False
        self.effects = ((), [])
        self.spare.clear()
