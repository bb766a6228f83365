"""Downloads from a server in a thread: whole, cut short, altered, absent; and what a name then stands for."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from factpatch.data import DataFileError, load_facts
from factpatch.data import sources as module
from factpatch.data.sources import SOURCES, DownloadError, Source, data_directory, fetch, resolve_data

CONTENT = b'[{"prompt": "The capital of {} is", "subject": "Peru", "target_new": "Oslo"}]'
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content` at /whole, less than it announces at /cut, and nothing elsewhere."""

    content = CONTENT
    requests = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.path not in ("/whole", "/cut", "/chunked"):
            self.send_error(404)
            return
        self.send_response(200)
        if self.path == "/chunked":
            self.protocol_version = "HTTP/1.1"
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"ff\r\n" + self.server.content)  # 255 bytes announced, and no end
            return
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content if self.path == "/whole" else self.server.content[:20])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def publish(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Source]:
    """Give the data set "sample" a home on the server, and this test an empty cache."""
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")

    def make(path: str, **about: Any) -> Source:
        made = Source(
            "sample",
            "sample.json",
            f"http://127.0.0.1:{server.server_port}{path}",
            "a sample",
            **about,
        )
        monkeypatch.setitem(SOURCES, "sample", made)
        return made

    return make


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_fetched_file_is_whole_and_its_name_stands_for_it(publish: Callable[..., Source]) -> None:
    publish("/whole", size=len(CONTENT), sha256=SHA256)
    path = fetch("sample")
    assert path == data_directory() / "sample.json" == resolve_data("sample")
    assert path.read_bytes() == CONTENT
    assert left(data_directory()) == ["sample.json"]
    assert [fact.subject for fact in load_facts("sample")] == ["Peru"]


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_a_file_without_a_checksum_is_not_fetched_without_encryption_silently(
    publish: Callable[..., Source], caplog: pytest.LogCaptureFixture, sha256: str | None
) -> None:
    publish("/whole", sha256=sha256)
    fetch("sample")
    warned = [record.levelname for record in caplog.records if "without encryption" in record.getMessage()]
    assert warned == ([] if sha256 else ["WARNING"])


def test_nothing_is_downloaded_twice(publish: Callable[..., Source], server: Server) -> None:
    publish("/whole", sha256=SHA256)
    assert fetch("sample") == fetch("sample")
    assert server.requests == 1


@pytest.mark.parametrize(
    ("path", "about", "message"),
    [
        ("/cut", {"sha256": SHA256}, "20 bytes read, 57 more expected"),
        ("/cut", {}, "20 bytes read, 57 more expected"),
        ("/chunked", {}, "Connection broken"),
        ("/whole", {"sha256": "0" * 64}, f"it has the sha256\n  {SHA256}, but\n  000"),
        ("/whole", {"size": 3}, "the server has 77 bytes, but 3 were expected"),
        ("/absent", {}, "404 Client Error"),
    ],
)
def test_a_failed_download_leaves_nothing_and_can_be_repeated(
    publish: Callable[..., Source], path: str, about: dict[str, Any], message: str
) -> None:
    publish(path, **about)
    with pytest.raises(DownloadError, match=message) as caught:
        fetch("sample")
    assert "factpatch data fetch sample" in str(caught.value)
    assert left(data_directory()) == []
    with pytest.raises(DataFileError, match="is not there"):
        resolve_data("sample")
    publish("/whole", sha256=SHA256)
    assert fetch("sample").read_bytes() == CONTENT


def test_a_failed_download_leaves_the_earlier_file(publish: Callable[..., Source], tmp_path: Path) -> None:
    (tmp_path / "sample.json").write_text("earlier")
    publish("/cut", sha256=SHA256)
    with pytest.raises(DownloadError):
        fetch("sample", tmp_path)
    assert (tmp_path / "sample.json").read_text() == "earlier"


def test_a_server_that_cannot_be_reached_is_named(publish: Callable[..., Source], monkeypatch: Any) -> None:
    publish("/whole")
    nowhere = Source("sample", "sample.json", "http://127.0.0.1:9/whole", "a sample")
    monkeypatch.setitem(SOURCES, "sample", nowhere)
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:9/whole could not be downloaded: .*refused"):
        fetch("sample")


def test_without_a_known_checksum_the_first_download_is_recorded_and_later_ones_must_be_equal(
    publish: Callable[..., Source], server: Server
) -> None:
    publish("/whole")
    path = fetch("sample")
    assert left(data_directory()) == ["sample.json", "sample.json.sha256"]
    assert (data_directory() / "sample.json.sha256").read_text() == f"{SHA256}  sample.json\n"
    path.unlink()
    assert fetch("sample").read_bytes() == CONTENT
    path.unlink()
    server.content = CONTENT.replace(b"Oslo", b"Rome")
    with pytest.raises(DownloadError, match=r"the first download had.* delete .*sample\.json\.sha256"):
        fetch("sample")
    assert not path.exists()


@pytest.mark.parametrize("about", [{}, {"sha256": SHA256}])
def test_a_file_that_was_altered_in_the_cache_is_refused_and_replaced(
    publish: Callable[..., Source], about: dict[str, Any]
) -> None:
    publish("/whole", **about)
    path = fetch("sample")
    path.write_bytes(CONTENT + b" ")
    with pytest.raises(DataFileError, match=r"damaged or was altered.*factpatch data fetch sample"):
        resolve_data("sample")
    assert fetch("sample").read_bytes() == CONTENT
    assert resolve_data("sample") == path


def test_a_file_without_a_record_is_not_trusted(publish: Callable[..., Source]) -> None:
    publish("/whole")
    path = fetch("sample")
    (data_directory() / "sample.json.sha256").unlink()
    with pytest.raises(DataFileError, match=r"has no record of its checksum"):
        resolve_data("sample")
    assert fetch("sample") == path == resolve_data("sample")


def test_an_interruption_leaves_nothing(publish: Callable[..., Source], monkeypatch: pytest.MonkeyPatch) -> None:
    source = publish("/whole")

    def interrupted(source: Source, draft: Path) -> None:
        draft.write_bytes(CONTENT[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(source.name)
    assert left(data_directory()) == []


def test_what_looks_like_a_path_is_one_and_a_file_comes_before_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("absent.json", "folder/zsre", tmp_path / "zsre"):
        assert resolve_data(path) == Path(path)
    (tmp_path / "zsre").write_text("a file of this name")
    assert resolve_data("zsre") == Path("zsre")


def test_a_name_that_was_not_fetched_says_how_to_and_downloads_nothing(
    publish: Callable[..., Source], server: Server
) -> None:
    publish("/whole")
    with pytest.raises(
        DataFileError, match=r"is not there\. Download it from http.* with: factpatch data fetch sample$"
    ):
        load_facts("sample")
    assert server.requests == 0


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(DataFileError, match=r"counterfacts: no such file, and no data set.* mean 'counterfact'"):
        load_facts("counterfacts")
    with pytest.raises(ValueError, match=r"unknown data set 'zsr'.* mean 'zsre'"):
        fetch("zsr")


def test_every_published_file_has_a_place_of_its_own_and_a_checksum_of_the_right_form() -> None:
    assert len({source.file for source in SOURCES.values()}) == len(SOURCES)
    for name, source in SOURCES.items():
        assert name == source.name
        assert "." not in name
        assert source.url.startswith("https://")
        assert source.sha256 is None or len(bytes.fromhex(source.sha256)) == 32
