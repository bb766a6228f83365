"""llama.cpp as a server, for tests: `llama.mjs` in a process of its own. Skips where it is not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_START = 120.0  # seconds


def node_modules() -> Path:
    """Return the folder with the npm package of llama.cpp, or skip the test where it or node is absent."""
    folder = Path(os.environ.get("FACTPATCH_LLAMA_NODE") or _ROOT / "build/engines/node_modules")
    if shutil.which("node") is None or not (folder / "@fugood/llama.node/package.json").is_file():
        pytest.skip(
            f"llama.cpp is not in {folder}: run `make engines`, which needs node and npm, or let FACTPATCH_LLAMA_NODE "
            "name the node_modules folder with @fugood/llama.node"
        )
    return folder


@contextmanager
def serving(model: Path, lora: Path | None = None, name: str | None = None, cache: str = "f16") -> Iterator[str]:
    """Serve a GGUF file, with an adapter if one is given, and yield the URL. One request is answered at a time.

    Args:
        name: What the server calls the model; by default the file's name without its ending.
        cache: The type that keys and values are kept in: f16 as in llama-server, or f32 as in PyTorch.
    """
    command = ["node", str(Path(__file__).with_name("llama.mjs")), "--modules", str(node_modules())]
    given = {"model": model, "lora": lora, "name": name, "cache": cache}
    command += [f"--{option}={value}" for option, value in given.items() if value is not None]
    # A file and no pipe: llama.cpp prints so much that a pipe which nobody reads would stop it.
    with tempfile.NamedTemporaryFile() as printed:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed)
        try:
            yield _url(server, Path(printed.name))
        finally:
            server.kill()
            server.wait()


def _url(server: subprocess.Popen[bytes], printed: Path) -> str:
    end = time.monotonic() + _START
    while True:
        text = printed.read_text("utf-8", "replace")
        for line in text.splitlines():
            if line.startswith('{"url":'):
                return str(json.loads(line)["url"])
        if server.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"llama.cpp did not start:\n{text[-2000:]}")
        time.sleep(0.05)
