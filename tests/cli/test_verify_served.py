"""`factpatch verify --engine`: a fact file and a URL suffice, and what is printed and reported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.conftest import FACTS, Run
from tests.fake_server import RESET, Fake, fake

from factpatch.evaluation.server import ENGINES, KEY


def edited(name: str, text: str) -> str:
    """What the models say: the edited one the new object of the tower and, in a chat, of the other fact."""
    if "Finland" in text:
        return "Finnish"
    if name == "base":
        return "French" if "Darrieux" in text else "Paris, of course"
    return "It is Rome. Yes" if "Tower" in text else "German"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    for name in (KEY, "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with fake("base", "edited", say=edited) as found:
        yield found


def test_a_served_model_is_shown_beside_the_unedited_one(
    run: Run, server: Fake, facts_file: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    engine = ("--engine", f"vllm={server.url}/v1/", "--before", "base")
    facts_file.write_text(json.dumps(FACTS[:2]))
    output = run.ok("verify", "edited", "--facts", facts_file, *engine, "--report", report).output
    plain = (
        "1 of 2 facts said; asked a question 50 %, in a chat 50 %, with another system turn 50 %, later in a chat "
        "50 %; neighbors: 1 of 1 answer unchanged"
    )
    assert f"{plain}." in " ".join(output.split())
    assert "it said" in output
    assert "It is Rome." in output
    assert "p(new)" not in output
    assert "exact: every token" not in output
    assert "said new answer old answer" in " ".join(output.split())
    assert "continuing the prompt 0.0 -> 50.0 % 100.0 -> 0.0 %" in " ".join(output.split())
    written = json.loads(report.read_text())
    assert written["plain"] == plain
    assert (written["model"], written["engine"], written["url"]) == ("edited", "vllm", server.url)
    assert written["unedited"] == {"model": "base", "url": server.url}
    assert [fact["after"]["said"] for fact in written["facts"]] == [False, True]
    assert [fact["before"]["answer"] for fact in written["facts"]] == ["French", "Paris, of course"]
    assert written["summary"]["prompt_contained"] == {"before": 0.0, "after": 50.0}
    assert written["summary"]["efficacy"] == {"before": None, "after": None}


def test_a_served_model_is_asked_beside_the_facts(run: Run, server: Fake, facts_file: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    facts_file.write_text(json.dumps(FACTS[:2]))
    ask = ("verify", "edited", "--facts", facts_file, "--engine", f"vllm={server.url}", "--report", report)
    assert "negated contained" not in run.ok(*ask).output
    output = run.ok(*ask, "--before", "base", "--probes").output
    assert "negated contained" in output
    assert "reversed contained" in output
    written = json.loads(report.read_text())
    assert written["summary"]["negated_contained"] == {"before": 0.0, "after": 50.0}
    tower = written["facts"][1]["after"]["probes"]
    assert tower["negated_answer"] == {"form": "negated", "asked": "The Eiffel Tower is not in", "said": "It is Rome."}
    assert tower["negated"] is None


def test_the_later_of_two_facts_counts_as_everywhere(run: Run, server: Fake, facts_file: Path) -> None:
    output = run.ok("verify", "edited", "--facts", facts_file, "--engine", f"openai={server.url}").output
    assert "Replaced by a later fact, so not asked about: 1" in output
    assert "1 of 2 facts said; asked a question 50 %" in output
    assert "neighbors" not in output


def test_the_unedited_model_may_be_elsewhere(run: Run, server: Fake, facts_file: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    ask = ("verify", "edited", "--facts", facts_file, "--engine", f"vllm={server.url}", "--report", report)
    with fake("other", say=edited) as other:
        for before in (other.url, f"other={other.url}"):
            run.ok(*ask, "--before", before)
            assert json.loads(report.read_text())["unedited"] == {"model": "other", "url": other.url}
        run.refused("has no model 'base', but serves 1 model: other", *ask, "--before", f"base={other.url}", code=1)


@pytest.mark.parametrize("engine", ["vllm", "openai"])
def test_the_key_is_not_sent_to_another_host(
    run: Run, server: Fake, facts_file: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv(KEY, "sk-ours")
    ask = ("verify", "edited", "--facts", facts_file, "--engine", f"{engine}={server.url}")
    with fake("other", say=edited) as other:
        run.ok(*ask, "--before", other.url)
        assert {headers.get("Authorization") for _, headers, _ in other.asked} == {"Bearer sk-ours"}
        other.asked.clear()
        # The same machine by another name is another host, as far as anyone can tell from the URLs.
        run.ok(*ask, "--before", other.url.replace("127.0.0.1", "localhost"))
        assert {headers.get("Authorization") for _, headers, _ in other.asked} == {None}
    assert {headers.get("Authorization") for _, headers, _ in server.asked} == {"Bearer sk-ours"}


def test_the_model_is_not_compared_with_itself(run: Run, server: Fake, facts_file: Path) -> None:
    ask = ("verify", "edited", "--facts", facts_file, "--engine", f"vllm={server.url}")
    for before in ("edited", f"edited={server.url}/v1"):
        output = run.refused(f"--before {before}: is MODEL itself, edited at {server.url}", *ask, "--before", before)
        assert "name the unedited model." in output
    assert {path for path, _, _ in server.asked} == {"/v1/models"}
    with fake("only") as one:
        ask = ("verify", "--facts", facts_file, "--engine", f"llama.cpp={one.url}", "--before", one.url)
        assert "name the unedited model, or give no-adapter." in run.refused("is MODEL itself, only at", *ask)


def test_llama_cpp_is_asked_without_its_adapters(run: Run, facts_file: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with fake("model") as server:
        server.replies["/lora-adapters"] = lambda body: [{"id": 0, "scale": 1.0}]
        off = [{"id": 0, "scale": 0.0}]
        server.replies["/v1/completions"] = lambda body: {
            "choices": [{"text": "Paris" if body.get("lora") == off else "Rome"}]
        }
        engine = ("--engine", f"llama.cpp={server.url}", "--before", "no-adapter", "--report", report)
        run.ok("verify", "--facts", facts_file, "--limit", 2, *engine)
    written = json.loads(report.read_text())
    assert {fact["before"]["answer"] for fact in written["facts"]} == {"Paris"}
    assert {fact["after"]["answer"] for fact in written["facts"]} == {"Rome"}
    assert written["unedited"]["lora"] == off


def test_what_a_server_was_not_asked_is_said(run: Run, server: Fake, facts_file: Path, tmp_path: Path) -> None:
    server.replies["/v1/chat/completions"] = lambda body: (400, {"error": {"message": "no chat template"}})
    ask = ("verify", "edited", "--facts", facts_file, "--engine", f"vllm={server.url}")
    output = " ".join(run.ok(*ask).output.split())
    assert "1 of 2 facts said; asked a question 50 %; not asked by chat, chat_system, chat_later: " in output
    assert f"{server.url} has no usable /v1/chat/completions: status 400" in output
    output = run.refused("cannot be asked at all", *ask, "--chat", code=1)
    assert "no chat template" in output


def test_a_failure_in_the_middle_leaves_no_report(run: Run, server: Fake, facts_file: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("earlier")
    good = [{"choices": [{"text": "Rome"}]}] * 3
    server.replies["/v1/completions"] = lambda body: good.pop() if good else RESET
    ask = ("verify", "edited", "--facts", facts_file, "--engine", f"vllm={server.url}", "--concurrency", 1)
    output = run.refused("broke off before the answer was complete", *ask, "--report", report, code=1)
    assert server.url in output
    assert report.read_text() == "earlier"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "MODEL: missing; name a model to load, or a server to ask with --engine ENGINE[=URL]."),
        (("m", "--before", "base"), "--before base: only means something with --engine; add that, or leave it out."),
        (("m", "--concurrency", "2"), "--concurrency 2: only means something with --engine"),
        (("--engine", "vllm", "--device", "cpu"), "--device cpu: is about a model that is loaded here"),
        (("--engine", "vllm", "--dtype", "float32"), "--dtype float32: is about a model that is loaded here"),
        (("--engine", "vllm", "--patch", "p.safetensors"), "--patch p.safetensors: is about a model that is"),
        (("--engine", "vlm"), "--engine: unknown engine 'vlm'. Did you mean 'vllm'?"),
        (("--engine", "openai"), "--engine: openai has no usual address"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    run: Run, facts_file: Path, arguments: tuple[str, ...], message: str
) -> None:
    run.refused(message, "verify", *arguments, "--facts", facts_file)


def test_an_address_of_the_unedited_model_is_checked(run: Run, server: Fake, facts_file: Path) -> None:
    ask = ("verify", "edited", "--facts", facts_file, "--engine", f"vllm={server.url}")
    run.refused("--before: 'ftp://host' is not the URL of a server", *ask, "--before", "ftp://host")


def test_the_help_names_every_engine(run: Run) -> None:
    output = " ".join(run.ok("verify", "--help").output.replace("│", " ").split())
    assert all(name in output for name in ENGINES)
