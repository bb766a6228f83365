"""Facts that a model can be edited on and asked about."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.editors import CONTEXTS
from tests.lab.analysis.tiny import FACTS
from tests.models import tiny

from factpatch import Fact, Neighbor
from factpatch.evaluation.verify import usable


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_facts_that_cannot_be_edited_or_asked_are_left_out_and_named(family: str) -> None:
    lm = tiny(family)
    again = replace(FACTS[0], id="again", target_new="Finnish")
    long = Fact("The capital of {} is", "Finland " * 300, "Rome")
    paraphrased = replace(FACTS[1], id="paraphrased", prompt="{} does", paraphrases=("Messi " * 300,))
    near = replace(FACTS[1], id="near", prompt="{} is", neighbors=(Neighbor("Rome " * 300, "Paris"),))
    kept, reasons = usable(lm, [*FACTS, again, long, paraphrased, near], CONTEXTS)
    assert tuple(kept) == FACTS
    assert len(reasons) == 4
    assert reasons[0].startswith("left out: again: 'The mother tongue of Danielle Darrieux is'")
    assert "an earlier fact asks the same" in reasons[0]
    assert all("tokens" in reason for reason in reasons[1:])
    with pytest.raises(ValueError, match="none of the 1 facts can be edited; the first is left out"):
        usable(lm, [long], CONTEXTS)
