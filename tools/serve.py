#!/usr/bin/env python3
"""Show a trained detector in the browser, and detect objects for other programs over HTTP."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, serve

if __name__ == "__main__":
    cli.run(serve.main)
