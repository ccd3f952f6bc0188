"""Presets: complete setups as files that hold only the parameters that differ between them."""
