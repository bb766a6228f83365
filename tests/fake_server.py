"""A server with the HTTP API of OpenAI, in this process, that behaves and misbehaves as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any]], Any]
"""From what a request says to what is answered: a record, a status and what goes with it, or bytes."""
RESET = object()
"""Instead of an answer: the connection breaks off in its middle."""


class Fake:
    """What the server does, and what it was asked.

    Attributes:
        names: Of the models that it serves.
        say: From a model's name and the text that it is asked, in any form, to its answer.
        replies: By path, what differs from good behavior.
        asked: Path, headers and body of every request.
    """

    def __init__(self, names: tuple[str, ...] = ("tiny",), say: Callable[[str, str], str] = lambda name, text: "Rome"):
        self.names = names
        self.say = say
        self.replies: dict[str, Reply] = {}
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.url = ""

    def reply(self, path: str, body: dict[str, Any]) -> Any:
        if path in self.replies:
            return self.replies[path](body)
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": name} for name in self.names]}
        if path == "/v1/completions":
            return {"model": body["model"], "choices": [{"text": self.say(body["model"], body["prompt"])}]}
        if path == "/v1/chat/completions":
            turn = body["messages"][-1]
            message = {"role": "assistant", "content": self.say(body["model"], turn["content"])}
            return {"model": body["model"], "choices": [{"message": message}]}
        return 404, {"detail": "Not Found"}


@contextmanager
def fake(*names: str, say: Callable[[str, str], str] = lambda name, text: "Rome") -> Iterator[Fake]:
    """Serve on a free port while the context is open."""
    behavior = Fake(names or ("tiny",), say)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            behavior.asked.append((self.path, dict(self.headers), body))
            found = behavior.reply(self.path, body)
            if found is RESET:
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                return
            if isinstance(found, Iterator):
                for part in found:
                    self.wfile.write(part)
                return
            status, sent, *headers = found if isinstance(found, tuple) else (200, found)
            content = sent.encode() if isinstance(sent, str) else json.dumps(sent).encode()
            self.send_response(status)
            for header in headers:
                self.send_header(*header)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815 - the names are those of http.server

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda request, address: None  # type: ignore[method-assign] # who asked may not have waited
    behavior.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield behavior
    finally:
        server.shutdown()
        server.server_close()
