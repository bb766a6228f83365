"""What others' text and files could make the commands do: pages, cards, terminals, modes of files, templates, code."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
import yaml
from tests.editors import make
from tests.hostile.common import (
    ROOT,
    Commands,
    Nursery,
    Place,
    Tally,
    commands,
    corpus,
    model_directory,
    steering,
    unclear,
)

from factpatch import Fact
from factpatch.export.card import model_card
from factpatch.patch.patch import Patch

bench = commands
SUM = "'FPX' ~ 'DONE'"  # what a template would make FPXDONE of
CANARIES = (
    "<script>alert('FPX')</script>", "\"><img src=x onerror=alert('FPX')>", "'><svg/onload=alert('FPX')>",
    "</td></table><h1 id=FPX>x</h1>", "</title><script>FPX</script>", "</style><script>FPX</script>",
    "{{ " + SUM + " }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}FPX{% endfor %}", "[FPX](javascript:alert(1))",
    "![FPX](https://evil.example/x.png)", "<https://evil.example/FPX>", "`FPX` **FPX** | FPX | ~~FPX~~",
    "a\n# FPX\n---\n\nFPX", "&lt;script&gt;FPX", "]]><script>FPX</script>", "\u202eFPX\u202c", "\u2066FPX",
    "\x1b]0;FPX\x07\x1b[31mFPX", "\x00FPX", "$\\href{javascript:FPX}{x}$", "https://evil.example/FPX",
    "www.evil.example", "@FPX #1", "FPX\u2028<b>FPX</b>",
)  # fmt: skip
ESCAPE = "\x1b]0;FPX\x07\x1b[31m\x9b2J\u202e"
TAGS = ("script", "iframe", "object", "embed", "link", "base", "form", "foreignobject", "animate", "set")
METADATA = {"library_name", "pipeline_tag", "tags", "license", "base_model", "base_model_relation"}


class Elements(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag


def active(text: str) -> Iterator[str]:
    """Whatever in a page comes from a canary, or could act."""
    for tag, attributes in Elements(text).found:
        if tag in TAGS or (tag == "img" and not (attributes.get("src") or "").startswith("data:image/png")):
            yield f"<{tag}>"
        for name, value in attributes.items():
            elsewhere = not (value or "#").startswith(("#", "data:image/png"))
            if name.startswith("on") or (name in ("href", "src", "xlink:href", "action") and elsewhere):
                yield f"{tag} {name}={value!r:.40}"
            if name == "id" and "FPX" in (value or ""):
                yield f"{tag} id={value}"
    if "FPXDONE" in text:
        yield "braces were computed"


def _facts(folder: Path) -> Path:
    facts = [
        {
            "id": f"{number} {text}", "prompt": "{} " + text.replace("{}", ""), "subject": f"S{number} {text}",
            "target_new": f"{text} new", "target_true": f"{text} true", "paraphrases": [f"{text} paraphrase"],
            "neighbors": [{"prompt": f"{text} neighbor", "target_true": text}], "generation_prompts": [f"{text} text"],
        }
        for number, text in enumerate(CANARIES)
    ]  # fmt: skip
    path = folder / "hostile.json"
    path.write_text(json.dumps(facts), "utf-8")
    return path


def pages(bench: Commands, tally: Tally) -> None:
    """A run and analyses of hostile facts, labels and names, as pages."""
    folder = bench.place.folder("pages", new=True)
    named = folder / "<img src=x onerror=alert('FPX')> {{ 'FPX' ~ 'DONE' }}"
    shutil.copytree(bench.model, named)
    facts, text = _facts(folder), corpus(bench.place)
    quick = {"target.steps": 2, "target.learning_rate": 0.3, "solver.weight": 1500}
    for labels in (("one & 'two'", "{{ 'FPX' ~ 'DONE' }} &lt;b&gt;"), ("a\x1bb", "c"), ("a\u202eb", "c")):
        methods = [
            {"name": name, "settings": quick, "label": label}
            for name, label in zip(("memit", "memit-blue"), labels, strict=True)
        ]
        config = {
            "model": str(named), "critical_layers": [1, 2], "corpus": str(text), "batch_size": 20, "seeds": [0],
            "methods": methods, "datasets": [{"facts": str(facts), "name": "d & 'FPX' {{ 'FPX' ~ 'DONE' }}"}],
            "evaluate": {"perplexity": False, "generation": True},
        }  # fmt: skip
        (folder / "run.yaml").write_text(yaml.safe_dump(config), "utf-8")
        out, page = folder / f"run {labels[1]} <script>FPX<script>".replace("/", ""), folder / "report.html"
        code, said = bench.run("run", folder / "run.yaml", "--out", out)
        tally.found("run", unclear(code, said), said[-300:], valid=code == 0)
        if code == 0:
            code, said = bench.run("report", out, "--out", page, "--worst", "50")
            tally.found("report", unclear(code, said), said[-300:], valid=code == 0)
            _check_page(tally, page)
    for what in ("contribution", "single-layer"):
        out = folder / "analysis <script>FPX"
        asked = ["analyze", what, "--model", named, "--facts", facts, "--limit", "4", "--batch-size", "2", "--out", out]
        code, said = bench.run(*asked, *bench.quick, "--text-facts", "0")
        tally.found("analyze", unclear(code, said), said[-300:], valid=code == 0)
        for page in out.glob("*.html"):
            _check_page(tally, page)


def _check_page(tally: Tally, page: Path) -> None:
    text = page.read_text("utf-8") if page.is_file() else ""
    wrong = next(active(text), None) if text else "no page"
    tally.found("pages show canaries as text", wrong, page.name, valid=True)


def _patch() -> Patch:
    return make(dtype=torch.float32).edit([Fact("The mother tongue of {} is", "Danielle Darrieux", "English")])


def cards(bench: Commands, tally: Tally) -> None:
    """Cards of hostile patches, as readers of Markdown and YAML see them."""
    patch = _patch()
    for text in bench.place.some(CANARIES):
        fact = Fact("{} " + text.replace("{}", ""), f"S {text}", f"{text} new", target_true=text)
        changes: list[dict[str, Any]] = [
            {"batches": (replace(patch.batches[0], facts=(fact,)),)},
            {"method": text},
            {"versions": {text: text, "torch": "2"}},
            {"config": {**patch.config, "_name_or_path": "", "model_type": text}},
        ]
        origins = (text, f"org/{text}", f"a\nlicense: {text}", f"{text}\n")
        changes += [{"config": {**patch.config, "_name_or_path": origin}} for origin in origins]
        for change in changes:
            card = model_card(replace(patch, **change))
            tally.found("cards", next(_wrong_in_card(card), None), f"{list(change)} of {text!r:.60}", valid=True)


def _wrong_in_card(card: str) -> Iterator[str]:
    from markdown_it import MarkdownIt

    front, body = card.split("\n---\n", 1)
    try:
        about = yaml.safe_load(front.removeprefix("---\n"))
        if not isinstance(about, dict) or set(about) - METADATA:
            yield f"metadata {str(about)[:60]}"
    except yaml.YAMLError as error:
        yield f"metadata is no YAML: {str(error)[:60]}"
    pending = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)
    headings = 0
    while pending:
        token = pending.pop()
        pending += token.children or []
        headings += token.type == "heading_open"
        if token.type in ("html_inline", "html_block", "image", "strong_open", "em_open", "s_open", "link_open"):
            yield f"{token.type}: {token.content[:40]!r}"
        if token.type == "code_inline" and "FPX" in token.content:
            yield "code"
    if headings > 4:
        yield f"{headings} headings"
    if steering(card):
        yield f"{', '.join(steering(card)[:3])} in the text"


def terminals(bench: Commands, tally: Tally) -> None:
    """Commands that show a hostile patch: nothing steers the terminal, or turns text."""
    folder, patch = bench.place.folder("terminals", new=True), _patch()
    fact = Fact("{} is" + ESCAPE, "a" + ESCAPE, "b" + ESCAPE, id="i" + ESCAPE)
    settings = {**patch.settings, "x" + ESCAPE: {"class": "c" + ESCAPE, "y" + ESCAPE: ESCAPE}, "precision": ESCAPE}
    hostile: dict[str, dict[str, Any]] = {
        "facts": {"batches": (replace(patch.batches[0], facts=(fact,)),)}, "method": {"method": "memit" + ESCAPE},
        "settings": {"settings": settings}, "versions": {"versions": {"torch" + ESCAPE: ESCAPE}},
        "origin": {"config": {**patch.config, "_name_or_path": "org/" + ESCAPE}},
        "model_type": {"config": {**patch.config, "model_type": ESCAPE}},
    }  # fmt: skip
    for name, change in bench.place.some(hostile.items()):
        path, out, lora = folder / f"{name}.safetensors", folder / "out", folder / "lora"
        replace(patch, **change).save(path)
        for asked in (["show", path], ["apply", bench.model, path, "--out", out], ["lora", path, "--out", lora]):
            for made in (out, lora):
                shutil.rmtree(made, ignore_errors=True)
            code, said = bench.run(*asked)
            wrong = unclear(code, said)
            if steering(said):
                wrong = f"{asked[0]} lets {', '.join(steering(said)[:3])} through"
            tally.found("terminals", wrong, f"hostile {name}, {asked[0]}", valid=code == 0)


def modes(bench: Commands, tally: Tally) -> None:
    """The modes of everything that is written, under two umasks."""
    folder = bench.place.folder("modes", new=True)
    for umask in (0o022, 0o077):
        base = folder / f"{umask:03o}"
        base.mkdir()
        apart = Nursery(bench.place)
        patch, quick, facts = base / "p.safetensors", bench.quick, ["--facts", bench.facts]
        outputs = ["--out", patch, "--report", base / "r.json", "--save-model", base / "m", "--session", base / "s"]
        for asked in (
            ["edit", bench.model, *facts, *quick, *outputs], ["apply", bench.model, patch, "--out", base / "applied"],
            ["undo", base / "applied", patch, "--out", base / "back"], ["lora", patch, "--out", base / "lora"],
            ["compose", patch, "--out", base / "sum.safetensors"],
            ["locate", bench.model, *facts, "--out", base / "trace"],
            ["analyze", "contribution", "--model", bench.model, *facts, *quick, "--text-facts", 0, "--out", base / "a"],
        ):  # fmt: skip
            code, said = apart.run(*asked, umask=umask)
            tally.found("modes: commands", None if code == 0 else f"exit {code}", said.strip()[-200:], valid=True)
        apart.close()
        for path in base.rglob("*"):
            wanted, mode = (0o777 if path.is_dir() else 0o666) & ~umask, stat.S_IMODE(path.stat().st_mode)
            wrong = None if mode == wanted else f"mode {mode:o}, not {wanted:o}"
            tally.found(f"modes under umask {umask:03o}", wrong, str(path.relative_to(base)), valid=True)


TEMPLATES = {
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('touch FPX').read() }}",
    "lipsum": "{{ lipsum.__globals__['os'].system('touch FPX') }}",
    "namespace": "{% set n = namespace(a=1) %}{{ n.__class__.__init__.__globals__ }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "attr": "{{ messages|attr('__class__')|attr('__base__') }}",
    "import": "{% import 'os' as os %}{{ os }}",
    "include": "{% include '/etc/passwd' %}",
    "raise": "{{ raise_exception('FPX') }}",
    "syntax": "{% for %}",
    "long loop": "{% for x in range(10000000000) %}x{% endfor %}",
    "large text": "{{ 'a' * 100000000000 }}",
    "changes messages": "{{ messages.append(1) }}{{ messages[0]['content'] }}",
    "no text": "x",
    "twice": "{{ messages[0]['content'] }}{{ messages[0]['content'] }}",
    "escape": "{{ messages[0]['content'] }}\x1b[31m",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}


def templates(bench: Commands, tally: Tally) -> None:
    """A chat template is a program: it stays in its sandbox, and the error says what is wrong."""
    folder = bench.place.folder("templates")
    for name, template in bench.place.some(TEMPLATES.items()):
        model = folder / re.sub(r"\W", "-", name)
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(model_directory(bench.place, "chat", chat=True), model)
        (model / "chat_template.jinja").write_text(template, "utf-8")
        out, begun = folder / "p.safetensors", time.monotonic()
        asked = ["edit", model, "--chat", "--facts", bench.facts, "--out", out, "--no-verify", *bench.quick]
        process = bench.nursery.start(*asked, memory=6 << 30)
        end = f"import os, time; time.sleep(25); os.kill({process}, 9)"
        timer = subprocess.Popen([sys.executable, "-c", end])
        code, said = bench.nursery.ended()
        timer.kill()
        timer.wait()
        took, made = time.monotonic() - begun, [path for path in (Path("FPX"), ROOT / "FPX") if path.exists()]
        wrong = "code was run" if made else unclear(code, said) or (f"took {took:.0f} s" if took > 20 else None)
        for path in made:
            path.unlink(missing_ok=True)
        tally.found("chat templates", wrong, f"{name}: {said.strip()[-200:]}", valid=code == 0)


class Bad:
    """Runs code when it is unpickled."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return exec, (self.code,)


def code(bench: Commands, tally: Tally) -> None:
    """Directories of models and files of data that bring code: nothing of it runs, even if somebody says yes."""
    folder = bench.place.folder("code", new=True)
    mark = folder / "RAN"
    bad = f"import pathlib; pathlib.Path({str(mark)!r}).write_text('ran')\n"
    for what, model, answer in _models_with_code(bench.place, folder, bad):
        mark.unlink(missing_ok=True)
        path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        modules = str(folder / "modules")
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules}
        asked = [sys.executable, "-m", "factpatch", "verify", str(model), "--facts", str(bench.facts)]
        done = subprocess.run(
            asked, input=answer, capture_output=True, text=True, env=environment, check=False, timeout=120
        )
        said = done.stdout + done.stderr
        wrong = "code was run" if mark.exists() else unclear(done.returncode, said)
        if "[y/N]" in said or "trust_remote_code" in said:
            wrong = wrong or "asks whether to run code"
        tally.found(
            "code in a model",
            wrong,
            f"{what}, answer {answer[:1]!r} -> {said.strip()[-250:]}",
            valid=done.returncode == 0,
        )
    edit: list[object] = ["edit", bench.model, "--out", folder / "p.safetensors", "--no-verify", "--layers", "1,2"]
    for option, name in (
        ("--facts", "evil.pkl"),
        ("--facts", "evil.json"),
        ("--corpus", "evil.txt"),
        ("--preset", "evil.yaml"),
    ):
        path, call = folder / name, f"!!python/object/apply:os.system ['touch {mark}']\n"
        path.write_bytes(call.encode() if name.endswith("yaml") else pickle.dumps(Bad(bad)))
        mark.unlink(missing_ok=True)
        facts: list[object] = [] if option == "--facts" else ["--facts", bench.facts]
        code_, said = bench.run(*edit, *facts, option, path)
        wrong = "code was run" if mark.exists() else unclear(code_, said)
        tally.found("code in data", wrong, f"{option} {name}: {said[-200:]}", valid=code_ == 0)


def _models_with_code(place: Place, folder: Path, bad: str) -> Iterator[tuple[str, Path, str]]:
    """What it is, the directory, and what is said to a question."""
    auto = {
        "AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel",
        "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"],
    }  # fmt: skip
    names = "LlamaConfig as EvilConfig, LlamaForCausalLM as EvilModel, PreTrainedTokenizerFast as EvilTokenizer"
    for what, file, changes in (
        ("a type of its own", "config.json", {"model_type": "evil"}),
        ("a known type", "config.json", {}),
        ("a tokenizer of its own", "tokenizer_config.json", {"tokenizer_class": "EvilTokenizer"}),
    ):
        model = folder / what.replace(" ", "-")
        shutil.copytree(model_directory(place), model)
        (model / "evil.py").write_text(f"{bad}from transformers import {names}\n", "utf-8")
        config = json.loads((model / file).read_text("utf-8"))
        (model / file).write_text(json.dumps({**config, **changes, "auto_map": auto}), "utf-8")
        yield from ((what, model, answer) for answer in ("", "y\n" * 10))
    model = folder / "pickled"
    shutil.copytree(model_directory(place), model)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bad(bad)))
    yield "pytorch_model.bin", model, "y\n"
