"""Training in several processes computes what one process computes, and can be stopped and resumed."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detector.engine.checkpoint import load_checkpoint, numbered_checkpoints
from detector.engine.run_folder import LOCK
from detector.engine.run_log import read_log
from tests.multiprocess.cases import COCO, train
from tests.multiprocess.conftest import Start
from tests.multiprocess.launch import ranks, run, started, torchrun, wait_until

pytestmark = pytest.mark.slow

DROPOUT = ("train.images_per_batch=6",)
FAULTY = "tests.multiprocess.faulty"
several = pytest.mark.parametrize("count", [2, 3])


def weights(folder: Path) -> dict[str, Tensor]:
    """Return the parameters and buffers of a run's last checkpoint."""
    found: dict[str, Tensor] = load_checkpoint(numbered_checkpoints(folder / "checkpoints")[-1])["model"]
    return found


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Return the norm of the difference of all values, over the norm of all of them."""
    assert first.keys() == second.keys()
    both = [torch.cat([one[name].double().flatten() for name in first]) for one in (first, second)]
    return float((both[0] - both[1]).norm() / both[0].norm())


def identical(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def files_of(folder: Path) -> set[str]:
    """Return the names of all files, with those parts replaced that differ between any two runs."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {re.sub(r"tfevents\..*", "tfevents", name) for name in names}


@several
@pytest.mark.parametrize(
    ("case", "limit"),
    [("in_float64", 1e-5), ("in_float32", 1e-4), ("classify", 1e-4), ("from_image_labels", 1e-4)],
)
def test_weights_are_those_of_one_process(start: Start, count: int, case: str, limit: float) -> None:
    found = distance(weights(start(1) / case), weights(start(count) / case))
    print(f"{case} on {count} processes: {found:.2e}")
    assert found < limit


@several
def test_steps_use_the_same_images_regions_and_padding(start: Start, count: int) -> None:
    alone: list[dict[str, Any]] = torch.load(start(1) / "in_float64" / "steps_0.pt")
    parts = [torch.load(start(count) / "in_float64" / f"steps_{rank}.pt") for rank in range(count)]
    assert len(alone) == 50
    for whole, *shares in zip(alone, *parts, strict=True):
        assert [image for share in shares for image in share["images"]] == whole["images"]
        assert {share["shape"] for share in shares} == {whole["shape"]}
        rois = [
            share["rois"] + torch.eye(5)[0] * (number * 6 // count) for number, share in enumerate(shares)
        ]
        assert torch.equal(torch.cat(rois), whole["rois"])


@several
def test_logged_losses_are_those_of_the_whole_batch(start: Start, count: int) -> None:
    logs = [read_log(start(number) / "in_float64" / "log.jsonl") for number in (1, count)]
    losses = [[record for record in log if record["kind"] == "train"] for log in logs]
    assert len(losses[0]) == 50
    for alone, shared in zip(*losses, strict=True):
        for name in (name for name in alone if name.startswith("loss")):
            assert shared[name] == pytest.approx(alone[name], rel=1e-5)


@several
def test_parts_of_a_step_add_up_to_it(start: Start, count: int) -> None:
    whole = weights(start(1) / "in_one_part")
    assert distance(whole, weights(start(1) / "in_parts")) < 1e-5
    assert distance(whole, weights(start(count) / "in_parts")) < 1e-5


@several
def test_mining_averages_augmentation_and_an_early_end_are_those_of_one_process(
    start: Start, count: int
) -> None:
    """AdamW divides by the size of a gradient, so the last digit of a small one makes a larger difference."""
    folders = [start(number) / "with_options" for number in (1, count)]
    alone, shared = (load_checkpoint(folder / "checkpoints" / "step_6.pt") for folder in folders)
    for name in ("model", "ema"):
        assert distance(alone[name], shared[name]) < 1e-3
    assert (alone["best"], alone["without_gain"]) == (shared["best"], shared["without_gain"])
    logs = [read_log(folder / "log.jsonl") for folder in folders]
    assert logs[0][-1]["kind"] == "early_stopping"
    assert [(one["kind"], one["step"]) for one in logs[0]] == [(one["kind"], one["step"]) for one in logs[1]]
    for one, other in zip(*logs, strict=True):
        for key in (key for key in one if key.startswith(("loss", "val_loss"))):
            assert other[key] == pytest.approx(one[key], rel=1e-3)


@several
def test_only_rank_0_writes(start: Start, count: int) -> None:
    assert files_of(start(count) / "in_float32") == files_of(start(1) / "in_float32")
    lines = [
        len((start(number) / "in_float32" / "log.jsonl").read_text().splitlines()) for number in (1, count)
    ]
    assert lines[0] == lines[1]


def test_stopped_in_one_process_and_resumed_in_three(start: Start) -> None:
    assert distance(weights(start(1) / "in_float32"), weights(start(3) / "resumed")) < 1e-4


def test_stopped_in_two_processes_and_resumed_in_one(
    start: Start, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(start(2) / "in_float32" / "checkpoints" / "step_25.pt", tmp_path / "checkpoints")
    monkeypatch.chdir(place)
    train(tmp_path, *COCO, resume=True)
    assert distance(weights(start(1) / "in_float32"), weights(tmp_path)) < 1e-4


def test_a_resumed_run_adds_gradients_up_in_the_same_order(start: Start) -> None:
    assert identical(weights(start(3) / "in_parts"), weights(start(3) / "again"))


def test_processes_draw_different_dropout_again_at_each_step(start: Start) -> None:
    alone = torch.load(start(1) / "dropped" / "drawn_0.pt")
    first, second = (torch.load(start(2) / "dropped" / f"drawn_{rank}.pt") for rank in (0, 1))
    assert torch.equal(alone, first)  # rank 0 draws what one process draws
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(second[0], second[1])
    assert torch.equal(second[0], second[2])  # a function of the step


def stop(place: Path, output: str, *options: str, agent: bool) -> None:
    """Start a slow training in two processes, stop it by SIGTERM, and check what it leaves."""
    marker = place / f"{output}.running"
    marker.unlink(missing_ok=True)
    given = ["--config", "tiny.yaml", "--output", output, "--device", "cpu", *DROPOUT, *options]
    before = set(numbered_checkpoints(place / output / "checkpoints"))
    at = "9" if before else "5"  # no multiple of checkpoint_every
    with started(torchrun(2, "-m", FAULTY, "is_slow", "1", at, str(marker), *given), place) as job:
        wait_until(marker.exists, job)
        for number in [job.pid] if agent else [*ranks(job).values(), job.pid]:
            os.kill(number, signal.SIGTERM)
        text, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert text.count("Traceback") <= 1, text  # that of torchrun itself
    assert "[rank" not in text
    saved = set(numbered_checkpoints(place / output / "checkpoints")) - before
    assert len(saved) == 2, text  # that of step 4 or 8, and that of the stop
    assert "go on with --resume" in text
    assert not (place / output / LOCK).exists()


def test_stopped_killed_and_resumed_runs_equal_uninterrupted_ones(start: Start, place: Path) -> None:
    """By a signal to torchrun, by one to every process, and by a kill, after which torchrun starts again.

    The first start has no checkpoint to go on from.
    """
    whole = weights(start(2) / "with_dropout")
    stop(place, "stopped", "--resume", agent=True)
    stop(place, "stopped", "--resume", agent=False)
    killed = place / "killed.once"
    given = ["--config", "tiny.yaml", "--output", "stopped", "--device", "cpu", "--resume", *DROPOUT]
    program = ["-m", FAULTY, "dies_once", "1", "11", str(killed), *given]
    done = run(torchrun(2, *program, options=("--standalone", "--max-restarts=3")), place)
    assert done.returncode == 0, done.stdout
    assert killed.exists()
    assert identical(whole, weights(place / "stopped"))
