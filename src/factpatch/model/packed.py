"""Rows of tokens run side by side as one sequence.

Every matrix product then sees real tokens only, and tokens that many rows begin with are run once: their keys and
values lie in a pool, from which every row's attention reads its own. Only attention itself looks at rows one by one, or
at bundles of them, in groups of equal length.

    pool (ran before)         sequence (runs now)
    0   1   2   3   4    |    5   6    7   8    9
    The dog The cat sat  |    ran off  lay down on
                              row A    row B    row C

    row A = PackedRow(2, prefix=(0, 1))         tokens 5, 6 attend to 0, 1 and to themselves, causally
    row B = PackedRow(2, prefix=(2, 3))         tokens 7, 8 attend to 2, 3 and to themselves
    row C = PackedRow(1, prefix=(2, 3, 4))      a prefix may also point into the sequence: see `Tree`

    groups: [A, B] of length 2, one attention call of (2, heads, 2, ...); [C] of length 1, another
    mask of a row: | its prefix, padded to the group's longest | its own tokens, lower triangle |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import accumulate, chain, groupby, islice
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

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

    def above(self, start: int) -> Pool:
        """Return the part for the layers above `start`."""
        keys = {layer: keys for layer, keys in self.keys.items() if layer > start}
        return Pool(keys, {layer: self.values[layer] for layer in keys})

    @classmethod
    def joined(cls, pools: Sequence[Pool]) -> Pool:
        """Return the tokens of several pools, one after another. The pools are emptied: nothing is held twice."""
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
    """Places in the pool, in the order of the text; after the pool's last place come those of the sequence itself."""


@dataclass(frozen=True)
class _Group:
    """Neighboring bundles of equal length."""

    bundles: int
    length: int
    prefix: Tensor
    """(bundles, longest prefix): places as in `PackedRow`, of all rows; padding points at the first."""
    last_place: int
    """The largest of them; -1 without a prefix."""
    mask: Tensor
    """(bundles, 1, length, longest prefix + length), additive."""
    _moved: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return prefix and mask on a device: a model that is spread over several moves them to each once."""
        if device not in self._moved:
            self._moved[device] = self.prefix.to(device), self.mask.to(device)
        return self._moved[device]

    def bundles_of(self, tokens: Tensor) -> Tensor:
        """Return (heads, tokens, d_head) of this group as (bundles, heads, length, d_head)."""
        return tokens.reshape(tokens.shape[0], self.bundles, self.length, -1).transpose(0, 1)


class Packing:
    """Rows, in the order in which their tokens lie in the sequence.

    Attention looks at the rows of a bundle as one, and runs once for each group of bundles of equal length, which
    should be neighbors. Bundles pay for many short rows whose prefixes have much in common; `together` says how many
    rows each has, by default one.
    """

    def __init__(
        self,
        rows: Sequence[PackedRow],
        dtype: torch.dtype,
        device: torch.device,
        together: Sequence[int] | None = None,
    ) -> None:
        self.rows = tuple(rows)
        self.dtype = dtype
        *begins, self.tokens = accumulate((row.tokens for row in rows), initial=0)
        self.first = torch.tensor(begins, device=device)
        """(rows,): where each row begins."""
        self.last = self.first + torch.tensor([row.tokens - 1 for row in rows], device=device)
        """(rows,): where each row ends."""
        self._positions = torch.cat([len(row.prefix) + torch.arange(row.tokens) for row in rows])
        self._inputs: dict[torch.device, dict[str, Tensor]] = {}
        remaining = iter(rows)
        bundles = [tuple(islice(remaining, count)) for count in together or [1] * len(self.rows)]
        by_length = groupby(bundles, lambda bundle: sum(row.tokens for row in bundle))
        self.groups = [_group(length, list(members), dtype, device) for length, members in by_length]

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Return the arguments of a forward pass over these tokens, except its mask, on a device; moved there once."""
        if device not in self._inputs:
            positions = self._positions[None].to(device)
            # Unless a caller has ids, the embeddings are never used: the blocks that would read them do not run.
            self._inputs[device] = {"input_ids": torch.zeros_like(positions), "position_ids": positions}
        return self._inputs[device]


def _group(length: int, bundles: Sequence[Sequence[PackedRow]], dtype: torch.dtype, device: torch.device) -> _Group:
    places = [tuple(dict.fromkeys(chain.from_iterable(row.prefix for row in bundle))) for bundle in bundles]
    longest = max(map(len, places))
    prefix = torch.tensor([[*own, *[0] * (longest - len(own))] for own in places], dtype=torch.long)
    real = torch.arange(longest)[None] < torch.tensor([len(own) for own in places])[:, None]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = torch.cat([real[:, None].expand(-1, length, -1), causal.expand(len(bundles), -1, -1)], dim=-1)
    for bundle, own, seen in zip(bundles, places, allowed, strict=True):
        if len(bundle) > 1:
            _keep_apart(bundle, own, seen)
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
    last_place = max((place for own in places for place in own), default=-1)
    return _Group(len(bundles), length, prefix.to(device), last_place, mask[:, None].to(device))


def _keep_apart(bundle: Sequence[PackedRow], places: Sequence[int], seen: Tensor) -> None:
    """Let each row of a bundle see its own prefix and itself alone: change `seen`, (length, longest prefix + length).

    `places` are the prefixes of all its rows.
    """
    begin, length = 0, seen.shape[0]
    own = seen[:, seen.shape[1] - length :]
    for row in bundle:
        end = begin + row.tokens
        prefix = set(row.prefix)
        seen[begin:end, : len(places)] = torch.tensor([place in prefix for place in places], dtype=torch.bool)
        own[begin:end, :begin] = False
        begin = end


@dataclass(frozen=True)
class _Pass:
    """What attention needs during one forward pass."""

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
    """Run rows side by side through the model, or through the layers above `start`. Call it inside `packed_attention`.

    Args:
        packing: The rows.
        pool: What they read, for every layer that runs.
        ids: (tokens,): their token ids; or
        hidden: (tokens, d_value): the output of layer `start` for them.
        start: The layer whose output is given; -1 to run all.
        collect: Whether to return their own keys and values.

    Returns:
        (tokens, d_value), the last hidden states after the final norm; and the pool of these tokens, or an empty one.
    """
    collected = Pool() if collect else None
    inputs = packing.inputs(lm.device)
    if ids is not None:
        inputs = {**inputs, "input_ids": ids[None].to(lm.device)}
    present = _Pass(packing, pool, collected)
    token = _present.set(present)
    try:
        entering = (
            nullcontext()
            if hidden is None
            else starting_after(lm.blocks, start, hidden[None], lm.architecture.returns_tuple)
        )
        with entering:
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


@contextmanager
def packed_attention(lm: LanguageModel) -> Iterator[None]:
    """Let the model's attention read packed rows; it is restored afterwards."""
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
    """Wrap an attention method (query, key, value, mask), all (bundles, heads, tokens, d_head), for packed rows."""

    def inner(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        return attends(query, key, value, mask)[0].transpose(1, 2), None

    def packed(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        return _attend(inner, module, query, key, value)[0].transpose(1, 2), None

    return packed


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function that transformers' attention modules call."""
    return _attend(_shared_heads, module, query, key, value, **options)


def _shared_heads(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any
) -> tuple[Tensor, Any]:
    """Let query heads that share a key attend as further tokens of one head: no key is repeated, and products grow."""
    attends = ALL_ATTENTION_FUNCTIONS["sdpa"]
    bundles, heads, length, _ = query.shape
    shared = heads // key.shape[1]
    if shared == 1:
        return attends(module, query, key, value, mask, **options)  # type: ignore[no-any-return]
    folded = query.reshape(bundles, key.shape[1], shared * length, -1)
    # In place of the module, one that has as many keys as queries.
    found = attends(SimpleNamespace(), folded, key, value, mask.repeat(1, 1, shared, 1), **options)[0]
    apart = found.reshape(bundles, shared, length, key.shape[1], -1).permute(0, 2, 3, 1, 4)
    return apart.reshape(bundles, length, heads, -1), None


AttentionInterface.register(_NAME, _attention)


def _attend(
    inner: Callable[..., tuple[Tensor, Any]], module: Any, query: Tensor, key: Tensor, value: Tensor, **options: Any
) -> tuple[Tensor, None]:
    """Let each row attend to its prefix in the pool and to itself.

    Args:
        inner: Attends, with (bundles, heads, tokens, d_head) to (bundles, tokens, heads, d_head).
        query, key, value: (1, heads, tokens, d_head) of all rows.

    Returns:
        (1, tokens, heads, d_head)
    """
    now = _present.get()
    layer = module.layer_idx
    now.attended.add(layer)
    if now.collected is not None:
        now.collected.keys[layer], now.collected.values[layer] = key[0].detach(), value[0].detach()
    sizes = [group.bundles * group.length for group in now.packing.groups]
    # Splitting has a backward pass that joins; slicing would fill a whole tensor with zeros for every group.
    parts = zip(*(torch.split(whole[0], sizes, dim=1) for whole in (query, key, value)), strict=True)
    outputs = []
    for group, part in zip(now.packing.groups, parts, strict=True):
        own = [group.bundles_of(tokens) for tokens in part]
        places, mask = group.on(key.device)
        if places.shape[1]:
            for index, side, present in ((1, now.pool.keys, key[0]), (2, now.pool.values, value[0])):
                known = side.get(layer, present[:, :0])
                before = _places(known, present, places, group.last_place)
                own[index] = torch.cat([before.transpose(0, 1), own[index]], dim=2)
        found = inner(module, *own, mask, **options)[0]
        outputs.append(found.flatten(0, 1))
    return torch.cat(outputs)[None], None


def _places(known: Tensor, present: Tensor, places: Tensor, last: int) -> Tensor:
    """Take places of the pool and of the sequence after it; `last` is the largest.

    The pool, which can be large, is not joined with the sequence: no gradient goes to it.
    """
    tokens = known.shape[1]
    if last < tokens:
        return known[:, places]
    if not tokens:
        return present[:, places]
    live = places >= tokens
    earlier, own = known[:, places.where(~live, 0)], present[:, (places - tokens).clamp_min(0)]
    return torch.where(live[..., None], own, earlier)
