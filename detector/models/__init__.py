"""The network, RoI sampling before it, and losses and post-processing after it."""
