"""A server that answers over HTTP: llama.cpp, vLLM and most others by the API of OpenAI, Ollama by its own."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import requests

from factpatch.model.frame import Turn
from factpatch.support.validation import parsed
from factpatch.support.words import counted, named, printable, quoted

logger = logging.getLogger(__name__)
T = TypeVar("T")

KEY = "FACTPATCH_API_KEY"
"""The environment variable of the API key for any server; it is sent if it is set, and never printed."""
_PATIENCE = 60.0  # seconds that a server may still be loading or be overloaded
_CONNECT = 10.0  # seconds
_DEADLINE = 600.0  # seconds until an answer is complete: it may wait for others on a slow machine
_LARGEST = 4 * 2**20  # bytes of an answer, decompressed; long lists of models have a tenth of that
_PART = 4096  # bytes that are read at a time
_BUSY = (429, 503)
_OF_TURNS = re.compile(r"template|\broles?\b", re.IGNORECASE)
"""What an error says where a chat template is missing, or has no place for a system turn."""
_DIRECT = {"http": "", "https": "", "all": ""}  # in place of the proxies that environment variables name
_LISTED = 10
_SHOWN = 200  # characters of what a server says


class ServerError(RuntimeError):
    """A server cannot be asked; the message names its URL and says what to do."""


class NotServedError(ServerError):
    """The server has no such endpoint, or cannot use it for this model; others may do."""


def _limited(tokens: int) -> dict[str, Any]:
    return {"max_tokens": tokens, "temperature": 0, "seed": 0}


def _choice(found: dict[str, Any]) -> object:
    choices = found.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict):
        return None
    return first["text"] if "text" in first else _content(first)


def _content(answer: dict[str, Any]) -> object:
    message = answer.get("message")
    if not isinstance(message, dict):
        return None
    # Null where all that the model wrote was its reasoning: it has given no answer.
    return "" if message.get("content", 0) is None else message.get("content")


class _Reply(NamedTuple):
    """What a server sent."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        # JSON is UTF-8; the character set that a header names may be none.
        return self.content.decode(errors="replace")


@dataclass(frozen=True)
class Api:
    """Where questions go, what they say, and where their answers stand."""

    completions: str = "/v1/completions"
    chats: str = "/v1/chat/completions"
    plain: Mapping[str, Any] = field(default_factory=dict)
    """What the request for a completion says so that the prompt stays as it is."""
    limited: Callable[[int], dict[str, Any]] = _limited
    """From the number of new tokens to the fields that ask for so many, the most probable ones."""
    read: Callable[[dict[str, Any]], object] = _choice
    """From an answer to its text; anything but a text if there is none."""


# By the other API, Ollama puts a prompt into the model's chat template and lowers the probability of words that were
# said before.
_OLLAMA = Api(
    "/api/generate",
    "/api/chat",
    {"raw": True},
    lambda tokens: {
        "stream": False,
        "options": {"num_predict": tokens, "temperature": 0, "seed": 0, "repeat_penalty": 1.0},
    },
    lambda found: found["response"] if "response" in found else _content(found),
)


@dataclass(frozen=True)
class Engine:
    """What is particular about a kind of server."""

    name: str
    """What the user calls it."""
    url: str | None
    """Where it listens by default; None if it has no default."""
    start: str
    """A command that starts it."""
    greedy: Mapping[str, Any] = field(default_factory=dict)
    """What each request says besides, so that no penalty of the server's or the model's settings counts."""
    api: Api = Api()
    adapters: bool = False
    """Whether a request can switch LoRA adapters off, with llama.cpp's field `lora`."""
    keys: tuple[str, ...] = (KEY,)
    """The environment variables that may hold the API key, of which the first that is set counts."""


ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            "llama.cpp",
            "http://127.0.0.1:8080",
            "llama-server -m model.gguf --lora adapter.gguf",
            {"repeat_penalty": 1.0, "top_k": 1},
            adapters=True,
        ),
        # vLLM takes the repetition penalty of the model's generation_config.json.
        Engine(
            "vllm",
            "http://127.0.0.1:8000",
            "vllm serve MODEL --enable-lora --lora-modules edited=ADAPTER",
            {"repetition_penalty": 1.0},
        ),
        Engine("ollama", "http://127.0.0.1:11434", "ollama serve", api=_OLLAMA),
        # Many have the key of OpenAI itself in the second variable, so that no other engine reads it.
        Engine("openai", None, "the server", keys=(KEY, "OPENAI_API_KEY")),
    )
}
"""Every kind of server by name. `openai` is any other that has the API."""


def engine_and_url(text: str) -> tuple[Engine, str]:
    """Read ENGINE or ENGINE=URL; ValueError if there is no such engine, or the URL is missing or cannot be one."""
    name, _, url = text.partition("=")
    if "://" in name:
        raise ValueError(f"{quoted(text)} is a URL; say what is there, such as openai={printable(text)[:_SHOWN]}")
    engine = named(ENGINES, name, "engine")
    if not url and engine.url is None:
        raise ValueError(f"{name} has no usual address; give it as {name}=URL, such as {name}=http://127.0.0.1:8000")
    return engine, checked_url(url or str(engine.url))


def checked_url(text: str) -> str:
    """Return a server's URL without its /v1; ValueError if it cannot be one."""
    example = "give one such as http://127.0.0.1:8080"
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises if it is not a number
    except ValueError as error:
        raise ValueError(f"{quoted(text)} is not a URL ({error}); {example}.") from None
    if "@" in parts.netloc:  # not shown: there is a password in it
        raise ValueError(f"the URL holds a name or a password; leave it out, and set {KEY} if the server wants a key.")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{quoted(text)} is not the URL of a server; {example}.")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"{quoted(text)} holds characters that a URL cannot have; {example}.")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def may_share_key(url: str, other: str) -> bool:
    """Whether the key for the server at one URL may be sent to another: to the same host, and not less protected."""
    mine, its = urlsplit(url), urlsplit(other)
    return mine.hostname == its.hostname and (mine.scheme != "https" or its.scheme == "https")


@dataclass(frozen=True)
class Server:
    """One model at a server.

    Raises:
        ServerError: Every method raises it if the server does not answer, or not as the API says.
    """

    engine: Engine
    url: str
    """Without /v1."""
    model: str | None = None
    """The model's name there; None before `opened` has asked for it."""
    named: bool = False
    """Whether the user named the model, so that answers from another one are an error."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What every request says besides."""
    send_key: bool = True
    """Whether the API key, if one is set, is meant for this server."""

    def opened(self) -> Server:
        """Return the server with the name of its model, once it is loaded: the one that was named, or its only one."""
        try:
            found = self._ask("GET", "/v1/models")
        except NotServedError:
            names: list[str] = []
        else:
            entries = found.get("data")
            listed = entries if isinstance(entries, list) else []
            names = [str(entry["id"]) for entry in listed if isinstance(entry, dict) and "id" in entry]
        if self.model is None:
            if len(names) == 1:
                return replace(self, model=names[0])
            raise ServerError(
                f"{self.url}: {_serves(names) if names else 'does not list its models'}; name the one to ask."
            )
        # Ollama lists a model without a tag under its tag "latest".
        if names and not {self.model, f"{self.model}:latest"} & set(names):
            raise ServerError(
                f"{self.url}: has no model {quoted(self.model)}, but {_serves(names)}; name one of these, or start the "
                f"server with that model."
            )
        return self

    def asks_the_same(self, other: Server) -> bool:
        """Whether another one asks the same model in the same way, so that it answers the same."""
        mine, its = ((one.url, (one.model or "").removesuffix(":latest"), one.fields) for one in (self, other))
        return mine == its

    def without_adapters(self) -> Server:
        """Return the same model with all LoRA adapters switched off, by a field of each request."""
        if not self.engine.adapters:
            able = ", ".join(engine.name for engine in ENGINES.values() if engine.adapters)
            raise ServerError(
                f"{self.url}: {self.engine.name} cannot switch adapters off in a request ({able} can); name the "
                "unedited model as it is served."
            )
        found = self._ask("GET", "/lora-adapters", list)
        off = [{"id": one.get("id"), "scale": 0.0} for one in found if isinstance(one, dict)]
        if not off:
            raise ServerError(f"{self.url}: has no adapter to switch off; start it with: {self.engine.start}")
        return replace(self, fields={**self.fields, "lora": off})

    def complete(self, prompt: str, tokens: int) -> str:
        """Continue a text, which is sent as it is, greedily by at most so many tokens."""
        return self._answer(self.engine.api.completions, {"prompt": prompt, **self.engine.api.plain}, tokens)

    def chat(self, said: str, tokens: int, earlier: Sequence[Turn] = ()) -> str:
        """Answer a user's turn, after earlier turns if there are any, greedily with at most so many tokens."""
        turns = [*earlier, {"role": "user", "content": said}]
        return self._answer(self.engine.api.chats, {"messages": turns}, tokens)

    def _answer(self, path: str, asked: Mapping[str, Any], tokens: int) -> str:
        api = self.engine.api
        said = {"model": self.model, **asked, **api.limited(tokens), **self.engine.greedy, **self.fields}
        found = self._ask("POST", path, dict, said)
        self._check_name(found.get("model"))
        text = api.read(found)
        if not isinstance(text, str):
            raise self._odd(path, f"holds no text: {quoted(found, _SHOWN)}")
        return text

    def _check_name(self, answered: object) -> None:
        """A figure must not be attributed to a model that did not answer.

        The tag that Ollama adds or a date may follow the name; another number may be the size of another model.
        """
        if not self.named or not isinstance(answered, str) or self.model is None:
            return
        if not re.fullmatch(rf"{re.escape(self.model)}(:latest|-\d{{4}}-\d\d-\d\d|-\d{{4,8}})?", answered):
            raise ServerError(
                f"{self.url}: was asked for the model {quoted(self.model)} and answers as {quoted(answered)}: it "
                "serves another model. Name that one, or start the server with the right one."
            )

    def _ask(self, method: str, path: str, kind: type = dict, record: Mapping[str, Any] | None = None) -> Any:
        """Send a request, again while the server is loading, and return the JSON that it answers."""
        end, pause = time.monotonic() + _PATIENCE, 0.5
        while True:
            reply = self._send(method, path, record)
            if reply.status not in _BUSY or time.monotonic() + pause > end:
                break
            if pause == 0.5:
                logger.info("%s: %s; waiting", self.url, self._words(reply) or "is busy")
            time.sleep(pause)
            pause = min(2 * pause, 5.0)
        self._check_status(path, reply)
        try:
            found = parsed(reply.content)
        except ValueError:
            raise self._odd(path, f"is not JSON: {quoted(reply.text.strip(), _SHOWN)}") from None
        if not isinstance(found, kind):
            raise self._odd(path, f"is not the JSON of this API: {quoted(found, _SHOWN)}")
        return found

    def _send(self, method: str, path: str, record: Mapping[str, Any] | None) -> _Reply:
        try:
            return _within(_DEADLINE, lambda: self._fetched(method, path, record))
        except requests.ConnectTimeout:
            raise self._absent(f"does not answer within {_CONNECT:.0f} s") from None
        except (futures.TimeoutError, requests.Timeout):
            raise ServerError(
                f"{self.url}{path}: gave no complete answer within {_DEADLINE:.0f} s; see what the server prints, or "
                "ask about fewer facts at a time."
            ) from None
        except requests.RequestException as error:
            if _refused(error):
                raise self._absent("nothing answers there") from None
            raise ServerError(
                f"{self.url}{path}: the connection broke off before the answer was complete "
                f"({_line(str(error))}); see what the server printed, start it again if need be, and ask "
                "again."
            ) from None

    def _fetched(self, method: str, path: str, record: Mapping[str, Any] | None) -> _Reply:
        body = None if record is None else json.dumps(record).encode()
        end, content = time.monotonic() + _DEADLINE, bytearray()
        # Not followed: a redirect may lead to another host, which must not get the key.
        with requests.request(
            method, self.url + path, data=body, headers={"Content-Type": "application/json"}, auth=self._authorized,
            timeout=(_CONNECT, _DEADLINE), stream=True, allow_redirects=False,
            proxies=_DIRECT if _is_loopback(self.url) else None,
        ) as response:  # fmt: skip
            for part in response.iter_content(_PART):
                content += part
                if len(content) > _LARGEST:
                    raise self._odd(path, f"is larger than {_LARGEST / 2**20:.3g} MB")
                if time.monotonic() > end:
                    raise requests.Timeout
            return _Reply(response.status_code, response.headers, bytes(content))

    def _absent(self, what: str) -> ServerError:
        return ServerError(
            f"{self.url}: {what}. Start {self.engine.start if self.engine.url is None else 'it'} and wait until it has "
            f"loaded its model{'' if self.engine.url is None else f': {self.engine.start}'}; or correct the URL."
        )

    def _check_status(self, path: str, reply: _Reply) -> None:
        status, words = reply.status, self._words(reply)
        if status == 200:
            return
        where, told = f"{self.url}{path}", f" ({words})" if words else ""
        if 300 <= status < 400:
            to = _line(reply.headers.get("Location", "elsewhere"))
            raise ServerError(f"{where}: redirects to {to}, which is not followed; give that server's URL.")
        if status in (401, 403):
            raise ServerError(f"{where}: {self._key_problem()}{told}.")
        if status == 404 and self.model is not None and self.model in words:
            raise ServerError(f"{where}: has no model {quoted(self.model)}{told}; name one that it serves.")
        if status in (404, 405, 501) or (status in (400, 500) and _OF_TURNS.search(words)):
            raise NotServedError(f"{self.url} has no usable {path}: status {status}{told}")
        if status in _BUSY:
            raise ServerError(
                f"{where}: is loading or overloaded (status {status}{told}) after {_PATIENCE:.0f} s; wait until it "
                "answers, and ask again."
            )
        raise ServerError(f"{where}: answers with status {status}{told}; see what the server printed.")

    def _words(self, reply: _Reply) -> str:
        """What a server says of an error, cut, on one line and without the key."""
        found: Any = reply.text
        try:
            found = parsed(reply.content)
            for name in ("error", "message", "detail"):
                found = found.get(name, found) if isinstance(found, dict) else found
        except ValueError:
            if "<" in found[:100]:  # a page is for people
                found = "a web page"
        text = found if isinstance(found, str) else json.dumps(found)
        _, key = self._key()
        return _line(text.replace(key, "…") if key else text)

    def _key(self) -> tuple[str, str]:
        """The environment variable that holds the key for this server, and the key; empty if there is none."""
        for name in self.engine.keys if self.send_key else ():
            if key := os.environ.get(name, "").strip():
                if not key.isascii() or not key.isprintable():
                    raise ValueError(f"{name}: holds characters that a key cannot have; set it again, or unset it.")
                return name, key
        return "", ""

    def _key_problem(self) -> str:
        name, _ = self._key()
        if name:
            return f"refuses the key in {name}"
        if self.send_key:
            return f"wants a key; set {KEY}"
        return "wants a key, which is only sent to the host of the edited model; serve both models there"

    def _authorized(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Set the key, if there is one; as a function, so that nothing from ~/.netrc takes its place."""
        _, key = self._key()
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    def _odd(self, path: str, what: str) -> ServerError:
        return ServerError(f"{self.url}{path}: the answer {what}; give the URL of a server with an API like OpenAI's.")


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Do something in time, or raise futures.TimeoutError and leave it to its thread, which ends with the process.

    The timeouts of a socket start anew with every byte, and a server may send one every now and then forever.
    """
    done: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result(seconds)


def _is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine, which a proxy would look for on its own."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _refused(error: requests.RequestException) -> bool:
    """Whether there was no connection at all; one that was reset while it was used is another matter."""
    words = str(error)
    return isinstance(error, requests.ConnectionError) and any(
        part in words for part in ("NewConnectionError", "NameResolutionError", "Failed to establish")
    )


def _serves(names: Sequence[str]) -> str:
    shown = ", ".join(map(_line, names[:_LISTED]))
    return f"serves {counted(len(names), 'model')}: {shown}{', …' if len(names) > _LISTED else ''}"


def _line(text: str) -> str:
    """What a server sent, on one line, and cut where it is long."""
    line = printable(text[: 10 * _SHOWN])  # which looks at every character
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
