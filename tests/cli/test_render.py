"""What the subcommands show, in terminals of any width."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from factpatch.cli.render import METRIC_LINES, heading, metric_table, note, paragraph, say
from factpatch.evaluation.metrics import UNITS
from factpatch.support.words import counted, printable, quoted


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_number_is_cut_in_a_narrow_terminal(width: int) -> None:
    summary = {name: {"before": 0.0, "after": 100.0} for name, _ in METRIC_LINES}
    console = Console(width=width, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as shown:
        console.print(metric_table(cast(Any, SimpleNamespace(summary=lambda: summary)), (31.25, 31.5)))
    lines = shown.get().splitlines()
    for name, _ in METRIC_LINES:
        numbers = r" +0\.0 -> +100\.0" + ("" if name in UNITS else " %")
        assert any(re.match(name.replace("_", " ") + numbers, line) for line in lines)
    assert "…" not in shown.get()
    assert max(map(len, lines)) <= width


def test_one_of_a_thing_is_no_plural() -> None:
    assert [counted(1, "fact"), counted(2, "fact"), counted(0, "batch")] == ["1 fact", "2 facts", "0 batches"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a\x1b[31mb", "a [31mb"),
        ("a\x9b2J\x07", "a 2J"),
        ("\u202eevil\u202c", "evil"),
        ("\u2066a\u2069\u200e\u200f", "a"),
        ("co\u00adoperate\u200b", "cooperate"),
        ("\ufeffa\u2028b", "a b"),
        ("half \ud800", "half"),
        ("a\u200db a\u200cb", "ab ab"),  # joiners that no script asks for
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", None),  # Persian
        ("\u0915\u094d\u200d\u0937", None),  # Hindi
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f\u200d\U0001f525", None),  # emoji
        ("\u6771\u4eac na\u00efve \u0627\u0644\u0642\u0627\u0647\u0631\u0629", None),
        ("\u0661\u06dd", None),  # a sign of Arabic that is of the same category, and visible
        ("\u200d\u200c", ""),
    ],
)
def test_text_is_printed_without_what_steers_hides_or_turns_it(text: str, left: str | None) -> None:
    assert printable(text) == (text if left is None else left)


def test_lines_and_columns_stay_where_a_result_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for write in (say, note, heading, paragraph):
        write("  a   b\x1b[2J\u202e\n\tc")
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert "  a   b [2J\n" in text
        assert not [c for c in text if not c.isprintable() and c != "\n"]


@pytest.mark.parametrize("value", ["x" * 1_000_000, ["\n"] * 1_000, {"a": 10**1000}])
def test_a_value_in_a_message_is_short_and_on_one_line(value: object) -> None:
    assert len(quoted(value)) < 250
    assert "\n" not in quoted(value)
    assert quoted("short") == "'short'"
