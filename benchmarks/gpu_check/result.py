"""The result of a part: tables, notes and faults, written to a JSON file after every change."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detector.core.files import write_text

PATH_VARIABLE = "GPU_CHECK_RESULT"
"""The environment variable with the path of the file that a part writes its result to."""
DEADLINE_VARIABLE = "GPU_CHECK_DEADLINE"
"""The environment variable with the time at which a part is interrupted, on the clock ``time.monotonic``."""

Row = dict[str, Any]


class Result:
    """Tables by title, each a list of rows; notes for the reader; faults, each of which fails the part.

    The file is replaced as a whole after every change, so that an interrupted part leaves its results so far.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.tables: dict[str, list[Row]] = {}
        self.notes: list[str] = []
        self.faults: list[str] = []

    def row(self, table: str, row: Row) -> None:
        """Add ``row`` to the table of that title and print it."""
        self.tables.setdefault(table, []).append(row)
        print(f"{table}: " + ", ".join(f"{name} {shown(value)}" for name, value in row.items()), flush=True)
        self.save()

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(text, flush=True)
        self.save()

    def fault(self, text: str) -> None:
        self.faults.append(text)
        print(f"FAULT: {text}", flush=True)
        self.save()

    def attempt(self, what: Callable[..., None], *arguments: Any) -> None:
        """Call ``what`` and record an exception as a fault."""
        try:
            what(*arguments)
        except Exception as error:
            traceback.print_exc()
            self.fault(f"{what.__name__}: {type(error).__name__}: {str(error)[:300]}")

    def values(self) -> dict[str, Any]:
        return {"tables": self.tables, "notes": self.notes, "faults": self.faults}

    def save(self) -> None:
        if self.path is not None:
            write_json(self.path, self.values())


def seconds_left() -> float:
    """Return the seconds until this part is interrupted; infinity for a program that is run by itself."""
    deadline = os.environ.get(DEADLINE_VARIABLE)
    return float(deadline) - time.monotonic() if deadline else math.inf


def part_arguments(description: str) -> tuple[argparse.ArgumentParser, Result]:
    """Return a parser with the options that all parts share, and the result that the part fills."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    path = os.environ.get(PATH_VARIABLE)
    return parser, Result(Path(path) if path else None)


def read_result(path: Path) -> Result:
    """Read the result that a part has written; an empty result if it has written nothing."""
    result = Result()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return result
    result.tables, result.notes, result.faults = values["tables"], values["notes"], values["faults"]
    return result


def write_json(path: Path, values: Any) -> None:
    write_text(path, json.dumps(values, indent=1, default=str) + "\n")


def shown(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def markdown(tables: dict[str, list[Row]]) -> str:
    """Return the tables in Markdown, each below its title; columns are in the order of first occurrence."""
    lines: list[str] = []
    for title, rows in tables.items():
        columns = list(dict.fromkeys(name for row in rows for name in row))
        lines += [f"**{title}**", "", row_line(columns), row_line(["---"] * len(columns))]
        lines += [row_line([shown(row.get(name)) for name in columns]) for row in rows] + [""]
    return "\n".join(lines)


def row_line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
