"""The sections of a config, a file each."""
