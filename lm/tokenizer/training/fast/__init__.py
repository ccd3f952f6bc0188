"""The compiled path of training."""
