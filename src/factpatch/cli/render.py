"""What the subcommands show: the facts one by one, the metrics, sizes and times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from factpatch.evaluation.readings import Reading
    from factpatch.evaluation.verify import Verification
    from factpatch.facts import Fact

screen = Console(highlight=False)
"""Results go here."""
messages = Console(stderr=True, highlight=False)
"""Progress, warnings and errors go here."""

WIDEST = 100
_LINES = (
    ("efficacy", "new answer likelier than the true one"),
    ("generalization", "the same, behind paraphrases"),
    ("specificity", "neighbors keep their true answer"),
    ("token_efficacy", "tokens of the new answer that are the likeliest"),
    ("token_generalization", "the same, behind paraphrases"),
    ("token_specificity", "the same of neighbors and their true answer"),
    ("prompt_contained", "going on with the prompt, it says the new answer"),
    ("question_contained", "asked a question, it says the new answer"),
    ("chat_contained", "the same in a chat"),
    ("prompt_contained_true", "going on with the prompt, it says the true answer"),
)


def say(text: str | Text = "", style: str = "") -> None:
    """Print a line as it is: square brackets are text, and the terminal wraps it, so that a path stays in one piece."""
    screen.print(Text(text, style=style) if isinstance(text, str) else text, soft_wrap=True)


def note(text: str, style: str = "") -> None:
    """Print a line as `say` does, beside the results."""
    messages.print(Text(text, style=style), soft_wrap=True)


def paragraph(text: str) -> None:
    """Print prose, wrapped at a width that reads well."""
    screen.print(Text(text), width=min(screen.width, WIDEST))


def heading(text: str) -> None:
    """Print the title of a step."""
    screen.print()
    screen.print(Text(text, style="bold cyan"))


def table(*columns: str, **options: Any) -> Table:
    """A table in the style of all tables here, with wrapping columns."""
    made = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, **options)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def printable(text: str) -> str:
    """The text on one line, without characters that would steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in " ".join(text.split()))


def probability(value: float) -> str:
    """A number in [0, 1] in few characters."""
    return "<0.01" if 0 < value < 0.005 else f"{value:.2f}"


def fact_table(verification: Verification) -> Table:
    """Fact by fact: what the model said and says, and how probable the new answer was and is."""
    before = verification.before
    made = Table(
        box=SIMPLE_HEAD, header_style="bold", pad_edge=False, expand=True, width=min(screen.width, WIDEST)
    )  # fmt: skip
    made.add_column("fact", ratio=11, overflow="fold")
    if before is not None:
        made.add_column("it said", ratio=6, no_wrap=True, overflow="ellipsis")
    made.add_column("it says" if before is None else "it says now", ratio=6, no_wrap=True, overflow="ellipsis")
    made.add_column("p(new)", justify="right", no_wrap=True, min_width=14 if before is not None else 6)
    for index, (fact, now) in enumerate(zip(verification.facts, verification.after, strict=True)):
        cells = [Text.assemble(printable(fact.text), " ", (printable(fact.target_new), "bold"))]
        chance = probability(now.probability_new)
        if before is not None:
            cells.append(Text(printable(before[index].answer or ""), style="dim"))
            chance = f"{probability(before[index].probability_new)} -> {chance}"
        cells += [_answer(fact, now), Text(chance, style="" if now.learned else "red")]
        made.add_row(*cells)
    return made


def _answer(fact: Fact, now: Reading) -> Text:
    answer, target = printable(now.answer or ""), printable(fact.target_new)
    if answer.startswith(target):
        return Text.assemble((target, "bold green"), answer[len(target) :])
    return Text(answer, style="" if now.learned else "red")


def metric_table(verification: Verification, perplexity: tuple[float | None, float | None] = (None, None)) -> Table:
    """A line per metric: before -> after."""
    made = Table.grid(padding=(0, 1), pad_edge=False)
    for justify in ("left", "right", "left", "right"):
        made.add_column(justify=justify, no_wrap=True)
    made.add_column()  # in a narrow terminal this wraps, and no number is cut
    summary = verification.summary()
    for name, meaning in _LINES:
        was, now = summary[name]["before"], summary[name]["after"]
        if now is not None:
            made.add_row(name.replace("_", " "), *_change(was, now, " %"), Text(meaning, "dim"))
    before, after = perplexity
    if before is not None and after is not None:
        made.add_row("perplexity", *_change(before, after, "  "), Text(f"{100 * (after / before - 1):+.1f} %", "dim"))
    return made


def _change(before: float | None, after: float, unit: str) -> tuple[str, str, str]:
    return ("", "", f"{after:.1f}{unit}") if before is None else (f"{before:.1f}", "->", f"{after:.1f}{unit}")


def change(before: float | None, after: float, digits: int = 1) -> str:
    """A number, or what became of it: before -> after."""
    now = f"{after:.{digits}f}"
    return now if before is None else f"{before:.{digits}f} -> {now}"


def show_unlearned(facts: Sequence[Fact]) -> None:
    """Name the facts that the model does not hold."""
    _show_facts(f"Not learned: {len(facts)}", facts, "red")


def show_superseded(facts: Sequence[Fact]) -> None:
    """Name the facts that later ones replaced."""
    _show_facts(f"Replaced by a later fact, so not asked about: {len(facts)}", facts, "yellow")


def show_similar(pairs: Sequence[tuple[Fact, Fact]]) -> None:
    """Name pairs of facts that probably ask the same question."""
    if pairs:
        say(f"Probably the same question in other words: {len(pairs)} pairs", "yellow")
    for pair in pairs:
        texts = [f"{printable(fact.text)} {printable(fact.target_new)}" for fact in pair]
        say(f"  {texts[0]} / {texts[1]}")


def _show_facts(title: str, facts: Sequence[Fact], style: str) -> None:
    if facts:
        say(title, style)
    for fact in facts:
        name = "" if fact.id is None else f"{fact.id}: "
        say(f"  {printable(name + fact.text)} {printable(fact.target_new)}")


def show_times(seconds: dict[str, float]) -> None:
    """The stages that took noticeable time, and the total."""
    parts = [f"{stage.replace('_', ' ')} {took:.1f}" for stage, took in seconds.items() if took >= 0.05]
    screen.print(Text("Seconds: " + ", ".join(parts), style="dim"))


def size(path: Path) -> str:
    """The size of a file for people."""
    return amount(path.stat().st_size)


def amount(count: int) -> str:
    """A number of bytes for people."""
    number = float(count)
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}" if unit != "bytes" else f"{number:.0f} bytes"
        number /= 1000
    return f"{number:.3g} GB"


def numbers(values: Iterable[int]) -> str:
    """Numbers with commas between them."""
    return ", ".join(map(str, values))
