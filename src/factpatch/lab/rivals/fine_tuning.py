"""LocFT-BF at work: one down-projection is fine-tuned, and what changed is kept as the shifts of a patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from factpatch.edited import Edit, EditedModel
from factpatch.facts import Fact, check_batch
from factpatch.lab.rivals.descent import descend, lessons
from factpatch.lab.rivals.learner import Learner
from factpatch.lab.rivals.rival import FineTuning
from factpatch.model.language_model import LanguageModel, check_editable
from factpatch.patch.history import Draft, History
from factpatch.patch.patch import Patch
from factpatch.patch.shift import Dense, LowRank, Shift, decomposed
from factpatch.recipe import Recipe


class FineTuned(EditedModel, Learner):
    """A model with one down-projection that is fine-tuned on one batch of facts after another.

    As of an editor, `patch` is what the model holds, and `undo` and `reset` go back bit for bit.

    Args:
        rival: The settings.
        lm: The model; it is changed in place.
        layers: Its critical layers, ascending.
        seed: Of the order of the facts.

    Raises:
        ValueError: The layer does not exist, or the model is quantized.
    """

    def __init__(self, rival: FineTuning, lm: LanguageModel, layers: Sequence[int], seed: int) -> None:
        self.layer = layers[-1] if rival.layer is None else rival.layer
        lm.check_layers([self.layer], "layer")
        check_editable(lm.model, [self.layer])
        if lm.quantized:
            raise ValueError(f"{rival.name}: {lm.name} is quantized, so no weight of it can be fine-tuned; take lora.")
        self.rival, self.lm, self.recipe = rival, lm, Recipe(seed=seed)
        self.history: History[Edit] = History(lm.weights, lm.work_dtype)

    @property
    def settings(self) -> dict[str, Any]:
        frame = {"frame": asdict(self.lm.frame)} if self.lm.frame.chat else {}
        return {**self.rival.settings, "layer": self.layer, "chat": self.lm.frame.chat, **frame}

    @property
    def num_bytes(self) -> int:
        return self.patch.num_bytes

    def learn(self, facts: Sequence[Fact]) -> None:
        check_batch(facts)
        taught = lessons(self.lm, facts, self.rival.end_token)
        with self.history.open([self.layer], self.rival.name) as draft:
            weight = self.lm.down_projection(self.layer).weight
            assert isinstance(weight, nn.Parameter)  # `check_editable` has seen it
            descend(self.lm, [weight], taught, self.rival, self.recipe.seed)
            # What is kept is the shift, so that the weights are those that its patch writes.
            shifts = {self.layer: self._shift(draft)}
            draft.rewrite(shifts)
            draft.keep(Edit(self.describe(draft.batch(facts, shifts)), {}, {}))

    def _shift(self, draft: Draft[Edit]) -> Shift:
        """What training has changed, (d_value, d_key)."""
        dtype, layer = self.lm.work_dtype, self.layer
        shift: Shift = Dense((draft.weights[layer].to(dtype) - draft.before[layer].to(dtype)).cpu().contiguous())
        if self.rival.rank is None:
            return shift
        left, singular, right = decomposed(shift)
        kept = self.rival.rank
        return LowRank(left[:, :kept] * singular[:kept], right[:kept]).to(dtype)

    def save(self, path: Path) -> None:
        self.edits[-1].patch.save(path)

    def restore(self, paths: Sequence[Path]) -> None:
        with self.history.open([self.layer], self.rival.name) as draft:
            for path in paths:
                patch = Patch.load(path)
                for batch in patch.batches:
                    draft.replay(batch)
                draft.keep(Edit(patch, {}, {}))
