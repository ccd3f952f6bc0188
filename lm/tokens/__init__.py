"""The tokens of a corpus: encoded into files, and read from them."""
