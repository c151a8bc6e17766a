"""Checking a whole data set before training: every fault with its file and object."""
