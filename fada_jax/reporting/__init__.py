"""Figures, tables and the numbers of the paper."""
