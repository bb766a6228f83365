"""Values that a target finds for some facts on the unedited model, kept in the cache: what a norm anchor is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from factpatch.facts import Fact
from factpatch.model.batching import parts
from factpatch.model.fingerprint import fingerprint
from factpatch.model.language_model import LanguageModel
from factpatch.statistics.cache import Entry
from factpatch.statistics.second_moment import shown
from factpatch.strategies.target import Target
from factpatch.support.cache import cache_directory
from factpatch.values.contexts import read_of
from factpatch.values.optimize import TargetValues
from factpatch.values.reading import SubjectRows, read_values

Find = Callable[[Sequence[Fact], int, Target], TargetValues]
AT_ONCE = 100
"""Facts whose values are optimized together, which bounds the memory."""


def reference_values(
    lm: LanguageModel,
    facts: Sequence[Fact],
    layers: Sequence[int],
    target: Target,
    contexts: Sequence[str],
    find: Find,
    about: Sequence[Any] = (),
) -> dict[int, Tensor]:
    """Return for each layer the output that the target adds δ to, plus δ: (facts, d_value), on the CPU.

    It takes as long as the value optimization of an edit of these facts in each layer, so it is kept in the cache, by
    what it depends on: the model's content, the layer, the facts, the contexts and the target's settings.

    Args:
        lm: The unedited model.
        target: Its `plain` is optimized, and the last of its `beside` is read.
        find: Optimizes the values of facts at a layer for a target, in these contexts.
        about: What the result depends on besides, such as the precision; JSON-able.

    Raises:
        ValueError: There are no facts, or one of them cannot be edited.
        FloatingPointError: A loss or a gradient is not finite.
    """
    if not facts:
        raise ValueError("facts: there are none, so nothing can be measured.")
    entries = _entries(lm, facts, layers, target, contexts, about)
    found = {}
    for layer in layers:
        entry = entries.get(layer)
        kept = None if entry is None else entry.read(())
        if kept is not None:
            found[layer] = kept[0]["values"]
            continue
        batches = parts(facts, AT_ONCE)
        found[layer] = torch.cat([_values(lm, batch, layer, target, contexts, find) for batch in batches])
        if entry is not None:
            entry.write({"values": found[layer]})
    return found


def _entries(
    lm: LanguageModel,
    facts: Sequence[Fact],
    layers: Sequence[int],
    target: Target,
    contexts: Sequence[str],
    about: Sequence[Any],
) -> dict[int, Entry]:
    """Where the values of each layer are kept; nowhere if the weights cannot be hashed."""
    model = fingerprint(lm)  # δ depends on all layers
    if model is None:
        return {}
    whole = [read_of(facts, contexts), list(contexts), repr(target.plain), str(lm.dtype), repr(lm.frame), *about]
    digest = hashlib.sha256(json.dumps(whole).encode()).hexdigest()
    return {
        layer: Entry(
            cache_directory() / "reference_values",
            f"the reference values of layer {layer}",
            {"model": model, "layer": str(layer), "site": target.beside[-1], "about": digest, **shown(lm)},
        )
        for layer in layers
    }


def _values(
    lm: LanguageModel, facts: Sequence[Fact], layer: int, target: Target, contexts: Sequence[str], find: Find
) -> Tensor:
    delta = find(facts, layer, target.plain).delta
    output = read_values(lm, SubjectRows.of(lm, facts, contexts[:1]), layer, target.beside[-1])
    return (output.to(delta) + delta).cpu().contiguous()
