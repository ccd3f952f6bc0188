"""Grids of training runs, such as ablations and scaling laws: their cells, their tables, and what follows from them."""
