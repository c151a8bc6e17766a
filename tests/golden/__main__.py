"""Compare the golden loss curves with what this code computes, or renew them.

python -m tests.golden                        compare all of them, and change nothing
python -m tests.golden --renew quickstart     store the losses as they are now
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.golden import RUNS, Golden, differences, largest, measure, read, write


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if everything is as stored or was renewed, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default all: {', '.join(RUNS)}")
    parser.add_argument("--renew", action="store_true", help="store the losses that are measured now")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.names) - RUNS.keys())
    if unknown:
        parser.error(f"no golden curve {', '.join(unknown)}; there are {', '.join(RUNS)}")
    with TemporaryDirectory() as folder:
        states = [check(RUNS[name], Path(folder), renew=given.renew) for name in given.names or RUNS]
    if not all(states):
        print("nothing was stored; if the change is intended, give --renew and say in the commit why")
    return int(not all(states))


def check(golden: Golden, place: Path, *, renew: bool) -> bool:
    """Print how the losses differ from the stored ones; return whether they agree or were renewed."""
    reason = golden.cannot_run()
    if reason is not None:
        print(f"{golden.name}: skipped: {reason}")
        return True
    found = measure(golden, place)
    if not golden.path.exists():
        print(f"{golden.name}: not stored yet")
        lines = ["new"]
    else:
        stored = read(golden)
        lines = differences(golden, stored, found)
        for line in lines:
            print(f"{golden.name}: {line}")
        if stored.keys() == found.keys():
            outcome = f"{len(lines)} outside of the tolerances" if lines else "as stored"
            print(
                f"{golden.name}: {outcome}; the largest relative difference is {largest(stored, found):.1e}"
            )
    if renew:
        write(golden, found)
        print(f"{golden.name}: stored in {golden.path}")
    return renew or not lines


if __name__ == "__main__":
    sys.exit(main())
