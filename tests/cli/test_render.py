"""What the subcommands show, in terminals of any width."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from factpatch.cli.render import METRIC_LINES, metric_table
from factpatch.support.words import counted


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_number_is_cut_in_a_narrow_terminal(width: int) -> None:
    summary = {name: {"before": 0.0, "after": 100.0} for name, _ in METRIC_LINES}
    console = Console(width=width, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as shown:
        console.print(metric_table(cast(Any, SimpleNamespace(summary=lambda: summary)), (31.25, 31.5)))
    lines = shown.get().splitlines()
    for name, _ in METRIC_LINES:
        assert any(line.startswith(name.replace("_", " ")) and "0.0 -> 100.0 %" in line for line in lines)
    assert "…" not in shown.get()
    assert max(map(len, lines)) <= width


def test_one_of_a_thing_is_no_plural() -> None:
    assert [counted(1, "fact"), counted(2, "fact"), counted(0, "batch")] == ["1 fact", "2 facts", "0 batches"]
