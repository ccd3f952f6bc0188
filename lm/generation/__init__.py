"""Generate text with a trained model: decoding with the cache, batches, samplers and the terminal."""
