#!/usr/bin/env python3
"""Convert a data set's annotations from VOC layout to COCO's format or back, losing nothing."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, convert

if __name__ == "__main__":
    cli.run(convert.main)
