"""Where published data come from, and downloading them: on request only, and checked."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from factpatch.data.reading import DataFileError
from factpatch.support.cache import cache_directory
from factpatch.support.files import atomic_write, file_digest, remove_drafts
from factpatch.support.progress import bar
from factpatch.support.words import named, suggestion

logger = logging.getLogger(__name__)

_ROME = "https://rome.baulab.info/data/dsets"
# Mirrors of the Hub are chosen by the variable that huggingface_hub reads too.
_HUB = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
_KNOWEDIT = f"{_HUB}/datasets/zjunlp/KnowEdit/resolve/c3a6bccb5fc37a59dea3197ac36526d44606acd0/benchmark"
_TIMEOUT = 60.0  # seconds without a byte
_BLOCK = 1 << 20
_ABANDONED = 24 * 3600.0


class DownloadError(RuntimeError):
    """A file could not be downloaded, or is not the expected one. Nothing of it was kept."""


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
    """Its checksum. None where none is known: the first download is recorded, and later ones must be equal."""


# The homes publish no checksums. That of counterfact.json is stated alike by many who use it; those of known_1000.json
# and zsre_mend_eval.json by several; the others by one public repository each that holds or pins the file. For KnowEdit
# they are stated for its newest revision only, and not for this one, so that its files have none here.
REGISTRY = {
    "counterfact.json": "d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f",
    "multi_counterfact.json": "977a6acce4705507b5fd6bfcea8f61cd78f9ed0f9cd9c9a6bcd6c8a3ed61c833",
    "zsre_mend_eval.json": "8a371d512f8a6ab175db4ef672181d5c0e52da23298cb51e5a2eeea2f89aa9cd",
    "known_1000.json": "61daca55318bb5260c1e62e133debef9102c7b278bbc7b19dd2ac655543f333a",
    "attribute_snippets.json": "10b5c1cd105e54d5983c72de1b45bfc88bc7af786f7b99def2557886ff23385b",
    "idf.npy": "c073d642589d4ac6432f467230329b36364a01e72de63a77a3624b745b923dda",
    "tfidf_vocab.json": "8a78c4f20d8d85dadfd14e283d71af255482ff18aa0eb8a81716024c05ff888b",
}
_OF_ROME = (
    ("counterfact", "counterfact.json", 45_108_470, "CounterFact: 21,919 facts (ROME)"),
    ("multi_counterfact", "multi_counterfact.json", None, "MultiCounterFact: facts to edit together (MEMIT)"),
    ("zsre", "zsre_mend_eval.json", 8_091_864, "zsRE, the evaluation part of MEND: 19,086 questions"),
    ("known_1000", "known_1000.json", 343_229, "1,209 facts that GPT2-XL knows, for tracing and hidden states (ROME)"),
    (
        "attribute_snippets",
        "attribute_snippets.json",
        926_285_719,
        "reference texts of CounterFact's new objects, for consistency (ROME)",
    ),
    ("tfidf_idf", "idf.npy", 11_042_168, "weights of the words in these texts (ROME)"),
    ("tfidf_vocab", "tfidf_vocab.json", 31_639_072, "the words that the weights are of (ROME)"),
)
_OF_KNOWEDIT = (
    ("recent", "wiki_recent/recent_test.json", "WikiData_recent: 1,266 facts"),
    ("counterfact", "wiki_counterfact/test_cf.json", "WikiData_counterfact: 885 facts"),
    ("wikibio", "WikiBio/wikibio-test-all.json", "WikiBio: 1,392 sentences"),
    ("zsre", "ZsRE/ZsRE-test-all.json", "ZsRE: 1,301 questions"),
)


def _sources() -> Iterator[Source]:
    for name, file, size, about in _OF_ROME:
        yield Source(name, file, f"{_ROME}/{file}", about, size, REGISTRY[file])
    for part, path, about in _OF_KNOWEDIT:
        file = f"knowedit_{Path(path).name.replace('-', '_').lower()}"
        yield Source(f"knowedit_{part}", file, f"{_KNOWEDIT}/{path}", f"KnowEdit, {about}")


SOURCES: dict[str, Source] = {source.name: source for source in _sources()}


def data_directory() -> Path:
    """Return the directory of fetched data in the user's cache; it need not exist yet."""
    return cache_directory() / "data"


def source_named(name: str) -> Source:
    """Look a published file up by its name; a ValueError suggests the nearest one."""
    return named(SOURCES, name, "data set")


def resolve_data(data: str | Path) -> Path:
    """Return the file that a path or the name of a published data set stands for. Nothing is downloaded.

    A single word without an extension that is no file or folder here is a name, and so is that of a data set where a
    folder has it too; its file must be in the cache, and be the one that was fetched. Anything else is a path, and
    returned as it is.

    Raises:
        DataFileError: There is no data set of this name, it is not in the cache, or it was altered there.
    """
    path = Path(data)
    name = str(data)
    if path.suffix or path.parent != Path() or path.is_file() or (path.is_dir() and name not in SOURCES):
        return path
    if name not in SOURCES:
        raise DataFileError(f"{name}: no such file, and no data set of this name.{suggestion(name, SOURCES)}")
    source = SOURCES[name]
    cached = data_directory() / source.file
    fetch_it = f"factpatch data fetch {name}"
    if not cached.is_file():
        raise DataFileError(f"{name}: {cached} is not there. Download it from {source.url} with: {fetch_it}")
    expected = _expected(source, cached)
    if expected is None:
        raise DataFileError(f"{name}: {cached} has no record of its checksum. Fetch it again: {fetch_it}")
    if file_digest(cached) != expected:
        raise DataFileError(f"{name}: {cached} is damaged or was altered. Delete it and fetch it again: {fetch_it}")
    return cached


def fetched(name: str) -> bool:
    """Whether a published file is in the cache; `resolve_data` checks that it is the right one."""
    return (data_directory() / source_named(name).file).is_file()


def fetch(name: str, to: str | Path | None = None) -> Path:
    """Download a published file, unless the same file is there already, and return its path.

    It appears whole and checked or not at all; after an interruption, call this again. Next to a file without a known
    checksum, a file with `.sha256` added to its name records the one it has, as sha256sum writes it.

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

    def download(draft: Path) -> None:
        _receive(source, draft)
        found = file_digest(draft)
        if expected is None:
            # Before the file: a file without a record would not be trusted.
            record = f"{found}  {path.name}\n".encode()
            atomic_write(_record(path), lambda note: note.write_bytes(record))
        elif found != expected:
            why = f"it has the sha256\n  {found}, but\n  {expected}\nwas expected"
            if source.sha256 is None:
                why += f", which the first download had. If the new file is the right one, delete {_record(path)}"
            raise _failed(source, why)

    if source.url.startswith("http://") and source.sha256 is None:
        logger.warning(
            "%s comes without encryption from %s, as HF_ENDPOINT says, and its checksum is not known: it could be "
            "altered on the way. An https address would prevent that.",
            source.name, source.url,
        )  # fmt: skip
    logger.info("downloading %s", source.url)
    atomic_write(path, download)
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


def _receive(source: Source, draft: Path) -> None:
    """Write what the home sends into `draft`, with a progress bar."""
    import requests  # here, since what only lists the sources need not load it

    try:
        # Compressed on the way, it would have another length than announced.
        with requests.get(
            source.url, headers={"Accept-Encoding": "identity"}, stream=True, timeout=_TIMEOUT
        ) as response:
            response.raise_for_status()
            length = int(response.headers.get("Content-Length", 0)) or source.size
            if source.size not in (None, length):
                raise _failed(source, f"the server has {length} bytes, but {source.size} were expected")
            with bar(f"downloading {source.name}", length) as advance, draft.open("xb") as file:
                for block in response.iter_content(_BLOCK):
                    file.write(block)
                    advance(len(block))
    except requests.RequestException as error:  # also where the connection breaks off
        raise _failed(source, str(error)) from error


def _failed(source: Source, why: str) -> DownloadError:
    return DownloadError(
        f"{source.name}: {source.url} could not be downloaded: {why}. Nothing was kept. Try again with: factpatch data "
        f"fetch {source.name}; or get the file another way and give its path in place of the name."
    )
