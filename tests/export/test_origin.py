"""What others may call the model of a patch: an ID of the Hub, and never what only this machine has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factpatch.export.origin import base_name, hub_id, known_base, names_gguf


@pytest.fixture
def ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ollama knows `tiny`, and its weights are gone."""
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'ab' * 32}"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))


@pytest.mark.usefixtures("ollama")
@pytest.mark.parametrize(
    ("origin", "known", "name"),
    [
        ("someone/base-7b", "someone/base-7b", "someone/base-7b"),
        ("gpt2", "gpt2", "gpt2"),
        ("smollm2-135m", None, "smollm2-135m"),
        ("model-Q4_K_M.gguf", None, "model-Q4_K_M.gguf"),
        ("tiny", None, "tiny"),
        ("qwen2.5:0.5b", None, "qwen2.5:0.5b"),
        ("/home/me/models/base", None, "base"),
        ("", None, "llama"),
    ],
)
def test_only_an_id_of_the_hub_is_known_to_others(origin: str, known: str | None, name: str) -> None:
    config = {"model_type": "llama", "_name_or_path": origin}
    assert known_base(config) == known
    assert hub_id(origin) == (known or "")
    assert base_name(config) == name


@pytest.mark.usefixtures("ollama")
def test_a_gguf_file_is_known_by_its_name_where_it_is_not() -> None:
    assert [names_gguf(name) for name in ("elsewhere.GGUF", "tiny", "tiny:latest")] == [True] * 3
    assert [names_gguf(name) for name in ("gpt2", "someone/base", "")] == [False] * 3
