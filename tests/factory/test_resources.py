"""Threads and loader processes of a run, and the shared memory that its batches take."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from detector.commands.evaluate import score_checkpoint
from detector.config import Config
from detector.core.structures import ImageRecord, Normalization, Targets
from detector.data import loader
from detector.data.loader import LoaderFailed, batch_bytes
from detector.data.transforms import ImageTransform
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
    for module in ("factory.resources", "engine.run", "factory.loaders"):
        monkeypatch.setattr(f"detector.{module}.note", lines.append)
    return lines


def test_threads_and_workers_are_chosen_and_said(
    tiny: Load, sixteen_cores: None, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "threads_are_chosen", lambda: False)
    torch.set_num_threads(2)
    resources.use_cores(tiny("data.workers=null"), "cpu")
    assert said == [
        "16 CPU cores: 2 compute threads (chosen; OMP_NUM_THREADS sets it), "
        "2 loader processes (chosen; data.workers sets it)"
    ]
    monkeypatch.setattr(resources, "available_cores", lambda: 1)
    resources.use_cores(tiny("data.workers=3"), "cpu")
    assert torch.get_num_threads() == 1
    assert said[1] == (
        "1 CPU core: 1 compute thread (chosen; OMP_NUM_THREADS sets it), 3 loader processes (data.workers)"
    )
    assert resources.worker_count(tiny("data.workers=null"), "cpu") == 0


def test_what_the_user_sets_stays(tiny: Load, sixteen_cores: None, said: list[str]) -> None:
    torch.set_num_threads(3)
    resources.use_cores(tiny("data.workers=0"), "cuda")
    assert torch.get_num_threads() == 3
    assert said == ["16 CPU cores: 3 compute threads (OMP_NUM_THREADS), 0 loader processes (data.workers)"]
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


def record(height: int, width: int) -> ImageRecord:
    return ImageRecord(image_id="a", path=Path("a.jpg"), height=height, width=width, targets=Targets.empty())


def test_batches_take_at_most_what_is_expected_of_them() -> None:
    plain = Normalization(mean=(0.0,) * 3, deviation=(1.0,) * 3, maximum=255.0, bgr=False)
    transform = ImageTransform(normalization=plain, scales=(50, 100), max_size=400, scale_jitter=(0.5, 2.0))
    lying, upright = record(100, 150), record(150, 100)
    assert batch_bytes([lying], transform, 1) == (12 * 200 * 300,) * 2
    assert batch_bytes([lying, upright], transform, 4) == (4 * 12 * 200 * 300, 4 * 12 * 300 * 300)


def test_shared_memory_is_looked_at_before_the_start(
    tiny: Load, tiny_root: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "free_shared_memory", lambda: 1000)
    records = [record(96, 128)]
    with pytest.raises(LoaderFailed, match=r"data\.workers=2: .*/dev/shm has 0\.0 MiB free; .*--shm-size"):
        training_batches(tiny("data.workers=2"), records, no_proposals, 0)
    with pytest.raises(LoaderFailed, match=r"data\.workers=2"):
        inference_views(tiny("data.workers=2"), records, no_proposals)
    monkeypatch.setattr(resources, "available_cores", lambda: 16)
    training_batches(tiny("data.workers=null"), records, no_proposals, 0)
    assert said == ["/dev/shm has room for the images of 0 loader processes, not of 2: using 0"]


@pytest.fixture
def deadly_images(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the processes that load images die from now on, as where the machine runs out of memory."""
    main = os.getpid()

    def read(*_: object) -> None:
        assert os.getpid() != main
        os.kill(os.getpid(), signal.SIGKILL)

    return lambda: monkeypatch.setattr("detector.data.samples.read_image", read)


def test_a_dying_worker_ends_training_with_one_clear_error(
    tiny: Load, tmp_path: Path, deadly_images: Callable[[], None]
) -> None:
    (tmp_path / "run").mkdir()
    run = start_run(tiny("data.workers=1", "train.steps=2"), tmp_path / "run", "cpu")
    deadly_images()
    with pytest.raises(LoaderFailed, match=r"died .*memory ran out.*the last checkpoint with --resume"):
        run.run()


def test_a_dying_worker_ends_scoring_with_one_clear_error(
    tiny: Load, tmp_path: Path, deadly_images: Callable[[], None]
) -> None:
    config = tiny("data.workers=1")
    test_set = build_scorer(config, split="test").test_set
    model = build_model(config, len(test_set.classes))
    state = {"model": model.state_dict(), "classes": list(test_set.classes)}
    deadly_images()
    with pytest.raises(LoaderFailed, match=r"died .*memory ran out.*data\.workers"):
        score_checkpoint(config, state, "a.pt", "test", tmp_path / "out", "cpu")
