"""Valid files that a run keeps of itself, for `tests.fuzz_readers`: its log and the records of its stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from detector.build.report import run_series
from detector.engine.run_files import is_run, note_pictures, remove_run
from detector.engine.run_log import RunLog
from detector.errors import InputError
from detector.stages.record import StageRecord, read_record, write_record

REPAIRED = {"run log", "list of pictures"}
"""Kinds of which damaged parts are left out; no reader refuses one of them."""


def record_seeds(folder: Path) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """Write a valid file of every kind below ``folder``; return it by kind, with what reads it."""
    place = folder / "records"
    place.mkdir()
    log = RunLog(place)
    log.write("data", {"step": 0, "images": 4, "dropped_boxes": {"outside": 1}})
    for step in range(1, 9):
        log.write("train", {"step": step, "loss": 1 / step, "loss_cls": 0.5, "learning_rate": 1e-3})
    log.write("evaluate", {"step": 8, "voc07_mAP": 0.25, "voc_mAP": 0.3})
    log.close()
    record = StageRecord("00ff" * 8, "checkpoints/step_8.pt", 14, 2.5, {"training: trainval": "00ff" * 8})
    write_record(place / "done.json", record)
    note_pictures(place, ["000001.jpg", "000002.jpg"])
    return {
        "run log": (place / "log.jsonl", read_run_log),
        "stage record": (place / "done.json", read_record),
        "list of pictures": (place / ".pictures.json", read_pictures),
    }


def read_run_log(path: Path) -> object:
    """Read a log as the report does, and as a resumed run does, which then goes on with it."""
    found = run_series(path.parent)
    is_run(path.parent)
    log = RunLog(path.parent, 6)
    log.write("train", {"step": 7, "loss": 0.1})
    log.close()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(line["step"] <= 7 for line in lines), "a line past the step stayed"
    return found


def read_pictures(path: Path) -> object:
    """Remove a run by the list; what no run wrote stays."""
    place = path.parent / "run" / "detections"
    place.mkdir(parents=True, exist_ok=True)
    (place / ".pictures.json").write_bytes(path.read_bytes())
    (place.parent / "log.jsonl").write_text('{"kind": "data", "step": 0}\n')
    (place / "mine.png").write_text("mine")
    remove_run(place.parent)
    if not (place / "mine.png").is_file():
        raise InputError(f"{path}: took a file of another")
    return None
