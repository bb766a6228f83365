"""Files to facts: our own format and the published ones, and a small set of facts to try things on."""

from factpatch.data.files import demo_facts, load_facts, save_facts
from factpatch.data.reading import DataFileError

__all__ = ["DataFileError", "demo_facts", "load_facts", "save_facts"]
