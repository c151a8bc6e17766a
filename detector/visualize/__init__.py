"""Pictures: boxes drawn on images, and pages that summarise a run, a data set, proposals or pooling."""

from detector.visualize.classified import ClassifiedImage, classifier_picture, draw_class_scores
from detector.visualize.drawing import class_colour, draw_detections, draw_targets, save_image
from detector.visualize.page import run_picture

__all__ = [
    "ClassifiedImage",
    "class_colour",
    "classifier_picture",
    "draw_class_scores",
    "draw_detections",
    "draw_targets",
    "run_picture",
    "save_image",
]
