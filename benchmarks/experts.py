"""What an edit of a mixture of experts takes: a model of random weights, one batch of facts, on this machine.

    python benchmarks/experts.py                            # 1.0 billion parameters; memory and seconds by stage
    python benchmarks/experts.py --experts 8 --layers 8     # smaller

The model is a Qwen3-MoE with the embedded model's tokenizer; random weights learn facts as badly as they know any, so
that only the costs mean something, and how much less likely the new objects were before.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from factpatch import Editor, verify
from factpatch.data import demo_facts
from factpatch.evaluation.routing import read_routes, rerouted
from factpatch.model.loading import load_language_model
from factpatch.statistics.corpus import corpus_from


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 16), ("width", 1024), ("experts", 32), ("inner", 512), ("facts", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--corpus-tokens", type=int, default=40960)
    parser.add_argument("--passes", type=int, help="over the experts; 0 for what they converge to")
    options = parser.parse_args()
    tokenizer = load_language_model("smollm2-135m").tokenizer
    config = AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=len(tokenizer),
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=options.width // 16,
        num_experts=options.experts,
        num_experts_per_tok=4,
        moe_intermediate_size=options.inner,
        max_position_embeddings=2048,
        initializer_range=0.06,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    parameters = sum(weight.numel() for weight in model.parameters())
    facts = demo_facts()[: options.facts]
    loaded = _peak()
    editor = Editor(
        model,
        tokenizer,
        method="alphaedit-blue",
        critical_layers=(options.layers // 8, options.layers // 4),
        contexts=("{}", "The man said that. {}", "In the city of London. {}"),
        corpus=corpus_from(None),
        corpus_tokens=options.corpus_tokens,
        settings={"target.contexts": ("prompt", "prefixes"), "target.apart": False},
        progress=False,
    )
    if options.passes is not None:  # as a setting, it would keep those of the solver from being derived
        editor.prepared.solver = replace(editor.prepared.solver, passes=options.passes)
    before = verify(editor.lm, None, facts, answers=False).after
    routes = read_routes(editor.lm)
    start = time.perf_counter()
    editor.prepare()
    prepared = time.perf_counter()
    patch = editor.edit(facts)
    edited = time.perf_counter()
    after = verify(editor.lm, None, facts, answers=False).after
    nll = [(sum(one.nll_new for one in some) / len(some)) for some in (before, after)]
    memory = {layer: editor.prepared.memory(layer) for layer in editor.written_layers}
    found = {
        "parameters": parameters,
        "weights_gib": round(4 * parameters / 2**30, 2),
        "peak_loaded_gib": loaded,
        "peak_gib": _peak(),
        "statistics_seconds": round(prepared - start, 1),
        "edit_seconds": round(edited - prepared, 1),
        "stages": {name: round(took, 2) for name, took in editor.edits[-1].seconds.items()},
        "facts": len(facts),
        "experts_written": {layer: len(memory[layer].systems._made) for layer in memory},
        "patch_mib": round(patch.num_bytes / 2**20, 2),
        "nll_before_after": [round(one, 2) for one in nll],
        "rerouted": rerouted(routes, read_routes(editor.lm)),
        "threads": torch.get_num_threads(),
    }
    start = time.perf_counter()
    editor.undo()
    found["undo_seconds"] = round(time.perf_counter() - start, 1)
    print(json.dumps(found, indent=1))


def _peak() -> float:
    """The most memory that this process has held, in GiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


if __name__ == "__main__":
    main()
