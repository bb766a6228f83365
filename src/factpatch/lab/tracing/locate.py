"""From facts to the layers in which a model keeps them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from factpatch.lab.tracing.averages import Summary
from factpatch.lab.tracing.critical import check_size
from factpatch.lab.tracing.directory import TraceDirectory
from factpatch.lab.tracing.noise import FACTOR, SAMPLES, Noise, embedding_spread
from factpatch.lab.tracing.prompts import Prompt, TokenizedPrompt, known_prompts, tokenize_prompts
from factpatch.lab.tracing.restoring import PUBLISHED, check_kinds, check_window, scaled_window
from factpatch.lab.tracing.trace import Trace, positions, trace
from factpatch.model.language_model import LanguageModel
from factpatch.model.weights import model_hash
from factpatch.support.progress import bar


@dataclass(frozen=True)
class TraceSettings:
    """How facts are traced.

    Raises:
        ValueError: There is no noise.
    """

    kinds: tuple[str, ...] = PUBLISHED
    """What is restored, by the names in `KINDS`."""
    window: int | None = None
    """How many layers of MLPs or attentions are restored at once. None scales the published number."""
    noise: float = FACTOR
    """The noise on the subject's embeddings, in standard deviations of these."""
    samples: int = SAMPLES
    """How many times each subject is corrupted."""
    seed: int = 0
    """Of the noise and of the resampling that the proposal rests on."""

    def __post_init__(self) -> None:
        if not 0 < self.noise < math.inf:
            raise ValueError(
                f"noise={self.noise:g}: give standard deviations above 0; without noise nothing is corrupted."
            )


def locate(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    settings: TraceSettings | None = None,
    *,
    directory: str | Path | None = None,
    size: int | None = None,
    figures: int = 0,
    progress: bool = False,
) -> Summary:
    """Trace the facts that a model knows, and propose critical layers.

    Args:
        lm: The model; it is left as it was.
        prompts: What it is asked. Those that it answers otherwise are left out.
        directory: Where to keep every trace and the results, see `factpatch.lab.tracing.directory`; new, or begun with
            the same settings.
        size: How many layers to propose; by default by the model's depth.
        figures: The number of facts to draw heat maps of in the directory.
        progress: Whether to show a bar on a terminal.

    Raises:
        ValueError: A setting or a prompt cannot be used, the model knows no prompt, or the directory holds something
            else.
        ImportError: A directory is given, and matplotlib is not installed.
        OSError: The directory cannot be written.
        OutOfMemoryError: Memory does not suffice for a single prompt.
    """
    settings = TraceSettings() if settings is None else settings
    check_kinds(settings.kinds)
    window = scaled_window(lm.num_layers) if settings.window is None else settings.window
    check_window(window, lm.num_layers)
    if size is not None:
        check_size(size, lm.num_layers)
    rows = tokenize_prompts(lm, prompts)
    noise = Noise(settings.noise * embedding_spread(lm, rows), settings.samples, settings.seed)
    known = known_prompts(lm, rows)

    def traced(left: Sequence[TokenizedPrompt]) -> Iterator[Trace]:
        with bar("tracing", positions(left), progress) as advance:
            yield from trace(lm, left, noise, settings.kinds, window, advance)

    if directory is None:
        return Summary(list(traced(known)), len(rows), size, settings.seed)
    kept = TraceDirectory(directory, _about(lm, prompts, replace(settings, window=window)))
    with kept.opened() as done:
        finished = {one.index for one in done}
        for one in traced([one for one in known if one.index not in finished]):
            kept.add(one)
            done.append(one)
        summary = Summary(sorted(done, key=lambda one: one.index), len(rows), size, settings.seed)
        kept.write(summary, figures)
    return summary


def _about(lm: LanguageModel, prompts: Sequence[Prompt], settings: TraceSettings) -> dict[str, Any]:
    """What traces depend on, JSON-able."""
    asked = json.dumps([asdict(prompt) for prompt in prompts]).encode()
    return {
        "model": lm.name,
        "weights": model_hash(lm.model),
        "dtype": str(lm.dtype),
        "chat": lm.frame.chat,
        "prompts": hashlib.sha256(asked).hexdigest(),
        **asdict(settings),
    }
