#!/usr/bin/env python3
"""Make proposals for a data set or a folder of images, convert a file of proposals, or describe one."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, propose

if __name__ == "__main__":
    cli.run(propose.main, together=True)
