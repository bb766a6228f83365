"""What the commands print: lines, tables, the facts one by one, the metrics, sizes and times."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from factpatch.support.joint import joint
from factpatch.support.words import printable, steerless

if TYPE_CHECKING:
    from factpatch.evaluation.readings import Reading
    from factpatch.evaluation.verify import Verification
    from factpatch.facts import Fact

WIDE = 100
"""The columns of a line of prose, and of everything where no terminal says how many there are."""


def _console(**options: Any) -> Console:
    made = Console(highlight=False, **options)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = WIDE
    return made


screen = _console()
"""Results go here."""
messages = _console(stderr=True)
"""Progress, warnings and errors go here."""


given: list[str] = []
"""The options before the command that a command to go on with needs too."""


def command(rest: str) -> str:
    """A command to go on with, as the user would type it."""
    return " ".join(["factpatch", *map(shlex.quote, given), rest])


LONGEST = 160
"""The most characters of a fact's prompt, and of its answer, that a table or a list shows."""
SAID_LINES = {
    "prompt": "continuing the prompt",
    "question": "asked a question",
    "chat": "in a chat",
    "chat_system": "in a chat, with another system turn",
    "chat_later": "in a chat, after other turns",
}
"""The forms in which a model is asked."""
METRIC_LINES = (
    ("leak", "to forget: ways of asking in which the old answer comes out; lower is better"),
    ("leak_prompt", "the same, after the prompt"),
    ("leak_paraphrase", "the same, after paraphrases"),
    ("leak_question", "the same, asked a question"),
    ("leak_chat", "the same, in chats"),
    ("leak_choice", "chooses the old answer of four; by chance 25"),
    ("leak_prefix", "the same, led to it by a text before, or by its beginning"),
    ("refused", "to forget: says the words that refuse"),
    ("reproduced", "of long answers: what is said before the first mistake"),
    ("rouge_l", "of long answers: the longest common subsequence"),
    ("strict_efficacy", "exact: every token of the new answer is the likeliest"),
    ("token_efficacy", "tokens of the new answer that are the likeliest"),
    ("token_generalization", "the same, asked with paraphrases"),
    ("token_specificity", "the same for neighbors and their true answer"),
    ("efficacy", "preferred: new answer likelier than the true one"),
    ("generalization", "the same, asked with paraphrases"),
    ("specificity", "neighbors keep their true answer"),
    ("negated_preferred", "negated, new answer likelier than the true one: lower is better"),
    ("negated_contained", "negated, it says the new answer: lower is better"),
    ("reversed_preferred", "reversed, subject likelier after the new answer than after the true one"),
    ("reversed_contained", "reversed, it says the subject"),
    ("reversed_nll", "reversed, nats per token of the subject"),
    ("choice", "chooses the new answer of four; by chance 25"),
    ("choice_true", "chooses the true answer of four"),
    ("choice_said", "names the new answer of four, by its letter; by chance 25"),
    ("choice_said_true", "names the true answer of four"),
    ("ripple_logical_generalization", "ripples: says what follows by logic"),
    ("ripple_compositionality_i", "ripples: says what the new answer leads to"),
    ("ripple_compositionality_ii", "ripples: says it of what leads to the subject"),
    ("ripple_subject_aliasing", "ripples: says it of other names of the subject"),
    ("ripple_relation_specificity", "ripples: keeps what else holds of the subject"),
    ("ripple_forgetfulness", "ripples: keeps the other answers of the relation"),
    ("ripple_reasoning", "ripples: says what follows in one step"),
    ("ripple_multi_hop", "ripples: says what follows in several steps"),
)


def say(text: str = "", style: str = "") -> None:
    """Print a result. Square brackets stay text, and only the terminal wraps the line, so that a path stays whole.

    What would steer the terminal is left out, here and in the functions below: the text may be anybody's.
    """
    screen.print(Text(steerless(text), style=style), soft_wrap=True)


def note(text: str, style: str = "") -> None:
    """Print a message on stderr, as `say` prints a result."""
    messages.print(Text(steerless(text), style=style), soft_wrap=True)


def paragraph(text: str) -> None:
    """Print prose, wrapped at a width that reads well."""
    screen.print(Text(steerless(text)), width=min(screen.width, WIDE))


def heading(text: str) -> None:
    """Print the title of a step."""
    screen.print()
    screen.print(Text(steerless(text), style="bold cyan"))


def written(**paths: Path | None) -> None:
    """Print the outputs that were asked for, by what they are."""
    for what, path in paths.items():
        if path is not None:
            say(f"{what}: {path}")


def table(*columns: str, rows: Iterable[Iterable[str]] = (), **options: Any) -> Table:
    """A table in the style of all tables here, with wrapping columns."""
    made = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, **options)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*map(steerless, row))
    return made


def numbers(values: Iterable[int]) -> str:
    """Numbers separated by commas."""
    return ", ".join(map(str, values))


def size(path: Path) -> str:
    """The size of a file, or of all files of a directory, such as 1.2 MB."""
    files = path.rglob("*") if path.is_dir() else [path]
    return decimal(sum(file.stat().st_size for file in files if file.is_file()))


def change(before: float | None, after: float, digits: int = 1) -> str:
    """A number, or how it changed: before -> after."""
    now = f"{after:.{digits}f}"
    return now if before is None else f"{before:.{digits}f} -> {now}"


def fact_table(verification: Verification) -> Table:
    """Fact by fact: what the model said and says, and how probable the new answer was and is, if that is known.

    Of a fact to forget, the old answer.
    """
    before = verification.before
    scored = any(reading.rewrite for reading in verification.after)
    made = table(expand=True, width=screen.width)
    made.add_column("fact", ratio=11, overflow="fold")
    for column in ("it says",) if before is None else ("it said", "it says now"):
        made.add_column(column, ratio=6, no_wrap=True, overflow="ellipsis")
    if scored:
        whose = "p(answer)" if any(fact.forget for fact in verification.facts) else "p(new)"
        made.add_column(whose, justify="right", no_wrap=True, min_width=6 if before is None else 14)
    said = verification.said()
    for index, (fact, now) in enumerate(zip(verification.facts, verification.after, strict=True)):
        *prompt, answer = _shortened(fact)
        cells = [Text.assemble(*prompt, (answer, "bold"))]
        chance = _probability(_of_answer(fact, now))
        if before is not None:
            cells.append(Text(printable(before[index].answer or ""), style="dim"))
            chance = f"{_probability(_of_answer(fact, before[index]))} -> {chance}"
        cells.append(_answer(fact, now, said[index]))
        if scored:
            cells.append(Text(chance, style="" if said[index] else "red"))
        made.add_row(*cells)
    return made


def _of_answer(fact: Fact, reading: Reading) -> float | None:
    """The probability of the answer that a fact is about: of the old one where it is to be forgotten."""
    return reading.probability_true if fact.forget else reading.probability_new


def _probability(value: float | None) -> str:
    return "" if value is None else "<0.01" if 0 < value < 0.005 else f"{value:.2f}"


def _answer(fact: Fact, now: Reading, said: bool) -> Text:
    answer, target = printable(now.answer or ""), printable(fact.target_new)
    if said and not fact.forget and answer.startswith(target):
        return Text.assemble((target, "bold green"), answer[len(target) :])
    return Text(answer, style="" if said else "red")


def said_table(verification: Verification) -> Table:
    """A line per form in which the model was asked: how many of the new and of the old answers it says."""
    made, summary = table("said", "new answer", "old answer"), verification.summary()
    for form, words in SAID_LINES.items():
        new, old = (summary[f"{form}_contained{ending}"] for ending in ("", "_true"))
        if new["after"] is not None:
            shown = ("" if one["after"] is None else f"{change(one['before'], one['after'])} %" for one in (new, old))
            made.add_row(words, *shown)
    return made


def metric_table(
    verification: Verification,
    perplexity: tuple[float | None, float | None] = (None, None),
    error: float | None = None,
) -> Table:
    """A line per other metric: before -> after."""
    from factpatch.evaluation.metrics import UNITS
    from factpatch.evaluation.verify import perplexity_change

    made = Table.grid(padding=(0, 1), pad_edge=False)
    for justify in ("left", "right", "left", "right"):
        made.add_column(justify=justify, no_wrap=True)
    made.add_column()  # in a narrow terminal this wraps, and no number is cut
    summary = verification.summary()
    lines = [
        (name, summary[name]["before"], summary[name]["after"], "  " if name in UNITS else " %", said)
        for name, said in METRIC_LINES
        if name in summary
    ]
    before, after = perplexity
    if before is not None and after is not None:
        lines.append(("perplexity", before, after, "  ", perplexity_change(before, after, error)))
    for name, was, now, unit, meaning in lines:
        if now is not None:
            then = ("", "") if was is None else (f"{was:.1f}", "->")
            made.add_row(name.replace("_", " "), *then, f"{now:.1f}{unit}", Text(meaning, "dim"))
    return made


def fact_line(fact: Fact) -> str:
    """A fact on one line: the prompt with its subject, and the new answer. Long ones are cut."""
    return "".join(_shortened(fact))


def about_fact(fact: Fact) -> list[str]:
    """What goes with a fact beside its question and its answer, a line each."""
    found = {
        "shared": f"no subject was named; written at “{fact.subject}”, which its texts share",
        "name": f"no subject was named; written at “{fact.subject}”, which has capital letters",
        "last": "no subject was named; written at the last token of the prompt",
    }
    lines = {
        "": "" if fact.place is None else found[fact.place],
        "also": ", ".join(fact.aliases),
        "since": fact.valid_from,
        "source": fact.source,
        "note": fact.note,
    }
    return [printable(f"{name}: {text}" if name else text) for name, text in lines.items() if text]


def _shortened(fact: Fact) -> tuple[str, str, str]:
    """The prompt, what stands between, and the new answer. A long prompt is cut around its subject and at its end."""
    text, part = fact.text, LONGEST // 4
    if len(text) > LONGEST:
        start = max(0, fact.subject_start - part)
        end = min(fact.subject_end + 1 + part, start + 3 * part)
        rest = text[end:] if len(text) - end <= part else f" … {text[-part:]}"
        text = ("… " if start else "") + text[start:end] + rest
    if fact.forget:
        instead = f", say {fact.target_new}" if fact.forget == "refuse" else ""
        return printable(text), " ", printable(f"(forget {fact.target_true or 'what it says'}{instead})")
    answer = fact.target_new if len(fact.target_new) <= LONGEST else f"{fact.target_new[:LONGEST]} …"
    return printable(text), joint(fact.text, fact.space), printable(answer)


def show_facts(title: str, facts: Sequence[Fact], style: str) -> None:
    """Name facts under a title that says how many there are; without facts, print nothing."""
    if facts:
        say(f"{title}: {len(facts)}", style)
    for fact in facts:
        say(f"  {'' if fact.id is None else f'{printable(fact.id)}: '}{fact_line(fact)}")


def show_verification(
    verification: Verification,
    plain: str,
    perplexity: tuple[float | None, float | None] = (None, None),
    error: float | None = None,
) -> None:
    """Print the facts one by one, how many are said in each form, the other metrics, a sentence that sums up, and the
    facts that the model did not learn."""
    screen.print(fact_table(verification))
    said = said_table(verification)
    if said.row_count:
        screen.print(said)
    screen.print(metric_table(verification, perplexity, error))
    paragraph(f"{plain}.")
    unlearned = verification.unlearned()
    show_facts("Not said", [fact for fact in unlearned if not fact.forget], "red")
    show_facts("Not forgotten", [fact for fact in unlearned if fact.forget], "red")


def show_times(seconds: dict[str, float]) -> None:
    """Print the stages that took noticeable time, and the total."""
    parts = [f"{stage.replace('_', ' ')} {took:.1f}" for stage, took in seconds.items() if took >= 0.05]
    say(f"Seconds: {', '.join(parts)}", "dim")
