"""Generation side by side: `python -m bench.generation`."""
