"""Metrics: detections and annotations in, figures in [0, 1] out. Needs no network and no compiled op."""
