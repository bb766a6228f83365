"""Where the subject and the target are in a tokenized text.

Special tokens are those the tokenizer adds by default, for keys, targets, statistics and evaluation alike; in a chat,
those that its template writes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from factpatch.model.frame import PLAIN, Frame
from factpatch.support.words import counted

Tokenizer = Any  # a transformers tokenizer
_SPACES = ("▁", "Ġ")  # how SentencePiece and byte-level vocabularies write a leading space


def no_embedding(token: str, embedded: int) -> str:
    """The message about a token that a model, which has embeddings for `embedded` tokens, cannot read."""
    return (
        f"{token[:60]!r} is a token that the model has no embedding for (it has {embedded}). Call "
        "model.resize_token_embeddings(len(tokenizer)) and train and save that model, or use the model's own tokenizer."
    )


def check_tokenizer(tokenizer: Tokenizer, embedded: int | None = None) -> None:
    """Raise ValueError for a tokenizer that does not suit.

    It has no character offsets, it appends a token to every text, or it has words that the model, with embeddings for
    `embedded` tokens, cannot read. Special tokens are no words: many models have one for padding that is never read.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"tokenizer={type(tokenizer).__name__}: the subject's last token is found from character offsets, which "
            "only fast tokenizers give. Load it with AutoTokenizer.from_pretrained(..., use_fast=True) or convert it "
            "to a tokenizer.json."
        )
    ids = tokenizer("a")["input_ids"]
    if len(ids) > 1 and ids[-1] in tokenizer.all_special_ids:
        raise ValueError(
            f"tokenizer={type(tokenizer).__name__} appends {tokenizer.decode(ids[-1:])!r} to every text; a "
            "continuation could never be read. Configure it not to add an end token."
        )
    if embedded is not None:
        marks = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        special = ({*tokenizer.all_special_ids} | marks) - {*ids}
        beyond = [
            word for word, number in tokenizer.get_vocab().items() if number >= embedded and number not in special
        ]
        if beyond:
            raise ValueError(
                f"tokenizer={type(tokenizer).__name__} has {counted(len(beyond), 'token')} too many: "
                f"{no_embedding(min(beyond), embedded)}"
            )


def target_ids(tokenizer: Tokenizer, target: str, frame: Frame = PLAIN, joint: str | None = None) -> list[int]:
    """Return the token ids of a target as an answer, without special tokens.

    Args:
        joint: What stands between the prompt and the target, see `Frame.joint`; by default a space, or in a chat what
            its template puts there.

    Raises:
        ValueError: It has none.
    """
    target = target.strip()
    if frame.chat:
        ids = _after(tokenizer, frame.after, (frame.space if joint is None else joint) + target)
    else:
        ids = _after(tokenizer, "\n", target) if joint == "" else _alone(tokenizer, target)
    if not ids:
        raise ValueError(f"target={target!r} has no tokens under this tokenizer; give another target.")
    return ids


def _alone(tokenizer: Tokenizer, target: str) -> list[int]:
    ids: list[int] = tokenizer(" " + target, add_special_tokens=False)["input_ids"]
    bare: list[int] = tokenizer(target, add_special_tokens=False)["input_ids"]
    if bare and ids[1:] == bare and tokenizer.convert_ids_to_tokens(bare[0]).startswith(_SPACES):
        # This tokenizer puts a space before every text by itself; ours became a token of its own.
        return bare
    return ids


def _after(tokenizer: Tokenizer, before: str, answer: str) -> list[int]:
    # Not alone: some tokenizers put a space before every text, but none after a line break.
    encoded = tokenizer(before + answer, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    return ids[bisect_right([end for _, end in encoded["offset_mapping"]], len(before)) :]


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], frame: Frame = PLAIN) -> list[list[int]]:
    """Return the token ids of whole texts, with the tokenizer's default special tokens unless they are a chat's."""
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=not frame.chat)["input_ids"]
    return ids


def locate(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    characters: Sequence[int],
    frame: Frame = PLAIN,
    chats: Sequence[bool] | None = None,
) -> list[tuple[list[int], int]]:
    """Tokenize texts and find in each the last token that stands for a given character; see `locate_spans`.

    A character may be spread over several tokens (byte-level tokenizers do so outside Latin script); the last of them
    has seen the whole character. `chats` says which texts are a chat's, and write their special tokens themselves; by
    default `frame` says it of all.
    """
    spans = [range(character, character + 1) for character in characters]
    return [(ids, span[-1]) for ids, span in locate_spans(tokenizer, texts, spans, frame, chats)]


def locate_spans(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    spans: Sequence[range],
    frame: Frame = PLAIN,
    chats: Sequence[bool] | None = None,
) -> list[tuple[list[int], range]]:
    """Tokenize texts and find in each the tokens from the first of a span's first character to the last of its last.

    The texts are wrapped by `frame` already, and a span has at least one character.

    Returns:
        For each text its token ids and the indices of these tokens.

    Raises:
        ValueError: No token stands for a character: the tokenizer drops or normalizes it away.
    """
    found: list[tuple[list[int], range]] = []
    written = [frame.chat] * len(texts) if chats is None else chats
    for chat, group in groupby(zip(texts, spans, written, strict=True), lambda one: one[2]):
        pairs = list(group)
        encoded = tokenizer([text for text, *_ in pairs], add_special_tokens=not chat, return_offsets_mapping=True)
        for (text, span, _), ids, offsets in zip(pairs, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            found.append((ids, range(_holders(text, span[0], offsets)[0], _holders(text, span[-1], offsets)[-1] + 1)))
    return found


def _holders(text: str, character: int, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The tokens that stand for a character of a subject."""
    holders = [index for index, (start, end) in enumerate(offsets) if start <= character < end]
    if not holders:
        raise ValueError(
            f"subject: its character {text[character]!r} in {text!r} disappears in tokenization; write the subject in "
            "characters that the tokenizer knows."
        )
    return holders
