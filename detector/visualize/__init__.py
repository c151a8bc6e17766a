"""Pictures for people: boxes drawn on images, and one page that shows a whole run."""

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
