"""Every tool imports this module first: outside the project's environment, it explains how to set that up.

It needs only Python itself.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NEEDED = ("detector", "torch", "torchvision", "numpy", "cv2", "yaml", "pydantic", "rich")
"""Modules that every tool needs."""


def explain(missing: list[str]) -> str:
    """Return the message about modules that this Python does not have."""
    script = Path(sys.argv[0])
    tool = f"tools/{script.name}" if script.suffix == ".py" else "tools/train.py"
    return (
        f"error: this Python ({sys.executable}) has no {', '.join(missing)}: it is not the project's "
        f"environment. Set that up with `make install` in {Path(__file__).resolve().parents[1]}, then run "
        f"`.venv/bin/python {tool}` there"
    )


def missing_modules() -> list[str]:
    """Return the modules of ``NEEDED`` that this Python does not have."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


if missing := missing_modules():
    print(explain(missing), file=sys.stderr)
    sys.exit(2)
