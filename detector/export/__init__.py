"""Trained networks as files that run without this project: formats, the programs beside them, and checks."""
