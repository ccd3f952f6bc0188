"""The stages that prepare a corpus, on one process and on a Ray cluster."""
