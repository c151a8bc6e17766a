"""Data sets annotated with Label Studio: one exported JSON file of tasks."""
