#!/usr/bin/env python3
"""Write what a detector finds in a split as annotations in VOC layout, to train another detector on them."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, pseudo_label

if __name__ == "__main__":
    cli.run(pseudo_label.main)
