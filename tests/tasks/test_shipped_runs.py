"""Two shipped configs on real photographs: some steps on a few images, from annotations to scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.config import load_config
from detector.core.files import IMAGE_SUFFIXES
from detector.tasks.start import start_run
from tests.conftest import PROJECT

WEIGHTS = "data/weights/mobilenet_v2_features.pth"
KEPT = 4
"""Images per split."""


@pytest.mark.parametrize(
    ("name", "metric"),
    [("cards_mobilenet", "voc07_mAP"), ("coco256_mobilenet", "AP")],
    ids=["cards", "coco256"],
)
def test_runs_on_a_few_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, metric: str
) -> None:
    config = load_config(PROJECT / "configs" / f"{name}.yaml")
    assert config.model.backbone.weights == WEIGHTS
    root = PROJECT / config.data.root
    for needed in (root, PROJECT / WEIGHTS):
        if not needed.exists():
            pytest.skip(f"{needed.relative_to(PROJECT)} is not there")
    monkeypatch.chdir(tmp_path)  # proposals and decoded annotations are kept below the working directory
    config = load_config(
        PROJECT / "configs" / f"{name}.yaml",
        [
            f"data.root={root}",
            f"data.leave_out={all_but_a_few(root, tmp_path)}",
            f"model.backbone.weights={PROJECT / WEIGHTS}",
            "model.head.hidden=[16]",
            "proposals.width=96",
            "train.steps=3",
            "train.scales=[96]",
            "test.scales=[96]",
        ],
    )
    run = start_run(config, tmp_path / "run", "cpu")
    evaluation = run.run()
    assert run.step == 3
    assert evaluation.metrics["images"] == KEPT
    assert 0 <= evaluation.metrics[metric] <= 1


def all_but_a_few(root: Path, folder: Path) -> Path:
    """Write the list of all images of each folder but the first ones, for data.leave_out."""
    images: dict[Path, list[str]] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.setdefault(path.parent, []).append(path.relative_to(root).as_posix())
    left_out = folder / "leave_out.txt"
    left_out.write_text("".join(f"{image}\n" for each in images.values() for image in each[KEPT:]))
    return left_out
