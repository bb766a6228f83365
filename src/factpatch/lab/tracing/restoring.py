"""Corrupted runs with something restored: only what the restoration can reach is run again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from factpatch.lab.tracing.prompts import TokenizedPrompt
from factpatch.lab.tracing.recording import Recording, answer_probabilities
from factpatch.model.batching import consecutive, head_chunk
from factpatch.model.hooks import captured, only_at, replacing
from factpatch.model.language_model import LanguageModel
from factpatch.model.packed import PackedRow, Packing, run_packed
from factpatch.support.words import suggestion

BUNDLE_TOKENS = 64
"""The most tokens that attention looks at together, unless one run has more: masking more costs more than a call."""


@dataclass(frozen=True)
class Run:
    """One restored token in one corrupted run: it and what follows it run again, above the restored layer."""

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


def bundles_of(recording: Recording, prompts: Sequence[TokenizedPrompt]) -> list[Bundle]:
    """One run for each token that corrupting the subject changes and each noise sample."""
    return [
        bundle
        for index, one in enumerate(prompts)
        for sample in range(len(recording.corrupted[index]))
        for bundle in consecutive(_runs(recording, index, one, sample), lambda run: len(run.corrupted), BUNDLE_TOKENS)
    ]


def _runs(recording: Recording, prompt: int, one: TokenizedPrompt, sample: int) -> Iterator[Run]:
    clean, first = recording.clean[prompt], one.subject.start
    places = recording.corrupted[prompt][sample]
    for offset in range(len(places)):
        prefix = (*clean[:first], *places[:offset])
        token = first + offset
        yield Run(prompt, token, sample, clean[token], places[offset:], prefix, one.answer[0])


def tokens_of(bundle: Bundle) -> int:
    """How many tokens run again."""
    return sum(len(run.corrupted) for run in bundle)


class Group:
    """Bundles that run together: what their runs begin with is recorded, and the same for every restoration."""

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
        """(runs, d_value): the last hidden state of each run."""
        lm, start, layers = self.lm, restoration.start, restoration.layers
        if restoration.state:
            state = self._recorded("block", start, self.clean)
        else:
            # Up to the first restored output everything is as in the corrupted run; after it, all but the restored
            # token is.
            start, layers = layers.start, layers[1:]
            state = self._through_first_block(restoration)
        hidden = self._recorded("block", start, self.tokens)
        hidden[self.packing.first.to(hidden.device)] = state.to(hidden.device)
        # Nothing reads an MLP's output where it is replaced, nor that of the last layer before the last token.
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
        """(runs, d_value): the output of the block of the first restored output, for the restored tokens."""
        lm, start, layer = self.lm, restoration.start, restoration.layers.start
        given = self._given(restoration, range(layer, layer + 1))
        hidden = self._recorded("block", start, self.corrupted)
        block = lm.block(layer)
        # Each of these rows is one token, its first.
        with replacing(given, self.alone.first), captured(outputs={layer: block}, stop_after=block) as found:
            run_packed(lm, self.alone, self.recording.pool, hidden=hidden, start=start)
        return found[layer].reshape(-1, found[layer].shape[-1])

    def _given(self, restoration: Restoration, layers: range) -> list[tuple[nn.Module, Tensor]]:
        """Modules, and the output of each for the restored tokens."""
        site = restoration.site
        if site is None:
            return []
        places = self.clean if restoration.clean else self.corrupted
        return [(getattr(self.lm, site)(layer), self._recorded(site, layer, places)) for layer in layers]

    def _recorded(self, site: str, layer: int, places: Tensor) -> Tensor:
        """A copy of some recorded outputs."""
        outputs = self.recording.outputs[site, layer]
        return outputs[places.to(outputs.device)]


PUBLISHED_WINDOW, PUBLISHED_LAYERS = 10, 48
"""ROME restores the MLPs or the attentions of 10 layers of GPT2-XL, which has 48 (arXiv:2202.05262, section 2.2)."""


@dataclass(frozen=True)
class Restoration:
    """What one run is given at one token, apart from its corrupted subject."""

    start: int
    """The last layer whose output is known beforehand, so that it need not run; -1 if all run."""
    state: bool = False
    """Whether the token's output of layer `start` is the clean one."""
    site: str | None = None
    """The module whose outputs at this token are given: the name of a method of `LanguageModel`."""
    layers: range = range(0)
    """Of which layers."""
    clean: bool = True
    """Whether they are those of the clean run, or those of the corrupted one."""

    def __post_init__(self) -> None:
        if not self.state and not self.layers:
            raise ValueError(f"layers={self.layers!r}: without a state, name the layers whose outputs are given.")


@dataclass(frozen=True)
class Kind:
    """A kind of restoration: of a state, of a module's outputs around a layer, or of a state without a module."""

    about: str
    """What is restored, in words."""
    site: str | None = None
    """The module that it concerns, if any."""
    severed: bool = False
    """Whether a state is restored, and the token's later outputs of the module stay corrupted."""

    def at(self, layer: int, layers: int, window: int) -> Restoration:
        """The restoration at a layer of a model of so many layers."""
        if self.severed:
            return Restoration(layer, state=True, site=self.site, layers=range(layer + 1, layers), clean=False)
        if self.site is None:
            return Restoration(layer, state=True)
        within = window_around(layer, layers, window)
        return Restoration(within.start - 1, site=self.site, layers=within)


def window_around(layer: int, layers: int, window: int) -> range:
    """The layers from ⌊window / 2⌋ below `layer` on, `window` of them, as far as they exist. Source: ROME's code."""
    return range(max(0, layer - window // 2), min(layers, layer + (window + 1) // 2))


def scaled_window(layers: int) -> int:
    """The published window, scaled to a model's depth."""
    return max(1, round(PUBLISHED_WINDOW * layers / PUBLISHED_LAYERS))


KINDS: Mapping[str, Kind] = {
    "states": Kind("hidden state after a layer"),
    "mlp": Kind("mlp outputs around a layer", "mlp"),
    "attention": Kind("attention outputs around a layer", "attention"),
    "severed-mlp": Kind("hidden state, the token's later mlp outputs kept corrupted", "mlp", severed=True),
    "severed-attention": Kind(
        "hidden state, the token's later attention outputs kept corrupted", "attention", severed=True
    ),
}
"""By name. Source: ROME (arXiv:2202.05262), sections 2.1 and 2.2; the last two, its Figure 3."""
PUBLISHED = ("states", "mlp", "attention")
"""Those of the paper's Figure 1."""


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise ValueError unless there are such kinds, at least one, each named once."""
    if not kinds:
        raise ValueError(f"kinds=[]: name at least one of {', '.join(KINDS)}.")
    for index, kind in enumerate(kinds):
        if kind not in KINDS:
            raise ValueError(f"kinds: no such kind as {kind!r}.{suggestion(kind, list(KINDS))}")
        if kind in kinds[:index]:
            raise ValueError(f"kinds: {kind!r} is named twice; name each kind once.")


def check_window(window: int, layers: int) -> None:
    """Raise ValueError unless the model has so many layers to restore at once."""
    if not 1 <= window <= layers:
        raise ValueError(f"window={window}: give a number of layers from 1 to {layers}.")
