"""The place of `factpatch.statistics.corpus` in earlier versions, for scripts that import it from here."""

from factpatch.statistics.corpus import *  # noqa: F403
