#!/usr/bin/env python3
"""Fit a new head on the stored region features of a run: for other labels, classes or kinds of heads."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, refit

if __name__ == "__main__":
    cli.run(refit.main)
