"""Facts in the prompt: the model stays as it is, and the nearest facts stand before whatever it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from factpatch.data import save_facts, saved_facts
from factpatch.facts import Fact, check_batch, latest
from factpatch.lab.rivals.learner import Learner
from factpatch.lab.rivals.rival import InPrompt
from factpatch.model.frame import Frame
from factpatch.model.language_model import LanguageModel
from factpatch.support.slots import prompt_around


class Nearest:
    """Finds the facts that are nearest to a text, by their subjects and the cosine of TF-IDF vectors of words.

    Args:
        facts: What there is to find.
        rival: Says how many to return at most, and how near they must be.
    """

    def __init__(self, facts: Sequence[Fact], rival: InPrompt) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.rival = rival
        self.sentences = [sentence(fact) for fact in facts]
        self._subjects = [fact.subject for fact in facts]
        # Single letters and digits are words too: "Apple A5".
        self._vectorizer = TfidfVectorizer(token_pattern=r"(?u)\w+")
        self._vectors = self._vectorizer.fit_transform(self.sentences)

    def __call__(self, text: str) -> list[str]:
        """Return the sentences of the nearest facts, the nearest last, where it is read last; the earlier of equals."""
        (similar,) = (self._vectorizer.transform([text]) @ self._vectors.T).toarray()
        near = (similar > 0) & (similar >= self.rival.least)
        if self.rival.subject:
            near &= np.array([prompt_around(text, subject, words_only=True) is not None for subject in self._subjects])
        order = [place for place in np.argsort(-similar, kind="stable") if near[place]]
        return [self.sentences[place] for place in order[: self.rival.count]][::-1]


def sentence(fact: Fact) -> str:
    """Return a fact as text: its prompt and its new object."""
    frame = Frame()
    return f"{fact.text}{frame.joint(fact.text, fact.space)}{fact.target_new}"


@dataclass(frozen=True)
class Informed(Frame):
    """A frame that puts facts before the prompt; in a chat they stand in the user's turn."""

    nearest: Nearest | None = None
    """None while there are no facts."""

    @classmethod
    def around(cls, frame: Frame, nearest: Nearest | None) -> Informed:
        return cls(**{one.name: getattr(frame, one.name) for one in fields(Frame)}, nearest=nearest)

    def wrap(self, text: str) -> str:
        return super().wrap(self._facts(text) + (text.strip() if self.chat else text))

    def offset(self, text: str) -> int:
        return super().offset(text) + len(self._facts(text))

    def like(self, frame: Frame) -> Informed:
        return Informed.around(frame, self.nearest)

    def _facts(self, text: str) -> str:
        return "" if self.nearest is None else "".join(f"New fact: {one}.\n" for one in self.nearest(text))


class Prompted(Learner):
    """A model that reads the nearest facts before each prompt. It knows them at once, and is never changed.

    Args:
        rival: The settings.
        lm: The model; `lm` of this object is a view of it with another frame.
        layers: Not needed: nothing is trained.
        seed: Not needed: nothing is drawn.
    """

    suffix = ".json"

    def __init__(self, rival: InPrompt, lm: LanguageModel, layers: Sequence[int], seed: int) -> None:
        self.rival, self._unedited = rival, lm
        self.reset()

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.rival.settings, "chat": self.lm.frame.chat}

    @property
    def num_bytes(self) -> int:
        return sum(len(sentence(fact).encode()) for fact in self.facts)

    def learn(self, facts: Sequence[Fact]) -> None:
        check_batch(facts)
        self._know(latest([self.facts, facts])[0])

    def save(self, path: Path) -> None:
        save_facts(self.facts, path)

    def restore(self, paths: Sequence[Path]) -> None:
        if paths:
            self._know(saved_facts(paths[-1]))

    def reset(self) -> None:
        self.facts: list[Fact] = []
        self.lm = self._unedited

    def _know(self, facts: Sequence[Fact]) -> None:
        nearest = Nearest(facts, self.rival)
        self.lm = copy(self._unedited)
        self.lm.frame = Informed.around(self._unedited.frame, nearest)
        self.facts = list(facts)
