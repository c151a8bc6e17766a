"""Ablation suites: what is read, which config each run gets, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from rich.console import Console

from detector.commands.ablation import ablation_table, read_suite, results, write_run_config
from detector.config import load_config
from detector.core.errors import InputError
from tests.conftest import PROJECT

FRAGMENTS = PROJECT / "configs" / "ablation"
PAPER = FRAGMENTS / "suites" / "fast_rcnn_paper.yaml"


def test_the_papers_suite_has_a_valid_config_for_every_run(tmp_path: Path) -> None:
    suite = read_suite(PAPER)
    for studied in ("quickstart", "bccd_squeezenet", "fast_rcnn_vgg16_voc07"):
        base = load_config(PROJECT / "configs" / f"{studied}.yaml")
        for run in suite.runs:
            target = tmp_path / studied / f"{run.name}.yaml"
            written = write_run_config(suite, run, FRAGMENTS, PROJECT / "configs" / f"{studied}.yaml", target)
            config = load_config(written)
            assert (config == base) == (run.name == "multi_task" or same_by_design(studied, run.name))
    assert {path.stem for path in FRAGMENTS.glob("*.yaml")} == {run.name for run in suite.runs}


def same_by_design(studied: str, run: str) -> bool:
    """Some configs are already what a run asks for."""
    freeze = {"fast_rcnn_vgg16_voc07": "train_conv3_up", "bccd_squeezenet": "train_conv3_up"}
    if studied == "quickstart":
        return run == "dense" and load_config(PROJECT / "configs/quickstart.yaml").proposals.method == "dense"
    return freeze[studied] == run


def test_scales_follow_the_config_that_is_studied(tmp_path: Path) -> None:
    suite = read_suite(PAPER)
    run = next(run for run in suite.runs if run.name == "five_scales")
    for studied, expected, cap in (
        ("quickstart", (128, 154, 183, 230, 320), 533),
        ("fast_rcnn_vgg16_voc07", (480, 576, 688, 864, 1200), 2000),
    ):
        path = PROJECT / "configs" / f"{studied}.yaml"
        config = load_config(write_run_config(suite, run, FRAGMENTS, path, tmp_path / "run.yaml"))
        assert config.train.scales == config.test.scales == expected
        assert config.train.max_size == config.test.max_size == cap


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"runs": [{"name": "a", "question": "?", "checkpoint_of": "b"}]}, "a: checkpoint_of names no run"),
        ({"runs": [{"name": "a", "question": "?"}, {"name": "a", "question": "?"}]}, "two runs are called a"),
        ({"runs": [{"name": "../a", "question": "?"}]}, r"runs\.0\.name"),
        ({"runs": []}, "runs: "),
        ({"reference_scale": "600"}, "reference_scale: "),
    ],
)
def test_a_faulty_suite_is_refused_by_name(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = tmp_path / "suite.yaml"
    whole = {"title": "t", "reference_scale": 600, "runs": [{"name": "a", "question": "?"}], **change}
    path.write_text(yaml.safe_dump(whole))
    with pytest.raises(InputError, match=f"suite.yaml: {said}"):
        read_suite(path)


def test_the_table_shows_what_is_there_beside_the_paper(tmp_path: Path) -> None:
    suite = read_suite(PAPER)
    (tmp_path / "multi_task").mkdir()
    (tmp_path / "multi_task" / "metrics.json").write_text(
        '{"voc07_mAP": 0.5125, "voc_mAP": 0.25, "seconds": 12.3}'
    )
    found = results(suite, tmp_path)
    assert found["runs"][0]["voc07_mAP"] == 0.5125
    assert found["runs"][1]["voc07_mAP"] is None
    console = Console(width=160, record=True, file=(tmp_path / "shown").open("w"))
    console.print(ablation_table(found))
    line = next(line for line in console.export_text().splitlines() if "multi_task" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")][1:] == [
        "51.2",
        "25.0",
        "12",
        "57.1",
        "59.2",
        "66.9",
    ]
