"""Files to facts: our own format, CounterFact and zsRE, and a small set of facts to try things on."""

from factpatch.data.files import FactFileError, demo_facts, load_facts, save_facts

__all__ = ["FactFileError", "demo_facts", "load_facts", "save_facts"]
