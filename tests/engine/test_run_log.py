"""The run's log is cut back to where a resumed run starts, and survives a torn last line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detector.core.errors import InputError
from detector.engine.run_log import RunLog, read_log


def write_steps(folder: Path, steps: range, start: int = 0) -> None:
    log = RunLog(folder, start)
    for step in steps:
        log.write("train", {"step": step, "loss": 1.0 / step, "note": "text"})
    log.close()


def steps_of(folder: Path) -> list[int]:
    return [record["step"] for record in read_log(folder / "log.jsonl")]


def test_a_resumed_run_writes_on_from_its_step(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 8))
    write_steps(tmp_path, range(5, 10), start=4)
    assert steps_of(tmp_path) == list(range(1, 10))
    assert read_log(tmp_path / "log.jsonl")[1] == {"kind": "train", "step": 2, "loss": 0.5, "note": "text"}
    assert not list(tmp_path.glob("*.tmp"))


def test_a_run_from_the_start_begins_an_empty_log(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 8))
    write_steps(tmp_path, range(1, 3))
    assert steps_of(tmp_path) == [1, 2]


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text()[:-9])
    assert steps_of(tmp_path) == [1, 2]
    write_steps(tmp_path, range(3, 5), start=2)
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    assert read_log(tmp_path / "missing.jsonl") == []


def test_numbers_and_images_go_to_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path)
    log.write("train", {"step": 3, "loss": 0.25, "note": "text"})
    log.images("detections", [np.zeros((8, 9, 3), np.uint8)], 3)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    (scalar,) = events.Scalars("train/loss")
    assert (scalar.step, scalar.value) == (3, 0.25)
    (image,) = events.Images("detections/0")
    assert (image.step, image.height, image.width) == (3, 8, 9)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/log\.jsonl: cannot write the file: "):
        RunLog(tmp_path / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_disk_that_fills_up_during_the_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RunLog(tmp_path)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(log, "_file", full)
        with pytest.raises(InputError, match="cannot write the run's log: No space left on device"):
            log.write("train", {"step": 1, "loss": 0.5})
        monkeypatch.undo()
        log.close()
        with pytest.raises(OSError, match="No space left"):
            full.close()  # what was buffered is still refused
