"""Ablations: their cells and their table."""
