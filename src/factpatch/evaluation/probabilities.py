"""How probable a model finds a target after a prompt: exact, batched, and nothing computed twice."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch

from factpatch.evaluation.readings import Score
from factpatch.model.batching import log_probability_chunks
from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import in_pieces
from factpatch.model.packed import packed_attention
from factpatch.model.products import asking
from factpatch.model.tokens import target_ids
from factpatch.model.tree import Tree, run_tree, tree_batches

Progress = Callable[[int], None]
"""Called with the number of requests that have been finished since the last call."""


class Request(NamedTuple):
    """A target whose probability after a prompt is wanted."""

    prompt: str
    target: str
    space: bool | None = None
    """Whether a space stands between them; None: as the end of the prompt suggests, see `factpatch.support.joint`."""


def score(
    lm: LanguageModel, requests: Sequence[Request | tuple[str, str]], progress: Progress | None = None
) -> list[Score]:
    """Score targets after prompts; one score for each request, in the same order.

    Prompt and target are tokenized together, as `prompt + " " + target`, with the tokenizer's default special tokens.
    In a chat, they are the user's turn and the beginning of the answer. The target's tokens are those that stand for a
    character after the prompt; a token that crosses the boundary is one of them. A target that follows without a space
    is tokenized by itself: the model that continues a prompt sees the tokens of the prompt alone. Targets and the ends
    of prompts are stripped.

    The last token of a text is predicted and never read. What the texts of a batch begin with in common runs once: the
    prompt for its two objects, and the words that a fact's neighbors share.

    Raises:
        ValueError: A target has no tokens, or nothing precedes its first token.
        OutOfMemoryError: Memory does not suffice for a single text.
    """
    texts = _tokenize(lm, requests)
    members = defaultdict(list)
    for index, text in enumerate(texts):
        members[text.read].append(index)

    def score_batch(batch: Sequence[tuple[int, ...]]) -> dict[int, Score]:
        return _score_batch(lm, batch, {index: texts[index] for row in batch for index in members[row]})

    scores: dict[int, Score] = {}
    with torch.inference_mode(), lm.quiet(), packed_attention(lm), asking(lm):
        for batch in tree_batches(members):
            for _, found in in_pieces(score_batch, batch):
                scores.update(found)
                if progress is not None:
                    progress(len(found))
    return [scores[index] for index in range(len(texts))]


def check_requests(lm: LanguageModel, requests: Sequence[Request | tuple[str, str]]) -> None:
    """Raise ValueError if a request cannot be scored."""
    _tokenize(lm, requests)


def target_positions(lm: LanguageModel, requests: Sequence[Request]) -> list[tuple[list[int], int]]:
    """Return the tokens of each prompt with its target, as they are scored, and the index of the target's first token.

    Raises:
        ValueError: A request cannot be scored.
    """
    return [(text.ids, text.start) for text in _tokenize(lm, requests)]


@dataclass(frozen=True)
class _Text:
    """A prompt with its target."""

    ids: list[int]
    start: int
    """Index of the target's first token."""

    @property
    def read(self) -> tuple[int, ...]:
        """The tokens that the model reads: the last one is predicted only."""
        return tuple(self.ids[:-1])


def _tokenize(lm: LanguageModel, requests: Sequence[Request | tuple[str, str]]) -> list[_Text]:
    if not requests:
        return []
    whole = [_whole(lm, Request(*request)) for request in requests]
    unique = list(dict.fromkeys(text for text, *_ in whole))
    encoded = lm.tokenizer(unique, add_special_tokens=not lm.frame.chat, return_offsets_mapping=True)
    place = {text: index for index, text in enumerate(unique)}
    texts = []
    for (prompt, target, *_), (text, answer, apart) in zip(requests, whole, strict=True):
        ids, offsets = encoded["input_ids"][place[text]], encoded["offset_mapping"][place[text]]
        # Token ends ascend, special tokens in front end at 0: the first token that ends after the prompt.
        start = bisect_right([end for _, end in offsets], answer)
        ids = ids + apart
        lm.check_length(ids[:-1], prompt)
        if not target.strip() or start == len(ids):
            raise ValueError(f"target={target!r} has no tokens after {prompt!r}; give another target.")
        if start == 0:
            raise ValueError(
                f"prompt={prompt!r}: nothing precedes the first token of {target!r}, so it has no probability; give a "
                "prompt of at least one token."
            )
        texts.append(_Text(ids, start))
    return texts


def _whole(lm: LanguageModel, request: Request) -> tuple[str, int, list[int]]:
    """The text to tokenize, where the answer begins in it, and the answer's tokens if they are no part of it."""
    prompt, target = request.prompt.rstrip(), request.target.strip()
    before, joint = lm.frame.wrap(prompt), lm.frame.joint(prompt, request.space)
    if joint or lm.frame.chat or not target:
        return before + joint + target, len(before), []
    return before, len(before), target_ids(lm.tokenizer, target, lm.frame, joint)


def _score_batch(lm: LanguageModel, rows: Sequence[tuple[int, ...]], texts: Mapping[int, _Text]) -> dict[int, Score]:
    """Score some requests, whose tokens are among these rows."""
    tree = Tree(rows)
    places: list[int] = []
    labels: list[int] = []
    for text in texts.values():
        places += tree.places[text.read][text.start - 1 :]
        labels += text.ids[text.start :]
    read = sorted(set(places))
    number = {place: index for index, place in enumerate(read)}
    position = torch.tensor([number[place] for place in places])
    label = torch.tensor(labels)

    hidden = run_tree(lm, tree)
    hidden = hidden[torch.tensor(read, device=hidden.device)]
    log_probability = torch.empty(len(labels), dtype=torch.float64)
    matched = torch.empty(len(labels), dtype=torch.bool)
    for chunk, table in log_probability_chunks(lm, hidden):
        here = torch.nonzero((position >= chunk.start) & (position < chunk.stop)).flatten()
        at, wanted = (position[here] - chunk.start).to(table.device), label[here].to(table.device)
        log_probability[here] = table[at, wanted].to("cpu", torch.float64)
        matched[here] = (table.argmax(-1)[at] == wanted).cpu()

    scores = {}
    tokens = zip(log_probability.tolist(), matched.tolist(), strict=True)
    for index, text in texts.items():
        of_target = list(islice(tokens, len(text.ids) - text.start))
        total = math.fsum(log for log, _ in of_target)
        scores[index] = Score(-total / len(of_target), math.exp(total), tuple(hit for _, hit in of_target))
    return scores
