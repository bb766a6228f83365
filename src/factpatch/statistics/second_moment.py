"""The mean second moment E[k kᵀ] of keys over a corpus, for all critical layers in one pass that can be resumed."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from factpatch.model.batching import TOKEN_BUDGET, batches, padded
from factpatch.model.experts import Routed, token_rows
from factpatch.model.fingerprint import fingerprints
from factpatch.model.hooks import captured
from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import in_pieces
from factpatch.model.places import layer_of, makes_keys, name_of, order
from factpatch.model.replicas import Replicas
from factpatch.model.tokens import tokenize
from factpatch.statistics.cache import Entry
from factpatch.statistics.corpus import Corpus
from factpatch.support.cache import cache_directory
from factpatch.support.turns import one_at_a_time

logger = logging.getLogger(__name__)

WINDOW = 512
"""Longest piece of a document that is run at once, in tokens."""
TOKENS_PER_DIMENSION = 5
"""Default length of the corpus, in tokens per key dimension: docs/results.md. Published: 10 (arXiv:2506.04226)."""
CHECKPOINT_SECONDS = 600.0
"""How much work an interruption may cost, in seconds. Five layers of an 8B model are 8 GB, a minute on a slow disk."""
_MOST_SHARDS = 32
_DOCUMENTS_AT_ONCE = 64
# Of a matrix, at once: few enough for little work above the diagonal, enough for products at full speed.
_ROWS = 512
_COUNTS = ".counts"
Progress = Callable[[int], None]
Batch = list[list[int]]
"""Token windows that are run together."""


@dataclass(frozen=True)
class SecondMoment:
    """E[k kᵀ] of the keys of one layer."""

    matrix: Tensor
    """(d_key, d_key), activations squared, averaged over tokens; float64. Of a layer of experts, (experts, d_key,
    d_key): for each, of g x, the key times the router's gate, averaged over the tokens that the expert saw. Of a
    weight that makes keys, (d_value + 1, d_value + 1): of its inputs and a 1 after them; the last column is their
    mean."""
    tokens: int
    """How many tokens were averaged."""
    counts: Tensor | None = None
    """(experts,), int64: how many tokens each expert saw; None for a layer without a router."""

    def tensors(self) -> dict[str, Tensor]:
        """What the cache holds of it."""
        return {"matrix": self.matrix} if self.counts is None else {"matrix": self.matrix, "counts": self.counts}

    @staticmethod
    def read(
        lm: LanguageModel,
        layers: Sequence[int],
        corpus: Corpus,
        tokens: int | None = None,
        cache: Path | Literal[False] | None = None,
        progress: Progress = lambda tokens: None,
        replicas: Replicas | None = None,
    ) -> dict[int, SecondMoment]:
        """Return the second moment of every layer, from the cache where it holds them, else in one pass for all others.

        Every `CHECKPOINT_SECONDS` the pass records its state in the cache. If it is interrupted, the next call with the
        same arguments resumes it and returns, on the same machine, the same bits as without interruption. Of processes
        that share a cache, one reads a text with a model and the others wait.

        Args:
            lm: The model; it is left as it was.
            layers: The layers whose keys are read; or the places of other weights, whose inputs are.
            corpus: The text.
            tokens: How many tokens to read; 5 per key dimension by default. A shorter corpus is read to its end.
            cache: The folder of cached moments; the user's cache by default. False neither reads nor keeps anything.
            progress: Called with the number of tokens read since the last call, or by the pass that is resumed.
            replicas: The model and its copies, to share the work. The result then differs by rounding, and is the same
                whatever their number.

        Raises:
            ValueError: The corpus is empty.
            FloatingPointError: A key is not finite.
        """
        tokens = TOKENS_PER_DIMENSION * lm.d_key if tokens is None else tokens
        if tokens < 1:
            raise ValueError(f"tokens={tokens}: must be positive.")
        text = _Text(lm, corpus, tokens, replicas)
        if cache is False:
            return _read(text, layers, progress, None)
        prints = fingerprints(lm, [0, *map(layer_of, layers)])
        entries, unfinished = _entries(cache or cache_directory() / "second_moment", text, layers, prints)
        found = _kept(entries, layers)
        if len(found) < len(entries):
            with one_at_a_time(_lock(unfinished.folder, text, prints[0]), f"the second moment of {lm.name}") as waited:
                if waited:
                    found |= _kept(entries, [layer for layer in layers if layer not in found])
                missing = [layer for layer in layers if layer not in found]
                if missing:
                    computed = _read(text, missing, progress, unfinished)
                    written = [entries[one].write(it.tensors(), read=it.tokens) for one, it in computed.items()]
                    if all(written):
                        unfinished.remove()
                    found |= computed
        return {layer: found[layer] for layer in layers}


def _kept(entries: Mapping[int, Entry], layers: Sequence[int]) -> dict[int, SecondMoment]:
    """What the cache holds of some layers."""
    held = {layer: entries[layer].read(["read"]) for layer in layers}
    return {
        layer: SecondMoment(it[0]["matrix"], it[1]["read"], it[0].get("counts"))
        for layer, it in held.items()
        if it is not None
    }


def _lock(folder: Path, text: _Text, model: str) -> Path:
    """The file that is locked while a text is read with a model, whichever layers are asked for."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    about = [model, text.corpus.identity, text.tokens, str(text.lm.dtype)]
    return folder / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]}.lock"


class CorpusError(ValueError):
    """A corpus has too little text; the message says how much there is."""


def no_corpus(lm: LanguageModel) -> str:
    """Return the message for a model that needs a text where none is given: the shipped one does not do for all."""
    return (
        f"corpus=None: {lm.name} needs a text for its statistics; give a file, or hf:NAME for a dataset. About "
        f"{TOKENS_PER_DIMENSION * lm.d_key} tokens of ordinary text are enough."
    )


@dataclass(frozen=True)
class _Text:
    """What is read of a corpus, and by which models."""

    lm: LanguageModel
    corpus: Corpus
    tokens: int
    replicas: Replicas | None

    @property
    def budget(self) -> int:
        """How many tokens a batch may have: as many as pay, or fewer where several models share them."""
        return TOKEN_BUDGET if self.replicas is None else min(TOKEN_BUDGET, self.share)

    @property
    def share(self) -> int:
        """How many tokens make a shard."""
        return -(-self.tokens // shard_count(self.tokens, self.lm.d_key))

    @property
    def batching(self) -> str:
        shared = "" if self.replicas is None else f" in shards of {self.share}"
        return f"{self.budget} tokens of {_DOCUMENTS_AT_ONCE} documents{shared}"

    def stream(self) -> Iterator[Batch]:
        return text_batches(self.lm, self.corpus, self.tokens, self.budget)

    def shards(self, stream: Iterator[Batch]) -> Iterator[list[Batch]]:
        """What is left of a stream, cut where as many tokens are read as make a shard."""
        # The last batch of a shard seldom ends where the shard should; on average it does.
        least = 1 if self.replicas is None else self.share - self.budget // 2
        shard: list[Batch] = []
        for batch in stream:
            shard.append(batch)
            if _token_count(shard) >= least:
                yield shard
                shard = []
        if shard:
            yield shard


def shard_count(tokens: int, d_key: int) -> int:
    """Into about how many parts a pass is cut that several models share.

    Enough for the work to be even, but each reads as many tokens as a key has dimensions: fewer would take less time to
    read than their sums take to come back.
    """
    return max(1, min(_MOST_SHARDS, tokens // d_key))


def _token_count(shard: Sequence[Batch]) -> int:
    return sum(len(window) for batch in shard for window in batch)


def _entries(
    folder: Path, text: _Text, layers: Sequence[int], prints: Mapping[int, str]
) -> tuple[dict[int, Entry], Entry]:
    """Where the moment of each layer is kept, and the state of an unfinished pass for all of them."""
    lm = text.lm
    about = {
        "corpus": text.corpus.identity,
        "tokens": str(text.tokens),
        "window": str(lm.window(WINDOW)),
        "dtype": str(lm.dtype).removeprefix("torch."),
        **shown(lm),
    }
    entries = {
        layer: Entry(
            folder,
            f"the second moment of layer {name_of(layer)}",
            {"model": prints[layer_of(layer)], "layer": name_of(layer), **about},
        )
        for layer in layers
    }
    # All layers that were asked for, though a pass may be for fewer: those that the cache does not hold.
    asked = {"model": prints[max(map(layer_of, layers))], "layers": " ".join(map(name_of, sorted(layers)))}
    batching = {"batching": text.batching}
    return entries, Entry(folder, "the unfinished second moment", {**asked, **about, **batching}, unfinished=True)


def shown(lm: LanguageModel) -> dict[str, str]:
    """What of a model is edited, as an entry of the cache records it: nothing but of a shared expert."""
    return {"weight": "shared expert"} if lm.shared_expert else {}


def text_batches(lm: LanguageModel, corpus: Corpus, tokens: int, budget: int = TOKEN_BUDGET) -> Iterator[Batch]:
    """Token windows of the corpus, `tokens` in all, in the same batches each time, so that their number is a place.

    A batch has at most `budget` tokens, padding included, or one window.
    """
    left = tokens
    size = lm.window(WINDOW)
    documents = (document for document in corpus.documents() if document.strip())
    while left > 0 and (some := list(islice(documents, _DOCUMENTS_AT_ONCE))):
        windows = []
        for ids in tokenize(lm.tokenizer, some):
            for start in range(0, len(ids), size):
                if window := ids[start : start + size][:left]:
                    windows.append(window)
                    left -= len(window)
        for group in batches([len(window) for window in windows], budget):
            yield [windows[index] for index in group]


@dataclass
class _Sums:
    """Sums over the first batches of a corpus."""

    totals: dict[int, Tensor]
    """Σ k kᵀ by layer, (d_key, d_key), float64; what lies above the diagonal does not count. Of experts, a matrix for
    each, (experts, d_key, d_key)."""
    counts: dict[int, Tensor]
    """How many tokens each expert saw, (experts,), by layer with a router."""
    tokens: int = 0
    batches: int = 0

    def keep(self, entry: Entry) -> None:
        self.check_finite()
        totals = {str(layer): total for layer, total in self.totals.items()}
        totals |= {f"{layer}{_COUNTS}": counts for layer, counts in self.counts.items()}
        if entry.write(totals, read=self.tokens, batches=self.batches):
            logger.info("the second moment so far is kept, after %d tokens", self.tokens)

    def check_finite(self) -> None:
        for layer, total in self.totals.items():
            if not bool(torch.isfinite(total).all()):
                raise FloatingPointError(
                    f"keys of layer {name_of(layer)} are not finite on the corpus; the model is broken, or its dtype "
                    "too narrow (load it with dtype bfloat16 or float32)"
                )


def _resumed(entry: Entry, layers: Sequence[int], stream: Iterator[Batch]) -> _Sums | None:
    """The sums of an interrupted pass, with the stream moved to its place; None if there is nothing to resume."""
    held = entry.read(["read", "batches"])
    if held is None or not {str(layer) for layer in layers} <= held[0].keys():
        return None
    tensors, numbers = held
    logger.info("resuming the second moment where it was interrupted, after %d tokens", numbers["read"])
    done = islice(stream, numbers["batches"])
    if sum(len(window) for batch in done for window in batch) != numbers["read"]:
        logger.warning("%s in the cache is of other text; it is computed again", entry.what)
        return None
    # Copies, since what is mapped from the file would hold its room on the disk after it is replaced.
    counts = {layer: tensors[f"{layer}{_COUNTS}"].clone() for layer in layers if f"{layer}{_COUNTS}" in tensors}
    totals = {layer: tensors.pop(str(layer)).clone() for layer in layers}
    return _Sums(totals, counts, numbers["read"], numbers["batches"])


def _empty(lm: LanguageModel, layers: Iterable[int]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Sums and counts of no tokens."""
    totals, counts = {}, {}
    for layer in layers:
        experts, width = lm.experts(layer), lm.key_width(layer)
        totals[layer] = torch.zeros((experts, width, width) if experts else (width, width), dtype=torch.float64)
        if experts:
            counts[layer] = torch.zeros(experts, dtype=torch.int64)
    return totals, counts


@dataclass(frozen=True)
class KeySums:
    """Σ k kᵀ over the tokens of a shard, for a model or a copy of it, as the `bands` of each layer's."""

    layers: tuple[int, ...]

    def __call__(self, lm: LanguageModel, shard: Sequence[Batch]) -> dict[int, list[Tensor]]:
        totals, counts = _empty(lm, self.layers)
        self.add(lm, shard, totals, counts)
        # Clones: a view would be pickled with all that it is a view of.
        return {
            layer: [band.clone() for band in (*bands(total), *([counts[layer]] if layer in counts else []))]
            for layer, total in totals.items()
        }

    def add(
        self, lm: LanguageModel, shard: Sequence[Batch], totals: dict[int, Tensor], counts: dict[int, Tensor]
    ) -> None:
        """Add to what lies on and below the diagonal of (d_key, d_key) float64 sums, and to the counts of experts."""
        projections = {place: lm.projection(place) for place in self.layers}

        def read_keys(windows: Sequence[Sequence[int]]) -> dict[int, list[tuple[int, Tensor]]]:
            ids, mask = padded(windows, device=lm.device)
            with captured(inputs=projections, stop_at=projections[max(self.layers, key=order)]) as keys:
                lm.body(input_ids=ids, attention_mask=mask, use_cache=False)
            real = {}
            for layer in self.layers:
                found = token_rows(keys.pop(layer))
                places = mask.to(found.device).flatten().nonzero().flatten()
                if isinstance(found, Routed):
                    real[layer] = [(expert, seen) for expert, _, seen in found.by_expert(places)]
                else:
                    seen = found[places]
                    real[layer] = [(0, pad(seen, (0, 1), value=1.0) if makes_keys(layer) else seen)]
            return real

        with torch.inference_mode(), lm.quiet():
            for windows in shard:
                for _, keys in in_pieces(read_keys, windows):
                    for layer, total in totals.items():
                        for expert, seen in keys[layer]:
                            add_products(total[expert] if layer in counts else total, seen)
                            if layer in counts:
                                counts[layer][expert] += len(seen)


def _added(text: _Text, sums: _Sums, shards: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
    """Add shards to sums, in order, and yield each when it is added."""
    task = KeySums(tuple(sums.totals))
    if text.replicas is None:
        for shard in shards:
            task.add(text.lm, shard, sums.totals, sums.counts)
            yield shard
        return
    handed: deque[list[Batch]] = deque()

    def handing() -> Iterator[list[Batch]]:
        for shard in shards:
            handed.append(shard)
            yield shard

    for found in text.replicas.map(task, handing()):
        for layer, total in sums.totals.items():
            parts = [*bands(total), *([sums.counts[layer]] if layer in sums.counts else [])]
            for band, added in zip(parts, found[layer], strict=True):
                band += added
        yield handed.popleft()


def _read(text: _Text, layers: Sequence[int], progress: Progress, unfinished: Entry | None) -> dict[int, SecondMoment]:
    lm, tokens = text.lm, text.tokens
    stream = text.stream()
    sums = _resumed(unfinished, layers, stream) if unfinished is not None else None
    if sums is None:
        sums = _Sums(*_empty(lm, layers))
        stream = text.stream()
    progress(sums.tokens)
    kept = time.monotonic()
    for shard in _added(text, sums, text.shards(stream)):
        read = _token_count(shard)
        sums.tokens += read
        sums.batches += len(shard)
        progress(read)
        if unfinished is not None and time.monotonic() - kept >= CHECKPOINT_SECONDS:
            sums.keep(unfinished)
            kept = time.monotonic()
    if sums.tokens == 0:
        raise CorpusError("corpus: it holds no text; the second moment needs about five tokens per key dimension.")
    if sums.tokens < tokens:
        logger.warning(
            "the corpus ended after %d of %d tokens; the second moment of %d key dimensions rests on those",
            sums.tokens, tokens, lm.d_key,
        )  # fmt: skip
    sums.check_finite()
    silent = [layer for layer, total in sums.totals.items() if not bool(total.any())]
    if silent:
        raise FloatingPointError(f"all keys of layer {name_of(silent[0])} are zero on the corpus; the model is broken")
    found = {}
    for layer, total in sums.totals.items():
        counts = sums.counts.get(layer)
        seen = sums.tokens if counts is None else counts.clamp_min(1)[:, None, None]
        # In place: a matrix of an 8B model takes 1.6 GB.
        found[layer] = SecondMoment(mirror(total).div_(seen), sums.tokens, counts)
    return found


def add_products(total: Tensor, keys: Tensor) -> None:
    """Add KᵀK of (n, d_key) keys to the lower triangle of a float64 matrix, in bands of rows.

    In float64, though a consumer's GPU is slow at it: one direction can be a thousand times larger than the rest, a
    million times in the square, and need not lie along an axis; rounding to float32 would bury the smallest ones.
    """
    keys = keys.double()
    for band in bands(total):
        rows, end = band.shape
        band += (keys[:, end - rows : end].T @ keys[:, :end]).to(total.device)


def bands(total: Tensor) -> list[Tensor]:
    """The lower triangle of a square matrix, as views of rows that end where the diagonal does, or soon after.

    Of several matrices, of each in turn.
    """
    if total.dim() == 3:
        return [band for one in total for band in bands(one)]
    return [total[start : start + _ROWS, : start + _ROWS] for start in range(0, total.shape[0], _ROWS)]


def mirror(total: Tensor) -> Tensor:
    """Copy the lower triangle over the upper one, in place; of several matrices, in each."""
    if total.dim() == 3:
        for one in total:
            mirror(one)
        return total
    for start in range(0, total.shape[0], _ROWS):
        end = start + _ROWS
        corner = total[start:end, start:end]
        corner.copy_(corner.tril() + corner.tril(-1).T)
        total[start:end, end:] = total[end:, start:end].T
    return total
