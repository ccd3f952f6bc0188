"""Training side by side: `python -m bench.training` for speed, `python -m bench.training.time_to_loss` for learning."""
