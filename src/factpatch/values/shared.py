"""Target values that several methods need, optimized once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from factpatch.facts import Fact
from factpatch.model.batching import parts
from factpatch.model.language_model import LanguageModel
from factpatch.model.replicas import Replicas
from factpatch.support.files import atomic_write
from factpatch.support.turns import one_at_a_time
from factpatch.values.contexts import read_of
from factpatch.values.optimize import Optimize, TargetValues, optimize_values
from factpatch.values.shards import InShards


class SharedTargets:
    """An `Optimize` that caches its results on disk: give it to `Editor(optimize=...)`.

    A result depends on the model, its weights, the facts, the contexts and the target's settings, and on nothing else:
    methods that differ in the solver or the regularizer share it as long as they hold the same weights. Of processes
    that need the same result, one optimizes it and the others wait.

    Args:
        directory: Where the targets are kept; created if necessary.
        model: Identifies the model beyond its editable weights, such as `model_hash` of the unedited one.
        replicas: The model and its copies, to share the facts among; results that are found so are kept apart, since
            they differ by rounding.
    """

    def __init__(self, directory: str | Path, model: str, replicas: Replicas | None = None) -> None:
        self.directory = Path(directory)
        self.model = model
        self.optimize: Optimize = optimize_values if replicas is None else InShards(replicas)
        self._seconds = 0.0
        self.directory.mkdir(parents=True, exist_ok=True)

    def __call__(self, lm: LanguageModel, facts: Sequence[Fact], *about: Any, **options: Any) -> TargetValues:
        """As `optimize_values`, whose further options count as settings."""
        layer, target, contexts = about
        progress = options.pop("progress", lambda finished: None)
        digest = self._digest(
            lm, read_of(facts, contexts), layer, repr(target), list(contexts), repr(sorted(options.items()))
        )
        path, begun = self.directory / f"{digest}.safetensors", time.perf_counter()
        if not path.exists():
            what = f"the values of {len(facts)} facts at layer {layer}"
            with one_at_a_time(path.with_suffix(".lock"), what):
                if not path.exists():
                    return self._optimized(path, lm, facts, *about, progress=progress, **options)
        waited = time.perf_counter() - begun
        kept = load_file(path)
        # The stage that waited has counted that time already.
        self._seconds += max(0.0, float(kept.pop("seconds")) - waited)
        progress(len(facts) * target.evaluations)
        return TargetValues(**{name: value.to(lm.device) for name, value in kept.items()})

    def _optimized(
        self, path: Path, lm: LanguageModel, facts: Sequence[Fact], *about: Any, **options: Any
    ) -> TargetValues:
        start = time.perf_counter()
        found = self.optimize(lm, facts, *about, **options)
        took = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
        tensors = {name: value.cpu().contiguous() for name, value in vars(found).items()}
        atomic_write(path, lambda draft: save_file({**tensors, "seconds": took}, draft))
        return found

    def take_seconds(self) -> float:
        """Return the time that results read from disk since the last call once took."""
        taken, self._seconds = self._seconds, 0.0
        return taken

    def _digest(self, lm: LanguageModel, *about: Any) -> str:
        weights = [lm.weight_hash(layer) for layer in range(lm.num_layers)]
        # The order of summation, and so the rounding, depends on the number of threads.
        place = [str(lm.device), str(lm.dtype), repr(lm.frame), torch.get_num_threads()]
        whole = [self.model, place, weights, *about]
        if isinstance(self.optimize, InShards):  # whose values differ by rounding
            whole.append(InShards.__name__)
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


class InBatches:
    """An `Optimize` that passes facts on to another, `size` at a time; the values differ by rounding only.

    Around one that caches, an interruption costs at most one batch, and the same batches are found again.
    """

    def __init__(self, optimize: Callable[..., TargetValues], size: int) -> None:
        self.optimize = optimize
        self.size = size
        self.identity: str | None = getattr(optimize, "identity", None)

    def __call__(self, lm: LanguageModel, facts: Sequence[Fact], *about: Any, **options: Any) -> TargetValues:
        found = [self.optimize(lm, batch, *about, **options) for batch in parts(facts, self.size)]
        return TargetValues.joined(found)
