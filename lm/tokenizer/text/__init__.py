"""Reading text and splitting it into pre-tokens."""
