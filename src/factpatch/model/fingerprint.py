"""By what a model is known: digests of all that its activations depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import tokenize
from factpatch.model.weights import content_hash, contents

_AT_ONCE = 4
"""Weights that are hashed at a time: hashing lets other threads run."""
_KNOWN: ContextVar[dict[tuple[int, int], str] | None] = ContextVar("known", default=None)
"""Digests of models that nobody changes, by the model's identity and the layer; see `unchanged`."""


@contextmanager
def unchanged() -> Iterator[None]:
    """Take the digests of each model once: nobody changes a model inside, or makes one."""
    token = _KNOWN.set({})
    try:
        yield
    finally:
        _KNOWN.reset(token)


def fingerprints(lm: LanguageModel, layers: Sequence[int]) -> dict[int, str]:
    """Return for each layer a digest of all its keys depend on: config, tokenizer, embeddings and lower blocks."""
    known = _KNOWN.get()
    if known is None:
        return _taken(lm, layers)
    model = id(lm.model)
    if any((model, layer) not in known for layer in layers):
        known |= {(model, layer): found for layer, found in _taken(lm, range(max(layers) + 1)).items()}
    return {layer: known[model, layer] for layer in layers}


def _taken(lm: LanguageModel, layers: Sequence[int]) -> dict[int, str]:
    config = {name: value for name, value in lm.config.to_dict().items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(lm.tokenizer.backend_tokenizer.to_str().encode())
    digest.update(repr(tokenize(lm.tokenizer, [""])).encode())  # special tokens can also be set outside the backend
    in_blocks = f"{lm.architecture.blocks}."
    with ThreadPoolExecutor(_AT_ONCE) as threads:

        def add(weights: Iterable[tuple[str, Tensor]]) -> None:
            named = list(weights)
            hashes = threads.map(content_hash, (weight for _, weight in named))
            for (name, _), found in zip(named, hashes, strict=True):
                digest.update(f"{name}:{found}".encode())

        everywhere = contents(lm.model, lm.quantized)
        add((name, weight) for name, weight in everywhere if not name.startswith(in_blocks))
        prints = {}
        for layer in range(max(layers) + 1):
            add(contents(lm.block(layer), lm.quantized))
            prints[layer] = digest.hexdigest()
    return {layer: prints[layer] for layer in layers}


def fingerprint(lm: LanguageModel) -> str | None:
    """Return a digest of all that outputs depend on; None if weights are set aside, which cannot be hashed."""
    if any(weight.is_meta for _, weight in contents(lm.model, lm.quantized)):
        return None
    last = lm.num_layers - 1
    return fingerprints(lm, [last])[last]
