"""Benchmarks: the adversarial step, inference and compilation, beside PyTorch; the training input and its jitter."""
