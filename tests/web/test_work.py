"""Jobs take turns, say how far they are, and end where they are cancelled."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
from tests.web.conftest import until

from factpatch.support.progress import bar, settle
from factpatch.web.work import Job, State, Worker


def test_jobs_run_one_by_one_in_the_order_of_arrival() -> None:
    worker, gate, order = Worker(), threading.Event(), []

    def run(name: str) -> Any:
        def work(job: Job[None]) -> None:
            gate.wait()
            order.append(name)

        return work

    jobs = [worker.submit(Job(name, run(name), 60)) for name in "abc"]
    until(lambda: jobs[0].state is State.AT_WORK)
    assert [worker.before(job) for job in jobs] == [0, 1, 2]
    assert worker.length == 3
    gate.set()
    until(lambda: all(job.over.is_set() for job in jobs))
    assert order == ["a", "b", "c"]
    until(lambda: worker.length == 0)


def test_a_job_reports_the_stage_its_share_and_the_facts_learned() -> None:
    seen = []

    def work(job: Job[str]) -> str:
        with bar("optimizing", 8) as advance:
            settle(1, 4)
            advance(2)
            seen.append(job.progress)
        with bar("asking", None) as advance:
            advance(1)
            seen.append(job.progress)
        return "found"

    job = Job("teaching", work, 60)
    job.work()
    assert (job.state, job.result) == (State.DONE, "found")
    assert (seen[0].stage, seen[0].share, seen[0].facts) == ("optimizing", 0.25, (1, 4))
    assert seen[0].left is not None
    assert (seen[1].stage, seen[1].share, seen[1].facts, seen[1].left) == ("asking", None, None, None)


def test_a_job_that_is_cancelled_ends_at_the_next_step() -> None:
    steps = []

    def work(job: Job[None]) -> None:
        with bar("optimizing", 8) as advance:
            for step in range(8):
                steps.append(step)
                if step == 2:
                    job.cancel()
                advance(1)

    job = Job("teaching", work, 60)
    job.work()
    assert (job.state, job.error, steps) == (State.CANCELLED, "Cancelled.", [0, 1, 2])


def test_a_job_that_is_cancelled_while_it_waits_does_not_begin() -> None:
    job = Job("teaching", lambda job: pytest.fail("began"), 60)
    job.cancel()
    job.work()
    assert job.state is State.CANCELLED


def test_a_job_that_takes_too_long_is_cancelled() -> None:
    job = Job("teaching", lambda job: until(lambda: job.check() is not None), 0.05)
    job.work()
    assert job.state is State.CANCELLED
    assert "longer than" in job.error


def test_an_error_becomes_words_and_what_nobody_expects_a_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(error: Exception) -> Job[None]:
        def work(job: Job[None]) -> None:
            raise error

        job = Job("teaching", work, 60)
        with caplog.at_level(logging.ERROR):
            job.work()
        assert job.state is State.FAILED
        return job

    assert fails(ValueError("facts: too many")).error == "facts: too many"
    assert not caplog.records
    assert fails(KeyError("x")).error == "KeyError: 'x' (the server's log shows where)"
    assert "Traceback" in caplog.text
