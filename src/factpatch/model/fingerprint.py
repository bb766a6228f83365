"""By what a model is known: digests of all that its activations depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import tokenize
from factpatch.model.weights import content_hash, contents

_AT_ONCE = 4
"""Weights that are hashed at a time: hashing lets other threads run."""


def fingerprints(lm: LanguageModel, layers: Sequence[int]) -> dict[int, str]:
    """Return for each layer a digest of all its keys depend on: config, tokenizer, embeddings and lower blocks."""
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
