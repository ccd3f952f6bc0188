"""Compiled encoding and decoding."""

from lm.tokenizer.text.fast.build import Library

library = Library(__name__, "pair_table", "whole_tokens", "encoder_kernels", "decoder_kernels")
