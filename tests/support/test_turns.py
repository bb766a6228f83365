"""What one process does, others wait for; and a process that dies does not block them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from threading import Thread

import pytest
from tests import processes

from factpatch.support.turns import one_at_a_time

if not hasattr(os, "fork"):
    pytest.skip("needs processes that fork", allow_module_level=True)


def test_a_process_waits_for_another_one_and_no_longer_when_that_is_killed(tmp_path: Path) -> None:
    def hold() -> None:
        with one_at_a_time(tmp_path / "lock", "something"):
            (tmp_path / "held").touch()
            time.sleep(600)

    holder = processes.start(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    entered: list[bool] = []

    def enter() -> None:
        with one_at_a_time(tmp_path / "lock", "something") as waited:
            entered.append(waited)

    waiting = Thread(target=enter)
    waiting.start()
    time.sleep(0.3)
    assert not entered
    os.kill(holder, signal.SIGKILL)
    processes.wait(holder)
    waiting.join(60)
    assert entered == [True]
    with one_at_a_time(tmp_path / "lock", "something") as waited:
        assert not waited
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()


def test_where_no_lock_can_be_made_the_work_is_done_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with one_at_a_time(tmp_path / "file" / "lock", "something"):
        done = True
    assert done
