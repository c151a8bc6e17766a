#!/usr/bin/env python3
"""Heads on stored features: against training end to end, and against a classifier of cut-out regions.

    python benchmarks/heads.py --part heads --data bccd --backbone mobilenet_v2 --seeds 0,1,2
    python benchmarks/heads.py --part end_to_end --data bccd --backbone mobilenet_v2 --seeds 0
    python benchmarks/heads.py --part refit --data bccd --backbone mobilenet_v2
    python benchmarks/heads.py --part crops --data bccd --backbone mobilenet_v2
    python benchmarks/heads.py --part few_shot --data cards --backbone mobilenet_v2 --draws 5

- ``end_to_end``: the shipped config with frozen convolutions and a pool of 3 x 3 cells, trained on images.
- ``heads``: the same network, whose head is trained on stored features, for each of ``--kinds``.
- ``refit``: the seconds of ``tools/refit.py``, its start included, for each of ``--kinds``.
- ``crops``: what people write today. Each region is cut out of the image and resized to 224 x 224, the same
  backbone runs on it, its map is averaged, and scikit-learn's logistic regression decides. It sees training
  regions that are drawn as for the head of kind ``logistic``, ``--crop-rows`` per class at most.
  ``--test-images`` limits the test images for both alike; the time per image is that from the file to the
  detections.
- ``few_shot``: 1, 5, 10 and 30 annotated objects per class, for those of ``--kinds`` that are meant for so
  few: prototypes, knn and logistic. Regions on other objects are not used at all.
  Test images are scored on stored features, too; with ``--crops`` also by the classifier of crops, whose
  features of test regions are computed once for all draws.

The convolutions run on ``--device``; heads are fitted on the CPU. Each part prints one JSON object per line.
The parts share stored features in ``--work``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional

from detector.config import Config, load_config
from detector.config.schema import LogisticHeadConfig, RandomSamplingConfig, RidgeConfig
from detector.core.errors import InputError
from detector.core.records import Records
from detector.core.structures import Embedded, HeadOutput, ImageMeta, ImageRecord
from detector.data.images import read_image
from detector.evaluation.voc import VocEvaluator
from detector.factory.data import class_names, load_split, load_training
from detector.factory.model import build_normalization, build_postprocess, initial_model
from detector.factory.proposals import open_proposals, stored_proposals
from detector.models.detector import RegionDetector
from detector.ops.normalize import normalization_table, normalize_images
from detector.staged.head_fit import HeadData, HeadFit
from detector.staged.region_features import RegionFeatures, embed_split
from detector.staged.region_rows import RegionRows, draw_rows, label_regions
from detector.staged.runner import StagedTraining
from detector.tasks.start import build_scorer, start_run

CROP = 224
CROPS_AT_ONCE = 32
EFFICIENTNET = (
    "model.backbone.name=timm:tf_efficientnet_lite0",
    "model.backbone.weights=data/weights/efficientnet-lite0-57934424.pth",
    "model.backbone.stage=blocks.4",
    "model.backbone.freeze=all",
    f"model.backbone.pixel_mean={[127 / 255] * 3}",
    f"model.backbone.pixel_std={[128 / 255] * 3}",
    "model.backbone.feature_scale=0.1",  # as in bccd_efficientnet_lite0
)
BACKBONES: dict[str, tuple[str, tuple[str, ...]]] = {
    "squeezenet": ("{data}_squeezenet", ()),
    "mobilenet_v2": ("{data}_mobilenet", ()),
    "efficientnet_lite0": ("{data}_mobilenet", EFFICIENTNET),
}
"""The shipped config of each backbone, and what changes in it."""
KINDS = ("softmax", "logistic", "svm", "prototypes", "knn")
FEW_SHOT_KINDS = ("prototypes", "knn", "logistic")


def shipped(arguments: argparse.Namespace, *overrides: str) -> Config:
    """Return the shipped config for data set and backbone, its convolutions frozen, with a pool of 3 x 3."""
    return load_config(config_name(arguments), [*own_overrides(arguments), *overrides])


def config_name(arguments: argparse.Namespace) -> str:
    return BACKBONES[arguments.backbone][0].format(data=arguments.data)


def own_overrides(arguments: argparse.Namespace) -> list[str]:
    named = BACKBONES[arguments.backbone][1]
    common = ["model.backbone.freeze=all", "model.pool.output_size=3", "train.validation_fraction=0"]
    return [*named, *common, *arguments.override]


def head_overrides(arguments: argparse.Namespace, kind: str) -> list[str]:
    given = ["train.head_only=true", f"train.features_folder={arguments.work}/features"]
    if kind != "softmax":
        given.append(f"model.head.kind={kind}")
    return [*given, *(["test.score_threshold=-1.5"] if kind == "svm" else [])]


def report(part: str, arguments: argparse.Namespace, **values: Any) -> None:
    line = {"part": part, "data": arguments.data, "backbone": arguments.backbone, **values}
    print(json.dumps(line), flush=True)


def scores(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: round(metrics[name], 4) for name in ("voc07_mAP", "voc_mAP")}


def end_to_end(arguments: argparse.Namespace) -> None:
    for seed in arguments.seeds:
        config = shipped(arguments, f"seed={seed}")
        started = time.perf_counter()
        folder = arguments.work / f"{arguments.tag}_end_to_end_{seed}"
        run = start_run(config, folder, arguments.device, resume=True)
        evaluation = run.run()
        report(
            "end_to_end",
            arguments,
            seed=seed,
            seconds=time.perf_counter() - started,
            **scores(evaluation.metrics),
        )


def heads(arguments: argparse.Namespace) -> None:
    """Fit each kind of head; the seconds are those of the fit, with the features there already."""
    for kind in arguments.kinds:
        for seed in arguments.seeds:
            config = shipped(arguments, f"seed={seed}", *head_overrides(arguments, kind))
            classes = class_names(config)
            features = stored(config, config.data.train_split, arguments)
            started = time.perf_counter()
            fit = fitted(config, features)
            seconds = time.perf_counter() - started
            evaluation = build_scorer(config, classes=classes).evaluate(fit.model.eval())
            report("heads", arguments, kind=kind, seed=seed, seconds=seconds, **scores(evaluation.metrics))


def fitted(config: Config, features: RegionFeatures, data: Records | None = None) -> HeadFit:
    """Return a head that is fitted on ``features``; ``data`` are other annotations than the config's."""
    classes = class_names(config)
    model = initial_model(config, classes)
    folder = Path(config.train.features_folder).parent / "log"
    folder.mkdir(parents=True, exist_ok=True)
    ridge = RidgeConfig(max_rows=3000)
    fit = HeadFit(config, model, classes, folder, "cpu", lambda _: None, None, ridge, features)
    if data is not None:
        fit.data = HeadData(config, classes, features, data, ridge)
    fit.fit()
    return fit


def stored(config: Config, split: str, arguments: argparse.Namespace) -> RegionFeatures:
    """Return the stored features of the images of a split."""
    records, source = split_and_regions(config, split, arguments)
    model = initial_model(config, class_names(config)).to(arguments.device).eval()
    folder = Path(config.train.features_folder)
    return embed_split(config, model, records, source, folder, arguments.device)


def split_and_regions(config: Config, split: str, arguments: argparse.Namespace) -> tuple[Records, Any]:
    """Return the images of a split, of the test split the first ``--test-images``, and their proposals."""
    training = split == config.data.train_split
    classes = class_names(config)
    records = Records.of(
        load_training(config, classes, training=True).records
        if training
        else load_split(config, split, classes, training=False).records
    )
    store = open_proposals(config, records, split)
    limit = len(records) if training or arguments.test_images is None else arguments.test_images
    return records[:limit], stored_proposals(config, store, training=training)


def refit(arguments: argparse.Namespace) -> None:
    """Time ``tools/refit.py`` in a process of its own."""
    first = arguments.work / f"{arguments.tag}_first"
    if not (first / "checkpoints").is_dir():
        first.mkdir(parents=True, exist_ok=True)
        StagedTraining(shipped(arguments, *head_overrides(arguments, "softmax")), first, "cpu").run()
    for kind in arguments.kinds:
        folder = arguments.work / f"{arguments.tag}_refit_{kind}_{time.time_ns()}"
        command = ["tools/refit.py", "--from", str(first), "--output", str(folder)]
        command += ["--device", "cpu", f"model.head.kind={kind}", *(["seed=1"] if kind == "softmax" else [])]
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        report("refit", arguments, kind=kind, seconds=time.perf_counter() - started)


def crops(arguments: argparse.Namespace) -> None:
    """Compare the classifier of crops with the head of kind ``logistic``: time per image, and mAP."""
    config = shipped(arguments, *head_overrides(arguments, "logistic"), "model.box.regression=none")
    peer, ours = CropPeer(config, arguments), StoredHead(config, arguments)
    for name, one in (("crops", peer), ("ours", ours)):
        report("crops", arguments, method=name, **one.run(labelled(config, ours.features, ours.records)))


def labelled(config: Config, features: RegionFeatures, records: Sequence[ImageRecord]) -> RegionRows:
    sampling = config.train.sampling
    assert isinstance(sampling, RandomSamplingConfig)
    return label_regions(features, records, sampling, use_difficult=True, lowest_iou=0.5)


class StoredHead:
    """Our way: one pass of the convolutions per image, then a head on the features of its regions."""

    def __init__(self, config: Config, arguments: argparse.Namespace) -> None:
        self.config, self.arguments = config, arguments
        started = time.perf_counter()
        self.features = stored(config, config.data.train_split, arguments)
        self.embedding = time.perf_counter() - started  # near zero where they were there already
        self.records, _ = split_and_regions(config, config.data.train_split, arguments)

    def run(self, _: RegionRows) -> dict[str, Any]:
        started = time.perf_counter()
        fit = fitted(self.config, self.features)
        fitting = time.perf_counter() - started
        return {
            "train_features_seconds": self.embedding,
            "fit_seconds": fitting,
            **self.score(fit.model.eval()),
        }

    @torch.inference_mode()
    def score_stored(
        self, model: RegionDetector, features: RegionFeatures, records: Records
    ) -> dict[str, Any]:
        """Return mAP on test images of which ``features`` are stored; the network moves no boxes."""
        evaluator = VocEvaluator(records, class_names(self.config))
        postprocess = build_postprocess(self.config, model.box_coder)
        for record in records:
            pooled = torch.from_numpy(np.array(features.features(record.key), np.float32))
            output = model.predictor(Embedded(pooled, model.box_head(pooled)))
            boxes = torch.from_numpy(np.array(features.boxes(record.key)))
            evaluator.update([record.image_id], [postprocess([(output, unscaled(record))], boxes)])
        return scores(evaluator.compute())

    def score(self, model: RegionDetector) -> dict[str, Any]:
        """Return mAP on the test images and the seconds per image, from its file to the scores."""
        config = self.config.model_copy(
            update={"test": self.config.test.model_copy(update={"max_images": self.arguments.test_images})}
        )
        scorer = build_scorer(config, classes=class_names(config))
        started = time.perf_counter()
        evaluation = scorer.evaluate(model)
        seconds = time.perf_counter() - started
        images = len(evaluation.results)
        return {"seconds_per_image": seconds / images, "images": images, **scores(evaluation.metrics)}


def unscaled(record: ImageRecord) -> ImageMeta:
    """Return the view of an image at its own size."""
    size = record.height, record.width
    return ImageMeta(image_id=record.image_id, original_size=size, input_size=size)


class CropPeer:
    """The usual way: cut each region out, run the same backbone on it, and classify the mean of its map."""

    def __init__(self, config: Config, arguments: argparse.Namespace) -> None:
        self.config, self.arguments = config, arguments
        self.device = torch.device(arguments.device)
        self.backbone = initial_model(config, class_names(config)).backbone.to(self.device).eval()
        normalization = build_normalization(config)
        self.table = normalization_table(normalization).to(self.device)
        self.bgr = normalization.bgr
        self.embedded: dict[str, NDArray[np.float32]] = {}  # of the test images

    @torch.inference_mode()
    def embed(self, record: ImageRecord, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features (P, C) of the regions ``boxes`` (P, 4) of an image."""
        image = torch.from_numpy(read_image(record.path, (record.height, record.width))).to(self.device)
        rows = []
        for start in range(0, len(boxes), CROPS_AT_ONCE):
            cut = [self._crop(image, box) for box in boxes[start : start + CROPS_AT_ONCE].tolist()]
            inputs = normalize_images(
                torch.stack(cut), self.table, [(CROP, CROP)] * len(cut), bgr=self.bgr
            ).contiguous(memory_format=torch.channels_last)
            levels = self.backbone(inputs)
            rows.append((levels[-1] if isinstance(levels, list) else levels).mean(dim=(2, 3)))
        return torch.cat(rows).cpu().numpy() if rows else np.zeros((0, self.backbone.channels), np.float32)

    @staticmethod
    def _crop(image: Tensor, box: list[float]) -> Tensor:
        x1, y1 = int(box[0]), int(box[1])
        x2, y2 = max(round(box[2]), x1 + 1), max(round(box[3]), y1 + 1)
        cut = image[y1:y2, x1:x2].permute(2, 0, 1)[None].float()
        resized = functional.interpolate(cut, (CROP, CROP), mode="bilinear", antialias=True)
        return resized[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)

    def run(self, rows: RegionRows) -> dict[str, Any]:
        """Train on the regions that the head of kind ``logistic`` draws, and score the test images."""
        classifier, embedding, fitting = self.train(rows)
        return {"train_features_seconds": embedding, "fit_seconds": fitting, **self.score(classifier)}

    def train(self, rows: RegionRows) -> tuple[Any, float, float]:
        head = self.config.model.head
        assert isinstance(head, LogisticHeadConfig)
        sampling = self.config.train.sampling
        assert isinstance(sampling, RandomSamplingConfig)
        chosen, labels = draw_rows(
            rows,
            len(class_names(self.config)),
            max_examples=min(head.max_examples, self.arguments.crop_rows),
            max_background=min(head.max_background, self.arguments.crop_rows),
            far=sampling.far_background_fraction,
            seed=self.config.seed,
        )
        started = time.perf_counter()
        features = self._features_of(chosen, rows.features)
        embedded = time.perf_counter()
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=head.c, max_iter=300))
        classifier.fit(features, labels)
        return classifier, embedded - started, time.perf_counter() - embedded

    def _features_of(self, rows: NDArray[np.int64], features: RegionFeatures) -> NDArray[np.float32]:
        """Return the crops' features (n, C) of stored regions, by their numbers ``rows`` (n,)."""
        records, _ = split_and_regions(self.config, self.config.data.train_split, self.arguments)
        by_key = {record.key: record for record in records}
        out = np.zeros((len(rows), self.backbone.channels), np.float32)
        for number, key in enumerate(features.images):
            start, stop = features.offsets[number : number + 2]
            mine = np.flatnonzero((rows >= start) & (rows < stop))
            if len(mine):
                boxes = np.asarray(features.boxes(key))[rows[mine] - start]
                out[mine] = self.embed(by_key[key], boxes)
        return out

    def score(self, classifier: Any) -> dict[str, Any]:
        config = self.config
        records, source = split_and_regions(config, config.data.test_split, self.arguments)
        classes = class_names(config)
        evaluator = VocEvaluator(records, classes)
        postprocess = build_postprocess(config, initial_model(config, classes).box_coder)
        started = time.perf_counter()
        for record in records:
            boxes = source(record).boxes
            logits = torch.full((len(boxes), len(classes) + 1), -1e4)
            if len(boxes):
                if record.key not in self.embedded:
                    self.embedded[record.key] = self.embed(record, boxes.numpy())
                values = classifier.predict_log_proba(self.embedded[record.key])
                logits[:, classifier.classes_] = torch.from_numpy(values).float().clamp(min=-1e4)
            output = HeadOutput(logits, None)
            evaluator.update([record.image_id], [postprocess([(output, unscaled(record))], boxes)])
        seconds = (time.perf_counter() - started) / len(records)
        return {"seconds_per_image": seconds, "images": len(records), **scores(evaluator.compute())}


def few_shot(arguments: argparse.Namespace) -> None:
    """Score heads and the crop classifier with few annotated objects per class."""
    base = shipped(arguments, *head_overrides(arguments, "logistic"), "model.box.regression=none")
    features = stored(base, base.data.train_split, arguments)
    records, _ = split_and_regions(base, base.data.train_split, arguments)
    tests, tested = stored(base, base.data.test_split, arguments), base.data.test_split
    images, _ = split_and_regions(base, tested, arguments)
    peer = CropPeer(base, arguments) if arguments.crops else None
    for shots in arguments.shots:
        for draw in range(arguments.draws):
            chosen = few(records, len(class_names(base)), shots, draw)
            for kind in (one for one in FEW_SHOT_KINDS if one in arguments.kinds):
                overrides = head_overrides(arguments, kind)
                config = shipped(arguments, *overrides, "model.box.regression=none", f"seed={draw}")
                started = time.perf_counter()
                fit = fitted(config, features, chosen)
                values = {"seconds": time.perf_counter() - started}
                values |= StoredHead(config, arguments).score_stored(fit.model.eval(), tests, images)
                report("few_shot", arguments, shots=shots, draw=draw, method=kind, **values)
            if peer is not None:
                values = peer.run(labelled(base, features, chosen))
                report("few_shot", arguments, shots=shots, draw=draw, method="crops", **values)


def few(records: Records, classes: int, shots: int, draw: int) -> Records:
    """Return the images with ``shots`` objects of each class; regions on all other objects are not used.

    The other objects become crowd regions, which are neither examples nor background. Images without a chosen
    object are left out.
    """
    rng = np.random.default_rng((draw, shots))
    objects = records.objects
    keep = np.zeros(len(objects), bool)
    for label in range(1, classes + 1):
        rows = np.flatnonzero((objects.labels == label) & ~objects.crowd & ~objects.difficult)
        keep[rng.permutation(rows)[:shots]] = True
    marked = replace(records, objects=replace(objects, crowd=~keep))
    return marked.take(np.unique(objects.image_numbers()[keep]))


PARTS = {"end_to_end": end_to_end, "heads": heads, "refit": refit, "crops": crops, "few_shot": few_shot}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--data", choices=("bccd", "cards"), default="bccd")
    parser.add_argument("--backbone", choices=BACKBONES, default="mobilenet_v2")
    parser.add_argument("--seeds", type=numbers, default=[0])
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS), help="of heads")
    parser.add_argument("--shots", type=numbers, default=[1, 5, 10, 30])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--crops", action="store_true", help="few_shot: the classifier of crops too")
    parser.add_argument("--crop-rows", type=int, default=500, help="crops: regions per class to train on")
    parser.add_argument("--test-images", type=int, help="score only this many test images")
    parser.add_argument("--device", default="cpu", help="where the convolutions run (default cpu)")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_heads"))
    parser.add_argument("--override", action="append", default=[], metavar="key=value")
    arguments = parser.parse_args(given)
    arguments.tag = f"{arguments.data}_{arguments.backbone}"
    return arguments


def main() -> None:
    arguments = parse()
    PARTS[arguments.part](arguments)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
