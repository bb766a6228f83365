"""A pass that was interrupted is resumed, and gives the same result as if nothing had happened."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import SENTENCES, tiny
from tests.processes import killed
from tests.support.test_files_atomic import largest_file

import factpatch.statistics.second_moment as module
from factpatch import SecondMoment
from factpatch.model.replicas import Replicas
from factpatch.pool import Local
from factpatch.statistics.cache import Entry
from factpatch.statistics.corpus import Corpus, corpus_from

DOCUMENTS = [*SENTENCES, "A long one. " * 40, " ", "Short."]
LAYERS = (1, 3)
TOKENS = 220
SMALL = {"CHECKPOINT_SECONDS": 0.0, "TOKEN_BUDGET": 40, "_DOCUMENTS_AT_ONCE": 3}


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every batch, and several batches in a list of documents."""
    for name, value in SMALL.items():
        monkeypatch.setattr(module, name, value)


class Progress(list[int]):
    """What a pass reports: where it begins, then the tokens of each batch. Interrupts after so many batches."""

    def __init__(self, batches: int | None = None) -> None:
        self.batches = batches

    def __call__(self, tokens: int) -> None:
        self.append(tokens)
        if self.batches is not None and len(self) > self.batches:
            raise KeyboardInterrupt


def read(
    cache: Path | Literal[False], progress: Progress, corpus: Corpus | None = None, **options: Any
) -> dict[int, SecondMoment]:
    given = {"layers": LAYERS, "tokens": TOKENS, "cache": cache, **options}
    return SecondMoment.read(tiny("llama"), corpus=corpus or corpus_from(DOCUMENTS), progress=progress, **given)


def interrupted(cache: Path, batches: int = 4, **options: Any) -> Path:
    """The checkpoint of a pass that was interrupted in a batch, which is lost."""
    with pytest.raises(KeyboardInterrupt):
        read(cache, Progress(batches), **options)
    (path,) = cache.glob("*.unfinished.safetensors")
    return path


@pytest.fixture(scope="module")
def straight() -> tuple[dict[int, SecondMoment], Progress]:
    """The pass without an interruption."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in SMALL.items():
            patched.setattr(module, name, value)
        progress = Progress()
        return SecondMoment.read(tiny("llama"), LAYERS, corpus_from(DOCUMENTS), TOKENS, False, progress), progress


def test_a_shared_pass_resumes_between_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "shard_count", lambda tokens, d_key: 5)
    shared = Replicas(tiny("llama"), Local(1))
    whole = Progress()
    expected = read(False, whole, replicas=shared)
    assert 4 <= len(whole) - 1 <= 8  # about five, of texts this short
    interrupted(tmp_path, 3, replicas=shared)
    again = Progress()
    assert same(read(tmp_path, again, replicas=shared), expected)
    assert again == [sum(whole[:3]), *whole[3:]]
    interrupted(tmp_path / "alone", 3)
    alone = Progress()
    assert same(read(tmp_path / "alone", alone, replicas=shared), expected)
    assert alone == whole  # what was cut otherwise is not continued


def same(found: dict[int, SecondMoment], expected: dict[int, SecondMoment]) -> bool:
    assert found.keys() == expected.keys()
    return all(
        torch.equal(found[layer].matrix, expected[layer].matrix) and found[layer].tokens == expected[layer].tokens
        for layer in found
    )


def test_a_pass_interrupted_in_any_batch_comes_out_with_the_same_bits(
    straight: tuple[dict[int, SecondMoment], Progress], tmp_path: Path
) -> None:
    expected, steps = straight
    assert len(steps) > 6
    assert steps[0] == 0
    assert sum(steps) == TOKENS
    for batches in range(2, len(steps)):
        cache, progress = tmp_path / str(batches), Progress()
        interrupted(cache, batches)
        assert same(read(cache, progress), expected)
        assert progress == [sum(steps[:batches]), *steps[batches:]]  # the interrupted batch, and those after it
        assert len(list(cache.iterdir())) == len(LAYERS)


def test_a_pass_interrupted_again_and_again_comes_to_its_end(
    straight: tuple[dict[int, SecondMoment], Progress], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, steps = straight
    for batch in range(2, len(steps)):
        interrupted(tmp_path, 2)  # one for the checkpoint and one that is lost
        (held,) = tmp_path.glob("*.unfinished.safetensors")
        assert read_header(held)["read"] == str(sum(steps[:batch]))
    with caplog.at_level(logging.INFO, "factpatch"):
        assert same(read(tmp_path, Progress()), expected)
    assert f"resuming the second moment where it was interrupted, after {sum(steps[:-1])} tokens" in caplog.text


def read_header(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    header: dict[str, str] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    return header


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign", "numbers"])
def test_a_damaged_or_foreign_checkpoint_is_not_used(
    damage: str,
    straight: tuple[dict[int, SecondMoment], Progress],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected, steps = straight
    path = interrupted(tmp_path)
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 255]) + content[-4:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        save_file(load_file(path), path, {**read_header(path), "corpus": "another"})
    else:
        save_file(load_file(path), path, {**read_header(path), "batches": "many"})
    progress = Progress()
    with caplog.at_level(logging.WARNING):
        assert same(read(tmp_path, progress), expected)
    assert progress == steps
    assert "computed again" in caplog.text
    assert len(list(tmp_path.iterdir())) == len(LAYERS)


def test_a_checkpoint_of_text_that_has_changed_under_its_name_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path, corpus=Corpus("a stream", lambda: iter(DOCUMENTS)))
    changed = ["Another text.", *DOCUMENTS]
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path, Progress(), Corpus("a stream", lambda: iter(changed)))
    assert "is of other text; it is computed again" in caplog.text
    assert same(found, read(False, Progress(), corpus_from(changed)))


def test_only_the_same_pass_is_resumed(straight: tuple[dict[int, SecondMoment], Progress], tmp_path: Path) -> None:
    expected, steps = straight
    interrupted(tmp_path)
    for others in ({"tokens": 150}, {"layers": (2, 3)}, {"corpus": corpus_from(DOCUMENTS[1:])}):
        progress = Progress()
        read(tmp_path, progress, **others)
        assert progress[0] == 0
    # They have left the checkpoint alone; layer 3 has become known, so that only layer 1 is read on.
    progress = Progress()
    assert same(read(tmp_path, progress), expected)
    assert progress == [sum(steps[:4]), *steps[4:]]


def test_what_could_not_be_kept_at_the_end_is_only_finished_the_next_time(
    straight: tuple[dict[int, SecondMoment], Progress], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, steps = straight
    write = Entry.write

    def full_for_layer_3(entry: Entry, *tensors: Any, **numbers: int) -> bool:
        return "of layer 3" not in entry.what and write(entry, *tensors, **numbers)

    with monkeypatch.context() as patched:
        patched.setattr(Entry, "write", full_for_layer_3)
        assert same(read(tmp_path, Progress()), expected)
    progress = Progress()
    assert same(read(tmp_path, progress), expected)
    assert progress == [sum(steps)]
    assert len(list(tmp_path.iterdir())) == len(LAYERS)


def test_a_full_disk_does_not_stop_the_work(
    straight: tuple[dict[int, SecondMoment], Progress], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with largest_file(50_000), caplog.at_level(logging.WARNING):
        assert same(read(tmp_path, Progress()), straight[0])
    assert "the unfinished second moment is not kept for the next time" in caplog.text
    assert sorted(tmp_path.glob("*.unfinished*")) == []


def test_without_a_cache_nothing_is_read_and_nothing_kept(
    straight: tuple[dict[int, SecondMoment], Progress], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path))
    for _ in range(2):
        progress = Progress()
        assert same(read(False, progress), straight[0])
        assert progress == straight[1]
    assert list(tmp_path.iterdir()) == []


def test_no_checkpoint_is_written_before_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 3600.0)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path, Progress(4))
    assert list(tmp_path.iterdir()) == []


def test_keys_that_are_not_finite_end_the_pass_at_its_first_checkpoint(tmp_path: Path) -> None:
    lm, progress = tiny("llama"), Progress()
    lm.weight(0)[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="keys of layer 1 are not finite"):
        SecondMoment.read(lm, LAYERS, corpus_from(DOCUMENTS), TOKENS, tmp_path, progress)
    assert len(progress) == 2
    assert list(tmp_path.iterdir()) == []


def test_leftovers_go_in_time(tmp_path: Path) -> None:
    now = time.time()
    ages = {
        ".factpatch-1.tmp": 2,  # days
        ".factpatch-2.tmp": 0.5,
        "1.unfinished.safetensors": 31,
        "2.unfinished.safetensors": 29,
        "3.safetensors": 100,
    }
    for name, days in ages.items():
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (now - days * 86400,) * 2)
    read(tmp_path, Progress())
    assert {name for name in ages if (tmp_path / name).exists()} == {
        ".factpatch-2.tmp",
        "2.unfinished.safetensors",
        "3.safetensors",
    }


@pytest.mark.slow
def test_a_process_killed_at_a_bad_moment_loses_little(
    straight: tuple[dict[int, SecondMoment], Progress], tmp_path: Path
) -> None:
    expected, steps = straight
    torch.set_num_threads(1)
    for target, call, first, done in (
        # The third batch is in one layer's sum already.
        ("factpatch.statistics.second_moment.add_products", 6, None, 2),
        # A checkpoint is written, and not in its place.
        ("factpatch.statistics.cache.save_file", 2, save_file, 3),
        # Between two layers' entries.
        ("factpatch.statistics.cache.save_file", len(steps) - 4 + 2, save_file, len(steps) - 1),
    ):
        assert killed(lambda: read(tmp_path, Progress()), target, call, first) == -signal.SIGKILL
        (checkpoint,) = tmp_path.glob("*.unfinished.safetensors")
        assert read_header(checkpoint)["batches"] == str(done)
    progress = Progress()
    assert same(read(tmp_path, progress), expected)
    assert progress == [TOKENS]
