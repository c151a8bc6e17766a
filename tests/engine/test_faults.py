"""The batch of a loss that is not finite: kept as plain values, read as untrusted data."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detector.core import distributed
from detector.core.errors import InputError
from detector.engine.checkpoint import DamagedCheckpoint
from detector.engine.faults import (
    LossNotFinite,
    as_plain,
    checkpoints_before,
    is_same,
    kept,
    read_fault,
    save_fault,
)
from tests.engine.test_run import batch_of, batches

CONFIG: dict[str, Any] = {"seed": 3, "train": {"scales": [96]}}


def run_in(folder: Path, accumulate: int = 1) -> Any:
    def parts(start: int) -> Any:
        return batches(start * accumulate)

    task = SimpleNamespace(batches=parts, classes=("cat", "dog"), device="cpu")
    settings = SimpleNamespace(accumulate=accumulate)
    return SimpleNamespace(folder=folder, config=CONFIG, task=task, settings=settings)


def error(step: int = 5) -> LossNotFinite:
    return LossNotFinite(step, {"loss_cls": float("nan"), "loss_box": 0.5}, ["image_8", "image_9"])


def fill(folder: Path, *names: str) -> None:
    (folder / "checkpoints").mkdir()
    for name in names:
        (folder / "checkpoints" / name).touch()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_is_read_as_it_was_written(tmp_path: Path, accumulate: int) -> None:
    fill(tmp_path, "step_2.pt", "step_4.pt", "step_10.pt", "best.pt")
    path = save_fault(run_in(tmp_path, accumulate), error())
    assert path == tmp_path / "faults" / "step_5.pt"
    fault = read_fault(path)
    expected = [batch_of(4 * accumulate + part) for part in range(accumulate)]
    assert is_same(fault.batches, as_plain(expected))
    assert fault.batches[0]["metas"][0]["image_id"] == expected[0].metas[0].image_id
    assert torch.equal(fault.batches[0]["images"], expected[0].images)
    assert (fault.step, fault.config, fault.classes) == (5, CONFIG, ["cat", "dog"])
    assert (fault.image_ids, fault.device, fault.checkpoint) == (["image_8", "image_9"], "cpu", "step_4.pt")
    assert str(fault.losses) == "{'loss_cls': nan, 'loss_box': 0.5}"


def test_of_several_processes_the_first_keeps_the_whole_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches are made as for one process, and the others write nothing."""
    asked: list[int] = []

    def parts(start: int) -> Any:
        asked.append(distributed.world_size())
        return batches(start)

    for rank in (1, 0):
        monkeypatch.setattr(distributed, "_group", SimpleNamespace(rank=rank, world_size=2))
        run = run_in(tmp_path)
        run.task.batches = parts
        with pytest.raises(LossNotFinite) as caught, kept(run):
            raise error()
        assert distributed.world_size() == 2
        assert (tmp_path / "faults").exists() is (rank == 0)
        assert caught.value.in_every_process
    assert asked == [1]


def test_every_difference_between_batches_is_noticed() -> None:
    first = as_plain(batch_of(4))
    assert is_same(first, as_plain(batch_of(4)))
    assert not is_same(first, as_plain(batch_of(5)))
    for key in first:
        other = as_plain(batch_of(4))
        del other[key]
        assert not is_same(first, other)
    other = as_plain(batch_of(4))
    other["images"] = other["images"].int()
    assert not is_same(first, other)
    other = as_plain(batch_of(4))
    other["metas"][1]["flipped"] = True
    assert not is_same(first, other)


def test_only_checkpoints_from_before_the_step_count(tmp_path: Path) -> None:
    fill(tmp_path, "step_2.pt", "step_5.pt", "step_10.pt", "best.pt")
    assert [path.name for path in checkpoints_before(tmp_path, 5)] == ["step_2.pt"]
    assert checkpoints_before(tmp_path, 2) == []


def test_the_error_says_how_to_find_the_reason(tmp_path: Path) -> None:
    with pytest.raises(LossNotFinite) as caught, kept(run_in(tmp_path)):
        raise error()
    message = str(caught.value)
    assert (
        "no longer finite at step 5: {'loss_cls': nan, 'loss_box': 0.5}; the images were image_8" in message
    )
    assert f"`python tools/replay.py {tmp_path}/faults/step_5.pt` finds the first value" in message


def test_a_batch_that_cannot_be_kept_does_not_hide_the_loss(tmp_path: Path) -> None:
    (tmp_path / "faults").write_text("a file")
    with pytest.raises(LossNotFinite) as caught, kept(run_in(tmp_path)):
        raise error()
    message = str(caught.value)
    assert "no longer finite at step 5" in message
    assert "Its batch could not be kept: " in message
    assert "faults/step_5.pt: cannot write the file" in message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", 2, "not the file of a step"),
        ("step", "5", "'step'"),
        ("step", 0, "'step'"),
        ("losses", [1.0], "'losses'"),
        ("losses", {"loss": "x"}, "'losses.loss'"),
        ("image_ids", "a", "'image_ids'"),
        ("batches", {}, "'batches'"),
        ("config", [], "'config'"),
        ("config", {1: torch.zeros(1)}, "'config' is not a config of plain values"),
        ("classes", ["a", 3], "'classes.1'"),
        ("device", 3, "'device'"),
        ("checkpoint", "../../step_3.pt", "'checkpoint'"),
    ],
)
def test_other_values_are_one_error_that_names_file_and_key(
    tmp_path: Path, key: str, value: Any, words: str
) -> None:
    path = save_fault(run_in(tmp_path), error())
    state = torch.load(path, weights_only=True)
    torch.save({**state, key: value}, path)
    with pytest.raises(InputError) as caught:
        read_fault(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    torch.save({name: state[name] for name in state if name != key}, path)
    with pytest.raises(InputError, match=r"step_5\.pt: "):
        read_fault(path)


def test_damage_and_missing_files_are_named(tmp_path: Path) -> None:
    path = save_fault(run_in(tmp_path), error())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedCheckpoint, match=r"step_5\.pt: not readable"):
        read_fault(path)
    with pytest.raises(InputError, match="no such checkpoint"):
        read_fault(tmp_path / "none.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(InputError, match=r"pipe\.pt: "):
        read_fault(tmp_path / "pipe.pt")
