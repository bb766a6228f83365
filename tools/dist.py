"""Build the source archive and the wheel of the last commit, with a README that a package index can show.

An index shows the README away from the repository, where relative links lead nowhere. In the archive they begin with
--address, the address of the repository's files on the web. Without an address their text stays, unlinked.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"!?\[([^]]+)\]\((?![a-z]+:|#)([^)\s]+)\)")
"""A link or a picture, of which the words stay: an index shows no picture of the repository."""


def for_index(readme: str, address: str) -> str:
    """Return a README without relative links: they begin with `address`, or become plain text where it is empty."""
    return LINK.sub(rf"[\1]({address.rstrip('/')}/\2)" if address else r"\1", readme)


def main() -> None:
    """Export the last commit, replace its README, and run `python -m build` there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="", help="such as https://HOST/OWNER/factpatch/blob/v0.2.0")
    address = parser.parse_args().address
    exported = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(exported)) as archive:
            archive.extractall(folder, filter="data")
        readme = Path(folder, "README.md")
        readme.write_text(for_index(readme.read_text("utf-8"), address), "utf-8")
        subprocess.run([sys.executable, "-m", "build", "--outdir", str(ROOT / "dist"), folder], check=True)


if __name__ == "__main__":
    main()
