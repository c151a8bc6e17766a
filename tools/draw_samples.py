#!/usr/bin/env python3
"""Draw training samples of a config as the network will see them, with their objects and proposals."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, samples

if __name__ == "__main__":
    cli.run(samples.main)
