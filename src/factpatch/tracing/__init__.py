"""Causal tracing: where in a model facts are stored. Source: ROME (arXiv:2202.05262), section 2."""

from factpatch.tracing.locate import TraceSettings, locate
from factpatch.tracing.prompts import Prompt, load_prompts
from factpatch.tracing.restorations import KINDS
from factpatch.tracing.summary import Summary
from factpatch.tracing.trace import Trace

__all__ = ["KINDS", "Prompt", "Summary", "Trace", "TraceSettings", "load_prompts", "locate"]
