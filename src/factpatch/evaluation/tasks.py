"""The table of capability tasks: what is asked, which answers there are, and where an item says the right one.

The tasks are those of the paper's Figure 6, five of GLUE's kind and MMLU; items are the records in which these are
published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from factpatch.data.records import convert_records
from factpatch.support.words import named

Item = Mapping[str, Any]
"""A record of a task's file."""


@dataclass(frozen=True)
class Task:
    """One task: every item is a question with the same few answers."""

    name: str
    template: str
    """The question, up to where its answer begins. `{field}` and `{field[0]}` stand for texts of the item."""
    answers: Mapping[Any, str]
    """The answer for each value of the item's label."""
    source: str
    """Where the task comes from."""
    label: str = "label"
    """The field that holds the label."""
    exact_case: bool = False
    """Whether an answer in another case is not that answer, as for single letters."""

    @property
    def file(self) -> str:
        """The name of the file with its items."""
        return f"glue_{self.name}.json"

    def question(self, item: Item) -> str:
        """Return the template filled with an item's texts.

        Raises:
            ValueError: A text is missing or is no text.
        """
        for _, field, _, _ in Formatter().parse(self.template):
            if not field:
                continue
            try:
                value, _ = Formatter().get_field(field, (), item)
            except (LookupError, TypeError, AttributeError):
                raise ValueError(f"field {field!r} is missing; its fields are {list(item)}.") from None
            if not isinstance(value, str):
                raise ValueError(f"field {field!r} is {value!r}; it must be a string.")
        return self.template.format(**item)

    def answer(self, item: Item) -> str:
        """Return the right answer.

        Raises:
            ValueError: The label is missing, or is none of the task's.
        """
        known = ", ".join(map(repr, self.answers))
        if self.label not in item:
            raise ValueError(f"field {self.label!r} is missing; it must be one of {known}.")
        label = item[self.label]
        # True equals 1, and a list cannot be looked up.
        if isinstance(label, (int, str)) and not isinstance(label, bool) and label in self.answers:
            return self.answers[label]
        raise ValueError(f"field {self.label!r} is {label!r}; it must be one of {known}.")

    def said(self, text: str) -> str | None:
        """Return the answer that stands first in a text, as a whole word; None if there is none."""
        words = "|".join(map(re.escape, self.answers.values()))
        found = re.search(rf"(?<!\w)(?:{words})(?!\w)", text, 0 if self.exact_case else re.IGNORECASE)
        if found is None:
            return None
        return next(answer for answer in self.answers.values() if answer.casefold() == found[0].casefold())

    def load(self, path: str | Path) -> list[Item]:
        """Read the items of a file, a JSON list of records, and check each.

        Raises:
            DataFileError: The file cannot be read or is not such a list, or a record is no item of this task.
        """

        def checked(item: Item, index: int) -> Item:
            try:
                self.question(item)
                self.answer(item)
            except ValueError as error:
                raise ValueError(f"is no item of {self.name}: {error}") from error
            return item

        return convert_records(Path(path), checked)


_YES_NO = {1: "Yes", 0: "No"}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "sst2",
            "Review: {sentence}\nSentiment:",
            {1: "positive", 0: "negative"},
            "Stanford Sentiment Treebank, doi:10.18653/v1/D13-1170",
        ),
        Task(
            "mrpc",
            "Do these two sentences say the same?\nFirst: {sentence1}\nSecond: {sentence2}\nAnswer:",
            _YES_NO,
            "Microsoft Research Paraphrase Corpus, aclanthology.org/I05-5002",
        ),
        Task(
            "mmlu",
            "Question: {question}\nA. {choices[0]}\nB. {choices[1]}\nC. {choices[2]}\nD. {choices[3]}\nAnswer:",
            {0: "A", 1: "B", 2: "C", 3: "D"},
            "MMLU, arXiv:2009.03300",
            label="answer",
            exact_case=True,
        ),
        Task(
            "rte",
            "{sentence1}\nStatement: {sentence2}\nTrue or False? Answer:",
            # GLUE counts entailment as 0. The published evaluation of edited models reads it as False.
            {0: "True", 1: "False"},
            "Recognizing Textual Entailment, in GLUE, arXiv:1804.07461",
        ),
        Task(
            "cola",
            "Is this sentence acceptable English?\nSentence: {sentence}\nAnswer:",
            _YES_NO,
            "Corpus of Linguistic Acceptability, arXiv:1805.12471",
        ),
        Task(
            "nli",
            "{sentence1}\nIt follows that: {sentence2}\nTrue or False? Answer:",
            {"entailment": "True", "not_entailment": "False"},
            # The paper cites MultiNLI, which has three labels; the published file has these two.
            "Natural language inference, arXiv:1704.05426",
        ),
    )
}


def task_named(name: str) -> Task:
    """Look a task up; a ValueError suggests the nearest name."""
    return named(TASKS, name, "task")
