"""What a run trains and scores: detection and classification of whole images."""
