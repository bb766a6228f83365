"""An edited model: the edits in force, their patch, and undo."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from factpatch.export.card import model_card
from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel, described_config
from factpatch.patch.batch import Batch
from factpatch.patch.history import History
from factpatch.patch.patch import Patch
from factpatch.recipe import Recipe
from factpatch.strategies.memory import Memory, Traces
from factpatch.support.versions import library_versions
from factpatch.values.optimize import TargetValues


@dataclass(frozen=True)
class Edit:
    """One call of `Editor.edit`, as the editor remembers it."""

    patch: Patch
    targets: dict[int, TargetValues]
    """The outcome of the value optimization, by target layer; empty for a batch that was replayed or solved again, and
    for a method that follows gradients."""
    traces: dict[int, Traces]
    """What the solver remembers of the batch, by layer."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage."""
    values: Mapping[int, Tensor] = field(default_factory=dict)
    """The target values that were written toward, (rows, d_value) by target layer; empty for a batch that was replayed,
    and for a method that follows gradients."""
    rows: Mapping[int, tuple[Fact, ...]] = field(default_factory=dict)
    """The fact of each row that `traces` were taken of, by layer."""
    _shortened: dict[int, tuple[tuple[int, ...], Traces]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts that were edited."""
        return tuple(fact for batch in self.batches for fact in batch.facts)

    @property
    def batches(self) -> tuple[Batch, ...]:
        return self.patch.batches

    @property
    def keys(self) -> dict[int, Tensor]:
        """The keys of the facts in every written layer, (n, d_key), which later edits will preserve."""
        return {layer: traces["keys"] for layer, traces in self.traces.items() if "keys" in traces}

    def remembered(self, layer: int, replaced: Collection[str], memory: Memory) -> Traces:
        """The traces in a layer without the facts whose questions, `Fact.key`, a later batch asks again.

        The same object each time, by which a memory recognizes what it has followed already.
        """
        facts = self.rows.get(layer, ())
        rows = tuple(row for row, fact in enumerate(facts) if fact.key not in replaced)
        if len(rows) == len(facts):
            return self.traces[layer]
        if layer not in self._shortened or self._shortened[layer][0] != rows:
            self._shortened[layer] = (rows, memory.without(self.traces[layer], rows))
        return self._shortened[layer][1]


class EditedModel(ABC):
    """A model and the edits in force in it."""

    lm: LanguageModel
    recipe: Recipe
    """What edits it."""
    history: History[Edit]
    """The edits in force, and the weights that hold them."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the next edit depends on apart from the weights and the facts, resolved, as stored in a patch."""

    @property
    def model(self) -> Any:
        return self.lm.model

    @property
    def tokenizer(self) -> Any:
        return self.lm.tokenizer

    @property
    def written_dtype(self) -> torch.dtype:
        """What a shift is rounded to before it is added."""
        return self.history.written_dtype

    @property
    def edits(self) -> list[Edit]:
        """The edits in force: made here and not undone."""
        return list(self.history.entries)

    @property
    def patch(self) -> Patch:
        """The edits in force as one patch: what the model now holds."""
        if not self.edits:
            raise ValueError("nothing has been edited yet; call edit first.")
        if self.history.shown is not None:
            return self.describe(self.history.shown)
        return Patch.join([edit.patch for edit in self.edits])

    def undo(self) -> Patch:
        """Undo the last edit, bit for bit, and return its patch; call it again for the one before.

        Raises:
            ValueError: Nothing is left to undo, or the weights were changed by somebody else since.
            RuntimeError: The earlier edits cannot be written with the same bits; the model is unchanged.
        """
        if not self.edits:
            raise ValueError("nothing to undo: this editor has not edited the model, or everything is undone.")
        undone = self.edits[-1]
        self.history.take_back(len(self.edits) - 1, "undo")
        return undone.patch

    def reset(self) -> None:
        """Undo all edits at once, bit for bit.

        Raises:
            ValueError: The weights were changed by somebody else since the last edit; the model is unchanged.
            RuntimeError: The copies of the unedited weights were altered; the model is unchanged.
        """
        if self.edits:
            self.history.take_back(0, "reset")

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the edited model and its tokenizer to a directory that transformers loads, with a model card if edited.

        Raises:
            FileExistsError: The directory is not empty.
            OSError: It cannot be written; nothing is left behind.
        """
        self.lm.save_pretrained(directory, model_card(self.patch) if self.edits else None)

    def describe(self, batch: Batch) -> Patch:
        """Return a patch of a batch that this model holds."""
        settings = self.settings
        return Patch(
            batches=(batch,),
            method=settings["method"],
            settings=settings,
            config=described_config(self.lm.model, self.lm.shared_expert),
            weight_dtype=self.lm.weight_dtype,
            written_dtype=self.written_dtype,
            versions=library_versions(),
            seed=self.recipe.seed,
        )
