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

Where attention knows places (ALiBi, local windows) or is none at all (a state), it cannot be given rows. There the
module in which tokens meet, `Architecture.whole`, runs on whole texts: the pool then holds its inputs in place of keys
and values, and what it puts out for the tokens of the prefix is dropped. All else sees the same sequence as above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import accumulate, chain, count, groupby, islice
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from factpatch.model.hooks import first_tensor, main_input, shadowed, starting_after, unhooked
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
    _moved: dict[tuple[torch.device, int, int], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def on(self, device: torch.device, known: int, shared: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Return the prefix's places in a pool of `known` tokens, those in the sequence, and the mask of both and of
        the tokens themselves, on a device: a model that is spread over several moves them to each once.

        Args:
            shared: How many query heads are the tokens of one head; each has the same mask.
        """
        if (device, known, shared) not in self._moved:
            pooled, live, mask = self._apart(known)
            mask = mask.to(device)
            mask = mask.repeat(1, 1, shared, 1) if shared > 1 else mask
            self._moved[device, known, shared] = pooled.to(device), live.to(device), mask
        return self._moved[device, known, shared]

    def _apart(self, known: int) -> tuple[Tensor, Tensor, Tensor]:
        none = self.prefix[:, :0]
        if self.last_place < known:
            return self.prefix, none, self.mask
        if not known:
            return none, self.prefix, self.mask
        width = self.prefix.shape[1]
        real = (self.mask[:, 0, :, :width] == 0).any(dim=1)
        parts = [_some(self, real & inside) for inside in (self.prefix < known, self.prefix >= known)]
        (pooled, first), (live, second) = parts
        mask = torch.cat([first, second, self.mask[..., width:]], dim=-1)
        return pooled, (live - known).clamp_min(0), mask

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
        self.groups = [_group(length, list(members), dtype) for length, members in by_length]

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Return the arguments of a forward pass over these tokens, except its mask, on a device; moved there once."""
        if device not in self._inputs:
            positions = self._positions[None].to(device)
            # Unless a caller has ids, the embeddings are never used: the blocks that would read them do not run.
            self._inputs[device] = {"input_ids": torch.zeros_like(positions), "position_ids": positions}
        return self._inputs[device]


def _group(length: int, bundles: Sequence[Sequence[PackedRow]], dtype: torch.dtype) -> _Group:
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
    return _Group(len(bundles), length, prefix, last_place, mask[:, None])


def _some(group: _Group, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Some places of each prefix, (bundles, longest) of booleans, in their order and padded, with their mask."""
    longest = int(chosen.sum(dim=1).max())
    order = torch.argsort((~chosen).to(torch.uint8), dim=1, stable=True)[:, :longest]
    real = chosen.gather(1, order)
    mask = group.mask[..., : chosen.shape[1]].gather(3, order[:, None, None].expand(-1, 1, group.length, -1))
    least = torch.finfo(mask.dtype).min
    return group.prefix.gather(1, order).where(real, 0), mask.masked_fill(~real[:, None, None], least)


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
    if (whole := _whole_texts.get()) is not None:
        whole.reach(max(len(row.prefix) + row.tokens for row in packing.rows))
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
            # A mask of this shape is taken as it is, and packed attention has its own.
            mask = torch.zeros((1, 1, 1, 1), dtype=lm.stream_dtype, device=lm.device) if whole is None else None
            last = lm.body(**inputs, attention_mask=mask, use_cache=False)
    finally:
        _present.reset(token)
    if len(present.attended) < lm.num_layers - 1 - (-1 if hidden is None else start):
        raise ValueError(_no_interface(lm))
    return last[0], collected or Pool()


def _no_interface(lm: LanguageModel) -> str:
    return (
        f"model_type={lm.architecture.model_type!r} does not use transformers' attention interface, so that texts side "
        "by side would see each other. Register its row with attends=, the name of the attention module's method that "
        "takes query, key, value and mask; or with whole=, the path from a block to the module in which tokens meet."
    )


@contextmanager
def packed_attention(lm: LanguageModel) -> Iterator[None]:
    """Let the model's attention read packed rows; it is restored afterwards."""
    method = lm.architecture.attends
    if lm.architecture.whole is not None:
        whole = _WholeTexts(lm)
        token = _whole_texts.set(whole)
        try:
            with shadowed((module, "forward", whole.runs(module)) for module in whole.modules):
                yield
        finally:
            _whole_texts.reset(token)
        return
    if method is None:
        model = lm.text_model
        before = model.config._attn_implementation
        model.set_attn_implementation(_NAME)
        try:
            if model.config._attn_implementation != _NAME:
                raise ValueError(_no_interface(lm))
            yield
        finally:
            model.set_attn_implementation(before)
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


_Call = tuple[tuple[Any, ...], dict[str, Any]]


class _WholeTexts:
    """Lets the modules in which tokens meet run on whole texts, one length at a time.

    Their other arguments, such as masks and embeddings of positions, are those that the model gives them for one text
    that is long enough, cut to the length: a causal model has the same ones for the beginning of a text as for all.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.modules = [lm.whole(layer) for layer in range(lm.num_layers)]
        self._originals = {id(module): module.forward for module in self.modules}
        self._calls: dict[int, _Call] = {}
        self._length = 0

    def runs(self, module: nn.Module) -> Callable[..., Any]:
        """What to call in place of the module's forward."""
        layer = self.modules.index(module)

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._forward(layer, args, kwargs)

        return forward

    def reach(self, length: int) -> None:
        """Find out what the modules are given for texts of this length. Call it before a pass, in which hooks act."""
        if length <= self._length:
            return
        # A prime is unlikely to be the size of anything but the text.
        wanted = next(n for n in count(max(length, 97)) if all(n % k for k in range(2, int(n**0.5) + 1)))
        self._length = wanted if self.lm.has_room(wanted) else length
        calls: dict[int, _Call] = {}

        def keeping(layer: int, original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                calls[layer] = args, kwargs
                return original(*args, **kwargs)

            return forward

        seen = ((m, "forward", keeping(layer, self._originals[id(m)])) for layer, m in enumerate(self.modules))
        # What is kept takes part in backward passes, too, so it must not be of a caller's inference mode.
        with torch.inference_mode(False), torch.no_grad(), unhooked(self.lm.model), shadowed(seen):
            ids = torch.zeros((1, self._length), dtype=torch.long, device=self.lm.device)
            self.lm.body(input_ids=ids, use_cache=False)
        self._calls = calls

    def _forward(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        now = _present.get()
        now.attended.add(layer)
        hidden = main_input(args, kwargs)
        if now.collected is not None:
            now.collected.keys[layer] = hidden.detach()
            now.collected.values[layer] = hidden.detach()[..., :0]
        known = now.pool.keys.get(layer, hidden[:, :0])
        source = torch.cat([known, hidden], dim=1)[0]
        begins = (known.shape[1] + now.packing.first).tolist()
        rows = now.packing.rows
        places = [
            [*row.prefix, *range(begin, begin + row.tokens)] for row, begin in zip(rows, begins, strict=True)
        ]  # those of the sequence itself come after the pool's, as in a row's prefix
        outputs: list[Tensor] = [hidden] * len(rows)
        rest: tuple[Any, ...] | None = None
        for some in self._batches(layer, [len(own) for own in places]):
            texts = source[torch.tensor([places[row] for row in some], device=source.device)]
            call = self._cut(layer, texts, [begins[row] - known.shape[1] for row in some], rows, some, args, kwargs)
            output = self._originals[id(self.modules[layer])](*call[0], **call[1])
            rest = output[1:] if isinstance(output, tuple) else None
            for row, text in zip(some, first_tensor(output), strict=True):
                outputs[row] = text[len(text) - rows[row].tokens :]
        found = torch.cat(outputs)[None]
        return found if rest is None else (found, *rest)

    def _batches(self, layer: int, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows that run together: those of one length, or each alone where an argument has no place for more."""
        args, kwargs = self._calls[layer]
        alone = any(one.dim() > 1 and one.shape[0] != 1 for one in _tensors((args, kwargs)))
        for _, group in groupby(sorted(range(len(lengths)), key=lambda row: lengths[row]), lambda row: lengths[row]):
            members = list(group)
            yield from ([row] for row in members) if alone else [members]

    def _cut(
        self,
        layer: int,
        texts: Tensor,
        begins: Sequence[int],
        rows: Sequence[PackedRow],
        some: Sequence[int],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> _Call:
        """The arguments for some texts, (texts, tokens, d_value): as captured, but for what a pass itself brings."""
        batch, length, _ = texts.shape
        hidden = main_input(args, kwargs)

        def fit(captured: Any, present: Any) -> Any:
            if present is hidden:
                return texts
            if isinstance(present, Tensor) and present.shape == hidden.shape:  # such as the residual stream, in Bloom
                wide = present.new_zeros(texts.shape)
                for index, (row, begin) in enumerate(zip(some, begins, strict=True)):
                    wide[index, length - rows[row].tokens :] = present[0, begin : begin + rows[row].tokens]
                return wide
            if isinstance(captured, tuple):
                return tuple(fit(one, None) for one in captured)
            if not isinstance(captured, Tensor):
                return captured
            for dim, size in enumerate(captured.shape):
                if size == self._length:
                    captured = captured.narrow(dim, 0, length)
            return captured.expand(batch, *captured.shape[1:]) if captured.shape[:1] == (1,) else captured

        there = self._calls[layer]
        fitted = tuple(fit(one, args[index] if index < len(args) else None) for index, one in enumerate(there[0]))
        return fitted, {name: fit(one, kwargs.get(name)) for name, one in there[1].items()}


def _tensors(found: Any) -> Iterator[Tensor]:
    """All tensors in the arguments of a call but the main input's kind, which a pass brings itself."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, (tuple, list)):
        for one in found:
            yield from _tensors(one)
    elif isinstance(found, dict):
        yield from _tensors(list(found.values()))


_whole_texts: ContextVar[_WholeTexts | None] = ContextVar("whole texts", default=None)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function that transformers' attention modules call."""
    return _attend(_shared_heads, module, query, key, value, query.shape[1] // key.shape[1], **options)


def _shared_heads(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any
) -> tuple[Tensor, Any]:
    """Let query heads that share a key attend as further tokens of one head: no key is repeated, and products grow.

    `mask` is that of these tokens.
    """
    beyond_sdpa = any(options.get(name) is not None for name in ("softcap", "s_aux"))
    attends = _written_out if beyond_sdpa else ALL_ATTENTION_FUNCTIONS["sdpa"]
    bundles, heads, length, _ = query.shape
    shared = heads // key.shape[1]
    if shared == 1:
        return attends(module, query, key, value, mask, **options)  # type: ignore[no-any-return]
    folded = query.reshape(bundles, key.shape[1], shared * length, -1)
    # In place of the module, one that has as many keys as queries.
    found = attends(SimpleNamespace(), folded, key, value, mask, **options)[0]
    apart = found.reshape(bundles, shared, length, key.shape[1], -1).permute(0, 2, 3, 1, 4)
    return apart.reshape(bundles, length, heads, -1), None


def _written_out(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention step by step, for what PyTorch's own function cannot do.

    Args:
        softcap: Scores become softcap · tanh(score / softcap), as in Gemma 2.
        s_aux: (query heads,): the score of a place that holds nothing, as in gpt-oss.
    """
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + mask
    places = scores.shape[-1]
    if s_aux is not None:
        # Query heads that share a key lie one after another among the tokens of one head.
        sinks = s_aux.reshape(key.shape[1], -1).repeat_interleave(scores.shape[2] * key.shape[1] // len(s_aux), dim=1)
        scores = torch.cat([scores, sinks[None, :, :, None].expand(len(scores), -1, -1, -1).to(scores)], dim=-1)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=wide)[..., :places].to(value.dtype)
    return (weights @ value).transpose(1, 2), None


AttentionInterface.register(_NAME, _attention)


def _attend(
    inner: Callable[..., tuple[Tensor, Any]],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shared: int = 1,
    **options: Any,
) -> tuple[Tensor, None]:
    """Let each row attend to its prefix in the pool and to itself.

    Args:
        inner: Attends, with (bundles, heads, tokens, d_head) to (bundles, tokens, heads, d_head).
        query, key, value: (1, heads, tokens, d_head) of all rows.
        shared: How often `inner` needs the mask's rows, one for each query head of a key.

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
        pooled, live, mask = group.on(key.device, now.pool.tokens, shared)
        for index, side, present in ((1, now.pool.keys, key[0]), (2, now.pool.values, value[0])):
            # The pool, which can be large, is not joined with the sequence: no gradient goes to it.
            before = [side[layer][:, pooled]] if pooled.shape[1] else []
            before += [present[:, live]] if live.shape[1] else []
            if before:
                own[index] = torch.cat([*(tokens.transpose(0, 1) for tokens in before), own[index]], dim=2)
        found = inner(module, *own, mask, **options)[0]
        outputs.append(found.flatten(0, 1))
    return torch.cat(outputs)[None], None
