"""The second moment against a plain computation, and its cache, which is trusted only where it is right."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import FAMILIES, SENTENCES, tiny

import factpatch.statistics.second_moment as module
from factpatch import SecondMoment
from factpatch.model.fingerprint import fingerprints
from factpatch.model.hooks import captured
from factpatch.model.language_model import LanguageModel
from factpatch.statistics.corpus import corpus_from
from factpatch.statistics.second_moment import add_products, mirror

DOCUMENTS = [*SENTENCES, "A long one. " * 40, "Short."]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the passes over a corpus."""
    counted: list[int] = []
    real = module._read

    def count(*args: object, **kwargs: object) -> object:
        counted.append(1)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_read", count)
    return counted


def read(
    lm: LanguageModel, cache: Path, layers: tuple[int, ...] = (1, 3), tokens: int = 200
) -> dict[int, SecondMoment]:
    return SecondMoment.read(lm, layers, corpus_from(DOCUMENTS), tokens, cache)


def plainly(lm: LanguageModel, layer: int, tokens: int) -> torch.Tensor:
    """One document after another, no padding, no early end."""
    total, left = torch.zeros(lm.d_key, lm.d_key, dtype=torch.float64), tokens
    for document in DOCUMENTS:
        ids = lm.tokenizer(document, return_tensors="pt")["input_ids"][:, :left]
        if ids.shape[1] == 0:
            break
        with torch.no_grad(), captured(inputs={0: lm.down_projection(layer)}) as found:
            lm.model(input_ids=ids)
        keys = found[0].reshape(-1, lm.d_key)
        total += keys.T @ keys
        left -= len(keys)
    assert left == 0
    return total / tokens


def test_what_another_process_reads_meanwhile_is_taken_from_it(
    tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, other = tiny("llama"), []

    @contextmanager
    def after_another(lock: Path, what: str) -> Iterator[bool]:
        waits = not other
        if waits:
            other.append(lock)
            read(lm, tmp_path, (1,))
        assert lock == other[0]  # one for all layers
        yield waits

    monkeypatch.setattr(module, "one_at_a_time", after_another)
    found = read(lm, tmp_path)
    assert len(passes) == 2  # layer 1, and then layer 3 alone
    assert torch.equal(found[1].matrix, read(lm, tmp_path)[1].matrix)
    read(lm, tmp_path)
    assert len(passes) == 2


@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_for_all_layers_equals_a_plain_pass_for_each(family: str, bos: bool, tmp_path: Path) -> None:
    lm = tiny(family, bos=bos, dtype=torch.float64)
    found = read(lm, tmp_path)
    for layer in (1, 3):
        # GPT-J keeps attention scores in float32, whose rounding depends on the padding.
        torch.testing.assert_close(found[layer].matrix, plainly(lm, layer, 200), rtol=1e-5, atol=1e-7)
        assert found[layer].tokens == 200


def test_little_memory_divides_the_batches_and_changes_nothing_beyond_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("llama", dtype=torch.float64)
    expected = read(lm, tmp_path / "whole")
    body, failures = lm.body, []

    def scarce(input_ids: torch.Tensor, **options: object) -> torch.Tensor:
        if input_ids.numel() > 150:
            failures.append(input_ids.numel())
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return body(input_ids=input_ids, **options)

    monkeypatch.setattr(lm, "body", scarce)
    found = read(lm, tmp_path / "pieces")
    assert failures
    for layer, moment in found.items():
        torch.testing.assert_close(moment.matrix, expected[layer].matrix, rtol=1e-10, atol=1e-12)
        assert moment.tokens == expected[layer].tokens


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_products_in_bands_of_rows_make_the_whole_symmetric_matrix(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", rows)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(5, 8, generator=generator), torch.randn(7, 8, generator=generator)
    total = torch.zeros(8, 8, dtype=torch.float64)
    for keys in (first, second):
        add_products(total, keys)
    assert mirror(total) is total
    assert torch.equal(total, total.T)
    both = torch.cat([first, second]).double()
    torch.testing.assert_close(total, both.T @ both, rtol=1e-14, atol=1e-14)


def test_a_second_call_reads_the_cache_and_a_new_layer_is_computed_alone(tmp_path: Path, passes: list[int]) -> None:
    lm = tiny("llama")
    first = read(lm, tmp_path)
    assert torch.equal(read(lm, tmp_path)[3].matrix, first[3].matrix)
    assert len(passes) == 1
    read(lm, tmp_path, layers=(1, 2, 3))
    assert len(passes) == 2
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["truncate", "flip", "swap", "empty"])
def test_a_damaged_or_foreign_entry_is_computed_again_and_never_used(
    damage: str, tmp_path: Path, passes: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    lm = tiny("llama")
    right = read(lm, tmp_path, layers=(1,))[1].matrix
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 255]) + content[-4:])
    elif damage == "swap":
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        save_file(load_file(path), path, {**header, "layer": "2"})
    else:
        path.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(read(lm, tmp_path, layers=(1,))[1].matrix, right)
    assert len(passes) == 2
    assert "computed again" in caplog.text
    read(lm, tmp_path, layers=(1,))
    assert len(passes) == 2


def test_whatever_the_keys_depend_on_is_part_of_the_cache_key(tmp_path: Path, passes: list[int]) -> None:
    read(tiny("llama"), tmp_path, layers=(2,))
    read(tiny("llama", seed=1), tmp_path, layers=(2,))
    read(tiny("llama", dtype=torch.float64), tmp_path, layers=(2,))
    read(tiny("llama"), tmp_path, layers=(1,))
    read(tiny("llama"), tmp_path, layers=(2,), tokens=150)
    SecondMoment.read(tiny("llama"), (2,), corpus_from(DOCUMENTS[1:]), 200, tmp_path)
    assert len(passes) == 6
    read(tiny("llama", bos=True), tmp_path, layers=(2,))
    assert len(passes) == 7
    read(tiny("llama"), tmp_path, layers=(2,))
    assert len(passes) == 7


def test_an_edit_below_changes_the_fingerprint_and_an_edit_above_does_not() -> None:
    lm = tiny("gpt2")
    before = fingerprints(lm, [1, 3])
    lm.weight(2)[0, 0] += 1
    after = fingerprints(lm, [1, 3])
    assert after[1] == before[1]
    assert after[3] != before[3]


def test_a_short_corpus_is_read_to_its_end_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny("llama")
    with caplog.at_level(logging.WARNING):
        found = SecondMoment.read(lm, (1,), corpus_from(["Two words."]), 500, tmp_path)
    assert 0 < found[1].tokens < 500
    assert "ended after" in caplog.text


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no text"):
        SecondMoment.read(tiny("llama"), (1,), corpus_from([" ", ""]), 10, tmp_path)


def test_a_disk_that_takes_no_cache_does_not_stop_the_work(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert read(tiny("llama"), occupied / "cache")[1].tokens == 200
    assert "not kept for the next time" in caplog.text


def test_a_file_and_the_same_documents_give_the_same_moment(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(SENTENCES), "utf-8")
    lm = tiny("gpt2")
    one = SecondMoment.read(lm, (1,), corpus_from(path), 100, tmp_path / "a")
    other = SecondMoment.read(lm, (1,), corpus_from(list(SENTENCES)), 100, tmp_path / "b")
    assert torch.equal(one[1].matrix, other[1].matrix)


def test_a_model_whose_keys_are_all_zero_is_called_broken(tmp_path: Path) -> None:
    lm = tiny("llama")
    lm.mlp(1).up_proj.weight.data.zero_()
    with pytest.raises(FloatingPointError, match="all keys of layer 1 are zero on the corpus; the model is broken"):
        read(lm, tmp_path)
