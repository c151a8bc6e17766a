#!/usr/bin/env python3
"""Draw how one region is pooled by Caffe's, the exact, the partition and SPP-net's rule, side by side."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, draw

if __name__ == "__main__":
    cli.run(draw.main)
