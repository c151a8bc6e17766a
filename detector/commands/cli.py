"""What the command-line tools share: their common arguments, exit status and error line."""

from __future__ import annotations

import argparse
import gc
import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from detector.core.command_line import as_called
from detector.core.errors import InputError
from detector.core.files import write_text
from detector.core.machine import use_huge_pages, wait_without_spinning
from detector.core.progress import note, speak_as, speaker

# The tools import this module before torch.
wait_without_spinning()
use_huge_pages()
if "WORLD_SIZE" in os.environ:  # started by torchrun
    # Each process would advise against an option that `detector.core.distributed.data_parallel` needs.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

_BEFORE_END = 3.0
"""Seconds after which a process ends that has lost another one. ``torchrun`` then knows which ended first."""
_OUT_OF_MEMORY = (
    "out of memory; lower the scales, max_size, train.images_per_batch or model.roi_chunk, or cut very large "
    "images into tiles"
)
_FILE_OPTIONS = {"--config": (".yaml", ".yml"), "--data": (".yaml", ".yml"), "--checkpoint": (".pt", ".pth")}
"""Options that are easily forgotten before their file, and the suffixes of such files."""


class Parser(argparse.ArgumentParser):
    """A parser that takes every negative number as a value, and names the option that a file belongs to."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")  # argparse's own

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = [str(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(args, namespace)

    def parse_known_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        namespace, rest = super().parse_known_intermixed_args(args, namespace)
        if "config" in namespace and namespace.config is None:
            for hint in _bare_files(getattr(namespace, "overrides", []), ["--config"]):
                self.error(hint)
        if not rest and getattr(namespace, "print_config", False):
            self._print_config(namespace)
        return namespace, rest

    def _print_config(self, namespace: argparse.Namespace) -> NoReturn:
        from detector.config.resolved import resolved_yaml

        if namespace.config is None:
            self.error("--print-config needs --config")
        sys.stdout.write(resolved_yaml(namespace.config, namespace.overrides))
        self.exit()

    def format_help(self) -> str:
        return as_called(super().format_help())

    def error(self, message: str) -> NoReturn:
        if "required" in message:
            wanted = [option for option in _FILE_OPTIONS if option in message]
            message = "; ".join([message, *_bare_files(self._given, wanted)])
        super().error(message)


def _bare_files(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return a hint for each of the ``options`` whose kind of file is among the command line's ``words``."""
    hints = []
    for option in options:
        files = [word for word in words if Path(word).suffix in _FILE_OPTIONS[option] and "=" not in word]
        hints += [f"write {option} {files[0]}"] if files else []
    return hints


def make_parser(description: str, example: str) -> Parser:
    """Return a parser whose help ends with a worked example."""
    return Parser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add ``--config``, ``--print-config`` and the trailing ``key=value`` overrides."""
    parser.add_argument(
        "--config",
        required=required,
        help="experiment config: a YAML file, or the name of a shipped one such as quickstart",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the config with the origin of each value, as a file that can be loaded again, and exit",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config values to replace, e.g. train.steps=100"
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help='"auto" (a GPU if one can be used), "cpu", "cuda", "cuda:1"'
    )


def add_overrides_argument(parser: argparse.ArgumentParser, what: str = "replace config values") -> None:
    """Add ``--set key=value``, which may be repeated and becomes ``overrides``; ``what`` is its help."""
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="key=value", help=what
    )


def add_checkpoint_argument(
    parser: argparse.ArgumentParser, what: str = "", *, required: bool = True
) -> None:
    """Add ``--checkpoint``, which `checkpoint_file` reads; ``what`` is the beginning of its help."""
    parser.add_argument(
        "--checkpoint",
        required=required,
        metavar="RUN_OR_FILE",
        help=f"{what}a checkpoint, or the folder of a run: its best.pt, or without one its last step_N.pt",
    )


def add_precision_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--precision``; `precision_override` makes an override of it."""
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "int8", "float16"),
        help="numbers that the network computes with; int8 is for CPUs, float16 for GPUs (default: "
        "test.precision, which is float32 unless the config says otherwise)",
    )


def precision_override(arguments: argparse.Namespace) -> list[str]:
    """Return the override of ``test.precision`` that ``--precision`` asks for, in a list, or an empty one."""
    return [] if arguments.precision is None else [f"test.precision={arguments.precision}"]


def checkpoint_file(place: str | Path) -> Path:
    """Return the checkpoint that ``place`` of --checkpoint names: a file, or that of a run's folder.

    This is best.pt. A run that compares no checkpoints, such as one with train.head_only, has none; then it
    is the step_N.pt of the most steps, and a note says so.

    Raises:
        InputError: a folder with neither.
    """
    place = Path(place)
    if not place.is_dir():
        return place
    best = place / "checkpoints" / "best.pt"
    if best.is_file():
        return best

    from detector.engine.checkpoint import numbered_checkpoints

    numbered = numbered_checkpoints(best.parent)
    if not numbered:
        raise InputError(
            f"--checkpoint {place}: the folder has no checkpoints/best.pt and no checkpoints/step_N.pt; name "
            "the folder of a run, or a checkpoint"
        )
    note(f"{place} has no best.pt; taking its last checkpoint, {numbered[-1].name}")
    return numbered[-1]


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or the GPU has too little memory; torch reports it only in its message."""
    messages = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(message in str(error) for message in messages)


def run(main: Callable[[], int | None], *, together: bool = False) -> None:
    """Run a tool's ``main`` and exit: 0, what it returns, 2 for bad input, 130 for Ctrl-C.

    ``together`` says whether the tool can share its work among the processes of ``torchrun``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal or file without Unicode shows escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(handlers=[_Warnings()])
    try:
        if not together:
            require_one_process("this tool")
        speak_as(int(os.environ.get("RANK", "0")))  # errors before the processes join say whose they are
        status = main() or 0
    except InputError as error:
        message = as_called(f"{speaker()}error: {error}")
        if not (speaker() and getattr(error, "in_every_process", False)):  # rank 0 says it for all
            print(message, file=sys.stderr)
        _report_to_torchrun(message)
        status = 2
    except KeyboardInterrupt:
        if not speaker():
            print("interrupted", file=sys.stderr)
        status = 130
    except (MemoryError, RuntimeError) as error:
        if type(error).__name__ == "ProcessLost":  # its module would import torch
            _end_at_once(f"{speaker()}error: {error}")
        if not _is_out_of_memory(error):
            raise
        first = str(error).splitlines()[0] if str(error) else ""
        print(f"{speaker()}error: {_OUT_OF_MEMORY}: {first}", file=sys.stderr)
        status = 2
    gc.freeze()  # else a last search for cycles among all objects of torch takes up to a second
    sys.exit(status)


def require_one_process(what: str) -> None:
    """Raise InputError, in rank 0, where ``torchrun`` has started several processes; the others just end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    if os.environ.get("RANK", "0") != "0":
        sys.exit(0)  # another status would make torchrun end rank 0 before it has said anything
    raise InputError(
        f"{what} works in one process: start it with python instead of torchrun; training, evaluating a "
        "checkpoint, making proposals and storing region features can use several"
    )


def _report_to_torchrun(message: str) -> None:
    """Let the summary of ``torchrun``, if it started this process, show the message of an error.

    The file has the form that torch's own ``ErrorHandler`` writes, with the message for the traceback.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        write_text(Path(path), json.dumps({"message": {"message": message, "extraInfo": extra}}))


def _end_at_once(message: str) -> NoReturn:
    """End the process without waiting for GPUs or threads, which may wait for a process that is gone."""
    print(message, file=sys.stderr, flush=True)
    time.sleep(_BEFORE_END)
    os._exit(1)


@contextmanager
def processes(device: str) -> Iterator[str]:
    """Join the processes of ``torchrun``, if it started this one, and give the device of this process.

    ``device`` is the value of ``--device``.
    """
    from detector.core.distributed import joined
    from detector.factory.resources import choose_device

    chosen = choose_device(device)
    with joined(chosen):
        yield chosen


class _Warnings(logging.Handler):
    """Shows what the library logs as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(f"{record.levelname.lower()}: {record.getMessage()}")
