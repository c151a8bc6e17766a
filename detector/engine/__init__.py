"""The run with its loop, log and checkpoints, the optimizer, and inference; nothing here knows a config."""
