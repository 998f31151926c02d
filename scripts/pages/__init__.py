"""Parts of ``scripts/docs_numbers.py``."""
