"""What every pool does alike."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.pool.works import Calls, Payload, Square

from factpatch.pool import Local, Pool, Processes
from factpatch.pool.dispatch import AHEAD


def test_results_come_in_the_order_of_the_shards(pool: Pool) -> None:
    shards: list[tuple[Any, ...]] = [("sleep", 0.2), *(("echo", number) for number in range(9))]
    done: list[int] = []
    assert list(pool.map(Calls(), shards, done.append)) == [0.2, *range(9)]
    assert sorted(done) == list(range(10))


def test_no_more_shards_are_read_than_are_needed(pool: Pool) -> None:
    read = 0

    def shards() -> Any:
        nonlocal read
        for read in itertools.count(1):
            yield "echo", read

    results = pool.map(Calls(), shards())
    assert read == 0
    most = 1 if isinstance(pool, Local) else AHEAD * pool.workers
    for place, result in enumerate(itertools.islice(results, 20), 1):
        assert result == place
        assert read <= place - 1 + most


def test_no_shards_are_no_results_and_open_nothing(pool: Pool) -> None:
    assert list(pool.map(Calls(key="never opened", opening=("fail", "opened")), [])) == []


def test_a_work_of_the_same_key_finds_what_was_opened_and_brings_its_own_contents(pool: Pool) -> None:
    first = list(pool.map(Square(key="same", plus=1), range(6)))
    second = list(pool.map(Square(key="same", plus=2), range(6)))
    assert [result for result, _, _ in first] == [number * number + 1 for number in range(6)]
    assert [result for result, _, _ in second] == [number * number + 2 for number in range(6)]
    there_before = {process for _, _, (process, _) in first}
    opened_with = {process: plus for _, plus, (process, _) in second}
    assert there_before & opened_with.keys()
    assert all(plus == (1 if process in there_before else 2) for process, plus in opened_with.items())
    calls = sorted(calls for _, _, calls in first + second)
    for process in {process for process, _ in calls}:
        numbers = [number for each, number in calls if each == process]
        assert numbers == list(range(1, len(numbers) + 1))


def test_a_work_of_another_key_is_opened_anew(pool: Pool) -> None:
    list(pool.map(Square(key="one", plus=1), range(4)))
    assert {plus for _, plus, _ in pool.map(Square(key="another", plus=2), range(4))} == {2}
    assert {plus for _, plus, _ in pool.map(Square(key="one", plus=3), range(4))} == {3}


def test_an_error_keeps_its_type_and_its_message_and_the_pool_goes_on(pool: Pool) -> None:
    read = 0

    def shards() -> Any:
        nonlocal read
        for read in range(100):
            yield ("fail", "the reason") if read == 3 else ("echo", read)

    with pytest.raises(KeyError, match="the reason") as caught:
        list(pool.map(Calls(), shards()))
    assert read < 20
    if not isinstance(pool, Local):
        note = "".join(getattr(caught.value, "__notes__", [str(caught.value.__cause__)]))
        assert "in shard 3" in note
        assert "raise KeyError(said)\nKeyError: 'the reason'" in note
    assert list(pool.map(Calls(), [("echo", 1), ("echo", 2)])) == [1, 2]


def test_an_error_in_opening_is_raised_and_the_next_work_is_opened(pool: Pool) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        list(pool.map(Calls(key="opens at last", opening=("missing",)), [("pid",)]))
    assert caught.value.filename == "gpt-5"
    assert list(pool.map(Calls(key="opens at last"), [("echo", 1)])) == [1]


def test_an_error_of_the_shards_themselves_is_raised(pool: Pool) -> None:
    def shards() -> Any:
        yield "echo", 1
        raise OSError("the file ends here")

    with pytest.raises(OSError, match="ends here"):
        list(pool.map(Calls(), shards()))
    assert list(pool.map(Calls(), [("echo", 1)])) == [1]


def test_an_error_in_reporting_progress_is_raised(pool: Pool) -> None:
    def progress(index: int) -> None:
        raise OSError("no terminal")

    with pytest.raises(OSError, match="no terminal"):
        list(pool.map(Calls(), [("echo", 1)] * 3, progress))
    assert list(pool.map(Calls(), [("echo", 1)])) == [1]


def test_a_map_that_is_left_does_not_disturb_the_next(pool: Pool) -> None:
    for result in pool.map(Calls(), [("echo", "left"), *[("sleep", 0.1)] * 9]):
        assert result == "left"
        break
    assert list(pool.map(Calls(), (("echo", number) for number in range(5)))) == list(range(5))


def test_a_closed_pool_says_so() -> None:
    with Local() as pool:
        started = pool.map(Calls(), [("echo", 1)])
    pool.close()
    with pytest.raises(RuntimeError, match="this Local pool is closed; make another one"):
        pool.map(Calls(), [])
    with pytest.raises(RuntimeError, match="closed"):
        next(started)
    with pytest.raises(RuntimeError, match="closed"), pool:
        pass


def test_this_process_copies_nothing() -> None:
    with Local() as pool:
        value = object()
        (result,) = pool.map(Calls(payload=lambda: None), [("echo", value)])
        assert result is value


# What only pools with workers can do.


def test_a_work_is_pickled_once_and_sent_to_each_worker_once(workers: Pool) -> None:
    payload = Payload(size=3_000_000)  # more than a pipe holds
    results = list(workers.map(Calls(payload=payload), [("unpickled",)] * 8))
    assert payload.pickled == 1
    assert {size for _, _, size in results} == {3_000_000}
    for process in {process for process, _, _ in results}:
        assert len({loaded for each, loaded, _ in results if each == process}) == 1


def test_big_shards_and_results_pass(workers: Pool) -> None:
    shards = [("echo", bytes([number]) * 3_000_000) for number in range(5)]
    assert list(workers.map(Calls(), shards)) == [value for _, value in shards]


def test_an_error_that_cannot_be_sent_is_named(workers: Pool) -> None:
    with pytest.raises(RuntimeError) as caught:
        list(workers.map(Calls(), [("fail_strangely",)]))
    assert str(caught.value) == "tests.pool.works.StrangeError: this and that"


def test_a_work_that_exits_does_not_end_the_driver(workers: Pool) -> None:
    with pytest.raises(RuntimeError, match="SystemExit: 3"):
        list(workers.map(Calls(), [("leave", 3)]))


def test_a_result_or_a_shard_that_cannot_be_sent_is_an_error(workers: Pool) -> None:
    with pytest.raises(Exception, match="pickle") as caught:
        list(workers.map(Calls(), [("function",)]))
    assert "in shard 0" in "".join(getattr(caught.value, "__notes__", [str(caught.value.__cause__)]))
    with pytest.raises(Exception, match="pickle"):
        list(workers.map(Calls(), [("echo", 1), ("echo", lambda: None)]))
    assert list(workers.map(Calls(), [("echo", 1)])) == [1]


def test_a_second_map_ends_the_first(workers: Pool) -> None:
    first = workers.map(Calls(), (("echo", number) for number in itertools.count()))
    assert next(first) == 0
    second = workers.map(Calls(), [("echo", "a"), ("echo", "b")])
    assert next(second) == "a"
    with pytest.raises(RuntimeError, match="another map has begun"):
        next(first)
    assert list(second) == ["b"]


def test_warnings_and_logs_reach_the_driver_once_and_prints_do_not(
    workers: Pool, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    text = f"it {request.node.name}"
    alone: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: alone.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("alone").addHandler(handler)
    try:
        list(workers.map(Calls(), [("say", text)] * 6))
        list(workers.map(Calls(), [("say", text)] * 6))
    finally:
        logging.getLogger("alone").removeHandler(handler)
    texts = [record.getMessage() for record in caplog.records if text in record.getMessage()]
    assert sorted(each for each in texts if "UserWarning" not in each and "alone" not in each) == [f"{text} heard"]
    (warning,) = (each for each in texts if "UserWarning" in each)
    assert "works.py" in warning
    assert alone == [f"{text} alone"]
    assert f"{text} printed" not in "".join(capfd.readouterr())


def test_workers_have_the_threads_that_they_are_given(workers: Pool) -> None:
    count = str(getattr(workers, "threads"))  # noqa: B009
    assert list(workers.map(Calls(), [("environment",)] * 3)) == [[count, count]] * 3


def test_a_worker_imports_pytorch_with_its_work_and_limits_its_threads() -> None:
    with Processes(1, threads=2) as pool:
        assert list(pool.map(Calls(opening=("restrict_threads",)), [("threads",)])) == [2]


def test_workers_import_the_same_factpatch(workers: Pool) -> None:
    import factpatch

    (found,) = workers.map(Calls(), [("source",)])
    assert Path(found) == Path(str(factpatch.__file__))
