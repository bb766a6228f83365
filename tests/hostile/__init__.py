"""Hostile input: files that were altered or made on purpose, kills, full disks, others' text, numbers that overflow.

`python -m tests.hostile`, or `make hostile`, tries all of it; `tests/test_hostile.py` tries a sample.
"""
