"""The pools that the tests share: each starts its workers once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from factpatch.pool import Local, OnRay, Pool, Processes

BACKENDS = ("local", "processes", "ray")


@pytest.fixture(scope="session")
def shared_pools() -> Iterator[dict[str, Pool]]:
    pools: dict[str, Pool] = {}
    yield pools
    for pool in pools.values():
        pool.close()


def made(pools: dict[str, Pool], backend: str) -> Pool:
    if backend == "ray":
        pytest.importorskip("ray", reason="Ray is an extra: pip install 'factpatch[ray]'")
    if backend not in pools:
        pools[backend] = {"local": Local, "processes": lambda: Processes(2), "ray": lambda: OnRay(2)}[backend]()
    return pools[backend]


@pytest.fixture(params=BACKENDS)
def pool(request: pytest.FixtureRequest, shared_pools: dict[str, Pool]) -> Pool:
    """Any pool."""
    return made(shared_pools, request.param)


@pytest.fixture(params=BACKENDS[1:])
def workers(request: pytest.FixtureRequest, shared_pools: dict[str, Pool]) -> Pool:
    """A pool with workers."""
    return made(shared_pools, request.param)


@pytest.fixture
def processes(shared_pools: dict[str, Pool]) -> Pool:
    return made(shared_pools, "processes")
