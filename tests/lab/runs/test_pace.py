"""The time that is probably left."""

from __future__ import annotations

import pytest

from factpatch.lab.runs.pace import Pace


def test_the_time_left_counts_neither_finished_nor_abandoned_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("factpatch.lab.runs.pace.time.monotonic", lambda: now[0])
    pace = Pace([4, 4, 2])
    pace.begin()
    assert pace.left() == "time left unknown"
    pace.skip(3)  # by a process that was killed
    now[0] += 60
    pace.advance()
    assert pace.left() == "about 6 min left"
    pace.begin()
    now[0] += 60
    pace.advance()
    pace.give_up()
    assert pace.left() == "about 2 min left"
