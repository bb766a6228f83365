"""The gate: who is let in, which addresses of the server they reach, and what a browser may load.

Everything that Gradio serves passes here first. It offers more than the page needs: files by their path, a proxy,
a history of runs. What the page does not use is not there, so that nothing depends on how it is checked there.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from factpatch.web.room import Room

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

DESK, ENTRY = "factpatch-desk", "factpatch-token"
"""Cookies: a browser's own secret, and the server's token; followed by the port, since cookies are of a host."""
_AROUND = 100_000
"""Bytes around a file that is uploaded."""
_MONTH = 30 * 24 * 3600
_KEY = re.compile(r"[A-Za-z0-9_-]{32,64}")
_OPEN = re.compile(
    r"/|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static|svelte)/[\w./@-]+|/download/[\w.-]+"
    r"|/config/?|/gradio_api/(app_id|info|startup-events|queue/data|upload_progress|heartbeat/\w+)/?"
)
"""What may be read."""
_TAKES = re.compile(r"/gradio_api/(queue/join|upload|cancel|reset|component_server)/?")
"""What may be sent to."""
# Gradio compiles the templates of its components in the browser, hence 'unsafe-eval'. Nothing of another origin is
# loaded, whatever a text on the page says.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Entry:
    """Who is let in.

    Raises:
        ValueError: Both are given, one is too short to be a secret, or `auth` has no colon.
    """

    token: str | None = None
    """What the address has to end with the first time: `/?token=...`."""
    auth: str | None = None
    """NAME:PASSWORD, which the browser asks for."""

    def __post_init__(self) -> None:
        if self.token is not None and self.auth is not None:
            raise ValueError("token, auth: give one of them.")
        if self.token is not None and len(self.token) < 8:
            raise ValueError("token: give at least 8 characters.")
        name, colon, password = (self.auth or "").partition(":")
        if self.auth is not None and not (name and colon and len(password) >= 8):
            raise ValueError("auth: write it as NAME:PASSWORD, with a password of at least 8 characters.")

    def admits(self, headers: MutableMapping[str, str], token: str) -> bool:
        """Whether a request, with this token in its cookie, shows what is asked for."""
        if self.token is not None:
            return _same(token, self.token)
        if self.auth is not None:
            kind, _, code = headers.get("authorization", "").partition(" ")
            try:
                given = base64.b64decode(code, validate=True).decode("utf-8")
            except (binascii.Error, UnicodeDecodeError):
                return False
            return kind.lower() == "basic" and _same(given, self.auth)
        return True


def _same(one: str, other: str) -> bool:
    """Whether two secrets are the same, in a time that does not say where they differ."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


class Gate:
    """Middleware of ASGI that lets a request through, with the cookie of its desk, or answers it itself.

    Args:
        app: What lies behind it.
        room: Is told who has the page open.
        entry: Who is let in.
        port: Where the server listens.
        hosts: The names by which the server may be called, without which any page on the web could call it by a name
            of its own (DNS rebinding); None for any.
    """

    def __init__(self, app: App, room: Room, entry: Entry, port: int, hosts: frozenset[str] | None) -> None:
        self.app, self.room, self.entry, self.hosts = app, room, entry, hosts
        self.desk, self.token = f"{DESK}-{port}", f"{ENTRY}-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page opens no web sockets
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        cookies = _cookies(headers)
        refused = self._refused(scope, headers)
        if refused is not None:
            await _answer(send, *refused)
        elif not self.entry.admits(headers, _value(cookies, self.token)):
            await self._at_the_door(scope, send)
        else:
            await self._through(scope, receive, send, cookies)

    def _refused(self, scope: Scope, headers: MutableMapping[str, str]) -> tuple[int, str] | None:
        """Why a request is answered here: a status and a text; None if it may go on."""
        host = headers.get("host", "")
        if self.hosts is not None and (urlsplit(f"//{host}").hostname or "") not in self.hosts:
            return 421, f"This server is not called {host!r}."
        path, method = scope["path"], scope["method"]
        reads = method in ("GET", "HEAD")
        if ".." in path or not (_OPEN if reads else _TAKES).fullmatch(path) or method not in ("GET", "HEAD", "POST"):
            return 404, "There is nothing here."
        origin = headers.get("origin")
        if not reads and origin is not None and urlsplit(origin).netloc != host:
            return 403, "Another site may not send anything here."
        length, most = headers.get("content-length", ""), self.room.limits.upload + _AROUND
        # What does not say how long it is could be of any length.
        if not reads and ("transfer-encoding" in headers or not (length.isdecimal() and int(length) <= most)):
            return 413, f"At most {self.room.limits.upload} bytes may be sent, with their number before them."
        return None

    async def _at_the_door(self, scope: Scope, send: Send) -> None:
        """Let in who has brought the token in the address; ask others for what is missing."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if self.entry.token is not None and scope["path"] == "/" and _same(given, self.entry.token):
            cookie = _cookie(self.token, given)
            await _answer(send, 303, "", {"location": "./", "set-cookie": cookie})
        elif self.entry.token is not None:
            await _answer(send, 401, "Open this page with the address that `factpatch page` printed: /?token=...")
        else:
            await _answer(
                send, 401, "A name and a password are needed.", {"www-authenticate": 'Basic realm="factpatch"'}
            )

    async def _through(self, scope: Scope, receive: Receive, send: Send, cookies: SimpleCookie) -> None:
        key = _value(cookies, self.desk)
        key = key if _KEY.fullmatch(key) else ""
        extra = dict(_HEADERS)
        if not key and scope["path"] == "/":
            key = secrets.token_urlsafe(32)
            extra["set-cookie"] = _cookie(self.desk, key)
        scope["desk"] = key

        async def sent(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in extra.items()]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        here = scope["path"].startswith("/gradio_api/heartbeat/") and bool(key)
        if here:
            self.room.arrive(key)
        try:
            await self.app(scope, receive, sent)
        finally:
            if here:
                self.room.leave(key)


def _value(cookies: SimpleCookie, name: str) -> str:
    return cookies[name].value if name in cookies else ""


def _cookies(headers: MutableMapping[str, str]) -> SimpleCookie:
    cookies = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        return SimpleCookie()
    return cookies


def _cookie(name: str, value: str) -> str:
    return f"{name}={value}; Path=/; Max-Age={_MONTH}; HttpOnly; SameSite=Strict"


async def _answer(send: Send, status: int, text: str, headers: MutableMapping[str, str] | None = None) -> None:
    given = {"content-type": "text/plain; charset=utf-8", **_HEADERS, **(headers or {})}
    encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": text.encode()})
