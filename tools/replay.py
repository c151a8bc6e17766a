#!/usr/bin/env python3
"""Find the first value that was not finite in a training that ended with a loss that was not finite."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, replay

if __name__ == "__main__":
    cli.run(replay.main)
