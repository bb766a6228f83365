"""Causal tracing: how much of a fact comes back when one state of a corrupted run is restored.

Source: ROME (arXiv:2202.05262), section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factpatch.lab.tracing.noise import Noise
from factpatch.lab.tracing.prompts import Prompt, TokenizedPrompt
from factpatch.lab.tracing.recording import record
from factpatch.lab.tracing.restoring import (
    KINDS,
    PUBLISHED,
    Bundle,
    Group,
    Restoration,
    Run,
    bundles_of,
    check_kinds,
    check_window,
    scaled_window,
    tokens_of,
)
from factpatch.model.batching import batches, consecutive
from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import free_memory, in_pieces
from factpatch.model.packed import packed_attention
from factpatch.values.budget import MOST_TOKENS, MOST_TOKENS_ELSEWHERE, SHARE


@dataclass(frozen=True)
class Trace:
    """The result of tracing one prompt. Probabilities are those of the answer's first token."""

    prompt: Prompt
    index: int
    """Its place among all that were asked."""
    tokens: tuple[str, ...]
    """As text."""
    subject: range
    """The indices of the subject's tokens."""
    answer: str
    """The answer's first token, as text."""
    clean: float
    """Its probability P[o]."""
    corrupted: float
    """P*[o], with the subject corrupted: mean over the noise samples."""
    restored: dict[str, Tensor]
    """By kind (tokens, layers), float64: P*[o] with the restoration at this token and layer, likewise."""

    @property
    def total_effect(self) -> float:
        """TE = P[o] − P*[o]."""
        return self.clean - self.corrupted

    def indirect_effect(self, kind: str) -> Tensor:
        """IE = P*, restored[o] − P*[o], (tokens, layers)."""
        return self.restored[kind] - self.corrupted


def trace(
    lm: LanguageModel,
    prompts: Sequence[TokenizedPrompt],
    noise: Noise,
    kinds: Sequence[str] = PUBLISHED,
    window: int | None = None,
    progress: Callable[[int], None] = lambda restored: None,
) -> Iterator[Trace]:
    """Trace prompts one batch after another. Apart from rounding, a trace does not depend on its company.

    Args:
        lm: The model; it is left as it was, also between two traces.
        prompts: What it knows.
        noise: What its subjects are corrupted with.
        kinds: What is restored; see `KINDS`.
        window: How many layers of MLPs or attentions are restored at once; by default `scaled_window`.
        progress: Called with the number of positions that are done, each in every layer; `positions` counts them all.

    Returns:
        The traces, in order, as they come.

    Raises:
        ValueError: There is no such kind, the window is out of range, the table of architectures does not know the
            modules of a kind, or an output of the model is not finite.
        OutOfMemoryError: Memory does not suffice for a single prompt.
    """
    check_kinds(kinds)
    window = scaled_window(lm.num_layers) if window is None else window
    check_window(window, lm.num_layers)
    _check_sites(lm, kinds)
    steps = [KINDS[kind].at(layer, lm.num_layers, window) for kind in kinds for layer in range(lm.num_layers)]

    def trace_batch(batch: Sequence[TokenizedPrompt]) -> list[Trace]:
        with torch.inference_mode(), lm.quiet(), packed_attention(lm):
            return _trace_batch(lm, batch, noise, kinds, steps, progress)

    def each() -> Iterator[Trace]:
        for batch in _batches(lm, prompts, noise, len(_sites(kinds))):
            for _, traces in in_pieces(trace_batch, batch, what="fact"):
                yield from traces

    return each()


def positions(prompts: Sequence[TokenizedPrompt]) -> int:
    """The number of tokens at which something is restored: those that corrupting the subjects changes."""
    return sum(len(one.reached) for one in prompts)


def _trace_batch(
    lm: LanguageModel,
    prompts: Sequence[TokenizedPrompt],
    noise: Noise,
    kinds: Sequence[str],
    steps: Sequence[Restoration],
    progress: Callable[[int], None],
) -> list[Trace]:
    """Trace some prompts together; `steps` are the restorations of all layers, one kind after another."""
    recording = record(lm, prompts, noise, _sites(kinds))
    bundles = bundles_of(recording, prompts)
    # What restores nothing changes nothing: before the subject the clean and the corrupted run are the same.
    restored = [
        corrupted.repeat(len(one.ids), len(steps), 1)
        for one, corrupted in zip(prompts, recording.corrupted_probability, strict=True)
    ]

    def restore(piece: Sequence[Bundle]) -> tuple[Sequence[Run], Tensor]:
        group = Group(lm, recording, piece)
        return group.runs, group.probabilities(steps)

    most = MOST_TOKENS.get(lm.device.type, MOST_TOKENS_ELSEWHERE)
    done = 0
    for members in batches([tokens_of(bundle) for bundle in bundles], most):
        for _, (runs, found) in in_pieces(restore, [bundles[index] for index in members], what="fact"):
            for run, probabilities in zip(runs, found, strict=True):
                restored[run.prompt][run.token, :, run.sample] = probabilities
            before, done = done, done + len(runs)
            progress(done // noise.samples - before // noise.samples)
    for one, table in zip(prompts, restored, strict=True):
        if not bool(table.isfinite().all()):
            raise ValueError(
                f"{lm.name} gives probabilities that are not finite after {one.prompt.text!r} with its subject "
                f"corrupted; load it in another dtype than {lm.dtype}, or lower the noise."
            )
    return [
        Trace(
            one.prompt,
            one.index,
            tuple(lm.tokenizer.decode([token]) for token in one.ids),
            one.subject,
            lm.tokenizer.decode(one.answer),
            recording.probability[index],
            float(recording.corrupted_probability[index].mean()),
            dict(zip(kinds, torch.split(restored[index].mean(dim=-1), lm.num_layers, dim=-1), strict=True)),
        )
        for index, one in enumerate(prompts)
    ]


def _batches(
    lm: LanguageModel, prompts: Sequence[TokenizedPrompt], noise: Noise, sites: int
) -> Iterator[Sequence[TokenizedPrompt]]:
    """Neighboring prompts, as many as run efficiently together or fit into half of the free memory."""
    # Inputs and outputs of the blocks, keys, values, and the outputs of further modules; twice while they are joined.
    per_token = 2 * lm.num_layers * lm.d_value * (3 + sites) * lm.stream_dtype.itemsize
    room = min(MOST_TOKENS.get(lm.device.type, MOST_TOKENS_ELSEWHERE), int(SHARE * free_memory(lm.device) / per_token))
    return consecutive(prompts, lambda one: noise.samples * len(one.reached), room)


def _sites(kinds: Sequence[str]) -> list[str]:
    """The modules that some kinds need, each once."""
    return list(dict.fromkeys(site for kind in kinds if (site := KINDS[kind].site) is not None))


def _check_sites(lm: LanguageModel, kinds: Sequence[str]) -> None:
    # Every restoration leaves out what nothing reads of the last MLP.
    needed = ["mlp"]
    for site in dict.fromkeys([*needed, *_sites(kinds)]):
        try:
            for layer in range(lm.num_layers):
                getattr(lm, site)(layer)
        except AttributeError as error:
            needing = ", ".join(kind for kind in kinds if KINDS[kind].site == site)
            otherwise = "" if site in needed else f", or leave out the kinds that need it: {needing}"
            raise ValueError(
                f"model_type={lm.architecture.model_type!r}: its row in the table of architectures has {site}="
                f"{getattr(lm.architecture, site)!r}, and a block of {lm.name} has no such module ({error}). Correct "
                f"the row with factpatch.register_architecture{otherwise}."
            ) from None
