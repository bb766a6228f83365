"""Files to facts: our own format and the published ones, where to get those, and a small set to try things on."""

from factpatch.data.formats import demo_facts, facts_at_hand, load_batches, load_facts, save_facts, saved_facts
from factpatch.data.known import KnownFact, load_known_facts
from factpatch.data.reading import DataFileError
from factpatch.data.references import ReferenceTexts, Tfidf, demo_references
from factpatch.data.sources import DownloadError, fetch, resolve_data

__all__ = [
    "DataFileError",
    "DownloadError",
    "KnownFact",
    "ReferenceTexts",
    "Tfidf",
    "demo_facts",
    "demo_references",
    "facts_at_hand",
    "fetch",
    "load_batches",
    "load_facts",
    "load_known_facts",
    "resolve_data",
    "save_facts",
    "saved_facts",
]
