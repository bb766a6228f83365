"""A room with a tiny model, a server of the page, and browsers that open it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs the extra `page`")

from tests.helpers import BROWSER
from tests.models import save_corpus, save_tiny

from factpatch.recipe import Recipe
from factpatch.web.limits import Limits
from factpatch.web.room import Room

SETTINGS = {"target.steps": "4", "solver.weight": "100"}


@pytest.fixture(scope="session")
def web_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template, on disk."""
    directory = tmp_path_factory.mktemp("web") / "tiny"
    save_tiny(directory, "llama", chat=True)
    return directory


@pytest.fixture(scope="session")
def web_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shuffled words, so that the second moment of 64 key dimensions has full rank."""
    return save_corpus(tmp_path_factory.mktemp("web") / "corpus.txt")


@pytest.fixture(scope="session")
def web_recipe(web_corpus: Path) -> Recipe:
    """What the server is started with."""
    return Recipe(corpus=str(web_corpus), critical_layers=(1, 2), settings=SETTINGS)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FACTPATCH_CACHE", str(tmp_path_factory.mktemp("web-cache")))
        yield


@pytest.fixture(scope="module")
def make_room(tmp_path_factory: pytest.TempPathFactory, web_model: Path, web_recipe: Recipe) -> Callable[..., Room]:
    """Rooms of the tiny model, each in a folder of its own unless one is given."""

    # One for all: Gradio looks for uploads where an environment variable says, which all servers of a process share.
    uploads = tmp_path_factory.getbasetemp() / "uploads"
    uploads.mkdir(exist_ok=True)

    def make(folder: Path | None = None, recipe: Recipe | None = None, **limits: Any) -> Room:
        folder = folder or tmp_path_factory.mktemp("room")
        kept = {"session": limits.pop("session", None), "capability_data": limits.pop("capability_data", None)}
        return Room(folder, uploads, [str(web_model)], recipe or web_recipe, Limits(**limits), **kept)

    return make


@dataclass
class Served:
    """A page that is served."""

    room: Room
    address: str


@pytest.fixture(scope="module")
def serve(make_room: Callable[..., Room]) -> Iterator[Callable[..., Served]]:
    """Serve pages, each about a room, in threads of this process."""
    import uvicorn

    from factpatch.web.app import LOOPBACK, make_app
    from factpatch.web.gate import Entry

    servers = []

    def start(room: Room | None = None, entry: Entry | None = None, port: int = 0, **limits: Any) -> Served:
        room = room or make_room(**limits)
        listening = socket.create_server(("127.0.0.1", port))
        port = listening.getsockname()[1]
        app = make_app(room, entry or Entry(), port, LOOPBACK)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        servers.append((server, thread))
        until(lambda: server.started)
        return Served(room, f"http://127.0.0.1:{port}/")

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(5)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, to drive a browser")
    if BROWSER is None:
        pytest.skip("needs chromium on PATH, to open the page")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=[*flags, "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Open an address as somebody new, in a browser of his own; returns its page."""
    contexts = []

    def opened(address: str, **options: Any) -> Any:
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.goto(address)
        page.wait_for_selector("#status .status")
        return page

    yield opened
    for context in contexts:
        context.close()


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
