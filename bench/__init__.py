"""Benchmarks that run this project side by side with other implementations; README.md describes them."""
