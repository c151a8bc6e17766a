"""Data sets that are drawn instead of downloaded, for the quick start and the lessons."""
