"""Reading text and cutting it into pre-tokens."""
