"""Builds the objects that a config describes."""
