"""GGUF files as models: found, checked to be whole, dequantized once, read as transformers and llama.cpp read them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tests.ggufs import NAMES, write_gguf
from tests.models import SENTENCES, TURN, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from factpatch import Editor, Fact
from factpatch.model import conversion
from factpatch.model.conversion import convert
from factpatch.model.gguf import find_gguf, open_gguf
from factpatch.model.kept import kept_digest
from factpatch.model.loading import load_language_model
from factpatch.model.source import model_source
from factpatch.patch.compatibility import PatchMismatchError
from factpatch.patch.merge import merge_gguf

ROPE = "rope_freqs.weight"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))


def refused(model: object) -> str:
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        load_language_model(str(model))
    return str(caught.value)


def logits(model: Any) -> torch.Tensor:
    tokenizer = tiny_tokenizer()
    with torch.inference_mode():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits[0] for text in SENTENCES])


# --- what is read


@pytest.mark.parametrize("family", NAMES)
def test_a_file_of_every_family_gives_the_models_logits(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    lm = load_language_model(write_gguf(tmp_path / "m.gguf", model, "F32"))
    torch.testing.assert_close(logits(lm.model), logits(model), rtol=0, atol=1e-5)
    assert lm.name == "m.gguf"


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_weights_are_those_that_transformers_dequantizes(family: str, kind: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_model(family), kind)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).state_dict()
    assert expected["model.layers.0.self_attn.q_proj.weight"].unique().numel() > 10
    found = load_language_model(path).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_tokenizer_and_the_chat_template_are_those_of_the_file(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama", chat=True), tiny_tokenizer(chat=True)
    lm = load_language_model(write_gguf(tmp_path / "m.gguf", model, tokenizer=tokenizer), chat=True)
    for text in (*SENTENCES, f"{TURN}user\nHello", "1234  two\n\nlines, Köln"):
        assert lm.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert lm.tokenizer.chat_template == tokenizer.chat_template
    assert lm.frame.chat


def altered(path: Path, name: str, fields: Mapping[str, Any] = {}, **tensors: Any) -> Path:
    """A copy of a GGUF file with fields of the metadata replaced, and tensors replaced or added."""
    file = open_gguf(path)
    made = path.with_name(name)
    writer = gguf.GGUFWriter(made, file.architecture)
    for field in file.reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            value = fields.get(field.name, field.contents())
            if isinstance(value, list) and len(field.types) == 1:
                writer.add_array(field.name, value)
            elif value is not None:
                kinds = field.types[0], field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, value, *kinds)
    for name in fields.keys() - file.reader.fields.keys():
        value = fields[name]
        kind = {str: gguf.GGUFValueType.STRING, float: gguf.GGUFValueType.FLOAT32, int: gguf.GGUFValueType.UINT32}
        writer.add_key_value(name, value, kind[type(value)])
    for tensor in file.reader.tensors:
        if tensor.name not in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for place, data in tensors.items():
        writer.add_tensor(place, np.ascontiguousarray(data, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


@pytest.mark.parametrize("begins", [True, False])
def test_a_text_begins_with_bos_where_the_file_says_so(begins: bool, tmp_path: Path) -> None:
    path = altered(write_gguf(tmp_path / "m.gguf"), "bos.gguf", {"tokenizer.ggml.add_bos_token": begins})
    tokenizer = load_language_model(path).tokenizer
    ids = tokenizer("Rome")["input_ids"]
    assert (ids[0] == tokenizer.bos_token_id) == begins
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Rome"
    assert tokenizer("Rome", add_special_tokens=False)["input_ids"] == ids[begins:]


def test_llama_3s_scaled_positions_are_taken_over(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.config.rope_parameters = {
        "rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    scaled = type(model)(model.config)
    scaled.load_state_dict(model.state_dict())
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, torch.device("cpu"))
    plain = 1 / 500000.0 ** (torch.arange(0, 8, 2) / 8)
    path = write_gguf(tmp_path / "m.gguf", model, "F32")
    found = load_language_model(altered(path, "scaled.gguf", **{ROPE: plain / expected})).model
    torch.testing.assert_close(found.model.rotary_emb.inv_freq, expected, rtol=1e-6, atol=0)
    other = altered(path, "other.gguf", **{ROPE: np.linspace(1, 3, 4)})
    assert "in a way that is not Llama 3's" in refused(other)


def test_large_models_are_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf", kind="F32")
    monkeypatch.setattr(conversion, "_SHARD_BYTES", 20_000)
    lm = load_language_model(path)
    directory = Path(model_source(str(path)).location)
    assert len(list(directory.glob("model-*-of-*.safetensors"))) > 3
    torch.testing.assert_close(logits(lm.model), logits(tiny_model("llama")), rtol=0, atol=1e-5)


# --- the cache


def test_a_file_is_converted_once_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf", kind="Q8_0")
    first = model_source(str(path))
    path.rename(tmp_path / "elsewhere.gguf")
    monkeypatch.setattr(conversion, "convert", None)
    second = model_source(str(tmp_path / "elsewhere.gguf"))
    assert (second.location, second.shown) == (first.location, "elsewhere.gguf")
    record = json.loads((Path(first.location) / "factpatch.json").read_text())
    assert record["gguf_sha256"] == kept_digest(tmp_path / "elsewhere.gguf")


def test_a_changed_file_is_another_model(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama", seed=0))
    first = load_language_model(path)
    write_gguf(path, tiny_model("llama", seed=1))
    assert not torch.equal(load_language_model(path).weight(0), first.weight(0))


def test_a_dtype_of_16_bits_halves_what_is_kept(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", kind="Q4_0")
    wide, narrow = load_language_model(path), load_language_model(path, dtype="bfloat16")
    assert (wide.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(wide.weight(1).to(torch.bfloat16), narrow.weight(1))
    sizes = [
        (Path(model_source(str(path), dtype).location) / "model.safetensors").stat().st_size
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert sizes[1] < 0.6 * sizes[0]
    assert load_language_model(path, dtype="float64").dtype == torch.float64


def test_an_edit_of_a_file_names_the_file_and_not_the_cache(tmp_path: Path) -> None:
    lm = load_language_model(write_gguf(tmp_path / "tiny-Q8_0.gguf", kind="Q8_0"))
    assert Editor(lm, critical_layers=[1], corpus=SENTENCES, corpus_tokens=100).lm.name == "tiny-Q8_0.gguf"
    assert str(tmp_path) not in json.dumps(lm.config.to_dict())


# --- where it lies


def test_a_directory_with_one_file_stands_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = write_gguf(folder / "m.gguf")
    (folder / "mmproj-model.gguf").write_bytes(path.read_bytes())
    assert find_gguf(str(folder)) == path
    (folder / "other.gguf").write_bytes(path.read_bytes())
    assert "holds 2 GGUF files: m.gguf, other.gguf. Name one of them." in refused(folder)


def ollama(tmp_path: Path, manifest: str, blob: bytes) -> str:
    models, digest = tmp_path / "ollama", "ab" * 32
    (models / "blobs").mkdir(parents=True)
    (models / "blobs" / f"sha256-{digest}").write_bytes(blob)
    place = models / "manifests" / manifest
    place.parent.mkdir(parents=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "cd" * 32},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"},
    ]
    place.write_text(json.dumps({"layers": layers}))
    return digest


@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        ("tinyllama:1b", "registry.ollama.ai/library/tinyllama/1b"),
        ("tinyllama", "registry.ollama.ai/library/tinyllama/latest"),
        ("someone/tiny", "registry.ollama.ai/someone/tiny/latest"),
        ("hf.co/someone/tiny-GGUF:Q4_K_M", "hf.co/someone/tiny-GGUF/Q4_K_M"),
    ],
)
def test_a_model_of_ollamas_is_loaded_from_its_blob(name: str, manifest: str, tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "m.gguf", kind="Q8_0").read_bytes()
    digest = ollama(tmp_path, manifest, content)
    assert find_gguf(name) == tmp_path / "ollama" / "blobs" / f"sha256-{digest}"
    lm = load_language_model(name)
    assert lm.name == name
    assert torch.equal(lm.weight(0), load_language_model(tmp_path / "m.gguf").weight(0))


def test_a_model_of_ollamas_without_its_blob_is_refused(tmp_path: Path) -> None:
    digest = ollama(tmp_path, "registry.ollama.ai/library/gone/latest", b"")
    (tmp_path / "ollama" / "blobs" / f"sha256-{digest}").unlink()
    assert "ollama pull gone" in refused("gone")
    assert find_gguf("never-pulled:1b") is None


# --- what is no whole model


def test_a_file_cut_anywhere_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "whole.gguf", kind="Q8_0").read_bytes()
    path = tmp_path / "cut.gguf"
    for size in (0, 3, 4, 20, 24, 100, 1000, 5000, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:size])
        assert f"{path} cannot be read: " in refused(path), size
    assert not list((tmp_path / "cache").glob("models/gguf-*"))


@pytest.mark.parametrize(
    ("first", "value", "said"),
    [
        (4, 2**24 * 3, "big-endian"),
        (4, 99, "GGUF version 99"),
        (8, 2**60, "cut off or damaged"),
        (16, 2**60, "cut off or damaged"),
        (8, 0, "holds no tensors"),
    ],
)
def test_an_altered_head_is_refused(first: int, value: int, said: str, tmp_path: Path) -> None:
    content = bytearray(write_gguf(tmp_path / "whole.gguf").read_bytes())
    width = 4 if first == 4 else 8
    content[first : first + width] = value.to_bytes(width, "little")
    (tmp_path / "m.gguf").write_bytes(content)
    assert said in refused(tmp_path / "m.gguf")


def test_an_array_longer_than_the_file_ends_with_an_error(tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "whole.gguf").read_bytes()
    place = content.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 4
    kind, length = content[place : place + 4], content[place + 4 : place + 12]
    assert int.from_bytes(kind, "little") == gguf.GGUFValueType.INT32
    assert int.from_bytes(length, "little") < 1000
    (tmp_path / "m.gguf").write_bytes(content[: place + 4] + (2**40).to_bytes(8, "little") + content[place + 12 :])
    assert "an array of 1099511627776 entries" in refused(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(content[: place + 4] + (10**6).to_bytes(8, "little") + content[place + 12 :])
    assert "cut off" in refused(tmp_path / "m.gguf")


def test_a_tensor_of_an_unknown_type_is_refused(tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "whole.gguf", kind="Q8_0").read_bytes()
    name = b"blk.0.ffn_down.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8
    assert int.from_bytes(content[place : place + 4], "little") == gguf.GGMLQuantizationType.Q8_0
    (tmp_path / "m.gguf").write_bytes(content[:place] + (999).to_bytes(4, "little") + content[place + 4 :])
    assert "a quantization that the gguf package" in refused(tmp_path / "m.gguf")


def test_other_kinds_of_gguf_are_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    adapter = path.read_bytes().replace(
        b"general.type\x08\0\0\0\x05\0\0\0\0\0\0\0model", b"general.type\x08\0\0\0\x05\0\0\0\0\0\0\0adapt"
    )
    assert adapter != path.read_bytes()
    (tmp_path / "a.gguf").write_bytes(adapter)
    assert "it is of general.type 'adapt', not a model" in refused(tmp_path / "a.gguf")
    other = altered(path, "other.gguf", **{"blk.0.ffn_gate_exps.weight": np.zeros((2, 4))})
    assert "1 weight that transformers has no place for, such as blk.0.ffn_gate_exps.weight" in refused(other)
    renamed = path.read_bytes().replace(b"blk.1.ffn_down.weight", b"blk.1.ffn_dawn.weight")
    (tmp_path / "r.gguf").write_bytes(renamed)
    assert "lacks the weight blk.1.ffn_down.weight" in refused(tmp_path / "r.gguf")
    unknown = path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0qlama", 1)
    (tmp_path / "u.gguf").write_bytes(unknown)
    assert "of the architecture 'qlama', which transformers does not read" in refused(tmp_path / "u.gguf")


def test_converting_leaves_the_callers_random_numbers(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    (tmp_path / "made").mkdir()
    convert(open_gguf(path), tmp_path / "made")
    assert torch.equal(torch.rand(3), expected)


def test_files_beside_the_model_are_not_taken_for_its_own(tmp_path: Path) -> None:
    alone = load_language_model(write_gguf(tmp_path / "m.gguf", kind="F32"))
    folder = tmp_path / "beside"
    folder.mkdir()
    foreign = tiny_tokenizer(chat=True)
    foreign.add_tokens(["Danielle"])
    foreign.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    path = write_gguf(folder / "m.gguf", tiny_model("llama", seed=3), "F32")
    lm = load_language_model(path)
    assert lm.tokenizer.get_vocab() == alone.tokenizer.get_vocab()
    assert lm.tokenizer.chat_template is None
    assert lm.model.generation_config.eos_token_id != 7


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("linear", {"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            "yarn",
            {"factor": 2.0, "original_context_length": 128},
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128},
        ),
    ],
)
def test_scaled_positions_are_taken_over(
    kind: str, fields: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    added = {f"llama.rope.scaling.{name}": value for name, value in {"type": kind, **fields}.items()}
    path = altered(write_gguf(tmp_path / "m.gguf"), "scaled.gguf", added)
    parameters = load_language_model(path).config.rope_parameters
    assert {name: parameters[name] for name in expected} == expected


def test_positions_scaled_in_an_unknown_way_are_refused(tmp_path: Path) -> None:
    path = altered(write_gguf(tmp_path / "m.gguf"), "scaled.gguf", {"llama.rope.scaling.type": "longrope"})
    assert "llama.rope.scaling.type is 'longrope'" in refused(path)


def test_a_file_may_leave_out_the_heads_of_keys_and_not_have_several_numbers(tmp_path: Path) -> None:
    same = tiny_model("mistral")
    many = type(same)(type(same.config)(**{**same.config.to_dict(), "num_key_value_heads": 4}))
    path = write_gguf(tmp_path / "m.gguf", many, "F32")
    without = altered(path, "without.gguf", {"llama.attention.head_count_kv": None})
    torch.testing.assert_close(logits(load_language_model(without).model), logits(many.eval()), rtol=0, atol=1e-5)
    listed = altered(path, "listed.gguf", {"llama.attention.head_count_kv": [4, 4, 2, 2]})
    assert "attention.head_count_kv is [4, 4, 2, 2]" in refused(listed)


def test_a_mixture_of_experts_is_refused_as_one(tmp_path: Path) -> None:
    path = altered(write_gguf(tmp_path / "m.gguf"), "experts.gguf", {"llama.expert_count": 8})
    assert "of the architecture 'llama', and only qwen2moe and qwen3moe are read from GGUF" in refused(path)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_a_merged_mixture_is_read_as_the_edited_model(kind: str, tmp_path: Path) -> None:
    base = write_gguf(tmp_path / "base.gguf", tiny_model("qwen3_moe"), kind)
    lm = load_language_model(base)
    moments = {layer: torch.eye(lm.key_width(layer)).double().expand(4, -1, -1) for layer in (1, 2)}
    editor = Editor(
        lm.model, lm.tokenizer, method="memit-blue", critical_layers=(1, 2), contexts=("{}",), second_moments=moments,
        settings={"target.steps": 4, "target.clamp": 4, "solver.weight": 0.01},
    )  # fmt: skip
    original = lm.weight(1).clone()
    patch = editor.edit([Fact("People speak of {}", "Messi", "capital")])
    merge_gguf(patch, open_gguf(base), tmp_path / "merged.gguf", "f32")
    merged = load_language_model(tmp_path / "merged.gguf")
    assert all(torch.equal(merged.weight(layer), lm.weight(layer)) for layer in (1, 2))
    assert not torch.equal(lm.weight(1), original)
    with pytest.raises(PatchMismatchError, match="holds this patch already"):
        merge_gguf(patch, open_gguf(tmp_path / "merged.gguf"), tmp_path / "again.gguf")


def test_the_digests_of_several_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in ("a.gguf", "b.gguf")]
    for path in paths:
        path.write_bytes(path.name.encode())
    first = [kept_digest(path) for path in paths]
    monkeypatch.setattr("factpatch.model.kept.file_digest", None)
    assert [kept_digest(path) for path in paths] == first
    assert len(set(first)) == 2


def test_an_ollama_model_with_an_adapter_is_refused(tmp_path: Path) -> None:
    ollama(tmp_path, "registry.ollama.ai/library/edited/latest", write_gguf(tmp_path / "m.gguf").read_bytes())
    manifest = tmp_path / "ollama/manifests/registry.ollama.ai/library/edited/latest"
    record = json.loads(manifest.read_text())
    record["layers"].append({"mediaType": "application/vnd.ollama.image.adapter", "digest": "sha256:" + "ef" * 32})
    manifest.write_text(json.dumps(record))
    assert "is a model with an adapter, such as an edit of factpatch" in refused("edited")


def test_a_mistyped_name_is_answered_with_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refused(tmp_path / "no such.gguf").endswith("cannot be loaded: there is no such file.")
    ollama(tmp_path, "registry.ollama.ai/library/smol/latest", b"")
    said = refused("smoll:latest")
    assert f"no such Ollama model in {tmp_path / 'ollama'}" in said
    assert "smol:latest" in said
    assert f"no such Ollama model in {tmp_path / 'ollama'}" in refused("smoll")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_count", 100_000),
        ("block_count", 3),
        ("embedding_length", 2**31),
        ("attention.head_count", 0),
        ("attention.head_count_kv", 3),
        ("attention.head_count_kv", 0),
        ("attention.layer_norm_rms_epsilon", float("nan")),
        ("attention.layer_norm_rms_epsilon", 0.0),
        ("rope.freq_base", float("inf")),
    ],
)
def test_sizes_that_cannot_be_those_of_the_tensors_are_refused(field: str, value: float, tmp_path: Path) -> None:
    path = altered(write_gguf(tmp_path / "m.gguf"), "damaged.gguf", {f"llama.{field}": value})
    assert f"{path}: llama.{field} is {value!r}, which cannot be that of its tensors" in refused(path)


@pytest.mark.parametrize("name", ["rope.scaling.factor", "rope.scale_linear"])
def test_a_factor_alone_is_that_of_a_linear_scaling(name: str, tmp_path: Path) -> None:
    path = altered(write_gguf(tmp_path / "m.gguf"), "scaled.gguf", {f"llama.{name}": 4.0})
    parameters = load_language_model(path).config.rope_parameters
    assert (parameters["rope_type"], parameters["factor"]) == ("linear", 4.0)


def test_a_file_that_changes_while_it_is_read_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama", seed=0))

    def convert_slowly(*arguments: Any) -> None:
        write_gguf(path, tiny_model("llama", seed=1))
        convert(*arguments)

    with monkeypatch.context() as slowly:
        slowly.setattr(conversion, "convert", convert_slowly)
        assert "was changed while it was read" in refused(path)
    assert not list((tmp_path / "cache/models").glob("gguf-*"))
    expected = tiny_model("llama", seed=1).state_dict()["model.layers.0.mlp.down_proj.weight"]
    assert torch.equal(load_language_model(path).weight(0), expected.half().float())


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_another(tmp_path: Path) -> None:
    path, other = (write_gguf(tmp_path / f"{seed}.gguf", tiny_model("llama", seed=seed)) for seed in (0, 1))
    for file in (path, other):
        os.utime(file, (1, 1))
    first = load_language_model(path).weight(0)
    other.replace(path)
    assert not torch.equal(load_language_model(path).weight(0), first)
