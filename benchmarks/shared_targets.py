"""Value targets that several runs need, optimized once."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from factpatch.files import atomic_write
from factpatch.model.weights import content_hash
from factpatch.values.optimize import TargetValues, optimize_values


class SharedTargets:
    """Value optimization that remembers on disk: the outcome depends on weights, facts, contexts and settings."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.saved = 0.0
        """Seconds that optimizations took which were read from disk instead."""
        directory.mkdir(parents=True, exist_ok=True)

    def __call__(
        self, lm: Any, facts: Any, layer: int, target: Any, contexts: Any, progress: Any, precision: Any = None
    ) -> TargetValues:
        weights = [content_hash(lm.weight(index)) for index in range(lm.num_layers)]
        about = [
            weights,
            [fact.to_dict() for fact in facts],
            layer,
            repr(target),
            list(contexts),
            repr(precision),
            torch.get_num_threads(),
        ]
        path = self.directory / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()}.safetensors"
        if not path.exists():
            start = time.perf_counter()
            found = optimize_values(lm, facts, layer, target, contexts, progress, precision=precision)
            took = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
            atomic_write(path, lambda draft: save_file({**vars(found), "seconds": took}, draft))
            return found
        kept = load_file(path)
        self.saved += float(kept.pop("seconds"))
        return TargetValues(**kept)
