"""TensorBoard's file: one per run, without what will be written again, whatever the clock said."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from detector.core.errors import InputError
from detector.engine.board import FILES, Board
from detector.engine.run_log import RunLog, read_log

Written = dict[str, list[tuple[int, float]]]


def written(folder: Path) -> Written:
    """Return what TensorBoard shows of the scalars."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def write(folder: Path, steps: range, keep: Callable[[str, int], bool] = lambda _tag, _step: False) -> None:
    board = Board(folder, steps[0] - 1, keep)
    for step in steps:
        board.scalars({"train/loss": float(step)}, step)
    board.close()


def before(last: int) -> Callable[[str, int], bool]:
    return lambda _tag, step: step <= last


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob(FILES))


def test_a_new_run_begins_an_empty_board(tmp_path: Path) -> None:
    write(tmp_path, range(1, 5))
    write(tmp_path, range(1, 3))
    assert written(tmp_path) == {"train/loss": [(1, 1.0), (2, 2.0)]}
    assert len(files(tmp_path)) == 1


def test_a_resumed_run_keeps_its_values_in_one_file(tmp_path: Path) -> None:
    write(tmp_path, range(1, 8))
    for _ in range(3):
        write(tmp_path, range(5, 10), before(4))
        assert written(tmp_path) == {"train/loss": [(step, float(step)) for step in range(1, 10)]}
        assert len(files(tmp_path)) == 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that tests set; a list of one time."""
    now = [2_000_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def test_a_clock_that_was_set_back_changes_nothing(tmp_path: Path, clock: list[float]) -> None:
    write(tmp_path, range(1, 8))
    clock[0] = 1_000_000_000.0  # the new file comes before the old one in the order of the names
    write(tmp_path, range(5, 10), before(4))
    clock[0] = 1_500_000_000.0
    write(tmp_path, range(9, 12), before(8))
    assert written(tmp_path) == {"train/loss": [(step, float(step)) for step in range(1, 12)]}


def test_killed_between_the_new_file_and_the_removal_of_the_old_one(tmp_path: Path) -> None:
    write(tmp_path, range(1, 8))
    (old,) = files(tmp_path)
    content = old.read_bytes()
    write(tmp_path, range(5, 6), before(4))
    old.write_bytes(content)  # as TensorBoard's own writer of earlier versions names it, too
    old.rename(tmp_path / "events.out.tfevents.1700000000.host.12.0")
    assert len(files(tmp_path)) == 2
    write(tmp_path, range(5, 7), before(4))
    assert written(tmp_path) == {"train/loss": [(step, float(step)) for step in range(1, 7)]}
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("lost", [1, 30, 200])
def test_a_file_that_a_crash_cut_off_keeps_what_is_whole(tmp_path: Path, lost: int) -> None:
    write(tmp_path, range(1, 20))
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:-lost])
    write(tmp_path, range(30, 31), before(25))
    values = [step for step, _ in written(tmp_path)["train/loss"]]
    assert values == [*range(1, len(values)), 30]
    assert len(values) > 10


def test_a_foreign_or_damaged_file_ends_no_run(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content)):
        content[place] ^= 0xA5
    path.write_bytes(content)
    (tmp_path / "events.out.tfevents.1.host.2.0").write_bytes(b"no events at all " * 40)
    write(tmp_path, range(9, 10), before(8))
    assert 9 in [step for step, _ in written(tmp_path)["train/loss"]]
    assert len(files(tmp_path)) == 1


def test_values_are_in_the_file_when_a_call_returns(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.scalars({"train/loss": 0.5}, 1)
    board.images("detections", [np.zeros((8, 9, 3), np.uint8)], 1)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert events.Tags()["images"] == ["detections/0"]
    board.close()


def test_an_evaluation_that_is_done_again_is_in_the_log_once(tmp_path: Path) -> None:
    """As after a kill between an evaluation and the checkpoint that says that it was done."""
    log = RunLog(tmp_path)
    for step in (1, 2, 3, 4):
        log.write("train", {"step": step, "loss": 0.5})
        if step % 2 == 0:
            log.write("evaluate", {"step": step, "voc_mAP": 0.25})
            log.images("test images", [np.zeros((8, 9, 3), np.uint8)], step)
    log.close()
    RunLog(tmp_path, step=4, evaluated=2).close()
    kinds = [(record["kind"], record["step"]) for record in read_log(tmp_path / "log.jsonl")]
    assert kinds == [("train", 1), ("train", 2), ("evaluate", 2), ("train", 3), ("train", 4)]
    assert written(tmp_path / "tensorboard") == {
        "train/loss": [(step, 0.5) for step in (1, 2, 3, 4)],
        "evaluate/voc_mAP": [(2, 0.25)],
    }


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path)
    full = Path("/dev/full").open("wb")  # noqa: SIM115 - it cannot be closed
    monkeypatch.setattr(log._board, "_file", full)
    monkeypatch.setattr(log._board, "_records", RecordWriter(full))
    with pytest.raises(InputError, match=r"cannot write the run's log: No space left on device"):
        log.write("train", {"step": 1, "loss": 0.5})
    with pytest.raises(InputError, match=r"cannot write the run's log: No space left on device"):
        log.close()  # what was buffered is still refused
