"""Fast R-CNN and SPP-net: training, evaluation and use of region-based detectors."""

__version__ = "0.1.0"
