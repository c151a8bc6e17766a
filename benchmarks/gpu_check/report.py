"""The report: report.json, report.md and logs.tar.gz, written again after every part."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.readers import tail
from benchmarks.gpu_check.result import Result, markdown, row_line, write_json
from detector.core.files import atomic_write, write_text

LOG_BYTES = 2 << 20
"""Of a longer log only the beginning and the end are kept."""
TAIL_LINES = 40


@dataclass
class Outcome:
    """How a part ended: "passed", "failed", "timed out", "skipped", "not run" or "interrupted"."""

    name: str
    title: str
    status: str = "not run"
    why: str = ""
    seconds: float | None = None
    limit: float | None = None
    log: Path | None = None
    result: Result = field(default_factory=Result)

    @property
    def bad(self) -> bool:
        return self.status not in ("passed", "skipped")

    def log_text(self) -> str:
        """Return what the part has printed; the middle of a very long text is left out."""
        if self.log is None or not self.log.is_file():
            return ""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        if len(text) <= LOG_BYTES:
            return text
        return f"{text[: LOG_BYTES // 2]}\n... cut ...\n{text[-LOG_BYTES // 2 :]}"

    def values(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in ("name", "title", "status", "why", "seconds", "limit")}
        return {**kept, **self.result.values(), "tail": tail(self.log_text(), TAIL_LINES if self.bad else 5)}

    def text(self) -> str:
        """Return the part as a section of the report."""
        lines = [f"## {self.title}", "", f"{self.name}: {self.headline()}.", ""]
        lines += [f"- {note}" for note in self.result.notes]
        lines += [f"- **fault**: {fault}" for fault in self.result.faults] + [""]
        lines.append(markdown(self.result.tables))
        ending = tail(self.log_text(), TAIL_LINES) if self.bad else ""
        if ending:
            lines += ["    " + line[:240] for line in ending.splitlines()] + [""]
        return "\n".join(lines)

    def headline(self) -> str:
        spent = "" if self.seconds is None else f" after {self.seconds:.0f} of at most {self.limit:.0f} s"
        return self.status + spent + (f" ({self.why})" if self.why else "")


class Report:
    """Writes the files of one check into a folder."""

    def __init__(
        self, folder: Path, machine: dict[str, Any], outcomes: list[Outcome], rehearsal: bool
    ) -> None:
        self.folder, self.machine, self.outcomes, self.rehearsal = folder, machine, outcomes, rehearsal
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, seconds: float) -> None:
        """Write all results so far, ``seconds`` after the check began."""
        values = {"rehearsal": self.rehearsal, "seconds": seconds, "machine": self.machine}
        write_json(
            self.folder / "report.json", {**values, "parts": [each.values() for each in self.outcomes]}
        )
        write_text(self.folder / "report.md", self.text(seconds))
        self._write_logs()

    def text(self, seconds: float) -> str:
        title = "# Rehearsal of the GPU check, on a CPU: its numbers mean nothing" if self.rehearsal else (
            f"# GPU check: {self.machine.get('gpu')}"
        )  # fmt: skip
        facts = ", ".join(f"{name} {value}" for name, value in self.machine.items() if value)
        parts = [title, "", f"{facts}. {seconds:.0f} s in all.", "", self.summary()]
        return "\n".join([*parts, *(each.text() for each in self.outcomes if each.seconds is not None)])

    def summary(self) -> str:
        """Return a table with one row per part."""
        lines = [row_line(["part", "outcome", "seconds", "limit"]), row_line(["---"] * 4)]
        for each in self.outcomes:
            outcome = each.status + (f": {each.why}" if each.why else "")
            times = ["" if value is None else f"{value:.0f}" for value in (each.seconds, each.limit)]
            lines.append(row_line([each.name, outcome, *times]))
        return "\n".join([*lines, ""])

    def _write_logs(self) -> None:
        with (
            atomic_write(self.folder / "logs.tar.gz") as file,
            tarfile.open(fileobj=file, mode="w:gz") as archive,
        ):
            for each in self.outcomes:
                data = each.log_text().encode()
                if data:
                    entry = tarfile.TarInfo(f"{each.name}.log")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
