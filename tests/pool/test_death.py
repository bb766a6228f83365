"""Workers that die: of a shard, of a work, of nothing, or before they begin."""

from __future__ import annotations

import logging
import multiprocessing.spawn
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.pool.works import Calls

from factpatch.pool import OnRay, Pool, Processes, WorkerDied


@pytest.mark.parametrize("place", [0, 3, 7])
@pytest.mark.parametrize("deaths", [1, 2])
def test_a_shard_whose_worker_dies_is_repeated(
    workers: Pool, place: int, deaths: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards: list[tuple[Any, ...]] = [("echo", number) for number in range(8)]
    shards[place] = ("kill", deaths)
    done: list[int] = []
    results = list(workers.map(Calls(directory=tmp_path), shards, done.append))
    assert results == [*range(place), "survived", *range(place + 1, 8)]
    assert len(list(tmp_path.iterdir())) == deaths
    assert sorted(done) == list(range(8))
    warned = [record.getMessage() for record in caplog.records if "another one repeats" in record.getMessage()]
    assert len(warned) == deaths
    assert all(f"in shard {place};" in each for each in warned)


def test_a_shard_that_ends_three_workers_is_given_up(workers: Pool, tmp_path: Path) -> None:
    shards = [("echo", 1), ("echo", 2), ("kill", 99), *[("echo", 3)] * 5]
    with pytest.raises(WorkerDied) as caught:
        list(workers.map(Calls(directory=tmp_path), shards))
    assert caught.value.shard == 2
    assert str(caught.value).startswith("shard 2 ended 3 workers; the last ")
    assert "take fewer workers or smaller shards" in str(caught.value)
    if isinstance(workers, Processes):
        assert caught.value.exit_code == -signal.SIGKILL
        assert "was killed with SIGKILL (exit code -9)" in str(caught.value)
        assert str(caught.value).endswith("Its last output:\nthe last words")
    assert len(list(tmp_path.iterdir())) == 3
    assert list(workers.map(Calls(), [("echo", 1)] * 3)) == [1] * 3


def test_a_worker_that_dies_in_opening_is_replaced(workers: Pool, tmp_path: Path) -> None:
    work = Calls(key=f"dies in opening {tmp_path}", directory=tmp_path, opening=("kill", 2))
    assert list(workers.map(work, [("echo", number) for number in range(4)])) == list(range(4))


def test_a_worker_that_exits_says_its_exit_code(processes: Pool) -> None:
    with pytest.raises(WorkerDied, match=r"ended with exit code 3\. Map this shard without workers") as caught:
        list(processes.map(Calls(), [("quit_at_once", 3)]))
    assert caught.value.exit_code == 3


def test_a_worker_that_dies_between_maps_is_replaced(workers: Pool) -> None:
    for process in set(workers.map(Calls(), [("pid",)] * 4)):
        os.kill(process, signal.SIGKILL)
    assert list(workers.map(Calls(), [("echo", number) for number in range(5)])) == list(range(5))


def test_workers_that_do_not_start_are_given_up(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no such interpreter' >&2\nexit 7\n")
    broken.chmod(0o755)
    python = multiprocessing.spawn.get_executable()
    with Processes(2) as pool:
        multiprocessing.spawn.set_executable(str(broken))
        try:
            with pytest.raises(WorkerDied, match=r"3 workers ended before they were ready; .*exit code 7") as caught:
                list(pool.map(Calls(), [("echo", 1)] * 4))
        finally:
            multiprocessing.spawn.set_executable(os.fsdecode(python))
        assert str(caught.value).endswith("no such interpreter")
        assert (caught.value.shard, caught.value.exit_code) == (None, 7)
        assert list(pool.map(Calls(), [("echo", 1)] * 4)) == [1] * 4


def test_a_worker_of_another_version_is_refused(workers: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    for process in set(workers.map(Calls(), [("pid",)] * 4)):
        os.kill(process, signal.SIGKILL)
    monkeypatch.setattr("factpatch.pool.dispatch.versions", lambda: {"torch": "1.0"})
    with pytest.raises(RuntimeError, match=r"workers have other versions than this process: .*torch"):
        list(workers.map(Calls(), [("pid",)] * 4))
    monkeypatch.undo()
    assert list(workers.map(Calls(), [("echo", 1)])) == [1]


def test_an_interrupt_ends_the_workers_but_not_the_pool(workers: Pool) -> None:
    def interrupted(index: int) -> None:
        raise KeyboardInterrupt

    before = set(workers.map(Calls(), [("pid",)] * 4))
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(workers.map(Calls(), [("echo", 1), *[("sleep", 300)] * 4], interrupted))
    if not isinstance(workers, OnRay):  # which ends them in its own time
        assert not any(alive(process) for process in before)
    assert time.monotonic() - start < 100
    assert list(workers.map(Calls(), [("echo", 1)] * 3)) == [1] * 3


def test_closing_does_not_wait_for_a_shard(caplog: pytest.LogCaptureFixture) -> None:
    pool = Processes(2)
    results = pool.map(Calls(), [("pid",), *[("sleep", 300)] * 9])
    process = next(results)
    start = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - start < 100
    assert not alive(process)
    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match="closed"):
        next(results)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
