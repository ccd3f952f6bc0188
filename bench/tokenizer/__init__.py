"""Tokenizers side by side: `python -m bench.tokenizer`."""
