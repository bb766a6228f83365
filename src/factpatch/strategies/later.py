"""Settings that earlier versions did not have."""

LATER = {"later": True}
"""Of a setting that earlier versions did not have. Records leave it out where it has its default, which is what those
versions did, so that their patches, sessions and analyses compare equal."""
