"""Faults in the middle of a run: one clear error, and --resume ends as if nothing had happened."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from detector.config import load_config
from detector.data import samples
from detector.data.generated.dataset import generate_voc
from detector.engine.checkpoint import load_checkpoint, numbered_checkpoints
from detector.engine.run_log import read_log
from detector.tasks.start import start_run
from tests.commands.conftest import Result, Tool
from tests.tiny import TINY

Train = Callable[..., Result]
SETTINGS = ("train.steps=6", "train.checkpoint_every=2", "data.workers=2")
FULL = Path("/dev/full")


@pytest.fixture
def train(tool: Tool, root: Path, tmp_path: Path) -> Train:
    """Train in the folder ``run``, or another one, with `SETTINGS`."""
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**TINY, "data": {**TINY["data"], "root": str(root)}}))

    def run(*more: str, folder: str = "run") -> Result:
        return tool("train", "--config", config, "--output", tmp_path / folder, *SETTINGS, *more)

    return run


@pytest.fixture(scope="module")
def whole(original: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights at the end of a run to which nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        values = {**TINY, "data": {**TINY["data"], "root": str(original)}}
        (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
        start_run(load_config(folder / "tiny.yaml", SETTINGS), folder, "cpu").run()
    return weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(folder / "checkpoints/step_6.pt")["model"]
    return state


def refused(result: Result, *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: "), result.stderr
    for word in words:
        assert word in line


def goes_on(result: Result, folder: Path, whole: dict[str, torch.Tensor]) -> None:
    """The run has ended as if nothing had happened, and nothing unfinished is left."""
    assert result.returncode == 0, result.stderr
    found = weights(folder)
    assert found.keys() == whole.keys()
    assert all(torch.equal(value, found[name]) for name, value in whole.items())
    steps = [record["step"] for record in read_log(folder / "log.jsonl") if record["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert (folder / "metrics.json").is_file()
    assert not list(folder.rglob("*.tmp"))


def steps_saved(folder: Path) -> list[str]:
    return [path.name for path in numbered_checkpoints(folder / "checkpoints")]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the files whose names contain the given text be written to /dev/full, until it is ""."""
    if not FULL.exists():
        pytest.skip("the system has no /dev/full")
    filled, opened = [""], Path.open

    def open_path(path: Path, mode: str = "r", *given: Any, **named: Any) -> Any:
        if filled[0] and filled[0] in path.name and mode[0] in "wa":
            opened(path, mode, *given, **named).close()
            return opened(FULL, mode.replace("a", "w"), *given, **named)
        return opened(path, mode, *given, **named)

    monkeypatch.setattr(Path, "open", open_path)
    return lambda name: filled.__setitem__(0, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("step_4.pt", "checkpoints/step_4.pt: cannot write the file: No space left on device"),
        ("log.jsonl", "run: cannot write the run's log: No space left on device"),
        ("config.yaml", "config.yaml: cannot write the file: No space left on device"),
        ("events.out", "cannot write the file: No space left on device"),
        ("segment_", "segment_000001.boxes.npy: cannot write the file: No space left on device"),
        ("comp4_det_test_disc", "comp4_det_test_disc.txt: cannot write the file: No space left on device"),
        ("metrics.json", "metrics.json: cannot write the file: No space left on device"),
        ("run.png", "run.png: cannot write the file: No space left on device"),
    ],
)
def test_a_full_disk_is_one_error_and_the_run_goes_on_when_there_is_space(
    train: Train,
    whole: dict[str, torch.Tensor],
    tmp_path: Path,
    full_disk: Callable[[str], None],
    name: str,
    words: str,
) -> None:
    full_disk(name)
    refused(train(), words)
    full_disk("")
    goes_on(train("--resume"), tmp_path / "run", whole)


@pytest.mark.parametrize("name", ["kept_", "checked.bin", ".columns"])
def test_what_only_saves_time_is_done_without_on_a_full_disk(
    train: Train,
    whole: dict[str, torch.Tensor],
    tmp_path: Path,
    full_disk: Callable[[str], None],
    name: str,
) -> None:
    full_disk(name)
    done = train()
    assert " ".join(done.stderr.split()).count("No space left on device") >= 1
    goes_on(done, tmp_path / "run", whole)


def image_of(root: Path, place: int = 0) -> Path:
    name = (root / "ImageSets/Main/trainval.txt").read_text().split()[place]
    return root / "JPEGImages" / f"{name}.jpg"


def after_images(monkeypatch: pytest.MonkeyPatch, count: int, then: Callable[[], object]) -> None:
    """Call ``then`` before the ``count``-th image is opened for training or evaluation."""
    opened, calls = samples.open_image, itertools.count(1)

    def open_image(*given: Any) -> Any:
        if next(calls) == count:
            then()
        return opened(*given)

    monkeypatch.setattr(samples, "open_image", open_image)


def test_an_image_that_disappears_in_the_middle(
    train: Train, whole: dict[str, torch.Tensor], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_of(root)
    with monkeypatch.context() as patch:
        after_images(patch, 9, lambda: image.rename(tmp_path / "aside.jpg"))
        refused(train("data.workers=0"), f"{image.name}: ", "no such file")
    assert steps_saved(tmp_path / "run") in (["step_4.pt"], ["step_2.pt", "step_4.pt"])
    refused(train("--resume"), image.stem)
    (tmp_path / "aside.jpg").rename(image)
    goes_on(train("--resume"), tmp_path / "run", whole)


@pytest.mark.parametrize("change", ["truncated", "another image"])
def test_an_image_that_changes_in_the_middle(
    train: Train,
    whole: dict[str, torch.Tensor],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    image = image_of(root)
    before = image.read_bytes()
    larger = tmp_path / "larger"
    generate_voc(larger, train_images=1, test_images=1, image_size=(128, 160), seed=1)
    after = before[:900] if change == "truncated" else image_of(larger).read_bytes()
    with monkeypatch.context() as patch:
        after_images(patch, 9, lambda: image.write_bytes(after))
        refused(train("data.workers=0"), image.name)
    assert "step_4.pt" in steps_saved(tmp_path / "run")
    resumed = train("--resume")
    assert resumed.returncode == 2, resumed.stderr
    image.write_bytes(before)
    goes_on(train("--resume"), tmp_path / "run", whole)


def test_a_loader_thread_without_memory_ends_the_run_and_no_other_thread_stays(
    train: Train, whole: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory() -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        after_images(patch, 9, no_memory)
        refused(train(), "out of memory; lower the scales")
    goes_on(train("--resume"), tmp_path / "run", whole)


def test_a_clock_that_is_set_back_between_and_during_runs(
    train: Train, whole: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the clock gives an earlier time, and the older checkpoint has the later time."""
    back = itertools.count()
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now - 10 * next(back))
        after_images(patch, 9, lambda: image_of(tmp_path / "voc").rename(tmp_path / "aside.jpg"))
        assert train("data.workers=0").returncode == 2
    (tmp_path / "aside.jpg").rename(image_of(tmp_path / "voc"))
    saved = numbered_checkpoints(tmp_path / "run/checkpoints")
    assert len(saved) == 2
    for place, path in enumerate(saved):
        os.utime(path, (now + 1000 - place, now + 1000 - place))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now - 86_400 - 10 * next(back))
        resumed = train("--resume")
    assert "resuming after step 4 from" in resumed.stderr
    goes_on(resumed, tmp_path / "run", whole)


def test_nothing_is_read_before_its_checksum(
    train: Train, whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """A flipped byte in the last checkpoint: the run goes on from the one before, and says so."""
    assert train(folder="run").returncode == 0
    last = tmp_path / "run/checkpoints/step_6.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 3] ^= 0x10
    last.unlink()  # best.pt is the same file
    last.write_bytes(content)
    (tmp_path / "run/checkpoints/best.pt").unlink()
    resumed = train("--resume")
    assert f"warning: {last}: not readable as a checkpoint" in resumed.stderr
    assert "resuming after step 4 from" in resumed.stderr
    goes_on(resumed, tmp_path / "run", whole)
