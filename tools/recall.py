#!/usr/bin/env python3
"""Measure how well proposals cover the objects: recall by their number, average recall, overlap by group."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, recall

if __name__ == "__main__":
    cli.run(recall.main)
