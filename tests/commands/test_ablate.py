"""Ablation suites: what is read, the config of each run, the table, and the tool as a person runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from detector.commands.ablate import ablation_table, read_suite, write_results, write_run_config
from detector.config import load_config
from detector.core.errors import InputError
from tests.commands.conftest import Tool
from tests.conftest import PROJECT
from tests.tiny import TINY

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
    """Some configs already have the value that a run sets."""
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
    results = write_results(suite, tmp_path)
    assert results["runs"][0]["voc07_mAP"] == 0.5125
    assert results["runs"][1]["voc07_mAP"] is None
    console = Console(width=160, record=True, file=(tmp_path / "shown").open("w"))
    console.print(ablation_table(results))
    line = next(line for line in console.export_text().splitlines() if "multi_task" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")][1:] == [
        "51.2",
        "25.0",
        "12",
        "57.1",
        "59.2",
        "66.9",
    ]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    from detector.data.generated.dataset import generate_voc

    root = tmp_path / "voc"
    generate_voc(root, train_images=4, test_images=2, image_size=(96, 128), seed=1)
    path = tmp_path / "tiny.yaml"
    data = {**TINY["data"], "root": str(root), "workers": 0}
    path.write_text(yaml.safe_dump({**TINY, "data": data}))
    return path


@pytest.mark.slow
def test_runs_once_and_tests_one_network_twice(tool: Tool, config: Path, tmp_path: Path) -> None:
    arguments = ["--suite", "fast_rcnn_paper", "--data", config, "--output", tmp_path / "suite"]
    arguments += ["--only", "boxes_off_at_test", "train.steps=2"]
    result = tool("ablate", *arguments)
    assert result.returncode == 0, result.stderr
    trained = tmp_path / "suite" / "multi_task" / "checkpoints" / "step_2.pt"
    written = trained.stat().st_mtime_ns
    rows = json.loads((tmp_path / "suite" / "ablation.json").read_text())["runs"]
    done = {row["name"] for row in rows if row["voc07_mAP"] is not None}
    assert done == {"multi_task", "boxes_off_at_test"}
    again = tool("ablate", *arguments)
    assert again.returncode == 0
    assert again.stderr.count("already done") == 2
    assert trained.stat().st_mtime_ns == written
    assert "boxes_off_at_test" in again.stdout
    other = tool("ablate", *arguments[:-1], "train.steps=3")
    assert other.returncode == 2
    assert "studied.json: the runs here were made with other values of train;" in other.stderr


@pytest.mark.slow
def test_runs_are_started_without_the_tools_folder(config: Path, tmp_path: Path) -> None:
    """An installed package has no ``tools/``; its suites are package data."""
    installed = tmp_path / "installed"
    shutil.copytree(
        PROJECT / "detector", installed / "detector", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(PROJECT / "configs", installed / "detector" / "configs")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "detector").mkdir(parents=True)  # a folder of the user's that is called so
    line = [
        sys.executable,
        "-P",
        "-m",
        "detector",
        "ablate",
        "--suite",
        "fast_rcnn_paper",
        "--data",
        str(config),
    ]
    line += ["--output", str(tmp_path / "suite"), "--only", "multi_task", "train.steps=1"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run(line, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "suite" / "multi_task" / "checkpoints" / "step_1.pt").is_file()


def test_mistakes_are_named(tool: Tool, config: Path) -> None:
    for arguments, said in (
        (
            ["--suite", "nothing", "--data", config],
            "--suite nothing: no such suite; the suites are fast_rcnn_paper",
        ),
        (["--suite", "fast_rcnn_paper", "--data", "no.yaml"], "no.yaml: no such config file"),
        (["--suite", "fast_rcnn_paper", "--data", config, "--only", "x"], "--only x: the suite's runs are"),
    ):
        result = tool("ablate", *arguments)
        assert result.returncode == 2
        assert said in result.stderr
