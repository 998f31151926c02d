"""A stage of training from its config to its last checkpoint."""
