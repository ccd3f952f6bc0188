"""Byte-level BPE: pre-tokenization, training, encoding and decoding."""
