"""Rows of tokens run side by side as one sequence.

Every matrix product then sees real tokens only, and tokens that many rows begin with are run once: their keys and
values lie in a pool, from which every row's attention reads its own. Only attention itself looks at rows one by one, in
groups of equal length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from factpatch.model.batching import TOKEN_BUDGET
from factpatch.model.hooks import shadowed, starting_after
from factpatch.model.language_model import LanguageModel

_NAME = "factpatch-packed"


@dataclass
class Pool:
    """Keys and values of tokens that were run before, by layer: (heads, tokens, d_head) each."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """How many tokens it holds."""
        return next((keys.shape[1] for keys in self.keys.values()), 0)

    def behind(self, start: int) -> Pool:
        """The part for the layers behind `start`."""
        keys = {layer: keys for layer, keys in self.keys.items() if layer > start}
        return Pool(keys, {layer: self.values[layer] for layer in keys})

    @classmethod
    def joined(cls, pools: Sequence[Pool]) -> Pool:
        """The tokens of several pools, one behind the other. The pools are emptied, so that nothing is held twice."""
        full = [pool for pool in pools if pool.tokens]
        layers = list(full[0].keys) if full else []
        keys, values = (
            {layer: torch.cat([getattr(pool, side).pop(layer) for pool in full], dim=1) for layer in layers}
            for side in ("keys", "values")
        )
        return cls(keys, values)


@dataclass(frozen=True)
class PackedRow:
    """Neighboring tokens of one text that run now, and where those of the text before them are."""

    tokens: int
    prefix: tuple[int, ...] = ()
    """Places in the pool, in the order of the text; behind the pool's last place come those of the sequence itself."""


@dataclass(frozen=True)
class _Group:
    """Neighboring rows of equal length."""

    rows: int
    length: int
    prefix: Tensor
    """(rows, longest prefix): places as in `PackedRow`; padding points at the first."""
    last_place: int
    """The largest of them; -1 without a prefix."""
    mask: Tensor
    """(rows, 1, length, longest prefix + length), additive."""
    _moved: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Prefix and mask on a device: a model that is spread over several takes them to each once."""
        if device not in self._moved:
            self._moved[device] = self.prefix.to(device), self.mask.to(device)
        return self._moved[device]

    def rows_of(self, tokens: Tensor) -> Tensor:
        """(heads, tokens, d_head) of this group as (rows, heads, length, d_head)."""
        return tokens.reshape(tokens.shape[0], self.rows, self.length, -1).transpose(0, 1)


class Packing:
    """Rows, in the order in which their tokens lie in the sequence.

    Rows of equal length should be neighbors: attention runs once for each such group.
    """

    def __init__(self, rows: Sequence[PackedRow], dtype: torch.dtype, device: torch.device) -> None:
        self.rows = tuple(rows)
        self.dtype = dtype
        *begins, self.tokens = accumulate((row.tokens for row in rows), initial=0)
        self.first = torch.tensor(begins, device=device)
        """(rows,): where each row begins."""
        self._positions = torch.cat([len(row.prefix) + torch.arange(row.tokens) for row in rows])
        self._inputs: dict[torch.device, dict[str, Tensor]] = {}
        self.groups = [
            _group(length, list(members), dtype, device) for length, members in groupby(rows, lambda row: row.tokens)
        ]

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """What a forward pass over these tokens is called with besides its mask, on a device; moved there once."""
        if device not in self._inputs:
            positions = self._positions[None].to(device)
            # Unless a caller has ids, the embeddings are never used: the blocks that would read them do not run.
            self._inputs[device] = {"input_ids": torch.zeros_like(positions), "position_ids": positions}
        return self._inputs[device]


def _group(length: int, rows: Sequence[PackedRow], dtype: torch.dtype, device: torch.device) -> _Group:
    longest = max(len(row.prefix) for row in rows)
    prefix = torch.tensor([[*row.prefix, *[0] * (longest - len(row.prefix))] for row in rows], dtype=torch.long)
    real = torch.arange(longest)[None] < torch.tensor([len(row.prefix) for row in rows])[:, None]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = torch.cat([real[:, None].expand(-1, length, -1), causal.expand(len(rows), -1, -1)], dim=-1)
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
    last_place = max((place for row in rows for place in row.prefix), default=-1)
    return _Group(len(rows), length, prefix.to(device), last_place, mask[:, None].to(device))


class Tree:
    """Texts whose common beginnings are run once, in one pass.

    Args:
        texts: token ids, at least one in each.
    """

    def __init__(self, texts: Iterable[tuple[int, ...]]) -> None:
        self._segments: list[tuple[int, tuple[int, ...], list[tuple[int, ...]]]] = []
        self._grow(sorted(set(texts)), 0, -1)
        # Rows of equal length are neighbors; what a segment follows may well come behind it.
        order = sorted(range(len(self._segments)), key=lambda index: len(self._segments[index][1]))
        self.ids = [token for index in order for token in self._segments[index][1]]
        """The token ids of all rows, side by side."""
        own: dict[int, range] = {}
        end = 0
        for index in order:
            own[index] = range(end, end + len(self._segments[index][1]))
            end = own[index].stop
        path: dict[int, tuple[int, ...]] = {-1: ()}
        for index, (parent, _, _) in enumerate(self._segments):  # a parent comes before its children
            path[index] = (*path[parent], *own[index])
        self.rows = [PackedRow(len(own[index]), path[self._segments[index][0]]) for index in order]
        self.places = {text: path[index] for index, (_, _, ends) in enumerate(self._segments) for text in ends}
        """Where the tokens of each text lie in the sequence."""

    def _grow(self, texts: Sequence[tuple[int, ...]], depth: int, parent: int) -> None:
        """Add segments for sorted texts that agree in their first `depth` tokens and are longer than that."""
        for _, group in groupby(texts, lambda text: text[depth]):
            alike = list(group)
            shared = common_beginning(alike)
            here = len(self._segments)
            self._segments.append((parent, shared[depth:], [text for text in alike if len(text) == len(shared)]))
            self._grow([text for text in alike if len(text) > len(shared)], len(shared), here)


def tree_batches(
    texts: Iterable[tuple[int, ...]], budget: int | None = None, room: int = 0
) -> Iterator[list[tuple[int, ...]]]:
    """Sort texts and split them so that the tree of each batch has at most `budget` tokens; a text stays whole.

    Args:
        texts: token ids.
        budget: by default `TOKEN_BUDGET`.
        room: tokens that are to follow each text, which count.
    """
    budget = TOKEN_BUDGET if budget is None else budget
    batch: list[tuple[int, ...]] = []
    size = 0
    for text in sorted(texts):
        more = len(text) - (len(common_beginning([batch[-1], text])) if batch else 0) + room
        if batch and size + more > budget:
            yield batch
            batch, size, more = [], 0, len(text) + room
        batch.append(text)
        size += more
    if batch:
        yield batch


def common_beginning(texts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest tuple that all begin with."""
    low, high = min(texts), max(texts)
    differing = (index for index, (one, other) in enumerate(zip(low, high, strict=False)) if one != other)
    return low[: next(differing, min(len(low), len(high)))]


@dataclass(frozen=True)
class _Pass:
    """What attention has to know during one forward pass."""

    packing: Packing
    pool: Pool
    collected: Pool | None
    attended: set[int] = field(default_factory=set)
    """The layers whose attention has looked at the rows."""


_present: ContextVar[_Pass] = ContextVar("packed pass")


def run_packed(
    lm: LanguageModel,
    packing: Packing,
    pool: Pool,
    *,
    ids: Tensor | None = None,
    hidden: Tensor | None = None,
    start: int = -1,
    collect: bool = False,
) -> tuple[Tensor, Pool]:
    """Run rows side by side through the model, or through the layers behind `start`. Call it inside `packed_attention`.

    Args:
        packing: the rows.
        pool: what they read, for every layer that runs.
        ids: (tokens,): their token ids; or
        hidden: (tokens, d_value): what layer `start` puts out for them.
        collect: whether to return their own keys and values.

    Returns:
        (tokens, d_value), the last hidden states behind the final norm; and the pool of these tokens, or an empty one.
    """
    collected = Pool() if collect else None
    inputs = packing.inputs(lm.device)
    if ids is not None:
        inputs = {**inputs, "input_ids": ids[None].to(lm.device)}
    present = _Pass(packing, pool, collected)
    token = _present.set(present)
    try:
        with _entering(lm, start, hidden):
            last = lm.body(
                **inputs,
                # A mask of this shape is taken as it is, and packed attention has its own.
                attention_mask=torch.zeros((1, 1, 1, 1), dtype=lm.stream_dtype, device=lm.device),
                use_cache=False,
            )
    finally:
        _present.reset(token)
    if len(present.attended) < lm.num_layers - 1 - (-1 if hidden is None else start):
        raise ValueError(_no_interface(lm))
    return last[0], collected or Pool()


def _no_interface(lm: LanguageModel) -> str:
    return (
        f"model_type={lm.architecture.model_type!r} does not use transformers' attention interface, so that texts side "
        "by side would see each other. Register its row with attends=, the name of the attention module's method that "
        "takes query, key, value and mask."
    )


def run_tree(lm: LanguageModel, tree: Tree) -> Tensor:
    """(tokens, d_value): the last hidden states of a tree's tokens. Call it inside `packed_attention`."""
    return run_packed(lm, Packing(tree.rows, lm.stream_dtype, lm.device), Pool(), ids=torch.tensor(tree.ids))[0]


@contextmanager
def _entering(lm: LanguageModel, start: int, hidden: Tensor | None) -> Iterator[None]:
    if hidden is None:
        yield
        return
    with starting_after(lm.blocks, start, hidden[None], lm.architecture.returns_tuple):
        yield


@contextmanager
def packed_attention(lm: LanguageModel) -> Iterator[None]:
    """Let the model's attention read packed rows; restored afterwards."""
    method = lm.architecture.attends
    if method is None:
        before = lm.model.config._attn_implementation
        lm.model.set_attn_implementation(_NAME)
        try:
            if lm.model.config._attn_implementation != _NAME:
                raise ValueError(_no_interface(lm))
            yield
        finally:
            lm.model.set_attn_implementation(before)
        return
    modules = (lm.attention(layer) for layer in range(lm.num_layers))
    with shadowed((module, method, _packed_method(module, getattr(module, method))) for module in modules):
        yield


def _packed_method(module: nn.Module, attends: Callable[..., tuple[Tensor, Any]]) -> Callable[..., tuple[Tensor, Any]]:
    """An attention method (query, key, value, mask), all (rows, heads, tokens, d_head), for packed rows."""

    def inner(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        return attends(query, key, value, mask)[0].transpose(1, 2), None

    def packed(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        return _attend(inner, module, query, key, value)[0].transpose(1, 2), None

    return packed


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function that transformers' attention modules call."""
    return _attend(ALL_ATTENTION_FUNCTIONS["sdpa"], module, query, key, value, **options)


AttentionInterface.register(_NAME, _attention)


def _attend(
    inner: Callable[..., tuple[Tensor, Any]], module: Any, query: Tensor, key: Tensor, value: Tensor, **options: Any
) -> tuple[Tensor, None]:
    """Let each row attend to its prefix in the pool and to itself.

    Args:
        inner: attends with (rows, heads, tokens, d_head) and gives (rows, tokens, heads, d_head).
        query, key, value: (1, heads, tokens, d_head) of all rows.

    Returns:
        (1, tokens, heads, d_head)
    """
    now = _present.get()
    layer = module.layer_idx
    now.attended.add(layer)
    if now.collected is not None:
        now.collected.keys[layer], now.collected.values[layer] = key[0].detach(), value[0].detach()
    sizes = [group.rows * group.length for group in now.packing.groups]
    # Splitting has a backward pass that joins; slicing would fill a whole tensor with zeros for every group.
    parts = zip(*(torch.split(whole[0], sizes, dim=1) for whole in (query, key, value)), strict=True)
    outputs = []
    for group, part in zip(now.packing.groups, parts, strict=True):
        own = [group.rows_of(tokens) for tokens in part]
        places, mask = group.on(key.device)
        if places.shape[1]:
            for index, side, present in ((1, now.pool.keys, key[0]), (2, now.pool.values, value[0])):
                known = side.get(layer, present[:, :0])
                source = known if group.last_place < known.shape[1] else torch.cat([known, present], dim=1)
                own[index] = torch.cat([source[:, places].transpose(0, 1), own[index]], dim=2)
        found = inner(module, *own, mask, **options)[0]
        outputs.append(found.flatten(0, 1))
    return torch.cat(outputs)[None], None
