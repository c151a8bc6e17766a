"""What the command-line tools share: their common arguments, exit status and error line."""

from __future__ import annotations

import argparse
import io
import logging
import sys
import time
from collections.abc import Callable

from detector.errors import InputError
from detector.progress import note

_STARTED = time.perf_counter()


def seconds() -> float:
    """Return the seconds since about when the process began."""
    return time.perf_counter() - _STARTED


def make_parser(description: str, example: str) -> argparse.ArgumentParser:
    """Return a parser whose help ends with a worked example."""
    return argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add ``--config`` and the trailing ``key=value`` overrides."""
    parser.add_argument("--config", required=required, help="experiment config, a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config values to replace, e.g. train.steps=100"
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help='"auto" (a GPU if one can be used), "cpu" or "cuda"')


def choose_device(name: str) -> str:
    """Return the device for ``name``; "auto" is a GPU where there is one and the CUDA kernels were built.

    Raises:
        InputError: no such device on this machine, or no kernels for it.
    """
    import torch

    from detector.ops import cuda_kernels_missing

    missing = cuda_kernels_missing()
    if name == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        if missing is not None:
            print(f"note: the GPU is not used: {missing}", file=sys.stderr)
        return "cuda" if missing is None else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not usable here: {str(error).splitlines()[0]}") from None
    if torch.device(name).type == "cuda" and missing is not None:
        raise InputError(f"--device {name}: {missing}")
    return name


def run(main: Callable[[], int | None]) -> None:
    """Run a tool's ``main`` and exit: 0, what it returns, 2 for bad input, 130 for Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal or file without Unicode shows escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(handlers=[_Warnings()])
    try:
        status = main() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


class _Warnings(logging.Handler):
    """Shows what the library logs as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(f"{record.levelname.lower()}: {record.getMessage()}")
