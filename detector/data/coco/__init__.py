"""Data sets in COCO's format: one JSON file per split."""
