"""SPP-net's staged training: cached features, linear SVMs with hard negatives, ridge regression of boxes."""
