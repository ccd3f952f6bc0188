"""What makes the layers fast: hand-written derivatives, oneDNN, FlashAttention."""
