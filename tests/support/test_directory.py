"""A directory of results: for one thing, which it tells, and one process at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock

from factpatch.support.directory import DirectoryError, ResultDirectory


class CountError(DirectoryError):
    """Of the directory below."""


class Counts(ResultDirectory):
    holds, record, folders = "a count", "count.json", ("parts",)
    error = CountError


def test_it_is_made_when_it_is_locked_and_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "below" / "counts"
    directory = Counts(folder, {"of": ("sheep", float("inf"))})
    assert not folder.exists()
    with directory.locked():
        assert (folder / "parts").is_dir()
    record = json.loads((folder / "count.json").read_text("utf-8"))
    assert record["about"] == {"of": ["sheep", "inf"]}
    assert "factpatch" in record["versions"]
    (folder / "parts" / "1.json").write_text("{}", "utf-8")
    draft = folder / "parts" / ".factpatch-0123456789abcdef.tmp"
    draft.write_text("", "utf-8")
    with Counts(folder, {"of": ["sheep", float("inf")]}).locked():
        assert (folder / "parts" / "1.json").is_file()
        assert not draft.exists()


def test_other_versions_are_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Counts(tmp_path, {"of": "sheep"}).locked(), Counts(tmp_path / "b", {"of": "sheep"}).locked():
        assert not caplog.messages
    monkeypatch.setattr("factpatch.support.directory.library_versions", lambda: {"factpatch": "99"})
    with Counts(tmp_path, {"of": "sheep"}).locked():
        assert "was begun with other versions" in caplog.text


def test_another_thing_is_refused_and_named(tmp_path: Path) -> None:
    with Counts(tmp_path, {"of": "sheep", "seed": 0}).locked():
        pass
    with pytest.raises(CountError, match="holds a count of something else: of; of is 'sheep' there and 'goats' here"):
        Counts(tmp_path, {"of": "goats", "seed": 0})


def test_one_that_another_process_began_in_the_meantime_is_refused(tmp_path: Path) -> None:
    mine, its = Counts(tmp_path, {"of": "sheep"}), Counts(tmp_path, {"of": "goats"})
    with its.locked(), pytest.raises(CountError, match="another process is at work there"), mine.locked():
        pass
    with pytest.raises(CountError, match="of is 'goats' there and 'sheep' here"), mine.locked():
        pass


def test_something_else_is_refused_and_what_a_killed_process_left_is_not(tmp_path: Path) -> None:
    for name in ("lock", ".factpatch-0123456789abcdef.tmp"):
        (tmp_path / name).write_text("", "utf-8")
    Counts.check_place(tmp_path)
    Counts.check_place(tmp_path / "new")
    (tmp_path / "preset.yaml").write_text("mine", "utf-8")
    for place in (tmp_path, tmp_path / "preset.yaml"):
        with pytest.raises(CountError, match="is not empty and not the directory of a count"):
            Counts(place, {})


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


def test_a_process_at_work_keeps_others_out(tmp_path: Path) -> None:
    directory = Counts(tmp_path, {})
    with FileLock(tmp_path / "lock"), pytest.raises(CountError, match="another process is at work"), directory.locked():
        pass
