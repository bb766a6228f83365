"""Session: an editor kept in a directory. Every finished batch is a patch file and a line of a journal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from factpatch.editor import Editor
from factpatch.evaluation.verify import read_facts
from factpatch.facts import Fact
from factpatch.journal import JOURNAL, Journal, SessionError, now
from factpatch.patch.file import PatchFileError, describe
from factpatch.patch.patch import Patch
from factpatch.strategies.memory import Traces
from factpatch.strategies.regularizer import Acts
from factpatch.support.files import atomic_directory, atomic_write, file_digest, plain, write_json
from factpatch.support.words import difference
from factpatch.values.views import FIRST_LAYER


class Session(Journal):
    """A session's directory, as `create` made it: an attached editor edits what is planned, and the result is recorded.

    Raises:
        SessionError: It is not a session, or its files disagree.
    """

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
            "format": cls.format,
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
        differing = difference(self.record["settings"], _settings(editor))
        if differing is not None:
            raise SessionError(
                f"{self.path}: the session was begun with other settings: {differing}. Session.settled is the recipe "
                "with those that it began with."
            )
        if self.finished:  # as one patch, so that all is written or nothing
            editor.replay(Patch.join(list(self.patches())), self._traces())

    def edit(self, editor: Editor, ask: bool = True) -> Patch:
        """Edit the next pending batch and record it. Call it inside `locked`, with an editor that is attached.

        If the result cannot be written, the edit is undone.

        Args:
            ask: Whether to check afterwards which facts the model holds.

        Raises:
            IndexError: Nothing is pending.
            SessionError: The editor does not hold the batches in force; the session is as it was.
            OSError: The directory cannot be written; the session is as it was.
        """
        facts = self.pending[0]
        self.check_current()
        if len(editor.edits) != len(self.finished):
            raise SessionError(
                f"editor: it holds {len(editor.edits)} batches and the session {len(self.finished)}; attach a new "
                "editor to the session first."
            )
        patch = editor.edit(facts)
        try:
            number = f"{self._files['patches'] + 1:04d}"
            name = f"patches/{number}.safetensors"
            self.check_links(self.path / name)
            patch.save(self.path / name)
            bare = [replace(fact, paraphrases=(), neighbors=()) for fact in facts] if ask else []
            self._append(
                {
                    "event": "batch",
                    "patch": name,
                    "sha256": describe(self.path / name).sha256,
                    "facts": len(facts),
                    "exact": [reading.exact for reading in read_facts(editor.lm, bare, answers=False)],
                    "seconds": {stage: round(took, 3) for stage, took in editor.edits[-1].seconds.items()},
                    **self._save_traces(editor, number),
                }
            )
        except BaseException:
            editor.undo()
            raise
        return patch

    def _load(self, number: int) -> Patch:
        with self.advised(number):
            return Patch.load(self.path / self.finished[number - 1].patch)

    def _save_traces(self, editor: Editor, number: str) -> dict[str, str]:
        """Save what the solver remembers of the last batch, unless it can be read again; return the event's field."""
        kept = editor.edits[-1].traces
        if editor.rereads(kept):
            return {}
        folder = self.path / "traces"
        folder.mkdir(exist_ok=True)
        tensors = {
            f"{layer}.{name}": tensor.cpu().contiguous()
            for layer, traces in kept.items()
            for name, tensor in traces.items()
        }
        file = folder / f"{number}.safetensors"
        self.check_links(file)
        atomic_write(file, lambda draft: save_file(tensors, draft))
        return {"traces": f"traces/{file.name}", "traces_sha256": file_digest(file)}

    def _traces(self) -> list[dict[int, Traces]] | None:
        """What the solver remembered of each batch in force; None if not saved."""
        if any(batch.traces is None for batch in self.finished):
            return None
        found: list[dict[int, Traces]] = []
        for number, batch in enumerate(self.finished, start=1):
            file = self.path / str(batch.traces)
            self.check_links(file)
            with self.advised(number):
                if not file.is_file() or file_digest(file) != batch.traces_sha256:
                    raise PatchFileError(f"{file}: the traces of batch {number} are missing or were altered.")
            traces: dict[int, dict[str, Tensor]] = {}
            for key, tensor in load_file(file).items():
                layer, _, name = key.partition(".")
                traces.setdefault(int(layer), {})[name] = tensor
            found.append(dict(traces))
        return found


def load_patch(path: str | Path) -> Patch:
    """A patch from its file or from the directory of a session; PatchFileError or SessionError if there is none."""
    return Session(path).patch() if Path(path).is_dir() else Patch.load(path)


def _hashes(editor: Editor) -> dict[str, str]:
    layers = sorted({*editor.critical_layers, *editor.edited_layers})
    return {str(layer): editor.lm.weight_hash(layer) for layer in layers}


def _settings(editor: Editor) -> dict[str, Any]:
    """What an editor's next batch depends on, as read back from `session.json`."""
    editor.prepare()
    settings = {**editor.settings, "seed": editor.recipe.seed, "written_dtype": str(editor.written_dtype)}
    return {name: plain(value) for name, value in settings.items()}
