#!/usr/bin/env python3
"""Write a trained network as ONNX, OpenVINO or torch.export, with a program that runs it, and check it."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, export

if __name__ == "__main__":
    cli.run(export.main)
