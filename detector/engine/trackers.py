"""Experiment trackers as callbacks: Weights & Biases and MLflow, whose packages are optional.

Both get every number of ``log.jsonl`` under the names that TensorBoard has (``train/loss``), the drawn
images, the config, the environment and the final metrics. Checkpoints stay where they are. A resumed run goes
on in the tracker's run that it had before: ``trackers.json`` in its folder has the ids.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detector.core.errors import InputError
from detector.core.files import read_json, write_text
from detector.core.progress import note
from detector.engine.callbacks import Callback, RunFacts
from detector.engine.run import StopRequested

TRACKERS = "trackers.json"
Mode = Literal["online", "offline", "disabled"]


class WandbTracker(Callback):
    """Sends a run to Weights & Biases, or with ``mode`` "offline" writes it to ``wandb/`` in its folder.

    Of this machine it sends what ``environment.json`` has; W&B's own record, with host and user, is off.
    """

    def __init__(
        self, project: str, *, entity: str | None = None, name: str | None = None, mode: Mode = "online"
    ) -> None:
        """``name`` None is the name of the run's folder.

        Raises:
            InputError: the package is not installed.
        """
        require_package("wandb", "wandb")
        self.project, self.entity, self.name, self.mode = project, entity, name, mode
        self._run: Any = None
        self._failed = False

    def on_start(self, facts: RunFacts) -> None:
        import wandb

        key = f"wandb: {self.entity or ''}/{self.project}"
        known = known_id(facts, key)
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.name or run_name(facts.folder),
            id=known or uuid.uuid4().hex[:12],
            resume="allow",
            mode=self.mode,
            dir=str(facts.folder),
            config={**facts.config, "environment": dict(facts.environment)},
            allow_val_change=True,
            reinit="create_new",
            settings=wandb.Settings(
                host=platform.system(),  # instead of the host's name
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        )
        keep_id(facts.folder, key, str(self._run.id))
        if self.mode == "online" and self._run.url:
            note(f"Weights & Biases shows the run at {self._run.url}")
        # Their own count of steps only grows, and a resumed run may repeat some.
        self._run.define_metric("*", step_metric="step")

    def on_log(self, kind: str, values: Mapping[str, Any]) -> None:
        self._run.log({**numbers(kind, values), "step": int(values["step"])})

    def on_images(self, name: str, images: Sequence[np.ndarray], step: int) -> None:
        import wandb

        # Not as one list, in which W&B wants all images to have the same size.
        shown = {f"{name}/{number}": wandb.Image(image) for number, image in enumerate(images)}
        if shown:
            self._run.log({**shown, "step": step})

    def on_finish(self, metrics: Mapping[str, Any], folder: Path) -> None:
        self._run.summary.update(numbers("final", metrics))

    def on_error(self, error: BaseException) -> None:
        self._failed = not isinstance(error, StopRequested)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(self._failed))


class MlflowTracker(Callback):
    """Sends a run to an MLflow server, or writes it to a database or a folder.

    A user name and a password for a server come from ``MLFLOW_TRACKING_USERNAME`` and
    ``MLFLOW_TRACKING_PASSWORD``.
    """

    def __init__(self, tracking_uri: str | None, experiment: str, *, name: str | None = None) -> None:
        """``tracking_uri`` None is MLflow's own choice, such as ``MLFLOW_TRACKING_URI``.

        Raises:
            InputError: the package is not installed, or that for databases.
        """
        require_package("mlflow", "mlflow")
        if tracking_uri is not None and _DATABASE.match(tracking_uri):
            require_package("sqlalchemy", "mlflow", f"for {tracking_uri.partition(':')[0]}: ", "mlflow")
        self.tracking_uri, self.experiment, self.name = tracking_uri, experiment, name
        self._client: Any = None
        self._id: str | None = None
        self._status = "FINISHED"
        self._step = 0

    def on_start(self, facts: RunFacts) -> None:
        # By default MLflow reports its use to its makers and refuses folders; these variables change that.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        if self.tracking_uri is not None and _is_folder(self.tracking_uri):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # Its own limits hold a training up for several minutes where the server does not answer.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=self.tracking_uri)
        key = f"mlflow: {self.tracking_uri or ''} {self.experiment}"
        self._id = known_id(facts, key)
        if self._id is None:
            self._id = self._new_run(facts)
            keep_id(facts.folder, key, self._id)
        else:
            self._client.update_run(self._id, status="RUNNING")
        for name in ("config.yaml", "environment.json"):
            self._client.log_artifact(self._id, str(facts.folder / name))

    def _new_run(self, facts: RunFacts) -> str:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(self.experiment)
        number = (
            self._client.create_experiment(self.experiment)
            if experiment is None
            else experiment.experiment_id
        )
        made = self._client.create_run(number, run_name=self.name or run_name(facts.folder))
        every = [Param(key, text[:_LONGEST_PARAM]) for key, text in flat(facts.config).items()]
        for start in range(0, len(every), _PARAMS_AT_A_TIME):
            self._client.log_batch(made.info.run_id, params=every[start : start + _PARAMS_AT_A_TIME])
        return str(made.info.run_id)

    def on_log(self, kind: str, values: Mapping[str, Any]) -> None:
        self._step = int(values["step"])
        self._log(numbers(kind, values))

    def on_images(self, name: str, images: Sequence[np.ndarray], step: int) -> None:
        for number, image in enumerate(images):
            self._client.log_image(self._id, image, key=f"{name}/{number}", step=step)

    def on_finish(self, metrics: Mapping[str, Any], folder: Path) -> None:
        self._log(numbers("final", metrics))
        for name in ("metrics.json", "run.png"):
            if (folder / name).is_file():
                self._client.log_artifact(self._id, str(folder / name))

    def on_error(self, error: BaseException) -> None:
        self._status = "KILLED" if isinstance(error, StopRequested) else "FAILED"

    def close(self) -> None:
        if self._id is not None:
            self._client.set_terminated(self._id, status=self._status)

    def _log(self, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, self._step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)


_DATABASE = re.compile(r"(sqlite|mysql|postgresql|mssql)(\+\w+)?:")
_LONGEST_PARAM = 500  # characters; the oldest servers refuse more
_PARAMS_AT_A_TIME = 100  # MLflow's limit per call


def _is_folder(tracking_uri: str) -> bool:
    return tracking_uri.startswith("file:") or not re.match(r"[\w+.-]+:", tracking_uri)


def require_package(module: str, extra: str, why: str = "", package: str | None = None) -> None:
    """Raise InputError, with the command that installs it, unless ``module`` can be imported."""
    if importlib.util.find_spec(module) is None:
        install = f"pip install {package}" if package else f'pip install ".[{extra}]"'
        raise InputError(
            f"train.callbacks: {why}the package {package or module} is not installed; install it with "
            f"{install}, or leave the kind {extra} out of train.callbacks"
        )


def run_name(folder: Path) -> str:
    """Return the name of a run by its folder; that of a stage begins with the name of the whole run."""
    place = folder.resolve()
    return f"{place.parents[1].name}_{place.name}" if place.parent.name == "stages" else place.name


def numbers(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among ``values`` under the names that TensorBoard has, without the step."""
    return {
        f"{kind}/{name}": value
        for name, value in values.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def flat(values: Any, prefix: str = "") -> dict[str, str]:
    """Return nested mappings as one: keys joined by dots, and other values as text."""
    if not isinstance(values, Mapping) or (prefix and not values):
        return {prefix: values if isinstance(values, str) else json.dumps(values)}
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def known_id(facts: RunFacts, key: str) -> str | None:
    """Return the id that a resumed run has in the tracker ``key``; None for a new run."""
    return _ids(facts.folder).get(key) if facts.step else None


def keep_id(folder: Path, key: str, value: str) -> None:
    """Keep the id that the run in ``folder`` has in the tracker ``key``."""
    write_text(folder / TRACKERS, json.dumps({**_ids(folder), key: value}, indent=1) + "\n")


def _ids(folder: Path) -> dict[str, str]:
    path = folder / TRACKERS
    if not path.is_file():
        return {}
    try:
        ids = read_json(path)
    except InputError as error:
        note(f"warning: {error}; the trackers start new runs")
        return {}
    if not isinstance(ids, dict) or not all(isinstance(one, str) for one in ids.values()):
        note(f"warning: {path}: not the ids of a run in its trackers; the trackers start new runs")
        return {}
    return ids
