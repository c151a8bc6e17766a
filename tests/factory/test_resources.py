"""The threads of a run: those that compute, and those that load images."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.commands.evaluate import score_checkpoint
from detector.config import Config
from detector.core.errors import InputError
from detector.core.structures import DrawnRegions, ImageRecord, Targets
from detector.data import loader
from detector.data.images import upright_size
from detector.data.loader import LoaderFailed
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.factory import resources
from detector.factory.loaders import inference_views, no_proposals, training_batches
from detector.factory.model import build_model
from detector.tasks.start import build_scorer, start_run

Load = Callable[..., Config]


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.setattr(resources, "available_cores", lambda: 16)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for module in ("factory.resources", "engine.run"):
        monkeypatch.setattr(f"detector.{module}.note", lines.append)
    return lines


def test_threads_and_workers_are_chosen_and_said(
    tiny: Load, sixteen_cores: None, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "threads_set_by", lambda: None)
    torch.set_num_threads(2)
    resources.use_cores(tiny("data.workers=null"), "cpu")
    assert said == [
        "16 CPU cores: 2 compute threads (chosen; OMP_NUM_THREADS sets it), "
        "2 loader threads (chosen; data.workers sets it)"
    ]
    monkeypatch.setattr(resources, "available_cores", lambda: 1)
    resources.use_cores(tiny("data.workers=3"), "cpu")
    assert torch.get_num_threads() == 1
    assert said[1] == (
        "1 CPU core: 1 compute thread (chosen; OMP_NUM_THREADS sets it), "
        "3 loader threads (set by data.workers)"
    )
    assert resources.worker_count(tiny("data.workers=null"), "cpu") == 0
    resources.use_cores(tiny("data.workers=1"), "cpu")
    assert said[2].endswith("1 loader thread (set by data.workers)")
    resources.use_cores(tiny("data.workers=1"), "cpu", loaders=False)
    assert said[3] == "1 CPU core: 1 compute thread (chosen; OMP_NUM_THREADS sets it)"


def test_what_the_user_sets_stays(tiny: Load, sixteen_cores: None, said: list[str]) -> None:
    torch.set_num_threads(3)
    resources.use_cores(tiny("data.workers=0"), "cuda")
    assert torch.get_num_threads() == 3
    assert said == [
        "16 CPU cores: 3 compute threads (set by OMP_NUM_THREADS), 0 loader threads (set by data.workers)"
    ]
    assert resources.worker_count(tiny("data.workers=null"), "cuda:1") == 8


def test_another_number_of_threads_is_said_on_resuming(tiny: Load, tmp_path: Path, said: list[str]) -> None:
    config = tiny("data.workers=0", "train.steps=1")
    (tmp_path / "run").mkdir()
    start_run(config, tmp_path / "run", "cpu").run()
    path = tmp_path / "run/checkpoints/step_1.pt"
    state = load_checkpoint(path)
    del state["file"]
    assert state["threads"] == torch.get_num_threads()
    start_run(config, tmp_path / "run", "cpu", resume=True)
    assert not any("compute threads" in line for line in said)
    save_checkpoint(path, {**state, "threads": 7})
    start_run(config, tmp_path / "run", "cpu", resume=True)
    assert any(line.startswith("warning: the run used 7 compute threads before") for line in said)
    del state["threads"]  # of an earlier version
    save_checkpoint(path, state)
    start_run(config, tmp_path / "run", "cpu", resume=True)


@pytest.fixture
def record(tiny_root: Path) -> ImageRecord:
    """An image that both training and inference can read."""
    path = next(iter(sorted((tiny_root / "JPEGImages").iterdir())))
    height, width = upright_size(path)
    targets = Targets.make(torch.tensor([[10.0, 10.0, 60.0, 50.0]]), torch.tensor([1]))
    return ImageRecord(image_id="a", path=path, height=height, width=width, targets=targets)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader-")]


@pytest.mark.parametrize(("workers", "threads"), [("0", 0), ("1", 1), ("3", 3), ("null", 2)])
def test_as_many_threads_load_as_the_config_says(
    tiny: Load, sixteen_cores: None, record: ImageRecord, workers: str, threads: int
) -> None:
    with closing(
        training_batches(tiny(f"data.workers={workers}"), [record] * 4, no_proposals, 0)
    ) as training:
        assert next(training).images.dtype == torch.uint8
        assert len(loader_threads()) == threads
    assert not loader_threads()
    views = inference_views(tiny(f"data.workers={workers}"), [record] * 4, no_proposals)
    next(views)
    assert len(loader_threads()) == threads
    assert len(list(views)) == 3
    assert not loader_threads()


def test_a_single_image_needs_a_single_thread(tiny: Load, record: ImageRecord) -> None:
    views = inference_views(tiny("data.workers=8"), [record], no_proposals)
    next(views)
    assert len(loader_threads()) == 1
    assert list(views) == []
    assert list(inference_views(tiny("data.workers=8"), [], no_proposals)) == []


def test_no_process_is_started(tiny: Load, record: ImageRecord) -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    with closing(training_batches(tiny("data.workers=2"), [record] * 4, no_proposals, 0)) as training:
        next(training)
        assert children.read_text() == before


def test_training_draws_only_what_it_is_asked_for(tiny: Load, record: ImageRecord) -> None:
    seen: list[str] = []

    def draw(rois: torch.Tensor, targets: Targets, rng: np.random.Generator) -> DrawnRegions:
        seen.append(threading.current_thread().name)
        return DrawnRegions(
            targets.boxes, targets.labels, torch.zeros(len(targets), 4), torch.arange(len(targets))
        )

    config = tiny("data.workers=2")
    with closing(training_batches(config, [record] * 4, no_proposals, 0)) as plain:
        assert next(plain).sampled is None
    with closing(training_batches(config, [record] * 4, no_proposals, 0, draw_regions=draw)) as drawn:
        batch = next(drawn)
    assert batch.sampled is not None
    assert batch.sampled.rois[:, 0].tolist() == [0, 1]
    for row, targets in zip(batch.sampled.rois, batch.targets, strict=True):
        assert torch.equal(row[1:], targets.boxes[0])
    assert seen
    assert all(name.startswith("loader-") for name in seen)  # in the threads, not in the loop


def test_memory_that_runs_out_in_a_thread_ends_training_as_such(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    run = start_run(tiny("data.workers=2", "train.steps=2"), tmp_path / "run", "cpu")

    def full(*_: object) -> None:
        raise MemoryError("no room for an image")

    monkeypatch.setattr("detector.data.samples.open_image", full)
    with pytest.raises(MemoryError, match="no room for an image"):
        run.run()
    assert not loader_threads()


def test_an_error_of_the_network_ends_the_threads_of_scoring(
    tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = build_scorer(tiny("data.workers=2"), split="test")

    def fail(_: object) -> None:
        raise InputError("no detections")

    monkeypatch.setattr("detector.tasks.scoring.build_predictor", lambda *_: fail)
    with pytest.raises(InputError, match="no detections") as held:
        scorer.evaluate(build_model(scorer.config, len(scorer.classes)))
    assert not loader_threads(), held  # although the error, which is still held, keeps the frames


def test_a_drive_that_does_not_answer_ends_training_and_scoring_with_one_clear_error(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("data.workers=1", "train.steps=2")
    (tmp_path / "run").mkdir()
    run = start_run(config, tmp_path / "run", "cpu")
    test_set = build_scorer(config, split="test").test_set
    model = build_model(config, len(test_set.classes))
    state = {"model": model.state_dict(), "classes": list(test_set.classes)}
    answers = threading.Event()

    def silent(*_: object) -> None:
        answers.wait(20)
        raise InputError("too late")

    monkeypatch.setattr("detector.data.samples.open_image", silent)
    monkeypatch.setattr(loader, "WAIT_SECONDS", 0.05)
    with pytest.raises(LoaderFailed, match=r"no image was read within .*check the disk"):
        run.run()
    with pytest.raises(LoaderFailed, match=r"no image was read within .*check the disk"):
        score_checkpoint(config, state, "a.pt", "test", tmp_path / "out", "cpu")
    answers.set()
    for thread in loader_threads():
        thread.join(20)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_training_and_scoring_leave_no_descriptor_and_no_thread(tiny: Load, tmp_path: Path) -> None:
    """With the proposal store, the real sampler and the real network, twice: a leak grows."""
    config = tiny("data.workers=2", "train.steps=3")
    counts = []
    for number in range(3):
        folder = tmp_path / f"run_{number}"
        folder.mkdir()
        run = start_run(config, folder, "cpu")
        run.run()
        run.finish()
        del run
        gc.collect()
        counts.append(open_files())
        assert not loader_threads()
    assert counts[2] == counts[1]
