"""Metrics in [0, 1] from detections and annotations. Needs neither a network nor the compiled library."""
