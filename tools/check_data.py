#!/usr/bin/env python3
"""Check a config's whole data set before training: every fault with its file and object, and statistics."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import check, cli

if __name__ == "__main__":
    cli.run(check.main)
