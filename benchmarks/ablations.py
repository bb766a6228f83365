"""Where the residual goes: spreads of one method under equal settings, with and without earlier keys.

Each row edits the same facts in the same batches, one after another, in a session of its own under DIRECTORY, and is
measured when it is through. A run that was killed goes on where it was; value targets that rows share are optimized
once. Prints a Markdown table, with the difference of S from the first row and its 95 % bootstrap interval over facts.

    python benchmarks/ablations.py smollm2-135m --facts counterfact.json --limit 200 --directory ablations/
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from kept import kept

from factpatch import METHODS, Editor, Fact, Method, load_facts, verify
from factpatch.evaluation.intervals import score_difference
from factpatch.evaluation.metrics import SCORED
from factpatch.evaluation.perplexity import perplexity
from factpatch.facts import identity
from factpatch.methods import parse_assignments, settings_of, with_settings
from factpatch.model.language_model import LanguageModel
from factpatch.model.loading import load_language_model
from factpatch.model.weights import model_hash
from factpatch.presets.preset import preset_for
from factpatch.session import Session
from factpatch.statistics.corpus import corpus_from
from factpatch.strategies import Boundary, Each, Even, First, SquareRoot
from factpatch.values.shared import SharedTargets

SPREADS = {"boundary": Boundary(), "even": Even(), "square root": SquareRoot(), "first": First(), "each": Each()}


def row(
    lm: LanguageModel,
    name: str,
    method: Method,
    batches: Sequence[Sequence[Fact]],
    directory: Path,
    weights: str,
    targets: SharedTargets,
    **given: Any,
) -> dict[str, Any]:
    """Edit and measure, or read what was measured before; the model is as it was.

    Args:
        weights: `model_hash` of the unedited model.

    Raises:
        ValueError: the directory holds another measurement under this name.
    """
    place = directory / name
    editor = Editor(lm, method=method, optimize=targets, progress=False, **given)
    facts = [fact for batch in batches for fact in batch]
    about = {
        "weights": weights,
        "corpus": corpus_from(None).identity,
        "method": settings_of(method),
        "given": given,
        "batches": [len(batch) for batch in batches],
        "facts": identity(facts),
    }

    def measure() -> dict[str, Any]:
        session = Session(place) if place.exists() else Session.create(place, editor, batches)
        with session.locked():
            session.attach(editor)
            while session.pending:
                session.edit(editor, ask=False)
                print(f"{name}: batch {len(session.finished)} of {len(batches)}", flush=True)
        measured = verify(lm, None, facts, answers=False)
        by_fact: dict[str, dict[str, float | None]] = {}
        for one in measured.rows():
            by_fact.setdefault(one.metric, {})[one.fact] = one.value
        return {
            "summary": {metric: numbers["after"] for metric, numbers in measured.summary().items()},
            "perplexity": perplexity(lm),
            "facts": {metric: by_fact[metric] for metric in SCORED},
        }

    try:
        return kept(directory / f"{name}.json", about, measure)
    finally:
        editor.reset()


def table(rows: dict[str, dict[str, Any]], unedited: float) -> str:
    """The rows as Markdown, each compared with the first."""
    lines = [
        "| | efficacy | generalization | specificity | S | argmax | perplexity | S − S of the first row |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first, *_ = rows.values()
    for name, found in rows.items():
        names = (*SCORED, "score", "strict_efficacy")
        numbers = " | ".join(f"{found['summary'][metric]:.1f}" for metric in names)
        apart = score_difference(*([one["facts"][metric] for metric in SCORED] for one in (found, first)))
        difference = "" if found is first else f"{apart.value:+.1f} ({apart.low:+.1f} to {apart.high:+.1f})"
        lines.append(f"| {name} | {numbers} | {100 * (found['perplexity'] / unedited - 1):+.1f} % | {difference} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--skip", type=int, default=0, help="facts to leave out at the beginning of the file")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--directory", type=Path, required=True, help="where sessions and results are kept")
    parser.add_argument("--method", choices=list(METHODS), default="memit", help="whose target and solver are used")
    parser.add_argument("--spreads", nargs="+", choices=list(SPREADS), default=list(SPREADS))
    parser.add_argument("--keys", nargs="+", choices=("earlier", "none"), default=["earlier", "none"])
    parser.add_argument("--variant", help="of the preset")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    facts = load_facts(options.facts, options.skip + options.limit)[options.skip :]
    batches = [facts[start : start + options.batch_size] for start in range(0, len(facts), options.batch_size)]
    lm = load_language_model(options.model)
    preset = preset_for(lm)
    given = {**preset.settings(options.method, options.variant), **parse_assignments(options.settings)}
    method = with_settings(METHODS[options.method], given)
    options.directory.mkdir(parents=True, exist_ok=True)
    weights = model_hash(lm.model)
    targets = SharedTargets(options.directory / "targets", weights)
    unedited = perplexity(lm)
    rows = {}
    for keys in options.keys:
        for spread in options.spreads:
            name = f"{spread}, {'with' if keys == 'earlier' else 'without'} earlier keys"
            one = replace(method, spread=SPREADS[spread])
            layers = preset.layers_for(lm.num_layers)
            rows[name] = row(
                lm, name, one, batches, options.directory, weights, targets,
                critical_layers=layers, remember_keys=keys == "earlier",
            )  # fmt: skip
    print(table(rows, unedited))


if __name__ == "__main__":
    main()
