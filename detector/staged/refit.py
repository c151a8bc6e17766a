"""A new head on the stored features of an earlier run: other labels, other classes or another kind of head.

No image is opened. The convolutions are those of the earlier run, of which nothing is changed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.config import Config, load_config, stage_config
from detector.config.load import refuse_code
from detector.config.schema import HeadStageConfig
from detector.core.errors import InputError
from detector.core.progress import note
from detector.engine.checkpoint import load_checkpoint, numbered_checkpoints
from detector.factory.data import load_training
from detector.factory.loaders import no_proposals
from detector.factory.model import restore_model
from detector.staged.label_changes import LabelChanges, compare_labels
from detector.staged.region_features import RegionFeatures, plan_features
from detector.staged.runner import StagedTraining, read_record
from detector.tasks.resume import changed_settings, checked_fingerprint
from detector.tasks.scoring import known_classes

CHANGEABLE = ("data.", "model.head.", "model.box.", "train.", "test.", "seed")
"""The settings that a refit may change: none of them decides what the stored features are."""


@dataclass(frozen=True, kw_only=True)
class EarlierRun:
    """The run that a refit starts from: its config, its newest checkpoint, and its stored features."""

    folder: Path
    config: Config
    checkpoint: dict[str, Any]
    features: RegionFeatures
    stage: HeadStageConfig

    @classmethod
    def open(cls, folder: Path, features: Path | None = None, overrides: Sequence[str] = ()) -> EarlierRun:
        """Open the run in ``folder``; ``features`` names another place of its region features.

        The run may be somebody else's: code that its config names is only loaded if ``overrides`` name it.

        Raises:
            InputError: no run, one that names code, one without stored region features, or features of other
                weights.
        """
        if not (folder / "config.yaml").is_file():
            raise InputError(f"{folder}: holds no run; --from names the folder of one, with its config.yaml")
        config = load_config(folder / "config.yaml")
        refuse_code(config, overrides, str(folder / "config.yaml"))
        numbered = numbered_checkpoints(folder / "checkpoints")
        if not numbered:
            raise InputError(f"{folder}: the run has no checkpoint yet; let it finish, with --resume")
        checkpoint = load_checkpoint(numbered[-1])
        number, stage = _head_stage(config)
        place = features or _recorded(folder, number, stage)
        opened = RegionFeatures.open(place)
        _check_features(opened, config, checkpoint)
        return cls(folder=folder, config=config, checkpoint=checkpoint, features=opened, stage=stage)

    def new_config(self, labels: str | None, overrides: Sequence[str]) -> Config:
        """Return the config of a refit: the run's, with the annotations ``labels`` and ``overrides``.

        Raises:
            InputError: an override of a setting that decides what the stored features are.
        """
        given = [] if labels is None else [f"data.annotations={json.dumps(str(Path(labels).absolute()))}"]
        source = self.folder / "config.yaml"
        config = load_config(source, [*given, *overrides])
        refuse_code(config, overrides, str(source))
        for key, (before, now) in changed_settings(self.checkpoint["config"], config, str(source)).items():
            if not key.startswith(CHANGEABLE) and not key.startswith("stages"):
                raise InputError(
                    f"{key} = {now}: the stored features were made with {before}; a refit keeps it. Train "
                    "into a new folder with tools/train.py instead"
                )
        chosen = stage_config(config, self.stage)
        train = {"initial_weights": self.checkpoint["file"], "head_only": False}
        stage = self.stage.model_copy(update={"settings": {}})
        return chosen.model_copy(update={"train": chosen.train.model_copy(update=train), "stages": (stage,)})

    def changes(self, config: Config) -> LabelChanges:
        """Return how the labels of ``config`` differ from those that this run was trained with."""
        before, after = self.checkpoint["classes"], known_classes(config)
        new = load_training(config, after, training=True, look_at_images=False).records
        try:
            old = load_training(self.config, before, training=True, look_at_images=False).records
            checked_fingerprint("training", self.config.data.train_split, old, self._known())
        except InputError:  # they are gone, or were changed in place
            return LabelChanges(classes_before=tuple(before), classes_after=after)
        return compare_labels(old, before, new, after)

    def _known(self) -> dict[str, Any]:
        number, stage = _head_stage(self.config)
        path = _record_path(self.folder, number, stage)
        known = read_record(path).data_fingerprint if path.is_file() else {}
        return {"data_fingerprint": known}


def refit(run: EarlierRun, config: Config, folder: Path, device: str) -> StagedTraining:
    """Fit a new head in ``folder`` by ``config``, which `EarlierRun.new_config` has made; return its run."""
    training = StagedTraining(config, folder, device, features=run.features)
    training.run()
    return training


def _head_stage(config: Config) -> tuple[int, HeadStageConfig]:
    """Return the number and the settings of the last stage of kind ``head``."""
    stages = [
        (number, one) for number, one in enumerate(config.all_stages) if isinstance(one, HeadStageConfig)
    ]
    return stages[-1] if stages else (0, HeadStageConfig(name="head", kind="head"))


def _record_path(folder: Path, number: int, stage: HeadStageConfig) -> Path:
    return folder / "stages" / f"{number + 1:02d}_{stage.name}" / "done.json"


def _recorded(folder: Path, number: int, stage: HeadStageConfig) -> Path:
    path = _record_path(folder, number, stage)
    place = read_record(path).features if path.is_file() else None
    if place is None:
        raise InputError(
            f"{folder}: the run has no stored region features; train with train.head_only, or make them with "
            "tools/embed.py --checkpoint and name their folder in --features"
        )
    return Path(place)


def _check_features(features: RegionFeatures, config: Config, checkpoint: dict[str, Any]) -> None:
    """Refuse features that another network made, or the same one with other settings of the test."""
    model = restore_model(config, checkpoint, checkpoint["file"])
    if config.test.scale_rule == "all":  # features are made at the first scale
        test = config.test.model_copy(update={"scales": config.test.scales[:1]})
        config = config.model_copy(update={"test": test})
    wanted = plan_features(config, model, (), no_proposals).source
    made = features.plan.source
    differing = [name for name in wanted if made.get(name) != wanted[name]]
    if differing:
        raise InputError(
            f"{features.folder}: not the features of {checkpoint['file']}: made with another "
            f"{', '.join(differing)}; name those of this run, which tools/embed.py --checkpoint makes"
        )
    note(f"{len(features)} stored regions of {len(features.images)} images in {features.folder}")
