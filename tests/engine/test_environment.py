"""What a run records of its environment: facts compared with the system's own, and nothing private."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.config import Config
from detector.core.errors import InputError
from detector.core.files import file_hash
from detector.engine import environment as environments
from detector.engine.environment import (
    driver_version,
    environment,
    git_state,
    private,
    read_environments,
    record_environment,
)
from detector.engine.run_folder import remove_run
from detector.tasks.start import start_run
from tests.conftest import PROJECT

Load = Callable[..., Config]


def entry(**given: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"step": 0, "seed": 3, "data_fingerprint": {"training: trainval": "2-00"}}
    return environment(**{**usual, "device": "cpu", "loader_threads": 2, **given})


def test_the_facts_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tools/train.py", "--config", "quickstart"])
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = entry(step=5, processes={"world_size": 2})
    assert found == json.loads(json.dumps(found))
    assert found["command"] == ["tools/train.py", "--config", "quickstart"]
    assert (found["step"], found["seed"], found["device"]) == (5, 3, "cpu")
    assert found["data_fingerprint"] == {"training: trainval": "2-00"}
    assert found["processes"] == {"world_size": 2}
    assert entry()["processes"] == {"world_size": 1}
    for name in ("torch", "torchvision", "numpy"):
        assert found["versions"][name].split("+")[0] == version(name).split("+")[0]
    assert version("opencv-python").startswith(found["versions"]["opencv"])
    assert found["versions"]["python"] == "{}.{}.{}".format(*sys.version_info[:3])
    assert found["threads"]["compute"] == torch.get_num_threads()
    assert found["threads"]["loader"] == 2
    assert found["processor"]["architecture"] == platform.machine()
    assert found["variables"]["OMP_NUM_THREADS"] == "7"
    assert "CUDA_VISIBLE_DEVICES" not in found["variables"]
    assert len(found["gpus"]) == torch.cuda.device_count()
    library = next((PROJECT / "detector").glob("_C.*so"))
    assert found["native_libraries"]["_C"] == file_hash(library)
    assert datetime.now(UTC) - datetime.fromisoformat(found["started"]) < timedelta(minutes=1)


def test_nothing_private_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home" / "lovelace"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "lovelace")
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-key")
    uri = "train.callbacks=[{kind: mlflow, tracking_uri: 'https://lovelace:pass-word@host/x', experiment: e}]"
    monkeypatch.setattr(sys, "argv", [f"{home}/x/tools/train.py", f"data.root={home}", f"{home}s/y", uri])
    found = entry()
    assert found["command"][:3] == ["~/x/tools/train.py", "data.root=~", f"{home}s/y"]
    assert "https://host/x" in found["command"][3]
    text = json.dumps({**found, "command": found["command"][:2]})
    for secret in (
        "ada",
        "pass-word",
        "a-secret-key",
        platform.node() if len(platform.node()) > 3 else "ada",
    ):
        assert secret not in text
    monkeypatch.setenv("HOME", "/")  # as in some containers
    assert private("/data/x") == "/data/x"


def test_a_resumed_run_adds_its_environment(tiny: Callable[..., Config], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = tiny("train.schedule.kind=cosine")
    run = start_run(tiny("train.steps=4", "train.schedule.kind=cosine"), folder, "cpu")
    assert not (folder / "environment.json").exists()
    run.run()
    first = read_environments(folder)
    assert [one["step"] for one in first] == [0]
    assert first[0]["data_fingerprint"] == run.task.data_fingerprint
    assert (first[0]["seed"], first[0]["threads"]["loader"]) == (3, 1)
    start_run(config, folder, "cpu", resume=True).run()
    both = read_environments(folder)
    assert [one["step"] for one in both] == [0, 4]
    assert both[0] == first[0]
    start_run(config, folder, "cpu").run()  # a new run in the same folder
    assert [one["step"] for one in read_environments(folder)] == [0]
    assert remove_run(folder) == []
    assert not (folder / "environment.json").exists()


def test_a_damaged_record_is_reported_and_does_not_end_a_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "environment.json"
    for content in ('[{"step": 0}', '{"step": 0}', "[1]"):
        path.write_text(content)
        record_environment(tmp_path, {"step": 4}, resumed=True)
        assert "the earlier entries are lost" in capfd.readouterr().err
        assert read_environments(tmp_path) == [{"step": 4}]
    record_environment(tmp_path, {"step": 8}, resumed=True)
    assert read_environments(tmp_path) == [{"step": 4}, {"step": 8}]
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_one_error_and_keeps_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_environment(tmp_path, {"step": 0}, resumed=False)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match=r"environment\.json: cannot write the file: No space left"):
        record_environment(tmp_path, {"step": 4}, resumed=True)
    assert read_environments(tmp_path) == [{"step": 0}]


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *names, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one commit."""
    root = tmp_path / "checkout"
    (root / "detector").mkdir(parents=True)
    (root / "detector" / "a.py").write_text("1\n")
    (root / ".gitignore").write_text("*.so\n")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


def test_the_commit_and_whether_the_checkout_is_dirty(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a hook of another repository
    assert git_state(checkout) == clean
    (checkout / "mine.yaml").write_text("")  # a config of the user's own changes no code
    (checkout / "detector" / "_C.so").write_text("")
    assert git_state(checkout) == clean
    (checkout / "detector" / "b.py").write_text("")
    assert git_state(checkout) == {**clean, "dirty": True}
    (checkout / "detector" / "b.py").unlink()
    (checkout / "detector" / "a.py").write_text("2\n")
    assert git_state(checkout) == {**clean, "dirty": True}


def test_without_git_or_a_commit_there_is_no_commit(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = checkout / "site-packages"
    inside.mkdir()
    assert git_state(inside) is None  # the checkout is another project's
    git(tmp_path, "init", "-q", str(tmp_path / "empty"))
    assert git_state(tmp_path / "empty") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(checkout) is None

    def slow(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("git", 10)

    monkeypatch.setattr(environments.subprocess, "run", slow)
    assert git_state(checkout) is None


def test_the_driver_is_read_from_what_the_system_says(tmp_path: Path) -> None:
    path = tmp_path / "version"
    closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
    opened = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)\n"
    for text, expected in (
        (closed, "535.104.05"),
        (opened + "GCC version:  gcc version 12.2.0\n", "580.65.06"),
        ("something else 1.2\n", None),
    ):
        path.write_text(text)
        assert driver_version(path) == expected
    assert driver_version(tmp_path / "absent") is None


def test_variables_are_few_and_none_is_a_secret() -> None:
    assert len(environments.VARIABLES) < 20
    assert not [name for name in environments.VARIABLES if "KEY" in name or "TOKEN" in name or "PASS" in name]
    assert set(entry()["variables"]) <= set(environments.VARIABLES) & set(os.environ)
