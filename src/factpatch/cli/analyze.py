"""`factpatch analyze`: what spreading a residual over layers does to an edit, on any model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factpatch.cli import checks, options, render
from factpatch.recipe import Recipe

if TYPE_CHECKING:
    from factpatch.facts import Fact
    from factpatch.lab.analysis.study import Study
    from factpatch.lab.analysis.table import Outcome


class SpreadChoice(str, Enum):
    """How the residual of the last critical layer is shared out."""

    EVEN = "even"
    SQRT = "sqrt"
    BOTH = "both"


@options.with_recipe("remember_keys", method="memit")
def analyze(
    recipe: Recipe,
    what: Annotated[list[str], typer.Argument(metavar="WHAT…")],
    model: Annotated[str, typer.Option("--model", metavar="MODEL")],
    facts: Annotated[str, typer.Option("--facts", metavar="FILE|N")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR")] = None,
    limit: options.Limit = None,
    skip_unusable: options.SkipUnusable = False,
    spread: Annotated[SpreadChoice, typer.Option("--spread")] = SpreadChoice.BOTH,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N")] = 10,
    text_facts: Annotated[int, typer.Option("--text-facts", min=0, metavar="N")] = 20,
    references: Annotated[str | None, typer.Option("--references", metavar="DIR")] = None,
) -> None:
    """Analyze what distributing a residual over layers does to an edit, as section 4 of the paper of BLUE does.

    Writes a figure (PNG, SVG) and its data (CSV, JSON) for each analysis, and one page about all that DIR has. Called
    again after it was stopped, it goes on where it was. The model's own files are left as they are.

    It needs the extra `runs`; consistency needs `evaluate` as well.

    Args:
        what: contribution, similarity, distance, single-layer, steps, bound; several of them, or all.
        model: An embedded model (see `factpatch models`), a directory, or an id of the Hugging Face Hub.
        facts: Facts in any format that `factpatch edit` reads, or the name of a data set that was fetched. Or a number:
            the first N facts of CounterFact if it was fetched, else of those that the package ships.
        out: Where to write; a new directory, or one to go on in. Default: analysis-MODEL in this folder.
        spread: The shares that are compared: 1/m, 1/√m, or both, with m layers left.
        batch_size: How many facts a batch of successive edits has.
        text_facts: Facts that texts are written for; 0 for none.
        references: Folder with the reference texts and TF-IDF files that consistency is measured against, or demo.
            Default: the published ones, if they were fetched.
    """
    from factpatch.evaluation.verify import usable
    from factpatch.lab.analysis.directory import AnalysisDirectory
    from factpatch.lab.analysis.execute import analyze as carry_out
    from factpatch.lab.analysis.study import SPREADS, Study, TextOptions, check_study
    from factpatch.lab.analysis.table import analyses_named
    from factpatch.lab.runs.execute import check_extra
    from factpatch.statistics.corpus import corpus_from

    with checks.argument("WHAT"):
        chosen = analyses_named(what)
    with checks.extras():
        check_extra("an analysis")
    if references is not None and references != "demo" and not Path(references).is_dir():
        raise checks.BadArgumentError(f"--references {references}: is not a folder; give one, or demo.")
    out = checks.default_directory("analysis", model) if out is None else out
    with checks.argument("--out"):
        AnalysisDirectory.check_place(out)
    with checks.argument("--facts"):
        read = _facts(facts, limit, skip_unusable)
    editor = checks.make_editor(model, recipe, {})
    with checks.argument("--facts"):
        kept, left_out = usable(editor.lm, read, editor.contexts)
    for reason in left_out:
        render.note(reason, "yellow")
    spreads = list(SPREADS) if spread is SpreadChoice.BOTH else [spread.value]
    texts = TextOptions(text_facts, references=references, seed=recipe.seed)
    with checks.argument("--method, --facts"):
        check_study(editor, kept, spreads, batch_size)
    with checks.argument("--corpus"):  # which is read here, where settings are derived from the model's keys
        study = Study(editor, kept, spreads, batch_size, texts)
    with checks.argument("--out"):
        about = study.about(corpus=corpus_from(recipe.corpus).identity, corpus_tokens=recipe.corpus_tokens)
        directory = AnalysisDirectory(out, about)
    failed: list[str] = []

    def done(outcome: Outcome) -> None:
        _show(outcome)
        if outcome.failed is not None:
            failed.append(outcome.analysis.name)

    _say_what(study)
    with checks.extras():
        written = carry_out(study, chosen, directory, left_out, done)
    for path in written:
        render.note(f"Written: {path}")
    if failed:
        raise RuntimeError(f"{', '.join(failed)}: failed; what the others found is in {out}.")


def _facts(given: str, limit: int | None, skip_unusable: bool) -> list[Fact]:
    """The facts of a file, or so many as a number says."""
    from factpatch.data import facts_at_hand, load_facts

    if not given.isdecimal() or Path(given).is_file():
        return load_facts(given, limit, skip_unusable)
    read, which = facts_at_hand(int(given))
    render.note(f"--facts {given}: {which}.")
    return read[:limit]


def _say_what(study: Study) -> None:
    render.say(
        f"{study.lm.name}, {study.editor.method.name}: {len(study.facts)} facts, critical layers "
        f"{render.numbers(study.layers)}"
    )


def _show(outcome: Outcome) -> None:
    """What one analysis found, in words."""
    render.heading(f"{outcome.analysis.title} ({outcome.analysis.source})")
    if outcome.findings is None:
        render.say(f"Failed: {outcome.failed}", "red")
        return
    for sentence in outcome.analysis.in_words(outcome.findings):
        render.paragraph(sentence)
    for note in outcome.findings.notes:
        render.paragraph(f"Note: {note}")
