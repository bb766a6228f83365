"""Whether the packages are there that runs are measured, drawn and reported with."""

from __future__ import annotations

from importlib.util import find_spec

# By the name under which a package is imported: how pip calls it.
PACKAGES = {
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "sklearn": "scikit-learn",
}


def check_extra(what: str) -> None:
    """Raise ImportError unless the packages of the extra `runs` are installed.

    Args:
        what: What they are needed for, as "a run".
    """
    absent = [package for name, package in PACKAGES.items() if find_spec(name) is None]
    if absent:
        raise ImportError(f"{what} needs {', '.join(absent)}; pip install 'factpatch[runs]'.")
