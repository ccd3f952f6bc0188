"""What makes the layers fast: hand-written derivatives, faster products, FlashAttention."""
