"""Models that come from elsewhere or go elsewhere: PyTorch weight files, StableHLO artifacts."""
