"""Pictures: boxes drawn on images, and pages that summarise a run, a data set, proposals or pooling."""

from detector.visualize.classified import ClassifiedImage, draw_class_scores, label_with_classes, score_rows
from detector.visualize.drawing import class_colour, draw_detections, draw_targets, save_image
from detector.visualize.grid import example_grid
from detector.visualize.page import run_charts

__all__ = [
    "ClassifiedImage",
    "class_colour",
    "draw_class_scores",
    "draw_detections",
    "draw_targets",
    "example_grid",
    "label_with_classes",
    "run_charts",
    "save_image",
    "score_rows",
]
