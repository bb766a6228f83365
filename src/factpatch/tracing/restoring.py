"""Corrupted runs with something restored: only what the restoration can reach runs again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from factpatch.model.hooks import replacing
from factpatch.model.language_model import LanguageModel
from factpatch.model.packed import PackedRow, Packing, run_packed
from factpatch.tracing.knowledge import KnownPrompt
from factpatch.tracing.recording import Recording, last_probabilities
from factpatch.tracing.restorations import Restoration


@dataclass(frozen=True)
class Run:
    """One restored token in one corrupted run: it and what follows it run again, behind the restored layer."""

    prompt: int
    token: int
    sample: int
    clean: int
    """The place of the token in the clean run."""
    corrupted: range
    """The places of it and of what follows it in the corrupted run."""
    packed: PackedRow
    answer: int


def runs_of(recording: Recording, prompts: Sequence[KnownPrompt]) -> list[Run]:
    """One for each token that corrupting the subject changes and each noise sample."""
    runs = []
    for index, one in enumerate(prompts):
        clean, first = recording.clean[index], one.row.subject.start
        for sample, places in enumerate(recording.corrupted[index]):
            for offset in range(len(places)):
                prefix = (*clean[:first], *places[:offset])
                packed = PackedRow(len(places) - offset, prefix)
                token = first + offset
                runs.append(Run(index, token, sample, clean[token], places[offset:], packed, one.answer))
    return runs


class Group:
    """Runs side by side: what they begin with is recorded, and the same for every restoration."""

    def __init__(self, lm: LanguageModel, recording: Recording, runs: Sequence[Run]) -> None:
        self.lm = lm
        self.recording = recording
        self.packing = Packing([run.packed for run in runs], lm.stream_dtype, lm.device)
        self.answers = [run.answer for run in runs]
        self.clean, self.corrupted, self.tokens = (
            torch.tensor(places, device=lm.device)
            for places in (
                [run.clean for run in runs],
                [run.corrupted[0] for run in runs],
                list(chain.from_iterable(run.corrupted for run in runs)),
            )
        )

    def probabilities(self, restoration: Restoration) -> Tensor:
        """(runs,): the probability of each answer with a restoration at each run's first token, float64, on the CPU."""
        lm, recording, first = self.lm, self.recording, self.packing.first
        hidden = self._recorded("block", restoration.start, self.tokens)
        if restoration.state:
            hidden[first.to(hidden.device)] = self._recorded("block", restoration.start, self.clean)
        places = self.clean if restoration.clean else self.corrupted
        given = [
            (getattr(lm, restoration.site)(layer), self._recorded(restoration.site, layer, places))
            for layer in restoration.layers
            if restoration.site is not None
        ]
        with replacing(given, first):
            last, _ = run_packed(lm, self.packing, recording.pool, hidden=hidden, start=restoration.start)
        return last_probabilities(lm, last, self.packing, self.answers)

    def _recorded(self, site: str, layer: int, places: Tensor) -> Tensor:
        """A copy of some recorded outputs."""
        outputs = self.recording.outputs[site, layer]
        return outputs[places.to(outputs.device)]
