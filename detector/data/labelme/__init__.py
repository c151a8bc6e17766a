"""Data sets annotated with LabelMe: one JSON file per image."""
