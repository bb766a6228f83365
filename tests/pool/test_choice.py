"""How a pool is chosen, and what is wrong with the choice; Ray's part without Ray."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tests.pool.works import Calls

from factpatch.pool import Local, OnRay, Processes, pool_from
from factpatch.pool.base import cores


@pytest.mark.parametrize("text", [None, 0, 1, "1", " 1 "])
def test_one_worker_is_this_process(text: Any) -> None:
    assert isinstance(pool_from(text), Local)


@pytest.mark.parametrize("text", [3, "3"])
def test_a_number_is_one_of_processes_which_share_the_cores(text: Any) -> None:
    pool = pool_from(text)
    assert isinstance(pool, Processes)
    assert (pool.workers, pool.threads) == (3, max(1, cores() // 3))
    assert Processes(cores() + 1).threads == 1


@pytest.mark.parametrize(
    "text",
    ["", "many", "-2", -2, "2.5", "ray", "ray:", "ray:0", "ray:-1", "ray:x", ":4", "dask:4", "ray:a:4", "http://a:4"],
)
def test_another_text_is_refused_with_the_forms(text: Any) -> None:
    with pytest.raises(
        ValueError, match=r"workers=.*: give a number of processes \(4\), ray:N .*, or a cluster \(ray://"
    ):
        pool_from(text)


@pytest.mark.parametrize(
    "text", ["ray://", "ray://host", "ray://host:port", "ray://host:1?workers=0", "ray://host:1?workers=",
             "ray://host:1?threads=2", "ray://host:1?workers=2&gpus=0", "ray://host:1/path", "ray://host:99999"]
)  # fmt: skip
def test_a_wrong_address_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"is not the address of a Ray; give ray://HOST:PORT, with \?workers=N, \?gpus=G or \?workers=N&gpus=G",
    ):
        pool_from(text)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"workers=0: give a whole number from 1 on"):
        Processes(0)
    with pytest.raises(ValueError, match=r"threads=-1: give a whole number"):
        Processes(2, threads=-1)
    with pytest.raises(ValueError, match=r"where=0: give a whole number"):
        OnRay(0)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'factpatch\[ray\]'"):
        pool_from("ray:2")


class FullError(Exception):
    pass


class FakeRay(ModuleType):
    """As much of Ray as is asked before, and after, it does something."""

    def __init__(self, **answers: Any) -> None:
        super().__init__("ray")
        self.shut_down = 0
        self.started: dict[str, Any] = {}
        self.environment: dict[str, str] = {}
        self.exceptions = SimpleNamespace(ObjectStoreFullError=FullError, OutOfDiskError=FullError)
        self.__dict__.update(answers)

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        self.started = options
        self.environment = dict(os.environ)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 6.0}

    def remote(self, wrapped: Any) -> Any:
        return wrapped

    def shutdown(self) -> None:
        self.shut_down += 1


def put_in_place(monkeypatch: pytest.MonkeyPatch, ray: FakeRay) -> FakeRay:
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", ray.exceptions)
    return ray


def test_an_address_that_does_not_answer_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = put_in_place(monkeypatch, FakeRay())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"ray://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=rf"{address} does not answer: .*refused.* `ray start --head`"):
            pool_from(address)
    assert not ray.started


def test_a_cluster_is_asked_for_all_its_cpus_or_as_many_workers_as_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        for text, workers, threads in ((address, 6, 1), (f"{address}?workers=3", 3, 2)):
            monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
            ray = put_in_place(monkeypatch, FakeRay())
            with pool_from(text) as pool:
                assert isinstance(pool, OnRay)
                assert (pool.workers, pool.threads) == (workers, threads)
                assert ray.started["address"] == address
            pool.close()
            assert ray.shut_down == 1


def test_as_many_workers_as_gpus_suffice_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"GPU": gpus}} for gpus in (3.0, 3.0)]
    nodes += [{"Alive": False, "Resources": {"GPU": 8.0}}, {"Alive": True, "Resources": {}}]
    put_in_place(monkeypatch, FakeRay(cluster_resources=lambda: {"CPU": 16.0, "GPU": 6.0}, nodes=lambda: nodes))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        for asked, workers in (("gpus=1", 6), ("gpus=2", 2), ("workers=1&gpus=2", 1)):
            with pool_from(f"{address}?{asked}") as pool:
                assert pool.workers == workers
        for asked in ("gpus=4", "workers=3&gpus=2"):  # no node has four
            with pytest.raises(RuntimeError, match=r"have 3, 3, 0 GPUs, enough for \d workers of \d each"):
                pool_from(f"{address}?{asked}")


def test_each_worker_sees_its_own_gpus_alone(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'factpatch[ray]'")
    ray.init(address="local", num_cpus=2, num_gpus=4, include_dashboard=False, log_to_driver=False)  # it believes that
    try:
        with OnRay(2, gpus=2) as pool:
            visible = set(pool.map(Calls(directory=tmp_path), [("gpus", 2)] * 2))
    finally:
        ray.shutdown()
    assert visible == {"0,1", "2,3"}


def test_what_answers_and_is_no_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise TimeoutError("ray client connection timeout")

    put_in_place(monkeypatch, FakeRay(init=refuse))
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(ConnectionError, match=r"127.0.0.1:\d+: no Ray to work on: ray client connection timeout"),
    ):
        OnRay(f"127.0.0.1:{server.getsockname()[1]}")


def test_a_ray_on_this_machine_is_small_silent_and_private(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = put_in_place(monkeypatch, FakeRay())
    before = dict(os.environ)
    with pool_from("ray:3") as pool:
        assert (pool.workers, getattr(pool, "threads")) == (3, max(1, cores() // 3))  # noqa: B009
    assert ray.started["num_cpus"] == 3
    assert ray.started["address"] == "local"
    assert ray.started["include_dashboard"] is ray.started["log_to_driver"] is False
    assert ray.environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert dict(os.environ) == before
    assert ray.shut_down == 1


def test_a_ray_that_does_not_start_says_where_its_logs_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: Any) -> None:
        raise Exception("The current node timed out during startup.")

    put_in_place(monkeypatch, FakeRay(init=fail))
    with pytest.raises(RuntimeError, match=r"does not start .* timed out .* /tmp/ray/session_latest/logs; 2 processes"):
        OnRay(2)


def test_a_ray_that_is_open_already_is_used_and_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = put_in_place(monkeypatch, FakeRay(is_initialized=lambda: True))
    with OnRay(2), OnRay("auto", workers=4) as pool:
        assert pool.workers == 4
    assert not ray.started
    assert not ray.shut_down
    with pytest.raises(RuntimeError, match="head:10001: this process uses a Ray already"):
        OnRay("ray://head:10001")


def test_a_full_object_store_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def put(value: bytes) -> None:
        raise FullError("7 GB of 7 GB are used")

    put_in_place(monkeypatch, FakeRay(put=put))
    with OnRay(2) as pool, pytest.raises(RuntimeError, match=r"7 GB are used .*ray start --object-store-memory=BYTES"):
        next(pool.map(Calls(), [("echo", 1)]))


def test_waiting_for_cpus_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    waits = 0

    def wait(refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        nonlocal waits
        waits += 1
        if waits == 9:
            raise KeyboardInterrupt
        return [], refs

    actor = SimpleNamespace(ready=SimpleNamespace(remote=object))
    runner = SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda threads: actor))
    monkeypatch.setattr("factpatch.pool.on_ray._PATIENCE_SECONDS", -1)
    put_in_place(monkeypatch, FakeRay(put=bytes, wait=wait, remote=lambda wrapped: runner))
    with OnRay(2) as pool, pytest.raises(KeyboardInterrupt):
        next(pool.map(Calls(), [("echo", 1)]))
    assert ["`ray status`" in record.message for record in caplog.records] == [True]
