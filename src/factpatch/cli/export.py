"""`factpatch export`: a patch in, an adapter or a model out in another format, and the commands that serve it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from factpatch.cli import checks, options, render
from factpatch.cli.apply import applied_model, rebased_and_asked

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from factpatch.export.factors import LowRankFactors
    from factpatch.export.serving import Served
    from factpatch.model.gguf import GGUFFile
    from factpatch.patch.patch import Patch

Format = Literal["peft", "gguf-lora", "gguf", "safetensors"]
TensorType = Literal["f16", "bf16", "f32"]
_ADAPTERS: tuple[Format, ...] = ("peft", "gguf-lora")
# The formats that an option applies to; others refuse it.
_APPLIES: dict[str, tuple[Format, ...]] = {
    "rank": _ADAPTERS,
    "energy": _ADAPTERS,
    "base": ("gguf-lora", "gguf", "safetensors"),
    "rebase": ("gguf-lora", "gguf", "safetensors"),
    "base_model_name": ("peft",),
    "every_layer": ("peft",),
    "tensor_type": ("gguf",),
    "only_changed": ("safetensors",),
}
_NEED_BASE = ("gguf", "safetensors")
_MUCH = 0.1  # of the edit; see docs/serving.md, "The rank of an adapter"
UNKNOWN_GGUF = "BASE.gguf"
"""What stands in commands for a base that is not known as a GGUF file."""


@options.documented
def export(
    patch: options.PatchFile,
    to: Annotated[Format, typer.Option("--to")],
    out: Annotated[Path, typer.Option(metavar="PATH")],
    base: Annotated[str | None, typer.Option(metavar="MODEL")] = None,
    rank: Annotated[int | None, typer.Option(min=1, metavar="N")] = None,
    energy: Annotated[float | None, typer.Option(metavar="X")] = None,
    rebase: Annotated[bool, typer.Option("--rebase")] = False,
    tensor_type: Annotated[TensorType | None, typer.Option()] = None,
    only_changed: Annotated[bool, typer.Option("--only-changed")] = False,
    base_model_name: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    every_layer: Annotated[bool, typer.Option("--every-layer")] = False,
) -> None:
    """Write an edit in the format of the engine that serves it, and print the commands that do.

    An adapter (peft for vLLM, TGI and peft; gguf-lora for llama.cpp and Ollama) is small, needs no model to be written,
    and is loaded on the unedited model, quantized or not. A merged model (gguf, safetensors) is for engines that take
    no adapters.

    Args:
        to: The format.
        out: Where to write it: for peft and safetensors a new or empty directory, else a new file.
        base: The unedited model. For gguf-lora and gguf: a GGUF file, a directory with one, a name of Ollama's or an
            embedded model; for safetensors: a model as everywhere. gguf-lora only checks it and names it in commands.
        rank: The largest rank of an adapter. Default: exact to rounding.
        energy: Keep as many singular values of each layer as hold the share X of the sum of their squares.
        rebase: Accept another quantization of the model, or other weights of the same shapes, and ask the model of
            --base about the facts without and with the patch.
        tensor_type: What the edited tensors of a GGUF model are written in. Default: their own type, or f16 if that is
            a quantized one.
        only_changed: Write the changed tensors alone, as one safetensors file.
        base_model_name: What a peft adapter calls its base model, so that AutoPeftModel and servers find it: an ID on
            the Hugging Face Hub, or a directory. Default: the ID that the model was loaded by.
        every_layer: Give a peft adapter zeros for the layers that are not edited, without which TGI ignores it.
    """
    given: dict[str, object] = {
        "rank": rank, "energy": energy, "base": base, "rebase": rebase or None, "base_model_name": base_model_name,
        "tensor_type": tensor_type, "only_changed": only_changed or None, "every_layer": every_layer or None,
    }  # fmt: skip
    _check_options(to, given)
    _check_out(to, out, only_changed)
    checks.check_outside(patch, "session's", out=out)
    loaded = finished_patch(patch)
    if to == "peft":
        write_peft(loaded, out, rank, energy, base_model_name, every_layer)
    elif to == "gguf-lora":
        _write_gguf_lora(loaded, out, rank, energy, base, rebase)
    elif to == "gguf":
        _write_gguf(loaded, out, str(base), tensor_type, rebase)
    else:
        _write_safetensors(loaded, out, str(base), rebase, only_changed)


def finished_patch(path: Path) -> Patch:
    """Load the patch to be served. A session with pending batches is refused: some facts would be absent unnoticed."""
    from factpatch.journal import Journal

    loaded = checks.load_patch("PATCH", path)
    if path.is_dir():
        with checks.argument("PATCH"):
            Journal(path).check_idle()
    return loaded


def _check_options(to: Format, given: dict[str, object]) -> None:
    """Raise BadArgumentError unless the options that were given apply to the format and to each other."""
    for name, value in given.items():
        if value is not None and to not in _APPLIES[name]:
            shown = checks.option_name(name) + ("" if value is True else f" {value}")
            raise checks.BadArgumentError(
                f"{shown}: is for --to {' or '.join(_APPLIES[name])}, and this is --to {to}; leave it out."
            )
    if given["rank"] is not None and given["energy"] is not None:
        raise checks.BadArgumentError(f"--rank {given['rank']}, --energy {given['energy']}: give one of them.")
    if given["base"] is None and to in _NEED_BASE:
        raise checks.BadArgumentError(f"--base: --to {to} writes a whole model; give the unedited one: --base MODEL.")
    if given["base"] is None and given["rebase"]:
        raise checks.BadArgumentError("--rebase: applies to the model of --base; give that too, or leave it out.")
    if not str(given["base_model_name"] or "named").strip():
        raise checks.BadArgumentError("--base-model-name: is blank; leave it out to write none.")


def _check_out(to: Format, out: Path, only_changed: bool) -> None:
    """Raise BadArgumentError unless the output, and a Modelfile beside it, can be written and replace nothing."""
    if to == "peft" or (to == "safetensors" and not only_changed):
        checks.check_output("--out", out, "new directory")
        return
    if not out.name or not str(out).isprintable():
        raise checks.BadArgumentError(f"--out {str(out)!r}: is no name for a file that a command can be printed for.")
    if modelfile_of(out) == out:
        raise checks.BadArgumentError(f"--out {out}: is the name of the Modelfile for Ollama; choose another one.")
    for path in (out, modelfile_of(out)) if to in ("gguf-lora", "gguf") else (out,):
        checks.check_output("--out", path)
        if path.exists():
            raise checks.BadArgumentError(f"--out {path}: there is such a file already; choose another name.")


def modelfile_of(out: Path) -> Path:
    """Where the Modelfile of an exported file is."""
    return out.with_name(f"{out.stem}.Modelfile")


def write_peft(
    loaded: Patch,
    out: Path,
    rank: int | None,
    energy: float | None = None,
    base_model_name: str | None = None,
    every_layer: bool = False,
) -> None:
    """Write an adapter for peft, and print what it is and how it is served."""
    from factpatch.export.lora import WEIGHTS, write_lora
    from factpatch.export.origin import known_base, origin_of
    from factpatch.export.serving import Served, layers_of
    from factpatch.model.architectures import alike

    if every_layer and not alike(loaded.config, layers_of(loaded.config)):
        raise checks.BadArgumentError(
            "--every-layer: some layers of this model have experts and others none, so zeros for one do not fit the "
            "other. Leave it out, or merge the edit: --to safetensors"
        )
    factors = _factors(loaded, rank, energy)
    written = factors.with_every_layer(layers_of(loaded.config)) if every_layer else factors
    with checks.extras():
        write_lora(written, loaded.config, out, base_model_name)
    _show_adapter(out, out / WEIGHTS, factors)
    base = base_model_name or known_base(loaded.config)
    if base is None:
        render.say(
            "The adapter does not name its base model, which was not loaded from the Hub; AutoPeftModel and servers "
            "look for the name. To write it: --base-model-name NAME, an ID on the Hub or a directory; for a model that "
            "was read from a GGUF file, that of its original in the format of transformers.",
            "yellow",
        )
    _show_commands(Served("peft", out, base or _directory(origin_of(loaded.config)), loaded.config, written))


def _write_gguf_lora(
    loaded: Patch, out: Path, rank: int | None, energy: float | None, base: str | None, rebase: bool
) -> None:
    import torch

    from factpatch.export.gguf_lora import write_gguf_lora
    from factpatch.export.serving import Served, modelfile

    file, ollama = _known_gguf(loaded, base)
    if base is not None:
        _fitting_base(base, _opened(file), loaded, rebase)
    factors = _factors(loaded, rank, energy, torch.float32)
    with _beside(out, modelfile(out, ollama)):
        write_gguf_lora(factors, loaded.config, out)
    _show_adapter(out, out, factors)
    _show_commands(Served("gguf-lora", out, file, loaded.config, factors, modelfile_of(out)))
    if file == UNKNOWN_GGUF:
        render.say(
            f"{UNKNOWN_GGUF} stands for the model that the patch was made on, as a GGUF file, quantized or not; "
            f"{modelfile_of(out)} names it too. To have it checked and named: --base MODEL.",
            "yellow",
        )


def _write_gguf(loaded: Patch, out: Path, base: str, tensor_type: str | None, rebase: bool) -> None:
    from factpatch.export.serving import Served, modelfile
    from factpatch.model.embedded import EMBEDDED
    from factpatch.patch.merge import write_merged

    file, _ = _known_gguf(loaded, base)
    opened = _opened(file)
    weights = _fitting_base(base, opened, loaded, rebase)
    with _beside(out, modelfile(out, None)), render.messages.status(f"writing {out}"):
        merged = write_merged(loaded, opened, weights, out, tensor_type)
    for tensor in merged:
        error = f"rounding changes the shift by {100 * tensor.error:.2g} %"
        render.say(f"{tensor.name}: {tensor.was} -> {tensor.kind}, {error}")
    was = render.size(opened.path)
    render.say(f"Model: {out} ({render.size(out)}; unedited {was})", "bold")
    _show_commands(Served("gguf", out, file, loaded.config, modelfile=modelfile_of(out)))
    if not Path(base).exists() and base not in EMBEDDED:
        render.say(
            f"The template, parameters and system text that Ollama has of {base} are not in the file; to add them to "
            f"{modelfile_of(out)}: ollama show --modelfile {base}",
            "yellow",
        )


def _fitting_base(base: str, file: GGUFFile, loaded: Patch, rebase: bool) -> dict[int, Tensor]:
    """The weights of a GGUF model that a patch fits; if they may be others, after showing what it says of the facts."""
    from factpatch.patch.merge import fitting_gguf_weights

    with checks.argument("--base"):
        weights = fitting_gguf_weights(loaded, file, rebase)
    if rebase:
        rebased_and_asked(checks.load_model(base, None, None, loaded.chat, loaded), loaded)
    return weights


def _write_safetensors(loaded: Patch, out: Path, base: str, rebase: bool, only_changed: bool) -> None:
    from factpatch.export.card import model_card
    from factpatch.export.changed import write_changed
    from factpatch.export.serving import Served

    checks.check_outside(Path(base), out=out)
    lm, patch = applied_model(base, loaded, rebase=rebase)
    if only_changed:
        for name in write_changed(lm.model, patch.places, out, patch.shared_expert):
            render.say(name)
        render.say(f"Changed weights: {out} ({render.size(out)})", "bold")
    else:
        checks.save_model(lm, out, model_card(patch))
        render.say(f"Model: {out} ({render.size(out)})", "bold")
    _show_commands(Served("changed" if only_changed else "safetensors", out, base, loaded.config))


def _factors(loaded: Patch, rank: int | None, energy: float | None, dtype: torch.dtype | None = None) -> LowRankFactors:
    with checks.argument("--rank" if energy is None else "--energy"):
        return loaded.factors(rank, energy, dtype)


def _known_gguf(loaded: Patch, base: str | None) -> tuple[str, str]:
    """The base's GGUF file and what a Modelfile calls it; without `base`, that of the patch if it is at hand.

    Raises:
        BadArgumentError: llama.cpp has no such models, or `base` names no GGUF file.
    """
    from factpatch.model.gguf_names import gguf_architecture
    from factpatch.model.source import gguf_of

    with checks.argument("--to"):
        gguf_architecture(loaded.config)
    if base is None:
        return _remembered_gguf(loaded)
    if not base.isprintable():
        raise checks.BadArgumentError(f"--base {base!r}: a Modelfile cannot name it; rename the file.")
    with checks.argument("--base"):
        found = gguf_of(base)
    if found is None:
        raise checks.BadArgumentError(
            f"--base {base}: no GGUF file, no directory with one, and no model that Ollama has here. Give the unedited "
            "model as a GGUF file."
        )
    return str(found), _for_modelfile(base, found)


def _remembered_gguf(loaded: Patch) -> tuple[str, str]:
    """The GGUF file that a patch names, if it is here and is the one that the patch was made on."""
    from factpatch.export.origin import origin_of
    from factpatch.model.gguf import find_gguf, open_gguf
    from factpatch.patch.merge import fitting_gguf_weights

    with suppress(OSError, ValueError):
        found = find_gguf(name) if (name := origin_of(loaded.config)) else None
        if found is not None:
            fitting_gguf_weights(loaded, open_gguf(found))  # many files have the same name
            return str(found), _for_modelfile(name, found)
    return UNKNOWN_GGUF, UNKNOWN_GGUF


def _for_modelfile(name: str, found: Path) -> str:
    """What a Modelfile calls a GGUF file; where no file has the name, it is an Ollama model's."""
    from factpatch.model.embedded import EMBEDDED

    return str(found.absolute()) if name in EMBEDDED or Path(name).exists() else name


def _opened(file: str) -> GGUFFile:
    from factpatch.model.gguf import open_gguf

    with checks.argument("--base"):
        return open_gguf(file)


def _directory(origin: str) -> str:
    """What stands in commands for a base in the format of transformers."""
    from factpatch.export.origin import names_gguf
    from factpatch.model.embedded import EMBEDDED
    from factpatch.model.kept import models_directory

    if origin in EMBEDDED:
        kept = models_directory() / origin
        return str(kept) if kept.is_dir() else origin
    return "BASE" if not origin or names_gguf(origin) else origin


@contextmanager
def _beside(out: Path, modelfile: str) -> Iterator[None]:
    """Write the Modelfile of what the block writes, after it; if that fails, remove both."""
    from factpatch.support.files import atomic_write

    yield
    try:
        atomic_write(modelfile_of(out), lambda draft: draft.write_text(modelfile, encoding="utf-8"))
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def _show_adapter(out: Path, weights: Path, factors: LowRankFactors) -> None:
    from factpatch.model.places import name_of

    for layer, count in factors.ranks.items():
        render.say(f"Layer {name_of(layer)}: rank {count}")
    error = factors.largest_error()
    lost = f", relative error at most {100 * error:.2g} %" if error else ""
    render.say(f"Adapter: {out} ({render.size(weights)}; rank {factors.rank}{lost})", "bold")
    if error > _MUCH:
        render.say("Much of the edit is cut off, and facts with it: verify them, or merge the edit instead.", "yellow")


def _show_commands(served: Served) -> None:
    from factpatch.export.serving import commands

    render.say("To serve it:")
    for engine, lines in commands(served):
        render.say(f"  {engine + ':':<13} {lines[0]}")
        for line in lines[1:]:
            render.say(f"{'':<16}{line}")
