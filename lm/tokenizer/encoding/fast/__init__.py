"""The compiled path of encoding and decoding."""
