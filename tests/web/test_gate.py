"""Who is let in, what may be asked for, and what a browser may load."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import pytest

from factpatch.web.app import LOOPBACK
from factpatch.web.gate import Entry, Gate
from factpatch.web.room import Room

TOKEN = "a-long-secret"


class Behind:
    """What lies behind the gate; notes what reaches it."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        self.desks: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.append(scope["path"])
        self.desks.append(scope["desk"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"behind"})


class Asked:
    """An answer of the gate."""

    def __init__(self, messages: list[Any]) -> None:
        self.status = messages[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        self.text = b"".join(message.get("body", b"") for message in messages[1:]).decode()


@pytest.fixture
def behind() -> Behind:
    return Behind()


@pytest.fixture
def ask(make_room: Callable[..., Room], behind: Behind) -> Callable[..., Asked]:
    """Send a request to a gate."""

    def asked(path: str, method: str = "GET", entry: Entry | None = None, query: str = "", **headers: str) -> Asked:
        room = make_room()
        gate = Gate(behind, room, entry or Entry(), 7860, LOOPBACK)
        given = {"host": "127.0.0.1:7860", **{name.replace("_", "-"): value for name, value in headers.items()}}
        scope = {
            "type": "http", "method": method, "path": path, "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }  # fmt: skip
        messages: list[Any] = []

        async def send(message: Any) -> None:
            messages.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        asyncio.run(gate(scope, receive, send))
        return Asked(messages)

    return asked


@pytest.mark.parametrize("path", ["/", "/assets/index-x.js", "/theme.css", "/gradio_api/queue/data", "/download/a.zip"])
def test_what_the_page_needs_is_let_through(ask: Callable[..., Asked], path: str) -> None:
    assert ask(path).text == "behind"


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd", "/gradio_api/file=https://example.org", "/gradio_api/proxy=https://example.org",
        "/gradio_api/file/etc/passwd", "/assets/../../etc/passwd", "/download/../session.json", "/download/a/b",
        "/monitoring", "/gradio_api/runs", "/gradio_api/openapi.json", "/docs", "/gradio_api/mcp/sse", "/login",
        "/gradio_api/dev/reload", "/gradio_api/vibe-code/", "/gradio_api/call/edit",
    ],
)  # fmt: skip
def test_what_it_does_not_need_is_not_there(ask: Callable[..., Asked], behind: Behind, path: str) -> None:
    assert ask(path).status == 404
    assert not behind.reached


def test_other_methods_and_other_sites_are_refused(ask: Callable[..., Asked], behind: Behind) -> None:
    assert ask("/gradio_api/upload", "PUT").status == 404
    assert ask("/gradio_api/run/edit", "POST").status == 404
    assert ask("/gradio_api/queue/join", "POST", origin="https://example.org").status == 403
    assert ask("/gradio_api/queue/join", "POST", origin="null").status == 403
    assert ask("/", host="rebound.example.org:7860").status == 421
    assert ask("/gradio_api/upload", "POST", content_length="99999999999").status == 413
    assert ask("/gradio_api/upload", "POST", content_length="-1").status == 413
    assert ask("/gradio_api/upload", "POST").status == 413
    assert ask("/gradio_api/upload", "POST", content_length="10", transfer_encoding="chunked").status == 413
    assert not behind.reached
    assert ask("/gradio_api/queue/join", "POST", origin="http://127.0.0.1:7860", content_length="10").status == 200


def test_a_browser_is_told_to_load_nothing_from_elsewhere(ask: Callable[..., Asked]) -> None:
    policy = ask("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "*" not in policy


def test_a_new_browser_gets_a_secret_of_its_own_and_keeps_it(ask: Callable[..., Asked], behind: Behind) -> None:
    cookies = [ask("/").headers["set-cookie"] for _ in range(2)]
    assert len({cookie.partition(";")[0] for cookie in cookies}) == 2
    assert all("HttpOnly" in cookie and "SameSite=Strict" in cookie for cookie in cookies)
    again = ask("/", cookie=cookies[0].partition(";")[0])
    assert "set-cookie" not in again.headers
    assert behind.desks[2] == behind.desks[0] != behind.desks[1]


def test_a_token_is_asked_for_once_and_then_kept_as_a_cookie(ask: Callable[..., Asked], behind: Behind) -> None:
    entry = Entry(token=TOKEN)
    for refused in (
        ask("/", entry=entry),
        ask("/", entry=entry, query="token=another-one"),
        ask("/config", entry=entry),
    ):
        assert refused.status == 401
        assert TOKEN not in refused.text
    let_in = ask("/", entry=entry, query=f"token={TOKEN}")
    assert (let_in.status, let_in.headers["location"]) == (303, "./")
    assert not behind.reached
    assert ask("/", entry=entry, cookie=let_in.headers["set-cookie"].partition(";")[0]).text == "behind"


def test_a_name_and_a_password_are_asked_for(ask: Callable[..., Asked]) -> None:
    entry = Entry(auth="ada:countess-1815")

    def basic(text: str) -> str:
        return f"Basic {base64.b64encode(text.encode()).decode()}"

    assert ask("/", entry=entry).headers["www-authenticate"].startswith("Basic")
    for wrong in (basic("ada:another-one"), "Basic ???", "Bearer x", basic("ada")):
        assert ask("/", entry=entry, authorization=wrong).status == 401
    assert ask("/", entry=entry, authorization=basic("ada:countess-1815")).text == "behind"


@pytest.mark.parametrize("given", [{"token": "short"}, {"auth": "ada"}, {"auth": ":password-x"}, {"auth": "ada:short"}])
def test_a_secret_that_is_none_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        Entry(**given)


def test_a_token_and_a_password_are_not_both_taken() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        Entry(TOKEN, "ada:countess-1815")
