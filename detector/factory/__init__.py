"""From a config to the objects it describes, and nothing else."""
