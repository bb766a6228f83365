"""A question to the original and the edited model at once, each answering word by word."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from factpatch.model.decoding import continuations, end_tokens
from factpatch.model.frame import Frame, Turn
from factpatch.model.language_model import LanguageModel
from factpatch.model.products import asking
from factpatch.model.tokens import tokenize

SIDES = ("original", "edited")
WAYS = ("prompt", "chat")
"""How a text is asked: as one that the model continues, or as a turn of a chat."""


@dataclass
class Talk:
    """What was said so far by whom; a chat goes on, a prompt begins anew."""

    way: str = "prompt"
    asked: list[str] = field(default_factory=list)
    said: dict[str, list[str]] = field(default_factory=lambda: {side: [] for side in SIDES})
    """By side, the answers; the last one grows while a model speaks."""

    def begin(self, text: str, way: str) -> None:
        """Note a question, to which both answers are empty yet."""
        if way != self.way or way == "prompt":
            self.way, self.asked, self.said = way, [], {side: [] for side in SIDES}
        self.asked.append(text)
        for answers in self.said.values():
            answers.append("")

    def turns(self, side: str) -> list[Turn]:
        """What one side has heard and said before the last question."""
        turns: list[Turn] = []
        for asked, said in zip(self.asked[:-1], self.said[side][:-1], strict=True):
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said or "."}]
        return turns


def answer(models: dict[str, LanguageModel], talk: Talk, tokens: int, check: Callable[[], None]) -> None:
    """Let each model answer the last question of a talk, greedily; the talk grows by their words.

    The models are one, or share no modules; see `factpatch.model.twin`.

    Args:
        models: By side.
        tokens: How many tokens an answer has at most.
        check: Called after each token; what it raises ends both answers.

    Raises:
        ValueError: The text has no tokens, more than a model reads, or there is no chat with the model.
    """
    first, second = SIDES
    if models[first].model is models[second].model:  # nothing is edited yet
        _speak(models[first], talk, SIDES, tokens, check)
        return
    failed: list[BaseException] = []

    def stopping() -> None:
        if failed:
            raise failed[0]
        check()

    def speak(side: str) -> None:
        try:
            _speak(models[side], talk, (side,), tokens, stopping)
        except BaseException as error:
            failed.append(error)

    # One side here, in the thread whose turn it is; the other beside it.
    other = threading.Thread(target=speak, args=(second,))
    other.start()
    speak(first)
    other.join()
    if failed:
        raise failed[0]


def _speak(lm: LanguageModel, talk: Talk, sides: Sequence[str], tokens: int, check: Callable[[], None]) -> None:
    """Let a model answer for one side, or for both."""
    frame = _frame(lm, talk, sides[0])
    (row,) = tokenize(lm.tokenizer, [frame.wrap(talk.asked[-1])], frame)
    if not row:
        raise ValueError("text: has no tokens for this model; write something.")
    lm.check_length(row, talk.asked[-1])

    def grown(new: Sequence[int]) -> bool:
        check()
        said = lm.tokenizer.decode(list(new), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for side in sides:
            talk.said[side][-1] = said
        return False

    with asking(lm):
        continuations(lm, [tuple(row)], [tokens], done=grown, ends=end_tokens(lm))


def _frame(lm: LanguageModel, talk: Talk, side: str) -> Frame:
    """What stands around the last question."""
    if talk.way == "prompt":
        return Frame()
    frame = lm.turn_after(talk.turns(side))
    if frame is None:
        raise ValueError(
            "chat: this model has no chat template, or none with a place for these turns; continue a text."
        )
    return frame
