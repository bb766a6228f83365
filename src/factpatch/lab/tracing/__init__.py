"""Causal tracing: where in a model facts are stored. Source: ROME (arXiv:2202.05262), section 2."""

from factpatch.lab.tracing.averages import Summary
from factpatch.lab.tracing.locate import TraceSettings, locate
from factpatch.lab.tracing.prompts import Prompt, load_prompts
from factpatch.lab.tracing.restoring import KINDS
from factpatch.lab.tracing.trace import Trace

__all__ = ["KINDS", "Prompt", "Summary", "Trace", "TraceSettings", "load_prompts", "locate"]
