"""A run's folder: what counts as a run of ours, what is deleted, and one process at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from detector.core.errors import InputError
from detector.engine.run_folder import (
    LOCK,
    check_place,
    holds_work,
    is_run,
    note_pictures,
    remove_run,
    remove_start,
    run_folder,
    run_lock,
    snapshot,
)

CONFIG = "seed: 0\ndata:\n  root: x\nmodel: {}\ntrain: {}\n"
OURS = (
    *("checkpoints/step_4.pt", "checkpoints/best.pt", "checkpoints/.step_5.pt.77.tmp"),
    *("tensorboard/events.out.tfevents.1.host.2.0", "log.jsonl", "metrics.json", "run.png"),
    *("results/comp4_det_test_car.txt", "results/comp2_cls_test_car.txt", "results/coco_test.json"),
    *(
        "stages/01_a/done.json",
        "stages/01_a/fit.pt",
        "stages/01_a/checkpoints/step_2.pt",
        "stages/01_a/log.jsonl",
    ),
    *("stages/01_a/tensorboard/events.out.tfevents.3.h.4.0", "stages/01_a/config.yaml"),
    *(
        "cache/0123456789abcdef/maps.bin",
        "cache/0123456789abcdef/done.bin",
        "cache/0123456789abcdef/cache.json",
    ),
    *("detections/000001.jpg", "classified/000001.jpg"),
    *("faults/step_7.pt", "faults/.step_8.pt.77.tmp", "stages/01_a/faults/step_7.pt"),
    *("environment.json", "trackers.json", "stages/01_a/environment.json", "stages/01_a/trackers.json"),
    *("wandb/offline-run-20261126_205416-a96c/files/media/a.png", "wandb/debug-internal.log"),
    *("wandb/run-20261126_205416-a96c/run-a96c.wandb", "stages/01_a/wandb/latest-run"),
)
UNFINISHED = (
    *("checkpoints/.step_5.pt.77.tmp", "checkpoints/.best.pt.77.tmp", ".log.jsonl.77.tmp"),
    *(".config.yaml.77.tmp", ".metrics.json.77.tmp", ".run.png.77.tmp", "faults/.step_5.pt.77.tmp"),
    *("results/.comp4_det_test_car.txt.77.tmp", "detections/.000001.jpg.77.tmp"),
    *("tensorboard/.events.out.tfevents.0000000005.77.tmp", "stages/01_a/.done.json.77.tmp"),
    *("stages/01_a/.fit.pt.77.tmp", "stages/01_a/checkpoints/.step_5.pt.77.tmp"),
    *(".environment.json.77.tmp", "stages/01_a/.trackers.json.77.tmp"),
    *("stages/01_a/.log.jsonl.77.tmp", "cache/0123456789abcdef/.cache.json.77.tmp"),
)
"""What processes leave that are killed while they write."""
THEIRS = (
    *("wandb/notes.txt", "wandb/settings/mine.txt"),
    *("notes.txt", "results/thesis.txt", "results/sub/comp4_det_test_car.txt", "cache/pip/wheel.whl"),
    *("detections/holiday.jpg", "checkpoints/other.pt", "checkpoints/step_x.pt", "tensorboard/mine.txt"),
    *("stages/plan.txt", "classified/ads.jpg", "cache/maps.bin", "faults/report.txt", ".notes.txt.77.tmp"),
)


def fill(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    fill(tmp_path, OURS)
    for place in ("detections", "classified"):
        note_pictures(tmp_path / place, ["000001.jpg"])
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def test_only_what_runs_write_is_removed(run: Path) -> None:
    fill(run, THEIRS)
    kept = remove_run(run)
    assert names_in(run) == set(THEIRS)
    assert kept == sorted(set(THEIRS) - {"notes.txt", ".notes.txt.77.tmp"})


def test_of_a_whole_run_nothing_stays(run: Path) -> None:
    assert remove_run(run) == []
    assert list(run.iterdir()) == []


def test_a_folder_that_held_no_run_keeps_everything(tmp_path: Path) -> None:
    fill(tmp_path, tuple(name for name in OURS if name != "log.jsonl"))
    (tmp_path / "config.yaml").write_text("data: of another program\n")
    before = names_in(tmp_path)
    assert not is_run(tmp_path)
    assert remove_run(tmp_path) == []
    assert names_in(tmp_path) == before
    with pytest.raises(InputError, match=r"holds checkpoints, tensorboard, results.*another --output"):
        check_place(tmp_path)


def test_copied_checkpoints_are_enough_to_go_on(tmp_path: Path) -> None:
    fill(tmp_path, ("checkpoints/step_4.pt",))
    check_place(tmp_path, go_on=True)
    with pytest.raises(InputError, match="holds checkpoints, which no run"):
        check_place(tmp_path)
    fill(tmp_path, ("results/thesis.txt",))
    with pytest.raises(InputError, match="holds checkpoints, results, which no run"):
        check_place(tmp_path, go_on=True)


@pytest.mark.parametrize(
    ("text", "ours"),
    [('{"kind": "data", "step": 0}\n', True), ("[1]\n", False), ("", False), ('{"kind": "da', False)],
)
def test_a_log_alone_shows_a_run(tmp_path: Path, text: str, ours: bool) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    assert is_run(tmp_path) is ours


def test_pictures_that_the_list_does_not_name_stay(run: Path) -> None:
    (run / "detections/.pictures.json").write_text(json.dumps(["../log.jsonl", 3, "000001.jpg"]))
    (run / "classified/.pictures.json").write_text("{")
    remove_run(run)
    assert names_in(run) == {"classified/000001.jpg"}


def test_links_are_removed_and_not_followed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    fill(elsewhere, ("checkpoints/step_1.pt",))
    (run / "stages/02_b").symlink_to(elsewhere)
    (run / "checkpoints/step_9.pt").symlink_to(elsewhere / "checkpoints/step_1.pt")
    remove_run(run)
    assert (elsewhere / "checkpoints/step_1.pt").is_file()
    assert names_in(run) == set()


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("checkpoints/step_4.pt", True),
        ("checkpoints/best.pt", True),
        ("stages/01_a/done.json", True),
        ("stages/01_a/fit.pt", True),
        ("stages/01_a/checkpoints/step_2.pt", True),
        ("log.jsonl", False),
        ("checkpoints/.step_4.pt.7.tmp", False),
        ("stages/01_a/config.yaml", False),
    ],
)
def test_work_is_what_a_run_can_go_on_from(tmp_path: Path, name: str, work: bool) -> None:
    fill(tmp_path, (name,))
    assert holds_work(tmp_path) is work


def test_a_start_that_failed_takes_its_files_with_it_and_no_others(tmp_path: Path) -> None:
    fill(tmp_path, ("notes.txt", "results/thesis.txt"))
    before = snapshot(tmp_path)
    fill(tmp_path, ("log.jsonl", "tensorboard/events.out.tfevents.1.h.2.0", "stages/01_a/log.jsonl"))
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "checkpoints").mkdir()
    remove_start(tmp_path, before)
    assert names_in(tmp_path) == {"notes.txt", "results/thesis.txt"}
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "results"}


@pytest.mark.parametrize(
    "worth",
    [
        *("checkpoints/step_2.pt", "cache/0123456789abcdef/done.bin", "log.jsonl"),
        *("faults/step_3.pt", "stages/01_a/faults/step_3.pt"),
    ],
)
def test_work_outlives_an_error(tmp_path: Path, worth: str) -> None:
    before = snapshot(tmp_path)
    fill(tmp_path, ("metrics.json", worth))
    if worth == "log.jsonl":
        (tmp_path / worth).write_text('{"kind": "data", "step": 0}\n{"kind": "train", "step": 1}\n')
    remove_start(tmp_path, before)
    assert names_in(tmp_path) == {"metrics.json", worth}


HOLD = """
import os, sys, time
from pathlib import Path
from detector.engine.run_folder import run_lock
with run_lock(Path(sys.argv[1])):
    if os.fork() == 0:  # a child process that outlives its parent
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Start a process, with a child of its own, that holds the lock of ``folder``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_live_process_is_named_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        for _ in range(2):
            with (
                pytest.raises(InputError, match=rf"process {process.pid} is training in this folder"),
                run_lock(tmp_path),
            ):
                pass
        process.kill()
        process.wait(20)
        with run_lock(tmp_path):
            assert (tmp_path / LOCK).read_text().split()[0] == str(os.getpid())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_the_lock_leaves_nothing_behind_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_unfinished_goes_at_the_next_start(run: Path) -> None:
    fill(run, (*THEIRS, *UNFINISHED))
    before = names_in(run)
    with run_folder(run, go_on=True, overwrite=False):
        found = names_in(run)
    unfinished = {name for name in before if name.endswith(".77.tmp")} - {".notes.txt.77.tmp"}
    assert unfinished >= set(UNFINISHED)
    assert found == (before - unfinished) | {LOCK}
    assert names_in(run) == before - unfinished


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("go_on", [True, False])
def test_an_output_that_may_only_be_read_is_refused_and_stays(go_on: bool) -> None:
    """As another user, since root may write everywhere."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "out", "run")
        fill(folder, ("checkpoints/step_4.pt",))
        (folder / "config.yaml").write_text(CONFIG)
        before = names_in(folder)
        for path in (folder / "checkpoints", folder, folder.parent, Path(place)):
            path.chmod(0o555)
        os.seteuid(65534)
        try:
            for wanted in (folder, folder.parent / "new"):
                with (
                    pytest.raises(InputError, match="cannot write the run's folder: Permission denied"),
                    run_folder(wanted, go_on=go_on, overwrite=not go_on),
                ):
                    pass
        finally:
            os.seteuid(0)
        assert names_in(folder) == before
        assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="absent: cannot write the run's folder"),
        run_lock(tmp_path / "absent"),
    ):
        pass
    os.mkfifo(tmp_path / LOCK)  # nothing waits for a reader of it
    with pytest.raises(InputError, match=r"\.run\.lock: not a regular file"), run_lock(tmp_path):
        pass
