"""Read keys and present values at the subject's last token. The model stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factpatch.facts import Fact
from factpatch.model.batching import batches, padded
from factpatch.model.hooks import captured
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import locate
from factpatch.values.contexts import fill


@dataclass(frozen=True)
class SubjectRows:
    """The prompts of a batch in every context, cut behind the subject's last token: nothing later reaches it."""

    rows: list[list[int]]
    """Token ids; the rows of one fact are consecutive, the bare prompt first."""
    contexts: int

    @classmethod
    def of(cls, lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str]) -> SubjectRows:
        texts, ends = [], []
        for fact in facts:
            for context in contexts:
                filled = fill(context, fact.text)
                texts.append(lm.frame.wrap(filled))
                ends.append(lm.frame.offset(filled) + context.index("{}") + fact.subject_end)
        located = locate(lm.tokenizer, texts, ends, lm.frame)
        return cls([ids[: index + 1] for ids, index in located], len(contexts))

    def bare(self) -> list[list[int]]:
        return self.rows[:: self.contexts]


def _read_last(lm: LanguageModel, rows: Sequence[Sequence[int]], layer: int, site: str, side: str) -> Tensor:
    """The input or output of a module of `layer` at the last token of each row, (rows, width), in the work dtype."""
    module = getattr(lm, site)(layer)
    out: list[Tensor | None] = [None] * len(rows)
    with torch.inference_mode(), lm.quiet():
        for group in batches([len(row) for row in rows]):
            ids, mask = padded([rows[row] for row in group], device=lm.device)
            wanted = {side: {0: module}}
            with captured(**wanted, stop_after=lm.block(layer)) as found:
                lm.body(input_ids=ids, attention_mask=mask, use_cache=False)
            width = found[0].shape[-1]
            # OPT flattens rows and tokens before its MLP.
            activation = found[0].reshape(len(group), -1, width)
            last = mask.sum(dim=1).to(activation.device) - 1
            picked = activation[torch.arange(len(group), device=activation.device), last].to(lm.work_dtype)
            for row, vector in zip(group, picked, strict=True):
                out[row] = vector
    return torch.stack([vector for vector in out if vector is not None]).clone()


def read_keys(lm: LanguageModel, subjects: SubjectRows, layer: int) -> Tensor:
    """Keys of a batch: (key of the bare prompt + mean of the prefixed keys) / 2, at the subject's last token.

    Returns:
        (n, d_key), inputs of the down-projection of `layer`, in the work dtype.
    """
    keys = _read_last(lm, subjects.rows, layer, "down_projection", "inputs")
    keys = keys.view(-1, subjects.contexts, keys.shape[-1])
    if subjects.contexts == 1:
        return keys[:, 0]
    return (keys[:, 0] + keys[:, 1:].mean(dim=1)) / 2


def read_values(lm: LanguageModel, subjects: SubjectRows, layer: int, site: str) -> Tensor:
    """Present values of a batch on the bare prompts, (n, d_value): outputs of `site` of `layer`, in the work dtype."""
    return _read_last(lm, subjects.bare(), layer, site, "outputs")
