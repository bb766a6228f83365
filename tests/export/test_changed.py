"""The changed weights alone: with them, an unedited model is the edited one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.export.test_lora import low_rank_patch
from tests.models import FAMILIES, tiny_model

from factpatch.export.changed import write_changed
from factpatch.model.language_model import editable_names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_into_the_unedited_model_they_make_it_the_edited_one(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    patch, out = low_rank_patch({0: 1, 2: 5}, family, dtype), tmp_path / "changed.safetensors"
    edited, plain = tiny_model(family, dtype=dtype), tiny_model(family, dtype=dtype)
    patch.apply(edited)
    names = write_changed(edited, patch.layers, out)
    assert names == [editable_names(plain)[layer] for layer in (0, 2)]
    with safe_open(out, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    changed = load_file(out)
    assert {tensor.dtype for tensor in changed.values()} == {dtype}
    found = plain.load_state_dict(changed, strict=False)
    assert found.unexpected_keys == []
    for name, weight in edited.state_dict().items():
        assert torch.equal(plain.state_dict()[name], weight)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    for name in ("one", "other"):
        write_changed(model, (1, 3), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
