"""Parts of ``scripts/ablate.py``."""
