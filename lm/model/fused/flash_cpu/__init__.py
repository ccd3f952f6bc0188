"""FlashAttention-2 on a CPU, compiled by numba: see kernels.py."""

from lm.tokenizer.text.fast.build import Library

library = Library("lm.model.fused.flash_cpu", "kernels")
