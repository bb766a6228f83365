"""Models that people bring: whole ones load, and all others are refused with the file and what to do."""

from __future__ import annotations

import ast
import datetime
import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tests.models import FAMILIES, save_tiny, tiny_model, tiny_tokenizer
from tokenizers import processors
from transformers import LlamaForSequenceClassification

from factpatch.model import loading
from factpatch.model.loading import load_language_model

WEIGHTS = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint, to be copied."""
    directory = tmp_path_factory.mktemp("whole") / "llama"
    save_tiny(directory, "llama")
    return directory


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def saved(model: Any, directory: Path, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(directory / WEIGHTS)), directory / WEIGHTS, {"format": "pt"})


def rename(directory: Path, name: Callable[[str], str | None]) -> None:
    """Rename the tensors of a checkpoint, or leave out those that get no name."""
    rewrite(directory, lambda state: {new: tensor for old, tensor in state.items() if (new := name(old)) is not None})


def configure(directory: Path, file: str = "config.json", **fields: Any) -> None:
    path = directory / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(directory: Path | str, **options: Any) -> str:
    """The message with which a model is refused."""
    with pytest.raises(ValueError, match=r"^model='.*' cannot be loaded: ") as caught:
        load_language_model(str(directory), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- weights that are not in the checkpoint


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("_orig_mod.", "compiled model (torch.compile)"),
        ("module.", "DataParallel"),
        ("base_model.model.", "merge_and_unload()"),
        ("student.", "begin with 'student.'"),
        ("_orig_mod.module.", "begin with '_orig_mod.module.'"),
        ("model.model.", "begin with 'model."),
    ],
)
def test_a_prefix_of_all_names_is_refused_and_named(model: Path, prefix: str, said: str) -> None:
    rename(model, lambda name: prefix + name)
    message = refused(model)
    assert "lacks 39 of the model's 39 weights (model.embed_tokens.weight, " in message
    assert "random" in message
    assert said in message


@pytest.mark.parametrize(
    ("old", "new", "lacking", "said"),
    [
        ("layers.1.", "layers.1._orig_mod.", 9, "_orig_mod."),
        ("q_proj.", "q_proj.base_layer.", 4, "adapter is not merged"),
        ("layers.2.", "layers.2._checkpoint_wrapped_module.", 9, "checkpointed activations"),
    ],
)
def test_a_wrapper_inside_is_refused_and_named(model: Path, old: str, new: str, lacking: int, said: str) -> None:
    rename(model, lambda name: name.replace(old, new))
    message = refused(model)
    assert f"lacks {lacking} of the model's 39 weights" in message
    assert said in message


@pytest.mark.parametrize(
    ("absent", "lacking"),
    [(".layers.2.", 9), (DOWN, 1), ("model.norm.weight", 1), ("embed_tokens", 1)],
)
def test_absent_weights_are_refused_with_their_number_and_names(model: Path, absent: str, lacking: int) -> None:
    rename(model, lambda name: None if absent in name else name)
    message = refused(model)
    assert f"lacks {lacking} of the model's 39 weights" in message
    assert absent in message
    assert "Get the checkpoint again" in message


def test_a_config_of_more_or_fewer_layers_than_the_weights_is_refused(model: Path) -> None:
    configure(model, num_hidden_layers=6)
    assert "lacks 18 of the model's 57 weights (model.layers.4." in refused(model)
    configure(model, num_hidden_layers=2)
    assert "holds layers up to 3, and config.json says that there are 2" in refused(model)


def test_a_model_without_its_head_is_refused_unless_the_head_is_tied(tmp_path: Path) -> None:
    llama = tiny_model("llama")
    for number, without in enumerate((llama.model, LlamaForSequenceClassification(llama.config))):
        message = refused(saved(without, tmp_path / str(number)))
        assert "lacks 1 of the model's 39 weights (lm_head.weight)" in message
        assert "AutoModelForCausalLM" in message
    tied = tiny_model("gpt2")
    lm = load_language_model(str(saved(tied.transformer, tmp_path / "tied")))
    assert torch.equal(lm.model.lm_head.weight, tied.transformer.wte.weight)


def test_the_weights_of_another_family_are_refused(model: Path, tmp_path: Path) -> None:
    shutil.copy(saved(tiny_model("gpt2"), tmp_path / "gpt2") / WEIGHTS, model / WEIGHTS)
    assert "It holds others instead, such as transformer.h.0." in refused(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_checkpoint_loads_without_a_word(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = tiny_model(family)
    lm = load_language_model(str(saved(made, tmp_path / "one")))
    shards = load_language_model(str(saved(made, tmp_path / "shards", max_shard_size="30KB")))
    for loaded in (lm, shards):
        assert all(torch.equal(value, made.state_dict()[name]) for name, value in loaded.model.state_dict().items())
    assert not [record for record in caplog.records if record.name.startswith("factpatch")]


def test_weights_without_a_place_in_the_model_are_pointed_out(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}  # a buffer of earlier versions
    rewrite(model, lambda state: {**state, **old})
    load_language_model(str(model))
    assert not [record for record in caplog.records if record.name.startswith("factpatch")]
    rewrite(model, lambda state: {**state, "model.layers.1.self_attn.q_proj.bias": torch.zeros(32)})
    load_language_model(str(model))
    assert "1 weight of the checkpoint not used, such as model.layers.1.self_attn.q_proj.bias" in caplog.text


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("vocab_size", 403, "model.embed_tokens.weight is (400, 32), not (403, 32)"),
        ("intermediate_size", 80, "model.layers.0.mlp.down_proj.weight is (32, 64), not (32, 80)"),
        ("num_key_value_heads", 4, "model.layers.0.self_attn.k_proj.weight is (16, 32), not (32, 32)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_both(model: Path, field: str, value: int, said: str) -> None:
    configure(model, **{field: value})
    assert said in refused(model)


# --- files that are something else


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER.encode(), "is a pointer of git-lfs, not the file itself. Run `git lfs pull`"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"", "is empty"),
        (b"\0" * 1000, "is blank"),
        (b"some text", "is cut off or damaged"),
    ],
)
def test_a_file_that_is_not_the_weights_is_refused_by_name(model: Path, content: bytes, said: str) -> None:
    (model / WEIGHTS).write_bytes(content)
    assert f"{model / WEIGHTS} {said}" in refused(model)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.999])
def test_a_file_of_weights_that_was_cut_off_is_refused_by_name(model: Path, part: float) -> None:
    content = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(content[: int(len(content) * part)])
    assert f"{model / WEIGHTS} is cut off or damaged" in refused(model)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_pointers_are_noticed_in_every_file(model: Path, file: str) -> None:
    (model / file).write_text(POINTER)
    assert f"{model / file} is a pointer of git-lfs" in refused(model)


def test_absent_shards_are_refused_by_name(whole: Path, tmp_path: Path) -> None:
    directory = saved(tiny_model("llama"), tmp_path / "shards", max_shard_size="30KB")
    shards = sorted(directory.glob("model-*"))
    shards[1].unlink()
    assert f", of {len(shards)}, is absent: {shards[1].name}" in refused(directory)
    shards[0].write_text(POINTER)
    shutil.copy(shards[2], shards[1])
    assert f"{shards[0]} is a pointer of git-lfs" in refused(directory)
    (directory / f"{WEIGHTS}.index.json").unlink()
    assert "nothing says whether these are all" in refused(directory)


def test_an_absent_target_of_a_link_is_refused(model: Path) -> None:
    (model / WEIGHTS).unlink()
    (model / WEIGHTS).symlink_to(model / "elsewhere")
    assert f"{model / WEIGHTS} is a link to a file that is absent" in refused(model)


def test_pickled_weights_load_if_they_are_weights_and_nothing_else(model: Path) -> None:
    state = load_file(model / WEIGHTS)
    (model / WEIGHTS).unlink()
    path = model / "pytorch_model.bin"
    torch.save(state, path)
    assert torch.equal(load_language_model(str(model)).weight(1), state[DOWN])
    content = path.read_bytes()
    for broken, said in (
        (content[: len(content) // 2], "is cut off or damaged"),
        (b"", "is empty"),
        (b"hello", "is no file of weights that PyTorch wrote"),
        (pickle.dumps(datetime.datetime.now()), "holds other objects than weights"),
    ):
        path.write_bytes(broken)
        message = refused(model)
        assert str(path) in message
        assert said in message
    torch.save({**state, "when": datetime.datetime.now()}, path)
    assert f"{path}: it is damaged, or holds other objects than weights" in refused(model)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "is no JSON object"),
        ("{", "is no JSON"),
        ("[" * 5000, "is no JSON"),
        ('{"hidden_size": 3}', "names no model_type"),
        ('{"model_type": "llama9"}', "model_type='llama9' is unknown to transformers"),
        ('{"model_type": "llama", "hidden_size": "large"}', "hidden_size"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(model: Path, content: str, said: str) -> None:
    (model / "config.json").write_text(content)
    assert said in refused(model)


def test_a_directory_that_is_something_else_is_refused_with_what_to_do(whole: Path, tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> Path:
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file.replace("__", ".")).write_text(content)
        return tmp_path / name

    assert "is empty" in refused(folder("empty"))
    assert "holds no config.json" in refused(folder("other", readme__md="hello"))
    assert "model.gguf cannot be read: it is cut off" in refused(folder("gguf", model__gguf="GGUF"))
    beside = refused(folder("beside", config__json='{"model_type": "llama"}', model__gguf="GGUF"))
    assert f"its weights are in GGUF. Give the file itself: {tmp_path / 'beside' / 'model.gguf'}" in beside
    assert "DeepSpeed" in refused(folder("zero", zero_to_fp32__py=""))
    adapter = folder("adapter", adapter_config__json='{"base_model_name_or_path": "someone/base-1b"}')
    assert "holds an adapter (a LoRA, or another kind of PEFT) made for 'someone/base-1b'" in refused(adapter)
    assert "merge_and_unload()" in refused(adapter)
    shutil.copytree(whole, folder("training") / "checkpoint-500")
    assert f"there is a model in {tmp_path / 'training' / 'checkpoint-500'}" in refused(tmp_path / "training")


def test_a_model_beside_an_adapter_is_not_taken_for_the_adapters_model(model: Path) -> None:
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/base-1b", "peft_type": "LORA"}')
    assert "If the weights here are merged already, move adapter_config.json away." in refused(model)


def test_a_file_is_refused_with_what_to_give_instead(model: Path, tmp_path: Path) -> None:
    assert f"is a file; give the directory that holds it: {model}." in refused(model / WEIGHTS)
    (tmp_path / "facts.txt").write_text("hello")
    assert "is a file; give the directory of a model" in refused(tmp_path / "facts.txt")


def test_a_model_without_a_tokenizer_is_refused_unless_one_is_given(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert f"{model} holds no tokenizer (tokenizer.json)" in refused(model)
    assert load_language_model(str(model), tiny_tokenizer()).num_layers == 4


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "../model", "a/b/c", "", "x" * 5000, "a\0b"])
def test_a_path_that_does_not_exist_is_refused_as_one(name: str) -> None:
    message = refused(name)
    assert message.endswith("cannot be loaded: there is no such directory.")
    assert len(message) < 1000


@pytest.mark.parametrize("name", ["someone/model", "smollm3-135m"])
@pytest.mark.parametrize("switched_off", [True, False])
def test_a_name_is_refused_at_once_where_the_hub_is_out_of_reach(
    name: str, switched_off: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", switched_off)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing answers
    start = time.monotonic()
    message = refused(name)
    assert time.monotonic() - start < 3
    assert "no such directory, and the Hugging Face Hub, which may have a model of that name, cannot be" in message
    assert ("Did you mean 'smollm2-135m'?" in message) == (name == "smollm3-135m")
    assert "Retrying" not in capfd.readouterr().err


# --- code of a model's own


CODE = (
    "import pathlib\npathlib.Path({mark!r}).write_text('')\n"
    "from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Tokens\n"
)
AUTO_MAP = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Tokens", None]}


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("config.json", {"model_type": "own", "auto_map": AUTO_MAP}, "Python code of its own"),
        ("tokenizer_config.json", {"tokenizer_class": "Tokens", "auto_map": AUTO_MAP}, "Python code of its own"),
        ("config.json", {"attn_implementation": "someone/kernel"}, "asks for code of the Hub"),
        ("config.json", {"_attn_implementation": "someone/kernel:run"}, "asks for code of the Hub"),
        ("config.json", {"auto_map": AUTO_MAP}, None),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Tokens", None]}}, None),
    ],
)
def test_code_of_a_model_is_never_run_and_nobody_is_asked(
    model: Path, file: str, fields: dict[str, Any], said: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def asked(*given: object) -> str:
        raise AssertionError("somebody is asked")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    mark = tmp_path / "ran"
    (model / "own.py").write_text(CODE.format(mark=str(mark)))
    configure(model, file, **fields)
    if said is None:  # transformers knows such models without their code
        load_language_model(str(model))
    else:
        message = refused(model)
        assert said in message
        assert "trust_remote_code" not in message
    assert not mark.exists()


def test_every_load_in_the_project_says_that_code_is_not_to_be_run() -> None:
    root, seen = Path(loading.__file__).parents[3], 0
    for path in (
        path for folder in ("src", "tools", "benchmarks", "examples") for path in (root / folder).rglob("*.py")
    ):
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("Auto"):
                named = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                if ast.unparse(call.func).endswith(".from_pretrained"):
                    seen += 1
                    assert None in named or named.get("trust_remote_code") == "False", f"{path}:{call.lineno}"
    assert seen >= 6


# --- weights that are no numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [DOWN, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float, name: str) -> None:
    model = tiny_model("llama")
    model.get_parameter(name).data.view(-1)[3] = value
    with pytest.raises(FloatingPointError, match=f"{name} holds NaN or infinity"):
        load_language_model(model, tiny_tokenizer())


def test_a_checkpoint_too_large_for_float16_is_refused_with_what_to_do(model: Path) -> None:
    rewrite(model, lambda state: {name: tensor * 1e6 for name, tensor in state.items()})
    assert load_language_model(str(model), dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(FloatingPointError, match=r"38 other weights.*dtype bfloat16 or float32"):
        load_language_model(str(model), dtype="float16")


@pytest.mark.parametrize(("part", "factor"), [("down_proj", 3e4), ("gate_proj", 2e4), ("lm_head", 6e4), ("", 3e3)])
def test_a_model_that_leaves_the_range_of_float16_is_refused(part: str, factor: float) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if part in name:
                weight.mul_(factor)
    with pytest.raises(FloatingPointError, match="range of float16"):
        load_language_model(model.to(torch.float16), tiny_tokenizer())


# --- tokens without embeddings


def test_words_that_the_model_has_no_embedding_for_are_refused_when_it_is_loaded() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["Zorblaxia"])
    with pytest.raises(ValueError, match=r"'Zorblaxia' is a token .* no embedding for .*resize_token_embeddings"):
        load_language_model(tiny_model("llama"), tokenizer)
    resized = tiny_model("llama")
    resized.resize_token_embeddings(len(tokenizer))
    assert load_language_model(resized, tokenizer).embedded_tokens == len(tokenizer)


def test_a_special_token_without_embedding_is_refused_only_in_a_text_that_holds_it() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    lm = load_language_model(tiny_model("llama"), tokenizer)
    (ids,) = tokenizer(["Rome <PAD>"])["input_ids"]
    with pytest.raises(ValueError, match=r"'<PAD>' is a token that the model has no embedding for"):
        lm.check_length(ids, "Rome <PAD>")
    lm.check_length(tokenizer("Rome")["input_ids"], "Rome")


def test_a_beginning_of_text_without_embedding_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", tokenizer.convert_tokens_to_ids("<begin>"))]
    )
    with pytest.raises(ValueError, match="'<begin>' is a token that the model has no embedding for"):
        load_language_model(tiny_model("llama"), tokenizer)


def test_fewer_tokens_than_embeddings_are_fine() -> None:
    model = tiny_model("llama")
    model.resize_token_embeddings(512)
    assert load_language_model(model, tiny_tokenizer()).embedded_tokens == 512
