"""What a search leaves behind: the preset, what it rests on, and a plot."""

from __future__ import annotations

import logging
from pathlib import Path

from factpatch.files import write_json
from factpatch.plots import plot_tradeoff
from factpatch.presets.written import save_preset
from factpatch.tuning.search import Tuning

logger = logging.getLogger(__name__)

PRESET, EVIDENCE, PLOT = "preset.yaml", "tuning.json", "tradeoff.svg"


def write_outputs(folder: Path, found: Tuning) -> None:
    """Write what there is so far; each file appears whole.

    Raises:
        OSError: a file cannot be written.
    """
    write_json(folder / EVIDENCE, found.to_dict())
    if found.preset is None:
        return
    save_preset(folder / PRESET, found.preset, remarks(found))
    last = [trial for trial in found.trials if trial.error is None and trial.facts == found.trials[-1].facts]
    try:
        plot_tradeoff(
            folder / PLOT,
            [(100 * (trial.perplexity - 1), trial.score) for trial in last],
            [trial.candidate == found.chosen for trial in last],
            f"{found.preset.model}, {found.method}, {last[0].facts} facts",
        )
    except ImportError as error:
        logger.warning("no plot: %s", error)


def remarks(found: Tuning) -> list[str]:
    """What stands above the preset's numbers."""
    lines = [
        f"Written by factpatch tune, which measured {found.method}. The rows of other methods are derived: the same"
    ]
    lines += ["layers and value optimization, and weights that write the same share of a residual.", ""]
    for what, trial in found.checked:
        lines.append(
            f"{what}: S {trial.score:.1f} (efficacy {trial.efficacy:.1f}, generalization {trial.generalization:.1f}, "
            f"specificity {trial.specificity:.1f}), perplexity x {trial.perplexity:.3f}, {trial.facts} facts kept aside"
        )
    return lines
