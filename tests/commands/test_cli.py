"""What the tools share: their arguments and the line of an error."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

from detector.commands import cli
from detector.core.errors import InputError
from detector.factory.resources import choose_device

Parse = Callable[..., object]


@pytest.mark.parametrize("number", ["-0.5", "-1", "-.5", "-1e-3", "-2.5E+2"])
def test_negative_numbers_are_values(number: str) -> None:
    parser = cli.make_parser("", "")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--score-threshold", type=float)
    found = parser.parse_intermixed_args(["a.jpg", "--score-threshold", number, "b.jpg"])
    assert found.score_threshold == float(number)
    assert found.images == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("required", [True, False])
def test_a_config_without_its_option_is_recognised(
    required: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = cli.make_parser("", "")
    cli.add_config_arguments(parser, required=required)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_intermixed_args(["configs/x.yaml", "train.steps=3"])
    assert "write --config configs/x.yaml" in capsys.readouterr().err
    found = parser.parse_intermixed_args(["--config", "configs/x.yaml", "data.leave_out=a.yaml"])
    assert (found.config, found.overrides) == ("configs/x.yaml", ["data.leave_out=a.yaml"])


def test_a_checkpoint_without_its_option_is_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    parser = cli.make_parser("", "")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--checkpoint", required=True)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_intermixed_args(["best.pt", "a.jpg"])
    assert "write --checkpoint best.pt" in capsys.readouterr().err


def test_the_checkpoint_of_a_run_is_its_best_or_else_its_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    with pytest.raises(InputError, match=r"no checkpoints/best\.pt and no checkpoints/step_N\.pt; name"):
        cli.checkpoint_file(tmp_path)
    folder.mkdir()
    for name in ("step_9.pt", "step_600.pt", "step_70.pt", "step_700_compressed.pt", "other.pt"):
        (folder / name).touch()
    assert cli.checkpoint_file(tmp_path) == folder / "step_600.pt"
    assert "has no best.pt; taking its last checkpoint, step_600.pt" in capsys.readouterr().err
    (folder / "best.pt").touch()
    assert cli.checkpoint_file(str(tmp_path)) == folder / "best.pt"
    for file in (folder / "step_9.pt", tmp_path / "none.pt"):  # the reader of checkpoints names a missing one
        assert cli.checkpoint_file(file) == file
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words",
    [
        ("demo", "my_photo.jpg", "--output", "drawn"),
        ("evaluate", "--config", "quickstart"),
        ("draw_pooling", "my_photo.jpg", "--roi", "1", "1", "9", "9"),
        ("embed", "--config", "quickstart", "--split", "train", "--output", "out"),
        ("pseudo_label", "--split", "train", "--output", "out"),
        ("compress", "--search"),
        ("export", "--format", "onnx", "--output", "out"),
        ("serve",),
    ],
    ids=lambda words: words[0],
)
def test_every_command_takes_the_folder_of_a_run(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file here is no checkpoint, and each command says so under the file's name."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_3.pt").touch()
    name = {"draw_pooling": "draw", "pseudo_label": "label"}.get(words[0], words[0])
    module = import_module(f"detector.commands.{name}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [*words, "--checkpoint", str(tmp_path)])
    with pytest.raises(InputError, match=r"checkpoints/step_3\.pt: not readable as a checkpoint"):
        module.main()
    assert "taking its last checkpoint, step_3.pt" in capsys.readouterr().err


def test_names_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "zeros", lambda *_, device: asked.append(device))
    monkeypatch.setattr("detector.ops.cuda_kernels_missing", lambda: None)
    for given, name in (
        ("gpu", "cuda"),
        ("0", "cuda:0"),
        ("3", "cuda:3"),
        ("cuda:1", "cuda:1"),
        ("cpu", "cpu"),
    ):
        assert choose_device(given) == name
        assert asked.pop() == name
    monkeypatch.undo()
    with pytest.raises(InputError, match="device cuda:99: not usable here"):
        choose_device("99")
    with pytest.raises(InputError, match="device nonsense: not usable here"):
        choose_device("nonsense")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    ],
)
def test_too_little_memory_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit, match="2"):
        cli.run(main)
    assert capsys.readouterr().err.startswith("error: out of memory; lower the scales")


def test_faults_of_ours_keep_their_traceback() -> None:
    def main() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.run(main)


@pytest.mark.parametrize(
    ("given", "place", "gpus", "name"),
    [
        ("cuda", (0, 1), 1, "cuda:0"),
        ("gpu", (1, 2), 2, "cuda:1"),
        ("auto", (3, 4), 2, "cuda:1"),  # two processes per GPU
        ("cuda:1", (0, 1), 2, "cuda:1"),
    ],
)
def test_a_process_of_torchrun_has_a_gpu_with_a_number(
    monkeypatch: pytest.MonkeyPatch, given: str, place: tuple[int, int], gpus: int, name: str
) -> None:
    """nccl needs the number, also where there is one process."""
    for variable in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("LOCAL_RANK", str(place[0]))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(place[1]))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.zeros", lambda *_, **__: None)
    monkeypatch.setattr("detector.ops.cuda_kernels_missing", lambda: None)
    assert choose_device(given) == name


def test_processes_of_torchrun_do_not_share_a_named_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.setenv(variable, "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="gives each process its own GPU"):
        choose_device("cuda:1")
