"""`factpatch analyze`: what spreading a residual over layers does to an edit, on any model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from factpatch.cli import checks, options, render
from factpatch.recipe import Recipe

if TYPE_CHECKING:
    from factpatch.facts import Fact
    from factpatch.lab.analysis.table import Outcome


@options.with_recipe("remember_keys", method="memit")
def analyze(
    recipe: Recipe,
    what: Annotated[list[str], typer.Argument(metavar="WHAT")],
    model: Annotated[str, typer.Option(metavar="MODEL")],
    facts: Annotated[str, typer.Option(metavar="FILE|N")],
    out: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
    limit: options.Limit = None,
    skip_unusable: options.SkipUnusable = False,
    spread: Annotated[Literal["even", "sqrt", "both"], typer.Option()] = "both",
    batch_size: Annotated[int, typer.Option(min=1, metavar="N")] = 10,
    text_facts: Annotated[int, typer.Option(min=0, metavar="N")] = 20,
    references: Annotated[str | None, typer.Option(metavar="DIR")] = None,
    workers: options.Workers = None,
) -> None:
    """Analyze what distributing a residual over layers does to an edit, as section 4 of the paper of BLUE does.

    Writes a figure (PNG, SVG) and its data (CSV, JSON) for each analysis, and one page about all of them. To continue
    after an interruption, repeat the command. The model's files do not change.

    Needs the extra `runs`; consistency also needs `evaluate`.

    Args:
        what: contribution, similarity, distance, single-layer, steps, bound; several of them, or all.
        model: An embedded model (see `factpatch models`), a directory, or a model ID on the Hugging Face Hub.
        facts: Facts in any format that `factpatch edit` reads; the name of a data set that was fetched; or a number N:
            the first N facts of CounterFact if it was fetched, otherwise of those that the package ships.
        out: Where to write: a new directory, or one from an earlier call. Default: analysis-MODEL in the current
            folder.
        spread: Which shares of the residual to analyze: 1/m, 1/√m, or both, with m layers left.
        batch_size: The number of facts in a batch of successive edits.
        text_facts: Write texts for this many facts; 0 for none.
        references: The folder with the reference texts and TF-IDF files that consistency is measured against, or demo.
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
        raise checks.BadArgumentError(f"--references {references}: is not a folder; give a folder, or demo.")
    out = checks.default_directory("analysis", model) if out is None else out
    with checks.argument("--out"):
        AnalysisDirectory.check_place(out)
    with checks.argument("--facts"):
        read = _facts(facts, limit, skip_unusable)
    with checks.pooled(workers) as pool:
        editor = checks.make_editor(model, recipe, {}, pool)
        with checks.argument("--facts"):
            kept, left_out = usable(editor.lm, read, editor.contexts)
        for reason in left_out:
            render.note(reason, "yellow")
        spreads = list(SPREADS) if spread == "both" else [spread]
        texts = TextOptions(text_facts, references=references, seed=recipe.seed)
        with checks.argument("--method, --facts"):
            check_study(editor, kept, spreads, batch_size)
        with checks.argument("--corpus"):  # it is read here if settings are derived from the model's keys
            study = Study(editor, kept, spreads, batch_size, texts)
        with checks.argument("--out"):
            about = study.about(corpus=corpus_from(recipe.corpus).identity, corpus_tokens=recipe.corpus_tokens)
            directory = AnalysisDirectory(out, about)
        failed: list[str] = []

        def done(outcome: Outcome) -> None:
            _show(outcome)
            if outcome.failed is not None:
                failed.append(outcome.analysis.name)

        about_study = f"{study.lm.name}, {study.editor.method.name}: {len(study.facts)} facts"
        render.say(f"{about_study}, critical layers {render.numbers(study.layers)}")
        with checks.extras():
            written = carry_out(study, chosen, directory, left_out, done)
    for path in written:
        render.note(f"Written: {path}")
    if failed:
        raise RuntimeError(f"{', '.join(failed)}: failed; the results of the others are in {out}.")


def _facts(given: str, limit: int | None, skip_unusable: bool) -> list[Fact]:
    """The facts of a file, or the first N if a number was given."""
    from factpatch.data import facts_at_hand, load_facts

    if not given.isdecimal() or Path(given).is_file():
        return load_facts(given, limit, skip_unusable)
    read, which = facts_at_hand(int(given))
    render.note(f"--facts {given}: {which}.")
    return read[:limit]


def _show(outcome: Outcome) -> None:
    """Print what one analysis found, in words."""
    render.heading(f"{outcome.analysis.title} ({outcome.analysis.source})")
    if outcome.findings is None:
        render.say(f"Failed: {outcome.failed}", "red")
        return
    for sentence in outcome.analysis.in_words(outcome.findings):
        render.paragraph(sentence)
    for note in outcome.findings.notes:
        render.paragraph(f"Note: {note}")
