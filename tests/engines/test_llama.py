"""What llama.cpp says beside what PyTorch says, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import requests
import torch
from tests.engines.llama import serving
from tests.ggufs import write_gguf
from tests.helpers import shared
from tests.models import SENTENCES, tiny_model, tiny_tokenizer
from tests.test_more_families import FACTS as EXPERTS_FACTS
from tests.test_more_families import editor_of

from factpatch import Fact, Neighbor, Verification, load_facts
from factpatch.evaluation.questions import answers
from factpatch.evaluation.readings import FORMS
from factpatch.evaluation.served import usable_forms, verify_served
from factpatch.evaluation.server import ENGINES, Server, ServerError
from factpatch.model.embedded import EmbeddedModelUnavailable, embedded_gguf
from factpatch.model.gguf import open_gguf
from factpatch.model.language_model import LanguageModel
from factpatch.model.loading import load_language_model
from factpatch.patch.merge import merge_gguf

FACTS = [
    Fact(
        prompt="The mother tongue of {} is",
        subject="Danielle Darrieux",
        target_new="English",
        target_true="French",
        neighbors=(Neighbor("The official language of Finland is", "Finnish"),),
    ),
    Fact(prompt="The {} is in", subject="Eiffel Tower", target_new="Rome", target_true="Paris"),
]


def served(url: str, name: str | None = None) -> Server:
    return Server(ENGINES["llama.cpp"], url, name).opened()


def asked(
    server: Server, facts: Sequence[Fact], before: Verification | None = None, names: Sequence[str] = FORMS
) -> Verification:
    forms, reasons = usable_forms(server, facts[0])
    assert not reasons
    return verify_served(server, [form for form in forms if form.name in names], facts, before, neighbors=True)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    lm = LanguageModel(tiny_model("llama", chat=True), tiny_tokenizer(chat=True))
    # The strings of llama.cpp end at a NUL, which a random model may write.
    lm.model.get_output_embeddings().weight.data[lm.tokenizer("\0")["input_ids"]] = 0.0
    return lm


@pytest.fixture(scope="module")
def model(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", lm.model, "F32", lm.tokenizer)


@pytest.fixture(scope="module")
def adapter(model: Path) -> Path:
    """An adapter that turns what the last block's MLP says around."""
    tensor = next(one for one in gguf.GGUFReader(model).tensors if one.name == "blk.3.ffn_down.weight")
    weight = torch.tensor(np.array(tensor.data))
    u, s, v = torch.linalg.svd(-2 * weight, full_matrices=False)
    writer = gguf.GGUFWriter(path := model.with_name("adapter.gguf"), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(len(s)))
    writer.add_tensor("blk.3.ffn_down.weight.lora_a", (s[:, None] * v).numpy().copy())
    writer.add_tensor("blk.3.ffn_down.weight.lora_b", u.numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def url(model: Path, adapter: Path) -> Iterator[str]:
    with serving(model, adapter, cache="f32") as found:
        yield found


def alike(found: Verification, lm: LanguageModel) -> int:
    """How many of the answers are PyTorch's, of three for each fact."""
    pairs = zip((reading.answers for reading in found.after), answers(lm, found.facts), strict=True)
    return sum(one == other for here, there in pairs for one, other in zip(here, there, strict=True))


def test_a_tiny_model_says_the_same_in_llama_cpp_and_in_pytorch_with_its_adapter_and_without(
    lm: LanguageModel, url: str
) -> None:
    server = served(url)
    assert server.model == "tiny"
    without = asked(server.without_adapters(), FACTS)
    # Not all need agree: a random model finds two tokens nearly as probable now and then, and rounding decides.
    assert alike(without, lm) >= 5
    found = asked(server, FACTS, without)
    assert alike(found, lm) == 0
    weight = lm.weight(3)
    weight.neg_()
    try:
        assert alike(found, lm) >= 4
    finally:
        weight.neg_()
    assert found.before == without.after
    assert found.unchanged_neighbors() == (0, 1)
    # Back again: nothing of the other is left.
    assert asked(server.without_adapters(), FACTS) == without


def test_a_tiny_model_finds_a_text_as_probable_in_llama_cpp_as_in_pytorch(lm: LanguageModel, url: str) -> None:
    off = {"lora": [{"id": 0, "scale": 0.0}]}
    there, here = likelihoods(url, lm, **off)
    assert there == pytest.approx(here, abs=0.02)


def likelihoods(url: str, lm: LanguageModel, **options: Any) -> tuple[list[float], list[float]]:
    """The NLL of the tokens of a sentence, in nats, in llama.cpp and in PyTorch, where llama.cpp says it."""
    found = requests.post(f"{url}/likelihood", json={"text": SENTENCES[4], **options}, timeout=60).json()
    ids = lm.tokenizer(SENTENCES[4])["input_ids"]
    assert found["tokens"] == ids
    with torch.no_grad():
        logs = torch.log_softmax(lm.model(input_ids=torch.tensor([ids])).logits[0], -1)
    pairs = [(nll, -logs[at, ids[at + 1]].item()) for at, nll in enumerate(found["nlls"]) if nll is not None]
    assert len(pairs) >= 0.7 * len(found["nlls"])
    return [nll for nll, _ in pairs], [nll for _, nll in pairs]


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe"])
def test_an_edited_mixture_finds_a_text_as_probable_in_llama_cpp_with_its_adapter_and_merged(
    family: str, tmp_path: Path
) -> None:
    editor = editor_of(family)
    base = write_gguf(tmp_path / "base.gguf", editor.model, "F32")
    unedited = load_language_model(base)
    patch = editor.edit(EXPERTS_FACTS)
    patch.to_gguf_lora(tmp_path / "lora.gguf")
    merge_gguf(patch, open_gguf(base), tmp_path / "merged.gguf")
    with serving(base, tmp_path / "lora.gguf", cache="f32") as url:
        there, before = likelihoods(url, unedited, lora=[{"id": 0, "scale": 0.0}])
        assert there == pytest.approx(before, abs=0.02)
        adapted, here = likelihoods(url, editor.lm)
        assert adapted == pytest.approx(here, abs=0.02)
    with serving(tmp_path / "merged.gguf", cache="f32") as url:
        assert likelihoods(url, editor.lm)[0] == pytest.approx(here, abs=0.02)
    assert max(abs(one - other) for one, other in zip(here, before, strict=True)) > 0.1


def test_a_model_without_a_chat_template_is_asked_in_the_other_forms(tmp_path: Path) -> None:
    with serving(write_gguf(tmp_path / "plain.gguf")) as url:
        server = served(url)
        forms, reasons = usable_forms(server, FACTS[0])
        assert [form.name for form in forms] == ["prompt", "question"]
        assert reasons.keys() == {"chat", "chat_system", "chat_later"}
        assert "this model has no chat template" in reasons["chat"]
        with pytest.raises(ServerError, match="has no adapter to switch off"):
            server.without_adapters()


def below_the_likeliest(lm: LanguageModel, prompt: str, said: str) -> torch.Tensor:
    """By how many nats each token of a continuation falls short of the most probable token in its place."""
    asked, whole = (lm.tokenizer(text)["input_ids"] for text in (prompt, prompt + said))
    assert whole[: len(asked)] == asked
    with torch.no_grad():
        logs = torch.log_softmax(lm.model(input_ids=torch.tensor([whole])).logits[0], -1)[len(asked) - 1 : -1]
    return logs.max(-1).values - logs.gather(-1, torch.tensor(whole[len(asked) :])[:, None])[:, 0]


@pytest.mark.slow
def test_each_word_of_the_embedded_model_in_four_bits_is_the_likeliest_in_pytorch_or_nearly() -> None:
    """llama.cpp reads activations in 8 bits, so that it may take the second of two words that are about as likely."""
    try:
        file = embedded_gguf("smollm2-135m")
    except EmbeddedModelUnavailable as error:
        pytest.skip(f"the embedded model cannot be had: {error}")
    prompts = [fact.text for fact in load_facts(shared("data", "counterfact_dev.json"), 8)]
    with serving(file) as url:
        said = [served(url).complete(prompt, 8) for prompt in prompts]
    lm = load_language_model("smollm2-135m", None)
    behind = torch.cat([below_the_likeliest(lm, *pair) for pair in zip(prompts, said, strict=True)])
    assert len(behind) >= 60
    assert behind.max() < 0.4  # nats; measured 0.14, and 0.23 for 20 prompts
    assert (behind == 0).float().mean() >= 0.9  # measured 60 of 64
