"""Data sets in YOLO's layout: a data.yaml, and one text file of labels per image."""
