"""What stands around a prompt: nothing, or a user's turn of a chat with the beginning of the assistant's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factpatch.support.joint import joint

_PROMPT, _ANSWER = "FactpatchPrompt", "FactpatchAnswer"  # words that no template holds


@dataclass(frozen=True)
class Frame:
    """How a prompt becomes the text that a model reads, and where its answer begins."""

    before: str = ""
    """What comes before the prompt."""
    after: str = ""
    """What comes between the prompt and the space before its answer."""
    space: str = ""
    """What every answer begins with in a chat; otherwise the end of the prompt decides."""
    chat: bool = False
    """Whether this is a chat's turn. Its template writes the special tokens itself, so the tokenizer adds none."""

    def wrap(self, text: str) -> str:
        """Return the text that ends right before the answer's space. In a chat, `text` is stripped first."""
        return self.before + text.strip() + self.after if self.chat else text

    def offset(self, text: str) -> int:
        """Return how far the characters of `text` move when it is wrapped."""
        return len(self.before) - (len(text) - len(text.lstrip())) if self.chat else 0

    def joint(self, prompt: str, space: bool | None = None) -> str:
        """Return what stands between a prompt and its answer; `space` is what the fact itself says of it."""
        return self.space if self.chat else joint(prompt, space)

    def like(self, frame: Frame) -> Frame:
        """Return another frame with whatever this one adds to the text of every prompt; by itself, that is nothing."""
        return frame


PLAIN = Frame()


Turn = Mapping[str, str]
"""One message of a chat: its "role" ("system", "user" or "assistant") and its "content"."""


def chat_frame(tokenizer: Any, earlier: Sequence[Turn] = ()) -> Frame:
    """Return the turn that the tokenizer's chat template makes of a prompt, with the beginning of an answer.

    Args:
        tokenizer: The tokenizer, whose template writes its own system turn if it has one.
        earlier: The turns before the prompt's, such as another system turn.

    Raises:
        ValueError: There is no chat template, it does not leave a prompt as it is, or it leaves out an earlier turn.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            f"chat=True: the tokenizer ({type(tokenizer).__name__}) has no chat template. Leave chat out if the model "
            "is not trained for chats; otherwise set tokenizer.chat_template to the one it was trained with."
        )
    turns = [*earlier, {"role": "user", "content": _PROMPT}]
    asked = _render(tokenizer, turns, add_generation_prompt=True)
    if asked.count(_PROMPT) != 1:
        raise ValueError(
            f"chat=True: the tokenizer's chat template holds the user's text {asked.count(_PROMPT)} times as it was "
            f"given: {asked[:200]!r}. Set tokenizer.chat_template to one that holds it once and unchanged."
        )
    before, after = asked.split(_PROMPT)
    for turn in earlier:
        if turn["content"] not in before:
            raise ValueError(
                f"earlier: the tokenizer's chat template leaves out the turn {turn['content']!r} of the role "
                f"{turn['role']!r}; leave that turn out."
            )
    answered = _render(tokenizer, [*turns, {"role": "assistant", "content": _ANSWER}], add_generation_prompt=False)
    # Some templates ask with "[/INST]" and answer with "[/INST] Paris": there the answer begins with a space.
    space = answered.removeprefix(asked).partition(_ANSWER)[0]
    return Frame(before, after, "" if space.strip() else space, chat=True)


def _render(tokenizer: Any, messages: list[Turn], add_generation_prompt: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)
    except Exception as error:  # templates are programs, and raise what they like
        raise ValueError(
            f"chat=True: the tokenizer's chat template cannot be used for a user's turn: {type(error).__name__}: "
            f"{error}. Leave chat out, or set tokenizer.chat_template to another one."
        ) from error
    return str(text)
