"""The decoding step as machine code: matrix products, attention and the threads that share a step."""

from lm.tokenizer.text.fast.build import Library

library = Library(__name__, "products", "step")
