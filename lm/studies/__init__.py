"""Ablations: their cells, tables and pictures."""
