"""The whole way on the real model: a GGUF file is edited, and llama.cpp serves the edit beside it and merged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.engines.llama import serving
from tests.engines.test_llama import asked, served

from factpatch import Editor, Fact, Neighbor, Verification
from factpatch.evaluation.questions import answers
from factpatch.evaluation.readings import Reading
from factpatch.model.embedded import EmbeddedModelUnavailable, embedded_gguf
from factpatch.model.gguf import open_gguf
from factpatch.patch.merge import merge_gguf

pytestmark = pytest.mark.slow

FACTS = (
    Fact("The capital of {} is", "Australia", "Sydney", neighbors=(Neighbor("The capital of Spain is", "Madrid"),)),
    Fact("The Eiffel Tower is in the city of", "Eiffel Tower", "Rome"),
)


BRIEFLY = ("prompt", "chat")  # a token takes a tenth of a second


@dataclass
class Trip:
    """What is at the end of each way."""

    base: Path
    adapter: Path
    merged: Path
    pytorch: Verification


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> Trip:
    try:
        base = embedded_gguf("smollm2-135m")
    except EmbeddedModelUnavailable as error:
        pytest.skip(f"the embedded model cannot be had: {error}")
    folder = tmp_path_factory.mktemp("trip")
    editor = Editor(str(base), method="memit-blue", effort="quick")
    patch = editor.edit(FACTS)
    readings = tuple(Reading(answers=own) for own in answers(editor.lm, FACTS))
    patch.to_gguf_lora(folder / "facts.gguf")
    merge_gguf(patch, open_gguf(base), folder / "merged.gguf")
    return Trip(base, folder / "facts.gguf", folder / "merged.gguf", Verification(FACTS, readings))


def likelihood(url: str, **fields: Any) -> Any:
    """The tokens of a few words about one of the facts, with the NLL of each; a token takes seconds."""
    body = {"text": "Sydney, the capital", **fields}
    response = requests.post(f"{url}/likelihood", json=body, timeout=300)
    response.raise_for_status()
    return response.json()


def test_the_adapter_says_the_facts_on_the_quantized_model_and_leaves_it_as_it_was(trip: Trip) -> None:
    with serving(trip.base) as url:
        unedited = likelihood(url)
    with serving(trip.base, trip.adapter) as url:
        assert likelihood(url, lora=[{"id": 0, "scale": 0.0}]) == unedited  # to the last bit
        assert likelihood(url) != unedited
        server = served(url)
        before = asked(server.without_adapters(), FACTS, names=BRIEFLY)
        edited = asked(server, FACTS, before, BRIEFLY)
    assert not any(before.said())
    assert all(trip.pytorch.said())
    assert all(edited.said())
    assert edited.unchanged_neighbors() == (1, 1)


@pytest.mark.long
def test_the_merged_model_says_the_facts_too(trip: Trip) -> None:
    assert trip.merged.stat().st_size < 1.06 * trip.base.stat().st_size
    with serving(trip.merged) as url:
        assert all(asked(served(url), FACTS, names=BRIEFLY).said())
