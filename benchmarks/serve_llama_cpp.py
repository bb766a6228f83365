"""The round trip through llama.cpp: a GGUF file is edited, the edit served as an adapter and merged, and both asked.

The same is asked of PyTorch in this process. Prints a Markdown table: what is said, how many answers to the neighbors'
prompts are unchanged, and the perplexity of ordinary text with the edit, relative to without it. llama.cpp comes from
the npm package node-llama-cpp (`npm install --prefix DIR --ignore-scripts node-llama-cpp`).

    python benchmarks/serve_llama_cpp.py smollm2-135m --facts counterfact.json --limit 40 --modules DIR/node_modules
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests
from served import arguments, asked, asked_of, beginning, shown

from factpatch import Editor, Patch, load_facts
from factpatch.evaluation.perplexity import held_out_text, perplexity
from factpatch.evaluation.server import ENGINES, Server
from factpatch.model.gguf import open_gguf
from factpatch.model.loading import load_language_model
from factpatch.model.source import gguf_of
from factpatch.patch.merge import merge_gguf

OFF = {"lora": [{"id": 0, "scale": 0.0}]}


@contextmanager
def serving(modules: Path, model: Path, lora: Path | None = None) -> Iterator[Server]:
    """Start llama.cpp with a model and an adapter, and stop it in any case."""
    command = ["node", str(Path(__file__).with_name("llama_cpp.mjs")), "--modules", str(modules), "--model", str(model)]
    command += [] if lora is None else ["--lora", str(lora)]
    with tempfile.NamedTemporaryFile() as printed:
        child = subprocess.Popen(command, stdout=printed, stderr=printed)
        try:
            while not (text := Path(printed.name).read_text("utf-8", "replace")).startswith('{"url"'):
                if child.poll() is not None:
                    raise SystemExit(f"llama.cpp does not serve:\n{text[-2000:]}")
                time.sleep(0.1)
            yield Server(ENGINES["llama.cpp"], json.loads(text.splitlines()[0])["url"], None).opened()
        finally:
            child.kill()
            child.wait()


def served_perplexity(server: Server, rows: Sequence[Sequence[int]], **fields: object) -> float:
    """Perplexity as `perplexity` defines it."""
    response = requests.post(f"{server.url}/likelihood", json={"rows": rows, **fields}, timeout=3600)
    response.raise_for_status()
    nlls = [nll for row in response.json()["nlls"] for nll in row]
    return math.exp(math.fsum(nlls) / len(nlls))


def main() -> None:
    parser = arguments(__doc__, "an embedded model, or a GGUF file")
    parser.add_argument("--corpus", help="the text for the second moment of a model without a preset")
    parser.add_argument("--patch", type=Path, help="a patch of these facts on this file, instead of editing it")
    parser.add_argument("--modules", type=Path, required=True, help="the node_modules folder with node-llama-cpp")
    given = parser.parse_args()

    file = gguf_of(given.model)
    assert file is not None, given.model
    facts = load_facts(given.facts, given.limit)
    lm = load_language_model(str(file))
    text, rows = beginning(lm.tokenizer, held_out_text(), given.perplexity_tokens)
    unedited, plain = asked(lm, facts), perplexity(lm, text)
    if given.patch is None:
        editor = Editor(lm, method=given.method, corpus=given.corpus)
        patch = editor.edit(facts)
    else:
        patch = Patch.load(given.patch)
        patch.apply(lm)
    here, ratio = asked(lm, facts, unedited), perplexity(lm, text) / plain

    with tempfile.TemporaryDirectory() as folder:
        adapter, merged = Path(folder) / "adapter.gguf", Path(folder) / "merged.gguf"
        rank = max(patch.to_gguf_lora(adapter).values())
        merge_gguf(patch, open_gguf(file), merged)
        sizes = [path.stat().st_size / 1e6 for path in (file, adapter, merged)]
        print(f"{file.name}: {sizes[0]:.1f} MB; adapter: rank {rank}, {sizes[1]:.2f} MB; merged: {sizes[2]:.1f} MB")
        with serving(given.modules, file, adapter) as server:
            before = asked_of(server.without_adapters(), facts)
            base = served_perplexity(server, rows, **OFF)
            beside, ratio_beside = asked_of(server, facts, before), served_perplexity(server, rows) / base
        with serving(given.modules, merged) as server:
            into, ratio_into = asked_of(server, facts, before), served_perplexity(server, rows) / base
    engines = {"llama.cpp, adapter": beside, "llama.cpp, merged": into}
    print(shown(here, engines, (ratio, ratio_beside, ratio_into)))
    print(f"\nPerplexity of {sum(map(len, rows)) - len(rows)} tokens, unedited: {plain:.4f} and {base:.4f}.")


if __name__ == "__main__":
    main()
