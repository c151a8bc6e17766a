"""Output of the tools: results, notes, and progress as a bar on a terminal or as plain lines in a file.

Names and texts from files are made printable (`detector.core.errors.printable`) and never read as rich's
markup.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from detector.core.command_line import as_called
from detector.core.errors import printable, printable_lines

Item = TypeVar("Item")
ReportProgress = Callable[[int, int], None]
"""A function that is called with the number of items done and the number of all items."""

_EVERY = 30.0

console = Console(stderr=True)
"""Progress and notes go to standard error; standard output is only for results."""


_rank = 0
_muted = False


def speak_as(rank: int) -> None:
    """Let this process, of a training with several, print as ``rank``: only rank 0 prints all.

    Another process prints only warnings, and names its rank in them.
    """
    global _rank
    _rank = rank


def speaker() -> str:
    """Return what a warning or an error of this process begins with: nothing in rank 0."""
    return f"rank {_rank}: " if _rank else ""


@contextmanager
def said_once() -> Iterator[None]:
    """Let only rank 0 print inside the block, in which every process does the same."""
    global _muted
    before, _muted = _muted, True
    try:
        yield
    finally:
        _muted = before


def note(text: str) -> None:
    """Print one line about what is happening."""
    if _rank and (_muted or not text.startswith("warning")):
        return
    text = f"{speaker()}{text}"
    console.print(
        printable_lines(as_called(text)), markup=False, highlight=False, soft_wrap=True, emoji=False
    )


def show(result: str | Table) -> None:
    """Print a result to standard output: lines of text, or a table whose names are `Text`, not markup."""
    if _rank:
        return
    if isinstance(result, str):
        print(printable_lines(result), flush=True)
    else:
        Console().print(result)


def _draws_bars() -> bool:
    return console.is_terminal and not _rank


def track(items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    """Yield ``items`` and show a bar with counts, elapsed time and ETA if there is a terminal."""
    if not _draws_bars():
        yield from items
        return
    with _bar() as bar:
        task = bar.add_task(printable(description), total=total, metrics="")
        for item in items:
            yield item
            bar.advance(task)


@contextmanager
def progress_bar(description: str) -> Iterator[ReportProgress]:
    """Provide a function that shows progress: by a bar on a terminal, otherwise a line every 30 seconds."""
    if not _draws_bars():
        yield _lines(description)
        return
    with _bar() as bar:
        task = bar.add_task(printable(description), total=None, metrics="")
        yield lambda done, total: bar.update(task, completed=done, total=total)
        if bar.tasks[task].total is None:
            bar.remove_task(task)  # there was nothing to do


@contextmanager
def frame_progress(description: str, total: int | None) -> Iterator[Callable[[int, str], None]]:
    """Provide a function that shows how many frames are done, of ``total`` if that is known, and a text.

    It prints lines like those of `progress_bar` where there is no terminal.
    """
    if not _draws_bars():
        printed = time.monotonic()

        def report(done: int, text: str) -> None:
            nonlocal printed
            if time.monotonic() - printed >= _EVERY:
                printed = time.monotonic()
                note(f"{description}: {done}{'' if total is None else f' of {total}'} frames, {text}")

        yield report
        return
    with _bar() as bar:
        task = bar.add_task(printable(description), total=total, metrics="")
        yield lambda done, text: bar.update(
            task, completed=done, metrics=text if total is not None else f"{done} frames  {text}"
        )


def _lines(description: str) -> ReportProgress:
    """Return a function that prints items done, items per second and time left every ``_EVERY`` seconds."""
    started = printed = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed >= _EVERY and done:
            printed = now
            rate = done / (now - started)
            left = (total - done) / rate / 60
            note(f"{description}: {done} of {total}, {rate:.3g} per second, {left:.1f} min left")

    return report


class _Count(MofNCompleteColumn):
    """Items done and all items, once both are known."""

    def render(self, task: Task) -> Text:
        return Text("") if task.total is None else super().render(task)


class TrainingProgress:
    """The bar of a training run with its latest metrics; without a terminal, one line per record."""

    def __init__(self, steps: int, step: int) -> None:
        self.steps = steps
        self._bar = _bar()
        self._task = self._bar.add_task("training", total=steps, completed=step, metrics="")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._bar.disable:
            self._bar.stop()

    def step(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def record(self, record: Mapping[str, float]) -> None:
        """Show a record's loss, speed and learning rate."""
        metrics = (
            f"loss {record['loss']:.4f}  {record['images_per_second']:.2f} img/s  "
            f"lr {record['learning_rate']:.2g}"
        )
        if "peak_gpu_memory_mib" in record:
            metrics += f"  GPU {record['peak_gpu_memory_mib']:.0f} MiB"
        self._bar.update(self._task, metrics=metrics)
        if self._bar.disable:
            left = (self.steps - record["step"]) * record["seconds_per_step"]
            note(f"step {record['step']:.0f}/{self.steps}  {metrics}  {left / 60:.1f} min left")


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Count(),
        TextColumn("{task.fields[metrics]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        disable=not _draws_bars(),
    )
