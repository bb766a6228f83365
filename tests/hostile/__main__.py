"""python -m tests.hostile [--parts patches,sessions:kills+signals] [--scale 0.1] [--seed 1] [--out FILE]"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.hostile.common import Place, prepare
from tests.hostile.parts import PARTS, tried


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description="Try hostile input on factpatch.")
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ", ".join(PARTS) + "; as PART:SECTION+SECTION")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="the share of the random cases")
    parser.add_argument("--work", type=Path, help="a folder for what is made; a temporary one by default")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    place = Place(options.work or Path(tempfile.mkdtemp(prefix="hostile-")), options.seed, options.scale)
    prepare(place)
    kept, defects = {}, 0
    print(f"{'group':<44}{'tried':>8}{'clear':>8}{'valid':>8}{'defect':>8}")
    for part in options.parts.split(","):
        begun = time.monotonic()
        tally = tried(part, place)
        for name, counts in [*tally.counts.items(), (f"{part}, {time.monotonic() - begun:.0f} s", tally.total())]:
            print(f"{name:<44}" + "".join(f"{counts[outcome]:>8}" for outcome in ("tried", "clear", "valid", "defect")))
        for kind, seen in tally.defects.items():
            print(f"    defect: {kind} ({seen['count']} times), such as {seen['what']}")
        print(flush=True)
        kept[part] = tally.to_dict()
        defects += tally.total()["defect"]
        if options.out is not None:
            options.out.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
