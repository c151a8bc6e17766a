#!/usr/bin/env python3
"""Train a detector as a config describes, evaluate it, and write everything into one folder."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, train

if __name__ == "__main__":
    cli.run(train.main, together=True)
