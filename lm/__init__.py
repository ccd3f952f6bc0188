"""A decoder-only Transformer language model written from scratch; the README describes its folders."""
