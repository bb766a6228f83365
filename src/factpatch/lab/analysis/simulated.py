"""Simulated editing: what a model would answer if the values of facts were different. No weight is written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import in_pieces
from factpatch.model.packed import packed_attention
from factpatch.strategies.target import Target
from factpatch.values.budget import tokens_to_freeze
from factpatch.values.contexts import BARE
from factpatch.values.frozen import freeze
from factpatch.values.micro_batch import FrozenRows, Losses
from factpatch.values.rows import optimization_rows

# Suffix tokens that are run together: few enough that the head's table, (read positions, vocabulary), stays small.
_TOKENS = 1024


def simulated_probabilities(
    lm: LanguageModel, facts: Sequence[Fact], layer: int, target: Target, shifts: Sequence[Tensor]
) -> list[Tensor]:
    """The probability of each fact's whole new object after the bare prompt, with its value shifted.

    Args:
        layer: The layer at which the output of the target's site is shifted at the subject's last token.
        shifts: Each (n, d_value).

    Returns:
        For each of the shifts (n,) probabilities in [0, 1], on the CPU.

    Raises:
        ValueError: A subject disappears in tokenization, or a target reaches back to the subject.
        OutOfMemoryError: Memory does not suffice for a single row.
    """
    rows = [row for row in optimization_rows(lm, facts, (BARE,)) if row.targets]
    tokens = torch.tensor([len(row.targets) for row in rows])
    sites = [getattr(lm, target.site)(layer)]
    start = layer - 1 if target.inside else layer
    with torch.inference_mode(), lm.quiet(), packed_attention(lm):
        size = min(_TOKENS, tokens_to_freeze(lm, rows))
        frozen = freeze(lm, rows, start, size)
        found = []
        for shift in shifts:
            # All facts' shifts: rows refer to facts by their index in the batch.
            delta = shift.to(lm.work_dtype)[:, None]

            def losses(group: FrozenRows, delta: Tensor = delta) -> Losses:
                return group.losses(lm, sites, delta.to(group.fact.device), target)

            nll = torch.zeros(len(facts), dtype=torch.float64)
            for whole in frozen.micro_batches(size):
                for _, part in in_pieces(losses, whole, FrozenRows.halves, what="text of a fact"):
                    nll += part.nll.to("cpu", torch.float64)
            found.append(torch.exp(-nll * tokens))
    return found
