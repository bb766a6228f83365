"""A user's turn: what stands around a prompt in a chat, and which templates are refused."""

from __future__ import annotations

from typing import Any

import pytest
from tests.models import END, TURN, tiny, tiny_model, tiny_tokenizer

from factpatch import Editor, verify
from factpatch.facts import Fact
from factpatch.model.frame import PLAIN, Frame, chat_frame
from factpatch.model.language_model import LanguageModel
from factpatch.model.loading import load_language_model
from factpatch.model.tokens import target_ids, tokenize

PROMPT = "What is the capital of France?"


def with_template(template: str, bos: bool = False) -> Any:
    made = tiny_tokenizer(bos, chat=True)
    made.chat_template = template
    return made


def test_a_plain_frame_leaves_every_text_alone() -> None:
    assert PLAIN.wrap("  The ") == "  The "
    assert PLAIN.offset("  The ") == 0
    assert PLAIN.joint("The") == " "


def test_a_turn_is_what_the_template_makes_of_it() -> None:
    frame = chat_frame(tiny_tokenizer(chat=True))
    assert frame == Frame(f"{TURN}user\n", f"{END}\n{TURN}assistant\n", space="", chat=True)
    assert frame.wrap(PROMPT) == f"{TURN}user\n{PROMPT}{END}\n{TURN}assistant\n"
    assert frame.joint(PROMPT) == frame.joint("東京は") == ""


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("writes_bos", [False, True])
def test_tokens_are_those_of_the_template_and_no_bos_is_doubled(bos: bool, writes_bos: bool) -> None:
    made = tiny_tokenizer(bos, chat=True)
    made.chat_template = ("{{ bos_token }}" if writes_bos else "") + tiny_tokenizer(chat=True).chat_template
    lm = LanguageModel(tiny_model("llama", chat=True), made, chat=True)
    (ids,) = tokenize(made, [lm.frame.wrap(PROMPT)], lm.frame)
    turn = [{"role": "user", "content": PROMPT}]
    assert ids == made.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids.count(made.bos_token_id) == int(writes_bos)
    assert ids[int(writes_bos)] == made.convert_tokens_to_ids(TURN)


def test_white_space_around_a_turn_does_not_count() -> None:
    frame = chat_frame(tiny_tokenizer(chat=True))
    assert frame.wrap(f" \n{PROMPT} ") == frame.wrap(PROMPT)
    text = f"  {PROMPT} "
    assert frame.wrap(text)[frame.offset(text) + text.index("F")] == "F"


def test_a_template_may_strip_the_turn() -> None:
    frame = chat_frame(with_template("{% for m in messages %}U: {{ m['content'] | trim }}\nA: {% endfor %}"))
    assert (frame.before, frame.after) == ("U: ", "\nA: ")


@pytest.mark.parametrize("between", ["", " ", "\n"])
def test_an_answer_begins_with_the_space_that_the_template_gives_it(between: str) -> None:
    template = "{% for m in messages %}{% if m['role'] == 'user' %}[I] {{ m['content'] }} [/I]"
    template += f"{{% else %}}{{{{ {between!r} + m['content'] }}}}{{% endif %}}{{% endfor %}}"
    frame = chat_frame(with_template(template))
    assert frame == Frame("[I] ", " [/I]", between, chat=True)
    assert frame.joint("Who?") == frame.joint("中国的首都是") == between


def test_thoughts_before_an_answer_are_not_its_space() -> None:
    template = "{% for m in messages %}{{ '<think>\n</think>' if m['role'] == 'assistant' else '' }}{{ m['content'] }}"
    assert chat_frame(with_template(template + "\n{% endfor %}")).space == ""


def test_an_answers_tokens_are_those_it_has_after_the_template() -> None:
    made = tiny_tokenizer(chat=True)
    ids = target_ids(made, " Rome, Italy ", chat_frame(made))
    assert made.decode(ids) == "Rome, Italy"
    assert target_ids(made, "Rome, Italy") != ids


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("nothing of the user's", "holds the user's text 0 times"),
        ("{{ messages[0]['content'] | upper }}", "holds the user's text 0 times"),
        ("{{ messages[0]['content'] }} {{ messages[0]['content'] }}", "holds the user's text 2 times"),
        ("{{ raise_exception('only with a system turn') }}", "only with a system turn"),
        ("{% for %}", "cannot be used for a user's turn"),
    ],
)
def test_an_unusable_template_is_refused(template: str | None, message: str) -> None:
    tokenizer = with_template(template)  # type: ignore[arg-type]
    model = tiny_model("llama", chat=True)
    for ask in (
        lambda: LanguageModel(model, tokenizer, chat=True),
        lambda: load_language_model(model, tokenizer, chat=True),
        lambda: Editor(model, tokenizer, chat=True, critical_layers=(1, 2)),
        lambda: verify(model, tokenizer, [Fact("{} is", "Rome", "here")], chat=True),
    ):
        with pytest.raises(ValueError, match=rf"(?s)chat=True.*{message}"):
            ask()
    assert LanguageModel(model, tokenizer).frame is PLAIN


def test_a_wrapped_model_that_asks_plainly_is_not_asked_in_a_chat() -> None:
    plain, chat = tiny("llama"), tiny("llama", chat=True)
    facts = [Fact("{} is", "Rome", "here")]
    with pytest.raises(ValueError, match="this LanguageModel asks plainly"):
        load_language_model(plain, chat=True)
    with pytest.raises(ValueError, match="this LanguageModel asks plainly"):
        verify(plain, None, facts, chat=True)
    assert load_language_model(chat, chat=True) is load_language_model(chat) is chat
    assert verify(chat, None, facts, chat=True) == verify(chat, None, facts)
