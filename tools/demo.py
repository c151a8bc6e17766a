#!/usr/bin/env python3
"""Detect objects, or name classes, in your own images with a trained checkpoint; write pictures and JSON."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, demo

if __name__ == "__main__":
    cli.run(demo.main)
