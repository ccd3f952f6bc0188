"""Byte-level BPE: pre-tokenisation, training, encoding and decoding, its files."""
