"""Rivals: other ways to teach a model facts, which a run compares the editing methods with."""
