#!/usr/bin/env python3
"""Make a checkpoint smaller and faster: fc6 and fc7 by truncated SVD, with ranks given or searched for."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, compress

if __name__ == "__main__":
    cli.run(compress.main)
