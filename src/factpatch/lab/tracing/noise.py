"""The noise that corrupts a subject."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from factpatch.lab.tracing.prompts import TokenizedPrompt
from factpatch.model.language_model import LanguageModel

FACTOR = 3.0
"""Standard deviations of subject embeddings. Source: ROME (arXiv:2202.05262), appendix B.1."""
SAMPLES = 10
"""How many times a subject is corrupted. Source: ROME's code."""


@dataclass(frozen=True)
class Noise:
    """Gaussian noise for the embeddings of subjects' tokens.

    Raises:
        ValueError: A field is out of range.
    """

    scale: float
    """Its standard deviation."""
    samples: int = SAMPLES
    """How many times each subject is corrupted."""
    seed: int = 0
    """Of the drawing, from 0 up."""

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(
                f"noise: its standard deviation is {self.scale:g}, which corrupts nothing; it must be > 0."
            )
        if self.samples < 1:
            raise ValueError(f"samples={self.samples}: corrupt each subject at least once.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: give a number from 0 up.")

    def draw(self, row: TokenizedPrompt, width: int) -> Tensor:
        """The noise of one prompt, (samples, subject tokens, width), float64.

        It depends on the prompt's text and the seed, and not on what else is traced. ROME's code draws the same numbers
        for every prompt; here prompts are corrupted independently.
        """
        words = np.frombuffer(hashlib.sha256(row.prompt.text.encode()).digest(), dtype="<u4")
        random = np.random.default_rng([self.seed, *words.tolist()])
        return torch.from_numpy(self.scale * random.standard_normal((self.samples, len(row.subject), width)))


def embedding_spread(lm: LanguageModel, rows: Sequence[TokenizedPrompt]) -> float:
    """The standard deviation of all entries of the embeddings of the subjects' tokens, each as often as it occurs.

    ROME's code tokenizes subjects by themselves; here they are read in their prompts, where noise is added.
    """
    ids = torch.tensor([row.ids[index] for row in rows for index in row.subject])
    with torch.inference_mode():
        found: Tensor = lm.model.get_input_embeddings()(ids.to(lm.device))
    return float(found.double().std())
