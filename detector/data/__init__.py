"""Data sets: files on disk to records, records to samples, samples to batches."""
