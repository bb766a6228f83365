"""The mean second moment E[k kᵀ] of keys over a text corpus, for all critical layers in one pass, with its cache."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from factpatch.cache import cache_directory
from factpatch.corpus import Corpus
from factpatch.files import atomic_write
from factpatch.model.batching import batches, padded
from factpatch.model.hooks import captured
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import tokenize
from factpatch.model.weights import content_hash

logger = logging.getLogger(__name__)

WINDOW = 512
"""Longest piece of a document that is run at once, in tokens."""
TOKENS_PER_DIMENSION = 10
"""Default length of the corpus, in tokens per key dimension (arXiv:2506.04226)."""
_DOCUMENTS_AT_ONCE = 64


@dataclass(frozen=True)
class SecondMoment:
    """E[k kᵀ] of the keys of one layer."""

    matrix: Tensor
    """(d_key, d_key), activations squared, averaged over tokens; float64."""
    tokens: int
    """How many tokens were averaged."""

    @staticmethod
    def read(
        lm: LanguageModel,
        layers: Sequence[int],
        corpus: Corpus,
        tokens: int | None = None,
        cache: Path | None = None,
        progress: Callable[[int], None] = lambda tokens: None,
    ) -> dict[int, SecondMoment]:
        """Return the second moment of every layer, from the cache where it holds them, else in one pass for all others.

        Args:
            tokens: how many tokens to read; 10 per key dimension by default. A shorter corpus is read to its end.
            cache: the folder of cached moments; the user's cache by default.
            progress: called with the number of tokens read since the last call.

        Raises:
            ValueError: the corpus is empty.
            FloatingPointError: a key is not finite.
        """
        tokens = TOKENS_PER_DIMENSION * lm.d_key if tokens is None else tokens
        if tokens < 1:
            raise ValueError(f"tokens={tokens}: must be positive.")
        folder = cache or cache_directory() / "second_moment"
        identities = {
            layer: {
                "model": print_,
                "layer": str(layer),
                "corpus": corpus.identity,
                "tokens": str(tokens),
                "window": str(lm.window(WINDOW)),
                "dtype": str(lm.dtype).removeprefix("torch."),
            }
            for layer, print_ in fingerprints(lm, layers).items()
        }
        found = {layer: moment for layer in layers if (moment := _cached(folder, identities[layer])) is not None}
        missing = [layer for layer in layers if layer not in found]
        if missing:
            computed = _read(lm, missing, corpus, tokens, progress)
            for layer, moment in computed.items():
                _store(folder, identities[layer], moment)
            found |= computed
        return {layer: found[layer] for layer in layers}


def fingerprints(lm: LanguageModel, layers: Sequence[int]) -> dict[int, str]:
    """For each layer a digest of all its keys depend on: config, tokenizer, embeddings and the blocks up to it."""
    config = {name: value for name, value in lm.config.to_dict().items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(lm.tokenizer.backend_tokenizer.to_str().encode())
    digest.update(repr(tokenize(lm.tokenizer, [""])).encode())  # special tokens can also be set outside the backend
    in_blocks = {id(parameter) for block in lm.blocks for parameter in block.parameters()}

    def add(named: Iterable[tuple[str, Tensor]]) -> None:
        for name, parameter in named:
            digest.update(f"{name}:{content_hash(parameter)}".encode())

    add((name, parameter) for name, parameter in lm.model.named_parameters() if id(parameter) not in in_blocks)
    prints = {}
    for layer in range(max(layers) + 1):
        add(lm.block(layer).named_parameters())
        prints[layer] = digest.hexdigest()
    return {layer: prints[layer] for layer in layers}


def _windows(lm: LanguageModel, corpus: Corpus, tokens: int) -> Iterator[list[list[int]]]:
    """Token windows of the corpus in lists of documents, `tokens` in all."""
    left = tokens
    size = lm.window(WINDOW)
    documents = (document for document in corpus.documents() if document.strip())
    while left > 0 and (some := list(islice(documents, _DOCUMENTS_AT_ONCE))):
        windows = []
        for ids in tokenize(lm.tokenizer, some):
            for start in range(0, len(ids), size):
                window = ids[start : start + size][:left]
                if window:
                    windows.append(window)
                    left -= len(window)
        yield windows


def _read(
    lm: LanguageModel, layers: Sequence[int], corpus: Corpus, tokens: int, progress: Callable[[int], None]
) -> dict[int, SecondMoment]:
    sums = {layer: torch.zeros(lm.d_key, lm.d_key, dtype=torch.float64) for layer in layers}
    count = 0
    projections = {layer: lm.down_projection(layer) for layer in layers}
    with torch.inference_mode(), lm.quiet():
        for windows in _windows(lm, corpus, tokens):
            for group in batches([len(window) for window in windows]):
                ids, mask = padded([windows[index] for index in group], device=lm.device)
                with captured(inputs=projections, stop_after=lm.block(max(layers))) as keys:
                    lm.body(input_ids=ids, attention_mask=mask, use_cache=False)
                for layer in layers:
                    flat = keys[layer].reshape(-1, lm.d_key)
                    # One direction can be a thousand times larger than the rest, which float32 would bury.
                    real = flat[mask.to(flat.device).flatten().bool()].double()
                    sums[layer] += (real.T @ real).cpu()
                read = int(mask.sum())
                count += read
                progress(read)
    if count == 0:
        raise ValueError("corpus: it holds no text; the second moment needs about ten tokens per key dimension.")
    if count < tokens:
        logger.warning(
            "the corpus ended after %d of %d tokens; the second moment of %d key dimensions rests on those",
            count, tokens, lm.d_key,
        )  # fmt: skip
    for layer, total in sums.items():
        if not bool(torch.isfinite(total).all()):
            raise FloatingPointError(f"keys of layer {layer} are not finite on the corpus")
    return {layer: SecondMoment(total / count, count) for layer, total in sums.items()}


def _path(folder: Path, identity: dict[str, str]) -> Path:
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    return folder / f"{name}.safetensors"


def _store(folder: Path, identity: dict[str, str], moment: SecondMoment) -> None:
    metadata = {**identity, "read": str(moment.tokens), "sha256": content_hash(moment.matrix)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(_path(folder, identity), lambda path: save_file({"matrix": moment.matrix}, path, metadata))
    except OSError as error:
        logger.warning("the second moment of layer %s is not kept for the next time: %s", identity["layer"], error)


def _cached(folder: Path, identity: dict[str, str]) -> SecondMoment | None:
    """The entry, or None if it is absent, damaged or another's: such an entry is computed again, never used."""
    path = _path(folder, identity)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            matrix = file.get_tensor("matrix")
    except (SafetensorError, OSError, ValueError) as error:
        logger.warning("the cached second moment %s cannot be read (%s); it is computed again", path, error)
        return None
    if any(metadata.get(name) != value for name, value in identity.items()):
        logger.warning("the cached second moment %s belongs to something else; it is computed again", path)
        return None
    if metadata.get("sha256") != content_hash(matrix):
        logger.warning("the cached second moment %s is damaged; it is computed again", path)
        return None
    if not metadata.get("read", "").isdigit():
        logger.warning("the cached second moment %s is damaged; it is computed again", path)
        return None
    return SecondMoment(matrix, int(metadata["read"]))
