"""Servers that behave and that misbehave, and what is said of them."""

from __future__ import annotations

import gzip
import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.fake_server import RESET, Fake, fake

from factpatch.evaluation import server as module
from factpatch.evaluation.server import (
    ENGINES,
    KEY,
    NotServedError,
    Server,
    ServerError,
    engine_and_url,
    may_share_key,
)


@pytest.fixture
def tiny() -> Iterator[Fake]:
    with fake("tiny") as found:
        yield found


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (KEY, "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def served(found: Fake, engine: str = "vllm", model: str | None = None) -> Server:
    return Server(ENGINES[engine], found.url, model, named=model is not None).opened()


@pytest.mark.parametrize(
    ("text", "engine", "url"),
    [
        ("llama.cpp", "llama.cpp", "http://127.0.0.1:8080"),
        ("vllm", "vllm", "http://127.0.0.1:8000"),
        ("ollama", "ollama", "http://127.0.0.1:11434"),
        ("openai=https://host/v1/", "openai", "https://host"),
        ("vllm=http://host:1234", "vllm", "http://host:1234"),
        ("openai=http://[::1]:80/proxy/v1", "openai", "http://[::1]:80/proxy"),
    ],
)
def test_an_engine_has_a_usual_address_or_is_given_one(text: str, engine: str, url: str) -> None:
    assert engine_and_url(text) == (ENGINES[engine], url)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vlm", "unknown engine 'vlm'. Did you mean 'vllm'"),
        ("openai", "openai has no usual address; give it as openai=URL"),
        ("http://host:80", "such as openai=http://host:80"),
        ("vllm=host:80", "'host:80' is not the URL of a server; give one such as http"),
        ("vllm=ftp://host", "is not the URL of a server"),
        ("vllm=http://host:port", "is not a URL"),
        ("vllm=http://", "is not the URL of a server"),
        ("vllm=http://host/?model=a", "is not the URL of a server"),
        ("vllm=http://ho st", "holds characters that a URL cannot have"),
        ("vllm=http://me:hush@host", "holds a name or a password; leave it out, and set FACTPATCH_API_KEY"),
    ],
)
def test_what_is_no_address_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"URL|engine") as refused:
        engine_and_url(text)
    assert message in str(refused.value)
    assert "hush" not in str(refused.value)


def test_the_only_model_need_not_be_named_and_of_several_one_must() -> None:
    with fake("base", "edited") as two, fake("smol:latest") as one:
        assert served(one).model == "smol:latest"
        assert served(one, model="smol").model == "smol"  # as Ollama understands it
        assert served(two, model="edited").model == "edited"
        with pytest.raises(ServerError, match=f"^{two.url}: serves 2 models: base, edited; name the one to ask"):
            served(two)
        with pytest.raises(ServerError, match="has no model 'other', but serves 2 models: base, edited; name one of"):
            served(two, model="other")


def test_a_server_that_does_not_list_its_models_is_asked_for_the_named_one(tiny: Fake) -> None:
    tiny.replies["/v1/models"] = lambda body: (404, "no")
    assert served(tiny, model="mine").complete("The", 4) == "Rome"
    with pytest.raises(ServerError, match="does not list its models; name the one to ask"):
        served(tiny)


def test_a_prompt_is_sent_as_it_is_and_asked_greedily(tiny: Fake) -> None:
    server = replace(served(tiny), fields={"lora": []})
    assert server.complete(" The capital\nof  Italy is ", 16) == "Rome"
    assert server.chat("What is it?", 32) == "Rome"
    (_, _, completion), (_, _, chat) = tiny.asked[-2:]
    greedy = {"model": "tiny", "temperature": 0, "seed": 0, "repetition_penalty": 1.0, "lora": []}
    assert completion == {"prompt": " The capital\nof  Italy is ", "max_tokens": 16, **greedy}
    assert chat == {"messages": [{"role": "user", "content": "What is it?"}], "max_tokens": 32, **greedy}


def test_ollama_is_asked_by_its_own_api_where_a_prompt_stays_as_it_is(tiny: Fake) -> None:
    tiny.replies["/api/generate"] = lambda body: {"model": "tiny", "response": "Rome", "done": True}
    tiny.replies["/api/chat"] = lambda body: {"model": "tiny", "message": {"role": "assistant", "content": "Paris"}}
    server = served(tiny, "ollama")
    assert (server.complete("The", 16), server.chat("What?", 32)) == ("Rome", "Paris")
    (_, _, completion), (_, _, chat) = tiny.asked[-2:]
    greedy = {"temperature": 0, "seed": 0, "repeat_penalty": 1.0}
    always = {"model": "tiny", "stream": False}
    assert completion == {"prompt": "The", "raw": True, "options": {"num_predict": 16, **greedy}, **always}
    assert chat == {
        "messages": [{"role": "user", "content": "What?"}], "options": {"num_predict": 32, **greedy}, **always
    }  # fmt: skip


def test_the_key_is_sent_if_it_is_set_and_never_shown(tiny: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    served(tiny)
    assert "Authorization" not in tiny.asked[-1][1]
    monkeypatch.setenv(KEY, "sk-hush\n")
    served(tiny)
    assert tiny.asked[-1][1]["Authorization"] == "Bearer sk-hush"
    tiny.replies["/v1/models"] = lambda body: (401, {"error": {"message": "Incorrect key: sk-hush"}})
    with pytest.raises(ServerError, match=r"/v1/models: refuses the key in FACTPATCH_API_KEY \(Incorrect key: …\)"):
        served(tiny)
    monkeypatch.setenv(KEY, "sk-hush\nsecond")
    with pytest.raises(ValueError, match=r"^FACTPATCH_API_KEY: holds characters that a key cannot have") as refused:
        served(tiny)
    assert "hush" not in str(refused.value)
    monkeypatch.delenv(KEY)
    with pytest.raises(ServerError, match="wants a key; set FACTPATCH_API_KEY"):
        served(tiny)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_key_of_openai_is_only_sent_where_the_engine_says_so(
    tiny: Fake, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")
    served(tiny, engine)
    assert tiny.asked[-1][1].get("Authorization") == ("Bearer sk-real" if engine == "openai" else None)
    monkeypatch.setenv(KEY, "sk-ours")
    served(tiny, engine)
    assert tiny.asked[-1][1]["Authorization"] == "Bearer sk-ours"


def test_a_server_that_the_key_is_not_meant_for_does_not_get_it(tiny: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-ours")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")
    other = Server(ENGINES["openai"], tiny.url, send_key=False)
    assert other.opened().complete("The", 4) == "Rome"
    assert all("Authorization" not in headers for _, headers, _ in tiny.asked)
    tiny.replies["/v1/models"] = lambda body: (401, "")
    with pytest.raises(ServerError, match="wants a key, which is only sent to the host of the edited model; serve"):
        other.opened()


@pytest.mark.parametrize(
    ("url", "other", "may"),
    [
        ("https://host:1", "https://host:2", True),
        ("http://host", "https://host", True),
        ("https://host", "http://host", False),
        ("http://host", "http://other", False),
        ("http://host.example", "http://example", False),
    ],
)
def test_another_server_may_have_the_key_if_it_is_on_the_same_host(url: str, other: str, may: bool) -> None:
    assert may_share_key(url, other) is may


def test_a_server_on_this_machine_is_not_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake("direct") as tiny, fake("proxy") as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        port = tiny.url.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost", "0.0.0.0"):
            assert Server(ENGINES["vllm"], f"http://{host}:{port}").opened().model == "direct"
        assert proxy.asked == []
        # Others are, by a proxy's whole URL: this one is only known to it.
        proxy.replies["http://lab.invalid:8000/v1/models"] = lambda body: {"data": [{"id": "proxy"}]}
        assert Server(ENGINES["vllm"], "http://lab.invalid:8000").opened().model == "proxy"


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://127.1.2.3", True),
        ("http://[::1]:80", True),
        ("http://LocalHost:80", True),
        ("http://api.localhost", True),
        ("http://localhost.example", False),
        ("http://192.168.0.1", False),
        ("https://host", False),
    ],
)
def test_this_machine_has_several_names(url: str, here: bool) -> None:
    assert module._is_loopback(url) is here


def test_a_redirect_is_not_followed_with_the_key(tiny: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-hush")
    with fake("other") as other:
        tiny.replies["/v1/models"] = lambda body: (307, "", ("Location", f"{other.url}/v1/models"))
        with pytest.raises(ServerError, match=f"redirects to {other.url}/v1/models, which is not followed; give that"):
            served(tiny)
        assert other.asked == []


OTHER_MODEL = {"model": "other", "choices": [{"text": "Rome"}]}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            "<html>Welcome</html>",
            "the answer is not JSON: '<html>Welcome</html>'; give the URL of a server with",
        ),
        ([], r"the answer is not the JSON of this API: \[\]"),
        ({"model": "tiny", "choices": []}, "the answer holds no text"),
        ({"model": "tiny"}, "the answer holds no text"),
        ({"model": "tiny", "choices": [{"message": {}}]}, "the answer holds no text"),
        (OTHER_MODEL, "was asked for the model 'tiny' and answers as 'other': it serves another model. Name that one"),
        ((404, {"error": {"message": "The model `tiny` does not exist."}}), "has no model 'tiny'"),
        ((500, {"error": "out of memory"}), r"status 500 \(out of memory\); see what the server printed"),
        ((502, "<html>Bad gateway</html>"), r"answers with status 502 \(a web page\)"),
        (RESET, "broke off before the answer was complete"),
    ],
)
def test_an_answer_that_is_none_is_reported_with_its_address(tiny: Fake, reply: Any, message: str) -> None:
    server = served(tiny, model="tiny")
    tiny.replies["/v1/completions"] = lambda body: reply
    with pytest.raises(ServerError, match=message) as refused:
        server.complete("The", 4)
    assert str(refused.value).startswith(tiny.url)
    assert not isinstance(refused.value, NotServedError)


@pytest.mark.parametrize("name", ["tiny", "tiny:latest", "tiny-2024-08-06", "tiny-20240806", "tiny-0613"])
def test_a_date_may_follow_the_name_that_was_asked_for(tiny: Fake, name: str) -> None:
    tiny.replies["/v1/completions"] = lambda body: {**OTHER_MODEL, "model": name}
    assert served(tiny, model="tiny").complete("The", 4) == "Rome"


@pytest.mark.parametrize("name", ["tiny:70b", "tiny-72B-Instruct", "tiny-7", "tiny2", "tiny-2024-08-06-large", "Tiny"])
def test_another_size_is_another_model(tiny: Fake, name: str) -> None:
    tiny.replies["/v1/completions"] = lambda body: {**OTHER_MODEL, "model": name}
    with pytest.raises(ServerError, match=f"asked for the model 'tiny' and answers as '{name}': it serves another"):
        served(tiny, model="tiny").complete("The", 4)


def test_two_servers_ask_the_same_if_url_model_and_fields_are_the_same(tiny: Fake) -> None:
    one = served(tiny)
    assert one.asks_the_same(served(tiny, model="tiny"))
    assert one.asks_the_same(replace(one, model="tiny:latest"))
    assert not one.asks_the_same(replace(one, model="tiny:70b"))
    assert not one.asks_the_same(replace(one, fields={"lora": []}))
    assert not one.asks_the_same(replace(one, url="http://other"))


def test_the_only_model_may_answer_under_any_name(tiny: Fake) -> None:
    tiny.replies["/v1/completions"] = lambda body: OTHER_MODEL
    assert served(tiny).complete("The", 4) == "Rome"


def test_a_chat_without_content_is_an_empty_answer(tiny: Fake) -> None:
    tiny.replies["/v1/chat/completions"] = lambda body: {"choices": [{"message": {"content": None}}]}
    assert served(tiny).chat("What?", 4) == ""


@pytest.mark.parametrize(
    "reply", [(404, {"detail": "Not Found"}), (405, ""), (400, {"message": "the model has no chat template"})]
)
def test_what_a_server_cannot_do_is_known_from_what_goes_wrong(tiny: Fake, reply: Any) -> None:
    server = served(tiny)
    tiny.replies["/v1/chat/completions"] = lambda body: reply
    with pytest.raises(NotServedError, match=f"has no usable /v1/chat/completions: status {reply[0]}"):
        server.chat("What?", 4)


def test_a_server_that_is_loading_is_waited_for(tiny: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(module.time, "sleep", naps.append)
    loading = [(503, {"error": {"message": "Loading model"}})] * 3
    tiny.replies["/v1/models"] = lambda body: loading.pop() if loading else {"data": [{"id": "tiny"}]}
    assert served(tiny).model == "tiny"
    assert naps == [0.5, 1.0, 2.0]
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    tiny.replies["/v1/models"] = lambda body: (503, {"error": {"message": "Loading model"}})
    with pytest.raises(ServerError, match=r"loading or overloaded \(status 503 \(Loading model\)\) after 0 s; wait"):
        served(tiny)


def test_where_nothing_answers_the_command_that_starts_it_is_named(tiny: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake() as gone:
        pass
    for engine, start in (("vllm", "vllm serve MODEL"), ("llama.cpp", "llama-server -m"), ("openai", "the server")):
        with pytest.raises(ServerError, match=f"^{gone.url}: nothing answers there. Start .*{start}"):
            served(gone, engine)
    monkeypatch.setattr(module, "_DEADLINE", 0.1)
    tiny.replies["/v1/models"] = lambda body: time.sleep(0.5)
    with pytest.raises(ServerError, match="/v1/models: gave no complete answer within 0 s; see what the server prints"):
        served(tiny)


def sent(*parts: bytes, last: bytes = b"", pause: float = 0.0, times: int | None = None) -> Iterator[bytes]:
    """What a server sends, part by part, and at the end the same again and again, or so many times."""
    yield from parts
    for _ in itertools.count() if times is None else range(times):
        time.sleep(pause)
        yield last


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKS = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ZIPPED = OK + b"Content-Encoding: gzip\r\n\r\n"


@pytest.mark.parametrize(
    ("start", "last"),
    [
        (OK + b"\r\n", b"[" * 4096),
        (b"HTTP/1.1 500 Oh\r\n\r\n", b"[" * 4096),
        (CHUNKS, b"1000\r\n" + b" " * 4096 + b"\r\n"),
        (ZIPPED + gzip.compress(bytes(2**26)), b""),
        (OK + b"Content-Encoding: gzip, gzip\r\n\r\n" + gzip.compress(gzip.compress(bytes(2**27))), b""),
    ],
)
def test_no_more_is_read_than_an_answer_may_have(
    tiny: Fake, monkeypatch: pytest.MonkeyPatch, start: bytes, last: bytes
) -> None:
    monkeypatch.setattr(module, "_LARGEST", 2**18)
    tiny.replies["/v1/models"] = lambda body: sent(start, last=last, times=None if last else 0)
    with pytest.raises(ServerError, match=f"^{tiny.url}/v1/models: the answer is larger than 0.25 MB; give the URL"):
        served(tiny)
    server = Server(ENGINES["vllm"], tiny.url, "tiny")
    tiny.replies["/v1/completions"] = tiny.replies["/v1/models"]
    with pytest.raises(ServerError, match=f"^{tiny.url}/v1/completions: the answer is larger than 0.25 MB"):
        server.complete("The", 4)


@pytest.mark.parametrize("start", [CHUNKS + b"2\r\n{}\r\n0\r\n\r\n", ZIPPED + gzip.compress(b"{}", mtime=0)])
def test_an_answer_in_chunks_or_compressed_is_one_like_others(tiny: Fake, start: bytes) -> None:
    tiny.replies["/v1/models"] = lambda body: sent(start, times=0)
    assert served(tiny, model="mine").model == "mine"


@pytest.mark.parametrize(
    ("start", "last"),
    [
        (b"", b"H"),
        (OK, b"X-Pad: a\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK + b"\r\n", b" "),
        (OK + b"Content-Length: 1000\r\n\r\n", b" "),
        (CHUNKS, b"1\r\n \r\n"),
        (CHUNKS, b"1"),
    ],
)
def test_an_answer_that_trickles_in_is_not_waited_for(
    tiny: Fake, monkeypatch: pytest.MonkeyPatch, start: bytes, last: bytes
) -> None:
    monkeypatch.setattr(module, "_DEADLINE", 0.3)
    tiny.replies["/v1/models"] = lambda body: sent(start, last=last, pause=0.05, times=100)
    began = time.monotonic()
    with pytest.raises(ServerError, match=f"^{tiny.url}/v1/models: gave no complete answer within 0 s; see what the"):
        served(tiny)
    assert time.monotonic() - began < 4


def test_a_body_that_was_given_up_is_not_read_on(tiny: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DEADLINE", 0.2)
    tiny.replies["/v1/models"] = lambda body: sent(CHUNKS, last=b"1\r\n \r\n", pause=0.02)
    before = set(threading.enumerate())
    with pytest.raises(ServerError, match="gave no complete answer"):
        served(tiny)
    for thread in set(threading.enumerate()) - before:  # the server's own ends with the connection
        thread.join(5.0)
        assert not thread.is_alive()


@pytest.mark.parametrize("charset", [b"a\0b", b"none-such", b"utf-8\0", b"idna", b"hex"])
def test_the_character_set_that_a_header_names_does_not_count(tiny: Fake, charset: bytes) -> None:
    head = b"HTTP/1.1 500 Oh\r\nContent-Type: text/html; charset=" + charset + b"\r\n\r\n"
    tiny.replies["/v1/models"] = lambda body: sent(head + "zu groß".encode() + b"\xff", times=0)
    with pytest.raises(ServerError, match=rf"^{tiny.url}/v1/models: answers with status 500 \(zu groß�\); see"):
        served(tiny)


def test_what_a_server_says_takes_one_line_of_a_readable_length(tiny: Fake) -> None:
    long = "a\n" + "b" * 2**20
    tiny.names = (long, "short", long + "c")
    shown = "a " + "b" * 198 + "…"
    for model in (None, "other"):
        message = f"^{tiny.url}: .*serves 3 models: {shown}, short, {shown}; name"
        with pytest.raises(ServerError, match=message) as refused:
            served(tiny, model=model)
        assert "\n" not in str(refused.value)
    tiny.replies["/v1/models"] = lambda body: (500, {"error": long})
    with pytest.raises(ServerError, match=rf"^{tiny.url}/v1/models: answers with status 500 \({shown}\); see"):
        served(tiny)


def test_adapters_are_switched_off_in_each_request(tiny: Fake) -> None:
    tiny.replies["/lora-adapters"] = lambda body: [{"id": 0, "path": "a", "scale": 1.0}, {"id": 1, "scale": 0.5}]
    off = served(tiny, "llama.cpp").without_adapters()
    off.complete("The", 4)
    assert tiny.asked[-1][2]["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]
    tiny.replies["/lora-adapters"] = lambda body: []
    with pytest.raises(ServerError, match="has no adapter to switch off; start it with: llama-server -m"):
        served(tiny, "llama.cpp").without_adapters()
    with pytest.raises(ServerError, match=r"vllm cannot switch adapters off in a request \(llama.cpp can\); name the"):
        served(tiny).without_adapters()
