"""Write what a detector finds in a split as annotations in VOC layout, to train another detector on them."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from detector.commands import cli
from detector.core.errors import InputError, listed
from detector.core.progress import note

if TYPE_CHECKING:
    from detector.config import Config
    from detector.core.structures import Detections, Targets
    from detector.data.voc.writing import FoundObjects

USE = """
DIR gets Annotations/SPLIT/ID.xml, ImageSets/Main/SPLIT.txt and pseudo_labels.json. The images stay where they
are. Train on them with any config of the same data set and these changes, which the tool prints in full:
  data.annotations=/path/to/DIR/Annotations/{split}  data.splits=/path/to/DIR/ImageSets/Main
  data.classes=[NAMES]
The test split is listed in DIR without annotations, so such a run ends without metrics. Score its checkpoint
with tools/evaluate.py and the config as it was, which reads the data set's own annotations."""


def main() -> int:
    arguments = parse()

    from detector.data.voc.writing import new_folder, refuse_existing, write_found
    from detector.engine.checkpoint import load_checkpoint
    from detector.evaluation.report import write_json
    from detector.factory.resources import choose_device, use_cores

    output, split = Path(arguments.output), arguments.split
    refuse_existing(output)
    source = cli.checkpoint_file(arguments.checkpoint)
    checkpoint = load_checkpoint(source)
    config = labelling_config(checkpoint, arguments, str(source))
    tests = test_names(config, split)
    device = choose_device(arguments.device)
    use_cores(config, device)
    images = find_objects(config, checkpoint, arguments, str(source), device)
    record = summary(config, checkpoint, arguments, images)
    with new_folder(output) as folder:
        classes, first_pixel = checkpoint["classes"], config.data.first_pixel
        write_found(folder, split, images, classes, first_pixel=first_pixel, others=tests)
        write_json(folder / "pseudo_labels.json", record)
    each = listed(f"{name} {count}" for name, count in record["per_class"].items())
    note(f"wrote {output}: {record['boxes']} boxes in {len(images)} images of {split}: {each}")
    note(f"train on them with a config of the same data and: {shlex.join(record['changes'])}")
    return 0


def labelling_config(checkpoint: dict[str, Any], arguments: argparse.Namespace, source: str) -> Config:
    """Return the checkpoint's config, with its classes, for all images of a split.

    With the classes given, no annotation outside the split is read to find them.
    """
    from detector.config.load import parse_stored

    threshold = arguments.score_threshold
    own = [
        f"data.classes={json.dumps(list(checkpoint['classes']))}",
        "test.max_images=null",
        *([] if threshold is None else [f"test.score_threshold={threshold!r}"]),
    ]
    config = parse_stored(checkpoint["config"], [*arguments.overrides, *own], source)
    if config.task == "classification":
        raise InputError(f"{source} classifies whole images and finds no boxes; name a detector's checkpoint")
    return config


def test_names(config: Config, split: str) -> dict[str, list[str]]:
    """Return the ids, in VOC layout, of the images of the test splits that exist; no label of them is read.

    Raises:
        InputError: ``split`` is a test split, or has images in common with one.
    """
    from detector.factory.data import build_source

    tests = {config.data.test_split, config.train.evaluate_split or config.data.test_split}
    tests -= {config.data.train_split}
    if split in tests:
        raise InputError(
            f"--split {split}: this is the test split, whose labels are for scoring only; name another one"
        )
    source, own = build_source(config), set(keys_of(config, split))
    found = {}
    for test in sorted(tests):
        if not source.image_list(test).exists():
            continue
        keys = keys_of(config, test)
        if shared := sorted(own.intersection(keys)):
            raise InputError(
                f"--split {split}: {len(shared)} of its images are in the test split {test!r} too, first "
                f"{shared[0]}; take them out of one of the two"
            )
        found[test] = [id_of(config, test, key) for key in keys]
    return found


def keys_of(config: Config, split: str) -> list[str]:
    """Return the keys of the images of a split; no object is read."""
    from detector.factory.data import build_source, split_selection

    names = build_source(config).image_names(split)
    return [name.key for name in split_selection(config, split)(names)]


def id_of(config: Config, split: str, key: str) -> str:
    """Return the id in VOC layout of the image ``key``: its path in the split's folder, without suffix."""
    from detector.data.paths import image_key
    from detector.data.source import for_split

    root = Path(config.data.root)
    above = image_key(root / for_split(config.data.images, split) / "_", root).removesuffix("_")
    return PurePosixPath(key.removeprefix(above)).with_suffix("").as_posix()


def find_objects(
    config: Config, checkpoint: dict[str, Any], arguments: argparse.Namespace, source: str, device: str
) -> list[FoundObjects]:
    """Return the objects that the checkpoint finds in each image of the split.

    Raises:
        InputError: nothing is found in any image, or the split has no labels and no threshold is given.
    """
    from detector.core.progress import said_once
    from detector.data.voc.writing import FoundObjects
    from detector.engine.determinism import cuda_algorithms
    from detector.engine.inference import RegionPredictor
    from detector.factory.model import build_predictor, restore_model
    from detector.tasks.start import build_scorer

    threshold = arguments.score_threshold
    with cuda_algorithms(device, deterministic=config.train.deterministic):
        model = restore_model(config, checkpoint, source).to(device)
        with said_once():
            scorer = build_scorer(config, device, classes=checkpoint["classes"], split=arguments.split)
        if threshold is None and not scorer.test_set.annotated:
            raise InputError(
                f"--split {arguments.split}: its images have no annotations that say which classes are "
                "present; give --score-threshold to take all boxes above it"
            )
        predictor = build_predictor(config, model, device)
        assert isinstance(predictor, RegionPredictor)  # of every task but classification
        results = scorer.predicted(predictor.best if threshold is None else predictor, scorer.test_set)
    images = []
    for record in scorer.test_set.records:
        labels = record.targets if scorer.test_set.annotated else None
        chosen = of_present(results[record.image_id], labels, len(checkpoint["classes"]))
        name, size = id_of(config, arguments.split, record.key), (record.height, record.width)
        images.append(FoundObjects(image_id=name, filename=record.path.name, size=size, detections=chosen))
    if not any(len(image.detections) for image in images):
        raise InputError(f"{source}: no box was found in {arguments.split}; lower --score-threshold")
    return images


def of_present(found: Detections, targets: Targets | None, num_classes: int) -> Detections:
    """Return the detections of the classes that are present in the image, all where labels are unknown."""
    from detector.core.structures import Detections

    if targets is None:
        return found
    keep = (targets.presence(num_classes) > 0)[found.labels - 1]
    return Detections(boxes=found.boxes[keep], scores=found.scores[keep], labels=found.labels[keep])


def summary(
    config: Config, checkpoint: dict[str, Any], arguments: argparse.Namespace, images: list[FoundObjects]
) -> dict[str, Any]:
    """Return the content of ``pseudo_labels.json``: where the boxes come from, and how many there are."""
    classes = checkpoint["classes"]
    counts = Counter(label for image in images for label in image.detections.labels.tolist())
    return {
        "checkpoint": checkpoint["file"],
        "step": checkpoint["step"],
        "split": arguments.split,
        "score_threshold": arguments.score_threshold,
        "images": len(images),
        "boxes": counts.total(),
        "per_class": {name: counts[label] for label, name in enumerate(classes, start=1)},
        "changes": changes(config, arguments.split, classes, Path(arguments.output)),
    }


def changes(config: Config, split: str, classes: list[str], output: Path) -> list[str]:
    """Return what a config of the same data set has to change to be trained on the boxes."""
    data, place = config.data, output.resolve()
    values = {
        "annotations": f"{place}/Annotations/{{split}}",
        "splits": f"{place}/ImageSets/Main",
        "classes": classes,
        **({"train_split": split} if split != data.train_split else {}),
        **({"format": "voc", "images": data.images} if data.format != "voc" else {}),
        **{key: None for key in ("split_ratio", "leave_out", "val_split") if getattr(data, key) is not None},
    }
    return [
        f"data.{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
    ]


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/pseudo_label.py --checkpoint runs/weak --split trainval --output data/pseudo\n" + USE,
    )
    cli.add_checkpoint_argument(parser, "the detector: ")
    parser.add_argument("--split", required=True, help="the split to annotate, any but the test split")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder for the annotations")
    parser.add_argument(
        "--score-threshold",
        type=float,
        help="take all boxes that score more, after suppression, of the classes that the labels say are "
        "present (default: the best box of each such class)",
    )
    cli.add_overrides_argument(parser, "replace values of the checkpoint's config, e.g. data.root")
    cli.add_device_argument(parser)
    arguments = parser.parse_args()
    threshold = arguments.score_threshold
    if threshold is not None and not math.isfinite(threshold):
        raise InputError(f"--score-threshold {threshold:g}: expected a finite number")
    return arguments
