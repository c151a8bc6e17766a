"""Region proposals: where they come from (dense, selective search, files) and where they are kept."""
