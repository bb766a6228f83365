"""Session: an editor kept in a directory. Every finished batch is a patch file and a line of a journal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from factpatch.edited import Edit
from factpatch.editor import Editor
from factpatch.evaluation.budget import BudgetError, Meter, recorded
from factpatch.evaluation.taken_back import TakenBack, ask_bare
from factpatch.evaluation.verify import exact
from factpatch.facts import Fact, find_facts, latest
from factpatch.journal import JOURNAL, Journal, SessionError, now
from factpatch.model.places import name_of
from factpatch.patch.batch import Batch, last_states
from factpatch.patch.description import BatchDescription
from factpatch.patch.file import PatchFileError, describe
from factpatch.patch.patch import Patch
from factpatch.strategies.memory import Traces
from factpatch.strategies.regularizer import Acts
from factpatch.support.files import atomic_directory, atomic_write, file_digest, plain, write_json
from factpatch.support.words import difference
from factpatch.values.contexts import without_trained
from factpatch.values.views import FIRST_LAYER

Contents = tuple[tuple[Fact, ...], dict[int, str]]
"""The facts of a batch, and by layer the hash of the weights that it left."""


class Session(Journal):
    """A session's directory, as `create` made it: an attached editor edits what is planned, and the result is recorded.

    Raises:
        SessionError: It is not a session, or its files disagree.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._known: dict[str, Contents] = {}  # by the checksum of a patch

    @classmethod
    def create(
        cls,
        path: str | Path,
        editor: Editor,
        batches: Sequence[Sequence[Fact]] = (),
        source: str | None = None,
        outputs: dict[str, Any] | None = None,
    ) -> Session:
        """Begin a session in a new or empty directory, which appears whole or not at all.

        Args:
            editor: One that has not edited anything.
            batches: What to edit first, and `outputs`, as in `plan`.
            source: The model as named on the command line, if that and the recipe can recreate the editor.

        Raises:
            SessionError: The editor has edited.
            FileExistsError: The directory is not empty.
            OSError: It cannot be written.
        """
        if editor.edits:
            raise SessionError("editor: it has edited the model already; a session begins with an unedited model.")
        record = {
            "format": cls.begins,
            "created": now(),
            "model": editor.lm.name,
            "method": editor.method.name,
            "joins": editor.method.regularizer.acts is not Acts.SESSION,
            "settings": _settings(editor),
            "weights": _hashes(editor),
            **({} if source is None else {"source": source, "recipe": editor.recipe.to_dict()}),
        }
        with atomic_directory(path) as draft:
            for folder in ("facts", "patches"):
                (draft / folder).mkdir()
            write_json(draft / cls.record_name, record)
            (draft / JOURNAL).touch()
            if batches:
                cls(draft).plan(batches, outputs)
        return cls(path)

    def patches(self) -> Iterator[Patch]:
        """The patches of the batches in force; SessionError if one differs from the journal's entry."""
        self.check_patches()
        return (self._load(number) for number in range(1, len(self.finished) + 1))

    def patch(self) -> Patch:
        """All batches in force as one patch.

        Raises:
            SessionError: None is in force, or the regularizer acts on the session, which requires the model.
        """
        if not self.finished:
            raise SessionError(f"{self.path}: no batch is in force, so there is no patch.")
        if not self.record["joins"]:
            raise SessionError(
                f"{self.path}: {self.record['method']} conditions the sum of all batches, which requires the model. "
                f"factpatch edit --resume {self.path} --out PATCH writes that patch."
            )
        return Patch.join(list(self.patches()))

    def attach(self, editor: Editor) -> None:
        """Bring an unedited editor to the state of the session. If that fails, the editor stays unedited.

        Raises:
            SessionError: The editor has edited, or its model or its settings are not the session's.
            RuntimeError: This machine writes other bits than the one that edited.
        """
        if editor.edits:
            raise SessionError("editor: it has edited the model already; attach an editor with an unedited model.")
        mine = self.record["weights"]
        # Earlier versions recorded the critical layers alone.
        its = {layer: digest for layer, digest in _hashes(editor).items() if layer in mine or layer != str(FIRST_LAYER)}
        if mine != its:
            layers = sorted(mine.keys() ^ its.keys()) or [layer for layer in mine if its[layer] != mine[layer]]
            raise SessionError(
                f"{self.path}: the session is of {self.record['model']}; the given model, {editor.lm.name}, has "
                f"other critical layers or other weights there: {', '.join(layers)}. Load the model that the session "
                "began with."
            )
        editor.adopt_contexts(self.record["settings"]["contexts"])
        differing = difference(self.record["settings"], _settings(editor))
        if differing is not None:
            raise SessionError(
                f"{self.path}: the session was begun with other settings: {differing}. Session.settled is the recipe "
                "with those that it began with."
            )
        if self.finished:  # as one patch, so that all is written or nothing
            editor.replay(Patch.join(list(self.patches())), self._traces())

    def edit(self, editor: Editor, ask: bool = True, meter: Meter | None = None) -> Patch:
        """Edit the next pending batch and record it. Call it inside `locked`, with an editor that is attached.

        If the result cannot be written, the edit is undone.

        Args:
            ask: Whether to check afterwards which facts the model holds.
            meter: Measures what the batch costs; made with the unedited model.

        Raises:
            IndexError: Nothing is pending.
            BudgetError: The batch exceeds the meter's budget. The edit is undone to the bit, its facts stay pending,
                and the journal records it.
            SessionError: The editor does not hold the batches in force; the session is as it was.
            OSError: The directory cannot be written; the session is as it was.
        """
        facts = self.pending[0]
        self._check_attached(editor)
        patch = editor.edit(facts)
        try:
            spent = {} if meter is None else {"spent": recorded(meter.check(editor.lm))}
            held = exact(editor.lm, facts if ask else ())
            self._append({"event": "batch", **self._save(editor, editor.edits[-1], 1, held), **spent})
        except BudgetError as error:
            editor.undo()
            self._append({"event": "stop", "facts": len(facts), "spent": recorded(error.spent), "reason": str(error)})
            raise
        except BaseException:
            editor.undo()
            raise
        return patch

    def mend(
        self,
        editor: Editor,
        rounds: int,
        ask: bool = True,
        meter: Meter | None = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Edit what is pending, and then again the facts that are lost, until none is or so many rounds are done.

        Each round is planned with the number of those left, `outputs["mend"]`, for the process that resumes it. Call it
        inside `locked`, with an editor that is attached. See `Editor.mend`.

        Args:
            ask: As in `edit`, like `meter`.
            outputs: What else to plan a round with; by default what the last plan has.

        Raises:
            As `edit`; batches of the round may then be pending.
        """
        self._edit_waiting(editor, ask, meter)
        for left, lost in editor.rounds(rounds):
            self.plan(lost, {**(self.outputs if outputs is None else outputs), "mend": left})
            self._edit_waiting(editor, ask, meter)

    def _edit_waiting(self, editor: Editor, ask: bool, meter: Meter | None) -> None:
        while self.waiting:
            self.edit(editor, ask, meter)

    def undo_fact(self, editor: Editor, *which: Fact | str, ask: bool = True) -> TakenBack:
        """Take single facts back, as `Editor.undo_fact` does. Call it inside `locked`, with an editor that is attached.

        The batches that were solved again have new patches; the old ones stay in the directory, no longer in force.
        Pending batches stay pending. If anything fails, editor and session are as they were.

        Args:
            which: Facts, ids, or places; see `factpatch.facts.find_facts`.
            ask: Whether to ask the unedited model and the new one about these facts, and about the others before and
                after. Whatever the answers are, the facts are taken back; they are returned.

        Raises:
            ValueError: A fact is not found.
            SessionError: The editor does not hold the batches in force, or the target values of one that is to be
                solved again are not kept: an earlier version edited it.
            OSError: The directory cannot be written.
        """
        self._check_attached(editor)
        before = [edit.facts for edit in editor.edits]
        gone = find_facts(before, which)
        first = gone[0][0]
        left = [[fact for j, fact in enumerate(facts) if (i, j) not in gone] for i, facts in enumerate(before)]
        kept = [index for index in range(first, len(before)) if left[index] and editor.method.target.has_values]
        values = {index: self._values(index) for index in kept}
        asked = [(before[batch][place],) for batch, place in gone] if ask else []
        lists = (latest(asked)[0], latest(left if ask else [])[0])
        taken, others = (without_trained(facts, editor.contexts) for facts in lists)
        with editor.history.set_aside():
            unedited = ask_bare(editor.lm, taken)
        held = ask_bare(editor.lm, others)
        with editor.history.attempt():
            marks: list[list[bool]] = []  # right after each batch
            editor.undo_places(gone, values, lambda edit: marks.append(exact(editor.lm, edit.facts if ask else ())))
            again = editor.edits[first:]
            made = [self._save(editor, edit, number, marks[number - 1]) for number, edit in enumerate(again, start=1)]
            found = TakenBack(len(again), ask_bare(editor.lm, taken, unedited), ask_bare(editor.lm, others, held))
            places = [[batch + 1, place + 1] for batch, place in gone]
            facts = len({before[batch][place] for batch, place in gone})
            self._append({"event": "without", "gone": places, "facts": facts, "to": first, "batches": made})
        return found

    def _check_attached(self, editor: Editor) -> None:
        """Raise SessionError unless the editor holds the batches in force: as many, of these facts, with these bits.

        An interruption right after a line was written takes the editor back, and not the line.
        """
        self.check_current()
        edits = editor.edits
        if len(edits) != len(self.finished):
            raise SessionError(
                f"editor: it holds {len(edits)} batches and the session {len(self.finished)}; attach a new editor to "
                "the session first."
            )
        for number, edit in enumerate(edits, start=1):
            facts, left = self._contents(number)
            mine = last_states(edit.batches)
            if facts != edit.facts or any(mine.get(layer) != digest for layer, digest in left.items()):
                what = "other facts" if facts != edit.facts else "other weights"
                raise SessionError(
                    f"editor: its batch {number} has {what} than that of the session; attach a new editor to the "
                    "session first."
                )

    def _contents(self, number: int) -> Contents:
        """The facts of a batch in force, counted from 1, and the hashes of the weights that it left, if recorded."""
        batch = self.finished[number - 1]
        if batch.sha256 not in self._known:
            with self.advised(number):
                self._know(batch.sha256, describe(self.path / batch.patch).batches)
        return self._known[batch.sha256]

    def _know(self, sha256: str, batches: Sequence[Batch | BatchDescription]) -> None:
        after = {layer: digest for batch in batches for layer, digest in batch.after.items()}
        self._known[sha256] = (tuple(fact for batch in batches for fact in batch.facts), after)

    def _save(self, editor: Editor, edit: Edit, further: int, held: Sequence[bool]) -> dict[str, Any]:
        """Save a batch under the next free number but `further` - 1; return what the journal says of it."""
        number = f"{self._files['patches'] + further:04d}"
        name, facts = f"patches/{number}.safetensors", edit.facts
        self.check_links(self.path / name)
        edit.patch.save(self.path / name)
        sha256 = describe(self.path / name).sha256
        self._know(sha256, edit.batches)
        return {
            "patch": name,
            "sha256": sha256,
            "facts": len(facts),
            "exact": list(held),
            "seconds": {stage: round(took, 3) for stage, took in edit.seconds.items()},
            **self._save_tensors("targets", number, {str(layer): value for layer, value in edit.values.items()}),
            **self._save_traces(editor, edit, number),
        }

    def _load(self, number: int) -> Patch:
        batch = self.finished[number - 1]
        with self.advised(number):
            patch = Patch.load(self.path / batch.patch)
        self._know(batch.sha256, patch.batches)
        return patch

    def _save_traces(self, editor: Editor, edit: Edit, number: str) -> dict[str, str]:
        """Save what the solver remembers of a batch, unless it can be read again; return the event's fields."""
        if editor.rereads(edit.traces):
            return {}
        named = {f"{layer}.{name}": one for layer, traces in edit.traces.items() for name, one in traces.items()}
        return self._save_tensors("traces", number, named)

    def _save_tensors(self, kind: str, number: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Save a batch's tensors, if any, in the folder of their kind; return the event's fields that name the file."""
        if not tensors:
            return {}
        folder = self.path / kind
        folder.mkdir(exist_ok=True)
        file = folder / f"{number}.safetensors"
        self.check_links(file)
        plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        atomic_write(file, lambda draft: save_file(plain, draft))
        return {kind: f"{kind}/{file.name}", f"{kind}_sha256": file_digest(file)}

    def _read_tensors(self, kind: str, number: int) -> dict[str, Tensor]:
        """The tensors of a batch in force, counted from 1."""
        batch = self.finished[number - 1]
        file = self.path / str(getattr(batch, kind))
        self.check_links(file)
        with self.advised(number):
            if not file.is_file() or file_digest(file) != getattr(batch, f"{kind}_sha256"):
                raise PatchFileError(f"{file}: the {kind} of batch {number} are missing or were altered.")
        tensors: dict[str, Tensor] = load_file(file)
        return tensors

    def _values(self, index: int) -> dict[int, Tensor]:
        """The target values of a batch in force, counted from 0."""
        if self.finished[index].targets is None:
            raise SessionError(
                f"{self.path}: an earlier version of factpatch edited batch {index + 1}, without its target values, so "
                f"single facts cannot be taken back from it. Undo it and edit its other facts again: factpatch undo "
                f"{self.path} --to {index}"
            )
        return {int(layer): values for layer, values in self._read_tensors("targets", index + 1).items()}

    def _traces(self) -> list[dict[int, Traces]] | None:
        """What the solver remembered of each batch in force; None if not saved."""
        if any(batch.traces is None for batch in self.finished):
            return None
        found: list[dict[int, Traces]] = []
        for number in range(1, len(self.finished) + 1):
            traces: dict[int, dict[str, Tensor]] = {}
            for key, tensor in self._read_tensors("traces", number).items():
                layer, _, name = key.partition(".")
                traces.setdefault(int(layer), {})[name] = tensor
            found.append(dict(traces))
        return found


def load_patch(path: str | Path) -> Patch:
    """A patch from its file or from the directory of a session; PatchFileError or SessionError if there is none."""
    return Session(path).patch() if Path(path).is_dir() else Patch.load(path)


def _hashes(editor: Editor) -> dict[str, str]:
    places = sorted({*editor.critical_layers, *editor.edited_places})
    return {name_of(place): editor.lm.weight_hash(place) for place in places}


def _settings(editor: Editor) -> dict[str, Any]:
    """What an editor's next batch depends on, as read back from `session.json`."""
    editor.prepare()
    settings = {**editor.settings, "seed": editor.recipe.seed, "written_dtype": str(editor.written_dtype)}
    return {name: plain(value) for name, value in settings.items()}
