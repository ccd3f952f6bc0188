"""From a model to text: the cache, batches of texts, samplers, a terminal."""
