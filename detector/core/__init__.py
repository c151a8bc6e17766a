"""What every part of the package may import: containers, boxes, errors, files, progress."""
