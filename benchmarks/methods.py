"""Every method on one sequence of batches: the table of docs/results.md.

Each method edits the same facts in the same batches, one after another, in a session of its own under DIRECTORY, and
is measured when it is through. A run that was killed goes on where it was; value targets that two methods share (PRUNE
edits as MEMIT does) are optimized once. Prints the table as Markdown, with what was not learned and why.

    python benchmarks/methods.py smollm2-135m --facts counterfact.json --limit 300 --batch-size 30 --directory runs
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from kept import kept

from factpatch import METHODS, Editor, Fact, load_facts, verify
from factpatch.evaluation.perplexity import held_out_text, perplexity
from factpatch.evaluation.verify import Verification
from factpatch.facts import identity
from factpatch.methods import parse_assignments, settings_of
from factpatch.model.language_model import LanguageModel
from factpatch.model.loading import load_language_model
from factpatch.model.weights import model_hash
from factpatch.session import Session
from factpatch.support.files import write_json
from factpatch.values.shared import SharedTargets

COLUMNS = ("efficacy", "generalization", "specificity", "score")
# A value whose loss ended above this, in nats, was not found: its new object is less probable than 1/e.
FOUND = 1.0


def run(
    lm: LanguageModel,
    method: str,
    batches: Sequence[Sequence[Fact]],
    text: str,
    directory: Path,
    targets: SharedTargets,
    about: dict[str, Any],
    given: dict[str, Any],
) -> dict[str, Any]:
    """Edit and measure with one method, or read what was measured before; the model is as it was.

    `about` is what every row depends on, and `given` are further arguments of the editor.
    """
    editor = Editor(lm, method=method, optimize=targets, **given)
    about = {
        **about,
        "method": settings_of(editor.method),
        "layers": editor.critical_layers,
        "given": given,
        "batches": [len(batch) for batch in batches],
    }
    try:
        return kept(
            directory / f"{method}.json", about, lambda: measured_row(editor, method, batches, text, directory, targets)
        )
    finally:
        editor.reset()


def measured_row(
    editor: Editor,
    method: str,
    batches: Sequence[Sequence[Fact]],
    text: str,
    directory: Path,
    targets: SharedTargets,
) -> dict[str, Any]:
    """Edit and measure with one method; the editor holds the edits afterwards."""
    place = directory / method
    session = Session(place) if place.exists() else Session.create(place, editor, batches)
    notes = place / "notes.json"
    with session.locked():
        session.attach(editor)
        while session.pending:
            start = time.perf_counter()
            session.edit(editor)
            last = editor.edits[-1].targets.get(editor.critical_layers[-1])  # a method may optimize no values
            loss = [0.0] * len(editor.edits[-1].batches[0].facts) if last is None else last.loss.tolist()
            note = {"loss": loss, "saved": targets.take_seconds()}
            write_json(notes, {**_read(notes), str(len(session.finished)): note})
            print(f"{method}: batch {len(session.finished)}, {time.perf_counter() - start:.0f} s", flush=True)
    facts = [fact for batch in batches for fact in batch]
    measured = verify(editor.lm, None, facts, answers=False)
    summary = measured.summary()
    return {
        "method": method,
        **{name: summary[name]["after"] for name in COLUMNS},
        "argmax": summary["strict_efficacy"]["after"],
        "perplexity": perplexity(editor.lm, text),
        "seconds": sum(sum(batch.seconds.values()) for batch in session.finished)
        + sum(note["saved"] for note in _read(notes).values()),
        "bytes": editor.patch.num_bytes,
        "not_exact": _reasons(measured, session, _read(notes)),
        "settings": editor.patch.settings,
    }


def _read(notes: Path) -> dict[str, Any]:
    return dict(json.loads(notes.read_text("utf-8"))) if notes.exists() else {}


def _reasons(measured: Verification, session: Session, notes: dict[str, Any]) -> dict[str, list[str]]:
    """The facts that are not exact in the end, by reason."""
    # A kill between a batch and its note loses the losses of that batch.
    flat = [
        loss
        for number, batch in enumerate(session.finished, start=1)
        for loss in notes.get(str(number), {"loss": [0.0] * batch.facts})["loss"]
    ]
    held = [exact for batch in session.finished for exact in batch.exact]
    reasons: dict[str, list[str]] = {"no value found": [], "found, not written": [], "written, forgotten": []}
    for fact, reading, loss, was_held in zip(measured.facts, measured.after, flat, held, strict=True):
        if not reading.exact:
            reason = "written, forgotten" if was_held else "no value found" if loss > FOUND else "found, not written"
            reasons[reason].append(f"{fact.text} {fact.target_new}")
    return reasons


def table(rows: Sequence[dict[str, Any]], unedited: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "| method | efficacy | generalization | specificity | S | argmax | perplexity | not exact | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in (unedited, *rows):
        numbers = " | ".join("–" if row[name] is None else f"{row[name]:.1f}" for name in (*COLUMNS, "argmax"))
        change = f"{row['perplexity']:.2f} ({100 * (row['perplexity'] / unedited['perplexity'] - 1):+.1f} %)"
        missing = " + ".join(str(len(facts)) for facts in row["not_exact"].values())
        lines.append(f"| {row['method']} | {numbers} | {change} | {missing} | {row['seconds']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=30)
    parser.add_argument("--directory", type=Path, required=True, help="where sessions and results are kept")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--corpus", help="text for the second moment; see `factpatch edit`")
    parser.add_argument("--corpus-tokens", type=int)
    parser.add_argument("--variant", help="of the preset")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--text", type=Path, help="text for perplexity; the package's held-out text by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    facts = load_facts(options.facts, options.limit)
    batches = [facts[start : start + options.batch_size] for start in range(0, len(facts), options.batch_size)]
    text = options.text.read_text("utf-8") if options.text else held_out_text()
    options.directory.mkdir(parents=True, exist_ok=True)
    lm = load_language_model(options.model)
    weights = model_hash(lm.model)
    targets = SharedTargets(options.directory / "targets", weights)
    about = {"weights": weights, "facts": identity(facts), "text": hashlib.sha256(text.encode()).hexdigest()}

    def before() -> dict[str, Any]:
        summary = verify(lm, None, facts, answers=False).summary()
        numbers = {name: summary[name]["after"] for name in COLUMNS}
        argmax = summary["strict_efficacy"]["after"]
        rest = {"perplexity": perplexity(lm, text), "seconds": 0.0, "not_exact": {}}
        return {"method": "unedited", **numbers, "argmax": argmax, **rest}

    unedited = kept(options.directory / "unedited.json", about, before)
    given = {
        "variant": options.variant,
        "settings": parse_assignments(options.settings),
        "corpus": options.corpus,
        "corpus_tokens": options.corpus_tokens,
    }
    rows = [run(lm, method, batches, text, options.directory, targets, about, given) for method in options.methods]
    print(table(rows, unedited))
    for row in rows:
        for reason, missing in row["not_exact"].items():
            print(f"\n{row['method']}, {reason}: {len(missing)}", *missing, sep="\n  ")


if __name__ == "__main__":
    main()
