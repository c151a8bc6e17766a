"""The network and what stands before (RoI sampling) and after it (losses, post-processing)."""
