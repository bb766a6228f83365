"""Order and threads: quick tests first and on one thread, the slow ones on the real model last.

Slow tests use all threads where they run one by one, and one thread where they run side by side.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# What a command shows must not depend on the terminal, nor on whether there is one.
os.environ["COLUMNS"] = "120"
# Products of tiny matrices take longer on two threads than on one, and come out in other bits. From the start, since
# fixtures that serve several tests are made before the one below.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("FACTPATCH_LONG"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes half a minute: make test-long"))
    quick = [item for item in items if not item.get_closest_marker("slow")]
    slow = [item for item in items if item.get_closest_marker("slow")]
    # The files of the longest ones come last: these first, so that no process waits long for another in the end.
    items[:] = [*quick, *reversed(slow)]


@pytest.fixture(autouse=True, scope="session")
def _kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what `stableedit` begins with, and what models were asked, for the session alone: another version of the
    code may have found something else."""
    from factpatch.model import findings
    from factpatch.statistics import ordinary

    folder, found = tmp_path_factory.mktemp("kept"), ordinary.cache_directory
    with pytest.MonkeyPatch.context() as patched:
        for module in (findings, ordinary):
            patched.setattr(module, "cache_directory", lambda: found() if os.environ.get("FACTPATCH_CACHE") else folder)
        yield


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("slow") and "PYTEST_XDIST_WORKER" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(1)
