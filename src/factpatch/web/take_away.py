"""What may be taken away: the edits in every format, the session, a report, and the commands that do the same."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from factpatch.data import save_facts
from factpatch.evaluation.verify import plain_summary
from factpatch.journal import JOURNAL
from factpatch.lab.drawing.render import render, write_page
from factpatch.session import Session
from factpatch.support.directory import LOCK
from factpatch.support.files import atomic_write, scratch, write_json
from factpatch.support.versions import library_versions
from factpatch.web.cards import cards
from factpatch.web.desk import EXPORTS, Desk
from factpatch.web.recipes import options, recipe_text
from factpatch.web.view import TOOLS, entries

Write = Callable[[Desk, Path], None]


@dataclass(frozen=True)
class Export:
    """One form in which edits are taken away."""

    title: str
    term: str
    """In the glossary; empty for none."""
    file: str
    """Its name."""
    write: Write
    """Writes the file, in the worker's thread."""


def export(desk: Desk, name: str) -> Path:
    """Write what a desk's edits become, where its owner may download it; ValueError if there is nothing to write."""
    desk.open()
    if not desk.results.batches or desk.editor is None or desk.session is None:
        raise ValueError("Nothing is edited, so there is nothing to take away.")
    form = EXPORT_FORMS[name]
    folder = desk.folder / EXPORTS
    folder.mkdir(exist_ok=True)
    form.write(desk, folder / form.file)
    return folder / form.file


def _patch(desk: Desk, path: Path) -> None:
    assert desk.editor is not None
    desk.editor.patch.save(path)


def _lora(desk: Desk, path: Path) -> None:
    from factpatch.export.lora import write_lora

    assert desk.editor is not None
    patch = desk.editor.patch
    with scratch(desk.folder) as place:
        write_lora(patch.factors(), patch.config, place / "adapter")
        _zip(path, place / "adapter", compress=True)


def _gguf(desk: Desk, path: Path) -> None:
    import torch

    from factpatch.export.gguf_lora import write_gguf_lora

    assert desk.editor is not None
    patch = desk.editor.patch
    write_gguf_lora(patch.factors(dtype=torch.float32), patch.config, path)


def _model(desk: Desk, path: Path) -> None:
    assert desk.editor is not None
    with scratch(desk.folder) as place:
        desk.editor.save_pretrained(place / "model")
        _zip(path, place / "model", compress=False)  # weights do not get smaller


def _session(desk: Desk, path: Path) -> None:
    assert desk.session is not None
    with desk.session.locked():
        _zip(path, desk.session.path, compress=True)


def _facts(desk: Desk, path: Path) -> None:
    with scratch(desk.folder) as place:
        (place / "facts").mkdir()
        for name, batch in zip(fact_files(desk), desk.results.batches, strict=True):
            save_facts(batch, place / "facts" / name)
        _zip(path, place / "facts", compress=True)


def _report(desk: Desk, path: Path) -> None:
    write_page(report(desk), path)


def _record(desk: Desk, path: Path) -> None:
    assert desk.results.verification is not None
    write_json(
        path,
        {
            "model": desk.model,
            "recipe": desk.recipe.to_dict(),
            "batches": [[fact.to_dict() for fact in batch] for batch in desk.results.batches],
            **desk.results.verification.to_dict(),
        },
    )


def _zip(path: Path, folder: Path, compress: bool) -> None:
    """Pack the files of a folder, whole or not at all."""
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED

    def write(draft: Path) -> None:
        with zipfile.ZipFile(draft, "w", kind) as packed:
            for file in sorted(folder.rglob("*")):
                if file.is_file() and file.name != LOCK:
                    packed.write(file, f"{path.stem}/{file.relative_to(folder).as_posix()}")

    atomic_write(path, write)


EXPORT_FORMS: Mapping[str, Export] = {
    "patch": Export("Patch", "patch", "patch.safetensors", _patch),
    "lora": Export("LoRA adapter for vLLM, TGI and peft", "LoRA", "adapter.zip", _lora),
    "gguf": Export("GGUF adapter for llama.cpp and Ollama", "GGUF", "adapter.gguf", _gguf),
    "model": Export("Whole edited model for transformers", "", "edited-model.zip", _model),
    "report": Export("Report page", "", "report.html", _report),
    "record": Export("Report as JSON", "", "report.json", _record),
    "facts": Export("Facts, a file for each batch", "", "facts.zip", _facts),
    "session": Export("Session for the command line", "session", "session.zip", _session),
}
"""By name, what there is to take away."""


def fact_files(desk: Desk) -> list[str]:
    """What the files of facts are called, one for each batch."""
    count = len(desk.results.batches)
    return ["facts.json"] if count == 1 else [f"facts-{number}.json" for number in range(1, count + 1)]


def command_line(desk: Desk) -> str:
    """The commands that make the same edits: one for each batch, in a session if there are several."""
    chosen = options(desk.recipe)
    common = f"{desk.model} {chosen}".strip()
    files = fact_files(desk)
    if len(files) == 1:
        return f"factpatch edit {common} --facts facts.json --out patch.safetensors"
    lines = [f"factpatch edit {common} --facts {name} --session work/" for name in files]
    return "\n".join([*lines[:-1], f"{lines[-1]} --out patch.safetensors"])


def python(desk: Desk) -> str:
    """The same in Python."""
    record = {"method": desk.recipe.method, **desk.recipe.to_dict()}
    given = ", ".join([repr(desk.model), *(f"{name}={value!r}" for name, value in record.items())])
    edits = [f'editor.edit(load_facts("{name}"))' for name in fact_files(desk)]
    return "\n".join(
        [
            "from factpatch import Editor, load_facts",
            "",
            f"editor = Editor({given})",
            *edits,
            'editor.patch.save("patch.safetensors")',
        ]
    )


def report(desk: Desk) -> str:
    """A page of HTML about the edits in force, which needs nothing else."""
    results = desk.results
    summary = "" if results.verification is None else plain_summary(results.verification, seconds=results.seconds)
    return render(
        "web/templates/report.html.jinja",
        **entries(),
        **TOOLS,
        cards=cards(results.verification),
        summary=summary[:1].upper() + summary[1:],
        model=desk.model,
        recipe=recipe_text(desk.recipe),
        commands=command_line(desk),
        versions=library_versions(),
        effects=desk.measured,
        styles=resources.files("factpatch.web").joinpath("page.css").read_text("utf-8"),
    )


# --- a session that somebody brings

_MEMBERS = re.compile(
    rf"{re.escape(Session.record_name)}|{re.escape(JOURNAL)}|facts/\d{{4,9}}\.json"
    r"|(patches|targets|traces)/\d{4,9}\.safetensors"
)
_TIMES = 20
"""How many times its packed size an archive may have unpacked."""


def unpack_session(archive: Path, folder: Path, most: int) -> None:
    """Unpack the archive of a session, as `export` writes it, into an empty folder.

    Nothing but the files of a session is written, and nothing outside of the folder.

    Raises:
        ValueError: It is no such archive, or too large.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            members = dict(_members(packed))
            if sum(member.file_size for member in members.values()) > most * _TIMES:
                raise ValueError(f"session: unpacked, it has more than {most * _TIMES} bytes.")
            for name, member in members.items():
                (folder / name).parent.mkdir(exist_ok=True)
                with packed.open(member) as source, (folder / name).open("xb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(
            f"session: the archive cannot be read ({error}); give one that this page has written."
        ) from None
    if Session.record_name not in members or JOURNAL not in members:
        raise ValueError(f"session: the archive has no {Session.record_name} and {JOURNAL}, so it holds no session.")


def _members(packed: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """The files of a session in an archive, which may lie in a folder of any name there."""
    for member in packed.infolist():
        if member.is_dir():
            continue
        whole = member.filename
        name = whole if _MEMBERS.fullmatch(whole) else whole.partition("/")[2]
        if name == LOCK:
            continue
        if not _MEMBERS.fullmatch(name):
            raise ValueError(f"session: the archive holds {whole[:200]!r}, which is no file of a session.")
        yield name, member
