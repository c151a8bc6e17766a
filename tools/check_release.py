#!/usr/bin/env python3
"""Check that the version, the heading in CHANGELOG.md and the tag of a release agree.

The version stands in detector/__init__.py only. Without --tag, the tag of the checked-out commit is
compared if there is one. Needs only Python itself.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = "example:\n  python tools/check_release.py --tag v0.2.0"


def version_of(root: Path) -> str:
    """Return the version of the package in a checkout."""
    found = re.search(r'^__version__ = "(.+)"$', (root / "detector/__init__.py").read_text(), re.MULTILINE)
    return found[1] if found else "none"


def tags_of(root: Path) -> list[str]:
    """Return the tags of the checked-out commit."""
    command = ["git", "-C", str(root), "tag", "--points-at", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


def problems_of(root: Path, tags: list[str]) -> list[str]:
    """Return what prevents a release, one sentence each."""
    version = version_of(root)
    heading = re.search(r"^## .*$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    first = heading[0] if heading else "nothing"
    problems = []
    if not re.fullmatch(rf"## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", first):
        problems.append(f"CHANGELOG.md begins with {first!r}, not with '## {version} (YEAR-MONTH-DAY)'")
    if tags and f"v{version}" not in tags:
        problems.append(f"the tag is {', '.join(tags)}, but detector/__init__.py has version {version}")
    return problems


def main() -> int:
    """Return 0 if everything agrees, 1 if not."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tag", help="the tag that is to be published")
    arguments = parser.parse_args()
    problems = problems_of(ROOT, [arguments.tag] if arguments.tag else tags_of(ROOT))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(f"version {version_of(ROOT)} and CHANGELOG.md agree")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
