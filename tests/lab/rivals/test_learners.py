"""Rivals at work: what they teach can be asked, kept, taken back and brought back bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.editors import FACTS
from tests.models import tiny

pytest.importorskip("peft", reason="needs the extra `lora`")
pytest.importorskip("sklearn", reason="needs the extra `runs`")

from factpatch import Patch
from factpatch.evaluation.probabilities import Request, score
from factpatch.evaluation.questions import answers, forms
from factpatch.evaluation.verify import read_facts
from factpatch.facts import Fact
from factpatch.lab.rivals import descent
from factpatch.lab.rivals.adapter import Adapted
from factpatch.lab.rivals.fine_tuning import FineTuned
from factpatch.lab.rivals.in_prompt import Nearest, sentence
from factpatch.lab.rivals.learner import Learner
from factpatch.lab.rivals.rival import RIVALS, FineTuning, InPrompt, Lora
from factpatch.lab.rivals.start import start
from factpatch.model.language_model import LanguageModel
from factpatch.model.weights import model_hash

QUICK: dict[str, dict[str, Any]] = {
    "locft-bf": {"epochs": 6, "learning_rate": 0.02},
    "lora": {"epochs": 6, "learning_rate": 0.02},
    "in-prompt": {},
}
LAYERS = (1, 2, 3)


def begun(name: str, lm: LanguageModel) -> Learner:
    return start(RIVALS[name].with_settings(QUICK[name]), lm, LAYERS, 0)


def targets(lm: LanguageModel, facts: Any = FACTS) -> list[float]:
    return [one.nll for one in score(lm, [Request(fact.text, fact.target_new) for fact in facts])]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", list(RIVALS))
def test_two_batches_are_learned_and_come_back_from_their_files(name: str, family: str, tmp_path: Path) -> None:
    lm = tiny(family)
    untouched, before = model_hash(lm.model), targets(lm)
    learner, files = begun(name, lm), []
    for number, batch in enumerate((FACTS[:2], FACTS[2:])):
        learner.learn(batch)
        files.append(tmp_path / f"{number}{learner.suffix}")
        learner.save(files[-1])
    after, held = targets(learner.lm), model_hash(lm.model)
    assert after != before
    assert learner.num_bytes > 0
    learner.reset()
    assert targets(learner.lm) == before
    assert model_hash(lm.model) == untouched

    again = begun(name, lm)
    again.restore(files)
    assert targets(again.lm) == after
    assert model_hash(lm.model) == held
    again.reset()
    assert model_hash(lm.model) == untouched
    assert all(parameter.requires_grad for parameter in lm.model.parameters())


@pytest.mark.parametrize("name", ["locft-bf", "lora"])
@pytest.mark.parametrize("earlier", [0, 1])
def test_a_batch_that_fails_leaves_nothing(name: str, earlier: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama")
    learner = begun(name, lm)
    for fact in FACTS[:earlier]:
        learner.learn([fact])
    before, held = targets(learner.lm), model_hash(lm.model)
    gradients, calls = descent._gradients, []

    def broken(*given: Any) -> Any:
        calls.append(given)
        found, loss = gradients(*given)
        return found, float("nan") if len(calls) == 3 else loss

    monkeypatch.setattr(descent, "_gradients", broken)
    with pytest.raises(FloatingPointError, match="the loss of epoch 3, or its gradient, is not finite"):
        learner.learn(FACTS[2:])
    assert targets(learner.lm) == before
    assert model_hash(lm.model) == held


def test_fine_tuning_leaves_a_patch_that_gives_an_unedited_model_the_same_bits(tmp_path: Path) -> None:
    lm = tiny("llama")
    tuned = begun("locft-bf", lm)
    assert isinstance(tuned, FineTuned)
    for batch in (FACTS[:2], FACTS[2:]):
        tuned.learn(batch)
    tuned.patch.save(tmp_path / "patch.safetensors")
    other = tiny("llama")
    patch = Patch.load(tmp_path / "patch.safetensors")
    patch.apply(other.model)
    assert model_hash(other.model) == model_hash(lm.model)
    assert patch.layers == (3,)  # the last critical layer
    assert patch.settings["method"] == "locft-bf"
    assert [fact.text for fact in patch.facts] == [fact.text for fact in FACTS]
    one = tiny("llama")
    begun("locft-bf", one).learn(FACTS[:2])
    tuned.undo()
    assert model_hash(one.model) == model_hash(lm.model)


def test_the_rank_of_fine_tuning_cuts_its_shift() -> None:
    lm, whole = tiny("llama", dtype=torch.float64), tiny("llama", dtype=torch.float64)
    tuned = FineTuned(FineTuning(epochs=3, rank=2, layer=1), lm, LAYERS, 0)
    full = FineTuned(FineTuning(epochs=3, layer=1), whole, LAYERS, 0)
    tuned.learn(FACTS)
    full.learn(FACTS)
    found, best = tuned.patch.batches[0].shifts[1].matrix(), full.patch.batches[0].shifts[1].matrix()
    assert torch.linalg.matrix_rank(best) > 2
    assert torch.linalg.matrix_rank(found) == 2
    # Eckart and Young: the error of the nearest matrix of rank 2 is the third singular value.
    error = torch.linalg.matrix_norm(best - found, ord=2)
    torch.testing.assert_close(error, torch.linalg.svdvals(best)[2])


def test_fine_tuning_refuses_a_layer_that_the_model_lacks() -> None:
    with pytest.raises(ValueError, match=r"layer=\[9\]: layer 9 does not exist"):
        FineTuned(FineTuning(layer=9), tiny("llama"), LAYERS, 0)


def test_an_adapter_may_stand_beside_the_down_projections_and_is_in_every_layer() -> None:
    lm = tiny("llama")
    weights = {layer: lm.weight_hash(layer) for layer in range(lm.num_layers)}
    adapted = Adapted(Lora(epochs=2, targets=("down_proj",), rank=3), lm, LAYERS, 0)
    adapted.learn(FACTS)
    assert {layer: lm.weight_hash(layer) for layer in range(lm.num_layers)} == weights
    assert adapted.num_bytes == 4 * lm.num_layers * 3 * (lm.d_value + lm.d_key)
    assert adapted.settings["targets"] == ["down_proj"]
    adapted.reset()


def test_an_adapter_refuses_modules_that_the_model_lacks() -> None:
    lm = tiny("llama")
    untouched = model_hash(lm.model)
    with pytest.raises(ValueError, match="nowhere"):
        Adapted(Lora(targets=("nowhere",)), lm, LAYERS, 0)
    assert model_hash(lm.model) == untouched


def test_the_nearest_facts_share_the_subject_and_stand_before_the_prompt() -> None:
    told = begun("in-prompt", tiny("gpt2"))
    told.learn(FACTS)
    for fact in FACTS:
        assert told.lm.frame.wrap(fact.text) == f"New fact: {sentence(fact)}.\n{fact.text}"
    asked = "Which sport does Messi play?"
    assert told.lm.frame.wrap(asked) == f"New fact: Messi plays the sport of basketball.\n{asked}"
    assert told.lm.frame.wrap("zzz") == "zzz"  # no word is known
    assert told.lm.frame.wrap("The capital of France is") == "The capital of France is"


def test_facts_about_other_subjects_may_stand_before_the_prompt_too() -> None:
    told = start(InPrompt(subject=False), tiny("gpt2"), LAYERS, 0)
    told.learn(FACTS)
    asked = "The capital of France is"
    assert told.lm.frame.wrap(asked) == f"New fact: {sentence(FACTS[2])}.\n{asked}"


def test_nearness_is_the_cosine_of_tf_idf() -> None:
    facts = [Fact("{} a b", "x", "c"), Fact("{} a", "y", "d"), Fact("{} e", "z", "f")]
    words = [sentence(fact).split() for fact in facts]
    asked = ["y", "a", "b"]

    def weight(word: str, text: list[str]) -> float:
        # The smoothed formula of scikit-learn: tf · (ln((1 + n) / (1 + df)) + 1).
        df = sum(word in some for some in words)
        return float(text.count(word) * (torch.log(torch.tensor((1 + len(words)) / (1 + df)).double()) + 1))

    known = sorted({word for text in words for word in text})
    vectors = torch.tensor([[weight(word, text) for word in known] for text in [*words, asked]], dtype=torch.float64)
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    cosines = vectors[:3] @ vectors[3]

    def nearest(**settings: Any) -> list[str]:
        return Nearest(facts, InPrompt(**settings))(" ".join(asked))

    assert nearest(count=3, subject=False) == [sentence(facts[0]), sentence(facts[1])]  # the nearest last
    assert cosines[1] > cosines[0] > cosines[2] == 0
    between = float(cosines[0] + cosines[1]) / 2
    assert nearest(count=3, subject=False, least=between) == [sentence(facts[1])]
    assert nearest(subject=False) == [sentence(facts[1])]
    assert nearest(count=3) == [sentence(facts[1])]  # whose subject is asked about


def test_a_subject_stands_in_a_prompt_as_whole_words_in_any_case() -> None:
    facts = [Fact("The capital of {} is", name, "Rome") for name in ("Niger", "Oman")]
    nearest = Nearest(facts, InPrompt(count=2))
    assert nearest("The capital of Nigeria is") == nearest("The capital of Romania is") == []
    assert nearest("The capital of OMAN is") == [sentence(facts[1])]


@pytest.mark.parametrize("chat", [False, True])
def test_characters_move_by_what_stands_before_them(chat: bool) -> None:
    lm = tiny("llama", chat=chat)
    told = start(InPrompt(count=2, subject=False), lm, LAYERS, 0)
    told.learn(FACTS)
    text = "  Messi plays"
    wrapped, moved = told.lm.frame.wrap(text), told.lm.frame.offset(text)
    assert wrapped[moved + 2 : moved + len(text)] == "Messi plays"
    assert wrapped.index("New fact: ") == len(lm.frame.before)
    if chat:
        assert wrapped == lm.frame.wrap(f"{told.lm.frame._facts(text)}Messi plays")  # type: ignore[attr-defined]


def test_a_later_fact_replaces_the_earlier_one() -> None:
    told = begun("in-prompt", tiny("llama"))
    told.learn(FACTS)
    told.learn([Fact(FACTS[1].prompt, FACTS[1].subject, "football")])
    assert told.lm.frame.wrap(FACTS[1].text).startswith("New fact: Messi plays the sport of football.\n")


def test_a_question_in_a_chat_is_told_the_facts_too() -> None:
    lm = tiny("llama", chat=True)
    plain = LanguageModel(lm.model, lm.tokenizer)
    told = begun("in-prompt", plain)
    told.learn(FACTS[:1])
    found = forms(told.lm)
    assert {"prompt", "question", "chat"} <= set(found)
    for frame in found.values():
        assert frame.wrap(FACTS[0].text).count(f"New fact: {sentence(FACTS[0])}.\n{FACTS[0].text}") == 1
    assert found["chat"].chat
    assert {one.form for one in answers(told.lm, FACTS[:1], only=("prompt",))[0]} == {"prompt"}


def test_asking_with_facts_in_the_prompt_is_asking_the_longer_prompt() -> None:
    lm = tiny("llama")
    told = begun("in-prompt", lm)
    told.learn(FACTS)
    (reading,) = read_facts(told.lm, FACTS[:1], answers=False)
    longer = score(lm, [Request(f"New fact: {sentence(FACTS[0])}.\n{FACTS[0].text}", FACTS[0].target_new)])
    assert reading.rewrite is not None
    assert reading.rewrite.new == longer[0]
