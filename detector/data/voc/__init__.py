"""Data sets in VOC layout: one XML file per image, one text file per split."""
