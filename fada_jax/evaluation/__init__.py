"""From images to probabilities and scores."""
