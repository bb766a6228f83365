"""How an exported edit is served: the commands of each engine, and what an engine does not take. Engines are data."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factpatch.export.factors import LowRankFactors
from factpatch.model.architectures import alike
from factpatch.model.places import part_of

SERVED_NAME = "edited"
"""What the commands call the edited model."""


@dataclass(frozen=True)
class Engine:
    """One way to serve one format."""

    name: str
    format: str
    """The format that it loads, as `factpatch export --to` names it."""
    commands: tuple[str, ...]
    """Lines for the shell or for Python, with the fields of `Served`; each field is quoted where it stands."""
    about: str = ""
    """A remark that stands with the commands."""
    ranks: tuple[int, ...] = ()
    """The ranks that it can be started for, ascending, of which the smallest that suffices is taken; () for any."""
    families: frozenset[str] | None = None
    """The model types that it takes adapters for; None for all that it runs."""
    every_layer: bool = False
    """Whether it takes only adapters that have factors for every layer of the model."""


@dataclass(frozen=True)
class Served:
    """What is served."""

    format: str
    out: Path
    base: str
    """The base model as the engine of this format finds it: a GGUF file, or an ID or a directory for transformers."""
    config: Mapping[str, Any]
    """The base model's config."""
    factors: LowRankFactors | None = None
    """What an adapter holds."""
    modelfile: Path | None = None
    """The Modelfile that was written for Ollama."""


# llama.cpp and peft take any rank. vLLM: the values of `max_lora_rank` in vllm/config/lora.py, and its models that
# support LoRA, in version 0.32. TGI: text_generation_server/adapters/lora.py, where `prepare_weights` leaves out a kind
# of projection, without an error, unless every layer has it.
ENGINES = (
    Engine(
        "llama.cpp",
        "gguf-lora",
        (
            "llama-server -m {base} --lora {out}",
            "factpatch verify --engine llama.cpp --facts FACTS --before no-adapter",
        ),
    ),
    Engine(
        "Ollama",
        "gguf-lora",
        (
            "ollama create {name} -f {modelfile}",
            "ollama run {name}",
            "factpatch verify {name} --engine ollama --facts FACTS",
        ),
        about="if Ollama says that it takes no adapters for this model, merge the edit: --to gguf",
    ),
    Engine(
        "vLLM",
        "peft",
        ("vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {named_out}",),
        about="ask for the model {name}",
        ranks=(1, 8, 16, 32, 64, 128, 256, 320, 512),
        families=frozenset(("llama", "mistral", "qwen2", "qwen3", "phi3", "opt")),
    ),
    Engine(
        "TGI",
        "peft",
        ("text-generation-launcher --model-id {base} --lora-adapters {named_out}",),
        about='ask with "adapter_id": "{name}"',
        every_layer=True,
    ),
    Engine("peft", "peft", ("peft.PeftModel.from_pretrained(model, {python_out})",), about="model is {base}"),
    Engine("llama.cpp", "gguf", ("llama-server -m {out}",)),
    Engine("Ollama", "gguf", ("ollama create {name} -f {modelfile}", "ollama run {name}")),
    Engine("vLLM", "safetensors", ("vllm serve {out}",)),
    Engine("TGI", "safetensors", ("text-generation-launcher --model-id {out}",)),
    Engine("transformers", "safetensors", ("AutoModelForCausalLM.from_pretrained({python_out})",)),
    Engine(
        "transformers",
        "changed",
        ("model.load_state_dict(safetensors.torch.load_file({python_out}), strict=False)",),
        about="model is {base}",
    ),
)


def commands(served: Served) -> Iterator[tuple[str, list[str]]]:
    """By engine, the commands that serve an export, or a sentence why the engine cannot and what to do."""
    for engine in ENGINES:
        if engine.format == served.format:
            obstacle = _obstacle(engine, served)
            yield engine.name, [obstacle] if obstacle else _filled(engine, served)


def modelfile(out: Path, base: str | None) -> str:
    """The Modelfile with which Ollama makes a model of an exported file, or of an adapter on a base.

    Args:
        out: The exported file, beside which the Modelfile is to lie.
        base: What Ollama calls the base, or its file; None if the exported file is the whole model.
    """
    here = f"./{out.name}"
    return f"FROM {here}\n" if base is None else f"FROM {base}\nADAPTER {here}\n"


def _filled(engine: Engine, served: Served) -> list[str]:
    factors = served.factors
    rank = 0 if factors is None else next((size for size in engine.ranks if size >= factors.rank), factors.rank)
    fields = {
        "base": shlex.quote(served.base),
        "out": shlex.quote(str(served.out)),
        "named_out": shlex.quote(f"{SERVED_NAME}={served.out}"),
        "python_out": repr(str(served.out)),
        "modelfile": shlex.quote(str(served.modelfile)),
        "name": SERVED_NAME,
        "rank": str(rank),
    }
    lines = [command.format(**fields) for command in engine.commands]
    return [*lines, f"({engine.about.format(**{**fields, 'base': served.base})})"] if engine.about else lines


def _obstacle(engine: Engine, served: Served) -> str:
    """Why an engine cannot serve an export, and what to do; an empty text if it can."""
    factors, family = served.factors, served.config.get("model_type")
    if factors is None:
        return ""
    if engine.families is not None and family not in engine.families:
        return f"takes no adapters for models of type {family}; merge the edit: --to safetensors"
    if engine.ranks and factors.rank > engine.ranks[-1]:
        most = engine.ranks[-1]
        error = 100 * factors.largest_error(most)
        return (
            f"takes rank {most} at most, and this adapter has rank {factors.rank}. Export it with --rank {most} "
            f"(relative error {error:.2g} %) or --energy {factors.energy(most):g}, or merge the edit: --to safetensors"
        )
    count = layers_of(served.config)
    held = min(Counter(map(part_of, factors.ranks)).values())  # of a kind of projection, it takes all or none
    if engine.every_layer and held < count:
        fits = alike(served.config, count)
        return (
            f"ignores an adapter silently if it lacks some of the model's layers, and this one has "
            f"{held} of {count}. "
            + ("Export it with --every-layer, which adds zeros" if fits else "Merge the edit: --to safetensors")
        )
    return ""


def layers_of(config: Mapping[str, Any]) -> int:
    """How many layers the model of a config has."""
    return int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
