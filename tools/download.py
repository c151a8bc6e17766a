#!/usr/bin/env python3
"""Download data sets and published weights, verified, to where the configs look for them."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, download

if __name__ == "__main__":
    cli.run(download.main)
