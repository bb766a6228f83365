"""Where there is no terminal, long work reports its progress in the log every so often."""

from __future__ import annotations

import logging

import pytest

from factpatch.support import progress
from factpatch.support.progress import bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in an entry that a test may set."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_last_line", 0.0)
    return now


def test_a_line_reports_what_is_done_and_left(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "factpatch"), bar("reading", 120) as advance:
        for clock[0] in (10, 19, 40, 41):
            advance(10)
    assert caplog.messages == ["reading: 30 of 120 (25 %), 0:00:40 elapsed, 0:02:00 left"]


def test_many_short_bars_report_as_often_as_a_long_one(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "factpatch"):
        for number in range(10):
            with bar(f"batch {number}", None) as advance:
                clock[0] += 10
                advance(1)
    assert caplog.messages == [f"batch {number}: 1 done, 0:00:10 elapsed" for number in (1, 3, 5, 7, 9)]


def test_a_bar_that_is_not_shown_reports_nothing(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "factpatch"), bar("asking", 2, shown=False) as advance:
        clock[0] = 100
        advance(1)
    assert not caplog.messages


class Watching:
    """Notes what it hears; raises at a step."""

    def __init__(self, most: int = 100) -> None:
        self.heard: list[object] = []
        self.most = most

    def begin(self, description: str, total: int | None) -> None:
        self.heard.append((description, total))

    def advance(self, steps: int) -> None:
        self.heard.append(steps)
        if steps > self.most:
            raise TimeoutError

    def settle(self, done: int, of: int) -> None:
        self.heard.append(f"{done} of {of}")


def test_a_watcher_hears_of_bars_in_place_of_the_log(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    watcher = Watching()
    with caplog.at_level(logging.INFO, "factpatch"), progress.watched(watcher), bar("reading", 5) as advance:
        clock[0] = 100
        progress.settle(1, 2)
        advance(3)
    progress.settle(2, 2)
    assert watcher.heard == [("reading", 5), "1 of 2", 3]
    assert not caplog.messages


def test_what_a_watcher_raises_ends_the_work() -> None:
    with pytest.raises(TimeoutError), progress.watched(Watching(most=2)), bar("reading", 5) as advance:
        advance(3)
