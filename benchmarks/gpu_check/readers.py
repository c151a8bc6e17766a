"""What other programs print, turned into results."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

from benchmarks.gpu_check.result import Result

NAMED = 40
"""At most this many failing tests are listed."""


def read_pytest(log: str, result: Result) -> None:
    """Take the counts from pytest's last lines, and the failing tests from every line that names one.

    If a process of pytest crashed, only the line that was printed after a test names it.
    """
    counts = {
        word.rstrip("s"): int(number)
        for number, word in re.findall(
            r"(\d+) (passed|failed|skipped|errors?|xfailed|xpassed)\b", tail(log, 5)
        )
    }
    seconds = re.findall(r" in ([\d.]+)s", tail(log, 5))
    if not counts:
        result.fault("pytest printed no summary")
        return
    seconds_taken = float(seconds[-1]) if seconds else None
    result.row("Tests", {**{"passed": 0, "failed": 0}, **counts, "seconds": seconds_taken})
    failing = re.findall(r"^(?:\[gw\d+\] \[ *\d+%\] )?(?:FAILED|ERROR) (\S.*)$", log, re.MULTILINE)
    named = {line.split(" - ")[0].strip(): line for line in failing}  # the last is the one with the reason
    for line in list(named.values())[:NAMED]:
        result.fault(line.strip()[:300])


def read_sanitizer(log: str, result: Result) -> None:
    """Take the summary of compute-sanitizer and the last lines of the program that it ran."""
    summaries = re.findall(r"^=+ (\w+ SUMMARY: .*)$", log, re.MULTILINE)
    for line in summaries:
        result.note(line)
        numbers = [int(number) for number in re.findall(r"(\d+) (?:errors?|hazards?)", line)]
        if any(numbers) or not numbers:
            result.fault(line)
    if not summaries:
        result.fault("compute-sanitizer printed no summary")
    read_fuzz("\n".join(line for line in log.splitlines() if not line.startswith("=====")), result)


def read_fuzz(log: str, result: Result) -> None:
    """Keep the last lines of the random calls, which summarize them."""
    for line in tail(log, 3).splitlines():
        result.note(line[:400])


def read_quick_start(folder: Path, result: Result) -> None:
    """Take the metrics of a run from its metrics.json."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        result.fault(f"the quick start left no metrics: {error}")
        return
    flat = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    result.row("Quick start", dict(list(flat.items())[:12]))


_NCU_COLUMNS = {
    "Duration": "us",
    "Registers Per Thread": "registers",
    "Theoretical Occupancy": "possible occupancy %",
    "Achieved Occupancy": "occupancy %",
    "Compute (SM) Throughput": "SM %",
    "DRAM Throughput": "DRAM %",
    "L2 Cache Throughput": "L2 %",
    "Waves Per SM": "waves",
}
_MICROSECONDS = {"second": 1e6, "s": 1e6, "msecond": 1e3, "ms": 1e3, "usecond": 1.0, "us": 1.0}
_MICROSECONDS |= {"nsecond": 1e-3, "ns": 1e-3}


def read_ncu(text: str, result: Result) -> None:
    """Add one row per kernel from Nsight Compute's CSV, which has one line per kernel and metric."""
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        result.fault("Nsight Compute wrote no table: " + " ".join(lines[-3:])[:300])
        return
    kernels: dict[str, dict[str, object]] = {}
    for line in csv.DictReader(lines[start:]):
        name = line.get("Metric Name") or ""
        kernel = kernels.setdefault(
            line.get("ID") or "", {"kernel": short_name(line.get("Kernel Name") or "")}
        )
        kernel["grid"], kernel["block"] = line.get("Grid Size"), line.get("Block Size")
        if name in _NCU_COLUMNS:
            kernel[_NCU_COLUMNS[name]] = metric(line.get("Metric Value") or "", line.get("Metric Unit") or "")
    for row in kernels.values():
        result.row("Kernels, by Nsight Compute", row)


def metric(value: str, unit: str) -> float | str:
    """Return a number from Nsight Compute, a time in microseconds."""
    try:
        return float(value.replace(",", "")) * _MICROSECONDS.get(unit, 1.0)
    except ValueError:
        return value


def short_name(kernel: str) -> str:
    """Return a kernel's name with its template parameters, without namespaces and arguments."""
    short = re.sub(r"\b(?:detector|c10)::|(?:\(anonymous namespace\)|<?unnamed>)::", "", kernel)
    return short.removeprefix("void ").split("(")[0][:70]


def tail(log: str, lines: int) -> str:
    """Return the last lines that are not empty."""
    return "\n".join([line for line in log.splitlines() if line.strip()][-lines:])
