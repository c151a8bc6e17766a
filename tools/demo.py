#!/usr/bin/env python3
"""Detect objects, or name classes, in your own images, videos or camera with a trained checkpoint."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, demo

if __name__ == "__main__":
    cli.run(demo.main)
