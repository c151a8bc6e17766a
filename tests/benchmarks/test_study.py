"""Studies of variants: which trainings they start, that they score no test split, and their table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from benchmarks import study
from detector.config import load_config
from detector.core.errors import InputError
from tests.conftest import PROJECT

CONFIGS = [str(PROJECT / "configs" / f"{name}_squeezenet.yaml") for name in ("bccd", "cards")]
VARIANTS = study.read_study("augmentation")


def options(folder: Path, *overrides: str) -> argparse.Namespace:
    return argparse.Namespace(seeds=[0, 1], steps=7, final=False, folder=folder, overrides=[*overrides])


@pytest.mark.parametrize("path", CONFIGS)
def test_every_run_is_scored_on_images_that_are_not_the_test_split(path: str, tmp_path: Path) -> None:
    jobs = study.jobs_of(path, VARIANTS, options(tmp_path))
    assert len(jobs) == 2 * len(VARIANTS)
    assert len({job.folder for job in jobs}) == len(jobs)
    tested = load_config(path).data
    for job in jobs:
        config = job.loaded
        assert (config.data.train_split, config.data.test_split) == ("train", "val")
        assert "test" not in str(config.data.split_ratio or "") + config.data.images + config.data.annotations
        assert config.data.test_split != tested.test_split
        assert config.train.evaluate_split is None
        assert (config.seed, config.train.steps) == (job.seed, 7)
        assert config.train.augment.active == (job.variant != "none")


def test_all_together_is_the_sum_of_the_others(tmp_path: Path) -> None:
    jobs = {
        job.variant: job.loaded.train.augment
        for job in study.jobs_of(CONFIGS[0], VARIANTS, options(tmp_path))
    }
    for part, name in {"color_jitter": "colour jitter", "crop": "crop", "cutout": "cut-out"}.items():
        assert getattr(jobs["all"], part) == getattr(jobs[name], part) != getattr(jobs["none"], part)
        assert [getattr(one, part).active for one in jobs.values()].count(True) == 2


def test_a_config_whose_test_split_would_be_scored_is_refused(tiny_config: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tiny\.yaml: its test split would be scored"):
        study.jobs_of(str(tiny_config), VARIANTS, options(tmp_path))


def finished(job: study.Job, score: float, **changes: Any) -> None:
    job.folder.mkdir(parents=True)
    stored = load_config(job.config, [*job.overrides, *changes.get("overrides", [])])
    (job.folder / "config.yaml").write_text(yaml.safe_dump(stored.model_dump(mode="json")))
    row = {"voc07_AP": score}
    metrics = {"voc07_mAP": score, "voc_mAP": score / 2, "images": 3, "split": "val"}
    content = {**metrics, "per_class": {"disc": row, "ring": {"voc07_AP": None}}}
    (job.folder / "metrics.json").write_text(json.dumps(content))


def test_a_finished_run_is_read_and_put_into_the_table(tiny_config: Path, tmp_path: Path) -> None:
    jobs = study.jobs_of(str(tiny_config), VARIANTS, options(tmp_path / "runs", "data.test_split=val"))
    for number, job in enumerate(jobs):
        finished(job, number / 16, overrides=["data.workers=0"])
    results = [study.run(job, "cpu") for job in jobs]
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    console.print(study.table("tiny", results))
    lines = console.export_text().splitlines()
    (crop,) = [line for line in lines if line.startswith("│ crop")]
    assert "0.281 ± 0.044" in crop  # seeds 4 and 5 of 16
    assert "+0.250" in crop
    assert "0.141 ± 0.022" in crop
    assert crop.rstrip("│ ").endswith("-")


def test_a_run_with_other_settings_is_refused(tiny_config: Path, tmp_path: Path) -> None:
    job = study.jobs_of(str(tiny_config), VARIANTS, options(tmp_path / "runs", "data.test_split=val"))[0]
    finished(job, 0.5, overrides=["train.learning_rate=0.5"])
    with pytest.raises(InputError, match=r"trained with another train\.learning_rate; give another --folder"):
        study.run(job, "cpu")


@pytest.mark.slow
def test_a_run_is_trained_once_and_leaves_no_checkpoints(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = study.jobs_of(str(tiny_config), VARIANTS, options(tmp_path / "runs", "data.test_split=val"))[-1]
    found = study.run(job, "cpu")
    assert (found["variant"], found["split"]) == ("all", "val")
    assert not (job.folder / "checkpoints").exists()
    (job.folder / "output.txt").unlink()
    assert study.run(job, "cpu") == found
    assert not (job.folder / "output.txt").exists()


@pytest.mark.slow
def test_a_training_that_fails_is_named(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = study.jobs_of(str(tiny_config), VARIANTS, options(tmp_path / "runs", "data.test_split=nowhere"))[0]
    with pytest.raises(InputError, match=r"failed; see .*output\.txt"):
        study.run(job, "cpu")
    assert "nowhere" in (job.folder / "output.txt").read_text()


def test_what_was_chosen_is_scored_on_the_test_split(tmp_path: Path) -> None:
    chosen = options(tmp_path)
    chosen.final = True
    job = study.jobs_of(CONFIGS[0], VARIANTS, chosen)[0]
    assert (job.loaded.data.train_split, job.loaded.data.test_split) == ("trainval", "test")


@pytest.mark.parametrize("path", sorted(study.STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_maps_names_to_overrides(path: Path) -> None:
    for name, overrides in study.read_study(path.stem).items():
        assert name
        assert all("=" in text for text in overrides)
    with pytest.raises(InputError, match=r"--study none: there is none of this name; known: .*augmentation"):
        study.read_study("none")
