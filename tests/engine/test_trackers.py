"""Weights & Biases and MLflow, offline: what they have stored is read back and compared with the log."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detector.config import Config, load_config
from detector.core.errors import InputError
from detector.core.files import read_json
from detector.engine import trackers
from detector.engine.callbacks import Callbacks, RunFacts
from detector.engine.run import StopRequested
from detector.engine.run_folder import remove_run
from detector.engine.run_log import read_log
from detector.engine.trackers import MlflowTracker, WandbTracker, flat, numbers, run_name
from detector.tasks.start import start_run
from tests.engine.wandb_file import WandbFile

Load = Callable[..., Config]
SHORT = ("train.schedule.kind=cosine", "train.evaluate_every=4", "train.validation_fraction=0.3")
WANDB = "train.callbacks=[{kind: wandb, project: cards, mode: offline}]"


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f'{package} is not installed: pip install ".[{package}]"')


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the settings of the person who runs the tests, and without any server."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
                 "MLFLOW_HTTP_REQUEST_TIMEOUT"):  # fmt: skip
        monkeypatch.setenv(name, "")  # so that what the tracker sets is taken back
        monkeypatch.delenv(name)


def train(config: Config, folder: Path, *, resume: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    run = start_run(config, folder, "cpu", resume=resume)
    run.run()
    run.finish()


def logged(folder: Path) -> dict[str, dict[int, float]]:
    """Return the numbers of log.jsonl: TensorBoard's name -> step -> value."""
    found: dict[str, dict[int, float]] = {}
    for line in read_log(folder / "log.jsonl"):
        for name, value in line.items():
            if name not in ("kind", "step") and isinstance(value, int | float):
                found.setdefault(f"{line['kind']}/{name}", {})[line["step"]] = value
    return found


def wandb_files(folder: Path) -> list[WandbFile]:
    """Read what W&B has written, once its own process has written the last record of each run."""
    paths = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    files = [WandbFile(path) for path in paths]
    for _ in range(100):
        if files and all(file.exit_code is not None for file in files):
            return files
        time.sleep(0.1)
        files = [WandbFile(path) for path in paths]
    raise AssertionError(f"W&B has not finished {paths}")


def series(files: list[WandbFile]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in (row for file in files for row in file.rows):
        for name, value in row.items():
            if re.match(r"(data|train|evaluate|test)/", name):
                found.setdefault(name, {})[row["step"]] = value
    return found


@needs("wandb")
def test_wandb_has_what_the_log_has_and_a_resumed_run_goes_on(tiny: Load, tmp_path: Path) -> None:
    folder = tmp_path / "my_run"
    train(tiny(WANDB, *SHORT, "train.steps=6"), folder)
    train(tiny(WANDB, *SHORT, "train.steps=8"), folder, resume=True)
    first, second = wandb_files(folder)
    assert series([first, second]) == logged(folder)
    assert first.run.run_id == second.run.run_id == read_json(folder / "trackers.json")["wandb: /cards"]
    assert (first.run.project, first.run.display_name) == ("cards", "my_run")
    assert {row["step"] for row in second.rows} == {7, 8}
    assert first.exit_code == second.exit_code == 0
    assert first.config["train"]["steps"] == 6
    assert second.config["train"]["steps"] == 8
    assert second.config["environment"] == read_json(folder / "environment.json")[1]
    pictures = [row for row in first.rows + second.rows if "trainval images/0/path" in row]
    assert [row["step"] for row in pictures] == [4, 6, 8]
    metrics = read_json(folder / "metrics.json")
    assert {name: second.summary[name] for name in numbers("final", metrics)} == numbers("final", metrics)


@needs("wandb")
def test_wandb_gets_no_name_of_host_or_user(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setattr(socket, "gethostname", lambda: "adas-laptop")
    monkeypatch.setenv("USER", "lovelace")
    folder = tmp_path / "run"
    train(tiny(WANDB, "train.steps=1"), folder)
    (file,) = wandb_files(folder)
    assert file.run.host == "Linux"
    content = b"".join(
        path.read_bytes() for path in folder.glob("wandb/offline-run-*/**/*") if path.is_file()
    )
    for private in (b"lovelace", b"adas-laptop"):
        assert private not in content
    assert not list(folder.glob("wandb/**/requirements.txt"))
    assert not list(folder.glob("wandb/**/wandb-metadata.json"))


@needs("wandb")
def test_the_files_of_wandb_are_deleted_with_their_run(tiny: Load, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tiny(WANDB, "train.steps=1"), folder)
    (folder / "wandb" / "notes.txt").write_text("mine")
    assert remove_run(folder) == ["wandb/notes.txt"]
    assert {path.name for path in folder.rglob("*")} == {"wandb", "notes.txt"}


@needs("wandb")
def test_a_stop_is_no_failure_and_an_error_is(tmp_path: Path) -> None:
    for number, error in enumerate((StopRequested(15, 4), InputError("a faulty image"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        callbacks = Callbacks([WandbTracker("cards", mode="offline")])
        callbacks.on_start(RunFacts(folder=folder, config={}, environment={}, step=0))
        callbacks.on_log("train", {"step": 1, "loss": 0.5})
        callbacks.on_error(error)
        callbacks.close()
        (file,) = wandb_files(folder)
        assert file.exit_code == number
        assert series([file]) == {"train/loss": {1: 0.5}}


@needs("wandb")
def test_wandb_without_a_key_is_switched_off_and_the_run_goes_on(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("HOME", str(tmp_path))  # no key in ~/.netrc
    train(tiny("train.callbacks=[{kind: wandb, project: cards}]", "train.steps=2"), tmp_path / "run")
    assert (
        capfd.readouterr().err.count("warning: WandbTracker is switched off, the run goes on: on_start: ")
        == 1
    )
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's own client of the folder that the tracker writes to."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=str(tmp_path / "mlruns"))


def mlflow(folder: Path) -> str:
    return f"train.callbacks=[{{kind: mlflow, tracking_uri: '{folder / 'mlruns'}', experiment: cards}}]"


def history(client: Any, run: Any) -> dict[str, dict[int, float]]:
    return {
        name: {one.step: one.value for one in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
        if re.match(r"(data|train|evaluate|test)/", name)
    }


@needs("mlflow")
def test_mlflow_has_what_the_log_has_and_a_resumed_run_goes_on(
    tiny: Load, tmp_path: Path, client: Any
) -> None:
    folder = tmp_path / "my_run"
    first = tiny(mlflow(tmp_path), *SHORT, "train.steps=6")
    train(first, folder)
    train(tiny(mlflow(tmp_path), *SHORT, "train.steps=8"), folder, resume=True)
    experiment = client.get_experiment_by_name("cards")
    (run,) = client.search_runs([experiment.experiment_id])
    assert read_json(folder / "trackers.json") == {f"mlflow: {tmp_path / 'mlruns'} cards": run.info.run_id}
    assert history(client, run) == logged(folder)
    assert (run.info.run_name, run.info.status) == ("my_run", "FINISHED")
    assert run.data.params == flat(first.model_dump(mode="json"))
    metrics = read_json(folder / "metrics.json")
    assert {name: run.data.metrics[name] for name in numbers("final", metrics)} == numbers("final", metrics)
    artifacts = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "environment.json", "metrics.json", "run.png"} <= artifacts
    kept = Path(client.download_artifacts(run.info.run_id, "environment.json", str(tmp_path)))
    assert read_json(kept) == read_json(folder / "environment.json")
    pictures = [
        one.path for one in client.list_artifacts(run.info.run_id, "images") if one.path.endswith(".png")
    ]
    assert {int(step) for path in pictures for step in re.findall(r"\+step\+(\d+)", path)} == {4, 6, 8}


@needs("mlflow")
def test_a_new_run_in_the_same_folder_is_a_new_run_of_the_tracker(
    tiny: Load, tmp_path: Path, client: Any
) -> None:
    for _ in range(2):
        train(tiny(mlflow(tmp_path), "train.steps=1"), tmp_path / "run")
    runs = client.search_runs([client.get_experiment_by_name("cards").experiment_id])
    assert len(runs) == 2
    assert list(read_json(tmp_path / "run" / "trackers.json").values()) == [runs[0].info.run_id]


@needs("mlflow")
@pytest.mark.parametrize(
    ("error", "status"), [(StopRequested(15, 4), "KILLED"), (InputError("a faulty image"), "FAILED")]
)
def test_mlflow_is_told_how_a_run_ended(tmp_path: Path, client: Any, error: Exception, status: str) -> None:
    for name in ("config.yaml", "environment.json"):
        (tmp_path / name).touch()
    callbacks = Callbacks([MlflowTracker(str(tmp_path / "mlruns"), "cards", name="mine")])
    callbacks.on_start(RunFacts(folder=tmp_path, config={"seed": 3}, environment={}, step=0))
    callbacks.on_error(error)
    callbacks.close()
    (run,) = client.search_runs([client.get_experiment_by_name("cards").experiment_id])
    assert (run.info.status, run.info.run_name) == (status, "mine")


@needs("mlflow")
def test_a_server_that_does_not_answer_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    callbacks = Callbacks([MlflowTracker("http://127.0.0.1:9", "cards")])
    callbacks.on_start(RunFacts(folder=tmp_path, config={}, environment={}, step=0))
    assert not callbacks
    assert "warning: MlflowTracker is switched off, the run goes on: on_start: " in capfd.readouterr().err
    assert not (tmp_path / "trackers.json").exists()


@pytest.mark.parametrize(
    ("callback", "package", "command"),
    [
        ("{kind: wandb, project: p}", "wandb", r'pip install "\.\[wandb\]"'),
        ("{kind: mlflow, experiment: e}", "mlflow", r'pip install "\.\[mlflow\]"'),
        ("{kind: mlflow, experiment: e, tracking_uri: 'sqlite:///m.db'}", "sqlalchemy", "pip install mlflow"),
    ],
)
def test_a_missing_package_is_one_error_before_anything_is_read(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, callback: str, package: str, command: str
) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str) -> Any:
        return None if name == package else found(name) or "installed"

    monkeypatch.setattr(trackers.importlib.util, "find_spec", find_spec)
    with pytest.raises(
        InputError, match=rf"train\.callbacks: .*is not installed; install it with {command},"
    ):
        start_run(tiny(f"train.callbacks=[{callback}]", "data.root=absent"), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_only_numbers_are_sent_and_under_the_names_of_tensorboard() -> None:
    values = {"step": 3, "loss": 0.5, "images": 4, "split": "test", "done": True, "dropped": {"a": 1}}
    assert numbers("train", values) == {"train/loss": 0.5, "train/images": 4}
    nested = {"a": {"b": 1, "c": {}}, "d": [1, "x"], "e": "text", "f": None}
    assert flat(nested) == {"a.b": "1", "a.c": "{}", "d": '[1, "x"]', "e": "text", "f": "null"}


def test_a_stage_is_named_by_its_run(tmp_path: Path) -> None:
    assert run_name(tmp_path / "mine") == "mine"
    assert run_name(tmp_path / "mine" / "stages" / "01_classify") == "mine_01_classify"


def test_damaged_ids_are_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    facts = RunFacts(folder=tmp_path, config={}, environment={}, step=4)
    path = tmp_path / "trackers.json"
    for content in ('{"a": ', "[1]", '{"a": 1}'):
        path.write_text(content)
        assert trackers.known_id(facts, "a") is None
        assert "the trackers start new runs" in capfd.readouterr().err
        trackers.keep_id(tmp_path, "a", "x")
        assert json.loads(path.read_text()) == {"a": "x"}
        capfd.readouterr()
    trackers.keep_id(tmp_path, "b", "y")
    assert (trackers.known_id(facts, "a"), trackers.known_id(facts, "b")) == ("x", "y")


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ("[{kind: wandb}]", r"train\.callbacks.*project"),
        ("[{kind: wandb, project: p, experiment: e}]", r"experiment"),
        ("[{kind: wandb, project: p, mode: sometimes}]", r"mode"),
        ("[{kind: tensorbord}]", r"wandb.*mlflow"),
        ("[{project: p}]", r"kind"),
        ("[{kind: mlflow, experiment: e, tracking_uri: 'https://a:b@host/'}]", "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_a_faulty_entry_is_one_clear_error(tiny_config: Path, callbacks: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(tiny_config, [f"train.callbacks={callbacks}"])
