"""A kept directory: what its record says, who may write, and what a killed process leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from factpatch.support.directory import DirectoryError, KeptDirectory, ResultDirectory, cut_unfinished

DRAFT = ".factpatch-0123456789abcdef.tmp"
SHEEP = {"of": "sheep", "seed": 0}


class CountError(DirectoryError):
    """Of the directories below."""


class Flock(KeptDirectory):
    holds, record_name, needs, before_record = "a flock", "flock.json", ("sheep",), ("wool",)
    error = CountError


class Counts(ResultDirectory):
    holds, record_name = "a count", "count.json"
    error = CountError


def test_it_is_begun_once_with_what_belongs_beside_its_record(tmp_path: Path) -> None:
    folder = tmp_path / "below" / "flock"

    def write() -> Mapping[str, Any]:
        (folder / "wool").write_text("white", "utf-8")
        return {"sheep": 3}

    Flock.begin(folder, write)
    Flock.begin(folder, lambda: {"sheep": 4})
    flock = Flock(folder)
    assert flock.record["sheep"] == 3
    assert (flock.record["format"], "factpatch" in flock.record["versions"]) == (1, True)
    with flock.locked():
        flock.update(black=1)
    assert Flock(folder).record == {**flock.record, "black": 1}


def test_a_killed_beginning_is_begun_again_and_anything_else_is_refused(tmp_path: Path) -> None:
    for name in ("lock", DRAFT, "wool"):
        (tmp_path / name).write_text("", "utf-8")
    Flock.check_place(tmp_path)
    Flock.check_place(tmp_path / "new")
    (tmp_path / "preset.yaml").write_text("mine", "utf-8")
    for place in (tmp_path, tmp_path / "preset.yaml"):
        with pytest.raises(CountError, match="is not empty and not the directory of a flock"):
            Flock.begin(place, dict)
    (tmp_path / "preset.yaml").unlink()
    Flock.begin(tmp_path, lambda: {"sheep": 1})
    assert not (tmp_path / DRAFT).exists()


def test_drafts_of_a_killed_process_go_when_the_next_one_starts(tmp_path: Path) -> None:
    directory = Counts(tmp_path, SHEEP)
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    drafts = [folder / DRAFT for folder in (tmp_path, tmp_path / "parts", tmp_path / "parts" / "deep")]
    for draft in drafts:
        draft.write_text("", "utf-8")
    (tmp_path / "parts" / "1.json").write_text("{}", "utf-8")
    with directory.locked():
        assert not any(draft.exists() for draft in drafts)
        assert (tmp_path / "parts" / "1.json").is_file()


def test_results_are_found_again_by_what_they_are_about(tmp_path: Path) -> None:
    assert Counts(tmp_path, {"of": ("sheep", float("inf"))}).about == {"of": ["sheep", "inf"]}
    Counts(tmp_path, {"of": ["sheep", float("inf")]})
    with pytest.raises(CountError, match=r"holds a count with other settings: of is .* there and 'goats' here"):
        Counts(tmp_path, {"of": "goats"})


def test_other_versions_are_warned_about_once_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Counts(tmp_path, SHEEP).locked():
        assert not caplog.messages
    first = Counts(tmp_path, SHEEP).record["versions"]
    monkeypatch.setattr("factpatch.support.directory.library_versions", lambda: {**first, "factpatch": "99"})
    for _ in range(2):
        with Counts(tmp_path, SHEEP).locked():
            pass
    assert len(caplog.messages) == 1
    assert "was begun with other versions: factpatch is" in caplog.text
    record = Counts(tmp_path, SHEEP).record
    assert (record["versions"], record["later_versions"]) == (first, [{**first, "factpatch": "99"}])


def test_a_package_that_an_older_record_does_not_name_does_not_count(tmp_path: Path) -> None:
    directory = Counts(tmp_path, SHEEP)
    directory.record["versions"].pop("tokenizers")
    assert directory.other_versions() is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ('{"format": 1}', "lacks about, versions"),
        ('{"format": 2, "about": {}}', "newer factpatch wrote"),
    ],
)
def test_a_record_that_cannot_be_used_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "count.json").write_text(content, "utf-8")
    with pytest.raises(CountError, match=rf"count\.json: .*{message}"):
        Counts(tmp_path, {})


def test_a_directory_that_was_not_begun_is_not_opened(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CountError, match=r"is not the directory of a flock: it has no flock\.json"):
            Flock(place)


def test_a_process_keeps_others_out_and_a_directory_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    directory = Counts(tmp_path / "counts", SHEEP)
    with (
        FileLock(tmp_path / "counts" / "lock"),
        pytest.raises(CountError, match="another process is using this count"),
        directory.locked(),
    ):
        pass
    for file in (tmp_path / "counts").iterdir():
        file.unlink()
    (tmp_path / "counts").rmdir()
    with pytest.raises(CountError, match="the count is no longer there"), directory.locked():
        pass
    assert not (tmp_path / "counts").exists()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    directory = Counts(tmp_path, SHEEP)
    for content in ("{", '{"b": 1}'):
        (tmp_path / "part.json").write_text(content, "utf-8")
        with pytest.raises(CountError, match=r"part\.json: cannot be read .* Remove it"):
            directory.read(tmp_path / "part.json", lambda record: record["a"])


def test_only_a_line_that_was_cut_short_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    for content, kept in ((b"", b""), (b"a\nb\n", b"a\nb\n"), (b"a\nb", b"a\n"), (b"a", b"")):
        file.write_bytes(content)
        cut_unfinished(file)
        assert file.read_bytes() == kept
