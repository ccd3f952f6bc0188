"""A decoder-only Transformer language model from scratch, room by room: see the file tree in the README."""
