"""What `factpatch.support.files` promises: a file or directory appears whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from factpatch.support.files import atomic_directory, atomic_write, remove_drafts


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes. Python ignores the signal that comes with it, so writes fail with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_is_there_alone(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a.bin", lambda draft: draft.write_bytes(b"whole"))
    assert (tmp_path / "a.bin").read_bytes() == b"whole"
    assert names(tmp_path) == ["a.bin"]


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_get_the_permissions_of_the_umask_whoever_makes_them(tmp_path: Path, umask: int) -> None:
    tensors = {"a": torch.zeros(3)}
    atomic_write(tmp_path / "a.bin", lambda draft: draft.write_bytes(b"whole"))
    atomic_write(tmp_path / "a.safetensors", lambda draft: save_file(tensors, draft))
    atomic_write(tmp_path / "a.safetensors", lambda draft: save_file(tensors, draft))  # in the place of the other
    with atomic_directory(tmp_path / "folder") as draft:
        (draft / "inner").mkdir()
        save_file(tensors, draft / "b.safetensors")
        save_file(tensors, draft / "inner" / "c.safetensors")
        (draft / "d.json").write_text("{}")
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {
        "a.bin": 0o666 & ~umask,
        "a.safetensors": 0o666 & ~umask,
        "folder": 0o777 & ~umask,
        "folder/b.safetensors": 0o666 & ~umask,
        "folder/d.json": 0o666 & ~umask,
        "folder/inner": 0o777 & ~umask,
        "folder/inner/c.safetensors": 0o666 & ~umask,
    }


def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path: Path) -> None:
    atomic_write(tmp_path / ("n" * 255), lambda draft: draft.write_bytes(b"whole"))
    assert names(tmp_path) == ["n" * 255]


@pytest.mark.parametrize("failure", [ValueError("wrong"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write(draft: Path) -> None:
        draft.write_bytes(b"half")
        raise failure

    with pytest.raises(type(failure)):
        atomic_write(path, write)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    atomic_write(tmp_path / "link", lambda draft: draft.write_bytes(b"new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_a_pipe_and_a_directory_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(FileExistsError, match="not a regular file"):
            atomic_write(tmp_path / name, lambda draft: draft.write_bytes(b"new"))
    assert names(tmp_path) == ["folder", "pipe"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the folder .*none does not exist; make it first.*a\.bin"):
        atomic_write(tmp_path / "none" / "a.bin", lambda draft: draft.write_bytes(b"new"))


def test_an_error_about_another_file_is_passed_on_as_it_is(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with pytest.raises(FileNotFoundError) as raised:
        atomic_write(tmp_path / "a.bin", lambda draft: draft.write_bytes(source.read_bytes()))
    assert raised.value.filename == str(source)
    assert raised.value.strerror == os.strerror(errno.ENOENT)


def test_a_full_disk_leaves_no_file_and_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"

    def write(draft: Path) -> None:
        draft.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"the disk is full; free some room.*a\.bin") as raised:
        atomic_write(path, write)
    assert raised.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


def test_a_write_beyond_the_limit_leaves_no_file_and_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with largest_file(1000), pytest.raises(OSError, match=r"larger than this process may write.*a\.bin") as raised:
        atomic_write(path, lambda draft: draft.write_bytes(bytes(5000)))
    assert raised.value.errno == errno.EFBIG
    assert names(tmp_path) == []


def test_a_full_disk_that_a_library_reports_in_words_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with largest_file(1000), pytest.raises(OSError, match=r"larger than this process may write") as raised:
        atomic_write(path, lambda draft: save_file({"a": torch.zeros(5000)}, draft))
    assert raised.value.errno == errno.EFBIG
    assert names(tmp_path) == []


@pytest.mark.parametrize("exists", [False, True])
def test_a_directory_appears_when_it_is_whole(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "model"
    if exists:
        path.mkdir()
    with atomic_directory(path) as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "a").write_bytes(b"whole")
        assert exists or not path.exists()
    assert (path / "inner" / "a").read_bytes() == b"whole"
    assert names(tmp_path) == ["model"]


def test_a_failed_directory_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model"

    def make() -> None:
        with atomic_directory(path) as draft:
            (draft / "a").write_bytes(b"whole")
            with largest_file(1000):
                (draft / "b").write_bytes(bytes(5000))

    with pytest.raises(OSError, match=r"larger than this process may write.*model"):
        make()
    assert names(tmp_path) == []


def test_a_directory_that_holds_something_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "a").write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"the directory is not empty.*model"), atomic_directory(path):
        pytest.fail("the block must not run")
    assert names(path) == ["a"]


def test_a_file_in_the_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"old")
    with pytest.raises(FileExistsError, match="there is a file of this name"), atomic_directory(tmp_path / "model"):
        pytest.fail("the block must not run")
    assert (tmp_path / "model").read_bytes() == b"old"


def test_a_directory_filled_by_another_process_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "model"

    def make() -> None:
        with atomic_directory(path) as draft:
            (draft / "a").write_bytes(b"ours")
            path.mkdir()
            (path / "a").write_bytes(b"theirs")

    with pytest.raises(FileExistsError, match="not empty"):
        make()
    assert (path / "a").read_bytes() == b"theirs"
    assert names(tmp_path) == ["model"]


def test_a_directory_in_a_missing_folder_is_explained(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match="does not exist; make it first"),
        atomic_directory(tmp_path / "a" / "b"),
    ):
        pytest.fail("the block must not run")


def test_what_was_not_put_in_place_is_removed_files_and_directories(tmp_path: Path) -> None:
    (tmp_path / ".factpatch-0123456789abcdef.tmp").touch()
    folder = tmp_path / ".factpatch-fedcba9876543210.tmp"
    folder.mkdir()
    (folder / "inside").touch()
    (tmp_path / "kept").touch()
    remove_drafts(tmp_path, older_than=3600)
    assert len(list(tmp_path.iterdir())) == 3
    remove_drafts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
