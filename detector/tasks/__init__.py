"""What can be trained and scored: detection, and classification of whole images."""
