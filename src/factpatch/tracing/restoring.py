"""Corrupted runs with something restored: only what the restoration can reach runs again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from factpatch.model.batching import consecutive, head_chunk
from factpatch.model.hooks import captured, only_at, replacing
from factpatch.model.language_model import LanguageModel
from factpatch.model.packed import PackedRow, Packing, run_packed
from factpatch.tracing.knowledge import KnownPrompt
from factpatch.tracing.recording import Recording, answer_probabilities
from factpatch.tracing.restorations import Restoration

BUNDLE_TOKENS = 64
"""The most tokens that attention looks at together, unless one run has more: what it masks costs more than a call."""


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
    prefix: tuple[int, ...]
    """The places of what comes before it."""
    answer: int


Bundle = Sequence[Run]
"""Runs of neighboring tokens of one prompt and sample, whose prefixes are nearly the same."""


def bundles_of(recording: Recording, prompts: Sequence[KnownPrompt]) -> list[Bundle]:
    """One run for each token that corrupting the subject changes and each noise sample."""
    return [
        bundle
        for index, one in enumerate(prompts)
        for sample in range(len(recording.corrupted[index]))
        for bundle in consecutive(_runs(recording, index, one, sample), lambda run: len(run.corrupted), BUNDLE_TOKENS)
    ]


def _runs(recording: Recording, prompt: int, one: KnownPrompt, sample: int) -> Iterator[Run]:
    clean, first = recording.clean[prompt], one.row.subject.start
    places = recording.corrupted[prompt][sample]
    for offset in range(len(places)):
        prefix = (*clean[:first], *places[:offset])
        token = first + offset
        yield Run(prompt, token, sample, clean[token], places[offset:], prefix, one.answer)


def tokens_of(bundle: Bundle) -> int:
    """How many tokens run again."""
    return sum(len(run.corrupted) for run in bundle)


class Group:
    """Bundles side by side: what their runs begin with is recorded, and the same for every restoration."""

    def __init__(self, lm: LanguageModel, recording: Recording, bundles: Sequence[Bundle]) -> None:
        self.lm = lm
        self.recording = recording
        self.runs = list(chain.from_iterable(bundles))
        together = [len(bundle) for bundle in bundles]
        rows = [PackedRow(len(run.corrupted), run.prefix) for run in self.runs]
        self.packing = Packing(rows, lm.stream_dtype, lm.device, together)
        # Of the first block of a window, which the restored tokens pass by themselves.
        alone = [PackedRow(1, run.prefix) for run in self.runs]
        self.alone = Packing(alone, lm.stream_dtype, lm.device, together)
        restored = torch.zeros(self.packing.tokens, dtype=torch.bool, device=lm.device)
        restored[self.packing.first] = True
        self.others = (~restored).nonzero()[:, 0]
        self.clean, self.corrupted, self.tokens = (
            torch.tensor(places, device=lm.device)
            for places in (
                [run.clean for run in self.runs],
                [run.corrupted[0] for run in self.runs],
                list(chain.from_iterable(run.corrupted for run in self.runs)),
            )
        )

    def probabilities(self, restorations: Sequence[Restoration]) -> Tensor:
        """(runs, restorations): the probability of each answer with each restoration at each run's first token.

        In float64, on the CPU.
        """
        # The head is as slow for few states as for a chunk of them.
        some = max(1, head_chunk(self.lm) // len(self.runs))
        pieces = [restorations[first : first + some] for first in range(0, len(restorations), some)]
        return torch.cat([self._probabilities(piece) for piece in pieces], dim=1)

    def _probabilities(self, restorations: Sequence[Restoration]) -> Tensor:
        last = torch.stack([self._last_states(restoration) for restoration in restorations], dim=1)
        answers = torch.tensor([run.answer for run in self.runs]).repeat_interleave(len(restorations))
        return answer_probabilities(self.lm, last.flatten(0, 1), answers).reshape(last.shape[:2])

    def _last_states(self, restoration: Restoration) -> Tensor:
        """(runs, d_value): what the last token of each run ends with."""
        lm, start, layers = self.lm, restoration.start, restoration.layers
        if restoration.state:
            state = self._recorded("block", start, self.clean)
        else:
            # Up to the first restored output everything is as in the corrupted run: behind it, it is so for all tokens
            # but the restored one.
            start, layers = layers.start, layers[1:]
            state = self._through_first_block(restoration)
        hidden = self._recorded("block", start, self.tokens)
        hidden[self.packing.first.to(hidden.device)] = state.to(hidden.device)
        # Nothing reads what an MLP puts out where it is replaced, nor what the last one puts out before the last token.
        needed = dict.fromkeys(layers, self.others) if restoration.site == "mlp" else {}
        if start < lm.num_layers - 1:
            needed[lm.num_layers - 1] = self.packing.last
        # `replacing` comes second: its hooks see the outputs of all tokens again.
        with (
            only_at((lm.mlp(layer), places) for layer, places in needed.items()),
            replacing(self._given(restoration, layers), self.packing.first),
        ):
            found, _ = run_packed(lm, self.packing, self.recording.pool, hidden=hidden, start=start)
        return found[self.packing.last.to(found.device)]

    def _through_first_block(self, restoration: Restoration) -> Tensor:
        """(runs, d_value): what the block of the first restored output puts out for the restored tokens."""
        lm, start, layer = self.lm, restoration.start, restoration.layers.start
        given = self._given(restoration, range(layer, layer + 1))
        hidden = self._recorded("block", start, self.corrupted)
        block = lm.block(layer)
        # Each of these rows is one token, its first.
        with replacing(given, self.alone.first), captured(outputs={layer: block}, stop_after=block) as found:
            run_packed(lm, self.alone, self.recording.pool, hidden=hidden, start=start)
        return found[layer].reshape(-1, found[layer].shape[-1])

    def _given(self, restoration: Restoration, layers: range) -> list[tuple[nn.Module, Tensor]]:
        """Modules, and what each puts out for the restored tokens."""
        site = restoration.site
        if site is None:
            return []
        places = self.clean if restoration.clean else self.corrupted
        return [(getattr(self.lm, site)(layer), self._recorded(site, layer, places)) for layer in layers]

    def _recorded(self, site: str, layer: int, places: Tensor) -> Tensor:
        """A copy of some recorded outputs."""
        outputs = self.recording.outputs[site, layer]
        return outputs[places.to(outputs.device)]
