"""Read keys and present values at the subject's last token. The model stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from factpatch.facts import Fact
from factpatch.model.experts import token_rows
from factpatch.model.hooks import captured
from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import in_pieces
from factpatch.model.packed import packed_attention
from factpatch.model.tokens import locate
from factpatch.model.tree import Tree, run_tree, tree_batches
from factpatch.values.contexts import BARE, in_chat, place


@dataclass(frozen=True)
class SubjectRows:
    """The prompts of a batch in every context, cut after the subject's last token: nothing later affects it."""

    rows: list[list[int]]
    """Token ids; the rows of one fact are consecutive, the bare prompt first."""
    contexts: int
    bare_first: bool = True
    """Whether the first context is the bare prompt, which counts for half of a key."""
    whole: list[list[int]] = field(default_factory=list)
    """The same prompts to their ends, where they are cut at subjects."""

    @classmethod
    def of(cls, lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str]) -> SubjectRows:
        """Tokenize the prompts of facts; ValueError for one that is longer than the model reads."""
        texts, ends = [], []
        for fact in facts:
            for context in contexts:
                placed = place(context, fact)
                texts.append(lm.frame.wrap(placed.text))
                ends.append(lm.frame.offset(placed.text) + placed.end)
        chats = [in_chat(lm, text) for text in texts]
        found = locate(lm.tokenizer, texts, ends, lm.frame, chats)
        rows = [ids[: index + 1] for ids, index in found]
        for number, row in enumerate(rows):
            lm.check_length(row, facts[number // len(contexts)].text)
        return cls(rows, len(contexts), contexts[0] == BARE, [ids for ids, _ in found])

    def bare(self) -> list[list[int]]:
        return self.rows[:: self.contexts]


def read_last(lm: LanguageModel, rows: Sequence[Sequence[int]], layer: int, site: str, side: str) -> Tensor:
    """Read the inputs or outputs of a layer's module at the last token of each row: (rows, width), in the work dtype.

    Args:
        rows: Token ids, at least one in each row.
        site: The module's name among the methods of `LanguageModel`, as "block" or "down_projection".
        side: "inputs" or "outputs".
    """
    return read_last_in(lm, rows, [layer], site, side)[layer]


def read_last_in(
    lm: LanguageModel, rows: Sequence[Sequence[int]], layers: Sequence[int], site: str, side: str
) -> dict[int, Tensor]:
    """As `read_last`, of several layers at once."""
    modules = {layer: getattr(lm, site)(layer) for layer in layers}
    texts = [tuple(row) for row in rows]

    def read_batch(batch: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[Tensor]]:
        tree = Tree(batch)
        inputs, outputs = (modules, None) if side == "inputs" else (None, modules)
        with captured(inputs, outputs, stop_after=lm.block(max(layers))) as read:
            run_tree(lm, tree)
        activations = [token_rows(read[layer]) for layer in layers]
        # Copied, so that a row does not keep the whole pass alive.
        return {
            text: [one[tree.places[text][-1]].to(lm.work_dtype, copy=True) for one in activations] for text in batch
        }

    found: dict[tuple[int, ...], list[Tensor]] = {}
    with torch.inference_mode(), lm.quiet(), packed_attention(lm):
        for batch in tree_batches(texts):
            for _, activations in in_pieces(read_batch, batch):
                found.update(activations)
    return {layer: torch.stack([found[text][place] for text in texts]).clone() for place, layer in enumerate(layers)}


def read_keys(lm: LanguageModel, subjects: SubjectRows, layer: int) -> Tensor:
    """Keys of a batch: (key of the bare prompt + mean of the prefixed keys) / 2, at the subject's last token.

    Without the bare prompt, the mean of the prefixed keys.

    They are inputs of the down-projection of `layer`, (n, d_key), in the work dtype.
    """
    keys = read_last(lm, subjects.rows, layer, "down_projection", "inputs")
    keys = keys.view(-1, subjects.contexts, keys.shape[-1])
    if subjects.contexts == 1:
        return keys[:, 0]
    if not subjects.bare_first:
        return keys.mean(dim=1)
    return (keys[:, 0] + keys[:, 1:].mean(dim=1)) / 2


def read_values(lm: LanguageModel, subjects: SubjectRows, layer: int, site: str) -> Tensor:
    """Present values of a batch on the bare prompts, (n, d_value): outputs of `site` of `layer`, in the work dtype."""
    return read_last(lm, subjects.bare(), layer, site, "outputs")
