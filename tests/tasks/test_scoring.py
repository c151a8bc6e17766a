"""What all tasks share in scoring: which splits are opened, and what follows from an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from detector.config import Config
from detector.core.errors import InputError
from detector.core.structures import Detections
from detector.engine.run import UNSCORED
from detector.evaluation.report import NOTHING_SCORED
from detector.evaluation.voc import VocEvaluator
from detector.tasks.scoring import Evaluation, headline
from detector.tasks.start import build_scorer

Load = Callable[..., Config]
CLASSIFIER = ("task=classification", "model.pool={kind: spp, levels: [1, 2]}")


def evaluation(**metrics: Any) -> Evaluation[Detections]:
    return Evaluation(metrics={"images": 4, **metrics}, evaluator=VocEvaluator([], ["a"]), results={})


@pytest.mark.parametrize("task", [(), CLASSIFIER], ids=["detection", "classification"])
def test_a_run_is_scored_on_its_test_split_and_its_validation_images(
    tiny: Load, task: tuple[str, ...]
) -> None:
    scorer = build_scorer(tiny(*task, "train.validation_fraction=0.25"))
    assert (scorer.test_set.split, len(scorer.test_set.records)) == ("test", 4)
    assert scorer.validation is not None
    assert (scorer.validation.split, len(scorer.validation.records)) == ("trainval", 2)
    assert build_scorer(tiny(*task, "train.evaluate_split=trainval")).test_set.split == "trainval"


def test_a_named_split_is_opened_alone(tiny: Load) -> None:
    scorer = build_scorer(tiny("train.validation_fraction=0.25"), split="trainval")
    assert (scorer.test_set.split, scorer.validation) == ("trainval", None)


def test_classes_of_a_checkpoint_that_are_not_the_data_sets_are_refused(tiny: Load) -> None:
    classes = build_scorer(tiny(), split="test").classes
    build_scorer(tiny(), split="test", classes=list(classes))
    with pytest.raises(InputError, match=r"its classes are .*, the checkpoint's are cat; evaluate on data"):
        build_scorer(tiny(), split="test", classes=["cat"])


@pytest.mark.parametrize("metric", [("voc07", "voc07_mAP"), ("voc", "voc_mAP"), ("coco", "AP")])
def test_the_headline_is_the_configs_metric(tiny: Load, metric: tuple[str, str]) -> None:
    config = tiny(f"test.metric={metric[0]}")
    assert headline(config, {"voc07_mAP": 0.0, "voc_mAP": 0.0, "AP": 0.0, metric[1]: 0.5}) == 0.5
    assert headline(config, {metric[1]: float("nan")}) == UNSCORED
    assert headline(config, {"annotated": False}) == UNSCORED


def test_the_history_is_what_is_followed_over_a_run() -> None:
    scored = evaluation(voc_mAP=0.25, AP50=0.5, AR1=0.1, split="test")
    assert scored.history() == {"voc_mAP": 0.25, "AP50": 0.5}
    assert scored.summary() == "voc_mAP 0.2500, AP50 0.5000"
    assert evaluation(annotated=False).summary() == NOTHING_SCORED


def test_a_threshold_without_objects_to_judge_it_is_only_recorded() -> None:
    assert evaluation().at_threshold(None).metrics == {"images": 4}
    assert evaluation().at_threshold(0.3).metrics == {"images": 4, "score_threshold": 0.3}


def test_the_metrics_of_the_validation_images_stand_beside_those_of_the_test_images() -> None:
    validation = evaluation(voc_mAP=0.25, split="val", per_class={})
    found = evaluation(voc_mAP=0.5, split="test").with_validation(validation, None)
    kept = {"images": 4, "voc_mAP": 0.25, "split": "val"}
    assert found.metrics == {"images": 4, "voc_mAP": 0.5, "split": "test", "validation": kept}
