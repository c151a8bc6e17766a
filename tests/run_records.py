"""Valid files that a run keeps of itself, for `tests.fuzz_readers`: its log and the records of its stages."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from detector.config.load import parse_stored
from detector.core.errors import InputError
from detector.engine.board import FILES, Board, events_to_keep
from detector.engine.faults import LossNotFinite, as_plain, is_same, read_fault, save_fault
from detector.engine.run_folder import is_run, note_pictures, remove_run
from detector.engine.run_log import RunLog
from detector.staged.runner import StageRecord
from detector.tasks.scoring import run_history
from tests.engine.test_run import batches
from tests.fuzz_checkpoints import CONFIG


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


def make_board(folder: Path) -> Path:
    board = Board(folder)
    for step in range(1, 9):
        board.scalars({"train/loss": 1 / step, "evaluate/voc_mAP": 0.25}, step)
    board.images("test images", [np.zeros((4, 5, 3), np.uint8)], 8)
    board.close()
    return next(folder.glob(FILES))


def make_fault(folder: Path) -> Path:
    run: Any = SimpleNamespace(
        folder=folder,
        config=CONFIG,
        task=SimpleNamespace(batches=batches, classes=("cat", "dog"), device="cpu"),
        settings=SimpleNamespace(accumulate=1),
    )
    return save_fault(run, LossNotFinite(5, {"loss_cls": float("inf")}, ["image_8", "image_9"]))


def read_board(path: Path) -> object:
    """Read TensorBoard's file as a resumed run does, which keeps what it can read."""
    return events_to_keep([path], lambda tag, step: len(tag) < 99 and step >= 0)


def read_replayed(path: Path) -> object:
    """Read a fault file as a replay does."""
    fault = read_fault(path)
    is_same(fault.batches, as_plain([next(batches(4))]))
    return parse_stored(fault.config, [], str(path))


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
