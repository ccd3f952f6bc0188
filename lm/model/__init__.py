"""Layers, attention, the Transformer and its accounting."""
