"""Causal attention side by side: `python -m bench.attention`."""
