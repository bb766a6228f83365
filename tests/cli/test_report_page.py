"""The page about runs: whole, safe, without a network, and readable on a phone; mostly about runs made by hand."""

from __future__ import annotations

import html
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("pyarrow", reason="needs the extra `runs`")
pytest.importorskip("matplotlib", reason="needs the extra `runs`")

from tests.cli.conftest import FACTS, invoke
from tests.cli.page import Page, assert_needs_nothing
from tests.helpers import BROWSER
from tests.lab.runs.forged import forged_run

from factpatch.lab.runs.execute import PACKAGES

Run = Callable[..., Any]

EVIL = "<script>alert('x')</script> & $x_1$"
MANY = [
    {
        "prompt": "The mother tongue of {} is",
        "subject": f"Person Number {place}",
        "target_new": "Finnish",
        "target_true": "French",
        "paraphrases": [f"Person Number {place} speaks", f"Number {place} was raised speaking"],
        "neighbors": [{"prompt": f"Neighbor {n} of {place} speaks", "target_true": "French"} for n in range(5)],
    }
    for place in range(40)
]
SECTIONS = ("Summary", "Tables", "Curves over the edits", "Hidden states", "The worst facts", "Settings")


@pytest.fixture
def page(run: Run, tmp_path: Path) -> Callable[..., str]:
    """The page about some runs."""

    def written(*runs: Path, options: tuple[str, ...] = ()) -> str:
        out = tmp_path / "report.html"
        result = run("report", *runs, "--out", out, *options)
        assert result.exit_code == 0, result.output
        return out.read_text("utf-8")

    return written


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of three facts, and the page about it."""
    folder = tmp_path_factory.mktemp("forged")
    path, out = forged_run(folder / "forged", FACTS), folder / "report.html"
    done = invoke(folder / "cache", "report", path, "--out", out)
    assert done.exit_code == 0, done.output
    return path, out.read_text("utf-8")


def test_a_run_of_long_answers_gives_a_page(tmp_path: Path, page: Any) -> None:
    some = [{**fact, "target_new": "a tale that was told again " * 5} for fact in MANY[:4]]
    none = dict.fromkeys(("efficacy", "generalization", "specificity", "specificity_untouched"))
    exact = {"prompt_contained": 100.0, "strict_efficacy": 100.0, "strict_specificity": 100.0}
    written = page(forged_run(tmp_path / "long", some, further=lambda place: {**none, **exact}))
    assert "4 of 4 facts said" in written
    assert "neighbors that are not edited" not in written


def test_a_run_on_a_model_gives_a_page_with_every_section(
    run: Run, model_directory: Path, facts_file: Path, corpus: Path, tmp_path: Path, page: Any
) -> None:
    quick = {"target.steps": 3, "target.learning_rate": 0.3}
    record = {
        "model": str(model_directory),
        "methods": [{"name": name, "settings": quick} for name in ("memit", "memit-blue")],
        "datasets": [{"facts": str(facts_file), "name": "three"}],
        "batch_size": 2,
        "critical_layers": [1, 2],
        "corpus": str(corpus),
        "evaluate": {"perplexity": str(corpus)},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record), "utf-8")
    assert run("run", tmp_path / "config.yaml", "--out", tmp_path / "tiny").exit_code == 0
    found = Page(page(tmp_path / "tiny"))
    assert [heading for heading in found.headings if heading in SECTIONS] == list(SECTIONS)
    assert re.search(r"\d of 2 facts said", found.text)
    assert "memit-blue − memit" in found.text
    assert "target.learning_rate" in found.text
    # Of the worst facts, what the model says is shown, too.
    assert found.text.count("says now") == found.text.count("outcome")


def test_a_page_needs_nothing_from_elsewhere(forged: tuple[Path, str]) -> None:
    assert_needs_nothing(forged[1])


def test_charts_are_described_in_words(forged: tuple[Path, str]) -> None:
    found = Page(forged[1])
    charts = [attributes for tag, attributes in found.elements if tag == "svg"]
    # Bars of five metrics, two methods' forgetting, two tasks, two maps; the others are legends.
    described = [chart for chart in charts if chart.get("role") == "img"]
    assert len(described) == 11
    assert all(chart["aria-label"] for chart in described)
    assert all(chart.get("aria-hidden") == "true" for chart in charts if chart not in described)


def test_text_of_facts_and_models_is_not_html(page: Any, tmp_path: Path) -> None:
    facts = [{**FACTS[0], "subject": EVIL}, FACTS[1]]
    path = forged_run(
        tmp_path / "<i>run", facts, ["memit", {"name": "memit-blue", "label": "a&lt;$b$"}], quality={"memit": 0}
    )
    text = page(path)
    found = Page(text)
    assert "script" not in {tag for tag, _ in found.elements}
    assert EVIL in found.text
    assert "mumble <b>" in found.text
    assert "<i>run" in found.headings
    assert {"a&lt;$b$", "memit"} <= {text.strip() for text in found.labels}


def test_the_same_run_gives_the_same_page(page: Any, forged: tuple[Path, str]) -> None:
    path, text = forged
    assert page(path) == text


def test_several_runs_have_a_table_of_contents(page: Any, tmp_path: Path) -> None:
    text = page(forged_run(tmp_path / "one", FACTS), forged_run(tmp_path / "two", FACTS, whole=False))
    found = Page(text)
    assert {"one", "two"} <= set(found.headings)
    assert "Capability was not measured" in found.text
    assert "Hidden states were not measured" in found.text
    ids = [attributes["id"] for tag, attributes in found.elements if tag in ("article", "section")]
    assert len(ids) == len(set(ids)) == 14


def test_an_unfinished_run_says_so(page: Any, tmp_path: Path) -> None:
    found = Page(page(forged_run(tmp_path / "forged", FACTS, finished=False)))
    assert "Not finished:" in found.text
    assert "No method has been measured at the end yet" in found.text
    assert "evaluate.written" not in found.text.split("Settings")[0]
    unasked = forged_run(tmp_path / "unasked", FACTS, whole=False, evaluate={"written": False})
    assert "The batches were not asked right after they were written" in Page(page(unasked)).text


def test_stricter_metrics_follow_efficacy(page: Any, tmp_path: Path) -> None:
    further = {"strict_efficacy": 20.0, "prompt_contained": 40.0, "question_contained": 60.0, "chat_contained": None}
    found = Page(page(forged_run(tmp_path / "forged", FACTS, further=lambda place: further if place else {})))
    heads = ("Strict efficacy ↑", "Prompt contained ↑", "Question contained ↑")
    places = [found.text.index(head) for head in (*heads, "Perplexity ↓")]
    assert places == sorted(places)
    assert "Chat contained ↑" not in found.text
    assert "Strict efficacy: every token" in found.text
    assert "n = 3 facts" in found.text


def test_a_failed_method_is_shown_with_the_others(page: Any, tmp_path: Path) -> None:
    path = forged_run(tmp_path / "forged", FACTS)
    record = next(path.glob("rows/*/*/memit-blue/row.json"))
    kept = json.loads(record.read_text("utf-8"))
    about = {name: kept[name] for name in ("label", "method", "dataset", "seed", "facts")}
    record.write_text(json.dumps({**about, "failed": "not finite"}), "utf-8")
    for file in (record.parent / "measured").glob("end.*"):
        file.unlink()
    text = Page(page(path)).text
    assert "memit-blue on forged, seed 0: not finite" in text
    assert "memit-blue − memit" not in text
    assert re.search(r"\d of 3 facts said", text)


def test_the_worst_facts_come_first_and_no_more_than_asked_for(page: Any, tmp_path: Path) -> None:
    path = forged_run(tmp_path / "forged", MANY, ["memit"], quality={"memit": 0.6})
    text = page(path, options=("--worst", "3"))
    assert text.count("<dt>outcome</dt>") == 3
    assert Page(text).text.count("said at first, then forgotten") + text.count(">not said<") == 3


def test_a_directory_that_is_no_run_is_named(run: Run, tmp_path: Path) -> None:
    result = run("report", tmp_path, "--out", tmp_path / "report.html")
    assert result.exit_code == 2
    assert "is not the directory of a run" in result.output
    assert not (tmp_path / "report.html").exists()


def test_a_missing_extra_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "no_such_package", "no-such-package")
    result = run("report", forged_run(tmp_path / "forged", FACTS), "--out", tmp_path / "report.html")
    assert result.exit_code == 1
    assert "a report needs no-such-package; pip install 'factpatch[runs]'" in result.output


@pytest.mark.skipif(BROWSER is None, reason="needs chromium on PATH, to open the page")
def test_a_browser_shows_the_page_without_scrolling_sideways(page: Any, tmp_path: Path) -> None:
    methods = ["memit", "prune", "rect", "alphaedit", "memit-blue", "prune-blue", "rect-blue", "alphaedit-blue"]
    text = page(forged_run(tmp_path / "a-run-with-a-long-name-and-no-place-to-break-it", MANY, methods, batch_size=8))
    widths = (360, 390, 1280)
    # Frames, since a window has a least width that is wider than a phone.
    frames = "".join(f'<iframe width="{width}" height="800" srcdoc="{html.escape(text)}"></iframe>' for width in widths)
    measure = """<script>addEventListener("load", () => {
        const found = [...document.querySelectorAll("iframe")].map(({contentDocument: page}) => {
            const heights = (what) => [...page.querySelectorAll(what)].map((one) => one.getBoundingClientRect().height);
            return {
                wide: page.documentElement.scrollWidth,
                charts: page.querySelectorAll("figure").length,
                drawn: heights("figure svg").filter((height) => height > 80).length,
                text: Math.min(...heights("figure svg text")),
            };
        });
        document.body.textContent = "FOUND" + JSON.stringify(found) + "FOUND";
    })</script>"""
    (tmp_path / "frames.html").write_text(f"<!DOCTYPE html><body>{frames}{measure}</body>", "utf-8")
    dumped = subprocess.run(
        # A container often has neither the rights that the sandbox takes nor much shared memory.
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom",
         (tmp_path / "frames.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = json.loads(dumped.stdout.split("FOUND")[1])
    for width, frame in zip(widths, found, strict=True):
        assert frame["wide"] <= width
        assert frame["drawn"] == frame["charts"] > 20
        # Pixels of a line, which is taller than its letters.
        assert frame["text"] >= 8
