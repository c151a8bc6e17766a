#!/usr/bin/env python3
"""Compute the features of a split's regions, and keep them on the disk for fast training of classifiers."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, embed

if __name__ == "__main__":
    cli.run(embed.main, together=True)
