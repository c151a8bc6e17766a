"""From a config to the pieces of an experiment; the only package that reads a ``Config``.

Everything it builds takes plain arguments, so any piece can be made by hand, in a test or a notebook.
"""
