"""The page in a real browser: somebody walks through it, reloads, cancels, comes back, and others do not notice."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.web.conftest import Served, until

from factpatch import Fact, Patch, Recipe
from factpatch.model.weights import model_hash
from factpatch.web.desk import Desk
from factpatch.web.recipes import options
from factpatch.web.room import Room

FACTS = [
    {"prompt": "The capital of {} is", "subject": "Finland", "target_new": "Rome", "target_true": "Paris",
     "paraphrases": ["The capital city of Finland is"],
     "neighbors": [{"prompt": "The capital of Japan is", "target_true": "Tokyo"}]},
    {"prompt": "{} plays the sport of", "subject": "Messi", "target_new": "basketball"},
]  # fmt: skip
EVIL = "<img src=x onerror=window.hit=1>${window.hit=2}{{hit}}<b>bold</b>`x`"
Visit = Callable[..., Any]


@pytest.fixture(scope="module")
def served(serve: Callable[..., Served]) -> Served:
    """One page for the tests that need no limits of their own."""
    return serve(grace=1000.0, people=100)


@pytest.fixture(scope="module")
def slow(make_room: Callable[..., Room], serve: Callable[..., Served], web_recipe: Recipe) -> Served:
    """A page whose edits take seconds."""
    settings = {**web_recipe.settings, "target.steps": "80", "target.enough_steps": "80"}
    return serve(make_room(recipe=Recipe(**{**dict(web_recipe), "settings": settings}), grace=1000.0, people=100))


def upload(page: Any, facts: list[dict[str, Any]], count: int | None = None) -> None:
    """Upload a file of facts, and wait until its rows are read."""
    content = json.dumps(facts).encode()
    file = {"name": "facts.json", "mimeType": "application/json", "buffer": content}
    with page.expect_file_chooser() as chosen:
        page.click("#upload-facts")
    chosen.value.set_files(file)
    page.wait_for_function(f"document.querySelectorAll('#checked li').length == {count or len(facts)}")


def teach(page: Any, facts: list[dict[str, Any]]) -> None:
    """Upload facts, and teach them."""
    upload(page, facts)
    page.click("#edit")
    page.wait_for_selector("#status .done")


def tab(page: Any, name: str) -> None:
    """Choose a tab, which may be behind the menu of a narrow page."""
    found = page.get_by_role("tab", name=name, exact=True)
    found.first.click()


def desk_of(served: Served) -> Desk:
    """The desk that was made last."""
    return list(served.room._desks.values())[-1]


def test_a_walk_edit_ask_download_undo_and_reopen(
    served: Served, visit: Visit, web_model: Path, tmp_path: Path
) -> None:
    page = visit(served.address)
    upload(page, FACTS)
    assert page.locator("#checked li").first.inner_html().count("<mark>Finland</mark>") == 1
    page.click("#edit")
    page.wait_for_selector("#results .card >> nth=1")
    assert "2 facts in 1" in page.inner_text("#status")
    assert "Rome" in page.inner_text("#results")
    assert page.locator("#results .card details summary").first.is_visible()

    tab(page, "Ask")
    page.fill("#ask-text textarea", "The capital of Finland is")
    page.click("#ask")
    page.wait_for_function(
        "document.querySelectorAll('.answer .said-text').length == 2 && !document.querySelector('.cursor')"
    )
    desk = desk_of(served)
    said = page.locator(".answer .said-text").all_inner_texts()
    assert len(said) == 2

    tab(page, "Take away")
    page.click("#prepare")
    with page.expect_download() as started:
        page.click("#links a")
    started.value.save_as(tmp_path / "patch.safetensors")
    patch = Patch.load(tmp_path / "patch.safetensors")
    assert [fact.subject for fact in patch.facts] == ["Finland", "Messi"]
    assert "factpatch edit" in page.input_value("#command textarea")

    tab(page, "Side effects")
    page.click("#measure")
    page.wait_for_selector("#effects .light >> nth=2")

    page.reload()
    page.wait_for_selector("#results .card >> nth=1")
    tab(page, "History")
    page.click("#undo")
    page.wait_for_function("document.querySelector('#status').innerText.includes('0 facts')")
    assert model_hash(desk.edited_model.model) == model_hash(served.room.shared.original(str(web_model)).model)
    tab(page, "Teach")
    page.wait_for_function("document.querySelectorAll('#checked li').length == 2")  # back in the table


def test_an_edit_shows_its_progress_is_cancelled_and_leaves_the_bits(
    slow: Served, visit: Visit, web_model: Path
) -> None:
    page = visit(slow.address)
    upload(page, FACTS)
    page.click("#edit")
    page.wait_for_function("/optimizing values at layer \\d/i.test(document.querySelector('#status').innerText)")
    page.wait_for_function("/of 2 facts learned; about/.test(document.querySelector('#status').innerText)")
    page.click("#cancel")
    page.wait_for_selector("#status .warning")
    desk = desk_of(slow)
    assert model_hash(desk.edited_model.model) == model_hash(slow.room.shared.original(str(web_model)).model)
    assert desk.session is not None
    assert not desk.session.waiting
    assert page.locator("#checked li").count() == 2


def test_who_closes_the_page_frees_the_memory_and_who_stays_keeps_it(
    serve: Callable[..., Served], visit: Visit
) -> None:
    short = serve(grace=0.5)
    page = visit(short.address)
    page.wait_for_timeout(1500)
    assert short.room.people == 1
    page.close()
    until(lambda: short.room.people == 0)


def test_a_reload_in_the_middle_of_an_edit_finds_it_again(slow: Served, visit: Visit) -> None:
    page = visit(slow.address)
    upload(page, FACTS[1:])
    page.click("#edit")
    page.wait_for_selector("#status progress")
    page.reload()
    page.wait_for_selector("#status progress")
    assert "Teaching 1 fact" in page.inner_text("#status")
    page.wait_for_selector("#results .card", timeout=60_000)
    assert "1 fact in 1" in page.inner_text("#status")


def test_two_browsers_share_nothing_but_the_queue(slow: Served, visit: Visit) -> None:
    one, other = visit(slow.address), visit(slow.address)
    upload(one, FACTS[1:])
    assert "No facts yet" in other.inner_text("#checked")
    upload(other, FACTS[:1])
    one.click("#edit")
    one.wait_for_selector("#status progress[value]")
    other.click("#edit")
    other.wait_for_selector("#status .queue")
    assert other.inner_text("#status .queue") == "1"
    one.wait_for_selector("#results .card", timeout=60_000)
    other.wait_for_selector("#results .card", timeout=60_000)
    assert "Messi" in one.inner_text("#results")
    assert "Messi" not in other.inner_text("#results")
    assert "Finland" not in one.inner_text("#results")
    tab(one, "Take away")
    one.click("#prepare")
    one.wait_for_selector("#links a")
    link = one.get_attribute("#links a", "href")
    assert other.request.get(f"{slow.address}{link}").status == 404


def test_mistakes_are_shown_at_their_row_and_nothing_is_taken_for_html(served: Served, visit: Visit) -> None:
    page = visit(served.address)
    text = f"prompt,subject,target_new\nThe capital of {{}} is,France,{EVIL}\nThe {EVIL} of {{}} is,Spain,Oslo\n"
    page.get_by_text("Paste facts").click()
    page.fill("#pasted textarea", text)
    page.click("#add-pasted")
    page.wait_for_function("document.querySelectorAll('#checked li').length == 2")
    assert EVIL in page.inner_text("#checked")
    page.fill("#pasted textarea", "prompt,subject,target_new\nThe capital is,France,Oslo\n")
    page.click("#add-pasted")
    page.wait_for_selector("#checked p.error")
    assert "does not contain the subject 'France'" in page.inner_text("#checked")
    assert page.locator("#checked li").count() == 2  # the rows before stay
    page.click("#edit")
    page.wait_for_selector("#results .card >> nth=1")
    assert EVIL in page.inner_text("#results")
    tab(page, "Ask")
    page.fill("#ask-text textarea", EVIL)
    page.click("#ask")
    page.wait_for_function("document.querySelectorAll('.answer .asked').length == 2")
    assert page.inner_text(".answer .asked >> nth=0") == EVIL
    tab(page, "History")
    assert EVIL in page.inner_text("#history")
    page.click("#fact input")
    assert page.evaluate("window.hit") is None
    assert page.locator("#history b b, #results b b, #facts b, .answer img").count() == 0


def test_the_browser_asks_no_other_machine(served: Served, visit: Visit, chromium: Any) -> None:
    context = chromium.new_context()
    asked: list[str] = []
    problems: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(served.address)
    page.wait_for_selector("#status .status")
    for name in ("Ask", "History", "Side effects", "Take away"):
        tab(page, name)
    page.wait_for_timeout(300)
    hosts = {urlsplit(url).hostname for url in asked if urlsplit(url).scheme not in ("data", "blob")}
    context.close()
    assert hosts == {"127.0.0.1"}
    assert not [problem for problem in problems if "Content Security Policy" in problem]


@pytest.mark.long
def test_a_server_that_is_killed_in_an_edit_resumes_it_to_the_same_bits(
    web_model: Path, web_recipe: Recipe, make_room: Callable[..., Room], serve: Callable[..., Served], visit: Visit,
    tmp_path: Path,
) -> None:  # fmt: skip
    settings = {**web_recipe.settings, "target.steps": "60", "target.enough_steps": "60"}
    recipe = Recipe(**{**dict(web_recipe), "settings": settings})
    command = [sys.executable, "-m", "factpatch", "page", str(web_model), *shlex.split(options(recipe))]
    server = subprocess.Popen(
        [*command, "--data", str(tmp_path), "--port", "0"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert server.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:(\d+)/", server.stdout.readline())
    assert found
    page = visit(found[0])
    upload(page, FACTS)
    page.click("#edit")
    page.wait_for_function("/of 2 facts learned/.test(document.querySelector('#status').innerText)", timeout=60_000)
    server.send_signal(signal.SIGKILL)
    server.wait()
    again = serve(make_room(tmp_path, recipe, grace=1000.0), port=int(found[1]))  # a cookie is of a port
    page.goto(again.address)
    tab(page, "History")
    page.click("#resume", timeout=60_000)
    page.wait_for_function("document.querySelector('#status').innerText.includes('2 facts in 1')", timeout=60_000)
    whole = make_room(recipe=recipe).desk("x" * 40)
    facts = [Fact.from_dict(fact) for fact in FACTS]
    job = whole.start("teaching", lambda: whole.edit(facts))
    until(job.over.is_set, 60)
    assert model_hash(desk_of(again).edited_model.model) == model_hash(whole.edited_model.model)
