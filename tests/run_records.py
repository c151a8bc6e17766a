"""Valid files that a run keeps of itself, for `tests.fuzz_readers`: its log and the records of its stages."""

from __future__ import annotations

import json
from pathlib import Path

from detector.core.errors import InputError
from detector.engine.run_folder import is_run, note_pictures, remove_run
from detector.engine.run_log import RunLog
from detector.staged.runner import StageRecord
from detector.tasks.scoring import run_history


def make_run_log(folder: Path) -> Path:
    log = RunLog(folder)
    log.write("data", {"step": 0, "images": 4, "dropped_boxes": {"outside": 1}})
    for step in range(1, 9):
        log.write("train", {"step": step, "loss": 1 / step, "loss_cls": 0.5, "learning_rate": 1e-3})
    log.write("evaluate", {"step": 8, "voc07_mAP": 0.25, "voc_mAP": 0.3})
    log.close()
    return folder / "log.jsonl"


def make_stage_record(folder: Path) -> Path:
    record = StageRecord(
        key="00ff" * 8,
        checkpoint="checkpoints/step_8.pt",
        steps=14,
        seconds=2.5,
        data_fingerprint={"training: trainval": "00ff" * 8},
    )
    record.write(folder / "done.json")
    return folder / "done.json"


def make_list_of_pictures(folder: Path) -> Path:
    note_pictures(folder, ["000001.jpg", "000002.jpg"])
    return folder / ".pictures.json"


def read_run_log(path: Path) -> object:
    """Read a log as the report does, and as a resumed run does, which then goes on with it."""
    found = run_history(path.parent)
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
