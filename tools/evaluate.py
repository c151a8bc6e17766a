#!/usr/bin/env python3
"""Score a checkpoint on a split of its data set, or score existing result files."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, evaluate

if __name__ == "__main__":
    cli.run(evaluate.main, together=True)
