"""Compiled BPE training."""

from lm.tokenizer.text.fast.build import Library

library = Library(__name__, "counting_kernels", "merge_kernels")
