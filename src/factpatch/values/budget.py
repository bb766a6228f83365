"""How many tokens a micro-batch of the value optimization may hold: as many as pay and fit into the free memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import free_memory
from factpatch.values.frozen import Frozen
from factpatch.values.micro_batch import FrozenRows
from factpatch.values.rows import Row, micro_batches

# The most tokens of a micro-batch, by the kind of device; more do not make the matrix products any faster. Measured on
# a CPU; elsewhere generously above the number at which reading the weights takes no time.
MOST_TOKENS = {"cpu": 1024}
MOST_TOKENS_ELSEWHERE = 8192
LEAST_TOKENS = 16
# The most suffix tokens to run together when nothing is kept for a backward pass, and how many activations as wide as
# an MLP such a token has at a time.
MOST_TOKENS_TO_FREEZE = 8192
ACTIVATIONS = 4
# The share of the free memory for what a micro-batch keeps for its backward pass. The rest is for short-lived tensors,
# gaps between allocations and other processes.
SHARE = 0.5
# More activations as wide as an MLP and the hidden state than a block keeps of a token; SmolLM2-135M keeps 3.3. What
# fits even so is not measured, which takes as long as an evaluation of a few facts.
GENEROUS = 12
# Tables (reads, vocabulary) in the work dtype that are alive at once while losses and their gradient are computed.
TABLES = 6


def tokens_to_freeze(lm: LanguageModel, rows: Sequence[Row]) -> int:
    """The largest number of suffix tokens to run together without a backward pass."""
    per_token = ACTIVATIONS * (lm.d_key + lm.d_value) * lm.work_dtype.itemsize
    room = SHARE * free_memory(lm.device) / per_token
    tokens = MOST_TOKENS_TO_FREEZE
    while tokens > LEAST_TOKENS and any(
        sum(len(row.ids) for row in batch) > room for batch in micro_batches(rows, tokens)
    ):
        tokens //= 2
    return tokens


def tokens_that_fit(lm: LanguageModel, frozen: Frozen, sites: Sequence[nn.Module], delta: Tensor) -> int:
    """The largest number of suffix tokens in a micro-batch: the most that pay, halved until they fit.

    Halving makes the outcome insensitive to the exact amount of free memory: with plenty it is always the most that
    pay, so that the same command groups the same rows and gives the same bits.

    Args:
        delta: (facts, sites, d_value), on the device where it will be.
    """
    tokens = MOST_TOKENS.get(delta.device.type, MOST_TOKENS_ELSEWHERE)
    if delta.device.type == "cpu" and _surely_fits(lm, frozen, tokens):
        return tokens
    per_token, head = _kept_per_token(lm, frozen, sites, delta)
    free = _free({*per_token, head})
    while tokens > LEAST_TOKENS and not _fits(lm, frozen, tokens, per_token, head, free):
        tokens //= 2
    return tokens


def _surely_fits(lm: LanguageModel, frozen: Frozen, tokens: int) -> bool:
    """Whether micro-batches fit that keep more of each token than any model does."""
    per_token = GENEROUS * lm.num_layers * (lm.d_key + lm.d_value) * lm.work_dtype.itemsize
    return _fits(lm, frozen, tokens, {lm.device: per_token}, lm.device, _free({lm.device}))


def _free(devices: Iterable[torch.device]) -> dict[torch.device, float]:
    """The bytes that micro-batches may take of each device."""
    return {device: SHARE * free_memory(device) for device in devices}


def _fits(
    lm: LanguageModel,
    frozen: Frozen,
    tokens: int,
    per_token: Mapping[torch.device, float],
    head: torch.device,
    free: Mapping[torch.device, float],
) -> bool:
    """Whether micro-batches of so many tokens fit that keep so many bytes of each, and tables of what is read."""
    per_read = TABLES * lm.embedded_tokens * lm.work_dtype.itemsize
    for batch in micro_batches(frozen.rows, tokens):
        needed = {device: kept * sum(row.suffix for row in batch) for device, kept in per_token.items()}
        needed[head] = needed.get(head, 0.0) + per_read * sum(max(1, len(row.targets)) for row in batch)
        if any(needed[device] > free[device] for device in needed):
            return False
    return True


def _kept_per_token(
    lm: LanguageModel, frozen: Frozen, sites: Sequence[nn.Module], delta: Tensor
) -> tuple[dict[torch.device, float], torch.device]:
    """The bytes that a token keeps on each device for the backward pass, and the device of the last hidden states.

    Measured on a row of median length, as the difference between that row twice and once, which cancels what does not
    grow with the rows, such as weights.
    """
    rows = sorted((row for row in frozen.rows if row.targets), key=lambda row: row.suffix)
    row = rows[len(rows) // 2]
    group = frozen.micro_batch([row])
    once, _ = _kept(lm, group, sites, delta)
    twice, head = _kept(lm, group.doubled(len(delta)), sites, torch.cat([delta, delta]))
    return {device: (kept - once.get(device, 0)) / row.suffix for device, kept in twice.items()}, head


def _kept(
    lm: LanguageModel, group: FrozenRows, sites: Sequence[nn.Module], delta: Tensor
) -> tuple[dict[torch.device, int], torch.device]:
    """The bytes that autograd keeps of a pass, by device, and the device of the last hidden states."""
    saved: list[Tensor] = []
    # A node of the graph holds these hooks and what they return. Were that its own output, or a list with it, neither
    # would ever be freed, nor the weights that the graph holds.
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.detach()), lambda nothing: nothing
    )
    with torch.enable_grad(), hooks:
        last = group.hidden_states(lm, sites, delta.detach().requires_grad_())
    return _sizes(saved), last.device


def _sizes(tensors: Iterable[Tensor]) -> dict[torch.device, int]:
    """The bytes of the storages of some tensors, by device, each counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor for tensor in tensors}
    sizes: dict[torch.device, int] = {}
    for tensor in storages.values():
        sizes[tensor.device] = sizes.get(tensor.device, 0) + tensor.untyped_storage().nbytes()
    return sizes
