"""tools/compress.py: given ranks, the search with its table and JSON, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.commands import compress, demo, evaluate
from detector.config import Config
from detector.core.errors import InputError
from detector.engine.checkpoint import load_checkpoint
from tests.test_api import save_random

Load = Callable[..., Config]
Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command in this process with these words."""

    def call(*words: object, command: Any = compress) -> int:
        monkeypatch.setattr("sys.argv", ["tool", *map(str, words)])
        status: int = command.main()
        return status

    return call


def test_given_ranks_make_a_checkpoint_and_a_record(
    tiny: Load, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_random(tiny(), tmp_path / "best.pt")
    assert run("--checkpoint", path, "--rank", "fc6=9", "--device", "cpu") == 0
    shown = capsys.readouterr().out
    assert "fc6" in shown
    assert "whole" in shown
    state = load_checkpoint(tmp_path / "best_compressed.pt")
    assert state["config"]["model"]["head"]["rank"] == [9, None]
    report = json.loads((tmp_path / "best_compressed.json").read_text())
    assert report["ranks"] == {"fc6": 9, "fc7": None}
    inputs = state["model"]["box_head.layers.fc6_v.weight"].shape[1]
    assert report["weights"]["fc6"]["weights"] == 9 * (inputs + 32)
    with pytest.raises(InputError, match=r"best_compressed\.pt: exists already"):
        run("--checkpoint", path, "--rank", "fc6=9")


def test_a_search_writes_all_candidates_and_the_pick(
    tiny: Load, tiny_config: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("train.validation_fraction=0.5", "test.score_threshold=0.0", "proposals.top_k_test=60")
    path = save_random(config, tmp_path / "best.pt", score_threshold=0.5)
    words = (
        "--checkpoint",
        path,
        "--search",
        "--max-loss",
        "1",
        "--rank",
        "fc6=9,whole",
        "--rank",
        "fc7=whole",
    )
    assert run(*words, "--device", "cpu") == 0
    captured = capsys.readouterr()
    assert "picked" in captured.out
    report = json.loads((tmp_path / "best_compressed.json").read_text())
    assert [one["ranks"]["fc6"] for one in report["candidates"]] == [None, 9]
    assert report["candidates"][1]["picked"]
    assert report["images"] == 4  # half of the eight training images
    assert report["candidates"][0]["head_time_ratio"] > 0
    metrics = tmp_path / "metrics.json"
    for precision in ("float32", "int8"):
        given = (
            "--config",
            tiny_config,
            "--checkpoint",
            tmp_path / "best_compressed.pt",
            "--output",
            metrics,
        )
        assert run(*given, "--precision", precision, "--device", "cpu", command=evaluate) == 0
        assert "voc07_mAP" in json.loads(metrics.read_text())


def test_no_pick_is_an_exit_status_and_no_checkpoint(tiny: Load, tmp_path: Path, run: Run) -> None:
    config = tiny("train.validation_fraction=0.5", "test.score_threshold=0.0", "proposals.top_k_test=60")
    path = save_random(config, tmp_path / "best.pt")
    words = ("--search", "--max-loss", "-1", "--rank", "fc6=9", "--rank", "fc7=whole", "--device", "cpu")
    assert run("--checkpoint", path, *words) == 1
    assert not (tmp_path / "best_compressed.pt").exists()
    report = json.loads((tmp_path / "best_compressed.json").read_text())
    assert report["output"] is report["ranks"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give --search, or the ranks by --rank"),
        (("--rank", "fc6"), "--rank fc6: expected a layer and its rank"),
        (("--rank", "fc6=0"), "expected a layer and its rank"),
        (("--rank", "fc6=3,4"), "need --search"),
        (("--rank", "fc6=3", "--rank", "fc6=4"), "fc6 is given twice"),
        (("--rank", "fc6=whole"), "every layer stays as it is"),
        (("--rank", "fc7=16"), "fc7: rank 16 makes the layer no smaller"),
        (("--rank", "fc6=3", "--split", "val"), "add --search"),
        (("--rank", "fc6=3", "--output", "x.json"), r"name a \.pt file"),
        (("--search", "--max-loss", "nan"), "expected a finite number"),
        (("--search",), "no validation images .* with --split"),
        (("--search", "--split", "test"), "--split test: this is the test split"),
        (("--search", "--rank", "fc8=3"), "--rank fc8: the network has no such layer; it has fc6, fc7"),
        (("--search", "--rank", "fc7=16"), "fc7: rank 16 makes the layer no smaller"),
    ],
)
def test_what_cannot_be_done_is_one_error(
    tiny: Load,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    path = save_random(tiny(), tmp_path / "best.pt")
    monkeypatch.setattr("torch.linalg.svd", None)  # what takes long comes after all checks
    with pytest.raises(InputError, match=message):
        run("--checkpoint", path, *words)
    assert [one.name for one in tmp_path.glob("*compressed*")] == []


def test_too_many_networks_are_refused_before_anything_is_computed(
    tiny: Load, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("model.head.hidden=[32, 32, 32, 32]", "train.validation_fraction=0.5")
    path = save_random(config, tmp_path / "best.pt")
    monkeypatch.setattr("torch.linalg.svd", None)
    monkeypatch.setattr(compress, "open_scorer", None)
    with pytest.raises(InputError, match=r"networks, one for each .*fc9 \d+\).*512.*--rank fc9=whole"):
        run("--checkpoint", path, "--search")
    many = ",".join(map(str, range(1, 16)))
    with pytest.raises(InputError, match="networks, one for each combination"):
        run("--checkpoint", path, "--search", *("--rank", f"fc6={many}", "--rank", f"fc7={many}"))


def test_only_the_layers_that_get_a_rank_are_factored(
    tiny: Load, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    factored: list[tuple[int, ...]] = []
    real = torch.linalg.svd

    def svd(weight: torch.Tensor, **options: Any) -> Any:
        factored.append(tuple(weight.shape))
        return real(weight, **options)

    monkeypatch.setattr("torch.linalg.svd", svd)
    path = save_random(tiny(), tmp_path / "best.pt")
    assert run("--checkpoint", path, "--rank", "fc7=3") == 0
    assert factored == [(32, 32)]


@pytest.mark.parametrize("content", ['{"mAP": 0.7}', "[]", "not JSON", "", "folder", "link", "report"])
def test_only_an_earlier_report_is_overwritten(tiny: Load, tmp_path: Path, run: Run, content: str) -> None:
    path, report = save_random(tiny(), tmp_path / "best.pt"), tmp_path / "metrics.json"
    words = ("--checkpoint", path, "--rank", "fc6=9", "--output", tmp_path / "metrics.pt")
    if content == "report":
        assert run(*words) == 0
        (tmp_path / "metrics.pt").unlink()
        assert run(*words) == 0
        return
    if content == "folder":
        report.mkdir()
    elif content == "link":
        report.symlink_to(tmp_path / "elsewhere.json")
    else:
        report.write_text(content)
    with pytest.raises(InputError, match=r"would overwrite .*metrics\.json, which is no report"):
        run(*words)
    assert not (tmp_path / "metrics.pt").exists()
    assert not (tmp_path / "elsewhere.json").exists()
    assert content in ("folder", "link") or report.read_text() == content


def test_images_that_were_trained_on_or_are_tested_on_are_noticed(
    tiny: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    compress.note_shared_images(tiny("data.train_split=train"), "trainval")
    assert "images of trainval are in the training split train too" in capsys.readouterr().err
    with pytest.raises(
        InputError, match=r"--split trainval: \d+ of its images are in the test split val too"
    ):
        compress.note_shared_images(tiny("data.test_split=val"), "trainval")


def test_the_demo_takes_a_precision(tiny: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_random(tiny(), tmp_path / "best.pt"))
    for words, precision in (([], "float32"), (["--precision", "int8"], "int8")):
        given = ["demo", "x.jpg", "--checkpoint", "best.pt", "--output", "drawn", *words]
        monkeypatch.setattr("sys.argv", given)
        assert demo.demo_config(checkpoint, demo.parse()).test.precision == precision
