"""Text for statistics: files, datasets, lists of documents and the text that comes with the package, as streams."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from factpatch.support.files import file_digest
from factpatch.support.text import check_text_file, naming

_NO_DATASETS = "corpus={!r}: datasets are read with the `datasets` package; pip install 'factpatch[datasets]'."


@dataclass(frozen=True)
class Corpus:
    """A stream of documents with an identity that a cache can trust."""

    identity: str
    """Names the content: a digest for files and texts, name and revision for a dataset."""
    documents: Callable[[], Iterator[str]]


def documents_in(lines: Iterable[str]) -> Iterator[str]:
    """Yield the documents of a text, which blank lines separate."""
    held: list[str] = []
    for line in chain(lines, ["\n"]):
        if line.strip():
            held.append(line)
        elif held:
            yield "".join(held).strip()
            held = []


def check_corpus(source: str) -> None:
    """Raise ValueError unless a source names a text file, or a dataset and the package that reads it is installed."""
    if source.startswith("hf:"):
        if find_spec("datasets") is None:
            raise ValueError(_NO_DATASETS.format(source))
    else:
        with _blamed(source):
            check_text_file(Path(source))


@contextmanager
def _blamed(source: str) -> Iterator[None]:
    """Name the argument in an error about a file."""
    try:
        yield
    except ValueError as error:
        said = str(error).removeprefix(f"{source}: ")
        raise ValueError(f"corpus={source!r}: {said} For a dataset, give hf:NAME.") from None


def corpus_from(source: str | Path | Sequence[str] | Corpus | None) -> Corpus:
    """Open a corpus; a ValueError says that there is no such file, or that the dataset cannot be opened.

    Args:
        source: A text file with documents separated by blank lines; `hf:NAME[:CONFIG[:SPLIT[:COLUMN]]]`, a dataset of
            the Hugging Face Hub or a local one, streamed (needs the `datasets` extra); a list of documents; None for
            the text that the package ships, sampled from the embedded model; or a corpus, which is returned.
    """
    if source is None:
        text = resources.files("factpatch.corpora").joinpath("sampled.txt").read_text("utf-8")
        return Corpus(f"shipped:{_digest([text])}", lambda: documents_in(text.splitlines(keepends=True)))
    if isinstance(source, Corpus):
        return source
    if isinstance(source, str) and source.startswith("hf:"):
        return _dataset(source)
    if not isinstance(source, (str, Path)):
        documents = list(source)
        return Corpus(f"documents:{_digest(documents)}", lambda: iter(documents))
    path = Path(source)
    with _blamed(str(source)):
        check_text_file(path)

    def stream() -> Iterator[str]:
        with _blamed(str(source)), naming(path), path.open(encoding="utf-8-sig") as lines:
            yield from documents_in(lines)

    return Corpus(f"file:{file_digest(path)}", stream)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _dataset(source: str) -> Corpus:
    try:
        import datasets
    except ImportError:
        raise ValueError(_NO_DATASETS.format(source)) from None
    name, config, split, column = ([*source.removeprefix("hf:").split(":"), "", "", "", ""])[:4]
    try:
        stream = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
    except Exception as error:  # the library raises many kinds for a name that does not exist or a hub out of reach
        raise ValueError(f"corpus={source!r}: the dataset cannot be opened: {error}") from error
    column = column or "text"
    if stream.column_names is not None and column not in stream.column_names:
        raise ValueError(f"corpus={source!r}: no column {column!r}; it has {', '.join(stream.column_names)}.")
    return Corpus(f"{source}@{_revision(name)}", lambda: (row[column] for row in stream))


def _revision(dataset: str) -> str:
    """The content of a local dataset, or the commit of one of the Hub."""
    folder = Path(dataset)
    if folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return _digest([f"{path.relative_to(folder)}:{file_digest(path)}" for path in files])
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(dataset).sha)
