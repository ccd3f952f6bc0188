"""The Transformer: its layers, each with its cost, the key/value cache and the files of a trained model."""
