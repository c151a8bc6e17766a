"""Running things: the training loop, checkpoints, inference and what a run records of itself."""
