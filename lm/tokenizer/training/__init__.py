"""Learning the merges of a tokenizer from text."""
