#!/usr/bin/env python3
"""Run a suite of ablations of one config and print its table beside the paper's."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import ablate, cli

if __name__ == "__main__":
    cli.run(ablate.main)
