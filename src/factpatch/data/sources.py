"""Where published data come from, and getting them from there: on request, checked, and never otherwise."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from factpatch.data.records import DataFileError
from factpatch.support.cache import cache_directory
from factpatch.support.files import atomic_write, file_digest, remove_drafts
from factpatch.support.progress import bar
from factpatch.support.words import suggestion

logger = logging.getLogger(__name__)

_ROME = "https://rome.baulab.info/data/dsets"
# Mirrors of the Hub are chosen by the variable that huggingface_hub reads too.
_HUB = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
_KNOWEDIT = f"{_HUB}/datasets/zjunlp/KnowEdit/resolve/c3a6bccb5fc37a59dea3197ac36526d44606acd0/benchmark"
_TIMEOUT = 60.0  # seconds without a byte
_BLOCK = 1 << 20
_ABANDONED = 24 * 3600.0


class DownloadError(RuntimeError):
    """A file could not be fetched, or is not the expected one. Nothing of it was kept."""


@dataclass(frozen=True)
class Source:
    """A published file and its home."""

    name: str
    """What the user calls it."""
    file: str
    """Its name in the cache."""
    url: str
    """Its home."""
    about: str
    """What it holds."""
    size: int | None = None
    """In bytes, where it is known."""
    sha256: str | None = None
    """Its checksum, where one is known. Otherwise the first download is recorded, and later ones must be equal."""


# The homes publish no checksums. That of counterfact.json is stated alike by many who use it; that of known_1000.json
# by several, and a copy from elsewhere has it when it is written in the same layout. Those of multi_counterfact.json
# and of the three files for consistency are each stated by one public repository that holds or pins the file.
SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="counterfact",
            file="counterfact.json",
            url=f"{_ROME}/counterfact.json",
            about="CounterFact: 21,919 facts (ROME)",
            size=45_108_470,
            sha256="d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f",
        ),
        Source(
            name="multi_counterfact",
            file="multi_counterfact.json",
            url=f"{_ROME}/multi_counterfact.json",
            about="MultiCounterFact: facts that can be edited together (MEMIT)",
            sha256="977a6acce4705507b5fd6bfcea8f61cd78f9ed0f9cd9c9a6bcd6c8a3ed61c833",
        ),
        Source(
            name="zsre",
            file="zsre_mend_eval.json",
            url=f"{_ROME}/zsre_mend_eval.json",
            about="zsRE, the evaluation part of MEND: 19,086 questions",
        ),
        Source(
            name="known_1000",
            file="known_1000.json",
            url=f"{_ROME}/known_1000.json",
            about="1,209 facts that GPT2-XL knows, for tracing and hidden states (ROME)",
            size=343_229,
            sha256="61daca55318bb5260c1e62e133debef9102c7b278bbc7b19dd2ac655543f333a",
        ),
        Source(
            name="attribute_snippets",
            file="attribute_snippets.json",
            url=f"{_ROME}/attribute_snippets.json",
            about="reference texts of CounterFact's new objects, for consistency (ROME)",
            size=926_285_719,
            sha256="10b5c1cd105e54d5983c72de1b45bfc88bc7af786f7b99def2557886ff23385b",
        ),
        Source(
            name="tfidf_idf",
            file="idf.npy",
            url=f"{_ROME}/idf.npy",
            about="weights of the words in these texts (ROME)",
            size=11_042_168,
            sha256="c073d642589d4ac6432f467230329b36364a01e72de63a77a3624b745b923dda",
        ),
        Source(
            name="tfidf_vocab",
            file="tfidf_vocab.json",
            url=f"{_ROME}/tfidf_vocab.json",
            about="the words that the weights are of (ROME)",
            size=31_639_072,
            sha256="8a78c4f20d8d85dadfd14e283d71af255482ff18aa0eb8a81716024c05ff888b",
        ),
        Source(
            name="knowedit_recent",
            file="knowedit_recent_test.json",
            url=f"{_KNOWEDIT}/wiki_recent/recent_test.json",
            about="KnowEdit, WikiData_recent: 1,266 facts",
        ),
        Source(
            name="knowedit_counterfact",
            file="knowedit_test_cf.json",
            url=f"{_KNOWEDIT}/wiki_counterfact/test_cf.json",
            about="KnowEdit, WikiData_counterfact: 885 facts",
        ),
        Source(
            name="knowedit_wikibio",
            file="knowedit_wikibio_test_all.json",
            url=f"{_KNOWEDIT}/WikiBio/wikibio-test-all.json",
            about="KnowEdit, WikiBio: 1,392 sentences",
        ),
        Source(
            name="knowedit_zsre",
            file="knowedit_zsre_test_all.json",
            url=f"{_KNOWEDIT}/ZsRE/ZsRE-test-all.json",
            about="KnowEdit, ZsRE: 1,301 questions",
        ),
    )
}


def data_directory() -> Path:
    """Return the directory of fetched data in the user's cache; it need not exist yet."""
    return cache_directory() / "data"


def source_named(name: str) -> Source:
    """Return a published file by its name.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown data set {name!r}.{suggestion(name, SOURCES)}")
    return SOURCES[name]


def resolve_data(data: str | Path) -> Path:
    """Return the file that a path or the name of a published data set stands for. Nothing is downloaded.

    A single word without an extension that is no file here is a name; its file must be in the cache, and be the one
    that was fetched. Anything else is a path, and returned as it is.

    Raises:
        DataFileError: There is no data set of this name, it is not in the cache, or it was altered there.
    """
    path = Path(data)
    if path.suffix or path.parent != Path() or path.is_file():
        return path
    name = str(data)
    if name not in SOURCES:
        raise DataFileError(f"{name}: no such file, and no data set of this name.{suggestion(name, SOURCES)}")
    source = SOURCES[name]
    cached = data_directory() / source.file
    fetch_it = f"factpatch data fetch {name}"
    if not cached.is_file():
        raise DataFileError(f"{name}: {cached} is not there. Download it from {source.url} with: {fetch_it}")
    expected = _expected(source, cached)
    if expected is None:
        raise DataFileError(f"{name}: nothing tells whether {cached} is whole. Fetch it again: {fetch_it}")
    if file_digest(cached) != expected:
        raise DataFileError(f"{name}: {cached} is damaged or was altered. Delete it and fetch it again: {fetch_it}")
    return cached


def fetched(name: str) -> bool:
    """Whether a published file is in the cache; `resolve_data` checks that it is the right one."""
    return (data_directory() / source_named(name).file).is_file()


def fetch(name: str, to: str | Path | None = None) -> Path:
    """Download a published file, unless the same file is there already, and return its path.

    It appears whole and checked or not at all; an interrupted download is repeated by calling this again. Beside a file
    without a known checksum, a file with `.sha256` added to its name records the one it has, as sha256sum writes it.

    Args:
        name: A key of `SOURCES`.
        to: The directory to put it into, made if need be; by default `data_directory()`, where its name finds it.

    Raises:
        ValueError: There is no data set of this name.
        DownloadError: It cannot be downloaded, was cut short, or has another size or checksum than it should.
        OSError: The directory cannot be written.
    """
    source = source_named(name)
    folder = data_directory() if to is None else Path(to)
    folder.mkdir(parents=True, exist_ok=True)
    remove_drafts(folder, older_than=_ABANDONED)
    path = folder / source.file
    expected = _expected(source, path)
    if path.is_file() and expected is not None and file_digest(path) == expected:
        logger.info("%s is there already", path)
        return path
    logger.info("downloading %s", source.url)
    atomic_write(path, lambda draft: _download(source, draft, path))
    return path


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _expected(source: Source, path: Path) -> str | None:
    """The checksum that the file at `path` must have: the known one, or that of its first download."""
    if source.sha256 is not None:
        return source.sha256
    record = _record(path)
    words = record.read_text("utf-8").split() if record.is_file() else []
    return words[0] if words else None


def _download(source: Source, draft: Path, path: Path) -> None:
    digest, size = hashlib.sha256(), 0
    with draft.open("xb") as file:
        for block in _blocks(source):
            file.write(block)
            digest.update(block)
            size += len(block)
    found, expected = digest.hexdigest(), _expected(source, path)
    if source.size not in (None, size):
        raise _failed(source, f"it has {size} bytes, but {source.size} were expected")
    if expected is None:
        # Before the file: a file without a record would not be trusted.
        record = f"{found}  {path.name}\n".encode()
        atomic_write(_record(path), lambda note: note.write_bytes(record))
    elif found != expected:
        why = f"it has the sha256\n  {found}, but\n  {expected}\nwas expected"
        if source.sha256 is None:
            why += f", which the first download had. If the new file is the right one, delete {_record(path)}"
        raise _failed(source, why)


def _blocks(source: Source) -> Iterator[bytes]:
    """Yield what the home sends, with a progress bar; raise if it ends early."""
    request = urllib.request.Request(source.url, headers={"User-Agent": "factpatch"})
    received = 0
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            announced = response.headers.get("Content-Length")
            length = None if announced is None else int(announced)
            if source.size not in (None, length) and length is not None:
                raise _failed(source, f"the server has {length} bytes, but {source.size} were expected")
            with bar(f"downloading {source.name}", source.size if length is None else length) as advance:
                while block := response.read(_BLOCK):
                    yield block
                    received += len(block)
                    advance(len(block))
    except urllib.error.HTTPError as error:
        raise _failed(source, f"the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _failed(source, str(getattr(error, "reason", error)) or type(error).__name__) from error
    if length not in (None, received):
        raise _failed(source, f"the connection broke off after {received} of {length} bytes")


def _failed(source: Source, why: str) -> DownloadError:
    return DownloadError(
        f"{source.name}: {source.url} could not be fetched: {why}. Nothing was kept. Try again with: factpatch data "
        f"fetch {source.name}; or get the file another way and give its path in place of the name."
    )
