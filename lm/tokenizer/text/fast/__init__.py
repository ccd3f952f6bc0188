"""Compiled code that reads and pre-tokenizes text, and what all fast folders share."""

from lm.tokenizer.text.fast.build import Library

library = Library(__name__, "utf8", "scanner", "splitter", "string_kernels")
