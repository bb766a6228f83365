"""Numbers that overflow, models that are broken, targets that are too long, memory that is short.

An error says what is wrong, and leaves the model, the editor and the disk as they were.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.editors import FACTS, INNER, LAYERS, make
from tests.hostile.common import Commands, Tally, commands, corpus, one, unclear

import factpatch.editor
import factpatch.patch.history
from factpatch import Fact

bench = commands
METHODS = ("memit-blue", "memit", "alphaedit-blue", "rect-blue", "prune-blue", "pmet")
NAN = float("nan")


def _same(model: Any, before: dict[str, torch.Tensor]) -> bool:
    now = model.state_dict()
    return all(torch.equal(_bytes(now[name]), _bytes(weight)) for name, weight in before.items())


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor


def _edit(tally: Tally, group: str, what: str, editor: Any, facts: Any, refused: bool = False) -> None:
    """Edit; a failure must leave the model, the editor's list of edits and the gradients as they were.

    Args:
        refused: Whether the edit must fail.
    """
    model, edits = editor.lm.model, len(editor.edits)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    finite = [name for name, weight in before.items() if bool(torch.isfinite(weight).all())]

    def wrong(patch: Any) -> str | None:
        now = model.state_dict()
        if not all(bool(torch.isfinite(now[name]).all()) for name in finite):
            return "a model that is not finite"
        if not all(shift.is_finite() for batch in patch.batches for shift in batch.shifts.values()):
            return "a patch that is not finite"
        return "an edit that should be refused" if refused else None

    done = one(tally, group, what, lambda: editor.edit(facts), (ValueError, FloatingPointError), (), wrong, 120)
    for problem, found in {
        "model changed after an error": done is None and not _same(model, before),
        "an edit is listed that failed": done is None and len(editor.edits) != edits,
        "gradients left": any(parameter.grad is not None for parameter in model.parameters()),
        "left in training mode": model.training,
    }.items():
        if found:
            tally.add(group, "defect", problem, what)


def _made(tally: Tally, group: str, what: str, method: str, **options: Any) -> Any:
    """An editor, or None if it was refused."""
    return one(tally, group, what, lambda: make(method, **options), (ValueError,))


def weights(bench: Commands, tally: Tally) -> None:
    """Models with weights, settings and second moments that are huge, zero or no numbers."""
    cases = [
        (dtype, what, change, method)
        for dtype in (torch.float16, torch.float32, torch.bfloat16)
        for what, change in _changes().items()
        for method in (METHODS if dtype == torch.float16 else METHODS[:2])
    ]
    for dtype, what, change, method in bench.place.some(cases):
        editor = make(method, dtype=dtype)
        with torch.no_grad():
            change(editor.lm.model)
        refused = "no number" in what or "infinity" in what
        _edit(tally, f"weights, {str(dtype)[6:]}", f"{what}, {method}", editor, FACTS[:2], refused)
    settings: tuple[dict[str, float], ...] = (
        {"target.learning_rate": 1e30}, {"target.learning_rate": 1e308}, {"solver.weight": 1e-300},
        {"solver.weight": 1e308}, {"target.clamp": 1e30, "target.learning_rate": 1e20},
    )  # fmt: skip
    for changed in bench.place.some(settings):
        for dtype in (torch.float16, torch.float32):
            editor = _made(tally, "settings", str(changed), "memit-blue", dtype=dtype, settings=changed)
            if editor is not None:
                _edit(tally, "settings", str(changed), editor, FACTS[:2])
    for moment in bench.place.some((NAN, math.inf, 0.0, 1e300, -1.0)):
        for method in ("memit-blue", "alphaedit-blue"):
            moments = {layer: torch.full((INNER, INNER), moment, dtype=torch.float64) for layer in LAYERS}
            what = f"{moment}, {method}"
            editor = _made(tally, "second moments", what, method, dtype=torch.float32, second_moments=moments)
            if editor is not None:
                _edit(tally, "second moments", what, editor, FACTS[:2], not math.isfinite(moment))


def _changes() -> dict[str, Callable[[Any], object]]:
    def down(model: Any, layer: int) -> Any:
        return model.model.layers[layer].mlp.down_proj.weight

    def huge(layer: Any) -> None:
        layer.mlp.gate_proj.weight.mul_(1e3)
        layer.mlp.up_proj.weight.mul_(1e3)

    return {
        "huge embeddings": lambda m: m.get_input_embeddings().weight.mul_(3e4),
        "huge down-projection": lambda m: down(m, 2).mul_(1e4),
        "huge gate and up": lambda m: huge(m.model.layers[1]),
        "huge head": lambda m: m.lm_head.weight.mul_(1e4),
        "embeddings that are no numbers": lambda m: m.get_input_embeddings().weight.fill_(NAN),
        "one no number in an edited weight": lambda m: down(m, 2)[0, 0].fill_(NAN),
        "one no number below": lambda m: down(m, 0)[0, 0].fill_(NAN),
        "one infinity in an edited weight": lambda m: down(m, 2)[0, 0].fill_(math.inf),
        "no number in a norm": lambda m: m.model.norm.weight[0].fill_(NAN),
        "no number in the head": lambda m: m.lm_head.weight[5].fill_(NAN),
        "zeros everywhere": lambda m: [parameter.zero_() for parameter in m.parameters()],
        "zero keys": lambda m: [layer.mlp.up_proj.weight.zero_() for layer in m.model.layers],
    }


def targets(bench: Commands, tally: Tally) -> None:
    """Facts that are longer than the model reads, or of characters that tokenizers treat in their own way."""
    words = "Rome Paris tower language city "
    facts: dict[str, tuple[str, str, str]] = {
        "target of 300 tokens": ("{} is", "Messi", words * 60), "target of 240 tokens": ("{} is", "Messi", words * 40),
        "target of 5,000 tokens": ("{} is", "Messi", words * 1000),
        "subject of 300 tokens": ("{} is", words * 60, "Rome"),
        "prompt of 300 tokens": (words * 60 + "{} is", "Messi", "Rome"),
        "long target": ("{} is", "Messi", "a" * 100_000),
        "subject of 8,000 characters": ("{} is", "a" * 8_000, "Rome"), "control character": ("{} is", "Messi", "\x01"),
        "half a target": ("{} is", "Messi", "\ud800"), "half a subject": ("{} is", "\ud800", "Rome"),
        "half a prompt": ("\ud800 {} is", "Messi", "Rome"), "no width": ("{} is", "Messi", "\u200b"),
        "target is the end of text": ("{} is", "Messi", "<|endoftext|>"), "prompt alone": ("{}", "Messi", "Rome"),
        "subject is the end of text": ("{} is", "<|endoftext|>", "Rome"), "NUL": ("{} is", "a\x00b", "c\x00d"),
        "emoji": ("{} is", "\U0001f1eb\U0001f1f7", "\U0001f469\u200d\U0001f469\u200d\U0001f467"),
    }  # fmt: skip
    for what, texts in bench.place.some(facts.items()):
        fact = one(tally, "targets", what, partial(Fact, *texts), (ValueError,))
        if fact is not None:
            _edit(tally, "targets", what, make("memit-blue", dtype=torch.float32), [FACTS[0], fact])


def corpora(bench: Commands, tally: Tally) -> None:
    """Texts for the second moment that are no texts, and numbers of tokens that are none."""
    path = bench.place.folder("corpora") / "corpus.txt"
    moment: list[object] = ["second-moment", bench.model, "--layers", "1,2", "--corpus"]
    out = path.with_name("p.safetensors")
    edit: list[object] = [
        "edit",
        bench.model,
        "--facts",
        bench.facts,
        "--out",
        out,
        "--no-verify",
        *bench.quick,
        "--corpus",
    ]
    contents = {
        "empty": b"", "spaces": b" \n\n ", "a letter": b"a", "a word": b"Rome", "one word": b"Rome " * 2000,
        "NUL bytes": b"\x00" * 5000, "not UTF-8": b"\xff\xfe" * 100, "a line of 2 MB": b"Rome is a city " * 140_000,
        "half a character": b"\xed\xa0\x80 Rome", "end of text": b"<|endoftext|>" * 500,
        "a mark alone": b"\xef\xbb\xbf",
    }  # fmt: skip
    for what, content in bench.place.some(contents.items()):
        path.write_bytes(content)
        for asked in ([*edit, path], [*moment, path, "--tokens", "3000"]):
            code, said = bench.run(*asked)
            wrong = unclear(code, said)
            if wrong is None and what == "not UTF-8" and path.name not in said:
                wrong = "the message names no file"
            tally.found("corpora", wrong, f"{what}, {asked[0]} -> {said.strip()[-200:]}", valid=code == 0)
    places = (
        path.parent,
        path.with_name("none.txt"),
        "/dev/null",
        "hf:",
        "hf:a:b:c:d:e",
        "https://example.invalid/x.txt",
    )
    good = corpus(bench.place)
    tokens = [[good, "--tokens", number] for number in ("0", "1", "-5", "9" * 20, "x")]
    for given in bench.place.some([*([place] for place in places), *tokens]):
        code, said = bench.run(*moment, *given)
        tally.found("corpora", unclear(code, said), f"{given} -> {said.strip()[-200:]}", valid=code == 0)


def models(bench: Commands, tally: Tally) -> None:
    """Directories of models whose weights are broken, half there, or of other types."""
    folder, good = bench.place.folder("models"), bench.model
    tensors = load_file(good / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    content, weight = (good / "model.safetensors").read_bytes(), tensors[name]
    changes: dict[str, dict[str, torch.Tensor] | bytes | None] = {
        "no numbers": {n: torch.full_like(t, NAN) for n, t in tensors.items()},
        "no numbers in an edited weight": {**tensors, name: torch.full_like(weight, NAN)},
        "huge float16": {n: (t * 3e4).to(torch.float16) for n, t in tensors.items()},
        "float16": {n: t.to(torch.float16) for n, t in tensors.items()},
        "a weight left out": {n: t for n, t in tensors.items() if n != name},
        "another shape": {**tensors, name: weight[:, :5].contiguous()},
        "int8": {**tensors, name: weight.to(torch.int8)},
        "float8": {**tensors, name: weight.to(torch.float8_e4m3fn)}, "cut short": content[: len(content) // 2],
        "empty file": b"", "no weights": None,
    }  # fmt: skip
    for what, change in bench.place.some(changes.items()):
        model, out = folder / "case", folder / "p.safetensors"
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(good, model)
        (model / "model.safetensors").unlink()
        if isinstance(change, bytes):
            (model / "model.safetensors").write_bytes(change)
        elif change is not None:
            save_file(change, model / "model.safetensors", {"format": "pt"})
        edit: list[object] = ["edit", model, "--facts", bench.facts, "--out", out, *bench.quick]
        for asked in (edit, ["verify", model, "--facts", bench.facts]):
            out.unlink(missing_ok=True)
            code, said = bench.run(*asked)
            wrong = unclear(code, said)
            if wrong is None and code == 0 and ("no numbers" in what or what == "a weight left out"):
                wrong = "succeeds on a broken model"
            tally.found(f"models: {asked[0]}", wrong, f"{what} -> {said.strip()[-250:]}", valid=code == 0)


def memory(bench: Commands, tally: Tally) -> None:
    """Little memory, in the whole and at chosen moments: a word on it, and nothing half done."""
    folder = bench.place.folder("memory", new=True)
    facts = folder / "facts.json"
    names = [{"prompt": "{} lives in", "subject": f"S{number}", "target_new": "Rome"} for number in range(40)]
    facts.write_text(json.dumps(names), "utf-8")
    for megabytes in bench.place.some((0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)):
        out = folder / f"p{megabytes}.safetensors"
        asked = ["edit", bench.model, "--facts", facts, "--out", out, "--no-verify", *bench.quick]
        code, said = bench.run(*asked, memory=megabytes << 20)
        wrong = unclear(code, said)
        if wrong is None and code and "memory" not in said.lower():
            wrong = "no word of memory"
        if out.exists() and code:
            wrong = "a patch is left"
        tally.found("memory", wrong, f"{megabytes} MB -> {said.strip()[-250:]}", valid=code == 0)
    errors: tuple[Exception, ...] = (
        MemoryError("simulated"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        torch.OutOfMemoryError("simulated"),
    )
    places = (
        (factpatch.editor, "optimize_values"),
        (factpatch.patch.history, "add_shift"),
        (factpatch.patch.history, "content_hash"),
    )
    for place, name in places:
        for error in bench.place.some(errors):
            _without_memory(tally, place, name, error)


def _without_memory(tally: Tally, place: Any, name: str, error: Exception) -> None:
    """Edit while the second call of a function finds no memory."""
    if not hasattr(place, name):
        raise AttributeError(f"{place.__name__} has no {name} any more")
    editor, original, calls = make("memit-blue", dtype=torch.float32), getattr(place, name), []
    before = {key: weight.clone() for key, weight in editor.lm.model.state_dict().items()}

    def failing(*given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return original(*given, **options)

    setattr(place, name, failing)
    try:
        editor.edit(FACTS)
        failed = False
    except Exception:
        failed = True
    finally:
        setattr(place, name, original)
    wrong = "model changed after an error" if failed and not _same(editor.lm.model, before) else None
    tally.found("no memory within an edit", wrong, f"{type(error).__name__} in {name}", valid=not failed)
