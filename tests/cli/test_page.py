"""`factpatch page`: where it listens, whom it lets in, and what it refuses before it loads anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs the extra `page`")

from tests.cli.conftest import Run

from factpatch.web import app


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is served, without a server."""
    calls: list[Any] = []
    monkeypatch.setattr(app, "serve", lambda *given: calls.append(given))
    return calls


def test_the_page_is_for_this_machine_unless_asked_otherwise(run: Run, served: list[Any], tmp_path: Path) -> None:
    run.ok("page", "--data", tmp_path / "data")
    room, host, port, entry, _ = served[0]
    assert (room.shared.models, host, port) == (("smollm2-135m",), "127.0.0.1", 7860)
    assert (entry.token, entry.auth) == (None, None)
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


def test_another_host_demands_a_secret(run: Run, served: list[Any], tmp_path: Path) -> None:
    data = ("--data", tmp_path)
    run.refused("--host 0.0.0.0: others can reach the page there; give --token", "page", "--host", "0.0.0.0", *data)
    run.refused("at least 8 characters", "page", "--host", "0.0.0.0", "--token", "short", *data)
    run.refused("NAME:PASSWORD", "page", "--host", "0.0.0.0", "--auth", "ada", *data)
    assert not served
    run.ok("page", "--host", "0.0.0.0", "--token", "a-long-secret", *data)
    assert served[0][1] == "0.0.0.0"


def test_options_of_the_recipe_and_the_limits_reach_the_room(
    run: Run, served: list[Any], tmp_path: Path, corpus: Path
) -> None:
    options = ("--method", "rect", "--corpus", corpus, "--max-facts", 3, "--max-people", 2, "--max-minutes", 1.5)
    run.ok("page", "one", "two", *options, "--data", tmp_path)
    shared = served[0][0].shared
    assert (shared.models, shared.recipe.method, shared.recipe.corpus) == (("one", "two"), "rect", str(corpus))
    assert (shared.limits.facts, shared.limits.people, shared.limits.seconds) == (3, 2, 90.0)


def test_a_port_that_is_taken_is_named(run: Run, tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run.refused("--port: ", "page", "--port", port, "--data", tmp_path)
