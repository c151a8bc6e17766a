"""Resuming a run: which checkpoint it continues from, and which settings and data may have changed since.

A changed setting is applied or refused, never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detector.config import Config
from detector.config.load import parse_config
from detector.core.distributed import is_main
from detector.core.errors import InputError
from detector.core.progress import note
from detector.core.structures import ImageRecord
from detector.data.fingerprint import VERSION, fingerprint
from detector.engine.checkpoint import load_resumable, numbered_checkpoints
from detector.factory.data import find_validation

ACCEPTED = "accept_changed_data"
"""Key of a state in memory, never of a file: whether the user accepts data that have changed."""

APPLIED = frozenset(
    f"{section}.{key}"
    for section, keys in {
        "train": (
            "steps epochs images_per_batch accumulate scales scale_per resize max_size scale_jitter flip "
            "vertical_flip augment.color_jitter augment.expand augment.crop augment.cutout group_by_aspect "
            "sampling.kind sampling.rois_per_image "
            "sampling.foreground_fraction sampling.foreground_iou sampling.background_iou "
            "sampling.far_background_fraction sampling.add_targets learning_rate "
            "bias_lr_factor momentum weight_decay bias_decay "
            "schedule.kind schedule.milestones schedule.gamma schedule.final schedule.warmup "
            "schedule.warmup_start clip_gradient_norm box_loss_weight smooth_l1_beta ema precision compile "
            "deterministic log_every checkpoint_every keep_checkpoints evaluate_every early_stopping "
            "validation_loss evaluate_split cache_dtype features_folder draw_images "
            "callbacks"
        ),
        "test": (
            "metric scales scale_rule flip box_regression resize max_size score_threshold nms_threshold "
            "nested_threshold max_detections max_images refinements precision"
        ),
        "data": "workers val_split test_split",
    }.items()
    for key in keys.split()
)
"""Settings that take effect with the next step or the next evaluation."""

SAME_DATA = frozenset(
    {"data.root", "data.annotations", "data.images", "data.splits", "data.leave_out", "data.generate"}
)
"""Where the data are: a change is applied, and the fingerprint shows whether they are the same data."""

REFUSED = {
    "train.optimizer": "the other optimizer keeps another state of every parameter",
    "train.trainable": "the optimizer's state belongs to the parameters that have been trained so far",
    "train.head_only": "the run trains either the whole network or its head",
    "train.initial_weights": "the run has its own weights by now",
    "train.allow_partial": "the run has its own weights by now",
    **dict.fromkeys(
        (
            *("data.format", "data.split_ratio", "data.split_seed", "data.train_split"),
            *("data.classes", "data.other_classes", "data.attributes", "data.first_pixel", "data.difficult"),
            *("data.invalid_boxes", "data.min_box_size", "train.validation_fraction"),
        ),
        "it decides what is trained on",
    ),
}
"""Settings that a resumed run keeps, each with the reason."""

_DECIDE_VALIDATION = ("train.evaluate_every", "train.evaluate_split", "data.val_split", "data.test_split")
"""The applied settings that `find_validation` depends on."""
_KEPT = "a resumed run keeps its data, proposals, model and seed"


def find_state(
    config: Config, folder: Path, *, accept_changed_data: bool = False, ignored: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Return the newest sound checkpoint of the run in ``folder``, or None where there is none yet.

    This is ``best.pt`` if none of the numbered ones can be read. ``ignored`` names settings that may differ.
    With ``accept_changed_data`` the task that is built from the state accepts other data than the
    checkpoint's.

    Raises:
        InputError: every checkpoint is damaged, or the run was made with another data set, model or seed,
            has already done more steps, or was started by a version that drew its regions otherwise.
    """
    best = folder / "checkpoints" / "best.pt"
    paths = [*([best] if best.is_file() else []), *numbered_checkpoints(folder / "checkpoints")]
    if not paths:
        note(f"{folder}: no checkpoint to go on from, starting at step 0")
        return None
    path, state = _newest_sound(paths)
    if "sampler" in state:
        raise InputError(
            f"{path}: the run was started by an earlier version, which drew the regions of a step from one "
            "random generator; they now depend on seed, step and image only, so this version cannot continue "
            "the run exactly. Finish it with that version, or name the checkpoint in train.initial_weights "
            "of a new run"
        )
    check_changes(state, config, str(path), ignored=ignored)
    if config.train.steps is not None and state["step"] > config.train.steps:
        raise InputError(
            f"{path}: the run has done {state['step']} steps, train.steps is {config.train.steps}"
        )
    if is_main():
        for unfinished in (folder / "checkpoints").glob(".*.tmp"):
            unfinished.unlink()  # a run killed while it saved leaves one
    note(f"resuming after step {state['step']} from {path}")
    return {**state, ACCEPTED: accept_changed_data}


def _newest_sound(paths: Sequence[Path]) -> tuple[Path, dict[str, Any]]:
    """Return the last of the checkpoints that can be read, and report those that cannot."""
    first: InputError | None = None
    for path in reversed(paths):
        try:
            return path, load_resumable(path)
        except InputError as error:
            first = first or error
            note(f"warning: {error}")
    assert first is not None  # the caller's list has an entry
    raise InputError(
        f"{first}; none of the {len(paths)} checkpoints there can be read: start over with --overwrite"
    )


def policy(key: str) -> str | None:
    """Return "applied", "same data" or "refused" for a key of train, test or data; None for an unknown one.

    The tables' keys include all keys below them: ``data.generate`` includes ``data.generate.seed``.
    """
    while key:
        for name, keys in (("applied", APPLIED), ("same data", SAME_DATA), ("refused", REFUSED)):
            if key in keys:
                return name
        key = key.rpartition(".")[0]
    return None


def changed_settings(before: Mapping[str, Any], config: Config, source: str) -> dict[str, tuple[str, str]]:
    """Return the settings that differ from those stored in ``source``: (before, now) as JSON, by key.

    A key that is missing from the stored config has its default value.
    """
    old = _flat(parse_config(before, source).model_dump(mode="json"))
    new = _flat(config.model_dump(mode="json"))
    null = json.dumps(None)
    keys = sorted(old | new, key=lambda key: (not key.endswith(".kind"), key))  # a kind decides on other keys
    pairs = {key: (old.get(key, null), new.get(key, null)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def check_changes(
    state: Mapping[str, Any], config: Config, source: str, *, ignored: Sequence[str] = ()
) -> None:
    """Report the settings that a resumed run changes, and refuse those that it cannot change.

    Raises:
        InputError: a changed setting decides what has been trained so far; names it and the reason.
    """
    changes = changed_settings(state["config"], config, source)
    changes = {key: pair for key, pair in changes.items() if key not in ignored}
    for key, (before, now) in changes.items():
        if policy(key) in ("applied", "same data"):
            continue
        reason = REFUSED.get(key, _KEPT)
        raise InputError(
            f"{source}: made with {key} = {before}, now {now}; {reason}: give {key}={before} to go on, or "
            "train into another folder"
        )
    _check_measured(changes, config, source)
    _check_set_aside(changes, state["config"], config, source)
    for key, (before, now) in changes.items():
        note(f"resuming with {key} = {now} instead of {before}")


def _check_measured(changes: Mapping[str, tuple[str, str]], config: Config, source: str) -> None:
    """Refuse another threshold if the constants of the box targets were measured with the first one."""
    key = "train.sampling.foreground_iou"
    box = config.model.box
    if key in changes and box.regression == "linear" and box.normalize == "dataset":
        before, now = changes[key]
        raise InputError(
            f"{source}: made with {key} = {before}, now {now}; the constants of the box targets were "
            "measured with it (model.box.normalize: dataset): train into another folder"
        )


def _check_set_aside(
    changes: Mapping[str, tuple[str, str]], stored: Mapping[str, Any], config: Config, source: str
) -> None:
    """Refuse settings of evaluations if other images than before would be set aside because of them."""
    changed = [key for key in _DECIDE_VALIDATION if key in changes]
    if not changed:
        return
    old = parse_config(stored, source)
    was = find_validation(_restored(config, old, changed)).fraction
    now = find_validation(config).fraction
    if was == now:
        return
    sufficient = [key for key in changed if find_validation(_restored(config, old, [key])).fraction == was]
    named = sufficient[:1] or changed
    made = " and ".join(f"{key} = {changes[key][0]}, now {changes[key][1]}" for key in named)
    back = " ".join(f"{key}={changes[key][0]}" for key in named)
    way = "name a split to choose best.pt on (train.evaluate_split=...), "
    raise InputError(
        f"{source}: made with {made}; with that, {now:g} of the images of {config.data.train_split} would be "
        f"set aside for validation instead of {was:g}, and a resumed run keeps its training images: "
        f"{way if _split_would_do(config, old, named, was) else ''}give {back} to go on, or train into "
        "another folder"
    )


def _split_would_do(config: Config, old: Config, named: Sequence[str], fraction: float) -> bool:
    """Whether ``train.evaluate_split`` instead of the ``named`` settings would set ``fraction`` aside."""
    if "train.evaluate_split" in named:
        return False
    config = _restored(config, old, [key for key in named if key != "train.evaluate_every"])
    with_split = _set(config, "train.evaluate_split", config.data.test_split)
    return find_validation(with_split).fraction == fraction


def _restored(config: Config, old: Config, keys: Sequence[str]) -> Config:
    for key in keys:
        section, _, name = key.partition(".")
        config = _set(config, key, getattr(getattr(old, section), name))
    return config


def _set(config: Config, key: str, value: Any) -> Config:
    section, _, name = key.partition(".")
    part = getattr(config, section).model_copy(update={name: value})
    return config.model_copy(update={section: part})


def schedule_changed(state: Mapping[str, Any], config: Config) -> bool:
    """Whether the learning rate of the remaining steps differs from the one of the run in ``state``."""
    keys = ("train.learning_rate", "train.schedule.", "train.steps", "train.epochs")
    return any(key.startswith(keys) for key in changed_settings(state["config"], config, "the checkpoint"))


def evaluates_differently(state: Mapping[str, Any], config: Config, data: Mapping[str, str]) -> bool:
    """Whether later evaluations, of data with these fingerprints, differ from those before ``state``."""
    before = state.get("data_fingerprint", {})
    if any(name.startswith("evaluation") and before.get(name, now) != now for name, now in data.items()):
        return True
    keys = ("test.", "train.evaluate_split", "data.val_split", "data.test_split")
    return any(key.startswith(keys) for key in changed_settings(state["config"], config, "the checkpoint"))


def checked_fingerprint(
    role: str, split: str, records: Sequence[ImageRecord], known: Mapping[str, Any] | None
) -> dict[str, str]:
    """Return the fingerprint of a split's ``records``, by ``role`` and split; ``known`` is a checkpoint.

    Raises:
        InputError: the checkpoint has another fingerprint there, and changed data were not accepted.
    """
    fingerprints = {f"{role}: {split}": fingerprint(records)}
    check_fingerprint(fingerprints, known or {})
    return fingerprints


def check_fingerprint(fingerprints: Mapping[str, str], known: Mapping[str, Any]) -> None:
    """Compare fingerprints, by role and split, with those that a checkpoint has.

    Raises:
        InputError: a difference, unless changed data were accepted.
    """
    before = known.get("data_fingerprint")
    for name, now in fingerprints.items():
        expected = before.get(name) if isinstance(before, Mapping) else None
        if expected in (None, now):
            continue
        if expected.startswith(VERSION):
            changed = (
                f"the data have changed since the run used them ({name}): images, annotations or the list of "
                "them"
            )
            advice = "put them back, continue anyway with --accept-changed-data, or train into another folder"
        else:
            changed = (
                f"an earlier version started the run, so its data ({name}) cannot be compared with these"
            )
            advice = "if they are the same, continue with --accept-changed-data"
        if not known.get(ACCEPTED):
            raise InputError(f"{changed}; {advice}")
        note(f"warning: {changed}; continuing anyway")


def evaluation_fingerprint(
    config: Config, split: str, records: Sequence[ImageRecord], known: Mapping[str, Any] | None
) -> dict[str, str]:
    """Return `checked_fingerprint` of the images that a run is scored on, the first ``test.max_images``."""
    limit = config.test.max_images
    role = "evaluation" if limit is None else f"evaluation of {limit} images"
    return checked_fingerprint(role, split, records, known)


def _flat(values: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(values, dict) or (prefix and not values):
        return {prefix: json.dumps(values)}
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
