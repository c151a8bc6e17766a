#!/usr/bin/env python3
"""Say in one line what this machine lacks for installing the project. Needs only Python itself."""

import argparse
import shutil
import sys

EXAMPLE = "example:\n  python3 tools/check_machine.py && make install"


def missing_tools() -> list[str]:
    """Return what has to be there before anything can be installed."""
    problems = []
    if sys.version_info < (3, 11):  # noqa: UP036 (this runs before pip could refuse)
        found = ".".join(map(str, sys.version_info[:3]))
        problems.append(f"Python 3.11 or newer is needed, this is {found}; use make PYTHON=python3.11")
    if not (shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")):
        problems.append("a C++ compiler is needed; on Debian and Ubuntu: apt-get install g++")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        problems.append("Python's venv is needed; on Debian and Ubuntu: apt-get install python3-venv")
    return problems


def missing_libraries() -> list[str]:
    """Return why OpenCV cannot be imported; its wheel leaves two system libraries to the machine."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        return [
            f"OpenCV cannot start: {error}. On Debian and Ubuntu: apt-get install libgl1 libglib2.0-0; "
            "on Fedora: dnf install mesa-libGL glib2"
        ]
    return []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imports", action="store_true", help="check the libraries of installed packages")
    problems = missing_libraries() if parser.parse_args().imports else missing_tools()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(2 if problems else 0)
